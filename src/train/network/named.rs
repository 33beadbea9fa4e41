//! Networks that have a name: `mlp:256,128`, `cnn`, `resnet:18`, `lstm:128x2`.

#![forbid(unsafe_code)]

use super::layer::{BatchNormLayer, ConvLayer, Layer, LayerKind, MaxPoolLayer, RecurrentLayer, Sizes};
use super::{InputForm, Network};
use crate::train::Hidden;
use crate::{Error, Result};

/// What a name may look like, for messages.
pub const NAMES: &str = "mlp:WIDTH,WIDTH,…, cnn, cnn:CHANNELS,CHANNELS,…, resnet:18, resnet:34, resnet:50, lstm:WIDTH[xLAYERS], \
                         gru:WIDTH[xLAYERS] or rnn:WIDTH[xLAYERS]";

impl Network {
    /// A multi-layer perceptron: hidden layers of these widths, each with `activation` and, if above 0, dropout behind it.
    /// It sees an example as one row of numbers.
    pub fn mlp(hidden: &[usize], activation: Hidden, dropout: f64) -> Network {
        let widths: Vec<String> = hidden.iter().map(usize::to_string).collect();
        let layer = |&out_features: &usize| {
            let linear = LayerKind::Linear { out_features, bias: true };
            [linear, activation.into()].into_iter().chain(dropped(dropout)).map(Layer::from)
        };
        Network {
            name: format!("mlp:{}", widths.join(",")),
            input: InputForm::Flat,
            head: None,
            layers: hidden.iter().flat_map(layer).collect(),
        }
    }

    /// The network called `text`; see [`NAMES`]. `activation` and `dropout` change what the name stands for.
    ///
    /// # Errors
    /// Kind `Argument`: no such name, a width of 0, or an activation or dropout that the network has no place for.
    pub fn by_name(text: &str, activation: Option<Hidden>, dropout: Option<f64>) -> Result<Network> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let expected = || Error::argument(format!("model {text:?}: expected {NAMES}"));
        let no_activation = |network| match activation {
            Some(_) => Err(Error::argument(format!("model {text:?} has its activations fixed"))
                .with_help("leave --activation out, or describe the network in a TOML file")),
            None => Ok(network),
        };
        if let Some(dropout) = dropout.filter(|p| !(0.0..1.0).contains(p)) {
            return Err(Error::argument(format!("dropout {dropout} is not in [0, 1)")));
        }
        let drop = dropout.unwrap_or(0.0);
        let network = match (kind, rest) {
            ("mlp", Some("")) => Network::mlp(&[], activation.unwrap_or_default(), drop),
            ("mlp", Some(rest)) => {
                Network::mlp(&sizes(rest, ',').ok_or_else(expected)?, activation.unwrap_or_default(), drop)
            }
            ("cnn", None) => cnn(text, &[32, 64], activation.unwrap_or_default(), drop),
            ("cnn", Some(rest)) => {
                cnn(text, &sizes(rest, ',').ok_or_else(expected)?, activation.unwrap_or_default(), drop)
            }
            ("resnet", Some(depth)) => {
                let network = resnet(text, depth, drop).ok_or_else(expected)?;
                no_activation(network)?
            }
            ("lstm" | "gru" | "rnn", Some(rest)) => no_activation(
                recurrent(text, kind, &sizes(rest, 'x').ok_or_else(expected)?, drop).ok_or_else(expected)?,
            )?,
            _ => return Err(expected()),
        };
        if rest.is_some_and(|rest| rest.split([',', 'x']).any(|n| n.trim() == "0")) {
            return Err(Error::argument(format!("{text}: a layer of width 0 passes nothing on")));
        }
        Ok(network)
    }
}

/// Numbers between `separator`s; nothing if one is none.
fn sizes(text: &str, separator: char) -> Option<Vec<usize>> {
    text.split(separator).map(|n| n.trim().parse().ok()).collect()
}

fn dropped(p: f64) -> Option<LayerKind> {
    (p > 0.0).then_some(LayerKind::Dropout { p })
}

fn halved() -> LayerKind {
    LayerKind::MaxPool2d(MaxPoolLayer::new(2))
}

