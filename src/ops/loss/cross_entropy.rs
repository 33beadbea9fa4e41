//! Cross entropy of logits and class indices: softmax, logarithm and selection in one pass.
//!
//! Per row of logits x with target y, m = max x, s = Σ exp(x − m): `loss = w_y · (1 − ε) · (ln s − (x_y − m))` plus, under
//! label smoothing ε, `ε/C · Σ_c w_c · (ln s − (x_c − m))`; rows whose target is `ignore_index` count nothing. The mean
//! divides by the sum of w_y over the rows that count. m and s are kept apart for backward: their combination, the
//! log-sum-exp, would round away the differences between large logits.

#![forbid(unsafe_code)]

mod backward;

use std::ops::RangeInclusive;

use super::gpu::{RowPlan, Sums, set_divisor};
use super::rows::{Rows, reduce_rows, row_sum, softmax_stats, stats_meta, weights};
use super::{Reduction, SoftCrossEntropyLoss, no_gradient, same_float, with_some};
use crate::cpu::simd::vectorize;
use crate::device::Stream;
use crate::device::kernels::loss as kernels;
use crate::device::stream::FaultSlot;
use crate::dtype::{Element, Float, Real};
use crate::ops::gpu::{packed, src};
use crate::ops::index::{Index, bad_index, index_dtype, out_of_range};
use crate::ops::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, ErrorKind, Result, Shape, dispatch};

pub use backward::{CrossEntropyLossBackward, CrossEntropyOverwrite};

/// Options of [`Tensor::cross_entropy`], with PyTorch's defaults.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    /// A factor for each class, `[C]`.
    pub weight: Option<&'a Tensor>,
    /// Rows with this target count nothing. For class indices only.
    pub ignore_index: i64,
    /// How much of the target is spread evenly over all classes, in [0, 1].
    pub label_smoothing: f64,
    /// What becomes of the rows' losses.
    pub reduction: Reduction,
    /// The dimension of the logits that holds the classes: 1, as PyTorch has it (0 where there is only one dimension),
    /// or for example −1 for classes last.
    pub class_dim: isize,
    /// How many of the logits of a row are classes, the first ones; the rest is padding (a vocabulary of 50,257 in rows of
    /// 50,304), whose probability and gradient are 0. `None`: all. For class indices only.
    pub classes: Option<usize>,
}

impl Default for CrossEntropy<'_> {
    fn default() -> Self {
        CrossEntropy {
            weight: None,
            ignore_index: -100,
            label_smoothing: 0.0,
            reduction: Reduction::Mean,
            class_dim: 1,
            classes: None,
        }
    }
}

/// Cross entropy of logits `[.., C]` and class indices `[..]`, with a weight `[C]` as third input if `weighted`.
///
/// Outputs: the loss, and two statistics in f64: `[.., 2]` with the maximum m of each row and
/// `Σ exp(x − m)`, and the 0-d divisor of the loss.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyLoss {
    /// Whether there is a weight.
    pub weighted: bool,
    /// Rows with this target count nothing.
    pub ignore_index: i64,
    /// In [0, 1].
    pub label_smoothing: f64,
    /// What becomes of the rows' losses.
    pub reduction: Reduction,
    /// How many logits of a row are classes; those behind them count nothing. `None`: all.
    pub classes: Option<usize>,
    /// Whether backward writes the gradient over the logits.
    pub overwrites: bool,
}

/// Checks the logits of a cross entropy; the shapes of its statistics follow. Returns the number of classes: `used`, or all.
pub(super) fn check_logits(
    op: &'static str,
    logits: Meta,
    weight: Option<&Meta>,
    smoothing: f64,
    used: Option<usize>,
) -> Result<usize> {
    if !(0.0..=1.0).contains(&smoothing) {
        return Err(Error::argument(format!("label_smoothing must lie in [0, 1], found {smoothing}")));
    }
    let Some(&width) = logits.shape.last() else {
        return Err(Error::shape(op, "the logits need a dimension of classes, found a 0-d tensor"));
    };
    let classes = used.unwrap_or(width);
    if classes > width || (classes == 0 && width > 0) {
        return Err(Error::argument(format!("{classes} classes in rows of {width} logits")));
    }
    same_float(op, logits.dtype, weight.map(|w| ("weight", w.dtype)).as_slice())?;
    if let Some(weight) = weight.filter(|w| w.shape[..] != [classes]) {
        let message = format!("the weight must be [{classes}], one a class, found {}", weight.shape);
        return Err(Error::shape(op, message));
    }
    Ok(classes)
}

