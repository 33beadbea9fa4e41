//! One step of a recurrent layer: PyTorch's `RNNCell`, `LSTMCell` and `GRUCell`.

#![forbid(unsafe_code)]

use super::recurrent::{Weights, nonlinearity};
use super::{Activation, Cx, Module, Scope};
use crate::{Error, Param, Result, Shape, Tensor};

impl Weights {
    /// The parameters of a cell: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`.
    fn of_cell(scope: &Scope, sizes: [usize; 3], bias: bool) -> Result<Weights> {
        Weights::new(scope, "", sizes, bias)
    }

    /// Inputs and width of the state.
    fn widths(&self) -> [usize; 2] {
        [self.ih.shape()[1], self.hh.shape()[1]]
    }

    /// Checks `x [B, inputs]` and the states `[B, H]`, and gives zeros where there are none.
    #[track_caller]
    fn state(&self, op: &'static str, x: &Tensor, given: Option<&Tensor>) -> Result<Tensor> {
        let [inputs, hidden] = self.widths();
        if x.rank() != 2 || x.dims()[1] != inputs {
            return Err(Error::shape(op, format!("the input is {}, expected [B, {inputs}]", x.shape())));
        }
        let expected = Shape::from_dims(&[x.dims()[0], hidden]);
        match given {
            Some(state) if state.shape() == expected => Ok(state.clone()),
            Some(state) => {
                Err(Error::shape(op, format!("the state is {}, expected {expected}", state.shape())))
            }
            None => Tensor::zeros(expected, x.dtype(), x.device()),
        }
    }

    /// What comes from the input and what comes from the state.
    #[track_caller]
    fn sums(&self, x: &Tensor, h: &Tensor) -> Result<[Tensor; 2]> {
        let [ih, hh] = self.bias_values()?;
        Ok([
            x.linear(&self.ih.get()?, ih.as_ref(), Activation::Identity)?,
            h.linear(&self.hh.get()?, hh.as_ref(), Activation::Identity)?,
        ])
    }
}

/// A step of an LSTM: `x [B, inputs]`, h and c `[B, H]`. Parameters `weight_ih [4H, inputs]`, `weight_hh [4H, H]`, `bias_ih` and
/// `bias_hh` `[4H]`, gates in the order i, f, g, o; all drawn from U(−1/√H, 1/√H).
#[derive(Clone)]
pub struct LSTMCell {
    weights: Weights,
}

impl LSTMCell {
    /// A cell with biases.
    pub fn new(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<LSTMCell> {
        Ok(LSTMCell { weights: Weights::of_cell(scope, [4, input_size, hidden_size], true)? })
    }

    /// A cell without biases.
    pub fn without_bias(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<LSTMCell> {
        Ok(LSTMCell { weights: Weights::of_cell(scope, [4, input_size, hidden_size], false)? })
    }

    /// h' and c', from zeros if no h and c are given.
    #[track_caller]
    pub fn forward_with_state(
        &self,
        _: &mut Cx,
        x: &Tensor,
        states: Option<(&Tensor, &Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        let (h, c) = states.unzip();
        let (h, c) = (self.weights.state("lstm_cell", x, h)?, self.weights.state("lstm_cell", x, c)?);
        let [gx, gh] = self.weights.sums(x, &h)?;
        gx.lstm_cell(&gh, &c)
    }
}

impl Module for LSTMCell {
    /// h', from zero states.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_state(cx, x, None)?.0)
    }

    fn params(&self) -> Vec<Param> {
        self.weights.params().collect()
    }
}

/// A step of a GRU: `x [B, inputs]`, h `[B, H]`. Parameters as those of [`LSTMCell`] with three gates in the order r, z, n.
#[derive(Clone)]
pub struct GRUCell {
    weights: Weights,
}

impl GRUCell {
    /// A cell with biases.
    pub fn new(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<GRUCell> {
        Ok(GRUCell { weights: Weights::of_cell(scope, [3, input_size, hidden_size], true)? })
    }

    /// A cell without biases.
    pub fn without_bias(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<GRUCell> {
        Ok(GRUCell { weights: Weights::of_cell(scope, [3, input_size, hidden_size], false)? })
    }

    /// h', from zeros if no h is given.
    #[track_caller]
    pub fn forward_with_state(&self, _: &mut Cx, x: &Tensor, state: Option<&Tensor>) -> Result<Tensor> {
        let h = self.weights.state("gru_cell", x, state)?;
        let [gx, gh] = self.weights.sums(x, &h)?;
        gx.gru_cell(&gh, &h)
    }
}

impl Module for GRUCell {
    /// h', from a zero state.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.forward_with_state(cx, x, None)
    }

    fn params(&self) -> Vec<Param> {
        self.weights.params().collect()
    }
}

/// A step of a plain recurrent network, h' = tanh(W_ih x + b_ih + W_hh h + b_hh): `x [B, inputs]`, h `[B, H]`. Parameters as those of
/// [`LSTMCell`] with one gate.
#[derive(Clone)]
pub struct RNNCell {
    weights: Weights,
    activation: Activation,
}

impl RNNCell {
    /// A cell with biases.
    pub fn new(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<RNNCell> {
        let weights = Weights::of_cell(scope, [1, input_size, hidden_size], true)?;
        Ok(RNNCell { weights, activation: Activation::Tanh })
    }

    /// A cell without biases.
    pub fn without_bias(scope: &Scope, input_size: usize, hidden_size: usize) -> Result<RNNCell> {
        let weights = Weights::of_cell(scope, [1, input_size, hidden_size], false)?;
        Ok(RNNCell { weights, activation: Activation::Tanh })
    }

    /// Takes `activation` for tanh: tanh or relu, others are an error.
    pub fn with_nonlinearity(mut self, activation: Activation) -> Result<RNNCell> {
        self.activation = nonlinearity(activation)?;
        Ok(self)
    }

    /// h', from zeros if no h is given.
    #[track_caller]
    pub fn forward_with_state(&self, _: &mut Cx, x: &Tensor, state: Option<&Tensor>) -> Result<Tensor> {
        let h = self.weights.state("rnn_cell", x, state)?;
        let [gx, gh] = self.weights.sums(x, &h)?;
        gx.rnn_cell(&gh, self.activation)
    }
}

impl Module for RNNCell {
    /// h', from a zero state.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.forward_with_state(cx, x, None)
    }

    fn params(&self) -> Vec<Param> {
        self.weights.params().collect()
    }
}
