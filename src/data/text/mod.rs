//! Text for language models: tokenisers, corpora in memory or in mapped shards, windows of them, and drawing the next token.
//!
//! ```text
//! text ─ Tokenizer ─ Corpus (u16: memory, or llm.c shards mapped from files) ─ Windows ─ TokenBatch [rows, context]
//!                                                              logits of a model ─ Sampler ─ token ─ Decoder ─ text
//! ```
//! A text is read in blocks and may be larger than memory; what is kept of it is 2 bytes a token. Everything that is drawn is a
//! pure function of a seed and a step's number, so that a resumed run draws what the cut-off one would have.
#![forbid(unsafe_code)]

mod corpus;
mod sample;
mod shards;
mod source;
mod tokenize;
mod tokenizer;
mod windows;

pub use corpus::{BUILTIN_TEXT, Corpus, TextData, VAL_SHARE, builtin_text};
pub use sample::Sampler;
pub use shards::{MAX_SHARD_TOKENS, ShardFiles, TOKENIZER_FILE};
pub use tokenize::{TokenizeOptions, Tokenized, tokenize};
pub use tokenizer::{Characters, Decoder, GPT2_END_OF_TEXT, Tokenizer, TokenizerKind};
pub use windows::{TokenBatch, Windows};
