//! `metrics.csv`: the epochs of a run for spreadsheets and data frames.
//!
//! The header depends on the task alone, so that tables of several runs can be put under one another; a figure that an
//! epoch lacks (no validation part, no meaning for these rows) is an empty cell. Numbers are written as in
//! `metrics.jsonl`: the shortest text that reads back as the same f64.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde_json::Number;

use super::Entry;
use crate::data::Task;
use crate::train::metrics;

/// The table of `entries`, a header line first.
pub fn to_csv(entries: &[Entry], task: Task) -> String {
    let names = metrics::names(task);
    let mut text = "epoch,step,lr,train_loss,val_loss".to_owned();
    names.iter().for_each(|name| text += &format!(",val_{name}"));
    text.push('\n');
    let cell = |value: Option<f64>| {
        value.and_then(Number::from_f64).map_or_else(String::new, |number| number.to_string())
    };
    for entry in entries {
        // Writing to a String cannot fail.
        let _ = write!(text, "{},{},{}", entry.epoch, entry.step, cell(Some(entry.lr)));
        let metrics = names.iter().map(|&name| entry.val_metrics.get(name).copied());
        for value in [Some(entry.train_loss), entry.val_loss].into_iter().chain(metrics) {
            text.push(',');
            text += &cell(value);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Metrics;

    #[test]
    fn missing_figures_are_empty_cells_under_a_fixed_header() {
        let entry = |epoch, val_loss, metrics: &[(&str, f64)]| Entry {
            epoch,
            step: epoch * 10,
            lr: 0.001,
            train_loss: 0.5,
            val_loss,
            val_metrics: metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect::<Metrics>(),
        };
        let entries = [
            entry(1, Some(0.25), &[("rmse", 1e-7), ("mae", 2.0)]),
            entry(2, None, &[]),
            entry(3, Some(f64::NAN), &[]),
        ];
        let want = "epoch,step,lr,train_loss,val_loss,val_mae,val_r2,val_rmse\n\
                    1,10,0.001,0.5,0.25,2.0,,1e-7\n\
                    2,20,0.001,0.5,,,,\n\
                    3,30,0.001,0.5,,,,\n";
        assert_eq!(to_csv(&entries, Task::Regression), want);
        let columns = |task| to_csv(&[], task).trim_end().split(',').count();
        assert_eq!((columns(Task::Binary), columns(Task::Multiclass)), (10, 6));
    }
}
