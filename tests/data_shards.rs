//! Token shards: llm.c's form read back, past 2 and 4 GiB too, in order, and refused where it is damaged.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use warpsmith::data::text::{
    Corpus, ShardFiles, TextData, TokenizeOptions, Tokenizer, TokenizerKind, Windows, builtin_text, tokenize,
};
use warpsmith::{Error, ErrorKind, Result};

/// An empty folder that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warpsmith-shards-{}-{n}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shard as llm.c's data_common.py writes it.
fn shard(tokens: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[..4].copy_from_slice(&20_240_520i32.to_le_bytes());
    bytes[4..8].copy_from_slice(&1i32.to_le_bytes());
    bytes[8..12].copy_from_slice(&(tokens.len() as i32).to_le_bytes());
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    bytes
}

fn is(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in {error}");
    }
}

fn go_on(_: u64) -> Result<()> {
    Ok(())
}

#[test]
fn damaged_shards_say_what_was_expected_and_found() {
    let scratch = Scratch::new("damaged");
    let good = shard(&[1, 2, 3]);
    let with = |at: usize, word: i32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        bytes
    };
    let cases: [(Vec<u8>, &[&str]); 9] = [
        (with(0, 20_240_521), &["magic 20240520, found 20240521"]),
        (with(0, 20_240_801), &["found 20240801", "Llama 3"]),
        (with(4, 7), &["version 1, found 7"]),
        (with(8, 4), &["expected 1032 bytes for the 4 tokens", "found 1030"]),
        (with(8, 2), &["expected 1028 bytes", "found 1030"]),
        (with(8, -1), &["4294967295 tokens", "found 1030"]),
        (good[..1029].to_vec(), &["expected 1030", "found 1029"]),
        (good[..1023].to_vec(), &["header of 1024", "found 1023"]),
        (Vec::new(), &["found 0 bytes"]),
    ];
    for (bytes, words) in cases {
        let path = scratch.write("damaged.bin", bytes);
        is(
            &Corpus::open_shards(&path, 10).unwrap_err(),
            ErrorKind::Data,
            &[&["damaged.bin"], words].concat(),
        );
    }
    let path = scratch.write("good.bin", &good);
    assert_eq!(Corpus::open_shards(path, 10).unwrap().tokens(0), [1, 2, 3]);
    is(&Corpus::open_shards(scratch.path("missing.bin"), 10).unwrap_err(), ErrorKind::Data, &["missing.bin"]);
    is(
        &Corpus::open_shards(scratch.path("*.tok"), 10).unwrap_err(),
        ErrorKind::Data,
        &["no token shards", "*.tok"],
    );
    is(&Corpus::open_shards("/dev/null", 10).unwrap_err(), ErrorKind::Data, &["/dev/null"]);
    let windows = Windows::new(&Corpus::open_shards(scratch.path("good.bin"), 3).unwrap(), 1, 2).unwrap();
    let words = &["good.bin", "token 3 at position 2", "vocabulary of 3"];
    is(&windows.random(0, 0).unwrap_err(), ErrorKind::Data, words);
    // A header and no token is a shard, from which nothing can be cut.
    let empty = Corpus::open_shards(scratch.write("empty.bin", shard(&[])), 3).unwrap();
    is(&Windows::new(&empty, 1, 2).unwrap_err(), ErrorKind::Data, &["empty.bin", "there are 0 tokens"]);
}

