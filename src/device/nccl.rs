//! NCCL, opened at run time. Only its presence and version are asked for so far.

use std::ffi::c_int;

use super::library::Library;

/// An NCCL library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nccl {
    /// Its file.
    pub path: String,
    /// Such as (2, 27, 3).
    pub version: (u32, u32, u32),
}

/// Looks for NCCL: `libnccl.so.2`, which the runtime package has, then `libnccl.so`, which comes with the headers.
pub fn find() -> Option<Nccl> {
    let library = Library::open(&["libnccl.so.2", "libnccl.so"])?;
    // SAFETY: ncclResult_t ncclGetVersion(int*).
    let call = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(c"ncclGetVersion") }?;
    let mut version = 0;
    // SAFETY: writes an int.
    (unsafe { call(&mut version) } == 0).then_some(())?;
    let found = Nccl { path: library.path().to_owned(), version: split(u32::try_from(version).ok()?) };
    // Closing it would end threads it may have.
    std::mem::forget(library);
    Some(found)
}

/// A version number in parts: 22703 is 2.27.3, and before 2.9 it was 2804 for 2.8.4.
fn split(version: u32) -> (u32, u32, u32) {
    match version {
        ..10_000 => (version / 1000, version % 1000 / 100, version % 100),
        _ => (version / 10_000, version % 10_000 / 100, version % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split() {
        assert_eq!((split(22_703), split(2_804), split(21_805)), ((2, 27, 3), (2, 8, 4), (2, 18, 5)));
    }
}
