//! The LSTM: c' = f · c + i · g and h' = o · tanh c', with i, f, o = σ and g = tanh of the sums, in this order: i, f, g, o.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::{
    Direction, Recurrent, Sizes, cell_cases, cell_shape, each_share, expect, gpu, gradient, in_place, matrix,
    narrow, packed, sequence_cases, store_state, weight_gradient, widen,
};
use crate::cpu::gemm::PackedFactor;
use crate::cpu::pool::Block;
use crate::cpu::simd::{MatMut, vectorize};
use crate::device::Stream;
use crate::dtype::{Float, Real};
use crate::ops::{Arg, Case, Cases, Op, Plan, Values, run, same_float};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{Error, Result, dispatch};

/// One step: `gx` and `gh` `[B, 4H]`, whose sum are the gates before their activation, and c `[B, H]`, to h' and c' `[B, H]` and,
/// for backward, the activated gates `[B, 4H]`.
///
/// Gradients: those of `gx` and `gh` are one and the same.
#[derive(Clone, Copy, Debug)]
pub struct LstmCell;

/// The gradients of [`LstmCell`] by `gx` (or `gh`) and c. Inputs: dh', dc', the activated gates, c, c'.
#[derive(Clone, Copy, Debug)]
pub struct LstmCellBackward;

/// A sequence: `xw [T, B, 4H]`, `h0` and `c0` `[B, H]`, `w_hh [4H, H]` to y `[T, B, H]` and the last c `[B, H]`, and, for backward,
/// the activated gates `[T, B, 4H]` and the cell states `[T, B, H]`. The last h is the last y (in reverse the first).
#[derive(Clone, Copy, Debug, Default)]
pub struct Lstm {
    /// Which way the sequence is read.
    pub direction: Direction,
}

/// The gradients of [`Lstm`] by xw, h0 and c0. Inputs: dy, the gradient of the last c, `w_hh`, gates, cell states, c0.
#[derive(Clone, Copy, Debug, Default)]
pub struct LstmBackward {
    /// Which way the sequence was read.
    pub direction: Direction,
}

/// The gates and the new state of a row, in place.
///
/// Here and in the backward a loop touches few slices, so that the compiler's checks that they do not overlap stay few enough
/// for it to vectorise at all.
#[inline(always)]
fn activate<A: Real>(gates: &mut [A], c: &mut [A], h: &mut [A]) {
    let n = h.len();
    let [i, f, g, o] = super::quarters(gates);
    let (i, f, g, o, c) = (&mut i[..n], &mut f[..n], &mut g[..n], &mut o[..n], &mut c[..n]);
    super::sigmoids(i);
    super::sigmoids(f);
    super::sigmoids(o);
    super::tanhs(g);
    for k in 0..n {
        c[k] = f[k] * c[k] + i[k] * g[k];
    }
    for k in 0..n {
        h[k] = o[k] * Real::tanh(c[k]);
    }
}

/// The inputs of a pass, in row-major order.
struct Inputs<'a, T> {
    sizes: Sizes,
    direction: Direction,
    xw: &'a [T],
    recurrent: Recurrent<'a, T>,
    /// Read only where there are weights.
    h0: Option<&'a [T]>,
    c0: &'a [T],
}

impl<T: Float> Inputs<'_, T> {
    /// All steps for the rows of a share. `cells` is none in a cell op.
    fn forward(
        &self,
        first: usize,
        [y, last, gates]: [&mut MatMut<'_, T>; 3],
        mut cells: Option<MatMut<'_, T>>,
    ) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = y.cols() / hidden;
        let mut block = Block::new(6 * rows * hidden * size_of::<T::Acc>())?;
        let (sums, states) = block.typed_mut::<T::Acc>().split_at_mut(4 * rows * hidden);
        let (h, c) = states.split_at_mut(rows * hidden);
        if let Some(h0) = self.h0 {
            widen(self.sizes.rows(h0, 0, hidden, first, rows), h);
        }
        widen(self.sizes.rows(self.c0, 0, hidden, first, rows), c);
        for k in 0..steps {
            let t = self.direction.place(k, steps);
            let to = gates.row(t);
            match in_place(to) {
                Some(sums) => self.step(t, first, sums, c, h),
                None => {
                    self.step(t, first, sums, c, h);
                    narrow(sums, to);
                }
            }
            store_state(h, y.row(t));
            if let Some(cells) = &mut cells {
                narrow(c, cells.row(t));
            }
        }
        narrow(c, last.row(0));
        Ok(())
    }

    /// The step at place `t`: leaves the activated gates in `sums`.
    fn step(&self, t: usize, first: usize, sums: &mut [T::Acc], c: &mut [T::Acc], h: &mut [T::Acc]) {
        let hidden = self.sizes.hidden;
        widen(self.sizes.rows(self.xw, t, 4 * hidden, first, h.len() / hidden), sums);
        self.recurrent.add(first, 4 * hidden, h, sums);
        vectorize(
            #[inline(always)]
            || {
                let states = c.chunks_exact_mut(hidden).zip(h.chunks_exact_mut(hidden));
                for (row, (c, h)) in sums.chunks_exact_mut(4 * hidden).zip(states) {
                    activate(row, c, h);
                }
            },
        );
    }
}

