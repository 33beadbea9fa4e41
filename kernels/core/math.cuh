// math.cuh: the elementary functions of kernels, ported line by line from src/cpu/vmath.rs and src/cpu/activation.rs.
//
// Same polynomials, same fused multiply-adds, same selects, and no function of a vendor's library: CPU, simulator and GPU
// give the same bits (payloads of NaN aside). That needs -fmad=false, IEEE division and square root, and subnormals kept.
// How exact each is stands beside its original; the tests there sweep all magnitudes.
#pragma once
#include "platform.cuh"

WS_FN f64 f64_of(u64 bits) { f64 x; __builtin_memcpy(&x, &bits, 8); return x; }
WS_FN u64 bits_of(f64 x) { u64 u; __builtin_memcpy(&u, &x, 8); return u; }

WS_FN f32 ws_abs(f32 x) { return f32_of(bits_of(x) & 0x7fffffffu); }
WS_FN f32 ws_copysign(f32 x, f32 sign) { return f32_of((bits_of(x) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u)); }
WS_FN bool ws_is_nan(f32 x) { return x != x; }
WS_FN f32 ws_infinity() { return f32_of(0x7f800000u); }
WS_FN f32 ws_nan() { return f32_of(0x7fc00000u); }

// Horner's rule; the lowest coefficient comes first.
WS_FN f32 ws_poly(f32, f32 c) { return c; }
template <class... C> WS_FN f32 ws_poly(f32 x, f32 c, C... rest) { return fmaf(ws_poly(x, rest...), x, c); }
WS_FN f64 ws_poly64(f64, f64 c) { return c; }
template <class... C> WS_FN f64 ws_poly64(f64 x, f64 c, C... rest) { return fma(ws_poly64(x, rest...), x, c); }

// 2^n for -126 <= n <= 127.
WS_FN f32 ws_power_of_two(i32 n) { return f32_of((u32(n) + 127u) << 23); }

