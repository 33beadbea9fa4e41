//! Files mapped into memory, read only: the one place outside of tensors and devices where reading a file needs `unsafe`.
//!
//! What is mapped is paged in as it is read, so a file may be larger than memory. The price: the file must stay as it is while it
//! is mapped. Where another process shortens it, reading past its new end ends this process with SIGBUS, which no `Result` can
//! tell of; one that is overwritten in place gives other bytes. Replace such files by renaming a new one over them
//! ([`write_atomically`](super::write_atomically) does): the map then goes on showing the old one.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::open_regular;
use crate::{Error, Result};

/// The bytes of a regular file, mapped read only. Starts at a page's start, so that any element type is aligned.
pub struct Mapped {
    path: PathBuf,
    map: Option<Mmap>,
}

impl Mapped {
    /// Maps all of a file.
    ///
    /// # Errors
    /// Kind `Data`: not a regular file, cannot be opened, or the system refuses the map.
    pub fn open(path: impl AsRef<Path>) -> Result<Mapped> {
        let path = path.as_ref();
        let (file, len) = open_regular(path)?;
        // An empty map is refused by the system.
        let map = if len == 0 {
            None
        } else {
            // SAFETY: the map is private to this type and handed out as `&[u8]` only. That nobody shortens or rewrites the file
            // while it is mapped is the duty of whoever owns the file: stated in the module's header .
            let map = unsafe { Mmap::map(&file) };
            Some(map.map_err(|e| Error::io(path, "map into memory", e))?)
        };
        Ok(Mapped { path: path.to_owned(), map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({}, {} bytes)", self.path.display(), self.len())
    }
}
