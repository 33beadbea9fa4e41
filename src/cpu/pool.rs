//! The caching pool of host memory: 64-byte aligned blocks in size classes, reused without going back to the system.
//!
//! A steady training step allocates the same sizes again and again; from its second step on it makes no system
//! allocation (counted in [`MemoryReport::system_allocations`]). Blocks are process-wide, so several threads that train
//! separate models share what each leaves behind. A reused block keeps its old content.

#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use bytemuck::{Pod, Zeroable};

use crate::{Error, ErrorKind, Result};

/// One cache line; the unit and the alignment of every block.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line([u64; 8]);

const LINE: usize = size_of::<Line>();
/// Four classes per power of two waste at most a fifth of a block; 2^40 lines is beyond any machine.
const CLASSES: usize = 4 * 40;

static FREE: [Mutex<Vec<Vec<Line>>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];
static LIVE: AtomicUsize = AtomicUsize::new(0);
static CACHED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static SYSTEM: AtomicU64 = AtomicU64::new(0);
static REUSED: AtomicU64 = AtomicU64::new(0);

/// The class of a block of `lines` lines and the class's size in lines.
fn class_of(lines: usize) -> (usize, usize) {
    if lines <= 4 {
        return (lines.saturating_sub(1), lines.max(1));
    }
    let top = usize::BITS - 1 - (lines - 1).leading_zeros();
    let quarter = 1usize << (top - 2);
    let steps = (lines - 1) / quarter + 1;
    (4 * (top as usize - 1) + steps - 5, steps * quarter)
}

/// A block from the pool; goes back when dropped.
#[derive(Debug)]
pub struct Block {
    lines: Vec<Line>,
    bytes: usize,
}

impl Block {
    /// A block of at least `bytes` bytes with arbitrary (but initialised) content.
    pub fn new(bytes: usize) -> Result<Block> {
        if bytes == 0 {
            return Ok(Block { lines: Vec::new(), bytes });
        }
        let (class, lines) = class_of(bytes.div_ceil(LINE));
        let reused = FREE.get(class).and_then(|f| f.lock().unwrap_or_else(|e| e.into_inner()).pop());
        let lines = match reused {
            Some(block) => {
                CACHED.fetch_sub(block.len() * LINE, Relaxed);
                REUSED.fetch_add(1, Relaxed);
                block
            }
            None => {
                SYSTEM.fetch_add(1, Relaxed);
                Block::from_system(lines).or_else(|()| {
                    release_cached();
                    Block::from_system(lines).map_err(|()| out_of_memory(bytes))
                })?
            }
        };
        let live = LIVE.fetch_add(lines.len() * LINE, Relaxed) + lines.len() * LINE;
        PEAK.fetch_max(live, Relaxed);
        Ok(Block { lines, bytes })
    }

    /// A block of `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Result<Block> {
        let mut block = Block::new(bytes)?;
        block.as_mut().fill(0);
        Ok(block)
    }

    fn from_system(lines: usize) -> std::result::Result<Vec<Line>, ()> {
        // From calloc: pages that the caller never touches cost no memory.
        bytemuck::allocation::try_zeroed_vec(lines)
    }

    /// The content as a typed slice; the block's length must be a multiple of the element's size.
    pub fn typed<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.as_ref())
    }

    /// The content as a mutable typed slice; the block's length must be a multiple of the element's size.
    pub fn typed_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.as_mut())
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.bytes]
    }
}

impl AsMut<[u8]> for Block {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.bytes]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let bytes = lines.len() * LINE;
        LIVE.fetch_sub(bytes, Relaxed);
        if let Some(free) = FREE.get(class_of(lines.len()).0) {
            CACHED.fetch_add(bytes, Relaxed);
            free.lock().unwrap_or_else(|e| e.into_inner()).push(lines);
        }
    }
}

fn out_of_memory(bytes: usize) -> Error {
    let report = memory_report();
    let message = format!(
        "cannot allocate {bytes} bytes of host memory ({} bytes are live in tensors)",
        report.live_bytes
    );
    Error::new(ErrorKind::OutOfMemory, message).with_help("use a smaller batch or model")
}

/// Gives all cached blocks back to the system.
pub fn release_cached() {
    for free in &FREE {
        let blocks = std::mem::take(&mut *free.lock().unwrap_or_else(|e| e.into_inner()));
        CACHED.fetch_sub(blocks.iter().map(|b| b.len() * LINE).sum(), Relaxed);
    }
}

/// What the pool of host memory holds and has done, since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes in blocks that are in use.
    pub live_bytes: usize,
    /// Bytes in blocks that wait to be reused.
    pub cached_bytes: usize,
    /// The highest `live_bytes` so far.
    pub peak_live_bytes: usize,
    /// Blocks taken from the system.
    pub system_allocations: u64,
    /// Blocks served from the cache.
    pub reuses: u64,
}

/// The state of the host memory pool.
pub fn memory_report() -> MemoryReport {
    MemoryReport {
        live_bytes: LIVE.load(Relaxed),
        cached_bytes: CACHED.load(Relaxed),
        peak_live_bytes: PEAK.load(Relaxed),
        system_allocations: SYSTEM.load(Relaxed),
        reuses: REUSED.load(Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_every_size_in_order_and_waste_at_most_a_quarter() {
        let mut last = (0, 1);
        for lines in 1..100_000 {
            let (class, size) = class_of(lines);
            assert!(
                size >= lines && 4 * (size - lines) <= lines.max(4),
                "{lines} lines in a block of {size}"
            );
            assert!(
                class == last.0 && size == last.1 || class == last.0 + 1 && size > last.1,
                "{lines}: {class} {size}"
            );
            assert_eq!(class_of(size), (class, size), "a class must map to itself");
            last = (class, size);
        }
    }

    #[test]
    fn a_dropped_block_is_reused() {
        // An odd size that no other test uses: the pool is shared by the process.
        let bytes = 777_777;
        drop(Block::new(bytes).unwrap());
        let before = memory_report().reuses;
        let block = Block::new(bytes).unwrap();
        assert!(memory_report().reuses > before);
        assert_eq!(block.as_ref().len(), bytes);
        assert_eq!(block.as_ref().as_ptr() as usize % 64, 0);
    }
}
