//! The ops that transformers are made of beside attention, where the op cases do not look: fused against unfused, bit for bit;
//! memory by the allocators' counters; sharing of gradients. On the CPU and on a GPU (the simulated one, or that which
//! WARPSMITH_TEST_DEVICE names).

use warpsmith::autograd::backward;
use warpsmith::cpu::pool;
use warpsmith::nn::Activation;
use warpsmith::ops::{CrossEntropy, Reduction, RotaryTable};
use warpsmith::tensor::no_grad;
use warpsmith::{DType, Device, ErrorKind, Result, Tensor};

fn gpu() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator, from −2 to 2.
fn noise(shape: &[usize], salt: u64, dtype: DType, device: Device) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let number = |i: u64| ((i * 2654435761 + salt * 40503) % 10007) as f32 / 2501.75 - 2.0;
    let values = Tensor::from_slice(&(0..n).map(number).collect::<Vec<_>>(), shape, Device::Cpu).unwrap();
    values.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().unwrap().into_iter().map(f64::to_bits).collect()
}

/// Sum and norm of a residual step; RMS norm where there is no bias.
fn step(fused: bool, t: &[Tensor], layer: bool) -> Result<(Tensor, Tensor)> {
    let [x, residual, weight, bias] = t else { unreachable!("four tensors") };
    match (fused, layer) {
        (true, true) => x.add_layer_norm(residual, Some(weight), Some(bias), 1e-5),
        (true, false) => x.add_rms_norm(residual, Some(weight), 1e-5),
        (false, _) => {
            let sum = x.add(residual)?;
            let n = sum.dims()[sum.rank() - 1];
            let y = match layer {
                true => sum.layer_norm([n], Some(weight), Some(bias), 1e-5)?,
                false => sum.rms_norm([n], Some(weight), 1e-5)?,
            };
            Ok((sum, y))
        }
    }
}

#[test]
fn a_residual_and_its_norm_have_the_bits_of_two_calls() {
    for device in [Device::Cpu, gpu()] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (shape, layer) in [([3, 5, 16], true), ([2, 4, 130], false), ([1, 2, 2056], true)] {
                let n = shape[2];
                let t = [
                    noise(&shape, 1, dtype, device),
                    noise(&shape, 2, dtype, device),
                    noise(&[n], 3, dtype, device),
                    noise(&[n], 4, dtype, device),
                ];
                let results = [true, false].map(|fused| {
                    let t = t.each_ref().map(|t| t.as_leaf().unwrap());
                    let (sum, y) = step(fused, &t, layer).unwrap();
                    // A second use of the sum, as in a chain of blocks; sums of squares, so that gradients differ.
                    let loss = y.square().unwrap().sum(&[], false).unwrap();
                    let loss = loss.add(&sum.square().unwrap().sum(&[], false).unwrap()).unwrap();
                    let grads = backward(&loss).unwrap();
                    let used = if layer { &t[..] } else { &t[..3] };
                    let grads: Vec<_> = used.iter().map(|t| bits(grads.get(t).unwrap())).collect();
                    (bits(&sum), bits(&y), grads)
                });
                let [fused, plain] = results;
                let what = format!("{dtype} {shape:?} on {device}");
                assert_eq!((&fused.0, &fused.1), (&plain.0, &plain.1), "{what}");
                if dtype == DType::F32 {
                    assert_eq!(fused.2, plain.2, "gradients, {what}");
                }
                assert_eq!(fused.2[0], fused.2[1], "one gradient for both summands, {what}");
            }
        }
    }
}

