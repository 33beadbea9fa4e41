//! The global norm of an arena's gradients, and clipping by it.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use crate::cpu::{par, simd};
use crate::dtype::{Float, Real};
use crate::ops::{Cases, Op, Plan, Tolerance};
use crate::param::{ALIGN, FROZEN, StepBlock};
use crate::tensor::{Meta, Out, View};
use crate::{Arena, DType, Error, Result, dispatch};

/// Elements of a partial sum; a multiple of [`ALIGN`]. Decides the bits of the norm.
const CHUNK: usize = 64 * ALIGN;
/// Partial sums within a block: as many as the widest vectors hold.
const LANES: usize = 16;

/// The Euclidean norm of the gradients of all parameters that are not frozen. Sums of squares are f64 across blocks of
/// [`ALIGN`], f32 (f64 for f64) within; gradients that have not landed count with what their memory holds.
pub fn global_norm(arena: &Arena) -> Result<f64> {
    let (grads, table) = (arena.grads()?, arena.group_table()?);
    let guard = grads.read()?;
    dispatch!(float grads.dtype(), T => Ok(norm(View::new(&grads, &guard).data::<T>(), &table)), else {
        Err(Error::internal("an arena of integers"))
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

/// Writes the factor that brings the global norm of the gradients down to `max_norm` (1 if it is below) and the norm
/// itself into the step block, as `torch.nn.utils.clip_grad_norm_` computes it: `min(1, max_norm / (norm + 1e-6))`.
///
/// Inputs: gradients (flat), the group table. In place: the step block's floats.
#[derive(Clone, Copy, Debug)]
pub struct ClipNorm {
    /// The largest norm that is let through.
    pub max_norm: f64,
}

impl Op for ClipNorm {
    const NAME: &'static str = "clip_grad_norm";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const ACCUMULATES: bool = true;

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let floats = inputs[0].with_dtype(DType::F64).with_shape(StepBlock::floats_shape());
        Ok(Plan::one(floats))
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], _: &mut [u8]) -> Result<()> {
        let table = inputs[1].data::<u8>();
        let norm = dispatch!(float inputs[0].dtype(), T => norm(inputs[0].data::<T>(), table), else {
            return Err(Error::internal("not a float"))
        });
        let floats = outputs[0].slice::<f64>();
        let norm = norm / floats[StepBlock::LOSS_SCALE];
        floats[StepBlock::NORM] = norm;
        // Not `min`, so that a norm of NaN is not clipped to 1 and hidden.
        let factor = self.max_norm / (norm + 1e-6);
        floats[StepBlock::CLIP] = if factor > 1.0 { 1.0 } else { factor };
        Ok(())
    }

    fn cases() -> Cases<Self> {
        Cases { dtypes: &[], tolerance: Tolerance::Exact, list: Vec::new() }
    }
}
