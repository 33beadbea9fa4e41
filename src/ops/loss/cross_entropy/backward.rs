//! The gradient of cross entropy by the logits, from the statistics that forward left: into memory of its own, or over the
//! logits, so that there is one buffer of their size and not two.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{CrossEntropy, CrossEntropyLoss, SUM, cases};
use crate::cpu::copy::move_elements;
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::device::kernels::loss as kernels;
use crate::device::{Stream, copy};
use crate::dtype::{Float, Real};
use crate::ops::gpu::{packed, src};
use crate::ops::loss::gpu::{RowPlan, dy_of};
use crate::ops::loss::rows::{Rows, dy_rows, put_row, row_sum, stats_meta, weights};
use crate::ops::loss::{BLOCK, GRAIN, Reduction};
use crate::ops::{Arg, Case, Cases, Op, Plan, Values, run_into};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Tensor, View, grad_enabled};
use crate::{DType, Error, ErrorKind, Result, Shape, dispatch};

/// The gradient of [`CrossEntropyLoss`] by the logits. Inputs: dy, logits, the two outputs for backward, target, weight.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyLossBackward {
    /// The arguments of the loss.
    pub loss: CrossEntropyLoss,
}

/// The same gradient over the logits: the output, changed in place. Inputs: dy, the two outputs for backward, target, weight,
/// and the logits, where the output does not hold them yet.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyOverwrite {
    /// The arguments of the loss.
    pub loss: CrossEntropyLoss,
    /// Logits of a row.
    pub width: usize,
}

/// What the gradient of any row is made of.
struct Tape<'a, T: Float> {
    loss: CrossEntropyLoss,
    classes: usize,
    targets: &'a [usize],
    stats: Rows<'a, f64>,
    dy: Rows<'a, T>,
    weight: Option<Vec<T::Acc>>,
    all_weights: T::Acc,
    divisor: T::Acc,
}

/// What the gradient of one row is made of: e^(x − max) · factor − spread · weight, less `hit` at the target.
struct Terms<A> {
    max: A,
    factor: A,
    spread: A,
    hit: A,
    target: usize,
}

impl<'a, T: Float> Tape<'a, T> {
    fn new(
        op: &'static str,
        loss: CrossEntropyLoss,
        classes: usize,
        [dy, stats, divisor, target]: [View<'a>; 4],
        weight: Option<&View<'_>>,
        scratch: &'a mut [u8],
    ) -> Result<Tape<'a, T>> {
        loss.places(op, target, classes, scratch)?;
        let weight = weight.map(|w| weights::<T>(*w));
        let all_weights = weight.as_deref().map_or(T::Acc::of(classes as f64), |w| {
            row_sum(
                w,
                #[inline(always)]
                |_, v| v,
            )
        });
        let divisor = match loss.reduction {
            Reduction::Sum | Reduction::None => T::Acc::ONE,
            Reduction::Mean | Reduction::BatchMean => T::Acc::of(divisor.data::<f64>()[0]),
        };
        let (targets, stats) = (bytemuck::cast_slice(scratch), Rows::<f64>::new(stats));
        let dy = dy_rows::<T>(dy, target.shape())?;
        Ok(Tape { loss, classes, targets, stats, dy, weight, all_weights, divisor })
    }

    /// The terms of row `r`; `None` for one that does not count.
    fn terms(&self, r: usize, pair: &mut [f64], one: &mut [T::Acc]) -> Option<Terms<T::Acc>> {
        let target = self.targets[r];
        if target == usize::MAX {
            return None;
        }
        let smoothing = self.loss.label_smoothing;
        let (smooth, rest) = (T::Acc::of(smoothing / self.classes as f64), T::Acc::of(1.0 - smoothing));
        let stats = self.stats.load(r, pair);
        let g = self.dy.load(r, one)[0] / self.divisor;
        let hit = g * rest * self.weight.as_deref().map_or(T::Acc::ONE, |w| w[target]);
        let (max, sum, spread) = (T::Acc::of(stats[0]), T::Acc::of(stats[1]), g * smooth);
        let all = if smoothing > 0.0 { self.all_weights } else { T::Acc::ZERO };
        Some(Terms { max, factor: (hit + spread * all) / sum, spread, hit, target })
    }

