//! A model folder: what it holds, how it is written whole, how it is read strictly.
//!
//! `model.safetensors` has the weights of the kept epoch under PyTorch's names, `model.toml` all else that prediction
//! needs, `state/` what resuming needs: the last epoch's weights and moments, and the place in the data.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::{Deserialize, Serialize};

use super::lm::LmFile;
use super::log;
use super::metrics::Metrics;
use super::model::{Architecture, Model};
use super::spec::TrainConfig;
use super::weights::{from_host, to_host};
use crate::data::{Position, Preparation, Task};
use crate::io::HostTensor;
use crate::io::folder::{self, Folder};
use crate::io::safetensors::{self, SafeTensors};
use crate::optim::PlateauState;
use crate::param::StepBlock;
use crate::{Device, Error, Result};

/// The version of the folder's format that this crate writes, and the newest it reads.
pub const FORMAT: u32 = 2;

const WEIGHTS: &str = "model.safetensors";
const LAST_WEIGHTS: &str = "state/model.safetensors";
const OPTIMIZER: &str = "state/optimizer.safetensors";
const PROGRESS: &str = "state/progress.toml";
const LOG: &str = "metrics.jsonl";
const TABLE: &str = "metrics.csv";

/// The part of the data that a model's figures are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// Rows that nothing was chosen by.
    Test,
    /// Rows that picked the epoch.
    Validation,
    /// Rows that were trained on.
    Train,
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Judge::Test => "test",
            Judge::Validation => "validation",
            Judge::Train => "train",
        })
    }
}

/// What `model.toml` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// The format's version: [`FORMAT`].
    pub format: u32,
    /// The version of the crate that wrote it.
    pub warpsmith: String,
    /// The part that `metrics` are of; nothing before there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_on: Option<Judge>,
    /// Figures of the kept weights: on the test part once training is over, on the validation part before.
    pub metrics: Metrics,
    /// The network.
    pub architecture: Architecture,
    /// How it was trained.
    pub training: TrainConfig,
    /// Where the data came from and how it was divided; free-form for the program that trains.
    pub source: toml::Table,
    /// How rows become numbers.
    pub preparation: Preparation,
}

/// How far training has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimiser steps, those that were skipped for gradients that are not finite included.
    pub steps: u64,
    /// The place in the training part.
    pub epoch: u64,
    /// Finished batches of the epoch.
    pub batch: usize,
    /// Loss summed over the rows of the epoch so far.
    pub loss_sum: f64,
    /// Rows of the epoch so far.
    pub loss_rows: u64,
    /// Mean loss over the last finished epoch.
    pub train_loss: Option<f64>,
    /// Validation loss after the last finished epoch.
    pub val_loss: Option<f64>,
    /// The best validation loss so far.
    pub best_loss: Option<f64>,
    /// The epoch (from 1) whose weights are kept; 0 before the first.
    pub best_epoch: u64,
    /// Whether it was patience that ended training, before the last epoch.
    pub stopped_early: bool,
    /// The step block's floats: learning rates, powers of the betas.
    pub step_floats: Vec<f64>,
    /// The plateau rule's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau: Option<PlateauState>,
    /// A checksum of the prepared training data, against resuming on other data.
    pub data_checksum: u32,
}

impl Progress {
    /// The place in the training part.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, batch: self.batch }
    }
}

/// Everything that is saved.
pub struct Checkpoint<'a> {
    /// For `model.toml`.
    pub file: &'a ModelFile,
    /// The kept epoch's weights.
    pub kept: &'a [(String, HostTensor<'static>)],
    /// The weights now.
    pub model: &'a Model,
    /// How far training has come.
    pub progress: &'a Progress,
    /// Lines for `metrics.jsonl`, of which `metrics.csv` is made too.
    pub log: &'a str,
}

