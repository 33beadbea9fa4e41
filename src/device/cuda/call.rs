//! Calls of the CUDA driver: the context they need, and their results as errors.
//!
//! The call table is cudarc's; this adds what its results mean. A sticky error (an illegal address, an assertion, …)
//! ends the context: CUDA answers every later call with it, whatever that call was. So the first one is kept with what
//! was being done, and every later call is refused with it at once.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::OnceLock;

use cudarc::driver::sys;
use cudarc::driver::sys::CUresult;

use crate::{Error, ErrorKind, Result};

/// `CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected`.
pub(super) fn describe(code: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or null.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) };
    let name = format!("{code:?} ({})", code as u32);
    if known != CUresult::CUDA_SUCCESS || text.is_null() {
        return name;
    }
    // SAFETY: a string of the driver's, which it never frees.
    format!("{name}: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// Whether the context can do no work after this error.
pub(super) fn is_sticky(code: CUresult) -> bool {
    use CUresult as E;
    matches!(
        code,
        E::CUDA_ERROR_DEINITIALIZED
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTAINED
            | E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            | E::CUDA_ERROR_EXTERNAL_DEVICE
            | E::CUDA_ERROR_UNKNOWN
    )
}

/// The kind of an error that is not sticky.
fn kind(code: CUresult) -> ErrorKind {
    use CUresult as E;
    match code {
        E::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        E::CUDA_ERROR_NO_DEVICE | E::CUDA_ERROR_INVALID_DEVICE | E::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            ErrorKind::NoDevice
        }
        E::CUDA_ERROR_INVALID_VALUE
        | E::CUDA_ERROR_INVALID_CONTEXT
        | E::CUDA_ERROR_INVALID_HANDLE
        | E::CUDA_ERROR_NOT_FOUND => ErrorKind::Internal,
        _ => ErrorKind::DeviceFailed,
    }
}

/// A device's primary context, held until the last user is gone.
pub(super) struct Context {
    index: usize,
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// The first sticky error, in words.
    failure: OnceLock<String>,
}

// SAFETY: ours: contexts are process-wide and the driver's calls are thread-safe; each binds the context first.
unsafe impl Send for Context {}
// SAFETY: ours: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device that exists.
    pub(super) fn retain(index: usize, device: sys::CUdevice) -> Result<Context> {
        let mut context = Context { index, device, raw: null_mut(), failure: OnceLock::new() };
        let mut raw = null_mut();
        // SAFETY: the driver is initialised and `device` came from it.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) };
        context.check(code, "opening the device").map_err(|error| {
            let help = "nvidia-smi shows whether another program holds the GPU for itself (compute mode) or it failed";
            if error.help().is_none() { error.with_help(help) } else { error }
        })?;
        context.raw = raw;
        Ok(context)
    }

    /// Which device: the N of `cuda:N`.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The first sticky error, in words.
    #[cfg(test)]
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Makes this the thread's context for as long as the guard lives. Refused once the device has failed.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        match self.failure.get() {
            Some(cause) => Err(self.failed(cause, true)),
            None => self.bind(),
        }
    }

    /// `enter` for giving things back, which is worth trying in any state.
    pub(super) fn bind(&self) -> Result<Entered<'_>> {
        let mut current = null_mut();
        // SAFETY: writes the pointer.
        self.check(unsafe { sys::cuCtxGetCurrent(&mut current) }, "asking for the current context")?;
        if current == self.raw {
            return Ok(Entered { context: self, pushed: false, thread: PhantomData });
        }
        if current.is_null() {
            // A thread that has none keeps ours, so that this is done once a thread.
            // SAFETY: `raw` is retained.
            self.check(unsafe { sys::cuCtxSetCurrent(self.raw) }, "making the device current")?;
            return Ok(Entered { context: self, pushed: false, thread: PhantomData });
        }
        // Somebody else's: it is back when the guard goes.
        // SAFETY: `raw` is retained.
        self.check(unsafe { sys::cuCtxPushCurrent_v2(self.raw) }, "making the device current")?;
        Ok(Entered { context: self, pushed: true, thread: PhantomData })
    }

    /// The result of a driver call as ours. `doing` completes "while …".
    pub(super) fn check(&self, code: CUresult, doing: &str) -> Result<()> {
        match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            _ => Err(self.error(code, doing)),
        }
    }

    #[cold]
    fn error(&self, code: CUresult, doing: &str) -> Error {
        if is_sticky(code) {
            let later = self.failure.get().is_some();
            let message = || format!("the driver reported {} while {doing}", describe(code));
            return self.failed(self.failure.get_or_init(message), later);
        }
        let message = format!("cuda:{} reported {} while {doing}", self.index, describe(code));
        let error = Error::new(kind(code), message);
        match error.kind() {
            ErrorKind::Internal => error.with_help("this is a bug in warpsmith; please report it"),
            _ => error,
        }
    }

    fn failed(&self, cause: &str, later: bool) -> Error {
        let message = match later {
            true => {
                format!("cuda:{} failed earlier and does no more work in this process: {cause}", self.index)
            }
            false => cause.to_owned(),
        };
        Error::new(ErrorKind::DeviceFailed, message).with_help(
            "start the program anew; kernels run asynchronously, so the cause is one of the last launches before this: \
             compute-sanitizer names it",
        )
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: retained once, released once. After a failure this fails too, and nothing is left to do about it.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// While this lives the context is the thread's current one.
pub(super) struct Entered<'a> {
    context: &'a Context,
    pushed: bool,
    /// What is current is a matter of the thread: not `Send`.
    thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    /// The result of a call made while this lives.
    pub(super) fn check(&self, code: CUresult, doing: &str) -> Result<()> {
        self.context.check(code, doing)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = null_mut();
            // SAFETY: `bind` pushed it on this thread, which the guard cannot leave.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}
