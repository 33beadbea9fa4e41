//! Running an op: devices, guards, modes, recording, and delivering gradients.
//!
//! The public functions are generic over the op; what they do is compiled once, over [`AnyOp`].

#![forbid(unsafe_code)]

use std::panic::Location;

use super::{Op, Plan};
use crate::cpu::pool::Block;
use crate::device::Stream;
use crate::device::stream::Memory;
use crate::tensor::node::{Backward, Function, numerics_checked, record};
use crate::tensor::{BackwardCx, Meta, Mode, Out, Saves, Tensor, View, accumulate, copy_into};
use crate::{Device, Error, Result, Shape};

/// An [`Op`] without its type.
trait AnyOp: Send + Sync {
    fn name(&self) -> &'static str;
    fn accumulates(&self) -> bool;
    fn updates(&self) -> bool;
    fn skips(&self) -> bool;
    fn statistics(&self) -> usize;
    fn saves(&self, needs: &[bool]) -> Saves;
    fn infer(&self, inputs: &[Meta]) -> Result<Plan>;
    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()>;
    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()>;
    /// The op for a node.
    fn backward(&self) -> Box<dyn Backward>;
}

impl<O: Op> AnyOp for O {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn accumulates(&self) -> bool {
        O::ACCUMULATES
    }

    fn updates(&self) -> bool {
        O::UPDATES
    }

    fn skips(&self) -> bool {
        O::SKIPS
    }

