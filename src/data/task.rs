//! What is to be learnt from a target column: two classes, several classes, or a number.
//!
//! Found: a text target, or one of at most 20 distinct integers, is a class, anything else a number. A task that is asked
//! for and that the column cannot give is an error, never a conversion.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::table::{Column, Table, Texts, list};
use crate::{Error, Result};

/// The largest number of distinct integers that is still taken for a set of classes.
pub const MAX_FOUND_CLASSES: usize = 20;

// Above this, neighbouring f64 integers differ by more than 1.
const LARGEST_INTEGER: f64 = 9_007_199_254_740_992.0;

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One of two classes.
    Binary,
    /// One of two or more classes.
    Multiclass,
    /// A number.
    Regression,
}

impl Task {
    /// The name as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Binary => "binary",
            Task::Multiclass => "multiclass",
            Task::Regression => "regression",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    /// # Errors
    /// Kind `Argument` for any other name.
    fn from_str(name: &str) -> Result<Self> {
        [Task::Binary, Task::Multiclass, Task::Regression]
            .into_iter()
            .find(|task| task.name() == name)
            .ok_or_else(|| {
                Error::argument(format!(
                    "expected a task of binary, multiclass or regression, found '{name}'"
                ))
            })
    }
}

/// How the classes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// As integers, sorted by value.
    Integer,
    /// As texts, sorted by their bytes.
    Text,
}

/// The classes of a target column in sorted order, and each row's class.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// How they are written.
    pub labels: Labels,
    /// Their names.
    pub names: Vec<String>,
}

impl Classes {
    /// The classes that `rows` of a column hold, missing cells left out; nothing where it holds numbers that are not
    /// integers.
    pub fn of(table: &Table, column: usize, rows: &[usize]) -> Option<Self> {
        match table.column(column) {
            Column::Text(texts) => {
                let mut used = vec![false; texts.distinct().len()];
                for &row in rows {
                    if texts.codes()[row] != Texts::MISSING {
                        used[texts.codes()[row] as usize] = true;
                    }
                }
                let used = texts.distinct().iter().zip(used).filter(|(_, used)| *used);
                let mut names: Vec<String> = used.map(|(text, _)| text.clone()).collect();
                names.sort_unstable();
                Some(Classes { labels: Labels::Text, names })
            }
            Column::Number(values) => {
                let mut distinct = std::collections::BTreeSet::new();
                for &row in rows {
                    if !values[row].is_nan() {
                        distinct.insert(integer(values[row])?);
                    }
                }
                let names = distinct.into_iter().map(|value| value.to_string()).collect();
                Some(Classes { labels: Labels::Integer, names })
            }
        }
    }

    /// The class number of each of `rows`, whose cells in `column` are filled.
    ///
    /// # Errors
    /// Kind `Data`, with the place: a class that is not among these.
    pub fn encode(&self, table: &Table, column: usize, rows: &[usize]) -> Result<Vec<i64>> {
        let numbers: BTreeMap<&str, i64> =
            self.names.iter().enumerate().map(|(number, name)| (name.as_str(), number as i64)).collect();
        let unknown = |row: usize, name: &str| {
            table.error(row, column, format!("the class '{name}' was never seen in training")).with_help(
                format!(
                    "the {} classes in training are: {}",
                    self.names.len(),
                    list(self.names.iter().map(String::as_str))
                ),
            )
        };
        match table.column(column) {
            Column::Text(texts) => {
                let of_code: Vec<Option<i64>> =
                    texts.distinct().iter().map(|text| numbers.get(text.as_str()).copied()).collect();
                let class = |&row: &usize| match texts.get(row) {
                    None => Err(table.error(row, column, "the target is missing")),
                    Some(name) => of_code[texts.codes()[row] as usize].ok_or_else(|| unknown(row, name)),
                };
                rows.iter().map(class).collect()
            }
            Column::Number(values) => {
                let mut of_value: BTreeMap<u64, i64> = BTreeMap::new();
                let class = |&row: &usize| {
                    let value = values[row];
                    if value.is_nan() {
                        return Err(table.error(row, column, "the target is missing"));
                    }
                    if let Some(&class) = of_value.get(&value.to_bits()) {
                        return Ok(class);
                    }
                    let name = integer(value).map_or_else(|| value.to_string(), |value| value.to_string());
                    let class = *numbers.get(name.as_str()).ok_or_else(|| unknown(row, &name))?;
                    of_value.insert(value.to_bits(), class);
                    Ok(class)
                };
                rows.iter().map(class).collect()
            }
        }
    }
}

fn integer(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() <= LARGEST_INTEGER).then_some(value as i64)
}

/// The task for `rows` of a target column, and its classes unless it is regression: the one `asked` for, else found.
///
/// # Errors
/// Kind `Data`: no filled cell; one class alone; the task asked for does not fit the column.
pub fn resolve_task(
    asked: Option<Task>,
    table: &Table,
    column: usize,
    rows: &[usize],
) -> Result<(Task, Option<Classes>)> {
    let error = |message: String| {
        Error::data(table.source(), message).at(table.source(), None, table.names().get(column).cloned())
    };
    if rows.iter().all(|&row| table.column(column).is_missing(row)) {
        return Err(error("the target has no value in any row".to_owned()));
    }
    let classes = Classes::of(table, column, rows);
    let is_text = matches!(table.column(column), Column::Text(_));
    let task = match (asked, &classes) {
        (Some(Task::Regression), _) if is_text => {
            return Err(error("regression needs a target of numbers, found texts".to_owned()));
        }
        (Some(task @ (Task::Binary | Task::Multiclass)), None) => {
            return Err(error(format!(
                "{task} needs classes: texts or integers; found numbers that are not integers"
            )));
        }
        (Some(Task::Binary), Some(classes)) if classes.names.len() > 2 => {
            let names = list(classes.names.iter().map(String::as_str));
            return Err(error(format!("binary needs two classes, found {}: {names}", classes.names.len())));
        }
        (Some(task), _) => task,
        (None, Some(classes)) if is_text || classes.names.len() <= MAX_FOUND_CLASSES => {
            match classes.names.len() {
                2 => Task::Binary,
                _ => Task::Multiclass,
            }
        }
        (None, _) => Task::Regression,
    };
    match (task, classes) {
        (Task::Regression, _) => Ok((task, None)),
        (_, Some(classes)) if classes.names.len() >= 2 => Ok((task, Some(classes))),
        (_, classes) => {
            let name = classes.and_then(|classes| classes.names.into_iter().next()).unwrap_or_default();
            Err(error(format!("a classifier needs at least two classes; every row has the class '{name}'")))
        }
    }
}