/// The sums' gradient of a row (in place of the gates) and that of the cell state before the step. `tanh`: c at first.
#[inline(always)]
fn differentiate<T: Float>(
    gates: &mut [T::Acc],
    dh: &[T::Acc],
    dc: &mut [T::Acc],
    tanh: &mut [T::Acc],
    before: &[T],
) {
    let one = T::Acc::ONE;
    let n = dh.len();
    let [i, f, g, o] = super::quarters(gates);
    let (i, f, g, o) = (&mut i[..n], &mut f[..n], &mut g[..n], &mut o[..n]);
    let (dc, tanh, before) = (&mut dc[..n], &mut tanh[..n], &before[..n]);
    super::tanhs(tanh);
    for k in 0..n {
        dc[k] += dh[k] * o[k] * (one - tanh[k] * tanh[k]);
    }
    for k in 0..n {
        o[k] = dh[k] * tanh[k] * (o[k] * (one - o[k]));
    }
    for k in 0..n {
        let (input, candidate) = (i[k], g[k]);
        i[k] = dc[k] * candidate * (input * (one - input));
        g[k] = dc[k] * input * (one - candidate * candidate);
    }
    for k in 0..n {
        let (forget, cell) = (f[k], dc[k]);
        f[k] = cell * before[k].to_acc() * (forget * (one - forget));
        dc[k] = cell * forget;
    }
}

/// The inputs of a backward pass, in row-major order.
struct Tape<'a, T> {
    sizes: Sizes,
    direction: Direction,
    dy: &'a [T],
    last: &'a [T],
    gates: &'a [T],
    cells: &'a [T],
    c0: &'a [T],
    /// None in a cell op.
    weights: Option<PackedFactor<T>>,
}

impl<T: Float> Tape<'_, T> {
    /// All steps backwards for the rows of a share. `dh0` is none in a cell op.
    fn backward(
        &self,
        first: usize,
        [dxw, dc0]: [&mut MatMut<'_, T>; 2],
        dh0: Option<MatMut<'_, T>>,
    ) -> Result<()> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let rows = dc0.cols() / hidden;
        let mut block = Block::new(7 * rows * hidden * size_of::<T::Acc>())?;
        let (sums, states) = block.typed_mut::<T::Acc>().split_at_mut(4 * rows * hidden);
        let (dh, states) = states.split_at_mut(rows * hidden);
        let (dc, tanh) = states.split_at_mut(rows * hidden);
        dh.fill(T::Acc::ZERO);
        widen(self.sizes.rows(self.last, 0, hidden, first, rows), dc);
        for k in (0..steps).rev() {
            let to = dxw.row(self.direction.place(k, steps));
            match in_place(to) {
                Some(sums) => {
                    self.step(k, first, sums, [dh, dc, tanh]);
                    self.through(sums, dh);
                }
                None => {
                    self.step(k, first, sums, [dh, dc, tanh]);
                    store_state(sums, to);
                    self.through(sums, dh);
                }
            }
        }
        narrow(dc, dc0.row(0));
        if let Some(mut dh0) = dh0 {
            narrow(dh, dh0.row(0));
        }
        Ok(())
    }

    /// Step number `k` backwards: leaves the gradient of its sums in `sums`.
    fn step(&self, k: usize, first: usize, sums: &mut [T::Acc], [dh, dc, tanh]: [&mut [T::Acc]; 3]) {
        let Sizes { steps, hidden, .. } = self.sizes;
        let at = |data, t, width| self.sizes.rows(data, t, width * hidden, first, dh.len() / hidden);
        let t = self.direction.place(k, steps);
        let before = match k {
            0 => at(self.c0, 0, 1),
            _ => at(self.cells, self.direction.place(k - 1, steps), 1),
        };
        let dy = at(self.dy, t, 1);
        widen(at(self.gates, t, 4), sums);
        widen(at(self.cells, t, 1), tanh);
        vectorize(
            #[inline(always)]
            || {
                super::add_here(dy, dh);
                let states = tanh.chunks_exact_mut(hidden).zip(before.chunks_exact(hidden));
                let grads = dh.chunks_exact(hidden).zip(dc.chunks_exact_mut(hidden));
                for ((row, (dh, dc)), (tanh, before)) in
                    sums.chunks_exact_mut(4 * hidden).zip(grads).zip(states)
                {
                    differentiate(row, dh, dc, tanh, before);
                }
            },
        );
    }

    /// The gradient of the state before from that of the sums.
    fn through(&self, sums: &[T::Acc], dh: &mut [T::Acc]) {
        if let Some(weights) = &self.weights {
            let hidden = self.sizes.hidden;
            let rows = dh.len() / hidden;
            dh.fill(T::Acc::ZERO);
            weights.add_product(sums, &mut MatMut::new(dh, rows, hidden, hidden));
        }
    }
}

