//! Recurrent networks: LSTM, GRU and the plain network, one step at a time or over a whole sequence, and their backwards.
//!
//! A sequence op works on one layer in one direction. What comes from the layer's input is computed before, for all steps in
//! one product (`linear`), and arrives as `xw`; the op itself multiplies the state of each step by the recurrent weights and
//! applies the gates. Its backward goes through the steps the other way and makes the gradient of `xw`, from which the
//! gradients of both weights are one product each over all steps.
//!
//! Every row of the batch goes through all steps by itself, so on the CPU the threads share out the rows and wait for each
//! other once; the bits of a row depend neither on them nor on the batch. The state that enters the next step is y as it is
//! stored, in the op's type; the cell state of an LSTM is carried in f32 (f64 for f64). Gate order and the place of the
//! GRU's recurrent bias (inside the reset gate) are PyTorch's.
//!
//! Refused: sequences of length 0.

#![forbid(unsafe_code)]

mod gpu;
mod gru;
mod lstm;
mod rnn;

use std::sync::Mutex;

use super::reduce::packed;
use super::{Arg, Case, Cases, MatMul, Tolerance};
use crate::cpu::gemm::{MatRef, PackedFactor};
use crate::cpu::par;
use crate::cpu::simd::{MatMut, vectorize};
use crate::dtype::{Element, Float, Real};
use crate::tensor::{BackwardCx, Meta, Tensor, View};
use crate::{DType, Error, Result, Shape};

pub use gru::{Gru, GruBackward, GruCell, GruCellBackward};
pub use lstm::{Lstm, LstmBackward, LstmCell, LstmCellBackward};
pub use rnn::{Rnn, RnnBackward, RnnCell};

super::family!(
    LstmCell,
    LstmCellBackward,
    Lstm,
    LstmBackward,
    GruCell,
    GruCellBackward,
    Gru,
    GruBackward,
    RnnCell,
    Rnn,
    RnnBackward,
);

/// Which way a sequence is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first. Outputs stay in the order of the inputs.
    Reverse,
}

impl Direction {
    /// Both, the forward one first.
    pub const ALL: [Direction; 2] = [Direction::Forward, Direction::Reverse];

    /// The place of the step that is computed as number `k` of `steps`.
    fn place(self, k: usize, steps: usize) -> usize {
        match self {
            Direction::Forward => k,
            Direction::Reverse => steps - 1 - k,
        }
    }
}

/// The sizes of a pass.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    steps: usize,
    batch: usize,
    hidden: usize,
}

impl Sizes {
    /// Those of a sequence op by its xw `[steps, batch, gates · hidden]` and recurrent weights `[gates · hidden, hidden]`.
    fn infer(op: &'static str, gates: usize, xw: &Meta, weights: &Meta) -> Result<Sizes> {
        if xw.shape.rank() != 3 || weights.shape.rank() != 2 {
            let message = format!(
                "the projected input is {} and the recurrent weights {}: [steps, batch, {gates} · hidden] and \
                 [{gates} · hidden, hidden] are needed",
                xw.shape, weights.shape
            );
            return Err(Error::shape(op, message));
        }
        let (steps, batch, hidden) = (xw.shape[0], xw.shape[1], weights.shape[1]);
        if steps == 0 {
            return Err(Error::shape(op, "a sequence of length 0 has no last state"));
        }
        let width = gates.checked_mul(hidden);
        if width != Some(weights.shape[0]) || width != Some(xw.shape[2]) {
            let message = format!(
                "the projected input {} does not fit recurrent weights of shape {} = [{gates} · hidden, hidden]",
                xw.shape, weights.shape
            );
            return Err(Error::shape(op, message));
        }
        Ok(Sizes { steps, batch, hidden })
    }

    /// Those of a pass whose infer has been asked.
    fn of(xw: &View<'_>, weights: &View<'_>) -> Sizes {
        Sizes { steps: xw.shape()[0], batch: xw.shape()[1], hidden: weights.shape()[1] }
    }

    /// Those of a cell by its state `[batch, hidden]`.
    fn of_cell(state: &View<'_>) -> Sizes {
        Sizes { steps: 1, batch: state.shape()[0], hidden: state.shape()[1] }
    }

    /// `[steps, batch, n · hidden]`
    fn sequence(&self, n: usize) -> Shape {
        Shape::from_dims(&[self.steps, self.batch, n * self.hidden])
    }

    /// `[batch, hidden]`
    fn state(&self) -> Shape {
        Shape::from_dims(&[self.batch, self.hidden])
    }

    fn is_empty(&self) -> bool {
        self.batch == 0 || self.hidden == 0
    }

