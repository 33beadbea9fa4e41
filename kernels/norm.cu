// archs: 80 86 89 90 100 120 ptx80
// norm.cu: layer norm and RMS norm of rows, and their backwards.
//
// A row of up to 8 pieces a lane stays in one warp's registers: one read and one write. A longer one has a block to itself and
// is kept in shared memory while it fits (8,192 numbers), else read again from L2. The variance is taken about the mean found
// first. The gradients of weight and bias are sums over the rows: each block adds a chunk of rows for 32 columns, a second
// kernel adds the chunks in ascending order, so nothing depends on the order of blocks.
#include "core/math.cuh"
#include "core/reduce.cuh"
#include "core/rows.cuh"

struct LayerNorm { static constexpr bool CENTRED = true; };
struct RmsNorm { static constexpr bool CENTRED = false; };

// The statistics of a row into memory, by one thread.
WS_FN void store_statistics(f32* mean, f32* rstd, u64 row, f32 m, f32 r) {
    if (mean) mean[row] = m;
    rstd[row] = r;
}

// y = (x - mean) · rstd · weight + bias for a piece.
template <class T, u32 V>
WS_FN void normalise(f32 (&v)[V], const T* weight, const T* bias, u32 first, u32 n, bool vector, f32 mean, f32 rstd) {
    f32 w[V], b[V];
    if (weight) load_piece<T>(w, weight, first, n, vector, 1.0f);
    if (bias) load_piece<T>(b, bias, first, n, vector, 0.0f);
#pragma unroll
    for (u32 j = 0; j < V; ++j) {
        v[j] = (v[j] - mean) * rstd;
        if (weight) v[j] = v[j] * w[j];
        if (bias) v[j] = v[j] + b[j];
    }
}

// v + residual, rounded, into v and to memory: a piece of the sum whose norm is taken.
template <class T, u32 V>
WS_FN void add_residual(f32 (&v)[V], const T* residual, T* sum, u32 first, u32 n, bool vector) {
    f32 r[V];
    load_piece<T>(r, residual, first, n, vector, 0.0f);
#pragma unroll
    for (u32 j = 0; j < V; ++j) v[j] = to_f32(from_f32<T>(v[j] + r[j]));
    store_piece<T>(sum, v, first, n, vector, false);
}

// One warp a row, at most 32 · PER pieces long. FUSED: of x + residual.
KERNEL(norm_warp, types(T: f32, bf16, f16), functors(F: LayerNorm, RmsNorm), ints(FUSED: 0, 1), ints(PER: 1, 2, 4, 8),
       in(T, x, rows * n), opt_in(T, residual, rows * n), opt_in(T, weight, n), opt_in(T, bias, n), opt_out(T, sum, rows * n),
       out(T, y, rows * n), opt_out(f32, mean, rows), out(f32, rstd, rows),
       val(u64, rows), val(u32, n), val(u32, vector), val(f32, eps), val(u32, add),
       launch(grid = ceil_div(rows, 8), block = 256, shared = 0)) {
    constexpr u32 V = vec_width<T>();
    const u64 row = u64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;   // a whole warp; no barrier of the block follows
    const u32 lane = threadIdx.x % 32;
    f32 v[PER][V], total = 0.0f, square = 0.0f, m = 0.0f;
#pragma unroll
    for (u32 k = 0; k < PER; ++k) load_piece<T>(v[k], x + row * n, (k * 32 + lane) * V, n, vector, 0.0f);
    if (FUSED) {
#pragma unroll
        for (u32 k = 0; k < PER; ++k)
            add_residual<T>(v[k], residual + row * n, sum + row * n, (k * 32 + lane) * V, n, vector);
    }
    if (F::CENTRED) {
#pragma unroll
        for (u32 k = 0; k < PER; ++k)
#pragma unroll
            for (u32 j = 0; j < V; ++j) total += v[k][j];
        m = warp_sum(total) / f32(n);
    }
#pragma unroll
    for (u32 k = 0; k < PER; ++k)
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if ((k * 32 + lane) * V + j < n) square += (v[k][j] - m) * (v[k][j] - m);
    const f32 r = 1.0f / sqrtf(warp_sum(square) / f32(n) + eps);
    if (lane == 0) store_statistics(mean, rstd, row, m, r);
#pragma unroll
    for (u32 k = 0; k < PER; ++k) {
        normalise<T>(v[k], weight, bias, (k * 32 + lane) * V, n, vector, m, r);
        store_piece<T>(y + row * n, v[k], (k * 32 + lane) * V, n, vector, add);
    }
}

