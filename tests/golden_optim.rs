//! Optimisers, schedules and clipping against PyTorch's numbers (`tests/golden`).

mod golden;

use golden::numbers;
use serde_json::Value;
use warpsmith::optim::{
    Adam, AdamW, Anneal, Clip, Optimizer, Plateau, RmsProp, Rule, Schedule, Sgd, global_norm,
};
use warpsmith::param::StepBlock;
use warpsmith::{Arena, DType, Device, Param, Result, Tensor};

fn arg(case: &Value, name: &str) -> f64 {
    case["args"][name].as_f64().unwrap_or_else(|| panic!("{} has no {name}", case["name"]))
}

fn assert_close(name: &str, got: &[f64], want: &[f64], rtol: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= rtol * (1e-3 + w.abs()), "{name}[{i}]: {g} instead of {w}");
    }
}

/// Makes `grad` the gradient of `param`, through backward: the loss is Σ grad · param, by slices.
fn deliver(arena: &Arena, params: &[(&Param, Vec<f64>)]) -> Result<()> {
    for (param, grad) in params {
        let seed = Tensor::from_slice(grad, param.shape(), Device::Cpu)?.to_dtype(arena.dtype())?;
        let names: Vec<String> =
            arena.params()?.iter().map(|p| p.name()).filter(|n| *n != param.name()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Each parameter in a pass of its own; the others keep what they have or get zeros.
        let options = warpsmith::autograd::BackwardOptions {
            allow_unused: &names,
            seed: Some(seed),
            ..Default::default()
        };
        arena.backward_with(&param.get()?.contiguous()?.unsqueeze(0)?.squeeze(0)?, options)?;
    }
    Ok(())
}

fn run_case<R: Rule>(file: &Value, case: &Value, rule: R, dtype: DType) {
    let name = case["name"].as_str().unwrap();
    let arena = Arena::new(dtype, Device::Cpu).unwrap();
    let start = |p: &str| numbers(&file["start"][p]["data"]);
    let w = arena.register("w", [3, 4], &start("w")).unwrap();
    let b = arena.register("b", [4], &start("b")).unwrap();
    if case["groups"]["b"].is_object() {
        b.set_group(1).unwrap();
    }
    let mut optimizer = Optimizer::new(&arena, rule, arg(case, "lr")).unwrap();
    if let Some(decay) = case["groups"]["b"]["weight_decay"].as_f64() {
        optimizer.set_weight_decay(1, decay).unwrap();
    }
    let lrs = numbers(&case["lrs"]);
    let after = case["after"].as_array().unwrap();
    for (i, grads) in file["grads"].as_array().unwrap().iter().enumerate() {
        if let Some(&lr) = lrs.get(i) {
            optimizer.set_lr(lr).unwrap();
        }
        deliver(&arena, &[(&w, numbers(&grads["w"])), (&b, numbers(&grads["b"]))]).unwrap();
        optimizer.step().unwrap();
        let rtol = if dtype == DType::F64 { 1e-12 } else { 2e-5 };
        for want in after.iter().filter(|a| a["step"] == i + 1) {
            for (param, key) in [(&w, "w"), (&b, "b")] {
                let got = param.get().unwrap().to_f64_vec().unwrap();
                assert_close(
                    &format!("{name}, {dtype}, step {}, {key}", i + 1),
                    &got,
                    &numbers(&want[key]),
                    rtol,
                );
            }
        }
    }
    assert_eq!(arena.step_block().steps().unwrap(), 20);
    // The gaps between parameters stay zero, or the global norm would count them.
    let values = arena.values().unwrap().to_f64_vec().unwrap();
    assert!(values[12..256].iter().chain(&values[260..]).all(|&v| v == 0.0), "{name}: a gap is not zero");
}

#[test]
fn optimizers_follow_pytorch() {
    let file = golden::read("optimizers");
    for case in golden::cases(&file, 21) {
        for dtype in [DType::F64, DType::F32] {
            let betas = || numbers(&case["args"]["betas"]);
            let flag = |name: &str| case["args"][name].as_bool().unwrap();
            match case["optimizer"].as_str().unwrap() {
                "sgd" => {
                    let rule = Sgd {
                        momentum: arg(case, "momentum"),
                        dampening: arg(case, "dampening"),
                        nesterov: flag("nesterov"),
                        weight_decay: arg(case, "weight_decay"),
                    };
                    run_case(&file, case, rule, dtype);
                }
                "rmsprop" => {
                    let rule = RmsProp {
                        alpha: arg(case, "alpha"),
                        eps: arg(case, "eps"),
                        momentum: arg(case, "momentum"),
                        centered: flag("centered"),
                        weight_decay: arg(case, "weight_decay"),
                    };
                    run_case(&file, case, rule, dtype);
                }
                "adam" => {
                    let rule = Adam {
                        betas: [betas()[0], betas()[1]],
                        eps: arg(case, "eps"),
                        weight_decay: arg(case, "weight_decay"),
                    };
                    run_case(&file, case, rule, dtype);
                }
                "adamw" => {
                    let rule = AdamW {
                        betas: [betas()[0], betas()[1]],
                        eps: arg(case, "eps"),
                        weight_decay: arg(case, "weight_decay"),
                    };
                    run_case(&file, case, rule, dtype);
                }
                other => panic!("unknown optimizer {other}"),
            }
        }
    }
}

#[test]
fn schedules_follow_pytorch() {
    let file = golden::read("schedulers");
    let mut compared = 0;
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let lr = arg(case, "lr");
        let optional = |key: &str| case["args"][key].as_u64();
        let (warmup, total) = (optional("warmup").unwrap_or(0), optional("total_steps").unwrap_or(40));
        let schedule = match case["schedule"].as_str().unwrap() {
            // Two other conventions of PyTorch's for warm-up; ours is warmup_k_plus_1.
            _ if name == "warmup_k" || name == "warmup_from_third" => continue,
            "constant" => Schedule::Constant,
            "linear" => Schedule::Linear { end_factor: arg(case, "end_factor") },
            "cosine" => Schedule::Cosine { min_lr: arg(case, "min_lr") },
            "step" => Schedule::Step { step_size: optional("step_size").unwrap(), gamma: arg(case, "gamma") },
            "exponential" => Schedule::Exponential { gamma: arg(case, "gamma"), every: 1 },
            "one_cycle" => Schedule::OneCycle {
                pct_start: arg(case, "pct_start"),
                div_factor: arg(case, "div_factor"),
                final_div_factor: arg(case, "final_div_factor"),
                anneal: if case["args"]["anneal"] == "cos" { Anneal::Cosine } else { Anneal::Linear },
            },
            "plateau" => {
                plateau(case, lr);
                compared += 1;
                continue;
            }
            other => panic!("unknown schedule {other}"),
        };
        schedule.check().unwrap();
        let got: Vec<f64> = (0..40).map(|k| schedule.lr(lr, k, warmup, total)).collect();
        assert_close(name, &got, &numbers(&case["lrs"]), 1e-12);
        compared += 1;
    }
    assert_eq!(compared, 25, "schedules compared");
}

