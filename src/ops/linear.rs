//! The linear layer: product, bias and activation in one pass.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::fused::{Fused, keeps_pre};
use super::{Arg, Case, Cases, MatMul, Op, Plan, SumTo, Tolerance, Values, run};
use crate::cpu::activation::{Activation, Reads};
use crate::cpu::gemm::{Accumulate, Epilogue, MatRef, gemm};
use crate::cpu::simd::MatMut;
use crate::device::Stream;
use crate::device::gemm::{self as gpu, Factor};
use crate::dtype::Float;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{DType, Error, Result, Shape, dispatch};

super::family!(Linear);

/// `y = f(x · wᵀ + b)` with `x [.., in]`, `w [out, in]` and optionally `b [out]`.
///
/// Gradients, with dz = dy · f′: dx = dz · w, dw = dzᵀ · x, db = Σ dz over all rows.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Whether a third input, the bias, is given.
    pub bias: bool,
    /// f
    pub activation: Activation,
    /// Whether a second output keeps x · wᵀ + b, for activations whose derivative cannot be told from f(z) alone.
    pub keep_pre: bool,
}

impl Linear {
    fn fused(&self) -> Fused {
        let Linear { bias, activation, keep_pre } = *self;
        Fused { op: Self::NAME, bias, activation, keep_pre }
    }

    /// Rows of x, inputs, outputs.
    fn sizes(x: &Shape, w: &Shape) -> (usize, usize, usize) {
        let rank = x.rank();
        (x[..rank - 1].iter().product(), x[rank - 1], w[0])
    }

    fn body<T: Float>(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (rows, width, out) = Linear::sizes(&inputs[0].shape(), &inputs[1].shape());
        let x = inputs[0];
        let packed;
        let (data, row_stride, col_stride) = match x.layout().reshape(&Shape::from_dims(&[rows, width])) {
            Some(l) => (x.data::<T>(), l.strides[0], l.strides[1]),
            None => {
                packed = x.layout().positions().map(|i| x.data::<T>()[i]).collect::<Vec<T>>();
                (packed.as_slice(), width, 1)
            }
        };
        let x = MatRef::new(data, rows, width, row_stride, col_stride);
        let w = inputs[1];
        let w = MatRef::new(w.data::<T>(), out, width, w.layout().strides[0], w.layout().strides[1]);
        let bias = inputs.get(2).map(|b| match b.slice::<T>() {
            Some(b) => std::borrow::Cow::Borrowed(b),
            None => b.layout().positions().map(|i| b.data::<T>()[i]).collect::<Vec<T>>().into(),
        });
        let (y, pre) = outputs.split_at_mut(1);
        let pre = pre.first_mut().map(|p| MatMut::new(p.slice::<T>(), rows, out, out));
        let epilogue = Epilogue { bias: bias.as_deref(), activation: self.activation, pre };
        gemm(x, w.t(), MatMut::new(y[0].slice::<T>(), rows, out, out), Accumulate::Write, epilogue);
        Ok(())
    }
}

impl Op for Linear {
    const NAME: &'static str = "linear";
    const INPUTS: RangeInclusive<usize> = 2..=3;

