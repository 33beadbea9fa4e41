//! Group norm: over groups of channels of one sample, with a weight and a bias for each channel. The bodies are batch
//! norm's, over other sets.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::batch_norm::sets::Sets;
use super::batch_norm::{affine, backward, backward_inputs, forward, gpu, gradients, parameters, statistics};
use super::reduce::{float_only, real, wide_dtype};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::device::Stream;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(GroupNorm, GroupNormBackward);

/// The shapes of the channels, `[C]`, and of the statistics, `[N, groups]`.
fn shapes(op: &'static str, x: &Meta, groups: usize) -> Result<(Shape, Shape)> {
    float_only(op, x.dtype)?;
    if x.shape.rank() < 2 {
        return Err(Error::shape(op, format!("needs [N, C, ..], not {}", x.shape)));
    }
    if groups == 0 || !x.shape[1].is_multiple_of(groups) {
        let message = format!("{} channels do not fall into {groups} groups", x.shape[1]);
        return Err(Error::shape(op, message));
    }
    Ok((Shape::new(&x.shape[1..2])?, Shape::new(&[x.shape[0], groups])?))
}

/// x̂ · weight + bias with mean and variance of each group of channels of a sample; inputs x `[N, C, ..]`, weight and bias
/// `[C]` where there are such; outputs y and, in f32 (f64 in f64), mean and variance `[N, groups]`.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// How many groups; divides the number of channels.
    pub groups: usize,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for GroupNorm {
    const NAME: &'static str = "group_norm";
    const INPUTS: RangeInclusive<usize> = 1..=3;
    const STATISTICS: usize = 2;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1, 2])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        let (channels, stats) = shapes(Self::NAME, &x, self.groups)?;
        parameters(Self::NAME, inputs, 1, channels, usize::from(self.weight) + usize::from(self.bias))?;
        let stats = x.with_shape(stats).with_dtype(wide_dtype(x.dtype));
        Ok(Plan { outputs: vec![x, stats, stats], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sets = Sets::of_groups(&inputs[0].shape(), self.groups);
        let affine = affine(inputs, 1, (self.weight, self.bias));
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(sets, self.eps, &inputs[0], None, affine, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sets = Sets::of_groups(&inputs[0].shape(), self.groups);
        let affine = affine(inputs, 1, (self.weight, self.bias));
        gpu::forward(stream, sets, self.eps, &inputs[0], None, affine, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let GroupNorm { groups, weight, bias, eps } = *self;
        let op = GroupNormBackward { groups, weight, bias, eps };
        let mut inputs = vec![cx.input(0)?, cx.output(1)?, cx.output(2)?, dy.clone()];
        inputs.extend(if weight { Some(cx.input(1)?) } else { None });
        let targets: Vec<usize> = (0..1 + usize::from(weight) + usize::from(bias)).collect();
        cx.run(op, &inputs.iter().collect::<Vec<_>>(), &targets)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, (shape, groups)): (usize, &(&[usize], usize))| {
            let (weight, bias) = (k % 3 != 1, k % 3 != 2);
            let parameter = |there: bool| there.then(|| Arg::new(&shape[1..2], Values::Normal(1.0)));
            let inputs = [Some(Arg::new(shape, Values::Normal(2.0))), parameter(weight), parameter(bias)];
            let op = GroupNorm { groups: *groups, weight, bias, eps: 1e-5 };
            Case { op, inputs: inputs.into_iter().flatten().collect() }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        let why = "mean, variance, a root and products; differences from the mean are as exact as x";
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, why), list }
    }
}

/// Shapes and groups of the cases.
const SHAPES: [(&[usize], usize); 10] = [
    (&[2, 4, 3], 2),
    (&[3, 6, 2, 2], 3),
    (&[1, 4, 5, 3], 1),
    (&[2, 3, 7], 3),
    (&[5, 8], 2),
    (&[1, 6, 40], 2),
    (&[2, 2, 300], 1),
    (&[0, 4, 3], 2),
    (&[2, 4, 0], 2),
    (&[4, 0, 3], 1),
];

/// dx, dweight and dbias (where there are such parameters) of [`GroupNorm`], from x, mean, variance, dy and the weight if
/// there is one.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormBackward {
    /// How many groups.
    pub groups: usize,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for GroupNormBackward {
    const NAME: &'static str = "group_norm_backward";
    const INPUTS: RangeInclusive<usize> = 4..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (channels, stats) = shapes(Self::NAME, &inputs[0], self.groups)?;
        statistics(Self::NAME, inputs, [1, 2], stats)?;
        if inputs[3] != inputs[0] {
            return Err(Error::shape(Self::NAME, format!("dy is {}, x {}", inputs[3], inputs[0])));
        }
        parameters(Self::NAME, inputs, 4, channels, usize::from(self.weight))?;
        Ok(gradients(inputs[0], channels, (self.weight, self.bias)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sets = Sets::of_groups(&inputs[0].shape(), self.groups);
        let there = (self.weight, self.bias);
        real!(Self::NAME, inputs[0].dtype(), A => backward::<A>(sets, (self.eps, true), inputs, outputs, there))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sets = Sets::of_groups(&inputs[0].shape(), self.groups);
        gpu::backward(stream, sets, (self.eps, true), inputs, outputs, (self.weight, self.bias))
    }

    fn cases() -> Cases<Self> {
        let case = |(k, (shape, groups)): (usize, &(&[usize], usize))| {
            let op = GroupNormBackward { groups: *groups, weight: k % 3 != 1, bias: k % 3 != 2, eps: 1e-5 };
            let stats = [shape[0], *groups];
            Case { op, inputs: backward_inputs(shape, &stats, &shape[1..2], op.weight) }
        };
        let why = "chains of at most 32 additions joined in a tree, and the roundings of what is added";
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(40.0, why), list }
    }
}

impl Tensor {
    /// Group norm of `[N, C, ..]`: the channels of a sample in `groups` groups, each of mean 0 and variance 1 (with `eps` added to
    /// the variance; PyTorch's usual one is 1e-5), times `weight`, plus `bias`, where given (`[C]`, of this dtype). An error
    /// unless `groups` divides the number of channels.
    #[track_caller]
    pub fn group_norm(
        &self,
        groups: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let op = GroupNorm { groups, weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight, bias].into_iter().flatten().collect();
        Ok(run(op, &inputs)?.swap_remove(0))
    }
}
