//! `selftest`: every op's cases on one device, a comparison each in some layout, with lines that replay what failed.

#![forbid(unsafe_code)]

use super::checks::{accumulates, compare_outputs, keep_last, lay_out, sentinels};
use super::layouts::{self, Kind};
use super::reference::{self, Expected};
use super::specials;
use super::{AnyCase, Rng, Subject, Value, guarded, inputs_of, subjects};
use crate::{DType, Device, Error, ErrorKind, Result, Tensor};

/// What to test.
pub struct Options<'a> {
    /// Opens the device that the next case runs on: asked again after one that a fault made unusable.
    pub device: &'a mut dyn FnMut() -> Result<Device>,
    /// Only ops whose name contains this.
    pub filter: Option<String>,
    /// Only this case: `op:case:dtype:layout`, or the first parts of it.
    pub case: Option<String>,
    /// Decides which layouts a case is tried in.
    pub seed: u64,
    /// Called with the name of each op and its place among all.
    pub progress: &'a mut dyn FnMut(&'static str, usize, usize),
}

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// `op:case:dtype:layout`, which [`Options::case`] takes.
    pub case: String,
    /// What is wrong.
    pub why: String,
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Comparisons that were made.
    pub cases: usize,
    /// Those that were right.
    pub passed: usize,
    /// Cases that say nothing new in the layout that was drawn for them.
    pub skipped: usize,
    /// Cases of an element type or form that the device's kernels do not declare.
    pub unsupported: usize,
    /// What was wrong.
    pub failures: Vec<Failure>,
    /// Ops of which at least one case ran.
    pub ops: usize,
}

/// Layouts of a case besides the contiguous one.
const LAYOUTS: usize = 2;

/// Runs the cases. Errors only where no device can be opened.
pub fn run(mut options: Options<'_>) -> Result<Report> {
    let mut report = Report::default();
    let all = subjects();
    let total = all.len();
    let mut device = open(&mut options)?;
    for (number, subject) in all.iter().enumerate() {
        let named = options.filter.as_ref().is_none_or(|f| subject.name.contains(f.as_str()));
        if !named || !wants(&options, subject.name) {
            continue;
        }
        (options.progress)(subject.name, number, total);
        let before = report.cases;
        for (number, case) in subject.cases.iter().enumerate() {
            for &dtype in subject.dtypes {
                one_case(&mut options, &mut report, &mut device, (subject, number, case, dtype))?;
            }
        }
        let ran = report.cases > before;
        report.ops += usize::from(ran);
        // Every op has kernels: one that ran nothing at all did not load, or cannot be launched.
        if !ran && options.case.is_none() {
            fail(&mut report, subject.name.to_owned(), "no case ran: the device refused all of them".into());
        }
    }
    if report.cases + report.unsupported == 0 {
        return Err(Error::argument("no case matches").with_help("names are those of `selftest --json`"));
    }
    Ok(report)
}

/// Whether a case, or the first parts of its name, is asked for.
fn wants(options: &Options<'_>, id: &str) -> bool {
    options.case.as_ref().is_none_or(|case| id.split(':').zip(case.split(':')).all(|(a, b)| a == b))
}

fn one_case(
    options: &mut Options<'_>,
    report: &mut Report,
    device: &mut Device,
    (subject, number, case, dtype): (&Subject, usize, &AnyCase, DType),
) -> Result<()> {
    let name = subject.name;
    let prefix = format!("{name}:{number}:{dtype}");
    if !wants(options, &prefix) {
        return Ok(());
    }
    let inputs = inputs_of(name, &case.inputs, number, dtype);
    // With a case given, every layout may be asked for by name.
    let mut kinds: Vec<Kind> = layouts::ALL[1..].to_vec();
    if options.case.is_none() {
        Rng::of(&[&prefix, &options.seed]).shuffle(&mut kinds);
        kinds.truncate(LAYOUTS);
    }
    kinds.insert(0, Kind::Contiguous);
    let mut plain = None;
    for kind in kinds {
        let id = format!("{prefix}:{kind:?}");
        if !wants(options, &id) {
            continue;
        }
        renew(options, device)?;
        let mut rng = Rng::of(&[&id]);
        let kinds = vec![kind; inputs.len()];
        let laid = match guarded(|| Ok(lay_out(&inputs, &keep_last(case), &kinds, &mut rng, *device))) {
            Ok(Some(laid)) => laid,
            Ok(None) => {
                report.skipped += 1;
                continue;
            }
            Err(why) => {
                fail(report, id, why);
                continue;
            }
        };
        let (tensors, values) = laid;
        let want = match kind {
            Kind::Expanded => reference::expected(case.op.as_any(), &values),
            _ => plain.get_or_insert_with(|| reference::expected(case.op.as_any(), &inputs)).clone(),
        };
        let Some(want) = want else {
            fail(report, id, "has no reference".into());
            continue;
        };
        compared(report, *device, id, (subject, case, dtype), tensors, &want);
    }
    special_values(options, report, device, (subject, number, case, dtype))?;
    memory(options, report, device, (subject, case, &inputs, &prefix))
}

