//! Memory that tensors share, with run-time borrows of byte ranges and a version per segment.
//!
//! Values are immutable except through the arena and the `*_into` calls. Those take exclusive borrows of the ranges they
//! write; reading takes shared ones. Two borrows that exclude each other are an error, never a wait and never a race.
//! Each write bumps the version of the segments it touches, which is how a tensor saved for backward notices that its
//! memory changed. An ordinary storage is one segment; an arena's buffer has one a parameter.
//!
//! This is one of the few files with `unsafe`: the guards hand out slices of memory that others hold guards on too.

use std::ops::Range;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cpu::pool::Block;
use crate::device::stream::Memory;
use crate::{Device, Error, ErrorKind, Result};

/// Where in the source a write came from.
pub type Site = &'static Location<'static>;

/// A piece of memory. Shared behind an `Arc` by all tensors that view it.
pub struct Storage {
    /// First byte of a block's memory, taken once while the block was still owned exclusively; null for device memory.
    base: *mut u8,
    /// Keeps the memory; a block is not touched again until it drops.
    keep: Keep,
    bytes: usize,
    /// First byte of each segment but the first, ascending.
    cuts: Box<[usize]>,
    state: Mutex<State>,
}

enum Keep {
    /// Held for its drop only: the memory is reached through `base`.
    Host {
        _block: Block,
    },
    Device(Memory<'static>),
}

#[derive(Default)]
struct State {
    readers: Vec<(usize, usize)>,
    writers: Vec<(usize, usize)>,
    /// Writes so far, to any segment.
    writes: u64,
    /// One a segment; empty until the first write.
    versions: Vec<Version>,
}

#[derive(Clone, Copy, Default)]
struct Version {
    writes: u64,
    /// The storage's count of writes when this segment was last written.
    at: u64,
    last: Option<(&'static str, Site)>,
}

// SAFETY: `base` points to memory that this storage owns through `keep` and is reached only through guards; `State`
// (behind a mutex) gives out a write guard on a range only while no other guard overlaps it, so access from several
// threads never races.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

/// Whether two ranges share a byte; an empty one (a tensor without elements inside a larger one) shares none.
fn overlaps(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0.max(b.0) < a.1.min(b.1)
}

impl Storage {
    /// Takes over a block, as one segment.
    pub(crate) fn new(block: Block) -> Storage {
        Storage::segmented(block, Vec::new())
    }

    /// Takes over a block; `cuts` are the first bytes of all segments but the first, ascending.
    pub(crate) fn segmented(mut block: Block, cuts: Vec<usize>) -> Storage {
        let (bytes, base) = (block.as_ref().len(), block.as_mut().as_mut_ptr());
        let keep = Keep::Host { _block: block };
        Storage { base, keep, bytes, cuts: cuts.into(), state: Mutex::default() }
    }

    /// The content of a host block where `device` has its memory: taken over, or copied into device memory for `what`.
    #[track_caller]
    pub(crate) fn placed(
        block: Block,
        cuts: Vec<usize>,
        device: Device,
        what: &'static str,
    ) -> Result<Storage> {
        if device.is_cpu() {
            return Ok(Storage::segmented(block, cuts));
        }
        let stream = device.gpu()?;
        let memory = stream.take(block.as_ref().len(), what)?;
        stream.upload(memory.address(), block.as_ref())?;
        Ok(Storage::on_device(memory, cuts))
    }

    /// Takes over device memory; `cuts` as for [`Storage::segmented`].
    pub(crate) fn on_device(memory: Memory<'static>, cuts: Vec<usize>) -> Storage {
        let bytes = memory.bytes();
        let (base, keep) = (std::ptr::null_mut(), Keep::Device(memory));
        Storage { base, keep, bytes, cuts: cuts.into(), state: Mutex::default() }
    }

    /// Keeps `storage` alive with the step that this thread is capturing, if it does: the step goes on using the memory.
    pub(crate) fn keep(storage: &Arc<Storage>) {
        if let Keep::Device(memory) = &storage.keep
            && !memory.is_reserved()
        {
            crate::device::graph::keep(memory.stream().device(), storage);
        }
    }

    /// Where the memory is.
    pub fn device(&self) -> Device {
        match &self.keep {
            Keep::Host { .. } => Device::Cpu,
            Keep::Device(memory) => memory.stream().device(),
        }
    }

    /// The device address of byte `at`; 0 for host memory.
    fn address(&self, at: usize) -> u64 {
        match &self.keep {
            Keep::Host { .. } => 0,
            Keep::Device(memory) => memory.address() + at as u64,
        }
    }

    fn on_host(&self) {
        assert!(!self.base.is_null(), "device memory was read as the host's");
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst a borrow that is never given back.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn check(&self, range: &Range<usize>) -> Result<()> {
        if range.start > range.end || range.end > self.bytes {
            return Err(Error::internal(format!("bytes {range:?} of a storage of {} bytes", self.bytes)));
        }
        Ok(())
    }

    /// Borrows `range` (bytes) for reading. Errors if a writer holds any of it.
    pub fn read(&self, range: Range<usize>) -> Result<ReadGuard<'_>> {
        self.check(&range)?;
        let key = (range.start, range.end);
        let mut state = self.state();
        if state.writers.iter().any(|&w| overlaps(w, key)) {
            return Err(Error::new(ErrorKind::Borrowed, "memory that is being written cannot be read"));
        }
        state.readers.push(key);
        drop(state);
        Ok(ReadGuard { storage: self, key })
    }

