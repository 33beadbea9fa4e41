//! Judges a machine: can warpsmith compute here, on the GPU too, and at full speed? Each check says what was found and, where
//! something is amiss, how to mend it.
//!
//! A GPU that cannot be used is a warning as long as nobody asked for one, since the CPU serves; asked for, it is a failure.
//! A GPU that computes wrong is always one. What belongs to the environment comes from the caller.

#![forbid(unsafe_code)]

mod gpu;

use std::path::PathBuf;
use std::process::Command;

use crate::cpu::simd::Isa;
use crate::device::cuda::{self, Code};
use crate::device::fatbin;
use crate::device::kernels::BUILD_INFO;
use crate::device::{nccl, trial};
use crate::{Device, Error, Result};

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Pass,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Fail,
    /// Not looked at: not there, not asked for, or of no use here.
    Skip,
}

impl Status {
    /// `PASS`, `WARN`, `FAIL` or `SKIP`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pass => "PASS",
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
            Status::Skip => "SKIP",
        }
    }
}

/// What was looked at and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// A short name, the same on every machine.
    pub name: &'static str,
    /// The device it is about, such as `cuda:0`, where it is about one.
    pub device: Option<String>,
    /// The verdict.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// How to mend it; empty where nothing needs mending.
    pub fix: String,
}

impl Check {
    fn new(name: &'static str, status: Status, message: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name, device: None, status, message: message.into(), fix: fix.into() }
    }

    fn pass(name: &'static str, message: impl Into<String>) -> Check {
        Check::new(name, Status::Pass, message, "")
    }

    fn skip(name: &'static str, message: impl Into<String>) -> Check {
        Check::new(name, Status::Skip, message, "")
    }

    /// A check that failed with an error; its help is the mend.
    fn error(name: &'static str, status: Status, error: &Error, fix: &str) -> Check {
        let mut message = error.message().to_owned();
        if let Some(op) = error.op() {
            message = format!("{op}: {message}");
        }
        Check::new(name, status, message, error.help().unwrap_or(fix))
    }

    fn on(mut self, device: &str) -> Check {
        self.device = Some(device.to_owned());
        self
    }
}

/// Which device is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    /// Whatever there is.
    Auto,
    Cpu,
    Cuda(usize),
    /// A simulator, by the text that opens it.
    Sim(String),
}

/// What is to be judged.
#[derive(Clone, Debug)]
pub struct Doctor {
    asked: Asked,
    /// Files that nvcc may be, in the order in which they are tried.
    pub nvcc: Vec<PathBuf>,
    /// Environment variables that change what a GPU does, with their values.
    pub variables: Vec<(String, String)>,
    /// Where results will be written.
    pub folder: PathBuf,
}

