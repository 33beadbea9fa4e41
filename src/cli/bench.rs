//! `warpsmith bench`: times of the training step and of single ops on this machine.

#![forbid(unsafe_code)]

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::How;
use super::extents::Extents;
use super::output::{self, Log};
use crate::bench::{KernelsBench, OpsBench, StepBench};
use crate::optim::Capture;
use crate::train::Network;
use crate::{Error, Result};

/// Time training steps or single ops on this machine, checking what they compute.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith bench step --model mlp:500,250,100 --inputs 1000 --outputs 1 --batch 64,256,1024
  warpsmith bench ops --only matmul_512,linear_relu --json
  warpsmith bench kernels --device cuda

{}", super::EXIT_CODES))]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Step(StepArgs),
    Ops(OpsArgs),
    Kernels(KernelsArgs),
}

/// Time a full training step: forward, loss, backward, Adam.
///
/// The data is synthetic and the same in every step. The loss must be finite and fall, else the exit code is 1.
#[derive(Args)]
#[command(after_help = "\
Examples:
  warpsmith bench step
  warpsmith bench step --model mlp:512,512 --inputs 784 --outputs 10 --batch 128 --threads 1 --json
  warpsmith bench step --model cnn --inputs 1x28x28 --outputs 10 --batch 128
  warpsmith bench step --model lstm:128x2 --inputs 64x64 --outputs 10 --batch 64")]
struct StepArgs {
    /// The network: mlp:WIDTH,…, cnn, resnet:18, lstm:WIDTHxLAYERS and what else `train --model` takes by name
    #[arg(long, value_name = "NAME", default_value = "mlp:500,250,100")]
    model: Network,
    /// The shape of one example
    #[arg(long, value_name = "SHAPE", default_value = "1000")]
    inputs: Extents,
    /// Logits a row; 1: binary cross-entropy, more: cross-entropy
    #[arg(long, value_name = "N", default_value_t = 1)]
    outputs: usize,
    /// Rows a step; several sizes are timed one after the other
    #[arg(long, value_name = "ROWS,…", value_delimiter = ',', default_value = "64,256,1024")]
    batch: Vec<usize>,
    /// Steps before the clock starts
    #[arg(long, value_name = "N", default_value_t = 20)]
    warmup: usize,
    /// Timed steps; 0: at least 60, for at least --seconds
    #[arg(long, value_name = "N", default_value_t = 0)]
    steps: usize,
    /// How long each size is timed, at least
    #[arg(long, value_name = "S", default_value_t = 1.5, allow_negative_numbers = true)]
    seconds: f64,
    /// Whether the step is recorded once and replayed, on a GPU
    #[arg(long, value_enum, default_value_t, value_name = "on|off|auto")]
    capture: Capture,
    /// Decides weights and data
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    how: How,
}

/// Time single ops, forward and backward, at the sizes that benches/compare/README.md lists.
///
/// Each is checked against a plain computation in 64 bits, else the exit code is 1.
#[derive(Args)]
#[command(after_help = "\
Examples:
  warpsmith bench ops
  warpsmith bench ops --only softmax,softmax_backward --threads 1 --json")]
struct OpsArgs {
    /// Only these rows
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// How long each row is timed, at least
    #[arg(long, value_name = "S", default_value_t = 0.15, allow_negative_numbers = true)]
    seconds: f64,
    #[command(flatten)]
    how: How,
}

/// Time kernels at sizes that fill a GPU: bytes a second against the card's own copy, operations a second.
///
/// Each result is compared with the CPU's, else the exit code is 1. What the device has no kernels for is listed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  warpsmith bench kernels --device cuda
  warpsmith bench kernels --device cuda --only softmax,matmul_bf16 --json")]
struct KernelsArgs {
    /// Only rows whose name contains one of these
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',')]
    only: Vec<String>,
    /// How long each row is timed, at least
    #[arg(long, value_name = "S", default_value_t = 0.3, allow_negative_numbers = true)]
    seconds: f64,
    /// Tiny sizes: to see that it works, not how fast
    #[arg(long)]
    small: bool,
    #[command(flatten)]
    how: How,
}

/// Runs the command.
pub(super) fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Step(args) => step(args),
        What::Ops(args) => ops(args),
        What::Kernels(args) => kernels(args),
    }
}

fn positive(flag: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::argument(format!("{flag} {seconds}: expected a number of seconds from 0 on")))
}

