// archs: 80 86 89 90 100 120 ptx80
// rotary.cu: rotary position embedding: the two halves of a head's width are turned by angles that grow with the position.
//
// A thread keeps the sines and cosines of one piece of one token and turns that piece of four heads with them, so the table is read
// once for four heads. Its four heads lie `groups` apart: at any time the threads of a warp read neighbouring heads.
#include "core/vec.cuh"

// The quotient by a small number; in 32 bits while the dividend fits.
WS_FN u64 divide(u64 a, u32 b) { return a >> 32 ? a / b : u32(a) / b; }

// Elements j to j + V of a row whose neighbours lie `by` apart (1 unless V is 1).
template <u32 V, class T> WS_FN Vec<T, V> row_part(const T* row, u32 j, i64 by) { return load_vec<V>(row + i64(j) * by); }

// y[b, t, h] = x[b, t, h] for h >= heads, else with the pair (p, q) of elements i and i + half turned: (p·cos - q·sin, q·cos + p·sin).
// x is [.., length, all, 2·half] with the strides `xs`, table [length, 2, half] (cosines, then sines), `work` the number of threads
// that have something to do: tokens · groups · half / V, with groups = ceil(all / 4). WIDE: pieces of 16 bytes.
KERNEL(rotary, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, any), in(f32, table, length * 2 * half),
       out(T, y, tokens * all * 2 * half), val(Strides, xs), val(u64, tokens), val(u32, length), val(u32, all), val(u32, groups),
       val(u32, heads), val(u32, half), val(u64, work), val(f32, sign), val(u32, add),
       launch(grid = ceil_div(work, 128), block = 128, shared = 0)) {
    constexpr u32 V = WIDE ? vec_width<T>() : 1, QUAD = WIDE ? 4 : 1, HEADS = 4;
    const u64 i = u64(blockIdx.x) * 128 + threadIdx.x;
    if (i >= work) return;
    const u64 rest = divide(i, half / V), token = divide(rest, groups), batch = divide(token, length);
    const u32 j = u32(i - rest * (half / V)) * V, group = u32(rest - token * groups);
    const u64 t = token - batch * length;
    const T* const from = x + (i64(batch) * xs.by[0] + i64(t) * xs.by[1]);
    Vec<T, V> p[HEADS], q[HEADS];
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = group + k * groups;
        if (head >= all) continue;
        p[k] = row_part<V>(from + i64(head) * xs.by[2], j, xs.by[3]);
        q[k] = row_part<V>(from + i64(head) * xs.by[2], j + half, xs.by[3]);
    }
    f32 cosine[V], sine[V];
#pragma unroll
    for (u32 k = 0; k < V; k += QUAD) {
        const Vec<f32, QUAD> c = load_vec<QUAD>(table + t * 2 * half + j + k);
        const Vec<f32, QUAD> s = load_vec<QUAD>(table + (t * 2 + 1) * half + j + k);
#pragma unroll
        for (u32 l = 0; l < QUAD; ++l) {
            cosine[k + l] = c[l];
            sine[k + l] = sign * s[l];
        }
    }
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = group + k * groups;
        if (head >= all) continue;
        T* const to = y + (token * all + head) * 2 * half + j;
        Vec<T, V> u, v;
        if (add) {
            u = load_vec<V>(to);
            v = load_vec<V>(to + half);
        }
#pragma unroll
        for (u32 l = 0; l < V; ++l) {
            f32 a = to_f32(p[k][l]), b = to_f32(q[k][l]);
            if (head < heads) {
                const f32 turned = a * cosine[l] - b * sine[l];
                b = b * cosine[l] + a * sine[l];
                a = turned;
            }
            u[l] = from_f32<T>(add ? to_f32(u[l]) + a : a);
            v[l] = from_f32<T>(add ? to_f32(v[l]) + b : b);
        }
        store_vec(to, u);
        store_vec(to + half, v);
    }
}
