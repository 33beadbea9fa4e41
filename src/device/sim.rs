//! The simulated GPU: the same kernels, compiled by the host's C++ compiler and run on it, thread by thread.
//!
//! Device addresses are host addresses. A launch runs to its end before it returns, under a schedule that the options
//! choose; the checked variant of the kernels also finds races and stray accesses. See `kernels/sim/` and
//! `docs/TESTING.md`.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::driver::{
    Command, DeviceInfo, Driver, Event, Executable, Grid, Kernel, Range, TensorMap, TensorMapDesc,
};
use super::pool::GRANULE;
use crate::{Error, ErrorKind, Result};

/// In which order the threads of a block run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Ascending: what a careless test would do.
    #[default]
    Forward,
    /// Descending.
    Reverse,
    /// By chance, preempted by chance.
    Random,
    /// By random priorities: some threads run far ahead of others.
    Pct,
}

/// When asynchronous operations take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// At once.
    #[default]
    Earliest,
    /// When something waits for them.
    Latest,
    /// In between, by chance.
    Random,
}

/// How a simulated GPU behaves.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// In which order threads run.
    pub order: Order,
    /// When asynchronous operations take effect.
    pub timing: Timing,
    /// Of all that is left to chance.
    pub seed: u64,
    /// Whether races and stray accesses are looked for; about ten times slower.
    pub checked: bool,
    /// Bytes of device memory.
    pub memory: u64,
    /// The allocation (counted from 1) that fails as if memory had run out, and the pool's second try with it.
    pub fail_allocation: Option<u64>,
    /// The launch (counted from 1) that fails as if the kernel had faulted.
    pub fail_launch: Option<u64>,
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            order: Order::default(),
            timing: Timing::default(),
            seed: 0,
            checked: false,
            memory: 4 << 30,
            fail_allocation: None,
            fail_launch: None,
        }
    }
}

impl FromStr for SimOptions {
    type Err = Error;

    /// Reads what follows `sim:`: any of `forward`, `reverse`, `random`, `pct`, `checked`, `seed=N`, `memory=BYTES`,
    /// `fail-allocation=N`, `fail-launch=N`, separated by commas. `reverse` and `pct` finish asynchronous operations as
    /// late as they may, `random` by chance. `library=PATH` loads a library whose kernels replace ours from then on.
    fn from_str(text: &str) -> Result<SimOptions> {
        let mut options = SimOptions::default();
        for word in text.split(',') {
            if let Some(path) = word.strip_prefix("library=") {
                load_library(path)?;
                continue;
            }
            let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, v.parse().ok()));
            match (name, value) {
                ("forward", None) => (options.order, options.timing) = (Order::Forward, Timing::Earliest),
                ("reverse", None) => (options.order, options.timing) = (Order::Reverse, Timing::Latest),
                ("random", None) => (options.order, options.timing) = (Order::Random, Timing::Random),
                ("pct", None) => (options.order, options.timing) = (Order::Pct, Timing::Latest),
                ("checked", None) => options.checked = true,
                ("seed", Some(n)) => options.seed = n,
                ("memory", Some(n)) => options.memory = n,
                ("fail-allocation", Some(n)) => options.fail_allocation = Some(n),
                ("fail-launch", Some(n)) => options.fail_launch = Some(n),
                _ => return Err(Error::argument(format!("unknown option {word:?} of the simulator"))),
            }
        }
        Ok(options)
    }
}

/// `SimLaunch` in `kernels/sim/sim.h`.
#[repr(C)]
struct SimLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    order: u32,
    timing: u32,
    checked: u32,
    seed: u64,
    ranges: *const Range,
    n_ranges: u64,
}

/// `SimTensorMap` in `kernels/sim/sim.h`.
#[repr(C)]
struct SimTensorMap {
    address: u64,
    size: [u64; 2],
    pitch: u64,
    element: u32,
    tile: [u32; 2],
    swizzle: u32,
}

