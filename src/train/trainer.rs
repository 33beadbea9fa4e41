//! The training loop: epochs over a prepared data set, early stopping, checkpoints, resuming.
//!
//! A run is a pure function of the data, the settings and the seed: the same for every number of threads, and the same
//! whether it was interrupted and resumed or not. The loop prints nothing; an [`Observer`] does.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::checkpoint::{self, Checkpoint, FORMAT, Judge, ModelFile, Progress};
use super::metrics::Metrics;
use super::model::{Architecture, ClassFactors, Model};
use super::network::Network;
use super::observe::{EpochReport, Observer, Report};
use super::place::Place;
use super::spec::{OptimizerKind, TrainConfig};
use super::{log, report};
use crate::data::{Batch, Dataset, LastBatch, Loader, LoaderOptions, Order, Part, Sampler, Target, Targets};
use crate::io::HostTensor;
use crate::io::folder::Folder;
use crate::nn::Cx;
use crate::optim::{
    self, Adam, AdamW, Clip, Input, Optimizer, PlateauState, RmsProp, Sgd, StepOptions, TrainStep,
};
use crate::tensor::check_numerics;
use crate::{DType, Device, Error, ErrorKind, Result, Tensor};

/// The least time between two checkpoints within a run, but for the first and the last.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Steps after which losses are read on a GPU: what a diverged run can lose.
const READ_EVERY: usize = 32;

/// A run in progress.
pub struct Trainer {
    model: Arc<Model>,
    step: TrainStep,
    target: Target,
    train: Loader,
    validation: Part,
    test: Part,
    file: ModelFile,
    progress: Progress,
    kept: Vec<(String, HostTensor<'static>)>,
    log: String,
    /// Rows of the batches whose losses were not read yet.
    unread: Vec<usize>,
    place: Place,
    plateau: Option<(optim::Plateau, PlateauState)>,
    /// Factors of the training loss.
    class_weights: Option<Arc<ClassFactors>>,
}

impl Trainer {
    /// A new run on `data` that will save to `dir`. If there is a model already, only the finished one replaces it, and
    /// checkpoints go to `dir.partial` until then. `source` is kept in the model file for the caller's own use.
    pub fn new(
        data: Dataset,
        network: Network,
        config: TrainConfig,
        source: toml::Table,
        device: Device,
        dir: &Path,
    ) -> Result<Trainer> {
        config.check()?;
        let classes = data.preparation.target().classes().len();
        let architecture = Architecture::new(data.task, &data.preparation.shape(), classes, network);
        let model =
            Model::with_precision(architecture.clone(), config.seed, config.precision.precision(), device)?;
        let file = ModelFile {
            format: FORMAT,
            warpsmith: env!("CARGO_PKG_VERSION").to_owned(),
            metrics_on: None,
            metrics: Metrics::new(),
            architecture,
            training: config.clone(),
            source,
            preparation: data.preparation.clone(),
        };
        Trainer::assemble(data, model, config, file, Place::new(dir, None)?)
    }

    /// Goes on with the run in `folder`, on the same data, to `config.epochs` epochs in all; saves to `dir`, as
    /// [`Trainer::new`] does if that is another model's folder.
    ///
    /// Errors (kind `Data`) if the data is not what the run was trained on. All of `config` but `epochs` and `patience`
    /// must be the folder's own; that is the caller's duty, who knows which flags were given.
    pub fn resume(
        data: Dataset,
        folder: &Folder,
        file: ModelFile,
        config: TrainConfig,
        device: Device,
        dir: &Path,
    ) -> Result<Trainer> {
        config.check()?;
        let precision = config.precision.precision();
        let model = Model::with_precision(file.architecture.clone(), config.seed, precision, device)?;
        let file = ModelFile { training: config.clone(), ..file };
        let place = Place::new(dir, Some(folder))?;
        let mut trainer = Trainer::assemble(data, model, config, file, place)?;
        let (progress, kept) = checkpoint::load_state(folder, &trainer.model)?;
        if progress.data_checksum != trainer.progress.data_checksum {
            let message =
                "the data is not what this model was trained on, or was divided or prepared differently";
            return Err(Error::data(folder.path(), message));
        }
        trainer.train.seek(progress.position())?;
        if let (Some((_, state)), Some(saved)) = (&mut trainer.plateau, progress.plateau) {
            *state = saved;
        }
        trainer.log = checkpoint::read_log(folder, progress.epoch)?;
        (trainer.progress, trainer.kept) = (progress, kept);
        // By the settings of now, which may allow more.
        trainer.progress.stopped_early = trainer.is_out_of_patience();
        Ok(trainer)
    }