/// Names what the index is, in the error for it.
fn bad_class(error: Error, classes: usize) -> Error {
    error.context(format!("a target is none of the {classes} classes"))
}

impl CrossEntropyLoss {
    /// Checks logits, target and weight.
    fn check(&self, op: &'static str, logits: Meta, target: Meta, weight: Option<&Meta>) -> Result<()> {
        check_logits(op, logits, weight, self.label_smoothing, self.classes)?;
        index_dtype(op, target.dtype)?;
        if target.shape != logits.shape.without(logits.shape.rank() - 1) {
            let message = format!(
                "the target must be {}, one class a row of the logits {}, found {}",
                logits.shape.without(logits.shape.rank() - 1),
                logits.shape,
                target.shape
            );
            return Err(Error::shape(op, message));
        }
        Ok(())
    }

    fn has_weight<X>(&self, at: usize, inputs: &[X]) -> Result<usize> {
        let want = at + usize::from(self.weighted);
        if inputs.len() == want {
            return Ok(want);
        }
        Err(Error::argument(format!("{} inputs given, {want} needed", inputs.len())))
    }

    /// The number of classes in rows of logits of this shape.
    fn count(&self, logits: Shape) -> usize {
        self.classes.unwrap_or(logits[logits.rank() - 1])
    }

    /// The classes of the rows; `usize::MAX` for rows that do not count.
    fn places(&self, op: &'static str, target: View<'_>, classes: usize, scratch: &mut [u8]) -> Result<()> {
        let places: &mut [usize] = bytemuck::cast_slice_mut(scratch);
        let good = dispatch!(int target.dtype(), I => {
            let data = target.data::<I>();
            let mut good = true;
            for (place, at) in places.iter_mut().zip(target.layout().positions()) {
                let index = data[at];
                let ignored = index.value() == self.ignore_index;
                *place = if ignored { usize::MAX } else { index.place() };
                good &= ignored || *place < classes;
            }
            good
        }, else false);
        if good {
            return Ok(());
        }
        Err(bad_class(out_of_range(op, target, classes, Some(self.ignore_index)), classes))
    }

