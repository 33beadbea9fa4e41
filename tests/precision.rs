//! Mixed precision as an embedder uses it: master weights, gradients in f32, states in fewer bits, rounding by chance, loss
//! scaling; what each loses and what it costs.

use warpsmith::data::{Column, digits};
use warpsmith::nn::Cx;
use warpsmith::ops::{CrossEntropy, run_into};
use warpsmith::optim::{Adam, AdamW, MAX_SKIPPED, Optimizer, RmsProp, Rule, Sgd};
use warpsmith::param::{LossScale, Precision, Rounding, StateDType, StepBlock};
use warpsmith::tensor::{Mode, no_grad};
use warpsmith::{Arena, DType, Device, ErrorKind, Param, Result, Tensor};

const CPU: Device = Device::Cpu;
const BY_CHANCE: Rounding = Rounding::Stochastic { seed: 5 };

/// Numbers that look random but need no generator.
fn noise(n: usize, salt: u64) -> Vec<f64> {
    (0..n as u64).map(|i| ((i * 2654435761 + salt * 40503) % 10007) as f64 / 5003.5 - 1.0).collect()
}

fn values(param: &Param) -> Vec<f64> {
    param.get().unwrap().to_f64_vec().unwrap()
}

/// An arena with one parameter of `n` elements.
fn single(precision: Precision, n: usize, value: f64) -> (Arena, Param) {
    let arena = Arena::with_precision(precision, CPU).unwrap();
    let w = arena.register("w", n, &vec![value; n]).unwrap();
    (arena, w)
}

/// Makes `factor` the gradient of each element of `w`.
fn deliver(arena: &Arena, w: &Param, factor: f64) -> Result<()> {
    arena.backward(&w.get()?.mul_scalar(factor)?.sum(&[], false)?.to_dtype(DType::F32)?).map(drop)
}

#[test]
fn masters_keep_initial_values_and_small_updates_that_bf16_loses() {
    let start = 1.0 + 1.0 / 1024.0;
    for (precision, moves) in [
        (Precision::bf16(), true),
        (Precision { master: false, ..Precision::bf16() }, false),
        (Precision::bf16().without_master(), true),
    ] {
        let (arena, w) = single(precision, 4096, start);
        if let Some(master) = arena.master().unwrap() {
            assert_eq!(master.to_vec::<f32>().unwrap()[0], start as f32);
        }
        assert_eq!(values(&w)[0], 1.0);
        let mut sgd = Optimizer::new(&arena, Sgd::default(), 1e-4).unwrap();
        for _ in 0..100 {
            deliver(&arena, &w, 1.0).unwrap();
            sgd.step().unwrap();
        }
        let mean = values(&w).iter().sum::<f64>() / 4096.0;
        let moved = values(&w)[0] != 1.0 || mean != 1.0;
        assert_eq!(moved, moves, "{precision:?}: {mean}");
        let want = if precision.has_master() { start } else { 1.0 } - 0.01;
        // Within a unit of bf16 there; rounded by chance, the mean of 4,096 is far closer.
        let within = if precision.has_master() { 1.0 / 256.0 } else { 3e-4 };
        assert!(!moves || (mean - want).abs() < within, "{precision:?}: {mean} instead of {want}");
    }
}

#[test]
fn a_parameter_that_is_set_sets_its_master() {
    let (arena, w) = single(Precision::bf16(), 3, 0.0);
    w.set(&Tensor::from_slice(&[0.1f32, 0.2, 0.3], 3, CPU).unwrap()).unwrap();
    let master = arena.master().unwrap().unwrap().to_vec::<f32>().unwrap();
    assert_eq!(master[..4], [0.1, 0.2, 0.3, 0.0]);
    let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.5).unwrap();
    deliver(&arena, &w, 0.0).unwrap();
    sgd.step().unwrap();
    let rounded = Tensor::from_slice(&[0.1f32, 0.2, 0.3], 3, CPU).unwrap().to_dtype(DType::BF16).unwrap();
    assert_eq!(values(&w), rounded.to_f64_vec().unwrap());
}

#[test]
fn f32_gradients_keep_what_256_micro_batches_lose_in_bf16() {
    let sum = |precision: Precision| {
        let (arena, w) = single(precision, 2, 1.0);
        deliver(&arena, &w, 1.0).unwrap();
        for _ in 1..256 {
            deliver(&arena, &w, 0.0035).unwrap();
        }
        let grad = w.grad().unwrap().unwrap();
        assert_eq!(grad.dtype(), precision.grads);
        grad.to_f64_vec().unwrap()[1]
    };
    // A contribution is rounded to bf16; there it is less than half a unit beside 1.
    let each = Tensor::scalar(0.0035f32, CPU).unwrap().to_dtype(DType::BF16).unwrap().item().unwrap();
    let exact = 1.0 + 255.0 * each;
    let (short, full) = (sum(Precision::bf16()), sum(Precision::bf16().with_f32_grads()));
    assert!((full - exact).abs() < 1e-5, "{full} instead of {exact}");
    assert_eq!(short, 1.0, "of {exact}: the test shows nothing");
}

