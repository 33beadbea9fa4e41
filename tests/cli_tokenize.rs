//! `warpsmith tokenize` as a user runs it.

mod cli_support;

use cli_support::Place;

#[test]
fn a_text_becomes_shards() {
    let place = Place::new("tokenize");
    // "Hello world\n" is three tokens of GPT-2; 90 of 100 lines train.
    place.write("hello.txt", "Hello world\n".repeat(100));
    let report = place.json("tokenize --data hello.txt --out shards --shard-tokens 200");
    assert_eq!((&report["tokenizer"], &report["vocab"]), (&"gpt2".into(), &50_257.into()));
    assert_eq!((&report["train_tokens"], &report["val_tokens"]), (&270.into(), &30.into()));
    assert_eq!(report["bytes"], 1200);
    assert_eq!(
        report["shards"],
        serde_json::json!(["train_000000.bin", "train_000001.bin", "val_000000.bin"])
    );
    assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
    let first = place.read("shards/train_000000.bin");
    assert_eq!(first.len(), 1024 + 400);
    let word = |i: usize| i32::from_le_bytes(first[4 * i..4 * i + 4].try_into().unwrap());
    assert_eq!([word(0), word(1), word(2), word(3)], [20_240_520, 1, 200, 0]);
    assert_eq!(first[1024..1030], [0x88, 0x3c, 0xe3, 0x03, 0xc6, 0x00]); // 15496, 995, 198
    assert_eq!(place.text("shards/tokenizer.json"), "{\"kind\":\"gpt2\"}\n");

    let run = place.ok("tokenize --data hello.txt --tokenizer char --out chars --val-share 0");
    for word in ["char, 9 tokens", "1,200 to train, 0 to validate", "1 shards", "tokens/s"] {
        assert!(run.stdout.contains(word), "{word:?} is not in {}", run.stdout);
    }
    let names: Vec<_> = place.files("chars").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    // The same bytes on any number of threads.
    place.ok("tokenize --data hello.txt --out one --shard-tokens 200 --threads 1");
    let contents = |dir: &str| place.files(dir).into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
    assert_eq!(contents("one"), contents("shards"));
}

#[test]
fn what_cannot_be_tokenized_is_refused() {
    let place = Place::new("tokenize-bad");
    place.write("hello.txt", "Hello world\n");
    place.write("bad.txt", b"fine\nnot \xe9 fine\n");
    place.write("empty.txt", "");
    std::fs::create_dir(place.path().join("full")).unwrap();
    place.write("full/keep.txt", "");
    for (line, code, words) in [
        ("--data bad.txt --out o", 4, &["bad.txt, line 2", "0xe9", "offset 9", "--tokenizer byte"][..]),
        ("--data bad.txt --tokenizer char --out o", 4, &["bad.txt, line 2"]),
        ("--data empty.txt --out o", 4, &["empty.txt", "the text is empty"]),
        ("--data missing.txt --out o", 4, &["missing.txt"]),
        ("--data . --out o", 4, &["found a folder"]),
        ("--data hello.txt --out full", 2, &["full", "already there"]),
        ("--data hello.txt --out hello.txt", 2, &["already there"]),
        ("--data hello.txt --out o --tokenizer word", 2, &["'word'", "char, byte or gpt2"]),
        ("--data hello.txt --out o --val-share 1", 2, &["validation share of 1"]),
        ("--data hello.txt --out o --val-share -0.5", 2, &["validation share of -0.5"]),
        ("--data hello.txt --out o --shard-tokens 0", 2, &["--shard-tokens"]),
        ("--data hello.txt --out o --shard-tokens 2147483648", 2, &["2147483647"]),
        ("--data hello.txt --out o --threads 0", 2, &["--threads 0"]),
    ] {
        place.refuses(&format!("tokenize {line}"), code, words);
    }
    place.ok("tokenize --data bad.txt --tokenizer byte --out o");
}