    /// Rows of the batch that one thread takes through all steps: as many for each, in groups that fill the tiles of the
    /// product, and not so many that the sums of a step leave the cache. No bit depends on it.
    fn share(&self) -> usize {
        self.batch.div_ceil(par::threads()).next_multiple_of(4).clamp(4, 64)
    }

    /// What belongs to each share of `data`, which holds `width` elements for each row of the batch at each of `steps`.
    fn parts<'a, T>(&self, data: &'a mut [T], steps: usize, width: usize) -> Vec<MatMut<'a, T>> {
        let line = self.batch * width;
        let mut rest = MatMut::new(data, steps, line, line);
        let mut parts = Vec::with_capacity(self.batch.div_ceil(self.share()));
        for first in (0..self.batch).step_by(self.share()) {
            let rows = self.share().min(self.batch - first);
            let (part, behind) = rest.split_cols(rows * width);
            parts.push(part);
            rest = behind;
        }
        parts
    }

    /// Rows number `first..` of a share among `width` elements a row at step `t`.
    fn rows<'a, T>(&self, data: &'a [T], t: usize, width: usize, first: usize, rows: usize) -> &'a [T] {
        &data[(t * self.batch + first) * width..][..rows * width]
    }
}

/// Batch and width of the cases of cell ops.
const CELLS: [(usize, usize); 7] = [(1, 1), (3, 5), (2, 17), (5, 33), (65, 7), (0, 3), (2, 0)];

/// Steps, batch and width of the cases of sequence ops.
const SEQUENCES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [3, 2, 2],
    [2, 1, 3],
    [1, 3, 4],
    [5, 2, 3],
    [4, 1, 2],
    [3, 5, 20],
    [2, 9, 17],
    [3, 0, 4],
    [2, 3, 0],
];

/// See [`crate::selftest::reference`]: there each value comes with the sum of what every rounding on the way to it contributes.
const TOLERANCE: Tolerance = Tolerance::Sum(
    16.0,
    "a few ulp in each function and a rounding each operation, passed on from step to step by the slopes of the gates",
);

/// The cases of a cell op: `inputs(batch, hidden)`.
fn cell_cases<O: Copy>(op: O, inputs: impl Fn(usize, usize) -> Vec<Arg>) -> Cases<O> {
    let list = CELLS.iter().map(|&(batch, hidden)| Case { op, inputs: inputs(batch, hidden) }).collect();
    Cases { dtypes: &DType::FLOATS, tolerance: TOLERANCE, list }
}

/// The cases of a sequence op: `case(number, direction, [steps, batch, hidden])`, in both directions by turns.
fn sequence_cases<O>(case: impl Fn(usize, Direction, [usize; 3]) -> Case<O>) -> Cases<O> {
    let list =
        SEQUENCES.iter().enumerate().map(|(i, &sizes)| case(i, Direction::ALL[i % 2], sizes)).collect();
    Cases { dtypes: &DType::FLOATS, tolerance: TOLERANCE, list }
}

/// Checks the shape of an input.
fn expect(op: &'static str, what: &str, found: &Meta, expected: Shape) -> Result<()> {
    if found.shape == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} is {}, expected {expected}", found.shape)))
}

/// `[batch, n · hidden]` and `[batch, hidden]` of a cell op's first input, `gates` times as wide as the state.
fn cell_shape(op: &'static str, gates: usize, x: &Meta) -> Result<Shape> {
    if x.shape.rank() != 2 || !x.shape[1].is_multiple_of(gates) {
        let message = format!("the projected input is {}, expected [batch, {gates} · hidden]", x.shape);
        return Err(Error::shape(op, message));
    }
    Ok(Shape::from_dims(&[x.shape[0], x.shape[1] / gates]))
}

/// A view of two dimensions as a matrix.
fn matrix<'a, T: Float>(view: &View<'a>) -> MatRef<'a, T> {
    let (shape, strides) = (view.shape(), view.layout().strides);
    MatRef::new(view.data::<T>(), shape[0], shape[1], strides[0], strides[1])
}

/// Where the part of a step's sums that comes from the state is taken from.
enum Recurrent<'a, T> {
    /// The state times these weights.
    Weights(PackedFactor<T>),
    /// It is given: a cell op.
    Given(&'a [T]),
}

