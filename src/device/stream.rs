//! A device as the rest of the crate uses it: its memory, its one in-order queue of work, and what went wrong there.
//!
//! There is one [`Stream`] a device, shared by all threads; work takes effect in the order in which it was queued. Work
//! is asynchronous: an error of a kernel may surface at a later call. It is then printed with the ring of the last
//! launches, the device counts as poisoned, and every later call gives the same cause. Out-of-range indices, which only
//! a kernel can find, are no fault of the device: they are raised once, at the next synchronisation (in whatever thread
//! that is, so that nobody reads what such a kernel left unwritten unwarned), as the error that the CPU gives.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::Device;
use super::driver::{
    Args, Command, Context, DeviceInfo, Driver, Event, Executable, Grid, Kernel, Launch, Range, TensorMap,
    TensorMapDesc,
};
use super::graph::{self, Graph};
use super::launch::{Dst, Src};
use super::pool::{MemoryReport, Piece, Pool};
use crate::shape::Layout;
use crate::{DType, Error, ErrorKind, Result, Shape};

/// Launches that the ring remembers.
pub(super) const RING: usize = 16;
/// Launches that can wait to be checked for bad indices before that is done in between.
const SLOTS: usize = 256;
/// Bytes of a fault slot: two words as `report` in `platform.cuh` leaves them, two unused.
const SLOT: usize = 32;

/// An open device and its queue.
pub struct Stream {
    device: Device,
    driver: Arc<dyn Driver>,
    pool: Pool,
    ring: Mutex<Ring>,
    launches: AtomicU64,
    /// What made the device unusable.
    poison: OnceLock<String>,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Entry>,
}

impl Ring {
    fn push(&mut self, entry: Entry) {
        if self.entries.len() == RING {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}

thread_local! {
    /// On whose behalf this thread launches.
    static CONTEXT: Cell<Context> = const { Cell::new(Context { op: "", shapes: [None; 3], caller: None }) };
}

struct Entry {
    kernel: &'static Kernel,
    grid: Grid,
    context: Context,
}

/// Makes the error for a bad value at a linear position.
type Describe = Box<dyn Fn(i64, u64) -> Error + Send>;

#[derive(Default)]
struct Faults {
    /// Device memory of the slots; 0 until one is asked for. Lives as long as the device.
    address: u64,
    slots: Vec<Slot>,
}

enum Slot {
    Free,
    /// Handed out, its kernel not launched yet.
    Held(Option<Describe>),
    /// To be looked at.
    Armed(Option<Describe>),
    /// Of recorded work; to be looked at if that was replayed since the last look.
    Recorded {
        describe: Option<Describe>,
        replayed: bool,
    },
}

impl Stream {
    pub(crate) fn new(device: Device, driver: Arc<dyn Driver>) -> Stream {
        Stream {
            device,
            pool: Pool::new(driver.clone()),
            driver,
            ring: Mutex::default(),
            launches: AtomicU64::new(0),
            poison: OnceLock::new(),
            faults: Mutex::default(),
        }
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    /// Free and total bytes of device memory, as the driver sees them.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.driver.memory()
    }

    /// The state of the memory pool.
    pub fn memory_report(&self) -> MemoryReport {
        self.pool.report()
    }

    /// The memory pool, for its debug mode and to give back what it caches.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The number of kernels launched so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Relaxed)
    }

    /// Whether the device can run this kernel.
    pub fn has(&self, kernel: &'static Kernel) -> bool {
        self.driver.has(kernel)
    }

    /// Whether an error has made the device unusable.
    pub fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn alive(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => {
                let message = format!("{} failed earlier and cannot be used any more: {cause}", self.device);
                Err(Error::new(ErrorKind::DeviceFailed, message).with_help("start the process again"))
            }
        }
    }

