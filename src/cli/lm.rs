//! `warpsmith train --task lm`: a language model on text.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::interrupt;
use super::output::{self, Log, thousands};
use super::settings::{self, Settings, TaskChoice};
use crate::data::text::{BUILTIN_TEXT, ShardFiles, TextData, TokenizerKind, VAL_SHARE};
use crate::io::folder;
use crate::nn::GptConfig;
use crate::train::lm::{
    self, Evaluation, GptSpec, LmConfig, LmFile, LmObserver, LmReport, LmTrainer, flops_per_token,
    huggingface,
};
use crate::{Device, Error, Result};

/// Flags (by key) that say nothing about a text.
const TABLES_ONLY: [&str; 17] = [
    "target",
    "test-data",
    "test-split",
    "limit",
    "image-size",
    "channels",
    "activation",
    "momentum",
    "horizon",
    "label-smoothing",
    "augment",
    "class-weights",
    "sampler",
    "epochs",
    "patience",
    "tensorboard",
    "report",
];

/// Flags (by key) that say something about a text only.
pub(super) const TEXT_ONLY: [&str; 8] =
    ["tokenizer", "init", "context", "steps", "eval-every", "micro-batches", "recompute", "capture"];

/// Whether `settings` ask for a language model: by task, or by the folder to go on with.
pub(super) fn is_asked_for(settings: &Settings) -> Result<bool> {
    match &settings.resume {
        Some(dir) if settings.task.is_none_or(|task| task == TaskChoice::Lm) => {
            // What is wrong with the folder is said by whoever opens it.
            Ok(lm::is_language_model(dir).unwrap_or(false))
        }
        _ => Ok(settings.task == Some(TaskChoice::Lm)),
    }
}

/// Refuses flags that do not go with text, or with tables.
pub(super) fn check_flags(settings: &Settings, text: bool) -> Result<()> {
    if let Some(model) = settings.model.as_deref().filter(|model| !text && model.starts_with("gpt")) {
        return Err(Error::argument(format!("--model {model} is for text")).with_help("add --task lm"));
    }
    let table = settings.to_table()?;
    let wrong: &[&str] = if text { &TABLES_ONLY } else { &TEXT_ONLY };
    match wrong.iter().find(|key| table.contains_key(**key)) {
        None => Ok(()),
        Some(key) if text => {
            Err(Error::argument(format!("--{key} is for tables and pictures, not for text (--task lm)")))
        }
        Some(key) => Err(Error::argument(format!("--{key} is for text")).with_help("add --task lm")),
    }
}

/// A run that is ready to start.
struct Run {
    trainer: LmTrainer,
    out: PathBuf,
}

/// Runs the command on settings that [`is_asked_for`] takes; `start` is when the process began.
pub(super) fn run(settings: &Settings, device: Device, log: Log, start: Instant) -> Result<()> {
    check_flags(settings, true)?;
    let stop = interrupt::flag_on_interrupt(log, interrupt::SAVING)?;
    let Run { mut trainer, out } = match &settings.resume {
        None => fresh(settings, device)?,
        Some(dir) => resumed(settings, dir, device, log)?,
    };
    let file = trainer.file().clone();
    let parameters = trainer.model().arena().numel()?;
    let title = format!("{} ({} parameters)", file.name, thousands(parameters as u64));
    log.note(&format!("training {title}"));
    let before = start.elapsed().as_secs_f64();
    let mut progress = Progress { log, steps: file.training.steps, last: None };
    let report = trainer.run(&mut progress, stop)?;
    let rate = report.tokens_per_second;
    let mfu = mfu(&file, parameters, rate, device);
    if settings.json {
        return output::json_to_stdout(&as_json(&report, &file, &out, device, mfu, before));
    }
    output::to_stdout(|o| {
        writeln!(o, "trained    {title}")?;
        writeln!(o, "model      {}", out.display())?;
        write!(o, "steps      {} (kept: {})", thousands(report.steps), report.best_step)?;
        if report.skipped_steps > 0 {
            write!(o, ", {} skipped", report.skipped_steps)?;
        }
        write!(o, ", {:.2} s, {} tokens/s", report.seconds, thousands(rate as u64))?;
        match mfu {
            Some(mfu) => writeln!(o, ", {:.1} % MFU (6N+6LCT)", 100.0 * mfu)?,
            None => writeln!(o)?,
        }
        write!(o, "loss       train {:.4}", report.train_loss)?;
        report.val_loss.map_or(Ok(()), |loss| write!(o, "  validation {loss:.4}"))?;
        writeln!(o)?;
        writeln!(o, "memory     {} bytes of tensors at most", thousands(report.peak_bytes))
    })
}

