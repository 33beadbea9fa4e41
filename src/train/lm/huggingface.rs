//! GPT-2's weights as Hugging Face keeps them: a folder of `config.json` and `model.safetensors`.
//!
//! Names there are ours, with or without `transformer.` in front; the weights of a block's linear layers lie `[in, out]` and are
//! turned round. A token table is padded with rows of zeros to the multiple of 64 that our decoders of a padded vocabulary have.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::model::LanguageModel;
use crate::io::safetensors::{self, Entry, SafeTensors};
use crate::io::{HostTensor, create_folder, write_atomically};
use crate::nn::{FeedForwardKind, GptConfig, NormKind, Positions};
use crate::{DType, Error, ErrorKind, Result};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const PREFIX: &str = "transformer.";
const HEAD: &str = "lm_head.weight";
const TOKENS: &str = "transformer.wte.weight";
const POSITIONS: &str = "transformer.wpe.weight";
/// Differences that an error tells one by one.
const SHOWN: usize = 20;

/// A decoder's tensors by our names, in f32.
pub type Weights = Vec<(String, HostTensor<'static>)>;

/// Whether `path` looks like such weights: a safetensors file, or a folder with a `config.json` that is no model folder of ours.
pub fn is_hugging_face(path: &Path) -> bool {
    let ours = || path.join(crate::io::folder::MODEL).exists();
    path.extension().is_some_and(|e| e == "safetensors") || path.join(CONFIG).is_file() && !ours()
}

/// Reads GPT-2 weights from a folder, or from a `.safetensors` file that has its `config.json` beside it.
///
/// A `context` below the file's takes the first rows of the position table. f16 and bf16 become f32.
///
/// # Errors
/// Kind `Data`: a configuration that is not GPT-2's; tensors that are missing, unknown, or of another shape or type, all told in
/// one error. Kind `Argument`: a `context` above the file's.
pub fn import(path: &Path, context: Option<usize>) -> Result<(GptConfig, Weights)> {
    let file = if path.is_dir() { path.join(WEIGHTS) } else { path.to_owned() };
    let config_file = file.with_file_name(CONFIG);
    let text = std::fs::read(&config_file).map_err(|e| {
        Error::io(&config_file, "read the configuration", e)
            .with_help("the number of heads is in config.json, which belongs beside the weights")
    })?;
    let stored = parse_config(&text).map_err(|e| Error::data(&config_file, e.message()))?;
    stored.check().map_err(|e| Error::data(&config_file, e.message()))?;
    if !file.exists() {
        return Err(Error::data(path, format!("no {WEIGHTS} in this folder"))
            .with_help("weights in several files or of torch.save are to be saved as one safetensors file"));
    }
    let context = context.unwrap_or(stored.context);
    if context > stored.context {
        let message = format!("a context of {context}: these weights know {} positions", stored.context);
        return Err(Error::argument(message));
    }
    let tensors = safetensors::read(&file)?;
    let names = match_names(&tensors, &stored).map_err(|e| Error::data(&file, e.message()))?;
    let config = GptConfig { context, padded_vocab: stored.vocab.next_multiple_of(64), ..stored };
    let mut weights = Vec::with_capacity(names.len());
    for (ours, theirs) in names {
        let tensor = tensors.get(&theirs)?;
        let (mut values, mut shape) = (to_f32(&tensor)?, tensor.shape().to_vec());
        if is_turned(&ours) {
            values = turned(&values, [shape[0], shape[1]]);
            shape.reverse();
        }
        let rows = match ours.as_str() {
            TOKENS | HEAD => config.padded_vocab,
            POSITIONS => config.context,
            _ => shape[0],
        };
        values.resize(values.len() / shape[0] * rows, 0.0);
        shape[0] = rows;
        weights.push((ours, host(shape, &values)?));
    }
    Ok((config, weights))
}

/// Writes `model` to the new folder `dir`, which appears whole or not at all. Weights are f32 (the masters of 16-bit ones); the
/// rows that pad the token table are left out, and biases that the model does not have are zeros.
///
/// # Errors
/// Kind `Argument`: `dir` exists, or the model has parts that GPT-2 has not, all told in one error.
pub fn export(model: &LanguageModel, dir: &Path) -> Result<()> {
    let config = model.config();
    check_exportable(config)?;
    let mut kept: BTreeMap<String, HostTensor<'static>> = model.state()?.into_iter().collect();
    let mut tensors: Weights = Vec::new();
    for (name, shape) in expected(config) {
        let Some(tensor) = kept.remove(&name) else {
            if !name.ends_with(".bias") {
                return Err(Error::internal(format!("a decoder without {name}")));
            }
            let zeros = vec![0.0; shape.iter().product()];
            tensors.push((name, host(shape, &zeros)?));
            continue;
        };
        let mut values = to_f32(&tensor)?;
        if is_turned(&name) {
            // Ours is the other way round than what is expected of a file.
            values = turned(&values, [shape[1], shape[0]]);
        }
        values.truncate(shape.iter().product());
        tensors.push((name, host(shape, &values)?));
    }
    let text = serde_json::to_vec_pretty(&config_json(config))
        .map_err(|e| Error::internal("a configuration cannot be written").caused_by(e))?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    create_folder(dir, |folder| {
        write_atomically(folder.join(CONFIG), |out| {
            out.write_all(&text).map_err(|e| Error::new(ErrorKind::Data, "could not write").caused_by(e))
        })?;
        safetensors::write(folder.join(WEIGHTS), &tensors, &metadata)
    })
}

/// Whether a weight lies `[in, out]` in a file.
fn is_turned(name: &str) -> bool {
    name.ends_with(".weight")
        && (name.contains(".c_attn.") || name.contains(".c_proj.") || name.contains(".c_fc."))
}

/// The transpose of `[rows, columns]`.
fn turned(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

fn host(shape: Vec<usize>, values: &[f32]) -> Result<HostTensor<'static>> {
    HostTensor::new(DType::F32, shape, bytemuck::cast_slice::<f32, u8>(values).to_vec())
}

fn to_f32(tensor: &HostTensor<'_>) -> Result<Vec<f32>> {
    use crate::dtype::Element;
    if tensor.dtype() == DType::F32 {
        return tensor.to_vec();
    }
    crate::dispatch!(tensor.dtype(), T => {
        Ok(tensor.to_vec::<T>()?.into_iter().map(|v| Element::to_f64(v) as f32).collect())
    })
}

/// Our name and the file's shape of each tensor.
fn expected(config: &GptConfig) -> Vec<(String, Vec<usize>)> {
    let (c, hidden) = (config.width, config.hidden);
    let mut all =
        vec![(TOKENS.to_owned(), vec![config.vocab, c]), (POSITIONS.to_owned(), vec![config.context, c])];
    let norm = |name: String| ["weight", "bias"].map(|part| (format!("{PREFIX}{name}.{part}"), vec![c]));
    for n in 0..config.layers {
        let product = |name: &str, from: usize, to: usize| {
            let part = |part, shape| (format!("{PREFIX}h.{n}.{name}.{part}"), shape);
            [part("weight", vec![from, to]), part("bias", vec![to])]
        };
        all.extend(norm(format!("h.{n}.ln_1")));
        all.extend(product("attn.c_attn", c, 3 * c));
        all.extend(product("attn.c_proj", c, c));
        all.extend(norm(format!("h.{n}.ln_2")));
        all.extend(product("mlp.c_fc", c, hidden));
        all.extend(product("mlp.c_proj", hidden, c));
    }
    all.extend(norm("ln_f".to_owned()));
    if !config.tied {
        all.push((HEAD.to_owned(), vec![config.vocab, c]));
    }
    all
}

/// Our name of a tensor of the file; none for the masks that old versions saved.
fn our_name(theirs: &str) -> Option<String> {
    if theirs == HEAD {
        return Some(theirs.to_owned());
    }
    let name = theirs.strip_prefix(PREFIX).unwrap_or(theirs);
    let block = name.strip_prefix("h.").and_then(|rest| rest.split_once('.')).map(|(_, rest)| rest);
    let mask = matches!(block, Some("attn.bias" | "attn.masked_bias"));
    (!mask).then(|| format!("{PREFIX}{name}"))
}

/// For each of our names that of the file. Errors tell all differences between the two.
fn match_names(tensors: &SafeTensors, config: &GptConfig) -> Result<Vec<(String, String)>> {
    let mut wrong = Vec::new();
    let mut found: BTreeMap<String, &Entry> = BTreeMap::new();
    for entry in tensors.header().entries() {
        let Some(ours) = our_name(entry.name()) else { continue };
        if let Some(other) = found.insert(ours, entry) {
            wrong.push(format!("{} is there as {} too", entry.name(), other.name()));
        }
    }
    let mut names = Vec::new();
    for (ours, shape) in expected(config) {
        let short = if ours == HEAD { &ours } else { ours.trim_start_matches(PREFIX) };
        let Some(entry) = found.remove(&ours) else {
            wrong.push(format!("{short} is missing"));
            continue;
        };
        if entry.shape() != shape {
            wrong.push(format!("{short} is {:?}, the configuration needs {shape:?}", entry.shape()));
        }
        if !entry.dtype().is_float() {
            wrong.push(format!("{short} is of {}, not of a floating-point type", entry.dtype()));
        }
        names.push((ours, entry.name().to_owned()));
    }
    if let Some(head) = found.remove(HEAD) {
        let table = names.iter().find(|(ours, _)| ours == TOKENS).map(|(_, theirs)| tensors.get(theirs));
        if table.transpose()?.is_none_or(|table| Some(table) != tensors.get(head.name()).ok()) {
            wrong.push(format!("{HEAD} is not wte.weight, though the configuration ties the two"));
        }
    }
    wrong.extend(found.values().map(|entry| format!("{} is unknown", entry.name())));
    if wrong.is_empty() {
        return Ok(names);
    }
    let more = wrong.len().saturating_sub(SHOWN);
    let mut message = format!("{} differences from GPT-2's weights: ", wrong.len());
    message += &wrong.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
    if more > 0 {
        message += &format!("; and {more} more");
    }
    Err(Error::new(ErrorKind::Data, message))
}

/// What a `config.json` says, its vocabulary not padded.
fn parse_config(text: &[u8]) -> Result<GptConfig> {
    let wrong = |message: String| Error::new(ErrorKind::Data, message);
    let file: Value = serde_json::from_slice(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let given = |key: &str| file.get(key).filter(|v| !v.is_null());
    let size = |key: &str| {
        let number =
            given(key).map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or(v)).transpose();
        number.map_err(|v| wrong(format!("{key} {v} is not a size")))
    };
    let needed = |key: &str| size(key)?.ok_or_else(|| wrong(format!("{key} is missing")));
    let switch = |key: &str, default: bool| match given(key) {
        None => Ok(default),
        Some(v) => v.as_bool().ok_or_else(|| wrong(format!("{key} {v} is not true or false"))),
    };
    if let Some(kind) = given("model_type").filter(|kind| kind.as_str() != Some("gpt2")) {
        return Err(wrong(format!("model_type {kind}: only \"gpt2\" can be read")));
    }
    for (key, usual) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        if switch(key, usual)? != usual {
            return Err(wrong(format!("{key} {}: not supported", !usual)));
        }
    }
    let activation = given("activation_function").map_or(Some("gelu_new"), Value::as_str);
    let activation = match activation {
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => FeedForwardKind::GeluTanh,
        Some("gelu") => FeedForwardKind::Gelu,
        Some("relu") => FeedForwardKind::Relu,
        _ => {
            let message = format!("activation_function {}", file["activation_function"]);
            return Err(wrong(format!("{message}: expected gelu_new, gelu or relu")));
        }
    };
    let eps = match given("layer_norm_epsilon") {
        None => 1e-5,
        Some(v) => v.as_f64().ok_or_else(|| wrong(format!("layer_norm_epsilon {v} is not a number")))?,
    };
    let context = match size("n_positions")? {
        Some(n) => n,
        None => needed("n_ctx")?,
    };
    let base = GptConfig::new(
        needed("vocab_size")?,
        context,
        needed("n_layer")?,
        needed("n_head")?,
        needed("n_embd")?,
    );
    let hidden = size("n_inner")?.unwrap_or(base.hidden);
    let tied = switch("tie_word_embeddings", true)?;
    Ok(GptConfig { hidden, eps, activation, tied, bias: true, ..base })
}

