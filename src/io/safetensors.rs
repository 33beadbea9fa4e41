//! safetensors: a strict reader and a deterministic writer.
//!
//! A file is a header length (u64), a JSON header and the tensors' bytes. The reader accepts a file only if there is
//! one way to read it: every byte belongs to exactly one tensor, no name or key occurs twice (compared after their
//! escapes are resolved), and every range has the length that element type and shape imply. It refuses element types
//! that no [`DType`] stands for; `BOOL` is read as `u8`.
//!
//! The header parser is our own: the crate `safetensors` parses through serde_json, which keeps the last of two equal
//! keys, and would bring serde into the bare engine. The writer orders tensors as that crate does (widest element type
//! first, then by name), so that every tensor is aligned and the bytes depend on the content alone.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::json::{self, Outcome, Reader};
use super::{HostTensor, byte_len, open_regular, read_vec, write_atomically};
use crate::{DType, Error, Result};

/// The longest header accepted, in bytes; the limit of the format's reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The most tensors accepted in one file: a guard against headers made to exhaust memory.
pub const MAX_TENSORS: usize = 1_000_000;
/// The most dimensions accepted; far beyond any tensor of ours, which check their own rank.
const MAX_RANK: usize = 64;
const METADATA: &str = "__metadata__";

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    name: String,
    dtype: DType,
    /// Stored as `BOOL`: the bytes must be 0 or 1.
    boolean: bool,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Entry {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the elements are, in bytes from the end of the header.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

/// A checked header: names, shapes and metadata, without the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    file: PathBuf,
    /// Sorted by name.
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    /// The tensors, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of this name, if there is one.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }

    /// The file's free-form strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The total length of the tensors, in bytes.
    pub fn data_bytes(&self) -> usize {
        self.entries.iter().map(|e| e.range.len()).sum()
    }

    /// Reads and checks a header from the front of `from`, a file of `len` bytes.
    fn read(file: &Path, from: &mut dyn Read, len: u64) -> Result<Header> {
        if len < 8 {
            return Err(Error::data(
                file,
                format!("truncated: expected a header length of 8 bytes, found a file of {len}"),
            ));
        }
        let prefix = read_vec(file, from, 8, "header length")?;
        let header_len = u64::from_le_bytes(prefix[..].try_into().expect("8 bytes were read"));
        if header_len > MAX_HEADER_BYTES || header_len > len - 8 {
            let error = Error::data(
                file,
                format!(
                    "not a safetensors file, or truncated: the first 8 bytes announce a header of {header_len} bytes, \
                     expected at most {}",
                    MAX_HEADER_BYTES.min(len - 8)
                ),
            );
            return Err(match &prefix[..] {
                b"version " => {
                    error.with_help("this looks like a Git LFS pointer; `git lfs pull` fetches the file")
                }
                [b'P', b'K', 3, 4, ..] => {
                    error.with_help("this looks like a zip file, such as torch.save writes")
                }
                _ => error,
            });
        }
        let bytes = read_vec(file, from, header_len as usize, "header")?;
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::data(file, format!("header, byte {}: not UTF-8", e.utf8_error().valid_up_to()))
        })?;
        let (mut entries, metadata) = parse(&text).map_err(|message| Error::data(file, message))?;
        check_cover(&mut entries, len - 8 - header_len).map_err(|message| Error::data(file, message))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::data(file, format!("the tensor {:?} occurs twice", pair[0].name)));
        }
        Ok(Header { file: file.to_owned(), entries, metadata })
    }
}

fn parse(text: &str) -> Outcome<(Vec<Entry>, BTreeMap<String, String>)> {
    if !text.starts_with('{') {
        return Err("header, byte 0: expected '{'".into());
    }
    let (mut entries, mut metadata) = (Vec::new(), None);
    let mut reader = Reader::new(text);
    reader.object(|r, name| {
        if name == METADATA {
            return set(&mut metadata, parse_metadata(r)?, r, METADATA);
        }
        if entries.len() == MAX_TENSORS {
            return r.fail(format_args!("expected at most {MAX_TENSORS} tensors, found more"));
        }
        entries.push(parse_entry(r, name)?);
        Ok(())
    })?;
    reader.end()?;
    Ok((entries, metadata.unwrap_or_default()))
}

fn set<T>(slot: &mut Option<T>, value: T, r: &Reader<'_>, key: &str) -> Outcome<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => r.fail(format_args!("the key {key:?} occurs twice")),
    }
}

fn parse_metadata(r: &mut Reader<'_>) -> Outcome<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    r.object(|r, key| {
        let value = r.string()?;
        if metadata.contains_key(&key) {
            return r.fail(format_args!("the metadata key {key:?} occurs twice"));
        }
        metadata.insert(key, value);
        Ok(())
    })?;
    Ok(metadata)
}