    fn assemble(
        data: Dataset,
        model: Model,
        config: TrainConfig,
        file: ModelFile,
        place: Place,
    ) -> Result<Trainer> {
        // One row has no variance to normalise by: a last batch of one is left out.
        let rows = data.train.rows();
        let two = model.architecture().network.needs_two_rows(&model.architecture().input)?;
        if two && config.batch.min(rows) < 2 {
            let message = "the network normalises over the batch, which needs at least 2 rows a step";
            return Err(Error::argument(message).with_help("give a larger --batch"));
        }
        let last = if two && rows % config.batch == 1 { LastBatch::Drop } else { LastBatch::Keep };
        let seed = config.seed;
        let order = match config.sampler {
            Sampler::Shuffled => Order::Shuffled { seed },
            Sampler::Weighted => Order::Weighted { seed },
        };
        let options = LoaderOptions { batch: config.batch, order, last, prefetch: None };
        let classes = data.preparation.target().classes().len();
        let class_weights =
            config.class_weights.as_ref().map(|w| w.resolve(&data.train.targets, classes)).transpose()?;
        let factors = |w| ClassFactors::new(w, model.arena().device()).map(Arc::new);
        let class_weights = class_weights.map(factors).transpose()?;
        let model = Arc::new(model);
        let step = make_step(&model, &config, class_weights.clone())?;
        let progress = Progress { data_checksum: data_checksum(&data), ..Progress::default() };
        let plateau = config.schedule.plateau().map(|p| (p, p.start(config.lr)));
        Ok(Trainer {
            target: data.preparation.target().clone(),
            train: Loader::new(Arc::new(data.train), options)?.with_augment(config.augment, seed, classes)?,
            validation: data.validation,
            test: data.test,
            kept: Vec::new(),
            log: String::new(),
            unread: Vec::new(),
            place,
            model,
            step,
            file,
            progress,
            plateau,
            class_weights,
        })
    }

    /// The model being trained.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How far training has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The figures of all finished epochs.
    pub fn entries(&self) -> Result<Vec<log::Entry>> {
        log::parse(&self.log)
    }

    /// Asks `model`, which this run saved, about the rows that its figures are of.
    pub fn examine(&self, model: &Model) -> Result<report::Examined> {
        let judge = self.file.metrics_on.unwrap_or(Judge::Validation);
        let part = match judge {
            Judge::Test => &self.test,
            Judge::Validation => &self.validation,
            Judge::Train => self.train.part(),
        };
        report::examine(model, &self.file.preparation, judge, part)
    }

    /// Trains to the end, saving as it goes and at the end.
    ///
    /// When `stop` becomes true, saves a checkpoint to resume from and returns an error of kind `Interrupted`. A loss or
    /// parameter that is no longer finite is an error of kind `Diverged` that names the step and the first bad op; the
    /// last good checkpoint stays, with the lines of all finished epochs in its log.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Report> {
        let first = self.progress.epoch;
        self.run_to_the_end(observer, stop).map_err(|error| {
            if error.kind() != ErrorKind::Diverged || self.progress.epoch == first {
                return error;
            }
            // That the log lacks its last lines is nothing beside the divergence.
            let _ = checkpoint::replace_log(self.place.checkpoints(), &self.log);
            let kept = format!("the last good checkpoint is in {}", self.place.shown_checkpoints().display());
            let help = error.help().map_or(kept.clone(), |help| format!("{help}; {kept}"));
            error.with_help(help)
        })
    }

