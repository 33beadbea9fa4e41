//! What a trained model is worth on a part of the data. Definitions are scikit-learn's.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::data::Task;

/// Named figures of one evaluation.
pub type Metrics = BTreeMap<String, f64>;

/// The names of all figures that an evaluation for `task` can have, sorted.
pub fn names(task: Task) -> &'static [&'static str] {
    match task {
        Task::Binary => &["accuracy", "f1", "precision", "recall", "roc_auc"],
        Task::Multiclass => &["accuracy"],
        Task::Regression => &["mae", "r2", "rmse"],
    }
}

/// Share of rows whose predicted class is the true one. NaN without rows.
pub fn accuracy(predicted: &[i64], truth: &[i64]) -> f64 {
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count();
    right as f64 / truth.len() as f64
}

/// Figures of a two-class model: `scores` are probabilities of class 1, which counts as positive from 0.5 on.
///
/// `accuracy`, `precision`, `recall`, `f1` (0 where a denominator is 0, as scikit-learn gives) and `roc_auc` (left out if
/// only one class occurs, for it has no meaning then).
pub fn binary(scores: &[f64], truth: &[i64]) -> Metrics {
    let predicted: Vec<i64> = scores.iter().map(|&s| (s >= 0.5) as i64).collect();
    let count =
        |p: i64, t: i64| predicted.iter().zip(truth).filter(|&(&a, &b)| a == p && b == t).count() as f64;
    let (hits, false_alarms, misses) = (count(1, 1), count(1, 0), count(0, 1));
    let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
    let mut metrics = Metrics::from([
        ("accuracy".to_owned(), accuracy(&predicted, truth)),
        ("precision".to_owned(), ratio(hits, hits + false_alarms)),
        ("recall".to_owned(), ratio(hits, hits + misses)),
        ("f1".to_owned(), ratio(2.0 * hits, 2.0 * hits + false_alarms + misses)),
    ]);
    metrics.extend(roc_auc(scores, truth).map(|auc| ("roc_auc".to_owned(), auc)));
    metrics
}

/// The probability that a random row of class 1 scores above one of class 0, ties counting half. `None` without both.
pub fn roc_auc(scores: &[f64], truth: &[i64]) -> Option<f64> {
    let positives = truth.iter().filter(|&&t| t == 1).count() as f64;
    let negatives = truth.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut rank_sum = 0.0;
    let mut at = 0;
    while at < order.len() {
        let tied = order[at..].iter().take_while(|&&i| scores[i] == scores[order[at]]).count().max(1);
        // Ranks count from 1; tied rows share their mean rank.
        let rank = at as f64 + (tied as f64 + 1.0) / 2.0;
        rank_sum += rank * order[at..at + tied].iter().filter(|&&i| truth[i] == 1).count() as f64;
        at += tied;
    }
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

/// Figures of a regression: `rmse`, `mae`, and `r2` (left out if the truth is constant, for it has no meaning then).
pub fn regression(predicted: &[f64], truth: &[f64]) -> Metrics {
    let n = truth.len() as f64;
    let errors = || predicted.iter().zip(truth).map(|(p, t)| p - t);
    let squares: f64 = errors().map(|e| e * e).sum();
    let mean = truth.iter().sum::<f64>() / n;
    let spread: f64 = truth.iter().map(|t| (t - mean).powi(2)).sum();
    let mut metrics = Metrics::from([
        ("rmse".to_owned(), (squares / n).sqrt()),
        ("mae".to_owned(), errors().map(f64::abs).sum::<f64>() / n),
    ]);
    if spread > 0.0 {
        metrics.insert("r2".to_owned(), 1.0 - squares / spread);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_name_listed() {
        let keys = |metrics: Metrics| metrics.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(binary(&[0.1, 0.9], &[0, 1])), names(Task::Binary));
        assert_eq!(keys(regression(&[1.0, 2.0], &[1.0, 3.0])), names(Task::Regression));
    }

    fn assert_metrics(got: &Metrics, want: &[(&str, f64)]) {
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (name, value) in want {
            assert!((got[*name] - value).abs() < 1e-12, "{name}: {} instead of {value}", got[*name]);
        }
    }

    #[test]
    fn binary_figures_match_hand_counts() {
        // Two hits, one false alarm, one miss, one right rejection; of six pairs, four are in order and one is tied.
        let (scores, truth) = ([0.9, 0.5, 0.5, 0.1, 0.2], [1, 1, 0, 1, 0]);
        let auc = (2.0 + 1.0 + 0.5) / 6.0;
        let want = [
            ("accuracy", 0.6),
            ("precision", 2.0 / 3.0),
            ("recall", 2.0 / 3.0),
            ("f1", 2.0 / 3.0),
            ("roc_auc", auc),
        ];
        assert_metrics(&binary(&scores, &truth), &want);
    }

    #[test]
    fn empty_denominators_give_zero_and_one_class_has_no_auc() {
        let want = [("accuracy", 1.0), ("precision", 0.0), ("recall", 0.0), ("f1", 0.0)];
        assert_metrics(&binary(&[0.1, 0.2], &[0, 0]), &want);
    }

    #[test]
    fn auc_of_a_perfect_a_reversed_and_a_constant_score() {
        assert_eq!(roc_auc(&[0.1, 0.2, 0.8, 0.9], &[0, 0, 1, 1]), Some(1.0));
        assert_eq!(roc_auc(&[0.9, 0.8, 0.2, 0.1], &[0, 0, 1, 1]), Some(0.0));
        assert_eq!(roc_auc(&[0.5; 4], &[0, 0, 1, 1]), Some(0.5));
    }

    #[test]
    fn regression_figures_match_hand_sums() {
        let want = [("rmse", (5.0f64 / 3.0).sqrt()), ("mae", 1.0), ("r2", 1.0 - 5.0 / 2.0)];
        assert_metrics(&regression(&[1.0, 4.0, 2.0], &[1.0, 2.0, 3.0]), &want);
        assert!(!regression(&[1.0], &[2.0]).contains_key("r2"));
    }
}
