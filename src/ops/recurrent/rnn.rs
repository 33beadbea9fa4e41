//! The plain recurrent network: h' = f(sums), with f = tanh or relu.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{
    CELLS, Direction, Recurrent, SEQUENCES, Sizes, TOLERANCE, each_share, expect, gpu, gradient, matrix,
    packed,
};
use super::{store_state, weight_gradient, widen};
use crate::cpu::activation::Activation;
use crate::cpu::gemm::PackedFactor;
use crate::cpu::pool::Block;
use crate::cpu::simd::{MatMut, vectorize};
use crate::device::Stream;
use crate::dtype::{Float, Real};
use crate::ops::{ActivationBackward, Arg, Case, Cases, Op, Plan, Values, run, run1, same_float};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, dispatch};

/// One step: f(`gx` + `gh`), all `[B, H]`.
///
/// Gradient: dy · f′ for both.
#[derive(Clone, Copy, Debug)]
pub struct RnnCell {
    /// f: tanh or relu.
    pub activation: Activation,
}

/// A sequence: `xw [T, B, H]`, `h0 [B, H]`, `w_hh [H, H]` to y `[T, B, H]`. The last h is the last y (in reverse the first).
#[derive(Clone, Copy, Debug)]
pub struct Rnn {
    /// f: tanh or relu.
    pub activation: Activation,
    /// Which way the sequence is read.
    pub direction: Direction,
}

/// The gradients of [`Rnn`] by xw and h0. Inputs: dy, `w_hh`, y.
#[derive(Clone, Copy, Debug)]
pub struct RnnBackward {
    /// f: tanh or relu.
    pub activation: Activation,
    /// Which way the sequence was read.
    pub direction: Direction,
}

/// Refuses all functions but tanh and relu, whose slopes follow from their values and which PyTorch has.
fn check(op: &'static str, activation: Activation) -> Result<()> {
    match activation {
        Activation::Tanh | Activation::Relu => Ok(()),
        other => Err(Error::argument(format!("{} is neither tanh nor relu", other.name())).with_op(op)),
    }
}

/// The inputs of a pass, in row-major order.
struct Inputs<'a, T> {
    sizes: Sizes,
    op: Rnn,
    xw: &'a [T],
    recurrent: Recurrent<'a, T>,
    /// Read only where there are weights.
    h0: Option<&'a [T]>,
}

impl<T: Float> Inputs<'_, T> {
    /// All steps for the rows of a share.
    fn forward(&self, first: usize, y: &mut MatMut<'_, T>) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = y.cols() / hidden;
        let mut block = Block::new(2 * rows * hidden * size_of::<T::Acc>())?;
        let (sums, h) = block.typed_mut::<T::Acc>().split_at_mut(rows * hidden);
        if let Some(h0) = self.h0 {
            widen(self.sizes.rows(h0, 0, hidden, first, rows), h);
        }
        for k in 0..steps {
            let t = self.op.direction.place(k, steps);
            widen(self.sizes.rows(self.xw, t, hidden, first, rows), sums);
            self.recurrent.add(first, hidden, h, sums);
            vectorize(
                #[inline(always)]
                || self.op.activation.apply_all(sums),
            );
            h.copy_from_slice(sums);
            store_state(h, y.row(t));
        }
        Ok(())
    }
}

fn forward_body<T: Float>(tape: &Inputs<'_, T>, y: &mut Out<'_>) -> Result<()> {
    let Sizes { steps, hidden, .. } = tape.sizes;
    let shares = tape.sizes.parts(y.slice::<T>(), steps, hidden).into_iter();
    each_share(tape.sizes, shares, |first, mut y| tape.forward(first, &mut y))
}

impl Op for RnnCell {
    const NAME: &'static str = "rnn_cell";
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        check(Self::NAME, self.activation)?;
        let state = super::cell_shape(Self::NAME, 1, &inputs[0])?;
        expect(Self::NAME, "the projected state", &inputs[1], state)?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of_cell(&inputs[0]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut gx, mut gh) = (None, None);
            let tape = Inputs {
                sizes,
                op: Rnn { activation: self.activation, direction: Direction::Forward },
                xw: packed::<T>(&inputs[0], &mut gx)?,
                recurrent: Recurrent::Given(packed::<T>(&inputs[1], &mut gh)?),
                h0: None,
            };
            forward_body(&tape, &mut outputs[0])
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::rnn_cell(stream, self.activation, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let sums = run1(ActivationBackward { activation: self.activation }, &[dy, &cx.output(0)?])?;
        cx.give(0, sums.clone())?;
        cx.give(1, sums)
    }

