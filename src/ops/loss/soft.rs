//! Cross entropy of logits and a distribution over the classes (soft targets).
//!
//! Per row, with m = max x, s = Σ exp(x − m) and smoothed targets u_c = w_c · ((1 − ε) · t_c + ε/C):
//! `loss = ln s · Σ u_c − Σ u_c · (x_c − m)`. The targets need not sum to 1, as in PyTorch.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::cross_entropy::{SUM, check_logits};
use super::gpu::{RowPlan, Sums, dy_of};
use super::rows::{Rows, dy_rows, put_row, reduce_rows, row_sum, softmax_stats, stats_meta, weights};
use super::{GRAIN, Reduction, no_gradient, same_float};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::device::Stream;
use crate::device::kernels::loss as kernels;
use crate::dtype::{Element, Float, Real};
use crate::ops::gpu::{packed, src};
use crate::ops::{Arg, Case, Cases, Op, Plan, Values};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// Cross entropy of logits `[.., C]` and probabilities `[.., C]`, with a weight `[C]` as third input if `weighted`.
///
/// Outputs: the loss, and `[.., 2]` in f64 with the maximum m of each row of logits and `Σ exp(x − m)`.
#[derive(Clone, Copy, Debug)]
pub struct SoftCrossEntropyLoss {
    /// Whether there is a weight.
    pub weighted: bool,
    /// In [0, 1].
    pub label_smoothing: f64,
    /// What becomes of the rows' losses.
    pub reduction: Reduction,
}

/// The gradients of [`SoftCrossEntropyLoss`] by logits and target. Inputs: dy, logits, the statistics, target, weight.
#[derive(Clone, Copy, Debug)]
pub struct SoftCrossEntropyLossBackward {
    /// The arguments of the loss.
    pub loss: SoftCrossEntropyLoss,
}

impl SoftCrossEntropyLoss {
    fn check(&self, op: &'static str, logits: Meta, target: Meta, rest: &[Meta]) -> Result<()> {
        if rest.len() != usize::from(self.weighted) {
            return Err(Error::argument(format!(
                "{} weights given to an op with weighted {}",
                rest.len(),
                self.weighted
            )));
        }
        check_logits(op, logits, rest.first(), self.label_smoothing, None)?;
        same_float(op, logits.dtype, &[("target", target.dtype)])?;
        if target.shape != logits.shape {
            let message = format!("the target is {} but the logits are {}", target.shape, logits.shape);
            return Err(Error::shape(op, message));
        }
        Ok(())
    }

    /// `1 − ε` and `ε/C`.
    fn smoothing<A: Real>(&self, classes: usize) -> (A, A) {
        (A::of(1.0 - self.label_smoothing), A::of(self.label_smoothing / classes as f64))
    }

    fn body<T: Float>(&self, inputs: &[View<'_>], outs: &mut [Out<'_>]) -> Result<()> {
        let shape = inputs[0].shape();
        let lead = shape.without(shape.rank() - 1);
        let (classes, count) = (shape[shape.rank() - 1], lead.numel());
        let (rows, targets) = (Rows::<T>::new(inputs[0]), Rows::<T>::new(inputs[1]));
        let weight = inputs.get(2).map(|w| weights::<T>(*w));
        let (rest, even) = self.smoothing::<T::Acc>(classes);
        let loss_of = |x: &[T::Acc], t: &[T::Acc], stats: &mut [f64]| {
            let t = &t[..x.len()];
            vectorize(
                #[inline(always)]
                || {
                    let (max, sum) = softmax_stats(x, T::Acc::ONE);
                    (stats[0], stats[1]) = (max.to_f64(), sum.to_f64());
                    let (mass, dot) = match weight.as_deref() {
                        None => (
                            row_sum(
                                x,
                                #[inline(always)]
                                |c, _| rest * t[c] + even,
                            ),
                            row_sum(
                                x,
                                #[inline(always)]
                                |c, x| (rest * t[c] + even) * (x - max),
                            ),
                        ),
                        Some(w) => (
                            row_sum(
                                x,
                                #[inline(always)]
                                |c, _| w[c] * (rest * t[c] + even),
                            ),
                            row_sum(
                                x,
                                #[inline(always)]
                                |c, x| w[c] * (rest * t[c] + even) * (x - max),
                            ),
                        ),
                    };
                    sum.ln() * mass - dot
                },
            )
        };
        let [loss, stats] = outs else {
            return Err(Error::internal("cross entropy with soft targets has two outputs"));
        };
        let by = self.reduction.divisor(count, shape);
        reduce_rows::<T, 2>(self.reduction, by, count, classes, loss, stats, |range, put| {
            let (mut x, mut t) = (rows.buffer(), targets.buffer());
            for r in range {
                put(&mut |stats| loss_of(rows.load(r, &mut x), targets.load(r, &mut t), stats));
            }
        });
        Ok(())
    }
}

