//! What happens when a kernel and its declaration drift apart, or a kernel goes round the declaration: build.rs or the
//! compilers must refuse it, by file and line. And that build.rs itself does no work twice.

#[path = "../build/decl.rs"]
#[allow(dead_code)]
mod decl;
#[path = "../build/emit.rs"]
#[allow(dead_code)]
mod emit;
#[path = "../build/files.rs"]
#[allow(dead_code)]
mod files;
#[path = "../build/launches.rs"]
mod launches;
#[path = "../build/nvcc.rs"]
#[allow(dead_code)]
mod nvcc;
#[path = "../build/parse.rs"]
mod parse;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file with one of everything that a declaration may have.
const SOURCE: &str = r#"// archs: 80 90a ptx80
// drift.cu: __global__, asm and <<<>>> in a comment are no offence; nor is "__shared__" in one.
#include "core/vec.cuh"

struct Twice { WS_FN f32 apply(f32 x) { return 2 * x; } };
#define SHARE(Name, body) struct Name { WS_FN f32 apply(f32 x) { return body; } };
SHARE(Half, x / 2)
SHARE(Quarter, x / 4)

// Rows of x that the mask [rows] keeps, plus bias.
KERNEL(drift, types(T: f32, bf16), types(S: u8, i64), functors(F: SHARE, Twice), ints(VEC: 1, 4),
       in(T, x, rows * cols), in(S, mask, rows), opt_in(f32, bias, cols), out(T, y, rows * cols),
       val(Dims, dims), val(u32, rows), val(u32, cols), val(f32, eps),
       launch(grid = (ceil_div(cols, 256 * VEC), rows), block = 256, shared = 0)) {
    SHARED(f32[256], part);
    const u64 row = blockIdx.y, first = (u64(blockIdx.x) * drift_block + threadIdx.x) * VEC;
    part[threadIdx.x] = eps;
    for (u64 c = first; c < first + VEC && c < cols && dims.rank < 3; ++c) {
        const f32 v = F::apply(to_f32(x[row * cols + c])) + (bias ? bias[c] : part[threadIdx.x]);
        y[row * cols + c] = from_f32<T>(mask[row] ? v : eps);
    }
}
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn temporary(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The source with one change.
fn edited(from: &str, to: &str) -> String {
    assert_eq!(SOURCE.matches(from).count(), 1, "{from:?} must stand in the source once");
    SOURCE.replace(from, to)
}

/// What build.rs says of a source, with its place.
fn parsed(text: &str) -> Result<decl::Unit, String> {
    parse::unit("drift", text).map_err(|e| format!("{}:{}: {}", e.line, e.column, e.what))
}

/// An nvcc, where this machine has one.
fn nvcc() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let found = nvcc::find(&target.join("cuda-toolkit"));
    if found.is_none() {
        println!("skipped: no nvcc");
    }
    found
}

