//! Results in fewer bits: 16-bit weights and states rounded by chance, and states of a byte an element.
//!
//! All of it is integer arithmetic on the bits of f32 and single IEEE operations, so that the kernels (kernels/optim.cu)
//! give the same bits.

#![forbid(unsafe_code)]

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use crate::cpu::simd::vectorize;
use crate::dtype::{bf16, f16};
use crate::param::{ALIGN, Rounding};
use crate::random::Philox;

/// 16 random bits, or what rounds to the nearest.
const HALF: u32 = 0x8000;
/// Call sites of the random numbers, beyond those that a forward pass counts from 0.
const SITES: [u32; 2] = [0xFFFF_FFF0, 0xFFFF_FFF1];

/// The random bits of one step, 16 of each kind for each element of an arena.
#[derive(Clone, Copy)]
pub(super) struct Noise(Option<[Philox; 2]>);

/// What the bits are for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bits {
    Weights,
    State(usize),
}

impl Noise {
    /// That of step number `step`; none if results are rounded to the nearest.
    pub fn new(rounding: Rounding, step: i64) -> Noise {
        Noise(match rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic { seed } => {
                Some(SITES.map(|site| Philox::for_step(seed, site, step as u32)))
            }
        })
    }

    /// Those of the block of elements that starts at `first`; nothing if results are rounded to the nearest.
    #[inline(never)]
    pub fn block(&self, bits: Bits, first: usize, noise: &mut [u32; ALIGN]) -> bool {
        let Some(philox) = &self.0 else { return false };
        let (site, shift) = match bits {
            Bits::Weights => (0, 0),
            Bits::State(0) => (1, 0),
            Bits::State(1) => (1, 16),
            Bits::State(_) => (0, 16),
        };
        let philox = philox[site];
        vectorize(
            #[inline(always)]
            || draw(philox, first, shift, noise),
        );
        true
    }
}

/// By lane first: that is the order in which vectors compute.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices over two arrays are what becomes vector code")]
fn draw(philox: Philox, first: usize, shift: u32, noise: &mut [u32; ALIGN]) {
    let mut lanes = [[0u32; ALIGN / 4]; 4];
    for i in 0..ALIGN / 4 {
        let words = philox.at((first / 4 + i) as u64);
        for k in 0..4 {
            lanes[k][i] = words[k];
        }
    }
    for i in 0..ALIGN / 4 {
        for k in 0..4 {
            noise[4 * i + k] = lanes[k][i] >> shift & 0xFFFF;
        }
    }
}

/// Takes the first `n` elements off a slice.
pub(super) fn front<'a, T>(slice: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let at = n.min(slice.len());
    let (front, rest) = std::mem::take(slice).split_at_mut(at);
    *slice = rest;
    front
}

/// A flat buffer in fewer bits than f32. Blocks are not opened inline: one copy of this code is enough for all rules.
pub(super) enum Narrow<'a> {
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
    /// With their form, and a scale for each block.
    Bytes(Code, &'a mut [u8], &'a mut [f32]),
}

/// A flat buffer in 16 bits that is only read.
pub(super) enum Halves<'a> {
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl Halves<'_> {
    /// Writes the values of a block.
    #[inline(never)]
    pub fn open(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Halves::Bf16(all) => all[range].convert_to_f32_slice(to),
            Halves::F16(all) => all[range].convert_to_f32_slice(to),
        }
    }
}

impl<'a> Narrow<'a> {
    /// Takes the first `n` elements, whole blocks, off.
    pub fn front(&mut self, n: usize) -> Narrow<'a> {
        match self {
            Narrow::Bf16(all) => Narrow::Bf16(front(all, n)),
            Narrow::F16(all) => Narrow::F16(front(all, n)),
            Narrow::Bytes(code, all, scales) => Narrow::Bytes(*code, front(all, n), front(scales, n / ALIGN)),
        }
    }

    /// Writes the values of a block.
    #[inline(never)]
    pub fn open(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Narrow::Bf16(all) => Halves::Bf16(all).open(range, to),
            Narrow::F16(all) => Halves::F16(all).open(range, to),
            Narrow::Bytes(code, all, scales) => {
                let scale = scales[range.start / ALIGN];
                vectorize(
                    #[inline(always)]
                    || code.decode(&all[range], scale, to),
                );
            }
        }
    }

    /// Overwrites a block by these values, rounded.
    #[inline(never)]
    pub fn close(&mut self, range: Range<usize>, from: &[f32], noise: Option<&[u32; ALIGN]>) {
        match (self, noise) {
            (Narrow::Bf16(all), None) => all[range].convert_from_f32_slice(from),
            (Narrow::F16(all), None) => all[range].convert_from_f32_slice(from),
            (Narrow::Bf16(all), Some(noise)) => round(from, &mut all[range], noise, bf16_of),
            (Narrow::F16(all), Some(noise)) => round(from, &mut all[range], noise, f16_of),
            (Narrow::Bytes(code, all, scales), noise) => {
                let scale = &mut scales[range.start / ALIGN];
                vectorize(
                    #[inline(always)]
                    || *scale = code.encode(from, noise, &mut all[range]),
                );
            }
        }
    }
}

