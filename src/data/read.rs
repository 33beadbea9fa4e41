//! Reading CSV (RFC 4180, plain or gzipped, UTF-8) into a [`Table`], with types found or given.
//!
//! Found: a column is numeric if at least half of its filled cells are numbers; any other text in it is then an error
//! with file, line and column. Given, by a [`Schema`]: what a model was trained on decides, whatever the cells look like,
//! and columns are matched by name or by position. Missing is an empty cell, `NA`, `N/A`, `null` or `?`, spaces around it
//! ignored; `nan` and `inf` are errors in every column. The only separator is the comma.
//!
//! The file is streamed: an all-numeric one once, one with text columns twice, because only its end tells which columns
//! are text. What cannot be read twice (a pipe) is kept in memory as it came. Lines are counted here and not taken from
//! the csv crate, which is a line behind after CRLF and blank lines.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Terminator};
use flate2::bufread::MultiGzDecoder;

use super::schema::{Matched, Matching, Schema, TargetUse};
use super::table::{Column, ColumnKind, Lines, Table, TextsBuilder, check_names, quote};
use crate::{Error, Result};

const NUMERIC_HELP: &str = "at least half of this column's filled cells are numbers, so all must be; \
                            a missing one is written as nothing, NA, N/A, null or ?";
const NOT_FINITE_HELP: &str = "write a missing value as nothing, NA, N/A, null or ?";

impl Table {
    /// Reads a CSV file (also gzipped), finding the type of each column; of the first `limit` rows only, if given.
    ///
    /// # Errors
    /// Kind `Data`, with line and column where there is one: a file that cannot be read; no header, header only; names
    /// that are empty or appear twice; a ragged row; text in a numeric column; `nan` or `inf`; invalid UTF-8.
    pub fn read_csv(path: impl AsRef<Path>, limit: Option<usize>) -> Result<Table> {
        let path = path.as_ref();
        let pipe = slurp_unless_regular(path)?;
        read_found(&Input::new(path, pipe.as_deref()), limit)
    }

    /// Reads CSV text that is already in memory; `source` is the name that errors give. Otherwise as
    /// [`Table::read_csv`].
    ///
    /// # Errors
    /// As [`Table::read_csv`].
    pub fn from_csv(source: impl AsRef<Path>, bytes: &[u8], limit: Option<usize>) -> Result<Table> {
        read_found(&Input::new(source.as_ref(), Some(bytes)), limit)
    }

    /// Reads a CSV file (also gzipped) for a model: the table has the columns of `schema` in its order, with its types.
    /// A file without a header, or with names that are not the model's, is matched by position, and the note says so.
    ///
    /// # Errors
    /// As [`Table::read_csv`], and where the columns do not match (see [`Schema::match_names`]).
    pub fn read_csv_as(path: impl AsRef<Path>, schema: &Schema, target: TargetUse) -> Result<Matched> {
        let path = path.as_ref();
        let pipe = slurp_unless_regular(path)?;
        read_given(&Input::new(path, pipe.as_deref()), schema, target)
    }

    /// As [`Table::read_csv_as`] for CSV text that is already in memory.
    ///
    /// # Errors
    /// As [`Table::read_csv_as`].
    pub fn from_csv_as(
        source: impl AsRef<Path>,
        bytes: &[u8],
        schema: &Schema,
        target: TargetUse,
    ) -> Result<Matched> {
        read_given(&Input::new(source.as_ref(), Some(bytes)), schema, target)
    }
}

fn slurp_unless_regular(path: &Path) -> Result<Option<Vec<u8>>> {
    let metadata = std::fs::metadata(path).map_err(|cause| Error::io(path, "open for reading", cause))?;
    if metadata.is_file() {
        return Ok(None);
    }
    std::fs::read(path).map(Some).map_err(|cause| Error::io(path, "read", cause))
}

/// Put behind the text: ends a last line that has no LF, and shows where a quotation mark was never closed, which the csv
/// crate accepts silently with all that follows in one cell.
const END: &[u8] = b"\n\0end of the text\0";

/// What can be read from its start as often as needed.
struct Input<'a> {
    source: &'a Path,
    bytes: Option<&'a [u8]>,
}

impl<'a> Input<'a> {
    fn new(source: &'a Path, bytes: Option<&'a [u8]>) -> Self {
        Input { source, bytes }
    }

