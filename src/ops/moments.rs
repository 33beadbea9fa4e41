//! Reductions that take two passes: variance and standard deviation (about the mean found first, so that nothing cancels)
//! and the logarithm of a sum of exponentials (below the largest found first, so that nothing overflows).
//!
//! `Real::exp(x)`, not `x.exp()`: where the type is known to be f32, that is the standard library's, which does not vectorise.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::reduce::gpu;
use super::reduce::{Axes, cases, float_only, folded, map, real, same_dtype, store, sums, wide};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::pool::Block;
use crate::cpu::reduce::{Max, SumOf};
use crate::device::Stream;
use crate::dtype::Real;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(Var, VarBackward, Std, StdBackward, LogSumExp, LogSumExpBackward);

/// Elements behind each output less `correction`, not below 0: what the sum of squares is divided by.
fn freedom(axes: Axes, shape: &Shape, correction: u32) -> f64 {
    (axes.count(shape) as f64 - f64::from(correction)).max(0.0)
}

/// The mean over `axes`.
fn means<A: Real>(axes: Axes, x: &View<'_>) -> Result<Block> {
    let mut block = sums::<A>(axes, x)?;
    let n = A::of(axes.count(&x.shape()) as f64);
    block.typed_mut::<A>().iter_mut().for_each(|m| *m /= n);
    Ok(block)
}