// One block a row; `cached`: the row is kept in shared memory. FUSED: of x + residual.
KERNEL(norm_block, types(T: f32, bf16, f16), functors(F: LayerNorm, RmsNorm), ints(FUSED: 0, 1), in(T, x, rows * n),
       opt_in(T, residual, rows * n), opt_in(T, weight, n), opt_in(T, bias, n), opt_out(T, sum, rows * n), out(T, y, rows * n), opt_out(f32, mean, rows), out(f32, rstd, rows), val(u64, rows), val(u32, n),
       val(u32, vector), val(u32, cached), val(f32, eps), val(u32, add),
       launch(grid = rows, block = 256, shared = cached * 4 * n)) {
    constexpr u32 V = vec_width<T>(), STEP = 256 * V;
    DYN_SHARED(f32, kept);
    const u64 start = u64(blockIdx.x) * n;
    const T* const from = FUSED ? sum + start : x + start;
    f32 v[V], m = 0.0f;
    LongSum total, square;
    // Each thread reads back from shared memory, and from the sum, only what it wrote itself.
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_piece<T>(v, x + start, first, n, vector, 0.0f);
        if (FUSED) add_residual<T>(v, residual + start, sum + start, first, n, vector);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            total.add(v[j]);
            if (cached && first + j < n) kept[first + j] = v[j];
        }
    }
    if (F::CENTRED) m = block_sum<256>(total.sum) / f32(n);
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        if (!cached) load_piece<T>(v, from, first, n, vector, 0.0f);
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if (first + j < n) {
                const f32 d = (cached ? kept[first + j] : v[j]) - m;
                square.add(d * d);
            }
    }
    const f32 r = 1.0f / sqrtf(block_sum<256>(square.sum) / f32(n) + eps);
    if (threadIdx.x == 0) store_statistics(mean, rstd, blockIdx.x, m, r);
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        if (!cached) load_piece<T>(v, from, first, n, vector, 0.0f);
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if (cached && first + j < n) v[j] = kept[first + j];
        normalise<T>(v, weight, bias, first, n, vector, m, r);
        store_piece<T>(y + start, v, first, n, vector, add);
    }
}

// A piece of x and one of g = dy · weight.
template <class T, u32 V>
WS_FN void load_both(f32 (&v)[V], f32 (&g)[V], const T* x, const T* dy, const T* weight, u32 first, u32 n, bool vector) {
    load_piece<T>(v, x, first, n, vector, 0.0f);
    load_piece<T>(g, dy, first, n, vector, 0.0f);
    if (!weight) return;
    f32 w[V];
    load_piece<T>(w, weight, first, n, vector, 0.0f);
#pragma unroll
    for (u32 j = 0; j < V; ++j) g[j] = g[j] * w[j];
}

