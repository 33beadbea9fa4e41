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

impl Parts<'_> {
    /// The windows, and whether padding counts; 1, 1, 0 for even parts, which read none.
    fn sliding(&self) -> (Window<2>, u32) {
        match self {
            Parts::Windows(AvgPool2d { window, count_include_pad }) => {
                (*window, u32::from(*count_include_pad))
            }
            Parts::Even => (Window::new([1, 1]), 0),
        }
    }
}

/// Launches a kernel with the arguments that all have, of windows over images of one shape that give results of another, and its
/// own.
macro_rules! launch {
    ($stream:expr, $kernel:path, $window:expr, $images:expr, $results:expr, $($own:ident: $value:expr),* $(,)?) => {{
        let (window, images): (&Window<2>, Shape) = ($window, $images);
        let ([height, width], [rows, columns]) = (pair(image(&images)), pair(image(&$results)));
        let ([kernel_y, kernel_x], [stride_y, stride_x]) = (pair(window.kernel), pair(window.stride));
        let [padding_y, padding_x] = pair(window.padding);
        let planes = images[..images.rank() - 2].iter().product::<usize>() as u64;
        $kernel {
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
            $($own: $value),*
        }
        .launch($stream)
    }};
}

/// Largest elements and their places.
pub(super) fn max_pool(
    stream: &Stream,
    window: &Window<2>,
    x: &View<'_>,
    outputs: &mut [Out<'_>],
) -> Result<()> {
    let [dilation_y, dilation_x] = pair(window.dilation);
    let packed = stream.contiguous(x)?;
    let (y, index) = outputs.split_at_mut(1);
    launch!(stream, kernels::MaxPool, window, x.shape(), y[0].shape(),
        x: packed.src(),
        y: y[0].dst(),
        index: index[0].dst(),
        dilation_y: dilation_y,
        dilation_x: dilation_x,
    )
}

/// dx from dy and the places.
pub(super) fn max_pool_backward(
    stream: &Stream,
    window: &Window<2>,
    (dy, index): (&View<'_>, &View<'_>),
    dx: &mut Out<'_>,
) -> Result<()> {
    let [dilation_y, dilation_x] = pair(window.dilation);
    let (add, packed, index) = (adds(dx), stream.contiguous(dy)?, stream.contiguous(index)?);
    launch!(stream, kernels::MaxPoolBackward, window, dx.shape(), dy.shape(),
        dy: packed.src(),
        index: index.src(),
        dx: dx.dst(),
        dilation_y: dilation_y,
        dilation_x: dilation_x,
        add: add,
    )
}

/// Averages.
pub(super) fn avg_pool(stream: &Stream, parts: Parts<'_>, x: &View<'_>, y: &mut Out<'_>) -> Result<()> {
    let f = match parts {
        Parts::Windows(_) => kernels::AvgPoolF::Sliding,
        Parts::Even => kernels::AvgPoolF::Even,
    };
    let ((window, counted), packed) = (parts.sliding(), stream.contiguous(x)?);
    launch!(stream, kernels::AvgPool, &window, x.shape(), y.shape(),
        f: f,
        x: packed.src(),
        y: y.dst(),
        counted: counted,
    )
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
    let ((window, counted), add, packed) = (parts.sliding(), adds(dx), stream.contiguous(dy)?);
    launch!(stream, kernels::AvgPoolBackward, &window, dx.shape(), dy.shape(),
        f: f,
        dy: packed.src(),
        dx: dx.dst(),
        counted: counted,
        add: add,
    )
}
