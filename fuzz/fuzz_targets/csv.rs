//! CSV: any bytes give a table or an error; a table can be prepared or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warpsmith::data::{Dataset, DatasetOptions, Table};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = Table::from_csv("fuzz.csv", bytes, Some(200)) {
        let _ = Dataset::build(&table, None, &DatasetOptions::default());
    }
});
