//! The gradients of a convolution as ops of their own; the first is the transposed convolution too.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::shapes::{self, Sizes, flat, need_rank, source};
use super::{Conv, Convolution, gpu};
use crate::cpu::conv as cpu;
use crate::device::Stream;
use crate::ops::fused::factors;
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1, same_float};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, dispatch};

/// dx of a convolution from dy `[n, out, oh, ow]` and w `[out, c / groups, kh, kw]`: each dy sends its kernel back to the pixels
/// that it came from. The backward of [`Convolution`] and the forward of the transposed convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvInputBackward {
    /// How the kernel moves.
    pub conv: Conv<2>,
    /// Height and width of x, which dy does not tell where the stride is above 1.
    pub size: [usize; 2],
}

impl Op for ConvInputBackward {
    const NAME: &'static str = "conv2d_input_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, needs: &[bool]) -> Saves {
        factors(needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let sizes = Sizes::input(Self::NAME, &self.conv, &inputs[0].shape, &inputs[1].shape, self.size)?;
        Ok(Plan::one(inputs[0].with_shape(sizes.x()?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (dy, w, dx) = (&inputs[0], &inputs[1], &mut outputs[0]);
        let sizes = Sizes::input(Self::NAME, &self.conv, &dy.shape(), &w.shape(), self.size)?;
        let add = dx.mode() == Mode::Accumulate;
        dispatch!(float dx.dtype(), T => {
            cpu::input_backward::<T>(&sizes.0, source(dy), source(w), dx.slice::<T>(), add);
            Ok(())
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::input_backward(self, stream, inputs, &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(of_dx) = &dys[0] else { return Ok(()) };
        let conv = self.conv;
        if cx.needs(0) {
            let w = cx.input(1)?;
            cx.run(Convolution::plain(conv), &[of_dx, &w], &[0])?;
        }
        if cx.needs(1) {
            let w = cx.input_meta(1).shape;
            let dy = cx.input(0)?;
            cx.run(ConvWeightBackward { conv, kernel: [w[2], w[3]] }, &[&dy, of_dx], &[1])?;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let case = |(x, w, conv): ([usize; 4], [usize; 4], Conv<2>)| {
            let y = result(x, w, &conv);
            let inputs = vec![Arg::new(&y, Values::Normal(1.0)), Arg::new(&w, Values::Normal(0.5))];
            Case { op: ConvInputBackward { conv, size: [x[2], x[3]] }, inputs }
        };
        // More channels of x than half a large tile of the tensor cores, where the stride divides places and where it does not.
        let large = [1, 2].map(|s| {
            let conv = Conv { stride: [s, s], padding: [1, 1], ..Conv::default() };
            ([1, 72, 9, 9], [8, 72, 3, 3], conv)
        });
        let list = shapes::cases().into_iter().chain(large).map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(64.0, shapes::WHY), list }
    }
}

/// The shape of the result of a case.
fn result(x: [usize; 4], w: [usize; 4], conv: &Conv<2>) -> [usize; 4] {
    let places = |d: usize| {
        (x[2 + d] + 2 * conv.padding[d] - conv.dilation[d] * (w[2 + d] - 1) - 1) / conv.stride[d] + 1
    };
    [x[0], w[0], places(0), places(1)]
}

/// dw `[out, c / groups, kh, kw]` of a convolution from dy `[n, out, oh, ow]` and x `[n, c, h, w]`: Σ over images and places.
/// The backward of [`Convolution`].
#[derive(Clone, Copy, Debug)]
pub struct ConvWeightBackward {
    /// How the kernel moves.
    pub conv: Conv<2>,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
}

impl Op for ConvWeightBackward {
    const NAME: &'static str = "conv2d_weight_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, needs: &[bool]) -> Saves {
        factors(needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let sizes = Sizes::weight(Self::NAME, &self.conv, &inputs[0].shape, &inputs[1].shape, self.kernel)?;
        Ok(Plan::one(inputs[0].with_shape(sizes.w()?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (dy, x, dw) = (&inputs[0], &inputs[1], &mut outputs[0]);
        let sizes = Sizes::weight(Self::NAME, &self.conv, &dy.shape(), &x.shape(), self.kernel)?;
        let add = dw.mode() == Mode::Accumulate;
        dispatch!(float dw.dtype(), T => {
            cpu::weight_backward::<T>(&sizes.0, source(dy), source(x), dw.slice::<T>(), add)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::weight_backward(self, stream, inputs, &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(of_dw) = &dys[0] else { return Ok(()) };
        let conv = self.conv;
        if cx.needs(0) {
            let x = cx.input(1)?;
            cx.run(Convolution::plain(conv), &[&x, of_dw], &[0])?;
        }
        if cx.needs(1) {
            let x = cx.input_meta(1).shape;
            let dy = cx.input(0)?;
            cx.run(ConvInputBackward { conv, size: [x[2], x[3]] }, &[&dy, of_dw], &[1])?;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let case = |(x, w, conv): ([usize; 4], [usize; 4], Conv<2>)| {
            let y = result(x, w, &conv);
            let inputs = vec![Arg::new(&y, Values::Normal(1.0)), Arg::new(&x, Values::Normal(1.0))];
            Case { op: ConvWeightBackward { conv, kernel: [w[2], w[3]] }, inputs }
        };
        let list = shapes::cases().into_iter().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(64.0, shapes::WHY), list }
    }
}

/// The name of the transposed convolution in errors.
const OP: &str = "conv_transpose2d";

/// The height (width) that a transposed convolution makes of `n` pixels.
fn spread(conv: &Conv<2>, d: usize, n: usize, k: usize, more: usize) -> Result<usize> {
    let (stride, padding, dilation) = (conv.stride[d], conv.padding[d], conv.dilation[d]);
    shapes::positive(OP, conv, d)?;
    if more >= stride.max(dilation) {
        let message =
            format!("output_padding {more} must be smaller than stride {stride} or dilation {dilation}");
        return Err(Error::argument(message).with_op(OP));
    }
    if n == 0 || k == 0 {
        return Err(Error::shape(
            OP,
            "images and kernels of a transposed convolution have at least one pixel",
        ));
    }
    let size = (|| {
        let reach = dilation.checked_mul(k - 1)?.checked_add(more)?.checked_add(1)?;
        (n - 1).checked_mul(stride)?.checked_add(reach)
    })();
    let cut = padding.checked_mul(2);
    match size.zip(cut) {
        Some((size, cut)) if size > cut => Ok(size - cut),
        Some((size, _)) => {
            Err(Error::shape(OP, format!("padding {padding} on both sides leaves nothing of {size} pixels")))
        }
        None => Err(Error::argument("stride, padding or dilation is beyond the address space").with_op(OP)),
    }
}

impl Tensor {
    /// The transpose of [`Tensor::conv2d`]: spreads each pixel of `self [n, c, h, w]` over the place that a kernel of
    /// `weight [c, out / groups, kh, kw]` covers; `bias [out]` is added. The result is `[n, out, oh, ow]`, with
    /// `oh = (h − 1) stride − 2 padding + dilation (kh − 1) + output_padding + 1`.
    ///
    /// `output_padding` adds rows and columns at the end, to choose among the sizes that a strided convolution maps to the same
    /// one; it must be smaller than the stride or the dilation. Errors: as [`Tensor::conv2d`].
    #[track_caller]
    pub fn conv_transpose2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: Conv<2>,
        output_padding: [usize; 2],
    ) -> Result<Tensor> {
        if self.rank() != 4 || weight.rank() != 4 || self.dims()[1] != weight.dims()[0] {
            let (x, w) = (self.shape(), weight.shape());
            let message =
                format!("{x} and a weight {w} given; [n, c, h, w] and [c, out / groups, kh, kw] needed");
            return Err(Error::shape(OP, message));
        }
        let (x, w) = (self.dims(), weight.dims());
        let size = [
            spread(&conv, 0, x[2], w[2], output_padding[0])?,
            spread(&conv, 1, x[3], w[3], output_padding[1])?,
        ];
        super::super::same_float(OP, &[self.meta(), weight.meta()])?;
        if !x[1].is_multiple_of(conv.groups) {
            let message = format!("{} channels cannot be cut into {} groups", x[1], conv.groups);
            return Err(Error::shape(OP, message));
        }
        let Some(filters) = w[1].checked_mul(conv.groups) else {
            return Err(Error::argument(format!("{} groups are too many", conv.groups)).with_op(OP));
        };
        if let Some(b) = bias
            && b.dims() != [filters]
        {
            return Err(Error::shape(OP, format!("the bias has shape {}, not [{filters}]", b.shape())));
        }
        // From a whole stride on, output_padding makes places that no pixel was given for: zeros there.
        let more = [output_padding[0] / conv.stride[0], output_padding[1] / conv.stride[1]];
        let y = match more {
            [0, 0] => run1(ConvInputBackward { conv, size }, &[self, weight])?,
            [below, right] => {
                let padded = self.pad(&[(0, right), (0, below)], 0.0)?;
                run1(ConvInputBackward { conv, size }, &[&padded, weight])?
            }
        };
        match bias {
            Some(b) => y.add(&b.reshape([filters, 1, 1])?),
            None => Ok(y),
        }
    }

    /// The transpose of [`Tensor::conv1d`]: as [`Tensor::conv_transpose2d`] for sequences `self [n, c, l]` and
    /// `weight [c, out / groups, k]`.
    #[track_caller]
    pub fn conv_transpose1d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: Conv<1>,
        output_padding: [usize; 1],
    ) -> Result<Tensor> {
        need_rank("conv_transpose1d", self, "[n, c, l]")?;
        need_rank("conv_transpose1d", weight, "[c, out / groups, k]")?;
        let y = flat(self)?.conv_transpose2d(&flat(weight)?, bias, conv.flat(), [0, output_padding[0]])?;
        y.squeeze(2)
    }
}
