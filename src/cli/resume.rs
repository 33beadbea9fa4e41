//! `warpsmith train --resume DIR`: the run in a folder goes on as if it had never stopped.
//!
//! All settings come from the folder. One that is given anew must be the same: a model that was trained half with one
//! setting and half with another is nobody's wish. What may differ: the number of epochs, patience, and where and how it runs.

#![forbid(unsafe_code)]

use std::path::Path;

use super::input::Source;
use super::output::Log;
use super::settings::Settings;
use super::train::{Run, build};
use crate::io::folder;
use crate::train::checkpoint::{self, ModelFile};
use crate::train::network::LayerKind;
use crate::train::{Network, TrainConfig, Trainer};
use crate::{Device, Error, Result};

/// Settings that say where and how a run runs, or for how long, and not what it computes; and those of the network, which are
/// judged together.
const FREE: [&str; 13] = [
    "epochs",
    "patience",
    "device",
    "threads",
    "out",
    "resume",
    "tensorboard",
    "report",
    "json",
    "quiet",
    "model",
    "activation",
    "dropout",
];

/// The text that names stdin as data.
const STDIN: &str = "-";

/// Prepares the run in `dir` to go on.
pub(super) fn prepare(given: &Settings, dir: &Path, device: Device, log: Log) -> Result<Run> {
    let (folder, file) = checkpoint::open(dir)?;
    if folder.is_fallback() {
        log.note(&format!("{} is not whole; going on from {}", dir.display(), folder.path().display()));
    }
    let saved = saved_settings(&file, folder.path())?;
    refuse_contradictions(given, &saved, &file)?;
    let config = resumed_config(given, &file.training)?;
    let out = given.out.clone().unwrap_or_else(|| dir.to_owned());
    folder::check_writable(&out)?;

    for (flag, given, saved) in
        [("data", &given.data, &saved.data), ("test-data", &given.test_data, &saved.test_data)]
    {
        if given.is_none() && saved.as_deref() == Some(STDIN) {
            let message = format!("{} was trained on data from stdin, which is gone", dir.display());
            return Err(Error::argument(message).with_help(format!(
                "give the same rows again: --{flag} FILE, or --{flag} {STDIN} to read them from stdin"
            )));
        }
    }
    // The same file by another name, or moved: the checksum of the data decides whether it is the same.
    let settings = Settings {
        data: given.data.clone().or(saved.data.clone()),
        test_data: given.test_data.clone().or(saved.test_data.clone()),
        ..saved
    };
    let source = Source::parse(settings.data.as_deref().unwrap_or("digits"))?;
    let (data, _) = build(&settings, &source, log)?;
    let title = format!("{} on {}, from {}", file.architecture.network, source.stem(), dir.display());
    let trainer = Trainer::resume(data, &folder, file, config.clone(), device, &out)?;
    let done = trainer.progress().epoch;
    if config.epochs < done {
        let message =
            format!("--epochs {}: the model in {} has been trained for {done}", config.epochs, dir.display());
        return Err(
            Error::argument(message).with_help("--epochs counts all epochs, those of the first run included")
        );
    }
    if trainer.progress().stopped_early {
        let best = trainer.progress().best_epoch;
        log.note(&format!(
            "nothing to train: the run stopped early at epoch {done}, the best one being {best}; \
             give --patience (now {}; 0: never stop) to go on",
            config.patience
        ));
    } else if done == config.epochs {
        log.note(&format!("nothing to train: all {done} epochs are done; give --epochs to go on"));
    }
    Ok(Run { trainer, out, config, title })
}

/// What the folder says, as the flags that would have said it.
pub(super) fn saved_settings(file: &ModelFile, folder: &Path) -> Result<Settings> {
    let source = Settings::from_table(file.source.clone()).map_err(|e| {
        Error::data(folder.join(folder::MODEL), format!("[source]: {}", e.message()))
            .with_help("the model was not trained by this program, so it does not know how to go on")
    })?;
    let training = &file.training;
    Ok(Settings {
        optimizer: Some(training.optimizer),
        lr: Some(training.lr),
        weight_decay: Some(training.weight_decay),
        momentum: Some(training.momentum),
        schedule: Some(training.schedule),
        warmup: Some(training.warmup),
        horizon: Some(training.horizon),
        label_smoothing: Some(training.label_smoothing),
        clip: training.clip,
        precision: Some(training.precision),
        batch: Some(training.batch),
        seed: Some(training.seed),
        patience: Some(training.patience),
        augment: Some(training.augment.clone()),
        class_weights: training.class_weights.clone(),
        sampler: Some(training.sampler),
        ..source
    })
}

