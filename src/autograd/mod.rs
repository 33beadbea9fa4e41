//! Backward: from a loss through the tape to leaves and parameters.
//!
//! Nodes are visited in descending order of recording, which is a topological order. A gradient is written by the first
//! use that reaches it and added to by later ones; parameters' gradients go straight into their arena. Before anything
//! is computed the uses of every parameter are counted, so that the caller learns of each parameter the moment its last
//! contribution has landed (for overlapped exchange), and of every parameter that got none (an error, not a silence).

#![forbid(unsafe_code)]

mod check;
mod checkpoint;

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use crate::ops::SumTo;
use crate::param::{Arena, Param, StepBlock};
use crate::tensor::node::{Deliver, Function, Node};
use crate::tensor::{BackwardCx, Edge, Leaf, Meta, ViewKind, accumulate, copy_into, fill_zero, no_grad};
use crate::{DType, Error, ErrorKind, Result, Tensor};

pub use check::{GradCheck, gradcheck};
pub use checkpoint::checkpoint;

/// The gradients of the free leaves that a backward pass reached.
#[derive(Debug, Default)]
pub struct Grads(HashMap<u64, Tensor>);

impl Grads {
    /// The gradient of `leaf` (made by [`Tensor::as_leaf`]), if the loss depends on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        match leaf.edge() {
            Edge::Leaf(leaf) => self.0.get(&leaf.id),
            _ => None,
        }
    }
}

/// How [`Arena::backward_with`] deals with what it finds.
#[derive(Default)]
pub struct BackwardOptions<'a> {
    /// Parameters, by name, that may stay without a gradient: theirs is set to zero.
    pub allow_unused: &'a [&'a str],
    /// Called once for each parameter (by number) that is not frozen: when its last contribution of this pass has landed,
    /// or at the end for one that is allowed to be unused.
    pub ready: Option<&'a mut dyn FnMut(usize)>,
    /// The gradient to start from, of the loss's shape; ones for a loss of one element if absent. Times the loss scale.
    pub seed: Option<Tensor>,
}

/// Computes the gradients of `loss`, a tensor of one element, with respect to the free leaves it depends on.
pub fn backward(loss: &Tensor) -> Result<Grads> {
    Engine::new(None).run(loss, None, &mut None)
}

/// As [`backward`], starting from `seed`, of the shape of `output`, in place of one.
pub fn backward_from(output: &Tensor, seed: &Tensor) -> Result<Grads> {
    Engine::new(None).run(output, Some(seed.clone()), &mut None)
}

impl Arena {
    /// Computes the gradients of `loss`, a tensor of one element: the parameters' into this arena, those of free leaves
    /// into the result. Adds to gradients that are there (see [`Arena::zero_grad`]).
    ///
    /// If the arena's [`Precision`](crate::param::Precision) scales the loss, backward starts from the scale, read on the
    /// device, and all gradients carry it; the optimiser's update divides by it. A loss in f16 cannot start from more than
    /// 65,504 (a greater scale counts as an overflow, and halves); cast logits to f32 before the loss.
    ///
    /// An error of kind `MissingGradient` names every parameter that is neither frozen nor reached from the loss. After an
    /// error some gradients may have landed: call [`Arena::zero_grad`] before trying again.
    pub fn backward(&self, loss: &Tensor) -> Result<Grads> {
        self.backward_with(loss, BackwardOptions::default())
    }

    /// As [`Arena::backward`], with options.
    pub fn backward_with(&self, loss: &Tensor, options: BackwardOptions<'_>) -> Result<Grads> {
        let BackwardOptions { allow_unused, mut ready, seed } = options;
        for name in allow_unused {
            self.param(name).map_err(|e| e.context("allow_unused"))?;
        }
        let mut engine = Engine::new(Some(self));
        let grads = engine.run(loss, seed, &mut ready)?;
        let mut missing = Vec::new();
        let reached = engine.reached;
        for param in self.params()?.into_iter().filter(|p| !reached[p.id()] && !p.is_frozen()) {
            if !allow_unused.contains(&param.name().as_str()) {
                missing.push(param.name());
                continue;
            }
            if !param.has_grad() {
                fill_zero(&param.grad_slot()?)?;
                param.set_has_grad();
            }
            if let Some(ready) = &mut ready {
                ready(param.id());
            }
        }
        if missing.is_empty() {
            return Ok(grads);
        }
        let message = format!("no gradient reached {}", missing.join(", "));
        Err(Error::new(ErrorKind::MissingGradient, message)
            .with_op("backward")
            .with_help("use them in the forward pass, freeze them, or name them in allow_unused"))
    }
}

