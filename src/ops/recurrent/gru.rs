//! The GRU, in PyTorch's form: with a = what comes from the input and b = what comes from the state (biases included),
//! r = σ(a_r + b_r), z = σ(a_z + b_z), n = tanh(a_n + r · b_n), h' = n + z · (h − n). Gates stand in the order r, z, n.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{Direction, Sizes, cell_cases, cell_shape, each_share, expect, gpu, matrix, sequence_cases};
use super::{narrow, packed, store_state, weight_gradient, widen};
use crate::cpu::gemm::PackedFactor;
use crate::cpu::pool::Block;
use crate::cpu::simd::{MatMut, vectorize};
use crate::device::Stream;
use crate::dtype::{Float, Real};
use crate::ops::{Arg, Case, Cases, Op, Plan, SumTo, Values, run, same_float};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{Error, Result, Shape, dispatch};

/// One step: `gx` and `gh` `[B, 3H]` and h `[B, H]` to h' `[B, H]` and, for backward, r, z, n and b_n `[B, 4H]`.
#[derive(Clone, Copy, Debug)]
pub struct GruCell;

/// The gradients of [`GruCell`] by `gx`, `gh` and h. Inputs: dh', what forward kept, h.
#[derive(Clone, Copy, Debug)]
pub struct GruCellBackward;

/// A sequence: `xw [T, B, 3H]`, `h0 [B, H]`, `w_hh [3H, H]` and, if `bias`, `b_hh [3H]` to y `[T, B, H]` and, for backward, r, z, n and
/// b_n `[T, B, 4H]`. The last h is the last y (in reverse the first).
#[derive(Clone, Copy, Debug)]
pub struct Gru {
    /// Whether a fourth input, the recurrent bias, is given.
    pub bias: bool,
    /// Which way the sequence is read.
    pub direction: Direction,
}

/// The gradients of [`Gru`] by xw, by the sums of state and weights `[T, B, 3H]`, and by h0. Inputs: dy, `w_hh`, what forward
/// kept, y, h0.
#[derive(Clone, Copy, Debug, Default)]
pub struct GruBackward {
    /// Which way the sequence was read.
    pub direction: Direction,
}

/// The gates (in place of the sums from the input; b_n stays where it is) and the new state of a row.
#[inline(always)]
fn activate<A: Real>([r, z, n]: [&mut [A]; 3], [br, bz, bn]: [&[A]; 3], h: &mut [A]) {
    let count = h.len();
    let (r, z, n) = (&mut r[..count], &mut z[..count], &mut n[..count]);
    let (br, bz, bn) = (&br[..count], &bz[..count], &bn[..count]);
    for k in 0..count {
        r[k] = (r[k] + br[k]).sigmoid();
    }
    for k in 0..count {
        z[k] = (z[k] + bz[k]).sigmoid();
    }
    for k in 0..count {
        n[k] = Real::tanh(n[k] + r[k] * bn[k]);
    }
    for k in 0..count {
        h[k] = n[k] + z[k] * (h[k] - n[k]);
    }
}

#[inline(always)]
fn thirds<A>(row: &[A]) -> [&[A]; 3] {
    let (a, rest) = row.split_at(row.len() / 3);
    let (b, c) = rest.split_at(rest.len() / 2);
    [a, b, c]
}

/// What comes from the state.
enum StatePart<'a, T> {
    /// The state times these weights, and these biases where there are any.
    Weights(PackedFactor<T>, Option<&'a [T]>),
    /// It is given: a cell op.
    Given(&'a [T]),
}

/// The inputs of a pass, in row-major order.
struct Inputs<'a, T> {
    sizes: Sizes,
    direction: Direction,
    xw: &'a [T],
    from: StatePart<'a, T>,
    h0: &'a [T],
}

