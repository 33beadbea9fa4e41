//! What the defaults are worth: the bars for accuracy that hold without a single setting.
//!
//! All seeds in a release build (`scripts/quality.sh`), the first few in a debug build, which is slower.

#![cfg(feature = "cli")]

mod cli_support;

use cli_support::Place;

/// Seeds 1 to `all`; fewer where the build is slow.
fn seeds(all: u64) -> std::ops::RangeInclusive<u64> {
    1..=if cfg!(debug_assertions) { all.min(3) } else { all }
}

fn figures(place: &Place, what: &str, figure: &str, all: u64) -> Vec<f64> {
    let train = |seed| place.json(&format!("train {what} --seed {seed} --out m --quiet"));
    let figures: Vec<f64> = seeds(all).map(|seed| train(seed)["metrics"][figure].as_f64().unwrap()).collect();
    eprintln!("{what}: {figure} {figures:?}");
    figures
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

#[test]
fn digits_reach_97_percent_on_each_seed() {
    let place = Place::new("digits");
    let figures = figures(&place, "", "accuracy", 10);
    assert!(figures.iter().all(|&accuracy| accuracy >= 0.97), "{figures:?}");
}

/// Raw pixels predict as they were trained on: scaling is part of the model.
#[test]
fn a_small_model_predicts_the_first_digits() {
    let place = Place::new("small");
    place.ok("train --model mlp:64,32 --epochs 10 --out m --quiet");
    let digits = warpsmith::data::digits().unwrap();
    let cells = |index| match digits.column(index) {
        warpsmith::data::Column::Number(values) => values.clone(),
        other => panic!("{other:?}"),
    };
    let columns: Vec<Vec<f64>> = (0..65).map(cells).collect();
    let mut csv = digits.names()[..64].join(",") + "\n";
    for row in 0..300 {
        let pixels: Vec<String> = columns[..64].iter().map(|column| column[row].to_string()).collect();
        csv += &(pixels.join(",") + "\n");
    }
    place.write("first.csv", csv);
    let answers = place.ok("predict --model m --input first.csv").stdout;
    let classes = answers.lines().skip(1).map(|line| line.split(',').next().unwrap().parse::<f64>().unwrap());
    let right = classes.zip(&columns[64]).filter(|(answer, truth)| answer == *truth).count();
    assert!(right >= 285, "{right} of 300");
}

#[test]
fn small_tables_reach_their_bars() {
    let place = Place::new("tables");
    for (name, figure, bar) in
        [("breast_cancer", "accuracy", 0.93), ("wine", "accuracy", 0.93), ("diabetes", "r2", 0.35)]
    {
        let file = format!("{}/tests/data/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        let figures = figures(&place, &format!("--data {file}"), figure, 5);
        assert!(mean(&figures) >= bar, "{name}: {figures:?}");
    }
}
