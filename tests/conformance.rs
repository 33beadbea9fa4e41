//! Every op against the float64 reference: all cases, all element types, seven layouts; special values; adding into
//! existing memory; bytes around an output; thread counts; large inputs; refused inputs.
//!
//! The reference (src/selftest/reference) is written from the definitions and knows nothing of the op bodies. An op that it
//! lacks fails here by name.

mod harness;

use harness::layouts::{self, Kind};
use harness::{AnyCase, AnyOp, Report, Rng, Subject, Value, bits, guarded, inputs_of, tensor};
use warpsmith::selftest::checks::{accumulates, keep_last, lay_out, run_and_compare, sentinels, skips};
use warpsmith::selftest::{reference, specials};
use warpsmith::{DType, ErrorKind, Tensor, cpu};

/// Runs a check for every op and prints what it found; less than `floor` comparisons are a failure too.
fn for_every_op(title: &'static str, check: fn(&Subject, &mut Report), floor: usize) {
    let mut report = Report::new(title);
    for subject in harness::subjects() {
        if report.op(subject.name) {
            check(&subject, &mut report);
        }
    }
    report.finish(floor);
}

fn values_of_an_op(subject: &Subject, report: &mut Report) {
    for (number, case) in subject.cases.iter().enumerate() {
        for &dtype in subject.dtypes {
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            let size: usize = inputs.iter().map(Value::numel).sum();
            let mut rng = Rng::of(&[&subject.name, &number, &"layouts"]);
            let mut plans: Vec<(String, Vec<Kind>)> =
                layouts::ALL.iter().map(|k| (format!("{k:?}"), vec![*k; inputs.len()])).collect();
            if inputs.len() > 1 {
                // Each input in a layout of its own.
                for i in 0..3 {
                    let kinds = inputs.iter().map(|_| layouts::ALL[rng.below(7)]).collect();
                    plans.push((format!("Mixed{i}"), kinds));
                }
            }
            if size > 1500 {
                // The larger cases: contiguous and three others by chance.
                let mut rest = plans.split_off(1);
                rng.shuffle(&mut rest);
                plans.extend(rest.into_iter().take(3));
            }
            // Most layouts hold the same values; those that repeat them have a reference of their own.
            let mut plain = None;
            for (name, kinds) in plans {
                let id = format!("{}:{number}:{dtype}:{name}", subject.name);
                if !report.wants(&id) {
                    continue;
                }
                let mut rng = Rng::of(&[&id]);
                let Some((tensors, values)) =
                    lay_out(&inputs, &keep_last(case), &kinds, &mut rng, harness::CPU)
                else {
                    continue;
                };
                let repeated;
                let want = if kinds.contains(&Kind::Expanded) {
                    repeated = reference::expected(case.op.as_any(), &values);
                    &repeated
                } else {
                    plain.get_or_insert_with(|| reference::expected(case.op.as_any(), &inputs))
                };
                let outcome = match want {
                    Some(want) => run_and_compare(&*case.op, &tensors, want, subject.tolerance),
                    None => Err("has no reference in src/selftest/reference".to_owned()),
                };
                report.check(&id, outcome.map_err(|why| format!("{:?}: {why}", case.op)));
            }
        }
    }
}

#[test]
fn the_arithmetic_of_the_reference_is_right() {
    reference::dd::self_check();
}

#[test]
fn values_agree_with_the_reference_in_every_layout() {
    for_every_op("values", values_of_an_op, 80_000);
}

