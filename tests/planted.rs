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

use warpsmith::optim::{AdamW, Optimizer};
use warpsmith::param::{LossScale, Precision, StateDType};
use warpsmith::{Arena, DType, Device, Result};

/// A text in a file below `kernels/` and what replaces it; the kernel that shows it, as `unit.kernel`, and of its instances'
/// functors and types those to build (all functors and the first type, if none is named); how the cases begin of which
/// some must fail.
struct Fault {
    file: &'static str,
    from: &'static str,
    to: &'static str,
    kernel: &'static str,
    keep: &'static str,
    cases: &'static str,
}

const FAULTS: &[Fault] = &[
    // A wrong operator.
    Fault {
        file: "elementwise.cu",
        from: "UNARY(Square, x * x,",
        to: "UNARY(Square, x + x,",
        kernel: "elementwise.unary",
        keep: "Square",
        cases: "square",
    },
    // A stride of the wrong operand.
    Fault {
        file: "core/each.cuh",
        from: "at.b += here * b.by[k];",
        to: "at.b += here * a.by[k];",
        kernel: "elementwise.binary",
        keep: "Mul",
        cases: "mul",
    },
    // A sum of one lane instead of the warp's.
    Fault {
        file: "softmax.cu",
        from: "F::total(warp_sum(sum))",
        to: "F::total(sum)",
        kernel: "softmax.softmax_warp",
        keep: "Softmax",
        cases: "softmax",
    },
    // Barriers that publish, left out.
    Fault {
        file: "norm.cu",
        from: "    __syncthreads();\n    if (line != 0",
        to: "    if (line != 0",
        kernel: "norm.norm_parameters",
        keep: "LayerNorm",
        cases: "layer_norm_backward",
    },
    Fault {
        file: "reduce.cu",
        from: "__syncthreads();   // publishes the upper half",
        to: "// publishes the upper half",
        kernel: "reduce.reduce_columns",
        keep: "Total",
        cases: "sum",
    },
    Fault {
        file: "copy.cu",
        from: "    __syncthreads();\n",
        to: "",
        kernel: "copy.transpose",
        keep: "",
        cases: "contiguous",
    },
    Fault {
        file: "index.cu",
        from: "exchange.\n            __syncthreads();",
        to: "exchange.",
        kernel: "index.sort_tiles",
        keep: "i32 i64",
        cases: "embedding_backward",
    },
    Fault {
        file: "loss.cu",
        from: "the round before.\n        __syncthreads();",
        to: "the round before.",
        kernel: "loss.finish_loss",
        keep: "",
        cases: "mse_loss",
    },
    // A barrier before memory is written again, left out.
    Fault {
        file: "matmul.cu",
        from: "__syncthreads();      // the tiles, or the rows",
        to: "// the tiles, or the rows",
        kernel: "matmul.simt_32x32",
        keep: "",
        cases: "matmul",
    },
    // One stage too few waited for.
    Fault {
        file: "core/mma.cuh",
        from: "cp_async_wait<MMA_STAGES - 2>",
        to: "cp_async_wait<MMA_STAGES - 1>",
        kernel: "matmul_mma.mma_64x64",
        keep: "",
        cases: "matmul",
    },
    // Sums staged over a tile that is still read; a pixel beside the image; a row of the kernel for a column.
    Fault {
        file: "conv.cu",
        from: "__syncthreads();      // the tiles have been read",
        to: "// the tiles have been read",
        kernel: "conv.conv_tile",
        keep: "",
        cases: "conv2d",
    },
    Fault {
        file: "core/conv.cuh",
        from: "u32(w) < image.width;",
        to: "u32(w) <= image.width;",
        kernel: "conv.conv_thin",
        keep: "",
        cases: "conv2d",
    },
    Fault {
        file: "conv_mma.cu",
        from: "i32(element - row * k_low) * k_w",
        to: "i32(element - row * k_low) * k_h",
        kernel: "conv_mma.conv_mma_64",
        keep: "",
        cases: "conv2d",
    },
    // The barrier between exchanges, left out.
    Fault {
        file: "sort.cu",
        from: "or the last exchange.\n            __syncthreads();",
        to: "or the last exchange.",
        kernel: "sort.sort_rows",
        keep: "f32",
        cases: "sort",
    },
    // Equal digits out of order.
    Fault {
        file: "sort.cu",
        from: "((1u << lane) - 1)",
        to: "(~(1u << lane) & ~((1u << lane) - 1))",
        kernel: "sort.radix_scatter",
        keep: "",
        cases: "sort",
    },
    Fault {
        file: "sort.cu",
        from: "        __syncwarp();   // all have read `next`\n",
        to: "",
        kernel: "sort.radix_scatter",
        keep: "",
        cases: "sort",
    },
    // A barrier that publishes, left out; a piece that starts from the wrong total.
    Fault {
        file: "scan.cu",
        from: "__syncthreads();   // publishes `parts`",
        to: "// publishes `parts`",
        kernel: "scan.long_rows",
        keep: "f32",
        cases: "cumsum",
    },
    Fault {
        file: "scan.cu",
        from: "ends[thread - inner]",
        to: "ends[thread]",
        kernel: "scan.columns",
        keep: "f32",
        cases: "cumsum",
    },
    // A stage that is read before it is published; a query that sees the key behind its own.
    Fault {
        file: "attention_mma.cu",
        from: "        __syncthreads();      // publishes stage `now`; the other one has been read\n        if (first + OTHER < end)",
        to: "        if (first + OTHER < end)",
        kernel: "attention_mma.flash_forward",
        keep: "",
        cases: "attention",
    },
    Fault {
        file: "core/attention.cuh",
        from: "const i64 end = i64(i) + shift + 1;",
        to: "const i64 end = i64(i) + shift + 2;",
        kernel: "attention.attention_keys",
        keep: "f32",
        cases: "attention_backward",
    },
    // A gradient that does not pass the forget gate; a bias outside of the reset gate.
    Fault {
        file: "recurrent.cu",
        from: "    dc[unit] = earlier;",
        to: "    dc[unit] = cell;",
        kernel: "recurrent.lstm_step_backward",
        keep: "",
        cases: "lstm_backward",
    },
    Fault {
        file: "recurrent.cu",
        from: "ws_tanh(x[2] + r * s[2])",
        to: "ws_tanh(x[2] + r + s[2])",
        kernel: "recurrent.gru_step",
        keep: "",
        cases: "gru",
    },
    // A factor forgotten.
    Fault {
        file: "dropout.cu",
        from: ">= threshold ? scale : 0.0f",
        to: ">= threshold ? 1.0f : 0.0f",
        kernel: "dropout.dropout",
        keep: "",
        cases: "dropout",
    },
    // A step of the wrong length.
    Fault {
        file: "pool.cu",
        from: "place = line + j * dilation_x;",
        to: "place = line + j;",
        kernel: "pool.max_pool",
        keep: "",
        cases: "max_pool2d",
    },
    // Outputs that read an element second, forgotten.
    Fault {
        file: "interpolate.cu",
        from: "at.x > 0 ? at.x - 1 : at.x",
        to: "at.x > 0 ? at.x : at.x",
        kernel: "interpolate.resize_backward",
        keep: "Edges",
        cases: "interpolate_backward",
    },
    // A barrier before the old number is overwritten, left out.
    Fault {
        file: "batch_norm.cu",
        from: "    __syncthreads();   // all have read",
        to: "    // all have read",
        kernel: "batch_norm.running_statistics",
        keep: "",
        cases: "running_stats",
    },
    // A sum of one lane instead of the warp's.
    Fault {
        file: "batch_norm.cu",
        from: "LANES == 32 ? warp_sum(sum.sum)",
        to: "LANES == 32 ? (sum.sum)",
        kernel: "batch_norm.segment_moments",
        keep: "",
        cases: "batch_norm",
    },
    // Special values. A zero weight that skips what may be infinite.
    Fault {
        file: "conv.cu",
        from: "if (conv_inside<DIV>(image, h, w))",
        to: "if (conv_inside<DIV>(image, h, w) && to_f32(from_a[mid * a_mid + low * a_low]) != 0.0f)",
        kernel: "conv.conv_thin",
        keep: "",
        cases: "conv2d",
    },
    // An infinite sum with a rest, which is NaN.
    Fault {
        file: "core/reduce.cuh",
        from: "rest = next - next == 0.0f ? (next - sum) - with_rest : 0.0f;",
        to: "rest = (next - sum) - with_rest;",
        kernel: "pool.avg_pool",
        keep: "",
        cases: "avg_pool2d",
    },
    // A weight of 0 that is not multiplied.
    Fault {
        file: "interpolate.cu",
        from: "tap.second == at ?",
        to: "tap.second == at && tap.weight > 0.0f ?",
        kernel: "interpolate.resize_backward",
        keep: "Edges",
        cases: "interpolate_backward",
    },
    // NaN that a maximum, a comparison or a select loses.
    Fault {
        file: "batch_norm.cu",
        from: "const f32 spread = block_sum<128>(square.sum) / size;",
        to: "const f32 spread = fmaxf(block_sum<128>(square.sum) / size, 0.0f);",
        kernel: "batch_norm.set_moments",
        keep: "",
        cases: "batch_norm",
    },
    Fault {
        file: "norm.cu",
        from: "sqrtf(warp_sum(square)",
        to: "sqrtf(fmaxf(warp_sum(square), 0.0f)",
        kernel: "norm.norm_warp",
        keep: "LayerNorm",
        cases: "layer_norm",
    },
    Fault {
        file: "pool.cu",
        from: "index[o] == place)",
        to: "index[o] == place && to_f32(dy[o]) <= ws_infinity())",
        kernel: "pool.max_pool_backward",
        keep: "",
        cases: "max_pool2d_backward",
    },
    Fault {
        file: "recurrent.cu",
        from: "gate[1] * c[unit] +",
        to: "(gate[1] > 0.0f ? gate[1] * c[unit] : 0.0f) +",
        kernel: "recurrent.lstm_step",
        keep: "",
        cases: "lstm",
    },
    // A sine of the wrong sign.
    Fault {
        file: "rotary.cu",
        from: "a * cosine[l] - b * sine[l]",
        to: "a * cosine[l] + b * sine[l]",
        kernel: "rotary.rotary",
        keep: "",
        cases: "rotary_embedding",
    },
    // A gradient taken away where it is to be added.
    Fault {
        file: "norm.cu",
        from: "v[j] = g[j] + v[j];",
        to: "v[j] = g[j] - v[j];",
        kernel: "norm.norm_backward",
        keep: "LayerNorm",
        cases: "add_layer_norm_backward",
    },
];

