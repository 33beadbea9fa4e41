//! warpsmith: trains and runs neural networks.
#[cfg(feature = "train")]
pub mod data;
pub mod dtype;
pub mod error;
pub mod random;

pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
