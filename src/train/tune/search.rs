//! Running a plan: trials side by side, every result on disk as soon as it is there.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::page;
use super::plan::{MAX_TRIALS, Method, Plan, promoted};
use crate::data::Dataset;
use crate::io::write_atomically;
use crate::train::checkpoint;
use crate::train::network::Network;
use crate::train::spec::TrainConfig;
use crate::train::{Metrics, report};
use crate::train::{Silent, Trainer};
use crate::{Device, Error, ErrorKind, Result};

pub(in crate::train) const PLAN: &str = "search.toml";
const TRIALS: &str = "trials.jsonl";
pub(in crate::train) const BEST: &str = "best";

/// One trial at one rung: what an [`Objective`] is asked to train.
pub struct Run<'a> {
    /// The trial's number, from 0.
    pub trial: usize,
    /// The settings drawn for it.
    pub settings: &'a toml::Table,
    /// Epochs in all to train to.
    pub epochs: u64,
    /// Epochs that the trial would be trained for if it stayed among the best: what a schedule is laid out for.
    pub horizon: u64,
    /// The model folder; where there is one, training goes on from it.
    pub dir: &'a Path,
    /// Asks to save and leave.
    pub stop: &'a AtomicBool,
}

/// What training a trial came to. Figures are of the validation part.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Epochs trained, fewer than asked for if patience ran out.
    pub epochs: u64,
    /// The epoch whose weights were kept.
    pub best_epoch: u64,
    /// The loss of the kept weights.
    pub val_loss: f64,
    /// Their figures.
    pub val_metrics: Metrics,
}

/// Trains trials.
pub trait Objective: Sync {
    /// Trains `run.settings` to `run.epochs` epochs. An error of kind `Diverged`, `OutOfMemory` or `Argument` is the
    /// trial's own; any other ends the search.
    fn run(&self, run: &Run<'_>) -> Result<Finish>;
}

impl Run<'_> {
    /// Trains a model as this run asks, from the start or from where its folder is. `config.epochs` is replaced.
    ///
    /// # Errors
    /// As [`Trainer::run`]; kind `Argument` without a validation part; kind `Data` if the folder holds another run.
    pub fn train(
        &self,
        data: Dataset,
        network: Network,
        config: TrainConfig,
        source: toml::Table,
        device: Device,
    ) -> Result<Finish> {
        if data.validation.rows() == 0 {
            return Err(Error::argument("a search needs a validation part to judge trials by"));
        }
        let config = TrainConfig { epochs: self.epochs, ..config };
        let mut trainer = if self.dir.exists() || checkpoint::open(self.dir).is_ok() {
            let (folder, file) = checkpoint::open(self.dir)?;
            let epochs = file.training.epochs;
            if file.training != (TrainConfig { epochs, ..config.clone() })
                || file.architecture.network != network
            {
                return Err(Error::data(self.dir, format!("not the model of trial {}", self.trial)));
            }
            Trainer::resume(data, &folder, file, config, device, self.dir)?
        } else {
            Trainer::new(data, network, config, source, device, self.dir)?
        };
        let report = trainer.run(&mut Silent, self.stop)?;
        let kept = trainer.entries()?.into_iter().find(|entry| entry.epoch == report.best_epoch);
        let Some((entry, val_loss)) = kept.and_then(|entry| Some((entry.clone(), entry.val_loss?))) else {
            return Err(Error::internal("a run whose kept epoch has no validation loss"));
        };
        let (epochs, best_epoch, val_metrics) = (report.epochs, report.best_epoch, entry.val_metrics);
        Ok(Finish { epochs, best_epoch, val_loss, val_metrics })
    }
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was trained.
    Done,
    /// Its loss was no longer finite.
    Diverged,
    /// Its settings cannot be trained with: they contradict each other, or need more memory than there is.
    Failed,
}

/// One trial at one rung that is over: a line of `trials.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The rung, from 0.
    pub rung: usize,
    /// The trial, from 0.
    pub trial: usize,
    /// How it ended.
    pub status: Status,
    /// The settings drawn for it.
    pub settings: toml::Table,
    /// Epochs that it was to be trained to.
    pub budget: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// The epoch whose weights were kept.
    pub best_epoch: u64,
    /// The lowest validation loss, if it was trained.
    pub val_loss: Option<f64>,
    /// Figures of the kept weights on the validation part.
    pub val_metrics: Metrics,
    /// Why it was not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A trial is over.
pub struct Event<'a> {
    /// How it ended.
    pub record: &'a Record,
    /// Trials of this rung that are over, and all of them.
    pub done: (usize, usize),
    /// The number of rungs.
    pub rungs: usize,
}

