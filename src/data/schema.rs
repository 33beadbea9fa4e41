//! [`Schema`]: the columns that a model expects, and how the columns of a file are matched with them.
//!
//! By name where the file has the name of every input, in any order and with further columns ignored; else by position
//! where the number of columns is right, which is reported because it cannot be checked. It refuses the third case: names
//! that partly fit but stand elsewhere, where one misspelt name would otherwise shift every value silently.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::Path;

use super::table::{ColumnKind, Table, list};
use crate::{Error, Result};

/// Names and types of the inputs and, where there is one, of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The inputs in the model's order.
    pub inputs: Vec<(String, ColumnKind)>,
    /// The target.
    pub target: Option<(String, ColumnKind)>,
}

/// What the target column is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetUse {
    /// Prediction: a target column is left out of the table.
    Ignored,
    /// Evaluation: it must be there, and is the table's last column.
    Needed,
}

/// A table in a model's own column order.
#[derive(Clone, Debug)]
pub struct Matched {
    /// The inputs in the model's order, then the target if it is needed.
    pub table: Table,
    /// What the user should know about the matching.
    pub note: Option<String>,
}

/// Which column of a file each wanted column is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// For each input, then for the target if it is needed, the index of the file's column.
    pub columns: Vec<usize>,
    /// What the user should know about the matching.
    pub note: Option<String>,
}

impl Schema {
    /// The schema of `table` with the column number `target` as the target.
    pub fn of(table: &Table, target: Option<usize>) -> Self {
        let column = |index: usize| (table.names()[index].clone(), table.column(index).kind());
        Schema {
            inputs: (0..table.names().len()).filter(|&index| Some(index) != target).map(column).collect(),
            target: target.map(column),
        }
    }

    /// The names and types of the first `count` of the inputs followed by the target.
    pub(super) fn columns(&self, count: usize) -> Vec<(&str, ColumnKind)> {
        self.inputs
            .iter()
            .chain(&self.target)
            .take(count)
            .map(|(name, kind)| (name.as_str(), *kind))
            .collect()
    }

    pub(super) fn has_all_inputs(&self, names: &[String]) -> bool {
        let places = places(names);
        self.inputs.iter().all(|(name, _)| places.contains_key(name.as_str()))
    }

    /// Matches the columns called `names` with this schema: by name, else by position.
    ///
    /// # Errors
    /// Kind `Data`: inputs are missing and the number of columns is not right, or some of the inputs are there but at
    /// other positions; the target is needed and not there.
    pub fn match_names(&self, source: &Path, names: &[String], target: TargetUse) -> Result<Matching> {
        let places = places(names);
        let target_place = self.target.as_ref().and_then(|(name, _)| places.get(name.as_str()).copied());
        let missing: Vec<&str> = self
            .inputs
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !places.contains_key(name))
            .collect();

        let (mut columns, note) = if missing.is_empty() {
            (self.inputs.iter().map(|(name, _)| places[name.as_str()]).collect::<Vec<_>>(), None)
        } else {
            let candidates: Vec<usize> =
                (0..names.len()).filter(|&index| Some(index) != target_place).collect();
            let moved = self.inputs.iter().enumerate().any(|(index, (name, _))| {
                places.get(name.as_str()).is_some_and(|place| candidates.get(index) != Some(place))
            });
            if candidates.len() != self.inputs.len() || moved {
                let known = self.inputs.len() - missing.len();
                let message = format!(
                    "the model has {} inputs; of their names the header has {known}, and lacks: {}",
                    self.inputs.len(),
                    list(missing.iter().copied())
                );
                return Err(Error::data(source, message).with_help(format!(
                    "the file's columns are: {}; columns are matched by name if every input is there, \
                     else by position if their number is right and no input stands elsewhere",
                    list(names.iter().map(String::as_str))
                )));
            }
            let note = format!(
                "{}: the header lacks the model's column names, so columns are matched by position",
                source.display()
            );
            (candidates, Some(note))
        };
        if target == TargetUse::Needed {
            columns.push(target_place.ok_or_else(|| self.no_target(source))?);
        }
        Ok(Matching { columns, note })
    }

    /// Matches `count` columns without names with this schema, by position.
    ///
    /// # Errors
    /// Kind `Data`: `count` is not the number of inputs; the target is needed, which has no position of its own.
    pub fn match_positions(&self, source: &Path, count: usize, target: TargetUse) -> Result<Matching> {
        if target == TargetUse::Needed {
            return Err(self
                .no_target(source)
                .with_help("the file has no header; the target is found by its name"));
        }
        if count != self.inputs.len() {
            let message = format!("the model has {} inputs, the file has {count} columns", self.inputs.len());
            return Err(Error::data(source, message).with_help(
                "a file without a header is matched by position and must have exactly the inputs",
            ));
        }
        let note = format!("{}: there is no header, so columns are matched by position", source.display());
        Ok(Matching { columns: (0..count).collect(), note: Some(note) })
    }

    /// Matches a table that is already in memory (a matrix, the built-in digits) with this schema.
    ///
    /// # Errors
    /// As [`Schema::match_names`]; also kind `Data` where a column's type is not the model's.
    pub fn match_table(&self, table: Table, target: TargetUse) -> Result<Matched> {
        let Matching { columns, note } = self.match_names(table.source(), table.names(), target)?;
        let wanted = self.columns(columns.len());
        for (&place, (name, kind)) in columns.iter().zip(&wanted) {
            if table.column(place).kind() != *kind {
                let message = format!("expected {kind} as in the model's column '{name}'");
                let found = table.column(place).kind();
                return Err(Error::data(table.source(), format!("{message}, found {found}")).at(
                    table.source(),
                    None,
                    Some(table.names()[place].clone()),
                ));
            }
        }
        let names = wanted.iter().map(|(name, _)| (*name).to_owned()).collect();
        Ok(Matched { table: table.select(&columns, names)?, note })
    }

    fn no_target(&self, source: &Path) -> Error {
        match &self.target {
            Some((name, _)) => {
                Error::data(source, format!("there is no column '{name}', the model's target"))
            }
            None => Error::data(source, "the model has no target"),
        }
    }
}

fn places(names: &[String]) -> HashMap<&str, usize> {
    names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect()
}
