//! IDX, the format of MNIST and its kin, plain or gzipped: a strict reader.
//!
//! A file is `0 0 type rank`, `rank` extents of 32 bits and the elements in C order, all big-endian. All six element types
//! are read: `u8`, `i8` and `i16` (both widened to `i32`), `i32`, `f32` and `f64`. Refused: another start, extents whose
//! product overflows, and a file that is shorter or longer than its extents say. A gzipped file is known by its first
//! bytes, whatever its name; its length is not known beforehand, so no memory is taken for a size that its compressed
//! bytes cannot make.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::npy::Coding;
use super::{HostTensor, byte_len, check_memory, inflated_limit, open_regular, read_vec};
use crate::{DType, Error, Result};

/// The first two bytes of a gzipped file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads an array. Fails (kind `Data`, naming the file) when it cannot be read or held.
pub fn read(path: impl AsRef<Path>) -> Result<HostTensor<'static>> {
    let path = path.as_ref();
    let (file, len) = open_regular(path)?;
    read_from(path, &mut BufReader::with_capacity(1 << 16, file), len)
}

/// Decodes a file that is already in memory; `file` names it in errors. Fails as [`read`] does.
///
/// ```
/// let file = [0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9];
/// let array = warpsmith::io::idx::from_bytes("a.idx", &file)?;
/// assert_eq!((array.shape(), array.bytes()), (&[1, 3][..], &[7, 8, 9][..]));
/// # Ok::<(), warpsmith::Error>(())
/// ```
pub fn from_bytes(file: impl AsRef<Path>, bytes: &[u8]) -> Result<HostTensor<'static>> {
    read_from(file.as_ref(), &mut { bytes }, bytes.len() as u64)
}

fn read_from(file: &Path, from: &mut dyn BufRead, len: u64) -> Result<HostTensor<'static>> {
    let start = from.fill_buf().map_err(|e| Error::io(file, "read", e))?;
    if start.starts_with(&GZIP) {
        return read_array(file, &mut MultiGzDecoder::new(from), inflated_limit(len));
    }
    read_array(file, from, len)
}

/// Reads an array from a stream of at most `limit` bytes.
fn read_array(file: &Path, from: &mut dyn Read, limit: u64) -> Result<HostTensor<'static>> {
    let start = read_vec(file, from, 4, "magic number")?;
    let coding = match start[..] {
        [0, 0, 0x08, _] => "|u1",
        [0, 0, 0x09, _] => "|i1",
        [0, 0, 0x0b, _] => ">i2",
        [0, 0, 0x0c, _] => ">i4",
        [0, 0, 0x0d, _] => ">f4",
        [0, 0, 0x0e, _] => ">f8",
        [0, 0, kind, _] => {
            let message = format!("the element type {kind:#04x} is none of IDX's: 8, 9, 11, 12, 13 or 14");
            return Err(Error::data(file, message));
        }
        _ => {
            let message = format!("not an IDX file: expected 0, 0, a type and a rank, found {start:?}");
            return Err(Error::data(file, message));
        }
    };
    let coding = Coding::of(coding).map_err(Error::internal)?;
    let rank = usize::from(start[3]);
    if rank == 0 {
        return Err(Error::data(file, "expected at least one dimension, found none"));
    }
    let extents = read_vec(file, from, rank * 4, "extents")?;
    let shape: Vec<usize> =
        extents.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let sized = byte_len(coding.dtype, &shape)
        .and_then(|_| byte_len(DType::U8, &shape))
        .and_then(|elements| Some((elements, elements.checked_mul(coding.width)?)));
    let Some((elements, bytes)) = sized else {
        return Err(Error::data(file, format!("the size of an array {shape:?} overflows")));
    };
    let most = limit.saturating_sub(4 + extents.len() as u64);
    if bytes as u64 > most {
        let message = format!(
            "truncated: an array {shape:?} needs {bytes} bytes, which the file cannot hold: it has {most} at most"
        );
        return Err(Error::data(file, message));
    }
    let widened = if coding.dtype.size() == coding.width { 0 } else { elements * coding.dtype.size() };
    check_memory(file, bytes.saturating_add(widened), "elements")?;
    let data = read_vec(file, from, bytes, "elements")?;
    // Also where a gzipped file's checksum is read, and found to be wrong.
    if from.read(&mut [0]).map_err(|e| Error::io(file, "read", e))? > 0 {
        let message = format!("trailing bytes: an array {shape:?} ends after {bytes} bytes, and more follow");
        return Err(Error::data(file, message));
    }
    let data = coding.decode(data, elements).map_err(|why| Error::data(file, why))?;
    HostTensor::new(coding.dtype, shape, data)
}
