//! npz archives: what NumPy writes, and what nobody should.
#![cfg(feature = "train")]

use std::io::{Cursor, Write};

use proptest::prelude::*;
use warpsmith::data::{ArraySet, ImageOptions, Images};
use warpsmith::io::HostTensor;
use warpsmith::io::npy;
use warpsmith::io::npz::Npz;
use warpsmith::{DType, Error, ErrorKind};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn array(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write_to(&mut bytes, &HostTensor::from_slice([values.len()], values).unwrap()).unwrap();
    bytes
}

fn archive_by(method: CompressionMethod, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    archive_by(CompressionMethod::Deflated, entries)
}

/// The error of opening and reading `x`.
fn refused(bytes: &[u8]) -> Error {
    let error = match Npz::from_bytes("bad.npz", bytes) {
        Ok(mut npz) => npz.read("x").expect_err("it was read"),
        Err(error) => error,
    };
    assert!(error.to_string().starts_with("bad.npz"), "{error}");
    error
}

/// The offsets of all `what` in `bytes`.
fn places(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    (0..=bytes.len() - what.len()).filter(|&at| bytes[at..].starts_with(what)).collect()
}

/// Overwrites a field of the central directory's entry number `entry`.
fn patch(bytes: &mut [u8], entry: usize, field: usize, value: &[u8]) {
    let at = places(bytes, b"PK\x01\x02")[entry] + field;
    bytes[at..at + value.len()].copy_from_slice(value);
}

const METHOD: usize = 10;
const SIZE: usize = 24;
const OFFSET: usize = 42;

#[test]
fn arrays_are_read_by_name() {
    let (x, y) = (array(&[1.0, 2.0, 3.0]), array(&[]));
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let bytes = archive_by(method, &[("x.npy", &x), ("notes.txt", b"not an array"), ("a/y.npy", &y)]);
        let mut npz = Npz::from_bytes("a.npz", &bytes).unwrap();
        assert_eq!(npz.names().collect::<Vec<_>>(), ["x", "a/y"]);
        assert_eq!(npz.read("a/y").unwrap().shape(), [0]);
        assert_eq!(npz.read("x").unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0]);
        let error = npz.read("z").unwrap_err();
        assert!(
            error.message().contains("no array 'z'") && error.help().unwrap().contains("x, a/y"),
            "{error}"
        );
    }
}