    fn saves(&self, needs: &[bool]) -> Saves {
        self.fused().saves(needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let (x, w) = (inputs[0], inputs[1]);
        super::same_float(Self::NAME, inputs)?;
        self.fused().check_count(inputs)?;
        let rank = x.shape.rank();
        if rank == 0 || w.shape.rank() != 2 || x.shape[rank - 1] != w.shape[1] {
            let message = format!("x {} does not fit a weight of shape {} = [out, in]", x.shape, w.shape);
            return Err(Error::shape(Self::NAME, message));
        }
        self.fused().check_bias(inputs, w.shape[0])?;
        let y = x.with_shape(x.shape.with(rank - 1, w.shape[0]));
        Ok(Plan { outputs: self.fused().outputs(y), scratch: 0 })
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        dispatch!(float outputs[0].dtype(), T => self.body::<T>(inputs, outputs), else Err(Error::internal("not a float")))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = Linear::sizes(&x.shape(), &w.shape());
        // Rows at one distance from each other are read where they lie.
        let rows = x.layout().reshape(&Shape::from_dims(&[m, k]));
        let packed;
        let (src, stride, k_stride) = match rows {
            Some(l) => (x.src(), l.strides[0], l.strides[1]),
            None => {
                packed = stream.contiguous(&x)?;
                (packed.src(), k, 1)
            }
        };
        let a = Factor { src, stride, k_stride, batch: &[] };
        let b = Factor {
            src: w.src(),
            stride: w.layout().strides[0],
            k_stride: w.layout().strides[1],
            batch: &[],
        };
        let bias = inputs.get(2).map(|b| stream.contiguous(b)).transpose()?;
        let bias = bias.as_ref().map(|b| b.src());
        let (y, pre) = outputs.split_at_mut(1);
        let (c, pre) = (y[0].dst(), pre.first_mut().map(|p| p.dst()));
        let activation = self.activation as u32;
        gpu::gemm(
            stream,
            gpu::Gemm { batch: &[], m, n, k, a, b, c, add: false, bias, activation, pre, tf32: false },
        )
    }

    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let Some(dz) = self.fused().gradient("linear", cx, dys)? else { return Ok(()) };
        if cx.needs(0) {
            let w = cx.input(1)?;
            if dz.rank() >= 2 {
                cx.run(MatMul, &[&dz, &w], &[0])?;
            } else {
                cx.give(0, dz.matmul(&w)?)?;
            }
        }
        let (rows, width, out) = Linear::sizes(&cx.input_meta(0).shape, &cx.input_meta(1).shape);
        let dz = dz.reshape([rows, out])?;
        if cx.needs(1) {
            let x = cx.input(0)?.reshape([rows, width])?;
            cx.run(MatMul, &[&dz.t()?, &x], &[1])?;
        }
        if self.bias {
            cx.run(SumTo { shape: Shape::from_dims(&[out]) }, &[&dz], &[2])?;
        }
        Ok(())
    }

    fn cases() -> Cases<Self> {
        let shapes: [(&[usize], usize); 9] = [
            (&[5], 3),
            (&[1, 1], 1),
            (&[4, 6], 3),
            (&[2, 3, 5], 2),
            (&[17, 33], 31),
            (&[0, 4], 2),
            (&[3, 0], 2),
            (&[64, 20], 1),
            // Large and aligned enough for tensor cores.
            (&[40, 56], 24),
        ];
        let activations = [
            Activation::Identity,
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Sigmoid,
            Activation::Tanh,
        ];
        let mut list = Vec::new();
        for (i, &(x, out)) in shapes.iter().enumerate() {
            for (j, &activation) in activations.iter().enumerate() {
                let bias = (i + j) % 2 == 0;
                let mut inputs = vec![
                    Arg::new(x, Values::Normal(1.0)),
                    Arg::new(&[out, x[x.len() - 1]], Values::Normal(0.5)),
                ];
                if bias {
                    inputs.push(Arg::new(&[out], Values::Normal(0.5)));
                }
                let op = Linear { bias, activation, keep_pre: activation.reads() == Reads::Input };
                list.push(Case { op, inputs });
            }
        }
        let why =
            "at most k + 1 roundings before the activation, whose slope is at most 1.13, and a few ulp in it";
        Cases { dtypes: &DType::FLOATS, tolerance: Tolerance::Sum(64.0, why), list }
    }
}

impl Tensor {
    /// `f(x · wᵀ + b)` in one pass: `self` is x `[.., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[.., out]`.
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [self, weight].into_iter().chain(bias).collect();
        let keep_pre = keeps_pre(activation, &inputs);
        let op = Linear { bias: bias.is_some(), activation, keep_pre };
        Ok(run(op, &inputs)?.swap_remove(0))
    }
}
