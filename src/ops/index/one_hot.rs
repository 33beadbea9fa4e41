//! One-hot rows: a class number becomes a row of zeros with a one.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::lookup::{Index, bad_index, index_dtype, out_of_range};
use super::{Arg, Case, Cases, GRAIN, Op, Plan, Tolerance, Values, run1};
use crate::cpu::par;
use crate::device::Stream;
use crate::device::kernels::index as kernels;
use crate::tensor::{Meta, Out, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

/// For each class number (i32 or i64) a row of `classes` numbers (i64): 1 at the class, else 0. No gradient.
#[derive(Clone, Copy, Debug)]
pub struct OneHot {
    /// Length of the rows.
    pub classes: usize,
}

impl Op for OneHot {
    const NAME: &'static str = "one_hot";
    const INPUTS: RangeInclusive<usize> = 1..=1;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let x = inputs[0];
        index_dtype(Self::NAME, x.dtype)?;
        if self.classes == 0 && x.shape.numel() > 0 {
            return Err(Error::argument("there is no class to choose: num_classes is 0").with_op(Self::NAME));
        }
        let mut dims = x.shape.to_vec();
        dims.push(self.classes);
        Ok(Plan::one(x.with_shape(Shape::new(&dims)?).with_dtype(DType::I64)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let (index, classes) = (inputs[0], self.classes);
        let out = outputs[0].slice::<i64>();
        if out.is_empty() {
            return Ok(());
        }
        let good = dispatch!(int index.dtype(), I => {
            let data = index.data::<I>();
            let places: Vec<usize> = index.layout().positions().map(|at| data[at].place()).collect();
            let per = (GRAIN / classes).max(1);
            par::for_each_chunk_mut(out, per * classes, |task, out| {
                out.fill(0);
                for (row, &place) in out.chunks_exact_mut(classes).zip(&places[task * per..]) {
                    if let Some(hot) = row.get_mut(place) {
                        *hot = 1;
                    }
                }
            });
            places.iter().all(|&p| p < classes)
        }, else false);
        if good { Ok(()) } else { Err(out_of_range(Self::NAME, index, classes, None)) }
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (shape, classes) = (inputs[0].shape(), self.classes);
        if outputs[0].shape().numel() == 0 {
            return Ok(());
        }
        let index = s.contiguous(&inputs[0])?;
        let bad = move |value, position| bad_index(Self::NAME, shape, value, position, classes);
        let mut fault = s.fault_slot(bad)?;
        let (n, classes) = (shape.numel() as u64, classes as u64);
        let y = outputs[0].dst();
        kernels::OneHot { index: index.src(), y, fault: fault.dst(), n, classes }.launch(s)
    }

    fn cases() -> Cases<Self> {
        let shapes: [(&[usize], usize); 7] =
            [(&[], 3), (&[1], 1), (&[7], 10), (&[5, 13], 4), (&[0], 4), (&[2, 0, 3], 0), (&[2, 3, 17], 33)];
        let case = |(shape, classes): (&[usize], usize)| Case {
            op: OneHot { classes },
            inputs: vec![Arg::constant(shape, Values::Index(classes))],
        };
        Cases {
            dtypes: &[DType::I32, DType::I64],
            tolerance: Tolerance::Exact,
            list: shapes.into_iter().map(case).collect(),
        }
    }
}

impl Tensor {
    /// For each class number in this tensor (i32 or i64) a row of `num_classes` numbers: 1 at the class, else 0. An i64 of
    /// shape `self.shape + [num_classes]`. Errors, naming number and position, if one is negative or not below
    /// `num_classes`.
    #[track_caller]
    pub fn one_hot(&self, num_classes: usize) -> Result<Tensor> {
        run1(OneHot { classes: num_classes }, &[self])
    }
}
