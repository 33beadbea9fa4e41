//! Attention on GPUs: which kernel takes what.

#![forbid(unsafe_code)]

use super::{Setting, bad_length};
use crate::device::Stream;
use crate::tensor::{Out, View};
use crate::{Error, Result};

/// Queries, keys and values.
pub(super) struct Inputs;

impl Inputs {
    pub fn apart(_: &Stream, _: [&View<'_>; 3]) -> Result<Inputs> {
        Ok(Inputs)
    }
    pub fn packed(_: &Stream, _: &View<'_>, _: &Setting, _: [usize; 3]) -> Result<Inputs> {
        Ok(Inputs)
    }
}

/// Which keys are valid.
pub(super) enum Extent<'a> {
    Lengths(Option<&'a View<'a>>),
    Segments(&'a View<'a>),
}

pub(super) struct Results;

impl Results {
    pub fn new(_: &Stream, _: [&View<'_>; 3], _: [usize; 3]) -> Result<Results> {
        Ok(Results)
    }
}

pub(super) struct Grads;

impl Grads {
    pub fn apart(_: &mut [Out<'_>], _: &Setting) -> Result<Grads> {
        Ok(Grads)
    }
    pub fn packed(_: &mut Out<'_>, _: &Setting) -> Grads {
        Grads
    }
}

pub(super) fn forward(_: &Stream, _: &Setting, _: Inputs, _: Extent<'_>, _: &mut [Out<'_>]) -> Result<()> {
    Err(Error::unsupported("attention", "no kernels yet"))
}

pub(super) fn backward(
    _: &Stream,
    _: &Setting,
    _: Inputs,
    _: Extent<'_>,
    _: Results,
    _: Grads,
) -> Result<()> {
    let _ = bad_length;
    Err(Error::unsupported("attention_backward", "no kernels yet"))
}
