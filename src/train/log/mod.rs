//! What a run leaves behind for other tools: a line of JSON an epoch, the same as CSV, TensorBoard's event files.
//!
//! `metrics.jsonl` is the source of the other two: it holds figures only, no times, so that a run that was interrupted and
//! resumed leaves the bytes of one that never was. `metrics.csv` is made of it at each save; the event file lies outside
//! the model folder, grows as the run goes on, and is mended from it when the run is resumed.

#![forbid(unsafe_code)]

mod csv;
mod tensorboard;

use serde_json::{Map, Number, Value};

pub use csv::to_csv;
pub use tensorboard::{EVENTS, TensorBoard};

use super::metrics::Metrics;
use super::observe::EpochReport;
use crate::{Error, ErrorKind, Result};

/// One epoch of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// From 1.
    pub epoch: u64,
    /// Finished optimiser steps.
    pub step: u64,
    /// The learning rate of the last step.
    pub lr: f64,
    /// Mean training loss over the epoch's rows.
    pub train_loss: f64,
    /// Loss on the validation part, if there is one.
    pub val_loss: Option<f64>,
    /// Figures on the validation part, without `val_` before their names.
    pub val_metrics: Metrics,
}

impl Entry {
    /// Its line, without an end.
    pub fn to_line(&self) -> String {
        let number = |v: f64| Number::from_f64(v).map_or(Value::Null, Value::Number);
        let mut line = Map::new();
        line.insert("epoch".to_owned(), self.epoch.into());
        line.insert("step".to_owned(), self.step.into());
        line.insert("lr".to_owned(), number(self.lr));
        line.insert("train_loss".to_owned(), number(self.train_loss));
        line.extend(self.val_loss.map(|loss| ("val_loss".to_owned(), number(loss))));
        line.extend(self.val_metrics.iter().map(|(name, &value)| (format!("val_{name}"), number(value))));
        Value::Object(line).to_string()
    }

    /// Reads a line of [`Entry::to_line`]; says what is wrong with another.
    fn of_line(line: &str) -> Result<Entry, String> {
        let Ok(Value::Object(mut line)) = serde_json::from_str(line) else {
            return Err("not a JSON object".to_owned());
        };
        let mut count = |name: &str| {
            line.remove(name)
                .and_then(|v| v.as_u64())
                .ok_or_else(|| format!("{name:?} is not a whole number"))
        };
        let (epoch, step) = (count("epoch")?, count("step")?);
        // What was not finite when it was written is null.
        let mut figures = Metrics::new();
        for (name, value) in line {
            let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
            figures.insert(name.clone(), value.ok_or_else(|| format!("{name:?} is not a number"))?);
        }
        let mut need = |name: &str| figures.remove(name).ok_or_else(|| format!("{name:?} is missing"));
        let (lr, train_loss) = (need("lr")?, need("train_loss")?);
        let val_loss = figures.remove("val_loss");
        let val_metrics = figures
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("val_")?.to_owned(), value)))
            .collect();
        Ok(Entry { epoch, step, lr, train_loss, val_loss, val_metrics })
    }
}

impl From<&EpochReport> for Entry {
    fn from(report: &EpochReport) -> Entry {
        Entry {
            epoch: report.epoch,
            step: report.steps,
            lr: report.lr,
            train_loss: report.train_loss,
            val_loss: report.val_loss,
            val_metrics: report.val_metrics.clone(),
        }
    }
}

/// The epochs of a `metrics.jsonl`. Errors (kind `Data`) name the line.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    let entry = |(i, line): (usize, &str)| {
        Entry::of_line(line).map_err(|why| Error::new(ErrorKind::Data, format!("line {}: {why}", i + 1)))
    };
    text.lines().enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let metrics = Metrics::from([("accuracy".to_owned(), 0.1 + 0.2), ("f1".to_owned(), 1e-300)]);
        let full = Entry {
            epoch: 1,
            step: 9,
            lr: 1e-3,
            train_loss: 0.1,
            val_loss: Some(0.25),
            val_metrics: metrics,
        };
        let bare = Entry { epoch: 2, step: 18, val_loss: None, val_metrics: Metrics::new(), ..full.clone() };
        let text = format!("{}\n{}\n", full.to_line(), bare.to_line());
        assert_eq!(parse(&text).unwrap(), [full, bare]);
        let first = r#"{"epoch":1,"lr":0.001,"step":9,"train_loss":0.1,"val_accuracy":0.30000000000000004,"#;
        assert!(text.starts_with(first), "{text}");
    }

    #[test]
    fn bad_lines_are_named() {
        let good = r#"{"epoch":1,"lr":0.001,"step":9,"train_loss":0.1}"#;
        for (bad, what) in [
            ("", "JSON"),
            ("[1]", "JSON"),
            (r#"{"epoch":1,"lr":0.1,"step":9}"#, "train_loss"),
            (r#"{"epoch":1.5,"lr":0.1,"step":9,"train_loss":0.1}"#, "epoch"),
            (r#"{"epoch":1,"lr":"x","step":9,"train_loss":0.1}"#, "lr"),
        ] {
            let error = parse(&format!("{good}\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(what), "{error}");
        }
    }
}
