//! `warpsmith report`: a run on one HTML page.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::How;
use super::input::Source;
use super::output::{self, Log};
use super::resume::saved_settings;
use super::settings::Settings;
use super::train::build;
use crate::io::folder::Folder;
use crate::train::checkpoint::{self, ModelFile};
use crate::train::report::{self, Examined};
use crate::train::{Judge, Trainer, data_checksum};
use crate::{Device, Error, Result};

/// Show a run on one HTML page: curves, settings, confusion matrix, worst answers.
///
/// The page needs no scripts and nothing from outside. It is written to the model folder, or to --out. The rows that the model
/// was judged on are read again from where they came from; where they are gone, the page says so and has the rest.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith report runs/digits-mlp-256-128
  warpsmith report runs/wine --data moved/wine.csv --out wine.html

{}", super::EXIT_CODES))]
pub(super) struct ReportArgs {
    /// The model folder
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// The data that the model was trained on, where it has moved
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// The page [default: report.html in the model folder]
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// Runs the command.
pub(super) fn run(args: ReportArgs) -> Result<()> {
    let log = Log { quiet: args.how.quiet };
    let device = super::open_device(Some(&args.how.device), &log)?;
    let (folder, file) = checkpoint::open(&args.model)?;
    let path = args.out.clone().unwrap_or_else(|| report::path_in(folder.path()));
    let found =
        super::with_threads(args.how.threads, || examine(&folder, &file, args.data.as_deref(), device));
    let (examined, absent) = match found {
        Ok(examined) => (Some(examined), None),
        // Of data that was named someone expects that it is read.
        Err(error) if args.data.is_some() => return Err(error),
        Err(error) => {
            let why = format!("The rows that the model was judged on could not be read again: {error}");
            log.note(&format!("no confusion matrix and no worst answers: {error}"));
            (None, Some(why))
        }
    };
    report::write(&path, &folder, &file, examined.as_ref(), absent.as_deref())?;
    if args.how.json {
        return output::json_to_stdout(&json!({
            "model": args.model.display().to_string(),
            "report": path.display().to_string(),
            "rows": examined.as_ref().map(|examined| examined.rows),
            "loss": examined.as_ref().map(|examined| examined.loss),
        }));
    }
    output::to_stdout(|o| writeln!(o, "report     {}", path.display()))
}

/// Asks the model about the rows that its figures are of.
fn examine(folder: &Folder, file: &ModelFile, data: Option<&str>, device: Device) -> Result<Examined> {
    let saved = saved_settings(file, folder.path())?;
    let settings = Settings { data: data.map(str::to_owned).or(saved.data.clone()), ..saved };
    let name = settings.data.clone().unwrap_or_else(|| "digits".to_owned());
    let source = Source::parse(&name)?;
    if name == "-" {
        return Err(
            Error::argument("the data came from stdin").with_help("give the same rows again: --data FILE")
        );
    }
    let (rows, _) = build(&settings, &source, Log { quiet: true })?;
    if data_checksum(&rows) != checkpoint::read_progress(folder)?.data_checksum {
        return Err(Error::data(&name, "not the data that this model was trained on"));
    }
    let judge = file.metrics_on.unwrap_or(Judge::Validation);
    let part = match judge {
        Judge::Test => &rows.test,
        Judge::Validation => &rows.validation,
        Judge::Train => &rows.train,
    };
    let model = checkpoint::load_model(folder, file, device)?;
    report::examine(&model, &file.preparation, judge, part)
}

/// The report of a run that has just been saved to `out`.
pub(super) fn of_run(trainer: &Trainer, out: &Path, device: Device) -> Result<PathBuf> {
    let (folder, file) = checkpoint::open(out)?;
    let model = checkpoint::load_model(&folder, &file, device)?;
    let examined = trainer.examine(&model)?;
    let path = report::path_in(out);
    report::write(&path, &folder, &file, Some(&examined), None)?;
    Ok(path)
}
