//! Elementary functions of f32 that the compiler can vectorise: no branch, no table, no call.
//!
//! Each is a polynomial between bit tricks, with selects for the special values; inside `cpu::simd::vectorize` a loop over
//! them becomes vector code of full width. They need a fused multiply-add: where the target has none, `mul_add` is a
//! library call, so the bits are the same everywhere but the speed is not. The polynomials are our own Remez fits
//! (`weight · (p − f)` minimised in 60 digits). What the tests hold them to, in units in the last place (ulp) of the
//! exact result, over all magnitudes of the argument: [`exp`], [`ln`], [`powf`] 1; the others 2, [`normal_cdf`] 6 in its
//! tail. Infinities, NaN, zeros and subnormal numbers, also subnormal results, are as in C.

#![forbid(unsafe_code)]

/// 1.5 · 2²³: adding it to a number below 2²² rounds that to an integer, which then stands in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Few bits, so that its product with an exponent is exact.
const LN2_HI: f32 = 355.0 / 512.0;
/// ln 2 − `LN2_HI`.
const LN2_LO: f32 = -2.121_944_4e-4;

/// Horner's rule from the lowest coefficient up; unrolled, for `N` is known.
#[inline(always)]
fn poly<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for k in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[k]);
    }
    sum
}

/// As [`poly`].
#[inline(always)]
fn poly_f64<const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = coefficients[N - 1];
    for k in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[k]);
    }
    sum
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `x` between `low` and `high`; NaN stays (f32::clamp panics and f32::max drops NaN).
#[inline(always)]
fn limit(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// The nearest integer n to x / ln 2, and x − n ln 2.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = t - ROUNDER;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    ((t.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32), r)
}

/// eˣ. At most 1 ulp.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (n, r) = reduce(limit(x, -104.0, 89.0));
    let q = poly(r, [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_447_1]);
    let s = 1.0 + r;
    // r − (s − 1) is what rounding 1 + r lost, exactly.
    let y = s + (r * r).mul_add(q, r - (s - 1.0));
    // In two steps: 2ⁿ alone may overflow or be subnormal; the second product rounds a subnormal result once.
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// eˣ − 1, exact in the relative sense near 0. At most 2 ulp.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let (n, r) = reduce(limit(x, -40.0, 89.0));
    let q = poly(r, [0.5, 0.166_666_67, 0.041_666_355, 0.008_333_273, 0.001_394_110_3, 0.000_199_143_03]);
    let s = (r * r).mul_add(q, r);
    // 2ⁿ s + 2ⁿ − 1, halved because 2¹²⁸ is no f32.
    let scale = power_of_two(n.wrapping_sub(1));
    let y = 2.0 * s.mul_add(scale, scale - 0.5);
    if n == 0 { if r == 0.0 { x } else { s } } else { y }
}

/// `(e, f)` with x = 2ᵉ (1 + f) and 1 + f between √½ and √2; x is positive and normal.
#[inline(always)]
fn split(x: f32) -> (f32, f32) {
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let i = x.to_bits().wrapping_sub(ROOT_HALF);
    let m = f32::from_bits((i & 0x007f_ffff).wrapping_add(ROOT_HALF));
    (((i as i32) >> 23) as f32, m - 1.0)
}

/// ln(2ᵉ (1 + f)) + c, for a small correction c.
#[inline(always)]
fn ln_of(e: f32, f: f32, c: f32) -> f32 {
    let p = poly(
        f,
        [
            0.333_333_13,
            -0.250_000_1,
            0.200_021_2,
            -0.166_679_96,
            0.142_195_52,
            -0.124_055_9,
            0.118_881_63,
            -0.116_756_506,
            0.067_466_38,
        ],
    );
    let y = f * f * f.mul_add(p, -0.5);
    e.mul_add(LN2_HI, f + (y + e.mul_add(LN2_LO, c)))
}