/// Runs the generated unit through a compiler; what it says, or nothing if it is content.
fn compiled(name: &str, text: &str, nvcc: Option<&Path>, edit: impl Fn(String) -> String) -> String {
    let folder = temporary(&format!("drift-{name}-{}", nvcc.is_some()));
    std::fs::create_dir_all(folder.join("kernels")).unwrap();
    std::fs::write(folder.join("kernels/drift.cu"), text).unwrap();
    let unit = parsed(text).unwrap();
    std::fs::write(folder.join("unit.cpp"), edit(emit::unit(&unit))).unwrap();
    let mut command = match nvcc {
        Some(nvcc) => {
            let mut command = Command::new(nvcc);
            command.args(["-std=c++17", "-x", "cu", "-cubin", "-gencode=arch=compute_80,code=sm_80"]);
            command
        }
        None => {
            let mut command = Command::new(std::env::var("CXX").unwrap_or("c++".into()));
            command.args(["-std=c++20", "-Wno-psabi", "-c", "-O0"]);
            command
        }
    };
    let kernels = root().join("kernels");
    command.current_dir(&folder).arg("-I.").arg("-I").arg(&kernels).args(["unit.cpp", "-o", "out"]);
    let output = command.output().unwrap();
    if output.status.success() {
        return String::new();
    }
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn the_declaration_is_read_whole() {
    let unit = parsed(SOURCE).unwrap();
    let archs: Vec<String> = unit.archs.iter().map(decl::Arch::text).collect();
    assert_eq!(archs, ["80", "90a", "ptx80"]);
    let kernel = &unit.kernels[0];
    assert_eq!((kernel.name.as_str(), kernel.line, kernel.block), ("drift", 11, [256, 1, 1]));
    assert_eq!(kernel.doc, ["Rows of x that the mask [rows] keeps, plus bias."]);
    let symbols: Vec<String> = kernel.instances().iter().map(|i| kernel.symbol(i)).collect();
    assert_eq!(symbols.len(), 2 * 2 * 3 * 2);
    assert_eq!(symbols[0], "drift_f32_u8_Half_1");
    assert_eq!(symbols[23], "drift_bf16_i64_Twice_4");
    // Four pointers, Dims, two u32, one f32, padding to 8.
    assert_eq!(kernel.layout(), (vec![0, 8, 16, 24, 32, 104, 108, 112], 120, 8));
    let rust = launches::rust(&[unit]);
    for part in [
        "pub mod drift {",
        "pub enum DriftF {\n        /// The functor `Half`.\n        Half,\n",
        "pub const ALL: &'static [DriftF] = &[\n            DriftF::Half,\n            DriftF::Quarter,\n            DriftF::Twice,\n",
        "pub static DRIFT: [driver::Kernel; 24]",
        "pub vec: u32,",
        "pub bias: Option<Src<'a>>,",
        "pub y: Dst<'a>,",
        "Need::Exactly(\"rows * cols\", mul(u64::try_from(self.rows).ok(), u64::try_from(self.cols).ok()))",
        "/// Rows of x that the mask \\[rows\\] keeps, plus bias.",
        "assert!(std::mem::offset_of!(Args, eps) == 112);",
    ] {
        assert!(rust.contains(part), "{part} is missing in\n{rust}");
    }
}

#[test]
fn both_compilers_take_the_file_as_it_is() {
    assert_eq!(compiled("clean", SOURCE, None, |s| s), "");
    if let Some(nvcc) = nvcc() {
        assert_eq!(compiled("clean", SOURCE, Some(&nvcc), |s| s), "");
    }
}

#[test]
fn build_rs_refuses() {
    let launch = "launch(grid = (ceil_div(cols, 256 * VEC), rows), block = 256, shared = 0)) {";
    for (from, to, says) in [
        ("// archs: 80 90a ptx80\n", "", "1:1: line 1 must name the architectures"),
        ("80 90a", "80 sm_90a", "1:14: no architecture `sm_90a`"),
        ("80 90a ptx80", "ptx80", "1:1: line 1 must name an architecture for machine code"),
        ("80 90a ptx80", "80 80", "1:14: architecture 80 is named twice"),
        ("types(T: f32, bf16)", "types(T: f32, f33)", "11:29: no type `f33`; there are f32"),
        ("types(T: f32, bf16)", "types(T: u32, i32)", "11:24: `T` lists I32 twice"),
        ("types(T: f32, bf16)", "types(t: f32, bf16)", "11:21: `t`: a template parameter's name is in upper"),
        ("functors(F: SHARE, Twice)", "functors(F: SHARE, Half)", "11:67: `F` lists Half twice"),
        ("ints(VEC: 1, 4)", "ints(VEC: 1, x)", "11:95: expected an integer"),
        ("in(T, x, rows * cols)", "in(U, x, rows * cols)", "12:11: `U` needs types(U: ...) before it"),
        ("in(T, x, rows * cols)", "in(F, x, rows * cols)", "12:11: `F` is no element type"),
        ("in(T, x, rows * cols)", "in(T, x, rows * colz)", "12:17: `colz` is no integer val"),
        ("in(T, x, rows * cols)", "in(T, x, rows * eps)", "12:17: `eps` is no integer val"),
        ("in(T, x, rows * cols)", "in(T, X, rows * cols)", "12:14: `X`: an argument's name is in lower case"),
        ("in(T, x, rows * cols)", "in(T, type, 1)", "12:14: `type` cannot be a name"),
        ("in(T, x, rows * cols)", "in(T, vec, 1)", "12:14: `vec` is declared twice"),
        (
            "in(S, mask, rows)",
            "opt_in(S, mask, rows)",
            "11:8: no buffer of kernel drift that is always present",
        ),
        ("val(f32, eps)", "val(bf16, eps)", "13:61: pass a bf16 by value as f32"),
        ("val(f32, eps)", "valu(f32, eps)", "13:57: no item `valu`; there are types functors"),
        ("val(f32, eps)", "val(f32, cols)", "13:66: `cols` is declared twice"),
        (
            "val(f32, eps)",
            "val(f32, eps), arch(sm_100a)",
            "11:1: arch(sm_100a), but line 1 does not name 100a",
        ),
        ("val(f32, eps)", "val(f32, eps), arch(90a)", "13:77: expected an architecture"),
        (&launch[..20], "launch(grid = (min(co", "14:23: no function `min` here"),
        ("block = 256,", "block = (256, 8),", "14:65: a block has at most 1024 threads"),
        ("block = 256,", "block = rows,", "14:65: a block's sides are integers"),
        (
            ",\n       launch(grid = (ceil_div(cols, 256 * VEC), rows), block = 256, shared = 0)",
            "",
            "11:8: kernel drift has no launch",
        ),
        ("shared = 0)) {", "shared = 0));", "14:82: the body `{` must follow"),
        ("shared = 0)) {", "shared = 0, blocks = 33)) {", "14:91: blocks is an integer from 1 to 32"),
        ("shared = 0)) {", "shared = 0, stages = 2)) {", "14:82: expected `blocks = ...` or `)`"),
        ("SHARED(f32[256], part)", "__shared__ f32 part[256]", "15:5: no __shared__ here: write SHARED"),
        ("part[threadIdx.x] = eps;", "asm(\"\");", "17:5: no asm here: a primitive belongs"),
        ("SHARE(Half", "__global__ void own() {}\nSHARE(Half", "7:1: no __global__ here: declare"),
        ("part[threadIdx.x] = eps;", "own<<<1, 1>>>();", "17:8: no <<<>>> here"),
        ("\"core/vec.cuh\"", "<cuda_fp16.h>", "3:1: a kernel file includes headers of core/ only"),
        ("// Rows", "#if 1\n// Rows", "12:1: a KERNEL may not stand inside #if"),
        ("KERNEL(drift", " KERNEL(drift", "11:2: KERNEL must stand at the start of its line"),
        ("KERNEL(drift", "KERNEL(Drift", "11:8: a kernel's name is in lower case"),
        ("// Rows of", "// spills: other, because of", "1:1: `// spills: other`: there is no such kernel"),
        ("// Rows of", "// spills: drift", "10:1: expected `// spills: KERNEL, because REASON`"),
    ] {
        let said = parsed(&edited(from, to)).expect_err(to);
        assert!(said.starts_with(says), "{to}: {said:?} and not {says:?}");
    }
    let twice = format!("{SOURCE}{}", &SOURCE[SOURCE.find("KERNEL").unwrap()..]);
    assert!(parsed(&twice).unwrap_err().ends_with("kernel drift is declared twice"));
}

#[test]
fn the_compilers_refuse() {
    for (name, from, to, line, says) in [
        ("renamed", "val(f32, eps)", "val(f32, epsilon)", 17, &["eps"][..]),
        ("removed", "val(Dims, dims), ", "", 18, &["dims"]),
        ("kind", "val(f32, eps)", "in(f32, eps, rows)", 17, &["cannot convert", "cannot be assigned"]),
        (
            "const",
            "out(T, y, rows * cols)",
            "in(T, y, rows * cols)",
            20,
            &["read-only", "const", "modifiable"],
        ),
        ("functor", "functors(F: SHARE, Twice)", "functors(F: SHARE, Thrice)", 0, &["Thrice"]),
        ("int", "ints(VEC: 1, 4)", "ints(WIDTH: 1, 4)", 16, &["VEC"]),
        ("type", "types(S: u8, i64)", "types(R: u8, i64)", 11, &["S"]),
    ] {
        let text = edited(from, to);
        // A type parameter and an ints that only a declaration names are found by build.rs already.
        let text = match name {
            "int" => text.replace("256 * VEC", "256"),
            "type" => text.replace("in(S, mask", "in(R, mask").replace("mask[row] ?", "S(mask[row]) ?"),
            _ => text,
        };
        let line = if name == "type" { 20 } else { line };
        for nvcc in [Some(None), nvcc().map(Some)].into_iter().flatten() {
            let said = compiled(name, &text, nvcc.as_deref(), |s| s);
            let place = [format!("kernels/drift.cu:{line}:"), format!("kernels/drift.cu({line})")];
            let placed = line == 0 || place.iter().any(|p| said.contains(p));
            assert!(placed && says.iter().any(|s| said.contains(s)), "{name}: {said:?}");
        }
    }
}

/// The argument struct's layout is computed once, for Rust; the C++ compilers compare theirs.
#[test]
fn a_layout_that_differs_is_refused() {
    for nvcc in [Some(None), nvcc().map(Some)].into_iter().flatten() {
        for (name, from, to) in [
            ("size", " f32 eps; }", " f32 eps[4]; }"),
            ("order", "u32 rows; u32 cols;", "u32 cols; u32 rows;"),
        ] {
            let said = compiled(name, SOURCE, nvcc.as_deref(), |unit| {
                assert!(unit.contains(from), "{unit}");
                unit.replace(from, to)
            });
            assert!(said.contains("differs from Rust"), "{name}: {said:?}");
        }
    }
}

#[test]
fn what_ptxas_only_mentions_fails_the_build() {
    let report = |stack: u32, spills: u32| {
        format!(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'drift_f32_u8_Half_1' for 'sm_90a'\n\
             ptxas info    : Function properties for drift_f32_u8_Half_1\n    \
             {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 168 registers, used 1 barriers, 4128 bytes smem\n"
        )
    };
    let unit = parsed(SOURCE).unwrap();
    let usage = nvcc::usage(&report(0, 0));
    let expected = nvcc::Usage {
        function: "drift_f32_u8_Half_1".into(),
        arch: "sm_90a".into(),
        registers: 168,
        shared: 4128,
        stack: 0,
        spills: 0,
    };
    assert_eq!(usage, [expected]);
    assert_eq!(nvcc::complaints(&unit, &report(0, 0)), "");
    for (stack, spills) in [(8, 0), (0, 4)] {
        let said = nvcc::complaints(&unit, &report(stack, spills));
        assert!(said.starts_with("drift_f32_u8_Half_1 on sm_90a: "), "{said}");
    }
    let allowed =
        parsed(&edited("// Rows of", "// spills: drift, because it is a test\n// Rows of")).unwrap();
    assert_eq!(nvcc::complaints(&allowed, &report(8, 4)), "");
    for line in [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...",
        "ptxas info    : (C7519) warpgroup.arrive is injected in around line 12 by compiler",
        "ptxas info    : (C7508) setmaxnreg ignored to maintain minimum register requirements",
    ] {
        assert_eq!(nvcc::complaints(&unit, line), line);
        assert_eq!(nvcc::complaints(&allowed, line), line);
    }
}

#[test]
fn an_object_is_named_after_all_that_it_includes_and_nothing_else() {
    let root = temporary("drift-included");
    std::fs::create_dir_all(root.join("kernels/core")).unwrap();
    let put = |name: &str, text: &str| std::fs::write(root.join("kernels").join(name), text).unwrap();
    put("a.cu", "#include \"core/b.cuh\"\n#include <cstdint>\n");
    put("core/b.cuh", "  # include \"c.cuh\"\n#include \"missing.cuh\"\n");
    put("core/c.cuh", "#include \"core/b.cuh\"\n");
    put("core/d.cuh", "");
    let of = |folder: &Path| {
        let files = files::included(folder, &folder.join("kernels/a.cu"));
        let names: Vec<String> =
            files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["a.cu", "b.cuh", "c.cuh"]);
        files::Hash::new().add_files(&files).text()
    };
    let first = of(&root);
    put("core/d.cuh", "int d;\n");
    assert_eq!(of(&root), first);
    put("core/c.cuh", "#include \"core/b.cuh\"\nint c;\n");
    assert_ne!(of(&root), first);
}

#[test]
fn the_cache_keeps_what_is_used_and_the_latest_of_the_rest() {
    let cache = temporary("drift-cache");
    let object = |n: u64| cache.join(format!("unit-plain-{n:032x}.o"));
    for n in 0..40 {
        let file = std::fs::File::create(object(n)).unwrap();
        let age = std::time::Duration::from_secs(1_000_000_000 + n);
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + age).unwrap();
    }
    std::fs::write(cache.join("other-plain-0.o"), "").unwrap();
    files::prune(&cache, &[object(3)]);
    let left: Vec<u64> = (0..40).filter(|n| object(*n).is_file()).collect();
    assert_eq!(left, [3].into_iter().chain(24..40).collect::<Vec<_>>());
    assert!(cache.join("other-plain-0.o").is_file());
}

