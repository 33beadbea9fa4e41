//! From a description to modules with parameters.

#![forbid(unsafe_code)]

use super::layer::{BatchNormLayer, ConvLayer, Layer, LayerKind, RecurrentLayer, Steps, UpsampleMode};
use super::{Network, output_shape};
use crate::nn::{self, Activation, ConvOptions, Cx, Module, RecurrentOptions, Residual, Scope, Sequential};
use crate::ops::{Interpolation, Resize};
use crate::train::can_allocate;
use crate::{Error, ErrorKind, Param, Result, Tensor};

/// One layer of a network, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct SummaryRow {
    /// What its parameters' names start with.
    pub name: String,
    /// Its kind and the settings that decide its shape, such as `conv2d 32, 3x3`.
    pub kind: String,
    /// The shape of one example behind it.
    pub shape: Vec<usize>,
    /// The number of its parameters' values.
    pub parameters: usize,
}

/// A network's modules.
pub(in crate::train) struct Built {
    pub(in crate::train) modules: Sequential,
    pub(in crate::train) summary: Vec<SummaryRow>,
}

/// Makes the layers of `network` for examples of shape `example`, and its head to `outputs` numbers.
///
/// # Errors
/// Kind `Argument`: a layer cannot take what comes to it; kind `OutOfMemory`: more parameters than memory can hold.
pub(in crate::train) fn build(
    network: &Network,
    scope: &Scope,
    example: &[usize],
    outputs: usize,
) -> Result<Built> {
    network.check()?;
    let seen = network.seen(example)?;
    let shape = output_shape(&network.layers, &seen)?;
    let features: usize = shape.iter().product();
    check_memory(network, &seen, features, outputs)?;
    let mut builder = Builder { summary: Vec::new() };
    let mut modules = builder.stack(scope, "", "", &network.layers, &seen)?;
    if shape.len() != 1 {
        modules.push(Box::new(nn::Flatten));
    }
    let name = network.head.clone().unwrap_or_else(|| network.layers.len().to_string());
    let head = nn::Linear::new(&scope.enter(&name), features, outputs)?;
    builder.row(&name, format!("linear {outputs}"), vec![outputs], &head.params());
    modules.push(Box::new(head));
    let modules = modules.into_iter().fold(Sequential::new(), Sequential::push);
    Ok(Built { modules, summary: builder.summary })
}

struct Builder {
    summary: Vec<SummaryRow>,
}

impl Builder {
    fn row(&mut self, name: &str, kind: String, shape: Vec<usize>, params: &[Param]) {
        let parameters = params.iter().map(|p| p.shape().numel()).sum();
        self.summary.push(SummaryRow { name: name.to_owned(), kind, shape, parameters });
    }

    /// Layers one after the other. `prefix` is the scope's, for the summary; `positions` comes before the position that an
    /// unnamed layer is called by.
    fn stack(
        &mut self,
        scope: &Scope,
        prefix: &str,
        positions: &str,
        layers: &[Layer],
        input: &[usize],
    ) -> Result<Vec<Box<dyn Module>>> {
        let mut modules: Vec<Box<dyn Module>> = Vec::new();
        let mut shape = input.to_vec();
        let mut fused = false;
        for (i, layer) in layers.iter().enumerate() {
            let name = layer.name.clone().unwrap_or_else(|| format!("{positions}{i}"));
            let at = |e: Error| e.context(format!("layer {prefix}{name}"));
            let out = layer.kind.output_shape(&shape).map_err(at)?;
            if std::mem::take(&mut fused) {
                // It is part of the module before it.
                self.row(&format!("{prefix}{name}"), layer.kind.to_string(), out.clone(), &[]);
            } else {
                // A layer that can apply the activation behind it does.
                let next = layers.get(i + 1).and_then(|next| next.kind.activation());
                let activation = next.filter(|_| layer.kind.can_activate());
                fused = activation.is_some();
                let module = self.module(scope, prefix, &name, &layer.kind, &shape, &out, activation)?;
                modules.push(module);
            }
            shape = out;
        }
        Ok(modules)
    }

