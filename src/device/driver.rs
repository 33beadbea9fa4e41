//! The door to a GPU: one trait, implemented by the CUDA driver and by the simulator. All that stands above it (pool, op
//! dispatch, autograd, optimisers) is the same code on both and so is tested without a GPU.
//!
//! A driver owns one device and one in-order queue of work on it: each call below takes effect after those before it.
//! Only `download` and `synchronize` wait. Pointers are device addresses; the driver does not check that ranges are
//! live: `pool` and `launch`, its only callers, do.

use std::any::Any;
use std::ffi::CStr;
use std::panic::Location;

use crate::{Result, Shape};

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Such as `NVIDIA H100 80GB HBM3`, or `simulator`.
    pub name: String,
    /// Compute capability: (9, 0) for Hopper.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// The largest shared memory of a block, with opt-in, in bytes.
    pub shared_per_block: u32,
}

/// A compiled kernel instance. Generated from the declarations in `kernels/`, one static for each.
#[derive(Debug)]
pub struct Kernel {
    /// The `.cu` file without its extension: the module it is loaded from.
    pub unit: &'static str,
    /// The name in the module.
    pub symbol: &'static CStr,
    /// Size of the argument struct in bytes, compared with the module's at load.
    pub args: usize,
    /// Threads of a block.
    pub block: [u32; 3],
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y, z; none is 0.
    pub blocks: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
}

/// A buffer that a launch may touch: what the simulator's address check allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether it may be written.
    pub writable: u32,
    /// Padding, 0.
    pub reserved: u32,
}

/// An encoded tensor map (`CUtensorMap`): 128 opaque bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u8; 128]);

/// What a tensor map describes: a matrix in device memory read in boxes. Sizes innermost dimension first.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapDesc {
    /// Address of the first element, a multiple of 16.
    pub address: u64,
    /// Bytes of an element: 1, 2 or 4.
    pub element: u32,
    /// Elements in a row, and rows.
    pub size: [u64; 2],
    /// Bytes from one row to the next, a multiple of 16.
    pub pitch: u64,
    /// The box: elements of a row, and rows; at most 256 each.
    pub tile: [u32; 2],
    /// Swizzle span in bytes: 0, 32, 64 or 128.
    pub swizzle: u32,
}

/// A device and its one in-order queue of work.
pub trait Driver: Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// Free and total bytes of device memory, as the driver sees them.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Takes `bytes` (above 0) of device memory, aligned to 512. Kind `OutOfMemory` if there are not that many.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back, after the work queued so far.
    fn free(&self, address: u64, bytes: usize);

    /// Copies host bytes to the device. `from` may be reused when this returns.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Waits for the queue, then copies device bytes to the host.
    fn download(&self, to: &mut [u8], from: u64) -> Result<()>;

    /// Copies between device addresses that do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Sets bytes.
    fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<()>;

    /// Whether the device can run this kernel: the loaded module has it.
    fn has(&self, kernel: &'static Kernel) -> bool;

    /// Queues a kernel. `buffers` are all ranges it may touch.
    ///
    /// # Safety
    /// `args` points to the argument struct that `kernel` was declared with; the buffers it names are live, as long as
    /// declared, and are not reused before the queue has passed this launch.
    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        args: *const u8,
        buffers: &[Range],
    ) -> Result<()>;

    /// Encodes a tensor map. Unsupported below compute capability 9.0.
    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap>;

    /// Marks this point of the queue; for timing.
    fn record(&self) -> Result<Event>;

    /// Milliseconds between two marks that the queue has passed. Waits for the later one.
    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64>;

    /// Waits until all queued work is done. Errors of earlier launches surface here at the latest.
    fn synchronize(&self) -> Result<()>;

    /// Makes of recorded work what can be queued as one.
    ///
    /// # Safety
    /// For each launch, as [`Driver::launch`], for as long as the executable lives.
    unsafe fn instantiate(&self, commands: Vec<Command>) -> Result<Executable>;

    /// Queues recorded work. It is of this driver, and still lives when the queue has passed it.
    fn replay(&self, executable: &Executable) -> Result<()>;
}

/// A piece of recorded work.
#[derive(Clone)]
pub enum Command {
    /// See [`Driver::launch`].
    Launch(Box<Launch>),
    /// See [`Driver::copy`].
    Copy {
        /// First byte written.
        to: u64,
        /// First byte read.
        from: u64,
        /// How many.
        bytes: usize,
    },
    /// See [`Driver::fill`].
    Fill {
        /// First byte.
        to: u64,
        /// What each byte becomes.
        value: u8,
        /// How many.
        bytes: usize,
    },
}

/// A recorded launch.
#[derive(Clone)]
pub struct Launch {
    /// What is launched.
    pub kernel: &'static Kernel,
    /// Its shape.
    pub grid: Grid,
    /// A copy of the argument struct.
    pub args: Args,
    /// All ranges it may touch.
    pub buffers: Box<[Range]>,
    /// On whose behalf.
    pub context: Context,
}

/// On whose behalf work is queued.
#[derive(Clone, Copy, Default)]
pub struct Context {
    /// The op.
    pub op: &'static str,
    /// Shapes of its first inputs.
    pub shapes: [Option<Shape>; 3],
    /// The line that called it.
    pub caller: Option<&'static Location<'static>>,
}

/// A copy of an argument struct, aligned as any of them needs.
#[derive(Clone)]
pub struct Args(Box<[ArgsLine]>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct ArgsLine([u8; 64]);

impl Args {
    /// Copies `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Args {
        let line = |part: &[u8]| {
            let mut line = ArgsLine([0; 64]);
            line.0[..part.len()].copy_from_slice(part);
            line
        };
        Args(bytes.chunks(64).map(line).collect())
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

/// Recorded work in a driver's own form.
pub struct Executable(pub Box<dyn Any + Send + Sync>);

/// A mark in a queue.
pub struct Event(pub Box<dyn Any + Send + Sync>);
