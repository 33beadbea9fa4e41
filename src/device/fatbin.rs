//! Reads the directory of a fatbin: for which architectures it holds code. What nvcc's `--fatbin` writes is a header and
//! entries one behind the other; only their fixed fields are read here, the code itself may be compressed.
//!
//! The driver picks the image; this is for saying beforehand, and in words, what it will find. A file that is not
//! understood gives no entries, and then nothing is concluded from it.

#![forbid(unsafe_code)]

use std::fmt;

/// Code for one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    /// Compute capability × 10: 90 for 9.0.
    pub arch: u32,
    /// Machine code for exactly this architecture (`sm_90a`), which no later one runs.
    pub specific: bool,
    /// PTX, which the driver compiles, instead of machine code.
    pub ptx: bool,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.ptx { "compute" } else { "sm" };
        write!(f, "{kind}_{}{}", self.arch, if self.specific { "a" } else { "" })
    }
}

/// How a device can run code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// Not at all.
    Absent,
    /// The driver compiles its PTX when it is loaded.
    Jit,
    /// There is machine code for it.
    Native,
}

const MAGIC: u32 = 0xba55_ed50;
/// In an entry's flags: compiled for an `a` architecture.
const SPECIFIC: u64 = 0x10_0000;

/// The images of a fatbin, sorted, each once; none if it is not understood.
pub fn images(fatbin: &[u8]) -> Vec<Image> {
    let mut images = directory(fatbin).unwrap_or_default();
    images.sort_unstable();
    images.dedup();
    images
}

fn directory(fatbin: &[u8]) -> Option<Vec<Image>> {
    let (u16_at, u32_at) = (
        |at: usize| Some(u16::from_le_bytes(fatbin.get(at..at.checked_add(2)?)?.try_into().ok()?)),
        |at: usize| Some(u32::from_le_bytes(fatbin.get(at..at.checked_add(4)?)?.try_into().ok()?)),
    );
    let u64_at = |at: usize| Some(u64::from(u32_at(at)?) | u64::from(u32_at(at.checked_add(4)?)?) << 32);
    if u32_at(0)? != MAGIC {
        return None;
    }
    let mut at = usize::from(u16_at(6)?);
    let end = at.checked_add(usize::try_from(u64_at(8)?).ok()?)?;
    let mut images = Vec::new();
    while at < end {
        let (kind, header, bytes) = (u16_at(at)?, u32_at(at + 4)? as usize, u64_at(at + 8)?);
        if !(1..=2).contains(&kind) || header < 48 {
            return None;
        }
        images.push(Image {
            arch: u32_at(at + 28)?,
            specific: u64_at(at + 40)? & SPECIFIC != 0,
            ptx: kind == 1,
        });
        at = at.checked_add(header)?.checked_add(usize::try_from(bytes).ok()?)?;
        if at > fatbin.len() {
            return None;
        }
    }
    Some(images)
}

/// How a device of this compute capability can run one of `images`.
pub fn fit(images: &[Image], (major, minor): (u32, u32)) -> Fit {
    let device = 10 * major + minor;
    let runs = |image: &Image| match (image.specific, image.ptx) {
        (true, _) => (image.arch == device).then_some(if image.ptx { Fit::Jit } else { Fit::Native }),
        (false, false) => (image.arch / 10 == major && image.arch <= device).then_some(Fit::Native),
        (false, true) => (image.arch <= device).then_some(Fit::Jit),
    };
    images.iter().filter_map(runs).max().unwrap_or(Fit::Absent)
}

/// `sm_80, sm_90a, compute_80`.
pub fn list(images: &[Image]) -> String {
    let (ptx, code): (Vec<_>, Vec<_>) = images.iter().partition(|i| i.ptx);
    code.into_iter().chain(ptx).map(Image::to_string).collect::<Vec<_>>().join(", ")
}

