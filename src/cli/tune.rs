//! `warpsmith tune`: settings and ranges from a file to a search, its table to the user.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use toml::de::DeTable;

use super::input::Source;
use super::interrupt;
use super::output::{self, Log};
use super::settings::{Settings, line_of, read_config, toml_error};
use super::train::{build, for_data};
use crate::data::{Augment, Dataset};
use crate::train::data_checksum;
use crate::train::tune::{
    self, Event, Finish, Method, Objective, Outcome, Plan, Range, Record, Run, Space, Status,
};
use crate::{Device, Error, ErrorKind, Result};

/// Search for good settings: train with many, keep the best by validation loss.
///
/// The file holds settings as `train --config` reads them, and a table [search] of what is searched, in which each setting
/// has a range instead of a value. The same file and seed try the same settings and find the same best ones, whatever --jobs is.
/// What is finished is kept: the same command again goes on after an interruption or a kill. The test part decides nothing.
#[derive(Args)]
#[command(after_help = format!("{EXAMPLES}{}", super::EXIT_CODES))]
pub(super) struct TuneArgs {
    /// Settings, and a table [search] of ranges
    #[arg(long, value_name = "F.toml")]
    config: PathBuf,
    /// How many settings are tried
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    trials: usize,
    /// How epochs are spent on trials
    #[arg(long, value_enum, default_value_t)]
    method: Method,
    /// halving: of so many trials one goes on, with so many times the epochs
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true)]
    eta: u64,
    /// Decides which settings are tried; the seed of training is a setting
    #[arg(long, default_value_t = 42, allow_negative_numbers = true)]
    seed: u64,
    /// The folder of the search: table, report, a model folder a trial, the best one [default: runs/<data>-tune]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Trials at a time, which share the threads; the result does not depend on it [default: one a thread; one on a GPU]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    jobs: Option<usize>,
    /// CPU threads of all trials together [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,
    /// auto, cpu or cuda[:N] [default: auto]
    #[arg(long)]
    device: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// No progress and no notes
    #[arg(long, short)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  warpsmith tune --config search.toml --trials 30
  warpsmith tune --config search.toml --trials 81 --method halving --jobs 4 --out runs/halving

