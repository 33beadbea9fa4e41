//! A language model's folder: as any model's (see `train::checkpoint`), with `kind = "lm"` in `model.toml` and the tokeniser.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::LmConfig;
use super::model::LanguageModel;
use crate::data::text::{TOKENIZER_FILE, Tokenizer};
use crate::io::HostTensor;
use crate::io::folder::{self, Folder};
use crate::io::safetensors::{self, SafeTensors};
use crate::nn::GptConfig;
use crate::param::Precision;
use crate::train::checkpoint::{self, parse_toml, read_toml};
use crate::train::weights::{from_host, to_host};
use crate::{Device, Error, Result};

const WEIGHTS: &str = "model.safetensors";
const LAST_WEIGHTS: &str = "state/model.safetensors";
const OPTIMIZER: &str = "state/optimizer.safetensors";
const PROGRESS: &str = "state/progress.toml";
const LOG: &str = "metrics.jsonl";

/// What `model.toml` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmFile {
    /// The format's version: [`FORMAT`](checkpoint::FORMAT).
    pub format: u32,
    /// `lm`
    pub kind: String,
    /// The version of the crate that wrote it.
    pub warpsmith: String,
    /// What the decoder was called, such as `gpt:4x4x128`.
    pub name: String,
    /// The loss of the kept weights on the validation part, in nats a token; none without such a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The decoder.
    pub architecture: GptConfig,
    /// How it was trained.
    pub training: LmConfig,
    /// Where the text came from; free-form for the program that trains.
    pub source: toml::Table,
}

impl LmFile {
    /// The kind of a language model's file.
    pub const KIND: &str = "lm";

    /// Reads the text of a `model.toml`, called `path` in errors.
    ///
    /// # Errors
    /// Kind `Data`: not TOML, a newer format, another kind of model, a decoder that does not fit itself.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<LmFile> {
        match checkpoint::kind_of(path, bytes)?.as_deref() {
            Some(LmFile::KIND) => {}
            _ => {
                return Err(Error::data(path, "this is no language model")
                    .with_help("models of tables and pictures answer to `warpsmith predict`"));
            }
        }
        let file: LmFile = parse_toml(path, bytes)?;
        file.architecture.check().map_err(|e| Error::data(path, e.message()))?;
        file.training.check().map_err(|e| Error::data(path, e.message()))?;
        Ok(file)
    }
}

/// How far training has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmProgress {
    /// Finished steps, skipped ones included.
    pub steps: u64,
    /// The optimiser's own count.
    pub updates: u64,
    /// Loss summed over the steps since the last evaluation.
    pub loss_sum: f64,
    /// Steps since the last evaluation.
    pub loss_steps: u64,
    /// Mean training loss between the last two evaluations.
    pub train_loss: Option<f64>,
    /// The last validation loss.
    pub val_loss: Option<f64>,
    /// The best validation loss.
    pub best_loss: Option<f64>,
    /// The step whose weights are kept.
    pub best_step: u64,
    /// The step block's floats.
    pub step_floats: Vec<f64>,
    /// A checksum of tokens and tokeniser, against resuming on other text.
    pub data_checksum: u32,
}

/// Everything that is saved.
pub(super) struct LmCheckpoint<'a> {
    pub file: &'a LmFile,
    pub tokenizer: &'a Tokenizer,
    pub kept: &'a [(String, HostTensor<'static>)],
    pub model: &'a LanguageModel,
    pub progress: &'a LmProgress,
    pub log: &'a str,
}

