//! Everything between a file and a batch of numbers: tables, preparation, splits and loaders.
//!
//! ```text
//! file ─ Table ─ Dataset::build ┬ Preparation (fitted on the training part, saved in the model)
//!                               └ Part × train, validation, test ─ Loader ─ Batch
//! ```
//! Buffers are plain row-major host memory; the training loop turns batches into tensors. Nothing here knows a tensor, and
//! everything is a pure function of its input and a seed: the same on every machine and for every number of threads.
#![forbid(unsafe_code)]

mod read;
mod schema;
mod table;

pub use schema::{Matched, Matching, Schema, TargetUse};
pub use table::{Column, ColumnKind, Table, Texts};
