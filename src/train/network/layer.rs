//! One layer of a described network: its kinds with their settings, as they stand in TOML.
//!
//! Names of kinds are PyTorch's modules' in snake case, names of settings those of their arguments; so are the defaults.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::spec::Hidden;
use crate::nn::Activation;

/// A layer: its kind and the name that its parameters' names start with, its position where none is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The name, such as `conv1`.
    pub name: Option<String>,
    /// What it is.
    pub kind: LayerKind,
}

impl From<LayerKind> for Layer {
    fn from(kind: LayerKind) -> Layer {
        Layer { name: None, kind }
    }
}

impl LayerKind {
    /// A layer of this kind with a name.
    pub fn named(self, name: impl Into<String>) -> Layer {
        Layer { name: Some(name.into()), kind: self }
    }
}

/// A size in each of `N` dimensions: in TOML a number for all, or a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes<const N: usize>(pub [usize; N]);

impl<const N: usize> Sizes<N> {
    fn one() -> Sizes<N> {
        Sizes([1; N])
    }

    fn zero() -> Sizes<N> {
        Sizes([0; N])
    }
}

impl<const N: usize> Serialize for Sizes<N> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.0.iter().all(|&n| n == self.0[0]) { self.0[0].serialize(s) } else { self.0[..].serialize(s) }
    }
}

impl<'de, const N: usize> Deserialize<'de> for Sizes<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Sizes<N>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            All(usize),
            Each(Vec<usize>),
        }
        let expected = || serde::de::Error::custom(format!("expected a size, or a list of {N} sizes"));
        match Form::deserialize(d).map_err(|_: D::Error| expected())? {
            Form::All(n) => Ok(Sizes([n; N])),
            Form::Each(list) => list.try_into().map(Sizes).map_err(|_| expected()),
        }
    }
}

impl<const N: usize> fmt::Display for Sizes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&sizes.join("x"))
    }
}

/// The settings of a convolution over `N` dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvLayer<const N: usize> {
    /// Channels that come out.
    pub out_channels: usize,
    /// The window.
    pub kernel_size: Sizes<N>,
    /// Steps between windows.
    #[serde(default = "Sizes::one")]
    pub stride: Sizes<N>,
    /// Zeros added to both sides.
    #[serde(default = "Sizes::zero")]
    pub padding: Sizes<N>,
    /// Steps between the elements of a window.
    #[serde(default = "Sizes::one")]
    pub dilation: Sizes<N>,
    /// Groups of channels that do not see each other.
    #[serde(default = "one")]
    pub groups: usize,
    /// Whether a bias is added.
    #[serde(default = "yes")]
    pub bias: bool,
}

impl<const N: usize> ConvLayer<N> {
    /// A convolution with stride 1, without padding.
    pub fn new(out_channels: usize, kernel_size: usize) -> ConvLayer<N> {
        ConvLayer {
            out_channels,
            kernel_size: Sizes([kernel_size; N]),
            stride: Sizes::one(),
            padding: Sizes::zero(),
            dilation: Sizes::one(),
            groups: 1,
            bias: true,
        }
    }
}

/// The settings of a transposed convolution over `[channels, height, width]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvTransposeLayer {
    /// Channels that come out.
    pub out_channels: usize,
    /// The window.
    pub kernel_size: Sizes<2>,
    /// Steps between windows, of the result.
    #[serde(default = "Sizes::one")]
    pub stride: Sizes<2>,
    /// Taken off the result on both sides.
    #[serde(default = "Sizes::zero")]
    pub padding: Sizes<2>,
    /// Added to the result on one side.
    #[serde(default = "Sizes::zero")]
    pub output_padding: Sizes<2>,
    /// Steps between the elements of a window.
    #[serde(default = "Sizes::one")]
    pub dilation: Sizes<2>,
    /// Groups of channels that do not see each other.
    #[serde(default = "one")]
    pub groups: usize,
    /// Whether a bias is added.
    #[serde(default = "yes")]
    pub bias: bool,
}

