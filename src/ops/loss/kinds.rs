//! The losses of single elements: mse, l1, huber, smooth l1, Kullback-Leibler divergence and binary cross entropy on logits.

#![forbid(unsafe_code)]

use super::{PointKind, PointLoss, Reduction, with_some};
use crate::device::kernels::loss::{PointLossBackwardF, PointLossF};
use crate::dtype::Real;
use crate::ops::{Tolerance, Values, run1};
use crate::{Error, Result, Tensor};

const SUM: Tolerance =
    Tolerance::Sum(16.0, "a few roundings an element, and sums in blocks of 512 in 16 lanes");

/// `(x − t)²`
#[derive(Clone, Copy, Debug)]
pub struct Mse;

impl PointKind for Mse {
    const NAME: &'static str = "mse_loss";
    const BACKWARD: &'static str = "mse_loss_backward";
    const TOLERANCE: Tolerance = SUM;

    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        (x - t) * (x - t)
    }
    #[inline(always)]
    fn dx<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        A::of(2.0) * (x - t)
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        -self.dx(x, t, w, p)
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::Mse, PointLossBackwardF::Mse, 0.0)
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        vec![(Mse, Values::Normal(1.0), Values::Normal(1.0))]
    }
}

/// `|x − t|`; the gradient at equality is 0.
#[derive(Clone, Copy, Debug)]
pub struct L1;

impl PointKind for L1 {
    const NAME: &'static str = "l1_loss";
    const BACKWARD: &'static str = "l1_loss_backward";
    const TOLERANCE: Tolerance = SUM;

    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        (x - t).abs()
    }
    #[inline(always)]
    fn dx<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        let d = x - t;
        if d > A::ZERO {
            A::ONE
        } else if d < A::ZERO {
            -A::ONE
        } else {
            // 0 or NaN.
            d
        }
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        -self.dx(x, t, w, p)
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::L1, PointLossBackwardF::L1, 0.0)
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        vec![(L1, FAR, NEAR)]
    }
}

/// Inputs whose difference keeps away from 0, ±0.5 and ±1: the kinks of the cases below.
const FAR: Values = Values::OneOf(&[-2.75, -0.75, -0.25, 0.25, 0.75, 1.75]);
const NEAR: Values = Values::Uniform(-0.125, 0.125);

/// `½ (x − t)²` up to a distance of delta, beyond it `delta · (|x − t| − ½ delta)`.
#[derive(Clone, Copy, Debug)]
pub struct Huber {
    /// Where the parabola becomes a line; above 0.
    pub delta: f64,
}

impl PointKind for Huber {
    const NAME: &'static str = "huber_loss";
    const BACKWARD: &'static str = "huber_loss_backward";
    const TOLERANCE: Tolerance = SUM;

    fn check(&self) -> Result<()> {
        if self.delta > 0.0 {
            return Ok(());
        }
        Err(Error::argument(format!("delta must be above 0, found {}", self.delta)))
    }
    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        let (z, delta, half) = ((x - t).abs(), A::of(self.delta), A::of(0.5));
        if z < delta { half * z * z } else { delta * (z - half * delta) }
    }
    #[inline(always)]
    fn dx<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        let (d, delta) = (x - t, A::of(self.delta));
        if d > delta {
            delta
        } else if d < -delta {
            -delta
        } else {
            d
        }
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        -self.dx(x, t, w, p)
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::Huber, PointLossBackwardF::Huber, self.delta)
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        vec![(Huber { delta: 1.0 }, FAR, NEAR), (Huber { delta: 0.5 }, FAR, NEAR)]
    }
}

/// The Huber loss divided by its bend: `½ (x − t)² / beta` up to a distance of beta, beyond it `|x − t| − ½ beta`;
/// l1 for beta 0.
#[derive(Clone, Copy, Debug)]
pub struct SmoothL1 {
    /// Where the parabola becomes a line; 0 or above.
    pub beta: f64,
}

