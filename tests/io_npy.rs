//! npy: round trips, exact bytes, foreign byte orders and layouts, hostile headers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use warpsmith::dtype::f16;
use warpsmith::io::{HostTensor, npy};
use warpsmith::{DType, ErrorKind};

fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let len = match version {
        1 => (header.len() as u16).to_le_bytes().to_vec(),
        _ => (header.len() as u32).to_le_bytes().to_vec(),
    };
    [b"\x93NUMPY", &[version, 0][..], &len, header.as_bytes(), data].concat()
}

fn of(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    file(1, &format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"), data)
}

fn tensor(dtype: DType, shape: &[usize]) -> HostTensor<'static> {
    let len = shape.iter().product::<usize>() * dtype.size();
    HostTensor::new(dtype, shape, (0..len).map(|i| (i * 37 + 11) as u8).collect::<Vec<u8>>()).unwrap()
}

fn encode(tensor: &HostTensor<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write_to(&mut bytes, tensor).unwrap();
    bytes
}

fn refused(bytes: &[u8], words: &str) {
    let error = npy::from_bytes("attack.npy", bytes).expect_err("the file must be refused");
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(error.place().expect("the file is named").file, PathBuf::from("attack.npy"));
    assert!(error.to_string().contains(words), "{error} without {words:?}");
}

#[test]
fn every_dtype_and_shape_round_trips() {
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::BF16) {
        for shape in [&[][..], &[0], &[1], &[3, 0, 2], &[2, 3], &[7], &[1, 1, 5, 1, 2]] {
            let tensor = tensor(dtype, shape);
            let bytes = encode(&tensor);
            assert_eq!((bytes.len() - tensor.bytes().len()) % 64, 0, "the array is aligned");
            assert_eq!(npy::from_bytes("x", &bytes).unwrap(), tensor);
        }
    }
    let error = npy::write_to(&mut Vec::new(), &tensor(DType::BF16, &[1])).unwrap_err();
    assert!(error.kind() == ErrorKind::DType && error.help().is_some());
}

#[test]
fn the_bytes_are_these() {
    let bytes = encode(&HostTensor::from_slice([2, 1], &[1.0f32, -2.0]).unwrap());
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }";
    let padded = format!("{header:<117}\n");
    assert_eq!(bytes, file(1, &padded, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]));
    assert!(
        String::from_utf8_lossy(&encode(&tensor(DType::U8, &[3])))
            .contains("'|u1', 'fortran_order': False, 'shape': (3,)")
    );
    assert!(String::from_utf8_lossy(&encode(&tensor(DType::I64, &[]))).contains("'shape': ()"));
}

