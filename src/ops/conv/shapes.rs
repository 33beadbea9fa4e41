//! The shape rules of the convolutions, and the cases that all three ops are tested with.

#![forbid(unsafe_code)]

use super::Conv;
use crate::cpu::conv::{Geometry, Source};
use crate::dtype::Element;
use crate::tensor::{Tensor, View};
use crate::{Error, Result, Shape};

/// A geometry that has been checked.
pub(super) struct Sizes(pub Geometry);

/// An error unless stride and dilation along dimension `d`, and the groups, are at least 1.
pub(super) fn positive(op: &'static str, conv: &Conv<2>, d: usize) -> Result<()> {
    for (what, value) in [("stride", conv.stride[d]), ("dilation", conv.dilation[d]), ("groups", conv.groups)]
    {
        if value == 0 {
            return Err(Error::argument(format!("{what} is 0, but must be at least 1")).with_op(op));
        }
    }
    Ok(())
}

/// How often a kernel of `k` elements fits into `n` pixels, along dimension `d`.
fn places(op: &'static str, conv: &Conv<2>, d: usize, n: usize, k: usize) -> Result<usize> {
    let (stride, padding, dilation) = (conv.stride[d], conv.padding[d], conv.dilation[d]);
    positive(op, conv, d)?;
    if k == 0 {
        return Err(Error::shape(op, "the kernel has a size of 0"));
    }
    let padded = padding.checked_mul(2).and_then(|p| p.checked_add(n));
    let reach = dilation.checked_mul(k - 1).and_then(|r| r.checked_add(1));
    let (Some(padded), Some(reach)) = (padded, reach) else {
        let message = format!("padding {padding} or dilation {dilation} is beyond the address space");
        return Err(Error::argument(message).with_op(op));
    };
    if reach > padded {
        let name = ["height", "width"][d];
        let message = format!(
            "the kernel is larger than the padded image: {name} {k} at dilation {dilation} reaches over {reach}, \
             the image has {n} + 2 · {padding}"
        );
        return Err(Error::shape(op, message));
    }
    // Positions along the padded image are computed in signed numbers.
    if padded.checked_add(stride).is_none_or(|end| end > isize::MAX as usize) {
        return Err(Error::argument(format!("stride {stride} or padding {padding} is too large")).with_op(op));
    }
    Ok((padded - reach) / stride + 1)
}

impl Sizes {
    /// Of images `x [n, c, h, w]` and a weight `[out, c / groups, kh, kw]`.
    pub fn forward(op: &'static str, conv: &Conv<2>, x: &Shape, w: &Shape) -> Result<Sizes> {
        if x.rank() != 4 || w.rank() != 4 {
            let message =
                format!("{x} and a weight {w} given; [n, c, h, w] and [out, c / groups, kh, kw] needed");
            return Err(Error::shape(op, message));
        }
        let result = [places(op, conv, 0, x[2], w[2])?, places(op, conv, 1, x[3], w[3])?];
        Sizes::of(op, conv, x[0], (x[1], w[0]), [x[2], x[3]], [w[2], w[3]], result, Some(w[1]))
    }

    #[allow(clippy::too_many_arguments, reason = "the numbers that make a geometry")]
    fn of(
        op: &'static str,
        conv: &Conv<2>,
        images: usize,
        (channels, filters): (usize, usize),
        image: [usize; 2],
        kernel: [usize; 2],
        result: [usize; 2],
        seen: Option<usize>,
    ) -> Result<Sizes> {
        let groups = conv.groups;
        for (what, n) in [("channels", channels), ("filters", filters)] {
            if !n.is_multiple_of(groups) {
                return Err(Error::shape(op, format!("{n} {what} cannot be cut into {groups} groups")));
            }
        }
        if seen.is_some_and(|s| s != channels / groups) {
            let message = format!(
                "the weight is for {} channels a group; {channels} channels in {groups} groups are {}",
                seen.unwrap_or(0),
                channels / groups
            );
            return Err(Error::shape(op, message));
        }
        Ok(Sizes(Geometry {
            images,
            groups,
            channels: channels / groups,
            filters: filters / groups,
            image,
            kernel,
            result,
            stride: conv.stride,
            padding: conv.padding,
            dilation: conv.dilation,
        }))
    }