/// The library with the fault in it. Of other kernels it has one instance each, to be quick: what it lacks stays ours.
fn library(fault: &Fault) -> std::path::PathBuf {
    let (unit, kernel) = fault.kernel.split_once('.').unwrap();
    compile::planted(unit, fault.file, fault.from, fault.to, |text| {
        let mut parsed =
            parse::unit(unit, text).unwrap_or_else(|e| panic!("{unit}.cu:{}: {}", e.line, e.what));
        assert!(parsed.kernels.iter().any(|k| k.name == kernel), "there is no {}", fault.kernel);
        for declared in &mut parsed.kernels {
            let target = declared.name == kernel;
            for axis in &mut declared.axes {
                let keep = |name: &str| fault.keep.split(' ').any(|k| k == name);
                match &mut axis.values {
                    decl::Values::Types(all) if target && all.iter().any(|t| keep(t.name())) => {
                        all.retain(|t| keep(t.name()));
                    }
                    decl::Values::Types(all) => all.truncate(1),
                    decl::Values::Functors(all) if target && all.iter().any(|f| keep(f)) => {
                        all.retain(|f| keep(f))
                    }
                    decl::Values::Functors(all) if !target => all.truncate(1),
                    decl::Values::Ints(all) if !target => all.truncate(1),
                    _ => {}
                }
            }
        }
        emit::unit(&parsed)
    })
}

