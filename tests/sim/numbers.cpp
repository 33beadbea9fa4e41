// numbers.cpp: the simulator's arithmetic against definitions: 16-bit floats, tf32, and the sums of tensor cores.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "sim/state.h"

using namespace sim;

static int bad = 0;
static void expect(bool right, const char* what, double detail) {
    if (!right && ++bad < 20) std::printf("%s: %.9g\n", what, detail);
}

// What 16 bits stand for, by the definition of the format: `e` exponent bits, `m` fraction bits.
static double value_of(u32 bits, int e, int m) {
    const int exponent = int(bits >> m & ((1u << e) - 1)), bias = (1 << (e - 1)) - 1;
    const double fraction = std::ldexp(double(bits & ((1u << m) - 1)), -m);
    const double size = exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
    return bits >> 15 ? -size : size;
}

// `round` must give the nearest of the format's numbers, the one with even bits of two.
static void check_rounding(const char* what, u16 (*round)(u32), int e, int m) {
    const u32 infinity = ((1u << e) - 1) << m;
    std::mt19937 random(5);
    const auto one = [&](u32 u) {
        const f32 x = f32_of(u);
        const u32 got = round(u);
        if (x != x) { expect(got == 0x7FFFu, what, x); return; }
        expect(got >> 15 == u >> 31, what, x);
        const u32 size = got & 0x7FFFu;
        // One step beyond the largest number stands infinity, as if it were the next number.
        const auto at = [&](u32 i) { return i == infinity ? std::ldexp(1.0, 1 << (e - 1)) : value_of(i, e, m); };
        const double target = std::fabs(double(x));
        expect(size <= infinity, what, x);
        if (std::isinf(x)) { expect(size == infinity, what, x); return; }
        const double error = std::fabs(at(size) - target);
        for (u32 other : {size - 1, size + 1}) {
            if (other > infinity) continue;          // also below zero
            const double otherwise = std::fabs(at(other) - target);
            const bool beyond = size == infinity && target >= at(infinity);
            expect(beyond || error < otherwise || (error == otherwise && size % 2 == 0), what, x);
        }
    };
    for (u32 bits = 0; bits < 0x8000u; ++bits) {     // the numbers themselves, the middles between them, and next to those
        if (bits >= infinity) break;
        const double middle = (value_of(bits, e, m) + (bits + 1 == infinity ? std::ldexp(1.0, 1 << (e - 1)) : value_of(bits + 1, e, m))) / 2;
        for (const double d : {value_of(bits, e, m), middle}) {
            const u32 u = bits_of(f32(d));
            one(u); one(u + 1); one(u ? u - 1 : 0); one(u | 0x80000000u);
        }
    }
    for (int i = 0; i < 1000000; ++i) one(random());
}

// The published model, written from its sentence: align all terms to the largest exponent, keep 25 fraction bits, cut; add
// exactly; cut to f32.
static f32 by_definition(f32 c, const f32* a, const f32* b, u32 k) {
    int top = -100000;
    if (c != 0) top = std::max(top, std::ilogb(c));
    for (u32 i = 0; i < k; ++i)
        if (a[i] != 0 && b[i] != 0) top = std::max(top, std::ilogb(a[i]) + std::ilogb(b[i]));
    if (top == -100000) return 0;
    long double sum = std::trunc(std::ldexp((long double)c, 25 - top));
    for (u32 i = 0; i < k; ++i) sum += std::trunc(std::ldexp((long double)a[i] * b[i], 25 - top));
    const double exact = double(std::ldexp(sum, top - 25));
    f32 f = f32(exact);
    if (std::fabs(double(f)) > std::fabs(exact)) f = std::nextafterf(f, 0.0f);
    return f;
}

static void check_sums() {
    std::mt19937 random(9);
    std::normal_distribution<f32> normal;
    std::uniform_int_distribution<int> wide(-40, 40);
    const auto cut = [](f32 x, u32 bits) { return f32_of(bits_of(x) & ~((1u << bits) - 1)); };
    for (int n = 0; n < 20000; ++n) {
        const bool tf32 = n % 2;
        const u32 k = tf32 ? 8 : 16;
        const int spread = n % 3;                    // alike, wide, with zeros
        f32 a[16], b[16], d[1];
        const auto draw = [&] {
            const f32 x = cut(std::ldexp(normal(random), spread ? wide(random) : 0), tf32 ? 13 : 16);
            return spread == 2 && random() % 4 == 0 ? 0.0f : x;
        };
        for (u32 i = 0; i < k; ++i) { a[i] = draw(); b[i] = draw(); }
        f32 c = n % 5 ? normal(random) : 0;
        if (n % 7 == 0) c = -a[0] * b[0];            // cancellation
        const f32 want = by_definition(c, a, b, k);
        d[0] = c;
        tensor_product(d, a, b, 1, 1, k);
        expect(bits_of(d[0]) == bits_of(want) || d[0] == want, "sum of a tensor core", d[0] - want);
    }
    // A term 2^26 times smaller than the largest is lost; one 2^25 times smaller is not.
    f32 a[16] = {1, 1}, b[16] = {std::ldexp(1.0f, 25), 1}, d[1] = {-std::ldexp(1.0f, 25)};
    tensor_product(d, a, b, 1, 1, 16);
    expect(d[0] == 1, "2^25 + 1 - 2^25", d[0]);
    b[0] = std::ldexp(1.0f, 26);
    d[0] = -b[0];
    tensor_product(d, a, b, 1, 1, 16);
    expect(d[0] == 0, "2^26 + 1 - 2^26", d[0]);
    a[0] = INFINITY; d[0] = 0;
    tensor_product(d, a, b, 1, 1, 16);
    expect(std::isinf(d[0]), "infinity goes through", d[0]);
    b[0] = 0; d[0] = 0;
    tensor_product(d, a, b, 1, 1, 16);
    expect(std::isnan(d[0]), "infinity times zero", d[0]);
}

int numbers() {
    for (u32 h = 0; h < 0x10000; ++h) {
        const f32 x = f32_of(ptx::f16_widen(h));
        const u32 exponent = h >> 10 & 31;
        if (exponent == 31) expect(h & 0x3FF ? std::isnan(x) : std::isinf(x) && std::signbit(x) == h >> 15, "f16 to f32", h);
        else expect(x == value_of(h, 5, 10) && std::signbit(x) == h >> 15, "f16 to f32", h);
    }
    check_rounding("f32 to f16", [](u32 u) { return ptx::f16_round(u); }, 5, 10);
    check_rounding("f32 to bf16", [](u32 u) { return ptx::bf16_round(u); }, 8, 7);
    // To ten fraction bits, ties away from zero.
    expect(f32_of(ptx::tf32_of_f32(1 + std::ldexp(1.0f, -11))) == 1 + std::ldexp(1.0f, -10), "tf32 tie", 0);
    expect(f32_of(ptx::tf32_of_f32(1 + std::ldexp(1.0f, -11) - std::ldexp(1.0f, -20))) == 1, "tf32 below the tie", 0);
    check_sums();
    return bad != 0;
}