/// A crate with our build.rs and one kernel.
struct Crate(PathBuf);

impl Crate {
    fn new(name: &str, kernel: &str) -> Crate {
        let folder = temporary(name);
        let _ = std::fs::remove_dir_all(&folder);
        let copy = |from: &Path, to: &Path| {
            for file in files::below(from, &["rs", "cuh", "h"]) {
                let to = to.join(file.strip_prefix(from).unwrap());
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(&file, to).unwrap();
            }
        };
        copy(&root().join("build"), &folder.join("build"));
        copy(&root().join("kernels"), &folder.join("kernels"));
        std::fs::copy(root().join("build.rs"), folder.join("build.rs")).unwrap();
        std::fs::create_dir_all(folder.join("src")).unwrap();
        std::fs::write(folder.join("src/lib.rs"), "").unwrap();
        std::fs::write(folder.join("kernels/drift.cu"), kernel).unwrap();
        let manifest = "[package]\nname = \"drift\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[features]\nsim = []\n[workspace]\n";
        std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        Crate(folder)
    }

    /// Whether `cargo build` succeeds, and what it says.
    fn build(&self) -> (bool, String) {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(&self.0).args(["build", "--offline", "--color=never"]);
        command.env("CARGO_TARGET_DIR", self.0.join("target")).env("NVCC", "");
        for name in ["RUSTFLAGS", "WARPSMITH_CUDA_ARCHS", "DOCS_RS"] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn without_nvcc_a_second_build_does_nothing_and_a_new_toolkit_is_noticed() {
    let sample = Crate::new("drift-crate", SOURCE);
    let (ok, said) = sample.build();
    assert!(ok && said.contains("Compiling drift"), "{said}");
    assert_eq!(said.matches("no nvcc found").count(), 1, "{said}");
    let (ok, said) = sample.build();
    assert!(ok && !said.contains("Compiling"), "{said}");
    // What scripts/get-nvcc.sh does at its end.
    std::fs::write(sample.0.join("target/cuda-toolkit-stamp/installed"), "").unwrap();
    let (ok, said) = sample.build();
    assert!(ok && said.contains("Compiling"), "{said}");

    let broken = edited("val(f32, eps)", "val(f33, eps)");
    std::fs::write(sample.0.join("kernels/drift.cu"), broken).unwrap();
    let (ok, said) = sample.build();
    assert!(!ok && said.contains("error: drift@0.1.0: kernels/drift.cu:13:61: no type `f33`"), "{said}");
}

/// The simulator's Hopper kernel (tensor maps, mbarriers, wgmma, setmaxnreg) is real CUDA too.
#[test]
fn the_hopper_kernel_of_the_simulator_compiles_for_hopper_without_a_word() {
    let Some(nvcc) = nvcc() else { return };
    let folder = temporary("drift-hopper");
    std::fs::create_dir_all(&folder).unwrap();
    let output = Command::new(nvcc)
        .current_dir(root())
        .args(["-std=c++17", "-fmad=false", "-x", "cu", "-cubin", "-gencode=arch=compute_90a,code=sm_90a"])
        .args(["-I.", "-Ikernels", "-Xptxas", "-v", "tests/sim/gemm_tma_wgmma.cu", "-o"])
        .arg(folder.join("hopper.cubin"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(nvcc::complaints(&parsed(SOURCE).unwrap(), &said), "");
    // All 65,536 registers of a multiprocessor, for one block of 384 threads: what setmaxnreg shares out.
    let usage = nvcc::usage(&said);
    assert!(usage.iter().any(|u| u.function == "gemm_tma" && u.registers == 168), "{usage:?}");
}
