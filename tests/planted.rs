//! Tests of the tests: a fault of one character or one line, planted in a real kernel, must make the op's cases fail on the
//! simulator. A kernel whose cases pass with a fault in it is not tested.
#![forbid(unsafe_code)]

#[path = "sim/compile.rs"]
mod compile;
#[path = "../build/decl.rs"]
#[allow(dead_code)]
mod decl;
#[path = "../build/emit.rs"]
#[allow(dead_code)]
mod emit;
#[path = "../build/parse.rs"]
mod parse;

use std::process::{Command, Output};

/// A text in a file below `kernels/`, what replaces it, the unit that shows it, and the ops whose cases must fail.
struct Fault {
    unit: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    ops: &'static str,
}

const fn fault(
    unit: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    ops: &'static str,
) -> Fault {
    Fault { unit, file, from, to, ops }
}

const FAULTS: &[Fault] = &[
    // A wrong operator.
    fault("elementwise", "elementwise.cu", "UNARY(Square, x * x,", "UNARY(Square, x + x,", "square"),
    // A stride of the wrong operand.
    fault("elementwise", "core/each.cuh", "at.b += here * b.by[k];", "at.b += here * a.by[k];", "mul"),
    // A sum of one lane instead of the warp's.
    fault("softmax", "softmax.cu", "F::total(warp_sum(sum))", "F::total(sum)", "softmax"),
    // Barriers that publish, left out.
    fault(
        "norm",
        "norm.cu",
        "    __syncthreads();\n    if (line != 0",
        "    if (line != 0",
        "layer_norm_backward",
    ),
    fault("reduce", "reduce.cu", "__syncthreads();   // publishes the upper half", "// publishes", "sum"),
    fault("copy", "copy.cu", "    __syncthreads();\n", "", "contiguous"),
    fault("index", "index.cu", "exchange.\n            __syncthreads();", "exchange.", "embedding_backward"),
    fault("loss", "loss.cu", "the round before.\n        __syncthreads();", "the round before.", "mse_loss"),
    // A barrier before memory is written again, left out.
    fault(
        "matmul",
        "matmul.cu",
        "__syncthreads();      // the tiles, or the rows",
        "// the tiles, or the rows",
        "matmul",
    ),
    // One stage too few waited for.
    fault(
        "matmul_mma",
        "matmul_mma.cu",
        "cp_async_wait<MMA_STAGES - 2>",
        "cp_async_wait<MMA_STAGES - 1>",
        "matmul",
    ),
    // A factor forgotten.
    fault("dropout", "dropout.cu", ">= threshold ? scale : 0.0f", ">= threshold ? 1.0f : 0.0f", "dropout"),
];

fn generated(unit: &str, text: &str) -> String {
    let parsed = parse::unit(unit, text).unwrap_or_else(|e| panic!("{unit}.cu:{}: {}", e.line, e.what));
    emit::unit(&parsed)
}

fn selftest(device: &str, ops: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_warpsmith");
    Command::new(program).args(["selftest", "--device", device, "--filter", ops, "--quiet"]).output().unwrap()
}

#[test]
fn every_planted_fault_makes_the_cases_fail() {
    for Fault { unit, file, from, to, ops } in FAULTS {
        let library = compile::planted(unit, file, from, to, |text| generated(unit, text));
        let output = selftest(&format!("sim:random,checked,seed=1,library={}", library.display()), ops);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{file}: {from:?} became {to:?}, and nothing failed\n{said}"
        );
    }
}

#[test]
fn without_a_fault_a_library_changes_nothing() {
    let library = compile::planted("copy", "copy.cu", "__syncthreads();", "__syncthreads();", |text| {
        generated("copy", text)
    });
    let output = selftest(&format!("sim:random,checked,seed=1,library={}", library.display()), "contiguous");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