fn selftest(device: &str, cases: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_warpsmith");
    Command::new(program).args(["selftest", "--device", device, "--case", cases, "--quiet"]).output().unwrap()
}

#[test]
fn every_planted_fault_makes_the_cases_fail() {
    let mut unseen = String::new();
    for fault in FAULTS {
        let library = library(fault);
        let output =
            selftest(&format!("sim:random,checked,seed=1,library={}", library.display()), fault.cases);
        if output.status.code() != Some(1) {
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            unseen += &format!("{}: {:?} became {:?}: {said}\n", fault.file, fault.from, fault.to);
        }
    }
    assert_eq!(unseen, "", "no case failed with these faults in the kernels");
}

/// Faults of the optimisers' kernels, which have no cases: AdamW in f16 with states of bytes and a loss scale that grows.
const UPDATES: &[(&str, &str)] = &[
    // A barrier that publishes, left out.
    ("    __syncthreads();\n    if (!live || skip) return;", "    if (!live || skip) return;"),
    // Gradients divided by the scale of the next step.
    ("floats[CLIP] / floats[UNSCALE]", "floats[CLIP] / floats[LOSS_SCALE]"),
    // Another half of the random words.
    (
        "close_state<TOP1>(v1, state1, at, random, high, 16)",
        "close_state<TOP1>(v1, state1, at, random, high, 0)",
    ),
    // A scale for the wrong block.
    (
        "if (threadIdx.x % 32 == 0) state.scale[at / ALIGN] = scale;",
        "if (threadIdx.x % 32 == 0) state.scale[at / 2048] = scale;",
    ),
];

