//! Pictures: from arrays and from files, in data sets, and augmented on their way to a batch.
#![cfg(feature = "train")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use image::{GrayImage, Luma, Rgb, RgbImage};
use warpsmith::data::{
    Augment, Batch, Dataset, DatasetOptions, ImageOptions, Images, LastBatch, Loader, LoaderOptions, Order,
    Part, Position, Preparation, Sampler, SplitOptions, Store, Table, Targets, Task, digits,
};
use warpsmith::io::HostTensor;
use warpsmith::{DType, ErrorKind};

/// An empty folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("warpsmith-images-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        file
    }

    fn grey(&self, name: &str, width: u32, height: u32, value: u8) {
        GrayImage::from_pixel(width, height, Luma([value])).save(self.file(name)).unwrap();
    }

    fn colour(&self, name: &str, width: u32, height: u32, value: [u8; 3]) {
        RgbImage::from_pixel(width, height, Rgb(value)).save(self.file(name)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn classes(folder: &Folder, options: ImageOptions) -> warpsmith::Result<Images> {
    Images::read_classes(&folder.0, &options)
}

fn names_of(images: &Images) -> Vec<&str> {
    images.names().iter().map(String::as_str).collect()
}

#[test]
fn arrays_of_pictures_have_three_layouts() {
    let bytes: Vec<u8> = (0..24).collect();
    let array = |shape: &[usize]| HostTensor::new(DType::U8, shape, bytes.clone()).unwrap();
    let images = Images::from_array("a", array(&[2, 3, 4])).unwrap();
    assert_eq!((images.len(), images.shape(), images.pixels().as_slice()), (2, [1, 3, 4], &bytes[..]));
    let images = Images::from_array("a", array(&[1, 3, 2, 4])).unwrap();
    assert_eq!((images.shape(), images.pixels().as_slice()), ([3, 2, 4], &bytes[..]));
    // Channels last come first.
    let images = Images::from_array("a", array(&[2, 2, 2, 3])).unwrap();
    assert_eq!((images.len(), images.shape()), (2, [3, 2, 2]));
    assert_eq!(images.pixels()[..12], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
    for shape in [&[24][..], &[4, 6], &[1, 2, 2, 2, 3], &[0, 4, 4], &[2, 12, 0]] {
        let data = if shape.contains(&0) { Vec::new() } else { bytes.clone() };
        let array = HostTensor::new(DType::U8, shape, data).unwrap();
        assert_eq!(Images::from_array("a", array).unwrap_err().kind(), ErrorKind::Data, "{shape:?}");
    }
    let wide = HostTensor::from_slice([1, 1, 2], &[0i64, 255]).unwrap();
    assert_eq!(Images::from_array("a", wide).unwrap().pixels().as_slice(), [0, 255]);
    let wide = HostTensor::from_slice([1, 1, 2], &[0i64, 256]).unwrap();
    assert!(Images::from_array("a", wide).unwrap_err().message().contains("element 1 is 256"));
}

#[test]
fn tables_from_arrays_keep_the_shape_of_a_row() {
    let table = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|v| v as f32).collect();
        Table::from_array("x.npy", &HostTensor::from_slice(shape, &values).unwrap()).unwrap()
    };
    assert_eq!(table(&[4, 6]).shape(), None);
    assert_eq!(table(&[4, 2, 3]).shape(), Some(&[1, 2, 3][..]));
    assert_eq!(table(&[4, 3, 2, 2]).shape(), Some(&[3, 2, 2][..]));
    let targets: Vec<u8> = (0..40).map(|row| row % 2).collect();
    let labelled = table(&[40, 2, 3]).with_numbers("y", "y", &targets).unwrap();
    let data = Dataset::build(&labelled, None, &DatasetOptions::default()).unwrap();
    assert_eq!((data.shape(), data.train.inputs.shape()), (vec![1, 2, 3], &[1, 2, 3][..]));
    // With the target in a column of the array there is no such shape.
    let data = Dataset::build(&table(&[40, 2, 3]), None, &DatasetOptions::default()).unwrap();
    assert_eq!(data.shape(), [5]);
}

#[test]
fn a_folder_for_each_class_is_read_in_turn() {
    let folder = Folder::new("classes");
    for (name, value) in
        [("cat/b.png", 2), ("cat/a.png", 1), ("cat/c.PNG", 3), ("dog/z.png", 200), ("dog/y.png", 100)]
    {
        folder.grey(name, 3, 2, value);
    }
    fs::write(folder.file("cat/notes.txt"), "left out").unwrap();
    fs::write(folder.file("README.md"), "left out").unwrap();
    fs::create_dir(folder.file(".hidden")).unwrap();
    let images = classes(&folder, ImageOptions::default()).unwrap();
    assert_eq!((images.len(), images.shape()), (5, [1, 2, 3]));
    assert_eq!(images.pixels().chunks(6).map(|p| p[0]).collect::<Vec<_>>(), [1, 100, 2, 200, 3]);
    assert_eq!(names_of(&images), ["cat/a.png", "dog/y.png", "cat/b.png", "dog/z.png", "cat/c.PNG"]);
    let limited = classes(&folder, ImageOptions { limit: Some(3), ..Default::default() }).unwrap();
    assert_eq!(names_of(&limited), ["cat/a.png", "dog/y.png", "cat/b.png"]);
    let split = SplitOptions { test: 0.0, validation: 0.0, seed: 0 };
    let data = Dataset::from_images(&images, None, &DatasetOptions { split, ..Default::default() }).unwrap();
    assert_eq!(data.preparation.target().classes(), ["cat", "dog"]);
    assert_eq!((data.task, &data.train.targets), (Task::Binary, &Targets::Classes(vec![0, 1, 0, 1, 0])));

    let options = ImageOptions { size: Some([4, 5]), channels: Some(3), limit: None };
    let images = classes(&folder, options).unwrap();
    assert_eq!((images.shape(), images.pixels()[59]), ([3, 4, 5], 1));
    let data = Dataset::from_images(&images, None, &DatasetOptions { split, ..Default::default() }).unwrap();
    let pixels = data.preparation.pixels().unwrap();
    assert!(pixels.resize && pixels.convert);
}

#[test]
fn folders_named_by_numbers_are_integer_classes() {
    let folder = Folder::new("numbers");
    for class in [10, 9, 2] {
        folder.grey(&format!("{class}/a.jpg"), 8, 8, class);
    }
    let labels = classes(&folder, ImageOptions::default()).unwrap();
    assert_eq!(
        labels.labels().unwrap().column(0),
        &warpsmith::data::Column::Number(vec![10.0, 2.0, 9.0]) // by name: 10, 2, 9
    );
}

#[test]
fn bad_folders_name_the_file_and_the_reason() {
    let folder = Folder::new("bad");
    let refused = |options: ImageOptions, words: [&str; 2]| {
        let error = classes(&folder, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word:?} is not in {error}");
        }
    };
    let any = ImageOptions::default();
    refused(any, ["expected a folder for each class", "nothing of either"]);
    folder.grey("loose.png", 4, 4, 1);
    refused(any, ["bad", "pictures without a class"]);
    fs::create_dir(folder.file("a")).unwrap();
    refused(any, ["/a", "without pictures"]);
    folder.grey("a/1.png", 4, 4, 1);
    folder.grey("b/1.png", 4, 4, 1);
    assert!(classes(&folder, any).is_ok());
    folder.grey("b/2.png", 4, 5, 1);
    refused(
        any,
        ["b/2.png: expected pictures of 4x4 pixels in 1 channel as ", "found pictures of 5x4 pixels"],
    );
    folder.colour("b/2.png", 4, 4, [1, 2, 3]);
    refused(any, ["b/2.png: expected pictures of 4x4 pixels in 1 channel", "4x4 pixels in 3 channels"]);
    assert!(classes(&folder, ImageOptions { channels: Some(1), ..any }).is_ok());
    let whole = fs::read(folder.file("a/1.png")).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"", b"text", &whole[..8]] {
        fs::write(folder.file("b/2.png"), bytes).unwrap();
        refused(any, ["b/2.png", "not a whole PNG or JPEG"]);
    }
    // The first bad one in the folder's order is named, whichever thread meets which first.
    for number in 3..40 {
        fs::write(folder.file(&format!("b/{number}.png")), "text").unwrap();
    }
    refused(any, ["b/10.png", "not a whole"]);
    for bad in [
        ImageOptions { size: Some([0, 3]), ..any },
        ImageOptions { channels: Some(2), ..any },
        ImageOptions { limit: Some(0), ..any },
        ImageOptions { size: Some([1 << 40, 1 << 40]), ..any },
    ] {
        assert_eq!(classes(&folder, bad).unwrap_err().kind(), ErrorKind::Argument);
    }
}

