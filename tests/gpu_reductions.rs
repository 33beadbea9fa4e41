//! Reductions on a GPU, the simulated one with all checks on, against the CPU in f64. Sizes and layouts are such that every
//! form of the plan occurs: groups of all sizes, columns, pieces, vectors and ragged ends, which the small shapes of the op
//! cases do not reach.

use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::ops::*;
use warpsmith::selftest::{bits, tensor};
use warpsmith::tensor::Mode;
use warpsmith::{DType, Device, Result, Tensor};

fn sim(order: Order) -> Device {
    Device::sim_with(SimOptions { order, seed: 5, checked: true, ..SimOptions::default() })
}

/// Numbers between −1 and 2, none of them twice in a hurry.
fn values(n: usize) -> Vec<f64> {
    (0..n as u64)
        .map(|i| {
            let r = (i + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_mul(0xd134_2543_de82_ef95);
            (r >> 11) as f64 / (1u64 << 53) as f64 * 3.0 - 1.0
        })
        .collect()
}

type Look = fn(&Tensor) -> Result<Tensor>;

/// Shapes, dimensions to reduce, and how the tensor is looked at first.
const WAYS: [(&[usize], &[isize], Look); 13] = [
    // One output: pieces, by vectors and without.
    (&[1 << 17], &[], |x| Ok(x.clone())),
    (&[100_003], &[], |x| Ok(x.clone())),
    // A start between vectors, and rows that begin between them.
    (&[70_001], &[], |x| x.narrow(0, 1, 70_000)),
    (&[40, 1001], &[1], |x| x.narrow(1, 1, 1000)),
    // Groups of few threads, more blocks than 16 bits count; of a warp; of a block.
    (&[70_001, 3], &[1], |x| Ok(x.clone())),
    (&[9001, 128], &[1], |x| Ok(x.clone())),
    (&[33, 2056], &[1], |x| Ok(x.clone())),
    // Columns: vectors, none, narrow, with pieces whose last is short.
    (&[3001, 64], &[0], |x| Ok(x.clone())),
    (&[1500, 37], &[0], |x| Ok(x.clone())),
    (&[5000, 5], &[0], |x| Ok(x.clone())),
    // Several dimensions, out of order; every other element; repeated ones.
    (&[24, 40, 50], &[0, 2], |x| x.permute(&[2, 0, 1])),
    (&[300, 90], &[1], |x| x.t()?.slice(0, 1, 90, 2)),
    (&[1, 700], &[0], |x| x.expand([90, 700])),
];

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// One unit in the last place of `dtype` at `v`.
fn ulp(dtype: DType, v: f64) -> f64 {
    let digits = match dtype {
        DType::BF16 => 7,
        DType::F16 => 10,
        _ => 23,
    };
    2f64.powi((v.abs().max(1e-4).log2().floor()) as i32 - digits)
}

/// Compares with a result in f64: within `factor` roundings in f32 of `scale`, and one rounding to the output's type.
fn close(what: &str, got: &Tensor, want: &Tensor, factor: f64, scale: &Tensor) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (dtype, got) = (got.dtype(), got.to_f64_vec().unwrap());
    let (want, scale) = (want.to_f64_vec().unwrap(), scale.to_f64_vec().unwrap());
    for (i, ((&g, &w), &s)) in got.iter().zip(&want).zip(scale.iter().cycle()).enumerate() {
        let bound = factor * 2f64.powi(-24) * s + ulp(dtype, w);
        assert!((g - w).abs() <= bound, "{what}: element {i} is {g}, expected {w} within {bound:e}");
    }
}

/// The tensor on the device, and in f64 on the CPU.
fn pair(shape: &[usize], dtype: DType, look: Look, device: Device) -> [Tensor; 2] {
    let data = values(shape.iter().product());
    let cpu = tensor(&data, shape, dtype, Device::Cpu).to_dtype(DType::F64).unwrap();
    [look(&tensor(&data, shape, dtype, device)).unwrap(), look(&cpu).unwrap()]
}

