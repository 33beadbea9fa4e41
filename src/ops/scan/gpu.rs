//! Running sums on a GPU: which kernels of `scan.cu` take rows and columns, and in how many pieces.

#![forbid(unsafe_code)]

use super::{CumSum, around};
use crate::device::Stream;
use crate::device::kernels::scan as kernels;
use crate::device::launch::{Dst, Src};
use crate::tensor::{Mode, Out, View};
use crate::{DType, Result};

/// The longest row that a warp takes.
const SHORT: usize = 256;
/// Elements of a row that a block adds up: `PIECE` in the kernel.
const PIECE: usize = 1024;
/// Columns that keep a GPU busy whatever their length.
const MANY: usize = 1 << 16;

/// Launches the kernel for floats or that for integers.
macro_rules! launch {
    ($float:expr, $for_float:ident, $for_int:ident, $stream:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        if $float {
            kernels::$for_float { $($field: $value),* }.launch($stream)
        } else {
            kernels::$for_int { $($field: $value),* }.launch($stream)
        }
    };
}

pub(super) fn cumsum(s: &Stream, op: &CumSum, x: &View<'_>, out: &mut Out<'_>) -> Result<()> {
    let sizes = around(&x.shape(), op.dim);
    if x.numel() == 0 {
        return Ok(());
    }
    let x = s.contiguous(x)?;
    let add = out.mode() == Mode::Accumulate;
    running_sums(s, x.src(), sizes, op.reverse, add, out.dst())
}

/// Running sums along the middle dimension; integers give i64.
pub(in crate::ops) fn running_sums(
    s: &Stream,
    x: Src<'_>,
    [outer, n, inner]: [usize; 3],
    reverse: bool,
    add: bool,
    mut y: Dst<'_>,
) -> Result<()> {
    let float = x.dtype().is_float();
    let (rev, plus) = (u32::from(reverse), u32::from(add));
    if inner == 1 && n <= SHORT {
        let (rows, n) = (outer as u64, n as u32);
        return launch!(float, ShortRows, ShortRowsInt, s, { x: x, y: y, rows: rows, n: n, reverse: rev, add: plus });
    }
    let length = match (inner, outer * inner) {
        (1, _) => PIECE,
        (_, MANY..) => 1024,
        _ => 256,
    };
    let pieces = n.div_ceil(length);
    let mut ends = None;
    let narrow = if float { DType::F32 } else { DType::I64 };
    let whole = n % 4 == 0 && x.address().is_multiple_of(4 * x.dtype().size() as u64);
    let vector = u32::from(whole);
    let [o64, n64, i64_, p64, l64] = [outer, n, inner, pieces, length].map(|v| v as u64);
    if pieces > 1 {
        let mut totals = s.temp(narrow, outer * pieces * inner)?;
        let to = totals.dst();
        if inner == 1 {
            launch!(float, RowTotals, RowTotalsInt, s, {
                x: x, totals: to, rows: o64, n: n64, pieces: p64, reverse: rev, vector: vector,
            })?;
        } else {
            launch!(float, Columns, ColumnsInt, s, {
                x: x, ends: None, totals: Some(to), y: None, outer: o64, n: n64, inner: i64_, pieces: p64,
                length: l64, reverse: rev, add: 0,
            })?;
        }
        let sums = ends.insert(s.temp(narrow, outer * pieces * inner)?);
        // Pieces are numbered in the order of the sum.
        running_sums(s, totals.src(), [outer, pieces, inner], false, false, sums.dst())?;
    }
    let ends = ends.as_ref().map(|e| e.src());
    let y = y.again();
    if inner == 1 {
        return launch!(float, LongRows, LongRowsInt, s, {
            x: x, ends: ends, y: y, rows: o64, n: n64, pieces: p64, reverse: rev, vector: vector, add: plus,
        });
    }
    launch!(float, Columns, ColumnsInt, s, {
        x: x, ends: ends, totals: None, y: Some(y), outer: o64, n: n64, inner: i64_, pieces: p64, length: l64,
        reverse: rev, add: plus,
    })
}
