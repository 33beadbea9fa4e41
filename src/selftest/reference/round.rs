//! Rounding to the element types and units in the last place, from the formats' definitions alone.

#![forbid(unsafe_code)]

use crate::DType;

/// Bits of the significand (the hidden one included) and the smallest and largest exponent of normal numbers.
fn format(dtype: DType) -> Option<(i32, i32, i32)> {
    match dtype {
        DType::F64 => Some((53, -1022, 1023)),
        DType::F32 => Some((24, -126, 127)),
        DType::F16 => Some((11, -14, 15)),
        DType::BF16 => Some((8, -126, 127)),
        DType::U8 | DType::I32 | DType::I64 => None,
    }
}

/// 2ᵏ, subnormal results included.
fn pow2(k: i32) -> f64 {
    if k >= -1022 { f64::from_bits(((k + 1023) as u64) << 52) } else { f64::from_bits(1u64 << (k + 1074)) }
}

/// floor(log2 |v|) of a finite, non-zero `v`.
fn exponent(v: f64) -> i32 {
    match (v.to_bits() >> 52 & 0x7ff) as i32 {
        0 => 63 - v.abs().to_bits().leading_zeros() as i32 - 1074,
        e => e - 1023,
    }
}

/// `v` as `dtype` holds it: floats round to nearest, ties to even, beyond the range to infinity; integers truncate and
/// saturate, NaN to 0.
pub fn to(dtype: DType, v: f64) -> f64 {
    let Some((p, least, most)) = format(dtype) else {
        let (low, high) = match dtype {
            DType::U8 => (0.0, 255.0),
            DType::I32 => (-2147483648.0, 2147483647.0),
            _ => (-9223372036854775808.0, 9223372036854775807.0),
        };
        return if v.is_nan() { 0.0 } else { v.trunc().clamp(low, high) + 0.0 };
    };
    if dtype == DType::F64 || v == 0.0 || !v.is_finite() {
        return v;
    }
    let unit = pow2(exponent(v).max(least) - (p - 1));
    let r = (v / unit).round_ties_even() * unit;
    if r.abs() > largest(p, most) { f64::INFINITY.copysign(v) } else { r }
}

fn largest(p: i32, most: i32) -> f64 {
    (2.0 - pow2(1 - p)) * pow2(most)
}

/// The distance between neighbours of `v` in a float type; that of the largest numbers for infinity.
pub fn ulp(dtype: DType, v: f64) -> f64 {
    let (p, least, most) = format(dtype).unwrap_or((53, -1022, 1023));
    let e = if v == 0.0 {
        least
    } else if v.is_finite() {
        exponent(v).clamp(least, most)
    } else {
        most
    };
    pow2(e - (p - 1))
}

/// What a product below the normal range loses, in units of the type's roundoff: it is rounded to a multiple of the least number.
pub fn underflow(dtype: DType) -> f64 {
    tiny(dtype)[0] / dtype.unit_roundoff()
}

/// The largest finite number of a float type.
pub fn max(dtype: DType) -> f64 {
    let (p, _, most) = format(dtype).unwrap_or((53, -1022, 1023));
    largest(p, most)
}

/// The smallest positive number of a float type, and the smallest normal one.
pub fn tiny(dtype: DType) -> [f64; 2] {
    let (p, least, _) = format(dtype).unwrap_or((53, -1022, 1023));
    [pow2(least - (p - 1)), pow2(least)]
}
