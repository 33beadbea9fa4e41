//! Tasks, preparation and whole data sets: what is fitted, what is saved, and what is refused.
#![cfg(feature = "train")]

use proptest::prelude::*;
use warpsmith::data::{
    Dataset, DatasetOptions, Incomplete, Input, Missing, NumberOptions, Preparation, PrepareOptions, Scale,
    Schema, SplitOptions, Table, Target, TargetUse, Targets, Task, digits, resolve_task,
};
use warpsmith::{Error, ErrorKind};

fn table(text: &str) -> Table {
    Table::from_csv("t.csv", text.as_bytes(), None).unwrap()
}

/// A preparation of all rows of a table whose last column is the target.
fn fit(table: &Table, options: &PrepareOptions) -> Result<Preparation, Error> {
    let target = table.names().len() - 1;
    let rows: Vec<usize> = (0..table.rows()).collect();
    let (_, classes) = resolve_task(None, table, target, &rows)?;
    Ok(Preparation::fit(table, target, classes, &rows, options)?.0)
}

fn all_rows(preparation: &Preparation, table: &Table) -> Result<Vec<f32>, Error> {
    let rows: Vec<usize> = (0..table.rows()).collect();
    Ok(preparation.transform(table, &rows, Incomplete::Refuse)?.values)
}

fn numbers(missing: Missing, scale: Scale) -> PrepareOptions {
    PrepareOptions { numbers: NumberOptions { missing, scale }, ..Default::default() }
}

#[test]
fn missing_numbers_are_filled_by_rule() {
    let data = table("x,y\n1,0\n2,1\n,0\n9,1\n");
    for (missing, filled) in [(Missing::Median, 2.0), (Missing::Mean, 4.0), (Missing::Constant(-1.5), -1.5)] {
        let preparation = fit(&data, &numbers(missing, Scale::None)).unwrap();
        assert_eq!(all_rows(&preparation, &data).unwrap(), [1.0, 2.0, filled, 9.0]);
    }
}

