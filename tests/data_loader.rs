//! Splits and loaders: sizes, strata, orders and positions, over many shapes and with and without the thread.
#![cfg(feature = "train")]

use std::sync::Arc;

use proptest::prelude::*;
use warpsmith::ErrorKind;
use warpsmith::data::{
    Batch, LastBatch, Loader, LoaderOptions, Order, Part, Position, SplitOptions, Store, Targets, batch_size,
    split,
};

/// Row `i` holds `i`, `i + 0.5` and so on; its class is `i`.
fn part(rows: usize, columns: usize) -> Arc<Part> {
    let value = |i: usize| (i / columns) as f32 + (i % columns) as f32 * 0.5;
    Arc::new(Part {
        inputs: Store::values((0..rows * columns).map(value).collect(), rows, &[columns]).unwrap(),
        targets: Targets::Classes((0..rows as i64).collect()),
        source_rows: (0..rows).collect(),
        names: Vec::new(),
    })
}

fn options(batch: usize, order: Order, prefetch: usize) -> LoaderOptions {
    LoaderOptions { batch, order, last: LastBatch::Keep, prefetch: Some(prefetch) }
}

/// The next `epochs` epochs, batch by batch.
fn serve(loader: &mut Loader, epochs: usize) -> Vec<Vec<Batch>> {
    let epoch = |_| {
        let mut batches = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            batches.push(batch.clone());
        }
        batches
    };
    (0..epochs).map(epoch).collect()
}

fn rows(batches: &[Batch]) -> Vec<usize> {
    batches.iter().flat_map(|batch| batch.rows.iter().copied()).collect()
}

#[test]
fn the_order_of_a_seed_never_changes() {
    let mut loader = Loader::new(part(12, 1), options(5, Order::Shuffled { seed: 42 }, 0)).unwrap();
    let epochs = serve(&mut loader, 2);
    assert_eq!(rows(&epochs[0]), [2, 11, 3, 9, 0, 4, 5, 7, 6, 8, 10, 1]);
    assert_eq!(rows(&epochs[1]), [0, 2, 1, 3, 5, 10, 11, 4, 7, 8, 9, 6]);
}

#[test]
fn a_batch_holds_its_rows() {
    for prefetch in [0, 1, 3] {
        let mut loader = Loader::new(part(23, 3), options(4, Order::Shuffled { seed: 1 }, prefetch)).unwrap();
        for batch in serve(&mut loader, 2).concat() {
            let want: Vec<f32> =
                batch.rows.iter().flat_map(|&row| [0.0, 0.5, 1.0].map(|x| row as f32 + x)).collect();
            assert_eq!(batch.features, want);
            assert_eq!(batch.targets, Targets::Classes(batch.rows.iter().map(|&row| row as i64).collect()));
        }
    }
    let values = Part { targets: Targets::Values(vec![0.5, 1.5, 2.5]), ..(*part(3, 1)).clone() };
    let mut loader = Loader::new(Arc::new(values), options(2, Order::Sequential, 0)).unwrap();
    assert_eq!(serve(&mut loader, 1)[0][1].targets, Targets::Values(vec![2.5]));
}

#[test]
fn the_last_batch_is_kept_or_dropped() {
    let sizes = |rows: usize, batch: usize, last: LastBatch| -> Vec<usize> {
        let options = LoaderOptions { last, ..options(batch, Order::Sequential, 0) };
        let mut loader = Loader::new(part(rows, 2), options).unwrap();
        let sizes: Vec<usize> = serve(&mut loader, 1)[0].iter().map(|batch| batch.targets.len()).collect();
        assert_eq!(loader.batches_per_epoch(), sizes.len());
        sizes
    };
    assert_eq!(sizes(10, 4, LastBatch::Keep), [4, 4, 2]);
    assert_eq!(sizes(10, 4, LastBatch::Drop), [4, 4]);
    assert_eq!(sizes(8, 4, LastBatch::Keep), [4, 4]);
    assert_eq!(sizes(8, 4, LastBatch::Drop), [4, 4]);
    assert_eq!(sizes(3, 100, LastBatch::Keep), [3]);
    let options = LoaderOptions { last: LastBatch::Drop, ..options(4, Order::Sequential, 0) };
    assert_eq!(Loader::new(part(3, 2), options).err().unwrap().kind(), ErrorKind::Data);
}