/// The settings of a maximum over windows in `N` dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaxPoolLayer<const N: usize> {
    /// The window.
    pub kernel_size: Sizes<N>,
    /// Steps between windows; the window's size where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<Sizes<N>>,
    /// Added to both sides; at most half of the window.
    #[serde(default = "Sizes::zero")]
    pub padding: Sizes<N>,
    /// Steps between the elements of a window.
    #[serde(default = "Sizes::one")]
    pub dilation: Sizes<N>,
    /// Whether a last window may reach over the edge.
    #[serde(default)]
    pub ceil_mode: bool,
}

impl<const N: usize> MaxPoolLayer<N> {
    /// Windows of this size, side by side.
    pub fn new(kernel_size: usize) -> MaxPoolLayer<N> {
        MaxPoolLayer {
            kernel_size: Sizes([kernel_size; N]),
            stride: None,
            padding: Sizes::zero(),
            dilation: Sizes::one(),
            ceil_mode: false,
        }
    }
}

/// The settings of a mean over windows in `N` dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AvgPoolLayer<const N: usize> {
    /// The window.
    pub kernel_size: Sizes<N>,
    /// Steps between windows; the window's size where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<Sizes<N>>,
    /// Added to both sides; at most half of the window.
    #[serde(default = "Sizes::zero")]
    pub padding: Sizes<N>,
    /// Whether a last window may reach over the edge.
    #[serde(default)]
    pub ceil_mode: bool,
    /// Whether padding counts among what the sum is divided by.
    #[serde(default = "yes")]
    pub count_include_pad: bool,
}

/// The settings of batch normalisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNormLayer {
    /// Added to the variance.
    #[serde(default = "eps")]
    pub eps: f64,
    /// How much a new batch counts in the running statistics.
    #[serde(default = "momentum")]
    pub momentum: f64,
    /// Whether there are a weight and a bias.
    #[serde(default = "yes")]
    pub affine: bool,
}

impl Default for BatchNormLayer {
    fn default() -> BatchNormLayer {
        BatchNormLayer { eps: eps(), momentum: momentum(), affine: true }
    }
}

/// The settings of a recurrent layer over a sequence `[steps, features]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecurrentLayer {
    /// Width of the state.
    pub hidden_size: usize,
    /// Layers, one on the other.
    #[serde(default = "one")]
    pub num_layers: usize,
    /// Whether a second pass goes from the end to the beginning.
    #[serde(default)]
    pub bidirectional: bool,
    /// The probability with which training drops a value between two layers.
    #[serde(default)]
    pub dropout: f64,
    /// Whether there are biases.
    #[serde(default = "yes")]
    pub bias: bool,
    /// What comes out.
    #[serde(default)]
    pub output: Steps,
}

impl RecurrentLayer {
    /// `num_layers` layers of width `hidden_size` whose last state goes on.
    pub fn new(hidden_size: usize, num_layers: usize) -> RecurrentLayer {
        RecurrentLayer {
            hidden_size,
            num_layers,
            bidirectional: false,
            dropout: 0.0,
            bias: true,
            output: Steps::Last,
        }
    }
}

/// Which steps of a recurrent layer come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steps {
    /// The state after the last step (of each direction): `[hidden]`.
    #[default]
    Last,
    /// All: `[steps, hidden]`.
    All,
}

