//! `.cu` to fatbin by nvcc, where one is found: one call per file, all its architectures in it. What ptxas only mentions
//! (spills, stack frames, serialised wgmma) fails the build.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::decl::{Arch, Unit};
use crate::files::{Hash, included, parallel, prune};

const FLAGS: [&str; 5] =
    ["-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v,-warn-spills,-warn-lmem-usage", "-fatbin"];
/// The oldest version that compiles the kernels, and the oldest that knows how to compress for size.
const OLDEST: (u32, u32) = (12, 0);
const COMPRESSES: (u32, u32) = (12, 8);

/// A usable nvcc.
pub struct Nvcc {
    path: PathBuf,
    /// Such as `13.0.88`.
    pub version: String,
    codes: Vec<String>,
    compresses: bool,
}

/// Where nvcc looks for its host compiler.
fn host_path() -> Vec<u8> {
    std::env::var_os("PATH").unwrap_or_default().as_encoded_bytes().to_vec()
}

/// The places that are looked at, in order: `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, `/usr/local/cuda`, and `toolkit`, which
/// `scripts/get-nvcc.sh` fills. An empty `NVCC` means: none.
pub fn find(toolkit: &Path) -> Option<PathBuf> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return (!nvcc.is_empty()).then(|| nvcc.into());
    }
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(|v| PathBuf::from(v).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).collect();
    folders.extend(std::env::split_paths(&path));
    folders.extend(["/usr/local/cuda/bin".into(), toolkit.join("bin")]);
    folders.into_iter().map(|f| f.join("nvcc")).find(|n| n.is_file())
}

impl Nvcc {
    /// Asks it what it is, and has it compile an empty kernel once, so that a toolkit that cannot be used here (without a
    /// host compiler, or with one that it refuses) is no obstacle to a build without kernels.
    pub fn new(path: PathBuf, cache: &Path) -> Result<Nvcc, String> {
        let run = |command: &mut Command| -> Result<String, String> {
            let output = command.output().map_err(|e| format!("{}: {e}", path.display()))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() {
                return Ok(text(&output.stdout));
            }
            let said = text(&output.stderr) + &text(&output.stdout);
            let line = said.lines().find(|l| !l.trim().is_empty()).unwrap_or("it fails");
            Err(format!("{}: {}", path.display(), line.trim()))
        };
        let said = run(Command::new(&path).arg("--version"))?;
        let version = said.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
        let Some(version) = version.map(str::to_owned) else {
            return Err(format!("{} does not say its version", path.display()));
        };
        let mut parts = version.split('.').map(|n| n.parse().unwrap_or(0));
        let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if number < OLDEST {
            return Err(format!("nvcc {version} is older than {}.{}", OLDEST.0, OLDEST.1));
        }
        let identity = Hash::new().add(path.as_os_str().as_encoded_bytes()).add(&said).add(host_path());
        let works = cache.join(format!("nvcc-{}.ok", identity.text()));
        if !works.is_file() {
            let trial = cache.join(format!("nvcc-{}.cu", std::process::id()));
            let object = trial.with_extension("trial");
            let empty = "extern \"C\" __global__ void empty() {}\n";
            std::fs::write(&trial, empty).map_err(|e| format!("{}: {e}", trial.display()))?;
            let result =
                run(Command::new(&path).args(["-std=c++17", "-fatbin"]).arg(&trial).arg("-o").arg(&object));
            let _ = std::fs::remove_file(&trial);
            let _ = std::fs::remove_file(&object);
            result?;
            let _ = std::fs::write(&works, &version);
        }
        let codes = run(Command::new(&path).arg("--list-gpu-code"))?;
        let codes = codes.split_whitespace().map(str::to_owned).collect();
        Ok(Nvcc { path, version, codes, compresses: number >= COMPRESSES })
    }