impl<T: Float> Inputs<'_, T> {
    /// What comes from the states `h` of rows `first..`.
    fn sums(&self, first: usize, h: &[T::Acc], sums: &mut [T::Acc]) {
        let width = 3 * self.sizes.hidden;
        match &self.from {
            StatePart::Given(given) => widen(&given[first * width..][..sums.len()], sums),
            StatePart::Weights(weights, bias) => {
                match bias {
                    Some(bias) => sums.chunks_exact_mut(width).for_each(|row| widen(bias, row)),
                    None => sums.fill(T::Acc::ZERO),
                }
                let rows = sums.len() / width;
                weights.add_product(h, &mut MatMut::new(sums, rows, width, width));
            }
        }
    }

    /// All steps for the rows of a share.
    fn forward(&self, first: usize, [y, kept]: [&mut MatMut<'_, T>; 2]) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = y.cols() / hidden;
        let mut block = Block::new(8 * rows * hidden * size_of::<T::Acc>())?;
        let (gates, rest) = block.typed_mut::<T::Acc>().split_at_mut(4 * rows * hidden);
        let (sums, h) = rest.split_at_mut(3 * rows * hidden);
        widen(self.sizes.rows(self.h0, 0, hidden, first, rows), h);
        for k in 0..steps {
            let t = self.direction.place(k, steps);
            self.sums(first, h, sums);
            let to = kept.row(t);
            match super::in_place(to) {
                Some(gates) => self.step(t, first, gates, sums, h),
                None => {
                    self.step(t, first, gates, sums, h);
                    narrow(gates, to);
                }
            }
            store_state(h, y.row(t));
        }
        Ok(())
    }

    /// The step at place `t`: leaves what is kept in `gates`.
    fn step(&self, t: usize, first: usize, gates: &mut [T::Acc], sums: &[T::Acc], h: &mut [T::Acc]) {
        let hidden = self.sizes.hidden;
        let xw = self.sizes.rows(self.xw, t, 3 * hidden, first, h.len() / hidden);
        vectorize(
            #[inline(always)]
            || {
                let rows = xw.chunks_exact(3 * hidden).zip(sums.chunks_exact(3 * hidden));
                let all = gates.chunks_exact_mut(4 * hidden).zip(h.chunks_exact_mut(hidden)).zip(rows);
                for ((gates, h), (xw, sums)) in all {
                    let [r, z, n, bn] = super::quarters(gates);
                    let [xr, xz, xn] = thirds(xw);
                    super::widen_here(xr, r);
                    super::widen_here(xz, z);
                    super::widen_here(xn, n);
                    let sums = thirds(sums);
                    activate([r, z, n], sums, h);
                    bn.copy_from_slice(sums[2]);
                }
            },
        );
    }
}

/// A row backwards: `gates` r, z, n, b_n become the gradients of the sums from the input (r, z, n) and of b_n; `dh` that of the
/// state before the step, without what goes through the sums.
#[inline(always)]
fn differentiate<A: Real>([r, z, n, bn]: [&mut [A]; 4], dh: &mut [A], before: &[A]) {
    let count = dh.len();
    let (r, z, n, bn) = (&mut r[..count], &mut z[..count], &mut n[..count], &mut bn[..count]);
    let before = &before[..count];
    for k in 0..count {
        let (d, update, fresh) = (dh[k], z[k], n[k]);
        n[k] = d * (A::ONE - update) * (A::ONE - fresh * fresh);
        z[k] = d * (before[k] - fresh) * (update * (A::ONE - update));
        dh[k] = d * update;
    }
    for k in 0..count {
        let (dn, reset) = (n[k], r[k]);
        r[k] = dn * bn[k] * (reset * (A::ONE - reset));
        bn[k] = dn * reset;
    }
}

/// The inputs of a backward pass, in row-major order.
struct Tape<'a, T> {
    sizes: Sizes,
    direction: Direction,
    dy: &'a [T],
    kept: &'a [T],
    /// None in a cell op, which has one step.
    y: Option<&'a [T]>,
    h0: &'a [T],
    /// None in a cell op.
    weights: Option<PackedFactor<T>>,
}

