//! Interrupting and resuming: the result is that of the run that was never interrupted, byte for byte.

#![cfg(feature = "cli")]

mod cli_support;

use cli_support::{Place, fruit};

fn same_model(place: &Place, a: &str, b: &str) {
    for file in [
        "model.safetensors",
        "model.toml",
        "metrics.jsonl",
        "state/model.safetensors",
        "state/optimizer.safetensors",
    ] {
        assert!(
            place.read(&format!("{a}/{file}")) == place.read(&format!("{b}/{file}")),
            "{file} of {a} and {b} differ"
        );
    }
}

#[test]
fn resuming_equals_the_uninterrupted_run() {
    let place = Place::new("resume");
    place.write("fruit.csv", fruit(150));
    for (n, how) in [
        "--data fruit.csv --dropout 0.3",
        "--data fruit.csv --optimizer sgd --schedule step:2,0.5 --clip 0.5 --warmup 1.5 --seed 9",
        "--data fruit.csv --optimizer adamw --schedule cosine --horizon 6 --batch 40",
        "--data fruit.csv --optimizer rmsprop --momentum 0.5 --schedule plateau:0.5,1 --lr 0.01",
        "--limit 300 --test-split 0.1 --val-split 0 --model mlp:20",
        "--data fruit.csv --precision bf16 --optimizer adamw --dropout 0.3",
        "--data fruit.csv --precision f16 --lr 0.01",
    ]
    .iter()
    .enumerate()
    {
        let (whole, part) = (format!("whole{n}"), format!("part{n}"));
        place.ok(&format!("train {how} --epochs 6 --out {whole}"));
        place.ok(&format!("train {how} --epochs 2 --out {part}"));
        let value = place.json(&format!("train --resume {part} --epochs 6 --quiet"));
        assert_eq!((&value["model"], value["epochs"].as_u64()), (&part.as_str().into(), Some(6)));
        same_model(&place, &whole, &part);
    }
}

#[test]
fn resuming_to_another_folder_leaves_the_first_alone() {
    let place = Place::new("resume-out");
    place.write("fruit.csv", fruit(150));
    place.ok("train --data fruit.csv --epochs 2 --out a");
    let before = place.files("a");
    place.ok("train --resume a --epochs 4 --out b");
    assert!(before == place.files("a"));
    place.ok("train --data fruit.csv --epochs 4 --out c");
    same_model(&place, "b", "c");
    // A run that has come to its end has nothing left to do, and says the same again.
    let value = place.json("train --resume b --quiet");
    assert_eq!(value["epochs"], 4);
    same_model(&place, "b", "c");
}

#[test]
fn contradictions_name_both_values() {
    let place = Place::new("contradictions");
    place.write("fruit.csv", fruit(150));
    place.write("other.csv", fruit(150));
    place.ok("train --data fruit.csv --epochs 2 --model mlp:16 --seed 3 --out m");
    for (flag, both) in [
        ("--lr 0.5", ["0.5", "0.001"]),
        ("--seed 4", ["4", "3"]),
        ("--precision bf16", ["bf16", "f32"]),
        ("--model mlp:8", ["mlp:8", "mlp:16"]),
        ("--data other.csv", ["other.csv", "fruit.csv"]),
        ("--data digits", ["digits", "fruit.csv"]),
        ("--target colour", ["colour", "kind"]),
        ("--task regression", ["regression", "binary"]),
        ("--optimizer sgd", ["sgd", "adam"]),
        ("--batch 8", ["8", "32"]),
        ("--activation tanh", ["tanh", "relu"]),
        ("--dropout 0.1", ["dropout 0.1", "mlp:16 (relu)"]),
        ("--clip 1", ["1", "none"]),
        ("--schedule cosine", ["cosine", "constant"]),
        ("--val-split 0.2", ["0.2", "0.1"]),
        ("--limit 50", ["50", "none"]),
        ("--test-data other.csv", ["other.csv", "none"]),
    ] {
        let key = flag.split(' ').next().unwrap();
        place.refuses(&format!("train --resume m --epochs 3 {flag}"), 2, &[key, both[0], both[1]]);
    }
    // Of a description, all that it says counts, and nothing that it leaves open.
    place.write("net.toml", "hidden = [16]\nactivation = 'tanh'\ndropout = 0.1\n");
    let both = ["net.toml: mlp:16 (tanh, dropout 0.1)", "mlp:16 (relu)"];
    place.refuses("train --resume m --epochs 3 --model net.toml", 2, &both);
    place.write("net.toml", "hidden = [16]\n");
    place.ok("train --data fruit.csv --epochs 1 --model net.toml --activation tanh --out n");
    place.ok("train --resume n --epochs 2 --model net.toml");
    // The same again is no contradiction.
    place.ok("train --resume m --epochs 3 --lr 0.001 --data ./fruit.csv --model mlp:16 --task auto --target kind --seed 3");
    place.refuses("train --resume m --epochs 2", 2, &["--epochs 2", "3"]);
}

