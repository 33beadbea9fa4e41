//! Sorting along one dimension, the k largest or smallest, and where their gradients go.
//!
//! NaN counts as the largest number and the two zeros as equal, as in PyTorch. Sorting is stable: of equal elements the one
//! with the lower index comes first, also among those that [`TopK`] chooses. So values and indices have one right answer,
//! whatever the algorithm, the number of threads or the device.

#![forbid(unsafe_code)]

mod gpu;
mod rows;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use super::index::{Index, float_dtype, index_dtype, out_of_range};
use super::softmax::position_of;
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run};
use crate::cpu::copy::move_elements;
use crate::cpu::par;
use crate::cpu::pool::Block;
use crate::device::Stream;
use crate::dtype::{Element, Float, Real};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

use rows::{Key, sort_rows};

super::family!(Sort, TopK, SortBackward);

/// The size of dimension `dim`; a 0-d tensor has a dimension 0 of size 1 here, as in PyTorch.
fn extent(shape: &Shape, dim: usize) -> usize {
    if shape.rank() == 0 { 1 } else { shape[dim] }
}

/// `shape` with another size of dimension `dim`.
fn resized(shape: &Shape, dim: usize, size: usize) -> Result<Shape> {
    match (shape.rank(), size) {
        (0, 1) => Ok(*shape),
        (0, _) => Shape::new(&[size]),
        _ => Shape::new(&shape.with(dim, size)),
    }
}

/// The elements seen with dimension `dim` as the last one.
fn turned(layout: &Layout, dim: usize) -> Result<Layout> {
    let rank = layout.shape.rank();
    let order: Vec<usize> = (0..rank).filter(|&d| d != dim).chain((0..rank).filter(|&d| d == dim)).collect();
    layout.permute(&order)
}

/// The elements of a view as rows along `dim`, one after the other: itself if they lie so, else a copy.
fn as_rows<'a, T: Element>(view: &View<'a>, dim: usize, copy: &'a mut Option<Block>) -> Result<&'a [T]> {
    let (layout, n) = (turned(view.layout(), dim)?, view.numel());
    if layout.is_contiguous() {
        return Ok(&view.data::<T>()[layout.offset..][..n]);
    }
    let block = copy.insert(Block::new(n * size_of::<T>())?);
    move_elements(
        view.data::<T>(),
        &layout,
        block.typed_mut::<T>(),
        &Layout::contiguous(layout.shape),
        false,
    );
    Ok(block.typed())
}

/// Has `write` fill rows along `dim`, in place where they lie so in `out`, else beside it.
fn into_rows<T: Element>(out: &mut Out<'_>, dim: usize) -> Result<(Layout, Option<Block>)> {
    let layout = turned(&Layout::contiguous(out.shape()), dim)?;
    let beside = !layout.is_contiguous();
    Ok((layout, if beside { Some(Block::new(layout.numel() * size_of::<T>())?) } else { None }))
}

/// Values and indices of the first `keep` elements of every row, sorted.
fn sorted<T: Key>(
    x: View<'_>,
    dim: usize,
    descending: bool,
    keep: usize,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let [values, places] = outputs else { return Err(Error::internal("sorting has two outputs")) };
    if values.shape().numel() == 0 {
        return Ok(());
    }
    let n = extent(&x.shape(), dim);
    let mut copy = None;
    let x = as_rows::<T>(&x, dim, &mut copy)?;
    let (layout, mut beside) = into_rows::<T>(values, dim)?;
    let (_, mut places_beside) = into_rows::<i64>(places, dim)?;
    sort_rows(
        x,
        n,
        keep,
        descending,
        beside.as_mut().map_or_else(|| values.slice::<T>(), |b| b.typed_mut()),
        places_beside.as_mut().map_or_else(|| places.slice::<i64>(), |b| b.typed_mut()),
    );
    let packed = Layout::contiguous(layout.shape);
    if let (Some(v), Some(p)) = (&beside, &places_beside) {
        move_elements(v.typed::<T>(), &packed, values.slice::<T>(), &layout, false);
        move_elements(p.typed::<i64>(), &packed, places.slice::<i64>(), &layout, false);
    }
    Ok(())
}

/// The plan of two outputs of `shape`.
fn plan(x: Meta, shape: Shape) -> Plan {
    Plan { outputs: vec![x.with_shape(shape), x.with_shape(shape).with_dtype(DType::I64)], scratch: 0 }
}

fn check_dim(op: &'static str, shape: &Shape, dim: usize) -> Result<()> {
    if dim < shape.rank().max(1) {
        return Ok(());
    }
    Err(Error::shape(op, format!("dimension {dim} is out of range for shape {shape}")))
}

/// The gradient of both ops: dy goes where the values came from.
fn send_back(dim: usize, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
    let Some(dy) = &dys[0] else { return Ok(()) };
    let size = extent(&cx.input_meta(0).shape, dim);
    let places = cx.output(1)?;
    cx.run(SortBackward { dim, size }, &[dy, &places], &[0])
}

