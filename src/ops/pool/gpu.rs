//! Pooling on a GPU: the launches of `pool.cu`.

#![forbid(unsafe_code)]

use super::{AvgPool2d, Window, image};
use crate::device::Stream;
use crate::device::kernels::pool as kernels;
use crate::ops::gpu::{adds, pair};
use crate::tensor::{Out, View};
use crate::{Result, Shape};

/// What the averages are over.
pub(super) enum Parts<'a> {
    Windows(&'a AvgPool2d),
    Even,
}

/// The number of images.
fn planes(shape: &Shape) -> u64 {
    shape[..shape.rank() - 2].iter().product::<usize>() as u64
}

/// Largest elements and their places.
pub(super) fn max_pool(
    stream: &Stream,
    window: &Window<2>,
    x: &View<'_>,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let [height, width] = pair(image(&x.shape()));
    let [rows, columns] = pair(image(&outputs[0].shape()));
    let ([kernel_y, kernel_x], [stride_y, stride_x]) = (pair(window.kernel), pair(window.stride));
    let ([padding_y, padding_x], [dilation_y, dilation_x]) = (pair(window.padding), pair(window.dilation));
    let (packed, planes) = (stream.contiguous(x)?, planes(&x.shape()));
    let (y, index) = outputs.split_at_mut(1);
    let (x, y, index) = (packed.src(), y[0].dst(), index[0].dst());
    kernels::MaxPool {
        x,
        y,
        index,
        planes,
        height,
        width,
        rows,
        columns,
        kernel_y,
        kernel_x,
        stride_y,
        stride_x,
        padding_y,
        padding_x,
        dilation_y,
        dilation_x,
    }
    .launch(stream)
}

/// dx from dy and the places.
pub(super) fn max_pool_backward(
    stream: &Stream,
    window: &Window<2>,
    (dy, index): (&View<'_>, &View<'_>),
    dx: &mut Out<'_>,
) -> Result<()> {
    let [height, width] = pair(image(&dx.shape()));
    let [rows, columns] = pair(image(&dy.shape()));
    let ([kernel_y, kernel_x], [stride_y, stride_x]) = (pair(window.kernel), pair(window.stride));
    let ([padding_y, padding_x], [dilation_y, dilation_x]) = (pair(window.padding), pair(window.dilation));
    let (add, planes) = (adds(dx), planes(&dy.shape()));
    let (dy, index) = (stream.contiguous(dy)?, stream.contiguous(index)?);
    kernels::MaxPoolBackward {
        dy: dy.src(),
        index: index.src(),
        dx: dx.dst(),
        planes,
        height,
        width,
        rows,
        columns,
        kernel_y,
        kernel_x,
        stride_y,
        stride_x,
        padding_y,
        padding_x,
        dilation_y,
        dilation_x,
        add,
    }
    .launch(stream)
}

/// Kernel, stride and padding along both dimensions, and whether padding counts; 1, 1, 0 for even parts, which read none.
fn sliding(parts: &Parts<'_>) -> ([[u32; 2]; 3], u32) {
    match parts {
        Parts::Windows(AvgPool2d { window, count_include_pad }) => {
            ([window.kernel, window.stride, window.padding].map(pair), u32::from(*count_include_pad))
        }
        Parts::Even => ([[1, 1], [1, 1], [0, 0]], 0),
    }
}

/// Averages.
pub(super) fn avg_pool(stream: &Stream, parts: Parts<'_>, x: &View<'_>, y: &mut Out<'_>) -> Result<()> {
    let f = match parts {
        Parts::Windows(_) => kernels::AvgPoolF::Sliding,
        Parts::Even => kernels::AvgPoolF::Even,
    };
    let ([[kernel_y, kernel_x], [stride_y, stride_x], [padding_y, padding_x]], counted) = sliding(&parts);
    let ([height, width], [rows, columns]) = (pair(image(&x.shape())), pair(image(&y.shape())));
    let (packed, planes) = (stream.contiguous(x)?, planes(&x.shape()));
    let (x, y) = (packed.src(), y.dst());
    kernels::AvgPool {
        f,
        x,
        y,
        planes,
        height,
        width,
        rows,
        columns,
        kernel_y,
        kernel_x,
        stride_y,
        stride_x,
        padding_y,
        padding_x,
        counted,
    }
    .launch(stream)
}

/// Shares of averages.
pub(super) fn avg_pool_backward(
    stream: &Stream,
    parts: Parts<'_>,
    dy: &View<'_>,
    dx: &mut Out<'_>,
) -> Result<()> {
    let f = match parts {
        Parts::Windows(_) => kernels::AvgPoolBackwardF::Sliding,
        Parts::Even => kernels::AvgPoolBackwardF::Even,
    };
    let ([[kernel_y, kernel_x], [stride_y, stride_x], [padding_y, padding_x]], counted) = sliding(&parts);
    let ([height, width], [rows, columns]) = (pair(image(&dx.shape())), pair(image(&dy.shape())));
    let (add, planes, packed) = (adds(dx), planes(&dy.shape()), stream.contiguous(dy)?);
    let (dy, dx) = (packed.src(), dx.dst());
    kernels::AvgPoolBackward {
        f,
        dy,
        dx,
        planes,
        height,
        width,
        rows,
        columns,
        kernel_y,
        kernel_x,
        stride_y,
        stride_x,
        padding_y,
        padding_x,
        counted,
        add,
    }
    .launch(stream)
}
