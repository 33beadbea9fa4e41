//! The data that commands read: the built-in digits, CSV files, npy and npz arrays and pictures, by the text that names them.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::data::{
    ArraySet, DIGITS_TARGET, ImageOptions, ImageSet, Images, Matched, Schema, Table, TargetUse, digits,
};
use crate::io::npy;
use crate::{Error, Result};

/// The name of the target that comes in a `Y.npy`.
const NPY_TARGET: &str = "y";

/// Where data comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// `digits`: compiled in.
    Digits,
    /// `fashion-mnist`: where its Debian package puts it.
    FashionMnist,
    /// A CSV file, plain or gzipped; or what is none of the others.
    Csv(PathBuf),
    /// A matrix, with the targets in a second file or in a column.
    Npy { x: PathBuf, y: Option<PathBuf> },
    /// An archive of arrays.
    Npz(PathBuf),
    /// A folder of IDX files, or with a folder of pictures for each class.
    Folder(PathBuf),
}

/// Data and, where the source sets one aside, its test part.
pub(super) enum Loaded {
    Table(Table, Option<Table>),
    Images(ImageSet),
}

impl Loaded {
    fn of(arrays: ArraySet, source: &Path, options: &ImageOptions) -> Result<Loaded> {
        match arrays {
            ArraySet::Tables { train, test } => Ok(Loaded::Table(train, test)),
            ArraySet::Images(set) => {
                options.refuse_conversion(source)?;
                Ok(Loaded::Images(set))
            }
        }
    }
}

impl Source {
    /// Reads `digits`, `fashion-mnist`, `X.npy,Y.npy`, `X.npy`, `F.npz`, `-` (stdin) or the name of a CSV file or of a
    /// folder. Opens nothing.
    pub(super) fn parse(text: &str) -> Result<Source> {
        let npy = |name: &str| name.ends_with(".npy").then(|| PathBuf::from(name));
        if let Some((x, y)) = text.split_once(',')
            && let (Some(x), Some(y)) = (npy(x), npy(y))
        {
            return Ok(Source::Npy { x, y: Some(y) });
        }
        match text {
            "" => Err(Error::argument("expected digits, a CSV file, X.npy,Y.npy or a folder; found nothing")),
            "digits" => Ok(Source::Digits),
            "fashion-mnist" => Ok(Source::FashionMnist),
            "-" => Ok(Source::Csv("/dev/stdin".into())),
            _ if text.ends_with(".npz") => Ok(Source::Npz(text.into())),
            _ if Path::new(text).is_dir() => Ok(Source::Folder(text.into())),
            _ => Ok(npy(text).map_or_else(|| Source::Csv(text.into()), |x| Source::Npy { x, y: None })),
        }
    }

