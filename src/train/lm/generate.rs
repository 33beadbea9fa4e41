//! Text from a language model, token by token.
//!
//! Keys and values of the tokens so far are kept, so a token costs one pass over one position. Where the context is full the
//! model goes on from the last half of it, read anew: learned positions cannot be shifted in a cache.

#![forbid(unsafe_code)]

use super::model::LanguageModel;
use crate::data::text::{Decoder, Sampler, Tokenizer};
use crate::nn::KvCache;
use crate::{Error, Result, Tensor};

/// What a [`Generator`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// They as text.
    pub text: String,
    /// Tokens of the prompt that were read: its last ones, where it is longer than the context.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were left out.
    pub prompt_dropped: usize,
}

/// Makes text with one model.
pub struct Generator<'a> {
    model: &'a LanguageModel,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    cache: Vec<KvCache>,
    /// All tokens that are in the cache or go there next.
    window: Vec<u32>,
}

impl<'a> Generator<'a> {
    /// Errors if the sampler's numbers are out of range.
    pub fn new(
        model: &'a LanguageModel,
        tokenizer: &'a Tokenizer,
        sampler: Sampler,
    ) -> Result<Generator<'a>> {
        sampler.check()?;
        let cache = model.gpt().cache(1)?;
        Ok(Generator { model, tokenizer, sampler, cache, window: Vec::new() })
    }

    /// Continues `prompt` by up to `count` tokens; stops at the tokeniser's end of text. `sink` is given each piece of text as
    /// it becomes whole, and ends the work by `false`.
    ///
    /// Of a prompt longer than the context the last `context` tokens are read. An empty prompt begins with the end of a text
    /// where the tokeniser has such a token, else with its token 0.
    ///
    /// # Errors
    /// Kind `Argument`: characters in the prompt that the tokeniser does not know. Kind `Diverged`: logits that are not finite.
    pub fn run(
        &mut self,
        prompt: &str,
        count: usize,
        sink: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let context = self.model.config().context;
        let mut prompt = self.tokenizer.encode(prompt)?;
        if prompt.is_empty() {
            prompt.push(self.tokenizer.end_of_text().unwrap_or(0));
        }
        let dropped = prompt.len().saturating_sub(context);
        prompt.drain(..dropped);
        let prompt_tokens = prompt.len();
        self.window = prompt;
        self.cache.iter_mut().for_each(KvCache::clear);
        let mut decoder = Decoder::new(self.tokenizer);
        let (mut tokens, mut text) = (Vec::new(), String::new());
        for _ in 0..count {
            let logits = self.logits()?;
            let token = self.sampler.next(&logits)?;
            if Some(token) == self.tokenizer.end_of_text() {
                break;
            }
            tokens.push(token);
            self.window.push(token);
            let piece = decoder.push(token)?;
            text.push_str(&piece);
            if !sink(&piece) {
                break;
            }
        }
        let rest = decoder.finish();
        sink(&rest);
        text.push_str(&rest);
        Ok(Generated { tokens, text, prompt_tokens, prompt_dropped: dropped })
    }

    /// The logits of the token that follows the window; reads what of it is not in the cache yet.
    fn logits(&mut self) -> Result<Vec<f32>> {
        let (context, vocab) = (self.model.config().context, self.model.config().vocab);
        if self.window.len() > context {
            let keep = (context / 2).max(1);
            self.window.drain(..self.window.len() - keep);
            self.cache.iter_mut().for_each(KvCache::clear);
        }
        let seen = self.cache.first().map_or(0, KvCache::len);
        let new: Vec<i32> = self.window[seen..].iter().map(|&id| id as i32).collect();
        if new.is_empty() {
            return Err(Error::internal("nothing to read before the next token"));
        }
        let device = self.model.arena().device();
        let ids = Tensor::from_slice(&new, [1, new.len()], device)?;
        let logits = self.model.gpt().next_logits(&ids, &mut self.cache)?;
        let mut values: Vec<f32> = logits.to_f64_vec()?.into_iter().map(|v| v as f32).collect();
        values.truncate(vocab);
        Ok(values)
    }
}
