//! Addition by index: `scatter_add` and `index_add`.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::gpu::Sums;
use super::scatter::{plan_scatter, scatter};
use super::{Arg, Case, Cases, GATHERS, Gather, Op, Plan, SUM, Values, check_gather, run1};
use crate::cpu::copy::move_elements;
use crate::device::{Stream, copy};
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, dispatch};

/// x with `src` added where an index says: `out[index[i][j][k]][j][k] += src[i][j][k]` for dimension 0. Index and `src`
/// have one shape, x's rank, and at most its size in the other dimensions. Contributions to one place are added in the
/// order of the index, whatever the number of threads. Gradients: dy for x, dy gathered by the index for `src`.
#[derive(Clone, Copy, Debug)]
pub struct ScatterAdd {
    /// The dimension.
    pub dim: usize,
}

impl Op for ScatterAdd {
    const NAME: &'static str = "scatter_add";
    const INPUTS: RangeInclusive<usize> = 3..=3;

    fn saves(&self, needs: &[bool]) -> Saves {
        if needs[2] { Saves::inputs(&[1]) } else { Saves::NONE }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, index, src) = (inputs[0], inputs[1], inputs[2]);
        super::super::same_float(Self::NAME, &[x, src])?;
        check_gather(Self::NAME, x.shape, index, self.dim)?;
        if src.shape != index.shape {
            let message =
                format!("the source {} must have the shape of the index {}", src.shape, index.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        plan_scatter(Self::NAME, src, x.shape)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let (x, index, src) = (inputs[0], inputs[1], inputs[2]);
        let (shape, dtype) = (outputs[0].shape(), outputs[0].dtype());
        let bytes: &mut [u8] = dispatch!(dtype, T => {
            let out = outputs[0].slice::<T>();
            move_elements(x.data::<T>(), x.layout(), out, &Layout::contiguous(shape), false);
            bytemuck::cast_slice_mut(out)
        });
        let mut out = Out::new(bytes, shape, dtype, Mode::Accumulate);
        scatter(Self::NAME, self.dim, src, index, index.layout(), &mut out, scratch)
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, index, src) = (inputs[0], inputs[1], inputs[2]);
        let (shape, dtype) = (outputs[0].shape(), outputs[0].dtype());
        copy::strided(s, x.src(), x.layout(), outputs[0].dst(), &Layout::contiguous(shape), false)?;
        let mut out = Out::on_device(outputs[0].dst().address(), shape, dtype, Mode::Accumulate);
        let strides = shape.strides();
        let (by, step, size) = (strides.with(self.dim, 0), strides[self.dim], shape[self.dim]);
        let sums = Sums { by, step, size, rows: shape.numel(), outer: 1, inner: 1 };
        sums.run(s, Self::NAME, src, index, &mut out)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        if cx.needs(2) {
            let index = cx.input(1)?;
            cx.run(Gather { dim: self.dim }, &[dy, &index], &[2])?;
        }
        if cx.needs(0) { cx.give(0, dy.clone()) } else { Ok(()) }
    }

    fn cases() -> Cases<Self> {
        let case = |&(dim, x, index, dtype): &(usize, &[usize], &[usize], DType)| Case {
            op: ScatterAdd { dim },
            inputs: vec![
                Arg::new(x, Values::Normal(1.0)),
                Arg::typed(index, Values::Index(x[dim]), dtype),
                Arg::new(index, Values::Normal(1.0)),
            ],
        };
        Cases { dtypes: &DType::FLOATS, tolerance: SUM, list: GATHERS.iter().map(case).collect() }
    }
}

impl Tensor {
    /// This tensor with the elements of `src` added where `index` (i32 or i64) says along `dim` (see [`ScatterAdd`]). `src`
    /// is of this tensor's element type and in no dimension smaller than the index; what lies beyond it is not used.
    /// Contributions to one place are added in the order of the index. Floats only. Errors, naming index and position, if
    /// an index is negative or not below the size of `dim`.
    #[track_caller]
    pub fn scatter_add(&self, dim: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim(ScatterAdd::NAME, dim)?;
        let mut part = src.clone();
        if src.rank() == index.rank() {
            for (d, (&have, &used)) in src.dims().iter().zip(index.dims()).enumerate() {
                if used < have {
                    part = part.narrow(d as isize, 0, used)?;
                }
            }
        }
        run1(ScatterAdd { dim }, &[self, index, &part])
    }

    /// This tensor with slice j of `source` along `dim` added to slice `index[j]`, for a 1-d index (i32 or i64) of
    /// `source`'s size there; elsewhere `source` has this tensor's sizes. Slices that go to one place are added in the
    /// order of the index. Errors as [`Tensor::scatter_add`].
    #[track_caller]
    pub fn index_add(&self, dim: isize, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        const NAME: &str = "index_add";
        let dim = self.shape().dim(NAME, dim)?;
        let fits = index.rank() == 1
            && source.rank() == self.rank()
            && source.dims()[dim] == index.dims()[0]
            && source.shape().with(dim, 0) == self.shape().with(dim, 0);
        if !fits {
            let message = format!(
                "an index of {} and a source of {} do not fit dimension {dim} of {}",
                index.shape(),
                source.shape(),
                self.shape()
            );
            return Err(Error::shape(NAME, message));
        }
        let mut dims = vec![1; self.rank()];
        dims[dim] = index.dims()[0];
        let index = index.reshape(&dims[..])?.expand(source.shape())?;
        run1(ScatterAdd { dim }, &[self, &index, source])
    }
}
