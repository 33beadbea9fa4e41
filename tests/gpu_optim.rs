//! Optimisers on a GPU (the simulated one, or that which WARPSMITH_TEST_DEVICE names) against the CPU's: the same bits, since both do the same IEEE operations in the
//! same order. Groups, a frozen parameter, clipping, a loss scale; and the form of the update with master weights.

use std::ops::RangeInclusive;

use warpsmith::autograd::BackwardOptions;
use warpsmith::device::Stream;
use warpsmith::device::kernels::optim::{UpdateMaster, UpdateMasterF};
use warpsmith::device::sim::{Order, SimOptions};
use warpsmith::ops::{Cases, Op, Plan, Tolerance, run_into};
use warpsmith::optim::{Adam, AdamW, Clip, Optimizer, RmsProp, Rule, Sgd, Update, global_norm};
use warpsmith::param::{ALIGN, StepBlock};
use warpsmith::tensor::{Meta, Mode, Out, View};
use warpsmith::{Arena, DType, Device, Error, Result, Shape, Tensor};

fn device() -> Device {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or("sim".into()).parse().unwrap()
}

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f64> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f64 / 5003.5 - 1.0).collect()
}

/// Name, elements and salt of each parameter: more than one block of the norm, ends within blocks, groups 0 to 3.
const PARAMS: [(&str, usize); 5] = [("w", 2801), ("b", 33), ("frozen", 300), ("large", 17_000), ("c", 1)];

fn arena(dtype: DType, device: Device) -> Result<Arena> {
    let arena = Arena::new(dtype, device)?;
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
    dtype: DType,
    device: Device,
    steps: u64,
) -> Result<Vec<(String, Vec<f64>)>> {
    let arena = arena(dtype, device)?;
    let mut optimizer = Optimizer::new(&arena, rule, 0.05)?.with_clip(clip)?;
    for group in 0..4 {
        optimizer.set_weight_decay(group, 0.01 * group as f64)?;
        arena.step_block().set(StepBlock::LR + group, 0.05 / (1 + group) as f64)?;
    }
    arena.step_block().set(StepBlock::LOSS_SCALE, 3.0)?;
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
        let want = trained(rule, clip, dtype, Device::Cpu, 20).unwrap();
        let start = arena(dtype, Device::Cpu).unwrap().values().unwrap().to_f64_vec().unwrap();
        let moved = start.iter().zip(&want[1].1).filter(|(a, b)| a != b).count();
        assert!(moved > 2_000, "only {moved} values moved");
        let got = trained(rule, clip, dtype, device(), 20).unwrap();
        same_bits(&format!("{rule:?} {clip:?} {dtype}"), &got, &want);
    }
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

/// The checked build of the kernels, under several schedules: no races, no strays, the same bits.
#[test]
fn updates_are_free_of_races_under_every_schedule() {
    let rule = RmsProp { momentum: 0.5, centered: true, ..RmsProp::default() };
    let want = trained(rule, Clip::Norm(5.0), DType::F32, Device::Cpu, 2).unwrap();
    for order in [Order::Forward, Order::Reverse, Order::Random, Order::Pct] {
        let device = Device::sim_with(SimOptions { order, checked: true, seed: 9, ..SimOptions::default() });
        let got = trained(rule, Clip::Norm(5.0), DType::F32, device, 2).unwrap();
        same_bits(&format!("{order:?}"), &got, &want);
    }
}

/// SGD with momentum over master weights, with the gradients zeroed: the launch that a trainer with 16-bit weights makes.
/// Inputs: the step block's floats and step, the table. In place: gradients, weights, master weights, momenta.
#[derive(Clone, Copy, Debug)]
struct MasterStep;