/// Prepares a new run. Everything that can be wrong is found here, before training.
fn fresh(settings: &Settings, device: Device) -> Result<Run> {
    let config = config(settings, LmConfig::default());
    config.check()?;
    let (spec, init) = match &settings.init {
        None => (spec(settings)?, None),
        Some(path) => imported(settings, path).map(|(spec, weights)| (spec, Some(weights)))?,
    };
    let name = settings.data.as_deref().unwrap_or(BUILTIN_TEXT);
    let out = settings.out.clone().unwrap_or_else(|| default_out(name, &spec));
    folder::check_writable(&out)?;
    let share = settings.val_split.unwrap_or(VAL_SHARE);
    let data = TextData::open(name, tokenizer(settings, name), share)?;
    if let Some((config, _)) = &init
        && config.vocab != data.tokenizer.vocab()
    {
        let (kind, tokens) = (data.tokenizer.name(), data.tokenizer.vocab());
        let message = format!("--init: weights of {} tokens, but {kind} has {tokens}", config.vocab);
        return Err(
            Error::argument(message).with_help("choose the tokenizer that the weights were made with")
        );
    }
    let source = Settings {
        data: Some(name.to_owned()),
        task: Some(TaskChoice::Lm),
        tokenizer: Some(data.tokenizer.kind()),
        val_split: Some(share),
        ..Settings::default()
    };
    let trainer = LmTrainer::new(data, &spec, config, source.to_table()?, device, &out)?;
    if let Some((_, weights)) = init {
        trainer.model().load_state(weights.iter().map(|(name, t)| (name.as_str(), t.clone())).collect())?;
    }
    Ok(Run { trainer, out })
}

/// The tokenizer that was asked for, GPT-2's for GPT-2 and weights of its kind; shards say themselves what made them.
pub(super) fn tokenizer(settings: &Settings, data: &str) -> Option<TokenizerKind> {
    let gpt2 = settings.init.is_some() || settings.model.as_deref() == Some("gpt2");
    let default = || (gpt2 && ShardFiles::find(data).is_err()).then_some(TokenizerKind::Gpt2);
    settings.tokenizer.or_else(default)
}

/// The decoder in `path`, and its weights.
pub(super) fn imported(
    settings: &Settings,
    path: &Path,
) -> Result<(GptSpec, (GptConfig, huggingface::Weights))> {
    if settings.model.is_some() {
        return Err(Error::argument("--model: with --init the weights' config.json says what the model is"));
    }
    let (config, weights) = huggingface::import(path, settings.context)?;
    let spec = GptSpec::from_config(huggingface::name_of(path), config.clone());
    Ok((spec.with_dropout(settings.dropout), (config, weights)))
}