/// All that two steps leave.
fn updated(device: Device) -> Result<Vec<f64>> {
    let scale = LossScale::Dynamic { initial: 4.0, growth: 2.0, backoff: 0.5, interval: 1 };
    let precision = Precision::f16().with_loss_scale(scale).with_states(StateDType::Int8);
    let arena = Arena::with_precision(precision, device)?;
    let w = arena.register("w", 600, &vec![0.5; 600])?;
    let mut adam = Optimizer::new(&arena, AdamW::default(), 0.1)?;
    for _ in 0..2 {
        let w = w.get()?.to_dtype(DType::F32)?;
        arena.backward(&w.mul(&w)?.sum(&[], false)?)?;
        adam.step()?;
    }
    let mut all = arena.values()?.to_f64_vec()?;
    for (_, state) in arena.states()? {
        all.extend(state.to_f64_vec()?);
    }
    Ok(all)
}

#[test]
fn every_fault_planted_in_the_update_is_seen() {
    let want = updated(Device::Cpu).unwrap();
    let on = |(from, to): (&'static str, &'static str)| {
        let (file, kernel, keep, cases) = ("optim.cu", "optim.update", "f16 AdamW", "");
        let library = library(&Fault { file, from, to, kernel, keep, cases });
        let device = format!("sim:random,checked,seed=1,library={}", library.display());
        updated(device.parse().unwrap())
    };
    let barrier = "    __syncthreads();\n    if (!live || skip) return;";
    assert_eq!(on((barrier, barrier)).unwrap(), want, "without a fault");
    for &fault in UPDATES {
        assert!(!on(fault).is_ok_and(|got| got == want), "{fault:?} was not seen");
    }
}

#[test]
fn without_a_fault_a_library_changes_nothing() {
    let right = Fault { from: "__syncthreads();", to: "__syncthreads();", ..FAULTS[5] };
    let output =
        selftest(&format!("sim:random,checked,seed=1,library={}", library(&right).display()), right.cases);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
