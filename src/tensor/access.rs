//! What an op's body sees of a tensor: a borrowed [`View`] of an input, a borrowed [`Out`] to write.

#![forbid(unsafe_code)]

use super::Tensor;
use super::storage::{ReadGuard, WriteGuard};
use crate::dtype::Element;
use crate::shape::Layout;
use crate::{DType, Result, Shape};

/// A borrowed input: any layout.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
    /// Relative to `bytes`: the offset is 0 where the tensor's first element is.
    layout: Layout,
    dtype: DType,
}

impl<'a> View<'a> {
    /// A view of `tensor` through a guard on exactly its byte span.
    pub(crate) fn new(tensor: &Tensor, guard: &'a ReadGuard<'_>) -> View<'a> {
        View { bytes: guard.bytes(), layout: Layout { offset: 0, ..*tensor.layout() }, dtype: tensor.dtype() }
    }

    /// A contiguous view of values in host memory.
    pub fn of<T: Element>(data: &'a [T], shape: Shape) -> View<'a> {
        assert_eq!(data.len(), shape.numel(), "a view needs one value an element");
        View { bytes: bytemuck::cast_slice(data), layout: Layout::contiguous(shape), dtype: T::DTYPE }
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
        bytemuck::cast_slice(self.bytes)
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
    bytes: &'a mut [u8],
    shape: Shape,
    dtype: DType,
    mode: Mode,
}

impl<'a> Out<'a> {
    pub(crate) fn new(bytes: &'a mut [u8], shape: Shape, dtype: DType, mode: Mode) -> Out<'a> {
        Out { bytes, shape, dtype, mode }
    }

    /// An output over a guard on exactly the byte span of the contiguous `tensor`.
    pub(crate) fn of(tensor: &Tensor, guard: &'a mut WriteGuard<'_>, mode: Mode) -> Out<'a> {
        Out { bytes: guard.bytes(), shape: tensor.shape(), dtype: tensor.dtype(), mode }
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
        // Nothing need not be aligned.
        if self.bytes.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(self.bytes) }
    }
}
