//! Pooling on a GPU: the launches of `pool.cu`.

#![forbid(unsafe_code)]

use super::{AvgPool2d, Window};
use crate::device::Stream;
use crate::tensor::{Out, View};
use crate::{Error, Result};

/// What the averages are over.
pub(super) enum Parts<'a> {
    Windows(&'a AvgPool2d),
    Even,
}

fn soon(op: &'static str) -> Result<()> {
    Err(Error::unsupported(op, "no kernel yet"))
}

pub(super) fn max_pool(_: &Stream, _: &Window<2>, _: &View<'_>, _: &mut [Out<'_>]) -> Result<()> {
    soon("max_pool2d")
}

pub(super) fn max_pool_backward(
    _: &Stream,
    _: &Window<2>,
    _: [usize; 2],
    _: (&View<'_>, &View<'_>),
    _: &mut Out<'_>,
) -> Result<()> {
    soon("max_pool2d_backward")
}

pub(super) fn avg_pool(_: &Stream, parts: Parts<'_>, _: &View<'_>, _: &mut Out<'_>) -> Result<()> {
    match parts {
        Parts::Windows(_) => soon("avg_pool2d"),
        Parts::Even => soon("adaptive_avg_pool2d"),
    }
}

pub(super) fn avg_pool_backward(_: &Stream, parts: Parts<'_>, _: &View<'_>, _: &mut Out<'_>) -> Result<()> {
    match parts {
        Parts::Windows(_) => soon("avg_pool2d_backward"),
        Parts::Even => soon("adaptive_avg_pool2d_backward"),
    }
}
