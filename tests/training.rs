//! The spine as an embedder uses it: layers, arena, backward, optimiser; and its promises about memory, threads and bits.

use warpsmith::cpu::par::with_threads;
use warpsmith::cpu::pool::memory_report;
use warpsmith::nn::{Activation, Cx, Dropout, Embedding, Linear, Module, Scope, Sequential};
use warpsmith::ops::{BceWithLogits, CrossEntropy};
use warpsmith::optim::{Adam, Optimizer, Sgd};
use warpsmith::{Arena, DType, Device, ErrorKind, Result, Tensor};

const CPU: Device = Device::Cpu;

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f32 / 5003.5 - 1.0).collect()
}

struct Task {
    arena: Arena,
    net: Sequential,
    adam: Optimizer<Adam>,
    x: Tensor,
    y: Tensor,
}

impl Task {
    fn new(seed: u64, dropout: f64) -> Result<Task> {
        let arena = Arena::new(DType::F32, CPU)?;
        let scope = Scope::new(&arena, seed);
        let net = Sequential::new()
            .push(Linear::new(&scope.enter(0), 20, 33)?.with_activation(Activation::Relu))
            .push(Dropout::new(dropout)?)
            .push(Linear::new(&scope.enter(2), 33, 17)?.with_activation(Activation::Gelu))
            .push(Linear::new(&scope.enter(4), 17, 1)?);
        let adam = Optimizer::new(&arena, Adam::default(), 1e-3)?;
        let x = Tensor::from_slice(&noise(40 * 20, 1), [40, 20], CPU)?;
        let y: Vec<f32> = noise(40 * 20, 1).chunks(20).map(|r| (r[0] + r[3] > 0.0) as u8 as f32).collect();
        Ok(Task { arena, net, adam, x, y: Tensor::from_slice(&y, 40, CPU)? })
    }

    fn step(&mut self) -> Result<f64> {
        let mut cx = Cx::train(self.arena.step_block(), 7)?;
        let logits = self.net.forward(&mut cx, &self.x)?.squeeze(-1)?;
        let loss = logits.bce_with_logits(&self.y, BceWithLogits::default())?;
        let value = loss.item()?;
        self.arena.backward(&loss)?;
        self.adam.step()?;
        Ok(value)
    }

    fn bits(&self) -> Result<Vec<u32>> {
        Ok(self.arena.values()?.to_vec::<f32>()?.iter().map(|v| v.to_bits()).collect())
    }
}

#[test]
fn a_small_network_learns() {
    let mut task = Task::new(3, 0.0).unwrap();
    let first = task.step().unwrap();
    let last = (0..300).map(|_| task.step().unwrap()).last().unwrap();
    assert!(first > 0.6 && last < 0.1, "from {first} to {last}");
}

#[test]
fn memory_stays_flat_over_ten_thousand_steps() {
    // In a process of its own: the pool's counters are the process's.
    if std::env::var_os("WARPSMITH_TEST_MEMORY").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_stays_flat_over_ten_thousand_steps", "--test-threads=1"])
            .env("WARPSMITH_TEST_MEMORY", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut task = Task::new(3, 0.25).unwrap();
    (0..3).for_each(|_| {
        task.step().unwrap();
    });
    let before = memory_report();
    (0..10_000).for_each(|_| {
        task.step().unwrap();
    });
    let after = memory_report();
    assert_eq!(
        after.system_allocations, before.system_allocations,
        "a steady step took memory from the system"
    );
    assert_eq!(after.live_bytes, before.live_bytes, "steps leave memory behind");
    assert_eq!(after.peak_live_bytes, before.peak_live_bytes);
    assert!(after.reuses > before.reuses + 10_000, "the counters count");
}

#[test]
fn the_same_seed_gives_the_same_bits_for_any_number_of_threads() {
    let train = |threads| {
        with_threads(threads, || {
            let mut task = Task::new(5, 0.5)?;
            (0..20).try_for_each(|_| task.step().map(drop))?;
            task.bits()
        })
        .unwrap()
        .unwrap()
    };
    let one = train(1);
    for threads in [2, 3, 4, 8] {
        assert!(train(threads) == one, "{threads} threads give other bits");
    }
    assert_ne!(Task::new(6, 0.5).unwrap().bits().unwrap(), Task::new(5, 0.5).unwrap().bits().unwrap());
}

#[test]
fn several_threads_train_separate_models() {
    let alone = {
        let mut task = Task::new(11, 0.5).unwrap();
        (0..50).for_each(|_| {
            task.step().unwrap();
        });
        task.bits().unwrap()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut task = Task::new(11, 0.5).unwrap();
                    (0..50).for_each(|_| {
                        task.step().unwrap();
                    });
                    task.bits().unwrap()
                })
            })
            .collect();
        for worker in workers {
            assert!(worker.join().unwrap() == alone);
        }
    });
}

#[test]
fn public_types_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Tensor>();
    check::<Arena>();
    check::<warpsmith::Param>();
    check::<Sequential>();
    check::<Optimizer<Adam>>();
    check::<warpsmith::Error>();
    check::<warpsmith::autograd::Grads>();
}

