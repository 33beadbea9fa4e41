//! Comparing an output with the reference.

#![forbid(unsafe_code)]

use crate::ops::Tolerance;
use crate::{DType, Tensor};

use crate::selftest::reference::{Expected, round};

/// The type that sums are kept in.
fn acc(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// How far a result in `dtype` may lie from `want`.
///
/// A 16-bit result is computed in f32 and rounded once: half a unit of its own type, and the op's bound in units of f32.
pub fn bound(tolerance: Tolerance, dtype: DType, want: f64, scale: f64) -> f64 {
    let own = round::ulp(dtype, want);
    match tolerance {
        Tolerance::Exact => 0.0,
        Tolerance::Ulp(k, _) if dtype.size() == 2 => 0.5 * own + k * round::ulp(DType::F32, want),
        Tolerance::Ulp(k, _) => k * own,
        Tolerance::Sum(factor, _) => factor * acc(dtype).unit_roundoff() * scale + own,
    }
}

/// Whether one value is right: NaN and infinities where the reference has them (an overflow within the bound may go
/// either way), else within `bound`; `None` for `bound` asks for the bits of the rounded reference.
pub fn value_ok(dtype: DType, got: f64, want: f64, bound: Option<f64>) -> bool {
    let rounded = round::to(dtype, want);
    match bound {
        _ if want.is_nan() || got.is_nan() => want.is_nan() && got.is_nan(),
        None => got.to_bits() == rounded.to_bits(),
        Some(bound) if got.is_infinite() || rounded.is_infinite() => {
            // The value that would round to infinity is half a unit beyond the largest finite one.
            let brink = round::max(dtype) + 0.5 * round::ulp(dtype, f64::INFINITY);
            got == rounded
                || got.signum() == want.signum() && want.is_finite() && (want.abs() - brink).abs() <= bound
        }
        Some(bound) => (got - want).abs() <= bound,
    }
}

/// Type, shape and every value of an output.
pub fn output(got: &Tensor, want: &Expected, tolerance: Tolerance) -> Result<(), String> {
    if got.dtype() != want.dtype || got.dims() != want.shape {
        return Err(format!("is {}{:?}, expected {}{:?}", got.dtype(), got.dims(), want.dtype, want.shape));
    }
    // Whatever the op's tolerance, an integer is right or wrong.
    let tolerance = if want.dtype.is_float() { tolerance } else { Tolerance::Exact };
    let values = got.to_f64_vec().map_err(|e| e.to_string())?;
    let mut worst: Option<(f64, usize)> = None;
    let mut wrong = 0;
    for (i, (&got, &value)) in values.iter().zip(&want.values).enumerate() {
        let allowed = bound(tolerance, want.exact_as, value, want.scale[i]);
        let exact = tolerance == Tolerance::Exact;
        if !value_ok(want.dtype, got, value, (!exact).then_some(allowed)) {
            wrong += 1;
            let off = (got - value).abs();
            if worst.is_none_or(|(o, _)| off > o) {
                worst = Some((off, i));
            }
        }
    }
    let Some((off, i)) = worst else { return Ok(()) };
    Err(format!(
        "{wrong} of {} values wrong; worst [{i}]: got {:e}, expected {:e} (scale {:e}), off by {off:e} = {:.1} ulp, allowed {:e}",
        values.len(),
        values[i],
        want.values[i],
        want.scale[i],
        off / round::ulp(want.dtype, want.values[i]),
        bound(tolerance, want.exact_as, want.values[i], want.scale[i]),
    ))
}
