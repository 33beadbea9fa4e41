//! Ops: everything that computes. Each is written once, as one value of a type that implements [`Op`].
//!
//! The way of a call: a method such as `Tensor::relu` builds the op's value and calls [`run`]; that asks `infer` for the
//! outputs, borrows the inputs, runs the body for the device and records a node on the tape. `autograd` later calls the
//! op's `backward`, which is made of ops again and delivers through [`BackwardCx::run`], so that a gradient is written (or
//! added) straight where it belongs. Shapes and dtypes are checked in `infer` and nowhere else.

#![forbid(unsafe_code)]

mod attention;
mod batch_norm;
mod binary;
pub mod cases;
mod conv;
mod copy;
mod dropout;
mod extremum;
mod fused;
mod gated;
mod gpu;
mod group_norm;
mod index;
mod interpolate;
mod join;
mod linear;
pub mod loss;
mod matmul;
mod moments;
mod norm;
mod pool;
mod recurrent;
mod reduce;
mod rotary;
mod run;
mod scan;
mod select;
mod softmax;
mod sort;
mod sum_to;
mod unary;

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::device::Stream;
use crate::tensor::{BackwardCx, Meta, Out, Saves, Tensor, View};
use crate::{Error, Result};

pub use attention::{
    Attention, AttentionBackward, PackedAttention, PackedAttentionBackward, Sdpa, SegmentedAttention,
    SegmentedAttentionBackward,
};
pub use batch_norm::{BatchNorm, BatchNormBackward, BatchNormEval, RunningStats, update_running_stats};
pub use binary::*;
pub use cases::{Arg, Case, Cases, Tolerance, Values};
pub use conv::{Conv, ConvInputBackward, ConvWeightBackward, Convolution};
pub use copy::{Cast, Contiguous};
pub use dropout::Dropout;
pub use extremum::*;
pub use gated::{SwiGlu, SwiGluBackward};
pub use group_norm::{GroupNorm, GroupNormBackward};
pub use index::{
    Embedding, EmbeddingBackward, Gather, GatherBackward, IndexSelect, IndexSelectBackward, OneHot,
    ScatterAdd,
};
pub use interpolate::{Interpolate, InterpolateBackward, Interpolation, Resize};
pub use join::{Cat, Pad};
pub use linear::Linear;
pub use loss::{BceWithLogits, CrossEntropy, KlDiv, Reduction, distillation_loss};
pub use matmul::MatMul;
pub use moments::*;
pub use norm::*;
pub use pool::{
    AdaptiveAvgPool2d, AdaptiveAvgPool2dBackward, AvgPool2d, AvgPool2dBackward, MaxPool2d, MaxPool2dBackward,
    Window,
};
pub use recurrent::*;
pub use reduce::*;
pub use rotary::{Rotary, RotaryTable};
pub use run::{run, run_into, run1};
pub use scan::CumSum;
pub use select::Where;
pub use softmax::*;
pub use sort::{Sort, SortBackward, TopK};
pub use sum_to::SumTo;
pub use unary::*;

/// The outputs of an op and the scratch memory it needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One to four outputs.
    pub outputs: Vec<Meta>,
    /// Bytes of scratch memory for the body, 64-byte aligned, of arbitrary content.
    pub scratch: usize,
}

impl Plan {
    /// One output, no scratch.
    pub fn one(output: Meta) -> Plan {
        Plan { outputs: vec![output], scratch: 0 }
    }
}

