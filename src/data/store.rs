//! [`Store`]: the inputs of a part as they lie in memory, behind one way to read rows.
//!
//! A table's inputs are prepared once and kept as f32. Pictures stay bytes, shared by all parts of a data set, and are
//! scaled when a row is read: a quarter of the memory, and no copy for a split.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::images::Images;
use super::pixels::PixelScaling;
use super::prepare::{Features, Input, Preparation};
use crate::{Error, Result};

/// The inputs of some rows. All have one shape.
///
/// ```
/// use warpsmith::data::Store;
/// let store = Store::values(vec![1.0, 2.0, 3.0, 4.0], 2, &[2])?;
/// let mut rows = Vec::new();
/// store.gather(&[1, 0], &mut rows);
/// assert_eq!(rows, [3.0, 4.0, 1.0, 2.0]);
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    shape: Vec<usize>,
    width: usize,
    rows: usize,
    kept: Kept,
}

#[derive(Clone, Debug, PartialEq)]
enum Kept {
    Values {
        values: Vec<f32>,
        /// For each value of a row the shift and the divisor of its scaling, where the values are pixels.
        scaling: Option<Vec<[f32; 2]>>,
    },
    Pixels {
        /// All pictures of the data set, `[.., C, H, W]`.
        pixels: Arc<Vec<u8>>,
        /// The picture of each row.
        places: Vec<usize>,
        /// For each channel the factor and what is added.
        factors: Vec<[f32; 2]>,
    },
}

impl Store {
    /// Prepared values, row-major `[rows, ..shape]`.
    ///
    /// # Errors
    /// Kind `Shape`: another number of values.
    pub fn values(values: Vec<f32>, rows: usize, shape: &[usize]) -> Result<Store> {
        let width = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        match width {
            Some(width) if width.checked_mul(rows) == Some(values.len()) => {
                let kept = Kept::Values { values, scaling: None };
                Ok(Store { shape: shape.to_vec(), width, rows, kept })
            }
            _ => {
                let message = format!("{} values for {rows} rows of shape {shape:?}", values.len());
                Err(Error::shape("store", message))
            }
        }
    }

    /// The same, of values that are pixels: value `i` of a row is `(pixel - shift) / divisor` of `scaling[i]`.
    pub(super) fn with_scaling(mut self, scaling: Vec<[f32; 2]>) -> Store {
        if let Kept::Values { scaling: kept, .. } = &mut self.kept {
            *kept = Some(scaling);
        }
        self
    }

    /// The pictures `places` of `pixels`, `[.., C, H, W]`, to be scaled as `scaling` says.
    ///
    /// # Errors
    /// Kind `Shape`: a picture is not there.
    pub fn pixels(pixels: Arc<Vec<u8>>, places: Vec<usize>, scaling: &PixelScaling) -> Result<Store> {
        let shape = scaling.shape();
        let width = shape.iter().product::<usize>();
        let count = pixels.len() / width.max(1);
        if let Some(place) = places.iter().find(|&&place| place >= count) {
            let message = format!("there is no picture {place} in {count} of shape {shape:?}");
            return Err(Error::shape("store", message));
        }
        let rows = places.len();
        let kept = Kept::Pixels { pixels, places, factors: scaling.factors() };
        Ok(Store { shape: shape.to_vec(), width, rows, kept })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The shape of a row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Makes `into` the rows `rows`, one after the other.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn gather(&self, rows: &[usize], into: &mut Vec<f32>) {
        into.clear();
        match &self.kept {
            Kept::Values { values, .. } => {
                for &row in rows {
                    into.extend_from_slice(&values[row * self.width..(row + 1) * self.width]);
                }
            }
            Kept::Pixels { .. } => {
                into.resize(rows.len() * self.width, 0.0);
                for (&row, into) in rows.iter().zip(into.chunks_exact_mut(self.width.max(1))) {
                    self.read(row, into);
                }
            }
        }
    }

    /// The rows `rows`, in `buffer` where they are not in memory as they are wanted.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn slice<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.kept {
            Kept::Values { values, .. } => &values[rows.start * self.width..rows.end * self.width],
            Kept::Pixels { .. } => {
                self.gather(&rows.collect::<Vec<_>>(), buffer);
                buffer
            }
        }
    }

    /// Reads the row `row`, prepared.
    pub(super) fn read(&self, row: usize, into: &mut [f32]) {
        match &self.kept {
            Kept::Values { values, .. } => {
                into.copy_from_slice(&values[row * self.width..(row + 1) * self.width]);
            }
            Kept::Pixels { pixels, places, factors } => {
                let picture = &pixels[places[row] * self.width..(places[row] + 1) * self.width];
                let plane = self.width / factors.len();
                let planes = picture.chunks_exact(plane).zip(into.chunks_exact_mut(plane));
                for ((from, into), &[factor, offset]) in planes.zip(factors) {
                    for (into, &byte) in into.iter_mut().zip(from) {
                        *into = f32::from(byte) * factor + offset;
                    }
                }
            }
        }
    }

    /// Whether the rows are pictures `[C, H, W]` whose pixels can be moved about.
    pub fn is_pictures(&self) -> bool {
        self.shape.len() == 3 && !matches!(&self.kept, Kept::Values { scaling: None, .. })
    }

    /// Reads the row `row` as pixels, before they are scaled. Where [`Store::is_pictures`].
    pub(super) fn read_pixels(&self, row: usize, into: &mut [f32]) {
        match &self.kept {
            Kept::Values { scaling, .. } => {
                self.read(row, into);
                for (value, [shift, divisor]) in into.iter_mut().zip(scaling.iter().flatten()) {
                    *value = *value * divisor + shift;
                }
            }
            Kept::Pixels { pixels, places, .. } => {
                let picture = &pixels[places[row] * self.width..(places[row] + 1) * self.width];
                into.iter_mut().zip(picture).for_each(|(into, &byte)| *into = f32::from(byte));
            }
        }
    }

    /// Scales pixels as [`Store::read`] does.
    pub(super) fn scale_pixels(&self, row: &mut [f32]) {
        match &self.kept {
            Kept::Values { scaling, .. } => {
                for (value, [shift, divisor]) in row.iter_mut().zip(scaling.iter().flatten()) {
                    *value = if *divisor == 0.0 { 0.0 } else { (*value - shift) / divisor };
                }
            }
            Kept::Pixels { factors, .. } => {
                let plane = self.width / factors.len();
                for (plane, &[factor, offset]) in row.chunks_exact_mut(plane).zip(factors) {
                    plane.iter_mut().for_each(|value| *value = *value * factor + offset);
                }
            }
        }
    }

    /// Hands all that the rows are made of to `each`, piece after piece: for a checksum.
    pub(crate) fn visit_bytes(&self, mut each: impl FnMut(&[u8])) {
        match &self.kept {
            Kept::Values { values, .. } => each(bytemuck::cast_slice(values)),
            Kept::Pixels { pixels, places, factors } => {
                each(bytemuck::cast_slice(factors));
                for &place in places {
                    each(&pixels[place * self.width..(place + 1) * self.width]);
                }
            }
        }
    }
}

