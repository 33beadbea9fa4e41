//! Choosing between two operands by a mask.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::gpu::{adds, elementwise, present};
use super::unary::{source, target};
use super::{Arg, Case, Cases, Op, Plan, SumTo, Tolerance, Values, run1};
use crate::cpu::elementwise::{Work, apply, each3};
use crate::device::Stream;
use crate::device::kernels::elementwise as kernels;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result};

super::family!(Where);

/// y = a where the mask is not 0, else b, with broadcasting of all three. Inputs: the mask (u8), a, b of any one dtype.
/// Gradients: dy where the operand was chosen, else 0.
#[derive(Clone, Copy, Debug)]
pub struct Where;

impl Op for Where {
    const NAME: &'static str = "where";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const ACCUMULATES: bool = true;

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::inputs(&[0])
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (mask, a, b) = (inputs[0], inputs[1], inputs[2]);
        if mask.dtype != DType::U8 {
            let message = format!("the mask must be u8, not {}", mask.dtype);
            return Err(Error::dtype(Self::NAME, message).with_help("comparisons such as x.gt(&y) give one"));
        }
        if a.dtype != b.dtype {
            let message = format!("operands of {} and {}; nothing is promoted", a.dtype, b.dtype);
            return Err(Error::dtype(Self::NAME, message).with_help("cast one of them with to_dtype"));
        }
        let shape = a.shape.broadcast(&b.shape, Self::NAME)?.broadcast(&mask.shape, Self::NAME)?;
        Ok(Plan::one(a.with_shape(shape)))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        fn body<W: Work>(inputs: [View<'_>; 3], out: &mut Out<'_>) {
            let chosen = each3(
                #[inline(always)]
                |mask: W, a: W, b: W| if mask != W::default() { a } else { b },
            );
            apply(target(out), inputs.each_ref().map(source), &chosen);
        }
        let out = &mut outputs[0];
        let shape = out.shape();
        let inputs = [inputs[0].expand(&shape)?, inputs[1].expand(&shape)?, inputs[2].expand(&shape)?];
        match out.dtype() {
            DType::F32 | DType::BF16 | DType::F16 => body::<f32>(inputs, out),
            DType::F64 => body::<f64>(inputs, out),
            DType::U8 => body::<u8>(inputs, out),
            DType::I32 => body::<i32>(inputs, out),
            DType::I64 => body::<i64>(inputs, out),
        }
        Ok(())
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let add = adds(&outputs[0]);
        // The values decide how many elements a vector has.
        elementwise(&mut outputs[0], [Some(&inputs[1]), Some(&inputs[2]), Some(&inputs[0])], &mut |piece| {
            let (dims, [a_by, b_by, mask_by, _], n, wide) = (piece.dims, piece.by, piece.n, piece.wide);
            let (a, b, mask) = (present(&piece, 0)?, present(&piece, 1)?, present(&piece, 2)?);
            let y = piece.y();
            kernels::WhereSelect { wide, mask, a, b, y, dims, mask_by, a_by, b_by, n, add }.launch(stream)
        })
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = &dys[0] else { return Ok(()) };
        let (mask, zero) = (cx.input(0)?, Tensor::zeros((), dy.dtype(), dy.device())?);
        for operand in [1, 2] {
            if !cx.needs(operand) {
                continue;
            }
            let shape = cx.input_meta(operand).shape;
            let inputs = if operand == 1 { [&mask, dy, &zero] } else { [&mask, &zero, dy] };
            if shape == dy.shape() {
                cx.run(Where, &inputs, &[operand])?;
            } else {
                cx.run(SumTo { shape }, &[&run1(Where, &inputs)?], &[operand])?;
            }
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let shapes: [[&[usize]; 3]; 9] = [
            [&[], &[], &[]],
            [&[0], &[0], &[1]],
            [&[33], &[33], &[33]],
            [&[5, 13], &[], &[5, 13]],
            [&[5, 1], &[13], &[5, 13]],
            [&[2, 3, 17], &[2, 3, 17], &[]],
            [&[], &[7], &[3, 1]],
            [&[1, 4, 1], &[2, 1, 9], &[4, 9]],
            [&[1025], &[2, 1025], &[2, 1]],
        ];
        let case = |&[mask, a, b]: &[&[usize]; 3]| Case {
            op: Where,
            inputs: vec![
                Arg::typed(mask, Values::OneOf(&[0.0, 1.0, 0.0, 255.0]), DType::U8),
                Arg::new(a, Values::Normal(2.0)),
                Arg::new(b, Values::Normal(2.0)),
            ],
        };
        Cases { dtypes: &DType::ALL, tolerance: Tolerance::Exact, list: shapes.iter().map(case).collect() }
    }
}

impl Tensor {
    /// `a` where this mask (u8) is not 0, else `b`: PyTorch's `torch.where(mask, a, b)`. All three broadcast.
    #[track_caller]
    pub fn where_(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        run1(Where, &[self, a, b])
    }

    /// `value`, taken as this element type, where `mask` (u8, broadcast) is not 0, else this tensor.
    #[track_caller]
    pub fn masked_fill(&self, mask: &Tensor, value: f64) -> Result<Tensor> {
        mask.where_(&Tensor::full((), value, self.dtype(), self.device())?, self)
    }
}
