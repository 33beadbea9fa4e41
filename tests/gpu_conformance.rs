//! All op cases on the simulated GPU under every schedule, with its race and address checks: what `warpsmith selftest
//! --device sim --schedules all` runs.

use warpsmith::Device;
use warpsmith::device::sim::{Order, SimOptions, Timing};
use warpsmith::selftest::{Options, run};

/// Runs every case under one schedule. Fewer than `FLOOR` cases are a failure too.
fn all_cases(order: Order, timing: Timing) {
    const FLOOR: usize = 40_000;
    let options = SimOptions { order, timing, seed: 11, checked: true, ..SimOptions::default() };
    let report = run(Options {
        device: &mut || Ok(Device::sim_with(options.clone())),
        filter: None,
        case: None,
        seed: order as u64,
        progress: &mut |_, _, _| {},
    })
    .unwrap();
    let failures: Vec<String> = report
        .failures
        .iter()
        .take(12)
        .map(|f| {
            let name = format!("{order:?}").to_lowercase();
            format!(
                "{}: {}\n    again: warpsmith selftest --device sim:{name},checked,seed=11 --case '{0}'",
                f.case, f.why
            )
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} failed\n{}",
        report.failures.len(),
        report.cases,
        failures.join("\n")
    );
    assert!(report.cases >= FLOOR, "only {} cases ran", report.cases);
    // Every op has kernels: none was left out whole.
    assert_eq!(report.ops, warpsmith::selftest::subjects().len());
}

#[test]
fn threads_in_ascending_order_asynchronous_operations_at_once() {
    all_cases(Order::Forward, Timing::Earliest);
}

#[test]
fn threads_in_descending_order_asynchronous_operations_late() {
    all_cases(Order::Reverse, Timing::Latest);
}

#[test]
fn threads_by_chance_asynchronous_operations_by_chance() {
    all_cases(Order::Random, Timing::Random);
}

#[test]
fn threads_by_random_priorities_asynchronous_operations_late() {
    all_cases(Order::Pct, Timing::Latest);
}
