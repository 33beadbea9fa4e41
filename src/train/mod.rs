//! Training, saving, resuming and using a model on a data set, without a command line.
//!
//! ```no_run
//! use std::{path::Path, sync::atomic::AtomicBool};
//! use warpsmith::data::{Dataset, DatasetOptions, digits};
//! use warpsmith::train::{Network, Predictor, Silent, TrainConfig, Trainer};
//! # fn main() -> warpsmith::Result<()> {
//! let data = Dataset::build(&digits()?, None, &DatasetOptions::default())?;
//! let (network, config) = ("mlp:256,128".parse::<Network>()?, TrainConfig::default());
//! let dir = Path::new("runs/digits");
//! let device = warpsmith::Device::cpu();
//! let mut trainer = Trainer::new(data, network, config, Default::default(), device, dir)?;
//! let report = trainer.run(&mut Silent, &AtomicBool::new(false))?;
//! println!("test accuracy {:.3}", report.metrics["accuracy"]);
//! let (predictions, _) = Predictor::open(dir, device)?.predict(&digits()?)?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod lm;
pub mod log;
pub mod metrics;
mod model;
pub mod network;
mod observe;
mod place;
mod predictor;
pub mod report;
mod spec;
mod trainer;
pub mod tune;
pub(crate) mod weights;

pub use checkpoint::Judge;
pub use metrics::Metrics;
pub(crate) use model::can_allocate;
pub use model::{Answers, Architecture, Model};
pub use network::Network;
pub use observe::{EpochReport, Observer, Report, Silent};
pub use predictor::{Predictions, Predictor};
pub use spec::{Hidden, OptimizerKind, PrecisionKind, ScheduleSpec, TrainConfig};
pub use trainer::{Trainer, data_checksum};
