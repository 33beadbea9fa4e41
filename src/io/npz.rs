//! NumPy's .npz, a zip of .npy arrays, as `np.savez` and `np.savez_compressed` write it: a strict reader.
//!
//! An array is inflated straight into its own memory, which grows with what has come, and only as far as its npy header
//! says. Refused before anything is inflated behind that header: a size that is not the one the archive's directory gives,
//! one that the compressed bytes cannot make (1032 bytes of each is what deflate can do), and one that this machine has no
//! memory for; a zip bomb is one of the three. Refused as well: two arrays of one name, entries that share
//! bytes, encryption, methods other than stored and deflated, a wrong CRC, and all that [`super::npy`] refuses, object
//! arrays first. Entries whose names do not end in `.npy` are left out.
#![forbid(unsafe_code)]

use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{HostTensor, inflated_limit, npy, open_regular};
use crate::{DType, Error, Result};

trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// An archive whose arrays are read by name.
pub struct Npz<'a> {
    path: PathBuf,
    archive: ZipArchive<Box<dyn Source + 'a>>,
    /// Bytes of the file.
    len: u64,
    names: Vec<String>,
}

impl<'a> Npz<'a> {
    /// Opens an archive; reads its directory and no array.
    ///
    /// # Errors
    /// Kind `Data`, naming the file: it cannot be read, is no zip or a damaged one, or has two arrays of one name.
    pub fn open(path: impl AsRef<Path>) -> Result<Npz<'static>> {
        let path = path.as_ref();
        let (file, len) = open_regular(path)?;
        Npz::new(path, Box::new(BufReader::new(file)), len)
    }

    /// An archive that is already in memory; `file` names it in errors. Fails as [`Npz::open`] does.
    pub fn from_bytes(file: impl AsRef<Path>, bytes: &'a [u8]) -> Result<Npz<'a>> {
        Npz::new(file.as_ref(), Box::new(Cursor::new(bytes)), bytes.len() as u64)
    }

    fn new<'b>(path: &Path, source: Box<dyn Source + 'b>, len: u64) -> Result<Npz<'b>> {
        let mut archive = ZipArchive::new(source).map_err(|e| bad(path, "not a whole npz", e))?;
        if archive.has_duplicate_names() {
            return Err(Error::data(path, "two arrays have the same name"));
        }
        if archive.has_overlapping_files().map_err(|e| bad(path, "damaged", e))? {
            return Err(Error::data(
                path,
                "two arrays share bytes of the file: it is damaged, or a zip bomb",
            ));
        }
        let mut names = Vec::new();
        for name in archive.file_names() {
            let name = name.map_err(|e| bad(path, "a name cannot be read", e))?;
            names.extend(name.strip_suffix(".npy").map(str::to_owned));
        }
        Ok(Npz { path: path.to_owned(), archive, len, names })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the arrays, without `.npy`, in the file's order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The place of an array in errors: `file.npz/name.npy`.
    pub fn place(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.npy"))
    }

    /// The element type and the shape of the array called `name`, by its header alone: nothing else is inflated, so what
    /// is behind the header may still be refused when it is read.
    ///
    /// # Errors
    /// Kind `Data`, naming file and array: there is no such array; its header is bad, or promises another size than the
    /// archive does.
    pub fn header(&mut self, name: &str) -> Result<(DType, Vec<usize>)> {
        self.entry(name, |place, entry, size| Ok(npy::read_head(place, entry, size)?.into_parts()))
    }

    /// Reads the array called `name`.
    ///
    /// # Errors
    /// Kind `Data`, naming file and array: there is no such array, or one of the reasons above. Kind `OutOfMemory`: no
    /// memory for the array.
    pub fn read(&mut self, name: &str) -> Result<HostTensor<'static>> {
        self.entry(name, |place, entry, size| {
            let array = npy::read_from(place, entry, size)?;
            // Nothing must follow; it is also where the CRC is compared.
            match entry.read(&mut [0]) {
                Ok(0) => Ok(array),
                Ok(_) => {
                    Err(Error::data(place, format!("inflates to more than the {size} bytes it promises")))
                }
                Err(cause) => Err(Error::io(place, "read", cause)),
            }
        })
    }

    /// What `take` makes of an array's place, its bytes and their number.
    fn entry<T>(
        &mut self,
        name: &str,
        take: impl FnOnce(&Path, &mut dyn Read, u64) -> Result<T>,
    ) -> Result<T> {
        let place = self.place(name);
        let mut entry = match self.archive.by_name(&format!("{name}.npy")) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => {
                let message = format!("there is no array '{name}'");
                return Err(Error::data(&self.path, message)
                    .with_help(format!("the arrays are: {}", self.names.join(", "))));
            }
            Err(error) => return Err(bad(&place, "cannot be read", error)),
        };
        let size = entry.size();
        let stored = entry.compressed_size().min(self.len);
        let most = match entry.compression() {
            CompressionMethod::Stored => stored,
            CompressionMethod::Deflated => inflated_limit(stored),
            method => return Err(Error::data(&place, format!("compressed by {method}; expected deflate"))),
        };
        if size > most {
            let message = format!("promises {size} bytes, more than its {stored} in the file can make");
            return Err(Error::data(&place, message).with_help("the file is damaged, or a zip bomb"));
        }
        take(&place, &mut entry, size)
    }
}

fn bad(place: &Path, what: &str, error: ZipError) -> Error {
    match error {
        ZipError::Io(cause) => Error::io(place, "read", cause),
        error => Error::data(place, format!("{what}: {error}")),
    }
}
