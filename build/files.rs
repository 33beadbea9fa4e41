//! What the other modules share: files below a folder, a content hash, writing only what changed, running jobs in parallel.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All files below `dir` with one of these extensions, sorted.
#[cfg_attr(
    not(feature = "sim"),
    allow(dead_code, reason = "only the simulator's sources are not named by a unit")
)]
pub fn below(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The file and all that it includes with quotes, directly or not, as the compilers find it. What `#if` leaves out
/// counts as included.
pub fn included(root: &Path, file: &Path) -> Vec<PathBuf> {
    let mut found = vec![file.to_path_buf()];
    let mut next = 0;
    while let Some(file) = found.get(next).cloned() {
        next += 1;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for line in text.lines() {
            let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
            let name = directive.and_then(|d| d.strip_prefix("include")).and_then(|d| d.split('"').nth(1));
            let Some(name) = name else { continue };
            let beside = file.parent().unwrap_or(root).to_path_buf();
            let places = [beside, root.join("kernels"), root.to_path_buf()];
            let header = places.iter().map(|p| p.join(name)).find(|h| h.is_file());
            // The same header by two ways, as `core/../sim/sim.h`, is one file.
            let Some(header) = header.and_then(|h| h.canonicalize().ok()) else { continue };
            if !found.contains(&header) {
                found.push(header);
            }
        }
    }
    // By name, as the hash has it.
    found.sort_by_key(|f| (f.file_name().map(|n| n.to_owned()), f.clone()));
    found
}

/// 128 bits of two FNV-1a sums: names a cache entry, without a dependency.
#[derive(Clone)]
pub struct Hash(u64, u64);

impl Hash {
    pub fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325, 0x9e37_79b9_7f4a_7c15)
    }

    /// Adds a piece; its length counts, so that pieces cannot run into each other.
    pub fn add(mut self, piece: impl AsRef<[u8]>) -> Hash {
        let piece = piece.as_ref();
        for byte in (piece.len() as u64).to_le_bytes().iter().chain(piece) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            self.1 = (self.1.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        self
    }

    /// Adds files by name and content. Not by folder: that of generated files differs between features and profiles.
    pub fn add_files(self, files: &[PathBuf]) -> Hash {
        files.iter().fold(self, |hash, file| {
            let name = file.file_name().unwrap_or_default().as_encoded_bytes();
            hash.add(name).add(std::fs::read(file).unwrap_or_default())
        })
    }

    pub fn text(&self) -> String {
        format!("{:016x}{:016x}", self.0, self.1)
    }
}

/// Writes only what changed, so that nothing downstream is built again for nothing.
pub fn write(to: &Path, text: impl AsRef<[u8]>) -> Result<(), String> {
    if std::fs::read(to).is_ok_and(|old| old == text.as_ref()) {
        return Ok(());
    }
    std::fs::write(to, text).map_err(|e| format!("{}: {e}", to.display()))
}

/// Versions of a file that the cache keeps besides those in use, so that going back and forth between two costs nothing.
const KEPT: usize = 16;

/// Removes what is older, of each `STEM-HASH.EXTENSION` in the cache.
pub fn prune(cache: &Path, used: &[PathBuf]) {
    let mut versions = std::collections::BTreeMap::<(String, String), Vec<_>>::new();
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (Ok(meta), false) = (entry.metadata(), used.contains(&entry.path())) else { continue };
        let (Ok(modified), Some((stem, hash))) = (meta.modified(), name.rsplit_once('-')) else { continue };
        let extension = hash.split_once('.').map_or("", |(_, e)| e);
        versions.entry((stem.into(), extension.into())).or_default().push((modified, entry.path()));
    }
    for mut files in versions.into_values() {
        files.sort();
        for (_, file) in files.iter().rev().skip(KEPT) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Runs `work` on all items, as many at a time as cargo allows; the results in order.
pub fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(2);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = work(item);
                    results.lock().expect("no worker panics").push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics");
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, r)| r).collect()
}
