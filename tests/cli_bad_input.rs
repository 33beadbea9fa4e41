//! Bad input: the right exit code, a message that names the place, and nothing overwritten.

#![cfg(feature = "cli")]

mod cli_support;

use std::fs;

use cli_support::{Place, fruit};

#[test]
fn a_wrong_command_line_exits_with_2() {
    let place = Place::new("usage");
    for (line, word) in [
        ("train --lr 0", "learning rate 0"),
        ("train --lr -1", "learning rate -1"),
        ("train --lr nan", "learning rate NaN"),
        ("train --lr x", "--lr"),
        ("train --batch 0", "batch 0"),
        ("train --batch -1", "--batch"),
        ("train --epochs 0", "epochs 0"),
        ("train --model mlp:0", "width 0"),
        ("train --model mlp:8,0,8", "width 0"),
        ("train --model mlp:x", "mlp:x"),
        ("train --model resnet", "resnet"),
        ("train --model absent.toml", "absent.toml"),
        ("train --nosuch", "--nosuch"),
        ("train stray", "stray"),
        ("nosuch", "nosuch"),
        ("train --optimizer lion", "lion"),
        ("train --schedule sometimes", "sometimes"),
        ("train --task cluster", "cluster"),
        ("train --activation step", "step"),
        ("train --dropout 1", "dropout 1"),
        ("train --test-split 1", "--test-split 1"),
        ("train --val-split -0.1", "--val-split -0.1"),
        ("train --limit 0", "--limit 0"),
        ("train --threads 0", "--threads 0"),
        ("train --device tpu", "tpu"),
        ("train --momentum 0.9", "--momentum"),
        ("train --clip 0", "clipping limit 0"),
        ("train --patience -1", "--patience"),
        ("train --seed 18446744073709551615", "seed"),
        ("train --test-data a.csv --test-split 0.3", "--test-data"),
        ("predict --model m", "--input"),
        ("predict --input a.csv", "--model"),
        ("eval --model m", "--data"),
        ("info", "DIR|FILE"),
        ("predict --model m --input a.csv --json --format csv", "--format"),
        ("bench step --seconds -1", "--seconds -1"),
        ("bench ops --seconds -1", "--seconds -1"),
    ] {
        place.refuses(line, 2, &[word]);
    }
}

#[test]
fn there_is_no_cuda_and_no_silent_cpu_run() {
    let place = Place::new("cuda");
    place.refuses("train --device cuda", 6, &["cuda:0"]);
    place.refuses("train --device cuda:3", 6, &["cuda:3"]);
    place.refuses("bench step --device cuda", 6, &["cuda:0"]);
}

#[test]
fn bad_tables_exit_with_4_and_name_the_place() {
    let place = Place::new("tables");
    let number_rows =
        |last: &str| (0..30).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{i},2,{}\n", i % 2)) + last;
    for (name, text, words) in [
        ("empty.csv", String::new(), &["empty.csv"][..]),
        ("header.csv", "a,b,y\n".into(), &["header.csv"]),
        ("ragged.csv", number_rows("1,2\n"), &["ragged.csv, line 32"]),
        ("text.csv", number_rows("1,zwei,1\n"), &["text.csv, line 32, column b", "zwei"]),
        ("nan.csv", number_rows("nan,2,1\n"), &["nan.csv, line 32, column a", "nan"]),
        ("inf.csv", number_rows("1,-inf,1\n"), &["inf.csv, line 32, column b", "inf"]),
        ("single.csv", "a,y\n1,no\n2,no\n3,no\n4,no\n5,no\n".into(), &["single.csv", "column y", "no"]),
        ("few.csv", "a,y\n1,no\n2,yes\n".into(), &["few.csv", "too few"]),
        (
            "only.csv",
            (0..20).fold("y\n".to_owned(), |t, i| t + &format!("{}\n", i % 2)),
            &["only.csv", "nothing to learn from"],
        ),
    ] {
        place.write(name, text);
        place.refuses(&format!("train --data {name}"), 4, words);
    }
    place.refuses("train --data absent.csv", 4, &["absent.csv"]);
    place.refuses("train --data .", 4, &["."]);
    place.write("fruit.csv", fruit(60));
    place.refuses(
        "train --data fruit.csv --target price",
        4,
        &["fruit.csv", "price", "weight, length, colour, kind"],
    );
    place.refuses("train --data fruit.csv --task regression", 4, &["fruit.csv", "kind", "texts"]);
    place.refuses(
        "train --data fruit.csv --target length --task binary",
        4,
        &["fruit.csv", "length", "binary"],
    );
    place.refuses("train --data fruit.csv --batch 1000", 4, &["1000"]);
    place.write("kiwi.csv", "weight,length,colour,kind\n1,2,red,apple\n1,2,red,kiwi\n");
    place.refuses(
        "train --data fruit.csv --test-data kiwi.csv",
        4,
        &["kiwi.csv, line 3, column kind", "kiwi"],
    );
    place.write(
        "object.npy",
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }             \n",
    );
    place.refuses("train --data object.npy", 4, &["object.npy"]);
}