    /// Puts the gradient of the classes from number `first` on, given their logits.
    fn put(&self, t: &Terms<T::Acc>, first: usize, row: &[T::Acc], out: &mut [T], mode: Mode) {
        let (max, factor, spread) = (t.max, t.factor, t.spread);
        let row = &row[..out.len()];
        // The target's own place is put last, from its old value: adding twice would round twice.
        let own = t.target.checked_sub(first).filter(|own| *own < out.len());
        let old = own.map(|own| out[own]);
        vectorize(
            #[inline(always)]
            || match &self.weight {
                _ if self.loss.label_smoothing == 0.0 => put_row(
                    out,
                    mode,
                    #[inline(always)]
                    |c| (row[c] - max).exp() * factor,
                ),
                None => put_row(
                    out,
                    mode,
                    #[inline(always)]
                    |c| (row[c] - max).exp() * factor - spread,
                ),
                Some(w) => {
                    let w = &w[first..first + row.len()];
                    put_row(
                        out,
                        mode,
                        #[inline(always)]
                        |c| (row[c] - max).exp() * factor - spread * w[c],
                    )
                }
            },
        );
        if let (Some(own), Some(old)) = (own, old) {
            out[own] = old;
            let w = self.weight.as_deref().map_or(T::Acc::ONE, |w| w[t.target]);
            let hit = |_| (row[own] - max).exp() * factor - spread * w - t.hit;
            put_row(&mut out[own..=own], mode, hit);
        }
    }
}