    #[allow(clippy::too_many_arguments, reason = "what a layer is, where it is, and what is around it")]
    fn module(
        &mut self,
        scope: &Scope,
        prefix: &str,
        name: &str,
        kind: &LayerKind,
        input: &[usize],
        output: &[usize],
        activation: Option<Activation>,
    ) -> Result<Box<dyn Module>> {
        let (scope, path) = (&scope.enter(name), format!("{prefix}{name}"));
        let channels = input.first().copied().unwrap_or(1);
        let activation = activation.unwrap_or(Activation::Identity);
        let module: Box<dyn Module> = match kind {
            LayerKind::Linear { out_features, bias } => {
                let width = input[input.len() - 1];
                let linear = if *bias {
                    nn::Linear::new(scope, width, *out_features)?
                } else {
                    nn::Linear::without_bias(scope, width, *out_features)?
                };
                Box::new(linear.with_activation(activation))
            }
            LayerKind::Conv1d(c) => Box::new(
                nn::Conv1d::new(scope, channels, c.out_channels, c.kernel_size.0, options(c))?
                    .with_activation(activation),
            ),
            LayerKind::Conv2d(c) => Box::new(
                nn::Conv2d::new(scope, channels, c.out_channels, c.kernel_size.0, options(c))?
                    .with_activation(activation),
            ),
            LayerKind::ConvTranspose2d(c) => {
                let options = ConvOptions {
                    stride: c.stride.0,
                    padding: c.padding.0,
                    dilation: c.dilation.0,
                    groups: c.groups,
                    bias: c.bias,
                };
                let layer =
                    nn::ConvTranspose2d::new(scope, channels, c.out_channels, c.kernel_size.0, options)?;
                Box::new(layer.with_output_padding(c.output_padding.0).with_activation(activation))
            }
            LayerKind::MaxPool1d(p) => Box::new(
                nn::MaxPool1d::new(p.kernel_size.0)
                    .with_stride(p.stride.unwrap_or(p.kernel_size).0)
                    .with_padding(p.padding.0)
                    .with_dilation(p.dilation.0)
                    .with_ceil_mode(p.ceil_mode),
            ),
            LayerKind::MaxPool2d(p) => Box::new(
                nn::MaxPool2d::new(p.kernel_size.0)
                    .with_stride(p.stride.unwrap_or(p.kernel_size).0)
                    .with_padding(p.padding.0)
                    .with_dilation(p.dilation.0)
                    .with_ceil_mode(p.ceil_mode),
            ),
            LayerKind::AvgPool1d(p) => Box::new(
                nn::AvgPool1d::new(p.kernel_size.0)
                    .with_stride(p.stride.unwrap_or(p.kernel_size).0)
                    .with_padding(p.padding.0)
                    .with_count_include_pad(p.count_include_pad)
                    .with_ceil_mode(p.ceil_mode),
            ),
            LayerKind::AvgPool2d(p) => Box::new(
                nn::AvgPool2d::new(p.kernel_size.0)
                    .with_stride(p.stride.unwrap_or(p.kernel_size).0)
                    .with_padding(p.padding.0)
                    .with_count_include_pad(p.count_include_pad)
                    .with_ceil_mode(p.ceil_mode),
            ),
            LayerKind::AdaptiveAvgPool1d { output_size } => {
                Box::new(nn::AdaptiveAvgPool1d::new(output_size.0))
            }
            LayerKind::AdaptiveAvgPool2d { output_size } => {
                Box::new(nn::AdaptiveAvgPool2d::new(output_size.0))
            }
            LayerKind::Upsample { scale_factor, mode } => Box::new(upsample(*scale_factor, *mode)),
            LayerKind::BatchNorm1d(b) => {
                Box::new(nn::BatchNorm1d::with_options(scope, channels, statistics(b))?)
            }
            LayerKind::BatchNorm2d(b) => {
                Box::new(nn::BatchNorm2d::with_options(scope, channels, statistics(b))?)
            }
            LayerKind::GroupNorm { num_groups, eps } => {
                Box::new(nn::GroupNorm::with_eps(scope, *num_groups, channels, *eps)?)
            }
            LayerKind::LayerNorm { eps } => {
                Box::new(nn::LayerNorm::with_eps(scope, input[input.len() - 1], *eps)?)
            }
            LayerKind::RmsNorm { eps } => Box::new(nn::RmsNorm::new(scope, input[input.len() - 1], *eps)?),
            LayerKind::Lstm(l) => {
                Box::new(OfSequence(nn::LSTM::new(scope, input[1], l.hidden_size, recurrence(l))?, l.clone()))
            }
            LayerKind::Gru(l) => {
                Box::new(OfSequence(nn::GRU::new(scope, input[1], l.hidden_size, recurrence(l))?, l.clone()))
            }
            LayerKind::Rnn(l) => {
                Box::new(OfSequence(nn::RNN::new(scope, input[1], l.hidden_size, recurrence(l))?, l.clone()))
            }
            LayerKind::Relu {}
            | LayerKind::Gelu {}
            | LayerKind::Silu {}
            | LayerKind::Tanh {}
            | LayerKind::Sigmoid {} => Box::new(kind.activation().unwrap_or(Activation::Identity)),
            LayerKind::Dropout { p } => Box::new(nn::Dropout::new(*p)?),
            LayerKind::Flatten {} => Box::new(nn::Flatten),
            LayerKind::Sequential { layers } => {
                let inner = self.stack(scope, &format!("{path}."), "", layers, input)?;
                return Ok(Box::new(inner.into_iter().fold(Sequential::new(), Sequential::push)));
            }
            LayerKind::Residual { layers, shortcut } => {
                let prefix = format!("{path}.");
                let main = self.stack(scope, &prefix, "", layers, input)?;
                let past = self.stack(scope, &prefix, "shortcut.", shortcut, input)?;
                self.row(&path, "residual sum".to_owned(), output.to_vec(), &[]);
                let join =
                    |parts: Vec<Box<dyn Module>>| parts.into_iter().fold(Sequential::new(), Sequential::push);
                let block = Residual::new(join(main));
                return Ok(Box::new(if past.is_empty() { block } else { block.with_shortcut(join(past)) }));
            }
        };
        self.row(&path, kind.to_string(), output.to_vec(), &module.params());
        Ok(module)
    }
}