fn specials_of_an_op(subject: &Subject, report: &mut Report) {
    for (number, case) in subject.cases.iter().enumerate() {
        for &dtype in subject.dtypes {
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            for round in 0..specials::ROUNDS {
                let id = format!("{}:{number}:{dtype}:Specials{round}", subject.name);
                if !report.wants(&id) {
                    continue;
                }
                let Some(inputs) = specials::among(case, &inputs, round, &mut Rng::of(&[&id])) else { break };
                let tensors: Vec<Tensor> = inputs.iter().map(Value::tensor).collect();
                let outcome = match reference::expected(case.op.as_any(), &inputs) {
                    Some(want) => run_and_compare(&*case.op, &tensors, &want, subject.tolerance),
                    None => Err("has no reference in src/selftest/reference".to_owned()),
                };
                report.check(&id, outcome.map_err(|why| format!("{:?}: {why}", case.op)));
            }
        }
    }
}

#[test]
fn special_values_go_through() {
    for_every_op("specials", specials_of_an_op, 22_500);
}

/// Writes into the middle of a larger buffer: the same bits as `run`, nothing around them touched; adds to what is there;
/// leaves out what nobody wants.
fn memory_of_an_op(subject: &Subject, report: &mut Report) {
    for (number, case) in subject.cases.iter().enumerate() {
        for &dtype in subject.dtypes {
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            let tensors: Vec<Tensor> = inputs.iter().map(Value::tensor).collect();
            let args: Vec<&Tensor> = tensors.iter().collect();
            let id = |what: &str| format!("{}:{number}:{dtype}:{what}", subject.name);
            let Ok(fresh) = guarded(|| case.op.run(&args)) else { continue };
            if report.wants(&id("Sentinels")) {
                let outcome = sentinels(&*case.op, &args, &fresh, number % 3 + 1);
                report.check(&id("Sentinels"), outcome.map_err(|why| format!("{:?}: {why}", case.op)));
            }
            if report.wants(&id("Accumulate"))
                && fresh.iter().any(|t| t.dtype().is_float() || subject.accumulates)
            {
                let outcome = accumulates(subject, &*case.op, &inputs, &args, &fresh, subject.tolerance);
                report.check(&id("Accumulate"), outcome.map_err(|why| format!("{:?}: {why}", case.op)));
            }
            for only in 0..if fresh.len() > 1 { fresh.len() } else { 0 } {
                if report.wants(&id("Skip")) {
                    report.check(&id("Skip"), skips(&*case.op, &args, &fresh, only));
                }
            }
        }
    }
}

#[test]
fn outputs_are_written_added_and_skipped_and_nothing_else_is_touched() {
    for_every_op("memory", memory_of_an_op, 30_000);
}

fn threads_of_an_op(subject: &Subject, report: &mut Report) {
    for (number, case) in subject.cases.iter().enumerate() {
        for &dtype in subject.dtypes {
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            for kind in [Kind::Contiguous, Kind::Transposed] {
                let id = format!("{}:{number}:{dtype}:{kind:?}Threads", subject.name);
                let mut rng = Rng::of(&[&id]);
                let kinds = vec![kind; inputs.len()];
                if !report.wants(&id) {
                    continue;
                }
                if let Some((tensors, _)) = lay_out(&inputs, &keep_last(case), &kinds, &mut rng, harness::CPU)
                {
                    report.check(&id, same_bits_on_all_threads(&*case.op, &tensors));
                }
            }
        }
    }
}

