//! A network's TOML: any text gives a network or an error; what it makes of an example is known or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::train::Network;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(Ok(network)) = Network::from_toml(text, "fuzz", None, None) {
        for example in [&[7][..], &[1, 28, 28], &[3, 5], &[usize::MAX, 2]] {
            let _ = network.check().and_then(|()| network.output_shape(example));
        }
    }
});
