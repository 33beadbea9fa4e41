//! The op cases run on any device and compared with an independent reference in double-double arithmetic: what the
//! conformance tests and `warpsmith selftest` share.
//!
//! Here: seeded values, tensors on a device, the list of all ops. [`layouts`] puts a tensor seven ways into memory,
//! [`reference`](mod@reference) computes what must come out and knows nothing of the op bodies, [`specials`] puts NaN and the like
//! among its values, [`compare`] judges under a computed tolerance, [`checks`] runs one op and says what is wrong, [`run()`] does it for all and reports.

#![forbid(unsafe_code)]

pub mod checks;
pub mod compare;
pub mod layouts;
pub mod reference;
mod run;
pub mod specials;

use std::any::Any;
use std::fmt::Debug;

use crate::dtype::Element as _;
use crate::ops::{self, Arg, Case, Op, Tolerance, Values, Visitor};
use crate::tensor::Mode;
use crate::{DType, Device, Result, Tensor, dispatch};

pub use run::{Failure, Options, Report, run};

/// SplitMix64: the whole suite draws from it, seeded by what is drawn, so that one failing case replays alone.
pub struct Rng(u64);

impl Rng {
    /// A generator for the thing named by `parts`.
    pub fn of(parts: &[&dyn std::fmt::Display]) -> Rng {
        // FNV-1a over the text of the parts.
        let text = parts.iter().map(|p| format!("{p}/")).collect::<String>();
        Rng(text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n.max(1) as u64) as usize
    }

    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
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

    /// As a contiguous tensor of the host's.
    pub fn tensor(&self) -> Tensor {
        self.tensor_on(Device::Cpu)
    }

    /// As a contiguous tensor.
    pub fn tensor_on(&self, device: Device) -> Tensor {
        tensor(&self.data, &self.shape, self.dtype, device)
    }
}

/// A contiguous tensor of `data` converted to `dtype`.
pub fn tensor(data: &[f64], shape: &[usize], dtype: DType, device: Device) -> Tensor {
    dispatch!(dtype, T => {
        Tensor::from_slice(&data.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>(), shape, device).unwrap()
    })
}

/// `data` as a tensor of `dtype` would hold it.
pub fn rounded(data: Vec<f64>, dtype: DType) -> Vec<f64> {
    data.into_iter().map(|v| reference::round::to(dtype, v)).collect()
}

/// The bytes of the elements in row-major order, all NaN alike: which of two NaN a processor passes on is no matter of ours.
pub fn bits(t: &Tensor) -> Vec<u8> {
    dispatch!(t.dtype(), T => {
        let mut values = t.to_vec::<T>().unwrap();
        values.iter_mut().filter(|v| v.partial_cmp(v).is_none()).for_each(|v| *v = T::from_f64(f64::NAN));
        bytemuck::cast_slice::<T, u8>(&values).to_vec()
    })
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
                large: reference::large::cases::<O>().into_iter().map(AnyCase::of).collect(),
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
