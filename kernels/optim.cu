// archs: 80 86 89 90 100 120 ptx80
// optim.cu: one update of all parameters of an arena, and what comes before it: the step's scalars and the norm of the
// gradients. The arithmetic is that of src/optim/rules.rs operation by operation (IEEE division and root, `fmaf` where it
// says mul_add), and the norm adds in the CPU's order, so that both give the CPU's bits. Nothing that changes from step to
// step is an argument: learning rates, powers of the betas, clip factor and step number are read from the step block.
#include "core/random.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"

// The step block (src/param.rs): positions of its floats.
constexpr u32 MAX_GROUPS = 16;
constexpr u32 LR = 0, WEIGHT_DECAY = MAX_GROUPS, CLIP = 2 * MAX_GROUPS, LOSS_SCALE = CLIP + 1;
constexpr u32 BETA1_POWER = CLIP + 2, BETA2_POWER = CLIP + 3, NORM = CLIP + 4, UNSCALE = CLIP + 5, SKIP = CLIP + 6;
constexpr u32 SKIPPED = CLIP + 7, SKIPPED_IN_A_ROW = CLIP + 8, GOOD = CLIP + 9;
// The group table: an entry for each ALIGN elements; FROZEN ones are left alone, and not even read.
constexpr u32 ALIGN = 256;
constexpr u8 FROZEN = 255;

// Elements that a thread updates, and that a block does: a warp an entry of the table.
constexpr u32 EACH = 8;
constexpr u32 UPDATED = 256 * EACH;

// What a rule reads of the step block, and its hyper-parameters.
struct Scalars { f32 lr, weight_decay, root_bias2, step_size; };
struct Hyper { f32 a, b, c, d; u32 flag; bool first; };

// Each rule: which of its state buffers are never negative (a bit each), and the new value of a parameter p with gradient g.
// a: momentum (0: none), b: 1 - dampening, flag: Nesterov.
struct Sgd {
    static constexpr u32 UNSIGNED = 0;
    WS_FN f32 update(f32 p, f32 g, f32& sum, f32&, f32&, const Scalars& s, const Hyper& h) {
        g = fmaf(s.weight_decay, p, g);
        if (h.a != 0.0f) {
            sum = h.first ? g : fmaf(h.a, sum, h.b * g);
            g = h.flag ? fmaf(h.a, sum, g) : sum;
        }
        return p - s.lr * g;
    }
};

// a: alpha, b: 1 - alpha, c: eps, d: momentum (0: none), flag: centered. The second state is the mean of gradients if
// centered, else the sum of updates; the third is that sum if there are both.
struct RmsProp {
    static constexpr u32 UNSIGNED = 1;
    WS_FN f32 update(f32 p, f32 g, f32& square, f32& second, f32& third, const Scalars& s, const Hyper& h) {
        g = fmaf(s.weight_decay, p, g);
        square = fmaf(h.a, square, h.b * g * g);
        f32 root;
        if (h.flag) {
            second += h.b * (g - second);
            root = sqrtf(square - second * second);
        } else {
            root = sqrtf(square);
        }
        f32 step = g / (root + h.c);
        if (h.d != 0.0f) {
            f32& sum = h.flag ? third : second;
            sum = fmaf(h.d, sum, step);
            step = sum;
        }
        return p - s.lr * step;
    }
};

// a: 1 - beta1, b: beta2, c: 1 - beta2, d: eps.
WS_FN f32 adam_update(f32 p, f32 g, f32& m, f32& v, const Scalars& s, const Hyper& h) {
    m += h.a * (g - m);
    v = fmaf(h.b, v, h.c * g * g);
    return p - s.step_size * (m / (sqrtf(v) / s.root_bias2 + h.d));
}

struct Adam {
    static constexpr u32 UNSIGNED = 2;
    WS_FN f32 update(f32 p, f32 g, f32& m, f32& v, f32&, const Scalars& s, const Hyper& h) {
        return adam_update(p, fmaf(s.weight_decay, p, g), m, v, s, h);
    }
};

struct AdamW {
    static constexpr u32 UNSIGNED = 2;
    WS_FN f32 update(f32 p, f32 g, f32& m, f32& v, f32&, const Scalars& s, const Hyper& h) {
        return adam_update(p - s.lr * s.weight_decay * p, g, m, v, s, h);
    }
};

// EACH neighbouring elements as they stand in memory: words, filled from the front. All of a thread's are on their way before
// the first is looked at.
struct Raw { u32 word[EACH]; f32 scale; };

