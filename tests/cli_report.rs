//! What a run leaves for people and other tools: metrics.csv, TensorBoard events, report.html.

#![cfg(feature = "cli")]

mod cli_support;

use std::process::Command;

use cli_support::page::{check, rows_of};
use cli_support::{Place, fruit};

#[test]
fn the_table_has_the_figures_of_the_log() {
    let place = Place::new("csv");
    place.write("fruit.csv", fruit(150));
    place.ok("train --data fruit.csv --epochs 4 --out whole");
    let table = place.text("whole/metrics.csv");
    let mut lines = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let metrics = "val_accuracy,val_f1,val_precision,val_recall,val_roc_auc";
    assert_eq!(header.join(","), format!("epoch,step,lr,train_loss,val_loss,{metrics}"));
    let log = place.text("whole/metrics.jsonl");
    assert_eq!((log.lines().count(), table.lines().count()), (4, 5));
    for (line, cells) in log.lines().zip(lines) {
        for (name, cell) in header.iter().zip(cells) {
            // The very same digits.
            let text = line.split_once(&format!("\"{name}\":")).unwrap().1;
            assert_eq!(text.split([',', '}']).next(), Some(cell), "{name}");
        }
    }
    // A run that stopped in between leaves the same bytes.
    place.ok("train --data fruit.csv --epochs 2 --out part");
    place.ok("train --resume part --epochs 4");
    assert_eq!(place.text("part/metrics.csv"), table);

    place.ok("train --data fruit.csv --target weight --val-split 0 --epochs 1 --out none");
    let table = place.text("none/metrics.csv");
    let (header, row) = table.trim_end().split_once('\n').unwrap();
    assert!(header.ends_with(",val_loss,val_mae,val_r2,val_rmse") && row.ends_with(",,,,"), "{table}");
}

/// TensorBoard's own reading of the events in `dir`, compared with `table`; nothing where its package is not there.
fn tensorboard(place: &Place, dir: &str, table: &str) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-tensorboard.py");
    let python = std::env::var("WARPSMITH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    match Command::new(&python).arg(script).args([dir, table]).current_dir(place.path()).output() {
        Err(e) => println!("skipped: no {python}: {e}"),
        Ok(out) if out.status.code() == Some(77) => {
            println!("skipped: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(out) => {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            return Some(String::from_utf8(out.stdout).unwrap());
        }
    }
    None
}

/// How often `tag` stands in an event file: each scalar has its tag as text.
fn count(place: &Place, dir: &str, tag: &str) -> usize {
    let bytes = place.read(&format!("{dir}/events.out.tfevents.warpsmith"));
    // Field 1 of its message: key, length, text.
    let wanted = [&[0x0a, tag.len() as u8], tag.as_bytes()].concat();
    bytes.windows(wanted.len()).filter(|window| *window == wanted).count()
}

/// The learning rate of an epoch is that of its last step, not of the step that comes next.
#[test]
fn the_rate_of_an_epoch_is_that_of_its_last_step() {
    let place = Place::new("rates");
    place.write("fruit.csv", fruit(150));
    place.ok("train --data fruit.csv --batch 8 --epochs 3 --warmup 2 --lr 0.01 --out m");
    let table = place.text("m/metrics.csv");
    let column = table.lines().next().unwrap().split(',').position(|name| name == "lr").unwrap();
    let rates: Vec<f64> =
        table.lines().skip(1).map(|line| line.split(',').nth(column).unwrap().parse().unwrap()).collect();
    assert_eq!(rates, [0.005, 0.01, 0.01]);
}

