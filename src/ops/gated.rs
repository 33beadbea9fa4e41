//! SwiGLU: silu(gate) · up, where a row holds the gates and then what they let through, as one fused projection leaves them.
//! Backward makes both halves of the gradient in one pass.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::reduce::float_only;
use super::softmax::Strided;
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1, same_float};
use crate::cpu::par;
use crate::cpu::reduce::{GRAIN, vectorize};
use crate::device::Stream;
use crate::device::kernels::gated as kernels;
use crate::device::launch::narrow;
use crate::dtype::{Float, Real};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

super::family!(SwiGlu, SwiGluBackward);

/// silu(gate) · up for x = [gate | up] along the last dimension, `[.., 2 n]` to `[.., n]`.
#[derive(Clone, Copy, Debug)]
pub struct SwiGlu;

/// The gradient of [`SwiGlu`], from dy and x: [dy · up · silu′(gate) | dy · silu(gate)].
#[derive(Clone, Copy, Debug)]
pub struct SwiGluBackward;

/// The shape of the result, for x of this shape.
fn halved(op: &'static str, x: &Shape) -> Result<Shape> {
    match x.last() {
        Some(n) if n.is_multiple_of(2) => Ok(x.with(x.rank() - 1, n / 2)),
        _ => {
            Err(Error::shape(op, format!("needs gates and as many values in the last dimension, found {x}")))
        }
    }
}

/// Half a row, and how a launch cuts it up: rows, elements, pieces a row, and whether these are of 16 bytes.
fn cut(half: Shape, dtype: DType, addresses: [u64; 3]) -> Result<(u64, u32, u32, u32)> {
    let n = half[half.rank() - 1];
    let vector = 16 / dtype.size();
    let wide = n.is_multiple_of(vector) && addresses.iter().all(|a| a.is_multiple_of(16));
    let (rows, pieces) = (half.without(half.rank() - 1).numel(), if wide { n / vector } else { n });
    Ok((rows as u64, narrow("a row", n)?, pieces as u32, u32::from(wide)))
}

/// Calls `row(i, inputs, out)` for the rows of outputs of width `n`, the inputs brought together where they are strided.
fn each_row<T: Float, const N: usize>(
    inputs: [&View<'_>; N],
    out: &mut Out<'_>,
    row: impl Fn([&[T]; N], &mut [T]) + Sync,
) {
    let shape = out.shape();
    if shape.numel() == 0 {
        return;
    }
    let n = shape[shape.rank() - 1];
    let widths = inputs.map(|v| v.shape()[shape.rank() - 1]);
    let inputs = inputs.map(|v| Strided::<T>::new(v, shape.rank() - 1));
    let per = (GRAIN / n).max(1);
    par::for_each_chunk_mut(out.slice::<T>(), per * n, |task, out| {
        let mut buffers: [Vec<T>; N] =
            std::array::from_fn(|k| vec![T::default(); if inputs[k].direct() { 0 } else { widths[k] }]);
        vectorize::<T::Acc, _>(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(n).enumerate() {
                    let mut buffers = buffers.iter_mut();
                    let rows = std::array::from_fn(|k| {
                        let buffer = buffers.next().expect("one for each input");
                        inputs[k].row(task * per + i, widths[k], buffer)
                    });
                    row(rows, out);
                }
            },
        );
    });
}

impl SwiGlu {
    fn body<T: Float>(&self, x: &View<'_>, out: &mut Out<'_>) {
        let add = out.mode() == Mode::Accumulate;
        each_row::<T, 1>(
            [x],
            out,
            #[inline(always)]
            |[x], y| {
                let (gate, up) = x.split_at(y.len());
                let up = &up[..y.len()];
                for (j, y) in y.iter_mut().enumerate() {
                    let gate = gate[j].to_acc();
                    let v = gate * gate.sigmoid() * up[j].to_acc();
                    *y = T::from_acc(if add { y.to_acc() + v } else { v });
                }
            },
        );
    }
}

