//! For data whose classes are not equally frequent: weights for the loss, and rows drawn so that classes come equally often.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::target::Targets;
use crate::random::Sequence;
use crate::{Error, ErrorKind, Result};

/// A factor for the loss of each class.
///
/// Its text form is `balanced` or the factors in the classes' order, as in `1,2.5`.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// rows / (classes · rows of the class): each class has the same say. Over the training part their mean is 1.
    Balanced,
    /// These, one a class in sorted order.
    Given(Vec<f64>),
}

impl ClassWeights {
    /// Refuses factors that are not finite and above 0 (kind `Argument`).
    pub fn check(&self) -> Result<()> {
        match self {
            ClassWeights::Given(weights)
                if !weights.iter().all(|w| w.is_finite() && *w > 0.0) || weights.is_empty() =>
            {
                Err(Error::argument(format!("class weights {self}: expected numbers above 0")))
            }
            _ => Ok(()),
        }
    }

    /// The factors for `classes` classes; `targets` are those of the training part.
    ///
    /// # Errors
    /// Kind `Argument`: the targets are no classes, or a factor is not above 0; kind `Data`: another number of factors.
    pub fn resolve(&self, targets: &Targets, classes: usize) -> Result<Vec<f32>> {
        self.check()?;
        let Targets::Classes(targets) = targets else {
            return Err(Error::argument(format!(
                "class weights {self}: the target is a number, and has no classes"
            )));
        };
        match self {
            ClassWeights::Given(weights) if weights.len() != classes => {
                let message =
                    format!("class weights {self}: {} weights for {classes} classes", weights.len());
                Err(Error::new(ErrorKind::Data, message))
            }
            ClassWeights::Given(weights) => Ok(weights.iter().map(|&w| w as f32).collect()),
            ClassWeights::Balanced => {
                let mut counts = vec![0u64; classes];
                for &class in targets {
                    if let Some(count) = usize::try_from(class).ok().and_then(|class| counts.get_mut(class)) {
                        *count += 1;
                    }
                }
                let present = counts.iter().filter(|&&count| count > 0).count();
                // A class without rows has no loss that its factor could change.
                let weight = |&count: &u64| match count {
                    0 => 1.0,
                    count => targets.len() as f64 / (present as f64 * count as f64),
                };
                Ok(counts.iter().map(|count| weight(count) as f32).collect())
            }
        }
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassWeights::Balanced => f.write_str("balanced"),
            ClassWeights::Given(weights) => {
                let weights: Vec<String> = weights.iter().map(f64::to_string).collect();
                f.write_str(&weights.join(","))
            }
        }
    }
}

impl FromStr for ClassWeights {
    type Err = Error;

    /// # Errors
    /// Kind `Argument`: neither `balanced` nor numbers above 0.
    fn from_str(text: &str) -> Result<ClassWeights> {
        if text == "balanced" {
            return Ok(ClassWeights::Balanced);
        }
        let expected = || {
            Error::argument(format!(
                "class weights {text:?}: expected balanced, or a number for each class as in 1,2.5"
            ))
        };
        let weights = text.split(',').map(|weight| weight.trim().parse().map_err(|_| expected()));
        let weights = ClassWeights::Given(weights.collect::<Result<_>>()?);
        weights.check()?;
        Ok(weights)
    }
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ClassWeights, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

/// Which training rows an epoch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Each row once, in random order
    #[default]
    Shuffled,
    /// As many rows, drawn so that classes come equally often; some come more than once
    Weighted,
}

impl Sampler {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Sampler::default()
    }
}

/// The rows of each class that has some.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    rows: Vec<Vec<u32>>,
}

impl Groups {
    /// Errors (kind `Argument`) where the targets are no classes.
    pub(super) fn of(targets: &Targets) -> Result<Groups> {
        let Targets::Classes(classes) = targets else {
            return Err(Error::argument("weighted sampling is for classes; the target is a number"));
        };
        let mut groups = std::collections::BTreeMap::<i64, Vec<u32>>::new();
        for (row, &class) in classes.iter().enumerate() {
            let row = u32::try_from(row)
                .map_err(|_| Error::new(ErrorKind::Data, "weighted sampling is for fewer than 2^32 rows"))?;
            groups.entry(class).or_default().push(row);
        }
        Ok(Groups { rows: groups.into_values().collect() })
    }

    /// A row of a class, every class and every row of it equally likely.
    pub(super) fn draw(&self, words: &mut Sequence) -> usize {
        let group = &self.rows[words.below(self.rows.len() as u64) as usize];
        group[words.below(group.len() as u64) as usize] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    #[test]
    fn weights_are_balanced_or_given() {
        let targets = Targets::Classes(vec![0, 0, 0, 0, 0, 0, 2, 2]);
        assert_eq!(ClassWeights::Balanced.resolve(&targets, 3).unwrap(), [8.0 / 12.0, 1.0, 2.0]);
        let given: ClassWeights = "1, 2.5,3".parse().unwrap();
        assert_eq!(
            (given.to_string(), given.resolve(&targets, 3).unwrap()),
            ("1,2.5,3".into(), vec![1.0, 2.5, 3.0])
        );
        assert_eq!(given.resolve(&targets, 2).unwrap_err().kind(), ErrorKind::Data);
        assert_eq!(given.resolve(&Targets::Values(vec![1.0]), 3).unwrap_err().kind(), ErrorKind::Argument);
        for text in ["", "1,0", "-1,1", "nan,1", "inf,1", "1;2", "even"] {
            assert_eq!(text.parse::<ClassWeights>().unwrap_err().kind(), ErrorKind::Argument, "{text:?}");
        }
    }

    #[test]
    fn classes_are_drawn_equally_often() {
        let classes: Vec<i64> = (0..1000).map(|row| i64::from(row % 100 == 0)).collect();
        let groups = Groups::of(&Targets::Classes(classes.clone())).unwrap();
        let mut words = Philox::new(1, 2).sequence(0);
        let rows: Vec<usize> = (0..10_000).map(|_| groups.draw(&mut words)).collect();
        let rare = rows.iter().filter(|&&row| classes[row] == 1).count();
        assert!((4800..5200).contains(&rare), "{rare}");
        let distinct: std::collections::BTreeSet<usize> = rows.into_iter().collect();
        assert!(distinct.len() > 980, "{}", distinct.len());
        assert_eq!(Groups::of(&Targets::Values(vec![])).unwrap_err().kind(), ErrorKind::Argument);
    }
}
