//! What is searched: for each setting the values it may take, and how one is drawn.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::random::Philox;

/// The stream of random numbers that trials are drawn from; the trial's number is added.
const STREAM: u64 = 0x7475_6e65 << 32;

/// The values that a setting may take.
#[derive(Clone, Debug, PartialEq)]
pub enum Range {
    /// Any number between two, each as likely.
    Uniform(f64, f64),
    /// Any number between two positive ones, each order of magnitude as likely.
    Log(f64, f64),
    /// Any integer from one to another, both included.
    Int(i64, i64),
    /// One of these.
    Choice(Vec<toml::Value>),
}

impl Range {
    /// Reads `{ uniform = [LOW, HIGH] }`, `{ log = … }`, `{ int = … }` or `{ choice = [VALUE, …] }`; says what is wrong.
    pub fn parse(value: &toml::Value) -> Result<Range, String> {
        const EXPECTED: &str = "expected { uniform = [LOW, HIGH] }, { log = [LOW, HIGH] }, { int = [LOW, HIGH] } or { choice = [VALUE, …] }";
        let table = value.as_table().ok_or_else(|| format!("{EXPECTED}, found {value}"))?;
        let mut entries = table.iter();
        let (Some((kind, values)), None) = (entries.next(), entries.next()) else {
            return Err(format!("{EXPECTED}, found {} entries", table.len()));
        };
        let values = values.as_array().ok_or_else(|| format!("{kind}: expected a list, found {values}"))?;
        let two = || match values.as_slice() {
            [low, high] => Ok((low, high)),
            _ => Err(format!("{kind}: expected [LOW, HIGH], found {} values", values.len())),
        };
        let float = |v: &toml::Value| {
            let number = v.as_float().or(v.as_integer().map(|i| i as f64)).filter(|v| v.is_finite());
            number.ok_or_else(|| format!("{kind}: {v} is not a finite number"))
        };
        let below = |low: &dyn std::fmt::Display, high: &dyn std::fmt::Display, is_below: bool| {
            if is_below { Ok(()) } else { Err(format!("{kind}: {low} is not below {high}")) }
        };
        match kind.as_str() {
            "uniform" | "log" => {
                let (low, high) = two()?;
                let (low, high) = (float(low)?, float(high)?);
                below(&low, &high, low < high)?;
                if kind == "uniform" {
                    return Ok(Range::Uniform(low, high));
                }
                if low <= 0.0 {
                    return Err(format!("log: {low} is not positive"));
                }
                Ok(Range::Log(low, high))
            }
            "int" => {
                let (low, high) = two()?;
                let integer =
                    |v: &toml::Value| v.as_integer().ok_or_else(|| format!("int: {v} is not an integer"));
                let (low, high) = (integer(low)?, integer(high)?);
                below(&low, &high, low < high)?;
                Ok(Range::Int(low, high))
            }
            "choice" => {
                if values.is_empty() {
                    return Err("choice: there is nothing to choose from".to_owned());
                }
                if let Some(twice) = values.iter().enumerate().find(|(i, v)| values[..*i].contains(v)) {
                    return Err(format!("choice: {} is there twice", twice.1));
                }
                Ok(Range::Choice(values.clone()))
            }
            _ => Err(format!("{EXPECTED}, found {kind:?}")),
        }
    }

    /// The values at the ends of the range, or all choices: if these are allowed, so is what is drawn.
    pub fn extremes(&self) -> Vec<toml::Value> {
        match self {
            Range::Uniform(low, high) | Range::Log(low, high) => vec![(*low).into(), (*high).into()],
            Range::Int(low, high) => vec![(*low).into(), (*high).into()],
            Range::Choice(values) => values.clone(),
        }
    }

    /// The value at the place `unit`, from 0 (included) to 1 (excluded).
    fn at(&self, unit: f64) -> toml::Value {
        // Four digits, so that the settings that a table shows are those that were trained with.
        let short = |v: f64, low: f64, high: f64| {
            let text = format!("{v:.3e}");
            toml::Value::from(text.parse::<f64>().unwrap_or(v).clamp(low, high))
        };
        match self {
            &Range::Uniform(low, high) => short(low + unit * (high - low), low, high),
            &Range::Log(low, high) => short((low.ln() + unit * (high.ln() - low.ln())).exp(), low, high),
            &Range::Int(low, high) => {
                let count = (i128::from(high) - i128::from(low) + 1) as f64;
                let offset = (unit * count).floor() as i128;
                // Rounding may have reached the end of a very wide range.
                let value = (i128::from(low) + offset).min(i128::from(high)) as i64;
                toml::Value::from(value)
            }
            Range::Choice(values) => {
                values[((unit * values.len() as f64) as usize).min(values.len() - 1)].clone()
            }
        }
    }

    /// What it looks like in a file.
    pub(super) fn to_value(&self) -> toml::Value {
        let (kind, values) = match self {
            Range::Uniform(..) => ("uniform", self.extremes()),
            Range::Log(..) => ("log", self.extremes()),
            Range::Int(..) => ("int", self.extremes()),
            Range::Choice(values) => ("choice", values.clone()),
        };
        toml::Value::Table(toml::Table::from_iter([(kind.to_owned(), values.into())]))
    }
}