fn step(args: StepArgs) -> Result<()> {
    for (flag, n) in [("--outputs", Some(&args.outputs)), ("--batch", args.batch.iter().min())] {
        if n == Some(&0) {
            return Err(Error::argument(format!("{flag} 0: expected at least 1")));
        }
    }
    let log = Log { quiet: args.how.quiet };
    let device = super::open_device(Some(&args.how.device), &log)?;
    let bench = StepBench {
        network: args.model.clone(),
        input: args.inputs.0.clone(),
        outputs: args.outputs,
        warmup: args.warmup,
        steps: args.steps,
        time: positive("--seconds", args.seconds)?,
        seed: args.seed,
        device,
        capture: args.capture,
    };
    let (rows, threads) = super::with_threads(args.how.threads, || {
        let time = |&batch: &usize| {
            log.note(&format!("timing batch {batch}"));
            bench.run(batch)
        };
        Ok((args.batch.iter().map(time).collect::<Result<Vec<_>>>()?, crate::cpu::par::threads()))
    })?;
    if args.how.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "batch": row.batch,
                    "median_ms": row.median_ms,
                    "min_ms": row.min_ms,
                    "p90_ms": row.p90_ms,
                    "steps": row.steps,
                    "first_loss": row.loss.0,
                    "last_loss": row.loss.1,
                })
            })
            .collect();
        return output::json_to_stdout(&json!({
            "model": args.model.to_string(),
            "inputs": args.inputs.to_string(),
            "outputs": args.outputs,
            "device": device.to_string(),
            "threads": threads,
            "rows": rows,
        }));
    }
    output::to_stdout(|o| {
        writeln!(o, "{} {} → {}, {device}, {threads} threads", args.model, args.inputs, args.outputs)?;
        writeln!(o, "{:>8} {:>12} {:>12} {:>12} {:>8}", "batch", "median ms", "min ms", "p90 ms", "steps")?;
        for row in &rows {
            let (batch, steps) = (row.batch, row.steps);
            writeln!(
                o,
                "{batch:8} {:12.4} {:12.4} {:12.4} {steps:8}",
                row.median_ms, row.min_ms, row.p90_ms
            )?;
        }
        Ok(())
    })
}

fn ops(args: OpsArgs) -> Result<()> {
    let log = Log { quiet: args.how.quiet };
    let device = super::open_device(Some(&args.how.device), &log)?;
    let bench = OpsBench { only: args.only, time: positive("--seconds", args.seconds)?, device };
    let (rows, threads) =
        super::with_threads(args.how.threads, || Ok((bench.run()?, crate::cpu::par::threads())))?;
    if args.how.json {
        let rows: Vec<Value> =
            rows.iter().map(|row| json!({ "op": row.op, "median_us": row.median_us })).collect();
        return output::json_to_stdout(
            &json!({ "device": device.to_string(), "threads": threads, "rows": rows }),
        );
    }
    output::to_stdout(|o| {
        writeln!(o, "{device}, {threads} threads")?;
        writeln!(o, "{:26} {:>12}", "op", "median µs")?;
        rows.iter().try_for_each(|row| writeln!(o, "{:26} {:12.2}", row.op, row.median_us))
    })
}

fn kernels(args: KernelsArgs) -> Result<()> {
    let log = Log { quiet: args.how.quiet };
    let device = super::open_device(Some(&args.how.device), &log)?;
    let bench = KernelsBench {
        only: args.only,
        time: positive("--seconds", args.seconds)?,
        device,
        small: args.small,
    };
    let report =
        super::with_threads(args.how.threads, || bench.run(|name| log.note(&format!("timing {name}"))))?;
    let (clock, degrees, watts) = report.conditions;
    if args.how.json {
        let rows: Vec<Value> = report
            .rows
            .iter()
            .map(|row| {
                json!({
                    "kernel": row.kernel,
                    "median_us": row.median_us,
                    "min_us": row.min_us,
                    "p90_us": row.p90_us,
                    "gb_s": row.gb_s,
                    "share": row.share,
                    "tflop_s": row.tflop_s,
                })
            })
            .collect();
        let unsupported: Vec<Value> =
            report.unsupported.iter().map(|(kernel, why)| json!({ "kernel": kernel, "why": why })).collect();
        return output::json_to_stdout(&json!({
            "device": device.to_string(),
            "gpu": report.gpu,
            "small": args.small,
            "clock_mhz": clock,
            "temperature": degrees,
            "watts": watts,
            "held_back": report.held_back,
            "rows": rows,
            "unsupported": unsupported,
        }));
    }
    output::to_stdout(|o| {
        writeln!(o, "{}", report.gpu)?;
        writeln!(
            o,
            "{:20} {:>12} {:>12} {:>10} {:>14}",
            "kernel", "median µs", "GB/s", "of copy", "TFLOP/s"
        )?;
        for row in &report.rows {
            let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.1}"));
            let share = row.share.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
            let (gb_s, tflop_s) = (number(row.gb_s), number(row.tflop_s));
            writeln!(o, "{:20} {:12.2} {gb_s:>12} {share:>10} {tflop_s:>14}", row.kernel, row.median_us)?;
        }
        for (kernel, why) in &report.unsupported {
            writeln!(o, "{kernel:20} not on this device: {why}")?;
        }
        if !report.held_back.is_empty() {
            writeln!(o, "the clocks were held back by {}", report.held_back.join(", "))?;
        }
        Ok(())
    })
}
