//! Ops: everything that computes. Each is written once, as one value of a type that implements [`Op`].
//!
//! The way of a call: a method such as `Tensor::relu` builds the op's value and calls [`run`]; that asks `infer` for the
//! outputs, borrows the inputs, runs the body for the device and records a node on the tape. `autograd` later calls the
//! op's `backward`, which is made of ops again and delivers through [`BackwardCx::run`], so that a gradient is written (or
//! added) straight where it belongs. Shapes and dtypes are checked in `infer` and nowhere else.

#![forbid(unsafe_code)]

mod binary;
pub mod cases;
mod copy;
mod dropout;
mod extremum;
mod index;
mod join;
mod linear;
pub mod loss;
mod matmul;
mod moments;
mod norm;
mod reduce;
mod select;
mod softmax;
mod sum_to;
mod unary;

use std::fmt::Debug;

use crate::cpu::pool::Block;
use crate::device::Stream;
use crate::tensor::node::{Backward, Function, numerics_checked, record};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View, accumulate, copy_into};
use crate::{Device, Error, Result};

pub use binary::*;
pub use cases::{Arg, Case, Cases, Tolerance, Values};
pub use copy::{Cast, Contiguous};
pub use dropout::Dropout;
pub use extremum::*;
pub use index::{Embedding, EmbeddingBackward, Gather, GatherBackward, IndexSelect, IndexSelectBackward};
pub use join::{Cat, Pad};
pub use linear::Linear;
pub use loss::{BceWithLogits, CrossEntropy, KlDiv, Reduction, distillation_loss};
pub use matmul::MatMul;
pub use moments::*;
pub use norm::*;
pub use reduce::*;
pub use select::Where;
pub use softmax::*;
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

    /// Whether the bodies honour [`Mode::Accumulate`]. If not, adding goes through a temporary.
    const ACCUMULATES: bool = false;

    /// How many of the last outputs are statistics for backward (such as the maxima of a softmax): they carry no gradient.
    const STATISTICS: usize = 0;

    /// What backward reads of the inputs and outputs; nothing else is kept alive. `needs[i]`: input `i` wants a gradient.
    fn saves(&self, needs: &[bool]) -> Saves {
        let _ = needs;
        Saves::NONE
    }

    /// Checks shapes and dtypes and says what comes out. The only place where they are checked.
    fn infer(&self, inputs: &[Meta]) -> Result<Plan>;

    /// Computes on the CPU. Inputs have any layout; outputs are contiguous; results do not depend on the thread count.
    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()>;

    /// Computes on a GPU. Not supported unless the op says otherwise.
    fn gpu(
        &self,
        stream: &Stream,
        inputs: &[View<'_>],
        outputs: &mut [Out<'_>],
        scratch: &mut [u8],
    ) -> Result<()> {
        let _ = (stream, inputs, outputs, scratch);
        Err(Error::unsupported(Self::NAME, "not implemented on GPUs"))
    }

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
    binary::visit(visitor);
    copy::visit(visitor);
    dropout::visit(visitor);
    select::visit(visitor);
    norm::visit(visitor);
    index::visit(visitor);
    join::visit(visitor);
    linear::visit(visitor);
    matmul::visit(visitor);
    loss::visit(visitor);
    reduce::visit(visitor);
    extremum::visit(visitor);
    moments::visit(visitor);
    softmax::visit(visitor);
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

/// The type-erased op on a node.
struct Recorded<O>(O);

impl<O: Op> Backward for Recorded<O> {
    fn backward(&self, cx: &mut BackwardCx<'_>, dys: &[Option<Tensor>]) -> Result<()> {
        self.0.backward(cx, dys)
    }
}

/// The device that all inputs share.
fn common_device(op: &'static str, inputs: &[&Tensor]) -> Result<Device> {
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    match inputs.iter().find(|t| t.device() != device) {
        Some(other) => {
            let message = format!("inputs on {device} and {}", other.device());
            Err(Error::new(crate::ErrorKind::Device, message).with_op(op))
        }
        None => Ok(device),
    }
}

/// Runs the body of `op` with guards on the inputs; `body_outs` are over memory that the caller holds.
fn body<O: Op>(
    op: &O,
    device: Device,
    inputs: &[&Tensor],
    outs: &mut [Out<'_>],
    scratch: usize,
) -> Result<()> {
    let guards =
        inputs.iter().map(|t| t.read()).collect::<Result<Vec<_>>>().map_err(|e| e.with_op(O::NAME))?;
    let views: Vec<View<'_>> = inputs.iter().zip(&guards).map(|(t, g)| View::new(t, g)).collect();
    let mut scratch = Block::new(scratch)?;
    match device {
        Device::Cpu => op.cpu(&views, outs, scratch.as_mut()).map_err(|e| e.with_op(O::NAME)),
    }
}

fn infer<O: Op>(op: &O, inputs: &[&Tensor]) -> Result<(Device, Plan)> {
    let device = common_device(O::NAME, inputs)?;
    let mut metas = [Meta { shape: crate::Shape::from_dims(&[]), dtype: crate::DType::F32, device }; 8];
    for (meta, tensor) in metas.iter_mut().zip(inputs) {
        *meta = tensor.meta();
    }
    let plan = if inputs.len() <= metas.len() {
        op.infer(&metas[..inputs.len()])
    } else {
        op.infer(&inputs.iter().map(|t| t.meta()).collect::<Vec<_>>())
    };
    Ok((device, plan.map_err(|e| e.with_op(O::NAME))?))
}

/// Runs `op` into fresh tensors and records it.
#[track_caller]
pub fn run<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let (device, plan) = infer(&op, inputs)?;
    let mut blocks = plan.outputs.iter().map(|m| Block::new(m.bytes())).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Out<'_>> = blocks
        .iter_mut()
        .zip(&plan.outputs)
        .map(|(b, m)| Out::new(b.as_mut(), m.shape, m.dtype, Mode::Write))
        .collect();
    body(&op, device, inputs, &mut outs, plan.scratch)?;
    let outputs: Vec<Tensor> =
        blocks.into_iter().zip(&plan.outputs).map(|(b, m)| Tensor::from_block(b, *m)).collect();
    if numerics_checked() {
        check_finite(O::NAME, &outputs)?;
    }
    let save = |needs: &[bool]| op.saves(needs);
    let mut outputs = record(O::NAME, inputs, outputs, save, || Function::Op(Box::new(Recorded(op))));
    outputs.iter_mut().rev().take(O::STATISTICS).for_each(|t| *t = t.detach());
    Ok(outputs)
}

/// An error that names `op` if one of its outputs holds a NaN or an infinity.
fn check_finite(op: &'static str, outputs: &[Tensor]) -> Result<()> {
    for output in outputs.iter().filter(|t| t.dtype().is_float()) {
        let values = output.to_f64_vec()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let message = format!("element {at} of a result of shape {} is {}", output.shape(), values[at]);
            return Err(Error::new(crate::ErrorKind::Diverged, message).with_op(op));
        }
    }
    Ok(())
}

/// Runs an op of one output into a fresh tensor and records it.
#[track_caller]
pub fn run1<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Tensor> {
    Ok(run(op, inputs)?.swap_remove(0))
}

/// Runs `op` into memory that exists: contiguous tensors of the shapes and dtypes that `infer` gives, each with its mode
/// ([`Mode::Skip`]: that output is not computed). Bumps the version of what it writes. Not recorded: an error if an input
/// or output carries a gradient while recording is on.
#[track_caller]
pub fn run_into<O: Op>(op: O, inputs: &[&Tensor], outputs: &[(&Tensor, Mode)]) -> Result<()> {
    if crate::tensor::grad_enabled()
        && inputs.iter().chain(outputs.iter().map(|o| &o.0)).any(|t| t.requires_grad())
    {
        let error = Error::unsupported(O::NAME, "writing into existing memory is not recorded for gradients");
        return Err(error.with_help("use the form that returns a tensor, or wrap the call in no_grad"));
    }
    let (device, plan) = infer(&op, inputs)?;
    if outputs.len() != plan.outputs.len() {
        return Err(Error::shape(
            O::NAME,
            format!("{} outputs given, {} needed", outputs.len(), plan.outputs.len()),
        ));
    }
    for ((out, mode), want) in outputs.iter().zip(&plan.outputs) {
        if *mode != Mode::Skip && (out.meta() != *want || !out.is_contiguous()) {
            let how = if out.is_contiguous() { "" } else { "non-contiguous " };
            return Err(Error::shape(
                O::NAME,
                format!("output is {how}{} but must be contiguous {want}", out.meta()),
            ));
        }
    }
    if !O::ACCUMULATES && outputs.iter().any(|o| o.1 == Mode::Accumulate) {
        let temporaries = plan.outputs.iter().map(|m| Tensor::empty(*m)).collect::<Result<Vec<_>>>()?;
        let write =
            |(t, o): (_, &(&Tensor, Mode))| (t, if o.1 == Mode::Accumulate { Mode::Write } else { o.1 });
        let targets: Vec<(&Tensor, Mode)> = temporaries.iter().zip(outputs).map(write).collect();
        run_into(op, inputs, &targets)?;
        for (temporary, (out, mode)) in temporaries.iter().zip(outputs) {
            match mode {
                Mode::Accumulate => accumulate(out, temporary)?,
                Mode::Write => copy_into(out, temporary)?,
                Mode::Skip => {}
                Mode::Update => {
                    return Err(Error::internal("an op that updates in place must accumulate itself"));
                }
            }
        }
        return Ok(());
    }
    let mut guards = outputs
        .iter()
        .map(|(t, mode)| if *mode == Mode::Skip { Ok(None) } else { t.write(O::NAME).map(Some) })
        .collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Out<'_>> = Vec::with_capacity(outputs.len());
    for (guard, (tensor, mode)) in guards.iter_mut().zip(outputs) {
        outs.push(match guard {
            Some(guard) => Out::of(tensor, guard, *mode),
            None => Out::new(&mut [], tensor.shape(), tensor.dtype(), Mode::Skip),
        });
    }
    body(&op, device, inputs, &mut outs, plan.scratch)
}

impl BackwardCx<'_> {
    /// Runs `op` and delivers its outputs as the gradients of this node's inputs: output `k` goes to input `targets[k]`.
    /// It is written, or added, right where that gradient belongs; an output whose target wants none is skipped
    /// ([`Mode::Skip`]), and if none does, nothing runs.
    pub fn run<O: Op>(&mut self, op: O, inputs: &[&Tensor], targets: &[usize]) -> Result<()> {
        let wanted: Vec<bool> = targets.iter().map(|&i| self.needs(i)).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        let (_, plan) = infer(&op, inputs)?;
        for (&i, want) in targets.iter().zip(&plan.outputs) {
            if self.needs(i) && self.input_meta(i).shape != want.shape {
                let message = format!("{} makes {want} as the gradient of {}", O::NAME, self.input_meta(i));
                return Err(Error::internal(message).with_op(self.node.name));
            }
        }
        // A gradient goes through a temporary where its memory is not of the op's dtype or is already a target here.
        enum To {
            Direct(usize),
            Given(usize),
            Nowhere,
        }
        let mut tensors: Vec<(Tensor, Mode, To)> = Vec::with_capacity(targets.len());
        for (k, (&i, want)) in targets.iter().zip(&plan.outputs).enumerate() {
            if !wanted[k] {
                tensors.push((
                    Tensor::empty(want.with_shape(crate::Shape::from_dims(&[0])))?,
                    Mode::Skip,
                    To::Nowhere,
                ));
                continue;
            }
            let repeated = (0..k).any(|e| wanted[e] && self.same_edge(targets[e], i));
            let direct = if repeated { None } else { Some(self.destination(i)?) };
            match direct {
                Some((memory, add)) if memory.dtype() == want.dtype => {
                    tensors.push((memory, if add { Mode::Accumulate } else { Mode::Write }, To::Direct(i)));
                }
                _ => tensors.push((Tensor::empty(*want)?, Mode::Write, To::Given(i))),
            }
        }
        let outs: Vec<(&Tensor, Mode)> = tensors.iter().map(|(t, mode, _)| (t, *mode)).collect();
        run_into(op, inputs, &outs)?;
        for (tensor, _, to) in tensors {
            match to {
                To::Direct(i) => self.landed(i)?,
                To::Given(i) => self.give(i, tensor)?,
                To::Nowhere => {}
            }
        }
        Ok(())
    }
}