/// Writes `checkpoint` as folder `dir`, replacing an older model there in one step.
pub fn save(dir: &Path, checkpoint: &Checkpoint<'_>) -> Result<()> {
    let text = |what: &str, result: Result<String, toml::ser::Error>| {
        result.map_err(|e| Error::internal(format!("{what} cannot be written")).caused_by(e))
    };
    let file = text("model.toml", toml::to_string(checkpoint.file))?;
    let progress = text("progress.toml", toml::to_string(checkpoint.progress))?;
    let table = log::to_csv(&log::parse(checkpoint.log)?, checkpoint.file.architecture.task);
    let last = checkpoint.model.state()?;
    let moments = checkpoint
        .model
        .arena()
        .named_states()?
        .into_iter()
        .map(|(name, t)| Ok((name, to_host(&t)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = [("format", "pt")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    folder::save(dir, |staging| {
        staging.bytes(folder::MODEL, file.as_bytes())?;
        for (name, tensors) in [(WEIGHTS, checkpoint.kept), (LAST_WEIGHTS, &last), (OPTIMIZER, &moments)] {
            staging.file(name, |out| safetensors::write_to(out, tensors, &metadata))?;
        }
        staging.bytes(PROGRESS, progress.as_bytes())?;
        staging.bytes(LOG, checkpoint.log.as_bytes())?;
        staging.bytes(TABLE, table.as_bytes())
    })
}

/// The lines of a folder's log up to epoch `epochs`: a run that diverged leaves later ones behind an older checkpoint.
pub fn read_log(folder: &Folder, epochs: u64) -> Result<String> {
    let bytes = folder.read(LOG)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| Error::data(folder.path().join(LOG), "not UTF-8").caused_by(e))?;
    let log: String = text.split_inclusive('\n').take(epochs.try_into().unwrap_or(usize::MAX)).collect();
    log::parse(&log).map_err(|e| Error::data(folder.path().join(LOG), e.message()))?;
    Ok(log)
}

/// Gives the folder `dir` another log; all else stays as it is.
pub fn replace_log(dir: &Path, log: &str) -> Result<()> {
    let (folder, file) = open(dir)?;
    let table = log::to_csv(&log::parse(log)?, file.architecture.task);
    let names = folder.names().filter(|&name| ![LOG, TABLE].contains(&name));
    let files = names.map(|name| Ok((name, folder.read(name)?)));
    let files = files.collect::<Result<Vec<_>>>()?;
    folder::save(dir, |staging| {
        files.iter().try_for_each(|(name, bytes)| staging.bytes(name, bytes))?;
        staging.bytes(LOG, log.as_bytes())?;
        staging.bytes(TABLE, table.as_bytes())
    })
}

/// Writes all of the model in `from` as the folder `to`, replacing a model there in one step.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = Folder::open(from)?;
    folder::save(to, |staging| folder.names().try_for_each(|name| staging.bytes(name, &folder.read(name)?)))
}

/// The folder beside `dir` for the checkpoints of a run that may not replace the model in `dir` before it is complete.
pub fn partial_of(dir: &Path) -> PathBuf {
    // By components, so that `models/a/` gives `models/a.partial`.
    let mut name = dir.components().collect::<PathBuf>().into_os_string();
    name.push(".partial");
    PathBuf::from(name)
}

/// Removes the model in `dir`, and `dir` itself where nothing else is in it.
pub fn remove(dir: &Path) -> Result<()> {
    let folder = Folder::open(dir)?;
    let remove = |file: &Path| fs::remove_file(file).map_err(|e| Error::io(file, "remove", e));
    folder.names().try_for_each(|name| remove(&dir.join(name)))?;
    remove(&dir.join(folder::CHECKSUMS))?;
    // What is not empty holds someone's files, and stays.
    let _ = fs::remove_dir(dir.join("state"));
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// Reads TOML of `dir`'s file `name`.
pub(super) fn read_toml<T: for<'de> Deserialize<'de>>(folder: &Folder, name: &str) -> Result<T> {
    parse_toml(&folder.path().join(name), &folder.read(name)?)
}

pub(super) fn parse_toml<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error::data(path, "not UTF-8").caused_by(e))?;
    toml::from_str(text).map_err(|e| Error::data(path, e.message().to_owned()))
}

/// What kind of model a `model.toml` is of, where it says so; models of tables and pictures do not.
///
/// # Errors
/// Kind `Data`: not TOML, a newer format.
pub(super) fn kind_of(path: &Path, bytes: &[u8]) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
        kind: Option<String>,
    }
    let version: Version = parse_toml(path, bytes)?;
    if version.format > FORMAT {
        let message = format!(
            "the model has format {}, this version of warpsmith reads up to {FORMAT}",
            version.format
        );
        return Err(Error::data(path, message).with_help("use a newer warpsmith"));
    }
    Ok(version.kind)
}