#[test]
fn gradients_of_a_residual_step_are_not_confused_where_summands_have_other_uses() {
    for device in [Device::Cpu, gpu()] {
        let leaf = |salt| noise(&[2, 8], salt, DType::F32, device).as_leaf().unwrap();
        let total = |t: &Tensor| t.square()?.sum(&[], false);
        let grads = |fused: bool| {
            let t =
                [leaf(1), leaf(2), noise(&[8], 3, DType::F32, device), noise(&[8], 4, DType::F32, device)];
            let (sum, y) = step(fused, &t, true).unwrap();
            // Both summands are used again after the step, x twice.
            let loss = total(&sum.mul(&y).unwrap()).unwrap();
            let loss = loss.add(&total(&t[0]).unwrap()).unwrap().add(&total(&t[1]).unwrap()).unwrap();
            let loss = loss.add(&total(&t[0].mul(&t[1]).unwrap()).unwrap()).unwrap();
            let grads = backward(&loss).unwrap();
            [0, 1].map(|i| grads.get(&t[i]).unwrap().to_f64_vec().unwrap())
        };
        let (fused, plain) = (grads(true), grads(false));
        for (a, b) in fused.iter().flatten().zip(plain.iter().flatten()) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b} on {device}");
        }
        // One tensor as both summands.
        let x = leaf(5);
        let (sum, _) = x.add_rms_norm(&x, None, 1e-5).unwrap();
        let grad = backward(&sum.sum(&[], false).unwrap()).unwrap();
        assert!(grad.get(&x).unwrap().to_f64_vec().unwrap().iter().all(|&g| g == 2.0), "{device}");
    }
}

/// Loss and the gradients of h and w for logits h · wᵀ.
fn head(
    h: &Tensor,
    w: &Tensor,
    target: &Tensor,
    options: CrossEntropy<'_>,
    over: bool,
) -> (f64, Vec<Vec<u64>>) {
    let (h, w) = (h.as_leaf().unwrap(), w.as_leaf().unwrap());
    let logits = h.linear(&w, None, Activation::Identity).unwrap();
    let loss = match over {
        true => logits.cross_entropy_overwriting(target, options).unwrap(),
        false => logits.cross_entropy(target, options).unwrap(),
    };
    let loss = if loss.rank() > 0 { loss.mul(&loss).unwrap().sum(&[], false).unwrap() } else { loss };
    let grads = backward(&loss).unwrap();
    (loss.item().unwrap(), [&h, &w].map(|t| bits(grads.get(t).unwrap())).to_vec())
}

#[test]
fn gradients_over_the_logits_have_the_bits_of_those_beside_them() {
    for device in [Device::Cpu, gpu()] {
        for dtype in [DType::F32, DType::BF16] {
            for (width, classes, reduction, label_smoothing) in [
                (16, None, Reduction::Mean, 0.0),
                (33, Some(30), Reduction::Sum, 0.1),
                (1040, Some(1030), Reduction::None, 0.0),
            ] {
                let (h, w) = (noise(&[6, 8], 1, dtype, device), noise(&[width, 8], 2, dtype, device));
                let target = Tensor::from_slice(&[3i64, 0, -100, 7, 15, 2], [6], device).unwrap();
                let options = CrossEntropy { classes, reduction, label_smoothing, ..Default::default() };
                let [over, beside] = [true, false].map(|over| head(&h, &w, &target, options, over));
                assert_eq!(over, beside, "{dtype} {width} {classes:?} on {device}");
            }
        }
    }
}

#[test]
fn padding_behind_the_classes_is_as_if_it_were_not_there() {
    for device in [Device::Cpu, gpu()] {
        let x = noise(&[5, 24], 7, DType::F32, device);
        let target = Tensor::from_slice(&[3i64, 0, 20, 7, 15], [5], device).unwrap();
        let options = CrossEntropy { label_smoothing: 0.1, ..Default::default() };
        let padded = x.as_leaf().unwrap();
        let loss = padded.cross_entropy(&target, CrossEntropy { classes: Some(21), ..options }).unwrap();
        let grad = backward(&loss).unwrap().get(&padded).unwrap().clone();
        let short = x.narrow(1, 0, 21).unwrap().contiguous().unwrap().as_leaf().unwrap();
        let want = short.cross_entropy(&target, options).unwrap();
        let want_grad = backward(&want).unwrap().get(&short).unwrap().clone();
        let close = |a: &Tensor, b: &Tensor| {
            let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
            assert_eq!(a.len(), b.len());
            a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b} on {device}"));
        };
        close(&loss, &want);
        close(&grad.narrow(1, 0, 21).unwrap(), &want_grad);
        assert!(grad.narrow(1, 21, 3).unwrap().to_f64_vec().unwrap().iter().all(|&g| g == 0.0));
        // A target in the padding is none of the classes.
        let beyond = Tensor::from_slice(&[3i64, 0, 21, 7, 15], [5], Device::Cpu).unwrap();
        let cpu = x.to_device(Device::Cpu).unwrap();
        let options = CrossEntropy { classes: Some(21), ..options };
        assert!(cpu.cross_entropy(&beyond, options).unwrap_err().to_string().contains("21 classes"));
        let options = CrossEntropy { classes: Some(25), ..options };
        assert_eq!(x.cross_entropy(&target, options).unwrap_err().kind(), ErrorKind::Argument);
    }
}

