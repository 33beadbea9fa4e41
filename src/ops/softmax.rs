//! Softmax and its logarithm along one dimension, and their backwards.
//!
//! The largest element is subtracted first, so nothing overflows and adding a constant to a row changes nothing but
//! rounding; log_softmax subtracts it before the logarithm of the sum, never both at once. A row whose largest element is
//! infinite gives NaN, as in PyTorch. Each of the four is one kernel on a contiguous row; rows that lie across memory are
//! brought into that form and back, a tile of neighbouring columns at a time.

#![forbid(unsafe_code)]

use super::reduce::{into_wide, real, same_dtype, wide};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::reduce::{Fold, GRAIN, Max, fold_slices, merged, position, sum_slices, vectorize};
use crate::cpu::simd::MatMut;
use crate::cpu::{par, simd};
use crate::dtype::Real;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(Softmax, SoftmaxBackward, LogSoftmax, LogSoftmaxBackward);

/// One input of [`along`]: its elements, the dimensions before and behind the one in question, the stride of that one.
pub(super) struct Strided<'a, A> {
    data: &'a [A],
    before: Vec<(usize, usize)>,
    behind: Vec<(usize, usize)>,
    stride: usize,
}

impl<'a, A: Real> Strided<'a, A> {
    pub(super) fn new(view: &View<'a>, dim: usize) -> Self {
        let (shape, strides) = (view.shape(), view.layout().strides);
        let dims = |range: std::ops::Range<usize>| merged(range.map(|d| (shape[d], strides[d])).collect());
        Strided {
            data: view.data(),
            before: dims(0..dim.min(shape.rank())),
            behind: dims((dim + 1).min(shape.rank())..shape.rank()),
            stride: if dim < shape.rank() { strides[dim] } else { 1 },
        }
    }

    /// Whether [`Strided::row`] needs no buffer.
    pub(super) fn direct(&self) -> bool {
        self.stride == 1
    }

    /// The row `n` long at `outer`, `inner`: itself if it is contiguous, else brought into `buffer`.
    #[inline(always)]
    pub(super) fn row<'b>(&self, outer: usize, inner: usize, n: usize, buffer: &'b mut [A]) -> &'b [A]
    where
        'a: 'b,
    {
        let start = position(&self.before, outer) + position(&self.behind, inner);
        if self.stride == 1 {
            return &self.data[start..start + n];
        }
        let buffer = &mut buffer[..n];
        buffer.iter_mut().enumerate().for_each(|(i, b)| *b = self.data[start + i * self.stride]);
        buffer
    }
}

/// Overwrites `out` by `values`, or adds them.
#[inline(always)]
pub(super) fn put<A: Real>(out: &mut [A], values: &[A], add: bool) {
    for (o, &v) in out.iter_mut().zip(values) {
        *o = if add { *o + v } else { v };
    }
}

