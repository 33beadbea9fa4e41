//! Running sums along one dimension.
//!
//! Sums are kept in f32 (f64 for f64, i64 for integers, which wrap) and each result is rounded once. A row is cut into
//! segments of fixed length and these into strips: each is summed from zero and what lies before it is added, so that the order
//! of additions depends on the shape alone and no chain of them is long. Along a dimension that is not the last one, whole rows of the others
//! are added up side by side.

#![forbid(unsafe_code)]

mod gpu;

use std::ops::RangeInclusive;

use super::reduce::{into_wide, packed, wide_dtype};
use super::softmax::position_of;
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::cpu::reduce::vectorize;
use crate::device::Stream;
use crate::dtype::Element;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Tensor, View};
use crate::{DType, Error, Result, Shape};

pub(super) use gpu::running_sums;

super::family!(CumSum);

/// Elements that one chain of additions runs over.
const STRIP: usize = 64;
/// The elements of as many strips as one chain of additions runs over.
const SEGMENT: usize = 64 * STRIP;
/// Elements that one task takes.
const GRAIN: usize = 16 * 1024;
/// Columns that one task takes.
const COLUMNS: usize = 512;
/// Rows that are worth cutting into columns.
const WIDE: usize = 64;

/// What running sums are kept in.
trait Number: Element {
    /// 0.
    const ZERO: Self;
    /// The sum; that of integers wraps.
    fn plus(self, other: Self) -> Self;
}

impl Number for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn plus(self, other: f32) -> f32 {
        self + other
    }
}

impl Number for f64 {
    const ZERO: f64 = 0.0;
    #[inline(always)]
    fn plus(self, other: f64) -> f64 {
        self + other
    }
}

impl Number for i64 {
    const ZERO: i64 = 0;
    #[inline(always)]
    fn plus(self, other: i64) -> i64 {
        self.wrapping_add(other)
    }
}

/// A tensor seen from dimension `dim`: the product of the sizes before it, its size, the product of those after it.
fn around(shape: &Shape, dim: usize) -> [usize; 3] {
    let n = if shape.rank() == 0 { 1 } else { shape[dim] };
    [shape.iter().take(dim).product(), n, shape.iter().skip(dim + 1).product()]
}

/// How results are written.
#[derive(Clone, Copy)]
struct How {
    /// From the last element to the first.
    reverse: bool,
    /// Added to what is there.
    add: bool,
}

impl How {
    /// The place of the i-th element of `n` in the order of the sum.
    #[inline(always)]
    fn place(self, i: usize, n: usize) -> usize {
        if self.reverse { n - 1 - i } else { i }
    }
}

/// Running sums of one segment of a row, from `carry`; the new carry.
#[inline(always)]
fn segment<A: Number>(x: &[A], carry: A, out: &mut [A], how: How) -> A {
    let (mut strips, n) = (A::ZERO, x.len());
    for first in (0..n).step_by(STRIP) {
        let (mut sum, before) = (A::ZERO, carry.plus(strips));
        for i in first..n.min(first + STRIP) {
            let at = how.place(i, n);
            sum = sum.plus(x[at]);
            let total = before.plus(sum);
            out[at] = if how.add { out[at].plus(total) } else { total };
        }
        strips = strips.plus(sum);
    }
    carry.plus(strips)
}

/// The sum of a segment, by the same additions.
fn segment_sum<A: Number>(x: &[A], how: How) -> A {
    let n = x.len();
    let strip =
        |first: usize| (first..n.min(first + STRIP)).fold(A::ZERO, |sum, i| sum.plus(x[how.place(i, n)]));
    (0..n).step_by(STRIP).fold(A::ZERO, |sum, first| sum.plus(strip(first)))
}

/// The segments of a row of `n` in the order of the sum.
fn segments(n: usize, how: How) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..n.div_ceil(SEGMENT)).map(move |s| {
        let (first, last) = (s * SEGMENT, n.min((s + 1) * SEGMENT));
        if how.reverse { n - last..n - first } else { first..last }
    })
}

