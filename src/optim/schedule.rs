//! Learning-rate schedules: pure functions of the step, and the one that follows a metric.
//!
//! Formulas and defaults are PyTorch's; `tests/golden/schedulers.json` has its numbers. Warm-up, which PyTorch composes
//! from two schedulers, rises linearly so that the first step trains and the last warm-up step has the full rate.

#![forbid(unsafe_code)]

use std::f64::consts::PI;

use crate::{Error, Result};

/// How a one-cycle schedule moves between its rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
}

/// A schedule without memory. Steps count from 0; `total` is the horizon in steps, warm-up included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// The base rate.
    Constant,
    /// From the base rate to `end_factor` times it at the horizon.
    Linear {
        /// What is left at the end, as a share of the base rate.
        end_factor: f64,
    },
    /// Along half a cosine from the base rate to `min_lr` at the horizon.
    Cosine {
        /// The rate at the horizon.
        min_lr: f64,
    },
    /// Times `gamma` every `step_size` steps.
    Step {
        /// Steps between drops.
        step_size: u64,
        /// Factor of a drop.
        gamma: f64,
    },
    /// Times `gamma` every `every` steps, in one smooth curve: `gamma^(k / every)` at whole multiples.
    Exponential {
        /// Factor a unit.
        gamma: f64,
        /// Steps of a unit.
        every: u64,
    },
    /// Up from base / `div_factor` to the base rate in the first `pct_start` of the horizon, then down to
    /// base / `div_factor` / `final_div_factor`.
    OneCycle {
        /// Share of the horizon that the rise takes.
        pct_start: f64,
        /// The base rate over the first rate.
        div_factor: f64,
        /// The first rate over the last one.
        final_div_factor: f64,
        /// The shape of both parts.
        anneal: Anneal,
    },
}

impl Schedule {
    /// PyTorch's one-cycle defaults.
    pub const ONE_CYCLE: Schedule = Schedule::OneCycle {
        pct_start: 0.3,
        div_factor: 25.0,
        final_div_factor: 1e4,
        anneal: Anneal::Cosine,
    };

    /// Whether the rate depends on the horizon, so that training on beyond it has no meaning.
    pub fn needs_horizon(&self) -> bool {
        matches!(self, Schedule::Linear { .. } | Schedule::Cosine { .. } | Schedule::OneCycle { .. })
    }

    /// The learning rate of step `k`, for base rate `lr`, `warmup` steps of linear rise and a horizon of `total` steps.
    /// Beyond the horizon the last rate stays. One-cycle has a rise of its own and ignores `warmup`.
    pub fn lr(&self, lr: f64, k: u64, warmup: u64, total: u64) -> f64 {
        let one_cycle = matches!(self, Schedule::OneCycle { .. });
        if k < warmup && !one_cycle {
            return lr * (k + 1) as f64 / warmup as f64;
        }
        let k = if one_cycle { k } else { k - warmup };
        let length = if one_cycle { total } else { total.saturating_sub(warmup) }.max(1);
        let progress = k.min(length) as f64 / length as f64;
        match *self {
            Schedule::Constant => lr,
            Schedule::Linear { end_factor } => lr * (1.0 + (end_factor - 1.0) * progress),
            Schedule::Cosine { min_lr } => min_lr + (lr - min_lr) * (1.0 + (PI * progress).cos()) / 2.0,
            Schedule::Step { step_size, gamma } => {
                lr * gamma.powi((k / step_size.max(1)).min(1 << 20) as i32)
            }
            Schedule::Exponential { gamma, every } => lr * gamma.powf(k as f64 / every.max(1) as f64),
            Schedule::OneCycle { pct_start, div_factor, final_div_factor, anneal } => {
                let low = lr / div_factor;
                let (top, last) = (pct_start * total as f64 - 1.0, total as f64 - 1.0);
                let k = (k as f64).min(last);
                let between = |from: f64, to: f64, share: f64| match anneal {
                    Anneal::Cosine => to + (from - to) / 2.0 * (1.0 + (PI * share).cos()),
                    Anneal::Linear => from + (to - from) * share,
                };
                if k <= top {
                    between(low, lr, if top > 0.0 { k / top } else { 1.0 })
                } else {
                    between(
                        lr,
                        low / final_div_factor,
                        if last > top { (k - top) / (last - top) } else { 1.0 },
                    )
                }
            }
        }
    }