#[test]
fn a_saved_tensor_changed_in_place_is_an_error_that_names_both_sites() {
    let arena = Arena::new(DType::F32, CPU).unwrap();
    let w = arena.register("w", [2], &[1.0, 2.0]).unwrap();
    let other = arena.register("other", [2], &[1.0, 2.0]).unwrap();
    let loss = w.get().unwrap().square().unwrap().sum(&[], false).unwrap();
    // Another parameter of the same buffer may change; its version is its own.
    other.set_frozen(true);
    other.set(&Tensor::zeros(2, DType::F32, CPU).unwrap()).unwrap();
    arena.backward(&loss).unwrap();
    w.set(&Tensor::zeros(2, DType::F32, CPU).unwrap()).unwrap();
    let error = arena.backward(&loss).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale);
    let text = error.to_string();
    assert_eq!(text.matches("training.rs").count() + text.matches("param.rs").count(), 2, "{text}");
}

#[test]
fn an_optimiser_step_between_forward_and_backward_is_noticed() {
    let mut task = Task::new(3, 0.0).unwrap();
    let mut cx = Cx::eval();
    let loss = task.net.forward(&mut cx, &task.x).unwrap().sum(&[], false).unwrap();
    task.step().unwrap();
    assert_eq!(task.arena.backward(&loss).unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn splitting_a_batch_changes_no_dropout_choice() {
    let arena = Arena::new(DType::F32, CPU).unwrap();
    let x = Tensor::ones([6, 50], DType::F32, CPU).unwrap();
    let whole = Cx::train(arena.step_block(), 9).unwrap().dropout(&x, 0.4).unwrap().to_vec::<f32>().unwrap();
    let mut parts = Vec::new();
    for (start, count) in [(0, 1), (1, 3), (4, 2)] {
        let mut cx = Cx::train(arena.step_block(), 9).unwrap().with_first_sample(start as u64);
        parts.extend(cx.dropout(&x.narrow(0, start, count).unwrap(), 0.4).unwrap().to_vec::<f32>().unwrap());
    }
    assert_eq!(parts, whole);
    let dropped = whole.iter().filter(|&&v| v == 0.0).count();
    assert!((90..150).contains(&dropped), "{dropped} of 300 dropped at 0.4");
    arena.step_block().set_steps(1).unwrap();
    let next = Cx::train(arena.step_block(), 9).unwrap().dropout(&x, 0.4).unwrap().to_vec::<f32>().unwrap();
    assert_ne!(next, whole, "each step drops anew");
}

#[test]
fn tied_weights_have_one_id_and_both_gradients() {
    let arena = Arena::new(DType::F64, CPU).unwrap();
    let scope = Scope::new(&arena, 1);
    let table = Embedding::new(&scope.enter("wte"), 5, 3).unwrap();
    let head = Linear::from_params(table.weight().clone(), None);
    let ids = Tensor::from_slice(&[0i64, 2, 2], [3], CPU).unwrap();
    let mut cx = Cx::eval();
    let hidden = table.forward(&mut cx, &ids).unwrap();
    let logits = head.forward(&mut cx, &hidden).unwrap();
    let loss = logits.cross_entropy(&ids, CrossEntropy::default()).unwrap();
    let mut ready = Vec::new();
    let mut note = |id| ready.push(id);
    let options = warpsmith::autograd::BackwardOptions { ready: Some(&mut note), ..Default::default() };
    arena.backward_with(&loss, options).unwrap();
    assert_eq!(ready, [0], "one parameter, ready once, after both uses");
    // Against central differences of the whole loss.
    let grad = table.weight().grad().unwrap().unwrap().to_vec::<f64>().unwrap();
    let values = table.weight().get().unwrap().to_vec::<f64>().unwrap();
    let loss_at = |i: usize, delta: f64| {
        let mut moved = values.clone();
        moved[i] += delta;
        table.weight().set(&Tensor::from_slice(&moved, [5, 3], CPU).unwrap()).unwrap();
        let mut cx = Cx::eval();
        let hidden = table.forward(&mut cx, &ids).unwrap();
        let logits = head.forward(&mut cx, &hidden).unwrap();
        logits.cross_entropy(&ids, CrossEntropy::default()).unwrap().item().unwrap()
    };
    for (i, g) in grad.iter().enumerate() {
        let slope = (loss_at(i, 1e-6) - loss_at(i, -1e-6)) / 2e-6;
        assert!((g - slope).abs() < 1e-7, "[{i}]: {g} instead of {slope}");
    }
}

#[test]
fn accumulating_micro_batches_equals_the_whole_batch() {
    let build = || {
        let arena = Arena::new(DType::F64, CPU).unwrap();
        let layer = Linear::new(&Scope::new(&arena, 2), 3, 2).unwrap();
        (arena, layer)
    };
    let data: Vec<f64> = noise(12, 3).iter().map(|&v| v as f64).collect();
    let x = Tensor::from_slice(&data, [4, 3], CPU).unwrap();
    let (whole, layer) = build();
    whole
        .backward(&layer.forward(&mut Cx::eval(), &x).unwrap().square().unwrap().sum(&[], false).unwrap())
        .unwrap();
    let (parts, layer) = build();
    for start in [0, 2] {
        let part = x.narrow(0, start, 2).unwrap();
        let loss = layer.forward(&mut Cx::eval(), &part).unwrap().square().unwrap().sum(&[], false).unwrap();
        parts.backward(&loss).unwrap();
    }
    let (a, b) = (whole.grads().unwrap().to_f64_vec().unwrap(), parts.grads().unwrap().to_f64_vec().unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12));
    assert!(a.iter().any(|&v| v != 0.0));
}

#[test]
fn bf16_parameters_train_too() {
    let arena = Arena::new(DType::BF16, CPU).unwrap();
    let layer = Linear::new(&Scope::new(&arena, 2), 3, 1).unwrap();
    let x = Tensor::from_slice(&noise(24, 3), [8, 3], CPU).unwrap().to_dtype(DType::BF16).unwrap();
    let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.1).unwrap();
    let mut losses = Vec::new();
    for _ in 0..30 {
        let y = layer.forward(&mut Cx::eval(), &x).unwrap();
        let loss = y.square().unwrap().mean(&[], false).unwrap();
        losses.push(loss.item().unwrap());
        arena.backward(&loss).unwrap();
        sgd.step().unwrap();
    }
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn a_step_without_gradients_is_an_error() {
    let mut task = Task::new(3, 0.0).unwrap();
    task.step().unwrap();
    let before = task.bits().unwrap();
    assert_eq!(task.adam.step().unwrap_err().kind(), ErrorKind::MissingGradient);
    assert_eq!(task.bits().unwrap(), before);
}

#[test]
fn freezing_takes_effect_at_the_next_step() {
    let mut task = Task::new(3, 0.0).unwrap();
    task.step().unwrap();
    let bias = task.arena.param("0.bias").unwrap();
    bias.set_frozen(true);
    let before = bias.get().unwrap().to_vec::<f32>().unwrap();
    task.step().unwrap();
    assert_eq!(bias.get().unwrap().to_vec::<f32>().unwrap(), before);
    bias.set_frozen(false);
    task.step().unwrap();
    assert_ne!(bias.get().unwrap().to_vec::<f32>().unwrap(), before);
}

#[test]
fn a_micro_batch_that_misses_a_parameter_is_noticed() {
    let arena = Arena::new(DType::F32, CPU).unwrap();
    let (a, b) = (arena.register("a", 2, &[1.0, 2.0]).unwrap(), arena.register("b", 2, &[3.0, 4.0]).unwrap());
    let loss = |x: Tensor| x.sum(&[], false).unwrap();
    arena.backward(&loss(a.get().unwrap().mul(&b.get().unwrap()).unwrap())).unwrap();
    let error = arena.backward(&loss(a.get().unwrap().mul(&b.get().unwrap().detach()).unwrap())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingGradient);
    assert!(error.to_string().contains("reached b"), "{error}");
}

#[test]
fn gradients_of_a_long_column_land_in_their_rows_only() {
    // Longer than a thread's share of rows, of one element each.
    let n = 40_000;
    let x = Tensor::zeros([n, 1], DType::F32, CPU).unwrap().as_leaf().unwrap();
    let index = Tensor::from_slice(&[0i64, 1, 20_000, 39_999], 4, CPU).unwrap();
    let picked = x.index_select(0, &index).unwrap().sum(&[], false).unwrap();
    let grad = warpsmith::autograd::backward(&picked).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap();
    let rows: Vec<usize> = (0..n).filter(|&i| grad[i] != 0.0).collect();
    assert_eq!(rows, [0, 1, 20_000, 39_999]);
}

#[test]
fn a_wrong_number_of_inputs_and_sizes_that_overflow_are_errors() {
    use warpsmith::ops::{Linear as LinearOp, MatMul, run};
    let x = Tensor::zeros([2, 2], DType::F32, CPU).unwrap();
    assert_eq!(run(MatMul, &[]).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(run(MatMul, &[&x]).unwrap_err().kind(), ErrorKind::Shape);
    let linear = LinearOp { bias: true, activation: Activation::Relu, keep_pre: false };
    assert_eq!(run(linear, &[&x, &x]).unwrap_err().kind(), ErrorKind::Shape);
    assert!(Tensor::zeros([1usize << 61], DType::F64, CPU).is_err());
    let one = Tensor::scalar(1f32, CPU).unwrap();
    let (tall, wide) = (one.expand([1 << 40, 1]).unwrap(), one.expand([1, 1 << 40]).unwrap());
    assert_eq!(tall.add(&wide).unwrap_err().kind(), ErrorKind::Shape);
    assert!(x.split(&[usize::MAX, 3], 0).is_err());
    assert_eq!(x.slice(0, 0, 2, usize::MAX).unwrap().dims(), [1, 2]);
    let ids = Tensor::from_slice(&[0i64], 1, CPU).unwrap();
    assert_eq!(ids.eq_scalar(0.5).unwrap_err().kind(), ErrorKind::DType);
}
