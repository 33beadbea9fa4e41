//! Double-double arithmetic: an unevaluated sum of two f64, about 106 bits. The reference computes in it and rounds once
//! at the end, so that it is better than what it judges in f64 too.
//!
//! Algorithms: Dekker's and Knuth's error-free sums and products; functions from their series. Infinities and NaN go
//! through as IEEE says, carried by `hi` alone.

#![forbid(unsafe_code)]

use std::ops::{Add, Div, Mul, Neg, Sub};

/// `hi + lo`, with `|lo|` at most half a unit in the last place of `hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dd {
    hi: f64,
    lo: f64,
}

const LN2: Dd = Dd { hi: std::f64::consts::LN_2, lo: 2.319_046_813_846_299_6e-17 };
const PI: Dd = Dd { hi: std::f64::consts::PI, lo: 1.224_646_799_147_353_2e-16 };

/// Below this the error of a product is no longer an f64, and products and quotients are f64's own.
const TINY: f64 = 1e-280;

/// An exact f64.
pub fn dd(v: f64) -> Dd {
    Dd { hi: v, lo: 0.0 }
}

/// `a + b` with its rounding error.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

impl Dd {
    pub const ZERO: Dd = Dd { hi: 0.0, lo: 0.0 };
    pub const ONE: Dd = Dd { hi: 1.0, lo: 0.0 };

    /// Renormalises; a non-finite sum (or one whose error term overflowed) keeps `hi` alone.
    fn of(hi: f64, lo: f64) -> Dd {
        let (s, e) = two_sum(hi, lo);
        if s.is_finite() && e.is_finite() { Dd { hi: s, lo: e } } else { dd(hi) }
    }

    /// Rounds to f64: `hi` is the f64 nearest to the sum.
    pub fn get(self) -> f64 {
        self.hi
    }

    pub fn is_nan(self) -> bool {
        self.hi.is_nan()
    }

    pub fn is_finite(self) -> bool {
        self.hi.is_finite()
    }

    pub fn abs(self) -> Dd {
        if self.hi.is_sign_negative() { -self } else { self }
    }

    /// Exact unless it leaves the range of f64; in two steps, so that subnormal results are reached.
    fn scaled(self, k: i32) -> Dd {
        let (a, b) = (2f64.powi(k / 2), 2f64.powi(k - k / 2));
        Dd::of(self.hi * a * b, self.lo * a * b)
    }

    pub fn sqrt(self) -> Dd {
        let root = self.hi.sqrt();
        if !root.is_finite() || root == 0.0 {
            return dd(root);
        }
        // The root of an f64 is rounded rightly by the machine; adding the correction anew could round it again.
        let correction = (self - dd(root) * dd(root)) / dd(2.0 * root);
        if self.lo == 0.0 { Dd { hi: root, lo: correction.hi } } else { dd(root) + correction }
    }

    /// eˣ − 1 for `|x| <= ln 2`, without cancellation: a series on `x / 512`, then `s ← 2s + s²` nine times.
    fn small_exp_m1(self) -> Dd {
        let r = self.scaled(-9);
        let (mut term, mut sum) = (r, r);
        for n in 2..=12 {
            term = term * r / dd(n as f64);
            sum = sum + term;
        }
        (0..9).fold(sum, |s, _| s + s + s * s)
    }

    pub fn exp(self) -> Dd {
        if self.is_nan() || self.hi > 710.0 || self.hi < -746.0 {
            return dd(self.hi.exp());
        }
        let k = (self.hi / LN2.hi).round();
        ((self - LN2 * dd(k)).small_exp_m1() + Dd::ONE).scaled(k as i32)
    }

    pub fn exp_m1(self) -> Dd {
        if self.hi == 0.0 {
            self
        } else if self.hi.abs() < 0.5 {
            self.small_exp_m1()
        } else {
            self.exp() - Dd::ONE
        }
    }

    /// Natural logarithm: Newton's method on exp, of the fraction; the exponent is added apart.
    pub fn ln(self) -> Dd {
        if !(self.hi > 0.0 && self.hi.is_finite()) {
            return dd(self.hi.ln());
        }
        if (self.hi - 1.0).abs() < 1e-3 {
            return (self - Dd::ONE).ln_1p();
        }
        // Subnormals have no usable exponent field: lift them first.
        let (lifted, extra) = if self.hi < 1e-290 { (self.scaled(300), 300) } else { (self, 0) };
        let mut e = ((lifted.hi.to_bits() >> 52) as i32) - 1023;
        if lifted.scaled(-e).hi > std::f64::consts::SQRT_2 {
            e += 1;
        }
        let m = lifted.scaled(-e);
        let mut y = dd(m.hi.ln());
        for _ in 0..2 {
            y = y + m * (-y).exp() - Dd::ONE;
        }
        y + LN2 * dd((e - extra) as f64)
    }

