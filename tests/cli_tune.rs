//! Hyper-parameter search: the same trials whatever happens, the right ones go on, and bad tables are refused by line.

#![cfg(feature = "cli")]

mod cli_support;

use cli_support::page::check;
use cli_support::{Place, fruit};
use serde_json::Value;

const SEARCH: &str = "\
limit = 300
epochs = 3
model = 'mlp:8'

[search]
lr = { log = [1e-4, 1e-1] }
batch = { choice = [16, 32] }
dropout = { uniform = [0.0, 0.4] }
";

fn records(place: &Place, dir: &str) -> Vec<Value> {
    let text = place.text(&format!("{dir}/trials.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The files that must be the same after the same search.
fn same_search(place: &Place, a: &str, b: &str) {
    for file in
        ["trials.jsonl", "search.toml", "best/model.safetensors", "best/model.toml", "best/metrics.jsonl"]
    {
        assert!(place.read(&format!("{a}/{file}")) == place.read(&format!("{b}/{file}")), "{file}: {a}, {b}");
    }
}

/// The flags of `train` that a trial's settings are.
fn flags(record: &Value) -> String {
    let settings = record["settings"].as_object().unwrap();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    settings.iter().map(|(key, value)| format!(" --{key} {}", text(value))).collect()
}

#[test]
fn the_number_of_jobs_changes_nothing() {
    let place = Place::new("tune-jobs");
    place.write("s.toml", SEARCH);
    let value = place.json("tune --config s.toml --trials 4 --seed 3 --out one --jobs 1 --threads 1");
    place.ok("tune --config s.toml --trials 4 --seed 3 --out two --jobs 2 --threads 2");
    same_search(&place, "one", "two");

    // By validation loss, the best first; the best is a model like any other.
    let trials = value["trials"].as_array().unwrap();
    let losses: Vec<f64> = trials.iter().map(|trial| trial["val_loss"].as_f64().unwrap()).collect();
    assert!(losses.len() == 4 && losses.is_sorted(), "{losses:?}");
    assert_eq!(value["best_trial"], trials[0]["trial"]);
    place.ok("eval --model one/best --data digits");
    place.refuses("report one", 4, &["folder of a search", "one/best"]);
    let report = place.text("one/report.html");
    check(&report);
    assert!(report.matches("<svg").count() == 4 && report.contains("random search: 4 trials"));

    // A trial is what `train` makes of its settings.
    let last = &records(&place, "one")[3];
    place.ok(&format!("train --limit 300 --epochs 3 --model mlp:8 --out m{}", flags(last)));
    assert!(place.read("m/model.safetensors") == place.read("one/trials/00003/model.safetensors"));
    let epoch = last["best_epoch"].as_u64().unwrap() as usize;
    let line = place.text("m/metrics.jsonl").lines().nth(epoch - 1).unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["val_loss"], last["val_loss"]);

    // More trials are these and some more; nothing that is finished is trained again.
    let before = place.files("one/trials");
    place.ok("tune --config s.toml --trials 6 --seed 3 --out one --quiet");
    assert_eq!(records(&place, "one")[..4], records(&place, "two"));
    let after = place.files("one/trials");
    assert!(before.iter().all(|file| after.contains(file)) && after.len() > before.len());
    // Another search does not mix with it.
    place.refuses("tune --config s.toml --trials 6 --seed 4 --out one", 2, &["one", "seed", "4", "3"]);
    place.refuses("tune --config s.toml --trials 2 --seed 3 --out one", 2, &["trials"]);
    place.write("s.toml", SEARCH.replace("epochs = 3", "epochs = 4"));
    place.refuses("tune --config s.toml --trials 6 --seed 3 --out one", 2, &["epochs"]);
    place.write("m/notes.txt", "mine");
    place.refuses("tune --config s.toml --trials 2 --out m", 2, &["m has something in it"]);
}

#[test]
fn halving_promotes_the_best_and_trains_them_on() {
    let place = Place::new("tune-halving");
    // A schedule that depends on its horizon, which no rung may shorten.
    place.write("s.toml", SEARCH.replace("epochs = 3", "epochs = 4\nschedule = 'cosine'"));
    let tune = "tune --config s.toml --trials 5 --method halving --eta 2";
    let value = place.json(&format!("{tune} --out one --jobs 2"));
    let budget = |rung: &Value| (rung["epochs"].as_u64().unwrap(), rung["trials"].as_u64().unwrap());
    assert_eq!(
        value["rungs"].as_array().unwrap().iter().map(budget).collect::<Vec<_>>(),
        [(1, 5), (2, 2), (4, 1)]
    );
    let all = records(&place, "one");
    let of_rung = |rung: u64| {
        let mut found: Vec<(f64, u64)> = all
            .iter()
            .filter(|record| record["rung"] == rung)
            .map(|record| (record["val_loss"].as_f64().unwrap(), record["trial"].as_u64().unwrap()))
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.into_iter().map(|(_, trial)| trial).collect::<Vec<_>>()
    };
    let sorted = |mut trials: Vec<u64>| {
        trials.sort_unstable();
        trials
    };
    assert_eq!(sorted(of_rung(0)), [0, 1, 2, 3, 4]);
    assert_eq!(sorted(of_rung(1)), sorted(of_rung(0)[..2].to_vec()));
    assert_eq!(of_rung(2), of_rung(1)[..1]);
    assert_eq!(value["best_trial"], of_rung(2)[0]);
    // What went on from its checkpoint is what was never stopped.
    let best = all.iter().find(|record| record["rung"] == 2).unwrap();
    assert_eq!(best["epochs"], 4);
    let shared = "--limit 300 --model mlp:8 --schedule cosine --horizon 4 --epochs 4";
    place.ok(&format!("train {shared} --out m{}", flags(best)));
    for file in ["model.safetensors", "metrics.jsonl", "state/optimizer.safetensors"] {
        assert!(place.read(&format!("m/{file}")) == place.read(&format!("one/best/{file}")), "{file}");
    }
    check(&place.text("one/report.html"));
    place.ok(&format!("{tune} --out two --jobs 1"));
    same_search(&place, "one", "two");
}

#[test]
fn a_diverging_trial_is_listed_and_not_fatal() {
    let place = Place::new("tune-diverging");
    place.write("fruit.csv", fruit(150));
    let file = |rates: &str| {
        format!(
            "data = 'fruit.csv'\nepochs = 2\noptimizer = 'sgd'\n[search]\nlr = {{ choice = [{rates}] }}\n"
        )
    };
    place.write("s.toml", file("0.01, 1e300"));
    let value = place.json("tune --config s.toml --trials 6 --out one");
    let trials = value["trials"].as_array().unwrap();
    let is_bad = |trial: &Value| trial["settings"]["lr"] == 1e300;
    let bad = trials.iter().filter(|trial| is_bad(trial)).count();
    assert!((1..6).contains(&bad), "the seed draws both");
    for (rank, trial) in trials.iter().enumerate() {
        let status = if is_bad(trial) { "diverged" } else { "done" };
        assert_eq!(trial["status"], status, "{trial}");
        // Those that were trained come first.
        assert_eq!(is_bad(trial), rank >= 6 - bad, "{trial}");
        assert_eq!(trial["val_loss"].is_null(), is_bad(trial));
    }
    check(&place.text("one/report.html"));
    assert!(place.text("one/report.html").contains("training diverged"));
    let text = place.ok("tune --config s.toml --trials 6 --out one").stdout;
    assert!(text.contains("diverged") && text.contains("best       one/best"), "{text}");

    // Settings that cannot be trained with are the trial's own fault too; a momentum that its optimiser lacks is none.
    place.write(
        "m.toml",
        "data = 'fruit.csv'\nepochs = 1\n[search]\nbatch = { choice = [16, 100000] }\n\
         optimizer = { choice = ['adam', 'sgd'] }\nmomentum = { uniform = [0.5, 0.9] }\n",
    );
    let value = place.json("tune --config m.toml --trials 8 --out mixed");
    for trial in value["trials"].as_array().unwrap() {
        let status = if trial["settings"]["batch"] == 16 { "done" } else { "failed" };
        assert_eq!(trial["status"], status, "{trial}");
    }

    place.write("s.toml", file("1e300"));
    let run = place.run("tune --config s.toml --trials 2 --out none");
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("none of the 2 trials") && place.path().join("none/report.html").exists());
}

#[test]
fn bad_searches_are_refused_by_file_key_and_line() {
    let place = Place::new("tune-bad");
    let tune = "tune --config s.toml --trials 2 --out o";
    for (search, words) in [
        ("lr = 0.1", &["lr", "line 3", "expected { uniform"][..]),
        ("lr = { log = [0.1, 0.01] }", &["lr", "line 3", "not below"]),
        ("lr = { log = [0.0, 0.1] }", &["lr", "line 3", "not positive"]),
        ("lr = { uniform = [-1.0, 1.0] }", &["lr", "line 3", "-1"]),
        ("lr = { gauss = [0.0, 0.1] }", &["lr", "line 3", "gauss"]),
        ("batch = { choice = [] }", &["batch", "line 3", "nothing"]),
        ("batch = { choice = [8, 'x'] }", &["batch", "line 3"]),
        ("batch = { choice = [8, 0] }", &["batch", "line 3", "0"]),
        ("batch = { uniform = [8, 16] }", &["batch", "line 3"]),
        ("dropout = { uniform = [0.0, 1.5] }", &["dropout", "line 3", "1.5"]),
        ("model = { choice = ['mlp:8', 'tree'] }", &["model", "line 3", "tree"]),
        (
            "batch = { choice = [8] }\nlerning-rate = { log = [0.1, 1.0] }",
            &["lerning-rate", "line 4", "unknown"],
        ),
        ("seed = { int = [1, 9] }", &["seed", "line 3", "compared"]),
        ("epochs = { int = [1, 9] }", &["epochs", "line 3", "budget"]),
        ("threads = { int = [1, 2] }", &["threads", "line 3"]),
        ("optimizer = { choice = ['adam'] }", &["optimizer", "line 3", "value above"]),
    ] {
        place.write("s.toml", format!("optimizer = 'sgd'\n[search]\n{search}\n"));
        place.refuses(tune, 4, &[&["s.toml"], words].concat());
    }
    for (text, words) in [
        ("lr = 0.1\n", &["[search]"][..]),
        ("search = 3\n", &["search", "line 1", "table"]),
        ("[search]\n", &["search", "line 1", "at least one"]),
        ("epochs = 2\nlr = 'x'\n[search]\nbatch = { choice = [8] }\n", &["lr", "line 2"]),
        ("resume = 'm'\n[search]\nbatch = { choice = [8] }\n", &["resume", "line 1"]),
        ("[search]\nlr = { log = [1, \n", &["line"]),
    ] {
        place.write("s.toml", text);
        place.refuses(tune, 4, &[&["s.toml"], words].concat());
    }
    place.refuses("tune --config absent.toml --trials 2", 4, &["absent.toml"]);
    place.write("s.toml", "[search]\nlr = { log = [0.001, 0.1] }\n");
    place.refuses("tune --config s.toml --trials 0", 2, &["--trials 0"]);
    place.refuses("tune --config s.toml --trials 2 --eta 1", 2, &["--eta 1"]);
    place.refuses("tune --config s.toml --trials 2 --jobs 0", 2, &["--jobs 0"]);
    place.write("s.toml", "val-split = 0.0\n[search]\nlr = { log = [0.001, 0.1] }\n");
    place.refuses("tune --config s.toml --trials 2", 2, &["validation part"]);
}

/// Settings that were drawn before are listed again and not trained again.
#[test]
fn the_same_settings_are_trained_once() {
    let place = Place::new("tune-twice");
    place.write("fruit.csv", fruit(60));
    place.write("s.toml", "data = 'fruit.csv'\nepochs = 2\n[search]\nbatch = { choice = [8, 16] }\n");
    for (method, out) in [("random", "r"), ("halving --eta 2", "h")] {
        let tune = format!("tune --config s.toml --trials 6 --jobs 2 --method {method} --out {out}");
        let value = place.json(&tune);
        assert_eq!(
            place.path().join(out).join("trials").read_dir().unwrap().count(),
            2,
            "the seed draws both"
        );
        let trials = value["trials"].as_array().unwrap();
        assert_eq!(trials.len(), 6);
        let first = records(&place, out).into_iter().filter(|record| record["rung"] == 0).collect::<Vec<_>>();
        for a in &first {
            let twin = first.iter().find(|b| b["settings"] == a["settings"]).unwrap();
            assert_eq!(a["val_loss"], twin["val_loss"]);
        }
        check(&place.text(&format!("{out}/report.html")));
        let before = place.files(out);
        place.ok(&tune);
        assert!(before == place.files(out));
    }
}

/// Where a trial fails at a later rung, those with its settings have failed too, and are not taken for the best.
#[test]
fn what_has_the_settings_of_a_failed_trial_has_failed() {
    let place = Place::new("tune-failed-twin");
    // A rate that grows beyond what weights can hold, but only after the first rung.
    place.write(
        "s.toml",
        "data = 'digits'\nepochs = 9\nwarmup = 9\nmodel = 'mlp:16'\n[search]\nlr = { choice = [3e17] }\n",
    );
    let tune = "tune --config s.toml --trials 9 --method halving --out o";
    place.fails(tune, 1, &["none of the 9 trials"]);
    let done = records(&place, "o").iter().filter(|record| record["status"] == "done").count();
    assert!(done > 0, "the first rung is passed");
    check(&place.text("o/report.html"));
}

/// A damaged list of trials is an error with file and line, whatever numbers it has.
#[test]
fn hostile_lists_of_trials_are_refused_by_line() {
    let place = Place::new("tune-hostile");
    place.write("fruit.csv", fruit(60));
    place.write(
        "s.toml",
        "data = 'fruit.csv'\nepochs = 1\nmodel = 'mlp:4'\n[search]\nlr = { log = [1e-3, 1e-1] }\n",
    );
    let tune = "tune --config s.toml --trials 2 --jobs 1 --out o";
    place.ok(tune);
    let text = place.text("o/trials.jsonl");
    for (old, new, words) in [
        ("\"trial\":1,", "\"trial\":18446744073709551615,", &["line 2", "trial 18446744073709551615"][..]),
        ("\"trial\":1,", "\"trial\":100000,", &["line 2", "at most 100000"]),
        ("\"trial\":1,", "\"trial\":-1,", &["line 2"]),
        ("\"trial\":1,", "\"trial\":7,", &["line 2", "not those of the search"]),
        ("{\"rung\":0,\"trial\":1,", "{\"rung\":1,\"trial\":1,", &["line 2", "rung 1"]),
        (
            "{\"rung\":0,\"trial\":1,",
            "{\"rung\":18446744073709551615,\"trial\":1,",
            &["line 2", "rung 18446744073709551615"],
        ),
    ] {
        assert!(text.contains(old), "{text}");
        place.write("o/trials.jsonl", text.replace(old, new));
        place.refuses(tune, 4, &[&["trials.jsonl"], words].concat());
    }
    // Lines are in the order in which trials end until all have, and a kill may have cut the last one.
    let (first, second) = text.split_once('\n').unwrap();
    place.write("o/trials.jsonl", format!("{second}{}", &first[..first.len() / 2]));
    place.ok(tune);
    assert_eq!(place.text("o/trials.jsonl"), text);
    place.write("o/trials.jsonl", format!("{second}{first}"));
    place.ok(tune);
    assert_eq!(place.text("o/trials.jsonl"), text);
}

/// Interrupted and killed searches go on, to the same end.
#[cfg(unix)]
#[test]
fn an_interrupted_search_comes_to_the_same_end() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = Place::new("tune-resume");
    let search = "limit = 600\nepochs = 8\npatience = 0\nmodel = 'mlp:64'\n[search]\n\
                  lr = { log = [1e-4, 1e-2] }\nbatch = { choice = [8, 16] }\n";
    place.write("s.toml", search);
    let tune =
        |out: &str| format!("tune --config s.toml --trials 6 --method halving --eta 2 --jobs 2 --out {out}");
    place.ok(&tune("whole"));
    let mut codes = Vec::new();
    for (stops, signal) in [(1, "INT"), (3, "KILL"), (2, "INT")] {
        let mut child =
            place.command(&tune("part")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let seen =
            lines.by_ref().filter(|l| l.as_ref().is_ok_and(|l| l.starts_with("trial "))).take(stops).count();
        assert_eq!(seen, stops, "the search ended before it could be stopped");
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        codes.push(child.wait().unwrap().code());
        if signal == "INT" && codes.last() == Some(&Some(130)) {
            assert!(rest.join("\n").contains("give the same command again"), "{rest:?}");
        }
    }
    // A search may end between the line that was waited for and the signal, but not three times.
    assert!(codes.contains(&Some(130)) || codes.contains(&None), "{codes:?}");
    place.ok(&tune("part"));
    same_search(&place, "whole", "part");
    assert!(
        !place
            .path()
            .join("part/trials")
            .read_dir()
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("partial") })
    );
}
