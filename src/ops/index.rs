//! Lookup by index: embedding, gather, index_select, and the sums that are their gradients; scatter_add and one_hot.
//!
//! Indices are i32 or i64 and lie in `0..size`; anything else, negative ones included, is an error that names the index,
//! its position and the size. One kernel serves the three forward ops: it sees the index tensor under the output's shape,
//! with stride 0 along the dimensions that one index covers, so that a whole run is copied where the index does not change.
//! Gradients add contributions in the order of the index tensor, whatever the number of threads: no atomics, no races.
//! Where an op fails on a bad index, the content of its output is unspecified.

#![forbid(unsafe_code)]

mod gpu;
mod lookup;
mod one_hot;
mod scatter;
mod scatter_add;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::device::Stream;
use crate::dtype::Float;
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

use gpu::Sums;
pub(super) use lookup::{Index, bad_index, float_dtype, index_dtype, out_of_range};
use lookup::{Table, read_indices};
pub use one_hot::OneHot;
use scatter::{add_rows, plan_scatter, scatter, sort_positions};
pub use scatter_add::ScatterAdd;

super::family!(
    Embedding,
    EmbeddingBackward,
    Gather,
    GatherBackward,
    IndexSelect,
    IndexSelectBackward,
    OneHot,
    ScatterAdd
);

/// Elements that one task handles: large enough to pay for handing it out, small enough to share 32 k elements.
const GRAIN: usize = 16 * 1024;

/// Rows of a table: `out[.., d] = weight[ids[..], d]` for weight `[V, D]` and ids of any shape.
/// Gradient: row v of dweight is the sum of the rows of dy whose id is v.
#[derive(Clone, Copy, Debug)]
pub struct Embedding;

