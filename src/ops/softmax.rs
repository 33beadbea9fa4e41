//! Softmax and its logarithm along one dimension, and their backwards.
//!
//! The largest element is subtracted first, so nothing overflows and adding a constant to a row changes nothing but
//! rounding; log_softmax subtracts it before the logarithm of the sum, never both at once. A row whose largest element is
//! infinite gives NaN, as in PyTorch. Along the last dimension each row is worked on while it is in cache; along others
//! the reductions over columns and the elementwise pass of `reduce` do the work.
//!
//! `Real::exp(x)`, not `x.exp()`: where the type is known to be f32, that is the standard library's, which does not vectorise.

#![forbid(unsafe_code)]

mod gpu;

use std::ops::RangeInclusive;

use super::reduce::{folded, into_wide, map, real, same_dtype, wide};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::reduce::{Fold, GRAIN, Max, Reduction, Sum, SumOf};
use crate::cpu::reduce::{fold_slices, merged, position, sum_slices, vectorize};
use crate::device::Stream;
use crate::dtype::{Element, Real};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(Softmax, SoftmaxBackward, LogSoftmax, LogSoftmaxBackward);

/// An input as rows along one dimension.
pub(super) struct Strided<'a, A> {
    data: &'a [A],
    before: Vec<(usize, usize)>,
    stride: usize,
}

impl<'a, A: Element> Strided<'a, A> {
    /// Rows along dimension `dim`, behind which there are only dimensions of size 1.
    pub(super) fn new(view: &View<'a>, dim: usize) -> Self {
        let (shape, strides) = (view.shape(), view.layout().strides);
        let before = merged((0..dim.min(shape.rank())).map(|d| (shape[d], strides[d])).collect());
        Strided { data: view.data(), before, stride: if dim < shape.rank() { strides[dim] } else { 1 } }
    }

    /// Whether [`Strided::row`] needs no buffer.
    pub(super) fn direct(&self) -> bool {
        self.stride == 1
    }

    /// Row number `index`, `n` long: itself if it is contiguous, else brought into `buffer`.
    #[inline(always)]
    pub(super) fn row<'b>(&self, index: usize, n: usize, buffer: &'b mut [A]) -> &'b [A]
    where
        'a: 'b,
    {
        let start = position(&self.before, index);
        if self.stride == 1 {
            return &self.data[start..start + n];
        }
        let buffer = &mut buffer[..n];
        buffer.iter_mut().enumerate().for_each(|(i, b)| *b = self.data[start + i * self.stride]);
        buffer
    }
}

/// Whether rows along dimension `dim` are contiguous in an output of this shape.
fn is_last(shape: &Shape, dim: usize) -> bool {
    shape.iter().skip(dim + 1).product::<usize>() == 1
}

/// Runs `kernel` on each row of the inputs along the last dimension; it overwrites the row it is given last.
fn along_rows<A: Real, const N: usize>(
    dim: usize,
    inputs: [View<'_>; N],
    out: &mut Out<'_>,
    kernel: impl Fn([&[A]; N], &mut [A]) + Sync,
) -> Result<()> {
    let shape = out.shape();
    if shape.numel() == 0 {
        return Ok(());
    }
    let n = extent(&shape, dim);
    let mut copies = [const { None }; N];
    let mut views = inputs;
    for ((view, input), copy) in views.iter_mut().zip(&inputs).zip(&mut copies) {
        *view = wide(input, copy)?;
    }
    let inputs = views.map(|v| Strided::<A>::new(&v, dim));
    let vector = |len: usize| vec![A::ZERO; len];
    let rows = (GRAIN / n).max(1);
    into_wide(out, |out, add| {
        par::for_each_chunk_mut(out, rows * n, |task, out| {
            let mut buffers: [_; N] = std::array::from_fn(|k| vector(if inputs[k].direct() { 0 } else { n }));
            let mut result = vector(if add { n } else { 0 });
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(n).enumerate() {
                        let mut buffers = buffers.iter_mut();
                        let rows = std::array::from_fn(|k| {
                            inputs[k].row(task * rows + i, n, buffers.next().expect("one for each input"))
                        });
                        kernel(rows, if add { &mut result } else { &mut *out });
                        if add {
                            out.iter_mut().zip(&result).for_each(|(o, &v)| *o += v);
                        }
                    }
                },
            );
        });
        Ok(())
    })
}

/// `fold` over dimension `dim` of a view that is wide, with that dimension kept.
fn across<A: Real, F: Fold<A, Acc = A>>(
    dim: usize,
    fold: &F,
    view: &View<'_>,
    params: &[F::Param],
) -> Result<Block> {
    folded::<A, _>(&Reduction::new(view.layout(), |d| d == dim), fold, view, params)
}

/// The number of rows along `dim`.
fn count(shape: &Shape, dim: usize) -> usize {
    shape.with(dim, 1).numel()
}

