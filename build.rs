//! Builds what stands in `kernels/`: declarations become typed launches (always), the simulator (feature `sim`, with a C++
//! compiler), and fatbins (where nvcc is found). Needs Rust alone; what is missing is said in one line.

#[path = "build/decl.rs"]
mod decl;
#[path = "build/emit.rs"]
mod emit;
#[path = "build/files.rs"]
mod files;
#[cfg(feature = "sim")]
#[path = "build/host.rs"]
mod host;
#[path = "build/launches.rs"]
mod launches;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/parse.rs"]
mod parse;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use decl::Unit;
use files::write;

fn main() {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "CXX", "WARPSMITH_CUDA_ARCHS", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn folder(variable: &str) -> Result<PathBuf, String> {
    std::env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"))
}

fn build() -> Result<(), String> {
    let (root, out) = (folder("CARGO_MANIFEST_DIR")?, folder("OUT_DIR")?);
    let target = target_folder(&out);
    let generated = out.join("gen");
    let cache = target.join("kernel-cache");
    for new in [&generated, &cache] {
        std::fs::create_dir_all(new).map_err(|e| format!("{}: {e}", new.display()))?;
    }
    let units = read(&root)?;
    for unit in &units {
        write(&generated.join(format!("{}.cpp", unit.stem)), emit::unit(unit))?;
    }
    write(&generated.join("table.cpp"), emit::table(&units))?;
    write(&out.join("kernels.rs"), launches::rust(&units))?;
    write(&out.join("fatbins.rs"), fatbins(&root, &out, &target, &cache, &units)?)?;
    #[cfg(feature = "sim")]
    host::build(&root, &out, &cache, &units)?;
    Ok(())
}

/// The folder that holds all profiles and targets: caches in it serve every build of the checkout.
fn target_folder(out: &Path) -> PathBuf {
    // target/PROFILE/build/PACKAGE/out, or target/TRIPLE/PROFILE/...; cargo marks the folder it makes.
    let folders = [4, 5].map(|n| out.ancestors().nth(n));
    let tagged = folders.into_iter().flatten().find(|f| f.join("CACHEDIR.TAG").is_file());
    tagged.or(folders[0]).unwrap_or(out).to_path_buf()
}

/// All declarations.
fn read(root: &Path) -> Result<Vec<Unit>, String> {
    let folder = root.join("kernels");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "cu"));
    files.sort();
    let mut units = Vec::new();
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        // The stem is part of names in C++ and in Rust.
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !stem.starts_with(|c: char| c.is_ascii_lowercase()) || !stem.chars().all(letters) {
            return Err(format!("kernels/{stem}.cu: name the file in lower case, digits and underscores"));
        }
        let unit = parse::unit(&stem, &text);
        units.push(unit.map_err(|e| format!("kernels/{stem}.cu:{}:{}: {}", e.line, e.column, e.what))?);
    }
    // The simulator and the drivers find an instance by its symbol.
    let mut seen = std::collections::BTreeMap::new();
    for unit in &units {
        for kernel in &unit.kernels {
            for symbol in kernel.instances().iter().map(|i| kernel.symbol(i)) {
                let place = format!("{}:{}", unit.path(), kernel.line);
                if let Some(first) = seen.insert(symbol.clone(), place.clone()) {
                    return Err(format!("{place}:1: an instance {symbol} is declared at {first} too"));
                }
            }
        }
    }
    Ok(units)
}

/// Compiles the fatbins and writes the Rust table of them.
fn fatbins(root: &Path, out: &Path, target: &Path, cache: &Path, units: &[Unit]) -> Result<String, String> {
    let mut built = Vec::new();
    let mut version = None;
    if std::env::var_os("DOCS_RS").is_none() {
        let toolkit = target.join("cuda-toolkit");
        watch(&target.join("cuda-toolkit-stamp"));
        match nvcc::find(&toolkit).map(|path| nvcc::Nvcc::new(path, cache)) {
            None => println!(
                "cargo::warning=no nvcc found: built without GPU kernels (scripts/get-nvcc.sh installs one)"
            ),
            Some(Err(e)) => println!("cargo::warning=built without GPU kernels: {e}"),
            Some(Ok(found)) => {
                let only = std::env::var("WARPSMITH_CUDA_ARCHS").ok();
                built = nvcc::build(&found, root, &out.join("gen"), cache, units, only.as_deref())?;
                version = Some(found.version);
            }
        }
    }
    let mut table = String::new();
    for unit in units {
        for a in &unit.allowances {
            let _ = writeln!(table, "# {} may spill, because {}", a.kernel, a.reason);
        }
    }
    table += "kernel\tarch\tregisters\tshared\tstack\tspills\n";
    let mut s = String::from(
        "// Generated by build.rs: do not edit.\n/// The kernels' machine code by unit; empty where the build found no nvcc.\n",
    );
    s += "pub static FATBINS: &[(&str, &[u8])] = &[\n";
    for unit in &built {
        let file = format!("{}.fatbin", unit.stem);
        let bytes = std::fs::read(&unit.fatbin).map_err(|e| format!("{}: {e}", unit.fatbin.display()))?;
        write(&out.join(&file), bytes)?;
        let _ =
            writeln!(s, "    ({:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))),", unit.stem);
        for u in &unit.usage {
            let _ = writeln!(
                table,
                "{}\t{}\t{}\t{}\t{}\t{}",
                u.function, u.arch, u.registers, u.shared, u.stack, u.spills
            );
        }
    }
    s += "];\n/// How the kernels were built.\npub static BUILD_INFO: BuildInfo = BuildInfo {\n";
    let _ = writeln!(s, "    nvcc: {version:?},\n    archs: &[");
    for unit in &built {
        let _ = writeln!(s, "        ({:?}, &{:?}),", unit.stem, unit.archs);
    }
    s += "    ],\n};\n";
    write(&out.join("kernel-table.tsv"), table)?;
    Ok(s)
}

/// Watches a folder that exists from now on; `scripts/get-nvcc.sh` puts a file there. A path that does not exist would make
/// cargo run this script every time, and so would one that is newer than the run.
fn watch(stamp: &Path) {
    if !stamp.is_dir() && std::fs::create_dir_all(stamp).is_ok() {
        let before = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let _ = std::fs::File::open(stamp).and_then(|folder| folder.set_modified(before));
    }
    println!("cargo::rerun-if-changed={}", stamp.display());
}
