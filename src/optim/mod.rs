//! Optimisers: each step is one pass over the arena's flat buffers.
//!
//! Names, defaults and arithmetic are PyTorch's. What changes from step to step (learning rates, weight decays, powers of
//! the betas, the clip factor, the step number) is read from the arena's [`StepBlock`], so that a captured step can be
//! replayed. Parameter groups differ in learning rate and weight decay; frozen parameters are left alone. A parameter
//! that `backward` was allowed to leave without a gradient counts as one with a gradient of zero.

#![forbid(unsafe_code)]

mod captured;
mod flat;
mod narrow;
mod norm;
mod prepare;
mod rules;
mod schedule;

use crate::param::{MAX_GROUPS, StateDType, StepBlock};
use crate::tensor::{Mode, Tensor, no_grad};
use crate::{Arena, DType, Error, ErrorKind, Result, ops};

pub use captured::{Capture, Forward, Input, MAX_SHAPES, StepOptions, TrainStep};
pub use flat::Update;
pub use norm::global_norm;
pub use prepare::{Advance, Prepare};
pub use rules::{Adam, AdamW, RmsProp, Rule, Sgd};
pub use schedule::{Anneal, Plateau, PlateauState, Schedule};

/// After how many skipped steps in a row training has diverged: a loss scale that was merely too large has come down from
/// 2¹⁵ to 2⁻⁵ by then.
pub const MAX_SKIPPED: u64 = 20;

/// How gradients are limited before an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Not at all.
    #[default]
    None,
    /// All gradients are scaled by one factor so that their joint Euclidean norm is at most this.
    Norm(f64),
    /// Each gradient is clamped to ± this.
    Value(f64),
}

/// An optimiser: a [`Rule`] over an arena's parameters, with clipping and parameter groups.
///
/// ```
/// use warpsmith::{Arena, DType, Device, optim::{Optimizer, Sgd}};
/// let arena = Arena::new(DType::F32, Device::cpu())?;
/// let w = arena.register("w", [2], &[1.0, 2.0])?;
/// let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.1)?;
/// let loss = w.get()?.narrow(0, 0, 1)?.reshape(())?;
/// arena.backward(&loss)?;
/// sgd.step()?;
/// assert_eq!(w.get()?.to_vec::<f32>()?, [0.9, 2.0]);
/// # Ok::<(), warpsmith::Error>(())
/// ```
pub struct Optimizer<R: Rule> {
    arena: Arena,
    rule: R,
    clip: Clip,
    /// The arena's group table, as it was when last read, and as a tensor.
    groups: Vec<u8>,
    table: Tensor,
    state: Vec<Tensor>,
}

impl<R: Rule> Optimizer<R> {
    /// An optimiser of all parameters of `arena`, with learning rate `lr` (and the rule's weight decay) in every group.
    /// Seals the arena. An optimiser with state starts afresh: powers of the betas at 1.
    pub fn new(arena: &Arena, rule: R, lr: f64) -> Result<Optimizer<R>> {
        check_rate("learning rate", lr, true)?;
        rule.check()?;
        if arena.precision().states != StateDType::F32 {
            rule.check_narrow()?;
        }
        let groups = arena.group_table()?;
        let table = Tensor::from_slice(&groups, groups.len(), arena.device())?;
        let precision = arena.precision();
        let mut state = Vec::new();
        for name in rule.state() {
            match precision.states {
                StateDType::F32 if arena.dtype() == DType::F64 => state.push(arena.state(name, DType::F64)?),
                StateDType::F32 => state.push(arena.state(name, DType::F32)?),
                StateDType::BF16 => state.push(arena.state(name, DType::BF16)?),
                StateDType::Int8 => {
                    state.push(arena.state(name, DType::U8)?);
                    state.push(arena.block_state(&format!("{name}_scale"), DType::F32)?);
                }
            }
        }
        let block = arena.step_block();
        let mut rates = [lr; StepBlock::CLIP];
        rates[StepBlock::WEIGHT_DECAY..].fill(rule.weight_decay());
        block.set_range(StepBlock::LR, &rates)?;
        block.set_range(StepBlock::BETA1_POWER, &[1.0, 1.0])?;
        Ok(Optimizer { arena: arena.clone(), rule, clip: Clip::None, groups, table, state })
    }

    /// Sets the clipping. Errors unless a limit is positive.
    pub fn with_clip(mut self, clip: Clip) -> Result<Self> {
        if let Clip::Norm(limit) | Clip::Value(limit) = clip {
            check_rate("clipping limit", limit, true)?;
        }
        self.clip = clip;
        Ok(self)
    }

    /// The arena whose parameters it updates.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The rule.
    pub fn rule(&self) -> &R {
        &self.rule
    }

    /// Sets the learning rate of all groups, for the next step. Sends nothing to the device if it is the one that is set.
    pub fn set_lr(&self, lr: f64) -> Result<()> {
        check_rate("learning rate", lr, false)?;
        self.arena.step_block().set_range(StepBlock::LR, &[lr; MAX_GROUPS])
    }

    /// The learning rate of group 0.
    pub fn lr(&self) -> Result<f64> {
        self.arena.step_block().get(StepBlock::LR)
    }

