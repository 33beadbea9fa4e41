//! Packing: copies of parts of the factors in the order in which the tile kernel reads them, widened where they are 16-bit.

#![forbid(unsafe_code)]

use std::cell::Cell;

use super::MatRef;
use crate::cpu::simd::{Rows, TileShape, transpose, vectorize};
use crate::dtype::{DType, Element, Float, Real, f16};
use half::slice::HalfFloatSliceExt;

/// A cache line: what buffers are made of, so that packed vectors never straddle two.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Line([u8; 64]);

/// The buffers of one thread; they grow to the largest product it has computed and are kept for the next.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Buffers {
    /// The packed vector side: at most BLOCK columns by RUN steps.
    pub panels: Vec<Line>,
    /// One strip of rows of the other side, or of the result.
    pub strip: Vec<Line>,
    /// Sums that cannot be kept in C: transposed or wider ones.
    pub sums: Vec<Line>,
    /// An image with zeros around it (convolution).
    pub planes: Vec<Line>,
}

/// Sums and images larger than this are given back after use.
const KEEP: usize = (8 << 20) / size_of::<Line>();

impl Buffers {
    /// Lends this thread's buffers.
    pub fn with(f: impl FnOnce(&mut Buffers)) {
        thread_local! {
            static BUFFERS: Cell<Buffers> = Cell::default();
        }
        let mut buffers = BUFFERS.take();
        f(&mut buffers);
        for large in [&mut buffers.sums, &mut buffers.planes] {
            if large.capacity() > KEEP {
                *large = Vec::new();
            }
        }
        BUFFERS.set(buffers);
    }
}

/// The first `len` elements of a buffer, which grows if it must; their values are arbitrary.
pub(in crate::cpu) fn view<R: Real>(buffer: &mut Vec<Line>, len: usize) -> &mut [R] {
    let lines = (len * size_of::<R>()).div_ceil(size_of::<Line>());
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 64]));
    }
    &mut bytemuck::cast_slice_mut(&mut buffer[..lines])[..len]
}

/// Up to this many rows of the other side, packing costs more than it saves. On a Zen 4 core (2026-11) reading in place was up
/// to 9 % faster at 64 rows, 2 % at 256, and 4 % slower at 1024; strides of a power of two made no difference.
const IN_PLACE_ROWS: usize = 256;

/// Whether the vector side is read where it lies: its columns are adjacent and it is read too few times (by `rows` rows
/// of the other side) to pay for a copy.
pub(super) fn in_place<T: Float>(rows: usize, col_stride: usize) -> bool {
    T::DTYPE == <T::Acc as Element>::DTYPE && col_stride == 1 && rows <= IN_PLACE_ROWS
}

/// Packs v [k, n] into panels of `shape.cols()` columns, each k rows of whole vectors; the last is narrower and filled up
/// with zeros, which meet no result.
pub(super) fn panels<T: Float<Acc = R>, R: Real>(v: MatRef<'_, T>, shape: TileShape, out: &mut [R]) {
    let mut out = out;
    for at in (0..v.cols).step_by(shape.cols()) {
        let cols = shape.cols().min(v.cols - at);
        let width = cols.next_multiple_of(shape.lanes);
        let (panel, rest) = out.split_at_mut(width * v.rows);
        one_panel(v.part(0, v.rows, at, cols), width, panel);
        out = rest;
    }
}

fn one_panel<T: Float<Acc = R>, R: Real>(v: MatRef<'_, T>, width: usize, panel: &mut [R]) {
    if v.rows == 0 {
        return;
    }
    if v.cols < width {
        for row in panel.chunks_exact_mut(width) {
            row[v.cols..].fill(R::ZERO);
        }
    }
    copy(v, panel, width);
}

/// `out[p · stride + j] = v[p, j]`.
fn copy<T: Float<Acc = R>, R: Real>(v: MatRef<'_, T>, out: &mut [R], stride: usize) {
    let (rows, cols) = (v.rows, v.cols);
    match v.unwidened::<R>() {
        Some(data) if v.row_stride == 1 => transpose(data, v.col_stride, (cols, rows), out, stride),
        Some(data) if v.col_stride == 1 => vectorize(|| match cols {
            8 => copy_rows::<R, 8>(data, v.row_stride, rows, out, stride),
            16 => copy_rows::<R, 16>(data, v.row_stride, rows, out, stride),
            24 => copy_rows::<R, 24>(data, v.row_stride, rows, out, stride),
            48 => copy_rows::<R, 48>(data, v.row_stride, rows, out, stride),
            _ => {
                for (p, row) in out.chunks_mut(stride).take(rows).enumerate() {
                    row[..cols].copy_from_slice(&data[p * v.row_stride..][..cols]);
                }
            }
        }),
        None if v.row_stride == 1 => {
            // Widened along memory, a block at a time, and turned from there.
            const STEPS: usize = 64;
            let mut block = [R::ZERO; 8 * STEPS];
            for j in (0..cols).step_by(8) {
                let lanes = 8.min(cols - j);
                for p in (0..rows).step_by(STEPS) {
                    let steps = STEPS.min(rows - p);
                    for (lane, run) in block.chunks_exact_mut(STEPS).take(lanes).enumerate() {
                        widen(&v.data[(j + lane) * v.col_stride + p..][..steps], &mut run[..steps]);
                    }
                    transpose(&block, STEPS, (lanes, steps), &mut out[p * stride + j..], stride);
                }
            }
        }
        None if v.col_stride == 1 => {
            for (p, row) in out.chunks_mut(stride).take(rows).enumerate() {
                widen(&v.data[p * v.row_stride..][..cols], &mut row[..cols]);
            }
        }
        _ => vectorize(|| {
            for (p, row) in out.chunks_mut(stride).take(rows).enumerate() {
                for (j, x) in row[..cols].iter_mut().enumerate() {
                    *x = v.data[p * v.row_stride + j * v.col_stride].to_acc();
                }
            }
        }),
    }
}