/// Natural logarithm: −∞ at 0, NaN below. At most 1 ulp.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let (e, f) = split(if tiny { x * 8_388_608.0 } else { x });
    let y = ln_of(if tiny { e - 23.0 } else { e }, f, 0.0);
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Also catches NaN.
    let y = if x >= 0.0 { y } else { f32::NAN };
    if x == f32::INFINITY { x } else { y }
}

/// ln(1 + x), exact in the relative sense near 0: −∞ at −1, NaN below. At most 2 ulp.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    let u = 1.0 + x;
    let (e, f) = split(u);
    // What rounding 1 + x lost, relative to u. Where e is 0 the argument itself is the exact f.
    let lost = if x < 1.0 { x - (u - 1.0) } else { 1.0 - (u - x) };
    let near = e == 0.0;
    let y = ln_of(e, if near { x } else { f }, if near { 0.0 } else { lost / u });
    let y = if u == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x >= -1.0 { y } else { f32::NAN };
    if x == f32::INFINITY || x == 0.0 { x } else { y }
}

/// Hyperbolic tangent. At most 2 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let p = poly(z, [-0.333_333_3, 0.133_332, -0.053_945_992, 0.021_696_07, -0.008_165_034, 0.002_130_902_6]);
    let near = (z * p).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    (if a < 0.625 { near } else { far }).copysign(x)
}

/// 1 / (1 + e⁻ˣ), exact in the relative sense where it tends to 0. At most 2 ulp.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let q = e / (1.0 + e);
    if x < 0.0 { e.mul_add(-q, e) } else { 1.0 - q }
}

/// e^{a²} erfc(a) for 0 ≤ a ≤ 11. As a rational function: (1 + 2a) times it is smooth in (a − 3) / (a + 3).
#[inline(always)]
fn erfc_scaled(a: f32) -> f32 {
    // One division for both quotients: 1 / ((a + 3)(1 + 2a)).
    let (sum, slope) = (a + 3.0, a.mul_add(2.0, 1.0));
    let inverse = 1.0 / (sum * slope);
    let q = (a - 3.0) * slope * inverse;
    let p = poly(
        q,
        [
            1.253_008,
            -0.135_621_15,
            -0.047_562_5,
            0.129_646_54,
            -0.119_269_304,
            0.068_296_045,
            -0.023_806_293,
            0.002_559_134_7,
            0.002_014_068_4,
            -0.000_756_296_9,
            -0.000_259_747_87,
        ],
    );
    p * sum * inverse
}

/// e^{−a²·half}, where half is 1 or ½: the rounding error of a² is put back, which else is magnified by a².
#[inline(always)]
fn gauss(a: f32, half: f32) -> f32 {
    let square = a * a;
    let lost = a.mul_add(a, -square) * half;
    let e = exp(-square * half);
    e.mul_add(-lost, e)
}

/// The error function. At most 2 ulp.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = limit(x.abs(), 0.0, 11.0);
    // erf(x) / x − 1, so that the sum is rounded once.
    let p = poly(
        x * x,
        [
            0.128_379_17,
            -0.376_126_26,
            0.112_835_854,
            -0.026_853_813,
            0.005_188_327_7,
            -8.010_193_7e-4,
            7.853_86e-5,
        ],
    );
    let far = 1.0 - gauss(a, 1.0) * erfc_scaled(a);
    (if a < 1.0 { x.mul_add(p, x) } else { far }).copysign(x)
}

/// The distribution function of the standard normal distribution, ½ erfc(−x/√2), exact in the relative sense where it
/// tends to 0: what GELU multiplies its argument by. At most 6 ulp for results that are not subnormal.
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    let a = limit(x.abs(), 0.0, 15.0);
    let tail = 0.5 * gauss(a, 0.5) * erfc_scaled(a * std::f32::consts::FRAC_1_SQRT_2);
    let p = poly(
        x * x,
        [0.398_942_3, -0.066_490_36, 0.009_973_315, -0.001_186_301_2, 1.134_500_3e-4, -7.638_248e-6],
    );
    let far = if x < 0.0 { tail } else { 1.0 - tail };
    if a < 1.0 { x.mul_add(p, 0.5) } else { far }
}

