//! Files: safetensors and npy, plain-file replacement, and (feature `train`) npz, IDX, mapped files and whole model folders.
//!
//! Everything here deals in [`HostTensor`]: bytes in host memory with an element type and a shape. Nothing here knows
//! devices or autograd. Readers are strict on purpose: where two readers could disagree about a file, it is an error.
//! All formats are little-endian, and so are the machines this crate runs on.

mod atomic;
#[cfg(feature = "train")]
pub mod folder;
#[cfg(feature = "train")]
pub mod idx;
mod json;
#[cfg(feature = "train")]
pub mod mmap;
pub mod npy;
#[cfg(feature = "train")]
pub mod npz;
pub mod safetensors;

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

#[cfg(feature = "train")]
pub use atomic::create_folder;
pub use atomic::write_atomically;

use crate::dtype::Element;
use crate::{DType, Error, ErrorKind, Result};

#[cfg(target_endian = "big")]
compile_error!("warpsmith's file formats assume a little-endian machine");

/// A tensor in host memory, in C order: what files hold and what the tensor layer makes tensors of.
///
/// The byte length always equals the shape's product times the element size. Bytes are little-endian and need not be
/// aligned; they are borrowed (from a file's buffer, from a tensor) or owned.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> HostTensor<'a> {
    /// A tensor over `bytes`. Fails (kind `Shape`) when their number does not fit `dtype` and `shape`.
    pub fn new(
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<HostTensor<'a>> {
        let (shape, bytes) = (shape.into(), bytes.into());
        match byte_len(dtype, &shape) {
            Some(want) if want == bytes.len() => Ok(HostTensor { dtype, shape, bytes }),
            Some(want) => Err(Error::shape(
                "host_tensor",
                format!("expected {want} bytes for {dtype} {shape:?}, found {}", bytes.len()),
            )),
            None => Err(Error::shape("host_tensor", format!("the size of {dtype} {shape:?} overflows"))),
        }
    }

    /// A tensor that borrows `values`. Fails (kind `Shape`) when their number does not fit `shape`.
    pub fn from_slice<T: Element>(shape: impl Into<Vec<usize>>, values: &'a [T]) -> Result<HostTensor<'a>> {
        HostTensor::new(T::DTYPE, shape, bytemuck::cast_slice(values))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each dimension; empty for a 0-d tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements' bytes: C order, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes as a vector; copies only when they are borrowed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_owned()
    }

    /// The same tensor without the borrow; copies only when the bytes are borrowed.
    pub fn into_owned(self) -> HostTensor<'static> {
        HostTensor { dtype: self.dtype, shape: self.shape, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// The elements, copied. Fails (kind `DType`) when `T` is not the tensor's element type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(Error::dtype(
                "host_tensor",
                format!("expected a tensor of {}, found {}", T::DTYPE, self.dtype),
            ));
        }
        // The bytes may be unaligned, so they are copied as bytes into aligned elements.
        let mut values = vec![T::default(); self.numel()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(&self.bytes);
        Ok(values)
    }
}

/// Bytes of a `dtype` tensor of `shape`; `None` when the size, or any stride of it, overflows `isize`.
///
/// Zeros do not excuse the other extents: `[0, 2⁶³, 2⁶³]` has no elements, but its strides overflow.
fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    let span = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d.max(1)))?;
    isize::try_from(span).ok()?;
    Some(if shape.contains(&0) { 0 } else { span })
}

/// The most bytes that `compressed` bytes of deflate can become: a byte can stand for 1032 (258 for 2 bits), and a file's
/// ends for a few more. What promises more is damaged, or wants to be trusted with memory that it will not fill.
#[cfg(feature = "train")]
fn inflated_limit(compressed: u64) -> u64 {
    compressed.saturating_mul(1032).saturating_add(1024)
}