#[test]
fn a_schedule_keeps_the_horizon_of_the_first_run() {
    let place = Place::new("horizon");
    place.write("fruit.csv", fruit(150));
    for schedule in ["linear", "cosine", "one-cycle"] {
        place.ok(&format!("train --data fruit.csv --epochs 2 --schedule {schedule} --out m"));
        place.refuses("train --resume m --epochs 4", 2, &[schedule, "--horizon", "2"]);
    }
}

#[test]
fn resuming_needs_the_same_data_and_a_model() {
    let place = Place::new("resume-data");
    place.write("fruit.csv", fruit(150));
    place.ok("train --data fruit.csv --epochs 2 --out m");
    place.write("fruit.csv", fruit(149));
    place.refuses("train --resume m --epochs 3", 4, &["not what this model was trained on"]);
    place.refuses("train --resume absent", 4, &["absent"]);
    // The data has moved: the same rows by another name.
    std::fs::remove_file(place.path().join("fruit.csv")).unwrap();
    place.fails("train --resume m --epochs 3", 4, &["fruit.csv"]);
    place.write("moved.csv", fruit(150));
    place.ok("train --resume m --epochs 3 --data moved.csv");
}

/// Sends SIGINT while training runs, as Ctrl-C does; the run saves, and resuming gives what it would have given.
#[cfg(unix)]
#[test]
fn an_interrupted_run_can_be_resumed() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = Place::new("interrupt");
    let how = "train --limit 600 --patience 0 --epochs";
    let line = format!("{how} 100000 --out part");
    let mut child = place.command(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = stderr.by_ref().find(|l| l.as_ref().is_ok_and(|l| l.starts_with("epoch 1/")));
    assert!(started.is_some());
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let rest: Vec<String> = stderr.map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest:?}");
    assert!(output.stdout.is_empty());
    let text = rest.join("\n");
    assert!(text.contains("interrupted in epoch") && text.contains("train --resume part"), "{text}");

    let done = place.json("info part")["epochs"].as_u64().unwrap();
    place.refuses("train --resume part --epochs 0", 2, &["epochs 0"]);
    let epochs = done + 3;
    place.ok(&format!("train --resume part --epochs {epochs}"));
    place.ok(&format!("{how} {epochs} --out whole"));
    for file in
        ["model.safetensors", "metrics.jsonl", "state/model.safetensors", "state/optimizer.safetensors"]
    {
        assert!(place.read(&format!("part/{file}")) == place.read(&format!("whole/{file}")), "{file}");
    }
}

