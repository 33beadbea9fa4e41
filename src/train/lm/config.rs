//! Which decoder is trained, and how: by name, from a TOML file, from defaults.
//!
//! ```toml
//! layers = 4          # these three are needed
//! heads = 4
//! width = 128
//! kv_heads = 2        # as heads
//! hidden = 512        # 4 · width; SwiGLU: 8/3 · width up to a multiple of 64
//! context = 64        # --context
//! positions = "rotary"  # "learned"
//! rope_theta = 10000.0
//! norm = "rmsnorm"    # "layernorm"
//! eps = 1e-5
//! activation = "swiglu"  # "gelu", "gelu_tanh", "relu"
//! bias = false
//! tied = true
//! dropout = 0.0
//! ```

#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nn::{FeedForwardKind, GptConfig, NormKind, Positions};
use crate::optim::Capture;
use crate::train::ScheduleSpec;
use crate::train::spec::{OptimizerKind, PrecisionKind};
use crate::{Error, Result};

/// The forms of a decoder's name.
const FORMS: &str = "expected gpt:LAYERSxHEADSxWIDTH, gpt2, or a TOML file that describes a decoder";

/// The base of rotary positions where none is given.
const THETA: f64 = 10_000.0;

/// A decoder but for its vocabulary, and perhaps its context, which the data and the user decide.
#[derive(Clone, Debug, PartialEq)]
pub struct GptSpec {
    name: String,
    /// Its vocabulary is a placeholder.
    config: GptConfig,
    context: Option<usize>,
}

/// A decoder's description.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GptFile {
    layers: usize,
    heads: usize,
    width: usize,
    kv_heads: Option<usize>,
    hidden: Option<usize>,
    context: Option<usize>,
    positions: Option<PositionsName>,
    rope_theta: Option<f64>,
    norm: Option<NormKind>,
    eps: Option<f64>,
    activation: Option<FeedForwardKind>,
    bias: Option<bool>,
    tied: Option<bool>,
    dropout: Option<f64>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum PositionsName {
    Learned,
    Rotary,
}

impl GptSpec {
    /// Reads a description; `name` is what the decoder is called.
    ///
    /// # Errors
    /// Kind `Data`, with the line: not TOML, an unknown key, a number that does not fit the others.
    pub fn from_toml(text: &str, name: &str, path: &Path) -> Result<GptSpec> {
        let file: GptFile = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| text[..span.start].matches('\n').count() as u64 + 1);
            Error::data(path, e.message().to_owned()).at(path, line, None::<String>)
        })?;
        let base = GptConfig::new(1, 1, file.layers, file.heads, file.width);
        let activation = file.activation.unwrap_or(base.activation);
        let rotary = file.positions == Some(PositionsName::Rotary);
        if !rotary && file.rope_theta.is_some() {
            return Err(Error::data(path, "rope_theta is for positions = \"rotary\""));
        }
        let hidden = match activation {
            FeedForwardKind::SwiGlu => (file.width.saturating_mul(8) / 3).next_multiple_of(64),
            _ => base.hidden,
        };
        let config = GptConfig {
            kv_heads: file.kv_heads.unwrap_or(base.heads),
            hidden: file.hidden.unwrap_or(hidden),
            positions: if rotary {
                Positions::Rotary(file.rope_theta.unwrap_or(THETA))
            } else {
                base.positions
            },
            norm: file.norm.unwrap_or(base.norm),
            eps: file.eps.unwrap_or(base.eps),
            activation,
            bias: file.bias.unwrap_or(base.bias),
            tied: file.tied.unwrap_or(base.tied),
            dropout: file.dropout.unwrap_or(base.dropout),
            ..base
        };
        let spec = GptSpec { name: name.to_owned(), config, context: file.context };
        spec.config(1, 1).map_err(|e| Error::data(path, e.message()))?;
        Ok(spec)
    }

    /// The context that it asks for, if it does.
    pub fn context(&self) -> Option<usize> {
        self.context
    }

    /// The decoder `config`, called `name`.
    pub fn from_config(name: impl Into<String>, config: GptConfig) -> GptSpec {
        let context = Some(config.context);
        GptSpec { name: name.into(), config, context }
    }

    /// With another dropout.
    pub fn with_dropout(mut self, dropout: Option<f64>) -> GptSpec {
        self.config.dropout = dropout.unwrap_or(self.config.dropout);
        self
    }

    /// With another context.
    pub fn with_context(mut self, context: Option<usize>) -> GptSpec {
        self.context = context.or(self.context);
        self
    }

    /// The decoder for a vocabulary of `vocab` tokens in a table of `padded` rows. Where no context was given it is nanoGPT's 64
    /// (`gpt2`: 1024).
    ///
    /// # Errors
    /// Kind `Argument`: numbers that do not fit, such as heads that do not divide the width.
    pub fn config(&self, vocab: usize, padded: usize) -> Result<GptConfig> {
        let context = self.context.unwrap_or(64);
        let config = GptConfig { vocab, padded_vocab: padded, context, ..self.config.clone() };
        config.check()?;
        Ok(config)
    }
}

