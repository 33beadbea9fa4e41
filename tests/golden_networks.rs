//! The networks that `--model` names against PyTorch's numbers (`tests/golden/networks.json`): names and shapes of all
//! parameters and buffers, answers in training and evaluation, gradients, running statistics.

#![cfg(feature = "train")]

mod golden;

use golden::numbers;
use warpsmith::data::{Targets, Task};
use warpsmith::nn::Cx;
use warpsmith::tensor::no_grad;
use warpsmith::train::{Architecture, Model};
use warpsmith::{DType, Device, Tensor};

const ROWS: usize = 4;

/// The values that the script gives a parameter or an input.
fn fill(shape: &[usize], kind: &str, phase: f64) -> Vec<f64> {
    let fan: usize = shape.iter().skip(1).product();
    let value = |i: usize| {
        let wave = (0.7 * (i as f64).powf(1.1) + phase).sin();
        match (kind, shape.len()) {
            ("input", _) => wave,
            (_, 2..) => wave * (2.0 / fan as f64).sqrt(),
            ("weight", _) => 1.0 + 0.1 * wave,
            _ => 0.1 * wave,
        }
    };
    (0..shape.iter().product()).map(value).collect()
}

/// Within `share` of the largest of `want`.
#[track_caller]
fn assert_close(what: &str, got: &[f64], want: &[f64], share: f64) {
    golden::assert_numbers_close(what, got, want, share, 1e-3);
}

/// Sum, Euclidean norm, and the product with a sine of the position.
fn sums(t: &Tensor) -> Vec<f64> {
    let values = t.to_f64_vec().unwrap();
    let waves = fill(t.shape().dims(), "input", 0.0);
    let product = values.iter().zip(waves).map(|(v, wave)| v * wave).sum();
    vec![values.iter().sum(), values.iter().map(|v| v * v).sum::<f64>().sqrt(), product]
}

#[test]
fn named_networks_are_pytorchs() {
    let device = Device::cpu();
    for case in golden::cases(&golden::read("networks"), 5) {
        let name = case["model"].as_str().unwrap();
        let input = golden::dims(&case["input"]);
        let architecture = Architecture::new(Task::Multiclass, &input, 10, name.parse().unwrap());
        let model = Model::new(architecture, 0, device).unwrap();
        let params = model.arena().params().unwrap();
        let grads = case["grads"].as_object().unwrap();
        assert_eq!(params.len(), grads.len(), "{name}");
        for param in &params {
            let key = param.name();
            assert!(grads.contains_key(&key), "{name}: PyTorch has no {key}");
            let kind = if key.contains("bias") { "bias" } else { "weight" };
            let values = fill(param.shape().dims(), kind, 0.3 * key.len() as f64);
            let values = Tensor::from_slice(&values, param.shape(), device).unwrap();
            param.set(&values.to_dtype(DType::F32).unwrap()).unwrap();
        }
        let shape: Vec<usize> = [&[ROWS], input.as_slice()].concat();
        let x = Tensor::from_slice(&fill(&shape, "input", 0.5), shape, device).unwrap();
        let x = x.to_dtype(DType::F32).unwrap();
        let targets = model.targets(&Targets::Classes((0..ROWS as i64).collect())).unwrap();

        let mut cx = Cx::train(model.arena().step_block(), 0).unwrap();
        let logits = model.forward(&mut cx, &x).unwrap();
        assert_close(
            &format!("{name} logits"),
            &logits.to_f64_vec().unwrap(),
            &numbers(&case["logits"]),
            2e-5,
        );
        let loss = model.loss(&logits, &targets).unwrap();
        assert_close(
            &format!("{name} loss"),
            &[loss.item().unwrap()],
            &[case["loss"].as_f64().unwrap()],
            2e-5,
        );
        model.arena().backward(&loss).unwrap();
        for param in &params {
            let got = sums(&param.grad().unwrap().unwrap());
            let want = numbers(&grads[&param.name()]);
            assert_close(&format!("{name} {} norm", param.name()), &got[1..2], &want[1..2], 3e-4);
            // Errors of the elements are as good as random; ten times the norm's is what a sum of them may have.
            for i in [0, 2] {
                assert!(
                    (got[i] - want[i]).abs() <= 3e-3 * want[1] + 1e-6,
                    "{name} {}: {got:?} instead of {want:?}",
                    param.name()
                );
            }
        }
        let buffers = model.arena().buffers();
        assert_eq!(buffers.len(), case["buffers"].as_object().unwrap().len(), "{name}");
        for buffer in buffers {
            let what = format!("{name} {}", buffer.name());
            assert_close(&what, &sums(buffer.get()), &numbers(&case["buffers"][buffer.name()]), 1e-4);
        }
        let evaluated = no_grad(|| model.forward(&mut Cx::eval(), &x)).unwrap().to_f64_vec().unwrap();
        assert_close(&format!("{name} evaluated"), &evaluated, &numbers(&case["evaluated"]), 1e-4);
    }
}
