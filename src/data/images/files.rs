//! Whole data sets of pictures: IDX folders, npz archives, and whatever a path names.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{ImageOptions, ImageSet, Images};
use crate::data::table::Table;
use crate::dtype::DType;
use crate::io::npz::Npz;
use crate::io::{HostTensor, idx, npy};
use crate::{Error, Result};

/// Where the Debian package `dataset-fashion-mnist` puts Fashion-MNIST.
pub const FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";

/// The names of the two parts in IDX folders.
const TRAIN: &str = "train";
const TEST: &str = "t10k";

/// Whether a folder has IDX files under MNIST's names, for one of its parts at least.
pub fn is_idx_folder(dir: impl AsRef<Path>) -> bool {
    [TRAIN, TEST].iter().any(|part| find(dir.as_ref(), part, "images").is_some())
}

/// The file of a part's images or labels, if it is there: `train-images-idx3-ubyte`, with a dot for the second `-` as some
/// write it, with `.gz` or without.
fn find(dir: &Path, part: &str, what: &str) -> Option<PathBuf> {
    let ranks = if what == "images" { &[3, 4][..] } else { &[1] };
    ranks
        .iter()
        .flat_map(|rank| ["-", "."].map(|dot| format!("{part}-{what}{dot}idx{rank}-ubyte")))
        .flat_map(|name| [dir.join(&name), dir.join(name + ".gz")])
        .find(|file| file.exists())
}

/// Whether an IDX folder has a test part, or half of one.
fn has_test(dir: &Path) -> bool {
    ["images", "labels"].iter().any(|what| find(dir, TEST, what).is_some())
}

fn idx_part(dir: &Path, part: &str) -> Result<Images> {
    let file = |what: &str, rank: u32| {
        find(dir, part, what).ok_or_else(|| {
            Error::data(dir, format!("there is no {part}-{what}-idx{rank}-ubyte or the same with .gz"))
        })
    };
    Images::read_idx(file("images", 3)?, Some(&file("labels", 1)?))
}

impl ImageSet {
    /// Reads a folder of IDX files under MNIST's names, plain or gzipped: `train-images-idx3-ubyte`,
    /// `train-labels-idx1-ubyte`, and for the test part, if there is one, the same with `t10k`.
    ///
    /// # Errors
    /// Kind `Data`: a file is missing or cannot be read; as many labels as images are needed.
    pub fn read_idx(dir: impl AsRef<Path>) -> Result<ImageSet> {
        let dir = dir.as_ref();
        let train = idx_part(dir, TRAIN)?;
        let test = if has_test(dir) { Some(idx_part(dir, TEST)?) } else { None };
        Ok(ImageSet { train, test })
    }

    /// Fashion-MNIST from the folder where its Debian package puts it.
    ///
    /// # Errors
    /// Kind `Data`: it is not there, with what to do about it; as [`ImageSet::read_idx`].
    pub fn fashion_mnist() -> Result<ImageSet> {
        check_fashion_mnist()?;
        ImageSet::read_idx(FASHION_MNIST)
    }

    /// Reads a folder: IDX files if it has some, else pictures in a folder for each class.
    ///
    /// # Errors
    /// As [`ImageSet::read_idx`] and [`Images::read_classes`]; kind `Argument`: pictures in IDX files are to be resized or
    /// converted.
    pub fn read_folder(dir: impl AsRef<Path>, options: &ImageOptions) -> Result<ImageSet> {
        let dir = dir.as_ref();
        if !is_idx_folder(dir) {
            return Ok(ImageSet { train: Images::read_classes(dir, options)?, test: None });
        }
        options.refuse_conversion(dir)?;
        let set = ImageSet::read_idx(dir)?;
        Ok(ImageSet { train: set.train.truncated(options.limit.unwrap_or(usize::MAX)), ..set })
    }
}

fn check_fashion_mnist() -> Result<()> {
    if is_idx_folder(FASHION_MNIST) {
        return Ok(());
    }
    Err(Error::data(FASHION_MNIST, "Fashion-MNIST is not there").with_help(
        "install it (apt-get install dataset-fashion-mnist), or give the folder that holds its four IDX files",
    ))
}

impl ImageOptions {
    /// An error if pictures that come from arrays are to be resized or converted.
    pub fn refuse_conversion(&self, source: &Path) -> Result<()> {
        if self.size.is_none() && self.channels.is_none() {
            return Ok(());
        }
        let message = "an image size and a number of channels can be chosen for picture files only";
        Err(Error::argument(format!("{}: {message}", source.display())))
    }
}

impl Images {
    /// Reads images `[N, H, W]` or `[N, C, H, W]` and their labels `[N]` from IDX files, plain or gzipped.
    ///
    /// # Errors
    /// Kind `Data`: as [`idx::read`], [`Images::from_array`] and [`Images::with_labels`].
    pub fn read_idx(images: impl AsRef<Path>, labels: Option<&Path>) -> Result<Images> {
        let images = images.as_ref();
        let pictures = Images::from_array(images, idx::read(images)?)?;
        match labels {
            None => Ok(pictures),
            Some(labels) => pictures.with_label_array(labels, &idx::read(labels)?),
        }
    }

