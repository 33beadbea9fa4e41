// archs: 80 86 89 90 100 120 ptx80
// softmax.cu: softmax, its logarithm and their backwards along one dimension of a contiguous tensor.
//
// Along the last dimension a row of up to 8 pieces a lane stays in one warp's registers: one read and one write. A longer one has
// a block to itself and is kept in shared memory while it fits (8,192 numbers), else read again from L2. Along any other
// dimension each thread walks down one column, neighbours reading neighbours. Sums are f32 in an order fixed by the shape.
#include "core/math.cuh"
#include "core/reduce.cuh"
#include "core/rows.cuh"

struct Softmax {
    WS_FN f32 total(f32 sum) { return sum; }
    WS_FN f32 apply(f32 x, f32 max, f32 total) { return ws_exp(x - max) / total; }
    // The term of the backward's sum, and the gradient.
    WS_FN f32 term(f32 y, f32 dy) { return y * dy; }
    WS_FN f32 gradient(f32 y, f32 dy, f32 sum) { return y * (dy - sum); }
};
struct LogSoftmax {
    WS_FN f32 total(f32 sum) { return ws_log(sum); }
    WS_FN f32 apply(f32 x, f32 max, f32 total) { return (x - max) - total; }
    WS_FN f32 term(f32, f32 dy) { return dy; }
    WS_FN f32 gradient(f32 y, f32 dy, f32 sum) { return dy - ws_exp(y) * sum; }
};

// One warp a row, at most 32 · PER pieces long.
KERNEL(softmax_warp, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), ints(PER: 1, 2, 4, 8),
       in(T, x, rows * n), out(T, y, rows * n), val(u64, rows), val(u32, n), val(u32, vector), val(u32, add),
       launch(grid = ceil_div(rows, 8), block = 256, shared = 0)) {
    constexpr u32 V = vec_width<T>();
    const u64 row = u64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;   // a whole warp; no barrier of the block follows
    const u32 lane = threadIdx.x % 32;
    f32 v[PER][V], max = -ws_infinity(), sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < PER; ++k) {
        load_piece<T>(v[k], x + row * n, (k * 32 + lane) * V, n, vector, -ws_infinity());
#pragma unroll
        for (u32 j = 0; j < V; ++j) max = Max::apply(max, v[k][j]);
    }
    max = warp_max(max);
#pragma unroll
    for (u32 k = 0; k < PER; ++k)
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if ((k * 32 + lane) * V + j < n) sum += ws_exp(v[k][j] - max);
    const f32 total = F::total(warp_sum(sum));
#pragma unroll
    for (u32 k = 0; k < PER; ++k) {
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[k][j] = F::apply(v[k][j], max, total);
        store_piece<T>(y + row * n, v[k], (k * 32 + lane) * V, n, vector, add);
    }
}

// One block a row; `cached`: the row is kept in shared memory.
KERNEL(softmax_block, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), in(T, x, rows * n), out(T, y, rows * n),
       val(u64, rows), val(u32, n), val(u32, vector), val(u32, cached), val(u32, add),
       launch(grid = rows, block = 256, shared = cached * 4 * n)) {
    constexpr u32 V = vec_width<T>(), STEP = 256 * V;
    DYN_SHARED(f32, kept);
    const T* from = x + u64(blockIdx.x) * n;
    f32 v[V], max = -ws_infinity();
    LongSum sum;
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_piece<T>(v, from, first, n, vector, -ws_infinity());
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            max = Max::apply(max, v[j]);
            // Each thread reads back only what it wrote itself.
            if (cached && first + j < n) kept[first + j] = v[j];
        }
    }
    max = block_max<256>(max);
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        if (!cached) load_piece<T>(v, from, first, n, vector, -ws_infinity());
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if (first + j < n) sum.add(ws_exp((cached ? kept[first + j] : v[j]) - max));
    }
    const f32 total = F::total(block_sum<256>(sum.sum));
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        if (!cached) load_piece<T>(v, from, first, n, vector, 0.0f);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            if (cached && first + j < n) v[j] = kept[first + j];
            v[j] = F::apply(v[j], max, total);
        }
        store_piece<T>(y + u64(blockIdx.x) * n, v, first, n, vector, add);
    }
}

