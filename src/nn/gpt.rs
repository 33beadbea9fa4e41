//! A decoder of transformer blocks that predicts the next token: GPT-2 and its descendants by a few settings.
//!
//! Parameters have GPT-2's names behind `transformer.` (`wte`, `wpe`, `h.N…`, `ln_f`); weights of linear layers are `[out, in]`
//! as PyTorch's are, not `[in, out]` as in the files that OpenAI published. The head shares the token table unless it is untied.

#![forbid(unsafe_code)]

use super::attention::{AttentionOptions, KvCache, Product};
use super::transformer::{BlockOptions, FeedForwardKind, Norm, NormKind, Residuals, TransformerBlock};
use super::{Activation, Cx, Init, Module, Scope};
use crate::ops::CrossEntropy;
use crate::tensor::no_grad;
use crate::{Error, Param, Result, Tensor};

/// How a decoder knows where in the sequence a token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Positions {
    /// A table of one vector a position, added to the tokens'.
    #[default]
    Learned,
    /// Queries and keys turned by their position (arXiv:2104.09864), by this base.
    Rotary(f64),
}

/// All that decides the shape of a [`Gpt`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct GptConfig {
    /// Tokens there are.
    pub vocab: usize,
    /// Rows of the token table, from `vocab` on: a multiple of 8 or more keeps 16-bit products fast.
    pub padded_vocab: usize,
    /// The longest sequence.
    pub context: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, of which `heads` is a multiple.
    pub kv_heads: usize,
    /// The width of the residual stream.
    pub width: usize,
    /// The width inside the feed-forward part.
    pub hidden: usize,
    /// Positions.
    pub positions: Positions,
    /// The normalisation.
    pub norm: NormKind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// The nonlinearity of the feed-forward part.
    pub activation: FeedForwardKind,
    /// Whether linear layers and layer norms have biases.
    pub bias: bool,
    /// Whether the head shares the token table.
    pub tied: bool,
    /// The probability with which training drops embeddings and what a block's parts add.
    pub dropout: f64,
}

impl GptConfig {
    /// nanoGPT's form: learned positions, layer norm, exact GELU, four times the width inside, a tied head, no biases.
    pub fn new(vocab: usize, context: usize, layers: usize, heads: usize, width: usize) -> GptConfig {
        GptConfig {
            vocab,
            padded_vocab: vocab,
            context,
            layers,
            heads,
            kv_heads: heads,
            width,
            hidden: width.saturating_mul(4),
            positions: Positions::Learned,
            norm: NormKind::LayerNorm,
            eps: 1e-5,
            activation: FeedForwardKind::Gelu,
            bias: false,
            tied: true,
            dropout: 0.0,
        }
    }

    /// GPT-2 with 124 million parameters, its vocabulary of 50,257 padded to 50,304.
    pub fn gpt2() -> GptConfig {
        GptConfig {
            padded_vocab: 50_304,
            activation: FeedForwardKind::GeluTanh,
            bias: true,
            ..GptConfig::new(50_257, 1024, 12, 12, 768)
        }
    }

    /// Errors (kind `Argument`) that say which number does not fit.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("vocab", self.vocab),
            ("context", self.context),
            ("layers", self.layers),
            ("width", self.width),
            ("hidden", self.hidden),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(Error::argument(format!("{name} 0: expected at least 1")));
        }
        // Products of two or three of them must not overflow.
        const MOST: usize = i32::MAX as usize;
        if let Some((name, n)) = counts.iter().find(|(_, n)| *n > MOST) {
            return Err(Error::argument(format!("{name} {n}: expected at most {MOST}")));
        }
        if self.padded_vocab < self.vocab {
            let (padded, vocab) = (self.padded_vocab, self.vocab);
            return Err(Error::argument(format!(
                "padded_vocab {padded} is less than the vocabulary {vocab}"
            )));
        }
        if let Positions::Rotary(theta) = self.positions
            && !(theta.is_finite() && theta > 0.0)
        {
            return Err(Error::argument(format!("the rotary base {theta} is not a positive number")));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::argument(format!("dropout {} is not in [0, 1)", self.dropout)));
        }
        super::layers::checked_eps("the norm", self.eps)?;
        self.attention().head_width().map(drop)
    }

    fn attention(&self) -> AttentionOptions {
        // GPT-2: what is added to the stream shrinks by the number of additions, so that its variance stays.
        let last = STD / (2.0 * self.layers as f64).sqrt();
        AttentionOptions {
            width: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            causal: true,
            bias: self.bias,
            rotary: match self.positions {
                Positions::Learned => None,
                Positions::Rotary(theta) => Some(theta),
            },
            context: self.context,
            std: [STD, last],
        }
    }

    fn block(&self) -> BlockOptions {
        BlockOptions {
            attention: self.attention(),
            hidden: self.hidden,
            norm: self.norm,
            eps: self.eps,
            activation: self.activation,
            dropout: self.dropout,
        }
    }
}

/// The standard deviation of GPT-2's initial weights.
const STD: f64 = 0.02;

/// A decoder: token ids `[B, T]` (i32 or i64) to logits `[B, T, padded_vocab]`.
pub struct Gpt {
    config: GptConfig,
    tokens: Param,
    positions: Option<Param>,
    blocks: Vec<TransformerBlock>,
    norm: Norm,
    head: Option<Product>,
}

impl Gpt {
    /// The parameter group of biases and norms, which optimisers customarily leave without weight decay; matrices and tables are
    /// group 0.
    pub const UNDECAYED: usize = 1;