    /// Sets the weight decay of one group, such as 0 for biases and norms.
    pub fn set_weight_decay(&self, group: usize, weight_decay: f64) -> Result<()> {
        check_rate("weight decay", weight_decay, false)?;
        if group >= MAX_GROUPS {
            return Err(Error::argument(format!("there is no parameter group {group}")));
        }
        self.arena.step_block().set(StepBlock::WEIGHT_DECAY + group, weight_decay)
    }

    /// Steps that were skipped because gradients were not finite; waits for the device. Always 0 unless the arena's
    /// [`Precision`](crate::param::Precision) scales the loss.
    pub fn skipped(&self) -> Result<u64> {
        Ok(self.arena.step_block().get(StepBlock::SKIPPED)? as u64)
    }

    /// Steps that were skipped since the last one that was not; waits for the device.
    pub fn skipped_in_a_row(&self) -> Result<u64> {
        Ok(self.arena.step_block().get(StepBlock::SKIPPED_IN_A_ROW)? as u64)
    }

    /// An error of kind `Diverged` if the last `limit` steps, or more, were all skipped (such as [`MAX_SKIPPED`]). For a training loop to call every few steps; waits for the device.
    pub fn check_skipped(&self, limit: u64) -> Result<()> {
        if !self.arena.precision().scales_loss() {
            return Ok(());
        }
        let row = self.skipped_in_a_row()?;
        if row < limit.max(1) {
            return Ok(());
        }
        let scale = self.arena.step_block().get(StepBlock::LOSS_SCALE)?;
        let message =
            format!("{row} steps in a row had gradients that are not finite; the loss scale is {scale}");
        Err(Error::new(ErrorKind::Diverged, message)
            .with_op(R::NAME)
            .with_help("lower the learning rate, or train in bf16, which has the range of f32"))
    }

    /// Updates all parameters that are not frozen from their gradients, counts the step and forgets the gradients. A step
    /// whose scaled gradients are not finite changes nothing but the count of skips and the loss scale.
    ///
    /// An error of kind `MissingGradient` if one of them has no gradient: `Arena::backward` comes first.
    #[track_caller]
    pub fn step(&mut self) -> Result<()> {
        if let Some(param) = self.arena.params()?.iter().find(|p| !p.is_frozen() && !p.has_grad()) {
            return Err(Error::new(ErrorKind::MissingGradient, format!("{} has no gradient", param.name()))
                .with_op(R::NAME)
                .with_help("call arena.backward(&loss) before each step"));
        }
        let groups = self.arena.group_table()?;
        if groups != self.groups {
            self.table = Tensor::from_slice(&groups, groups.len(), self.arena.device())?;
            self.groups = groups;
        }
        no_grad(|| {
            let (values, grads, master) = (self.arena.values()?, self.arena.grads()?, self.arena.master()?);
            let (block, precision) = (self.arena.step_block(), *self.arena.precision());
            let (floats, counters) = (block.floats(), block.counters());
            let [beta1, beta2] = self.rule.betas();
            let advance = Advance { beta1, beta2, device: self.arena.device() };
            let (max_norm, clip_value) = match self.clip {
                Clip::None => (f64::INFINITY, f64::INFINITY),
                Clip::Norm(limit) => (limit, f64::INFINITY),
                Clip::Value(limit) => (f64::INFINITY, limit),
            };
            let numbers = [(floats, Mode::Update), (counters, Mode::Update)];
            if precision.scales_loss() || max_norm.is_finite() {
                let op = Prepare { max_norm, loss_scale: precision.loss_scale, advance };
                ops::run_into(op, &[&grads, &self.table], &numbers)?;
            } else {
                ops::run_into(advance, &[], &numbers)?;
            }
            let op = Update { rule: self.rule, clip_value, precision };
            let outs = [&values].into_iter().chain(&master).chain(&self.state);
            let outs: Vec<_> = outs.map(|t| (t, Mode::Update)).collect();
            ops::run_into(op, &[&grads, floats, counters, &self.table], &outs)
        })?;
        self.arena.zero_grad()
    }
}

/// An [`Optimizer`] of any rule.
pub trait Step: Send {
    /// As [`Optimizer::step`].
    fn step(&mut self) -> Result<()>;
    /// As [`Optimizer::set_lr`].
    fn set_lr(&self, lr: f64) -> Result<()>;
    /// As [`Optimizer::skipped`].
    fn skipped(&self) -> Result<u64>;
    /// As [`Optimizer::check_skipped`].
    fn check_skipped(&self, limit: u64) -> Result<()>;
}

impl<R: Rule> Step for Optimizer<R> {
    fn step(&mut self) -> Result<()> {
        Optimizer::step(self)
    }

    fn set_lr(&self, lr: f64) -> Result<()> {
        Optimizer::set_lr(self, lr)
    }

    fn skipped(&self) -> Result<u64> {
        Optimizer::skipped(self)
    }

    fn check_skipped(&self, limit: u64) -> Result<()> {
        Optimizer::check_skipped(self, limit)
    }
}

/// A rate must be finite and not negative (`positive`: nor zero).
fn check_rate(what: &str, rate: f64, positive: bool) -> Result<()> {
    if rate.is_finite() && rate >= 0.0 && !(positive && rate == 0.0) {
        return Ok(());
    }
    let want = if positive { "a positive number" } else { "a number from 0 on" };
    Err(Error::argument(format!("{what} {rate} is not {want}")))
}
