//! Model folders that survive anything: checked when read, replaced whole when saved.
//!
//! A folder's `checksums.txt` lists its files with their sizes and checksums; a listed file that is missing, resized
//! or changed in one bit is an error that names it. Only listed files are read. [`save`] writes a new folder beside
//! the old one and swaps the two in one step; where a file system cannot, the old one passes through `DIR.old`, and
//! that is where readers look when `DIR` is not whole. See [`save`] for what happens to files that are not listed.
#![forbid(unsafe_code)]

mod checksums;
mod save;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use checksums::{Line, Manifest};
pub use save::{Staging, check_writable, save, save_with};

use super::atomic::parent_of;
use super::safetensors::SafeTensors;
use super::{open_regular, read_vec};
use crate::{Error, Result};

/// The list of a folder's files.
pub const CHECKSUMS: &str = "checksums.txt";
/// The file that every model folder holds, and by which (with [`CHECKSUMS`]) one is told from a stranger's folder.
pub const MODEL: &str = "model.toml";

/// A whole model folder, opened for reading.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    fallback: bool,
    manifest: Manifest,
}

impl Folder {
    /// Opens `dir`, or a whole `dir.old` that a save left when it was cut off in the middle.
    ///
    /// Checks that the list is sound and that every listed file is there and has its size; contents are checked as
    /// they are read. Fails (kind `Data`) naming the folder or file at fault.
    pub fn open(dir: impl AsRef<Path>) -> Result<Folder> {
        // A link dangles while only `dir.old` is there, and `.old` belongs to the folder behind it.
        let behind = fs::read_link(dir.as_ref()).map(|to| parent_of(dir.as_ref()).join(to));
        let dir = behind.as_deref().unwrap_or(dir.as_ref());
        let old = old_of(dir);
        let mut attempts = 3;
        loop {
            let why = match Folder::open_exactly(dir) {
                Ok(folder) => return Ok(folder),
                Err(why) => why,
            };
            if let Ok(folder) = Folder::open_exactly(&old) {
                return Ok(Folder { fallback: true, ..folder });
            }
            // Between the two looks a save may have finished and removed `dir.old`.
            attempts -= 1;
            if attempts == 0 {
                return Err(why);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn open_exactly(path: &Path) -> Result<Folder> {
        match fs::metadata(path) {
            Err(e) => return Err(Error::io(path, "open the model folder", e)),
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::data(path, "expected a model folder, found a file"));
            }
            Ok(_) => {}
        }
        let list = path.join(CHECKSUMS);
        if !list.exists() {
            return Err(Error::data(
                path,
                format!("not a model folder, or a damaged one: it has no {CHECKSUMS}"),
            ));
        }
        let manifest = read_manifest(&list)?;
        for line in &manifest.lines {
            let file = path.join(&line.name);
            let meta = fs::metadata(&file).map_err(|e| Error::io(&file, "find a file of the model", e))?;
            if !meta.is_file() || meta.len() != line.len {
                return Err(damaged(
                    &file,
                    format!("expected a file of {} bytes, found {}", line.len, meta.len()),
                ));
            }
        }
        Ok(Folder { path: path.to_owned(), fallback: false, manifest })
    }

    /// The folder read from: the one asked for, or its `.old`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is `dir.old`, because `dir` was not whole.
    pub fn is_fallback(&self) -> bool {
        self.fallback
    }

    /// The listed files, sorted, with `/` between a folder and its files.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.manifest.lines.iter().map(|line| line.name.as_str())
    }

    /// Whether a file is listed.
    pub fn contains(&self, name: &str) -> bool {
        self.manifest.get(name).is_some()
    }

    /// Reads a listed file and checks it. Fails (kind `Data`) when it is not listed, or not as it was saved.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let Some(line) = self.manifest.get(name) else {
            return Err(Error::data(&self.path, format!("the model folder has no file {name:?}")));
        };
        self.read_line(line).map_err(|why| {
            // A save may have swapped the folder under us: then nothing is damaged.
            let now = read_manifest(&self.path.join(CHECKSUMS));
            if now.is_ok_and(|now| now != self.manifest) {
                Error::data(self.path.join(name), "the model was saved anew while it was read")
                    .with_help("try again")
            } else {
                why
            }
        })
    }

    fn read_line(&self, line: &Line) -> Result<Vec<u8>> {
        let path = self.path.join(&line.name);
        let (mut file, len) = open_regular(&path)?;
        if len != line.len {
            return Err(damaged(&path, format!("expected {} bytes, found {len}", line.len)));
        }
        let bytes = read_vec(&path, &mut file, len as usize, "file")?;
        let found = crc32fast::hash(&bytes);
        if found != line.sum {
            return Err(damaged(&path, format!("expected the checksum {:08x}, found {found:08x}", line.sum)));
        }
        Ok(bytes)
    }

    /// Reads a listed safetensors file: its checksum first, then all that [`super::safetensors::read`] checks.
    pub fn safetensors(&self, name: &str) -> Result<SafeTensors> {
        SafeTensors::from_bytes(self.path.join(name), self.read(name)?)
    }

    /// Reads and checks every listed file. Fails (kind `Data`) naming the first that is not as it was saved.
    pub fn verify(&self) -> Result<()> {
        self.names().try_for_each(|name| self.read(name).map(drop))
    }
}

/// The folder to read for `dir`: itself if it is whole, else a whole `dir.old`. Fails as [`Folder::open`] does.
pub fn resolve(dir: impl AsRef<Path>) -> Result<PathBuf> {
    Folder::open(dir).map(|folder| folder.path)
}

fn read_manifest(list: &Path) -> Result<Manifest> {
    let (mut file, len) = open_regular(list)?;
    if len > checksums::MAX_BYTES {
        return Err(damaged(list, format!("expected at most {} bytes, found {len}", checksums::MAX_BYTES)));
    }
    let bytes = read_vec(list, &mut file, len as usize, "list")?;
    Manifest::parse(&bytes).map_err(|why| damaged(list, why))
}

fn damaged(file: &Path, why: impl Into<String>) -> Error {
    Error::data(file, why.into())
        .with_help("the file was changed or damaged after it was saved; restore the folder")
}

fn old_of(dir: &Path) -> PathBuf {
    // By components, so that `models/a/` gives `models/a.old`.
    let mut name = dir.components().collect::<PathBuf>().into_os_string();
    name.push(".old");
    PathBuf::from(name)
}
