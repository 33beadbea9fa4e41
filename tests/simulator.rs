//! The simulator is tested by kernels whose faults are known: each must be found, by the means and in the schedules named here,
//! and the right kernels must not be accused. The kernels stand in `tests/sim/*.cu`, the launches in `tests/sim/driver.cpp`.
#![forbid(unsafe_code)]

#[path = "sim/compile.rs"]
mod compile;

use std::process::{Command, Output};
use std::sync::OnceLock;

use compile::{Source, link, root};

fn driver() -> Command {
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let plain =
            |name: &str| Source { file: root().join("tests/sim").join(name), checked: false, over: None };
        let mut sources = vec![plain("driver.cpp"), plain("numbers.cpp")];
        for unit in ["small", "gemm_mma", "gemm_tma_wgmma"] {
            let file = root().join(format!("tests/sim/{unit}.cu"));
            sources.push(plain(&format!("{unit}.cu")));
            sources.push(Source { file, checked: true, over: None });
        }
        link("driver", &sources, false)
    });
    Command::new(path)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a kernel did under one schedule.
#[derive(Debug)]
struct Run {
    /// Order of threads and moment of asynchronous operations, as `forward earliest 1`.
    how: String,
    /// `ok`, or what is wrong.
    what: String,
}

/// Every order of threads with every moment of asynchronous operations, with `seeds` seeds where chance has a part.
fn runs(case: &str, seeds: u32, checked: bool) -> Vec<Run> {
    let output =
        driver().args(["run", case, &seeds.to_string(), if checked { "1" } else { "0" }]).output().unwrap();
    assert!(output.status.success(), "{case}: {}", text(&output));
    let runs: Vec<Run> = text(&output)
        .lines()
        .filter_map(|l| l.split_once(": "))
        .map(|(how, what)| Run { how: how.into(), what: what.into() })
        .collect();
    assert_eq!(runs.len() as u32, 4 + 8 * seeds, "{case}");
    runs
}

fn names(prefix: &str) -> Vec<String> {
    let source = std::fs::read_to_string(root().join("tests/sim/small.cu")).unwrap();
    let list = source.split("#define SMALL(X)").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.split("X(").skip(1).map(|x| x.split(')').next().unwrap().to_owned());
    names.filter(|n| n.starts_with(prefix)).collect()
}

#[test]
fn right_kernels_are_not_accused() {
    let mut cases = names("ok_");
    cases.extend(["gemm_mma".to_owned(), "gemm_tma".to_owned()]);
    assert!(cases.len() > 10);
    for case in cases {
        for checked in [false, true] {
            for run in runs(&case, 2, checked) {
                assert_eq!(run.what, "ok", "{case} ({}, checked: {checked})", run.how);
            }
        }
    }
}

