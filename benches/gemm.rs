//! The matrix products of one training step of an MLP 1000-500-250-100-1, on one and two threads. Each is checked against
//! sums in f64 before it is timed. Throughput is in multiply-adds.
//!
//! `cargo bench --no-default-features --bench gemm [-- FILTER]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warpsmith::cpu::gemm::{Accumulate, Activation, Epilogue, MatRef, gemm};
use warpsmith::cpu::par;
use warpsmith::cpu::simd::MatMut;

const DIMS: [usize; 5] = [1000, 500, 250, 100, 1];

/// Which product of a layer: y [b, out] = x · wᵀ, dx [b, in] = dy · w, dw [out, in] = dyᵀ · x.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Forward,
    InputGradient,
    WeightGradient,
}

/// The operands of one product; element (i, p) of A at `i · a_strides[0] + p · a_strides[1]`, of B likewise.
struct Case {
    shape: [usize; 3],
    a_strides: [usize; 2],
    b_strides: [usize; 2],
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn new(kind: Kind, batch: usize, inputs: usize, outputs: usize) -> Case {
        let (shape, a_strides, b_strides) = match kind {
            Kind::Forward => ([batch, inputs, outputs], [inputs, 1], [1, inputs]),
            Kind::InputGradient => ([batch, outputs, inputs], [outputs, 1], [inputs, 1]),
            Kind::WeightGradient => ([outputs, batch, inputs], [1, outputs], [inputs, 1]),
        };
        let [m, k, n] = shape;
        let value = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
        let bias = matches!(kind, Kind::Forward).then(|| (0..n).map(|i| value(i + 3)).collect());
        Case {
            shape,
            a_strides,
            b_strides,
            a: (0..m * k).map(value).collect(),
            b: (0..k * n).map(|i| value(i + 500)).collect(),
            bias,
        }
    }

    fn run(&self, c: &mut [f32]) {
        let [m, k, n] = self.shape;
        let a = MatRef::new(&self.a, m, k, self.a_strides[0], self.a_strides[1]);
        let b = MatRef::new(&self.b, k, n, self.b_strides[0], self.b_strides[1]);
        let activation = if self.bias.is_some() { Activation::Relu } else { Activation::Identity };
        let epilogue = Epilogue { bias: self.bias.as_deref(), activation, pre: None };
        gemm(a, b, MatMut::new(c, m, n, n), Accumulate::Write, epilogue);
    }

    /// Every seventh element against its sum in f64.
    fn check(&self) {
        let [m, k, n] = self.shape;
        let mut c = vec![f32::NAN; m * n];
        self.run(&mut c);
        for at in (0..m * n).step_by(7) {
            let (i, j) = (at / n, at % n);
            let term = |p: usize| {
                let a = self.a[i * self.a_strides[0] + p * self.a_strides[1]];
                a as f64 * self.b[p * self.b_strides[0] + j * self.b_strides[1]] as f64
            };
            let size: f64 = (0..k).map(|p| term(p).abs()).sum();
            let mut want: f64 = (0..k).map(term).sum();
            if let Some(bias) = &self.bias {
                want = (want + bias[j] as f64).max(0.0);
            }
            let bound = f32::EPSILON as f64 * (k + 2) as f64 * (size + 1.0);
            assert!(
                (c[at] as f64 - want).abs() <= bound,
                "{:?} at {i},{j}: {}, not {want}",
                self.shape,
                c[at]
            );
        }
    }
}

fn products(criterion: &mut Criterion) {
    for batch in [64, 256, 1024] {
        let mut group = criterion.benchmark_group(format!("gemm_f32/batch{batch}"));
        for (layer, pair) in DIMS.windows(2).enumerate() {
            for kind in [Kind::Forward, Kind::InputGradient, Kind::WeightGradient] {
                // Nobody needs the gradient of the network's input.
                if layer == 0 && matches!(kind, Kind::InputGradient) {
                    continue;
                }
                let case = Case::new(kind, batch, pair[0], pair[1]);
                case.check();
                let [m, k, n] = case.shape;
                group.throughput(Throughput::Elements((m * k * n) as u64));
                for threads in [1, 2] {
                    let id = BenchmarkId::new(format!("{kind:?}/{m}x{k}x{n}"), threads);
                    let mut c = vec![0f32; m * n];
                    group.bench_function(id, |bench| {
                        bench.iter_custom(|times| time_on(threads, times, || case.run(black_box(&mut c))));
                    });
                }
            }
        }
        group.finish();
    }
}

/// Times on the pool's own thread: from outside, waking it would be part of every figure.
fn time_on(threads: usize, times: u64, mut f: impl FnMut() + Send) -> Duration {
    let timed = || {
        let start = Instant::now();
        (0..times).for_each(|_| f());
        start.elapsed()
    };
    par::with_threads(threads, timed).expect("the system gives two threads")
}

criterion_group!(benches, products);
criterion_main!(benches);
