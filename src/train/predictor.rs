//! A saved model, ready to answer: rows in, classes with probabilities or values out.

#![forbid(unsafe_code)]

use std::path::Path;

use super::checkpoint::{self, ModelFile};
use super::metrics::Metrics;
use super::model::{Answers, Model};
use crate::data::{ImageOptions, Images, Incomplete, Part, Preparation, Store, Table};
use crate::{Device, Result};

/// A model folder opened for prediction.
pub struct Predictor {
    model: Model,
    file: ModelFile,
}

/// The answers to the rows of a table, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// For a classifier.
    Classes {
        /// The classes' names.
        names: Vec<String>,
        /// For each row the number of the most probable class.
        classes: Vec<usize>,
        /// Row-major `[rows, names.len()]`.
        probabilities: Vec<f32>,
    },
    /// For a regression, in the target's own units.
    Values(Vec<f64>),
}

impl Predictor {
    /// Opens a model folder.
    ///
    /// # Errors
    /// Kind `Data`: no model there, a damaged or newer one.
    pub fn open(dir: impl AsRef<Path>, device: Device) -> Result<Predictor> {
        let (folder, file) = checkpoint::open(dir.as_ref())?;
        let model = checkpoint::load_model(&folder, &file, device)?;
        Ok(Predictor { model, file })
    }

    /// What the folder says of the model.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The network.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How rows become numbers; its schema is what [`Table::read_csv_as`] needs.
    pub fn preparation(&self) -> &Preparation {
        &self.file.preparation
    }

    /// Answers to all rows of `table`, and notes for the user on what training never saw.
    ///
    /// # Errors
    /// Kind `Data`: the model is one of pictures; the table lacks a column, or a value that cannot be filled.
    pub fn predict(&self, table: &Table) -> Result<(Predictions, Vec<String>)> {
        let rows: Vec<usize> = (0..table.rows()).collect();
        let features = self.preparation().transform(table, &rows, Incomplete::Refuse)?;
        let notes = features.notes();
        Ok((self.answers(&self.preparation().store(features)?)?, notes))
    }

    /// Answers to all of `images`, in their order.
    ///
    /// # Errors
    /// Kind `Data`: the model is one of tables, or of pictures of another shape.
    pub fn predict_images(&self, images: &Images) -> Result<Predictions> {
        self.answers(&self.preparation().store_of_images(images, (0..images.len()).collect())?)
    }

    fn answers(&self, inputs: &Store) -> Result<Predictions> {
        let (answers, _) = self.model.evaluate(inputs, None)?;
        Ok(match &answers {
            Answers::Classes { probabilities, .. } => Predictions::Classes {
                names: self.preparation().target().classes().to_vec(),
                classes: answers.classes().into_iter().map(|c| c as usize).collect(),
                probabilities: probabilities.clone(),
            },
            Answers::Values(values) => {
                Predictions::Values(values.iter().map(|&v| self.preparation().target().invert(v)).collect())
            }
        })
    }

    /// Loss and figures on all rows of `table` that have a target, the number of those rows, and notes for the user on what
    /// training never saw.
    ///
    /// # Errors
    /// Kind `Data`: as [`Predictor::predict`]; no target column; a class that training never saw; no rows.
    pub fn evaluate(&self, table: &Table) -> Result<(f64, Metrics, usize, Vec<String>)> {
        let rows: Vec<usize> = (0..table.rows()).collect();
        let (part, notes) = Part::prepare(self.preparation(), table, &rows)?;
        let (loss, metrics) = self.figures(&part)?;
        Ok((loss, metrics, part.rows(), notes))
    }

    /// Loss and figures on all of `images`.
    ///
    /// # Errors
    /// Kind `Data`: as [`Predictor::predict_images`]; no labels; a class that training never saw.
    pub fn evaluate_images(&self, images: &Images) -> Result<(f64, Metrics)> {
        self.figures(&Part::of_images(self.preparation(), images, (0..images.len()).collect())?)
    }

    fn figures(&self, part: &Part) -> Result<(f64, Metrics)> {
        let (answers, loss) = self.model.evaluate(&part.inputs, Some(&part.targets))?;
        Ok((loss, self.model.metrics(&answers, &part.targets, self.preparation().target())))
    }

    /// How picture files must be read for this model: of a model of pictures that were resized or converted, these are too.
    pub fn image_options(&self) -> ImageOptions {
        let pixels = self.preparation().pixels();
        ImageOptions {
            size: pixels.filter(|pixels| pixels.resize).map(|pixels| [pixels.height, pixels.width]),
            channels: pixels.filter(|pixels| pixels.convert).map(|pixels| pixels.channels),
            limit: None,
        }
    }
}
