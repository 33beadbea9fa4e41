//! What the op cases are too small for, on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names): sums over
//! more indices than one block sorts, with destinations that recur often; rows that several blocks sort or add up; and the
//! errors of indices that do not exist.

use warpsmith::autograd::backward_from;
use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::ops::CrossEntropy;
use warpsmith::{DType, Device, Result, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f32 / 5003.5 - 1.0).collect()
}

/// `n` indices below `size`: every third is 5, as padding is, every seventh one of the last three, the rest spread.
fn indices(n: usize, size: usize) -> Vec<i64> {
    let pick = |i: usize| match i {
        _ if i.is_multiple_of(3) => 5,
        _ if i.is_multiple_of(7) => size - 1 - i % 3,
        _ => (i * 7919) % size,
    };
    (0..n).map(|i| pick(i) as i64).collect()
}

/// The gradient by `x` of a lookup in it.
fn gradient(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Tensor {
    let leaf = x.as_leaf().unwrap();
    let y = f(&leaf).unwrap();
    let seed = Tensor::from_slice(&noise(y.numel(), 3), y.shape(), Device::Cpu).unwrap();
    let seed = seed.to_dtype(y.dtype()).unwrap().to_device(x.device()).unwrap();
    backward_from(&y, &seed).unwrap().get(&leaf).unwrap().clone()
}

type Lookup = (&'static str, Vec<usize>, fn(&Tensor, &Tensor) -> Result<Tensor>, Vec<usize>, usize);

/// Name, shape of x, lookup, shape of the index, what indices are below. More than 2048 indices make two and three tiles.
fn lookups() -> Vec<Lookup> {
    vec![
        ("embedding", vec![150, 3], |x, i| x.embedding(i), vec![5, 520], 150),
        ("embedding in vectors", vec![97, 8], |x, i| x.embedding(i), vec![2049], 97),
        ("index_select", vec![2, 70, 4], |x, i| x.index_select(1, i), vec![2300], 70),
        ("gather", vec![9, 300], |x, i| x.gather(1, i), vec![9, 500], 300),
    ]
}

#[test]
fn gradients_of_many_indices_are_those_of_the_cpu() {
    for (name, shape, f, index_shape, size) in lookups() {
        let x = Tensor::from_slice(&noise(shape.iter().product(), 1), &shape[..], Device::Cpu).unwrap();
        let index = indices(index_shape.iter().product(), size);
        let index = Tensor::from_slice(&index, &index_shape[..], Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let x = x.to_dtype(dtype).unwrap();
            let want = gradient(&x, |x| f(x, &index)).to_f64_vec().unwrap();
            let device = device();
            let (x, index) = (x.to_device(device).unwrap(), index.to_device(device).unwrap());
            let got = gradient(&x, |x| f(x, &index)).to_f64_vec().unwrap();
            // Up to 870 terms of at most 1, in pieces of 64: within their sum's rounding, and one unit of the result.
            let unit = if dtype == DType::F32 { 2f64.powi(-23) } else { 2f64.powi(-7) };
            for (at, (g, w)) in got.iter().zip(&want).enumerate() {
                let room = 870.0 * 2f64.powi(-20) + unit * w.abs();
                assert!((g - w).abs() <= room, "{name} {dtype} [{at}]: {g} instead of {w}");
            }
        }
    }
}

#[test]
fn sums_have_the_same_bits_under_every_schedule() {
    let x = Tensor::from_slice(&noise(40 * 4, 1), [40, 4], Device::Cpu).unwrap();
    let index = Tensor::from_slice(&indices(2100, 40), 2100, Device::Cpu).unwrap();
    let bits = |order, seed| {
        let device = Device::sim_with(SimOptions { order, seed, checked: true, ..SimOptions::default() });
        let index = index.to_device(device).unwrap();
        let grad = gradient(&x.to_device(device).unwrap(), |x| x.embedding(&index));
        grad.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let want = bits(Order::Forward, 0);
    for (order, seed) in [(Order::Reverse, 0), (Order::Random, 1), (Order::Pct, 2)] {
        assert_eq!(bits(order, seed), want, "{order:?}");
    }
}

/// The message on the CPU, which must also be that of the next synchronisation of a GPU.
#[track_caller]
fn same_error(f: impl Fn(Device) -> Result<Tensor>) {
    let want = f(Device::Cpu).unwrap_err();
    let device = device();
    let got = f(device).and_then(|y| y.to_f64_vec().map(drop)).unwrap_err();
    assert_eq!((got.kind(), got.to_string()), (want.kind(), want.to_string()));
    // The device goes on.
    let one = Tensor::from_slice(&[2f32], 1, device).unwrap();
    assert_eq!(one.to_vec::<f32>().unwrap(), [2.0]);
}

#[test]
fn the_first_bad_index_is_named_as_on_the_cpu() {
    let x = |device| Tensor::from_slice(&noise(12, 1), [4, 3], device).unwrap();
    let ids = |list: &[i64], shape: &[usize], device| Tensor::from_slice(list, shape, device).unwrap();
    same_error(|d| x(d).embedding(&ids(&[0, 1, 2, 3, 4, 9], &[2, 3], d)));
    same_error(|d| x(d).embedding(&ids(&[0, i64::MIN, 1 << 40, 3], &[4], d)));
    same_error(|d| x(d).index_select(1, &ids(&[0, -1], &[2], d)));
    same_error(|d| x(d).index_select(0, &ids(&[0, 4, 5], &[3], d)));
    same_error(|d| x(d).gather(0, &ids(&[0, 1, 7, 3, 4, 5], &[2, 3], d)));
    same_error(|d| x(d).scatter_add(1, &ids(&[0, 1, 3, 4], &[4, 1], d), &x(d)));
    same_error(|d| ids(&[0, 1, 2, -7, 3, 9], &[3, 2], d).one_hot(3));
    same_error(|d| x(d).cross_entropy(&ids(&[0, 1, 3, -2], &[4], d), CrossEntropy::default()));
    same_error(|d| {
        let wide = Tensor::zeros([600, 2], DType::F32, d)?;
        let list: Vec<i64> = (0..600).map(|i| if i > 300 { 2 + i } else { 1 }).collect();
        wide.cross_entropy(&ids(&list, &[600], d), CrossEntropy::default())
    });
}

#[test]
fn long_rows_and_many_rows_are_sorted_as_on_the_cpu() {
    let cases: [(&[usize], DType); 6] = [
        (&[2, 9000], DType::F32),
        (&[1, 12_289], DType::BF16),
        (&[1, 4097], DType::I64),
        (&[1, 5000], DType::U8),
        (&[70_000, 3], DType::F32),
        (&[9, 2049], DType::I32),
    ];
    for (shape, dtype) in cases {
        let numbers: Vec<f32> = noise(shape.iter().product(), 5).iter().map(|v| v * 1000.0).collect();
        let x = Tensor::from_slice(&numbers, shape, Device::Cpu).unwrap();
        let x =
            if dtype == DType::U8 { x.abs().unwrap().to_dtype(dtype) } else { x.to_dtype(dtype) }.unwrap();
        for descending in [false, true] {
            let all = |device| {
                let x = x.to_device(device).unwrap();
                let mut found = vec![x.sort(-1, descending, true).unwrap()];
                // In one round of tiles, in two, and by sorting all.
                for k in [1, 512, 700] {
                    found.extend((k <= shape[1]).then(|| x.topk(k, -1, descending, true).unwrap()));
                }
                let numbers = |t: (Tensor, Tensor)| [t.0.to_f64_vec().unwrap(), t.1.to_f64_vec().unwrap()];
                found.into_iter().map(numbers).collect::<Vec<_>>()
            };
            assert!(all(device()) == all(Device::Cpu), "{shape:?} {dtype} descending {descending}");
        }
    }
}

#[test]
fn sorting_has_one_result_under_every_schedule() {
    let x = Tensor::from_slice(&noise(5000, 1), 5000, Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    let want = x.argsort(0, true).unwrap().to_vec::<i64>().unwrap();
    for (order, seed) in [(Order::Forward, 0), (Order::Reverse, 0), (Order::Random, 1), (Order::Pct, 2)] {
        let device = Device::sim_with(SimOptions { order, seed, checked: true, ..SimOptions::default() });
        let got = x.to_device(device).unwrap().argsort(0, true).unwrap();
        assert!(got.to_vec::<i64>().unwrap() == want, "{order:?}");
    }
}

#[test]
fn running_sums_of_many_pieces_are_those_of_the_cpu() {
    // Pieces of pieces; many rows; few columns in pieces; the middle dimension.
    let cases: [(&[usize], isize); 5] = [
        (&[1024 * 1024 + 3], 0),
        (&[2, 4 * 1030], 1),
        (&[70_000, 2], 1),
        (&[5000, 3], 0),
        (&[3, 1500, 2], 1),
    ];
    for (shape, dim) in cases {
        let numbers: Vec<f32> = noise(shape.iter().product(), 7).iter().map(|v| (v * 8.0).round()).collect();
        let x = Tensor::from_slice(&numbers, shape, Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::I32] {
            let x = x.to_dtype(dtype).unwrap();
            // Whole numbers, so that no order rounds.
            let want = x.cumsum(dim).unwrap().to_f64_vec().unwrap();
            let got = x.to_device(device()).unwrap().cumsum(dim).unwrap().to_f64_vec().unwrap();
            assert!(got == want, "{shape:?} {dtype}");
        }
        let gradient =
            |device| gradient(&x.to_device(device).unwrap(), |x| x.cumsum(dim)).to_f64_vec().unwrap();
        for (at, (g, w)) in gradient(device()).iter().zip(gradient(Device::Cpu)).enumerate() {
            assert!((g - w).abs() <= 0.05 + 1e-5 * w.abs(), "{shape:?} [{at}]: {g} instead of {w}");
        }
    }
}

#[test]
fn pieces_that_vectors_can_move_are_put_together_as_on_the_cpu() {
    for dtype in [DType::F32, DType::BF16, DType::U8, DType::I64] {
        let part = |shape: &[usize], salt| {
            let numbers =
                noise(shape.iter().product(), salt).iter().map(|v| (v * 100.0).abs()).collect::<Vec<_>>();
            Tensor::from_slice(&numbers, shape, Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        let parts = [part(&[5, 16], 1), part(&[5, 48], 2), part(&[5, 7], 3), part(&[48, 5], 4).t().unwrap()];
        let joined = |device| {
            let parts: Vec<Tensor> = parts.iter().map(|t| t.to_device(device).unwrap()).collect();
            let long = Tensor::cat(&[&parts[0], &parts[1], &parts[3]], 1).unwrap();
            let odd = Tensor::cat(&[&parts[2], &parts[0], &parts[1]], 1).unwrap();
            let padded = odd.pad(&[(1, 0), (2, 3)], 7.0).unwrap();
            let chosen = Tensor::from_slice(&[4i64, 0, 4], 3, device).unwrap();
            let rows = long.index_select(0, &chosen).unwrap();
            [long, odd, padded, rows].map(|t| t.to_f64_vec().unwrap())
        };
        assert!(joined(device()) == joined(Device::Cpu), "{dtype}");
    }
}
