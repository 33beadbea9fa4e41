//! Recurrent layers over whole sequences: PyTorch's `RNN`, `LSTM` and `GRU`, with its parameter names, layouts and defaults.
//!
//! Sequences are `[T, B, features]`, or `[B, T, features]` if `batch_first`. States are `[layers · directions, B, H]`: layer after
//! layer, of each the forward direction first. Refused: sequences of length 0.

#![forbid(unsafe_code)]

use super::{Activation, Cx, Init, Module, Scope};
use crate::ops::Direction;
use crate::{Error, Param, Result, Tensor};

/// The shape of a recurrent network; the default is PyTorch's: one layer, one direction, biases, no dropout, `[T, B, features]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecurrentOptions {
    /// Layers, each of which reads what the one before it puts out.
    pub num_layers: usize,
    /// Whether a second network reads each layer's input from its end; outputs stand side by side.
    pub bidirectional: bool,
    /// The probability with which elements are dropped between layers while training.
    pub dropout: f64,
    /// Whether there are biases.
    pub bias: bool,
    /// Whether sequences are `[B, T, features]`.
    pub batch_first: bool,
}

impl Default for RecurrentOptions {
    fn default() -> RecurrentOptions {
        RecurrentOptions { num_layers: 1, bidirectional: false, dropout: 0.0, bias: true, batch_first: false }
    }
}

/// The parameters of a layer in one direction.
#[derive(Clone)]
pub(super) struct Weights {
    pub(super) ih: Param,
    pub(super) hh: Param,
    pub(super) biases: Option<[Param; 2]>,
}

impl Weights {
    /// Weights `[gates · hidden, inputs]` and `[gates · hidden, hidden]`, biases `[gates · hidden]`, all from U(−1/√hidden, 1/√hidden).
    pub(super) fn new(
        scope: &Scope,
        suffix: &str,
        [gates, inputs, hidden]: [usize; 3],
        bias: bool,
    ) -> Result<Weights> {
        if hidden == 0 || inputs == 0 {
            return Err(Error::argument(format!(
                "a recurrent layer of {inputs} inputs and {hidden} outputs"
            )));
        }
        let rows = gates.checked_mul(hidden).ok_or_else(|| Error::argument("the hidden size overflows"))?;
        let bound = 1.0 / (hidden as f64).sqrt();
        let init = Init::Uniform { low: -bound, high: bound };
        let name = |what: &str| format!("{what}{suffix}");
        let ih = scope.param(&name("weight_ih"), [rows, inputs], init)?;
        let hh = scope.param(&name("weight_hh"), [rows, hidden], init)?;
        let biases = match bias {
            true => {
                Some([scope.param(&name("bias_ih"), rows, init)?, scope.param(&name("bias_hh"), rows, init)?])
            }
            false => None,
        };
        Ok(Weights { ih, hh, biases })
    }

    pub(super) fn params(&self) -> impl Iterator<Item = Param> + '_ {
        [&self.ih, &self.hh].into_iter().chain(self.biases.iter().flatten()).cloned()
    }

    /// The biases of both sides, or none.
    pub(super) fn bias_values(&self) -> Result<[Option<Tensor>; 2]> {
        match &self.biases {
            Some([ih, hh]) => Ok([Some(ih.get()?), Some(hh.get()?)]),
            None => Ok([None, None]),
        }
    }

    /// What comes from the input, with the biases of both sides where they may be added together.
    #[track_caller]
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let bias = match &self.biases {
            Some([ih, hh]) => Some(ih.get()?.add(&hh.get()?)?),
            None => None,
        };
        x.linear(&self.ih.get()?, bias.as_ref(), Activation::Identity)
    }
}

/// A stack of layers.
#[derive(Clone)]
struct Stack {
    /// Layer after layer, of each the forward direction first.
    weights: Vec<Weights>,
    options: RecurrentOptions,
    inputs: usize,
    hidden: usize,
}