    /// The files it is in.
    pub(super) fn files(&self) -> Vec<&Path> {
        match self {
            Source::Digits | Source::FashionMnist => Vec::new(),
            Source::Csv(file) | Source::Npz(file) | Source::Folder(file) => vec![file],
            Source::Npy { x, y } => {
                [Some(x), y.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect()
            }
        }
    }

    /// A short name for it: the file's, without folder and ending.
    pub(super) fn stem(&self) -> String {
        let file = match self {
            Source::Digits => return "digits".to_owned(),
            Source::FashionMnist => return "fashion-mnist".to_owned(),
            // `.` and `..` have no name of their own.
            Source::Folder(dir) if dir.file_name().is_none() => &dir.canonicalize().unwrap_or_default(),
            Source::Csv(file) | Source::Npz(file) | Source::Folder(file) | Source::Npy { x: file, .. } => {
                file
            }
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        [".csv", ".npy", ".npz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    }

    /// The target where none is named; `None` for the last column.
    pub(super) fn default_target(&self) -> Option<&'static str> {
        match self {
            Source::Digits => Some(DIGITS_TARGET),
            Source::Npy { y: Some(_), .. } => Some(NPY_TARGET),
            _ => None,
        }
    }

    /// Reads the data, finding the types of its columns; of a CSV file or of picture files only the first ones that
    /// `options` limit it to.
    pub(super) fn read(&self, options: &ImageOptions) -> Result<Loaded> {
        let table = match self {
            Source::Npz(file) => return Loaded::of(ArraySet::read_npz(file)?, file, options),
            Source::Npy { x, y } => return Loaded::of(ArraySet::read_npy(x, y.as_deref())?, x, options),
            Source::FashionMnist => return Ok(Loaded::Images(ImageSet::fashion_mnist()?)),
            Source::Folder(dir) => return Ok(Loaded::Images(ImageSet::read_folder(dir, options)?)),
            Source::Digits => digits()?,
            Source::Csv(file) => {
                if let Some(found) = Found::in_file(file) {
                    let error = Error::data(file, format!("expected a CSV file, found {}", found.what()));
                    return Err(error.with_help(found.help_to_train()));
                }
                Table::read_csv(file, options.limit)?
            }
        };
        Ok(Loaded::Table(table, None))
    }

    /// Reads the table for a model; of data that sets a test part aside, that part.
    pub(super) fn read_as(&self, schema: &Schema, target: TargetUse) -> Result<Matched> {
        let no_table =
            |source: &Path| Err(Error::data(source, "expected a table as in training, found pictures"));
        match self {
            Source::Digits => schema.match_table(digits()?, target),
            Source::Csv(file) => match Found::in_file(file) {
                Some(found) => {
                    let message = format!("expected a table as in training, found {}", found.what());
                    Err(Error::data(file, message).with_help(found.help_with_tables()))
                }
                None => Table::read_csv_as(file, schema, target),
            },
            Source::Npy { x, y } => {
                let name = schema.target.as_ref().map_or(NPY_TARGET, |(name, _)| name);
                schema.match_table(read_npy(x, y.as_deref(), name)?, target)
            }
            Source::Npz(file) => schema.match_table(ArraySet::measured_table(file)?, target),
            Source::FashionMnist => no_table(Path::new("fashion-mnist")),
            Source::Folder(dir) => no_table(dir),
        }
    }

    /// Reads the pictures for a model; of data that sets a test part aside, that part.
    pub(super) fn read_images(&self, options: &ImageOptions) -> Result<Images> {
        match self {
            Source::Digits => {
                Err(Error::data("digits", "expected pictures as in training, found the built-in table"))
            }
            Source::FashionMnist => Images::fashion_mnist_test(),
            Source::Csv(path) | Source::Npz(path) | Source::Folder(path) => Images::open(path, options),
            Source::Npy { x, y } => {
                let images = Images::from_array(x, npy::read(x)?)?;
                match y {
                    Some(y) => images.with_label_array(y, &npy::read(y)?),
                    None => Ok(images),
                }
            }
        }
    }
}

/// What a file is that was taken for CSV and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Png,
    Jpeg,
    Idx,
    Npy,
    Zip,
}

impl Found {
    /// By the first bytes of a file, unzipped ones if it is gzipped. What cannot be read is for its reader to tell.
    fn in_file(path: &Path) -> Option<Found> {
        // From a pipe, bytes can be taken only once.
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let start = |reader: &mut dyn Read| {
            let mut bytes = Vec::new();
            reader.take(8).read_to_end(&mut bytes).ok().map(|_| bytes)
        };
        let bytes = start(&mut File::open(path).ok()?)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Found::of(&start(&mut MultiGzDecoder::new(File::open(path).ok()?))?);
        }
        Found::of(&bytes)
    }

    fn of(start: &[u8]) -> Option<Found> {
        match start {
            [0x89, b'P', b'N', b'G', ..] => Some(Found::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Found::Jpeg),
            [0x93, b'N', b'U', b'M', ..] => Some(Found::Npy),
            [b'P', b'K', 3, 4, ..] => Some(Found::Zip),
            [0, 0, 8..=14, 1..=8, ..] => Some(Found::Idx),
            _ => None,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Found::Png => "a PNG picture",
            Found::Jpeg => "a JPEG picture",
            Found::Idx => "an IDX file",
            Found::Npy => "a NumPy array",
            Found::Zip => "a zip archive",
        }
    }

    fn help_to_train(self) -> &'static str {
        match self {
            Found::Png | Found::Jpeg => {
                "give the folder that has a folder of pictures for each class: DIR/CLASS/1.png"
            }
            Found::Idx => {
                "give its folder, which has images and labels: train-images-idx3-ubyte, train-labels-idx1-ubyte"
            }
            Found::Npy | Found::Zip => self.help_with_names(),
        }
    }

    fn help_with_tables(self) -> &'static str {
        match self {
            Found::Png | Found::Jpeg | Found::Idx => "this model was trained on a table, not on pictures",
            Found::Npy | Found::Zip => self.help_with_names(),
        }
    }

    fn help_with_names(self) -> &'static str {
        match self {
            Found::Zip => "an archive of arrays needs a name that ends in .npz; unpack any other",
            _ => "an array needs a name that ends in .npy, and must not be gzipped",
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
        assert_eq!(Source::parse("fashion-mnist").unwrap(), Source::FashionMnist);
        assert_eq!(Source::parse("a.npz").unwrap(), Source::Npz("a.npz".into()));
        assert_eq!(Source::parse("src").unwrap(), Source::Folder("src".into()));
        assert_eq!(
            (stem("."), stem("x/a.npz")),
            (Source::parse(env!("CARGO_MANIFEST_DIR")).unwrap().stem(), "a".into())
        );
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