/// How a picture is made larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpsampleMode {
    /// Each pixel repeated.
    #[default]
    Nearest,
    /// Between the four neighbours.
    Bilinear,
}

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerKind {
    /// `nn::Linear` over the last dimension.
    Linear {
        /// Numbers that come out.
        out_features: usize,
        /// Whether a bias is added.
        #[serde(default = "yes")]
        bias: bool,
    },
    /// `nn::Conv1d` over `[channels, length]`.
    Conv1d(ConvLayer<1>),
    /// `nn::Conv2d` over `[channels, height, width]`.
    Conv2d(ConvLayer<2>),
    /// `nn::ConvTranspose2d` over `[channels, height, width]`.
    ConvTranspose2d(ConvTransposeLayer),
    /// `nn::MaxPool1d`.
    MaxPool1d(MaxPoolLayer<1>),
    /// `nn::MaxPool2d`.
    MaxPool2d(MaxPoolLayer<2>),
    /// `nn::AvgPool1d`.
    AvgPool1d(AvgPoolLayer<1>),
    /// `nn::AvgPool2d`.
    AvgPool2d(AvgPoolLayer<2>),
    /// `nn::AdaptiveAvgPool1d`.
    AdaptiveAvgPool1d {
        /// The length that comes out.
        output_size: Sizes<1>,
    },
    /// `nn::AdaptiveAvgPool2d`.
    AdaptiveAvgPool2d {
        /// Height and width that come out.
        output_size: Sizes<2>,
    },
    /// `nn::Upsample` over `[channels, height, width]`.
    Upsample {
        /// How many times as high and wide.
        scale_factor: usize,
        /// How.
        #[serde(default)]
        mode: UpsampleMode,
    },
    /// `nn::BatchNorm1d`, over `[channels]` or `[channels, length]`.
    BatchNorm1d(BatchNormLayer),
    /// `nn::BatchNorm2d`, over `[channels, height, width]`.
    BatchNorm2d(BatchNormLayer),
    /// `nn::GroupNorm` over `[channels, ..]`.
    GroupNorm {
        /// Groups of channels that are normalised together.
        num_groups: usize,
        /// Added to the variance.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// `nn::LayerNorm` over the last dimension.
    LayerNorm {
        /// Added to the variance.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// `nn::RmsNorm` over the last dimension.
    RmsNorm {
        /// Added to the mean square.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// `nn::LSTM` over `[steps, features]`.
    Lstm(RecurrentLayer),
    /// `nn::GRU` over `[steps, features]`.
    Gru(RecurrentLayer),
    /// `nn::RNN` (tanh) over `[steps, features]`.
    Rnn(RecurrentLayer),
    /// max(x, 0)
    Relu {},
    /// x · Φ(x), exact.
    Gelu {},
    /// x · sigmoid(x)
    Silu {},
    /// tanh x
    Tanh {},
    /// 1 / (1 + e⁻ˣ)
    Sigmoid {},
    /// `nn::Dropout`.
    Dropout {
        /// The probability with which training drops a value.
        p: f64,
    },
    /// `nn::Flatten`: one dimension.
    Flatten {},
    /// Layers one after the other, their parameters' names behind this one's.
    Sequential {
        /// The layers.
        #[serde(with = "list")]
        layers: Vec<Layer>,
    },
    /// `nn::Residual`: what the layers make of the input, and the input itself, added. Names within start with this block's
    /// own; unnamed layers of the shortcut are `shortcut.0` and so on.
    Residual {
        /// The main part.
        #[serde(with = "list")]
        layers: Vec<Layer>,
        /// What the input goes through on its way past; as it is where nothing is given.
        #[serde(default, with = "list", skip_serializing_if = "Vec::is_empty")]
        shortcut: Vec<Layer>,
    },
}

fn one() -> usize {
    1
}

fn eps() -> f64 {
    1e-5
}

fn momentum() -> f64 {
    0.1
}

fn yes() -> bool {
    true
}

impl From<Hidden> for LayerKind {
    fn from(hidden: Hidden) -> LayerKind {
        match hidden {
            Hidden::Relu => LayerKind::Relu {},
            Hidden::Gelu => LayerKind::Gelu {},
            Hidden::Silu => LayerKind::Silu {},
            Hidden::Tanh => LayerKind::Tanh {},
            Hidden::Sigmoid => LayerKind::Sigmoid {},
        }
    }
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let table = toml::Table::try_from(&self.kind).map_err(serde::ser::Error::custom)?;
        let name = self.name.iter().map(|name| ("name", toml::Value::from(name.clone())));
        let kind = [("type", toml::Value::from(self.kind.type_name()))];
        let settings = table.iter().filter(|(key, _)| *key != "type");
        let settings = settings.map(|(key, value)| (key.as_str(), value.clone()));
        // In this order, for people.
        s.collect_map(name.chain(kind).chain(settings))
    }
}

/// Lists of layers: a fault is told with the layer's place, as values within a list have no line of their own.
pub(super) mod list {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Layer, LayerKind};

    pub fn serialize<S: Serializer>(layers: &[Layer], s: S) -> Result<S::Ok, S::Error> {
        layers.serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Layer>, D::Error> {
        let tables = Vec::<toml::Table>::deserialize(d)?;
        let layer = |(i, mut table): (usize, toml::Table)| {
            let kind = table.get("type").and_then(toml::Value::as_str).unwrap_or("no type").to_owned();
            let name = match table.remove("name") {
                None => None,
                Some(toml::Value::String(name)) if is_name(&name) => Some(name),
                Some(other) => {
                    let message = format!("layer {i} ({kind}): name {other}: expected letters, digits and _");
                    return Err(D::Error::custom(message));
                }
            };
            let kind = LayerKind::deserialize(toml::Value::Table(table))
                .map_err(|e| D::Error::custom(format!("layer {i} ({kind}): {}", e.message().trim_end())))?;
            Ok(Layer { name, kind })
        };
        tables.into_iter().enumerate().map(layer).collect()
    }

    /// Whether parameters' names may start so.
    pub fn is_name(text: &str) -> bool {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    }
}

impl LayerKind {
    /// The kind's name, as in TOML.
    pub fn type_name(&self) -> &'static str {
        match self {
            LayerKind::Linear { .. } => "linear",
            LayerKind::Conv1d(_) => "conv1d",
            LayerKind::Conv2d(_) => "conv2d",
            LayerKind::ConvTranspose2d(_) => "conv_transpose2d",
            LayerKind::MaxPool1d(_) => "max_pool1d",
            LayerKind::MaxPool2d(_) => "max_pool2d",
            LayerKind::AvgPool1d(_) => "avg_pool1d",
            LayerKind::AvgPool2d(_) => "avg_pool2d",
            LayerKind::AdaptiveAvgPool1d { .. } => "adaptive_avg_pool1d",
            LayerKind::AdaptiveAvgPool2d { .. } => "adaptive_avg_pool2d",
            LayerKind::Upsample { .. } => "upsample",
            LayerKind::BatchNorm1d(_) => "batch_norm1d",
            LayerKind::BatchNorm2d(_) => "batch_norm2d",
            LayerKind::GroupNorm { .. } => "group_norm",
            LayerKind::LayerNorm { .. } => "layer_norm",
            LayerKind::RmsNorm { .. } => "rms_norm",
            LayerKind::Lstm(_) => "lstm",
            LayerKind::Gru(_) => "gru",
            LayerKind::Rnn(_) => "rnn",
            LayerKind::Relu {} => "relu",
            LayerKind::Gelu {} => "gelu",
            LayerKind::Silu {} => "silu",
            LayerKind::Tanh {} => "tanh",
            LayerKind::Sigmoid {} => "sigmoid",
            LayerKind::Dropout { .. } => "dropout",
            LayerKind::Flatten {} => "flatten",
            LayerKind::Sequential { .. } => "sequential",
            LayerKind::Residual { .. } => "residual",
        }
    }

    /// The activation that it is.
    pub fn activation(&self) -> Option<Activation> {
        Some(match self {
            LayerKind::Relu {} => Activation::Relu,
            LayerKind::Gelu {} => Activation::Gelu,
            LayerKind::Silu {} => Activation::Silu,
            LayerKind::Tanh {} => Activation::Tanh,
            LayerKind::Sigmoid {} => Activation::Sigmoid,
            _ => return None,
        })
    }

    /// Whether the layer computes an activation behind it in the same pass.
    pub(super) fn can_activate(&self) -> bool {
        matches!(
            self,
            LayerKind::Linear { .. }
                | LayerKind::Conv1d(_)
                | LayerKind::Conv2d(_)
                | LayerKind::ConvTranspose2d(_)
        )
    }

    /// Whether it may have parameters, so that its name shows.
    pub(super) fn has_parameters(&self) -> bool {
        let without = matches!(
            self,
            LayerKind::MaxPool1d(_)
                | LayerKind::MaxPool2d(_)
                | LayerKind::AvgPool1d(_)
                | LayerKind::AvgPool2d(_)
                | LayerKind::AdaptiveAvgPool1d { .. }
                | LayerKind::AdaptiveAvgPool2d { .. }
                | LayerKind::Upsample { .. }
                | LayerKind::Dropout { .. }
                | LayerKind::Flatten {}
        );
        !without && self.activation().is_none()
    }
}

/// The kind and the settings that decide its shape, such as `conv2d 32, 3x3, stride 2x2`.
impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn conv<const N: usize>(f: &mut fmt::Formatter<'_>, c: &ConvLayer<N>) -> fmt::Result {
            write!(f, " {}, {}", c.out_channels, c.kernel_size)?;
            for (name, sizes, plain) in
                [("stride", c.stride, 1), ("padding", c.padding, 0), ("dilation", c.dilation, 1)]
            {
                if sizes != Sizes([plain; N]) {
                    write!(f, ", {name} {sizes}")?;
                }
            }
            if c.groups > 1 { write!(f, ", groups {}", c.groups) } else { Ok(()) }
        }
        fn pool<const N: usize>(
            f: &mut fmt::Formatter<'_>,
            kernel: Sizes<N>,
            stride: Option<Sizes<N>>,
            padding: Sizes<N>,
        ) -> fmt::Result {
            write!(f, " {kernel}")?;
            stride.map_or(Ok(()), |stride| write!(f, ", stride {stride}"))?;
            if padding == Sizes([0; N]) { Ok(()) } else { write!(f, ", padding {padding}") }
        }
        f.write_str(self.type_name())?;
        match self {
            LayerKind::Linear { out_features, .. } => write!(f, " {out_features}"),
            LayerKind::Conv1d(c) => conv(f, c),
            LayerKind::Conv2d(c) => conv(f, c),
            LayerKind::ConvTranspose2d(c) => {
                write!(f, " {}, {}, stride {}", c.out_channels, c.kernel_size, c.stride)
            }
            LayerKind::MaxPool1d(p) => pool(f, p.kernel_size, p.stride, p.padding),
            LayerKind::MaxPool2d(p) => pool(f, p.kernel_size, p.stride, p.padding),
            LayerKind::AvgPool1d(p) => pool(f, p.kernel_size, p.stride, p.padding),
            LayerKind::AvgPool2d(p) => pool(f, p.kernel_size, p.stride, p.padding),
            LayerKind::AdaptiveAvgPool1d { output_size } => write!(f, " {output_size}"),
            LayerKind::AdaptiveAvgPool2d { output_size } => write!(f, " {output_size}"),
            LayerKind::Upsample { scale_factor, .. } => write!(f, " {scale_factor}"),
            LayerKind::GroupNorm { num_groups, .. } => write!(f, " {num_groups}"),
            LayerKind::Lstm(l) | LayerKind::Gru(l) | LayerKind::Rnn(l) => {
                write!(f, " {}x{}", l.hidden_size, l.num_layers)?;
                if l.bidirectional { f.write_str(", both directions") } else { Ok(()) }
            }
            LayerKind::Dropout { p } => write!(f, " {p}"),
            _ => Ok(()),
        }
    }
}
