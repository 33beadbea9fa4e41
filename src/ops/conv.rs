//! Convolution over one or two dimensions, its transpose, and their gradients.
//!
//! Three ops of two dimensions do it all, each made of products of the same numbers: y from x and w ([`Convolution`]), dx from
//! dy and w ([`ConvInputBackward`], which is also the transposed convolution), dw from dy and x ([`ConvWeightBackward`]). The
//! backward of each is made of the other two. One dimension is two with a height of 1, seen through views.
//!
//! Refused, by typed errors: kernels larger than the padded image, channels that `groups` does not divide, strides, dilations
//! and groups of 0. As in most engines "convolution" is a correlation: the kernel is not turned.

#![forbid(unsafe_code)]

mod backward;
mod gpu;
mod mma;
mod shapes;

use std::ops::RangeInclusive;

use super::fused::{Fused, keeps_pre};
use super::{Arg, Axes, Case, Cases, Op, Plan, Sum, Tolerance, Values, run};
use crate::cpu::activation::{Activation, Reads};
use crate::cpu::conv::{self as cpu, Epilogue};
use crate::device::Stream;
use crate::dtype::Float;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, dispatch};

pub use backward::{ConvInputBackward, ConvWeightBackward};
use shapes::{Sizes, flat, need_rank, source};

super::family!(Convolution, ConvInputBackward, ConvWeightBackward);

/// How a kernel moves over an image of `N` dimensions (height before width), as PyTorch's arguments of the same names.
///
/// # Examples
/// ```
/// use warpsmith::ops::Conv;
/// let same = Conv { padding: [1, 1], ..Conv::default() };
/// assert_eq!((same.stride, same.groups), ([1, 1], 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv<const N: usize> {
    /// Pixels of the image from one place of the kernel to the next; at least 1.
    pub stride: [usize; N],
    /// Zeros around the image, on both sides.
    pub padding: [usize; N],
    /// Pixels of the image from one element of the kernel to the next; at least 1.
    pub dilation: [usize; N],
    /// Parts that the channels are cut into; each filter sees one of them.
    pub groups: usize,
}

impl<const N: usize> Default for Conv<N> {
    fn default() -> Self {
        Conv { stride: [1; N], padding: [0; N], dilation: [1; N], groups: 1 }
    }
}

impl Conv<1> {
    /// The same over an image of height 1.
    fn flat(self) -> Conv<2> {
        Conv {
            stride: [1, self.stride[0]],
            padding: [0, self.padding[0]],
            dilation: [1, self.dilation[0]],
            groups: self.groups,
        }
    }
}

/// `y = f(x ⋆ w + b)`: x `[n, c, h, w]`, w `[out, c / groups, kh, kw]`, optionally b `[out]`; y `[n, out, oh, ow]` with
/// `oh = (h + 2 padding − dilation (kh − 1) − 1) / stride + 1`, rounded down.
///
/// The pixels around an image count as zeros. Whether an infinite or NaN weight times such a zero is NaN or left out is not
/// promised: the kernels differ in it, on the CPU and on GPUs (as PyTorch's do). Pixels that are there count as IEEE 754 says.
///
/// Gradients, with dz = dy · f′: dx by [`ConvInputBackward`], dw by [`ConvWeightBackward`], db = Σ dz over images and pixels.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// How the kernel moves.
    pub conv: Conv<2>,
    /// Whether a third input, the bias, is given.
    pub bias: bool,
    /// f
    pub activation: Activation,
    /// Whether a second output keeps x ⋆ w + b, for activations whose derivative cannot be told from f(z) alone.
    pub keep_pre: bool,
}

impl Convolution {
    /// Without bias and activation.
    fn plain(conv: Conv<2>) -> Convolution {
        Convolution { conv, bias: false, activation: Activation::Identity, keep_pre: false }
    }

    fn fused(&self) -> Fused {
        let Convolution { bias, activation, keep_pre, .. } = *self;
        Fused { op: Self::NAME, bias, activation, keep_pre }
    }

    fn body<T: Float>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, w) = (inputs[0], inputs[1]);
        let sizes = Sizes::forward(Self::NAME, &self.conv, &x.shape(), &w.shape())?;
        let bias: Option<Vec<T>> =
            inputs.get(2).map(|b| b.layout().positions().map(|i| b.data::<T>()[i]).collect());
        let (y, pre) = outputs.split_at_mut(1);
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            activation: self.activation,
            pre: pre.first_mut().map(|p| p.slice::<T>()),
        };
        cpu::forward(&sizes.0, source(&x), source(&w), y[0].slice::<T>(), epilogue);
        Ok(())
    }
}