#[test]
fn what_numpy_wrote_is_read() {
    let mut npz = Npz::open("tests/data/numpy.npz").unwrap();
    assert_eq!(npz.names().collect::<Vec<_>>(), ["x", "y"]);
    let x = npz.read("x").unwrap();
    assert_eq!((x.dtype(), x.shape()), (DType::I64, &[2, 3][..]));
    assert_eq!(x.to_vec::<i64>().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(npz.read("y").unwrap().to_vec::<f32>().unwrap(), [0.5, -1.5]);
}

#[test]
fn files_that_are_no_archives_are_errors() {
    let absent = Npz::open("absent.npz").err().unwrap();
    assert!(absent.kind() == ErrorKind::Data && absent.to_string().contains("absent.npz"), "{absent}");
    assert_eq!(Npz::open("tests").err().unwrap().kind(), ErrorKind::Data);
    for bytes in [&b""[..], b"PK", b"\x93NUMPY", b"PK\x03\x04 and so on", &[0; 4000]] {
        assert_eq!(refused(bytes).kind(), ErrorKind::Data);
    }
}

#[test]
fn objects_are_refused_by_their_array() {
    let mut bytes = array(&[1.0]);
    let at = places(&bytes, b"<f4")[0];
    bytes[at..at + 3].copy_from_slice(b"|O ");
    let error = refused(&archive(&[("x.npy", &bytes)]));
    assert!(error.to_string().starts_with("bad.npz/x.npy") && error.message().contains("pickle"), "{error}");
}

/// Nothing is inflated that the npy header does not promise, and nothing is allocated that the file cannot fill.
#[test]
fn zip_bombs_are_refused() {
    // An array of one number, and 50 MB of zeros behind it.
    let mut long = array(&[1.0]);
    let whole = long.len();
    long.resize(50 << 20, 0);
    let bomb = archive(&[("x.npy", &long)]);
    assert!(bomb.len() < 100_000);
    let error = refused(&bomb);
    assert!(error.message().contains("trailing bytes"), "{error}");
    // The same, where the directory says the size of the array alone.
    let mut lying = bomb.clone();
    patch(&mut lying, 0, SIZE, &(whole as u32).to_le_bytes());
    let error = refused(&lying);
    assert!(error.message().contains("more than") || error.message().contains("read"), "{error}");
    // A directory that promises more than deflate can make of the bytes.
    let mut vast = archive(&[("x.npy", &array(&[1.0]))]);
    patch(&mut vast, 0, SIZE, &0xffff_0000u32.to_le_bytes());
    let error = refused(&vast);
    assert!(error.message().contains("promises 4294901760 bytes"), "{error}");
    // An array that promises more than its entry has.
    let mut header = array(&[1.0]);
    let at = places(&header, b"(1,)")[0];
    header[at..at + 20].copy_from_slice(b"(99999999999999,),} ");
    let error = refused(&archive(&[("x.npy", &header)]));
    assert!(error.message().contains("truncated") || error.message().contains("header"), "{error}");
    // Two arrays of the same bytes.
    let mut shared = archive(&[("x.npy", &array(&[1.0])), ("y.npy", &array(&[1.0]))]);
    patch(&mut shared, 1, OFFSET, &0u32.to_le_bytes());
    assert!(refused(&shared).message().contains("share bytes"));
}

/// Memory is taken for what has been inflated, not for what header and directory agree to promise.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_not_taken_for_promises() {
    const PROMISED: usize = 1 << 30;
    fn peak() -> usize {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
    }
    // Bytes that deflate makes nothing smaller of, but enough of them for the promise.
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut bytes = array(&[]);
    let at = places(&bytes, b"(0,)")[0];
    let shape = format!("({},), }}", PROMISED / 4);
    bytes[at..at + shape.len()].copy_from_slice(shape.as_bytes());
    let size = bytes.len() + PROMISED;
    bytes.extend((0..PROMISED / 1000).map(|_| noise()));
    let mut lying = archive(&[("x.npy", &bytes)]);
    patch(&mut lying, 0, SIZE, &(size as u32).to_le_bytes());
    let before = peak();
    let error = refused(&lying);
    assert!(error.kind() == ErrorKind::Data && error.message().contains("truncated"), "{error}");
    assert!(error.message().contains("expected 1073741824 bytes"), "{error}");
    // Other tests run beside this one, and take less than that.
    assert!(peak() - before < PROMISED / 2, "{} bytes", peak() - before);
}

#[test]
fn a_header_is_read_alone() {
    let x = array(&(0..100).map(|i| i as f32).collect::<Vec<_>>());
    let mut damaged = archive_by(CompressionMethod::Stored, &[("x.npy", &x), ("y.npy", &array(&[]))]);
    let last = places(&damaged, b"PK\x03\x04")[1] - 1;
    damaged[last] ^= 1;
    let mut npz = Npz::from_bytes("a.npz", &damaged).unwrap();
    assert_eq!(npz.header("x").unwrap(), (DType::F32, vec![100]));
    assert_eq!(npz.header("y").unwrap(), (DType::F32, vec![0]));
    assert_eq!(npz.read("x").unwrap_err().kind(), ErrorKind::Data);
    assert!(npz.header("z").unwrap_err().message().contains("no array 'z'"));
    // It must promise what the directory does.
    let mut short = archive(&[("x.npy", &x)]);
    patch(&mut short, 0, SIZE, &(x.len() as u32 - 4).to_le_bytes());
    let error = Npz::from_bytes("a.npz", &short).unwrap().header("x").unwrap_err();
    assert!(error.message().contains("truncated: expected 400 bytes"), "{error}");
    assert!(error.message().contains("found 396"), "{error}");
    let mut object = x;
    let at = places(&object, b"<f4")[0];
    object[at..at + 3].copy_from_slice(b"|O ");
    let bytes = archive(&[("x.npy", &object)]);
    let error = Npz::from_bytes("a.npz", &bytes).unwrap().header("x").unwrap_err();
    assert!(error.message().contains("pickle"), "{error}");
}

