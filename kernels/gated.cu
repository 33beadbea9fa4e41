// archs: 80 86 89 90 100 120 ptx80
// gated.cu: SwiGLU, silu(gate) · up, of rows that hold the gates and then what they let through.
//
// A thread owns a piece of a row's gates and the piece of `up` that belongs to it: each number is read once and, in backward, both
// halves of the gradient are written by the thread that computed the sigmoid.
#include "core/math.cuh"
#include "core/vec.cuh"

// The row and the first column of piece i of rows of `pieces`.
struct Piece { u64 row; u32 first; };
WS_FN Piece piece_of(u64 i, u32 pieces, u32 width) {
    const u64 row = i >> 32 ? i / pieces : u32(i) / pieces;
    return Piece{row, u32(i - row * pieces) * width};
}

// y = silu(gate) · up, x = [gate | up] in rows of 2 · n. WIDE: pieces of 16 bytes.
KERNEL(swiglu, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, rows * n * 2), out(T, y, rows * n), val(u64, rows), val(u32, n),
       val(u32, pieces), val(u32, add), launch(grid = ceil_div(rows * pieces, 256), block = 256, shared = 0)) {
    constexpr u32 V = WIDE ? vec_width<T>() : 1;
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= rows * pieces) return;
    const Piece at = piece_of(i, pieces, V);
    const T* const from = x + at.row * 2 * n + at.first;
    T* const to = y + at.row * n + at.first;
    const Vec<T, V> gate = load_vec<V>(from), up = load_vec<V>(from + n);
    Vec<T, V> out;
    if (add) out = load_vec<V>(to);
#pragma unroll
    for (u32 k = 0; k < V; ++k) {
        const f32 v = ws_silu(to_f32(gate[k])) * to_f32(up[k]);
        out[k] = from_f32<T>(add ? to_f32(out[k]) + v : v);
    }
    store_vec(to, out);
}

// dx = [dy · up · silu'(gate) | dy · silu(gate)].
KERNEL(swiglu_backward, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, dy, rows * n), in(T, x, rows * n * 2),
       out(T, dx, rows * n * 2), val(u64, rows), val(u32, n), val(u32, pieces), val(u32, add),
       launch(grid = ceil_div(rows * pieces, 256), block = 256, shared = 0)) {
    constexpr u32 V = WIDE ? vec_width<T>() : 1;
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= rows * pieces) return;
    const Piece at = piece_of(i, pieces, V);
    const T* const from = x + at.row * 2 * n + at.first;
    T* const to = dx + at.row * 2 * n + at.first;
    const Vec<T, V> g = load_vec<V>(dy + at.row * n + at.first), gate = load_vec<V>(from), up = load_vec<V>(from + n);
    Vec<T, V> of_gate, of_up;
    if (add) {
        of_gate = load_vec<V>(to);
        of_up = load_vec<V>(to + n);
    }
#pragma unroll
    for (u32 k = 0; k < V; ++k) {
        const f32 v = to_f32(gate[k]), d = to_f32(g[k]), s = ws_sigmoid(v), a = v * s;
        const f32 by_gate = d * to_f32(up[k]) * fmaf(a, 1.0f - s, s), by_up = d * a;
        of_gate[k] = from_f32<T>(add ? to_f32(of_gate[k]) + by_gate : by_gate);
        of_up[k] = from_f32<T>(add ? to_f32(of_up[k]) + by_up : by_up);
    }
    store_vec(to, of_gate);
    store_vec(to + n, of_up);
}