// x between low and high; NaN stays.
WS_FN f32 ws_limit(f32 x, f32 low, f32 high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// Few bits, so that its product with an exponent is exact; and the rest of ln 2.
constexpr f32 WS_LN2_HI = 355.0f / 512.0f;
constexpr f32 WS_LN2_LO = -2.1219444e-4f;

// The nearest integer n to x / ln 2, and x - n ln 2.
struct WsReduced { i32 n; f32 r; };
WS_FN WsReduced ws_reduce(f32 x) {
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const f32 rounder = 12582912.0f;
    const f32 t = fmaf(x, 1.44269504088896340736f, rounder);
    const f32 n = t - rounder;
    const f32 r = fmaf(n, -WS_LN2_LO, fmaf(n, -WS_LN2_HI, x));
    return {i32(bits_of(t) - bits_of(rounder)), r};
}

// e^x. At most 1 ulp.
WS_FN f32 ws_exp(f32 x) {
    const WsReduced a = ws_reduce(ws_limit(x, -104.0f, 89.0f));
    const f32 q = ws_poly(a.r, 0.49999994f, 0.1666652f, 0.041668393f, 0.008368781f, 0.0013814471f);
    const f32 s = 1.0f + a.r;
    // r - (s - 1) is what rounding 1 + r lost, exactly.
    const f32 y = s + fmaf(a.r * a.r, q, a.r - (s - 1.0f));
    // In two steps: 2^n alone may overflow or be subnormal; the second product rounds a subnormal result once.
    const i32 half = a.n >> 1;
    return y * ws_power_of_two(half) * ws_power_of_two(i32(u32(a.n) - u32(half)));
}

// e^x - 1. At most 2 ulp.
WS_FN f32 ws_expm1(f32 x) {
    const WsReduced a = ws_reduce(ws_limit(x, -40.0f, 89.0f));
    const f32 q = ws_poly(a.r, 0.5f, 0.16666667f, 0.041666355f, 0.008333273f, 0.0013941103f, 0.00019914303f);
    const f32 s = fmaf(a.r * a.r, q, a.r);
    const f32 scale = ws_power_of_two(i32(u32(a.n) - 1u));
    const f32 y = 2.0f * fmaf(s, scale, scale - 0.5f);
    return a.n == 0 ? (a.r == 0.0f ? x : s) : y;
}

// x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); x is positive and normal.
struct WsSplit { f32 e, f; };
WS_FN WsSplit ws_split(f32 x) {
    const u32 root_half = 0x3f3504f3u;
    const u32 i = bits_of(x) - root_half;
    const f32 m = f32_of((i & 0x007fffffu) + root_half);
    return {f32(i32(i) >> 23), m - 1.0f};
}

// ln(2^e (1 + f)) + c, for a small correction c.
WS_FN f32 ws_log_of(f32 e, f32 f, f32 c) {
    const f32 p = ws_poly(f, 0.33333313f, -0.2500001f, 0.2000212f, -0.16667996f, 0.14219552f, -0.1240559f, 0.11888163f,
                          -0.116756506f, 0.06746638f);
    const f32 y = f * f * fmaf(f, p, -0.5f);
    return fmaf(e, WS_LN2_HI, f + (y + fmaf(e, WS_LN2_LO, c)));
}

// Natural logarithm: -inf at 0, NaN below. At most 1 ulp.
WS_FN f32 ws_log(f32 x) {
    const bool tiny = x < 1.17549435e-38f;
    const WsSplit a = ws_split(tiny ? x * 8388608.0f : x);
    f32 y = ws_log_of(tiny ? a.e - 23.0f : a.e, a.f, 0.0f);
    y = x == 0.0f ? -ws_infinity() : y;
    y = x >= 0.0f ? y : ws_nan();
    return x == ws_infinity() ? x : y;
}

// ln(1 + x): -inf at -1, NaN below. At most 2 ulp.
WS_FN f32 ws_log1p(f32 x) {
    const f32 u = 1.0f + x;
    const WsSplit a = ws_split(u);
    // What rounding 1 + x lost, relative to u. Where e is 0 the argument itself is the exact f.
    const f32 lost = x < 1.0f ? x - (u - 1.0f) : 1.0f - (u - x);
    const bool near = a.e == 0.0f;
    f32 y = ws_log_of(a.e, near ? x : a.f, near ? 0.0f : lost / u);
    y = u == 0.0f ? -ws_infinity() : y;
    y = x >= -1.0f ? y : ws_nan();
    return x == ws_infinity() || x == 0.0f ? x : y;
}

// Hyperbolic tangent. At most 2 ulp.
WS_FN f32 ws_tanh(f32 x) {
    const f32 a = ws_abs(x);
    const f32 z = x * x;
    const f32 p = ws_poly(z, -0.3333333f, 0.133332f, -0.053945992f, 0.02169607f, -0.008165034f, 0.0021309026f);
    const f32 near = fmaf(z * p, x, x);
    const f32 far = 1.0f - 2.0f / (ws_exp(2.0f * a) + 1.0f);
    return ws_copysign(a < 0.625f ? near : far, x);
}

// 1 / (1 + e^-x). At most 2 ulp.
WS_FN f32 ws_sigmoid(f32 x) {
    const f32 e = ws_exp(-ws_abs(x));
    const f32 q = e / (1.0f + e);
    return x < 0.0f ? fmaf(e, -q, e) : 1.0f - q;
}

// e^(a^2) erfc(a) for 0 <= a <= 11.
WS_FN f32 ws_erfc_scaled(f32 a) {
    // One division for both quotients: 1 / ((a + 3)(1 + 2a)).
    const f32 sum = a + 3.0f, slope = fmaf(a, 2.0f, 1.0f);
    const f32 inverse = 1.0f / (sum * slope);
    const f32 q = (a - 3.0f) * slope * inverse;
    const f32 p = ws_poly(q, 1.253008f, -0.13562115f, -0.0475625f, 0.12964654f, -0.119269304f, 0.068296045f,
                          -0.023806293f, 0.0025591347f, 0.0020140684f, -0.0007562969f, -0.00025974787f);
    return p * sum * inverse;
}

// e^(-a^2 half), where half is 1 or 1/2: the rounding error of a^2 is put back.
WS_FN f32 ws_gauss(f32 a, f32 half) {
    const f32 square = a * a;
    const f32 lost = fmaf(a, a, -square) * half;
    const f32 e = ws_exp(-square * half);
    return fmaf(e, -lost, e);
}

// The error function. At most 2 ulp.
WS_FN f32 ws_erf(f32 x) {
    const f32 a = ws_limit(ws_abs(x), 0.0f, 11.0f);
    // erf(x) / x - 1, so that the sum is rounded once.
    const f32 p = ws_poly(x * x, 0.12837917f, -0.37612626f, 0.112835854f, -0.026853813f, 0.0051883277f, -8.0101937e-4f,
                          7.85386e-5f);
    const f32 far = 1.0f - ws_gauss(a, 1.0f) * ws_erfc_scaled(a);
    return ws_copysign(a < 1.0f ? fmaf(x, p, x) : far, x);
}

// The distribution function of the standard normal distribution. At most 6 ulp.
WS_FN f32 ws_normal_cdf(f32 x) {
    const f32 a = ws_limit(ws_abs(x), 0.0f, 15.0f);
    const f32 tail = 0.5f * ws_gauss(a, 0.5f) * ws_erfc_scaled(a * 0.70710678118654752440f);
    const f32 p = ws_poly(x * x, 0.3989423f, -0.06649036f, 0.009973315f, -0.0011863012f, 1.1345003e-4f, -7.638248e-6f);
    const f32 far = x < 0.0f ? tail : 1.0f - tail;
    return a < 1.0f ? fmaf(x, p, 0.5f) : far;
}

// ln |x| to about 40 bits.
WS_FN f64 ws_log_of_magnitude(f32 x) {
    const u64 root_half = 0x3fe6a09e667f3bcdull;
    const f64 shift = 6755399441055744.0;                   // 1.5 * 2^52
    const u64 i = bits_of(f64(ws_abs(x))) - root_half;
    const f64 m = f64_of((i & 0x000fffffffffffffull) + root_half);
    const f64 e = f64_of(u64(i64(i) >> 52) + bits_of(shift)) - shift;
    const f64 s = (m - 1.0) / (m + 1.0);
    const f64 z = s * s;
    // 2 artanh(s)
    const f64 sum = ws_poly64(z, 1.0, 1.0 / 3.0, 0.2, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0);
    f64 y = fma(e, 0.693147180559945309417232121458, 2.0 * s * sum);
    y = x == 0.0f ? f64(-ws_infinity()) : y;
    return ws_abs(x) < ws_infinity() ? y : f64(ws_abs(x));
}

// e^x to about 37 bits where it is within the range of f32, with what lies outside on the right side of it.
WS_FN f64 ws_exp_of_f64(f64 x) {
    const f64 shift = 6755399441055744.0;
    x = x < -110.0 ? -110.0 : x;
    x = x > 100.0 ? 100.0 : x;
    const f64 t = fma(x, 1.44269504088896340735992468100, shift);
    const f64 r = fma(t - shift, -0.693147180559945309417232121458, x);
    const f64 sum = ws_poly64(r, 1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0,
                              1.0 / 40320.0, 1.0 / 362880.0);
    const u64 n = bits_of(t) - bits_of(shift);
    return sum * f64_of((n + 1023u) << 52);
}

// Whether y is an integer: from 2^23 on every f32 is one, infinities included.
WS_FN bool ws_is_whole(f32 y) { return ws_abs(y) < 8388608.0f ? f32(i32(y)) == y : y == y; }

// x^y, with C's special cases. At most 1 ulp.
WS_FN f32 ws_pow(f32 x, f32 y) {
    const f32 power = f32(ws_exp_of_f64(f64(y) * ws_log_of_magnitude(x)));
    const bool whole = ws_is_whole(y);
    const bool odd = whole && !ws_is_whole(0.5f * y);
    const f32 sign = odd ? ws_copysign(power, x) : power;
    const bool no_real = x < 0.0f && x != -ws_infinity() && !whole;
    const f32 result = no_real ? ws_nan() : sign;
    const bool one = x == 1.0f || y == 0.0f || (x == -1.0f && ws_abs(y) == ws_infinity());
    return one ? 1.0f : result;
}

// ln(1 + e^x) and ln(1 + e^-|x|) + max(x, 0) are the same; the second overflows nowhere. NaN stays.
WS_FN f32 ws_softplus(f32 x) { return (x < 0.0f ? 0.0f : x) + ws_log1p(ws_exp(-ws_abs(x))); }

// ---- activations: value, and gradient of the input from that of the output and from x or y

WS_FN f32 ws_relu(f32 x) { return x < 0.0f ? 0.0f : x; }
WS_FN f32 ws_relu_grad(f32 dy, f32 y) { return y <= 0.0f ? 0.0f : dy; }

WS_FN f32 ws_gelu(f32 x) { return x * ws_normal_cdf(x); }
WS_FN f32 ws_gelu_grad(f32 dy, f32 x) {
    const f32 density = ws_exp(x * x * -0.5f) * 0.3989422804014327f;
    return dy * fmaf(x, density, ws_normal_cdf(x));
}

constexpr f64 WS_ROOT_2_BY_PI = 0.7978845608028654;
constexpr f64 WS_GELU_CUBIC = 0.044715;
// sqrt(2/pi) (x + 0.044715 x^3)
WS_FN f32 ws_gelu_tanh_argument(f32 x) {
    return x * fmaf(x * x, f32(WS_GELU_CUBIC * WS_ROOT_2_BY_PI), f32(WS_ROOT_2_BY_PI));
}
WS_FN f32 ws_gelu_tanh(f32 x) { return x * ws_sigmoid(ws_gelu_tanh_argument(x) + ws_gelu_tanh_argument(x)); }
WS_FN f32 ws_gelu_tanh_grad(f32 dy, f32 x) {
    const f32 s = ws_sigmoid(ws_gelu_tanh_argument(x) + ws_gelu_tanh_argument(x));
    const f32 slope = fmaf(x * x, f32(6.0 * WS_GELU_CUBIC * WS_ROOT_2_BY_PI), f32(2.0 * WS_ROOT_2_BY_PI));
    return dy * fmaf(x * s * (1.0f - s), slope, s);
}

WS_FN f32 ws_silu(f32 x) { return x * ws_sigmoid(x); }
WS_FN f32 ws_silu_grad(f32 dy, f32 x) {
    const f32 s = ws_sigmoid(x);
    return dy * fmaf(x * s, 1.0f - s, s);
}

WS_FN f32 ws_sigmoid_grad(f32 dy, f32 y) { return dy * y * (1.0f - y); }
WS_FN f32 ws_tanh_grad(f32 dy, f32 y) { return dy * (1.0f - y) * (1.0f + y); }

// An activation chosen at run time: the numbers of `Activation` in src/cpu/activation.rs, in its order.
enum WsActivation : u32 { WS_IDENTITY, WS_RELU, WS_GELU, WS_GELU_TANH, WS_SILU, WS_SIGMOID, WS_TANH };
WS_FN f32 ws_activate(u32 activation, f32 x) {
    switch (activation) {
        case WS_RELU: return ws_relu(x);
        case WS_GELU: return ws_gelu(x);
        case WS_GELU_TANH: return ws_gelu_tanh(x);
        case WS_SILU: return ws_silu(x);
        case WS_SIGMOID: return ws_sigmoid(x);
        case WS_TANH: return ws_tanh(x);
        default: return x;
    }
}
