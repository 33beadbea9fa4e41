//! Reductions over any set of axes: sum and mean here, extrema in `extremum`, variance and log-sum-exp in `moments`; and
//! what they share: the set of axes, the shape rule, and the elementwise pass of their backwards.
//!
//! An empty list of axes means all of them. 16-bit floats are added up in f32 and rounded once, integers in i64. The
//! gradient of a sum is an expanded view: no memory is written for it.

#![forbid(unsafe_code)]

pub(in crate::ops) mod gpu;

use std::ops::RangeInclusive;

use std::fmt;

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::copy::move_elements;
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::cpu::reduce::{self, Fold, GRAIN, IntSum, Reduction, inlined, vectorize};
use crate::cpu::strided::Runs;
use crate::device::Stream;
use crate::dtype::{Element, Real};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

super::family!(Sum, Mean, MeanBackward);

/// A set of dimensions, by position.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Axes(u8);

impl Axes {
    /// Dimensions `dims` of `shape`, negative ones counted from the end; all of them if `dims` is empty. An error, which
    /// names `op`, for one that does not exist or comes twice.
    pub fn resolve(op: &'static str, shape: &Shape, dims: &[isize]) -> Result<Axes> {
        if dims.is_empty() {
            return Ok(Axes::all(shape.rank()));
        }
        let mut axes = Axes(0);
        for &dim in dims {
            let d = shape.dim(op, dim)?;
            if axes.contains(d) {
                return Err(Error::shape(op, format!("dimension {dim} of {shape} comes twice in {dims:?}")));
            }
            axes.0 |= 1 << d;
        }
        Ok(axes)
    }

    /// All dimensions of a tensor of this rank.
    pub fn all(rank: usize) -> Axes {
        Axes(((1u16 << rank) - 1) as u8)
    }

    /// The dimensions below `rank` for which `goes` is true.
    pub(super) fn of(rank: usize, goes: impl Fn(usize) -> bool) -> Axes {
        Axes((0..rank).filter(|&d| goes(d)).fold(0, |set, d| set | 1 << d))
    }

    /// Whether dimension `d` is in the set.
    pub fn contains(self, d: usize) -> bool {
        self.0 >> d & 1 == 1
    }

    /// `shape` with these dimensions of size 1.
    pub(super) fn kept(self, shape: &Shape) -> Shape {
        (0..shape.rank()).filter(|&d| self.contains(d)).fold(*shape, |s, d| s.with(d, 1))
    }

    /// The number of elements of `shape` behind each output.
    pub(super) fn count(self, shape: &Shape) -> usize {
        shape.iter().enumerate().filter(|(d, _)| self.contains(*d)).map(|(_, n)| n).product()
    }

    /// The shape rule: these dimensions gone, or of size 1 if `keepdim`.
    pub(super) fn infer(self, op: &'static str, shape: &Shape, keepdim: bool) -> Result<Shape> {
        let rank = shape.rank();
        if let Some(d) = (rank..8).find(|&d| self.contains(d)) {
            return Err(Error::shape(op, format!("dimension {d} is out of range for shape {shape}")));
        }
        if keepdim {
            return Ok(self.kept(shape));
        }
        Shape::new(&(0..rank).filter(|&d| !self.contains(d)).map(|d| shape[d]).collect::<Vec<_>>())
    }

    /// A tensor of the result's shape with the dimensions that were reduced put back, of size 1.
    pub(super) fn restore(self, tensor: &Tensor, input: &Shape, keepdim: bool) -> Result<Tensor> {
        if keepdim {
            return Ok(tensor.clone());
        }
        let mut out = tensor.clone();
        for d in (0..input.rank()).filter(|&d| self.contains(d)) {
            out = out.unsqueeze(d as isize)?;
        }
        Ok(out)
    }

    /// The plan of the reduction of `view`.
    pub(super) fn plan(self, view: &View<'_>) -> Reduction {
        Reduction::new(view.layout(), |d| self.contains(d))
    }
}