unsafe extern "C" {
    fn sim_load(library: *const c_char, what: *mut c_char, room: usize) -> c_int;
    fn sim_tensor_map(
        desc: *const SimTensorMap,
        map: *mut TensorMap,
        what: *mut c_char,
        room: usize,
    ) -> c_int;
    fn sim_args_size(symbol: *const c_char) -> usize;
    fn sim_launch(
        symbol: *const c_char,
        args: *const u8,
        size: usize,
        launch: *const SimLaunch,
        what: *mut c_char,
        room: usize,
    ) -> c_int;
}

/// Calls into the simulator with room for what it has to say: the status, and that text.
fn call(f: impl FnOnce(*mut c_char, usize) -> c_int) -> (c_int, String) {
    let mut what = [0u8; 4096];
    let status = f(what.as_mut_ptr().cast(), what.len());
    let what = CStr::from_bytes_until_nul(&what).map(|w| w.to_string_lossy().into_owned());
    (status, what.unwrap_or_else(|_| "an overlong report".into()))
}

/// Takes the kernels of a library in place of ours, in the whole process: how tests see that a fault planted in a kernel
/// makes them fail.
fn load_library(path: &str) -> Result<()> {
    let failed = |why: String| Error::argument(format!("library of the simulator {path:?}: {why}"));
    let name = CString::new(path).map_err(|e| failed(e.to_string()))?;
    // SAFETY: a C string and room for the answer. What the library does when loaded is the caller's business, as with
    // any program that is started.
    match call(|what, room| unsafe { sim_load(name.as_ptr(), what, room) }) {
        (0, _) => Ok(()),
        (_, why) => Err(failed(why)),
    }
}

/// A simulated GPU.
pub struct Simulator {
    info: DeviceInfo,
    options: SimOptions,
    /// Live allocations: address and size.
    live: Mutex<BTreeMap<u64, usize>>,
    used: AtomicU64,
    allocations: AtomicU64,
    launches: AtomicU64,
}

impl Simulator {
    /// A simulated GPU without any memory in use.
    pub fn new(options: SimOptions) -> Simulator {
        let info = DeviceInfo {
            name: "simulator".into(),
            capability: (9, 0),
            multiprocessors: 4,
            memory: options.memory,
            shared_per_block: 227 << 10,
        };
        let (live, used, allocations, launches) = Default::default();
        Simulator { info, options, live, used, allocations, launches }
    }

