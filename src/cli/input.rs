//! The tables that commands read: the built-in digits, CSV files and npy matrices, by the text that names them.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::data::{DIGITS_TARGET, Matched, Schema, Table, TargetUse, digits};
use crate::io::npy;
use crate::{Error, Result};

/// The name of the target that comes in a `Y.npy`.
const NPY_TARGET: &str = "y";

/// Where a table comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// `digits`: compiled in.
    Digits,
    /// A CSV file, plain or gzipped.
    Csv(PathBuf),
    /// A matrix, with the targets in a second file or in a column.
    Npy { x: PathBuf, y: Option<PathBuf> },
}

impl Source {
    /// Reads `digits`, `X.npy,Y.npy`, `X.npy`, `-` (stdin) or the name of a CSV file. Opens nothing.
    pub(super) fn parse(text: &str) -> Result<Source> {
        let npy = |name: &str| name.ends_with(".npy").then(|| PathBuf::from(name));
        if let Some((x, y)) = text.split_once(',')
            && let (Some(x), Some(y)) = (npy(x), npy(y))
        {
            return Ok(Source::Npy { x, y: Some(y) });
        }
        match text {
            "" => Err(Error::argument("expected digits, a CSV file or X.npy,Y.npy; found nothing")),
            "digits" => Ok(Source::Digits),
            "-" => Ok(Source::Csv("/dev/stdin".into())),
            _ => Ok(npy(text).map_or_else(|| Source::Csv(text.into()), |x| Source::Npy { x, y: None })),
        }
    }

    /// The files it is in.
    pub(super) fn files(&self) -> Vec<&Path> {
        match self {
            Source::Digits => Vec::new(),
            Source::Csv(file) => vec![file],
            Source::Npy { x, y } => {
                [Some(x), y.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect()
            }
        }
    }

    /// A short name for it: the file's, without folder and ending.
    pub(super) fn stem(&self) -> String {
        let Some(file) = self.files().first().copied() else { return "digits".to_owned() };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        [".csv", ".npy"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    }

    /// The target where none is named; `None` for the last column.
    pub(super) fn default_target(&self) -> Option<&'static str> {
        match self {
            Source::Digits => Some(DIGITS_TARGET),
            Source::Npy { y: Some(_), .. } => Some(NPY_TARGET),
            Source::Csv(_) | Source::Npy { .. } => None,
        }
    }

    /// Reads the table, finding the types of its columns; of a CSV file only the first `limit` rows.
    pub(super) fn read(&self, limit: Option<usize>) -> Result<Table> {
        match self {
            Source::Digits => digits(),
            Source::Csv(file) => Table::read_csv(file, limit),
            Source::Npy { x, y } => read_npy(x, y.as_deref(), NPY_TARGET),
        }
    }

    /// Reads the table for a model.
    pub(super) fn read_as(&self, schema: &Schema, target: TargetUse) -> Result<Matched> {
        match self {
            Source::Digits => schema.match_table(digits()?, target),
            Source::Csv(file) => Table::read_csv_as(file, schema, target),
            Source::Npy { x, y } => {
                let name = schema.target.as_ref().map_or(NPY_TARGET, |(name, _)| name);
                schema.match_table(read_npy(x, y.as_deref(), name)?, target)
            }
        }
    }
}

fn read_npy(x: &Path, y: Option<&Path>, target: &str) -> Result<Table> {
    let table = Table::from_array(x, &npy::read(x)?)?;
    let Some(y) = y else { return Ok(table) };
    table.with_array(y, target, &npy::read(y)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_sources() {
        let stem = |text: &str| Source::parse(text).unwrap().stem();
        assert_eq!(Source::parse("digits").unwrap(), Source::Digits);
        assert_eq!(Source::parse("./digits").unwrap(), Source::Csv("./digits".into()));
        assert_eq!(
            Source::parse("a.npy,b.npy").unwrap(),
            Source::Npy { x: "a.npy".into(), y: Some("b.npy".into()) }
        );
        assert_eq!(Source::parse("a,b.csv").unwrap(), Source::Csv("a,b.csv".into()));
        assert_eq!(
            (stem("x/wine.csv.gz"), stem("wine"), stem("a/X.npy,Y.npy")),
            ("wine".into(), "wine".into(), "X".into())
        );
        assert!(Source::parse("").is_err());
    }
}
