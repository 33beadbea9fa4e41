// archs: 80 86 89 90 100 120 ptx80
// optim.cu: one update of all parameters of an arena, and what comes before it: the step's scalars and the norm of the
// gradients. The arithmetic is that of src/optim/rules.rs operation by operation (IEEE division and root, `fmaf` where it
// says mul_add), and the norm adds in the CPU's order, so that both give the CPU's bits. Nothing that changes from step to
// step is an argument: learning rates, powers of the betas, clip factor and step number are read from the step block.
#include "core/vec.cuh"

// The step block (src/param.rs): positions of its floats.
constexpr u32 MAX_GROUPS = 16;
constexpr u32 LR = 0, WEIGHT_DECAY = MAX_GROUPS, CLIP = 2 * MAX_GROUPS, LOSS_SCALE = CLIP + 1;
constexpr u32 BETA1_POWER = CLIP + 2, BETA2_POWER = CLIP + 3, NORM = CLIP + 4;
// The group table: an entry for each ALIGN elements; FROZEN ones are left alone, and not even read.
constexpr u32 ALIGN = 256;
constexpr u8 FROZEN = 255;

// Elements that a thread updates, and that a block does: a warp an entry of the table.
constexpr u32 EACH = 8;
constexpr u32 UPDATED = 256 * EACH;

// What a rule reads of the step block, and its hyper-parameters.
struct Scalars { f32 lr, weight_decay, root_bias2, step_size; };
struct Hyper { f32 a, b, c, d; u32 flag; bool first; };

// Each rule: how many state buffers it can have, and the new value of a parameter p with gradient g.
// a: momentum (0: none), b: 1 - dampening, flag: Nesterov.
struct Sgd {
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
    WS_FN f32 update(f32 p, f32 g, f32& m, f32& v, f32&, const Scalars& s, const Hyper& h) {
        return adam_update(p, fmaf(s.weight_decay, p, g), m, v, s, h);
    }
};

struct AdamW {
    WS_FN f32 update(f32 p, f32 g, f32& m, f32& v, f32&, const Scalars& s, const Hyper& h) {
        return adam_update(p - s.lr * s.weight_decay * p, g, m, v, s, h);
    }
};

// EACH neighbouring elements in 16-byte accesses. Absent buffers read as 0 and are not written.
template <class T> WS_FN void load_each(f32 (&v)[EACH], const T* from, u64 at) {
    constexpr u32 N = 16 / sizeof(T);
#pragma unroll
    for (u32 k = 0; k < EACH; k += N) {
        const Vec<T, N> part = load_vec<N>(from + at + k);
#pragma unroll
        for (u32 j = 0; j < N; ++j) v[k + j] = to_f32(part[j]);
    }
}
template <class T> WS_FN void store_each(T* to, u64 at, const f32 (&v)[EACH]) {
    constexpr u32 N = 16 / sizeof(T);
#pragma unroll
    for (u32 k = 0; k < EACH; k += N) {
        Vec<T, N> part;
#pragma unroll
        for (u32 j = 0; j < N; ++j) part[j] = from_f32<T>(v[k + j]);
        store_vec(to + at + k, part);
    }
}

struct BlockScalars { Scalars of[UPDATED / ALIGN]; };

// The update of a block of 2048 elements. `values` are what the step is made from: the master weights if there are any,
// else the weights themselves; `weights` (may be null) get a rounded copy. All loads are issued before the first use; the
// f64 arithmetic of the scalars is done by 8 threads meanwhile.
template <class F, class V, class T>
WS_FN void update_elements(BlockScalars& shared, const T* grads, T* zeroed, V* values, T* weights, f32* s0, f32* s1, f32* s2,
                        const f64* floats, const i64* step, const u8* table, u64 n, f32 limit, Hyper h) {
    const u64 at = u64(blockIdx.x) * UPDATED + threadIdx.x * EACH;
    const u8 group = at < n ? table[at / ALIGN] : FROZEN;
    const bool live = group != FROZEN;
    f32 g[EACH], p[EACH], a[EACH], b[EACH], c[EACH];
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) a[k] = b[k] = c[k] = 0.0f;
    if (live) {
        load_each(g, grads, at);
        load_each(p, values, at);
        if (s0) load_each(a, s0, at);
        if (s1) load_each(b, s1, at);
        if (s2) load_each(c, s2, at);
    }
    if (threadIdx.x % (ALIGN / EACH) == 0 && live) {
        const f64 lr = floats[LR + group];
        shared.of[threadIdx.x / (ALIGN / EACH)] =
            Scalars{f32(lr), f32(floats[WEIGHT_DECAY + group]), f32(sqrt(1.0 - floats[BETA2_POWER])),
                    f32(lr / (1.0 - floats[BETA1_POWER]))};
    }
    const f32 factor = f32(floats[CLIP] / floats[LOSS_SCALE]);
    h.first = *step == 1;
    // Publishes the scalars; they are not written again.
    __syncthreads();
    if (!live) return;
    const Scalars s = shared.of[threadIdx.x / (ALIGN / EACH)];
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) {
        f32 d = g[k] * factor;
        // Comparisons, so that NaN stays NaN.
        d = d > limit ? limit : d;
        d = d < -limit ? -limit : d;
        p[k] = F::update(p[k], d, a[k], b[k], c[k], s, h);
    }
    store_each(values, at, p);
    if (weights) store_each(weights, at, p);
    if (s0) store_each(s0, at, a);
    if (s1) store_each(s1, at, b);
    if (s2) store_each(s2, at, c);
    if (zeroed) {
    #pragma unroll
    for (u32 k = 0; k < EACH; ++k) g[k] = 0.0f;
        store_each(zeroed, at, g);
    }
}

