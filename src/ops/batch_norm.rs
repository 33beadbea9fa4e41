//! Batch norm: over a channel's elements of the whole batch while training, with running statistics otherwise.
//!
//! x̂ = (x − mean) / √(variance + eps), y = x̂ · weight + bias; channels are dimension 1. Statistics are f32 (f64 in f64). The
//! statistics that a pass found go into the running ones in place, by an op of its own.

#![forbid(unsafe_code)]

pub(super) mod gpu;
pub(super) mod sets;

use std::ops::RangeInclusive;

use self::sets::{Sets, Sums, Tape};
use super::reduce::{float_only, into_wide, packed, real, store, wide_dtype};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run, run_into, run1};
use crate::device::Stream;
use crate::dtype::Real;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View, no_grad};
use crate::{DType, Error, Result, Shape};

super::family!(BatchNorm, BatchNormEval, BatchNormBackward, RunningStats);

/// The shape `[C]` of the channels of `x`.
fn channels(op: &'static str, x: &Meta) -> Result<Shape> {
    float_only(op, x.dtype)?;
    if x.shape.rank() < 2 {
        return Err(Error::shape(op, format!("needs [N, C, ..], not {}", x.shape)));
    }
    Shape::new(&x.shape[1..2])
}

/// Checks that the inputs after the first `before` are as many parameters of shape `shape` and the type of `x`.
pub(super) fn parameters(
    op: &'static str,
    inputs: &[Meta],
    before: usize,
    shape: Shape,
    count: usize,
) -> Result<()> {
    if inputs.len() != before + count {
        return Err(Error::shape(op, format!("{} inputs given, {} needed", inputs.len(), before + count)));
    }
    match inputs[before..].iter().find(|m| m.shape != shape || m.dtype != inputs[0].dtype) {
        Some(other) => {
            let message = format!("a parameter is {other}, expected {} of {shape}", inputs[0].dtype);
            Err(if other.shape == shape { Error::dtype(op, message) } else { Error::shape(op, message) })
        }
        None => Ok(()),
    }
}

/// Checks that the inputs `which` are statistics of shape `shape`: in f32 (f64 in f64) or in the type of x.
pub(super) fn statistics(op: &'static str, inputs: &[Meta], which: [usize; 2], shape: Shape) -> Result<()> {
    let dtype = inputs[0].dtype;
    match which.into_iter().find(|&i| inputs[i].shape != shape) {
        Some(i) => Err(Error::shape(op, format!("statistics are {}, expected {shape}", inputs[i].shape))),
        None => match which.into_iter().find(|&i| ![dtype, wide_dtype(dtype)].contains(&inputs[i].dtype)) {
            Some(i) => {
                let message = format!("statistics of {} for an input of {dtype}", inputs[i].dtype);
                Err(Error::dtype(op, message))
            }
            None => Ok(()),
        },
    }
}

/// The parameters among the inputs from number `from` on.
pub(super) fn affine<'a, 'b>(
    inputs: &'b [View<'a>],
    from: usize,
    (weight, bias): (bool, bool),
) -> [Option<&'b View<'a>>; 2] {
    [weight.then(|| &inputs[from]), bias.then(|| &inputs[from + usize::from(weight)])]
}