// dx, one block of 128 threads a row: with g = dy · weight and x̂ = (x - mean) · rstd,
// dx = rstd · (g - c1 - x̂ · c2) + dmean / n, c1 = Σ g / n (RMS norm: 0), c2 = (Σ g x̂ + drstd · rstd) / n. rstd may be 0.
// x, dy and weight are read twice, the second time from L1 or L2. Where x is a sum that others use too, `dsum` is its gradient
// from there, and is added.
KERNEL(norm_backward, types(T: f32, bf16, f16), functors(F: LayerNorm, RmsNorm), in(T, x, rows * n), opt_in(f32, mean, rows),
       in(f32, rstd, rows), in(T, dy, rows * n), opt_in(T, weight, n), opt_in(f32, dmean, rows), opt_in(f32, drstd, rows),
       opt_in(T, dsum, rows * n), out(T, dx, rows * n), val(u64, rows), val(u32, n), val(u32, vector), val(u32, add),
       launch(grid = rows, block = 128, shared = 0)) {
    constexpr u32 V = vec_width<T>(), STEP = 128 * V;
    const u64 row = blockIdx.x, start = row * n;
    const f32 m = F::CENTRED ? mean[row] : 0.0f, r = rstd[row], over = 1.0f / f32(n);
    f32 v[V], g[V], s1 = 0.0f, s2 = 0.0f;
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_both<T>(v, g, x + start, dy + start, weight, first, n, vector);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            s1 += g[j];
            s2 += g[j] * ((v[j] - m) * r);
        }
    }
    f32 c1 = 0.0f;
    if (F::CENTRED) c1 = block_sum<128>(s1) * over;
    const f32 shift = dmean ? dmean[row] * over : 0.0f;
    const f32 c2 = (block_sum<128>(s2) + (drstd ? drstd[row] : 0.0f) * r) * over;
    for (u32 first = threadIdx.x * V; first < n; first += STEP) {
        load_both<T>(v, g, x + start, dy + start, weight, first, n, vector);
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[j] = r * (g[j] - c1 - (v[j] - m) * r * c2) + shift;
        if (dsum) {
            load_piece<T>(g, dsum + start, first, n, vector, 0.0f);
#pragma unroll
            for (u32 j = 0; j < V; ++j) v[j] = g[j] + v[j];
        }
        store_piece<T>(dx + start, v, first, n, vector, add);
    }
}

struct NormParts { f32 weight[8][32], bias[8][32]; };

// Sums of dy · x̂ and of dy over `chunk` rows (grid.y counts them), for 32 columns a block of 32 x 8 threads.
KERNEL(norm_parameters, types(T: f32, bf16, f16), functors(F: LayerNorm, RmsNorm), in(T, x, rows * n), opt_in(f32, mean, rows),
       in(f32, rstd, rows), in(T, dy, rows * n), out(f32, dweight, ceil_div(rows, chunk) * n),
       out(f32, dbias, ceil_div(rows, chunk) * n), val(u64, rows), val(u32, n), val(u64, chunk),
       launch(grid = (ceil_div(n, 32), ceil_div(rows, chunk)), block = 256, shared = 0)) {
    SHARED(NormParts, parts);
    const u32 column = blockIdx.x * 32 + threadIdx.x % 32, line = threadIdx.x / 32;
    const u64 first = u64(blockIdx.y) * chunk, end = first + chunk < rows ? first + chunk : rows;
    LongSum ws, bs;
    if (column < n)
        for (u64 row = first + line; row < end; row += 8) {
            const f32 g = to_f32(dy[row * n + column]), m = F::CENTRED ? mean[row] : 0.0f;
            ws.add(g * ((to_f32(x[row * n + column]) - m) * rstd[row]));
            bs.add(g);
        }
    f32 w = ws.sum, b = bs.sum;
    parts.weight[line][threadIdx.x % 32] = w;
    parts.bias[line][threadIdx.x % 32] = b;
    __syncthreads();
    if (line != 0 || column >= n) return;
#pragma unroll
    for (u32 k = 1; k < 8; ++k) {
        w += parts.weight[k][threadIdx.x];
        b += parts.bias[k][threadIdx.x];
    }
    dweight[u64(blockIdx.y) * n + column] = w;
    dbias[u64(blockIdx.y) * n + column] = b;
}

// Adds the sums of all chunks, in ascending order. One thread a column.
KERNEL(norm_finish, types(T: f32, bf16, f16), in(f32, parts, chunks * n), out(T, total, n), val(u32, n), val(u64, chunks),
       val(u32, add), launch(grid = ceil_div(n, 128), block = 128, shared = 0)) {
    const u32 column = blockIdx.x * 128 + threadIdx.x;
    if (column >= n) return;
    LongSum sum;
    for (u64 k = 0; k < chunks; ++k) sum.add(parts[k * n + column]);
    total[column] = from_f32<T>(add ? to_f32(total[column]) + sum.sum : sum.sum);
}
