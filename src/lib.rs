//! warpsmith: trains and runs neural networks.
pub mod autograd;
#[cfg(feature = "train")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cpu;
#[cfg(feature = "train")]
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod io;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod param;
pub mod random;
pub mod shape;
pub mod tensor;
#[cfg(feature = "train")]
pub mod train;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use param::{Arena, Param};
pub use shape::Shape;
pub use tensor::Tensor;
