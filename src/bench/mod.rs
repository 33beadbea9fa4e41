//! Measuring: the training step and single ops, each with a check of what it computed; and judging the machine.
//!
//! Figures are medians over many calls after a warm-up. Inputs are synthetic and fixed by a seed. A figure without a right
//! result is worthless, so every bench fails (kind `Diverged`, exit code 1) when its result is not what it must be.

#![forbid(unsafe_code)]

mod doctor;
mod kernels;
mod ops;
mod step;

use std::time::{Duration, Instant};

use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

pub use doctor::{Check, Doctor, Status};
pub use kernels::{KernelReport, KernelRow, KernelsBench};
pub use ops::{OpRow, OpsBench};
pub use step::{StepBench, StepRow};

/// Times of one thing, sorted, in seconds.
struct Times(Vec<f64>);

impl Times {
    /// Calls `f` at least `least` times and for at least `time`; short calls are timed in groups of about half a
    /// millisecond. Time per call.
    fn of_calls(least: usize, time: Duration, mut f: impl FnMut() -> Result<()>) -> Result<Times> {
        for _ in 0..3 {
            f()?;
        }
        let start = Instant::now();
        f()?;
        let once = start.elapsed().as_secs_f64().max(1e-7);
        let group = (5e-4 / once).round().max(1.0) as usize;
        let (mut times, end) = (Vec::new(), Instant::now() + time);
        while times.len() < least || Instant::now() < end {
            let start = Instant::now();
            for _ in 0..group {
                f()?;
            }
            times.push(start.elapsed().as_secs_f64() / group as f64);
        }
        Ok(Times::sorted(times))
    }

    fn sorted(mut times: Vec<f64>) -> Times {
        times.sort_by(f64::total_cmp);
        Times(times)
    }

    /// The middle one, or the mean of the two in the middle.
    fn median(&self) -> f64 {
        let n = self.0.len();
        (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0
    }

    fn quantile(&self, share: f64) -> f64 {
        self.0[((self.0.len() as f64 * share) as usize).min(self.0.len() - 1)]
    }
}

/// The error of a bench whose result is wrong.
fn wrong(what: &str, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Diverged, format!("the check of {what} failed: {message}"))
}

/// `n` standard normal numbers, the same for the same `seed` and `stream`.
fn normal(n: usize, seed: u64, stream: u64) -> Vec<f32> {
    let random = Philox::new(seed, stream);
    (0..n.div_ceil(2) as u64).flat_map(|i| random.normal_pair_at(i)).take(n).map(|v| v as f32).collect()
}

/// `n` whole numbers below `bound`.
fn below(n: usize, bound: usize, seed: u64, stream: u64) -> Vec<i64> {
    let random = Philox::new(seed, stream);
    (0..n as u64).map(|i| (random.uniform_f64_at(i) * bound as f64) as i64).collect()
}

/// The dense peak of a GPU in floating-point operations a second, by its name and the type computed in: tensor cores for 16-bit
/// types, ordinary ones for f32. As NVIDIA's data sheets have it, without sparsity; nothing for GPUs and types not listed.
pub fn peak_flops(name: &str, dtype: crate::DType) -> Option<f64> {
    /// What the name contains; peaks in TFLOP/s of 16-bit and f32. More special names first.
    const PEAKS: [(&str, f64, f64); 4] =
        [("H100 PCIe", 756.0, 51.0), ("H100", 989.4, 67.0), ("H200", 989.4, 67.0), ("A100", 312.0, 19.5)];
    let (_, half, single) = PEAKS.iter().find(|(part, ..)| name.contains(part))?;
    match dtype {
        crate::DType::BF16 | crate::DType::F16 => Some(half * 1e12),
        crate::DType::F32 => Some(single * 1e12),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        let times = Times::sorted(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((times.median(), times.quantile(0.9), times.quantile(0.0)), (2.5, 10.0, 1.0));
        assert_eq!(Times::sorted(vec![7.0]).median(), 7.0);
    }

    #[test]
    fn synthetic_numbers_are_fixed_and_in_range() {
        assert_eq!(normal(5, 1, 2), normal(6, 1, 2)[..5]);
        assert_ne!(normal(4, 1, 2), normal(4, 2, 2));
        assert!(below(100, 7, 0, 0).iter().all(|v| (0..7).contains(v)));
    }
}