    /// Where kernels report a target that is no class.
    fn fault_slot<'a>(
        s: &'a Stream,
        op: &'static str,
        target: &View<'_>,
        classes: u64,
    ) -> Result<FaultSlot<'a>> {
        let (shape, classes) = (target.shape(), classes as usize);
        s.fault_slot(move |value, at| bad_class(bad_index(op, shape, value, at, classes), classes))
    }

    /// A weight for cases.
    fn weight_arg(&self, shape: &[usize]) -> Arg {
        Arg::constant(&[self.count(Shape::from_dims(shape))], Values::Uniform(0.5, 2.0))
    }

    /// `1 − ε` and `ε/C`.
    fn smoothing(&self, classes: u64) -> (f32, f32) {
        ((1.0 - self.label_smoothing) as f32, (self.label_smoothing / classes as f64) as f32)
    }

    fn body<T: Float>(&self, inputs: &[View<'_>], outs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let shape = inputs[0].shape();
        let (classes, count) = (self.count(shape), inputs[1].numel());
        self.places(Self::NAME, inputs[1], classes, scratch)?;
        let targets: &[usize] = bytemuck::cast_slice(scratch);
        let rows = Rows::<T>::new(inputs[0]);
        let weight = inputs.get(2).map(|w| weights::<T>(*w));
        let weight = weight.as_deref();
        let smooth = T::Acc::of(self.label_smoothing / classes as f64);
        let rest = T::Acc::of(1.0 - self.label_smoothing);
        let all_weights = weight.map_or(T::Acc::of(classes as f64), |w| {
            row_sum(
                w,
                #[inline(always)]
                |_, v| v,
            )
        });
        let of_class = |y: usize| weight.map_or(T::Acc::ONE, |w| w[y]);
        let loss_of = |row: &[T::Acc], y: usize, stats: &mut [f64]| {
            vectorize(
                #[inline(always)]
                || {
                    let (max, sum) = softmax_stats(row, T::Acc::ONE);
                    (stats[0], stats[1]) = (max.to_f64(), sum.to_f64());
                    if y == usize::MAX {
                        return T::Acc::ZERO;
                    }
                    let log = sum.ln();
                    let mut loss = rest * of_class(y) * (log - (row[y] - max));
                    if self.label_smoothing > 0.0 {
                        let distance = match weight {
                            None => row_sum(
                                row,
                                #[inline(always)]
                                |_, x| x - max,
                            ),
                            Some(w) => row_sum(
                                row,
                                #[inline(always)]
                                |c, x| w[c] * (x - max),
                            ),
                        };
                        loss += smooth * (log * all_weights - distance);
                    }
                    loss
                },
            )
        };
        let [loss, stats, divisor] = outs else {
            return Err(Error::internal("cross entropy has three outputs"));
        };
        let by = match self.reduction {
            // One after the other: there are few rows beside their elements.
            Reduction::Mean => {
                targets.iter().filter(|&&y| y != usize::MAX).map(|&y| of_class(y).to_f64()).sum::<f64>()
            }
            other => other.divisor(count, shape),
        };
        divisor.slice::<f64>()[0] = by;
        reduce_rows::<T, 2>(self.reduction, by, count, classes, loss, stats, |range, put| {
            let mut buffer = rows.buffer();
            for r in range {
                put(&mut |stats| loss_of(&rows.load(r, &mut buffer)[..classes], targets[r], stats));
            }
        });
        Ok(())
    }
}

impl Op for CrossEntropyLoss {
    const NAME: &'static str = "cross_entropy";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const STATISTICS: usize = 2;

    fn saves(&self, _: &[bool]) -> Saves {
        let saves = Saves::inputs(&[0, 1]).and_outputs(&[1, 2]);
        if self.weighted { saves.and_inputs(&[2]) } else { saves }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        self.has_weight(2, inputs)?;
        let (logits, target) = (inputs[0], inputs[1]);
        self.check(Self::NAME, logits, target, inputs.get(2))?;
        let loss = logits.with_shape(self.reduction.shape(target.shape));
        let stats = stats_meta(logits, 2);
        let divisor = stats.with_shape(Shape::from_dims(&[]));
        let scratch = target.shape.numel() * size_of::<usize>();
        Ok(Plan { outputs: vec![loss, stats, divisor], scratch })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        dispatch!(float inputs[0].dtype(), T => self.body::<T>(inputs, outputs, scratch),
            else crate::ops::index::float_dtype(Self::NAME, inputs[0].dtype()))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let plan = RowPlan::padded(inputs[0].shape(), self.count(inputs[0].shape()));
        let (x, target) = (s.contiguous(&inputs[0])?, s.contiguous(&inputs[1])?);
        let weight = packed(s, inputs.get(2))?;
        let mut fault = Self::fault_slot(s, Self::NAME, &inputs[1], plan.classes)?;
        let [loss, stats, divisor] = outputs else {
            return Err(Error::internal("cross entropy has three outputs"));
        };
        let by = self.reduction.divisor(plan.rows as usize, inputs[0].shape());
        let weighted = u32::from(self.reduction == Reduction::Mean);
        let whole = self.reduction != Reduction::None;
        let mut sums = Sums::new(s, plan.blocks())?;
        let (each, one, parts) = match whole {
            false => (Some(loss.dst()), None, None),
            true => {
                let (one, parts) = sums.split(loss.dst());
                (None, one, parts)
            }
        };
        let (rest, smooth) = self.smoothing(plan.classes);
        kernels::CrossEntropy {
            wide: plan.wide,
            x: x.src(),
            target: target.src(),
            weight: src(&weight),
            each,
            divisor: one.as_ref().map(|_| divisor.dst()),
            loss: one,
            parts,
            stats: stats.dst(),
            fault: fault.dst(),
            rows: plan.rows,
            classes: plan.classes,
            pitch: plan.pitch,
            lanes: plan.lanes,
            ignored: self.ignore_index,
            rest,
            smooth,
            by,
            weighted,
            flat: plan.flat(x.src().dtype(), &[x.src().address()]),
        }
        .launch(s)?;
        match whole {
            false => set_divisor(s, divisor, by),
            true => sums.finish(s, plan.blocks(), loss.dst(), Some(divisor.dst()), by, weighted),
        }
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if self.weighted && cx.needs(2) {
            return Err(no_gradient(Self::NAME, "weight"));
        }
        if self.overwrites {
            return self.overwrite(cx, dy);
        }
        let mut inputs = vec![dy.clone(), cx.input(0)?, cx.output(1)?, cx.output(2)?, cx.input(1)?];
        if self.weighted {
            inputs.push(cx.input(2)?);
        }
        cx.run(CrossEntropyLossBackward { loss: *self }, &inputs.iter().collect::<Vec<_>>(), &[0])
    }

