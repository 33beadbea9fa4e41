//! Finds the CUDA driver and its devices. cudarc panics where there is no driver, so this looks first, with an open of
//! its own; all other files of this module are reached through here.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use cudarc::driver::sys;
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUresult};

use super::call::describe;
use crate::device::library::Library;
use crate::{Error, ErrorKind, Result};

/// Driver functions that are called without asking first. All are as old as CUDA 11.2.
const NEEDED: [&CStr; 41] = [
    c"cuInit",
    c"cuDriverGetVersion",
    c"cuGetErrorString",
    c"cuDeviceGet",
    c"cuDeviceGetCount",
    c"cuDeviceGetName",
    c"cuDeviceGetAttribute",
    c"cuDeviceGetPCIBusId",
    c"cuDeviceTotalMem_v2",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxGetCurrent",
    c"cuCtxSetCurrent",
    c"cuCtxPushCurrent_v2",
    c"cuCtxPopCurrent_v2",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
    c"cuEventCreate",
    c"cuEventRecord",
    c"cuEventSynchronize",
    c"cuEventElapsedTime",
    c"cuEventDestroy_v2",
    c"cuMemGetInfo_v2",
    c"cuMemPoolCreate",
    c"cuMemPoolSetAttribute",
    c"cuMemPoolTrimTo",
    c"cuMemPoolDestroy",
    c"cuMemAllocFromPoolAsync",
    c"cuMemFreeAsync",
    c"cuMemHostAlloc",
    c"cuMemFreeHost",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyDtoDAsync_v2",
    c"cuMemsetD8Async",
    c"cuModuleLoadDataEx",
    c"cuModuleUnload",
    c"cuModuleGetFunction",
    c"cuFuncGetAttribute",
    c"cuLaunchKernel",
];

/// The driver's library, initialised.
pub(super) struct Driver {
    library: Library,
    /// The newest CUDA that it supports, such as (13, 0).
    version: (u32, u32),
}

impl Driver {
    /// The newest CUDA that it supports, such as (13, 0).
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Whether it has this function; for those newer than [`NEEDED`].
    pub(super) fn has(&self, function: &CStr) -> bool {
        self.library.has(function)
    }
}

/// Why no device can be used.
#[derive(Clone)]
struct Refusal {
    message: String,
    help: String,
}

impl Refusal {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), help: help.into() }
    }

    fn error(&self) -> Error {
        Error::new(ErrorKind::NoDevice, &self.message).with_help(&self.help)
    }
}

/// What was found of the driver, once a process: initialising it again would give the same.
struct Probe {
    /// Where the library is, if one was opened.
    path: Option<String>,
    driver: Result<Driver, Refusal>,
}

fn probe() -> &'static Probe {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    PROBE.get_or_init(|| {
        // The names that cudarc will try, in its order, so that both find the same file.
        let mut names = cudarc::get_lib_name_candidates("cuda");
        names.extend(cudarc::get_lib_name_candidates("nvcuda"));
        let Some(library) = Library::open(&names) else {
            let help =
                "install an NVIDIA driver; in a container, start it with the GPUs (docker run --gpus all)";
            let driver = Err(Refusal::new("no NVIDIA driver was found (libcuda.so.1)", help));
            return Probe { path: None, driver };
        };
        Probe { path: Some(library.path().to_owned()), driver: initialise(library) }
    })
}

fn initialise(library: Library) -> Result<Driver, Refusal> {
    let path = library.path().to_owned();
    if let Some(missing) = NEEDED.into_iter().find(|name| !library.has(name)) {
        return Err(Refusal::new(
            format!("the NVIDIA driver is too old: {path} has no {}", missing.to_string_lossy()),
            "install driver 580 or newer",
        ));
    }
    let mut version: c_int = 0;
    // SAFETY: the library has this function; it writes an int and needs no initialisation.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    // SAFETY: the library has this function.
    let code = if code == CUresult::CUDA_SUCCESS { unsafe { sys::cuInit(0) } } else { code };
    let said = || format!("{path} reported {}", describe(code));
    match code {
        CUresult::CUDA_SUCCESS => {
            let version = u32::try_from(version).unwrap_or(0);
            Ok(Driver { library, version: (version / 1000, version % 1000 / 10) })
        }
        CUresult::CUDA_ERROR_NO_DEVICE => Err(Refusal::new(
            format!("no GPU is visible to this process: {}", said()),
            "nvidia-smi shows what the machine has; CUDA_VISIBLE_DEVICES, set to nothing or to -1, hides all of it",
        )),
        CUresult::CUDA_ERROR_STUB_LIBRARY => Err(Refusal::new(
            format!("the driver library is only the toolkit's stub for linking: {}", said()),
            "take the folder with stubs/libcuda.so out of LD_LIBRARY_PATH, and install an NVIDIA driver",
        )),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            Err(Refusal::new(
                format!("the driver's library and its kernel module do not fit each other: {}", said()),
                "reboot after a driver update; take cuda-compat out of LD_LIBRARY_PATH",
            ))
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => Err(Refusal::new(
            format!("the machine's GPUs are not ready: {}", said()),
            "on machines with NVSwitch, start the service nvidia-fabricmanager of the driver's version",
        )),
        _ => Err(Refusal::new(
            format!("the NVIDIA driver cannot be initialised: {}", said()),
            "nvidia-smi and dmesg may say more; a reboot or a new installation of the driver often mends it",
        )),
    }
}