impl Stack {
    fn new(
        scope: &Scope,
        gates: usize,
        inputs: usize,
        hidden: usize,
        options: RecurrentOptions,
    ) -> Result<Stack> {
        let RecurrentOptions { num_layers, bidirectional, dropout, bias, .. } = options;
        if num_layers == 0 {
            return Err(Error::argument("a recurrent network of 0 layers"));
        }
        if !(0.0..=1.0).contains(&dropout) {
            return Err(Error::argument(format!("dropout probability {dropout} is not in [0, 1]")));
        }
        let directions = if bidirectional { 2 } else { 1 };
        let Some(deeper) = hidden.checked_mul(directions) else {
            return Err(Error::argument(format!("{hidden} hidden elements are too many")));
        };
        let mut weights = Vec::new();
        for layer in 0..num_layers {
            let width = if layer == 0 { inputs } else { deeper };
            for reverse in ["", "_reverse"].iter().take(directions) {
                let suffix = format!("_l{layer}{reverse}");
                weights.push(Weights::new(scope, &suffix, [gates, width, hidden], bias)?);
            }
        }
        Ok(Stack { weights, options, inputs, hidden })
    }

    fn directions(&self) -> usize {
        if self.options.bidirectional { 2 } else { 1 }
    }

    /// Checks the input and brings it to `[T, B, features]`.
    #[track_caller]
    fn enter(&self, op: &'static str, x: &Tensor) -> Result<Tensor> {
        if x.rank() != 3 || x.dims()[2] != self.inputs {
            let order = if self.options.batch_first { "[B, T" } else { "[T, B" };
            let message = format!("the input is {}, expected {order}, {}]", x.shape(), self.inputs);
            return Err(Error::shape(op, message));
        }
        let x = if self.options.batch_first { x.transpose(0, 1)? } else { x.clone() };
        if x.dims()[0] == 0 {
            return Err(Error::shape(op, "a sequence of length 0 has no last state"));
        }
        x.contiguous()
    }

    /// Brings an output to the order of the input.
    #[track_caller]
    fn leave(&self, y: &Tensor) -> Result<Tensor> {
        if self.options.batch_first { y.transpose(0, 1) } else { Ok(y.clone()) }
    }

    /// Checks a given state.
    fn expect_state(&self, op: &'static str, what: &str, x: &Tensor, state: &Tensor) -> Result<()> {
        let expected = [self.weights.len(), x.dims()[1], self.hidden];
        if state.dims() == expected {
            return Ok(());
        }
        let message =
            format!("{what} is {}, expected {expected:?} = [layers · directions, B, H]", state.shape());
        Err(Error::shape(op, message))
    }

