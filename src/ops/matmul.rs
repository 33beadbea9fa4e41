//! The matrix product, batched, with broadcast batches; transposed views are used as they are.

#![forbid(unsafe_code)]

#[cfg(all(test, feature = "sim"))]
mod tests;

use std::ops::RangeInclusive;

use super::{Arg, Case, Cases, Op, Plan, SumTo, Tolerance, Values, run1};
use crate::cpu::gemm::{Accumulate, Epilogue, MatRef, Product, gemm, gemm_batch};
use crate::cpu::simd::MatMut;
use crate::device::gemm::{self as gpu, Factor};
use crate::device::{Stream, launch::Dst};
use crate::dtype::Float;
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

super::family!(MatMul);

/// `a [.., m, k] · b [.., k, n] = [.., m, n]`; the leading dimensions broadcast.
///
/// Gradients: da = dy · bᵀ, db = aᵀ · dy, summed over the dimensions that were broadcast.
#[derive(Clone, Copy, Debug)]
pub struct MatMul;

/// The dimensions before the last two.
fn batch_of(shape: &Shape) -> Shape {
    Shape::from_dims(&shape[..shape.rank() - 2])
}

/// `batch` followed by `m` and `n`.
fn matrix_shape(batch: &Shape, m: usize, n: usize) -> Result<Shape> {
    let mut dims = batch.to_vec();
    dims.extend([m, n]);
    Shape::new(&dims)
}

/// The last two dimensions of a layout as a matrix that starts at position `at` of `data`.
fn matrix<'a, T: Float>(data: &'a [T], layout: &Layout, at: usize) -> MatRef<'a, T> {
    let d = layout.shape.rank() - 2;
    let (rows, cols) = (layout.shape[d], layout.shape[d + 1]);
    // A matrix without elements may start past the end.
    MatRef::new(data.get(at..).unwrap_or(&[]), rows, cols, layout.strides[d], layout.strides[d + 1])
}

fn product<T: Float>(a: View<'_>, b: View<'_>, out: &mut Out<'_>) -> Result<()> {
    let shape = out.shape();
    let batch = batch_of(&shape);
    let (m, n, k) = (shape[shape.rank() - 2], shape[shape.rank() - 1], a.shape()[a.shape().rank() - 1]);
    let accumulate = if out.mode() == Mode::Accumulate { Accumulate::Add } else { Accumulate::Write };
    let c = out.slice::<T>();
    if c.is_empty() {
        return Ok(());
    }
    if batch_of(&b.shape()).numel() == 1
        && let Some(rows) = a.layout().reshape(&Shape::from_dims(&[batch.numel() * m, k]))
    {
        // One matrix for the whole batch: the rows of all batches are the rows of one product.
        let b = matrix(b.data::<T>(), b.layout(), 0);
        let c = MatMut::new(c, batch.numel() * m, n, n);
        gemm(matrix(a.data::<T>(), &rows, 0), b, c, accumulate, Epilogue::default());
        return Ok(());
    }
    let a = a.expand(&matrix_shape(&batch, m, k)?)?;
    let b = b.expand(&matrix_shape(&batch, k, n)?)?;
    let starts = |view: &View<'_>| {
        let strides = Shape::from_dims(&view.layout().strides[..batch.rank()]);
        Layout { shape: batch, strides, offset: 0 }.positions()
    };
    let products = starts(&a).zip(starts(&b)).zip(c.chunks_mut(m * n)).map(|((at_a, at_b), c)| Product {
        a: matrix(a.data::<T>(), a.layout(), at_a),
        b: matrix(b.data::<T>(), b.layout(), at_b),
        c: MatMut::new(c, m, n, n),
        accumulate,
        epilogue: Epilogue::default(),
    });
    gemm_batch(batch.numel(), products);
    Ok(())
}