    /// Borrows `range` (bytes) for writing by `op`. Errors if anyone else holds any of it.
    #[track_caller]
    pub fn write(&self, range: Range<usize>, op: &'static str) -> Result<WriteGuard<'_>> {
        self.check(&range)?;
        let key = (range.start, range.end);
        let segments = self.segments(&range);
        let mut state = self.state();
        let taken = if state.writers.iter().any(|&w| overlaps(w, key)) {
            Some("is being written by another call")
        } else if state.readers.iter().any(|&r| overlaps(r, key)) {
            Some("is being read, perhaps as an input of the same call")
        } else {
            None
        };
        if let Some(why) = taken {
            return Err(
                Error::new(ErrorKind::Borrowed, format!("memory that {why} cannot be written")).with_op(op)
            );
        }
        state.writers.push(key);
        if state.versions.is_empty() {
            state.versions = vec![Version::default(); self.cuts.len() + 1];
        }
        state.writes += 1;
        let at = state.writes;
        for version in &mut state.versions[segments] {
            *version = Version { writes: version.writes + 1, at, last: Some((op, Location::caller())) };
        }
        drop(state);
        Ok(WriteGuard { storage: self, key })
    }

    /// The segments that a byte range touches.
    fn segments(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.cuts.partition_point(|&c| c <= range.start);
        let last = self.cuts.partition_point(|&c| c < range.end.max(range.start + 1));
        first..last + 1
    }

    /// The number of writes so far to the segments that `range` (bytes) touches.
    pub fn version(&self, range: &Range<usize>) -> u64 {
        let state = self.state();
        state.versions.get(self.segments(range)).map_or(0, |v| v.iter().map(|v| v.writes).sum())
    }

    /// The op and the source line of the last write to the segments that `range` (bytes) touches.
    pub fn last_write(&self, range: &Range<usize>) -> Option<(&'static str, Site)> {
        let state = self.state();
        state.versions.get(self.segments(range))?.iter().max_by_key(|v| v.at)?.last
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Storage({} bytes)", self.bytes)
    }
}

/// A shared borrow of a range of a [`Storage`].
pub struct ReadGuard<'a> {
    storage: &'a Storage,
    key: (usize, usize),
}

impl ReadGuard<'_> {
    /// The device address of the borrowed range; 0 for host memory.
    pub fn address(&self) -> u64 {
        self.storage.address(self.key.0)
    }

    /// The bytes of the borrowed range, which is the host's.
    pub fn bytes(&self) -> &[u8] {
        let (start, end) = self.key;
        self.storage.on_host();
        // SAFETY: `State` holds this range as read until the guard drops, so no write guard on it exists; `check` has
        // proved that it lies in the block, which lives as long as the storage.
        unsafe { std::slice::from_raw_parts(self.storage.base.add(start), end - start) }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.storage.state();
        if let Some(i) = state.readers.iter().position(|&r| r == self.key) {
            state.readers.swap_remove(i);
        }
    }
}

/// An exclusive borrow of a range of a [`Storage`].
pub struct WriteGuard<'a> {
    storage: &'a Storage,
    key: (usize, usize),
}

impl WriteGuard<'_> {
    /// The device address of the borrowed range; 0 for host memory.
    pub fn address(&self) -> u64 {
        self.storage.address(self.key.0)
    }

    /// The bytes of the borrowed range, which is the host's.
    pub fn bytes(&mut self) -> &mut [u8] {
        let (start, end) = self.key;
        self.storage.on_host();
        // SAFETY: `State` holds this range as written until the guard drops, so no other guard overlaps it; `check` has
        // proved that it lies in the block; `&mut self` keeps this the only slice made from this guard.
        unsafe { std::slice::from_raw_parts_mut(self.storage.base.add(start), end - start) }
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.storage.state();
        if let Some(i) = state.writers.iter().position(|&w| w == self.key) {
            state.writers.swap_remove(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage() -> Storage {
        Storage::segmented(Block::zeroed(300).unwrap(), vec![100, 200])
    }

    #[test]
    fn readers_share_and_writers_exclude() {
        let s = storage();
        let _r1 = s.read(0..100).unwrap();
        let _r2 = s.read(50..150).unwrap();
        assert_eq!(s.write(149..151, "t").err().unwrap().kind(), ErrorKind::Borrowed);
        let mut w = s.write(150..200, "t").unwrap();
        w.bytes().fill(7);
        assert!(s.read(199..201).is_err());
        assert!(s.write(150..151, "t").is_err());
        drop(w);
        assert_eq!(s.read(199..201).unwrap().bytes(), [7, 0]);
    }

    #[test]
    fn versions_count_writes_a_segment() {
        let s = storage();
        drop(s.write(0..10, "a").unwrap());
        drop(s.write(150..250, "b").unwrap());
        assert_eq!([s.version(&(0..100)), s.version(&(100..200)), s.version(&(200..300))], [1, 1, 1]);
        drop(s.write(99..100, "c").unwrap());
        assert_eq!(s.version(&(50..60)), 2);
        assert_eq!(s.version(&(100..101)), 1);
        assert_eq!(s.last_write(&(0..1)).unwrap().0, "c");
        assert_eq!(s.last_write(&(120..130)).unwrap().0, "b");
    }

    #[test]
    fn threads_that_write_disjoint_ranges_do_not_disturb_each_other() {
        let s = Storage::new(Block::zeroed(4000).unwrap());
        std::thread::scope(|scope| {
            for t in 0..4usize {
                let s = &s;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let mut w = s.write(t * 1000..(t + 1) * 1000, "t").unwrap();
                        w.bytes().iter_mut().for_each(|b| *b = b.wrapping_add(t as u8));
                    }
                });
            }
        });
        let all = s.read(0..4000).unwrap();
        for (i, &b) in all.bytes().iter().enumerate() {
            assert_eq!(b, (1000 * (i / 1000)) as u8);
        }
    }
}
