//! `warpsmith train`: settings and data to a [`Trainer`], its report to the user.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::input::{Loaded, Source};
use super::interrupt;
use super::output::{self, Log, figures, thousands};
use super::progress::Progress;
use super::settings::Settings;
use super::{lm, report, resume};
use crate::data::{Dataset, DatasetOptions, ImageOptions, Schema, TargetUse, Task, batch_size};
use crate::io::folder;
use crate::train::log::TensorBoard;
use crate::train::network::InputForm;
use crate::train::{Network, Report, TrainConfig, Trainer};
use crate::{Device, Error, ErrorKind, Result};

/// Train a model on a table or on pictures, evaluate it and save it.
///
/// Without arguments this trains on the built-in handwritten digits. The rows are divided into three parts: one to train
/// on, a validation part that picks the best epoch and stops early, and a test part that is read once, at the end. A model
/// is a folder; Ctrl-C saves one that --resume goes on with, to the very same result. The same seed gives the same model,
/// bit for bit, whatever the number of threads.
#[derive(Args)]
#[command(after_help = format!("{EXAMPLES}{}", super::EXIT_CODES))]
pub(super) struct TrainArgs {
    /// Read settings from a TOML file with these same keys, such as `lr = 0.01`; flags come first
    #[arg(long, value_name = "F.toml", help_heading = "Run")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  warpsmith train
  warpsmith train --data wine.csv --target cultivar --out runs/wine
  warpsmith train --data houses.csv --target price --model mlp:64,32 --dropout 0.1 --epochs 200
  warpsmith train --data X.npy,Y.npy --optimizer sgd --schedule cosine --warmup 1 --json
  warpsmith train --data fashion-mnist --augment flip,crop:2
  warpsmith train --data photos --image-size 64x64 --channels 3 --class-weights balanced
  warpsmith train --task lm
  warpsmith train --task lm --data books.txt --model gpt:6x6x384 --context 256 --steps 5000
  warpsmith train --resume runs/wine --epochs 300
  warpsmith train --report --tensorboard runs/events/first

";

/// A run that is ready to start.
pub(super) struct Run {
    pub(super) trainer: Trainer,
    pub(super) out: PathBuf,
    pub(super) config: TrainConfig,
    /// What is trained, in words.
    pub(super) title: String,
}

/// Runs the command; `start` is when the process began.
pub(super) fn run(args: TrainArgs, start: Instant) -> Result<()> {
    let settings = Settings::layered(args.settings, args.config.as_deref())?;
    let log = Log { quiet: settings.quiet };
    let device = super::open_device(settings.device.as_deref(), &log)?;
    if lm::is_asked_for(&settings)? {
        return super::with_threads(settings.threads, || lm::run(&settings, device, log, start));
    }
    lm::check_flags(&settings, false)?;
    let stop = interrupt::flag_on_interrupt(log, interrupt::SAVING)?;
    super::with_threads(settings.threads, || {
        let run = match &settings.resume {
            None => fresh(&settings, device, log)?,
            Some(dir) => resume::prepare(&settings, dir, device, log)?,
        };
        train(run, &settings, device, log, stop, start)
    })
}

/// Prepares a new run. Everything that can be wrong is found here, before training.
fn fresh(settings: &Settings, device: Device, log: Log) -> Result<Run> {
    let network = settings.network()?;
    let source = settings.data.as_deref().map_or(Ok(Source::Digits), Source::parse)?;
    let model_name = settings.model.clone().unwrap_or_else(|| network.to_string());
    let out = settings.out.clone().unwrap_or_else(|| default_out(&source, &model_name));
    folder::check_writable(&out)?;
    let (data, own_test) = build(settings, &source, log)?;
    if own_test && settings.test_split.is_some_and(|share| share > 0.0) {
        return Err(Error::argument(format!("--test-split: {} has a test part of its own", source.stem())));
    }
    let (config, record) = for_data(settings, &network, &source, &data, own_test)?;
    let title = title(&source, &network, &data);
    let trainer = Trainer::new(data, network, config.clone(), record, device, &out)?;
    Ok(Run { trainer, out, config, title })
}

/// How `network` is trained on `data` by these settings, and what resuming needs to know of both, for the model's file.
pub(super) fn for_data(
    settings: &Settings,
    network: &Network,
    source: &Source,
    data: &Dataset,
    own_test: bool,
) -> Result<(TrainConfig, toml::Table)> {
    network.output_shape(&data.preparation.shape()).map_err(|e| {
        Error::new(ErrorKind::Data, e.message()).with_help(
            e.help().map_or_else(
                || format!("give a network that can take it; this one is {network}"),
                str::to_owned,
            ),
        )
    })?;
    let mut config = settings.train_config();
    let pictures = data.preparation.pixels().is_some() || *source == Source::Digits;
    let seen_so = matches!(network.input, InputForm::Image | InputForm::AsIs);
    // What can be no picture at all is refused where rows are read.
    let arrays = data.preparation.shape().len() == 3 && !pictures;
    if config.augment.needs_pictures() && arrays && !seen_so {
        let message = format!(
            "augment {}: {network} does not see the rows of {} as pictures, and they may be none",
            config.augment,
            source.stem()
        );
        return Err(Error::argument(message).with_help(
            "rows of numbers can be changed by noise and mixup; arrays of whole numbers from 0 to 255 are pictures",
        ));
    }
    config.batch = batch_size(settings.batch, config.batch, data.train.rows())?;
    let record = Settings {
        model: Some(settings.model.clone().unwrap_or_else(|| network.to_string())),
        activation: settings.activation,
        dropout: settings.dropout,
        ..record(settings, source, data, own_test)
    };
    Ok((config, record.to_table()?))
}

fn title(source: &Source, network: &Network, data: &Dataset) -> String {
    let rows = thousands(data.train.rows() as u64);
    let classes = match data.preparation.target().classes() {
        [] => String::new(),
        classes => format!(" with {} classes", classes.len()),
    };
    let what = match data.preparation.pixels() {
        Some(pixels) => pixels.to_string(),
        None => format!("rows of {} inputs", data.preparation.width()),
    };
    format!(
        "{network} on {}: {}{classes}, {rows} {what} ({} to validate, {} to test)",
        source.stem(),
        data.task,
        data.validation.rows(),
        data.test.rows()
    )
}

/// Reads, divides and prepares the data that `settings` name; also whether it came with a test part of its own.
pub(super) fn build(settings: &Settings, source: &Source, log: Log) -> Result<(Dataset, bool)> {
    let images = settings.image_options()?;
    let options = DatasetOptions {
        target: settings.target.clone(),
        task: settings.task.and_then(|task| task.task()),
        limit: settings.limit,
        split: settings.split(),
        ..DatasetOptions::default()
    };
    let test_source = settings.test_data.as_deref().map(Source::parse).transpose()?;
    let (data, own_test) = match source.read(&images)? {
        Loaded::Images(set) => {
            let own_test = set.test.is_some() && test_source.is_none();
            let unlimited = ImageOptions { limit: None, ..images };
            let test = test_source.map(|test| test.read_images(&unlimited)).transpose()?.or(set.test);
            (Dataset::from_images(&set.train, test.as_ref(), &options)?, own_test)
        }
        Loaded::Table(table, test) => {
            if images.size.is_some() || images.channels.is_some() {
                let message = "--image-size and --channels are for picture files; the data is a table";
                return Err(Error::argument(message));
            }
            let target = match options.target.as_deref().or(source.default_target()) {
                Some(name) => table.index_of(name)?,
                None => table.names().len() - 1,
            };
            let own_test = test.is_some() && test_source.is_none();
            let schema = Schema::of(&table, Some(target));
            let matched = match (test_source, test) {
                (Some(source), _) => Some(source.read_as(&schema, TargetUse::Needed)?),
                (None, Some(test)) => Some(schema.match_table(test, TargetUse::Needed)?),
                (None, None) => None,
            };
            matched.iter().flat_map(|matched| &matched.note).for_each(|note| log.note(note));
            let options = DatasetOptions { target: Some(table.names()[target].clone()), ..options };
            (Dataset::build(&table, matched.as_ref().map(|matched| &matched.table), &options)?, own_test)
        }
    };
    data.notes.iter().for_each(|note| log.note(note));
    Ok((data, own_test))
}

/// What resuming needs to know of the data, for the model's file: keys of [`Settings`], defaults filled in.
fn record(settings: &Settings, source: &Source, data: &Dataset, own_test: bool) -> Settings {
    let split = settings.split();
    Settings {
        data: Some(settings.data.clone().unwrap_or_else(|| source.stem())),
        target: Some(data.preparation.target().name().to_owned()),
        task: Some(match data.task {
            crate::data::Task::Binary => super::settings::TaskChoice::Binary,
            crate::data::Task::Multiclass => super::settings::TaskChoice::Multiclass,
            crate::data::Task::Regression => super::settings::TaskChoice::Regression,
        }),
        test_data: settings.test_data.clone(),
        test_split: (settings.test_data.is_none() && !own_test).then_some(split.test),
        val_split: Some(split.validation),
        limit: settings.limit,
        image_size: settings.image_size.clone(),
        channels: settings.channels,
        ..Settings::default()
    }
}

/// `runs/<data>-<model>`: the data's name without folder and ending, `mlp-256-128` or the description's name. Characters
/// other than letters, digits, `.`, `_` and `-` become `_`.
fn default_out(source: &Source, model: &str) -> PathBuf {
    let model = match model.strip_suffix(".toml") {
        Some(file) => Path::new(file).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        None => model.trim_end_matches(':').replace([':', ','], "-").replace(' ', ""),
    };
    let name: String = format!("{}-{model}", source.stem())
        .chars()
        .map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect();
    Path::new("runs").join(name.trim_start_matches('.'))
}

fn train(
    run: Run,
    settings: &Settings,
    device: Device,
    log: Log,
    stop: &AtomicBool,
    start: Instant,
) -> Result<()> {
    let Run { mut trainer, out, config, title } = run;
    log.note(&format!("training {title}"));
    let parameters = trainer.model().arena().numel()?;
    let smooths = trainer.model().architecture().task == Task::Multiclass;
    if !smooths && settings.label_smoothing.is_some_and(|share| share > 0.0) {
        log.note("--label-smoothing does nothing here: it is for more than two classes");
    }
    let board = match &settings.tensorboard {
        Some(dir) => Some(open_board(dir, &trainer, &out)?),
        None => None,
    };
    let mut observers = (Progress::new(log, config.epochs, trainer.progress().epoch), board);
    let before = start.elapsed().as_secs_f64();
    let outcome = trainer.run(&mut observers, stop);
    let (progress, board) = observers;
    progress.clear();
    let report = outcome?;
    let page = settings.report.then(|| report::of_run(&trainer, &out, device)).transpose()?;
    if settings.json {
        let mut value = as_json(&report, &out, device, config.seed, before);
        if let Some(page) = &page {
            value["report"] = page.display().to_string().into();
        }
        output::json_to_stdout(&value)?;
        return board.map_or(Ok(()), TensorBoard::finish);
    }
    output::to_stdout(|o| {
        writeln!(o, "trained    {title}")?;
        writeln!(o, "model      {} ({} parameters)", out.display(), thousands(parameters as u64))?;
        let rate = report.samples as f64 / report.seconds;
        let best = report.best_epoch;
        write!(o, "epochs     {} (kept: {best}), {} steps", report.epochs, thousands(report.steps))?;
        writeln!(o, ", {:.2} s, {} rows/s", report.seconds, thousands(rate as u64))?;
        write!(o, "loss       train {:.4}", report.train_loss)?;
        if smooths && config.label_smoothing > 0.0 {
            write!(o, " (label smoothing {})", config.label_smoothing)?;
        }
        report.val_loss.map_or(Ok(()), |loss| write!(o, "  validation {loss:.4}"))?;
        report.test_loss.map_or(Ok(()), |loss| write!(o, "  test {loss:.4}"))?;
        writeln!(o)?;
        let part = report.metrics_on.to_string();
        writeln!(o, "{part:10} {}", figures(&report.metrics))?;
        page.as_ref().map_or(Ok(()), |page| writeln!(o, "report     {}", page.display()))
    })?;
    // The model is saved and told of: what the events lack is the least of it, but is said.
    board.map_or(Ok(()), TensorBoard::finish)
}

/// Opens the event file in `dir`. The model folder would refuse to be made around it, and is replaced as a whole.
fn open_board(dir: &Path, trainer: &Trainer, out: &Path) -> Result<TensorBoard> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, "find", e));
    if absolute(dir)?.starts_with(absolute(out)?) {
        let message =
            format!("--tensorboard {}: it is within the model folder {}", dir.display(), out.display());
        return Err(Error::argument(message).with_help("give a folder beside it"));
    }
    TensorBoard::open(dir, &trainer.entries()?, trainer.progress().steps)
}

