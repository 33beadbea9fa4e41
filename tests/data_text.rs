//! Tokenisers, corpora, windows: what they give for known texts, and what they say to bad ones.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use warpsmith::data::text::{
    Characters, Corpus, Decoder, GPT2_END_OF_TEXT, TextData, TokenBatch, Tokenizer, TokenizerKind, Windows,
    builtin_text,
};
use warpsmith::{Error, ErrorKind};

/// An empty folder that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warpsmith-text-{}-{n}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn gpt2() -> Tokenizer {
    Tokenizer::fit(TokenizerKind::Gpt2, b"").unwrap()
}

fn is(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in {error}");
    }
}

/// Tiny Shakespeare, where it is at hand: WARPSMITH_TINY_SHAKESPEARE, or shared/data beside the repository.
fn tiny_shakespeare(what: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tiny-shakespeare.txt");
    let path = std::env::var_os("WARPSMITH_TINY_SHAKESPEARE").map_or(beside, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {what}: no {}", path.display());
    None
}

#[test]
fn characters_are_numbered_in_their_order() {
    let tokenizer = Tokenizer::fit(TokenizerKind::Char, "bébé ba").unwrap();
    let Tokenizer::Char(known) = &tokenizer else { panic!() };
    assert_eq!(known.as_slice(), [' ', 'a', 'b', 'é']);
    assert_eq!(tokenizer.encode("a béa").unwrap(), [1, 0, 2, 3, 1]);
    assert_eq!(tokenizer.decode(&[2, 3]).unwrap(), "bé".as_bytes());
    assert_eq!((tokenizer.vocab(), tokenizer.padded_vocab(), tokenizer.name()), (4, 4, "char"));
    is(
        &tokenizer.encode("éax").unwrap_err(),
        ErrorKind::Argument,
        &["'x' (U+0078)", "position 2", "the 4 that"],
    );
    is(
        &tokenizer.encode("é\u{30a2}").unwrap_err(),
        ErrorKind::Argument,
        &["'\u{30a2}' (U+30A2)", "position 1"],
    );
    is(
        &tokenizer.decode(&[0, 4]).unwrap_err(),
        ErrorKind::Argument,
        &["token 4 at place 1", "vocabulary of 4"],
    );
    is(&Tokenizer::fit(TokenizerKind::Char, "").unwrap_err(), ErrorKind::Data, &["without characters"]);
    let many = Characters::new((0..=65_536).filter_map(|i| char::from_u32(0x1_0000 + i)));
    is(&many.unwrap_err(), ErrorKind::Data, &["65537", "65536"]);
}

/// Ids from GPT-2's encoder.py over its encoder.json and vocab.bpe, which share no code with the crate used here.
#[test]
fn gpt2_gives_the_ids_of_gpt2() {
    let tokenizer = gpt2();
    let end: &[u32] = &[27, 91, 437, 1659, 5239, 91, 29];
    for (text, ids) in [
        ("Hello world", &[15496, 995][..]),
        ("First Citizen:\nBefore we proceed", &[5962, 22307, 25, 198, 8421, 356, 5120]),
        ("<|endoftext|>", end),
        ("", &[]),
        ("\n\n\n", &[628, 198]),
        ("a\n\n\nb", &[64, 628, 198, 65]),
        ("\u{feff}it's 1611\r\n", &[171, 119, 123, 270, 338, 1467, 1157, 201, 198]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids).unwrap(), text.as_bytes());
    }
    assert_eq!((tokenizer.vocab(), tokenizer.padded_vocab()), (50_257, 50_304));
    assert_eq!(tokenizer.end_of_text(), Some(GPT2_END_OF_TEXT));
    assert_eq!(tokenizer.encode_with_special("Hello world<|endoftext|>").unwrap(), [15496, 995, 50_256]);
    assert_eq!(tokenizer.decode(&[50_256]).unwrap(), b"<|endoftext|>");
    is(&tokenizer.decode(&[50_257]).unwrap_err(), ErrorKind::Argument, &["token 50257", "50257 tokens"]);
    is(&Tokenizer::Byte.encode_with_special("<|endoftext|>").unwrap_err(), ErrorKind::Argument, &["byte"]);
}

