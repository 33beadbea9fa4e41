//! Captured steps on the simulator: a replay is the eager step bit for bit, whatever changes between steps, and what cannot be
//! captured says what and where.

use warpsmith::device::sim::SimOptions;
use warpsmith::nn::{Activation, Cx, Dropout, Linear, Module, Scope, Sequential};
use warpsmith::ops::CrossEntropy;
use warpsmith::optim::{AdamW, Capture, Clip, Input, MAX_SHAPES, Optimizer, StepOptions, TrainStep};
use warpsmith::param::StepBlock;
use warpsmith::random::Philox;
use warpsmith::{Arena, DType, Device, Error, ErrorKind, Result, Tensor};

const INPUTS: usize = 12;
const CLASSES: usize = 5;

/// A network, its optimiser and its step.
struct Run {
    arena: Arena,
    step: TrainStep,
}

impl Run {
    fn new(device: Device, options: StepOptions) -> Run {
        let arena = Arena::new(DType::F32, device).unwrap();
        let scope = Scope::new(&arena, 3);
        let net = Sequential::new()
            .push(Linear::new(&scope.enter(0), INPUTS, 24).unwrap().with_activation(Activation::Gelu))
            .push(Dropout::new(0.25).unwrap())
            .push(Linear::new(&scope.enter(3), 24, CLASSES).unwrap());
        let adam = Optimizer::new(&arena, AdamW::default(), 0.01).unwrap();
        let adam = adam.with_clip(Clip::Norm(0.5)).unwrap();
        let block = arena.step_block().clone();
        let forward = move |batch: &[Tensor], part: usize| {
            let first = part as u64 * batch[0].dims()[0] as u64;
            let mut cx = Cx::train(&block, 7)?.with_first_sample(first);
            net.forward(&mut cx, &batch[0])?.cross_entropy(&batch[1], CrossEntropy::default())
        };
        let step = TrainStep::new(&arena, Box::new(adam), Box::new(forward), options).unwrap();
        Run { arena, step }
    }

    /// A step on batch `n` of `rows` rows.
    fn batch(&mut self, n: u64, rows: usize) -> Result<()> {
        let random = Philox::new(n, 1);
        let x: Vec<f32> = (0..rows * INPUTS).map(|i| random.uniform_f64_at(i as u64) as f32 - 0.5).collect();
        let y: Vec<i64> = (0..rows).map(|i| (x[i * INPUTS].abs() * 10.0) as i64 % CLASSES as i64).collect();
        self.step.run(&[Input::new(&x, [rows, INPUTS])?, Input::new(&y, rows)?])
    }

    /// All bits that training leaves: values, moments, step block, losses.
    fn bits(&mut self) -> Vec<u64> {
        let mut bits: Vec<u64> = self.step.losses().unwrap().iter().map(|l| l.to_bits()).collect();
        let mut add = |t: &Tensor| bits.extend(t.to_f64_vec().unwrap().iter().map(|v| v.to_bits()));
        add(&self.arena.values().unwrap());
        self.arena.states().unwrap().iter().for_each(|(_, state)| add(state));
        add(self.arena.step_block().floats());
        bits.push(self.arena.step_block().steps().unwrap());
        bits
    }
}

fn options(capture: Capture) -> StepOptions {
    StepOptions { capture, ..StepOptions::default() }
}

/// Twenty steps with a change of learning rate, a shorter last batch each fourth step, and values loaded in the middle.
fn twenty(run: &mut Run) {
    let loaded = Tensor::full([24, INPUTS], 0.01, DType::F32, run.arena.device()).unwrap();
    for n in 0..20 {
        if n == 9 {
            run.step.set_lr(0.003).unwrap();
        }
        if n == 13 {
            run.arena.param("0.weight").unwrap().set(&loaded).unwrap();
        }
        run.batch(n, if n % 4 == 3 { 5 } else { 8 }).unwrap();
    }
}

#[test]
fn twenty_replayed_steps_are_the_eager_ones_bit_for_bit() {
    let mut eager = Run::new(Device::sim(), options(Capture::Off));
    let mut captured = Run::new(Device::sim(), options(Capture::On));
    twenty(&mut eager);
    twenty(&mut captured);
    assert_eq!(captured.step.graphs().len(), 2, "one recording for each shape");
    assert!(eager.step.graphs().is_empty());
    let expected = eager.bits();
    assert_eq!(captured.bits(), expected);

    // And the CPU's within what the order of sums explains.
    let mut cpu = Run::new(Device::cpu(), options(Capture::On));
    twenty(&mut cpu);
    let close = |a: u64, b: u64| (f64::from_bits(a) - f64::from_bits(b)).abs() < 1e-4;
    let cpu = cpu.bits();
    let floats = cpu.len() - 1;
    assert!(cpu[..floats].iter().zip(&expected).all(|(&a, &b)| close(a, b)));
    assert_eq!(cpu[floats], expected[floats]);
}

