//! What the tests over all ops share: seeded values, tensors in seven layouts, comparison under a computed tolerance.

#![allow(dead_code)] // Each test binary uses a part.

pub mod compare;
pub mod layouts;

use std::any::Any;
use std::fmt::Debug;
use std::io::Write as _;

use warpsmith::dtype::Element as _;
use warpsmith::ops::{self, Arg, Case, Op, Tolerance, Values, Visitor};
use warpsmith::tensor::Mode;
use warpsmith::{DType, Device, Result, Tensor, dispatch};

pub const CPU: Device = Device::Cpu;

/// SplitMix64: the whole suite draws from it, seeded by what is drawn, so that one failing case replays alone.
pub struct Rng(u64);

impl Rng {
    /// A generator for the thing named by `parts`.
    pub fn of(parts: &[&dyn std::fmt::Display]) -> Rng {
        // FNV-1a over the text of the parts.
        let text = parts.iter().map(|p| format!("{p}/")).collect::<String>();
        Rng(text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        r * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|i| items.swap(i, self.below(i + 1)));
    }
}

/// A tensor as the reference sees it: every value a number of `dtype`, in row-major order.
#[derive(Clone, Debug)]
pub struct Value {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub data: Vec<f64>,
}

impl Value {
    pub fn numel(&self) -> usize {
        self.data.len()
    }

    /// As a contiguous tensor.
    pub fn tensor(&self) -> Tensor {
        tensor(&self.data, &self.shape, self.dtype)
    }
}

/// A contiguous tensor of `data` converted to `dtype`.
pub fn tensor(data: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    dispatch!(dtype, T => {
        Tensor::from_slice(&data.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>(), shape, CPU).unwrap()
    })
}

/// `data` as a tensor of `dtype` would hold it.
pub fn rounded(data: Vec<f64>, dtype: DType) -> Vec<f64> {
    data.into_iter().map(|v| crate::reference::round::to(dtype, v)).collect()
}

/// The bytes of the elements in row-major order.
pub fn bits(t: &Tensor) -> Vec<u8> {
    dispatch!(t.dtype(), T => bytemuck::cast_slice::<T, u8>(&t.to_vec::<T>().unwrap()).to_vec())
}

/// The values of one input, not yet rounded.
pub fn draw(values: &Values, shape: &[usize], rng: &mut Rng) -> Vec<f64> {
    let n: usize = shape.iter().product();
    let mut fill = |f: &mut dyn FnMut(&mut Rng) -> f64| (0..n).map(|_| f(rng)).collect::<Vec<f64>>();
    match values {
        Values::Normal(deviation) => fill(&mut |r| r.normal() * deviation),
        Values::Uniform(low, high) => fill(&mut |r| low + r.uniform() * (high - low)),
        Values::AwayFrom { points, gap } => fill(&mut |r| {
            loop {
                let v = r.normal();
                if points.iter().all(|p| (v - p).abs() >= *gap) {
                    break v;
                }
            }
        }),
        Values::Distinct(gap) => {
            let mut all: Vec<f64> = (0..n).map(|i| (i as f64 - n as f64 / 2.0) * gap).collect();
            rng.shuffle(&mut all);
            all
        }
        Values::Integers(low, high) => {
            fill(&mut |r| (low + r.below((high - low) as usize + 1) as i64) as f64)
        }
        Values::Index(n) => fill(&mut |r| r.below(*n) as f64),
        Values::OneOf(set) => fill(&mut |r| set[r.below(set.len())]),
        Values::Distribution => {
            let row = shape.last().copied().unwrap_or(1).max(1);
            let mut all = fill(&mut |r| 0.05 + r.uniform());
            for row in all.chunks_mut(row) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
            all
        }
        Values::Exactly(list) => list.iter().copied().cycle().take(n).collect(),
    }
}

/// An op without its type: the checks are compiled once and not once an op, which took many minutes.
pub trait AnyOp: Debug + Send + Sync {
    fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>>;
    fn run_into(&self, inputs: &[&Tensor], outputs: &[(&Tensor, Mode)]) -> Result<()>;
    fn as_any(&self) -> &dyn Any;
}

