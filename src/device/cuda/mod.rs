//! The CUDA driver as a [`Driver`]: opened at run time, one device each.
//!
//! A device is opened once a process, on its primary context, with one stream that waits for nobody else's, and with a
//! memory pool of its own: a host program that uses CUDA too finds its default pool and its current context as it left
//! them. Memory given back stays in the pool. What is printed is nobody's concern here: a failure is an error of kind
//! `DeviceFailed` with the driver's words, now and at every later call.

mod call;
mod code;
mod graph;
mod probe;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys;
use cudarc::driver::sys::CUresult;

use self::call::{Context, Entered};
use self::code::{Modules, unit_symbol};
use self::staging::Staging;
use super::driver::{
    Command, DeviceInfo, Driver, Event, Executable, Grid, Kernel, Range, TensorMap, TensorMapDesc,
};
use crate::{Error, ErrorKind, Result};

pub use code::{Code, driver_of, version};
pub use probe::{Found, Survey, survey};

/// The number of CUDA devices; an error of kind `NoDevice` that says why there are none.
pub fn count() -> Result<usize> {
    probe::count()
}

/// CUDA device `index`, opened now or before. An error of kind `NoDevice` says why it cannot be had.
pub fn open(index: usize) -> Result<Arc<dyn Driver>> {
    static OPEN: Mutex<Option<HashMap<usize, Weak<Cuda>>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(cuda) = open.get(&index).and_then(Weak::upgrade) {
        return Ok(cuda);
    }
    let cuda = Arc::new(Cuda::open(index, Code::embedded())?);
    open.insert(index, Arc::downgrade(&cuda));
    Ok(cuda)
}

/// Where device memory comes from.
enum Memory {
    /// A pool of our own, which keeps what is given back.
    Pool(sys::CUmemoryPool),
    /// Devices without pools (some virtual GPUs): plain allocations, which wait for the device.
    Plain,
}

/// An open device.
struct Cuda {
    info: DeviceInfo,
    modules: Modules,
    staging: Mutex<Staging>,
    memory: Memory,
    stream: sys::CUstream,
    /// Last: all above belongs to it.
    context: Arc<Context>,
}

// SAFETY: ours: the handles are the process's, the driver's calls are thread-safe, and `staging` has its lock.
unsafe impl Send for Cuda {}
// SAFETY: ours: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    fn open(index: usize, code: Code) -> Result<Cuda> {
        let device = probe::device(index)?;
        let probe::Found { info, pools, .. } = probe::found(device)?;
        code.check(index, &info, probe::driver()?.version())?;
        let mut cuda = Cuda {
            info,
            modules: Modules::new(code),
            staging: Mutex::default(),
            memory: Memory::Plain,
            stream: null_mut(),
            context: Arc::new(Context::retain(index, device)?),
        };
        let context = cuda.context.clone();
        let entered = context.enter()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: the context is current; writes a handle.
        let code = unsafe { sys::cuStreamCreate(&mut cuda.stream, flags) };
        entered.check(code, "making a stream")?;
        if pools {
            cuda.memory = Memory::Pool(own_pool(index, &entered)?);
        }
        drop(entered);
        Ok(cuda)
    }

    /// The first error that made the device unusable.
    #[cfg(test)]
    fn poisoned(&self) -> Option<&str> {
        self.context.failure()
    }

    fn staging(&self) -> std::sync::MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, entered: &Entered<'_>) -> Result<()> {
        // SAFETY: our stream; its context is current.
        entered.check(unsafe { sys::cuStreamSynchronize(self.stream) }, "waiting for the device")
    }

    fn copy_on(
        &self,
        stream: sys::CUstream,
        to: u64,
        from: u64,
        bytes: usize,
        entered: &Entered<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's ranges, on this device; queued on a stream of ours.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
        entered.check(code, "copying within the device")
    }

    fn fill_on(
        &self,
        stream: sys::CUstream,
        to: u64,
        value: u8,
        bytes: usize,
        entered: &Entered<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's range, on this device; queued on a stream of ours.
        entered.check(unsafe { sys::cuMemsetD8Async(to, value, bytes, stream) }, "filling memory")
    }

    /// Queues a kernel on `stream`.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch_on(
        &self,
        stream: sys::CUstream,
        kernel: &'static Kernel,
        grid: Grid,
        args: *const u8,
        entered: &Entered<'_>,
    ) -> Result<()> {
        let function = self.modules.function(kernel, entered, &self.info)?;
        function.allow_shared(kernel, grid.shared, entered, self.info.shared_per_block)?;
        let mut arguments: [*mut c_void; 1] = [args.cast_mut().cast()];
        let ([x, y, z], [threads_x, threads_y, threads_z]) = (grid.blocks, kernel.block);
        // SAFETY: a function of a loaded module of the current context; its one argument is `kernel.args` bytes long, as
        // was compared when it was loaded, and `args` points to as many: the caller's promise. They are copied at once.
        let code = unsafe {
            sys::cuLaunchKernel(
                function.raw,
                x,
                y,
                z,
                threads_x,
                threads_y,
                threads_z,
                grid.shared,
                stream,
                if kernel.args == 0 { null_mut() } else { arguments.as_mut_ptr() },
                null_mut(),
            )
        };
        if code == CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES {
            let message =
                format!("a block of {threads_x}×{threads_y}×{threads_z} threads does not fit the device");
            return Err(Error::unsupported(unit_symbol(kernel), message));
        }
        entered.check(code, "launching a kernel").map_err(|error| error.with_op(unit_symbol(kernel)))
    }

    /// One try at taking memory.
    fn try_alloc(&self, bytes: usize) -> (CUresult, u64) {
        let mut address = 0;
        let code = match self.memory {
            // SAFETY: our pool and stream; their context is current; writes an address.
            Memory::Pool(pool) => unsafe {
                sys::cuMemAllocFromPoolAsync(&mut address, bytes, pool, self.stream)
            },
            // SAFETY: the context is current; writes an address.
            Memory::Plain => unsafe { sys::cuMemAlloc_v2(&mut address, bytes) },
        };
        (code, address)
    }
}