    /// Whether it compiles for this architecture. A suffix is not listed by every version that knows it.
    fn knows(&self, arch: &Arch) -> bool {
        let plain = format!("sm_{}", arch.name.trim_end_matches(['a', 'f']));
        self.codes.iter().any(|c| *c == plain || *c == format!("sm_{}", arch.name))
    }
}

/// A kernel on an architecture, as ptxas reports it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    pub function: String,
    pub arch: String,
    pub registers: u32,
    pub shared: u32,
    pub stack: u32,
    pub spills: u32,
}

/// What became of a unit.
pub struct Built {
    pub stem: String,
    pub archs: Vec<String>,
    pub fatbin: PathBuf,
    pub usage: Vec<Usage>,
}

/// Compiles all units. `only` narrows the architectures.
pub fn build(
    nvcc: &Nvcc,
    root: &Path,
    generated: &Path,
    cache: &Path,
    units: &[Unit],
    only: Option<&str>,
) -> Result<Vec<Built>, String> {
    let wanted: Option<Vec<&str>> = only.map(|o| o.split([' ', ',']).filter(|w| !w.is_empty()).collect());
    if let Some(odd) = wanted.iter().flatten().find(|w| Arch::parse(w).is_none()) {
        return Err(format!(
            "WARPSMITH_CUDA_ARCHS: no architecture `{odd}`; write them as in `80 90a ptx80`"
        ));
    }
    let common = Hash::new().add(format!("2 {} {}", nvcc.version, FLAGS.join(" ")));
    let mut unknown = Vec::new();
    let mut jobs = Vec::new();
    for unit in units {
        let mut archs = unit.archs.clone();
        archs.retain(|a| {
            wanted.as_ref().is_none_or(|w| w.iter().any(|w| serving(&unit.archs, w) == Some(a.text())))
        });
        archs.retain(|a| {
            let known = nvcc.knows(a);
            if !known && !unknown.contains(&a.text()) {
                unknown.push(a.text());
            }
            known
        });
        if archs.is_empty() {
            continue;
        }
        let names: Vec<String> = archs.iter().map(Arch::text).collect();
        let source = generated.join(format!("{}.cpp", unit.stem));
        let mut files = included(root, &source);
        // The host's side of the vocabulary.
        files.retain(|f| f.parent().is_none_or(|p| !p.ends_with("kernels/sim")));
        let hash = common.clone().add(names.join(" ")).add_files(&files).text();
        jobs.push((unit, archs, names, source, cache.join(format!("{}-{hash}.fatbin", unit.stem))));
    }
    if !unknown.is_empty() {
        println!("cargo::warning=nvcc {} does not know {}: built without", nvcc.version, unknown.join(", "));
    }
    let cores = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1);
    let missing = jobs.iter().filter(|(.., fatbin)| !fatbin.is_file()).count();
    let threads = (cores / missing.max(1)).max(1);
    let results = parallel(&jobs, |(unit, archs, names, source, fatbin)| {
        let log = fatbin.with_extension("log");
        if !fatbin.is_file() || !log.is_file() {
            compile(nvcc, root, unit, archs, source, fatbin, threads)?;
        }
        let said = std::fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let (stem, archs, fatbin) = (unit.stem.clone(), names.clone(), fatbin.clone());
        Ok(Built { stem, archs, fatbin, usage: usage(&said) })
    });
    let (mut built, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(b) => built.push(b),
            Err::<_, String>(e) => failed.push(e),
        }
    }
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    let used: Vec<PathBuf> =
        built.iter().flat_map(|b| [b.fatbin.clone(), b.fatbin.with_extension("log")]).collect();
    prune(cache, &used);
    Ok(built)
}