#[test]
fn what_a_path_names_is_told_by_its_content() {
    let folder = Folder::new("open");
    let open = |name: &str| Images::open(folder.0.join(name), &ImageOptions::default());
    folder.colour("one.jpeg", 5, 3, [9, 9, 9]);
    fs::rename(folder.file("one.jpeg"), folder.file("one")).unwrap();
    assert_eq!(open("one").unwrap().shape(), [3, 3, 5]);
    folder.grey("some/b.png", 2, 2, 1);
    folder.grey("some/a.png", 2, 2, 1);
    assert_eq!(names_of(&open("some").unwrap()), ["a.png", "b.png"]);
    folder.grey("lonely/a.png", 2, 2, 1);
    assert_eq!(names_of(&open("lonely").unwrap()), ["a.png"]);
    let files = [folder.file("some"), folder.file("one")];
    let options = ImageOptions { size: Some([2, 2]), channels: Some(1), limit: None };
    let several = Images::read_pictures(&files, &options).unwrap();
    assert_eq!(several.len(), 3);
    assert!(several.names()[2] == files[1].display().to_string(), "{:?}", several.names());
    fs::write(folder.file("idx"), [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4]).unwrap();
    assert_eq!(open("idx").unwrap().pixels().as_slice(), [1, 2, 3, 4]);
    fs::write(folder.file("text"), "a,b\n1,2\n").unwrap();
    let error = open("text").unwrap_err();
    assert!(error.message().contains("expected a PNG or JPEG picture"), "{error}");
    assert_eq!(open("absent").unwrap_err().kind(), ErrorKind::Data);
    fs::create_dir(folder.file("empty")).unwrap();
    assert_eq!(open("empty").unwrap_err().kind(), ErrorKind::Data);
}

