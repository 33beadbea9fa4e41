//! Convolution on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names) at sizes that the op cases are too small
//! for: several tiles each way, k in several slices, more than 65,535 images, filters and groups.

#![forbid(unsafe_code)]

use warpsmith::ops::{Conv, ConvInputBackward, ConvWeightBackward, run1};
use warpsmith::{DType, Device, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator.
fn noise(shape: [usize; 4], salt: u64, dtype: DType) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: u64| ((i * 2654435761 + salt * 40503) % 10007) as f32 / 5003.5 - 1.0;
    let data: Vec<f32> = (0..n as u64).map(value).collect();
    Tensor::from_slice(&data, shape, Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn check(x: [usize; 4], w: [usize; 4], conv: Conv<2>, dtype: DType) {
    let (tx, tw) = (noise(x, 1, dtype), noise(w, 2, dtype));
    let y = tx.conv2d(&tw, None, conv).unwrap();
    let dy = noise([y.dims()[0], y.dims()[1], y.dims()[2], y.dims()[3]], 3, dtype);
    let input = ConvInputBackward { conv, size: [x[2], x[3]] };
    let weight = ConvWeightBackward { conv, kernel: [w[2], w[3]] };
    let want = [y, run1(input, &[&dy, &tw]).unwrap(), run1(weight, &[&dy, &tx]).unwrap()];
    let gpu = device();
    let on = |t: &Tensor| t.to_device(gpu).unwrap();
    let (tx, tw, dy) = (on(&tx), on(&tw), on(&dy));
    let got = [
        tx.conv2d(&tw, None, conv).unwrap(),
        run1(input, &[&dy, &tw]).unwrap(),
        run1(weight, &[&dy, &tx]).unwrap(),
    ];
    let exact = match dtype {
        DType::F32 => 1e-4,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    };
    for ((got, want), what) in got.iter().zip(&want).zip(["y", "dx", "dw"]) {
        let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
        let size = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(
                (g - w).abs() <= exact * (size * 0.1 + w.abs()),
                "{what}[{i}] of {x:?} {w:?} {dtype}: {g}, not {w}"
            );
        }
    }
}

#[test]
fn several_tiles_and_slices() {
    let same = Conv { padding: [1, 1], ..Conv::default() };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        // 128 filters and more: the large tile of tensor cores for y, for dx after it the small one.
        check([2, 16, 13, 11], [136, 16, 3, 3], same, dtype);
        check([2, 136, 6, 5], [24, 136, 3, 3], same, dtype);
        check([3, 16, 15, 17], [32, 16, 3, 3], Conv { stride: [2, 3], ..same }, dtype);
        check([2, 32, 12, 12], [32, 16, 3, 3], Conv { groups: 2, dilation: [2, 1], ..same }, dtype);
        // Many places: dw in slices.
        check([5, 8, 20, 19], [16, 8, 3, 3], same, dtype);
    }
    check([2, 3, 40, 37], [70, 3, 5, 5], Conv { padding: [2, 2], ..Conv::default() }, DType::F32);
    check([2, 70, 19, 18], [70, 1, 3, 3], Conv { groups: 70, ..same }, DType::F32);
}

#[test]
fn more_than_65535_of_everything() {
    let plain = Conv::default();
    check([66_000, 1, 1, 1], [5, 1, 1, 1], plain, DType::F32);
    check([66_000, 1, 1, 1], [1, 1, 1, 1], plain, DType::F32);
    check([1, 1, 1, 2], [66_000, 1, 1, 2], plain, DType::F32);
    check([1, 66_000, 1, 1], [66_000, 1, 1, 1], Conv { groups: 66_000, ..plain }, DType::F32);
    check([1, 1, 1, 66_000], [5, 1, 1, 3], Conv { padding: [0, 1], ..plain }, DType::F32);
}