/// Prepares the run in `dir` to go on as if it had never stopped. Settings come from the folder; one that is given anew must be
/// the same, but for how long it runs and where.
fn resumed(given: &Settings, dir: &Path, device: Device, log: Log) -> Result<Run> {
    if given.init.is_some() {
        return Err(Error::argument("--init: a run that goes on has its weights already"));
    }
    let (folder, file, tokenizer) = lm::open(dir)?;
    if folder.is_fallback() {
        log.note(&format!("{} is not whole; going on from {}", dir.display(), folder.path().display()));
    }
    let saved = Settings::from_table(file.source.clone()).map_err(|e| {
        Error::data(folder.path().join(folder::MODEL), format!("[source]: {}", e.message()))
            .with_help("the model was not trained by this program, so it does not know how to go on")
    })?;
    let contradiction = |flag: &str, before: String| {
        Error::argument(format!("--{flag}: the model to resume was trained with {before}"))
            .with_help("leave the flag out to go on as before, or train a new model without --resume")
    };
    // Another length of the schedule would be another run.
    let training = &file.training;
    let asked = LmConfig { capture: given.capture.unwrap_or_default(), ..config(given, training.clone()) };
    let same = LmConfig {
        steps: asked.steps,
        eval_every: asked.eval_every,
        capture: asked.capture,
        ..training.clone()
    };
    if asked != same {
        let changed = toml::Table::try_from(&asked).and_then(|a| Ok((a, toml::Table::try_from(&same)?)));
        let (asked, same) = changed.map_err(|e| Error::internal("settings are no TOML").caused_by(e))?;
        let key = asked.keys().find(|key| asked.get(*key) != same.get(*key));
        let (key, before) = key.map_or(("lr", String::new()), |key| (key.as_str(), same[key].to_string()));
        return Err(contradiction(&key.replace('_', "-"), before));
    }
    if asked.steps != training.steps && training.schedule.needs_horizon() {
        let message = format!(
            "--steps {}: the schedule {} was laid out for {} steps",
            asked.steps, training.schedule, training.steps
        );
        return Err(Error::argument(message).with_help("train anew, or with --schedule constant"));
    }
    let built = &file.architecture;
    if given.context.is_some_and(|context| context != built.context) {
        return Err(contradiction("context", built.context.to_string()));
    }
    if given.dropout.is_some_and(|dropout| dropout != built.dropout) {
        return Err(contradiction("dropout", built.dropout.to_string()));
    }
    if let Some(model) = &given.model {
        // All that a description says counts, and nothing that it or a name leaves open.
        let spec = spec(&Settings { context: None, dropout: None, ..given.clone() })?;
        let context = spec.context().filter(|_| settings::is_description(model)).unwrap_or(built.context);
        let mut wanted = spec.with_context(Some(context)).config(built.vocab, built.padded_vocab)?;
        if wanted.dropout == 0.0 {
            wanted.dropout = built.dropout;
        }
        if wanted != *built {
            return Err(contradiction("model", format!("another decoder, {}", file.name)));
        }
    }
    if given.tokenizer.is_some_and(|kind| kind != tokenizer.kind()) {
        return Err(contradiction("tokenizer", tokenizer.name().to_owned()));
    }
    if given.val_split.is_some() && given.val_split != saved.val_split {
        return Err(contradiction("val-split", saved.val_split.unwrap_or(VAL_SHARE).to_string()));
    }
    let name = given.data.as_deref().or(saved.data.as_deref()).unwrap_or(BUILTIN_TEXT);
    let data = TextData::open(name, saved.tokenizer, saved.val_split.unwrap_or(VAL_SHARE))?;
    let out = given.out.clone().unwrap_or_else(|| dir.to_owned());
    folder::check_writable(&out)?;
    let trainer = LmTrainer::resume(data, &folder, file, asked.clone(), device, &out)?;
    let done = trainer.progress().steps;
    if asked.steps < done {
        let message = format!("--steps {}: the model has been trained for {done}", asked.steps);
        return Err(
            Error::argument(message).with_help("--steps counts all steps, those of the first run included")
        );
    }
    if asked.steps == done {
        log.note(&format!("nothing to train: all {done} steps are done; give --steps to go on"));
    }
    Ok(Run { trainer, out })
}

/// The settings of training: those given, else those of `base`.
pub(super) fn config(settings: &Settings, base: LmConfig) -> LmConfig {
    LmConfig {
        optimizer: settings.optimizer.unwrap_or(base.optimizer),
        lr: settings.lr.unwrap_or(base.lr),
        weight_decay: settings.weight_decay.unwrap_or(base.weight_decay),
        clip: settings.clip.or(base.clip),
        schedule: settings.schedule.unwrap_or(base.schedule),
        warmup: settings.warmup.map_or(base.warmup, |steps| steps.round() as u64),
        steps: settings.steps.unwrap_or(base.steps),
        batch: settings.batch.unwrap_or(base.batch),
        micro_batches: settings.micro_batches.unwrap_or(base.micro_batches),
        eval_every: settings.eval_every.unwrap_or(base.eval_every),
        seed: settings.seed.unwrap_or(base.seed),
        precision: settings.precision.unwrap_or(base.precision),
        recompute: settings.recompute || base.recompute,
        capture: settings.capture.unwrap_or(base.capture),
        ..base
    }
}

