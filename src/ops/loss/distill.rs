//! Distillation: the divergence of a student's distribution from a teacher's, both softened by a temperature.
//!
//! Fused, because the composite of two softmaxes and a divergence reads and writes five tensors of the logits' size.
//! Per row with a = student/T, b = teacher/T and their maxima m and sums s: `loss = T² · (Σ q · ((b − m_b) − (a − m_a)) −
//! ln s_b + ln s_a)`, where q = softmax(b). Summed over rows and divided by the size of the first dimension.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::cross_entropy::{SUM, check_logits};
use super::gpu::{RowPlan, Sums};
use super::rows::{Rows, put_row, reduce_rows, row_sum, softmax_stats, stats_meta};
use super::{GRAIN, Reduction, no_gradient, same_float};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::device::Stream;
use crate::device::kernels::loss as kernels;
use crate::dtype::{Element, Float, Real};
use crate::ops::{Arg, Case, Cases, Op, Plan, Values, run};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// `KL(softmax(teacher/T) ‖ softmax(student/T)) · T²` for logits `[.., C]`, divided by the size of the first dimension.
///
/// Outputs: the loss, and `[.., 4]` in f64 with the maximum and the sum of exponentials of each row of student and teacher.
#[derive(Clone, Copy, Debug)]
pub struct DistillationLoss {
    /// T, above 0.
    pub temperature: f64,
}

/// The gradient of [`DistillationLoss`] by the student: `T · (softmax(student/T) − softmax(teacher/T))`, divided alike.
/// Inputs: dy, student, teacher, the statistics.
#[derive(Clone, Copy, Debug)]
pub struct DistillationLossBackward {
    /// T, above 0.
    pub temperature: f64,
}

/// Checks temperature and logits.
fn check(op: &'static str, temperature: f64, student: Meta, teacher: Meta) -> Result<()> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::argument(format!(
            "the temperature must be above 0 and finite, found {temperature}"
        )));
    }
    check_logits(op, student, None, 0.0, None)?;
    same_float(op, student.dtype, &[("teacher", teacher.dtype)])?;
    if student.shape != teacher.shape {
        let message = format!("the student is {} but the teacher is {}", student.shape, teacher.shape);
        return Err(Error::shape(op, message));
    }
    Ok(())
}

impl DistillationLoss {
    fn body<T: Float>(&self, inputs: &[View<'_>], outs: &mut [Out<'_>]) -> Result<()> {
        let shape = inputs[0].shape();
        let classes = shape[shape.rank() - 1];
        let count = shape.without(shape.rank() - 1).numel();
        let (students, teachers) = (Rows::<T>::new(inputs[0]), Rows::<T>::new(inputs[1]));
        let cool = T::Acc::of(1.0 / self.temperature);
        let square = T::Acc::of(self.temperature * self.temperature);
        let loss_of = |a: &[T::Acc], b: &[T::Acc], stats: &mut [f64]| {
            let b = &b[..a.len()];
            vectorize(
                #[inline(always)]
                || {
                    let ((a_max, a_sum), (b_max, b_sum)) = (softmax_stats(a, cool), softmax_stats(b, cool));
                    let dot = row_sum(
                        a,
                        #[inline(always)]
                        |c, a| {
                            let b = b[c] * cool - b_max;
                            b.exp() * (b - (a * cool - a_max))
                        },
                    );
                    stats.copy_from_slice(&[a_max, a_sum, b_max, b_sum].map(T::Acc::to_f64));
                    square * (dot / b_sum - (b_sum.ln() - a_sum.ln()))
                },
            )
        };
        let [loss, stats] = outs else {
            return Err(Error::internal("distillation has two outputs"));
        };
        let by = Reduction::BatchMean.divisor(count, shape);
        reduce_rows::<T, 4>(Reduction::BatchMean, by, count, classes, loss, stats, |range, put| {
            let (mut a, mut b) = (students.buffer(), teachers.buffer());
            for r in range {
                put(&mut |stats| loss_of(students.load(r, &mut a), teachers.load(r, &mut b), stats));
            }
        });
        Ok(())
    }
}

