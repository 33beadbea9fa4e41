//! `warpsmith eval` and `warpsmith predict`: a saved model on a table or on pictures.

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

/// Measure a saved model on a table that has the target, or on pictures with labels.
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
    /// The table, whose columns are matched by name, inputs also by position; or the pictures. Of data that sets a test
    /// part aside, that part is measured on
    #[arg(long, value_name = "digits|fashion-mnist|F.csv|X.npy,Y.npy|F.npz|DIR")]
    data: String,
    #[command(flatten)]
    how: How,
}

/// Apply a saved model to each row of a table, or to pictures.
///
/// Columns are matched by name if the header has all of the model's inputs, else by position if their number is right.
/// The answers have one line a row, in the table's order: `class` and a probability `p_<class>` for each class, or `value`;
/// those to picture files begin with `file`.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv --output answers.csv
  warpsmith predict --model runs/wine-mlp-256-128 --input new.csv --format jsonl | jq .class
  zcat new.csv.gz | warpsmith predict --model runs/wine-mlp-256-128 --input -
  warpsmith predict --model runs/photos-mlp-256-128 --input holiday/

{}", super::EXIT_CODES))]
pub(super) struct PredictArgs {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The rows: a CSV file (.gz too), a .npy matrix, a .npz, or - for CSV from stdin; for a model of pictures a PNG or JPEG
    /// file, a folder of such, an IDX or .npy file or a .npz
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
        if predictor.preparation().pixels().is_some() {
            let images = source.read_images(&predictor.image_options())?;
            let (loss, metrics) = predictor.evaluate_images(&images)?;
            return Ok((loss, metrics, images.len()));
        }
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
        let target = predictor.preparation().target();
        if predictor.preparation().pixels().is_some() {
            let images = source.read_images(&predictor.image_options())?;
            let predictions = predictor.predict_images(&images)?;
            return Ok(Answers { files: images.names().to_vec(), ..Answers::new(predictions, target) });
        }
        let matched = source.read_as(&predictor.preparation().schema(), TargetUse::Ignored)?;
        matched.note.iter().for_each(|note| log.note(note));
        let (predictions, notes) = predictor.predict(&matched.table)?;
        notes.iter().for_each(|note| log.note(note));
        Ok(Answers::new(predictions, target))
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
    /// The file of each row; none where rows have no files of their own.
    files: Vec<String>,
}

impl Answers {
    fn new(predictions: Predictions, target: &Target) -> Answers {
        let integers = matches!(target, Target::Classes { labels: Labels::Integer, .. });
        Answers { predictions, integers, files: Vec::new() }
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
        let first = |row: usize| self.files.get(row).cloned();
        let file = (!self.files.is_empty()).then(|| "file".to_owned());
        match &self.predictions {
            Predictions::Values(values) => {
                csv.write_record(file.into_iter().chain(["value".to_owned()])).map_err(plain)?;
                for (row, value) in values.iter().enumerate() {
                    csv.write_record(first(row).into_iter().chain([value.to_string()])).map_err(plain)?;
                }
            }
            Predictions::Classes { names, classes, probabilities } => {
                let columns = names.iter().map(|name| format!("p_{name}"));
                let header = file.into_iter().chain(["class".to_owned()]).chain(columns);
                csv.write_record(header).map_err(plain)?;
                let rows = classes.iter().zip(probabilities.chunks_exact(names.len()));
                for (row, (&class, probabilities)) in rows.enumerate() {
                    let cells =
                        std::iter::once(names[class].clone()).chain(probabilities.iter().map(f32::to_string));
                    csv.write_record(first(row).into_iter().chain(cells)).map_err(plain)?;
                }
            }
        }
        csv.flush()
    }

    /// One row, with the keys that are the columns of the CSV form.
    fn object(&self, row: usize) -> Value {
        let file = self.files.get(row).map(|file| ("file".to_owned(), Value::from(file.as_str())));
        let mut object: Map<String, Value> = file.into_iter().collect();
        match &self.predictions {
            Predictions::Values(values) => object.extend([("value".to_owned(), json!(values[row]))]),
            Predictions::Classes { names, classes, probabilities } => {
                let name = &names[classes[row]];
                let number = if self.integers { name.parse::<i64>().ok() } else { None };
                let class = number.map_or_else(|| Value::from(name.as_str()), Value::from);
                object.insert("class".to_owned(), class);
                let probabilities = &probabilities[row * names.len()..];
                // By way of the shortest text, so that 0.1 is not printed as 0.10000000149011612.
                let short = |p: f32| p.to_string().parse::<f64>().unwrap_or_else(|_| p.into());
                object.extend(
                    names.iter().zip(probabilities).map(|(name, &p)| (format!("p_{name}"), short(p).into())),
                );
            }
        }
        Value::Object(object)
    }
}