impl fmt::Debug for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..8).filter(|&d| self.contains(d))).finish()
    }
}

/// What all reductions of floats check.
pub(super) fn float_only(op: &'static str, dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::dtype(op, format!("needs a floating-point tensor, not {dtype}"))
        .with_help("cast it first, as in to_dtype(DType::F32)"))
}

/// That all inputs of a backward have the shape and dtype that they have if forward called it.
pub(super) fn same_dtype(op: &'static str, inputs: &[Meta]) -> Result<()> {
    float_only(op, inputs[0].dtype)?;
    match inputs.iter().find(|m| m.dtype != inputs[0].dtype) {
        Some(other) => Err(Error::dtype(op, format!("inputs of {} and {}", inputs[0].dtype, other.dtype))
            .with_help(format!("cast one, as in to_dtype({})", inputs[0].dtype))),
        None => Ok(()),
    }
}

/// Reduces `view` into memory from the pool.
pub(super) fn folded<E: Element, F: Fold<E>>(
    plan: &Reduction,
    fold: &F,
    view: &View<'_>,
    params: &[F::Param],
) -> Result<Block> {
    let mut block = Block::new(plan.outputs * size_of::<F::Acc>())?;
    plan.fold(fold, view.data::<E>(), params, block.typed_mut())?;
    Ok(block)
}

/// Σ over `axes` of a view of f32 or f64.
pub(super) fn sums<A: Real>(axes: Axes, view: &View<'_>) -> Result<Block> {
    let plan = axes.plan(view);
    folded::<A, _>(&plan, &reduce::Sum, view, &vec![(); plan.outputs])
}

/// `view` in the type that is computed in: f32 for 16-bit floats, i64 for shorter integers, else itself. The values are put
/// into `copy` where that is another type: one loop for each kernel instead of one for each type.
pub(super) fn wide<'a>(view: &View<'a>, copy: &'a mut Option<Block>) -> Result<View<'a>> {
    let to = wide_dtype(view.dtype());
    if to == view.dtype() {
        return Ok(*view);
    }
    let (shape, layout) = (view.shape(), Layout::contiguous(view.shape()));
    let block = copy.insert(Block::new(view.numel() * to.size())?);
    dispatch!(view.dtype(), S => {
        let (data, from) = (view.data::<S>(), view.layout());
        Ok(if to == DType::F32 {
            move_elements(data, from, block.typed_mut::<f32>(), &layout, false);
            View::of(block.typed::<f32>(), shape)
        } else {
            move_elements(data, from, block.typed_mut::<i64>(), &layout, false);
            View::of(block.typed::<i64>(), shape)
        })
    })
}

/// The elements of `view` in row-major order as `A`, put into `copy` where they do not lie so already.
pub(super) fn packed<'a, A: Element>(view: &View<'a>, copy: &'a mut Option<Block>) -> Result<&'a [A]> {
    if view.dtype() == A::DTYPE
        && let Some(slice) = view.slice()
    {
        return Ok(slice);
    }
    let block = copy.insert(Block::new(view.numel() * size_of::<A>())?);
    let to = Layout::contiguous(view.shape());
    dispatch!(view.dtype(), S => move_elements(view.data::<S>(), view.layout(), block.typed_mut::<A>(), &to, false));
    Ok(block.typed())
}

/// The type that elements of `dtype` are computed in.
pub(super) fn wide_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 => DType::F32,
        DType::F64 => DType::F64,
        DType::U8 | DType::I32 | DType::I64 => DType::I64,
    }
}

/// Runs `$body` with `$A` bound to the type that floats of a [`DType`] are computed in.
macro_rules! real {
    ($op:expr, $dtype:expr, $A:ident => $body:expr) => {
        match $crate::ops::reduce::wide_dtype($dtype) {
            $crate::DType::F32 => {
                type $A = f32;
                $body
            }
            $crate::DType::F64 => {
                type $A = f64;
                $body
            }
            _ => $crate::ops::reduce::float_only($op, $dtype),
        }
    };
}
pub(super) use real;