fn parse_entry(r: &mut Reader<'_>, name: String) -> Outcome<Entry> {
    let (mut stored, mut shape, mut offsets) = (None, None, None);
    r.object(|r, key| match key.as_str() {
        "dtype" => set(&mut stored, r.string()?, r, "dtype"),
        "shape" => set(&mut shape, r.unsigned_array(MAX_RANK)?, r, "shape"),
        "data_offsets" => set(&mut offsets, r.unsigned_array(2)?, r, "data_offsets"),
        _ => r.fail(format_args!(
            "expected \"dtype\", \"shape\" or \"data_offsets\" of {name:?}, found {key:?}"
        )),
    })?;
    let (Some(stored), Some(shape), Some(offsets)) = (stored, shape, offsets) else {
        return r.fail(format_args!("the tensor {name:?} lacks dtype, shape or data_offsets"));
    };
    let Some(dtype) = dtype_of(&stored) else {
        return r.fail(format_args!(
            "the tensor {name:?} has the dtype {stored:?}; expected F64, F32, F16, BF16, I64, I32, U8 or BOOL"
        ));
    };
    let [begin, end] = offsets[..] else {
        return r.fail(format_args!("expected two data_offsets of {name:?}, found {}", offsets.len()));
    };
    let dims: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let sized = dims.and_then(|dims| byte_len(dtype, &dims).map(|len| (dims, len)));
    let Some((dims, len)) = sized else {
        return r.fail(format_args!("the size of the tensor {name:?}, {stored} {shape:?}, overflows"));
    };
    let (Ok(begin), Ok(end)) = (usize::try_from(begin), usize::try_from(end)) else {
        return r.fail(format_args!("the data_offsets of {name:?} do not fit this machine"));
    };
    if begin > end || end - begin != len {
        return r.fail(format_args!(
            "the tensor {name:?} of {stored} {dims:?} takes {len} bytes, but its data_offsets are [{begin}, {end}]"
        ));
    }
    Ok(Entry { name, dtype, boolean: stored == "BOOL", shape: dims, range: begin..end })
}

/// Checks that the ranges tile the `len` data bytes: no overlap, no hole, nothing behind the last one.
fn check_cover(entries: &mut [Entry], len: u64) -> Outcome<()> {
    entries.sort_by_key(|e| (e.range.start, e.range.end));
    let (mut covered, mut previous) = (0, None);
    for entry in entries.iter() {
        let (name, range) = (&entry.name, &entry.range);
        if range.start < covered {
            return Err(format!("the tensor {name:?} at {range:?} overlaps {:?}", previous.unwrap_or("")));
        }
        if range.start > covered {
            return Err(format!("bytes {covered} to {} of the data belong to no tensor", range.start));
        }
        (covered, previous) = (range.end, Some(name.as_str()));
    }
    match len.checked_sub(covered as u64) {
        Some(0) => Ok(()),
        Some(extra) => Err(format!("{extra} trailing bytes belong to no tensor")),
        None => Err(format!("truncated: expected {covered} bytes of data, found {len}")),
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "U8" | "BOOL" => DType::U8,
        _ => return None,
    })
}

/// The name in a header and the rank in the file: lower ranks come first, wide types before narrow ones.
fn stored_as(dtype: DType) -> (u8, &'static str) {
    match dtype {
        DType::I64 => (0, "I64"),
        DType::F64 => (1, "F64"),
        DType::F32 => (2, "F32"),
        DType::I32 => (3, "I32"),
        DType::BF16 => (4, "BF16"),
        DType::F16 => (5, "F16"),
        DType::U8 => (6, "U8"),
    }
}

/// A safetensors file in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct SafeTensors {
    header: Header,
    /// Where the tensors start in `bytes`.
    start: usize,
    bytes: Vec<u8>,
}

impl SafeTensors {
    /// Checks a file that is already in memory, without copying it; `file` names it in errors. Fails (kind `Data`) as
    /// [`read`] does.
    pub fn from_bytes(file: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) -> Result<SafeTensors> {
        let bytes = bytes.into();
        let header = Header::read(file.as_ref(), &mut &bytes[..], bytes.len() as u64)?;
        // The tensors cover the file to its end.
        let start = bytes.len() - header.data_bytes();
        Ok(SafeTensors { header, start, bytes })
    }