/// What must not be an error: a constant column, missing cells, a batch larger than the rows by default.
#[test]
fn harmless_tables_are_accepted() {
    let place = Place::new("harmless");
    let rows =
        (0..20).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{i},7,{}\n", i % 2)) + "NA,?,0\n,null,1\n";
    place.write("t.csv", rows);
    assert_eq!(place.json("train --data t.csv --epochs 1 --quiet")["steps"], 1);
}

#[test]
fn bad_settings_files_exit_with_4_and_name_the_line() {
    let place = Place::new("settings");
    for (text, words) in [
        ("epochs = 3\nlearning-rate = 0.1\n", ["c.toml, line 2", "unknown key `learning-rate`"]),
        ("epochs = 3\n\nlr = 0\n", ["c.toml, line 3: key 'lr'", "learning rate 0"]),
        ("epochs = 'three'\n", ["c.toml, line 1", "invalid type"]),
        ("epochs = \n", ["c.toml, line 1", "c.toml"]),
        ("model = 'resnet'\n", ["c.toml, line 1", "resnet"]),
        ("schedule = 'x'\n", ["c.toml, line 1", "schedule"]),
    ] {
        place.write("c.toml", text);
        place.refuses("train --config c.toml", 4, &words);
    }
    place.refuses("train --config absent.toml", 4, &["absent.toml"]);
    for (text, word) in
        [("hidden = [0]\n", "width 0"), ("hidden = 3\n", "line 1"), ("hidden = [3]\nlayers = 2\n", "layers")]
    {
        place.write("net.toml", text);
        place.refuses("train --model net.toml", 4, &["net.toml", word]);
    }
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new("overwrite");
    fs::create_dir(place.path().join("notes")).unwrap();
    place.write("notes/thesis.txt", "mine");
    place.refuses("train --limit 300 --epochs 1 --out notes", 2, &["notes"]);
    place.write("file", "mine");
    place.refuses("train --limit 300 --epochs 1 --out file", 4, &["file"]);
    place.refuses("train --limit 300 --epochs 1 --out file/below", 4, &["file"]);
    place.refuses("train --limit 300 --epochs 1 --out /proc/nosuch/m", 4, &["/proc"]);
    place.ok("train --limit 300 --epochs 1 --model mlp:8 --out m");
    place.write("answers.csv", "mine");
    place.refuses("predict --model m --input absent.csv --output answers.csv", 4, &["absent.csv"]);
    place.refuses("predict --model m --input digits --output notes", 4, &["notes"]);
    // A model that is trained anew takes the place of the old one, whose other files stay.
    place.write("m/notes.txt", "mine");
    place.ok("train --limit 300 --epochs 1 --model mlp:16 --out m");
    assert!(place.text("m/model.toml").contains("name = \"mlp:16\"") && place.text("m/notes.txt") == "mine");
}

#[test]
fn damaged_models_are_refused() {
    let place = Place::new("damaged");
    let train = "train --limit 300 --epochs 1 --model mlp:8 --out m --quiet";
    let commands = [
        "predict --model m --input digits",
        "eval --model m --data digits",
        "info m",
        "train --resume m --epochs 2",
    ];
    type Damage<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
    let damage: [(&str, Damage); 3] = [
        ("truncated", &|bytes| bytes[..bytes.len() / 2].to_vec()),
        ("bit-flipped", &|mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            bytes
        }),
        ("hostile", &|_| [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
    ];
    for (name, damage) in damage {
        place.ok(train);
        place.write("m/model.safetensors", damage(place.read("m/model.safetensors")));
        for command in commands {
            place.refuses(command, 4, &["m/model.safetensors"]);
        }
        if name != "bit-flipped" {
            place.refuses("info m/model.safetensors", 4, &["m/model.safetensors"]);
        }
        fs::remove_dir_all(place.path().join("m")).unwrap();
    }
    fs::create_dir(place.path().join("m")).unwrap();
    for command in commands {
        place.refuses(command, 4, &["m"]);
    }
}

#[test]
fn a_model_of_a_newer_version_is_refused() {
    let place = Place::new("newer");
    place.ok("train --limit 300 --epochs 1 --model mlp:8 --out m");
    let file = place.text("m/model.toml");
    assert!(file.starts_with("format = 2\n"), "{file}");
    place.write("m/model.toml", file.replacen("format = 2", "format = 3", 1));
    // Its checksum, so that the version is what is wrong.
    let list = place.text("m/checksums.txt");
    let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
    let crc = |bytes: &[u8]| {
        bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(
                crc ^ byte as u32,
                |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
            )
        }) ^ !0
    };
    let model = place.read("m/model.toml");
    for line in &mut lines {
        if line.ends_with(" model.toml") {
            *line = format!("{:08x} {} model.toml", crc(&model), model.len());
        }
    }
    lines.pop();
    let body = lines.join("\n") + "\n";
    place.write(
        "m/checksums.txt",
        format!("{body}{:08x} {} checksums.txt\n", crc(body.as_bytes()), body.len()),
    );
    for command in ["predict --model m --input digits", "info m", "train --resume m --epochs 2"] {
        place.refuses(command, 4, &["format 3", "newer"]);
    }
}

