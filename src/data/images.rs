//! [`Images`]: pictures of one size in memory, a byte a pixel and channel, with their labels.
//!
//! They come from IDX files, from arrays (npy, npz) and from folders of PNG and JPEG files, and go into a data set by
//! [`super::Dataset::from_images`]. Labels are a table of one column, so tasks, classes and targets are those of tables.
#![forbid(unsafe_code)]

mod files;
mod pictures;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::array::{check_targets, values};
use super::pixels::{PixelScaling, check_shape, described};
use super::table::{Column, Lines, Table};
use crate::dtype::DType;
use crate::io::HostTensor;
use crate::{Error, Result};

pub use files::{ArraySet, FASHION_MNIST, is_idx_folder};
pub use pictures::{ImageOptions, is_picture};

/// The name of the labels' only column: the target of a model of pictures.
pub const LABEL: &str = "label";

/// Pictures of one size, `[N, C, H, W]`, with or without labels.
///
/// ```
/// use warpsmith::data::Images;
/// let pixels = (0..24).collect();
/// let images = Images::new("made.png", pixels, [3, 2, 2])?.with_labels("made", &[0.0, 1.0])?;
/// assert_eq!((images.len(), images.shape()), (2, [3, 2, 2]));
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    source: PathBuf,
    shape: [usize; 3],
    pixels: Arc<Vec<u8>>,
    labels: Option<Table>,
    names: Vec<String>,
    /// Whether they were made to be of one size, and of one number of channels.
    resize: bool,
    convert: bool,
}

/// Pictures to train on, and those that the source sets aside for the test.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSet {
    /// To train on and validate by.
    pub train: Images,
    /// The test part, where the source has one.
    pub test: Option<Images>,
}

impl Images {
    /// Pictures from their bytes, `[N, C, H, W]` in C order. `source` is the name that errors give.
    ///
    /// # Errors
    /// Kind `Data`: no pictures, or pictures without pixels; kind `Shape`: the bytes do not make whole pictures.
    pub fn new(source: impl AsRef<Path>, pixels: Vec<u8>, shape: [usize; 3]) -> Result<Images> {
        let source = source.as_ref();
        check_shape(shape).map_err(|why| Error::data(source, why))?;
        if pixels.is_empty() {
            return Err(Error::data(source, "there are no pictures"));
        }
        let size: usize = shape.iter().product();
        if !pixels.len().is_multiple_of(size) {
            let message = format!("{} bytes do not make whole {}", pixels.len(), described(shape));
            return Err(Error::shape("images", message));
        }
        let (source, pixels) = (source.to_owned(), Arc::new(pixels));
        Ok(Images { source, shape, pixels, labels: None, names: Vec::new(), resize: false, convert: false })
    }

    /// Pictures from an array of whole numbers from 0 to 255: `[N, H, W]`, `[N, C, H, W]`, or `[N, H, W, C]` where only
    /// the last extent can be a number of channels (1, 3 or 4).
    ///
    /// # Errors
    /// Kind `Data`: another shape, other numbers, or no pictures.
    pub fn from_array(source: impl AsRef<Path>, array: HostTensor<'_>) -> Result<Images> {
        let source = source.as_ref();
        let channels = |n: usize| matches!(n, 1 | 3 | 4);
        let (shape, channels_last) = match *array.shape() {
            [_, height, width] => ([1, height, width], false),
            [_, c, height, width] if channels(c) || !channels(width) => ([c, height, width], false),
            [_, height, width, c] => ([c, height, width], true),
            _ => {
                let message = format!(
                    "expected pictures [N, H, W] or [N, C, H, W], found an array of the shape {:?}",
                    array.shape()
                );
                return Err(Error::data(source, message));
            }
        };
        let mut pixels = bytes(source, array)?;
        // Without pictures there is nothing to turn, however large one would be.
        if channels_last && !pixels.is_empty() {
            let plane = shape[1] * shape[2];
            let mut planes = vec![0; plane * shape[0]];
            for picture in pixels.chunks_exact_mut(planes.len().max(1)) {
                for (at, pixel) in picture.chunks_exact(shape[0]).enumerate() {
                    pixel.iter().enumerate().for_each(|(c, &byte)| planes[c * plane + at] = byte);
                }
                picture.copy_from_slice(&planes);
            }
        }
        Images::new(source, pixels, shape)
    }