/// `count` pictures of three channels and 6 x 5 pixels in classes 0 and 1, four of the first to one of the second.
fn images(count: usize) -> Images {
    let pixels = (0..count * 90).map(|i| (i * 7919 % 251) as u8).collect();
    let labels: Vec<f64> = (0..count).map(|i| f64::from(i % 5 == 0)).collect();
    Images::new("made", pixels, [3, 6, 5]).unwrap().with_labels("made", &labels).unwrap()
}

#[test]
fn a_data_set_of_pictures_is_scaled_by_its_training_part() {
    let images = images(60);
    let data = Dataset::from_images(&images, None, &DatasetOptions::default()).unwrap();
    assert_eq!((data.train.rows(), data.validation.rows(), data.test.rows()), (43, 5, 12));
    let mut values = Vec::new();
    data.train.inputs.gather(&(0..43).collect::<Vec<_>>(), &mut values);
    for channel in 0..3 {
        let of_channel: Vec<f64> = values
            .chunks(90)
            .flat_map(|picture| &picture[channel * 30..][..30])
            .map(|&v| f64::from(v))
            .collect();
        let mean = of_channel.iter().sum::<f64>() / of_channel.len() as f64;
        let variance = of_channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / of_channel.len() as f64;
        approx::assert_abs_diff_eq!(mean, 0.0, epsilon = 1e-5);
        approx::assert_abs_diff_eq!(variance, 1.0, epsilon = 1e-5);
    }
    // It comes back from the model's file, and prepares other pictures alike.
    let text = toml::to_string(&data.preparation).unwrap();
    let preparation: Preparation = toml::from_str(&text).unwrap();
    assert_eq!(preparation, data.preparation);
    let store = preparation.store_of_images(&images, data.train.source_rows.clone()).unwrap();
    let mut again = Vec::new();
    store.gather(&(0..43).collect::<Vec<_>>(), &mut again);
    assert_eq!(values, again);
    // Tables and pictures of another shape are refused.
    let error =
        preparation.transform(&digits().unwrap(), &[0], warpsmith::data::Incomplete::Refuse).unwrap_err();
    assert!(error.message().contains("pictures of 6x5 pixels in 3 channels, found a table"), "{error}");
    let other = Images::new("other", vec![0; 90], [3, 5, 6]).unwrap();
    assert_eq!(preparation.store_of_images(&other, vec![0]).unwrap_err().kind(), ErrorKind::Data);
    let unlabelled = Images::new("other", vec![0; 90], [3, 6, 5]).unwrap();
    let error = Dataset::from_images(&unlabelled, None, &DatasetOptions::default()).unwrap_err();
    assert!(error.message().contains("no labels"), "{error}");
    let of_table = Dataset::build(&digits().unwrap(), None, &DatasetOptions::default()).unwrap().preparation;
    assert_eq!(of_table.store_of_images(&images, vec![0]).unwrap_err().kind(), ErrorKind::Data);
    for changed in [
        ("channels = 3", "channels = 2"),
        ("height = 6", "height = 0"),
        ("resize = false", "resized = false"),
    ] {
        assert!(toml::from_str::<Preparation>(&text.replace(changed.0, changed.1)).is_err(), "{changed:?}");
    }
}