impl PointKind for SmoothL1 {
    const NAME: &'static str = "smooth_l1_loss";
    const BACKWARD: &'static str = "smooth_l1_loss_backward";
    const TOLERANCE: Tolerance = SUM;

    fn check(&self) -> Result<()> {
        if self.beta >= 0.0 {
            return Ok(());
        }
        Err(Error::argument(format!("beta must not be below 0, found {}", self.beta)))
    }
    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        let (z, beta, half) = ((x - t).abs(), A::of(self.beta), A::of(0.5));
        if z < beta { half * z * z / beta } else { z - half * beta }
    }
    #[inline(always)]
    fn dx<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        let (d, beta) = (x - t, A::of(self.beta));
        if d.abs() < beta { d / beta } else { L1.dx(x, t, w, p) }
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        -self.dx(x, t, w, p)
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::SmoothL1, PointLossBackwardF::SmoothL1, self.beta)
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        [1.0, 0.5, 0.0].map(|beta| (SmoothL1 { beta }, FAR, NEAR)).to_vec()
    }
}

/// The Kullback-Leibler divergence of the input (log-probabilities) from the target: `t · (ln t − x)`, 0 where t is 0 and x
/// finite; or `eᵗ · (t − x)` for a target of log-probabilities.
#[derive(Clone, Copy, Debug)]
pub struct Kl {
    /// Whether the target holds log-probabilities too.
    pub log_target: bool,
}

impl PointKind for Kl {
    const NAME: &'static str = "kl_div";
    const BACKWARD: &'static str = "kl_div_backward";
    const TOLERANCE: Tolerance = SUM;

    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        if self.log_target {
            return t.exp() * (t - x);
        }
        let own = t * t.ln();
        (if t == A::ZERO { A::ZERO } else { own }) - t * x
    }
    #[inline(always)]
    fn dx<A: Real>(&self, _: A, t: A, _: A, _: A) -> A {
        if self.log_target { -t.exp() } else { -t }
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, t: A, _: A, _: A) -> A {
        if self.log_target { t.exp() * (t - x + A::ONE) } else { t.ln() + A::ONE - x }
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::Kl, PointLossBackwardF::Kl, f64::from(u8::from(self.log_target)))
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        vec![
            (Kl { log_target: false }, Values::Uniform(-4.0, -0.1), Values::Uniform(0.05, 1.0)),
            (Kl { log_target: true }, Values::Uniform(-4.0, -0.1), Values::Uniform(-4.0, -0.1)),
        ]
    }
}

/// Binary cross entropy of a logit x and a target t in [0, 1]:
/// `w · ((1 − t) · x + (1 + (p − 1) · t) · ln(1 + e⁻ˣ))`, computed without overflow.
#[derive(Clone, Copy, Debug)]
pub struct Bce {
    /// Whether there is a weight w.
    pub weight: bool,
    /// Whether there is a weight p of the positive class.
    pub pos_weight: bool,
}

/// ln(1 + e⁻ˣ)
#[inline(always)]
fn softplus_of_minus<A: Real>(x: A) -> A {
    let below = if x < A::ZERO { -x } else { A::ZERO };
    (-x.abs()).exp().ln_1p() + below
}

impl PointKind for Bce {
    const NAME: &'static str = "binary_cross_entropy_with_logits";
    const BACKWARD: &'static str = "binary_cross_entropy_with_logits_backward";
    const TOLERANCE: Tolerance = SUM;

