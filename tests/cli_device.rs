//! `--device` on the command line: training on the simulated GPU, the self test, and what happens when a device is
//! missing, too small, or fails.

mod cli_support;

use cli_support::Place;

#[test]
fn training_on_the_simulator_reports_like_the_cpu() {
    let place = Place::new("sim-train");
    let line = "train --model mlp:16 --epochs 2 --seed 3 --batch 64 --quiet --out";
    let cpu = place.json(&format!("{line} cpu --device cpu"));
    let sim = place.json(&format!("{line} sim --device sim"));
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&cpu), keys(&sim));
    let of = |v: &serde_json::Value, name: &str| v["metrics"][name].as_f64().unwrap();
    assert!((of(&cpu, "accuracy") - of(&sim, "accuracy")).abs() <= 0.006, "{cpu}\n{sim}");
    for loss in ["train_loss", "val_loss", "test_loss"] {
        let (a, b) = (cpu[loss].as_f64().unwrap(), sim[loss].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-3 * a, "{loss}: {a} on the CPU, {b} here");
    }
    assert_eq!(sim["device"], "sim");
    // Twice the same bits, under another schedule too.
    place.ok(&format!("{line} again --device sim:random,seed=5"));
    let model = |folder: &str| place.read(&format!("{folder}/model.safetensors"));
    assert!(model("sim") == model("again"), "the second run made another model");
    // What was trained there answers here, and the other way round.
    let rows = place.path().join("rows.csv");
    std::fs::write(
        &rows,
        (0..3).map(|r| vec![format!("{}", r * 5); 64].join(",") + "\n").collect::<String>(),
    )
    .unwrap();
    let answers = |device: &str| {
        place.ok(&format!("predict --model sim --input rows.csv --device {device} --quiet")).stdout
    };
    let classes =
        |text: String| text.lines().map(|l| l.split(',').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(classes(answers("cpu")), classes(answers("sim")));
}

#[test]
fn the_self_test_passes_counts_and_replays() {
    let place = Place::new("selftest");
    let report = place.json("selftest --device sim --filter relu --quiet");
    for key in ["cases", "passed", "failed", "skipped", "unsupported", "failures"] {
        assert!(!report[key].is_null(), "no {key} in {report}");
    }
    assert_eq!(report["failed"], 0);
    assert!(report["cases"].as_u64().unwrap() >= 100, "{report}");
    // f64 has no kernels; it is counted and not computed elsewhere.
    assert!(report["unsupported"].as_u64().unwrap() > 0, "{report}");
    let one = place.json("selftest --device sim --case relu:4:f32:Strided --quiet");
    assert_eq!(one["cases"], 1, "{one}");
    assert_eq!(place.run("selftest --device sim --case nosuch:1 --quiet").code, 2);
}

#[test]
fn devices_that_cannot_be_had_or_fail_have_exit_codes() {
    let place = Place::new("devices");
    if !std::path::Path::new("/dev/nvidia0").exists() {
        let run = place.run("train --device cuda --epochs 1 --quiet");
        assert_eq!(run.code, 6, "{}", run.stderr);
        assert!(run.stderr.contains("cuda:0"), "{}", run.stderr);
    }
    let run = place.run("train --device cuda:x --epochs 1 --quiet");
    assert_eq!(run.code, 2, "{}", run.stderr);
    let run = place.run("train --device sim:fail-launch=40 --epochs 1 --quiet");
    assert_eq!(run.code, 7, "{}", run.stderr);
    for part in ["illegal memory access", "last launches"] {
        assert!(run.stderr.contains(part), "{part:?} is not in:\n{}", run.stderr);
    }
    let run = place.run("train --device sim:memory=200000 --epochs 1 --quiet");
    assert_eq!(run.code, 5, "{}", run.stderr);
}
