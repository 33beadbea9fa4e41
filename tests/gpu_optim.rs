//! Optimisers on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names) against the CPU's: the same bits, since both do the same IEEE operations in the
//! same order. Groups, a frozen parameter, clipping, a loss scale; master weights, states in fewer bits, rounding by chance, and steps
//! that are skipped.

use warpsmith::autograd::BackwardOptions;
use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::optim::{Adam, AdamW, Clip, Optimizer, RmsProp, Rule, Sgd, global_norm};
use warpsmith::param::{LossScale, Precision, Rounding, StateDType, StepBlock};
use warpsmith::{Arena, DType, Device, Result, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f64> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f64 / 5003.5 - 1.0).collect()
}

/// Name, elements and salt of each parameter: more than one block of the norm, ends within blocks, groups 0 to 3.
const PARAMS: [(&str, usize); 5] = [("w", 2801), ("b", 33), ("frozen", 300), ("large", 17_000), ("c", 1)];

fn arena(precision: Precision, device: Device) -> Result<Arena> {
    let arena = Arena::with_precision(precision, device)?;
    for (k, (name, n)) in PARAMS.into_iter().enumerate() {
        let param = arena.register(name, n, &noise(n, k as u64))?;
        param.set_group(k % 4)?;
        param.set_frozen(name == "frozen");
    }
    Ok(arena)
}

/// Puts gradients, the same on every device, in place.
fn deliver(arena: &Arena, step: u64) -> Result<()> {
    let names: Vec<&str> = PARAMS.iter().map(|p| p.0).collect();
    for (k, param) in arena.params()?.iter().enumerate().filter(|(_, p)| !p.is_frozen()) {
        let host = Tensor::from_slice(
            &noise(param.shape().numel(), 100 * step + k as u64),
            param.shape(),
            Device::Cpu,
        )?;
        let seed = host.to_dtype(arena.dtype())?.to_device(arena.device())?;
        let output = param.get()?.unsqueeze(0)?.squeeze(0)?;
        let options = BackwardOptions { allow_unused: &names, seed: Some(seed), ..Default::default() };
        arena.backward_with(&output, options)?;
    }
    Ok(())
}

/// All that an optimiser leaves: values, state, the step block.
fn trained<R: Rule>(
    rule: R,
    clip: Clip,
    precision: Precision,
    device: Device,
    steps: u64,
) -> Result<Vec<(String, Vec<f64>)>> {
    let arena = arena(precision, device)?;
    let mut optimizer = Optimizer::new(&arena, rule, 0.05)?.with_clip(clip)?;
    for group in 0..4 {
        optimizer.set_weight_decay(group, 0.01 * group as f64)?;
        arena.step_block().set(StepBlock::LR + group, 0.05 / (1 + group) as f64)?;
    }
    if !precision.scales_loss() {
        arena.step_block().set(StepBlock::LOSS_SCALE, 3.0)?;
    }
    let mut norms = Vec::new();
    for step in 0..steps {
        deliver(&arena, step)?;
        norms.push(global_norm(&arena)?);
        optimizer.step()?;
    }
    let mut all = vec![("norms".to_owned(), norms), ("values".to_owned(), arena.values()?.to_f64_vec()?)];
    for (name, state) in arena.states()? {
        all.push((name, state.to_f64_vec()?));
    }
    all.push(("floats".to_owned(), arena.step_block().floats().to_f64_vec()?));
    all.push(("steps".to_owned(), vec![arena.step_block().steps()? as f64]));
    Ok(all)
}

#[track_caller]
fn same_bits(what: &str, got: &[(String, Vec<f64>)], want: &[(String, Vec<f64>)]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let differs = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
        if let Some(at) = differs {
            panic!("{what}, {name}[{at}]: {:e} instead of {:e}", got[at], want[at]);
        }
        assert_eq!(got.len(), want.len(), "{what}, {name}");
    }
}

#[track_caller]
fn check<R: Rule>(rule: R, clip: Clip) {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        check_with(rule, clip, Precision::of(dtype), 20);
    }
}

#[track_caller]
fn check_with<R: Rule>(rule: R, clip: Clip, precision: Precision, steps: u64) {
    let want = trained(rule, clip, precision, Device::Cpu, steps).unwrap();
    let start = arena(precision, Device::Cpu).unwrap().values().unwrap().to_f64_vec().unwrap();
    let moved = start.iter().zip(&want[1].1).filter(|(a, b)| a != b).count();
    assert!(moved > 2_000, "only {moved} values moved");
    let got = trained(rule, clip, precision, device(), steps).unwrap();
    same_bits(&format!("{rule:?} {clip:?} {precision:?}"), &got, &want);
}

