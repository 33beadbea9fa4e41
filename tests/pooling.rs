//! Pooling, norms over channels and resizing where peers broke: NaN, many planes, layouts, batches of one, nothing at all;
//! on the CPU and on the simulated GPU with all checks on.

use warpsmith::autograd::backward_from;
use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::nn::{
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, BatchNormOptions, Cx, GroupNorm, MaxPool2d,
};
use warpsmith::nn::{Module, Scope, Sequential, Upsample};
use warpsmith::ops::{Interpolation, Resize, Window};
use warpsmith::selftest::bits;
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

fn sim() -> Device {
    Device::sim_with(SimOptions { order: Order::Random, seed: 5, checked: true, ..SimOptions::default() })
}

/// Numbers without a pattern that a window could match.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8388608.0 - 1.0).collect()
}

fn tensor(shape: &[usize], device: Device) -> Tensor {
    Tensor::from_slice(&numbers(shape.iter().product()), shape, device).unwrap()
}

#[track_caller]
fn close(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    for (i, (a, b)) in a.to_f64_vec().unwrap().iter().zip(b.to_f64_vec().unwrap()).enumerate() {
        assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{what}[{i}]: {a} and {b}");
    }
}

/// The functions of one tensor that are tried.
type Function = fn(&Tensor) -> Result<Tensor>;
const FUNCTIONS: [(&str, Function); 8] = [
    ("max_pool2d", |x| x.max_pool2d(Window::new([2, 2]))),
    ("max_pool2d padded", |x| x.max_pool2d(Window::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]))),
    ("avg_pool2d", |x| x.avg_pool2d(Window::new([2, 2]).with_stride([1, 1]), true)),
    ("adaptive_avg_pool2d", |x| x.adaptive_avg_pool2d([2, 1])),
    ("interpolate", |x| x.interpolate(Resize::To([3, 3]), Interpolation::Bilinear { align_corners: false })),
    ("interpolate nearest", |x| x.interpolate(Resize::By([1.5, 2.0]), Interpolation::Nearest)),
    ("batch_norm", |x| Ok(x.batch_norm(None, None, 1e-5)?.0)),
    ("group_norm", |x| x.group_norm(1, None, None, 1e-5)),
];

/// The result and the gradient of x.
fn both_ways(f: Function, x: &Tensor) -> [Tensor; 2] {
    let x = x.as_leaf().unwrap();
    let y = f(&x).unwrap();
    let dy = tensor(y.dims(), x.device());
    let dx = backward_from(&y, &dy).unwrap().get(&x).unwrap().clone();
    [y, dx]
}

#[test]
fn more_than_65535_planes_are_planes_like_others() {
    // 65,600 planes of 2 by 2. Without the checks, which the other tests have: it is many threads.
    let device = Device::sim_with(SimOptions { seed: 5, ..SimOptions::default() });
    let shape = [8_200, 8, 2, 2];
    for (name, f) in FUNCTIONS {
        let cpu = both_ways(f, &tensor(&shape, Device::Cpu));
        let gpu = both_ways(f, &tensor(&shape, device));
        for (what, (cpu, gpu)) in ["y", "dx"].iter().zip(cpu.iter().zip(&gpu)) {
            close(&format!("{name}, {what}"), gpu, cpu);
        }
    }
}

#[test]
fn channels_last_and_cut_out_images_give_the_same_bits() {
    for device in [Device::Cpu, sim()] {
        let x = tensor(&[3, 4, 6, 6], device);
        let last = x.permute(&[0, 2, 3, 1]).unwrap().contiguous().unwrap().permute(&[0, 3, 1, 2]).unwrap();
        assert!(!last.is_contiguous());
        let large = tensor(&[3, 4, 8, 8], device);
        large.slice(2, 1, 7, 1).unwrap().slice(3, 1, 7, 1).unwrap().copy_(&x).unwrap();
        let cut = large.slice(2, 1, 7, 1).unwrap().slice(3, 1, 7, 1).unwrap();
        for (name, f) in FUNCTIONS {
            let want = f(&x).unwrap();
            for other in [&last, &cut] {
                assert_eq!(bits(&f(other).unwrap()), bits(&want), "{name} on {device}");
            }
        }
    }
}