/// Rounds the values into `out`, by its mode.
pub(super) fn store<A: Element>(out: &mut Out<'_>, values: &[A]) {
    let add = out.mode() == Mode::Accumulate;
    dispatch!(out.dtype(), T => {
        if !add && T::DTYPE == A::DTYPE {
            out.slice::<T>().copy_from_slice(bytemuck::cast_slice(values));
            return;
        }
        for (o, v) in out.slice::<T>().iter_mut().zip(values) {
            *o = T::from_f64(if add { o.to_f64() + v.to_f64() } else { v.to_f64() });
        }
    })
}

/// Has `write` compute an output in the type that is computed in: in place where it is of that type, else beside it, then
/// rounded. The flag says whether to add.
pub(super) fn into_wide<A: Real>(
    out: &mut Out<'_>,
    write: impl FnOnce(&mut [A], bool) -> Result<()>,
) -> Result<()> {
    if out.dtype() == A::DTYPE {
        let add = out.mode() == Mode::Accumulate;
        return write(out.slice::<A>(), add);
    }
    let mut block = Block::new(out.shape().numel() * size_of::<A>())?;
    write(block.typed_mut(), false)?;
    store(out, block.typed::<A>());
    Ok(())
}

/// Elements that [`map`] works on at a time.
const STRIP: usize = 256;