template <class T> WS_FN void fetch(Raw& raw, const T* from, u64 at) {
    constexpr u32 WORDS = EACH * sizeof(T) / 4, N = WORDS < 4 ? WORDS : 4;
    const u32* const words = reinterpret_cast<const u32*>(from + at);
#pragma unroll
    for (u32 k = 0; k < WORDS; k += N) {
        const Vec<u32, N> part = load_vec<N>(words + k);
#pragma unroll
        for (u32 j = 0; j < N; ++j) raw.word[k + j] = part[j];
    }
}
template <class T> WS_FN void flush(T* to, u64 at, const Raw& raw) {
    constexpr u32 WORDS = EACH * sizeof(T) / 4, N = WORDS < 4 ? WORDS : 4;
    u32* const words = reinterpret_cast<u32*>(to + at);
#pragma unroll
    for (u32 k = 0; k < WORDS; k += N) {
        Vec<u32, N> part;
#pragma unroll
        for (u32 j = 0; j < N; ++j) part[j] = raw.word[k + j];
        store_vec(words + k, part);
    }
}

WS_FN f32 element(const Raw& raw, u32 k, f32) { return f32_of(raw.word[k]); }
WS_FN f32 element(const Raw& raw, u32 k, bf16) { return to_f32(bf16{u16(raw.word[k / 2] >> (k % 2) * 16)}); }
WS_FN f32 element(const Raw& raw, u32 k, f16) { return to_f32(f16{u16(raw.word[k / 2] >> (k % 2) * 16)}); }

// Results in fewer bits (src/optim/narrow.rs): 16 random bits an element, or what rounds to the nearest.
constexpr u32 HALF = 0x8000;
constexpr u32 SITE = 0xFFFFFFF0u;
struct Noise { u32 word[EACH]; };

// The words of the elements from `at` on, of one of two sites.
WS_FN Noise noise_of(u64 seed, u32 site, i64 step, u64 at) {
    Noise noise;
#pragma unroll
    for (u32 k = 0; k < EACH; k += 4) {
        const PhiloxBlock block = philox_at(seed, philox_stream(SITE + site, u32(step)), (at + k) / 4);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) noise.word[k + j] = block.word[j];
    }
    return noise;
}

// x in 16 bits: up if the bits that go, taken as a fraction, and the noise reach 1.
WS_FN u32 by_chance(f32 x, u32 noise, bf16) {
    const u32 bits = bits_of(x);
    const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
    const u32 kept = (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits | 0x00400000u : bits;
    return (finite ? bits + noise : kept) >> 16;
}
WS_FN u32 by_chance(f32 x, u32 noise, f16) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x47800000u) return sign | (magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u);
    // 14 bits of noise: more do not fit beside 10 in an f32, and what f16 holds would not be kept.
    if (magnitude < 0x38800000u) return sign | u32(f32_of(magnitude) * 16777216.0f + f32(noise >> 2) * (1.0f / 16384.0f));
    const u32 normal = ((magnitude + (noise >> 3)) >> 13) - ((127u - 15u) << 10);
    return sign | (normal < 0x7C00u ? normal : 0x7C00u);
}
WS_FN u32 by_chance(f32 x, u32, f32) { return bits_of(x); }

// EACH numbers as they are to stand in memory. `shift`: which half of the noise's words is used.
template <class T> WS_FN Raw packed(const f32 (&v)[EACH], bool random, const Noise& noise, u32 shift) {
    Raw raw;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) raw.word[k] = bits_of(v[k]);
    } else {
#pragma unroll
        for (u32 k = 0; k < EACH; k += 2) {
            u32 half[2];
#pragma unroll
            for (u32 j = 0; j < 2; ++j)
                half[j] = random ? by_chance(v[k + j], noise.word[k + j] >> shift & 0xFFFFu, T{})
                                 : u32(from_f32<T>(v[k + j]).bits);
            raw.word[k / 2] = half[0] | half[1] << 16;
        }
    }
    return raw;
}

