//! The update rules: what happens to one parameter, given its gradient and the optimiser's state.

#![forbid(unsafe_code)]

use std::fmt::Debug;

use super::check_rate;
use crate::device::kernels::optim::UpdateF;
use crate::dtype::Real;
use crate::param::Precision;
use crate::{Error, Result};

/// What a rule reads besides the parameter, its gradient and its state: the same for a whole block of parameters.
#[derive(Clone, Copy, Debug)]
pub struct Scalars<R> {
    /// Learning rate of the block's group.
    pub lr: R,
    /// Weight decay of the block's group.
    pub weight_decay: R,
    /// √(1 − β₂ᵗ)
    pub root_bias2: R,
    /// lr / (1 − β₁ᵗ)
    pub step_size: R,
    /// Whether this is the first step.
    pub first: bool,
}

/// An update rule. Sealed in effect: the fused pass is generic over it, and the GPU needs a kernel for each.
pub trait Rule: Copy + Debug + Send + Sync + 'static {
    /// The name in errors and reports.
    const NAME: &'static str;
    /// The names of the state buffers, PyTorch's; at most three.
    fn state(&self) -> &'static [&'static str];
    /// Which of the state buffers are never negative: what is kept in a byte then has no sign.
    fn unsigned(&self) -> [bool; 3] {
        [false; 3]
    }
    /// Errors if its state cannot be kept in fewer than 32 bits.
    fn check_narrow(&self) -> Result<()> {
        Ok(())
    }
    /// Bytes of memory for each parameter: see [`Precision::bytes_per_parameter`].
    fn bytes_per_parameter(&self, precision: &Precision) -> f64 {
        precision.bytes_per_parameter(self.state().len())
    }
    /// The weight decay that groups start with.
    fn weight_decay(&self) -> f64;
    /// β₁ and β₂, for bias correction; ones where there are none.
    fn betas(&self) -> [f64; 2] {
        [1.0; 2]
    }
    /// Errors if a hyper-parameter is out of range.
    fn check(&self) -> Result<()>;
    /// The functor of the GPU kernel, and its parameters a to d and `flag`.
    fn gpu(&self) -> (UpdateF, [f64; 4], bool);
    /// The new value of a parameter `p` with gradient `g`; `state` is updated.
    fn update<R: Real>(&self, p: R, g: R, state: [&mut R; 3], s: &Scalars<R>) -> R;
}

/// Errors unless `value` lies in [0, 1).
fn check_fraction(what: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(format!("{what} {value} is not in [0, 1)")))
}

/// Stochastic gradient descent, with momentum if it is not 0. As `torch.optim.SGD`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// Factor of the running sum of gradients.
    pub momentum: f64,
    /// Share of a gradient that does not enter the running sum.
    pub dampening: f64,
    /// Whether the update looks ahead by one momentum step.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Rule for Sgd {
    const NAME: &'static str = "sgd";

    fn state(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check_rate("weight decay", self.weight_decay, false)?;
        check_fraction("momentum", self.momentum)?;
        check_fraction("dampening", self.dampening)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            return Err(Error::argument("Nesterov momentum needs a momentum above 0 and no dampening"));
        }
        Ok(())
    }

    fn gpu(&self) -> (UpdateF, [f64; 4], bool) {
        (UpdateF::Sgd, [self.momentum, 1.0 - self.dampening, 0.0, 0.0], self.nesterov)
    }

    #[inline(always)]
    fn update<R: Real>(&self, p: R, g: R, [sum, _, _]: [&mut R; 3], s: &Scalars<R>) -> R {
        let mut g = s.weight_decay.mul_add(p, g);
        if self.momentum != 0.0 {
            let momentum = R::of(self.momentum);
            *sum = if s.first { g } else { momentum.mul_add(*sum, R::of(1.0 - self.dampening) * g) };
            g = if self.nesterov { momentum.mul_add(*sum, g) } else { *sum };
        }
        p - s.lr * g
    }
}

/// RMSprop. As `torch.optim.RMSprop`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// Factor of the running mean of squares.
    pub alpha: f64,
    /// Added to the root, against division by zero.
    pub eps: f64,
    /// Factor of the running sum of updates.
    pub momentum: f64,
    /// Whether the variance, not the mean square, is divided by.
    pub centered: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for RmsProp {
    fn default() -> RmsProp {
        RmsProp { alpha: 0.99, eps: 1e-8, momentum: 0.0, centered: false, weight_decay: 0.0 }
    }
}

impl Rule for RmsProp {
    const NAME: &'static str = "rmsprop";