/// `f` of the elements of `inputs`, expanded to the shape of `out`, by the mode of `out`.
pub(super) fn map<A: Real, const N: usize>(
    inputs: [View<'_>; N],
    out: &mut Out<'_>,
    f: impl Fn([A; N]) -> A + Sync,
) -> Result<()> {
    let mut copies = [const { None }; N];
    let mut layouts = [Layout::contiguous(out.shape()); N];
    let mut data: [&[A]; N] = [&[]; N];
    for (k, copy) in copies.iter_mut().enumerate() {
        let input = wide(&inputs[k], copy)?.expand(&out.shape())?;
        (layouts[k], data[k]) = (*input.layout(), input.data());
    }
    let runs = Runs::new(std::array::from_fn(|k| &layouts[k]));
    into_wide(out, |out, add| {
        map_runs(&runs, data, out, add, f);
        Ok(())
    })
}

fn map_runs<A: Real, const N: usize>(
    runs: &Runs<N>,
    data: [&[A]; N],
    out: &mut [A],
    add: bool,
    f: impl Fn([A; N]) -> A + Sync,
) {
    if runs.count == 0 {
        return;
    }
    // `part` are the elements from number `from` on of a run that starts at `at`.
    let strip = inlined(
        #[inline(always)]
        |at: [usize; N], from: usize, part: &mut [A]| {
            let mut lanes = [[A::ZERO; STRIP]; N];
            let n = part.len();
            for k in 0..N {
                let (stride, lane) = (runs.strides[k], &mut lanes[k][..n]);
                let start = at[k] + from * stride;
                match stride {
                    0 => lane.fill(data[k][start]),
                    1 => lane.copy_from_slice(&data[k][start..start + n]),
                    _ => lane.iter_mut().enumerate().for_each(|(i, l)| *l = data[k][start + i * stride]),
                }
            }
            for (i, o) in part.iter_mut().enumerate() {
                let v = f(std::array::from_fn(|k| lanes[k][i]));
                *o = if add { *o + v } else { v };
            }
        },
    );
    let len = runs.len;
    let whole = (GRAIN / len).max(1);
    let tasks = out.chunks_mut(whole * len).enumerate().flat_map(|(i, runs)| {
        let size = if whole == 1 { GRAIN } else { runs.len() };
        runs.chunks_mut(size).enumerate().map(move |(k, part)| (i * whole, k * size, part))
    });
    let count = runs.count.div_ceil(whole) * if whole == 1 { len.div_ceil(GRAIN) } else { 1 };
    par::each(count, tasks, |(first, from, part)| {
        let mut pieces = part.chunks_mut(len);
        vectorize::<A, _>(
            #[inline(always)]
            || {
                runs.visit(
                    first..first + pieces.len(),
                    #[inline(always)]
                    |_, at| {
                        // Plain loops: the adaptors of iterators are not always inlined.
                        let mut from = from;
                        for part in pieces.next().expect("as many pieces as runs").chunks_mut(STRIP) {
                            strip(at, from, part);
                            from += STRIP;
                        }
                    },
                );
            },
        );
    });
}

/// Cases of a reduction over many shapes and sets of axes; `op` makes the op.
pub(super) fn cases<O>(
    dtypes: &'static [DType],
    tolerance: Tolerance,
    values: Values,
    op: impl Fn(Axes, bool) -> O,
    empty: bool,
) -> Cases<O> {
    let shapes: [(&[usize], &[&[isize]]); 13] = [
        (&[], &[&[]]),
        (&[1], &[&[0]]),
        (&[7], &[&[]]),
        (&[5, 13], &[&[0], &[1], &[]]),
        (&[2, 3, 17], &[&[0], &[1], &[2], &[0, 2], &[0, 1], &[1, 2]]),
        (&[1, 4, 1, 9], &[&[0], &[1, 3], &[-1]]),
        (&[2, 3, 2, 3, 2], &[&[1, 3], &[0, 2, 4]]),
        (&[1023], &[&[0]]),
        (&[2, 1025], &[&[1], &[0]]),
        (&[300, 5], &[&[0]]),
        (&[65, 33], &[&[0], &[1]]),
        (&[4, 0, 3], &[&[0], &[2]]),
        (&[0, 3], &[&[0], &[]]),
    ];
    let mut list = Vec::new();
    for (shape, sets) in shapes {
        for dims in sets {
            let shape = Shape::from_dims(shape);
            let axes = Axes::resolve("cases", &shape, dims).expect("the axes above exist");
            if axes.count(&shape) == 0 && !empty {
                continue;
            }
            let inputs = vec![Arg::new(&shape, values.clone())];
            list.push(Case { op: op(axes, list.len() % 2 == 1), inputs });
        }
    }
    Cases { dtypes, tolerance, list }
}

/// Σ x over `axes`. Floats keep their type; integers give i64 and wrap on overflow. Over nothing: 0. Gradient: dx = dy.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// The dimensions to reduce.
    pub axes: Axes,
    /// Whether they stay, of size 1.
    pub keepdim: bool,
}

