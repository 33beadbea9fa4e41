//! `warpsmith tokenize`: a text to a folder of token shards.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::interrupt;
use super::output::{self, Log, thousands};
use crate::data::text::{MAX_SHARD_TOKENS, TokenizeOptions, TokenizerKind, VAL_SHARE, tokenize};
use crate::{Error, ErrorKind, Result};

/// Turn a text into token shards, which `train --task lm` reads without loading them.
///
/// Writes train_000000.bin, val_000000.bin and so on, in llm.c's form (a header of 1,024 bytes, then 16 bits a token), and
/// tokenizer.json. The last part of the text validates. The text may be larger than memory. <|endoftext|> in it is ordinary text.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith tokenize --data books.txt --tokenizer gpt2 --out books
  warpsmith tokenize --data books.txt.gz --tokenizer byte --out bytes --val-share 0.05

{}", super::EXIT_CODES))]
pub(super) struct TokenizeArgs {
    /// The text: UTF-8, for byte any file; inflated where its name ends in .gz
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// char (those of the text), byte, or gpt2
    #[arg(long, value_name = "char|byte|gpt2", default_value_t = TokenizerKind::Gpt2)]
    tokenizer: TokenizerKind,
    /// The folder to make; it must not be there, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The most tokens of a shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1..=MAX_SHARD_TOKENS))]
    shard_tokens: u64,
    /// The share of the text, at its end, that validates
    #[arg(long, value_name = "SHARE", default_value_t = VAL_SHARE, allow_negative_numbers = true)]
    val_share: f64,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// The time between two lines of progress.
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs the command.
pub(super) fn run(args: TokenizeArgs) -> Result<()> {
    let log = Log { quiet: args.quiet };
    let stop = interrupt::flag_on_interrupt(log, "nothing will be written")?;
    let options =
        TokenizeOptions { kind: args.tokenizer, shard_tokens: args.shard_tokens, val_share: args.val_share };
    let start = Instant::now();
    let mut said = start;
    let done = super::with_threads(args.threads, || {
        tokenize(&args.data, &args.out, &options, |tokens| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted: nothing has been written"));
            }
            if said.elapsed() >= INTERVAL {
                said = Instant::now();
                log.note(&format!("{} tokens", thousands(tokens)));
            }
            Ok(())
        })
    })?;
    let tokens = done.train_tokens + done.val_tokens;
    let per_second = tokens as f64 / start.elapsed().as_secs_f64().max(1e-9);
    if args.json {
        return output::json_to_stdout(&json!({
            "data": args.data.display().to_string(),
            "out": args.out.display().to_string(),
            "tokenizer": done.tokenizer.name(),
            "vocab": done.tokenizer.vocab(),
            "bytes": done.bytes,
            "train_tokens": done.train_tokens,
            "val_tokens": done.val_tokens,
            "shards": done.shards,
            "tokens_per_second": per_second,
        }));
    }
    output::to_stdout(|o| {
        let (name, vocab) = (done.tokenizer.name(), thousands(done.tokenizer.vocab() as u64));
        writeln!(o, "text       {}, {} bytes", args.data.display(), thousands(done.bytes))?;
        writeln!(o, "tokenizer  {name}, {vocab} tokens")?;
        let (train, val) = (thousands(done.train_tokens), thousands(done.val_tokens));
        writeln!(o, "tokens     {train} to train, {val} to validate")?;
        writeln!(o, "speed      {} tokens/s", thousands(per_second as u64))?;
        writeln!(o, "written    {} shards and tokenizer.json to {}", done.shards.len(), args.out.display())
    })
}
