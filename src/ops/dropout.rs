//! Dropout by counter-based random numbers: the mask is a function of seed, call site, step and element number.
//!
//! So backward computes it again instead of keeping it, and splitting a batch over micro-batches or ranks changes no
//! number: each part says with `offset` which element of the whole it starts at.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::gpu::{adds, elementwise, present};
use super::unary::{source, target};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::elementwise::{Work, apply};
use crate::cpu::simd::vectorize;
use crate::device::{Stream, kernels};
use crate::dtype::Real;
use crate::random::Philox;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result};

super::family!(Dropout);

/// y = x · keep / (1 − p), where keep is 0 with probability p, else 1. Inputs: x, and the step as a 0-d i64 tensor.
///
/// keep of element i (in row-major order) is whether word `offset + i` of the Philox stream of (seed, site, step), as a
/// number in [0, 1), is at least p. Gradient: the same op on dy.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The probability of a zero, in [0, 1].
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// The number of this call among all that draw random numbers in a step.
    pub site: u32,
    /// The number, in the whole batch, of the first element of x.
    pub offset: u64,
}

/// Blocks of four words that are drawn together.
const BLOCKS: usize = 64;

impl Dropout {
    /// Words below this, of 24 bits, are dropped.
    fn threshold(&self) -> u32 {
        (self.p * f64::from(1u32 << 24)).ceil() as u32
    }

    /// What kept elements are multiplied by.
    fn scale(&self) -> f64 {
        if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 }
    }

    /// Multiplies element number `first` of x and those after it.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "indices over two arrays are what becomes vector code")]
    fn scaled<R: Real>(&self, philox: Philox, first: usize, x: &[R], y: &mut [R]) {
        let scale = R::of(self.scale());
        let threshold = self.threshold();
        let mut done = 0;
        while done < x.len() {
            let at = self.offset.wrapping_add((first + done) as u64);
            // By lane first: that is the order in which vectors compute.
            let mut lanes = [[0u32; BLOCKS]; 4];
            let block = at / 4;
            for i in 0..BLOCKS {
                let words = philox.at(block.wrapping_add(i as u64));
                for k in 0..4 {
                    lanes[k][i] = words[k];
                }
            }
            let mut factors = [R::ZERO; 4 * BLOCKS];
            for i in 0..BLOCKS {
                for k in 0..4 {
                    factors[4 * i + k] = if lanes[k][i] >> 8 >= threshold { scale } else { R::ZERO };
                }
            }
            let skipped = (at % 4) as usize;
            let count = (4 * BLOCKS - skipped).min(x.len() - done);
            let factors = &factors[skipped..skipped + count];
            let (x, y) = (&x[done..done + count], &mut y[done..done + count]);
            for ((y, &x), &factor) in y.iter_mut().zip(x).zip(factors) {
                *y = x * factor;
            }
            done += count;
        }
    }
}

