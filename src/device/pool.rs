//! The caching pool of a device's memory: blocks in size classes, reused in the order of the device's queue.
//!
//! All work of a device runs in one queue, so a block that is given back may be handed out again at once: whatever the
//! queue still does with it happens before what the next owner queues. A steady training step takes nothing from the
//! driver (counted in [`MemoryReport::driver_allocations`]). When the driver has no more, everything cached goes back to
//! it and it is asked once more; then the error says who holds what.
//!
//! With [`Pool::set_debug`] each block is poisoned when it is handed out and lies between two red zones, which are
//! compared when it comes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::driver::Driver;
use crate::{Error, ErrorKind, Result};

/// Unit and alignment of every block, in bytes.
pub const GRANULE: usize = 512;
/// Width of a red zone: keeps the block's alignment.
const RED_ZONE: usize = GRANULE;
const RED: u8 = 0xFA;
const POISON: u8 = 0xCB;

/// The size of the block that serves `bytes`: four classes a power of two, so at most a fifth is wasted.
fn class_of(bytes: usize) -> Option<usize> {
    let granules = bytes.div_ceil(GRANULE).max(1);
    let granules = if granules <= 4 {
        granules
    } else {
        let quarter = 1usize << (usize::BITS - 1 - (granules - 1).leading_zeros() - 2);
        granules.checked_next_multiple_of(quarter)?
    };
    granules.checked_mul(GRANULE)
}

/// What the pool of a device holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes in blocks that are in use.
    pub live_bytes: usize,
    /// Bytes in blocks that wait to be reused.
    pub cached_bytes: usize,
    /// The highest `live_bytes` so far.
    pub peak_live_bytes: usize,
    /// Blocks taken from the driver.
    pub driver_allocations: u64,
    /// Blocks served from the cache.
    pub reuses: u64,
    /// For whom (an op, `arena`, `from_slice`) blocks are in use: name, blocks, bytes; the largest first.
    pub holders: Vec<(&'static str, usize, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    free: BTreeMap<usize, Vec<u64>>,
    holders: BTreeMap<&'static str, (usize, usize)>,
    report: MemoryReport,
}

/// The pool of one device.
pub struct Pool {
    driver: Arc<dyn Driver>,
    state: Arc<Mutex<State>>,
    debug: AtomicBool,
    /// What the comparison of red zones found, until someone asks.
    damage: Mutex<Option<String>>,
}

/// A block as the pool hands it out.
#[derive(Debug)]
pub(crate) struct Piece {
    /// First byte for the owner; 0 if there are none.
    pub address: u64,
    /// Bytes asked for.
    pub bytes: usize,
    what: &'static str,
    class: usize,
    red: bool,
    /// The recorded work that the block belongs to.
    reserve: Option<Arc<Reserve>>,
}

impl Piece {
    /// Whether it belongs to recorded work.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserve.is_some()
    }
}

/// The memory of recorded work: blocks that the pool had cached, reused while the work is recorded in the order in which it
/// will run. They return to the pool when the work and all tensors made with it are gone.
#[derive(Debug)]
pub(super) struct Reserve {
    pool: Arc<Mutex<State>>,
    blocks: Mutex<Blocks>,
}

#[derive(Debug, Default)]
struct Blocks {
    free: BTreeMap<usize, Vec<u64>>,
    all: Vec<(usize, u64)>,
}

/// For whom the blocks of recorded work are in use.
const RESERVE: &str = "captured step";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Reserve {
    /// A block of this class: one that was given back, else one that the pool has cached.
    fn take(&self, class: usize) -> Option<u64> {
        let mut blocks = lock(&self.blocks);
        if let Some(address) = blocks.free.get_mut(&class).and_then(Vec::pop) {
            return Some(address);
        }
        let mut state = lock(&self.pool);
        let address = state.free.get_mut(&class).and_then(Vec::pop)?;
        state.report.cached_bytes -= class;
        state.report.reuses += 1;
        state.hold(RESERVE, class);
        blocks.all.push((class, address));
        Some(address)
    }

    /// Bytes of all blocks.
    pub(super) fn bytes(&self) -> usize {
        lock(&self.blocks).all.iter().map(|(class, _)| class).sum()
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut *lock(&self.blocks));
        let mut state = lock(&self.pool);
        for (class, address) in blocks.all {
            state.release(RESERVE, class);
            state.free.entry(class).or_default().push(address);
        }
    }
}

impl State {
    /// Counts a block as in use.
    fn hold(&mut self, what: &'static str, class: usize) {
        self.report.live_bytes += class;
        self.report.peak_live_bytes = self.report.peak_live_bytes.max(self.report.live_bytes);
        let holder = self.holders.entry(what).or_default();
        *holder = (holder.0 + 1, holder.1 + class);
    }

    /// Counts a block as cached.
    fn release(&mut self, what: &'static str, class: usize) {
        self.report.live_bytes -= class;
        self.report.cached_bytes += class;
        if let Some(holder) = self.holders.get_mut(what) {
            *holder = (holder.0 - 1, holder.1 - class);
            if holder.0 == 0 {
                self.holders.remove(what);
            }
        }
    }
}