    /// Of gradients `dy [n, out, oh, ow]` and a weight `[out, c / groups, kh, kw]`, for images of this size.
    pub fn input(op: &'static str, conv: &Conv<2>, dy: &Shape, w: &Shape, size: [usize; 2]) -> Result<Sizes> {
        if dy.rank() != 4 || w.rank() != 4 {
            let message =
                format!("{dy} and a weight {w} given; [n, out, oh, ow] and [out, c / groups, kh, kw] needed");
            return Err(Error::shape(op, message));
        }
        let result = [places(op, conv, 0, size[0], w[2])?, places(op, conv, 1, size[1], w[3])?];
        if w[0] != dy[1] || result != [dy[2], dy[3]] {
            let message = format!(
                "{dy} is no result of a weight {w} on images of {} by {}: that has {} channels of {} by {}",
                size[0], size[1], w[0], result[0], result[1]
            );
            return Err(Error::shape(op, message));
        }
        let Some(channels) = w[1].checked_mul(conv.groups) else {
            return Err(Error::argument(format!("{} groups are too many", conv.groups)).with_op(op));
        };
        Sizes::of(op, conv, dy[0], (channels, w[0]), size, [w[2], w[3]], result, None)
    }

    /// Of gradients `dy [n, out, oh, ow]` and images `x [n, c, h, w]`, for kernels of this size.
    pub fn weight(
        op: &'static str,
        conv: &Conv<2>,
        dy: &Shape,
        x: &Shape,
        kernel: [usize; 2],
    ) -> Result<Sizes> {
        if dy.rank() != 4 || x.rank() != 4 {
            let message = format!("{dy} and {x} given; [n, out, oh, ow] and [n, c, h, w] needed");
            return Err(Error::shape(op, message));
        }
        let result = [places(op, conv, 0, x[2], kernel[0])?, places(op, conv, 1, x[3], kernel[1])?];
        if dy[0] != x[0] || result != [dy[2], dy[3]] {
            let message = format!(
                "{dy} is no result of kernels of {} by {} on {x}: that is [{}, out, {}, {}]",
                kernel[0], kernel[1], x[0], result[0], result[1]
            );
            return Err(Error::shape(op, message));
        }
        Sizes::of(op, conv, x[0], (x[1], dy[1]), [x[2], x[3]], kernel, result, None)
    }

    /// `[n, c, h, w]`
    pub fn x(&self) -> Result<Shape> {
        let g = &self.0;
        Shape::new(&[g.images, g.groups * g.channels, g.image[0], g.image[1]])
    }

    /// `[out, c / groups, kh, kw]`
    pub fn w(&self) -> Result<Shape> {
        let g = &self.0;
        Shape::new(&[g.groups * g.filters, g.channels, g.kernel[0], g.kernel[1]])
    }

    /// `[n, out, oh, ow]`
    pub fn y(&self) -> Result<Shape> {
        let g = &self.0;
        Shape::new(&[g.images, g.groups * g.filters, g.result[0], g.result[1]])
    }
}

/// A view of four dimensions as the loops take it.
pub(super) fn source<'a, T: Element>(view: &View<'a>) -> Source<'a, T> {
    let strides = &view.layout().strides;
    Source { data: view.data(), strides: [strides[0], strides[1], strides[2], strides[3]] }
}

/// A sequence `[n, c, l]` as images of height 1.
pub(super) fn flat(t: &Tensor) -> Result<Tensor> {
    t.unsqueeze(2)
}

/// An error unless `t` has the three dimensions of `needed`.
pub(super) fn need_rank(op: &'static str, t: &Tensor, needed: &str) -> Result<()> {
    if t.rank() == 3 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{} given, {needed} needed", t.shape())))
}

/// Why the ops are as exact as they say.
pub(super) const WHY: &str =
    "fused multiply-adds in runs of 256, each of at most 64 roundings here, and a few more";

