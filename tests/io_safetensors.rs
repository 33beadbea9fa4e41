//! safetensors: round trips, exact bytes, and every way we know a file can lie.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use warpsmith::io::HostTensor;
use warpsmith::io::safetensors::{self, SafeTensors};
use warpsmith::{DType, ErrorKind};

/// A folder of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path =
            std::env::temp_dir().join(format!("warpsmith-io-safetensors-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn tensor(dtype: DType, shape: &[usize]) -> HostTensor<'static> {
    let len = shape.iter().product::<usize>() * dtype.size();
    HostTensor::new(dtype, shape, (0..len).map(|i| (i * 37 + 11) as u8).collect::<Vec<u8>>()).unwrap()
}

fn encode(tensors: &[(&str, HostTensor<'_>)], metadata: &[(&str, &str)]) -> Vec<u8> {
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let mut bytes = Vec::new();
    safetensors::write_to(&mut bytes, tensors, &metadata).unwrap();
    bytes
}

/// The message of the error that reading `bytes` must give; its kind and place are checked here.
fn refusal(bytes: &[u8]) -> String {
    let error = SafeTensors::from_bytes("attack.safetensors", bytes).expect_err("the file must be refused");
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(error.place().expect("the file is named").file, PathBuf::from("attack.safetensors"));
    error.message().to_owned()
}

fn refused(header: &str, data: &[u8], words: &str) {
    let message = refusal(&file(header, data));
    assert!(message.contains(words), "{header}\ngave {message:?}\nwithout {words:?}");
}

#[test]
fn every_dtype_and_shape_round_trips() {
    let scratch = Scratch::new("roundtrip");
    let path = scratch.0.join("all.safetensors");
    let mut tensors = Vec::new();
    for dtype in DType::ALL {
        for shape in [&[][..], &[0], &[1], &[3, 0, 2], &[2, 3], &[7], &[1, 1, 5, 1, 2]] {
            tensors.push((format!("{dtype}.{shape:?} \"é\\\n😀"), tensor(dtype, shape)));
        }
    }
    let metadata =
        BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("\"\u{1}".to_owned(), "ü\t".to_owned())]);
    safetensors::write(&path, &tensors, &metadata).unwrap();

    let back = safetensors::read(&path).unwrap();
    assert_eq!(back.names().len(), tensors.len());
    assert_eq!(back.metadata(), &metadata);
    for (name, tensor) in &tensors {
        assert_eq!(&back.get(name).unwrap(), tensor, "{name}");
    }
    let header = safetensors::read_header(&path).unwrap();
    assert_eq!(&header, back.header());
    assert_eq!(header.data_bytes(), tensors.iter().map(|(_, t)| t.bytes().len()).sum::<usize>());
    // Each tensor lies aligned for its type, so that a mapped file can be used in place.
    let data_start = fs::metadata(&path).unwrap().len() as usize - header.data_bytes();
    for entry in header.entries() {
        assert_eq!((data_start + entry.range().start) % entry.dtype().size(), 0, "{}", entry.name());
    }
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn the_bytes_are_these_in_any_order() {
    let weight = HostTensor::from_slice([2, 1], &[1.0f32, -2.0]).unwrap();
    let (steps, flag) =
        (HostTensor::from_slice([], &[7i64]).unwrap(), HostTensor::from_slice([1], &[1u8]).unwrap());
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""steps":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"#,
        r#""weight":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},"#,
        r#""flag":{"dtype":"U8","shape":[1],"data_offsets":[16,17]}}"#,
    );
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let want = file(&padded, &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 1]);
    let named = [("weight", weight), ("steps", steps), ("flag", flag)];
    assert_eq!(encode(&named, &[("format", "pt")]), want);
    let reversed: Vec<_> = named.into_iter().rev().collect();
    assert_eq!(encode(&reversed, &[("format", "pt")]), want);
}

#[test]
fn an_empty_file_of_no_tensors_is_sound() {
    let bytes = encode(&[], &[]);
    assert_eq!(bytes, file("{}      ", &[]));
    assert_eq!(SafeTensors::from_bytes("none", bytes).unwrap().names().len(), 0);
}