#[test]
fn sgd_gives_the_bits_of_the_cpu() {
    check(Sgd::default(), Clip::Norm(5.0));
    check(Sgd { momentum: 0.9, dampening: 0.1, ..Sgd::default() }, Clip::None);
    check(Sgd { momentum: 0.8, nesterov: true, ..Sgd::default() }, Clip::Value(0.2));
}

#[test]
fn rmsprop_gives_the_bits_of_the_cpu() {
    check(RmsProp::default(), Clip::None);
    check(RmsProp { centered: true, alpha: 0.9, ..RmsProp::default() }, Clip::Value(0.25));
    check(RmsProp { momentum: 0.5, ..RmsProp::default() }, Clip::Norm(7.0));
    check(RmsProp { momentum: 0.5, centered: true, alpha: 0.9, ..RmsProp::default() }, Clip::None);
}

#[test]
fn adam_gives_the_bits_of_the_cpu() {
    check(Adam::default(), Clip::None);
    check(Adam { betas: [0.8, 0.95], ..Adam::default() }, Clip::Norm(10.0));
    check(AdamW::default(), Clip::Value(0.3));
}

/// Every form in which weights, gradients and state are kept. f16 covers rounding below its least normal number: noise that is
/// scaled down.
#[test]
fn every_form_of_weights_gradients_and_state_gives_the_bits_of_the_cpu() {
    let by_chance = Rounding::Stochastic { seed: 0x1234_5678_9ABC };
    let momentum = RmsProp { momentum: 0.5, ..RmsProp::default() };
    for preset in [Precision::of(DType::BF16), Precision::of(DType::F16)] {
        check_with(AdamW::default(), Clip::Norm(5.0), preset.with_f32_grads(), 3);
        check_with(Adam::default(), Clip::None, preset.without_master().with_rounding(by_chance), 3);
        check_with(Sgd::default(), Clip::None, preset.without_master().with_rounding(Rounding::Nearest), 3);
        check_with(AdamW::default(), Clip::None, preset.with_states(StateDType::BF16), 3);
        check_with(momentum, Clip::None, preset.with_states(StateDType::Int8).with_f32_grads(), 3);
    }
    let bytes = Precision::f32().with_states(StateDType::Int8);
    check_with(AdamW::default(), Clip::Norm(5.0), bytes, 4);
    check_with(Adam::default(), Clip::None, bytes.with_rounding(Rounding::Nearest), 4);
    let halves = Precision::f32().with_states(StateDType::BF16).with_rounding(Rounding::Nearest);
    check_with(Sgd { momentum: 0.9, ..Sgd::default() }, Clip::None, halves, 3);
}

/// A scale that overflows at first, then fits, then grows: the same skips, scale and values on both.
#[test]
fn skipped_steps_and_the_loss_scale_are_those_of_the_cpu() {
    let scale = LossScale::Dynamic { initial: 262_144.0, growth: 2.0, backoff: 0.25, interval: 2 };
    let precision = Precision::f16().with_loss_scale(scale);
    let want = trained(Adam::default(), Clip::None, precision, Device::Cpu, 6).unwrap();
    let floats = &want.iter().find(|(name, _)| name == "floats").unwrap().1;
    // 262,144 and 65,536 are beyond f16; 16,384 lasts two steps, 32,768 two more.
    assert_eq!(floats[StepBlock::SKIPPED], 2.0);
    assert_eq!(floats[StepBlock::LOSS_SCALE], 65_536.0);
    assert_eq!(want.last().unwrap().1, [4.0]);
    same_bits("f16", &trained(Adam::default(), Clip::None, precision, device(), 6).unwrap(), &want);
}

/// The checked build of the kernels, under several schedules: no races, no strays, the same bits.
#[test]
fn updates_are_free_of_races_under_every_schedule() {
    let rule = RmsProp { momentum: 0.5, centered: true, ..RmsProp::default() };
    let bytes = Precision::f16().with_states(StateDType::Int8);
    let whole = trained(rule, Clip::Norm(5.0), Precision::f32(), Device::Cpu, 2).unwrap();
    let narrow = trained(AdamW::default(), Clip::Norm(5.0), bytes, Device::Cpu, 2).unwrap();
    for order in [Order::Forward, Order::Reverse, Order::Random, Order::Pct] {
        let device = Device::sim_with(SimOptions { order, checked: true, seed: 9, ..SimOptions::default() });
        let got = trained(rule, Clip::Norm(5.0), Precision::f32(), device, 2).unwrap();
        same_bits(&format!("{order:?}"), &got, &whole);
        let got = trained(AdamW::default(), Clip::Norm(5.0), bytes, device, 2).unwrap();
        same_bits(&format!("bytes, {order:?}"), &got, &narrow);
    }
}