/// Shapes of x and w and how the kernel moves, for the cases of all three ops.
pub(super) fn cases() -> Vec<([usize; 4], [usize; 4], Conv<2>)> {
    let conv = |stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], groups: usize| Conv {
        stride,
        padding,
        dilation,
        groups,
    };
    let plain = Conv::default();
    let same = conv([1, 1], [1, 1], [1, 1], 1);
    vec![
        ([1, 1, 1, 1], [1, 1, 1, 1], plain),
        ([1, 1, 4, 4], [1, 1, 3, 3], plain),
        ([2, 2, 5, 5], [3, 2, 3, 3], same),
        ([2, 3, 4, 5], [4, 3, 1, 1], plain),
        ([1, 2, 7, 6], [2, 2, 3, 3], conv([2, 2], [1, 1], [1, 1], 1)),
        ([1, 2, 7, 8], [2, 2, 3, 2], conv([2, 3], [1, 0], [1, 1], 1)),
        ([1, 2, 8, 7], [2, 2, 3, 3], conv([1, 1], [2, 1], [2, 2], 1)),
        ([1, 2, 9, 8], [2, 2, 2, 3], conv([2, 2], [1, 3], [3, 2], 1)),
        // Groups, and one channel a group.
        ([2, 4, 4, 4], [4, 2, 3, 3], conv([1, 1], [1, 1], [1, 1], 2)),
        ([2, 3, 5, 5], [3, 1, 3, 3], conv([1, 1], [1, 1], [1, 1], 3)),
        ([1, 3, 6, 6], [6, 1, 3, 3], conv([2, 2], [1, 1], [1, 1], 3)),
        ([1, 4, 7, 7], [4, 1, 3, 3], conv([1, 1], [2, 2], [2, 2], 4)),
        // A sequence.
        ([2, 3, 1, 11], [2, 3, 1, 4], conv([1, 2], [0, 2], [1, 1], 1)),
        // The whole image, and beyond it: outputs of padding alone.
        ([2, 2, 3, 3], [5, 2, 3, 3], plain),
        ([1, 1, 2, 2], [2, 1, 2, 2], conv([1, 2], [3, 4], [1, 1], 1)),
        // A stride larger than the kernel: pixels that no place covers.
        ([1, 2, 7, 7], [2, 2, 2, 2], conv([3, 4], [0, 0], [1, 1], 1)),
        // Nothing.
        ([0, 2, 4, 4], [3, 2, 3, 3], same),
        ([2, 2, 4, 4], [0, 2, 3, 3], same),
        ([2, 0, 4, 4], [2, 0, 3, 3], same),
        ([1, 2, 0, 3], [2, 2, 2, 2], conv([1, 1], [1, 1], [1, 1], 1)),
        // More than one tile of everything: pixels, filters, k.
        ([1, 9, 10, 11], [17, 9, 3, 3], same),
        ([2, 3, 17, 33], [5, 3, 5, 5], conv([1, 1], [2, 2], [1, 1], 1)),
        ([1, 33, 6, 5], [40, 33, 1, 1], plain),
        ([3, 8, 9, 9], [16, 8, 3, 3], conv([2, 2], [1, 1], [1, 1], 1)),
        ([1, 1, 8, 70], [2, 1, 1, 3], conv([1, 1], [0, 1], [1, 1], 1)),
        ([2, 16, 8, 8], [16, 16, 3, 3], conv([1, 1], [1, 1], [1, 1], 1)),
        ([1, 32, 5, 5], [8, 32, 3, 3], same),
        // Tensor cores: several tiles, groups, strides, k in slices.
        ([1, 8, 9, 9], [72, 8, 3, 3], same),
        ([1, 16, 11, 12], [16, 8, 3, 3], conv([2, 1], [1, 1], [1, 2], 2)),
        ([2, 8, 14, 13], [8, 8, 3, 3], same),
        ([5, 1, 12, 12], [8, 1, 7, 7], conv([2, 2], [3, 3], [1, 1], 1)),
    ]
}
