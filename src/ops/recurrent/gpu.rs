//! Recurrent networks on a GPU: for each step a product and a kernel of `recurrent.cu`, queued without waiting.

#![forbid(unsafe_code)]

use super::{Direction, Rnn, RnnBackward, Sizes};
use crate::cpu::activation::Activation;
use crate::device::Stream;
use crate::device::gemm::{self, Factor, Gemm};
use crate::device::kernels::recurrent as kernels;
use crate::device::launch::{Dst, Src, narrow};
use crate::device::stream::Temp;
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{DType, Error, Result};

/// A pass on a device.
struct Pass<'a> {
    stream: &'a Stream,
    sizes: Sizes,
    direction: Direction,
}

/// Part number `t` of a buffer of `count` elements each.
fn at(src: Src<'_>, t: usize, count: usize) -> Src<'_> {
    src.part((t * count) as u64, count as u64)
}

fn to<'a>(dst: &'a mut Dst<'_>, t: usize, count: usize) -> Dst<'a> {
    dst.again().part((t * count) as u64, count as u64)
}

/// What a launch has written, for later launches to read while others write elsewhere in it.
fn written<'a>(dst: &Dst<'a>) -> Src<'a> {
    Src::new(dst.address(), dst.len(), dst.dtype())
}

fn wrong<T>(what: &str) -> Result<T> {
    Err(Error::internal(format!("not as many {what} as the op has")))
}

impl<'a> Pass<'a> {
    fn new(stream: &'a Stream, sizes: Sizes, direction: Direction) -> Result<Pass<'a>> {
        narrow("the width of a state", sizes.hidden)?;
        Ok(Pass { stream, sizes, direction })
    }

    /// A pass of one step.
    fn cell(stream: &'a Stream, state: &View<'_>) -> Result<Pass<'a>> {
        Pass::new(stream, Sizes::of_cell(state), Direction::Forward)
    }

    /// Elements of a state.
    fn state(&self) -> usize {
        self.sizes.batch * self.sizes.hidden
    }

    fn rows(&self) -> u64 {
        self.sizes.batch as u64
    }

    fn n(&self) -> u32 {
        self.sizes.hidden as u32
    }

    /// The place of step `k`, and that of the step before, if there is one.
    fn places(&self, k: usize) -> (usize, Option<usize>) {
        let place = |k| self.direction.place(k, self.sizes.steps);
        (place(k), k.checked_sub(1).map(place))
    }

