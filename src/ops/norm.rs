//! Layer norm and RMS norm over the last dimensions, and their backwards.
//!
//! With x̂ = (x − mean) · rstd (RMS norm: mean 0) the result is y = x̂ · weight + bias. Statistics are f32 (f64 in f64), the
//! variance is taken about the mean found first, and both are saved as further outputs of the op. One backward op makes all
//! gradients in one pass; those of weight and bias are added up over fixed chunks of rows, joined pairwise.

#![forbid(unsafe_code)]

mod gpu;

use std::ops::RangeInclusive;

use super::reduce::{float_only, into_wide, real, same_dtype, store, wide, wide_dtype};
use super::softmax::Strided;
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::cpu::copy::move_elements;
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::reduce::{GRAIN, join_rows, sum_slices, vectorize};
use crate::device::Stream;
use crate::dtype::Real;
use crate::shape::{IntoShape, Layout};
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(LayerNorm, LayerNormBackward, RmsNorm, RmsNormBackward);

/// The shape of the statistics: the dimensions of `x` before the normalised ones.
fn stats_shape(op: &'static str, x: &Shape, normalized: &Shape) -> Result<Shape> {
    match x.rank().checked_sub(normalized.rank()) {
        Some(lead) if x[lead..] == normalized[..] && normalized.rank() > 0 => Shape::new(&x[..lead]),
        _ => Err(Error::shape(
            op,
            format!("the last dimensions of {x} are not the normalised shape {normalized}"),
        )),
    }
}

fn expect(op: &'static str, what: &str, found: &Shape, expected: &Shape) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} is {found}, expected {expected}")))
}

fn infer(op: &'static str, inputs: &[Meta], shape: &Shape, parameters: usize, stats: usize) -> Result<Plan> {
    same_dtype(op, inputs)?;
    if inputs.len() != 1 + parameters {
        return Err(Error::internal(format!("{} inputs, expected {}", inputs.len(), 1 + parameters)));
    }
    let lead = stats_shape(op, &inputs[0].shape, shape)?;
    inputs[1..].iter().try_for_each(|p| expect(op, "a parameter", &p.shape, shape))?;
    let mut outputs = vec![inputs[0]];
    outputs.resize(1 + stats, inputs[0].with_shape(lead).with_dtype(wide_dtype(inputs[0].dtype)));
    Ok(Plan { outputs, scratch: 0 })
}

/// `view` as rows of `n` elements; copied into `copy` where its layout does not allow that.
fn rows<'a, A: Real>(view: View<'a>, n: usize, copy: &'a mut Option<Block>) -> Result<Strided<'a, A>> {
    let shape = Shape::new(&[view.numel() / n, n])?;
    if let Some(layout) = view.layout().reshape(&shape) {
        return Ok(Strided::new(&view.with_layout(layout), 1));
    }
    let block = copy.insert(Block::new(view.numel() * size_of::<A>())?);
    let to = Layout::contiguous(view.shape());
    move_elements(view.data::<A>(), view.layout(), block.typed_mut::<A>(), &to, false);
    Ok(Strided::new(&View::of(block.typed::<A>(), shape), 1))
}

/// The elements in row-major order, widened; `fill` of them where there is no view.
fn gathered<A: Real>(view: Option<&View<'_>>, n: usize, fill: A) -> Result<Vec<A>> {
    let Some(view) = view else { return Ok(vec![fill; n]) };
    let mut copy = None;
    let view = wide(view, &mut copy)?;
    Ok(view.layout().positions().map(|i| view.data::<A>()[i]).collect())
}