/// The result as JSON. Figures that are not finite or not there are null.
fn as_json(report: &Report, out: &Path, device: Device, seed: u64, before: f64) -> Value {
    json!({
        "model": out.display().to_string(),
        "parameters": report.parameters,
        "epochs": report.epochs,
        "steps": report.steps,
        "skipped_steps": report.skipped_steps,
        "seconds": report.seconds,
        "first_step_seconds": report.first_step_seconds.map(|seconds| before + seconds),
        "samples_per_second": report.samples as f64 / report.seconds,
        "peak_memory_bytes": peak_memory(),
        "device": device.to_string(),
        "seed": seed,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "best_epoch": report.best_epoch,
        "test_loss": report.test_loss,
        "metrics": report.metrics,
        "metrics_on": report.metrics_on,
    })
}

/// The most memory that this process has had resident, where the system says so (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_folder_is_named_after_data_and_model() {
        let out =
            |data: &str, model: &str| default_out(&Source::parse(data).unwrap(), model).display().to_string();
        assert_eq!(out("digits", "mlp:256,128"), "runs/digits-mlp-256-128");
        assert_eq!(out("a/my data.csv.gz", "mlp:"), "runs/my_data-mlp");
        assert_eq!(out("a/X.npy,b/Y.npy", "nets/small.toml"), "runs/X-small");
    }
}