// One step of a rule over all elements of an arena: gradients scaled (clip factor, loss scale) and clamped to +-limit,
// state and values updated. Frozen blocks are left alone.
KERNEL(update, types(T: f32, bf16, f16), functors(F: Sgd, RmsProp, Adam, AdamW), in(T, grads, n), inout(T, values, n),
       opt_inout(f32, s0, n), opt_inout(f32, s1, n), opt_inout(f32, s2, n), in(f64, floats, any), in(i64, step, 1),
       in(u8, table, any), val(u64, n), val(f32, limit), val(f32, a), val(f32, b), val(f32, c), val(f32, d),
       val(u32, flag), launch(grid = ceil_div(n, 2048), block = 256, shared = 0)) {
    SHARED(BlockScalars, scalars);
    update_elements<F, T, T>(scalars, grads, nullptr, values, nullptr, s0, s1, s2, floats, step, table, n, limit,
                          Hyper{a, b, c, d, flag, false});
}

// The same with gradients zeroed in the pass (if `zero`) and, for 16-bit weights, master weights in f32: these are updated
// and the weights are their rounded copies.
KERNEL(update_master, types(T: f32, bf16, f16), functors(F: Sgd, RmsProp, Adam, AdamW), inout(T, grads, n),
       inout(T, values, n), opt_inout(f32, master, n), opt_inout(f32, s0, n), opt_inout(f32, s1, n),
       opt_inout(f32, s2, n), in(f64, floats, any), in(i64, step, 1), in(u8, table, any), val(u64, n), val(u32, zero),
       val(f32, limit), val(f32, a), val(f32, b), val(f32, c), val(f32, d), val(u32, flag),
       launch(grid = ceil_div(n, 2048), block = 256, shared = 0)) {
    SHARED(BlockScalars, scalars);
    T* const zeroed = zero ? grads : nullptr;
    const Hyper h{a, b, c, d, flag, false};
    if (master)
        update_elements<F, f32, T>(scalars, grads, zeroed, master, values, s0, s1, s2, floats, step, table, n, limit, h);
    else
        update_elements<F, T, T>(scalars, grads, zeroed, values, nullptr, s0, s1, s2, floats, step, table, n, limit, h);
}

// Counts a step: step + 1, powers of the betas times the betas.
KERNEL(advance, inout(f64, floats, any), inout(i64, step, 1), val(f64, beta1), val(f64, beta2),
       launch(grid = 1, block = 32, shared = 0)) {
    if (threadIdx.x == 0) {
        floats[BETA1_POWER] *= beta1;
        floats[BETA2_POWER] *= beta2;
        *step += 1;
    }
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

// The factor that brings the norm (of gradients divided by the loss scale) down to `max_norm`, and the norm, into the step
// block. Not by a minimum, so that a norm of NaN is not hidden.
KERNEL(clip_factor, in(f64, sums, count), inout(f64, floats, any), val(u64, count), val(f64, max_norm),
       launch(grid = 1, block = 256, shared = 0)) {
    SHARED(NormChunk, chunk);
    const f64 total = sum_in_order(chunk, sums, count);
    if (threadIdx.x == 0) {
        const f64 norm = sqrt(total) / floats[LOSS_SCALE];
        const f64 factor = max_norm / (norm + 1e-6);
        floats[NORM] = norm;
        floats[CLIP] = factor > 1.0 ? 1.0 : factor;
    }
}
