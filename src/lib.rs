//! A compute engine that trains and runs neural networks: on the CPU now, on NVIDIA GPUs with kernels of its own next.
//!
//! ```
//! use warpsmith::nn::{Activation, Cx, Linear, Module, Scope, Sequential};
//! use warpsmith::ops::CrossEntropy;
//! use warpsmith::optim::{Adam, Optimizer};
//! use warpsmith::{Arena, DType, Device, Tensor};
//!
//! let device = Device::cpu();
//! let arena = Arena::new(DType::F32, device)?;
//! let scope = Scope::new(&arena, 42);
//! let net = Sequential::new()
//!     .push(Linear::new(&scope.enter(0), 2, 16)?.with_activation(Activation::Relu))
//!     .push(Linear::new(&scope.enter(2), 16, 2)?);
//! let mut adam = Optimizer::new(&arena, Adam::default(), 0.01)?;
//! let x = Tensor::from_slice(&[0f32, 0., 0., 1., 1., 0., 1., 1.], [4, 2], device)?;
//! let xor = Tensor::from_slice(&[0i64, 1, 1, 0], 4, device)?;
//! let mut last = f64::NAN;
//! for _ in 0..300 {
//!     let mut cx = Cx::train(arena.step_block(), 42)?;
//!     let loss = net.forward(&mut cx, &x)?.cross_entropy(&xor, CrossEntropy::default())?;
//!     last = loss.item()?;
//!     arena.backward(&loss)?; // an error if a parameter got no gradient
//!     adam.step()?; // one pass over all parameters
//! }
//! assert!(last < 0.05);
//! # Ok::<(), warpsmith::Error>(())
//! ```
//!
//! # The parts
//!
//! | module | what |
//! | --- | --- |
//! | [`tensor`] | [`Tensor`]: a layout over shared memory; views; `no_grad` |
//! | [`ops`] | everything that computes, as methods of [`Tensor`]; the trait [`ops::Op`] for ops of your own |
//! | [`autograd`] | backward; the gradient checker |
//! | [`param`] | [`Arena`] and [`Param`]: all parameters of a model in flat buffers |
//! | [`nn`], [`optim`] | layers and initialisers; optimisers, clipping, schedules |
//! | [`io`] | safetensors, npy, model folders that are replaced whole |
//! | `data`, `train`, `bench` | tables, preparation, loaders; the training loop, checkpoints, prediction; measuring (feature `train`) |
//! | `cli` | the command line (feature `cli`) |
//! | [`cpu`] | the CPU back end: loops, products, threads ([`cpu::par::with_threads`]), the memory pool |
//!
//! # Features
//!
//! | feature | what | default |
//! | --- | --- | --- |
//! | `train` | data sets, preparation, model folders, the training loop, prediction | through `cli` |
//! | `cli` | the `warpsmith` binary | yes |
//!
//! Without default features this is the bare engine, with half, bytemuck and rayon as its only dependencies.
//!
//! # Promises
//!
//! The same seed gives the same bits for any number of threads. Nothing is promoted implicitly: mixed dtypes are an error
//! that names both. Bad input is an [`Error`], never a panic. Memory that is borrowed in a conflicting way is an error,
//! never a wait; a tensor that was saved for backward and then changed in place is noticed.

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
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod selftest;
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
