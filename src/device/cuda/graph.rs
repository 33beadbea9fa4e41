//! Recorded work as a CUDA graph: made by queueing it once on a stream that captures, then launched as one.
//!
//! The capturing stream is the recording's own, so that other threads go on queueing on the device's stream meanwhile. Modules
//! are loaded before the capture begins: the driver does not load while it captures.

use std::ffi::c_uint;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::Cuda;
use super::call::{Context, Entered};
use crate::device::driver::{Command, Executable};
use crate::{Error, Result};

/// A stream that lives as long as a capture.
struct Capturing<'a>(sys::CUstream, &'a Entered<'a>);

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; nothing was run on it.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A graph as captured.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// A graph that can be launched. Keeps its context: it may outlive the device's last user.
struct Launchable {
    raw: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: ours: a handle that the driver's calls take; it is launched and destroyed behind the owner's `&` and `&mut`, and all
// launches of it go to one stream.
unsafe impl Send for Launchable {}
// SAFETY: ours: as above.
unsafe impl Sync for Launchable {}

impl Drop for Launchable {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let Ok(_entered) = self.context.bind() else { return };
        // SAFETY: made once, destroyed once; the owner has waited for the device.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}

/// See [`crate::device::driver::Driver::instantiate`].
///
/// # Safety
/// As there.
pub(super) unsafe fn instantiate(cuda: &Cuda, commands: &[Command]) -> Result<Executable> {
    let entered = cuda.context.enter()?;
    for command in commands {
        if let Command::Launch(launch) = command {
            let function = cuda.modules.function(launch.kernel, &entered, &cuda.info)?;
            let most = cuda.info.shared_per_block;
            function.allow_shared(launch.kernel, launch.grid.shared, &entered, most)?;
        }
    }
    let mut stream = null_mut();
    let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
    // SAFETY: the context is current; writes a handle.
    entered.check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, "making a stream to capture on")?;
    let capturing = Capturing(stream, &entered);
    let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: our stream; its context is current.
    entered.check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }, "beginning a capture")?;
    let queued = commands.iter().try_for_each(|command| match command {
        Command::Launch(launch) => {
            // SAFETY: the caller's promise; the driver copies the arguments into the graph.
            unsafe { cuda.launch_on(stream, launch.kernel, launch.grid, launch.args.as_ptr(), capturing.1) }
        }
        &Command::Copy { to, from, bytes } => cuda.copy_on(stream, to, from, bytes, capturing.1),
        &Command::Fill { to, value, bytes } => cuda.fill_on(stream, to, value, bytes, capturing.1),
    });
    let mut graph = Captured(null_mut());
    // Also after an error: the stream could not be destroyed otherwise.
    // SAFETY: our stream, which captures; writes a handle.
    let ended = unsafe { sys::cuStreamEndCapture(stream, &mut graph.0) };
    queued?;
    entered.check(ended, "ending a capture")?;
    let mut launchable = Launchable { raw: null_mut(), context: cuda.context.clone() };
    // SAFETY: the graph that was just made; writes a handle.
    let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut launchable.raw, graph.0, 0) };
    entered.check(code, "making a captured step ready")?;
    Ok(Executable(Box::new(launchable)))
}

/// See [`crate::device::driver::Driver::replay`].
pub(super) fn replay(cuda: &Cuda, executable: &Executable) -> Result<()> {
    let entered = cuda.context.enter()?;
    let launchable = executable.0.downcast_ref::<Launchable>();
    let launchable = launchable.filter(|l| Arc::ptr_eq(&l.context, &cuda.context));
    let launchable = launchable.ok_or_else(|| Error::internal("recorded work of another device"))?;
    // SAFETY: an executable graph of the current context and our stream.
    entered.check(unsafe { sys::cuGraphLaunch(launchable.raw, cuda.stream) }, "launching a captured step")
}
