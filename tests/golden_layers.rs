//! Layers, losses, a whole model and initialisers against PyTorch's numbers (`tests/golden`).

mod golden;

use std::collections::BTreeMap;

use golden::{assert_close, dims, tensor};
use serde_json::Value;
use warpsmith::autograd::backward_from;
use warpsmith::nn::{Activation, Cx, Fan, Init, LayerNorm, Linear, Module, Scope, Sequential, gain};
use warpsmith::ops::{BceWithLogits, CrossEntropy, KlDiv, Reduction, Sdpa, distillation_loss};
use warpsmith::{Arena, DType, Device, Result, Shape, Tensor};

fn reduction(case: &Value) -> Reduction {
    match case["args"]["reduction"].as_str().unwrap() {
        "mean" => Reduction::Mean,
        "sum" => Reduction::Sum,
        "none" => Reduction::None,
        "batchmean" => Reduction::BatchMean,
        other => panic!("unknown reduction {other}"),
    }
}

/// Calls the op of a case.
fn call(case: &Value, inputs: &BTreeMap<&str, Tensor>) -> Result<Tensor> {
    let get = |name: &str| inputs.get(name);
    let arg =
        |name: &str| case["args"][name].as_f64().unwrap_or_else(|| panic!("{} lacks {name}", case["name"]));
    let first = || get("x").unwrap();
    let target = || get("target").unwrap();
    match case["op"].as_str().unwrap() {
        "linear" => first().linear(get("weight").unwrap(), get("bias"), Activation::Identity),
        "layer_norm" => first().layer_norm(
            dims(&case["args"]["normalized_shape"]),
            get("weight"),
            get("bias"),
            arg("eps"),
        ),
        "rms_norm" => first().rms_norm(dims(&case["args"]["normalized_shape"]), get("weight"), arg("eps")),
        "embedding" => get("weight").unwrap().embedding(get("ids").unwrap()),
        "attention" => get("q").unwrap().scaled_dot_product_attention(
            get("k").unwrap(),
            get("v").unwrap(),
            Sdpa {
                causal: case["args"]["causal"].as_bool().unwrap(),
                scale: case["args"]["scale"].as_f64(),
                lengths: None,
            },
        ),
        "softmax" => first().softmax(arg("dim") as isize),
        "log_softmax" => first().log_softmax(arg("dim") as isize),
        "relu" => first().relu(),
        "leaky_relu" => first().leaky_relu(arg("negative_slope")),
        "gelu" if case["args"]["approximate"] == "tanh" => first().gelu_tanh(),
        "gelu" => first().gelu(),
        "silu" => first().silu(),
        "sigmoid" => first().sigmoid(),
        "tanh" => first().tanh(),
        "cross_entropy" => first().cross_entropy(
            target(),
            CrossEntropy {
                weight: get("weight"),
                ignore_index: case["args"]["ignore_index"].as_i64().unwrap_or(-100),
                label_smoothing: case["args"]["label_smoothing"].as_f64().unwrap_or(0.0),
                reduction: reduction(case),
                ..CrossEntropy::default()
            },
        ),
        "bce_with_logits" => {
            let options =
                BceWithLogits { weight: None, pos_weight: get("pos_weight"), reduction: reduction(case) };
            first().bce_with_logits(target(), options)
        }
        "mse" => first().mse_loss(target(), reduction(case)),
        "l1" => first().l1_loss(target(), reduction(case)),
        "huber" => first().huber_loss(target(), arg("delta"), reduction(case)),
        "kl_div" => {
            let log_target = case["args"]["log_target"].as_bool().unwrap();
            first().kl_div(target(), KlDiv { log_target, reduction: reduction(case) })
        }
        "kl_div_with_temperature" => {
            distillation_loss(get("student").unwrap(), get("teacher").unwrap(), arg("temperature"))
        }
        other => panic!("unknown op {other}"),
    }
}

fn compare(file: &str, least: usize) {
    for case in golden::cases(&golden::read(file), least) {
        let name = case["name"].as_str().unwrap();
        for (dtype, rtol) in [(DType::F64, 1e-11), (DType::F32, 1e-5)] {
            let inputs = golden::inputs(case, dtype);
            let output = call(case, &inputs).unwrap_or_else(|e| panic!("{name}, {dtype}: {e}"));
            assert_close(&format!("{name}, {dtype}, output"), &output, &case["output"], rtol);
            let found = backward_from(&output, &tensor(&case["dy"], dtype)).unwrap();
            for (key, want) in case["grads"].as_object().unwrap() {
                let got = found
                    .get(&inputs[key.as_str()])
                    .unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
                assert_close(&format!("{name}, {dtype}, gradient of {key}"), got, want, 10.0 * rtol);
            }
        }
    }
}

#[test]
fn layers_follow_pytorch() {
    compare("layers", 30);
}

