//! The tokens to learn from: 16 bits each, in memory or in mapped shards; and the two parts of a text.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;

use super::shards::{Shard, ShardFiles, TOKENIZER_FILE};
use super::source::Source;
use super::tokenizer::{Tokenizer, TokenizerKind};
use crate::{Error, ErrorKind, Result};

/// The name of the built-in text.
pub const BUILTIN_TEXT: &str = "text";
/// The share of a text that validates: its end.
pub const VAL_SHARE: f64 = 0.1;

const FILE: &[u8] = include_bytes!("../../../data/text.txt.gz");

/// The built-in text: the King James Bible, one verse a line, 4,137,850 bytes of ASCII (see `data/README.md`).
///
/// # Errors
/// Kind `Internal`: the compiled-in file is damaged.
pub fn builtin_text() -> Result<String> {
    let mut text = String::with_capacity(4_137_850);
    GzDecoder::new(FILE)
        .read_to_string(&mut text)
        .map_err(|cause| Error::internal("the compiled-in text is damaged").caused_by(cause))?;
    Ok(text)
}

/// Tokens in one or several pieces, each a text or a shard. Cheap to clone; no window crosses from a piece to the next.
#[derive(Clone, Debug)]
pub struct Corpus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pieces: Vec<Piece>,
    vocab: usize,
}

#[derive(Debug)]
struct Piece {
    name: PathBuf,
    tokens: Tokens,
}

#[derive(Debug)]
enum Tokens {
    Memory(Vec<u16>),
    Mapped(Shard),
}

impl Piece {
    fn tokens(&self) -> &[u16] {
        match &self.tokens {
            Tokens::Memory(tokens) => tokens,
            Tokens::Mapped(shard) => shard.tokens(),
        }
    }
}

impl Corpus {
    /// Tokens that are in memory; `name` is what errors call them. An id that is not below `vocab` is found when a window with
    /// it is cut.
    pub fn from_tokens(name: impl AsRef<Path>, tokens: Vec<u16>, vocab: usize) -> Corpus {
        let piece = Piece { name: name.as_ref().to_owned(), tokens: Tokens::Memory(tokens) };
        Corpus(Arc::new(Inner { pieces: vec![piece], vocab }))
    }