/// Told of each parameter whose gradient is complete.
type Ready<'a> = Option<&'a mut dyn FnMut(usize)>;

/// A gradient on its way.
enum Slot {
    /// Memory that someone else may hold too: read only.
    Shared(Tensor),
    /// Memory of ours: may be added to.
    Owned(Tensor),
}

/// A node in the queue, ordered by its number.
struct Queued(Arc<Node>);

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.0.seq == other.0.seq
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        self.0.seq.cmp(&other.0.seq)
    }
}

struct Engine<'a> {
    arena: Option<&'a Arena>,
    params: Vec<Param>,
    /// Which of the parameters a gradient of this pass has reached.
    reached: Vec<bool>,
    /// Gradients of nodes' outputs and of free leaves.
    slots: HashMap<(u64, usize), Slot>,
    /// Contributions to gradients of parameters that are kept in another type than they are computed in, by parameter.
    narrow: HashMap<usize, Tensor>,
}

/// Uses of each of the arena's parameters, by leaf, and the leaves that have no place in it.
type Uses = (HashMap<u64, usize>, Vec<Arc<Leaf>>);

/// The key of a leaf's slot; nodes and leaves draw their numbers from one source, so keys do not collide.
fn leaf_key(leaf: &Leaf) -> (u64, usize) {
    (leaf.id, 0)
}