    /// f32 scratch of `n` states.
    fn scratch(&self, n: usize) -> Result<Temp<'a>> {
        self.stream.temp(DType::F32, n * self.state())
    }

    /// A copy in f32.
    fn wide(&self, view: &View<'_>) -> Result<Temp<'a>> {
        let mut copy = self.stream.temp(DType::F32, view.numel())?;
        let layout = Layout::contiguous(view.shape());
        crate::device::copy::strided(self.stream, view.src(), view.layout(), copy.dst(), &layout, false)?;
        Ok(copy)
    }

    /// Rounds f32 states to where a result belongs.
    fn store(&self, from: Src<'_>, out: Dst<'_>) -> Result<()> {
        let layout = Layout::contiguous(self.sizes.state());
        crate::device::copy::strided(self.stream, from, &layout, out, &layout, false)
    }

    /// `sums [batch, gates · hidden] = states · weightsᵀ`
    fn forward(&self, states: Src<'_>, weights: &View<'_>, sums: Dst<'_>) -> Result<()> {
        let (by, [out, width]) = (weights.layout().strides, [weights.shape()[0], weights.shape()[1]]);
        let a = Factor { src: states, stride: width, k_stride: 1, batch: &[] };
        let b = Factor { src: weights.src(), stride: by[0], k_stride: by[1], batch: &[] };
        self.multiply(out, width, [a, b], sums, false)
    }

    /// `states (+)= sums · weights`
    fn backward(&self, sums: Src<'_>, weights: &View<'_>, states: Dst<'_>, add: bool) -> Result<()> {
        let (by, [width, out]) = (weights.layout().strides, [weights.shape()[0], weights.shape()[1]]);
        let a = Factor { src: sums, stride: width, k_stride: 1, batch: &[] };
        let b = Factor { src: weights.src(), stride: by[1], k_stride: by[0], batch: &[] };
        self.multiply(out, width, [a, b], states, add)
    }

    fn multiply(&self, n: usize, k: usize, [a, b]: [Factor<'_>; 2], c: Dst<'_>, add: bool) -> Result<()> {
        let m = self.sizes.batch;
        let activation = Activation::Identity as u32;
        gemm::gemm(
            self.stream,
            Gemm { batch: &[], m, n, k, a, b, c, add, bias: None, activation, pre: None, tf32: false },
        )
    }

    fn lstm_step(&self, [xw, sums]: [Src<'_>; 2], c: Dst<'_>, [y, gates, cells]: [Dst<'_>; 3]) -> Result<()> {
        let (rows, n) = (self.rows(), self.n());
        kernels::LstmStep { xw, sums, c, y, gates, cells, rows, n }.launch(self.stream)
    }
}

pub(super) fn lstm_cell(stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
    let ([gx, gh, c], [h, last, gates]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::cell(stream, c)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let (gx, gh, mut c) = (stream.contiguous(gx)?, pass.wide(gh)?, pass.wide(c)?);
    pass.lstm_step([gx.src(), gh.src()], c.dst(), [h.dst(), gates.dst(), last.dst()])
}

pub(super) fn lstm(
    stream: &Stream,
    direction: Direction,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([xw, h0, c0, weights], [y, last, gates, cells]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::new(stream, Sizes::of(xw, weights), direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (xw, h0, mut c) = (stream.contiguous(xw)?, stream.contiguous(h0)?, pass.wide(c0)?);
    let mut sums = pass.scratch(4)?;
    let [mut y, mut gates, mut cells] = [y.dst(), gates.dst(), cells.dst()];
    for k in 0..pass.sizes.steps {
        let (t, before) = pass.places(k);
        let state = before.map_or(h0.src(), |t| at(written(&y), t, one));
        pass.forward(state, weights, sums.dst())?;
        let outs = [to(&mut y, t, one), to(&mut gates, t, 4 * one), to(&mut cells, t, one)];
        pass.lstm_step([at(xw.src(), t, 4 * one), sums.src()], c.dst(), outs)?;
    }
    pass.store(c.src(), last.dst())
}

/// The tensors that an LSTM's backward reads, in row-major order.
struct LstmTape<'a> {
    dy: Src<'a>,
    gates: Src<'a>,
    cells: Src<'a>,
    before: Src<'a>,
}

impl Pass<'_> {
    fn lstm_step_backward(
        &self,
        tape: LstmTape<'_>,
        dh: Option<Src<'_>>,
        dc: Dst<'_>,
        dsums: Dst<'_>,
        dc0: Option<Dst<'_>>,
    ) -> Result<()> {
        let LstmTape { dy, gates, cells, before } = tape;
        let (rows, n) = (self.rows(), self.n());
        kernels::LstmStepBackward { dy, dh, dc, gates, cells, before, dsums, dc0, rows, n }
            .launch(self.stream)
    }
}

pub(super) fn lstm_cell_backward(
    stream: &Stream,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([dh, dc, gates, c0, c], [dsums, dc0]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::cell(stream, c)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let (dh, mut dc, gates) = (stream.contiguous(dh)?, pass.wide(dc)?, stream.contiguous(gates)?);
    let (c0, c) = (stream.contiguous(c0)?, stream.contiguous(c)?);
    let tape = LstmTape { dy: dh.src(), gates: gates.src(), cells: c.src(), before: c0.src() };
    pass.lstm_step_backward(tape, None, dc.dst(), dsums.dst(), Some(dc0.dst()))
}

pub(super) fn lstm_backward(
    stream: &Stream,
    direction: Direction,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([dy, last, weights, gates, cells, c0], [dsums, dh0, dc0]) = (inputs, outputs) else {
        return wrong("tensors");
    };
    let pass = Pass::new(stream, Sizes::of(gates, weights), direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (dy, gates, cells) = (stream.contiguous(dy)?, stream.contiguous(gates)?, stream.contiguous(cells)?);
    let (c0, mut dc, mut dh) = (stream.contiguous(c0)?, pass.wide(last)?, pass.scratch(1)?);
    let mut dsums = dsums.dst();
    for k in (0..pass.sizes.steps).rev() {
        let (t, before) = pass.places(k);
        let tape = LstmTape {
            dy: at(dy.src(), t, one),
            gates: at(gates.src(), t, 4 * one),
            cells: at(cells.src(), t, one),
            before: before.map_or(c0.src(), |t| at(cells.src(), t, one)),
        };
        let later = (k + 1 < pass.sizes.steps).then(|| dh.src());
        let dc0 = (k == 0).then(|| dc0.dst());
        pass.lstm_step_backward(tape, later, dc.dst(), to(&mut dsums, t, 4 * one), dc0)?;
        let into = if k == 0 { dh0.dst() } else { dh.dst() };
        pass.backward(at(written(&dsums), t, 4 * one), weights, into, false)?;
    }
    Ok(())
}

impl Pass<'_> {
    fn gru_step(
        &self,
        [xw, sums, before]: [Src<'_>; 3],
        bias: Option<Src<'_>>,
        [y, kept]: [Dst<'_>; 2],
    ) -> Result<()> {
        let (rows, n) = (self.rows(), self.n());
        kernels::GruStep { xw, sums, bias, before, y, kept, rows, n }.launch(self.stream)
    }

    fn gru_step_backward(
        &self,
        [dy, kept, before]: [Src<'_>; 3],
        dh: Dst<'_>,
        [dxw, dsums]: [Dst<'_>; 2],
    ) -> Result<()> {
        let (rows, n) = (self.rows(), self.n());
        kernels::GruStepBackward { dy, dh, kept, before, dxw, dsums, rows, n }.launch(self.stream)
    }
}

pub(super) fn gru_cell(stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
    let ([gx, gh, h], [y, kept]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::cell(stream, h)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let (gx, gh, h) = (stream.contiguous(gx)?, pass.wide(gh)?, stream.contiguous(h)?);
    pass.gru_step([gx.src(), gh.src(), h.src()], None, [y.dst(), kept.dst()])
}

pub(super) fn gru(
    stream: &Stream,
    direction: Direction,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([xw, h0, weights, bias @ ..], [y, kept]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::new(stream, Sizes::of(xw, weights), direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (xw, h0, mut sums) = (stream.contiguous(xw)?, stream.contiguous(h0)?, pass.scratch(3)?);
    let bias = bias.first().map(|b| stream.contiguous(b)).transpose()?;
    let (mut y, mut kept) = (y.dst(), kept.dst());
    for k in 0..pass.sizes.steps {
        let (t, before) = pass.places(k);
        let state = before.map_or(h0.src(), |t| at(written(&y), t, one));
        pass.forward(state, weights, sums.dst())?;
        let ins = [at(xw.src(), t, 3 * one), sums.src(), state];
        let outs = [to(&mut y, t, one), to(&mut kept, t, 4 * one)];
        pass.gru_step(ins, bias.as_ref().map(|b| b.src()), outs)?;
    }
    Ok(())
}

pub(super) fn gru_cell_backward(stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
    let ([dy, kept, h], [dxw, dsums, dh]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::cell(stream, h)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let (kept, h, zero) = (stream.contiguous(kept)?, stream.contiguous(h)?, pass.zeros()?);
    let (dy, mut through) = (stream.contiguous(dy)?, zero);
    pass.gru_step_backward([dy.src(), kept.src(), h.src()], through.dst(), [dxw.dst(), dsums.dst()])?;
    pass.store(through.src(), dh.dst())
}

impl<'a> Pass<'a> {
    /// A state of zeros.
    fn zeros(&self) -> Result<Temp<'a>> {
        let mut zeros = self.scratch(1)?;
        let bytes = self.state() * DType::F32.size();
        self.stream.fill(zeros.dst().address(), 0, bytes)?;
        Ok(zeros)
    }
}

pub(super) fn gru_backward(
    stream: &Stream,
    direction: Direction,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([dy, weights, kept, y, h0], [dxw, dsums, dh0]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::new(stream, Sizes::of(kept, weights), direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (dy, kept, y) = (stream.contiguous(dy)?, stream.contiguous(kept)?, stream.contiguous(y)?);
    let (h0, mut dh) = (stream.contiguous(h0)?, pass.zeros()?);
    let (mut dxw, mut dsums) = (dxw.dst(), dsums.dst());
    for k in (0..pass.sizes.steps).rev() {
        let (t, before) = pass.places(k);
        let before = before.map_or(h0.src(), |t| at(y.src(), t, one));
        let ins = [at(dy.src(), t, one), at(kept.src(), t, 4 * one), before];
        let outs = [to(&mut dxw, t, 3 * one), to(&mut dsums, t, 3 * one)];
        pass.gru_step_backward(ins, dh.dst(), outs)?;
        pass.backward(at(written(&dsums), t, 3 * one), weights, dh.dst(), true)?;
    }
    pass.store(dh.src(), dh0.dst())
}

impl Pass<'_> {
    fn rnn_step(&self, activation: Activation, [xw, sums]: [Src<'_>; 2], y: Dst<'_>) -> Result<()> {
        let f = match activation {
            Activation::Relu => kernels::RnnStepF::Relu,
            _ => kernels::RnnStepF::Tanh,
        };
        kernels::RnnStep { f, xw, sums, y, n: self.state() as u64 }.launch(self.stream)
    }
}

pub(super) fn rnn_cell(
    stream: &Stream,
    activation: Activation,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([gx, gh], [y]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::cell(stream, gx)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let (gx, gh) = (stream.contiguous(gx)?, pass.wide(gh)?);
    pass.rnn_step(activation, [gx.src(), gh.src()], y.dst())
}

pub(super) fn rnn(stream: &Stream, op: Rnn, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
    let ([xw, h0, weights], [y]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::new(stream, Sizes::of(xw, weights), op.direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (xw, h0, mut sums) = (stream.contiguous(xw)?, stream.contiguous(h0)?, pass.scratch(1)?);
    let mut y = y.dst();
    for k in 0..pass.sizes.steps {
        let (t, before) = pass.places(k);
        let state = before.map_or(h0.src(), |t| at(written(&y), t, one));
        pass.forward(state, weights, sums.dst())?;
        pass.rnn_step(op.activation, [at(xw.src(), t, one), sums.src()], to(&mut y, t, one))?;
    }
    Ok(())
}

pub(super) fn rnn_backward(
    stream: &Stream,
    op: RnnBackward,
    inputs: &[View<'_>],
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let ([dy, weights, y], [dsums, dh0]) = (inputs, outputs) else { return wrong("tensors") };
    let pass = Pass::new(stream, Sizes::of(y, weights), op.direction)?;
    if pass.sizes.is_empty() {
        return Ok(());
    }
    let one = pass.state();
    let (dy, y, mut dh) = (stream.contiguous(dy)?, stream.contiguous(y)?, pass.scratch(1)?);
    let mut dsums = dsums.dst();
    let f = match op.activation {
        Activation::Relu => kernels::RnnStepBackwardF::Relu,
        _ => kernels::RnnStepBackwardF::Tanh,
    };
    for k in (0..pass.sizes.steps).rev() {
        let (t, _) = pass.places(k);
        let later = (k + 1 < pass.sizes.steps).then(|| dh.src());
        let (dy, y, into) = (at(dy.src(), t, one), at(y.src(), t, one), to(&mut dsums, t, one));
        kernels::RnnStepBackward { f, dy, dh: later, y, dsums: into, n: one as u64 }.launch(stream)?;
        let into = if k == 0 { dh0.dst() } else { dh.dst() };
        pass.backward(at(written(&dsums), t, one), weights, into, false)?;
    }
    Ok(())
}
