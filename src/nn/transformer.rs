//! A transformer's block: attention and a feed-forward part, each behind a norm and added to the residual stream.
//!
//! The sum of a block's last part is left to the next norm, so that sum and norm are one pass: a block takes the stream and
//! what is still to be added to it, and gives both. [`Residuals`] is that pair.

#![forbid(unsafe_code)]

use super::attention::{AttentionOptions, KvCache, Product, SelfAttention};
use super::{Activation, Cx, Init, Module, Scope};
use crate::{Error, Param, Result, Tensor};

/// Which normalisation a transformer uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum NormKind {
    /// Mean and variance (arXiv:1607.06450).
    #[default]
    LayerNorm,
    /// Root mean square (arXiv:1910.07467).
    RmsNorm,
}

/// The nonlinearity of a transformer's feed-forward part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "train", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum FeedForwardKind {
    /// The exact (error function) form.
    #[default]
    Gelu,
    /// The tanh form, as GPT-2 has it.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// silu(gate) · up (arXiv:2002.05202): the first product makes both.
    #[cfg_attr(feature = "train", serde(rename = "swiglu"))]
    SwiGlu,
}

/// What a [`TransformerBlock`] is built from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockOptions {
    /// Its attention, whose width, bias and standard deviations hold for the feed-forward part too.
    pub attention: AttentionOptions,
    /// The width between the two products of the feed-forward part.
    pub hidden: usize,
    /// The normalisation.
    pub norm: NormKind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// The nonlinearity of the feed-forward part.
    pub activation: FeedForwardKind,
    /// The probability with which training drops what either part adds to the stream.
    pub dropout: f64,
}

/// The residual stream, `[B, T, C]`, and what is still to be added to it.
#[derive(Clone, Debug)]
pub struct Residuals {
    /// The sum so far.
    pub stream: Tensor,
    /// The last part's output, of the same shape.
    pub pending: Option<Tensor>,
}

/// A norm with weight (ones) and, for layer norm with `bias`, bias (zeros), that can add before it normalises.
#[derive(Clone)]
pub(super) struct Norm {
    kind: NormKind,
    weight: Param,
    bias: Option<Param>,
    eps: f64,
}

impl Norm {
    pub(super) fn new(scope: &Scope, kind: NormKind, width: usize, bias: bool, eps: f64) -> Result<Norm> {
        super::layers::checked_eps("the norm", eps)?;
        let weight = scope.param("weight", width, Init::Constant(1.0))?;
        let with_bias = bias && kind == NormKind::LayerNorm;
        let bias = with_bias.then(|| scope.param("bias", width, Init::Constant(0.0))).transpose()?;
        Ok(Norm { kind, weight, bias, eps })
    }

    /// The stream with everything added, and that normalised.
    #[track_caller]
    pub(super) fn apply(&self, residuals: &Residuals) -> Result<[Tensor; 2]> {
        let (x, weight, eps) = (&residuals.stream, self.weight.get()?, self.eps);
        let bias = self.bias.as_ref().map(Param::get).transpose()?;
        let width = weight.shape();
        let (sum, y) = match (self.kind, &residuals.pending) {
            (NormKind::LayerNorm, Some(pending)) => {
                x.add_layer_norm(pending, Some(&weight), bias.as_ref(), eps)?
            }
            (NormKind::LayerNorm, None) => {
                (x.clone(), x.layer_norm(width, Some(&weight), bias.as_ref(), eps)?)
            }
            (NormKind::RmsNorm, Some(pending)) => x.add_rms_norm(pending, Some(&weight), eps)?,
            (NormKind::RmsNorm, None) => (x.clone(), x.rms_norm(width, Some(&weight), eps)?),
        };
        Ok([sum, y])
    }

    pub(super) fn params(&self) -> impl Iterator<Item = Param> + '_ {
        [&self.weight].into_iter().chain(&self.bias).cloned()
    }
}

/// The part of a block that looks at one position: `[B, T, C]` to `[B, T, C]`. Parameters `c_fc.weight [hidden, C]` (SwiGLU:
/// `[2 · hidden, C]`, the gate's rows first) and `c_proj.weight [C, hidden]`, with biases if asked for.
#[derive(Clone)]
pub struct FeedForward {
    fc: Product,
    proj: Product,
    activation: FeedForwardKind,
}

impl FeedForward {
    /// Weights are drawn from N(0, std²), biases are zero.
    pub fn new(
        scope: &Scope,
        sizes: [usize; 2],
        activation: FeedForwardKind,
        bias: bool,
        std: [f64; 2],
    ) -> Result<FeedForward> {
        let [width, hidden] = sizes;
        if hidden == 0 {
            return Err(Error::argument("a feed-forward part of width 0"));
        }
        let first = if activation == FeedForwardKind::SwiGlu { 2 * hidden } else { hidden };
        let fc = Product::new(&scope.enter("c_fc"), [width, first], bias, std[0])?;
        let proj = Product::new(&scope.enter("c_proj"), [hidden, width], bias, std[1])?;
        Ok(FeedForward { fc, proj, activation })
    }
}