    fn run_to_the_end(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Report> {
        let start = Instant::now();
        let config = self.file.training.clone();
        let per_epoch = self.train.batches_per_epoch() as u64;
        let schedule = config.schedule.over_steps(per_epoch);
        let warmup = (config.warmup * per_epoch as f64).round() as u64;
        // The rate of a step, counted from 0.
        let lr = |plateau: &Option<(_, PlateauState)>, step: u64| match (&schedule, plateau) {
            (Some(schedule), _) => schedule.lr(config.lr, step, warmup, config.horizon * per_epoch),
            (None, Some((_, state))) if step < warmup => state.lr * (step + 1) as f64 / warmup as f64,
            (None, Some((_, state))) => state.lr,
            (None, None) => config.lr,
        };
        let reads_at_once = self.model.arena().device().is_cpu();
        let mut last_save: Option<Instant> = None;
        let mut first_step = None;
        let mut samples = 0;
        let mut epoch_clock = (Instant::now(), 0);
        while self.progress.epoch < config.epochs && !self.is_out_of_patience() {
            if stop.load(Relaxed) {
                self.read_losses(observer)?;
                return self.interrupt(observer);
            }
            let Some(batch) = self.train.next_batch()? else {
                let clock = std::mem::replace(&mut epoch_clock, (Instant::now(), samples));
                let rate = (samples - clock.1) as f64 / clock.0.elapsed().as_secs_f64();
                self.finish_epoch(lr(&self.plateau, self.progress.steps.saturating_sub(1)), rate, observer)?;
                if last_save.is_none_or(|t| t.elapsed() > SAVE_INTERVAL) {
                    self.save_checkpoint(observer)?;
                    last_save = Some(Instant::now());
                }
                continue;
            };
            self.step.set_lr(lr(&self.plateau, self.progress.steps))?;
            let rows = batch.rows.len();
            let x = Input::new(&batch.features, [rows, self.model.architecture().width()])?;
            let targets = self.model.target_numbers(&batch.targets)?;
            self.step.run(&[x, targets.input()?]).map_err(|error| match error.kind() {
                ErrorKind::Diverged => diagnose(
                    &self.model,
                    &config,
                    self.class_weights.as_deref(),
                    batch,
                    self.progress.steps,
                    &error,
                ),
                _ => error,
            })?;
            self.progress.steps += 1;
            self.progress.batch = self.train.position().batch;
            samples += rows as u64;
            self.unread.push(rows);
            // On a GPU reading waits: the device would have nothing to do meanwhile.
            if reads_at_once || self.unread.len() == READ_EVERY || self.progress.batch == per_epoch as usize {
                self.read_losses(observer)?;
            }
            first_step.get_or_insert_with(|| start.elapsed().as_secs_f64());
            observer.batch(self.progress.epoch + 1, self.progress.batch, per_epoch as usize);
        }
        self.finish(start, first_step, samples, observer)
    }

    fn is_out_of_patience(&self) -> bool {
        let patience = self.file.training.patience;
        patience > 0
            && self.progress.best_loss.is_some()
            && self.progress.batch == 0
            && self.progress.epoch - self.progress.best_epoch >= patience
    }

    /// Reads the losses of the steps that were made since the last time. With a loss scale, a loss that is not finite is of a
    /// step that was skipped, and too many of them in a row are divergence.
    fn read_losses(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let losses = self.step.losses()?;
        let rows = std::mem::take(&mut self.unread);
        let first = self.progress.steps + 1 - losses.len() as u64;
        for ((step, &loss), rows) in (first..).zip(&losses).zip(rows) {
            if loss.is_finite() {
                self.progress.loss_sum += loss * rows as f64;
                self.progress.loss_rows += rows as u64;
            } else if !self.model.arena().precision().scales_loss() {
                let cause = first_not_finite(&self.model, self.progress.steps, || Ok(()));
                return Err(diverged(&format!("the loss of step {step} is {loss}; {cause}")));
            }
            observer.step(step, loss);
        }
        self.step.optimizer().check_skipped(optim::MAX_SKIPPED).map_err(|error| {
            let error = diverged(&format!("at step {}, {}", self.progress.steps, error.message()));
            error.with_help(
                "train with --precision bf16, which has the range of f32, or lower the learning rate",
            )
        })
    }

    /// Evaluates, logs and judges a finished epoch.
    fn finish_epoch(&mut self, lr: f64, samples_per_second: f64, observer: &mut dyn Observer) -> Result<()> {
        let train_loss = self.progress.loss_sum / self.progress.loss_rows.max(1) as f64;
        let (mut val_loss, mut val_metrics) = (None, Metrics::new());
        if self.validation.rows() > 0 {
            let (answers, loss) =
                self.model.evaluate(&self.validation.inputs, Some(&self.validation.targets))?;
            val_metrics = self.model.metrics(&answers, &self.validation.targets, &self.target);
            val_loss = Some(loss);
        }
        if !val_loss.unwrap_or(0.0).is_finite() || !self.parameters_are_finite()? {
            let cause = first_not_finite(&self.model, self.progress.steps, || {
                let part = &self.validation;
                self.model.evaluate(&part.inputs, Some(&part.targets)).map(drop)
            });
            let (step, epoch) = (self.progress.steps, self.progress.epoch + 1);
            return Err(diverged(&format!("after step {step}, at the end of epoch {epoch}: {cause}")));
        }
        self.progress.epoch += 1;
        self.progress.batch = 0;
        // Without a validation part the last epoch is kept.
        let best = match (val_loss, self.progress.best_loss) {
            (Some(loss), Some(best)) => loss < best,
            _ => true,
        };
        if best {
            self.progress.best_loss = val_loss;
            self.progress.best_epoch = self.progress.epoch;
            self.kept = self.model.master_state()?;
            self.file.metrics = val_metrics.clone();
            self.file.metrics_on = val_loss.map(|_| Judge::Validation);
        }
        if let Some((rule, state)) = &mut self.plateau {
            rule.observe(state, val_loss.unwrap_or(train_loss));
        }
        self.progress.train_loss = Some(train_loss);
        self.progress.val_loss = val_loss;
        (self.progress.loss_sum, self.progress.loss_rows) = (0.0, 0);
        let report = EpochReport {
            epoch: self.progress.epoch,
            steps: self.progress.steps,
            train_loss,
            val_loss,
            val_metrics,
            lr,
            samples_per_second,
            best,
        };
        self.log += &log::Entry::from(&report).to_line();
        self.log.push('\n');
        observer.epoch(&report);
        Ok(())
    }

    fn parameters_are_finite(&self) -> Result<bool> {
        let values = self.model.arena().values()?.to_dtype(DType::F32)?;
        Ok(values.to_vec::<f32>()?.iter().all(|v| v.is_finite()))
    }

    fn interrupt(&mut self, observer: &mut dyn Observer) -> Result<Report> {
        self.save_checkpoint(observer)?;
        let (epoch, steps) = (self.progress.epoch + 1, self.progress.steps);
        Err(self.place.interrupted(&format!("in epoch {epoch} after {steps} steps")))
    }

    /// Writes what the run can go on from.
    fn save_checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let dir = self.place.checkpoints().to_owned();
        self.save(&dir)?;
        self.place.checkpoint_written();
        observer.saved(&self.place.shown_checkpoints());
        Ok(())
    }

