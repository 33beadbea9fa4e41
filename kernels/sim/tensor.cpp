// tensor.cpp: ldmatrix and mma.sync, and what tensor cores make of a sum.
//
// The sum follows the published model of Hopper's units (arXiv 2511.10909, 2512.07004): products are exact; products and
// accumulator are aligned to the largest exponent and cut off after 25 fraction bits; that sum is exact, and cut off to f32. It
// is a model, not a proof: other architectures round otherwise, and no comparison with a GPU stands behind it yet.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "state.h"

namespace sim {

static u32 take(const u8* bytes, u32 i) {
    u32 u;
    std::memcpy(&u, bytes + 4 * i, 4);
    return u;
}

void ldmatrix(u32* to, const void* row, u32 count, bool transposed, SimSite at) {
    if (warp().lanes != 0xFFFFFFFFu) fault("ldmatrix: the warp has less than 32 lanes", at);
    u32 side;
    Meeting& m = meet(0xFFFFFFFFu, "ldmatrix", at, side);
    if (lane() < 8 * count) {
        shared_offset(row, 16, "ldmatrix row", at);
        if (reinterpret_cast<uintptr_t>(row) % 16) fault("ldmatrix: row address is no multiple of 16", at);
        if (Detector* d = detector()) d->access(row, 16, Access::Read, d->actor(me().linear), at);
        std::memcpy(m.slot[side][lane()].bytes, row, 16);
    }
    if (last_to_come(m)) disperse(m);
    else await(m, side, at);
    for (u32 j = 0; j < count; ++j) {
        u32 both = 0;
        for (u32 i = 0; i < 2; ++i) {
            ptx::Place p = ptx::ldmatrix_element(lane(), i);
            if (transposed) std::swap(p.row, p.col);
            u16 half;
            std::memcpy(&half, m.slot[side][8 * j + p.row].bytes + 2 * p.col, 2);
            both |= u32(half) << 16 * i;
        }
        to[j] = both;
    }
    progress(at);
}

// The product of one warp from the fragments of its lanes: bytes 0 to 15 of a slot are A, then B, then C; D replaces A.
static void multiply(Mma shape, Meeting::Slot* slots) {
    f32 a[16 * 16], b[8 * 16], d[16 * 8];
    const bool tf32 = shape == Mma::M16N8K8_TF32;
    const u32 k = tf32 ? 8 : 16;
    const auto element = [&](const u8* bytes, u32 i) {
        if (tf32) return f32_of(take(bytes, i) & 0xFFFFE000u);
        const u32 bits = take(bytes, i / 2) >> 16 * (i % 2) & 0xFFFFu;
        return shape == Mma::M16N8K16_BF16 ? f32_of(bits << 16) : f32_of(ptx::f16_widen(bits));
    };
    for (u32 l = 0; l < LANES; ++l) {
        const u8* bytes = slots[l].bytes;
        for (u32 i = 0; i < (tf32 ? 4 : 8); ++i) {
            const ptx::Place p = tf32 ? ptx::mma_tf32_a(l, i) : ptx::mma_k16_a(l, i);
            a[p.row * k + p.col] = element(bytes, i);
        }
        for (u32 i = 0; i < (tf32 ? 2 : 4); ++i) {
            const ptx::Place p = tf32 ? ptx::mma_tf32_b(l, i) : ptx::mma_k16_b(l, i);
            b[p.col * k + p.row] = element(bytes + 16, i);
        }
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place p = ptx::mma_c(l, i);
            d[p.row * 8 + p.col] = f32_of(take(bytes + 24, i));
        }
    }
    tensor_product(d, a, b, 16, 8, k);
    for (u32 l = 0; l < LANES; ++l)
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place p = ptx::mma_c(l, i);
            std::memcpy(slots[l].bytes + 4 * i, &d[p.row * 8 + p.col], 4);
        }
}

void mma(Mma shape, f32* d, const u32* a, const u32* b, SimSite at) {
    if (warp().lanes != 0xFFFFFFFFu) fault("mma: the warp has less than 32 lanes", at);
    u32 side;
    static const char* const NAMES[] = {"mma of bf16", "mma of f16", "mma of tf32"};
    Meeting& m = meet(0xFFFFFFFFu, NAMES[u32(shape)], at, side);
    u8* slot = m.slot[side][lane()].bytes;
    std::memcpy(slot, a, 16);
    std::memcpy(slot + 16, b, 8);
    std::memcpy(slot + 24, d, 16);
    if (last_to_come(m)) {
        multiply(shape, m.slot[side]);
        disperse(m);
    } else {
        await(m, side, at);
    }
    std::memcpy(d, slot, 16);
    progress(at);
}

// ---- numbers ----

constexpr int NONE = -4096, NOT_FINITE = 4096;

// The exponent of the leading bit.
static int exponent_of(f32 x) {
    const u32 u = bits_of(x) & 0x7FFFFFFFu;
    if (u >= 0x7F800000u) return NOT_FINITE;
    if (u >= 0x00800000u) return int(u >> 23) - 127;
    return u ? -118 - __builtin_clz(u) : NONE;
}
static f64 power_of_two(int e) {
    const u64 u = u64(e + 1023) << 52;
    f64 x;
    std::memcpy(&x, &u, 8);
    return x;
}
static f32 cut_to_f32(f64 x) {
    f32 y = f32(x);
    if (std::isinf(y)) return y;
    return std::fabs(f64(y)) > std::fabs(x) ? f32_of(bits_of(y) - 1) : y;
}

void tensor_product(f32* d, const f32* a, const f32* b, u32 rows, u32 columns, u32 k) {
    constexpr int FRACTION = 25;
    int left[16 * 16], right[16 * 16];
    for (u32 i = 0; i < rows * k; ++i) left[i] = exponent_of(a[i]);
    for (u32 i = 0; i < columns * k; ++i) right[i] = exponent_of(b[i]);
    for (u32 r = 0; r < rows; ++r)
        for (u32 c = 0; c < columns; ++c) {
            const f32 *x = a + r * k, *y = b + c * k;
            const int *ex = left + r * k, *ey = right + c * k;
            f32& sum = d[r * columns + c];
            int top = exponent_of(sum);
            bool finite = top != NOT_FINITE;
            for (u32 i = 0; i < k; ++i) {
                top = std::max(top, ex[i] + ey[i]);
                finite &= ex[i] != NOT_FINITE && ey[i] != NOT_FINITE;
            }
            if (!finite) {
                for (u32 i = 0; i < k; ++i) sum += x[i] * y[i];
                continue;
            }
            if (top < -1000) continue;               // all products are zero, and the sum is
            const f64 scale = power_of_two(FRACTION - top);
            i64 total = i64(f64(sum) * scale);
            for (u32 i = 0; i < k; ++i) total += i64(f64(x[i]) * f64(y[i]) * scale);
            sum = cut_to_f32(f64(total) * power_of_two(top - FRACTION));
        }
}

}  // namespace sim
