//! Networks as descriptions: a stack of layers, from a name or a TOML file, kept whole in a model's file.
//!
//! ```toml
//! input = "image"            # or "flat", "sequence"; as the data has it where nothing is said
//!
//! [[layers]]
//! type = "conv2d"            # PyTorch's modules in snake case, their arguments by name
//! out_channels = 32
//! kernel_size = 3
//! padding = 1
//!
//! [[layers]]
//! type = "relu"
//!
//! [[layers]]
//! type = "flatten"
//! ```
//!
//! Behind the last layer comes the head, a linear layer to as many numbers as the task needs. Layers take their names, and so
//! their parameters', from their position as in `torch.nn.Sequential`, or from `name`. A description of an MLP may also be the
//! three keys `hidden`, `activation` and `dropout`.

#![forbid(unsafe_code)]

mod build;
mod layer;
mod named;
mod shapes;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::spec::Hidden;
use crate::{Error, ErrorKind, Result, Tensor};

pub use build::SummaryRow;
pub(super) use build::build;
pub use layer::{
    AvgPoolLayer, BatchNormLayer, ConvLayer, ConvTransposeLayer, Layer, LayerKind, MaxPoolLayer,
    RecurrentLayer, Sizes, Steps, UpsampleMode,
};
pub use named::NAMES;
pub use shapes::output_shape;

/// As what the first layer sees an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputForm {
    /// As the data has it.
    #[default]
    AsIs,
    /// As one row of numbers.
    Flat,
    /// As `[channels, height, width]`; other data is refused.
    Image,
    /// As `[steps, features]`: of a row of numbers each is a step, of a picture each row (over all channels) is.
    Sequence,
}

/// A network between an example and the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What it is called, such as `mlp:256,128`.
    pub name: String,
    /// As what it sees an example.
    #[serde(default)]
    pub input: InputForm,
    /// The name of the linear layer to the answers, its position where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// All layers before the head.
    #[serde(with = "layer::list")]
    pub layers: Vec<Layer>,
}

impl Default for Network {
    fn default() -> Network {
        Network::mlp(&[256, 128], Hidden::default(), 0.0)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Network> {
        Network::by_name(text, None, None)
    }
}

/// The short description of an MLP.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MlpFile {
    hidden: Vec<usize>,
    #[serde(default)]
    activation: Option<Hidden>,
    #[serde(default)]
    dropout: Option<f64>,
}

/// The description of a stack of layers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StackFile {
    #[serde(default)]
    input: InputForm,
    #[serde(default)]
    head: Option<String>,
    #[serde(with = "layer::list")]
    layers: Vec<Layer>,
}

impl Network {
    /// Reads a description. `activation` and `dropout`, if given, stand in for those that the description of an MLP leaves
    /// out or has; the outer error is a fault of these, the inner one of the text.
    ///
    /// # Errors
    /// Kind `Argument`: `activation` or `dropout` are given for a stack of layers.
    pub fn from_toml(
        text: &str,
        name: &str,
        activation: Option<Hidden>,
        dropout: Option<f64>,
    ) -> Result<Result<Network, toml::de::Error>> {
        let table = match toml::from_str::<toml::Table>(text) {
            Ok(table) => table,
            Err(e) => return Ok(Err(e)),
        };
        if !table.contains_key("layers") {
            let file = match toml::from_str::<MlpFile>(text) {
                Ok(file) => file,
                Err(e) => return Ok(Err(e)),
            };
            let activation = activation.or(file.activation).unwrap_or_default();
            return Ok(Ok(Network::mlp(&file.hidden, activation, dropout.or(file.dropout).unwrap_or(0.0))));
        }
        if activation.is_some() || dropout.is_some() {
            return Err(Error::argument(
                "a network described layer by layer has its activations and dropout fixed",
            )
            .with_help("leave --activation and --dropout out, and change the description"));
        }
        let network = |file: StackFile| {
            let StackFile { input, head, layers } = file;
            Network { name: name.to_owned(), input, head, layers }
        };
        Ok(toml::from_str(text).map(network))
    }

    /// Checks the settings that are wrong whatever the example.
    ///
    /// # Errors
    /// Kind `Argument`: a linear layer of width 0, a dropout that is no probability, two layers of one name.
    pub fn check(&self) -> Result<()> {
        let mut names = Names::default();
        check(&self.layers, "", &mut names)?;
        let head = self.head.clone().unwrap_or_else(|| self.layers.len().to_string());
        if !layer::list::is_name(&head) {
            return Err(Error::argument(format!("head {head:?}: expected letters, digits and _")));
        }
        names.add(head).map_err(|e| e.context("the head"))
    }

