//! What augmentation draws: each change does what it says, by numbers that are evenly spread and owe nothing to one another.
#![cfg(feature = "train")]

use std::sync::Arc;

use warpsmith::data::{
    Batch, Dataset, DatasetOptions, Images, LastBatch, Loader, LoaderOptions, Order, Part, SplitOptions,
    Store, Targets,
};

/// The batches of some epochs, each the whole part.
fn served(
    part: &Arc<Part>,
    order: Order,
    (augment, seed): (&str, u64),
    classes: usize,
    epochs: usize,
) -> Vec<Batch> {
    let options = LoaderOptions { batch: part.rows(), order, last: LastBatch::Keep, prefetch: None };
    let loader = Loader::new(Arc::clone(part), options).unwrap();
    let mut loader = loader.with_augment(augment.parse().unwrap(), seed, classes).unwrap();
    let mut batches = Vec::new();
    for _ in 0..epochs {
        while let Some(batch) = loader.next_batch().unwrap() {
            batches.push(batch.clone());
        }
    }
    batches
}

/// `count` times the pictures in `bytes`, all in the training part.
fn pictures(bytes: &[u8], shape: [usize; 3], count: usize) -> Arc<Part> {
    let pixels = bytes.repeat(count);
    let labels: Vec<f64> =
        (0..pixels.len() / shape.iter().product::<usize>()).map(|i| (i % 2) as f64).collect();
    let images = Images::new("made", pixels, shape).unwrap().with_labels("made", &labels).unwrap();
    let split = SplitOptions { seed: 0, test: 0.0, validation: 0.0 };
    let options = DatasetOptions { split, ..DatasetOptions::default() };
    Arc::new(Dataset::from_images(&images, None, &options).unwrap().train)
}

