//! Tokenisers: characters (as nanoGPT), bytes, and GPT-2's byte-pair encoding.
//!
//! Text is taken as it is: a byte order mark, CRLF and trailing spaces are tokens like all else, and decoding gives them back.
//! The literal text `<|endoftext|>` is ordinary text (llm.c and nanoGPT prepare data that way), because whoever wrote a corpus
//! must not be able to end documents in it; only [`Tokenizer::encode_with_special`] makes the token of it.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tiktoken_rs::{CoreBPE, r50k_base_singleton};

use crate::{Error, ErrorKind, Result};

/// GPT-2's token between documents, `<|endoftext|>`.
pub const GPT2_END_OF_TEXT: u32 = 50_256;
const GPT2_VOCAB: usize = 50_257;
/// Tokens are stored as 16 bits.
const MAX_VOCAB: usize = 1 << 16;

/// The kinds of tokeniser, by their names on the command line: `char`, `byte`, `gpt2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token a character of the text it was fitted on.
    Char,
    /// One token a byte; any bytes at all.
    Byte,
    /// GPT-2's byte-pair encoding: 50,257 tokens, about four characters each in English.
    Gpt2,
}

impl TokenizerKind {
    /// All of them.
    pub const ALL: [TokenizerKind; 3] = [TokenizerKind::Char, TokenizerKind::Byte, TokenizerKind::Gpt2];

    /// The name as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            TokenizerKind::Char => "char",
            TokenizerKind::Byte => "byte",
            TokenizerKind::Gpt2 => "gpt2",
        }
    }
}

impl fmt::Display for TokenizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TokenizerKind {
    type Err = Error;

    /// # Errors
    /// Kind `Argument` for any other name.
    fn from_str(name: &str) -> Result<Self> {
        TokenizerKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            Error::argument(format!("unknown tokenizer '{name}': expected char, byte or gpt2"))
        })
    }
}

/// Text to tokens and back. Serialises as `{"kind": "char", "characters": "…"}`, `{"kind": "byte"}` or `{"kind": "gpt2"}`.
///
/// ```
/// use warpsmith::data::text::{Tokenizer, TokenizerKind};
///
/// let tokenizer = Tokenizer::fit(TokenizerKind::Gpt2, b"")?;
/// assert_eq!(tokenizer.encode("Hello world")?, [15496, 995]);
/// assert_eq!(tokenizer.decode(&[15496, 995])?, b"Hello world");
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub enum Tokenizer {
    /// One token a character.
    Char(Characters),
    /// One token a byte.
    Byte,
    /// GPT-2's byte-pair encoding.
    Gpt2,
}

/// The characters that a [`Tokenizer::Char`] knows, in the order of their code points; a token is a place among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Characters(Vec<char>);

impl Characters {
    /// The distinct characters of `chars`. Kind `Data` where there is none, or more than 65,536.
    pub fn new(chars: impl IntoIterator<Item = char>) -> Result<Characters> {
        let mut chars: Vec<char> = chars.into_iter().collect();
        chars.sort_unstable();
        chars.dedup();
        match chars.len() {
            0 => Err(Error::new(ErrorKind::Data, "a text without characters gives no vocabulary")),
            1..=MAX_VOCAB => Ok(Characters(chars)),
            n => {
                Err(Error::new(ErrorKind::Data, format!("{n} distinct characters: at most {MAX_VOCAB} fit"))
                    .with_help("use --tokenizer byte or gpt2"))
            }
        }
    }

    /// The characters, sorted.
    pub fn as_slice(&self) -> &[char] {
        &self.0
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // Most text is ASCII: looked up, not searched for.
        let mut ascii = [None; 128];
        for (id, &c) in self.0.iter().enumerate().take_while(|(_, c)| c.is_ascii()) {
            ascii[c as usize] = Some(id as u32);
        }
        let find = |c: char| match ascii.get(c as usize) {
            Some(&id) => id,
            None => self.0.binary_search(&c).ok().map(|id| id as u32),
        };
        let mut ids = Vec::with_capacity(text.len());
        for (at, c) in text.chars().enumerate() {
            ids.push(find(c).ok_or_else(|| {
                Error::argument(format!(
                    "the character {c:?} (U+{:04X}) at position {at} is not among the {} that the tokenizer knows",
                    c as u32,
                    self.0.len()
                ))
            })?);
        }
        Ok(ids)
    }
}

/// What a file holds of a tokeniser.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Saved {
    Char { characters: String },
    Byte {},
    Gpt2 {},
}