    fn cases() -> Cases<Self> {
        let list = cases(|loss, shape, target| {
            let mut inputs = vec![Arg::new(shape, Values::Normal(3.0)), target];
            if loss.weighted {
                inputs.push(loss.weight_arg(shape));
            }
            Case { op: loss, inputs }
        });
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list }
    }
}

pub(super) const SUM: Tolerance =
    Tolerance::Sum(16.0, "exponentials and a logarithm of one or two ulp, and sums of a row in 16 lanes");

/// Cases over the arguments and a few shapes; the closure gets the shape of the logits and the target.
fn cases<C>(case: impl Fn(CrossEntropyLoss, &[usize], Arg) -> C) -> Vec<C> {
    let shapes: [(&[usize], DType); 8] = [
        (&[5], DType::I64),
        (&[1, 1], DType::I64),
        (&[0, 3], DType::I64),
        (&[7, 2], DType::I32),
        (&[5, 13], DType::I64),
        (&[3, 33], DType::I32),
        (&[2, 3, 17], DType::I64),
        (&[2, 1025], DType::I64),
    ];
    let mut list = Vec::new();
    for reduction in Reduction::ALL {
        for (weighted, label_smoothing, ignore_index) in
            [(false, 0.0, -100), (true, 0.0, 0), (false, 0.1, 0), (true, 0.25, -100), (true, 1.0, 1)]
        {
            for (shape, dtype) in shapes {
                let classes = shape[shape.len() - 1];
                // Some targets are ignored, but never all: the mean of nothing has no gradient to check.
                let last = classes as i64 - 1;
                let ignore_index = if ignore_index == last { -100 } else { ignore_index };
                let some = [last, ignore_index, last / 2].map(|y| y as f64).to_vec();
                let values = if ignore_index < 0 { Values::Index(classes) } else { Values::Exactly(some) };
                let target = Arg::typed(&shape[..shape.len() - 1], values, dtype);
                let (classes, overwrites) = (None, false);
                let loss = CrossEntropyLoss {
                    weighted,
                    ignore_index,
                    label_smoothing,
                    reduction,
                    classes,
                    overwrites,
                };
                list.push(case(loss, shape, target));
            }
        }
    }
    // Rows with padding behind the classes: a few lanes, vectors with a ragged end, and a block a row.
    let mean = Reduction::Mean;
    for (width, used, weighted, label_smoothing, reduction) in
        [(7, 5, true, 0.1, mean), (16, 13, false, 0.0, Reduction::None), (1040, 1030, false, 0.0, mean)]
    {
        let classes = Some(used);
        let (ignore_index, overwrites) = (3, false);
        let loss =
            CrossEntropyLoss { weighted, ignore_index, label_smoothing, reduction, classes, overwrites };
        let targets = Values::Exactly(vec![used as f64 - 1.0, 3.0, 0.0]);
        list.push(case(loss, &[3, width], Arg::typed(&[3], targets, DType::I64)));
    }
    list
}