    /// Errors if a factor is out of range.
    pub fn check(&self) -> Result<()> {
        let positive = |what: &str, v: f64| {
            if v.is_finite() && v > 0.0 {
                Ok(())
            } else {
                Err(Error::argument(format!("{what} {v} is not a positive number")))
            }
        };
        let share = |what: &str, v: f64| {
            if (0.0..=1.0).contains(&v) {
                Ok(())
            } else {
                Err(Error::argument(format!("{what} {v} is not in [0, 1]")))
            }
        };
        match *self {
            Schedule::Constant => Ok(()),
            Schedule::Linear { end_factor } => share("end_factor", end_factor),
            Schedule::Cosine { min_lr } => super::check_rate("min_lr", min_lr, false),
            Schedule::Step { step_size: 0, .. } => {
                Err(Error::argument("step_size 0 is not a positive number"))
            }
            Schedule::Step { gamma, .. } | Schedule::Exponential { gamma, .. } => positive("gamma", gamma),
            Schedule::OneCycle { pct_start, div_factor, final_div_factor, .. } => {
                share("pct_start", pct_start)?;
                positive("div_factor", div_factor)?;
                positive("final_div_factor", final_div_factor)
            }
        }
    }
}

/// Lowers the rate when a metric stops improving. As `torch.optim.lr_scheduler.ReduceLROnPlateau`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// Factor of a drop.
    pub factor: f64,
    /// Bad epochs that are borne; the next one drops the rate.
    pub patience: u32,
    /// How much better, relative to the best (or absolute), counts as better.
    pub threshold: f64,
    /// Whether `threshold` is absolute.
    pub absolute: bool,
    /// Epochs after a drop in which bad ones do not count.
    pub cooldown: u32,
    /// The rate is never lowered below this.
    pub min_lr: f64,
    /// Whether larger metrics are better.
    pub maximize: bool,
}

impl Default for Plateau {
    fn default() -> Plateau {
        Plateau {
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            absolute: false,
            cooldown: 0,
            min_lr: 0.0,
            maximize: false,
        }
    }
}

/// What [`Plateau`] remembers; goes into checkpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize))]
pub struct PlateauState {
    /// The rate now.
    pub lr: f64,
    /// The best metric so far.
    pub best: Option<f64>,
    /// Bad epochs in a row.
    pub bad: u32,
    /// Epochs of cooldown that are left.
    pub cooldown: u32,
}

impl Plateau {
    /// The state at the start, with base rate `lr`.
    pub fn start(&self, lr: f64) -> PlateauState {
        PlateauState { lr, best: None, bad: 0, cooldown: 0 }
    }

    /// Takes in the metric of an epoch. A NaN counts as bad.
    pub fn observe(&self, state: &mut PlateauState, metric: f64) {
        let better = match state.best {
            None => !metric.is_nan(),
            Some(best) => match (self.maximize, self.absolute) {
                (false, false) => metric < best * (1.0 - self.threshold),
                (false, true) => metric < best - self.threshold,
                (true, false) => metric > best * (1.0 + self.threshold),
                (true, true) => metric > best + self.threshold,
            },
        };
        if better {
            state.best = Some(metric);
            state.bad = 0;
        } else {
            state.bad += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad = 0;
        }
        if state.bad > self.patience {
            let lower = (state.lr * self.factor).max(self.min_lr);
            // PyTorch ignores changes too small to matter.
            if state.lr - lower > 1e-8 {
                state.lr = lower;
            }
            state.cooldown = self.cooldown;
            state.bad = 0;
        }
    }

    /// Errors if a setting is out of range.
    pub fn check(&self) -> Result<()> {
        if !(self.factor > 0.0 && self.factor < 1.0) {
            return Err(Error::argument(format!("plateau factor {} is not between 0 and 1", self.factor)));
        }
        super::check_rate("plateau threshold", self.threshold, false)?;
        super::check_rate("plateau min_lr", self.min_lr, false)
    }
}