#[test]
fn sums_and_moments_agree_with_f64() {
    for (k, (shape, dims, look)) in WAYS.into_iter().enumerate() {
        let device = sim([Order::Random, Order::Reverse, Order::Pct][k % 3]);
        // Each way in one type, each type in several ways.
        let dtype = FLOATS[k % 3];
        let [x, wide] = pair(shape, dtype, look, device);
        let what = format!("{shape:?} over {dims:?} in {dtype}");
        let scale = wide.abs().unwrap().sum(dims, false).unwrap();
        close(
            &format!("sum of {what}"),
            &x.sum(dims, false).unwrap(),
            &wide.sum(dims, false).unwrap(),
            8.0,
            &scale,
        );
        let one = Tensor::scalar(1.0f64, Device::Cpu).unwrap();
        let mean = wide.mean(dims, true).unwrap();
        close(&format!("mean of {what}"), &x.mean(dims, true).unwrap(), &mean, 8.0, &one);
        // Along the repeated dimension all values are equal: variance 0, to within roundings of the squares.
        let var = wide.var(dims, 1, false).unwrap();
        close(&format!("variance of {what}"), &x.var(dims, 1, false).unwrap(), &var, 32.0, &one);
        let log = wide.logsumexp(dims, false).unwrap();
        close(&format!("logsumexp of {what}"), &x.logsumexp(dims, false).unwrap(), &log, 32.0, &one);
    }
}

#[test]
fn extrema_and_their_places_are_exact() {
    for (k, (shape, dims, look)) in WAYS.into_iter().enumerate() {
        let device = sim([Order::Pct, Order::Random, Order::Reverse][k % 3]);
        for dtype in [FLOATS[k % 3], [DType::U8, DType::I32, DType::I64][k % 3]] {
            // Many ties, of which the first counts.
            let mut data: Vec<f64> =
                values(shape.iter().product()).iter().map(|v| (v * 40.0 + 60.0).round()).collect();
            if dtype.is_float() {
                let n = data.len();
                (data[n / 3], data[n / 2]) = (f64::NAN, f64::NAN);
                (data[n / 5], data[n / 7]) = (f64::INFINITY, f64::NEG_INFINITY);
            }
            let [cpu, gpu] = [Device::Cpu, device].map(|d| look(&tensor(&data, shape, dtype, d)).unwrap());
            let both = |what: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let [a, b] = [&cpu, &gpu].map(|x| f(x).unwrap());
                assert_eq!(
                    (a.dtype(), a.dims()),
                    (b.dtype(), b.dims()),
                    "{what} of {shape:?} over {dims:?} in {dtype}"
                );
                assert!(bits(&a) == bits(&b), "{what} of {shape:?} over {dims:?} in {dtype}");
            };
            both("max", &|x| x.max(dims, false));
            both("min", &|x| x.min(dims, true));
            both("argmax", &|x| x.argmax(dims, false));
            both("argmin", &|x| x.argmin(dims, true));
            if !dtype.is_float() {
                both("sum", &|x| x.sum(dims, false));
            }
        }
    }
}

#[test]
fn backwards_agree_with_f64() {
    for (k, (shape, dims, look)) in WAYS.into_iter().enumerate() {
        // In f32: in 16 bits nearly all elements would equal the largest.
        let device = sim([Order::Reverse, Order::Pct, Order::Random][k % 3]);
        let [x, wide] = pair(shape, DType::F32, look, device);
        let axes = Axes::resolve("test", &x.shape(), dims).unwrap();
        let what = format!("{shape:?} over {dims:?}");
        let kept = wide.sum(dims, true).unwrap().shape();
        let dy = tensor(&values(kept.numel() + 7)[7..], &kept, DType::F32, Device::Cpu);
        let (dy, dy_wide) =
            (tensor(&dy.to_f64_vec().unwrap(), &kept, DType::F32, device), dy.to_dtype(DType::F64).unwrap());
        let one = Tensor::scalar(3.0f64, Device::Cpu).unwrap();
        let check = |name: &str, got: Result<Tensor>, want: Result<Tensor>| {
            close(&format!("{name} of {what}"), &got.unwrap(), &want.unwrap(), 16.0, &one);
        };
        let op = VarBackward { axes, correction: 0 };
        check("var", run1(op, &[&x, &dy]), run1(op, &[&wide, &dy_wide]));
        let y = wide.logsumexp(dims, true).unwrap().to_dtype(DType::F32).unwrap();
        let gpu = tensor(&y.to_f64_vec().unwrap(), &kept, DType::F32, device);
        let y = y.to_dtype(DType::F64).unwrap();
        check(
            "logsumexp",
            run1(LogSumExpBackward { axes }, &[&x, &gpu, &dy]),
            run1(LogSumExpBackward { axes }, &[&wide, &y, &dy_wide]),
        );
        let op = StdBackward { axes, correction: 0 };
        check("std", run1(op, &[&x, &gpu, &dy]), run1(op, &[&wide, &y, &dy_wide]));
        let (y, gpu) = (wide.max(dims, true).unwrap(), x.max(dims, true).unwrap());
        let op = ExtremumBackward { axes };
        check("extremum", run1(op, &[&x, &gpu, &dy]), run1(op, &[&wide, &y, &dy_wide]));
    }
}

