//! One op under test: does it give the reference's values, write only its memory, add and skip as told?

#![forbid(unsafe_code)]

use super::layouts::{Kind, build, framed};
use super::{AnyCase, AnyOp, Rng, Subject, Value, bits, compare, guarded, reference, tensor};
use crate::ops::{Tolerance, Values};
use crate::tensor::Mode;
use crate::{DType, Device, Tensor};
use reference::{Expected, round};

/// Runs the op and compares every output.
pub fn run_and_compare(
    op: &dyn AnyOp,
    tensors: &[Tensor],
    want: &[Expected],
    tolerance: Tolerance,
) -> Result<(), String> {
    let got = guarded(|| op.run(&tensors.iter().collect::<Vec<_>>()))?;
    compare_outputs(&got, want, tolerance)
}

/// Compares every output.
pub fn compare_outputs(got: &[Tensor], want: &[Expected], tolerance: Tolerance) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} outputs, expected {}", got.len(), want.len()));
    }
    for (k, (got, want)) in got.iter().zip(want).enumerate() {
        compare::output(got, want, tolerance).map_err(|why| format!("output {k} {why}"))?;
    }
    Ok(())
}

/// The case's inputs with input `i` in layout `kinds[i]`; `None` if all of them fall back to contiguous though other
/// layouts were asked for.
pub fn lay_out(
    case_inputs: &[Value],
    keep_last: &[bool],
    kinds: &[Kind],
    rng: &mut Rng,
    device: Device,
) -> Option<(Vec<Tensor>, Vec<Value>)> {
    let mut fresh = kinds.iter().all(|k| *k == Kind::Contiguous);
    let mut built = Vec::new();
    for ((value, &kind), &keep_last) in case_inputs.iter().zip(kinds).zip(keep_last) {
        built.push(match build(value, kind, keep_last, rng, device) {
            Some(laid) => {
                fresh |= kind != Kind::Contiguous;
                laid
            }
            None => (value.tensor_on(device), value.clone()),
        });
    }
    fresh.then(|| built.into_iter().unzip())
}

pub fn keep_last(case: &AnyCase) -> Vec<bool> {
    // Probabilities sum to 1, and given values are what they are, only as long as they are not repeated.
    let kept = |values: &Values| matches!(values, Values::Distribution | Values::Exactly(_));
    case.inputs.iter().map(|a| kept(&a.values)).collect()
}

/// A number that no case produces, in every type.
const SENTINEL: f64 = 119.0;

pub fn sentinels(op: &dyn AnyOp, args: &[&Tensor], fresh: &[Tensor], pad: usize) -> Result<(), String> {
    let framed: Vec<(Tensor, Tensor)> = fresh
        .iter()
        .map(|t| framed(t.dims(), t.dtype(), pad, &vec![SENTINEL; t.numel()], SENTINEL, t.device()))
        .collect();
    let outs: Vec<(&Tensor, Mode)> = framed.iter().map(|(_, out)| (out, Mode::Write)).collect();
    guarded(|| op.run_into(args, &outs))?;
    for (k, ((buffer, out), fresh)) in framed.iter().zip(fresh).enumerate() {
        if bits(out) != bits(fresh) {
            return Err(format!("output {k}: run_into gives other bits than run"));
        }
        let all = buffer.to_f64_vec().map_err(|e| e.to_string())?;
        let n = all.len();
        if all[..pad].iter().chain(&all[n - pad..]).any(|&v| v != SENTINEL) {
            return Err(format!("output {k}: wrote beyond its memory"));
        }
    }
    Ok(())
}

pub fn accumulates(
    subject: &Subject,
    op: &dyn AnyOp,
    inputs: &[Value],
    args: &[&Tensor],
    fresh: &[Tensor],
    tolerance: Tolerance,
) -> Result<(), String> {
    let Some(mut want) = reference::expected(op.as_any(), inputs) else {
        return Err("has no reference in src/selftest/reference".to_owned());
    };
    let old = |t: &Tensor| -> Vec<f64> { (0..t.numel()).map(|i| (i % 7) as f64 + 1.0).collect() };
    let framed: Vec<(Tensor, Tensor)> =
        fresh.iter().map(|t| framed(t.dims(), t.dtype(), 1, &old(t), SENTINEL, t.device())).collect();
    // Only floating-point outputs are gradients; others are added to only where the body says so.
    let mode = |t: &Tensor| {
        if t.dtype().is_float() || subject.accumulates { Mode::Accumulate } else { Mode::Skip }
    };
    let outs: Vec<(&Tensor, Mode)> = framed.iter().map(|(_, out)| (out, mode(out))).collect();
    guarded(|| op.run_into(args, &outs))?;
    for (k, ((buffer, out), want)) in framed.iter().zip(&mut want).enumerate() {
        if mode(out) == Mode::Skip {
            continue;
        }
        let got = out.to_f64_vec().map_err(|e| e.to_string())?;
        for (i, (got, old)) in got.into_iter().zip(old(out)).enumerate() {
            let (new, dtype) = (want.values[i], want.dtype);
            // Integers wrap.
            let sum = match dtype {
                DType::I32 => (round::to(dtype, new) as i32).wrapping_add(old as i32) as f64,
                DType::I64 => (round::to(dtype, new) as i64).wrapping_add(old as i64) as f64,
                _ => round::to(dtype, new) + old,
            };
            let bound = if dtype.is_float() {
                // The op's own bound, its rounding to the type, and the rounding of the sum.
                compare::bound(tolerance, want.exact_as, new, want.scale[i])
                    + 0.5 * round::ulp(dtype, new)
                    + round::ulp(dtype, sum)
            } else {
                0.0
            };
            if !compare::value_ok(dtype, got, round::to(dtype, sum), Some(bound)) {
                return Err(format!("output {k}[{i}]: {old} + {new:e} gave {got:e}, allowed {bound:e}"));
            }
        }
        let all = buffer.to_f64_vec().map_err(|e| e.to_string())?;
        if all[0] != SENTINEL || all[all.len() - 1] != SENTINEL {
            return Err(format!("output {k}: wrote beyond its memory"));
        }
    }
    Ok(())
}

/// Asks for output `only` alone.
pub fn skips(op: &dyn AnyOp, args: &[&Tensor], fresh: &[Tensor], only: usize) -> Result<(), String> {
    let device = fresh[only].device();
    let empty = tensor(&[], &[0], DType::F32, device);
    let out = tensor(&vec![SENTINEL; fresh[only].numel()], fresh[only].dims(), fresh[only].dtype(), device);
    let outs: Vec<(&Tensor, Mode)> = (0..fresh.len())
        .map(|k| if k == only { (&out, Mode::Write) } else { (&empty, Mode::Skip) })
        .collect();
    guarded(|| op.run_into(args, &outs))?;
    if bits(&out) == bits(&fresh[only]) {
        Ok(())
    } else {
        Err(format!("output {only} differs when asked for alone"))
    }
}
