//! The kernel simulator (feature `sim`): `kernels/sim/*.cpp` and every generated unit, compiled by the host's C++ compiler
//! into one static library. Each unit is compiled twice: plain, and checked, where the compiler calls a hook at each access
//! to memory. The hooks are the simulator's own: no sanitizer runtime is linked.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::decl::Unit;
use crate::emit;
use crate::files::{Hash, below, included, parallel, prune, write};

const COMMON: [&str; 6] =
    ["-std=c++20", "-ffp-contract=off", "-Wno-psabi", "-g1", "-fPIC", "-fno-omit-frame-pointer"];
const PLAIN: [&str; 1] = ["-O2"];
// Without splitting aggregates, a vector's load stays one access: its alignment is seen, and one hook is called instead of many.
const CHECKED: [&str; 4] = ["-O1", "-fno-tree-sra", "-fsanitize=thread", "-DWS_SIM_CHECKED"];

/// One object file to be made.
struct Job {
    source: PathBuf,
    flags: Vec<String>,
    object: PathBuf,
    /// The only symbol that others may see, for a unit: templates and inline functions of headers, compiled differently in
    /// each unit and variant, must not be merged by the linker.
    table: Option<String>,
}

/// Compiles what changed since the last build into `cache`, and links the library into the crate.
pub fn build(root: &Path, out: &Path, cache: &Path, units: &[Unit]) -> Result<(), String> {
    let tool = cc::Build::new().cpp(true).warnings(false).try_get_compiler();
    let tool = tool.map_err(|e| format!("the kernel simulator (feature `sim`) needs a C++ compiler: {e}"))?;
    let compiler = Compiler::new(tool.path(), root)?;
    let generated = out.join("gen");
    let common = Hash::new().add(compiler.identity());

    let mut jobs = Vec::new();
    let mut add = |source: PathBuf, variant: &str, flags: &[&str], table: Option<String>| {
        let hash = common.clone().add(flags.join(" ")).add_files(&included(root, &source));
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let object = cache.join(format!("{stem}-{variant}-{}.o", hash.text()));
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        jobs.push(Job { source, flags, object, table });
    };
    for unit in units {
        let source = generated.join(format!("{}.cpp", unit.stem));
        for (variant, flags) in [("plain", &PLAIN[..]), ("checked", &CHECKED[..])] {
            let table = emit::table_name(&unit.stem, variant == "checked");
            add(source.clone(), variant, flags, Some(table));
        }
    }
    add(generated.join("table.cpp"), "sim", &PLAIN, None);
    for source in below(&root.join("kernels/sim"), &["cpp"]) {
        add(source, "sim", &PLAIN, None);
    }

    let missing: Vec<&Job> = jobs.iter().filter(|j| !j.object.is_file()).collect();
    let mut failed = Vec::<String>::new();
    for message in parallel(&missing, |job| compiler.run(job)).into_iter().filter_map(Result::err) {
        // Both variants of a unit say the same of a mistake.
        if !failed.contains(&message) {
            failed.push(message);
        }
    }
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    let objects: Vec<PathBuf> = jobs.iter().map(|j| j.object.clone()).collect();
    prune(cache, &objects);

    let library = out.join("libwarpsmith_sim.a");
    let list: Vec<String> = objects.iter().map(|o| o.display().to_string()).collect();
    let (stamp, list) = (out.join("sim-objects.txt"), list.join("\n"));
    if !library.is_file() || std::fs::read_to_string(&stamp).ok().as_ref() != Some(&list) {
        let _ = std::fs::remove_file(&library);
        let mut archiver = cc::Build::new().try_get_archiver().map_err(|e| e.to_string())?;
        run(archiver.arg("crs").arg(&library).args(&objects))?;
        write(&stamp, &list)?;
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=warpsmith_sim");
    println!("cargo::rustc-link-lib={}", if cfg!(target_os = "macos") { "c++" } else { "stdc++" });
    Ok(())
}

struct Compiler {
    path: PathBuf,
    root: PathBuf,
    version: String,
}

impl Compiler {
    fn new(path: &Path, root: &Path) -> Result<Compiler, String> {
        let output = Command::new(path).arg("--version").output();
        let output = output.map_err(|e| {
            format!("the kernel simulator (feature `sim`) needs a C++ compiler; {}: {e}", path.display())
        })?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Compiler { path: path.to_path_buf(), root: root.to_path_buf(), version })
    }

    /// What decides the objects besides sources and flags.
    fn identity(&self) -> String {
        format!("1 {} {} {}", self.path.display(), self.version, COMMON.join(" "))
    }

    fn run(&self, job: &Job) -> Result<(), String> {
        // The object gets its name when it is complete: another build may be at the same one.
        let process = std::process::id();
        let raw = job.object.with_extension(format!("{process}.raw.o"));
        let whole = job.object.with_extension(format!("{process}.o"));
        let mut compile = Command::new(&self.path);
        compile.current_dir(&self.root).args(COMMON).args(&job.flags).args(["-I.", "-Ikernels", "-c"]);
        run(compile.arg(&job.source).arg("-o").arg(&raw))?;
        match &job.table {
            None => std::fs::rename(&raw, &whole).map_err(|e| e.to_string())?,
            Some(table) => {
                let mut link = Command::new(&self.path);
                link.args(["-r", "-nostdlib", "-Wl,--force-group-allocation"])
                    .arg(&raw)
                    .arg("-o")
                    .arg(&whole);
                run(&mut link)?;
                run(Command::new("objcopy").arg(format!("--keep-global-symbol={table}")).arg(&whole))?;
                let _ = std::fs::remove_file(&raw);
            }
        }
        std::fs::rename(&whole, &job.object).map_err(|e| format!("{}: {e}", job.object.display()))
    }
}

/// Runs a command; if it fails, what it said.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} failed:\n{}", said.trim_end()))
}
