//! Batches of a corpus: windows of `context` tokens, each with the same window one token further on as what is to be predicted.
//!
//! Four orders: random windows to learn from, passes of shuffled windows to learn from, llm.c's order to read shards through, and windows side by side to validate on all
//! there is. Each batch is a pure function of its number, so a run resumes at a number.
#![forbid(unsafe_code)]

use super::corpus::Corpus;
use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

const WINDOW_SITE: u32 = 0x5749_4e44;

/// Rows of tokens, row-major, and for each token the one that follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// `[rows, context]`
    pub inputs: Vec<i32>,
    /// `[rows, context]`: `inputs` one token further on in the corpus.
    pub targets: Vec<i32>,
    /// The number of windows.
    pub rows: usize,
    /// The tokens of each.
    pub context: usize,
}

/// Where a permutation of `0..n` takes `index`: a Feistel network over the least even number of bits that hold `n`, again and
/// again until the result is below `n` (Black and Rogaway 2002: cycle walking).
fn permuted(index: u64, n: u64, words: &Philox) -> u64 {
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 1..=6u64 {
            let word = words.at(round << 33 | right)[0];
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        value = left << half | right;
        if value < n {
            return value;
        }
    }
}

/// Cuts batches of `batch` windows of `context` tokens from a corpus.
///
/// ```
/// use warpsmith::data::text::{Corpus, Windows};
///
/// let corpus = Corpus::from_tokens("ten", (0..10).collect(), 10);
/// let windows = Windows::new(&corpus, 2, 4)?;
/// let batch = windows.random(7, 0)?;
/// assert_eq!((batch.rows, batch.context), (2, 4));
/// assert_eq!(batch.targets[0], batch.inputs[0] + 1);
/// // All nine predictions: two windows of four, and one of what is left.
/// let sizes: Vec<_> = windows.validation().map(|b| b.map(|b| (b.rows, b.context))).collect::<Result<_, _>>()?;
/// assert_eq!(sizes, [(2, 4), (1, 1)]);
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Windows {
    corpus: Corpus,
    batch: usize,
    context: usize,
}

impl Windows {
    /// # Errors
    /// Kind `Argument`: a batch or context of 0, or more tokens than fit 31 bits; kind `Data`: no token, or only one, from which nothing can be predicted. A corpus
    /// that is shorter than a window can still validate; [`Windows::check_random`] and [`Windows::sequential_batches`] say
    /// whether it can be learned from.
    pub fn new(corpus: &Corpus, batch: usize, context: usize) -> Result<Windows> {
        if batch == 0 || context == 0 {
            return Err(Error::argument(format!(
                "a batch of {batch} windows of {context} tokens: expected at least 1 of each"
            )));
        }
        const MOST: usize = i32::MAX as usize;
        if batch.checked_mul(context).is_none_or(|tokens| tokens > MOST) {
            return Err(Error::argument(format!(
                "a batch of {batch} windows of {context} tokens: expected at most {MOST} tokens in all"
            )));
        }
        let windows = Windows { corpus: corpus.clone(), batch, context };
        if (0..corpus.pieces()).all(|p| corpus.tokens(p).len() < 2) {
            return Err(windows.too_short("at least 2 are needed: one to read, one to predict".into()));
        }
        Ok(windows)
    }

