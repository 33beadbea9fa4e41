//! The tape: what an op leaves behind so that `autograd` can go back through it.
//!
//! A [`Node`] hangs on the tensors it produced and points at where its inputs came from; there is no global tape. Nodes
//! keep only the tensors that their op says its backward reads, together with the version of their memory at that time.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::storage::Site;
use super::{Meta, Tensor};
use crate::{Error, ErrorKind, Result};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number no other leaf, node or arena of this process has; ascending.
pub(crate) fn unique() -> u64 {
    NEXT.fetch_add(1, Relaxed)
}

/// A tensor whose gradient is wanted, at the edge of the graph: a free leaf or a parameter of an arena.
#[derive(Debug)]
pub struct Leaf {
    /// Unique in the process.
    pub id: u64,
    /// The arena and the parameter's number in it; `None` for a free leaf.
    pub(crate) param: Option<(u64, usize)>,
}

impl Leaf {
    pub(crate) fn new(param: Option<(u64, usize)>) -> Arc<Leaf> {
        Arc::new(Leaf { id: unique(), param })
    }
}

/// Where the gradient of a tensor goes.
#[derive(Clone, Debug)]
pub enum Edge {
    /// Nowhere: the tensor is a constant.
    None,
    /// To a leaf.
    Leaf(Arc<Leaf>),
    /// To output `.1` of a node.
    Node(Arc<Node>, usize),
}

impl Edge {
    /// Whether a gradient is wanted here.
    pub fn is_some(&self) -> bool {
        !matches!(self, Edge::None)
    }
}

/// The inverse of a view, for backward.
#[derive(Clone, Debug)]
pub enum ViewKind {
    /// Dimensions reordered by this permutation.
    Permute(Vec<usize>),
    /// The same elements in the same order under another shape.
    Reshape,
    /// Every `step`-th index from `start` of dimension `dim`.
    Slice {
        /// The dimension.
        dim: usize,
        /// The first index.
        start: usize,
        /// The distance between indices.
        step: usize,
    },
    /// Dimensions of size 1, or new leading ones, repeated.
    Expand,
}

/// How a node passes gradients on.
pub(crate) enum Function {
    /// Through an op's `backward`.
    Op(Box<dyn Backward>),
    /// Through the inverse of a view.
    View(ViewKind),
    /// Through what this gives when run again on the first `inputs` inputs; the others are the parameters that it uses.
    Recompute { inputs: usize, f: Arc<Recompute> },
}

/// A part of a forward pass that can be run again.
pub(crate) type Recompute = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync;

/// The type-erased backward of an op; implemented for every `Op` in `ops`.
pub(crate) trait Backward: Send + Sync {
    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()>;
}

/// One recorded op.
pub struct Node {
    /// Ascending in the order of recording: every input's node has a smaller one.
    pub(crate) seq: u64,
    pub(crate) name: &'static str,
    pub(crate) function: Function,
    pub(crate) edges: Vec<Edge>,
    pub(crate) inputs: Vec<Meta>,
    pub(crate) outputs: Vec<Meta>,
    saved: Vec<(Slot, Saved)>,
    site: Site,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Input(usize),
    Output(usize),
}

struct Saved {
    tensor: Tensor,
    version: u64,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} #{})", self.name, self.seq)
    }
}

impl Drop for Node {
    /// Unlinks the graph behind this node in a loop: a chain of a million nodes must not recurse a million deep.
    fn drop(&mut self) {
        let mut stack = std::mem::take(&mut self.edges);
        while let Some(edge) = stack.pop() {
            if let Edge::Node(node, _) = edge
                && let Some(mut node) = Arc::into_inner(node)
            {
                stack.append(&mut node.edges);
            }
        }
    }
}

/// Which inputs and outputs an op's backward reads, as bit sets. Nothing else is kept alive for it.
/// Only the first 32 inputs can be named; an op of any number of inputs (such as `cat`) saves none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saves {
    inputs: u32,
    outputs: u32,
}

impl Saves {
    /// Nothing.
    pub const NONE: Saves = Saves { inputs: 0, outputs: 0 };

