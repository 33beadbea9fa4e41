//! Compiles pieces of the simulator and kernels for tests, with the host's C++ compiler, as build.rs does. Results are
//! kept under the target folder by the content of all that goes in.
#![allow(dead_code)]

#[path = "../../build/files.rs"]
mod files;

use std::path::{Path, PathBuf};
use std::process::Command;

use files::{Hash, below, parallel};

const COMMON: [&str; 6] =
    ["-std=c++20", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-g1", "-fPIC"];
const PLAIN: &[&str] = &["-O2"];
const CHECKED: &[&str] = &["-O1", "-fno-tree-sra", "-fsanitize=thread", "-DWS_SIM_CHECKED"];

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sim");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn compiler() -> Command {
    Command::new(std::env::var("CXX").unwrap_or("c++".into()))
}

/// Runs a command that makes `to`, which gets its name when it is complete: another test may be at the same one.
fn make(command: &mut Command, to: &Path) {
    let unfinished = to.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let output = command.arg("-o").arg(&unfinished).output().expect("a C++ compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    std::fs::rename(unfinished, to).unwrap();
}

/// A file to compile, against the headers of the checkout or of the folder `over` in its place.
pub struct Source {
    pub file: PathBuf,
    pub checked: bool,
    pub over: Option<PathBuf>,
}

fn object(source: &Source) -> PathBuf {
    // What may be included: all headers; in a copy made for it, also its kernels.
    let headers = match &source.over {
        Some(over) => below(over, &["cuh", "h", "cu"]),
        None => below(&root().join("kernels"), &["cuh", "h"]),
    };
    let flags = if source.checked { CHECKED } else { PLAIN };
    let hash = Hash::new().add(COMMON.join(" ")).add(flags.join(" ")).add_files(&headers);
    let hash = hash.add_files(std::slice::from_ref(&source.file)).text();
    let object = folder().join(format!("{}-{hash}.o", source.file.file_stem().unwrap().to_string_lossy()));
    if !object.is_file() {
        let mut command = compiler();
        command.current_dir(root()).args(COMMON).args(flags);
        let base = source.over.as_deref().unwrap_or(root());
        command.arg("-I").arg(base).arg("-I").arg(base.join("kernels"));
        make(command.args(["-x", "c++", "-c"]).arg(&source.file), &object);
    }
    object
}

/// Compiles what is missing and links it all: an executable, or with `shared` a library.
pub fn link(name: &str, sources: &[Source], shared: bool) -> PathBuf {
    let runtime = below(&root().join("kernels/sim"), &["cpp"]);
    let runtime = runtime.into_iter().map(|file| Source { file, checked: false, over: None });
    let runtime: Vec<Source> = runtime.collect();
    let objects = parallel(&runtime.iter().chain(sources).collect::<Vec<_>>(), |s| object(s));
    let hash = objects.iter().fold(Hash::new(), |hash, o| hash.add(o.to_string_lossy().as_bytes())).text();
    let linked = folder().join(format!("{name}-{hash}{}", if shared { ".so" } else { "" }));
    if !linked.is_file() {
        let mut command = compiler();
        if shared {
            command.args(["-shared", "-Wl,-Bsymbolic"]);
        }
        make(command.args(&objects).args(["-lpthread", "-ldl"]), &linked);
    }
    linked
}

/// The kernels of `kernels/UNIT.cu` with one piece of its text, or of a header's, replaced, as a library for `sim_load`.
/// `file` is below `kernels/`; `from` must stand in it exactly once. `generate` makes the generated unit from the text of
/// `UNIT.cu`, with build/parse.rs and build/emit.rs, which want to stand at the root of a crate. The library has checked
/// kernels alone, also where plain ones are asked for.
pub fn planted(unit: &str, file: &str, from: &str, to: &str, generate: impl Fn(&str) -> String) -> PathBuf {
    let read = |file: &str| {
        let path = root().join("kernels").join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let text = read(file);
    assert_eq!(text.matches(from).count(), 1, "{from:?} must stand in {file} once");
    let text = text.replace(from, to);
    let hash = Hash::new().add(unit).add(file).add(&text).text();
    // A copy of all headers: they name each other by their own place.
    let over = folder().join(format!("planted-{hash}"));
    let kernels = root().join("kernels");
    for path in below(&kernels, &["cu", "cuh", "h"]) {
        let name = path.strip_prefix(&kernels).unwrap();
        let target = over.join("kernels").join(name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let text = if name == Path::new(file) { text.clone() } else { read(&name.to_string_lossy()) };
        files::write(&target, text).unwrap();
    }
    let source = std::fs::read_to_string(over.join(format!("kernels/{unit}.cu"))).unwrap();
    let (generated, table) = (over.join(format!("{unit}.cpp")), over.join("table.cpp"));
    files::write(&generated, generate(&source)).unwrap();
    let name = format!("sim_checked_table_{unit}");
    let lists = ["sim_tables", "sim_checked_tables"]
        .map(|list| format!("extern const sim::Entry* const {list}[] = {{{name}, nullptr}};\n"));
    let text = format!("#include \"sim/sim.h\"\nextern const sim::Entry {name}[];\n{}", lists.concat());
    files::write(&table, text).unwrap();
    // The generated file names `kernels/UNIT.cu` and `core/...`: both below the copy.
    let source = |file: &Path, checked| Source { file: file.into(), checked, over: Some(over.clone()) };
    let sources = [source(&generated, true), source(&table, false)];
    link(&format!("planted-{unit}"), &sources, true)
}
