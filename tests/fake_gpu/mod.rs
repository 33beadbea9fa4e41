//! Compiles the driver libraries without a GPU that lie beside this file, for tests of what calls them: a process that has
//! the folder in LD_LIBRARY_PATH when it starts finds them instead of the real ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The folder with libcuda, libnvidia-ml and libnccl, compiled now with these flags, once a process; `None` (said) where
/// there is no C compiler.
pub fn folder(flags: &[&str]) -> Option<PathBuf> {
    static MADE: Mutex<Option<HashMap<String, Option<PathBuf>>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = made.get_or_insert_default();
    made.entry(flags.concat()).or_insert_with(|| make(flags)).clone()
}

fn make(flags: &[&str]) -> Option<PathBuf> {
    let name = format!("warpsmith-fake-gpu-{}{}", std::process::id(), flags.concat());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_gpu");
    for (source, library) in
        [("cuda.c", "libcuda.so.1"), ("nvml.c", "libnvidia-ml.so.1"), ("nccl.c", "libnccl.so.2")]
    {
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]).args(flags);
        match cc.arg(sources.join(source)).arg("-o").arg(folder.join(library)).status() {
            Err(_) => {
                println!("skipped: no C compiler");
                return None;
            }
            Ok(status) => assert!(status.success(), "{source} does not compile"),
        }
    }
    Some(folder)
}