/// A pool on the device that keeps memory given back instead of returning it whenever the host waits.
fn own_pool(index: usize, entered: &Entered<'_>) -> Result<sys::CUmemoryPool> {
    // SAFETY: numbers and a pointer, for all of which 0 is a value; the reserved bytes must be 0.
    let mut wanted: sys::CUmemPoolProps = unsafe { MaybeUninit::zeroed().assume_init() };
    wanted.allocType = sys::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.location.type_ = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
    wanted.location.id = index as i32;
    let mut pool = null_mut();
    // SAFETY: the context is current; writes a handle.
    entered.check(unsafe { sys::cuMemPoolCreate(&mut pool, &wanted) }, "making a memory pool")?;
    let mut keep = u64::MAX;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a u64.
    let code = unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()) };
    entered.check(code, "setting a memory pool up")?;
    Ok(pool)
}

impl Driver for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let entered = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; writes two sizes.
        entered.check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok((free as u64, total as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let entered = self.context.enter()?;
        let (mut code, mut address) = self.try_alloc(bytes);
        if let (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Memory::Pool(pool)) = (code, &self.memory) {
            // What the pool keeps may be there in pieces that are too small; given back, it is whole again.
            self.wait(&entered)?;
            // SAFETY: our pool; its context is current.
            entered.check(unsafe { sys::cuMemPoolTrimTo(*pool, 0) }, "giving cached memory back")?;
            (code, address) = self.try_alloc(bytes);
        }
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = match self.memory() {
                Ok((free, total)) => format!("{free} of {total} bytes are free"),
                Err(_) => "the device does not say how much is free".to_owned(),
            };
            let message =
                format!("cuda:{} has no {bytes} bytes of memory left: {free}", self.context.index());
            return Err(Error::new(ErrorKind::OutOfMemory, message));
        }
        entered.check(code, "taking device memory")?;
        Ok(address)
    }

    fn free(&self, address: u64, _bytes: usize) {
        // A device that failed has no memory to give back.
        let Ok(entered) = self.context.enter() else { return };
        let code = match self.memory {
            // SAFETY: from `alloc`; freed behind all work queued so far.
            Memory::Pool(_) => unsafe { sys::cuMemFreeAsync(address, self.stream) },
            Memory::Plain => match self.wait(&entered) {
                // SAFETY: from `alloc`; nothing runs any more.
                Ok(()) => unsafe { sys::cuMemFree_v2(address) },
                Err(_) => return,
            },
        };
        // An error is remembered if it is sticky, and then raised by the next call.
        let _ = entered.check(code, "giving device memory back");
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let entered = self.context.enter()?;
        self.staging().upload(to, from, self.stream, &entered)
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        let entered = self.context.enter()?;
        self.staging().download(to, from, self.stream, &entered)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.copy_on(self.stream, to, from, bytes, &self.context.enter()?)
    }

    fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<()> {
        self.fill_on(self.stream, to, value, bytes, &self.context.enter()?)
    }

    fn has(&self, kernel: &'static Kernel) -> bool {
        let Ok(entered) = self.context.enter() else { return false };
        // Only "not for this device" is a no: whatever else is wrong must be seen at the launch.
        match self.modules.function(kernel, &entered, &self.info) {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::Unsupported,
        }
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        args: *const u8,
        _buffers: &[Range],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(self.stream, kernel, grid, args, &self.context.enter()?) }
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        let entered = self.context.enter()?;
        let (major, minor) = self.info.capability;
        if major < 9 || !probe::driver()?.has(c"cuTensorMapEncodeTiled") {
            let message = format!("sm_{major}{minor} with this driver has none; sm_90 and CUDA 12.0 have");
            return Err(Error::unsupported("tensor map", message));
        }
        let dtype = match desc.element {
            1 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            // The one size that is also added with (reduce): as floats.
            4 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            n => return Err(Error::internal(format!("a tensor map of elements of {n} bytes"))),
        };
        let swizzle = match desc.swizzle {
            0 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
            128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            n => return Err(Error::internal(format!("a tensor map with a swizzle of {n} bytes"))),
        };
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: a device address that is not read now, and arrays of `rank` (strides: `rank` - 1) elements.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                dtype,
                2,
                desc.address as *mut c_void,
                desc.size.as_ptr(),
                [desc.pitch].as_ptr(),
                desc.tile.as_ptr(),
                [1u32, 1].as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        entered.check(code, "encoding a tensor map").map_err(|error| error.context(format!("{desc:?}")))?;
        // SAFETY: written by the call above.
        let words = unsafe { map.assume_init() }.opaque;
        let mut bytes = [0; 128];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        Ok(TensorMap(bytes))
    }

    fn record(&self) -> Result<Event> {
        let entered = self.context.enter()?;
        let mut event = Timed { raw: null_mut(), context: self.context.clone() };
        // SAFETY: the context is current; writes a handle.
        entered.check(unsafe { sys::cuEventCreate(&mut event.raw, 0) }, "making an event")?;
        // SAFETY: event and stream are of the current context.
        entered.check(unsafe { sys::cuEventRecord(event.raw, self.stream) }, "recording an event")?;
        Ok(Event(Box::new(event)))
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        let raw = |event: &Event| match event.0.downcast_ref::<Timed>() {
            Some(timed) if Arc::ptr_eq(&timed.context, &self.context) => Ok(timed.raw),
            _ => Err(Error::internal("an event of another device")),
        };
        let (from, to) = (raw(from)?, raw(to)?);
        let entered = self.context.enter()?;
        // SAFETY: an event of the current context.
        entered.check(unsafe { sys::cuEventSynchronize(to) }, "waiting for an event")?;
        let mut milliseconds = 0f32;
        // SAFETY: events of the current context, both recorded; writes a float.
        let code = unsafe { sys::cuEventElapsedTime(&mut milliseconds, from, to) };
        entered.check(code, "reading the time between events")?;
        Ok(milliseconds.into())
    }

    fn synchronize(&self) -> Result<()> {
        self.wait(&self.context.enter()?)
    }

    unsafe fn instantiate(&self, commands: Vec<Command>) -> Result<Executable> {
        // SAFETY: the caller's promise.
        unsafe { graph::instantiate(self, &commands) }
    }

    fn replay(&self, executable: &Executable) -> Result<()> {
        graph::replay(self, executable)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Whatever state the device is in: each thing is given back, and no error matters any more.
        let context = self.context.clone();
        let Ok(_entered) = context.bind() else { return };
        // SAFETY: our stream, if it was made.
        let _ = (!self.stream.is_null()).then(|| unsafe { sys::cuStreamSynchronize(self.stream) });
        self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).release();
        self.modules.unload();
        if let Memory::Pool(pool) = self.memory {
            // SAFETY: made once, destroyed once; what is still out of it keeps the driver's part of it alive.
            let _ = unsafe { sys::cuMemPoolDestroy(pool) };
        }
        if !self.stream.is_null() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
    }
}

/// An event with time. Keeps its context: it may outlive the device's last user.
struct Timed {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: ours: a handle that the driver's thread-safe calls take.
unsafe impl Send for Timed {}
// SAFETY: ours: as above.
unsafe impl Sync for Timed {}

impl Drop for Timed {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let Ok(_entered) = self.context.bind() else { return };
        // SAFETY: made once, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
