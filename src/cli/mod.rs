//! The command line: arguments in, exit code out. Everything it does is a thin call of the library.
//!
//! Results go to stdout, progress, notes and errors to stderr; `--json` makes the result one JSON object. Nothing below
//! this module reads the environment or prints. A reader that closes our stdout early is no error; a panic is a bug of
//! ours, says so, and exits with 70.

#![forbid(unsafe_code)]

mod answer;
mod bench;
mod doctor;
mod export;
mod extents;
mod generate;
mod info;
mod input;
mod interrupt;
mod lm;
mod output;
mod plan;
mod progress;
mod report;
mod resume;
mod selftest;
mod settings;
mod tokenize;
mod train;
mod tune;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{Device, Error, Result};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a check failed, or training diverged
  2    the command line is wrong
  4    a file or its content cannot be used
  5    out of memory
  6    no usable device
  7    a device failed
  70   a bug of warpsmith
  130  interrupted; train has saved a checkpoint to resume from";

const EXAMPLES: &str = "\
Examples:
  warpsmith train                                  train on the built-in digits, save to runs/
  warpsmith train --data wine.csv --target cultivar
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv
  warpsmith info runs/wine-mlp-256-128

";

/// Trains and runs neural networks.
#[derive(Parser)]
#[command(name = "warpsmith", version, after_help = format!("{EXAMPLES}{EXIT_CODES}"))]
#[command(arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What eval, predict and bench take besides their own arguments.
#[derive(Args)]
struct How {
    /// auto, cpu or cuda[:N]
    #[arg(long, default_value = "auto")]
    device: String,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// No progress and no notes
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<train::TrainArgs>),
    Tune(tune::TuneArgs),
    Plan(Box<plan::PlanArgs>),
    Tokenize(tokenize::TokenizeArgs),
    Eval(answer::EvalArgs),
    Predict(answer::PredictArgs),
    Generate(generate::GenerateArgs),
    Export(export::ExportArgs),
    Report(report::ReportArgs),
    Info(info::InfoArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    Selftest(selftest::SelftestArgs),
    Completions(CompletionsArgs),
}

/// Print a completion script for a shell.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  warpsmith completions bash > ~/.local/share/bash-completion/completions/warpsmith
  warpsmith completions zsh > ~/.zfunc/_warpsmith
  warpsmith completions fish > ~/.config/fish/completions/warpsmith.fish")]
struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Runs the program on the process's arguments; `start` is when the process began.
pub fn main(start: Instant) -> ExitCode {
    report_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are results (stdout, 0), all else is an error (stderr, 2). A closed stream is no news.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let outcome = match cli.command {
        Command::Train(args) => train::run(*args, start),
        Command::Tune(args) => tune::run(args),
        Command::Plan(args) => plan::run(*args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Eval(args) => answer::eval(args),
        Command::Predict(args) => answer::predict(args),
        Command::Generate(args) => generate::run(args),
        Command::Export(args) => export::run(args),
        Command::Report(args) => report::run(args),
        Command::Info(args) => info::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Completions(args) => completions(args.shell),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::to_stderr(&format!("error: {error}"));
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "warpsmith", &mut script);
    output::to_stdout(|out| out.write_all(&script))
}

/// A panic ends the process with 70, on whatever thread it happens.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload().downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        let place = panic.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        output::to_stderr(&format!(
            "error: {text}{place}\nhelp: this is a bug in warpsmith; please report it"
        ));
        std::process::exit(70);
    }));
}

/// Opens the device called `name`, and says which one `auto` took.
fn open_device(name: Option<&str>, log: &output::Log) -> Result<Device> {
    let name = name.unwrap_or("auto");
    let device = name.parse()?;
    if name == "auto" {
        log.note(&format!("device: {device} (auto)"));
    }
    Ok(device)
}

/// Runs `f` with `threads` threads, all cores where nothing is given.
fn with_threads<R: Send>(threads: Option<usize>, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let threads = match threads {
        Some(0) => return Err(Error::argument("--threads 0: expected at least 1")),
        Some(n) => n,
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    crate::cpu::par::with_threads(threads, f)?
}