    fn extras(&self) -> [bool; 2] {
        [self.weight, self.pos_weight]
    }
    #[inline(always)]
    fn value<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        w * ((A::ONE - t) * x + ((p - A::ONE) * t + A::ONE) * softplus_of_minus(x))
    }
    #[inline(always)]
    fn dx<A: Real>(&self, x: A, t: A, w: A, p: A) -> A {
        let e = (-x.abs()).exp();
        let sigmoid = (if x < A::ZERO { e } else { A::ONE }) / (A::ONE + e);
        w * ((p * t + A::ONE - t) * sigmoid - p * t)
    }
    #[inline(always)]
    fn dt<A: Real>(&self, x: A, _: A, w: A, p: A) -> A {
        w * ((p - A::ONE) * softplus_of_minus(x) - x)
    }
    fn gpu(&self) -> (PointLossF, PointLossBackwardF, f64) {
        (PointLossF::Bce, PointLossBackwardF::Bce, 0.0)
    }
    fn samples() -> Vec<(Self, Values, Values)> {
        let kinds = [(false, false), (true, false), (false, true), (true, true)];
        let sample = |(weight, pos_weight)| {
            (Bce { weight, pos_weight }, Values::Normal(3.0), Values::Uniform(0.0, 1.0))
        };
        kinds.map(sample).to_vec()
    }
}

/// Options of [`Tensor::bce_with_logits`].
#[derive(Clone, Copy, Debug, Default)]
pub struct BceWithLogits<'a> {
    /// A factor for each loss; broadcast to the input's shape.
    pub weight: Option<&'a Tensor>,
    /// A factor for the positive part of each loss, usually one a column; broadcast to the input's shape.
    pub pos_weight: Option<&'a Tensor>,
    /// What becomes of the elements' losses.
    pub reduction: Reduction,
}

/// Options of [`Tensor::kl_div`].
#[derive(Clone, Copy, Debug, Default)]
pub struct KlDiv {
    /// Whether the target holds log-probabilities, as the input does.
    pub log_target: bool,
    /// What becomes of the elements' divergences; `BatchMean` is the mathematical mean.
    pub reduction: Reduction,
}

impl Tensor {
    /// The squared distance to `target`, which has this tensor's shape and type. Gradients flow to both.
    #[track_caller]
    pub fn mse_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        run1(PointLoss { kind: Mse, reduction }, &[self, target])
    }

    /// The absolute distance to `target`, which has this tensor's shape and type. Gradients flow to both.
    #[track_caller]
    pub fn l1_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        run1(PointLoss { kind: L1, reduction }, &[self, target])
    }

    /// The Huber loss (see [`Huber`]) against `target`, which has this tensor's shape and type. Gradients flow to both.
    /// Errors unless `delta` is above 0.
    #[track_caller]
    pub fn huber_loss(&self, target: &Tensor, delta: f64, reduction: Reduction) -> Result<Tensor> {
        run1(PointLoss { kind: Huber { delta }, reduction }, &[self, target])
    }

    /// The smooth l1 loss (see [`SmoothL1`]) against `target`, which has this tensor's shape and type. Gradients flow to
    /// both. Errors if `beta` is negative.
    #[track_caller]
    pub fn smooth_l1_loss(&self, target: &Tensor, beta: f64, reduction: Reduction) -> Result<Tensor> {
        run1(PointLoss { kind: SmoothL1 { beta }, reduction }, &[self, target])
    }

    /// The Kullback-Leibler divergence of this tensor (log-probabilities) from `target` (probabilities, or
    /// log-probabilities with `log_target`), of the same shape and type. Gradients flow to both.
    #[track_caller]
    pub fn kl_div(&self, target: &Tensor, options: KlDiv) -> Result<Tensor> {
        let kind = Kl { log_target: options.log_target };
        run1(PointLoss { kind, reduction: options.reduction }, &[self, target])
    }

    /// Binary cross entropy of these logits and `target` (probabilities of the same shape and type), computed without
    /// overflow (see [`Bce`]). Gradients flow to logits and target, not to the weights.
    #[track_caller]
    pub fn bce_with_logits(&self, target: &Tensor, options: BceWithLogits<'_>) -> Result<Tensor> {
        let kind = Bce { weight: options.weight.is_some(), pos_weight: options.pos_weight.is_some() };
        let inputs = with_some(&[self, target], &[options.weight, options.pos_weight]);
        run1(PointLoss { kind, reduction: options.reduction }, &inputs)
    }
}