/// What a search came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The last record of each trial, or of the first with its settings: by validation loss, then those without one.
    pub trials: Vec<Record>,
    /// The folder of the best trial's model, if any trial was trained.
    pub best: Option<PathBuf>,
    /// The page with table and plots.
    pub report: PathBuf,
}

/// Searches by `plan` in the folder `dir`, going on with what is there: `jobs` trials at a time, each on `threads` threads.
/// Neither number changes the outcome.
///
/// # Errors
/// Kind `Argument`: `dir` is a folder with something else in it, or with another search; the plan is wrong. Kind
/// `Interrupted` after `stop` became true: calling this again goes on. Kind `Data`: a file cannot be written, or the folder is
/// damaged. Kind `Diverged`: not one trial was trained; the report is there.
pub fn run(
    plan: &Plan,
    dir: &Path,
    (jobs, threads): (usize, usize),
    objective: &dyn Objective,
    stop: &AtomicBool,
    tell: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Outcome> {
    plan.check()?;
    let _lock = claim(plan, dir)?;
    let rungs = plan.rungs();
    let horizon = plan.epochs;
    let book = Book::open(plan, dir)?;
    let first = first_of_settings(plan);
    let mut candidates: Vec<usize> = (0..plan.trials).collect();
    for (rung, &super::Rung { epochs, trials }) in rungs.iter().enumerate() {
        if rung > 0 {
            let losses =
                book.losses(rung - 1).into_iter().filter(|(trial, _)| first.get(*trial) == Some(trial));
            candidates = promoted(losses.collect(), trials);
        }
        let is_waiting = |&trial: &usize| first[trial] == trial && !book.has(rung, trial);
        let waiting: Vec<usize> = candidates.iter().copied().filter(is_waiting).collect();
        let next = AtomicUsize::new(0);
        let fatal = Mutex::new(None);
        let work = || -> Result<()> {
            while !stop.load(Relaxed) && lock(&fatal).is_none() {
                let Some(&trial) = waiting.get(next.fetch_add(1, Relaxed)) else { break };
                let (settings, folder) = (plan.settings(trial), trial_folder(dir, trial));
                let run = Run { trial, settings: &settings, epochs, horizon, dir: &folder, stop };
                let outcome = crate::cpu::par::with_threads(threads, || objective.run(&run))?;
                let record = Record::of(rung, &run, outcome)?;
                let done = book.add(&record)?;
                tell(Event { record: &record, done: (done, candidates.len()), rungs: rungs.len() });
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(waiting.len()) {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        lock(&fatal).get_or_insert(error);
                    }
                });
            }
        });
        match fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Some(_) => return Err(interrupted(dir)),
            None if candidates.iter().any(is_waiting) => return Err(interrupted(dir)),
            None => {}
        }
        for &trial in candidates.iter().filter(|&&trial| !book.has(rung, trial)) {
            let record = Record { trial, ..book.get(rung, first[trial])? };
            let done = book.add(&record)?;
            tell(Event { record: &record, done: (done, candidates.len()), rungs: rungs.len() });
        }
    }
    book.tidy()?;
    finish(plan, dir, book, &first)
}

/// For each trial the first one that has its settings: trained again they would come to the same.
fn first_of_settings(plan: &Plan) -> Vec<usize> {
    let mut seen = HashMap::new();
    (0..plan.trials)
        .map(|trial| *seen.entry(toml::Value::Table(plan.settings(trial)).to_string()).or_insert(trial))
        .collect()
}

fn finish(plan: &Plan, dir: &Path, book: Book<'_>, first: &[usize]) -> Result<Outcome> {
    let trials = book.ranking(first);
    let best = trials.first().filter(|record| record.val_loss.is_some());
    let best_dir = dir.join(BEST);
    if let Some(record) = best {
        checkpoint::copy(&trial_folder(dir, record.trial), &best_dir)?;
    }
    let curves: Vec<_> = trials
        .iter()
        .map(|record| {
            // A trial that diverged in its first epoch has no folder, and no curve.
            let folder = checkpoint::open(&trial_folder(dir, first[record.trial])).ok();
            let text = folder.and_then(|(folder, _)| checkpoint::read_log(&folder, u64::MAX).ok());
            text.and_then(|text| crate::train::log::parse(&text).ok()).unwrap_or_default()
        })
        .collect();
    let page = page::render(plan, dir, &trials, &curves);
    let report = report::path_in(dir);
    write_atomically(&report, |out| {
        out.write_all(page.as_bytes()).map_err(|e| Error::io(&report, "write", e))
    })?;
    if best.is_none() {
        let first = trials.first().and_then(|record| record.error.clone()).unwrap_or_default();
        let message = format!("none of the {} trials could be trained; the first: {first}", trials.len());
        return Err(Error::new(ErrorKind::Diverged, message)
            .with_help(format!("all of them are listed in {}", report.display())));
    }
    Ok(Outcome { best: Some(best_dir), trials, report })
}