#[test]
fn files_replace_each_other_whole() {
    let folder = std::env::temp_dir().join(format!("warpsmith-io-npy-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("x.npy");
    for n in [3, 5] {
        npy::write(&path, &tensor(DType::F32, &[n])).unwrap();
        assert_eq!(npy::read(&path).unwrap(), tensor(DType::F32, &[n]));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
    for path in [folder.join("missing.npy"), folder.clone(), PathBuf::from("/dev/zero")] {
        assert_eq!(npy::read(path).unwrap_err().kind(), ErrorKind::Data);
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn versions_spellings_and_byte_orders_are_read() {
    let want = HostTensor::from_slice([2], &[1.0f32, -2.0]).unwrap();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }  \n";
    for version in [1, 2, 3] {
        assert_eq!(npy::from_bytes("v", &file(version, header, want.bytes())).unwrap(), want);
    }
    for header in [
        "{\"shape\":(2,),\"descr\":\"<f4\",\"fortran_order\":False}",
        " { 'fortran_order' : False , 'shape' : ( 2L , ) , 'descr' : '=f4' } ",
        "{'descr': 'f4', 'fortran_order': True, 'shape': (2, )}",
    ] {
        assert_eq!(npy::from_bytes("s", &file(1, header, want.bytes())).unwrap(), want, "{header}");
    }
    let big = [0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0];
    assert_eq!(npy::from_bytes("b", &of(">f4", "False", "(2,)", &big)).unwrap(), want);
    let read = |descr: &str, shape: &str, data: &[u8]| {
        npy::from_bytes("i", &of(descr, "False", shape, data)).unwrap()
    };
    assert_eq!(read(">f8", "()", &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0]).to_vec::<f64>().unwrap(), [1.5]);
    assert_eq!(read(">f2", "(1,)", &[0x3c, 0]).to_vec::<f16>().unwrap(), [f16::ONE]);
    assert_eq!(read(">i4", "(1,)", &[0xff, 0xff, 0xff, 0xfe]).to_vec::<i32>().unwrap(), [-2]);
    assert_eq!(read(">i8", "(1,)", &[0, 0, 0, 0, 0, 0, 1, 2]).to_vec::<i64>().unwrap(), [258]);
}

#[test]
fn narrow_integers_widen_and_booleans_are_bytes() {
    let read = |descr: &str, data: &[u8]| npy::from_bytes("i", &of(descr, "False", "(2,)", data)).unwrap();
    assert_eq!(read("|i1", &[0xff, 0x7f]).to_vec::<i32>().unwrap(), [-1, 127]);
    assert_eq!(read("<i2", &[0xfe, 0xff, 0, 1]).to_vec::<i32>().unwrap(), [-2, 256]);
    assert_eq!(read(">i2", &[0xff, 0xfe, 1, 0]).to_vec::<i32>().unwrap(), [-2, 256]);
    assert_eq!(read("<u2", &[0xff, 0xff, 0, 1]).to_vec::<i32>().unwrap(), [65535, 256]);
    assert_eq!(read("<u4", &[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]).to_vec::<i64>().unwrap(), [4294967295, 1]);
    assert_eq!(read(">u4", &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1]).to_vec::<i64>().unwrap(), [4294967295, 1]);
    assert_eq!(read("|b1", &[1, 0]).to_vec::<u8>().unwrap(), [1, 0]);
    let mut wide = [0u8; 16];
    wide[7] = 0x7f;
    assert_eq!(read("<u8", &wide).to_vec::<i64>().unwrap(), [0x7f << 56, 0]);
    wide[15] = 0x80;
    refused(&of("<u8", "False", "(2,)", &wide), "element 1 is 9223372036854775808");
    refused(&of("|b1", "False", "(2,)", &[1, 2]), "found the byte 2");
}

#[test]
fn fortran_order_becomes_c_order() {
    // The array a[i, j, k] = 100 i + 10 j + k, written with i fastest.
    let (d0, d1, d2) = (2, 3, 4);
    let value = |i: i32, j: i32, k: i32| 100 * i + 10 * j + k;
    let mut fortran = Vec::new();
    for (k, j, i) in (0..d2).flat_map(|k| (0..d1).flat_map(move |j| (0..d0).map(move |i| (k, j, i)))) {
        fortran.push(value(i, j, k));
    }
    let mut c = Vec::new();
    for (i, j, k) in (0..d0).flat_map(|i| (0..d1).flat_map(move |j| (0..d2).map(move |k| (i, j, k)))) {
        c.push(value(i, j, k));
    }
    let le: Vec<u8> = fortran.iter().flat_map(|v| v.to_le_bytes()).collect();
    let be: Vec<u8> = fortran.iter().flat_map(|v| v.to_be_bytes()).collect();
    let short: Vec<u8> = fortran.iter().flat_map(|&v| (v as u16).to_be_bytes()).collect();
    for (descr, data) in [("<i4", le), (">i4", be), (">u2", short)] {
        let read = npy::from_bytes("f", &of(descr, "True", "(2, 3, 4)", &data)).unwrap();
        assert_eq!((read.shape(), read.to_vec::<i32>().unwrap()), (&[2, 3, 4][..], c.clone()));
    }
    for shape in ["()", "(0,)", "(0, 5)", "(1,)", "(1, 1)"] {
        let data = if shape.contains('0') { &[][..] } else { &[7] };
        assert_eq!(npy::from_bytes("f", &of("|u1", "True", shape, data)).unwrap().bytes(), data, "{shape}");
    }
}

#[test]
fn types_we_cannot_hold_are_named() {
    refused(&of("|O", "False", "(1,)", &[0; 8]), "pickle");
    refused(&of("O", "False", "(1,)", &[0; 8]), "CSV");
    for (descr, why) in [
        ("<U5", "text"),
        ("|S3", "text"),
        ("<c8", "complex"),
        ("<M8[ns]", "dates"),
        ("<m8", "dates"),
        ("|V2", "expected f2"),
        ("<f16", "expected f2"),
        ("<i3", "expected f2"),
        ("", "expected f2"),
        ("<", "expected f2"),
        ("|f4", "byte order"),
        ("!f4", "expected f2"),
        ("<<f4", "expected f2"),
    ] {
        refused(&of(descr, "False", "(1,)", &[0; 8]), why);
        refused(&of(descr, "False", "(1,)", &[0; 8]), &format!("{descr:?}"));
    }
    refused(
        &file(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[0; 4]),
        "structured",
    );
}

#[test]
fn hostile_shapes_are_refused() {
    for (shape, words) in [
        ("(-1,)", "unsigned"),
        ("(1, -2)", "unsigned"),
        ("(9223372036854775807, 2)", "overflows"),
        ("(18446744073709551615,)", "overflows"),
        ("(18446744073709551616,)", "overflows"),
        ("(4194305, 4194305, 211106198978564)", "overflows"),
        ("(4294967296, 4294967296)", "overflows"),
        ("(0, 9223372036854775807, 4)", "overflows"),
        ("(2305843009213693952,)", "overflows"),
        ("(1000000000,)", "truncated"),
        ("(0,)", "trailing"),
        ("(3)", "comma"),
        ("3", "'('"),
        ("[3]", "'('"),
        ("(03,)", "leading zeros"),
        ("(3.0,)", "')'"),
        ("(3,,)", "unsigned"),
        ("(,)", "unsigned"),
        ("(1 2)", "')'"),
        ("(True,)", "unsigned"),
        ("(3", "unsigned"),
        ("", "'('"),
    ] {
        refused(&of("<f4", "False", shape, &[0; 4]), words);
    }
}

#[test]
fn malformed_headers_are_refused() {
    for (header, words) in [
        ("", "'{'"),
        ("{", "a string"),
        ("{}", "found fewer"),
        ("{}x", "nothing but"),
        ("[]", "'{'"),
        ("{'descr': '<f4', 'shape': (1,)}", "found fewer"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "occurs twice"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", "\"more\""),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "True or False"),
        ("{'descr': '<f4', 'fortran_order': false, 'shape': (1,)}", "True or False"),
        ("{'descr': '<f4, 'fortran_order': False, 'shape': (1,)}", "'}'"),
        ("{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (1,)}", "without escapes"),
        ("{'descr': <f4, 'fortran_order': False, 'shape': (1,)}", "a string"),
        ("{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", "'}'"),
        ("{'descr' '<f4'}", "':'"),
        ("{'descr': '<f4', é", "a string"),
        ("{'é", "a string"),
        ("__import__('os').system('true')", "'{'"),
    ] {
        refused(&file(1, header, &[0; 4]), words);
    }
    let mut bytes = encode(&tensor(DType::F32, &[1]));
    bytes[20] = 0xff;
    refused(&bytes, "UTF-8");
    refused(b"\x93NUMPX\x01\0", "magic");
    refused(b"PK\x03\x04\0\0\0\0", "npz");
    for version in [[0, 0], [4, 0], [1, 1], [255, 255]] {
        let mut bytes = encode(&tensor(DType::F32, &[1]));
        bytes[6..8].copy_from_slice(&version);
        refused(&bytes, "version");
    }
    for len in [65_536u32, u32::MAX] {
        refused(&[b"\x93NUMPY\x02\0", &len.to_le_bytes()[..], &[b' '; 100]].concat(), "at most 65535");
    }
    refused(&[b"\x93NUMPY\x02\0", &60_000u32.to_le_bytes()[..], &[b' '; 100]].concat(), "truncated");
    refused(&[encode(&tensor(DType::F32, &[2])), vec![0]].concat(), "trailing");
}

#[test]
fn a_truncated_file_is_refused_at_every_byte() {
    let bytes = encode(&tensor(DType::F64, &[2, 3]));
    for len in 0..bytes.len() {
        refused(&bytes[..len], "");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_keeps_the_size() {
    let tensor = tensor(DType::F32, &[2, 3]);
    let bytes = encode(&tensor);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match npy::from_bytes("flipped", &flipped) {
            Ok(read) => assert_eq!(read.shape(), tensor.shape(), "bit {bit}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Data),
        }
    }
}

#[test]
fn numpy_reads_ours_and_we_read_numpys() {
    let folder = std::env::temp_dir().join(format!("warpsmith-io-npy-python-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::BF16) {
        npy::write(folder.join(format!("{dtype}.npy")), &tensor(dtype, &[2, 3])).unwrap();
    }
    npy::write(folder.join("scalar.npy"), &tensor(DType::F32, &[])).unwrap();
    npy::write(folder.join("empty.npy"), &tensor(DType::I64, &[0, 3])).unwrap();
    let script = r#"
import os, sys
try:
    import numpy
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(77)
folder = sys.argv[1]
for name in sorted(os.listdir(folder)):
    array = numpy.load(os.path.join(folder, name))
    print(name, array.dtype.str, array.shape, array.tobytes().hex())
base = numpy.arange(24).reshape(2, 3, 4)
for i, dtype in enumerate("<f2 >f2 <f4 >f4 <f8 >f8 |u1 |i1 <i2 >i2 <u2 >u2 <i4 >i4 <u4 >u4 <i8 >i8 <u8 >u8".split()):
    numpy.save(os.path.join(folder, f"c{i}.npy"), base.astype(dtype))
    numpy.save(os.path.join(folder, f"f{i}.npy"), numpy.asfortranarray(base.astype(dtype)))
numpy.save(os.path.join(folder, "c20.npy"), numpy.ones((2, 3, 4), bool))
numpy.save(os.path.join(folder, "object.npy"), numpy.array([None, "a"]), allow_pickle=True)
"#;
    match Command::new("python3").arg("-c").arg(script).arg(&folder).output() {
        Ok(out) if out.status.code() == Some(77) => {
            println!("skipped: {}", String::from_utf8_lossy(&out.stderr).trim())
        }
        Err(e) => println!("skipped: no python3: {e}"),
        Ok(out) => {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let hex = |t: &HostTensor<'_>| t.bytes().iter().map(|b| format!("{b:02x}")).collect::<String>();
            let seen = String::from_utf8(out.stdout).unwrap();
            for (name, descr, dtype) in [
                ("f16", "<f2", DType::F16),
                ("f32", "<f4", DType::F32),
                ("f64", "<f8", DType::F64),
                ("i32", "<i4", DType::I32),
                ("i64", "<i8", DType::I64),
                ("u8", "|u1", DType::U8),
            ] {
                let want = format!("{name}.npy {descr} (2, 3) {}", hex(&tensor(dtype, &[2, 3])));
                assert!(seen.lines().any(|line| line == want), "{want}\n{seen}");
            }
            let want = format!("scalar.npy <f4 () {}", hex(&tensor(DType::F32, &[])));
            assert!(seen.lines().any(|line| line == want), "{seen}");
            assert!(seen.contains("empty.npy <i8 (0, 3) "), "{seen}");
            let values = |t: &HostTensor<'_>| -> Vec<f64> {
                warpsmith::dispatch!(t.dtype(), T => t.to_vec::<T>().unwrap().into_iter()
                    .map(warpsmith::dtype::Element::to_f64).collect())
            };
            for i in 0..20 {
                for order in ["c", "f"] {
                    let read = npy::read(folder.join(format!("{order}{i}.npy"))).unwrap();
                    assert_eq!(read.shape(), [2, 3, 4]);
                    assert_eq!(values(&read), (0..24).map(f64::from).collect::<Vec<_>>(), "{order}{i}");
                }
            }
            assert_eq!(npy::read(folder.join("c20.npy")).unwrap().bytes(), [1; 24]);
            let error = npy::read(folder.join("object.npy")).unwrap_err();
            assert!(error.message().contains("pickle"), "{error}");
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = npy::from_bytes("random", &bytes);
    }

    #[test]
    fn random_headers_never_panic(text in "\\{['a:\\{\\}\\(\\),0-9 descrfotan_shpeTrueFalL<>|fiu]{0,80}", version in 1u8..4) {
        let _ = npy::from_bytes("random", &file(version, &text, &[0; 8]));
    }

    #[test]
    fn a_spoilt_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&tensor(DType::F32, &[2, 2]));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = npy::from_bytes("spoilt", &bytes);
    }
}