/// Two uses of a parameter, one of them a view and one an op that writes right into the gradient's memory.
#[test]
fn f32_gradients_of_several_uses_add_up() {
    let arena = Arena::with_precision(Precision::bf16().with_f32_grads(), CPU).unwrap();
    let w = arena.register("w", [4, 4], &noise(16, 1)).unwrap();
    let x = Tensor::from_slice(&noise(16, 2), [4, 4], CPU).unwrap().to_dtype(DType::BF16).unwrap();
    let loss = || {
        let (w, x) = (w.get()?, &x);
        let y = x.matmul(&w)?.sum(&[], false)?;
        let z = w.narrow(0, 1, 2)?.mul_scalar(3.0)?.sum(&[], false)?;
        y.add(&z)?.add(&w.mul(&w)?.sum(&[], false)?)
    };
    arena.backward(&loss().unwrap()).unwrap();
    let got = w.grad().unwrap().unwrap().to_f64_vec().unwrap();
    let (x, w) = (x.to_f64_vec().unwrap(), values(&w));
    for i in 0..4 {
        for j in 0..4 {
            let column: f64 = (0..4).map(|r| x[4 * r + i]).sum();
            let view = if (1..3).contains(&i) { 3.0 } else { 0.0 };
            let want = column + view + 2.0 * w[4 * i + j];
            let got = got[4 * i + j];
            assert!((got - want).abs() < 0.02, "[{i}, {j}]: {got} instead of {want}");
        }
    }
}

#[test]
fn rounding_by_chance_is_unbiased_and_follows_from_seed_and_step() {
    // Value, gradient at learning rate 1, and the unit in the last place there: a third of one up, in the middle of the range
    // and, for f16, below its least normal number.
    let n = 100_000;
    for (dtype, start, unit) in [
        (DType::BF16, 1.0, 1.0 / 128.0),
        (DType::BF16, -3.0, 1.0 / 64.0),
        (DType::F16, 1.0, 1.0 / 1024.0),
        (DType::F16, 3.0 / 16777216.0, 1.0 / 16777216.0),
    ] {
        let run = |seed| {
            let precision =
                Precision::of(dtype).without_master().with_rounding(Rounding::Stochastic { seed });
            let (arena, w) = single(precision, n, start);
            let mut sgd = Optimizer::new(&arena, Sgd::default(), unit / 3.0).unwrap();
            deliver(&arena, &w, -1.0).unwrap();
            sgd.step().unwrap();
            values(&w)
        };
        let got = run(1);
        assert!(got.iter().all(|&v| v == start || (v - start - unit).abs() < unit / 100.0), "{dtype}");
        let up = got.iter().filter(|&&v| v != start).count() as f64 / n as f64;
        // Four standard deviations.
        assert!((up - 1.0 / 3.0).abs() < 4.0 * (2.0 / 9.0 / n as f64).sqrt(), "{dtype} {start}: {up}");
        assert_eq!(got, run(1));
        assert_ne!(got, run(2));
    }
}

/// Least squares by `rule`: the loss at the end.
fn regression<R: Rule>(rule: R, lr: f64, precision: Precision, device: Device) -> f64 {
    let (rows, width) = (64, 40);
    let arena = Arena::with_precision(precision, device).unwrap();
    let w = arena.register("w", [width, 8], &vec![0.0; width * 8]).unwrap();
    let dtype = precision.compute;
    let tensor = |values: &[f64], shape: [usize; 2]| {
        Tensor::from_slice(values, shape, CPU).unwrap().to_dtype(dtype).unwrap().to_device(device).unwrap()
    };
    let x = tensor(&noise(rows * width, 3), [rows, width]);
    let truth = tensor(&noise(width * 8, 4), [width, 8]);
    let y = no_grad(|| x.matmul(&truth)).unwrap().to_dtype(DType::F32).unwrap();
    let mut optimizer = Optimizer::new(&arena, rule, lr).unwrap();
    let mut last = f64::NAN;
    for _ in 0..300 {
        let error = x.matmul(&w.get().unwrap()).unwrap().to_dtype(DType::F32).unwrap().sub(&y).unwrap();
        let loss = error.mul(&error).unwrap().mean(&[], false).unwrap();
        arena.backward(&loss).unwrap();
        optimizer.step().unwrap();
        last = loss.item().unwrap();
    }
    last
}