impl LstmCell {
    fn body<T: Float>(inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sizes = Sizes::of_cell(&inputs[2]);
        let [h, c, gates] = outputs else { return Err(Error::internal("three outputs")) };
        if sizes.is_empty() {
            return Ok(());
        }
        let mut copies = [const { None }; 3];
        let [gx, gh, c0] = &mut copies;
        let tape = Inputs {
            sizes,
            direction: Direction::Forward,
            xw: packed::<T>(&inputs[0], gx)?,
            recurrent: Recurrent::Given(packed::<T>(&inputs[1], gh)?),
            h0: None,
            c0: packed::<T>(&inputs[2], c0)?,
        };
        let hidden = sizes.hidden;
        let shares = sizes.parts(h.slice::<T>(), 1, hidden).into_iter();
        let shares = shares.zip(sizes.parts(c.slice::<T>(), 1, hidden));
        let shares = shares.zip(sizes.parts(gates.slice::<T>(), 1, 4 * hidden));
        each_share(sizes, shares, |first, ((mut h, mut c), mut gates)| {
            tape.forward(first, [&mut h, &mut c, &mut gates], None)
        })
    }
}

impl Op for LstmCell {
    const NAME: &'static str = "lstm_cell";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[2]).and_outputs(&[1, 2])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let gx = inputs[0];
        let state = cell_shape(Self::NAME, 4, &gx)?;
        expect(Self::NAME, "the projected state", &inputs[1], gx.shape)?;
        expect(Self::NAME, "the cell state", &inputs[2], state)?;
        Ok(Plan { outputs: vec![inputs[2], inputs[2], gx], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => LstmCell::body::<T>(inputs, outputs), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::lstm_cell(stream, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let (dh, dc) = (gradient(&dys[0], cx.output_meta(0))?, gradient(&dys[1], cx.output_meta(1))?);
        let saved = [&cx.output(2)?, &cx.input(2)?, &cx.output(1)?];
        let [sums, dc0] = &run(LstmCellBackward, &[&dh, &dc, saved[0], saved[1], saved[2]])?[..] else {
            return Err(Error::internal("two gradients"));
        };
        cx.give(0, sums.clone())?;
        cx.give(1, sums.clone())?;
        cx.give(2, dc0.clone())
    }

    fn cases() -> Cases<Self> {
        cell_cases(LstmCell, |batch, hidden| {
            vec![
                Arg::new(&[batch, 4 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, 4 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, hidden], Values::Normal(1.0)),
            ]
        })
    }
}

impl Op for LstmCellBackward {
    const NAME: &'static str = "lstm_cell_backward";
    const INPUTS: RangeInclusive<usize> = 5..=5;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let gates = inputs[2];
        let state = cell_shape(Self::NAME, 4, &gates)?;
        for i in [0, 1, 3, 4] {
            expect(Self::NAME, "a state or its gradient", &inputs[i], state)?;
        }
        Ok(Plan { outputs: vec![gates, inputs[3]], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => {
            let sizes = Sizes::of_cell(&inputs[3]);
            let [dh, dc, gates, c0, c] = inputs else { return Err(Error::internal("five inputs")) };
            backward_body::<T>(sizes, Direction::Forward, [dh, dc, gates, c, c0], None, outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::lstm_cell_backward(stream, inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        cell_cases(LstmCellBackward, |batch, hidden| {
            [1, 1, 4, 1, 1]
                .iter()
                .map(|n| {
                    let values = if *n == 4 { Values::Uniform(0.05, 0.95) } else { Values::Normal(1.0) };
                    Arg::constant(&[batch, n * hidden], values)
                })
                .collect()
        })
    }
}

/// The backward of a cell or a sequence. Inputs: dy, the gradient of the last c, gates, cell states, c0. Outputs: those of
/// the sums, of h0 if there are weights, and of c0.
fn backward_body<T: Float>(
    sizes: Sizes,
    direction: Direction,
    inputs: [&View<'_>; 5],
    weights: Option<&View<'_>>,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    if sizes.is_empty() {
        return Ok(());
    }
    let mut copies = [const { None }; 5];
    let [dy, last, gates, cells, c0] = &mut copies;
    let tape = Tape {
        sizes,
        direction,
        dy: packed::<T>(inputs[0], dy)?,
        last: packed::<T>(inputs[1], last)?,
        gates: packed::<T>(inputs[2], gates)?,
        cells: packed::<T>(inputs[3], cells)?,
        c0: packed::<T>(inputs[4], c0)?,
        weights: weights.map(|w| PackedFactor::new(matrix(w))).transpose()?,
    };
    let Sizes { steps, hidden, .. } = sizes;
    let (dxw, rest) = outputs.split_first_mut().ok_or_else(|| Error::internal("no outputs"))?;
    let (dc0, dh0) = rest.split_last_mut().ok_or_else(|| Error::internal("one output"))?;
    let shares = sizes.parts(dxw.slice::<T>(), steps, 4 * hidden).into_iter();
    let shares = shares.zip(sizes.parts(dc0.slice::<T>(), 1, hidden));
    match dh0.first_mut() {
        Some(dh0) => {
            let shares = shares.zip(sizes.parts(dh0.slice::<T>(), 1, hidden));
            each_share(sizes, shares, |first, ((mut dxw, mut dc0), dh0)| {
                tape.backward(first, [&mut dxw, &mut dc0], Some(dh0))
            })
        }
        None => each_share(sizes, shares, |first, (mut dxw, mut dc0)| {
            tape.backward(first, [&mut dxw, &mut dc0], None)
        }),
    }
}

impl Lstm {
    fn body<T: Float>(self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sizes = Sizes::of(&inputs[0], &inputs[3]);
        let [y, last, gates, cells] = outputs else { return Err(Error::internal("four outputs")) };
        if sizes.is_empty() {
            return Ok(());
        }
        let mut copies = [const { None }; 3];
        let [xw, h0, c0] = &mut copies;
        let tape = Inputs {
            sizes,
            direction: self.direction,
            xw: packed::<T>(&inputs[0], xw)?,
            recurrent: Recurrent::Weights(PackedFactor::new(matrix(&inputs[3]).t())?),
            h0: Some(packed::<T>(&inputs[1], h0)?),
            c0: packed::<T>(&inputs[2], c0)?,
        };
        let Sizes { steps, hidden, .. } = sizes;
        let shares = sizes.parts(y.slice::<T>(), steps, hidden).into_iter();
        let shares = shares.zip(sizes.parts(last.slice::<T>(), 1, hidden));
        let shares = shares.zip(sizes.parts(gates.slice::<T>(), steps, 4 * hidden));
        let shares = shares.zip(sizes.parts(cells.slice::<T>(), steps, hidden));
        each_share(sizes, shares, |first, (((mut y, mut last), mut gates), cells)| {
            tape.forward(first, [&mut y, &mut last, &mut gates], Some(cells))
        })
    }
}

impl Op for Lstm {
    const NAME: &'static str = "lstm";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const STATISTICS: usize = 2;

    fn saves(&self, needs: &[bool]) -> Saves {
        let saves = Saves::inputs(&[2, 3]).and_outputs(&[2, 3]);
        if needs[3] { saves.and_inputs(&[1]).and_outputs(&[0]) } else { saves }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let xw = inputs[0];
        let sizes = Sizes::infer(Self::NAME, 4, &xw, &inputs[3])?;
        expect(Self::NAME, "the first state", &inputs[1], sizes.state())?;
        expect(Self::NAME, "the first cell state", &inputs[2], sizes.state())?;
        let y = xw.with_shape(sizes.sequence(1));
        Ok(Plan { outputs: vec![y, inputs[2], xw, y], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::lstm(stream, self.direction, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let (dy, last) = (gradient(&dys[0], cx.output_meta(0))?, gradient(&dys[1], cx.output_meta(1))?);
        let (weights, gates, cells, c0) = (cx.input(3)?, cx.output(2)?, cx.output(3)?, cx.input(2)?);
        let op = LstmBackward { direction: self.direction };
        let [dxw, dh0, dc0] = &run(op, &[&dy, &last, &weights, &gates, &cells, &c0])?[..] else {
            return Err(Error::internal("three gradients"));
        };
        if cx.needs(3) {
            let (y, h0) = (cx.output(0)?, cx.input(1)?);
            weight_gradient(cx, 3, self.direction, [dxw, &y, &h0])?;
        }
        cx.give(0, dxw.clone())?;
        cx.give(1, dh0.clone())?;
        cx.give(2, dc0.clone())
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|_, direction, [steps, batch, hidden]| Case {
            op: Lstm { direction },
            inputs: vec![
                Arg::new(&[steps, batch, 4 * hidden], Values::Normal(1.0)),
                Arg::new(&[batch, hidden], Values::Normal(0.5)),
                Arg::new(&[batch, hidden], Values::Normal(0.5)),
                Arg::new(&[4 * hidden, hidden], Values::Normal(0.3)),
            ],
        })
    }
}

impl Op for LstmBackward {
    const NAME: &'static str = "lstm_backward";
    const INPUTS: RangeInclusive<usize> = 6..=6;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let gates = inputs[3];
        let sizes = Sizes::infer(Self::NAME, 4, &gates, &inputs[2])?;
        expect(Self::NAME, "the gradient of y", &inputs[0], sizes.sequence(1))?;
        expect(Self::NAME, "the gradient of the last cell state", &inputs[1], sizes.state())?;
        expect(Self::NAME, "the cell states", &inputs[4], sizes.sequence(1))?;
        expect(Self::NAME, "the first cell state", &inputs[5], sizes.state())?;
        Ok(Plan { outputs: vec![gates, inputs[5], inputs[5]], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let sizes = Sizes::of(&inputs[3], &inputs[2]);
        let [dy, last, weights, gates, cells, c0] = inputs else { return Err(Error::internal("six inputs")) };
        let tape = [dy, last, gates, cells, c0];
        dispatch!(float dy.dtype(), T => {
            backward_body::<T>(sizes, self.direction, tape, Some(weights), outputs)
        }, else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::lstm_backward(stream, self.direction, inputs, outputs)
    }

    fn cases() -> Cases<Self> {
        sequence_cases(|_, direction, [steps, batch, hidden]| Case {
            op: LstmBackward { direction },
            inputs: vec![
                Arg::constant(&[steps, batch, hidden], Values::Normal(1.0)),
                Arg::constant(&[batch, hidden], Values::Normal(1.0)),
                Arg::constant(&[4 * hidden, hidden], Values::Normal(0.3)),
                Arg::constant(&[steps, batch, 4 * hidden], Values::Uniform(0.05, 0.95)),
                Arg::constant(&[steps, batch, hidden], Values::Normal(0.7)),
                Arg::constant(&[batch, hidden], Values::Normal(0.7)),
            ],
        })
    }
}

impl Tensor {
    /// A step of an LSTM: `self` is what comes from the input and `gh` what comes from the state, both `[B, 4H]` in the order
    /// i, f, g, o; `c [B, H]` is the cell state. Returns h' and c'.
    #[track_caller]
    pub fn lstm_cell(&self, gh: &Tensor, c: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut outputs = run(LstmCell, &[self, gh, c])?.into_iter();
        outputs.next().zip(outputs.next()).ok_or_else(|| Error::internal("an LSTM cell has two results"))
    }

    /// A layer of an LSTM in one direction: `self` `[T, B, 4H]` is what comes from the input, in the order i, f, g, o and with all
    /// biases; `h0` and `c0` are `[B, H]`, `w_hh` `[4H, H]`. Returns all h `[T, B, H]` and the last c `[B, H]`. An error if T is 0.
    #[track_caller]
    pub fn lstm(
        &self,
        h0: &Tensor,
        c0: &Tensor,
        w_hh: &Tensor,
        direction: Direction,
    ) -> Result<(Tensor, Tensor)> {
        let mut outputs = run(Lstm { direction }, &[self, h0, c0, w_hh])?.into_iter();
        outputs.next().zip(outputs.next()).ok_or_else(|| Error::internal("an LSTM has two results"))
    }
}
