//! Convolution on a GPU: what the kernels of `conv.cu` are given.

#![forbid(unsafe_code)]

use super::{ConvInputBackward, ConvWeightBackward, Convolution};
use crate::device::Stream;
use crate::tensor::{Out, View};
use crate::{Error, Result};

pub(super) fn forward(_: &Convolution, _: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    Err(Error::unsupported("conv2d", "has no kernels yet"))
}

pub(super) fn input_backward(
    _: &ConvInputBackward,
    _: &Stream,
    _: &[View<'_>],
    _: &mut Out<'_>,
) -> Result<()> {
    Err(Error::unsupported("conv2d_input_backward", "has no kernels yet"))
}

pub(super) fn weight_backward(
    _: &ConvWeightBackward,
    _: &Stream,
    _: &[View<'_>],
    _: &mut Out<'_>,
) -> Result<()> {
    Err(Error::unsupported("conv2d_weight_backward", "has no kernels yet"))
}
