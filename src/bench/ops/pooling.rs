//! The rows of `bench ops` that are about images: pooling, norms over channels, resizing.

#![forbid(unsafe_code)]

use super::Cases;
use crate::ops::{Interpolation, Resize, Window};
use crate::{Result, Tensor};

/// The images that most are timed on.
const IMAGES: [usize; 4] = [128, 32, 28, 28];

/// Element (n, c, y, x) of [`IMAGES`], 0 beyond the edge.
fn pixel(v: &[f32], plane: usize, y: i64, x: i64) -> Option<f64> {
    let inside = (0..28).contains(&y) && (0..28).contains(&x);
    inside.then(|| v[plane * 784 + y as usize * 28 + x as usize] as f64)
}

/// The elements of window `i` of `k` by `k`, a stride of 2 apart, in images of 28 by 28 padded by `padding`.
fn window(v: &[f32], i: usize, k: i64, padding: i64) -> impl Iterator<Item = f64> {
    let (plane, y, x) = (i / 196, (i / 14 % 14) as i64 * 2 - padding, (i % 14) as i64 * 2 - padding);
    (0..k * k).filter_map(move |j| pixel(v, plane, y + j / k, x + j % k))
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, f64::max)
}

/// (v[i] − mean) / deviation over the elements `set`.
fn standardised(v: &[f32], i: usize, set: impl Iterator<Item = usize> + Clone) -> f64 {
    let count = set.clone().count() as f64;
    let mean = set.clone().map(|j| v[j] as f64).sum::<f64>() / count;
    let variance = set.map(|j| (v[j] as f64 - mean).powi(2)).sum::<f64>() / count;
    (v[i] as f64 - mean) / (variance + 1e-5).sqrt()
}

/// What a coordinate of an image twice as large reads of 14 elements, edges upon each other.
fn doubled(o: usize) -> [(usize, f64); 2] {
    let at = ((o as f64 + 0.5) / 2.0 - 0.5).max(0.0);
    let first = at as usize;
    [(first, 1.0 - at.fract()), ((first + 1).min(13), at.fract())]
}

pub(super) fn add(cases: &mut Cases) -> Result<()> {
    let x = cases.normal(&IMAGES, 0)?;
    let halves = Window::new([2, 2]);
    let wide = Window::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
    cases.add("max_pool2d", &[&x], move |t| t[0].max_pool2d(halves), |v, i| largest(window(&v[0], i, 2, 0)));
    cases.add(
        "relu_max_pool2d",
        &[&x],
        move |t| t[0].relu()?.max_pool2d(halves),
        |v, i| largest(window(&v[0], i, 2, 0)).max(0.0),
    );
    cases.add(
        "max_pool2d_3x3",
        &[&x],
        move |t| t[0].max_pool2d(wide),
        |v, i| largest(window(&v[0], i, 3, 1)),
    );
    cases.add(
        "avg_pool2d",
        &[&x],
        move |t| t[0].avg_pool2d(halves, true),
        |v, i| window(&v[0], i, 2, 0).sum::<f64>() / 4.0,
    );
    cases.add(
        "adaptive_avg_pool2d",
        &[&x],
        |t| t[0].adaptive_avg_pool2d([7, 7]),
        |v, i| {
            let (plane, y, x) = (i / 49, (i / 7 % 7) as i64 * 4, (i % 7) as i64 * 4);
            (0..16).filter_map(|j| pixel(&v[0], plane, y + j / 4, x + j % 4)).sum::<f64>() / 16.0
        },
    );
    let (weight, bias) = (cases.normal(&[32], 3)?, cases.normal(&[32], 4)?);
    let affine = |v: &[Vec<f32>], i: usize, hat: f64| {
        let c = i / 784 % 32;
        hat * v[1][c] as f64 + v[2][c] as f64
    };
    cases.add(
        "batch_norm",
        &[&x, &weight, &bias],
        |t| Ok(t[0].batch_norm(Some(&t[1]), Some(&t[2]), 1e-5)?.0),
        move |v, i| {
            let c = i / 784 % 32;
            let set = (0..128).flat_map(move |n| (0..784).map(move |p| (n * 32 + c) * 784 + p));
            affine(v, i, standardised(&v[0], i, set))
        },
    );
    let statistics =
        [Tensor::zeros(32, x.dtype(), cases.device)?, Tensor::ones(32, x.dtype(), cases.device)?];
    cases.add(
        "batch_norm_eval",
        &[&x, &weight, &bias],
        move |t| t[0].batch_norm_eval(&statistics[0], &statistics[1], Some(&t[1]), Some(&t[2]), 1e-5),
        move |v, i| affine(v, i, v[0][i] as f64 / (1.0f64 + 1e-5).sqrt()),
    );
    cases.add(
        "group_norm",
        &[&x, &weight, &bias],
        |t| t[0].group_norm(8, Some(&t[1]), Some(&t[2]), 1e-5),
        move |v, i| affine(v, i, standardised(&v[0], i, i / 3136 * 3136..i / 3136 * 3136 + 3136)),
    );
    let rows = cases.normal(&[512, 256], 5)?;
    let (weight, bias) = (cases.normal(&[256], 6)?, cases.normal(&[256], 7)?);
    cases.add(
        "batch_norm_rows",
        &[&rows, &weight, &bias],
        |t| Ok(t[0].batch_norm(Some(&t[1]), Some(&t[2]), 1e-5)?.0),
        |v, i| {
            let c = i % 256;
            standardised(&v[0], i, (0..512).map(move |n| n * 256 + c)) * v[1][c] as f64 + v[2][c] as f64
        },
    );
    let small = cases.normal(&[128, 32, 14, 14], 8)?;
    cases.add(
        "interpolate_nearest",
        &[&small],
        |t| t[0].interpolate(Resize::To([28, 28]), Interpolation::Nearest),
        |v, i| v[0][i / 784 * 196 + i / 28 % 28 / 2 * 14 + i % 28 / 2] as f64,
    );
    cases.add(
        "interpolate_bilinear",
        &[&small],
        |t| t[0].interpolate(Resize::To([28, 28]), Interpolation::Bilinear { align_corners: false }),
        |v, i| {
            let mut sum = 0.0;
            for (y, a) in doubled(i / 28 % 28) {
                for (x, b) in doubled(i % 28) {
                    sum += a * b * v[0][i / 784 * 196 + y * 14 + x] as f64;
                }
            }
            sum
        },
    );
    Ok(())
}
