//! What shape each layer makes of one example, and what it refuses. Shapes here are without the batch.
//!
//! The ops have the same rules for their tensors; these come before any parameter is made, so that a description can be
//! judged, and a message can name the layer.

#![forbid(unsafe_code)]

use super::layer::{
    AvgPoolLayer, BatchNormLayer, ConvLayer, ConvTransposeLayer, Layer, LayerKind, MaxPoolLayer, Sizes, Steps,
};
use crate::ops::Window;
use crate::{Error, Result};

/// What becomes of a picture under windows: `count` tells how many there are along dimension `i` of so many elements.
fn pooled<const N: usize>(
    what: &str,
    input: &[usize],
    count: impl Fn(usize, usize) -> Result<usize>,
) -> Result<Vec<usize>> {
    let mut shape = ranked(what, input, N + 1)?.to_vec();
    for i in 0..N {
        shape[1 + i] =
            count(i, shape[1 + i]).map_err(|e| Error::argument(format!("{what}: {}", e.message())))?;
    }
    Ok(shape)
}

fn max_pooled<const N: usize>(what: &str, input: &[usize], p: &MaxPoolLayer<N>) -> Result<Vec<usize>> {
    let window = Window::new(p.kernel_size.0)
        .with_stride(p.stride.unwrap_or(p.kernel_size).0)
        .with_padding(p.padding.0)
        .with_dilation(p.dilation.0)
        .with_ceil_mode(p.ceil_mode);
    pooled::<N>(what, input, |i, size| window.count_of_some("max_pool", i, size))
}

fn avg_pooled<const N: usize>(what: &str, input: &[usize], p: &AvgPoolLayer<N>) -> Result<Vec<usize>> {
    let window = Window::new(p.kernel_size.0)
        .with_stride(p.stride.unwrap_or(p.kernel_size).0)
        .with_padding(p.padding.0)
        .with_ceil_mode(p.ceil_mode);
    pooled::<N>(what, input, |i, size| window.count("avg_pool", i, size))
}

/// Errors unless the channels can be divided into the groups.
fn grouped(what: &str, from: usize, to: usize, groups: usize) -> Result<()> {
    if to > 0 && groups > 0 && from.is_multiple_of(groups) && to.is_multiple_of(groups) {
        return Ok(());
    }
    Err(Error::argument(format!("{what}: {from} channels to {to} cannot be divided into {groups} groups")))
}

fn spread(input: &[usize], c: &ConvTransposeLayer) -> Result<Vec<usize>> {
    let what = "conv_transpose2d";
    let mut shape = ranked(what, input, 3)?.to_vec();
    grouped(what, shape[0], c.out_channels, c.groups)?;
    shape[0] = c.out_channels;
    for i in 0..2 {
        let (kernel, stride, dilation) = (c.kernel_size.0[i], c.stride.0[i], c.dilation.0[i]);
        let (padding, extra, size) = (c.padding.0[i], c.output_padding.0[i], shape[1 + i]);
        for (name, n) in [("kernel_size", kernel), ("stride", stride), ("dilation", dilation)] {
            at_least_one(what, name, n)?;
        }
        if extra >= stride.max(dilation) {
            let message = format!("{what}: output_padding {extra} is not below the stride or the dilation");
            return Err(Error::argument(message));
        }
        let reach = (kernel - 1).checked_mul(dilation);
        let grown = size
            .saturating_sub(1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(reach?)?.checked_add(extra + 1));
        let taken = padding.checked_mul(2);
        let left = grown.zip(taken).and_then(|(grown, taken)| grown.checked_sub(taken)).filter(|&n| n > 0);
        shape[1 + i] = left.ok_or_else(|| {
            Error::argument(format!(
                "{what}: {size} and a window of {kernel} leave nothing behind {padding} of padding"
            ))
        })?;
    }
    Ok(shape)
}

