//! The loop that trains a language model: steps over shuffled windows, a look at all of the validation part now and then,
//! checkpoints, resuming.
//!
//! A run is a pure function of text, settings and seed, resumed or not, for any number of threads. The step itself is a
//! [`TrainStep`]: captured on a GPU, its losses read every few steps.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::config::{GptSpec, LmConfig};
use super::folder::{self, LmCheckpoint, LmFile, LmProgress};
use super::model::LanguageModel;
use crate::data::text::{TextData, TokenBatch, Tokenizer, Windows};
use crate::io::HostTensor;
use crate::io::folder::Folder;
use crate::nn::{Cx, Gpt};
use crate::optim::{
    Adam, AdamW, Clip, Input, MAX_SKIPPED, Optimizer, RmsProp, Sgd, Step, StepOptions, TrainStep,
};
use crate::param::StepBlock;
use crate::train::checkpoint::FORMAT;
use crate::train::place::Place;
use crate::train::spec::OptimizerKind;
use crate::{Device, Error, ErrorKind, Result};

/// The least time between two checkpoints, but for the first and the last.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Steps after which losses are read at the latest: what a diverged run can lose.
const READ_EVERY: u64 = 10;

/// The figures of one look at the validation part.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Finished steps.
    pub step: u64,
    /// Mean training loss since the last look, each as it was when its batch was trained on.
    pub train_loss: f64,
    /// Loss on all of the validation part, if there is one.
    pub val_loss: Option<f64>,
    /// The learning rate of the last step.
    pub lr: f64,
    /// Tokens trained on a second since the last look, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Whether this is the best so far.
    pub best: bool,
}

/// Is told what happens.
pub trait LmObserver {
    /// Losses were read, of the steps up to `step` (from 1); the last of them.
    fn step(&mut self, step: u64, loss: f64) {
        let _ = (step, loss);
    }
    /// The validation part was looked at.
    fn evaluated(&mut self, evaluation: &Evaluation) {
        let _ = evaluation;
    }
    /// A checkpoint was written to `dir`.
    fn saved(&mut self, dir: &Path) {
        let _ = dir;
    }
}

/// Tells nobody.
pub struct Silent;

impl LmObserver for Silent {}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct LmReport {
    /// Values trained.
    pub parameters: usize,
    /// Finished steps, of this and earlier runs.
    pub steps: u64,
    /// Of these, steps that were skipped because of an overflow in f16.
    pub skipped_steps: u64,
    /// Tokens trained on in this run.
    pub tokens: u64,
    /// Seconds that this run took, evaluation and saving included.
    pub seconds: f64,
    /// Tokens trained on a second, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Mean training loss since the last look but one.
    pub train_loss: f64,
    /// The loss after the last step, on all of the validation part.
    pub val_loss: Option<f64>,
    /// The best validation loss, which is that of the kept weights.
    pub best_val_loss: Option<f64>,
    /// The step whose weights were kept.
    pub best_step: u64,
    /// The most bytes of tensors that were in use at once, on the device of the model.
    pub peak_bytes: u64,
}

/// A run in progress.
pub struct LmTrainer {
    model: LanguageModel,
    step: TrainStep,
    tokenizer: Tokenizer,
    train: Windows,
    validation: Option<Windows>,
    file: LmFile,
    progress: LmProgress,
    kept: Vec<(String, HostTensor<'static>)>,
    log: String,
    place: Place,
}

impl LmTrainer {
    /// A new run that will save to `dir`; a model there is replaced by the finished one only. `source` is kept in the model
    /// file for the caller's own use.
    ///
    /// # Errors
    /// Kind `Argument`: settings that do not fit; kind `Data`: a text too short for the context.
    pub fn new(
        data: TextData,
        spec: &GptSpec,
        config: LmConfig,
        source: toml::Table,
        device: Device,
        dir: &Path,
    ) -> Result<LmTrainer> {
        config.check()?;
        let architecture = spec.config(data.tokenizer.vocab(), data.tokenizer.padded_vocab())?;
        let file = LmFile {
            format: FORMAT,
            kind: LmFile::KIND.to_owned(),
            warpsmith: env!("CARGO_PKG_VERSION").to_owned(),
            name: spec.to_string(),
            val_loss: None,
            architecture,
            training: config,
            source,
        };
        LmTrainer::assemble(data, file, device, Place::new(dir, None)?)
    }

