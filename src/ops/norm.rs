//! Layer norm and RMS norm over the last dimensions, and their backwards.
//!
//! With x̂ = (x − mean) · rstd (RMS norm: mean 0) the result is y = x̂ · weight + bias. Statistics are f32 (f64 in f64), the
//! variance is taken about the mean found first, and both are saved as further outputs of the op. One backward op makes all
//! gradients in one pass; those of weight and bias are added up over fixed chunks of rows, joined pairwise.

#![forbid(unsafe_code)]

mod add;
mod body;
mod gpu;

use std::ops::RangeInclusive;

use super::reduce::{float_only, real, same_dtype, wide_dtype};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::device::Stream;
use crate::shape::IntoShape;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

pub use add::{AddLayerNorm, AddLayerNormBackward, AddNorm, AddNormBackward, AddRmsNorm, AddRmsNormBackward};
use body::{Tape, backward, forward};

super::family!(
    LayerNorm,
    LayerNormBackward,
    RmsNorm,
    RmsNormBackward,
    AddLayerNorm,
    AddLayerNormBackward,
    AddRmsNorm,
    AddRmsNormBackward
);

/// The shape of the statistics: the dimensions of `x` before the normalised ones.
fn stats_shape(op: &'static str, x: &Shape, normalized: &Shape) -> Result<Shape> {
    match x.rank().checked_sub(normalized.rank()) {
        Some(lead) if x[lead..] == normalized[..] && normalized.rank() > 0 => Shape::new(&x[..lead]),
        _ => Err(Error::shape(
            op,
            format!("the last dimensions of {x} are not the normalised shape {normalized}"),
        )),
    }
}

fn expect(op: &'static str, what: &str, found: &Shape, expected: &Shape) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} is {found}, expected {expected}")))
}

fn infer(op: &'static str, inputs: &[Meta], shape: &Shape, parameters: usize, stats: usize) -> Result<Plan> {
    same_dtype(op, inputs)?;
    if inputs.len() != 1 + parameters {
        return Err(Error::internal(format!("{} inputs, expected {}", inputs.len(), 1 + parameters)));
    }
    let lead = stats_shape(op, &inputs[0].shape, shape)?;
    inputs[1..].iter().try_for_each(|p| expect(op, "a parameter", &p.shape, shape))?;
    let mut outputs = vec![inputs[0]];
    outputs.resize(1 + stats, inputs[0].with_shape(lead).with_dtype(wide_dtype(inputs[0].dtype)));
    Ok(Plan { outputs, scratch: 0 })
}

/// The inputs of a backward in the order x, (mean), rstd, dy, (weight), (dmean), (drstd).
fn tape<'a>(inputs: &[View<'a>], centred: bool, weight: bool, stats: bool) -> Tape<'a> {
    let mut next = inputs.iter().copied();
    let mut take = |there: bool| if there { next.next() } else { None };
    let expected = "infer counted the inputs";
    Tape {
        x: take(true).expect(expected),
        mean: take(centred),
        rstd: take(true).expect(expected),
        dy: take(true).expect(expected),
        weight: take(weight),
        dmean: take(stats && centred),
        drstd: take(stats),
        dsum: None,
    }
}

fn infer_backward(
    op: &'static str,
    inputs: &[Meta],
    shape: &Shape,
    (centred, weight, bias, stats): (bool, bool, bool, bool),
) -> Result<Plan> {
    let x = inputs[0];
    float_only(op, x.dtype)?;
    let lead = x.with_shape(stats_shape(op, &x.shape, shape)?).with_dtype(wide_dtype(x.dtype));
    let parameter = x.with_shape(*shape);
    let optional = |there: bool, meta: Meta| std::iter::repeat_n(meta, usize::from(there));
    let expected: Vec<Meta> = [x]
        .into_iter()
        .chain(optional(centred, lead))
        .chain([lead, x])
        .chain(optional(weight, parameter))
        .chain(optional(stats && centred, lead))
        .chain(optional(stats, lead))
        .collect();
    if inputs != expected {
        return Err(Error::shape(op, format!("inputs are {inputs:?}, expected {expected:?}")));
    }
    let outputs = [x].into_iter().chain(optional(weight, parameter)).chain(optional(bias, parameter));
    Ok(Plan { outputs: outputs.collect(), scratch: 0 })
}

/// Runs a backward: the gradients that reached the outputs, zeros where none did, and the targets in order.
fn deliver<O: Op>(
    cx: &mut BackwardCx<'_>,
    dys: &[Option<Tensor>],
    parameters: usize,
    saved: &[Tensor],
    weight: Option<Tensor>,
    op: impl Fn(bool) -> O,
) -> Result<()> {
    let filled = |i: usize, dy: &Option<Tensor>, cx: &BackwardCx<'_>| match dy {
        Some(dy) => Ok(dy.clone()),
        None => {
            let meta = cx.output_meta(i);
            Tensor::zeros((), meta.dtype, meta.device)?.expand(meta.shape)
        }
    };
    let stats = dys[1..].iter().any(Option::is_some);
    let mut inputs = saved.to_vec();
    inputs.push(filled(0, &dys[0], cx)?);
    inputs.extend(weight);
    if stats {
        for (i, dy) in dys.iter().enumerate().skip(1) {
            inputs.push(filled(i, dy, cx)?);
        }
    }
    let targets: Vec<usize> = (0..=parameters).collect();
    cx.run(op(stats), &inputs.iter().collect::<Vec<_>>(), &targets)
}