    fn cases() -> Cases<Self> {
        let mut list = Vec::new();
        for (batch, hidden) in CELLS {
            for activation in [Activation::Tanh, Activation::Relu] {
                list.push(Case { op: RnnCell { activation }, inputs: apart(activation, &[batch, hidden]) });
            }
        }
        Cases { dtypes: &DType::FLOATS, tolerance: TOLERANCE, list }
    }
}

/// What comes from the input and from the state; for relu so that the sum stays away from its kink.
fn apart(activation: Activation, shape: &[usize]) -> Vec<Arg> {
    match activation {
        Activation::Relu => vec![
            Arg::new(shape, Values::AwayFrom { points: &[0.0], gap: 0.5 }),
            Arg::new(shape, Values::Uniform(-0.4, 0.4)),
        ],
        _ => vec![Arg::new(shape, Values::Normal(1.0)), Arg::new(shape, Values::Normal(1.0))],
    }
}

impl Op for Rnn {
    const NAME: &'static str = "rnn";
    const INPUTS: RangeInclusive<usize> = 3..=3;

    fn saves(&self, needs: &[bool]) -> Saves {
        let saves = Saves::inputs(&[2]).and_outputs(&[0]);
        if needs[2] { saves.and_inputs(&[1]) } else { saves }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        check(Self::NAME, self.activation)?;
        let sizes = Sizes::infer(Self::NAME, 1, &inputs[0], &inputs[2])?;
        expect(Self::NAME, "the first state", &inputs[1], sizes.state())?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of(&inputs[0], &inputs[2]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut xw, mut h0) = (None, None);
            let tape = Inputs {
                sizes,
                op: *self,
                xw: packed::<T>(&inputs[0], &mut xw)?,
                recurrent: Recurrent::Weights(PackedFactor::new(matrix(&inputs[2]).t())?),
                h0: Some(packed::<T>(&inputs[1], &mut h0)?),
            };
            forward_body(&tape, &mut outputs[0])
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::rnn(stream, *self, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Rnn { activation, direction } = *self;
        let dy = gradient(&dys[0], cx.output_meta(0))?;
        let (weights, y) = (cx.input(2)?, cx.output(0)?);
        let [dxw, dh0] = &run(RnnBackward { activation, direction }, &[&dy, &weights, &y])?[..] else {
            return Err(Error::internal("two gradients"));
        };
        if cx.needs(2) {
            let h0 = cx.input(1)?;
            weight_gradient(cx, 2, direction, [dxw, &y, &h0])?;
        }
        cx.give(0, dxw.clone())?;
        cx.give(1, dh0.clone())
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|activation, direction, [steps, batch, hidden]| {
            let xw = apart(activation, &[steps, batch, hidden]).swap_remove(0);
            // Small enough for relu that what comes from the state moves no sum over the kink.
            let most = 0.1 / (1.0 + hidden as f64);
            let weights = match activation {
                Activation::Relu => Values::Uniform(-most, most),
                _ => Values::Normal(0.4),
            };
            let inputs = vec![
                xw,
                Arg::new(&[batch, hidden], Values::Uniform(-1.0, 1.0)),
                Arg::new(&[hidden, hidden], weights),
            ];
            Case { op: Rnn { activation, direction }, inputs }
        })
    }
}

/// The cases of a sequence op: `case(activation, direction, [steps, batch, hidden])`, with each activation.
fn sequence_cases<O>(case: impl Fn(Activation, Direction, [usize; 3]) -> Case<O>) -> Cases<O> {
    let mut list = Vec::new();
    for (number, &sizes) in SEQUENCES.iter().enumerate() {
        for (other, activation) in [Activation::Tanh, Activation::Relu].into_iter().enumerate() {
            list.push(case(activation, Direction::ALL[(number + other) % 2], sizes));
        }
    }
    Cases { dtypes: &DType::FLOATS, tolerance: TOLERANCE, list }
}

/// The inputs of a backward pass, in row-major order.
struct Tape<'a, T> {
    sizes: Sizes,
    op: RnnBackward,
    dy: &'a [T],
    weights: PackedFactor<T>,
    y: &'a [T],
}

