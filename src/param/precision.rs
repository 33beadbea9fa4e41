//! In which types a model is computed and kept: one setting with safe defaults.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::ALIGN;
use crate::{DType, Error, Result};

/// In which types a model is computed, and in which its weights, gradients and optimiser state are kept.
///
/// The presets are safe: 16-bit weights have f32 masters, which optimisers update and the 16-bit values are rounded from;
/// f16 scales its loss. States in fewer bits and rounding at random are asked for.
///
/// ```
/// use warpsmith::param::{Precision, StateDType};
/// let bf16 = Precision::bf16();
/// // Weights 2, masters 4, gradients 2, Adam's two moments 4 each.
/// assert_eq!(bf16.bytes_per_parameter(2), 16.0);
/// assert_eq!("f16".parse::<Precision>()?, Precision::f16());
/// assert!(bf16.with_states(StateDType::Int8).bytes_per_parameter(2) < 10.04);
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// The type of weights, activations and of each contribution to a gradient.
    pub compute: DType,
    /// Whether 16-bit weights have f32 masters. Of no effect for f32 and f64.
    pub master: bool,
    /// The type in which gradients are summed up and kept: [`Precision::compute`], or F32.
    pub grads: DType,
    /// How optimisers keep their state.
    pub states: StateDType,
    /// How what is kept in fewer than 32 bits (weights, states) is rounded after an update.
    pub rounding: Rounding,
    /// The factor of the loss, which keeps small gradients above the smallest f16.
    pub loss_scale: LossScale,
}

/// How optimisers keep their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateDType {
    /// f32 (f64 for f64 weights).
    #[default]
    F32,
    /// bf16.
    BF16,
    /// A byte an element and an f32 scale for each block of [`ALIGN`]: three fraction bits and an exponent that reaches
    /// 2⁻¹⁷ (with a sign) or, for means of squares, 2⁻³³ below the block's largest magnitude. An exponent, since a mean of
    /// squares that a uniform code takes to zero would make a step of any size.
    Int8,
}

/// How a result is brought to fewer bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest. Changes smaller than half a unit in the last place are lost each time.
    #[default]
    Nearest,
    /// Up or down by chance, so that the mean is exact. The choice follows from the seed, the step's number and the
    /// element's place in the arena: the same on every device, and again when a run is resumed.
    Stochastic {
        /// The seed.
        seed: u64,
    },
}

/// The factor that the loss is multiplied by before backward, and gradients divided by before the update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LossScale {
    /// No factor: nothing is looked at and no step is skipped.
    #[default]
    None,
    /// Always this one. A step whose gradients are not all finite is skipped.
    Static(f64),
    /// As `torch.amp.GradScaler`: a step whose gradients are not all finite is skipped and the factor reduced; after
    /// `interval` good steps in a row it grows.
    Dynamic {
        /// The first factor.
        initial: f64,
        /// What it is multiplied by after `interval` good steps.
        growth: f64,
        /// What it is multiplied by after a bad step.
        backoff: f64,
        /// Good steps before it grows.
        interval: u64,
    },
}

impl LossScale {
    /// The least and the greatest factor.
    pub const RANGE: [f64; 2] = [1.0 / 16384.0, 16777216.0];

    /// From 2¹⁵, the greatest power of two of f16; twice that after 2,000 good steps, half after a bad one.
    pub fn dynamic() -> LossScale {
        LossScale::Dynamic { initial: 32768.0, growth: 2.0, backoff: 0.5, interval: 2000 }
    }

    /// The factor at the start.
    pub fn initial(&self) -> f64 {
        match *self {
            LossScale::None => 1.0,
            LossScale::Static(scale) => scale,
            LossScale::Dynamic { initial, .. } => initial,
        }
    }