    fn statistics(&self) -> usize {
        O::STATISTICS
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        Op::saves(self, needs)
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        if !O::INPUTS.contains(&inputs.len()) {
            let (least, most) = (O::INPUTS.start(), O::INPUTS.end());
            let message = format!("{} inputs given, {least} to {most} needed", inputs.len());
            return Err(Error::shape(O::NAME, message));
        }
        let plan = Op::infer(self, inputs).map_err(|e| e.with_op(O::NAME))?;
        // Sizes that overflow, as of broadcasting two huge expanded tensors, are found here for all ops.
        plan.outputs
            .iter()
            .try_for_each(|m| Shape::new(&m.shape).map(drop))
            .map_err(|e| e.with_op(O::NAME))?;
        Ok(plan)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [Out<'_>], scratch: &mut [u8]) -> Result<()> {
        Op::cpu(self, inputs, outputs, scratch).map_err(|e| e.with_op(O::NAME))
    }

    fn gpu(&self, stream: &Stream, inputs: &[View<'_>], outputs: &mut [Out<'_>]) -> Result<()> {
        Op::gpu(self, stream, inputs, outputs).map_err(|e| e.with_op(O::NAME))
    }

    fn backward(&self) -> Box<dyn Backward> {
        Box::new(Recorded(*self))
    }
}

/// The op on a node.
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

/// Runs the body of `op` with guards on the inputs; `outs` are over memory that the caller holds.
#[track_caller]
fn body(
    op: &dyn AnyOp,
    device: Device,
    inputs: &[&Tensor],
    outs: &mut [Out<'_>],
    scratch: usize,
) -> Result<()> {
    let guards =
        inputs.iter().map(|t| t.read()).collect::<Result<Vec<_>>>().map_err(|e| e.with_op(op.name()))?;
    let views: Vec<View<'_>> = inputs.iter().zip(&guards).map(|(t, g)| View::new(t, g)).collect();
    match device {
        Device::Cpu => op.cpu(&views, outs, Block::new(scratch)?.as_mut()),
        device => {
            let stream = device.gpu()?;
            stream.enter(op.name(), inputs.iter().map(|t| t.shape()), Location::caller());
            op.gpu(stream, &views, outs)
        }
    }
}

/// Memory for an output, before it is a tensor: nobody else can borrow it yet.
enum Fresh {
    Host(Block),
    Device(Memory<'static>),
}

impl Fresh {
    fn new(meta: &Meta, what: &'static str) -> Result<Fresh> {
        match meta.device {
            Device::Cpu => Block::new(meta.bytes()).map(Fresh::Host),
            device => device.gpu()?.take(meta.bytes(), what).map(Fresh::Device),
        }
    }

    fn out(&mut self, meta: &Meta, mode: Mode) -> Out<'_> {
        match self {
            Fresh::Host(block) => Out::new(block.as_mut(), meta.shape, meta.dtype, mode),
            Fresh::Device(memory) => Out::on_device(memory.address(), meta.shape, meta.dtype, mode),
        }
    }

    fn tensor(self, meta: Meta) -> Result<Tensor> {
        match self {
            Fresh::Host(block) => Tensor::from_block(block, meta),
            Fresh::Device(memory) => Ok(Tensor::from_memory(memory, meta)),
        }
    }
}

fn infer(op: &dyn AnyOp, inputs: &[&Tensor]) -> Result<(Device, Plan)> {
    let common = common_device(op.name(), inputs)?;
    let metas: Vec<Meta> = inputs.iter().map(|t| t.meta()).collect();
    let plan = op.infer(&metas)?;
    // An op without inputs says where it works by its outputs.
    let device = plan.outputs.first().filter(|_| inputs.is_empty()).map_or(common, |m| m.device);
    Ok((device, plan))
}

/// Runs `op` into fresh tensors and records it.
#[track_caller]
pub fn run<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    run_any(&op, inputs)
}

#[track_caller]
fn run_any(op: &dyn AnyOp, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let (device, plan) = infer(op, inputs)?;
    let mut memory = plan.outputs.iter().map(|m| Fresh::new(m, op.name())).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Out<'_>> =
        memory.iter_mut().zip(&plan.outputs).map(|(f, m)| f.out(m, Mode::Write)).collect();
    body(op, device, inputs, &mut outs, plan.scratch)?;
    let outputs = memory.into_iter().zip(&plan.outputs).map(|(f, m)| f.tensor(*m));
    let outputs = outputs.collect::<Result<Vec<Tensor>>>()?;
    if numerics_checked() {
        check_finite(op.name(), &outputs)?;
    }
    let function = &|| Function::Op(op.backward());
    let mut outputs = record(op.name(), inputs, outputs, &|needs| op.saves(needs), function);
    outputs.iter_mut().rev().take(op.statistics()).for_each(|t| *t = t.detach());
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
    run_into_any(&op, inputs, outputs)
}

#[track_caller]
fn run_into_any(op: &dyn AnyOp, inputs: &[&Tensor], outputs: &[(&Tensor, Mode)]) -> Result<()> {
    if crate::tensor::grad_enabled()
        && inputs.iter().chain(outputs.iter().map(|o| &o.0)).any(|t| t.requires_grad())
    {
        let error =
            Error::unsupported(op.name(), "writing into existing memory is not recorded for gradients");
        return Err(error.with_help("use the form that returns a tensor, or wrap the call in no_grad"));
    }
    let (device, plan) = infer(op, inputs)?;
    if outputs.len() != plan.outputs.len() {
        return Err(Error::shape(
            op.name(),
            format!("{} outputs given, {} needed", outputs.len(), plan.outputs.len()),
        ));
    }
    for ((out, mode), want) in outputs.iter().zip(&plan.outputs) {
        if *mode != Mode::Skip && (out.meta() != *want || !out.is_contiguous()) {
            let how = if out.is_contiguous() { "" } else { "non-contiguous " };
            return Err(Error::shape(
                op.name(),
                format!("output is {how}{} but must be contiguous {want}", out.meta()),
            ));
        }
    }
    if !op.updates() && outputs.iter().any(|o| o.1 == Mode::Update) {
        let message = "this op makes its outputs anew and cannot update them in place";
        return Err(Error::unsupported(op.name(), message).with_help("use Mode::Write or Mode::Accumulate"));
    }
    if !op.accumulates() && outputs.iter().any(|o| o.1 == Mode::Accumulate) {
        let temporaries =
            plan.outputs.iter().map(|m| Tensor::empty(*m, op.name())).collect::<Result<Vec<_>>>()?;
        let write =
            |(t, o): (_, &(&Tensor, Mode))| (t, if o.1 == Mode::Accumulate { Mode::Write } else { o.1 });
        let targets: Vec<(&Tensor, Mode)> = temporaries.iter().zip(outputs).map(write).collect();
        run_into_any(op, inputs, &targets)?;
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
        .map(|(t, mode)| if *mode == Mode::Skip { Ok(None) } else { t.write(op.name()).map(Some) })
        .collect::<Result<Vec<_>>>()?;
    // Memory for outputs that nobody wants but the body writes all the same.
    let unwanted = |(o, want): (&(&Tensor, Mode), &Meta)| {
        let bytes = o.1 == Mode::Skip && !op.skips();
        bytes.then(|| Fresh::new(want, op.name())).transpose()
    };
    let mut unwanted = outputs.iter().zip(&plan.outputs).map(unwanted).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Out<'_>> = Vec::with_capacity(outputs.len());
    let memory = guards.iter_mut().zip(&mut unwanted);
    for (((guard, spare), (tensor, mode)), want) in memory.zip(outputs).zip(&plan.outputs) {
        outs.push(match guard {
            Some(guard) => Out::of(tensor, guard, *mode),
            None => match spare {
                Some(spare) => spare.out(want, Mode::Write),
                None if device.is_cpu() => Out::new(&mut [], want.shape, want.dtype, Mode::Skip),
                None => Out::on_device(0, want.shape, want.dtype, Mode::Skip),
            },
        });
    }
    body(op, device, inputs, &mut outs, plan.scratch)?;
    drop(outs);
    drop(guards);
    if numerics_checked() {
        let written = outputs.iter().filter(|o| o.1 != Mode::Skip);
        check_finite(op.name(), &written.map(|o| o.0.clone()).collect::<Vec<_>>())?;
    }
    Ok(())
}

impl BackwardCx<'_> {
    /// Runs `op` and delivers its outputs as the gradients of this node's inputs: output `k` goes to input `targets[k]`.
    /// It is written, or added, right where that gradient belongs; an output whose target wants none is skipped
    /// ([`Mode::Skip`]), and if none does, nothing runs.
    pub fn run<O: Op>(&mut self, op: O, inputs: &[&Tensor], targets: &[usize]) -> Result<()> {
        self.run_any(&op, inputs, targets, None)
    }

    /// As [`BackwardCx::run`], but output 0 is the gradient of input `also` too: the two share one tensor.
    pub(crate) fn run_shared<O: Op>(
        &mut self,
        op: O,
        inputs: &[&Tensor],
        targets: &[usize],
        also: usize,
    ) -> Result<()> {
        match (self.needs(targets[0]), self.needs(also)) {
            (_, false) => self.run_any(&op, inputs, targets, None),
            (true, true) => self.run_any(&op, inputs, targets, Some(also)),
            (false, true) => {
                let mut targets = targets.to_vec();
                targets[0] = also;
                self.run_any(&op, inputs, &targets, None)
            }
        }
    }

    fn run_any(
        &mut self,
        op: &dyn AnyOp,
        inputs: &[&Tensor],
        targets: &[usize],
        also: Option<usize>,
    ) -> Result<()> {
        let wanted: Vec<bool> = targets.iter().map(|&i| self.needs(i)).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        let (_, plan) = infer(op, inputs)?;
        for (&i, want) in targets.iter().zip(&plan.outputs) {
            if self.needs(i) && self.input_meta(i) != *want {
                let message = format!("{} makes {want} as the gradient of {}", op.name(), self.input_meta(i));
                return Err(Error::internal(message).with_op(self.node.name));
            }
        }
        // A gradient goes through a temporary where its memory is already a target here, or where two inputs share it.
        enum To {
            Direct(usize),
            Given(usize),
            Nowhere,
        }
        let mut tensors: Vec<(Tensor, Mode, To)> = Vec::with_capacity(targets.len());
        for (k, (&i, want)) in targets.iter().zip(&plan.outputs).enumerate() {
            if !wanted[k] {
                let nothing = Tensor::empty(want.with_shape(Shape::from_dims(&[0])), op.name())?;
                tensors.push((nothing, Mode::Skip, To::Nowhere));
            } else if (k == 0 && also.is_some()) || (0..k).any(|e| wanted[e] && self.same_edge(targets[e], i))
            {
                tensors.push((Tensor::empty(*want, op.name())?, Mode::Write, To::Given(i)));
            } else {
                let (memory, add) = self.destination(i)?;
                tensors.push((memory, if add { Mode::Accumulate } else { Mode::Write }, To::Direct(i)));
            }
        }
        let outs: Vec<(&Tensor, Mode)> = tensors.iter().map(|(t, mode, _)| (t, *mode)).collect();
        run_into_any(op, inputs, &outs)?;
        for (k, (tensor, _, to)) in tensors.into_iter().enumerate() {
            match to {
                To::Direct(i) => self.landed(i)?,
                To::Given(i) => {
                    if let Some(also) = also.filter(|_| k == 0) {
                        self.give(also, tensor.clone())?;
                    }
                    self.give(i, tensor)?;
                }
                To::Nowhere => {}
            }
        }
        Ok(())
    }
}
