//! Each primitive of the kernels' vocabulary run by itself, and what must come out. The numbers are the simulator's; a GPU
//! must give the same bits, which is what makes the simulator's word count. `warpsmith selftest --primitives` runs this.

use super::kernels::primitives as k;
use super::launch::{Dst, Src};
use super::stream::{Stream, Temp};
use crate::random::Philox;
use crate::{DType, Device, Result};

/// What a primitive gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// The words that it wrote.
    pub words: Vec<u32>,
    /// Whether they are as recorded; `None` where machines may differ, and the words are only of interest.
    pub right: Option<bool>,
}

/// Digests of the words, as the simulator gave them.
const RECORDED: [(&str, u64); 12] = [
    ("warp", 0xe8d5_aecf_c545_486f),
    ("block", 0x2542_39e7_867a_5ed4),
    ("convert", 0xd738_4f27_efec_d2ab),
    ("math", 0xbf55_d9f2_2029_0f8a),
    ("atomic", 0x6796_23dd_16da_eaa7),
    ("async copy", 0x5840_3ecc_2d02_018d),
    ("ldmatrix", 0xfc2d_038c_aa73_6a19),
    ("mma bf16", 0x71d7_2d65_026f_89a4),
    ("mma f16", 0x71d7_2d65_026f_89a4),
    ("mma tf32", 0xd51d_a0db_26ff_9f68),
    ("named barrier", 0x5bf8_c21c_6559_dc36),
    ("random", 0x4ce3_f910_dcbc_fd8d),
];

/// FNV-1a over the words' bytes.
pub fn digest(words: &[u32]) -> u64 {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Bits of f32 at every corner that a conversion has: both signs of zeros, subnormals, the borders of f16, halfway cases,
/// infinities, NaNs; then bits without a pattern.
fn corners() -> Vec<u32> {
    let mut bits: Vec<u32> =
        vec![0x0000_0000, 0x0000_0001, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x3f80_0001];
    bits.extend([0x3300_0000, 0x3300_0001, 0x32ff_ffff, 0x387f_c000, 0x387f_e000, 0x387f_ffff, 0x3880_0000]);
    bits.extend([0x477f_e000, 0x477f_efff, 0x477f_f000, 0x477f_ffff, 0x4780_0000, 0x7f7f_ffff, 0x7f7f_8000]);
    bits.extend([0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 0x3f80_8000, 0x3f81_8000, 0x3f80_7fff]);
    bits.extend([0x3f80_1000, 0x3f80_3000, 0x3f80_0fff, 0x3f80_2000]);
    let negative: Vec<u32> = bits.iter().map(|b| b | 0x8000_0000).collect();
    bits.extend(negative);
    let random = Philox::new(7, 1);
    bits.extend((0..130u64).map(|i| (random.uniform_f64_at(i) * 2f64.powi(32)) as u32));
    bits
}

/// Numbers that the elementary functions are called with.
fn arguments() -> Vec<f32> {
    let mut x = vec![0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 88.7, -87.3, 104.0, -104.0, 1e-30, 3e38, -3e38, 1e-40];
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.347, 9.01, -9.01, 3.0, -3.5, 1e-4, -1e-4]);
    let random = Philox::new(8, 2);
    x.extend((0..168u64).flat_map(|i| random.normal_pair_at(i)).map(|v| (v * v * v) as f32));
    x
}

/// A scratch buffer of a device, with its contents and back.
struct Buffer<'a> {
    memory: Temp<'a>,
    stream: &'a Stream,
}

impl<'a> Buffer<'a> {
    fn of(stream: &'a Stream, dtype: DType, bytes: &[u8]) -> Result<Buffer<'a>> {
        let mut memory = stream.temp(dtype, bytes.len() / dtype.size())?;
        stream.upload(memory.dst().address(), bytes)?;
        Ok(Buffer { memory, stream })
    }

    fn zeros(stream: &'a Stream, dtype: DType, len: usize) -> Result<Buffer<'a>> {
        Buffer::of(stream, dtype, &vec![0; len * dtype.size()])
    }

    fn src(&self) -> Src<'_> {
        self.memory.src()
    }

    fn dst(&mut self) -> Dst<'_> {
        self.memory.dst()
    }