fn check_exportable(config: &GptConfig) -> Result<()> {
    let parts = [
        (config.norm != NormKind::LayerNorm, "RMSNorm"),
        (config.positions != Positions::Learned, "rotary positions"),
        (config.activation == FeedForwardKind::SwiGlu, "SwiGLU"),
        (config.kv_heads != config.heads, "shared key and value heads"),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|(has, _)| *has).map(|(_, what)| what).collect();
    if parts.is_empty() {
        return Ok(());
    }
    Err(Error::argument(format!("GPT-2's layout has no room for {}", parts.join(", "))))
}

fn config_json(config: &GptConfig) -> Value {
    let activation = match config.activation {
        FeedForwardKind::GeluTanh => "gelu_new",
        FeedForwardKind::Relu => "relu",
        FeedForwardKind::Gelu | FeedForwardKind::SwiGlu => "gelu",
    };
    json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "activation_function": activation,
        "layer_norm_epsilon": config.eps,
        "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "torch_dtype": "float32",
    })
}

/// What a decoder read from `path` is called: the folder's name.
pub fn name_of(path: &Path) -> String {
    let whole: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = if path.is_dir() { Some(whole.as_path()) } else { whole.parent() };
    folder.and_then(Path::file_name).map_or("gpt2".to_owned(), |name| name.to_string_lossy().into_owned())
}
