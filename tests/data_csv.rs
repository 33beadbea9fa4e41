//! Reading CSV: what is understood, and every bad file of which an error must name file, line and column.
#![cfg(feature = "train")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use warpsmith::data::{Column, ColumnKind, Schema, Table, TargetUse};
use warpsmith::{Error, ErrorKind};

fn read(text: impl AsRef<[u8]>) -> Result<Table, Error> {
    Table::from_csv("t.csv", text.as_ref(), None)
}

fn numbers(table: &Table, name: &str) -> Vec<Option<f64>> {
    match table.column(table.index_of(name).unwrap()) {
        Column::Number(values) => values.iter().map(|v| (!v.is_nan()).then_some(*v)).collect(),
        Column::Text(_) => panic!("{name} is text"),
    }
}

fn texts(table: &Table, name: &str) -> Vec<Option<String>> {
    match table.column(table.index_of(name).unwrap()) {
        Column::Text(texts) => (0..table.rows()).map(|row| texts.get(row).map(str::to_owned)).collect(),
        Column::Number(_) => panic!("{name} is numeric"),
    }
}

/// The error of a bad file as file, line, column; its kind is checked.
fn place(error: &Error) -> (String, Option<u64>, Option<String>) {
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    let place = error.place().expect("an error about a file names it");
    (place.file.display().to_string(), place.line, place.column.clone())
}

fn at(line: u64, column: &str) -> (String, Option<u64>, Option<String>) {
    ("t.csv".to_owned(), Some(line), Some(column.to_owned()))
}

#[test]
fn quotes_crlf_bom_and_spaces_are_understood() {
    let text = "\u{feff}size ,\"the name\" \r\n 1.5,\"a, \"\"b\"\"\"\r\n2 , pear \r\n3,\"last\"";
    let table = read(text).unwrap();
    assert_eq!(table.names(), ["size", "the name"]);
    assert_eq!(numbers(&table, "size"), [Some(1.5), Some(2.0), Some(3.0)]);
    assert_eq!(texts(&table, "the name"), ["a, \"b\"", "pear", "last"].map(|text| Some(text.to_owned())));
}

#[test]
fn missing_cells_are_missing_in_both_kinds_of_columns() {
    let table = read("n,t\n,\nNA,NA\n N/A ,N/A\nnull, null\n?,?\n\"\",\"\"\n1,x\n").unwrap();
    assert_eq!(numbers(&table, "n"), [None, None, None, None, None, None, Some(1.0)]);
    assert_eq!(texts(&table, "t")[..6], [None, None, None, None, None, None]);
    assert!(table.column(0).is_missing(0) && !table.column(0).is_missing(6));
}

#[test]
fn half_of_the_filled_cells_decide() {
    // Exactly half: numeric, so the text is an error. Missing cells do not count.
    let error = read("a,b\n1,x\n,x\noops,x\n").unwrap_err();
    assert_eq!(place(&error), at(4, "a"));
    assert!(error.message().contains("'oops'"), "{error}");
    assert!(error.help().unwrap().contains("missing"), "{error}");
    // One of three: text, and the number keeps its spelling.
    let table = read("a,b\n01,x\nv,x\nw,x\n").unwrap();
    assert_eq!(texts(&table, "a")[0].as_deref(), Some("01"));
    // Nothing filled: numeric.
    assert_eq!(read("a,b\n,x\n,x\n").unwrap().column(0).kind(), ColumnKind::Number);
}

#[test]
fn nan_and_inf_are_errors_in_every_column() {
    for bad in ["nan", "NaN", "inf", "-Infinity", "NAN"] {
        assert_eq!(place(&read(format!("a,b\n1,x\n{bad},y\n")).unwrap_err()), at(3, "a"));
        assert_eq!(place(&read(format!("a,b\n1,x\n2,{bad}\n")).unwrap_err()), at(3, "b"));
    }
    // A number beyond f64 is not silently infinite.
    assert_eq!(place(&read("a\n1\n2\n1e999\n").unwrap_err()), at(4, "a"));
}