/// Mean (0 unless `centred`) and reciprocal deviation of a row.
#[inline(always)]
fn statistics<A: Real>(x: &[A], centred: bool, eps: A) -> (A, A) {
    let n = A::of(x.len() as f64);
    let mean = if centred { sum_slices([x], |[x]| x) / n } else { A::ZERO };
    let square = sum_slices([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, A::ONE / (square + eps).sqrt())
}

/// The forward of both norms. `outs`: y, then mean if `centred`, then rstd.
fn forward<A: Real>(
    x: View<'_>,
    (weight, bias): (Option<&View<'_>>, Option<&View<'_>>),
    (n, centred, eps): (usize, bool, f64),
    outs: &mut [Out<'_>],
) -> Result<()> {
    if x.numel() == 0 {
        // Without elements there are no statistics: NaN, like the mean over nothing.
        outs[1..].iter_mut().for_each(|o| o.slice::<A>().fill(A::of(f64::NAN)));
        return Ok(());
    }
    let affine = weight.is_some() || bias.is_some();
    let (weight, bias) = (gathered(weight, n, A::ONE)?, gathered(bias, n, A::ZERO)?);
    let (eps, mut wider, mut copy) = (A::of(eps), None, None);
    let x = rows::<A>(wide(&x, &mut wider)?, n, &mut copy)?;
    let (y, stats) = outs.split_at_mut(1);
    let (means, rstds) = stats.split_at_mut(usize::from(centred));
    let mut nothing = [];
    let means = means.first_mut().map_or(&mut nothing[..], |m| m.slice::<A>());
    let rstds = rstds[0].slice::<A>();
    let each = (GRAIN / n).max(1);
    let count = rstds.len().div_ceil(each);
    into_wide::<A>(&mut y[0], |y, _| {
        let means = means.chunks_mut(each).map(Some).chain(std::iter::repeat_with(|| None));
        let tasks = y.chunks_mut(each * n).zip(rstds.chunks_mut(each)).zip(means).enumerate();
        par::each(count, tasks, |(task, ((y, rstds), mut means))| {
            let mut buffer = vec![A::ZERO; if x.direct() { 0 } else { n }];
            let (weight, bias) = (&weight[..n], &bias[..n]);
            vectorize::<A, _>(
                #[inline(always)]
                || {
                    for (i, (y, rstd)) in y.chunks_exact_mut(n).zip(rstds).enumerate() {
                        let x = &x.row(task * each + i, n, &mut buffer)[..n];
                        let (mean, r) = statistics(x, centred, eps);
                        *rstd = r;
                        if let Some(means) = &mut means {
                            means[i] = mean;
                        }
                        if affine {
                            (0..n).for_each(|j| y[j] = (x[j] - mean) * r * weight[j] + bias[j]);
                        } else {
                            (0..n).for_each(|j| y[j] = (x[j] - mean) * r);
                        }
                    }
                },
            );
        });
        Ok(())
    })
}

/// What the backwards read.
struct Tape<'a> {
    x: View<'a>,
    mean: Option<View<'a>>,
    rstd: View<'a>,
    dy: View<'a>,
    weight: Option<View<'a>>,
    /// Gradients of the statistics, where somebody used them.
    dmean: Option<View<'a>>,
    drstd: Option<View<'a>>,
}

/// The backward of both norms. `dparams`: of weight, of bias, where there are such.
///
/// With g = dy · weight: dx = rstd · (g − c₁ − x̂ · c₂) + dmean / n, where c₁ = Σ g / n (RMS norm: 0) and
/// c₂ = (Σ g x̂ + drstd · rstd) / n; dweight = Σ dy x̂ and dbias = Σ dy over the rows. rstd is 0 where a variance overflowed.
fn backward<A: Real>(
    tape: &Tape<'_>,
    n: usize,
    dx: &mut Out<'_>,
    dparams: [Option<&mut Out<'_>>; 2],
) -> Result<()> {
    let dparams = dparams.map(|d| d.filter(|d| d.wanted()));
    if tape.x.numel() == 0 {
        dparams.into_iter().flatten().for_each(|out| store(out, &vec![A::ZERO; n]));
        return Ok(());
    }
    // Chunks of rows depend on n alone, so the order of the sums does too.
    let each = (GRAIN / n).clamp(8, 256);
    let chunks = tape.rstd.numel().div_ceil(each);
    let parameters = dparams.iter().any(Option::is_some);
    let mut partial = Block::new(if parameters { chunks * 2 * n * size_of::<A>() } else { 0 })?;
    let partial = partial.typed_mut::<A>();
    if dx.wanted() {
        into_wide::<A>(dx, |dx, add| backward_pass(tape, (n, each), dx, add, partial))?;
    } else {
        backward_pass(tape, (n, each), &mut [], false, partial)?;
    }
    if parameters {
        join_rows(partial, chunks, 2 * n, |a, b| a + b);
        let (weight, bias) = partial[..2 * n].split_at(n);
        for (out, sums) in dparams.into_iter().zip([weight, bias]) {
            out.into_iter().for_each(|out| store(out, sums));
        }
    }
    Ok(())
}

/// Computes dx if it is not empty, and for each chunk of `each` rows the sums for weight and bias if `partial` is not empty.
fn backward_pass<A: Real>(
    tape: &Tape<'_>,
    (n, each): (usize, usize),
    dx: &mut [A],
    add: bool,
    partial: &mut [A],
) -> Result<()> {
    let (zero, count) = (A::ZERO, tape.rstd.numel());
    let stats = |v: Option<&View<'_>>| gathered(v, count, zero);
    let (means, rstds) = (stats(tape.mean.as_ref())?, stats(Some(&tape.rstd))?);
    let (dmeans, drstds) = (stats(tape.dmean.as_ref())?, stats(tape.drstd.as_ref())?);
    let (centred, over) = (tape.mean.is_some(), A::ONE / A::of(n as f64));
    let weight = gathered(tape.weight.as_ref(), n, A::ONE)?;
    let (mut x_wider, mut dy_wider, mut x_copy, mut dy_copy) = (None, None, None, None);
    let x = rows::<A>(wide(&tape.x, &mut x_wider)?, n, &mut x_copy)?;
    let dy = rows::<A>(wide(&tape.dy, &mut dy_wider)?, n, &mut dy_copy)?;
    let dxs = dx.chunks_mut(each * n).map(Some).chain(std::iter::repeat_with(|| None));
    let sums = partial.chunks_mut(2 * n).map(Some).chain(std::iter::repeat_with(|| None));
    let chunks = count.div_ceil(each);
    par::each(chunks, (0..chunks).zip(dxs).zip(sums), |((task, mut dx), mut sums)| {
        let mut x_row = vec![zero; if x.direct() { 0 } else { n }];
        let mut dy_row = vec![zero; if dy.direct() { 0 } else { n }];
        let weight = &weight[..n];
        vectorize::<A, _>(
            #[inline(always)]
            || {
                if let Some(sums) = &mut sums {
                    sums.fill(zero);
                }
                for i in task * each..count.min((task + 1) * each) {
                    let (x, dy) = (&x.row(i, n, &mut x_row)[..n], &dy.row(i, n, &mut dy_row)[..n]);
                    let (mean, r) = (means[i], rstds[i]);
                    if let Some(sums) = &mut sums {
                        let (dweight, dbias) = sums.split_at_mut(n);
                        let dbias = &mut dbias[..n];
                        for j in 0..n {
                            dweight[j] += dy[j] * ((x[j] - mean) * r);
                            dbias[j] += dy[j];
                        }
                    }
                    let Some(dx) = &mut dx else { continue };
                    let c1 = if centred { sum_slices([dy, weight], |[dy, w]| dy * w) } else { zero };
                    let (c1, shift) = (c1 * over, dmeans[i] * over);
                    let c2 = sum_slices([x, dy, weight], |[x, dy, w]| dy * w * ((x - mean) * r));
                    let c2 = (c2 + drstds[i] * r) * over;
                    let dx = &mut dx[(i - task * each) * n..][..n];
                    for j in 0..n {
                        let v = r * (dy[j] * weight[j] - c1 - (x[j] - mean) * r * c2) + shift;
                        dx[j] = if add { dx[j] + v } else { v };
                    }
                }
            },
        );
    });
    Ok(())
}

/// The inputs of a backward in the order x, (mean), rstd, dy, (weight), (dmean), (drstd).
fn tape<'a>(inputs: &[View<'a>], centred: bool, weight: bool, stats: bool) -> Tape<'a> {
    let mut next = inputs.iter().copied();
    let mut take = |there: bool| if there { next.next() } else { None };
    let expected = "infer counted the inputs";
    Tape {
        x: take(true).expect(expected),
        mean: take(centred),
        rstd: take(true).expect(expected),
        dy: take(true).expect(expected),
        weight: take(weight),
        dmean: take(stats && centred),
        drstd: take(stats),
    }
}

