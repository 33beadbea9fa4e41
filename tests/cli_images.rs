//! Pictures through the program: an IDX folder, class folders and npz archives, from training to an answer.

#![cfg(feature = "cli")]

mod cli_support;

use std::fs;
use std::io::Write;

use cli_support::Place;
use flate2::Compression;
use flate2::write::GzEncoder;
use image::{GrayImage, Luma, Rgb, RgbImage};
use warpsmith::io::{HostTensor, npy};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SIDE: usize = 8;

/// Picture number `i`: noise, and a bright bar that stands (class 0), lies (1) or is not there (2).
fn picture(i: usize) -> Vec<u8> {
    let class = i % 3;
    let noise = |at: usize| ((i * 7919 + at * 104_729) / 7 % 60) as u8;
    let bar = 1 + i / 3 % 6;
    let bright = |at: usize| match class {
        0 => at % SIDE == bar,
        1 => at / SIDE == bar,
        _ => false,
    };
    (0..SIDE * SIDE).map(|at| if bright(at) { 190 + noise(at) } else { noise(at) }).collect()
}

fn pixels(count: usize) -> Vec<u8> {
    (0..count).flat_map(picture).collect()
}

fn labels(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 3) as u8).collect()
}

fn idx(shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|&extent| bytes.extend((extent as u32).to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A folder `bars` of IDX files with a test part of its own.
fn write_idx(place: &Place, train: usize, test: usize) {
    fs::create_dir_all(place.path().join("bars")).unwrap();
    place.write("bars/train-images-idx3-ubyte.gz", gzip(&idx(&[train, SIDE, SIDE], &pixels(train))));
    place.write("bars/train-labels-idx1-ubyte.gz", gzip(&idx(&[train], &labels(train))));
    place.write("bars/t10k-images-idx3-ubyte", idx(&[test, SIDE, SIDE], &pixels(test)));
    place.write("bars/t10k-labels-idx1-ubyte", idx(&[test], &labels(test)));
}

fn npz(arrays: &[(&str, HostTensor<'_>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, array) in arrays {
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default()).unwrap();
        npy::write_to(&mut zip, array).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn grey(place: &Place, name: &str, bytes: Vec<u8>) {
    let file = place.path().join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    GrayImage::from_raw(SIDE as u32, SIDE as u32, bytes).unwrap().save(file).unwrap();
}

/// Pictures of a folder `photos/{standing,lying}`.
fn write_photos(place: &Place, count: usize) {
    for i in (0..count * 3).filter(|i| i % 3 < 2) {
        let class = ["standing", "lying"][i % 3];
        grey(place, &format!("photos/{class}/{:03}.png", i / 3), picture(i));
    }
}

#[test]
fn an_idx_folder_from_training_to_an_answer() {
    let place = Place::new("idx");
    write_idx(&place, 240, 60);
    let how =
        "--data bars --model mlp:24 --augment crop:1,noise:0.02,cutout:2,mixup:0.1 --lr 0.01 --patience 0";
    let run = place.json(&format!("train {how} --epochs 12 --out whole"));
    assert_eq!((run["metrics_on"].as_str(), run["epochs"].as_u64()), (Some("test"), Some(12)));
    let accuracy = run["metrics"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.8, "accuracy {accuracy}");
    // The test part is the folder's own.
    let measured = place.json("eval --model whole --data bars");
    assert_eq!((measured["rows"].as_u64(), &measured["metrics"]), (Some(60), &run["metrics"]));
    let info = place.ok("info whole");
    assert!(info.stdout.contains("pictures of 8x8 pixels in 1 channel"), "{}", info.stdout);

    // Interrupted and resumed, on other threads, it is the same.
    place.ok(&format!("train {how} --epochs 5 --out part --threads 1"));
    place.ok("train --resume part --epochs 12 --threads 3");
    for file in ["model.safetensors", "metrics.jsonl", "state/optimizer.safetensors"] {
        assert!(place.read(&format!("whole/{file}")) == place.read(&format!("part/{file}")), "{file}");
    }
    for (flag, both) in
        [("--augment flip", ["flip", "crop:1"]), ("--sampler weighted", ["weighted", "shuffled"])]
    {
        place.refuses(&format!("train --resume part {flag}"), 2, &both);
    }

    // Answers to raw pictures, whatever they come in.
    let from_idx = place.ok("predict --model whole --input bars/t10k-images-idx3-ubyte").stdout;
    let lines: Vec<&str> = from_idx.lines().collect();
    assert_eq!((lines.len(), lines[0]), (61, "class,p_0,p_1,p_2"));
    let right =
        lines[1..].iter().enumerate().filter(|(i, line)| line.starts_with(&(i % 3).to_string())).count();
    assert_eq!(right as f64 / 60.0, accuracy);
    let array =
        |bytes: &[u8]| HostTensor::new(warpsmith::DType::U8, [60, SIDE, SIDE], bytes.to_vec()).unwrap();
    let x = array(&pixels(60));
    place.write("x.npz", npz(&[("x", x.clone())]));
    npy::write(place.path().join("x.npy"), &x).unwrap();
    // The test part alone is enough to ask about it and to measure.
    fs::create_dir(place.path().join("alone")).unwrap();
    for file in ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
        place.write(&format!("alone/{file}"), place.read(&format!("bars/{file}")));
    }
    assert_eq!(place.json("eval --model whole --data alone")["metrics"], run["metrics"]);
    place.refuses("train --data alone", 4, &["alone", "no train-images-idx3-ubyte"]);
    for input in ["bars", "alone", "x.npz", "x.npy"] {
        assert!(place.ok(&format!("predict --model whole --input {input}")).stdout == from_idx, "{input}");
    }
    for i in 0..3 {
        grey(&place, &format!("few/{i}.png"), picture(i));
    }
    let few = place.ok("predict --model whole --input few").stdout;
    let want: Vec<String> =
        lines[1..4].iter().enumerate().map(|(i, line)| format!("{i}.png,{line}")).collect();
    assert_eq!(few.lines().collect::<Vec<_>>(), [&["file,class,p_0,p_1,p_2".to_owned()][..], &want].concat());
    let one = place.json("predict --model whole --input few/1.png");
    assert!(one["predictions"][0]["file"].as_str().unwrap().ends_with("1.png"), "{one}");
    assert!(one["predictions"][0]["class"].is_number());
}

#[test]
fn class_folders_are_resized_weighted_and_resumed() {
    let place = Place::new("photos");
    write_photos(&place, 40);
    let big = RgbImage::from_pixel(31, 17, Rgb([10, 200, 30]));
    big.save(place.path().join("photos/lying/zz.jpg")).unwrap();
    let how = "--data photos --image-size 10x10 --channels 1 --class-weights balanced --sampler weighted \
               --augment flip,shift:1,rotate:5 --model mlp:16 --lr 0.01 --patience 0";
    let run = place.json(&format!("train {how} --epochs 30 --out whole"));
    assert!(run["metrics"]["accuracy"].as_f64().unwrap() > 0.6, "{run}");
    place.ok(&format!("train {how} --epochs 11 --out part"));
    place.ok("train --resume part --epochs 30");
    assert!(place.read("whole/model.safetensors") == place.read("part/model.safetensors"));
    // Pictures to predict are resized and converted as those in training.
    let answer = place.ok("predict --model whole --input photos/lying/zz.jpg").stdout;
    assert!(answer.starts_with("file,class,p_lying,p_standing\n"), "{answer}");
    assert_eq!(place.json("eval --model whole --data photos")["rows"], 81);
    // The worst answers are told by their files.
    place.ok("report whole");
    let page = place.text("whole/report.html");
    assert!(page.contains("<figcaption><b>lying/") || page.contains("<figcaption><b>standing/"), "{page}");
    assert!(!page.contains("<b>row "), "{page}");
    place.ok("train --data photos --image-size 8x8 --channels 3 --limit 30 --epochs 1 --test-data photos --out tested");
    let info = place.json("info tested");
    assert_eq!(info["source"]["image-size"], "8x8");
    assert_eq!(info["preparation"]["pixels"]["resize"], true);
}

#[test]
fn archives_hold_pictures_or_tables() {
    let place = Place::new("npz");
    let x = HostTensor::new(warpsmith::DType::U8, [60, SIDE, SIDE], pixels(60)).unwrap();
    let wide: Vec<i64> = labels(60).into_iter().map(i64::from).collect();
    let y = HostTensor::from_slice([60], &wide).unwrap();
    place.write("pictures.npz", npz(&[("x", x.clone()), ("y", y.clone())]));
    let run = place.json("train --data pictures.npz --model mlp:8 --epochs 2 --out pictures");
    assert_eq!(run["metrics_on"], "test");
    assert_eq!(place.json("eval --model pictures --data pictures.npz")["rows"], 60);
    // The same pictures in two files.
    npy::write(place.path().join("X.npy"), &x).unwrap();
    npy::write(place.path().join("Y.npy"), &y).unwrap();
    place.ok("train --data X.npy,Y.npy --model mlp:8 --epochs 2 --out pair");
    assert!(place.read("pair/model.safetensors") == place.read("pictures/model.safetensors"));
    assert_eq!(place.json("eval --model pair --data X.npy,Y.npy")["rows"], 60);
    let matrix: Vec<f32> = pixels(60).into_iter().map(f32::from).collect();
    let matrix = HostTensor::from_slice([60, 64], &matrix).unwrap();
    let parts =
        [("x_train", matrix.clone()), ("y_train", y.clone()), ("x_test", matrix), ("y_test", y.clone())];
    place.write("matrix.npz", npz(&parts));
    place.ok("train --data matrix.npz --model mlp:8 --epochs 2 --out matrix --augment noise:0.1");
    assert_eq!(place.json("eval --model matrix --data matrix.npz")["rows"], 60);
    place.refuses("train --data matrix.npz --test-split 0.5", 2, &["--test-split", "test part of its own"]);
    place.refuses("train --data matrix.npz --channels 1", 2, &["--channels"]);
    place.refuses("train --data pictures.npz --image-size 4x4", 2, &["picture files only"]);
    place.refuses("eval --model matrix --data pictures.npz", 4, &["pictures.npz", "expected a table"]);
    place.refuses("eval --model pictures --data matrix.npz", 4, &["matrix.npz", "expected pictures"]);

    let short = HostTensor::from_slice([2], &[0i64, 1]).unwrap();
    let no_steps = HostTensor::new(warpsmith::DType::F32, [60, 0, 4], Vec::new()).unwrap();
    for (name, arrays, words) in [
        ("short.npz", vec![("x", x.clone()), ("y", short)], ["y.npy", "expected 60 labels"]),
        ("lonely.npz", vec![("x", x.clone())], ["lonely.npz", "no labels"]),
        ("other.npz", vec![("a", x.clone())], ["other.npz", "expected arrays x and y"]),
        ("flat.npz", vec![("x", y.clone()), ("y", y.clone())], ["flat.npz/x.npy", "vector"]),
        ("still.npz", vec![("x", no_steps), ("y", y.clone())], ["still.npz/x.npy", "shape [60, 0, 4]"]),
    ] {
        place.write(name, npz(&arrays));
        place.refuses(&format!("train --data {name}"), 4, &words);
    }
    let whole = place.read("pictures.npz");
    place.write("cut.npz", &whole[..whole.len() / 2]);
    place.refuses("train --data cut.npz", 4, &["cut.npz"]);
    // An object array, and a bomb: 20 MB of zeros behind an array that has an end.
    let mut object = Vec::new();
    npy::write_to(&mut object, &y).unwrap();
    let at = object.windows(3).position(|w| w == b"<i8").unwrap();
    let mut text = object.clone();
    object[at..at + 3].copy_from_slice(b"|O ");
    text[at..at + 3].copy_from_slice(b"<U2");
    let mut bomb = Vec::new();
    npy::write_to(&mut bomb, &x).unwrap();
    bomb.resize(20 << 20, 0);
    for (name, bytes, words) in [
        ("object.npz", object, ["object.npz/x.npy", "pickle"]),
        ("text.npz", text, ["text.npz/x.npy", "np.unique"]),
        ("bomb.npz", bomb, ["bomb.npz/x.npy", "trailing bytes"]),
    ] {
        let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file("x.npy", SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
        place.write(name, zip.finish().unwrap().into_inner());
        place.refuses(&format!("train --data {name}"), 4, &words);
    }
}

#[test]
fn bad_pictures_exit_with_4_and_name_the_file() {
    let place = Place::new("bad-pictures");
    write_idx(&place, 30, 6);
    let images = idx(&[30, SIDE, SIDE], &pixels(30));
    place.write("bars/train-images-idx3-ubyte", &images[..1000]);
    place.refuses("train --data bars", 4, &["bars/train-images-idx3-ubyte", "cannot hold"]);
    place.write("bars/train-images-idx3-ubyte", [&[9][..], &images].concat());
    place.refuses("train --data bars", 4, &["train-images-idx3-ubyte", "not an IDX file"]);
    place.write("bars/train-images-idx3-ubyte", idx(&[usize::MAX & 0xffff_ffff; 3], &[]));
    place.refuses("train --data bars", 4, &["train-images-idx3-ubyte", "overflows"]);
    place.write("bars/train-images-idx3-ubyte", &images);
    place.write("bars/train-labels-idx1-ubyte", idx(&[29], &labels(29)));
    place.refuses("train --data bars", 4, &["train-labels-idx1-ubyte", "expected 30 labels"]);
    place.write("bars/train-labels-idx1-ubyte", idx(&[30], &labels(30)));
    place.write("bars/t10k-labels-idx1-ubyte", idx(&[6], &[0, 1, 2, 0, 1, 7]));
    place.refuses("train --data bars", 4, &["t10k-labels-idx1-ubyte", "row 6", "'7'"]);
    place.write("bars/t10k-labels-idx1-ubyte", idx(&[6], &labels(6)));
    place.ok("train --data bars --epochs 1 --model mlp:8 --out m");
    fs::create_dir(place.path().join("empty")).unwrap();
    place.refuses("train --data empty", 4, &["empty", "a folder for each class"]);
    place.refuses("train --data .", 4, &[".", "without pictures"]);

    write_photos(&place, 5);
    place.write("photos/lying/b.png", "no picture");
    place.refuses("train --data photos", 4, &["photos/lying/b.png", "not a whole PNG"]);
    GrayImage::from_pixel(8, 9, Luma([1])).save(place.path().join("photos/lying/b.png")).unwrap();
    place.refuses("train --data photos", 4, &["photos/lying/b.png", "9x8", "--image-size 8x8"]);
    RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).save(place.path().join("photos/lying/b.png")).unwrap();
    place.refuses("train --data photos", 4, &["photos/lying/b.png", "3 channels", "--channels 1"]);
    fs::remove_file(place.path().join("photos/lying/b.png")).unwrap();
    fs::create_dir(place.path().join("photos/nothing")).unwrap();
    place.refuses("train --data photos", 4, &["photos/nothing", "a class without pictures"]);

    place.write("t.csv", "a,b\n1,2\n");
    place.refuses("predict --model m --input t.csv", 4, &["t.csv", "expected a PNG or JPEG"]);
    GrayImage::from_pixel(8, 9, Luma([1])).save(place.path().join("tall.png")).unwrap();
    place.refuses(
        "predict --model m --input tall.png",
        4,
        &["tall.png", "expected pictures of 8x8", "9x8", "image size"],
    );
    place.refuses("eval --model m --data tall.png", 4, &["tall.png"]);
    place.refuses("eval --model m --data digits", 4, &["digits", "expected pictures"]);
    // What is no table says what it is, and not that its bytes are no text.
    place.write("t.csv", (0..40).map(|i| format!("{i},{},{}\n", i * i % 7, i % 2)).collect::<String>());
    place.write("t.csv", format!("a,b,y\n{}", place.text("t.csv")));
    place.ok("train --data t.csv --epochs 1 --model mlp:4 --out table");
    place.write("images.gz", gzip(&images));
    place.write("x", [&b"\x93NUMPY"[..], &[1, 0]].concat());
    place.write("x.zip", npz(&[("x", HostTensor::new(warpsmith::DType::U8, [1], vec![1]).unwrap())]));
    fs::write(place.path().join("photo.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
    for (file, what, help) in [
        ("bars/train-images-idx3-ubyte", "an IDX file", "give its folder"),
        ("images.gz", "an IDX file", "give its folder"),
        ("tall.png", "a PNG picture", "a folder of pictures for each class"),
        ("photo.jpg", "a JPEG picture", "a folder of pictures for each class"),
        ("x", "a NumPy array", ".npy"),
        ("x.zip", "a zip archive", ".npz"),
    ] {
        place.refuses(&format!("train --data {file}"), 4, &[file, "expected a CSV file", what, help]);
        for command in ["predict --input", "eval --data"] {
            let line = format!("{command} {file} --model table");
            place.refuses(&line, 4, &[file, "expected a table as in training", what]);
        }
    }
    if !warpsmith::data::is_idx_folder(warpsmith::data::FASHION_MNIST) {
        place.refuses(
            "train --data fashion-mnist",
            4,
            &["fashion-mnist", "apt-get install dataset-fashion-mnist"],
        );
    }
}

#[test]
fn wrong_flags_are_usage_errors() {
    let place = Place::new("image-usage");
    write_idx(&place, 30, 6);
    for (line, word) in [
        ("train --augment zoom:2", "zoom:2"),
        ("train --augment crop", "crop:PIXELS"),
        ("train --augment rotate:400", "rotate:400"),
        ("train --class-weights 1,0", "above 0"),
        ("train --class-weights even", "even"),
        ("train --sampler often", "often"),
        ("train --image-size 8", "--image-size 8"),
        ("train --image-size 0x8", "no pixels"),
        ("train --channels 2", "found 2"),
        ("train --image-size 8x8", "picture files"),
        ("train --data bars --image-size 9x9", "picture files only"),
        ("train --data bars --augment crop:9", "crop:9"),
        ("train --data bars --target kind", "label"),
    ] {
        place.refuses(line, 2, &[word]);
    }
    place.write("t.csv", cli_support::fruit(60));
    place.refuses("train --data t.csv --augment flip", 2, &["for pictures"]);
    place.refuses(
        "train --data t.csv --target length --task regression --class-weights balanced",
        2,
        &["no classes"],
    );
    place.refuses(
        "train --data t.csv --target length --task regression --sampler weighted",
        2,
        &["for classes"],
    );
    place.refuses("train --data t.csv --class-weights 1,2,3", 4, &["3 weights for 2 classes"]);
}

/// The rare class of a table is found more often when its rows weigh more, or are drawn more often.
#[test]
fn rare_classes_gain_from_weights_and_from_sampling() {
    let place = Place::new("rare");
    let mut text = "a,b,kind\n".to_owned();
    for i in 0..600 {
        // One in fifteen is rare; its values overlap with the others'.
        let rare = i % 15 == 0;
        let at = |k: usize| ((i * k % 97) as f64 / 97.0 - 0.5) * 2.0 + if rare { 0.8 } else { 0.0 };
        text += &format!("{},{},{}\n", at(37), at(53), if rare { "rare" } else { "common" });
    }
    place.write("t.csv", text);
    let recall = |how: &str, out: &str| {
        let line = format!(
            "train --data t.csv --model mlp: --lr 0.05 --epochs 8 --patience 0 --val-split 0 --out {out} {how}"
        );
        let metrics = &place.json(&line)["metrics"];
        metrics["recall"].as_f64().unwrap_or_else(|| panic!("{metrics}"))
    };
    let plain = recall("", "plain");
    for (how, out) in [
        ("--class-weights balanced", "weighted"),
        ("--class-weights 1,14", "given"),
        ("--sampler weighted", "sampled"),
        ("--class-weights balanced --augment mixup:0.1", "mixed"),
    ] {
        let found = recall(how, out);
        assert!(found > plain + 0.3, "{how}: recall {found}, without {plain}");
    }
}