fn same_bits_on_all_threads(op: &dyn AnyOp, tensors: &[Tensor]) -> Result<(), String> {
    let on = |n: usize| -> Result<Vec<Vec<u8>>, String> {
        let args: Vec<&Tensor> = tensors.iter().collect();
        let outs = cpu::par::with_threads(n, || guarded(|| op.run(&args))).map_err(|e| e.to_string())??;
        Ok(outs.iter().map(bits).collect())
    };
    let one = on(1)?;
    for n in [2, 3, 4, 8, 1] {
        if on(n)? != one {
            return Err(format!("{op:?}: other bits on {n} threads than on one"));
        }
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for_every_op("threads", threads_of_an_op, 19_500);
}

/// Cases far above the sizes at which bodies split their work, which `cases()` keeps below for the gradient check.
fn large_of_an_op(subject: &Subject, report: &mut Report) {
    let (dtypes, tolerance) = (subject.dtypes, subject.tolerance);
    for (number, case) in subject.large.iter().enumerate() {
        for &dtype in dtypes.iter().filter(|d| matches!(d, DType::F32 | DType::BF16) || !d.is_float()).take(2)
        {
            let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
            let mut want = None;
            for kind in [Kind::Contiguous, Kind::Transposed, Kind::Misaligned] {
                let id = format!("{}:{number}:{dtype}:{kind:?}Large", subject.name);
                let mut rng = Rng::of(&[&id]);
                let kinds = vec![kind; inputs.len()];
                if !report.wants(&id) {
                    continue;
                }
                let Some((tensors, _)) = lay_out(&inputs, &keep_last(case), &kinds, &mut rng, harness::CPU)
                else {
                    continue;
                };
                // None of these layouts changes the values.
                let Some(want) =
                    want.get_or_insert_with(|| reference::expected(case.op.as_any(), &inputs)).as_ref()
                else {
                    report.check(&id, Err("has no reference in src/selftest/reference".to_owned()));
                    continue;
                };
                let outcome = run_and_compare(&*case.op, &tensors, want, tolerance);
                report.check(&id, outcome.map_err(|why| format!("{:?}: {why}", case.op)));
                report.check(&id, same_bits_on_all_threads(&*case.op, &tensors));
            }
        }
    }
}

#[test]
fn large_inputs_agree_with_the_reference_and_over_threads() {
    for_every_op("large", large_of_an_op, 600);
}

/// Nothing is promoted: an input of another type is refused, by name, without a panic.
fn refusals_of_an_op(subject: &Subject, report: &mut Report) {
    let following = |c: &AnyCase| -> Vec<usize> {
        (0..c.inputs.len()).filter(|&i| c.inputs[i].dtype.is_none()).collect()
    };
    let full = |c: &AnyCase| c.inputs.iter().all(|a| a.shape.iter().product::<usize>() > 0);
    let found = subject.cases.iter().enumerate().find(|(_, c)| following(c).len() > 1 && full(c));
    let Some((number, case)) = found else { return };
    let Some(&dtype) = subject.dtypes.iter().find(|d| d.is_float()) else { return };
    let inputs = inputs_of(subject.name, &case.inputs, number, dtype);
    for i in following(case) {
        for other in [DType::F64, DType::BF16, DType::I64].into_iter().filter(|d| *d != dtype) {
            let id = format!("{}:{number}:{dtype}:Refuses{i}{other}", subject.name);
            let mut tensors: Vec<Tensor> = inputs.iter().map(Value::tensor).collect();
            tensors[i] = tensor(&inputs[i].data, &inputs[i].shape, other, harness::CPU);
            let args: Vec<&Tensor> = tensors.iter().collect();
            let outcome = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.op.run(&args)))
            {
                Err(_) => Err("panicked".to_owned()),
                Ok(Ok(_)) => Err(format!("accepts input {i} of {other} beside {dtype}")),
                // What a backward is given is the engine's doing: an error of any kind will do.
                Ok(Err(_)) if subject.name.ends_with("_backward") => Ok(()),
                Ok(Err(e)) if e.kind() != ErrorKind::DType => Err(format!("is no dtype error: {e}")),
                Ok(Err(e)) => {
                    let text = e.to_string();
                    // For an integer it may say that it wants a float, whatever the other inputs are.
                    let beside = if other.is_float() { dtype.name() } else { "" };
                    let said = [subject.name, beside, other.name()].iter().all(|w| text.contains(w));
                    if said { Ok(()) } else { Err(format!("does not name the op and both types: {text}")) }
                }
            };
            report.check(&id, outcome);
        }
    }
}

#[test]
fn mixed_element_types_are_refused_by_name() {
    for_every_op("refusals", refusals_of_an_op, 450);
}