// A byte: a sign if TOP is 15, none if it is 31; an exponent, whose field TOP stands for 1 to 2; three bits of fraction.
template <u32 TOP> struct Code {
    static constexpr u32 MOST = TOP << 3 | 7;

    WS_FN f32 value(u32 code) {
        const u32 magnitude = code & MOST;
        const f32 unit = f32_of((127 - TOP + 1 - 3) << 23);
        const f32 normal = f32_of((magnitude << 20) + ((127 - TOP) << 23));
        const f32 value = magnitude < 8 ? f32(magnitude) * unit : normal;
        return f32_of(bits_of(value) | (code & 0xFFu & ~MOST) << 24);
    }

    WS_FN u32 code(f32 x, f32 scale, u32 noise) {
        f32 ratio = f32_of(bits_of(x) & 0x7FFFFFFFu) / scale;
        // Neither 0 / 0 nor what is not finite is a code: those the scale shows.
        ratio = ratio < 4.0f ? ratio : 0.0f;
        const f32 least = f32_of((127 - TOP + 1) << 23), inverse = f32_of((127 + TOP - 1 + 3) << 23);
        const u32 normal = ((bits_of(ratio) + (noise << 4)) >> 20) - ((127 - TOP) << 3);
        const u32 small = ratio < least ? u32(ratio * inverse + f32(noise) * (1.0f / 65536.0f)) : 0;
        const u32 magnitude = ratio < least ? small : normal;
        return (magnitude < MOST ? magnitude : MOST) | (bits_of(x) >> 24 & 0xFFu & ~MOST);
    }
};

// One of a rule's state buffers, in whichever form it is kept; absent: all null. Bytes have a scale for each ALIGN of them.
struct State {
    f32* full;
    bf16* half;
    u8* byte;
    f32* scale;
};

WS_FN void fetch_state(Raw& raw, const State& state, u64 at) {
    if (state.full) {
        fetch(raw, state.full, at);
    } else if (state.half) {
        fetch(raw, state.half, at);
    } else if (state.byte) {
        fetch(raw, state.byte, at);
        raw.scale = state.scale[at / ALIGN];
    }
}

template <class T> WS_FN void open_each(f32 (&v)[EACH], const Raw& raw) {
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) v[k] = element(raw, k, T{});
}

template <u32 TOP> WS_FN void open_state(f32 (&v)[EACH], const Raw& raw, const State& state) {
    if (state.full) {
        open_each<f32>(v, raw);
    } else if (state.half) {
        open_each<bf16>(v, raw);
    } else if (state.byte) {
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) v[k] = Code<TOP>::value(raw.word[k / 4] >> k % 4 * 8) * raw.scale;
    } else {
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) v[k] = 0.0f;
    }
}

// A warp holds the ALIGN elements of a scale.
template <u32 TOP>
WS_FN void close_state(const f32 (&v)[EACH], const State& state, u64 at, bool random, const Noise& noise, u32 shift) {
    if (state.full) {
        flush(state.full, at, packed<f32>(v, false, noise, 0));
    } else if (state.half) {
        flush(state.half, at, packed<bf16>(v, random, noise, shift));
    } else if (state.byte) {
        // Bits of magnitudes are in the order of magnitudes, and beyond them what is not a number.
        u32 most = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            const u32 magnitude = bits_of(v[k]) & 0x7FFFFFFFu;
            most = most > magnitude ? most : magnitude;
        }
        const f32 scale = f32_of(warp_max(most)) / 1.875f;
        Raw raw;
#pragma unroll
        for (u32 k = 0; k < EACH; k += 4) {
            raw.word[k / 4] = 0;
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                raw.word[k / 4] |= Code<TOP>::code(v[k + j], scale, random ? noise.word[k + j] >> shift & 0xFFFFu : HALF) << j * 8;
        }
        flush(state.byte, at, raw);
        if (threadIdx.x % 32 == 0) state.scale[at / ALIGN] = scale;
    }
}

struct BlockScalars { Scalars of[UPDATED / ALIGN]; };