/// Runs a case and judges what comes out.
fn compared(
    report: &mut Report,
    device: Device,
    id: String,
    (subject, case, dtype): (&Subject, &AnyCase, DType),
    tensors: Vec<Tensor>,
    want: &[Expected],
) {
    // An error is looked at for its kind before it becomes text.
    let got = guarded(|| Ok(case.op.run(&tensors.iter().collect::<Vec<_>>())));
    let outcome = match got {
        // A GPU has kernels for these three float types; what it refuses of them does not load or cannot be launched.
        Ok(Err(e))
            if e.kind() == ErrorKind::Unsupported
                && !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) =>
        {
            report.unsupported += 1;
            return;
        }
        Ok(Err(e)) => Err(format!("error: {e}")),
        Ok(Ok(got)) => compare_outputs(&got, want, subject.tolerance),
        Err(why) => Err(why),
    };
    drop(tensors);
    judge(report, id, settled(outcome, device));
}

/// The case with many special values among its own, and with a few.
fn special_values(
    options: &mut Options<'_>,
    report: &mut Report,
    device: &mut Device,
    (subject, number, case, dtype): (&Subject, usize, &AnyCase, DType),
) -> Result<()> {
    let name = subject.name;
    let prefix = format!("{name}:{number}:{dtype}");
    let plain = inputs_of(name, &case.inputs, number, dtype);
    let mut rng = Rng::of(&[&prefix, &options.seed, &"specials"]);
    let drawn = [rng.below(2), 2 + rng.below(2)];
    for round in 0..specials::ROUNDS {
        let id = format!("{prefix}:Specials{round}");
        // As with layouts, every one may be asked for by name.
        if !wants(options, &id) || options.case.is_none() && !drawn.contains(&round) {
            continue;
        }
        let Some(inputs) = specials::among(case, &plain, round, &mut Rng::of(&[&id])) else { break };
        renew(options, device)?;
        let Some(want) = reference::expected(case.op.as_any(), &inputs) else { break };
        let tensors = match guarded(|| Ok(inputs.iter().map(|v| v.tensor_on(*device)).collect())) {
            Ok(tensors) => tensors,
            Err(why) => {
                fail(report, id, why);
                continue;
            }
        };
        compared(report, *device, id, (subject, case, dtype), tensors, &want);
    }
    Ok(())
}

/// The case once more into memory that exists: written between sentinels, and added.
fn memory(
    options: &mut Options<'_>,
    report: &mut Report,
    device: &mut Device,
    (subject, case, inputs, prefix): (&Subject, &AnyCase, &[Value], &str),
) -> Result<()> {
    for what in ["Sentinels", "Accumulate"] {
        let id = format!("{prefix}:{what}");
        if !wants(options, &id) {
            continue;
        }
        renew(options, device)?;
        let fresh = guarded(|| {
            let tensors: Vec<Tensor> = inputs.iter().map(|v| v.tensor_on(*device)).collect();
            let fresh = case.op.run(&tensors.iter().collect::<Vec<_>>())?;
            Ok((tensors, fresh))
        });
        // What cannot run was counted or reported above.
        let Ok((tensors, fresh)) = fresh else { continue };
        let args: Vec<&Tensor> = tensors.iter().collect();
        let outcome = match what {
            "Sentinels" => sentinels(&*case.op, &args, &fresh, 3),
            _ if fresh.iter().any(|t| t.dtype().is_float() || subject.accumulates) => {
                accumulates(subject, &*case.op, inputs, &args, &fresh, subject.tolerance)
            }
            _ => continue,
        };
        drop((tensors, fresh));
        judge(report, id, settled(outcome, *device));
    }
    Ok(())
}

/// What a case found, or what the device says of it once its memory has been given back.
fn settled(outcome: std::result::Result<(), String>, device: Device) -> std::result::Result<(), String> {
    outcome.and_then(|()| device.synchronize().map_err(|e| e.to_string()))
}

/// Opens a device, with its memory poisoned and between red zones.
fn open(options: &mut Options<'_>) -> Result<Device> {
    let device = (options.device)()?;
    if let Some(stream) = device.stream() {
        stream.pool().set_debug(true);
    }
    Ok(device)
}

/// Another device if this one is no longer usable.
fn renew(options: &mut Options<'_>, device: &mut Device) -> Result<()> {
    if device.stream().is_some_and(|s| s.is_poisoned()) {
        *device = open(options)?;
    }
    Ok(())
}

fn judge(report: &mut Report, id: String, outcome: std::result::Result<(), String>) {
    match outcome {
        Ok(()) => {
            report.cases += 1;
            report.passed += 1;
        }
        Err(why) => fail(report, id, why),
    }
}

fn fail(report: &mut Report, case: String, why: String) {
    report.cases += 1;
    report.failures.push(Failure { case, why });
}
