//! Tensors: a layout over shared memory, and the edge of the graph that its gradient goes to.
//!
//! A [`Tensor`] is cheap to clone and its values do not change, except through the parameter arena and the `*_into` calls.
//! Views share memory and are recorded as their own kind of node; everything that computes lives in `ops`.

mod access;
pub(crate) mod node;
// Hands out slices of shared memory under run-time borrows: see the file's header.
pub(crate) mod storage;
mod transfer;
mod views;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::cpu::pool::Block;
use crate::device::stream::Memory;
use crate::dtype::Element;
use crate::shape::{IntoShape, Layout};
use crate::{DType, Device, Error, Result, Shape};

pub use access::{Mode, Out, View};
pub use node::{BackwardCx, Edge, Leaf, Saves, ViewKind, check_numerics, grad_enabled, no_grad};
pub use storage::{Site, Storage};
pub(crate) use transfer::{accumulate, copy_into, fill_zero, overwrite, overwrite_bytes};

/// Shape, dtype and device of a tensor: all that `Op::infer` sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The shape.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
    /// Where it lives.
    pub device: Device,
}

impl Meta {
    /// The same with another shape.
    pub fn with_shape(self, shape: Shape) -> Meta {
        Meta { shape, ..self }
    }

    /// The same with another element type.
    pub fn with_dtype(self, dtype: DType) -> Meta {
        Meta { dtype, ..self }
    }

    /// Bytes of a contiguous tensor of this kind.
    pub fn bytes(&self) -> usize {
        self.shape.numel() * self.dtype.size()
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} on {}", self.dtype, self.shape, self.device)
    }
}

/// An n-dimensional array of one element type on one device.
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    storage: Arc<Storage>,
    layout: Layout,
    dtype: DType,
    device: Device,
    edge: Edge,
}

impl Tensor {
    pub(crate) fn from_parts(storage: Arc<Storage>, layout: Layout, meta: Meta, edge: Edge) -> Tensor {
        Tensor(Arc::new(Inner { storage, layout, dtype: meta.dtype, device: meta.device, edge }))
    }

    /// A tensor of the elements of `meta` in row-major order, which `block` holds: taken over, or copied to a device.
    #[track_caller]
    pub(crate) fn from_block(block: Block, meta: Meta) -> Result<Tensor> {
        let storage = Arc::new(Storage::placed(block, Vec::new(), meta.device, "tensor")?);
        Ok(Tensor::from_parts(storage, Layout::contiguous(meta.shape), meta, Edge::None))
    }

    /// Takes over device memory that holds the elements of `meta` in row-major order.
    pub(crate) fn from_memory(memory: Memory<'static>, meta: Meta) -> Tensor {
        let storage = Arc::new(Storage::on_device(memory, Vec::new()));
        Tensor::from_parts(storage, Layout::contiguous(meta.shape), meta, Edge::None)
    }

    /// A contiguous tensor with arbitrary content for `what` (the name of an op), to be written through `ops::run_into`.
    pub(crate) fn empty(meta: Meta, what: &'static str) -> Result<Tensor> {
        let storage = match meta.device {
            Device::Cpu => Storage::new(Block::new(meta.bytes())?),
            device => {
                let memory = device.gpu()?.take(meta.bytes(), what)?;
                return Ok(Tensor::from_memory(memory, meta));
            }
        };
        Ok(Tensor::from_parts(Arc::new(storage), Layout::contiguous(meta.shape), meta, Edge::None))
    }