impl<'a> Engine<'a> {
    fn new(arena: Option<&'a Arena>) -> Engine<'a> {
        Engine {
            arena,
            params: Vec::new(),
            reached: Vec::new(),
            slots: HashMap::new(),
            narrow: HashMap::new(),
        }
    }

    fn run(&mut self, loss: &Tensor, seed: Option<Tensor>, ready: &mut Ready<'_>) -> Result<Grads> {
        let seed = seed_of(loss, seed)?;
        if let Some(arena) = self.arena {
            self.params = arena.params()?;
            self.reached = vec![false; self.params.len()];
        }
        no_grad(|| {
            let seed = self.arena.map_or(Ok(seed.clone()), |arena| scaled(arena, seed))?;
            self.walk(&[(loss, seed)], ready)
        })
    }

    /// Goes back from tensors with their gradients.
    fn walk(&mut self, from: &[(&Tensor, Tensor)], ready: &mut Ready<'_>) -> Result<Grads> {
        let (mut uses, leaves) = self.count_uses(from.iter().map(|(t, _)| t.edge()))?;
        let mut queue = BinaryHeap::new();
        let mut queued = HashSet::new();
        let mut enqueue = |queue: &mut BinaryHeap<Queued>, edge: &Edge| {
            if let Edge::Node(node, _) = edge
                && queued.insert(node.seq)
            {
                queue.push(Queued(node.clone()));
            }
        };
        let mut finished = |edge: &Edge, reached: &[bool]| {
            if let Edge::Leaf(leaf) = edge
                && let Some((_, id)) = leaf.param
                && let Some(left) = uses.get_mut(&leaf.id)
            {
                *left -= 1;
                if *left == 0
                    && reached.get(id) == Some(&true)
                    && let Some(ready) = ready
                {
                    ready(id);
                }
            }
        };
        for (tensor, seed) in from {
            self.give(tensor.edge(), &tensor.meta(), seed.clone())?;
            enqueue(&mut queue, tensor.edge());
            finished(tensor.edge(), &self.reached);
        }
        while let Some(Queued(node)) = queue.pop() {
            let dys: Vec<Option<Tensor>> =
                (0..node.outputs.len()).map(|i| self.take((node.seq, i))).collect();
            if dys.iter().any(Option::is_some) {
                self.visit(&node, &dys).map_err(|e| e.context(format!("backward of {}", node.name)))?;
            }
            for edge in &node.edges {
                finished(edge, &self.reached);
                enqueue(&mut queue, edge);
            }
        }
        let taken = leaves.into_iter().filter_map(|leaf| Some((leaf.id, self.take(leaf_key(&leaf))?)));
        Ok(Grads(taken.collect()))
    }

    fn visit(&mut self, node: &Node, dys: &[Option<Tensor>]) -> Result<()> {
        match (&node.function, dys) {
            (Function::Op(op), _) => op.backward(&mut BackwardCx { node, deliver: self }, dys),
            (Function::View(kind), [Some(dy)]) => {
                view_backward(&mut BackwardCx { node, deliver: self }, kind, dy)
            }
            (Function::View(_), _) => Err(Error::internal("a view has one output")),
            (Function::Recompute { inputs, f }, _) => self.recompute(node, *inputs, &**f, dys),
        }
    }

    fn take(&mut self, key: (u64, usize)) -> Option<Tensor> {
        self.slots.remove(&key).map(|slot| match slot {
            Slot::Shared(t) | Slot::Owned(t) => t,
        })
    }

    /// The number of uses of each of the arena's parameters, and all leaves without a place in it.
    fn count_uses<'e>(&self, from: impl Iterator<Item = &'e Edge>) -> Result<Uses> {
        let (mut uses, mut free) = (HashMap::new(), HashMap::new());
        let mut seen = HashSet::new();
        let mut stack: Vec<Arc<Node>> = Vec::new();
        let mut meet = |edge: &Edge, stack: &mut Vec<Arc<Node>>| {
            match edge {
                Edge::None => {}
                Edge::Node(node, _) => {
                    if seen.insert(node.seq) {
                        stack.push(node.clone());
                    }
                }
                Edge::Leaf(leaf) => match (self.arena, leaf.param) {
                    (Some(arena), Some((owner, _))) if owner == arena.id() => {
                        *uses.entry(leaf.id).or_insert(0) += 1
                    }
                    (Some(_), Some(_)) => {
                        let message = "the loss depends on a parameter of another arena";
                        return Err(Error::new(ErrorKind::MissingGradient, message)
                            .with_op("backward")
                            .with_help("detach it, or keep the parameters in one arena"));
                    }
                    _ => drop(free.insert(leaf.id, leaf.clone())),
                },
            }
            Ok(())
        };
        for edge in from {
            meet(edge, &mut stack)?;
        }
        while let Some(node) = stack.pop() {
            for edge in &node.edges {
                meet(edge, &mut stack)?;
            }
        }
        Ok((uses, free.into_values().collect()))
    }

    /// The parameter behind an edge, if it is one of the arena's.
    fn param(&self, edge: &Edge) -> Option<&Param> {
        match (edge, self.arena) {
            (Edge::Leaf(leaf), Some(_)) => self.params.get(leaf.param?.1),
            _ => None,
        }
    }
}

fn seed_of(loss: &Tensor, seed: Option<Tensor>) -> Result<Tensor> {
    if !loss.requires_grad() {
        let error = Error::new(ErrorKind::MissingGradient, "the loss depends on no parameter or leaf");
        return Err(error
            .with_op("backward")
            .with_help("was it computed under no_grad, or from detached tensors?"));
    }
    match seed {
        Some(seed) if seed.meta() == loss.meta() => Ok(seed),
        Some(seed) => Err(Error::shape(
            "backward",
            format!("seed is {} but the output is {}", seed.meta(), loss.meta()),
        )),
        None if loss.numel() == 1 => Tensor::ones(loss.shape(), loss.dtype(), loss.device()),
        None => {
            Err(Error::shape("backward", format!("the loss has shape {}, not one element", loss.shape())))
        }
    }
}