#[test]
fn states_in_fewer_bits_converge_like_f32() {
    for states in [StateDType::BF16, StateDType::Int8] {
        let f32 = Precision::f32();
        for rounding in [BY_CHANCE, Rounding::Nearest] {
            let narrow = f32.with_states(states).with_rounding(rounding);
            let (want, got) = (
                regression(AdamW::default(), 0.02, f32, CPU),
                regression(AdamW::default(), 0.02, narrow, CPU),
            );
            // From 4.3 at the start. The margin is for noise near the minimum.
            assert!(want < 2e-3 && got < 1.5 * want + 2e-3, "{narrow:?}: {got}, in f32 {want}");
        }
        let narrow = f32.with_states(states);
        let rule = RmsProp { momentum: 0.5, ..RmsProp::default() };
        let (want, got) = (regression(rule, 0.003, f32, CPU), regression(rule, 0.003, narrow, CPU));
        assert!(got < 1.5 * want + 2e-3, "{narrow:?}: {got}, in f32 {want}");
    }
    for precision in [Precision::bf16(), Precision::f16(), Precision::bf16().with_states(StateDType::Int8)] {
        let got = regression(AdamW::default(), 0.02, precision, CPU);
        // What bf16's own products leave.
        assert!(got < 5e-3, "{precision:?}: {got}");
    }
}

/// The share of the last 297 digits that a small network, trained on the others, gets right.
fn digits_right(precision: Precision) -> f64 {
    let table = digits().unwrap();
    let columns: Vec<&Vec<f64>> = (0..65)
        .map(|c| match table.column(c) {
            Column::Number(values) => values,
            other => panic!("column {c} is {:?}", other.kind()),
        })
        .collect();
    let rows = table.rows();
    let pixels: Vec<f64> = (0..rows * 64).map(|i| columns[i % 64][i / 64] / 16.0).collect();
    let labels: Vec<i64> = columns[64].iter().map(|&v| v as i64).collect();
    let x = Tensor::from_slice(&pixels, [rows, 64], CPU).unwrap().to_dtype(precision.compute).unwrap();
    let arena = Arena::with_precision(precision, CPU).unwrap();
    let weights = |name: &str, shape: [usize; 2], salt| {
        let values: Vec<f64> = noise(shape[0] * shape[1], salt).iter().map(|v| v / 4.0).collect();
        arena.register(name, shape, &values).unwrap()
    };
    let (w, v) = (weights("w", [64, 32], 1), weights("v", [32, 10], 2));
    let forward = |x: &Tensor| {
        let hidden = x.matmul(&w.get()?)?.relu()?;
        hidden.matmul(&v.get()?)?.to_dtype(DType::F32)
    };
    let mut adam = Optimizer::new(&arena, AdamW::default(), 0.01).unwrap();
    let (known, truth) =
        (x.narrow(0, 0, 1500).unwrap(), Tensor::from_slice(&labels[..1500], 1500, CPU).unwrap());
    for _ in 0..120 {
        let loss = forward(&known).unwrap().cross_entropy(&truth, CrossEntropy::default()).unwrap();
        arena.backward(&loss).unwrap();
        adam.step().unwrap();
    }
    let answers = no_grad(|| forward(&x.narrow(0, 1500, rows - 1500)?)).unwrap().to_vec::<f32>().unwrap();
    let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    let right = answers.chunks(10).zip(&labels[1500..]).filter(|(row, label)| best(row) == **label);
    right.count() as f64 / (rows - 1500) as f64
}

#[test]
fn digits_are_learnt_in_every_precision() {
    let want = digits_right(Precision::f32());
    assert!(want > 0.88, "{want}");
    for precision in [
        Precision::f32().with_states(StateDType::Int8),
        Precision::bf16(),
        Precision::bf16().with_f32_grads().with_states(StateDType::Int8),
        Precision::bf16().without_master().with_states(StateDType::BF16),
        Precision::f16(),
    ] {
        let got = digits_right(precision);
        // Six of the 297.
        assert!(got >= want - 0.0203, "{precision:?}: {got}, in f32 {want}");
    }
}

