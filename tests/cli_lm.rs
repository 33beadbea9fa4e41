//! Language models as a user trains them; tests/cli_generate.rs has them write.

#![cfg(feature = "cli")]

mod cli_support;

use cli_support::lm::{TINY, place, text};
use cli_support::{Place, fruit};
use serde_json::Value;

/// The names and contents of a folder's files, without the folder.
fn contents(place: &Place, dir: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = place.files(dir).into_iter();
    files.map(|(path, bytes)| (path.strip_prefix(dir).unwrap().to_owned(), bytes)).collect()
}

fn same(place: &Place, a: &str, b: &str) {
    let (a_files, b_files) = (contents(place, a), contents(place, b));
    let names = |files: &[(std::path::PathBuf, Vec<u8>)]| {
        files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&a_files), names(&b_files), "{a} and {b}");
    for ((path, a_bytes), (_, b_bytes)) in a_files.iter().zip(&b_files) {
        assert!(a_bytes == b_bytes, "{} of {a} and {b} differ", path.display());
    }
}

#[test]
fn a_text_is_learnt_the_same_for_any_number_of_threads() {
    let place = place("lm");
    let value = place.json(&format!("{TINY} --steps 30 --threads 1 --out one"));
    let number = |key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"));
    let known = text(600).chars().collect::<std::collections::BTreeSet<_>>().len();
    // Tables; a block of two norms, 4 + 8 matrices of 16 x 16; the last norm.
    let parameters = (known + 16) * 16 + 12 * 256 + 3 * 16;
    assert_eq!(value["model"], "one");
    assert_eq!(number("parameters"), parameters as f64);
    assert_eq!((number("steps"), number("skipped_steps"), number("tokens")), (30.0, 0.0, 30.0 * 64.0));
    for key in ["seconds", "startup_seconds", "tokens_per_second", "train_loss"] {
        assert!(number(key) > 0.0, "{key}: {value}");
    }
    // Weights, gradients and two moments at least, in f32.
    assert!(number("peak_bytes") >= 16.0 * parameters as f64, "{value}");
    assert_eq!(value["mfu_formula"], "6N+6LCT");
    assert!(value["mfu"].is_null() || number("mfu") > 0.0, "{value}");
    assert_eq!(
        (&value["device"], &value["precision"], &value["seed"]),
        (&"cpu".into(), &"f32".into(), &42.into())
    );
    assert!(number("val_loss") < (known as f64).ln(), "{value}");
    assert!(number("best_val_loss") <= number("val_loss") && number("best_step") <= 30.0, "{value}");

    let run = place.ok(&format!("{TINY} --steps 30 --threads 2 --capture off --out two"));
    for word in [
        "trained    gpt:1x2x16",
        "model      two",
        "steps      30",
        "tokens/s",
        "validation",
        "bytes of tensors",
    ] {
        assert!(run.stdout.contains(word), "{word:?} is not in {}", run.stdout);
    }
    for word in ["step 10/30  train_loss", "step 20/30", "step 30/30", "val_loss"] {
        assert!(run.stderr.contains(word), "{word:?} is not in {}", run.stderr);
    }
    same(&place, "one", "two");
    let lines: Vec<Value> =
        place.text("one/metrics.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!(lines[2]["val_loss"].as_f64(), value["val_loss"].as_f64());
    assert!(lines[0]["val_loss"].as_f64() > lines[2]["val_loss"].as_f64());

    place.ok(&format!("{TINY} --steps 30 --seed 7 --out other"));
    assert!(place.read("one/model.safetensors") != place.read("other/model.safetensors"));
    // Settings of a file are those of flags.
    place.write("run.toml", "task = 'lm'\ndata = 'text.txt'\nmodel = 'gpt:1x2x16'\ncontext = 16\nbatch = 4\nsteps = 30\neval-every = 10\n");
    place.ok("train --config run.toml --quiet --out three");
    same(&place, "one", "three");
}

#[test]
fn what_a_step_costs_can_be_chosen() {
    let place = place("lm-forms");
    let how = format!("{TINY} --steps 10");
    place.ok(&format!("{how} --out plain"));
    // What is computed again is computed the same.
    place.ok(&format!("{how} --recompute --out again"));
    assert!(place.read("plain/model.safetensors") == place.read("again/model.safetensors"));
    for (n, more) in [
        "--micro-batches 2 --dropout 0.1 --recompute",
        "--precision bf16 --optimizer adam --schedule constant",
        "--precision f16 --optimizer sgd --lr 0.1",
        "--tokenizer byte --val-split 0",
    ]
    .iter()
    .enumerate()
    {
        let value = place.json(&format!("{how} {more} --quiet --out m{n}"));
        assert!(value["train_loss"].as_f64().unwrap().is_finite(), "{more}: {value}");
        // Nothing validates where nothing is set aside, and then the last weights are kept.
        assert_eq!(value["val_loss"].is_null(), more.contains("--val-split 0"), "{more}: {value}");
    }
    assert_eq!(place.json("info m3")["best_step"], 10);
}

#[test]
fn resuming_equals_the_uninterrupted_run() {
    let place = place("lm-resume");
    for (n, how) in [
        "--schedule constant",
        "--schedule constant --dropout 0.2 --precision bf16 --warmup 15 --micro-batches 2",
    ]
    .iter()
    .enumerate()
    {
        let (whole, part) = (format!("whole{n}"), format!("part{n}"));
        place.ok(&format!("{TINY} {how} --steps 30 --out {whole}"));
        place.ok(&format!("{TINY} {how} --steps 10 --out {part}"));
        let value = place.json(&format!("train --resume {part} --steps 30 --quiet"));
        assert_eq!((&value["model"], value["steps"].as_u64()), (&part.as_str().into(), Some(30)));
        same(&place, &whole, &part);
    }
    // To another folder, and a run that has nothing left to do says the same again.
    let before = place.files("part0");
    let run = place.ok("train --resume part0 --steps 30 --out copy");
    assert!(run.stderr.contains("nothing to train: all 30 steps are done"), "{}", run.stderr);
    assert!(before == place.files("part0"));
    same(&place, "part0", "copy");
}

/// SIGINT while training runs, as Ctrl-C does; a finished model stays until the new one is finished.
#[cfg(unix)]
#[test]
fn an_interrupted_run_can_be_resumed() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = place("lm-interrupt");
    place.ok(&format!("{TINY} --steps 2 --out part"));
    let before = place.files("part");
    let how =
        format!("{TINY} --eval-every 7 --schedule constant --dropout 0.1").replace("--eval-every 10 ", "");
    let mut child = place
        .command(&format!("{how} --steps 1000000 --out part"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = stderr.by_ref().find(|l| l.as_ref().is_ok_and(|l| l.starts_with("step 14/")));
    assert!(started.is_some());
    assert!(
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap().success()
    );
    let rest = stderr.map(Result::unwrap).collect::<Vec<_>>().join("\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest}");
    assert!(output.stdout.is_empty());
    for word in
        ["interrupted after", "saved to part.partial", "warpsmith train --resume part.partial --out part"]
    {
        assert!(rest.contains(word), "{word:?} is not in {rest}");
    }
    assert!(before == place.files("part"));

    let done = place.json("info part.partial")["steps"].as_u64().unwrap();
    let steps = done + 3;
    place.ok(&format!("train --resume part.partial --out part --steps {steps}"));
    assert!(!place.path().join("part.partial").exists());
    place.ok(&format!("{how} --steps {steps} --out whole"));
    same(&place, "part", "whole");
}

#[test]
fn contradictions_to_the_run_that_is_resumed_are_refused() {
    let place = place("lm-contradictions");
    place.write("other.txt", text(599));
    place.write("fruit.csv", fruit(60));
    place.ok(&format!("{TINY} --steps 4 --out m"));
    place.ok("train --data fruit.csv --epochs 1 --model mlp:4 --out table");
    for (flag, words) in [
        ("--lr 0.5", &["--lr", "0.001"][..]),
        ("--seed 4", &["--seed", "42"]),
        ("--batch 8", &["--batch", "4"]),
        ("--precision bf16", &["--precision", "f32"]),
        ("--optimizer sgd", &["--optimizer", "adamw"]),
        ("--clip 3", &["--clip", "1"]),
        ("--warmup 3", &["--warmup", "100"]),
        ("--weight-decay 0", &["--weight-decay", "0.1"]),
        ("--schedule constant", &["--schedule", "cosine"]),
        ("--micro-batches 2", &["--micro-batches", "1"]),
        ("--recompute", &["--recompute", "false"]),
        ("--model gpt:2x2x16", &["--model", "gpt:1x2x16"]),
        ("--context 32", &["--context", "16"]),
        ("--dropout 0.1", &["--dropout", "with 0"]),
        ("--tokenizer byte", &["--tokenizer", "char"]),
        ("--val-split 0.2", &["--val-split", "0.1"]),
        ("--steps 8", &["--steps 8", "4 steps", "constant"]),
        ("--epochs 3", &["--epochs", "not for text"]),
    ] {
        place.refuses(&format!("train --resume m {flag}"), 2, words);
    }
    place.refuses("train --resume m --task binary", 4, &["of kind \"lm\""]);
    place.refuses("train --resume m --data other.txt", 4, &["not what this model was trained on"]);
    place.refuses("train --resume m --data absent.txt", 4, &["absent.txt"]);
    place.refuses("train --resume absent --task lm", 4, &["absent"]);
    place.refuses("train --resume table --task lm", 2, &["--task", "lm"]);
    place.refuses("train --resume table --steps 9", 2, &["--steps is for text"]);
    // The same again is none.
    place.ok("train --resume m --lr 0.001 --model gpt:1x2x16 --context 16 --data ./text.txt --seed 42 --task lm --capture off");

    place.ok(&format!("{TINY} --schedule constant --steps 4 --out n"));
    place.refuses("train --resume n --steps 3", 2, &["--steps 3", "trained for 4"]);
}

#[test]
fn other_commands_know_a_language_model() {
    let place = place("lm-others");
    place.write("fruit.csv", fruit(60));
    place.ok(&format!("{TINY} --steps 10 --out m"));
    let value = place.json("info m");
    for (key, wanted) in [
        ("kind", Value::from("lm")),
        ("name", "gpt:1x2x16".into()),
        ("tokenizer", "char".into()),
        ("context", 16.into()),
        ("steps", 10.into()),
        ("best_step", 10.into()),
    ] {
        assert_eq!(value[key], wanted, "{key}: {value}");
    }
    assert_eq!((&value["training"]["batch"], &value["source"]["data"]), (&4.into(), &"text.txt".into()));
    assert!(value["val_loss"].as_f64().unwrap() > 0.0 && value["parameters"].as_u64().unwrap() > 3000);
    let run = place.ok("info m");
    for word in [
        "decoder    gpt:1x2x16",
        "2 heads",
        "16 tokens of",
        "(char)",
        "adamw, lr 0.001",
        "10 of 10",
        "validation",
        "whole",
    ] {
        assert!(run.stdout.contains(word), "{word:?} is not in {}", run.stdout);
    }
    let tensors = place.json("info m/model.safetensors");
    assert_eq!(tensors["parameters"], value["parameters"]);

    let kind = &["of kind \"lm\"", "warpsmith generate"];
    place.refuses("predict --model m --input fruit.csv", 4, kind);
    place.refuses("eval --model m --data fruit.csv", 4, kind);
    place.refuses("report m", 4, kind);
    place.ok("train --data fruit.csv --epochs 1 --model mlp:4 --out table");
    place.refuses("generate --model table", 4, &["no language model", "warpsmith predict"]);
    place.refuses("generate --model absent", 4, &["absent"]);

    // A damaged folder is said to be one.
    let mut weights = place.read("m/model.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    place.write("m/model.safetensors", weights);
    for line in ["info m", "generate --model m"] {
        place.refuses(line, 4, &["model.safetensors"]);
    }
}

#[test]
fn texts_that_cannot_be_learnt_are_refused() {
    let place = place("lm-bad-text");
    place.write("latin.txt", b"caf\xe9 and more of it, long enough for a window of sixteen\n");
    place.write("empty.txt", "");
    place.write("short.txt", "0123456789abcdefg");
    place.write("one.txt", "a");
    place.write("text.gz", "not gzipped at all");
    std::fs::create_dir(place.path().join("nothing")).unwrap();
    let shard = |magic: u32, count: u32, tokens: &[u16]| {
        let mut bytes = [magic, 1, count].map(u32::to_le_bytes).concat();
        bytes.resize(1024, 0);
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        bytes
    };
    place.write("magic.bin", shard(7, 3, &[1, 2, 3]));
    place.write("size.bin", shard(20_240_520, 5, &[1, 2, 3]));
    place.write("cut.bin", &shard(20_240_520, 3, &[1, 2, 3])[..1000]);
    place.write("ids.bin", shard(20_240_520, 64, &[300; 64]));
    let how = "train --task lm --model gpt:1x2x16 --context 16 --batch 2 --steps 2 --out o --data";
    for (line, words) in [
        ("latin.txt", &["latin.txt, line 1", "0xe9", "offset 3", "--tokenizer byte"][..]),
        ("empty.txt", &["empty.txt", "empty"]),
        ("short.txt", &["short.txt", "too short", "15 tokens", "context of 16 needs 17"]),
        ("short.txt --val-split 0 --context 17", &["17 tokens", "context of 17 needs 18"]),
        ("one.txt", &["one.txt"]),
        ("text.gz", &["text.gz"]),
        ("absent.txt", &["absent.txt"]),
        ("nothing", &["nothing", "*.bin"]),
        ("magic.bin", &["magic.bin", "magic 20240520", "found 7"]),
        ("size.bin", &["size.bin", "1034 bytes", "found 1030"]),
        ("cut.bin", &["cut.bin", "1024 bytes", "found 1000"]),
        // Found when the first window is cut.
        ("ids.bin --tokenizer byte", &["ids.bin", "300", "256"]),
    ] {
        let line = line.replace("--context 17", "");
        let line = if words[0] == "17 tokens" {
            format!("{} {line} --context 17", how.replace(" --context 16", ""))
        } else {
            format!("{how} {line}")
        };
        place.refuses(&line, 4, words);
    }
    place.ok(&format!("{how} latin.txt --tokenizer byte --val-split 0"));
    // As a whole the text is just long enough, and then nothing validates.
    assert!(place.json(&format!("{how} short.txt --val-split 0"))["val_loss"].is_null());

    place.ok("tokenize --data text.txt --tokenizer char --out shards");
    assert!(place.json(&format!("{how} shards"))["val_loss"].as_f64().is_some());
    place.refuses(&format!("{how} shards --tokenizer byte"), 2, &["char", "byte"]);
}

#[test]
fn flags_of_tables_and_of_text_do_not_mix() {
    let place = place("lm-flags");
    place.write("fruit.csv", fruit(60));
    for flag in [
        "--target kind",
        "--test-split 0.1",
        "--limit 9",
        "--image-size 8x8",
        "--channels 1",
        "--activation relu",
        "--horizon 3",
        "--label-smoothing 0.1",
        "--augment noise:0.1",
        "--class-weights balanced",
        "--epochs 3",
        "--patience 2",
        "--tensorboard events",
        "--report",
        "--momentum 0.5 --optimizer sgd",
        "--test-data fruit.csv",
    ] {
        let key = flag.split(' ').next().unwrap();
        place.refuses(&format!("{TINY} --out o {flag}"), 2, &[key, "not for text"]);
    }
    for flag in [
        "--tokenizer byte",
        "--context 8",
        "--steps 9",
        "--eval-every 9",
        "--micro-batches 2",
        "--recompute",
        "--capture on",
        "--model gpt:1x2x16",
        "--model gpt2",
    ] {
        let key = flag.split(' ').next().unwrap();
        place.refuses(&format!("train --data fruit.csv --out o {flag}"), 2, &[key, "for text", "--task lm"]);
    }
    for (flag, words) in [
        ("--model mlp:8", &["mlp:8", "gpt:LAYERSxHEADSxWIDTH"][..]),
        ("--model gpt:1x2", &["gpt:1x2", "gpt:LAYERSxHEADSxWIDTH"]),
        ("--model gpt:1x3x16", &["3 heads do not divide a width of 16"]),
        ("--model gpt:0x2x16", &["layers 0"]),
        ("--model gpt:1x1x9000000000000000000", &["gpt:1x1x9", "width 9", "at most 2147483647"]),
        ("--model absent.toml", &["absent.toml"]),
        ("--context 0", &["--context 0"]),
        ("--batch 0", &["batch"]),
        ("--batch 9000000000000000000", &["a batch of 9000000000000000000 windows"]),
        ("--batch 1000000000", &["a batch of 1000000000 windows", "2147483647"]),
        ("--steps 0", &["steps 0"]),
        ("--steps -1", &["--steps"]),
        ("--micro-batches 3", &["3 micro-batches do not divide a batch of 4"]),
        ("--micro-batches 0", &["0 micro-batches"]),
        ("--schedule plateau", &["plateau"]),
        ("--lr 0", &["learning rate 0"]),
        ("--clip 0", &["clip"]),
        ("--warmup -1", &["warm"]),
        ("--dropout 1", &["dropout 1"]),
        ("--val-split 1", &["--val-split 1"]),
        ("--seed 18446744073709551615", &["seed"]),
        ("--tokenizer words", &["words", "char, byte or gpt2"]),
        ("--capture always", &["always", "auto"]),
        ("--precision f8", &["f8"]),
    ] {
        // The last of a flag that stands twice would be refused for that.
        let key = flag.split(' ').next().unwrap();
        let given: Vec<&str> = TINY.split(' ').collect();
        let kept = match given.iter().position(|word| *word == key) {
            Some(at) => [&given[..at], &given[at + 2..]].concat(),
            None => given,
        };
        place.refuses(&format!("{} --out o {flag}", kept.join(" ")), 2, words);
    }
}

#[test]
fn a_decoder_can_be_described() {
    let place = place("lm-toml");
    let how = "train --task lm --data text.txt --batch 4 --steps 4 --model net.toml --out m";
    let shape = "layers = 1\nheads = 4\nwidth = 16\n";
    place.write("net.toml", format!("{shape}kv_heads = 2\ncontext = 8\npositions = 'rotary'\nnorm = 'rmsnorm'\nactivation = 'swiglu'\nhidden = 24\ntied = false\ndropout = 0.1\nrope_theta = 500.0\neps = 1e-6\n"));
    place.ok(how);
    let value = place.json("info m");
    let built = &value["architecture"];
    assert_eq!(
        (&value["name"], &built["kv_heads"], &built["hidden"]),
        (&"net".into(), &2.into(), &24.into())
    );
    assert_eq!(
        (&built["context"], &built["norm"], &built["tied"]),
        (&8.into(), &"rmsnorm".into(), &false.into())
    );
    place.ok("train --resume m --model net.toml");
    place.ok("generate --model m --tokens 30");
    place.write("net.toml", format!("{shape}kv_heads = 4\n"));
    place.refuses("train --resume m --model net.toml", 2, &["--model", "another decoder, net"]);
    // A flag comes before the file.
    place.write("net.toml", format!("{shape}context = 8\nbias = true\nactivation = 'gelu_tanh'\n"));
    place.ok(&format!("{how} --context 12"));
    assert_eq!(place.json("info m")["context"], 12);

    let how = how.replace("--out m", "--out o");
    for (more, words) in [
        ("layer = 3\n", &["net.toml, line 4", "layer"][..]),
        ("norm = 'batchnorm'\n", &["net.toml, line 4", "batchnorm", "rmsnorm"]),
        ("\n\nkv_heads = -1\n", &["net.toml, line 6"]),
        ("layers = 2\n", &["net.toml, line 4", "duplicate"]),
        ("kv_heads = 3\n", &["net.toml", "4 query heads", "3"]),
        ("rope_theta = 1.0\n", &["net.toml", "rope_theta"]),
        ("positions = 'rotary'\nrope_theta = 0.0\n", &["net.toml", "rotary base 0"]),
        ("hidden = 0\n", &["net.toml", "hidden 0"]),
        ("dropout = 1.0\n", &["net.toml", "dropout 1"]),
        ("eps = -1.0\n", &["net.toml", "eps"]),
        ("context = 0\n", &["net.toml", "context 0"]),
        ("= 3\n", &["net.toml, line 4"]),
    ] {
        place.write("net.toml", format!("{shape}{more}"));
        place.refuses(&how, 4, words);
    }
    place.write("net.toml", "layers = 1\nheads = 4\n");
    place.refuses(&how, 4, &["net.toml", "width"]);
    place.write("net.toml", "layers = 1\nheads = 5\nwidth = 16\n");
    place.refuses(&how, 4, &["net.toml", "5 heads do not divide a width of 16"]);
    place.write("net.toml", "layers = 1\nheads = 1\nwidth = 9000000000000000000\n");
    place.refuses(&how, 4, &["net.toml", "width 9", "at most"]);
}

/// Steps whose gradients overflow are skipped; after too many in a row the run ends, and what it had saved stays.
#[test]
fn a_run_that_diverges_keeps_its_checkpoint() {
    let place = place("lm-overflow");
    // The rate doubles each step: 1 at the look of step 40, beyond f16's range soon after.
    let how = TINY.replace("--eval-every 10", "--eval-every 40");
    let rising = "--warmup 0 --weight-decay 0 --lr 1e-12 --schedule exponential:2 --steps 200";
    let words = ["steps in a row", "not finite", "the last good checkpoint is in m", "bf16"];
    place.fails(&format!("{how} {rising} --precision f16 --out m"), 1, &words);
    let value = place.json("info m");
    assert_eq!(value["steps"], 40);
    assert!(value["val_loss"].as_f64().unwrap().is_finite());
    place.ok("generate --model m --tokens 9");

    // Before the first look there is no such checkpoint: then the weights are kept that could not be trained on.
    let at_once = "--warmup 0 --lr 1e6 --clip 1e30 --schedule constant --steps 200 --precision f16 --out o";
    place.fails(&format!("{how} {at_once}"), 1, &["steps in a row", "the last good checkpoint is in o"]);
    assert!(place.json("info o")["steps"].as_u64().unwrap() < 40);

    // In f32 a loss that is no number ends the run at once; without a checkpoint none is spoken of.
    let run = place.run(&format!("{TINY} --warmup 0 --lr 1e38 --clip 1e30 --steps 30 --out n"));
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("diverged") && !run.stderr.contains("checkpoint is in"), "{}", run.stderr);
    assert!(place.files("n").is_empty());
}

/// Weights of another decoder are refused with what differs.
#[test]
fn weights_of_another_shape_are_refused() {
    use warpsmith::Device;
    use warpsmith::nn::GptConfig;
    use warpsmith::param::Precision;
    use warpsmith::train::lm::LanguageModel;

    let model = |config: &GptConfig| LanguageModel::new(config, Precision::f32(), 1, Device::cpu()).unwrap();
    let small = GptConfig::new(20, 8, 1, 2, 16);
    let refused = |other: GptConfig| {
        let state = model(&other).state().unwrap();
        let named = state.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        model(&small).load_state(named).unwrap_err().message().to_owned()
    };
    let message = refused(GptConfig { context: 9, vocab: 21, padded_vocab: 21, ..small.clone() });
    for word in
        ["transformer.wte.weight", "[21, 16]", "[20, 16]", "transformer.wpe.weight", "[9, 16]", "[8, 16]"]
    {
        assert!(message.contains(word), "{word:?} is not in {message}");
    }
    let message = refused(GptConfig { layers: 2, ..small.clone() });
    assert!(message.contains("transformer.h.1.") && !message.contains("transformer.h.0."), "{message}");
    let message = refused(GptConfig { positions: warpsmith::nn::Positions::Rotary(1e4), ..small.clone() });
    assert!(message.contains("lack") && message.contains("transformer.wpe.weight"), "{message}");
}
