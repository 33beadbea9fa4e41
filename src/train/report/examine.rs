//! A model's answers to the rows that it is judged on: what it confuses, and where it errs most.

#![forbid(unsafe_code)]

use super::picture;
use crate::data::{Part, Preparation, Targets};
use crate::train::checkpoint::Judge;
use crate::train::model::{Answers, Model};
use crate::{Error, Result};

/// How many of the worst rows are shown.
const WORST: usize = 24;

/// What [`examine`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Examined {
    /// The part that was looked at.
    pub judge: Judge,
    /// Its rows.
    pub rows: usize,
    /// The mean loss.
    pub loss: f64,
    /// All answers, summed up.
    pub findings: Findings,
    /// The rows with the largest loss, the largest first.
    pub worst: Vec<Example>,
}

/// All answers to a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Findings {
    /// For a classifier.
    Classes {
        /// The classes' names.
        names: Vec<String>,
        /// Numbers of rows, `[true class, answer]`, row-major.
        confusion: Vec<u64>,
    },
    /// For a regression.
    Values {
        /// The target's name.
        target: String,
        /// True value and answer of each row, in the target's own units.
        pairs: Vec<(f64, f64)>,
    },
}

/// One row and the answer to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The row of its table, from 1.
    pub row: usize,
    /// Its file, where each row has one of its own.
    pub name: Option<String>,
    /// Its share of the loss: `-ln` of the true class's probability, or the squared error in scaled units.
    pub loss: f64,
    /// The true class or value.
    pub truth: String,
    /// The answer.
    pub answer: String,
    /// The probabilities of the answer and of the true class.
    pub probabilities: Option<(f64, f64)>,
    /// The row as a picture: PNG.
    pub picture: Option<Vec<u8>>,
}

/// Asks `model` about the rows of `part`.
pub fn examine(model: &Model, preparation: &Preparation, judge: Judge, part: &Part) -> Result<Examined> {
    let (answers, loss) = model.evaluate(&part.inputs, Some(&part.targets))?;
    let rows = part.rows();
    let (losses, findings) = match (&answers, &part.targets) {
        (Answers::Classes { probabilities, classes }, Targets::Classes(truth)) => {
            let mut confusion = vec![0; classes * classes];
            for (&truth, answer) in truth.iter().zip(answers.classes()) {
                confusion[truth as usize * classes + answer as usize] += 1;
            }
            let names = preparation.target().classes().to_vec();
            let losses = truth.iter().zip(probabilities.chunks_exact(*classes));
            let losses =
                losses.map(|(&t, p)| -f64::from(p[t as usize]).max(f64::MIN_POSITIVE).ln()).collect();
            (losses, Findings::Classes { names, confusion })
        }
        (Answers::Values(values), Targets::Values(truth)) => {
            let target = preparation.target();
            let pairs =
                truth.iter().zip(values).map(|(&t, &v)| (target.invert(t), target.invert(v))).collect();
            let losses: Vec<f64> = truth.iter().zip(values).map(|(t, v)| f64::from(t - v).powi(2)).collect();
            (losses, Findings::Values { target: target.name().to_owned(), pairs })
        }
        _ => return Err(Error::internal("answers of another kind than the targets")),
    };
    let mut order: Vec<usize> = (0..rows).collect();
    // Ties in the order of the part, so that the page is the same each time.
    order.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
    let example = |&i: &usize| {
        let (truth, answer, probabilities) = match (&findings, &answers, &part.targets) {
            (
                Findings::Classes { names, .. },
                Answers::Classes { probabilities, classes },
                Targets::Classes(t),
            ) => {
                let row = &probabilities[i * classes..(i + 1) * classes];
                let truth = t[i] as usize;
                let answer =
                    Answers::Classes { probabilities: row.to_vec(), classes: *classes }.classes()[0] as usize;
                let both = (f64::from(row[answer]), f64::from(row[truth]));
                (names[truth].clone(), names[answer].clone(), Some(both))
            }
            (Findings::Values { pairs, .. }, ..) => {
                let (truth, answer) = pairs[i];
                let off = super::number(answer - truth);
                (super::number(truth), format!("{} (off by {off})", super::number(answer)), None)
            }
            _ => (String::new(), String::new(), None),
        };
        let mut inputs = Vec::new();
        part.inputs.gather(&[i], &mut inputs);
        Example {
            row: part.source_rows[i] + 1,
            name: part.names.get(i).cloned(),
            loss: losses[i],
            truth,
            answer,
            probabilities,
            picture: picture::png(&inputs, preparation),
        }
    };
    let worst = order.iter().take(WORST).map(example).collect();
    Ok(Examined { judge, rows, loss, findings, worst })
}