/// xʸ, with C's special cases. At most 1 ulp; computed in f64, in vectors of half as many elements.
#[inline(always)]
pub fn powf(x: f32, y: f32) -> f32 {
    let power = exp_of_f64(f64::from(y) * ln_of_magnitude(x)) as f32;
    let whole = y.trunc() == y;
    let odd = whole & ((0.5 * y).trunc() != 0.5 * y);
    let signed = if odd { power.copysign(x) } else { power };
    let no_real = (x < 0.0) & (x != f32::NEG_INFINITY) & !whole;
    let result = if no_real { f32::NAN } else { signed };
    let one = (x == 1.0) | (y == 0.0) | ((x == -1.0) & (y.abs() == f32::INFINITY));
    if one { 1.0 } else { result }
}

/// ln |x| to about 40 bits.
#[inline(always)]
fn ln_of_magnitude(x: f32) -> f64 {
    const ROOT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    // 1.5 · 2⁵², as `ROUNDER`.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let i = f64::from(x.abs()).to_bits().wrapping_sub(ROOT_HALF);
    let m = f64::from_bits((i & 0x000f_ffff_ffff_ffff).wrapping_add(ROOT_HALF));
    let e = f64::from_bits((((i as i64) >> 52) as u64).wrapping_add(SHIFT.to_bits())) - SHIFT;
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    // 2 artanh(s): |s| < 0.172, so z⁷/15 is below 2⁻³⁹ of the sum.
    let sum = poly_f64(z, [1.0, 1.0 / 3.0, 0.2, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0]);
    let y = e.mul_add(std::f64::consts::LN_2, 2.0 * s * sum);
    let y = if x == 0.0 { f64::NEG_INFINITY } else { y };
    if x.abs() < f32::INFINITY { y } else { f64::from(x.abs()) }
}