/// The ranges of all settings that are searched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Space {
    /// By the setting's name.
    pub ranges: BTreeMap<String, Range>,
}

impl Space {
    /// The settings of trial number `trial` under `seed`.
    pub fn sample(&self, seed: u64, trial: usize) -> toml::Table {
        let numbers = Philox::new(seed, STREAM + trial as u64);
        let draw = |(i, (name, range)): (usize, (&String, &Range))| {
            (name.clone(), range.at(numbers.uniform_f64_at(i as u64)))
        };
        self.ranges.iter().enumerate().map(draw).collect()
    }

    /// As in a file.
    pub(super) fn to_table(&self) -> toml::Table {
        self.ranges.iter().map(|(name, range)| (name.clone(), range.to_value())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Range, String> {
        Range::parse(&toml::from_str::<toml::Table>(&format!("x = {text}")).unwrap()["x"])
    }

    #[test]
    fn ranges_are_read_and_written() {
        for text in [
            "{ uniform = [0.0, 0.5] }",
            "{ log = [0.0001, 0.1] }",
            "{ int = [-3, 4] }",
            "{ choice = [16, 32, \"a\"] }",
        ] {
            let range = parse(text).unwrap();
            assert_eq!(Range::parse(&range.to_value()), Ok(range));
        }
        assert_eq!(parse("{ uniform = [0, 1] }"), Ok(Range::Uniform(0.0, 1.0)));
    }

    #[test]
    fn bad_ranges_say_why() {
        for (text, why) in [
            ("3", "expected {"),
            ("{}", "0 entries"),
            ("{ log = [0.1, 1.0], int = [1, 2] }", "2 entries"),
            ("{ gauss = [0, 1] }", "gauss"),
            ("{ log = 3 }", "expected a list"),
            ("{ log = [1.0] }", "1 values"),
            ("{ log = [0.0, 1.0] }", "not positive"),
            ("{ log = [2.0, 1.0] }", "2 is not below 1"),
            ("{ uniform = [1.0, 1.0] }", "not below"),
            ("{ uniform = [0.0, inf] }", "not a finite number"),
            ("{ uniform = [0.0, \"a\"] }", "not a finite number"),
            ("{ int = [1.0, 2.0] }", "not an integer"),
            ("{ int = [2, 2] }", "not below"),
            ("{ choice = [] }", "nothing"),
            ("{ choice = [1, 2, 1] }", "twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn draws_are_fixed_by_the_seed_and_fill_their_ranges() {
        let ranges = [
            ("dropout", Range::Uniform(0.0, 0.5)),
            ("lr", Range::Log(1e-4, 1e-1)),
            ("patience", Range::Int(1, 3)),
            ("batch", Range::Choice(vec![16.into(), 32.into()])),
        ];
        let space = Space { ranges: ranges.map(|(name, range)| (name.to_owned(), range)).into() };
        let all: Vec<toml::Table> = (0..400).map(|trial| space.sample(7, trial)).collect();
        assert_eq!(all[5], space.sample(7, 5));
        assert_ne!(all[5], space.sample(8, 5));
        let floats = |name: &str| all.iter().map(|t| t[name].as_float().unwrap()).collect::<Vec<_>>();
        assert!(floats("dropout").iter().all(|v| (0.0..=0.5).contains(v)));
        let rates = floats("lr");
        assert!(rates.iter().all(|v| (1e-4..=1e-1).contains(v)));
        // A third of 400 in each decade, with three standard deviations to either side.
        for low in [1e-4, 1e-3, 1e-2] {
            let count = rates.iter().filter(|&&v| v >= low && v < low * 10.0).count();
            assert!((105..=162).contains(&count), "{low}: {count}");
        }
        for (name, values) in [("patience", vec![1, 2, 3]), ("batch", vec![16, 32])] {
            let found: std::collections::BTreeSet<i64> =
                all.iter().map(|t| t[name].as_integer().unwrap()).collect();
            assert_eq!(found.into_iter().collect::<Vec<_>>(), values);
        }
        // Four digits, so that what is shown can be given again.
        assert!(rates.iter().all(|v| format!("{v:e}").len() <= 8), "{rates:?}");
    }

    #[test]
    fn the_ends_of_ranges_stay_in_them() {
        for unit in [0.0, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let within = |range: Range, low: f64, high: f64| {
                let value = range.at(unit);
                let value = value.as_float().or(value.as_integer().map(|i| i as f64)).unwrap();
                assert!((low..=high).contains(&value), "{range:?} at {unit}: {value}");
            };
            within(Range::Uniform(0.123456, 0.123457), 0.123456, 0.123457);
            within(Range::Log(1.23456e-4, 1.23457e-4), 1.23456e-4, 1.23457e-4);
            within(Range::Int(i64::MIN, i64::MAX), i64::MIN as f64, i64::MAX as f64);
        }
    }
}
