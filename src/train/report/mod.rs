//! A run on one page: `report.html`, which needs neither scripts nor anything from outside.
//!
//! Curves are inline SVG, pictures are PNG in data URIs, colours follow `prefers-color-scheme`. The page is well-formed
//! XML as well as HTML. What a folder holds gives curves and settings; with the rows that the model was judged on
//! ([`examine`]) come the confusion matrix, or predicted against true, and the rows with the largest loss.
//!
//! The page is written beside the model's files and not listed among them, since it is made of them: saving the model anew
//! removes it.

#![forbid(unsafe_code)]

mod chart;
mod examine;
mod page;
mod picture;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) use chart::{Chart, Mark, Scale, Scatter, Series, number};
pub use examine::{Examined, Example, Findings, examine};
pub(crate) use page::Page;

use super::checkpoint::{self, Judge, ModelFile, Progress};
use super::log::{self, Entry};
use crate::io::folder::Folder;
use crate::io::write_atomically;
use crate::{Error, Result};

/// The page's name in a model folder.
pub const REPORT: &str = "report.html";

/// Writes the report of the model in `folder` to `path`. `examined` are its answers to the rows it was judged on; without
/// them `absent` says why they are not there.
///
/// # Errors
/// Kind `Data`: the folder is damaged, or `path` cannot be written.
pub fn write(
    path: &Path,
    folder: &Folder,
    file: &ModelFile,
    examined: Option<&Examined>,
    absent: Option<&str>,
) -> Result<()> {
    let progress = checkpoint::read_progress(folder)?;
    let entries = log::parse(&checkpoint::read_log(folder, progress.epoch)?)?;
    let text = render(folder.path(), file, &progress, &entries, examined, absent);
    write_atomically(path, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(path, "write", e)))
}

/// Where the report of the model in `dir` is by default.
pub fn path_in(dir: &Path) -> PathBuf {
    dir.join(REPORT)
}

/// Removes the report in `dir`, if it is one of ours: the model that it describes is being replaced.
pub(super) fn remove_stale(dir: &Path) {
    let path = path_in(dir);
    let mut start = vec![0; page::HEAD.len()];
    let ours = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && start == page::HEAD.as_bytes();
    if ours {
        // One that stays says itself of which epoch it is.
        let _ = fs::remove_file(&path);
    }
}

fn render(
    dir: &Path,
    file: &ModelFile,
    progress: &Progress,
    entries: &[Entry],
    examined: Option<&Examined>,
    absent: Option<&str>,
) -> String {
    let name =
        dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut page = Page::new(&name, &subtitle(file, progress));
    figures(&mut page, file, progress, examined);
    curves(&mut page, progress, entries);
    match (examined, absent) {
        (Some(examined), _) => findings(&mut page, examined),
        (None, Some(why)) => {
            page.heading("Answers");
            page.paragraph(why);
        }
        (None, None) => {}
    }
    settings(&mut page, file);
    page.finish()
}

fn subtitle(file: &ModelFile, progress: &Progress) -> String {
    let architecture = &file.architecture;
    let data = file.source.get("data").and_then(|v| v.as_str()).unwrap_or("data of its own");
    let epochs = match progress.epoch {
        0 => "before the end of the first epoch".to_owned(),
        1 => "after 1 epoch".to_owned(),
        n => format!("after {n} epochs"),
    };
    let early = if progress.stopped_early { ", stopped early" } else { "" };
    format!("{} on {data}: {}, {epochs}{early}", architecture.network, architecture.task)
}

/// The few numbers that are asked for first.
fn figures(page: &mut Page, file: &ModelFile, progress: &Progress, examined: Option<&Examined>) {
    let mut cells: Vec<(String, String)> = Vec::new();
    if let Some(judge) = file.metrics_on {
        let part = match judge {
            Judge::Test => "test",
            Judge::Validation => "validation",
            Judge::Train => "training",
        };
        cells.extend(
            file.metrics.iter().map(|(name, &value)| (format!("{name}, {part} part"), number(value))),
        );
    }
    if let Some(examined) = examined {
        cells.push((format!("loss, {} part", examined.judge), number(examined.loss)));
    }
    cells.extend(progress.best_loss.map(|loss| ("best validation loss".to_owned(), number(loss))));
    if progress.best_epoch > 0 {
        cells.push(("kept epoch".to_owned(), format!("{} of {}", progress.best_epoch, progress.epoch)));
    }
    cells.push(("optimiser steps".to_owned(), progress.steps.to_string()));
    if let Some(examined) = examined {
        cells.push((format!("rows, {} part", examined.judge), examined.rows.to_string()));
    }
    page.figures(&cells);
}

