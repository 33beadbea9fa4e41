//! NumPy's .npy, versions 1.0 to 3.0: a strict reader and a writer.
//!
//! Big-endian and Fortran-ordered arrays come out little-endian and in C order. `bool` becomes `u8`; the integer types
//! we lack widen to the next one that holds them (`i1`, `i2`, `u2` to `i32`; `u4` to `i64`; `u8`, uint64, to `i64` if
//! every value fits). Refused: object arrays (they are pickles, hence code), structured and text types, bytes behind
//! the array, and headers longer than 64 KiB.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::Path;

use super::{HostTensor, byte_len, check_memory, open_regular, read_vec, write_atomically};
use crate::{DType, Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const MAX_HEADER_BYTES: u32 = 65_535;

/// Reads an array. Fails (kind `Data`, naming the file) when it cannot be read or held.
pub fn read(path: impl AsRef<Path>) -> Result<HostTensor<'static>> {
    let path = path.as_ref();
    let (mut file, len) = open_regular(path)?;
    read_from(path, &mut file, len)
}

/// Decodes a file that is already in memory; `file` names it in errors. Fails as [`read`] does.
pub fn from_bytes(file: impl AsRef<Path>, bytes: &[u8]) -> Result<HostTensor<'static>> {
    read_from(file.as_ref(), &mut { bytes }, bytes.len() as u64)
}

/// Writes an array and puts it in place of `path` in one step.
///
/// Fails with kind `DType` for bf16, which the format has no type for, and with kind `Data` when the file cannot be
/// written; `path` is then unchanged.
pub fn write(path: impl AsRef<Path>, tensor: &HostTensor<'_>) -> Result<()> {
    write_atomically(path, |out| write_to(out, tensor))
}

/// Writes to a stream what [`write`](fn@write) writes to a file. Errors of the stream have kind `Data` and name no file.
pub fn write_to(out: &mut dyn Write, tensor: &HostTensor<'_>) -> Result<()> {
    let descr = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::U8 => "|u1",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::BF16 => {
            return Err(Error::dtype("npy::write", "expected a type that NumPy has, found bf16")
                .with_help("convert the tensor to f32 first; that is exact"));
        }
    };
    let shape = match tensor.shape() {
        [n] => format!("({n},)"),
        shape => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version and length take 10 bytes, the newline one; the array starts at a multiple of 64.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    let Ok(len) = u16::try_from(header.len()) else {
        return Err(Error::argument(format!("{} dimensions are too many for npy", tensor.shape().len())));
    };
    let start = [MAGIC, &[1, 0][..], &len.to_le_bytes(), header.as_bytes()].concat();
    [&start[..], tensor.bytes()]
        .iter()
        .try_for_each(|part| out.write_all(part))
        .map_err(|e| Error::new(crate::ErrorKind::Data, "could not write").caused_by(e))
}

/// What an npy header says.
pub(super) struct Head {
    coding: Coding,
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
    elements: usize,
}

impl Head {
    /// The element type and the shape that the array will have.
    #[cfg(feature = "train")]
    pub(super) fn into_parts(self) -> (DType, Vec<usize>) {
        (self.coding.dtype, self.shape)
    }
}

/// Reads an array of `len` bytes, header included, and no further.
pub(super) fn read_from(file: &Path, from: &mut dyn Read, len: u64) -> Result<HostTensor<'static>> {
    let Head { coding, descr, fortran, shape, elements } = read_head(file, from, len)?;
    let bytes = elements * coding.width;
    let (widened, reordered) = (coding.dtype.size() != coding.width, fortran);
    let copies = elements * coding.dtype.size() * (usize::from(widened) + usize::from(reordered));
    let what = format!("array {descr} {shape:?}");
    check_memory(file, bytes.saturating_add(copies), &what)?;
    let data = read_vec(file, from, bytes, &what)?;
    let data = coding.decode(data, elements).map_err(|why| Error::data(file, why))?;
    let data = if fortran { c_order(&data, &shape, coding.dtype.size()) } else { data };
    HostTensor::new(coding.dtype, shape, data)
}

