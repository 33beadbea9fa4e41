//! Sorting rows on the CPU: keys that order as integers, radix sort for whole rows, a selection for the first few.

#![forbid(unsafe_code)]

use crate::cpu::par;
use crate::cpu::simd::vectorize;
use crate::dtype::{Element, bf16, f16};

/// Elements of rows that one task takes.
pub(super) const GRAIN: usize = 16 * 1024;
/// Rows up to this length are sorted by comparing.
const SHORT: usize = 64;
/// Up to so many are chosen in one pass over the row.
const FEW: usize = 64;

/// An element as an unsigned integer in its order.
pub(super) trait Key: Element {
    /// The bytes of the integer that may differ from 0.
    const BYTES: u32 = size_of::<Self>() as u32;

    /// NaN above all, both zeros alike.
    fn key(self) -> u64;
}

/// The key of a float of `bits` bits given as an integer, whose largest number that is not NaN is `infinity`.
macro_rules! float_key {
    ($float:ty, $bits:ty, $infinity:expr) => {
        impl Key for $float {
            #[inline(always)]
            fn key(self) -> u64 {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                let bits = self.to_bits();
                let size = bits & !SIGN;
                // Numbers below zero count down, zero itself has no sign.
                let down = bits & SIGN != 0 && size != 0;
                let key = if down { !bits } else { size | SIGN };
                (if size > $infinity { <$bits>::MAX } else { key }).into()
            }
        }
    };
}
float_key!(f32, u32, 0x7F80_0000);
float_key!(f64, u64, 0x7FF0_0000_0000_0000);
float_key!(f16, u16, 0x7C00);
float_key!(bf16, u16, 0x7F80);

impl Key for u8 {
    #[inline(always)]
    fn key(self) -> u64 {
        self.into()
    }
}

impl Key for i32 {
    #[inline(always)]
    fn key(self) -> u64 {
        (self as u32 ^ 1 << 31).into()
    }
}

impl Key for i64 {
    #[inline(always)]
    fn key(self) -> u64 {
        self as u64 ^ 1 << 63
    }
}

/// Memory that a task uses for one row after the other.
#[derive(Default)]
struct Buffers {
    /// Key and index in one number: sorting these is stable, for all are different.
    pairs: Vec<u64>,
    spare: Vec<u64>,
    /// The same for keys of 64 bits.
    wide: Vec<(u64, usize)>,
}

/// The first `keep` elements of each row of `n`, sorted, and their indices. Neither is 0.
pub(super) fn sort_rows<T: Key>(
    x: &[T],
    n: usize,
    keep: usize,
    descending: bool,
    values: &mut [T],
    places: &mut [i64],
) {
    let per = (GRAIN / n).max(1);
    let count = x.len().div_ceil(per * n);
    let tasks = values.chunks_mut(per * keep).zip(places.chunks_mut(per * keep)).enumerate();
    par::each(count, tasks, |(task, (values, places))| {
        let mut buffers = Buffers::default();
        let rows = x[task * per * n..].chunks_exact(n);
        let outs = values.chunks_exact_mut(keep).zip(places.chunks_exact_mut(keep));
        for (row, (values, places)) in rows.zip(outs) {
            if T::BYTES <= 4 && n < u32::MAX as usize {
                narrow_row(row, keep, descending, &mut buffers, places);
            } else {
                wide_row(row, keep, descending, &mut buffers.wide, places);
            }
            values.iter_mut().zip(&*places).for_each(|(v, &at)| *v = row[at as usize]);
        }
    });
}

/// The places of the first `keep` elements of a row whose keys have 32 bits at most.
fn narrow_row<T: Key>(row: &[T], keep: usize, descending: bool, buffers: &mut Buffers, places: &mut [i64]) {
    let n = row.len();
    let flip = if descending { u64::MAX >> (64 - 8 * T::BYTES) } else { 0 };
    let Buffers { pairs, spare, .. } = buffers;
    pairs.resize(n, 0);
    vectorize(
        #[inline(always)]
        || {
            for (i, (pair, x)) in pairs.iter_mut().zip(row).enumerate() {
                *pair = (x.key() ^ flip) << 32 | i as u64;
            }
        },
    );
    // Sorting all by radix costs less than choosing many.
    if keep > n / 4 && n > SHORT {
        spare.resize(n, 0);
        radix_sort(pairs, spare, T::BYTES);
    } else if keep <= FEW && keep <= n / 4 {
        choose_few(pairs, keep, spare);
        std::mem::swap(pairs, spare);
    } else {
        if keep < n {
            pairs.select_nth_unstable(keep);
        }
        pairs[..keep].sort_unstable();
    }
    places.iter_mut().zip(&*pairs).for_each(|(place, &pair)| *place = (pair as u32).into());
}

/// Sorts by bytes 4.. of the numbers, `bytes` of them, the lowest first; equal ones stay in order.
fn radix_sort(pairs: &mut Vec<u64>, spare: &mut Vec<u64>, bytes: u32) {
    let mut counts = [[0u32; 256]; 4];
    for &pair in pairs.iter() {
        let key = (pair >> 32) as u32;
        for (digit, counts) in counts.iter_mut().enumerate() {
            counts[usize::from((key >> (8 * digit)) as u8)] += 1;
        }
    }
    let n = pairs.len();
    for (digit, counts) in counts.iter_mut().enumerate().take(bytes as usize) {
        // All alike: nothing to do.
        if counts.iter().any(|&c| c as usize == n) {
            continue;
        }
        let mut start = 0;
        for count in counts.iter_mut() {
            start += std::mem::replace(count, start);
        }
        let to = &mut spare[..n];
        for &pair in pairs.iter() {
            let place = &mut counts[usize::from((pair >> (32 + 8 * digit)) as u8)];
            to[*place as usize] = pair;
            *place += 1;
        }
        std::mem::swap(pairs, spare);
    }
}

/// The smallest `keep` numbers in ascending order: few enough that a sorted list of the best so far is quick to mend.
fn choose_few(pairs: &[u64], keep: usize, best: &mut Vec<u64>) {
    best.clear();
    best.extend(&pairs[..keep]);
    best.sort_unstable();
    let mut limit = best[keep - 1];
    for block in pairs[keep..].chunks(32) {
        // Most blocks have nothing to offer.
        let some = vectorize(
            #[inline(always)]
            || block.iter().fold(0u64, |any, &pair| any | u64::from(pair < limit)),
        );
        if some == 0 {
            continue;
        }
        for &pair in block {
            if pair < limit {
                let at = best.partition_point(|&b| b < pair);
                best.pop();
                best.insert(at, pair);
                limit = best[keep - 1];
            }
        }
    }
}

/// As [`narrow_row`], for keys of any size.
fn wide_row<T: Key>(
    row: &[T],
    keep: usize,
    descending: bool,
    pairs: &mut Vec<(u64, usize)>,
    places: &mut [i64],
) {
    let flip = if descending { u64::MAX >> (64 - 8 * T::BYTES) } else { 0 };
    pairs.clear();
    pairs.extend(row.iter().enumerate().map(|(i, x)| (x.key() ^ flip, i)));
    if keep < pairs.len() {
        pairs.select_nth_unstable(keep);
    }
    pairs[..keep].sort_unstable();
    places.iter_mut().zip(&*pairs).for_each(|(place, &(_, at))| *place = at as i64);
}