#[test]
fn events_go_on_where_the_run_does() {
    let place = Place::new("events");
    place.write("fruit.csv", fruit(150));
    let train = "train --data fruit.csv --batch 8";
    place.ok(&format!("{train} --epochs 5 --out whole --tensorboard events/whole"));
    place.ok(&format!("{train} --epochs 2 --out part --tensorboard events/part"));
    // Two epochs more than the checkpoint has, as after a kill.
    place.ok("train --resume part --epochs 4 --out other --tensorboard events/part");
    place.ok("train --resume part --epochs 5 --tensorboard events/part");
    for tag in ["train_loss", "val_loss", "val_accuracy", "lr"] {
        assert_eq!((count(&place, "events/whole", tag), count(&place, "events/part", tag)), (5, 5), "{tag}");
    }
    let table = place.text("whole/metrics.csv");
    let steps: usize = table.lines().last().unwrap().split(',').nth(1).unwrap().parse().unwrap();
    let step_losses = count(&place, "events/whole", "step_loss");
    assert!(step_losses > 3 && step_losses == steps / 10, "{step_losses} of {steps}");
    assert_eq!(count(&place, "events/part", "step_loss"), step_losses);
    let whole = tensorboard(&place, "events/whole", "whole/metrics.csv");
    let part = tensorboard(&place, "events/part", "part/metrics.csv");
    let figures = |text: Option<String>| {
        text.map(|text| {
            text.lines().filter(|l| !l.starts_with("rows_")).map(str::to_owned).collect::<Vec<_>>()
        })
    };
    assert_eq!(figures(whole), figures(part));

    // What was not written at the time is filled in, of a new run nothing old stays.
    place.ok("train --resume whole --epochs 6");
    place.ok("train --resume whole --epochs 7 --tensorboard events/whole");
    assert_eq!(count(&place, "events/whole", "train_loss"), 7);
    place.ok(&format!("{train} --epochs 1 --out new --tensorboard events/whole"));
    assert_eq!(count(&place, "events/whole", "train_loss"), 1);
    place.refuses(
        &format!("{train} --epochs 1 --out m --tensorboard m/events"),
        2,
        &["--tensorboard", "within"],
    );
    place.fails(&format!("{train} --epochs 1 --out m --tensorboard fruit.csv"), 4, &["fruit.csv"]);
}

#[test]
fn a_report_of_classes_counts_every_row_once() {
    let place = Place::new("report");
    let value = place.json("train --limit 500 --epochs 3 --model mlp:16 --report --out m");
    assert_eq!(value["report"], "m/report.html");
    let text = place.text("m/report.html");
    check(&text);
    let rows = rows_of(&text, "confusion");
    assert_eq!(rows.len(), 10);
    let total: u64 = rows.iter().flatten().sum();
    let right: u64 = rows.iter().enumerate().map(|(i, row)| row[i]).sum();
    assert_eq!(total, 100);
    assert!((right as f64 / total as f64 - value["metrics"]["accuracy"].as_f64().unwrap()).abs() < 1e-12);
    // Each worst answer has a picture, and losses fall.
    assert_eq!(text.matches("data:image/png;base64,").count(), 24);
    let losses: Vec<f64> = text
        .split("<span>loss ")
        .skip(1)
        .map(|rest| rest.split('<').next().unwrap().parse().unwrap())
        .collect();
    assert!(losses.len() == 24 && losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    for word in
        ["mlp:16", "training.label_smoothing", "kept epoch", "<polyline", "prefers-color-scheme: dark"]
    {
        assert!(text.contains(word), "{word}");
    }

    // Made again, it is the same; the model is still whole, and one that replaces it does not keep the old page.
    place.ok("report m --out again.html");
    assert_eq!(place.text("again.html"), text);
    place.ok("info m");
    place.ok("train --resume m --epochs 4");
    assert!(!place.path().join("m/report.html").exists());
    // A page of someone else stays.
    place.write("m/report.html", "mine");
    place.ok("train --resume m --epochs 5");
    assert_eq!(place.text("m/report.html"), "mine");
}

#[test]
fn reports_of_other_tasks_and_of_data_that_is_gone() {
    let place = Place::new("report-more");
    place.write("fruit.csv", fruit(150).replace("pear", "<&pear>"));
    place.ok("train --data fruit.csv --epochs 2 --out classes --report");
    let text = place.text("classes/report.html");
    check(&text);
    assert!(text.contains("&lt;&amp;pear&gt;") && !text.contains("<&pear>"));
    assert_eq!(rows_of(&text, "confusion").iter().flatten().sum::<u64>(), 30);

    place.ok("train --data fruit.csv --target weight --epochs 2 --out value --report");
    let text = place.text("value/report.html");
    check(&text);
    assert!(text.contains("predicted weight") && text.contains("r2"));
    assert_eq!(text.matches("class=\"dot\"").count(), 30);

    std::fs::rename(place.path().join("fruit.csv"), place.path().join("moved.csv")).unwrap();
    let run = place.ok("report classes");
    assert!(run.stderr.contains("fruit.csv"), "{}", run.stderr);
    let text = place.text("classes/report.html");
    check(&text);
    assert!(text.contains("could not be read again") && !text.contains("class=\"confusion\""));
    place.ok("report classes --data moved.csv");
    assert_eq!(rows_of(&place.text("classes/report.html"), "confusion").len(), 2);
    place.write("other.csv", fruit(90));
    place.fails("report classes --data other.csv", 4, &["other.csv"]);
    place.fails("report absent", 4, &["absent"]);
    place.fails("report classes --out classes", 4, &["classes"]);
}
