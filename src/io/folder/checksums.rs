//! The list of a model folder's files: `checksums.txt`.
//!
//! ```text
//! warpsmith-checksums 1 crc32
//! 0a1b2c3d 812 model.toml
//! 9f8e7d6c 92 checksums.txt
//! ```
//!
//! A line is checksum, length in bytes, name; lines are sorted by name, and the last one covers the lines before it,
//! so that no bit of the list itself can change unnoticed. CRC-32 finds every change of up to 32 neighbouring bits and
//! misses one random change in 4 billion; it is no defence against someone who wants to deceive, and does not claim
//! to be. `crc32` on a command line or Python's `zlib.crc32` computes the same.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, Write};

use super::CHECKSUMS;

const FAMILY: &str = "warpsmith-checksums ";
const HEAD: &str = "warpsmith-checksums 1 crc32";
/// The longest list accepted, in bytes: tens of thousands of files.
pub(super) const MAX_BYTES: u64 = 1 << 22;

/// One listed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Relative, with `/` between folders.
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) sum: u32,
}

/// The list, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Manifest {
    pub(super) lines: Vec<Line>,
}

impl Manifest {
    pub(super) fn get(&self, name: &str) -> Option<&Line> {
        self.lines.binary_search_by(|line| line.name.as_str().cmp(name)).ok().map(|i| &self.lines[i])
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for line in &self.lines {
            push(&mut text, line);
        }
        let own =
            Line { name: CHECKSUMS.into(), len: text.len() as u64, sum: crc32fast::hash(text.as_bytes()) };
        push(&mut text, &own);
        text
    }

    /// Reads a list; accepts exactly what [`Manifest::text`] writes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "the list is not UTF-8".to_owned())?;
        let head = text.lines().next().unwrap_or_default();
        if head != HEAD {
            let newer = if head.starts_with(FAMILY) { " (made by a newer version?)" } else { "" };
            return Err(format!("expected the first line {HEAD:?}, found {head:?}{newer}"));
        }
        let mut lines = Vec::new();
        for (i, text) in text.lines().enumerate().skip(1) {
            lines.push(parse_line(text).ok_or_else(|| format!("line {}: not a line of the list", i + 1))?);
        }
        if lines.pop().is_none_or(|own| own.name != CHECKSUMS) {
            return Err("truncated: the list's own checksum is missing".into());
        }
        if !lines.is_sorted_by(|a, b| a.name < b.name) {
            return Err("the list is not sorted, or names a file twice".into());
        }
        let manifest = Manifest { lines };
        // Rendering anew compares the own checksum, the line ends and every digit at once.
        if manifest.text() != text {
            Err("the list does not match its own checksum".into())
        } else {
            Ok(manifest)
        }
    }
}

fn push(text: &mut String, line: &Line) {
    writeln!(text, "{:08x} {} {}", line.sum, line.len, line.name).expect("writing to a String cannot fail");
}

fn parse_line(text: &str) -> Option<Line> {
    let (sum, rest) = text.split_once(' ')?;
    let (len, name) = rest.split_once(' ')?;
    check_name(name).ok()?;
    Some(Line { name: name.to_owned(), len: len.parse().ok()?, sum: u32::from_str_radix(sum, 16).ok()? })
}

/// Refuses names that could leave the folder, or that some system or the list itself cannot hold.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let bad_part = |part: &str| part.is_empty() || part == "." || part == "..";
    if name.split('/').any(bad_part) || name.contains(|c: char| c.is_control() || "\\:\"*?<>|".contains(c)) {
        return Err(format!("{name:?} is not a name for a file in a model folder"));
    }
    Ok(())
}

/// Computes length and checksum of what passes through.
pub(super) struct Summed<W> {
    inner: W,
    sum: crc32fast::Hasher,
    len: u64,
}

impl<W: Write> Summed<W> {
    pub(super) fn new(inner: W) -> Self {
        Summed { inner, sum: crc32fast::Hasher::new(), len: 0 }
    }

    pub(super) fn line(self, name: &str) -> Line {
        Line { name: name.to_owned(), len: self.len, sum: self.sum.finalize() }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let line = |name: &str, len, sum| Line { name: name.into(), len, sum };
        Manifest { lines: vec![line("model.toml", 12, 0xa1), line("state/sgd b.safetensors", 0, 0)] }
    }

    #[test]
    fn a_list_reads_back() {
        assert_eq!(Manifest::parse(sample().text().as_bytes()), Ok(sample()));
        assert_eq!(Manifest::parse(Manifest::default().text().as_bytes()), Ok(Manifest::default()));
        // The check value that CRC-32 is documented with.
        let mut summed = Summed::new(Vec::new());
        summed.write_all(b"12345").unwrap();
        summed.write_all(b"6789").unwrap();
        assert_eq!(summed.line("x"), Line { name: "x".into(), len: 9, sum: 0xcbf4_3926 });
    }

    #[test]
    fn no_bit_of_a_list_can_flip_and_no_byte_go_missing() {
        let text = sample().text();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..text.len() {
            assert!(Manifest::parse(&text.as_bytes()[..len]).is_err(), "length {len}");
        }
        assert!(Manifest::parse(format!("{text}\n").as_bytes()).is_err());
        assert!(Manifest::parse(text.replace('\n', "\r\n").as_bytes()).is_err());
    }

    #[test]
    fn names_stay_in_the_folder() {
        for name in ["a", "state/b.c", ".hidden", "a b", "é"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in
            ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "c:d", "a\nb", "a\0"]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