    /// A decoder with GPT-2's initial values. Errors: see [`GptConfig::check`].
    pub fn new(scope: &Scope, config: &GptConfig) -> Result<Gpt> {
        config.check()?;
        let body = scope.enter("transformer");
        let (vocab, width) = (config.padded_vocab, config.width);
        let table = |name: &str, rows: usize| {
            body.enter(name).param("weight", [rows, width], Init::Normal { mean: 0.0, std: STD })
        };
        let tokens = table("wte", vocab)?;
        let learned = config.positions == Positions::Learned;
        let positions = learned.then(|| table("wpe", config.context)).transpose()?;
        let blocks = (0..config.layers)
            .map(|n| TransformerBlock::new(&body.enter("h").enter(n), config.block()))
            .collect::<Result<Vec<_>>>()?;
        let norm = Norm::new(&body.enter("ln_f"), config.norm, width, config.bias, config.eps)?;
        let head = (!config.tied).then(|| Product::new(&scope.enter("lm_head"), [width, vocab], false, STD));
        let head = head.transpose()?;
        let gpt = Gpt { config: config.clone(), tokens, positions, blocks, norm, head };
        let vectors = gpt.params().into_iter().filter(|p| p.shape().rank() < 2);
        vectors.into_iter().try_for_each(|p| p.set_group(Gpt::UNDECAYED))?;
        Ok(gpt)
    }

    /// What it was built from.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The vectors of `ids` at positions from `offset` on: `[B, T, C]`.
    #[track_caller]
    fn embed(&self, ids: &Tensor, offset: usize) -> Result<Tensor> {
        let &[_, steps] = ids.dims() else {
            return Err(Error::shape("gpt", format!("the token ids are {}, expected [B, T]", ids.shape())));
        };
        let context = self.config.context;
        if offset + steps > context {
            let message = format!("{} positions, but the context is {context}", offset + steps);
            return Err(Error::shape("gpt", message));
        }
        let tokens = self.tokens.get()?.embedding(ids)?;
        match &self.positions {
            Some(table) => tokens.add(&table.get()?.narrow(0, offset, steps)?),
            None => Ok(tokens),
        }
    }

    /// The stream behind the last norm, `[B, T, C]`.
    #[track_caller]
    fn finish(&self, residuals: &Residuals) -> Result<Tensor> {
        let [_, x] = self.norm.apply(residuals)?;
        Ok(x)
    }

    /// Logits of `[.., C]`.
    #[track_caller]
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.apply(x, Activation::Identity),
            None => x.linear(&self.tokens.get()?, None, Activation::Identity),
        }
    }

    /// The mean cross-entropy of the next tokens `targets` `[B, T]`, in nats, a 0-d tensor.
    #[track_caller]
    pub fn loss(&self, cx: &mut Cx, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let GptConfig { vocab, padded_vocab, .. } = self.config;
        let options = CrossEntropy {
            class_dim: -1,
            classes: (vocab < padded_vocab).then_some(vocab),
            ..CrossEntropy::default()
        };
        // Nobody else sees the logits, so that their gradient may take their place.
        self.forward(cx, ids)?.cross_entropy_overwriting(targets, options)
    }

    /// An empty cache for `batch` sequences: one [`KvCache`] a block.
    pub fn cache(&self, batch: usize) -> Result<Vec<KvCache>> {
        let GptConfig { context, kv_heads, width, heads, .. } = self.config;
        let arena = self.tokens.arena();
        let one = || KvCache::new(batch, context, [kv_heads, width / heads], arena.dtype(), arena.device());
        (0..self.blocks.len()).map(|_| one()).collect()
    }

    /// The logits behind the last of `ids` `[B, T]`, `[B, padded_vocab]`; the tokens follow those in `cache` and are added to it.
    #[track_caller]
    pub fn next_logits(&self, ids: &Tensor, cache: &mut [KvCache]) -> Result<Tensor> {
        no_grad(|| {
            let seen = cache.first().map_or(0, KvCache::len);
            let mut residuals = Residuals { stream: self.embed(ids, seen)?, pending: None };
            for (block, cache) in self.blocks.iter().zip(cache) {
                residuals = block.step_cached(&residuals, cache)?;
            }
            // Only the last position is asked for.
            let last = |x: &Tensor| x.narrow(1, ids.dims()[1] - 1, 1);
            let pending = residuals.pending.as_ref().map(last).transpose()?;
            let x = self.finish(&Residuals { stream: last(&residuals.stream)?, pending })?;
            self.logits(&x.select(1, 0)?)
        })
    }
}

impl Module for Gpt {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, ids: &Tensor) -> Result<Tensor> {
        let embedded = self.embed(ids, 0)?;
        let mut residuals = Residuals { stream: cx.dropout(&embedded, self.config.dropout)?, pending: None };
        for block in &self.blocks {
            residuals = if cx.recomputes() {
                block.step_again(cx, &residuals)?
            } else {
                block.step(cx, &residuals)?
            };
        }
        self.logits(&self.finish(&residuals)?)
    }

    fn params(&self) -> Vec<Param> {
        let tables = [&self.tokens].into_iter().chain(&self.positions).cloned();
        let blocks = self.blocks.iter().flat_map(Module::params);
        let head = self.head.iter().flat_map(Product::params);
        tables.chain(blocks).chain(self.norm.params()).chain(head).collect()
    }
}
