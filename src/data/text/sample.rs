//! Drawing the next token from a model's logits.
#![forbid(unsafe_code)]

use crate::random::Philox;
use crate::{Error, ErrorKind, Result};

const SAMPLE_SITE: u32 = 0x544f_4b53;

/// Draws tokens. Filters in Hugging Face's order: temperature, then `top_k`, then `top_p`.
///
/// The draw of a step depends on seed, step and logits alone. Comparisons are exact; the exponentials are the platform's, whose
/// last bit may differ between C libraries.
///
/// ```
/// use warpsmith::data::text::Sampler;
///
/// let mut greedy = Sampler { temperature: 0.0, ..Sampler::default() };
/// assert_eq!(greedy.next(&[0.5, 2.0, 2.0])?, 1);
/// # Ok::<(), warpsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// Divides the logits: 1 leaves them, less sharpens, 0 takes the largest (the lowest id of equals).
    pub temperature: f64,
    /// Only the `top_k` largest logits, and their equals; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens, as many as it takes to reach this probability, at least one; 1: all.
    pub top_p: f64,
    /// Which draws.
    pub seed: u64,
    /// The number of the next draw; counts up.
    pub step: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0, step: 0 }
    }
}

impl Sampler {
    /// # Errors
    /// Kind `Argument`: a temperature that is negative or not finite, a `top_p` outside (0, 1].
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let t = self.temperature;
            return Err(Error::argument(format!("a temperature of {t}: expected 0 or more")));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let p = self.top_p;
            return Err(Error::argument(format!("a top_p of {p}: expected more than 0, at most 1")));
        }
        Ok(())
    }

    /// Draws the token that follows. Give only the logits of real tokens, without a vocabulary's padding; a logit of -inf is
    /// never drawn.
    ///
    /// # Errors
    /// As [`Sampler::check`]; kind `Argument`: no logits; kind `Diverged`: a logit is NaN or +inf (says which), or all are -inf.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        self.check()?;
        if logits.is_empty() {
            return Err(Error::argument("there are no logits to draw from"));
        }
        if let Some(at) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
            let why = format!("the logit of token {at} is {}", logits[at]);
            return Err(Error::new(ErrorKind::Diverged, why));
        }
        let mut best = 0;
        for (id, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = id;
            }
        }
        if logits[best] == f32::NEG_INFINITY {
            return Err(Error::new(ErrorKind::Diverged, "all logits are -inf"));
        }
        let step = self.step;
        self.step = step.wrapping_add(1);
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }

        let mut left: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| {
            // No NaN is left; equals keep the order of their ids.
            logits[*b as usize].total_cmp(&(logits[*a as usize])).then(a.cmp(b))
        };
        if self.top_k > 0 && self.top_k < left.len() {
            left.select_nth_unstable_by(self.top_k - 1, by_logit);
            let least = logits[left[self.top_k - 1] as usize];
            left = (0..logits.len() as u32).filter(|&id| logits[id as usize] >= least).collect();
        }
        // Relative to the largest, so that no exponential overflows.
        let top = f64::from(logits[best]);
        let weight = |id: u32| ((f64::from(logits[id as usize]) - top) / self.temperature).exp();
        if self.top_p < 1.0 {
            left.sort_unstable_by(by_logit);
            let enough = self.top_p * left.iter().map(|&id| weight(id)).sum::<f64>();
            let mut sum = 0.0;
            let needed = left.iter().position(|&id| {
                sum += weight(id);
                sum >= enough
            });
            left.truncate(needed.map_or(left.len(), |last| last + 1));
        }
        let weights: Vec<f64> = left.iter().map(|&id| weight(id)).collect();
        let mut rest = Philox::for_step(self.seed, SAMPLE_SITE, step as u32).uniform_f64_at(step >> 32)
            * weights.iter().sum::<f64>();
        for (&id, &weight) in left.iter().zip(&weights) {
            if rest < weight {
                return Ok(id);
            }
            rest -= weight;
        }
        // Rounding has eaten the last share: the most likely token is never wrong.
        Ok(best as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each token is drawn.
    fn counts(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.next(logits).unwrap() as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 5] = [1.0, 3.0, f32::NEG_INFINITY, 2.0, 3.0];

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(counts(Sampler { temperature: 0.0, ..Sampler::default() }, &LOGITS, 9), [0, 9, 0, 0, 0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        for temperature in [0.5, 1.0, 2.0] {
            let weights: Vec<f64> = LOGITS.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let draws = 20_000;
            let counts = counts(Sampler { temperature, ..Sampler::default() }, &LOGITS, draws);
            assert_eq!(counts[2], 0);
            for (count, weight) in counts.iter().zip(&weights) {
                let p = weight / sum;
                let error = (p * (1.0 - p) / draws as f64).sqrt();
                assert!(
                    (*count as f64 / draws as f64 - p).abs() <= 4.0 * error,
                    "{counts:?} at {temperature}"
                );
            }
        }
    }

    #[test]
    fn top_k_keeps_equals_and_top_p_what_it_takes() {
        let drawn = |sampler: Sampler| -> Vec<usize> {
            let counts = counts(sampler, &LOGITS, 2000);
            (0..5).filter(|&i| counts[i] > 0).collect()
        };
        let k = |top_k| drawn(Sampler { top_k, ..Sampler::default() });
        assert_eq!(
            [k(1), k(2), k(3), k(4), k(9)],
            [vec![1, 4], vec![1, 4], vec![1, 3, 4], vec![0, 1, 3, 4], vec![0, 1, 3, 4]]
        );
        // Probabilities: 0.4 twice, 0.147, 0.054.
        let p = |top_p| drawn(Sampler { top_p, ..Sampler::default() });
        assert_eq!(
            [p(1e-9), p(0.39), p(0.5), p(0.9), p(0.99)],
            [vec![1], vec![1], vec![1, 4], vec![1, 3, 4], vec![0, 1, 3, 4]]
        );
        // top_k first: of its two, each has one half.
        assert_eq!(drawn(Sampler { top_k: 2, top_p: 0.45, ..Sampler::default() }), [1]);
        // Temperature first: cold enough, the two largest are all.
        assert_eq!(drawn(Sampler { temperature: 0.05, top_p: 0.999, ..Sampler::default() }), [1, 4]);
    }

    #[test]
    fn a_step_draws_the_same_whatever_came_before() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 / 3.0).collect();
        let mut all = Sampler { seed: 5, ..Sampler::default() };
        let drawn: Vec<u32> = (0..20).map(|_| all.next(&logits).unwrap()).collect();
        assert_eq!(all.step, 20);
        for (step, id) in drawn.iter().enumerate() {
            let mut one = Sampler { seed: 5, step: step as u64, ..Sampler::default() };
            assert_eq!(one.next(&logits).unwrap(), *id);
        }
        let mut other = Sampler { seed: 6, ..Sampler::default() };
        assert_ne!((0..20).map(|_| other.next(&logits).unwrap()).collect::<Vec<_>>(), drawn);
    }

    #[test]
    fn what_cannot_be_drawn_from_is_an_error() {
        let mut sampler = Sampler::default();
        for (logits, word) in [
            (&[0.0, f32::NAN][..], "token 1 is NaN"),
            (&[f32::INFINITY, 0.0], "token 0 is inf"),
            (&[f32::NEG_INFINITY; 2], "all logits"),
        ] {
            let error = sampler.next(logits).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Diverged);
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(sampler.next(&[]).unwrap_err().kind(), ErrorKind::Argument);
        assert_eq!(sampler.step, 0);
        for (temperature, top_p) in
            [(-1.0, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f64::NAN)]
        {
            let mut sampler = Sampler { temperature, top_p, ..Sampler::default() };
            assert_eq!(sampler.next(&[0.0]).unwrap_err().kind(), ErrorKind::Argument);
        }
    }
}
