//! The settings of a training run: from flags, from a `--config` file with the same keys, from defaults, in this order.
//!
//! Flags and file are one struct, so they cannot drift apart. A value that is wrong by itself is a usage error on the
//! command line and a data error, with the line, in a file.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::input::Source;
use crate::data::text::TokenizerKind;
use crate::data::{Augment, ClassWeights, ImageOptions, Sampler, SplitOptions, Task};
use crate::optim::Capture;
use crate::train::lm::GptSpec;
use crate::train::{Hidden, Network, OptimizerKind, PrecisionKind, ScheduleSpec, TrainConfig};
use crate::{Device, Error, ErrorKind, Result};

/// A task, or the one that fits the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TaskChoice {
    /// A text target or at most 20 distinct integers: classes; else regression
    Auto,
    /// Two classes, one logit
    Binary,
    /// One of several classes
    Multiclass,
    /// A number
    Regression,
    /// The next token of a text
    Lm,
}

impl TaskChoice {
    /// The task; nothing for auto.
    pub(super) fn task(self) -> Option<Task> {
        match self {
            TaskChoice::Auto | TaskChoice::Lm => None,
            TaskChoice::Binary => Some(Task::Binary),
            TaskChoice::Multiclass => Some(Task::Multiclass),
            TaskChoice::Regression => Some(Task::Regression),
        }
    }
}