/// `out[i] = src[i]`, widened.
fn widen<T: Float<Acc = R>, R: Real>(src: &[T], out: &mut [R]) {
    if T::DTYPE == DType::F16
        && let (Ok(src), Ok(out)) =
            (bytemuck::try_cast_slice::<T, f16>(src), bytemuck::try_cast_slice_mut(&mut *out))
    {
        // Eight at a time where there is F16C, which no plain loop is compiled to.
        return src.convert_to_f32_slice(out);
    }
    vectorize(|| out.iter_mut().zip(src).for_each(|(out, x)| *out = x.to_acc()));
}

/// Copies rows of a length that the compiler knows: a few vector moves each, where a call of `memcpy` would cost as much
/// again.
#[inline(always)]
fn copy_rows<R: Real, const N: usize>(
    data: &[R],
    data_stride: usize,
    rows: usize,
    out: &mut [R],
    stride: usize,
) {
    for (p, row) in out.chunks_mut(stride).take(rows).enumerate() {
        if let (Some(to), Some(from)) =
            (row.first_chunk_mut::<N>(), data[p * data_stride..].first_chunk::<N>())
        {
            *to = *from;
        }
    }
}

/// Whether a strip is copied: it must be widened, or its steps of k are far apart and more than one panel reads them.
pub(super) fn copies<T: Float>(width: usize, col_stride: usize, shape: TileShape) -> bool {
    T::DTYPE != <T::Acc as Element>::DTYPE || (col_stride != 1 && width > shape.cols())
}

/// The rows s [m, k] as tiles read them, a strip at a time: where they lie, or copies where they must be widened or are read
/// often enough (`width` columns of the result) for a copy to pay.
pub(super) struct Strips<'b, T, R> {
    s: MatRef<'b, T>,
    shape: TileShape,
    /// The elements where they lie, if they are used there.
    data: Option<&'b [R]>,
    buffer: &'b mut Vec<Line>,
    /// The rows that the buffer holds.
    held: std::ops::Range<usize>,
}

impl<'b, T: Float<Acc = R>, R: Real> Strips<'b, T, R> {
    pub fn new(s: MatRef<'b, T>, width: usize, shape: TileShape, buffer: &'b mut Vec<Line>) -> Self {
        let data = s.unwidened().filter(|_| !copies::<T>(width, s.col_stride, shape));
        Strips { s, shape, data, buffer, held: 0..0 }
    }

    /// Rows `row..row + rows`; called in ascending order, with the row counts that [`TileShape::step`] gives.
    pub fn get(&mut self, row: usize, rows: usize) -> Rows<'_, R> {
        let s = &self.s;
        if let Some(data) = self.data {
            let data = data.get(row * s.row_stride..).unwrap_or(&[]);
            return Rows { data, row_stride: s.row_stride, col_stride: s.col_stride };
        }
        if !self.held.contains(&row) {
            self.fill(row);
        }
        let len = (self.held.end - self.held.start) * self.s.cols;
        let out = view::<R>(self.buffer, len);
        let data = &out[(row - self.held.start) * self.s.cols..];
        Rows { data, row_stride: 1, col_stride: rows }
    }

    /// Copies the next eight strips, [k, rows] each: all of them for a few steps of k before the next few, so that lines that
    /// hold elements of several strips are fetched once.
    fn fill(&mut self, row: usize) {
        const STEPS: usize = 32;
        let s = self.s;
        self.held = row..s.rows.min(row + 8 * self.shape.rows[0]);
        let out = view::<R>(self.buffer, self.held.len() * s.cols);
        for step in (0..s.cols).step_by(STEPS) {
            let steps = STEPS.min(s.cols - step);
            let mut at = row;
            while at < self.held.end {
                // As the caller counts: from the rows that are left of all.
                let rows = self.shape.step(s.rows - at);
                let to = (at - row) * s.cols + step * rows;
                copy(s.part(at, rows, step, steps).t(), &mut out[to..], rows);
                at += rows;
            }
        }
    }
}