#[test]
fn a_skipped_step_changes_nothing_but_the_scale_and_the_random_choices() {
    let precision = Precision::f16().with_states(StateDType::Int8).with_rounding(BY_CHANCE);
    let (arena, w) = single(precision, 300, 0.5);
    let mut adam = Optimizer::new(&arena, Adam::default(), 0.1).unwrap();
    deliver(&arena, &w, 1e-3).unwrap();
    adam.step().unwrap();
    let all = || {
        let states = arena.states().unwrap();
        let all: Vec<_> = states.iter().map(|(_, t)| t.to_f64_vec().unwrap()).collect();
        let block = arena.step_block();
        let powers = block.floats().to_f64_vec().unwrap()[StepBlock::BETA1_POWER..][..2].to_vec();
        (values(&w), all, powers, block.steps().unwrap())
    };
    let x = Tensor::ones(64, DType::F32, CPU).unwrap();
    let mask = || Cx::train(arena.step_block(), 1).unwrap().dropout(&x, 0.5).unwrap().to_f64_vec().unwrap();
    let (before, first) = (all(), mask());
    // Overflows f16 times the scale.
    deliver(&arena, &w, 1e3).unwrap();
    adam.step().unwrap();
    assert_eq!(all(), before);
    assert_ne!(mask(), first);
    assert_eq!((adam.skipped().unwrap(), adam.skipped_in_a_row().unwrap()), (1, 1));
    assert_eq!((arena.step_block().steps().unwrap(), arena.step_block().attempts().unwrap()), (1, 2));
    assert_eq!(arena.step_block().get(StepBlock::LOSS_SCALE).unwrap(), 16384.0);
    deliver(&arena, &w, 1e-3).unwrap();
    adam.step().unwrap();
    assert_ne!(all().0, before.0);
    assert_eq!((adam.skipped().unwrap(), adam.skipped_in_a_row().unwrap()), (1, 0));
}

#[test]
fn the_scale_is_in_gradients_and_leaves_with_the_update() {
    let (arena, w) = single(Precision::f16(), 8, 0.5);
    let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.5).unwrap();
    // Below the least number of f16 but for the scale.
    deliver(&arena, &w, 1.0 / 67108864.0).unwrap();
    assert_eq!(w.grad().unwrap().unwrap().to_f64_vec().unwrap()[0], 32768.0 / 67108864.0);
    sgd.step().unwrap();
    let master = arena.master().unwrap().unwrap().to_vec::<f32>().unwrap()[0];
    assert_eq!(master, 0.5 - 0.5 / 67108864.0);
}

#[test]
fn many_skipped_steps_in_a_row_are_divergence_and_other_precisions_never_skip() {
    let (arena, w) = single(Precision::f16(), 4, 1.0);
    let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.1).unwrap();
    for k in 0..MAX_SKIPPED {
        sgd.check_skipped(MAX_SKIPPED).unwrap_or_else(|e| panic!("after {k}: {e}"));
        deliver(&arena, &w, f64::INFINITY).unwrap();
        sgd.step().unwrap();
    }
    let error = sgd.check_skipped(MAX_SKIPPED).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Diverged);
    assert!(error.to_string().contains("20 steps in a row"), "{error}");
    assert_eq!(values(&w), [1.0; 4]);
    let (arena, w) = single(Precision::bf16(), 4, 1.0);
    let mut sgd = Optimizer::new(&arena, Sgd::default(), 0.1).unwrap();
    deliver(&arena, &w, f64::INFINITY).unwrap();
    sgd.step().unwrap();
    assert_eq!(sgd.skipped().unwrap(), 0);
    assert!(!values(&w)[0].is_finite());
}

