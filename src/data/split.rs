//! Cutting rows into training, validation and test part: seeded, stratified by class, the same on every machine.
//!
//! The test part is cut first and the validation part from what is left, so the test part does not depend on the
//! validation part's size. Each class gives its share by largest remainder and keeps at least one row for training.
//! Too few rows for a part that was asked for is an error, not a smaller request.
#![forbid(unsafe_code)]

use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

// Streams of the seed; the loader's are beside them.
const SPLIT_SITE: u32 = 0x5350_4c54;

/// How rows are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitOptions {
    /// Picks which rows go where.
    pub seed: u64,
    /// The test part's share of all rows, in [0, 1).
    pub test: f64,
    /// The validation part's share of the rows that are not in the test part, in [0, 1).
    pub validation: f64,
}

impl Default for SplitOptions {
    /// Seed 0, a fifth for the test, a tenth of the rest for validation.
    fn default() -> Self {
        SplitOptions { seed: 0, test: 0.2, validation: 0.1 }
    }
}

/// Row numbers of the three parts, each ascending; together every row once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// What is trained on.
    pub train: Vec<usize>,
    /// What early stopping and the kept epoch look at.
    pub validation: Vec<usize>,
    /// What is read once, at the end.
    pub test: Vec<usize>,
}

/// Divides `rows` as `options` say; `classes`, one number a row, stratifies.
///
/// # Errors
/// Kind `Argument`: a share outside [0, 1); kind `Data`: too few rows for a part that was asked for and one training row
/// a class; kind `Internal`: `classes` has another length.
pub fn split(rows: &[usize], classes: Option<&[i64]>, options: &SplitOptions) -> Result<Split> {
    for (name, share) in [("test", options.test), ("validation", options.validation)] {
        if !(0.0..1.0).contains(&share) {
            return Err(Error::argument(format!(
                "expected a {name} share of at least 0 and below 1, found {share}"
            )));
        }
    }
    if rows.is_empty() {
        return Err(Error::new(ErrorKind::Data, "there are no rows to train on"));
    }
    let mut groups: Vec<Vec<usize>> = match classes {
        None => vec![rows.to_vec()],
        Some(classes) if classes.len() == rows.len() => {
            let mut by_class = std::collections::BTreeMap::<i64, Vec<usize>>::new();
            for (&row, &class) in rows.iter().zip(classes) {
                by_class.entry(class).or_default().push(row);
            }
            by_class.into_values().collect()
        }
        Some(_) => return Err(Error::internal("a split needs one class a row")),
    };
    for (number, group) in groups.iter_mut().enumerate() {
        Philox::for_step(options.seed, SPLIT_SITE, number as u32).sequence(0).shuffle(group);
    }

    let total = rows.len();
    let mut result = Split::default();
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    for (group, take) in groups.iter_mut().zip(shares(&sizes, options.test, "test", total)?) {
        result.test.extend(group.drain(..take));
    }
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    for (group, take) in groups.iter_mut().zip(shares(&sizes, options.validation, "validation", total)?) {
        result.validation.extend(group.drain(..take));
    }
    result.train = groups.into_iter().flatten().collect();
    for part in [&mut result.train, &mut result.validation, &mut result.test] {
        part.sort_unstable();
    }
    Ok(result)
}

/// How many rows each group gives to a part of `share`: largest remainder, all but one of a group at most.
fn shares(sizes: &[usize], share: f64, part: &str, total: usize) -> Result<Vec<usize>> {
    if share == 0.0 {
        return Ok(vec![0; sizes.len()]);
    }
    let rows: usize = sizes.iter().sum();
    let spare: usize = sizes.iter().map(|size| size - 1).sum();
    let wanted = ((rows as f64 * share).round() as usize).max(1);
    if spare == 0 {
        let message =
            format!("{total} rows are too few for a {part} part and one training row of each class");
        return Err(Error::new(ErrorKind::Data, message)
            .with_help(format!("more rows are needed, or a {part} share of 0")));
    }
    let mut left = wanted.min(spare);
    // 128 bits: a product of two row counts.
    let quota = |size: usize| {
        (wanted as u128 * size as u128 / rows as u128, wanted as u128 * size as u128 % rows as u128)
    };
    let mut takes: Vec<usize> = sizes.iter().map(|&size| (quota(size).0 as usize).min(size - 1)).collect();
    left -= takes.iter().sum::<usize>();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&group| std::cmp::Reverse(quota(sizes[group]).1));
    while left > 0 {
        for &group in &order {
            if left > 0 && takes[group] < sizes[group] - 1 {
                takes[group] += 1;
                left -= 1;
            }
        }
    }
    Ok(takes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this code gave when it was written: a change would silently give every seed another split.
    #[test]
    fn the_split_of_a_seed_never_changes() {
        let classes: Vec<i64> = (0..20).map(|row| i64::from(row % 3 == 0)).collect();
        let rows: Vec<usize> = (0..20).collect();
        let split = split(&rows, Some(&classes), &SplitOptions { seed: 7, ..Default::default() }).unwrap();
        assert_eq!((split.test, split.validation), (vec![0, 2, 7, 13], vec![9, 16]));
    }

    #[test]
    fn a_rare_class_stays_in_training() {
        let rows: Vec<usize> = (100..150).collect();
        let mut classes = vec![0; 50];
        classes[17] = 1;
        for seed in 0..20 {
            let split =
                split(&rows, Some(&classes), &SplitOptions { seed, test: 0.5, validation: 0.5 }).unwrap();
            assert!(split.train.contains(&117));
            assert_eq!((split.test.len(), split.validation.len(), split.train.len()), (25, 13, 12));
        }
    }

    #[test]
    fn the_test_part_does_not_depend_on_the_validation_part() {
        let rows: Vec<usize> = (0..97).collect();
        let with = |validation| split(&rows, None, &SplitOptions { seed: 3, test: 0.2, validation }).unwrap();
        assert_eq!(with(0.0).test, with(0.4).test);
        assert!(with(0.0).validation.is_empty());
    }

    #[test]
    fn too_few_rows_are_an_error() {
        let options = SplitOptions::default();
        for (rows, classes) in
            [(vec![0, 1], Some(vec![0, 1])), (vec![0, 1, 2], Some(vec![0, 1, 0])), (vec![4], None)]
        {
            let error = split(&rows, classes.as_deref(), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{error}");
            assert!(error.to_string().contains("too few"), "{error}");
        }
        assert_eq!(split(&[], None, &options).unwrap_err().kind(), ErrorKind::Data);
        let split = split(&[0, 1, 2, 3], Some(&[0, 1, 0, 1]), &options).unwrap();
        assert_eq!((split.train.len(), split.validation.len(), split.test.len()), (2, 1, 1));
    }

    #[test]
    fn shares_out_of_range_are_errors() {
        for share in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            for options in [
                SplitOptions { test: share, ..Default::default() },
                SplitOptions { validation: share, ..Default::default() },
            ] {
                assert_eq!(split(&[0, 1, 2], None, &options).unwrap_err().kind(), ErrorKind::Argument);
            }
        }
    }
}