#[test]
fn bad_requests_are_errors() {
    assert_eq!(
        Loader::new(part(3, 1), options(0, Order::Sequential, 0)).err().unwrap().kind(),
        ErrorKind::Argument
    );
    assert_eq!(
        Loader::new(part(0, 1), options(1, Order::Sequential, 0)).err().unwrap().kind(),
        ErrorKind::Data
    );
    let broken = Part { inputs: part(2, 1).inputs.clone(), ..(*part(3, 1)).clone() };
    assert_eq!(
        Loader::new(Arc::new(broken), options(1, Order::Sequential, 0)).err().unwrap().kind(),
        ErrorKind::Shape
    );
    let mut loader = Loader::new(part(10, 1), options(4, Order::Sequential, 0)).unwrap();
    for position in [Position { epoch: 0, batch: 4 }, Position { epoch: 1 << 32, batch: 0 }] {
        assert_eq!(loader.seek(position).unwrap_err().kind(), ErrorKind::Argument);
    }
    assert_eq!(batch_size(None, 64, 30).unwrap(), 30);
    assert_eq!(batch_size(None, 64, 300).unwrap(), 64);
    assert_eq!(batch_size(Some(30), 64, 30).unwrap(), 30);
    assert_eq!(batch_size(Some(31), 64, 30).unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(batch_size(Some(0), 64, 30).unwrap_err().kind(), ErrorKind::Argument);
}

/// The position is all that a resumed run needs: from any of them the rest is what it would have been.
#[test]
fn a_loader_goes_on_from_any_position() {
    for prefetch in [0, 2] {
        let new = || Loader::new(part(17, 2), options(5, Order::Shuffled { seed: 9 }, prefetch)).unwrap();
        let whole = serve(&mut new(), 3);
        let mut walker = new();
        loop {
            let position = walker.position();
            let mut resumed = new();
            resumed.seek(position).unwrap();
            assert_eq!(resumed.position(), position);
            assert_eq!(serve(&mut resumed, 1)[0], whole[position.epoch as usize][position.batch..]);
            assert_eq!(serve(&mut resumed, 1)[0], whole[position.epoch as usize + 1]);
            if walker.next_batch().unwrap().is_none() && walker.position().epoch == 2 {
                break;
            }
        }
    }
}

#[test]
fn a_loader_can_be_dropped_and_moved_at_any_time() {
    for served in 0..9 {
        let mut loader = Loader::new(part(20, 2), options(4, Order::Sequential, 2)).unwrap();
        for _ in 0..served {
            loader.next_batch().unwrap();
        }
        std::thread::spawn(move || drop(loader)).join().unwrap();
    }
}

#[test]
fn one_part_serves_several_loaders_at_once() {
    let shared = part(200, 4);
    let serve_one = |seed: u64| {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut loader = Loader::new(shared, options(16, Order::Shuffled { seed }, 2)).unwrap();
            rows(&serve(&mut loader, 1)[0])
        })
    };
    let orders: Vec<Vec<usize>> =
        (0..3).map(serve_one).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
    for mut order in orders {
        order.sort_unstable();
        assert_eq!(order, (0..200).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_epoch_is_a_permutation_and_the_thread_changes_nothing(
        count in 1usize..60, batch in 1usize..20, seed: u64, ahead in 1usize..4,
    ) {
        let mut plain = Loader::new(part(count, 2), options(batch, Order::Shuffled { seed }, 0)).unwrap();
        let mut threaded = Loader::new(part(count, 2), options(batch, Order::Shuffled { seed }, ahead)).unwrap();
        let epochs = serve(&mut plain, 3);
        prop_assert_eq!(&epochs, &serve(&mut threaded, 3));
        for epoch in &epochs {
            let mut all = rows(epoch);
            all.sort_unstable();
            prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
        // 1 in 30! for two equal orders.
        prop_assert!(count < 30 || rows(&epochs[0]) != rows(&epochs[1]));
    }

    #[test]
    fn a_split_divides_all_rows_by_class(
        sizes in prop::collection::vec(1usize..80, 1..6), seed: u64, test in 0.0..0.6f64, validation in 0.0..0.6f64,
    ) {
        let classes: Vec<i64> = sizes.iter().enumerate().flat_map(|(class, &n)| vec![class as i64; n]).collect();
        let rows: Vec<usize> = (0..classes.len()).map(|row| row * 3).collect();
        let options = SplitOptions { seed, test, validation };
        let spare: usize = sizes.iter().map(|n| n - 1).sum();
        let parts = match split(&rows, Some(&classes), &options) {
            Ok(parts) => parts,
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Data);
                // Only where a part would be empty or a class without a training row.
                let tested = ((rows.len() as f64 * test).round() as usize).clamp(1, spare.max(1));
                prop_assert!(spare <= tested, "{} spare rows", spare);
                return Ok(());
            }
        };
        let mut all = [parts.train.as_slice(), &parts.validation, &parts.test].concat();
        all.sort_unstable();
        prop_assert_eq!(&all, &rows);
        prop_assert!([&parts.train, &parts.validation, &parts.test].iter().all(|part| part.is_sorted()));

        let share = |n: usize, share: f64| if share == 0.0 { 0 } else { ((n as f64 * share).round() as usize).max(1) };
        let tested = share(rows.len(), test).min(spare);
        prop_assert_eq!(parts.test.len(), tested);
        prop_assert_eq!(parts.validation.len(), share(rows.len() - tested, validation).min(spare - tested));

        let count = |part: &[usize], class: i64| part.iter().filter(|&&row| classes[row / 3] == class).count();
        for (class, &n) in sizes.iter().enumerate() {
            prop_assert!(count(&parts.train, class as i64) >= 1);
            // Where no class is at its last training row, each part has its share of the class, to less than one row.
            if sizes.iter().all(|&n| n as f64 * (1.0 - test) * (1.0 - validation) > 3.0) {
                let want = tested as f64 * n as f64 / rows.len() as f64;
                prop_assert!((count(&parts.test, class as i64) as f64 - want).abs() < 1.0);
            }
        }
        prop_assert_eq!(split(&rows, Some(&classes), &options).unwrap(), parts);
    }

    #[test]
    fn another_seed_gives_another_split(seed: u64) {
        let rows: Vec<usize> = (0..200).collect();
        let with = |seed| split(&rows, None, &SplitOptions { seed, ..Default::default() }).unwrap().test;
        prop_assert_ne!(with(seed), with(seed.wrapping_add(1)));
    }
}
