//! Running the real program in a folder of its own.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

pub mod lm;
pub mod page;

/// An empty folder that is removed when dropped; the program runs in it.
pub struct Place(PathBuf);

impl Place {
    pub fn new(name: &str) -> Place {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warpsmith-cli-{}-{n}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// The names and contents of all files below `name`, or nothing.
    pub fn files(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.join(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push((path.strip_prefix(&self.0).unwrap().to_owned(), fs::read(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    /// A command line, split at spaces, ready to start.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpsmith"));
        command.args(line.split_whitespace()).current_dir(&self.0);
        command
    }

    pub fn run(&self, line: &str) -> Run {
        Run::of(line, self.command(line).output().unwrap())
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, line: &str) -> Run {
        let run = self.run(line);
        assert_eq!(run.code, 0, "{line}\n{}{}", run.stdout, run.stderr);
        run
    }

    /// Runs a command with --json that must succeed, and reads the one object that it prints.
    pub fn json(&self, line: &str) -> Value {
        let run = self.ok(&format!("{line} --json"));
        let mut values = serde_json::Deserializer::from_str(&run.stdout).into_iter::<Value>();
        let value = values.next().unwrap_or_else(|| panic!("{line}: stdout is empty")).unwrap();
        assert!(values.next().is_none() && value.is_object(), "{line}: not one object: {}", run.stdout);
        value
    }

    /// Runs a command that must fail with `code`, print nothing on stdout, and say all of `words` on stderr.
    pub fn fails(&self, line: &str, code: i32, words: &[&str]) {
        let run = self.run(line);
        assert_eq!(run.code, code, "{line}\n{}{}", run.stdout, run.stderr);
        assert!(run.stdout.is_empty(), "{line}: stdout {}", run.stdout);
        assert!(run.stderr.lines().any(|l| l.starts_with("error: ")), "{line}: {}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "{line}: {word:?} is not in {}", run.stderr);
        }
        assert!(!run.stderr.contains("panicked"), "{line}: {}", run.stderr);
    }

    /// As [`Place::fails`], and no file may have changed, come or gone.
    pub fn refuses(&self, line: &str, code: i32, words: &[&str]) {
        let before = self.files(".");
        self.fails(line, code, words);
        assert!(before == self.files("."), "{line}: it changed files");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// The exit code; -1 after a signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(line: &str, output: Output) -> Run {
        let text = |bytes| String::from_utf8(bytes).unwrap_or_else(|e| panic!("{line}: {e}"));
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// A table that a test made of `rows` lines: two numbers, a text, and a class that follows from the first number.
pub fn fruit(rows: usize) -> String {
    let mut text = "weight,length,colour,kind\n".to_owned();
    for i in 0..rows {
        let weight = (i * 37 % 101) as f64 / 10.0;
        let colour = ["red", "green", ""][i % 3];
        let kind = if weight > 5.0 { "pear" } else { "apple" };
        text += &format!("{weight},{},{colour},{kind}\n", i * 53 % 17);
    }
    text
}