    fn check(&self) -> Result<()> {
        let [least, most] = LossScale::RANGE;
        if !(least..=most).contains(&self.initial()) {
            let message = format!("loss scale {} is not within {least} to {most}", self.initial());
            return Err(Error::argument(message));
        }
        match *self {
            LossScale::Dynamic { growth, backoff, interval, .. }
                if !(growth >= 1.0
                    && growth.is_finite()
                    && backoff > 0.0
                    && backoff < 1.0
                    && interval > 0) =>
            {
                Err(Error::argument(format!(
                    "a loss scale needs growth from 1 on, backoff in (0, 1) and an interval above 0, \
                     found {growth}, {backoff} and {interval}"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Precision {
    /// Everything in f32.
    pub fn f32() -> Precision {
        Precision::of(DType::F32)
    }

    /// bf16 with f32 masters and f32 optimiser state; gradients are kept in bf16.
    pub fn bf16() -> Precision {
        Precision::of(DType::BF16)
    }

    /// f16 with f32 masters, f32 optimiser state and a dynamic loss scale; gradients are kept in f16.
    pub fn f16() -> Precision {
        Precision { loss_scale: LossScale::dynamic(), ..Precision::of(DType::F16) }
    }

    /// All of type `compute`, but f32 masters and states for 16-bit types; the loss is not scaled.
    pub fn of(compute: DType) -> Precision {
        Precision {
            compute,
            master: compute.size() == 2,
            grads: compute,
            states: StateDType::F32,
            rounding: Rounding::Nearest,
            loss_scale: LossScale::None,
        }
    }

    /// Sums gradients up and keeps them in f32, which many micro-batches a step need.
    pub fn with_f32_grads(self) -> Precision {
        Precision { grads: DType::F32, ..self }
    }

    /// Another form of optimiser state. In fewer than 32 bits, rounding to the nearest becomes rounding by chance: a mean of
    /// squares that loses a thousandth a step would stand still otherwise.
    pub fn with_states(self, states: StateDType) -> Precision {
        let by_chance = states != StateDType::F32 && self.rounding == Rounding::Nearest;
        let rounding = if by_chance { Rounding::Stochastic { seed: 0 } } else { self.rounding };
        Precision { states, rounding, ..self }
    }

    /// No f32 masters: 16-bit values are all there is, rounded by chance so that small updates count.
    pub fn without_master(self) -> Precision {
        let by_chance = self.compute.size() == 2 && self.rounding == Rounding::Nearest;
        let rounding = if by_chance { Rounding::Stochastic { seed: 0 } } else { self.rounding };
        Precision { master: false, rounding, ..self }
    }

    /// Another way of rounding.
    pub fn with_rounding(self, rounding: Rounding) -> Precision {
        Precision { rounding, ..self }
    }

    /// Another loss scale.
    pub fn with_loss_scale(self, loss_scale: LossScale) -> Precision {
        Precision { loss_scale, ..self }
    }

    /// Whether weights have f32 masters.
    pub fn has_master(&self) -> bool {
        self.master && self.compute.size() == 2
    }

    /// Whether the loss is scaled, and steps may be skipped.
    pub fn scales_loss(&self) -> bool {
        self.loss_scale != LossScale::None
    }

    /// Errors unless the parts go together.
    pub fn check(&self) -> Result<()> {
        if !self.compute.is_float() {
            let message = format!("parameters must be floating point, not {}", self.compute);
            return Err(Error::dtype("arena", message));
        }
        let wide = self.grads == DType::F32 && self.compute.size() == 2;
        if self.grads != self.compute && !wide {
            let message = format!("gradients of {} weights cannot be kept in {}", self.compute, self.grads);
            return Err(Error::dtype("arena", message).with_help("keep them in the weights' type, or in f32"));
        }
        if self.compute == DType::F64 && self.states != StateDType::F32 {
            let message = format!("the state of f64 weights is kept in f64, not {:?}", self.states);
            return Err(Error::unsupported("arena", message));
        }
        self.loss_scale.check()
    }

    /// Bytes of memory for each parameter with an optimiser that keeps `states` numbers of it (Adam: 2): weight, master,
    /// gradient and state. Activations and the gaps between parameters come on top.
    pub fn bytes_per_parameter(&self, states: usize) -> f64 {
        let state = match self.states {
            StateDType::F32 => self.compute.size().max(4) as f64,
            StateDType::BF16 => 2.0,
            StateDType::Int8 => 1.0 + 4.0 / ALIGN as f64,
        };
        let master = if self.has_master() { 4.0 } else { 0.0 };
        self.compute.size() as f64 + master + self.grads.size() as f64 + states as f64 * state
    }
}

impl Default for Precision {
    fn default() -> Precision {
        Precision::f32()
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Precision> {
        match name {
            "f32" => Ok(Precision::f32()),
            "bf16" => Ok(Precision::bf16()),
            "f16" => Ok(Precision::f16()),
            "f64" => Ok(Precision::of(DType::F64)),
            _ => {
                Err(Error::argument(format!("unknown precision {name:?}")).with_help("one of f32, bf16, f16"))
            }
        }
    }
}

impl fmt::Display for Precision {
    /// The preset's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.compute.fmt(f)
    }
}