#[test]
fn a_sample_alone_gives_the_bits_that_it_gives_in_a_batch() {
    for device in [Device::Cpu, sim()] {
        let x = tensor(&[5, 3, 5, 7], device);
        for (name, f) in FUNCTIONS.into_iter().filter(|(name, _)| *name != "batch_norm") {
            let all = f(&x).unwrap();
            for n in 0..5 {
                let alone = f(&x.narrow(0, n, 1).unwrap()).unwrap();
                let within = all.narrow(0, n, 1).unwrap().contiguous().unwrap();
                assert_eq!(bits(&alone), bits(&within), "{name}, sample {n} on {device}");
            }
        }
    }
}

#[test]
fn nan_goes_through_and_ties_go_to_the_first() {
    for device in [Device::Cpu, sim()] {
        let data = [
            1f32,
            2.0,
            f32::NAN,
            0.0,
            2.0,
            2.0,
            3.0,
            f32::NAN,
            -1.0,
            -1.0,
            -5.0,
            -7.0,
            -1.0,
            -1.0,
            -7.0,
            -5.0,
        ];
        let x = Tensor::from_slice(&data, [1, 1, 4, 4], device).unwrap();
        let (y, index) = x.max_pool2d_with_indices(Window::new([2, 2])).unwrap();
        let y = y.to_vec::<f32>().unwrap();
        assert!(y[0] == 2.0 && y[1].is_nan() && y[2] == -1.0 && y[3] == -5.0, "{y:?}");
        // PyTorch takes the last of several NaN, the first of several numbers.
        assert_eq!(index.to_vec::<i64>().unwrap(), [1, 7, 8, 10]);
        // Also where rows of windows are computed eight at a time.
        let mut wide = vec![0f32; 4 * 40];
        (wide[7], wide[46], wide[121]) = (f32::NAN, f32::NAN, f32::NEG_INFINITY);
        let wide = Tensor::from_slice(&wide, [1, 1, 4, 40], device).unwrap();
        let (y, index) = wide.max_pool2d_with_indices(Window::new([2, 2])).unwrap();
        let (y, index) = (y.to_vec::<f32>().unwrap(), index.to_vec::<i64>().unwrap());
        assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 3)), "{y:?}");
        assert_eq!((index[2], index[3], index[4], index[20]), (4, 46, 8, 80));
    }
}

#[test]
fn overlapping_windows_add_their_gradients_in_one_order() {
    for device in [Device::Cpu, sim()] {
        // One element is the largest of all nine windows.
        let mut data = vec![0f32; 25];
        data[12] = 1.0;
        let x = Tensor::from_slice(&data, [1, 1, 5, 5], device).unwrap().as_leaf().unwrap();
        let y = x.max_pool2d(Window::new([3, 3]).with_stride([1, 1])).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [1.0; 9]);
        let dy = numbers(9);
        let found = backward_from(&y, &Tensor::from_slice(&dy, [1, 1, 3, 3], device).unwrap()).unwrap();
        let dx = found.get(&x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(dx[12], dy.iter().fold(0.0, |sum, v| sum + v));
        assert!(dx.iter().enumerate().all(|(i, v)| i == 12 || *v == 0.0));
    }
}

#[test]
fn nothing_at_all_passes_through() {
    for device in [Device::Cpu, sim()] {
        let x = Tensor::zeros([0, 2, 4, 4], DType::F32, device).unwrap();
        for (name, f) in FUNCTIONS {
            let [y, dx] = both_ways(f, &x);
            assert_eq!((y.dims()[0], dx.dims()), (0, x.dims()), "{name}");
        }
        // A batch without samples teaches nothing.
        let arena = Arena::new(DType::F32, device).unwrap();
        let layer = BatchNorm2d::new(&Scope::new(&arena, 0), 2).unwrap();
        layer.forward(&mut Cx::train(arena.step_block(), 0).unwrap(), &x).unwrap();
        let [mean, variance, batches] = layer.running().unwrap();
        assert_eq!(mean.get().to_vec::<f32>().unwrap(), [0.0, 0.0]);
        assert_eq!(variance.get().to_vec::<f32>().unwrap(), [1.0, 1.0]);
        assert_eq!(batches.get().to_vec::<i64>().unwrap(), [0]);
    }
}

