//! A text read in blocks, as often as needed: counted and checked first, then encoded block by block on all threads.
//!
//! A file whose name ends in `.gz` is inflated; any other is taken as it is, so that the byte tokeniser can learn any file.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rayon::prelude::*;

use super::tokenizer::{BYTES_HELP, Characters, Tokenizer, TokenizerKind, not_utf8};
use crate::{Error, ErrorKind, Result};

/// What is read at once. Large enough that all threads have work, small enough not to count.
const BLOCK: usize = 4 << 20;
/// What one thread encodes at once.
const PIECE: usize = 64 << 10;

/// A text in a file or in memory.
pub(super) enum Source<'a> {
    File(PathBuf),
    Memory { name: &'a str, bytes: &'a [u8] },
}

/// What the first look at a text tells.
pub(super) struct Scan {
    /// In bytes, after inflating.
    pub(super) bytes: u64,
    /// Characters; for the byte tokeniser bytes.
    pub(super) units: u64,
    pub(super) tokenizer: Tokenizer,
}

/// The part that a run of tokens belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Train,
    Val,
}

impl Source<'_> {
    /// A file, which must be a regular one: it is read twice.
    pub(super) fn file(path: &Path) -> Result<Source<'static>> {
        let meta = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if meta.is_dir() {
            return Err(Error::data(path, "expected a text file, found a folder"));
        }
        if !meta.is_file() {
            return Err(Error::data(path, "expected a regular file, found a pipe or a device")
                .with_help("a text is read twice: write it to a file first"));
        }
        Ok(Source::File(path.to_owned()))
    }

    /// The name that errors give.
    pub(super) fn name(&self) -> &Path {
        match self {
            Source::File(path) => path,
            Source::Memory { name, .. } => Path::new(name),
        }
    }

    /// Names the file in an error.
    fn place(&self, error: Error, line: Option<u64>) -> Error {
        error.at(self.name(), line, None::<String>)
    }

    fn open(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Source::Memory { bytes, .. } => Ok(Box::new(*bytes)),
            Source::File(path) => {
                let file = File::open(path).map_err(|e| Error::io(path, "open for reading", e))?;
                if is_gz(path) {
                    Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file))))
                } else {
                    Ok(Box::new(file))
                }
            }
        }
    }

    /// Reads the text in blocks. `take` gets what is there and whether that is all there will be, and says how much of it is
    /// done with; the rest comes again with the next block before it. At the end it is called until nothing is left.
    fn blocks(&self, mut take: impl FnMut(&[u8], bool) -> Result<usize>) -> Result<()> {
        let mut from = self.open()?;
        let mut buffer = Vec::with_capacity(BLOCK);
        loop {
            let read = (&mut from)
                .take(BLOCK as u64)
                .read_to_end(&mut buffer)
                .map_err(|e| Error::io(self.name(), "read", e))?;
            let last = read < BLOCK;
            loop {
                let done = take(&buffer, last)?;
                buffer.drain(..done);
                if !last || buffer.is_empty() {
                    break;
                }
                if done == 0 {
                    return Err(Error::internal("the end of a text was not taken"));
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Counts the text, checks that it is one, and fits a tokeniser of `kind` to all of it.
    ///
    /// # Errors
    /// Kind `Data`: empty; not UTF-8, with byte and line (not for `byte`).
    pub(super) fn scan(&self, kind: TokenizerKind) -> Result<Scan> {
        let mut seen = vec![false; if kind == TokenizerKind::Char { 0x11_0000 } else { 0 }];
        let (mut bytes, mut units, mut lines) = (0u64, 0u64, 0u64);
        self.blocks(|block, last| {
            if kind == TokenizerKind::Byte {
                bytes += block.len() as u64;
                units = bytes;
                return Ok(block.len());
            }
            let text = utf8_start(block, last).map_err(|at| {
                let line = lines + count(&block[..at], b'\n') + 1;
                let help = if block[at] == 0x8b && bytes + at as u64 == 1 {
                    "the file looks gzipped: give it a name that ends in .gz"
                } else {
                    BYTES_HELP
                };
                let error = Error::new(ErrorKind::Data, not_utf8(block[at], bytes + at as u64, line));
                self.place(error.with_help(help), Some(line))
            })?;
            bytes += text.len() as u64;
            units += chars(text.as_bytes());
            lines += count(text.as_bytes(), b'\n');
            if !seen.is_empty() {
                text.chars().for_each(|c| seen[c as usize] = true);
            }
            Ok(text.len())
        })?;
        if bytes == 0 {
            return Err(self.place(Error::new(ErrorKind::Data, "the text is empty"), None));
        }
        let tokenizer = match kind {
            TokenizerKind::Char => {
                let found = seen.iter().enumerate().filter(|(_, seen)| **seen);
                let found = found.filter_map(|(code, _)| char::from_u32(code as u32));
                Tokenizer::Char(Characters::new(found).map_err(|e| self.place(e, None))?)
            }
            TokenizerKind::Byte => Tokenizer::Byte,
            TokenizerKind::Gpt2 => Tokenizer::Gpt2,
        };
        Ok(Scan { bytes, units, tokenizer })
    }

    /// Encodes the text and gives the tokens to `sink` in order; the first `train_units` characters (bytes for `byte`) and the
    /// rest are two texts, encoded for themselves.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        train_units: u64,
        mut sink: impl FnMut(Part, &[u16]) -> Result<()>,
    ) -> Result<()> {
        let (mut left, mut part) = (train_units, Part::Train);
        let mut lines = 0;
        self.blocks(|block, last| {
            if left == 0 {
                part = Part::Val;
            }
            if matches!(tokenizer, Tokenizer::Byte) {
                let most = if part == Part::Train { left } else { u64::MAX };
                let now = &block[..block.len().min(usize::try_from(most).unwrap_or(usize::MAX))];
                left = left.saturating_sub(now.len() as u64);
                sink(part, &now.iter().map(|&b| u16::from(b)).collect::<Vec<_>>())?;
                return Ok(now.len());
            }
            // It has been looked at before, but may have been changed since.
            let text = utf8_start(block, last)
                .map_err(|_| self.place(Error::new(ErrorKind::Data, "it changed while it was read"), None))?;
            let boundary = if part == Part::Train { place_of_char(text, left) } else { None };
            let cut = match boundary {
                Some(end) => end,
                None if last => text.len(),
                None => tokenizer.safe_cut(text),
            };
            let now = &text[..cut];
            for ids in encode_pieces(tokenizer, now) {
                sink(part, &ids.map_err(|e| self.unknown(tokenizer, now, lines, e))?)?;
            }
            if part == Part::Train {
                left -= chars(now.as_bytes()).min(left);
            }
            lines += count(now.as_bytes(), b'\n');
            Ok(cut)
        })
    }

    /// A character that the tokeniser does not know is, in a file, a fault of the file: says the line.
    fn unknown(&self, tokenizer: &Tokenizer, text: &str, lines: u64, error: Error) -> Error {
        let Tokenizer::Char(known) = tokenizer else { return error };
        let Some((at, c)) = text.char_indices().find(|(_, c)| known.as_slice().binary_search(c).is_err())
        else {
            return error;
        };
        let why = format!(
            "the character {c:?} (U+{:04X}) is not among the {} that the tokenizer knows",
            c as u32,
            known.as_slice().len()
        );
        let line = lines + count(&text.as_bytes()[..at], b'\n') + 1;
        self.place(Error::new(ErrorKind::Data, why), Some(line))
    }
}

/// Encodes a text in pieces, on all threads.
fn encode_pieces(tokenizer: &Tokenizer, text: &str) -> Vec<Result<Vec<u16>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE {
        let mut end = PIECE;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        // Without a safe place the piece grows; the last resort is all of it.
        let mut cut = tokenizer.safe_cut(&rest[..end]);
        while cut == 0 && end < rest.len() {
            end = (end * 2).min(rest.len());
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            cut = tokenizer.safe_cut(&rest[..end]);
        }
        if cut == 0 {
            break;
        }
        pieces.push(&rest[..cut]);
        rest = &rest[cut..];
    }
    pieces.push(rest);
    // Every id fits: vocabularies have at most 65,536 tokens.
    let narrow = |ids: Vec<u32>| ids.into_iter().map(|id| id as u16).collect();
    pieces.into_par_iter().map(|piece| tokenizer.encode(piece).map(narrow)).collect()
}

/// The whole characters at the start of a block; at the end of a text that must be all of it. Else where it goes wrong.
fn utf8_start(block: &[u8], last: bool) -> std::result::Result<&str, usize> {
    match std::str::from_utf8(block) {
        Ok(text) => Ok(text),
        Err(e) if e.error_len().is_none() && !last => {
            std::str::from_utf8(&block[..e.valid_up_to()]).map_err(|e| e.valid_up_to())
        }
        Err(e) => Err(e.valid_up_to()),
    }
}

/// Where character number `n` of a text begins, where it has as many; its end, where it has exactly `n`.
fn place_of_char(text: &str, n: u64) -> Option<usize> {
    let there = chars(text.as_bytes());
    if there < n {
        return None;
    }
    let starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    starts.take(usize::try_from(n).ok()?.checked_add(1)?).last()
}

/// The characters of valid UTF-8: the bytes that do not continue one.
fn chars(text: &[u8]) -> u64 {
    text.iter().filter(|&&b| (b as i8) >= -0x40).count() as u64
}

fn count(bytes: &[u8], byte: u8) -> u64 {
    bytes.iter().filter(|&&b| b == byte).count() as u64
}

pub(super) fn is_gz(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}
