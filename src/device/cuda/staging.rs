//! A ring of pinned host memory that all copies between host and device go through: only from such memory does a copy
//! run beside the host, and only so may the caller's bytes be reused as soon as an upload has been queued.
//!
//! Small uploads share a slot. A slot is taken again when the queue has passed the mark that was set when it was left.

use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys;

use super::call::Entered;
use crate::Result;

/// Bytes of a slot: long enough that the copy's start costs little, short enough that copies in and out overlap.
const SLOT: usize = 1 << 20;
const SLOTS: usize = 16;
/// Uploads start at multiples of this within a slot.
const ALIGN: usize = 64;

/// An event without time, owned.
struct Mark(sys::CUevent);

impl Mark {
    fn new(entered: &Entered<'_>) -> Result<Mark> {
        let mut raw = null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: a context is current; writes a handle.
        entered.check(unsafe { sys::cuEventCreate(&mut raw, flags) }, "making a mark")?;
        Ok(Mark(raw))
    }

    fn set(&self, stream: sys::CUstream, entered: &Entered<'_>) -> Result<()> {
        // SAFETY: event and stream are of the current context.
        entered.check(unsafe { sys::cuEventRecord(self.0, stream) }, "marking a copy")
    }

    fn wait(&self, entered: &Entered<'_>) -> Result<()> {
        // SAFETY: the event is of the current context.
        entered.check(unsafe { sys::cuEventSynchronize(self.0) }, "waiting for a copy")
    }
}

/// The ring of one device's stream. Memory is taken at the first copy.
#[derive(Default)]
pub(super) struct Staging {
    /// Pinned: `SLOTS` slots of `SLOT` bytes, or null.
    memory: *mut u8,
    marks: Vec<Mark>,
    /// The slot in use and how much of it is filled.
    slot: usize,
    used: usize,
}

// SAFETY: ours: handles and memory of the process, used by one thread at a time behind `&mut`.
unsafe impl Send for Staging {}

impl Staging {
    fn prepare(&mut self, entered: &Entered<'_>) -> Result<()> {
        if self.marks.len() == SLOTS && !self.memory.is_null() {
            return Ok(());
        }
        while self.marks.len() < SLOTS {
            self.marks.push(Mark::new(entered)?);
        }
        let mut memory: *mut c_void = null_mut();
        // Cached by the host (flags 0): downloads read it.
        // SAFETY: a context is current; writes a pointer.
        let code = unsafe { sys::cuMemHostAlloc(&mut memory, SLOT * SLOTS, 0) };
        entered.check(code, "taking pinned host memory")?;
        self.memory = memory.cast();
        Ok(())
    }

    /// Leaves the slot in use and enters the next, once the queue is through with it.
    fn advance(&mut self, stream: sys::CUstream, entered: &Entered<'_>) -> Result<()> {
        self.marks[self.slot].set(stream, entered)?;
        self.slot = (self.slot + 1) % SLOTS;
        self.used = 0;
        // A mark that was never set has been passed.
        self.marks[self.slot].wait(entered)
    }

    /// Queues a copy to the device; `from` may be reused at once.
    pub(super) fn upload(
        &mut self,
        to: u64,
        from: &[u8],
        stream: sys::CUstream,
        entered: &Entered<'_>,
    ) -> Result<()> {
        self.prepare(entered)?;
        let (mut to, mut from) = (to, from);
        while !from.is_empty() {
            // A copy that fits a fresh slot is not cut in two.
            if self.used == SLOT || SLOT - self.used < from.len().min(SLOT) {
                self.advance(stream, entered)?;
            }
            let (part, rest) = from.split_at(from.len().min(SLOT));
            // SAFETY: `used + part.len() <= SLOT`, and no copy is under way in this part of the slot: it was passed when
            // the slot was entered, and since then only bytes below `used` have been queued.
            let place = unsafe {
                let place = self.memory.add(self.slot * SLOT + self.used);
                place.copy_from_nonoverlapping(part.as_ptr(), part.len());
                place
            };
            // SAFETY: pinned memory that stays as it is until the mark is passed; the device range is the caller's.
            let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, place.cast(), part.len(), stream) };
            entered.check(code, "copying to the device")?;
            self.used = (self.used + part.len()).next_multiple_of(ALIGN);
            (to, from) = (to + part.len() as u64, rest);
        }
        Ok(())
    }

    /// Copies to the host, behind all that is queued.
    pub(super) fn download(
        &mut self,
        to: &mut [u8],
        from: u64,
        stream: sys::CUstream,
        entered: &Entered<'_>,
    ) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.prepare(entered)?;
        // The stream is in order, so a slot that an upload still reads is written after that.
        self.used = SLOT;
        let first = self.slot;
        let slot = |i: usize| (first + 1 + i) % SLOTS;
        let queue = |ring: &Staging, i: usize, bytes: usize| {
            let from = from + (i * SLOT) as u64;
            // SAFETY: `bytes <= SLOT`; the slot is read only after its mark; the device range is the caller's.
            let code = unsafe {
                let place = ring.memory.add(slot(i) * SLOT);
                sys::cuMemcpyDtoHAsync_v2(place.cast(), from, bytes, stream)
            };
            entered.check(code, "copying from the device")?;
            ring.marks[slot(i)].set(stream, entered)
        };
        let size = to.len();
        let bytes = |i: usize| SLOT.min(size - i * SLOT);
        let parts = size.div_ceil(SLOT);
        let mut queued = 0;
        for i in 0..parts {
            while queued < parts.min(i + SLOTS) {
                queue(self, queued, bytes(queued))?;
                queued += 1;
            }
            self.marks[slot(i)].wait(entered)?;
            let part = &mut to[i * SLOT..][..bytes(i)];
            // SAFETY: the copy into this slot is done, and the next into it is queued only after this read.
            unsafe {
                part.as_mut_ptr().copy_from_nonoverlapping(self.memory.add(slot(i) * SLOT), part.len())
            };
        }
        // The last slot has been waited for, hence all before it: uploads may start in it.
        self.slot = slot(parts - 1);
        self.used = 0;
        Ok(())
    }

    /// Gives everything back. Nothing may be under way.
    pub(super) fn release(&mut self) {
        for mark in self.marks.drain(..) {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(mark.0) };
        }
        if !self.memory.is_null() {
            // SAFETY: taken once, given back once.
            let _ = unsafe { sys::cuMemFreeHost(self.memory.cast()) };
            self.memory = null_mut();
        }
    }
}