fn infer_backward(
    op: &'static str,
    inputs: &[Meta],
    shape: &Shape,
    (centred, weight, bias, stats): (bool, bool, bool, bool),
) -> Result<Plan> {
    let x = inputs[0];
    float_only(op, x.dtype)?;
    let lead = x.with_shape(stats_shape(op, &x.shape, shape)?).with_dtype(wide_dtype(x.dtype));
    let parameter = x.with_shape(*shape);
    let optional = |there: bool, meta: Meta| std::iter::repeat_n(meta, usize::from(there));
    let expected: Vec<Meta> = [x]
        .into_iter()
        .chain(optional(centred, lead))
        .chain([lead, x])
        .chain(optional(weight, parameter))
        .chain(optional(stats && centred, lead))
        .chain(optional(stats, lead))
        .collect();
    if inputs != expected {
        return Err(Error::shape(op, format!("inputs are {inputs:?}, expected {expected:?}")));
    }
    let outputs = [x].into_iter().chain(optional(weight, parameter)).chain(optional(bias, parameter));
    Ok(Plan { outputs: outputs.collect(), scratch: 0 })
}

/// Runs a backward: the gradients that reached the outputs, zeros where none did, and the targets in order.
fn deliver<O: Op>(
    cx: &mut BackwardCx<'_>,
    dys: &[Option<Tensor>],
    parameters: usize,
    saved: &[Tensor],
    weight: Option<Tensor>,
    op: impl Fn(bool) -> O,
) -> Result<()> {
    let filled = |i: usize, dy: &Option<Tensor>, cx: &BackwardCx<'_>| match dy {
        Some(dy) => Ok(dy.clone()),
        None => {
            let meta = cx.output_meta(i);
            Tensor::zeros((), meta.dtype, meta.device)?.expand(meta.shape)
        }
    };
    let stats = dys[1..].iter().any(Option::is_some);
    let mut inputs = saved.to_vec();
    inputs.push(filled(0, &dys[0], cx)?);
    inputs.extend(weight);
    if stats {
        for (i, dy) in dys.iter().enumerate().skip(1) {
            inputs.push(filled(i, dy, cx)?);
        }
    }
    let targets: Vec<usize> = (0..=parameters).collect();
    cx.run(op(stats), &inputs.iter().collect::<Vec<_>>(), &targets)
}