#[test]
fn unusual_but_sound_files_are_read() {
    // Any order, white space, escapes, a zero-size tensor on a border, `BOOL`.
    let header = r#"{ "b" : {"data_offsets":[4,6],"shape":[2],"dtype":"BOOL"} ,
        "z":{"dtype":"F64","shape":[0,3],"data_offsets":[4,4]},
        "\u0061":{"shape":[ 1 ],"dtype":"F32","data_offsets":[0,4]}, "__metadata__":{} }  "#;
    let read = SafeTensors::from_bytes("odd", file(header, &[0, 0, 0x80, 0x3f, 1, 0])).unwrap();
    assert_eq!(read.names().collect::<Vec<_>>(), ["a", "b", "z"]);
    assert_eq!(read.get("a").unwrap().to_vec::<f32>().unwrap(), [1.0]);
    assert_eq!(read.get("b").unwrap().to_vec::<u8>().unwrap(), [1, 0]);
    assert_eq!(read.get("z").unwrap().shape(), [0, 3]);
    let missing = read.get("c").unwrap_err();
    assert!(missing.kind() == ErrorKind::Data && missing.message().contains("a, b, z"), "{missing}");

    let boolean = r#"{"b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
    let read = SafeTensors::from_bytes("bool", file(boolean, &[2])).unwrap();
    assert_eq!(read.get("b").unwrap_err().kind(), ErrorKind::Data);
}