/// Reads the header of an array of `len` bytes, header included, and checks that it promises no more and no fewer.
pub(super) fn read_head(file: &Path, from: &mut dyn Read, len: u64) -> Result<Head> {
    let bad = |message: String| Error::data(file, message);
    let start = read_vec(file, from, (len as usize).min(8), "magic number and version")?;
    if !start.starts_with(MAGIC) {
        let error = bad(format!("not an npy file: expected the magic number {MAGIC:?}, found {start:?}"));
        return Err(match start[..] {
            [b'P', b'K', 3, 4, ..] => {
                error.with_help("this looks like an .npz; save the array by itself with np.save")
            }
            _ => error,
        });
    }
    let Some(version) = start.get(6..8) else {
        return Err(bad(format!("truncated: the file ends after {} bytes, before its version", start.len())));
    };
    let (length_bytes, header_len) = match version {
        [1, 0] => {
            let b = read_vec(file, from, 2, "header length")?;
            (2, u32::from(u16::from_le_bytes([b[0], b[1]])))
        }
        [2 | 3, 0] => {
            let b = read_vec(file, from, 4, "header length")?;
            (4, u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        }
        _ => {
            let (major, minor) = (version[0], version[1]);
            return Err(bad(format!("expected npy version 1.0, 2.0 or 3.0, found {major}.{minor}")));
        }
    };
    if header_len > MAX_HEADER_BYTES {
        return Err(bad(format!(
            "expected a header of at most {MAX_HEADER_BYTES} bytes, found {header_len}"
        )));
    }
    let header = read_vec(file, from, header_len as usize, "header")?;
    let header = String::from_utf8(header).map_err(|_| bad("the header is not UTF-8".into()))?;
    let header = Literal { text: &header, at: 0 }.header().map_err(bad)?;
    let coding = Coding::of(&header.descr).map_err(|why| {
        let error = bad(format!("the element type {:?} cannot be read: {why}", header.descr));
        if header.descr.contains('O') {
            error.with_help("save numbers: np.save(f, array.astype(np.float32)), or write text as CSV")
        } else if header.descr.contains(['U', 'S', 'a']) {
            error.with_help("number what it says: np.save(f, np.unique(array, return_inverse=True)[1])")
        } else {
            error.with_help("convert it first, as in np.save(f, array.astype(np.float32))")
        }
    })?;
    let shape: Option<Vec<usize>> = header.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let sized = shape.and_then(|shape| {
        // Widened, the elements take up to 8 bytes; they must fit as well.
        byte_len(coding.dtype, &shape)?;
        let elements = byte_len(DType::U8, &shape)?;
        Some((shape, elements, elements.checked_mul(coding.width)?))
    });
    let Some((shape, elements, bytes)) = sized else {
        return Err(bad(format!("the size of {} {:?} overflows", header.descr, header.shape)));
    };
    // Saturating: a file that grows while it is read must not become a panic.
    let found = len.saturating_sub(8 + length_bytes + u64::from(header_len));
    if found != bytes as u64 {
        let how = if found < bytes as u64 { "truncated" } else { "trailing bytes" };
        return Err(bad(format!(
            "{how}: expected {bytes} bytes of {} {shape:?}, found {found}",
            header.descr
        )));
    }
    let Header { descr, fortran, .. } = header;
    Ok(Head { coding, descr, fortran, shape, elements })
}

/// How a file's elements are stored and what they become.
pub(super) struct Coding {
    kind: u8,
    /// Bytes an element takes in the file.
    pub(super) width: usize,
    big_endian: bool,
    pub(super) dtype: DType,
}

impl Coding {
    /// The coding that NumPy calls `descr`; the reason where we cannot read it.
    pub(super) fn of(descr: &str) -> Result<Coding, String> {
        let (order, code) = match descr.as_bytes() {
            [order @ (b'<' | b'>' | b'|' | b'='), code @ ..] => (*order, code),
            code => (b'=', code),
        };
        let (dtype, width) = match code {
            b"f2" => (DType::F16, 2),
            b"f4" => (DType::F32, 4),
            b"f8" => (DType::F64, 8),
            b"u1" | b"b1" | b"?" => (DType::U8, 1),
            b"i1" => (DType::I32, 1),
            b"i2" | b"u2" => (DType::I32, 2),
            b"i4" => (DType::I32, 4),
            b"u4" => (DType::I64, 4),
            b"i8" | b"u8" => (DType::I64, 8),
            [b'O', ..] => return Err("an array of Python objects is a pickle, which can run code".into()),
            [b'U' | b'S' | b'a', ..] => return Err("it holds text".into()),
            [b'c', ..] => return Err("it holds complex numbers".into()),
            [b'M' | b'm', ..] => return Err("it holds dates or times".into()),
            _ => return Err("expected f2, f4, f8, i1, i2, i4, i8, u1, u2, u4, u8 or b1".into()),
        };
        if order == b'|' && width > 1 {
            return Err("its byte order is not given".into());
        }
        let kind = if code == b"?" { b'b' } else { code[0] };
        Ok(Coding { kind, width, big_endian: order == b'>', dtype })
    }

    /// File elements to little-endian elements of `self.dtype`.
    pub(super) fn decode(&self, mut data: Vec<u8>, elements: usize) -> Result<Vec<u8>, String> {
        if self.big_endian {
            data.chunks_exact_mut(self.width).for_each(<[u8]>::reverse);
        }
        self.widen(data, elements)
    }

    /// Little-endian file elements to elements of `self.dtype`.
    fn widen(&self, data: Vec<u8>, elements: usize) -> Result<Vec<u8>, String> {
        let is_bool = self.kind == b'b';
        if is_bool && let Some(bad) = data.iter().find(|&&b| b > 1) {
            return Err(format!("expected a boolean of 0 or 1, found the byte {bad}"));
        }
        if self.kind == b'u' && self.width == 8 {
            for (i, chunk) in data.chunks_exact(8).enumerate() {
                if chunk[7] >= 0x80 {
                    let value = u64::from_le_bytes(chunk.try_into().expect("chunks of 8"));
                    return Err(format!("element {i} is {value}, which does not fit i64"));
                }
            }
        }
        let out_width = self.dtype.size();
        if out_width == self.width {
            return Ok(data);
        }
        let mut wide = Vec::with_capacity(elements * out_width);
        for chunk in data.chunks_exact(self.width) {
            let negative = self.kind == b'i' && chunk[self.width - 1] >= 0x80;
            wide.extend_from_slice(chunk);
            wide.extend(std::iter::repeat_n(if negative { 0xff } else { 0 }, out_width - self.width));
        }
        Ok(wide)
    }
}

/// Reorders Fortran-ordered elements of `width` bytes to C order.
fn c_order(data: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let strides: Vec<usize> = shape
        .iter()
        .scan(1usize, |stride, &d| {
            let own = *stride;
            *stride *= d.max(1);
            Some(own)
        })
        .collect();
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    let mut offset = 0; // elements
    while out.len() < data.len() {
        out.extend_from_slice(&data[offset * width..][..width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            offset -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    out
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<u64>,
}

/// Reads the Python dictionary that is an npy header, and nothing else of Python.
struct Literal<'a> {
    text: &'a str,
    at: usize,
}

impl Literal<'_> {
    fn header(mut self) -> Result<Header, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            let again = match key.as_str() {
                "descr" => descr.replace(self.descr()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                _ => return Err(format!("header: expected descr, fortran_order or shape, found {key:?}")),
            };
            if again {
                return Err(format!("header: the key {key:?} occurs twice"));
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        self.skip_space();
        if self.at < self.text.len() {
            return Err(self.expected("nothing but white space after the dictionary"));
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
            _ => Err("header: expected descr, fortran_order and shape, found fewer".into()),
        }
    }

    fn expected(&self, what: &str) -> String {
        let found = self.text[self.at..].chars().next().map_or("the end".into(), |c| format!("{c:?}"));
        format!("header, byte {}: expected {what}, found {found}", self.at)
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(c);
        self.at += usize::from(found); // every `c` asked for is ASCII
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(self.expected(&format!("{c:?}"))) }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = if self.take('\'') {
            '\''
        } else if self.take('"') {
            '"'
        } else {
            return Err(self.expected("a string"));
        };
        let rest = &self.text[self.at..];
        let Some(len) = rest.find([quote, '\\', '\n']).filter(|&i| rest[i..].starts_with(quote)) else {
            return Err(self.expected("a string without escapes, and its end"));
        };
        self.at += len + 1;
        Ok(rest[..len].to_owned())
    }

    fn descr(&mut self) -> Result<String, String> {
        if self.take('[') {
            return Err("the array has a structured element type; expected plain numbers".into());
        }
        self.string()
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.skip_space();
        for (word, value) in [("False", false), ("True", true)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.expected("True or False"))
    }

    fn shape(&mut self) -> Result<Vec<u64>, String> {
        let mut dims = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            dims.push(self.unsigned()?);
            if !self.take(',') {
                self.expect(')')?;
                // Python reads `(3)` as the number 3.
                if dims.len() == 1 {
                    return Err(self.expected("a comma in the shape of one dimension"));
                }
                break;
            }
        }
        Ok(dims)
    }

    fn unsigned(&mut self) -> Result<u64, String> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.expected("an unsigned integer"));
        }
        let digits = &rest[..len];
        if len > 1 && digits.starts_with('0') {
            return Err(self.expected("a number without leading zeros"));
        }
        let value = digits.parse().map_err(|_| format!("header: the extent {digits} overflows"))?;
        self.at += len;
        // Python 2 wrote long integers as `3L`.
        self.at += usize::from(self.text[self.at..].starts_with('L'));
        Ok(value)
    }
}