/// The decoder that `--model`, `--context` and `--dropout` say.
pub(super) fn spec(settings: &Settings) -> Result<GptSpec> {
    let spec = match settings.model.as_deref() {
        None => GptSpec::default(),
        Some(file) if settings::is_description(file) => {
            let path = Path::new(file);
            let text = std::fs::read_to_string(path)
                .map_err(|e| Error::io(path, "read the model's description", e))?;
            GptSpec::from_toml(&text, &path.file_stem().unwrap_or_default().to_string_lossy(), path)?
        }
        Some(name) => name.parse().map_err(|e: Error| e.context("--model"))?,
    };
    if settings.context == Some(0) {
        return Err(Error::argument("--context 0: expected at least 1"));
    }
    Ok(spec.with_context(settings.context).with_dropout(settings.dropout))
}

/// `runs/<text>-<model>`.
fn default_out(data: &str, spec: &GptSpec) -> PathBuf {
    let stem = Path::new(data).file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.split('.').next().unwrap_or_default();
    let name: String = format!("{stem}-{spec}")
        .chars()
        .map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    Path::new("runs").join(name.trim_start_matches(['.', '-']))
}

/// The share of the device's peak that training reached, counted by [`flops_per_token`]; nothing for a device whose peak we do
/// not know.
fn mfu(file: &LmFile, parameters: usize, tokens_per_second: f64, device: Device) -> Option<f64> {
    let peak =
        crate::bench::peak_flops(&device.stream()?.info().name, file.training.precision.precision().compute)?;
    Some(flops_per_token(&file.architecture, parameters) * tokens_per_second / peak)
}

/// The result as JSON. Figures that are not finite or not there are null.
fn as_json(
    report: &LmReport,
    file: &LmFile,
    out: &Path,
    device: Device,
    mfu: Option<f64>,
    before: f64,
) -> Value {
    json!({
        "model": out.display().to_string(),
        "parameters": report.parameters,
        "steps": report.steps,
        "skipped_steps": report.skipped_steps,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "startup_seconds": before,
        "tokens_per_second": report.tokens_per_second,
        "mfu": mfu,
        "mfu_formula": "6N+6LCT",
        "peak_bytes": report.peak_bytes,
        "device": device.to_string(),
        "precision": file.training.precision,
        "seed": file.training.seed,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "best_val_loss": report.best_val_loss,
        "best_step": report.best_step,
    })
}

/// Plain lines on stderr, or nothing.
struct Progress {
    log: Log,
    steps: u64,
    last: Option<Instant>,
}

impl LmObserver for Progress {
    fn step(&mut self, step: u64, loss: f64) {
        let since = self.last.get_or_insert_with(Instant::now);
        if since.elapsed().as_secs() >= 10 {
            *since = Instant::now();
            self.log.note(&format!("step {step}/{}  loss {loss:.4}", self.steps));
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.last = Some(Instant::now());
        let Evaluation { step, train_loss, val_loss, tokens_per_second, .. } = evaluation;
        let mut line = format!("step {step}/{}  train_loss {train_loss:.4}", self.steps);
        if let Some(loss) = val_loss {
            line += &format!("  val_loss {loss:.4}");
        }
        self.log.note(&format!("{line}  {} tokens/s", thousands(*tokens_per_second as u64)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_folder_is_named_after_text_and_model() {
        let out = |data: &str, model: &str| default_out(data, &model.parse().unwrap()).display().to_string();
        assert_eq!(out("text", "gpt:4x4x128"), "runs/text-gpt-4x4x128");
        assert_eq!(out("a/b c.txt.gz", "gpt2"), "runs/b-c-gpt2");
    }

    #[test]
    fn every_named_key_is_a_setting() {
        for key in TABLES_ONLY.iter().chain(&TEXT_ONLY) {
            let one = toml::Table::from_iter([(
                (*key).to_owned(),
                toml::Value::Datetime("2026-01-01".parse().unwrap()),
            )]);
            // Of whatever type it is: only a key that is none is unknown.
            if let Err(error) = Settings::from_table(one) {
                assert!(!error.message().contains("unknown field"), "{key}: {error}");
            }
        }
    }
}