/// Dimension, shape and values of the cases that sorting and choosing share.
const SHAPES: [(usize, &[usize]); 16] = [
    (0, &[]),
    (0, &[1]),
    (0, &[7]),
    (1, &[5, 13]),
    (0, &[5, 13]),
    (1, &[2, 3, 17]),
    (0, &[4, 1, 9]),
    (1, &[4, 1, 9]),
    (0, &[0]),
    (1, &[3, 0, 2]),
    (0, &[3, 0, 2]),
    (1, &[2, 1023]),
    (0, &[1025]),
    (1, &[70, 16]),
    (0, &[33, 40]),
    // More than one tile of a GPU's.
    (1, &[2, 4500]),
];

/// All different; and few values, so that the order of equal ones shows.
fn values() -> [Values; 2] {
    [Values::Distinct(0.01), Values::OneOf(&[0.0, -0.0, 1.0, 2.0, 3.0, -1.0])]
}

/// All elements along one dimension in ascending or descending order, and where each stood. Gradient: dy put back there.
#[derive(Clone, Copy, Debug)]
pub struct Sort {
    /// The dimension.
    pub dim: usize,
    /// Whether the largest comes first.
    pub descending: bool,
}

impl Op for Sort {
    const NAME: &'static str = "sort";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        check_dim(Self::NAME, &inputs[0].shape, self.dim)?;
        Ok(plan(inputs[0], inputs[0].shape))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let keep = extent(&inputs[0].shape(), self.dim);
        dispatch!(inputs[0].dtype(), T => sorted::<T>(inputs[0], self.dim, self.descending, keep, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let keep = extent(&inputs[0].shape(), self.dim);
        gpu::sorted(stream, &inputs[0], self.dim, self.descending, keep, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        send_back(self.dim, cx, dys)
    }

    fn cases() -> Cases<Self> {
        let [distinct, few] = values();
        let mut list = Vec::new();
        for (number, (dim, shape)) in SHAPES.into_iter().enumerate() {
            list.push(Case {
                op: Sort { dim, descending: number % 2 == 1 },
                inputs: vec![Arg::new(shape, distinct.clone())],
            });
            list.push(Case {
                op: Sort { dim, descending: number % 2 == 0 },
                inputs: vec![Arg::constant(shape, few.clone())],
            });
        }
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list }
    }
}

/// The `k` largest or smallest elements along one dimension, in that order, and where they stood. Gradient: dy put back
/// there, 0 elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    /// How many.
    pub k: usize,
    /// The dimension.
    pub dim: usize,
    /// Whether the largest are wanted, and the largest comes first.
    pub largest: bool,
}

impl Op for TopK {
    const NAME: &'static str = "topk";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::outputs(&[1])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let shape = inputs[0].shape;
        check_dim(Self::NAME, &shape, self.dim)?;
        let (k, n) = (self.k, extent(&shape, self.dim));
        if k > n {
            let message = format!("{k} elements wanted of {n} along dimension {} of {shape}", self.dim);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(plan(inputs[0], resized(&shape, self.dim, k)?))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(inputs[0].dtype(), T => sorted::<T>(inputs[0], self.dim, self.largest, self.k, outputs))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::sorted(stream, &inputs[0], self.dim, self.largest, self.k, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        send_back(self.dim, cx, dys)
    }

    fn cases() -> Cases<Self> {
        let [distinct, few] = values();
        let mut list = Vec::new();
        for (number, (dim, shape)) in SHAPES.into_iter().enumerate() {
            let n = extent(&Shape::from_dims(shape), dim);
            // Nothing, one, a few, many, all; those that are one more time in the list do no harm.
            for k in [0, 1, 3, n / 2, n] {
                let constant = k == n / 2;
                let values = if constant { few.clone() } else { distinct.clone() };
                let input = Arg { grad: !constant, ..Arg::new(shape, values) };
                let op = TopK { k: k.min(n), dim, largest: (number + k).is_multiple_of(2) };
                list.push(Case { op, inputs: vec![input] });
            }
        }
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list }
    }
}

/// dy put where `index` says along `dim`, into zeros with `size` places there: the backward of [`Sort`] and [`TopK`].
/// Where an index recurs, which those of a sort do not, the last one counts.
#[derive(Clone, Copy, Debug)]
pub struct SortBackward {
    /// The dimension.
    pub dim: usize,
    /// Its size in the tensor that was sorted.
    pub size: usize,
}