impl Op for SoftCrossEntropyLoss {
    const NAME: &'static str = "soft_cross_entropy";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        let saves = Saves::inputs(&[0, 1]).and_outputs(&[1]);
        if self.weighted { saves.and_inputs(&[2]) } else { saves }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let logits = inputs[0];
        self.check(Self::NAME, logits, inputs[1], &inputs[2..])?;
        let lead = logits.shape.without(logits.shape.rank() - 1);
        let loss = logits.with_shape(self.reduction.shape(lead));
        Ok(Plan { outputs: vec![loss, stats_meta(logits, 2)], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::new(inputs[0].shape());
        let (x, target) = (s.contiguous(&inputs[0])?, s.contiguous(&inputs[1])?);
        let weight = packed(s, inputs.get(2))?;
        let [loss, stats] = outputs else {
            return Err(Error::internal("cross entropy with soft targets has two outputs"));
        };
        let by = self.reduction.divisor(plan.rows as usize, inputs[0].shape());
        let whole = self.reduction != Reduction::None;
        let mut sums = Sums::new(s, plan.blocks())?;
        let (each, one, parts) = match whole {
            false => (Some(loss.dst()), None, None),
            true => {
                let (one, parts) = sums.split(loss.dst());
                (None, one, parts)
            }
        };
        let (rest, even) = self.smoothing(plan.classes as usize);
        kernels::SoftCrossEntropy {
            wide: plan.wide,
            x: x.src(),
            target: target.src(),
            weight: src(&weight),
            each,
            loss: one,
            parts,
            stats: stats.dst(),
            rows: plan.rows,
            classes: plan.classes,
            lanes: plan.lanes,
            rest,
            even,
            by,
            flat: plan.flat(x.src().dtype(), &[x.src().address(), target.src().address()]),
        }
        .launch(s)?;
        if whole { sums.finish(s, plan.blocks(), loss.dst(), None, by, 0) } else { Ok(()) }
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if self.weighted && cx.needs(2) {
            return Err(no_gradient(Self::NAME, "weight"));
        }
        let mut inputs = vec![dy.clone(), cx.input(0)?, cx.output(1)?, cx.input(1)?];
        if self.weighted {
            inputs.push(cx.input(2)?);
        }
        let op = SoftCrossEntropyLossBackward { loss: *self };
        cx.run(op, &inputs.iter().collect::<Vec<_>>(), &[0, 1])
    }

    fn cases() -> Cases<Self> {
        let list = cases(|loss, shape| {
            let mut inputs =
                vec![Arg::new(shape, Values::Normal(3.0)), Arg::new(shape, Values::Distribution)];
            if loss.weighted {
                inputs.push(Arg::constant(&shape[shape.len() - 1..], Values::Uniform(0.5, 2.0)));
            }
            Case { op: loss, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list }
    }
}

/// Cases over the arguments and a few shapes of logits.
fn cases<C>(case: impl Fn(SoftCrossEntropyLoss, &[usize]) -> C) -> Vec<C> {
    let shapes: [&[usize]; 7] = [&[5], &[1, 1], &[0, 3], &[7, 2], &[5, 13], &[2, 3, 17], &[2, 1025]];
    let mut list = Vec::new();
    for reduction in Reduction::ALL {
        for (weighted, label_smoothing) in [(false, 0.0), (true, 0.0), (true, 0.25)] {
            let loss = SoftCrossEntropyLoss { weighted, label_smoothing, reduction };
            list.extend(shapes.iter().map(|shape| case(loss, shape)));
        }
    }
    list
}

impl SoftCrossEntropyLossBackward {
    fn body<T: Float>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let [dy, logits, stats, target] = inputs[..4] else {
            return Err(Error::internal("the gradient of cross entropy with soft targets needs four inputs"));
        };
        let shape = logits.shape();
        if shape.numel() == 0 {
            return Ok(());
        }
        let lead = shape.without(shape.rank() - 1);
        let classes = shape[shape.rank() - 1];
        let (rows, targets, stats) =
            (Rows::<T>::new(logits), Rows::<T>::new(target), Rows::<f64>::new(stats));
        let dy = dy_rows::<T>(dy, lead)?;
        let ones = || vec![T::Acc::ONE; classes];
        let weight = inputs.get(4).map_or_else(ones, |w| weights::<T>(*w));
        let (rest, even) = self.loss.smoothing::<T::Acc>(classes);
        let divisor = T::Acc::of(self.loss.reduction.divisor(lead.numel(), shape));
        let per = (GRAIN / classes).max(1);
        for (k, out) in outputs.iter_mut().enumerate().filter(|(_, out)| out.wanted()) {
            let mode = out.mode();
            par::for_each_chunk_mut(out.slice::<T>(), per * classes, |c, chunk| {
                let (mut bx, mut bt, mut bs, mut bg) =
                    (rows.buffer(), targets.buffer(), stats.buffer(), dy.buffer());
                for (i, out) in chunk.chunks_exact_mut(classes).enumerate() {
                    let r = c * per + i;
                    let stats = stats.load(r, &mut bs);
                    let (max, sum) = (T::Acc::of(stats[0]), T::Acc::of(stats[1]));
                    let g = dy.load(r, &mut bg)[0] / divisor;
                    let (x, w) = (&rows.load(r, &mut bx)[..out.len()], &weight[..out.len()]);
                    if k == 1 {
                        let log = sum.ln();
                        vectorize(
                            #[inline(always)]
                            || {
                                put_row(
                                    out,
                                    mode,
                                    #[inline(always)]
                                    |c| g * rest * w[c] * (log - (x[c] - max)),
                                )
                            },
                        );
                        continue;
                    }
                    let t = &targets.load(r, &mut bt)[..out.len()];
                    vectorize(
                        #[inline(always)]
                        || {
                            let mass = row_sum(
                                t,
                                #[inline(always)]
                                |c, t| w[c] * (rest * t + even),
                            );
                            let factor = g * mass / sum;
                            put_row(
                                out,
                                mode,
                                #[inline(always)]
                                |c| (x[c] - max).exp() * factor - g * w[c] * (rest * t[c] + even),
                            );
                        },
                    );
                }
            });
        }
        Ok(())
    }
}

impl Op for SoftCrossEntropyLossBackward {
    const NAME: &'static str = "soft_cross_entropy_backward";
    const INPUTS: RangeInclusive<usize> = 4..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, logits) = (inputs[0], inputs[1]);
        self.loss.check(Self::NAME, logits, inputs[3], &inputs[4..])?;
        let lead = logits.shape.without(logits.shape.rank() - 1);
        let fits =
            dy == logits.with_shape(self.loss.reduction.shape(lead)) && inputs[2] == stats_meta(logits, 2);
        if !fits {
            let message = format!("dy {dy} and the statistics {} do not fit the logits {logits}", inputs[2]);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan { outputs: vec![logits, logits], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[1].dtype(), T => self.body::<T>(inputs, outputs),
            else crate::ops::index::float_dtype(Self::NAME, inputs[1].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::new(inputs[1].shape());
        let (dy, dy_step) = dy_of(s, &inputs[0], self.loss.reduction)?;
        let (x, stats) = (s.contiguous(&inputs[1])?, s.contiguous(&inputs[2])?);
        let (target, weight) = (s.contiguous(&inputs[3])?, packed(s, inputs.get(4))?);
        let [add_x, add_t] = [0, 1].map(|k: usize| u32::from(outputs[k].mode() == Mode::Accumulate));
        let [dx, dt] = outputs else {
            return Err(Error::internal("the gradient of cross entropy with soft targets has two outputs"));
        };
        let (dx, dt) = (dx.dst_if_wanted(), dt.dst_if_wanted());
        let mut addresses = vec![x.src().address(), target.src().address()];
        addresses.extend([&dx, &dt].iter().filter_map(|d| d.as_ref().map(|d| d.address())));
        let (rest, even) = self.loss.smoothing(plan.classes as usize);
        kernels::SoftCrossEntropyBackward {
            wide: plan.wide,
            dy: dy.src(),
            x: x.src(),
            stats: stats.src(),
            target: target.src(),
            weight: src(&weight),
            dx,
            dt,
            rows: plan.rows,
            classes: plan.classes,
            lanes: plan.lanes,
            dy_step,
            rest,
            even,
            by: self.loss.reduction.divisor(plan.rows as usize, inputs[1].shape()) as f32,
            flat: plan.flat(x.src().dtype(), &addresses),
            add_x,
            add_t,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        let list = cases(|loss, shape| {
            let full = Shape::from_dims(shape);
            let last = shape.len() - 1;
            let mut inputs = vec![
                Arg::constant(&loss.reduction.shape(full.without(last)), Values::Normal(1.0)),
                Arg::constant(shape, Values::Normal(1.0)),
                Arg::typed(&full.with(last, 2), Values::Uniform(4.0, 6.0), DType::F64),
                Arg::constant(shape, Values::Distribution),
            ];
            if loss.weighted {
                inputs.push(Arg::constant(&shape[last..], Values::Uniform(0.5, 2.0)));
            }
            Case { op: SoftCrossEntropyLossBackward { loss }, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list }
    }
}