/// What one layer (flags or file) says; nothing where it does not say.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Settings {
    /// What to learn from: digits (built in), fashion-mnist (installed), a CSV file (.gz too), a matrix and its targets, an
    /// archive of x and y (or x_train, y_train, x_test, y_test), a folder of IDX files, or one with a folder of pictures for
    /// each class; text: text (built in), a text file (.gz too), or token shards
    #[arg(long, value_name = "digits|fashion-mnist|F.csv|X.npy,Y.npy|F.npz|DIR", help_heading = "Data")]
    pub(super) data: Option<String>,
    /// The column to learn [default: the last one]
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    pub(super) target: Option<String>,
    /// What is learnt [default: auto]
    #[arg(long, value_enum, help_heading = "Data")]
    pub(super) task: Option<TaskChoice>,
    /// A test part of its own, of the kind of --data; none is cut from --data then
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub(super) test_data: Option<String>,
    /// The share of the rows that is set aside to test the finished model [default: 0.2]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Data")]
    pub(super) test_split: Option<f64>,
    /// The share of the other rows that picks the best epoch and stops early [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Data")]
    pub(super) val_split: Option<f64>,
    /// Text: char (those of the text), byte, or gpt2 [default: char; --model gpt2: gpt2; shards: what made
    /// them]
    #[arg(long, value_name = "char|byte|gpt2", help_heading = "Data")]
    pub(super) tokenizer: Option<TokenizerKind>,
    /// Use only the first N rows
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Data")]
    pub(super) limit: Option<usize>,
    /// Resize picture files to this height and width [default: all must have the same size]
    #[arg(long, value_name = "HxW", help_heading = "Data")]
    pub(super) image_size: Option<String>,
    /// Convert picture files to grey (1) or colour (3) [default: all must be alike]
    #[arg(long, value_name = "1|3", help_heading = "Data")]
    pub(super) channels: Option<usize>,

    /// mlp:WIDTH,…, cnn[:CHANNELS,…], resnet:18|34|50, lstm:WIDTH[xLAYERS], gru:…, rnn:…, or a TOML file that describes a
    /// network layer by layer; text: gpt:LAYERSxHEADSxWIDTH, gpt2, or a TOML file [default: mlp:256,128; text: gpt:4x4x128]
    #[arg(long, value_name = "NAME|F.toml", help_heading = "Model")]
    pub(super) model: Option<String>,
    /// Text: start from GPT-2 weights as Hugging Face keeps them, a folder or a file with its config.json beside it, which says
    /// what the model is; the tokenizer is gpt2 then, unless another is given
    #[arg(long, value_name = "DIR|F.safetensors", help_heading = "Model")]
    pub(super) init: Option<PathBuf>,
    /// The activation behind each hidden layer, of mlp and cnn [default: relu]
    #[arg(long, value_enum, help_heading = "Model")]
    pub(super) activation: Option<Hidden>,
    /// The probability with which training drops a hidden value [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Model")]
    pub(super) dropout: Option<f64>,

    /// [default: adam; text: adamw]
    #[arg(long, value_enum, help_heading = "Training")]
    pub(super) optimizer: Option<OptimizerKind>,
    /// Text: the tokens that the model sees at once [default: 64; gpt2: 1024]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, help_heading = "Model")]
    pub(super) context: Option<usize>,
    /// Text: optimiser steps, in total [default: 2000]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) steps: Option<u64>,
    /// Text: steps between two looks at the validation part; 0: at the end only [default: 250]
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) eval_every: Option<u64>,
    /// Text: into how many parts a batch is cut, to save memory [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) micro_batches: Option<usize>,
    /// Text: compute again in backward what a block did, instead of keeping it
    #[arg(long, help_heading = "Training")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) recompute: bool,
    /// Text: whether a step is recorded once and replayed, on a GPU [default: auto]
    #[arg(long, value_enum, value_name = "on|off|auto", help_heading = "Run")]
    pub(super) capture: Option<Capture>,
    /// Learning rate [default: 0.001; sgd: 0.01]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) lr: Option<f64>,
    /// Weight decay [default: 0; adamw: 0.01; text: 0.1]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) weight_decay: Option<f64>,
    /// Momentum, of sgd and rmsprop [default: sgd 0.9, rmsprop 0]
    #[arg(long, value_name = "M", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) momentum: Option<f64>,
    /// constant, linear[:END_FACTOR], cosine[:MIN_LR], step:EPOCHS[,GAMMA], exponential[:GAMMA], one-cycle or
    /// plateau[:FACTOR[,PATIENCE]] [default: constant; text: cosine:0.0001]
    #[arg(long, help_heading = "Training")]
    pub(super) schedule: Option<ScheduleSpec>,
    /// Epochs (or a fraction of one; text: steps) over which the rate rises from 0 [default: 0; text: 100]
    #[arg(long, value_name = "EPOCHS", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) warmup: Option<f64>,
    /// The epochs that the schedule is laid out for, where more may follow [default: --epochs]
    #[arg(long, value_name = "EPOCHS", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) horizon: Option<u64>,
    /// With more than two classes, the share of certainty spread over all of them in training [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) label_smoothing: Option<f64>,
    /// How training rows are changed at random: of flip, crop:PIXELS, shift:PIXELS, rotate:DEGREES, noise:DEVIATION,
    /// cutout:PIXELS and mixup:ALPHA some; tables take noise and mixup [default: none]
    #[arg(long, value_name = "flip,crop:4,…", help_heading = "Training")]
    pub(super) augment: Option<Augment>,
    /// Factors of the training loss, a number for each class in sorted order, or balanced [default: none]
    #[arg(long, value_name = "balanced|W,W,…", allow_hyphen_values = true, help_heading = "Training")]
    pub(super) class_weights: Option<ClassWeights>,
    /// [default: shuffled]
    #[arg(long, value_enum, help_heading = "Training")]
    pub(super) sampler: Option<Sampler>,
    /// The largest global norm of the gradients [default: none; text: 1]
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) clip: Option<f64>,
    /// In which types the network is computed and kept [default: f32]
    #[arg(long, value_enum, help_heading = "Training")]
    pub(super) precision: Option<PrecisionKind>,
    /// The most epochs, in total [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) epochs: Option<u64>,
    /// Rows a step [default: 32, fewer if the training part is smaller; text: 12 windows]
    #[arg(long, value_name = "ROWS", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) batch: Option<usize>,
    /// Decides all random choices: the split, the initial weights, the order of the rows [default: 42]
    #[arg(long, allow_negative_numbers = true, help_heading = "Training")]
    pub(super) seed: Option<u64>,
    /// Stop after this many epochs without a better validation loss; 0: never [default: 6]
    #[arg(long, value_name = "EPOCHS", allow_negative_numbers = true, help_heading = "Training")]
    pub(super) patience: Option<u64>,

    /// auto, cpu or cuda[:N] [default: auto]
    #[arg(long, help_heading = "Run")]
    pub(super) device: Option<String>,
    /// CPU threads; the result does not depend on it [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Run")]
    pub(super) threads: Option<usize>,
    /// The model folder to write; a model there is replaced by the finished one only, and checkpoints go to DIR.partial
    /// until then [default: runs/<data>-<model>]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub(super) out: Option<PathBuf>,
    /// Go on with the run in DIR, to --epochs in total; all other settings are the folder's
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub(super) resume: Option<PathBuf>,
    /// Write TensorBoard events to this folder, outside the model's; those of another run there are replaced
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub(super) tensorboard: Option<PathBuf>,
    /// Write report.html to the model folder: curves, confusion matrix, worst answers
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) report: bool,
    /// Print the result as one JSON object
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) json: bool,
    /// No progress and no notes
    #[arg(long, short, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) quiet: bool,
}