    /// Writes the folder of the finished model.
    fn save_result(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let dir = self.place.dir.clone();
        self.save(&dir)?;
        self.place.result_written()?;
        observer.saved(&self.place.shown);
        Ok(())
    }

    fn save(&mut self, dir: &Path) -> Result<()> {
        if self.kept.is_empty() {
            // Interrupted within the first epoch: there is no better model than the one at hand.
            self.kept = self.model.master_state()?;
        }
        let floats = self.model.arena().step_block().floats();
        self.progress.step_floats = floats.to_vec()?;
        self.progress.plateau = self.plateau.as_ref().map(|p| p.1);
        let (file, kept, model, progress, log) =
            (&self.file, &self.kept, &self.model, &self.progress, &self.log);
        checkpoint::save(dir, &Checkpoint { file, kept, model, progress, log })?;
        report::remove_stale(dir);
        Ok(())
    }

    /// Evaluates the kept weights, saves and reports.
    fn finish(
        &mut self,
        start: Instant,
        first_step_seconds: Option<f64>,
        samples: u64,
        observer: &mut dyn Observer,
    ) -> Result<Report> {
        self.progress.stopped_early =
            self.progress.epoch < self.file.training.epochs && self.is_out_of_patience();
        let kept = Model::new(self.model.architecture().clone(), 0, self.model.arena().device())?;
        kept.load_state(self.kept.iter().map(|(n, t)| (n.as_str(), t.clone())).collect())?;
        let judged = [
            (Judge::Test, &self.test),
            (Judge::Validation, &self.validation),
            (Judge::Train, self.train.part()),
        ]
        .into_iter()
        .find(|(_, part)| part.rows() > 0);
        let mut test_loss = None;
        if let Some((judge, part)) = judged {
            self.file.metrics_on = Some(judge);
            let (answers, loss) = kept.evaluate(&part.inputs, Some(&part.targets))?;
            self.file.metrics = kept.metrics(&answers, &part.targets, &self.target);
            test_loss = (self.test.rows() > 0).then_some(loss);
        }
        self.save_result(observer)?;
        Ok(Report {
            parameters: self.model.arena().numel()?,
            epochs: self.progress.epoch,
            steps: self.progress.steps,
            skipped_steps: self.step.optimizer().skipped()?,
            samples,
            seconds: start.elapsed().as_secs_f64(),
            first_step_seconds,
            train_loss: self.progress.train_loss.unwrap_or(f64::NAN),
            val_loss: self.progress.val_loss,
            best_epoch: self.progress.best_epoch,
            test_loss,
            metrics: self.file.metrics.clone(),
            metrics_on: self.file.metrics_on.unwrap_or(Judge::Train),
        })
    }
}