const SHAPES: [(&[usize], usize); 10] = [
    (&[7], 1),
    (&[5, 13], 1),
    (&[2, 3, 17], 1),
    (&[2, 3, 4], 2),
    (&[3, 5], 2),
    (&[2, 1023], 1),
    (&[1, 1025], 1),
    (&[300, 5], 1),
    (&[0, 4], 1),
    (&[2, 0], 1),
];

const WHY: &str = "mean, variance, a root and products; differences from the mean are as exact as x";

/// x̂ · weight + bias over the last dimensions, x̂ = (x − mean) / √(variance + eps); inputs x, weight and bias where there
/// are such; outputs y, mean and rstd = 1 / √(variance + eps), the latter two in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// The last dimensions, over which statistics are taken.
    pub shape: Shape,
    /// Whether there is a weight, of that shape.
    pub weight: bool,
    /// Whether there is a bias, of that shape.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const INPUTS: RangeInclusive<usize> = 1..=3;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1, 2])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let parameters = usize::from(self.weight) + usize::from(self.bias);
        infer(Self::NAME, inputs, &self.shape, parameters, 2)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let bias = self.bias.then(|| &inputs[1 + usize::from(self.weight)]);
        let how = (self.shape.numel(), true, self.eps);
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(inputs[0], (weight, bias), how, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let bias = self.bias.then(|| &inputs[1 + usize::from(self.weight)]);
        gpu::forward(stream, &inputs[0], None, (weight, bias), (self.shape.numel(), true, self.eps), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let saved = [cx.input(0)?, cx.output(1)?, cx.output(2)?];
        let weight = if self.weight { Some(cx.input(1)?) } else { None };
        let LayerNorm { shape, weight: has_weight, bias, .. } = *self;
        let parameters = usize::from(has_weight) + usize::from(bias);
        let op = |stats| LayerNormBackward { shape, weight: has_weight, bias, stats };
        deliver(cx, dys, parameters, &saved, weight, op)
    }

    fn cases() -> Cases<Self> {
        let mut list = Vec::new();
        for (k, (dims, normalized)) in SHAPES.iter().enumerate() {
            let shape = Shape::from_dims(&dims[dims.len() - normalized..]);
            for (weight, bias) in [(k % 2 == 0, k % 3 == 0), (true, true)] {
                let mut inputs = vec![Arg::new(dims, Values::Normal(2.0))];
                inputs.extend(weight.then(|| Arg::new(&shape, Values::Normal(1.0))));
                inputs.extend(bias.then(|| Arg::new(&shape, Values::Normal(1.0))));
                list.push(Case { op: LayerNorm { shape, weight, bias, eps: 1e-5 }, inputs });
            }
        }
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// dx, dweight and dbias (where there are such parameters) of [`LayerNorm`], from x, mean, rstd, dy, the weight if there is
/// one and, if `stats`, the gradients of mean and rstd.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormBackward {
    /// The last dimensions, over which statistics were taken.
    pub shape: Shape,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether gradients reached mean or rstd.
    pub stats: bool,
}

impl Op for LayerNormBackward {
    const NAME: &'static str = "layer_norm_backward";
    const INPUTS: RangeInclusive<usize> = 4..=7;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, inputs, &self.shape, (true, self.weight, self.bias, self.stats))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let tape = tape(inputs, true, self.weight, self.stats);
        let (dx, params) = outputs.split_at_mut(1);
        let (weights, biases) = params.split_at_mut(usize::from(self.weight));
        real!(Self::NAME, inputs[0].dtype(), A => {
            backward::<A>(&tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), biases.first_mut()])
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let tape = tape(inputs, true, self.weight, self.stats);
        let (dx, params) = outputs.split_at_mut(1);
        let (weights, biases) = params.split_at_mut(usize::from(self.weight));
        let dparams = [weights.first_mut(), biases.first_mut()];
        gpu::backward(stream, &tape, self.shape.numel(), &mut dx[0], dparams)
    }

    fn cases() -> Cases<Self> {
        let op = |shape, k: usize| LayerNormBackward {
            shape,
            weight: k.is_multiple_of(2),
            bias: !k.is_multiple_of(3),
            stats: k % 4 > 1,
        };
        backward_cases(op, true, |o| (o.weight, o.stats))
    }
}

