//! The global norm of an arena's gradients.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use crate::cpu::{par, simd};
use crate::device::Stream;
use crate::device::kernels::optim as kernels;
use crate::device::stream::Temp;
use crate::dtype::{Float, Real};
use crate::ops::{Cases, Op, Plan, Tolerance, run1};
use crate::param::{ALIGN, FROZEN};
use crate::tensor::{Meta, Out, Tensor, View, no_grad};
use crate::{Arena, DType, Error, Result, Shape, dispatch};

/// Elements of a partial sum; a multiple of [`ALIGN`]. Decides the bits of the norm.
pub(super) const CHUNK: usize = 64 * ALIGN;
/// Partial sums within a block: as many as the widest vectors hold.
const LANES: usize = 16;

/// The Euclidean norm of the gradients of all parameters that are not frozen. Sums of squares are f64 across blocks of
/// [`ALIGN`], f32 (f64 for f64) within; a loss scale is part of them. Gradients that have not landed count with what their memory holds.
pub fn global_norm(arena: &Arena) -> Result<f64> {
    let (grads, table) = (arena.grads()?, arena.group_table()?);
    let table = Tensor::from_slice(&table, table.len(), arena.device())?;
    no_grad(|| run1(GlobalNorm, &[&grads, &table]))?.item()
}

/// The sums of squares of the chunks on a GPU: the first half of a norm.
pub(super) fn squares<'a>(s: &'a Stream, inputs: &[View<'_>]) -> Result<Temp<'a>> {
    let n = inputs[0].numel();
    let mut sums = s.temp(DType::F64, n.div_ceil(CHUNK).max(1))?;
    let (grads, table) = (inputs[0].src(), inputs[1].src());
    kernels::GradSquares { grads, table, sums: sums.dst(), n: n as u64 }.launch(s)?;
    Ok(sums)
}

/// The norm of flat gradients without the frozen ones, as a scalar. Inputs: gradients, the group table.
#[derive(Clone, Copy, Debug)]
struct GlobalNorm;

impl Op for GlobalNorm {
    const NAME: &'static str = "global_norm";
    const INPUTS: RangeInclusive<usize> = 2..=2;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        Ok(Plan::one(inputs[0].with_dtype(DType::F64).with_shape(Shape::from_dims(&[]))))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        outputs[0].slice::<f64>()[0] = norm_of(inputs)?;
        Ok(())
    }

    fn gpu(&self, s: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        let sums = squares(s, inputs)?;
        let count = inputs[0].numel().div_ceil(CHUNK) as u64;
        kernels::GradNorm { sums: sums.src().part(0, count), norm: outputs[0].dst(), count }.launch(s)
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}

/// The norm of flat gradients in host memory, given their group table.
pub(super) fn norm_of(inputs: &[View<'_>]) -> Result<f64> {
    let table = inputs[1].data::<u8>();
    dispatch!(float inputs[0].dtype(), T => Ok(norm(inputs[0].data::<T>(), table)), else {
        Err(Error::internal("gradients of integers"))
    })
}

fn norm<T: Float>(grads: &[T], table: &[u8]) -> f64 {
    let sums = par::map_chunks(table.len(), CHUNK / ALIGN, |blocks| {
        simd::vectorize(
            #[inline(always)]
            || {
                let squares = |block: usize| -> f64 {
                    let mut lanes = [T::Acc::ZERO; LANES];
                    for piece in grads[block * ALIGN..(block + 1) * ALIGN].chunks_exact(LANES) {
                        for (lane, &g) in lanes.iter_mut().zip(piece) {
                            *lane = g.to_acc().mul_add(g.to_acc(), *lane);
                        }
                    }
                    lanes.iter().map(|&l| crate::dtype::Element::to_f64(l)).sum()
                };
                blocks.filter(|&b| table[b] != FROZEN).map(squares).sum::<f64>()
            },
        )
    });
    sums.into_iter().sum::<f64>().sqrt()
}