    /// Goes on with the run in `folder`, on the same text, to `config.steps` steps in all.
    ///
    /// Errors (kind `Data`) if the text is not what the run was trained on. All of `config` but `steps`, `eval_every` and
    /// `capture` must be the folder's own; that is the caller's duty, who knows which flags were given.
    pub fn resume(
        data: TextData,
        folder: &Folder,
        file: LmFile,
        config: LmConfig,
        device: Device,
        dir: &Path,
    ) -> Result<LmTrainer> {
        config.check()?;
        let file = LmFile { training: config, ..file };
        let mut trainer = LmTrainer::assemble(data, file, device, Place::new(dir, Some(folder))?)?;
        let (progress, kept, log) = folder::load_state(folder, &trainer.model)?;
        if progress.data_checksum != trainer.progress.data_checksum {
            let message = "the text is not what this model was trained on, or was divided differently";
            return Err(Error::data(folder.path(), message));
        }
        (trainer.progress, trainer.kept, trainer.log) = (progress, kept, log);
        Ok(trainer)
    }

    fn assemble(data: TextData, file: LmFile, device: Device, place: Place) -> Result<LmTrainer> {
        let (config, context) = (file.training.clone(), file.architecture.context);
        let train = Windows::new(&data.train, config.batch, context)?;
        train.check_random()?;
        // Too short a part to predict anything from is none.
        let validation = match data.val.len() {
            0 | 1 => None,
            _ => Some(Windows::new(&data.val, config.batch, context)?),
        };
        let precision = config.precision.precision();
        let model = LanguageModel::new(&file.architecture, precision, config.seed, device)?;
        let optimizer = make_optimizer(&model, &config)?;
        let (gpt, block) = (model.shared(), model.arena().step_block().clone());
        let rows = (config.batch / config.micro_batches) as u64;
        let (seed, recompute) = (config.seed, config.recompute);
        let forward = move |batch: &[crate::Tensor], part: usize| {
            let cx = Cx::train(&block, seed)?.with_first_sample(part as u64 * rows);
            gpt.loss(&mut cx.with_recompute(recompute), &batch[0], &batch[1])
        };
        let options = StepOptions {
            capture: config.capture,
            micro_batches: config.micro_batches,
            ..StepOptions::default()
        };
        let step = TrainStep::new(model.arena(), optimizer, Box::new(forward), options)?;
        let progress = LmProgress { data_checksum: checksum(&data), ..LmProgress::default() };
        let tokenizer = data.tokenizer;
        let (kept, log) = (Vec::new(), String::new());
        Ok(LmTrainer { model, step, tokenizer, train, validation, file, progress, kept, log, place })
    }

    /// The model being trained.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// How far training has come.
    pub fn progress(&self) -> &LmProgress {
        &self.progress
    }

    /// What the model's file will say.
    pub fn file(&self) -> &LmFile {
        &self.file
    }

    /// Trains to the end, saving as it goes and at the end.
    ///
    /// When `stop` becomes true, saves a checkpoint to resume from and returns an error of kind `Interrupted`. A loss that is
    /// no longer finite, or too many skipped steps in a row, is an error of kind `Diverged`; the last checkpoint stays.
    pub fn run(&mut self, observer: &mut dyn LmObserver, stop: &AtomicBool) -> Result<LmReport> {
        self.run_to_the_end(observer, stop).map_err(|error| {
            if error.kind() != ErrorKind::Diverged {
                return error;
            }
            // Skipped steps changed nothing: where no better checkpoint is, what is there now is one. That it could not be saved
            // too would be the lesser news.
            if !self.kept_anything() && self.step.optimizer().check_skipped(MAX_SKIPPED).is_err() {
                let _ = self.save_checkpoint(observer);
            }
            if !self.kept_anything() {
                return error;
            }
            let kept = format!("the last good checkpoint is in {}", self.place.shown_checkpoints().display());
            let help = error.help().map_or(kept.clone(), |help| format!("{help}; {kept}"));
            error.with_help(help)
        })
    }

    /// Whether a checkpoint of this run lies on disk.
    fn kept_anything(&self) -> bool {
        Folder::open(self.place.checkpoints()).is_ok()
    }

