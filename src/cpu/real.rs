//! The arithmetic behind [`Real`]: f32 goes to the vectorisable functions of `vmath`, f64 to the standard library.
//!
//! f64 serves the gradient check and exact references, so it is made to be right rather than fast. What the standard
//! library lacks, the error function and its relatives, has here the form that `vmath` has for f32, with longer
//! polynomials from the same fits.

#![forbid(unsafe_code)]

use super::vmath;
use crate::dtype::Real;

macro_rules! real {
    ($t:ident: $powf:path, $($own:ident = $from:path),* $(,)?) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline(always)] fn of(v: f64) -> Self { v as $t }
            #[inline(always)] fn sqrt(self) -> Self { $t::sqrt(self) }
            #[inline(always)] fn abs(self) -> Self { $t::abs(self) }
            #[inline(always)] fn mul_add(self, a: Self, b: Self) -> Self { $t::mul_add(self, a, b) }
            #[inline(always)] fn is_nan(self) -> bool { $t::is_nan(self) }
            #[inline(always)] fn is_finite(self) -> bool { $t::is_finite(self) }
            #[inline(always)] fn powf(self, y: Self) -> Self { $powf(self, y) }
            $(#[inline(always)] fn $own(self) -> Self { $from(self) })*
        }
    };
}

real!(f32: vmath::powf,
    exp = vmath::exp, exp_m1 = vmath::exp_m1, ln = vmath::ln, ln_1p = vmath::ln_1p, tanh = vmath::tanh,
    sigmoid = vmath::sigmoid, erf = vmath::erf, normal_cdf = vmath::normal_cdf,
);
real!(f64: f64::powf,
    exp = f64::exp, exp_m1 = f64::exp_m1, ln = f64::ln, ln_1p = f64::ln_1p, tanh = f64::tanh,
    sigmoid = sigmoid, erf = erf, normal_cdf = normal_cdf,
);

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// erf(x) / x in x², for |x| ≤ 1, to 2⁻⁶².
const ERF: [f64; 13] = [
    std::f64::consts::FRAC_2_SQRT_PI,
    -0.3761263890318375,
    0.11283791670954857,
    -0.026866170645072896,
    0.005223977624780875,
    -0.0008548326978742633,
    0.00012055331036913794,
    -1.4925593507190661e-05,
    1.6460972821184672e-06,
    -1.6350025260055095e-07,
    1.465788005199366e-08,
    -1.1365666624567702e-09,
    5.945262640753955e-11,
];

/// (1 + 2a) e^{a²} erfc(a) in (a − 3) / (a + 3), for 0 ≤ a ≤ 28, to 2⁻⁵⁵.
const ERFC_SCALED: [f64; 23] = [
    1.2530080582697296,
    -0.13562110612458053,
    -0.04756229435344914,
    0.12964515870269053,
    -0.11927366341539403,
    0.06830802734628849,
    -0.023770514916732707,
    0.002529391781006718,
    0.0018886903351821272,
    -0.0007798319773387245,
    -0.00010515961067659568,
    0.00012509784508285074,
    4.9485112027016625e-06,
    -2.0095653060815955e-05,
    -7.282015414287958e-07,
    3.462021908656924e-06,
    3.4944300120968477e-07,
    -6.025527435155179e-07,
    -1.309572115160271e-07,
    9.015758111836749e-08,
    3.243170402577056e-08,
    -7.992074669976592e-09,
    -3.981054236854093e-09,
];

fn poly(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, &c| sum * x + c)
}

fn erfc_scaled(a: f64) -> f64 {
    poly((a - 3.0) / (a + 3.0), &ERFC_SCALED) / (1.0 + 2.0 * a)
}

/// e^{−a²·half}, with the rounding error of a² put back.
fn gauss(a: f64, half: f64) -> f64 {
    let square = a * a;
    let e = (-square * half).exp();
    e - e * (a.mul_add(a, -square) * half)
}

fn erf(x: f64) -> f64 {
    if x.abs() < 1.0 {
        return x * poly(x * x, &ERF);
    }
    let a = if x.abs() > 28.0 { 28.0 } else { x.abs() };
    (1.0 - gauss(a, 1.0) * erfc_scaled(a)).copysign(x)
}

fn normal_cdf(x: f64) -> f64 {
    let a = if x.abs() > 39.0 { 39.0 } else { x.abs() };
    let tail = 0.5 * gauss(a, 0.5) * erfc_scaled(a * std::f64::consts::FRAC_1_SQRT_2);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf and erfc for x ≥ 0 by other ways: `2/√π · e^{−x²} · Σ 2ⁿ x^{2n+1} / (2n+1)!!`, all of whose terms have one sign,
    /// and beyond 2.5 the continued fraction of erfc (Abramowitz and Stegun 7.1.14), evaluated from its tail.
    fn other_way(x: f64) -> (f64, f64) {
        if x < 2.5 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while term > sum * 1e-18 {
                term *= 2.0 * x * x / (2.0 * n + 1.0);
                sum += term;
                n += 1.0;
            }
            let erf = std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
            (erf, 1.0 - erf)
        } else {
            let tail = (1..=120).rev().fold(x, |t, k| x + 0.5 * k as f64 / t);
            let lost = x.mul_add(x, -(x * x));
            let erfc = (-x * x).exp() * (1.0 - lost) / (tail * std::f64::consts::PI.sqrt());
            (1.0 - erfc, erfc)
        }
    }

    #[test]
    fn error_functions_of_f64_agree_with_other_formulas() {
        for i in 0..26_000 {
            let x = i as f64 * 1e-3;
            let (want, complement) = other_way(x);
            // The long series itself is off by some 1e-15.
            assert!((erf(x) - want).abs() <= 3e-15 * want, "erf({x}) = {}, not {want}", erf(x));
            assert_eq!(erf(-x), -erf(x));
            let z = -x * std::f64::consts::SQRT_2;
            let got = 2.0 * normal_cdf(z);
            // x √2 is rounded, which erfc magnifies by 2x² (where 1 − erf is exact enough to compare with).
            let bound = (4e-16 * (3.0 + 2.0 * x * x)) * complement + if x < 2.5 { 1e-15 } else { 0.0 };
            assert!((got - complement).abs() <= bound, "2 Φ({z}) = {got}, not {complement}");
            assert!((normal_cdf(-z) - (1.0 - complement / 2.0)).abs() < 1e-15);
        }
    }

    #[test]
    fn error_functions_have_tabulated_values() {
        // Abramowitz and Stegun, table 7.1, and DLMF 7.23.
        for (x, want) in [
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
        ] {
            assert!((erf(x) - want).abs() < 5e-16, "erf({x}) = {}, want {want}", erf(x));
        }
        for infinite in [f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(erf(infinite), infinite.signum());
            assert_eq!(normal_cdf(infinite), if infinite > 0.0 { 1.0 } else { 0.0 });
        }
        assert!(erf(f64::NAN).is_nan() && normal_cdf(f64::NAN).is_nan() && sigmoid(f64::NAN).is_nan());
    }
}