    fn open(&self) -> Result<Records<'a>> {
        let raw: Box<dyn Read + 'a> = match self.bytes {
            Some(bytes) => Box::new(bytes),
            None => Box::new(
                File::open(self.source).map_err(|cause| Error::io(self.source, "open for reading", cause))?,
            ),
        };
        let mut raw = BufReader::with_capacity(1 << 16, raw);
        let start = raw.fill_buf().map_err(|cause| Error::io(self.source, "read", cause))?;
        let text: Box<dyn Read + 'a> =
            if start.starts_with(&[0x1f, 0x8b]) { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };
        Ok(Records::new(self.source, text))
    }
}

/// The records of a file with their lines.
struct Records<'a> {
    source: &'a Path,
    reader: csv::Reader<io::Chain<Box<dyn Read + 'a>, &'static [u8]>>,
    record: ByteRecord,
    line: u64,
}

impl<'a> Records<'a> {
    fn new(source: &'a Path, text: Box<dyn Read + 'a>) -> Self {
        // With LF as the only terminator the reader's line count is right after every record; the CR of CRLF stays in the
        // last cell, where trimming takes it.
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .terminator(Terminator::Any(b'\n'))
            .from_reader(text.chain(END));
        Records { source, reader, record: ByteRecord::new(), line: 0 }
    }

    /// Moves on to the next record that is not a blank line; false at the end.
    fn advance(&mut self) -> Result<bool> {
        loop {
            let more =
                self.reader.read_byte_record(&mut self.record).map_err(|error| match error.into_kind() {
                    csv::ErrorKind::Io(cause) => Error::io(self.source, "read", cause),
                    other => Error::data(self.source, format!("could not read: {other:?}")),
                })?;
            if !more {
                return Ok(false);
            }
            if self.record.iter().next_back().is_some_and(|cell| cell.ends_with(END.trim_ascii_start())) {
                return if self.record.len() == 1 && self.record[0] == *END.trim_ascii_start() {
                    Ok(false)
                } else {
                    Err(self.unclosed())
                };
            }
            let inside = self.record.as_slice().iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.line = self.reader.position().line() - 1 - inside;
            let blank = self.record.len() == 1 && {
                let cell = &self.record[0];
                !cell.is_empty() && cell.trim_ascii().is_empty()
            };
            if !blank {
                return Ok(true);
            }
        }
    }

    fn unclosed(&self) -> Error {
        let inside = self.record.as_slice().iter().filter(|&&byte| byte == b'\n').count() as u64;
        Error::data(self.source, "a quotation mark in this row is never closed").at(
            self.source,
            Some(self.reader.position().line() - inside),
            None::<String>,
        )
    }

    fn cell(&self, index: usize) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.record[index]).map(str::trim)
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = (0..self.record.len()).map(|index| {
            let name = self.cell(index).map_err(|_| self.not_utf8(format!("number {}", index + 1)))?;
            if name.contains(['\r', '\n']) {
                let message = "a name in the header runs over several lines";
                return Err(Error::data(self.source, message).at(
                    self.source,
                    Some(self.line),
                    Some(quote(name)),
                ));
            }
            Ok(name.to_owned())
        });
        names.collect()
    }

    fn not_utf8(&self, column: String) -> Error {
        Error::data(self.source, "expected UTF-8 text, found other bytes").at(
            self.source,
            Some(self.line),
            Some(column),
        )
    }

    fn error(&self, column: &str, message: String, help: &str) -> Error {
        Error::data(self.source, message).at(self.source, Some(self.line), Some(column)).with_help(help)
    }

    /// Whether the record looks like data and not like names.
    fn looks_like_data(&self) -> bool {
        let mut numbers = 0;
        for index in 0..self.record.len() {
            match self.cell(index).map(Cell::of) {
                Ok(Cell::Number(_)) => numbers += 1,
                Ok(Cell::Missing) => {}
                _ => return false,
            }
        }
        numbers > 0
    }
}

/// What a trimmed cell says.
#[derive(Debug, PartialEq)]
enum Cell<'a> {
    Missing,
    Number(f64),
    /// `nan` or `inf` in any spelling.
    NotFinite,
    Text(&'a str),
}

impl<'a> Cell<'a> {
    fn of(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        // Up to 15 digits are exact in f64; most cells of most files are such.
        if (1..=15).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit) {
            return Cell::Number(
                bytes.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0')) as f64
            );
        }
        match text {
            "" | "NA" | "N/A" | "null" | "?" => return Cell::Missing,
            _ => {}
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Cell::Number(value),
            // 1e999 is a number that does not fit: it counts as text, so a numeric column refuses it.
            Ok(_) if !bytes.iter().any(u8::is_ascii_digit) => Cell::NotFinite,
            Ok(_) | Err(_) => Cell::Text(text),
        }
    }
}