/// The forward of a norm: `stats` as given, or those of `x`, which go to the outputs after the first.
pub(super) fn forward<A: Real>(
    sets: Sets,
    eps: f64,
    x: &View<'_>,
    stats: Option<[&View<'_>; 2]>,
    parameters: [Option<&View<'_>>; 2],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let mut copies = [const { None }; 5];
    let [x_copy, mean_copy, variance_copy, weight_copy, bias_copy] = &mut copies;
    let x = packed::<A>(x, x_copy)?;
    let weight = parameters[0].map(|v| packed::<A>(v, weight_copy)).transpose()?;
    let bias = parameters[1].map(|v| packed::<A>(v, bias_copy)).transpose()?;
    let found;
    let (mean, variance) = match stats {
        Some([mean, variance]) => (packed::<A>(mean, mean_copy)?, packed::<A>(variance, variance_copy)?),
        None => {
            found = sets::moments(sets, x)?;
            store(&mut outputs[1], &found.0);
            store(&mut outputs[2], &found.1);
            (&found.0[..], &found.1[..])
        }
    };
    let rstd = sets::reciprocal(variance, eps);
    into_wide::<A>(&mut outputs[0], |y, add| {
        sets::normalise(sets, x, (mean, &rstd), (weight, bias), (y, add));
        Ok(())
    })
}

/// The backward of a norm; inputs x, mean, variance, dy and the weight if there is one, outputs dx and the parameters'
/// gradients. `found`: whether the statistics are those of x.
pub(super) fn backward<A: Real>(
    sets: Sets,
    (eps, found): (f64, bool),
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
    (has_weight, has_bias): (bool, bool),
) -> Result<()> {
    let mut copies = [const { None }; 5];
    let [x, mean, variance, dy, weight] = &mut copies;
    let rstd = sets::reciprocal(packed::<A>(&inputs[2], variance)?, eps);
    let tape = Tape {
        x: packed::<A>(&inputs[0], x)?,
        dy: packed::<A>(&inputs[3], dy)?,
        mean: packed::<A>(&inputs[1], mean)?,
        rstd: &rstd,
        weight: if has_weight { Some(packed::<A>(&inputs[4], weight)?) } else { None },
    };
    let (dx, parameters) = outputs.split_at_mut(1);
    let wanted = parameters.iter().any(|p| p.wanted());
    let sums = if wanted || found && dx[0].wanted() { Some(Sums::new(sets, &tape)?) } else { None };
    if dx[0].wanted() {
        let sums = sums.as_ref().filter(|_| found);
        into_wide::<A>(&mut dx[0], |out, add| sets::dx(sets, &tape, sums, (out, add)))?;
    }
    if let Some(sums) = sums.filter(|_| wanted) {
        let totals = sums.of_channels::<A>(sets)?;
        let there = [has_weight, has_bias];
        let totals = totals.iter().zip(there).filter(|(_, there)| *there).map(|(total, _)| total);
        for (out, total) in parameters.iter_mut().zip(totals).filter(|(out, _)| out.wanted()) {
            store(out, total.typed::<A>());
        }
    }
    Ok(())
}

/// The metas of a backward's outputs: x, and `shape` for each parameter.
pub(super) fn gradients(x: Meta, shape: Shape, (weight, bias): (bool, bool)) -> Plan {
    let mut outputs = vec![x];
    outputs.resize(1 + usize::from(weight) + usize::from(bias), x.with_shape(shape));
    Plan { outputs, scratch: 0 }
}

const WHY: &str = "mean, variance, a root and products; differences from the mean are as exact as x";
const WHY_BACK: &str = "chains of at most 32 additions joined in a tree, and the roundings of what is added";

/// x̂ · weight + bias with the mean and the variance of each channel of x over the batch; inputs x `[N, C, ..]`, weight and
/// bias `[C]` where there are such; outputs y and, in f32 (f64 in f64), mean and variance (of all elements, not one less).
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for BatchNorm {
    const NAME: &'static str = "batch_norm";
    const INPUTS: RangeInclusive<usize> = 1..=3;
    const STATISTICS: usize = 2;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1, 2])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        let shape = channels(Self::NAME, &x)?;
        parameters(Self::NAME, inputs, 1, shape, usize::from(self.weight) + usize::from(self.bias))?;
        if Sets::of_channels(&x.shape).size() == 1 {
            let message =
                format!("one value per channel in {}: nothing to normalise by while training", x.shape);
            return Err(Error::shape(Self::NAME, message).with_help("use batches of more than one sample"));
        }
        let stats = x.with_shape(shape).with_dtype(wide_dtype(x.dtype));
        Ok(Plan { outputs: vec![x, stats, stats], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sets = Sets::of_channels(&inputs[0].shape());
        let affine = affine(inputs, 1, (self.weight, self.bias));
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(sets, self.eps, &inputs[0], None, affine, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sets = Sets::of_channels(&inputs[0].shape());
        let affine = affine(inputs, 1, (self.weight, self.bias));
        gpu::forward(stream, sets, self.eps, &inputs[0], None, affine, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let BatchNorm { weight, bias, eps } = *self;
        let op = BatchNormBackward { weight, bias, eps, training: true };
        let mut inputs = vec![cx.input(0)?, cx.output(1)?, cx.output(2)?, dy.clone()];
        inputs.extend(if weight { Some(cx.input(1)?) } else { None });
        let targets: Vec<usize> = (0..1 + usize::from(weight) + usize::from(bias)).collect();
        cx.run(op, &inputs.iter().collect::<Vec<_>>(), &targets)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, shape): (usize, &&[usize])| {
            let (weight, bias) = (k % 3 != 1, k % 3 != 2);
            let parameter = |there: bool| there.then(|| Arg::new(&shape[1..2], Values::Normal(1.0)));
            let inputs = [Some(Arg::new(shape, Values::Normal(2.0))), parameter(weight), parameter(bias)];
            Case { op: BatchNorm { weight, bias, eps: 1e-5 }, inputs: inputs.into_iter().flatten().collect() }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// Shapes of the cases.
const SHAPES: [&[usize]; 12] = [
    &[4, 3],
    &[2, 3, 5],
    &[3, 2, 4, 5],
    &[1, 2, 3, 3],
    &[70, 17],
    &[2, 3, 1, 33],
    &[5, 1, 40],
    &[2, 3, 2, 2, 3],
    &[0, 3, 4],
    &[2, 2, 300],
    &[4, 0],
    &[2, 0, 3],
];

/// x̂ · weight + bias with the statistics that are given: inputs x `[N, C, ..]`, mean and variance `[C]` (in f32, f64 in f64,
/// or the type of x), weight and bias `[C]` where there are such. The statistics get no gradient.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormEval {
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for BatchNormEval {
    const NAME: &'static str = "batch_norm_eval";
    const INPUTS: RangeInclusive<usize> = 3..=5;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1, 2, 3] } else { &[0, 1, 2] })
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let shape = channels(Self::NAME, &inputs[0])?;
        statistics(Self::NAME, inputs, [1, 2], shape)?;
        parameters(Self::NAME, inputs, 3, shape, usize::from(self.weight) + usize::from(self.bias))?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (x, sets) = (&inputs[0], Sets::of_channels(&inputs[0].shape()));
        let (stats, affine) = (Some([&inputs[1], &inputs[2]]), affine(inputs, 3, (self.weight, self.bias)));
        real!(Self::NAME, x.dtype(), A => forward::<A>(sets, self.eps, x, stats, affine, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sets = Sets::of_channels(&inputs[0].shape());
        let (stats, affine) = (Some([&inputs[1], &inputs[2]]), affine(inputs, 3, (self.weight, self.bias)));
        gpu::forward(stream, sets, self.eps, &inputs[0], stats, affine, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if cx.needs(1) || cx.needs(2) {
            return Err(Error::unsupported(Self::NAME, "the statistics get no gradient")
                .with_help("call detach() on them"));
        }
        let BatchNormEval { weight, bias, eps } = *self;
        let op = BatchNormBackward { weight, bias, eps, training: false };
        let mut inputs = vec![cx.input(0)?, cx.input(1)?, cx.input(2)?, dy.clone()];
        inputs.extend(if weight { Some(cx.input(3)?) } else { None });
        let parameters = usize::from(weight) + usize::from(bias);
        let targets: Vec<usize> = [0].into_iter().chain(3..3 + parameters).collect();
        cx.run(op, &inputs.iter().collect::<Vec<_>>(), &targets)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, shape): (usize, &&[usize])| {
            let (weight, bias) = (k % 3 != 1, k % 3 != 2);
            let stats = |values| Some(Arg::constant(&shape[1..2], values));
            let parameter = |there: bool| there.then(|| Arg::new(&shape[1..2], Values::Normal(1.0)));
            let inputs = [
                Some(Arg::new(shape, Values::Normal(2.0))),
                stats(Values::Normal(1.0)),
                stats(Values::Uniform(0.5, 3.0)),
                parameter(weight),
                parameter(bias),
            ];
            let inputs = inputs.into_iter().flatten().collect();
            Case { op: BatchNormEval { weight, bias, eps: 1e-5 }, inputs }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// dx, dweight and dbias (where there are such parameters) of [`BatchNorm`] or, unless `training`, of [`BatchNormEval`], from
/// x, mean, variance, dy and the weight if there is one.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormBackward {
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
    /// Whether the statistics are those of x, so that they change with it.
    pub training: bool,
}

impl Op for BatchNormBackward {
    const NAME: &'static str = "batch_norm_backward";
    const INPUTS: RangeInclusive<usize> = 4..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let shape = channels(Self::NAME, &inputs[0])?;
        statistics(Self::NAME, inputs, [1, 2], shape)?;
        if inputs[3] != inputs[0] {
            return Err(Error::shape(Self::NAME, format!("dy is {}, x {}", inputs[3], inputs[0])));
        }
        parameters(Self::NAME, inputs, 4, shape, usize::from(self.weight))?;
        Ok(gradients(inputs[0], shape, (self.weight, self.bias)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sets = Sets::of_channels(&inputs[0].shape());
        let (how, there) = ((self.eps, self.training), (self.weight, self.bias));
        real!(Self::NAME, inputs[0].dtype(), A => backward::<A>(sets, how, inputs, outputs, there))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sets = Sets::of_channels(&inputs[0].shape());
        gpu::backward(stream, sets, (self.eps, self.training), inputs, outputs, (self.weight, self.bias))
    }

    fn cases() -> Cases<Self> {
        let case = |(k, shape): (usize, &&[usize])| {
            let op =
                BatchNormBackward { weight: k % 3 != 1, bias: k % 3 != 2, eps: 1e-5, training: k % 2 == 0 };
            Case { op, inputs: backward_inputs(shape, &shape[1..2], &shape[1..2], op.weight) }
        };
        let list = SHAPES.iter().cycle().take(2 * SHAPES.len()).enumerate();
        // The second time round, the other half trains.
        let list = list.map(|(k, shape)| case((k + usize::from(k >= SHAPES.len()), shape))).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(40.0, WHY_BACK), list }
    }
}

/// x, mean, variance, dy and the weight if there is one, for the cases of a backward.
pub(super) fn backward_inputs(x: &[usize], stats: &[usize], parameter: &[usize], weight: bool) -> Vec<Arg> {
    let mut inputs = vec![
        Arg::constant(x, Values::Normal(2.0)),
        Arg::constant(stats, Values::Normal(0.1)),
        Arg::constant(stats, Values::Uniform(2.0, 9.0)),
        Arg::constant(x, Values::Normal(1.0)),
    ];
    inputs.extend(weight.then(|| Arg::constant(parameter, Values::Normal(1.0))));
    inputs
}

/// Running statistics after one more batch: running = (1 − momentum) · running + momentum · batch, with the variance
/// of `count` elements taken over `count − 1`. Without a momentum the average of all batches, in which case the count of batches
/// decides. Inputs: mean and variance of the batch `[C]`, and either nothing more, then the outputs are changed in place
/// ([`Mode::Update`]), or the old outputs. Outputs: running mean, running variance `[C]`, number of batches (i64).
#[derive(Clone, Copy, Debug)]
pub struct RunningStats {
    /// How much the new batch counts; `None`: as much as each before it.
    pub momentum: Option<f64>,
    /// The elements that the variance was taken over.
    pub count: usize,
}

impl RunningStats {
    /// The factor from the variance of all elements to that of one less.
    fn unbiased(&self) -> f64 {
        self.count as f64 / (self.count as f64 - 1.0).max(1.0)
    }
}

impl Op for RunningStats {
    const NAME: &'static str = "running_stats";
    const INPUTS: RangeInclusive<usize> = 2..=5;
    const UPDATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let stats = inputs[0];
        if ![DType::F32, DType::F64].contains(&stats.dtype) {
            return Err(Error::dtype(Self::NAME, format!("statistics are f32 or f64, not {}", stats.dtype)));
        }
        if let Some(other) = inputs.iter().take(4).find(|m| m.dtype != stats.dtype) {
            return Err(Error::dtype(
                Self::NAME,
                format!("statistics of {} and {}", stats.dtype, other.dtype),
            ));
        }
        let batches = stats.with_shape(Shape::from_dims(&[])).with_dtype(DType::I64);
        let outputs = vec![stats, stats, batches];
        let complete = inputs.len() == 2 || inputs.len() == 5 && inputs[2..] == outputs;
        if stats.shape.rank() != 1 || inputs[1] != stats || !complete {
            let message =
                format!("inputs are {inputs:?}, expected {stats} twice, then nothing or {outputs:?}");
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let [mean, variance, batches] = outputs else {
            return Err(Error::internal("infer gives three outputs"));
        };
        in_place(inputs, mean)?;
        if inputs.len() == 5 {
            let mut copy = None;
            batches.slice::<i64>().copy_from_slice(packed::<i64>(&inputs[4], &mut copy)?);
        }
        let batches = batches.slice::<i64>();
        batches[0] = batches[0].wrapping_add(1);
        let momentum = self.momentum.unwrap_or(1.0 / batches[0] as f64);
        real!(Self::NAME, inputs[0].dtype(), A => {
            let unbiased = A::of(self.unbiased());
            let momentum = A::of(momentum);
            for (i, (out, scale)) in [mean, variance].into_iter().zip([A::ONE, unbiased]).enumerate() {
                let (mut copy, mut old_copy) = (None, None);
                let new = packed::<A>(&inputs[i], &mut copy)?;
                if inputs.len() == 5 {
                    out.slice::<A>().copy_from_slice(packed::<A>(&inputs[2 + i], &mut old_copy)?);
                }
                for (old, &new) in out.slice::<A>().iter_mut().zip(new) {
                    *old = (A::ONE - momentum) * *old + momentum * (new * scale);
                }
            }
            Ok(())
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        in_place(inputs, &outputs[0])?;
        gpu::running(stream, self.momentum, self.unbiased(), inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        let case = |(n, momentum, count): (usize, Option<f64>, usize)| {
            let of = |values| Arg::constant(&[n], values);
            let inputs = vec![
                of(Values::Normal(1.0)),
                of(Values::Uniform(0.5, 2.0)),
                of(Values::Normal(1.0)),
                of(Values::Uniform(0.5, 2.0)),
                Arg::typed(&[], Values::Exactly(vec![3.0]), DType::I64),
            ];
            Case { op: RunningStats { momentum, count }, inputs }
        };
        let list =
            [(5, Some(0.1), 7), (300, None, 2), (1, Some(1.0), 1000), (0, Some(0.1), 3), (33, Some(0.0), 1)];
        Cases {
            dtypes: &[DType::F32, DType::F64],
            tolerance: Tolerance::Sum(4.0, "two products of rounded factors and a sum"),
            list: list.into_iter().map(case).collect(),
        }
    }
}

/// Checks that outputs whose old values are not among the inputs hold them.
fn in_place(inputs: &[View<'_>], output: &Out<'_>) -> Result<()> {
    if inputs.len() == 2 && output.mode() != Mode::Update {
        let message = "the old statistics are neither inputs nor changed in place";
        return Err(Error::argument(message).with_op(RunningStats::NAME));
    }
    Ok(())
}

impl Tensor {
    /// Batch norm with the statistics of this batch `[N, C, ..]`, as in training: (x − mean) / √(variance + eps), times
    /// `weight`, plus `bias`, where given (`[C]`, of this dtype). PyTorch's usual `eps` is 1e-5. Gives the result, and mean
    /// and variance (of all elements, not one less) of each channel in f32 (f64 in f64), which carry no gradient. An error
    /// where a channel has one value only.
    #[track_caller]
    pub fn batch_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let op = BatchNorm { weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight, bias].into_iter().flatten().collect();
        let mut outputs = run(op, &inputs)?.into_iter();
        let mut next = || outputs.next().ok_or_else(|| Error::internal("batch norm has three outputs"));
        Ok((next()?, next()?, next()?))
    }

    /// Batch norm with given statistics `[C]`, as in evaluation: see [`Tensor::batch_norm`]. Mean and variance are f32 (f64
    /// in f64) or of this dtype, and get no gradient.
    #[track_caller]
    pub fn batch_norm_eval(
        &self,
        mean: &Tensor,
        variance: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let op = BatchNormEval { weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> =
            [Some(self), Some(mean), Some(variance), weight, bias].into_iter().flatten().collect();
        run1(op, &inputs)
    }
}

/// Changes running statistics in place by those of one more batch of `count` elements a channel: see [`RunningStats`]. `stats`: mean and
/// variance of the batch; `running`: mean, variance, number of batches.
#[track_caller]
pub fn update_running_stats(
    op: RunningStats,
    stats: [&Tensor; 2],
    [mean, variance, batches]: [&Tensor; 3],
) -> Result<()> {
    let outputs = [(mean, Mode::Update), (variance, Mode::Update), (batches, Mode::Update)];
    no_grad(|| run_into(op, &stats, &outputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// A variance beyond f32 makes x̂ 0, whatever the sums over rows would be without it.
    #[test]
    fn rows_too_far_apart_have_no_gradient() {
        let tensor =
            |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, Device::Cpu).unwrap();
        let signs = [1.0, -1.0, 1.0, -1.0];
        let (x, dy) = (tensor(&signs.map(|s| s * 2e38), &[4, 1]), tensor(&signs, &[4, 1]));
        let (mean, variance) = (tensor(&[0.0], &[1]), tensor(&[f32::INFINITY], &[1]));
        let op = BatchNormBackward { weight: true, bias: true, eps: 1e-5, training: true };
        let gradients = run(op, &[&x, &mean, &variance, &dy, &tensor(&[1.0], &[1])]).unwrap();
        for gradient in gradients {
            assert!(gradient.to_f64_vec().unwrap().iter().all(|&g| g == 0.0), "{gradient:?}");
        }
    }
}
