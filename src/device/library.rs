//! Shared libraries that are opened at run time (the CUDA driver, NVML, NCCL): none of them is needed to build or to
//! start. What is opened stays open until the process ends, so that its functions can be kept.

use std::ffi::CStr;

/// A shared library and where it was found.
pub(super) struct Library {
    inner: libloading::Library,
    path: String,
}

impl Library {
    /// The first of `names` that can be opened.
    pub(super) fn open<S: AsRef<str>>(names: &[S]) -> Option<Library> {
        names.iter().find_map(|name| {
            // SAFETY: opening runs the library's initialisers: NVIDIA's, which are made to be opened like this.
            let inner = unsafe { libloading::Library::new(name.as_ref()) }.ok()?;
            Some(Library { inner, path: mapped(name.as_ref()).unwrap_or_else(|| name.as_ref().to_owned()) })
        })
    }

    /// The function called `name`, if the library has it.
    ///
    /// # Safety
    /// `F` is the type of a pointer to that function.
    pub(super) unsafe fn get<F: Copy>(&self, name: &CStr) -> Option<F> {
        // SAFETY: the caller's promise about `F`.
        unsafe { self.inner.get::<F>(name) }.ok().map(|symbol| *symbol)
    }

    /// Whether the library has a function called `name`.
    pub(super) fn has(&self, name: &CStr) -> bool {
        // SAFETY: the pointer is not called.
        unsafe { self.get::<*const ()>(name) }.is_some()
    }

    /// Its file, or the name it was opened by where the file cannot be told.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

/// The file that this process has mapped under a name such as `libcuda.so.1`. Versions differ: the file may be
/// `libcuda.so.580.82.07`.
fn mapped(name: &str) -> Option<String> {
    let stem = name.split(".so").next()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        let file = path.rsplit('/').next()?;
        file.strip_prefix(stem)?.starts_with(".so").then(|| path.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_with_its_path_and_its_functions() {
        assert!(Library::open(&["libwarpsmith-is-not-there.so.7"]).is_none());
        let Some(c) = Library::open(&["libwarpsmith-is-not-there.so.7", "libc.so.6"]) else {
            println!("skipped: no libc.so.6 here");
            return;
        };
        assert!(c.path().starts_with('/') && c.path().contains("libc.so"), "{}", c.path());
        assert!(c.has(c"abs") && !c.has(c"warpsmith_is_not_there"));
        // SAFETY: abs(3) takes and returns an int.
        let abs = unsafe { c.get::<extern "C" fn(i32) -> i32>(c"abs") }.unwrap();
        assert_eq!(abs(-7), 7);
    }
}
