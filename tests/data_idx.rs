//! IDX files and folders of them: all element types, plain and gzipped, and every way to be wrong.
#![cfg(feature = "train")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use warpsmith::data::{
    Dataset, DatasetOptions, ImageOptions, ImageSet, Images, Targets, Task, is_idx_folder,
};
use warpsmith::io::idx;
use warpsmith::{DType, Error, ErrorKind};

/// An IDX file.
fn file(kind: u8, shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, shape.len() as u8];
    shape.iter().for_each(|extent| bytes.extend(extent.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// An empty folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("warpsmith-idx-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), bytes).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

fn refused(bytes: &[u8]) -> Error {
    let error = idx::from_bytes("bad.idx", bytes).unwrap_err();
    assert!(error.kind() == ErrorKind::Data && error.to_string().starts_with("bad.idx"), "{error}");
    error
}

#[test]
fn all_element_types_are_read_plain_and_gzipped() {
    let read = |bytes: &[u8]| {
        let plain = idx::from_bytes("a", bytes).unwrap();
        assert_eq!(plain, idx::from_bytes("a", &gzip(bytes)).unwrap());
        plain
    };
    let array = read(&file(0x08, &[2, 2], &[0, 1, 254, 255]));
    assert_eq!(
        (array.dtype(), array.shape(), array.bytes()),
        (DType::U8, &[2, 2][..], &[0, 1, 254, 255][..])
    );
    let array = read(&file(0x09, &[3], &[0, 127, 128]));
    assert_eq!(array.to_vec::<i32>().unwrap(), [0, 127, -128]);
    let array = read(&file(0x0b, &[2], &[0x01, 0x02, 0xff, 0xfe]));
    assert_eq!(array.to_vec::<i32>().unwrap(), [258, -2]);
    let array = read(&file(0x0c, &[1], &[0x80, 0, 0, 1]));
    assert_eq!(array.to_vec::<i32>().unwrap(), [i32::MIN + 1]);
    let array = read(&file(0x0d, &[1], &1.5f32.to_be_bytes()));
    assert_eq!(array.to_vec::<f32>().unwrap(), [1.5]);
    let array = read(&file(0x0e, &[1, 1, 1, 1], &(-2.25f64).to_be_bytes()));
    assert_eq!((array.shape(), array.to_vec::<f64>().unwrap()), (&[1, 1, 1, 1][..], vec![-2.25]));
    assert_eq!(read(&file(0x08, &[0, 28, 28], &[])).shape(), [0, 28, 28]);
}

#[test]
fn bad_files_are_errors_with_a_reason() {
    for (bytes, word) in [
        (b"".to_vec(), "truncated"),
        (vec![0, 0, 8], "truncated"),
        (b"P6 28 28".to_vec(), "not an IDX file"),
        (vec![0, 1, 8, 1, 0, 0, 0, 1, 7], "not an IDX file"),
        (file(0x0a, &[1], &[1]), "0x0a"),
        (file(0x08, &[], &[1]), "at least one dimension"),
        (file(0x08, &[2, 3], &[1, 2, 3, 4, 5]), "truncated"),
        (file(0x08, &[2, 2], &[1, 2, 3, 4, 5]), "trailing"),
        (file(0x0c, &[1], &[1, 2, 3]), "truncated"),
        (file(0x08, &[u32::MAX; 3], &[]), "overflows"),
        (file(0x0e, &[u32::MAX, u32::MAX], &[]), "overflows"),
        (file(0x08, &[0, u32::MAX, u32::MAX, u32::MAX], &[]), "overflows"),
        (file(0x08, &[u32::MAX, 4], &[0; 100]), "cannot hold: it has 100 at most"),
        ([&[0, 0, 8, 255][..], &[0; 100]].concat(), "truncated"),
    ] {
        let error = refused(&bytes);
        assert!(error.message().contains(word), "{word}: {error}");
        if !bytes.is_empty() {
            refused(&gzip(&bytes));
        }
    }
    // A gzipped file that is cut, or damaged.
    let whole = gzip(&file(0x08, &[100], &(0..100).collect::<Vec<u8>>()));
    for len in [2, 10, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..len]);
    }
    let mut damaged = whole.clone();
    let crc = damaged.len() - 6;
    damaged[crc] ^= 1;
    refused(&damaged);
}

fn images(count: u32, side: u32) -> Vec<u8> {
    file(
        0x08,
        &[count, side, side],
        &(0..count * side * side).map(|i| (i * 31 % 256) as u8).collect::<Vec<_>>(),
    )
}

fn labels(labels: &[u8]) -> Vec<u8> {
    file(0x08, &[labels.len() as u32], labels)
}

