//! npz: any bytes give an archive or an error; each of its arrays is read or refused, and is what its header says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::io::npz::Npz;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut archive) = Npz::from_bytes("fuzz.npz", bytes) {
        let names: Vec<String> = archive.names().map(str::to_owned).collect();
        for name in names {
            let header = archive.header(&name);
            if let Ok(array) = archive.read(&name) {
                assert_eq!(header.unwrap(), (array.dtype(), array.shape().to_vec()));
            }
        }
    }
});