#[test]
fn divergence_exits_with_1_and_names_the_step() {
    let place = Place::new("diverge");
    place.write(
        "y.csv",
        (0..64).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{},{},{}.5\n", i, i * i % 7, 3 * i)),
    );
    let line = "train --data y.csv --optimizer sgd --lr 1e6 --out m --quiet";
    place.refuses(line, 1, &["diverged", "step"]);
    // The last good checkpoint stays.
    place.ok("train --data y.csv --epochs 2 --out m --quiet");
    place.refuses(line, 1, &["diverged", "step"]);
}

/// In f16 a step whose gradients are not finite is skipped; too many in a row end the run, and the checkpoint stays.
#[test]
fn overflow_of_f16_is_skipped_counted_and_at_last_an_error() {
    let place = Place::new("overflow");
    place.write(
        "y.csv",
        (0..64).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{},{},{}.5\n", i, i * i % 7, 3 * i)),
    );
    let line = "train --data y.csv --precision f16 --optimizer sgd --batch 1 --out m --quiet";
    // The first scale is too large for the products of some layer, or none is; either way it is counted.
    let value = place.json(&format!("{line} --epochs 2 --lr 1e-4"));
    let (steps, skipped) = (value["steps"].as_u64().unwrap(), value["skipped_steps"].as_u64().unwrap());
    assert!(skipped < steps / 4, "{value}");
    let before = place.files("m");
    place.refuses(&format!("{line} --lr 1e6"), 1, &["diverged", "20 steps in a row", "bf16"]);
    assert!(before == place.files("m"));
}

/// One step an epoch, so that what went wrong is found at the epoch's end.
#[test]
fn divergence_at_the_end_of_an_epoch_names_the_parameter() {
    let place = Place::new("diverge-end");
    place.write(
        "y.csv",
        (0..40).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{},{},{}.5\n", i, i * i % 7, 3 * i)),
    );
    let line =
        "train --data y.csv --optimizer sgd --batch 28 --test-split 0.2 --val-split 0.125 --quiet --out m";
    place.refuses(&format!("{line} --model mlp: --lr 1e39"), 1, &["epoch 1", "parameter 0.", "after step 1"]);
    place.refuses(&format!("{line} --model mlp:4 --lr 1e30"), 1, &["epoch 1"]);
}

/// Diverges after some good epochs: the model that was there stays, the checkpoint and all log lines are beside it.
#[test]
fn a_run_that_diverges_leaves_the_older_model() {
    let place = Place::new("diverge-late");
    place.write(
        "y.csv",
        (0..64).fold("a,b,y\n".to_owned(), |t, i| t + &format!("{},{},{}.5\n", i, i * i % 7, 3 * i)),
    );
    place.ok("train --data y.csv --epochs 2 --out m --quiet");
    let before = place.files("m");
    // The rate rises through the epochs until it is too high.
    let line =
        "train --data y.csv --optimizer sgd --lr 1e3 --warmup 30000 --patience 0 --epochs 30000 --quiet";
    place.fails(&format!("{line} --out m"), 1, &["diverged", "m.partial"]);
    assert!(before == place.files("m"));
    place.fails(&format!("{line} --out new"), 1, &["diverged", "checkpoint is in new"]);
    for folder in ["m.partial", "new"] {
        let done = place.json(&format!("info {folder}"))["epochs"].as_u64().unwrap() as usize;
        let log = place.text(&format!("{folder}/metrics.jsonl"));
        assert!(log.lines().count() > done, "{done} epochs in the checkpoint\n{log}");
        // Going on starts at the checkpoint, and writes no epoch twice.
        place.ok(&format!("train --resume {folder} --epochs {} --out again --quiet", done.max(1)));
        assert_eq!(place.text("again/metrics.jsonl").lines().count(), done);
        fs::remove_dir_all(place.path().join("again")).unwrap();
    }
}

#[test]
fn more_memory_than_there_is_exits_with_5() {
    let place = Place::new("memory");
    place.refuses("train --limit 300 --model mlp:4000000000,4000000000", 5, &["memory"]);
    place.refuses("train --limit 300 --model mlp:1000000,1000000", 5, &["memory"]);
    place.refuses("bench step --batch 1000000000000", 5, &["memory"]);
}

/// A folder that may not be written to. Root may write anywhere, so there it is not a test.
#[cfg(unix)]
#[test]
fn a_read_only_folder_is_found_before_training() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new("read-only");
    let folder = place.path().join("locked");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(folder.join("probe"), "").is_ok() {
        eprintln!("skipped in part: this user may write to read-only folders");
        fs::remove_file(folder.join("probe")).unwrap();
    }
    // Checked by its permission bits too, so that root learns of it as well.
    place.refuses("train --limit 300 --epochs 1 --out locked/m", 4, &["locked"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
}
