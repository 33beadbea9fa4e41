//! Devices: where a tensor's memory lives and its ops run.
//!
//! [`Device`] names one; opening it makes its [`Stream`], which is kept for the life of the process. A GPU is reached
//! through one trait, [`driver::Driver`], which the CUDA driver and the simulator implement. Asking for a device that
//! cannot be had is an error of kind `NoDevice`, never a silent CPU run.

pub(crate) mod copy;
pub mod cuda;
pub mod driver;
pub(crate) mod elementwise;
pub mod fatbin;
pub mod gemm;
pub(crate) mod graph;
pub mod kernels;
pub mod launch;
mod library;
pub mod nccl;
pub mod nvml;
pub mod pool;
pub mod primitives;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stream;
pub mod trial;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use crate::{Error, Result};

pub use graph::Graph;
pub use pool::MemoryReport;
pub use stream::Stream;

/// A place to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The host processor.
    Cpu,
    /// A CUDA device that [`Device::cuda`] has opened.
    Cuda(u16),
    /// A simulated GPU that `Device::sim` has opened.
    Sim(u16),
}

/// The open devices. A stream is never closed: tensors anywhere may hold its memory.
static OPEN: Mutex<Vec<(Device, &'static Stream)>> = Mutex::new(Vec::new());

impl Device {
    /// The host processor.
    pub const fn cpu() -> Device {
        Device::Cpu
    }

    /// Opens CUDA device `index`. An error of kind `NoDevice` says why it cannot be had.
    pub fn cuda(index: usize) -> Result<Device> {
        let device = Device::Cuda(u16::try_from(index).unwrap_or(u16::MAX));
        let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
        if !open.iter().any(|(d, _)| *d == device) {
            open.push((device, leak(device, cuda::open(index)?)));
        }
        Ok(device)
    }

    /// A simulated GPU of its own, with forward scheduling and no checks.
    #[cfg(feature = "sim")]
    pub fn sim() -> Device {
        Device::sim_with(sim::SimOptions::default())
    }

    /// A simulated GPU of its own.
    #[cfg(feature = "sim")]
    pub fn sim_with(options: sim::SimOptions) -> Device {
        let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
        let index = open.iter().filter(|(d, _)| matches!(d, Device::Sim(_))).count();
        let device = Device::Sim(index as u16);
        open.push((device, leak(device, Arc::new(sim::Simulator::new(options)))));
        device
    }

    /// Whether this is the host processor.
    pub const fn is_cpu(self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// The open device; `None` for the host processor.
    pub fn stream(self) -> Option<&'static Stream> {
        let open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
        open.iter().find(|(d, _)| *d == self).map(|(_, s)| *s)
    }

    /// As [`Device::stream`], for code that runs on GPUs only.
    pub(crate) fn gpu(self) -> Result<&'static Stream> {
        self.stream().ok_or_else(|| Error::internal(format!("{self} is not an open GPU")))
    }

    /// Waits until all work queued on the device is done. Raises errors of kernels that surfaced meanwhile.
    #[track_caller]
    pub fn synchronize(self) -> Result<()> {
        match self.stream() {
            Some(stream) => stream.synchronize(),
            None => Ok(()),
        }
    }
}

fn leak(device: Device, driver: Arc<dyn driver::Driver>) -> &'static Stream {
    Box::leak(Box::new(Stream::new(device, driver)))
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Sim(0) => f.write_str("sim"),
            Device::Sim(index) => write!(f, "sim:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`, and opens the device; `auto` is the fastest that can be opened. Builds
    /// with the feature `sim` also know `sim` and
    /// `sim:OPTIONS` (see `SimOptions`).
    fn from_str(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::cuda(0).unwrap_or(Device::Cpu)),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Device::cuda(0),
            #[cfg(feature = "sim")]
            "sim" => {
                // One device for all who ask by this name.
                static SHARED: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
                Ok(*SHARED.get_or_init(Device::sim))
            }
            #[cfg(feature = "sim")]
            _ if text.starts_with("sim:") => Ok(Device::sim_with(text["sim:".len()..].parse()?)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Device::cuda(index),
                _ => Err(Error::argument(format!(
                    "unknown device {text:?}: expected auto, cpu, cuda or cuda:N"
                ))),
            },
        }
    }
}
