//! What NVML (`libnvidia-ml`, part of the driver) says of a GPU: clocks, what holds them back, temperature, power, memory,
//! who else computes there. A dozen functions, called directly; a crate for all of NVML would bring more than it saves.
//!
//! Everything here is optional: no library, no right to ask, a function that this driver or GPU does not have: `None`.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use super::library::Library;

/// The library, initialised.
pub struct Nvml {
    library: Library,
    driver: Option<String>,
}

type Handle = *mut c_void;
type Call0 = unsafe extern "C" fn() -> c_int;
type TextCall = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
type FindCall = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
type U32Call = unsafe extern "C" fn(Handle, *mut c_uint) -> c_int;
type U64Call = unsafe extern "C" fn(Handle, *mut u64) -> c_int;
type OfKindCall = unsafe extern "C" fn(Handle, c_uint, *mut c_uint) -> c_int;
type EccCall = unsafe extern "C" fn(Handle, c_uint, c_uint, *mut u64) -> c_int;
type MemoryCall = unsafe extern "C" fn(Handle, *mut [u64; 3]) -> c_int;
type ProcessCall = unsafe extern "C" fn(Handle, *mut c_uint, *mut RawProcess) -> c_int;

const SUCCESS: c_int = 0;
/// As many processes as are asked for.
const PROCESSES: usize = 256;

/// `nvmlProcessInfo_t` of version 2 and 3.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawProcess {
    pid: c_uint,
    memory: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// A process with a context on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the host sees it; in a container it may be none of ours.
    pub pid: u32,
    /// Bytes of device memory that it holds, where that is told.
    pub memory: Option<u64>,
}

/// A GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Clock of the multiprocessors in MHz: now and the highest.
    pub clock: (Option<u32>, Option<u32>),
    /// Clock of the memory in MHz: now and the highest.
    pub memory_clock: (Option<u32>, Option<u32>),
    /// What holds the clocks back, as a bit mask; [`reasons`] puts it in words.
    pub throttle: Option<u64>,
    /// °C.
    pub temperature: Option<u32>,
    /// Watts drawn.
    pub power: Option<f64>,
    /// Watts allowed: in force, and by default.
    pub power_limit: (Option<f64>, Option<f64>),
    /// Bytes of memory: free and all.
    pub memory: Option<(u64, u64)>,
    /// Joules used since the driver was loaded.
    pub energy: Option<f64>,
    /// Processes that compute on it.
    pub processes: Option<Vec<Process>>,
    /// Uncorrected memory errors since the driver was loaded; `None` also where ECC is off.
    pub uncorrected: Option<u64>,
    /// Whether the driver stays loaded while nobody uses the GPU.
    pub persistence: Option<bool>,
    /// Lanes of the PCIe link: now and the most that both ends have.
    pub lanes: (Option<u32>, Option<u32>),
}

impl Nvml {
    /// Opens the library; `None` where there is none or it refuses.
    pub fn open() -> Option<Nvml> {
        let names = ["libnvidia-ml.so.1", "libnvidia-ml.so", "nvml.dll"];
        let mut nvml = Nvml { library: Library::open(&names)?, driver: None };
        // SAFETY: nvmlReturn_t nvmlInit_v2(void).
        let init = unsafe { nvml.library.get::<Call0>(c"nvmlInit_v2") }?;
        // SAFETY: may be called any number of times. It is never shut down: a host program may use it too.
        (unsafe { init() } == SUCCESS).then_some(())?;
        // SAFETY: nvmlReturn_t nvmlSystemGetDriverVersion(char*, unsigned).
        let version = unsafe { nvml.library.get::<TextCall>(c"nvmlSystemGetDriverVersion") };
        nvml.driver = version.and_then(|call| {
            let mut text = [0u8; 96];
            // SAFETY: writes at most that many bytes with their end.
            let code = unsafe { call(text.as_mut_ptr().cast(), text.len() as c_uint - 1) };
            (code == SUCCESS)
                .then(|| CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned())
        });
        Some(nvml)
    }

    /// The driver's version, such as `580.82.07`.
    pub fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// The state of the GPU at a place on the bus, such as `0000:3b:00.0`.
    pub fn read(&self, bus: &str) -> Option<Reading> {
        let gpu = self.find(bus)?;
        let watts = |milliwatts: Option<c_uint>| milliwatts.map(|mw| f64::from(mw) / 1e3);
        Some(Reading {
            clock: (
                self.of_kind(gpu, c"nvmlDeviceGetClockInfo", 1),
                self.of_kind(gpu, c"nvmlDeviceGetMaxClockInfo", 1),
            ),
            memory_clock: (
                self.of_kind(gpu, c"nvmlDeviceGetClockInfo", 2),
                self.of_kind(gpu, c"nvmlDeviceGetMaxClockInfo", 2),
            ),
            throttle: self
                .u64(gpu, c"nvmlDeviceGetCurrentClocksEventReasons")
                .or_else(|| self.u64(gpu, c"nvmlDeviceGetCurrentClocksThrottleReasons")),
            temperature: self.of_kind(gpu, c"nvmlDeviceGetTemperature", 0),
            power: watts(self.u32(gpu, c"nvmlDeviceGetPowerUsage")),
            power_limit: (
                watts(self.u32(gpu, c"nvmlDeviceGetEnforcedPowerLimit")),
                watts(self.u32(gpu, c"nvmlDeviceGetPowerManagementDefaultLimit")),
            ),
            memory: self.memory(gpu),
            energy: self.u64(gpu, c"nvmlDeviceGetTotalEnergyConsumption").map(|mj| mj as f64 / 1e3),
            processes: self.processes(gpu),
            uncorrected: self.uncorrected(gpu),
            persistence: self.u32(gpu, c"nvmlDeviceGetPersistenceMode").map(|on| on != 0),
            lanes: (
                self.u32(gpu, c"nvmlDeviceGetCurrPcieLinkWidth"),
                self.u32(gpu, c"nvmlDeviceGetMaxPcieLinkWidth"),
            ),
        })
    }