#[test]
fn more_integer_labels_than_a_table_would_take_for_classes_are_classes() {
    let labels: Vec<f64> = (0..300).map(|i| f64::from(i % 100)).collect();
    let images = Images::new("made", vec![1; 300], [1, 1, 1]).unwrap().with_labels("made", &labels).unwrap();
    let data = Dataset::from_images(&images, None, &DatasetOptions::default()).unwrap();
    assert_eq!((data.task, data.preparation.target().classes().len()), (Task::Multiclass, 100));
    // Constant pictures become zeros.
    let mut values = Vec::new();
    data.test.inputs.gather(&[0, 1], &mut values);
    assert_eq!(values, [0.0, 0.0]);
    let heights: Vec<f64> = (0..300).map(|i| f64::from(i) + 0.5).collect();
    let images = Images::new("made", vec![1; 300], [1, 1, 1]).unwrap().with_labels("made", &heights).unwrap();
    let data = Dataset::from_images(&images, None, &DatasetOptions::default()).unwrap();
    assert_eq!(data.task, Task::Regression);
}

/// The training part of [`images`].
fn part(count: usize) -> Arc<Part> {
    let split = SplitOptions { seed: 0, test: 0.0, validation: 0.0 };
    let options = DatasetOptions { split, ..DatasetOptions::default() };
    Arc::new(Dataset::from_images(&images(count), None, &options).unwrap().train)
}

fn loader(part: &Arc<Part>, order: Order, prefetch: usize, augment: &str) -> Loader {
    let options = LoaderOptions { batch: 7, order, last: LastBatch::Keep, prefetch: Some(prefetch) };
    let loader = Loader::new(Arc::clone(part), options).unwrap();
    loader.with_augment(augment.parse().unwrap(), 5, 2).unwrap()
}

fn serve(loader: &mut Loader, epochs: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for _ in 0..epochs {
        while let Some(batch) = loader.next_batch().unwrap() {
            batches.push(batch.clone());
        }
    }
    batches
}

const ALL: &str = "flip,crop:2,shift:1,rotate:20,noise:0.1,cutout:2,mixup:0.4";

/// The same batches for any number of threads, and from any place on.
#[test]
fn augmented_batches_do_not_depend_on_threads_or_interruption() {
    let part = part(40);
    for order in [Order::Shuffled { seed: 3 }, Order::Weighted { seed: 3 }] {
        let whole = serve(&mut loader(&part, order, 0, ALL), 3);
        for prefetch in [1, 2, 3, 8] {
            for threads in [1, 3, 4] {
                let served = warpsmith::cpu::par::with_threads(threads, || {
                    serve(&mut loader(&part, order, prefetch, ALL), 3)
                });
                assert!(served.unwrap() == whole, "{order:?}, {prefetch} ahead on {threads} threads");
            }
        }
        for done in [1, 6, 9] {
            let mut resumed = loader(&part, order, done % 3, ALL);
            resumed.seek(Position { epoch: done as u64 / 6, batch: done % 6 }).unwrap();
            assert!(serve(&mut resumed, 3 - done / 6) == whole[done..], "from batch {done}");
        }
    }
}

/// What becomes of a row depends on its number and on the epoch, and not on where in the epoch it comes.
#[test]
fn a_row_changes_by_seed_epoch_and_row() {
    let part = part(40);
    let rows = |order| {
        let batches = serve(&mut loader(&part, order, 0, "crop:2,noise:0.1"), 2);
        let pictures = |batches: &[Batch]| {
            let mut all: Vec<(usize, Vec<f32>)> = batches
                .iter()
                .flat_map(|batch| {
                    batch.rows.iter().copied().zip(batch.features.chunks(90).map(<[f32]>::to_vec))
                })
                .collect();
            all.sort_by_key(|(row, _)| *row);
            all
        };
        (pictures(&batches[..6]), pictures(&batches[6..]))
    };
    let (first, second) = rows(Order::Sequential);
    assert!(first == rows(Order::Shuffled { seed: 1 }).0);
    assert!(
        first.iter().zip(&second).all(|(a, b)| a.0 == b.0 && a.1 != b.1),
        "a row is the same in two epochs"
    );
}