    /// A tensor of `data` in row-major order. Errors if the lengths differ.
    #[track_caller]
    pub fn from_slice<T: Element>(data: &[T], shape: impl IntoShape, device: Device) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if data.len() != shape.numel() {
            let message = format!("{} values for shape {shape} of {} elements", data.len(), shape.numel());
            return Err(Error::shape("from_slice", message));
        }
        let meta = Meta { shape, dtype: T::DTYPE, device };
        let mut block = Block::new(meta.bytes())?;
        block.typed_mut::<T>().copy_from_slice(data);
        Tensor::from_block(block, meta)
    }

    /// A 0-d tensor.
    #[track_caller]
    pub fn scalar<T: Element>(value: T, device: Device) -> Result<Tensor> {
        Tensor::from_slice(&[value], (), device)
    }

    /// A tensor whose elements all are `value`, converted to `dtype` as [`Element::from_f64`] does.
    pub fn full(shape: impl IntoShape, value: f64, dtype: DType, device: Device) -> Result<Tensor> {
        let meta = Meta { shape: shape.into_shape()?, dtype, device };
        if device.is_cpu() {
            let mut block = Block::new(meta.bytes())?;
            crate::dispatch!(dtype, T => block.typed_mut::<T>().fill(T::from_f64(value)));
            return Tensor::from_block(block, meta);
        }
        let full = Tensor::empty(meta, "tensor")?;
        transfer::fill(&full, value)?;
        Ok(full)
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl IntoShape, dtype: DType, device: Device) -> Result<Tensor> {
        let meta = Meta { shape: shape.into_shape()?, dtype, device };
        if device.is_cpu() {
            return Tensor::from_block(Block::zeroed(meta.bytes())?, meta);
        }
        let zeros = Tensor::empty(meta, "tensor")?;
        fill_zero(&zeros)?;
        Ok(zeros)
    }

    /// A tensor of ones.
    pub fn ones(shape: impl IntoShape, dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::full(shape, 1.0, dtype, device)
    }

    /// The integers `0..n` as a 1-d tensor of `dtype`.
    #[track_caller]
    pub fn arange(n: usize, dtype: DType, device: Device) -> Result<Tensor> {
        let meta = Meta { shape: Shape::new(&[n])?, dtype, device };
        let mut block = Block::new(meta.bytes())?;
        crate::dispatch!(dtype, T => {
            block.typed_mut::<T>().iter_mut().enumerate().for_each(|(i, x)| *x = T::from_f64(i as f64));
        });
        Tensor::from_block(block, meta)
    }

    /// The elements in row-major order. Errors if `T` is not the tensor's type. On a GPU this waits for the work queued so
    /// far, and raises what its kernels found wrong.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype() != T::DTYPE {
            let message = format!("a tensor of {} read as {}", self.dtype(), T::DTYPE);
            return Err(Error::dtype("to_vec", message).with_help("cast it first with to_dtype"));
        }
        let guard = self.read()?;
        let view = View::new(self, &guard);
        if let Some(stream) = self.device().stream() {
            stream.enter("to_vec", [self.shape()].into_iter(), std::panic::Location::caller());
            let packed = stream.contiguous(&view)?;
            let mut host = vec![T::from_f64(0.0); self.numel()];
            stream.download(bytemuck::cast_slice_mut(&mut host), packed.src().address())?;
            return Ok(host);
        }
        Ok(match view.slice::<T>() {
            Some(slice) => slice.to_vec(),
            None => view.layout().positions().map(|i| view.data::<T>()[i]).collect(),
        })
    }

    /// The elements in row-major order as f64, whatever the type (see [`Element::to_f64`]).
    #[track_caller]
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        crate::dispatch!(self.dtype(), T => Ok(self.to_vec::<T>()?.into_iter().map(T::to_f64).collect()))
    }

    /// The one element of a tensor of one element, as f64.
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        if self.numel() != 1 {
            return Err(Error::shape(
                "item",
                format!("{} has {} elements, not one", self.shape(), self.numel()),
            ));
        }
        Ok(self.to_f64_vec()?[0])
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.0.layout.shape
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.0.layout.shape.dims()
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.layout.shape.rank()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.0.layout.numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where the tensor lives.
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// Shape, dtype and device.
    pub fn meta(&self) -> Meta {
        Meta { shape: self.shape(), dtype: self.dtype(), device: self.device() }
    }

    /// Where the elements lie in the storage.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The memory, shared with every view of it.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.0.storage
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    /// Where this tensor's gradient goes.
    pub fn edge(&self) -> &Edge {
        &self.0.edge
    }

    /// Whether this is the other tensor, or a clone of it.
    pub(crate) fn is_same(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether a gradient flows to this tensor.
    pub fn requires_grad(&self) -> bool {
        self.0.edge.is_some()
    }

    /// The same values as a new leaf of the graph: `backward` reports its gradient. An error for integers.
    pub fn as_leaf(&self) -> Result<Tensor> {
        if !self.dtype().is_float() {
            return Err(Error::dtype(
                "as_leaf",
                format!("only floating-point tensors have gradients, not {}", self.dtype()),
            ));
        }
        Ok(self.with_edge(Edge::Leaf(Leaf::new(None))))
    }

    /// The same values as a constant: no gradient flows through it.
    pub fn detach(&self) -> Tensor {
        if self.requires_grad() { self.with_edge(Edge::None) } else { self.clone() }
    }

    pub(crate) fn with_edge(&self, edge: Edge) -> Tensor {
        Tensor::from_parts(self.0.storage.clone(), self.0.layout, self.meta(), edge)
    }

    /// Another layout over the same memory, without an edge.
    pub(crate) fn with_layout(&self, layout: Layout) -> Tensor {
        Tensor::from_parts(self.0.storage.clone(), layout, self.meta(), Edge::None)
    }

    /// The byte range of the storage that the elements lie in.
    pub(crate) fn byte_span(&self) -> Range<usize> {
        let span = self.0.layout.span();
        span.start * self.dtype().size()..span.end * self.dtype().size()
    }

    pub(crate) fn read(&self) -> Result<storage::ReadGuard<'_>> {
        Storage::keep(&self.0.storage);
        self.0.storage.read(self.byte_span())
    }

    #[track_caller]
    pub(crate) fn write(&self, op: &'static str) -> Result<storage::WriteGuard<'_>> {
        Storage::keep(&self.0.storage);
        self.0.storage.write(self.byte_span(), op)
    }

    pub(crate) fn version(&self) -> u64 {
        self.0.storage.version(&self.byte_span())
    }

    pub(crate) fn last_write(&self) -> Option<(&'static str, Site)> {
        self.0.storage.last_write(&self.byte_span())
    }
}

impl fmt::Debug for Tensor {
    /// Kind and the first few values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({}", self.meta())?;
        // Values on a GPU are not waited for.
        if self.device().is_cpu()
            && let Ok(guard) = self.read()
        {
            let view = View::new(self, &guard);
            f.write_str(", [")?;
            for (k, i) in view.layout().positions().take(6).enumerate() {
                let comma = if k > 0 { ", " } else { "" };
                crate::dispatch!(self.dtype(), T => write!(f, "{comma}{}", view.data::<T>()[i]))?;
            }
            f.write_str(if self.numel() > 6 { ", ...]" } else { "]" })?;
        }
        f.write_str(")")
    }
}