fn values(values: Vec<f32>, rows: usize, targets: Targets) -> Arc<Part> {
    let width = values.len() / rows;
    let inputs = Store::values(values, rows, &[width]).unwrap();
    Arc::new(Part { inputs, targets, source_rows: (0..rows).collect(), names: Vec::new() })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

/// Flips, crops and shifts by every number of pixels that is allowed, each combination as often as another.
#[test]
fn moves_are_evenly_spread_and_independent() {
    let [height, width] = [6, 5];
    let own: Vec<u8> = (1..=30).map(|i| i * 7).collect();
    // A black picture after each shows what black becomes.
    let part = pictures(&[&own[..], &[0; 30]].concat(), [1, height, width], 8100);
    let mut plain = Vec::new();
    part.inputs.gather(&(0..part.rows()).collect::<Vec<_>>(), &mut plain);
    let black = plain.iter().copied().fold(f32::MAX, f32::min);
    let picture = plain.chunks(30).find(|picture| picture[0] > black + 0.01).unwrap();

    let mut combinations = Vec::new();
    let steps = || [-1isize, 0, 1];
    for flip in [false, true] {
        for (crop_y, crop_x) in steps().into_iter().flat_map(|y| steps().map(|x| (y, x))) {
            for (shift_y, shift_x) in steps().into_iter().flat_map(|y| steps().map(|x| (y, x))) {
                let mut wanted = Vec::with_capacity(30);
                for y in 0..height as isize {
                    for x in 0..width as isize {
                        let x = if flip { width as isize - 1 - x } else { x };
                        let (y, x) = (y + crop_y, x + crop_x);
                        let inside = (0..6).contains(&y) && (0..5).contains(&x);
                        let (y, x) = ((y + shift_y).clamp(0, 5), (x + shift_x).clamp(0, 4));
                        wanted.push(if inside { picture[(y * 5 + x) as usize] } else { black });
                    }
                }
                combinations.push((wanted, 0));
            }
        }
    }
    let batches = served(&part, Order::Sequential, ("flip,crop:1,shift:1", 4), 2, 1);
    let mut seen = 0;
    for (&row, moved) in batches[0].rows.iter().zip(batches[0].features.chunks(30)) {
        if plain[row * 30] <= black + 0.01 {
            continue;
        }
        let alike = |wanted: &[f32]| wanted.iter().zip(moved).all(|(a, b)| (a - b).abs() < 1e-4);
        let found = combinations.iter_mut().find(|(wanted, _)| alike(wanted));
        found.unwrap_or_else(|| panic!("no such move: {moved:?}")).1 += 1;
        seen += 1;
    }
    assert_eq!((seen, combinations.len()), (8100, 162));
    // 50 each, give or take 7.
    for (number, (_, count)) in combinations.iter().enumerate() {
        assert!((15..=90).contains(count), "{count} times combination {number}");
    }
}

#[test]
fn turns_go_both_ways_and_as_far_as_they_may() {
    // In a ramp, the slopes around the middle tell the angle.
    let ramp: Vec<u8> = (0..81).map(|i| 20 * (i % 9)).collect();
    let part = pictures(&ramp, [1, 9, 9], 2000);
    let batches = served(&part, Order::Sequential, ("rotate:30", 1), 2, 1);
    let angles: Vec<f64> = batches[0]
        .features
        .chunks(81)
        .map(|picture| {
            let at = |y: usize, x: usize| f64::from(picture[y * 9 + x]);
            (at(5, 4) - at(3, 4)).atan2(at(4, 5) - at(4, 3)).to_degrees()
        })
        .collect();
    assert!(angles.iter().all(|angle| angle.abs() < 30.01), "{angles:?}");
    for start in [-30.0, -20.0, -10.0, 0.0, 10.0, 20.0] {
        let count = angles.iter().filter(|&&angle| angle >= start && angle < start + 10.0).count();
        // 333, give or take 17.
        assert!((250..=420).contains(&count), "{count} from {start} degrees on");
    }
    let most = angles.iter().fold(0f64, |most, angle| most.max(angle.abs()));
    assert!(most > 29.8, "{most}");
}

#[test]
fn noise_is_normal_and_each_values_own() {
    const ROWS: usize = 1000;
    const WIDTH: usize = 31;
    let part = values(vec![0.0; ROWS * WIDTH], ROWS, Targets::Values(vec![0.0; ROWS]));
    let noise = |seed: u64| -> Vec<Vec<f64>> {
        let batches = served(&part, Order::Sequential, ("noise:0.5", seed), 0, 2);
        batches.iter().map(|b| b.features.iter().map(|&v| f64::from(v) / 0.5).collect()).collect()
    };
    let (first, other) = (noise(1), noise(2));
    let all = &first[0];
    approx::assert_abs_diff_eq!(mean(all.iter().copied()), 0.0, epsilon = 0.03);
    approx::assert_abs_diff_eq!(mean(all.iter().map(|v| v * v)), 1.0, epsilon = 0.04);
    // The share of a normal distribution within one deviation.
    let within = mean(all.iter().map(|v| f64::from(u8::from(v.abs() < 1.0))));
    approx::assert_abs_diff_eq!(within, 0.6827, epsilon = 0.015);
    let unlike = |what: &str, a: &[f64], b: &[f64]| {
        let correlation = mean(a.iter().zip(b).map(|(a, b)| a * b));
        assert!(correlation.abs() < 0.03, "{what}: {correlation}");
    };
    unlike("neighbours", &all[1..], all);
    unlike("the value after the next", &all[2..], all);
    unlike("rows", &all[WIDTH..], all);
    unlike("epochs", &first[1], all);
    unlike("seeds", &other[0], all);

    // A row that comes twice in an epoch is changed anew each time.
    let classes = values(vec![0.0; 20], 20, Targets::Classes((0..20).map(|row| row % 2).collect()));
    let batch = served(&classes, Order::Weighted { seed: 1 }, ("noise:1", 1), 2, 1).remove(0);
    let mut drawn = batch.features.clone();
    drawn.sort_by(f32::total_cmp);
    assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]), "{:?} {:?}", batch.rows, batch.features);
}

/// Noise leaves the moves as they were, and is not made of the same numbers.
#[test]
fn noise_and_moves_are_independent() {
    let own: Vec<u8> = (1..=30).map(|i| i * 7).collect();
    let part = pictures(&own, [1, 6, 5], 4000);
    let features = |augment| served(&part, Order::Sequential, (augment, 9), 2, 1).remove(0).features;
    let (moved, noisy) = (features("flip,crop:2"), features("flip,crop:2,noise:1"));
    // The squares of the first two values' noise, by where the crop went.
    let mut squares = [const { Vec::new() }; 3];
    for (moved, noisy) in moved.chunks(30).zip(noisy.chunks(30)) {
        let is_flat = |y: usize| (1..5).all(|x| (moved[y * 5 + x] - moved[y * 5]).abs() < 1e-5);
        let at = if is_flat(0) { 0 } else { 1 + usize::from(is_flat(5)) };
        squares[at].extend((0..2).map(|i| f64::from(noisy[i] - moved[i]).powi(2)));
    }
    for squares in squares {
        assert!(squares.len() > 1000, "{}", squares.len());
        let mean = mean(squares.iter().copied());
        assert!((0.8..1.2).contains(&mean), "{mean}");
    }
}