#[test]
fn micro_batches_give_the_same_replayed_as_eager_and_nearly_the_whole_batch() {
    let parts = |capture, micro_batches| StepOptions { capture, micro_batches, losses: 4, check: false };
    let [mut eager, mut captured, mut whole] =
        [parts(Capture::Off, 4), parts(Capture::On, 4), parts(Capture::On, 1)]
            .map(|options| Run::new(Device::sim(), options));
    for run in [&mut eager, &mut captured, &mut whole] {
        // More steps than the ring has room for: they are read in between.
        (0..10).for_each(|n| run.batch(n, 8).unwrap());
    }
    let (eager, captured, whole) = (eager.bits(), captured.bits(), whole.bits());
    assert_eq!(eager, captured);
    let apart = |a: &u64, b: &u64| (f64::from_bits(*a) - f64::from_bits(*b)).abs();
    assert!(eager.iter().zip(&whole).take(10).all(|(a, b)| apart(a, b) < 1e-4), "losses");
    let error = Run::new(Device::sim(), parts(Capture::Off, 3)).batch(0, 8).unwrap_err();
    assert!(error.to_string().contains("cannot be cut into 3"), "{error}");
}

#[test]
fn replays_take_no_memory_and_a_graph_gives_back_what_it_had() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    let stream = run.arena.device().stream().unwrap();
    run.batch(0, 8).unwrap();
    run.step.losses().unwrap();
    let before = stream.memory_report();
    (1..6).for_each(|n| run.batch(n, 8).unwrap());
    let during = stream.memory_report();
    assert_eq!(during.driver_allocations, before.driver_allocations);
    let [(launches, bytes)] = run.step.graphs()[..] else { panic!("one graph") };
    assert!(launches > 10 && bytes > 0);
    assert!(during.holders.iter().any(|&(what, _, held)| what == "captured step" && held == bytes));
    let launched = stream.launches();
    run.batch(6, 8).unwrap();
    assert_eq!(stream.launches() - launched, launches, "a replayed step launches its graph and nothing else");
    drop(run);
    let after = stream.memory_report();
    assert!(after.holders.iter().all(|&(what, ..)| what != "captured step"), "{:?}", after.holders);
    assert_eq!(after.live_bytes + after.cached_bytes, during.live_bytes + during.cached_bytes);
}

#[test]
fn a_fifth_shape_is_an_error_or_runs_op_by_op() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    (0..MAX_SHAPES).for_each(|n| run.batch(n as u64, 2 + n).unwrap());
    let error = run.batch(9, 9).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("[9, 12]") && error.to_string().contains("[2, 12]"), "{error}");
    let mut auto = Run::new(Device::sim(), options(Capture::Auto));
    (0..6).for_each(|n| auto.batch(n as u64, 2 + n).unwrap());
    let mut eager = Run::new(Device::sim(), options(Capture::Off));
    (0..6).for_each(|n| eager.batch(n as u64, 2 + n).unwrap());
    assert_eq!(auto.bits(), eager.bits());
}