impl SwiGluBackward {
    fn body<T: Float>(&self, inputs: [&View<'_>; 2], out: &mut Out<'_>) {
        let add = out.mode() == Mode::Accumulate;
        each_row::<T, 2>(
            inputs,
            out,
            #[inline(always)]
            |[dy, x], dx| {
                let n = dy.len();
                let ((gate, up), (of_gate, of_up)) = (x.split_at(n), dx.split_at_mut(n));
                let (gate, up, of_gate, of_up) = (&gate[..n], &up[..n], &mut of_gate[..n], &mut of_up[..n]);
                for j in 0..n {
                    let (v, d) = (gate[j].to_acc(), dy[j].to_acc());
                    let s = v.sigmoid();
                    let by_gate = d * up[j].to_acc() * (v * s).mul_add(T::Acc::ONE - s, s);
                    let by_up = d * (v * s);
                    let put = |old: T, v: T::Acc| T::from_acc(if add { old.to_acc() + v } else { v });
                    of_gate[j] = put(of_gate[j], by_gate);
                    of_up[j] = put(of_up[j], by_up);
                }
            },
        );
    }
}

impl Op for SwiGlu {
    const NAME: &'static str = "swiglu";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        Ok(Plan::one(inputs[0].with_shape(halved(Self::NAME, &inputs[0].shape)?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(&inputs[0], &mut outputs[0]),
            else return float_only(Self::NAME, inputs[0].dtype()));
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let x = stream.contiguous(&inputs[0])?;
        let (half, add) = (outputs[0].shape(), u32::from(outputs[0].mode() == Mode::Accumulate));
        let (x, y) = (x.src(), outputs[0].dst());
        let (rows, n, pieces, wide) = cut(half, x.dtype(), [x.address(), y.address(), 0])?;
        kernels::Swiglu { wide, x, y, rows, n, pieces, add }.launch(stream)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dys[0].as_ref().filter(|_| cx.needs(0)) else { return Ok(()) };
        let x = cx.input(0)?;
        cx.run(SwiGluBackward, &[dy, &x], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |shape: &&[usize]| Case { op: SwiGlu, inputs: vec![Arg::new(shape, Values::Normal(2.0))] };
        let tolerance = Tolerance::Ulp(6.0, "a sigmoid and two products");
        Cases { dtypes: &DType::FLOATS, tolerance, list: SHAPES.iter().map(case).collect() }
    }
}

/// Shapes of x.
const SHAPES: [&[usize]; 8] = [&[2], &[14], &[5, 6], &[2, 3, 32], &[2, 2052], &[300, 2], &[0, 4], &[3, 0]];

impl Op for SwiGluBackward {
    const NAME: &'static str = "swiglu_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        same_float(Self::NAME, inputs)?;
        let (dy, x) = (inputs[0], inputs[1]);
        if dy.shape != halved(Self::NAME, &x.shape)? {
            let message = format!("the gradient {} does not fit the input {}", dy.shape, x.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(x))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>([&inputs[0], &inputs[1]], &mut outputs[0]),
            else return float_only(Self::NAME, inputs[0].dtype()));
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let half = inputs[0].shape();
        let (dy, x) = (stream.contiguous(&inputs[0])?, stream.contiguous(&inputs[1])?);
        let add = u32::from(outputs[0].mode() == Mode::Accumulate);
        let (dy, x, dx) = (dy.src(), x.src(), outputs[0].dst());
        let (rows, n, pieces, wide) = cut(half, x.dtype(), [dy.address(), x.address(), dx.address()])?;
        kernels::SwigluBackward { wide, dy, x, dx, rows, n, pieces, add }.launch(stream)
    }

    fn cases() -> Cases<Self> {
        let case = |shape: &&[usize]| {
            let half = Shape::from_dims(shape).with(shape.len() - 1, shape[shape.len() - 1] / 2);
            let (dy, x) = (Values::Normal(1.0), Values::Normal(2.0));
            Case { op: SwiGluBackward, inputs: vec![Arg::constant(&half, dy), Arg::constant(shape, x)] }
        };
        let tolerance = Tolerance::Sum(8.0, "a sigmoid, its distance from 1, four products and a sum");
        Cases { dtypes: &DType::FLOATS, tolerance, list: SHAPES.iter().map(case).collect() }
    }
}

impl Tensor {
    /// SwiGLU of gates and values that lie one behind the other in the last dimension: `[.., 2 n]` = [gate | up] gives
    /// silu(gate) · up, `[.., n]`. In PyTorch: `g, u = x.chunk(2, -1); F.silu(g) * u`.
    ///
    /// # Errors
    /// If the last dimension is odd or missing, or the type is no float.
    #[track_caller]
    pub fn swiglu(&self) -> Result<Tensor> {
        run1(SwiGlu, &[self])
    }
}
