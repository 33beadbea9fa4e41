//! The engine on a GPU, the simulated one: memory, errors, training. What stands above the driver is the same code there
//! and on hardware.

use warpsmith::device::sim::{Order, SimOptions, Timing};
use warpsmith::nn::{Activation, Cx, Dropout, Linear, Module, Scope, Sequential};
use warpsmith::ops::CrossEntropy;
use warpsmith::optim::{Adam, Clip, Optimizer};
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f32 / 5003.5 - 1.0).collect()
}

/// A classifier of three classes on invented data.
struct Task {
    arena: Arena,
    net: Sequential,
    adam: Optimizer<Adam>,
    x: Tensor,
    y: Tensor,
}

impl Task {
    fn new(device: Device) -> Result<Task> {
        let arena = Arena::new(DType::F32, device)?;
        let scope = Scope::new(&arena, 5);
        let net = Sequential::new()
            .push(Linear::new(&scope.enter(0), 20, 33)?.with_activation(Activation::Relu))
            .push(Dropout::new(0.1)?)
            .push(Linear::new(&scope.enter(2), 33, 17)?.with_activation(Activation::Gelu))
            .push(Linear::new(&scope.enter(4), 17, 3)?);
        let adam = Optimizer::new(&arena, Adam::default(), 3e-3)?.with_clip(Clip::Norm(1.0))?;
        let data = noise(48 * 20, 1);
        let class = |row: &[f32]| if row[0] > 0.3 { 2i64 } else { (row[1] > 0.0) as i64 };
        let y: Vec<i64> = data.chunks(20).map(class).collect();
        let x = Tensor::from_slice(&data, [48, 20], device)?;
        Ok(Task { arena, net, adam, x, y: Tensor::from_slice(&y, 48, device)? })
    }

    fn step(&mut self) -> Result<f64> {
        let mut cx = Cx::train(self.arena.step_block(), 7)?;
        let loss = self.net.forward(&mut cx, &self.x)?.cross_entropy(&self.y, CrossEntropy::default())?;
        self.arena.backward(&loss)?;
        self.adam.step()?;
        loss.item()
    }

    fn losses(device: Device, steps: usize) -> Result<(Vec<f64>, Vec<u32>)> {
        let mut task = Task::new(device)?;
        let losses = (0..steps).map(|_| task.step()).collect::<Result<Vec<_>>>()?;
        let values = task.arena.values()?.to_vec::<f32>()?;
        Ok((losses, values.iter().map(|v| v.to_bits()).collect()))
    }
}

#[test]
fn training_follows_the_cpu_and_repeats_its_bits_under_every_schedule() {
    let (cpu, _) = Task::losses(Device::Cpu, 40).unwrap();
    let (sim, bits) = Task::losses(Device::sim(), 40).unwrap();
    for (step, (a, b)) in cpu.iter().zip(&sim).enumerate() {
        assert!((a - b).abs() <= 1e-4 * (1.0 + step as f64 / 10.0), "step {step}: {a} on the CPU, {b} here");
    }
    assert!(cpu[0] - cpu[39] > 0.2, "nothing was learnt: {cpu:?}");
    for (order, timing) in
        [(Order::Reverse, Timing::Latest), (Order::Random, Timing::Random), (Order::Pct, Timing::Latest)]
    {
        let device = Device::sim_with(SimOptions { order, timing, seed: 3, ..SimOptions::default() });
        assert!(
            Task::losses(device, 40).unwrap() == (sim.clone(), bits.clone()),
            "other bits under {order:?}"
        );
    }
}

#[test]
fn the_checks_find_nothing_in_a_training_step() {
    let options =
        SimOptions { order: Order::Random, timing: Timing::Random, checked: true, ..Default::default() };
    Task::losses(Device::sim_with(options), 2).unwrap();
}

#[test]
fn a_steady_step_takes_nothing_from_the_driver() {
    let device = Device::sim();
    let mut task = Task::new(device).unwrap();
    (0..3).for_each(|_| assert!(task.step().unwrap().is_finite()));
    let before = device.stream().unwrap().memory_report();
    (0..20).for_each(|_| assert!(task.step().unwrap().is_finite()));
    let after = device.stream().unwrap().memory_report();
    assert_eq!(before.driver_allocations, after.driver_allocations);
    assert_eq!(before.live_bytes, after.live_bytes);
    assert!(after.reuses > before.reuses + 100, "the pool was not used");
}

#[test]
fn red_zones_and_poison_find_nothing_in_a_training_step() {
    let device = Device::sim();
    device.stream().unwrap().pool().set_debug(true);
    let mut task = Task::new(device).unwrap();
    (0..3).for_each(|_| assert!(task.step().unwrap().is_finite()));
    drop(task);
    device.synchronize().unwrap();
}