fn refuse_contradictions(given: &Settings, saved: &Settings, file: &ModelFile) -> Result<()> {
    let contradiction = |key: &str, given: &str, saved: &str| {
        Error::argument(format!("--{key} {given}: the model to resume was trained with {saved}"))
            .with_help("leave the flag out to go on as before, or train a new model without --resume")
    };
    let built = &file.architecture.network;
    if given.model.is_some() || given.activation.is_some() || given.dropout.is_some() {
        let asked = Settings {
            model: given.model.clone().or(saved.model.clone()),
            activation: given.activation.or(saved.activation),
            dropout: given.dropout.or(saved.dropout),
            ..Settings::default()
        };
        // What a description's file is called now does not matter.
        let network = Network { name: built.name.clone(), ..asked.network()? };
        if network != *built {
            let wanted = described(&asked.network()?);
            return Err(match (&given.model, &given.activation) {
                (Some(model), _) if *model == network.name => {
                    contradiction("model", &wanted, &described(built))
                }
                (Some(model), _) => contradiction("model", &format!("{model}: {wanted}"), &described(built)),
                (None, Some(_)) => contradiction("activation", &wanted, &described(built)),
                (None, None) => contradiction("dropout", &wanted, &described(built)),
            });
        }
    }
    let saved_table = saved.to_table()?;
    for (key, value) in given.to_table()? {
        if FREE.contains(&key.as_str()) || saved_table.get(&key) == Some(&value) {
            continue;
        }
        let text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let (value, before) = (text(&value), saved_table.get(&key).map_or_else(|| "none".to_owned(), text));
        let agrees = match key.as_str() {
            "task" => value == "auto",
            "data" | "test-data" => {
                saved_table.contains_key(&key) && (before == STDIN || same_files(&value, &before))
            }
            _ => false,
        };
        if !agrees {
            return Err(contradiction(&key, &value, &before));
        }
    }
    Ok(())
}

/// A network's name, its first activation and its first dropout: `mlp:16 (tanh, dropout 0.1)`.
fn described(network: &Network) -> String {
    let kinds = || network.layers.iter().map(|layer| &layer.kind);
    let activation = kinds().find(|kind| kind.activation().is_some()).map(LayerKind::to_string);
    let dropout = kinds().find(|kind| matches!(kind, LayerKind::Dropout { .. })).map(LayerKind::to_string);
    let said: Vec<String> = activation.into_iter().chain(dropout).collect();
    if said.is_empty() { network.name.clone() } else { format!("{network} ({})", said.join(", ")) }
}

/// Whether two texts name the same files, or the second names files that are no longer there.
fn same_files(given: &str, before: &str) -> bool {
    let (Ok(given), Ok(before)) = (Source::parse(given), Source::parse(before)) else { return false };
    let (a, b) = (given.files(), before.files());
    let same = |(a, b): (&&Path, &&Path)| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        (_, b) => b.is_err(),
    };
    !a.is_empty() && a.len() == b.len() && a.iter().zip(&b).all(same)
}

fn resumed_config(given: &Settings, saved: &TrainConfig) -> Result<TrainConfig> {
    let epochs = given.epochs.unwrap_or(saved.epochs);
    let patience = given.patience.unwrap_or(saved.patience);
    let fixed = saved.schedule.needs_horizon() || saved.horizon_given;
    if epochs > saved.epochs && saved.schedule.needs_horizon() && !saved.horizon_given {
        let message = format!(
            "--epochs {epochs}: the schedule {} was laid out for {} epochs by the first run",
            saved.schedule, saved.horizon
        );
        return Err(Error::argument(message)
            .with_help("train anew, with --horizon for the epochs of all runs together"));
    }
    let horizon = if fixed { saved.horizon } else { epochs };
    Ok(TrainConfig { epochs, patience, horizon, ..saved.clone() })
}
