//! `warpsmith generate`: text from a language model.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::output::{self, Log};
use super::{How, interrupt};
use crate::data::text::{Sampler, Tokenizer};
use crate::train::PrecisionKind;
use crate::train::lm::{self, Generator, LanguageModel, huggingface};
use crate::{Device, Error, ErrorKind, Result};

/// Continue a text by a language model.
///
/// Of a prompt longer than the model's context the last tokens are read, as many as fit; where the text outgrows the context,
/// the model goes on from its last half. The same seed gives the same text.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith generate --model runs/text-gpt-4x4x128 --prompt \"In the beginning\"
  warpsmith generate --model runs/text-gpt-4x4x128 --prompt - --tokens 500 --temperature 0.8 --top-k 40 < start.txt

{}", super::EXIT_CODES))]
pub(super) struct GenerateArgs {
    /// The model folder that train --task lm wrote, or GPT-2 weights as Hugging Face keeps them
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What to continue; - reads it from stdin
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// The most tokens to add
    #[arg(long, default_value_t = 200, value_name = "N", allow_negative_numbers = true)]
    tokens: usize,
    /// Divides the logits; 0 always takes the most likely token
    #[arg(long, default_value_t = 1.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f64,
    /// Draw among the K most likely tokens only; 0: all
    #[arg(long, default_value_t = 0, value_name = "K", allow_negative_numbers = true)]
    top_k: usize,
    /// Draw among the most likely tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f64,
    /// Decides all draws
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// In which types the model is computed [default: those it was trained in]
    #[arg(long, value_enum)]
    precision: Option<PrecisionKind>,
    #[command(flatten)]
    how: How,
}

/// Runs the command.
pub(super) fn run(args: GenerateArgs) -> Result<()> {
    let GenerateArgs { temperature, top_k, top_p, seed, how, .. } = args;
    let log = Log { quiet: how.quiet };
    let sampler = Sampler { temperature, top_k, top_p, seed, step: 0 };
    sampler.check()?;
    let device = super::open_device(Some(&how.device), &log)?;
    let stop = interrupt::flag_on_interrupt(log, "stopping")?;
    super::with_threads(how.threads, || {
        let (model, tokenizer) = open(&args.model, args.precision, device)?;
        let prompt = if args.prompt == "-" { from_stdin()? } else { args.prompt.clone() };
        // What cannot be read is refused before anything is shown.
        tokenizer.encode(&prompt).map_err(|e| e.context("--prompt"))?;
        let mut generator = Generator::new(&model, &tokenizer, sampler)?;
        let start = Instant::now();
        // Text goes out as it is made, unless it is part of an object.
        let mut sink = |piece: &str| {
            let shown = how.json || show(piece);
            shown && !stop.load(Ordering::Relaxed)
        };
        if !how.json {
            show(&prompt);
        }
        let made = generator.run(&prompt, args.tokens, &mut sink)?;
        let seconds = start.elapsed().as_secs_f64();
        if stop.load(Ordering::Relaxed) {
            if !how.json {
                show("\n");
            }
            let message = format!("interrupted after {} tokens", made.tokens.len());
            return Err(Error::new(ErrorKind::Interrupted, message));
        }
        if made.prompt_dropped > 0 {
            log.note(&format!(
                "the prompt was longer than the context: its first {} tokens were left out",
                made.prompt_dropped
            ));
        }
        let rate = made.tokens.len() as f64 / seconds.max(1e-9);
        if how.json {
            return output::json_to_stdout(&json!({
                "text": made.text,
                "prompt": prompt,
                "tokens": made.tokens.len(),
                "prompt_tokens": made.prompt_tokens,
                "prompt_dropped": made.prompt_dropped,
                "seconds": seconds,
                "tokens_per_second": rate,
                "seed": seed,
                "device": device.to_string(),
            }));
        }
        output::to_stdout(|o| writeln!(o))?;
        log.note(&format!("{} tokens, {rate:.0} tokens/s", made.tokens.len()));
        Ok(())
    })
}

/// The model in `path`, ours or Hugging Face's, and its tokeniser.
fn open(path: &Path, precision: Option<PrecisionKind>, device: Device) -> Result<(LanguageModel, Tokenizer)> {
    if !huggingface::is_hugging_face(path) {
        let (folder, file, tokenizer) = lm::open(path)?;
        let precision = precision.unwrap_or(file.training.precision).precision();
        return Ok((lm::load_model(&folder, &file, precision, device)?, tokenizer));
    }
    let (config, weights) = huggingface::import(path, None)?;
    if config.vocab != Tokenizer::Gpt2.vocab() {
        let message = format!("a vocabulary of {} tokens is not that of the tokenizer gpt2", config.vocab);
        return Err(Error::data(path, message));
    }
    let precision = precision.unwrap_or(PrecisionKind::F32).precision();
    let model = LanguageModel::new(&config, precision, 0, device)?;
    model.load_state(weights.iter().map(|(name, t)| (name.as_str(), t.clone())).collect())?;
    Ok((model, Tokenizer::Gpt2))
}

/// Writes a piece of text to stdout at once. Whether somebody still reads it.
fn show(piece: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn from_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io("stdin", "read the prompt", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::data("stdin", format!("the prompt is not UTF-8 at byte {at}")).caused_by(e)
    })?;
    // The end of the last line belongs to the file, not to the text.
    Ok(text.strip_suffix('\n').map_or(text.clone(), str::to_owned))
}