const SHAPES: [(&[usize], usize); 10] = [
    (&[7], 1),
    (&[5, 13], 1),
    (&[2, 3, 17], 1),
    (&[2, 3, 4], 2),
    (&[3, 5], 2),
    (&[2, 1023], 1),
    (&[1, 1025], 1),
    (&[300, 5], 1),
    (&[0, 4], 1),
    (&[2, 0], 1),
];

const WHY: &str = "mean, variance, a root and products; differences from the mean are as exact as x";

/// x̂ · weight + bias over the last dimensions, x̂ = (x − mean) / √(variance + eps); inputs x, weight and bias where there
/// are such; outputs y, mean and rstd = 1 / √(variance + eps), the latter two in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// The last dimensions, over which statistics are taken.
    pub shape: Shape,
    /// Whether there is a weight, of that shape.
    pub weight: bool,
    /// Whether there is a bias, of that shape.
    pub bias: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl Op for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const INPUTS: RangeInclusive<usize> = 1..=3;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1, 2])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let parameters = usize::from(self.weight) + usize::from(self.bias);
        infer(Self::NAME, inputs, &self.shape, parameters, 2)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let bias = self.bias.then(|| &inputs[1 + usize::from(self.weight)]);
        let how = (self.shape.numel(), true, self.eps);
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(inputs[0], (weight, bias), how, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let bias = self.bias.then(|| &inputs[1 + usize::from(self.weight)]);
        gpu::forward(stream, &inputs[0], (weight, bias), (self.shape.numel(), true, self.eps), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let saved = [cx.input(0)?, cx.output(1)?, cx.output(2)?];
        let weight = if self.weight { Some(cx.input(1)?) } else { None };
        let LayerNorm { shape, weight: has_weight, bias, .. } = *self;
        let parameters = usize::from(has_weight) + usize::from(bias);
        let op = |stats| LayerNormBackward { shape, weight: has_weight, bias, stats };
        deliver(cx, dys, parameters, &saved, weight, op)
    }

    fn cases() -> Cases<Self> {
        let mut list = Vec::new();
        for (k, (dims, normalized)) in SHAPES.iter().enumerate() {
            let shape = Shape::from_dims(&dims[dims.len() - normalized..]);
            for (weight, bias) in [(k % 2 == 0, k % 3 == 0), (true, true)] {
                let mut inputs = vec![Arg::new(dims, Values::Normal(2.0))];
                inputs.extend(weight.then(|| Arg::new(&shape, Values::Normal(1.0))));
                inputs.extend(bias.then(|| Arg::new(&shape, Values::Normal(1.0))));
                list.push(Case { op: LayerNorm { shape, weight, bias, eps: 1e-5 }, inputs });
            }
        }
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// dx, dweight and dbias (where there are such parameters) of [`LayerNorm`], from x, mean, rstd, dy, the weight if there is
/// one and, if `stats`, the gradients of mean and rstd.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormBackward {
    /// The last dimensions, over which statistics were taken.
    pub shape: Shape,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether gradients reached mean or rstd.
    pub stats: bool,
}

impl Op for LayerNormBackward {
    const NAME: &'static str = "layer_norm_backward";
    const INPUTS: RangeInclusive<usize> = 4..=7;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, inputs, &self.shape, (true, self.weight, self.bias, self.stats))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let tape = tape(inputs, true, self.weight, self.stats);
        let (dx, params) = outputs.split_at_mut(1);
        let (weights, biases) = params.split_at_mut(usize::from(self.weight));
        real!(Self::NAME, inputs[0].dtype(), A => {
            backward::<A>(&tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), biases.first_mut()])
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let tape = tape(inputs, true, self.weight, self.stats);
        let (dx, params) = outputs.split_at_mut(1);
        let (weights, biases) = params.split_at_mut(usize::from(self.weight));
        let dparams = [weights.first_mut(), biases.first_mut()];
        gpu::backward(stream, &tape, self.shape.numel(), &mut dx[0], dparams)
    }

    fn cases() -> Cases<Self> {
        let op = |shape, k: usize| LayerNormBackward {
            shape,
            weight: k.is_multiple_of(2),
            bias: !k.is_multiple_of(3),
            stats: k % 4 > 1,
        };
        backward_cases(op, true, |o| (o.weight, o.stats))
    }
}