/// Σ (x − mean)² / n over `axes` into `out`, n as [`freedom`] says; its root if `root`.
fn variance(
    op: &'static str,
    (axes, correction): (Axes, u32),
    x: &View<'_>,
    out: &mut Out<'_>,
    root: bool,
) -> Result<()> {
    let mut copy = None;
    let x = wide(x, &mut copy)?;
    real!(op, x.dtype(), A => {
        let means = means::<A>(axes, &x)?;
        let square = SumOf(#[inline(always)] |x: A, mean: A| (x - mean) * (x - mean));
        let mut squares = folded::<A, _>(&axes.plan(&x), &square, &x, means.typed())?;
        let n = A::of(freedom(axes, &x.shape(), correction));
        for s in squares.typed_mut::<A>() {
            *s = if root { (*s / n).sqrt() } else { *s / n };
        }
        store::<A>(out, squares.typed());
        Ok(())
    })
}

/// [`variance`] on a GPU.
fn gpu_variance(
    stream: &Stream,
    (axes, correction): (Axes, u32),
    x: &View<'_>,
    out: &mut Out<'_>,
    root: bool,
) -> Result<()> {
    let n = freedom(axes, &x.shape(), correction) as f32;
    gpu::fold(stream, gpu::Fold::Moments, (x, None), axes, (n, root), out)
}

/// The backward of [`variance`] on a GPU: `scale` times what the functor makes of x, (y), dy and the mean over `axes`.
fn gpu_spread(
    stream: &Stream,
    f: gpu::Spread,
    [x, y, dy]: [Option<&View<'_>>; 3],
    (axes, scale): (Axes, f64),
    out: &mut Out<'_>,
) -> Result<()> {
    let Some(x) = x else { return Err(Error::internal("a variance has an input")) };
    let sums = gpu::states(stream, gpu::Fold::Total, (x, None), axes)?;
    let constants = (axes.count(&x.shape()) as f32, scale as f32);
    gpu::spread(stream, f, [Some(x), y, dy], Some((&sums, axes)), constants, out)
}

/// The shape rule of the backwards: x, then tensors with the axes kept.
fn infer_backward(op: &'static str, axes: Axes, inputs: &[Meta]) -> Result<Plan> {
    same_dtype(op, inputs)?;
    let kept = axes.infer(op, &inputs[0].shape, true)?;
    match inputs[1..].iter().find(|m| m.shape != kept) {
        Some(other) => Err(Error::shape(op, format!("expected {kept}, found {}", other.shape))),
        None => Ok(Plan::one(inputs[0])),
    }
}

fn backward_cases<O>(op: impl Fn(Axes) -> O, tolerance: Tolerance, kept_inputs: &[Values]) -> Cases<O> {
    let shapes: [(&[usize], &[isize]); 6] = [
        (&[37], &[]),
        (&[5, 130], &[1]),
        (&[70, 13], &[0]),
        (&[20, 9, 15], &[0, 2]),
        (&[2, 0, 3], &[0]),
        (&[], &[]),
    ];
    let case = |(shape, dims): &(&[usize], &[isize])| {
        let shape = Shape::from_dims(shape);
        let axes = Axes::resolve("cases", &shape, dims).expect("the axes above exist");
        let mut inputs = vec![Arg::constant(&shape, Values::Normal(2.0))];
        inputs.extend(kept_inputs.iter().map(|v| Arg::constant(&axes.kept(&shape), v.clone())));
        Case { op: op(axes), inputs }
    };
    Cases { dtypes: &DType::FLOATS, tolerance, list: shapes.iter().map(case).collect() }
}

/// Both corrections over many shapes. The gradient is checked where there are at least two elements, for 0/0 has none.
fn moment_cases<O>(op: impl Fn(Axes, u32, bool) -> O) -> Cases<O> {
    let tolerance = Tolerance::Sum(8.0, "two sums, the second over squares of rounded differences");
    let plain = |axes: Axes, keepdim: bool| (axes, keepdim);
    let Cases { dtypes, list, .. } = cases(&DType::FLOATS, tolerance, Values::Normal(2.0), plain, true);
    let case = |(i, Case { op: (axes, keepdim), mut inputs }): (usize, Case<(Axes, bool)>)| {
        inputs[0].grad = axes.count(&Shape::from_dims(&inputs[0].shape)) > 1;
        Case { op: op(axes, i as u32 % 2, keepdim ^ (i % 4 > 1)), inputs }
    };
    Cases { dtypes, tolerance, list: list.into_iter().enumerate().map(case).collect() }
}

/// Σ (x − mean)² / (n − correction) over `axes`; NaN or infinite where n ≤ correction. Gradient:
/// dx = dy · 2 (x − mean) / (n − correction).
#[derive(Clone, Copy, Debug)]
pub struct Var {
    /// The dimensions to reduce.
    pub axes: Axes,
    /// 1 for the unbiased estimate, 0 for the mean square.
    pub correction: u32,
    /// Whether the dimensions stay, of size 1.
    pub keepdim: bool,
}

impl Op for Var {
    const NAME: &'static str = "var";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        let shape = self.axes.infer(Self::NAME, &inputs[0].shape, self.keepdim)?;
        Ok(Plan::one(inputs[0].with_shape(shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        variance(Self::NAME, (self.axes, self.correction), &inputs[0], &mut outputs[0], false)
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu_variance(stream, (self.axes, self.correction), &inputs[0], &mut outputs[0], false)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let x = cx.input(0)?;
        let dy = self.axes.restore(dy, &x.shape(), self.keepdim)?;
        cx.run(VarBackward { axes: self.axes, correction: self.correction }, &[&x, &dy], &[0])
    }

    fn cases() -> Cases<Self> {
        moment_cases(|axes, correction, keepdim| Var { axes, correction, keepdim })
    }
}

/// dx = dy · 2 (x − mean) / (n − correction), from x and, with the axes kept, dy: the backward of [`Var`].
#[derive(Clone, Copy, Debug)]
pub struct VarBackward {
    /// The dimensions that were reduced.
    pub axes: Axes,
    /// That of [`Var`].
    pub correction: u32,
}

impl Op for VarBackward {
    const NAME: &'static str = "var_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, self.axes, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        let (x, dy) = (wide(&inputs[0], &mut copy)?, inputs[1]);
        real!(Self::NAME, x.dtype(), A => {
            let scale = A::of(2.0 / freedom(self.axes, &x.shape(), self.correction));
            let means = means::<A>(self.axes, &x)?;
            let means = View::of(means.typed::<A>(), dy.shape());
            map::<A, 3>([x, means, dy], &mut outputs[0], #[inline(always)] |[x, mean, dy]| dy * scale * (x - mean))
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let scale = 2.0 / freedom(self.axes, &inputs[0].shape(), self.correction);
        let operands = [Some(&inputs[0]), None, Some(&inputs[1])];
        gpu_spread(stream, gpu::Spread::SpreadVar, operands, (self.axes, scale), &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let op = |axes| VarBackward { axes, correction: 0 };
        backward_cases(op, Tolerance::Sum(8.0, "a mean, a difference, products"), &[Values::Normal(1.0)])
    }
}

/// The square root of [`Var`]. Gradient: dx = dy · (x − mean) / ((n − correction) · y), 0 where y is 0.
#[derive(Clone, Copy, Debug)]
pub struct Std {
    /// The dimensions to reduce.
    pub axes: Axes,
    /// 1 for the square root of the unbiased estimate, 0 for the root mean square.
    pub correction: u32,
    /// Whether the dimensions stay, of size 1.
    pub keepdim: bool,
}

impl Op for Std {
    const NAME: &'static str = "std";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0]).and_outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        let shape = self.axes.infer(Self::NAME, &inputs[0].shape, self.keepdim)?;
        Ok(Plan::one(inputs[0].with_shape(shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        variance(Self::NAME, (self.axes, self.correction), &inputs[0], &mut outputs[0], true)
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu_variance(stream, (self.axes, self.correction), &inputs[0], &mut outputs[0], true)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let (x, y) = (cx.input(0)?, cx.output(0)?);
        let kept = |t: &Tensor| self.axes.restore(t, &x.shape(), self.keepdim);
        let op = StdBackward { axes: self.axes, correction: self.correction };
        cx.run(op, &[&x, &kept(&y)?, &kept(dy)?], &[0])
    }

    fn cases() -> Cases<Self> {
        moment_cases(|axes, correction, keepdim| Std { axes, correction, keepdim })
    }
}

/// dx = dy · (x − mean) / ((n − correction) · y), 0 where y is 0; from x and, with the axes kept, y and dy: the backward of
/// [`Std`].
#[derive(Clone, Copy, Debug)]
pub struct StdBackward {
    /// The dimensions that were reduced.
    pub axes: Axes,
    /// That of [`Std`].
    pub correction: u32,
}

impl Op for StdBackward {
    const NAME: &'static str = "std_backward";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, self.axes, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        let (x, y, dy) = (wide(&inputs[0], &mut copy)?, inputs[1], inputs[2]);
        real!(Self::NAME, x.dtype(), A => {
            let scale = A::of(1.0 / freedom(self.axes, &x.shape(), self.correction));
            let means = means::<A>(self.axes, &x)?;
            let means = View::of(means.typed::<A>(), dy.shape());
            map::<A, 4>([x, means, y, dy], &mut outputs[0], #[inline(always)] |[x, mean, y, dy]| {
                if y == A::ZERO { A::ZERO } else { dy / y * scale * (x - mean) }
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let scale = 1.0 / freedom(self.axes, &inputs[0].shape(), self.correction);
        let operands = [Some(&inputs[0]), Some(&inputs[1]), Some(&inputs[2])];
        gpu_spread(stream, gpu::Spread::SpreadStd, operands, (self.axes, scale), &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let op = |axes| StdBackward { axes, correction: 0 };
        let values = [Values::Uniform(0.5, 2.0), Values::Normal(1.0)];
        backward_cases(op, Tolerance::Sum(8.0, "a mean, a difference, products"), &values)
    }
}

/// ln Σ e^x over `axes`; −∞ over nothing. Gradient: dx = dy · e^(x − y).
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp {
    /// The dimensions to reduce.
    pub axes: Axes,
    /// Whether they stay, of size 1.
    pub keepdim: bool,
}

impl Op for LogSumExp {
    const NAME: &'static str = "logsumexp";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0]).and_outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        let shape = self.axes.infer(Self::NAME, &inputs[0].shape, self.keepdim)?;
        Ok(Plan::one(inputs[0].with_shape(shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        let x = &wide(&inputs[0], &mut copy)?;
        real!(Self::NAME, x.dtype(), A => {
            let plan = self.axes.plan(x);
            let mut largest = folded::<A, _>(&plan, &Max, x, &vec![(); plan.outputs])?;
            // An infinite shift would make NaN of infinity less infinity.
            let shifts = largest.typed_mut::<A>();
            shifts.iter_mut().filter(|m| !m.is_finite() && !m.is_nan()).for_each(|m| *m = A::ZERO);
            let mut sums = folded::<A, _>(&plan, &SumOf(#[inline(always)] |x: A, shift: A| Real::exp(x - shift)), x, shifts)?;
            let logs = sums.typed_mut::<A>();
            logs.iter_mut().zip(&*shifts).for_each(|(s, &shift)| *s = Real::ln(*s) + shift);
            store::<A>(&mut outputs[0], logs);
            Ok(())
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::fold(stream, gpu::Fold::LogSum, (&inputs[0], None), self.axes, (1.0, false), &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let (x, y) = (cx.input(0)?, cx.output(0)?);
        let kept = |t: &Tensor| self.axes.restore(t, &x.shape(), self.keepdim);
        cx.run(LogSumExpBackward { axes: self.axes }, &[&x, &kept(&y)?, &kept(dy)?], &[0])
    }

    fn cases() -> Cases<Self> {
        let tolerance =
            Tolerance::Sum(8.0, "exponentials below 1, a sum, a logarithm and the largest put back");
        let op = |axes, keepdim| LogSumExp { axes, keepdim };
        cases(&DType::FLOATS, tolerance, Values::Normal(2.0), op, true)
    }
}

/// dx = dy · e^(x − y), from x and, with the axes kept, y and dy: the backward of [`LogSumExp`]. Where y is −∞, and so every
/// x: 0.
#[derive(Clone, Copy, Debug)]
pub struct LogSumExpBackward {
    /// The dimensions that were reduced.
    pub axes: Axes,
}

impl Op for LogSumExpBackward {
    const NAME: &'static str = "logsumexp_backward";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, self.axes, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (x, y, dy) = (inputs[0], inputs[1], inputs[2]);
        real!(Self::NAME, x.dtype(), A => {
            map::<A, 3>([x, y, dy], &mut outputs[0], #[inline(always)] |[x, y, dy]| {
                dy * Real::exp(x - if y == A::NEG_INFINITY { A::ZERO } else { y })
            })
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let operands = [Some(&inputs[0]), Some(&inputs[1]), Some(&inputs[2])];
        gpu::spread(stream, gpu::Spread::SpreadLogSum, operands, None, (1.0, 1.0), &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let values = [Values::Normal(2.0), Values::Normal(1.0)];
        let tolerance =
            Tolerance::Ulp(32.0, "the rounding error of x − y is magnified by its size, here below 16");
        backward_cases(|axes| LogSumExpBackward { axes }, tolerance, &values)
    }
}

impl Tensor {
    /// The variance over dimensions `dims`, all if empty; negative ones count from the end. `correction` is 1 for the
    /// unbiased estimate, 0 for the mean square; the dimensions stay, of size 1, if `keepdim`. NaN over too few elements; an
    /// error for integers.
    #[track_caller]
    pub fn var(&self, dims: &[isize], correction: u32, keepdim: bool) -> Result<Tensor> {
        run1(Var { axes: Axes::resolve(Var::NAME, &self.shape(), dims)?, correction, keepdim }, &[self])
    }

    /// The standard deviation over dimensions `dims`: the square root of [`Tensor::var`].
    #[track_caller]
    pub fn std(&self, dims: &[isize], correction: u32, keepdim: bool) -> Result<Tensor> {
        run1(Std { axes: Axes::resolve(Std::NAME, &self.shape(), dims)?, correction, keepdim }, &[self])
    }

    /// ln Σ e^x over dimensions `dims`, all if empty, without overflow; negative ones count from the end. They stay, of size
    /// 1, if `keepdim`. An error for integers.
    #[track_caller]
    pub fn logsumexp(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        run1(LogSumExp { axes: Axes::resolve(LogSumExp::NAME, &self.shape(), dims)?, keepdim }, &[self])
    }
}