    fn words(&self) -> Result<Vec<u32>> {
        let src = self.memory.src();
        let mut bytes = vec![0; src.bytes() as usize];
        self.stream.download(&mut bytes, src.address())?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `n` numbers: small whole ones, or (`inexact`) of many magnitudes.
fn numbers(n: usize, stream: u64, inexact: bool) -> Vec<f32> {
    let random = Philox::new(9, stream);
    let one = |i| match inexact {
        true => (random.normal_pair_at(i)[0] * 2f64.powi((i % 17) as i32 - 8)) as f32,
        false => (random.uniform_f64_at(i) * 17.0).floor() as f32 - 8.0,
    };
    (0..n as u64).map(one).collect()
}

fn in_dtype(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        _ => f32_bytes(values),
    }
}

/// One product on the tensor cores; f32 stands for tf32.
fn product(s: &Stream, dtype: DType, inexact: bool) -> Result<Vec<u32>> {
    let depth = if dtype == DType::F32 { 8 } else { 16 };
    let operand = |n: usize, id: u64| Buffer::of(s, dtype, &in_dtype(&numbers(n, id, inexact), dtype));
    let (a, b) = (operand(16 * depth, 1)?, operand(depth * 8, 2)?);
    let c = Buffer::of(s, DType::F32, &f32_bytes(&numbers(128, 3, inexact)))?;
    let mut d = Buffer::zeros(s, DType::F32, 128)?;
    match dtype {
        DType::F32 => k::PrimMmaTf32 { a: a.src(), b: b.src(), c: c.src(), d: d.dst() }.launch(s)?,
        _ => k::PrimMma { a: a.src(), b: b.src(), c: c.src(), d: d.dst() }.launch(s)?,
    }
    d.words()
}

/// Runs all of them on a device.
pub fn run(device: Device) -> Result<Vec<Outcome>> {
    let s = device.gpu()?;
    let empty = |len: usize| Buffer::zeros(s, DType::I32, len);
    let mut done: Vec<(&'static str, Vec<u32>)> = Vec::new();

    let mut y = empty(384)?;
    k::PrimWarp { y: y.dst() }.launch(s)?;
    done.push(("warp", y.words()?));

    let mut y = empty(3)?;
    k::PrimBlock { y: y.dst() }.launch(s)?;
    done.push(("block", y.words()?));

    let bits = corners();
    let (x, mut y) = (Buffer::of(s, DType::I32, &u32_bytes(&bits))?, empty(5 * bits.len())?);
    k::PrimConvert { x: x.src(), y: y.dst(), n: bits.len() as u64 }.launch(s)?;
    done.push(("convert", y.words()?));

    let values = arguments();
    let (x, mut y) = (Buffer::of(s, DType::F32, &f32_bytes(&values))?, empty(12 * values.len())?);
    k::PrimMath { x: x.src(), y: y.dst(), n: values.len() as u64 }.launch(s)?;
    done.push(("math", y.words()?));

    let mut y = empty(4)?;
    k::PrimAtomic { y: y.dst() }.launch(s)?;
    done.push(("atomic", y.words()?));

    let words: Vec<u32> = (1..=128u32).map(|i| i.wrapping_mul(0x9e37_79b9) | 0x0101_0101).collect();
    let (x, mut y) = (Buffer::of(s, DType::I32, &u32_bytes(&words))?, empty(224)?);
    k::PrimAsync { x: x.src(), y: y.dst() }.launch(s)?;
    done.push(("async copy", y.words()?));

    let mut y = empty(448)?;
    k::PrimLdmatrix { y: y.dst() }.launch(s)?;
    done.push(("ldmatrix", y.words()?));

    let mut y = empty(64)?;
    k::PrimBarrier { y: y.dst() }.launch(s)?;
    done.push(("named barrier", y.words()?));

    let mut y = empty(256)?;
    k::PrimRandom { y: y.dst(), seed: 0x1234_5678_9abc_def0 }.launch(s)?;
    done.push(("random", y.words()?));

    let products = [
        (DType::BF16, "mma bf16", "mma bf16, inexact"),
        (DType::F16, "mma f16", "mma f16, inexact"),
        (DType::F32, "mma tf32", "mma tf32, inexact"),
    ];
    for (dtype, exact, inexact) in products {
        done.push((exact, product(s, dtype, false)?));
        done.push((inexact, product(s, dtype, true)?));
    }
    let judged = |(name, words): (&'static str, Vec<u32>)| {
        let recorded = RECORDED.iter().find(|(n, _)| *n == name);
        Outcome { name, right: recorded.map(|(_, d)| *d == digest(&words)), words }
    };
    Ok(done.into_iter().map(judged).collect())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::device::sim::{Order, SimOptions, Timing};

    /// Under every schedule the same bits, with all checks on.
    #[test]
    fn the_simulator_gives_what_is_recorded() {
        for (order, timing) in [
            (Order::Forward, Timing::Earliest),
            (Order::Reverse, Timing::Latest),
            (Order::Random, Timing::Random),
        ] {
            let options = SimOptions { order, timing, checked: true, ..SimOptions::default() };
            let outcomes = run(Device::sim_with(options)).unwrap();
            assert_eq!(outcomes.iter().filter(|o| o.right.is_some()).count(), RECORDED.len());
            for Outcome { name, words, right } in outcomes {
                assert!(words.iter().any(|&w| w != 0), "{name} wrote nothing");
                assert_ne!(right, Some(false), "{name}: {:#018x} {order:?} {timing:?}", digest(&words));
            }
        }
    }

    /// Against plain Rust, so that what is recorded is not only what once came out.
    #[test]
    fn what_is_recorded_is_right() {
        let outcomes = run(Device::sim()).unwrap();
        let words = |name: &str| &outcomes.iter().find(|o| o.name == name).unwrap().words;
        let bits = corners();
        let n = bits.len();
        for (i, &b) in bits.iter().enumerate() {
            let f = f32::from_bits(b);
            if !f.is_nan() {
                let got = (words("convert")[i], words("convert")[n + i]);
                let want =
                    (half::f16::from_f32(f).to_bits().into(), half::bf16::from_f32(f).to_bits().into());
                assert_eq!(got, want, "{f:e}");
            }
            let widened = half::f16::from_bits((b >> 16) as u16).to_f32();
            let got = f32::from_bits(words("convert")[3 * n + i]);
            assert!(got == widened || got.is_nan() && widened.is_nan());
        }
        let x = arguments();
        for i in 0..x.len() {
            let quotient = f32::from_bits(words("math")[i]);
            let want = x[i] / x[(i + 1) % x.len()];
            assert!(quotient == want || quotient.is_nan() && want.is_nan(), "{i}");
        }
        assert_eq!(words("atomic")[..2], [255 * 256 / 2, 256]);
        assert_eq!(words("atomic")[3], 255 * 256 / 2);
        for (name, depth) in [("mma bf16", 16), ("mma f16", 16), ("mma tf32", 8)] {
            let (a, b, c) =
                (numbers(16 * depth, 1, false), numbers(depth * 8, 2, false), numbers(128, 3, false));
            for i in 0..128 {
                let sum: f32 = (0..depth).map(|j| a[i / 8 * depth + j] * b[j * 8 + i % 8]).sum();
                assert_eq!(f32::from_bits(words(name)[i]), c[i] + sum, "{name} {i}");
            }
        }
    }
}