impl From<Tokenizer> for Saved {
    fn from(tokenizer: Tokenizer) -> Saved {
        match tokenizer {
            Tokenizer::Char(characters) => Saved::Char { characters: characters.0.into_iter().collect() },
            Tokenizer::Byte => Saved::Byte {},
            Tokenizer::Gpt2 => Saved::Gpt2 {},
        }
    }
}

impl TryFrom<Saved> for Tokenizer {
    type Error = Error;

    fn try_from(saved: Saved) -> Result<Tokenizer> {
        match saved {
            Saved::Char { characters } => {
                let known = Characters::new(characters.chars())?;
                // Another order would be other ids: not guessed at.
                if !known.0.iter().copied().eq(characters.chars()) {
                    let why = "the characters of a tokenizer must be sorted and distinct";
                    return Err(Error::new(ErrorKind::Data, why));
                }
                Ok(Tokenizer::Char(known))
            }
            Saved::Byte {} => Ok(Tokenizer::Byte),
            Saved::Gpt2 {} => Ok(Tokenizer::Gpt2),
        }
    }
}

impl Tokenizer {
    /// A tokeniser of `kind` for `text`; only `char` looks at it: its tokens are the text's distinct characters.
    ///
    /// # Errors
    /// Kind `Data`, for `char`: not UTF-8 (says where), no characters, or more than 65,536 distinct ones.
    pub fn fit(kind: TokenizerKind, text: impl AsRef<[u8]>) -> Result<Tokenizer> {
        Ok(match kind {
            TokenizerKind::Char => Tokenizer::Char(Characters::new(as_text(text.as_ref())?.chars())?),
            TokenizerKind::Byte => Tokenizer::Byte,
            TokenizerKind::Gpt2 => Tokenizer::Gpt2,
        })
    }

    /// Which kind it is.
    pub fn kind(&self) -> TokenizerKind {
        match self {
            Tokenizer::Char(_) => TokenizerKind::Char,
            Tokenizer::Byte => TokenizerKind::Byte,
            Tokenizer::Gpt2 => TokenizerKind::Gpt2,
        }
    }

    /// The kind's name: `char`, `byte` or `gpt2`.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// How many tokens there are: ids are below it.
    pub fn vocab(&self) -> usize {
        match self {
            Tokenizer::Char(characters) => characters.0.len(),
            Tokenizer::Byte => 256,
            Tokenizer::Gpt2 => GPT2_VOCAB,
        }
    }

    /// The vocabulary that a model should have: GPT-2's 50,257 rounded up to a multiple of 64, 50,304, which suits the matrix
    /// units; others as they are. No text has the ids in between, and nothing decodes them.
    pub fn padded_vocab(&self) -> usize {
        match self {
            Tokenizer::Gpt2 => GPT2_VOCAB.next_multiple_of(64),
            _ => self.vocab(),
        }
    }

    /// The token that ends a document, where there is one.
    pub fn end_of_text(&self) -> Option<u32> {
        matches!(self, Tokenizer::Gpt2).then_some(GPT2_END_OF_TEXT)
    }