    /// Reads the part of Fashion-MNIST that models are measured on.
    ///
    /// # Errors
    /// As [`ImageSet::fashion_mnist`].
    pub fn fashion_mnist_test() -> Result<Images> {
        check_fashion_mnist()?;
        Images::measured_in(Path::new(FASHION_MNIST))
    }

    /// The part of an IDX folder that a model is measured on; the other one need not be there, and is not read.
    fn measured_in(dir: &Path) -> Result<Images> {
        idx_part(dir, if has_test(dir) { TEST } else { TRAIN })
    }

    /// Reads the pictures that `path` names, whatever they are in: a folder of IDX files, an npz archive (of both the test
    /// part, where there is one), an npy array, an IDX file, a picture, a folder of pictures, or one with a folder for
    /// each class. What a file is, its first bytes say. Labels come with what has some.
    ///
    /// # Errors
    /// Kind `Data`: it is none of these, or a bad one.
    pub fn open(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Images> {
        let path = path.as_ref();
        if path.is_dir() {
            if is_idx_folder(path) {
                return Images::measured_in(path);
            }
            let pictures = Images::read_pictures(&[path], options);
            // One without pictures may have classes, and says best itself what it lacks.
            return if pictures.is_ok() || has_pictures(path) {
                pictures
            } else {
                Images::read_classes(path, options)
            };
        }
        let start = start_of(path)?;
        match start[..] {
            [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => Images::read_pictures(&[path], options),
            [b'P', b'K', ..] => match Arrays::measured(path, true)? {
                Arrays::Images(images) => Ok(images),
                Arrays::Table(_) => Err(other_kind(path, true)),
            },
            [0x93, b'N', b'U', b'M', ..] => Images::from_array(path, npy::read(path)?),
            [0, 0, ..] | [0x1f, 0x8b, ..] => Images::read_idx(path, None),
            _ => {
                Err(Error::data(path, "expected a PNG or JPEG picture, an IDX, npy or npz file, or a folder"))
            }
        }
    }
}

fn has_pictures(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|file| super::is_picture(&file) && !file.is_dir())
}

/// The first bytes of a file.
fn start_of(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut start = Vec::new();
    file.take(8).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
    Ok(start)
}

/// What arrays hold, those of an npz archive or of a pair of npy files.
#[derive(Clone, Debug, PartialEq)]
pub enum ArraySet {
    /// Numbers: a matrix, or an array of higher rank whose rows keep their shape.
    Tables {
        /// To train on; the last column `y` is the target where there is one.
        train: Table,
        /// The test part, where there is one.
        test: Option<Table>,
    },
    /// Pictures: whole numbers from 0 to 255 in an array of rank 3 or 4.
    Images(ImageSet),
}

/// Arrays of one part.
enum Arrays {
    Table(Table),
    Images(Images),
}

impl ArraySet {
    /// Reads an npy array and the targets of its rows, if they have a file of their own.
    ///
    /// # Errors
    /// Kind `Data`: as [`npy::read`], [`Table::from_array`] and [`Images::from_array`]; as many targets as rows are needed.
    pub fn read_npy(x: impl AsRef<Path>, y: Option<&Path>) -> Result<ArraySet> {
        let x = x.as_ref();
        let array = npy::read(x)?;
        let targets = match y {
            Some(y) => Some((y, npy::read(y)?)),
            None => None,
        };
        let targets = targets.as_ref().map(|(place, targets)| (*place, targets));
        Ok(match Arrays::of(x, array, targets)? {
            Arrays::Table(train) => ArraySet::Tables { train, test: None },
            Arrays::Images(train) => ArraySet::Images(ImageSet { train, test: None }),
        })
    }

    /// Reads of an npz archive the part that a model is measured on, the test part if there is one, as a table; the other
    /// one need not be there, and is not read.
    ///
    /// # Errors
    /// As [`ArraySet::read_npz`]; kind `Data`: it holds pictures.
    pub fn measured_table(path: impl AsRef<Path>) -> Result<Table> {
        let path = path.as_ref();
        match Arrays::measured(path, false)? {
            Arrays::Table(table) => Ok(table),
            Arrays::Images(_) => Err(other_kind(path, false)),
        }
    }

