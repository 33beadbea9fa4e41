//! Lookups and their gradients on GPUs: what `kernels/index.cu` is given.

#![forbid(unsafe_code)]

use super::lookup::{Table, bad_index};
use crate::device::Stream;
use crate::device::kernels::index::{MergeRuns, SortTiles, SumPieces, SumRows, Take, TakeRows};
use crate::device::launch::merge;
use crate::ops::size_class;
use crate::shape::Layout;
use crate::tensor::{Mode, Out, View};
use crate::{DType, Error, Result, Shape};

/// Pairs that one block sorts: `TILE` in the kernel.
const TILE: usize = 2048;
/// Pairs that one thread adds up at most: `PIECE` in the kernel.
const PIECE: usize = 64;
/// The shortest run of neighbours that is worth a row's own threads.
const RUN: usize = 4;

impl Table {
    /// As `take`, on a GPU. Bad indices are reported at the next synchronisation. `inner`: elements of the result behind
    /// each index.
    pub fn take_gpu(
        &self,
        s: &Stream,
        op: &'static str,
        [x, index]: [View<'_>; 2],
        spread: &Layout,
        inner: usize,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let (shape, n) = (out.shape(), out.shape().numel());
        if n == 0 {
            return Ok(());
        }
        let (xs, ix) = (self.base.strides, spread.strides);
        // The dimensions behind which one index covers neighbours of x.
        let (mut lead, mut run) = (shape.rank(), 1);
        while lead > 0 && (shape[lead - 1] == 1 || (ix[lead - 1] == 0 && xs[lead - 1] == run)) {
            lead -= 1;
            run *= shape[lead];
        }
        let size = self.size;
        let index_shape = index.shape();
        let mut fault =
            s.fault_slot(move |value, position| bad_index(op, index_shape, value, position, size))?;
        let class = size_class(x.dtype());
        let (src, dst) = (x.src().cast(class), out.dst().cast(class));
        let (size, inner, count) = (size as u64, inner as u64, index.numel() as u64);
        if run < RUN {
            let (dims, [xs, ix]) = merge(&shape, [&xs[..], &ix[..]]);
            let (n, step) = (n as u64, self.step as i64);
            return Take {
                x: src,
                index: index.src(),
                y: dst,
                fault: fault.dst(),
                dims,
                xs,
                ix,
                n,
                step,
                size,
                inner,
                count,
            }
            .launch(s);
        }
        let vector = 16 / class.size();
        let whole = |steps: usize| steps.is_multiple_of(vector);
        let wide = whole(run)
            && whole(self.step)
            && (0..lead).all(|d| shape[d] == 1 || whole(xs[d]))
            && (src.address() | dst.address()).is_multiple_of(16);
        let units = if wide { run / vector } else { run };
        let (dims, [xs, ix]) = merge(&shape[..lead], [&xs[..lead], &ix[..lead]]);
        TakeRows {
            wide: wide.into(),
            x: src,
            index: index.src(),
            y: dst,
            fault: fault.dst(),
            dims,
            xs,
            ix,
            rows: (n / run) as u64,
            run: run as u64,
            lanes: units.div_ceil(4).next_power_of_two().min(256) as u64,
            step: self.step as i64,
            size,
            inner,
            count,
        }
        .launch(s)
    }
}

/// A sum by index: number p of `index` says where in `0..rows` the p-th contribution goes, namely to
/// `Σ p[d] · by[d] + index · step`. dy is `[outer, indices, inner]`, the result `[outer, rows, inner]`.
pub(super) struct Sums {
    pub by: Shape,
    pub step: usize,
    /// What indices must be below.
    pub size: usize,
    pub rows: usize,
    pub outer: usize,
    pub inner: usize,
}

impl Sums {
    pub fn run(
        &self,
        s: &Stream,
        op: &'static str,
        dy: View<'_>,
        index: View<'_>,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let (n, width, size) = (index.numel(), self.outer * self.inner, self.size);
        if n.max(self.rows) >= u32::MAX as usize {
            return Err(Error::unsupported(op, "more than 2³² indices or rows on a GPU"));
        }
        let (n64, rows, inner) = (n as u64, self.rows as u64, self.inner as u64);
        let shape = index.shape();
        let mut fault = s.fault_slot(move |value, position| bad_index(op, shape, value, position, size))?;
        let (dims, [ix, by]) = merge(&shape, [&index.layout().strides[..], &self.by[..]]);
        let mut pairs = s.temp(DType::I64, n)?;
        SortTiles {
            index: index.src(),
            pairs: pairs.dst(),
            fault: fault.dst(),
            dims,
            ix,
            by,
            n: n64,
            step: self.step as u64,
            size: size as u64,
        }
        .launch(s)?;
        if out.shape().numel() == 0 {
            return Ok(());
        }
        let mut run = TILE;
        if run < n {
            let mut spare = s.temp(DType::I64, n)?;
            while run < n {
                MergeRuns { from: pairs.src(), to: spare.dst(), n: n64, run: run as u64 }.launch(s)?;
                std::mem::swap(&mut pairs, &mut spare);
                run *= 2;
            }
        }
        let dy = s.contiguous(&dy)?;
        let dy = dy.src();
        let pieces = n.div_ceil(PIECE);
        let add = (out.mode() == Mode::Accumulate).into();
        let dx = out.dst();
        let vector = 4 * dx.dtype().size() as u64;
        let vec = if inner % 4 == 0 && (dy.address() | dx.address()).is_multiple_of(vector) { 4 } else { 1 };
        let columns = width as u64 / u64::from(vec);
        let width = width as u64;
        // One piece has no border.
        let mut parts = s.temp(DType::F32, if pieces > 1 { 2 * pieces * width as usize } else { 1 })?;
        if pieces > 1 {
            let threads = pieces as u64 * columns;
            let (pairs, parts) = (pairs.src(), parts.dst());
            SumPieces { vec, pairs, dy, parts, n: n64, width, inner, threads }.launch(s)?;
        }
        let lanes = columns.next_power_of_two().min(32);
        let (pairs, parts) = (pairs.src(), parts.src());
        SumRows { vec, pairs, dy, parts, dx, n: n64, rows, width, inner, lanes, add }.launch(s)
    }
}
