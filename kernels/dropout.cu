// archs: 80 90 100 120 ptx80
// dropout.cu: zeroes elements at random, by counter: the mask is a function of seed, call site, step and element number.
//
// The step is read from device memory, so that a captured launch draws new numbers each time. Limited by memory: four
// elements share one Philox block (some 80 integer instructions), which hides behind a read and a write.
#include "core/each.cuh"
#include "core/random.cuh"

// Word `k` (below 7) of two blocks.
WS_FN u32 word_of(const PhiloxBlock& a, const PhiloxBlock& b, u32 k) {
    const u32 low = k & 1 ? (k & 2 ? a.word[3] : a.word[1]) : (k & 2 ? a.word[2] : a.word[0]);
    const u32 high = k & 1 ? b.word[1] : (k & 2 ? b.word[2] : b.word[0]);
    return k < 4 ? low : high;
}

// y = x * scale where word `offset + i` of the stream, of 24 bits, is at least `threshold`, else x * 0 (NaN stays); added to
// y if `add`. i is the element's number in row-major order.
KERNEL(dropout, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, any), in(i64, step, 1), out(T, y, n),
       val(Dims, dims), val(Strides, x_by), val(u64, n), val(u32, add), val(u64, seed), val(u32, site), val(u64, offset),
       val(u32, threshold), val(f32, scale), launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    constexpr u32 V = 4;                    // words of a block
    const u64 stream = philox_stream(site, u32(u64(step[0])));
    const u32 skip = u32(offset % 4);
    const bool same = dims.rank == 0 || x_by.by[dims.rank - 1] == 0;
    const Operand<T> from{x, x_by};
    u64 at = u64(blockIdx.x) * EACH_SPAN + threadIdx.x * V;
#pragma unroll 1
    for (u32 k = 0; k < EACH_SPAN / EACH_THREADS / V && at < n; ++k, at += EACH_THREADS * V) {
        const u32 count = at + V <= n ? V : u32(n - at);
        Vec<T, V> v{};
        if (WIDE) v = fetch<V>(from, places(at, dims, x_by, x_by, x_by).a, same, count);
        else {
#pragma unroll
            for (u32 j = 0; j < V; ++j)
                if (j < count) v[j] = x[places(at + j, dims, x_by, x_by, x_by).a];
        }
        const u64 block = (offset + at) / 4;
        const PhiloxBlock first = philox_at(seed, stream, block);
        const PhiloxBlock second = skip ? philox_at(seed, stream, block + 1) : first;
        Vec<T, V> out{};
        if (add) {
            if (WIDE) out = fetch<V>(Operand<T>{y, x_by}, i64(at), false, count);
            else
                for (u32 j = 0; j < V; ++j)
                    if (j < count) out[j] = y[at + j];
        }
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const f32 factor = word_of(first, second, skip + j) >> 8 >= threshold ? scale : 0.0f;
            const f32 value = to_f32(v[j]) * factor;
            out[j] = from_f32<T>(add ? to_f32(out[j]) + value : value);
        }
        if (WIDE && count == V) store_vec(y + at, out);
        else {
#pragma unroll
            for (u32 j = 0; j < V; ++j)
                if (j < count) y[at + j] = out[j];
        }
    }
}