/// What a checkpoint holds: values, states, the step block. Put into a new arena it goes on to the same bits.
#[test]
fn a_run_that_is_put_back_goes_on_bit_for_bit() {
    let scale = LossScale::Dynamic { initial: 4.0, growth: 2.0, backoff: 0.5, interval: 3 };
    for precision in [
        Precision::bf16().with_rounding(BY_CHANCE),
        Precision::bf16().with_states(StateDType::Int8),
        Precision::bf16().without_master().with_states(StateDType::BF16),
        Precision::f16().with_loss_scale(scale).with_rounding(BY_CHANCE),
    ] {
        let run = |arena: &Arena, w: &Param, steps: std::ops::Range<u64>, adam: &mut Optimizer<AdamW>| {
            for step in steps {
                let x = Tensor::from_slice(&noise(700, step), 700, CPU).unwrap();
                let x = x.to_dtype(precision.compute).unwrap();
                let mut cx = Cx::train(arena.step_block(), 3).unwrap();
                let y = cx.dropout(&w.get().unwrap().mul(&x).unwrap(), 0.2).unwrap();
                // The fifth overflows f16.
                let factor = if step == 4 { 1e6 } else { 1e-3 };
                let loss = y.to_dtype(DType::F32).unwrap().mul_scalar(factor).unwrap();
                arena.backward(&loss.sum(&[], false).unwrap()).unwrap();
                adam.step().unwrap();
            }
        };
        let make = || {
            let arena = Arena::with_precision(precision, CPU).unwrap();
            let w = arena.register("w", 700, &noise(700, 99)).unwrap();
            arena.register("unused", 1, &[0.0]).unwrap().set_frozen(true);
            let adam = Optimizer::new(&arena, AdamW::default(), 0.01).unwrap();
            (arena, w, adam)
        };
        let (arena, w, mut adam) = make();
        run(&arena, &w, 0..7, &mut adam);
        let (again, v, mut other) = make();
        v.set(&w.get().unwrap()).unwrap();
        for ((_, to), (_, from)) in again.named_states().unwrap().iter().zip(arena.named_states().unwrap()) {
            to.copy_(&from).unwrap();
        }
        let (block, saved) = (again.step_block(), arena.step_block());
        block.load(&saved.floats().to_vec().unwrap()).unwrap();
        block.set_counters(saved.steps().unwrap(), saved.attempts().unwrap()).unwrap();
        run(&arena, &w, 7..12, &mut adam);
        run(&again, &v, 7..12, &mut other);
        assert_eq!(values(&w), values(&v), "{precision:?}");
        assert_eq!(block.floats().to_f64_vec().unwrap(), saved.floats().to_f64_vec().unwrap());
        for ((name, a), (_, b)) in arena.states().unwrap().iter().zip(again.states().unwrap()) {
            assert_eq!(a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap(), "{precision:?} {name}");
        }
        if precision.scales_loss() {
            assert_eq!(adam.skipped().unwrap(), 1);
            assert_ne!(block.get(StepBlock::LOSS_SCALE).unwrap(), 4.0);
        }
    }
}

/// From the counters of a device's pool, not from the formula that is tested.
#[test]
fn bytes_per_parameter_are_what_the_pool_hands_out() {
    let n = 1 << 20;
    for precision in [
        Precision::f32(),
        Precision::bf16(),
        Precision::bf16().with_f32_grads(),
        Precision::bf16().without_master().with_states(StateDType::BF16),
        Precision::bf16().with_states(StateDType::Int8),
    ] {
        let device = Device::sim();
        let used = || device.stream().unwrap().memory_report().live_bytes as f64;
        let before = used();
        let arena = Arena::with_precision(precision, device).unwrap();
        let w = arena.register("w", n, &vec![0.0; n]).unwrap();
        let adam = Optimizer::new(&arena, Adam::default(), 0.1).unwrap();
        arena.grads().unwrap();
        let got = (used() - before) / n as f64;
        let want = Adam::default().bytes_per_parameter(&precision);
        // The step block and the group table, a byte a block.
        assert!((got - want).abs() < 0.02, "{precision:?}: {got} bytes instead of {want}");
        drop((w, adam));
    }
}

#[test]
fn parts_that_do_not_go_together_are_errors() {
    let kind = |precision: Precision| Arena::with_precision(precision, CPU).err().map(|e| e.kind());
    assert_eq!(kind(Precision::of(DType::I32)), Some(ErrorKind::DType));
    assert_eq!(kind(Precision { grads: DType::F16, ..Precision::bf16() }), Some(ErrorKind::DType));
    assert_eq!(kind(Precision { grads: DType::F32, ..Precision::of(DType::F64) }), Some(ErrorKind::DType));
    let narrow = Precision::of(DType::F64).with_states(StateDType::Int8);
    assert_eq!(kind(narrow), Some(ErrorKind::Unsupported));
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let precision = Precision::f16().with_loss_scale(LossScale::Static(scale));
        assert_eq!(kind(precision), Some(ErrorKind::Argument), "{scale}");
    }
    let still = LossScale::Dynamic { initial: 8.0, growth: 2.0, backoff: 1.0, interval: 1 };
    assert_eq!(kind(Precision::f16().with_loss_scale(still)), Some(ErrorKind::Argument));
    assert_eq!("fp8".parse::<Precision>().unwrap_err().kind(), ErrorKind::Argument);
    let (arena, _) = single(Precision::f32().with_states(StateDType::BF16), 4, 0.0);
    let centered = RmsProp { centered: true, ..RmsProp::default() };
    assert_eq!(Optimizer::new(&arena, centered, 0.1).err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
}

#[test]
fn an_op_that_does_not_update_refuses_to() {
    let x = Tensor::ones(4, DType::F32, CPU).unwrap();
    let y = Tensor::ones(4, DType::F32, CPU).unwrap();
    let error = run_into(warpsmith::ops::Contiguous, &[&x], &[(&y, Mode::Update)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("contiguous"), "{error}");
}