/// `seed` times the loss scale of `arena`, if it has one.
fn scaled(arena: &Arena, seed: Tensor) -> Result<Tensor> {
    if !arena.precision().scales_loss() {
        return Ok(seed);
    }
    let scale = arena.step_block().floats().select(0, StepBlock::LOSS_SCALE)?;
    if seed.dtype() == DType::F64 {
        return seed.mul(&scale);
    }
    // In f32, so that a scale beyond f16 meets a small seed in full.
    seed.to_dtype(DType::F32)?.mul(&scale.to_dtype(DType::F32)?)?.to_dtype(seed.dtype())
}

fn key(edge: &Edge) -> Result<(u64, usize)> {
    match edge {
        Edge::Node(node, output) => Ok((node.seq, *output)),
        Edge::Leaf(leaf) => Ok(leaf_key(leaf)),
        Edge::None => Err(Error::internal("a gradient for a constant")),
    }
}

impl Deliver for Engine<'_> {
    fn give(&mut self, edge: &Edge, meta: &Meta, gradient: Tensor) -> Result<()> {
        if let Some(param) = self.param(edge) {
            add_to(param, &gradient)?;
            return self.landed(edge);
        }
        let key = key(edge)?;
        let sum = match self.slots.remove(&key) {
            None => Slot::Shared(gradient),
            Some(Slot::Owned(sum)) => {
                accumulate(&sum, &gradient)?;
                Slot::Owned(sum)
            }
            Some(Slot::Shared(first)) => {
                let sum = Tensor::empty(*meta, "gradient")?;
                copy_into(&sum, &first)?;
                accumulate(&sum, &gradient)?;
                Slot::Owned(sum)
            }
        };
        self.slots.insert(key, sum);
        Ok(())
    }

    fn destination(&mut self, edge: &Edge, meta: &Meta) -> Result<(Tensor, bool)> {
        if let Some(param) = self.param(edge) {
            let (id, slot) = (param.id(), param.grad_slot()?);
            if slot.dtype() == meta.dtype {
                return Ok((slot, param.has_grad()));
            }
            // Made in the type of the op, then added in that of the sum.
            let memory = Tensor::empty(*meta, "gradient")?;
            self.narrow.insert(id, memory.clone());
            return Ok((memory, false));
        }
        let key = key(edge)?;
        let (memory, add) = match self.slots.remove(&key) {
            None => (Tensor::empty(*meta, "gradient")?, false),
            Some(Slot::Owned(sum)) => (sum, true),
            Some(Slot::Shared(first)) => {
                let sum = Tensor::empty(*meta, "gradient")?;
                copy_into(&sum, &first)?;
                (sum, true)
            }
        };
        self.slots.insert(key, Slot::Owned(memory.clone()));
        Ok((memory, add))
    }

    fn landed(&mut self, edge: &Edge) -> Result<()> {
        let Some(param) = self.param(edge).cloned() else { return Ok(()) };
        if let Some(contribution) = self.narrow.remove(&param.id()) {
            add_to(&param, &contribution)?;
        }
        param.set_has_grad();
        self.reached[param.id()] = true;
        Ok(())
    }
}

/// Adds a contribution to a parameter's gradient, or writes it if it is the first.
fn add_to(param: &Param, gradient: &Tensor) -> Result<()> {
    let slot = param.grad_slot()?;
    if param.has_grad() { accumulate(&slot, gradient) } else { copy_into(&slot, gradient) }
}

/// Brings the gradient of a view back to its base, input 0.
fn view_backward(cx: &mut BackwardCx<'_>, kind: &ViewKind, dy: &Tensor) -> Result<()> {
    let base = cx.input_meta(0);
    match kind {
        ViewKind::Permute(perm) => {
            let mut inverse = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
            cx.give(0, dy.permute(&inverse)?)
        }
        ViewKind::Reshape => cx.give(0, dy.reshape(base.shape)?),
        ViewKind::Slice { dim, start, step } => {
            let (memory, add) = cx.destination(0)?;
            if !add {
                fill_zero(&memory)?;
            }
            let count = dy.dims()[*dim];
            let end = if count == 0 { *start } else { start + (count - 1) * step + 1 };
            accumulate(&memory.slice(*dim as isize, *start, end, *step)?, dy)?;
            cx.landed(0)
        }
        ViewKind::Expand => cx.run(SumTo { shape: base.shape }, &[dy], &[0]),
    }
}