impl<T: Float> Recurrent<'_, T> {
    /// Adds it to the sums of rows `first..` (`width` each), given their states.
    fn add(&self, first: usize, width: usize, state: &[T::Acc], sums: &mut [T::Acc]) {
        match self {
            Recurrent::Weights(weights) => {
                let rows = sums.len() / width;
                weights.add_product(state, &mut MatMut::new(sums, rows, width, width));
            }
            Recurrent::Given(given) => {
                let given = &given[first * width..][..sums.len()];
                vectorize(
                    #[inline(always)]
                    || add_here(given, sums),
                );
            }
        }
    }
}

/// Runs `work` for the shares of a batch and passes on an error.
fn each_share<I: Send>(
    sizes: Sizes,
    shares: impl Iterator<Item = I> + Send,
    work: impl Fn(usize, I) -> Result<()> + Sync,
) -> Result<()> {
    let rows = sizes.share();
    let failed = Mutex::new(None);
    par::each(sizes.batch.div_ceil(rows), shares.enumerate(), |(number, share)| {
        if let Err(e) = work(number * rows, share) {
            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
        }
    });
    failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// A row of four gates.
#[inline(always)]
fn quarters<A>(row: &mut [A]) -> [&mut [A]; 4] {
    let (front, back) = row.split_at_mut(row.len() / 2);
    let ((i, f), (g, o)) = (front.split_at_mut(front.len() / 2), back.split_at_mut(back.len() / 2));
    [i, f, g, o]
}

/// σ of all elements; vectorised where the caller is.
#[inline(always)]
fn sigmoids<A: Real>(x: &mut [A]) {
    for x in x {
        *x = x.sigmoid();
    }
}

/// tanh of all elements; vectorised where the caller is.
#[inline(always)]
fn tanhs<A: Real>(x: &mut [A]) {
    for x in x {
        *x = Real::tanh(*x);
    }
}

/// Widens; vectorised where the caller is.
#[inline(always)]
fn widen_here<T: Float>(from: &[T], to: &mut [T::Acc]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_acc();
    }
}

/// Rounds; vectorised where the caller is.
#[inline(always)]
fn narrow_here<T: Float>(from: &[T::Acc], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::from_acc(from);
    }
}

/// Adds; vectorised where the caller is.
#[inline(always)]
fn add_here<T: Float>(from: &[T], to: &mut [T::Acc]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from.to_acc();
    }
}

/// Widens.
fn widen<T: Float>(from: &[T], to: &mut [T::Acc]) {
    vectorize(
        #[inline(always)]
        || widen_here(from, to),
    );
}

/// Rounds.
fn narrow<T: Float>(from: &[T::Acc], to: &mut [T]) {
    vectorize(
        #[inline(always)]
        || narrow_here(from, to),
    );
}

/// The elements as the type they are computed in, if that is their own: what is computed there needs no copy.
fn in_place<T: Float>(row: &mut [T]) -> Option<&mut [T::Acc]> {
    if T::DTYPE == <T::Acc as Element>::DTYPE { bytemuck::try_cast_slice_mut(row).ok() } else { None }
}

/// Stores the state of a step, which goes into the next as it is stored.
fn store_state<T: Float>(state: &mut [T::Acc], to: &mut [T]) {
    vectorize(
        #[inline(always)]
        || {
            for (to, state) in to.iter_mut().zip(state) {
                *to = T::from_acc(*state);
                *state = to.to_acc();
            }
        },
    );
}

/// The gradient of an output, or zeros.
fn gradient(dy: &Option<Tensor>, meta: Meta) -> Result<Tensor> {
    match dy {
        Some(dy) => Ok(dy.clone()),
        None => Tensor::zeros(meta.shape, meta.dtype, meta.device),
    }
}

/// Delivers the gradient of recurrent weights, input `i`: Σ over steps of dsᵀ · state before the step, one product over all
/// steps but the one that starts from `h0`, and one for that.
fn weight_gradient(
    cx: &mut BackwardCx<'_>,
    i: usize,
    direction: Direction,
    [ds, y, h0]: [&Tensor; 3],
) -> Result<()> {
    if !cx.needs(i) {
        return Ok(());
    }
    let steps = ds.dims()[0];
    let rows = |t: &Tensor, start: usize| {
        let part = t.narrow(0, start, steps - 1)?;
        part.reshape([(steps - 1) * part.dims()[1], part.dims()[2]])
    };
    let first = ds.select(0, direction.place(0, steps))?;
    cx.run(MatMul, &[&first.t()?, h0], &[i])?;
    if steps > 1 {
        let (later, earlier) = match direction {
            Direction::Forward => (1, 0),
            Direction::Reverse => (0, 1),
        };
        cx.run(MatMul, &[&rows(ds, later)?.t()?, &rows(y, earlier)?], &[i])?;
    }
    Ok(())
}