impl<T: Float> Tape<'_, T> {
    /// All steps backwards for the rows of a share.
    fn backward(&self, first: usize, [dxw, dsums, dh0]: [&mut MatMut<'_, T>; 3]) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = dh0.cols() / hidden;
        let mut block = Block::new(9 * rows * hidden * size_of::<T::Acc>())?;
        let (gates, rest) = block.typed_mut::<T::Acc>().split_at_mut(4 * rows * hidden);
        let (sums, rest) = rest.split_at_mut(3 * rows * hidden);
        let (dh, before) = rest.split_at_mut(rows * hidden);
        let at = |data, t, width| self.sizes.rows(data, t, width * hidden, first, rows);
        dh.fill(T::Acc::ZERO);
        for k in (0..steps).rev() {
            let t = self.direction.place(k, steps);
            let dy = at(self.dy, t, 1);
            let earlier = match self.y {
                Some(y) if k > 0 => at(y, self.direction.place(k - 1, steps), 1),
                _ => at(self.h0, 0, 1),
            };
            widen(at(self.kept, t, 4), gates);
            widen(earlier, before);
            let (dxw, dsums) = (dxw.row(t), dsums.row(t));
            vectorize(
                #[inline(always)]
                || {
                    super::add_here(dy, dh);
                    let states = dh.chunks_exact_mut(hidden).zip(before.chunks_exact(hidden));
                    let outs = dxw.chunks_exact_mut(3 * hidden).zip(dsums.chunks_exact_mut(3 * hidden));
                    let all = gates.chunks_exact_mut(4 * hidden).zip(sums.chunks_exact_mut(3 * hidden));
                    for (((gates, sums), (dh, before)), (dxw, dsums)) in all.zip(states).zip(outs) {
                        differentiate(super::quarters(gates), dh, before);
                        let (gx, bn) = gates.split_at(3 * hidden);
                        super::narrow_here(gx, dxw);
                        let (front, back) = dsums.split_at_mut(2 * hidden);
                        front.copy_from_slice(&dxw[..2 * hidden]);
                        super::narrow_here(bn, back);
                        super::widen_here(dsums, sums);
                    }
                },
            );
            if let Some(weights) = &self.weights {
                weights.add_product(sums, &mut MatMut::new(dh, rows, hidden, hidden));
            }
        }
        narrow(dh, dh0.row(0));
        Ok(())
    }
}

fn forward_body<T: Float>(tape: &Inputs<'_, T>, outputs: &mut [Out<'_>]) -> Result<()> {
    let [y, kept] = outputs else { return Err(Error::internal("two outputs")) };
    let Sizes { steps, hidden, .. } = tape.sizes;
    let shares = tape.sizes.parts(y.slice::<T>(), steps, hidden).into_iter();
    let shares = shares.zip(tape.sizes.parts(kept.slice::<T>(), steps, 4 * hidden));
    each_share(tape.sizes, shares, |first, (mut y, mut kept)| tape.forward(first, [&mut y, &mut kept]))
}

fn backward_body<T: Float>(tape: &Tape<'_, T>, outputs: &mut [Out<'_>]) -> Result<()> {
    let [dxw, dsums, dh0] = outputs else { return Err(Error::internal("three outputs")) };
    let Sizes { steps, hidden, .. } = tape.sizes;
    let shares = tape.sizes.parts(dxw.slice::<T>(), steps, 3 * hidden).into_iter();
    let shares = shares.zip(tape.sizes.parts(dsums.slice::<T>(), steps, 3 * hidden));
    let shares = shares.zip(tape.sizes.parts(dh0.slice::<T>(), 1, hidden));
    each_share(tape.sizes, shares, |first, ((mut dxw, mut dsums), mut dh0)| {
        tape.backward(first, [&mut dxw, &mut dsums, &mut dh0])
    })
}

/// A shape with `n` instead of `by` times the width.
fn wider(x: Meta, n: usize, by: usize) -> Meta {
    let last = x.shape.rank() - 1;
    x.with_shape(x.shape.with(last, x.shape[last] / by * n))
}