impl SortBackward {
    fn body<T: Float, I: Index>(&self, dy: View<'_>, index: View<'_>, out: &mut Out<'_>) -> Result<()> {
        let k = extent(&dy.shape(), self.dim);
        let (mut copy, mut index_copy) = (None, None);
        let dys = as_rows::<T>(&dy, self.dim, &mut copy)?;
        let places = as_rows::<I>(&index, self.dim, &mut index_copy)?;
        if !places.iter().all(|p| p.place() < self.size) {
            return Err(out_of_range(Self::NAME, index, self.size, None));
        }
        if out.shape().numel() == 0 {
            return Ok(());
        }
        let (layout, mut beside) = into_rows::<T>(out, self.dim)?;
        let add = out.mode() == Mode::Accumulate;
        let (rows, direct) = match &mut beside {
            Some(block) => (block.typed_mut::<T>(), false),
            None => (out.slice::<T>(), add),
        };
        let per = (rows::GRAIN / self.size).max(1);
        par::for_each_chunk_mut(rows, per * self.size, |task, rows| {
            let mut found = vec![T::from_acc(T::Acc::ZERO); if direct { self.size } else { 0 }];
            for (r, row) in rows.chunks_exact_mut(self.size).enumerate() {
                let first = (task * per + r) * k;
                let pairs = places[first..first + k].iter().zip(&dys[first..first + k]);
                let target = if direct { &mut found[..] } else { &mut *row };
                target.fill(T::from_acc(T::Acc::ZERO));
                pairs.for_each(|(place, &dy)| target[place.place()] = dy);
                if direct {
                    let sums = row.iter_mut().zip(&found);
                    sums.for_each(|(o, v)| *o = T::from_acc(o.to_acc() + v.to_acc()));
                }
            }
        });
        if let Some(block) = &beside {
            let packed = Layout::contiguous(layout.shape);
            move_elements(block.typed::<T>(), &packed, out.slice::<T>(), &layout, add);
        }
        Ok(())
    }
}

impl Op for SortBackward {
    const NAME: &'static str = "sort_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, index) = (inputs[0], inputs[1]);
        float_dtype(Self::NAME, dy.dtype)?;
        index_dtype(Self::NAME, index.dtype)?;
        check_dim(Self::NAME, &dy.shape, self.dim)?;
        if dy.shape != index.shape {
            let message = format!("dy {} must have the shape of the index {}", dy.shape, index.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        Ok(Plan::one(dy.with_shape(resized(&dy.shape, self.dim, self.size)?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (dy, index) = (inputs[0], inputs[1]);
        dispatch!(float dy.dtype(), T => dispatch!(int index.dtype(), I => {
            self.body::<T, I>(dy, index, &mut outputs[0])
        }, else index_dtype(Self::NAME, index.dtype())), else float_dtype(Self::NAME, dy.dtype()))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        gpu::put_back(stream, self, &inputs[0], &inputs[1], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let shapes: [(usize, &[usize], usize); 10] = [
            (0, &[], 1),
            (0, &[7], 7),
            (0, &[3], 40),
            (1, &[5, 13], 13),
            (0, &[5, 13], 9),
            (1, &[2, 3, 17], 4),
            (1, &[3, 0], 5),
            (1, &[3, 0, 2], 0),
            (0, &[0, 4], 3),
            (1, &[3, 700], 1030),
        ];
        let case = |(dim, shape, size): (usize, &[usize], usize)| Case {
            op: SortBackward { dim, size },
            inputs: vec![
                Arg::constant(shape, Values::Normal(1.0)),
                Arg::typed(shape, Values::Index(size), DType::I64),
            ],
        };
        let list = shapes.into_iter().map(case).collect();
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Exact, list }
    }
}

/// Both outputs.
#[track_caller]
fn pair(op: impl Op, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut outputs = run(op, &[x])?;
    let places = outputs.pop().ok_or_else(|| Error::internal("sorting has two outputs"))?;
    Ok((outputs.remove(0), places))
}

impl Tensor {
    /// The elements along dimension `dim` (counted from the end if negative) in ascending order, or descending, and their
    /// indices there (i64), both of this tensor's shape. NaN counts as the largest number, the two zeros as equal. Always
    /// stable: equal elements stay in their order, whether `stable` asks for it or not. Any element type; the values carry
    /// a gradient. Errors if there is no such dimension.
    #[track_caller]
    pub fn sort(&self, dim: isize, descending: bool, stable: bool) -> Result<(Tensor, Tensor)> {
        let _ = stable;
        pair(Sort { dim: position_of(Sort::NAME, self, dim)?, descending }, self)
    }

    /// The indices (i64) that sort this tensor along `dim`: the second result of [`Tensor::sort`], always stable.
    #[track_caller]
    pub fn argsort(&self, dim: isize, descending: bool) -> Result<Tensor> {
        Ok(self.detach().sort(dim, descending, true)?.1)
    }

    /// The `k` largest elements (the smallest, unless `largest`) along dimension `dim`, which counts from the end if
    /// negative, and their indices there (i64), both of size `k` in that dimension. Of equal elements those with the lower
    /// index are taken; NaN counts as the largest number. They come in order, whether `sorted` asks for it or not. Any
    /// element type; the values carry a gradient. Errors if there is no such dimension or if `k` exceeds its size.
    #[track_caller]
    pub fn topk(&self, k: usize, dim: isize, largest: bool, sorted: bool) -> Result<(Tensor, Tensor)> {
        let _ = sorted;
        pair(TopK { k, dim: position_of(TopK::NAME, self, dim)?, largest }, self)
    }
}