A file:
  data = \"wine.csv\"
  epochs = 60

  [search]
  lr = { log = [1e-4, 1e-1] }
  dropout = { uniform = [0.0, 0.5] }
  batch = { choice = [16, 32, 64] }
  model = { choice = [\"mlp:64\", \"mlp:256,128\"] }
  patience = { int = [4, 12] }

";

/// What cannot be searched, and why.
const FIXED: [(&[&str], &str); 3] = [
    (
        &[
            "data",
            "target",
            "task",
            "test-data",
            "test-split",
            "val-split",
            "limit",
            "image-size",
            "channels",
            "seed",
        ],
        "it decides which rows trials are judged by, so their losses could not be compared",
    ),
    (&["epochs", "horizon"], "trials share their budget of epochs, and each keeps its best epoch"),
    (
        &["device", "threads", "out", "resume", "tensorboard", "report", "json", "quiet"],
        "it does not change the result",
    ),
];

/// Runs the command.
pub(super) fn run(args: TuneArgs) -> Result<()> {
    let (settings, space) = read(&args.config)?;
    let log = Log { quiet: args.quiet || settings.quiet };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    for (flag, n) in [("--jobs", args.jobs), ("--threads", args.threads)] {
        if n == Some(0) {
            return Err(Error::argument(format!("{flag} 0: expected at least 1")));
        }
    }
    let threads = args.threads.or(settings.threads).unwrap_or(cores);
    let device = super::open_device(args.device.as_deref().or(settings.device.as_deref()), &log)?;
    // A GPU has one queue: trials side by side would wait for one another, each with its memory taken.
    let most = if device == Device::cpu() { threads } else { 1 };
    let jobs = args.jobs.unwrap_or(most).min(args.trials.max(1));
    let source = settings.data.as_deref().map_or(Ok(Source::Digits), Source::parse)?;
    let default = || Path::new("runs").join(format!("{}-tune", source.stem()));
    let out = args.out.clone().or(settings.out.clone()).unwrap_or_else(default);
    let stop = interrupt::flag_on_interrupt(log, interrupt::SAVING)?;

    let (data, own_test) = build(&settings, &source, log)?;
    if data.validation.rows() == 0 {
        return Err(Error::argument("a search needs a validation part to judge trials by")
            .with_help("give a val-split above 0 in the file"));
    }
    let mut base =
        Settings { out: None, threads: None, device: None, json: false, quiet: false, ..settings.clone() };
    base.epochs.get_or_insert(settings.train_config().epochs);
    let epochs = base.train_config().epochs;
    let mut base = base.to_table()?;
    base.insert("data-checksum".to_owned(), i64::from(data_checksum(&data)).into());
    let plan = Plan {
        method: args.method,
        trials: args.trials,
        epochs,
        eta: args.eta,
        seed: args.seed,
        space,
        base,
    };
    plan.check()?;
    // A network that cannot take the data is found now, and not when its turn comes.
    for model in plan.space.ranges.get("model").map(Range::extremes).unwrap_or_default() {
        let model = model.as_str().map(str::to_owned);
        let asked = Settings { model, ..settings.clone() };
        for_data(&asked, &asked.network()?, &source, &data, own_test)?;
    }
    // The same of changes that its rows cannot take.
    settings.train_config().augment.check_for(&data.train.inputs)?;
    for augment in plan.space.ranges.get("augment").map(Range::extremes).unwrap_or_default() {
        if let Some(augment) = augment.as_str() {
            augment.parse::<Augment>()?.check_for(&data.train.inputs)?;
        }
    }
    let halving = args.method == Method::Halving;
    let trainee = Trainee { settings: &settings, source: &source, halving, data, own_test, device };
    let share = (threads / jobs).max(1);
    let tell = |event: Event<'_>| log.note(&line(&event));
    let outcome = tune::run(&plan, &out, (jobs, share), &trainee, stop, &tell)?;
    if args.json || settings.json {
        return output::json_to_stdout(&as_json(&outcome, &plan, &out));
    }
    print(&outcome, &plan)
}

/// The settings of the file and its [search], each checked.
fn read(file: &Path) -> Result<(Settings, Space)> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, "read the settings", e))?;
    let mut table: toml::Table = toml::from_str(&text).map_err(|e| toml_error(file, &text, &e))?;
    let Some(search) = table.remove("search") else {
        return Err(Error::data(file, "there is no table [search] of what is to be searched"));
    };
    let spans = DeTable::parse(&text).map_err(|e| toml_error(file, &text, &e))?;
    let spans = spans.get_ref();
    let top = |key: &str| spans.iter().find(|(k, _)| k.get_ref() == key);
    let inner = |key: &str| {
        let table = top("search")?.1.get_ref().as_table()?;
        table.keys().find(|k| k.get_ref() == key).map(|k| k.span().start)
    };
    let fault = |offset: Option<usize>, message: String| {
        Error::data(file, message).at(file, offset.map(|at| line_of(&text, at)), None::<String>)
    };
    let settings = read_config(file, &text, &table)?;
    if !search.as_table().is_some_and(|search| search.contains_key("optimizer")) {
        settings.check_together()?;
    }
    if settings.resume.is_some() {
        let at = top("resume").map(|(k, _)| k.span().start);
        return Err(fault(at, "key 'resume': a search resumes itself".to_owned()));
    }
    let Some(search) = search.as_table().filter(|search| !search.is_empty()) else {
        let at = top("search").map(|(k, _)| k.span().start);
        return Err(fault(
            at,
            "search: expected a table of settings with ranges, and at least one".to_owned(),
        ));
    };
    let mut ranges = BTreeMap::new();
    for (key, value) in search {
        let wrong = |why: String| fault(inner(key), format!("search key '{key}': {why}"));
        if let Some((_, why)) = FIXED.iter().find(|(keys, _)| keys.contains(&key.as_str())) {
            return Err(wrong(format!("it cannot be searched: {why}")));
        }
        if table.contains_key(key) {
            return Err(wrong("it has a value above, and a range here".to_owned()));
        }
        let range = Range::parse(value).map_err(wrong)?;
        for value in range.extremes() {
            let one = toml::Table::from_iter([(key.clone(), value.clone())]);
            let checked =
                Settings::from_table(one).map_err(|e| e.message().replace("unknown field", "unknown key"));
            let why = match checked {
                Ok(settings) => settings.check().err().map(|e| e.message().to_owned()),
                Err(why) => Some(why),
            };
            if let Some(why) = why {
                return Err(wrong(why.trim_end().to_owned()));
            }
        }
        ranges.insert(key.clone(), range);
    }
    Ok((settings, Space { ranges }))
}