/// 5 GiB, all holes but for the header and two windows: positions past 2³¹ and 2³² bytes, and 2³¹ tokens.
#[test]
fn windows_past_2_gib_are_the_right_ones() {
    let scratch = Scratch::new("large");
    let path = scratch.path("large.bin");
    let tokens = (5u64 << 30) / 2;
    let mut file = fs::File::create(&path).unwrap();
    let mut header = shard(&[]);
    header[8..12].copy_from_slice(&(tokens as u32).to_le_bytes());
    file.write_all(&header).unwrap();
    if let Err(e) = file.set_len(1024 + 2 * tokens) {
        println!("skipped: this file system has no sparse file of 5 GiB: {e}");
        return;
    }
    let last = [11u16, 12, 13, 14, 15];
    file.seek(SeekFrom::End(-10)).unwrap();
    file.write_all(bytemuck::cast_slice(&last)).unwrap();
    // The first window that begins behind 2 GiB.
    let at = (1u64 << 30) + 4;
    file.seek(SeekFrom::Start(1024 + 2 * at)).unwrap();
    file.write_all(bytemuck::cast_slice(&[21u16, 22, 23, 24, 25])).unwrap();
    drop(file);

    let corpus = Corpus::open_shards(&path, 100).unwrap();
    assert_eq!(corpus.len(), tokens);
    let windows = Windows::new(&corpus, 1, 4).unwrap();
    let batch = windows.sequential(at / 4).unwrap();
    assert_eq!((batch.inputs, batch.targets), (vec![21, 22, 23, 24], vec![22, 23, 24, 25]));
    assert_eq!(corpus.tokens(0)[tokens as usize - 5..], last);
    // Windows of 3 end exactly at the last token.
    let windows = Windows::new(&corpus, 1, 3).unwrap();
    assert_eq!(windows.sequential_batches().unwrap(), (tokens - 1) / 3);
    let batch = windows.sequential((tokens - 1) / 3 - 1).unwrap();
    assert_eq!((batch.inputs, batch.targets), (vec![12, 13, 14], vec![13, 14, 15]));
    // Random places reach behind 2³¹ tokens.
    let far = (0..64).filter(|&step| windows.random(1, step).is_ok()).count();
    assert_eq!(far, 64);
}

