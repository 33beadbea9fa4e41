//! [`Dataset`]: a table or a set of pictures cut into parts and prepared, ready for a training loop.
//!
//! The order is fixed because each step may look only at what the steps before it left: limit, rows without a target out,
//! task, split, fit on the training part, apply to all parts.
#![forbid(unsafe_code)]

use super::images::{Images, LABEL};
use super::prepare::{Incomplete, MAX_CATEGORIES, Preparation, PrepareOptions, complete_rows};
use super::split::{Split, SplitOptions, split};
use super::store::Store;
use super::table::Table;
use super::target::{Target, Targets};
use super::task::{Classes, Task, resolve_task};
use crate::{Error, Result};

/// Prepared rows: inputs and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Inputs, as many rows as targets.
    pub inputs: Store,
    /// One target a row.
    pub targets: Targets,
    /// The row of the table, or the picture, of each row here.
    pub source_rows: Vec<usize>,
    /// The file of each row where each has one of its own, else none.
    pub names: Vec<String>,
}

impl Part {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.targets.len()
    }

    /// Prepares `rows` of `table`, targets included; rows that the preparation leaves out are left out.
    ///
    /// # Errors
    /// As [`Preparation::transform`] and [`super::Target::transform`].
    pub fn prepare(preparation: &Preparation, table: &Table, rows: &[usize]) -> Result<(Self, Vec<String>)> {
        let features = preparation.transform(table, rows, Incomplete::LeaveOut)?;
        let targets = preparation.target().transform(table, &features.rows)?;
        let notes = features.notes();
        let source_rows = features.rows.clone();
        let inputs = preparation.store(features)?;
        Ok((Part { inputs, targets, source_rows, names: Vec::new() }, notes))
    }

    /// The pictures `rows` of `images`, targets included.
    ///
    /// # Errors
    /// Kind `Data`: pictures of another shape, or without labels; what [`super::Target::transform`] refuses.
    pub fn of_images(preparation: &Preparation, images: &Images, rows: Vec<usize>) -> Result<Self> {
        let inputs = preparation.store_of_images(images, rows.clone())?;
        let targets = preparation.target().transform(images.needed_labels()?, &rows)?;
        let names = rows.iter().filter_map(|&row| images.names().get(row).cloned()).collect();
        Ok(Part { inputs, targets, source_rows: rows, names })
    }
}

/// How a data set is made of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatasetOptions {
    /// The target's name; the last column where nothing is given.
    pub target: Option<String>,
    /// The task; found where nothing is given.
    pub task: Option<Task>,
    /// Use only the first rows of the table, this many.
    pub limit: Option<usize>,
    /// How rows are divided. With a test table of its own no test part is cut, whatever the share.
    pub split: SplitOptions,
    /// How columns are prepared.
    pub prepare: PrepareOptions,
}

/// Three prepared parts and how they were prepared.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What is learnt.
    pub task: Task,
    /// Fitted on the training part.
    pub preparation: Preparation,
    /// What is trained on.
    pub train: Part,
    /// What early stopping and the kept epoch look at; without rows for a validation share of 0.
    pub validation: Part,
    /// What is read once, at the end; without rows for a test share of 0.
    pub test: Part,
    /// What the user should know: rows that were left out, columns without values.
    pub notes: Vec<String>,
}

impl Dataset {
    /// Divides and prepares `table`; `test`, if given, is the test part. It must have the columns of `table` in its types
    /// ([`Table::read_csv_as`] with [`super::Schema::of`] sees to that).
    ///
    /// ```
    /// use warpsmith::data::{Dataset, DatasetOptions, Task, digits};
    /// let data = Dataset::build(&digits()?, None, &DatasetOptions::default())?;
    /// assert_eq!((data.task, data.train.rows(), data.test.rows()), (Task::Multiclass, 1294, 359));
    /// # Ok::<(), warpsmith::Error>(())
    /// ```
    ///
    /// # Errors
    /// Kind `Data`: everything that depends on the tables: an unknown target, a task that does not fit, too few rows, a
    /// class in the test part that training never saw, and what [`Preparation::fit`] and [`Preparation::transform`]
    /// refuse. Kind `Argument`: a limit of 0, shares out of range, bad options.
    pub fn build(table: &Table, test: Option<&Table>, options: &DatasetOptions) -> Result<Self> {
        let target = match &options.target {
            Some(name) => table.index_of(name)?,
            None => table.names().len() - 1,
        };
        if options.limit == Some(0) {
            return Err(Error::argument("a limit of 0 rows leaves nothing to train on"));
        }
        let limit = options.limit.unwrap_or(usize::MAX).min(table.rows());
        let (rows, mut notes) = usable_rows(table, target, limit, &options.prepare)?;
        let (task, classes) = resolve_task(options.task, table, target, &rows)?;

        let split = cut(table, target, &rows, classes.as_ref(), &options.split, test.is_some())?;
        let (preparation, fit_notes) =
            Preparation::fit(table, target, classes, &split.train, &options.prepare)?;
        notes.extend(fit_notes);

        let mut part = |table: &Table, rows: &[usize], name: &str| -> Result<Part> {
            let (part, part_notes) = Part::prepare(&preparation, table, rows)?;
            notes.extend(part_notes.into_iter().map(|note| format!("{name} part: {note}")));
            Ok(part)
        };
        let train = part(table, &split.train, "training")?;
        let validation = part(table, &split.validation, "validation")?;
        let test = match test {
            None => part(table, &split.test, "test")?,
            Some(test) => {
                let target = test.index_of(preparation.target().name())?;
                let (rows, test_notes) = usable_rows(test, target, test.rows(), &options.prepare)?;
                let prepared = part(test, &rows, "test")?;
                notes.extend(test_notes);
                prepared
            }
        };
        Ok(Dataset { task, preparation, train, validation, test, notes })
    }
}

