//! How a search proceeds: how many trials, for how many epochs, and who goes on.

#![forbid(unsafe_code)]

use std::fmt;

use super::space::Space;
use crate::{Error, Result};

/// The most trials of a search: their folders are numbered with five digits, and each is a model.
pub(super) const MAX_TRIALS: usize = 100_000;

/// How epochs are spent on trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Method {
    /// All trials are trained for all epochs
    #[default]
    Random,
    /// Successive halving: all start with few epochs, the best go on with more
    Halving,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Random => "random",
            Method::Halving => "halving",
        })
    }
}

/// All that decides which trials there are and how they are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Random search or successive halving.
    pub method: Method,
    /// How many settings are tried.
    pub trials: usize,
    /// The most epochs of a trial.
    pub epochs: u64,
    /// Of so many trials one goes on, with so many times the epochs.
    pub eta: u64,
    /// Where the settings are drawn from.
    pub seed: u64,
    /// What is searched.
    pub space: Space,
    /// The settings that all trials share, and a checksum of their data: what makes two searches the same.
    pub base: toml::Table,
}

/// A stage of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Epochs in all that its trials are trained to.
    pub epochs: u64,
    /// How many trials come to it at most.
    pub trials: usize,
}

impl Plan {
    /// Errors (kind `Argument`) if a number is out of range.
    pub fn check(&self) -> Result<()> {
        if self.trials == 0 {
            return Err(Error::argument("--trials 0: expected at least 1"));
        }
        if self.trials > MAX_TRIALS {
            return Err(Error::argument(format!("--trials {}: expected at most {MAX_TRIALS}", self.trials)));
        }
        if self.eta < 2 {
            return Err(Error::argument(format!("--eta {}: expected at least 2", self.eta)));
        }
        Ok(())
    }

    /// The stages, in order. The last trains for all epochs; each one before it for the `eta`-th part of the epochs of the
    /// next, and with `eta` times its trials, as far as trials and epochs go.
    pub fn rungs(&self) -> Vec<Rung> {
        let halvings = match self.method {
            Method::Random => 0,
            Method::Halving => log(self.trials as u64, self.eta).min(log(self.epochs, self.eta)),
        };
        let parts = |n: u64, k: u32| (n / self.eta.pow(k)).max(1);
        let rung = |k: u32| Rung {
            epochs: parts(self.epochs, halvings - k),
            trials: parts(self.trials as u64, k) as usize,
        };
        (0..=halvings).map(rung).collect()
    }

    /// The settings of trial number `trial`, those it shares with others left out.
    pub fn settings(&self, trial: usize) -> toml::Table {
        self.space.sample(self.seed, trial)
    }

    /// What `search.toml` holds.
    pub(super) fn to_table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        table.insert("method".to_owned(), self.method.to_string().into());
        let int = |n: u64| toml::Value::from(i64::try_from(n).unwrap_or(i64::MAX));
        table.insert("trials".to_owned(), int(self.trials as u64));
        table.insert("epochs".to_owned(), int(self.epochs));
        if self.method == Method::Halving {
            table.insert("eta".to_owned(), int(self.eta));
        }
        // As text: TOML's integers have a sign.
        table.insert("seed".to_owned(), self.seed.to_string().into());
        table.insert("base".to_owned(), self.base.clone().into());
        table.insert("search".to_owned(), self.space.to_table().into());
        table
    }
}

/// The largest `k` with `base^k <= n`.
fn log(n: u64, base: u64) -> u32 {
    n.max(1).ilog(base)
}

/// The `count` trials with the lowest losses, in the order of their numbers; of equal ones the first.
pub(super) fn promoted(mut losses: Vec<(usize, f64)>, count: usize) -> Vec<usize> {
    losses.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let mut trials: Vec<usize> = losses.into_iter().take(count).map(|(trial, _)| trial).collect();
    trials.sort_unstable();
    trials
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(method: Method, trials: usize, epochs: u64, eta: u64) -> Vec<(u64, usize)> {
        let (space, base) = (Space::default(), toml::Table::new());
        let plan = Plan { method, trials, epochs, eta, seed: 0, space, base };
        plan.rungs().iter().map(|rung| (rung.epochs, rung.trials)).collect()
    }

    #[test]
    fn halving_multiplies_epochs_and_divides_trials() {
        use Method::{Halving, Random};
        assert_eq!(rungs(Random, 20, 100, 3), [(100, 20)]);
        assert_eq!(rungs(Halving, 9, 9, 3), [(1, 9), (3, 3), (9, 1)]);
        assert_eq!(rungs(Halving, 20, 100, 3), [(11, 20), (33, 6), (100, 2)]);
        assert_eq!(rungs(Halving, 16, 8, 2), [(1, 16), (2, 8), (4, 4), (8, 2)]);
        // As far as trials and epochs go.
        assert_eq!(rungs(Halving, 1, 100, 3), [(100, 1)]);
        assert_eq!(rungs(Halving, 1000, 2, 3), [(2, 1000)]);
        assert_eq!(rungs(Halving, 2, 1, 2), [(1, 2)]);
    }

    #[test]
    fn the_lowest_losses_go_on() {
        let losses = vec![(0, 0.5), (1, 0.1), (2, 0.3), (3, 0.1), (4, 0.1)];
        assert_eq!(promoted(losses.clone(), 2), [1, 3]);
        assert_eq!(promoted(losses.clone(), 4), [1, 2, 3, 4]);
        assert_eq!(promoted(losses, 9), [0, 1, 2, 3, 4]);
        assert_eq!(promoted(Vec::new(), 3), [0usize; 0]);
    }
}
