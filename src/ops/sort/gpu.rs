//! Sorting on a GPU: what `kernels/sort.cu` is given.

#![forbid(unsafe_code)]

use super::{SortBackward, extent, turned};
use crate::device::kernels::sort as kernels;
use crate::device::launch::{Dst, Src, narrow};
use crate::device::stream::Temp;
use crate::device::{Stream, copy};
use crate::ops::index::bad_index;
use crate::ops::scan::running_sums;
use crate::shape::Layout;
use crate::tensor::{Mode, Out, View};
use crate::{DType, Error, Result};

/// Entries that one block sorts: `TILE` in the kernels.
const TILE: usize = 2048;
/// Entries that one block counts: `RADIX` in the kernels.
const RADIX: usize = 4096;
/// Of a tile's entries so many at most are kept for another round; more are found by sorting the whole row.
const FEW: usize = 512;

/// Values and indices of the first `keep` elements of every row along `dim`, sorted.
pub(super) fn sorted(
    s: &Stream,
    x: &View<'_>,
    dim: usize,
    descending: bool,
    keep: usize,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let [values, places] = outputs else { return Err(Error::internal("sorting has two outputs")) };
    if values.shape().numel() == 0 {
        return Ok(());
    }
    let n = extent(&x.shape(), dim);
    narrow("a row", n)?;
    let rows = Rows { rows: x.numel() / n, n, keep, descending };
    let along = x.with_layout(turned(x.layout(), dim)?);
    let packed = s.contiguous(&along)?;
    let layout = turned(&Layout::contiguous(values.shape()), dim)?;
    if layout.is_contiguous() {
        return rows.sort(s, packed.src(), values.dst(), places.dst());
    }
    let count = layout.numel();
    let (mut v, mut p) = (s.temp(x.dtype(), count)?, s.temp(DType::I64, count)?);
    rows.sort(s, packed.src(), v.dst(), p.dst())?;
    let from = Layout::contiguous(layout.shape);
    copy::strided(s, v.src(), &from, values.dst(), &layout, false)?;
    copy::strided(s, p.src(), &from, places.dst(), &layout, false)
}

/// Rows of `n` elements, one after the other, of which the first `keep` are wanted.
struct Rows {
    rows: usize,
    n: usize,
    keep: usize,
    descending: bool,
}

impl Rows {
    fn sort(&self, s: &Stream, x: Src<'_>, y: Dst<'_>, places: Dst<'_>) -> Result<()> {
        let [rows, n, keep] = [self.rows, self.n, self.keep].map(|v| v as u64);
        let bits = 8 * x.dtype().size() as u32;
        let flip = if self.descending { u64::MAX >> (64 - bits) } else { 0 };
        if self.n <= TILE {
            let width = self.n.next_power_of_two();
            let (per, width) = ((TILE / width) as u32, width as u32);
            return kernels::SortRows { x, y, places, rows, n, keep, flip, width, per }.launch(s);
        }
        let words = if bits == 64 { 2 } else { 1 };
        let (entries, pitch) = match self.keep {
            ..=FEW => self.choose(s, x, flip, words)?,
            _ => self.radix(s, x, flip, words)?,
        };
        let (entries, pitch) = (entries.src(), pitch as u64);
        kernels::TakeSorted { x, entries, y, places, rows, n, pitch, keep }.launch(s)
    }

    fn temp<'a>(&self, s: &'a Stream, each: usize, words: u32) -> Result<Temp<'a>> {
        s.temp(DType::I64, self.rows * each * words as usize)
    }

    /// The first entries of every row: those of each tile, then of tiles of these, until there is one.
    fn choose<'a>(&self, s: &'a Stream, x: Src<'_>, flip: u64, words: u32) -> Result<(Temp<'a>, usize)> {
        let (rows, keep) = (self.rows as u64, self.keep as u64);
        let mut tiles = self.n.div_ceil(TILE);
        let mut entries = self.temp(s, tiles * self.keep, words)?;
        let (n, count) = (self.n as u64, tiles as u64);
        kernels::RowTiles { x, entries: entries.dst(), rows, n, tiles: count, keep, flip }.launch(s)?;
        while tiles > 1 {
            let n = tiles * self.keep;
            tiles = n.div_ceil(TILE);
            let mut fewer = self.temp(s, tiles * self.keep, words)?;
            let (n, count) = (n as u64, tiles as u64);
            let (from, to) = (entries.src(), fewer.dst());
            kernels::EntryTiles { words, from, to, rows, n, tiles: count, keep }.launch(s)?;
            entries = fewer;
        }
        Ok((entries, self.keep))
    }

    /// All entries of every row, sorted byte by byte.
    fn radix<'a>(&self, s: &'a Stream, x: Src<'_>, flip: u64, words: u32) -> Result<(Temp<'a>, usize)> {
        let (rows, n) = (self.rows as u64, self.n as u64);
        let tiles = self.n.div_ceil(RADIX);
        let digits = 256 * tiles;
        let mut entries = self.temp(s, self.n, words)?;
        kernels::MakeEntries { x, entries: entries.dst(), rows, n, flip }.launch(s)?;
        let mut spare = self.temp(s, self.n, words)?;
        let mut counts = s.temp(DType::I32, self.rows * digits)?;
        let mut ends = s.temp(DType::I64, self.rows * digits)?;
        let tiles = tiles as u64;
        for byte in 0..x.dtype().size() as u32 {
            let shift = 8 * byte;
            let from = entries.src();
            kernels::RadixCount { words, entries: from, counts: counts.dst(), rows, n, tiles, shift }
                .launch(s)?;
            running_sums(s, counts.src(), [self.rows, digits, 1], false, false, ends.dst())?;
            let (ends, to) = (ends.src(), spare.dst());
            kernels::RadixScatter { words, from, ends, to, rows, n, tiles, shift }.launch(s)?;
            std::mem::swap(&mut entries, &mut spare);
        }
        Ok((entries, self.n))
    }
}

/// The body of [`SortBackward`].
pub(super) fn put_back(
    s: &Stream,
    op: &SortBackward,
    dy: &View<'_>,
    index: &View<'_>,
    out: &mut Out<'_>,
) -> Result<()> {
    let (shape, size) = (index.shape(), op.size);
    let inner = shape.iter().skip(op.dim + 1).product::<usize>() as u64;
    let k = narrow("a row", extent(&shape, op.dim))?.into();
    let (dys, indices) = (s.contiguous(dy)?, s.contiguous(index)?);
    let total = out.shape().numel();
    let mut owner = s.temp(DType::I32, total)?;
    if total > 0 {
        s.fill(owner.dst().address(), 0, total * 4)?;
    }
    let bad = move |value, position| bad_index("sort_backward", shape, value, position, size);
    let mut fault = s.fault_slot(bad)?;
    let (count, size) = (index.numel() as u64, size as u64);
    let (index, to) = (indices.src(), owner.dst());
    kernels::MarkPlaces { index, owner: to, fault: fault.dst(), count, k, size, inner }.launch(s)?;
    let add = (out.mode() == Mode::Accumulate).into();
    let (owner, dy, count) = (owner.src(), dys.src(), total as u64);
    kernels::PutBack { dy, owner, dx: out.dst(), count, k, size, inner, add }.launch(s)
}