impl CrossEntropyLossBackward {
    fn body<T: Float>(&self, inputs: &[View<'_>], out: &mut Out<'_>, scratch: &mut [u8]) -> Result<()> {
        let [dy, logits, stats, divisor, target] = inputs[..5] else {
            return Err(Error::internal("cross entropy's gradient needs five inputs"));
        };
        let (width, classes) = (logits.shape()[logits.shape().rank() - 1], self.loss.count(logits.shape()));
        let rest = [dy, stats, divisor, target];
        let tape = Tape::<T>::new(Self::NAME, self.loss, classes, rest, inputs.get(5), scratch)?;
        if out.shape().numel() == 0 {
            return Ok(());
        }
        let (rows, mode, per) = (Rows::<T>::new(logits), out.mode(), (GRAIN / width).max(1));
        par::for_each_chunk_mut(out.slice::<T>(), per * width, |c, chunk| {
            let (mut buffer, mut pair, mut one) = (rows.buffer(), tape.stats.buffer(), tape.dy.buffer());
            for (k, out) in chunk.chunks_exact_mut(width).enumerate() {
                let r = c * per + k;
                let terms = tape.terms(r, &mut pair, &mut one);
                let used = if terms.is_some() { classes } else { 0 };
                if let Some(terms) = terms {
                    tape.put(&terms, 0, rows.load(r, &mut buffer), &mut out[..used], mode);
                }
                if mode == Mode::Write {
                    out[used..].fill(T::default());
                }
            }
        });
        Ok(())
    }
}

impl Op for CrossEntropyLossBackward {
    const NAME: &'static str = "cross_entropy_backward";
    const INPUTS: RangeInclusive<usize> = 5..=6;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        self.loss.has_weight(5, inputs)?;
        let (dy, logits, target) = (inputs[0], inputs[1], inputs[4]);
        self.loss.check(Self::NAME, logits, target, inputs.get(5))?;
        let stats = stats_meta(logits, 2);
        let fits = dy.dtype == logits.dtype
            && dy.shape == self.loss.reduction.shape(target.shape)
            && inputs[2] == stats
            && inputs[3] == stats.with_shape(Shape::from_dims(&[]));
        if !fits {
            let message = format!(
                "dy {dy} and the statistics {} and {} do not fit the logits {logits}",
                inputs[2], inputs[3]
            );
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan { outputs: vec![logits], scratch: target.shape.numel() * size_of::<usize>() })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[1].dtype(), T => self.body::<T>(inputs, &mut outputs[0], scratch),
            else crate::ops::index::float_dtype(Self::NAME, inputs[1].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::padded(inputs[1].shape(), self.loss.count(inputs[1].shape()));
        let (dy, dy_step) = dy_of(s, &inputs[0], self.loss.reduction)?;
        let (x, stats) = (s.contiguous(&inputs[1])?, s.contiguous(&inputs[2])?);
        let (target, weight) = (s.contiguous(&inputs[4])?, packed(s, inputs.get(5))?);
        let mut fault = CrossEntropyLoss::fault_slot(s, Self::NAME, &inputs[4], plan.classes)?;
        let (add, dx) = (u32::from(outputs[0].mode() == Mode::Accumulate), outputs[0].dst());
        let (rest, smooth) = self.loss.smoothing(plan.classes);
        kernels::CrossEntropyBackward {
            wide: plan.wide,
            dy: dy.src(),
            x: x.src(),
            stats: stats.src(),
            divisor: inputs[3].src(),
            target: target.src(),
            weight: src(&weight),
            flat: plan.flat(x.src().dtype(), &[x.src().address(), dx.address()]),
            dx,
            fault: fault.dst(),
            rows: plan.rows,
            classes: plan.classes,
            pitch: plan.pitch,
            lanes: plan.lanes,
            dy_step,
            ignored: self.loss.ignore_index,
            rest,
            smooth,
            divide: u32::from(matches!(self.loss.reduction, Reduction::Mean | Reduction::BatchMean)),
            add,
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        let list = cases(|loss, shape, target| {
            let dy = loss.reduction.shape(Shape::from_dims(&target.shape));
            // Any positive statistics will do: the op is a function of them.
            let values = Values::Uniform(4.0, 6.0);
            let stats = Shape::from_dims(shape).with(shape.len() - 1, 2);
            let mut inputs = vec![
                Arg::constant(&dy, Values::Normal(1.0)),
                Arg::constant(shape, Values::Normal(1.0)),
                Arg::typed(&stats, values.clone(), DType::F64),
                Arg::typed(&[], values, DType::F64),
                target,
            ];
            if loss.weighted {
                inputs.push(loss.weight_arg(shape));
            }
            Case { op: CrossEntropyLossBackward { loss }, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list }
    }
}

impl CrossEntropyOverwrite {
    /// How many inputs there are beside the logits.
    fn others(&self) -> usize {
        4 + usize::from(self.loss.weighted)
    }

    fn logits(&self, dy: Meta, target: Shape) -> Result<Meta> {
        Ok(dy.with_shape(Shape::new(&target.inserted(target.rank(), self.width))?))
    }

    fn body<T: Float>(&self, inputs: &[View<'_>], out: &mut Out<'_>, scratch: &mut [u8]) -> Result<()> {
        let classes = self.loss.count(out.shape());
        let [dy, stats, divisor, target] = inputs[..4] else {
            return Err(Error::internal("cross entropy's gradient needs four inputs"));
        };
        let weight = inputs.get(4).filter(|_| self.loss.weighted);
        let rest = [dy, stats, divisor, target];
        let tape = Tape::<T>::new(Self::NAME, self.loss, classes, rest, weight, scratch)?;
        if let Some(logits) = inputs.get(self.others()) {
            let to = Layout::contiguous(out.shape());
            move_elements(logits.data::<T>(), logits.layout(), out.slice::<T>(), &to, false);
        }
        if out.shape().numel() == 0 {
            return Ok(());
        }
        let per = (GRAIN / self.width).max(1);
        par::for_each_chunk_mut(out.slice::<T>(), per * self.width, |c, chunk| {
            let (mut pair, mut one) = (tape.stats.buffer(), tape.dy.buffer());
            let mut logits = [T::Acc::ZERO; BLOCK];
            for (k, out) in chunk.chunks_exact_mut(self.width).enumerate() {
                let Some(terms) = tape.terms(c * per + k, &mut pair, &mut one) else {
                    out.fill(T::default());
                    continue;
                };
                let (used, padding) = out.split_at_mut(classes);
                padding.fill(T::default());
                for (b, out) in used.chunks_mut(BLOCK).enumerate() {
                    vectorize(
                        #[inline(always)]
                        || logits.iter_mut().zip(&*out).for_each(|(l, x)| *l = x.to_acc()),
                    );
                    tape.put(&terms, b * BLOCK, &logits, out, Mode::Write);
                }
            }
        });
        Ok(())
    }
}

impl Op for CrossEntropyOverwrite {
    const NAME: &'static str = "cross_entropy_overwrite_backward";
    const UPDATES: bool = true;
    const INPUTS: RangeInclusive<usize> = 4..=6;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, target) = (inputs[0], inputs[3]);
        crate::ops::index::float_dtype(Self::NAME, dy.dtype)?;
        let logits = self.logits(dy, target.shape)?;
        if let Some(given) = inputs.get(self.others()).filter(|given| given.dtype != dy.dtype) {
            let message = format!("the gradient is {} but the logits are {}", dy.dtype, given.dtype);
            return Err(Error::dtype(Self::NAME, message));
        }
        let complete = match inputs.len().checked_sub(self.others()) {
            Some(0) => true,
            Some(1) => inputs[self.others()] == logits,
            _ => false,
        };
        self.loss.check(Self::NAME, logits, target, inputs.get(4).filter(|_| self.loss.weighted))?;
        let stats = stats_meta(logits, 2);
        let fits = dy.shape == self.loss.reduction.shape(target.shape)
            && inputs[1] == stats
            && inputs[2] == stats.with_shape(Shape::from_dims(&[]));
        if !fits || !complete {
            let message = format!("inputs {inputs:?} do not fit logits of {logits}");
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan { outputs: vec![logits], scratch: target.shape.numel() * size_of::<usize>() })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        self.in_place(inputs, &outputs[0])?;
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, &mut outputs[0], scratch),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        self.in_place(inputs, &outputs[0])?;
        let shape = outputs[0].shape();
        let plan = RowPlan::padded(shape, self.loss.count(shape));
        if let Some(logits) = inputs.get(self.others()) {
            let to = Layout::contiguous(shape);
            copy::strided(s, logits.src(), logits.layout(), outputs[0].dst(), &to, false)?;
        }
        let (dy, dy_step) = dy_of(s, &inputs[0], self.loss.reduction)?;
        let (stats, target) = (s.contiguous(&inputs[1])?, s.contiguous(&inputs[3])?);
        let weight = packed(s, inputs.get(4).filter(|_| self.loss.weighted))?;
        let mut fault = CrossEntropyLoss::fault_slot(s, Self::NAME, &inputs[3], plan.classes)?;
        let (rest, smooth) = self.loss.smoothing(plan.classes);
        let (dtype, x) = (outputs[0].dtype(), outputs[0].dst());
        kernels::CrossEntropyOverwrite {
            wide: plan.wide,
            dy: dy.src(),
            stats: stats.src(),
            divisor: inputs[2].src(),
            target: target.src(),
            weight: src(&weight),
            flat: plan.flat(dtype, &[x.as_src().address()]),
            x,
            fault: fault.dst(),
            rows: plan.rows,
            classes: plan.classes,
            pitch: plan.pitch,
            lanes: plan.lanes,
            dy_step,
            ignored: self.loss.ignore_index,
            rest,
            smooth,
            divide: u32::from(matches!(self.loss.reduction, Reduction::Mean | Reduction::BatchMean)),
        }
        .launch(s)
    }

    fn cases() -> Cases<Self> {
        let all = CrossEntropyLossBackward::cases();
        // Every fourth, and all with padding.
        let some =
            all.list.into_iter().enumerate().filter(|(k, c)| k % 4 == 0 || c.op.loss.classes.is_some());
        let case = |(_, mut case): (usize, Case<CrossEntropyLossBackward>)| {
            let logits = case.inputs.remove(1);
            let width = logits.shape[logits.shape.len() - 1];
            case.inputs.push(logits);
            Case { op: CrossEntropyOverwrite { loss: case.op.loss, width }, inputs: case.inputs }
        };
        Cases { dtypes: all.dtypes, tolerance: all.tolerance, list: some.map(case).collect() }
    }
}

impl CrossEntropyOverwrite {
    fn in_place(&self, inputs: &[View<'_>], output: &Out<'_>) -> Result<()> {
        if inputs.len() == self.others() && output.mode() != Mode::Update {
            return Err(Error::argument("the logits are neither an input nor changed in place"));
        }
        Ok(())
    }
}

/// Whether only `tensor` (and clones of it) hold its memory.
fn is_sole_owner(tensor: &Tensor) -> bool {
    Arc::strong_count(tensor.storage()) == 1
}

impl CrossEntropyLoss {
    /// Backward over the logits, which nobody but the tape holds: see [`Tensor::cross_entropy_overwriting`].
    pub(super) fn overwrite(&self, cx: &mut BackwardCx<'_>, dy: &Tensor) -> Result<()> {
        if !cx.needs(0) {
            return Ok(());
        }
        let logits = cx.input(0)?;
        if !is_sole_owner(&logits) {
            return Err(Error::internal("someone came to hold the logits after forward").with_op(Self::NAME));
        }
        let mut inputs = vec![dy.clone(), cx.output(1)?, cx.output(2)?, cx.input(1)?];
        inputs.extend(if self.weighted { Some(cx.input(2)?) } else { None });
        let op = CrossEntropyOverwrite { loss: *self, width: logits.shape()[logits.rank() - 1] };
        run_into(op, &inputs.iter().collect::<Vec<_>>(), &[(&logits, Mode::Update)])?;
        cx.give(0, logits)
    }
}

impl Tensor {
    /// As [`Tensor::cross_entropy`] with class indices, but backward writes the gradient of the logits over the logits, so
    /// that their memory exists once: at 65,536 rows of 50,304 classes in bf16 that saves 6.6 GB. The bits are the same.
    ///
    /// Takes the tensor by value, for nobody may look at it any more. Without gradients (as under `no_grad`) nothing is
    /// overwritten.
    ///
    /// # Errors
    /// If gradients are recorded and the logits are held elsewhere too: by a clone, a view, or an op that reads them in its
    /// own backward; if the classes are not in the last dimension of a contiguous tensor; and as `cross_entropy`. A second
    /// backward through the same graph is an error of kind `Stale`.
    #[track_caller]
    pub fn cross_entropy_overwriting(self, target: &Tensor, options: CrossEntropy<'_>) -> Result<Tensor> {
        let recorded = grad_enabled() && self.requires_grad();
        if recorded && !is_sole_owner(&self) {
            let message = "the logits, whose gradient is to be written over them, are held elsewhere too";
            return Err(Error::new(ErrorKind::Argument, message)
                .with_op(CrossEntropyLoss::NAME)
                .with_help("drop clones and views of them, or use cross_entropy"));
        }
        if target.dtype().is_float() {
            let message = "probabilities as targets have no form that overwrites the logits";
            return Err(Error::new(ErrorKind::Argument, message)
                .with_op(CrossEntropyLoss::NAME)
                .with_help("use cross_entropy"));
        }
        let class_dim = if self.rank() == 1 && options.class_dim == 1 { 0 } else { options.class_dim };
        let last = self.shape().dim(CrossEntropyLoss::NAME, class_dim)? + 1 == self.rank();
        if recorded && !(last && self.is_contiguous()) {
            let message = format!("needs contiguous logits with the classes last, found {}", self.shape());
            return Err(Error::shape(CrossEntropyLoss::NAME, message)
                .with_help("call contiguous() on them, or use cross_entropy"));
        }
        self.indexed_cross_entropy(target, options, true)
    }
}
