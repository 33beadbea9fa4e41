//! The structure's rules, checked over the sources: who may use whom, where `unsafe` lives, how long a file may grow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` with this extension, sorted.
fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![root().join(dir)];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The source without comments and without what stands below `#[cfg(test)]`.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
    text.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The level of a module: it may use modules of lower levels only. `None`: not a module of the crate's top level.
fn level(module: &str) -> Option<u32> {
    Some(match module {
        "error" | "dtype" | "shape" | "random" => 0,
        "cpu" | "device" | "io" => 1,
        "tensor" => 2,
        "param" => 3,
        "ops" => 4,
        "autograd" => 5,
        "nn" | "optim" | "dist" | "data" => 6,
        "train" => 7,
        "bench" | "selftest" => 8,
        "cli" => 9,
        _ => return None,
    })
}

/// The module behind a name that the crate's root re-exports.
fn home(name: &str) -> &str {
    match name {
        "Error" | "ErrorKind" | "Result" => "error",
        "DType" | "dispatch" => "dtype",
        "Shape" => "shape",
        "Device" => "device",
        "Tensor" => "tensor",
        "Arena" | "Param" => "param",
        module => module,
    }
}

/// The first names of all paths that start with `crate::`, groups in braces included.
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if c == ',' && depth == 0 {
                    names.insert(std::mem::take(&mut item));
                } else {
                    item.push(c);
                }
            }
            names.insert(item);
        } else {
            names.insert(rest.to_owned());
        }
    }
    let first =
        |s: &String| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    names.iter().map(first).filter(|s| !s.is_empty()).collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    let (mut wrong, mut edges) = (Vec::new(), 0);
    for path in files("src", "rs") {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let first = inside
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        let Some(own) = level(&first).filter(|_| !path.ends_with("tests.rs")) else { continue };
        for name in used(&code(&path)) {
            let module = home(&name);
            let Some(theirs) = level(module) else { continue };
            edges += 1;
            let leaves = own == 0 && theirs == 0;
            if module != first && theirs >= own && !leaves {
                wrong.push(format!("{} uses {module}", inside.display()));
            }
        }
    }
    assert!(edges > 100, "only {edges} uses found: does the parser still work?");
    assert!(wrong.is_empty(), "against the direction of docs/ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_lives_where_it_is_meant_to() {
    let allowed = ["cpu/simd.rs", "cpu/simd/", "tensor/storage.rs", "io/mmap.rs", "device/"];
    // A parent of an allowed file cannot forbid what its child needs.
    let parents = ["lib.rs", "main.rs", "cpu/mod.rs", "tensor/mod.rs", "io/mod.rs", "device/mod.rs"];
    for path in files("src", "rs") {
        let inside = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        if allowed.iter().any(|a| inside.starts_with(a)) {
            continue;
        }
        let text = code(&path);
        assert!(
            !text.contains("unsafe {") && !text.contains("unsafe fn") && !text.contains("unsafe impl"),
            "{inside}"
        );
        if !parents.contains(&inside.as_str()) {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{inside} lacks #![forbid(unsafe_code)]");
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for_and_stays_readable() {
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} has no header", path.display());
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines: has it outgrown one purpose?", path.display());
    }
}

#[test]
fn nothing_is_left_unfinished_or_skipped() {
    let marks = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore")];
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn only_the_command_line_reads_the_environment() {
    for path in files("src", "rs") {
        let inside = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        if !inside.starts_with("cli") && inside != "main.rs" && !inside.ends_with("/tests.rs") {
            assert!(!code(&path).contains("env::var"), "{inside} reads the environment");
        }
    }
}

#[test]
fn the_readme_names_the_commands_that_ci_runs() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    for command in ["cargo run --release -- train", "cargo test"] {
        assert!(readme.lines().any(|l| l.trim() == command), "the README lacks the line `{command}`");
    }
    assert!(ci.contains("README.md"), ".ci/run must take the test command from the README");
}
