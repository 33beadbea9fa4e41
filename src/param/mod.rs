//! Parameters: one flat arena for values, gradients and optimiser state, addressed by id.
//!
//! A layer registers its parameters in an [`Arena`] and keeps a [`Param`] of each, never a tensor; [`Param::get`] makes
//! the view at use. All flat buffers of an arena share one element index space in registration order, in which each
//! parameter starts at a multiple of [`ALIGN`] elements. So one call updates the whole model, one takes the global norm,
//! and a run of gradients is a slice. The gaps between parameters are zero and stay zero.
//!
//! Values change from step to step only through [`StepBlock`]: learning rates, the step number and whatever else an
//! optimiser or dropout reads lives in two small tensors there, so that a captured step can be replayed.

#![forbid(unsafe_code)]

mod arena;
mod parameter;
mod precision;
mod step;

pub use arena::Arena;
pub use parameter::{Buffer, Param};
pub use precision::{LossScale, Precision, Rounding, StateDType};
pub use step::StepBlock;

/// Elements that each parameter's start is aligned to; also the block size of the group table.
pub const ALIGN: usize = 256;
/// The most parameter groups of an arena.
pub const MAX_GROUPS: usize = 16;
/// The entry of the group table that tells optimisers to leave a block alone: its parameter is frozen.
pub const FROZEN: u8 = u8::MAX;