impl Op for GruCell {
    const NAME: &'static str = "gru_cell";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[2]).and_outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let gx = inputs[0];
        let state = cell_shape(Self::NAME, 3, &gx)?;
        expect(Self::NAME, "the projected state", &inputs[1], gx.shape)?;
        expect(Self::NAME, "the state", &inputs[2], state)?;
        Ok(Plan { outputs: vec![inputs[2], wider(gx, 4, 3)], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of_cell(&inputs[2]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut gx, mut gh, mut h) = (None, None, None);
            let tape = Inputs {
                sizes,
                direction: Direction::Forward,
                xw: packed::<T>(&inputs[0], &mut gx)?,
                from: StatePart::Given(packed::<T>(&inputs[1], &mut gh)?),
                h0: packed::<T>(&inputs[2], &mut h)?,
            };
            forward_body(&tape, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::gru_cell(stream, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let (kept, h) = (cx.output(1)?, cx.input(2)?);
        cx.run(GruCellBackward, &[dy, &kept, &h], &[0, 1, 2])
    }

    fn cases() -> Cases<Self> {
        cell_cases(GruCell, |batch, hidden| {
            vec![
                Arg::new(&[batch, 3 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, 3 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, hidden], Values::Normal(1.0)),
            ]
        })
    }
}

impl Op for GruCellBackward {
    const NAME: &'static str = "gru_cell_backward";
    const INPUTS: RangeInclusive<usize> = 3..=3;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let kept = inputs[1];
        let state = cell_shape(Self::NAME, 4, &kept)?;
        expect(Self::NAME, "the gradient of h'", &inputs[0], state)?;
        expect(Self::NAME, "the state", &inputs[2], state)?;
        let sums = wider(kept, 3, 4);
        Ok(Plan { outputs: vec![sums, sums, inputs[2]], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of_cell(&inputs[2]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut dy, mut kept, mut h) = (None, None, None);
            let tape = Tape {
                sizes,
                direction: Direction::Forward,
                dy: packed::<T>(&inputs[0], &mut dy)?,
                kept: packed::<T>(&inputs[1], &mut kept)?,
                y: None,
                h0: packed::<T>(&inputs[2], &mut h)?,
                weights: None,
            };
            backward_body(&tape, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::gru_cell_backward(stream, inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        cell_cases(GruCellBackward, |batch, hidden| {
            vec![
                Arg::constant(&[batch, hidden], Values::Normal(1.0)),
                Arg::constant(&[batch, 4 * hidden], Values::Uniform(0.05, 0.95)),
                Arg::constant(&[batch, hidden], Values::Normal(1.0)),
            ]
        })
    }
}

impl Op for Gru {
    const NAME: &'static str = "gru";
    const INPUTS: RangeInclusive<usize> = 3..=4;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[1, 2]).and_outputs(&[0, 1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        if inputs.len() != 3 + usize::from(self.bias) {
            let message = format!("{} inputs given to an op with bias: {}", inputs.len(), self.bias);
            return Err(Error::shape(Self::NAME, message));
        }
        let xw = inputs[0];
        let sizes = Sizes::infer(Self::NAME, 3, &xw, &inputs[2])?;
        expect(Self::NAME, "the first state", &inputs[1], sizes.state())?;
        if let Some(bias) = inputs.get(3) {
            expect(Self::NAME, "the recurrent bias", bias, Shape::from_dims(&[3 * sizes.hidden]))?;
        }
        let y = xw.with_shape(sizes.sequence(1));
        Ok(Plan { outputs: vec![y, xw.with_shape(sizes.sequence(4))], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of(&inputs[0], &inputs[2]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut xw, mut h0, mut b) = (None, None, None);
            let bias = match inputs.get(3) {
                Some(bias) => Some(packed::<T>(bias, &mut b)?),
                None => None,
            };
            let tape = Inputs {
                sizes,
                direction: self.direction,
                xw: packed::<T>(&inputs[0], &mut xw)?,
                from: StatePart::Weights(PackedFactor::new(matrix(&inputs[2]).t())?, bias),
                h0: packed::<T>(&inputs[1], &mut h0)?,
            };
            forward_body(&tape, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::gru(stream, self.direction, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let (weights, kept, y, h0) = (cx.input(2)?, cx.output(1)?, cx.output(0)?, cx.input(1)?);
        let op = GruBackward { direction: self.direction };
        let [dxw, dsums, dh0] = &run(op, &[dy, &weights, &kept, &y, &h0])?[..] else {
            return Err(Error::internal("three gradients"));
        };
        weight_gradient(cx, 2, self.direction, [dsums, &y, &h0])?;
        if self.bias {
            let [steps, batch, width] = [0, 1, 2].map(|d| dsums.dims()[d]);
            let rows = dsums.reshape([steps * batch, width])?;
            cx.run(SumTo { shape: Shape::from_dims(&[width]) }, &[&rows], &[3])?;
        }
        cx.give(0, dxw.clone())?;
        cx.give(1, dh0.clone())
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|number, direction, [steps, batch, hidden]| {
            let bias = number % 3 != 0;
            let mut inputs = vec![
                Arg::new(&[steps, batch, 3 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, hidden], Values::Normal(0.5)),
                Arg::new(&[3 * hidden, hidden], Values::Normal(0.3)),
            ];
            if bias {
                inputs.push(Arg::new(&[3 * hidden], Values::Normal(0.4)));
            }
            Case { op: Gru { bias, direction }, inputs }
        })
    }
}

impl Op for GruBackward {
    const NAME: &'static str = "gru_backward";
    const INPUTS: RangeInclusive<usize> = 5..=5;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let kept = inputs[2];
        if kept.shape.rank() != 3 {
            return Err(Error::shape(Self::NAME, format!("what forward kept is {}, not 3-d", kept.shape)));
        }
        let sums = wider(kept, 3, 4);
        let sizes = Sizes::infer(Self::NAME, 3, &sums, &inputs[1])?;
        expect(Self::NAME, "what forward kept", &kept, sizes.sequence(4))?;
        expect(Self::NAME, "the gradient of y", &inputs[0], sizes.sequence(1))?;
        expect(Self::NAME, "y", &inputs[3], sizes.sequence(1))?;
        expect(Self::NAME, "the first state", &inputs[4], sizes.state())?;
        Ok(Plan { outputs: vec![sums, sums, inputs[4]], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of(&inputs[2], &inputs[1]);
        if sizes.is_empty() {
            return Ok(());
        }
        dispatch!(float inputs[0].dtype(), T => {
            let (mut dy, mut kept, mut y, mut h0) = (None, None, None, None);
            let tape = Tape {
                sizes,
                direction: self.direction,
                dy: packed::<T>(&inputs[0], &mut dy)?,
                kept: packed::<T>(&inputs[2], &mut kept)?,
                y: Some(packed::<T>(&inputs[3], &mut y)?),
                h0: packed::<T>(&inputs[4], &mut h0)?,
                weights: Some(PackedFactor::new(matrix(&inputs[1]))?),
            };
            backward_body(&tape, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::gru_backward(stream, self.direction, inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|_, direction, [steps, batch, hidden]| Case {
            op: GruBackward { direction },
            inputs: vec![
                Arg::constant(&[steps, batch, hidden], Values::Normal(1.0)),
                Arg::constant(&[3 * hidden, hidden], Values::Normal(0.3)),
                Arg::constant(&[steps, batch, 4 * hidden], Values::Uniform(0.05, 0.95)),
                Arg::constant(&[steps, batch, hidden], Values::Normal(0.7)),
                Arg::constant(&[batch, hidden], Values::Normal(0.7)),
            ],
        })
    }
}

impl Tensor {
    /// A step of a GRU: `self` is what comes from the input and `gh` what comes from the state `h [B, H]`, both `[B, 3H]` in the
    /// order r, z, n, each with its bias. Returns h'.
    #[track_caller]
    pub fn gru_cell(&self, gh: &Tensor, h: &Tensor) -> Result<Tensor> {
        Ok(run(GruCell, &[self, gh, h])?.swap_remove(0))
    }

    /// A layer of a GRU in one direction: `self` `[T, B, 3H]` is what comes from the input, in the order r, z, n and with its
    /// bias; `h0 [B, H]`, `w_hh [3H, H]`, `b_hh [3H]`. Returns all h `[T, B, H]`. An error if T is 0.
    #[track_caller]
    pub fn gru(
        &self,
        h0: &Tensor,
        w_hh: &Tensor,
        b_hh: Option<&Tensor>,
        direction: Direction,
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [self, h0, w_hh].into_iter().chain(b_hh).collect();
        Ok(run(Gru { bias: b_hh.is_some(), direction }, &inputs)?.swap_remove(0))
    }
}