/// Rows of `n`, one after the other.
fn rows<A: Number>(x: &[A], n: usize, out: &mut [A], how: How) {
    let count = x.len() / n;
    if n <= 4 * GRAIN || count > 8 {
        let per = (GRAIN / n).max(1);
        return par::for_each_chunk_mut(out, per * n, |task, out| {
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (r, out) in out.chunks_exact_mut(n).enumerate() {
                        let row = &x[(task * per + r) * n..][..n];
                        let mut carry = A::ZERO;
                        for range in segments(n, how) {
                            carry = segment(&row[range.clone()], carry, &mut out[range], how);
                        }
                    }
                },
            );
        });
    }
    // A few long rows: the sums of all segments first, then each from what is before it. The same additions as above.
    for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let ranges: Vec<_> = segments(n, how).collect();
        let mut carries =
            par::map_chunks(ranges.len(), 1, |r| segment_sum(&row[ranges[r.start].clone()], how));
        let mut carry = A::ZERO;
        for sum in &mut carries {
            let next = carry.plus(*sum);
            *sum = std::mem::replace(&mut carry, next);
        }
        // Reversed, the first segment in memory is the last one, which may be short.
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut rest = out;
        if how.reverse {
            for range in &ranges {
                let (before, piece) = rest.split_at_mut(range.start);
                pieces.push(piece);
                rest = before;
            }
        } else {
            pieces.extend(rest.chunks_mut(SEGMENT));
        }
        let tasks = pieces.into_iter().zip(&ranges).zip(&carries);
        par::each(ranges.len(), tasks, |((out, range), &carry)| {
            segment(&row[range.clone()], carry, out, how);
        });
    }
}

/// Columns of one slice of rows of `inner`, from column `first` on; `out` has those of each row.
fn columns<A: Number>(x: &[A], inner: usize, first: usize, out: &mut [&mut [A]], how: How) {
    let n = out.len();
    let width = out.first().map_or(0, |o| o.len());
    let [mut carries, mut strips, mut sums, mut before] = [[A::ZERO; COLUMNS]; 4];
    vectorize::<A, _>(
        #[inline(always)]
        || {
            for i in 0..n {
                if i > 0 && i.is_multiple_of(STRIP) {
                    lift(&mut strips[..width], &mut sums[..width]);
                    if i.is_multiple_of(SEGMENT) {
                        lift(&mut carries[..width], &mut strips[..width]);
                    }
                    let levels = carries.iter().zip(&strips);
                    before.iter_mut().zip(levels).for_each(|(b, (&c, &s))| *b = c.plus(s));
                }
                let at = how.place(i, n);
                let row = &x[at * inner + first..][..width];
                for (((o, &x), sum), &before) in out[at].iter_mut().zip(row).zip(&mut sums).zip(&before) {
                    *sum = sum.plus(x);
                    let total = before.plus(*sum);
                    *o = if how.add { o.plus(total) } else { total };
                }
            }
        },
    );
}

/// Adds sums to those one level higher, and starts them again.
#[inline(always)]
fn lift<A: Number>(to: &mut [A], from: &mut [A]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t = t.plus(std::mem::replace(f, A::ZERO)));
}

/// Running sums along the middle dimension of `[outer, n, inner]`.
fn scan<A: Number>(x: &[A], [outer, n, inner]: [usize; 3], out: &mut [A], how: How) {
    if x.is_empty() {
        return;
    }
    if inner == 1 {
        return rows(x, n, out, how);
    }
    if inner < WIDE {
        let per = (GRAIN / (n * inner)).max(1);
        return par::for_each_chunk_mut(out, per * n * inner, |task, out| {
            for (o, out) in out.chunks_exact_mut(n * inner).enumerate() {
                let mut parts: Vec<&mut [A]> = out.chunks_mut(inner).collect();
                columns(&x[(task * per + o) * n * inner..], inner, 0, &mut parts, how);
            }
        });
    }
    let blocks = inner.div_ceil(COLUMNS);
    let mut tasks: Vec<Vec<&mut [A]>> = (0..outer * blocks).map(|_| Vec::with_capacity(n)).collect();
    for (row, out) in out.chunks_exact_mut(inner).enumerate() {
        for (block, part) in out.chunks_mut(COLUMNS).enumerate() {
            tasks[row / n * blocks + block].push(part);
        }
    }
    par::each(tasks.len(), tasks.iter_mut().enumerate(), |(task, parts)| {
        columns(&x[task / blocks * n * inner..], inner, task % blocks * COLUMNS, parts, how);
    });
}