/// One call of nvcc. The fatbin gets its name when it is complete and what ptxas said is in order.
fn compile(
    nvcc: &Nvcc,
    root: &Path,
    unit: &Unit,
    archs: &[Arch],
    source: &Path,
    fatbin: &Path,
    threads: usize,
) -> Result<(), String> {
    let unfinished = fatbin.with_extension(format!("{}.tmp", std::process::id()));
    let mut command = Command::new(&nvcc.path);
    command.current_dir(root).args(FLAGS).args(["-I.", "-Ikernels", "-x", "cu"]);
    command.arg(format!("--threads={threads}"));
    if nvcc.compresses {
        command.arg("--compress-mode=size");
    }
    for arch in archs {
        let kind = if arch.ptx { "compute" } else { "sm" };
        command.arg(format!("-gencode=arch=compute_{0},code={kind}_{0}", arch.name));
    }
    let output = command.arg(source).arg("-o").arg(&unfinished).output();
    let output = output.map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let complaints = if output.status.success() { complaints(unit, &said) } else { said.clone() };
    if !complaints.is_empty() {
        let _ = std::fs::remove_file(&unfinished);
        return Err(format!("nvcc, {}:\n{}", unit.path(), complaints.trim_end()));
    }
    std::fs::write(fatbin.with_extension("log"), said).map_err(|e| e.to_string())?;
    std::fs::rename(&unfinished, fatbin).map_err(|e| format!("{}: {e}", fatbin.display()))
}

/// The architecture of a file that runs on a wanted one: that itself, or the nearest below it of the same generation (code
/// for 80 runs on 86, code for 90 on a Hopper that is asked for as 90a).
fn serving(archs: &[Arch], wanted: &str) -> Option<String> {
    let exact = archs.iter().find(|a| a.text() == wanted);
    if let Some(exact) = exact {
        return Some(exact.text());
    }
    let most: u32 = wanted.trim_end_matches(['a', 'f']).parse().ok()?;
    let number = |a: &Arch| a.name.parse::<u32>().ok().filter(|_| !a.ptx);
    let nearest = archs.iter().filter(|a| number(a).is_some_and(|n| n <= most && n / 10 == most / 10));
    nearest.max_by_key(|a| number(a)).map(Arch::text)
}

/// What may not stand in ptxas's report; it exits with 0 all the same.
pub fn complaints(unit: &Unit, said: &str) -> String {
    let mut found = Vec::new();
    for line in said.lines() {
        let code = line.split("(C75").nth(1).is_some_and(|rest| rest.as_bytes().get(2) == Some(&b')'));
        if code || line.contains("Potential Performance Loss") || line.contains("is injected in around line")
        {
            found.push(line.trim().to_owned());
        }
    }
    for usage in usage(said) {
        let Usage { function, arch, stack, spills, .. } = &usage;
        let kernel = unit.kernels.iter().find(|k| k.instances().iter().any(|i| k.symbol(i) == *function));
        let allowed = kernel.is_some_and(|k| unit.allowances.iter().any(|a| a.kernel == k.name));
        if (*stack > 0 || *spills > 0) && !allowed {
            found.push(format!("{function} on {arch}: {stack} bytes of stack, {spills} bytes of spills"));
        }
    }
    found.join("\n")
}

/// The report of `ptxas -v`, a row per function and architecture.
pub fn usage(said: &str) -> Vec<Usage> {
    let mut rows = Vec::<Usage>::new();
    let mut arch = String::new();
    let before = |line: &str, what: &str| -> u32 {
        let head = line.split(what).next().unwrap_or_default();
        head.rsplit(|c: char| !c.is_ascii_digit())
            .find(|w| !w.is_empty())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    };
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            arch = rest.split('\'').nth(2).unwrap_or_default().to_owned();
        } else if let Some(name) = line.split("Function properties for ").nth(1) {
            rows.push(Usage { function: name.trim().to_owned(), arch: arch.clone(), ..Usage::default() });
        } else if let Some(row) = rows.last_mut() {
            if line.contains("bytes stack frame") {
                row.stack = before(line, " bytes stack frame");
                row.spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
            } else if line.contains(" registers") && line.contains("Used ") {
                row.registers = before(line, " registers");
                if line.contains(" bytes smem") {
                    row.shared = before(line, " bytes smem");
                }
            }
        }
    }
    rows
}
