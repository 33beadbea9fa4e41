//! What comes before the update of a step, all on the device: the norm of the gradients and the clip factor, whether they
//! are finite, the loss scale that follows from that, and the step's numbers.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::norm::{CHUNK, norm_of, squares};
use crate::device::Stream;
use crate::device::kernels::optim as kernels;
use crate::ops::{Cases, Op, Plan, Tolerance};
use crate::param::{LossScale, StepBlock};
use crate::tensor::{Meta, Out, View};
use crate::{DType, Device, Error, Result, Shape};

fn step_block(device: Device) -> Plan {
    let floats = Meta { shape: StepBlock::floats_shape(), dtype: DType::F64, device };
    let counters = floats.with_dtype(DType::I64).with_shape(Shape::from_dims(&[2]));
    Plan { outputs: vec![floats, counters], scratch: 0 }
}

fn parts<'a, 'b>(outputs: &'a mut [Out<'b>]) -> Result<&'a mut [Out<'b>; 2]> {
    outputs.try_into().map_err(|_| Error::internal("the step block has two parts"))
}

/// Counts a step in the step block: step + 1, powers of the betas times the betas. In place: floats, counters.
#[derive(Clone, Copy, Debug)]
pub struct Advance {
    /// β₁
    pub beta1: f64,
    /// β₂
    pub beta2: f64,
    /// Where the step block is.
    pub device: Device,
}

impl Advance {
    /// A step that is not skipped.
    fn good(&self, floats: &mut [f64], counters: &mut [i64]) {
        floats[StepBlock::UNSCALE] = floats[StepBlock::LOSS_SCALE];
        floats[StepBlock::BETA1_POWER] *= self.beta1;
        floats[StepBlock::BETA2_POWER] *= self.beta2;
        counters[0] += 1;
        counters[1] += 1;
    }
}

impl Op for Advance {
    const NAME: &'static str = "advance";
    const INPUTS: RangeInclusive<usize> = 0..=0;
    const ACCUMULATES: bool = true;
    const UPDATES: bool = true;

    fn infer(&self, _: &[Meta]) -> Result<Plan> {
        Ok(step_block(self.device))
    }

    fn cpu(&self, _: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let [floats, counters] = parts(outputs)?;
        self.good(floats.slice(), counters.slice());
        Ok(())
    }

    fn gpu(&self, s: &Stream, _: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [floats, counters] = parts(outputs)?;
        let (beta1, beta2) = (self.beta1, self.beta2);
        kernels::Advance { floats: floats.dst(), counters: counters.dst(), beta1, beta2 }.launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}

/// As [`Advance`], for steps that clip by the norm or scale the loss: first the norm of the gradients (divided by the loss
/// scale) and the factor that brings it down to `max_norm` (1 if it is below), as `torch.nn.utils.clip_grad_norm_` computes
/// it: `min(1, max_norm / (norm + 1e-6))`.
///
/// Where the loss is scaled and the norm is not finite, the step is marked as skipped: only the attempt and the skip are
/// counted, and a dynamic scale is reduced. It grows after enough good steps, for the next step.
///
/// Inputs: gradients (flat), the group table. In place: the step block's floats and counters.
#[derive(Clone, Copy, Debug)]
pub struct Prepare {
    /// The largest norm that is let through; infinity for any.
    pub max_norm: f64,
    /// How the loss is scaled.
    pub loss_scale: LossScale,
    /// What is counted.
    pub advance: Advance,
}

impl Prepare {
    /// Factors of growth and reduction, and the good steps before growth; ones and never if the scale is fixed.
    fn dynamics(&self) -> (f64, f64, u64) {
        match self.loss_scale {
            LossScale::Dynamic { growth, backoff, interval, .. } => (growth, backoff, interval),
            _ => (1.0, 1.0, u64::MAX),
        }
    }
}

impl Op for Prepare {
    const NAME: &'static str = "clip_grad_norm";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;
    const UPDATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(step_block(inputs[0].device))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let norm = norm_of(inputs)?;
        let [floats, counters] = parts(outputs)?;
        let (floats, counters) = (floats.slice::<f64>(), counters.slice::<i64>());
        let (growth, backoff, interval) = self.dynamics();
        let scale = floats[StepBlock::LOSS_SCALE];
        let [least, most] = LossScale::RANGE;
        floats[StepBlock::NORM] = norm / scale;
        let skip = self.loss_scale != LossScale::None && !norm.is_finite();
        floats[StepBlock::SKIP] = if skip { 1.0 } else { 0.0 };
        if skip {
            floats[StepBlock::SKIPPED] += 1.0;
            floats[StepBlock::SKIPPED_IN_A_ROW] += 1.0;
            floats[StepBlock::GOOD] = 0.0;
            let reduced = scale * backoff;
            floats[StepBlock::LOSS_SCALE] = if reduced < least { least } else { reduced };
            counters[1] += 1;
            return Ok(());
        }
        self.advance.good(floats, counters);
        // Not `min`, so that a norm of NaN is not clipped to 1 and hidden.
        let factor = self.max_norm / (floats[StepBlock::NORM] + 1e-6);
        floats[StepBlock::CLIP] = if factor > 1.0 { 1.0 } else { factor };
        floats[StepBlock::SKIPPED_IN_A_ROW] = 0.0;
        floats[StepBlock::GOOD] += 1.0;
        if floats[StepBlock::GOOD] >= interval as f64 {
            floats[StepBlock::GOOD] = 0.0;
            let grown = scale * growth;
            floats[StepBlock::LOSS_SCALE] = if grown > most { most } else { grown };
        }
        Ok(())
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sums = squares(s, inputs)?;
        let count = inputs[0].numel().div_ceil(CHUNK) as u64;
        let [floats, counters] = parts(outputs)?;
        let (sums, floats, counters) = (sums.src().part(0, count), floats.dst(), counters.dst());
        let (growth, backoff, interval) = self.dynamics();
        let (max_norm, interval) = (self.max_norm, interval as f64);
        let Advance { beta1, beta2, .. } = self.advance;
        let scaled = (self.loss_scale != LossScale::None).into();
        let [least, most] = LossScale::RANGE;
        kernels::Prepare {
            sums,
            floats,
            counters,
            count,
            max_norm,
            beta1,
            beta2,
            scaled,
            growth,
            backoff,
            interval,
            least,
            most,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}