impl Dataset {
    /// Divides and prepares `images` by their labels; `test`, if given, is the test part. Of `options`, a target or the
    /// preparation of single columns can have no meaning here; pixels are scaled by the rule for numbers, each channel by
    /// itself. Labels that are whole numbers are classes, up to [`MAX_CATEGORIES`] of them.
    ///
    /// ```
    /// use warpsmith::data::{Dataset, DatasetOptions, Images, SplitOptions};
    /// let pixels = (0..40 * 12).map(|i| (i % 251) as u8).collect();
    /// let labels: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
    /// let images = Images::new("made", pixels, [3, 2, 2])?.with_labels("made", &labels)?;
    /// let data = Dataset::from_images(&images, None, &DatasetOptions::default())?;
    /// assert_eq!((data.shape(), data.train.rows(), data.test.rows()), (vec![3, 2, 2], 29, 8));
    /// # Ok::<(), warpsmith::Error>(())
    /// ```
    ///
    /// # Errors
    /// Kind `Data`: no labels, test pictures of another shape, and as [`Dataset::build`]. Kind `Argument`: a limit of 0,
    /// shares out of range, a target of another name, options for columns.
    pub fn from_images(images: &Images, test: Option<&Images>, options: &DatasetOptions) -> Result<Self> {
        if let Some(target) = options.target.as_ref().filter(|target| *target != LABEL) {
            return Err(Error::argument(format!(
                "target '{target}': of pictures only their '{LABEL}' can be learnt"
            )));
        }
        if !options.prepare.columns.is_empty() {
            return Err(Error::argument("pictures have no columns whose preparation could be chosen"));
        }
        if options.limit == Some(0) {
            return Err(Error::argument("a limit of 0 pictures leaves nothing to train on"));
        }
        let labels = images.needed_labels()?;
        let rows: Vec<usize> = (0..images.len().min(options.limit.unwrap_or(usize::MAX))).collect();
        let found = Classes::of(labels, 0, &rows).map_or(0, |classes| classes.names.len());
        let asked = options.task.or(match found {
            2 => Some(Task::Binary),
            3..=MAX_CATEGORIES => Some(Task::Multiclass),
            _ => None,
        });
        let (task, classes) = resolve_task(asked, labels, 0, &rows)?;
        let split = cut(labels, 0, &rows, classes.as_ref(), &options.split, test.is_some())?;
        let target = Target::fit(labels, 0, classes, &split.train, options.prepare.target_scale)?;
        let pixels = images.fit(options.prepare.numbers.scale, &split.train);
        let preparation = Preparation::of_pixels(target, pixels)?;
        let train = Part::of_images(&preparation, images, split.train)?;
        let validation = Part::of_images(&preparation, images, split.validation)?;
        let test = match test {
            None => Part::of_images(&preparation, images, split.test)?,
            Some(test) => Part::of_images(&preparation, test, (0..test.len()).collect())?,
        };
        Ok(Dataset { task, preparation, train, validation, test, notes: Vec::new() })
    }

    /// The shape of one example's inputs: [`Preparation::shape`].
    pub fn shape(&self) -> Vec<usize> {
        self.preparation.shape()
    }
}

fn cut(
    table: &Table,
    target: usize,
    rows: &[usize],
    classes: Option<&Classes>,
    options: &SplitOptions,
    has_test_table: bool,
) -> Result<Split> {
    let labels = classes.map(|classes| classes.encode(table, target, rows)).transpose()?;
    let options = SplitOptions { test: if has_test_table { 0.0 } else { options.test }, ..*options };
    split(rows, labels.as_deref(), &options).map_err(|error| {
        if error.place().is_none() { error.context(table.source().display()) } else { error }
    })
}

/// The rows below `limit` that can be learnt from, and a note for each reason that others cannot.
fn usable_rows(
    table: &Table,
    target: usize,
    limit: usize,
    options: &PrepareOptions,
) -> Result<(Vec<usize>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut note = |count: usize, why: &str| {
        if count > 0 {
            notes.push(format!(
                "{}: {count} {} {why} left out",
                table.source().display(),
                plural(count, "row")
            ));
        }
    };
    let filled: Vec<usize> = (0..limit).filter(|&row| !table.column(target).is_missing(row)).collect();
    note(limit - filled.len(), &format!("without a target ('{}')", table.names()[target]));
    let rows = complete_rows(table, target, &filled, options);
    note(filled.len() - rows.len(), "with a missing number");
    if rows.is_empty() {
        let message = if filled.is_empty() {
            "the target has no value in any row"
        } else {
            "every row lacks a number in some column, so dropping such rows leaves none"
        };
        return Err(Error::data(table.source(), message));
    }
    Ok((rows, notes))
}

pub(super) fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}
