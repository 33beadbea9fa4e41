//! Attention and its gradients on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names) against the CPU, for the types whose backward has no cases of its own (statistics
//! are f32 beside 16-bit vectors), and bad extents.

use warpsmith::autograd::backward_from;
use warpsmith::ops::Sdpa;
use warpsmith::selftest::Rng;
use warpsmith::{DType, Device, ErrorKind, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut rng = Rng::of(&[&name]);
    (0..shape.iter().product::<usize>()).map(|_| rng.normal() as f32).collect()
}

fn tensor(name: &str, shape: &[usize], dtype: DType, device: Device) -> Tensor {
    let host = Tensor::from_slice(&values(name, shape), shape, Device::Cpu).unwrap();
    host.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

/// The result and the gradient of the packed buffer.
fn packed(
    device: Device,
    dtype: DType,
    [b, t, h, kv, d]: [usize; 5],
    lengths: Option<&[i32]>,
) -> [Vec<f64>; 2] {
    let qkv = tensor("qkv", &[b, t, h + 2 * kv, d], dtype, device).as_leaf().unwrap();
    let lengths = lengths.map(|l| Tensor::from_slice(l, [b], device).unwrap());
    let options = Sdpa { causal: true, lengths: lengths.as_ref(), ..Sdpa::default() };
    let y = qkv.packed_attention(h, kv, options).unwrap();
    let dy = tensor("dy", &[b, t, h, d], dtype, device);
    let grads = backward_from(&y, &dy).unwrap();
    [y.to_f64_vec().unwrap(), grads.get(&qkv).unwrap().to_f64_vec().unwrap()]
}

/// Within so many units of the type, of the largest value: weights and gradients of scores are rounded once more.
fn near(got: &[f64], want: &[f64], dtype: DType, what: &str) {
    let most = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let bound = 4.0 * dtype.unit_roundoff().max(2e-6) * most;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (got - want).abs() <= bound,
            "{what} {dtype}: [{i}] is {got}, expected {want} within {bound}"
        );
    }
}

#[test]
fn gradients_of_all_types_are_those_of_the_cpu() {
    // Each padded width on tensor cores, two tiles and a ragged rest; widths and addresses that they cannot have.
    let sizes: [([usize; 5], Option<&[i32]>); 5] = [
        ([2, 70, 2, 1, 64], Some(&[70, 33])),
        ([1, 66, 1, 1, 128], None),
        ([1, 20, 2, 1, 136], None),
        ([1, 35, 2, 2, 40], None),
        ([2, 9, 1, 1, 5], Some(&[0, 9])),
    ];
    for (sizes, lengths) in sizes {
        for dtype in [DType::BF16, DType::F16] {
            let want = packed(Device::Cpu, dtype, sizes, lengths);
            let got = packed(device(), dtype, sizes, lengths);
            near(&got[0], &want[0], dtype, &format!("{sizes:?}: result"));
            near(&got[1], &want[1], dtype, &format!("{sizes:?}: gradient"));
        }
    }
}

#[test]
fn bad_extents_are_errors_on_both_sides() {
    for device in [Device::Cpu, device()] {
        let qkv = tensor("qkv", &[2, 3, 3, 8], DType::F32, device);
        for bad in [[4i64, 3], [2, -1]] {
            let lengths = Tensor::from_slice(&bad, [2], device).unwrap();
            let options = Sdpa { lengths: Some(&lengths), ..Sdpa::default() };
            let error = qkv.packed_attention(1, 1, options).and_then(|y| y.to_f64_vec()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.message().contains("of batch row"), "{error}");
        }
        let flat = tensor("qkv", &[6, 3, 8], DType::F32, device);
        for bad in [[0i32, 4, 2, 6], [0, 2, 4, 5], [1, 2, 4, 6], [0, 2, 7, 6]] {
            let bounds = Tensor::from_slice(&bad, [4], device).unwrap();
            let error = flat.segmented_attention(1, 1, &bounds, Sdpa::default());
            let error = error.and_then(|y| y.to_f64_vec()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.message().contains("bounds ascend from 0 to 6"), "{error}");
        }
    }
}