impl ModelFile {
    /// Reads the text of a `model.toml`, called `path` in errors, and checks all that can be told without the weights.
    ///
    /// # Errors
    /// Kind `Data`: not TOML, a newer format, a network that does not fit its inputs or itself.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<ModelFile> {
        if let Some(kind) = kind_of(path, bytes)? {
            let help = match kind.as_str() {
                LmFile::KIND => "a language model answers to `warpsmith generate`",
                _ => "use a newer warpsmith",
            };
            return Err(Error::data(path, format!("this is a model of kind {kind:?}")).with_help(help));
        }
        let file: ModelFile = parse_toml(path, bytes)?;
        let architecture = &file.architecture;
        architecture.network.check_read(&architecture.input).map_err(|e| Error::data(path, e.message()))?;
        let (inputs, made) = (architecture.width(), file.preparation.width());
        if inputs != made {
            let message = format!("the network has {inputs} inputs but the preparation makes {made}");
            return Err(Error::data(path, message));
        }
        let classes = file.preparation.target().classes().len();
        let fits = match architecture.task {
            Task::Multiclass => architecture.outputs == classes,
            Task::Binary => (architecture.outputs, classes) == (1, 2),
            Task::Regression => (architecture.outputs, classes) == (1, 0),
        };
        if !fits {
            let (task, outputs) = (architecture.task, architecture.outputs);
            let message = format!("a network of {outputs} outputs for {classes} classes is no {task} model");
            return Err(Error::data(path, message));
        }
        Ok(file)
    }
}

/// Opens `dir` and reads `model.toml`. Errors (kind `Data`) for what is no model folder, is damaged, or is newer.
pub fn open(dir: &Path) -> Result<(Folder, ModelFile)> {
    let folder = Folder::open(dir).map_err(|error| match dir.join(super::tune::PLAN).is_file() {
        true => {
            let best = dir.join(super::tune::BEST);
            error.with_help(format!("this is the folder of a search, whose best model is {}", best.display()))
        }
        false => error,
    })?;
    let file = ModelFile::parse(&folder.path().join(folder::MODEL), &folder.read(folder::MODEL)?)?;
    Ok((folder, file))
}

fn load_into(model: &Model, tensors: &SafeTensors, path: &Path) -> Result<()> {
    let named = tensors.names().map(|n| Ok((n, tensors.get(n)?))).collect::<Result<Vec<_>>>()?;
    model.load_state(named).map_err(|e| Error::data(path, e.message()))
}

/// The kept model of a folder.
pub fn load_model(folder: &Folder, file: &ModelFile, device: Device) -> Result<Model> {
    let tensors = folder.safetensors(WEIGHTS)?;
    let model = Model::new(file.architecture.clone(), 0, device)?;
    load_into(&model, &tensors, &folder.path().join(WEIGHTS))?;
    Ok(model)
}

/// How far the training of a folder's model has come.
pub fn read_progress(folder: &Folder) -> Result<Progress> {
    read_toml(folder, PROGRESS)
}

/// The state that training goes on from: the progress, and the kept weights by name. Overwrites `model`'s weights and the
/// arena's buffers, which the optimiser must have made.
pub fn load_state(folder: &Folder, model: &Model) -> Result<(Progress, Vec<(String, HostTensor<'static>)>)> {
    let progress = read_progress(folder)?;
    load_into(model, &folder.safetensors(LAST_WEIGHTS)?, &folder.path().join(LAST_WEIGHTS))?;
    let path = folder.path().join(OPTIMIZER);
    let moments = folder.safetensors(OPTIMIZER)?;
    let slices = model.arena().named_states()?;
    if moments.names().len() != slices.len() {
        let message =
            format!("{} tensors of optimiser state where {} are needed", moments.names().len(), slices.len());
        return Err(Error::data(path, message));
    }
    for (name, slice) in slices {
        let tensor = moments.get(&name).map_err(|e| Error::data(&path, e.message()))?;
        if tensor.shape() != slice.dims() || tensor.dtype() != slice.dtype() {
            return Err(Error::data(&path, format!("{name:?} has the wrong shape or type")));
        }
        slice.copy_(&from_host(&tensor, slice.device())?)?;
    }
    let block = model.arena().step_block();
    let place = folder.path().join(PROGRESS);
    block.load(&progress.step_floats).map_err(|e| Error::data(place, e.message()))?;
    let skipped = block.get(StepBlock::SKIPPED)? as u64;
    block.set_counters(progress.steps.saturating_sub(skipped), progress.steps)?;
    let kept = folder.safetensors(WEIGHTS)?;
    let kept = kept.names().map(|n| Ok((n.to_owned(), kept.get(n)?.into_owned()))).collect::<Result<_>>()?;
    Ok((progress, kept))
}