    /// ln(1 + x); near 0 by 2·artanh(x / (2 + x)), since Newton's method is exact to an absolute error only.
    pub fn ln_1p(self) -> Dd {
        if self.hi.abs() >= 1e-3 {
            return (Dd::ONE + self).ln();
        }
        let t = self / (dd(2.0) + self);
        (0..7).rev().fold(Dd::ZERO, |sum, k| sum * t * t + dd(2.0) / dd(2.0 * k as f64 + 1.0)) * t
    }

    pub fn tanh(self) -> Dd {
        if self.is_nan() {
            return self;
        }
        if self.hi.abs() > 50.0 {
            return dd(1f64.copysign(self.hi));
        }
        let e = (self + self).exp_m1();
        if self.hi == 0.0 { self } else { e / (e + dd(2.0)) }
    }

    /// 1 / (1 + e⁻ˣ)
    pub fn sigmoid(self) -> Dd {
        if self.hi < 0.0 {
            let e = self.exp();
            e / (Dd::ONE + e)
        } else {
            Dd::ONE / (Dd::ONE + (-self).exp())
        }
    }

    /// ln(1 + eˣ)
    pub fn softplus(self) -> Dd {
        if self.hi > 0.0 { self + (-self).exp().ln_1p() } else { self.exp().ln_1p() }
    }

    /// 1 − erf(x), to full relative precision in the tail.
    pub fn erfc(self) -> Dd {
        if self.is_nan() {
            return self;
        }
        if self.hi < 3.0 {
            return Dd::ONE - self.erf();
        }
        if self.hi > 28.0 {
            return Dd::ZERO;
        }
        // DLMF 7.9.2: √π e^{x²} erfc x = 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))).
        let tail = (1..=400).rev().fold(self, |t, k| self + dd(0.5 * k as f64) / t);
        (-(self * self)).exp() / (tail * PI.sqrt())
    }

    /// DLMF 7.6.2, all of whose terms have one sign: erf x = 2/√π e^{−x²} Σ 2ⁿ x^{2n+1} / (2n+1)!!
    pub fn erf(self) -> Dd {
        if self.is_nan() || self.hi == 0.0 {
            return self;
        }
        if self.hi < 0.0 {
            return -(-self).erf();
        }
        if self.hi >= 3.0 {
            return Dd::ONE - self.erfc();
        }
        let square = self * self;
        let (mut term, mut sum, mut n) = (self, self, 1.0);
        while term.hi > sum.hi * 1e-34 {
            term = term * (square + square) / dd(2.0 * n + 1.0);
            sum = sum + term;
            n += 1.0;
        }
        (-square).exp() * sum * dd(2.0) / PI.sqrt()
    }

    /// xʸ with IEEE's special cases, which the standard library states.
    pub fn pow(self, y: Dd) -> Dd {
        let plain = self.hi.powf(y.hi);
        let special = |v: f64| v == 0.0 || !v.is_finite();
        if special(plain) || special(self.hi) || special(y.hi) {
            return dd(plain);
        }
        let size = (self.abs().ln() * y).exp();
        if plain < 0.0 { -size } else { size }
    }

    /// The larger; NaN if either is.
    pub fn max(self, other: Dd) -> Dd {
        if self.is_nan() || other.is_nan() {
            return dd(f64::NAN);
        }
        if other.hi > self.hi || other.hi == self.hi && other.lo > self.lo { other } else { self }
    }
}

/// √(2/π)
pub fn sqrt_2_over_pi() -> Dd {
    (dd(2.0) / PI).sqrt()
}

impl Neg for Dd {
    type Output = Dd;
    fn neg(self) -> Dd {
        Dd { hi: -self.hi, lo: -self.lo }
    }
}

impl Add for Dd {
    type Output = Dd;
    fn add(self, b: Dd) -> Dd {
        let (s, e) = two_sum(self.hi, b.hi);
        if !s.is_finite() {
            return dd(s);
        }
        if s == 0.0 && e == 0.0 && self.lo + b.lo == 0.0 {
            return dd(s); // keeps the sign of zero
        }
        let (t, f) = two_sum(self.lo, b.lo);
        let r = Dd::of(s, e + t);
        Dd::of(r.hi, r.lo + f)
    }
}

impl Sub for Dd {
    type Output = Dd;
    fn sub(self, b: Dd) -> Dd {
        self + -b
    }
}

impl Mul for Dd {
    type Output = Dd;
    fn mul(self, b: Dd) -> Dd {
        let p = self.hi * b.hi;
        if !p.is_finite() || p.abs() < TINY {
            return dd(p);
        }
        let e = self.hi.mul_add(b.hi, -p);
        Dd::of(p, e + (self.hi * b.lo + self.lo * b.hi))
    }
}