impl Module for FeedForward {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let hidden = match self.activation {
            FeedForwardKind::Gelu => self.fc.apply(x, Activation::Gelu)?,
            FeedForwardKind::GeluTanh => self.fc.apply(x, Activation::GeluTanh)?,
            FeedForwardKind::Relu => self.fc.apply(x, Activation::Relu)?,
            FeedForwardKind::SwiGlu => self.fc.apply(x, Activation::Identity)?.swiglu()?,
        };
        self.proj.apply(&hidden, Activation::Identity)
    }

    fn params(&self) -> Vec<Param> {
        self.fc.params().chain(self.proj.params()).collect()
    }
}

/// A block with its norms in front (arXiv:2002.04745): x + attn(norm(x)), then x + mlp(norm(x)). Parameters of `ln_1`, `attn`,
/// `ln_2` and `mlp`, as GPT-2 names them.
#[derive(Clone)]
pub struct TransformerBlock {
    norms: [Norm; 2],
    attention: SelfAttention,
    feed_forward: FeedForward,
    dropout: f64,
}

impl TransformerBlock {
    /// Errors if sizes do not divide or a number is out of range.
    pub fn new(scope: &Scope, options: BlockOptions) -> Result<TransformerBlock> {
        let BlockOptions { attention, hidden, norm, eps, activation, dropout } = options;
        let AttentionOptions { width, bias, std, .. } = attention;
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::argument(format!("dropout {dropout} is not in [0, 1)")));
        }
        let first = Norm::new(&scope.enter("ln_1"), norm, width, bias, eps)?;
        let attention = SelfAttention::new(&scope.enter("attn"), attention)?;
        let second = Norm::new(&scope.enter("ln_2"), norm, width, bias, eps)?;
        let mlp = scope.enter("mlp");
        let feed_forward = FeedForward::new(&mlp, [width, hidden], activation, bias, std)?;
        Ok(TransformerBlock { norms: [first, second], attention, feed_forward, dropout })
    }

    /// The block as a step of the residual stream.
    #[track_caller]
    pub fn step(&self, cx: &mut Cx, residuals: &Residuals) -> Result<Residuals> {
        let [stream, x] = self.norms[0].apply(residuals)?;
        let attended = self.attention.forward(cx, &x)?;
        let pending = Some(cx.dropout(&attended, self.dropout)?);
        let [stream, x] = self.norms[1].apply(&Residuals { stream, pending })?;
        let fed = self.feed_forward.forward(cx, &x)?;
        Ok(Residuals { stream, pending: Some(cx.dropout(&fed, self.dropout)?) })
    }

    /// As [`TransformerBlock::step`], keeping only what goes in: backward runs the block again.
    #[track_caller]
    pub fn step_again(&self, cx: &mut Cx, residuals: &Residuals) -> Result<Residuals> {
        let block = self.clone();
        let inputs: Vec<&Tensor> = [&residuals.stream].into_iter().chain(&residuals.pending).collect();
        let outputs = cx.checkpoint(&inputs, &self.params(), move |cx, inputs| {
            let residuals = Residuals { stream: inputs[0].clone(), pending: inputs.get(1).cloned() };
            let Residuals { stream, pending } = block.step(cx, &residuals)?;
            Ok([stream].into_iter().chain(pending).collect())
        })?;
        let mut outputs = outputs.into_iter();
        let stream = outputs.next().ok_or_else(|| Error::internal("a block without a stream"))?;
        Ok(Residuals { stream, pending: outputs.next() })
    }

    /// As [`TransformerBlock::step`] in evaluation, for the positions that follow those in `cache`.
    #[track_caller]
    pub fn step_cached(&self, residuals: &Residuals, cache: &mut KvCache) -> Result<Residuals> {
        let [stream, x] = self.norms[0].apply(residuals)?;
        let pending = Some(self.attention.forward_cached(&x, cache)?);
        let [stream, x] = self.norms[1].apply(&Residuals { stream, pending })?;
        Ok(Residuals { stream, pending: Some(self.feed_forward.forward(&mut Cx::eval(), &x)?) })
    }
}

impl Module for TransformerBlock {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let Residuals { stream, pending } = self.step(cx, &Residuals { stream: x.clone(), pending: None })?;
        pending.map_or(Ok(stream.clone()), |pending| stream.add(&pending))
    }

    fn params(&self) -> Vec<Param> {
        let [first, second] = &self.norms;
        let parts = first.params().chain(self.attention.params());
        parts.chain(second.params()).chain(self.feed_forward.params()).collect()
    }
}