#[test]
fn logits_that_others_hold_are_not_overwritten() {
    let leaf = noise(&[3, 8], 1, DType::F32, Device::Cpu).as_leaf().unwrap();
    let target = Tensor::from_slice(&[1i64, 2, 3], [3], Device::Cpu).unwrap();
    let loss = |t: Tensor| t.cross_entropy_overwriting(&target, CrossEntropy::default());
    let logits = leaf.mul(&leaf).unwrap();
    let kept = logits.narrow(0, 0, 1).unwrap();
    let error = loss(logits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("held elsewhere"), "{error}");
    drop(kept);
    // tanh reads its result in backward.
    assert!(loss(leaf.tanh().unwrap()).is_err());
    // Without a recording nothing is overwritten, so nothing is asked for.
    no_grad(|| loss(leaf.clone())).unwrap();
    // A second way through the graph would read gradients as logits.
    let once = loss(leaf.mul(&leaf).unwrap()).unwrap();
    backward(&once).unwrap();
    assert_eq!(backward(&once).err().unwrap().kind(), ErrorKind::Stale);
}

#[test]
fn overwriting_saves_one_buffer_of_the_logits() {
    let run = |over: bool, (rows, classes): (usize, usize), device: Device| {
        let (h, w) = (noise(&[rows, 8], 1, DType::F32, device), noise(&[classes, 8], 2, DType::F32, device));
        let target = Tensor::zeros([rows], DType::I64, device).unwrap();
        head(&h, &w, &target, CrossEntropy::default(), over);
    };
    let near = |more: usize, (rows, classes): (usize, usize), what: &str| {
        let bytes = rows * classes * 4;
        assert!(more > bytes * 3 / 4 && more < bytes * 5 / 4, "{what}: {more} bytes more, logits {bytes}");
    };
    // 8 MB of logits: what the other tests of this file hold meanwhile is lost beside that.
    let shape = (1024, 2048);
    run(true, shape, Device::Cpu);
    let over = pool::memory_report().peak_live_bytes;
    run(false, shape, Device::Cpu);
    near(pool::memory_report().peak_live_bytes - over, shape, "cpu");
    let shape = (64, 1024);
    let peak = |over: bool| {
        // One of its own: others of this file work on the shared one meanwhile.
        let device = Device::sim();
        run(over, shape, device);
        device.stream().unwrap().memory_report().peak_live_bytes
    };
    let (over, beside) = (peak(true), peak(false));
    near(beside - over, shape, "gpu");
}

#[test]
fn a_fused_tensor_is_turned_as_its_parts_are() {
    for device in [Device::Cpu, gpu()] {
        let table = RotaryTable::new(20, 16, 10_000.0, device).unwrap();
        let qkv = noise(&[2, 5, 7, 16], 1, DType::F32, device);
        // Four query heads, two of keys, one of values.
        let all = qkv.rotary_embedding(table.tensor(), 6, 3).unwrap();
        let part = |first, n| qkv.narrow(2, first, n).unwrap();
        let q = part(0, 4).rotary_embedding(table.tensor(), 4, 3).unwrap();
        let k = part(4, 2).rotary_embedding(table.tensor(), 2, 3).unwrap();
        let joined = Tensor::cat(&[&q, &k, &part(6, 1)], 2).unwrap();
        assert_eq!(bits(&all), bits(&joined), "{device}");
        assert_ne!(bits(&q), bits(&part(0, 4)));
    }
}
