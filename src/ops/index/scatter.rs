//! The sums that are gradients of lookups: contributions added where an index says, in the order of the index.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::GRAIN;
use super::lookup::{Index, float_dtype, out_of_range};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::cpu::strided::Runs;
use crate::dtype::{Element, Float, Real};
use crate::ops::Plan;
use crate::shape::Layout;
use crate::tensor::{Meta, Mode, Out, View};
use crate::{Result, Shape, dispatch};

/// `row (+)= Σ data[start + j · column]` over `starts`, in their order, in the accumulator's precision.
pub(super) fn add_rows<T: Float>(
    row: &mut [T],
    starts: impl Iterator<Item = usize> + Clone,
    data: &[T],
    column: usize,
    write: bool,
) {
    const BLOCK: usize = 256;
    let mut sums = [T::Acc::ZERO; BLOCK];
    for (b, part) in row.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..part.len()];
        vectorize(
            #[inline(always)]
            || {
                match write {
                    true => sums.fill(T::Acc::ZERO),
                    false => {
                        for (s, v) in sums.iter_mut().zip(&*part) {
                            *s = v.to_acc();
                        }
                    }
                }
                for start in starts.clone() {
                    let from = &data[start + b * BLOCK * column..];
                    if column == 1 {
                        for (s, v) in sums.iter_mut().zip(from) {
                            *s += v.to_acc();
                        }
                    } else {
                        sums.iter_mut().enumerate().for_each(|(j, s)| *s += from[j * column].to_acc());
                    }
                }
                for (v, s) in part.iter_mut().zip(&*sums) {
                    *v = T::from_acc(*s);
                }
            },
        );
    }
}

/// Fills `order` with the positions of `rows`, by row and then by position; `buckets` is empty or has a place for each
/// row and one more.
pub(super) fn sort_positions(rows: &[usize], order: &mut [usize], buckets: &mut [usize]) {
    if buckets.is_empty() {
        order.iter_mut().enumerate().for_each(|(i, p)| *p = i);
        order.sort_unstable_by_key(|&p| (rows[p], p));
        return;
    }
    buckets.fill(0);
    rows.iter().for_each(|&r| buckets[r + 1] += 1);
    (1..buckets.len()).for_each(|r| buckets[r] += buckets[r - 1]);
    for (p, &r) in rows.iter().enumerate() {
        order[buckets[r]] = p;
        buckets[r] += 1;
    }
}

/// The plan of a gradient of `shape`; 16-bit types are summed in f32 scratch and rounded once.
pub(super) fn plan_scatter(op: &'static str, dy: Meta, shape: Shape) -> Result<Plan> {
    float_dtype(op, dy.dtype)?;
    let scratch = if dy.dtype.size() == 2 { shape.numel() * size_of::<f32>() } else { 0 };
    Ok(Plan { outputs: vec![dy.with_shape(shape)], scratch })
}

/// Adds `dy` into `out` where `index` (seen as `spread`, of dy's shape) says along `dim`.
pub(super) fn scatter(
    op: &'static str,
    dim: usize,
    dy: View<'_>,
    index: View<'_>,
    spread: &Layout,
    out: &mut Out<'_>,
    scratch: &mut [u8],
) -> Result<()> {
    let (shape, write) = (out.shape(), out.mode() == Mode::Write);
    let plan = Scatter { dim, shape, dy: *dy.layout(), index: *spread };
    let good = dispatch!(float dy.dtype(), T => dispatch!(int index.dtype(), I => {
        type A = <T as Float>::Acc;
        let (data, places) = (dy.data::<T>(), index.data::<I>());
        if T::DTYPE == A::DTYPE {
            plan.body(data, places, bytemuck::cast_slice_mut::<T, A>(out.slice()), write)
        } else {
            let sums: &mut [A] = bytemuck::cast_slice_mut(scratch);
            let good = plan.body(data, places, sums, true);
            let sums = &*sums;
            par::for_each_chunk_mut(out.slice::<T>(), GRAIN, |c, chunk| {
                let pairs = chunk.iter_mut().zip(&sums[c * GRAIN..]);
                match write {
                    true => pairs.for_each(|(v, s)| *v = T::from_acc(*s)),
                    false => pairs.for_each(|(v, s)| *v = T::from_acc(v.to_acc() + *s)),
                }
            });
            good
        }
    }, else false), else false);
    if good { Ok(()) } else { Err(out_of_range(op, index, shape[dim], None)) }
}

