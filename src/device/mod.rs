//! Devices: where a tensor's memory lives and its ops run.
//!
//! The GPU driver, its pool, streams and launches come here. In this version the only device that can be opened is the
//! CPU; asking for another is an error of kind `NoDevice`, never a silent CPU run.

pub mod driver;

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// A place to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The host processor.
    Cpu,
}

impl Device {
    /// The host processor.
    pub const fn cpu() -> Device {
        Device::Cpu
    }

    /// CUDA device `index`. Always an error of kind `NoDevice` until the CUDA back end is part of the crate.
    pub fn cuda(index: usize) -> Result<Device> {
        let message = format!("cuda:{index} cannot be used: this version of warpsmith has no CUDA back end");
        Err(Error::new(ErrorKind::NoDevice, message).with_help("use --device cpu, or --device auto"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the fastest device that can be opened.
    fn from_str(text: &str) -> Result<Device> {
        match text {
            "auto" | "cpu" => Ok(Device::Cpu),
            "cuda" => Device::cuda(0),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Device::cuda(index),
                _ => Err(Error::argument(format!(
                    "unknown device {text:?}: expected auto, cpu, cuda or cuda:N"
                ))),
            },
        }
    }
}

/// A queue of work on a GPU. No value of it can exist until the CUDA back end is part of the crate.
#[derive(Debug)]
pub enum Stream {}
