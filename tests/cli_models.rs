//! Networks by name and by description, as a user trains, shows and uses them.

#![cfg(feature = "cli")]

mod cli_support;

use cli_support::Place;
use warpsmith::io::{HostTensor, npy};

/// A network of most kinds of layers for the digits.
const STACK: &str = r#"
input = "image"

[[layers]]
type = "conv2d"
out_channels = 8
kernel_size = 3
padding = 1
bias = false

[[layers]]
type = "batch_norm2d"

[[layers]]
type = "relu"

[[layers]]
type = "residual"
layers = [
    { type = "conv2d", out_channels = 16, kernel_size = 3, stride = 2, padding = 1 },
    { type = "group_norm", num_groups = 4 },
]
shortcut = [{ type = "conv2d", out_channels = 16, kernel_size = 1, stride = 2 }]

[[layers]]
type = "avg_pool2d"
kernel_size = 2

[[layers]]
type = "dropout"
p = 0.1
"#;

#[test]
fn info_shows_the_layers_of_a_network() {
    let place = Place::new("layers");
    let run = place.ok("info cnn --input 1x28x28 --outputs 10");
    for words in [
        "network    cnn, 1x28x28 to 10, 421,642 parameters",
        "0  conv2d 32, 3x3, padding 1x1  32x28x28",
        "320",
        "2  max_pool2d 2x2",
        "7  linear 128",
        "9  linear 10",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let value = place.json("info resnet:18 --input 3x32x32 --outputs 10");
    assert_eq!(value["parameters"], 11_173_962);
    let layers = value["layers"].as_array().unwrap();
    let sum: u64 = layers.iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!(sum, 11_173_962);
    assert_eq!(
        (&layers[0]["name"], &layers[0]["shape"]),
        (&"conv1".into(), &serde_json::json!([64, 32, 32]))
    );
    place.write("net.toml", STACK);
    let run = place.ok("info net.toml --input 1x8x8");
    assert!(run.stdout.contains("3.0           conv2d 16, 3x3, stride 2x2, padding 1x1"), "{}", run.stdout);
    assert!(run.stdout.contains("residual sum"), "{}", run.stdout);
    place.refuses("info resnet:19 --input 3x32x32", 2, &["resnet:19", "resnet:18"]);
    place.refuses("info cnn --input 3x0", 2, &["--input", "1x28x28"]);
    place.refuses("info cnn --input 28", 2, &["pictures"]);
    place.refuses("info cnn --input 1x28x28 --outputs 0", 2, &["--outputs 0"]);
}

#[test]
fn a_described_network_is_trained_saved_used_and_resumed() {
    let place = Place::new("stack");
    place.write("net.toml", STACK);
    let line = "train --model net.toml --limit 400 --seed 3 --quiet";
    let whole = place.json(&format!("{line} --epochs 4 --out whole"));
    assert!(whole["metrics"]["accuracy"].as_f64().unwrap() > 0.5, "{whole}");
    let shown = place.ok("info whole").stdout;
    assert!(
        shown.contains("network    net, 1x8x8 to 10") && shown.contains("  1             batch_norm2d"),
        "{shown}"
    );
    // The running statistics are part of the model, and PyTorch's names and kinds.
    let tensors = place.json("info whole/model.safetensors");
    let named = |name: &str| {
        let list = tensors["tensors"].as_array().unwrap();
        list.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("{name}: {tensors}")).clone()
    };
    assert_eq!(named("1.running_mean")["shape"], serde_json::json!([8]));
    assert_eq!(named("1.num_batches_tracked")["dtype"], "i64");
    assert_eq!(named("3.0.weight")["shape"], serde_json::json!([16, 8, 3, 3]));
    // A resumed run ends in the same bytes, the statistics included.
    place.ok(&format!("{line} --epochs 2 --out half"));
    place.ok("train --resume half --epochs 4 --quiet");
    assert!(place.read("half/model.safetensors") == place.read("whole/model.safetensors"));
    assert!(place.read("half/state/model.safetensors") == place.read("whole/state/model.safetensors"));
    let evaluated = place.json("eval --model whole --data digits");
    assert!(evaluated["metrics"]["accuracy"].as_f64().unwrap() > 0.5, "{evaluated}");
    // Classes that the network has no answers for are told, not guessed.
    let file = place.text("half/model.toml");
    place.write("half/model.toml", file.replacen("\"8\", ", "", 1));
    place.fails("info half", 4, &["model.toml"]);
    place.write("half/model.toml", file);
    // The folder says all: the description is not needed any more.
    std::fs::remove_file(place.path().join("net.toml")).unwrap();
    place.ok("eval --model whole --data digits");
    place.ok("train --resume half --epochs 5 --quiet");
    place.refuses("train --resume half --epochs 6 --model cnn", 2, &["--model cnn", "net"]);
}

#[test]
fn networks_by_name_learn_the_digits() {
    let place = Place::new("names");
    for (model, least, folder) in [
        ("cnn:8,16", 0.85, "runs/digits-cnn-8-16"),
        ("lstm:32", 0.6, "runs/digits-lstm-32"),
        ("gru:32x2", 0.6, "runs/digits-gru-32x2"),
    ] {
        let value = place.json(&format!("train --model {model} --limit 1000 --epochs 12 --lr 0.005 --quiet"));
        assert_eq!(value["model"], folder);
        assert!(value["metrics"]["accuracy"].as_f64().unwrap() >= least, "{model}: {value}");
    }
    // One step of the real thing.
    place.ok(
        "train --model resnet:18 --limit 40 --batch 16 --epochs 1 --test-split 0.2 --val-split 0 --quiet",
    );
    assert_eq!(place.json("info runs/digits-resnet-18")["layers"][0]["name"], "conv1");
}

