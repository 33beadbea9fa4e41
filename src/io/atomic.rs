//! Replacing one file in one step: a temporary sibling is written, synced and renamed over the old one.
//!
//! A failure or a kill at any moment leaves the old file as it was. What is not a regular file (a terminal, a pipe,
//! `/dev/null`) is written to directly, because renaming over it would replace the device.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Lets `write` write a file, which then takes the place of `path` in one step.
///
/// Fails (kind `Data`) when the file cannot be written, synced or renamed, and with whatever error `write` gives;
/// `path` is then unchanged and the temporary file is gone.
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    // Through a symbolic link the file behind it is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&target) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::data(path, "expected a file to write, found a folder"));
        }
        Ok(meta) if !meta.is_file() => {
            let file = OpenOptions::new().write(true).open(&target);
            let mut out = BufWriter::new(file.map_err(|e| Error::io(path, "open for writing", e))?);
            write(&mut out).map_err(|e| place(e, path))?;
            return out.flush().map_err(|e| Error::io(path, "write", e));
        }
        _ => {}
    }
    let (temporary, file) = create_sibling(&target).map_err(|e| Error::io(path, "create", e))?;
    let outcome = fill(&file, path, write).and_then(|()| {
        fs::rename(&temporary, &target).map_err(|e| Error::io(path, "replace", e))?;
        sync_folder(parent_of(&target)).map_err(|e| Error::io(path, "sync the folder of", e))
    });
    if outcome.is_err() {
        // After a successful rename there is nothing of this name left to remove.
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

/// Lets `fill` fill a new folder, which then appears as `path` in one step. Files that are in it must be durable by then.
///
/// Fails (kind `Argument`) where there is something at `path` already, and with whatever error `fill` gives; nothing is left then.
#[cfg(feature = "train")]
pub fn create_folder(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let there =
        || Error::argument(format!("{} is there already", path.display())).with_help("name a new folder");
    if fs::symlink_metadata(path).is_ok() {
        return Err(there());
    }
    fs::create_dir_all(parent_of(path)).map_err(|e| Error::io(parent_of(path), "create", e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent_of(path).join(format!(".{name}.tmp-{}", std::process::id()));
    fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, "create", e))?;
    let outcome = fill(&temporary).and_then(|()| {
        sync_folder(&temporary).map_err(|e| Error::io(path, "sync", e))?;
        // Where somebody has put a file or a filled folder meanwhile, this fails.
        fs::rename(&temporary, path).map_err(|e| Error::io(path, "create", e))?;
        sync_folder(parent_of(path)).map_err(|e| Error::io(path, "sync the folder of", e))
    });
    if outcome.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    outcome
}

fn fill(file: &File, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, file);
    write(&mut out).map_err(|e| place(e, path))?;
    out.flush().map_err(|e| Error::io(path, "write", e))?;
    drop(out);
    file.sync_all().map_err(|e| Error::io(path, "sync", e))
}

/// Names `path` in an error that names no place yet.
pub(super) fn place(error: Error, path: &Path) -> Error {
    if error.place().is_some() { error } else { error.at(path, None, None::<String>) }
}

fn create_sibling(target: &Path) -> std::io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = parent_of(target).join(format!(".{name}.tmp-{}-{n}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => return other.map(|file| (temporary, file)),
        }
    }
}

/// The folder that `path` is in; the current one for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a folder's entries durable. File systems that cannot sync a folder say `InvalidInput`; they are let off.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}