/// Trains trials.
struct Trainee<'a> {
    settings: &'a Settings,
    source: &'a Source,
    halving: bool,
    data: Dataset,
    own_test: bool,
    device: Device,
}

impl Objective for Trainee<'_> {
    fn run(&self, run: &Run<'_>) -> Result<Finish> {
        let mut table = self.settings.to_table()?;
        table.extend(run.settings.clone());
        let mut settings = Settings::from_table(table).map_err(|e| Error::internal(e.message()))?;
        // Of an optimiser that has none, momentum means nothing: the search need not know.
        let searched = ["momentum", "optimizer"].iter().any(|&key| run.settings.contains_key(key));
        if searched && !settings.has_momentum() {
            settings.momentum = None;
        }
        if self.halving {
            // Whoever goes on must find the schedule that he began with.
            settings.horizon.get_or_insert(run.horizon);
        }
        settings.check_together()?;
        let network = settings.network()?;
        // What the settings cannot do with this data (a batch of more rows than there are) is the trial's own fault.
        let (config, record) = for_data(&settings, &network, self.source, &self.data, self.own_test)
            .map_err(|e| if e.kind() == ErrorKind::Data { Error::argument(e.message()) } else { e })?;
        run.train(self.data.clone(), network, config, record, self.device)
    }
}

/// `trial 7: val_loss 0.0712  (12 of 20, rung 1 of 3)  batch 32  lr 0.0031`.
fn line(event: &Event<'_>) -> String {
    let Event { record, done: (done, all), rungs } = event;
    let what = match record.val_loss {
        Some(loss) => format!("val_loss {loss:.4}"),
        None => record.error.clone().unwrap_or_default(),
    };
    let rung = if *rungs > 1 { format!(", rung {} of {rungs}", record.rung + 1) } else { String::new() };
    let settings: Vec<String> =
        record.settings.iter().map(|(key, value)| format!("{key} {}", tune::shown(value))).collect();
    format!("trial {}: {what}  ({done} of {all}{rung})  {}", record.trial, settings.join("  "))
}

fn print(outcome: &Outcome, plan: &Plan) -> Result<()> {
    let metric = outcome.trials.iter().find_map(|record| {
        ["accuracy", "r2"].into_iter().find(|&name| record.val_metrics.contains_key(name))
    });
    let mut header = vec!["trial".to_owned(), "val_loss".to_owned()];
    header.extend(metric.map(|name| format!("val_{name}")));
    header.push("epochs".to_owned());
    header.extend(plan.space.ranges.keys().cloned());
    let mut lines = vec![header];
    for record in &outcome.trials {
        let mut cells = vec![record.trial.to_string()];
        cells.push(record.val_loss.map_or_else(|| status(record).to_owned(), |loss| format!("{loss:.4}")));
        cells.extend(metric.map(|name| {
            record.val_metrics.get(name).map_or_else(String::new, |value| format!("{value:.4}"))
        }));
        cells.push(record.epochs.to_string());
        cells.extend(
            plan.space
                .ranges
                .keys()
                .map(|key| record.settings.get(key).map_or_else(String::new, tune::shown)),
        );
        lines.push(cells);
    }
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    output::to_stdout(|o| {
        for cells in &lines {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            writeln!(o, "{}", padded.join("  ").trim_end())?;
        }
        if let Some(best) = &outcome.best {
            writeln!(o, "best       {}", best.display())?;
        }
        writeln!(o, "report     {}", outcome.report.display())
    })
}

fn status(record: &Record) -> &'static str {
    match record.status {
        Status::Done => "done",
        Status::Diverged => "diverged",
        Status::Failed => "failed",
    }
}

fn as_json(outcome: &Outcome, plan: &Plan, out: &Path) -> Value {
    json!({
        "search": out.display().to_string(),
        "method": plan.method.to_string(),
        "seed": plan.seed,
        "rungs": plan.rungs().iter().map(|r| json!({ "epochs": r.epochs, "trials": r.trials })).collect::<Vec<_>>(),
        "best": outcome.best.as_ref().map(|best| best.display().to_string()),
        "best_trial": outcome.trials.first().filter(|record| record.val_loss.is_some()).map(|record| record.trial),
        "report": outcome.report.display().to_string(),
        "trials": outcome.trials,
    })
}