/// A fatbin of `images` without code, as the tests need them.
#[cfg(test)]
pub(crate) fn made_of(images: &[Image]) -> Vec<u8> {
    let mut body = Vec::new();
    for image in images {
        let start = body.len();
        body.extend_from_slice(&(if image.ptx { 1u16 } else { 2 }).to_le_bytes());
        body.extend_from_slice(&0x101u16.to_le_bytes());
        body.extend_from_slice(&64u32.to_le_bytes());
        body.extend_from_slice(&8u64.to_le_bytes());
        body.extend_from_slice(&[0; 12]);
        body.extend_from_slice(&image.arch.to_le_bytes());
        body.extend_from_slice(&[0; 8]);
        body.extend_from_slice(&(0x8011 | if image.specific { SPECIFIC } else { 0 }).to_le_bytes());
        body.resize(start + 64 + 8, 0xcc);
    }
    let mut file = MAGIC.to_le_bytes().to_vec();
    file.extend_from_slice(&[1, 0, 16, 0]);
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(&body);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    const SM80: Image = Image { arch: 80, specific: false, ptx: false };
    const SM90A: Image = Image { arch: 90, specific: true, ptx: false };
    const SM90: Image = Image { arch: 90, specific: false, ptx: false };
    const PTX80: Image = Image { arch: 80, specific: false, ptx: true };

    /// The first 48 bytes of each entry and of the header as nvcc 13.0.88 wrote them for
    /// `-gencode compute_80,code=compute_80 -gencode …=sm_80 -gencode …=sm_90a -gencode …=sm_90`, code cut to 8 bytes.
    #[test]
    fn what_nvcc_writes_is_read() {
        let entry = |words: [u32; 12]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(words[1] as usize + 8, 0);
            bytes
        };
        let entries = [
            entry([0x0101_0001, 0x50, 8, 0, 8, 0x40, 0x0009_0000, 80, 0, 0, 0x8011, 0]),
            entry([0x0101_0002, 0x40, 8, 0, 8, 0, 0x0001_0008, 80, 0, 0, 0x8011, 0]),
            entry([0x0101_0002, 0x40, 8, 0, 8, 0, 0x0001_0008, 90, 0, 0, 0x0010_8011, 0]),
            entry([0x0101_0002, 0x40, 8, 0, 8, 0, 0x0001_0008, 90, 0, 0, 0x8011, 0]),
        ]
        .concat();
        let header: Vec<u8> =
            [MAGIC, 0x0010_0001, entries.len() as u32, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        let file = [header, entries].concat();
        let read = images(&file);
        assert_eq!(list(&read), "sm_80, sm_90, sm_90a, compute_80");
        assert_eq!(read, images(&made_of(&[PTX80, SM80, SM90A, SM90])));
        for end in 0..file.len() {
            assert_eq!(images(&file[..end]), [], "cut at {end}");
        }
    }

    #[test]
    fn damaged_files_give_nothing() {
        let whole = made_of(&[SM80, SM90]);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                assert!(images(&bytes).len() <= 2);
            }
        }
        assert!(images(b"").is_empty() && images(b"\x7fELF and so on, and so on").is_empty());
    }

    #[test]
    fn a_device_takes_code_of_its_own_major_version_or_older_ptx() {
        let cases = [
            (&[SM80][..], (8, 0), Fit::Native),
            (&[SM80], (8, 9), Fit::Native),
            (&[SM80], (7, 5), Fit::Absent),
            (&[SM80], (9, 0), Fit::Absent),
            (&[SM80, PTX80], (9, 0), Fit::Jit),
            (&[SM80, PTX80], (12, 0), Fit::Jit),
            (&[SM80, PTX80], (8, 6), Fit::Native),
            (&[PTX80], (7, 5), Fit::Absent),
            (&[SM90A], (9, 0), Fit::Native),
            (&[SM90A], (10, 0), Fit::Absent),
            (&[Image { arch: 89, specific: false, ptx: false }], (8, 6), Fit::Absent),
            (&[Image { arch: 100, specific: true, ptx: false }], (10, 3), Fit::Absent),
            (&[Image { arch: 100, specific: false, ptx: false }], (10, 3), Fit::Native),
            (&[], (9, 0), Fit::Absent),
        ];
        for (images, device, expected) in cases {
            assert_eq!(fit(images, device), expected, "{} on {device:?}", list(images));
        }
    }
}
