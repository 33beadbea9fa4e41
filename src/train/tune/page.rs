//! A search on one page: all trials, their curves, and each setting against the loss.

#![forbid(unsafe_code)]

use std::path::Path;

use super::plan::{Method, Plan};
use super::search::Record;
use super::space::Range;
use crate::train::log::Entry;
use crate::train::report::{Chart, Page, Scale, Scatter, Series, number};

/// A setting's value as it is shown, and can be given again: texts without quotes.
pub fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `trials` in their order of rank; `curves` has the epochs of each.
pub(super) fn render(plan: &Plan, dir: &Path, trials: &[Record], curves: &[Vec<Entry>]) -> String {
    let name =
        dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut page = Page::new(&name, &subtitle(plan));
    if let Some(best) = trials.first()
        && let Some(loss) = best.val_loss
    {
        let mut cells = vec![
            ("best trial".to_owned(), best.trial.to_string()),
            ("its validation loss".to_owned(), number(loss)),
        ];
        cells.extend(
            best.val_metrics.iter().map(|(name, &v)| (format!("{name}, validation part"), number(v))),
        );
        cells.extend(best.settings.iter().map(|(name, value)| (name.clone(), shown(value))));
        page.figures(&cells);
    }
    page.heading("Trials over epochs");
    let losses: Vec<f64> = trials.iter().filter_map(|record| record.val_loss).collect();
    let all = curves.iter().flatten().filter_map(|entry| entry.val_loss).collect::<Vec<_>>();
    page.grid([over_epochs(trials, curves, scale_of(&all))]);
    page.heading("Settings against the loss");
    page.paragraph("The lowest validation loss of each trial; the best one is larger.");
    page.grid(plan.space.ranges.iter().map(|(name, range)| against(name, range, trials, scale_of(&losses))));
    page.heading("All trials");
    table(&mut page, plan, trials);
    page.heading("What all trials share");
    let rows = plan.base.iter().map(|(name, value)| vec![name.clone(), shown(value)]);
    page.table(&["setting".to_owned(), "value".to_owned()], rows);
    page.finish()
}

fn subtitle(plan: &Plan) -> String {
    match plan.method {
        Method::Random => {
            format!(
                "random search: {} trials of at most {} epochs, seed {}",
                plan.trials, plan.epochs, plan.seed
            )
        }
        Method::Halving => {
            let rungs = plan.rungs();
            let stages: Vec<String> =
                rungs.iter().map(|rung| format!("{} trials to epoch {}", rung.trials, rung.epochs)).collect();
            format!("successive halving: {}; seed {}", stages.join(", "), plan.seed)
        }
    }
}

/// Losses that differ by orders of magnitude are told apart on a logarithmic axis only.
fn scale_of(losses: &[f64]) -> Scale {
    let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let high = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low > 0.0 && high / low > 8.0 { Scale::Log } else { Scale::Linear }
}

fn over_epochs(trials: &[Record], curves: &[Vec<Entry>], scale: Scale) -> String {
    let curve = |(record, entries): (&Record, &Vec<Entry>)| {
        let points = entries.iter().filter_map(|e| Some((e.epoch as f64, e.val_loss?))).collect();
        Series::new(&format!("trial {}", record.trial), 0, points)
    };
    let mut series: Vec<Series> = trials.iter().zip(curves).map(curve).collect();
    // The best is drawn last, above the others.
    series.reverse();
    if let Some((best, others)) = series.split_last_mut() {
        best.colour = 2;
        others.iter_mut().for_each(|series| series.name.clear());
        if let Some(other) = others.last_mut() {
            other.name = "others".to_owned();
        }
    }
    let title = "Validation loss of each trial".to_owned();
    Chart { title, x: "epoch".to_owned(), y: "validation loss".to_owned(), series, mark: None, scale }.svg()
}

fn against(name: &str, range: &Range, trials: &[Record], y_scale: Scale) -> String {
    let names = match range {
        Range::Choice(values) => values.iter().map(shown).collect(),
        _ => Vec::new(),
    };
    let place = |record: &Record| {
        let value = record.settings.get(name)?;
        match range {
            Range::Choice(values) => values.iter().position(|v| v == value).map(|at| at as f64),
            _ => value.as_float().or(value.as_integer().map(|i| i as f64)),
        }
    };
    let point = |(rank, record): (usize, &Record)| Some((place(record)?, record.val_loss?, rank == 0));
    let mut points: Vec<(f64, f64, bool)> = trials.iter().enumerate().filter_map(point).collect();
    points.reverse();
    Scatter {
        title: name.to_owned(),
        x: name.to_owned(),
        y: "lowest validation loss".to_owned(),
        points,
        x_scale: if matches!(range, Range::Log(..)) { Scale::Log } else { Scale::Linear },
        y_scale,
        diagonal: false,
        names,
    }
    .svg()
}

fn table(page: &mut Page, plan: &Plan, trials: &[Record]) {
    let metrics = trials.iter().flat_map(|r| r.val_metrics.keys()).collect::<std::collections::BTreeSet<_>>();
    let mut header = ["trial", "validation loss"].map(str::to_owned).to_vec();
    header.extend(metrics.iter().map(|name| format!("validation {name}")));
    header.extend(["epochs", "kept epoch"].map(str::to_owned));
    header.extend(plan.space.ranges.keys().cloned());
    header.push("ended".to_owned());
    let rows = trials.iter().map(|record| {
        let mut row = vec![record.trial.to_string(), record.val_loss.map_or_else(String::new, number)];
        row.extend(
            metrics.iter().map(|&m| record.val_metrics.get(m).map_or_else(String::new, |&v| number(v))),
        );
        row.extend([record.epochs.to_string(), record.best_epoch.to_string()]);
        row.extend(
            plan.space.ranges.keys().map(|key| record.settings.get(key).map_or_else(String::new, shown)),
        );
        row.push(match &record.error {
            Some(error) => error.clone(),
            None if record.epochs < record.budget => "out of patience".to_owned(),
            None if record.budget < plan.epochs => format!("not among the best at epoch {}", record.budget),
            None => "trained to the end".to_owned(),
        });
        row
    });
    page.table(&header, rows);
}