/// A column while it is read.
enum Builder {
    /// Numbers only: the type is given.
    Number(Vec<f64>),
    /// Texts only: the type is given, or found by a first reading.
    Text(TextsBuilder),
    /// The type is still open. Texts are counted, not kept.
    Open { values: Vec<f64>, filled: usize, numbers: usize, first_text: Option<(u64, String)> },
    /// A column that is not wanted in this reading.
    Skip,
}

impl Builder {
    fn open() -> Self {
        Builder::Open { values: Vec::new(), filled: 0, numbers: 0, first_text: None }
    }

    fn given(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::Number => Builder::Number(Vec::new()),
            ColumnKind::Text => Builder::Text(TextsBuilder::default()),
        }
    }

    fn push(&mut self, records: &Records<'_>, name: &str, index: usize) -> Result<()> {
        if matches!(self, Builder::Skip) {
            return Ok(());
        }
        let text = records.cell(index).map_err(|_| records.not_utf8(name.to_owned()))?;
        let cell = Cell::of(text);
        if cell == Cell::NotFinite {
            let message = format!("expected a finite number, a text or nothing, found {}", quote(text));
            return Err(records.error(name, message, NOT_FINITE_HELP));
        }
        match self {
            Builder::Number(values) => values.push(match cell {
                Cell::Missing => f64::NAN,
                Cell::Number(value) => value,
                Cell::Text(_) | Cell::NotFinite => {
                    let message = format!("expected a number, found {}", quote(text));
                    let help = "the model was trained on numbers in this column";
                    return Err(records.error(name, message, help));
                }
            }),
            Builder::Text(texts) => texts.push((cell != Cell::Missing).then_some(text)),
            Builder::Open { values, filled, numbers, first_text } => {
                *filled += usize::from(cell != Cell::Missing);
                *numbers += usize::from(matches!(cell, Cell::Number(_)));
                values.push(if let Cell::Number(value) = cell { value } else { f64::NAN });
                if let (Cell::Text(text), None) = (cell, &first_text) {
                    *first_text = Some((records.line, quote(text)));
                }
            }
            Builder::Skip => {}
        }
        Ok(())
    }

    /// The column as far as one reading tells: nothing where a second one must collect texts.
    fn finish(self, source: &Path, name: &str) -> Result<Option<Column>> {
        Ok(match self {
            Builder::Number(values) => Some(Column::Number(values)),
            Builder::Text(texts) => Some(Column::Text(texts.finish())),
            Builder::Open { values, filled, numbers, first_text } if 2 * numbers >= filled => {
                match first_text {
                    None => Some(Column::Number(values)),
                    Some((line, text)) => {
                        return Err(Error::data(source, format!("expected a number, found {text}"))
                            .at(source, Some(line), Some(name))
                            .with_help(NUMERIC_HELP));
                    }
                }
            }
            Builder::Open { .. } | Builder::Skip => None,
        })
    }
}

/// Reads all records that are left, and the current one first if `current` says so.
fn fill(
    records: &mut Records<'_>,
    names: &[String],
    builders: &mut [Builder],
    limit: Option<usize>,
    current: bool,
) -> Result<(usize, Lines)> {
    let mut lines = Lines::None;
    let mut rows = 0;
    let mut have = current;
    while limit.is_none_or(|limit| rows < limit) {
        if !have && !records.advance()? {
            break;
        }
        have = false;
        if records.record.len() != builders.len() {
            let message = format!(
                "expected {} cells as in the first line, found {}",
                builders.len(),
                records.record.len()
            );
            return Err(Error::data(records.source, message)
                .at(records.source, Some(records.line), None::<String>)
                .with_help("a text with a comma or a quotation mark in it must stand in quotation marks"));
        }
        for (index, builder) in builders.iter_mut().enumerate() {
            builder.push(records, &names[index], index)?;
        }
        lines.push(rows, records.line);
        rows += 1;
    }
    if rows == 0 && limit != Some(0) {
        return Err(Error::data(records.source, "there are no rows under the header"));
    }
    Ok((rows, lines))
}