fn convolved<const N: usize>(what: &str, input: &[usize], conv: &ConvLayer<N>) -> Result<Vec<usize>> {
    let mut shape = ranked(what, input, N + 1)?.to_vec();
    grouped(what, shape[0], conv.out_channels, conv.groups)?;
    shape[0] = conv.out_channels;
    for i in 0..N {
        let (kernel, stride, dilation) = (conv.kernel_size.0[i], conv.stride.0[i], conv.dilation.0[i]);
        for (name, n) in [("kernel_size", kernel), ("stride", stride), ("dilation", dilation)] {
            at_least_one(what, name, n)?;
        }
        let (size, padding) = (shape[1 + i], conv.padding.0[i]);
        let padded = padding.checked_mul(2).and_then(|both| both.checked_add(size));
        let reach = dilation.checked_mul(kernel - 1).and_then(|n| n.checked_add(1));
        let room = padded.zip(reach).and_then(|(padded, reach)| padded.checked_sub(reach));
        let room = room.ok_or_else(|| {
            Error::argument(format!(
                "{what}: a window of {kernel} (dilation {dilation}) does not fit into {size} with {padding} of padding \
                 on both sides"
            ))
        })?;
        shape[1 + i] = room / stride + 1;
    }
    Ok(shape)
}

fn ranked<'a>(what: &str, input: &'a [usize], rank: usize) -> Result<&'a [usize]> {
    if input.len() == rank {
        return Ok(input);
    }
    let expected = ["", "[features]", "[channels, length]", "[channels, height, width]"][rank.min(3)];
    Err(Error::argument(format!("{what}: needs an example of the shape {expected}, not {input:?}")))
}

fn at_least_one(what: &str, name: &str, n: usize) -> Result<usize> {
    if n == 0 { Err(Error::argument(format!("{what}: {name} 0: expected at least 1"))) } else { Ok(n) }
}

/// The numbers of an example of shape `shape`; an error where they cannot be counted.
pub(super) fn numel(what: &str, shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let counted = count.filter(|&count| count <= isize::MAX as usize);
    counted.ok_or_else(|| Error::argument(format!("{what}: an example of the shape {shape:?} is too large")))
}

/// Errors unless `eps` can be added to a variance.
fn is_eps(what: &str, eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(format!("{what}: eps {eps}: expected a number from 0 on")))
}

fn batch_normed(what: &str, norm: &BatchNormLayer) -> Result<()> {
    is_eps(what, norm.eps)?;
    if (0.0..=1.0).contains(&norm.momentum) {
        return Ok(());
    }
    Err(Error::argument(format!("{what}: momentum {} is not in [0, 1]", norm.momentum)))
}

fn is_probability(what: &str, p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::argument(format!("{what}: a dropout probability of {p} is not in [0, 1)")))
}

