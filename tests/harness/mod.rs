//! What the tests over all ops share beside `warpsmith::selftest`: the report, and its filter.

#![allow(dead_code, unused_imports)] // Each test binary uses a part.

use std::io::Write as _;

use warpsmith::Device;
pub use warpsmith::selftest::{
    AnyCase, AnyOp, Rng, Subject, Value, bits, compare, guarded, inputs_of, layouts, subjects, tensor,
};

pub const CPU: Device = Device::Cpu;

/// Collects what was checked and what failed, by op.
pub struct Report {
    title: &'static str,
    rows: Vec<(&'static str, usize, usize)>,
    failures: Vec<String>,
    /// `WARPSMITH_CASE=op[:case[:dtype[:layout]]]`: only what matches is run.
    filter: Option<String>,
}

impl Report {
    pub fn new(title: &'static str) -> Report {
        Report { title, rows: Vec::new(), failures: Vec::new(), filter: std::env::var("WARPSMITH_CASE").ok() }
    }

    /// Starts the row of an op; false if the filter leaves it out.
    pub fn op(&mut self, name: &'static str) -> bool {
        let wanted = self.filter.as_ref().is_none_or(|f| f.split(':').next() == Some(name));
        if wanted {
            self.rows.push((name, 0, 0));
        }
        wanted
    }

    /// Whether the filter lets `id` (`op:case:dtype:layout`, or a prefix) through.
    pub fn wants(&self, id: &str) -> bool {
        let Some(filter) = &self.filter else { return true };
        id.split(':').zip(filter.split(':')).all(|(a, b)| a == b)
    }

    /// Records one comparison of the current op.
    pub fn check(&mut self, id: &str, outcome: std::result::Result<(), String>) {
        let Some(row) = self.rows.last_mut() else { return };
        row.1 += 1;
        if let Err(why) = outcome {
            row.2 += 1;
            // The first few of an op tell; the rest would bury those of other ops.
            if row.2 <= 6 {
                self.failures.push(format!(
                    "{id}: {why}\n    again: WARPSMITH_CASE={id} cargo test --test {}",
                    env!("CARGO_CRATE_NAME")
                ));
            }
        }
    }

    /// Prints the counts past the test runner's capture, and fails if anything failed or less than `floor` comparisons
    /// were made (a harness that silently checks nothing must not pass).
    pub fn finish(self, floor: usize) {
        let (ops, total) = (self.rows.len(), self.rows.iter().map(|r| r.1).sum::<usize>());
        let failed: usize = self.rows.iter().map(|r| r.2).sum();
        let mut text = format!("{}: {ops} ops, {total} comparisons, {failed} failed\n", self.title);
        if failed > 0 || std::env::var_os("WARPSMITH_TABLE").is_some() {
            for (name, checks, failed) in &self.rows {
                text += &format!("    {name:<28} {checks:>7} comparisons {failed:>6} failed\n");
            }
        }
        // Not eprint!: that is captured while the test passes.
        let _ = std::io::stderr().write_all(text.as_bytes());
        assert!(failed == 0, "{failed} of {total} comparisons failed\n{}", self.failures.join("\n"));
        assert!(
            self.filter.is_some() || total >= floor,
            "only {total} comparisons were made; there were at least {floor}"
        );
    }
}
