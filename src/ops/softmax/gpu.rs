//! Softmax on a GPU: which kernel of `softmax.cu` takes a row or a column.

#![forbid(unsafe_code)]

use super::{extent, is_last};
use crate::device::Stream;
use crate::device::kernels::softmax as kernels;
use crate::device::launch::{Rows, narrow};
use crate::tensor::{Mode, Out, View};
use crate::{Result, Shape};

/// Softmax or its logarithm.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Plain,
    Log,
}

/// A tensor seen from dimension `dim`: the product of the sizes before it, its size, the product of those after it.
fn around(shape: &Shape, dim: usize) -> (usize, usize, usize) {
    let before = shape.iter().take(dim).product();
    (before, extent(shape, dim), shape.iter().skip(dim + 1).product())
}

/// y from x.
pub(super) fn forward(stream: &Stream, kind: Kind, dim: usize, x: &View<'_>, y: &mut Out<'_>) -> Result<()> {
    let shape = x.shape();
    if shape.numel() == 0 {
        return Ok(());
    }
    let (outer, n, inner) = around(&shape, dim);
    let add = u32::from(y.mode() == Mode::Accumulate);
    let packed = stream.contiguous(x)?;
    let (x, y) = (packed.src(), y.dst());
    if !is_last(&shape, dim) {
        let f = match kind {
            Kind::Plain => kernels::SoftmaxColumnF::Softmax,
            Kind::Log => kernels::SoftmaxColumnF::LogSoftmax,
        };
        let (outer, n, inner) = (outer as u64, n as u64, inner as u64);
        return kernels::SoftmaxColumn { f, x, y, outer, n, inner, add }.launch(stream);
    }
    let rows = Rows::new(outer, narrow("a row", n)?, &[x.address(), y.address()], x.dtype());
    let Rows { rows, n, vector, .. } = rows;
    match Rows::per_lane(n, x.dtype(), &[1, 2, 4, 8]) {
        Some(per) => {
            let f = match kind {
                Kind::Plain => kernels::SoftmaxWarpF::Softmax,
                Kind::Log => kernels::SoftmaxWarpF::LogSoftmax,
            };
            kernels::SoftmaxWarp { f, per, x, y, rows, n, vector, add }.launch(stream)
        }
        None => {
            let f = match kind {
                Kind::Plain => kernels::SoftmaxBlockF::Softmax,
                Kind::Log => kernels::SoftmaxBlockF::LogSoftmax,
            };
            let cached = Rows::cached(n);
            kernels::SoftmaxBlock { f, x, y, rows, n, vector, cached, add }.launch(stream)
        }
    }
}

/// dx from y and dy.
pub(super) fn backward(
    stream: &Stream,
    kind: Kind,
    dim: usize,
    [y, dy]: [&View<'_>; 2],
    dx: &mut Out<'_>,
) -> Result<()> {
    let shape = y.shape();
    if shape.numel() == 0 {
        return Ok(());
    }
    let (outer, n, inner) = around(&shape, dim);
    let add = u32::from(dx.mode() == Mode::Accumulate);
    let (packed_y, packed_dy) = (stream.contiguous(y)?, stream.contiguous(dy)?);
    let (y, dy, dx) = (packed_y.src(), packed_dy.src(), dx.dst());
    if !is_last(&shape, dim) {
        let f = match kind {
            Kind::Plain => kernels::SoftmaxBackwardColumnF::Softmax,
            Kind::Log => kernels::SoftmaxBackwardColumnF::LogSoftmax,
        };
        let (outer, n, inner) = (outer as u64, n as u64, inner as u64);
        return kernels::SoftmaxBackwardColumn { f, y, dy, dx, outer, n, inner, add }.launch(stream);
    }
    let addresses = [y.address(), dy.address(), dx.address()];
    let Rows { rows, n, vector, .. } = Rows::new(outer, narrow("a row", n)?, &addresses, y.dtype());
    match Rows::per_lane(n, y.dtype(), &[1, 2, 4]) {
        Some(per) => {
            let f = match kind {
                Kind::Plain => kernels::SoftmaxBackwardWarpF::Softmax,
                Kind::Log => kernels::SoftmaxBackwardWarpF::LogSoftmax,
            };
            kernels::SoftmaxBackwardWarp { f, per, y, dy, dx, rows, n, vector, add }.launch(stream)
        }
        None => {
            let f = match kind {
                Kind::Plain => kernels::SoftmaxBackwardBlockF::Softmax,
                Kind::Log => kernels::SoftmaxBackwardBlockF::LogSoftmax,
            };
            kernels::SoftmaxBackwardBlock { f, y, dy, dx, rows, n, vector, add }.launch(stream)
        }
    }
}
