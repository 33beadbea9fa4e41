//! [`Table`]: typed columns in memory, what every source of data becomes before it is prepared.
//!
//! A column holds numbers (a missing one is NaN) or texts (stored once each, rows hold codes). A table knows where each
//! of its rows came from, so that an error found much later still names file, line and column. It refuses columns of
//! different lengths, unnamed or doubly named columns, and numbers that are not finite: missing has its own spelling.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Numbers.
    Number,
    /// Texts.
    Text,
}

impl fmt::Display for ColumnKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnKind::Number => "numbers",
            ColumnKind::Text => "text",
        })
    }
}

/// The cells of one column.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Finite numbers; NaN stands for a missing cell.
    Number(Vec<f64>),
    /// Texts.
    Text(Texts),
}

impl Column {
    /// What the column holds.
    pub fn kind(&self) -> ColumnKind {
        match self {
            Column::Number(_) => ColumnKind::Number,
            Column::Text(_) => ColumnKind::Text,
        }
    }

    /// The number of cells.
    pub fn len(&self) -> usize {
        match self {
            Column::Number(values) => values.len(),
            Column::Text(texts) => texts.codes.len(),
        }
    }

    /// Whether there are no cells.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the cell of `row` is missing.
    pub fn is_missing(&self, row: usize) -> bool {
        match self {
            Column::Number(values) => values[row].is_nan(),
            Column::Text(texts) => texts.codes[row] == Texts::MISSING,
        }
    }
}

/// Text cells: each distinct text once, in order of first appearance, and a code a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    distinct: Vec<String>,
    codes: Vec<u32>,
}

impl Texts {
    /// The code of a missing cell.
    pub const MISSING: u32 = u32::MAX;

    /// The distinct texts; a row's code is an index into them.
    pub fn distinct(&self) -> &[String] {
        &self.distinct
    }

    /// One code a row; [`Texts::MISSING`] where the cell is missing.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// The text of `row`; nothing where the cell is missing.
    pub fn get(&self, row: usize) -> Option<&str> {
        self.distinct.get(self.codes[row] as usize).map(String::as_str)
    }
}

/// Collects the cells of a text column.
#[derive(Debug, Default)]
pub(super) struct TextsBuilder {
    texts: Texts,
    codes: HashMap<String, u32>,
}

impl TextsBuilder {
    pub(super) fn push(&mut self, cell: Option<&str>) {
        let code = match cell {
            None => Texts::MISSING,
            Some(text) => match self.codes.get(text) {
                Some(&code) => code,
                None => {
                    let code = self.texts.distinct.len() as u32;
                    self.texts.distinct.push(text.to_owned());
                    self.codes.insert(text.to_owned(), code);
                    code
                }
            },
        };
        self.texts.codes.push(code);
    }

    pub(super) fn finish(self) -> Texts {
        self.texts
    }
}

impl<'a> FromIterator<Option<&'a str>> for Texts {
    fn from_iter<I: IntoIterator<Item = Option<&'a str>>>(cells: I) -> Self {
        let mut builder = TextsBuilder::default();
        cells.into_iter().for_each(|cell| builder.push(cell));
        builder.finish()
    }
}

/// The line of each row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lines {
    /// The source has no lines (a matrix).
    None,
    /// Row `i` is line `first + i`.
    From(u64),
    /// One line a row: there were blank lines, or cells over several lines.
    Each(Vec<u64>),
}

impl Lines {
    /// Notes that row number `row`, the next one, is at `line`.
    pub(super) fn push(&mut self, row: usize, line: u64) {
        match self {
            Lines::None => *self = if row == 0 { Lines::From(line) } else { Lines::None },
            Lines::From(first) if *first + row as u64 == line => {}
            Lines::From(first) => {
                let mut each: Vec<u64> = (0..row as u64).map(|row| *first + row).collect();
                each.push(line);
                *self = Lines::Each(each);
            }
            Lines::Each(each) => each.push(line),
        }
    }

    fn get(&self, row: usize) -> Option<u64> {
        match self {
            Lines::None => None,
            Lines::From(first) => Some(first + row as u64),
            Lines::Each(each) => each.get(row).copied(),
        }
    }
}