impl Pool {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Pool {
        Pool { driver, state: Arc::default(), debug: AtomicBool::new(false), damage: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Memory for work that is about to be recorded.
    pub(super) fn reserve(&self) -> Reserve {
        Reserve { pool: self.state.clone(), blocks: Mutex::default() }
    }

    /// As [`Pool::take`], for work that is being recorded: an error of kind `Unsupported` where the driver would have to be
    /// asked.
    pub(super) fn take_reserved(
        &self,
        reserve: &Arc<Reserve>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Piece> {
        if bytes == 0 {
            return Ok(Piece { address: 0, bytes, what, class: 0, red: false, reserve: None });
        }
        let class = class_of(bytes).ok_or_else(|| self.out_of_memory(bytes))?;
        let address = reserve.take(class).ok_or_else(|| {
            let message =
                format!("{bytes} bytes for {what} are not cached, and the driver cannot be asked for them");
            Error::unsupported("captured step", message)
                .with_help("run the same step once without capturing it, so that its memory is cached")
        })?;
        Ok(Piece { address, bytes, what, class, red: false, reserve: Some(reserve.clone()) })
    }

    /// Switches poisoning and red zones on or off, for blocks handed out from now on.
    pub fn set_debug(&self, on: bool) {
        self.debug.store(on, Relaxed);
    }

    /// Hands out `bytes` bytes for `what`, of arbitrary content.
    pub(crate) fn take(&self, bytes: usize, what: &'static str) -> Result<Piece> {
        if bytes == 0 {
            return Ok(Piece { address: 0, bytes, what, class: 0, red: false, reserve: None });
        }
        let red = self.debug.load(Relaxed);
        let zones = if red { 2 * RED_ZONE } else { 0 };
        let class = bytes.checked_add(zones).and_then(class_of).ok_or_else(|| self.out_of_memory(bytes))?;
        let mut state = self.state();
        let base = match state.free.get_mut(&class).and_then(Vec::pop) {
            Some(address) => {
                state.report.cached_bytes -= class;
                state.report.reuses += 1;
                address
            }
            None => {
                state.report.driver_allocations += 1;
                drop(state);
                let address = self.ask_driver(class, bytes)?;
                state = self.state();
                address
            }
        };
        state.hold(what, class);
        drop(state);
        let mut piece = Piece { address: base, bytes, what, class, red, reserve: None };
        if red {
            piece.address += RED_ZONE as u64;
            let after = class - RED_ZONE - bytes;
            let filled = self
                .driver
                .fill(base, RED, RED_ZONE)
                .and_then(|()| self.driver.fill(piece.address, POISON, bytes))
                .and_then(|()| self.driver.fill(piece.address + bytes as u64, RED, after));
            if let Err(e) = filled {
                self.give(piece);
                return Err(e);
            }
        }
        Ok(piece)
    }

    fn ask_driver(&self, class: usize, bytes: usize) -> Result<u64> {
        match self.driver.alloc(class) {
            Err(e) if e.kind() == ErrorKind::OutOfMemory => {
                self.release_cached();
                self.driver.alloc(class).map_err(|e| match e.kind() {
                    ErrorKind::OutOfMemory => self.out_of_memory(bytes),
                    _ => e,
                })
            }
            result => result,
        }
    }

    fn out_of_memory(&self, bytes: usize) -> Error {
        let report = self.report();
        let mut message = format!("cannot allocate {bytes} bytes of device memory");
        if let Ok((free, total)) = self.driver.memory() {
            message += &format!(" ({free} of {total} are free)");
        }
        message += &format!("; {} bytes are live", report.live_bytes);
        let holders: Vec<String> = report
            .holders
            .iter()
            .take(5)
            .map(|(what, blocks, bytes)| format!("{what} {bytes} in {blocks}"))
            .collect();
        if !holders.is_empty() {
            message += &format!(": {}", holders.join(", "));
        }
        Error::new(ErrorKind::OutOfMemory, message).with_help("use a smaller batch or model")
    }

    /// Takes a block back.
    pub(crate) fn give(&self, piece: Piece) {
        if piece.class == 0 {
            return;
        }
        if let Some(reserve) = &piece.reserve {
            // Once the recording is over, what it wrote there is written again and again: it is not handed on.
            if super::graph::records_into(reserve) {
                lock(&reserve.blocks).free.entry(piece.class).or_default().push(piece.address);
            }
            return;
        }
        let base = if piece.red { piece.address - RED_ZONE as u64 } else { piece.address };
        if piece.red {
            self.compare_red_zones(&piece, base);
        }
        let mut state = self.state();
        state.release(piece.what, piece.class);
        state.free.entry(piece.class).or_default().push(base);
    }

    fn compare_red_zones(&self, piece: &Piece, base: u64) {
        let after = piece.class - RED_ZONE - piece.bytes;
        let mut zones = vec![RED; RED_ZONE.max(after)];
        for (start, len, side) in
            [(base, RED_ZONE, "before"), (piece.address + piece.bytes as u64, after.min(RED_ZONE), "after")]
        {
            // A device that failed already has said so.
            if self.driver.download(&mut zones[..len], start).is_err() {
                return;
            }
            if let Some(at) = zones[..len].iter().position(|&b| b != RED) {
                let distance = if side == "before" { RED_ZONE - at } else { at + 1 };
                let message = format!(
                    "a kernel wrote {distance} bytes {side} the {} bytes held for {}",
                    piece.bytes, piece.what
                );
                self.damage.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(message);
                return;
            }
        }
    }

    /// An error if a red zone was found damaged since the last call.
    pub(crate) fn check(&self) -> Result<()> {
        match self.damage.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(message) => Err(Error::internal(message)),
            None => Ok(()),
        }
    }

    /// Gives all cached blocks back to the driver.
    pub fn release_cached(&self) {
        let mut state = self.state();
        let free = std::mem::take(&mut state.free);
        state.report.cached_bytes = 0;
        drop(state);
        for (class, blocks) in free {
            blocks.into_iter().for_each(|address| self.driver.free(address, class));
        }
    }

    /// What the pool holds now.
    pub fn report(&self) -> MemoryReport {
        let state = self.state();
        let mut report = state.report.clone();
        report.holders = state.holders.iter().map(|(&what, &(n, bytes))| (what, n, bytes)).collect();
        report.holders.sort_by_key(|h| std::cmp::Reverse(h.2));
        report
    }
}
