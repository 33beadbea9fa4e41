//! The commands as a user runs them: what they print, where, and what they write.

#![cfg(feature = "cli")]

mod cli_support;

use std::process::Stdio;

use cli_support::{Place, Run, fruit};

/// A quick model of the digits' first rows, in `m`.
const TRAIN: &str = "train --limit 300 --epochs 3 --model mlp:32 --out m";

#[test]
fn training_reports_on_stdout_and_progress_on_stderr() {
    let place = Place::new("report");
    let run = place.ok(TRAIN);
    for word in ["mlp:32 on digits", "accuracy", "epochs     3", "2,410 parameters"] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
    for word in ["device: cpu (auto)", "epoch 1/3", "epoch 3/3", "rows/s"] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    assert!(run.stdout.contains("(label smoothing 0.1)"), "{}", run.stdout);
    for (how, part) in [("--test-split 0", "validation"), ("--test-split 0 --val-split 0", "train")] {
        let run = place.ok(&format!("{TRAIN} --label-smoothing 0 {how}"));
        assert!(run.stdout.contains(&format!("\n{part:10} accuracy")), "{}", run.stdout);
        assert!(!run.stdout.contains("smoothing"), "{}", run.stdout);
    }
    let quiet = place.ok(&format!("{TRAIN} --quiet"));
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.contains("accuracy"));
}

#[test]
fn the_json_of_training_has_the_promised_keys() {
    let place = Place::new("json");
    let value = place.json(&format!("{TRAIN} --seed 7"));
    assert_eq!(value["model"], "m");
    assert_eq!((value["parameters"].as_u64(), value["epochs"].as_u64()), (Some(2410), Some(3)));
    // 300 rows: 60 to test, 24 to validate, 216 to train on, in batches of 32.
    assert_eq!((value["steps"].as_u64(), value["seed"].as_u64()), (Some(21), Some(7)));
    assert_eq!(value["device"], "cpu");
    for key in ["seconds", "samples_per_second", "train_loss", "val_loss", "test_loss", "first_step_seconds"]
    {
        assert!(value[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {value}");
    }
    assert!((1..=3).contains(&value["best_epoch"].as_u64().unwrap()));
    assert!(value["metrics"]["accuracy"].as_f64().unwrap() > 0.3, "{value}");
    assert_eq!((&value["metrics_on"], &place.json("info m")["metrics_on"]), (&"test".into(), &"test".into()));
    let log = place.text("m/metrics.jsonl");
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!((lines[2]["train_loss"].as_f64().unwrap() - value["train_loss"].as_f64().unwrap()).abs() < 1e-12);
}

#[test]
fn each_task_has_its_metrics() {
    let place = Place::new("tasks");
    place.write("fruit.csv", fruit(120));
    place.write(
        "y.csv",
        (0..120).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{},{},{}.5\n", i, i * i % 7, 3 * i)),
    );
    let binary = place.json("train --data fruit.csv --target kind --epochs 2 --quiet");
    assert_eq!(binary["model"], "runs/fruit-mlp-256-128");
    let keys = |v: &serde_json::Value| v["metrics"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&binary), ["accuracy", "f1", "precision", "recall", "roc_auc"]);
    assert_eq!(keys(&place.json("train --data y.csv --epochs 2 --quiet")), ["mae", "r2", "rmse"]);
    let three =
        place.json("train --data fruit.csv --target colour --task multiclass --epochs 1 --out c --quiet");
    assert_eq!(keys(&three), ["accuracy"]);
    // What info says of them.
    assert_eq!(place.json("info runs/fruit-mlp-256-128")["architecture"]["task"], "binary");
    assert!(place.ok("info c").stdout.contains("multiclass of 'colour'"));
}

#[test]
fn equal_runs_write_equal_bytes_whatever_the_threads() {
    let place = Place::new("threads");
    place.write("fruit.csv", fruit(150));
    let mut first = None;
    for threads in [1, 2, 3, 4, 8] {
        place.ok(&format!(
            "train --data fruit.csv --epochs 3 --batch 50 --dropout 0.2 --out m{threads} --threads {threads}"
        ));
        let bytes = place.read(&format!("m{threads}/model.safetensors"));
        assert!(*first.get_or_insert(bytes.clone()) == bytes, "{threads} threads");
    }
    assert_eq!(place.read("m1/model.toml"), place.read("m8/model.toml"));
    place.ok("train --data fruit.csv --epochs 3 --batch 50 --dropout 0.2 --out other --seed 43");
    assert!(first.unwrap() != place.read("other/model.safetensors"), "another seed must give another model");
}

#[test]
fn digits_models_are_equal_for_all_numbers_of_threads() {
    let place = Place::new("digits-threads");
    let bytes = [1, 2, 3, 4, 8].map(|threads| {
        place.ok(&format!("train --epochs 1 --limit 700 --out m{threads} --threads {threads}"));
        place.read(&format!("m{threads}/model.safetensors"))
    });
    assert!(bytes.iter().all(|b| *b == bytes[0]));
}

#[test]
fn predictions_come_as_csv_and_json_lines() {
    let place = Place::new("predict");
    place.write("fruit.csv", fruit(120));
    place.ok("train --data fruit.csv --epochs 30 --out m");
    let csv = place.ok("predict --model m --input fruit.csv").stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines[0], lines.len()), ("class,p_apple,p_pear", 121));
    let truth = fruit(120);
    let right = lines[1..]
        .iter()
        .zip(truth.lines().skip(1))
        .filter(|(p, t)| t.ends_with(p.split(',').next().unwrap()));
    assert!(right.count() >= 110, "{csv}");
    for line in &lines[1..] {
        let p: Vec<f64> = line.split(',').skip(1).map(|p| p.parse().unwrap()).collect();
        assert!((p[0] + p[1] - 1.0).abs() < 1e-6, "{line}");
    }

    let run = place.ok("predict --model m --input fruit.csv --output p.csv");
    assert_eq!(run.stdout, "");
    assert_eq!(place.text("p.csv"), csv);
    place.ok("predict --model m --input fruit.csv --output p.jsonl");
    let objects = place.text("p.jsonl");
    assert_eq!(objects, place.ok("predict --model m --input fruit.csv --format jsonl").stdout);
    let first: serde_json::Value = serde_json::from_str(objects.lines().next().unwrap()).unwrap();
    assert_eq!(first["class"], lines[1].split(',').next().unwrap());
    assert_eq!(
        first["p_apple"].to_string().parse::<f64>().unwrap().to_string(),
        lines[1].split(',').nth(1).unwrap()
    );
    let all = place.json("predict --model m --input fruit.csv");
    assert_eq!((all["rows"].as_u64(), all["predictions"][0].clone()), (Some(120), first));
}

