//! Pictures in files of their own: PNG and JPEG, a folder for each class.
//!
//! The format is what the first bytes say. Files are decoded on the threads of the current pool; which error is reported
//! does not depend on them. 16 bits a channel become 8, and an opacity is left out.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageReader, Limits};

use super::Images;
use crate::cpu::par;
use crate::data::pixels::{check_shape, described};
use crate::{Error, ErrorKind, Result};

/// What a file's name ends in, after the dot and in small letters.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// What is made of picture files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Resize all to this height and width (bilinear, with all pixels that a smaller picture loses averaged in). Without
    /// it all must have the same size.
    pub size: Option<[usize; 2]>,
    /// Convert all to this number of channels: 1 (grey) or 3. Without it all must have the same number.
    pub channels: Option<usize>,
    /// Use only the first pictures, this many: the first one of each class, the second one of each class and so on.
    pub limit: Option<usize>,
}

impl ImageOptions {
    /// Refuses sizes of 0, other numbers of channels than 1 and 3, and a limit of 0 (kind `Argument`).
    pub fn check(&self) -> Result<()> {
        if let Some([height, width]) = self.size {
            check_shape([3, height, width]).map_err(Error::argument)?;
            if u32::try_from(height).is_err() || u32::try_from(width).is_err() {
                return Err(Error::argument(format!("pictures of {height}x{width} pixels are too large")));
            }
        }
        if let Some(channels) = self.channels.filter(|channels| !matches!(channels, 1 | 3)) {
            return Err(Error::argument(format!("expected 1 or 3 channels, found {channels}")));
        }
        if self.limit == Some(0) {
            return Err(Error::argument("a limit of 0 pictures leaves nothing"));
        }
        Ok(())
    }
}

/// Whether a file has the name of a picture: `.png`, `.jpg` or `.jpeg`.
pub fn is_picture(file: &Path) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

impl Images {
    /// Reads `dir/CLASS/*.png` (also `.jpg` and `.jpeg`; other files are left out), the folders' names as labels: as
    /// numbers if all are numbers. The order is that of the names: the first picture of each class, then the second one
    /// of each, and so on.
    ///
    /// # Errors
    /// Kind `Data`, naming file or folder: no class folders, a class without pictures, a file that is no whole picture,
    /// one of another size or number of channels than the first. Kind `Argument`: bad options.
    pub fn read_classes(dir: impl AsRef<Path>, options: &ImageOptions) -> Result<Images> {
        options.check()?;
        let dir = dir.as_ref();
        let (folders, loose) = list(dir)?;
        if folders.is_empty() {
            let found = if loose.is_empty() { "nothing of either" } else { "pictures without a class" };
            return Err(Error::data(
                dir,
                format!("expected a folder for each class, or IDX files; found {found}"),
            )
            .with_help(
                "put the pictures of each class in a folder that is named after it: DIR/CLASS/1.png",
            ));
        }
        let mut classes = Vec::with_capacity(folders.len());
        for folder in &folders {
            let name = folder.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::data(folder, "a class needs a name in UTF-8"))?;
            let (below, pictures) = list(folder)?;
            if pictures.is_empty() {
                let error = Error::data(folder, "a class without pictures: no .png, .jpg or .jpeg in it");
                return Err(match below.is_empty() {
                    true => error.with_help("remove the folder, or put pictures in it"),
                    false => error.with_help("if this folder holds the classes, name it as the data instead"),
                });
            }
            classes.push((name, pictures));
        }
        let longest = classes.iter().map(|(_, pictures)| pictures.len()).max().unwrap_or(0);
        let in_turn = (0..longest).flat_map(|at| {
            classes.iter().filter_map(move |(name, pictures)| Some((*name, pictures.get(at)?)))
        });
        let (names, files): (Vec<&str>, Vec<&Path>) = in_turn
            .take(options.limit.unwrap_or(usize::MAX))
            .map(|(name, file)| (name, file.as_path()))
            .unzip();
        Images::decode(dir, &files, options)?.with_classes(&names)
    }

    /// Reads the pictures `given`, in their order, without labels; a folder among them stands for the pictures in it.
    ///
    /// # Errors
    /// As [`Images::read_classes`]; kind `Data`: a folder without pictures.
    pub fn read_pictures(given: &[impl AsRef<Path>], options: &ImageOptions) -> Result<Images> {
        options.check()?;
        let mut all = Vec::new();
        for file in given.iter().map(AsRef::as_ref) {
            if !file.is_dir() {
                all.push(file.to_owned());
                continue;
            }
            let (_, pictures) = list(file)?;
            if pictures.is_empty() {
                return Err(Error::data(file, "there is no picture in the folder: no .png, .jpg or .jpeg"));
            }
            all.extend(pictures);
        }
        let files: Vec<&Path> =
            all.iter().map(PathBuf::as_path).take(options.limit.unwrap_or(usize::MAX)).collect();
        // Names are those below the one folder that was given, else the paths as they were given.
        let source = if let [one] = given { one.as_ref() } else { Path::new("") };
        Images::decode(source, &files, options)
    }

    fn decode(source: &Path, files: &[&Path], options: &ImageOptions) -> Result<Images> {
        let Some(first) = files.first() else { return Err(Error::data(source, "there are no pictures")) };
        let (bytes, shape) = decode(first, options)?;
        let mut pixels = Vec::new();
        let size = bytes.len();
        size.checked_mul(files.len()).and_then(|total| pixels.try_reserve_exact(total).ok()).ok_or_else(
            || {
                let message = format!("no memory for {} {}", files.len(), described(shape));
                Error::new(ErrorKind::OutOfMemory, message).at(source, None, None::<String>)
            },
        )?;
        pixels.extend_from_slice(&bytes);
        pixels.resize(size * files.len(), 0);
        // The error of the first bad file, whichever thread meets which file first.
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let fail = |at: usize, error: Error| {
            let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                *failed = Some((at, error));
            }
        };
        par::for_each_chunk_mut(&mut pixels[size..], size, |at, into| match decode(files[at + 1], options) {
            Ok((bytes, found)) if found == shape => into.copy_from_slice(&bytes),
            Ok((_, found)) => fail(at, differs(files[at + 1], found, first, shape)),
            Err(error) => fail(at, error),
        });
        if let Some((_, error)) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        let images = Images::new(source, pixels, shape)?;
        let names = files.iter().map(|file| named(source, file)).collect();
        Ok(Images { names, resize: options.size.is_some(), convert: options.channels.is_some(), ..images })
    }
}