impl fmt::Display for GptSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Default for GptSpec {
    fn default() -> GptSpec {
        GptSpec { name: "gpt:4x4x128".to_owned(), config: GptConfig::new(1, 1, 4, 4, 128), context: None }
    }
}

impl FromStr for GptSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<GptSpec> {
        let wrong = || Error::argument(format!("model {text:?}: {FORMS}"));
        if text == "gpt2" {
            return Ok(GptSpec { name: text.to_owned(), config: GptConfig::gpt2(), context: Some(1024) });
        }
        let sizes = text.strip_prefix("gpt:").ok_or_else(wrong)?;
        let sizes: Vec<usize> =
            sizes.split('x').map(|n| n.parse().map_err(|_| wrong())).collect::<Result<_>>()?;
        let &[layers, heads, width] = &sizes[..] else { return Err(wrong()) };
        let config = GptConfig::new(1, 1, layers, heads, width);
        config.check().map_err(|e| Error::argument(format!("model {text:?}: {}", e.message())))?;
        Ok(GptSpec { name: text.to_owned(), config, context: None })
    }
}

/// How a language model is trained. The defaults are nanoGPT's for a CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmConfig {
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// Base learning rate.
    pub lr: f64,
    /// Adam's betas.
    pub betas: [f64; 2],
    /// Decay of matrices and tables; biases and norms are not decayed.
    pub weight_decay: f64,
    /// The largest global norm of the gradients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// How the learning rate changes, over steps.
    pub schedule: ScheduleSpec,
    /// Steps over which the rate rises linearly at the start.
    pub warmup: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Windows a step.
    pub batch: usize,
    /// Into how many parts a step's batch is cut, to save memory.
    pub micro_batches: usize,
    /// Steps between two looks at the validation part; 0: at the end only.
    pub eval_every: u64,
    /// Where all random choices come from.
    pub seed: u64,
    /// In which types the model is computed.
    pub precision: PrecisionKind,
    /// Whether blocks compute again in backward what they did not keep.
    pub recompute: bool,
    /// Whether a step is captured. Decides nothing but the speed.
    #[serde(skip)]
    pub capture: Capture,
}

impl Default for LmConfig {
    fn default() -> LmConfig {
        LmConfig {
            optimizer: OptimizerKind::AdamW,
            lr: 1e-3,
            betas: [0.9, 0.99],
            weight_decay: 0.1,
            clip: Some(1.0),
            schedule: ScheduleSpec::Cosine(1e-4),
            warmup: 100,
            steps: 2000,
            batch: 12,
            micro_batches: 1,
            eval_every: 250,
            seed: 42,
            precision: PrecisionKind::F32,
            recompute: false,
            capture: Capture::Auto,
        }
    }
}

impl LmConfig {
    /// Errors (kind `Argument`) if a setting is wrong by itself.
    pub fn check(&self) -> Result<()> {
        let from_zero = |what: &str, v: f64| match v.is_finite() && v >= 0.0 {
            true => Ok(()),
            false => Err(Error::argument(format!("{what} {v} is not a number from 0 on"))),
        };
        from_zero("weight decay", self.weight_decay)?;
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Error::argument(format!("learning rate {} is not a positive number", self.lr)));
        }
        if let Some(beta) = self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(Error::argument(format!("beta {beta} is not in [0, 1)")));
        }
        if let Some(clip) = self.clip.filter(|clip| !(clip.is_finite() && *clip > 0.0)) {
            return Err(Error::argument(format!("clipping limit {clip} is not a positive number")));
        }
        let counts = [("steps", self.steps), ("batch", self.batch as u64)];
        for (what, n) in counts {
            if n == 0 {
                return Err(Error::argument(format!("{what} 0 is not a positive number")));
            }
        }
        for (what, n) in [("steps", self.steps), ("seed", self.seed), ("warm-up", self.warmup)] {
            if i64::try_from(n).is_err() {
                return Err(Error::argument(format!(
                    "{what} {n} is too large: at most {} is allowed",
                    i64::MAX
                )));
            }
        }
        if self.micro_batches == 0 || !self.batch.is_multiple_of(self.micro_batches) {
            let (parts, batch) = (self.micro_batches, self.batch);
            return Err(Error::argument(format!("{parts} micro-batches do not divide a batch of {batch}")));
        }
        if self.schedule.plateau().is_some() {
            return Err(Error::argument("the plateau schedule follows epochs, which text does not have"));
        }
        self.schedule.check()
    }

    /// The learning rate of step `k`, from 0.
    pub fn lr_at(&self, k: u64) -> f64 {
        self.schedule.over_steps(1).map_or(self.lr, |s| s.lr(self.lr, k, self.warmup, self.steps))
    }
}
