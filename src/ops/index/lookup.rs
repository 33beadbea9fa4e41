//! Indices and the lookup kernel that embedding, gather and index_select share.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::GRAIN;
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::cpu::strided::Runs;
use crate::dtype::Element;
use crate::shape::Layout;
use crate::tensor::{Out, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// An integer that can be an index.
pub(in crate::ops) trait Index: Element {
    /// As a position; negative values become huge, so one comparison with the size refuses both kinds of bad index.
    fn place(self) -> usize;
    /// The value itself, for messages.
    fn value(self) -> i64;
}

impl Index for i32 {
    #[inline(always)]
    fn place(self) -> usize {
        self as usize
    }
    fn value(self) -> i64 {
        self.into()
    }
}

impl Index for i64 {
    #[inline(always)]
    fn place(self) -> usize {
        // On a 32-bit machine a cast alone would drop the upper half.
        if usize::BITS == 64 { self as usize } else { usize::try_from(self).unwrap_or(usize::MAX) }
    }
    fn value(self) -> i64 {
        self
    }
}

pub(in crate::ops) fn index_dtype(op: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::I32 | DType::I64 => Ok(()),
        _ => Err(Error::dtype(op, format!("indices must be i32 or i64, found {dtype}"))
            .with_help("cast them with to_dtype(DType::I64)")),
    }
}

pub(in crate::ops) fn float_dtype(op: &'static str, dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::dtype(op, format!("needs a floating-point tensor, found {dtype}"))
        .with_help("cast it with to_dtype"))
}

/// The error for the first index (in row-major order) that does not lie in `0..size` and is not `allowed`.
pub(in crate::ops) fn out_of_range(
    op: &'static str,
    index: View<'_>,
    size: usize,
    allowed: Option<i64>,
) -> Error {
    let shape = index.shape();
    let bad = dispatch!(int index.dtype(), I => {
        let values = index.layout().positions().map(|at| index.data::<I>()[at]);
        values.enumerate().find(|(_, v)| v.place() >= size && Some(v.value()) != allowed).map(|(p, v)| (p, v.value()))
    }, else None);
    let Some((position, value)) = bad else {
        return Error::internal("an index was refused, but all are in range").with_op(op);
    };
    bad_index(op, shape, value, position as u64, size)
}

/// The error for the index `value` at `position` (in row-major order) of an index tensor of `shape`.
pub(in crate::ops) fn bad_index(
    op: &'static str,
    shape: Shape,
    value: i64,
    position: u64,
    size: usize,
) -> Error {
    let mut position = position as usize;
    let mut place = vec![0; shape.rank()];
    for (d, at) in place.iter_mut().enumerate().rev() {
        (*at, position) = (position % shape[d], position / shape[d]);
    }
    Error::argument(format!("index {value} at position {place:?} is out of range for size {size}"))
        .with_op(op)
}

/// Copies the indices to `places`, in row-major order. Errors if one is not in `0..size`.
pub(super) fn read_indices(
    op: &'static str,
    index: View<'_>,
    size: usize,
    places: &mut [usize],
) -> Result<()> {
    let good = dispatch!(int index.dtype(), I => {
        let data = index.data::<I>();
        places.iter_mut().zip(index.layout().positions()).for_each(|(p, at)| *p = data[at].place());
        places.iter().all(|&p| p < size)
    }, else false);
    if good { Ok(()) } else { Err(out_of_range(op, index, size, None)) }
}

/// What is looked up: element e of the result is at `base(e) + index(e) · step`, and the index is below `size`.
pub(super) struct Table {
    pub base: Layout,
    pub step: usize,
    pub size: usize,
}

impl Table {
    /// Lookup along dimension `dim` of `x` for results of `shape`.
    pub fn along(x: View<'_>, dim: usize, shape: Shape) -> Table {
        let layout = x.layout();
        let base = Layout { shape, strides: layout.strides.with(dim, 0), offset: layout.offset };
        Table { base, step: layout.strides[dim], size: layout.shape[dim] }
    }

    /// Fills `out`. `spread` is the layout of `index` under the shape of the result.
    pub fn take(
        &self,
        op: &'static str,
        x: View<'_>,
        index: View<'_>,
        spread: &Layout,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let good = dispatch!(x.dtype(), T => dispatch!(int index.dtype(), I => {
            self.body::<T, I>(x.data(), index.data(), spread, out.slice())
        }, else false));
        if good { Ok(()) } else { Err(out_of_range(op, index, self.size, None)) }
    }

    /// Whether all indices were in range.
    fn body<T: Element, I: Index>(&self, x: &[T], index: &[I], spread: &Layout, out: &mut [T]) -> bool {
        let runs = Runs::new([&self.base, spread]);
        let [xs, is] = runs.strides;
        let bad = AtomicBool::new(false);
        par::for_each_chunk_mut(out, GRAIN, |c, chunk| {
            let range = c * GRAIN..c * GRAIN + chunk.len();
            runs.visit(range.start / runs.len..range.end.div_ceil(runs.len), |run, [x_at, i_at]| {
                let (from, to) = (range.start.max(run * runs.len), range.end.min((run + 1) * runs.len));
                let first = from - run * runs.len;
                let dst = &mut chunk[from - range.start..to - range.start];
                let (x_at, i_at) = (x_at + first * xs, i_at + first * is);
                let good = if is == 0 {
                    self.copy_run(x, x_at, xs, index[i_at], dst)
                } else {
                    self.pick(x, (x_at, xs), index, (i_at, is), dst)
                };
                if !good {
                    bad.store(true, Relaxed);
                }
            });
        });
        !bad.into_inner()
    }

    #[inline(always)]
    fn copy_run<T: Element, I: Index>(
        &self,
        x: &[T],
        at: usize,
        stride: usize,
        index: I,
        dst: &mut [T],
    ) -> bool {
        let place = index.place();
        if place >= self.size {
            return false;
        }
        let src = &x[at + place * self.step..];
        if stride == 1 {
            dst.copy_from_slice(&src[..dst.len()]);
        } else {
            dst.iter_mut().enumerate().for_each(|(k, d)| *d = src[k * stride]);
        }
        true
    }

    #[inline(always)]
    fn pick<T: Element, I: Index>(
        &self,
        x: &[T],
        (x_at, xs): (usize, usize),
        index: &[I],
        (i_at, is): (usize, usize),
        dst: &mut [T],
    ) -> bool {
        if is == 1 && xs == 0 && self.step == 1 && self.size > 0 {
            // Along the last dimension: everything comes from one row of x. A bad index reads the last element, so that the
            // loop has no branch and becomes vector gathers.
            let row = &x[x_at..][..self.size];
            return vectorize(
                #[inline(always)]
                || {
                    let mut good = true;
                    for (index, d) in index[i_at..].iter().zip(dst) {
                        let place = index.place();
                        good &= place < row.len();
                        *d = row[place.min(row.len() - 1)];
                    }
                    good
                },
            );
        }
        for (k, d) in dst.iter_mut().enumerate() {
            let place = index[i_at + k * is].place();
            if place >= self.size {
                return false;
            }
            *d = x[x_at + k * xs + place * self.step];
        }
        true
    }
}
