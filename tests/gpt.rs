//! The GPT decoder: captured steps on the simulator are the eager ones, the cache gives what a whole pass gives, padding and
//! recomputation change nothing.

use std::sync::Arc;

use warpsmith::nn::{Cx, FeedForwardKind, Gpt, GptConfig, Module, NormKind, Positions, Scope};
use warpsmith::optim::{AdamW, Capture, Clip, Input, Optimizer, StepOptions, TrainStep};
use warpsmith::param::Precision;
use warpsmith::random::Philox;
use warpsmith::tensor::no_grad;
use warpsmith::{Arena, Device, Tensor};

const VOCAB: usize = 13;
const CONTEXT: usize = 8;

fn gpt2_like() -> GptConfig {
    let config = GptConfig::new(VOCAB, CONTEXT, 2, 2, 16);
    GptConfig { bias: true, dropout: 0.1, ..config }
}

fn llama_like() -> GptConfig {
    GptConfig {
        kv_heads: 1,
        hidden: 24,
        positions: Positions::Rotary(100.0),
        norm: NormKind::RmsNorm,
        activation: FeedForwardKind::SwiGlu,
        tied: false,
        padded_vocab: 16,
        ..GptConfig::new(VOCAB, CONTEXT, 2, 2, 16)
    }
}

/// Rows of tokens that each follow from the one before, from a start by chance.
fn tokens(n: u64, rows: usize, steps: usize) -> Vec<i32> {
    let random = Philox::new(n, 9);
    let start = |row: usize| (random.uniform_f64_at(row as u64) * VOCAB as f64) as usize;
    (0..rows).flat_map(|row| (0..=steps).map(move |i| ((start(row) + 3 * i) % VOCAB) as i32)).collect()
}

struct Run {
    arena: Arena,
    gpt: Arc<Gpt>,
    step: TrainStep,
}

fn run(config: &GptConfig, precision: Precision, device: Device, capture: Capture, recompute: bool) -> Run {
    let arena = Arena::with_precision(precision, device).unwrap();
    let gpt = Arc::new(Gpt::new(&Scope::new(&arena, 1), config).unwrap());
    let adam = Optimizer::new(&arena, AdamW { betas: [0.9, 0.99], ..AdamW::default() }, 0.01).unwrap();
    let adam = adam.with_clip(Clip::Norm(1.0)).unwrap();
    let (block, shared) = (arena.step_block().clone(), gpt.clone());
    let forward = move |batch: &[Tensor], _: usize| {
        let mut cx = Cx::train(&block, 7)?.with_recompute(recompute);
        shared.loss(&mut cx, &batch[0], &batch[1])
    };
    let options = StepOptions { capture, ..StepOptions::default() };
    let step = TrainStep::new(&arena, Box::new(adam), Box::new(forward), options).unwrap();
    Run { arena, gpt, step }
}

impl Run {
    /// `count` steps, the sixth of them on fewer rows; all bits that they leave.
    fn steps(&mut self, count: u64) -> Vec<u64> {
        for n in 0..count {
            let rows = if n % 6 == 5 { 1 } else { 3 };
            let ids = tokens(n, rows, CONTEXT);
            let part = |from: usize| -> Vec<i32> {
                ids.chunks(CONTEXT + 1).flat_map(|row| row[from..from + CONTEXT].to_vec()).collect()
            };
            let (x, y) = (part(0), part(1));
            let shape = [rows, CONTEXT];
            self.step.run(&[Input::new(&x, shape).unwrap(), Input::new(&y, shape).unwrap()]).unwrap();
        }
        let mut bits: Vec<u64> = self.step.losses().unwrap().iter().map(|l| l.to_bits()).collect();
        let mut add = |t: &Tensor| bits.extend(t.to_f64_vec().unwrap().iter().map(|v| v.to_bits()));
        add(&self.arena.values().unwrap());
        self.arena.states().unwrap().iter().for_each(|(_, state)| add(state));
        bits
    }
}

#[test]
fn twenty_captured_steps_are_the_eager_ones_and_near_the_cpus() {
    for config in [gpt2_like(), llama_like()] {
        let precision = Precision::f32();
        let mut captured = run(&config, precision, Device::sim(), Capture::On, false);
        let mut eager = run(&config, precision, Device::sim(), Capture::Off, false);
        let (captured_bits, bits) = (captured.steps(20), eager.steps(20));
        assert_eq!(captured_bits, bits);
        assert_eq!(captured.step.graphs().len(), 2);
        let cpu = run(&config, precision, Device::cpu(), Capture::On, false).steps(20);
        let number = |bits: u64| f64::from_bits(bits);
        for (step, (&a, &b)) in cpu.iter().zip(&bits).take(20).enumerate() {
            assert!((number(a) - number(b)).abs() < 2e-5, "loss of step {step}: {} {}", number(a), number(b));
        }
        assert!(number(bits[19]) < number(bits[0]), "it learns");
    }
}

#[test]
fn bf16_steps_are_captured_too_and_learn_what_f32_does() {
    let config = GptConfig { dropout: 0.0, ..gpt2_like() };
    let captured = run(&config, Precision::bf16(), Device::sim(), Capture::On, false).steps(12);
    let eager = run(&config, Precision::bf16(), Device::sim(), Capture::Off, false).steps(12);
    assert_eq!(captured, eager);
    let f32_bits = run(&config, Precision::f32(), Device::cpu(), Capture::Off, false).steps(12);
    for (a, b) in captured.iter().zip(&f32_bits).take(12) {
        assert!((f64::from_bits(*a) - f64::from_bits(*b)).abs() < 0.05);
    }
}

