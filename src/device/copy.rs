//! Copies within a device's memory: any layout to any layout, with a cast, overwriting or adding; and filling.

use super::elementwise::{Piece, each};
use super::kernels::copy::{CopyElements, Fill, Transpose};
use super::launch::{Dims, Dst, Src, Strides};
use super::stream::Stream;
use crate::shape::{Layout, MAX_RANK};
use crate::{Error, Result};

/// Rows and columns below which a tile would be mostly empty.
const LEAST: usize = 8;

/// Copies the elements that `src_layout` names to where `dst_layout` names them (same shape), cast to `dst`'s type (see
/// `ops::Cast`); adds to what is there if `add`. `dst_layout` may name no element twice.
pub(crate) fn strided(
    stream: &Stream,
    src: Src<'_>,
    src_layout: &Layout,
    dst: Dst<'_>,
    dst_layout: &Layout,
    add: bool,
) -> Result<()> {
    let shape = src_layout.shape;
    if shape != dst_layout.shape {
        return Err(Error::internal(format!("a copy of {shape} to {}", dst_layout.shape)));
    }
    if shape.numel() == 0 {
        return Ok(());
    }
    let (from, to) = (src_layout.span(), dst_layout.span());
    let src = src.part(from.start as u64, from.len() as u64);
    let dst = dst.part(to.start as u64, to.len() as u64);
    if src.dtype() == dst.dtype() && src_layout.is_contiguous() && dst_layout.is_contiguous() && !add {
        return stream.copy(dst.address(), src.address(), dst.bytes() as usize);
    }
    let dims = ordered(src_layout, dst_layout);
    if dims.iter().any(|d| d.by[1] == 0) {
        return Err(Error::unsupported("copy", "to a tensor that names an element more than once"));
    }
    if let Some(turn) = Turn::of(&dims).filter(|_| src.dtype() == dst.dtype()) {
        return turn.launch(stream, src, dst, add);
    }
    let sizes: Vec<usize> = dims.iter().map(|d| d.size).collect();
    let by = [0, 1].map(|k| dims.iter().map(|d| d.by[k]).collect::<Vec<usize>>());
    let vector = 16 / src.dtype().size().max(dst.dtype().size()) as u64;
    each(&sizes, [Some((src, &by[0])), None, None], (dst, &by[1]), vector, &mut |p: Piece<'_>| {
        let Some(x) = p.src[0] else { return Ok(()) };
        let (x_by, y_by) = (p.by[0], p.by[3]);
        CopyElements { wide: p.wide, x, y: p.dst, dims: p.dims, x_by, y_by, n: p.n, add: add.into() }
            .launch(stream)
    })
}

/// Sets every element to the value whose bits stand in the low bytes of `bits`.
pub(crate) fn fill(stream: &Stream, dst: Dst<'_>, bits: u64) -> Result<()> {
    let n = dst.len();
    Fill { wide: dst.address().is_multiple_of(16).into(), y: dst, n, bits }.launch(stream)
}

/// A dimension of a copy: its size and the steps of source and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dim {
    size: usize,
    by: [usize; 2],
}

/// The dimensions of a copy in the order in which the target lies in memory, merged where both sides allow it: the order
/// in which elements are moved does not matter.
fn ordered(src: &Layout, dst: &Layout) -> Vec<Dim> {
    let mut dims: Vec<Dim> = (0..src.shape.rank())
        .map(|d| Dim { size: src.shape[d], by: [src.strides[d], dst.strides[d]] })
        .filter(|d| d.size != 1)
        .collect();
    dims.sort_by_key(|d| std::cmp::Reverse(d.by[1]));
    let mut merged: Vec<Dim> = Vec::with_capacity(MAX_RANK);
    for d in dims {
        match merged.last_mut() {
            Some(outer) if (0..2).all(|k| outer.by[k] == d.by[k] * d.size) => {
                *outer = Dim { size: outer.size * d.size, by: d.by };
            }
            _ => merged.push(d),
        }
    }
    merged
}

/// A batch of transposed matrices: the target is contiguous along columns, the source along rows.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    rows: u32,
    cols: u32,
    x_col: i64,
    y_row: i64,
    batch: Dims,
    by: [Strides; 2],
}

impl Turn {
    /// Of dimensions in the target's order; `None` if a plain copy is better.
    fn of(dims: &[Dim]) -> Option<Turn> {
        let (cols, outer) = dims.split_last()?;
        let at = outer.iter().position(|d| d.by[0] == 1)?;
        let rows = outer[at];
        if cols.by[1] != 1 || cols.by[0] <= 1 || rows.size < LEAST || cols.size < LEAST {
            return None;
        }
        let batch: Vec<Dim> = outer.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, d)| *d).collect();
        let sizes: Vec<usize> = batch.iter().map(|d| d.size).collect();
        let by = [0, 1].map(|k| Strides::of(&batch.iter().map(|d| d.by[k]).collect::<Vec<_>>()));
        Some(Turn {
            rows: rows.size.try_into().ok()?,
            cols: cols.size.try_into().ok()?,
            x_col: cols.by[0] as i64,
            y_row: rows.by[1] as i64,
            batch: Dims::of(&sizes),
            by,
        })
    }

    fn launch(self, stream: &Stream, x: Src<'_>, y: Dst<'_>, add: bool) -> Result<()> {
        let Turn { rows, cols, x_col, y_row, batch, by: [x_by, y_by] } = self;
        let count = batch.numel();
        Transpose { x, y, rows, cols, x_col, y_row, batch, x_by, y_by, count, add: add.into() }.launch(stream)
    }
}
