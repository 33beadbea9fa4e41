//! npy: any bytes give an array, which is written back to the same array, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::io::npy;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(array) = npy::from_bytes("fuzz.npy", bytes) {
        let mut written = Vec::new();
        npy::write_to(&mut written, &array).unwrap();
        let again = npy::from_bytes("again.npy", &written).unwrap();
        assert!(again.shape() == array.shape() && again.bytes() == array.bytes());
    }
});