impl Settings {
    /// `flags` over the file `config`, each checked.
    pub(super) fn layered(flags: Settings, config: Option<&Path>) -> Result<Settings> {
        flags.check()?;
        let mut table = match config {
            Some(file) => {
                let text =
                    std::fs::read_to_string(file).map_err(|e| Error::io(file, "read the settings", e))?;
                let table = toml::from_str(&text).map_err(|e| toml_error(file, &text, &e))?;
                read_config(file, &text, &table)?;
                table
            }
            None => toml::Table::new(),
        };
        table.extend(flags.to_table()?);
        let settings = Settings::from_table(table).map_err(|e| Error::internal(e.message()))?;
        settings.check_together()?;
        Ok(settings)
    }

    pub(super) fn to_table(&self) -> Result<toml::Table> {
        // Numbers beyond TOML's were refused by `check`.
        toml::Table::try_from(self)
            .map_err(|e| Error::internal("settings cannot be written as TOML").caused_by(e))
    }

    pub(super) fn from_table(table: toml::Table) -> Result<Settings, toml::de::Error> {
        table.try_into()
    }

    /// Refuses values that are wrong by themselves. Opens no file but a model description.
    pub(super) fn check(&self) -> Result<()> {
        self.train_config().check()?;
        if let Some(dropout) = self.dropout.filter(|p| !(0.0..1.0).contains(p)) {
            return Err(Error::argument(format!("dropout {dropout} is not in [0, 1)")));
        }
        for (flag, share) in [("--test-split", self.test_split), ("--val-split", self.val_split)] {
            if let Some(share) = share.filter(|share| !(0.0..1.0).contains(share)) {
                return Err(Error::argument(format!(
                    "{flag} {share}: expected a share of at least 0 and below 1"
                )));
            }
        }
        for (flag, count) in [("--limit", self.limit), ("--threads", self.threads)] {
            if count == Some(0) {
                return Err(Error::argument(format!("{flag} 0: expected at least 1")));
            }
            if count.is_some_and(|n| i64::try_from(n).is_err()) {
                return Err(Error::argument(format!("{flag}: the number is too large")));
            }
        }
        self.image_options()?.check()?;
        for (flag, text) in [("--data", &self.data), ("--test-data", &self.test_data)] {
            if let Some(text) = text {
                Source::parse(text).map_err(|e| e.context(flag))?;
            }
        }
        let named = |model: &&str| !is_description(model);
        if let Some(model) = self.model.as_deref().filter(named) {
            // What goes with what is judged when all settings are together.
            if model.starts_with("gpt") {
                return model.parse::<GptSpec>().map(drop).map_err(|e| e.context("--model"));
            }
            Network::by_name(model, None, None).map_err(|e| e.context("--model"))?;
        }
        match self.device.as_deref().map(str::parse::<Device>) {
            // Whether there is such a device is no matter of spelling: found out when it is opened.
            Some(Err(e)) if e.kind() == ErrorKind::Argument => Err(e.context("--device")),
            _ => Ok(()),
        }
    }

    /// Whether the optimiser has a momentum.
    pub(super) fn has_momentum(&self) -> bool {
        !matches!(self.optimizer.unwrap_or_default(), OptimizerKind::Adam | OptimizerKind::AdamW)
    }