impl<T: Float> Tape<'_, T> {
    /// All steps backwards for the rows of a share.
    fn backward(&self, first: usize, dxw: &mut MatMut<'_, T>, dh0: &mut MatMut<'_, T>) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = dh0.cols() / hidden;
        let mut block = Block::new(2 * rows * hidden * size_of::<T::Acc>())?;
        let (dh, sums) = block.typed_mut::<T::Acc>().split_at_mut(rows * hidden);
        dh.fill(T::Acc::ZERO);
        for k in (0..steps).rev() {
            let t = self.op.direction.place(k, steps);
            let (dy, y) = (
                self.sizes.rows(self.dy, t, hidden, first, rows),
                self.sizes.rows(self.y, t, hidden, first, rows),
            );
            let relu = self.op.activation == Activation::Relu;
            vectorize(
                #[inline(always)]
                || {
                    let all = sums.iter_mut().zip(&*dh).zip(dy.iter().zip(y));
                    if relu {
                        all.for_each(|((s, &dh), (dy, y))| {
                            *s = Activation::Relu.backward(dh + dy.to_acc(), y.to_acc());
                        });
                    } else {
                        all.for_each(|((s, &dh), (dy, y))| {
                            *s = Activation::Tanh.backward(dh + dy.to_acc(), y.to_acc());
                        });
                    }
                },
            );
            store_state(sums, dxw.row(t));
            dh.fill(T::Acc::ZERO);
            self.weights.add_product(sums, &mut MatMut::new(dh, rows, hidden, hidden));
        }
        super::narrow(dh, dh0.row(0));
        Ok(())
    }
}

impl Op for RnnBackward {
    const NAME: &'static str = "rnn_backward";
    const INPUTS: RangeInclusive<usize> = 3..=3;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        check(Self::NAME, self.activation)?;
        let y = inputs[2];
        let sizes = Sizes::infer(Self::NAME, 1, &y, &inputs[1])?;
        expect(Self::NAME, "the gradient of y", &inputs[0], sizes.sequence(1))?;
        Ok(Plan { outputs: vec![y, y.with_shape(sizes.state())], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of(&inputs[2], &inputs[1]);
        let [dxw, dh0] = outputs else { return Err(Error::internal("two outputs")) };
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut dy, mut y) = (None, None);
            let tape = Tape {
                sizes,
                op: *self,
                dy: packed::<T>(&inputs[0], &mut dy)?,
                weights: PackedFactor::new(matrix(&inputs[1]))?,
                y: packed::<T>(&inputs[2], &mut y)?,
            };
            let shares = sizes.parts(dxw.slice::<T>(), sizes.steps, sizes.hidden).into_iter();
            let shares = shares.zip(sizes.parts(dh0.slice::<T>(), 1, sizes.hidden));
            each_share(sizes, shares, |first, (mut dxw, mut dh0)| tape.backward(first, &mut dxw, &mut dh0))
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::rnn_backward(stream, *self, inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|activation, direction, [steps, batch, hidden]| Case {
            op: RnnBackward { activation, direction },
            inputs: vec![
                Arg::constant(&[steps, batch, hidden], Values::Normal(1.0)),
                Arg::constant(&[hidden, hidden], Values::Normal(0.4)),
                Arg::constant(&[steps, batch, hidden], Values::Uniform(-0.95, 0.95)),
            ],
        })
    }
}

impl Tensor {
    /// A step of a plain recurrent network: `activation` (tanh or relu) of what comes from the input, `self`, and what comes
    /// from the state, `gh`, both `[B, H]`.
    #[track_caller]
    pub fn rnn_cell(&self, gh: &Tensor, activation: Activation) -> Result<Tensor> {
        run1(RnnCell { activation }, &[self, gh])
    }

    /// A layer of a plain recurrent network in one direction: `self` `[T, B, H]` is what comes from the input, with all biases;
    /// `h0 [B, H]`, `w_hh [H, H]`, `activation` tanh or relu. Returns all h `[T, B, H]`. An error if T is 0.
    #[track_caller]
    pub fn rnn(
        &self,
        h0: &Tensor,
        w_hh: &Tensor,
        activation: Activation,
        direction: Direction,
    ) -> Result<Tensor> {
        run1(Rnn { activation, direction }, &[self, h0, w_hh])
    }
}
