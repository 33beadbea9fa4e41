//! A saved model, ready to answer: rows in, classes with probabilities or values out.

#![forbid(unsafe_code)]

use std::path::Path;

use super::checkpoint::{self, ModelFile};
use super::metrics::Metrics;
use super::model::{Answers, Model};
use crate::data::{Incomplete, Part, Preparation, Table};
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
    /// Kind `Data`: the table lacks a column, or a value that cannot be filled.
    pub fn predict(&self, table: &Table) -> Result<(Predictions, Vec<String>)> {
        let rows: Vec<usize> = (0..table.rows()).collect();
        let features = self.preparation().transform(table, &rows, Incomplete::Refuse)?;
        let (answers, _) = self.model.evaluate(&features.values, None)?;
        let predictions = match &answers {
            Answers::Classes { probabilities, .. } => Predictions::Classes {
                names: self.preparation().target().classes().to_vec(),
                classes: answers.classes().into_iter().map(|c| c as usize).collect(),
                probabilities: probabilities.clone(),
            },
            Answers::Values(values) => {
                Predictions::Values(values.iter().map(|&v| self.preparation().target().invert(v)).collect())
            }
        };
        Ok((predictions, features.notes()))
    }

    /// Loss and figures on all rows of `table` that have a target, the number of those rows, and notes for the user on what
    /// training never saw.
    ///
    /// # Errors
    /// Kind `Data`: as [`Predictor::predict`]; no target column; a class that training never saw; no rows.
    pub fn evaluate(&self, table: &Table) -> Result<(f64, Metrics, usize, Vec<String>)> {
        let rows: Vec<usize> = (0..table.rows()).collect();
        let (part, notes) = Part::prepare(self.preparation(), table, &rows)?;
        let (answers, loss) = self.model.evaluate(&part.features, Some(&part.targets))?;
        let metrics = self.model.metrics(&answers, &part.targets, self.preparation().target());
        Ok((loss, metrics, part.rows(), notes))
    }
}