/// max and Σ e^(x − max) over dimension `dim`, which is not the last.
fn exponentials<A: Real>(dim: usize, x: &View<'_>) -> Result<(Block, Block)> {
    let max = across::<A, _>(dim, &Max, x, &vec![(); count(&x.shape(), dim)])?;
    let sum = SumOf(
        #[inline(always)]
        |x: A, max: A| Real::exp(x - max),
    );
    let sum = across::<A, _>(dim, &sum, x, max.typed())?;
    Ok((max, sum))
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
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            let shape = inputs[0].shape();
            if is_last(&shape, self.dim) {
                return along_rows::<A, 1>(self.dim, [inputs[0]], &mut outputs[0], #[inline(always)] |[x], y| {
                    let max = largest(x);
                    y.iter_mut().zip(x).for_each(#[inline(always)] |(y, &x)| *y = Real::exp(x - max));
                    let sum = sum_slices([&*y], |[e]| e);
                    y.iter_mut().for_each(|y| *y /= sum);
                });
            }
            let mut copy = None;
            let x = wide(&inputs[0], &mut copy)?;
            let (max, sum) = exponentials::<A>(self.dim, &x)?;
            let kept = shape.with(self.dim, 1);
            let (max, sum) = (View::of(max.typed::<A>(), kept), View::of(sum.typed::<A>(), kept));
            map::<A, 3>([x, max, sum], &mut outputs[0], #[inline(always)] |[x, max, sum]| Real::exp(x - max) / sum)
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::forward(stream, gpu::Kind::Plain, self.dim, &inputs[0], &mut outputs[0])
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
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            let shape = inputs[0].shape();
            if is_last(&shape, self.dim) {
                return along_rows::<A, 2>(self.dim, [inputs[0], inputs[1]], &mut outputs[0], #[inline(always)] |[y, dy], dx| {
                    let sum = sum_slices([y, dy], |[y, dy]| y * dy);
                    dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &dy)| *dx = y * (dy - sum));
                });
            }
            let mut products = Block::new(shape.numel() * size_of::<A>())?;
            let mut out = Out::new(products.as_mut(), shape, A::DTYPE, Mode::Write);
            map::<A, 2>([inputs[0], inputs[1]], &mut out, #[inline(always)] |[y, dy]| y * dy)?;
            let products = View::of(products.typed::<A>(), shape);
            let sum = across::<A, _>(self.dim, &Sum, &products, &vec![(); count(&shape, self.dim)])?;
            let sum = View::of(sum.typed::<A>(), shape.with(self.dim, 1));
            map::<A, 3>([inputs[0], inputs[1], sum], &mut outputs[0], #[inline(always)] |[y, dy, sum]| y * (dy - sum))
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::backward(stream, gpu::Kind::Plain, self.dim, [&inputs[0], &inputs[1]], &mut outputs[0])
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
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            let shape = inputs[0].shape();
            if is_last(&shape, self.dim) {
                return along_rows::<A, 1>(self.dim, [inputs[0]], &mut outputs[0], #[inline(always)] |[x], y| {
                    let max = largest(x);
                    let log = Real::ln(sum_slices([x], #[inline(always)] |[x]| Real::exp(x - max)));
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max) - log);
                });
            }
            let mut copy = None;
            let x = wide(&inputs[0], &mut copy)?;
            let (max, mut log) = exponentials::<A>(self.dim, &x)?;
            log.typed_mut::<A>().iter_mut().for_each(|s| *s = Real::ln(*s));
            let kept = shape.with(self.dim, 1);
            let (max, log) = (View::of(max.typed::<A>(), kept), View::of(log.typed::<A>(), kept));
            map::<A, 3>([x, max, log], &mut outputs[0], #[inline(always)] |[x, max, log]| (x - max) - log)
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::forward(stream, gpu::Kind::Log, self.dim, &inputs[0], &mut outputs[0])
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
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, self.dim, inputs)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            let shape = inputs[0].shape();
            if is_last(&shape, self.dim) {
                return along_rows::<A, 2>(self.dim, [inputs[0], inputs[1]], &mut outputs[0], #[inline(always)] |[y, dy], dx| {
                    let sum = sum_slices([dy], |[dy]| dy);
                    let each = dx.iter_mut().zip(y).zip(dy);
                    each.for_each(#[inline(always)] |((dx, &y), &dy)| *dx = dy - Real::exp(y) * sum);
                });
            }
            let mut copy = None;
            let dy = wide(&inputs[1], &mut copy)?;
            let sum = across::<A, _>(self.dim, &Sum, &dy, &vec![(); count(&shape, self.dim)])?;
            let sum = View::of(sum.typed::<A>(), shape.with(self.dim, 1));
            map::<A, 3>([inputs[0], dy, sum], &mut outputs[0], #[inline(always)] |[y, dy, sum]| dy - Real::exp(y) * sum)
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::backward(stream, gpu::Kind::Log, self.dim, [&inputs[0], &inputs[1]], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let tolerance = Tolerance::Sum(8.0, "a sum over the row and an exponential");
        cases(tolerance, &[Values::Uniform(-4.0, 0.0), Values::Normal(1.0)], |dim| LogSoftmaxBackward { dim })
    }
}

/// `dim` as a position; 0 and −1 of a 0-d tensor are fine.
pub(super) fn position_of(op: &'static str, x: &Tensor, dim: isize) -> Result<usize> {
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
