//! Text from language models as a user asks for it.

#![cfg(feature = "cli")]

mod cli_support;

use std::io::Write;
use std::process::Stdio;

use cli_support::lm::{TINY, place, text};
use cli_support::{Place, Run};

/// Text goes out as it is made, and Ctrl-C ends it.
#[cfg(unix)]
#[test]
fn writing_can_be_interrupted() {
    use std::io::Read;

    let place = place("lm-stop");
    place.ok(&format!("{TINY} --steps 2 --out m"));
    let line = "generate --model m --prompt the --tokens 1000000000000000000";
    let mut child = place.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 30];
    child.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"the"));
    let id = child.id();
    // The rest must be read meanwhile, or the program waits for a reader.
    let rest = std::thread::spawn(move || child.wait_with_output().unwrap());
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -INT {id}")]).status().unwrap();
    assert!(sent.success());
    let run = Run::of(line, rest.join().unwrap());
    assert_eq!(run.code, 130, "{}", run.stderr);
    assert!(run.stderr.contains("interrupted after"), "{}", run.stderr);
}

/// Runs a command with `input` on stdin.
fn with_stdin(place: &Place, line: &str, input: &[u8]) -> Run {
    let mut command = place.command(line);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Run::of(line, child.wait_with_output().unwrap())
}

#[test]
fn a_model_writes() {
    let place = place("lm-generate");
    place.ok(&format!("{TINY} --steps 60 --lr 0.01 --warmup 5 --out m"));
    let made = |more: &str| {
        let value = place.json(&format!("generate --model m --quiet --tokens 40 {more}"));
        assert_eq!(value["tokens"], 40, "{value}");
        assert!(value["tokens_per_second"].as_f64().unwrap() > 0.0, "{value}");
        value["text"].as_str().unwrap().to_owned()
    };
    let first = made("--prompt the --seed 1");
    assert_eq!(first.chars().count(), 40);
    assert!(first.chars().all(|c| text(600).contains(c)), "{first:?}");
    assert_eq!(first, made("--prompt the --seed 1"));
    assert_eq!(first, made("--prompt the --seed 1 --threads 1 --top-k 100000 --top-p 1"));
    assert_ne!(first, made("--prompt the --seed 2"));
    // Where only the likeliest can be drawn, no seed decides.
    let greedy = made("--prompt the --temperature 0");
    for more in ["--temperature 0 --seed 9", "--top-k 1 --seed 3", "--top-p 1e-9 --seed 4 --temperature 2"] {
        assert_eq!(greedy, made(&format!("--prompt the {more}")), "{more}");
    }
    assert_eq!(made("--seed 5"), made("--seed 5 --precision f32"));
    made("--precision bf16");

    let run = place.ok("generate --model m --prompt the --seed 1 --tokens 40");
    assert_eq!(run.stdout, format!("the{first}\n"));
    assert!(run.stderr.contains("40 tokens"), "{}", run.stderr);
    assert_eq!(place.ok("generate --model m --prompt the --tokens 0 --quiet").stdout, "the\n");
    let run = with_stdin(&place, "generate --model m --prompt - --seed 1 --tokens 40 --quiet", b"the\n");
    assert_eq!((run.code, run.stdout), (0, format!("the{first}\n")));
    assert!(run.stderr.is_empty(), "{}", run.stderr);

    // Of a long prompt the last 16 tokens are read: it goes on as they do.
    let run =
        with_stdin(&place, "generate --model m --prompt - --seed 1 --tokens 9", b"light over the waters");
    assert!(
        run.stderr.contains("longer than the context: its first 5 tokens were left out"),
        "{}",
        run.stderr
    );
    let short = with_stdin(&place, "generate --model m --prompt - --seed 1 --tokens 9", b" over the waters");
    assert_eq!(run.stdout, format!("light{}", short.stdout));

    for (line, code, words) in [
        ("--prompt waXter", 2, &["'X'", "U+0058", "position 2"][..]),
        ("--prompt wäter", 2, &["'ä'", "position 1"]),
        ("--temperature -1", 2, &["temperature of -1"]),
        ("--temperature nan", 2, &["temperature"]),
        ("--top-p 0", 2, &["top_p of 0"]),
        ("--top-p 1.5", 2, &["top_p of 1.5"]),
        ("--top-k -1", 2, &["--top-k"]),
        ("--tokens -1", 2, &["--tokens"]),
        ("--threads 0", 2, &["--threads 0"]),
        ("--device cuda:99", 6, &["cuda:99"]),
    ] {
        place.refuses(&format!("generate --model m {line}"), code, words);
    }
    let run = with_stdin(&place, "generate --model m --prompt -", b"the \xff");
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(
        run.stderr.contains("not UTF-8 at byte 4") && run.stdout.is_empty(),
        "{}{}",
        run.stdout,
        run.stderr
    );
}
