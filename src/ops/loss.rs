//! Losses: each is one fused op with a backward op of its own, and PyTorch's meaning of every option.
//!
//! Sums are kept in the accumulator's type over fixed blocks and added up in f64 in the order of the blocks, so that they
//! neither drift with the number of elements nor depend on the number of threads. The mean of nothing is NaN, as in
//! PyTorch. Inputs are never broadcast against targets: `[n]` against `[n, 1]` is a mistake far more often than a wish.

#![forbid(unsafe_code)]

mod cross_entropy;
mod distill;
mod gpu;
mod kinds;
mod point;
mod rows;
mod soft;
#[cfg(test)]
mod tests;

use crate::dtype::Real;
use crate::{DType, Error, Result, Shape, Tensor};

pub use cross_entropy::{CrossEntropy, CrossEntropyLoss, CrossEntropyLossBackward, CrossEntropyOverwrite};
pub use distill::{DistillationLoss, DistillationLossBackward, distillation_loss};
pub use kinds::{Bce, BceWithLogits, Huber, Kl, KlDiv, L1, Mse, SmoothL1};
pub use point::{PointKind, PointLoss, PointLossBackward};
pub use soft::{SoftCrossEntropyLoss, SoftCrossEntropyLossBackward};

super::family!(
    PointLoss<Mse>,
    PointLossBackward<Mse>,
    PointLoss<L1>,
    PointLossBackward<L1>,
    PointLoss<Huber>,
    PointLossBackward<Huber>,
    PointLoss<SmoothL1>,
    PointLossBackward<SmoothL1>,
    PointLoss<Kl>,
    PointLossBackward<Kl>,
    PointLoss<Bce>,
    PointLossBackward<Bce>,
    CrossEntropyLoss,
    CrossEntropyLossBackward,
    CrossEntropyOverwrite,
    SoftCrossEntropyLoss,
    SoftCrossEntropyLossBackward,
    DistillationLoss,
    DistillationLossBackward,
);

/// Elements that one task handles.
const GRAIN: usize = 16 * 1024;
/// Elements that a loop handles at a time; operands that must be converted or collected go through buffers of this size.
const BLOCK: usize = 512;

/// What becomes of the losses of the single elements (or rows).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean. For class indices: the sum divided by the weights of the targets that count.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Nothing: one loss an element or row.
    None,
    /// Their sum divided by the size of the first dimension of the input: the mathematical mean of a divergence.
    BatchMean,
}

impl Reduction {
    const ALL: [Reduction; 4] = [Reduction::Mean, Reduction::Sum, Reduction::None, Reduction::BatchMean];

    /// The shape of the result, where there are losses of `full` shape.
    fn shape(self, full: Shape) -> Shape {
        if self == Reduction::None { full } else { Shape::from_dims(&[]) }
    }

    /// What the sum is divided by; `count` losses came from an input of shape `input`.
    fn divisor(self, count: usize, input: Shape) -> f64 {
        match self {
            Reduction::Mean => count as f64,
            Reduction::BatchMean => input.first().map_or(1.0, |&n| n as f64),
            Reduction::Sum | Reduction::None => 1.0,
        }
    }
}

/// The input and the other operands have one floating-point type.
fn same_float(op: &'static str, input: DType, others: &[(&str, DType)]) -> Result<()> {
    super::index::float_dtype(op, input)?;
    match others.iter().find(|o| o.1 != input) {
        None => Ok(()),
        Some((name, found)) => {
            Err(Error::dtype(op, format!("the input is {input} but the {name} is {found}"))
                .with_help(format!("cast the {name} with to_dtype(DType::{input:?})")))
        }
    }
}

/// An operand that gradients cannot flow to.
fn no_gradient(op: &'static str, name: &str) -> Error {
    Error::unsupported(op, format!("the {name} has no gradient"))
        .with_help(format!("call detach() on the {name}"))
}

/// The sum in sixteen lanes, added up in a fixed order. For inside `vectorize`.
#[inline(always)]
fn lane_sum<A: Real>(values: &[A]) -> A {
    let mut lanes = [A::ZERO; 16];
    let chunks = values.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for l in 0..16 {
            lanes[l] += chunk[l];
        }
    }
    for (v, lane) in tail.iter().zip(&mut lanes) {
        *lane += *v;
    }
    fold(
        lanes,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Sixteen lanes to one value, halving.
#[inline(always)]
fn fold<A: Real>(mut lanes: [A; 16], f: impl Fn(A, A) -> A) -> A {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = f(lanes[l], lanes[l + half]);
        }
    }
    lanes[0]
}

/// `inputs` with those of `extra` that exist.
fn with_some<'a>(inputs: &[&'a Tensor], extra: &[Option<&'a Tensor>]) -> Vec<&'a Tensor> {
    inputs.iter().copied().chain(extra.iter().copied().flatten()).collect()
}
