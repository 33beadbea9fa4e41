//! `scripts/gpu-check.sh` rehearsed on the simulator: its verdicts, its files, and that a sanitizer which finds nothing does
//! not pass for one. What it finds on a GPU is not tested here.

mod cli_support;

use std::path::Path;
use std::process::{Command, Output};

use cli_support::Place;
use serde_json::Value;

/// Runs the script with a stand-in for compute-sanitizer: a shell script of these lines.
fn check(place: &Place, sanitizer: &str, arguments: &str) -> (Output, Vec<(Value, String)>) {
    place.write("sanitizer", format!("#!/bin/sh\n{sanitizer}\n"));
    let tool = place.path().join("sanitizer");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = place.path().join("results");
    let _ = std::fs::remove_dir_all(&out);
    let mut chmod = Command::new("chmod");
    assert!(chmod.arg("+x").arg(&tool).status().unwrap().success());
    let mut bash = Command::new("bash");
    bash.arg(root.join("scripts/gpu-check.sh")).args(["--device", "sim", "--quick", "--binary"]);
    bash.arg(env!("CARGO_BIN_EXE_warpsmith")).arg("--out").arg(&out).args(arguments.split(' '));
    let output = bash.env("COMPUTE_SANITIZER", &tool).env("LC_ALL", "C").output().unwrap();
    let mut reports = Vec::new();
    for (path, bytes) in place.files("results") {
        if path.extension().is_some_and(|e| e == "json") {
            let markdown = place.text(path.with_extension("md").to_str().unwrap());
            let text = String::from_utf8(bytes).unwrap();
            let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            reports.push((value, markdown));
        }
    }
    (output, reports)
}

fn verdicts(report: &Value) -> Vec<(&str, &str)> {
    let text = |step: &'_ Value, key: &str| step[key].as_str().map(str::to_owned).unwrap();
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.iter().all(|s| !text(s, "name").is_empty() && s["seconds"].is_u64()));
    steps.iter().map(|s| (s["name"].as_str().unwrap(), s["verdict"].as_str().unwrap())).collect()
}

const HONEST: &str = "\
for argument in \"$@\"; do case \"$argument\" in
bounds) echo '========= Invalid __global__ write of size 4 bytes'; exit 42 ;;
race) echo '========= Error: Race reported between Write access and Read access'; exit 42 ;;
esac; done
while [ $# -gt 0 ] && [ \"${1#*warpsmith}\" = \"$1\" ]; do shift; done
exec \"$@\"";

#[test]
fn a_rehearsal_on_the_simulator() {
    let place = Place::new("gpu-check");
    let (output, reports) = check(&place, HONEST, "--only doctor,primitives,fault,sanitizer_memcheck");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let [(report, markdown)] = &reports[..] else { panic!("{} reports: {said}", reports.len()) };
    let passed = |name| (name, "passed");
    assert_eq!(verdicts(report), ["doctor", "primitives", "fault", "sanitizer_memcheck"].map(passed));
    assert_eq!((&report["failed"], &report["skipped"]), (&Value::from(0), &Value::from(0)));
    // What the steps printed is in the file: the checks, and the words to be recorded.
    assert!(report["steps"][0]["result"]["checks"].as_array().unwrap().len() > 10);
    let primitives = report["steps"][1]["result"]["primitives"].as_array().unwrap();
    assert!(primitives.len() >= 15 && primitives.iter().all(|p| p["words"].as_str().unwrap().len() >= 24));
    assert!(markdown.contains("| sanitizer_memcheck | passed |"), "{markdown}");
}

#[test]
fn a_sanitizer_that_finds_nothing_fails_and_a_missing_one_is_no_pass() {
    let place = Place::new("gpu-check");
    let (output, reports) = check(&place, "exit 0", "--only sanitizer");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        verdicts(&reports[0].0),
        [("sanitizer_memcheck", "failed"), ("sanitizer_racecheck", "failed")]
    );
    assert!(reports[0].1.contains("the planted fault was not reported"), "{}", reports[0].1);

    let (output, reports) = check(&place, "exit 0", "--only bench --budget 1");
    assert_eq!(output.status.code(), Some(0));
    assert!(verdicts(&reports[0].0).iter().all(|v| v.1 == "skipped"));
    assert_eq!(check(&place, "exit 0", "--only bench --budget 1 --strict").0.status.code(), Some(1));
    assert_eq!(check(&place, "exit 0", "--fast").0.status.code(), Some(2));
}
