//! Rows of classes for the losses over a distribution: reading them from any layout, and the softmax statistics.

#![forbid(unsafe_code)]

use super::{GRAIN, Reduction, fold};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::dtype::{Element, Float, Real};
use crate::shape::Layout;
use crate::tensor::{Meta, Mode, Out, View};
use crate::{DType, Result, Shape};

/// The rows of a tensor along its last dimension.
pub(super) struct Rows<'a, T> {
    data: &'a [T],
    /// Where rows start.
    lead: Layout,
    stride: usize,
    width: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    /// Of a view of rank 1 or more.
    pub fn new(view: View<'a>) -> Rows<'a, T> {
        let (layout, last) = (view.layout(), view.shape().rank() - 1);
        let lead = Layout {
            shape: layout.shape.without(last),
            strides: layout.strides.without(last),
            offset: layout.offset,
        };
        let (stride, width) = (layout.strides[last], layout.shape[last]);
        Rows { data: view.data(), lead, stride, width }
    }

    /// How many elements a buffer for [`Rows::load`] needs: none where rows can be read in place.
    pub fn buffer(&self) -> Vec<T::Acc> {
        let in_place = self.stride == 1 && T::DTYPE == <T::Acc as Element>::DTYPE;
        vec![T::Acc::ZERO; if in_place { 0 } else { self.width }]
    }

    fn start(&self, mut row: usize) -> usize {
        let mut at = self.lead.offset;
        for d in (1..self.lead.shape.rank()).rev() {
            at += row % self.lead.shape[d] * self.lead.strides[d];
            row /= self.lead.shape[d];
        }
        // Outermost, or the only row: no division needed.
        at += row * self.lead.strides.first().unwrap_or(&0);
        at
    }

    /// Row number `row` in row-major order of the leading dimensions; through `buffer` where it cannot be read in place.
    pub fn load<'b>(&'b self, row: usize, buffer: &'b mut [T::Acc]) -> &'b [T::Acc] {
        if self.width == 0 {
            return &[];
        }
        let data = &self.data[self.start(row)..];
        if buffer.is_empty() {
            return bytemuck::cast_slice(&data[..self.width]);
        }
        if self.stride == 1 {
            vectorize(
                #[inline(always)]
                || {
                    for (b, v) in buffer.iter_mut().zip(data) {
                        *b = v.to_acc();
                    }
                },
            );
        } else {
            buffer.iter_mut().enumerate().for_each(|(k, b)| *b = data[k * self.stride].to_acc());
        }
        buffer
    }
}

#[inline(always)]
fn larger<A: Real>(a: A, b: A) -> A {
    if b > a { b } else { a }
}

/// The largest element; −∞ for none. NaN is passed over: it comes back from the sum of exponentials.
#[inline(always)]
pub(super) fn row_max<A: Real>(row: &[A]) -> A {
    let mut lanes = [A::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for l in 0..16 {
            lanes[l] = larger(lanes[l], chunk[l]);
        }
    }
    for (v, lane) in tail.iter().zip(&mut lanes) {
        *lane = larger(*lane, *v);
    }
    fold(lanes, larger)
}

/// `Σ f(i, row[i])` in sixteen lanes. For inside `vectorize`.
#[inline(always)]
pub(super) fn row_sum<A: Real>(row: &[A], f: impl Fn(usize, A) -> A) -> A {
    let mut lanes = [A::ZERO; 16];
    let whole = row.len() / 16 * 16;
    for (c, chunk) in row.chunks_exact(16).enumerate() {
        for l in 0..16 {
            lanes[l] += f(c * 16 + l, chunk[l]);
        }
    }
    for (l, v) in row[whole..].iter().enumerate() {
        lanes[l] += f(whole + l, *v);
    }
    fold(
        lanes,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// The largest element m of a row times `scale`, and `Σ exp(scale · x − m)`: what a softmax needs.
#[inline(always)]
pub(super) fn softmax_stats<A: Real>(row: &[A], scale: A) -> (A, A) {
    let max = row_max(row) * scale;
    let sum = row_sum(
        row,
        #[inline(always)]
        |_, x| (x * scale - max).exp(),
    );
    (max, sum)
}

/// Puts `f(i)` in every place of an output row, or adds it there. For inside `vectorize`.
#[inline(always)]
pub(super) fn put_row<T: Float>(out: &mut [T], mode: Mode, f: impl Fn(usize) -> T::Acc) {
    match mode {
        Mode::Accumulate => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = T::from_acc(o.to_acc() + f(i));
            }
        }
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = T::from_acc(f(i));
            }
        }
    }
}

/// The gradients of the rows of `lead`: one each, or one for all, as rows of width 1.
pub(super) fn dy_rows<T: Float>(dy: View<'_>, lead: Shape) -> Result<Rows<'_, T>> {
    let dy = dy.expand(&lead)?;
    let (layout, rank) = (*dy.layout(), lead.rank());
    let (shape, strides) = (layout.shape.inserted(rank, 1), layout.strides.inserted(rank, 1));
    Ok(Rows::new(dy.with_layout(Layout { shape, strides, ..layout })))
}

/// The weights of the classes as a row.
pub(super) fn weights<T: Float>(view: View<'_>) -> Vec<T::Acc> {
    let data = view.data::<T>();
    view.layout().positions().map(|at| data[at].to_acc()).collect()
}

/// Shape and type of the statistics of rows: `count` numbers a row. They are f64 whatever the logits are, so that nothing
/// is rounded twice.
pub(super) fn stats_meta(logits: Meta, count: usize) -> Meta {
    logits.with_shape(logits.shape.with(logits.shape.rank() - 1, count)).with_dtype(DType::F64)
}

/// Runs `work` over chunks of rows. For each row, in order, it hands a function that fills the row's `N` statistics and
/// returns its loss; the losses are stored, or added up in f64 in the order of the rows and divided by `by`.
pub(super) fn reduce_rows<T: Float, const N: usize>(
    reduction: Reduction,
    by: f64,
    count: usize,
    classes: usize,
    loss: &mut Out<'_>,
    stats: &mut Out<'_>,
    work: impl Fn(std::ops::Range<usize>, &mut dyn FnMut(&mut dyn FnMut(&mut [f64]) -> T::Acc)) + Sync,
) {
    let per = (GRAIN / classes.max(1)).max(1);
    let chunks = count.div_ceil(per);
    let mut sums = vec![0f64; chunks];
    let each = reduction == Reduction::None;
    let losses = if each { loss.slice::<T>() } else { &mut [] };
    let mut parts = losses.chunks_mut(per);
    let parts = std::iter::repeat_with(move || parts.next().unwrap_or_default());
    let items = stats.slice::<f64>().chunks_mut(N * per).zip(&mut sums).zip(parts).enumerate();
    par::each(chunks, items, |(c, ((stats, total), losses))| {
        let (first, n) = (c * per, stats.len() / N);
        let mut rows = stats.chunks_exact_mut(N).enumerate();
        work(first..first + n, &mut |row| {
            let Some((k, stats)) = rows.next() else { return };
            let value = row(stats);
            *total += value.to_f64();
            if let Some(loss) = losses.get_mut(k) {
                *loss = T::from_acc(value);
            }
        });
    });
    if !each {
        loss.slice::<T>()[0] = T::from_acc(T::Acc::of(sums.iter().sum::<f64>() / by));
    }
}
