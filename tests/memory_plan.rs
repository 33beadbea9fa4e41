//! The memory that `MemoryPlan` predicts from shapes against what the pools count: each step in a process of its own, because the
//! host's pool is the process's and its peak is never taken back.

#![cfg(feature = "train")]

use std::process::Command;
use std::sync::Arc;

use warpsmith::nn::{Cx, FeedForwardKind, Gpt, GptConfig, NormKind, Positions, Scope};
use warpsmith::optim::{AdamW, Capture, Clip, Input, Optimizer, StepOptions, TrainStep};
use warpsmith::param::Precision;
use warpsmith::train::lm::{MemoryPlan, PlanOptions};
use warpsmith::{Arena, Device, Tensor};

/// Where the child finds which step to make.
const CASE: &str = "WARPSMITH_PLAN_CASE";
const CHILD: &str = "a_step_whose_peak_is_told";

#[derive(Clone, Copy, Debug)]
struct Step<'a> {
    device: &'a str,
    model: &'a str,
    size: &'a str,
    precision: &'a str,
    recompute: bool,
    captured: bool,
}

impl Step<'_> {
    fn parse(text: &str) -> Step<'_> {
        let words: Vec<&str> = text.split(' ').collect();
        let [device, model, size, precision, recompute, captured] = words[..] else { panic!("{text}") };
        let (recompute, captured) = (recompute == "true", captured == "true");
        Step { device, model, size, precision, recompute, captured }
    }

    fn text(&self) -> String {
        let Step { device, model, size, precision, recompute, captured } = self;
        format!("{device} {model} {size} {precision} {recompute} {captured}")
    }

    fn precision(&self) -> Precision {
        self.precision.parse().unwrap()
    }

    /// Windows a step, and the decoder.
    fn decoder(&self) -> (usize, GptConfig) {
        let (batch, context, vocab, width) = match self.size {
            // Activations are nearly all.
            "wide" => (12, 64, 80, 64),
            // Parameters are.
            "deep" => (1, 16, 300, 192),
            _ => (2, 32, 64, 32),
        };
        let base = GptConfig::new(vocab, context, 3, 4, width);
        let config = match self.model {
            "gpt2" => GptConfig { bias: true, activation: FeedForwardKind::GeluTanh, ..base },
            _ => GptConfig {
                kv_heads: 2,
                hidden: 3 * width,
                positions: Positions::Rotary(10_000.0),
                norm: NormKind::RmsNorm,
                activation: FeedForwardKind::SwiGlu,
                tied: false,
                ..base
            },
        };
        (batch, config)
    }

    fn plan(&self) -> MemoryPlan {
        let (batch, config) = self.decoder();
        let (recompute, captured, cpu) = (self.recompute, self.captured, self.device == "cpu");
        let precision = self.precision();
        let options = PlanOptions { precision, states: 2, batch, micro_batches: 1, recompute, cpu, captured };
        MemoryPlan::new(&config, &options).unwrap()
    }

    /// Makes a few steps, and tells the most bytes that its device's pool had in use.
    fn measure(&self) -> usize {
        let (batch, config) = self.decoder();
        let device = if self.device == "cpu" { Device::cpu() } else { Device::sim() };
        let arena = Arena::with_precision(self.precision(), device).unwrap();
        let gpt = Arc::new(Gpt::new(&Scope::new(&arena, 1), &config).unwrap());
        let adam = Optimizer::new(&arena, AdamW::default(), 1e-3).unwrap();
        let adam = adam.with_clip(Clip::Norm(1.0)).unwrap();
        let (block, recompute) = (arena.step_block().clone(), self.recompute);
        let forward = move |batch: &[Tensor], _: usize| {
            gpt.loss(&mut Cx::train(&block, 7)?.with_recompute(recompute), &batch[0], &batch[1])
        };
        let capture = if self.captured { Capture::On } else { Capture::Off };
        let options = StepOptions { capture, ..StepOptions::default() };
        let mut step = TrainStep::new(&arena, Box::new(adam), Box::new(forward), options).unwrap();
        let ids: Vec<i32> = (0..batch * config.context).map(|i| (i * 7 % config.vocab) as i32).collect();
        let shape = [batch, config.context];
        for _ in 0..2 {
            step.run(&[Input::new(&ids, shape).unwrap(), Input::new(&ids, shape).unwrap()]).unwrap();
        }
        assert!(step.losses().unwrap().iter().all(|loss| loss.is_finite()));
        match device.stream() {
            Some(stream) => stream.memory_report().peak_live_bytes,
            None => warpsmith::cpu::pool::memory_report().peak_live_bytes,
        }
    }
}

/// Run by the others in a process of its own; of itself it does nothing.
#[test]
fn a_step_whose_peak_is_told() {
    let Ok(case) = std::env::var(CASE) else { return };
    println!("peak={}", Step::parse(&case).measure());
}

fn measured(step: &Step<'_>) -> usize {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.args(["--exact", "--nocapture", CHILD]).env(CASE, step.text());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let peak = text.split("peak=").nth(1).and_then(|rest| rest.split_whitespace().next());
    peak.and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{}: {text}{}", step.text(), String::from_utf8_lossy(&output.stderr)))
}

#[track_caller]
fn compare(steps: &[Step<'_>]) {
    let mut wrong = Vec::new();
    for step in steps {
        let (plan, peak) = (step.plan(), measured(step));
        let off = 100.0 * (plan.peak as f64 / peak as f64 - 1.0);
        println!("{:<32} predicted {:>10}  measured {peak:>10}  {off:+.2} %", step.text(), plan.peak);
        if off.abs() > 5.0 {
            wrong.push(format!("{}: {off:+.2} % ({plan:?}, measured {peak})", step.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_peak_on_the_cpu_is_predicted() {
    let mut steps = Vec::new();
    for model in ["gpt2", "llama"] {
        for size in ["wide", "deep"] {
            for precision in ["f32", "bf16"] {
                for recompute in [false, true] {
                    let (device, captured) = ("cpu", false);
                    steps.push(Step { device, model, size, precision, recompute, captured });
                }
            }
        }
    }
    compare(&steps);
}

#[test]
fn the_peak_on_a_device_is_predicted() {
    let mut steps = Vec::new();
    for (model, precision, recompute) in
        [("gpt2", "f32", false), ("gpt2", "bf16", true), ("llama", "bf16", false), ("llama", "f32", true)]
    {
        for captured in [false, true] {
            steps.push(Step { device: "sim", model, size: "small", precision, recompute, captured });
        }
    }
    compare(&steps);
}

/// 34·s·b·h bytes a layer without recomputation (arXiv:2205.05198), for GPT-2 in bf16, at its own size.
#[test]
fn a_layer_keeps_at_most_34_bytes_a_number() {
    for cpu in [true, false] {
        let options = PlanOptions {
            precision: Precision::bf16(),
            states: 2,
            batch: 64,
            micro_batches: 1,
            recompute: false,
            cpu,
            captured: false,
        };
        let plan = MemoryPlan::new(&GptConfig::gpt2(), &options).unwrap();
        let each = plan.layer as f64 / (64 * 1024 * 768) as f64;
        println!("{each:.2} bytes a number and layer, {plan:?}");
        assert!((32.0..=34.0).contains(&each), "{each}");
        assert_eq!(plan.parameters, 124_475_904, "124,439,808, and 47 rows of padding");
        let all = plan.weights + plan.gradients + plan.master + plan.states;
        assert!((16 * plan.parameters..20 * plan.parameters).contains(&all), "{all}");
    }
}