#[test]
fn dropped_rows_are_left_out_of_training_and_refused_at_prediction() {
    let data = table("x,y\n1,0\n2,1\n,0\n9,1\n");
    let preparation = fit(&data, &numbers(Missing::Drop, Scale::MinMax)).unwrap();
    let features = preparation.transform(&data, &[3, 2, 0], Incomplete::LeaveOut).unwrap();
    assert_eq!((features.rows, features.values), (vec![3, 0], vec![1.0, 0.0]));
    let error = all_rows(&preparation, &data).unwrap_err();
    let place = error.place().unwrap();
    assert_eq!((error.kind(), place.line, place.column.as_deref()), (ErrorKind::Data, Some(4), Some("x")));
    let error = fit(&table("x,y\n,0\n,1\n"), &numbers(Missing::Drop, Scale::None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[test]
fn numbers_are_standardised_over_the_filled_column() {
    let data = table("x,y\n1,0\n3,1\n,0\n8,1\n");
    let preparation = fit(&data, &PrepareOptions::default()).unwrap();
    // Filled: 1, 3, 3, 8; mean 3.75; squared deviations 7.5625, 0.5625, 0.5625, 18.0625; variance 6.6875.
    let std = 6.6875f64.sqrt();
    let want: Vec<f32> = [1.0, 3.0, 3.0, 8.0].iter().map(|x| ((x - 3.75) / std) as f32).collect();
    for (found, want) in all_rows(&preparation, &data).unwrap().iter().zip(want) {
        approx::assert_relative_eq!(*found, want, max_relative = f32::EPSILON);
    }
}

#[test]
fn constant_and_empty_columns_become_zeros() {
    let data = table("c,e,y\n0.1,,0\n0.1,,1\n0.1,,0\n");
    let preparation = fit(&data, &PrepareOptions::default()).unwrap();
    assert_eq!(all_rows(&preparation, &data).unwrap(), [0.0; 6]);
    // At prediction too, whatever comes.
    assert_eq!(all_rows(&preparation, &table("c,e\n7,8\n,\n")).unwrap(), [0.0; 4]);
}

#[test]
fn texts_become_one_output_a_category() {
    let data = table("t,y\nb,0\na,1\n?,0\nb,1\n");
    let preparation = fit(&data, &PrepareOptions::default()).unwrap();
    assert_eq!(preparation.output_names(), ["t=a", "t=b", "t missing"]);
    assert_eq!(
        all_rows(&preparation, &data).unwrap(),
        [[0., 1., 0.], [1., 0., 0.], [0., 0., 1.], [0., 1., 0.]].concat()
    );
    // A text that training never saw gives zeros and is counted.
    let features = preparation.transform(&table("t\nc\na\n"), &[0, 1], Incomplete::Refuse).unwrap();
    assert_eq!(features.values, [[0., 0., 0.], [1., 0., 0.]].concat());
    assert_eq!(features.unseen, [("t".to_owned(), 1)]);
    // Without a missing text in training there is no output for one.
    let data = table("t,y\nb,0\na,1\n");
    let preparation = fit(&data, &PrepareOptions::default()).unwrap();
    let given =
        Table::from_csv_as("t.csv", b"t\n?\nb\n", &preparation.schema(), TargetUse::Ignored).unwrap().table;
    assert_eq!(all_rows(&preparation, &given).unwrap(), [[0., 0.], [0., 1.]].concat());
}

#[test]
fn an_identifier_is_refused_as_an_input() {
    let rows: String = (0..1100).map(|i| format!("id{i},{}\n", i % 2)).collect();
    let error = fit(&table(&format!("name,y\n{rows}")), &PrepareOptions::default()).unwrap_err();
    assert_eq!((error.kind(), error.place().unwrap().column.as_deref()), (ErrorKind::Data, Some("name")));
}

#[test]
fn options_of_single_columns_hold_for_them_alone() {
    let data = table("a,b,t,y\n1,1,u,0\n,,v,1\n4,4,u,0\n");
    let mut options = numbers(Missing::Constant(0.0), Scale::None);
    options.columns.insert("b".into(), NumberOptions { missing: Missing::Constant(7.0), scale: Scale::None });
    let preparation = fit(&data, &options).unwrap();
    assert_eq!(all_rows(&preparation, &data).unwrap()[4..6], [0.0, 7.0]);
    for name in ["y", "t", "nowhere"] {
        let mut options = PrepareOptions::default();
        options.columns.insert(name.into(), NumberOptions::default());
        assert_eq!(fit(&data, &options).unwrap_err().kind(), ErrorKind::Argument);
    }
    let error = fit(&data, &numbers(Missing::Constant(f64::NAN), Scale::None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
}

#[test]
fn numbers_beyond_f32_are_errors_with_their_place() {
    let data = table("x,y\n1,0\n1e300,1\n");
    let preparation = fit(&data, &numbers(Missing::Median, Scale::None)).unwrap();
    let error = all_rows(&preparation, &data).unwrap_err();
    assert_eq!((error.kind(), error.place().unwrap().line), (ErrorKind::Data, Some(3)));
    let error = fit(&table("x,y\n1.7e308,0\n1.7e308,1\n0,1\n"), &PrepareOptions::default()).unwrap_err();
    assert!(error.message().contains("too large"), "{error}");
}

#[test]
fn integer_classes_sort_by_value_and_texts_by_bytes() {
    let classes = |text: &str| {
        let table = table(text);
        let (task, classes) = resolve_task(None, &table, 1, &(0..table.rows()).collect::<Vec<_>>()).unwrap();
        (task, classes.unwrap().names)
    };
    assert_eq!(
        classes("x,y\n1,10\n1,9\n1,-2\n1,9.0\n"),
        (Task::Multiclass, vec!["-2".to_owned(), "9".to_owned(), "10".to_owned()])
    );
    assert_eq!(classes("x,y\n1,b\n1,B\n1,b\n"), (Task::Binary, vec!["B".to_owned(), "b".to_owned()]));
}

fn resolve(asked: Option<Task>, values: impl IntoIterator<Item = String>) -> Result<Task, Error> {
    let rows: String = values.into_iter().map(|value| format!("1,{value}\n")).collect();
    let table = table(&format!("x,y\n{rows}"));
    let rows: Vec<usize> = (0..table.rows()).collect();
    resolve_task(asked, &table, 1, &rows).map(|(task, _)| task)
}

#[test]
fn the_task_is_found_from_the_target() {
    let integers = |n: i32| (0..60).map(move |i| (i % n).to_string());
    assert_eq!(resolve(None, integers(2)).unwrap(), Task::Binary);
    assert_eq!(resolve(None, integers(20)).unwrap(), Task::Multiclass);
    assert_eq!(resolve(None, integers(21)).unwrap(), Task::Regression);
    assert_eq!(resolve(None, ["0.5", "1", "0"].map(String::from)).unwrap(), Task::Regression);
    assert_eq!(resolve(None, ["a", "b"].map(String::from)).unwrap(), Task::Binary);
    assert_eq!(resolve(None, (0..60).map(|i| format!("c{}", i % 30))).unwrap(), Task::Multiclass);
    // Asked for, where it fits.
    assert_eq!(resolve(Some(Task::Multiclass), integers(2)).unwrap(), Task::Multiclass);
    assert_eq!(resolve(Some(Task::Multiclass), integers(30)).unwrap(), Task::Multiclass);
    assert_eq!(resolve(Some(Task::Regression), integers(3)).unwrap(), Task::Regression);
    for name in ["binary", "multiclass", "regression"] {
        assert_eq!(name.parse::<Task>().unwrap().to_string(), name);
    }
    assert_eq!("auto".parse::<Task>().unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn impossible_tasks_are_errors_about_the_target() {
    for (asked, values, want) in [
        (Some(Task::Regression), vec!["a", "b"], "needs a target of numbers"),
        (Some(Task::Binary), vec!["0", "1", "2"], "found 3"),
        (Some(Task::Multiclass), vec!["0.5", "1", "2"], "not integers"),
        (Some(Task::Binary), vec!["0.5", "1"], "not integers"),
        (None, vec!["a", "a"], "'a'"),
        (None, vec!["1", "1"], "'1'"),
        (Some(Task::Binary), vec!["1", "1"], "two classes"),
        (None, vec!["", ""], "no value"),
    ] {
        let error = resolve(asked, values.iter().map(|v| (*v).to_owned())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert_eq!(error.place().unwrap().column.as_deref(), Some("y"));
        assert!(error.message().contains(want), "{error}");
    }
}

#[test]
fn a_class_that_training_never_saw_is_named() {
    let preparation = fit(&table("x,y\n1,a\n2,b\n"), &PrepareOptions::default()).unwrap();
    let error = preparation.target().transform(&table("x,y\n1,a\n1,zebra\n"), &[0, 1]).unwrap_err();
    let place = error.place().unwrap();
    assert_eq!((error.kind(), place.line, place.column.as_deref()), (ErrorKind::Data, Some(3), Some("y")));
    assert!(error.message().contains("'zebra'") && error.help().unwrap().contains("a, b"), "{error}");
    let preparation = fit(&table("x,y\n1,4\n2,5\n"), &PrepareOptions::default()).unwrap();
    let target = preparation.target();
    assert_eq!(target.transform(&table("x,y\n1,5.0\n1,4\n"), &[0, 1]).unwrap(), Targets::Classes(vec![1, 0]));
    assert!(target.transform(&table("x,y\n1,4.5\n"), &[0]).unwrap_err().message().contains("'4.5'"));
}

#[test]
fn regression_targets_are_standardised_and_mapped_back() {
    let data = table("x,y\n1,10.5\n2,20.5\n3,60\n");
    let preparation = fit(&data, &PrepareOptions::default()).unwrap();
    let Targets::Values(values) = preparation.target().transform(&data, &[0, 1, 2]).unwrap() else {
        panic!("classes")
    };
    assert!(values.iter().sum::<f32>().abs() < 1e-6);
    for (scaled, value) in values.iter().zip([10.5, 20.5, 60.0]) {
        approx::assert_relative_eq!(preparation.target().invert(*scaled), value, max_relative = 1e-6);
    }
}

fn through_toml(preparation: &Preparation) -> Preparation {
    toml::from_str(&toml::to_string(preparation).unwrap()).unwrap()
}

#[test]
fn a_preparation_comes_back_from_toml_bit_for_bit() {
    let data = table("a,t,b,y\n0.1,\"x = \"\"1\"\"\n[y]\",3e-310,1.5\n1e300,é,,2\n-0.3,?,7,3.25\n");
    for missing in [Missing::Median, Missing::Mean, Missing::Drop, Missing::Constant(1.0 / 3.0)] {
        let preparation = fit(&data, &numbers(missing, Scale::Standard)).unwrap();
        let back = through_toml(&preparation);
        assert_eq!(back, preparation);
        let given = [0, 2].map(|row| data.column(0).is_missing(row));
        assert_eq!(given, [false, false]);
        assert_eq!(
            preparation.transform(&data, &[0, 2], Incomplete::Refuse).unwrap(),
            back.transform(&data, &[0, 2], Incomplete::Refuse).unwrap()
        );
    }
    let classes = fit(&digits().unwrap(), &PrepareOptions::default()).unwrap();
    assert_eq!(through_toml(&classes), classes);
}

fn any_finite() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |x| x.is_finite())
}

proptest! {
    #[test]
    fn every_finite_float_survives_toml(fill in any_finite(), shift in any_finite(), divisor in any_finite()) {
        let text = format!(
            "[target]\nkind = \"value\"\nname = \"y\"\nscale = \"standard\"\nshift = 0.0\ndivisor = 1.0\n\
             [[inputs]]\nkind = \"number\"\nname = \"x\"\nmissing = \"mean\"\nfill = {fill:e}\nscale = \"minmax\"\n\
             shift = {shift:?}\ndivisor = {:?}\n", divisor.abs());
        let preparation: Preparation = toml::from_str(&text).unwrap();
        for preparation in [through_toml(&preparation), preparation] {
            let Input::Number { fill: f, shift: s, divisor: d, .. } = preparation.inputs()[0] else { panic!() };
            prop_assert_eq!([f, s, d].map(f64::to_bits), [fill, shift, divisor.abs()].map(f64::to_bits));
        }
    }

    #[test]
    fn standardised_columns_have_mean_0_and_deviation_1(values in prop::collection::vec(-1e6..1e6f64, 2..60)) {
        let text: String = values.iter().enumerate().map(|(i, v)| format!("{v:?},{}\n", i % 2)).collect();
        let data = table(&format!("x,y\n{text}"));
        let out = all_rows(&fit(&data, &PrepareOptions::default()).unwrap(), &data).unwrap();
        let n = out.len() as f64;
        let mean = out.iter().map(|&z| f64::from(z)).sum::<f64>() / n;
        let variance = out.iter().map(|&z| (f64::from(z) - mean).powi(2)).sum::<f64>() / n;
        // f32 rounding of each value, at most its size times 2^-24, and sqrt(n) bounds the size.
        prop_assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5 || variance == 0.0, "{} {}", mean, variance);
    }
}

#[test]
fn a_damaged_preparation_is_refused() {
    let good =
        toml::to_string(&fit(&table("x,t,y\n1,a,0\n2,b,1\n4,a,0\n"), &PrepareOptions::default()).unwrap())
            .unwrap();
    assert!(toml::from_str::<Preparation>(&good).is_ok());
    for (from, to) in [
        ("[\"a\", \"b\"]", "[\"b\", \"a\"]"),
        ("[\"a\", \"b\"]", "[\"a\", \"a\"]"),
        ("[\"0\", \"1\"]", "[\"1\", \"0\"]"),
        ("[\"0\", \"1\"]", "[\"0\"]"),
        ("[\"0\", \"1\"]", "[\"0\", \"one\"]"),
        ("name = \"t\"", "name = \"x\""),
        ("name = \"t\"", "name = \"y\""),
        ("fill = 2.0", "fill = nan"),
        ("fill = 2.0", "fill = 2.0\nextra = 1"),
        ("kind = \"number\"", "kind = \"numeral\""),
        ("divisor = ", "divisor = -"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from} is not in\n{good}");
        assert!(toml::from_str::<Preparation>(&bad).is_err(), "{from} -> {to}");
    }
}

#[test]
fn a_data_set_is_fitted_on_its_training_part_alone() {
    let rows: String = (0..100).map(|i| format!("{},{}\n", i * i, i % 2)).collect();
    let data = table(&format!("x,y\n{rows}"));
    let set = Dataset::build(&data, None, &DatasetOptions::default()).unwrap();
    assert_eq!((set.train.rows(), set.validation.rows(), set.test.rows()), (72, 8, 20));
    let sum: f64 = set.train.source_rows.iter().map(|&row| (row * row) as f64).sum();
    let Input::Number { shift, .. } = set.preparation.inputs()[0] else { panic!("text") };
    assert_eq!(shift, sum / 72.0);
}

#[test]
fn rows_without_a_target_are_left_out_and_counted() {
    let rows: String =
        (0..40).map(|i| if i % 10 == 0 { format!("{i},\n") } else { format!("{i},{}\n", i % 2) }).collect();
    let data = table(&format!("x,y\n{rows}"));
    let set = Dataset::build(&data, None, &DatasetOptions::default()).unwrap();
    assert_eq!(set.train.rows() + set.validation.rows() + set.test.rows(), 36);
    assert!(set.notes.iter().any(|note| note.contains("4 rows without a target ('y')")), "{:?}", set.notes);
    let error = Dataset::build(&table("x,y\n1,\n2,\n"), None, &DatasetOptions::default()).unwrap_err();
    assert!(error.message().contains("no value"), "{error}");
}

#[test]
fn the_limit_comes_before_the_split() {
    let data = digits().unwrap();
    let options = DatasetOptions { limit: Some(300), ..Default::default() };
    let set = Dataset::build(&data, None, &options).unwrap();
    assert_eq!((set.train.rows(), set.validation.rows(), set.test.rows()), (216, 24, 60));
    assert!(set.train.source_rows.iter().chain(&set.test.source_rows).all(|&row| row < 300));
    let error =
        Dataset::build(&data, None, &DatasetOptions { limit: Some(0), ..Default::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    let error =
        Dataset::build(&data, None, &DatasetOptions { limit: Some(5), ..Default::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("digits: 5 rows are too few"), "{error}");
}

#[test]
fn a_test_table_of_its_own_is_the_test_part() {
    let data = table("x,t,y\n1,u,a\n2,v,b\n3,u,a\n4,v,b\n5,u,a\n6,v,b\n");
    let schema = Schema::of(&data, Some(2));
    let test = |text: &str| {
        Table::from_csv_as("test.csv", text.as_bytes(), &schema, TargetUse::Needed).unwrap().table
    };
    let set =
        Dataset::build(&data, Some(&test("y,x,t\na,9,w\nb,,u\n,1,u\n")), &DatasetOptions::default()).unwrap();
    assert_eq!((set.train.rows() + set.validation.rows(), set.test.rows()), (6, 2));
    assert_eq!(set.test.targets, Targets::Classes(vec![0, 1]));
    assert!(
        set.notes.iter().any(|note| note.starts_with("test.csv: 1 row without a target")),
        "{:?}",
        set.notes
    );
    assert!(set.notes.iter().any(|note| note.contains("never saw")), "{:?}", set.notes);
    let error = Dataset::build(&data, Some(&test("y,x,t\nc,9,u\n")), &DatasetOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().starts_with("test.csv, line 2, column y: the class 'c'"), "{error}");
}

#[test]
fn an_unknown_target_and_a_lonely_one_are_errors() {
    let data = table("x,y\n1,0\n2,1\n");
    let error =
        Dataset::build(&data, None, &DatasetOptions { target: Some("z".into()), ..Default::default() });
    let error = error.unwrap_err();
    assert!(error.message().contains("no column 'z'") && error.help().unwrap().contains("x, y"), "{error}");
    let rows: String = (0..20).map(|i| format!("{}\n", i % 2)).collect();
    let error = Dataset::build(&table(&format!("y\n{rows}")), None, &DatasetOptions::default()).unwrap_err();
    assert!(error.message().contains("no column besides the target"), "{error}");
}

#[test]
fn shares_of_nothing_leave_parts_empty() {
    let data = table("x,y\n1,0\n2,1\n");
    let split = SplitOptions { seed: 0, test: 0.0, validation: 0.0 };
    let set = Dataset::build(&data, None, &DatasetOptions { split, ..Default::default() }).unwrap();
    assert_eq!((set.train.rows(), set.validation.rows(), set.test.rows()), (2, 0, 0));
}

#[test]
fn the_digits_are_prepared_as_the_quality_bars_expect() {
    let set = Dataset::build(&digits().unwrap(), None, &DatasetOptions::default()).unwrap();
    assert_eq!((set.task, set.preparation.width(), set.notes.len()), (Task::Multiclass, 64, 0));
    assert_eq!((set.train.rows(), set.validation.rows(), set.test.rows()), (1294, 144, 359));
    assert_eq!(set.preparation.target().classes(), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    // The corner pixel is 0 in every image.
    let mut rows = Vec::new();
    set.train.inputs.gather(&(0..1294).collect::<Vec<_>>(), &mut rows);
    assert!(rows.chunks_exact(64).all(|row| row[0] == 0.0));
    // They are pictures, in the model's file too.
    assert_eq!((set.shape(), set.train.inputs.shape()), (vec![1, 8, 8], &[1, 8, 8][..]));
    let text = toml::to_string(&set.preparation).unwrap();
    assert_eq!(toml::from_str::<Preparation>(&text).unwrap(), set.preparation);
    assert!(toml::from_str::<Preparation>(&text.replace("[1, 8, 8]", "[1, 8, 9]")).is_err());
    // Raw rows, under names of their own, are prepared alike.
    let raw: Vec<u8> = vec![8; 64];
    let raw = Table::from_matrix("raw.npy", &raw, 1, 64).unwrap();
    let raw = set.preparation.schema().match_table(raw, TargetUse::Ignored).unwrap();
    let features = set.preparation.transform(&raw.table, &[0], Incomplete::Refuse).unwrap();
    assert!(features.values.iter().all(|value| value.is_finite()) && features.values[0] == 0.0);
}

#[test]
fn the_test_tables_are_prepared_with_defaults() {
    let read = |name: &str| Table::read_csv(format!("tests/data/{name}.csv"), None).unwrap();
    let set = Dataset::build(&read("breast_cancer"), None, &DatasetOptions::default()).unwrap();
    assert_eq!((set.task, set.preparation.width()), (Task::Binary, 30));
    assert_eq!(set.preparation.target().classes(), ["benign", "malignant"]);
    assert_eq!(set.train.rows() + set.validation.rows() + set.test.rows(), 569);
    let set = Dataset::build(&read("wine"), None, &DatasetOptions::default()).unwrap();
    assert_eq!((set.task, set.preparation.width(), set.test.rows()), (Task::Multiclass, 13, 36));
    let set = Dataset::build(&read("diabetes"), None, &DatasetOptions::default()).unwrap();
    assert_eq!((set.task, set.preparation.width()), (Task::Regression, 10));
    assert!(matches!(set.preparation.target(), Target::Value { .. }));
}
