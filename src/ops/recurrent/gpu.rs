//! Recurrent networks on a GPU: for each step a product and a kernel of `recurrent.cu`, queued without waiting.

#![forbid(unsafe_code)]

use super::{Direction, Rnn, RnnBackward};
use crate::cpu::activation::Activation;
use crate::device::Stream;
use crate::tensor::{Out, View};
use crate::{Error, Result};

fn later(op: &'static str) -> Result<()> {
    Err(Error::unsupported(op, "recurrent networks have no kernels yet"))
}

pub(super) fn lstm_cell(_: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("lstm_cell")
}
pub(super) fn lstm_cell_backward(_: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("lstm_cell_backward")
}
pub(super) fn lstm(_: &Stream, _: Direction, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("lstm")
}
pub(super) fn lstm_backward(_: &Stream, _: Direction, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("lstm_backward")
}
pub(super) fn gru_cell(_: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("gru_cell")
}
pub(super) fn gru_cell_backward(_: &Stream, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("gru_cell_backward")
}
pub(super) fn gru(_: &Stream, _: Direction, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("gru")
}
pub(super) fn gru_backward(_: &Stream, _: Direction, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("gru_backward")
}
pub(super) fn rnn_cell(_: &Stream, _: Activation, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("rnn_cell")
}
pub(super) fn rnn(_: &Stream, _: Rnn, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("rnn")
}
pub(super) fn rnn_backward(_: &Stream, _: RnnBackward, _: &[View<'_>], _: &mut [Out<'_>]) -> Result<()> {
    later("rnn_backward")
}
