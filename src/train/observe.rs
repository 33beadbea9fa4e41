//! What a run tells while it lasts and at its end.

#![forbid(unsafe_code)]

use std::path::Path;

use super::checkpoint::Judge;
use super::metrics::Metrics;

/// The figures of one epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    /// From 1.
    pub epoch: u64,
    /// Finished optimiser steps.
    pub steps: u64,
    /// Mean training loss (label smoothing included) over the epoch's rows, each as it was when its batch was trained on.
    pub train_loss: f64,
    /// Loss on the validation part, if there is one.
    pub val_loss: Option<f64>,
    /// Figures on the validation part.
    pub val_metrics: Metrics,
    /// The learning rate of the last step.
    pub lr: f64,
    /// Rows trained on a second, in this epoch.
    pub samples_per_second: f64,
    /// Whether this epoch is the best so far.
    pub best: bool,
}

/// Is told what happens.
pub trait Observer {
    /// An optimiser step (from 1) was made, on a batch of this mean loss.
    fn step(&mut self, step: u64, loss: f64) {
        let _ = (step, loss);
    }
    /// A batch was trained on: batches done and in all, of this epoch (from 1).
    fn batch(&mut self, epoch: u64, done: usize, of: usize) {
        let _ = (epoch, done, of);
    }
    /// An epoch is over.
    fn epoch(&mut self, report: &EpochReport) {
        let _ = report;
    }
    /// A checkpoint was written to `dir`.
    fn saved(&mut self, dir: &Path) {
        let _ = dir;
    }
}

/// Tells nobody.
pub struct Silent;

impl Observer for Silent {}

/// Tells both.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn step(&mut self, step: u64, loss: f64) {
        self.0.step(step, loss);
        self.1.step(step, loss);
    }

    fn batch(&mut self, epoch: u64, done: usize, of: usize) {
        self.0.batch(epoch, done, of);
        self.1.batch(epoch, done, of);
    }

    fn epoch(&mut self, report: &EpochReport) {
        self.0.epoch(report);
        self.1.epoch(report);
    }

    fn saved(&mut self, dir: &Path) {
        self.0.saved(dir);
        self.1.saved(dir);
    }
}

/// Tells whoever is there.
impl<A: Observer> Observer for Option<A> {
    fn step(&mut self, step: u64, loss: f64) {
        self.iter_mut().for_each(|observer| observer.step(step, loss));
    }

    fn batch(&mut self, epoch: u64, done: usize, of: usize) {
        self.iter_mut().for_each(|observer| observer.batch(epoch, done, of));
    }

    fn epoch(&mut self, report: &EpochReport) {
        self.iter_mut().for_each(|observer| observer.epoch(report));
    }

    fn saved(&mut self, dir: &Path) {
        self.iter_mut().for_each(|observer| observer.saved(dir));
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Values trained.
    pub parameters: usize,
    /// Finished epochs, of this and earlier runs.
    pub epochs: u64,
    /// Optimiser steps, of this and earlier runs.
    pub steps: u64,
    /// Those of them that were skipped for gradients that were not finite.
    pub skipped_steps: u64,
    /// Rows trained on in this run.
    pub samples: u64,
    /// Seconds that this run took, evaluation and saving included.
    pub seconds: f64,
    /// Seconds from the start of the run to the end of its first step.
    pub first_step_seconds: Option<f64>,
    /// Sample-weighted mean loss over the last epoch, label smoothing included.
    pub train_loss: f64,
    /// Validation loss after the last epoch.
    pub val_loss: Option<f64>,
    /// The epoch whose weights were kept, from 1.
    pub best_epoch: u64,
    /// Loss of the kept weights on the test part.
    pub test_loss: Option<f64>,
    /// Figures of the kept weights: on the test part if there is one, else on the validation part, else on the training part.
    pub metrics: Metrics,
    /// The part that `metrics` are of.
    pub metrics_on: Judge,
}
