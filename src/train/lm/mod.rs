//! Language models: a GPT trained on text, its folder, and text made by it.
//!
//! ```no_run
//! use std::{path::Path, sync::atomic::AtomicBool};
//! use warpsmith::data::text::{TextData, TokenizerKind};
//! use warpsmith::train::lm::{GptSpec, LmConfig, LmTrainer, Silent};
//! # fn main() -> warpsmith::Result<()> {
//! let data = TextData::builtin(TokenizerKind::Char, 0.1)?;
//! let (spec, config) = ("gpt:4x4x128".parse::<GptSpec>()?, LmConfig::default());
//! let (device, dir) = (warpsmith::Device::cpu(), Path::new("runs/text"));
//! let mut trainer = LmTrainer::new(data, &spec, config, Default::default(), device, dir)?;
//! let report = trainer.run(&mut Silent, &AtomicBool::new(false))?;
//! println!("validation loss {:.3}", report.val_loss.unwrap_or(f64::NAN));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod config;
mod folder;
mod generate;
pub mod huggingface;
mod model;
mod plan;
mod trainer;

pub use config::{GptSpec, LmConfig};
pub use folder::{LmFile, LmProgress, is_language_model, load_model, open, read_progress};
pub use generate::{Generated, Generator};
pub use model::{LanguageModel, flops_per_token};
pub use plan::{MemoryPlan, PlanOptions};
pub use trainer::{Evaluation, LmObserver, LmReport, LmTrainer, Silent};