/// Convolutions of 3 x 3, each with its activation and a maximum over 2 x 2, then a hidden layer of 128.
fn cnn(name: &str, channels: &[usize], activation: Hidden, dropout: f64) -> Network {
    let stage = |&out_channels: &usize| {
        let conv = ConvLayer { padding: Sizes([1, 1]), ..ConvLayer::new(out_channels, 3) };
        [LayerKind::Conv2d(conv), activation.into(), halved()]
    };
    let hidden =
        [LayerKind::Flatten {}, LayerKind::Linear { out_features: 128, bias: true }, activation.into()];
    let layers = channels.iter().flat_map(stage).chain(hidden).chain(dropped(dropout));
    Network {
        name: name.to_owned(),
        input: InputForm::Image,
        head: None,
        layers: layers.map(Layer::from).collect(),
    }
}

/// Residual networks (He et al. 2016, arXiv:1512.03385) in the form for small pictures: the first convolution is 3 x 3 with
/// stride 1 and no pooling follows it. Names of parameters are those of torchvision's `resnet18` and so on.
fn resnet(name: &str, depth: &str, dropout: f64) -> Option<Network> {
    let (blocks, wide) = match depth {
        "18" => ([2, 2, 2, 2], false),
        "34" => ([3, 4, 6, 3], false),
        "50" => ([3, 4, 6, 3], true),
        _ => return None,
    };
    let relu = || Layer::from(LayerKind::Relu {});
    let norm = |name: &str| LayerKind::BatchNorm2d(BatchNormLayer::default()).named(name);
    let conv = |name: &str, channels: usize, kernel: usize, stride: usize| {
        let layer = ConvLayer {
            stride: Sizes([stride, stride]),
            padding: Sizes([kernel / 2, kernel / 2]),
            bias: false,
            ..ConvLayer::new(channels, kernel)
        };
        LayerKind::Conv2d(layer).named(name)
    };
    let mut layers = vec![conv("conv1", 64, 3, 1), norm("bn1"), relu()];
    let mut channels = 64;
    for (stage, &count) in blocks.iter().enumerate() {
        let width = 64 << stage;
        let made = if wide { 4 * width } else { width };
        let block = |i: usize| {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            let main = if wide {
                vec![
                    conv("conv1", width, 1, 1),
                    norm("bn1"),
                    relu(),
                    conv("conv2", width, 3, stride),
                    norm("bn2"),
                    relu(),
                    conv("conv3", made, 1, 1),
                    norm("bn3"),
                ]
            } else {
                vec![
                    conv("conv1", width, 3, stride),
                    norm("bn1"),
                    relu(),
                    conv("conv2", made, 3, 1),
                    norm("bn2"),
                ]
            };
            let changes = i == 0 && (stride != 1 || channels != made);
            let past = vec![conv("0", made, 1, stride), norm("1")];
            let shortcut = if changes {
                vec![LayerKind::Sequential { layers: past }.named("downsample")]
            } else {
                Vec::new()
            };
            let residual = LayerKind::Residual { layers: main, shortcut }.named(i.to_string());
            // The activation has no parameters; it stands in the block's sequence without a name of its own.
            [residual, relu()]
        };
        let layer = LayerKind::Sequential { layers: (0..count).flat_map(block).collect() };
        layers.push(layer.named(format!("layer{}", stage + 1)));
        channels = made;
    }
    layers.push(LayerKind::AdaptiveAvgPool2d { output_size: Sizes([1, 1]) }.into());
    layers.push(LayerKind::Flatten {}.into());
    layers.extend(dropped(dropout).map(Layer::from));
    Some(Network { name: name.to_owned(), input: InputForm::Image, head: Some("fc".to_owned()), layers })
}

/// `lstm:WIDTH` or `lstm:WIDTHxLAYERS`, its last state to the answers; dropout between its layers and behind them.
fn recurrent(name: &str, kind: &str, sizes: &[usize], dropout: f64) -> Option<Network> {
    let (hidden_size, num_layers) = match *sizes {
        [width] => (width, 1),
        [width, layers] => (width, layers),
        _ => return None,
    };
    let between = if num_layers > 1 { dropout } else { 0.0 };
    let layer = RecurrentLayer { dropout: between, ..RecurrentLayer::new(hidden_size, num_layers) };
    let layer = match kind {
        "lstm" => LayerKind::Lstm(layer),
        "gru" => LayerKind::Gru(layer),
        _ => LayerKind::Rnn(layer),
    };
    let layers = [layer.named(kind)].into_iter().chain(dropped(dropout).map(Layer::from)).collect();
    Some(Network { name: name.to_owned(), input: InputForm::Sequence, head: Some("fc".to_owned()), layers })
}
