//! Layers: parameters by id, a forward pass, names and layouts as PyTorch's.
//!
//! A layer holds [`Param`]s, never tensors, and no mode flag: whether a pass trains, its random state and the like come
//! in a [`Cx`]. Construct layers in a [`Scope`], which names their parameters and draws their initial values.

#![forbid(unsafe_code)]

mod attention;
mod cells;
mod containers;
mod conv;
mod gpt;
mod init;
mod layers;
mod norm;
mod pool;
mod recompute;
mod recurrent;
mod transformer;

use crate::param::StepBlock;
use crate::{Param, Result, Tensor, ops};

pub use crate::cpu::activation::Activation;
pub use attention::{AttentionOptions, KvCache, SelfAttention};
pub use cells::{GRUCell, LSTMCell, RNNCell};
pub use containers::{Flatten, Residual, Sequential};
pub use conv::{Conv1d, Conv2d, ConvOptions, ConvTranspose2d};
pub use gpt::{Gpt, GptConfig, Positions};
pub use init::{Fan, Init, Scope, gain};
pub use layers::{Dropout, Embedding, LayerNorm, Linear, RmsNorm};
pub use norm::{BatchNorm1d, BatchNorm2d, BatchNormOptions, GroupNorm};
pub use pool::{AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, Upsample};
pub use recurrent::{GRU, LSTM, RNN, RecurrentOptions};
pub use transformer::{BlockOptions, FeedForward, FeedForwardKind, NormKind, Residuals, TransformerBlock};

/// What a forward pass needs to know besides its input.
#[derive(Clone, Debug)]
pub struct Cx {
    train: bool,
    seed: u64,
    step: Option<Tensor>,
    sites: u32,
    first_sample: u64,
    recompute: bool,
}

impl Cx {
    /// Evaluation: dropout does nothing.
    pub fn eval() -> Cx {
        Cx { train: false, seed: 0, step: None, sites: 0, first_sample: 0, recompute: false }
    }

    /// One training pass. Random choices follow from `seed`, the number of the attempt at a step in `block`, the call site
    /// and the element's place in the whole batch.
    pub fn train(block: &StepBlock, seed: u64) -> Result<Cx> {
        Ok(Cx { train: true, seed, step: Some(block.random()?), sites: 0, first_sample: 0, recompute: false })
    }

    /// For a part of a batch: the number of its first sample within the whole. With it, splitting a batch over ranks or
    /// micro-batches changes no random choice.
    pub fn with_first_sample(mut self, first: u64) -> Cx {
        self.first_sample = first;
        self
    }

    /// Whether this pass trains.
    pub fn is_training(&self) -> bool {
        self.train
    }

    /// Drops elements of `x` (batch first) with probability `p` and scales the rest by 1/(1 − p); in evaluation, or with
    /// `p` = 0, returns `x`. Each call in a pass is a call site of its own.
    #[track_caller]
    pub fn dropout(&mut self, x: &Tensor, p: f64) -> Result<Tensor> {
        let site = self.sites;
        self.sites += 1;
        match &self.step {
            Some(step) if self.train && p != 0.0 => {
                let sample = if x.rank() == 0 { 1 } else { x.dims()[1..].iter().product::<usize>() } as u64;
                x.dropout(
                    ops::Dropout { p, seed: self.seed, site, offset: self.first_sample.wrapping_mul(sample) },
                    step,
                )
            }
            _ => Ok(x.clone()),
        }
    }
}

/// A part of a model that maps a tensor to a tensor.
pub trait Module: Send + Sync {
    /// Applies the module to `x`.
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor>;

    /// Its parameters, in the order of PyTorch's `named_parameters`.
    fn params(&self) -> Vec<Param>;
}

impl<M: Module + ?Sized> Module for Box<M> {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        (**self).forward(cx, x)
    }

    fn params(&self) -> Vec<Param> {
        (**self).params()
    }
}

impl Module for Activation {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Identity => Ok(x.clone()),
            Activation::Relu => x.relu(),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Tanh => x.tanh(),
        }
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}
