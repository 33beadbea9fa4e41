//! The rows of `bench ops` that are convolutions: the layers of the model `cnn`, one of a residual network, and odd kinds.

#![forbid(unsafe_code)]

use super::Cases;
use crate::Result;
use crate::ops::Conv;

/// Element `i` of the convolution of v[0] (images of `size` by `size`) with v[1] (kernels of `k` by `k`), v[2] added.
fn pixel(v: &[Vec<f32>], i: usize, size: i64, k: i64, conv: Conv<2>) -> f64 {
    let filters = v[2].len();
    let (stride, padding) = (conv.stride[0] as i64, conv.padding[0] as i64);
    let places = (size + 2 * padding - k) / stride + 1;
    let (column, row, o) =
        (i as i64 % places, i as i64 / places % places, i / (places * places) as usize % filters);
    let image = i / ((places * places) as usize * filters);
    let seen = v[1].len() / filters / (k * k) as usize;
    let first = o / (filters / conv.groups) * seen;
    let mut sum = f64::from(v[2][o]);
    for c in 0..seen {
        for j in 0..k * k {
            let (y, x) = (row * stride - padding + j / k, column * stride - padding + j % k);
            if (0..size).contains(&y) && (0..size).contains(&x) {
                let plane = image * seen * conv.groups + first + c;
                let pixel = v[0][(plane as i64 * size * size + y * size + x) as usize];
                sum += f64::from(pixel) * f64::from(v[1][((o * seen + c) as i64 * k * k + j) as usize]);
            }
        }
    }
    sum
}

pub(super) fn add(cases: &mut Cases) -> Result<()> {
    let same = Conv { padding: [1, 1], ..Conv::default() };
    for (name, x, w, conv) in [
        ("conv2d_1_to_32", [128, 1, 28, 28], [32, 1, 3, 3], same),
        ("conv2d_32_to_64", [128, 32, 14, 14], [64, 32, 3, 3], same),
        ("conv2d_64_to_64", [32, 64, 32, 32], [64, 64, 3, 3], same),
        ("conv2d_stride_2", [32, 64, 32, 32], [128, 64, 3, 3], Conv { stride: [2, 2], ..same }),
        ("conv2d_1x1", [32, 64, 32, 32], [64, 64, 1, 1], Conv::default()),
        ("conv2d_depthwise", [32, 64, 32, 32], [64, 1, 3, 3], Conv { groups: 64, ..same }),
    ] {
        let inputs = [cases.normal(&x, 0)?, cases.normal(&w, 1)?, cases.normal(&[w[0]], 2)?];
        cases.add(
            name,
            &inputs.each_ref(),
            move |t| t[0].conv2d(&t[1], Some(&t[2]), conv),
            move |v, i| pixel(v, i, x[2] as i64, w[2] as i64, conv),
        );
    }
    // A kernel of 2 by 2 at a stride of 2: each pixel of the result comes from one of the image.
    let (x, w) = (cases.normal(&[32, 64, 16, 16], 0)?, cases.normal(&[64, 32, 2, 2], 1)?);
    let double = Conv { stride: [2, 2], ..Conv::default() };
    cases.add(
        "conv_transpose2d",
        &[&x, &w],
        move |t| t[0].conv_transpose2d(&t[1], None, double, [0, 0]),
        |v, i| {
            let (column, row, o, image) = (i % 32, i / 32 % 32, i / 1024 % 32, i / (1024 * 32));
            let product = |c: usize| {
                let x = v[0][((image * 64 + c) * 16 + row / 2) * 16 + column / 2];
                f64::from(x) * f64::from(v[1][(c * 32 + o) * 4 + row % 2 * 2 + column % 2])
            };
            (0..64).map(product).sum()
        },
    );
    Ok(())
}