    /// Names, shapes and metadata.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.entries.iter().map(Entry::name)
    }

    /// The file's free-form strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor of this name, borrowed. Fails (kind `Data`) when there is none, or when a `BOOL` is neither 0 nor 1.
    pub fn get(&self, name: &str) -> Result<HostTensor<'_>> {
        let Some(entry) = self.header.entry(name) else {
            let names: Vec<_> = self.names().take(8).collect();
            let more = if self.header.entries.len() > names.len() { ", …" } else { "" };
            return Err(Error::data(
                &self.header.file,
                format!("no tensor {name:?}; the file holds {}{more}", names.join(", ")),
            ));
        };
        let bytes = &self.bytes[self.start..][entry.range.clone()];
        if entry.boolean
            && let Some(bad) = bytes.iter().find(|&&b| b > 1)
        {
            return Err(Error::data(
                &self.header.file,
                format!("the BOOL tensor {name:?}: expected 0 or 1, found {bad}"),
            ));
        }
        Ok(HostTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes: Cow::Borrowed(bytes) })
    }
}

/// Reads a file. Fails (kind `Data`, naming the file) when it cannot be read or is not sound in every respect.
pub fn read(path: impl AsRef<Path>) -> Result<SafeTensors> {
    let path = path.as_ref();
    let (mut file, len) = open_regular(path)?;
    let header = Header::read(path, &mut file, len)?;
    // The header has been checked against the file's length: this allocates no more than the file holds.
    let bytes = read_vec(path, &mut file, header.data_bytes(), "tensor data")?;
    Ok(SafeTensors { header, start: 0, bytes })
}

/// Reads and checks the header alone; the data is not touched. Fails as [`read`] does.
pub fn read_header(path: impl AsRef<Path>) -> Result<Header> {
    let path = path.as_ref();
    let (mut file, len) = open_regular(path)?;
    Header::read(path, &mut file, len)
}

/// Writes a file and puts it in place of `path` in one step.
///
/// Equal content gives equal bytes, in whatever order the tensors are named. Fails with kind `Argument` when a name
/// occurs twice or is `__metadata__`, with kind `Data` when the file cannot be written; `path` is then unchanged.
pub fn write<N: AsRef<str>>(
    path: impl AsRef<Path>,
    tensors: &[(N, HostTensor<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_atomically(path, |out| write_to(out, tensors, metadata))
}

/// Writes to a stream what [`write`](fn@write) writes to a file. Errors of the stream have kind `Data` and name no file.
pub fn write_to<N: AsRef<str>>(
    out: &mut dyn Write,
    tensors: &[(N, HostTensor<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut order: Vec<(&str, &HostTensor<'_>)> = tensors.iter().map(|(n, t)| (n.as_ref(), t)).collect();
    order.sort_by_key(|(name, tensor)| (stored_as(tensor.dtype).0, *name));
    let header = header_text(&order, metadata)?;
    let failed = |e| Error::new(crate::ErrorKind::Data, "could not write").caused_by(e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(header.as_bytes()).map_err(failed)?;
    order.iter().try_for_each(|(_, tensor)| out.write_all(&tensor.bytes)).map_err(failed)
}

fn header_text(tensors: &[(&str, &HostTensor<'_>)], metadata: &BTreeMap<String, String>) -> Result<String> {
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::argument(format!("two tensors to save are named {:?}", pair[0])));
    }
    if names.contains(&METADATA) {
        return Err(Error::argument(format!(
            "a tensor to save is named {METADATA:?}, which the format reserves"
        )));
    }
    if tensors.len() > MAX_TENSORS {
        return Err(Error::argument(format!(
            "expected at most {MAX_TENSORS} tensors, got {}",
            tensors.len()
        )));
    }
    let mut text = String::from("{");
    if !metadata.is_empty() {
        json::push_string(&mut text, METADATA);
        text.push_str(":{");
        for (i, (key, value)) in metadata.iter().enumerate() {
            text.push_str(if i == 0 { "" } else { "," });
            json::push_string(&mut text, key);
            text.push(':');
            json::push_string(&mut text, value);
        }
        text.push('}');
    }
    let mut begin = 0;
    for (name, tensor) in tensors {
        text.push_str(if text.len() == 1 { "" } else { "," });
        json::push_string(&mut text, name);
        let (dtype, end) = (stored_as(tensor.dtype).1, begin + tensor.bytes.len());
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        write!(text, ":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{begin},{end}]}}")
            .expect("writing to a String cannot fail");
        begin = end;
    }
    text.push('}');
    // The data starts at a multiple of 8, so that a mapped file can be used in place.
    let padded = text.len().next_multiple_of(8);
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::argument(format!(
            "the header would take {} bytes, expected at most {MAX_HEADER_BYTES}",
            text.len()
        )));
    }
    Ok(text)
}
