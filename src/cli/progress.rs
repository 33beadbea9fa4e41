//! How a training run is shown: a bar on a terminal, plain lines elsewhere, nothing when quiet. All on stderr.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{self, Log, thousands};
use crate::train::{EpochReport, Observer};

/// The least time between two plain lines, so that short epochs do not flood a log file.
const LINE_INTERVAL: Duration = Duration::from_millis(500);
/// The time after which a plain line is written within an epoch.
const BATCH_INTERVAL: Duration = Duration::from_secs(10);

/// Shows epochs and batches.
pub(super) enum Progress {
    Quiet,
    Lines { epochs: u64, last: Option<Instant> },
    Bar { epochs: u64, bar: ProgressBar },
}

impl Progress {
    /// For a run to `epochs` epochs in all, of which `done` are done.
    pub(super) fn new(log: Log, epochs: u64, done: u64) -> Progress {
        if log.quiet {
            return Progress::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Progress::Lines { epochs, last: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let template = "{bar:24} {msg}  at most {eta} left";
        // The template is ours and has been tried: were it wrong, the default style would do.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(format!("epoch {}/{epochs}", done + 1));
        Progress::Bar { epochs, bar }
    }

    /// Takes the bar off the terminal.
    pub(super) fn clear(&self) {
        if let Progress::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn line(report: &EpochReport, epochs: u64) -> String {
    let mut text = format!("epoch {}/{epochs}  train_loss {:.4}", report.epoch, report.train_loss);
    if let Some(loss) = report.val_loss {
        text += &format!("  val_loss {loss:.4}");
    }
    for (name, value) in
        report.val_metrics.iter().filter(|(name, _)| ["accuracy", "r2"].contains(&name.as_str()))
    {
        text += &format!("  val_{name} {value:.4}");
    }
    text + &format!("  {} rows/s", thousands(report.samples_per_second as u64))
}

impl Observer for Progress {
    fn batch(&mut self, epoch: u64, done: usize, of: usize) {
        match self {
            Progress::Quiet => {}
            Progress::Lines { epochs, last } => {
                let since = last.get_or_insert_with(Instant::now);
                if since.elapsed() >= BATCH_INTERVAL {
                    *since = Instant::now();
                    output::to_stderr(&format!("epoch {epoch}/{epochs}  batch {done}/{of}"));
                }
            }
            Progress::Bar { epochs, bar } => {
                let position = (epoch - 1) * of as u64 + done as u64;
                if bar.length().is_none() {
                    bar.set_length(*epochs * of as u64);
                    // What an earlier run did must not count as this run's speed.
                    bar.set_position(position);
                    bar.reset_eta();
                }
                bar.set_position(position);
            }
        }
    }

    fn epoch(&mut self, report: &EpochReport) {
        match self {
            Progress::Quiet => {}
            Progress::Lines { epochs, last } => {
                let first = report.epoch == 1 || report.epoch == *epochs;
                if first || last.is_none_or(|t| t.elapsed() >= LINE_INTERVAL) {
                    *last = Some(Instant::now());
                    output::to_stderr(&line(report, *epochs));
                }
            }
            Progress::Bar { epochs, bar } => bar.set_message(line(report, *epochs)),
        }
    }
}