/// The file below its folder.
fn named(source: &Path, file: &Path) -> String {
    let below = file.strip_prefix(source).ok().filter(|below| !below.as_os_str().is_empty());
    below.unwrap_or(file).display().to_string()
}

fn differs(file: &Path, found: [usize; 3], first: &Path, shape: [usize; 3]) -> Error {
    let [channels, height, width] = shape;
    let message = format!("expected {} as {}, found {}", described(shape), first.display(), described(found));
    Error::data(file, message).with_help(format!(
        "all must be alike: resize them to one size (--image-size {height}x{width}), convert them to one number of channels \
         (--channels {channels})"
    ))
}

/// The folders and the pictures in `dir`, each sorted by name.
fn list(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io(dir, "list the folder", e))?;
    let mut found: Vec<(OsString, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(dir, "list the folder", e))?;
        // Hidden ones are the business of other programs.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push((entry.file_name(), entry.path()));
        }
    }
    found.sort_unstable();
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
        found.into_iter().map(|(_, path)| path).partition(|path| path.is_dir());
    Ok((folders, files.into_iter().filter(|file| is_picture(file)).collect()))
}

/// The bytes of a picture `[C, H, W]`, and its shape.
fn decode(file: &Path, options: &ImageOptions) -> Result<(Vec<u8>, [usize; 3])> {
    let broken =
        |cause: image::ImageError| Error::data(file, "not a whole PNG or JPEG picture").caused_by(cause);
    let reader = ImageReader::open(file).map_err(|e| Error::io(file, "open", e))?;
    let mut reader = reader.with_guessed_format().map_err(|e| Error::io(file, "read", e))?;
    // A header's promise of a size is not worth more memory than this: 16,384 x 16,384 pixels of 16 bits in 4 channels.
    let mut limits = Limits::default();
    limits.max_alloc = Some(2 << 30);
    limits.max_image_width = Some(1 << 16);
    limits.max_image_height = Some(1 << 16);
    reader.limits(limits);
    let picture = reader.decode().map_err(broken)?;
    let own = if picture.color().has_color() { 3 } else { 1 };
    let channels = options.channels.unwrap_or(own);
    let size = |width: u32, height: u32| match options.size {
        Some([height, width]) => (width as u32, height as u32),
        None => (width, height),
    };
    let (width, height) = size(picture.width(), picture.height());
    let shape = [channels, height as usize, width as usize];
    check_shape(shape).map_err(|why| Error::data(file, why))?;
    let is_same = (picture.width(), picture.height()) == (width, height);
    let bytes = if channels == 1 {
        let grey = picture.into_luma8();
        if is_same {
            grey.into_raw()
        } else {
            imageops::resize(&grey, width, height, FilterType::Triangle).into_raw()
        }
    } else {
        planes(if is_same { picture } else { resized(picture, width, height) })
    };
    Ok((bytes, shape))
}

fn resized(picture: DynamicImage, width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(imageops::resize(&picture.into_rgb8(), width, height, FilterType::Triangle))
}

/// The bytes of all red, then of all green, then of all blue.
fn planes(picture: DynamicImage) -> Vec<u8> {
    let pixels = picture.into_rgb8().into_raw();
    (0..3).flat_map(|channel| pixels.iter().skip(channel).step_by(3).copied()).collect()
}