    /// These inputs, by number.
    pub const fn inputs(which: &[usize]) -> Saves {
        Saves::NONE.and_inputs(which)
    }

    /// These outputs, by number.
    pub const fn outputs(which: &[usize]) -> Saves {
        Saves::NONE.and_outputs(which)
    }

    /// These inputs too.
    pub const fn and_inputs(mut self, which: &[usize]) -> Saves {
        let mut i = 0;
        while i < which.len() {
            self.inputs |= 1 << which[i];
            i += 1;
        }
        self
    }

    /// These outputs too.
    pub const fn and_outputs(mut self, which: &[usize]) -> Saves {
        let mut i = 0;
        while i < which.len() {
            self.outputs |= 1 << which[i];
            i += 1;
        }
        self
    }
}

thread_local! {
    static GRAD: Cell<bool> = const { Cell::new(true) };
    static CHECK: Cell<bool> = const { Cell::new(false) };
}

/// Sets a thread's flag for the duration of `f`, also if it panics.
fn with_flag<R>(flag: &'static std::thread::LocalKey<Cell<bool>>, value: bool, f: impl FnOnce() -> R) -> R {
    struct Restore(&'static std::thread::LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(flag, flag.replace(value));
    f()
}

/// Whether ops on this thread are recorded (see [`no_grad`]).
pub fn grad_enabled() -> bool {
    GRAD.get()
}

/// Runs `f` with recording off on this thread: nothing it computes carries gradients.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    with_flag(&GRAD, false, f)
}

/// Runs `f` with recording on, within [`no_grad`] too.
pub(crate) fn enable_grad<R>(f: impl FnOnce() -> R) -> R {
    with_flag(&GRAD, true, f)
}

/// Runs `f` with every op on this thread checking its outputs: the first that makes a NaN or an infinity is an error of
/// kind `Diverged` that names it. Slow; for finding out.
pub fn check_numerics<R>(f: impl FnOnce() -> R) -> R {
    with_flag(&CHECK, true, f)
}

/// Whether [`check_numerics`] is on.
pub(crate) fn numerics_checked() -> bool {
    CHECK.get()
}

/// Hangs a node on `outputs` if recording is on and any input wants a gradient; otherwise leaves them constants.
/// Outputs that are not floating point stay constants.
#[track_caller]
pub(crate) fn record(
    name: &'static str,
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
    saves: &dyn Fn(&[bool]) -> Saves,
    function: &dyn Fn() -> Function,
) -> Vec<Tensor> {
    if !grad_enabled() || inputs.iter().all(|t| !t.edge().is_some()) {
        return outputs;
    }
    let needs: Vec<bool> = inputs.iter().map(|t| t.edge().is_some()).collect();
    let saves = saves(&needs);
    let mut saved = Vec::new();
    let mut keep = |slot, tensor: &Tensor| {
        saved.push((slot, Saved { tensor: tensor.detach(), version: tensor.version() }))
    };
    for (i, tensor) in inputs.iter().enumerate().take(32).filter(|(i, _)| saves.inputs & (1 << i) != 0) {
        keep(Slot::Input(i), tensor);
    }
    for (i, tensor) in outputs.iter().enumerate().filter(|(i, _)| saves.outputs & (1 << i) != 0) {
        keep(Slot::Output(i), tensor);
    }
    let node = Arc::new(Node {
        seq: unique(),
        name,
        function: function(),
        edges: inputs.iter().map(|t| t.edge().clone()).collect(),
        inputs: inputs.iter().map(|t| t.meta()).collect(),
        outputs: outputs.iter().map(|t| t.meta()).collect(),
        saved,
        site: Location::caller(),
    });
    let link = |(i, t): (usize, Tensor)| {
        if t.dtype().is_float() { t.with_edge(Edge::Node(node.clone(), i)) } else { t }
    };
    outputs.into_iter().enumerate().map(link).collect()
}

