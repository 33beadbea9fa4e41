//! `warpsmith info`: what a model folder or a safetensors file holds.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::extents::Extents;
use super::output::{self, figures, thousands};
use super::settings::Settings;
use crate::data::{Input, Task};
use crate::io::safetensors::{self, Header};
use crate::param::Precision;
use crate::train::checkpoint::{self, ModelFile};
use crate::train::network::SummaryRow;
use crate::train::{Architecture, Model, Network, lm};
use crate::{Device, Error, Result};

/// Show what a model folder or a .safetensors file holds, after checking that it is whole; or the layers of a network.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith info runs/digits-mlp-256-128
  warpsmith info runs/digits-mlp-256-128/model.safetensors --json
  warpsmith info resnet:18 --input 3x32x32 --outputs 10
  warpsmith info net.toml --input 1x28x28 --outputs 10

{}", super::EXIT_CODES))]
pub(super) struct InfoArgs {
    /// A model folder or a .safetensors file; with --input, a network's name or a TOML file that describes it
    #[arg(value_name = "DIR|FILE.safetensors|NETWORK")]
    path: PathBuf,
    /// The shape of one example: 784, 1x28x28
    #[arg(long, value_name = "SHAPE")]
    input: Option<Extents>,
    /// Numbers that the network gives
    #[arg(long, value_name = "N", requires = "input", default_value_t = 10)]
    outputs: usize,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: InfoArgs) -> Result<()> {
    if let Some(input) = &args.input {
        return network(&args.path.to_string_lossy(), input, args.outputs, args.json);
    }
    // A folder that a save left as DIR.old is found by opening it, so only a file is told apart here.
    if args.path.is_file() && args.path.extension().is_some_and(|e| e == "toml") {
        return Err(Error::argument("a network's description has no shape of its own")
            .with_help("give the shape of an example: --input 1x28x28"));
    }
    if args.path.is_file() {
        return tensors(&args.path, args.json);
    }
    if args.path.extension().is_some_and(|e| e == "safetensors") {
        let cause = std::io::ErrorKind::NotFound.into();
        return Err(Error::io(&args.path, "open", cause));
    }
    let name = args.path.to_string_lossy();
    model(&args.path, args.json).map_err(|e| match name.parse::<Network>() {
        Ok(_) if !args.path.exists() => {
            e.with_help(format!("to see the layers of a network: info {name} --input 1x28x28"))
        }
        _ => e,
    })
}

fn tensors(file: &Path, as_json: bool) -> Result<()> {
    // All of the file is read, so that a truncated one is found; the header alone would not tell.
    let tensors = safetensors::read(file)?;
    let header: &Header = tensors.header();
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let total: usize = header.entries().iter().map(|e| values(e.shape())).sum();
    if as_json {
        let entries: Vec<Value> = header
            .entries()
            .iter()
            .map(|e| json!({ "name": e.name(), "dtype": e.dtype().name(), "shape": e.shape() }))
            .collect();
        return output::json_to_stdout(&json!({
            "file": file.display().to_string(),
            "parameters": total,
            "bytes": header.data_bytes(),
            "metadata": header.metadata(),
            "tensors": entries,
        }));
    }
    output::to_stdout(|o| {
        let width = header.entries().iter().map(|e| e.name().len()).max().unwrap_or(0);
        for entry in header.entries() {
            writeln!(o, "{:width$}  {:5} {:?}", entry.name(), entry.dtype().name(), entry.shape())?;
        }
        for (key, value) in header.metadata() {
            writeln!(o, "{key:width$}  {value:?}")?;
        }
        let count = header.entries().len();
        let (total, bytes) = (thousands(total as u64), thousands(header.data_bytes() as u64));
        writeln!(o, "{count} tensors, {total} values, {bytes} bytes")
    })
}