/// The driver; an error of kind `NoDevice` that says what is missing.
pub(super) fn driver() -> Result<&'static Driver> {
    probe().driver.as_ref().map_err(Refusal::error)
}

/// The number of devices.
pub(super) fn count() -> Result<usize> {
    driver()?;
    let mut count: c_int = 0;
    // SAFETY: initialised; writes an int.
    ask(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting devices")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Device `index`; an error of kind `NoDevice` that says what there is instead.
pub(super) fn device(index: usize) -> Result<sys::CUdevice> {
    let count = count().map_err(|error| error.context(format!("cuda:{index} cannot be used")))?;
    if index >= count {
        let what = match count {
            0 => "no GPU is visible to this process".to_owned(),
            1 => "there is one GPU, cuda:0".to_owned(),
            n => format!("there are {n} GPUs, cuda:0 to cuda:{}", n - 1),
        };
        let message = format!("cuda:{index} does not exist: {what}");
        return Err(Error::new(ErrorKind::NoDevice, message).with_help(
            "warpsmith doctor lists them; CUDA_VISIBLE_DEVICES decides which there are and counts them anew from 0",
        ));
    }
    let mut device = 0;
    // SAFETY: initialised; writes an int.
    ask(unsafe { sys::cuDeviceGet(&mut device, index as c_int) }, "looking for the device")?;
    Ok(device)
}

/// The result of a call about devices that needs no context.
pub(super) fn ask(code: CUresult, doing: &str) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(Error::new(
            ErrorKind::NoDevice,
            format!("the NVIDIA driver reported {} while {doing}", describe(code)),
        )),
    }
}

/// An attribute of a device.
pub(super) fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value: c_int = 0;
    ask(
        // SAFETY: initialised; the device came from the driver; writes an int into `value`.
        unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) },
        "asking for a device's attributes",
    )?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// A text that `call` writes into a buffer of the given size.
fn text(call: impl FnOnce(*mut c_char, c_int) -> CUresult) -> Result<String> {
    let mut buffer = [0u8; 256];
    ask(call(buffer.as_mut_ptr().cast(), buffer.len() as c_int - 1), "asking for a device's name")?;
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

/// What the driver says of a device without opening it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What it is.
    pub info: crate::device::driver::DeviceInfo,
    /// Its place on the bus, such as `0000:3b:00.0`: what NVML knows it by.
    pub bus: String,
    /// Whether it has stream-ordered memory pools.
    pub pools: bool,
    /// 0: any number of processes; 2: none; 3: one process.
    pub compute_mode: u32,
}

/// Asks for what can be known of a device before it is opened.
pub(super) fn found(device: sys::CUdevice) -> Result<Found> {
    let mut memory = 0;
    // SAFETY: initialised, the device came from the driver; writes a size.
    ask(unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) }, "asking for a device's memory")?;
    let get = |what| attribute(device, what);
    let info = crate::device::driver::DeviceInfo {
        // SAFETY: writes at most `size` bytes with their end.
        name: text(|at, size| unsafe { sys::cuDeviceGetName(at, size, device) })?,
        capability: (
            get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        shared_per_block: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    };
    Ok(Found {
        info,
        // SAFETY: writes at most `size` bytes with their end.
        bus: text(|at, size| unsafe { sys::cuDeviceGetPCIBusId(at, size, device) })?,
        pools: get(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
        compute_mode: get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)?,
    })
}

/// The driver and the devices as they are found, for reports: nothing is opened.
#[derive(Debug)]
pub struct Survey {
    /// The driver's library, if there is one.
    pub library: Option<String>,
    /// The newest CUDA that the driver supports.
    pub version: Option<(u32, u32)>,
    /// The devices, or why there are none.
    pub devices: Result<Vec<Found>>,
}

/// Looks what there is.
pub fn survey() -> Survey {
    let devices = count().and_then(|n| (0..n).map(|i| found(device(i)?)).collect());
    Survey {
        library: probe().path.clone(),
        version: probe().driver.as_ref().ok().map(|driver| driver.version),
        devices,
    }
}
