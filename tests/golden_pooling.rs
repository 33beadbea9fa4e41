//! Pooling, resizing, batch norm and group norm against PyTorch's numbers (`tests/golden`).

mod golden;

use std::collections::BTreeMap;

use golden::{assert_close, numbers, sizes, tensor};
use serde_json::Value;
use warpsmith::autograd::backward_from;
use warpsmith::nn::{BatchNorm1d, BatchNorm2d, BatchNormOptions, Cx, Module, Scope};
use warpsmith::ops::{Interpolation, Resize, Window};
use warpsmith::{Arena, DType, Device, Result, Tensor};

fn window<const N: usize>(args: &Value) -> Window<N> {
    Window::new(sizes(&args["kernel"]))
        .with_stride(sizes(&args["stride"]))
        .with_padding(sizes(&args["padding"]))
        .with_dilation(sizes(&args["dilation"]))
        .with_ceil_mode(args["ceil_mode"].as_bool().unwrap())
}

/// Calls the op of a case.
fn call(case: &Value, inputs: &BTreeMap<&str, Tensor>) -> Result<Tensor> {
    let (x, args) = (&inputs["x"], &case["args"]);
    let counted = || args["count_include_pad"].as_bool().unwrap();
    match case["op"].as_str().unwrap() {
        "max_pool2d" => x.max_pool2d(window(args)),
        "max_pool1d" => x.max_pool1d(window(args)),
        "avg_pool2d" => x.avg_pool2d(window(args), counted()),
        "avg_pool1d" => x.avg_pool1d(window(args), counted()),
        "adaptive_avg_pool2d" => x.adaptive_avg_pool2d(sizes(&args["size"])),
        "adaptive_avg_pool1d" => x.adaptive_avg_pool1d(sizes::<1>(&args["size"])[0]),
        "interpolate" => {
            let mode = match args["mode"].as_str().unwrap() {
                "nearest" => Interpolation::Nearest,
                "bilinear_edges" => Interpolation::Bilinear { align_corners: false },
                "bilinear_corners" => Interpolation::Bilinear { align_corners: true },
                other => panic!("unknown mode {other}"),
            };
            let to = match args.get("size") {
                Some(size) => Resize::To(sizes(size)),
                None => Resize::By(numbers(&args["scale_factor"]).try_into().unwrap()),
            };
            x.interpolate(to, mode)
        }
        "group_norm" => {
            let groups = args["groups"].as_u64().unwrap() as usize;
            x.group_norm(groups, inputs.get("weight"), inputs.get("bias"), args["eps"].as_f64().unwrap())
        }
        other => panic!("unknown op {other}"),
    }
}

#[test]
fn pooling_and_resizing_follow_pytorch() {
    for case in golden::cases(&golden::read("pooling"), 77) {
        let name = case["name"].as_str().unwrap();
        for (dtype, rtol) in [(DType::F64, 1e-11), (DType::F32, 1e-5)] {
            let inputs = golden::inputs(case, dtype);
            let output = call(case, &inputs).unwrap_or_else(|e| panic!("{name}, {dtype}: {e}"));
            assert_close(&format!("{name}, {dtype}, output"), &output, &case["output"], rtol);
            let found = backward_from(&output, &tensor(&case["dy"], dtype)).unwrap();
            // A gradient through a norm is a difference of terms as large as dy, of which little may be left.
            let terms = numbers(&case["dy"]["data"]).iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for (key, want) in case["grads"].as_object().unwrap() {
                let got = found
                    .get(&inputs[key.as_str()])
                    .unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
                let what = format!("{name}, {dtype}, gradient of {key}");
                golden::assert_close_to_terms(&what, got, want, 10.0 * rtol, terms);
            }
        }
    }
}

/// Either of the two.
enum Layer {
    Rows(BatchNorm1d),
    Images(BatchNorm2d),
}

impl Layer {
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Tensor {
        match self {
            Layer::Rows(layer) => layer.forward(cx, x).unwrap(),
            Layer::Images(layer) => layer.forward(cx, x).unwrap(),
        }
    }
}

/// One pass: results, gradients and buffers against those of the file.
fn pass(what: &str, (arena, layer): (&Arena, &Layer), mut cx: Cx, step: &Value, rtol: f64) {
    let dtype = arena.dtype();
    let x = tensor(&step["x"], dtype).as_leaf().unwrap();
    let y = layer.forward(&mut cx, &x);
    assert_close(&format!("{what}, output"), &y, &step["output"], rtol);
    let found = backward_from(&y, &tensor(&step["dy"], dtype)).unwrap();
    for (key, want) in step["grads"].as_object().unwrap() {
        let got = match key.as_str() {
            "x" => found.get(&x).unwrap().clone(),
            key => found.get(&arena.param(key).unwrap().get().unwrap()).unwrap().clone(),
        };
        assert_close(&format!("{what}, gradient of {key}"), &got, want, 10.0 * rtol);
    }
    let buffers = step["buffers"].as_object().unwrap();
    assert_eq!(arena.buffers().len(), buffers.len(), "{what}");
    for buffer in arena.buffers() {
        let what = format!("{what}, {}", buffer.name());
        let want = &buffers[buffer.name()];
        assert_eq!(want["dtype"] == "i64", buffer.get().dtype() == DType::I64, "{what}");
        assert_close(&what, buffer.get(), want, rtol);
    }
}

#[test]
fn batch_norm_follows_pytorch_from_step_to_step() {
    for case in golden::cases(&golden::read("batch_norm"), 7) {
        let name = case["name"].as_str().unwrap();
        for (dtype, rtol) in [(DType::F64, 1e-11), (DType::F32, 1e-5)] {
            // Beside 500 an f32 has 15 bits for the rest, so x̂ is that exact and no more.
            let rtol = if name == "offset" && dtype == DType::F32 { 1e-4 } else { rtol };
            let arena = Arena::new(dtype, Device::Cpu).unwrap();
            let scope = Scope::new(&arena, 0);
            let (mut options, given) = (BatchNormOptions::default(), &case["options"]);
            options.eps = given["eps"].as_f64().unwrap_or(options.eps);
            options.momentum = given["momentum"].as_f64().or(options.momentum);
            options.affine = given["affine"].as_bool().unwrap_or(true);
            options.track_running_stats = given["track_running_stats"].as_bool().unwrap_or(true);
            if case["cumulative"] == true {
                options.momentum = None;
            }
            let channels = case["channels"].as_u64().unwrap() as usize;
            let layer = match case["layer"].as_str().unwrap() {
                "BatchNorm1d" => Layer::Rows(BatchNorm1d::with_options(&scope, channels, options).unwrap()),
                "BatchNorm2d" => Layer::Images(BatchNorm2d::with_options(&scope, channels, options).unwrap()),
                other => panic!("unknown layer {other}"),
            };
            for (key, value) in case["parameters"].as_object().unwrap() {
                arena.param(key).unwrap().set(&tensor(value, dtype)).unwrap();
            }
            for (k, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let cx = Cx::train(arena.step_block(), 0).unwrap();
                pass(&format!("{name}, {dtype}, step {k}"), (&arena, &layer), cx, step, rtol);
            }
            pass(&format!("{name}, {dtype}, evaluation"), (&arena, &layer), Cx::eval(), &case["eval"], rtol);
        }
    }
}
