//! `warpsmith plan`: the memory that training a language model will take.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::lm;
use super::output::{self, Log, thousands};
use super::settings::{Settings, TaskChoice};
use crate::data::text::{BUILTIN_TEXT, TextData, Tokenizer, TokenizerKind, VAL_SHARE};
use crate::nn::GptConfig;
use crate::optim::Capture;
use crate::train::OptimizerKind;
use crate::train::lm::{LmConfig, MemoryPlan, PlanOptions};
use crate::{Device, Error, Result};

/// Tell how much memory train --task lm would take with the same flags, without training.
///
/// The figures follow from shapes alone: parameters, gradients, optimiser, what is kept for the backward pass, and the most that is
/// in use at once.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith plan --model gpt2 --batch 64 --precision bf16
  warpsmith plan --config run.toml --device cuda --json

{}", super::EXIT_CODES))]
pub(super) struct PlanArgs {
    /// Read settings from a TOML file with these same keys, as train does; flags come first
    #[arg(long, value_name = "F.toml", help_heading = "Run")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub(super) fn run(args: PlanArgs) -> Result<()> {
    let mut settings = Settings::layered(args.settings, args.config.as_deref())?;
    if !matches!(settings.task, None | Some(TaskChoice::Lm)) || settings.resume.is_some() {
        return Err(Error::argument("plan is for new language models (--task lm)"));
    }
    settings.task = Some(TaskChoice::Lm);
    lm::check_flags(&settings, true)?;
    let log = Log { quiet: settings.quiet };
    let device = super::open_device(settings.device.as_deref(), &log)?;
    let training = lm::config(&settings, LmConfig::default());
    training.check()?;
    let (name, config) = decoder(&settings)?;
    let precision = training.precision.precision();
    let states = match training.optimizer {
        OptimizerKind::Adam | OptimizerKind::AdamW => 2,
        OptimizerKind::Sgd | OptimizerKind::RmsProp => 1,
    };
    let options = PlanOptions {
        precision,
        states,
        batch: training.batch,
        micro_batches: training.micro_batches,
        recompute: training.recompute,
        cpu: device.is_cpu(),
        captured: !device.is_cpu() && training.capture != Capture::Off,
    };
    let plan = MemoryPlan::new(&config, &options)?;
    let other = MemoryPlan::new(&config, &PlanOptions { recompute: !options.recompute, ..options.clone() })?;
    let available = available(device);
    let fits = available.map(|bytes| plan.peak as u64 <= bytes);
    if settings.json {
        return output::json_to_stdout(&json!({
            "model": name,
            "parameters": plan.parameters,
            "precision": training.precision,
            "bytes_per_parameter": precision.bytes_per_parameter(states),
            "weight_bytes": plan.weights,
            "gradient_bytes": plan.gradients,
            "master_bytes": plan.master,
            "optimizer_bytes": plan.states,
            "table_bytes": plan.tables,
            "batch_bytes": plan.batch,
            "layer_bytes": plan.layer,
            "activation_bytes": plan.activations,
            "logit_bytes": plan.logits,
            "peak_bytes": plan.peak,
            "recompute": options.recompute,
            "peak_bytes_otherwise": other.peak,
            "device": device.to_string(),
            "available_bytes": available,
            "fits": fits,
        }));
    }
    output::to_stdout(|o| {
        let mut line = |what: &str, bytes: usize, note: &str| {
            if bytes == 0 { Ok(()) } else { writeln!(o, "{what:<12}{:>18}{note}", thousands(bytes as u64)) }
        };
        let each = format!("  ({} of {name}, {precision})", thousands(plan.parameters as u64));
        line("parameters", plan.weights, &each)?;
        line("gradients", plan.gradients, "")?;
        line("masters", plan.master, "  (f32)")?;
        line("optimiser", plan.states, &format!("  ({states} numbers a parameter)"))?;
        line("tables", plan.tables, "  (rotary positions)")?;
        line("batch", plan.batch, &format!("  ({} windows of {})", options.batch, config.context))?;
        let how = if options.recompute { "computed again" } else { "kept" };
        line(
            "activations",
            plan.activations,
            &format!("  ({how}; a block {})", thousands(plan.layer as u64)),
        )?;
        line("logits", plan.logits, "  (their gradient takes their place)")?;
        line("peak", plan.peak, "  bytes in use at once")?;
        let with = if options.recompute { "without --recompute" } else { "with --recompute" };
        line("", other.peak, &format!("  {with}"))?;
        match (available, fits) {
            (Some(bytes), Some(fits)) => {
                let word = if fits { "fits" } else { "does not fit" };
                writeln!(o, "{word} in {} bytes of {device}", thousands(bytes))
            }
            _ => writeln!(o, "the memory of {device} is not known"),
        }
    })
}

/// The decoder that training would make, and its name. The text is opened only where its characters are the vocabulary.
fn decoder(settings: &Settings) -> Result<(String, GptConfig)> {
    if let Some(path) = &settings.init {
        let (spec, (config, _)) = lm::imported(settings, path)?;
        return Ok((spec.to_string(), config));
    }
    let spec = lm::spec(settings)?;
    let name = settings.data.as_deref().unwrap_or(BUILTIN_TEXT);
    let tokenizer = match lm::tokenizer(settings, name) {
        Some(kind @ (TokenizerKind::Gpt2 | TokenizerKind::Byte)) => Tokenizer::fit(kind, b"")?,
        kind => TextData::open(name, kind, settings.val_split.unwrap_or(VAL_SHARE))?.tokenizer,
    };
    let config = spec.config(tokenizer.vocab(), tokenizer.padded_vocab())?;
    Ok((spec.to_string(), config))
}

/// Bytes that `device` has for us: of the CPU what is free now, of a GPU all that it has.
fn available(device: Device) -> Option<u64> {
    match device.stream() {
        Some(stream) => Some(stream.info().memory),
        None => crate::io::free_memory(),
    }
}