/// A regular expression that steps back once a character would take time or stack without end, and panic.
#[test]
fn gpt2_takes_endless_runs() {
    let tokenizer = gpt2();
    for c in [" ", "a", "7", "-"] {
        for end in ["y", ""] {
            let text = format!("x{}{end}", c.repeat(1_100_000));
            let ids = tokenizer.encode(&text).unwrap();
            assert!(tokenizer.decode(&ids).unwrap() == text.as_bytes(), "{c:?}");
        }
    }
    // Where a long run is cut off, the tokens are those of a short run: 999 spaces take one way, 1,001 the other.
    for n in [999, 1000, 1001, 1002] {
        let ids = tokenizer.encode(format!("x{} y", "\n".repeat(n))).unwrap();
        let pairs = vec![628; n / 2];
        let wanted = [&[87][..], &pairs, &[198][..n % 2], &[331]].concat();
        assert_eq!(ids, wanted, "{n}");
    }
}

#[test]
fn tokenizers_are_the_same_after_saving() {
    let scratch = Scratch::new("save");
    let path = scratch.0.join("tokenizer.json");
    for kind in TokenizerKind::ALL {
        let tokenizer = Tokenizer::fit(kind, "a \"quoted\" \\ text\n\u{1}\u{7f}\u{10ffff}").unwrap();
        tokenizer.save(&path).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap(), tokenizer);
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Model {
            tokenizer: Tokenizer,
        }
        let model = Model { tokenizer };
        assert_eq!(toml::from_str::<Model>(&toml::to_string(&model).unwrap()).unwrap(), model);
        assert_eq!(kind.name().parse::<TokenizerKind>().unwrap(), kind);
    }
    for bad in [
        r#"{"kind":"char","characters":"ba"}"#,
        r#"{"kind":"char","characters":"aab"}"#,
        r#"{"kind":"char","characters":""}"#,
        r#"{"kind":"char"}"#,
        r#"{"kind":"word"}"#,
        r#"{"kind":"byte","characters":"a"}"#,
        "",
    ] {
        scratch.write("tokenizer.json", bad);
        is(&Tokenizer::load(&path).unwrap_err(), ErrorKind::Data, &["tokenizer.json"]);
    }
    is(
        &"words".parse::<TokenizerKind>().unwrap_err(),
        ErrorKind::Argument,
        &["'words'", "char, byte or gpt2"],
    );
}