/// Where gradients land; implemented by `autograd`, used by [`BackwardCx`].
pub(crate) trait Deliver {
    /// Delivers a computed gradient to `edge`.
    fn give(&mut self, edge: &Edge, meta: &Meta, gradient: Tensor) -> Result<()>;
    /// Memory for the gradient of `edge`, and whether to add to what is there. Followed by `landed` once it is written.
    fn destination(&mut self, edge: &Edge, meta: &Meta) -> Result<(Tensor, bool)>;
    /// The memory from `destination` now holds the contribution.
    fn landed(&mut self, edge: &Edge) -> Result<()>;
}

/// What an op's `backward` works with: the saved tensors, the inputs that want a gradient, and the way to deliver one.
pub struct BackwardCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) deliver: &'a mut dyn Deliver,
}

impl BackwardCx<'_> {
    /// Whether input `i` wants a gradient.
    pub fn needs(&self, i: usize) -> bool {
        self.node.edges[i].is_some()
    }

    /// Shape, dtype and device of input `i`.
    pub fn input_meta(&self, i: usize) -> Meta {
        self.node.inputs[i]
    }

    /// Shape, dtype and device of output `i`.
    pub fn output_meta(&self, i: usize) -> Meta {
        self.node.outputs[i]
    }

    /// Input `i` as it was in forward. An error if its memory was changed in place since, or if `Op::saves` omits it.
    pub fn input(&self, i: usize) -> Result<Tensor> {
        self.saved(Slot::Input(i))
    }

    /// Output `i` as it was in forward. An error if its memory was changed in place since, or if `Op::saves` omits it.
    pub fn output(&self, i: usize) -> Result<Tensor> {
        self.saved(Slot::Output(i))
    }

    fn saved(&self, slot: Slot) -> Result<Tensor> {
        let name = self.node.name;
        let Some((_, saved)) = self.node.saved.iter().find(|(s, _)| *s == slot) else {
            let (what, i) = match slot {
                Slot::Input(i) => ("input", i),
                Slot::Output(i) => ("output", i),
            };
            return Err(Error::internal(format!("backward reads {what} {i}, which forward did not save"))
                .with_op(name));
        };
        if saved.tensor.version() != saved.version {
            let by = match saved.tensor.last_write() {
                Some((op, site)) => format!("{op} at {site}"),
                None => "an unknown call".to_owned(),
            };
            let message = format!(
                "a tensor of shape {} saved for backward at {} was changed in place by {by}",
                saved.tensor.shape(),
                self.node.site
            );
            return Err(Error::new(ErrorKind::Stale, message)
                .with_op(name)
                .with_help("change it after backward, or work on a copy"));
        }
        Ok(saved.tensor.clone())
    }

    /// Delivers `gradient` to input `i`; it must have that input's shape and dtype. Ignored if nobody wants it.
    pub fn give(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        let (edge, meta) = (&self.node.edges[i], &self.node.inputs[i]);
        if !edge.is_some() {
            return Ok(());
        }
        if gradient.meta() != *meta {
            let message = format!("gradient of input {i} is {} but the input is {meta}", gradient.meta());
            return Err(Error::internal(message).with_op(self.node.name));
        }
        self.deliver.give(edge, meta, gradient)
    }

    /// Where the gradient of input `i` belongs: fresh memory, a parameter's slice of the arena, or (flag true) memory to
    /// add to, left there by earlier uses. Contiguous and of the input's shape. Followed by [`BackwardCx::landed`].
    pub(crate) fn destination(&mut self, i: usize) -> Result<(Tensor, bool)> {
        self.deliver.destination(&self.node.edges[i], &self.node.inputs[i])
    }

    pub(crate) fn landed(&mut self, i: usize) -> Result<()> {
        self.deliver.landed(&self.node.edges[i])
    }

    /// Whether inputs `i` and `j` are one tensor to the graph, so that their gradients land in one place.
    pub(crate) fn same_edge(&self, i: usize, j: usize) -> bool {
        match (&self.node.edges[i], &self.node.edges[j]) {
            (Edge::Leaf(a), Edge::Leaf(b)) => a.id == b.id,
            (Edge::Node(a, x), Edge::Node(b, y)) => a.seq == b.seq && x == y,
            _ => false,
        }
    }
}