    /// All of a text file (inflated where its name ends in `.gz`), encoded.
    ///
    /// # Errors
    /// Kind `Data`: not a regular file, cannot be read, empty, not UTF-8 (except for `byte`), or with a character that the
    /// tokeniser does not know; with the line.
    pub fn from_text(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Corpus> {
        Corpus::of_source(&Source::file(path.as_ref())?, tokenizer)
    }

    /// All of the built-in text, encoded.
    ///
    /// # Errors
    /// As [`Corpus::from_text`] for a character that the tokeniser does not know.
    pub fn builtin_text(tokenizer: &Tokenizer) -> Result<Corpus> {
        let text = builtin_text()?;
        Corpus::of_source(&Source::Memory { name: BUILTIN_TEXT, bytes: text.as_bytes() }, tokenizer)
    }

    fn of_source(source: &Source<'_>, tokenizer: &Tokenizer) -> Result<Corpus> {
        let kind = match tokenizer.kind() {
            // It is fitted already: a scan for its kind would only collect characters.
            TokenizerKind::Char => TokenizerKind::Gpt2,
            kind => kind,
        };
        let units = source.scan(kind)?.units;
        let [tokens, _] = encode_parts(source, tokenizer, units)?;
        Ok(Corpus::from_tokens(source.name(), tokens, tokenizer.vocab()))
    }

    /// Maps shards of llm.c's form: a file, a folder, or a name with `*` (see [`ShardFiles::find`]); all that is found, whatever
    /// `val` is in its name. `vocab` bounds the ids.
    ///
    /// The files are mapped, not read: they may be larger than memory, and must not be shortened or overwritten while the corpus
    /// is there. Reading past a new end would end the process (SIGBUS).
    ///
    /// # Errors
    /// Kind `Data`: nothing found; wrong magic, version or size.
    pub fn open_shards(path: impl AsRef<Path>, vocab: usize) -> Result<Corpus> {
        let ShardFiles { train, val } = ShardFiles::find(path)?;
        let all: Vec<PathBuf> = train.into_iter().chain(val).collect();
        Corpus::open_shard_files(&all, vocab)
    }

    /// Maps these shards, in this order. Otherwise as [`Corpus::open_shards`].
    ///
    /// # Errors
    /// As [`Corpus::open_shards`].
    pub fn open_shard_files(files: &[PathBuf], vocab: usize) -> Result<Corpus> {
        let open =
            |path: &PathBuf| Ok(Piece { name: path.clone(), tokens: Tokens::Mapped(Shard::open(path)?) });
        Ok(Corpus(Arc::new(Inner { pieces: files.iter().map(open).collect::<Result<_>>()?, vocab })))
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.0.pieces.iter().map(|p| p.tokens().len() as u64).sum()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids are below it.
    pub fn vocab(&self) -> usize {
        self.0.vocab
    }

    /// The number of pieces: 1 for a text, else of shards.
    pub fn pieces(&self) -> usize {
        self.0.pieces.len()
    }

    /// The tokens of a piece.
    pub fn tokens(&self, piece: usize) -> &[u16] {
        self.0.pieces[piece].tokens()
    }

    /// What errors call a piece: its file.
    pub fn name(&self, piece: usize) -> &Path {
        &self.0.pieces[piece].name
    }
}

/// The two parts of a text as tokens, train and validation.
fn encode_parts(source: &Source<'_>, tokenizer: &Tokenizer, train_units: u64) -> Result<[Vec<u16>; 2]> {
    let mut parts = [Vec::new(), Vec::new()];
    source.encode(tokenizer, train_units, |part, ids| {
        let tokens = &mut parts[part as usize];
        tokens.try_reserve(ids.len()).map_err(|cause| {
            Error::new(ErrorKind::OutOfMemory, format!("no memory for more than {} tokens", tokens.len()))
                .at(source.name(), None, None::<String>)
                .with_help("warpsmith tokenize makes shards, which need no memory")
                .caused_by(cause)
        })?;
        tokens.extend_from_slice(ids);
        Ok(())
    })?;
    Ok(parts)
}

/// How many of `units` characters train, where a share of `val_share` validates: the whole part of (1 - share)·n, as nanoGPT.
pub(super) fn train_units(units: u64, val_share: f64) -> Result<u64> {
    if !(0.0..1.0).contains(&val_share) {
        return Err(Error::argument(format!(
            "a validation share of {val_share}: expected 0 or more, less than 1"
        )));
    }
    Ok((units as f64 * (1.0 - val_share)) as u64)
}

/// What a language model is trained and validated on.
///
/// ```no_run
/// use warpsmith::data::text::{TextData, TokenizerKind};
///
/// let data = TextData::from_text("input.txt", TokenizerKind::Char, 0.1)?;
/// println!("{} tokens to learn from, {} of {}", data.train.len(), data.tokenizer.vocab(), data.tokenizer.name());
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextData {
    /// Made the tokens; a model's folder keeps it.
    pub tokenizer: Tokenizer,
    /// To learn from.
    pub train: Corpus,
    /// To validate on. May be empty.
    pub val: Corpus,
}

impl TextData {
    /// What a name stands for: `text` the built-in text; a folder, a `.bin` file or a name with `*` shards (of which `val_share`
    /// says nothing); anything else a text file. Without a `kind`, a text is taken by `char`.
    ///
    /// # Errors
    /// As [`TextData::from_text`] and [`TextData::open_shards`].
    pub fn open(name: &str, kind: Option<TokenizerKind>, val_share: f64) -> Result<TextData> {
        let path = Path::new(name);
        let text_kind = kind.unwrap_or(TokenizerKind::Char);
        if name == BUILTIN_TEXT && !path.is_file() {
            TextData::builtin(text_kind, val_share)
        } else if path.is_dir()
            || path.extension().is_some_and(|e| e == "bin")
            || (!path.exists() && name.contains(['*', '?']))
        {
            TextData::open_shards(path, None, kind)
        } else {
            TextData::from_text(path, text_kind, val_share)
        }
    }

    /// A text file. Its last `val_share` validates: it is cut after (1 - share)·n of its n characters (`byte`: bytes), rounded
    /// down, and both parts are encoded for themselves; for `char` and `byte` that is a cut of the tokens, for `gpt2` the cut is
    /// nanoGPT's too. `char` knows the characters of both parts.
    ///
    /// # Errors
    /// As [`Corpus::from_text`]; kind `Argument`: a share outside [0, 1).
    pub fn from_text(path: impl AsRef<Path>, kind: TokenizerKind, val_share: f64) -> Result<TextData> {
        TextData::of_source(&Source::file(path.as_ref())?, kind, val_share)
    }

    /// The built-in text, cut as [`TextData::from_text`] does.
    ///
    /// # Errors
    /// Kind `Argument`: a share outside [0, 1).
    pub fn builtin(kind: TokenizerKind, val_share: f64) -> Result<TextData> {
        TextData::from_bytes(BUILTIN_TEXT, builtin_text()?.as_bytes(), kind, val_share)
    }

    /// A text in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`TextData::from_text`].
    pub fn from_bytes(name: &str, bytes: &[u8], kind: TokenizerKind, val_share: f64) -> Result<TextData> {
        TextData::of_source(&Source::Memory { name, bytes }, kind, val_share)
    }

    fn of_source(source: &Source<'_>, kind: TokenizerKind, val_share: f64) -> Result<TextData> {
        train_units(0, val_share)?;
        let scan = source.scan(kind)?;
        let [train, val] = encode_parts(source, &scan.tokenizer, train_units(scan.units, val_share)?)?;
        let vocab = scan.tokenizer.vocab();
        Ok(TextData {
            train: Corpus::from_tokens(source.name(), train, vocab),
            val: Corpus::from_tokens(source.name(), val, vocab),
            tokenizer: scan.tokenizer,
        })
    }

    /// Shards: those with `val` in their file name validate, or those of `val`, where it is given (then all of `path` trains).
    /// The tokeniser is that of `tokenizer.json` beside the first shard, else `kind`, else GPT-2's.
    ///
    /// # Errors
    /// As [`Corpus::open_shards`]; kind `Data`: a `tokenizer.json` that cannot be read; kind `Argument`: a `kind` other than
    /// that of `tokenizer.json`, or `char` without one.
    pub fn open_shards(
        path: impl AsRef<Path>,
        val: Option<&Path>,
        kind: Option<TokenizerKind>,
    ) -> Result<TextData> {
        let mut files = ShardFiles::find(path.as_ref())?;
        if let Some(val) = val {
            files.train.append(&mut files.val);
            files.train.sort();
            let ShardFiles { mut train, val } = ShardFiles::find(val)?;
            train.extend(val);
            files.val = train;
        }
        let Some(first) = files.train.first() else {
            return Err(Error::data(path, "only validation shards: all have val in their names"));
        };
        let beside = first.with_file_name(TOKENIZER_FILE);
        let tokenizer = if beside.exists() {
            let saved = Tokenizer::load(&beside)?;
            if let Some(kind) = kind.filter(|&kind| kind != saved.kind()) {
                let name = saved.name();
                return Err(Error::argument(format!(
                    "the shards were made by the {name} tokenizer, not by {kind}"
                ))
                .at(&beside, None, None::<String>));
            }
            saved
        } else {
            match kind.unwrap_or(TokenizerKind::Gpt2) {
                TokenizerKind::Char => {
                    return Err(Error::argument(format!(
                        "the characters behind the shards are not known: there is no {}",
                        beside.display()
                    )));
                }
                kind => Tokenizer::fit(kind, b"")?,
            }
        };
        let vocab = tokenizer.vocab();
        Ok(TextData {
            train: Corpus::open_shard_files(&files.train, vocab)?,
            val: Corpus::open_shard_files(&files.val, vocab)?,
            tokenizer,
        })
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// Kind `Data`: it cannot be read, or is not one.
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let text = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::data(path, "not a tokenizer of warpsmith").caused_by(e))
    }

    /// Writes a `tokenizer.json` in one step.
    ///
    /// # Errors
    /// Kind `Data`: it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = serde_json::to_vec(self)
            .map_err(|e| Error::internal("a tokenizer cannot be written as JSON").caused_by(e))?;
        crate::io::write_atomically(path, |out| {
            out.write_all(&text).and_then(|()| out.write_all(b"\n")).map_err(|e| Error::io(path, "write", e))
        })
    }
}