    /// Turns a driver's error into ours: one of the device poisons it and tells the last launches.
    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            if e.kind() != ErrorKind::DeviceFailed {
                return e;
            }
            let cause = self.poison.get_or_init(|| format!("{}{}", e.message(), self.last_launches()));
            Error::new(ErrorKind::DeviceFailed, format!("{}: {cause}", self.device))
        })
    }

    /// The ring as text, the latest launch first.
    fn last_launches(&self) -> String {
        let mut text = String::new();
        for entry in self.ring().entries.iter().rev() {
            let [x, y, z] = entry.grid.blocks;
            let lead = if text.is_empty() { "\nlast launches, the latest first:" } else { "" };
            let _ = write!(text, "{lead}\n  {} ({x}, {y}, {z})", entry.kernel.symbol.to_string_lossy());
            if !entry.context.op.is_empty() {
                let _ = write!(text, " for {}", entry.context.op);
            }
            for shape in entry.context.shapes.iter().flatten() {
                let _ = write!(text, " {shape}");
            }
            if let Some(caller) = entry.context.caller {
                let _ = write!(text, " at {caller}");
            }
        }
        text
    }

    /// Says on whose behalf the launches that follow are made.
    pub(crate) fn enter(
        &self,
        op: &'static str,
        shapes: impl Iterator<Item = Shape>,
        caller: &'static Location<'static>,
    ) {
        let mut context = Context { op, caller: Some(caller), ..Context::default() };
        context.shapes.iter_mut().zip(shapes).for_each(|(to, s)| *to = Some(s));
        CONTEXT.set(context);
    }

    /// Queues a kernel. Only the generated launches call this.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        args: *const u8,
        buffers: &[Range],
    ) -> Result<()> {
        self.alive()?;
        let context = CONTEXT.get();
        let recorded = graph::recording(self.device, |recorder| {
            // SAFETY: `args` points to as many bytes: the caller's promise.
            let args = Args::copy_of(unsafe { std::slice::from_raw_parts(args, kernel.args) });
            let launch = Launch { kernel, grid, args, buffers: buffers.into(), context };
            recorder.commands.push(Command::Launch(Box::new(launch)));
        });
        if recorded.is_some() {
            return Ok(());
        }
        self.ring().push(Entry { kernel, grid, context });
        self.launches.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        self.explain(unsafe { self.driver.launch(kernel, grid, args, buffers) })
    }

    /// Memory of `bytes` bytes for `what`, of arbitrary content.
    pub(crate) fn take(&self, bytes: usize, what: &'static str) -> Result<Memory<'_>> {
        self.alive()?;
        let piece = match graph::recording(self.device, |recorder| recorder.reserve.clone()) {
            Some(reserve) => self.pool.take_reserved(&reserve, bytes, what)?,
            None => self.explain(self.pool.take(bytes, what))?,
        };
        Ok(Memory { piece: Some(piece), stream: self })
    }

    /// Scratch memory for `len` elements, which goes back to the pool when dropped: whatever was queued before that
    /// still finds it.
    pub fn temp(&self, dtype: DType, len: usize) -> Result<Temp<'_>> {
        let bytes = len
            .checked_mul(dtype.size())
            .ok_or_else(|| Error::unsupported("temp", format!("{len} elements of {dtype}")))?;
        Ok(Temp { memory: self.take(bytes, "scratch")?, dtype, len: len as u64 })
    }

    /// Copies host bytes to device memory.
    #[track_caller]
    pub(crate) fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.alive()?;
        graph::refuse(self.device, "copying host data to the device", "make the tensor before the step")?;
        if from.is_empty() { Ok(()) } else { self.explain(self.driver.upload(to, from)) }
    }

    /// Waits for the queue and copies device memory to the host. Raises what the kernels found wrong so far.
    #[track_caller]
    pub(crate) fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.alive()?;
        graph::refuse(self.device, "reading values back", "read them after the step")?;
        self.check()?;
        if to.is_empty() { Ok(()) } else { self.explain(self.driver.download(to, from)) }
    }

    /// Copies within the device's memory.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.alive()?;
        if bytes == 0 {
            return Ok(());
        }
        let command = Command::Copy { to, from, bytes };
        match graph::recording(self.device, |recorder| recorder.commands.push(command)) {
            Some(()) => Ok(()),
            None => self.explain(self.driver.copy(to, from, bytes)),
        }
    }

    /// Sets device bytes.
    pub(crate) fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<()> {
        self.alive()?;
        if bytes == 0 {
            return Ok(());
        }
        let command = Command::Fill { to, value, bytes };
        match graph::recording(self.device, |recorder| recorder.commands.push(command)) {
            Some(()) => Ok(()),
            None => self.explain(self.driver.fill(to, value, bytes)),
        }
    }

    /// Waits until all queued work is done. Raises what the kernels found wrong so far.
    #[track_caller]
    pub fn synchronize(&self) -> Result<()> {
        self.alive()?;
        graph::refuse(self.device, "waiting for the device", "wait after the step")?;
        self.explain(self.driver.synchronize())?;
        self.check()
    }

    /// Marks this point of the queue; for timing.
    #[track_caller]
    pub fn record(&self) -> Result<Event> {
        self.alive()?;
        graph::refuse(self.device, "timing", "time the step from outside")?;
        self.explain(self.driver.record())
    }

    /// Milliseconds between two marks. Waits for the later one.
    pub fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        self.alive()?;
        self.explain(self.driver.elapsed(from, to))
    }

    /// Encodes a tensor map.
    pub fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        self.alive()?;
        self.explain(self.driver.tensor_map(desc))
    }

    /// A slot in which a kernel reports a bad value (an index out of range) and its linear position; `describe` makes the
    /// error for it. Keep the slot until the kernel is launched.
    pub fn fault_slot(&self, describe: impl Fn(i64, u64) -> Error + Send + 'static) -> Result<FaultSlot<'_>> {
        self.alive()?;
        self.prepare_slots()?;
        let mut faults = self.faults();
        let free = |faults: &Faults| faults.slots.iter().position(|s| matches!(s, Slot::Free));
        let index = match free(&faults) {
            Some(index) => index,
            None => {
                self.look_at(&mut faults)?;
                free(&faults).ok_or_else(|| Error::internal("every fault slot is held"))?
            }
        };
        faults.slots[index] = Slot::Held(Some(Box::new(describe)));
        Ok(FaultSlot { address: faults.address + (index * SLOT) as u64, stream: self, index })
    }

    /// Makes the fault slots, if there are none yet.
    pub(super) fn prepare_slots(&self) -> Result<()> {
        let mut faults = self.faults();
        if faults.address == 0 {
            faults.address = self.explain(self.pool.take(SLOTS * SLOT, "fault slots"))?.address;
            self.explain(self.driver.fill(faults.address, 0, SLOTS * SLOT))?;
            faults.slots = (0..SLOTS).map(|_| Slot::Free).collect();
        }
        Ok(())
    }

    /// Frees the fault slots of recorded work that is gone.
    pub(super) fn release_slots(&self, slots: &[usize]) {
        let mut faults = self.faults();
        slots.iter().for_each(|&index| faults.slots[index] = Slot::Free);
    }

    /// Makes recorded work ready to be replayed.
    pub(super) fn instantiate(&self, commands: Vec<Command>) -> Result<Executable> {
        // SAFETY: the generated launches made these commands; the graph that is being made keeps their memory.
        self.explain(unsafe { self.driver.instantiate(commands) })
    }

    /// Queues recorded work.
    #[track_caller]
    pub(super) fn replay(&self, graph: &Graph, executable: &Executable) -> Result<()> {
        self.alive()?;
        graph::refuse(self.device, "replaying a captured step", "a step cannot hold another")?;
        let mut ring = self.ring();
        for Launch { kernel, grid, context, .. } in &graph.last {
            ring.push(Entry { kernel, grid: *grid, context: *context });
        }
        drop(ring);
        self.launches.fetch_add(graph.launches(), Relaxed);
        self.explain(self.driver.replay(executable))?;
        let mut faults = self.faults();
        for &index in &graph.slots {
            if let Slot::Recorded { replayed, .. } = &mut faults.slots[index] {
                *replayed = true;
            }
        }
        Ok(())
    }

    /// Waits until the device is done, whatever it found.
    pub(super) fn settle(&self) -> Result<()> {
        self.alive()?;
        self.explain(self.driver.synchronize())
    }

    /// Raises what kernels reported, and damage that the pool's debug mode found.
    fn check(&self) -> Result<()> {
        self.pool.check()?;
        let mut faults = self.faults();
        let waits = |s: &Slot| matches!(s, Slot::Armed(_) | Slot::Recorded { replayed: true, .. });
        if faults.slots.iter().any(waits) {
            self.look_at(&mut faults)?;
        }
        Ok(())
    }

    /// Reads all slots and frees the armed ones; the error of the first that was reported to.
    fn look_at(&self, faults: &mut Faults) -> Result<()> {
        let mut bytes = [0u8; SLOTS * SLOT];
        self.explain(self.driver.download(&mut bytes, faults.address))?;
        let mut first = None;
        for (index, (slot, record)) in faults.slots.iter_mut().zip(bytes.chunks_exact(SLOT)).enumerate() {
            let mut armed = None;
            match slot {
                Slot::Free | Slot::Held(_) => continue,
                Slot::Armed(describe) => {
                    armed = describe.take();
                    *slot = Slot::Free;
                }
                Slot::Recorded { replayed, .. } => *replayed = false,
            }
            let describe = match slot {
                Slot::Recorded { describe, .. } => describe.as_ref(),
                _ => armed.as_ref(),
            };
            let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
            let (low, high) = (number(0), number(8));
            if low == 0 {
                continue;
            }
            self.explain(self.driver.fill(faults.address + (index * SLOT) as u64, 0, SLOT))?;
            if let Some(describe) = describe {
                let value = (high << 32 | low & u64::from(u32::MAX)) as i64;
                first.get_or_insert_with(|| describe(value, u64::from(!((low >> 32) as u32))));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The operand itself if its elements lie in row-major order, else a packed copy of it.
    pub fn contiguous<'a>(&'a self, operand: &impl Operand<'a>) -> Result<Packed<'a>> {
        let (src, layout) = (operand.src(), operand.layout());
        if layout.is_contiguous() {
            return Ok(Packed::Whole(src.part(0, layout.numel() as u64)));
        }
        let mut copy = self.temp(src.dtype(), layout.numel())?;
        super::copy::strided(self, src, layout, copy.dst(), &Layout::contiguous(layout.shape), false)?;
        Ok(Packed::Copy(copy))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.device)
    }
}

/// Device memory with a layout, such as an op's input.
pub trait Operand<'a> {
    /// The memory from the first to the last element.
    fn src(&self) -> Src<'a>;
    /// Where the elements lie in it, in row-major order.
    fn layout(&self) -> &Layout;
}

/// An operand in row-major order.
pub enum Packed<'a> {
    /// It was so already.
    Whole(Src<'a>),
    /// A copy of it.
    Copy(Temp<'a>),
}

impl Packed<'_> {
    /// Its memory.
    pub fn src(&self) -> Src<'_> {
        match self {
            Packed::Whole(src) => *src,
            Packed::Copy(temp) => temp.src(),
        }
    }
}

