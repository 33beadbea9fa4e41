//! `warpsmith doctor`: on this machine as it is, and with a driver without a GPU (tests/fake_gpu) that can be told what ails
//! it. Whether kernels are part of the build decides what can be checked of the GPU; both are tested, by the build that is.

mod cli_support;
mod fake_gpu;

use cli_support::Place;
use serde_json::Value;

/// The program's exit code and its checks.
fn doctor(place: &Place, line: &str, settings: &[(&str, &str)]) -> (i32, Vec<Value>) {
    let mut command = place.command(&format!("doctor --json {line}"));
    command.env_remove("CUDA_VISIBLE_DEVICES").envs(settings.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"));
    let checks = value["checks"].as_array().unwrap().clone();
    let mut failed = 0;
    for check in &checks {
        let text = |key: &str| check[key].as_str().unwrap_or_else(|| panic!("{key} is no text: {check}"));
        assert!(!text("name").is_empty() && !text("message").is_empty(), "{check}");
        match text("status") {
            "PASS" | "SKIP" => assert_eq!(text("fix"), "", "{check}"),
            "WARN" => assert_ne!(text("fix"), "", "{check}"),
            "FAIL" => {
                failed += 1;
                assert_ne!(text("fix"), "", "{check}");
            }
            other => panic!("{other}: {check}"),
        }
    }
    let code = output.status.code().unwrap();
    assert_eq!(code, i32::from(failed > 0), "{line}: {text}");
    (code, checks)
}

/// Status, message and fix of the first check of a name.
fn find<'a>(checks: &'a [Value], name: &str) -> (&'a str, &'a str, &'a str) {
    let check = checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no check {name}"));
    let text = |key: &str| check[key].as_str().unwrap();
    (text("status"), text("message"), text("fix"))
}

/// The fake's folder, for LD_LIBRARY_PATH.
fn fake() -> Option<String> {
    fake_gpu::folder(&[]).map(|folder| folder.to_str().unwrap().to_owned())
}

const NAMES: [&str; 16] = [
    "kernels",
    "driver",
    "nvml",
    "device",
    "architecture",
    "gpu_memory",
    "processes",
    "clocks",
    "health",
    "kernel",
    "nvcc",
    "nccl",
    "cpu",
    "memory",
    "disk",
    "environment",
];

#[test]
fn it_runs_on_this_machine() {
    let place = Place::new("doctor");
    for line in ["", "--device cpu"] {
        let (_, checks) = doctor(&place, line, &[]);
        for name in NAMES {
            find(&checks, name);
        }
        assert_eq!(find(&checks, "cpu").0, "PASS");
    }
    let (code, checks) = doctor(&place, "--device cpu", &[]);
    assert_eq!((code, find(&checks, "driver").0, find(&checks, "kernel").0), (0, "SKIP", "SKIP"));

    let text = place.command("doctor --device cpu").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("SKIP  driver               only the CPU was asked for\n"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("PASS  cpu ")), "{text}");
    place.refuses("doctor --device gpu", 2, &["unknown device", "gpu"]);
}

#[test]
fn a_missing_gpu_is_a_warning_unless_it_is_asked_for() {
    let Some(folder) = fake() else { return };
    let place = Place::new("doctor");
    let hidden = [("LD_LIBRARY_PATH", &*folder), ("FAKE_INIT", "100"), ("CUDA_VISIBLE_DEVICES", "")];
    let (code, checks) = doctor(&place, "", &hidden);
    assert_eq!((code, find(&checks, "driver").0, find(&checks, "kernel").0), (0, "WARN", "SKIP"));
    assert!(find(&checks, "driver").1.contains("no GPU is visible"));
    let (status, message, fix) = find(&checks, "environment");
    assert_eq!((status, message), ("WARN", "CUDA_VISIBLE_DEVICES=: hides every GPU"));
    assert!(fix.contains("unset CUDA_VISIBLE_DEVICES"));

    let (code, checks) = doctor(&place, "--device cuda", &hidden);
    assert_eq!((code, find(&checks, "driver").0), (1, "FAIL"));
    let (code, checks) = doctor(&place, "--device cuda:2", &[("LD_LIBRARY_PATH", &folder)]);
    assert_eq!((code, find(&checks, "device").0), (1, "FAIL"));
    assert!(find(&checks, "device").1.contains("cuda:2 does not exist: there is one GPU, cuda:0"));
}

