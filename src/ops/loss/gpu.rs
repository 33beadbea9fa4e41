//! What the losses' GPU bodies share: how rows are dealt out, whether vectors can be used, how sums are finished.

#![forbid(unsafe_code)]

use super::Reduction;
use crate::device::Stream;
use crate::device::kernels::loss::{FinishLoss, SetDivisor};
use crate::device::launch::Dst;
use crate::device::stream::{Packed, Temp};
use crate::tensor::{Out, View};
use crate::{DType, Result, Shape};

/// Elements that a thread loads together: `GROUP` in the kernels.
const GROUP: usize = 8;
/// The most classes that threads of one warp share; above, a block takes a row.
const NARROW: usize = 1024;

/// How rows of classes are dealt out.
#[derive(Clone, Copy)]
pub(super) struct RowPlan {
    pub rows: u64,
    pub classes: u64,
    /// Elements from row to row: the classes, and padding behind them.
    pub pitch: u64,
    /// Threads of a row.
    pub lanes: u64,
    /// Whether that is a whole block.
    pub wide: u32,
}

impl RowPlan {
    /// For logits of `shape`.
    pub fn new(shape: Shape) -> RowPlan {
        RowPlan::padded(shape, shape[shape.rank() - 1])
    }

    /// For logits of `shape`, of which the first `classes` of each row count.
    pub fn padded(shape: Shape, classes: usize) -> RowPlan {
        let last = shape.rank() - 1;
        let (pitch, rows) = (shape[last], shape.without(last).numel());
        let lanes = if classes > NARROW { 256 } else { classes.div_ceil(GROUP).next_power_of_two().min(32) };
        RowPlan {
            rows: rows as u64,
            classes: classes as u64,
            pitch: pitch as u64,
            lanes: lanes as u64,
            wide: u32::from(lanes == 256),
        }
    }

    /// Thread blocks of a launch.
    pub fn blocks(&self) -> usize {
        (self.rows * self.lanes).div_ceil(256) as usize
    }

    /// 1 if the rows at all these addresses can be read in vectors of 16 bytes.
    pub fn flat(&self, dtype: DType, addresses: &[u64]) -> u32 {
        let whole = (self.pitch as usize * dtype.size()).is_multiple_of(16);
        u32::from(whole && addresses.iter().all(|a| a % 16 == 0))
    }
}

/// Where a launch leaves its sums: in the loss itself if it is one block, else in parts that are added up afterwards.
pub(super) enum Sums<'a> {
    Whole,
    Parts(Temp<'a>),
}

impl<'a> Sums<'a> {
    /// For a launch of `blocks` blocks.
    pub fn new(s: &'a Stream, blocks: usize) -> Result<Sums<'a>> {
        Ok(if blocks == 1 { Sums::Whole } else { Sums::Parts(s.temp(DType::F64, 2 * blocks.max(1))?) })
    }

    /// The arguments `loss` and `parts` of the launch.
    pub fn split<'b>(&'b mut self, loss: Dst<'b>) -> (Option<Dst<'b>>, Option<Dst<'b>>) {
        match self {
            Sums::Whole => (Some(loss), None),
            Sums::Parts(parts) => (None, Some(parts.dst())),
        }
    }

    /// Adds up the parts: the loss is their sum divided by `by`, or by the sum of the counts if `weighted`.
    pub fn finish(
        &self,
        s: &Stream,
        blocks: usize,
        loss: Dst<'_>,
        divisor: Option<Dst<'_>>,
        by: f64,
        weighted: u32,
    ) -> Result<()> {
        match self {
            Sums::Whole => Ok(()),
            Sums::Parts(parts) => {
                let parts = parts.src();
                FinishLoss { parts, loss, divisor, blocks: blocks as u64, by, weighted }.launch(s)
            }
        }
    }
}

/// Writes a divisor that no launch computes.
pub(super) fn set_divisor(s: &Stream, out: &mut Out<'_>, value: f64) -> Result<()> {
    SetDivisor { y: out.dst(), value }.launch(s)
}

/// The gradient of rows' losses in row-major order, and the step from row to row: 0 where there is one for all.
pub(super) fn dy_of<'a>(s: &'a Stream, dy: &View<'a>, reduction: Reduction) -> Result<(Packed<'a>, u64)> {
    Ok((s.contiguous(dy)?, u64::from(reduction == Reduction::None)))
}