/// The error for a loss that is not finite, after `steps` good steps: runs the step once more to find the first bad op.
fn diagnose(
    model: &Model,
    config: &TrainConfig,
    weights: Option<&ClassFactors>,
    batch: &Batch,
    steps: u64,
    error: &Error,
) -> Error {
    let cause = first_not_finite(model, steps, || {
        let shape = [batch.rows.len(), model.architecture().width()];
        let x = Tensor::from_slice(&batch.features, shape, model.arena().device())?;
        let targets = model.targets(&batch.targets)?;
        let mut cx = Cx::train(model.arena().step_block(), config.seed)?;
        let outputs = model.forward(&mut cx, &x)?;
        model.training_loss(&outputs, &targets, config.label_smoothing, weights).map(drop)
    });
    let what = error.message().replacen("the loss is", &format!("the loss of step {} is", steps + 1), 1);
    diverged(&format!("{what}; {cause}"))
}

/// What is to blame for a model that is no longer finite: the first such parameter, else the first such op of `again`.
fn first_not_finite(model: &Model, steps: u64, again: impl FnOnce() -> Result<()>) -> String {
    let params = model.arena().params().unwrap_or_default();
    let finite = |p: &crate::Param| {
        p.get().and_then(|t| t.to_f64_vec()).is_ok_and(|v| v.iter().all(|v| v.is_finite()))
    };
    match params.iter().find(|p| !finite(p)) {
        Some(param) => format!("parameter {} was no longer finite after step {steps}", param.name()),
        None => match check_numerics(again) {
            Err(error) => error.to_string(),
            Ok(()) => "no single op is to blame".to_owned(),
        },
    }
}

fn diverged(how: &str) -> Error {
    Error::new(ErrorKind::Diverged, format!("training diverged: {how}"))
        .with_help("lower the learning rate, clip gradients (--clip 1), or check the data for extreme values")
}

/// The step of `model`: captured on a GPU, looking at its loss before it goes on elsewhere.
fn make_step(
    model: &Arc<Model>,
    config: &TrainConfig,
    class_weights: Option<Arc<ClassFactors>>,
) -> Result<TrainStep> {
    let optimizer = make_optimizer(model, config)?;
    let (arena, seed, smoothing) = (model.arena().clone(), config.seed, config.label_smoothing);
    let shared = model.clone();
    let forward = move |batch: &[Tensor], _: usize| {
        let mut cx = Cx::train(shared.arena().step_block(), seed)?;
        let outputs = shared.forward(&mut cx, &batch[0])?;
        shared.training_loss(&outputs, &batch[1], smoothing, class_weights.as_deref())
    };
    let check = arena.device().is_cpu() && !arena.precision().scales_loss();
    let options = StepOptions { check, losses: READ_EVERY, ..StepOptions::default() };
    TrainStep::new(&arena, optimizer, Box::new(forward), options)
}

fn make_optimizer(model: &Model, config: &TrainConfig) -> Result<Box<dyn optim::Step>> {
    let clip = config.clip.map_or(Clip::None, Clip::Norm);
    let (arena, lr, momentum, weight_decay) =
        (model.arena(), config.lr, config.momentum, config.weight_decay);
    Ok(match config.optimizer {
        OptimizerKind::Adam => {
            Box::new(Optimizer::new(arena, Adam { weight_decay, ..Adam::default() }, lr)?.with_clip(clip)?)
        }
        OptimizerKind::AdamW => {
            Box::new(Optimizer::new(arena, AdamW { weight_decay, ..AdamW::default() }, lr)?.with_clip(clip)?)
        }
        OptimizerKind::Sgd => {
            let rule = Sgd { momentum, weight_decay, ..Sgd::default() };
            Box::new(Optimizer::new(arena, rule, lr)?.with_clip(clip)?)
        }
        OptimizerKind::RmsProp => {
            let rule = RmsProp { momentum, weight_decay, ..RmsProp::default() };
            Box::new(Optimizer::new(arena, rule, lr)?.with_clip(clip)?)
        }
    })
}

/// A checksum of what is trained on and judged by.
pub fn data_checksum(data: &Dataset) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    for part in [&data.train, &data.validation, &data.test] {
        part.inputs.visit_bytes(|bytes| hash.update(bytes));
        match &part.targets {
            Targets::Classes(classes) => hash.update(bytemuck::cast_slice(classes)),
            Targets::Values(values) | Targets::Probabilities { values, .. } => {
                hash.update(bytemuck::cast_slice(values));
            }
        }
    }
    hash.finalize()
}
