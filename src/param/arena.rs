//! The arena: registration, sealing, and the flat buffers.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::{ALIGN, Buffer, FROZEN, Param, Precision, StepBlock};
use crate::cpu::pool::Block;
use crate::shape::{IntoShape, Layout};
use crate::tensor::node::unique;
use crate::tensor::{Edge, Leaf, Meta, Storage};
use crate::{DType, Device, Error, ErrorKind, Result, Shape, Tensor, dispatch};

/// The name of the state that holds masters.
const MASTER: &str = "master";

/// The parameters of a model, of one [`Precision`] on one device. Cheap to clone; clones are the same arena.
#[derive(Clone)]
pub struct Arena(pub(super) Arc<Inner>);

pub(super) struct Inner {
    id: u64,
    device: Device,
    precision: Precision,
    /// Registered parameters, until the first use seals the arena.
    open: Mutex<Open>,
    pub(super) sealed: OnceLock<Result<Sealed, (ErrorKind, String)>>,
    buffers: Mutex<Vec<Buffer>>,
    step: StepBlock,
}

#[derive(Default)]
pub(super) struct Open {
    pub(super) specs: Vec<Spec>,
    by_name: HashMap<String, usize>,
    elements: usize,
    closed: bool,
}

pub(super) struct Spec {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) offset: usize,
    /// Initial values in the arena's dtype, f32 if there are masters; given up when the arena is sealed.
    init: Option<Block>,
    pub(super) frozen: AtomicBool,
    pub(super) group: AtomicU8,
    /// Whether the gradient buffer holds a gradient: decides between writing and accumulating.
    pub(super) has_grad: AtomicBool,
}

pub(super) struct Sealed {
    pub(super) specs: Vec<Spec>,
    by_name: HashMap<String, usize>,
    values: Tensor,
    /// What 16-bit values are rounded from.
    master: Option<Tensor>,
    pub(super) views: Vec<(Tensor, Tensor)>,
    grads: OnceLock<Tensor>,
    states: Mutex<BTreeMap<String, Tensor>>,
}

impl Arena {
    /// An arena without parameters. `dtype` must be a floating-point type; the values of a 16-bit one have f32 masters. As
    /// [`Arena::with_precision`] of [`Precision::of`].
    pub fn new(dtype: DType, device: Device) -> Result<Arena> {
        Arena::with_precision(Precision::of(dtype), device)
    }