#[test]
fn out_of_memory_in_mid_step_says_who_holds_what_and_leaves_the_engine_usable() {
    // Wherever it strikes (in the arena, the first forward pass, backward or the update), the device goes on afterwards.
    let steps = |device: Device| Task::losses(device, 2).map(|(losses, _)| losses);
    let whole = Device::sim();
    let want = steps(whole).unwrap();
    let allocations = whole.stream().unwrap().memory_report().driver_allocations;
    assert!(allocations > 20, "{allocations}");
    for nth in 1..allocations {
        let device = Device::sim_with(SimOptions { fail_allocation: Some(nth), ..SimOptions::default() });
        let e =
            steps(device).err().unwrap_or_else(|| panic!("allocation {nth} of {allocations} was not missed"));
        assert_eq!(e.kind(), ErrorKind::OutOfMemory, "{e}");
        assert!(steps(device).unwrap() == want, "other losses after allocation {nth} failed");
    }
    let device = Device::sim_with(SimOptions { memory: 64 << 10, ..SimOptions::default() });
    let keep = Tensor::zeros([4096], DType::F32, device).unwrap();
    let big = Tensor::zeros([40_000], DType::F32, device).unwrap_err();
    assert_eq!(big.kind(), ErrorKind::OutOfMemory);
    assert!(big.to_string().contains("tensor 16384 in 1"), "{big}");
    assert_eq!(keep.relu().unwrap().to_vec::<f32>().unwrap(), [0.0; 4096]);
}

#[test]
fn a_fault_poisons_the_device_with_its_cause_and_nothing_aborts() {
    let device = Device::sim_with(SimOptions { fail_launch: Some(3), ..SimOptions::default() });
    let x = Tensor::from_slice(&[1f32, -2.0, 3.0], 3, device).unwrap();
    let a = x.relu().unwrap();
    let b = a.exp().unwrap();
    let e = b.tanh().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DeviceFailed);
    let text = e.to_string();
    for part in
        ["illegal memory access", "last launches", "for tanh [3]", "for exp [3]", "tests/gpu_engine.rs"]
    {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    for later in [x.relu().unwrap_err(), x.to_vec::<f32>().unwrap_err(), device.synchronize().unwrap_err()] {
        assert_eq!(later.kind(), ErrorKind::DeviceFailed);
        assert!(later.to_string().contains("illegal memory access"), "{later}");
    }
    drop((x, a, b));
}

#[test]
fn tensors_of_two_devices_do_not_mix() {
    let [a, b] = [Device::Cpu, Device::sim()].map(|d| Tensor::ones(3, DType::F32, d).unwrap());
    let c = Tensor::ones(3, DType::F32, Device::sim()).unwrap();
    for (x, y) in [(&a, &b), (&b, &a), (&b, &c)] {
        let e = x.add(y).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Device);
        assert!(e.to_string().contains(&x.device().to_string()), "{e}");
        assert_eq!(x.copy_(y).unwrap_err().kind(), ErrorKind::Device);
    }
    assert_eq!(b.to_device(c.device()).unwrap().add(&c).unwrap().to_vec::<f32>().unwrap(), [2.0; 3]);
}

#[test]
fn launches_of_nothing_do_not_reach_the_driver() {
    let device = Device::sim();
    let x = Tensor::zeros([0, 5], DType::F32, device).unwrap();
    let before = device.stream().unwrap().launches();
    assert_eq!(x.relu().unwrap().dims(), [0, 5]);
    assert_eq!(x.softmax(-1).unwrap().dims(), [0, 5]);
    assert!(x.to_vec::<f32>().unwrap().is_empty());
    assert_eq!(device.stream().unwrap().launches(), before);
}

#[test]
fn an_element_type_without_kernels_is_unsupported_and_not_computed_elsewhere() {
    let x = Tensor::ones(3, DType::F64, Device::sim()).unwrap();
    assert_eq!(x.exp().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_bad_index_is_the_error_of_the_cpu() {
    let on = |device: Device| -> Result<Vec<f32>> {
        let table = Tensor::ones([4, 3], DType::F32, device)?;
        let ids = Tensor::from_slice(&[0i64, 3, 7, 1, -9, 2], [2, 3], device)?;
        table.embedding(&ids)?.to_vec()
    };
    let (cpu, sim) = (on(Device::Cpu).unwrap_err(), on(Device::sim()).unwrap_err());
    assert_eq!((cpu.kind(), cpu.to_string()), (sim.kind(), sim.to_string()));
    // A class that does not exist, and once more: the device goes on.
    let device = Device::sim();
    for _ in 0..2 {
        let logits = Tensor::zeros([2, 3], DType::F32, device).unwrap();
        let target = Tensor::from_slice(&[0i64, 3], 2, device).unwrap();
        let loss = logits.cross_entropy(&target, CrossEntropy::default());
        let e = loss.and_then(|l| l.item()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Argument);
        assert!(e.to_string().contains("index 3 at position [1] is out of range for size 3"), "{e}");
    }
    assert_eq!(Tensor::ones(2, DType::F32, device).unwrap().to_vec::<f32>().unwrap(), [1.0; 2]);
}

#[test]
fn a_tensor_goes_to_the_device_and_back_in_any_layout() {
    let device = Device::sim();
    let x = Tensor::from_slice(&noise(24, 3), [2, 3, 4], Device::Cpu).unwrap();
    let there = x.to_device(device).unwrap();
    let views = [(x.clone(), there.clone()), (x.transpose(0, 2).unwrap(), there.transpose(0, 2).unwrap())];
    for (here, there) in views {
        assert_eq!(here.to_vec::<f32>().unwrap(), there.to_vec::<f32>().unwrap());
        assert_eq!(here.to_device(device).unwrap().to_vec::<f32>().unwrap(), here.to_vec::<f32>().unwrap());
    }
}