    /// The shape that the first layer sees of an example of shape `example`.
    ///
    /// # Errors
    /// Kind `Argument`: such an example cannot be seen so.
    pub fn seen(&self, example: &[usize]) -> Result<Vec<usize>> {
        shapes::numel("the network", example)?;
        match (self.input, example) {
            (InputForm::AsIs, _) | (InputForm::Image, [_, _, _]) | (InputForm::Sequence, [_, _]) => {
                Ok(example.to_vec())
            }
            (InputForm::Flat, _) => Ok(vec![example.iter().product()]),
            (InputForm::Sequence, &[steps]) => Ok(vec![steps, 1]),
            (InputForm::Sequence, &[channels, height, width]) => Ok(vec![height, channels * width]),
            (InputForm::Image, _) => Err(Error::argument(format!(
                "{self} sees pictures [channels, height, width]; an example of this data has the shape {example:?}"
            ))
            .with_help("train on pictures: digits, an IDX folder, a folder of pictures, an .npy of rank 3 or 4")),
            (InputForm::Sequence, _) => Err(Error::argument(format!(
                "{self} sees sequences [steps, features]; an example of this data has the shape {example:?}"
            ))),
        }
    }

    /// Examples `[rows, ..]`, each of shape `example`, as the first layer sees them. `x` has one dimension an example's, or
    /// all numbers of an example in one.
    #[track_caller]
    pub(super) fn see(&self, x: &Tensor, example: &[usize]) -> Result<Tensor> {
        let seen = self.seen(example)?;
        let rows = x.dims().first().copied().unwrap_or(1);
        let all = |shape: &[usize]| [&[rows], shape].concat();
        match (self.input, example) {
            // A step has a row of every channel.
            (InputForm::Sequence, &[channels, _, _]) if channels > 1 => {
                x.reshape(all(example))?.transpose(1, 2)?.contiguous()?.reshape(all(&seen))
            }
            _ => x.reshape(all(&seen)),
        }
    }

    /// The shape behind the last layer, before the head.
    ///
    /// # Errors
    /// Kind `Argument`: a layer cannot take what comes to it. The message names the layer.
    pub fn output_shape(&self, example: &[usize]) -> Result<Vec<usize>> {
        output_shape(&self.layers, &self.seen(example)?)
    }

    /// Whether some layer normalises single numbers over the batch, so that training needs more than one row a step.
    ///
    /// # Errors
    /// As [`Network::output_shape`].
    pub fn needs_two_rows(&self, example: &[usize]) -> Result<bool> {
        fn any(layers: &[Layer], input: &[usize]) -> Result<bool> {
            let mut shape = input.to_vec();
            for layer in layers {
                let found = match &layer.kind {
                    LayerKind::BatchNorm1d(_) | LayerKind::BatchNorm2d(_) => {
                        shape.iter().skip(1).product::<usize>() == 1
                    }
                    LayerKind::Sequential { layers } => any(layers, &shape)?,
                    LayerKind::Residual { layers, shortcut } => {
                        any(layers, &shape)? || any(shortcut, &shape)?
                    }
                    _ => false,
                };
                if found {
                    return Ok(true);
                }
                shape = layer.kind.output_shape(&shape)?;
            }
            Ok(false)
        }
        any(&self.layers, &self.seen(example)?)
    }

    /// As [`Network::check`] and [`Network::output_shape`], for what was read from a file: errors are of kind `Data`.
    pub(super) fn check_read(&self, example: &[usize]) -> Result<()> {
        let checked = self.check().and_then(|()| self.output_shape(example));
        checked.map(|_| ()).map_err(|e| Error::new(ErrorKind::Data, e.message()))
    }
}

/// Checks `layers` by themselves and adds the names that their parameters start with; a position comes behind `positions`.
fn check(layers: &[Layer], positions: &str, names: &mut Names) -> Result<()> {
    for (i, layer) in layers.iter().enumerate() {
        let at = |e: Error| e.context(format!("layer {i} ({})", layer.kind.type_name()));
        if layer.name.is_some() || layer.kind.has_parameters() {
            names.add(layer.name.clone().unwrap_or_else(|| format!("{positions}{i}"))).map_err(at)?;
        }
        match &layer.kind {
            LayerKind::Linear { out_features: 0, .. } => {
                return Err(at(Error::argument("a layer of width 0 passes nothing on")));
            }
            LayerKind::Dropout { p } if !(0.0..1.0).contains(p) => {
                return Err(at(Error::argument(format!("dropout {p} is not in [0, 1)"))));
            }
            LayerKind::Sequential { layers } => check(layers, "", &mut Names::default()).map_err(at)?,
            LayerKind::Residual { layers, shortcut } => {
                let mut names = Names::default();
                check(layers, "", &mut names)
                    .and_then(|()| check(shortcut, "shortcut.", &mut names))
                    .map_err(at)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Names of layers that stand side by side.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    /// Errors where parameters of two layers could be called the same: `shortcut` has those of `shortcut.0` below it.
    fn add(&mut self, name: String) -> Result<()> {
        let below =
            |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if self.0.iter().any(|other| below(other, &name) || below(&name, other)) {
            return Err(Error::argument(format!("a layer before it is called {name:?} too")));
        }
        self.0.push(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