#[test]
fn results_are_added_and_repeat() {
    let device = sim(Order::Random);
    for dtype in FLOATS {
        for (shape, dims) in [(&[3001usize, 64][..], &[0isize][..]), (&[33, 2056], &[1]), (&[1 << 15], &[])] {
            let x = tensor(&values(shape.iter().product()), shape, dtype, device);
            let axes = Axes::resolve("test", &x.shape(), dims).unwrap();
            let sum = x.sum(dims, false).unwrap();
            assert!(bits(&sum) == bits(&x.sum(dims, false).unwrap()), "the order of a sum is fixed");
            let twice = Tensor::full(sum.shape(), 0.0, dtype, device).unwrap();
            for _ in 0..2 {
                run_into(Sum { axes, keepdim: false }, &[&x], &[(&twice, Mode::Accumulate)]).unwrap();
            }
            let double = sum.to_f64_vec().unwrap().iter().map(|v| 2.0 * v).collect::<Vec<_>>();
            let far =
                twice.to_f64_vec().unwrap().iter().zip(&double).any(|(a, b)| (a - b).abs() > ulp(dtype, *b));
            assert!(!far, "a sum added twice is the double");
        }
    }
    // Added before it is rounded: the sum itself is no number of the type.
    for (dtype, n) in [(DType::BF16, 257), (DType::F16, 2049)] {
        let (ones, y) =
            (Tensor::ones(n, dtype, device).unwrap(), Tensor::full((), 1.0, dtype, device).unwrap());
        run_into(Sum { axes: Axes::all(1), keepdim: false }, &[&ones], &[(&y, Mode::Accumulate)]).unwrap();
        assert_eq!(y.to_f64_vec().unwrap(), [(n + 1) as f64], "{dtype}");
    }
}

#[test]
fn infinities_and_nan_are_where_the_cpu_has_them() {
    let device = sim(Order::Reverse);
    let n = 600;
    let mut data = vec![values(n); 6];
    data[1][17] = f64::INFINITY;
    data[2][599] = f64::NEG_INFINITY;
    data[3][300] = f64::NAN;
    data[4].fill(f64::NEG_INFINITY);
    data[5].fill(3e38);
    let rows: Vec<f64> = data.concat();
    let columns: Vec<f64> = (0..n).flat_map(|j| data.iter().map(move |row| row[j])).collect();
    for (data, shape, dim) in [(rows, [6, n], 1isize), (columns, [n, 6], 0)] {
        let [cpu, gpu] = [Device::Cpu, device].map(|d| tensor(&data, &shape, DType::F32, d));
        let ops: [(&str, Look); 4] = if dim == 1 {
            [
                ("sum", |x| x.sum(&[1], false)),
                ("var", |x| x.var(&[1], 0, false)),
                ("logsumexp", |x| x.logsumexp(&[1], false)),
                ("std", |x| x.std(&[1], 1, false)),
            ]
        } else {
            [
                ("sum", |x| x.sum(&[0], false)),
                ("var", |x| x.var(&[0], 0, false)),
                ("logsumexp", |x| x.logsumexp(&[0], false)),
                ("std", |x| x.std(&[0], 1, false)),
            ]
        };
        for (name, op) in ops {
            let [a, b] = [&cpu, &gpu].map(|x| op(x).unwrap().to_f64_vec().unwrap());
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                // The variance of huge equal numbers: their mean is rounded, and its squares overflow, or are 0.
                if i == 5 && (name == "var" || name == "std") {
                    continue;
                }
                let same = if a.is_finite() {
                    (a - b).abs() <= 1e-5 * a.abs()
                } else {
                    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
                };
                assert!(same, "{name} of row {i} along {dim}: {a} on the CPU, {b} on the GPU");
            }
        }
    }
}
