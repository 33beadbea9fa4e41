//! Parameters: one flat arena for values, gradients and optimiser state, addressed by id.
//!
//! A layer registers its parameters in an [`Arena`] and keeps a [`Param`] of each, never a tensor; [`Param::get`] makes
//! the view at use. All flat buffers of an arena share one element index space in registration order, in which each
//! parameter starts at a multiple of [`ALIGN`] elements. So one call updates the whole model, one takes the global norm,
//! and a run of gradients is a slice. The gaps between parameters are zero and stay zero.
//!
//! Values change from step to step only through [`StepBlock`]: learning rates, the step number and whatever else an
//! optimiser or dropout reads lives in two small tensors there, so that a captured step can be replayed.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::cpu::pool::Block;
use crate::shape::{IntoShape, Layout};
use crate::tensor::node::unique;
use crate::tensor::{Edge, Leaf, Meta, Storage, copy_into};
use crate::{DType, Device, Error, ErrorKind, Result, Shape, Tensor, dispatch};

/// Elements that each parameter's start is aligned to; also the block size of the group table.
pub const ALIGN: usize = 256;
/// The most parameter groups of an arena.
pub const MAX_GROUPS: usize = 16;
/// The entry of the group table that tells optimisers to leave a block alone: its parameter is frozen.
pub const FROZEN: u8 = u8::MAX;

/// The parameters of a model, of one dtype on one device. Cheap to clone; clones are the same arena.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

struct Inner {
    id: u64,
    device: Device,
    dtype: DType,
    /// Registered parameters, until the first use seals the arena.
    open: Mutex<Open>,
    sealed: OnceLock<Result<Sealed, (ErrorKind, String)>>,
    buffers: Mutex<Vec<Buffer>>,
    step: StepBlock,
}

#[derive(Default)]
struct Open {
    specs: Vec<Spec>,
    by_name: HashMap<String, usize>,
    elements: usize,
    closed: bool,
}

struct Spec {
    name: String,
    shape: Shape,
    offset: usize,
    /// Initial values in the arena's dtype; given up when the arena is sealed.
    init: Option<Block>,
    frozen: AtomicBool,
    group: AtomicU8,
    /// Whether the gradient buffer holds a gradient: decides between writing and accumulating.
    has_grad: AtomicBool,
}

struct Sealed {
    specs: Vec<Spec>,
    by_name: HashMap<String, usize>,
    values: Tensor,
    views: Vec<(Tensor, Tensor)>,
    grads: OnceLock<Tensor>,
    states: Mutex<BTreeMap<String, Tensor>>,
}

/// A parameter of an arena: an id. `get` makes the tensor.
#[derive(Clone)]
pub struct Param {
    arena: Arena,
    id: usize,
}

/// A tensor of a model's state that is no parameter, such as a running mean: see [`Arena::register_buffer`]. No gradient
/// flows to it and no optimiser touches it; layers overwrite it in place. Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct Buffer {
    name: Arc<str>,
    tensor: Tensor,
}

impl Buffer {
    /// Its name, such as `1.running_mean`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory.
    pub fn get(&self) -> &Tensor {
        &self.tensor
    }

    /// Overwrites it by `values`, of its shape.
    #[track_caller]
    pub fn set(&self, values: &Tensor) -> Result<()> {
        copy_into(&self.tensor, values).map_err(|e| e.context(&*self.name))
    }
}

