//! Shapes, strides and layouts: pure integer algebra, no memory.
//!
//! A [`Shape`] holds at most [`MAX_RANK`] dimensions inline, so shapes are `Copy` and cost no allocation. A [`Layout`]
//! adds strides and an offset, counted in elements; every view of a tensor is a function from layout to layout here.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::{Deref, Range};

use crate::{Error, Result};

/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;

/// Up to [`MAX_RANK`] sizes: the dimensions of a tensor, outermost first. `[]` is a 0-d tensor with one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// The shape with these dimensions. Errors if there are more than [`MAX_RANK`] or their product overflows.
    pub fn new(dims: &[usize]) -> Result<Shape> {
        if dims.len() > MAX_RANK {
            return Err(Error::shape(
                "shape",
                format!("rank {} exceeds the limit of {MAX_RANK}", dims.len()),
            ));
        }
        // Without zeros, so that [usize::MAX, 2, 0] is an error too: its strides would overflow.
        dims.iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
            // Of eight bytes each, so that no size in bytes overflows either.
            .filter(|&n| n <= isize::MAX as usize / 8)
            .ok_or_else(|| Error::shape("shape", format!("{dims:?} has too many elements")))?;
        Ok(Shape::from_dims(dims))
    }

    /// For slices known to be within [`MAX_RANK`].
    pub(crate) fn from_dims(dims: &[usize]) -> Shape {
        let mut inline = [0; MAX_RANK];
        inline[..dims.len()].copy_from_slice(dims);
        Shape { rank: dims.len() as u8, dims: inline }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The dimensions as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    fn dims_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank as usize]
    }

    /// The number of elements: the product of the dimensions, 1 for a 0-d shape.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// This shape with dimension `dim` set to `size`.
    pub fn with(&self, dim: usize, size: usize) -> Shape {
        let mut out = *self;
        out.dims_mut()[dim] = size;
        out
    }

    /// This shape with a dimension of `size` put before position `dim`. The caller keeps within [`MAX_RANK`].
    pub(crate) fn inserted(&self, dim: usize, size: usize) -> Shape {
        let mut dims = self.dims().to_vec();
        dims.insert(dim, size);
        Shape::from_dims(&dims)
    }

    /// This shape without dimension `dim`.
    pub fn without(&self, dim: usize) -> Shape {
        let mut dims = self.dims().to_vec();
        dims.remove(dim);
        Shape::from_dims(&dims)
    }

    /// Row-major strides, in elements.
    pub fn strides(&self) -> Shape {
        let mut strides = *self;
        let mut step = 1;
        for i in (0..self.rank()).rev() {
            strides.dims[i] = step;
            step *= self.dims[i].max(1);
        }
        strides
    }

    /// A dimension index that may be negative, counted from the end, as a position. `op` is named in the error.
    pub fn dim(&self, op: &'static str, dim: isize) -> Result<usize> {
        let rank = self.rank() as isize;
        let at = if dim < 0 { dim + rank } else { dim };
        if at < 0 || at >= rank {
            return Err(Error::shape(op, format!("dimension {dim} is out of range for shape {self}")));
        }
        Ok(at as usize)
    }

    /// The common shape of two operands under NumPy's broadcasting rule. `op` is named in the error.
    pub fn broadcast(&self, other: &Shape, op: &'static str) -> Result<Shape> {
        let rank = self.rank().max(other.rank());
        let mut out = Shape::from_dims(&vec![1; rank]);
        for i in 0..rank {
            let of = |s: &Shape| (i + s.rank()).checked_sub(rank).map_or(1, |k| s.dims[k]);
            out.dims[i] = match (of(self), of(other)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return Err(Error::shape(op, format!("cannot broadcast {self} with {other}"))),
            };
        }
        Shape::new(&out).map_err(|e| e.with_op(op))
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        self.dims()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// What may stand where a shape is expected: an array, a slice, a `Vec`, a [`Shape`].
pub trait IntoShape {
    /// Converts, with the checks of [`Shape::new`].
    fn into_shape(self) -> Result<Shape>;
}

impl IntoShape for Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(self)
    }
}
impl IntoShape for &Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(*self)
    }
}
impl IntoShape for usize {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&[self])
    }
}
impl IntoShape for () {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&[])
    }
}
impl<const N: usize> IntoShape for [usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}
impl IntoShape for &[usize] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}
impl IntoShape for &Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}
impl IntoShape for Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}

/// Where the elements of a tensor lie in its storage: element `i` is at `offset + Σ i[d] · strides[d]`.
///
/// Strides are never negative; a stride of 0 repeats one element (an expanded dimension).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sizes.
    pub shape: Shape,
    /// Distance between neighbours along each dimension, in elements.
    pub strides: Shape,
    /// Position of the first element, in elements.
    pub offset: usize,
}

impl Layout {
    /// The row-major layout of `shape`, from offset 0.
    pub fn contiguous(shape: Shape) -> Layout {
        Layout { shape, strides: shape.strides(), offset: 0 }
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Whether the elements lie in row-major order without gaps. Strides of dimensions of size 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for i in (0..self.shape.rank()).rev() {
            if self.shape[i] != 1 && self.strides[i] != step {
                return self.numel() == 0;
            }
            step *= self.shape[i];
        }
        true
    }

