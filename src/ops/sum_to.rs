//! The inverse of broadcasting: sums a tensor down to a shape that expands to its own.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::reduce::{Axes, Sum};
use super::{Arg, Case, Cases, Op, Plan, Tolerance, Values};
use crate::device::Stream;
use crate::shape::Layout;
use crate::tensor::{BackwardCx, Meta, Out, Tensor, View};
use crate::{DType, Error, Result, Shape};

super::family!(SumTo);

/// Σ x over the dimensions along which `shape` was expanded to x's shape. Gradient: dx = dy, expanded.
#[derive(Clone, Copy, Debug)]
pub struct SumTo {
    /// The shape of the result.
    pub shape: Shape,
}

impl SumTo {
    /// The dimensions of `from` that are summed.
    fn axes(&self, from: &Shape) -> Axes {
        let lead = from.rank() - self.shape.rank();
        Axes::of(from.rank(), |d| d < lead || self.shape[d - lead] != from[d])
    }
}

impl Op for SumTo {
    const NAME: &'static str = "sum_to";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        if !x.dtype.is_float() {
            return Err(Error::dtype(Self::NAME, format!("needs a floating-point input, not {}", x.dtype)));
        }
        Layout::contiguous(self.shape).expand(&x.shape, Self::NAME)?;
        Ok(Plan::one(x.with_shape(self.shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        let axes = self.axes(&inputs[0].shape());
        Sum { axes, keepdim: true }.cpu(inputs, outputs, scratch)
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let axes = self.axes(&inputs[0].shape());
        Sum { axes, keepdim: true }.gpu(stream, inputs, outputs)
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let shape = cx.input_meta(0).shape;
        dys[0].iter().try_for_each(|dy| cx.give(0, dy.expand(shape)?))
    }

    fn cases() -> Cases<Self> {
        let pairs: [(&[usize], &[usize]); 9] = [
            (&[], &[]),
            (&[5], &[]),
            (&[5], &[1]),
            (&[7, 3], &[3]),
            (&[7, 3], &[7, 1]),
            (&[2, 3, 4], &[3, 1]),
            (&[2, 3, 4], &[2, 1, 4]),
            (&[0, 3], &[3]),
            (&[65, 33], &[33]),
        ];
        let case = |&(from, to): &(&[usize], &[usize])| Case {
            op: SumTo { shape: Shape::from_dims(to) },
            inputs: vec![Arg::new(from, Values::Normal(2.0))],
        };
        let tolerance = Tolerance::Sum(4.0, "chains of at most 32 additions joined in a tree");
        Cases { dtypes: &DType::FLOATS, tolerance, list: pairs.iter().map(case).collect() }
    }
}