#[test]
fn a_folder_has_its_two_parts() {
    let folder = Folder::new("parts");
    assert!(!is_idx_folder(&folder));
    folder.write("train-images-idx3-ubyte.gz", gzip(&images(12, 3)));
    folder.write("train-labels-idx1-ubyte", labels(&[0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]));
    assert!(is_idx_folder(&folder));
    let set = ImageSet::read_folder(&folder, &ImageOptions::default()).unwrap();
    assert_eq!((set.train.len(), set.train.shape(), set.test.is_none()), (12, [1, 3, 3], true));
    let limited = ImageOptions { limit: Some(5), ..ImageOptions::default() };
    assert_eq!(ImageSet::read_folder(&folder, &limited).unwrap().train.len(), 5);
    // The names with a dot are as good.
    folder.write("t10k-images.idx3-ubyte", images(2, 3));
    folder.write("t10k-labels.idx1-ubyte.gz", gzip(&labels(&[1, 0])));
    let set = ImageSet::read_idx(&folder).unwrap();
    let data = Dataset::from_images(&set.train, set.test.as_ref(), &DatasetOptions::default()).unwrap();
    assert_eq!((data.task, data.shape()), (Task::Multiclass, vec![1, 3, 3]));
    assert_eq!((data.train.rows() + data.validation.rows(), data.test.rows()), (12, 2));
    assert_eq!(data.test.targets, Targets::Classes(vec![1, 0]));
    assert_eq!(data.preparation.target().classes(), ["0", "1", "2"]);
    assert_eq!(Images::open(&folder, &ImageOptions::default()).unwrap().len(), 2);

    let resized = ImageOptions { size: Some([4, 4]), ..ImageOptions::default() };
    assert_eq!(ImageSet::read_folder(&folder, &resized).unwrap_err().kind(), ErrorKind::Argument);
}

/// To measure, the test part is read and nothing else; to train, there must be a training part.
#[test]
fn the_test_part_alone_can_be_measured_on() {
    let folder = Folder::new("test-alone");
    folder.write("t10k-images-idx3-ubyte", images(2, 3));
    let open = || Images::open(&folder, &ImageOptions::default());
    assert!(is_idx_folder(&folder));
    assert!(open().unwrap_err().to_string().contains("no t10k-labels-idx1-ubyte"));
    folder.write("t10k-labels-idx1-ubyte", labels(&[1, 0]));
    let alone = open().unwrap();
    assert_eq!((alone.len(), alone.labels().is_some()), (2, true));
    let error = ImageSet::read_folder(&folder, &ImageOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no train-images-idx3-ubyte"), "{error}");
    // What is not read cannot be wrong.
    folder.write("train-images-idx3-ubyte", "damaged");
    assert_eq!(open().unwrap(), alone);
}

#[test]
fn folders_that_do_not_fit_together_are_errors() {
    let folder = Folder::new("unfit");
    let refused = |word: &str| {
        let error = ImageSet::read_idx(&folder).unwrap_err();
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains(word), "{word}: {error}");
    };
    folder.write("train-images-idx3-ubyte", images(4, 3));
    refused("no train-labels-idx1-ubyte");
    folder.write("train-labels-idx1-ubyte", labels(&[0, 1, 2]));
    refused("expected 4 labels");
    folder.write("train-labels-idx1-ubyte", file(0x08, &[4, 2], &[0; 8]));
    refused("one target a row");
    folder.write("train-labels-idx1-ubyte", labels(&[0, 1, 0, 1]));
    assert!(ImageSet::read_idx(&folder).unwrap().test.is_none());
    folder.write("t10k-labels-idx1-ubyte", labels(&[0]));
    refused("no t10k-images-idx3-ubyte");
    folder.write("t10k-images-idx3-ubyte", images(1, 4));
    let set = ImageSet::read_idx(&folder).unwrap();
    let build =
        |set: &ImageSet| Dataset::from_images(&set.train, set.test.as_ref(), &DatasetOptions::default());
    let error = build(&set).unwrap_err();
    assert!(error.to_string().contains("t10k-images-idx3-ubyte: expected pictures of 3x3"), "{error}");
    // A label that training has not.
    folder.write("t10k-images-idx3-ubyte", images(1, 3));
    folder.write("t10k-labels-idx1-ubyte", labels(&[9]));
    let error = build(&ImageSet::read_idx(&folder).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("t10k-labels-idx1-ubyte, column label: row 1: the class '9'"),
        "{error}"
    );
    for (shape, word) in
        [(vec![0, 3, 3], "no pictures"), (vec![4, 0, 3], "no pixels"), (vec![4], "[N, H, W]")]
    {
        let len = shape.iter().product::<u32>() as usize;
        folder.write("train-images-idx3-ubyte", file(0x08, &shape, &vec![0; len]));
        refused(word);
    }
    folder.write("train-images-idx3-ubyte", file(0x0d, &[4, 1, 1], &[0.5f32.to_be_bytes(); 4].concat()));
    refused("a whole number from 0 to 255");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any bytes behind any start give an array or an error, without a panic and without memory that is not there.
    #[test]
    fn any_bytes_are_read_or_refused(kind in 0u8..16, rank in 0u8..6, rest in prop::collection::vec(any::<u8>(), 0..60)) {
        let bytes = [&[0, 0, kind, rank][..], &rest].concat();
        for bytes in [gzip(&bytes), bytes] {
            if let Ok(array) = idx::from_bytes("a", &bytes) {
                prop_assert!(array.bytes().len() <= 4 * rest.len());
            }
        }
    }
}