impl Op for Convolution {
    const NAME: &'static str = "conv2d";
    const INPUTS: RangeInclusive<usize> = 2..=3;

    fn saves(&self, needs: &[bool]) -> Saves {
        self.fused().saves(needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        super::same_float(Self::NAME, inputs)?;
        let (x, w) = (inputs[0], inputs[1]);
        self.fused().check_count(inputs)?;
        let sizes = Sizes::forward(Self::NAME, &self.conv, &x.shape, &w.shape)?;
        self.fused().check_bias(inputs, w.shape[0])?;
        Ok(Plan { outputs: self.fused().outputs(x.with_shape(sizes.y()?)), scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float outputs[0].dtype(), T => self.body::<T>(inputs, outputs), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::forward(self, stream, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dz) = self.fused().gradient("conv2d_activated", cx, dys)? else { return Ok(()) };
        let conv = self.conv;
        if cx.needs(0) {
            let x = cx.input_meta(0).shape;
            let w = cx.input(1)?;
            cx.run(ConvInputBackward { conv, size: [x[2], x[3]] }, &[&dz, &w], &[0])?;
        }
        if cx.needs(1) {
            let w = cx.input_meta(1).shape;
            let x = cx.input(0)?;
            cx.run(ConvWeightBackward { conv, kernel: [w[2], w[3]] }, &[&dz, &x], &[1])?;
        }
        if self.bias {
            let axes = Axes::of(4, |d| d != 1);
            cx.run(Sum { axes, keepdim: false }, &[&dz], &[2])?;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let activations = [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::Tanh];
        let case = |(i, (x, w, conv)): (usize, ([usize; 4], [usize; 4], Conv<2>))| {
            let activation = activations[if i % 3 == 2 { i / 3 % 4 } else { 0 }];
            let bias = i % 2 == 0;
            let mut inputs = vec![Arg::new(&x, Values::Normal(1.0)), Arg::new(&w, Values::Normal(0.5))];
            if bias {
                inputs.push(Arg::new(&[w[0]], Values::Normal(0.5)));
            }
            let keep_pre = activation.reads() == Reads::Input;
            Case { op: Convolution { conv, bias, activation, keep_pre }, inputs }
        };
        let list = shapes::cases().into_iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(64.0, shapes::WHY), list }
    }
}

impl Tensor {
    /// Moves the kernels of `weight [out, c / groups, kh, kw]` over the images `self [n, c, h, w]`; `bias [out]` is added. The
    /// result is `[n, out, oh, ow]`, with `oh = (h + 2 padding − dilation (kh − 1) − 1) / stride + 1`, rounded down.
    ///
    /// A single image `[c, h, w]` is refused: call `unsqueeze(0)` first.
    ///
    /// Errors: element types that differ or are not floating point; shapes that do not fit; a kernel larger than the padded
    /// image; a stride, dilation or number of groups of 0.
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, bias: Option<&Tensor>, conv: Conv<2>) -> Result<Tensor> {
        self.conv2d_activated(weight, bias, conv, Activation::Identity)
    }

    /// [`Tensor::conv2d`] followed by an activation, in one pass.
    #[track_caller]
    pub fn conv2d_activated(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: Conv<2>,
        activation: Activation,
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [self, weight].into_iter().chain(bias).collect();
        let keep_pre = keeps_pre(activation, &inputs);
        let op = Convolution { conv, bias: bias.is_some(), activation, keep_pre };
        Ok(run(op, &inputs)?.swap_remove(0))
    }

    /// Moves the kernels of `weight [out, c / groups, k]` over the sequences `self [n, c, l]`: as [`Tensor::conv2d`], with one
    /// dimension less.
    #[track_caller]
    pub fn conv1d(&self, weight: &Tensor, bias: Option<&Tensor>, conv: Conv<1>) -> Result<Tensor> {
        self.conv1d_activated(weight, bias, conv, Activation::Identity)
    }

    /// [`Tensor::conv1d`] followed by an activation, in one pass.
    #[track_caller]
    pub fn conv1d_activated(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: Conv<1>,
        activation: Activation,
    ) -> Result<Tensor> {
        need_rank("conv1d", self, "[n, c, l]")?;
        need_rank("conv1d", weight, "[out, c / groups, k]")?;
        flat(self)?.conv2d_activated(&flat(weight)?, bias, conv.flat(), activation)?.squeeze(2)
    }
}
