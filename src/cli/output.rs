//! What is printed and where: results to stdout, all else to stderr. No failure to print panics.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, ErrorKind, Write};

use crate::{Error, Result};

/// Lets `write` write to stdout. Whoever closed it has seen enough: that is no error.
pub(super) fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = write(&mut out).and_then(|()| out.flush());
    // What is still in the buffer would be written again when it is dropped, and the failure with it.
    let _ = out.into_parts();
    match outcome {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("stdout", "write the result", e)),
        _ => Ok(()),
    }
}

/// Prints one JSON object and a line end to stdout.
pub(super) fn json_to_stdout(value: &serde_json::Value) -> Result<()> {
    to_stdout(|out| writeln!(out, "{value}"))
}

/// Prints a line to stderr. Nobody is there to be told if that fails.
pub(super) fn to_stderr(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Notes to the user: on stderr, or nowhere.
#[derive(Clone, Copy)]
pub(super) struct Log {
    pub(super) quiet: bool,
}

impl Log {
    pub(super) fn note(&self, line: &str) {
        if !self.quiet {
            to_stderr(line);
        }
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Named figures on one line: `accuracy 0.9777  f1 0.9712`.
pub(super) fn figures(metrics: &crate::train::Metrics) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(thousands(n), text);
        }
    }
}