/// A row that is 1 at its own number and 0 elsewhere shows, mixed, of what it is made.
#[test]
fn mixed_targets_have_the_shares_of_their_inputs() {
    const ROWS: usize = 20;
    let ones: Vec<f32> = (0..ROWS * ROWS).map(|i| f32::from(u8::from(i % (ROWS + 1) == 0))).collect();
    let class = |row: usize| (row * row) % 4;
    let classes = values(ones, ROWS, Targets::Classes((0..ROWS).map(|row| class(row) as i64).collect()));
    for order in [Order::Sequential, Order::Shuffled { seed: 1 }, Order::Weighted { seed: 1 }] {
        let mut partners = [0; ROWS];
        let mut shares = Vec::new();
        for batch in served(&classes, order, ("mixup:1", 3), 4, 300) {
            let Targets::Probabilities { values, classes: 4 } = &batch.targets else {
                panic!("{:?}", batch.targets)
            };
            let mut of_epoch = std::collections::BTreeSet::new();
            for ((&row, mixed), targets) in
                batch.rows.iter().zip(batch.features.chunks(ROWS)).zip(values.chunks(4))
            {
                let mut wanted = [0.0; 4];
                mixed.iter().enumerate().for_each(|(row, share)| wanted[class(row)] += share);
                for (target, wanted) in targets.iter().zip(wanted) {
                    assert!((target - wanted).abs() < 1e-6, "{order:?}: {targets:?}, not {wanted:?}");
                }
                let partner = (0..ROWS).find(|&other| other != row && mixed[other] > 0.0);
                if let Some(partner) = partner {
                    assert!((mixed[row] + mixed[partner] - 1.0).abs() < 1e-6);
                    shares.push(f64::from(mixed[row]));
                }
                partners[partner.unwrap_or(row)] += 1;
                of_epoch.insert(partner);
            }
            assert!(of_epoch.len() > 5, "{of_epoch:?}");
        }
        // The beta distribution (1, 1) is even.
        approx::assert_abs_diff_eq!(mean(shares.iter().copied()), 0.5, epsilon = 0.03);
        if !matches!(order, Order::Weighted { .. }) {
            // 300 each, give or take 17.
            assert!(partners.iter().all(|count| (210..=390).contains(count)), "{partners:?}");
        }
    }
}

/// The other row of a mixture is changed by numbers of its own: equal halves of two noises have half the variance.
#[test]
fn mixed_rows_have_changes_of_their_own() {
    let part = values(vec![0.0; 20_000], 1000, Targets::Values(vec![0.0; 1000]));
    let batch = served(&part, Order::Sequential, ("noise:1,mixup:1000", 1), 0, 1).remove(0);
    let variance = mean(batch.features.iter().map(|&v| f64::from(v).powi(2)));
    approx::assert_abs_diff_eq!(variance, 0.5, epsilon = 0.04);
}

#[test]
fn cutouts_are_anywhere() {
    let part = pictures(&[[10; 90], [200; 90]].concat(), [3, 6, 5], 1500);
    for side in [2, 3] {
        let augment = format!("cutout:{side}");
        let batch = served(&part, Order::Sequential, (&augment, 2), 2, 1).remove(0);
        // For each pixel as the middle: the rows and columns of the square, what of it is inside.
        let span = |middle: usize, extent: usize| {
            (middle.saturating_sub(side / 2), (middle + side - side / 2).min(extent))
        };
        let middles = (0..6).flat_map(|y| (0..5).map(move |x| (span(y, 6), span(x, 5))));
        let mut squares: Vec<_> = middles.map(|square| (square, 0)).collect();
        for picture in batch.features.chunks(90) {
            let is_cut = |at: usize| picture[at] == 0.0;
            let found = squares.iter_mut().find(|(((top, bottom), (left, right)), _)| {
                (0..90).all(|at| {
                    let (y, x) = (at % 30 / 5, at % 5);
                    is_cut(at) == ((*top..*bottom).contains(&y) && (*left..*right).contains(&x))
                })
            });
            found.unwrap_or_else(|| panic!("no such square: {picture:?}")).1 += 1;
        }
        // 100 each, give or take 10.
        assert!(squares.iter().all(|(_, count)| (50..=150).contains(count)), "{squares:?}");
    }
}
