//! `warpsmith eval` and `warpsmith predict`: a saved model on a table.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::How;
use super::input::Source;
use super::output::{self, Log, figures, thousands};
use crate::data::{Labels, Target, TargetUse};
use crate::io::write_atomically;
use crate::train::{Predictions, Predictor};
use crate::{Error, Result};

/// Measure a saved model on a table that has the target.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith eval --model runs/wine-mlp-256-128 --data wine-2024.csv
  warpsmith eval --model runs/digits-mlp-256-128 --data digits --json

{}", super::EXIT_CODES))]
pub(super) struct EvalArgs {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The table; its columns are matched by name, inputs also by position
    #[arg(long, value_name = "digits|F.csv|X.npy,Y.npy")]
    data: String,
    #[command(flatten)]
    how: How,
}

/// Apply a saved model to each row of a table.
///
/// Columns are matched by name if the header has all of the model's inputs, else by position if their number is right.
/// The answers have one line a row, in the table's order: `class` and a probability `p_<class>` for each class, or `value`.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv --output answers.csv
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv --format jsonl | jq .class
  zcat new.csv.gz | warpsmith predict --model runs/wine-mlp-256-128 --input -

{}", super::EXIT_CODES))]
pub(super) struct PredictArgs {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The rows: a CSV file (.gz too), a .npy matrix, or - for CSV from stdin
    #[arg(long, value_name = "FILE")]
    input: String,
    /// Write the answers to this file, which is replaced only when all are there [default: stdout]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// [default: jsonl for an --output that ends in .jsonl, .ndjson or .json, else csv]
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    how: How,
}

impl How {
    /// Opens the model and lets `f` use it, on the threads asked for.
    fn with_model<R: Send>(
        &self,
        dir: &Path,
        f: impl FnOnce(&Predictor, Log) -> Result<R> + Send,
    ) -> Result<R> {
        let log = Log { quiet: self.quiet };
        let device = super::open_device(Some(&self.device), &log)?;
        super::with_threads(self.threads, || f(&Predictor::open(dir, device)?, log))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A header and one line a row
    Csv,
    /// One JSON object a line and row
    Jsonl,
}

impl Format {
    fn of(file: Option<&Path>) -> Format {
        match file.and_then(Path::extension).and_then(|e| e.to_str()) {
            Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
            _ => Format::Csv,
        }
    }
}

/// Runs `warpsmith eval`.
pub(super) fn eval(args: EvalArgs) -> Result<()> {
    let source = Source::parse(&args.data).map_err(|e| e.context("--data"))?;
    let (loss, metrics, rows) = args.how.with_model(&args.model, |predictor, log| {
        let matched = source.read_as(&predictor.preparation().schema(), TargetUse::Needed)?;
        matched.note.iter().for_each(|note| log.note(note));
        let (loss, metrics, rows, notes) = predictor.evaluate(&matched.table)?;
        notes.iter().for_each(|note| log.note(note));
        Ok((loss, metrics, rows))
    })?;
    if args.how.json {
        return output::json_to_stdout(&json!({
            "model": args.model.display().to_string(),
            "data": args.data,
            "rows": rows,
            "loss": loss,
            "metrics": metrics,
        }));
    }
    output::to_stdout(|o| {
        writeln!(o, "rows       {}", thousands(rows as u64))?;
        writeln!(o, "loss       {loss:.4}")?;
        writeln!(o, "metrics    {}", figures(&metrics))
    })
}

/// Runs `warpsmith predict`.
pub(super) fn predict(args: PredictArgs) -> Result<()> {
    let source = Source::parse(&args.input).map_err(|e| e.context("--input"))?;
    if args.how.json && args.format.is_some() && args.output.is_none() {
        return Err(Error::argument("--json and --format contradict each other")
            .with_help("--json prints one object with all answers; --format jsonl one object a row"));
    }
    let format = args.format.unwrap_or_else(|| Format::of(args.output.as_deref()));
    let answers = args.how.with_model(&args.model, |predictor, log| {
        let matched = source.read_as(&predictor.preparation().schema(), TargetUse::Ignored)?;
        matched.note.iter().for_each(|note| log.note(note));
        let (predictions, notes) = predictor.predict(&matched.table)?;
        notes.iter().for_each(|note| log.note(note));
        Ok(Answers::new(predictions, predictor.preparation().target()))
    })?;
    match (&args.output, args.how.json) {
        (Some(file), json) => {
            write_atomically(file, |out| {
                answers.write(out, format).map_err(|e| Error::io(file, "write", e))
            })?;
            let (file, rows) = (file.display().to_string(), answers.rows());
            if json {
                return output::json_to_stdout(&json!({ "rows": rows, "output": file }));
            }
            Log { quiet: args.how.quiet }.note(&format!("wrote {} rows to {file}", thousands(rows as u64)));
            Ok(())
        }
        (None, true) => {
            let all: Vec<Value> = (0..answers.rows()).map(|row| answers.object(row)).collect();
            output::json_to_stdout(&json!({ "rows": answers.rows(), "predictions": all }))
        }
        (None, false) => output::to_stdout(|out| answers.write(out, format)),
    }
}

/// Answers with what writing them needs.
struct Answers {
    predictions: Predictions,
    /// Classes that are integers are numbers in JSON.
    integers: bool,
}

impl Answers {
    fn new(predictions: Predictions, target: &Target) -> Answers {
        Answers { predictions, integers: matches!(target, Target::Classes { labels: Labels::Integer, .. }) }
    }