impl Op for MatMul {
    const NAME: &'static str = "matmul";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn saves(&self, needs: &[bool]) -> Saves {
        super::fused::factors(needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (a, b) = (inputs[0], inputs[1]);
        super::same_float(Self::NAME, inputs)?;
        let (ra, rb) = (a.shape.rank(), b.shape.rank());
        if ra < 2 || rb < 2 || a.shape[ra - 1] != b.shape[rb - 2] {
            return Err(Error::shape(Self::NAME, format!("cannot multiply {} by {}", a.shape, b.shape)));
        }
        let batch = batch_of(&a.shape).broadcast(&batch_of(&b.shape), Self::NAME)?;
        Ok(Plan::one(a.with_shape(matrix_shape(&batch, a.shape[ra - 2], b.shape[rb - 1])?)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let out = &mut outputs[0];
        dispatch!(float out.dtype(), T => product::<T>(inputs[0], inputs[1], out), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (a, b, out) = (inputs[0], inputs[1], &mut outputs[0]);
        let shape = out.shape();
        let batch = batch_of(&shape);
        let (m, n, k) = (shape[shape.rank() - 2], shape[shape.rank() - 1], a.shape()[a.shape().rank() - 1]);
        let add = out.mode() == Mode::Accumulate;
        if batch_of(&b.shape()).numel() == 1
            && let Some(rows) = a.layout().reshape(&Shape::from_dims(&[batch.numel() * m, k]))
        {
            // As on the CPU: the rows of all batches are the rows of one product.
            let m = batch.numel() * m;
            return product_on_gpu(stream, (m, n, k), &[], (&a, &rows), (&b, b.layout()), out.dst(), add);
        }
        let wide_a = a.expand(&matrix_shape(&batch, m, k)?)?;
        let wide_b = b.expand(&matrix_shape(&batch, k, n)?)?;
        product_on_gpu(
            stream,
            (m, n, k),
            &batch,
            (&a, wide_a.layout()),
            (&b, wide_b.layout()),
            out.dst(),
            add,
        )
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if cx.needs(0) {
            let bt = cx.input(1)?.t()?;
            gradient_product(cx, 0, dy, &bt)?;
        }
        if cx.needs(1) {
            let a = cx.input(0)?;
            let (shape, b) = (a.shape(), cx.input_meta(1).shape);
            if b.rank() == 2 {
                // Rows of all batches together: one product that sums over the batch as it goes.
                let rows = |t: &Tensor| {
                    t.reshape([t.numel() / t.dims()[t.rank() - 1].max(1), t.dims()[t.rank() - 1]])
                };
                if shape.numel() > 0 && dy.numel() > 0 {
                    return cx.run(MatMul, &[&rows(&a)?.t()?, &rows(dy)?], &[1]);
                }
            }
            gradient_product(cx, 1, &a.t()?, dy)?;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let shapes: [(&[usize], &[usize]); 16] = [
            (&[1, 1], &[1, 1]),
            (&[2, 3], &[3, 4]),
            (&[5, 7], &[7, 1]),
            (&[1, 9], &[9, 5]),
            (&[17, 31], &[31, 13]),
            (&[33, 64], &[64, 33]),
            (&[3, 300], &[300, 2]),
            // Large and aligned enough for tensor cores: five steps of their ring, and a ragged second tile.
            (&[16, 136], &[136, 16]),
            (&[72, 40], &[40, 24]),
            (&[0, 3], &[3, 2]),
            (&[2, 0], &[0, 3]),
            (&[2, 3, 4], &[2, 4, 5]),
            (&[2, 3, 4], &[4, 5]),
            (&[3, 4], &[2, 4, 5]),
            (&[2, 1, 3, 4], &[1, 2, 4, 2]),
            (&[2, 0, 3], &[2, 3, 2]),
        ];
        let case = |&(a, b): &(&[usize], &[usize])| Case {
            op: MatMul,
            inputs: vec![Arg::new(a, Values::Normal(1.0)), Arg::new(b, Values::Normal(1.0))],
        };
        let why = "runs of 256 fused multiply-adds, then one addition a run: at most k roundings on any path";
        Cases {
            dtypes: &DType::FLOATS,
            tolerance: Tolerance::Sum(300.0, why),
            list: shapes.iter().map(case).collect(),
        }
    }
}

/// `c (+)= a · b` of a batch; each factor with the layout that it is read by.
fn product_on_gpu(
    stream: &Stream,
    (m, n, k): (usize, usize, usize),
    batch: &[usize],
    (a, a_layout): (&View<'_>, &Layout),
    (b, b_layout): (&View<'_>, &Layout),
    c: Dst<'_>,
    add: bool,
) -> Result<()> {
    let last = |layout: &Layout, back: usize| layout.strides[layout.shape.rank() - back];
    let lead = |layout: &'_ Layout| layout.strides[..batch.len()].to_vec();
    let (a_batch, b_batch) = (lead(a_layout), lead(b_layout));
    let a = Factor { src: a.src(), stride: last(a_layout, 2), k_stride: last(a_layout, 1), batch: &a_batch };
    let b = Factor { src: b.src(), stride: last(b_layout, 1), k_stride: last(b_layout, 2), batch: &b_batch };
    gpu::gemm(
        stream,
        gpu::Gemm { batch, m, n, k, a, b, c, add, bias: None, activation: 0, pre: None, tf32: false },
    )
}

/// Delivers a · b as the gradient of input `i`, summed over the dimensions of the batch that input `i` does not have.
fn gradient_product(cx: &mut BackwardCx<'_>, i: usize, a: &Tensor, b: &Tensor) -> Result<()> {
    let want = cx.input_meta(i).shape;
    let batch = batch_of(&a.shape()).broadcast(&batch_of(&b.shape()), MatMul::NAME)?;
    if batch == batch_of(&want) {
        return cx.run(MatMul, &[a, b], &[i]);
    }
    let full = run1(MatMul, &[a, b])?;
    cx.run(SumTo { shape: want }, &[&full], &[i])
}

impl Tensor {
    /// The matrix product, as PyTorch's `matmul`: `[.., m, k] · [.., k, n]` with broadcast leading dimensions; a 1-d operand
    /// is a row on the left or a column on the right, and its dimension is dropped from the result.
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        if self.rank() == 0 || other.rank() == 0 {
            let message =
                format!("cannot multiply {} by {}: 0-d operands have no rows", self.shape(), other.shape());
            return Err(Error::shape(MatMul::NAME, message));
        }
        match (self.rank(), other.rank()) {
            (1, 1) => run1(MatMul, &[&self.unsqueeze(0)?, &other.unsqueeze(1)?])?.reshape(()),
            (1, _) => run1(MatMul, &[&self.unsqueeze(0)?, other])?.squeeze(-2),
            (_, 1) => run1(MatMul, &[self, &other.unsqueeze(1)?])?.squeeze(-1),
            _ => run1(MatMul, &[self, other]),
        }
    }
}
