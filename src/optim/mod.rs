//! Optimisers: each step is one pass over the arena's flat buffers.
//!
//! Names, defaults and arithmetic are PyTorch's. What changes from step to step (learning rates, weight decays, powers of
//! the betas, the clip factor, the step number) is read from the arena's [`StepBlock`], so that a captured step can be
//! replayed. Parameter groups differ in learning rate and weight decay; frozen parameters are left alone. A parameter
//! that `backward` was allowed to leave without a gradient counts as one with a gradient of zero.

#![forbid(unsafe_code)]

mod captured;
mod clip;
mod flat;
mod rules;
mod schedule;

use crate::param::StepBlock;
use crate::tensor::{Mode, Tensor, no_grad};
use crate::{Arena, DType, Error, ErrorKind, Result, ops};

pub use captured::{Capture, Forward, Input, MAX_SHAPES, StepOptions, TrainStep};
pub use clip::{ClipNorm, global_norm};
pub use flat::{Advance, Update};
pub use rules::{Adam, AdamW, RmsProp, Rule, Sgd};
pub use schedule::{Anneal, Plateau, PlateauState, Schedule};

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
        let groups = arena.group_table()?;
        let table = Tensor::from_slice(&groups, groups.len(), arena.device())?;
        // Moments of 16-bit parameters are kept in f32.
        let dtype = if arena.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let state = rule.state().iter().map(|name| arena.state(name, dtype)).collect::<Result<Vec<_>>>()?;
        let block = arena.step_block();
        for group in 0..crate::param::MAX_GROUPS {
            block.set(StepBlock::LR + group, lr)?;
            block.set(StepBlock::WEIGHT_DECAY + group, rule.weight_decay())?;
        }
        for power in [StepBlock::BETA1_POWER, StepBlock::BETA2_POWER] {
            block.set(power, 1.0)?;
        }
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

    /// Sets the learning rate of all groups, for the next step.
    pub fn set_lr(&self, lr: f64) -> Result<()> {
        check_rate("learning rate", lr, false)?;
        (0..crate::param::MAX_GROUPS).try_for_each(|g| self.arena.step_block().set(StepBlock::LR + g, lr))
    }

    /// The learning rate of group 0.
    pub fn lr(&self) -> Result<f64> {
        self.arena.step_block().get(StepBlock::LR)
    }

    /// Sets the weight decay of one group, such as 0 for biases and norms.
    pub fn set_weight_decay(&self, group: usize, weight_decay: f64) -> Result<()> {
        check_rate("weight decay", weight_decay, false)?;
        if group >= crate::param::MAX_GROUPS {
            return Err(Error::argument(format!("there is no parameter group {group}")));
        }
        self.arena.step_block().set(StepBlock::WEIGHT_DECAY + group, weight_decay)
    }

    /// Updates all parameters that are not frozen from their gradients, counts the step and forgets the gradients.
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
            let (values, grads) = (self.arena.values()?, self.arena.grads()?);
            let block = self.arena.step_block();
            let (floats, step) = (block.floats(), block.step()?);
            let [beta1, beta2] = self.rule.betas();
            ops::run_into(
                Advance { beta1, beta2, device: self.arena.device() },
                &[],
                &[(floats, Mode::Update), (&step, Mode::Update)],
            )?;
            let mut clip_value = f64::INFINITY;
            match self.clip {
                Clip::None => {}
                Clip::Value(limit) => clip_value = limit,
                Clip::Norm(max_norm) => {
                    ops::run_into(ClipNorm { max_norm }, &[&grads, &self.table], &[(floats, Mode::Update)])?;
                }
            }
            let op = Update { rule: self.rule, clip_value };
            let mut outs = vec![(&values, Mode::Update)];
            outs.extend(self.state.iter().map(|t| (t, Mode::Update)));
            ops::run_into(op, &[&grads, floats, &step, &self.table], &outs)
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
}

impl<R: Rule> Step for Optimizer<R> {
    fn step(&mut self) -> Result<()> {
        Optimizer::step(self)
    }

    fn set_lr(&self, lr: f64) -> Result<()> {
        Optimizer::set_lr(self, lr)
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