    /// The same pictures with a number each as a label. `source` is the name that errors about these give.
    ///
    /// # Errors
    /// Kind `Data`: as many labels as pictures are needed, all finite.
    pub fn with_labels(self, source: impl AsRef<Path>, labels: &[f64]) -> Result<Images> {
        let source = source.as_ref();
        if labels.len() != self.len() {
            let message = format!(
                "expected {} labels, one a picture of {}; found {}",
                self.len(),
                self.source.display(),
                labels.len()
            );
            return Err(Error::data(source, message));
        }
        let table = Table::from_matrix(source, labels, labels.len(), 1)?;
        Ok(self.labelled(table.select(&[0], vec![LABEL.to_owned()])?))
    }

    /// The same pictures with labels from an array `[N]` or `[N, 1]`.
    ///
    /// # Errors
    /// As [`Images::with_labels`]; kind `Data`: an array of another shape.
    pub fn with_label_array(self, source: impl AsRef<Path>, labels: &HostTensor<'_>) -> Result<Images> {
        check_targets(source.as_ref(), labels)?;
        self.with_labels(source, &values(labels)?)
    }

    fn labelled(self, labels: Table) -> Images {
        Images { labels: Some(labels), ..self }
    }

    /// The same pictures, each of the class whose name it is given.
    fn with_classes(self, classes: &[&str]) -> Result<Images> {
        let numbers: Option<Vec<f64>> = classes
            .iter()
            .map(|name| name.parse::<i32>().ok().filter(|number| number.to_string() == *name).map(f64::from))
            .collect();
        let column = match numbers {
            Some(numbers) => Column::Number(numbers),
            None => Column::Text(classes.iter().map(|name| Some(*name)).collect()),
        };
        let labels = Table::new(&self.source, vec![LABEL.to_owned()], vec![column], Lines::None)?;
        Ok(self.labelled(labels))
    }

    /// The first `limit` pictures; all where there are fewer, and one at least.
    pub fn truncated(mut self, limit: usize) -> Images {
        let limit = limit.max(1);
        if limit >= self.len() {
            return self;
        }
        let bytes = limit * self.size();
        match Arc::get_mut(&mut self.pixels) {
            Some(pixels) => {
                pixels.truncate(bytes);
                pixels.shrink_to_fit();
            }
            None => self.pixels = Arc::new(self.pixels[..bytes].to_vec()),
        }
        self.names.truncate(limit);
        self.labels = self.labels.map(|labels| labels.truncated(limit));
        self
    }

    /// The file or folder that they are from.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// `[C, H, W]`: channels and the rows and columns of pixels.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The bytes of one picture.
    fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of pictures, at least 1.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.size()
    }

    /// Whether there are no pictures, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The bytes, `[N, C, H, W]`.
    pub fn pixels(&self) -> &Arc<Vec<u8>> {
        &self.pixels
    }

    /// A table of one column, [`LABEL`], and a row a picture.
    pub fn labels(&self) -> Option<&Table> {
        self.labels.as_ref()
    }

    /// The labels, without which nothing can be learnt or measured.
    pub(super) fn needed_labels(&self) -> Result<&Table> {
        self.labels.as_ref().ok_or_else(|| Error::data(&self.source, "the pictures have no labels"))
    }

    /// The pictures' file names where each has a file of its own, else none.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Fits a scaling to the pictures `rows`.
    pub(super) fn fit(&self, rule: super::Scale, rows: &[usize]) -> PixelScaling {
        let scaling = PixelScaling::fit(rule, &self.pixels, self.shape, rows);
        PixelScaling { resize: self.resize, convert: self.convert, ..scaling }
    }

    /// An error unless the pictures have the shape of `expected`.
    pub(super) fn check_shape(&self, expected: [usize; 3]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        let message =
            format!("expected {} as in training, found {}", described(expected), described(self.shape));
        Err(Error::data(&self.source, message).with_help(
            "give pictures like those of training, or train with an image size and a number of channels, to which all are \
             then converted",
        ))
    }
}

/// The elements as bytes.
fn bytes(source: &Path, array: HostTensor<'_>) -> Result<Vec<u8>> {
    if array.dtype() == DType::U8 {
        return Ok(array.into_bytes());
    }
    let byte = |(at, value): (usize, f64)| {
        let fits = value.fract() == 0.0 && (0.0..=255.0).contains(&value);
        let message = || format!("element {at} is {value}; a pixel is a whole number from 0 to 255");
        fits.then_some(value as u8).ok_or_else(|| Error::data(source, message()))
    };
    values(&array)?.into_iter().enumerate().map(byte).collect()
}