#[test]
fn bad_layers_and_inputs_are_typed_errors() {
    let arena = Arena::new(DType::F32, Device::Cpu).unwrap();
    let scope = Scope::new(&arena, 0);
    let kind = |result: Result<Tensor>| result.unwrap_err().kind();
    assert_eq!(BatchNorm1d::new(&scope, 0).err().unwrap().kind(), ErrorKind::Argument);
    let options = BatchNormOptions { momentum: Some(1.5), ..BatchNormOptions::default() };
    assert_eq!(BatchNorm1d::with_options(&scope, 2, options).err().unwrap().kind(), ErrorKind::Argument);
    assert_eq!(GroupNorm::new(&scope, 3, 4).err().unwrap().kind(), ErrorKind::Argument);
    let (rows, images) =
        (BatchNorm1d::new(&scope, 3).unwrap(), BatchNorm2d::new(&scope.enter("images"), 3).unwrap());
    let x = |shape: &[usize]| tensor(shape, Device::Cpu);
    let mut train = Cx::train(arena.step_block(), 0).unwrap();
    // One value a channel: no variance to speak of. In evaluation it is fine.
    assert_eq!(kind(rows.forward(&mut train, &x(&[1, 3]))), ErrorKind::Shape);
    assert_eq!(kind(images.forward(&mut train, &x(&[1, 3, 1, 1]))), ErrorKind::Shape);
    rows.forward(&mut Cx::eval(), &x(&[1, 3])).unwrap();
    rows.forward(&mut train, &x(&[1, 3, 2])).unwrap();
    assert_eq!(kind(rows.forward(&mut train, &x(&[2, 3, 2, 2]))), ErrorKind::Shape);
    assert_eq!(kind(rows.forward(&mut train, &x(&[4, 2]))), ErrorKind::Shape);
    assert_eq!(kind(images.forward(&mut train, &x(&[4, 3]))), ErrorKind::Shape);
    assert_eq!(kind(x(&[2, 4, 3]).group_norm(3, None, None, 1e-5)), ErrorKind::Shape);
    assert_eq!(kind(x(&[2, 3]).batch_norm(Some(&x(&[2])), None, 1e-5).map(|y| y.0)), ErrorKind::Shape);
    assert_eq!(
        kind(x(&[1, 1, 3, 3]).interpolate(Resize::By([0.1, 1.0]), Interpolation::Nearest)),
        ErrorKind::Argument
    );
    for scale in [f64::NAN, -1.0, f64::INFINITY, 0.0] {
        let to = Resize::By([scale, 1.0]);
        assert_eq!(kind(x(&[1, 1, 3, 3]).interpolate(to, Interpolation::Nearest)), ErrorKind::Argument);
    }
    let mut eval = Cx::eval();
    assert_eq!(kind(MaxPool2d::new([4, 4]).forward(&mut eval, &x(&[1, 1, 3, 3]))), ErrorKind::Shape);
    let padded = AvgPool2d::new([2, 2]).with_padding([2, 0]);
    assert_eq!(kind(padded.forward(&mut eval, &x(&[1, 1, 3, 3]))), ErrorKind::Argument);
    let integers = Tensor::zeros([1, 2, 2], DType::I64, Device::Cpu).unwrap();
    assert_eq!(kind(integers.max_pool2d(Window::new([2, 2]))), ErrorKind::DType);
}

#[test]
fn a_net_of_these_layers_learns_the_same_on_both_devices() {
    let run = |device: Device| -> (Vec<f64>, Vec<f64>) {
        let arena = Arena::new(DType::F32, device).unwrap();
        let scope = Scope::new(&arena, 1);
        let net = Sequential::new()
            .push(BatchNorm2d::new(&scope.enter(0), 3).unwrap())
            .push(MaxPool2d::new([2, 2]))
            .push(
                Upsample::new(Resize::By([2.0, 2.0]))
                    .with_mode(Interpolation::Bilinear { align_corners: false }),
            )
            .push(GroupNorm::new(&scope.enter(3), 3, 3).unwrap())
            .push(AvgPool2d::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]))
            .push(AdaptiveAvgPool2d::new([1, 1]));
        let x = tensor(&[4, 3, 8, 8], device);
        for step in 0..3 {
            let x = x.mul_scalar(1.0 + step as f64).unwrap();
            let y = net.forward(&mut Cx::train(arena.step_block(), 0).unwrap(), &x).unwrap();
            arena.backward(&y.square().unwrap().sum(&[], false).unwrap()).unwrap();
        }
        let state = arena.buffers().iter().flat_map(|b| b.get().to_f64_vec().unwrap()).collect();
        (state, arena.grads().unwrap().to_f64_vec().unwrap())
    };
    let (cpu, gpu) = (run(Device::Cpu), run(sim()));
    assert_eq!(cpu.0.last(), Some(&3.0));
    for (cpu, gpu) in cpu.0.iter().zip(&gpu.0).chain(cpu.1.iter().zip(&gpu.1)) {
        assert!((cpu - gpu).abs() <= 1e-4 * (1.0 + cpu.abs()), "{cpu} and {gpu}");
    }
}