fn options<const N: usize>(c: &ConvLayer<N>) -> ConvOptions<N> {
    ConvOptions {
        stride: c.stride.0,
        padding: c.padding.0,
        dilation: c.dilation.0,
        groups: c.groups,
        bias: c.bias,
    }
}

fn statistics(b: &BatchNormLayer) -> nn::BatchNormOptions {
    nn::BatchNormOptions {
        eps: b.eps,
        momentum: Some(b.momentum),
        affine: b.affine,
        ..nn::BatchNormOptions::default()
    }
}

fn recurrence(l: &RecurrentLayer) -> RecurrentOptions {
    RecurrentOptions {
        num_layers: l.num_layers,
        bidirectional: l.bidirectional,
        dropout: l.dropout,
        bias: l.bias,
        batch_first: true,
    }
}

fn upsample(factor: usize, mode: UpsampleMode) -> nn::Upsample {
    let layer = nn::Upsample::new(Resize::By([factor as f64; 2]));
    match mode {
        UpsampleMode::Nearest => layer,
        UpsampleMode::Bilinear => layer.with_mode(Interpolation::Bilinear { align_corners: false }),
    }
}

/// A recurrent layer whose last state, or whole sequence, goes on.
struct OfSequence<R>(R, RecurrentLayer);

/// What the recurrent layers have in common.
trait Recurrent: Send + Sync {
    /// All states of the last layer `[rows, steps, width]`, and the final ones of all layers and directions
    /// `[layers · directions, rows, width]`.
    fn states(&self, cx: &mut Cx, x: &Tensor) -> Result<(Tensor, Tensor)>;
    fn params(&self) -> Vec<Param>;
}

impl Recurrent for nn::LSTM {
    fn states(&self, cx: &mut Cx, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (all, (last, _)) = self.forward_with_state(cx, x, None)?;
        Ok((all, last))
    }
    fn params(&self) -> Vec<Param> {
        Module::params(self)
    }
}

impl Recurrent for nn::GRU {
    fn states(&self, cx: &mut Cx, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.forward_with_state(cx, x, None)
    }
    fn params(&self) -> Vec<Param> {
        Module::params(self)
    }
}

impl Recurrent for nn::RNN {
    fn states(&self, cx: &mut Cx, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.forward_with_state(cx, x, None)
    }
    fn params(&self) -> Vec<Param> {
        Module::params(self)
    }
}

impl<R: Recurrent> Module for OfSequence<R> {
    #[track_caller]
    fn forward(&self, cx: &mut Cx, x: &Tensor) -> Result<Tensor> {
        let (all, last) = self.0.states(cx, x)?;
        if self.1.output == Steps::All {
            return Ok(all);
        }
        let directions = if self.1.bidirectional { 2 } else { 1 };
        let of_last_layer = last.narrow(0, last.dims()[0] - directions, directions)?;
        if directions == 1 {
            return of_last_layer.select(0, 0);
        }
        let rows = x.dims()[0];
        of_last_layer.transpose(0, 1)?.contiguous()?.reshape([rows, directions * self.1.hidden_size])
    }

    fn params(&self) -> Vec<Param> {
        self.0.params()
    }
}

/// Errors (kind `OutOfMemory`) if the system would refuse the memory that training the network takes. Asked in advance,
/// because a vector that cannot be had ends the process.
fn check_memory(network: &Network, seen: &[usize], features: usize, outputs: usize) -> Result<()> {
    // A parameter, its gradient and two moments in f32, and its initial value in f64.
    const BYTES: usize = 24;
    fn count(layers: &[Layer], input: &[usize]) -> Option<usize> {
        let mut shape = input.to_vec();
        let mut sum = 0usize;
        for layer in layers {
            sum = sum.checked_add(match &layer.kind {
                LayerKind::Sequential { layers } => count(layers, &shape)?,
                LayerKind::Residual { layers, shortcut } => {
                    count(layers, &shape)?.checked_add(count(shortcut, &shape)?)?
                }
                kind => kind.largest_parameter(&shape)?,
            })?;
            shape = layer.kind.output_shape(&shape).ok()?;
        }
        Some(sum)
    }
    let head = features.checked_add(1).and_then(|n| n.checked_mul(outputs));
    let values = head.and_then(|head| count(&network.layers, seen)?.checked_add(head));
    let bytes = values.and_then(|values| values.checked_mul(BYTES));
    if bytes.is_some_and(can_allocate) {
        return Ok(());
    }
    let text =
        bytes.map_or_else(|| "more bytes than can be counted".to_owned(), |bytes| format!("{bytes} bytes"));
    let message = format!("the network {network} needs {text} of memory to train, which cannot be had");
    Err(Error::new(ErrorKind::OutOfMemory, message).with_help("make its layers narrower"))
}