#[test]
fn lines_are_counted_over_blank_lines_crlf_and_cells_of_several_lines() {
    let text = "a,b\r\n1,\"two\r\nlines\"\r\n\r\n\r\n2,y\r\n  \r\noops,z\r\n3,z\r\n";
    let error = read(text).unwrap_err();
    assert_eq!(place(&error), at(8, "a"));
    let table = read(text.replace("oops", "7")).unwrap();
    let lines: Vec<u64> = (0..4).map(|row| table.error(row, 0, "x").place().unwrap().line.unwrap()).collect();
    assert_eq!(lines, [2, 6, 8, 9]);
    // The text inside the quotes keeps its line break.
    assert_eq!(texts(&table, "b")[0].as_deref(), Some("two\r\nlines"));
}

#[test]
fn files_without_data_are_errors() {
    for (text, want) in [
        ("", "empty"),
        ("\n\n", "empty"),
        ("\u{feff}", "empty"),
        ("a,b\n", "no rows"),
        ("a,b", "no rows"),
        ("a,b\r\n\r\n", "no rows"),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(place(&error).0, "t.csv");
        assert!(error.message().contains(want), "{text:?}: {error}");
    }
}

#[test]
fn bad_headers_are_errors() {
    for (text, want) in [
        ("a,b,a\n1,2,3\n", "both called 'a'"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ("1,2,3\n4,5,6\n", "found a row of numbers"),
        ("a;b\n1;2\n", "no comma"),
        ("a\tb\n1\t2\n", "no comma"),
        ("a,b\r1,2\r", "several lines"),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(place(&error).0, "t.csv");
        assert!(error.message().contains(want), "{text:?}: {error}");
    }
}

#[test]
fn a_ragged_row_is_an_error_with_its_line() {
    for (text, found) in [("a,b\n1,2\n3\n", "found 1"), ("a,b\n1,2\n3,4,5\n", "found 3")] {
        let error = read(text).unwrap_err();
        assert_eq!(place(&error), ("t.csv".to_owned(), Some(3), None));
        assert!(error.message().contains("expected 2 cells") && error.message().contains(found), "{error}");
    }
}

/// The csv crate takes all that follows into one cell and says nothing.
#[test]
fn a_quotation_mark_that_is_never_closed_is_an_error_with_its_line() {
    for (text, line) in [("a,b\n1,x\n2,\"y\n3,z\n", 3), ("a,b\n1,\"x", 2), ("a,\"b\n1,2\n", 1), ("\"", 1)] {
        let error = read(text).unwrap_err();
        assert_eq!(place(&error), ("t.csv".to_owned(), Some(line), None));
        assert!(error.message().contains("never closed"), "{error}");
    }
    assert_eq!(read("a,b\n1,\"x\n\"").unwrap().rows(), 1);
}

#[test]
fn invalid_utf8_is_an_error_with_its_place() {
    assert_eq!(place(&read(b"a,b\n1,ok\n2,\xff\xfe\n").unwrap_err()), at(3, "b"));
    assert_eq!(place(&read(b"a,\xc3\n1,2\n").unwrap_err()), at(1, "number 2"));
    // UTF-16 as some spreadsheets write it.
    assert_eq!(read(b"\xff\xfea\0,\0b\0\n\0").unwrap_err().kind(), ErrorKind::Data);
}

#[test]
fn unreadable_files_are_errors() {
    for path in ["no/such/file.csv", "tests"] {
        let error = Table::read_csv(path, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().starts_with(path), "{error}");
    }
}

/// A file under the build's own folder for temporary files.
fn temporary(name: &str, content: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn gzip_is_read_and_a_damaged_one_is_an_error() {
    let text = "a,b\n1,x\n2,y\n";
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let zipped = encoder.finish().unwrap();
    let path = temporary("plain.csv.gz", &zipped);
    let table = Table::read_csv(&path, None).unwrap();
    assert_eq!(numbers(&table, "a"), [Some(1.0), Some(2.0)]);
    assert_eq!(texts(&table, "b"), [Some("x".to_owned()), Some("y".to_owned())]);

    for cut in [5, zipped.len() / 2, zipped.len() - 4] {
        let path = temporary("cut.csv.gz", &zipped[..cut]);
        assert_eq!(Table::read_csv(&path, None).unwrap_err().kind(), ErrorKind::Data);
    }
    let mut flipped = zipped;
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    assert_eq!(Table::read_csv(temporary("bad.csv.gz", &flipped), None).unwrap_err().kind(), ErrorKind::Data);
}

/// A pipe cannot be read twice, and a file with texts must be.
#[cfg(unix)]
#[test]
fn a_pipe_with_texts_is_read() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pipe.csv");
    let _ = std::fs::remove_file(&path);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, "a,b\n1,x\n2,y\n").unwrap()
    });
    let table = Table::read_csv(&path, None).unwrap();
    writer.join().unwrap();
    assert_eq!(texts(&table, "b"), [Some("x".to_owned()), Some("y".to_owned())]);
}