/// A step whose forward does `something` besides; the error of its recording.
fn refused(something: impl Fn(&Tensor) -> Result<()> + Send + 'static) -> Error {
    let arena = Arena::new(DType::F32, Device::sim()).unwrap();
    let net = Linear::new(&Scope::new(&arena, 3), INPUTS, CLASSES).unwrap();
    let adam = Optimizer::new(&arena, AdamW::default(), 0.01).unwrap();
    let block = arena.step_block().clone();
    let forward = move |batch: &[Tensor], _: usize| {
        let y = net.forward(&mut Cx::train(&block, 7)?, &batch[0])?;
        something(&y)?;
        y.cross_entropy(&batch[1], CrossEntropy::default())
    };
    let step = TrainStep::new(&arena, Box::new(adam), Box::new(forward), options(Capture::On)).unwrap();
    let mut run = Run { arena, step };
    run.batch(0, 8).expect("an eager step may do it");
    let error = run.batch(1, 8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    error
}

#[test]
fn what_cannot_be_captured_says_what_and_where() {
    let error = refused(|y| y.to_vec::<f32>().map(drop)).to_string();
    assert!(error.contains("reading values back at ") && error.contains("tests/capture.rs"), "{error}");
    let error = refused(|y| y.sum(&[], false)?.item().map(drop)).to_string();
    assert!(error.contains("reading values back at ") && error.contains("tests/capture.rs"), "{error}");
    let error = refused(|y| Tensor::from_slice(&[1f32], 1, y.device()).map(drop)).to_string();
    assert!(error.contains("copying host data") && error.contains("tests/capture.rs"), "{error}");
    let error = refused(|y| y.device().synchronize()).to_string();
    assert!(error.contains("waiting for the device at ") && error.contains("tests/capture.rs"), "{error}");
    // More memory each time than the step before has left cached.
    let calls = std::sync::atomic::AtomicUsize::new(1);
    let error = refused(move |y| {
        let n = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Tensor::zeros(n << 20, DType::F32, y.device()).map(drop)
    });
    assert!(error.to_string().contains("are not cached"), "{error}");
}

#[test]
fn a_bad_class_in_a_replayed_step_is_raised_and_later_steps_go_on() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    (0..3).for_each(|n| run.batch(n, 8).unwrap());
    run.step.losses().unwrap();
    let x = [0.1f32; 8 * INPUTS];
    let mut y = [0i64; 8];
    y[5] = CLASSES as i64;
    run.step.run(&[Input::new(&x, [8, INPUTS]).unwrap(), Input::new(&y, 8).unwrap()]).unwrap();
    let error = run.step.losses().unwrap_err();
    assert!(error.to_string().contains("none of the 5 classes"), "{error}");
    run.batch(4, 8).unwrap();
    run.step.losses().expect("raised once");
}

#[test]
fn freezing_a_parameter_records_anew() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    (0..3).for_each(|n| run.batch(n, 8).unwrap());
    let weight = run.arena.param("0.weight").unwrap();
    weight.set_frozen(true);
    let before = weight.get().unwrap().to_vec::<f32>().unwrap();
    (3..6).for_each(|n| run.batch(n, 8).unwrap());
    assert_eq!(weight.get().unwrap().to_vec::<f32>().unwrap(), before);
    let steps = run.arena.step_block().steps().unwrap();
    assert_eq!(steps, 6);
}

#[test]
fn a_tensor_of_the_model_outlives_it_in_the_graph() {
    // A constant of the closure is kept by the graph even when nobody else has it: its memory is not handed to others.
    let device = Device::sim();
    let stream = device.stream().unwrap();
    let x = Tensor::full(1000, 2.0, DType::F32, device).unwrap();
    let y = Tensor::zeros(1000, DType::F32, device).unwrap();
    x.mul(&x).unwrap();
    let (graph, ()) = stream.capture(|| y.copy_(&x.mul(&x)?)).unwrap();
    drop(x);
    let other = Tensor::full(1000, 5.0, DType::F32, device).unwrap();
    graph.replay().unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [4.0; 1000]);
    drop((graph, other));
}

#[test]
fn a_recording_that_panics_ends() {
    let stream = Device::sim().stream().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stream.capture(|| -> Result<()> { panic!("in the middle") })
    }));
    assert!(panicked.is_err());
    stream.synchronize().expect("nothing is being recorded any more");
}

#[test]
fn a_launch_that_fails_in_a_replay_names_the_last_kernels() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    let per_step = {
        (0..2).for_each(|n| run.batch(n, 8).unwrap());
        run.step.graphs()[0].0
    };
    let launched = run.arena.device().stream().unwrap().launches();
    // The same again on a device that fails in the third step.
    let device =
        Device::sim_with(SimOptions { fail_launch: Some(launched + per_step / 2), ..SimOptions::default() });
    let mut run = Run::new(device, options(Capture::On));
    (0..2).for_each(|n| run.batch(n, 8).unwrap());
    let error = run.batch(2, 8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeviceFailed);
    assert!(error.to_string().contains("last launches"), "{error}");
    assert_eq!(run.batch(3, 8).unwrap_err().kind(), ErrorKind::DeviceFailed);
}

#[test]
fn the_step_block_is_what_a_replay_reads() {
    let mut run = Run::new(Device::sim(), options(Capture::On));
    (0..3).for_each(|n| run.batch(n, 8).unwrap());
    let before = run.arena.values().unwrap().to_vec::<f32>().unwrap();
    run.step.set_lr(0.0).unwrap();
    run.batch(3, 8).unwrap();
    assert_eq!(run.arena.values().unwrap().to_vec::<f32>().unwrap(), before, "a rate of 0 changes nothing");
    assert!(run.arena.step_block().get(StepBlock::NORM).unwrap() > 0.0);
}