    /// All layers from `x [T, B, features]`: `run(number, weights, direction, x)` is one layer in one direction.
    #[track_caller]
    fn forward(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        mut run: impl FnMut(usize, &Weights, Direction, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let directions = self.directions();
        let mut x = x.clone();
        for (layer, weights) in self.weights.chunks_exact(directions).enumerate() {
            if layer > 0 && self.options.dropout > 0.0 {
                // With the batch in front, so that an element's mask follows from its place in the whole batch.
                let dropped = cx.dropout(&x.transpose(0, 1)?, self.options.dropout)?;
                x = dropped.transpose(0, 1)?.contiguous()?;
            }
            let outputs = weights.iter().zip(Direction::ALL).enumerate();
            let outputs = outputs.map(|(k, (w, direction))| run(layer * directions + k, w, direction, &x));
            let outputs = outputs.collect::<Result<Vec<_>>>()?;
            x = match &outputs[..] {
                [one] => one.clone(),
                both => Tensor::cat(&both.iter().collect::<Vec<_>>(), 2)?,
            };
        }
        Ok(x)
    }

    /// A whole network whose only state is h: `step(x, weights, h0, direction)` is one layer in one direction. `last_states` gets
    /// the state after the last step of each.
    #[track_caller]
    fn run(
        &self,
        op: &'static str,
        cx: &mut Cx,
        x: &Tensor,
        h0: Option<&Tensor>,
        mut last_states: Option<&mut Vec<Tensor>>,
        step: impl Fn(&Tensor, &Weights, &Tensor, Direction) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.enter(op, x)?;
        h0.map_or(Ok(()), |given| self.expect_state(op, "h0", &x, given))?;
        let y = self.forward(cx, &x, |number, weights, direction, x| {
            let y = step(x, weights, &state(h0, number, x, self.hidden)?, direction)?;
            if let Some(states) = &mut last_states {
                states.push(last(&y, direction)?);
            }
            Ok(y)
        })?;
        self.leave(&y)
    }

    fn params(&self) -> Vec<Param> {
        self.weights.iter().flat_map(Weights::params).collect()
    }
}

/// State number `number` of those given, or zeros.
#[track_caller]
fn state(given: Option<&Tensor>, number: usize, x: &Tensor, hidden: usize) -> Result<Tensor> {
    match given {
        Some(states) => states.select(0, number),
        None => Tensor::zeros([x.dims()[1], hidden], x.dtype(), x.device()),
    }
}

/// The state after the last step of a direction.
#[track_caller]
fn last(y: &Tensor, direction: Direction) -> Result<Tensor> {
    match direction {
        Direction::Forward => y.select(0, y.dims()[0] - 1),
        Direction::Reverse => y.select(0, 0),
    }
}

#[track_caller]
fn stack(states: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(&states.iter().collect::<Vec<_>>(), 0)
}

/// A long short-term memory: `x [T, B, inputs]` to `[T, B, directions · hidden]`.
///
/// Parameters of layer k: `weight_ih_lk [4 · hidden, inputs]`, `weight_hh_lk [4 · hidden, hidden]`, `bias_ih_lk` and `bias_hh_lk`
/// `[4 · hidden]`, with gates in the order i, f, g, o, and the same with `_reverse`; all drawn from U(−1/√hidden, 1/√hidden).
/// A single sequence `[T, inputs]` is refused, here and in the other recurrent layers: call `unsqueeze(1)` first.
///
/// ```
/// use warpsmith::nn::{Cx, LSTM, RecurrentOptions, Scope};
/// use warpsmith::{Arena, DType, Device, Tensor};
/// let arena = Arena::new(DType::F32, Device::cpu())?;
/// let lstm = LSTM::new(&Scope::new(&arena, 1), 5, 8, RecurrentOptions { num_layers: 2, ..RecurrentOptions::default() })?;
/// let x = Tensor::zeros([7, 3, 5], DType::F32, Device::cpu())?;
/// let (y, (h, c)) = lstm.forward_with_state(&mut Cx::eval(), &x, None)?;
/// assert_eq!((y.dims(), h.dims(), c.dims()), (&[7, 3, 8][..], &[2, 3, 8][..], &[2, 3, 8][..]));
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone)]
pub struct LSTM {
    stack: Stack,
}

impl LSTM {
    /// Errors on sizes of 0 and a dropout outside of [0, 1].
    pub fn new(
        scope: &Scope,
        input_size: usize,
        hidden_size: usize,
        options: RecurrentOptions,
    ) -> Result<LSTM> {
        Ok(LSTM { stack: Stack::new(scope, 4, input_size, hidden_size, options)? })
    }

    /// The outputs of all steps, and h and c after the last, `[layers · directions, B, H]` each; from zero states, if none are given.
    #[track_caller]
    pub fn forward_with_state(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        states: Option<(&Tensor, &Tensor)>,
    ) -> Result<(Tensor, (Tensor, Tensor))> {
        let (mut hs, mut cs) = (Vec::new(), Vec::new());
        let y = self.run(cx, x, states, Some((&mut hs, &mut cs)))?;
        Ok((y, (stack(&hs)?, stack(&cs)?)))
    }

    /// `last_states` gets h and c after the last step of each layer and direction.
    #[track_caller]
    fn run(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        states: Option<(&Tensor, &Tensor)>,
        mut last_states: Option<(&mut Vec<Tensor>, &mut Vec<Tensor>)>,
    ) -> Result<Tensor> {
        let Stack { hidden, .. } = self.stack;
        let x = self.stack.enter("lstm", x)?;
        let (h0, c0) = states.unzip();
        for (what, given) in [("h0", h0), ("c0", c0)] {
            given.map_or(Ok(()), |given| self.stack.expect_state("lstm", what, &x, given))?;
        }
        let y = self.stack.forward(cx, &x, |number, weights, direction, x| {
            let (h0, c0) = (state(h0, number, x, hidden)?, state(c0, number, x, hidden)?);
            let (y, c) = weights.project(x)?.lstm(&h0, &c0, &weights.hh.get()?, direction)?;
            if let Some((hs, cs)) = &mut last_states {
                hs.push(last(&y, direction)?);
                cs.push(c);
            }
            Ok(y)
        })?;
        self.stack.leave(&y)
    }
}

