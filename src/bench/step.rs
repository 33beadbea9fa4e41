//! A full training step: forward, loss, backward, Adam. What `benches/compare/step_torch.py` does with PyTorch.
//!
//! The batch stays the same from step to step and nothing in the timed loop reads the loss: what is timed is the step, not
//! the data or the log. On a GPU the step is captured and a time is that of ten steps, over ten. The check: the loss is finite before and after, and smaller after.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Times, below, normal, wrong};
use crate::data::{Targets, Task};
use crate::nn::Cx;
use crate::optim::{Adam, Capture, Optimizer, StepOptions, TrainStep};
use crate::tensor::no_grad;
use crate::train::{Architecture, Model, Network, can_allocate};
use crate::{Device, Error, ErrorKind, Result, Tensor};

/// What to time.
#[derive(Clone, Debug)]
pub struct StepBench {
    /// The network.
    pub network: Network,
    /// The shape of one example.
    pub input: Vec<usize>,
    /// Logits a row: with 1 the loss is binary cross-entropy on logits, with more it is cross-entropy.
    pub outputs: usize,
    /// Steps before the clock starts.
    pub warmup: usize,
    /// Timed steps; 0 for at least 60 and at least `time`.
    pub steps: usize,
    /// See `steps`.
    pub time: Duration,
    /// Where weights and data come from.
    pub seed: u64,
    /// Where to run.
    pub device: Device,
    /// Whether the step is captured, on a GPU.
    pub capture: Capture,
}

/// The times of one batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRow {
    /// Rows a step.
    pub batch: usize,
    /// Median milliseconds a step.
    pub median_ms: f64,
    /// The shortest.
    pub min_ms: f64,
    /// Nine of ten steps took no longer.
    pub p90_ms: f64,
    /// Timed steps.
    pub steps: usize,
    /// The loss before the first step, and after the last.
    pub loss: (f64, f64),
}

impl StepBench {
    /// Times steps of `batch` rows.
    ///
    /// # Errors
    /// Kind `Diverged`: the loss is not finite, or has not fallen; and whatever building and running the model gives.
    pub fn run(&self, batch: usize) -> Result<StepRow> {
        let task = if self.outputs == 1 { Task::Binary } else { Task::Multiclass };
        let architecture = Architecture::new(task, &self.input, self.outputs, self.network.clone());
        let inputs = architecture.width();
        let model = Model::new(architecture, self.seed, self.device)?;
        let adam = Optimizer::new(model.arena(), Adam::default(), 1e-3)?;
        let bytes = inputs.checked_add(self.outputs).and_then(|n| n.checked_mul(8)?.checked_mul(batch));
        if !bytes.is_some_and(can_allocate) {
            let message = format!("no memory for a batch of {batch} rows of {inputs} numbers");
            return Err(Error::new(ErrorKind::OutOfMemory, message));
        }
        let x = Tensor::from_slice(&normal(batch * inputs, self.seed, 1), [batch, inputs], self.device)?;
        let targets = model.targets(&Targets::Classes(below(batch, self.outputs.max(2), self.seed, 2)))?;

        let model = Arc::new(model);
        let loss = || no_grad(|| model.loss(&model.forward(&mut Cx::eval(), &x)?, &targets)?.item());
        let (shared, seed) = (model.clone(), self.seed);
        let forward = move |batch: &[Tensor], _: usize| {
            let mut cx = Cx::train(shared.arena().step_block(), seed)?;
            shared.loss(&shared.forward(&mut cx, &batch[0])?, &batch[1])
        };
        // What runs is the step that training runs, captured on a GPU; losses stay where they are made.
        let options = StepOptions { capture: self.capture, losses: 1 << 20, ..StepOptions::default() };
        let mut train = TrainStep::new(model.arena(), Box::new(adam), Box::new(forward), options)?;
        train.set_batch(vec![x.clone(), targets.clone()]);
        // A GPU is waited for once a group, not once a step: that would be timed too.
        let group = if self.device.is_cpu() { 1 } else { 10 };
        let mut step = || -> Result<()> {
            (0..group).try_for_each(|_| train.repeat())?;
            self.device.synchronize()
        };
        let before = loss()?;
        for _ in 0..self.warmup {
            step()?;
        }
        let (mut times, end) = (Vec::new(), Instant::now() + self.time);
        let least = if self.steps == 0 { 60 } else { self.steps };
        while times.len() < least || (self.steps == 0 && Instant::now() < end) {
            let start = Instant::now();
            step()?;
            times.push(start.elapsed().as_secs_f64() * 1e3 / group as f64);
        }
        let after = loss()?;
        if !(before.is_finite() && after < before) {
            let message =
                format!("the loss was {before} before {} steps and is {after}", self.warmup + times.len());
            return Err(wrong("the training step", message));
        }
        let times = Times::sorted(times);
        Ok(StepRow {
            batch,
            median_ms: times.median(),
            min_ms: times.quantile(0.0),
            p90_ms: times.quantile(0.9),
            steps: times.0.len(),
            loss: (before, after),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_learn_and_are_timed() {
        for (network, outputs) in [("mlp:16", 1), ("mlp:16", 3), ("cnn:4", 3), ("lstm:5", 3)] {
            let bench = StepBench {
                network: network.parse().unwrap(),
                input: vec![1, 4, 4],
                outputs,
                warmup: 1,
                steps: 12,
                time: Duration::ZERO,
                seed: 0,
                device: Device::cpu(),
                capture: Capture::Auto,
            };
            let row = bench.run(24).unwrap();
            assert!(
                row.min_ms > 0.0 && row.min_ms <= row.median_ms && row.median_ms <= row.p90_ms,
                "{row:?}"
            );
            assert!(row.steps == 12 && row.loss.1 < row.loss.0, "{row:?}");
        }
    }
}
