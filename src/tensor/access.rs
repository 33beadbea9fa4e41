//! What an op's body sees of a tensor: a borrowed [`View`] of an input, a borrowed [`Out`] to write.

#![forbid(unsafe_code)]

use super::Tensor;
use super::storage::{ReadGuard, WriteGuard};
use crate::device::launch::{Dst, Src};
use crate::device::stream::Operand;
use crate::dtype::Element;
use crate::shape::Layout;
use crate::{DType, Result, Shape};

/// A borrowed input: any layout.
#[derive(Clone, Copy)]
pub struct View<'a> {
    memory: Bytes<'a>,
    /// Relative to the memory: the offset is 0 where the tensor's first element is.
    layout: Layout,
    dtype: DType,
}

/// Memory of the host or of a device.
#[derive(Clone, Copy)]
enum Bytes<'a> {
    Host(&'a [u8]),
    Device { address: u64, bytes: usize },
}

impl<'a> View<'a> {
    /// A view of `tensor` through a guard on exactly its byte span.
    pub(crate) fn new(tensor: &Tensor, guard: &'a ReadGuard<'_>) -> View<'a> {
        let memory = match tensor.device().is_cpu() {
            true => Bytes::Host(guard.bytes()),
            false => Bytes::Device { address: guard.address(), bytes: tensor.byte_span().len() },
        };
        View { memory, layout: Layout { offset: 0, ..*tensor.layout() }, dtype: tensor.dtype() }
    }

    /// A contiguous view of values in host memory.
    pub fn of<T: Element>(data: &'a [T], shape: Shape) -> View<'a> {
        assert_eq!(data.len(), shape.numel(), "a view needs one value an element");
        View {
            memory: Bytes::Host(bytemuck::cast_slice(data)),
            layout: Layout::contiguous(shape),
            dtype: T::DTYPE,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.layout.shape
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// Where the elements lie in [`View::data`].
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All elements from the first to the last one in memory, gaps included; index it through [`View::layout`].
    /// `T` must be the view's type (an op dispatches on it).
    pub fn data<T: Element>(&self) -> &'a [T] {
        assert_eq!(T::DTYPE, self.dtype, "op body read a view as the wrong type");
        match self.memory {
            Bytes::Host(bytes) => bytemuck::cast_slice(bytes),
            Bytes::Device { .. } => panic!("a CPU body was given device memory"),
        }
    }

    /// The device memory from the first to the last element, gaps included.
    pub fn src(&self) -> Src<'a> {
        match self.memory {
            Bytes::Device { address, bytes } => {
                Src::new(address, (bytes / self.dtype.size()) as u64, self.dtype)
            }
            Bytes::Host(_) => panic!("a GPU body was given host memory"),
        }
    }

    /// The elements in row-major order, if they lie so.
    pub fn slice<T: Element>(&self) -> Option<&'a [T]> {
        self.layout.is_contiguous().then(|| &self.data::<T>()[..self.numel()])
    }

    /// The same elements seen under another layout, which must stay within the view's memory.
    pub fn with_layout(self, layout: Layout) -> View<'a> {
        View { layout, ..self }
    }

    /// Dimensions of size 1 and new leading ones repeated to `shape`, without copying.
    pub fn expand(self, shape: &Shape) -> Result<View<'a>> {
        Ok(View { layout: self.layout.expand(shape, "expand")?, ..self })
    }
}

impl<'a> Operand<'a> for View<'a> {
    fn src(&self) -> Src<'a> {
        View::src(self)
    }

    fn layout(&self) -> &Layout {
        View::layout(self)
    }
}

/// What to do with an output's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Overwrite every element; the old content is arbitrary.
    Write,
    /// Add to every element.
    Accumulate,
    /// Read and change in place (optimisers).
    Update,
    /// Nobody wants this output: the memory is empty, compute nothing.
    Skip,
}

/// A borrowed output: contiguous, row-major.
pub struct Out<'a> {
    memory: BytesMut<'a>,
    shape: Shape,
    dtype: DType,
    mode: Mode,
}

enum BytesMut<'a> {
    Host(&'a mut [u8]),
    Device(u64),
}

impl<'a> Out<'a> {
    pub(crate) fn new(bytes: &'a mut [u8], shape: Shape, dtype: DType, mode: Mode) -> Out<'a> {
        Out { memory: BytesMut::Host(bytes), shape, dtype, mode }
    }

    /// An output in device memory, which the caller holds exclusively for as long as the output lives.
    pub(crate) fn on_device(address: u64, shape: Shape, dtype: DType, mode: Mode) -> Out<'a> {
        Out { memory: BytesMut::Device(address), shape, dtype, mode }
    }

    /// An output over a guard on exactly the byte span of the contiguous `tensor`.
    pub(crate) fn of(tensor: &Tensor, guard: &'a mut WriteGuard<'_>, mode: Mode) -> Out<'a> {
        match tensor.device().is_cpu() {
            true => Out::new(guard.bytes(), tensor.shape(), tensor.dtype(), mode),
            false => Out::on_device(guard.address(), tensor.shape(), tensor.dtype(), mode),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What to do with the memory.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether anybody wants this output.
    pub fn wanted(&self) -> bool {
        self.mode != Mode::Skip
    }

    /// The elements in row-major order; empty under [`Mode::Skip`]. `T` must be the output's type.
    pub fn slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "op body wrote an output as the wrong type");
        match &mut self.memory {
            // Nothing need not be aligned.
            BytesMut::Host([]) => &mut [],
            BytesMut::Host(bytes) => bytemuck::cast_slice_mut(bytes),
            BytesMut::Device(_) => panic!("a CPU body was given device memory"),
        }
    }

    /// The device memory of the elements, in row-major order; empty under [`Mode::Skip`].
    pub fn dst(&mut self) -> Dst<'_> {
        let len = if self.wanted() { self.shape.numel() as u64 } else { 0 };
        match self.memory {
            BytesMut::Device(address) => Dst::new(address, len, self.dtype),
            BytesMut::Host(_) => panic!("a GPU body was given host memory"),
        }
    }

    /// As [`Out::dst`]; `None` where nobody wants the output.
    pub fn dst_if_wanted(&mut self) -> Option<Dst<'_>> {
        self.wanted().then(|| self.dst())
    }
}
