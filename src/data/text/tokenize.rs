//! A text made into a folder of shards: `train_000000.bin` and so on, `val_000000.bin` and so on, and `tokenizer.json`.
//!
//! The text may be larger than memory: it is read in blocks, and one shard is held at a time. The folder appears with all its
//! files or not at all.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use super::corpus::{VAL_SHARE, train_units};
use super::shards::{self, MAX_SHARD_TOKENS, TOKENIZER_FILE};
use super::source::{Part, Source};
use super::tokenizer::{Tokenizer, TokenizerKind};
use crate::{Error, Result};

/// How a text is made into shards.
#[derive(Clone, Debug)]
pub struct TokenizeOptions {
    /// The tokeniser; `char` is fitted to the whole text.
    pub kind: TokenizerKind,
    /// The most tokens of a shard.
    pub shard_tokens: u64,
    /// The share of the text, at its end, that validates.
    pub val_share: f64,
}

impl Default for TokenizeOptions {
    /// GPT-2, 100 million tokens a shard (as llm.c), and a tenth to validate.
    fn default() -> Self {
        TokenizeOptions { kind: TokenizerKind::Gpt2, shard_tokens: 100_000_000, val_share: VAL_SHARE }
    }
}

/// What [`tokenize`] wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenized {
    /// The tokeniser, as in `tokenizer.json`.
    pub tokenizer: Tokenizer,
    /// The bytes of the text, after inflating.
    pub bytes: u64,
    /// Tokens to learn from.
    pub train_tokens: u64,
    /// Tokens to validate on.
    pub val_tokens: u64,
    /// The shards' names, in order.
    pub shards: Vec<String>,
}

/// Makes the folder `out` of the text file `text`. `progress` hears now and then how many tokens have been made, and may stop the
/// work with an error.
///
/// # Errors
/// Kind `Argument`: a share outside [0, 1), a shard of no or of too many tokens, or an `out` that is there and not an empty
/// folder; kind `Data`: as `Corpus::from_text`, or `out` cannot be written. Nothing is left behind.
pub fn tokenize(
    text: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &TokenizeOptions,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Tokenized> {
    let out = out.as_ref();
    train_units(0, options.val_share)?;
    if !(1..=MAX_SHARD_TOKENS).contains(&options.shard_tokens) {
        let n = options.shard_tokens;
        return Err(Error::argument(format!("shards of {n} tokens: expected 1 to {MAX_SHARD_TOKENS}")));
    }
    if fs::symlink_metadata(out).is_ok()
        && !fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none())
    {
        return Err(Error::argument(format!("{} is already there and not an empty folder", out.display()))
            .with_help("remove it, or write to another folder: shards of two texts must not mix"));
    }
    let source = Source::file(text.as_ref())?;
    let scan = source.scan(options.kind)?;

    let staging = Staging::create(out)?;
    let mut writer = Writer::new(&staging.0, options.shard_tokens as usize);
    source.encode(&scan.tokenizer, train_units(scan.units, options.val_share)?, |part, ids| {
        writer.add(part, ids)?;
        progress(writer.totals[0] + writer.totals[1])
    })?;
    writer.flush()?;
    scan.tokenizer.save(staging.0.join(TOKENIZER_FILE))?;
    let Writer { totals: [train_tokens, val_tokens], shards, .. } = writer;
    staging.put(out)?;
    Ok(Tokenized { tokenizer: scan.tokenizer, bytes: scan.bytes, train_tokens, val_tokens, shards })
}

/// Gathers tokens into shards.
struct Writer<'a> {
    folder: &'a Path,
    most: usize,
    part: Part,
    tokens: Vec<u16>,
    /// Tokens of both parts.
    totals: [u64; 2],
    /// Shards of both parts.
    counts: [usize; 2],
    shards: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(folder: &'a Path, most: usize) -> Self {
        let (totals, counts) = ([0; 2], [0; 2]);
        Writer { folder, most, part: Part::Train, tokens: Vec::new(), totals, counts, shards: Vec::new() }
    }

    fn add(&mut self, part: Part, mut ids: &[u16]) -> Result<()> {
        if part != self.part {
            self.flush()?;
            self.part = part;
        }
        self.totals[part as usize] += ids.len() as u64;
        while !ids.is_empty() {
            let (now, later) = ids.split_at(ids.len().min(self.most - self.tokens.len()));
            self.tokens.extend_from_slice(now);
            ids = later;
            if self.tokens.len() == self.most {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what has been gathered, if anything.
    fn flush(&mut self) -> Result<()> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let number = &mut self.counts[self.part as usize];
        let name = match self.part {
            Part::Train => format!("train_{number:06}.bin"),
            Part::Val => format!("val_{number:06}.bin"),
        };
        *number += 1;
        shards::write(&self.folder.join(&name), &self.tokens)?;
        self.shards.push(name);
        self.tokens.clear();
        Ok(())
    }
}

/// A folder beside the one to be made; removed unless it is put there.
struct Staging(PathBuf);

impl Staging {
    fn create(out: &Path) -> Result<Staging> {
        let Some(name) = out.file_name() else {
            return Err(Error::argument(format!("{} is no name for a new folder", out.display())));
        };
        let name = format!(".{}.tmp-{}", name.to_string_lossy(), std::process::id());
        let path = out.with_file_name(name);
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;
        }
        fs::create_dir(&path).map_err(|e| Error::io(out, "create the folder", e))?;
        Ok(Staging(path))
    }

    /// Gives the folder its name. An empty one of that name is replaced; a full one is not, even if it came only now.
    fn put(self, out: &Path) -> Result<()> {
        fs::rename(&self.0, out).map_err(|e| Error::io(out, "put the folder in its place", e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After it was put in its place there is nothing of this name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