impl Doctor {
    /// For a device as `--device` takes it; nothing is opened yet.
    pub fn new(device: &str) -> Result<Doctor> {
        let asked = match device {
            "auto" => Asked::Auto,
            "cpu" => Asked::Cpu,
            "cuda" => Asked::Cuda(0),
            _ => match device.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Asked::Cuda(index),
                _ if cfg!(feature = "sim") && device.split(':').next() == Some("sim") => {
                    Asked::Sim(device.to_owned())
                }
                // Says what is known here.
                _ => return Err(device.parse::<Device>().err().unwrap_or_else(|| Error::argument(device))),
            },
        };
        Ok(Doctor { asked, nvcc: Vec::new(), variables: Vec::new(), folder: PathBuf::from(".") })
    }

    /// Looks at everything.
    pub fn run(&self) -> Vec<Check> {
        let mut checks = vec![self.kernels()];
        match &self.asked {
            Asked::Sim(text) => {
                checks.extend(gpu::NAMES.map(|name| Check::skip(name, "the simulator was asked for")));
                let ran = text.parse::<Device>().and_then(trial::run);
                checks.push(match ran {
                    Ok(()) => Check::pass("kernel", "the probe kernel ran and gave the right values"),
                    Err(e) => Check::error("kernel", Status::Fail, &e, "please report this"),
                });
                if let Some(check) = checks.last_mut() {
                    check.device = Some(text.clone());
                }
            }
            _ => gpu::checks(self, &mut checks),
        }
        checks.extend([
            self.find_nvcc(),
            self.find_nccl(),
            processor(),
            memory(),
            self.disk(),
            self.environment(),
        ]);
        checks
    }

    /// The status of a GPU that cannot be used.
    fn unusable(&self) -> Status {
        if matches!(self.asked, Asked::Cuda(_)) { Status::Fail } else { Status::Warn }
    }

    fn kernels(&self) -> Check {
        let code = Code::embedded();
        match BUILD_INFO.nvcc {
            Some(nvcc) if !code.units.is_empty() => {
                let bytes: usize = code.units.iter().map(|(_, bytes)| bytes.len()).sum();
                Check::pass(
                    "kernels",
                    format!(
                        "{} units compiled by nvcc {nvcc} for {}; {} KB",
                        code.units.len(),
                        fatbin::list(&code.images()),
                        bytes.div_ceil(1000)
                    ),
                )
            }
            _ => Check::new(
                "kernels",
                self.unusable(),
                "this build has no GPU kernels: no nvcc was found when it was built",
                "run scripts/get-nvcc.sh, or set NVCC or CUDA_HOME, and build again",
            ),
        }
    }

    fn find_nvcc(&self) -> Check {
        let Some(path) = self.nvcc.iter().find(|path| path.is_file()) else {
            let message = "no nvcc found";
            return match BUILD_INFO.nvcc {
                Some(_) => Check::skip("nvcc", format!("{message}; it is needed only to build")),
                None => {
                    Check::new("nvcc", Status::Warn, message, "scripts/get-nvcc.sh installs one without root")
                }
            };
        };
        let said = Command::new(path).arg("--version").output();
        let said = said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let version = said.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
        let (path, fix) = (path.display(), "install CUDA 12.8 or newer, or run scripts/get-nvcc.sh");
        match version.and_then(|v| Some((v, cuda::version(v)?))) {
            None => Check::new("nvcc", Status::Warn, format!("{path} does not say its version"), fix),
            // Blackwell needs 12.8; older ones build without it.
            Some((text, number)) if number < (12, 8) => {
                Check::new("nvcc", Status::Warn, format!("{path} is {text}, too old for some GPUs"), fix)
            }
            Some((text, _)) => Check::pass("nvcc", format!("{path}, version {text}")),
        }
    }

    fn find_nccl(&self) -> Check {
        match nccl::find() {
            Some(nccl::Nccl { path, version: (major, minor, patch) }) => {
                Check::pass("nccl", format!("{path}, version {major}.{minor}.{patch}"))
            }
            None => match cuda::count() {
                Ok(gpus @ 2..) => Check::new(
                    "nccl",
                    Status::Warn,
                    format!("no libnccl.so.2 found, and there are {gpus} GPUs"),
                    "install libnccl2, or put the folder of pip's nvidia-nccl into LD_LIBRARY_PATH",
                ),
                _ => Check::skip("nccl", "no libnccl.so.2 found; it is needed only for several GPUs"),
            },
        }
    }

    fn disk(&self) -> Check {
        let folder = self.folder.display();
        let space = match rustix::fs::statvfs(&self.folder) {
            Ok(space) => space,
            Err(e) => {
                let fix = "start warpsmith in a folder that exists";
                return Check::new("disk", Status::Warn, format!("{folder}: {e}"), fix);
            }
        };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let said = format!("{} free in {folder}", gigabytes(free));
        if rustix::fs::access(&self.folder, rustix::fs::Access::WRITE_OK).is_err() {
            let fix = "models and results are written there: use another folder, or --out";
            return Check::new("disk", Status::Warn, format!("{folder} cannot be written to"), fix);
        }
        match free {
            ..1_000_000_000 => Check::new("disk", Status::Warn, said, "checkpoints need space: make some"),
            _ => Check::pass("disk", said),
        }
    }

    fn environment(&self) -> Check {
        let list = self
            .variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" ");
        let value = |name: &str| {
            self.variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.trim().to_owned())
        };
        if value("CUDA_VISIBLE_DEVICES").is_some_and(|v| v.is_empty() || v.starts_with('-')) {
            let fix = "unset CUDA_VISIBLE_DEVICES, or set it to 0";
            return Check::new("environment", self.unusable(), format!("{list}: hides every GPU"), fix);
        }
        if value("CUDA_LAUNCH_BLOCKING").is_some_and(|v| v == "1") {
            let fix = "unset CUDA_LAUNCH_BLOCKING once the fault it was set for is found";
            return Check::new("environment", Status::Warn, format!("{list}: every launch waits"), fix);
        }
        match list.is_empty() {
            true => Check::pass("environment", "no variable that changes what a GPU does"),
            false => Check::pass("environment", list),
        }
    }
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (isa, cores) = (Isa::detect(), format!("{cores} cores"));
    match isa {
        Isa::Avx512 => Check::pass("cpu", format!("{cores}, AVX-512")),
        Isa::Avx2 => Check::pass("cpu", format!("{cores}, AVX2 and FMA")),
        Isa::Portable => Check::new(
            "cpu",
            Status::Warn,
            format!("{cores}, neither AVX2 nor AVX-512: CPU products run at a fraction of the usual speed"),
            "in a virtual machine, pass the host's processor features through",
        ),
    }
}

fn memory() -> Check {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return Check::skip("memory", "this system does not say how much memory is free");
    };
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    match (field("MemAvailable"), field("MemTotal")) {
        (Some(free), Some(all)) => {
            let said = format!("{} of {} free", gigabytes(free), gigabytes(all));
            match free {
                ..1_000_000_000 => {
                    Check::new("memory", Status::Warn, said, "close programs that use much of it")
                }
                _ => Check::pass("memory", said),
            }
        }
        _ => Check::skip("memory", "this system does not say how much memory is free"),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
