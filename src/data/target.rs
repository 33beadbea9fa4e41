//! [`Target`]: how the column that is learnt becomes class numbers or scaled values, and how answers become texts and
//! numbers again.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::scaling::{Scale, Scaling};
use super::table::{Column, ColumnKind, Table};
use super::task::{Classes, Labels};
use crate::{Error, ErrorKind, Result};

/// The targets of some rows, one a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class numbers, from 0 in the classes' sorted order.
    Classes(Vec<i64>),
    /// Scaled values.
    Values(Vec<f32>),
    /// A probability of each class, row-major `[rows, classes]`: what mixing rows makes of classes.
    Probabilities {
        /// The probabilities.
        values: Vec<f32>,
        /// The number of classes, at least 1.
        classes: usize,
    },
}

impl Targets {
    /// The number of rows.
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(classes) => classes.len(),
            Targets::Values(values) => values.len(),
            Targets::Probabilities { values, classes } => values.len() / (*classes).max(1),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The targets of the rows `rows`.
    pub fn range(&self, rows: std::ops::Range<usize>) -> Targets {
        match self {
            Targets::Classes(all) => Targets::Classes(all[rows].to_vec()),
            Targets::Values(all) => Targets::Values(all[rows].to_vec()),
            Targets::Probabilities { values, classes } => {
                let values = values[rows.start * classes..rows.end * classes].to_vec();
                Targets::Probabilities { values, classes: *classes }
            }
        }
    }

    /// Makes `into` the targets of `rows`, in the memory it has if it is of the same kind.
    pub(super) fn gather(&self, rows: &[usize], into: &mut Targets) {
        match (self, &mut *into) {
            (Targets::Classes(all), Targets::Classes(some)) => {
                some.clear();
                some.extend(rows.iter().map(|&row| all[row]));
            }
            (Targets::Values(all), Targets::Values(some)) => {
                some.clear();
                some.extend(rows.iter().map(|&row| all[row]));
            }
            (
                Targets::Probabilities { values: all, classes },
                Targets::Probabilities { values: some, classes: width },
            ) => {
                *width = *classes;
                some.clear();
                rows.iter().for_each(|&row| some.extend_from_slice(&all[row * classes..(row + 1) * classes]));
            }
            _ => {
                *into = self.empty_like(rows.len());
                self.gather(rows, into);
            }
        }
    }

    /// As [`Targets::gather`], each row mixed with another one, of which it keeps a share: `(row, other, share)`. Classes
    /// become probabilities of `classes` of them.
    pub(super) fn gather_mixed(&self, rows: &[(usize, usize, f32)], classes: usize, into: &mut Targets) {
        if let Targets::Values(all) = self {
            let mixed = rows.iter().map(|&(row, other, share)| share * all[row] + (1.0 - share) * all[other]);
            return *into = Targets::Values(mixed.collect());
        }
        let mut values = vec![0.0; rows.len() * classes];
        for (mixed, &(row, other, share)) in values.chunks_exact_mut(classes.max(1)).zip(rows) {
            for (row, share) in [(row, share), (other, 1.0 - share)] {
                match self {
                    Targets::Classes(all) => mixed[all[row] as usize] += share,
                    Targets::Probabilities { values: all, classes } => {
                        let all = &all[row * classes..(row + 1) * classes];
                        mixed.iter_mut().zip(all).for_each(|(mixed, p)| *mixed += share * p);
                    }
                    Targets::Values(_) => {}
                }
            }
        }
        *into = Targets::Probabilities { values, classes };
    }

    pub(super) fn empty_like(&self, capacity: usize) -> Self {
        match self {
            Targets::Classes(_) => Targets::Classes(Vec::with_capacity(capacity)),
            Targets::Values(_) => Targets::Values(Vec::with_capacity(capacity)),
            Targets::Probabilities { classes, .. } => {
                Targets::Probabilities { values: Vec::with_capacity(capacity * classes), classes: *classes }
            }
        }
    }
}

/// The fitted target column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Target {
    /// One of several classes.
    Classes {
        /// The column.
        name: String,
        /// How the classes are written.
        labels: Labels,
        /// Their names: integers by value, texts by their bytes.
        classes: Vec<String>,
    },
    /// A number.
    Value {
        /// The column.
        name: String,
        /// The rule that the scaling was fitted by.
        scale: Scale,
        /// What becomes 0.
        shift: f64,
        /// The distance that becomes 1; 0 for a constant target.
        divisor: f64,
    },
}

