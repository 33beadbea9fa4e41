//! A residual added and the sum normed, in one pass: what stands between two blocks of a transformer.
//!
//! The sum is rounded to the tensors' type and the norm is of the rounded sum, so that bits are those of an addition followed
//! by a norm. Both summands have one gradient, made by one op from those of sum and norm; they share its memory.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::body::{Tape, backward, forward_sum};
use super::{WHY, expect, gpu};
use crate::device::Stream;
use crate::ops::reduce::{float_only, real, same_dtype, wide_dtype};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// x + residual and its norm over the last dimension. Inputs x, residual, weight and bias where there are such; outputs sum, y
/// and, in f32 (f64 in f64), mean if `CENTRED` and rstd of the sum.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm<const CENTRED: bool> {
    /// Whether there is a weight, of the last dimension's size.
    pub weight: bool,
    /// Whether there is a bias, of that size.
    pub bias: bool,
    /// Added to the variance, or to the mean square.
    pub eps: f64,
}

/// dx (which is the residual's gradient too), dweight and dbias where there are such, of [`AddNorm`]; from sum, mean if
/// `CENTRED`, rstd, dy, the weight if there is one and, if `dsum`, the gradient of the sum.
#[derive(Clone, Copy, Debug)]
pub struct AddNormBackward<const CENTRED: bool> {
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether a gradient reached the sum.
    pub dsum: bool,
}

/// x + residual and its layer norm.
pub type AddLayerNorm = AddNorm<true>;
/// The gradients of [`AddLayerNorm`].
pub type AddLayerNormBackward = AddNormBackward<true>;
/// x + residual and its RMS norm.
pub type AddRmsNorm = AddNorm<false>;
/// The gradients of [`AddRmsNorm`].
pub type AddRmsNormBackward = AddNormBackward<false>;

/// The shapes of the normalised rows and of the statistics.
fn shapes(op: &'static str, x: &Shape) -> Result<(Shape, Shape)> {
    match &x[..] {
        [lead @ .., n] => Ok((Shape::new(&[*n])?, Shape::new(lead)?)),
        [] => Err(Error::shape(op, "a 0-d tensor has no last dimension to norm over")),
    }
}

impl<const CENTRED: bool> AddNorm<CENTRED> {
    fn affine<'a, 'b>(&self, inputs: &'b [View<'a>]) -> (Option<&'b View<'a>>, Option<&'b View<'a>>) {
        let weight = self.weight.then(|| &inputs[2]);
        (weight, self.bias.then(|| &inputs[2 + usize::from(self.weight)]))
    }
}

impl<const CENTRED: bool> Op for AddNorm<CENTRED> {
    const NAME: &'static str = if CENTRED { "add_layer_norm" } else { "add_rms_norm" };
    const INPUTS: RangeInclusive<usize> = 2..=4;
    const STATISTICS: usize = if CENTRED { 2 } else { 1 };