/// Runs `kernel` on each row of the inputs along dimension `dim`; it overwrites the row it is given last.
fn along<A: Real, const N: usize>(
    dim: usize,
    inputs: [View<'_>; N],
    out: &mut Out<'_>,
    kernel: impl Fn([&[A]; N], &mut [A]) + Sync,
) -> Result<()> {
    let shape = out.shape();
    if shape.numel() == 0 {
        return Ok(());
    }
    let mut copies = [const { None }; N];
    let mut views = inputs;
    for ((view, input), copy) in views.iter_mut().zip(&inputs).zip(&mut copies) {
        *view = wide(input, copy)?;
    }
    into_wide(out, |out, add| {
        along_wide(dim, &shape, views, out, add, kernel);
        Ok(())
    })
}

fn along_wide<A: Real, const N: usize>(
    dim: usize,
    shape: &Shape,
    inputs: [View<'_>; N],
    out: &mut [A],
    add: bool,
    kernel: impl Fn([&[A]; N], &mut [A]) + Sync,
) {
    let n = extent(shape, dim);
    let inner: usize = shape.iter().skip(dim + 1).product();
    let inputs = inputs.map(|v| Strided::<A>::new(&v, dim));
    let vector = |len: usize| vec![A::ZERO; len];
    if inner == 1 {
        let rows = (GRAIN / n).max(1);
        return par::for_each_chunk_mut(out, rows * n, |task, out| {
            let mut buffers: [_; N] = std::array::from_fn(|k| vector(if inputs[k].direct() { 0 } else { n }));
            let mut result = vector(if add { n } else { 0 });
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(n).enumerate() {
                        let mut buffers = buffers.iter_mut();
                        let rows = std::array::from_fn(|k| {
                            inputs[k].row(task * rows + i, 0, n, buffers.next().expect("one for each input"))
                        });
                        if add {
                            kernel(rows, &mut result);
                            put(out, &result, true);
                        } else {
                            kernel(rows, out);
                        }
                    }
                },
            );
        });
    }
    // Columns `first..first + mat.cols()` of matrix `outer`, a tile at a time.
    let width = (GRAIN / 4 / n).clamp(16, 64).min(inner);
    let columns = |outer: usize, first: usize, mut mat: MatMut<'_, A>| {
        let mut tiles: [_; N] = std::array::from_fn(|_| vector(n * width));
        let (mut results, mut back) = (vector(n * width), vector(n * width));
        for from in (0..mat.cols()).step_by(width) {
            let w = width.min(mat.cols() - from);
            for (input, tile) in inputs.iter().zip(&mut tiles) {
                let whole = match input.behind[..] {
                    [(_, 1)] => Some(&input.data[position(&input.before, outer) + first + from..]),
                    _ => None,
                };
                match whole {
                    Some(src) => simd::transpose(src, input.stride, (n, w), tile, n),
                    None => vectorize::<A, _>(
                        #[inline(always)]
                        || {
                            for (j, row) in tile.chunks_exact_mut(n).take(w).enumerate() {
                                let start = position(&input.before, outer)
                                    + position(&input.behind, first + from + j);
                                let elements = row.iter_mut().enumerate();
                                elements.for_each(|(i, b)| *b = input.data[start + i * input.stride]);
                            }
                        },
                    ),
                }
            }
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (j, result) in results.chunks_exact_mut(n).take(w).enumerate() {
                        kernel(std::array::from_fn(|k| &tiles[k][j * n..][..n]), result);
                    }
                },
            );
            simd::transpose(&results, n, (w, n), &mut back, w);
            let mut part = mat.part(0, n, from, w);
            vectorize::<A, _>(
                #[inline(always)]
                || (0..n).for_each(|i| put(part.row(i), &back[i * w..][..w], add)),
            );
        }
    };
    let size = n * inner;
    if size < GRAIN {
        let each = GRAIN / size;
        return par::for_each_chunk_mut(out, each * size, |task, out| {
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                columns(task * each + i, 0, MatMut::new(out, n, inner, inner));
            }
        });
    }
    let step = (GRAIN / n).next_multiple_of(width).max(width);
    let mut tasks = Vec::with_capacity(out.len() / size * inner.div_ceil(step));
    for (outer, out) in out.chunks_exact_mut(size).enumerate() {
        let mut rest = MatMut::new(out, n, inner, inner);
        for first in (0..inner).step_by(step) {
            let (left, right) = rest.split_cols(step.min(inner - first));
            tasks.push((outer, first, left));
            rest = right;
        }
    }
    par::each(tasks.len(), tasks.into_iter(), |(outer, first, mat)| columns(outer, first, mat));
}

/// The size of dimension `dim`; a 0-d tensor has a dimension 0 of size 1 here, as in PyTorch.
fn extent(shape: &Shape, dim: usize) -> usize {
    if shape.rank() == 0 { 1 } else { shape[dim] }
}

/// The one shape and dtype rule: all inputs alike, a dimension that exists.
fn infer(op: &'static str, dim: usize, inputs: &[Meta]) -> Result<Plan> {
    same_dtype(op, inputs)?;
    let shape = inputs[0].shape;
    if dim >= shape.rank().max(1) {
        return Err(Error::shape(op, format!("dimension {dim} is out of range for shape {shape}")));
    }
    if let Some(other) = inputs.iter().find(|m| m.shape != shape) {
        return Err(Error::shape(op, format!("{shape} and {} must be equal", other.shape)));
    }
    Ok(Plan::one(inputs[0]))
}

#[inline(always)]
fn largest<A: Real>(x: &[A]) -> A {
    fold_slices([x], A::NEG_INFINITY, |[v]| v, |a, b| Fold::<A>::join(&Max, a, b))
}

fn cases<O>(tolerance: Tolerance, inputs: &[Values], op: impl Fn(usize) -> O) -> Cases<O> {
    let shapes: [(&[usize], &[usize]); 12] = [
        (&[], &[0]),
        (&[1], &[0]),
        (&[7], &[0]),
        (&[5, 13], &[0, 1]),
        (&[2, 3, 17], &[0, 1, 2]),
        (&[1, 4, 1, 9], &[0, 1, 3]),
        (&[2, 1023], &[1]),
        (&[1, 1025], &[1, 0]),
        (&[300, 5], &[0, 1]),
        (&[3, 70, 2], &[1]),
        (&[33, 40], &[0]),
        (&[3, 0, 2], &[0, 1, 2]),
    ];
    let mut list = Vec::new();
    for (shape, dims) in shapes {
        for &dim in dims {
            let arg = |v: &Values| match inputs.len() {
                1 => Arg::new(shape, v.clone()),
                // Backwards are not differentiated.
                _ => Arg::constant(shape, v.clone()),
            };
            list.push(Case { op: op(dim), inputs: inputs.iter().map(arg).collect() });
        }
    }
    Cases { dtypes: &DType::FLOATS, tolerance, list }
}