fn round<T>(from: &[f32], to: &mut [T], noise: &[u32; ALIGN], f: impl Fn(f32, u32) -> T) {
    vectorize(
        #[inline(always)]
        || to.iter_mut().zip(from).zip(noise).for_each(|((to, &from), &noise)| *to = f(from, noise)),
    );
}

/// `x` in bf16: up if the bits that go, taken as a fraction, and `noise` reach 1.
#[inline(always)]
fn bf16_of(x: f32, noise: u32) -> bf16 {
    let bits = x.to_bits();
    let finite = bits & 0x7F80_0000 != 0x7F80_0000;
    // Not a number stays none, whichever of its bits are set.
    let kept = if bits & 0x7FFF_FFFF > 0x7F80_0000 { bits | 0x0040_0000 } else { bits };
    bf16::from_bits(((if finite { bits.wrapping_add(noise) } else { kept }) >> 16) as u16)
}

/// `x` in f16, as [`bf16_of`].
#[inline(always)]
fn f16_of(x: f32, noise: u32) -> f16 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7FFF_FFFF);
    let normal = ((magnitude + (noise >> 3)) >> 13).wrapping_sub((127 - 15) << 10);
    // Multiples of 2⁻²⁴; 1024 of them are the least normal number, as the bits count on. Up to there an f32 has room for 14
    // bits of noise: with more, the sum itself would be rounded, and what f16 holds would not be kept.
    let small = (f32::from_bits(magnitude) * 16777216.0 + (noise >> 2) as f32 * (1.0 / 16384.0)) as u32;
    let kept = if magnitude > 0x7F80_0000 { 0x7E00 } else { 0x7C00 };
    let bits = match magnitude {
        0x4780_0000.. => kept,
        0x3880_0000.. => normal.min(0x7C00),
        _ => small,
    };
    f16::from_bits((sign | bits) as u16)
}

/// A form of a state's byte: a sign or none, an exponent, three bits of fraction. See
/// [`StateDType::Int8`](crate::param::StateDType::Int8).
#[derive(Clone, Copy)]
pub(super) struct Code {
    /// The highest exponent's field: it stands for 1 to 2.
    top: u32,
}

/// The greatest magnitude of a code.
const GREATEST: f32 = 1.875;

impl Code {
    /// The form of states that are never negative, and of others.
    pub fn new(unsigned: bool) -> Code {
        Code { top: if unsigned { 31 } else { 15 } }
    }

    /// The value of a code, without the block's scale.
    #[inline(always)]
    fn value(self, code: u8) -> f32 {
        let magnitude = u32::from(code) & (self.top << 3 | 7);
        // The least normal number over 8.
        let unit = f32::from_bits((127 - self.top + 1 - 3) << 23);
        let normal = f32::from_bits((magnitude << 20).wrapping_add((127 - self.top) << 23));
        let value = if magnitude < 8 { magnitude as f32 * unit } else { normal };
        f32::from_bits(value.to_bits() | (u32::from(code) & !(self.top << 3 | 7)) << 24)
    }

    #[inline(always)]
    fn code(self, x: f32, scale: f32, noise: u32) -> u8 {
        let ratio = f32::from_bits(x.to_bits() & 0x7FFF_FFFF) / scale;
        // Neither 0 / 0 nor what is not finite is a code: those the scale shows.
        let ratio = if ratio < 4.0 { ratio } else { 0.0 };
        let least = f32::from_bits((127 - self.top + 1) << 23);
        let inverse = f32::from_bits((127 + self.top - 1 + 3) << 23);
        let normal = ((ratio.to_bits() + (noise << 4)) >> 20).wrapping_sub((127 - self.top) << 3);
        let small = (ratio * inverse + noise as f32 * (1.0 / 65536.0)) as u32;
        let magnitude = (if ratio < least { small } else { normal }).min(self.top << 3 | 7);
        (magnitude | (x.to_bits() >> 24 & !(self.top << 3 | 7) & 0xFF)) as u8
    }

    /// Writes the values of a block's codes.
    #[inline(always)]
    fn decode(self, codes: &[u8], scale: f32, to: &mut [f32]) {
        for (to, &code) in to.iter_mut().zip(codes) {
            *to = self.value(code) * scale;
        }
    }