/// Named, typed columns of equal length.
///
/// ```
/// use warpsmith::data::Table;
/// let table = Table::from_csv("fruit.csv", b"weight,name\n1.5,apple\n,pear\n", None)?;
/// assert_eq!((table.rows(), table.names().len()), (2, 2));
/// assert!(table.column(0).is_missing(1));
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    source: PathBuf,
    names: Vec<String>,
    columns: Vec<Column>,
    rows: usize,
    lines: Lines,
    /// What the columns of a row make, if it is more than a row.
    shape: Option<Vec<usize>>,
}

impl Table {
    pub(super) fn new(source: &Path, names: Vec<String>, columns: Vec<Column>, lines: Lines) -> Result<Self> {
        check_names(source, &names)?;
        let rows = columns.first().map_or(0, Column::len);
        if names.len() != columns.len() || columns.iter().any(|column| column.len() != rows) {
            return Err(Error::internal("the columns of a table differ in length"));
        }
        Ok(Table { source: source.to_owned(), names, columns, rows, lines, shape: None })
    }

    /// A table of numbers from a row-major matrix `[rows, columns]`, its columns named `x0`, `x1` and so on. `source`
    /// is the name that errors give.
    ///
    /// # Errors
    /// Kind `Data`: no rows, no columns, or a value that is not finite; kind `Shape`: `values` has another length.
    pub fn from_matrix<T: Copy + Into<f64>>(
        source: impl AsRef<Path>,
        values: &[T],
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let source = source.as_ref();
        if rows.checked_mul(columns) != Some(values.len()) {
            let message =
                format!("{} values do not make a matrix of {rows} rows and {columns} columns", values.len());
            return Err(Error::shape("table", message));
        }
        if values.is_empty() {
            return Err(Error::data(
                source,
                format!("a matrix of {rows} rows and {columns} columns has no data"),
            ));
        }
        let names: Vec<String> = (0..columns).map(|i| format!("x{i}")).collect();
        let mut cells: Vec<Vec<f64>> = (0..columns).map(|_| Vec::with_capacity(rows)).collect();
        for (row, values) in values.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                cells[column].push(finite(source, row, &names[column], (*value).into())?);
            }
        }
        Table::new(source, names, cells.into_iter().map(Column::Number).collect(), Lines::None)
    }

    /// The same table with one more column of numbers, as a target that comes in a file of its own (`Y.npy`). `source`
    /// is the name that errors about these values give.
    ///
    /// # Errors
    /// Kind `Data`: as many values as rows are needed, all finite, under a name that is not taken.
    pub fn with_numbers<T: Copy + Into<f64>>(
        mut self,
        source: impl AsRef<Path>,
        name: &str,
        values: &[T],
    ) -> Result<Self> {
        let source = source.as_ref();
        if values.len() != self.rows {
            let message = format!("expected {} values, one a row of {}", self.rows, self.source.display());
            return Err(Error::data(source, format!("{message}; found {}", values.len())));
        }
        let values = values.iter().enumerate().map(|(row, value)| finite(source, row, name, (*value).into()));
        self.columns.push(Column::Number(values.collect::<Result<_>>()?));
        self.names.push(name.to_owned());
        check_names(source, &self.names)?;
        Ok(self)
    }

    /// The same table whose columns, in C order, are said to make an array of this shape in each row: `[C, H, W]` for
    /// pictures. A target that is added later is no part of it.
    ///
    /// # Errors
    /// Kind `Shape`: the table has another number of columns.
    pub fn with_shape(mut self, shape: &[usize]) -> Result<Self> {
        let values = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        if values != Some(self.columns.len()) {
            let message = format!("{} columns do not make an array {shape:?}", self.columns.len());
            return Err(Error::shape("table", message));
        }
        self.shape = Some(shape.to_vec());
        Ok(self)
    }

    /// The shape that [`Table::with_shape`] gave.
    pub fn shape(&self) -> Option<&[usize]> {
        self.shape.as_deref()
    }

    /// The file, or the name that stands for one.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The columns' names, distinct and not empty.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Column number `index`.
    ///
    /// # Panics
    /// Where there is no such column.
    pub fn column(&self, index: usize) -> &Column {
        &self.columns[index]
    }

    /// The index of the column called `name`.
    ///
    /// # Errors
    /// Kind `Data`, with the names that there are.
    pub fn index_of(&self, name: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| {
            Error::data(&self.source, format!("there is no column '{name}'"))
                .with_help(format!("the columns are: {}", list(self.names.iter().map(String::as_str))))
        })
    }

    /// The index of the column called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// An error of kind `Data` about the cell of `row` in `column`: names file, line (or row) and column.
    pub fn error(&self, row: usize, column: usize, message: impl Into<String>) -> Error {
        let error = Error::new(ErrorKind::Data, message);
        let line = self.lines.get(row);
        let error = if line.is_some() { error } else { error.context(format!("row {}", row + 1)) };
        error.at(&self.source, line, self.names.get(column).cloned())
    }

    /// The first `rows` rows.
    pub(super) fn truncated(mut self, rows: usize) -> Self {
        for column in &mut self.columns {
            match column {
                Column::Number(values) => values.truncate(rows),
                Column::Text(texts) => texts.codes.truncate(rows),
            }
        }
        self.rows = self.rows.min(rows);
        self
    }

    /// The columns `keep` in their order, under `names`.
    pub(super) fn select(mut self, keep: &[usize], names: Vec<String>) -> Result<Self> {
        let mut columns: Vec<Option<Column>> = self.columns.drain(..).map(Some).collect();
        let columns: Option<Vec<Column>> =
            keep.iter().map(|&i| columns.get_mut(i).and_then(Option::take)).collect();
        let columns = columns.ok_or_else(|| Error::internal("a column was selected twice"))?;
        Table::new(&self.source, names, columns, self.lines)
    }
}