/// Faults, and words of which each report must have one. In the checked build every schedule finds every one of them.
const PLANTED: &[(&str, &[&str])] = &[
    // Barriers of the block.
    ("bad_first_barrier", &["race:", "which nothing in this block has written"]),
    ("bad_second_barrier", &["race:"]),
    ("bad_between_barriers", &["race:"]),
    ("bad_divergent_barrier", &["divergent __syncthreads"]),
    ("bad_exit_before_barrier", &["divergent __syncthreads"]),
    ("bad_named_barrier", &["race:", "arrives twice in one generation"]),
    ("bad_named_parts", &["filled by parts of warps"]),
    ("bad_named_lines", &["diverged warp"]),
    ("bad_block_overlap", &["of another block"]),
    // Lanes of a warp.
    ("bad_warp_exchange", &["race:", "which nothing in this block has written"]),
    ("bad_shuffle_inactive", &["shuffle with lanes 16-31 of its warp"]),
    ("bad_shuffle_exited", &["has exited", "exits while other lanes of its warp wait for it"]),
    ("bad_shuffle_lines", &["diverged warp"]),
    // Addresses.
    (
        "bad_read_past_end",
        &["reads 4 bytes outside all buffers of the launch: 0 past the end of buffer 0 (256 bytes)"],
    ),
    ("bad_write_past_end", &["past the end of buffer 1 (256 bytes)"]),
    ("bad_write_to_input", &["which the launch only reads"]),
    ("bad_vector_address", &["address is no multiple of 16, the size of the access"]),
    ("bad_shared_end", &["outside what the block asked for"]),
    ("bad_uninitialised", &["which nothing in this block has written"]),
    ("bad_atomic_and_plain", &["race:"]),
    ("bad_trap", &["trap"]),
    // cp.async, ldmatrix.
    ("bad_cp_async_barrier", &["race:", "which nothing in this block has written"]),
    ("bad_cp_async_aligned", &["source is no multiple of 16"]),
    ("gemm_mma_NO_WAIT", &["race:", "which nothing in this block has written"]),
    ("gemm_mma_WAITS_TOO_LITTLE", &["race:", "which nothing in this block has written"]),
    ("gemm_mma_NO_COMMIT", &["race:", "which nothing in this block has written"]),
    ("gemm_mma_NO_BARRIER_BEFORE_READ", &["race:", "which nothing in this block has written"]),
    ("gemm_mma_NO_BARRIER_BEFORE_REUSE", &["race: cp.async of thread", "race: thread"]),
    ("gemm_mma_MISALIGNED", &["ldmatrix: row address is no multiple of 16"]),
    ("gemm_mma_NO_ZERO_FILL", &["outside all buffers of the launch"]),
    // mbarriers and tensor-map copies.
    ("bad_slow_mbarrier", &["race:"]),
    ("bad_mbarrier_write", &["where an mbarrier lives"]),
    ("bad_deadlock", &["deadlock"]),
    ("gemm_tma_NO_EMPTY_WAIT", &["race:", "more arrivals than the mbarrier expects"]),
    ("gemm_tma_WRONG_PARITY", &["deadlock"]),
    (
        "gemm_tma_FEW_BYTES",
        &["race:", "more bytes than the mbarrier expects", "which nothing in this block has written"],
    ),
    ("gemm_tma_EARLY_RELEASE", &["not ordered after the read by wgmma"]),
    ("gemm_tma_ONE_ARRIVAL_PER_GROUP", &["not ordered after the read by wgmma"]),
    ("gemm_tma_NO_INIT_BARRIER", &["race:", "no mbarrier was initialised here"]),
    ("gemm_tma_NO_INIT_FENCE", &["mbarrier_fence_init"]),
    (
        "gemm_tma_NO_FULL_WAIT",
        &["race:", "which nothing in this block has written", "nobody has waited for the copy"],
    ),
    ("gemm_tma_MANY_ARRIVALS", &["slept through a whole phase", "race:", "more arrivals", "deadlock"]),
    ("gemm_tma_OVERLAPPING_BOXES", &["race: a tensor-map copy"]),
    ("gemm_tma_PAST_THE_END", &["outside all buffers of the launch", "of another block", "race:"]),
    // wgmma.
    ("bad_exchange_over_wgmma", &["race:"]),
    ("bad_no_proxy_fence", &["without fence_proxy_async behind it"]),
    ("bad_late_proxy_fence", &["without fence_proxy_async behind it"]),
    ("bad_accumulator_written", &["accumulator"]),
    ("bad_accumulator_read", &["accumulator"]),
    ("bad_no_wgmma_fence", &["no wgmma_fence"]),
    ("bad_no_wgmma_wait", &["exits without having waited for a wgmma"]),
    ("bad_tile_at_512", &["does not start on a multiple of 1024 bytes"]),
    ("bad_registers_one_warp", &["left out a setmaxnreg"]),
    ("bad_register_pool", &["setmaxnreg: 240 registers a thread are not free"]),
    ("gemm_tma_NO_WGMMA_WAIT", &["wgmma"]),
    ("gemm_tma_NO_SWIZZLE", &["wrong at"]),
    ("gemm_tma_WRONG_SBO", &["wrong at"]),
    ("gemm_tma_NO_K_ADVANCE", &["wrong at"]),
];

#[test]
fn planted_faults_are_found_under_every_schedule() {
    for (case, words) in PLANTED {
        for run in runs(case, 2, true) {
            assert!(words.iter().any(|w| run.what.contains(w)), "{case} ({}): {}", run.how, run.what);
        }
    }
}