const WHY: &str = "the rounding error of x − max is magnified by its size, here below 16";

/// yᵢ = e^xᵢ / Σ e^x along `dim`. Gradient: dx = y (dy − Σ dy y).
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    /// The dimension whose elements add up to 1.
    pub dim: usize,
}

impl Op for Softmax {
    const NAME: &'static str = "softmax";
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            along::<A, 1>(self.dim, [inputs[0]], &mut outputs[0], #[inline(always)] |[x], y| {
                let max = largest(x);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max).exp());
                let sum = sum_slices([&*y], |[e]| e);
                y.iter_mut().for_each(|y| *y /= sum);
            })
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let y = cx.output(0)?;
        cx.run(SoftmaxBackward { dim: self.dim }, &[&y, dy], &[0])
    }

    fn cases() -> Cases<Self> {
        cases(Tolerance::Ulp(32.0, WHY), &[Values::Normal(2.0)], |dim| Softmax { dim })
    }
}

/// dx = y (dy − Σ dy y) along `dim`, from y and dy: the backward of [`Softmax`].
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxBackward {
    /// The dimension whose elements add up to 1.
    pub dim: usize,
}

impl Op for SoftmaxBackward {
    const NAME: &'static str = "softmax_backward";
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            along::<A, 2>(self.dim, [inputs[0], inputs[1]], &mut outputs[0], #[inline(always)] |[y, dy], dx| {
                let sum = sum_slices([y, dy], |[y, dy]| y * dy);
                dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &dy)| *dx = y * (dy - sum));
            })
        })
    }

    fn cases() -> Cases<Self> {
        let tolerance = Tolerance::Sum(4.0, "a sum over the row, a difference and a product");
        cases(tolerance, &[Values::Uniform(0.0, 1.0), Values::Normal(1.0)], |dim| SoftmaxBackward { dim })
    }
}

/// yᵢ = xᵢ − ln Σ e^x along `dim`. Gradient: dx = dy − e^y Σ dy.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax {
    /// The dimension whose exponentials add up to 1.
    pub dim: usize,
}

impl Op for LogSoftmax {
    const NAME: &'static str = "log_softmax";
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            along::<A, 1>(self.dim, [inputs[0]], &mut outputs[0], #[inline(always)] |[x], y| {
                let max = largest(x);
                let log = sum_slices([x], |[x]| (x - max).exp()).ln();
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max) - log);
            })
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let y = cx.output(0)?;
        cx.run(LogSoftmaxBackward { dim: self.dim }, &[&y, dy], &[0])
    }

    fn cases() -> Cases<Self> {
        let tolerance =
            Tolerance::Sum(4.0, "two differences of numbers as large as x, max and the logarithm");
        cases(tolerance, &[Values::Normal(2.0)], |dim| LogSoftmax { dim })
    }
}

/// dx = dy − e^y Σ dy along `dim`, from y and dy: the backward of [`LogSoftmax`].
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmaxBackward {
    /// The dimension whose exponentials add up to 1.
    pub dim: usize,
}

impl Op for LogSoftmaxBackward {
    const NAME: &'static str = "log_softmax_backward";
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            along::<A, 2>(self.dim, [inputs[0], inputs[1]], &mut outputs[0], #[inline(always)] |[y, dy], dx| {
                let sum = sum_slices([dy], |[dy]| dy);
                dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &dy)| *dx = dy - y.exp() * sum);
            })
        })
    }

    fn cases() -> Cases<Self> {
        let tolerance = Tolerance::Sum(8.0, "a sum over the row and an exponential");
        cases(tolerance, &[Values::Uniform(-4.0, 0.0), Values::Normal(1.0)], |dim| LogSoftmaxBackward { dim })
    }
}

/// `dim` as a position; 0 and −1 of a 0-d tensor are fine.
fn position_of(op: &'static str, x: &Tensor, dim: isize) -> Result<usize> {
    if x.rank() == 0 && (dim == 0 || dim == -1) { Ok(0) } else { x.shape().dim(op, dim) }
}

impl Tensor {
    /// e^x / Σ e^x along dimension `dim`, which counts from the end if negative. An error for integers.
    #[track_caller]
    pub fn softmax(&self, dim: isize) -> Result<Tensor> {
        run1(Softmax { dim: position_of(Softmax::NAME, self, dim)? }, &[self])
    }

    /// The logarithm of the softmax along dimension `dim`, which counts from the end if negative, without the underflow
    /// that `softmax` followed by a logarithm has. An error for integers.
    #[track_caller]
    pub fn log_softmax(&self, dim: isize) -> Result<Tensor> {
        run1(LogSoftmax { dim: position_of(LogSoftmax::NAME, self, dim)? }, &[self])
    }
}