    fn find(&self, bus: &str) -> Option<Handle> {
        let bus = CString::new(bus).ok()?;
        // SAFETY: nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char*, nvmlDevice_t*).
        let find = unsafe { self.library.get::<FindCall>(c"nvmlDeviceGetHandleByPciBusId_v2") }?;
        let mut gpu = null_mut();
        // SAFETY: a string with its end; writes a handle.
        (unsafe { find(bus.as_ptr(), &mut gpu) } == SUCCESS).then_some(gpu)
    }

    /// A function (nvmlDevice_t, unsigned*).
    fn u32(&self, gpu: Handle, name: &CStr) -> Option<u32> {
        // SAFETY: callers name functions of this type.
        let call = unsafe { self.library.get::<U32Call>(name) }?;
        let mut value = 0;
        // SAFETY: a handle of this library; writes a number.
        (unsafe { call(gpu, &mut value) } == SUCCESS).then_some(value)
    }

    /// A function (nvmlDevice_t, unsigned long long*).
    fn u64(&self, gpu: Handle, name: &CStr) -> Option<u64> {
        // SAFETY: callers name functions of this type.
        let call = unsafe { self.library.get::<U64Call>(name) }?;
        let mut value = 0;
        // SAFETY: a handle of this library; writes a number.
        (unsafe { call(gpu, &mut value) } == SUCCESS).then_some(value)
    }

    /// A function (nvmlDevice_t, enum, unsigned*).
    fn of_kind(&self, gpu: Handle, name: &CStr, kind: c_uint) -> Option<u32> {
        // SAFETY: callers name functions of this type.
        let call = unsafe { self.library.get::<OfKindCall>(name) }?;
        let mut value = 0;
        // SAFETY: a handle of this library; writes a number.
        (unsafe { call(gpu, kind, &mut value) } == SUCCESS).then_some(value)
    }

    fn memory(&self, gpu: Handle) -> Option<(u64, u64)> {
        // SAFETY: (nvmlDevice_t, nvmlMemory_t*), which is three numbers: total, free, used.
        let call = unsafe { self.library.get::<MemoryCall>(c"nvmlDeviceGetMemoryInfo") }?;
        let mut memory = [0; 3];
        // SAFETY: a handle of this library; writes three numbers.
        (unsafe { call(gpu, &mut memory) } == SUCCESS).then_some((memory[1], memory[0]))
    }

    fn uncorrected(&self, gpu: Handle) -> Option<u64> {
        // SAFETY: (nvmlDevice_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t, unsigned long long*).
        let call = unsafe { self.library.get::<EccCall>(c"nvmlDeviceGetTotalEccErrors") }?;
        let mut errors = 0;
        // SAFETY: a handle of this library; 1: uncorrected, 0: since the driver was loaded; writes a number.
        (unsafe { call(gpu, 1, 0, &mut errors) } == SUCCESS).then_some(errors)
    }

    fn processes(&self, gpu: Handle) -> Option<Vec<Process>> {
        // SAFETY: (nvmlDevice_t, unsigned*, nvmlProcessInfo_t*); versions 2 and 3 have the same struct.
        let call = unsafe {
            let newest = self.library.get::<ProcessCall>(c"nvmlDeviceGetComputeRunningProcesses_v3");
            newest.or_else(|| self.library.get(c"nvmlDeviceGetComputeRunningProcesses_v2"))
        }?;
        let (mut count, mut raw) = (PROCESSES as c_uint, [RawProcess::default(); PROCESSES]);
        // SAFETY: room for `count` processes; writes as many and their number.
        (unsafe { call(gpu, &mut count, raw.as_mut_ptr()) } == SUCCESS).then_some(())?;
        let told = |bytes: u64| (bytes != u64::MAX).then_some(bytes);
        Some(
            raw.iter().take(count as usize).map(|p| Process { pid: p.pid, memory: told(p.memory) }).collect(),
        )
    }
}

/// What holds the clocks back, in words: only what costs speed, not idleness or clocks that somebody has set.
pub fn reasons(mask: u64) -> Vec<&'static str> {
    const REASONS: [(u64, &str); 6] = [
        (0x4, "power cap"),
        (0x8, "hardware slowdown"),
        (0x10, "sync boost"),
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "hardware power brake"),
    ];
    REASONS.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, words)| *words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_but_not_idleness() {
        assert!(reasons(0x1 | 0x2 | 0x100).is_empty());
        assert_eq!(reasons(0x4 | 0x40 | 0x1), ["power cap", "hardware thermal slowdown"]);
    }

    #[test]
    fn the_struct_is_that_of_the_library() {
        assert_eq!((size_of::<RawProcess>(), std::mem::offset_of!(RawProcess, memory)), (24, 8));
    }
}