// One thread a column of [outer, n, inner].
KERNEL(softmax_column, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), in(T, x, outer * n * inner),
       out(T, y, outer * n * inner), val(u64, outer), val(u64, n), val(u64, inner), val(u32, add),
       launch(grid = ceil_div(outer * inner, 256), block = 256, shared = 0)) {
    const u64 column = u64(blockIdx.x) * 256 + threadIdx.x;
    if (column >= outer * inner) return;
    const u64 start = column / inner * n * inner + column % inner;
    f32 max = -ws_infinity();
    LongSum sum;
    for (u64 i = 0; i < n; ++i) max = Max::apply(max, to_f32(x[start + i * inner]));
    for (u64 i = 0; i < n; ++i) sum.add(ws_exp(to_f32(x[start + i * inner]) - max));
    const f32 total = F::total(sum.sum);
    for (u64 i = 0; i < n; ++i) {
        const u64 at = start + i * inner;
        const f32 v = F::apply(to_f32(x[at]), max, total);
        y[at] = from_f32<T>(add ? to_f32(y[at]) + v : v);
    }
}

// The backward: one warp a row, at most 32 · PER pieces long.
KERNEL(softmax_backward_warp, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), ints(PER: 1, 2, 4),
       in(T, y, rows * n), in(T, dy, rows * n), out(T, dx, rows * n), val(u64, rows), val(u32, n), val(u32, vector),
       val(u32, add), launch(grid = ceil_div(rows, 8), block = 256, shared = 0)) {
    constexpr u32 V = vec_width<T>();
    const u64 row = u64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;   // a whole warp; no barrier of the block follows
    const u32 lane = threadIdx.x % 32;
    f32 v[PER][V], d[PER][V], sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < PER; ++k) {
        load_piece<T>(v[k], y + row * n, (k * 32 + lane) * V, n, vector, 0.0f);
        load_piece<T>(d[k], dy + row * n, (k * 32 + lane) * V, n, vector, 0.0f);
    }
#pragma unroll
    for (u32 k = 0; k < PER; ++k)
#pragma unroll
        for (u32 j = 0; j < V; ++j) sum += F::term(v[k][j], d[k][j]);
    sum = warp_sum(sum);
#pragma unroll
    for (u32 k = 0; k < PER; ++k) {
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[k][j] = F::gradient(v[k][j], d[k][j], sum);
        store_piece<T>(dx + row * n, v[k], (k * 32 + lane) * V, n, vector, add);
    }
}

// The backward: one block a row, read twice (the second time from L2).
KERNEL(softmax_backward_block, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), in(T, y, rows * n),
       in(T, dy, rows * n), out(T, dx, rows * n), val(u64, rows), val(u32, n), val(u32, vector), val(u32, add),
       launch(grid = rows, block = 256, shared = 0)) {
    constexpr u32 V = vec_width<T>(), STEP = 256 * V;
    const u64 start = u64(blockIdx.x) * n;
    f32 v[V], d[V];
    LongSum terms;
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_piece<T>(v, y + start, first, n, vector, 0.0f);
        load_piece<T>(d, dy + start, first, n, vector, 0.0f);
#pragma unroll
        for (u32 j = 0; j < V; ++j) terms.add(F::term(v[j], d[j]));
    }
    const f32 sum = block_sum<256>(terms.sum);
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_piece<T>(v, y + start, first, n, vector, 0.0f);
        load_piece<T>(d, dy + start, first, n, vector, 0.0f);
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[j] = F::gradient(v[j], d[j], sum);
        store_piece<T>(dx + start, v, first, n, vector, add);
    }
}

// The backward: one thread a column of [outer, n, inner].
KERNEL(softmax_backward_column, types(T: f32, bf16, f16), functors(F: Softmax, LogSoftmax), in(T, y, outer * n * inner),
       in(T, dy, outer * n * inner), out(T, dx, outer * n * inner), val(u64, outer), val(u64, n), val(u64, inner),
       val(u32, add), launch(grid = ceil_div(outer * inner, 256), block = 256, shared = 0)) {
    const u64 column = u64(blockIdx.x) * 256 + threadIdx.x;
    if (column >= outer * inner) return;
    const u64 start = column / inner * n * inner + column % inner;
    LongSum terms;
    for (u64 i = 0; i < n; ++i) terms.add(F::term(to_f32(y[start + i * inner]), to_f32(dy[start + i * inner])));
    for (u64 i = 0; i < n; ++i) {
        const u64 at = start + i * inner;
        const f32 v = F::gradient(to_f32(y[at]), to_f32(dy[at]), terms.sum);
        dx[at] = from_f32<T>(add ? to_f32(dx[at]) + v : v);
    }
}
