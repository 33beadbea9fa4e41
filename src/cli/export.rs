//! `warpsmith export`: a model in another program's layout.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::output;
use crate::param::Precision;
use crate::train::lm::{self, huggingface};
use crate::{Device, Result};

/// A layout.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// GPT-2's config.json and model.safetensors, for transformers and what reads its files
    #[value(name = "huggingface")]
    HuggingFace,
}

/// Write a language model in the layout of another program.
///
/// Weights are written in f32. The tokenizer is not: gpt2 is the one that everybody has. The folder must be new; it appears whole
/// or not at all.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith export --model runs/books-gpt2 --out books-gpt2

{}", super::EXIT_CODES))]
pub(super) struct ExportArgs {
    /// The model folder that train --task lm wrote
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The layout
    #[arg(long, value_enum, default_value = "huggingface")]
    format: Format,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: ExportArgs) -> Result<()> {
    let (folder, file, _) = lm::open(&args.model)?;
    let model = lm::load_model(&folder, &file, Precision::f32(), Device::cpu())?;
    match args.format {
        Format::HuggingFace => huggingface::export(&model, &args.out)?,
    }
    if args.json {
        return output::json_to_stdout(&json!({
            "model": args.model.display().to_string(),
            "out": args.out.display().to_string(),
            "format": "huggingface",
        }));
    }
    output::to_stdout(|o| {
        writeln!(o, "written    config.json and model.safetensors to {}", args.out.display())
    })
}
