//! [`Dataset`]: a table cut into parts and prepared, ready for a training loop.
//!
//! The order is fixed because each step may look only at what the steps before it left: limit, rows without a target out,
//! task, split, fit on the training part, apply to all parts.
#![forbid(unsafe_code)]

use super::prepare::{Incomplete, Preparation, PrepareOptions, complete_rows};
use super::split::{Split, SplitOptions, split};
use super::table::Table;
use super::target::Targets;
use super::task::{Classes, Task, resolve_task};
use crate::{Error, Result};

/// Prepared rows: inputs and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Inputs, row-major `[rows, columns]`.
    pub features: Vec<f32>,
    /// The number of inputs a row.
    pub columns: usize,
    /// One target a row.
    pub targets: Targets,
    /// The table's row of each row here.
    pub source_rows: Vec<usize>,
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
        let part = Part {
            features: features.values,
            columns: features.columns,
            targets,
            source_rows: features.rows,
        };
        Ok((part, notes))
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