#[test]
fn columns_are_matched_by_name_then_by_position() {
    let place = Place::new("columns");
    place.write("fruit.csv", fruit(120));
    place.ok("train --data fruit.csv --epochs 3 --out m");
    place.write("named.csv", "colour,x,length,weight\nred,1,4,7.5\n");
    place.write("others.csv", "a,b,c\n7.5,4,red\n");
    let named = place.ok("predict --model m --input named.csv");
    assert!(!named.stderr.contains("position"), "{}", named.stderr);
    let others = place.ok("predict --model m --input others.csv");
    assert!(others.stderr.contains("others.csv") && others.stderr.contains("position"), "{}", others.stderr);
    assert_eq!(others.stdout, named.stdout);
    assert_eq!(place.ok("predict --model m --input others.csv --quiet").stderr, "");
    // A text that training never saw is said.
    place.write("new.csv", "weight,length,colour,kind\n7.5,4,blue,pear\n7.5,4,red,pear\n");
    for line in ["predict --model m --input new.csv", "eval --model m --data new.csv"] {
        let run = place.ok(line);
        assert!(run.stderr.contains("column 'colour' has 1 row with a text"), "{}", run.stderr);
    }
    let run = place.ok("train --data fruit.csv --epochs 1 --label-smoothing 0.2 --out l");
    assert!(run.stderr.contains("--label-smoothing does nothing"), "{}", run.stderr);
    place.write("few.csv", "a,b\n7.5,4\n");
    place.fails("predict --model m --input few.csv", 4, &["few.csv", "3 inputs"]);

    // Raw rows of numbers, without a header.
    let rows = (0..40).fold(String::new(), |t, i| t + &format!("{i},{},{}\n", i % 7, i % 2));
    place.write("numbers.csv", format!("a,b,y\n{rows}"));
    place.ok("train --data numbers.csv --epochs 2 --out n");
    place.write("inputs.csv", "3,4\n5,6\n");
    let run = place.ok("predict --model n --input inputs.csv");
    assert!(run.stdout.lines().count() == 3 && run.stderr.contains("no header"), "{run:?}");
}