impl Op for DistillationLoss {
    const NAME: &'static str = "distillation_loss";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const STATISTICS: usize = 1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0, 1]).and_outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let student = inputs[0];
        check(Self::NAME, self.temperature, student, inputs[1])?;
        let loss = student.with_shape(Shape::from_dims(&[]));
        Ok(Plan { outputs: vec![loss, stats_meta(student, 4)], scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::new(inputs[0].shape());
        let (a, b) = (s.contiguous(&inputs[0])?, s.contiguous(&inputs[1])?);
        let [loss, stats] = outputs else {
            return Err(Error::internal("distillation has two outputs"));
        };
        let by = Reduction::BatchMean.divisor(plan.rows as usize, inputs[0].shape());
        let mut sums = Sums::new(s, plan.blocks())?;
        let (one, parts) = sums.split(loss.dst());
        kernels::DistillationLoss {
            wide: plan.wide,
            a: a.src(),
            b: b.src(),
            loss: one,
            parts,
            stats: stats.dst(),
            rows: plan.rows,
            classes: plan.classes,
            lanes: plan.lanes,
            cool: (1.0 / self.temperature) as f32,
            square: (self.temperature * self.temperature) as f32,
            by,
            flat: plan.flat(a.src().dtype(), &[a.src().address(), b.src().address()]),
        }
        .launch(s)?;
        sums.finish(s, plan.blocks(), loss.dst(), None, by, 0)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if cx.needs(1) {
            return Err(no_gradient(Self::NAME, "teacher"));
        }
        let op = DistillationLossBackward { temperature: self.temperature };
        cx.run(op, &[dy, &cx.input(0)?, &cx.input(1)?, &cx.output(1)?], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, temperature): &(&[usize], f64)| Case {
            op: DistillationLoss { temperature: *temperature },
            inputs: vec![Arg::new(shape, Values::Normal(3.0)), Arg::constant(shape, Values::Normal(3.0))],
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: SHAPES.iter().map(case).collect() }
    }
}

/// Logits and temperatures.
const SHAPES: [(&[usize], f64); 7] = [
    (&[5], 1.0),
    (&[1, 1], 2.0),
    (&[0, 3], 2.0),
    (&[5, 13], 0.5),
    (&[7, 2], 4.0),
    (&[2, 3, 17], 2.0),
    (&[2, 1025], 3.0),
];

impl DistillationLossBackward {
    fn body<T: Float>(&self, inputs: &[View<'_>], out: &mut Out<'_>) -> Result<()> {
        let shape = inputs[1].shape();
        if shape.numel() == 0 {
            return Ok(());
        }
        let classes = shape[shape.rank() - 1];
        let (students, teachers) = (Rows::<T>::new(inputs[1]), Rows::<T>::new(inputs[2]));
        let stats = Rows::<f64>::new(inputs[3]);
        let dy = inputs[0].data::<T>()[0].to_acc();
        let by = Reduction::BatchMean.divisor(0, shape);
        let g = dy * T::Acc::of(self.temperature / by);
        let cool = T::Acc::of(1.0 / self.temperature);
        let mode = out.mode();
        let per = (GRAIN / classes).max(1);
        par::for_each_chunk_mut(out.slice::<T>(), per * classes, |c, chunk| {
            let (mut ba, mut bb, mut bs) = (students.buffer(), teachers.buffer(), stats.buffer());
            for (k, out) in chunk.chunks_exact_mut(classes).enumerate() {
                let r = c * per + k;
                let (a, b) = (students.load(r, &mut ba), teachers.load(r, &mut bb));
                let (a, b, stats) = (&a[..out.len()], &b[..out.len()], stats.load(r, &mut bs));
                let [a_max, a_sum, b_max, b_sum] = std::array::from_fn(|i| T::Acc::of(stats[i]));
                let (of_a, of_b) = (g / a_sum, g / b_sum);
                vectorize(
                    #[inline(always)]
                    || {
                        put_row(
                            out,
                            mode,
                            #[inline(always)]
                            |c| (a[c] * cool - a_max).exp() * of_a - (b[c] * cool - b_max).exp() * of_b,
                        )
                    },
                );
            }
        });
        Ok(())
    }
}

impl Op for DistillationLossBackward {
    const NAME: &'static str = "distillation_loss_backward";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, student) = (inputs[0], inputs[1]);
        check(Self::NAME, self.temperature, student, inputs[2])?;
        if dy != student.with_shape(Shape::from_dims(&[])) || inputs[3] != stats_meta(student, 4) {
            let message =
                format!("dy {dy} and the statistics {} do not fit the student {student}", inputs[3]);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(student))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[1].dtype(), T => self.body::<T>(inputs, &mut outputs[0]),
            else crate::ops::index::float_dtype(Self::NAME, inputs[1].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::new(inputs[1].shape());
        let (a, b, stats) = (s.contiguous(&inputs[1])?, s.contiguous(&inputs[2])?, s.contiguous(&inputs[3])?);
        let by = Reduction::BatchMean.divisor(0, inputs[1].shape());
        let (add, da) = (u32::from(outputs[0].mode() == Mode::Accumulate), outputs[0].dst());
        kernels::DistillationLossBackward {
            dy: inputs[0].src(),
            a: a.src(),
            b: b.src(),
            stats: stats.src(),
            flat: plan.flat(a.src().dtype(), &[a.src().address(), b.src().address(), da.address()]),
            da,
            rows: plan.rows,
            classes: plan.classes,
            lanes: plan.lanes,
            cool: (1.0 / self.temperature) as f32,
            scale: (self.temperature / by) as f32,
            add,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        let case = |(shape, temperature): &(&[usize], f64)| Case {
            op: DistillationLossBackward { temperature: *temperature },
            inputs: vec![
                Arg::constant(&[], Values::Normal(1.0)),
                Arg::constant(shape, Values::Normal(1.0)),
                Arg::constant(shape, Values::Normal(1.0)),
                Arg::typed(
                    &Shape::from_dims(shape).with(shape.len() - 1, 4),
                    Values::Uniform(8.0, 12.0),
                    DType::F64,
                ),
            ],
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: SHAPES.iter().map(case).collect() }
    }
}

/// How far a student is from a teacher, for logits `[.., C]` of one shape and type:
/// `KL(softmax(teacher/T) ‖ softmax(student/T)) · T²`, summed and divided by the size of the first dimension, so that its
/// gradients keep their size whatever the temperature T. Gradients flow to the student only. Errors unless T is above 0.
#[track_caller]
pub fn distillation_loss(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok(run(DistillationLoss { temperature }, &[student, teacher])?.swap_remove(0))
}
