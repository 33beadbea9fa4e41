//! Model folders under attack from outside: the process dies at every step and at random moments, the disk is full or cannot
//! be written. What is read afterwards is wholly the old model or wholly the new one.
#![cfg(feature = "train")]

mod faults_support;

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use faults_support::{Scratch, Swap, fill, number, save};
use warpsmith::ErrorKind;
use warpsmith::io::folder::{self, Folder};

/// What a child process does, told by its environment; in an ordinary run of the tests there is nothing to do.
#[test]
fn child() {
    let Ok(task) = std::env::var("WARPSMITH_TEST_CHILD") else { return };
    let dir = PathBuf::from(std::env::var_os("WARPSMITH_TEST_DIR").unwrap());
    let swap = if task.contains("two-steps") { Swap::TwoSteps } else { Swap::OneStep };
    if let Some(n) = task.strip_prefix("die-at ").and_then(|rest| rest.split(' ').next()) {
        let (n, seen): (usize, _) = (n.parse().unwrap(), Cell::new(0));
        let hook = |what: &str, _: &Path| {
            if seen.replace(seen.get() + 1) == n {
                std::process::abort();
            }
            swap.answer(what)
        };
        folder::save_with(&dir, &hook, |s| fill(s, 2)).unwrap();
        println!("survived");
    } else if task.starts_with("save-for-ever") {
        for k in number(&dir) + 1.. {
            folder::save_with(&dir, &|what, _| swap.answer(what), |s| fill(s, k)).unwrap();
            println!("saved {k}");
        }
    } else if task.starts_with("full-disk") {
        save(&dir, 1).unwrap();
        let error = folder::save(&dir, |staging| {
            fill(staging, 2)?;
            staging.file("state/big", |out| {
                let megabyte = vec![7; 1 << 20];
                (0..64).try_for_each(|_| {
                    out.write_all(&megabyte)
                        .map_err(|e| warpsmith::Error::io(dir.join("state/big"), "write", e))
                })
            })
        })
        .unwrap_err();
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains("No space left"), "{error}");
        assert_eq!(number(&dir), 1);
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "a temporary folder was left");
        folder::check_writable(&dir).unwrap();
        fs::write(dir.parent().unwrap().join("ballast"), vec![1; 64 << 20]).unwrap_err();
        assert_eq!(folder::check_writable(&dir).unwrap_err().kind(), ErrorKind::Data);
        println!("refused");
    } else if task.starts_with("read-only-disk") {
        for error in [save(&dir, 1).unwrap_err(), folder::check_writable(&dir).unwrap_err()] {
            assert!(error.kind() == ErrorKind::Data && error.to_string().contains("Read-only"), "{error}");
            assert!(error.help().is_some());
        }
        println!("refused");
    } else if task.starts_with("mount-point") {
        for error in [save(&dir, 1).unwrap_err(), folder::check_writable(&dir).unwrap_err()] {
            assert!(error.kind() == ErrorKind::Data && error.to_string().contains("mount point"), "{error}");
        }
        println!("refused");
    }
}