#[test]
fn a_limit_reads_the_first_rows_only() {
    let table = Table::from_csv("t.csv", b"a,b\n1,x\n2,y\nnan,z\n", Some(2)).unwrap();
    assert_eq!(table.rows(), 2);
    assert_eq!(texts(&table, "b"), [Some("x".to_owned()), Some("y".to_owned())]);
}

fn schema() -> Schema {
    Schema::of(&read("size,colour,kind\n1,red,a\n2,blue,b\n").unwrap(), Some(2))
}

fn predict(text: &str) -> Result<warpsmith::data::Matched, Error> {
    Table::from_csv_as("t.csv", text.as_bytes(), &schema(), TargetUse::Ignored)
}

#[test]
fn prediction_matches_by_name_in_any_order() {
    let matched = predict("id,colour,kind,size\nnan-free,red,a,5\nz,7,b,\n").unwrap();
    assert_eq!(matched.table.names(), ["size", "colour"]);
    assert_eq!(numbers(&matched.table, "size"), [Some(5.0), None]);
    // The model says that colours are texts, whatever they look like here.
    assert_eq!(texts(&matched.table, "colour")[1].as_deref(), Some("7"));
    assert_eq!(matched.note, None);
    // A column that is not used may hold anything.
    assert!(predict("junk,colour,size\ninf,red,1\n").is_ok());
}

#[test]
fn prediction_matches_by_position_and_says_so() {
    let matched = predict("x,y\n5,red\n").unwrap();
    assert_eq!(matched.table.names(), ["size", "colour"]);
    assert!(matched.note.unwrap().contains("by position"));
    // A target column does not count.
    let matched = predict("kind,x,y\na,5,red\n").unwrap();
    assert_eq!(numbers(&matched.table, "size"), [Some(5.0)]);
}

#[test]
fn a_file_without_a_header_is_matched_by_position() {
    let schema = Schema::of(&read("u,v,w\n1,2,3\n").unwrap(), Some(2));
    let read = |text: &str, target| Table::from_csv_as("t.csv", text.as_bytes(), &schema, target);
    let matched = read("4,5\n6,\n", TargetUse::Ignored).unwrap();
    assert_eq!(numbers(&matched.table, "u"), [Some(4.0), Some(6.0)]);
    assert_eq!(numbers(&matched.table, "v"), [Some(5.0), None]);
    assert!(matched.note.unwrap().contains("no header"));
    // Its first line is line 1.
    assert_eq!(place(&read("4,5\nx,7\n", TargetUse::Ignored).unwrap_err()), at(2, "u"));
    let error = read("4,5,6\n", TargetUse::Ignored).unwrap_err();
    assert!(error.message().contains("2 inputs") && error.message().contains("3 columns"), "{error}");
    // A header of digits that are the model's names is a header.
    let digits = Schema {
        inputs: vec![("1".into(), ColumnKind::Number), ("2".into(), ColumnKind::Number)],
        target: None,
    };
    let matched = Table::from_csv_as("t.csv", b"2,1\n3,4\n", &digits, TargetUse::Ignored).unwrap();
    assert_eq!(numbers(&matched.table, "1"), [Some(4.0)]);
}

#[test]
fn columns_that_do_not_match_are_errors() {
    // Too few, too many, and the treacherous one: a misspelt name beside a moved one.
    for text in ["size\n1\n", "x,y,z\n1,red,3\n", "colour,sise\nred,1\n"] {
        let error = predict(text).unwrap_err();
        assert!(error.message().contains("2 inputs"), "{error}");
        assert!(error.help().unwrap().contains("by position"), "{error}");
    }
    assert_eq!(place(&predict("size,colour\nbig,red\n").unwrap_err()), at(2, "size"));
    assert_eq!(place(&predict("size,colour\nnan,red\n").unwrap_err()), at(2, "size"));
}