/// Cases of a backward over all shapes; `flags` tells whether there is a weight and whether gradients reached the statistics.
fn backward_cases<O: Copy>(
    op: impl Fn(Shape, usize) -> O,
    centred: bool,
    flags: impl Fn(O) -> (bool, bool),
) -> Cases<O> {
    let case = |(k, (dims, normalized)): (usize, &(&[usize], usize))| {
        let (lead, shape) = dims.split_at(dims.len() - normalized);
        let op = op(Shape::from_dims(shape), k);
        let (weight, stats) = flags(op);
        let of = |there: bool, dims: &[usize], values: Values| there.then(|| Arg::constant(dims, values));
        // The statistics are f32 beside 16-bit inputs, so the dtypes below leave those out.
        let inputs = [
            of(true, dims, Values::Normal(2.0)),
            of(centred, lead, Values::Normal(0.1)),
            of(true, lead, Values::Uniform(0.3, 0.7)),
            of(true, dims, Values::Normal(1.0)),
            of(weight, shape, Values::Normal(1.0)),
            of(stats && centred, lead, Values::Normal(1.0)),
            of(stats, lead, Values::Normal(1.0)),
        ];
        Case { op, inputs: inputs.into_iter().flatten().collect() }
    };
    let list = SHAPES.iter().enumerate().map(case).collect();
    // Over equal rows all additions of a chain may round to one side.
    let why = "chains of at most 32 additions joined in a tree, and the roundings of what is added";
    Cases { dtypes: &[DType::F32, DType::F64], tolerance: Tolerance::Sum(40.0, why), list }
}

/// x · weight / √(mean of x² + eps) over the last dimensions; inputs x and weight where there is one; outputs y and
/// rstd = 1 / √(mean of x² + eps), the latter in f32 (f64 in f64).
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// The last dimensions, over which the mean is taken.
    pub shape: Shape,
    /// Whether there is a weight, of that shape.
    pub weight: bool,
    /// Added to the mean square.
    pub eps: f64,
}