fn read_header(records: &mut Records<'_>) -> Result<Vec<String>> {
    if !records.advance()? {
        return Err(Error::data(records.source, "the file is empty: expected a header and rows of data"));
    }
    let names = records.names()?;
    if let [name] = names.as_slice()
        && let Some(separator) = [';', '\t'].into_iter().find(|&separator| name.contains(separator))
    {
        let message = format!("the header holds no comma but {separator:?}");
        return Err(Error::data(records.source, message).with_help("columns are separated by commas"));
    }
    Ok(names)
}

fn read_found(input: &Input<'_>, limit: Option<usize>) -> Result<Table> {
    let mut records = input.open()?;
    let names = read_header(&mut records)?;
    if records.looks_like_data() {
        return Err(Error::data(
            input.source,
            "expected a header with the columns' names, found a row of numbers",
        )
        .at(input.source, Some(records.line), None::<String>));
    }
    check_names(input.source, &names)?;
    let mut builders: Vec<Builder> = names.iter().map(|_| Builder::open()).collect();
    let (rows, lines) = fill(&mut records, &names, &mut builders, limit, false)?;
    let columns: Vec<Option<Column>> = builders
        .into_iter()
        .zip(&names)
        .map(|(builder, name)| builder.finish(input.source, name))
        .collect::<Result<_>>()?;

    let columns = if columns.iter().all(Option::is_some) {
        columns
    } else {
        let mut builders: Vec<Builder> = columns
            .iter()
            .map(|column| if column.is_some() { Builder::Skip } else { Builder::given(ColumnKind::Text) })
            .collect();
        let mut records = input.open()?;
        read_header(&mut records)?;
        let (again, _) = fill(&mut records, &names, &mut builders, limit, false)?;
        if again != rows {
            return Err(Error::data(input.source, "the file changed while it was read"));
        }
        let texts =
            builders.into_iter().zip(&names).map(|(builder, name)| builder.finish(input.source, name));
        columns.into_iter().zip(texts).map(|(number, text)| Ok(number.or(text?))).collect::<Result<_>>()?
    };
    let columns: Option<Vec<Column>> = columns.into_iter().collect();
    Table::new(input.source, names, columns.ok_or_else(|| Error::internal("a column is neither"))?, lines)
}

fn read_given(input: &Input<'_>, schema: &Schema, target: TargetUse) -> Result<Matched> {
    let mut records = input.open()?;
    let names = read_header(&mut records)?;
    let headerless = records.looks_like_data() && !schema.has_all_inputs(&names);
    let Matching { columns: places, note } = if headerless {
        schema.match_positions(input.source, names.len(), target)?
    } else {
        check_names(input.source, &names)?;
        schema.match_names(input.source, &names, target)?
    };

    let wanted = schema.columns(places.len());
    let mut builders: Vec<Builder> = names.iter().map(|_| Builder::Skip).collect();
    // Errors speak of the file's own names where it has any.
    let mut shown = names;
    for ((name, kind), &place) in wanted.iter().zip(&places) {
        builders[place] = Builder::given(*kind);
        if headerless {
            shown[place] = (*name).to_owned();
        }
    }
    let (_, lines) = fill(&mut records, &shown, &mut builders, None, headerless)?;
    let mut columns: Vec<Option<Column>> = builders
        .into_iter()
        .zip(&shown)
        .map(|(builder, name)| builder.finish(input.source, name))
        .collect::<Result<_>>()?;
    let columns: Option<Vec<Column>> = places.iter().map(|&place| columns[place].take()).collect();
    let columns = columns.ok_or_else(|| Error::internal("a column was matched twice"))?;
    let names = wanted.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(Matched { table: Table::new(input.source, names, columns, lines)?, note })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_missing_numbers_or_texts() {
        for missing in ["", "NA", "N/A", "null", "?"] {
            assert_eq!(Cell::of(missing), Cell::Missing);
        }
        for (text, value) in [
            ("0", 0.0),
            ("007", 7.0),
            ("-1.5", -1.5),
            ("+3", 3.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e-3", 0.001),
            ("999999999999999", 999_999_999_999_999.0),
            ("12345678901234567890", 12_345_678_901_234_567_890.0),
        ] {
            assert_eq!(Cell::of(text), Cell::Number(value));
        }
        for text in ["nan", "NaN", "inf", "-Inf", "+infinity", "-nan"] {
            assert_eq!(Cell::of(text), Cell::NotFinite);
        }
        for text in ["1,000", "1_000", "0x10", "1 2", "abc", "1e999", "none", "1.2.3", "-", "٣"] {
            assert_eq!(Cell::of(text), Cell::Text(text));
        }
    }
}