/// An operation on tensors, written once: what it makes, how each device computes it, how gradients go back through it.
///
/// An op is a small value that holds its arguments (axes, a slope, a flag); tensors are passed beside it. Embedders
/// implement this trait for ops of their own, which then take part in autograd like the built-in ones.
pub trait Op: Copy + Debug + Send + Sync + 'static {
    /// The op's name in errors, reports and tests: lower case, PyTorch's where it has one.
    const NAME: &'static str;

    /// How many inputs it takes.
    const INPUTS: RangeInclusive<usize> = 1..=usize::MAX;

    /// Whether the bodies honour [`Mode::Accumulate`](crate::tensor::Mode::Accumulate). If not, adding goes through a temporary.
    const ACCUMULATES: bool = false;

    /// Whether the bodies mean [`Mode::Update`](crate::tensor::Mode::Update): outputs hold what the op starts from. Asking
    /// another op for it is an error.
    const UPDATES: bool = false;

    /// How many of the last outputs are statistics for backward (such as the maxima of a softmax): they carry no gradient.
    const STATISTICS: usize = 0;

    /// Whether the bodies honour [`Mode::Skip`](crate::tensor::Mode::Skip) and compute less for it. If not, a skipped output
    /// is written to a temporary.
    const SKIPS: bool = false;

    /// What backward reads of the inputs and outputs; nothing else is kept alive. `needs[i]`: input `i` wants a gradient.
    fn saves(&self, needs: &[bool]) -> Saves {
        let _ = needs;
        Saves::NONE
    }

    /// Checks shapes and dtypes and says what comes out. The only place where they are checked; the number of inputs is
    /// within [`Op::INPUTS`].
    fn infer(&self, inputs: &[Meta]) -> Result<Plan>;

    /// Computes on the CPU. Inputs have any layout; outputs are contiguous; results do not depend on the thread count.
    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()>;

    /// Computes on a GPU: queues kernels on `stream` and does not wait. Inputs have any layout; outputs are contiguous. An
    /// element type without a kernel is an error of kind `Unsupported`; nothing is computed elsewhere instead.
    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()>;

    /// Delivers the gradients of the inputs that want one ([`BackwardCx::needs`]), given those of the outputs; `None`
    /// stands for zero. The default says that the op has no gradient.
    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        let _ = (cx, dys);
        Err(Error::unsupported(Self::NAME, "this op has no gradient")
            .with_help("call detach() on its inputs"))
    }

    /// Arguments, shapes and values to test the op with, and how exact it must be.
    fn cases() -> Cases<Self>;
}

/// Something done for every op of the crate, such as testing it.
pub trait Visitor {
    /// Called once for each type of op.
    fn visit<O: Op>(&mut self);
}

/// Calls `visitor` for every op of the crate.
pub fn visit_all(visitor: &mut impl Visitor) {
    attention::visit(visitor);
    binary::visit(visitor);
    conv::visit(visitor);
    copy::visit(visitor);
    dropout::visit(visitor);
    select::visit(visitor);
    gated::visit(visitor);
    norm::visit(visitor);
    batch_norm::visit(visitor);
    group_norm::visit(visitor);
    pool::visit(visitor);
    index::visit(visitor);
    interpolate::visit(visitor);
    join::visit(visitor);
    linear::visit(visitor);
    matmul::visit(visitor);
    loss::visit(visitor);
    recurrent::visit(visitor);
    reduce::visit(visitor);
    rotary::visit(visitor);
    extremum::visit(visitor);
    moments::visit(visitor);
    scan::visit(visitor);
    softmax::visit(visitor);
    sort::visit(visitor);
    sum_to::visit(visitor);
    unary::visit(visitor);
}

/// Lists the op types of a family for [`visit_all`].
macro_rules! family {
    ($($op:ty),* $(,)?) => {
        pub(super) fn visit(visitor: &mut impl $crate::ops::Visitor) {
            $(visitor.visit::<$op>();)*
        }
    };
}
use family;

/// Checks that all inputs have one floating-point type, for `infer`.
pub(crate) fn same_float(op: &'static str, inputs: &[Meta]) -> Result<crate::DType> {
    let first = inputs[0].dtype;
    if let Some(other) = inputs.iter().find(|m| m.dtype != first) {
        let message = format!("inputs of {first} and {}", other.dtype);
        return Err(Error::dtype(op, message).with_help(format!("cast one with to_dtype(DType::{first:?})")));
    }
    if !first.is_float() {
        return Err(Error::dtype(op, format!("needs floating-point inputs, not {first}")));
    }
    Ok(first)
}

/// The type as which kernels that only copy take elements of this type: one for each size.
pub(crate) fn size_class(dtype: crate::DType) -> crate::DType {
    use crate::DType;
    match dtype.size() {
        1 => DType::U8,
        2 => DType::F16,
        4 => DType::I32,
        _ => DType::I64,
    }
}
