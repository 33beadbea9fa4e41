//! Small dense products, cut into the tiles that `simd` has kernels for.

#![forbid(unsafe_code)]

use crate::cpu::simd::{Isa, MatMut, Panel, Rows, tile};
use crate::dtype::Real;

/// `c = a · b`, or `c += a · b` with `add`; b is `k` rows, `pitch` apart, of c's columns rounded up to whole vectors.
#[inline]
pub fn product<A: Real>(
    isa: Isa,
    k: usize,
    a: Rows<'_, A>,
    b: &[A],
    pitch: usize,
    mut c: MatMut<'_, A>,
    add: bool,
) {
    let shape = isa.shape::<A>();
    let (rows, cols) = (c.rows(), c.cols());
    if rows == 0 || cols == 0 || k == 0 && add {
        return;
    }
    // Vectors are shared out evenly, so that no call is left with a thin rest.
    let vectors = cols.div_ceil(shape.lanes);
    let each = vectors.div_ceil(vectors.div_ceil(shape.vectors));
    for left in (0..vectors).step_by(each) {
        let (col, take) = (left * shape.lanes, each.min(vectors - left));
        let b = Panel { data: &b[col..], row_stride: pitch, vectors: take };
        let mut row = 0;
        while row < rows {
            let step = shape.step(rows - row);
            let a = Rows { data: &a.data[row * a.row_stride..], ..a };
            let part = c.part(row, step, col, (take * shape.lanes).min(cols - col));
            tile(isa, k, a, b, part, add);
            row += step;
        }
    }
}