impl Op for RmsNorm {
    const NAME: &'static str = "rms_norm";
    const INPUTS: RangeInclusive<usize> = 1..=2;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(if self.weight { &[0, 1] } else { &[0] }).and_outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer(Self::NAME, inputs, &self.shape, usize::from(self.weight), 1)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        let how = (self.shape.numel(), false, self.eps);
        real!(Self::NAME, inputs[0].dtype(), A => forward::<A>(inputs[0], (weight, None), how, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let weight = self.weight.then(|| &inputs[1]);
        gpu::forward(stream, &inputs[0], (weight, None), (self.shape.numel(), false, self.eps), outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let saved = [cx.input(0)?, cx.output(1)?];
        let weight = if self.weight { Some(cx.input(1)?) } else { None };
        let RmsNorm { shape, weight: has_weight, .. } = *self;
        let op = |stats| RmsNormBackward { shape, weight: has_weight, stats };
        deliver(cx, dys, usize::from(has_weight), &saved, weight, op)
    }

    fn cases() -> Cases<Self> {
        let case = |(k, (dims, normalized)): (usize, &(&[usize], usize))| {
            let shape = Shape::from_dims(&dims[dims.len() - normalized..]);
            let weight = k % 3 > 0;
            let mut inputs = vec![Arg::new(dims, Values::Normal(2.0))];
            inputs.extend(weight.then(|| Arg::new(&shape, Values::Normal(1.0))));
            Case { op: RmsNorm { shape, weight, eps: 1e-5 }, inputs }
        };
        let list = SHAPES.iter().enumerate().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(16.0, WHY), list }
    }
}

/// dx and dweight (where there is one) of [`RmsNorm`], from x, rstd, dy, the weight if there is one and, if `stats`, the
/// gradient of rstd.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormBackward {
    /// The last dimensions, over which the mean was taken.
    pub shape: Shape,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether a gradient reached rstd.
    pub stats: bool,
}

impl Op for RmsNormBackward {
    const NAME: &'static str = "rms_norm_backward";
    const INPUTS: RangeInclusive<usize> = 3..=5;
    const SKIPS: bool = true;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        infer_backward(Self::NAME, inputs, &self.shape, (false, self.weight, false, self.stats))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let tape = tape(inputs, false, self.weight, self.stats);
        let (dx, weights) = outputs.split_at_mut(1);
        real!(Self::NAME, inputs[0].dtype(), A => {
            backward::<A>(&tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), None])
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let tape = tape(inputs, false, self.weight, self.stats);
        let (dx, weights) = outputs.split_at_mut(1);
        gpu::backward(stream, &tape, self.shape.numel(), &mut dx[0], [weights.first_mut(), None])
    }

    fn cases() -> Cases<Self> {
        let op = |shape, k: usize| RmsNormBackward { shape, weight: k.is_multiple_of(2), stats: k % 4 > 1 };
        backward_cases(op, false, |o| (o.weight, o.stats))
    }
}

impl Tensor {
    /// Layer norm over the last dimensions, which must be `shape`: (x − mean) / √(variance + eps), times `weight`, plus
    /// `bias`, where given (both of that shape, of this dtype). PyTorch's usual `eps` is 1e-5.
    #[track_caller]
    pub fn layer_norm(
        &self,
        shape: impl IntoShape,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let op =
            LayerNorm { shape: shape.into_shape()?, weight: weight.is_some(), bias: bias.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight, bias].into_iter().flatten().collect();
        Ok(run(op, &inputs)?.swap_remove(0))
    }

    /// RMS norm over the last dimensions, which must be `shape`: x / √(mean of x² + eps), times `weight` where given (of that
    /// shape, of this dtype). PyTorch's default `eps` is the machine epsilon of the dtype.
    #[track_caller]
    pub fn rms_norm(&self, shape: impl IntoShape, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = RmsNorm { shape: shape.into_shape()?, weight: weight.is_some(), eps };
        let inputs: Vec<&Tensor> = [Some(self), weight].into_iter().flatten().collect();
        Ok(run(op, &inputs)?.swap_remove(0))
    }
}
