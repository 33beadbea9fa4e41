//! Tests of the reductions.

#![forbid(unsafe_code)]

use super::*;
use crate::Shape;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 97.0 - 5.0).collect()
}

fn sums(layout: &Layout, data: &[f32], axes: &[usize]) -> (Vec<f32>, Vec<f64>) {
    let plan = Reduction::new(layout, |d| axes.contains(&d));
    let mut got = vec![0.0; plan.outputs];
    plan.fold(&Sum, data, &vec![(); plan.outputs], &mut got).unwrap();
    let mut shape = layout.shape;
    axes.iter().for_each(|&d| shape = shape.with(d, 1));
    let out = Layout::contiguous(shape).expand(&layout.shape, "test").unwrap();
    let mut want = vec![0.0; plan.outputs];
    let zeroed = axes.iter().fold(out, |l, &d| Layout { strides: l.strides.with(d, 0), ..l });
    layout.positions().zip(zeroed.positions()).for_each(|(i, o)| want[o] += data[i] as f64);
    (got, want)
}

#[test]
fn every_way_through_memory_gives_the_sums() {
    let data = values(300_000);
    let shapes: [&[usize]; 9] = [
        &[1000, 300],
        &[3, 70_000],
        &[5000, 7],
        &[70_000, 3],
        &[2, 3, 4, 5],
        &[40, 9, 64, 3],
        &[1],
        &[33, 65],
        &[2, 2000, 70],
    ];
    for shape in shapes {
        let base = Layout::contiguous(Shape::new(shape).unwrap());
        let rank = shape.len();
        let reversed: Vec<usize> = (0..rank).rev().collect();
        let step = base.slice(rank - 1, shape[rank - 1] / 2, shape[rank - 1], 2).unwrap();
        for layout in [base, base.permute(&reversed).unwrap(), step] {
            for mask in 0..1usize << rank {
                let axes: Vec<usize> = (0..rank).filter(|d| mask >> d & 1 == 1).collect();
                let (got, want) = sums(&layout, &data, &axes);
                let scale: usize = axes.iter().map(|&d| layout.shape[d]).product();
                for (g, w) in got.iter().zip(&want) {
                    let bound = 4.0 * f32::EPSILON as f64 * 5.0 * scale as f64 + 1e-30;
                    assert!((*g as f64 - w).abs() <= bound, "{layout:?} over {axes:?}: {g} {w}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let data = values(300_000);
    for shape in [[600, 500], [3, 100_000], [100_000, 3], [20_000, 15]] {
        let layout = Layout::contiguous(Shape::new(&shape).unwrap());
        for axes in [&[0][..], &[1], &[0, 1]] {
            let of = |n| par::with_threads(n, || sums(&layout, &data, axes).0).unwrap();
            let want = of(1);
            for n in [2, 3, 4, 8] {
                assert!(
                    of(n).iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{shape:?} {axes:?} {n}"
                );
            }
        }
    }
}

#[test]
fn a_long_sum_of_ones_is_exact_and_of_tenths_nearly_so() {
    let tenths = vec![0.1f32; 1 << 22];
    let layout = Layout::contiguous(Shape::new(&[1 << 22]).unwrap());
    let (got, want) = sums(&layout, &tenths, &[0]);
    assert!((got[0] as f64 / want[0] - 1.0).abs() < 1e-6, "{} {}", got[0], want[0]);
    let (got, _) = sums(&layout, &vec![1.0; 1 << 22], &[0]);
    assert_eq!(got[0], (1 << 22) as f32);
}

#[test]
fn extrema_pass_nan_on_from_any_place() {
    for n in [1, 2, 15, 16, 17, 64, 100, 2049, 70_000] {
        for at in [0, n / 2, n - 1] {
            let mut data = values(n);
            data[at] = f32::NAN;
            let plan = Reduction::new(&Layout::contiguous(Shape::new(&[n]).unwrap()), |_| true);
            let mut out = [0.0];
            plan.fold(&Max, &data, &[()], &mut out).unwrap();
            assert!(out[0].is_nan(), "max, {at} of {n}");
            plan.fold(&Min, &data, &[()], &mut out).unwrap();
            assert!(out[0].is_nan(), "min, {at} of {n}");
        }
    }
}