impl Module for LSTM {
    /// The outputs of all steps, from zero states.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.run(cx, x, None, None)
    }

    fn params(&self) -> Vec<Param> {
        self.stack.params()
    }
}

/// A gated recurrent unit: `x [T, B, inputs]` to `[T, B, directions · hidden]`.
///
/// The recurrent bias of the candidate stands inside the reset gate. Parameters as those of [`LSTM`] with three gates in the order
/// r, z, n.
#[derive(Clone)]
pub struct GRU {
    stack: Stack,
}

impl GRU {
    /// Errors on sizes of 0 and a dropout outside of [0, 1].
    pub fn new(
        scope: &Scope,
        input_size: usize,
        hidden_size: usize,
        options: RecurrentOptions,
    ) -> Result<GRU> {
        Ok(GRU { stack: Stack::new(scope, 3, input_size, hidden_size, options)? })
    }

    /// The outputs of all steps, and h after the last, `[layers · directions, B, H]`; from a zero state, if none is given.
    #[track_caller]
    pub fn forward_with_state(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        state: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let mut hs = Vec::new();
        let y = self.run(cx, x, state, Some(&mut hs))?;
        Ok((y, stack(&hs)?))
    }

    #[track_caller]
    fn run(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        h0: Option<&Tensor>,
        last_states: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        self.stack.run("gru", cx, x, h0, last_states, |x, weights, h0, direction| {
            let [ih, hh] = weights.bias_values()?;
            let xw = x.linear(&weights.ih.get()?, ih.as_ref(), Activation::Identity)?;
            xw.gru(h0, &weights.hh.get()?, hh.as_ref(), direction)
        })
    }
}

impl Module for GRU {
    /// The outputs of all steps, from a zero state.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.run(cx, x, None, None)
    }

    fn params(&self) -> Vec<Param> {
        self.stack.params()
    }
}

/// A plain recurrent network, h' = tanh(W_ih x + b_ih + W_hh h + b_hh): `x [T, B, inputs]` to `[T, B, directions · hidden]`.
///
/// Parameters as those of [`LSTM`] with one gate.
#[derive(Clone)]
pub struct RNN {
    stack: Stack,
    activation: Activation,
}

impl RNN {
    /// Errors on sizes of 0 and a dropout outside of [0, 1].
    pub fn new(
        scope: &Scope,
        input_size: usize,
        hidden_size: usize,
        options: RecurrentOptions,
    ) -> Result<RNN> {
        Ok(RNN {
            stack: Stack::new(scope, 1, input_size, hidden_size, options)?,
            activation: Activation::Tanh,
        })
    }

    /// Takes `activation` for tanh: tanh or relu, others are an error.
    pub fn with_nonlinearity(mut self, activation: Activation) -> Result<RNN> {
        self.activation = nonlinearity(activation)?;
        Ok(self)
    }

    /// The outputs of all steps, and h after the last, `[layers · directions, B, H]`; from a zero state, if none is given.
    #[track_caller]
    pub fn forward_with_state(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        state: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let mut hs = Vec::new();
        let y = self.run(cx, x, state, Some(&mut hs))?;
        Ok((y, stack(&hs)?))
    }

    #[track_caller]
    fn run(
        &self,
        cx: &mut Cx,
        x: &Tensor,
        h0: Option<&Tensor>,
        last_states: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        self.stack.run("rnn", cx, x, h0, last_states, |x, weights, h0, direction| {
            weights.project(x)?.rnn(h0, &weights.hh.get()?, self.activation, direction)
        })
    }
}

/// tanh and relu; an error for others.
pub(super) fn nonlinearity(activation: Activation) -> Result<Activation> {
    match activation {
        Activation::Tanh | Activation::Relu => Ok(activation),
        other => Err(Error::argument(format!("the nonlinearity is {}, not tanh or relu", other.name()))),
    }
}

impl Module for RNN {
    /// The outputs of all steps, from a zero state.
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        self.run(cx, x, None, None)
    }

    fn params(&self) -> Vec<Param> {
        self.stack.params()
    }
}
