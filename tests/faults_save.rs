//! Model folders under attack: every operation fails once, every bit flips, every file is cut short, strangers' files stand
//! in the way. What is read afterwards is wholly the old model or wholly the new one.
#![cfg(feature = "train")]

mod faults_support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use faults_support::{Scratch, Swap, can_exchange, fill, number, save};
use warpsmith::ErrorKind;
use warpsmith::io::folder::{self, CHECKSUMS, Folder, MODEL};
use warpsmith::io::{HostTensor, safetensors};

#[test]
fn a_saved_folder_reads_back_and_is_replaced() {
    for swap in Swap::BOTH {
        let scratch = Scratch::new(&format!("roundtrip-{swap:?}"));
        for k in 1..4 {
            folder::save_with(scratch.model(), &|what, _| swap.answer(what), |s| fill(s, k)).unwrap();
            assert_eq!(number(&scratch.model()), k);
            assert_eq!(scratch.entries(), ["model"]);
            assert!(!Folder::open(scratch.model()).unwrap().is_fallback());
            let mut names: Vec<_> = fs::read_dir(scratch.model())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, [CHECKSUMS, "model.safetensors", MODEL, "state"]);
        }
    }
}

#[test]
fn equal_content_gives_equal_folders_and_the_list_is_this() {
    let scratch = Scratch::new("golden");
    folder::save(scratch.model(), |staging| {
        staging.bytes("state/x", b"")?;
        staging.bytes(MODEL, b"123456789")
    })
    .unwrap();
    let list = "warpsmith-checksums 1 crc32\ncbf43926 9 model.toml\n00000000 0 state/x\n";
    let read = fs::read_to_string(scratch.model().join(CHECKSUMS)).unwrap();
    assert_eq!(&read[..list.len()], list);
    assert!(read[list.len()..].ends_with(" 69 checksums.txt\n"), "{read}");
}

