//! Convolutional layers against PyTorch's numbers (`tests/golden/convolutions.json`), their initial values, and bugs that other
//! engines had in convolution.

#![forbid(unsafe_code)]

mod golden;

use golden::{assert_close, numbers, sizes, tensor};
use serde_json::Value;
use warpsmith::device::sim::SimOptions;
use warpsmith::nn::{Activation, Conv1d, Conv2d, ConvOptions, ConvTranspose2d, Cx, Module, Scope};
use warpsmith::ops::Conv;
use warpsmith::{Arena, DType, Device, ErrorKind, Tensor};

fn options<const N: usize>(args: &Value) -> ConvOptions<N> {
    ConvOptions {
        stride: sizes(&args["stride"]),
        padding: sizes(&args["padding"]),
        dilation: sizes(&args["dilation"]),
        groups: args["groups"].as_u64().unwrap() as usize,
        bias: args["bias"].as_bool().unwrap(),
    }
}

/// The layer of a case.
fn build(case: &Value, scope: &Scope) -> Box<dyn Module> {
    let args = &case["args"];
    let (inputs, outputs) =
        (numbers(&case["x"]["shape"])[1] as usize, args["outputs"].as_u64().unwrap() as usize);
    match case["op"].as_str().unwrap() {
        "conv1d" => {
            Box::new(Conv1d::new(scope, inputs, outputs, sizes(&args["kernel"]), options(args)).unwrap())
        }
        "conv2d" => {
            Box::new(Conv2d::new(scope, inputs, outputs, sizes(&args["kernel"]), options(args)).unwrap())
        }
        "conv_transpose2d" => {
            let kernel = sizes(&args["kernel"]);
            let layer = ConvTranspose2d::new(scope, inputs, outputs, kernel, options(args)).unwrap();
            Box::new(layer.with_output_padding(sizes(&args["output_padding"])))
        }
        other => panic!("unknown op {other}"),
    }
}

#[test]
fn layers_follow_pytorch() {
    for case in golden::cases(&golden::read("convolutions"), 27) {
        let name = case["name"].as_str().unwrap();
        for (dtype, rtol) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let arena = Arena::new(dtype, Device::Cpu).unwrap();
            let layer = build(case, &Scope::new(&arena, 1));
            let parameters = case["parameters"].as_object().unwrap();
            assert_eq!(layer.params().len(), parameters.len(), "{name}");
            for param in layer.params() {
                let value = tensor(&parameters[&param.name()], dtype);
                assert_eq!(param.get().unwrap().dims(), value.dims(), "{name}: {}", param.name());
                param.set(&value).unwrap();
            }
            let x = tensor(&case["x"], dtype).as_leaf().unwrap();
            let y = layer.forward(&mut Cx::eval(), &x).unwrap();
            assert_close(&format!("{name} output"), &y, &case["output"], rtol);
            let loss = y.mul(&tensor(&case["dy"], dtype)).unwrap().sum(&[], false).unwrap();
            let grads = arena.backward(&loss).unwrap();
            let what = format!("{name} gradient of");
            assert_close(&format!("{what} x"), grads.get(&x).unwrap(), &case["grads"]["x"], rtol);
            for param in layer.params() {
                let own = param.grad().unwrap().unwrap();
                assert_close(
                    &format!("{what} {}", param.name()),
                    &own,
                    &case["grads"][param.name().as_str()],
                    rtol,
                );
            }
        }
    }
}