#[test]
fn every_gpu_is_looked_at() {
    let Some(folder) = fake() else { return };
    let place = Place::new("doctor");
    let with = |settings: &[(&str, &str)], line: &str| {
        doctor(&place, line, &[&[("LD_LIBRARY_PATH", &*folder)], settings].concat())
    };
    let (_, checks) = with(&[("FAKE_DEVICES", "2")], "");
    let (status, message, _) = find(&checks, "driver");
    assert_eq!(status, "PASS");
    assert!(message.starts_with("driver 580.82.07, CUDA 13.0, /") && message.contains("libcuda.so.1"));
    let devices: Vec<&Value> = checks.iter().filter(|c| c["name"] == "device").collect();
    assert_eq!((devices.len(), &devices[1]["device"]), (2, &Value::from("cuda:1")));
    let (status, message, _) = find(&checks, "device");
    assert_eq!(status, "PASS");
    assert_eq!(message, "Fake GPU 0, sm_90, 132 multiprocessors, 0.1 GB, at 0000:01:00.0");
    assert_eq!(find(&checks, "gpu_memory").1, "79.0 GB of 80.0 GB free");
    let said = "multiprocessors 345 of 1980 MHz, memory 2619 of 2619 MHz, 72 W";
    assert_eq!(find(&checks, "clocks"), ("PASS", said, ""));
    assert_eq!(find(&checks, "health").1, "41 °C, no uncorrected memory errors");
    assert_eq!(find(&checks, "processes").0, "PASS");
    let (status, message, _) = find(&checks, "nccl");
    assert_eq!(status, "PASS");
    assert!(message.contains("libnccl.so.2, version 2.27.3"), "{message}");

    let one = |name: &str, setting: (&str, &str)| {
        let (_, checks) = with(&[setting], "");
        let (status, message, _) = find(&checks, name);
        assert_eq!(status, "WARN", "{setting:?}: {message}");
        message.to_owned()
    };
    assert!(one("clocks", ("FAKE_THROTTLE", "72")).ends_with("hardware slowdown, hardware thermal slowdown"));
    assert!(one("clocks", ("FAKE_LIMIT", "350")).ends_with("limited to 350 W instead of 700 W"));
    assert!(one("processes", ("FAKE_PROCESSES", "2")).ends_with("4000 (2.5 GB), 4001"));
    assert_eq!(one("health", ("FAKE_TEMPERATURE", "91")), "91 °C");
    assert!(one("health", ("FAKE_ERRORS", "3")).starts_with("3 uncorrected"));
    assert!(one("gpu_memory", ("FAKE_FREE", "5000000000")).starts_with("5.0 GB of 80.0"));
    assert!(one("device", ("FAKE_POOLS", "0")).contains("no memory pools"));
    assert!(one("device", ("FAKE_MODE", "2")).contains("lets no program use it"));
    assert!(one("environment", ("CUDA_LAUNCH_BLOCKING", "1")).contains("every launch waits"));
}

#[test]
fn the_probe_kernel_decides() {
    let Some(folder) = fake() else { return };
    let place = Place::new("doctor");
    let with = |settings: &[(&str, &str)], line: &str| {
        doctor(&place, line, &[&[("LD_LIBRARY_PATH", &*folder)], settings].concat())
    };
    let (code, checks) = with(&[], "--device cuda");
    if find(&checks, "kernels").0 != "PASS" {
        // A build without kernels: asked for, that fails, and says where to get nvcc.
        println!("skipped in part: no nvcc was found by the build");
        assert_eq!((code, find(&checks, "kernels").0, find(&checks, "kernel").0), (1, "FAIL", "FAIL"));
        assert!(find(&checks, "kernel").2.contains("scripts/get-nvcc.sh"));
        let (code, checks) = with(&[], "");
        assert_eq!((code, find(&checks, "kernels").0, find(&checks, "kernel").0), (0, "WARN", "SKIP"));
        return;
    }
    assert_eq!((code, find(&checks, "architecture").0, find(&checks, "kernel").0), (0, "PASS", "PASS"));
    // A wrong value or a fault of the device fails, asked for or not.
    let (code, checks) = with(&[("FAKE_WRONG", "1")], "");
    assert_eq!((code, find(&checks, "kernel").0), (1, "FAIL"));
    assert!(find(&checks, "kernel").1.contains("gave 1 of 1001 values wrong"));
    // What is only unfit for this build is a warning until it is asked for.
    for (setting, name) in
        [(("FAKE_VERSION", "12040"), "driver"), (("FAKE_CAPABILITY", "75"), "architecture")]
    {
        let (code, checks) = with(&[setting], "");
        assert_eq!(
            (code, find(&checks, name).0, find(&checks, "kernel").0),
            (0, "WARN", "WARN"),
            "{setting:?}"
        );
        let (code, checks) = with(&[setting], "--device cuda");
        assert_eq!(
            (code, find(&checks, name).0, find(&checks, "kernel").0),
            (1, "FAIL", "FAIL"),
            "{setting:?}"
        );
    }
}

/// The same exit codes as everywhere: 6 where there is no device, 7 where it failed.
#[test]
fn other_commands_find_the_same_gpu() {
    let Some(folder) = fake() else { return };
    let place = Place::new("doctor");
    let run = |line: &str, settings: &[(&str, &str)]| {
        let mut command = place.command(line);
        let output = command.env("LD_LIBRARY_PATH", &folder).envs(settings.iter().copied()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run("bench step --device cuda:1", &[]);
    assert_eq!(code, 6);
    assert!(said.contains("cuda:1 does not exist: there is one GPU, cuda:0"), "{said}");
    let (code, said) = run("bench step --device cuda", &[("FAKE_INIT", "100")]);
    assert_eq!(code, 6);
    assert!(said.contains("help: ") && said.contains("CUDA_VISIBLE_DEVICES"), "{said}");
}