/// Running sums along `dim`: element i is the sum of elements 0 to i, or of i to the last if `reverse`. Integers give i64.
/// Gradient: the running sum of dy the other way round.
#[derive(Clone, Copy, Debug)]
pub struct CumSum {
    /// The dimension.
    pub dim: usize,
    /// Whether the sums run from the last element to the first.
    pub reverse: bool,
}

impl Op for CumSum {
    const NAME: &'static str = "cumsum";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        if self.dim >= x.shape.rank().max(1) {
            let message = format!("dimension {} is out of range for shape {}", self.dim, x.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(if x.dtype.is_float() { x } else { x.with_dtype(DType::I64) }))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (x, out) = (inputs[0], &mut outputs[0]);
        let (sizes, reverse) = (around(&x.shape(), self.dim), self.reverse);
        let mut copy = None;
        match wide_dtype(x.dtype()) {
            DType::I64 => {
                let how = How { reverse, add: out.mode() == Mode::Accumulate };
                scan(packed::<i64>(&x, &mut copy)?, sizes, out.slice(), how);
                Ok(())
            }
            DType::F64 => {
                let x = packed::<f64>(&x, &mut copy)?;
                into_wide(out, |out, add| {
                    scan(x, sizes, out, How { reverse, add });
                    Ok(())
                })
            }
            _ => {
                let x = packed::<f32>(&x, &mut copy)?;
                into_wide(out, |out, add| {
                    scan(x, sizes, out, How { reverse, add });
                    Ok(())
                })
            }
        }
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::cumsum(stream, self, &inputs[0], &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        cx.run(CumSum { dim: self.dim, reverse: !self.reverse }, &[dy], &[0])
    }

    fn cases() -> Cases<Self> {
        let shapes: [(usize, &[usize]); 18] = [
            (0, &[]),
            (0, &[1]),
            (0, &[7]),
            (0, &[33]),
            (1, &[5, 13]),
            (0, &[5, 13]),
            (1, &[2, 3, 17]),
            (2, &[2, 3, 17]),
            (1, &[4, 1, 9]),
            (0, &[0]),
            (1, &[3, 0, 2]),
            (0, &[3, 0, 2]),
            (1, &[2, 1023]),
            (1, &[3, 260]),
            (0, &[300, 5]),
            (1, &[1, 70, 66]),
            // More than one piece of a GPU's row, and of its columns.
            (1, &[2, 2500]),
            (0, &[1100, 2]),
        ];
        let case = |(number, (dim, shape)): (usize, (usize, &[usize]))| {
            [number % 2 == 0, number % 3 == 0].map(|reverse| Case {
                op: CumSum { dim, reverse },
                inputs: vec![Arg::new(shape, Values::Normal(1.0))],
            })
        };
        let list = shapes.into_iter().enumerate().flat_map(case).collect();
        let why = "a chain of 64 additions, one of 64 of these, one of those";
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Sum(136.0, why), list }
    }
}

impl Tensor {
    /// The running sums along dimension `dim` (counted from the end if negative): element i is the sum of elements 0 to i.
    /// Floats are added up in f32 (f64 for f64) and keep their type; integers give i64, wrapping. Errors if there is no
    /// such dimension.
    #[track_caller]
    pub fn cumsum(&self, dim: isize) -> Result<Tensor> {
        run1(CumSum { dim: position_of(CumSum::NAME, self, dim)?, reverse: false }, &[self])
    }
}
