//! `warpsmith selftest`: every op's cases on a device, against a reference in higher precision.

#![forbid(unsafe_code)]

use clap::Args;
use serde_json::json;

use super::output::{self, Log};
use crate::device::primitives;
use crate::device::trial::{self, Canary};
use crate::selftest::{self, Options, Report};
use crate::{Device, Error, ErrorKind, Result};

/// Run every op's test cases on a device and compare with a reference in higher precision.
///
/// For each failure a line is printed that replays it; the exit code is then 1.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith selftest
  warpsmith selftest --device cuda --json
  warpsmith selftest --device cuda --filter softmax
  warpsmith selftest --device cuda --case softmax:3:bf16:Strided

{}", super::EXIT_CODES))]
pub(super) struct SelftestArgs {
    /// auto, cpu or cuda[:N]
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only ops whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this case, or all that begin so
    #[arg(long, value_name = "OP:CASE:DTYPE:LAYOUT")]
    case: Option<String>,
    /// Decides the layouts that each case is tried in
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Simulator: one random schedule, or all of them
    #[cfg(feature = "sim")]
    #[arg(long, value_enum, default_value = "one")]
    schedules: Schedules,
    /// Simulator: without the race and address checks, about ten times faster
    #[cfg(feature = "sim")]
    #[arg(long)]
    unchecked: bool,
    /// Instead: run each primitive of the kernels by itself and compare with what is recorded
    #[arg(long, conflicts_with_all = ["filter", "case"])]
    primitives: bool,
    /// Instead: launch a kernel with a planted fault, for compute-sanitizer to find
    #[arg(long, value_enum, value_name = "FAULT", conflicts_with_all = ["filter", "case", "primitives"])]
    canary: Option<CanaryArg>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// No progress and no notes
    #[arg(long, short)]
    quiet: bool,
}

/// Under how many schedules the simulator runs each case.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Schedules {
    /// A random one
    One,
    /// Forward, reverse, random, and by priorities
    All,
}

/// A planted fault.
#[derive(Clone, Copy, clap::ValueEnum)]
enum CanaryArg {
    /// A store one element past the end
    Bounds,
    /// A store where there is no memory
    Fault,
    /// Shared memory read before the barrier
    Race,
}

/// How to name the device (the schedule included) in a line that replays a failure, and a way to open it.
type Opener = (String, Box<dyn FnMut() -> Result<Device>>);

#[cfg(feature = "sim")]
fn openers(args: &SelftestArgs) -> Result<Vec<Opener>> {
    if args.device.starts_with("sim:") {
        let name = args.device.clone();
        return Ok(vec![(name.clone(), Box::new(move || name.parse()))]);
    }
    if args.device != "sim" {
        return opener(args);
    }
    let count = if args.schedules == Schedules::All { 4 } else { 1 };
    let checked = if args.unchecked { "" } else { ",checked" };
    let open = |schedule: &str| -> Opener {
        let name = format!("sim:{schedule}{checked},seed={}", args.seed);
        (name.clone(), Box::new(move || name.parse()))
    };
    Ok(["random", "forward", "reverse", "pct"][..count].iter().map(|s| open(s)).collect())
}

#[cfg(not(feature = "sim"))]
fn openers(args: &SelftestArgs) -> Result<Vec<Opener>> {
    opener(args)
}

fn opener(args: &SelftestArgs) -> Result<Vec<Opener>> {
    let device = super::open_device(Some(&args.device), &Log { quiet: args.quiet })?;
    Ok(vec![(args.device.clone(), Box::new(move || Ok(device)))])
}