    /// Writes the codes of a block and returns its scale: not a number if one of the values is not finite.
    #[inline(always)]
    fn encode(self, from: &[f32], noise: Option<&[u32; ALIGN]>, codes: &mut [u8]) -> f32 {
        // Bits of magnitudes are in the order of magnitudes, and beyond them what is not a number.
        let most = from.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7FFF_FFFF));
        let scale = f32::from_bits(most) / GREATEST;
        for i in 0..ALIGN {
            codes[i] = self.code(from[i], scale, noise.map_or(HALF, |noise| noise[i]));
        }
        scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_16_bits_hold_is_kept_and_the_mean_of_all_else_is_exact() {
        let numbers = [1.0f32, -1.7, 0.1, 3e-5, -6.1e-5, 2e-7, 65000.0, 1e-3];
        for x in numbers {
            let mean = |f: &dyn Fn(u32) -> f64| (0..=0xFFFF).map(f).sum::<f64>() / 65536.0;
            let short = mean(&|noise| bf16_of(x, noise).to_f64());
            assert!((short - f64::from(x)).abs() <= f64::from(x.abs()) * 1e-6, "{x:e}: {short:e}");
            let short = mean(&|noise| f16_of(x, noise).to_f64());
            // 2⁻¹³ of a unit, since three bits of the noise are not used, or two.
            let unit = f64::from(x.abs()).max(6.2e-5) / 1024.0;
            assert!((short - f64::from(x)).abs() <= unit / 4000.0, "{x:e}: {short:e}");
            for noise in [0, 1, 0x8000, 0xFFFF] {
                let held = [bf16::from_f32(x).to_f32(), f16::from_f32(x).to_f32()];
                assert_eq!(bf16_of(held[0], noise).to_f32(), held[0]);
                assert_eq!(f16_of(held[1], noise).to_f32(), held[1]);
            }
        }
        for noise in [0, 0xFFFF] {
            assert!(bf16_of(f32::NAN, noise).is_nan() && f16_of(f32::NAN, noise).is_nan());
            assert_eq!(bf16_of(f32::NEG_INFINITY, noise), bf16::NEG_INFINITY);
            assert_eq!(f16_of(f32::INFINITY, noise), f16::INFINITY);
            assert_eq!(f16_of(1e5, noise), f16::INFINITY);
            assert_eq!(f16_of(-0.0, noise).to_bits(), 0x8000);
        }
        assert_eq!(f16_of(65519.0, 0xFFFF), f16::INFINITY);
    }

    /// A block of which the first is `x` and the last one the greatest magnitude there is.
    fn block(x: f32) -> [f32; ALIGN] {
        let mut block = [0.0; ALIGN];
        (block[0], block[ALIGN - 1]) = (x, GREATEST);
        block
    }

    fn through(code: Code, x: f32, noise: u32) -> f32 {
        let (mut codes, mut back) = ([0; ALIGN], [0.0; ALIGN]);
        let scale = code.encode(&block(x), Some(&[noise; ALIGN]), &mut codes);
        code.decode(&codes, scale, &mut back);
        assert_eq!(back[ALIGN - 1], GREATEST);
        back[0]
    }

    #[test]
    fn bytes_hold_their_own_values_and_the_mean_of_all_else_is_exact() {
        for (unsigned, least) in [(false, 17), (true, 33)] {
            let code = Code::new(unsigned);
            for byte in 0..=255u8 {
                let value = code.value(byte);
                for noise in [0, HALF, 0xFFFF] {
                    assert_eq!(through(code, value, noise).to_bits(), value.to_bits(), "{byte} {noise}");
                }
            }
            for x in [1.0f32, 1.3, 0.77, 0.01, 1e-4, 1.3 / (1u64 << least) as f32] {
                let mean = (0..=0xFFFF).map(|n| f64::from(through(code, x, n))).sum::<f64>() / 65536.0;
                assert!((mean - f64::from(x)).abs() <= f64::from(x) * 1e-4, "{x:e}: {mean:e}");
                let nearest = through(code, x, HALF);
                assert!(x < 1e-4 || (nearest - x).abs() <= x / 16.0, "{x:e}: {nearest:e}");
            }
        }
        assert!(through(Code::new(false), -0.3, HALF) < -0.29);
    }

    #[test]
    fn a_block_of_zeros_stays_and_what_is_not_finite_is_seen() {
        for unsigned in [false, true] {
            let code = Code::new(unsigned);
            let (mut codes, mut back) = ([7; ALIGN], [1.0; ALIGN]);
            let scale = code.encode(&[0.0; ALIGN], None, &mut codes);
            code.decode(&codes, scale, &mut back);
            assert_eq!(back, [0.0; ALIGN]);
            for x in [f32::NAN, f32::INFINITY] {
                let scale = code.encode(&block(x), None, &mut codes);
                code.decode(&codes, scale, &mut back);
                assert!(!back[0].is_finite() && !back[1].is_finite(), "{x}");
            }
        }
    }
}