    /// The tokens of `text`; `<|endoftext|>` in it is ordinary text.
    ///
    /// # Errors
    /// Kind `Data`: not UTF-8 (not for `byte`); says byte and line. Kind `Argument`: a character that `char` has not seen; says
    /// which and its position, counted in characters from 0.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        let bytes = text.as_ref();
        match self {
            Tokenizer::Char(characters) => characters.encode(as_text(bytes)?),
            Tokenizer::Byte => Ok(bytes.iter().map(|&b| u32::from(b)).collect()),
            Tokenizer::Gpt2 => Ok(encode_gpt2(as_text(bytes)?)),
        }
    }

    /// As [`Tokenizer::encode`], but each `<|endoftext|>` becomes the one token that ends a document. For text that one wrote
    /// oneself, such as a prompt.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; kind `Argument` for a tokeniser that has no such token, where the text has it.
    pub fn encode_with_special(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        const END: &[u8] = b"<|endoftext|>";
        let mut rest = text.as_ref();
        let mut ids = Vec::new();
        while let Some(at) = rest.windows(END.len()).position(|w| w == END) {
            ids.extend(self.encode(&rest[..at])?);
            ids.push(self.end_of_text().ok_or_else(|| {
                Error::argument(format!("the {} tokenizer has no token <|endoftext|>", self.name()))
            })?);
            rest = &rest[at + END.len()..];
        }
        ids.extend(self.encode(rest)?);
        Ok(ids)
    }

    /// The bytes that tokens stand for. Those of `byte` and `gpt2` need not be UTF-8: a character may be spread over several
    /// tokens (see [`Decoder`]).
    ///
    /// # Errors
    /// Kind `Argument`: an id that is not below [`Tokenizer::vocab`]; says which, and its place.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        if let Some(at) = ids.iter().position(|&id| id as usize >= self.vocab()) {
            return Err(Error::argument(format!(
                "token {} at place {at} is beyond the vocabulary of {} tokens",
                ids[at],
                self.vocab()
            )));
        }
        match self {
            Tokenizer::Char(characters) => {
                Ok(ids.iter().map(|&id| characters.0[id as usize]).collect::<String>().into_bytes())
            }
            Tokenizer::Byte => Ok(ids.iter().map(|&id| id as u8).collect()),
            Tokenizer::Gpt2 => bpe()
                .decode_bytes(ids)
                .map_err(|e| Error::internal(format!("GPT-2 has no token {}", e.token))),
        }
    }

    /// The longest start of `text` whose tokens do not depend on what follows. All of it for characters and bytes. GPT-2 never
    /// merges across the last space of a run of spaces, unless the text ends there: so it is cut before that.
    pub(super) fn safe_cut(&self, text: &str) -> usize {
        match self {
            Tokenizer::Char(_) | Tokenizer::Byte => text.len(),
            Tokenizer::Gpt2 => {
                let mut followed = false;
                for (at, c) in text.char_indices().rev() {
                    if c.is_whitespace() && followed {
                        return at;
                    }
                    followed = !c.is_whitespace();
                }
                0
            }
        }
    }
}

fn bpe() -> &'static CoreBPE {
    r50k_base_singleton()
}

/// The crate's regular expression steps back through a run of spaces that a word follows, keeps a million such steps on a stack
/// and panics beyond. A long run is therefore cut off where the expression would cut it (see [`Tokenizer::safe_cut`]): without
/// the space before the word it ends its own text, where nothing is stepped back through.
fn encode_gpt2(text: &str) -> Vec<u32> {
    const LONG: usize = 1000;
    let mut ids = Vec::new();
    // What is not encoded yet begins at `from`; the run of spaces that is looked at has `run` of them and began at `start`, and
    // its last one is at `last`.
    let (mut from, mut run, mut start, mut last) = (0, 0, 0, 0);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() {
            if run == 0 {
                start = at;
            }
            run += 1;
            last = at;
            continue;
        }
        if run > LONG {
            ids.extend(bpe().encode_ordinary(&text[from..start]));
            ids.extend(bpe().encode_ordinary(&text[start..last]));
            from = last;
        }
        run = 0;
    }
    ids.extend(bpe().encode_ordinary(&text[from..]));
    ids
}

/// The text that bytes are, or an error (kind `Data`) that says where they stop being one.
pub(super) fn as_text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let line = bytes[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::new(ErrorKind::Data, not_utf8(bytes[at], at as u64, line as u64)).with_help(BYTES_HELP)
    })
}

pub(super) const BYTES_HELP: &str =
    "convert the text to UTF-8, or use --tokenizer byte, which takes any bytes";

pub(super) fn not_utf8(byte: u8, at: u64, line: u64) -> String {
    format!("not UTF-8: byte 0x{byte:02x} at offset {at}, line {line}")
}

/// Tokens to text one at a time: gives what is complete and keeps the start of a character that further tokens will end.
///
/// ```
/// use warpsmith::data::text::{Decoder, Tokenizer};
///
/// let mut decoder = Decoder::new(&Tokenizer::Byte);
/// assert_eq!(decoder.push(0xc3)?, "");
/// assert_eq!(decoder.push(0xa9)?, "é");
/// assert_eq!(decoder.push(0xe2)?, "");
/// assert_eq!(decoder.finish(), "\u{fffd}");
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
}

impl<'a> Decoder<'a> {
    /// Nothing decoded yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Decoder { tokenizer, pending: Vec::new() }
    }

    /// The characters that `id` completes. What cannot become a character is given as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.pending.extend(self.tokenizer.decode(&[id])?);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.pending.clear();
                    return Ok(text);
                }
                Err(e) => {
                    let good = e.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..good]));
                    let Some(bad) = e.error_len() else {
                        self.pending.drain(..good);
                        return Ok(text);
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..good + bad);
                }
            }
        }
    }

    /// What is left of an unfinished character: U+FFFD, or nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