    /// An error unless `bytes` bytes at `address` lie within one live allocation.
    fn check(&self, address: u64, bytes: usize) -> Result<()> {
        let live = self.live.lock().unwrap_or_else(|e| e.into_inner());
        match live.range(..=address).next_back() {
            Some((&base, &size)) if address + bytes as u64 <= base + size as u64 => Ok(()),
            _ => Err(Error::new(
                ErrorKind::DeviceFailed,
                format!("a copy of {bytes} bytes at {address:#x}, which are not live device memory"),
            )),
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, GRANULE).ok()
}

impl Driver for Simulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.options.memory - self.used.load(Relaxed), self.options.memory))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let number = self.allocations.fetch_add(1, Relaxed) + 1;
        let out =
            || Error::new(ErrorKind::OutOfMemory, format!("the simulated GPU has no {bytes} bytes left"));
        if self.options.fail_allocation.is_some_and(|n| number == n || number == n + 1) {
            return Err(out());
        }
        let layout = layout(bytes).ok_or_else(out)?;
        let used = self.used.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        let pointer = if used > self.options.memory {
            std::ptr::null_mut()
        } else {
            // SAFETY: the layout is not of size 0: the pool asks for at least one granule.
            unsafe { std::alloc::alloc(layout) }
        };
        if pointer.is_null() {
            self.used.fetch_sub(bytes as u64, Relaxed);
            return Err(out());
        }
        // SAFETY: freshly allocated with this size.
        unsafe { pointer.write_bytes(0xCB, bytes) };
        self.live.lock().unwrap_or_else(|e| e.into_inner()).insert(pointer as u64, bytes);
        Ok(pointer as u64)
    }

    fn free(&self, address: u64, bytes: usize) {
        let known = self.live.lock().unwrap_or_else(|e| e.into_inner()).remove(&address);
        if known == Some(bytes)
            && let Some(layout) = layout(bytes)
        {
            self.used.fetch_sub(bytes as u64, Relaxed);
            // SAFETY: `alloc` returned this address for this layout, and it was live until now.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.check(to, from.len())?;
        // SAFETY: just checked to be live; host memory that Rust owns is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.check(from, to.len())?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.check(to, bytes)?;
        self.check(from, bytes)?;
        // SAFETY: both ranges are live; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<()> {
        self.check(to, bytes)?;
        // SAFETY: the range is live.
        unsafe { (to as *mut u8).write_bytes(value, bytes) };
        Ok(())
    }

    fn has(&self, kernel: &'static Kernel) -> bool {
        // SAFETY: a C string that lives for ever.
        unsafe { sim_args_size(kernel.symbol.as_ptr()) != 0 }
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        args: *const u8,
        buffers: &[Range],
    ) -> Result<()> {
        let number = self.launches.fetch_add(1, Relaxed) + 1;
        let symbol = kernel.symbol.to_string_lossy();
        if self.options.fail_launch == Some(number) {
            let message = format!("{symbol}: an illegal memory access was encountered (planted)");
            return Err(Error::new(ErrorKind::DeviceFailed, message));
        }
        let launch = SimLaunch {
            grid: grid.blocks,
            block: kernel.block,
            shared: grid.shared,
            order: self.options.order as u32,
            timing: self.options.timing as u32,
            checked: self.options.checked.into(),
            seed: self.options.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            ranges: buffers.as_ptr(),
            n_ranges: buffers.len() as u64,
        };
        let (name, size) = (kernel.symbol.as_ptr(), kernel.args);
        // SAFETY: `args` holds `kernel.args` bytes (the caller's promise; the simulator compares the size with the
        // kernel's own), the buffers are live, `what` has the room that is named.
        let (status, what) = call(|what, room| unsafe { sim_launch(name, args, size, &launch, what, room) });
        if status == 0 {
            return Ok(());
        }
        Err(match status {
            1 => Error::new(ErrorKind::DeviceFailed, what),
            _ => Error::internal(format!("launch of {symbol}: {what}")),
        })
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        let &TensorMapDesc { address, element, size, pitch, tile, swizzle } = desc;
        let desc = SimTensorMap { address, size, pitch, element, tile, swizzle };
        let mut map = TensorMap([0; 128]);
        // SAFETY: `map` has the size and alignment of a tensor map, `what` the room that is named.
        match call(|what, room| unsafe { sim_tensor_map(&desc, &mut map, what, room) }) {
            (0, _) => Ok(map),
            (_, why) => Err(Error::argument(why)),
        }
    }

    fn record(&self) -> Result<Event> {
        Ok(Event(Box::new(Instant::now())))
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        match (from.0.downcast_ref::<Instant>(), to.0.downcast_ref::<Instant>()) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(*from).as_secs_f64() * 1e3),
            _ => Err(Error::internal("an event of another driver")),
        }
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn instantiate(&self, commands: Vec<Command>) -> Result<Executable> {
        Ok(Executable(Box::new(commands)))
    }

    fn replay(&self, executable: &Executable) -> Result<()> {
        let commands = executable.0.downcast_ref::<Vec<Command>>();
        let commands = commands.ok_or_else(|| Error::internal("recorded work of another driver"))?;
        commands.iter().try_for_each(|command| match command {
            Command::Launch(launch) => {
                // SAFETY: the promise of `instantiate`.
                unsafe { self.launch(launch.kernel, launch.grid, launch.args.as_ptr(), &launch.buffers) }
            }
            &Command::Copy { to, from, bytes } => self.copy(to, from, bytes),
            &Command::Fill { to, value, bytes } => self.fill(to, value, bytes),
        })
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let live = std::mem::take(&mut *self.live.lock().unwrap_or_else(|e| e.into_inner()));
        live.into_iter().for_each(|(address, bytes)| {
            if let Some(layout) = layout(bytes) {
                // SAFETY: as in `free`.
                unsafe { std::alloc::dealloc(address as *mut u8, layout) };
            }
        });
    }
}