// One step of a rule over all elements of an arena: gradients scaled (clip factor, loss scale) and clamped to +-limit, state
// and values updated; nothing if the step block says that the step is skipped. Frozen blocks are left alone.
//
// Gradients are of the weights' type or f32 (`wide`). Where there are master weights, the step is made from them and the weights
// are their rounded copies. State is f32 (s), bf16 (h), or bytes (q) with scales (c). All loads are issued before the first use;
// the f64 arithmetic of the scalars is done by 8 threads meanwhile.
KERNEL(update, types(T: f32, bf16, f16), functors(F: Sgd, RmsProp, Adam, AdamW), opt_in(T, grads, n), opt_in(f32, wide, n),
       inout(T, values, n), opt_inout(f32, master, n), opt_inout(f32, s0, n), opt_inout(f32, s1, n), opt_inout(f32, s2, n),
       opt_inout(bf16, h0, n), opt_inout(bf16, h1, n), opt_inout(bf16, h2, n), opt_inout(u8, q0, n), opt_inout(u8, q1, n),
       opt_inout(u8, q2, n), opt_inout(f32, c0, blocks), opt_inout(f32, c1, blocks), opt_inout(f32, c2, blocks),
       in(f64, floats, any), in(i64, counters, 2), in(u8, table, blocks), val(u64, n), val(u64, blocks), val(f32, limit),
       val(f32, a), val(f32, b), val(f32, c), val(f32, d), val(u32, flag), val(u32, random), val(u64, seed),
       launch(grid = ceil_div(n, 2048), block = 256, shared = 0)) {
    SHARED(BlockScalars, shared);
    constexpr u32 TOP0 = F::UNSIGNED & 1 ? 31 : 15, TOP1 = F::UNSIGNED & 2 ? 31 : 15, TOP2 = F::UNSIGNED & 4 ? 31 : 15;
    const State state0{s0, h0, q0, c0}, state1{s1, h1, q1, c1}, state2{s2, h2, q2, c2};
    const u64 at = u64(blockIdx.x) * UPDATED + threadIdx.x * EACH;
    const u8 group = at < n ? table[at / ALIGN] : FROZEN;
    const bool live = group != FROZEN;
    Raw rg, rp, r0, r1, r2;
    if (live) {
        if (wide) fetch(rg, wide, at); else fetch(rg, grads, at);
        if (master) fetch(rp, master, at); else fetch(rp, values, at);
        fetch_state(r0, state0, at);
        fetch_state(r1, state1, at);
        fetch_state(r2, state2, at);
    }
    if (threadIdx.x % (ALIGN / EACH) == 0 && live) {
        const f64 lr = floats[LR + group];
        shared.of[threadIdx.x / (ALIGN / EACH)] =
            Scalars{f32(lr), f32(floats[WEIGHT_DECAY + group]), f32(sqrt(1.0 - floats[BETA2_POWER])),
                    f32(lr / (1.0 - floats[BETA1_POWER]))};
    }
    const f32 factor = f32(floats[CLIP] / floats[UNSCALE]);
    const bool skip = floats[SKIP] != 0.0;
    const i64 step = counters[0];
    const Hyper h{a, b, c, d, flag, step == 1};
    // Publishes the scalars; they are not written again.
    __syncthreads();
    if (!live || skip) return;
    const Scalars s = shared.of[threadIdx.x / (ALIGN / EACH)];
    f32 g[EACH], p[EACH], v0[EACH], v1[EACH], v2[EACH];
    if (wide) open_each<f32>(g, rg); else open_each<T>(g, rg);
    if (master) open_each<f32>(p, rp); else open_each<T>(p, rp);
    open_state<TOP0>(v0, r0, state0);
    open_state<TOP1>(v1, r1, state1);
    open_state<TOP2>(v2, r2, state2);
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) {
        f32 x = g[k] * factor;
        // Comparisons, so that NaN stays NaN.
        x = x > limit ? limit : x;
        x = x < -limit ? -limit : x;
        p[k] = F::update(p[k], x, v0[k], v1[k], v2[k], s, h);
    }
    Noise low = {}, high = {};
    if (random) {
        low = noise_of(seed, 0, step, at);
        high = noise_of(seed, 1, step, at);
    }
    if (master) flush(master, at, packed<f32>(p, false, low, 0));
    flush(values, at, packed<T>(p, random, low, 0));
    close_state<TOP0>(v0, state0, at, random, high, 0);
    close_state<TOP1>(v1, state1, at, random, high, 16);
    close_state<TOP2>(v2, state2, at, random, low, 16);
}

// A step that is not skipped.
WS_FN void count_step(f64* floats, i64* counters, f64 beta1, f64 beta2) {
    floats[UNSCALE] = floats[LOSS_SCALE];
    floats[BETA1_POWER] *= beta1;
    floats[BETA2_POWER] *= beta2;
    counters[0] += 1;
    counters[1] += 1;
}

// Counts a step: steps and attempts + 1, powers of the betas times the betas.
KERNEL(advance, inout(f64, floats, any), inout(i64, counters, 2), val(f64, beta1), val(f64, beta2),
       launch(grid = 1, block = 32, shared = 0)) {
    if (threadIdx.x == 0) count_step(floats, counters, beta1, beta2);
}

// Blocks of ALIGN that one thread block squares, and the f32 sums of each.
constexpr u32 SQUARED = 64, LANES = 16;
struct SquareSums { f32 lanes[SQUARED][LANES]; f64 blocks[SQUARED]; };