/// Cases of a backward over all shapes; `flags` tells whether there is a weight and whether gradients reached the statistics.
fn backward_cases<O: Copy>(
    op: impl Fn(Shape, usize) -> O,
    centred: bool,
    flags: impl Fn(O) -> (bool, bool),
) -> Cases<O> {
    let case = |(k, (dims, normalized)): (usize, &(&[usize], usize))| {
        let (lead, shape) = dims.split_at(dims.len() - normalized);
        let op = op(Shape::from_dims(shape), k);
        let (weight, stats) = flags(op);
        let of = |there: bool, dims: &[usize], values: Values| there.then(|| Arg::constant(dims, values));
        // The statistics are f32 beside 16-bit inputs, so the dtypes below leave those out.
        let inputs = [
            of(true, dims, Values::Normal(2.0)),
            of(centred, lead, Values::Normal(0.1)),
            of(true, lead, Values::Uniform(0.3, 0.7)),
            of(true, dims, Values::Normal(1.0)),
            of(weight, shape, Values::Normal(1.0)),
            of(stats && centred, lead, Values::Normal(1.0)),
            of(stats, lead, Values::Normal(1.0)),
        ];
        Case { op, inputs: inputs.into_iter().flatten().collect() }
    };
    let list = SHAPES.iter().enumerate().map(case).collect();
    // Over equal rows all additions of a chain may round to one side.
    let why = "chains of at most 32 additions joined in a tree, and the roundings of what is added";
    Cases { dtypes: &[DType::F32, DType::F64], tolerance: Tolerance::Sum(40.0, why), list }
}

/// x · weight / √(mean of x² + eps) over the last dimensions; inputs x and weight where there is one; outputs y and
/// rstd = 1 / √(mean of x² + eps), the latter in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// The last dimensions, over which the mean is taken.
    pub shape: Shape,
    /// Whether there is a weight, of that shape.
    pub weight: bool,
    /// Added to the mean square.
    pub eps: f64,
}

impl Op for RmsNorm {
    const NAME: &'static str = "rms_norm";
    const INPUTS: RangeInclusive<usize> = 1..=2;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, inputs, &self.shape, usize::from(self.weight), 1)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let how = (self.shape.numel(), false, self.eps);
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(inputs[0], (weight, None), how, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        gpu::forward(stream, &inputs[0], None, (weight, None), (self.shape.numel(), false, self.eps), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let saved = [cx.input(0)?, cx.output(1)?];
        let weight = if self.weight { Some(cx.input(1)?) } else { None };
        let RmsNorm { shape, weight: has_weight, .. } = *self;
        let op = |stats| RmsNormBackward { shape, weight: has_weight, stats };
        deliver(cx, dys, usize::from(has_weight), &saved, weight, op)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, (dims, normalized)): (usize, &(&[usize], usize))| {
            let shape = Shape::from_dims(&dims[dims.len() - normalized..]);
            let weight = k % 3 > 0;
            let mut inputs = vec![Arg::new(dims, Values::Normal(2.0))];
            inputs.extend(weight.then(|| Arg::new(&shape, Values::Normal(1.0))));
            Case { op: RmsNorm { shape, weight, eps: 1e-5 }, inputs }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// dx and dweight (where there is one) of [`RmsNorm`], from x, rstd, dy, the weight if there is one and, if `stats`, the
/// gradient of rstd.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormBackward {
    /// The last dimensions, over which the mean was taken.
    pub shape: Shape,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether a gradient reached rstd.
    pub stats: bool,
}

impl Op for RmsNormBackward {
    const NAME: &'static str = "rms_norm_backward";
    const INPUTS: RangeInclusive<usize> = 3..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, inputs, &self.shape, (false, self.weight, false, self.stats))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let tape = tape(inputs, false, self.weight, self.stats);
        let (dx, weights) = outputs.split_at_mut(1);
        real!(Self::NAME, inputs[0].dtype(), A => {
            backward::<A>(&tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), None])
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let tape = tape(inputs, false, self.weight, self.stats);
        let (dx, weights) = outputs.split_at_mut(1);
        gpu::backward(stream, &tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), None])
    }

    fn cases() -> Cases<Self> {
        let op = |shape, k: usize| RmsNormBackward { shape, weight: k.is_multiple_of(2), stats: k % 4 > 1 };
        backward_cases(op, false, |o| (o.weight, o.stats))
    }
}

impl Tensor {
    /// Layer norm over the last dimensions, which must be `shape`: (x − mean) / √(variance + eps), times `weight`, plus
    /// `bias`, where given (both of that shape, of this dtype). PyTorch's usual `eps` is 1e-5.
    #[track_caller]
    pub fn layer_norm(
        &self,
        shape: impl IntoShape,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let op =
            LayerNorm { shape: shape.into_shape()?, weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight, bias].into_iter().flatten().collect();
        Ok(run(op, &inputs)?.swap_remove(0))
    }

    /// RMS norm over the last dimensions, which must be `shape`: x / √(mean of x² + eps), times `weight` where given (of that
    /// shape, of this dtype). PyTorch's default `eps` is the machine epsilon of the dtype.
    #[track_caller]
    pub fn rms_norm(&self, shape: impl IntoShape, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = RmsNorm { shape: shape.into_shape()?, weight: weight.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight].into_iter().flatten().collect();
        Ok(run(op, &inputs)?.swap_remove(0))
    }
}