impl Div for Dd {
    type Output = Dd;
    fn div(self, b: Dd) -> Dd {
        let q = self.hi / b.hi;
        if !q.is_finite() || !b.hi.is_finite() || q.abs() < TINY || self.hi.abs() < TINY {
            return dd(q);
        }
        let r = self - dd(q) * b;
        if !r.is_finite() {
            return dd(q); // the product overflowed: `self` is as large as f64 goes
        }
        let q2 = r.hi / b.hi;
        let r = r - dd(q2) * b;
        Dd::of(q, q2) + dd(r.hi / b.hi)
    }
}

impl std::iter::Sum for Dd {
    fn sum<I: Iterator<Item = Dd>>(iter: I) -> Dd {
        iter.fold(Dd::ZERO, Add::add)
    }
}

/// Checks the functions against values that mpmath computed with 60 digits, kept as `hi + lo`.
pub fn self_check() {
    let close = |got: Dd, hi: f64, lo: f64| {
        let off = (got - Dd { hi, lo }).get().abs();
        assert!(off <= hi.abs() * 1e-26 + 1e-320, "{got:?} is off {hi:e} + {lo:e} by {off:e}");
    };
    close(dd(0.3).exp(), 1.3498588075760032, -9.447314673432387e-17);
    close(dd(-20.25).exp(), 1.6052280551856116e-09, -3.657643988865463e-26);
    close(dd(1e-09).exp(), 1.000000001, -8.224037093664211e-17);
    close(dd(700.5).exp(), 1.6721859620674984e+304, 1.0957735777569338e+288);
    close(dd(0.3).ln(), -1.2039728043259361, 8.935521583403776e-17);
    close(dd(1e-310).ln(), -713.8013788281542, -8.592254740270771e-15);
    close(dd(1.0000001).ln(), 9.999999505838704e-08, 1.5249709528441489e-24);
    close(dd(1e+300).ln(), 690.7755278982137, 2.3747660028800243e-14);
    close(dd(1e-12).exp_m1(), 1.0000000000005e-12, -2.421793960301238e-29);
    close(dd(0.4).exp_m1(), 0.49182469764127035, 3.4465650470333193e-18);
    close(dd(3.0).exp_m1(), 19.085536923187668, -1.8275625525512858e-16);
    close(dd(1e-12).ln_1p(), 9.999999999995e-13, 2.4217940103012377e-29);
    close(dd(1e-05).tanh(), 9.999999999666668e-06, -4.5758701526937e-22);
    close(dd(0.7).tanh(), 0.6043677771171635, -2.7916180015425346e-17);
    close(dd(9.0).tanh(), 0.999999969540041, -2.5991562562660026e-17);
    close(dd(-30.5).sigmoid(), 5.6756852326324e-14, 7.790731367469167e-31);
    close(dd(0.1).sigmoid(), 0.52497918747894, -2.5084310194303448e-17);
    close(dd(30.5).sigmoid(), 0.9999999999999433, -2.4455767978504063e-17);
    close(dd(-30.5).softplus(), 5.675685232632561e-14, 2.1729694820189895e-30);
    close(dd(0.1).erf(), 0.1124629160182849, 9.255497413884101e-19);
    close(dd(2.9).erf(), 0.9999589021219005, 1.310480248450443e-17);
    close(dd(3.1).erf(), 0.9999883513426328, 4.7372455611367474e-17);
    close(dd(-1.5).erfc(), 1.9661051464753108, -3.3867031441680696e-17);
    close(dd(2.9).erfc(), 4.109787809945886e-05, 4.912754141041331e-22);
    close(dd(3.1).erfc(), 1.1648657367199589e-05, 4.0306267103274617e-22);
    close(dd(9.0).erfc(), 4.13703174651381e-37, 1.2672469303854612e-53);
    close(dd(2.0).sqrt(), std::f64::consts::SQRT_2, -9.667293313452913e-17);
    close(dd(1.7).pow(dd(-3.3)), 0.17358754434318882, -1.2382454423302906e-17);
    close(dd(-3.0).pow(dd(5.0)), -243.0, 0.0);
    close(dd(1.0) / dd(3.0), 0.3333333333333333, 1.850371707708594e-17);
    assert!(dd(f64::NAN).exp().is_nan() && (dd(f64::INFINITY) - dd(f64::INFINITY)).is_nan());
    assert_eq!((dd(1e308) + dd(1e308)).get(), f64::INFINITY);
    assert_eq!((dd(-0.0) + dd(-0.0)).get().to_bits(), (-0.0f64).to_bits());
}