#[test]
fn each_change_does_what_it_says() {
    let part = part(40);
    let plain = |row: usize| {
        let mut values = Vec::new();
        part.inputs.gather(&[row], &mut values);
        values
    };
    let mut flipped = 0;
    for batch in serve(&mut loader(&part, Order::Sequential, 0, "flip"), 1) {
        for (&row, picture) in batch.rows.iter().zip(batch.features.chunks(90)) {
            let mirrored: Vec<f32> =
                plain(row).chunks(5).flat_map(|line| line.iter().rev().copied()).collect();
            let same = |a: &[f32]| a.iter().zip(picture).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(same(&plain(row)) || same(&mirrored));
            flipped += usize::from(same(&mirrored));
        }
    }
    assert!((10..=30).contains(&flipped), "{flipped} of 40");

    let changed = |augment: &str| -> Vec<f32> {
        let batches = serve(&mut loader(&part, Order::Sequential, 0, augment), 1);
        let moved = batches.iter().flat_map(|b| {
            b.rows.iter().zip(b.features.chunks(90)).flat_map(|(&row, picture)| {
                picture.iter().zip(plain(row)).map(|(a, b)| a - b).collect::<Vec<_>>()
            })
        });
        moved.collect()
    };
    let noise = changed("noise:0.25");
    let deviation = (noise.iter().map(|v| f64::from(v * v)).sum::<f64>() / noise.len() as f64).sqrt();
    approx::assert_abs_diff_eq!(deviation, 0.25, epsilon = 0.02);
    // Of 30 pixels a square of 3 x 3 or what of it is inside, in all channels.
    let cut =
        changed("cutout:3").chunks(90).map(|p| p.iter().filter(|v| **v != 0.0).count()).collect::<Vec<_>>();
    assert!(cut.iter().all(|&n| n <= 27) && cut.iter().max() >= Some(&25), "{cut:?}");
    assert!(changed("none").iter().all(|v| *v == 0.0));
}

#[test]
fn mixing_makes_probabilities_that_add_up() {
    let part = part(40);
    for batch in serve(&mut loader(&part, Order::Shuffled { seed: 1 }, 2, "mixup:0.5"), 2) {
        let Targets::Probabilities { values, classes: 2 } = &batch.targets else {
            panic!("{:?}", batch.targets)
        };
        assert_eq!(values.len(), batch.rows.len() * 2);
        assert!(values.chunks(2).all(|p| (p[0] + p[1] - 1.0).abs() < 1e-6 && p[0] >= 0.0 && p[1] >= 0.0));
        assert_eq!(batch.targets.range(1..3).len(), 2);
    }
    // Values are mixed as values, by the same shares as the inputs.
    let rows: Vec<f32> = (0..20).map(|v| v as f32).collect();
    let inputs = Store::values(rows.clone(), 20, &[1]).unwrap();
    let table = Arc::new(Part {
        inputs,
        targets: Targets::Values(rows),
        source_rows: (0..20).collect(),
        names: Vec::new(),
    });
    let options =
        LoaderOptions { batch: 20, order: Order::Sequential, last: LastBatch::Keep, prefetch: None };
    let mut mixed =
        Loader::new(table, options).unwrap().with_augment("mixup:1".parse().unwrap(), 1, 0).unwrap();
    let batch = mixed.next_batch().unwrap().unwrap();
    assert_eq!(batch.targets, Targets::Values(batch.features.clone()));
    assert!(batch.features.iter().enumerate().any(|(row, value)| *value != row as f32));
}