impl Preparation {
    /// Prepared inputs as a part keeps them.
    ///
    /// # Errors
    /// Kind `Shape`: they are not this preparation's.
    pub fn store(&self, features: Features) -> Result<Store> {
        let shape = self.shape();
        let store = Store::values(features.values, features.rows.len(), &shape)?;
        // Columns that make a picture are pixels.
        let pixel = |input: &Input| match input {
            Input::Number { shift, divisor, .. } => Some([*shift as f32, *divisor as f32]),
            Input::Category { .. } => None,
        };
        match self.inputs().iter().map(pixel).collect::<Option<Vec<_>>>() {
            Some(scaling) if shape.len() == 3 => Ok(store.with_scaling(scaling)),
            _ => Ok(store),
        }
    }

    /// The pictures `rows` of `images` as a part keeps them: their bytes are shared, not copied.
    ///
    /// # Errors
    /// Kind `Data`: the model is one of tables, or of pictures of another shape; kind `Shape`: there is no such picture.
    pub fn store_of_images(&self, images: &Images, rows: Vec<usize>) -> Result<Store> {
        let Some(pixels) = self.pixels() else {
            let message = format!(
                "the model was trained on a table of {} columns, found pictures",
                self.inputs().len()
            );
            return Err(Error::data(images.source(), message));
        };
        images.check_shape(pixels.shape())?;
        Store::pixels(Arc::clone(images.pixels()), rows, pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::data::Scale;

    #[test]
    fn pictures_are_scaled_when_they_are_read() {
        let pixels = Arc::new(vec![0, 2, 10, 10, 4, 6, 10, 10]);
        let scaling = PixelScaling::fit(Scale::Standard, &pixels, [2, 1, 2], &[0, 1]);
        let store = Store::pixels(Arc::clone(&pixels), vec![1, 0], &scaling).unwrap();
        assert_eq!((store.rows(), store.shape(), store.width()), (2, &[2, 1, 2][..], 4));
        let deviation = 5f32.sqrt();
        let mut rows = Vec::new();
        store.gather(&[0, 1, 0], &mut rows);
        for (value, want) in rows.iter().zip([1.0, 3.0, 0.0, 0.0, -3.0, -1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0]) {
            approx::assert_abs_diff_eq!(*value, want / deviation, epsilon = 1e-6);
        }
        let mut buffer = Vec::new();
        assert_eq!(store.slice(1..2, &mut buffer), &rows[4..8]);
        // By way of the raw pixels it is the same.
        let mut row = vec![0.0; 4];
        store.read_pixels(1, &mut row);
        assert_eq!(row, [0.0, 2.0, 10.0, 10.0]);
        store.scale_pixels(&mut row);
        assert_eq!(row, rows[4..8]);
        assert_eq!(Store::pixels(pixels, vec![2], &scaling).unwrap_err().kind(), ErrorKind::Shape);
    }

    #[test]
    fn values_are_as_many_as_the_shape_says() {
        assert!(Store::values(vec![], 3, &[0]).is_ok());
        for (values, rows, shape) in
            [(3, 2, vec![2]), (1, 1, vec![]), (0, 1, vec![]), (4, 2, vec![usize::MAX, 2])]
        {
            let made = Store::values(vec![0.0; values], rows, &shape);
            assert_eq!(made.is_ok(), shape.is_empty() && values == 1, "{values} {rows} {shape:?}");
        }
    }
}