/// Numbers between −1 and 1.
fn values(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let random = warpsmith::random::Philox::new(seed, 1);
    let data: Vec<f32> = (0..n as u64).map(|i| 2.0 * random.uniform_f32_at(i) - 1.0).collect();
    Tensor::from_slice(&data, shape.to_vec(), Device::Cpu).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// y, and the gradients of x and w for dy = y.
fn all(x: &Tensor, w: &Tensor, conv: Conv<2>) -> [Tensor; 3] {
    let (x, w) = (x.as_leaf().unwrap(), w.as_leaf().unwrap());
    let y = x.conv2d(&w, None, conv).unwrap();
    let loss = y.mul(&y.detach()).unwrap().sum(&[], false).unwrap();
    let grads = warpsmith::autograd::backward(&loss).unwrap();
    [y.detach(), grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()]
}

/// The same elements, laid out in memory with dimension 1 last.
fn channels_last(t: &Tensor) -> Tensor {
    let turned = t.permute(&[0, 2, 3, 1]).unwrap().contiguous().unwrap();
    turned.permute(&[0, 3, 1, 2]).unwrap()
}

/// The same elements, every second one of a larger tensor along dimension `dim`.
fn spread(t: &Tensor, dim: isize) -> Tensor {
    let wide = t.unsqueeze(dim + 1).unwrap();
    let mut shape = wide.dims().to_vec();
    shape[dim as usize + 1] = 2;
    let mut flat = t.dims().to_vec();
    flat[dim as usize] *= 2;
    wide.expand(shape)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape(flat)
        .unwrap()
        .slice(dim, 0, 2 * t.dims()[dim as usize], 2)
        .unwrap()
}

#[test]
fn the_bits_do_not_depend_on_strides() {
    // Non-contiguous kernels and inputs, channels-last images, with padding (wrong in several engines).
    for conv in [
        Conv { padding: [1, 1], ..Conv::default() },
        Conv { stride: [2, 1], padding: [0, 2], dilation: [1, 2], groups: 2 },
        Conv { padding: [1, 1], groups: 4, ..Conv::default() },
        Conv::default(),
    ] {
        let (x, w) = (values(&[3, 4, 9, 11], 1), values(&[8, 4 / conv.groups, 3, 3], 2));
        let want = all(&x, &w, conv).map(|t| bits(&t));
        assert!(!channels_last(&x).is_contiguous() && !spread(&w, 0).is_contiguous());
        for dim in 0..4 {
            let got = all(&spread(&x, dim), &spread(&w, dim), conv).map(|t| bits(&t));
            assert!(got == want, "{conv:?}: every second element of dimension {dim}");
        }
        for (x, w) in [
            (channels_last(&x), w.clone()),
            (x.clone(), channels_last(&w)),
            (channels_last(&x), channels_last(&w)),
        ] {
            assert!(all(&x, &w, conv).map(|t| bits(&t)) == want, "{conv:?}: channels last");
        }
    }
}

#[test]
fn an_image_has_the_same_bits_alone_and_in_any_batch() {
    for (channels, groups, stride) in [(5, 1, 1), (6, 2, 2), (4, 4, 1)] {
        let conv = Conv { stride: [stride; 2], padding: [1, 1], groups, ..Conv::default() };
        let (x, w) =
            (values(&[67, channels, 10, 12], 3), values(&[channels * 2, channels / groups, 3, 3], 4));
        let [y, dx, _] = all(&x, &w, conv);
        for i in [0, 1, 40, 66] {
            let [one, gradient, _] = all(&x.narrow(0, i, 1).unwrap(), &w, conv);
            assert!(bits(&one) == bits(&y.narrow(0, i, 1).unwrap().contiguous().unwrap()), "image {i}");
            assert!(
                bits(&gradient) == bits(&dx.narrow(0, i, 1).unwrap().contiguous().unwrap()),
                "gradient {i}"
            );
        }
    }
}

#[test]
fn more_than_65535_images_pixels_and_channels() {
    let ones = |shape: &[usize]| Tensor::ones(shape.to_vec(), DType::F32, Device::Cpu).unwrap();
    let sum = |t: &Tensor| t.to_dtype(DType::F64).unwrap().sum(&[], false).unwrap().item().unwrap();
    let conv = Conv { padding: [1, 1], ..Conv::default() };
    for (x, w, inner) in [
        // Images; a wide row; a high column; filters.
        ([70_000, 1, 1, 1], [1, 1, 3, 3], 1.0),
        ([1, 1, 1, 70_001], [2, 1, 3, 3], 2.0 * (3.0 * 70_001.0 - 2.0) / 70_001.0),
        ([1, 1, 70_001, 1], [2, 1, 3, 3], 2.0 * (3.0 * 70_001.0 - 2.0) / 70_001.0),
        ([1, 1, 1, 1], [70_000, 1, 3, 3], 70_000.0),
    ] {
        let pixels: usize = x.iter().product();
        let [y, dx, dw] = all(&ones(&x), &ones(&w), conv);
        assert_eq!(sum(&y), inner * pixels as f64, "{x:?} {w:?}");
        assert!(dx.dims() == x && dw.dims() == w);
        // Σ dx = Σ y · (how often y was made from it): with all ones both are sums over the same products.
        let want: f64 = y.to_f64_vec().unwrap().iter().map(|y| y * y).sum();
        assert!((sum(&dx) / want - 1.0).abs() < 1e-5, "{x:?}: {} {want}", sum(&dx));
        assert!((sum(&dw) / want - 1.0).abs() < 1e-5, "{x:?}: {} {want}", sum(&dw));
    }
    // Groups, and channels of a sequence.
    let x = ones(&[1, 70_000, 3]);
    let y = x.conv1d(&ones(&[70_000, 1, 3]), None, Conv { groups: 70_000, ..Conv::default() }).unwrap();
    assert!(y.dims() == [1, 70_000, 1] && sum(&y) == 210_000.0);
}

#[test]
fn more_than_65535_images_and_groups_on_the_simulated_gpu() {
    // Without the checks, which the other tests have: it is many threads.
    let device = Device::sim_with(SimOptions { seed: 5, ..SimOptions::default() });
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let close = |what: &str, gpu: &Tensor, cpu: &Tensor| {
        assert_eq!(gpu.dims(), cpu.dims(), "{what}");
        for (i, (a, b)) in gpu.to_f64_vec().unwrap().iter().zip(cpu.to_f64_vec().unwrap()).enumerate() {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{what}[{i}]: {a}, not {b}");
        }
    };
    let plain = Conv::<2>::default();
    let (x, w) = (values(&[65_600, 1, 1, 2], 1), values(&[1, 1, 1, 2], 2));
    let [y, dx, _] = all(&x, &w, plain);
    let [gpu_y, gpu_dx, _] = all(&there(&x), &there(&w), plain);
    close("y of images", &gpu_y, &y);
    close("dx of images", &gpu_dx, &dx);
    let (x, w) = (values(&[1, 65_600, 1, 2], 3), values(&[65_600, 1, 1, 2], 4));
    let conv = Conv { groups: 65_600, ..plain };
    let y = |x: &Tensor, w: &Tensor| x.conv2d(w, None, conv).unwrap();
    close("y of groups", &y(&there(&x), &there(&w)), &y(&x, &w));
}

#[test]
fn what_does_not_fit_is_a_typed_error() {
    let (x, w) = (values(&[1, 4, 5, 5], 1), values(&[6, 4, 3, 3], 2));
    let plain = Conv::<2>::default();
    let refused = |x: &Tensor, w: &Tensor, conv: Conv<2>, kind: ErrorKind, says: &str| {
        let error = x.conv2d(w, None, conv).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(&values(&[1, 4, 2, 5], 1), &w, plain, ErrorKind::Shape, "larger than the padded image");
    refused(&x, &w, Conv { dilation: [1, 3], ..plain }, ErrorKind::Shape, "larger than the padded image");
    refused(&x, &w, Conv { groups: 3, ..plain }, ErrorKind::Shape, "3 groups");
    refused(&x, &w, Conv { groups: 2, ..plain }, ErrorKind::Shape, "channels a group");
    refused(&x, &values(&[6, 4, 3], 2), plain, ErrorKind::Shape, "needed");
    refused(&x, &values(&[6, 4, 0, 3], 2), plain, ErrorKind::Shape, "kernel");
    for (conv, says) in [
        (Conv { stride: [0, 1], ..plain }, "stride is 0"),
        (Conv { dilation: [1, 0], ..plain }, "dilation is 0"),
        (Conv { groups: 0, ..plain }, "groups is 0"),
        (Conv { padding: [usize::MAX, 0], ..plain }, "beyond the address space"),
        (Conv { stride: [1, usize::MAX], ..plain }, "is too large"),
    ] {
        refused(&x, &w, conv, ErrorKind::Argument, says);
        let error = x.conv_transpose2d(&values(&[4, 2, 3, 3], 1), None, conv, [0, 0]).unwrap_err();
        assert!(error.to_string().contains("conv_transpose2d"), "{error}");
    }
    assert_eq!(x.conv2d(&w, Some(&values(&[5], 3)), plain).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(x.conv2d(&w.to_dtype(DType::F64).unwrap(), None, plain).unwrap_err().kind(), ErrorKind::DType);
    let transposed = |w: &Tensor, conv: Conv<2>, more: [usize; 2], kind: ErrorKind, says: &str| {
        let error = x.conv_transpose2d(w, None, conv, more).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("conv_transpose2d"), "{text}");
    };
    let back = values(&[4, 2, 3, 3], 1);
    transposed(&back, plain, [1, 0], ErrorKind::Argument, "output_padding 1");
    transposed(&w, plain, [0, 0], ErrorKind::Shape, "needed");
    transposed(
        &back,
        Conv { groups: 3, ..plain },
        [0, 0],
        ErrorKind::Shape,
        "4 channels cannot be cut into 3",
    );
    transposed(&back.to_dtype(DType::F64).unwrap(), plain, [0, 0], ErrorKind::DType, "inputs of");
    assert!(x.conv1d(&w, None, Conv::default()).is_err());
    // No image at all is fine.
    let none = values(&[0, 4, 5, 5], 1);
    let [y, dx, dw] = all(&none, &w, plain);
    assert_eq!((y.dims(), dx.dims()), (&[0, 6, 3, 3][..], &[0, 4, 5, 5][..]));
    assert!(dw.to_f64_vec().unwrap().iter().all(|&d| d == 0.0));
}

/// An output padding of a stride or more, which the dilation allows: as PyTorch, the image that a larger one would have been cut to.
#[test]
fn output_padding_may_reach_a_stride_where_the_dilation_is_larger() {
    let (x, w) = (values(&[2, 3, 4, 5], 1), values(&[3, 2, 3, 2], 2));
    let conv = Conv { stride: [1, 2], padding: [2, 1], dilation: [3, 4], groups: 1 };
    let more = [2, 3];
    let x = x.as_leaf().unwrap();
    let y = x.conv_transpose2d(&w, None, conv, more).unwrap();
    // The definition: pixel (i, j) sends w[r, s] to (i stride - padding + r dilation, …).
    let (xs, ws) = (x.to_f64_vec().unwrap(), w.to_f64_vec().unwrap());
    let [height, width] = [3 + 6 + 1 + 2 - 4, 8 + 4 + 1 + 3 - 2];
    assert_eq!(y.dims(), [2, 2, height, width]);
    let mut want = vec![0.0; 4 * height * width];
    for (at, v) in xs.iter().enumerate() {
        let (j, i, c, n) = (at % 5, at / 5 % 4, at / 20 % 3, at / 60);
        for (k, u) in ws[c * 12..][..12].iter().enumerate() {
            let (s, r, o) = (k % 2, k / 2 % 3, k / 6);
            let h = (i + r * 3).wrapping_sub(2);
            let l = (j * 2 + s * 4).wrapping_sub(1);
            if h < height && l < width {
                want[((n * 2 + o) * height + h) * width + l] += v * u;
            }
        }
    }
    for (got, want) in y.to_f64_vec().unwrap().iter().zip(&want) {
        assert!((got - want).abs() < 1e-5, "{got}, not {want}");
    }
    // The gradient has the shape of x, and is the convolution of ones.
    let grads = warpsmith::autograd::backward(&y.sum(&[], false).unwrap()).unwrap();
    let ones = Tensor::ones(y.shape(), x.dtype(), Device::Cpu).unwrap();
    let dx = ones.conv2d(&w, None, conv).unwrap().narrow(2, 0, 4).unwrap().narrow(3, 0, 5).unwrap();
    let got = grads.get(&x).unwrap().to_f64_vec().unwrap();
    assert_eq!(got.len(), xs.len());
    for (got, want) in got.iter().zip(dx.to_f64_vec().unwrap()) {
        assert!((got - want).abs() < 1e-4, "{got}, not {want}");
    }
    let sequence = values(&[1, 3, 6], 4).conv_transpose1d(
        &values(&[3, 2, 2], 5),
        None,
        Conv { dilation: [2], ..Conv::default() },
        [1],
    );
    assert_eq!(sequence.unwrap().dims(), [1, 2, 9]);
}

#[test]
fn layers_refuse_sizes_and_fuse_activations() {
    let arena = Arena::new(DType::F32, Device::Cpu).unwrap();
    let scope = Scope::new(&arena, 3);
    for options in [
        ConvOptions { groups: 3, ..ConvOptions::default() },
        ConvOptions { stride: [0, 1], ..ConvOptions::default() },
        ConvOptions { groups: 0, ..ConvOptions::default() },
    ] {
        assert_eq!(Conv2d::new(&scope, 4, 6, [3, 3], options).err().unwrap().kind(), ErrorKind::Argument);
    }
    assert!(Conv2d::new(&scope, 4, 6, [0, 3], ConvOptions::default()).is_err());
    let x = values(&[2, 4, 7, 7], 5);
    for activation in Activation::ALL {
        let scope = Scope::new(&Arena::new(DType::F32, Device::Cpu).unwrap(), 9);
        let plain = Conv2d::new(&scope, 4, 6, [3, 3], ConvOptions::default()).unwrap();
        let fused = plain.clone().with_activation(activation);
        let run = |layer: &dyn Module, after: Activation| {
            let x = x.as_leaf().unwrap();
            let y = after.forward(&mut Cx::eval(), &layer.forward(&mut Cx::eval(), &x).unwrap()).unwrap();
            let loss = y.mul(&y.detach()).unwrap().sum(&[], false).unwrap();
            let grads = warpsmith::autograd::backward(&loss).unwrap();
            (y.to_f64_vec().unwrap(), grads.get(&x).unwrap().to_f64_vec().unwrap())
        };
        let (want, got) = (run(&plain, activation), run(&fused, Activation::Identity));
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&want.0, &got.0) && close(&want.1, &got.1), "{activation:?}");
    }
}