impl Arena {
    /// An arena without parameters. `dtype` must be a floating-point type.
    pub fn new(dtype: DType, device: Device) -> Result<Arena> {
        if !dtype.is_float() {
            return Err(Error::dtype("arena", format!("parameters must be floating point, not {dtype}")));
        }
        let (open, sealed, step) = (Mutex::default(), OnceLock::new(), StepBlock::new(device)?);
        let buffers = Mutex::default();
        Ok(Arena(Arc::new(Inner { id: unique(), device, dtype, open, sealed, buffers, step })))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Registers a parameter with its initial values in row-major order, rounded to the arena's dtype.
    ///
    /// Errors if the name is taken, the number of values is wrong, or the arena is in use already: the first
    /// [`Param::get`] fixes its buffers.
    pub fn register(&self, name: impl Into<String>, shape: impl IntoShape, values: &[f64]) -> Result<Param> {
        let (name, shape) = (name.into(), shape.into_shape()?);
        if values.len() != shape.numel() {
            let message = format!("parameter {name:?} of shape {shape} got {} initial values", values.len());
            return Err(Error::shape("register", message));
        }
        let mut init = Block::new(shape.numel() * self.0.dtype.size())?;
        dispatch!(self.0.dtype, T => {
            init.typed_mut::<T>().iter_mut().zip(values).for_each(|(x, &v)| *x = crate::dtype::Element::from_f64(v));
        });
        let mut open = self.open();
        if open.closed {
            let message = format!("parameter {name:?} registered after the arena's first use");
            return Err(Error::argument(message).with_help("build all layers before the first forward pass"));
        }
        if open.by_name.contains_key(&name) || self.buffers().iter().any(|buffer| buffer.name() == name) {
            return Err(Error::argument(format!("two parameters or buffers named {name:?}")));
        }
        let id = open.specs.len();
        open.by_name.insert(name.clone(), id);
        let offset = open.elements;
        open.elements = (offset + shape.numel()).next_multiple_of(ALIGN);
        open.specs.push(Spec {
            name,
            shape,
            offset,
            init: Some(init),
            frozen: AtomicBool::new(false),
            group: AtomicU8::new(0),
            has_grad: AtomicBool::new(false),
        });
        Ok(Param { arena: self.clone(), id })
    }

    fn sealed(&self) -> Result<&Sealed> {
        let sealed = self.0.sealed.get_or_init(|| self.seal().map_err(|e| (e.kind(), e.to_string())));
        sealed.as_ref().map_err(|(kind, message)| Error::new(*kind, message.clone()))
    }

    /// Makes the buffers. Runs once.
    fn seal(&self) -> Result<Sealed> {
        let mut guard = self.open();
        let flat = self.flat_meta(guard.elements, self.0.dtype);
        // First the memory: if it cannot be had, the parameters stay registered and can be asked for their names.
        let mut block = Block::zeroed(flat.bytes())?;
        let mut open = std::mem::replace(&mut *guard, Open { closed: true, ..Open::default() });
        drop(guard);
        let size = self.0.dtype.size();
        for spec in &mut open.specs {
            if let Some(init) = spec.init.take() {
                block.as_mut()[spec.offset * size..][..init.as_ref().len()].copy_from_slice(init.as_ref());
            }
        }
        let cuts = open.specs.iter().skip(1).map(|s| s.offset * size).collect();
        let storage = Arc::new(Storage::placed(block, cuts, self.0.device, "arena values")?);
        let values = Tensor::from_parts(storage.clone(), Layout::contiguous(flat.shape), flat, Edge::None);
        let view = |(id, spec): (usize, &Spec)| {
            let constant = values.with_layout(spec.layout());
            (constant.with_edge(Edge::Leaf(Leaf::new(Some((self.0.id, id))))), constant)
        };
        let views = open.specs.iter().enumerate().map(view).collect();
        let (grads, states) = (OnceLock::new(), Mutex::default());
        Ok(Sealed { specs: open.specs, by_name: open.by_name, values, views, grads, states })
    }

    fn flat_meta(&self, elements: usize, dtype: DType) -> Meta {
        Meta { shape: Shape::from_dims(&[elements]), dtype, device: self.0.device }
    }

    /// The element type of the values.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where the buffers live.
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// The step block: what changes from step to step.
    pub fn step_block(&self) -> &StepBlock {
        &self.0.step
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// All parameters, in registration order. Seals the arena.
    pub fn params(&self) -> Result<Vec<Param>> {
        let count = self.sealed()?.specs.len();
        Ok((0..count).map(|id| Param { arena: self.clone(), id }).collect())
    }

    /// The parameter of this name. Seals the arena.
    pub fn param(&self, name: &str) -> Result<Param> {
        match self.sealed()?.by_name.get(name) {
            Some(&id) => Ok(Param { arena: self.clone(), id }),
            None => Err(Error::argument(format!("no parameter is named {name:?}"))),
        }
    }

    /// The number of trainable and frozen values, without the gaps between parameters. Seals the arena.
    pub fn numel(&self) -> Result<usize> {
        Ok(self.sealed()?.specs.iter().map(|s| s.shape.numel()).sum())
    }

    /// All values as one flat tensor (a multiple of [`ALIGN`] elements). Seals the arena.
    pub fn values(&self) -> Result<Tensor> {
        Ok(self.sealed()?.values.clone())
    }

    /// All gradients as one flat tensor, allocated (as zeros) on first use.
    pub fn grads(&self) -> Result<Tensor> {
        let sealed = self.sealed()?;
        if let Some(grads) = sealed.grads.get() {
            return Ok(grads.clone());
        }
        let meta = self.flat_meta(sealed.values.numel(), self.0.dtype);
        let size = meta.dtype.size();
        let cuts = sealed.specs.iter().skip(1).map(|s| s.offset * size).collect();
        let block = Block::zeroed(meta.bytes())?;
        let storage = Arc::new(Storage::placed(block, cuts, self.0.device, "arena gradients")?);
        let grads = Tensor::from_parts(storage, Layout::contiguous(meta.shape), meta, Edge::None);
        Ok(sealed.grads.get_or_init(|| grads).clone())
    }

    /// A flat tensor beside the values, such as an optimiser's moments: made as zeros on first use, found by name later.
    pub fn state(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let sealed = self.sealed()?;
        let mut states = sealed.states.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(state) = states.get(name) {
            if state.dtype() != dtype {
                let message = format!("arena state {name:?} is {}, asked for as {dtype}", state.dtype());
                return Err(Error::dtype("state", message));
            }
            return Ok(state.clone());
        }
        let state = Tensor::zeros(sealed.values.shape(), dtype, self.0.device)?;
        states.insert(name.to_owned(), state.clone());
        Ok(state)
    }

    /// The names and contents of all flat state that exists, sorted by name.
    pub fn states(&self) -> Result<Vec<(String, Tensor)>> {
        let states = self.sealed()?.states.lock().unwrap_or_else(|e| e.into_inner());
        Ok(states.iter().map(|(name, t)| (name.clone(), t.clone())).collect())
    }

    /// Registers a buffer (PyTorch's word): a tensor that belongs to the model and is saved with it but is no parameter,
    /// such as a running mean. All its elements are `value` at first.
    ///
    /// Errors if a buffer or a parameter has the name, or the arena is in use already.
    pub fn register_buffer(
        &self,
        name: impl Into<String>,
        shape: impl IntoShape,
        dtype: DType,
        value: f64,
    ) -> Result<Buffer> {
        let name = name.into();
        let tensor = Tensor::full(shape, value, dtype, self.0.device)?;
        let open = self.open();
        if open.closed {
            let message = format!("buffer {name:?} registered after the arena's first use");
            return Err(Error::argument(message).with_help("build all layers before the first forward pass"));
        }
        let taken = open.by_name.contains_key(&name);
        let mut buffers = self.0.buffers.lock().unwrap_or_else(|e| e.into_inner());
        if taken || buffers.iter().any(|buffer| *buffer.name == *name) {
            return Err(Error::argument(format!("two buffers or parameters named {name:?}")));
        }
        let buffer = Buffer { name: name.into(), tensor };
        buffers.push(buffer.clone());
        Ok(buffer)
    }

    /// All registered buffers, in the order of registration.
    pub fn buffers(&self) -> Vec<Buffer> {
        self.0.buffers.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The parameter group of every block of [`ALIGN`] elements, [`FROZEN`] where its parameter is frozen.
    pub fn group_table(&self) -> Result<Vec<u8>> {
        let sealed = self.sealed()?;
        let mut table = vec![0; sealed.values.numel() / ALIGN];
        for spec in &sealed.specs {
            let first = spec.offset / ALIGN;
            let group = if spec.frozen.load(Relaxed) { FROZEN } else { spec.group.load(Relaxed) };
            table[first..first + spec.shape.numel().div_ceil(ALIGN)].fill(group);
        }
        Ok(table)
    }

    /// Forgets all gradients: the next one that arrives overwrites. Touches no memory.
    pub fn zero_grad(&self) -> Result<()> {
        self.sealed()?.specs.iter().for_each(|s| s.has_grad.store(false, Relaxed));
        Ok(())
    }
}

impl Spec {
    fn layout(&self) -> Layout {
        Layout { offset: self.offset, ..Layout::contiguous(self.shape) }
    }
}

impl Param {
    fn spec<R>(&self, f: impl FnOnce(&Spec) -> R) -> R {
        match self.arena.0.sealed.get() {
            Some(Ok(sealed)) => f(&sealed.specs[self.id]),
            _ => match self.arena.open().specs.get(self.id) {
                Some(spec) => f(spec),
                // Sealed between the two looks.
                None => match self.arena.sealed() {
                    Ok(sealed) => f(&sealed.specs[self.id]),
                    Err(e) => panic!("the arena of this parameter could not be allocated: {e}"),
                },
            },
        }
    }

    /// The parameter's number in its arena, in registration order.
    pub fn id(&self) -> usize {
        self.id
    }

    /// The arena it is in.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Its name, such as `0.weight`.
    pub fn name(&self) -> String {
        self.spec(|s| s.name.clone())
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.spec(|s| s.shape)
    }

    /// Where it starts in the arena's flat buffers, in elements.
    pub fn offset(&self) -> usize {
        self.spec(|s| s.offset)
    }

    /// The parameter's values as a tensor that a gradient flows to (unless it is frozen). Shares the arena's memory.
    pub fn get(&self) -> Result<Tensor> {
        let sealed = self.arena.sealed()?;
        let (leaf, constant) = &sealed.views[self.id];
        Ok(if sealed.specs[self.id].frozen.load(Relaxed) { constant } else { leaf }.clone())
    }

    /// Overwrites the parameter's values by those of `values`, which must have its shape.
    #[track_caller]
    pub fn set(&self, values: &Tensor) -> Result<()> {
        copy_into(&self.arena.sealed()?.views[self.id].1, values).map_err(|e| e.context(self.name()))
    }

    /// The gradient, if one has landed since the last [`Arena::zero_grad`]. Shares the arena's memory.
    pub fn grad(&self) -> Result<Option<Tensor>> {
        let has = self.spec(|s| s.has_grad.load(Relaxed));
        if has { Ok(Some(self.grad_slot()?)) } else { Ok(None) }
    }

    /// The memory of the gradient, whatever it holds.
    pub(crate) fn grad_slot(&self) -> Result<Tensor> {
        let layout = self.spec(Spec::layout);
        Ok(self.arena.grads()?.with_layout(layout))
    }

    pub(crate) fn has_grad(&self) -> bool {
        self.spec(|s| s.has_grad.load(Relaxed))
    }

    pub(crate) fn set_has_grad(&self) {
        self.spec(|s| s.has_grad.store(true, Relaxed));
    }

    /// Whether it is frozen: no gradient is computed for it and optimisers leave it alone.
    pub fn is_frozen(&self) -> bool {
        self.spec(|s| s.frozen.load(Relaxed))
    }

    /// Freezes or thaws it, from the next forward pass on.
    pub fn set_frozen(&self, frozen: bool) {
        self.spec(|s| s.frozen.store(frozen, Relaxed));
    }

    /// Its parameter group.
    pub fn group(&self) -> usize {
        self.spec(|s| s.group.load(Relaxed)) as usize
    }

    /// Puts it into a parameter group, below [`MAX_GROUPS`].
    pub fn set_group(&self, group: usize) -> Result<()> {
        if group >= MAX_GROUPS {
            return Err(Error::argument(format!(
                "parameter group {group}: at most {MAX_GROUPS} groups are possible"
            )));
        }
        self.spec(|s| s.group.store(group as u8, Relaxed));
        Ok(())
    }
}

/// The scalars that change from step to step, as tensors: what a captured step reads instead of host arguments.
#[derive(Clone)]
pub struct StepBlock {
    /// f64 `[FLOATS]`: see the constants.
    floats: Tensor,
    /// i64 `[1]`: the number of finished steps.
    step: Tensor,
}

impl StepBlock {
    /// Position of the learning rate of group 0 in [`StepBlock::floats`]; the other groups follow.
    pub const LR: usize = 0;
    /// Position of the weight decay of group 0; the other groups follow.
    pub const WEIGHT_DECAY: usize = MAX_GROUPS;
    /// Position of the factor that clipping multiplies gradients by.
    pub const CLIP: usize = 2 * MAX_GROUPS;
    /// Position of the loss scale that gradients are divided by.
    pub const LOSS_SCALE: usize = 2 * MAX_GROUPS + 1;
    /// Position of β₁ᵗ, t being the step under way.
    pub const BETA1_POWER: usize = 2 * MAX_GROUPS + 2;
    /// Position of β₂ᵗ.
    pub const BETA2_POWER: usize = 2 * MAX_GROUPS + 3;
    /// Position of the norm that clipping found last.
    pub const NORM: usize = 2 * MAX_GROUPS + 4;
    const FLOATS: usize = 2 * MAX_GROUPS + 5;

    fn new(device: Device) -> Result<StepBlock> {
        let mut floats = [0.0f64; StepBlock::FLOATS];
        floats[StepBlock::CLIP..].fill(1.0);
        let floats = Tensor::from_slice(&floats, StepBlock::FLOATS, device)?;
        Ok(StepBlock { floats, step: Tensor::zeros(1, DType::I64, device)? })
    }

    /// The shape of [`StepBlock::floats`].
    pub(crate) fn floats_shape() -> Shape {
        Shape::from_dims(&[StepBlock::FLOATS])
    }

    /// All floats: f64, 1-d; the constants name the positions.
    pub fn floats(&self) -> &Tensor {
        &self.floats
    }

    /// The number of finished steps: i64, 0-d.
    pub fn step(&self) -> Result<Tensor> {
        self.step.select(0, 0)
    }

    /// One float, read back to the host. Not for use within a step.
    pub fn get(&self, position: usize) -> Result<f64> {
        self.floats.select(0, position)?.item()
    }

    /// Sets one float.
    #[track_caller]
    pub fn set(&self, position: usize, value: f64) -> Result<()> {
        copy_into(&self.floats.select(0, position)?, &Tensor::scalar(value, self.floats.device())?)
    }

    /// The number of finished steps, read back to the host.
    pub fn steps(&self) -> Result<u64> {
        Ok(self.step.to_vec::<i64>()?[0] as u64)
    }

    /// Sets the number of finished steps.
    #[track_caller]
    pub fn set_steps(&self, steps: u64) -> Result<()> {
        copy_into(&self.step.select(0, 0)?, &Tensor::scalar(steps as i64, self.step.device())?)
    }
}
