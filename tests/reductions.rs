//! Reductions, softmax and norms where peers have gone wrong: every width, huge offsets, infinities, ties, NaN, layouts,
//! emptiness, and the number of threads.

use warpsmith::autograd::backward;
use warpsmith::cpu::par::with_threads;
use warpsmith::{DType, Device, ErrorKind, Result, Tensor};

fn tensor(data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(data, shape, Device::cpu()).unwrap()
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 97.0 - 5.0).collect()
}

fn close(got: &[f64], want: &[f64], relative: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= relative * w.abs().max(1e-3), "{what}[{i}]: {g} instead of {w}");
    }
}

#[test]
fn softmax_and_sums_are_right_at_every_width() {
    let data = values(3 * 4096);
    for n in 1..=4096 {
        let x = tensor(&data[..2 * n], &[2, n]);
        let got = x.softmax(1).unwrap().to_f64_vec().unwrap();
        let wide = x.to_dtype(DType::F64).unwrap().softmax(1).unwrap().to_f64_vec().unwrap();
        let want: Vec<f64> = data[..2 * n]
            .chunks(n)
            .flat_map(|row| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                row.iter().map(move |&x| f64::from(x).exp() / sum)
            })
            .collect();
        close(&got, &want, 3e-6, &format!("f32 softmax of width {n}"));
        close(&wide, &want, 1e-13, &format!("f64 softmax of width {n}"));
        let sums: Vec<f64> =
            data[..2 * n].chunks(n).map(|row| row.iter().map(|&x| f64::from(x)).sum()).collect();
        let got = x.sum(&[1], false).unwrap().to_f64_vec().unwrap();
        let scale = n as f64 * 5.0;
        got.iter().zip(&sums).for_each(|(g, w)| assert!((g - w).abs() <= 2e-7 * scale, "sum of width {n}"));
    }
}

#[test]
fn softmax_does_not_care_for_an_offset() {
    let small: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
    let far: Vec<f32> = small.iter().map(|x| x - 1e7).collect();
    for dim in [0, 1] {
        for shape in [[1, 100], [100, 1], [10, 10]] {
            let (a, b) = (tensor(&small, &shape), tensor(&far, &shape));
            let equal = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let (x, y) = (f(&a).unwrap(), f(&b).unwrap());
                assert_eq!(x.to_vec::<f32>().unwrap(), y.to_vec::<f32>().unwrap(), "{shape:?} along {dim}");
            };
            equal(&|x| x.softmax(dim));
            equal(&|x| x.log_softmax(dim));
        }
    }
    let x = tensor(&[-1e7, -1e7], &[2]).log_softmax(0).unwrap().to_f64_vec().unwrap();
    close(&x, &[-std::f64::consts::LN_2; 2], 1e-7, "two equal inputs near -1e7");
}

#[test]
fn infinities_are_as_in_pytorch() {
    let inf = f32::INFINITY;
    let row = |data: &[f32]| tensor(data, &[data.len()]).softmax(0).unwrap().to_vec::<f32>().unwrap();
    assert!(row(&[-inf; 5]).iter().all(|x| x.is_nan()));
    assert_eq!(row(&[-inf, 0.0, -inf, 0.0]), [0.0, 0.5, 0.0, 0.5]);
    assert!(row(&[inf, 0.0]).iter().any(|x| x.is_nan()));
    assert!(row(&[f32::NAN, 0.0]).iter().all(|x| x.is_nan()));
    let lse = |data: &[f32]| tensor(data, &[data.len()]).logsumexp(&[], false).unwrap().item().unwrap();
    assert_eq!(lse(&[-inf, -inf]), f64::NEG_INFINITY);
    assert_eq!(lse(&[inf, 0.0]), f64::INFINITY);
    assert_eq!(lse(&[]), f64::NEG_INFINITY);
    assert!(lse(&[f32::NAN, inf]).is_nan());
}

#[test]
fn layouts_give_the_same_values() {
    let x = tensor(&values(40 * 33 * 3), &[40, 33, 3]);
    for perm in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]] {
        let view = x.permute(&perm).unwrap().slice(1, 1, 3, 1).unwrap();
        let dense = tensor(&view.to_vec::<f32>().unwrap(), view.dims());
        for dim in 0..3 {
            let same = |f: &dyn Fn(&Tensor) -> Result<Tensor>, what: &str| {
                let (a, b) =
                    (f(&view).unwrap().to_f64_vec().unwrap(), f(&dense).unwrap().to_f64_vec().unwrap());
                close(&a, &b, 2e-5, &format!("{what} over {dim} of {perm:?}"));
            };
            same(&|x| x.softmax(dim), "softmax");
            same(&|x| x.log_softmax(dim), "log_softmax");
            same(&|x| x.max(&[dim], true), "max");
            same(&|x| x.argmin(&[dim], false), "argmin");
            same(&|x| x.argmax(&[0, dim.max(1)], false), "argmax of two");
            same(&|x| x.var(&[dim], 1, false), "var");
            same(&|x| x.logsumexp(&[dim], false), "logsumexp");
        }
        let last = view.dims()[2];
        let (a, b) = (view.layer_norm([last], None, None, 1e-5), dense.layer_norm([last], None, None, 1e-5));
        close(&a.unwrap().to_f64_vec().unwrap(), &b.unwrap().to_f64_vec().unwrap(), 1e-4, "layer_norm");
    }
}

