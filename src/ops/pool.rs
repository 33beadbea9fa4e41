//! Pooling of images: the maximum, the average, and the average to a given size.
//!
//! Inputs are `[C, H, W]` or `[N, C, H, W]`; every other dimension than the last two is a plane of its own. Pooling along
//! one dimension is pooling of images of height 1, seen through views. Shapes are PyTorch's rule, `ceil_mode` included; a
//! window that lies beyond the image altogether is an error here.

#![forbid(unsafe_code)]

mod average;
mod gpu;
mod max;

use crate::tensor::Meta;
use crate::{Error, Result, Shape, Tensor};

pub use average::{AdaptiveAvgPool2d, AdaptiveAvgPool2dBackward, AvgPool2d, AvgPool2dBackward};
pub use max::{MaxPool2d, MaxPool2dBackward};

super::family!(
    MaxPool2d,
    MaxPool2dBackward,
    AvgPool2d,
    AvgPool2dBackward,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool2dBackward,
);

/// Windows that slide over the last `N` dimensions of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<const N: usize> {
    /// The elements of a window along each dimension.
    pub kernel: [usize; N],
    /// The distance between windows.
    pub stride: [usize; N],
    /// How far the windows reach beyond the image on either side; at most half of `kernel`.
    pub padding: [usize; N],
    /// The distance between the elements of a window.
    pub dilation: [usize; N],
    /// Whether a last window that reaches beyond the padded image counts, if it starts within the image or the padding before it.
    pub ceil_mode: bool,
}

impl<const N: usize> Window<N> {
    /// Windows side by side: a stride of `kernel`, no padding, no dilation, no window that reaches beyond.
    pub fn new(kernel: [usize; N]) -> Window<N> {
        Window { kernel, stride: kernel, padding: [0; N], dilation: [1; N], ceil_mode: false }
    }

    /// With this distance between windows.
    pub fn with_stride(self, stride: [usize; N]) -> Window<N> {
        Window { stride, ..self }
    }

    /// Reaching beyond the image by so much.
    pub fn with_padding(self, padding: [usize; N]) -> Window<N> {
        Window { padding, ..self }
    }

    /// With this distance between the elements of a window.
    pub fn with_dilation(self, dilation: [usize; N]) -> Window<N> {
        Window { dilation, ..self }
    }

    /// With or without the last window that reaches beyond the padded image.
    pub fn with_ceil_mode(self, ceil_mode: bool) -> Window<N> {
        Window { ceil_mode, ..self }
    }

    /// The number of windows along dimension `d` of `size` elements.
    pub(crate) fn count(&self, op: &'static str, d: usize, size: usize) -> Result<usize> {
        let (kernel, stride, padding) = (self.kernel[d], self.stride[d], self.padding[d]);
        let dilation = self.dilation[d];
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err(Error::argument(format!(
                "kernel, stride and dilation of {self:?} must be at least 1"
            ))
            .with_op(op));
        }
        // So that no product below overflows.
        if [kernel, stride, padding, dilation, size].iter().any(|&v| v > i32::MAX as usize) {
            return Err(Error::argument(format!("{self:?} over {size} elements is too large")).with_op(op));
        }
        if 2 * padding > kernel {
            let message = format!("a padding of {padding} is more than half of the kernel of {kernel}");
            return Err(Error::argument(message).with_op(op));
        }
        if size == 0 {
            return Err(Error::shape(op, "an image without elements has no windows"));
        }
        let (span, padded) = ((kernel - 1) * dilation + 1, size + 2 * padding);
        // Kernels count places in 32 bits.
        if padded + span + stride > i32::MAX as usize {
            return Err(Error::argument(format!("{self:?} over {size} elements is too large")).with_op(op));
        }
        let beyond = if self.ceil_mode { stride - 1 } else { 0 };
        let Some(room) = (padded + beyond).checked_sub(span) else {
            let message = format!("a window of {span} elements is larger than the padded image of {padded}");
            return Err(Error::shape(op, message));
        };
        let count = room / stride + 1;
        Ok(if self.ceil_mode && (count - 1) * stride >= size + padding { count - 1 } else { count })
    }

    /// The number of windows, each of which must have an element of the image: a maximum over nothing is none.
    pub(crate) fn count_of_some(&self, op: &'static str, d: usize, size: usize) -> Result<usize> {
        let count = self.count(op, d, size)?;
        // Elements closer to each other than the image is long cannot miss it; of others few windows fit.
        let mut suspects = if self.dilation[d] > size { 0..count } else { 0..0 };
        match suspects.find(|&o| self.taps(d, size, o).1 == 0) {
            None => Ok(count),
            Some(o) => {
                let message = format!("window {o} of {self:?} has no element of an image of {size}");
                Err(Error::shape(op, message))
            }
        }
    }

    /// The elements of window `o` along dimension `d` of `size` elements that lie within: the first, and how many.
    fn taps(&self, d: usize, size: usize, o: usize) -> (usize, usize) {
        let (kernel, dilation, padding) = (self.kernel[d], self.dilation[d], self.padding[d]);
        let start = o * self.stride[d];
        let skipped = padding.saturating_sub(start).div_ceil(dilation);
        let first = start + skipped * dilation - padding;
        let left = (kernel.saturating_sub(skipped)).min(size.saturating_sub(first).div_ceil(dilation));
        (first, left)
    }
}