impl Op for MasterStep {
    const NAME: &'static str = "master_step";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let n = inputs[2].shape.numel() * ALIGN;
        let half = inputs[2].with_dtype(DType::BF16).with_shape(Shape::new(&[n])?);
        let full = half.with_dtype(DType::F32);
        Ok(Plan { outputs: vec![half, half, full, full], scratch: 0 })
    }

    fn cpu(&self, _: &[View<'_>], _: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        Err(Error::unsupported(Self::NAME, "this is about GPUs"))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [floats, step, table] = [0, 1, 2].map(|k: usize| inputs[k].src());
        let n = outputs[0].shape().numel() as u64;
        let [grads, values, master, s0] = outputs else { panic!("four outputs") };
        let (grads, values) = (grads.dst(), values.dst());
        let (master, s0, s1, s2) = (Some(master.dst()), Some(s0.dst()), None, None);
        let (f, zero, limit, flag) = (UpdateMasterF::Sgd, 1, f32::INFINITY, 0);
        let (a, b, c, d) = (0.9, 1.0, 0.0, 0.0);
        UpdateMaster {
            f,
            grads,
            values,
            master,
            s0,
            s1,
            s2,
            floats,
            step,
            table,
            n,
            zero,
            limit,
            a,
            b,
            c,
            d,
            flag,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}

#[test]
fn master_weights_are_updated_rounded_and_gradients_zeroed_in_one_launch() {
    let n = 3 * ALIGN;
    let host = |salt| Tensor::from_slice(&noise(n, salt), n, Device::Cpu).unwrap();
    let (start, mut floats) = (host(1).to_dtype(DType::F32).unwrap(), vec![0.0; 2 * 16 + 5]);
    floats[StepBlock::LR] = 0.1;
    floats[StepBlock::WEIGHT_DECAY] = 0.01;
    floats[StepBlock::CLIP..].fill(1.0);
    // The block in the middle is frozen.
    let table = [0u8, 255, 0];
    let on = |device: Device| {
        let floats = Tensor::from_slice(&floats, floats.len(), device).unwrap();
        (floats, Tensor::from_slice(&table, 3, device).unwrap())
    };
    let device = device();
    let (weights, grads) = (start.to_dtype(DType::BF16).unwrap(), host(2).to_dtype(DType::BF16).unwrap());
    let (want, want_sum) = (start.contiguous().unwrap(), Tensor::zeros(n, DType::F32, Device::Cpu).unwrap());
    let want = Tensor::from_slice(&want.to_vec::<f32>().unwrap(), n, Device::Cpu).unwrap();
    let [gpu_weights, master] = [&weights, &start].map(|t| t.to_device(device).unwrap());
    let sum = Tensor::zeros(n, DType::F32, device).unwrap();
    for step in 1..=3i64 {
        let gpu_grads = grads.to_device(device).unwrap();
        let count = |device| Tensor::scalar(step, device).unwrap();
        let (floats, table) = on(device);
        let outs = [&gpu_grads, &gpu_weights, &master, &sum].map(|t| (t, Mode::Update));
        run_into(MasterStep, &[&floats, &count(device), &table], &outs).unwrap();
        let (floats, table) = on(Device::Cpu);
        let op = Update { rule: Sgd { momentum: 0.9, ..Sgd::default() }, clip_value: f64::INFINITY };
        let grads32 = grads.to_dtype(DType::F32).unwrap();
        let outs = [(&want, Mode::Update), (&want_sum, Mode::Update)];
        run_into(op, &[&grads32, &floats, &count(Device::Cpu), &table], &outs).unwrap();
        let left = gpu_grads.to_f64_vec().unwrap();
        let kept = grads.to_f64_vec().unwrap();
        let frozen = ALIGN..2 * ALIGN;
        assert!((0..n).all(|i| left[i] == if frozen.contains(&i) { kept[i] } else { 0.0 }));
    }
    assert_eq!(master.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
    assert_eq!(sum.to_vec::<f32>().unwrap(), want_sum.to_vec::<f32>().unwrap());
    let rounded = want.to_dtype(DType::BF16).unwrap();
    assert_eq!(gpu_weights.to_f64_vec().unwrap(), rounded.to_f64_vec().unwrap());
    assert_ne!(gpu_weights.to_f64_vec().unwrap(), weights.to_f64_vec().unwrap());
}