impl LayerKind {
    /// The shape that it makes of an example of shape `input`.
    ///
    /// # Errors
    /// Kind `Argument`: the layer cannot take such an example, or a setting is wrong by itself.
    pub fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>> {
        let what = self.type_name();
        Ok(match self {
            LayerKind::Linear { out_features, .. } => {
                let [rest @ .., _] = input else { return Err(ranked(what, input, 1).unwrap_err()) };
                [rest, &[at_least_one(what, "out_features", *out_features)?]].concat()
            }
            LayerKind::Conv1d(conv) => convolved(what, input, conv)?,
            LayerKind::Conv2d(conv) => convolved(what, input, conv)?,
            LayerKind::ConvTranspose2d(conv) => spread(input, conv)?,
            LayerKind::MaxPool1d(pool) => max_pooled(what, input, pool)?,
            LayerKind::MaxPool2d(pool) => max_pooled(what, input, pool)?,
            LayerKind::AvgPool1d(pool) => avg_pooled(what, input, pool)?,
            LayerKind::AvgPool2d(pool) => avg_pooled(what, input, pool)?,
            LayerKind::AdaptiveAvgPool1d { output_size: Sizes([length]) } => {
                let channels = ranked(what, input, 2)?[0];
                vec![channels, at_least_one(what, "output_size", *length)?]
            }
            LayerKind::AdaptiveAvgPool2d { output_size: Sizes([height, width]) } => {
                let channels = ranked(what, input, 3)?[0];
                let [height, width] = [height, width].map(|&n| at_least_one(what, "output_size", n));
                vec![channels, height?, width?]
            }
            LayerKind::Upsample { scale_factor, .. } => {
                let factor = at_least_one(what, "scale_factor", *scale_factor)?;
                let shape = ranked(what, input, 3)?;
                vec![shape[0], shape[1].saturating_mul(factor), shape[2].saturating_mul(factor)]
            }
            LayerKind::BatchNorm1d(norm) => {
                batch_normed(what, norm)?;
                if input.len() == 1 { input.to_vec() } else { ranked(what, input, 2)?.to_vec() }
            }
            LayerKind::BatchNorm2d(norm) => {
                batch_normed(what, norm)?;
                ranked(what, input, 3)?.to_vec()
            }
            LayerKind::GroupNorm { num_groups, eps } => {
                is_eps(what, *eps)?;
                let channels = *input.first().unwrap_or(&0);
                if *num_groups == 0 || channels == 0 || !channels.is_multiple_of(*num_groups) {
                    let message =
                        format!("{what}: {channels} channels cannot be divided into {num_groups} groups");
                    return Err(Error::argument(message));
                }
                input.to_vec()
            }
            LayerKind::Lstm(layer) | LayerKind::Gru(layer) | LayerKind::Rnn(layer) => {
                let [steps, _] = input else {
                    let message = format!("{what}: needs a sequence [steps, features], not {input:?}");
                    return Err(Error::argument(message)
                        .with_help("input = \"sequence\" sees a picture as its rows, one a step"));
                };
                at_least_one(what, "num_layers", layer.num_layers)?;
                is_probability(what, layer.dropout)?;
                if layer.num_layers == 1 && layer.dropout > 0.0 {
                    let message = format!("{what}: dropout acts between layers, and there is one");
                    return Err(Error::argument(message).with_help("put a dropout layer behind it"));
                }
                let directions = if layer.bidirectional { 2 } else { 1 };
                let width = at_least_one(what, "hidden_size", layer.hidden_size)?.saturating_mul(directions);
                match layer.output {
                    Steps::Last => vec![width],
                    Steps::All => vec![*steps, width],
                }
            }
            LayerKind::Dropout { p } => {
                is_probability(what, *p)?;
                input.to_vec()
            }
            LayerKind::Flatten {} => vec![numel(what, input)?],
            LayerKind::LayerNorm { eps } | LayerKind::RmsNorm { eps } => {
                is_eps(what, *eps)?;
                if input.is_empty() {
                    return Err(ranked(what, input, 1).unwrap_err());
                }
                input.to_vec()
            }
            LayerKind::Relu {}
            | LayerKind::Gelu {}
            | LayerKind::Silu {}
            | LayerKind::Tanh {}
            | LayerKind::Sigmoid {} => input.to_vec(),
            LayerKind::Sequential { layers } => output_shape(layers, input)?,
            LayerKind::Residual { layers, shortcut } => {
                let (main, past) = (output_shape(layers, input)?, output_shape(shortcut, input)?);
                if main != past {
                    let message = format!("residual: the layers make {main:?}, the shortcut {past:?}");
                    return Err(Error::argument(message).with_help(
                        "give a shortcut that makes the same shape, such as a conv2d of kernel_size 1",
                    ));
                }
                main
            }
        })
    }

    /// The values of its largest parameter; nothing where they cannot be counted. For refusing in advance what no memory
    /// could hold.
    pub(super) fn largest_parameter(&self, input: &[usize]) -> Option<usize> {
        let channels = *input.first().unwrap_or(&0);
        let width = *input.last().unwrap_or(&0);
        match self {
            LayerKind::Linear { out_features, .. } => out_features.checked_mul(width),
            LayerKind::Conv1d(c) => {
                (channels / c.groups.max(1)).checked_mul(c.out_channels)?.checked_mul(c.kernel_size.0[0])
            }
            LayerKind::Conv2d(c) => {
                let [height, width] = c.kernel_size.0;
                (channels / c.groups.max(1))
                    .checked_mul(c.out_channels)?
                    .checked_mul(height)?
                    .checked_mul(width)
            }
            LayerKind::ConvTranspose2d(c) => {
                let [height, width] = c.kernel_size.0;
                (c.out_channels / c.groups.max(1))
                    .checked_mul(channels)?
                    .checked_mul(height)?
                    .checked_mul(width)
            }
            LayerKind::Lstm(l) | LayerKind::Gru(l) | LayerKind::Rnn(l) => {
                let widest = l.hidden_size.checked_mul(2)?.max(width);
                l.hidden_size.checked_mul(4)?.checked_mul(widest)?.checked_mul(l.num_layers.checked_mul(2)?)
            }
            _ => Some(channels),
        }
    }
}

/// The shape that `layers`, one after the other, make of an example of shape `input`. Errors name the layer's place.
pub fn output_shape(layers: &[Layer], input: &[usize]) -> Result<Vec<usize>> {
    layers.iter().enumerate().try_fold(input.to_vec(), |shape, (i, layer)| {
        let out = layer.kind.output_shape(&shape);
        let out = out.and_then(|out| numel(layer.kind.type_name(), &out).map(|_| out));
        out.map_err(|e| e.context(format!("layer {i}")))
    })
}