    /// Reads an npz archive with the arrays `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`, in small or large
    /// letters. Without a `y` there are no targets; without an `x_test` there is no test part.
    ///
    /// # Errors
    /// Kind `Data`: as [`Npz`]; no such arrays; as many targets as rows are needed; the test part is of another kind.
    pub fn read_npz(path: impl AsRef<Path>) -> Result<ArraySet> {
        let path = path.as_ref();
        let mut npz = Npz::open(path)?;
        let train = Names::train(&npz)?.read(&mut npz)?;
        let test = Names::test(&npz).map(|names| names.read(&mut npz)).transpose()?;
        match (train, test) {
            (Arrays::Table(train), None) => Ok(ArraySet::Tables { train, test: None }),
            (Arrays::Table(train), Some(Arrays::Table(test))) => {
                Ok(ArraySet::Tables { train, test: Some(test) })
            }
            (Arrays::Images(train), None) => Ok(ArraySet::Images(ImageSet { train, test: None })),
            (Arrays::Images(train), Some(Arrays::Images(test))) => {
                Ok(ArraySet::Images(ImageSet { train, test: Some(test) }))
            }
            (Arrays::Table(_), Some(Arrays::Images(_))) | (Arrays::Images(_), Some(Arrays::Table(_))) => {
                Err(Error::data(path, "of training part and test part, one holds pictures and one does not"))
            }
        }
    }
}

/// The names of a part's arrays.
struct Names {
    x: String,
    y: Option<String>,
}

impl Names {
    fn find(npz: &Npz<'_>, wanted: &str) -> Option<String> {
        npz.names().find(|name| name.eq_ignore_ascii_case(wanted)).map(str::to_owned)
    }

    fn train(npz: &Npz<'_>) -> Result<Names> {
        let suffix = if Names::find(npz, "x_train").is_some() { "_train" } else { "" };
        let Some(x) = Names::find(npz, &format!("x{suffix}")) else {
            let names: Vec<&str> = npz.names().collect();
            return Err(Error::data(npz.path(), "expected arrays x and y, or x_train and y_train")
                .with_help(format!("the arrays are: {}", names.join(", "))));
        };
        Ok(Names { x, y: Names::find(npz, &format!("y{suffix}")) })
    }

    fn test(npz: &Npz<'_>) -> Option<Names> {
        Some(Names { x: Names::find(npz, "x_test")?, y: Names::find(npz, "y_test") })
    }

    fn read(&self, npz: &mut Npz<'_>) -> Result<Arrays> {
        let place = npz.place(&self.x);
        let array = npz.read(&self.x)?;
        let targets = match &self.y {
            Some(y) => Some((npz.place(y), npz.read(y)?)),
            None => None,
        };
        Arrays::of(&place, array, targets.as_ref().map(|(place, targets)| (place.as_path(), targets)))
    }
}

impl Arrays {
    /// The part of an archive that a model is measured on: the test part if there is one; the other one is not read. Where
    /// the header alone says that it is of another kind than is wanted, nothing is.
    fn measured(path: &Path, wanted_pictures: bool) -> Result<Arrays> {
        let mut npz = Npz::open(path)?;
        let names = match Names::test(&npz) {
            Some(names) => names,
            None => Names::train(&npz)?,
        };
        let (dtype, shape) = npz.header(&names.x)?;
        if seem_pictures(dtype, shape.len()) == Some(!wanted_pictures) {
            return Err(other_kind(path, wanted_pictures));
        }
        names.read(&mut npz)
    }

    fn of(place: &Path, array: HostTensor<'_>, targets: Option<(&Path, &HostTensor<'_>)>) -> Result<Arrays> {
        if are_pictures(&array)? {
            let images = Images::from_array(place, array)?;
            return Ok(Arrays::Images(match targets {
                Some((place, targets)) => images.with_label_array(place, targets)?,
                None => images,
            }));
        }
        let table = Table::from_array(place, &array)?;
        Ok(Arrays::Table(match targets {
            Some((place, targets)) => table.with_array(place, "y", targets)?,
            None => table,
        }))
    }
}

/// Whether an array holds pictures, by its rank, element type and values.
fn are_pictures(array: &HostTensor<'_>) -> Result<bool> {
    if let Some(told) = seem_pictures(array.dtype(), array.shape().len()) {
        return Ok(told);
    }
    Ok(match array.dtype() {
        DType::I32 => array.to_vec::<i32>()?.iter().all(|value| (0..=255).contains(value)),
        DType::I64 => array.to_vec::<i64>()?.iter().all(|value| (0..=255).contains(value)),
        _ => false,
    })
}

/// Whether an array holds pictures, where its rank and its element type tell.
fn seem_pictures(dtype: DType, rank: usize) -> Option<bool> {
    match dtype {
        _ if !matches!(rank, 3 | 4) => Some(false),
        DType::U8 => Some(true),
        DType::I32 | DType::I64 => None,
        _ => Some(false),
    }
}

fn other_kind(path: &Path, wanted_pictures: bool) -> Error {
    Error::data(
        path,
        match wanted_pictures {
            true => "expected pictures (whole numbers from 0 to 255), found other arrays",
            false => "expected a table as in training, found pictures",
        },
    )
}
