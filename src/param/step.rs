//! The step block: what changes from step to step.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use super::MAX_GROUPS;
use crate::tensor::overwrite;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The scalars that change from step to step, as tensors: what a captured step reads instead of host arguments.
#[derive(Clone)]
pub struct StepBlock {
    /// f64 `[FLOATS]`: see the constants.
    floats: Tensor,
    /// i64 `[2]`: the number of finished steps, and the number of attempts at one.
    counters: Tensor,
    /// Learning rates and weight decays as they were set last, so that what does not change is not sent again.
    rates: Arc<Mutex<Option<[f64; StepBlock::CLIP]>>>,
}

impl StepBlock {
    /// Position of the learning rate of group 0 in [`StepBlock::floats`]; the other groups follow.
    pub const LR: usize = 0;
    /// Position of the weight decay of group 0; the other groups follow.
    pub const WEIGHT_DECAY: usize = MAX_GROUPS;
    /// Position of the factor that clipping multiplies gradients by.
    pub const CLIP: usize = 2 * MAX_GROUPS;
    /// Position of the loss scale that gradients are divided by.
    pub const LOSS_SCALE: usize = 2 * MAX_GROUPS + 1;
    /// Position of β₁ᵗ, t being the step under way.
    pub const BETA1_POWER: usize = 2 * MAX_GROUPS + 2;
    /// Position of β₂ᵗ.
    pub const BETA2_POWER: usize = 2 * MAX_GROUPS + 3;
    /// Position of the norm that clipping found last.
    pub const NORM: usize = 2 * MAX_GROUPS + 4;
    /// Position of the factor that the gradients at hand carry: the loss scale before this step changed it.
    pub const UNSCALE: usize = 2 * MAX_GROUPS + 5;
    /// Position of whether this step is skipped (1 or 0): its gradients are not finite.
    pub const SKIP: usize = 2 * MAX_GROUPS + 6;
    /// Position of the number of skipped steps.
    pub const SKIPPED: usize = 2 * MAX_GROUPS + 7;
    /// Position of the number of skipped steps since the last one that was not.
    pub const SKIPPED_IN_A_ROW: usize = 2 * MAX_GROUPS + 8;
    /// Position of the number of good steps since the loss scale changed.
    pub const GOOD: usize = 2 * MAX_GROUPS + 9;
    /// The number of floats.
    pub const FLOATS: usize = 2 * MAX_GROUPS + 10;

    pub(super) fn new(loss_scale: f64, device: Device) -> Result<StepBlock> {
        let floats = Tensor::from_slice(&StepBlock::initial(loss_scale), StepBlock::FLOATS, device)?;
        Ok(StepBlock { floats, counters: Tensor::zeros(2, DType::I64, device)?, rates: Arc::default() })
    }

    fn initial(loss_scale: f64) -> [f64; StepBlock::FLOATS] {
        let mut floats = [0.0f64; StepBlock::FLOATS];
        floats[StepBlock::CLIP..StepBlock::SKIP].fill(1.0);
        floats[StepBlock::LOSS_SCALE] = loss_scale;
        floats[StepBlock::UNSCALE] = loss_scale;
        floats
    }

    /// The shape of [`StepBlock::floats`].
    pub(crate) fn floats_shape() -> Shape {
        Shape::from_dims(&[StepBlock::FLOATS])
    }

    /// All floats: f64, 1-d; the constants name the positions. Change them by [`StepBlock::set`], [`StepBlock::set_range`]
    /// and [`StepBlock::load`], which remember what is there.
    pub fn floats(&self) -> &Tensor {
        &self.floats
    }

    /// The number of finished steps: i64, 0-d. A skipped step is none.
    pub fn step(&self) -> Result<Tensor> {
        self.counters.select(0, 0)
    }

    /// The number of attempts at a step, skipped ones included: i64, 0-d. What random choices follow from, so that a batch
    /// after a skipped step has other ones.
    pub fn random(&self) -> Result<Tensor> {
        self.counters.select(0, 1)
    }

    /// Both counters: i64 `[2]`.
    pub(crate) fn counters(&self) -> &Tensor {
        &self.counters
    }

    /// One float, read back to the host. Not for use within a step.
    pub fn get(&self, position: usize) -> Result<f64> {
        self.floats.select(0, position)?.item()
    }

    /// Sets one float.
    #[track_caller]
    pub fn set(&self, position: usize, value: f64) -> Result<()> {
        self.set_range(position, &[value])
    }

    /// Sets the floats from `first` on, in one asynchronous copy; none if they are rates that stand there already.
    #[track_caller]
    pub fn set_range(&self, first: usize, values: &[f64]) -> Result<()> {
        let end = first + values.len();
        let mut rates = self.rates.lock().unwrap_or_else(|e| e.into_inner());
        if rates.as_ref().and_then(|r| r.get(first..end)).is_some_and(|r| r == values) {
            return Ok(());
        }
        overwrite(&self.floats.slice(0, first, end, 1)?, values)?;
        match &mut *rates {
            Some(known) => known.iter_mut().skip(first).zip(values).for_each(|(k, &v)| *k = v),
            // Both kinds of rates are set when an optimiser is made.
            None if (first, end) == (0, StepBlock::CLIP) => *rates = values.try_into().ok(),
            None => {}
        }
        Ok(())
    }

    /// Sets all floats, such as those of a checkpoint. Fewer than there are (those of an older version) leave the others at
    /// their start.
    pub fn load(&self, values: &[f64]) -> Result<()> {
        let known = [StepBlock::UNSCALE, StepBlock::FLOATS];
        if !known.contains(&values.len()) {
            let message = format!("{} floats of a step block where {} are needed", values.len(), known[1]);
            return Err(Error::argument(message));
        }
        let mut all = StepBlock::initial(1.0);
        all[..values.len()].copy_from_slice(values);
        if values.len() == StepBlock::UNSCALE {
            all[StepBlock::UNSCALE] = all[StepBlock::LOSS_SCALE];
        }
        let mut rates = self.rates.lock().unwrap_or_else(|e| e.into_inner());
        *rates = None;
        overwrite(&self.floats, &all)?;
        *rates = all[..StepBlock::CLIP].try_into().ok();
        Ok(())
    }

    /// The number of finished steps, read back to the host.
    pub fn steps(&self) -> Result<u64> {
        Ok(self.counters.to_vec::<i64>()?[0] as u64)
    }

    /// The number of attempts, read back to the host.
    pub fn attempts(&self) -> Result<u64> {
        Ok(self.counters.to_vec::<i64>()?[1] as u64)
    }

    /// Sets the number of finished steps, and that of attempts to the same.
    #[track_caller]
    pub fn set_steps(&self, steps: u64) -> Result<()> {
        self.set_counters(steps, steps)
    }

    /// Sets the numbers of finished steps and of attempts.
    #[track_caller]
    pub fn set_counters(&self, steps: u64, attempts: u64) -> Result<()> {
        overwrite(&self.counters, &[steps as i64, attempts as i64])
    }
}