    /// Refuses settings that contradict each other.
    pub(super) fn check_together(&self) -> Result<()> {
        if self.momentum.is_some() && self.resume.is_none() && !self.has_momentum() {
            return Err(Error::argument("--momentum is for sgd and rmsprop; adam and adamw have none")
                .with_help("add --optimizer sgd, or leave --momentum out"));
        }
        if self.test_data.is_some() && self.test_split.is_some_and(|share| share > 0.0) {
            return Err(Error::argument("--test-data and --test-split contradict each other")
                .with_help("the test part is either a table of its own or cut from --data"));
        }
        Ok(())
    }

    /// The settings of training, defaults where none were given.
    pub(super) fn train_config(&self) -> TrainConfig {
        let default = TrainConfig::default();
        let optimizer = self.optimizer.unwrap_or(default.optimizer);
        let epochs = self.epochs.unwrap_or(default.epochs);
        TrainConfig {
            optimizer,
            lr: self.lr.unwrap_or_else(|| optimizer.default_lr()),
            weight_decay: self.weight_decay.unwrap_or_else(|| optimizer.default_weight_decay()),
            momentum: self.momentum.unwrap_or_else(|| optimizer.default_momentum()),
            schedule: self.schedule.unwrap_or(default.schedule),
            warmup: self.warmup.unwrap_or(default.warmup),
            horizon: self.horizon.unwrap_or(epochs),
            horizon_given: self.horizon.is_some(),
            label_smoothing: self.label_smoothing.unwrap_or(default.label_smoothing),
            clip: self.clip.or(default.clip),
            precision: self.precision.unwrap_or(default.precision),
            epochs,
            batch: self.batch.unwrap_or(default.batch),
            seed: self.seed.unwrap_or(default.seed),
            patience: self.patience.unwrap_or(default.patience),
            augment: self.augment.clone().unwrap_or(default.augment),
            class_weights: self.class_weights.clone(),
            sampler: self.sampler.unwrap_or(default.sampler),
        }
    }

    /// How picture files are read, defaults where nothing was given.
    ///
    /// # Errors
    /// Kind `Argument`: the size is not HxW.
    pub(super) fn image_options(&self) -> Result<ImageOptions> {
        let size = |text: &String| {
            let sides = text.split_once('x').and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
            sides.ok_or_else(|| {
                Error::argument(format!("--image-size {text}: expected a height and a width as in 28x28"))
            })
        };
        let size = self.image_size.as_ref().map(size).transpose()?;
        Ok(ImageOptions { size, channels: self.channels, limit: self.limit })
    }

    /// How rows are divided, defaults where nothing was given.
    pub(super) fn split(&self) -> SplitOptions {
        let default = SplitOptions::default();
        SplitOptions {
            seed: self.train_config().seed,
            test: self.test_split.unwrap_or(default.test),
            validation: self.val_split.unwrap_or(default.validation),
        }
    }

    /// The network that `--model`, `--activation` and `--dropout` say, defaults where nothing was given.
    ///
    /// # Errors
    /// Kind `Argument`: `--model` is neither a network's name nor a TOML file that exists, or the network has no place for an
    /// activation or dropout of its own; kind `Data`: the file is bad.
    pub(super) fn network(&self) -> Result<Network> {
        let (activation, dropout) = (self.activation, self.dropout);
        match self.model.as_deref() {
            None => Ok(Network::mlp(&[256, 128], activation.unwrap_or_default(), dropout.unwrap_or(0.0))),
            Some(file) if is_description(file) => read_network(Path::new(file), activation, dropout),
            Some(name) => Network::by_name(name, activation, dropout).map_err(|e| e.context("--model")),
        }
    }
}

/// Whether a model's text is the name of a file that is there.
pub(super) fn is_description(model: &str) -> bool {
    model.ends_with(".toml") && Path::new(model).is_file()
}

/// The settings in `table` of the file `file`. Each value is checked by itself, so that an error can name its line.
pub(super) fn read_config(file: &Path, text: &str, table: &toml::Table) -> Result<Settings> {
    let spans = DeTable::parse(text).map_err(|e| toml_error(file, text, &e))?;
    let line = |key: &str| {
        let key = spans.get_ref().keys().find(|k| k.get_ref() == key);
        key.map(|k| line_of(text, k.span().start))
    };
    for (key, value) in table {
        let one = toml::Table::from_iter([(key.clone(), value.clone())]);
        let fault = match Settings::from_table(one) {
            Err(e) => Some(e.message().replace("unknown field", "unknown key")),
            Ok(settings) => settings.check().err().map(|e| e.message().to_owned()),
        };
        if let Some(fault) = fault {
            return Err(Error::data(file, format!("key '{key}': {fault}")).at(
                file,
                line(key),
                None::<String>,
            ));
        }
    }
    Settings::from_table(table.clone()).map_err(|e| Error::internal(e.message()))
}