impl Target {
    pub(super) fn fit(
        table: &Table,
        column: usize,
        classes: Option<Classes>,
        rows: &[usize],
        scale: Scale,
    ) -> Result<Self> {
        let name = table.names()[column].clone();
        match (classes, table.column(column)) {
            (Some(Classes { labels, names }), _) => Ok(Target::Classes { name, labels, classes: names }),
            (None, Column::Number(values)) => {
                let fitted = Scaling::fit(scale, rows.iter().map(|&row| values[row])).ok_or_else(|| {
                    Error::data(table.source(), "the numbers are missing or too large to average").at(
                        table.source(),
                        None,
                        Some(name.clone()),
                    )
                })?;
                Ok(Target::Value { name, scale, shift: fitted.shift, divisor: fitted.divisor })
            }
            (None, Column::Text(_)) => Err(Error::internal("a regression target of texts")),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let fault = match self {
            Target::Classes { classes, .. } if classes.len() < 2 => Some("there are fewer than two classes"),
            Target::Classes { labels: Labels::Text, classes, .. } if !classes.is_sorted_by(|a, b| a < b) => {
                Some("the classes are not distinct and sorted")
            }
            Target::Classes { labels: Labels::Integer, classes, .. } => {
                let numbers: Result<Vec<i64>, _> = classes.iter().map(|name| name.parse::<i64>()).collect();
                let sorted = numbers.is_ok_and(|numbers| {
                    numbers.is_sorted_by(|a, b| a < b)
                        && numbers.iter().zip(classes).all(|(number, name)| number.to_string() == *name)
                });
                (!sorted).then_some("the classes are not distinct integers in order")
            }
            Target::Value { shift, divisor, scale, .. } => {
                let sound = Scaling { rule: *scale, shift: *shift, divisor: *divisor }.is_sound();
                (!sound).then_some("a number is not finite, or the divisor is negative")
            }
            Target::Classes { .. } => None,
        };
        match fault {
            None => Ok(()),
            Some(fault) => Err(Error::new(ErrorKind::Data, format!("target '{}': {fault}", self.name()))),
        }
    }

    /// The column.
    pub fn name(&self) -> &str {
        match self {
            Target::Classes { name, .. } | Target::Value { name, .. } => name,
        }
    }

    /// The names of the classes in order; none for regression.
    pub fn classes(&self) -> &[String] {
        match self {
            Target::Classes { classes, .. } => classes,
            Target::Value { .. } => &[],
        }
    }

    /// What the column holds.
    pub fn kind(&self) -> ColumnKind {
        match self {
            Target::Classes { labels: Labels::Text, .. } => ColumnKind::Text,
            Target::Classes { labels: Labels::Integer, .. } | Target::Value { .. } => ColumnKind::Number,
        }
    }

    /// The targets of `rows`.
    ///
    /// # Errors
    /// Kind `Data`, with the place: no such column, or one of the other kind; a missing target; a class that training
    /// never saw; a value too large for f32.
    pub fn transform(&self, table: &Table, rows: &[usize]) -> Result<Targets> {
        let column = table.index_of(self.name())?;
        match (self, table.column(column)) {
            (Target::Classes { labels, classes, .. }, _) => {
                let classes = Classes { labels: *labels, names: classes.clone() };
                Ok(Targets::Classes(classes.encode(table, column, rows)?))
            }
            (Target::Value { scale, shift, divisor, .. }, Column::Number(values)) => {
                let scaling = Scaling { rule: *scale, shift: *shift, divisor: *divisor };
                let value = |&row: &usize| {
                    if values[row].is_nan() {
                        return Err(table.error(row, column, "the target is missing"));
                    }
                    let scaled = scaling.apply(values[row]) as f32;
                    let finite = scaled.is_finite().then_some(scaled);
                    finite.ok_or_else(|| {
                        table.error(row, column, format!("{:e} is too large for f32", values[row]))
                    })
                };
                Ok(Targets::Values(rows.iter().map(value).collect::<Result<_>>()?))
            }
            (Target::Value { .. }, Column::Text(_)) => Err(Error::data(
                table.source(),
                "expected numbers, found texts",
            )
            .at(table.source(), None, Some(self.name()))),
        }
    }

    /// A network's scaled answer in the target's own units; the answer itself for classes.
    pub fn invert(&self, answer: f32) -> f64 {
        match self {
            Target::Classes { .. } => f64::from(answer),
            Target::Value { scale, shift, divisor, .. } => {
                Scaling { rule: *scale, shift: *shift, divisor: *divisor }.invert(f64::from(answer))
            }
        }
    }
}