    fn run_to_the_end(&mut self, observer: &mut dyn LmObserver, stop: &AtomicBool) -> Result<LmReport> {
        let start = Instant::now();
        let config = self.file.training.clone();
        let tokens_a_step = (config.batch * self.file.architecture.context) as u64;
        let first = self.progress.steps;
        let mut last_save: Option<Instant> = None;
        let mut batch = TokenBatch::default();
        // Time and steps of training alone: in all, and when the last look ended.
        let mut clock = Clock::default();
        while self.progress.steps < config.steps {
            if stop.load(Relaxed) {
                self.read_losses(observer)?;
                return self.interrupt(observer);
            }
            clock.start();
            let k = self.progress.steps;
            self.step.set_lr(config.lr_at(k))?;
            self.train.shuffled_into(config.seed, k * config.batch as u64, &mut batch)?;
            let shape = [batch.rows, batch.context];
            self.step.run(&[Input::new(&batch.inputs, shape)?, Input::new(&batch.targets, shape)?])?;
            self.progress.steps += 1;
            let done = self.progress.steps;
            let look =
                done == config.steps || config.eval_every > 0 && done.is_multiple_of(config.eval_every);
            if look || done.is_multiple_of(READ_EVERY) {
                self.read_losses(observer)?;
            }
            clock.stop(1);
            if look {
                let rate = clock.lap() * tokens_a_step as f64;
                self.look(config.lr_at(k), rate, observer)?;
                if done < config.steps && last_save.is_none_or(|t| t.elapsed() > SAVE_INTERVAL) {
                    self.save_checkpoint(observer)?;
                    last_save = Some(Instant::now());
                }
            }
        }
        if self.kept.is_empty() {
            self.kept = self.model.state()?;
        }
        let skipped_steps = self.step.optimizer().skipped()?;
        self.save_result(observer)?;
        let steps = self.progress.steps;
        Ok(LmReport {
            parameters: self.model.arena().numel()?,
            steps,
            skipped_steps,
            tokens: (steps - first) * tokens_a_step,
            seconds: start.elapsed().as_secs_f64(),
            tokens_per_second: clock.rate() * tokens_a_step as f64,
            train_loss: self.progress.train_loss.unwrap_or(f64::NAN),
            val_loss: self.progress.val_loss,
            best_val_loss: self.progress.best_loss,
            best_step: self.progress.best_step,
            peak_bytes: peak_bytes(self.model.arena().device()),
        })
    }

    /// Reads the losses that are on the device, and judges them.
    fn read_losses(&mut self, observer: &mut dyn LmObserver) -> Result<()> {
        let losses = self.step.losses()?;
        let first = self.progress.steps + 1 - losses.len() as u64;
        let scales = self.model.arena().precision().scales_loss();
        for (step, loss) in (first..).zip(&losses) {
            if loss.is_finite() {
                self.progress.loss_sum += loss;
                self.progress.loss_steps += 1;
            } else if !scales {
                return Err(Error::new(
                    ErrorKind::Diverged,
                    format!("training diverged: the loss of step {step} is {loss}"),
                )
                .with_help(
                    "lower the learning rate, clip gradients (--clip 1), or train longer with --warmup",
                ));
            }
        }
        self.step.optimizer().check_skipped(MAX_SKIPPED)?;
        if let Some(loss) = losses.last() {
            observer.step(self.progress.steps, *loss);
        }
        Ok(())
    }

    /// Looks at the validation part, logs and judges.
    fn look(&mut self, lr: f64, tokens_per_second: f64, observer: &mut dyn LmObserver) -> Result<()> {
        // Not a number where all steps were skipped, of whose losses none counts.
        let train_loss = self.progress.loss_sum / self.progress.loss_steps as f64;
        let val_loss = self.validation.as_ref().map(|windows| self.model.evaluate(windows)).transpose()?;
        let step = self.progress.steps;
        if let Some(loss) = val_loss.filter(|loss| !loss.is_finite()) {
            let message = format!("training diverged: the validation loss after step {step} is {loss}");
            return Err(Error::new(ErrorKind::Diverged, message)
                .with_help("lower the learning rate or clip gradients (--clip 1)"));
        }
        // Without a validation part the last weights are kept.
        let best = match (val_loss, self.progress.best_loss) {
            (Some(loss), Some(best)) => loss < best,
            _ => true,
        };
        if best {
            self.progress.best_loss = val_loss;
            self.progress.best_step = step;
            self.kept = self.model.state()?;
            self.file.val_loss = val_loss;
        }
        self.progress.train_loss = Some(train_loss);
        self.progress.val_loss = val_loss;
        (self.progress.loss_sum, self.progress.loss_steps) = (0.0, 0);
        let line =
            serde_json::json!({ "step": step, "train_loss": train_loss, "val_loss": val_loss, "lr": lr });
        self.log += &format!("{line}\n");
        observer.evaluated(&Evaluation { step, train_loss, val_loss, lr, tokens_per_second, best });
        Ok(())
    }

