//! The loops against the definition, at sizes of several blocks, bands and parts; and that threads change no bit.

#![forbid(unsafe_code)]

use super::*;
use crate::cpu::par::with_threads;
use crate::random::Philox;

fn noise(n: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(7, stream);
    (0..n as u64).map(|i| random.uniform_f64_at(i) as f32 - 0.5).collect()
}

fn packed(data: &[f32], sizes: [usize; 4]) -> Source<'_, f32> {
    let [_, b, c, d] = sizes;
    Source { data, strides: [b * c * d, c * d, d, 1] }
}

struct Sizes {
    g: Geometry,
    x: [usize; 4],
    w: [usize; 4],
    y: [usize; 4],
}

fn sizes(
    x: [usize; 4],
    w: [usize; 4],
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
) -> Sizes {
    let places = |n: usize, k: usize| (n + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
    let result = [places(x[2], w[2]), places(x[3], w[3])];
    let g = Geometry {
        images: x[0],
        groups,
        channels: x[1] / groups,
        filters: w[0] / groups,
        image: [x[2], x[3]],
        kernel: [w[2], w[3]],
        result,
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [dilation; 2],
    };
    Sizes { g, x, w, y: [x[0], w[0], result[0], result[1]] }
}

/// Calls `f(place of y, place of x, place of w)` for each product of the definition.
fn each_product(s: &Sizes, mut f: impl FnMut(usize, usize, usize)) {
    let place = |i: [usize; 4], n: [usize; 4]| ((i[0] * n[1] + i[1]) * n[2] + i[2]) * n[3] + i[3];
    let g = &s.g;
    for i in 0..s.y.iter().product() {
        let (ow, oh, o, n) =
            (i % s.y[3], i / s.y[3] % s.y[2], i / (s.y[3] * s.y[2]) % s.y[1], i / (s.y[3] * s.y[2] * s.y[1]));
        for j in 0..s.w[1] * s.w[2] * s.w[3] {
            let (v, r, c) = (j % s.w[3], j / s.w[3] % s.w[2], j / (s.w[3] * s.w[2]));
            let h = (oh * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.padding[0]);
            let w = (ow * g.stride[1] + v * g.dilation[1]).wrapping_sub(g.padding[1]);
            if h < g.image[0] && w < g.image[1] {
                let c = o / g.filters * g.channels + c;
                f(i, place([n, c, h, w], s.x), o * s.w[1] * s.w[2] * s.w[3] + j);
            }
        }
    }
}

fn close(what: &str, got: &[f32], want: &[f64], scale: &[f64]) {
    for (i, ((&got, want), scale)) in got.iter().zip(want).zip(scale).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= 1e-6 * scale + 1e-6, "{what}[{i}] is {got}, not {want}");
    }
}

fn check(s: &Sizes) {
    let (x, w) = (noise(s.x.iter().product(), 1), noise(s.w.iter().product(), 2));
    let dy = noise(s.y.iter().product(), 3);
    let mut y = vec![0.0; dy.len()];
    forward(&s.g, packed(&x, s.x), packed(&w, s.w), &mut y, Epilogue::none());
    // Both gradients are added to what is there.
    let (mut dx, mut dw) = (x.clone(), w.clone());
    input_backward(&s.g, packed(&dy, s.y), packed(&w, s.w), &mut dx, true);
    weight_backward(&s.g, packed(&dy, s.y), packed(&x, s.x), &mut dw, true).unwrap();
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let (mut want_y, mut want_dx, mut want_dw) = (vec![0.0; y.len()], wide(&x), wide(&w));
    let mut scales = [vec![0.0; y.len()], vec![1.0; x.len()], vec![1.0; w.len()]];
    each_product(s, |i, j, k| {
        let (a, b, c) = (f64::from(x[j]), f64::from(w[k]), f64::from(dy[i]));
        for (at, sums, scale, v) in
            [(i, &mut want_y, 0, a * b), (j, &mut want_dx, 1, b * c), (k, &mut want_dw, 2, a * c)]
        {
            sums[at] += v;
            scales[scale][at] += v.abs();
        }
    });
    close("y", &y, &want_y, &scales[0]);
    close("dx", &dx, &want_dx, &scales[1]);
    close("dw", &dw, &want_dw, &scales[2]);
    for threads in [1, 3] {
        let (mut again_y, mut again_dx, mut again_dw) = (y.clone(), x.clone(), w.clone());
        with_threads(threads, || {
            forward(&s.g, packed(&x, s.x), packed(&w, s.w), &mut again_y, Epilogue::none());
            input_backward(&s.g, packed(&dy, s.y), packed(&w, s.w), &mut again_dx, true);
            weight_backward(&s.g, packed(&dy, s.y), packed(&x, s.x), &mut again_dw, true)
        })
        .unwrap()
        .unwrap();
        assert!(again_y == y && again_dx == dx && again_dw == dw, "{threads} threads");
    }
}