impl<O: Op> AnyOp for O {
    fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        ops::run(*self, inputs)
    }
    fn run_into(&self, inputs: &[&Tensor], outputs: &[(&Tensor, Mode)]) -> Result<()> {
        ops::run_into(*self, inputs, outputs)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One way to call an op.
pub struct AnyCase {
    pub op: Box<dyn AnyOp>,
    pub inputs: Vec<Arg>,
}

impl AnyCase {
    fn of<O: Op>(case: Case<O>) -> AnyCase {
        AnyCase { op: Box::new(case.op), inputs: case.inputs }
    }
}

/// An op under test.
pub struct Subject {
    pub name: &'static str,
    pub accumulates: bool,
    /// How many of the last outputs are statistics for backward.
    pub statistics: usize,
    pub dtypes: &'static [DType],
    pub tolerance: Tolerance,
    pub cases: Vec<AnyCase>,
    pub large: Vec<AnyCase>,
}

/// Every op of the crate.
pub fn subjects() -> Vec<Subject> {
    struct Collect(Vec<Subject>);
    impl Visitor for Collect {
        fn visit<O: Op>(&mut self) {
            let cases = O::cases();
            self.0.push(Subject {
                name: O::NAME,
                accumulates: O::ACCUMULATES,
                statistics: O::STATISTICS,
                dtypes: cases.dtypes,
                tolerance: cases.tolerance,
                cases: cases.list.into_iter().map(AnyCase::of).collect(),
                large: crate::reference::large::cases::<O>().into_iter().map(AnyCase::of).collect(),
            });
        }
    }
    let mut collect = Collect(Vec::new());
    ops::visit_all(&mut collect);
    collect.0
}

/// The inputs of a case for one dtype; the same values for every dtype, rounded to it.
pub fn inputs_of(name: &str, args: &[Arg], number: usize, dtype: DType) -> Vec<Value> {
    let one = |(i, arg): (usize, &Arg)| {
        let mut rng = Rng::of(&[&name, &number, &i]);
        let dtype = arg.dtype.unwrap_or(dtype);
        Value {
            shape: arg.shape.clone(),
            dtype,
            data: rounded(draw(&arg.values, &arg.shape, &mut rng), dtype),
        }
    };
    args.iter().enumerate().map(one).collect()
}

/// Runs `f`, turning a panic into an error text.
pub fn guarded<R>(f: impl FnOnce() -> Result<R>) -> std::result::Result<R, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(Ok(r)) => Ok(r),
        Ok(Err(e)) => Err(format!("error: {e}")),
        Err(panic) => Err(format!("panic: {}", text_of(&*panic))),
    }
}

fn text_of(panic: &dyn Any) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

/// Collects what was checked and what failed, by op.
pub struct Report {
    title: &'static str,
    rows: Vec<(&'static str, usize, usize)>,
    failures: Vec<String>,
    /// `WARPSMITH_CASE=op[:case[:dtype[:layout]]]`: only what matches is run.
    filter: Option<String>,
}

impl Report {
    pub fn new(title: &'static str) -> Report {
        Report { title, rows: Vec::new(), failures: Vec::new(), filter: std::env::var("WARPSMITH_CASE").ok() }
    }

    /// Starts the row of an op; false if the filter leaves it out.
    pub fn op(&mut self, name: &'static str) -> bool {
        let wanted = self.filter.as_ref().is_none_or(|f| f.split(':').next() == Some(name));
        if wanted {
            self.rows.push((name, 0, 0));
        }
        wanted
    }

    /// Whether the filter lets `id` (`op:case:dtype:layout`, or a prefix) through.
    pub fn wants(&self, id: &str) -> bool {
        let Some(filter) = &self.filter else { return true };
        id.split(':').zip(filter.split(':')).all(|(a, b)| a == b)
    }

    /// Records one comparison of the current op.
    pub fn check(&mut self, id: &str, outcome: std::result::Result<(), String>) {
        let Some(row) = self.rows.last_mut() else { return };
        row.1 += 1;
        if let Err(why) = outcome {
            row.2 += 1;
            // The first few of an op tell; the rest would bury those of other ops.
            if row.2 <= 6 {
                self.failures.push(format!(
                    "{id}: {why}\n    again: WARPSMITH_CASE={id} cargo test --test {}",
                    env!("CARGO_CRATE_NAME")
                ));
            }
        }
    }

    /// Prints the counts past the test runner's capture, and fails if anything failed or less than `floor` comparisons
    /// were made (a harness that silently checks nothing must not pass).
    pub fn finish(self, floor: usize) {
        let (ops, total) = (self.rows.len(), self.rows.iter().map(|r| r.1).sum::<usize>());
        let failed: usize = self.rows.iter().map(|r| r.2).sum();
        let mut text = format!("{}: {ops} ops, {total} comparisons, {failed} failed\n", self.title);
        if failed > 0 || std::env::var_os("WARPSMITH_TABLE").is_some() {
            for (name, checks, failed) in &self.rows {
                text += &format!("    {name:<28} {checks:>7} comparisons {failed:>6} failed\n");
            }
        }
        // Not eprint!: that is captured while the test passes.
        let _ = std::io::stderr().write_all(text.as_bytes());
        assert!(failed == 0, "{failed} of {total} comparisons failed\n{}", self.failures.join("\n"));
        assert!(
            self.filter.is_some() || total >= floor,
            "only {total} comparisons were made; there were at least {floor}"
        );
    }
}
