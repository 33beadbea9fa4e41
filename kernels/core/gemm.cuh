// gemm.cuh: what the families of the matrix product share: which tile of C a block computes, and what becomes of its sums.
//
// Sums pass through shared memory on their way out. So a thread completes and stores four neighbours of a row whatever the
// family's fragments look like, and the epilogue's code stands once in a kernel, in a rolled loop, not once a register.
#pragma once
#include "layout.cuh"
#include "math.cuh"
#include "vec.cuh"

// The part of the work that a block has: rows from `row`, columns from `col`, the `split`-th slice of k, one matrix.
struct GemmPlace {
    u32 row, col, split;
    u64 batch;
    bool inside;
};

// Tile rows that are walked down before the next tile column, so that blocks which run together share factors in L2.
constexpr u32 GEMM_GROUP = 8;

// Blocks are numbered through x and y of the grid; y is above 1 only where x alone could not hold the count.
WS_FN GemmPlace gemm_place(u32 m, u32 n, u32 height, u32 width, u32 splits, u64 batches) {
    const u32 down = (m - 1) / height + 1, across = (n - 1) / width + 1;
    const u64 tiles = u64(down) * across;
    const u64 id = u64(blockIdx.y) * gridDim.x + blockIdx.x;
    const u64 rest = id / tiles, tile = id - rest * tiles;
    const u64 batch = rest / splits;
    const u64 band = u64(GEMM_GROUP) * across;
    const u32 first = u32(tile / band) * GEMM_GROUP;
    const u32 rows = down - first < GEMM_GROUP ? down - first : GEMM_GROUP;
    const u64 in_band = tile % band;
    return {(first + u32(in_band % rows)) * height, u32(in_band / rows) * width, u32(rest % splits), batch,
            batch < batches};
}

// The slice of k that a split sums: from `from` up to `to`.
struct GemmSlice { u32 from, to; };
WS_FN GemmSlice gemm_slice(u32 split, u32 slice, u32 k) {
    const u64 from = u64(split) * slice;
    const u64 to = from + slice;
    return {from < k ? u32(from) : k, to < k ? u32(to) : k};
}

// Where the sums of one matrix go. With `part` they are stored as they are; else C = f((C +) sums + bias), rounded once,
// and `pre` keeps what f is applied to.
template <class T> struct GemmStore {
    const T* bias;       // [n], or null
    T* c;                // [m, n]
    T* pre;              // [m, n], or null
    f32* part;           // [m, n], or null
    u32 m, n;
    u32 activation;      // of enum WsActivation
    u32 add;             // whether the old value of C is added
    u32 quads;           // whether n and all addresses are multiples of four elements
};

// The block's matrix (and slice of k) of all results. Called after the products: the pointers would cost them registers.
template <class T> WS_FN GemmStore<T> gemm_store_of(GemmStore<T> all, const GemmPlace& at, u32 splits) {
    const u64 size = u64(all.m) * all.n;
    if (all.c) all.c += at.batch * size;
    if (all.pre) all.pre += at.batch * size;
    if (all.part) all.part += (at.batch * splits + at.split) * size;
    return all;
}

template <class T> WS_FN void gemm_load4(const T* from, f32 (&v)[4]) {
    const Vec<T, 4> x = load_vec<4>(from);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) v[j] = to_f32(x.v[j]);
}

template <class T> WS_FN void gemm_store4(T* to, const f32 (&v)[4], u32 width, bool whole) {
    if (whole) {
        Vec<T, 4> x;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) x.v[j] = from_f32<T>(v[j]);
        store_vec(to, x);
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
            if (j < width) to[j] = from_f32<T>(v[j]);
    }
}

// Completes the sums `v` of up to four neighbours in a row, the first of them element `at` of the results, and stores them.
template <class T>
WS_FN void gemm_finish(const GemmStore<T>& to, u64 at, u32 width, f32 (&v)[4], const f32 (&bias)[4]) {
    const bool whole = to.quads && width == 4;
    if (to.part) {
        gemm_store4(to.part + at, v, width, whole);
        return;
    }
    if (to.add) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
            if (j < width) v[j] = to_f32(to.c[at + j]) + v[j];
    }
    if (to.bias) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) v[j] += bias[j];
    }
    if (to.pre) gemm_store4(to.pre + at, v, width, whole);
    if (to.activation != WS_IDENTITY) {
        // Rolled, with the four turning through fixed registers: the code of all activations stands once, not four times.
#pragma unroll 1
        for (u32 j = 0; j < 4; ++j) {
            const f32 y = ws_activate(to.activation, v[0]);
            v[0] = v[1];
            v[1] = v[2];
            v[2] = v[3];
            v[3] = y;
        }
    }
    gemm_store4(to.c + at, v, width, whole);
}

template <class T> WS_FN void gemm_load_bias(const GemmStore<T>& to, u32 col, u32 width, f32 (&bias)[4]) {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) bias[j] = to.bias && j < width ? to_f32(to.bias[col + j]) : 0.0f;
}

// Completes and stores `ROWS` staged rows of `COLS` sums each, `PITCH` apart. Staged row s is row `row_of(s)` of C; the first
// column is `col0` of C. For a block of `THREADS`; the caller puts barriers around it.
template <u32 ROWS, u32 COLS, u32 PITCH, u32 THREADS, class T, class RowOf>
WS_FN void gemm_store_rows(const f32* staged, const GemmStore<T>& to, u32 col0, RowOf row_of) {
    constexpr u32 QUADS = COLS / 4;
    static_assert(COLS % 4 == 0 && THREADS % QUADS == 0 && PITCH % 4 == 0, "a thread keeps its columns");
    const u32 quad = threadIdx.x % QUADS * 4, col = col0 + quad;
    if (col >= to.n) return;
    const u32 width = to.n - col < 4 ? to.n - col : 4;
    f32 bias[4];
    gemm_load_bias(to, col, width, bias);
#pragma unroll 1
    for (u32 s = threadIdx.x / QUADS; s < ROWS; s += THREADS / QUADS) {
        const u32 row = row_of(s);
        if (row >= to.m) continue;
        f32 v[4];
        gemm_load4(staged + s * PITCH + quad, v);
        gemm_finish(to, u64(row) * to.n + col, width, v, bias);
    }
}