impl Tensor {
    /// Cross entropy of these logits and `target`: either class indices (i32 or i64, this shape without the dimension of
    /// classes) or probabilities of the classes (this shape and type). Gradients flow to logits and probabilities, not to
    /// the weight. Errors name the position of a class that does not exist.
    ///
    /// ```
    /// use warpsmith::{Device, Tensor, ops::CrossEntropy};
    /// let logits = Tensor::from_slice(&[0f32, 0.0, 2.0, 0.0], [2, 2], Device::cpu())?;
    /// let target = Tensor::from_slice(&[0i64, 0], [2], Device::cpu())?;
    /// let loss = logits.cross_entropy(&target, CrossEntropy::default())?;
    /// assert!((loss.item()? - (2f64.ln() + (-2f64).exp().ln_1p()) / 2.0).abs() < 1e-6);
    /// # Ok::<(), warpsmith::Error>(())
    /// ```
    #[track_caller]
    pub fn cross_entropy(&self, target: &Tensor, options: CrossEntropy<'_>) -> Result<Tensor> {
        if !target.dtype().is_float() {
            return self.indexed_cross_entropy(target, options, false);
        }
        let CrossEntropy { weight, ignore_index, label_smoothing, reduction, classes, .. } = options;
        let order = self.classes_last(&options)?;
        let refuse = |message: String| Err(Error::argument(message).with_op(SoftCrossEntropyLoss::NAME));
        if classes.is_some() {
            return refuse("a number of classes has no meaning for a target of probabilities".to_owned());
        }
        if ignore_index >= 0 {
            return refuse(format!(
                "ignore_index {ignore_index} has no meaning for a target of probabilities"
            ));
        }
        if target.shape() != self.shape() {
            let message = format!("the target is {} but the logits are {}", target.shape(), self.shape());
            return Err(Error::shape(SoftCrossEntropyLoss::NAME, message)
                .with_help("class indices must be i32 or i64; probabilities have the shape of the logits"));
        }
        let op = SoftCrossEntropyLoss { weighted: weight.is_some(), label_smoothing, reduction };
        let (logits, target) = (self.permute(&order)?, target.permute(&order)?);
        let outputs = run(op, &with_some(&[&logits, &target], &[weight]))?;
        Ok(outputs[0].clone())
    }

    /// The order of dimensions that puts the classes last.
    fn classes_last(&self, options: &CrossEntropy<'_>) -> Result<Vec<usize>> {
        // A single row has its classes in its only dimension.
        let class_dim = if self.rank() == 1 && options.class_dim == 1 { 0 } else { options.class_dim };
        let class_dim = self.shape().dim(CrossEntropyLoss::NAME, class_dim)?;
        let mut order: Vec<usize> = (0..self.rank()).filter(|&d| d != class_dim).collect();
        order.push(class_dim);
        Ok(order)
    }

    /// Cross entropy with class indices.
    #[track_caller]
    fn indexed_cross_entropy(
        &self,
        target: &Tensor,
        options: CrossEntropy<'_>,
        overwrites: bool,
    ) -> Result<Tensor> {
        let CrossEntropy { weight, ignore_index, label_smoothing, reduction, classes, .. } = options;
        let logits = self.permute(&self.classes_last(&options)?)?;
        let weighted = weight.is_some();
        let op = CrossEntropyLoss { weighted, ignore_index, label_smoothing, reduction, classes, overwrites };
        let outputs = run(op, &with_some(&[&logits, target], &[weight])).map_err(|e| {
            let classes_last = self.rank() > 2 && target.shape() == self.shape().without(self.rank() - 1);
            let help = "set class_dim to -1 if the classes are in the last dimension of the logits";
            if classes_last && e.kind() == ErrorKind::Shape { e.with_help(help) } else { e }
        })?;
        Ok(outputs[0].clone())
    }
}
