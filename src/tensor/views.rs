//! Views: other layouts over the same memory, recorded so that gradients find their way back. Names follow PyTorch.

#![forbid(unsafe_code)]

use super::node::{Function, Saves, record};
use super::{Tensor, ViewKind};
use crate::shape::{IntoShape, Layout};
use crate::{Error, Result, Shape};

impl Tensor {
    #[track_caller]
    fn view(&self, name: &'static str, layout: Layout, kind: ViewKind) -> Tensor {
        let out = self.with_layout(layout);
        if !self.requires_grad() {
            return out;
        }
        let mut outs = record(name, &[self], vec![out], &|_| Saves::NONE, &|| Function::View(kind.clone()));
        outs.remove(0)
    }

    /// Dimensions reordered: dimension `i` of the result is dimension `dims[i]` of `self`. Shares memory.
    #[track_caller]
    pub fn permute(&self, dims: &[usize]) -> Result<Tensor> {
        let layout = self.layout().permute(dims)?;
        Ok(self.view("permute", layout, ViewKind::Permute(dims.to_vec())))
    }

    /// Dimensions `a` and `b` swapped; negative ones count from the end. Shares memory.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Result<Tensor> {
        let (a, b) = (self.shape().dim("transpose", a)?, self.shape().dim("transpose", b)?);
        let mut dims: Vec<usize> = (0..self.rank()).collect();
        dims.swap(a, b);
        self.permute(&dims)
    }

    /// The last two dimensions swapped. An error below rank 2.
    #[track_caller]
    pub fn t(&self) -> Result<Tensor> {
        self.transpose(-2, -1)
    }

    /// Indices `start..start + length` of dimension `dim`. Shares memory.
    #[track_caller]
    pub fn narrow(&self, dim: isize, start: usize, length: usize) -> Result<Tensor> {
        let end =
            start.checked_add(length).ok_or_else(|| Error::shape("narrow", "start + length overflows"))?;
        self.slice(dim, start, end, 1)
    }

    /// Every `step`-th of the indices `start..end` of dimension `dim`, as Python's `x[start:end:step]`. Shares memory.
    #[track_caller]
    pub fn slice(&self, dim: isize, start: usize, end: usize, step: usize) -> Result<Tensor> {
        let dim = self.shape().dim("slice", dim)?;
        let layout = self.layout().slice(dim, start, end, step)?;
        Ok(self.view("slice", layout, ViewKind::Slice { dim, start, step }))
    }

    /// The slice at `index` of dimension `dim`, without that dimension. Shares memory.
    #[track_caller]
    pub fn select(&self, dim: isize, index: usize) -> Result<Tensor> {
        let at = self.shape().dim("select", dim)?;
        self.narrow(dim, index, 1)?.squeeze(at as isize)
    }

    /// Dimensions of size 1, and new leading ones, repeated to `shape`. Shares memory.
    #[track_caller]
    pub fn expand(&self, shape: impl IntoShape) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if shape == self.shape() {
            return Ok(self.clone());
        }
        let layout = self.layout().expand(&shape, "expand")?;
        Ok(self.view("expand", layout, ViewKind::Expand))
    }

    /// The same elements under another shape of as many elements, without a copy, or `None` where the layout forbids it.
    /// `Tensor::reshape` copies instead.
    #[track_caller]
    pub(crate) fn try_view(&self, shape: &Shape) -> Result<Option<Tensor>> {
        if shape.numel() != self.numel() {
            let message = format!(
                "{} ({} elements) does not fit {shape} ({})",
                self.shape(),
                self.numel(),
                shape.numel()
            );
            return Err(Error::shape("reshape", message));
        }
        Ok(self.layout().reshape(shape).map(|layout| self.view("reshape", layout, ViewKind::Reshape)))
    }

    /// A dimension of size 1 inserted before position `dim` (`dim` may equal the rank). Shares memory.
    #[track_caller]
    pub fn unsqueeze(&self, dim: isize) -> Result<Tensor> {
        let rank = self.rank() as isize;
        let at = if dim < 0 { dim + rank + 1 } else { dim };
        if at < 0 || at > rank || rank as usize == crate::shape::MAX_RANK {
            return Err(Error::shape(
                "unsqueeze",
                format!("cannot insert dimension {dim} into {}", self.shape()),
            ));
        }
        let at = at as usize;
        let layout = Layout {
            shape: self.shape().inserted(at, 1),
            strides: self.layout().strides.inserted(at, 1),
            offset: self.layout().offset,
        };
        Ok(self.view("unsqueeze", layout, ViewKind::Reshape))
    }

    /// Dimension `dim`, which must have size 1, removed. Shares memory.
    #[track_caller]
    pub fn squeeze(&self, dim: isize) -> Result<Tensor> {
        let at = self.shape().dim("squeeze", dim)?;
        if self.shape()[at] != 1 {
            return Err(Error::shape(
                "squeeze",
                format!("dimension {dim} of {} is not of size 1", self.shape()),
            ));
        }
        let layout = Layout {
            shape: self.shape().without(at),
            strides: self.layout().strides.without(at),
            offset: self.layout().offset,
        };
        Ok(self.view("squeeze", layout, ViewKind::Reshape))
    }

    /// Cuts dimension `dim` into consecutive pieces of these sizes, which must add up. Shares memory.
    #[track_caller]
    pub fn split(&self, sizes: &[usize], dim: isize) -> Result<Vec<Tensor>> {
        let at = self.shape().dim("split", dim)?;
        let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if total != Some(self.shape()[at]) {
            let message = format!("sizes {sizes:?} do not add up to dimension {dim} of {}", self.shape());
            return Err(Error::shape("split", message));
        }
        let mut start = 0;
        let mut piece = |&size: &usize| {
            start += size;
            self.narrow(dim, start - size, size)
        };
        sizes.iter().map(&mut piece).collect()
    }
}