/// A piece of a device's memory; goes back to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    stream: &'a Stream,
    piece: Option<Piece>,
}

impl<'a> Memory<'a> {
    /// The device it is on.
    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.piece.as_ref().map_or(0, |p| p.address)
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.piece.as_ref().map_or(0, |p| p.bytes)
    }

    /// Whether it belongs to recorded work, which keeps it without being told to.
    pub fn is_reserved(&self) -> bool {
        self.piece.as_ref().is_some_and(Piece::is_reserved)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.stream.pool.give(piece);
        }
    }
}

/// Scratch memory of an op's body.
pub struct Temp<'a> {
    memory: Memory<'a>,
    dtype: DType,
    len: u64,
}

impl Temp<'_> {
    /// To be read.
    pub fn src(&self) -> Src<'_> {
        Src::new(self.memory.address(), self.len, self.dtype)
    }

    /// To be written.
    pub fn dst(&mut self) -> Dst<'_> {
        Dst::new(self.memory.address(), self.len, self.dtype)
    }
}

/// Where a kernel reports a bad value; see [`Stream::fault_slot`].
pub struct FaultSlot<'a> {
    stream: &'a Stream,
    index: usize,
    address: u64,
}

impl FaultSlot<'_> {
    /// Its memory, as the `fault` argument of a kernel: u32.
    pub fn dst(&mut self) -> Dst<'_> {
        Dst::new(self.address, (SLOT / 4) as u64, DType::I32)
    }
}

impl Drop for FaultSlot<'_> {
    fn drop(&mut self) {
        let mut faults = self.stream.faults();
        if let Slot::Held(describe) = &mut faults.slots[self.index] {
            let describe = describe.take();
            let recorded = graph::recording(self.stream.device, |recorder| recorder.slots.push(self.index));
            faults.slots[self.index] = match recorded {
                Some(()) => Slot::Recorded { describe, replayed: false },
                None => Slot::Armed(describe),
            };
        }
    }
}