#[test]
fn every_faulty_kernel_is_in_the_list() {
    let mut all = names("bad_");
    for unit in ["gemm_mma", "gemm_tma_wgmma"] {
        let source = std::fs::read_to_string(root().join(format!("tests/sim/{unit}.cu"))).unwrap();
        let table = source.split("WS_TABLE(").nth(1).unwrap();
        let prefix = unit.trim_end_matches("_wgmma");
        all.extend(
            table.split("PLANTED(").skip(1).map(|x| format!("{prefix}_{}", x.split(')').next().unwrap())),
        );
    }
    for case in all {
        assert!(PLANTED.iter().any(|(name, _)| *name == case), "{case} is planted but not sought");
    }
}

/// Faults that a run forward in the plain build does not see: what finds them is the checker, or the schedule.
const UNSEEN: &[&str] = &[
    "bad_second_barrier",
    "bad_between_barriers",
    "bad_block_overlap",
    "bad_late_proxy_fence",
    "bad_no_proxy_fence",
    "bad_slow_mbarrier",
    "bad_cp_async_barrier",
    "gemm_mma_NO_WAIT",
    "gemm_mma_NO_BARRIER_BEFORE_REUSE",
    "gemm_tma_EARLY_RELEASE",
    "gemm_tma_ONE_ARRIVAL_PER_GROUP",
    "gemm_tma_NO_INIT_BARRIER",
];

#[test]
fn it_takes_the_checker_to_find_them() {
    for case in UNSEEN {
        let plain = runs(case, 1, false);
        let forward = plain.iter().find(|r| r.how == "forward earliest 1").unwrap();
        assert_eq!(forward.what, "ok", "{case}: seen without the checker by now; take it off the list");
    }
}

#[test]
fn hostile_schedules_show_wrong_results_without_the_checker() {
    for case in [
        "bad_first_barrier",
        "bad_second_barrier",
        "gemm_mma_NO_WAIT",
        "gemm_mma_NO_BARRIER_BEFORE_READ",
        "gemm_mma_NO_BARRIER_BEFORE_REUSE",
        "gemm_tma_EARLY_RELEASE",
        "gemm_tma_ONE_ARRIVAL_PER_GROUP",
        "gemm_tma_NO_INIT_BARRIER",
        "gemm_tma_MANY_ARRIVALS",
    ] {
        let bad = runs(case, 4, false).iter().filter(|r| r.what != "ok").count();
        assert!(bad > 0, "{case}: no schedule shows it");
    }
}

#[test]
fn a_deadlock_says_who_waits_where_for_what() {
    for run in runs("bad_deadlock", 1, false) {
        for part in [
            "bad_deadlock: block (0,0,0): deadlock, 64 of 64 threads wait",
            "threads 0-31 at tests/sim/small.cu:",
            "for the mbarrier at +0, phase 0: 2 of 3 arrivals",
            "threads 32-63 at tests/sim/small.cu:",
            "for named barrier 5, where 32 of 64 have arrived",
        ] {
            assert!(run.what.contains(part), "{part:?} is missing in {:?} ({})", run.what, run.how);
        }
    }
}

/// The line of `tests/sim/small.cu` that has this text.
fn line(text: &str) -> String {
    let source = std::fs::read_to_string(root().join("tests/sim/small.cu")).unwrap();
    let line = source.lines().position(|l| l.contains(text)).unwrap();
    format!("small.cu:{}", line + 1)
}

#[test]
fn a_race_names_both_lines_and_both_threads() {
    let (write, read) = (line("if (threadIdx.x == 1) s[0] = 1;"), line("if (threadIdx.x == 0) v = s[0];"));
    for run in runs("bad_between_barriers", 1, true) {
        for part in [write.as_str(), read.as_str(), "thread 0", "thread 1", "shared memory +"] {
            assert!(run.what.contains(part), "{part:?} is missing in {:?} ({})", run.what, run.how);
        }
    }
}

#[test]
fn launches_of_several_threads_do_not_disturb_each_other() {
    let output = driver().arg("threads").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn numbers_are_those_of_the_formats() {
    let output = driver().arg("numbers").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}