/// Runs the command.
pub(super) fn run(args: SelftestArgs) -> Result<()> {
    if args.primitives || args.canary.is_some() {
        return alone(&args);
    }
    let log = Log { quiet: args.quiet };
    let (mut total, mut ops) = (Report::default(), 0);
    let mut replays = Vec::new();
    for (device, mut open) in openers(&args)? {
        if device != args.device {
            log.note(&format!("device: {device}"));
        }
        let report = selftest::run(Options {
            device: &mut open,
            filter: args.filter.clone(),
            case: args.case.clone(),
            seed: args.seed,
            progress: &mut |name, number, total| {
                if number % 20 == 0 {
                    log.note(&format!("op {number} of {total}: {name}"));
                }
            },
        })?;
        ops = ops.max(report.ops);
        total.cases += report.cases;
        total.passed += report.passed;
        total.skipped += report.skipped;
        total.unsupported += report.unsupported;
        replays.extend(report.failures.iter().map(|f| replay(&device, args.seed, &f.case)));
        total.failures.extend(report.failures);
    }
    total.ops = ops;
    print(&args, &total, &replays)?;
    match total.failures.len() {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::Diverged, format!("{n} of {} cases failed", total.cases))),
    }
}

/// `--primitives` and `--canary`, which run kernels of their own.
fn alone(args: &SelftestArgs) -> Result<()> {
    let Some((_, mut open)) = openers(args)?.into_iter().next() else {
        return Err(Error::internal("no way to open the device"));
    };
    let device = open()?;
    if device.is_cpu() {
        return Err(Error::argument(
            "--primitives and --canary run kernels: name a GPU, as in --device cuda",
        ));
    }
    if let Some(which) = args.canary {
        let which = match which {
            CanaryArg::Bounds => Canary::Bounds,
            CanaryArg::Fault => Canary::Fault,
            CanaryArg::Race => Canary::Race,
        };
        trial::canary(device, which)?;
        let line = "the planted fault ran and the device noticed nothing";
        return match args.json {
            true => output::json_to_stdout(&json!({ "device": args.device, "canary": line })),
            false => output::to_stdout(|o| writeln!(o, "{line}")),
        };
    }
    let outcomes = primitives::run(device)?;
    let wrong: Vec<&str> = outcomes.iter().filter(|o| o.right == Some(false)).map(|o| o.name).collect();
    if args.json {
        let list: Vec<_> = outcomes
            .iter()
            .map(|o| {
                let words: String = o.words.iter().map(|w| format!("{w:08x}")).collect();
                let digest = format!("{:016x}", primitives::digest(&o.words));
                json!({ "name": o.name, "right": o.right, "digest": digest, "words": words })
            })
            .collect();
        output::json_to_stdout(&json!({ "device": args.device, "primitives": list, "failed": wrong.len() }))?;
    } else {
        output::to_stdout(|o| {
            outcomes.iter().try_for_each(|outcome| {
                let verdict = match outcome.right {
                    Some(true) => "as recorded",
                    Some(false) => "DIFFERS",
                    None => "not compared",
                };
                let digest = primitives::digest(&outcome.words);
                writeln!(o, "{:20} {digest:016x}  {verdict}", outcome.name)
            })
        })?;
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Diverged,
            format!("differ from what is recorded: {}", wrong.join(", ")),
        )),
    }
}

fn replay(device: &str, seed: u64, case: &str) -> String {
    format!("warpsmith selftest --device {device} --case '{case}' --seed {seed}")
}

fn print(args: &SelftestArgs, report: &Report, replays: &[String]) -> Result<()> {
    if args.json {
        let failures: Vec<_> = report
            .failures
            .iter()
            .zip(replays)
            .map(|(f, replay)| json!({ "case": f.case, "why": f.why, "replay": replay }))
            .collect();
        return output::json_to_stdout(&json!({
            "device": args.device,
            "seed": args.seed,
            "ops": report.ops,
            "cases": report.cases,
            "passed": report.passed,
            "failed": report.failures.len(),
            "skipped": report.skipped,
            "unsupported": report.unsupported,
            "failures": failures,
        }));
    }
    output::to_stdout(|o| {
        for (f, replay) in report.failures.iter().zip(replays) {
            writeln!(o, "{}: {}\n    again: {replay}", f.case, f.why)?;
        }
        writeln!(
            o,
            "{} ops, {} cases: {} passed, {} failed; {} unsupported, {} skipped",
            report.ops,
            output::thousands(report.cases as u64),
            output::thousands(report.passed as u64),
            report.failures.len(),
            output::thousands(report.unsupported as u64),
            report.skipped
        )
    })
}