#[test]
fn awkward_targets_work() {
    let scratch = Scratch::new("targets");
    let nested = scratch.0.join("a/b/c/model");
    save(&nested, 1).unwrap();
    assert_eq!(number(&nested), 1);
    save(&scratch.0.join("a/b/c/model/"), 2).unwrap();
    assert_eq!(number(&nested), 2);
    save(&scratch.0.join("a/b/../b/c/model"), 3).unwrap();
    assert_eq!(number(&nested), 3);
    let empty = scratch.0.join("empty");
    fs::create_dir(&empty).unwrap();
    save(&empty, 4).unwrap();
    assert_eq!(number(&empty), 4);
    #[cfg(unix)]
    {
        let link = scratch.0.join("link");
        std::os::unix::fs::symlink(&nested, &link).unwrap();
        save(&link, 5).unwrap();
        assert!(link.is_symlink());
        assert_eq!((number(&link), number(&nested)), (5, 5));
    }
    for bad in ["/", "/..", "missing/.."] {
        let error = save(Path::new(bad), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{bad}: {error}");
        assert_eq!(folder::check_writable(bad).unwrap_err().kind(), ErrorKind::Argument);
    }
}

#[test]
fn a_strangers_folder_is_never_replaced() {
    let scratch = Scratch::new("stranger");
    let dir = scratch.model();
    fs::create_dir(&dir).unwrap();
    for name in ["thesis.txt", MODEL] {
        // The second round: someone's own file that happens to be called model.toml.
        fs::write(dir.join(name), "years of work").unwrap();
        for error in [save(&dir, 1).unwrap_err(), folder::check_writable(&dir).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert_eq!(error.place().unwrap().file, dir.canonicalize().unwrap());
        }
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), "years of work");
        assert_eq!(scratch.entries(), ["model"]);
    }
    let file = scratch.0.join("file");
    fs::write(&file, "text").unwrap();
    for dir in [&file, &file.join("model")] {
        for error in [save(dir, 1).unwrap_err(), folder::check_writable(dir).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}

#[test]
fn unlisted_files_move_to_the_new_folder_and_listed_ones_do_not() {
    for swap in Swap::BOTH {
        let scratch = Scratch::new(&format!("carry-{swap:?}"));
        let dir = scratch.model();
        folder::save(&dir, |staging| {
            staging.bytes("state/of-old-only", b"x")?;
            fill(staging, 1)
        })
        .unwrap();
        fs::create_dir_all(dir.join("notes/deep")).unwrap();
        fs::write(dir.join("notes/deep/a.txt"), "mine").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/nowhere", dir.join("notes/link")).unwrap();
        let mut log =
            fs::OpenOptions::new().create(true).append(true).open(dir.join("metrics.jsonl")).unwrap();
        log.write_all(b"1\n").unwrap();
        folder::save_with(&dir, &|what, _| swap.answer(what), |s| fill(s, 2)).unwrap();
        // A log that is kept open goes on in the new folder.
        log.write_all(b"2\n").unwrap();
        assert_eq!(number(&dir), 2);
        assert_eq!(fs::read_to_string(dir.join("notes/deep/a.txt")).unwrap(), "mine");
        #[cfg(unix)]
        assert_eq!(fs::read_link(dir.join("notes/link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(fs::read_to_string(dir.join("metrics.jsonl")).unwrap(), "1\n2\n");
        assert!(!dir.join("state/of-old-only").exists());
        assert_eq!(scratch.entries(), ["model"]);
    }
}

#[test]
fn a_fill_that_fails_or_forgets_leaves_the_old_model() {
    let scratch = Scratch::new("fill");
    let dir = scratch.model();
    save(&dir, 1).unwrap();
    let diverged = folder::save(&dir, |staging| {
        fill(staging, 2)?;
        Err(warpsmith::Error::new(ErrorKind::Diverged, "loss is NaN"))
    });
    assert_eq!(diverged.unwrap_err().kind(), ErrorKind::Diverged);
    assert_eq!(folder::save(&dir, |s| s.bytes("x", b"")).unwrap_err().kind(), ErrorKind::Internal);
    for name in [MODEL, CHECKSUMS, "../x", "/x", "a//b", ""] {
        let error = folder::save(&dir, |staging| {
            staging.bytes(MODEL, b"")?;
            staging.bytes(name, b"")
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Argument, "{name:?}");
    }
    let panicked = std::panic::catch_unwind(|| folder::save(&dir, |_| panic!("a bug in the caller")));
    assert!(panicked.is_err());
    assert_eq!(number(&dir), 1);
    assert_eq!(scratch.entries(), ["model"]);
}

#[test]
fn all_is_synced_before_the_swap_and_the_parent_after_it() {
    for (swap, tail) in [
        (Swap::OneStep, &["exchange model", "sync .", "remove NEW"][..]),
        (
            Swap::TwoSteps,
            &[
                "exchange model",
                "mark model/.warpsmith-moved-aside",
                "move aside model",
                "sync .",
                "rename NEW",
                "sync .",
                "remove NEW",
            ],
        ),
    ] {
        if swap == Swap::OneStep && !can_exchange() {
            continue;
        }
        let scratch = Scratch::new(&format!("order-{swap:?}"));
        save(&scratch.model(), 1).unwrap();
        let root = scratch.0.canonicalize().unwrap();
        let steps = RefCell::new(Vec::new());
        let hook = |what: &str, path: &Path| {
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let shown = match path.split_once('/') {
                _ if path.is_empty() => ".".to_owned(),
                Some((top, rest)) if top.starts_with(".model.tmp-") => format!("NEW/{rest}"),
                None if path.starts_with(".model.tmp-") => "NEW".to_owned(),
                _ => path.to_owned(),
            };
            steps.borrow_mut().push(format!("{what} {shown}"));
            swap.answer(what)
        };
        folder::save_with(scratch.model(), &hook, |s| fill(s, 2)).unwrap();
        let mut want = vec!["create a folder beside NEW", "set the permissions of NEW"];
        want.extend(["create NEW/model.toml", "write NEW/model.toml", "sync NEW/model.toml"]);
        want.extend([
            "create NEW/model.safetensors",
            "write NEW/model.safetensors",
            "sync NEW/model.safetensors",
        ]);
        want.extend([
            "create NEW/state",
            "create NEW/state/step",
            "write NEW/state/step",
            "sync NEW/state/step",
        ]);
        want.extend(["create NEW/checksums.txt", "write NEW/checksums.txt", "sync NEW/checksums.txt"]);
        want.extend(["sync NEW/state", "sync NEW"]);
        want.extend(tail);
        assert_eq!(*steps.borrow(), want);
    }
}

#[test]
fn whichever_operation_fails_the_old_model_stays() {
    for swap in Swap::BOTH {
        let count = Cell::new(0);
        let scratch = Scratch::new(&format!("count-{swap:?}"));
        save(&scratch.model(), 1).unwrap();
        let counting = |what: &str, _: &Path| {
            count.set(count.get() + 1);
            swap.answer(what)
        };
        folder::save_with(scratch.model(), &counting, |s| fill(s, 2)).unwrap();
        assert!(count.get() > 15);

        // ENOSPC, EIO, EDQUOT, EROFS as passing failures, and a disk that stays full.
        for (errno, lasting) in [(28, false), (5, false), (122, false), (30, false), (28, true)] {
            for n in 0..count.get() {
                let scratch = Scratch::new(&format!("nth-{swap:?}"));
                let dir = scratch.model();
                save(&dir, 1).unwrap();
                fs::write(dir.join("notes"), "mine").unwrap();
                let (seen, swapped) = (Cell::new(0), Cell::new(false));
                let hook = |what: &str, _: &Path| {
                    let now = seen.replace(seen.get() + 1);
                    if now == n || (lasting && now > n) {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    swap.answer(what)?;
                    let last = if swap == Swap::OneStep { "exchange" } else { "rename" };
                    swapped.set(swapped.get() || what == last);
                    Ok(())
                };
                let outcome = folder::save_with(&dir, &hook, |s| fill(s, 2));
                let case = format!("{swap:?}, errno {errno}, operation {n}, lasting {lasting}");
                assert_eq!(number(&dir), if swapped.get() { 2 } else { 1 }, "{case}");
                assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "mine", "{case}");
                match outcome {
                    Ok(()) => assert!(swapped.get(), "{case}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Data, "{case}: {error}");
                        assert!(
                            error.place().unwrap().file.starts_with(dir.canonicalize().unwrap()),
                            "{error}"
                        );
                        assert_eq!(error.help().is_some(), errno != 5, "{error}");
                        if !swapped.get() {
                            assert_eq!(scratch.entries(), ["model"], "{case}");
                            assert!(!dir.join(".warpsmith-moved-aside").exists(), "{case}");
                        }
                    }
                }
                save(&dir, 3).unwrap();
                assert_eq!(number(&dir), 3, "{case}");
                assert_eq!(scratch.entries(), ["model"], "{case}");
            }
        }
    }
}

#[test]
fn a_damaged_file_is_named() {
    let scratch = Scratch::new("damage");
    let dir = scratch.model();
    folder::save(&dir, |staging| {
        staging.bytes(MODEL, b"number = 1\n")?;
        staging.bytes("state/empty", b"")?;
        staging.file("model.safetensors", |out| {
            safetensors::write_to(
                out,
                &[("w", HostTensor::from_slice([2], &[1.0f32, 2.0])?)],
                &BTreeMap::new(),
            )
        })
    })
    .unwrap();
    let refused = |file: &Path, case: &str| {
        let outcome = Folder::open(&dir).and_then(|folder| folder.verify());
        let error = outcome.expect_err(case);
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        assert_eq!(error.place().unwrap().file, file, "{case}: {error}");
    };
    let names = [CHECKSUMS, MODEL, "model.safetensors", "state/empty"];
    for name in names {
        let file = dir.join(name);
        let whole = fs::read(&file).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &flipped).unwrap();
            refused(&file, &format!("{name}, bit {bit}"));
        }
        for len in 0..whole.len() {
            fs::write(&file, &whole[..len]).unwrap();
            refused(&file, &format!("{name}, length {len}"));
        }
        fs::write(&file, [&whole[..], b"\n"].concat()).unwrap();
        refused(&file, &format!("{name}, one byte more"));
        fs::remove_file(&file).unwrap();
        refused(if name == CHECKSUMS { &dir } else { &file }, &format!("{name} is gone"));
        fs::create_dir(&file).unwrap();
        refused(&file, &format!("{name} is a folder"));
        fs::remove_dir(&file).unwrap();
        fs::write(&file, &whole).unwrap();
    }
    Folder::open(&dir).unwrap().verify().unwrap();

    let list = dir.join(CHECKSUMS);
    let newer = fs::read_to_string(&list).unwrap().replace("checksums 1 ", "checksums 2 ");
    fs::write(&list, newer).unwrap();
    assert!(Folder::open(&dir).unwrap_err().message().contains("newer version"));
    // Even a folder whose list is damaged is ours, and a new model may replace it.
    save(&dir, 7).unwrap();
    assert_eq!(number(&dir), 7);

    let folder = Folder::open(&dir).unwrap();
    for name in ["nothing", "../model/model.toml", CHECKSUMS] {
        assert_eq!(folder.read(name).unwrap_err().kind(), ErrorKind::Data);
    }
    assert!(folder.contains(MODEL) && !folder.contains("nothing"));
}

#[test]
fn readers_fall_back_to_a_whole_old_folder_only() {
    let scratch = Scratch::new("fallback");
    let (dir, old) = (scratch.model(), scratch.0.join("model.old"));
    save(&dir, 1).unwrap();
    fs::rename(&dir, &old).unwrap();
    let folder = Folder::open(&dir).unwrap();
    assert_eq!((folder.path(), folder.is_fallback(), number(&dir)), (old.as_path(), true, 1));
    assert_eq!(folder::resolve(scratch.0.join("model/")).unwrap(), old);

    #[cfg(unix)]
    {
        let link = scratch.0.join("link");
        std::os::unix::fs::symlink("model", &link).unwrap();
        assert_eq!(folder::resolve(&link).unwrap(), old);
    }

    // A whole folder goes first; a half one does not count.
    save(&dir, 2).unwrap();
    assert_eq!((number(&dir), folder::resolve(&dir).unwrap()), (2, dir.clone()));
    fs::remove_file(dir.join("state/step")).unwrap();
    assert_eq!((number(&dir), folder::resolve(&dir).unwrap()), (1, old.clone()));
    // With neither whole the error is about the folder that was asked for.
    fs::remove_file(old.join(MODEL)).unwrap();
    assert_eq!(Folder::open(&dir).unwrap_err().place().unwrap().file, dir.join("state/step"));
    fs::remove_dir_all(&dir).unwrap();
    fs::remove_dir_all(&old).unwrap();
    assert_eq!(Folder::open(&dir).unwrap_err().place().unwrap().file, dir);
}

#[test]
fn someones_backup_called_old_is_left_alone() {
    let scratch = Scratch::new("backup");
    let (dir, old) = (scratch.model(), scratch.0.join("model.old"));
    save(&dir, 1).unwrap();
    save(&old, 9).unwrap();
    if can_exchange() {
        save(&dir, 2).unwrap();
        assert_eq!((number(&dir), number(&old)), (2, 9));
    } else {
        assert_eq!(folder::check_writable(&dir).unwrap_err().kind(), ErrorKind::Data);
    }
    let before = number(&dir);
    let error = folder::save_with(&dir, &|what, _| Swap::TwoSteps.answer(what), |s| fill(s, 3)).unwrap_err();
    assert_eq!((error.kind(), number(&dir), number(&old)), (ErrorKind::Data, before, 9));
    assert_eq!(scratch.entries(), ["model", "model.old"]);
}

#[test]
fn temporary_folders_of_the_dead_are_removed_and_no_others() {
    let scratch = Scratch::new("stale");
    // No process has this number: the kernel's limit is 2²².
    let (stale, own) =
        (".model.tmp-999999999-0".to_owned(), format!(".model.tmp-{}-9999", std::process::id()));
    let kept = [
        ".model.tmp-1-0",
        ".model.tmp-x-0",
        ".model.tmp-999999999",
        ".other.tmp-999999999-0",
        "model.tmp-999999999-0",
    ];
    for name in kept.iter().map(|n| n.to_string()).chain([stale, own]) {
        fs::create_dir_all(scratch.0.join(name).join("state")).unwrap();
    }
    save(&scratch.model(), 1).unwrap();
    let mut want: Vec<String> = kept.iter().map(|n| n.to_string()).chain(["model".to_owned()]).collect();
    want.sort();
    assert_eq!(scratch.entries(), want);
}

#[test]
fn threads_that_save_and_read_the_same_folder_see_whole_models() {
    if !can_exchange() {
        return;
    }
    let scratch = Scratch::new("threads");
    let dir = scratch.model();
    save(&dir, 1).unwrap();
    std::thread::scope(|scope| {
        let savers: Vec<_> = (0..2u64)
            .map(|t| {
                let dir = &dir;
                scope.spawn(move || (0..40).for_each(|i| save(dir, 2 + t + 2 * i).unwrap()))
            })
            .collect();
        let mut reads = 0;
        while savers.iter().any(|s| !s.is_finished()) {
            match Folder::open(&dir).and_then(|folder| folder.verify()) {
                Ok(()) => reads += 1,
                Err(error) => assert!(error.message().contains("saved anew"), "{error}"),
            }
        }
        println!("{reads} whole reads during 80 saves");
    });
    assert!(number(&dir) >= 80);
    assert_eq!(scratch.entries(), ["model"]);
}

#[test]
fn check_writable_finds_what_would_fail_and_leaves_nothing() {
    let scratch = Scratch::new("writable");
    let dir = scratch.model();
    folder::check_writable(&dir).unwrap();
    folder::check_writable(scratch.0.join("not/yet/there")).unwrap();
    assert!(scratch.entries().is_empty());
    save(&dir, 1).unwrap();
    folder::check_writable(&dir).unwrap();
    assert_eq!((number(&dir), scratch.entries()), (1, vec!["model".to_owned()]));

    let set_read_only = |folder: &Path, read_only: bool| {
        let mut permissions = fs::metadata(folder).unwrap().permissions();
        #[cfg(unix)]
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, if read_only { 0o555 } else { 0o755 });
        #[cfg(not(unix))]
        permissions.set_readonly(read_only);
        fs::set_permissions(folder, permissions).unwrap();
    };
    // The folder itself, then its parent; refused even for root, whom the mode would not stop.
    for read_only in [&dir, &scratch.0] {
        set_read_only(read_only, true);
        for error in [save(&dir, 2).unwrap_err(), folder::check_writable(&dir).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        }
        set_read_only(read_only, false);
        assert_eq!((number(&dir), scratch.entries()), (1, vec!["model".to_owned()]));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        save(&dir, 3).unwrap();
        assert_eq!(
            fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700,
            "a private folder stays private"
        );
    }
}