impl Record {
    /// Its line of the file.
    fn line(&self) -> Result<String> {
        let line = serde_json::to_string(self)
            .map_err(|e| Error::internal("a trial cannot be written as JSON").caused_by(e))?;
        Ok(line + "\n")
    }

    /// Errors that are not the trial's own come back.
    fn of(rung: usize, run: &Run<'_>, outcome: Result<Finish>) -> Result<Record> {
        let record = Record {
            rung,
            trial: run.trial,
            status: Status::Done,
            settings: run.settings.clone(),
            budget: run.epochs,
            epochs: 0,
            best_epoch: 0,
            val_loss: None,
            val_metrics: Metrics::new(),
            error: None,
        };
        match outcome {
            Ok(Finish { epochs, best_epoch, val_loss, val_metrics }) => {
                Ok(Record { epochs, best_epoch, val_loss: Some(val_loss), val_metrics, ..record })
            }
            Err(error) => {
                let status = match error.kind() {
                    ErrorKind::Diverged => Status::Diverged,
                    ErrorKind::OutOfMemory | ErrorKind::Argument => Status::Failed,
                    _ => return Err(error),
                };
                Ok(Record { status, error: Some(error.message().to_owned()), ..record })
            }
        }
    }
}

/// All records, and their file.
struct Book<'a> {
    path: PathBuf,
    plan: &'a Plan,
    /// By rung and trial: the order of the file at the end, whatever order they came in.
    records: Mutex<BTreeMap<(usize, usize), Record>>,
}

impl<'a> Book<'a> {
    fn open(plan: &'a Plan, dir: &Path) -> Result<Book<'a>> {
        let path = dir.join(TRIALS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == Io::NotFound => None,
            Err(e) => return Err(Error::io(&path, "read the trials", e)),
        };
        let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default());
        let mut lines: Vec<&str> = text.lines().collect();
        // A kill while a line was written leaves its beginning, which ends the file.
        if !text.ends_with('\n')
            && lines.last().is_some_and(|line| serde_json::from_str::<Record>(line).is_err())
        {
            lines.pop();
        }
        let rungs = plan.rungs().len();
        let mut records = BTreeMap::new();
        for (i, line) in lines.into_iter().enumerate() {
            let wrong =
                |why: &str| Error::data(&path, why.to_owned()).at(&path, Some(i as u64 + 1), None::<String>);
            let record: Record = serde_json::from_str(line).map_err(|e| wrong(&e.to_string()))?;
            if record.trial >= MAX_TRIALS {
                let message = format!("trial {}: a search has at most {MAX_TRIALS}, from 0", record.trial);
                return Err(wrong(&message));
            }
            if record.rung >= rungs {
                return Err(wrong(&format!("rung {}: the search has {rungs}, from 0", record.rung)));
            }
            if record.settings != plan.settings(record.trial) {
                return Err(wrong("the settings are not those of the search"));
            }
            records.insert((record.rung, record.trial), record);
        }
        let book = Book { path, plan, records: Mutex::new(records) };
        if bytes.is_none_or(|bytes| !bytes.ends_with(b"\n")) {
            book.tidy()?;
        }
        Ok(book)
    }

    /// Writes the whole file, its lines in order.
    fn tidy(&self) -> Result<()> {
        let records = lock(&self.records);
        let lines = records.values().map(Record::line).collect::<Result<String>>()?;
        write_atomically(&self.path, |out| {
            out.write_all(lines.as_bytes()).map_err(|e| Error::io(&self.path, "write", e))
        })
    }

    fn has(&self, rung: usize, trial: usize) -> bool {
        lock(&self.records).contains_key(&(rung, trial))
    }

    fn get(&self, rung: usize, trial: usize) -> Result<Record> {
        let record = lock(&self.records).get(&(rung, trial)).cloned();
        record.ok_or_else(|| Error::internal(format!("no record of trial {trial} at rung {rung}")))
    }