#[test]
fn names_and_keys_that_occur_twice_are_refused() {
    let one = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let two = r#"{"dtype":"U8","shape":[1],"data_offsets":[1,2]}"#;
    refused(&format!(r#"{{"a":{one},"a":{two}}}"#), &[0; 2], "\"a\" occurs twice");
    refused(&format!(r#"{{"a":{one},"\u0061":{two}}}"#), &[0; 2], "\"a\" occurs twice");
    // The same range under two names, and an auditor's view against a loader's: one key, two meanings.
    refused(&format!(r#"{{"a":{one},"b":{one}}}"#), &[0], "overlaps");
    let float = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let bytes = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    refused(&format!(r#"{{"a":{bytes},"a":{float}}}"#), &[0; 4], "overlaps");
    refused(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0], "occurs twice");
    refused(
        r#"{"a":{"dtype":"U8","shape":[1],"\u0073hape":[1],"data_offsets":[0,1]}}"#,
        &[0],
        "occurs twice",
    );
    refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, &[], "\"k\" occurs twice");
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, &[], "occurs twice");
}

#[test]
fn ranges_that_do_not_tile_the_data_are_refused() {
    let entry = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let pair = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    refused(&pair(entry("[4]", 0, 4), entry("[4]", 3, 7)), &[0; 7], "overlaps");
    refused(&pair(entry("[4]", 0, 4), entry("[2]", 1, 3)), &[0; 4], "overlaps");
    refused(&pair(entry("[4]", 0, 4), entry("[4]", 5, 9)), &[0; 9], "belong to no tensor");
    refused(&pair(entry("[4]", 1, 5), entry("[4]", 5, 9)), &[0; 9], "belong to no tensor");
    refused(&format!(r#"{{"a":{}}}"#, entry("[4]", 0, 4)), &[0; 5], "1 trailing bytes");
    refused(&format!(r#"{{"a":{}}}"#, entry("[4]", 0, 4)), &[0; 3], "truncated");
    refused("{}", &[0], "trailing");
    // A tensor without elements that claims another's bytes, lies inside another, or beyond the end.
    refused(&pair(entry("[4]", 0, 4), entry("[0]", 0, 4)), &[0; 4], "takes 0 bytes");
    refused(&pair(entry("[4]", 0, 4), entry("[0]", 2, 2)), &[0; 4], "overlaps");
    refused(&pair(entry("[4]", 0, 4), entry("[0]", 9, 9)), &[0; 4], "belong to no tensor");
    refused(&format!(r#"{{"a":{}}}"#, entry("[4]", 4, 0)), &[0; 4], "takes 4 bytes");
    refused(&format!(r#"{{"a":{}}}"#, entry("[4]", 0, 5)), &[0; 5], "takes 4 bytes");
    refused(&format!(r#"{{"a":{}}}"#, entry("[]", 0, 0)), &[], "takes 1 bytes");
    refused(&format!(r#"{{"a":{}}}"#, entry("[4]", u64::MAX, 3)), &[0; 4], "takes 4 bytes");
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in [
        "[4194305,4194305,211106198978564]",
        "[9223372036854775807,2]",
        "[18446744073709551615]",
        "[4294967296,4294967296]",
        "[0,9223372036854775807,9223372036854775807]",
        "[9223372036854775807,9223372036854775807,0]",
        "[2305843009213693952]",
    ] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        refused(&header, &[0; 4], "overflows");
    }
    let header = r#"{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}"#;
    refused(header, &[0; 4], "64 bits");
}

#[test]
fn malformed_headers_are_refused() {
    for (header, words) in [
        ("", "'{'"),
        (" {}", "'{'"),
        ("[]", "'{'"),
        ("{", "a string"),
        ("{}x", "nothing but spaces"),
        ("{}\n", "nothing but spaces"),
        ("{}{}", "nothing but spaces"),
        ("{\"a\"}", "':'"),
        ("{\"a\":1}", "an object"),
        ("{\"a\":{}}", "lacks"),
        ("{\"a\":{},}", "lacks"),
        ("{\"a\":null}", "an object"),
        ("{a:{}}", "a string"),
        ("{\"\\ud800\":{}}", "surrogate"),
        (r#"{"__metadata__":null}"#, "an object"),
        (r#"{"__metadata__":{"a":1}}"#, "a string"),
        (r#"{"__metadata__":{"a":{"b":"c"}}}"#, "a string"),
        (r#"{"__metadata__":{"a":"b",}}"#, "a string"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],}}"#, "a string"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}"#, "a string"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}}"#, "found \"more\""),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#, "two data_offsets"),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, "at most 2"),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, "unsigned"),
        (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, "integer"),
        (r#"{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}"#, "integer"),
        (r#"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#, "unsigned"),
        (r#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#, "an array"),
        (r#"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#, "a string"),
    ] {
        refused(header, &[0], words);
    }
    let many = vec!["1"; 65].join(",");
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{many}],"data_offsets":[0,1]}}}}"#);
    refused(&header, &[0], "at most 64");
    let mut bytes = file(r#"{"abcd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]);
    bytes[8 + 3] = 0xff;
    assert!(refusal(&bytes).contains("byte 3: not UTF-8"));
    // Deep nesting must not exhaust the stack.
    refused(&"{\"a\":".repeat(1_000_000), &[], "found");
    refused(&format!("{{\"a\":{{\"shape\":{}", "[".repeat(1_000_000)), &[], "unsigned");
}

#[test]
fn absurd_headers_are_refused_without_the_memory_they_ask_for() {
    for len in [3u64, 100_000_001, u64::MAX, u64::MAX - 7, 1 << 63] {
        let message = refusal(&[&len.to_le_bytes()[..], b"{}"].concat());
        assert!(message.contains(&len.to_string()), "{message}");
    }
    for len in 0..8 {
        assert!(refusal(&vec![0; len]).contains("truncated"));
    }
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let error = SafeTensors::from_bytes("pointer", pointer).unwrap_err();
    assert!(error.help().unwrap().contains("git lfs pull"));
}

#[test]
fn a_header_of_too_many_tensors_is_refused() {
    let mut header = String::from("{");
    for i in 0..=safetensors::MAX_TENSORS {
        header.push_str(if i == 0 { "" } else { "," });
        header.push_str(&format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#));
    }
    header.push('}');
    refused(&header, &[], "at most 1000000 tensors");
}

#[test]
fn an_unknown_dtype_is_named() {
    for dtype in ["F8_E4M3", "U64", "I8", "C64", "f32", ""] {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,1]}}}}"#);
        refused(&header, &[0], &format!("{dtype:?}"));
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_byte() {
    let bytes = encode(&[("w", tensor(DType::F32, &[2, 3])), ("e", tensor(DType::U8, &[0]))], &[("k", "v")]);
    for len in 0..bytes.len() {
        refusal(&bytes[..len]);
    }
    assert!(SafeTensors::from_bytes("whole", bytes).is_ok());
}

#[test]
fn a_flipped_bit_is_refused_or_keeps_the_file_well_formed() {
    let bytes = encode(&[("w", tensor(DType::F32, &[2, 3])), ("b", tensor(DType::I64, &[1]))], &[("k", "v")]);
    let whole = SafeTensors::from_bytes("whole", bytes.clone()).unwrap();
    let data_start = bytes.len() - whole.header().data_bytes();
    let mut accepted = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match SafeTensors::from_bytes("flipped", flipped) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Data);
                assert!(bit / 8 < data_start, "a payload bit changed the structure");
            }
            Ok(read) => {
                accepted += 1;
                // Names, metadata and types of equal width may have changed; the sizes cannot have.
                let sizes = |s: &SafeTensors| {
                    let mut sizes: Vec<_> =
                        s.header().entries().iter().map(|e| (e.range().start, e.shape().to_vec())).collect();
                    sizes.sort();
                    sizes
                };
                assert_eq!(sizes(&read), sizes(&whole), "bit {bit}");
            }
        }
    }
    assert!(accepted >= 8 * whole.header().data_bytes());
}

#[test]
fn the_writer_refuses_what_it_could_not_read_back() {
    let one = || tensor(DType::U8, &[1]);
    for names in [["a", "a"], ["a", "__metadata__"]] {
        let mut bytes = Vec::new();
        let error =
            safetensors::write_to(&mut bytes, &names.map(|n| (n, one())), &BTreeMap::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
        assert!(bytes.is_empty());
    }
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let scratch = Scratch::new("failed");
    let path = scratch.0.join("m.safetensors");
    safetensors::write(&path, &[("a", tensor(DType::F32, &[3]))], &BTreeMap::new()).unwrap();
    let old = fs::read(&path).unwrap();
    let twice = [("a", tensor(DType::F32, &[1])), ("a", tensor(DType::F32, &[1]))];
    assert!(safetensors::write(&path, &twice, &BTreeMap::new()).is_err());
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "a temporary file was left");
    safetensors::write(&path, &[("b", tensor(DType::U8, &[1]))], &BTreeMap::new()).unwrap();
    assert_eq!(safetensors::read(&path).unwrap().names().collect::<Vec<_>>(), ["b"]);

    let nowhere = scratch.0.join("missing").join("m.safetensors");
    let error =
        safetensors::write(&nowhere, &[("a", tensor(DType::U8, &[1]))], &BTreeMap::new()).unwrap_err();
    assert_eq!((error.kind(), &error.place().unwrap().file), (ErrorKind::Data, &nowhere));
    if PathBuf::from("/dev/full").exists() {
        let error = safetensors::write("/dev/full", &[("a", tensor(DType::U8, &[1]))], &BTreeMap::new());
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Data);
        assert!(PathBuf::from("/dev/full").exists());
    }
}

#[test]
fn what_is_not_a_file_is_refused() {
    let scratch = Scratch::new("not-a-file");
    for path in [scratch.0.join("missing"), scratch.0.clone(), PathBuf::from("/dev/zero")] {
        for error in [safetensors::read(&path).unwrap_err(), safetensors::read_header(&path).unwrap_err()] {
            assert_eq!((error.kind(), &error.place().unwrap().file), (ErrorKind::Data, &path));
        }
    }
}

#[test]
fn the_header_is_read_without_the_data() {
    // A sparse file of a terabyte: reading its data would fail for memory or take minutes.
    let scratch = Scratch::new("sparse");
    let path = scratch.0.join("big.safetensors");
    let header = r#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#;
    fs::write(&path, file(header, &[])).unwrap();
    let len = 8 + header.len() as u64 + (1 << 40);
    if fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).is_err() {
        println!("skipped: this file system has no sparse file of a terabyte");
        return;
    }
    assert_eq!(safetensors::read_header(&path).unwrap().data_bytes(), 1 << 40);
}

#[test]
fn pythons_safetensors_reads_ours() {
    let scratch = Scratch::new("python");
    let path = scratch.0.join("ours.safetensors");
    let tensors: Vec<_> = DType::ALL
        .into_iter()
        .filter(|d| *d != DType::BF16) // numpy has no such type
        .flat_map(|d| [(format!("{d}.two"), tensor(d, &[2, 3])), (format!("{d}.none"), tensor(d, &[0, 3]))])
        .collect();
    safetensors::write(&path, &tensors, &BTreeMap::from([("format".into(), "pt".into())])).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-safetensors.py");
    match Command::new("python3").arg(script).arg(&path).output() {
        Ok(out) if out.status.code() == Some(77) => {
            println!("skipped: {}", String::from_utf8_lossy(&out.stderr).trim())
        }
        Err(e) => println!("skipped: no python3: {e}"),
        Ok(out) => {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let seen = String::from_utf8(out.stdout).unwrap();
            let mut want: Vec<String> = tensors
                .iter()
                .map(|(name, t)| {
                    let hex: String = t.bytes().iter().map(|b| format!("{b:02x}")).collect();
                    format!("{name} {:?} {hex}", t.shape())
                })
                .collect();
            want.sort();
            assert_eq!(
                seen.lines().map(str::trim_end).collect::<Vec<_>>(),
                want.iter().map(|l| l.trim_end()).collect::<Vec<_>>()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SafeTensors::from_bytes("random", bytes);
    }

    #[test]
    fn random_headers_never_panic(text in r#"\{["a:\{\}\[\],0-9\\u shapedtyF32_ofs]{0,80}"#, data in 0usize..9) {
        let _ = SafeTensors::from_bytes("random", file(&text, &vec![0; data]));
    }

    #[test]
    fn a_spoilt_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&[("w", tensor(DType::F16, &[2, 2])), ("n", tensor(DType::I32, &[]))], &[("k", "v")]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = SafeTensors::from_bytes("spoilt", bytes) {
            for name in read.names() {
                let _ = read.get(name);
            }
        }
    }

    #[test]
    fn what_is_written_is_read(
        tensors in prop::collection::btree_map(".{0,12}", (0usize..7, prop::collection::vec(0usize..4, 0..4)), 0..6),
        metadata in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
    ) {
        let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| name != "__metadata__")
            .map(|(name, (d, shape))| (name, tensor(DType::ALL[d], &shape))).collect();
        let mut bytes = Vec::new();
        safetensors::write_to(&mut bytes, &tensors, &metadata).unwrap();
        let read = SafeTensors::from_bytes("written", bytes).unwrap();
        prop_assert_eq!(read.metadata(), &metadata);
        prop_assert_eq!(read.names().len(), tensors.len());
        for (name, tensor) in &tensors {
            prop_assert_eq!(&read.get(name).unwrap(), tensor);
        }
    }
}