    fn state(&self) -> &'static [&'static str] {
        // The order of `update`'s state: unused ones at the end would need buffers too, so each form names its own.
        match (self.centered, self.momentum != 0.0) {
            (false, false) => &["square_avg"],
            (true, false) => &["square_avg", "grad_avg"],
            (false, true) => &["square_avg", "momentum_buffer"],
            (true, true) => &["square_avg", "grad_avg", "momentum_buffer"],
        }
    }

    fn unsigned(&self) -> [bool; 3] {
        [true, false, false]
    }

    fn check_narrow(&self) -> Result<()> {
        if !self.centered {
            return Ok(());
        }
        let message = "the difference of two means is lost in fewer than 32 bits";
        Err(Error::unsupported(Self::NAME, message).with_help("keep the state of centered RMSprop in f32"))
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check_rate("weight decay", self.weight_decay, false)?;
        check_rate("eps", self.eps, false)?;
        check_fraction("alpha", self.alpha)?;
        check_fraction("momentum", self.momentum)
    }

    fn gpu(&self) -> (UpdateF, [f64; 4], bool) {
        (UpdateF::RmsProp, [self.alpha, 1.0 - self.alpha, self.eps, self.momentum], self.centered)
    }

    #[inline(always)]
    fn update<R: Real>(&self, p: R, g: R, [square, second, third]: [&mut R; 3], s: &Scalars<R>) -> R {
        let g = s.weight_decay.mul_add(p, g);
        let (alpha, rest) = (R::of(self.alpha), R::of(1.0 - self.alpha));
        *square = alpha.mul_add(*square, rest * g * g);
        let (root, sum) = if self.centered {
            *second += rest * (g - *second);
            ((*square - *second * *second).sqrt(), third)
        } else {
            (square.sqrt(), second)
        };
        let update = g / (root + R::of(self.eps));
        if self.momentum == 0.0 {
            return p - s.lr * update;
        }
        *sum = R::of(self.momentum).mul_add(*sum, update);
        p - s.lr * *sum
    }
}

/// Adam with an L2 penalty in the gradient. As `torch.optim.Adam`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Factors of the running means of gradients and of their squares.
    pub betas: [f64; 2],
    /// Added to the root, against division by zero.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Adam {
        Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam with decoupled weight decay. As `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Factors of the running means of gradients and of their squares.
    pub betas: [f64; 2],
    /// Added to the root, against division by zero.
    pub eps: f64,
    /// Share of each parameter that a step takes away, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Names of Adam's state.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

fn check_adam(betas: [f64; 2], eps: f64, weight_decay: f64) -> Result<()> {
    check_rate("weight decay", weight_decay, false)?;
    check_rate("eps", eps, false)?;
    betas.iter().try_for_each(|&b| check_fraction("beta", b))
}

/// p − step_size · m / (√v / root_bias2 + eps), after m and v have taken in `g`.
#[inline(always)]
fn adam<R: Real>(betas: [f64; 2], eps: f64, p: R, g: R, m: &mut R, v: &mut R, s: &Scalars<R>) -> R {
    *m += R::of(1.0 - betas[0]) * (g - *m);
    *v = R::of(betas[1]).mul_add(*v, R::of(1.0 - betas[1]) * g * g);
    p - s.step_size * (*m / (v.sqrt() / s.root_bias2 + R::of(eps)))
}

/// What the kernels take of Adam's parameters.
fn adam_numbers(betas: [f64; 2], eps: f64) -> [f64; 4] {
    [1.0 - betas[0], betas[1], 1.0 - betas[1], eps]
}

impl Rule for Adam {
    const NAME: &'static str = "adam";

    fn state(&self) -> &'static [&'static str] {
        &MOMENTS
    }

    fn unsigned(&self) -> [bool; 3] {
        [false, true, false]
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn betas(&self) -> [f64; 2] {
        self.betas
    }

    fn check(&self) -> Result<()> {
        check_adam(self.betas, self.eps, self.weight_decay)
    }

    fn gpu(&self) -> (UpdateF, [f64; 4], bool) {
        (UpdateF::Adam, adam_numbers(self.betas, self.eps), false)
    }

    #[inline(always)]
    fn update<R: Real>(&self, p: R, g: R, [m, v, _]: [&mut R; 3], s: &Scalars<R>) -> R {
        adam(self.betas, self.eps, p, s.weight_decay.mul_add(p, g), m, v, s)
    }
}

impl Rule for AdamW {
    const NAME: &'static str = "adamw";

    fn state(&self) -> &'static [&'static str] {
        &MOMENTS
    }

    fn unsigned(&self) -> [bool; 3] {
        [false, true, false]
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn betas(&self) -> [f64; 2] {
        self.betas
    }

    fn check(&self) -> Result<()> {
        check_adam(self.betas, self.eps, self.weight_decay)
    }

    fn gpu(&self) -> (UpdateF, [f64; 4], bool) {
        (UpdateF::AdamW, adam_numbers(self.betas, self.eps), false)
    }

    #[inline(always)]
    fn update<R: Real>(&self, p: R, g: R, [m, v, _]: [&mut R; 3], s: &Scalars<R>) -> R {
        adam(self.betas, self.eps, p - s.lr * s.weight_decay * p, g, m, v, s)
    }
}