// Sums of squares of 64 blocks each, in the CPU's order: 16 chains of 16 fused multiply-adds a block, added up in f64 one
// after the other, then the blocks that are not frozen one after the other.
KERNEL(grad_squares, types(T: f32, bf16, f16), in(T, grads, n), in(u8, table, any), out(f64, sums, any), val(u64, n),
       launch(grid = ceil_div(n, 16384), block = 256, shared = 0)) {
    SHARED(SquareSums, part);
    const u64 base = u64(blockIdx.x) * SQUARED * ALIGN;
    const u32 lane = threadIdx.x % LANES;
    const u32 blocks = u32(n - base < SQUARED * ALIGN ? (n - base) / ALIGN : SQUARED);
    for (u32 b = threadIdx.x / LANES; b < blocks; b += 256 / LANES) {
        f32 sum = 0.0f;
        if (table[base / ALIGN + b] != FROZEN) {
            const T* const from = grads + base + b * ALIGN + lane;
            f32 g[ALIGN / LANES];
#pragma unroll
            for (u32 k = 0; k < ALIGN / LANES; ++k) g[k] = to_f32(from[k * LANES]);
#pragma unroll
            for (u32 k = 0; k < ALIGN / LANES; ++k) sum = fmaf(g[k], g[k], sum);
        }
        part.lanes[b][lane] = sum;
    }
    // Publishes the lanes.
    __syncthreads();
    if (threadIdx.x < blocks) {
        f64 sum = 0.0;
        for (u32 l = 0; l < LANES; ++l) sum += f64(part.lanes[threadIdx.x][l]);
        part.blocks[threadIdx.x] = sum;
    }
    // Publishes the blocks.
    __syncthreads();
    if (threadIdx.x == 0) {
        f64 sum = 0.0;
        for (u32 b = 0; b < blocks; ++b)
            if (table[base / ALIGN + b] != FROZEN) sum += part.blocks[b];
        sums[blockIdx.x] = sum;
    }
}

struct NormChunk { f64 sums[256]; };

// The sum of `count` sums in their order, by one thread; the others fetch ahead. Only thread 0 gets it.
WS_FN f64 sum_in_order(NormChunk& chunk, const f64* sums, u64 count) {
    f64 total = 0.0;
    for (u64 base = 0; base < count; base += 256) {
        if (base + threadIdx.x < count) chunk.sums[threadIdx.x] = sums[base + threadIdx.x];
        // Publishes this part.
        __syncthreads();
        const u32 here = u32(count - base < 256 ? count - base : 256);
        if (threadIdx.x == 0)
            for (u32 k = 0; k < here; ++k) total += chunk.sums[k];
        // It has been read: the next part may overwrite it.
        __syncthreads();
    }
    return total;
}

// norm = sqrt(sum of sums).
KERNEL(grad_norm, in(f64, sums, count), out(f64, norm, 1), val(u64, count), launch(grid = 1, block = 256, shared = 0)) {
    SHARED(NormChunk, chunk);
    const f64 total = sum_in_order(chunk, sums, count);
    if (threadIdx.x == 0) *norm = sqrt(total);
}

// The norm (of gradients divided by the loss scale), the factor that brings it down to `max_norm`, and the step's numbers. A
// step whose scaled gradients are not finite is skipped: it counts as an attempt only, and reduces the loss scale. Enough good
// ones let it grow, for the next step.
KERNEL(prepare, in(f64, sums, count), inout(f64, floats, any), inout(i64, counters, 2), val(u64, count), val(f64, max_norm),
       val(f64, beta1), val(f64, beta2), val(u32, scaled), val(f64, growth), val(f64, backoff), val(f64, interval),
       val(f64, least), val(f64, most), launch(grid = 1, block = 256, shared = 0)) {
    SHARED(NormChunk, chunk);
    const f64 total = sum_in_order(chunk, sums, count);
    if (threadIdx.x != 0) return;
    const f64 norm = sqrt(total), scale = floats[LOSS_SCALE];
    floats[NORM] = norm / scale;
    const bool skip = scaled && !(norm - norm == 0.0);
    floats[SKIP] = skip ? 1.0 : 0.0;
    if (skip) {
        floats[SKIPPED] += 1.0;
        floats[SKIPPED_IN_A_ROW] += 1.0;
        floats[GOOD] = 0.0;
        const f64 reduced = scale * backoff;
        floats[LOSS_SCALE] = reduced < least ? least : reduced;
        counters[1] += 1;
        return;
    }
    count_step(floats, counters, beta1, beta2);
    // Not by a minimum, so that a norm of NaN is not hidden.
    const f64 factor = max_norm / (floats[NORM] + 1e-6);
    floats[CLIP] = factor > 1.0 ? 1.0 : factor;
    floats[SKIPPED_IN_A_ROW] = 0.0;
    floats[GOOD] += 1.0;
    if (floats[GOOD] >= interval) {
        floats[GOOD] = 0.0;
        const f64 grown = scale * growth;
        floats[LOSS_SCALE] = grown > most ? most : grown;
    }
}