impl Window<1> {
    /// The same over images of height 1.
    fn flat(self) -> Window<2> {
        let Window {
            kernel: [kernel],
            stride: [stride],
            padding: [padding],
            dilation: [dilation],
            ceil_mode,
        } = self;
        Window {
            kernel: [1, kernel],
            stride: [1, stride],
            padding: [0, padding],
            dilation: [1, dilation],
            ceil_mode,
        }
    }
}

/// The last two dimensions.
pub(super) fn image(shape: &Shape) -> [usize; 2] {
    [shape[shape.rank() - 2], shape[shape.rank() - 1]]
}

/// `shape` with an image of another size.
pub(super) fn with_image(shape: &Shape, size: [usize; 2]) -> Shape {
    let rank = shape.rank();
    shape.with(rank - 2, size[0]).with(rank - 1, size[1])
}

/// Checks that `x` is of floats and holds images.
pub(super) fn images(op: &'static str, x: &Meta) -> Result<[usize; 2]> {
    super::reduce::float_only(op, x.dtype)?;
    if !(3..=4).contains(&x.shape.rank()) {
        return Err(Error::shape(op, format!("needs [C, H, W] or [N, C, H, W], not {}", x.shape)));
    }
    let size = image(&x.shape);
    if size.iter().any(|&n| n > i32::MAX as usize) || size[0] * size[1] > i32::MAX as usize {
        return Err(Error::unsupported(op, format!("an image of {size:?} has more than 2³¹ elements")));
    }
    Ok(size)
}

/// Runs `f` on `x` `[.., L]` as images `[.., 1, L]`.
pub(super) fn over_rows(
    op: &'static str,
    x: &Tensor,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if !(2..=3).contains(&x.rank()) {
        return Err(Error::shape(op, format!("needs [C, L] or [N, C, L], not {}", x.shape())));
    }
    f(&x.unsqueeze(-2)?).map_err(|e| e.with_op(op))?.squeeze(-2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, ErrorKind};

    #[test]
    fn windows_are_counted_as_by_pytorch() {
        let counts = |w: Window<1>| [1usize, 2, 5, 6, 7].map(|n| w.count("pool", 0, n).ok());
        let two = Window::new([2]);
        assert_eq!(counts(two), [None, Some(1), Some(2), Some(3), Some(3)]);
        assert_eq!(counts(two.with_ceil_mode(true)), [Some(1), Some(1), Some(3), Some(3), Some(4)]);
        let three = Window::new([3]).with_stride([2]).with_padding([1]);
        assert_eq!(counts(three), [Some(1), Some(1), Some(3), Some(3), Some(4)]);
        // The last window would start in the padding behind: it does not count.
        assert_eq!(counts(three.with_ceil_mode(true)), [Some(1), Some(2), Some(3), Some(4), Some(4)]);
        let wide = Window::new([2]).with_stride([1]).with_dilation([3]);
        assert_eq!(counts(wide), [None, None, Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn what_cannot_be_pooled_is_a_typed_error() {
        let x = Tensor::zeros([1, 1, 3, 3], DType::F32, Device::Cpu).unwrap();
        let kind = |w: Window<2>| x.max_pool2d(w).unwrap_err().kind();
        assert_eq!(kind(Window::new([4, 4])), ErrorKind::Shape);
        assert_eq!(kind(Window::new([2, 2]).with_padding([2, 2])), ErrorKind::Argument);
        assert_eq!(kind(Window::new([0, 2])), ErrorKind::Argument);
        assert_eq!(kind(Window::new([2, 2]).with_stride([0, 1])), ErrorKind::Argument);
        assert_eq!(kind(Window::new([usize::MAX, 2])), ErrorKind::Argument);
        assert_eq!(x.avg_pool2d(Window::new([4, 4]), true).unwrap_err().kind(), ErrorKind::Shape);
        assert_eq!(x.adaptive_avg_pool2d([0, 1]).unwrap_err().kind(), ErrorKind::Argument);
        let flat = Tensor::zeros([3, 3], DType::F32, Device::Cpu).unwrap();
        assert_eq!(flat.max_pool2d(Window::new([2, 2])).unwrap_err().kind(), ErrorKind::Shape);
        assert_eq!(flat.max_pool1d(Window::new([2])).unwrap().dims(), [3, 1]);
    }

    #[test]
    fn a_window_between_whose_elements_the_image_lies_is_an_error() {
        let x = Tensor::zeros([1, 1, 1, 1], DType::F32, Device::Cpu).unwrap();
        let window = Window::new([2, 2]).with_padding([1, 1]).with_dilation([2, 2]);
        assert_eq!(x.max_pool2d(window).unwrap_err().kind(), ErrorKind::Shape);
    }
}