    fn saves(&self, _: &[bool]) -> Saves {
        let saves = Saves::outputs(if CENTRED { &[0, 2, 3] } else { &[0, 2] });
        if self.weight { saves.and_inputs(&[2]) } else { saves }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_dtype(Self::NAME, inputs)?;
        let (x, parameters) = (inputs[0], usize::from(self.weight) + usize::from(self.bias));
        if inputs.len() != 2 + parameters {
            let message = format!("{} inputs, expected {}", inputs.len(), 2 + parameters);
            return Err(Error::internal(message));
        }
        let (row, lead) = shapes(Self::NAME, &x.shape)?;
        expect(Self::NAME, "the residual", &inputs[1].shape, &x.shape)?;
        inputs[2..].iter().try_for_each(|p| expect(Self::NAME, "a parameter", &p.shape, &row))?;
        let mut outputs = vec![x, x];
        let statistics = x.with_shape(lead).with_dtype(wide_dtype(x.dtype));
        outputs.resize(2 + Self::STATISTICS, statistics);
        Ok(Plan { outputs, scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (shape, affine) = (inputs[0].shape(), self.affine(inputs));
        let how = (shape[shape.rank() - 1], CENTRED, self.eps);
        dispatch!(float inputs[0].dtype(), T => forward_sum::<T>([inputs[0], inputs[1]], affine, how, outputs),
            else float_only(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (shape, affine) = (inputs[0].shape(), self.affine(inputs));
        let how = (shape[shape.rank() - 1], CENTRED, self.eps);
        let (sum, outs) = outputs.split_at_mut(1);
        gpu::forward(stream, &inputs[0], Some((&inputs[1], &mut sum[0])), affine, how, outs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let dsum = dys[0].as_ref();
        let Some(dy) = &dys[1] else {
            let Some(dsum) = dsum else { return Ok(()) };
            cx.give(0, dsum.clone())?;
            return cx.give(1, dsum.clone());
        };
        let op = AddNormBackward::<CENTRED> { weight: self.weight, bias: self.bias, dsum: dsum.is_some() };
        let mut inputs = vec![cx.output(0)?, cx.output(2)?];
        inputs.extend(if CENTRED { Some(cx.output(3)?) } else { None });
        inputs.push(dy.clone());
        inputs.extend(if self.weight { Some(cx.input(2)?) } else { None });
        inputs.extend(dsum.cloned());
        let parameters = usize::from(self.weight) + usize::from(self.bias);
        let targets: Vec<usize> = std::iter::once(0).chain(2..2 + parameters).collect();
        cx.run_shared(op, &inputs.iter().collect::<Vec<_>>(), &targets, 1)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, dims): (usize, &&[usize])| {
            let (weight, bias) = (k % 3 != 1, k % 3 == 0);
            let row = &dims[dims.len() - 1..];
            let mut inputs = vec![Arg::new(dims, Values::Normal(2.0)), Arg::new(dims, Values::Normal(1.0))];
            inputs.extend(weight.then(|| Arg::new(row, Values::Normal(1.0))));
            inputs.extend(bias.then(|| Arg::new(row, Values::Normal(1.0))));
            Case { op: Self { weight, bias, eps: 1e-5 }, inputs }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

const SHAPES: [&[usize]; 8] =
    [&[7], &[5, 13], &[2, 3, 16], &[2, 1025], &[2, 2056], &[70, 5], &[0, 4], &[2, 0]];

impl<const CENTRED: bool> AddNormBackward<CENTRED> {
    fn tape<'a>(&self, inputs: &[View<'a>]) -> Tape<'a> {
        let mut next = inputs.iter().copied();
        let mut take = |there: bool| if there { next.next() } else { None };
        let expected = "infer counted the inputs";
        Tape {
            x: take(true).expect(expected),
            mean: take(CENTRED),
            rstd: take(true).expect(expected),
            dy: take(true).expect(expected),
            weight: take(self.weight),
            dmean: None,
            drstd: None,
            dsum: take(self.dsum),
        }
    }
}

impl<const CENTRED: bool> Op for AddNormBackward<CENTRED> {
    const NAME: &'static str = if CENTRED { "add_layer_norm_backward" } else { "add_rms_norm_backward" };
    const INPUTS: RangeInclusive<usize> = 3..=6;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        float_only(Self::NAME, x.dtype)?;
        let (row, lead) = shapes(Self::NAME, &x.shape)?;
        let (row, lead) = (x.with_shape(row), x.with_shape(lead).with_dtype(wide_dtype(x.dtype)));
        let optional = |there: bool, meta: Meta| there.then_some(meta);
        let expected = [Some(x), optional(CENTRED, lead), Some(lead), Some(x), optional(self.weight, row)];
        let expected: Vec<Meta> = expected.into_iter().chain([optional(self.dsum, x)]).flatten().collect();
        if inputs != expected {
            return Err(Error::shape(Self::NAME, format!("inputs are {inputs:?}, expected {expected:?}")));
        }
        let outputs = [Some(x), optional(self.weight, row), optional(self.bias, row)];
        Ok(Plan { outputs: outputs.into_iter().flatten().collect(), scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (tape, shape) = (self.tape(inputs), inputs[0].shape());
        let (dx, parameters) = outputs.split_at_mut(1);
        let (weights, biases) = parameters.split_at_mut(usize::from(self.weight));
        real!(Self::NAME, inputs[0].dtype(), A => {
            let parameters = [weights.first_mut(), biases.first_mut()];
            backward::<A>(&tape, shape[shape.rank() - 1], &mut dx[0], parameters)
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (tape, shape) = (self.tape(inputs), inputs[0].shape());
        let (dx, parameters) = outputs.split_at_mut(1);
        let (weights, biases) = parameters.split_at_mut(usize::from(self.weight));
        let parameters = [weights.first_mut(), biases.first_mut()];
        gpu::backward(stream, &tape, shape[shape.rank() - 1], &mut dx[0], parameters)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, dims): (usize, &&[usize])| {
            let op = Self { weight: k % 3 != 1, bias: CENTRED && k % 2 == 0, dsum: k % 4 != 3 };
            let (lead, row) = dims.split_at(dims.len() - 1);
            let of =
                |there: bool, dims: &[usize], v: f64| there.then(|| Arg::constant(dims, Values::Normal(v)));
            let rstd = Arg::typed(lead, Values::Uniform(0.3, 0.7), DType::F32);
            let mean = CENTRED.then(|| Arg::typed(lead, Values::Normal(0.1), DType::F32));
            let inputs =
                [of(true, dims, 2.0), mean, Some(rstd), of(true, dims, 1.0), of(op.weight, row, 1.0)];
            let inputs = inputs.into_iter().chain([of(op.dsum, dims, 1.0)]).flatten().collect();
            Case { op, inputs }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        let why = "chains of at most 32 additions joined in a tree, and the roundings of what is added";
        // The statistics above are those of f32 and the 16-bit types; the gradient check covers f64.
        let dtypes = &[DType::F32, DType::BF16, DType::F16];
        Cases { dtypes, tolerance: Tolerance::Sum(40.0, why), list }
    }
}

impl Tensor {
    /// The residual sum and its layer norm over the last dimension: (s, y) with s = self + residual, in the tensors' type,
    /// and y the layer norm of s, as [`Tensor::layer_norm`] has it. Bits are those of the two calls.
    ///
    /// # Errors
    /// If shapes or dtypes differ, or weight and bias are not of the last dimension's size.
    #[track_caller]
    pub fn add_layer_norm(
        &self,
        residual: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let op = AddLayerNorm { weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), Some(residual), weight, bias].into_iter().flatten().collect();
        let mut outputs = run(op, &inputs)?.into_iter();
        Ok(outputs.next().zip(outputs.next()).expect("infer gave four outputs"))
    }

    /// The residual sum and its RMS norm over the last dimension: (s, y) with s = self + residual, in the tensors' type, and
    /// y the RMS norm of s, as [`Tensor::rms_norm`] has it. Bits are those of the two calls.
    ///
    /// # Errors
    /// If shapes or dtypes differ, or the weight is not of the last dimension's size.
    #[track_caller]
    pub fn add_rms_norm(
        &self,
        residual: &Tensor,
        weight: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let op = AddRmsNorm { weight: weight.is_some(), bias: false, eps };
        let inputs: Vec<&Tensor> = [Some(self), Some(residual), weight].into_iter().flatten().collect();
        let mut outputs = run(op, &inputs)?.into_iter();
        Ok(outputs.next().zip(outputs.next()).expect("infer gave three outputs"))
    }
}