fn child_command(program: &str, task: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("WARPSMITH_TEST_CHILD", task).env("WARPSMITH_TEST_DIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

const CHILD_ARGUMENTS: [&str; 4] = ["--exact", "child", "--nocapture", "--test-threads=1"];

fn this_program() -> String {
    std::env::current_exe().unwrap().into_os_string().into_string().unwrap()
}

#[test]
fn death_before_any_step_leaves_a_whole_model() {
    for (swap, word) in [(Swap::OneStep, ""), (Swap::TwoSteps, " two-steps")] {
        let (mut deaths, mut fallbacks) = (0, 0);
        for n in 0.. {
            let scratch = Scratch::new(&format!("die-{swap:?}"));
            let dir = scratch.model();
            save(&dir, 1).unwrap();
            fs::write(dir.join("notes"), "mine").unwrap();
            let task = format!("die-at {n}{word}");
            let out = child_command(&this_program(), &task, &dir).args(CHILD_ARGUMENTS).output().unwrap();
            if out.status.success() {
                assert!(String::from_utf8_lossy(&out.stdout).contains("survived"));
                break;
            }
            deaths += 1;
            let k = number(&dir);
            assert!(k == 1 || k == 2, "step {n}: {k}");
            fallbacks += usize::from(Folder::open(&dir).unwrap().is_fallback());
            // The next save cleans up, whatever state the dead one left.
            save(&dir, 3).unwrap();
            assert_eq!(number(&dir), 3);
            assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "mine", "step {n}");
            assert_eq!(scratch.entries(), ["model"], "step {n}");
        }
        assert!(deaths > 15, "{deaths}");
        // The two-step way has two steps during which only `model.old` is whole.
        assert_eq!(fallbacks, if swap == Swap::TwoSteps { 2 } else { 0 });
    }
}

#[test]
fn kill_9_at_a_hundred_random_moments_leaves_a_whole_model() {
    for (swap, task) in [(Swap::OneStep, "save-for-ever"), (Swap::TwoSteps, "save-for-ever two-steps")] {
        let scratch = Scratch::new(&format!("kill-{swap:?}"));
        let dir = scratch.model();
        save(&dir, 1).unwrap();
        let (mut saves, mut unfinished, mut fallbacks) = (0, 0, 0);
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..100 {
            let before = number(&dir);
            let mut process =
                child_command(&this_program(), task, &dir).args(CHILD_ARGUMENTS).spawn().unwrap();
            let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
            let told = |line: &str| line.strip_prefix("saved ").and_then(|k| k.parse::<u64>().ok());
            let mut last = lines.by_ref().find_map(|line| told(&line.unwrap())).expect("the child saves");
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::thread::sleep(Duration::from_micros(random % 12_000));
            process.kill().unwrap();
            process.wait().unwrap();
            // A line may be cut off by the kill: a number cut short is smaller, which the check below allows.
            last = lines.map_while(|line| line.ok()).filter_map(|line| told(&line)).fold(last, u64::max);
            let k = number(&dir);
            assert!(k == last || k == last + 1, "{swap:?}, round {round}: told {last}, found {k}");
            saves += last - before;
            unfinished += usize::from(scratch.entries() != ["model"]);
            fallbacks += usize::from(Folder::open(&dir).unwrap().is_fallback());
        }
        println!(
            "{swap:?}: {saves} saves, 100 kills, {unfinished} in mid-save, {fallbacks} read from model.old"
        );
        assert!(unfinished > 20, "the kills missed the saves: {unfinished}");
        save(&dir, 1).unwrap();
        assert_eq!((number(&dir), scratch.entries()), (1, vec!["model".to_owned()]));
    }
}

/// Runs a child in a mount namespace of its own, after `mount`; `None`, with a line that says so, where that is not
/// allowed.
fn in_own_mounts(name: &str, mount: &str, task: &str, dir: &str) -> Option<()> {
    let scratch = Scratch::new(name);
    let script = format!("{mount} || exit 77; exec \"$0\" {}", CHILD_ARGUMENTS.join(" "));
    let out = child_command("unshare", task, &scratch.0.join(dir))
        .args(["-r", "-m", "sh", "-c", &script, &this_program()])
        .current_dir(&scratch.0)
        .stderr(Stdio::piped())
        .output();
    match out {
        Ok(out) if out.status.success() => {
            assert!(String::from_utf8_lossy(&out.stdout).contains("refused"));
            return Some(());
        }
        Ok(out) if out.stderr.starts_with(b"unshare:") || out.status.code() == Some(77) => {
            println!("skipped: {task}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(out) => panic!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        Err(e) => println!("skipped: {task}: no unshare: {e}"),
    }
    None
}

#[test]
fn a_full_disk_leaves_the_old_model() {
    let mount = "mkdir disk && mount -t tmpfs -o size=1m none disk";
    in_own_mounts("full", mount, "full-disk", "disk/model");
}

#[test]
fn a_read_only_disk_is_refused() {
    let mount = "mkdir disk && mount -t tmpfs -o ro none disk";
    in_own_mounts("read-only", mount, "read-only-disk", "disk/model");
}

#[test]
fn a_mount_point_is_refused() {
    let mount = "mkdir 'a disk' && mount -t tmpfs none 'a disk'";
    in_own_mounts("mount", mount, "mount-point", "a disk");
}
