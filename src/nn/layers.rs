//! The layers: what PyTorch's modules of the same names do, with the same parameters.

#![forbid(unsafe_code)]

use super::{Activation, Cx, Init, Module, Scope};
use crate::shape::IntoShape;
use crate::{Error, Param, Result, Shape, Tensor};

/// `y = f(x · Wᵀ + b)`: x `[.., in]`, y `[.., out]`. Parameters `weight [out, in]` and `bias [out]`, both drawn from
/// U(−1/√in, 1/√in). The activation (none by default) is fused into the product.
#[derive(Clone)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
    activation: Activation,
}

impl Linear {
    /// A layer with a bias.
    pub fn new(scope: &Scope, inputs: usize, outputs: usize) -> Result<Linear> {
        let mut linear = Linear::without_bias(scope, inputs, outputs)?;
        linear.bias = Some(scope.param("bias", outputs, Init::linear_bias(inputs))?);
        Ok(linear)
    }

    /// A layer without a bias.
    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = scope.param("weight", [outputs, inputs], Init::linear_weight())?;
        Ok(Linear { weight, bias: None, activation: Activation::Identity })
    }

    /// Applies `activation` to the result.
    pub fn with_activation(mut self, activation: Activation) -> Linear {
        self.activation = activation;
        self
    }

    /// A layer of existing parameters, to tie weights.
    pub fn from_params(weight: Param, bias: Option<Param>) -> Linear {
        Linear { weight, bias, activation: Activation::Identity }
    }
}

impl Module for Linear {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Param::get).transpose()?;
        x.linear(&self.weight.get()?, bias.as_ref(), self.activation)
    }

    fn params(&self) -> Vec<Param> {
        [&self.weight].into_iter().chain(&self.bias).cloned().collect()
    }
}

/// Layer normalisation over the trailing dimensions `shape`; parameters `weight` (ones) and `bias` (zeros) of that shape.
#[derive(Clone)]
pub struct LayerNorm {
    weight: Param,
    bias: Param,
    shape: Shape,
    eps: f64,
}

impl LayerNorm {
    /// PyTorch's eps: 1e-5.
    pub fn new(scope: &Scope, shape: impl IntoShape) -> Result<LayerNorm> {
        LayerNorm::with_eps(scope, shape, 1e-5)
    }

    /// `eps` is added to the variance. An error unless it is a number from 0 on.
    pub fn with_eps(scope: &Scope, shape: impl IntoShape, eps: f64) -> Result<LayerNorm> {
        checked_eps("layer norm", eps)?;
        let shape = shape.into_shape()?;
        let weight = scope.param("weight", shape, Init::Constant(1.0))?;
        let bias = scope.param("bias", shape, Init::Constant(0.0))?;
        Ok(LayerNorm { weight, bias, shape, eps })
    }
}

impl Module for LayerNorm {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(self.shape, Some(&self.weight.get()?), Some(&self.bias.get()?), self.eps)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone(), self.bias.clone()]
    }
}

/// Errors unless `eps` can be added to a variance.
pub(super) fn checked_eps(norm: &str, eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(format!("{norm}'s eps is {eps}: expected a number from 0 on")))
}

/// Root-mean-square normalisation over the trailing dimensions `shape`; parameter `weight` (ones) of that shape.
#[derive(Clone)]
pub struct RmsNorm {
    weight: Param,
    shape: Shape,
    eps: f64,
}

impl RmsNorm {
    /// `eps` is added to the mean square; PyTorch's default is the dtype's machine epsilon, large models use 1e-5 or 1e-6.
    /// An error unless it is a number from 0 on.
    pub fn new(scope: &Scope, shape: impl IntoShape, eps: f64) -> Result<RmsNorm> {
        checked_eps("RMS norm", eps)?;
        let shape = shape.into_shape()?;
        Ok(RmsNorm { weight: scope.param("weight", shape, Init::Constant(1.0))?, shape, eps })
    }
}

impl Module for RmsNorm {
    #[track_caller]
    fn forward(&self, _: &mut Cx, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(self.shape, Some(&self.weight.get()?), self.eps)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }
}

/// A table of vectors looked up by index: ids (i32 or i64) of any shape to that shape and `[width]`. Parameter
/// `weight [rows, width]`, drawn from N(0, 1).
#[derive(Clone)]
pub struct Embedding {
    weight: Param,
}

impl Embedding {
    /// A table of `rows` vectors of `width` numbers.
    pub fn new(scope: &Scope, rows: usize, width: usize) -> Result<Embedding> {
        Ok(Embedding { weight: scope.param("weight", [rows, width], Init::Normal { mean: 0.0, std: 1.0 })? })
    }

    /// The table, to tie it to a [`Linear`] (see [`Linear::from_params`]).
    pub fn weight(&self) -> &Param {
        &self.weight
    }
}

impl Module for Embedding {
    #[track_caller]
    fn forward(&self, _: &mut Cx, ids: &Tensor) -> Result<Tensor> {
        self.weight.get()?.embedding(ids)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }
}

/// Drops elements with probability `p` while training and scales the rest by 1/(1 − p).
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Errors unless `p` is in [0, 1].
    pub fn new(p: f64) -> Result<Dropout> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::argument(format!("dropout probability {p} is not in [0, 1]")));
        }
        Ok(Dropout { p })
    }
}

impl Module for Dropout {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        cx.dropout(x, self.p)
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}