#[test]
fn evaluation_agrees_with_training() {
    let place = Place::new("eval");
    place.write("fruit.csv", fruit(150));
    place.write("test.csv", fruit(40));
    let trained = place.json("train --data fruit.csv --test-data test.csv --epochs 5 --out m --quiet");
    let value = place.json("eval --model m --data test.csv --quiet");
    assert_eq!(value["rows"], 40);
    assert_eq!((&value["metrics"], &value["loss"]), (&trained["metrics"], &trained["test_loss"]));
    assert!(place.ok("eval --model m --data test.csv").stdout.contains("accuracy"));
    place.write("no-target.csv", "weight,length,colour\n1,2,red\n");
    place.fails("eval --model m --data no-target.csv", 4, &["no-target.csv", "'kind'"]);
    place.write("kiwi.csv", "weight,length,colour,kind\n1,2,red,kiwi\n");
    place.fails(
        "eval --model m --data kiwi.csv",
        4,
        &["kiwi.csv, line 2, column kind", "kiwi", "apple, pear"],
    );
}

#[test]
fn matrices_are_data_too() {
    let place = Place::new("npy");
    let npy = |shape: &str, values: &[f32]| {
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    };
    let x: Vec<f32> = (0..160).map(|i| (i * 29 % 47) as f32).collect();
    let y: Vec<f32> = x.chunks(2).map(|row| (row[0] > row[1]) as u8 as f32).collect();
    place.write("X.npy", npy("80, 2", &x));
    place.write("Y.npy", npy("80,", &y));
    let value = place.json("train --data X.npy,Y.npy --epochs 20 --quiet");
    assert_eq!(value["model"], "runs/X-mlp-256-128");
    assert!(value["metrics"]["accuracy"].as_f64().unwrap() > 0.7, "{value}");
    assert_eq!(place.json("eval --model runs/X-mlp-256-128 --data X.npy,Y.npy")["rows"], 80);
    assert_eq!(place.ok("predict --model runs/X-mlp-256-128 --input X.npy").stdout.lines().count(), 81);
    place.write("Z.npy", npy("79,", &y[..79]));
    place.fails("train --data X.npy,Z.npy", 4, &["Z.npy", "80", "79"]);
    place.fails("train --data Y.npy", 4, &["Y.npy", "matrix"]);
}

#[test]
fn settings_come_from_flags_then_the_file_then_defaults() {
    let place = Place::new("config");
    place.write(
        "run.toml",
        "epochs = 2\nlimit = 300\nmodel = 'mlp:16'\nlr = 0.01\nout = 'm'\nquiet = true\nseed = 5\n",
    );
    let value = place.json("train --config run.toml --epochs 1");
    assert_eq!(
        (value["epochs"].as_u64(), value["seed"].as_u64(), &value["model"]),
        (Some(1), Some(5), &"m".into())
    );
    let model = place.text("m/model.toml");
    assert!(
        model.contains("lr = 0.01") && model.contains("name = \"mlp:16\"") && model.contains("batch = 32"),
        "{model}"
    );
    place.write("net.toml", "hidden = [8, 4]\nactivation = 'tanh'\n");
    assert_eq!(
        place.json("train --limit 300 --epochs 1 --model net.toml --quiet")["model"],
        "runs/digits-net"
    );
    assert!(place.text("runs/digits-net/model.toml").contains("type = \"tanh\""));
}

