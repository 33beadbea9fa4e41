//! The checks of the driver and of each GPU.

#![forbid(unsafe_code)]

use super::{Asked, Check, Doctor, Status, gigabytes};
use crate::device::cuda::{self, Code, Found};
use crate::device::fatbin::{self, Fit};
use crate::device::nvml::{self, Nvml, Reading};
use crate::device::trial;
use crate::{Device, Error, ErrorKind};

/// The checks that need a driver or a GPU, in order, before `kernel`.
pub(super) const NAMES: [&str; 8] =
    ["driver", "nvml", "device", "architecture", "gpu_memory", "processes", "clocks", "health"];

/// Makes all of them and `kernel`, or says why not.
pub(super) fn checks(doctor: &Doctor, checks: &mut Vec<Check>) {
    let skip = |checks: &mut Vec<Check>, from: usize, why: &str| {
        checks.extend(NAMES[from..].iter().chain(&["kernel"]).map(|&name| Check::skip(name, why)));
    };
    if doctor.asked == Asked::Cpu {
        return skip(checks, 0, "only the CPU was asked for");
    }
    let survey = cuda::survey();
    let nvml = Nvml::open();
    let devices = match survey.devices {
        Ok(devices) => devices,
        Err(error) => {
            checks.push(Check::error("driver", doctor.unusable(), &error, "install an NVIDIA driver"));
            return skip(checks, 1, "no GPU that could be looked at");
        }
    };
    checks.push(driver(doctor, survey.library.as_deref(), survey.version, nvml.as_ref()));
    checks.push(match &nvml {
        Some(_) => Check::pass("nvml", "clocks, power and processes can be read"),
        None => Check::new(
            "nvml",
            Status::Warn,
            "libnvidia-ml.so.1 cannot be opened: clocks, power and other processes stay unknown",
            "it is part of the driver; in a container add 'utility' to NVIDIA_DRIVER_CAPABILITIES",
        ),
    });
    let chosen = match doctor.asked {
        Asked::Cuda(index) => index..index + 1,
        _ => 0..devices.len(),
    };
    if chosen.is_empty() || chosen.end > devices.len() {
        let error = match chosen.is_empty() {
            true => Error::new(ErrorKind::NoDevice, "the driver shows no GPU"),
            false => match Device::cuda(chosen.start) {
                Err(error) => error,
                Ok(_) => Error::internal("a GPU that was not there"),
            },
        };
        checks.push(Check::error("device", doctor.unusable(), &error, "look at nvidia-smi"));
        return skip(checks, 3, "no GPU that could be looked at");
    }
    for index in chosen {
        let reading = nvml.as_ref().and_then(|n| n.read(&devices[index].bus));
        let name = format!("cuda:{index}");
        let made = one(doctor, index, &devices[index], reading.as_ref());
        checks.extend(made.into_iter().map(|check| check.on(&name)));
    }
}

fn driver(doctor: &Doctor, library: Option<&str>, version: Option<(u32, u32)>, nvml: Option<&Nvml>) -> Check {
    let (have, need) = (version.unwrap_or_default(), Code::embedded().cuda);
    let number = nvml.and_then(Nvml::driver).map_or(String::new(), |number| format!("driver {number}, "));
    let said = format!("{number}CUDA {}.{}, {}", have.0, have.1, library.unwrap_or("libcuda"));
    if have.0 < need.0 {
        let message = format!("{said}: too old for kernels compiled by nvcc {}.{}", need.0, need.1);
        let fix = format!(
            "install driver {} or newer, or build with an nvcc of CUDA {}",
            cuda::driver_of(need.0),
            have.0
        );
        return Check::new("driver", doctor.unusable(), message, fix);
    }
    Check::pass("driver", said)
}

/// All checks of one GPU.
fn one(doctor: &Doctor, index: usize, found: &Found, reading: Option<&Reading>) -> Vec<Check> {
    // Before the kernel, so that our own context is not among the processes and the clocks are those of rest.
    let mut checks = vec![
        device(doctor, found),
        architecture(doctor, found),
        gpu_memory(reading),
        processes(reading),
        clocks(reading),
        health(reading),
    ];
    checks.push(kernel(doctor, index));
    checks
}

fn device(doctor: &Doctor, found: &Found) -> Check {
    let info = &found.info;
    let (major, minor) = info.capability;
    let said = format!(
        "{}, sm_{major}{minor}, {} multiprocessors, {}, at {}",
        info.name,
        info.multiprocessors,
        gigabytes(info.memory),
        found.bus
    );
    match (found.compute_mode, found.pools) {
        (2, _) => Check::new(
            "device",
            doctor.unusable(),
            format!("{said}: its compute mode lets no program use it"),
            "sudo nvidia-smi -c DEFAULT",
        ),
        (_, false) => Check::new(
            "device",
            Status::Warn,
            format!("{said}: no memory pools, so taking memory waits for the GPU"),
            "usual for virtual GPUs: ask for pools (a newer vGPU driver), or live with slower starts",
        ),
        (3, _) => Check::new(
            "device",
            Status::Warn,
            format!("{said}: its compute mode lets one process use it at a time"),
            "sudo nvidia-smi -c DEFAULT, if others shall use it meanwhile",
        ),
        _ => Check::pass("device", said),
    }
}

