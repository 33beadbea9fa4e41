//! Work recorded once and replayed: what a captured step is made of.
//!
//! While a [`Stream`] records, what its thread queues there is not run but noted down, as [`Command`]s with their arguments
//! frozen; the driver then makes of them what it replays fastest (a CUDA graph). So whatever must change from one replay to the
//! next lives in device memory that the commands read. Memory taken while recording comes from what the pool has cached and
//! belongs to the [`Graph`], as does all older memory that the commands touch: both stay where they are for as long as it lives.
//!
//! What cannot be recorded is an error that says what and where: reading back or waiting (nothing has run yet), host data (it
//! would be frozen), memory from the driver. Other threads are not recorded; they use the stream as ever.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

use super::driver::{Command, Executable, Launch};
use super::pool::Reserve;
use super::stream::Stream;
use crate::{Device, Error, Result};

/// Something that stays alive.
type Kept = Arc<dyn Any + Send + Sync>;

/// A recording in progress.
pub(super) struct Recorder {
    device: Device,
    pub(super) commands: Vec<Command>,
    /// Where memory comes from meanwhile.
    pub(super) reserve: Arc<Reserve>,
    /// Fault slots of the commands.
    pub(super) slots: Vec<usize>,
    kept: BTreeMap<usize, Kept>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Ends the recording of this thread, also when it panics.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        RECORDER.take();
    }
}

/// Whether this thread records on `device`.
pub(crate) fn is_recording(device: Device) -> bool {
    RECORDER.with_borrow(|r| r.as_ref().is_some_and(|r| r.device == device))
}

/// Whether this thread records work whose memory is `reserve`.
pub(super) fn records_into(reserve: &Arc<Reserve>) -> bool {
    RECORDER.with_borrow(|r| r.as_ref().is_some_and(|r| Arc::ptr_eq(&r.reserve, reserve)))
}

/// Keeps `owner` of memory on `device` alive with the graph that this thread is recording, if it is.
pub(crate) fn keep<T: Any + Send + Sync>(device: Device, owner: &Arc<T>) {
    RECORDER.with_borrow_mut(|r| {
        if let Some(r) = r.as_mut().filter(|r| r.device == device) {
            r.kept.entry(Arc::as_ptr(owner) as usize).or_insert_with(|| owner.clone());
        }
    });
}

/// Calls `f` with the recording of this thread on `device`, if there is one.
pub(super) fn recording<R>(device: Device, f: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
    RECORDER.with_borrow_mut(|r| r.as_mut().filter(|r| r.device == device).map(f))
}

/// An error if this thread records on `device`: `what` cannot be recorded.
#[track_caller]
pub(super) fn refuse(device: Device, what: &str, help: &'static str) -> Result<()> {
    if !is_recording(device) {
        return Ok(());
    }
    let message = format!("{what} at {} cannot be captured", Location::caller());
    Err(Error::unsupported("captured step", message).with_help(help))
}

/// Recorded work. Owns all memory that it uses.
pub struct Graph {
    stream: &'static Stream,
    executable: Option<Executable>,
    /// The last launches, for errors that surface later.
    pub(super) last: Vec<Launch>,
    pub(super) slots: Vec<usize>,
    launches: u64,
    reserve: Arc<Reserve>,
    _kept: Vec<Kept>,
}

impl Graph {
    /// Queues all of its work once more.
    pub fn replay(&self) -> Result<()> {
        match &self.executable {
            Some(executable) => self.stream.replay(self, executable),
            None => Ok(()),
        }
    }

    /// Kernels that a replay launches.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// Bytes of memory taken while it was recorded.
    pub fn bytes(&self) -> usize {
        self.reserve.bytes()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Nothing may be under way when the executable goes; if the device failed, nothing is.
        let _ = self.stream.settle();
        self.executable = None;
        self.stream.release_slots(&self.slots);
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({}, {} launches, {} bytes)", self.stream.device(), self.launches, self.bytes())
    }
}

impl Stream {
    /// Records what `f` queues on this stream from this thread, without running it.
    ///
    /// # Errors
    /// What `f` returns, and of kind `Unsupported` where something in it cannot be recorded, or `f` records itself.
    pub fn capture<R>(&'static self, f: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        if RECORDER.with_borrow(Option::is_some) {
            return Err(Error::unsupported("captured step", "this thread is recording already"));
        }
        self.prepare_slots()?;
        let reserve = Arc::new(self.pool().reserve());
        RECORDER.set(Some(Recorder {
            device: self.device(),
            commands: Vec::new(),
            reserve: reserve.clone(),
            slots: Vec::new(),
            kept: BTreeMap::new(),
        }));
        let ended = Ended;
        let result = f();
        let recorder = RECORDER.take();
        drop(ended);
        let Some(Recorder { commands, slots, kept, .. }) = recorder else {
            return Err(Error::internal("a recording got lost"));
        };
        let result = result.inspect_err(|_| self.release_slots(&slots))?;
        let made = || {
            commands.iter().filter_map(|command| match command {
                Command::Launch(launch) => Some(&**launch),
                _ => None,
            })
        };
        let launches = made().count();
        let last = made().skip(launches.saturating_sub(super::stream::RING)).cloned().collect();
        let mut graph = Graph {
            stream: self,
            executable: None,
            last,
            slots,
            launches: launches as u64,
            reserve,
            _kept: kept.into_values().collect(),
        };
        graph.executable = Some(self.instantiate(commands)?);
        Ok((graph, result))
    }
}