#[test]
fn tables_take_noise_but_no_moves() {
    let data = Dataset::build(
        &Table::read_csv("tests/data/wine.csv", None).unwrap(),
        None,
        &DatasetOptions::default(),
    );
    let train = Arc::new(data.unwrap().train);
    let options = LoaderOptions { batch: 8, order: Order::Sequential, last: LastBatch::Keep, prefetch: None };
    let with = |part: &Arc<Part>, augment: Augment| {
        Loader::new(Arc::clone(part), options).unwrap().with_augment(augment, 0, 3)
    };
    // A share so small that its draws leave f64 would make NaN.
    for mixup in [1e-310, 9e-7, -0.1, f64::NAN, f64::INFINITY] {
        let error = with(&train, Augment { mixup, ..Augment::default() }).err().unwrap();
        assert!(error.kind() == ErrorKind::Argument && error.message().contains("mixup"), "{error}");
    }
    let mut mixed = with(&train, Augment { mixup: 1e-6, ..Augment::default() }).unwrap();
    assert!(mixed.next_batch().unwrap().unwrap().features.iter().all(|value| value.is_finite()));
    let noise = Augment { noise: 0.1, mixup: 0.2, ..Augment::default() };
    assert!(with(&train, noise.clone()).is_ok());
    for augment in ["flip", "crop:1", "shift:1", "rotate:1", "cutout:1"] {
        let error = with(&train, augment.parse().unwrap()).err().unwrap();
        assert!(error.kind() == ErrorKind::Argument && error.message().contains("for pictures"), "{error}");
    }
    // The built-in digits are pictures; what is moved in stands for black, whatever its pixel's scaling.
    let data = Dataset::build(&digits().unwrap(), None, &DatasetOptions::default()).unwrap();
    let train = Arc::new(data.train);
    let mut moved = with(&train, Augment { crop: 3, ..Augment::default() }).unwrap();
    let preparation = data.preparation;
    let black: Vec<f32> = preparation
        .inputs()
        .iter()
        .map(|input| match input {
            warpsmith::data::Input::Number { shift, divisor, .. } if *divisor > 0.0 => {
                (-shift / divisor) as f32
            }
            _ => 0.0,
        })
        .collect();
    let batch = moved.next_batch().unwrap().unwrap();
    let close = |a: f32, b: f32| (a - b).abs() < 1e-4;
    let is_black = |picture: &[f32], y: usize| (0..8).all(|x| close(picture[y * 8 + x], black[y * 8 + x]));
    let black_rows: Vec<usize> =
        batch.features.chunks(64).map(|picture| (0..8).filter(|&y| is_black(picture, y)).count()).collect();
    // Hardly a digit has an empty row of its own, so these are what came in.
    assert!(
        black_rows.iter().all(|&rows| rows <= 4) && black_rows.iter().any(|&rows| rows > 0),
        "{black_rows:?}"
    );
    // A picture of 8 rows could be pushed out altogether by 8.
    assert!(with(&train, Augment { crop: 7, ..Augment::default() }).is_ok());
    let error = with(&train, Augment { crop: 8, ..Augment::default() }).err().unwrap();
    assert!(error.message().contains("crop:8") && error.message().contains("7 at most"), "{error}");
    let error = Loader::new(Arc::clone(&train), options).unwrap().with_augment(noise, 0, 3).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
}

#[test]
fn weighted_sampling_evens_the_classes_out() {
    let part = part(100);
    let batches = serve(&mut loader(&part, Order::Weighted { seed: 2 }, 0, "none"), 20);
    let Targets::Classes(classes) = &part.targets else { panic!("{:?}", part.targets) };
    let rows: Vec<usize> = batches.iter().flat_map(|b| b.rows.iter().copied()).collect();
    assert_eq!(rows.len(), 2000);
    let rare = rows.iter().filter(|&&row| classes[row] == 1).count();
    assert!((900..1100).contains(&rare), "{rare} of 2000");
    assert_eq!(serde_json::to_string(&Sampler::Weighted).unwrap(), "\"weighted\"");
    let values = Part { targets: Targets::Values(vec![0.0; 100]), ..(*part).clone() };
    let options =
        LoaderOptions { batch: 7, order: Order::Weighted { seed: 2 }, last: LastBatch::Keep, prefetch: None };
    assert_eq!(Loader::new(Arc::new(values), options).err().unwrap().kind(), ErrorKind::Argument);
}

#[test]
fn the_first_pictures_are_one_at_least() {
    for (limit, rows) in [(0, 1), (1, 1), (7, 7), (200, 90)] {
        let images = images(90).truncated(limit);
        assert_eq!((images.len(), images.labels().unwrap().rows()), (rows, rows));
    }
}

/// Found by fuzzing: a file of 20 bytes asked for 4 GB.
#[test]
fn no_pictures_of_any_size_take_no_memory() {
    let file = [0, 0, 9, 4, 0, 0, 0, 0, 0, 0, 0, 0xfd, 1, 4, 0, 0, 0, 0, 0, 1];
    let array = warpsmith::io::idx::from_bytes("none.idx", &file).unwrap();
    let error = Images::from_array("none.idx", array).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
}