#[test]
fn losses_follow_pytorch() {
    compare("losses", 77);
}

#[test]
fn a_whole_model_follows_pytorch() {
    let file = golden::read("model");
    let arena = Arena::new(DType::F64, Device::Cpu).unwrap();
    let scope = Scope::new(&arena, 0);
    let net = Sequential::new()
        .push(Linear::new(&scope.enter(0), 6, 8).unwrap())
        .push(Activation::Relu)
        .push(LayerNorm::new(&scope.enter(2), 8).unwrap())
        .push(Linear::new(&scope.enter(3), 8, 3).unwrap());
    let parameters = file["parameters"].as_object().unwrap();
    let names: Vec<String> = arena.params().unwrap().iter().map(|p| p.name()).collect();
    assert_eq!(names.len(), parameters.len());
    for (name, value) in parameters {
        arena.param(name).unwrap().set(&tensor(value, DType::F64)).unwrap();
    }
    let output = net.forward(&mut Cx::eval(), &tensor(&file["x"], DType::F64)).unwrap();
    assert_close("output", &output, &file["output"], 1e-11);
    let loss = output.cross_entropy(&tensor(&file["target"], DType::F64), CrossEntropy::default()).unwrap();
    assert_close("loss", &loss, &file["loss"], 1e-12);
    arena.backward(&loss).unwrap();
    for (name, want) in file["grads"].as_object().unwrap() {
        let got = arena.param(name).unwrap().grad().unwrap().unwrap();
        assert_close(name, &got, want, 1e-10);
    }
}

#[test]
fn initialisers_follow_pytorchs_distributions() {
    let file = golden::read("initialisers");
    for (name, value) in file["gains"].as_object().unwrap() {
        let (kind, slope) = match name.as_str() {
            "leaky_relu" => ("leaky_relu", 0.01),
            other => (other, 0.0),
        };
        if let Ok(got) = gain(kind, slope) {
            assert!((got - value.as_f64().unwrap()).abs() < 1e-12, "gain of {name}: {got}");
        }
    }
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let shape = Shape::new(&dims(&case["shape"])).unwrap();
        let arg = |key: &str| case["args"][key].as_f64().unwrap();
        let fan = || if case["args"]["mode"] == "fan_out" { Fan::Out } else { Fan::In };
        let theory = |key: &str| case["theory"][key].as_f64().unwrap();
        let init = match case["init"].as_str().unwrap() {
            "linear_weight" => Init::linear_weight(),
            "linear_bias" => Init::linear_bias(300),
            "embedding" => Init::Normal { mean: 0.0, std: 1.0 },
            "uniform" => Init::Uniform { low: arg("low"), high: arg("high") },
            "normal" => Init::Normal { mean: arg("mean"), std: arg("std") },
            "constant" => Init::Constant(arg("value")),
            "xavier_uniform" => Init::XavierUniform { gain: arg("gain") },
            "xavier_normal" => Init::XavierNormal { gain: arg("gain") },
            "kaiming_uniform" => Init::KaimingUniform { gain: arg("gain"), fan: fan() },
            "kaiming_normal" => Init::KaimingNormal { gain: arg("gain"), fan: fan() },
            "orthogonal" => Init::Orthogonal { gain: arg("gain") },
            other => panic!("unknown initialiser {other}"),
        };
        let values = init.draw(&shape, 1, 2).unwrap();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        // Five standard errors of the mean; a deviation within 2 % (its own error is 1/√(2n), 0.2 % here).
        assert!(
            (mean - theory("mean")).abs() <= 5.0 * theory("std") / n.sqrt() + 1e-12,
            "{name}: mean {mean}"
        );
        assert!((std - theory("std")).abs() <= 0.02 * theory("std") + 1e-12, "{name}: deviation {std}");
        if case["theory"]["low"].is_number() {
            let inside = values.iter().all(|&v| v >= theory("low") - 1e-12 && v <= theory("high") + 1e-12);
            assert!(inside, "{name}: out of bounds");
        }
        if case["init"] == "orthogonal" {
            assert_orthogonal(name, &values, shape[0], shape[1], arg("gain"));
        }
    }
}

/// W Wᵀ (WᵀW for a tall W) must be gain² I.
fn assert_orthogonal(name: &str, w: &[f64], rows: usize, cols: usize, gain: f64) {
    let at = |i: usize, k: usize| if rows <= cols { w[i * cols + k] } else { w[k * cols + i] };
    let (count, length) = (rows.min(cols), rows.max(cols));
    for i in 0..count {
        for j in 0..=i {
            let dot: f64 = (0..length).map(|k| at(i, k) * at(j, k)).sum();
            let want = if i == j { gain * gain } else { 0.0 };
            assert!((dot - want).abs() < 1e-12, "{name}: row {i} times row {j} is {dot}");
        }
    }
}
