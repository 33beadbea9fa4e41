//! `warpsmith doctor`: judges the machine, and says how to mend what is amiss.

#![forbid(unsafe_code)]

use std::env;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::output;
use crate::bench::{Check, Doctor, Status};
use crate::{Error, ErrorKind, Result};

/// Check what this machine has and whether warpsmith can use it: driver, GPUs, a kernel, tools, memory, disk.
///
/// Each check is PASS, WARN, FAIL or SKIP, with the mend where there is one. The exit code is 1 if one is FAIL. Without a GPU
/// that is a warning, unless --device asks for one.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  warpsmith doctor
  warpsmith doctor --device cuda --json

{}", super::EXIT_CODES))]
pub(super) struct DoctorArgs {
    /// auto (all there is), cpu or cuda[:N]
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Variables that change what a GPU does.
const VARIABLES: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_CACHE_DISABLE",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
];

/// Runs the command.
pub(super) fn run(args: DoctorArgs) -> Result<()> {
    let mut doctor = Doctor::new(&args.device)?;
    doctor.nvcc = nvcc();
    let value = |name: &&str| Some((String::from(*name), env::var_os(name)?.to_string_lossy().into_owned()));
    doctor.variables = VARIABLES.iter().filter_map(value).collect();
    doctor.folder = env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let checks = doctor.run();
    if args.json {
        let object = |c: &Check| {
            json!({
                "name": c.name,
                "device": c.device,
                "status": c.status.name(),
                "message": c.message,
                "fix": c.fix,
            })
        };
        let list: Vec<Value> = checks.iter().map(object).collect();
        output::json_to_stdout(&json!({ "version": env!("CARGO_PKG_VERSION"), "checks": list }))?;
    } else {
        output::to_stdout(|o| {
            for check in &checks {
                let name = check.device.as_ref().map_or(check.name.into(), |d| format!("{} {d}", check.name));
                writeln!(o, "{}  {name:20} {}", check.status.name(), check.message)?;
                if !check.fix.is_empty() {
                    writeln!(o, "      fix: {}", check.fix)?;
                }
            }
            Ok(())
        })?;
    }
    match checks.iter().filter(|c| c.status == Status::Fail).count() {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::Diverged, format!("{n} of {} checks failed", checks.len()))),
    }
}

/// Where build.rs looks for nvcc, in its order.
fn nvcc() -> Vec<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut files: Vec<PathBuf> = set("NVCC").into_iter().collect();
    let mut folders: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).map(|f| f.join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.extend(["/usr/local/cuda/bin".into(), "target/cuda-toolkit/bin".into()]);
    files.extend(folders.into_iter().map(|f| f.join("nvcc")));
    files
}