#[test]
fn evaluation_needs_the_target_by_name() {
    let read = |text: &str| Table::from_csv_as("t.csv", text.as_bytes(), &schema(), TargetUse::Needed);
    let matched = read("kind,colour,size\na,red,1\n").unwrap();
    assert_eq!(matched.table.names(), ["size", "colour", "kind"]);
    assert!(read("colour,size\nred,1\n").unwrap_err().message().contains("no column 'kind'"));
    assert!(read("1,2,3\n").unwrap_err().message().contains("no column 'kind'"));
}

#[test]
fn a_matrix_is_matched_like_a_file() {
    let matrix = || Table::from_matrix("x.npy", &[1.0f32, 2.0, 3.0, 4.0], 2, 2).unwrap();
    let trained = Schema::of(&read("u,v,w\n1,2,3\n").unwrap(), Some(2));
    let matched = trained.match_table(matrix(), TargetUse::Ignored).unwrap();
    assert_eq!(numbers(&matched.table, "v"), [Some(2.0), Some(4.0)]);
    assert!(matched.note.is_some());
    let error = schema().match_table(matrix(), TargetUse::Ignored).unwrap_err();
    assert!(error.message().contains("expected text"), "{error}");
}

/// A cell and how a table shows it.
fn any_cell() -> impl Strategy<Value = (String, Option<String>)> {
    prop_oneof![
        4 => "[a-zé,\"\n ]{0,6}x".prop_map(|text| (text.clone(), Some(text.trim().to_owned()))),
        1 => prop_oneof![Just(""), Just("NA"), Just(" N/A "), Just("null"), Just("?")]
            .prop_map(|text| (text.to_owned(), None)),
    ]
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(
        rows in prop::collection::vec((any::<i32>(), -1e9..1e9f64, any_cell(), any_cell()), 1..30),
        crlf: bool,
        last_newline: bool,
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let quoted = |cell: &str| format!("\"{}\"", cell.replace('"', "\"\""));
        let mut text = format!("i,f,s,t{end}");
        for (integer, float, (first, _), (second, _)) in &rows {
            write!(text, "{integer},{float:?},{},{}{end}", quoted(first), quoted(second)).unwrap();
        }
        // A text of another kind keeps the last two columns text when all cells are missing.
        write!(text, "0,0.5,word,word{end}").unwrap();
        let text = if last_newline { text.as_str() } else { text.trim_end() };
        let table = read(text).unwrap();
        prop_assert_eq!(table.rows(), rows.len() + 1);
        let integers: Vec<Option<f64>> = rows.iter().map(|row| Some(f64::from(row.0))).collect();
        let floats: Vec<Option<f64>> = rows.iter().map(|row| Some(row.1)).collect();
        prop_assert_eq!(&numbers(&table, "i")[..rows.len()], integers);
        prop_assert_eq!(&numbers(&table, "f")[..rows.len()], floats);
        let first: Vec<Option<String>> = rows.iter().map(|row| row.2.1.clone()).collect();
        let second: Vec<Option<String>> = rows.iter().map(|row| row.3.1.clone()).collect();
        prop_assert_eq!(&texts(&table, "s")[..rows.len()], first);
        prop_assert_eq!(&texts(&table, "t")[..rows.len()], second);
    }

    #[test]
    fn no_file_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for bytes in [bytes.clone(), [&[0x1f, 0x8b, 8], bytes.as_slice()].concat()] {
            let _ = read(&bytes).map_err(|error| assert_eq!(error.kind(), ErrorKind::Data));
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ab1.,\"\r\n? -]{0,60}") {
        let _ = read(&text).map_err(|error| assert_eq!(error.kind(), ErrorKind::Data));
        let _ = Table::from_csv_as("t.csv", text.as_bytes(), &schema(), TargetUse::Ignored)
            .map_err(|error| assert_eq!(error.kind(), ErrorKind::Data));
    }
}