#[test]
fn initial_values_are_pytorchs() {
    let bound = |t: &Tensor, b: f64| {
        let all = t.to_f64_vec().unwrap();
        let most = all.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(most <= b * 1.000_001 && most > 0.97 * b, "{most}, not just below {b}");
        let (n, mean) = (all.len() as f64, all.iter().sum::<f64>() / all.len() as f64);
        let variance = all.iter().map(|v| v * v).sum::<f64>() / n;
        assert!(mean.abs() < 6.0 * b / (3.0 * n).sqrt() && (variance * 3.0 / (b * b) - 1.0).abs() < 0.1);
    };
    // A layer whose values were read takes no more beside it.
    let scope = || Scope::new(&Arena::new(DType::F32, Device::Cpu).unwrap(), 11);
    let options = ConvOptions { groups: 2, ..ConvOptions::default() };
    // A fan is one filter's elements: in / groups · kernel; transposed, out / groups · kernel.
    let layer = Conv2d::new(&scope(), 32, 64, [3, 5], options).unwrap();
    bound(&layer.params()[0].get().unwrap(), 1.0 / (16f64 * 15.0).sqrt());
    let layer = ConvTranspose2d::new(&scope(), 32, 64, [3, 5], options).unwrap();
    assert_eq!(layer.params()[0].get().unwrap().dims(), [32, 32, 3, 5]);
    bound(&layer.params()[0].get().unwrap(), 1.0 / (32f64 * 15.0).sqrt());
    let layer = Conv1d::new(&scope(), 8, 4096, [4], ConvOptions::default()).unwrap();
    bound(&layer.params()[1].get().unwrap(), 1.0 / 32f64.sqrt());
}