impl Op for Embedding {
    const NAME: &'static str = "embedding";
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn saves(&self, needs: &[bool]) -> Saves {
        if needs[0] { Saves::inputs(&[1]) } else { Saves::NONE }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (weight, ids) = (inputs[0], inputs[1]);
        if weight.shape.rank() != 2 {
            return Err(Error::shape(
                Self::NAME,
                format!("the weight must be [rows, width], found {}", weight.shape),
            ));
        }
        index_dtype(Self::NAME, ids.dtype)?;
        let mut dims = ids.shape.to_vec();
        dims.push(weight.shape[1]);
        Ok(Plan::one(weight.with_shape(Shape::new(&dims)?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (table, index) = self.plan(inputs, outputs[0].shape());
        table.take(Self::NAME, inputs[0], inputs[1], &index, &mut outputs[0])
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (table, index) = self.plan(inputs, outputs[0].shape());
        let width = inputs[0].shape()[1];
        table.take_gpu(s, Self::NAME, [inputs[0], inputs[1]], &index, width, &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let rows = cx.input_meta(0).shape[0];
        let Some(dy) = dys[0].as_ref().filter(|_| cx.needs(0)) else { return Ok(()) };
        let ids = cx.input(1)?;
        cx.run(EmbeddingBackward { rows }, &[dy, &ids], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(rows, width, ids, dtype): &(usize, usize, &[usize], DType)| Case {
            op: Embedding,
            inputs: vec![
                Arg::new(&[rows, width], Values::Normal(1.0)),
                Arg::typed(ids, Values::Index(rows), dtype),
            ],
        };
        Cases {
            dtypes: &DType::ALL,
            tolerance: Tolerance::Exact,
            list: EMBEDDINGS.iter().map(case).collect(),
        }
    }
}

impl Embedding {
    /// The lookup, and the ids seen under the shape of the result.
    fn plan(&self, inputs: &[View<'_>], shape: Shape) -> (Table, Layout) {
        let (weight, ids, last) = (inputs[0].layout(), inputs[1].layout(), shape.rank() - 1);
        let strides = Shape::from_dims(&vec![0; shape.rank()]).with(last, weight.strides[1]);
        let base = Layout { shape, strides, offset: weight.offset };
        let table = Table { base, step: weight.strides[0], size: weight.shape[0] };
        (table, Layout { shape, strides: ids.strides.inserted(last, 0), ..*ids })
    }
}

/// Rows, width, shape of the ids and their type.
const EMBEDDINGS: [(usize, usize, &[usize], DType); 9] = [
    (5, 3, &[], DType::I64),
    (5, 3, &[7], DType::I64),
    (1, 1, &[1], DType::I32),
    (31, 33, &[2, 3], DType::I32),
    (3, 257, &[5], DType::I64),
    (300, 2, &[4], DType::I64),
    (4, 0, &[3], DType::I64),
    (4, 3, &[2, 0], DType::I64),
    (2, 5, &[2, 3, 11], DType::I32),
];

/// The gradient of [`Embedding`] by its weight: dy `[.., D]` and ids `[..]` give `[rows, D]`. Rows without an id are 0.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingBackward {
    /// Rows of the weight.
    pub rows: usize,
}

impl EmbeddingBackward {
    /// Buckets beat sorting, but must not cost more than the ids themselves when a few ids meet a large table.
    fn buckets(&self, ids: usize) -> usize {
        if self.rows <= 4 * ids { self.rows + 1 } else { 0 }
    }

    fn body<T: Float>(
        &self,
        dy: View<'_>,
        ids: View<'_>,
        out: &mut Out<'_>,
        scratch: &mut [u8],
    ) -> Result<()> {
        let n = ids.numel();
        let write = out.mode() == Mode::Write;
        let (width, out) = (out.shape()[1], out.slice::<T>());
        let words: &mut [usize] = bytemuck::cast_slice_mut(scratch);
        let (rows, words) = words.split_at_mut(n);
        let (starts, words) = words.split_at_mut(n);
        let (order, buckets) = words.split_at_mut(n);
        read_indices(Self::NAME, ids, self.rows, rows)?;
        sort_positions(rows, order, buckets);
        if out.is_empty() {
            return Ok(());
        }
        let layout = dy.layout();
        let column = layout.strides[ids.shape().rank()];
        let lead =
            Layout { shape: ids.shape(), strides: layout.strides.without(ids.shape().rank()), ..*layout };
        starts.iter_mut().zip(lead.positions()).for_each(|(s, at)| *s = at);
        let (rows, starts, order, data) = (&*rows, &*starts, &*order, dy.data::<T>());
        // By what there is to add: a small table may have many ids. A row is added up by one thread, whatever the cut.
        let per = (GRAIN / (width * (1 + n / self.rows))).max(1);
        par::for_each_chunk_mut(out, per * width, |c, chunk| {
            let mut k = order.partition_point(|&p| rows[p] < c * per);
            for (r, row) in chunk.chunks_exact_mut(width).enumerate() {
                let first = k;
                while k < n && rows[order[k]] == c * per + r {
                    k += 1;
                }
                match &order[first..k] {
                    [] if write => row.fill(T::default()),
                    [] => {}
                    of_row => add_rows(row, of_row.iter().map(|&p| starts[p]), data, column, write),
                }
            }
        });
        Ok(())
    }
}

impl Op for EmbeddingBackward {
    const NAME: &'static str = "embedding_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, ids) = (inputs[0], inputs[1]);
        index_dtype(Self::NAME, ids.dtype)?;
        float_dtype(Self::NAME, dy.dtype)?;
        let rank = ids.shape.rank();
        if dy.shape.rank() != rank + 1 || dy.shape[..rank] != ids.shape[..] {
            return Err(Error::shape(
                Self::NAME,
                format!("dy {} must be the shape of the ids {} and the width", dy.shape, ids.shape),
            ));
        }
        let n = ids.shape.numel();
        Ok(Plan {
            outputs: vec![dy.with_shape(Shape::new(&[self.rows, dy.shape[rank]])?)],
            scratch: (3 * n + self.buckets(n)) * size_of::<usize>(),
        })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let dtype = inputs[0].dtype();
        dispatch!(float dtype, T => {
            self.body::<T>(inputs[0], inputs[1], &mut outputs[0], scratch)
        }, else float_dtype(Self::NAME, dtype))
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (rows, inner) = (self.rows, outputs[0].shape()[1]);
        let by = Shape::from_dims(&vec![0; inputs[1].shape().rank()]);
        let sums = Sums { by, step: 1, size: rows, rows, outer: 1, inner };
        sums.run(s, Self::NAME, inputs[0], inputs[1], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(rows, width, ids, dtype): &(usize, usize, &[usize], DType)| {
            let mut dy = ids.to_vec();
            dy.push(width);
            Case {
                op: EmbeddingBackward { rows },
                inputs: vec![
                    Arg::constant(&dy, Values::Normal(1.0)),
                    Arg::typed(ids, Values::Index(rows), dtype),
                ],
            }
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: EMBEDDINGS.iter().map(case).collect() }
    }
}

/// Adds up to a few hundred contributions one after the other.
const SUM: Tolerance =
    Tolerance::Sum(64.0, "one chain of additions a gradient element, as long as the repeats");

/// Values picked along one dimension, an index for each: `out[i][j][k] = x[i][index[i][j][k]][k]` for the middle dimension.
/// The index has the rank of x and at most its size in the other dimensions. Gradient: dy added where it was taken from.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// The dimension.
    pub dim: usize,
}

/// The index of a gather fits a tensor of `shape`.
fn check_gather(op: &'static str, shape: Shape, index: Meta, dim: usize) -> Result<()> {
    index_dtype(op, index.dtype)?;
    let fits = shape.rank() == index.shape.rank()
        && dim < shape.rank()
        && (0..shape.rank()).all(|d| d == dim || index.shape[d] <= shape[d]);
    if fits {
        return Ok(());
    }
    let message = format!(
        "an index of {} along dimension {dim} must have the rank of {shape} and be no larger elsewhere",
        index.shape
    );
    Err(Error::shape(op, message))
}

impl Op for Gather {
    const NAME: &'static str = "gather";
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn saves(&self, needs: &[bool]) -> Saves {
        if needs[0] { Saves::inputs(&[1]) } else { Saves::NONE }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        check_gather(Self::NAME, inputs[0].shape, inputs[1], self.dim)?;
        Ok(Plan::one(inputs[0].with_shape(inputs[1].shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let table = Table::along(inputs[0], self.dim, outputs[0].shape());
        table.take(Self::NAME, inputs[0], inputs[1], inputs[1].layout(), &mut outputs[0])
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let table = Table::along(inputs[0], self.dim, outputs[0].shape());
        let index = inputs[1].layout();
        table.take_gpu(s, Self::NAME, [inputs[0], inputs[1]], index, 1, &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let shape = cx.input_meta(0).shape;
        let Some(dy) = dys[0].as_ref().filter(|_| cx.needs(0)) else { return Ok(()) };
        let index = cx.input(1)?;
        cx.run(GatherBackward { dim: self.dim, shape }, &[dy, &index], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(dim, x, index, dtype): &(usize, &[usize], &[usize], DType)| Case {
            op: Gather { dim },
            inputs: vec![Arg::new(x, Values::Normal(1.0)), Arg::typed(index, Values::Index(x[dim]), dtype)],
        };
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list: GATHERS.iter().map(case).collect() }
    }
}

/// Dimension, shape of x, shape of the index and its type.
const GATHERS: [(usize, &[usize], &[usize], DType); 9] = [
    (0, &[7], &[31], DType::I64),
    (0, &[1], &[1], DType::I32),
    (1, &[5, 13], &[5, 3], DType::I64),
    (0, &[5, 13], &[8, 11], DType::I64),
    (1, &[4, 3, 5], &[2, 6, 5], DType::I32),
    (2, &[2, 3, 17], &[2, 2, 4], DType::I64),
    (1, &[3, 4], &[3, 0], DType::I64),
    (0, &[3, 0, 2], &[5, 0, 1], DType::I64),
    (1, &[2, 1025], &[2, 64], DType::I32),
];

/// The gradient of [`Gather`]: dy, of the index's shape, added into zeros of `shape` where the index says.
#[derive(Clone, Copy, Debug)]
pub struct GatherBackward {
    /// The dimension.
    pub dim: usize,
    /// The shape of the tensor that was gathered from.
    pub shape: Shape,
}

impl Op for GatherBackward {
    const NAME: &'static str = "gather_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, index) = (inputs[0], inputs[1]);
        check_gather(Self::NAME, self.shape, index, self.dim)?;
        if dy.shape != index.shape {
            let message = format!("dy {} must have the shape of the index {}", dy.shape, index.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        plan_scatter(Self::NAME, dy, self.shape)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let layout = *inputs[1].layout();
        scatter(Self::NAME, self.dim, inputs[0], inputs[1], &layout, &mut outputs[0], scratch)
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let strides = self.shape.strides();
        let (by, step, size) = (strides.with(self.dim, 0), strides[self.dim], self.shape[self.dim]);
        let sums = Sums { by, step, size, rows: self.shape.numel(), outer: 1, inner: 1 };
        sums.run(s, Self::NAME, inputs[0], inputs[1], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(dim, x, index, dtype): &(usize, &[usize], &[usize], DType)| Case {
            op: GatherBackward { dim, shape: Shape::from_dims(x) },
            inputs: vec![
                Arg::constant(index, Values::Normal(1.0)),
                Arg::typed(index, Values::Index(x[dim]), dtype),
            ],
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: GATHERS.iter().map(case).collect() }
    }
}

/// Slices picked along one dimension: slice j of the result is slice `index[j]` of x. The index is 1-d.
/// Gradient: dy added where it was taken from.
#[derive(Clone, Copy, Debug)]
pub struct IndexSelect {
    /// The dimension.
    pub dim: usize,
}

/// The index of an index_select seen under the shape of the result.
fn spread_index(index: View<'_>, dim: usize, shape: Shape) -> Layout {
    let strides = Shape::from_dims(&vec![0; shape.rank()]).with(dim, index.layout().strides[0]);
    Layout { shape, strides, ..*index.layout() }
}

fn check_select(op: &'static str, rank: usize, index: Meta, dim: usize) -> Result<()> {
    index_dtype(op, index.dtype)?;
    if index.shape.rank() != 1 || dim >= rank {
        let message = format!(
            "needs a 1-d index and a dimension below {rank}, found an index of {} for dimension {dim}",
            index.shape
        );
        return Err(Error::shape(op, message));
    }
    Ok(())
}

impl Op for IndexSelect {
    const NAME: &'static str = "index_select";
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn saves(&self, needs: &[bool]) -> Saves {
        if needs[0] { Saves::inputs(&[1]) } else { Saves::NONE }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, index) = (inputs[0], inputs[1]);
        check_select(Self::NAME, x.shape.rank(), index, self.dim)?;
        let dims = x.shape.with(self.dim, index.shape[0]);
        Ok(Plan::one(x.with_shape(Shape::new(&dims)?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let shape = outputs[0].shape();
        let table = Table::along(inputs[0], self.dim, shape);
        let index = spread_index(inputs[1], self.dim, shape);
        table.take(Self::NAME, inputs[0], inputs[1], &index, &mut outputs[0])
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let shape = outputs[0].shape();
        let table = Table::along(inputs[0], self.dim, shape);
        let index = spread_index(inputs[1], self.dim, shape);
        let inner = shape[self.dim + 1..].iter().product();
        table.take_gpu(s, Self::NAME, [inputs[0], inputs[1]], &index, inner, &mut outputs[0])
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let size = cx.input_meta(0).shape[self.dim];
        let Some(dy) = dys[0].as_ref().filter(|_| cx.needs(0)) else { return Ok(()) };
        let index = cx.input(1)?;
        cx.run(IndexSelectBackward { dim: self.dim, size }, &[dy, &index], &[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(dim, x, n, dtype): &(usize, &[usize], usize, DType)| Case {
            op: IndexSelect { dim },
            inputs: vec![Arg::new(x, Values::Normal(1.0)), Arg::typed(&[n], Values::Index(x[dim]), dtype)],
        };
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list: SELECTS.iter().map(case).collect() }
    }
}

/// Dimension, shape of x, length of the index and its type.
const SELECTS: [(usize, &[usize], usize, DType); 8] = [
    (0, &[7], 31, DType::I64),
    (0, &[5, 13], 4, DType::I32),
    (1, &[5, 13], 20, DType::I64),
    (1, &[2, 3, 17], 5, DType::I64),
    (2, &[2, 3, 4], 1, DType::I32),
    (0, &[3, 4], 0, DType::I64),
    (1, &[3, 4, 0], 2, DType::I64),
    (0, &[33, 32], 2, DType::I64),
];

/// The gradient of [`IndexSelect`]: slice j of dy is added to slice `index[j]` of zeros with `size` slices.
#[derive(Clone, Copy, Debug)]
pub struct IndexSelectBackward {
    /// The dimension.
    pub dim: usize,
    /// The size of that dimension in the tensor that was selected from.
    pub size: usize,
}

impl Op for IndexSelectBackward {
    const NAME: &'static str = "index_select_backward";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (dy, index) = (inputs[0], inputs[1]);
        check_select(Self::NAME, dy.shape.rank(), index, self.dim)?;
        if dy.shape[self.dim] != index.shape[0] {
            let message =
                format!("dy {} must have one slice for each of {} indices", dy.shape, index.shape[0]);
            return Err(Error::shape(Self::NAME, message));
        }
        plan_scatter(Self::NAME, dy, Shape::new(&dy.shape.with(self.dim, self.size))?)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let index = spread_index(inputs[1], self.dim, inputs[0].shape());
        scatter(Self::NAME, self.dim, inputs[0], inputs[1], &index, &mut outputs[0], scratch)
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (shape, size) = (outputs[0].shape(), self.size);
        let (outer, inner) = (shape[..self.dim].iter().product(), shape[self.dim + 1..].iter().product());
        let sums = Sums { by: Shape::from_dims(&[0]), step: 1, size, rows: size, outer, inner };
        sums.run(s, Self::NAME, inputs[0], inputs[1], &mut outputs[0])
    }

    fn cases() -> Cases<Self> {
        let case = |&(dim, x, n, dtype): &(usize, &[usize], usize, DType)| Case {
            op: IndexSelectBackward { dim, size: x[dim] },
            inputs: vec![
                Arg::constant(&Shape::from_dims(x).with(dim, n), Values::Normal(1.0)),
                Arg::typed(&[n], Values::Index(x[dim]), dtype),
            ],
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: SELECTS.iter().map(case).collect() }
    }
}

impl Tensor {
    /// The rows of this table `[V, D]` that `ids` (i32 or i64, any shape) name: `ids.shape + [D]`. Errors, naming index
    /// and position, if an id is negative or not below V.
    #[track_caller]
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        run1(Embedding, &[self, ids])
    }

    /// Values picked along `dim`, an index for each (see [`Gather`]); the result has the index's shape. Errors if an index
    /// is negative or not below the size of `dim`.
    #[track_caller]
    pub fn gather(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim(Gather::NAME, dim)?;
        run1(Gather { dim }, &[self, index])
    }

    /// The slices along `dim` that the 1-d `index` names, in its order. Errors if an index is negative or not below the
    /// size of `dim`.
    #[track_caller]
    pub fn index_select(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim(IndexSelect::NAME, dim)?;
        run1(IndexSelect { dim }, &[self, index])
    }
}