    fn interrupt(&mut self, observer: &mut dyn LmObserver) -> Result<LmReport> {
        self.save_checkpoint(observer)?;
        Err(self.place.interrupted(&format!("after {} steps", self.progress.steps)))
    }

    /// Writes what the run can go on from.
    fn save_checkpoint(&mut self, observer: &mut dyn LmObserver) -> Result<()> {
        let dir = self.place.checkpoints().to_owned();
        self.save(&dir)?;
        self.place.checkpoint_written();
        observer.saved(&self.place.shown_checkpoints());
        Ok(())
    }

    /// Writes the folder of the finished model.
    fn save_result(&mut self, observer: &mut dyn LmObserver) -> Result<()> {
        let dir = self.place.dir.clone();
        self.save(&dir)?;
        self.place.result_written()?;
        observer.saved(&self.place.shown);
        Ok(())
    }

    fn save(&mut self, dir: &Path) -> Result<()> {
        if self.kept.is_empty() {
            // Interrupted before the first look: there is no better model than the one at hand.
            self.kept = self.model.state()?;
        }
        let block = self.model.arena().step_block();
        self.progress.step_floats = block.floats().to_vec()?;
        self.progress.updates = block.steps()?;
        let (file, tokenizer, kept, model, progress, log) =
            (&self.file, &self.tokenizer, &self.kept[..], &self.model, &self.progress, &self.log[..]);
        folder::save(dir, &LmCheckpoint { file, tokenizer, kept, model, progress, log })
    }
}

/// Seconds and steps of training, without what lies between.
#[derive(Default)]
struct Clock {
    running: Option<Instant>,
    seconds: f64,
    steps: u64,
    lap: (f64, u64),
}

impl Clock {
    fn start(&mut self) {
        self.running = Some(Instant::now());
    }

    fn stop(&mut self, steps: u64) {
        if let Some(start) = self.running.take() {
            self.seconds += start.elapsed().as_secs_f64();
            self.steps += steps;
        }
    }

    /// Steps a second since the last lap, which ends now.
    fn lap(&mut self) -> f64 {
        let (seconds, steps) = std::mem::replace(&mut self.lap, (self.seconds, self.steps));
        (self.steps - steps) as f64 / (self.seconds - seconds)
    }

    /// Steps a second in all.
    fn rate(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.steps as f64 / self.seconds }
    }
}

fn make_optimizer(model: &LanguageModel, config: &LmConfig) -> Result<Box<dyn Step>> {
    let clip = config.clip.map_or(Clip::None, Clip::Norm);
    let (arena, lr, weight_decay) = (model.arena(), config.lr, config.weight_decay);
    let betas = config.betas;
    let optimizer: Box<dyn Step> = match config.optimizer {
        OptimizerKind::Adam => {
            let rule = Adam { betas, weight_decay, ..Adam::default() };
            Box::new(Optimizer::new(arena, rule, lr)?.with_clip(clip)?)
        }
        OptimizerKind::AdamW => {
            let rule = AdamW { betas, weight_decay, ..AdamW::default() };
            Box::new(Optimizer::new(arena, rule, lr)?.with_clip(clip)?)
        }
        OptimizerKind::Sgd => {
            let rule = Sgd { momentum: 0.9, weight_decay, ..Sgd::default() };
            Box::new(Optimizer::new(arena, rule, lr)?.with_clip(clip)?)
        }
        OptimizerKind::RmsProp => Box::new(
            Optimizer::new(arena, RmsProp { weight_decay, ..RmsProp::default() }, lr)?.with_clip(clip)?,
        ),
    };
    arena.step_block().set(StepBlock::WEIGHT_DECAY + Gpt::UNDECAYED, 0.0)?;
    Ok(optimizer)
}

/// A checksum of what is trained on and judged by: lengths, and the tokens at the ends and at even distances, so that shards of
/// many gigabytes need not be read for it.
fn checksum(data: &TextData) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    for corpus in [&data.train, &data.val] {
        hash.update(&corpus.len().to_le_bytes());
        for piece in 0..corpus.pieces() {
            let tokens = corpus.tokens(piece);
            let every = (tokens.len() / (1 << 20)).max(1);
            for token in tokens.iter().step_by(every).chain(tokens.last()) {
                hash.update(&token.to_le_bytes());
            }
        }
    }
    hash.finalize()
}

/// The most bytes of tensors in use at once since the process began.
fn peak_bytes(device: Device) -> u64 {
    match device.stream() {
        Some(stream) => stream.memory_report().peak_live_bytes as u64,
        None => crate::cpu::pool::memory_report().peak_live_bytes as u64,
    }
}
