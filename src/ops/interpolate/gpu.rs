//! Resized images on a GPU: the launches of `interpolate.cu`.

#![forbid(unsafe_code)]

use super::{Interpolate, Interpolation};
use crate::Result;
use crate::device::Stream;
use crate::device::kernels::interpolate as kernels;
use crate::ops::gpu::{adds, pair};
use crate::ops::pool::image;
use crate::tensor::{Out, View};

/// Resizes `x`.
pub(super) fn forward(stream: &Stream, op: &Interpolate, x: &View<'_>, y: &mut Out<'_>) -> Result<()> {
    let input = image(&x.shape());
    let ([height, width], [rows, columns]) = (pair(input), pair(op.size));
    let [step_y, step_x] = [0, 1].map(|d| op.step(d, input[d]) as f32);
    let planes = (x.numel() / (input[0] * input[1])) as u64;
    let f = match op.mode {
        Interpolation::Nearest => kernels::ResizeF::Nearest,
        Interpolation::Bilinear { align_corners: false } => kernels::ResizeF::Edges,
        Interpolation::Bilinear { align_corners: true } => kernels::ResizeF::Corners,
    };
    let packed = stream.contiguous(x)?;
    let (x, y) = (packed.src(), y.dst());
    kernels::Resize { f, x, y, planes, height, width, rows, columns, step_y, step_x }.launch(stream)
}

/// dx from dy.
pub(super) fn backward(stream: &Stream, op: &Interpolate, dy: &View<'_>, dx: &mut Out<'_>) -> Result<()> {
    let input = image(&dx.shape());
    let ([height, width], [rows, columns]) = (pair(input), pair(op.size));
    let [step_y, step_x] = [0, 1].map(|d| op.step(d, input[d]) as f32);
    let planes = (dx.shape().numel() / (input[0] * input[1])) as u64;
    let f = match op.mode {
        Interpolation::Nearest => kernels::ResizeBackwardF::Nearest,
        Interpolation::Bilinear { align_corners: false } => kernels::ResizeBackwardF::Edges,
        Interpolation::Bilinear { align_corners: true } => kernels::ResizeBackwardF::Corners,
    };
    let (add, packed) = (adds(dx), stream.contiguous(dy)?);
    let (dy, dx) = (packed.src(), dx.dst());
    kernels::ResizeBackward { f, dy, dx, planes, height, width, rows, columns, step_y, step_x, add }
        .launch(stream)
}