impl Op for Dropout {
    const NAME: &'static str = "dropout";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, step) = (inputs[0], inputs[1]);
        if !(0.0..=1.0).contains(&self.p) {
            let message = format!("the probability must lie in [0, 1], found {}", self.p);
            return Err(Error::argument(message).with_op(Self::NAME));
        }
        if !x.dtype.is_float() {
            return Err(super::unary::refuse(Self::NAME, x.dtype, false));
        }
        if step.dtype != DType::I64 || step.shape.rank() != 0 {
            return Err(Error::shape(Self::NAME, format!("the step must be a 0-d i64 tensor, not {step}")));
        }
        Ok(Plan::one(x))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        fn body<R: Real + Work>(op: Dropout, philox: Philox, x: &View<'_>, y: &mut Out<'_>) {
            apply(target(y), [source(x)], &move |first, [x]: [&[R]; 1], y: &mut [R]| {
                vectorize(
                    #[inline(always)]
                    || op.scaled(philox, first, x, y),
                )
            });
        }
        let philox = Philox::for_step(self.seed, self.site, inputs[1].data::<i64>()[0] as u32);
        match inputs[0].dtype() {
            DType::F64 => body::<f64>(*self, philox, &inputs[0], &mut outputs[0]),
            _ => body::<f32>(*self, philox, &inputs[0], &mut outputs[0]),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (Dropout { seed, site, offset, .. }, y) = (*self, &mut outputs[0]);
        let (step, add) = (inputs[1].src(), adds(y));
        let (threshold, scale) = (self.threshold(), self.scale() as f32);
        let mut done = offset;
        elementwise(y, [Some(&inputs[0]), None, None], &mut |piece| {
            let (dims, x_by, n, wide, x) =
                (piece.dims, piece.by[0], piece.n, piece.wide, present(&piece, 0)?);
            let (y, offset) = (piece.y(), done);
            done = done.wrapping_add(n);
            kernels::dropout::Dropout {
                wide,
                x,
                step,
                y,
                dims,
                x_by,
                n,
                add,
                seed,
                site,
                offset,
                threshold,
                scale,
            }
            .launch(stream)
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let step = cx.input(1)?;
        dys[0].iter().try_for_each(|dy| cx.run(*self, &[dy, &step], &[0]))
    }

    fn cases() -> Cases<Self> {
        let case = |(p, offset): (f64, u64), shape: &[usize]| Case {
            op: Dropout { p, seed: 0x0123_4567_89ab_cdef, site: 3, offset },
            inputs: vec![
                Arg::new(shape, Values::Normal(1.0)),
                Arg::typed(&[], Values::Exactly(vec![7.0]), DType::I64),
            ],
        };
        let ways = [(0.0, 0), (0.5, 0), (0.3, 5), (1.0, 0), (0.9, (1 << 34) + 2)];
        let mut list: Vec<_> = ways.into_iter().map(|w| case(w, &[33])).collect();
        list.extend(super::cases::SHAPES.iter().map(|s| case((0.25, 1), s)));
        list.push(case((0.1, 3), &[3, 600]));
        let tolerance = Tolerance::Ulp(2.0, "1 / (1 - p) is rounded, then the product");
        Cases { dtypes: &DType::FLOATS, tolerance, list }
    }
}

impl Tensor {
    /// Zeroes elements at random and scales the others, as `op` says at `step` (a 0-d i64 tensor); see [`Dropout`].
    #[track_caller]
    pub fn dropout(&self, op: Dropout, step: &Tensor) -> Result<Tensor> {
        run1(op, &[self, step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ErrorKind};

    fn step(n: i64) -> Tensor {
        Tensor::scalar(n, Device::Cpu).unwrap()
    }

    #[test]
    fn the_mask_is_the_stream_of_its_counter_and_parts_equal_the_whole() {
        let n = 70_001;
        let x = Tensor::ones(n, DType::F32, Device::Cpu).unwrap();
        let op = Dropout { p: 0.3, seed: 11, site: 2, offset: 0 };
        let y = x.dropout(op, &step(5)).unwrap().to_vec::<f32>().unwrap();
        let philox = Philox::for_step(11, 2, 5);
        for (i, &y) in y.iter().enumerate() {
            let keep = f64::from(philox.uniform_f32_at(i as u64)) >= 0.3;
            assert_eq!(y, if keep { (1.0 / 0.7) as f32 } else { 0.0 }, "{i}");
        }
        let share = y.iter().filter(|&&y| y == 0.0).count() as f64 / n as f64;
        assert!((share - 0.3).abs() < 0.01, "{share}");
        for at in [1, 6, 40_003] {
            let part = x.narrow(0, 0, n - at).unwrap().dropout(Dropout { offset: at as u64, ..op }, &step(5));
            assert_eq!(part.unwrap().to_vec::<f32>().unwrap(), y[at..]);
        }
        assert_ne!(x.dropout(op, &step(6)).unwrap().to_vec::<f32>().unwrap(), y);
    }

    #[test]
    fn the_ends_are_identity_and_zero_and_beyond_is_an_error() {
        let x = Tensor::from_slice(&[1.5f32, -2.0, 3.0], 3, Device::Cpu).unwrap();
        let with = |p| x.dropout(Dropout { p, seed: 1, site: 0, offset: 0 }, &step(0));
        assert_eq!(with(0.0).unwrap().to_vec::<f32>().unwrap(), [1.5, -2.0, 3.0]);
        assert_eq!(with(1.0).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0, 0.0]);
        for p in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(with(p).unwrap_err().kind(), ErrorKind::Argument);
        }
    }
}
