//! [`Scaling`]: one column's linear map to numbers a network likes, and back.
//!
//! Statistics are float64, summed in row order. A column that is constant in training maps to zeros, at prediction too,
//! whatever it holds there: nothing was learnt from it, and an untrained weight must not turn a first difference into a
//! large answer.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The rule that a scaling is fitted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Mean 0 and standard deviation 1 (that of the population, as in scikit-learn).
    #[default]
    Standard,
    /// Minimum 0 and maximum 1 over the training part; other rows may fall outside.
    MinMax,
    /// As it is.
    None,
}

/// `y = (x - shift) / divisor`; a divisor of 0 gives 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// The rule it was fitted by.
    pub rule: Scale,
    /// What becomes 0.
    pub shift: f64,
    /// The distance from `shift` that becomes 1; 0 for a constant column.
    pub divisor: f64,
}

impl Scaling {
    /// Fits `rule` to `values`; nothing where the statistics leave the range of f64.
    pub fn fit(rule: Scale, values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        let none = Scaling { rule, shift: 0.0, divisor: 1.0 };
        let (mut count, mut min, mut max) = (0u64, f64::INFINITY, f64::NEG_INFINITY);
        for value in values.clone() {
            (count, min, max) = (count + 1, min.min(value), max.max(value));
        }
        if rule == Scale::None || count == 0 {
            return Some(none);
        }
        let range = max - min;
        let scaling = if range == 0.0 {
            // Not the computed mean, which may be off in its last bit and make the differences look like a signal.
            Scaling { rule, shift: min, divisor: 0.0 }
        } else if rule == Scale::MinMax {
            Scaling { rule, shift: min, divisor: range }
        } else {
            let mean = values.clone().sum::<f64>() / count as f64;
            // In units of the range: squares of very large or small values leave the range of f64.
            let variance = values.map(|value| ((value - mean) / range).powi(2)).sum::<f64>() / count as f64;
            Scaling { rule, shift: mean, divisor: range * variance.sqrt() }
        };
        scaling.is_sound().then_some(scaling)
    }

    /// Whether the numbers are finite and the divisor not negative.
    pub fn is_sound(&self) -> bool {
        self.shift.is_finite() && self.divisor.is_finite() && self.divisor >= 0.0
    }

    /// The scaled value.
    pub fn apply(&self, value: f64) -> f64 {
        if self.divisor == 0.0 { 0.0 } else { (value - self.shift) / self.divisor }
    }

    /// The value whose scaled value is `scaled`.
    pub fn invert(&self, scaled: f64) -> f64 {
        scaled * self.divisor + self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(rule: Scale, values: &[f64]) -> Scaling {
        Scaling::fit(rule, values.iter().copied()).unwrap()
    }

    #[test]
    fn statistics_are_those_of_the_definition() {
        let standard = fit(Scale::Standard, &[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!(standard.shift, 5.0);
        approx::assert_relative_eq!(standard.divisor, 2.0, max_relative = 1e-15);
        approx::assert_relative_eq!(standard.apply(9.0), 2.0, max_relative = 1e-15);
        approx::assert_relative_eq!(standard.invert(2.0), 9.0, max_relative = 1e-15);
        let min_max = fit(Scale::MinMax, &[2.0, 4.0, 10.0]);
        assert_eq!((min_max.apply(2.0), min_max.apply(10.0), min_max.apply(6.0)), (0.0, 1.0, 0.5));
        assert_eq!(fit(Scale::None, &[3.0, 7.0]).apply(3.5), 3.5);
    }

    #[test]
    fn constants_become_zeros_even_where_their_mean_is_inexact() {
        for rule in [Scale::Standard, Scale::MinMax] {
            let scaling = fit(rule, &[0.1; 7]);
            assert_eq!((scaling.apply(0.1), scaling.apply(5.0)), (0.0, 0.0));
            assert_eq!(scaling.invert(123.0), 0.1);
        }
    }

    #[test]
    fn extreme_values_are_scaled_or_refused() {
        let small = fit(Scale::Standard, &[1e-200, 3e-200]);
        approx::assert_relative_eq!(small.apply(3e-200), 1.0, max_relative = 1e-12);
        let large = fit(Scale::Standard, &[-1e300, 1e300]);
        approx::assert_relative_eq!(large.apply(1e300), 1.0, max_relative = 1e-12);
        assert_eq!(Scaling::fit(Scale::Standard, [f64::MAX, f64::MAX, 0.0].into_iter()), None);
        assert_eq!(Scaling::fit(Scale::MinMax, [f64::MAX, f64::MIN].into_iter()), None);
    }
}