fn network(text: &str, input: &Extents, outputs: usize, as_json: bool) -> Result<()> {
    if outputs == 0 {
        return Err(Error::argument("--outputs 0: expected at least 1"));
    }
    let network = Settings { model: Some(text.to_owned()), ..Settings::default() }.network()?;
    // What is wrong with a described network is a fault of its file.
    let is_file = Path::new(text).is_file();
    let at = |e: Error| if is_file { Error::data(Path::new(text), e.message()) } else { e };
    network.output_shape(&input.0).map_err(at)?;
    let architecture = Architecture { task: Task::Multiclass, input: input.0.clone(), outputs, network };
    let model = Model::new(architecture, 0, Device::cpu())?;
    let parameters = model.arena().numel()?;
    if as_json {
        return output::json_to_stdout(&json!({
            "network": text,
            "input": input.0,
            "outputs": outputs,
            "parameters": parameters,
            "layers": layers_as_json(&model),
        }));
    }
    output::to_stdout(|o| {
        writeln!(o, "network    {text}, {input} to {outputs}, {} parameters", thousands(parameters as u64))?;
        layers(o, &model)
    })
}

/// A table of the layers: name, kind, shape behind it, parameters.
fn layers(o: &mut dyn Write, model: &Model) -> std::io::Result<()> {
    let rows: Vec<[String; 4]> = model
        .summary()
        .iter()
        .map(|row| {
            let parameters =
                if row.parameters == 0 { String::new() } else { thousands(row.parameters as u64) };
            [row.name.clone(), row.kind.clone(), Extents(row.shape.clone()).to_string(), parameters]
        })
        .collect();
    let [name, kind, shape, parameters] =
        [0, 1, 2, 3].map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let line =
            format!("  {:name$}  {:kind$}  {:>shape$}  {:>parameters$}", row[0], row[1], row[2], row[3]);
        writeln!(o, "{}", line.trim_end())?;
    }
    Ok(())
}

fn layers_as_json(model: &Model) -> Value {
    let layer = |row: &SummaryRow| json!({ "name": row.name, "kind": row.kind, "shape": row.shape, "parameters": row.parameters });
    model.summary().iter().map(layer).collect()
}