#[test]
fn all_loops_are_the_definition_at_sizes_of_several_blocks() {
    // k above a run, filters above a panel, pixels above a block.
    check(&sizes([3, 40, 26, 27], [50, 40, 3, 3], 1, 1, 1, 1));
    check(&sizes([2, 6, 50, 40], [4, 3, 5, 5], 2, 2, 1, 2));
    check(&sizes([1, 3, 40, 41], [6, 1, 3, 3], 3, 2, 2, 3));
    check(&sizes([2, 5, 33, 34], [5, 1, 3, 3], 2, 1, 1, 5));
    check(&sizes([2, 5, 33, 34], [5, 1, 3, 3], 1, 1, 1, 5));
    check(&sizes([2, 5, 33, 34], [5, 1, 1, 1], 1, 0, 1, 5));
    check(&sizes([2, 20, 13, 29], [12, 20, 1, 1], 1, 0, 1, 1));
    // Bands: planes of more elements than are prepared at a time.
    check(&sizes([1, 8, 150, 150], [3, 8, 3, 3], 1, 1, 1, 1));
    // Rows of sums that are cut: many filters and channels.
    check(&sizes([2, 64, 3, 3], [256, 64, 3, 3], 1, 1, 1, 1));
}

/// Sizes of a convolution whose stride and padding differ along height and width.
fn uneven(x: [usize; 4], w: [usize; 4], stride: [usize; 2], padding: [usize; 2]) -> Sizes {
    let mut s = sizes(x, w, 1, 0, 1, x[1] / w[1]);
    for d in 0..2 {
        s.g.result[d] = (x[2 + d] + 2 * padding[d] - w[2 + d]) / stride[d] + 1;
        s.y[2 + d] = s.g.result[d];
    }
    (s.g.stride, s.g.padding) = (stride, padding);
    s
}

#[test]
fn strides_may_differ_along_height_and_width() {
    // One remainder although the stride is above 1: images of one column, or of one row.
    check(&uneven([1, 2, 1000, 1], [3, 2, 3, 1], [1, 2], [1, 0]));
    check(&uneven([1, 1, 1000, 1], [1, 1, 3, 1], [1, 2], [1, 0]));
    check(&uneven([1, 2, 1, 1000], [3, 2, 1, 3], [2, 1], [0, 1]));
    check(&uneven([2, 3, 60, 41], [4, 3, 3, 3], [1, 3], [1, 0]));
    check(&uneven([2, 3, 60, 41], [4, 3, 3, 3], [4, 1], [0, 2]));
}

#[test]
fn a_kernel_that_meets_no_pixel_sums_to_nothing() {
    for channels in [1, 2] {
        let mut s = uneven([1, channels, 2, 100], [2, 1, 2, 1], [1, 1], [5, 0]);
        (s.g.dilation, s.g.result, s.y) = ([10, 1], [2, 100], [1, 2, 2, 100]);
        check(&s);
    }
}

#[test]
fn strides_of_a_whole_image_cost_what_the_kernel_does() {
    // 9 of the 512 x 512 remainders meet the kernel; each of the others would have cost allocations of its own.
    let s = uneven([2, 1, 512, 512], [2, 1, 3, 3], [512, 512], [1, 1]);
    let (w, dy) = (noise(18, 1), noise(s.y.iter().product(), 2));
    let mut dx = vec![1.0; s.x.iter().product()];
    input_backward(&s.g, packed(&dy, s.y), packed(&w, s.w), &mut dx, false);
    let mut want = vec![0.0; dx.len()];
    each_product(&s, |i, j, k| want[j] += f64::from(dy[i]) * f64::from(w[k]));
    close("dx", &dx, &want, &vec![1.0; dx.len()]);
    assert!(
        want.iter().filter(|&&d| d != 0.0).count() == 8,
        "two images, two rows and columns of the kernel"
    );
}

#[test]
fn zeros_far_around_an_image_cost_no_memory() {
    // Only the middle element of the kernel meets the image.
    let far = 1 << 40;
    let g = Geometry {
        images: 1,
        groups: 1,
        channels: 1,
        filters: 1,
        image: [4, 4],
        kernel: [3, 3],
        result: [4, 4],
        stride: [1, 1],
        padding: [far; 2],
        dilation: [far; 2],
    };
    let (x, w) = (noise(16, 1), noise(9, 2));
    let (mut y, mut dx, mut dw) = (vec![0.0; 16], vec![0.0; 16], vec![1.0; 9]);
    let (sx, sw) = (packed(&x, [1, 1, 4, 4]), packed(&w, [1, 1, 3, 3]));
    forward(&g, sx, sw, &mut y, Epilogue::none());
    input_backward(&g, sx, sw, &mut dx, false);
    weight_backward(&g, sx, sx, &mut dw, false).unwrap();
    let want: Vec<f32> = x.iter().map(|x| x * w[4]).collect();
    assert_eq!((&y, &dx), (&want, &want));
    assert!(dw.iter().enumerate().all(|(i, &d)| (d == 0.0) == (i != 4)), "{dw:?}");
}
