//! Token shards as llm.c writes and reads them: 256 32-bit words (magic 20240520, version 1, the number of tokens, zeros), then
//! the tokens, 16 bits each, all little-endian. A file is exactly 1,024 + 2·n bytes long; what is not is refused.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::io::mmap::Mapped;
use crate::io::write_atomically;
use crate::{Error, Result};

/// The tokeniser that made the shards of a folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The most tokens that llm.c's signed count can hold.
pub const MAX_SHARD_TOKENS: u64 = i32::MAX as u64;

const MAGIC: u32 = 20_240_520;
const MAGIC_LLAMA3: u32 = 20_240_801;
const VERSION: u32 = 1;
const HEADER: usize = 1024;

/// A shard, mapped and checked. Only the header has been read.
#[derive(Debug)]
pub(super) struct Shard(Mapped);

impl Shard {
    /// # Errors
    /// Kind `Data`: cannot be mapped; wrong magic, version or size (says what was expected and what is there).
    pub(super) fn open(path: &Path) -> Result<Shard> {
        let map = Mapped::open(path)?;
        let len = map.len();
        if len < HEADER {
            return Err(Error::data(
                path,
                format!("expected a shard with a header of {HEADER} bytes, found {len} bytes"),
            ));
        }
        let word =
            |i: usize| u32::from_le_bytes([map[4 * i], map[4 * i + 1], map[4 * i + 2], map[4 * i + 3]]);
        let (magic, version, tokens) = (word(0), word(1), u64::from(word(2)));
        if magic != MAGIC {
            let error = Error::data(path, format!("expected a shard's magic {MAGIC}, found {magic}"));
            return Err(match magic {
                MAGIC_LLAMA3 => error.with_help("this is llm.c's form for Llama 3, with 32 bits a token"),
                _ => error.with_help("warpsmith tokenize makes shards of a text"),
            });
        }
        if version != VERSION {
            return Err(Error::data(path, format!("expected a shard of version {VERSION}, found {version}")));
        }
        let expected = HEADER as u64 + 2 * tokens;
        if len as u64 != expected {
            return Err(Error::data(
                path,
                format!("expected {expected} bytes for the {tokens} tokens of the header, found {len}"),
            ));
        }
        Ok(Shard(map))
    }

    pub(super) fn tokens(&self) -> &[u16] {
        // A map starts at a page, so the tokens are aligned.
        bytemuck::cast_slice(&self.0[HEADER..])
    }
}

/// Writes a shard in one step.
///
/// # Errors
/// Kind `Argument`: more tokens than [`MAX_SHARD_TOKENS`]; kind `Data`: it cannot be written.
pub(super) fn write(path: &Path, tokens: &[u16]) -> Result<()> {
    if tokens.len() as u64 > MAX_SHARD_TOKENS {
        let n = tokens.len();
        return Err(Error::argument(format!("{n} tokens do not fit a shard: at most {MAX_SHARD_TOKENS} do")));
    }
    let mut header = [0u32; HEADER / 4];
    header[..3].copy_from_slice(&[MAGIC, VERSION, tokens.len() as u32]);
    write_atomically(path, |out| {
        let written = out.write_all(bytemuck::cast_slice(&header));
        written
            .and_then(|()| out.write_all(bytemuck::cast_slice(tokens)))
            .map_err(|e| Error::io(path, "write", e))
    })
}

/// The shards that a name stands for, told apart by theirs: what has `val` in its file name validates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFiles {
    /// To learn from, in the order of their names.
    pub train: Vec<PathBuf>,
    /// To validate on, in the order of their names.
    pub val: Vec<PathBuf>,
}

impl ShardFiles {
    /// Finds shards: one file, a folder (all `*.bin` in it), or a file name with `*` for any characters and `?` for one.
    ///
    /// # Errors
    /// Kind `Data`: nothing is found, or a folder cannot be read.
    pub fn find(path: impl AsRef<Path>) -> Result<ShardFiles> {
        let path = path.as_ref();
        let (folder, pattern) = match path.file_name().and_then(|name| name.to_str()) {
            _ if path.is_dir() => (path, "*.bin"),
            // A file may have a star in its name.
            Some(name) if name.contains(['*', '?']) && !path.exists() => {
                (path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")), name)
            }
            _ => {
                fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
                return Ok(ShardFiles::sorted(vec![path.to_owned()]));
            }
        };
        let list = |e| Error::io(folder, "list the folder", e);
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name();
            // What starts with a dot is half-written or hidden.
            if name.to_str().is_some_and(|n| !n.starts_with('.') && matches(pattern, n))
                && entry.path().is_file()
            {
                found.push(entry.path());
            }
        }
        if found.is_empty() {
            let why = format!("no token shards: nothing in {} is called {pattern}", folder.display());
            return Err(Error::data(path, why).with_help("warpsmith tokenize makes shards of a text"));
        }
        Ok(ShardFiles::sorted(found))
    }

    fn sorted(mut found: Vec<PathBuf>) -> ShardFiles {
        found.sort();
        let validates = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().contains("val"));
        let (val, train) = found.into_iter().partition(validates);
        ShardFiles { train, val }
    }
}

/// Whether a name fits a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star, and how much of the name it has taken.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_shell_does() {
        for (pattern, name, fits) in [
            ("*.bin", "train_000000.bin", true),
            ("*.bin", ".bin", true),
            ("*.bin", "train.bin.gz", false),
            ("*_val_*.bin", "fineweb_val_000000.bin", true),
            ("*_val_*.bin", "fineweb_train_000000.bin", false),
            ("a?c*", "abc", true),
            ("a?c*", "ac", false),
            ("*a*b", "xaxbxb", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
