//! IDX: any bytes give an array or an error; an array of bytes can be pictures or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::data::Images;
use warpsmith::io::idx;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(array) = idx::from_bytes("fuzz.idx", bytes) {
        assert_eq!(array.bytes().len(), array.numel() * array.dtype().size());
        let _ = Images::from_array("fuzz.idx", array);
    }
});
