//! The UCI handwritten digits, compiled in: 1,797 images of 8 by 8 pixels (0 to 16) and the digit each shows.
//!
//! The file holds the source's raw pixels; all scaling is preparation, saved with the model, so raw rows predict the same.
//! Attribution and licence: `data/README.md`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::table::{Column, Lines, Table};
use crate::{Error, Result};

const FILE: &[u8] = include_bytes!("../../data/digits.csv.gz");
const SIDE: usize = 8;

/// The name of the digits' target column.
pub const DIGITS_TARGET: &str = "digit";

/// The built-in digits: columns `pixel_0_0` to `pixel_7_7` (row, column), which make a picture `[1, 8, 8]`, and
/// [`DIGITS_TARGET`].
///
/// # Errors
/// Kind `Internal`: the compiled-in file is damaged.
pub fn digits() -> Result<Table> {
    let damaged = || Error::internal("the compiled-in digits are damaged");
    let mut text = Vec::with_capacity(300_000);
    GzDecoder::new(FILE).read_to_end(&mut text).map_err(|cause| damaged().caused_by(cause))?;

    let mut columns: Vec<Vec<f64>> = (0..=SIDE * SIDE).map(|_| Vec::with_capacity(1797)).collect();
    // Not the CSV reader: small whole numbers and nothing else, in a fraction of its time (every start pays it).
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let mut cells = line.split(|&byte| byte == b',');
        for column in &mut columns {
            let cell = cells.next().filter(|cell| !cell.is_empty()).ok_or_else(damaged)?;
            let value = cell.iter().try_fold(0u32, |sum, digit| {
                digit
                    .is_ascii_digit()
                    .then(|| sum * 10 + u32::from(digit - b'0'))
                    .filter(|&value| value <= 16)
            });
            column.push(f64::from(value.ok_or_else(damaged)?));
        }
    }
    let names: Vec<String> =
        (0..SIDE * SIDE).map(|pixel| format!("pixel_{}_{}", pixel / SIDE, pixel % SIDE)).collect();
    let labels = columns.pop().ok_or_else(damaged)?;
    let pixels = columns.into_iter().map(Column::Number).collect();
    let table = Table::new(Path::new("digits"), names, pixels, Lines::None)?.with_shape(&[1, SIDE, SIDE])?;
    table.with_numbers("digits", DIGITS_TARGET, &labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_whole() {
        let table = digits().unwrap();
        assert_eq!((table.rows(), table.names().len()), (1797, 65));
        let Column::Number(labels) = table.column(64) else { panic!("the target is text") };
        // Class sizes as the source documents them.
        let counts: Vec<usize> =
            (0..10).map(|d| labels.iter().filter(|&&l| l == f64::from(d)).count()).collect();
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_eq!(labels[..10], [0., 1., 2., 3., 4., 5., 6., 7., 8., 9.]);
        // The mean of all pixels, from the source file by another program.
        let sum: f64 =
            (0..64).map(|i| if let Column::Number(v) = table.column(i) { v.iter().sum() } else { 0.0 }).sum();
        assert_eq!(sum, 561_718.0);
        // The first image's second row.
        let second: Vec<f64> =
            (8..16).map(|i| if let Column::Number(v) = table.column(i) { v[0] } else { -1.0 }).collect();
        assert_eq!(second, [0., 0., 13., 15., 10., 15., 5., 0.]);
        assert_eq!(table.names()[8], "pixel_1_0");
    }
}