impl Op for Sum {
    const NAME: &'static str = "sum";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let shape = self.axes.infer(Self::NAME, &inputs[0].shape, self.keepdim)?;
        let dtype = if inputs[0].dtype.is_float() { inputs[0].dtype } else { DType::I64 };
        Ok(Plan::one(inputs[0].with_shape(shape).with_dtype(dtype)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        let (x, dtype) = (wide(&inputs[0], &mut copy)?, inputs[0].dtype());
        if !dtype.is_float() {
            let plan = self.axes.plan(&x);
            let sums = folded::<i64, _>(&plan, &IntSum, &x, &vec![(); plan.outputs])?;
            store::<i64>(&mut outputs[0], sums.typed());
            return Ok(());
        }
        real!(Self::NAME, dtype, A => {
            store::<A>(&mut outputs[0], sums::<A>(self.axes, &x)?.typed());
            Ok(())
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        if !inputs[0].dtype().is_float() {
            return gpu::integer_sum(stream, &inputs[0], self.axes, &mut outputs[0]);
        }
        gpu::fold(stream, gpu::Fold::Total, (&inputs[0], None), self.axes, (1.0, false), &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let shape = cx.input_meta(0).shape;
        cx.give(0, self.axes.restore(dy, &shape, self.keepdim)?.expand(shape)?)
    }

    fn cases() -> Cases<Self> {
        let tolerance = Tolerance::Sum(4.0, "chains of at most 32 additions joined in a tree");
        let op = |axes, keepdim| Sum { axes, keepdim };
        cases(&DType::ALL, tolerance, Values::Normal(3.0), op, true)
    }
}

/// Σ x / n over `axes`, n elements each. Over nothing: NaN. Gradient: dx = dy / n.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    /// The dimensions to reduce.
    pub axes: Axes,
    /// Whether they stay, of size 1.
    pub keepdim: bool,
}

impl Op for Mean {
    const NAME: &'static str = "mean";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        let shape = self.axes.infer(Self::NAME, &inputs[0].shape, self.keepdim)?;
        Ok(Plan::one(inputs[0].with_shape(shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let mut copy = None;
        let (x, dtype) = (wide(&inputs[0], &mut copy)?, inputs[0].dtype());
        real!(Self::NAME, dtype, A => {
            let n = A::of(self.axes.count(&x.shape()) as f64);
            let mut means = sums::<A>(self.axes, &x)?;
            means.typed_mut::<A>().iter_mut().for_each(|m| *m /= n);
            store::<A>(&mut outputs[0], means.typed());
            Ok(())
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let n = self.axes.count(&inputs[0].shape()) as f32;
        gpu::fold(stream, gpu::Fold::Total, (&inputs[0], None), self.axes, (n, false), &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let shape = cx.input_meta(0).shape;
        let count = self.axes.count(&shape);
        // Divided while it is small.
        let dy = run1(MeanBackward { count }, &[dy])?;
        cx.give(0, self.axes.restore(&dy, &shape, self.keepdim)?.expand(shape)?)
    }

    fn cases() -> Cases<Self> {
        let tolerance = Tolerance::Sum(4.0, "a sum and one division");
        let op = |axes, keepdim| Mean { axes, keepdim };
        cases(&DType::FLOATS, tolerance, Values::Normal(3.0), op, true)
    }
}

/// dy / n: the gradient of [`Mean`] before it is expanded. Gradient: once more / n.
#[derive(Clone, Copy, Debug)]
pub struct MeanBackward {
    /// The number of elements that each mean was taken over.
    pub count: usize,
}

impl Op for MeanBackward {
    const NAME: &'static str = "mean_backward";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        float_only(Self::NAME, inputs[0].dtype)?;
        Ok(Plan::one(inputs[0]))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        real!(Self::NAME, inputs[0].dtype(), A => {
            let n = A::of(self.count as f64);
            map::<A, 1>([inputs[0]], &mut outputs[0], #[inline(always)] |[dy]| dy / n)
        })
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (dy, n) = ([None, None, Some(&inputs[0])], self.count as f32);
        gpu::spread(stream, gpu::Spread::SpreadMean, dy, None, (n, 1.0), &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        dys[0].iter().try_for_each(|dy| cx.run(*self, &[dy], &[0]))
    }

    fn cases() -> Cases<Self> {
        Cases::over_shapes(
            &DType::FLOATS,
            Tolerance::Ulp(0.5, "one division"),
            Values::Normal(1.0),
            |shape| MeanBackward { count: 3 + shape.len() },
        )
    }
}

impl Tensor {
    /// The sum over dimensions `dims`, all if empty; negative ones count from the end. They stay, of size 1, if `keepdim`.
    /// Integers are added up in i64, which is also the result's type.
    #[track_caller]
    pub fn sum(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let axes = Axes::resolve(Sum::NAME, &self.shape(), dims)?;
        run1(Sum { axes, keepdim }, &[self])
    }

    /// The mean over dimensions `dims`, all if empty; negative ones count from the end. They stay, of size 1, if `keepdim`.
    /// NaN over nothing; an error for integers.
    #[track_caller]
    pub fn mean(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let axes = Axes::resolve(Mean::NAME, &self.shape(), dims)?;
        run1(Mean { axes, keepdim }, &[self])
    }
}