/// A sum by index into a contiguous tensor of `shape`. Both layouts have the shape of dy.
struct Scatter {
    dim: usize,
    shape: Shape,
    dy: Layout,
    index: Layout,
}

impl Scatter {
    /// Whether all indices were in range. The work is cut along the first dimension of `out`. If that is `dim` itself,
    /// every part walks all of dy and takes what is its own, which only pays if an index covers a whole slice.
    fn body<T: Float, I: Index>(&self, dy: &[T], index: &[I], out: &mut [T::Acc], write: bool) -> bool {
        if out.is_empty() {
            // Nothing to add to; but an index into a dimension of size 0 is still wrong.
            return self.shape[self.dim] > 0 || self.index.numel() == 0;
        }
        let (rows, row) = (self.shape[0], self.shape.strides()[0]);
        let per = match self.dim {
            0 if self.index.strides[1..].iter().any(|&s| s != 0) || self.shape.rank() == 1 => rows,
            0 => rows.div_ceil(8).max(GRAIN / row),
            _ => (GRAIN / row).max(1),
        };
        let bad = AtomicBool::new(false);
        par::for_each_chunk_mut(out, per * row, |c, chunk| {
            if write {
                chunk.fill(T::Acc::ZERO);
            }
            let (first, last) = (c * per, rows.min((c + 1) * per));
            if !self.part(dy, index, first..last, chunk) {
                bad.store(true, Relaxed);
            }
        });
        !bad.into_inner()
    }

    /// Adds what belongs in `rows` of the first dimension, which `out` holds.
    fn part<T: Float, I: Index>(
        &self,
        dy: &[T],
        index: &[I],
        rows: Range<usize>,
        out: &mut [T::Acc],
    ) -> bool {
        let strides = self.shape.strides();
        let (step, size) = (strides[self.dim], self.shape[self.dim]);
        let mut base = Layout { shape: self.dy.shape, strides: strides.with(self.dim, 0), offset: 0 };
        let (mut dy_layout, mut index_layout) = (self.dy, self.index);
        // Which indices are ours, counted from the start of `out`.
        let mut ours = 0..size;
        if self.dim == 0 {
            ours = rows;
        } else {
            let n = self.dy.shape[0];
            let (first, last) = (rows.start.min(n), rows.end.min(n));
            let cut = |l: &Layout| l.slice(0, first, last, 1).expect("cut to the dimension's size");
            (dy_layout, index_layout) = (cut(&dy_layout), cut(&index_layout));
            base = Layout { offset: 0, ..cut(&base) };
        }
        let runs = Runs::new([&base, &dy_layout, &index_layout]);
        let [os, ds, is] = runs.strides;
        let mut good = true;
        runs.visit(0..runs.count, |_, [o_at, d_at, i_at]| {
            if is == 0 {
                let place = index[i_at].place();
                good &= place < size;
                if !ours.contains(&place) {
                    return;
                }
                let (out, dy) = (&mut out[o_at + (place - ours.start) * step..], &dy[d_at..]);
                if os == 1 && ds == 1 {
                    let len = runs.len;
                    vectorize(
                        #[inline(always)]
                        || {
                            for (o, d) in out[..len].iter_mut().zip(&dy[..len]) {
                                *o += d.to_acc();
                            }
                        },
                    );
                } else {
                    (0..runs.len).for_each(|k| out[k * os] += dy[k * ds].to_acc());
                }
                return;
            }
            if os == 0 && step == 1 && is == 1 && ds == 1 && ours.len() == size {
                // Along the last dimension, all of it: everything happens in one row of `out`.
                let out = &mut out[o_at..][..ours.len()];
                for (index, d) in index[i_at..][..runs.len].iter().zip(&dy[d_at..]) {
                    match out.get_mut(index.place()) {
                        Some(o) => *o += d.to_acc(),
                        None => good = false,
                    }
                }
                return;
            }
            for k in 0..runs.len {
                let place = index[i_at + k * is].place();
                if ours.contains(&place) {
                    out[o_at + k * os + (place - ours.start) * step] += dy[d_at + k * ds].to_acc();
                } else {
                    good &= place < size;
                }
            }
        });
        good
    }
}