    /// The windows of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The corpus.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    fn too_short(&self, needs: String) -> Error {
        let corpus = &self.corpus;
        let tokens = corpus.len();
        let longest = (0..corpus.pieces()).map(|p| corpus.tokens(p).len()).max().unwrap_or(0);
        let found = match corpus.pieces() {
            0 => "there are no tokens".to_owned(),
            1 => format!("there are {tokens} tokens"),
            n => format!("there are {tokens} tokens in {n} shards, at most {longest} in one"),
        };
        let error = Error::new(ErrorKind::Data, format!("too short: {found}; {needs}"));
        if corpus.pieces() == 0 { error } else { error.at(corpus.name(0), None, None::<String>) }
    }

    /// The places where a window with its targets can begin.
    fn starts(&self) -> u64 {
        (0..self.corpus.pieces())
            .map(|p| self.corpus.tokens(p).len().saturating_sub(self.context) as u64)
            .sum()
    }

    /// Whether random windows can be drawn.
    ///
    /// # Errors
    /// Kind `Data`: no piece of the corpus has `context` + 1 tokens; says how many there are.
    pub fn check_random(&self) -> Result<()> {
        if self.starts() == 0 {
            let (context, needed) = (self.context, self.context + 1);
            let needs = format!("a context of {context} needs {needed} (each token predicts the next)");
            return Err(self.too_short(needs).with_help("use a smaller context or a longer text"));
        }
        Ok(())
    }

    /// The batch of step `step`: windows at random places, every place equally likely, drawn from (seed, step, row) alone.
    ///
    /// # Errors
    /// As [`Windows::check_random`]; kind `Data`: a token beyond the vocabulary (says where).
    pub fn random(&self, seed: u64, step: u64) -> Result<TokenBatch> {
        self.random_rows(seed, step, 0)
    }

    /// As [`Windows::random`], for the rows from `first_row` on of a larger batch: parts of a batch, put together, are the batch.
    ///
    /// # Errors
    /// As [`Windows::random`].
    pub fn random_rows(&self, seed: u64, step: u64, first_row: u64) -> Result<TokenBatch> {
        let mut batch = TokenBatch::default();
        self.random_into(seed, step, first_row, &mut batch)?;
        Ok(batch)
    }

    /// As [`Windows::random_rows`], into a batch whose memory is used again.
    ///
    /// # Errors
    /// As [`Windows::random`].
    pub fn random_into(&self, seed: u64, step: u64, first_row: u64, batch: &mut TokenBatch) -> Result<()> {
        self.check_random()?;
        let starts = self.starts();
        let words = Philox::for_step(seed, WINDOW_SITE, step as u32);
        batch.clear(self.batch, self.context);
        for row in (0..self.batch as u64).map(|row| first_row.wrapping_add(row)) {
            // Words of its own for each row, far more than a draw can need; steps beyond 2³² have others.
            let place = words.sequence(((step >> 32) << 40) | row.wrapping_mul(16)).below(starts);
            self.push_at(batch, place)?;
        }
        Ok(())
    }

    /// `batch` windows of the endless order that passes through the corpus again and again: those of numbers `first` on. A pass
    /// gives windows side by side in an order by chance, begun at a place by chance, so that it sees every token once; drawn
    /// from (seed, number) alone.
    ///
    /// # Errors
    /// As [`Windows::random`].
    pub fn shuffled_into(&self, seed: u64, first: u64, batch: &mut TokenBatch) -> Result<()> {
        self.check_random()?;
        let starts = self.starts();
        let (per_pass, context) = ((starts / self.context as u64).max(1), self.context as u64);
        batch.clear(self.batch, self.context);
        for number in first..first.saturating_add(self.batch as u64) {
            let (pass, index) = (number / per_pass, number % per_pass);
            let words = Philox::new(seed ^ pass.rotate_left(32), u64::from(WINDOW_SITE));
            let begin = words.sequence(0).below(context.min(starts));
            self.push_at(batch, permuted(index, per_pass, &words) * context + begin)?;
        }
        Ok(())
    }

    /// Adds the window that begins at the `place`-th of [`Windows::starts`].
    fn push_at(&self, batch: &mut TokenBatch, mut place: u64) -> Result<()> {
        for piece in 0..self.corpus.pieces() {
            let here = self.corpus.tokens(piece).len().saturating_sub(self.context) as u64;
            if place < here {
                return self.push(batch, piece, place as usize, self.context);
            }
            place -= here;
        }
        Err(Error::internal("a window beyond the end of the corpus"))
    }

    /// How many batches [`Windows::sequential`] gives until it begins again: in each shard as many as fit, the rest of it is
    /// left out.
    ///
    /// # Errors
    /// Kind `Data`: no shard has the `batch`·`context` + 1 tokens of a batch.
    pub fn sequential_batches(&self) -> Result<u64> {
        match (0..self.corpus.pieces()).map(|p| self.batches_of(p)).sum() {
            0 => {
                let (batch, context) = (self.batch, self.context);
                let needed = batch as u64 * context as u64 + 1;
                Err(self
                    .too_short(format!("a batch of {batch} windows of {context} needs {needed} in a row")))
            }
            n => Ok(n),
        }
    }

    fn batches_of(&self, piece: usize) -> u64 {
        let predictions = (self.corpus.tokens(piece).len() as u64).saturating_sub(1);
        predictions / (self.batch as u64).saturating_mul(self.context as u64)
    }

    /// Batch number `step` in llm.c's order: each shard from its start, window after window, then the next shard, and again from
    /// the first.
    ///
    /// # Errors
    /// As [`Windows::sequential_batches`]; kind `Data`: a token beyond the vocabulary (says where).
    pub fn sequential(&self, step: u64) -> Result<TokenBatch> {
        let mut left = step % self.sequential_batches()?;
        let mut batch = TokenBatch::default();
        for piece in 0..self.corpus.pieces() {
            let here = self.batches_of(piece);
            if left < here {
                batch.clear(self.batch, self.context);
                let start = left as usize * self.batch * self.context;
                for row in 0..self.batch {
                    self.push(&mut batch, piece, start + row * self.context, self.context)?;
                }
                break;
            }
            left -= here;
        }
        Ok(batch)
    }

    /// All of the corpus, window by window without overlap: every token but a piece's first is predicted exactly once. The last
    /// batch of a piece may have fewer rows, and a batch of one row holds what is left, with a shorter context. To average a
    /// loss, weigh each batch by its `rows`·`context`; the sum of these is [`Windows::predictions`].
    ///
    /// Each batch may fail (kind `Data`) at a token beyond the vocabulary.
    pub fn validation(&self) -> impl Iterator<Item = Result<TokenBatch>> + '_ {
        (0..self.corpus.pieces()).flat_map(move |piece| {
            let predictions = self.corpus.tokens(piece).len().saturating_sub(1);
            let (whole, rest) = (predictions / self.context, predictions % self.context);
            let batches = (0..whole).step_by(self.batch).map(move |first| {
                let rows = self.batch.min(whole - first);
                let mut batch = TokenBatch::default();
                batch.clear(rows, self.context);
                for row in first..first + rows {
                    self.push(&mut batch, piece, row * self.context, self.context)?;
                }
                Ok(batch)
            });
            let last = (rest > 0).then(move || {
                let mut batch = TokenBatch::default();
                batch.clear(1, rest);
                self.push(&mut batch, piece, whole * self.context, rest)?;
                Ok(batch)
            });
            batches.chain(last)
        })
    }

    /// The number of tokens that [`Windows::validation`] predicts.
    pub fn predictions(&self) -> u64 {
        (0..self.corpus.pieces()).map(|p| (self.corpus.tokens(p).len() as u64).saturating_sub(1)).sum()
    }

    /// Adds a window to a batch, and checks its tokens.
    fn push(&self, batch: &mut TokenBatch, piece: usize, start: usize, context: usize) -> Result<()> {
        let window = &self.corpus.tokens(piece)[start..=start + context];
        let vocab = self.corpus.vocab();
        if let Some(at) = window.iter().position(|&id| usize::from(id) >= vocab) {
            return Err(Error::data(
                self.corpus.name(piece),
                format!(
                    "token {} at position {} is beyond the vocabulary of {vocab} tokens",
                    window[at],
                    start + at
                ),
            )
            .with_help("were the tokens made by another tokenizer?"));
        }
        batch.inputs.extend(window[..context].iter().map(|&id| i32::from(id)));
        batch.targets.extend(window[1..].iter().map(|&id| i32::from(id)));
        Ok(())
    }
}

impl TokenBatch {
    fn clear(&mut self, rows: usize, context: usize) {
        self.inputs.clear();
        self.targets.clear();
        (self.rows, self.context) = (rows, context);
    }
}