#[test]
fn shards_are_read_one_after_the_other() {
    let scratch = Scratch::new("order");
    // 23 and 9 and 3 tokens: 2 + 1 + 0 batches of 2 windows of 4.
    scratch.write("train_000001.bin", shard(&(100..109).collect::<Vec<_>>()));
    scratch.write("train_000000.bin", shard(&(0..23).collect::<Vec<_>>()));
    scratch.write("train_000002.bin", shard(&[200, 201, 202]));
    scratch.write("val_000000.bin", shard(&(300..310).collect::<Vec<_>>()));
    scratch.write("notes.txt", "not a shard");
    let data = TextData::open_shards(&scratch.0, None, None).unwrap();
    assert_eq!((data.tokenizer.name(), data.train.len(), data.val.len()), ("gpt2", 35, 10));
    let windows = Windows::new(&data.train, 2, 4).unwrap();
    assert_eq!(windows.sequential_batches().unwrap(), 3);
    let firsts: Vec<i32> = (0..7).map(|step| windows.sequential(step).unwrap().inputs[0]).collect();
    assert_eq!(firsts, [0, 8, 100, 0, 8, 100, 0]);
    assert_eq!(windows.sequential(1).unwrap().targets, [9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(windows.sequential(u64::MAX).unwrap().rows, 2);
    // No window crosses from a shard to the next, in any order.
    for step in 0..200 {
        let batch = windows.random(9, step).unwrap();
        for row in batch.inputs.chunks(4) {
            assert!(row.windows(2).all(|w| w[0] + 1 == w[1]), "{row:?}");
        }
    }
    let seen: Vec<i32> = windows.validation().flat_map(|b| b.unwrap().targets).collect();
    let wanted: Vec<i32> = (1..23).chain(101..109).chain(201..203).collect();
    assert_eq!(seen, wanted);
    assert_eq!(windows.predictions(), 32);

    let files = ShardFiles::find(scratch.path("train_*.bin")).unwrap();
    assert_eq!((files.train.len(), files.val.len()), (3, 0));
    assert_eq!(Corpus::open_shards(scratch.path("*_000000.bin"), 400).unwrap().len(), 33);
    let other = TextData::open_shards(scratch.path("train_*"), Some(&scratch.path("val_000000.bin")), None);
    assert_eq!(other.unwrap().val.len(), 10);
    let only_val = TextData::open_shards(scratch.path("val*"), None, None).unwrap_err();
    is(&only_val, ErrorKind::Data, &["only validation shards"]);
    let char = TextData::open_shards(&scratch.0, None, Some(TokenizerKind::Char)).unwrap_err();
    is(&char, ErrorKind::Argument, &["tokenizer.json"]);
}

#[test]
fn a_text_in_shards_is_the_text() {
    let scratch = Scratch::new("whole");
    let text: String = builtin_text().unwrap().chars().take(300_000).collect();
    let path = scratch.write("some.txt", &text);
    for kind in TokenizerKind::ALL {
        let out = scratch.path(kind.name());
        let options = TokenizeOptions { kind, shard_tokens: 20_000, ..TokenizeOptions::default() };
        let done = tokenize(&path, &out, &options, go_on).unwrap();
        let memory = TextData::from_text(&path, kind, 0.1).unwrap();
        let shards = TextData::open(out.to_str().unwrap(), None, 0.1).unwrap();
        assert_eq!(shards.tokenizer, memory.tokenizer);
        assert_eq!((done.train_tokens, done.val_tokens), (memory.train.len(), memory.val.len()));
        assert_eq!(done.bytes, 300_000);
        assert_eq!(done.shards.len(), shards.train.pieces() + shards.val.pieces());
        for (in_shards, in_memory) in [(&shards.train, &memory.train), (&shards.val, &memory.val)] {
            let joined: Vec<u16> =
                (0..in_shards.pieces()).flat_map(|p| in_shards.tokens(p).to_vec()).collect();
            assert_eq!(joined, in_memory.tokens(0));
            let last = in_shards.pieces() - 1;
            assert!((0..last).all(|p| in_shards.tokens(p).len() == 20_000));
        }
        let other = if kind == TokenizerKind::Byte { TokenizerKind::Char } else { TokenizerKind::Byte };
        let error = TextData::open_shards(&out, None, Some(other)).unwrap_err();
        is(&error, ErrorKind::Argument, &["made by the", kind.name(), "tokenizer.json"]);
    }
    assert_eq!(scratch.names(), ["byte", "char", "gpt2", "some.txt"]);
}

#[test]
fn a_failed_run_leaves_nothing() {
    let scratch = Scratch::new("failed");
    let text = scratch.write("some.txt", "one two three ".repeat(1000));
    let options = TokenizeOptions { kind: TokenizerKind::Byte, shard_tokens: 100, val_share: 0.1 };
    let out = scratch.path("out");
    let stop = |_| Err(Error::new(ErrorKind::Interrupted, "stop"));
    is(&tokenize(&text, &out, &options, stop).unwrap_err(), ErrorKind::Interrupted, &[]);
    for (bad, word) in [
        (TokenizeOptions { shard_tokens: 0, ..options.clone() }, "shards of 0"),
        (TokenizeOptions { shard_tokens: 1 << 31, ..options.clone() }, "2147483647"),
        (TokenizeOptions { val_share: 1.0, ..options.clone() }, "share"),
    ] {
        is(&tokenize(&text, &out, &bad, go_on).unwrap_err(), ErrorKind::Argument, &[word]);
    }
    assert_eq!(scratch.names(), ["some.txt"]);
    // An empty folder is taken, a full one is not touched.
    fs::create_dir(&out).unwrap();
    tokenize(&text, &out, &options, go_on).unwrap();
    let before = fs::metadata(out.join("train_000000.bin")).unwrap().modified().unwrap();
    is(&tokenize(&text, &out, &options, go_on).unwrap_err(), ErrorKind::Argument, &["out", "already there"]);
    assert_eq!(fs::metadata(out.join("train_000000.bin")).unwrap().modified().unwrap(), before);
    is(
        &tokenize(&text, &text, &options, go_on).unwrap_err(),
        ErrorKind::Argument,
        &["some.txt", "already there"],
    );
    assert_eq!(Tokenizer::load(Path::new(&out).join("tokenizer.json")).unwrap(), Tokenizer::Byte);
}