#[test]
fn text_that_is_not_utf8_says_where() {
    let scratch = Scratch::new("utf8");
    let path = scratch.write("bad.txt", b"one\ntwo\r\nth\xffree");
    for kind in [TokenizerKind::Char, TokenizerKind::Gpt2] {
        let words = &["bad.txt, line 3", "0xff", "offset 11", "--tokenizer byte"];
        is(&TextData::from_text(&path, kind, 0.1).unwrap_err(), ErrorKind::Data, words);
    }
    is(&gpt2().encode(b"a\nb\xc3").unwrap_err(), ErrorKind::Data, &["0xc3", "offset 3", "line 2"]);
    let bytes = TextData::from_text(&path, TokenizerKind::Byte, 0.0).unwrap();
    assert_eq!(bytes.train.tokens(0)[9..13], [0x74, 0x68, 0xff, 0x72]);
    // Cut off in the middle of a character, and far behind the first block.
    let far = scratch.write("far.txt", [&b"line\n".repeat(2_000_000)[..], b"\xe2\x82"].concat());
    let words = &["far.txt, line 2000001", "0xe2", "offset 10000000"];
    is(&TextData::from_text(&far, TokenizerKind::Gpt2, 0.1).unwrap_err(), ErrorKind::Data, words);
    let gz = scratch.write("text", gzip(b"hello"));
    is(&TextData::from_text(&gz, TokenizerKind::Char, 0.1).unwrap_err(), ErrorKind::Data, &["0x8b", ".gz"]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn files_that_are_no_text_are_refused() {
    let scratch = Scratch::new("files");
    let open = |path: &Path| TextData::from_text(path, TokenizerKind::Byte, 0.1).unwrap_err();
    is(&open(&scratch.0), ErrorKind::Data, &["found a folder"]);
    is(&open(&scratch.0.join("missing")), ErrorKind::Data, &["missing", "open"]);
    is(&open(Path::new("/dev/zero")), ErrorKind::Data, &["pipe or a device"]);
    is(&open(&scratch.write("empty.txt", "")), ErrorKind::Data, &["empty.txt", "the text is empty"]);
    is(&open(&scratch.write("empty.gz", gzip(b""))), ErrorKind::Data, &["the text is empty"]);
    is(&open(&scratch.write("false.gz", "plain text, not gzip")), ErrorKind::Data, &["false.gz", "read"]);
    let cut = &gzip(&b"abc".repeat(1000))[..20];
    is(&open(&scratch.write("cut.gz", cut)), ErrorKind::Data, &["cut.gz", "read"]);
    for share in [-0.1, 1.0, f64::NAN] {
        let error = TextData::from_bytes("a", b"abc", TokenizerKind::Byte, share).unwrap_err();
        is(&error, ErrorKind::Argument, &["validation share"]);
    }
    let known = Tokenizer::fit(TokenizerKind::Char, "abc\n").unwrap();
    let other = scratch.write("other.txt", "abc\nabd\n");
    let words = &["other.txt, line 2", "'d' (U+0064)", "the 4 that"];
    is(&Corpus::from_text(&other, &known).unwrap_err(), ErrorKind::Data, words);
}

#[test]
fn bom_and_line_ends_are_kept_and_gz_is_read() {
    let text = "\u{feff}one\r\ntwo\r\n\r\n three \n".repeat(20);
    let scratch = Scratch::new("kept");
    let (plain, packed) = (scratch.write("a.txt", &text), scratch.write("a.txt.gz", gzip(text.as_bytes())));
    for kind in TokenizerKind::ALL {
        let data = TextData::from_text(&plain, kind, 0.3).unwrap();
        let ids = |corpus: &Corpus| corpus.tokens(0).iter().map(|&id| u32::from(id)).collect::<Vec<_>>();
        let both = [ids(&data.train), ids(&data.val)].concat();
        assert_eq!(data.tokenizer.decode(&both).unwrap(), text.as_bytes());
        let again = TextData::from_text(&packed, kind, 0.3).unwrap();
        assert_eq!((ids(&again.train), ids(&again.val)), (ids(&data.train), ids(&data.val)));
        // All of it at once, by the fitted tokeniser.
        let whole = Corpus::from_text(&plain, &data.tokenizer).unwrap();
        assert_eq!(ids(&whole), data.tokenizer.encode(&text).unwrap());
    }
}

/// Whatever the blocks and pieces, the tokens are those of the whole text encoded at once.
#[test]
fn blocks_and_pieces_do_not_show() {
    // Runs of spaces of all lengths and kinds, longer than a block in all, with characters of one to four bytes.
    let mut text = String::new();
    for i in 0..300_000usize {
        let spaces = [" ", "\n", "  ", "\n\n\n", "\t \n ", "\u{3000} ", " \r\n", ""];
        text += spaces[i * i % 8];
        text += ["word", "é", "don't", "1611", "\u{1f600}", "--"][i * 7 % 6];
    }
    assert!(text.len() > 1 << 20);
    let text = text.repeat(5 * (1 << 20) / text.len() + 1);
    let chars = text.chars().count();
    for kind in [TokenizerKind::Gpt2, TokenizerKind::Char, TokenizerKind::Byte] {
        let data = TextData::from_bytes("a", text.as_bytes(), kind, 0.25).unwrap();
        let cut = match kind {
            TokenizerKind::Byte => (text.len() as f64 * 0.75) as usize,
            _ => text.char_indices().nth((chars as f64 * 0.75) as usize).unwrap().0,
        };
        for (corpus, part) in [(&data.train, &text.as_bytes()[..cut]), (&data.val, &text.as_bytes()[cut..])] {
            let whole = data.tokenizer.encode(part).unwrap();
            assert!(corpus.tokens(0).iter().map(|&id| u32::from(id)).eq(whole), "{kind}");
        }
    }
}

#[test]
fn a_decoder_gives_whole_characters() {
    let text = "naïve 😀 \u{feff}日本語";
    for tokenizer in [Tokenizer::Byte, gpt2(), Tokenizer::fit(TokenizerKind::Char, text).unwrap()] {
        let mut decoder = Decoder::new(&tokenizer);
        let pieces: Vec<String> =
            tokenizer.encode(text).unwrap().into_iter().map(|id| decoder.push(id).unwrap()).collect();
        assert_eq!(pieces.concat(), text, "{}", tokenizer.name());
        assert_eq!(decoder.finish(), "");
    }
    let mut decoder = Decoder::new(&Tokenizer::Byte);
    let text: String =
        b"a\xff\xe2\x82b\xc0\xf0\x9f".iter().map(|&b| decoder.push(b.into()).unwrap()).collect();
    assert_eq!(text + &decoder.finish(), "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}");
    assert_eq!(Decoder::new(&Tokenizer::Byte).push(256).unwrap_err().kind(), ErrorKind::Argument);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(Tokenizer::Byte.decode(&Tokenizer::Byte.encode(&bytes).unwrap()).unwrap(), bytes);
    }

    #[test]
    fn any_text_comes_back_from_gpt2(text in "(?s)([ \n\ta-e']|.){0,120}") {
        let tokenizer = gpt2();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
        // And token by token.
        let mut decoder = Decoder::new(&tokenizer);
        let pieces: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
        prop_assert_eq!(pieces + &decoder.finish(), text);
    }
}

#[test]
fn tiny_shakespeare_is_cut_as_nanogpt_cuts_it() {
    let Some(path) = tiny_shakespeare("nanoGPT's counts") else { return };
    // The counts that nanoGPT's prepare.py prints.
    for (kind, vocab, train, val) in [
        (TokenizerKind::Char, 65, 1_003_854, 111_540),
        (TokenizerKind::Byte, 256, 1_003_854, 111_540),
        (TokenizerKind::Gpt2, 50_257, 301_966, 36_059),
    ] {
        let data = TextData::from_text(&path, kind, 0.1).unwrap();
        assert_eq!((data.tokenizer.vocab(), data.train.len(), data.val.len()), (vocab, train, val), "{kind}");
    }
}

#[test]
fn the_built_in_text_is_whole() {
    let text = builtin_text().unwrap();
    // sha256 b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d, which the script that made it checks.
    assert_eq!((text.len(), crc32fast::hash(text.as_bytes())), (4_137_850, 0xdd06_d0f1));
    assert!(text.is_ascii());
    assert_eq!(text.lines().count(), 31_102);
    assert!(text.starts_with("In the beginning God created the heaven and the earth.\n"));
    assert!(text.ends_with("The grace of our Lord Jesus Christ be with you all. Amen.\n"));
    let data = TextData::open("text", Some(TokenizerKind::Gpt2), 0.1).unwrap();
    assert_eq!(Corpus::builtin_text(&data.tokenizer).unwrap().len(), 1_024_544);
    assert_eq!(TextData::open("text", None, 0.1).unwrap().tokenizer.name(), "char");
}

fn numbers(n: u16) -> Corpus {
    Corpus::from_tokens("numbers", (0..n).collect(), usize::from(n))
}

#[test]
fn a_pass_of_shuffled_windows_sees_every_place_once() {
    for (tokens, context) in [(1000u16, 7), (65, 64), (66, 1), (513, 8)] {
        let windows = Windows::new(&numbers(tokens), 1, context).unwrap();
        let per_pass = ((usize::from(tokens) - context) / context).max(1);
        let mut batch = TokenBatch::default();
        let mut passes = Vec::new();
        for pass in 0..3 {
            let mut firsts = Vec::new();
            for number in 0..per_pass {
                windows.shuffled_into(5, (pass * per_pass + number) as u64, &mut batch).unwrap();
                assert_eq!(batch.targets[context - 1], batch.inputs[0] + context as i32);
                firsts.push(batch.inputs[0] as usize);
            }
            let begin = firsts.iter().min().copied().unwrap();
            let mut sorted = firsts.clone();
            sorted.sort();
            let expected: Vec<usize> = (0..per_pass).map(|i| begin + i * context).collect();
            assert_eq!(sorted, expected, "side by side, each once");
            passes.push(firsts);
        }
        assert!(
            per_pass < 10 || passes[0] != passes[1] && passes[1] != passes[2],
            "each pass in an order of its own"
        );
    }
    // Parts of a batch, put together, are the batch.
    let windows = |batch| Windows::new(&numbers(1000), batch, 7).unwrap();
    let [mut whole, mut first, mut second] =
        [const { TokenBatch { inputs: Vec::new(), targets: Vec::new(), rows: 0, context: 0 } }; 3];
    windows(6).shuffled_into(2, 12, &mut whole).unwrap();
    windows(3).shuffled_into(2, 12, &mut first).unwrap();
    windows(3).shuffled_into(2, 15, &mut second).unwrap();
    assert_eq!([first.inputs, second.inputs].concat(), whole.inputs);
}

#[test]
fn random_windows_follow_from_seed_and_step() {
    let windows = Windows::new(&numbers(1000), 8, 16).unwrap();
    let batch = windows.random(3, 5).unwrap();
    assert_eq!((batch.rows, batch.context, batch.inputs.len()), (8, 16, 128));
    for (row, targets) in batch.inputs.chunks(16).zip(batch.targets.chunks(16)) {
        assert!(row.iter().enumerate().all(|(i, &id)| id == row[0] + i as i32));
        assert!(row.iter().zip(targets).all(|(a, b)| a + 1 == *b));
    }
    // What this code gave when it was written; a change would change every run.
    let starts: Vec<i32> = batch.inputs.iter().step_by(16).copied().collect();
    assert_eq!(starts, GOLDEN_STARTS);
    assert_eq!(windows.random(3, 5).unwrap(), batch);
    for (seed, step) in [(3, 6), (4, 5), (3, 5 + (1 << 32))] {
        assert_ne!(windows.random(seed, step).unwrap(), batch);
    }
    // A batch in parts is the batch.
    let half = Windows::new(&numbers(1000), 4, 16).unwrap();
    let mut second = TokenBatch::default();
    half.random_into(3, 5, 4, &mut second).unwrap();
    assert_eq!([half.random(3, 5).unwrap().inputs, second.inputs].concat(), batch.inputs);
}

const GOLDEN_STARTS: [i32; 8] = [141, 939, 573, 455, 452, 305, 781, 91];

#[test]
fn every_place_is_drawn_equally_often() {
    // 20 tokens and a window of 4 with its target: places 0 to 15.
    let windows = Windows::new(&numbers(20), 16, 4).unwrap();
    let mut counts = [0u32; 16];
    for step in 0..1000 {
        let batch = windows.random(1, step).unwrap();
        batch.inputs.iter().step_by(4).for_each(|&start| counts[start as usize] += 1);
    }
    let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
    assert!(chi < 37.7, "{counts:?}"); // 15 degrees of freedom, one in a thousand
}

#[test]
fn validation_predicts_every_token_once() {
    for (n, batch, context) in [(1000, 8, 16), (17, 3, 16), (18, 3, 16), (49, 3, 16), (2, 4, 8), (65, 1, 1)] {
        let windows = Windows::new(&numbers(n), batch, context).unwrap();
        let batches: Vec<TokenBatch> = windows.validation().collect::<Result<_, _>>().unwrap();
        let inputs: Vec<i32> = batches.iter().flat_map(|b| b.inputs.clone()).collect();
        let targets: Vec<i32> = batches.iter().flat_map(|b| b.targets.clone()).collect();
        assert!(inputs.into_iter().eq(0..i32::from(n) - 1), "{n}");
        assert!(targets.into_iter().eq(1..i32::from(n)), "{n}");
        for batch in &batches {
            assert_eq!(batch.inputs.len(), batch.rows * batch.context);
        }
        // At most three shapes, whole ones first.
        let mut shapes: Vec<_> = batches.iter().map(|b| (b.rows, b.context)).collect();
        shapes.dedup();
        assert!(shapes.len() <= 3, "{shapes:?}");
        assert_eq!(windows.predictions(), u64::from(n) - 1);
    }
}

#[test]
fn a_corpus_that_is_too_short_says_so() {
    let windows = Windows::new(&numbers(64), 2, 64).unwrap();
    let words = &["there are 64 tokens", "a context of 64 needs 65", "smaller context"];
    is(&windows.random(0, 0).unwrap_err(), ErrorKind::Data, words);
    is(&windows.sequential(0).unwrap_err(), ErrorKind::Data, &["2 windows of 64 needs 129"]);
    assert!(Windows::new(&numbers(65), 2, 64).unwrap().random(0, 0).is_ok());
    for n in [0, 1] {
        is(&Windows::new(&numbers(n), 2, 4).unwrap_err(), ErrorKind::Data, &["at least 2"]);
    }
    for (batch, context) in [(0, 4), (4, 0)] {
        assert_eq!(Windows::new(&numbers(9), batch, context).unwrap_err().kind(), ErrorKind::Argument);
    }
}

#[test]
fn a_token_beyond_the_vocabulary_says_where() {
    let mut tokens: Vec<u16> = vec![1; 100];
    tokens[77] = 9;
    let windows = Windows::new(&Corpus::from_tokens("shard", tokens, 9), 4, 10).unwrap();
    let words = &["shard", "token 9 at position 77", "vocabulary of 9"];
    assert!(windows.sequential(0).is_ok());
    is(&windows.sequential(1).unwrap_err(), ErrorKind::Data, words);
    let failed: Vec<Error> = windows.validation().filter_map(Result::err).collect();
    is(&failed[0], ErrorKind::Data, words);
}