    /// Appends the record to the file; returns how many of its rung there are.
    fn add(&self, record: &Record) -> Result<usize> {
        let line = record.line()?;
        // Held while writing, so that lines do not mix.
        let mut records = lock(&self.records);
        let write = || {
            let mut file = OpenOptions::new().append(true).open(&self.path)?;
            let len = file.metadata()?.len();
            let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
            if written.is_err() {
                // Half a line would spoil the next one.
                let _ = file.set_len(len);
            }
            written
        };
        write().map_err(|e| Error::io(&self.path, "write", e))?;
        records.insert((record.rung, record.trial), record.clone());
        Ok(records.keys().filter(|(rung, _)| *rung == record.rung).count())
    }

    /// Trials of `rung` that were trained, and their losses.
    fn losses(&self, rung: usize) -> Vec<(usize, f64)> {
        let records = lock(&self.records);
        let of_rung = records.values().filter(|record| record.rung == rung);
        of_rung.filter_map(|record| Some((record.trial, record.val_loss?))).collect()
    }

    /// The last record of each trial, the best first. A trial that failed at a later rung has failed. Those with the settings of an
    /// earlier one have its record, of the later rungs too, for which they were not trained.
    fn ranking(self, first: &[usize]) -> Vec<Record> {
        let records = self.records.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut last = BTreeMap::new();
        for record in records.into_values().filter(|record| record.trial < self.plan.trials) {
            last.insert(record.trial, record);
        }
        let of = |trial: usize| last.get(&first[trial]).map(|record| Record { trial, ..record.clone() });
        let mut ranking: Vec<Record> = (0..first.len()).filter_map(of).collect();
        let loss = |record: &Record| record.val_loss.unwrap_or(f64::INFINITY);
        ranking.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        ranking
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The model folder of a trial. Names sort as numbers do.
fn trial_folder(dir: &Path, trial: usize) -> PathBuf {
    dir.join("trials").join(format!("{trial:05}"))
}

/// Makes `dir` the folder of this search, or finds that it is; no other process may use it meanwhile.
fn claim(plan: &Plan, dir: &Path) -> Result<File> {
    let path = dir.join(PLAN);
    let wanted = plan.to_table();
    let write = || {
        let text = toml::to_string(&wanted)
            .map_err(|e| Error::internal("the search cannot be written as TOML").caused_by(e))?;
        write_atomically(&path, |out| {
            out.write_all(text.as_bytes()).map_err(|e| Error::io(&path, "write", e))
        })
    };
    if !path.exists() {
        let mut inside = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == Io::NotFound => {
                fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
                fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))?
            }
            Err(e) => return Err(Error::io(dir, "list", e)),
        };
        if inside.next().is_some() {
            let message = format!("{} has something in it that is no search", dir.display());
            return Err(Error::argument(message).with_help("give another folder with --out"));
        }
        write()?;
    }
    // The file may be replaced below; who holds the lock of the folder itself goes on.
    let held = File::open(dir).map_err(|e| Error::io(dir, "open", e))?;
    if let Err(fs::TryLockError::WouldBlock) = held.try_lock() {
        return Err(Error::argument(format!("another search is running in {}", dir.display())));
    }
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let found: toml::Table = toml::from_str(&text).map_err(|e| Error::data(&path, e.message().to_owned()))?;
    if found == wanted {
        return Ok(held);
    }
    // More trials of a random search are the same trials and some more.
    let mut grown = found.clone();
    grown.insert("trials".to_owned(), wanted["trials"].clone());
    let grows = plan.method == Method::Random
        && grown == wanted
        && found.get("trials").and_then(toml::Value::as_integer) < wanted["trials"].as_integer();
    if grows {
        write()?;
        return Ok(held);
    }
    let message = format!("{} holds another search: {}", dir.display(), difference(&found, &wanted));
    Err(Error::argument(message).with_help("give another folder with --out, or the settings of that search"))
}

/// The first setting that differs, as text.
fn difference(found: &toml::Table, wanted: &toml::Table) -> String {
    let keys = found.keys().chain(wanted.keys());
    for key in keys {
        match (found.get(key), wanted.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) if a != b => return difference(a, b),
            (a, b) if a != b => {
                let text =
                    |v: Option<&toml::Value>| v.map_or_else(|| "nothing".to_owned(), ToString::to_string);
                return format!("{key} was {}, is {}", text(a), text(b));
            }
            _ => {}
        }
    }
    "nothing differs".to_owned()
}

fn interrupted(dir: &Path) -> Error {
    let message = format!("interrupted; the trials so far are in {}", dir.display());
    Error::new(ErrorKind::Interrupted, message).with_help("give the same command again to go on")
}