/// What a model is measured on is all that is read: the training arrays here cannot be.
#[test]
fn measuring_reads_the_test_part_alone() {
    let file = std::env::temp_dir().join(format!("warpsmith-npz-measured-{}.npz", std::process::id()));
    let npy = |dtype, shape: &[usize], bytes: Vec<u8>| {
        let mut file = Vec::new();
        npy::write_to(&mut file, &HostTensor::new(dtype, shape, bytes).unwrap()).unwrap();
        file
    };
    let labels = npy(DType::U8, &[2], vec![0, 1]);
    let pictures = npy(DType::U8, &[2, 3, 4], (0..24).collect());
    let matrix = npy(DType::F32, &[2, 3], vec![0; 24]);
    let broken = b"not an npy file".as_slice();
    let write = |x_test: &[u8]| {
        let all = [
            ("x_train.npy", broken),
            ("y_train.npy", broken),
            ("x_test.npy", x_test),
            ("y_test.npy", &labels),
        ];
        std::fs::write(&file, archive(&all)).unwrap();
    };
    let open = || Images::open(&file, &ImageOptions::default());

    write(&pictures);
    let images = open().unwrap();
    assert_eq!((images.len(), images.shape(), images.pixels()[23]), (2, [1, 3, 4], 23));
    assert!(images.labels().is_some());
    let error = ArraySet::measured_table(&file).unwrap_err();
    assert!(error.message().contains("expected a table as in training, found pictures"), "{error}");
    assert!(ArraySet::read_npz(&file).unwrap_err().to_string().contains("x_train.npy"));

    write(&matrix);
    let table = ArraySet::measured_table(&file).unwrap();
    assert_eq!((table.rows(), table.names().len()), (2, 4));
    let error = open().unwrap_err();
    assert!(error.message().contains("expected pictures"), "{error}");

    // That it is of another kind, its header tells: the numbers behind it are damaged, and not read.
    let mut bytes = archive_by(CompressionMethod::Stored, &[("x.npy", &matrix)]);
    let last = places(&bytes, b"PK\x01\x02")[0] - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(open().unwrap_err().message().contains("expected pictures"));
    assert!(!ArraySet::measured_table(&file).unwrap_err().message().contains("expected"));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn doubled_names_other_methods_and_damage_are_refused() {
    let x = array(&(0..100).map(|i| i as f32).collect::<Vec<_>>());
    let mut doubled = archive(&[("x.npy", &x), ("y.npy", &x)]);
    for at in places(&doubled, b"y.npy") {
        doubled[at] = b'x';
    }
    assert!(refused(&doubled).message().contains("same name"));

    let mut method = archive(&[("x.npy", &x)]);
    patch(&mut method, 0, METHOD, &12u16.to_le_bytes());
    assert_eq!(refused(&method).kind(), ErrorKind::Data);

    // A bit of the data, of the CRC, and of the deflate stream.
    let mut stored = archive_by(CompressionMethod::Stored, &[("x.npy", &x)]);
    let last = places(&stored, b"PK\x01\x02")[0] - 1;
    stored[last] ^= 1;
    assert_eq!(refused(&stored).kind(), ErrorKind::Data);
    let mut crc = archive(&[("x.npy", &x)]);
    patch(&mut crc, 0, 16, &[1, 2, 3, 4]);
    assert_eq!(refused(&crc).kind(), ErrorKind::Data);
}

#[test]
fn a_cut_archive_is_an_error_at_every_length() {
    let whole = archive(&[("x.npy", &array(&[1.0, 2.0])), ("y.npy", &array(&[3.0]))]);
    for len in 0..whole.len() {
        assert_eq!(refused(&whole[..len]).kind(), ErrorKind::Data, "{len} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Changed bytes give an array, an error, but no panic and no huge allocation.
    #[test]
    fn damage_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = archive(&[("x.npy", &array(&[1.0, 2.0])), ("y.npy", &array(&[3.0]))]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(mut npz) = Npz::from_bytes("a.npz", &bytes) {
            let names: Vec<String> = npz.names().map(str::to_owned).collect();
            for name in names {
                let header = npz.header(&name);
                if let Ok(array) = npz.read(&name) {
                    prop_assert!(array.bytes().len() < 1 << 20);
                    prop_assert_eq!(header.unwrap(), (array.dtype(), array.shape().to_vec()));
                }
            }
        }
    }
}