/// The network that a TOML file describes.
pub(super) fn read_network(file: &Path, activation: Option<Hidden>, dropout: Option<f64>) -> Result<Network> {
    let text =
        std::fs::read_to_string(file).map_err(|e| Error::io(file, "read the model's description", e))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let network = Network::from_toml(&text, &name, activation, dropout)
        .map_err(|e| e.context(format!("--model {}", file.display())))?
        .map_err(|e| {
            layer_error(file, &text, &e).with_help(
                "expected [[layers]] with a type each, or hidden = [256, 128] (activation, dropout)",
            )
        })?;
    network.check().map_err(|e| Error::data(file, e.message()))?;
    Ok(network)
}

/// As [`toml_error`]; a fault within a layer stands in that layer's line, not where the list begins.
fn layer_error(file: &Path, text: &str, error: &toml::de::Error) -> Error {
    let layer = error.message().strip_prefix("layer ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let start = |index: usize| {
        let table = DeTable::parse(text).ok()?;
        Some(table.get_ref().get("layers")?.get_ref().as_array()?.get(index)?.span().start)
    };
    match layer.and_then(start) {
        Some(at) => {
            Error::data(file, error.message().trim_end()).at(file, Some(line_of(text, at)), None::<String>)
        }
        None => toml_error(file, text, error),
    }
}

pub(super) fn toml_error(file: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| line_of(text, span.start));
    Error::data(file, error.message().trim_end()).at(file, line, None::<String>)
}

/// The line, from 1, of the byte at `offset`.
pub(super) fn line_of(text: &str, offset: usize) -> u64 {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Settings {
        Settings::from_table(toml::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let file = std::env::temp_dir().join(format!("warpsmith-settings-{}.toml", std::process::id()));
        std::fs::write(&file, "lr = 1\nepochs = 7\nquiet = true\n").unwrap();
        let settings = Settings::layered(given("epochs = 3"), Some(&file)).unwrap();
        std::fs::remove_file(&file).unwrap();
        let config = settings.train_config();
        assert_eq!((config.lr, config.epochs, config.batch), (1.0, 3, TrainConfig::default().batch));
        assert_eq!((config.horizon, config.horizon_given, settings.quiet), (3, false, true));
    }

    #[test]
    fn settings_come_back_from_a_table() {
        let settings = given(
            "data = 'a.csv'\nschedule = 'step:3,0.5'\noptimizer = 'rmsprop'\ntask = 'auto'\nval-split = 0",
        );
        assert_eq!(Settings::from_table(settings.to_table().unwrap()).unwrap(), settings);
    }

    #[test]
    fn defaults_follow_the_optimizer() {
        let sgd = given("optimizer = 'sgd'").train_config();
        assert_eq!((sgd.lr, sgd.momentum, sgd.weight_decay), (0.01, 0.9, 0.0));
        assert_eq!(given("optimizer = 'adamw'").train_config().weight_decay, 0.01);
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for text in [
            "lr = 0.0",
            "lr = -1.0",
            "lr = nan",
            "batch = 0",
            "epochs = 0",
            "model = 'mlp:0'",
            "model = 'resnet'",
            "model = 'absent.toml'",
            "dropout = 1.0",
            "test-split = 1.0",
            "val-split = -0.1",
            "limit = 0",
            "threads = 0",
            "device = 'tpu'",
            "clip = 0.0",
            "momentum = 1.0",
            "data = ''",
            "warmup = -1.0",
            "horizon = 0",
            "image-size = '28'",
            "image-size = '0x28'",
            "channels = 2",
        ] {
            let error = given(text).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{text}: {error}");
        }
        for text in ["momentum = 0.5", "test-data = 'a.csv'\ntest-split = 0.2"] {
            assert_eq!(given(text).check_together().unwrap_err().kind(), ErrorKind::Argument, "{text}");
        }
    }
}