    /// The storage range that the elements lie in, in elements; empty for a tensor without elements.
    pub fn span(&self) -> Range<usize> {
        if self.numel() == 0 {
            return self.offset..self.offset;
        }
        let last: usize = self.shape.iter().zip(self.strides.iter()).map(|(&n, &s)| (n - 1) * s).sum();
        self.offset..self.offset + last + 1
    }

    /// Dimensions reordered: dimension `i` of the result is dimension `perm[i]` of `self`.
    pub fn permute(&self, perm: &[usize]) -> Result<Layout> {
        let rank = self.shape.rank();
        let mut seen = [false; MAX_RANK];
        let valid =
            perm.len() == rank && perm.iter().all(|&p| p < rank && !std::mem::replace(&mut seen[p], true));
        if !valid {
            return Err(Error::shape(
                "permute",
                format!("{perm:?} is no permutation of the dimensions of {}", self.shape),
            ));
        }
        let mut out = *self;
        for (i, &p) in perm.iter().enumerate() {
            out.shape.dims[i] = self.shape[p];
            out.strides.dims[i] = self.strides[p];
        }
        Ok(out)
    }

    /// Every `step`-th of the indices `start..end` of dimension `dim`.
    pub fn slice(&self, dim: usize, start: usize, end: usize, step: usize) -> Result<Layout> {
        let size = self.shape[dim];
        if start > end || end > size || step == 0 {
            let what =
                format!("{start}..{end} step {step} does not lie in dimension {dim} of {}", self.shape);
            return Err(Error::shape("slice", what));
        }
        let mut out = *self;
        out.shape.dims[dim] = (end - start).div_ceil(step);
        // A step beyond the dimension is never taken.
        out.strides.dims[dim] = self.strides[dim] * step.min(size.max(1));
        if out.numel() > 0 {
            out.offset += start * self.strides[dim];
        }
        Ok(out)
    }

    /// Repeats dimensions of size 1 (and new leading ones) to `shape`, without copying.
    pub fn expand(&self, shape: &Shape, op: &'static str) -> Result<Layout> {
        let lead = shape.rank().checked_sub(self.shape.rank());
        let fits = lead.is_some_and(|lead| {
            self.shape.iter().zip(&shape[lead..]).all(|(&have, &want)| have == want || have == 1)
        });
        let Some(lead) = lead.filter(|_| fits) else {
            return Err(Error::shape(op, format!("cannot expand {} to {shape}", self.shape)));
        };
        let mut strides = Shape::from_dims(&vec![0; shape.rank()]);
        for i in 0..self.shape.rank() {
            if self.shape[i] == shape[lead + i] {
                strides.dims[lead + i] = self.strides[i];
            }
        }
        Ok(Layout { shape: *shape, strides, offset: self.offset })
    }

    /// The same elements in row-major order under another shape, or `None` if that needs a copy.
    pub fn reshape(&self, shape: &Shape) -> Option<Layout> {
        if self.numel() != shape.numel() {
            return None;
        }
        if self.is_contiguous() {
            return Some(Layout { shape: *shape, strides: shape.strides(), offset: self.offset });
        }
        // Walk both shapes from the left; a group of old dimensions can become a group of new ones of the same product
        // if the old ones follow each other without gaps.
        let old: Vec<(usize, usize)> = self
            .shape
            .iter()
            .zip(self.strides.iter())
            .filter(|(n, _)| **n != 1)
            .map(|(&n, &s)| (n, s))
            .collect();
        let mut strides = Shape::from_dims(&vec![1; shape.rank()]);
        let (mut i, mut j) = (0, 0);
        while i < old.len() && j < shape.rank() {
            let (mut i_end, mut j_end) = (i + 1, j + 1);
            let (mut have, mut want) = (old[i].0, shape[j]);
            while have != want {
                if have < want {
                    have *= old[i_end].0;
                    i_end += 1;
                } else {
                    want *= shape[j_end];
                    j_end += 1;
                }
            }
            if (i..i_end - 1).any(|k| old[k].1 != old[k + 1].0 * old[k + 1].1) {
                return None;
            }
            let mut step = old[i_end - 1].1;
            for k in (j..j_end).rev() {
                strides.dims[k] = step;
                step *= shape[k];
            }
            (i, j) = (i_end, j_end);
        }
        Some(Layout { shape: *shape, strides, offset: self.offset })
    }

    /// The storage position of every element, in row-major order. For tests and rare paths: one division-free step each.
    pub(crate) fn positions(&self) -> Positions {
        Positions { layout: *self, index: [0; MAX_RANK], at: self.offset, left: self.numel() }
    }
}

/// Iterator of [`Layout::positions`].
pub(crate) struct Positions {
    layout: Layout,
    index: [usize; MAX_RANK],
    at: usize,
    left: usize,
}

impl Iterator for Positions {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let here = self.at;
        for d in (0..self.layout.shape.rank()).rev() {
            self.index[d] += 1;
            self.at += self.layout.strides[d];
            if self.index[d] < self.layout.shape[d] {
                break;
            }
            self.at -= self.layout.strides[d] * self.index[d];
            self.index[d] = 0;
        }
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
