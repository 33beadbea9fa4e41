//! model.toml: any text gives a model's description, which comes back from its own text, or an error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use warpsmith::train::checkpoint::ModelFile;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = ModelFile::parse(Path::new("model.toml"), bytes) {
        let text = toml::to_string(&file).unwrap();
        ModelFile::parse(Path::new("again.toml"), text.as_bytes()).unwrap();
    }
});
