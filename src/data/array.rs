//! Arrays from files (npy, npz) as tables: one row for each index of the first dimension.
#![forbid(unsafe_code)]

use std::path::Path;

use super::table::Table;
use crate::dtype::Element;
use crate::io::HostTensor;
use crate::{Error, Result};

impl Table {
    /// A table of numbers from an array `[rows, ..]`. Rows of more than one dimension keep their shape as
    /// [`Table::with_shape`] does; an array `[N, H, W]` is one of grey pictures, so its rows are `[1, H, W]`.
    ///
    /// # Errors
    /// As [`Table::from_matrix`]; kind `Data`: fewer than two dimensions, no rows, or nothing in them.
    pub fn from_array(source: impl AsRef<Path>, array: &HostTensor<'_>) -> Result<Table> {
        let source = source.as_ref();
        let [rows, rest @ ..] = array.shape() else {
            return Err(Error::data(source, "expected a matrix [rows, columns], found a single number"));
        };
        if rest.is_empty() {
            let message = format!("expected a matrix [rows, columns], found a vector of {rows} values");
            return Err(Error::data(source, message));
        }
        if array.shape().contains(&0) {
            let message = format!("expected rows of one value at least, found the shape {:?}", array.shape());
            return Err(Error::data(source, message));
        }
        let table = Table::from_matrix(source, &values(array)?, *rows, rest.iter().product())?;
        match rest {
            [_] => Ok(table),
            [height, width] => table.with_shape(&[1, *height, *width]),
            shape => table.with_shape(shape),
        }
    }

    /// The same table with one more column, an array `[rows]` or `[rows, 1]`: a target that comes in a file of its own.
    ///
    /// # Errors
    /// As [`Table::with_numbers`]; kind `Data`: an array of another shape.
    pub fn with_array(self, source: impl AsRef<Path>, name: &str, array: &HostTensor<'_>) -> Result<Table> {
        let source = source.as_ref();
        check_targets(source, array)?;
        self.with_numbers(source, name, &values(array)?)
    }
}

/// Refuses what does not have one target a row.
pub(super) fn check_targets(source: &Path, array: &HostTensor<'_>) -> Result<()> {
    if matches!(array.shape(), [_] | [_, 1]) {
        return Ok(());
    }
    let message =
        format!("expected one target a row, [rows] or [rows, 1], found the shape {:?}", array.shape());
    Err(Error::data(source, message))
}

/// Row-major values as f64: every dtype we read fits, but integers beyond 2⁵³, which lose their last bits.
pub(super) fn values(array: &HostTensor<'_>) -> Result<Vec<f64>> {
    crate::dispatch!(array.dtype(), T => Ok(array.to_vec::<T>()?.into_iter().map(Element::to_f64).collect()))
}