/// eˣ to about 37 bits where it is within the range of f32, with what lies outside on the right side of it.
#[inline(always)]
fn exp_of_f64(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let x = if x < -110.0 { -110.0 } else { x };
    let x = if x > 100.0 { 100.0 } else { x };
    let t = x.mul_add(std::f64::consts::LOG2_E, SHIFT);
    let r = (t - SHIFT).mul_add(-std::f64::consts::LN_2, x);
    // 1 / k!
    let sum = poly_f64(
        r,
        [
            1.0,
            1.0,
            0.5,
            1.0 / 6.0,
            1.0 / 24.0,
            1.0 / 120.0,
            1.0 / 720.0,
            1.0 / 5040.0,
            1.0 / 40_320.0,
            1.0 / 362_880.0,
        ],
    );
    let n = t.to_bits().wrapping_sub(SHIFT.to_bits());
    sum * f64::from_bits(n.wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::vectorize;
    use crate::dtype::Real;

    /// The distance of `got` from `want` in units of the last place of an f32 of `want`'s magnitude.
    fn ulps(got: f32, want: f64) -> f64 {
        if (want as f32).is_infinite() || want.is_nan() {
            let same = want.is_nan() && got.is_nan() || got == want as f32;
            return if same { 0.0 } else { f64::INFINITY };
        }
        let exponent = ((want.abs().to_bits() >> 52) as i32 - 1023).max(-126);
        (f64::from(got) - want).abs() / f64::from(exponent - 23).exp2()
    }

    /// Checks `got` against `want` over every `step`-th of all bit patterns (all exponents, signs, infinities and NaN) and
    /// densely where `dense` says, in vector code and out of it, which must agree bit for bit.
    fn sweep(name: &str, bound: f64, dense: f32, got: impl Fn(f32) -> f32 + Copy, want: impl Fn(f64) -> f64) {
        let patterns = (0..u32::MAX / 2003).map(|i| f32::from_bits(i * 2003));
        let near = (-300_000..=300_000).map(|i| i as f32 * (dense / 300_000.0));
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, f32::MIN_POSITIVE];
        let x: Vec<f32> = patterns.chain(near).chain(special).collect();
        let mut y = vec![0.0; x.len()];
        vectorize(|| y.iter_mut().zip(&x).for_each(|(y, &x)| *y = got(x)));
        let mut worst = (0.0, 0.0);
        for (&x, &y) in x.iter().zip(&y) {
            let off = ulps(y, want(f64::from(x)));
            if off > worst.0 || off.is_nan() {
                worst = (off, x);
            }
        }
        for (&x, &y) in x.iter().zip(&y).step_by(101) {
            let scalar = got(std::hint::black_box(x));
            assert!(
                scalar.to_bits() == y.to_bits() || scalar.is_nan() && y.is_nan(),
                "{name}({x}): {scalar} {y}"
            );
        }
        println!("{name}: {:.3} ulp at {:e}", worst.0, worst.1);
        assert!(worst.0 <= bound, "{name}({:e}) = {:e} is off by {:.3} ulp", worst.1, got(worst.1), worst.0);
    }

    #[test]
    fn exponentials_are_exact_to_the_stated_ulps() {
        sweep("exp", 1.0, 104.0, exp, f64::exp);
        sweep("exp_m1", 2.0, 3.0, exp_m1, f64::exp_m1);
        sweep("tanh", 2.0, 2.0, tanh, f64::tanh);
        sweep("sigmoid", 2.0, 104.0, sigmoid, Real::sigmoid);
    }

    #[test]
    fn logarithms_are_exact_to_the_stated_ulps() {
        sweep("ln", 1.0, 3.0, ln, f64::ln);
        sweep("ln_1p", 2.0, 3.0, ln_1p, f64::ln_1p);
    }

    #[test]
    fn error_functions_are_exact_to_the_stated_ulps() {
        sweep("erf", 2.0, 4.0, erf, Real::erf);
        sweep("normal_cdf", 6.0, 13.0, normal_cdf, Real::normal_cdf);
    }

    #[test]
    fn powers_are_exact_to_the_stated_ulps_and_special_as_in_c() {
        for y in [2.0, -1.0, 0.5, -0.5, 3.0, 0.1, -7.3, 33.0, 0.0, 1e-3, 120.7] {
            sweep("powf", 1.0, 3.0, |x| powf(x, y), |x| x.powf(f64::from(y)));
        }
        for x in [2.0, 0.3, 10.0, 1.000_01, -3.0] {
            sweep("powf", 1.0, 60.0, |y| powf(x, y), |y| f64::from(x).powf(y));
        }
        let special =
            [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1e30, -1e30, 1e-40, f32::INFINITY];
        let special: Vec<f32> = special.into_iter().chain([f32::NEG_INFINITY, f32::NAN]).collect();
        for &x in &special {
            for &y in &special {
                let (got, want) = (powf(x, y), f64::from(x).powf(f64::from(y)));
                assert!(ulps(got, want) <= 1.0, "powf({x}, {y}) = {got}, not {want}");
                assert!(
                    got != 0.0 || got.is_sign_negative() == want.is_sign_negative(),
                    "powf({x}, {y}) = {got}"
                );
            }
        }
    }

    #[test]
    fn zeros_keep_their_sign() {
        for f in [exp_m1, ln_1p, tanh, erf] {
            assert_eq!(f(-0.0).to_bits(), (-0.0f32).to_bits());
            assert_eq!(f(0.0).to_bits(), 0.0f32.to_bits());
        }
        assert_eq!((exp(0.0), ln(1.0), ln(-0.0)), (1.0, 0.0, f32::NEG_INFINITY));
    }
}