/// Opens a regular file for reading and tells its length. A folder or a pipe is refused before it can block.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let meta = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if meta.is_dir() {
        return Err(Error::data(path, "expected a file, found a folder"));
    }
    if !meta.is_file() {
        return Err(Error::data(path, "expected a regular file, found a pipe or a device"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open for reading", e))?;
    let len = file.metadata().map_err(|e| Error::io(path, "inspect", e))?.len();
    Ok((file, len))
}

/// Reads exactly `n` bytes of `what`. Memory that cannot be had is an error, and so is a file that ends early.
///
/// Memory is taken in step with what comes, never at once for what was promised.
fn read_vec(file: &Path, from: &mut dyn Read, n: usize, what: &str) -> Result<Vec<u8>> {
    const FIRST: usize = 1 << 20;
    check_memory(file, n, what)?;
    let mut bytes = Vec::new();
    while bytes.len() < n {
        let step = (n - bytes.len()).min(bytes.len().max(FIRST));
        bytes.try_reserve_exact(step).map_err(|e| no_memory(file, n, what, "").caused_by(e))?;
        let read = from.take(step as u64).read_to_end(&mut bytes).map_err(|e| Error::io(file, "read", e))?;
        if read < step {
            return Err(Error::data(
                file,
                format!("truncated: expected {n} bytes of {what}, found {}", bytes.len()),
            ));
        }
    }
    Ok(bytes)
}

/// An error (kind `OutOfMemory`) if `n` bytes for `what` are more than this machine has left. The system itself would promise
/// them, and end the process when they are used.
fn check_memory(file: &Path, n: usize, what: &str) -> Result<()> {
    // Less than that is not worth the question.
    const ASKED: usize = 64 << 20;
    if n < ASKED {
        return Ok(());
    }
    match free_memory() {
        Some(free) if n as u64 > free => {
            let error = no_memory(file, n, what, &format!("; this machine has {free} left"));
            Err(error.with_help("use a smaller array, or a machine with more memory"))
        }
        _ => Ok(()),
    }
}

fn no_memory(file: &Path, n: usize, what: &str, more: &str) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("no memory for the {n} bytes of the {what}{more}")).at(
        file,
        None,
        None::<String>,
    )
}

/// The bytes of memory that a process can still get, where the system says so: what is free or can be freed, swap included,
/// and no more than a container's limit leaves.
pub(crate) fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let free = field("MemAvailable:")? + field("SwapFree:").unwrap_or(0);
    let group = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{file}")).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let Some(limit) = group("max").and_then(number) else { return Some(free) };
    let used = group("current").and_then(number).unwrap_or(0);
    // Of what is used, files that were read and not looked at since go first.
    let cached = group("stat").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("inactive_file "))?;
        line.parse().ok()
    });
    Some(free.min(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tensor_checks_its_length() {
        assert!(HostTensor::new(DType::F32, [2, 3], vec![0; 24]).is_ok());
        assert!(HostTensor::new(DType::F32, [], vec![0; 4]).is_ok());
        assert!(HostTensor::new(DType::F32, [0, 7], vec![]).is_ok());
        for (shape, len) in
            [(vec![2, 3], 23), (vec![], 0), (vec![0], 1), (vec![usize::MAX, 2], 0), (vec![0, 1 << 63], 0)]
        {
            assert_eq!(
                HostTensor::new(DType::F32, shape, vec![0; len]).unwrap_err().kind(),
                ErrorKind::Shape
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_the_machine_has_not_is_refused() {
        let free = free_memory().expect("this system tells") as usize;
        assert!(free > 64 << 20, "{free}");
        let error = check_memory(Path::new("a"), 2 * free, "array").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("left"), "{error}");
        check_memory(Path::new("a"), free / 2, "array").unwrap();
    }

    #[test]
    fn elements_come_back_from_unaligned_bytes() {
        let buffer: Vec<u8> = [&[9], bytemuck::bytes_of(&[1.5f64, -2.0])].concat();
        let tensor = HostTensor::new(DType::F64, [2], &buffer[1..]).unwrap();
        assert_eq!(tensor.to_vec::<f64>().unwrap(), [1.5, -2.0]);
        assert_eq!(tensor.to_vec::<f32>().unwrap_err().kind(), ErrorKind::DType);
    }
}