#[test]
fn info_shows_models_and_tensors() {
    let place = Place::new("info");
    place.ok(TRAIN);
    let text = place.ok("info m").stdout;
    assert!(text.matches("task ").count() == 1 && text.matches("target").count() == 0, "{text}");
    for word in [
        "network    mlp:32, 1x8x8 to 10, 2,410 parameters",
        "  0  linear 32  32  2,080",
        "epochs     3 of 3",
        "data       digits",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let value = place.json("info m");
    assert_eq!(
        (value["parameters"].as_u64(), value["epochs"].as_u64(), value["format"].as_u64()),
        (Some(2410), Some(3), Some(2))
    );
    let file = place.ok("info m/model.safetensors").stdout;
    assert!(
        file.contains("0.weight") && file.contains("[32, 64]") && file.contains("4 tensors, 2,410 values"),
        "{file}"
    );
    assert_eq!(place.json("info m/model.safetensors")["tensors"][0]["dtype"], "f32");
    place.fails("info absent", 4, &["absent"]);
    place.fails("info absent.safetensors", 4, &["absent.safetensors"]);
}

#[test]
fn benches_print_rows() {
    let place = Place::new("bench");
    let shape = "--model mlp:16,8 --inputs 20 --batch 4,32 --steps 20 --warmup 2 --device cpu --threads 1";
    let value = place.json(&format!("bench step --outputs 1 {shape}"));
    let rows = value["rows"].as_array().unwrap();
    assert_eq!((rows[0]["batch"].as_u64(), rows[1]["batch"].as_u64(), rows.len()), (Some(4), Some(32), 2));
    assert!(rows.iter().all(|r| r["median_ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{value}");
    assert!(place.ok(&format!("bench step --outputs 3 {shape}")).stdout.contains("median ms"));
    let value = place.json("bench ops --only relu,relu_backward,adam_1m --seconds 0.01");
    let names: Vec<&str> =
        value["rows"].as_array().unwrap().iter().map(|r| r["op"].as_str().unwrap()).collect();
    assert_eq!(names, ["relu", "relu_backward", "adam_1m"]);
    place.fails("bench ops --only nosuch", 2, &["nosuch", "relu"]);
    place.fails("bench step --batch 0", 2, &["--batch"]);
    place.fails("bench step --model resnet", 2, &["resnet", "mlp:"]);
}

#[test]
fn the_whole_op_list_passes_its_checks() {
    let place = Place::new("ops");
    let value = place.json("bench ops --seconds 0 --quiet");
    assert!(value["rows"].as_array().unwrap().len() > 50, "{value}");
}

#[test]
fn help_has_examples_and_they_parse() {
    let place = Place::new("help");
    for command in [
        "",
        "train",
        "tokenize",
        "plan",
        "export",
        "eval",
        "predict",
        "info",
        "bench",
        "bench step",
        "bench ops",
        "completions",
    ] {
        let help = place.ok(&format!("{command} --help")).stdout;
        assert!(help.contains("Examples:"), "{command}: {help}");
        let examples: Vec<&str> = help.lines().filter_map(|l| l.trim().strip_prefix("warpsmith ")).collect();
        assert!(!examples.is_empty(), "{command}");
        for example in examples {
            // To the pipe, the redirection or the explanation behind it; clap then accepts it or not, before files are opened.
            let example = example.split([';', '|', '>']).next().unwrap().split("  ").next().unwrap();
            let run = place.run(&format!("{example} --help"));
            assert_eq!(run.code, 0, "{example}: {}", run.stderr);
            let words: Vec<&str> = example.split_whitespace().filter(|w| w.starts_with("--")).collect();
            for flag in words {
                assert!(run.stdout.contains(flag), "{example}: {flag} is not in the help");
            }
        }
    }
    let exits = place.ok("train --help").stdout;
    assert!(exits.contains("Exit codes:") && exits.contains("130"), "{exits}");
    assert!(place.ok("--version").stdout.starts_with("warpsmith "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.ok(&format!("completions {shell}")).stdout.contains("warpsmith"));
    }
}

/// A reader that leaves early ends the program without a word.
#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new("pipe");
    place.ok(TRAIN);
    for line in [
        "predict --model m --input digits --quiet",
        "predict --model m --input digits --format jsonl --quiet",
        "info m",
    ] {
        let mut child = place.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let run = Run::of(line, child.wait_with_output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
    }
}

/// `/dev/full` refuses every write as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let place = Place::new("full");
    place.ok(TRAIN);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command("predict --model m --input digits").stdout(full()).output().unwrap();
    let run = Run::of("predict", output);
    assert!(run.code == 4 && run.stderr.contains("stdout"), "{run:?}");
    place.fails("predict --model m --input digits --output /dev/full", 4, &["/dev/full"]);
    // Where nobody can be told, the exit code still tells.
    let output = place.command("info absent").stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn csv_comes_from_stdin_too() {
    let place = Place::new("stdin");
    place.write("fruit.csv", fruit(120));
    place.ok("train --data fruit.csv --epochs 3 --out m");
    let file = std::fs::File::open(place.path().join("fruit.csv")).unwrap();
    let output = place.command("predict --model m --input -").stdin(file).output().unwrap();
    assert_eq!(Run::of("stdin", output).stdout, place.ok("predict --model m --input fruit.csv").stdout);
}