/// A run that is not finished leaves the model that was in its folder, and goes on from the folder beside it.
#[cfg(unix)]
#[test]
fn a_finished_model_is_replaced_only_by_a_finished_one() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = Place::new("partial");
    place.ok("train --limit 300 --epochs 1 --model mlp:8 --out m");
    let before = place.files("m");
    let line = "train --limit 600 --patience 0 --epochs 100000 --out m";
    let mut child = place.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    // Two epoch lines: by the second one the checkpoint of the first epoch has been written.
    assert_eq!(
        stderr.by_ref().filter(|l| l.as_ref().is_ok_and(|l| l.starts_with("epoch "))).take(2).count(),
        2
    );
    assert!(before == place.files("m"));
    assert!(
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap().success()
    );
    let text = stderr.map(Result::unwrap).collect::<Vec<_>>().join("\n");
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("warpsmith train --resume m.partial --out m"), "{text}");
    assert!(before == place.files("m"));

    let epochs = place.json("info m.partial")["epochs"].as_u64().unwrap() + 2;
    place.write("m.partial/notes.txt", "mine");
    place.ok(&format!("train --resume m.partial --out m --epochs {epochs}"));
    // The checkpoint is gone, what it did not write stays.
    assert_eq!(place.files("m.partial").len(), 1);
    place.ok(&format!("train --limit 600 --patience 0 --epochs {epochs} --out whole"));
    for file in ["model.safetensors", "metrics.jsonl", "state/model.safetensors"] {
        assert!(place.read(&format!("m/{file}")) == place.read(&format!("whole/{file}")), "{file}");
    }
    place.ok("train --limit 300 --epochs 2 --model mlp:8 --out whole");
    assert!(!place.path().join("whole.partial").exists());
}

#[test]
fn the_current_directory_can_be_the_model() {
    let place = Place::new("dot");
    place.write("fruit.csv", fruit(150));
    for name in ["dot", "up", "whole"] {
        std::fs::create_dir(place.path().join(name)).unwrap();
    }
    let inside = |name: &str, line: &str| {
        let output = place.command(line).current_dir(place.path().join(name)).output().unwrap();
        let run = cli_support::Run::of(line, output);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    };
    place.ok("train --data fruit.csv --epochs 5 --out whole");
    for (name, out) in [("dot", "."), ("up", "../up")] {
        inside(name, &format!("train --data ../fruit.csv --epochs 2 --out {out}"));
        inside(name, &format!("train --data ../fruit.csv --epochs 3 --out {out}"));
        inside(name, &format!("train --resume {out} --epochs 5"));
        assert!(place.read(&format!("{name}/model.safetensors")) == place.read("whole/model.safetensors"));
        assert!(!place.path().join(format!("{name}.partial")).exists());
    }
}

#[test]
fn a_run_that_stopped_early_says_so_and_goes_on_with_more_patience() {
    let place = Place::new("patience");
    // Noise: the validation loss soon gets no better.
    let rows = (0..200u32).map(|i| {
        let noise = |k: u32| i.wrapping_mul(k).wrapping_mul(2_654_435_761) >> 20;
        format!("{},{},{}\n", noise(3), noise(7), noise(11) % 2)
    });
    place.write("noise.csv", format!("a,b,y\n{}", rows.collect::<String>()));
    let first = place.json("train --data noise.csv --patience 3 --epochs 60 --lr 0.01 --out m --quiet");
    let (stopped, best) = (first["epochs"].as_u64().unwrap(), first["best_epoch"].as_u64().unwrap());
    // Exactly as many epochs without a better one as the help says.
    assert!(stopped < 60 && stopped == best + 3, "{first}");
    let run = place.ok("train --resume m --epochs 80");
    assert!(run.stderr.contains(&format!("stopped early at epoch {stopped}")), "{}", run.stderr);
    assert!(run.stderr.contains("--patience"), "{}", run.stderr);
    assert_eq!(place.json("info m")["epochs"], stopped);
    let run = place.ok(&format!("train --resume m --epochs {stopped} --patience 0"));
    assert!(run.stderr.contains("nothing to train"), "{}", run.stderr);
    let more = stopped + 2;
    let value = place.json(&format!("train --resume m --epochs {more} --patience 0 --quiet"));
    assert_eq!(value["epochs"], more);
    place.ok(&format!("train --data noise.csv --patience 0 --epochs {more} --lr 0.01 --out whole"));
    same_model(&place, "m", "whole");
}

#[test]
fn data_from_stdin_must_be_given_again() {
    let place = Place::new("resume-stdin");
    place.write("fruit.csv", fruit(150));
    let stdin = std::fs::File::open(place.path().join("fruit.csv")).unwrap();
    let line = "train --data - --target kind --epochs 2 --out m";
    let run = cli_support::Run::of(line, place.command(line).stdin(stdin).output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    place.refuses("train --resume m --epochs 3", 2, &["stdin", "--data FILE"]);
    place.ok("train --resume m --epochs 3 --data fruit.csv");
}