#[test]
fn what_a_network_cannot_take_is_told_before_training() {
    let place = Place::new("cannot");
    place.write("table.csv", "a,b,y\n".to_owned() + &"1,2,0\n2,1,1\n".repeat(20));
    place.refuses("train --data table.csv --model cnn", 4, &["pictures", "[2]"]);
    place.refuses("train --model cnn --activation tanh --dropout 1", 2, &["dropout 1"]);
    place.refuses("train --model resnet:18 --activation tanh", 2, &["activations fixed"]);
    place.refuses("train --model resnet", 2, &["resnet:18"]);
    place.refuses("train --model lstm:0", 2, &["width 0"]);
    place.write("big.toml", "layers = [{ type = 'conv2d', out_channels = 2, kernel_size = 9 }]");
    place.refuses("train --model big.toml", 4, &["layer 0", "window of 9", "does not fit into 8"]);
    place.refuses("info big.toml --input 1x8x8", 4, &["big.toml", "layer 0", "does not fit into 8"]);
    let typo = "[[layers]]\ntype = 'relu'\n\n[[layers]]\ntype = 'conv2d'\nout_chanels = 2\nkernel_size = 3\n";
    place.write("typo.toml", typo);
    place.refuses("train --model typo.toml", 4, &["typo.toml, line 4", "layer 1 (conv2d)", "out_chanels"]);
    place.write("twice.toml", "head = 'a'\nlayers = [{ type = 'linear', out_features = 2, name = 'a' }]");
    place.refuses("train --model twice.toml", 4, &["twice.toml", "the head", "\"a\" too"]);
    place.refuses("info typo.toml", 2, &["--input"]);
    place.refuses("info cnn", 4, &["--input"]);
    place.write("net.toml", STACK);
    place.refuses("train --model net.toml --dropout 0.5", 2, &["net.toml", "dropout fixed"]);
    // A convolution needs channels; the columns of a table are none.
    place.refuses("train --data table.csv --model net.toml", 4, &["pictures"]);
    // One row a step has no variance to normalise by.
    place.write("norm.toml", "layers = [{ type = 'flatten' }, { type = 'batch_norm1d' }]");
    place.ok("train --model norm.toml --limit 43 --batch 7 --test-split 0 --val-split 0 --epochs 1 --out n --quiet");
    place.fails(
        "train --model norm.toml --limit 43 --batch 1 --test-split 0 --val-split 0 --epochs 1 --out o --quiet",
        2,
        &["at least 2 rows"],
    );
}

#[test]
fn the_step_of_any_network_is_timed() {
    let place = Place::new("bench");
    for (model, inputs) in [("cnn:4", "1x8x8"), ("lstm:8x2", "5x3")] {
        let line = format!(
            "bench step --model {model} --inputs {inputs} --outputs 3 --batch 8 --steps 12 --warmup 1 --device cpu"
        );
        let value = place.json(&line);
        assert_eq!((&value["model"], &value["inputs"]), (&model.into(), &inputs.into()));
        assert!(value["rows"][0]["last_loss"].as_f64() < value["rows"][0]["first_loss"].as_f64(), "{value}");
    }
}

/// Pictures may be moved about whatever the network sees in them; an array of numbers only where it sees pictures.
#[test]
fn arrays_that_are_no_pictures_are_not_moved_about() {
    let place = Place::new("moves");
    let line = "train --epochs 1 --limit 200 --quiet";
    for augment in ["flip", "crop:1", "shift:1", "rotate:5", "cutout:2"] {
        place.ok(&format!("{line} --model lstm:4 --augment {augment}"));
        place.ok(&format!("{line} --model mlp:4 --augment {augment}"));
    }
    // 60 sequences of 6 steps of 4 numbers, and a class of each.
    let (x, y): (Vec<f32>, Vec<i64>) =
        ((0..60 * 24).map(|i| (i * 37 % 101) as f32 / 7.0).collect(), (0..60).map(|i| i % 3).collect());
    npy::write(place.path().join("x.npy"), &HostTensor::from_slice([60, 6, 4], &x).unwrap()).unwrap();
    npy::write(place.path().join("y.npy"), &HostTensor::from_slice([60], &y).unwrap()).unwrap();
    let line = "train --data x.npy,y.npy --epochs 1 --quiet";
    for model in ["mlp:4", "lstm:4"] {
        for augment in ["flip", "rotate:5", "noise:0.1,shift:1"] {
            place.refuses(
                &format!("{line} --model {model} --augment {augment}"),
                2,
                &["as pictures", "noise and mixup"],
            );
        }
        place.ok(&format!("{line} --model {model} --augment noise:0.1,mixup:0.2"));
    }
    place.ok(&format!("{line} --model cnn:4 --augment flip"));
    // As they are, pictures are no sequences at all.
    place.write("whole.toml", "input = \"as-is\"\n[[layers]]\ntype = \"lstm\"\nhidden_size = 4\n");
    place.refuses("train --model whole.toml --augment flip", 4, &["needs a sequence", "sees a picture"]);
}