    /// An arena without parameters, whose values, gradients and optimiser state are kept as `precision` says.
    pub fn with_precision(precision: Precision, device: Device) -> Result<Arena> {
        precision.check()?;
        let step = StepBlock::new(precision.loss_scale.initial(), device)?;
        let (open, sealed) = (Mutex::default(), OnceLock::new());
        let buffers = Mutex::default();
        Ok(Arena(Arc::new(Inner { id: unique(), device, precision, open, sealed, buffers, step })))
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Registers a parameter with its initial values in row-major order, rounded to the arena's dtype (a master:
    /// to f32).
    ///
    /// Errors if the name is taken, the number of values is wrong, or the arena is in use already: the first
    /// [`Param::get`] fixes its buffers.
    pub fn register(&self, name: impl Into<String>, shape: impl IntoShape, values: &[f64]) -> Result<Param> {
        let (name, shape) = (name.into(), shape.into_shape()?);
        if values.len() != shape.numel() {
            let message = format!("parameter {name:?} of shape {shape} got {} initial values", values.len());
            return Err(Error::shape("register", message));
        }
        let dtype = self.kept();
        let mut init = Block::new(shape.numel() * dtype.size())?;
        dispatch!(dtype, T => {
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

    pub(super) fn sealed(&self) -> Result<&Sealed> {
        let sealed = self.0.sealed.get_or_init(|| self.seal().map_err(|e| (e.kind(), e.to_string())));
        sealed.as_ref().map_err(|(kind, message)| Error::new(*kind, message.clone()))
    }

    /// Makes the buffers. Runs once.
    fn seal(&self) -> Result<Sealed> {
        let mut guard = self.open();
        let flat = self.flat_meta(guard.elements, self.kept());
        // First the memory: if it cannot be had, the parameters stay registered and can be asked for their names.
        let mut block = Block::zeroed(flat.bytes())?;
        let short = self.flat_meta(guard.elements, self.dtype());
        let mut rounded =
            if self.0.precision.has_master() { Some(Block::zeroed(short.bytes())?) } else { None };
        let mut open = std::mem::replace(&mut *guard, Open { closed: true, ..Open::default() });
        drop(guard);
        let size = flat.dtype.size();
        for spec in &mut open.specs {
            if let Some(init) = spec.init.take() {
                block.as_mut()[spec.offset * size..][..init.as_ref().len()].copy_from_slice(init.as_ref());
            }
        }
        let flat_of = |block: Block, meta: Meta, what| {
            let cuts = open.specs.iter().skip(1).map(|s| s.offset * meta.dtype.size()).collect();
            let storage = Arc::new(Storage::placed(block, cuts, self.0.device, what)?);
            Ok::<_, Error>(Tensor::from_parts(storage, Layout::contiguous(meta.shape), meta, Edge::None))
        };
        let (values, master) = match rounded.take() {
            Some(mut rounded) => {
                let full = bytemuck::cast_slice::<u8, f32>(block.as_ref());
                dispatch!(short.dtype, T => {
                    let to = rounded.typed_mut::<T>().iter_mut();
                    to.zip(full).for_each(|(to, &from)| *to = crate::dtype::Element::from_f64(from.into()));
                });
                let master = flat_of(block, flat, "master weights")?;
                (flat_of(rounded, short, "arena values")?, Some(master))
            }
            None => (flat_of(block, flat, "arena values")?, None),
        };
        let view = |(id, spec): (usize, &Spec)| {
            let constant = values.with_layout(spec.layout());
            (constant.with_edge(Edge::Leaf(Leaf::new(Some((self.0.id, id))))), constant)
        };
        let views = open.specs.iter().enumerate().map(view).collect();
        let states = master.iter().map(|master| (MASTER.to_owned(), master.clone())).collect();
        let (grads, states) = (OnceLock::new(), Mutex::new(states));
        Ok(Sealed { specs: open.specs, by_name: open.by_name, values, master, views, grads, states })
    }

    fn flat_meta(&self, elements: usize, dtype: DType) -> Meta {
        Meta { shape: Shape::from_dims(&[elements]), dtype, device: self.0.device }
    }

    /// The type that initial values are kept in.
    fn kept(&self) -> DType {
        if self.0.precision.has_master() { DType::F32 } else { self.dtype() }
    }

    /// The element type of the values.
    pub fn dtype(&self) -> DType {
        self.0.precision.compute
    }

    /// In which types all is kept.
    pub fn precision(&self) -> &Precision {
        &self.0.precision
    }

    /// The f32 masters of 16-bit values, flat: what optimisers update. They are the state `master` too. A value that is
    /// written otherwise than by [`Param::set`] is overwritten from its master by the next step.
    pub fn master(&self) -> Result<Option<Tensor>> {
        Ok(self.sealed()?.master.clone())
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

    /// All gradients as one flat tensor of type [`Precision::grads`], allocated (as zeros) on first use.
    pub fn grads(&self) -> Result<Tensor> {
        let sealed = self.sealed()?;
        if let Some(grads) = sealed.grads.get() {
            return Ok(grads.clone());
        }
        let meta = self.flat_meta(sealed.values.numel(), self.0.precision.grads);
        let size = meta.dtype.size();
        let cuts = sealed.specs.iter().skip(1).map(|s| s.offset * size).collect();
        let block = Block::zeroed(meta.bytes())?;
        let storage = Arc::new(Storage::placed(block, cuts, self.0.device, "arena gradients")?);
        let grads = Tensor::from_parts(storage, Layout::contiguous(meta.shape), meta, Edge::None);
        Ok(sealed.grads.get_or_init(|| grads).clone())
    }

    /// A flat tensor beside the values, such as an optimiser's moments: made as zeros on first use, found by name later.
    pub fn state(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.state_of(name, dtype, 1)
    }

    /// As [`Arena::state`], with one element for each block of [`ALIGN`] values.
    pub fn block_state(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.state_of(name, dtype, ALIGN)
    }

    fn state_of(&self, name: &str, dtype: DType, each: usize) -> Result<Tensor> {
        let sealed = self.sealed()?;
        let numel = sealed.values.numel() / each;
        let mut states = sealed.states.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(state) = states.get(name) {
            if state.dtype() != dtype || state.numel() != numel {
                let (found, found_dtype) = (state.numel(), state.dtype());
                let message =
                    format!("arena state {name:?} is {found} {found_dtype}, asked for as {numel} {dtype}");
                return Err(Error::dtype("state", message));
            }
            return Ok(state.clone());
        }
        let state = Tensor::zeros(numel, dtype, self.0.device)?;
        states.insert(name.to_owned(), state.clone());
        Ok(state)
    }

    /// All flat state by parameter, as `STATE.PARAMETER`: views of the parameter's shape, or 1-d for a state with an element
    /// for each block. What a checkpoint has to save besides values, buffers and the step block.
    pub fn named_states(&self) -> Result<Vec<(String, Tensor)>> {
        let sealed = self.sealed()?;
        let mut named = Vec::new();
        for (state, flat) in self.states()? {
            for spec in &sealed.specs {
                let n = spec.shape.numel();
                let slice = match flat.numel() == sealed.values.numel() {
                    true => flat.narrow(0, spec.offset, n)?.reshape(spec.shape)?,
                    false => flat.narrow(0, spec.offset / ALIGN, n.div_ceil(ALIGN))?,
                };
                named.push((format!("{state}.{}", spec.name), slice));
            }
        }
        Ok(named)
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
    pub(super) fn layout(&self) -> Layout {
        Layout { offset: self.offset, ..Layout::contiguous(self.shape) }
    }
}