/// Writes the folder `dir`, replacing an older model there in one step.
pub(super) fn save(dir: &Path, checkpoint: &LmCheckpoint<'_>) -> Result<()> {
    let text = |what: &str, result: Result<String, toml::ser::Error>| {
        result.map_err(|e| Error::internal(format!("{what} cannot be written")).caused_by(e))
    };
    let file = text("model.toml", toml::to_string(checkpoint.file))?;
    let progress = text("progress.toml", toml::to_string(checkpoint.progress))?;
    let tokenizer = serde_json::to_vec(checkpoint.tokenizer)
        .map_err(|e| Error::internal("a tokeniser cannot be written").caused_by(e))?;
    let last = crate::train::weights::state(checkpoint.model.arena())?;
    let states = checkpoint.model.arena().named_states()?.into_iter();
    let states = states.map(|(name, t)| Ok((name, to_host(&t)?))).collect::<Result<Vec<_>>>()?;
    let metadata = [("format", "pt")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    folder::save(dir, |staging| {
        staging.bytes(folder::MODEL, file.as_bytes())?;
        staging.bytes(TOKENIZER_FILE, &tokenizer)?;
        for (name, tensors) in [(WEIGHTS, checkpoint.kept), (LAST_WEIGHTS, &last), (OPTIMIZER, &states)] {
            staging.file(name, |out| safetensors::write_to(out, tensors, &metadata))?;
        }
        staging.bytes(PROGRESS, progress.as_bytes())?;
        staging.bytes(LOG, checkpoint.log.as_bytes())
    })
}

/// Whether `dir` is the folder of a language model. Errors if it is no model folder at all.
pub fn is_language_model(dir: &Path) -> Result<bool> {
    let folder = Folder::open(dir)?;
    let path = folder.path().join(folder::MODEL);
    Ok(checkpoint::kind_of(&path, &folder.read(folder::MODEL)?)?.as_deref() == Some(LmFile::KIND))
}

/// Opens `dir`: the folder, `model.toml` and the tokeniser. Errors (kind `Data`) for what is no language model's folder, is
/// damaged, or is newer.
pub fn open(dir: &Path) -> Result<(Folder, LmFile, Tokenizer)> {
    let folder = Folder::open(dir)?;
    let file = LmFile::parse(&folder.path().join(folder::MODEL), &folder.read(folder::MODEL)?)?;
    let path = folder.path().join(TOKENIZER_FILE);
    let tokenizer: Tokenizer = serde_json::from_slice(&folder.read(TOKENIZER_FILE)?)
        .map_err(|e| Error::data(&path, format!("not a tokeniser: {e}")))?;
    if tokenizer.vocab() != file.architecture.vocab {
        let (tokens, vocab) = (tokenizer.vocab(), file.architecture.vocab);
        return Err(Error::data(path, format!("{tokens} tokens where the model has {vocab}")));
    }
    Ok((folder, file, tokenizer))
}

/// How far the training of a folder's model has come.
pub fn read_progress(folder: &Folder) -> Result<LmProgress> {
    read_toml(folder, PROGRESS)
}

fn load_into(model: &LanguageModel, tensors: &SafeTensors, path: &Path) -> Result<()> {
    let named = tensors.names().map(|n| Ok((n, tensors.get(n)?))).collect::<Result<Vec<_>>>()?;
    model.load_state(named).map_err(|e| Error::data(path, e.message()))
}

/// The kept model of a folder, computed in `precision`.
pub fn load_model(
    folder: &Folder,
    file: &LmFile,
    precision: Precision,
    device: Device,
) -> Result<LanguageModel> {
    let tensors = folder.safetensors(WEIGHTS)?;
    let model = LanguageModel::new(&file.architecture, precision, 0, device)?;
    load_into(&model, &tensors, &folder.path().join(WEIGHTS))?;
    Ok(model)
}

/// The state that training goes on from: the progress, the kept weights, the log. Overwrites `model`'s weights and the arena's
/// states, which the optimiser must have made.
#[allow(clippy::type_complexity)]
pub(super) fn load_state(
    folder: &Folder,
    model: &LanguageModel,
) -> Result<(LmProgress, Vec<(String, HostTensor<'static>)>, String)> {
    let progress = read_progress(folder)?;
    load_into(model, &folder.safetensors(LAST_WEIGHTS)?, &folder.path().join(LAST_WEIGHTS))?;
    let path = folder.path().join(OPTIMIZER);
    let saved = folder.safetensors(OPTIMIZER)?;
    let states = model.arena().named_states()?;
    if saved.names().len() != states.len() {
        let (found, needed) = (saved.names().len(), states.len());
        return Err(Error::data(path, format!("{found} tensors of state where {needed} are needed")));
    }
    for (name, state) in states {
        let tensor = saved.get(&name).map_err(|e| Error::data(&path, e.message()))?;
        if tensor.shape() != state.dims() || tensor.dtype() != state.dtype() {
            return Err(Error::data(&path, format!("{name:?} has the wrong shape or type")));
        }
        state.copy_(&from_host(&tensor, state.device())?)?;
    }
    let block = model.arena().step_block();
    let wrong = |e: Error| Error::data(folder.path().join(PROGRESS), e.message());
    block.load(&progress.step_floats).map_err(wrong)?;
    block.set_counters(progress.updates, progress.steps)?;
    let kept = folder.safetensors(WEIGHTS)?;
    let kept = kept.names().map(|n| Ok((n.to_owned(), kept.get(n)?.into_owned()))).collect::<Result<_>>()?;
    let log = folder.read(LOG)?;
    let log =
        String::from_utf8(log).map_err(|e| Error::data(folder.path().join(LOG), "not UTF-8").caused_by(e))?;
    Ok((progress, kept, log))
}
