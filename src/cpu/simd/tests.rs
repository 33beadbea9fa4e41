//! Tests of the vector code: kernels against their portable twin, transposition, the parts of a matrix.

#![forbid(unsafe_code)]

use super::*;

/// Every kernel of every instruction set of this machine, against the portable twin, bit for bit.
fn twins<R: Real>(of: impl Fn(usize) -> R) {
    const STRIDE: usize = 64;
    let twin_lanes = 32 / size_of::<R>();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        // The portable kernels of a target without fused products round twice; the tests of `gemm` bound their error.
        if isa == Isa::Portable && !FUSED {
            continue;
        }
        let shape = isa.shape::<R>();
        for (&rows, vectors) in shape.rows.iter().flat_map(|r| (1..=shape.vectors).map(move |v| (r, v))) {
            let width = vectors * shape.lanes;
            for (k, add) in [(0, false), (1, true), (3, false), (37, true)] {
                for cols in [width, width - 1, width - shape.lanes + 1] {
                    let a: Vec<R> = (0..rows * k + 1).map(&of).collect();
                    let b: Vec<R> = (0..k * width + width).map(|i| of(i + 991)).collect();
                    let start: Vec<R> = (0..rows * STRIDE).map(|i| of(i + 77)).collect();
                    let (mut got, mut want) = (start.clone(), start);
                    let left = Rows { data: &a[..], row_stride: k, col_stride: 1 };
                    let right = Panel { data: &b[..], row_stride: width, vectors };
                    tile(isa, k, left, right, MatMut::new(&mut got, rows, cols, STRIDE), add);
                    for i in 0..rows {
                        for j in (0..cols).step_by(twin_lanes) {
                            let left = Rows { data: &a[i * k..], row_stride: 0, col_stride: 1 };
                            let right = Panel { data: &b[j..], row_stride: width, vectors: 1 };
                            let count = twin_lanes.min(cols - j);
                            let c = MatMut::new(&mut want[i * STRIDE + j..], 1, count, count);
                            tile_twin(k, left, right, c, add);
                        }
                    }
                    assert_eq!(got, want, "{isa:?} {rows}×{vectors} k {k} cols {cols} add {add}");
                }
            }
        }
    }
}

#[test]
fn kernels_equal_their_portable_twin() {
    let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f64 / 300_000.0 - 1.5;
    twins::<f32>(|i| value(i) as f32);
    twins::<f64>(value);
}

#[test]
fn transposes_are_exact_at_block_edges() {
    for (rows, cols) in [(0, 3), (1, 1), (8, 8), (7, 9), (16, 23), (33, 8), (5, 40)] {
        let (ss, ds) = (cols + 3, rows + 2);
        let src: Vec<f32> = (0..rows * ss).map(|i| i as f32).collect();
        let mut dst = vec![-1f32; cols * ds];
        transpose(&src, ss, (rows, cols), &mut dst, ds);
        let wide: Vec<f64> = src.iter().map(|&x| x.into()).collect();
        let mut wide_dst = vec![-1f64; cols * ds];
        transpose(&wide, ss, (rows, cols), &mut wide_dst, ds);
        for j in 0..cols {
            for i in 0..ds {
                let want = if i < rows { src[i * ss + j] } else { -1.0 };
                assert_eq!(dst[j * ds + i], want, "{rows}×{cols} at {i},{j}");
                assert_eq!(wide_dst[j * ds + i], want as f64, "{rows}×{cols} at {i},{j}");
            }
        }
    }
}

#[test]
fn vectorize_runs_the_closure_once() {
    let mut calls = 0;
    assert_eq!(
        vectorize(|| {
            calls += 1;
            calls
        }),
        1
    );
    assert_eq!(calls, 1);
}

#[test]
fn parts_of_a_matrix_are_where_they_should_be() {
    let mut data: Vec<u32> = (0..40).collect();
    let mut c = MatMut::new(&mut data, 4, 7, 10);
    assert_eq!(c.row(3), [30, 31, 32, 33, 34, 35, 36]);
    assert_eq!(c.part(1, 2, 2, 3).row(1), [22, 23, 24]);
    let (top, mut bottom) = c.split_rows(3);
    let (left, mut right) = top.split_cols(6);
    assert_eq!((left.rows(), left.cols(), right.rows(), right.cols()), (3, 6, 3, 1));
    assert_eq!(right.row(2), [26]);
    assert_eq!(bottom.row(0)[0], 30);
    assert!(bottom.cast::<f32>().is_err());
}

#[test]
#[should_panic(expected = "does not fit")]
fn a_matrix_larger_than_its_slice_is_refused() {
    MatMut::new(&mut [0f32; 29], 3, 10, 10);
}

#[test]
#[should_panic]
fn a_tile_with_a_short_panel_is_refused() {
    let (a, b, mut c) = ([1f32; 4], [1f32; 31], [0f32; 16]);
    let isa = Isa::detect();
    let left = Rows { data: &a[..], row_stride: 4, col_stride: 1 };
    let right = Panel { data: &b[..], row_stride: 8, vectors: 1 };
    tile(isa, 4, left, right, MatMut::new(&mut c, 1, 9, 9), false);
}