#[test]
fn recomputation_changes_no_bit_and_halves_the_memory() {
    let config = GptConfig { layers: 6, dropout: 0.1, ..llama_like() };
    for device in [Device::cpu(), Device::sim()] {
        let kept = run(&config, Precision::f32(), device, Capture::On, false).steps(4);
        let again = run(&config, Precision::f32(), device, Capture::On, true).steps(4);
        assert_eq!(kept, again, "{device}");
    }
    // What forward leaves alive for backward.
    let alive = |recompute: bool| {
        let device = Device::sim();
        let model = run(&config, Precision::f32(), device, Capture::Off, recompute);
        let ids = Tensor::from_slice(&[1i32; 4 * CONTEXT], [4, CONTEXT], device).unwrap();
        model.arena.values().unwrap();
        let stream = device.stream().unwrap();
        let before = stream.memory_report().live_bytes;
        let mut cx = Cx::train(model.arena.step_block(), 7).unwrap().with_recompute(recompute);
        let loss = model.gpt.loss(&mut cx, &ids, &ids).unwrap();
        let bytes = stream.memory_report().live_bytes - before;
        drop(loss);
        bytes
    };
    let (kept, again) = (alive(false), alive(true));
    assert!(2 * again < kept, "{again} bytes against {kept}");
}

#[test]
fn the_cache_gives_the_logits_of_a_whole_pass() {
    for config in [gpt2_like(), llama_like()] {
        for device in [Device::cpu(), Device::sim()] {
            let gpt = run(&config, Precision::f32(), device, Capture::Off, false).gpt;
            let ids = &tokens(3, 2, CONTEXT - 1);
            let part = |from: usize, to: usize| {
                let rows: Vec<i32> = ids.chunks(CONTEXT).flat_map(|row| row[from..to].to_vec()).collect();
                Tensor::from_slice(&rows, [2, to - from], device).unwrap()
            };
            let whole = no_grad(|| gpt.forward(&mut Cx::eval(), &part(0, CONTEXT))).unwrap();
            let mut cache = gpt.cache(2).unwrap();
            // A prompt of five, then token by token.
            for (from, to) in [(0, 5), (5, 6), (6, 7), (7, 8)] {
                let next = gpt.next_logits(&part(from, to), &mut cache).unwrap().to_vec::<f32>().unwrap();
                let expected = whole.select(1, to - 1).unwrap().to_vec::<f32>().unwrap();
                for (a, b) in next.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-5, "{device} at {to}: {a} {b}");
                }
            }
            let error = gpt.next_logits(&part(0, 1), &mut cache).unwrap_err();
            assert!(error.to_string().contains("context"), "{error}");
        }
    }
}

#[test]
fn a_padded_vocabulary_is_never_predicted() {
    let config = llama_like();
    let mut model = run(&config, Precision::f32(), Device::cpu(), Capture::Off, false);
    let before = model.arena.param("lm_head.weight").unwrap().get().unwrap().to_vec::<f32>().unwrap();
    model.steps(5);
    let head = model.arena.param("lm_head.weight").unwrap();
    let after = head.get().unwrap().to_vec::<f32>().unwrap();
    let width = config.width;
    assert_ne!(before[..VOCAB * width], after[..VOCAB * width]);
    // Rows of padding see no gradient, only the decay of weights, which is the same factor everywhere.
    let factors: Vec<f32> =
        before[VOCAB * width..].iter().zip(&after[VOCAB * width..]).map(|(b, a)| a / b).collect();
    assert!(factors.iter().all(|f| (f - factors[0]).abs() < 1e-5), "{factors:?}");
}

#[test]
fn what_does_not_fit_says_so() {
    let scope = |config: &GptConfig| {
        let arena = Arena::new(warpsmith::DType::F32, Device::cpu()).unwrap();
        Gpt::new(&Scope::new(&arena, 1), config).map(drop).unwrap_err().to_string()
    };
    let base = gpt2_like();
    assert!(scope(&GptConfig { heads: 3, ..base.clone() }).contains("3 heads do not divide a width of 16"));
    assert!(scope(&GptConfig { heads: 4, kv_heads: 3, ..base.clone() }).contains("no multiple of 3"));
    assert!(scope(&GptConfig { layers: 0, ..base.clone() }).contains("layers 0"));
    let odd =
        GptConfig { heads: 2, kv_heads: 2, width: 6, positions: Positions::Rotary(1e4), ..base.clone() };
    assert!(scope(&odd).contains("even width, not 3"));
    let model = run(&base, Precision::f32(), Device::cpu(), Capture::Off, false);
    let long = Tensor::from_slice(&[0i32; CONTEXT + 1], [1, CONTEXT + 1], Device::cpu()).unwrap();
    let error = model.gpt.forward(&mut Cx::eval(), &long).unwrap_err().to_string();
    assert!(error.contains("9 positions, but the context is 8"), "{error}");
    let strange = Tensor::from_slice(&[VOCAB as i32], [1, 1], Device::cpu()).unwrap();
    let error = model.gpt.forward(&mut Cx::eval(), &strange).unwrap_err().to_string();
    assert!(error.contains("13"), "{error}");
}
