//! Everything between a file and a batch of numbers: tables, pictures, preparation, splits, augmentation and loaders.
//!
//! ```text
//! file ─ Table ── Dataset::build ─────── ┬ Preparation (fitted on the training part, saved in the model)
//!      └ Images ─ Dataset::from_images ─ ┴ Part × train, validation, test ─ Loader (Augment, Order) ─ Batch
//! ```
//! Buffers are plain row-major host memory; the training loop turns batches into tensors. Nothing here knows a tensor, and
//! everything is a pure function of its input and a seed: the same on every machine and for every number of threads.
#![forbid(unsafe_code)]

mod array;
mod augment;
mod balance;
mod dataset;
mod digits;
mod images;
mod loader;
mod pixels;
mod prepare;
mod read;
mod scaling;
mod schema;
mod split;
mod store;
mod table;
mod target;
mod task;
pub mod text;

pub use augment::Augment;
pub use balance::{ClassWeights, Sampler};
pub use dataset::{Dataset, DatasetOptions, Part};
pub use digits::{DIGITS_TARGET, digits};
pub use images::{ArraySet, FASHION_MNIST, ImageOptions, ImageSet, Images, LABEL, is_idx_folder, is_picture};
pub use loader::{Batch, LastBatch, Loader, LoaderOptions, Order, Position, batch_size};
pub use pixels::PixelScaling;
pub use prepare::{
    Features, Incomplete, Input, MAX_CATEGORIES, Missing, NumberOptions, Preparation, PrepareOptions,
};
pub use scaling::{Scale, Scaling};
pub use schema::{Matched, Matching, Schema, TargetUse};
pub use split::{Split, SplitOptions, split};
pub use store::Store;
pub use table::{Column, ColumnKind, Table, Texts};
pub use target::{Target, Targets};
pub use task::{Classes, Labels, MAX_FOUND_CLASSES, Task, resolve_task};