fn curves(page: &mut Page, progress: &Progress, entries: &[Entry]) {
    if entries.is_empty() {
        page.paragraph("No epoch has been finished yet, so there are no curves.");
        return;
    }
    page.heading("Curves");
    let over_epochs = |value: &dyn Fn(&Entry) -> Option<f64>| -> Vec<(f64, f64)> {
        entries.iter().filter_map(|entry| Some((entry.epoch as f64, value(entry)?))).collect()
    };
    let best = (progress.best_epoch > 0).then(|| Mark {
        x: progress.best_epoch as f64,
        label: format!("kept: epoch {}", progress.best_epoch),
    });
    let mut charts = vec![Chart {
        title: "Loss".to_owned(),
        x: "epoch".to_owned(),
        y: "mean loss a row".to_owned(),
        series: vec![
            Series::new("training", 1, over_epochs(&|e| Some(e.train_loss))),
            Series::new("validation", 2, over_epochs(&|e| e.val_loss)),
        ],
        mark: best.clone(),
        scale: Scale::Linear,
    }];
    let names = entries.iter().flat_map(|e| e.val_metrics.keys()).collect::<std::collections::BTreeSet<_>>();
    for name in names {
        charts.push(Chart {
            title: name.clone(),
            x: "epoch".to_owned(),
            y: format!("{name} on the validation part"),
            series: vec![Series::new("validation", 2, over_epochs(&|e| e.val_metrics.get(name).copied()))],
            mark: best.clone(),
            scale: Scale::Linear,
        });
    }
    charts.push(Chart {
        title: "Learning rate".to_owned(),
        x: "epoch".to_owned(),
        y: "rate of the epoch's last step".to_owned(),
        series: vec![Series::new("rate", 3, over_epochs(&|e| Some(e.lr)))],
        mark: None,
        scale: Scale::Linear,
    });
    page.grid(charts.iter().map(Chart::svg));
    page.details("All epochs", |page| {
        let names =
            entries.iter().flat_map(|e| e.val_metrics.keys()).collect::<std::collections::BTreeSet<_>>();
        let mut header =
            ["epoch", "step", "rate", "training loss", "validation loss"].map(str::to_owned).to_vec();
        header.extend(names.iter().map(|name| format!("validation {name}")));
        let rows = entries.iter().map(|e| {
            let mut row = vec![e.epoch.to_string(), e.step.to_string(), number(e.lr), number(e.train_loss)];
            row.push(e.val_loss.map_or_else(String::new, number));
            row.extend(names.iter().map(|&n| e.val_metrics.get(n).map_or_else(String::new, |&v| number(v))));
            row
        });
        page.table(&header, rows);
    });
}

fn findings(page: &mut Page, examined: &Examined) {
    match &examined.findings {
        Findings::Classes { names, confusion } => {
            page.heading("Confusion matrix");
            let count = names.len();
            let right: u64 = (0..count).map(|i| confusion[i * count + i]).sum();
            page.paragraph(&format!(
                "Rows of the {} part by their true class (down) and the answer (across): {right} of {} are right.",
                examined.judge, examined.rows
            ));
            page.confusion(names, confusion);
        }
        Findings::Values { target, pairs } => {
            page.heading("Predicted against true");
            page.paragraph(&format!(
                "Each dot is a row of the {} part; on the line the answer is right.",
                examined.judge
            ));
            let chart = Scatter {
                title: target.clone(),
                x: format!("true {target}"),
                y: format!("predicted {target}"),
                points: pairs.iter().map(|&(truth, answer)| (truth, answer, false)).collect(),
                x_scale: Scale::Linear,
                y_scale: Scale::Linear,
                diagonal: true,
                names: Vec::new(),
            };
            page.grid([chart.svg()]);
        }
    }
    page.heading("Worst answers");
    page.paragraph(&format!(
        "The rows of the {} part with the largest loss, by their number in the table from 1, or by their file.",
        examined.judge
    ));
    page.examples(&examined.worst);
}

fn settings(page: &mut Page, file: &ModelFile) {
    page.heading("Settings");
    let mut rows = Vec::new();
    let architecture = &file.architecture;
    rows.push(vec!["example".to_owned(), format!("{:?}", architecture.input)]);
    rows.push(vec!["outputs".to_owned(), architecture.outputs.to_string()]);
    // What can be saved can be shown; were it not so, the page would lack a few lines.
    flatten("network", &toml::Table::try_from(&architecture.network).unwrap_or_default(), &mut rows);
    flatten("training", &toml::Table::try_from(&file.training).unwrap_or_default(), &mut rows);
    flatten("data", &file.source, &mut rows);
    rows.push(vec!["data.inputs a row".to_owned(), file.preparation.width().to_string()]);
    if !file.source.contains_key("target") {
        rows.push(vec!["data.target".to_owned(), file.preparation.target().name().to_owned()]);
    }
    rows.push(vec!["warpsmith".to_owned(), file.warpsmith.clone()]);
    page.table(&["setting".to_owned(), "value".to_owned()], rows.into_iter());
}

/// Dotted names and values of all entries; of a list of tables each is a line.
fn flatten(prefix: &str, table: &toml::Table, rows: &mut Vec<Vec<String>>) {
    for (key, value) in table {
        let name = format!("{prefix}.{key}");
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, rows),
            toml::Value::String(text) => rows.push(vec![name, text.clone()]),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                let line =
                    |(i, item): (usize, &toml::Value)| vec![format!("{name}.{}", i + 1), in_line(item)];
                rows.extend(items.iter().enumerate().map(line));
            }
            other => rows.push(vec![name, in_line(other)]),
        }
    }
}

/// A value on one line: `type linear, out_features 256, bias true`.
fn in_line(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Float(v) => number(*v),
        toml::Value::Table(table) => {
            // What a thing is comes first.
            let (kind, others): (Vec<_>, Vec<_>) = table.iter().partition(|(key, _)| *key == "type");
            let entry = |(key, value): &(&String, &toml::Value)| match key.as_str() {
                "type" => in_line(value),
                key => format!("{key} {}", in_line(value)),
            };
            kind.iter().chain(&others).map(entry).collect::<Vec<_>>().join(", ")
        }
        toml::Value::Array(items) => {
            format!("[{}]", items.iter().map(in_line).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