fn plateau(case: &Value, lr: f64) {
    let count = |name: &str| case["args"][name].as_u64().unwrap() as u32;
    let plateau = Plateau {
        factor: arg(case, "factor"),
        patience: count("patience"),
        threshold: arg(case, "threshold"),
        absolute: case["args"]["threshold_mode"] == "abs",
        cooldown: count("cooldown"),
        min_lr: arg(case, "min_lr"),
        maximize: case["args"]["mode"] == "max",
    };
    plateau.check().unwrap();
    let (mut state, mut got) = (plateau.start(lr), vec![lr]);
    for metric in numbers(&case["metrics"]) {
        plateau.observe(&mut state, metric);
        got.push(state.lr);
    }
    got.truncate(40);
    assert_close(case["name"].as_str().unwrap(), &got, &numbers(&case["lrs"]), 1e-12);
}

#[test]
fn clipping_follows_pytorch() {
    for case in golden::read("clipping")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let arena = Arena::new(DType::F64, Device::Cpu).unwrap();
        let before = case["before"].as_object().unwrap();
        let params: Vec<(Param, Vec<f64>)> = before
            .iter()
            .map(|(key, t)| {
                let shape = golden::dims(&t["shape"]);
                let grad = numbers(&t["data"]);
                (arena.register(key, &shape, &vec![0.0; grad.len()]).unwrap(), grad)
            })
            .collect();
        let limit = case["limit"].as_f64().unwrap();
        let clip = if case["kind"] == "norm" { Clip::Norm(limit) } else { Clip::Value(limit) };
        let mut sgd = Optimizer::new(&arena, Sgd::default(), 1.0).unwrap().with_clip(clip).unwrap();
        let pairs: Vec<(&Param, Vec<f64>)> = params.iter().map(|(p, g)| (p, g.clone())).collect();
        deliver(&arena, &pairs).unwrap();
        if let Some(norm) = case["total_norm"].as_f64() {
            assert_close(name, &[global_norm(&arena).unwrap()], &[norm], 1e-12);
        }
        // From zero with learning rate 1, SGD leaves minus the clipped gradient.
        sgd.step().unwrap();
        for (param, _) in &params {
            let got: Vec<f64> = param.get().unwrap().to_f64_vec().unwrap().iter().map(|v| -v).collect();
            assert_close(name, &got, &numbers(&case["after"][param.name()]["data"]), 1e-12);
        }
        if let Some(norm) = case["total_norm"].as_f64() {
            assert_close(name, &[arena.step_block().get(StepBlock::NORM).unwrap()], &[norm], 1e-12);
        }
    }
}