    fn rows(&self) -> usize {
        match &self.predictions {
            Predictions::Classes { classes, .. } => classes.len(),
            Predictions::Values(values) => values.len(),
        }
    }

    fn write(&self, out: &mut dyn Write, format: Format) -> std::io::Result<()> {
        if format == Format::Jsonl {
            return (0..self.rows()).try_for_each(|row| writeln!(out, "{}", self.object(row)));
        }
        // The csv crate's own conversion hides what kind of error it was, and a closed pipe must be known for one.
        let plain = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => e,
            other => std::io::Error::other(format!("{other:?}")),
        };
        let mut csv = csv::Writer::from_writer(out);
        match &self.predictions {
            Predictions::Values(values) => {
                csv.write_record(["value"]).map_err(plain)?;
                values.iter().try_for_each(|value| csv.write_record([value.to_string()]).map_err(plain))?;
            }
            Predictions::Classes { names, classes, probabilities } => {
                let columns = names.iter().map(|name| format!("p_{name}"));
                csv.write_record(std::iter::once("class".to_owned()).chain(columns)).map_err(plain)?;
                for (&class, row) in classes.iter().zip(probabilities.chunks_exact(names.len())) {
                    let cells = std::iter::once(names[class].clone()).chain(row.iter().map(f32::to_string));
                    csv.write_record(cells).map_err(plain)?;
                }
            }
        }
        csv.flush()
    }

    /// One row, with the keys that are the columns of the CSV form.
    fn object(&self, row: usize) -> Value {
        match &self.predictions {
            Predictions::Values(values) => json!({ "value": values[row] }),
            Predictions::Classes { names, classes, probabilities } => {
                let name = &names[classes[row]];
                let number = if self.integers { name.parse::<i64>().ok() } else { None };
                let class = number.map_or_else(|| Value::from(name.as_str()), Value::from);
                let mut object = Map::from_iter([("class".to_owned(), class)]);
                let probabilities = &probabilities[row * names.len()..];
                // By way of the shortest text, so that 0.1 is not printed as 0.10000000149011612.
                let short = |p: f32| p.to_string().parse::<f64>().unwrap_or_else(|_| p.into());
                object.extend(
                    names.iter().zip(probabilities).map(|(name, &p)| (format!("p_{name}"), short(p).into())),
                );
                Value::Object(object)
            }
        }
    }
}