fn model(dir: &Path, as_json: bool) -> Result<()> {
    // What is wrong with a folder that cannot be told is said by opening it.
    if lm::is_language_model(dir).unwrap_or(false) {
        return language_model(dir, as_json);
    }
    let (folder, file) = checkpoint::open(dir)?;
    folder.verify()?;
    let model = checkpoint::load_model(&folder, &file, Device::cpu())?;
    let parameters = model.arena().numel()?;
    let progress = checkpoint::read_progress(&folder)?;
    if as_json {
        let mut value = serde_json::to_value(&file)
            .map_err(|e| Error::internal("model.toml cannot be written as JSON").caused_by(e))?;
        value["model"] = dir.display().to_string().into();
        value["parameters"] = parameters.into();
        value["layers"] = layers_as_json(&model);
        value["epochs"] = progress.epoch.into();
        value["steps"] = progress.steps.into();
        value["best_epoch"] = progress.best_epoch.into();
        return output::json_to_stdout(&value);
    }
    output::to_stdout(|o| {
        let ModelFile { architecture, training, preparation, .. } = &file;
        let note = if folder.is_fallback() { " (the folder itself is not whole)" } else { "" };
        writeln!(o, "model      {}{note}", folder.path().display())?;
        writeln!(o, "written by warpsmith {}, format {}", file.warpsmith, file.format)?;
        let (input, outputs) = (Extents(architecture.input.clone()), architecture.outputs);
        writeln!(
            o,
            "network    {}, {input} to {outputs}, {} parameters",
            architecture.network,
            thousands(parameters as u64)
        )?;
        layers(o, &model)?;
        let target = preparation.target();
        writeln!(o, "task       {} of '{}'", architecture.task, target.name())?;
        if !target.classes().is_empty() {
            writeln!(o, "classes    {}", target.classes().join(", "))?;
        }
        let texts = preparation.inputs().iter().filter(|i| matches!(i, Input::Category { .. })).count();
        let numbers = preparation.inputs().len() - texts;
        match preparation.pixels() {
            Some(pixels) => writeln!(o, "inputs     {pixels}")?,
            None => writeln!(o, "columns    {numbers} of numbers, {texts} of texts")?,
        }
        // What is learnt, and with which network, has been said above.
        const SAID: [&str; 5] = ["task", "target", "model", "activation", "dropout"];
        for (key, value) in file.source.iter().filter(|(key, _)| !SAID.contains(&key.as_str())) {
            writeln!(o, "{key:10} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
        let optimizer =
            training.optimizer.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        write!(o, "training   {optimizer}, lr {}, {}", training.lr, training.schedule)?;
        writeln!(o, ", batch {}, seed {}", training.batch, training.seed)?;
        let more = [
            ("augment", (!training.augment.is_none()).then(|| training.augment.to_string())),
            ("sampler", (!training.sampler.is_default()).then(|| "weighted".to_owned())),
            ("weights", training.class_weights.as_ref().map(ToString::to_string)),
        ];
        for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            writeln!(o, "{name:10} {value}")?;
        }
        let (done, of, kept) = (progress.epoch, training.epochs, progress.best_epoch);
        writeln!(o, "epochs     {done} of {of} (kept: {kept}), {} steps", thousands(progress.steps))?;
        let on = file.metrics_on.map_or_else(String::new, |part| format!(" (on the {part} part)"));
        writeln!(o, "metrics    {}{on}", figures(&file.metrics))?;
        writeln!(o, "files      all {} whole", folder.names().len())
    })
}

fn language_model(dir: &Path, as_json: bool) -> Result<()> {
    let (folder, file, tokenizer) = lm::open(dir)?;
    folder.verify()?;
    let model = lm::load_model(&folder, &file, Precision::f32(), Device::cpu())?;
    let parameters = model.arena().numel()?;
    let progress = lm::read_progress(&folder)?;
    if as_json {
        let mut value = serde_json::to_value(&file)
            .map_err(|e| Error::internal("model.toml cannot be written as JSON").caused_by(e))?;
        value["model"] = dir.display().to_string().into();
        value["parameters"] = parameters.into();
        value["tokenizer"] = tokenizer.name().into();
        value["vocab"] = tokenizer.vocab().into();
        value["context"] = file.architecture.context.into();
        value["steps"] = progress.steps.into();
        value["best_step"] = progress.best_step.into();
        return output::json_to_stdout(&value);
    }
    output::to_stdout(|o| {
        let (gpt, training) = (&file.architecture, &file.training);
        let note = if folder.is_fallback() { " (the folder itself is not whole)" } else { "" };
        writeln!(o, "model      {}{note}", folder.path().display())?;
        writeln!(o, "written by warpsmith {}, format {}", file.warpsmith, file.format)?;
        writeln!(o, "decoder    {}, {} parameters", file.name, thousands(parameters as u64))?;
        write!(o, "blocks     {} of width {}, {} heads", gpt.layers, gpt.width, gpt.heads)?;
        if gpt.kv_heads != gpt.heads {
            write!(o, " ({} of keys and values)", gpt.kv_heads)?;
        }
        writeln!(o, ", {} inside", gpt.hidden)?;
        let (context, vocab) = (thousands(gpt.context as u64), thousands(gpt.vocab as u64));
        writeln!(o, "context    {context} tokens of {vocab} ({})", tokenizer.name())?;
        for key in ["data", "val-split"] {
            if let Some(value) = file.source.get(key) {
                writeln!(o, "{key:10} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
            }
        }
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|v| v.get_name().to_owned()).unwrap_or_default()
        };
        let optimizer = name(training.optimizer.to_possible_value());
        write!(o, "training   {optimizer}, lr {}, {}", training.lr, training.schedule)?;
        write!(o, ", batch {}, {}", training.batch, name(training.precision.to_possible_value()))?;
        writeln!(o, ", seed {}", training.seed)?;
        let (done, of) = (thousands(progress.steps), thousands(training.steps));
        writeln!(o, "steps      {done} of {of} (kept: {})", progress.best_step)?;
        file.val_loss.map_or(Ok(()), |loss| writeln!(o, "loss       validation {loss:.4}"))?;
        writeln!(o, "files      all {} whole", folder.names().len())
    })
}