fn finite(source: &Path, row: usize, column: &str, value: f64) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::data(source, format!("row {}: expected a finite number, found {value}", row + 1)).at(
        source,
        None,
        Some(column),
    ))
}

pub(super) fn check_names(source: &Path, names: &[String]) -> Result<()> {
    let mut seen = HashMap::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(Error::data(source, format!("column {} has no name in the header", index + 1))
                .with_help("give it a name, or leave it out of the file if it only counts the rows"));
        }
        if let Some(first) = seen.insert(name.as_str(), index) {
            let message = format!("columns {} and {} are both called '{name}'", first + 1, index + 1);
            return Err(Error::data(source, message)
                .with_help("each column needs a name of its own in the first line"));
        }
    }
    Ok(())
}

/// `a, b, c and 17 more`: at most a dozen.
pub(super) fn list<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.take(SHOWN).collect();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `text` in quotes, cut after a few words.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut cut: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("'{cut}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_becomes_columns() {
        let table = Table::from_matrix("x.npy", &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2).unwrap();
        assert_eq!(table.names(), ["x0", "x1"]);
        assert_eq!(table.column(1), &Column::Number(vec![2.0, 4.0, 6.0]));
        let table = table.with_numbers("y.npy", "y", &[0u8, 1, 0]).unwrap();
        assert_eq!(table.column(2), &Column::Number(vec![0.0, 1.0, 0.0]));
        let error = table.with_numbers("y.npy", "y", &[1u8, 2, 3]).unwrap_err();
        assert!(error.to_string().contains("both called 'y'"), "{error}");
    }

    #[test]
    fn a_bad_matrix_is_an_error_with_its_place() {
        let error = Table::from_matrix("x.npy", &[1.0, f64::NAN], 2, 1).unwrap_err();
        assert_eq!(error.to_string(), "x.npy, column x0: row 2: expected a finite number, found NaN");
        assert_eq!(Table::from_matrix("x.npy", &[1.0], 2, 1).unwrap_err().kind(), ErrorKind::Shape);
        let empty: [f32; 0] = [];
        assert_eq!(Table::from_matrix("x.npy", &empty, 0, 3).unwrap_err().kind(), ErrorKind::Data);
        let table = Table::from_matrix("x.npy", &[1.0, 2.0], 2, 1).unwrap();
        let error = table.with_numbers("y.npy", "y", &[1.0]).unwrap_err();
        assert!(error.to_string().contains("expected 2 values"), "{error}");
    }

    #[test]
    fn lines_stay_short_until_a_line_is_skipped() {
        let mut lines = Lines::None;
        for (row, line) in [2, 3, 4].into_iter().enumerate() {
            lines.push(row, line);
        }
        assert_eq!(lines, Lines::From(2));
        lines.push(3, 7);
        lines.push(4, 8);
        assert_eq!(lines, Lines::Each(vec![2, 3, 4, 7, 8]));
        assert_eq!(lines.get(3), Some(7));
    }

    #[test]
    fn long_lists_and_texts_are_cut() {
        let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        assert!(list(names.iter().map(String::as_str)).ends_with("11 and 8 more"));
        assert_eq!(quote("a\nb"), "'a b'");
        assert_eq!(quote(&"é".repeat(50)).chars().count(), 43);
    }
}
