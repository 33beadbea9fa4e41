//! safetensors: any bytes give tensors, which are written back to the same, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::io::safetensors::{self, SafeTensors};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = SafeTensors::from_bytes("fuzz.safetensors", bytes) {
        let tensors: Vec<_> = file.names().map(|name| (name, file.get(name).unwrap())).collect();
        let mut written = Vec::new();
        safetensors::write_to(&mut written, &tensors, file.metadata()).unwrap();
        let again = SafeTensors::from_bytes("again.safetensors", written).unwrap();
        for (name, tensor) in &tensors {
            let other = again.get(name).unwrap();
            assert!(other.shape() == tensor.shape() && other.bytes() == tensor.bytes(), "{name}");
        }
    }
});