#[test]
fn frozen_parameters_are_left_alone_and_do_not_count_in_the_norm() {
    let arena = Arena::new(DType::F32, Device::Cpu).unwrap();
    let w = arena.register("w", [2], &[3.0, 4.0]).unwrap();
    let frozen = arena.register("frozen", [300], &[1.0; 300]).unwrap();
    deliver(&arena, &[(&w, vec![3.0, 4.0]), (&frozen, vec![9.0; 300])]).unwrap();
    frozen.set_frozen(true);
    assert_eq!(global_norm(&arena).unwrap(), 5.0);
    let mut adamw =
        Optimizer::new(&arena, AdamW::default(), 0.1).unwrap().with_clip(Clip::Norm(1.0)).unwrap();
    adamw.step().unwrap();
    assert_eq!(frozen.get().unwrap().to_vec::<f32>().unwrap(), [1.0; 300]);
    assert_ne!(w.get().unwrap().to_vec::<f32>().unwrap(), [3.0, 4.0]);
}

#[test]
fn wrong_hyper_parameters_are_errors() {
    let arena = Arena::new(DType::F32, Device::Cpu).unwrap();
    arena.register("w", [2], &[3.0, 4.0]).unwrap();
    for lr in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Optimizer::new(&arena, Sgd::default(), lr).is_err(), "learning rate {lr}");
    }
    assert!(Optimizer::new(&arena, Sgd { momentum: 1.0, ..Sgd::default() }, 0.1).is_err());
    assert!(Optimizer::new(&arena, Sgd { nesterov: true, ..Sgd::default() }, 0.1).is_err());
    assert!(Optimizer::new(&arena, Adam { betas: [0.9, 1.0], ..Adam::default() }, 0.1).is_err());
    let sgd = Optimizer::new(&arena, Sgd::default(), 0.1).unwrap();
    assert!(sgd.with_clip(Clip::Norm(0.0)).is_err());
}