fn architecture(doctor: &Doctor, found: &Found) -> Check {
    let code = Code::embedded();
    if code.units.is_empty() {
        return Check::skip("architecture", "no kernels in this build");
    }
    let ((major, minor), images) = (found.info.capability, fatbin::list(&code.images()));
    let again = format!("build again with {major}{minor} in WARPSMITH_CUDA_ARCHS, or with it unset");
    match code.fit(found.info.capability) {
        Fit::Native => Check::pass("architecture", format!("there is machine code for sm_{major}{minor}")),
        Fit::Jit => Check::new(
            "architecture",
            Status::Warn,
            format!(
                "no machine code for sm_{major}{minor} among {images}: the driver compiles PTX at the first use"
            ),
            again,
        ),
        Fit::Absent => Check::new(
            "architecture",
            doctor.unusable(),
            format!("no code for sm_{major}{minor} among {images}"),
            if major < 8 {
                "use a GPU of compute capability 8.0 (Ampere) or newer".to_owned()
            } else {
                again
            },
        ),
    }
}

const UNREAD: &str = "NVML does not say";

fn gpu_memory(reading: Option<&Reading>) -> Check {
    let Some((free, all)) = reading.and_then(|r| r.memory) else { return Check::skip("gpu_memory", UNREAD) };
    let said = format!("{} of {} free", gigabytes(free), gigabytes(all));
    if free < all / 10 {
        return Check::new(
            "gpu_memory",
            Status::Warn,
            said,
            "end other programs that use the GPU (nvidia-smi)",
        );
    }
    Check::pass("gpu_memory", said)
}

fn processes(reading: Option<&Reading>) -> Check {
    let Some(all) = reading.and_then(|r| r.processes.as_ref()) else {
        return Check::skip("processes", UNREAD);
    };
    let others: Vec<String> = all
        .iter()
        .filter(|p| p.pid != std::process::id())
        .map(|p| match p.memory {
            Some(bytes) => format!("{} ({})", p.pid, gigabytes(bytes)),
            None => p.pid.to_string(),
        })
        .collect();
    match others.len() {
        0 => Check::pass("processes", "nobody else computes on it"),
        n => Check::new(
            "processes",
            Status::Warn,
            format!("{n} other processes compute on it: {}", others.join(", ")),
            "wait for them or use another GPU: times measured beside them are worth little",
        ),
    }
}

fn clocks(reading: Option<&Reading>) -> Check {
    let Some(reading) = reading else { return Check::skip("clocks", UNREAD) };
    let pair = |(now, most): (Option<u32>, Option<u32>)| match (now, most) {
        (Some(now), Some(most)) => format!("{now} of {most} MHz"),
        _ => "unknown".to_owned(),
    };
    let mut said = format!("multiprocessors {}, memory {}", pair(reading.clock), pair(reading.memory_clock));
    if let Some(watts) = reading.power {
        said += &format!(", {watts:.0} W");
    }
    let held = reading.throttle.map(nvml::reasons).unwrap_or_default();
    if !held.is_empty() {
        let fix = "let it cool, check fans and power supply; nvidia-smi -q -d PERFORMANCE shows more";
        return Check::new("clocks", Status::Warn, format!("{said}; held back by {}", held.join(", ")), fix);
    }
    if let (Some(now), Some(usual)) = reading.power_limit
        && now < 0.98 * usual
    {
        let fix = format!("sudo nvidia-smi -pl {usual:.0} gives it the usual power again");
        let message = format!("{said}; limited to {now:.0} W instead of {usual:.0} W");
        return Check::new("clocks", Status::Warn, message, fix);
    }
    Check::pass("clocks", said)
}

fn health(reading: Option<&Reading>) -> Check {
    let Some(reading) = reading else { return Check::skip("health", UNREAD) };
    let warn = |message: String, fix: &str| Check::new("health", Status::Warn, message, fix);
    if let Some(errors @ 1..) = reading.uncorrected {
        let message = format!("{errors} uncorrected memory errors since the driver was loaded");
        return warn(message, "reset or reboot; if they come back, have the card replaced");
    }
    if let Some(degrees @ 85..) = reading.temperature {
        return warn(format!("{degrees} °C"), "check fans, dust and airflow");
    }
    if let (Some(now), Some(most)) = reading.lanes
        && now < most
    {
        let fix = "seat the card anew, or use another slot; some boards save power so while idle";
        return warn(format!("{now} of {most} PCIe lanes are in use: copies are slower"), fix);
    }
    let degrees = reading.temperature.map_or("temperature unknown".to_owned(), |t| format!("{t} °C"));
    let idle = match reading.persistence {
        Some(false) => "; persistence mode is off, so the first start waits for the driver",
        _ => "",
    };
    Check::pass("health", format!("{degrees}, no uncorrected memory errors{idle}"))
}

fn kernel(doctor: &Doctor, index: usize) -> Check {
    if Code::embedded().units.is_empty() && doctor.unusable() != Status::Fail {
        return Check::skip("kernel", "no kernels in this build");
    }
    match Device::cuda(index).and_then(trial::run) {
        Ok(()) => Check::pass("kernel", "the probe kernel ran and gave the right values"),
        // A GPU that is not fit for this build is no fault of the GPU; one that computes wrong is.
        Err(e) if e.kind() == ErrorKind::NoDevice => {
            Check::error("kernel", doctor.unusable(), &e, "see the checks above")
        }
        Err(e) => Check::error(
            "kernel",
            Status::Fail,
            &e,
            "run compute-sanitizer and nvidia-smi -q; a reboot may help",
        ),
    }
}