#[test]
fn ties_and_nan_in_extrema() {
    let x = tensor(&[1.0, 3.0, 3.0, 0.0, 3.0, -1.0], &[6]).as_leaf().unwrap();
    let y = x.max(&[], false).unwrap();
    let third = 1.0 / 3.0;
    let dx = backward(&y).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(dx, [0.0, third, third, 0.0, third, 0.0]);
    assert_eq!(x.argmax(&[], false).unwrap().to_vec::<i64>().unwrap(), [1]);
    for n in [1, 5, 16, 300, 70_000] {
        for at in [0, n / 2, n - 1] {
            let mut data = values(n);
            data[at] = f32::NAN;
            for shape in [[n, 1], [1, n]] {
                let x = tensor(&data, &shape);
                assert!(x.max(&[], false).unwrap().item().unwrap().is_nan());
                assert!(x.min(&[], false).unwrap().item().unwrap().is_nan());
                assert_eq!(x.argmax(&[], false).unwrap().to_vec::<i64>().unwrap(), [at as i64]);
                assert_eq!(x.argmin(&[], false).unwrap().to_vec::<i64>().unwrap(), [at as i64]);
            }
        }
    }
    let columns = tensor(&values(50 * 40), &[50, 40]).argmax(&[0], false).unwrap().to_vec::<i64>().unwrap();
    for (j, &i) in columns.iter().enumerate() {
        let column: Vec<f32> = values(50 * 40).into_iter().skip(j).step_by(40).collect();
        let best = column.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(column.iter().position(|&v| v == best), Some(i as usize), "column {j}");
    }
}

#[test]
fn nothing_is_handled_and_misuse_is_an_error() {
    let empty = tensor(&[], &[2, 0]);
    assert_eq!(empty.sum(&[1], false).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0]);
    assert!(empty.mean(&[1], false).unwrap().to_f64_vec().unwrap().iter().all(|x| x.is_nan()));
    assert_eq!(empty.sum(&[0], false).unwrap().numel(), 0);
    assert_eq!(empty.softmax(1).unwrap().dims(), [2, 0]);
    for result in [empty.max(&[1], false), empty.min(&[], false), empty.argmax(&[1], false)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Shape);
    }
    assert_eq!(empty.max(&[0], false).unwrap().numel(), 0);
    let x = tensor(&values(6), &[2, 3]);
    assert_eq!(x.sum(&[0, -2], false).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(x.sum(&[2], false).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(x.layer_norm([2], None, None, 1e-5).unwrap_err().kind(), ErrorKind::Shape);
    let ints = Tensor::from_slice(&[200u8, 100, 3], [3], Device::cpu()).unwrap();
    assert_eq!(ints.sum(&[], false).unwrap().to_vec::<i64>().unwrap(), [303]);
    for result in [ints.mean(&[], false), ints.var(&[], 1, false), ints.softmax(0)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::DType);
    }
    let scalar = tensor(&[3.0], &[]);
    assert_eq!(scalar.softmax(-1).unwrap().item().unwrap(), 1.0);
    assert_eq!(scalar.sum(&[], true).unwrap().item().unwrap(), 3.0);
    assert!(scalar.var(&[], 1, false).unwrap().item().unwrap().is_nan());
}

#[test]
fn a_variance_far_from_zero_does_not_cancel() {
    let data: Vec<f32> = (0..1000).map(|i| 1e4 + (i % 2) as f32).collect();
    let x = tensor(&data, &[1, 1000]);
    close(&x.var(&[1], 0, false).unwrap().to_f64_vec().unwrap(), &[0.25], 1e-3, "var");
    let y = x.layer_norm([1000], None, None, 0.0).unwrap().to_f64_vec().unwrap();
    y.iter().for_each(|v| assert!((v.abs() - 1.0).abs() < 5e-3, "{v}"));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let run = |threads: usize| -> Vec<u32> {
        with_threads(threads, || {
            let mut bits = Vec::new();
            for shape in [[700, 300], [5, 30_000], [20_000, 7]] {
                let (rows, n) = (shape[0], shape[1]);
                let x = tensor(&values(rows * n), &shape).as_leaf().unwrap();
                let w = tensor(&values(n), &[n]).as_leaf().unwrap();
                let b = tensor(&values(n + 1)[1..], &[n]).as_leaf().unwrap();
                let norm = x.layer_norm([n], Some(&w), Some(&b), 1e-5).unwrap();
                let rms = norm.rms_norm([n], Some(&w), 1e-5).unwrap();
                let loss = rms.log_softmax(0).unwrap().softmax(1).unwrap().var(&[0], 1, true).unwrap();
                let loss = loss.logsumexp(&[1], false).unwrap().sum(&[], false).unwrap();
                let grads = backward(&loss).unwrap();
                for t in [&x, &w, &b] {
                    let g = grads.get(t).unwrap().to_vec::<f32>().unwrap();
                    bits.extend(g.into_iter().map(f32::to_bits));
                }
                for axes in [&[0][..], &[1], &[]] {
                    let t = norm.mean(axes, false).unwrap().to_vec::<f32>().unwrap();
                    bits.extend(t.into_iter().map(f32::to_bits));
                }
            }
            bits
        })
        .unwrap()
    };
    let want = run(1);
    for threads in [2, 3, 4, 8] {
        assert!(run(threads) == want, "{threads} threads");
    }
}
