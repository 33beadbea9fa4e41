// archs: 80 86 89 90 100 120 ptx80
// matmul.cu: the matrix product on the plain arithmetic units, and the sum of split products.
//
// f32 is computed here, exactly as chains of fused multiply-adds: k ascending, from 0. For k up to 256 these are the CPU's
// bits (src/cpu/gemm.rs). bf16 and f16 come here only where a tensor-core tile would be mostly empty.
// Any strides: four neighbours along k or along the rows (columns) are fetched at once where they lie together and aligned,
// one by one elsewhere. Tiles are double-buffered: the next one is on its way to registers while this one is multiplied.
#include "core/gemm.cuh"

// How an operand is fetched: bits of `a_mode`, `b_mode`.
constexpr u32 ALONG_K = 1;     // a thread takes four neighbours along k, else along the rows of A (columns of B)
constexpr u32 VECTOR = 2;      // these are 4-element aligned and adjacent

// An operand as a matrix of rows of A (columns of B) by k, and the part of it that a block multiplies.
template <class T> struct SimtOperand {
    const T* p;
    u64 stride, k_stride;      // from one row to the next; from one k to the next
    u32 first, size;           // the tile's first row, rows in all
    u32 mode;
};

// One thread's share of the tiles of one operand: `LEN` rows by `DEPTH` of k, in quads of four neighbours. Of what can be told
// from the arguments nothing is kept: the sums need the registers.
template <class T, u32 LEN, u32 DEPTH, u32 THREADS> struct SimtPanel {
    static constexpr u32 QUADS = LEN * DEPTH / 4 / THREADS;
    static_assert(QUADS * THREADS * 4 == LEN * DEPTH, "whole quads for every thread");
    SimtOperand<T> of;
    const T* from;             // the first quad of the tile that comes next
    f32 held[QUADS][4];

    // Row and k of the thread's first quad within a tile; the others are a whole number of rows, or of k, further.
    WS_FN u32 line(bool along_k) { return along_k ? threadIdx.x / (DEPTH / 4) : threadIdx.x % (LEN / 4) * 4; }
    WS_FN u32 depth(bool along_k) { return along_k ? threadIdx.x % (DEPTH / 4) * 4 : threadIdx.x / (LEN / 4); }
    static constexpr u32 ROWS_APART = THREADS / (DEPTH / 4), K_APART = THREADS / (LEN / 4);

    WS_METHOD void start(u32 k) {
        const bool along_k = of.mode & ALONG_K;
        from = of.p + (of.first + line(along_k)) * of.stride + (k + depth(along_k)) * of.k_stride;
    }

    // Fetches the tile of which `left` of k are left.
    WS_METHOD void fetch(u32 left) {
        const bool along_k = of.mode & ALONG_K;
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            const u32 row = of.first + line(along_k) + (along_k ? i * ROWS_APART : 0);
            const u32 col = depth(along_k) + (along_k ? 0 : i * K_APART);
            const u32 down = row < of.size ? of.size - row : 0, right = col < left ? left - col : 0;
            const u32 valid = along_k ? (down ? right : 0) : (right ? down : 0);
            const T* quad = from + i * (along_k ? ROWS_APART * of.stride : K_APART * of.k_stride);
            if (of.mode & VECTOR && valid >= 4) {
                gemm_load4(quad, held[i]);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    held[i][j] = j < valid ? to_f32(*quad) : 0.0f;
                    quad += along_k ? of.k_stride : of.stride;
                }
            }
        }
        from += DEPTH * of.k_stride;
    }

    // The tile in shared memory lies [k][row], so that the products read neighbours whichever way it was fetched.
    WS_METHOD void put(f32 (*to)[LEN + 4]) const {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            if (of.mode & ALONG_K) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) to[depth(true) + j][line(true) + i * ROWS_APART] = held[i][j];
            } else {
                gemm_store4(&to[depth(false) + i * K_APART][line(false)], held[i], 4, true);
            }
        }
    }
};

// Two tiles of each factor; afterwards the rows of C that are on their way out. The padding of 4 keeps rows 16-byte aligned
// and spreads a transposing store over the banks. The block's place lies here too, so that it costs no registers meanwhile.
template <u32 BM, u32 BN, u32 DEPTH> struct SimtTiles {
    alignas(16) f32 a[2][DEPTH][BM + 4];
    alignas(16) f32 b[2][DEPTH][BN + 4];
    GemmPlace place;
};

// The lanes of a warp stand 4 down and 8 across.
constexpr u32 LANES_DOWN = 4, LANES_ACROSS = 8;

// One BM x BN tile of C by a block of threads that have TM x TN sums each, in quads of 4 x 4 spread over the warp's tile.
template <class T, u32 BM, u32 BN, u32 DEPTH, u32 TM, u32 TN, u32 THREADS>
WS_FN void simt_tile(SimtTiles<BM, BN, DEPTH>& tiles, const SimtOperand<T>& of_a, const SimtOperand<T>& of_b, GemmSlice k,
                     const GemmStore<T>& results, u32 splits) {
    constexpr u32 WM = LANES_DOWN * TM, WN = LANES_ACROSS * TN, WARPS_DOWN = BM / WM;
    static_assert(THREADS == 32 * WARPS_DOWN * (BN / WN), "warps cover the tile");
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 row = warp % WARPS_DOWN * WM + lane / LANES_ACROSS * 4;
    const u32 col = warp / WARPS_DOWN * WN + lane % LANES_ACROSS * 4;
    f32 sum[TM][TN] = {};

    SimtPanel<T, BM, DEPTH, THREADS> a = {of_a};
    SimtPanel<T, BN, DEPTH, THREADS> b = {of_b};
    a.start(k.from);
    b.start(k.from);
    a.fetch(k.to - k.from);
    b.fetch(k.to - k.from);
    a.put(tiles.a[0]);
    b.put(tiles.b[0]);
    u32 now = 0;
#pragma unroll 1
    for (u32 left = k.to - k.from; left != 0;) {
        // Publishes tile `now`; the other one, which the last round read, may be overwritten after it.
        __syncthreads();
        left = left > DEPTH ? left - DEPTH : 0;
        if (left != 0) {
            a.fetch(left);
            b.fetch(left);
        }
#pragma unroll
        for (u32 d = 0; d < DEPTH; ++d) {
            f32 x[TM], y[TN];
#pragma unroll
            for (u32 i = 0; i < TM; i += 4) {
                f32 v[4];
                gemm_load4(&tiles.a[now][d][row + i * LANES_DOWN], v);
                for (u32 j = 0; j < 4; ++j) x[i + j] = v[j];
            }
#pragma unroll
            for (u32 i = 0; i < TN; i += 4) {
                f32 v[4];
                gemm_load4(&tiles.b[now][d][col + i * LANES_ACROSS], v);
                for (u32 j = 0; j < 4; ++j) y[i + j] = v[j];
            }
#pragma unroll
            for (u32 i = 0; i < TM; ++i)
#pragma unroll
                for (u32 j = 0; j < TN; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        if (left != 0) {
            a.put(tiles.a[now ^ 1]);
            b.put(tiles.b[now ^ 1]);
        }
        now ^= 1;
    }

    // Two rows of every thread at a time.
    const GemmStore<T> to = gemm_store_of(results, tiles.place, splits);
    constexpr u32 STAGED = WARPS_DOWN * LANES_DOWN * 2, PITCH = BN + 4;
    static_assert(sizeof(f32) * STAGED * PITCH <= sizeof(tiles.a) + sizeof(tiles.b), "staged rows fit where the tiles were");
    f32* staged = &tiles.a[0][0][0];
    const u32 mine = warp % WARPS_DOWN * LANES_DOWN + lane / LANES_ACROSS;
#pragma unroll 1
    for (u32 pass = 0; pass < TM / 2; ++pass) {
        __syncthreads();      // the tiles, or the rows of the last pass, have been read
#pragma unroll
        for (u32 i = 0; i < TM; ++i)
            if (i / 2 == pass)      // not an index that varies: the sums are registers
#pragma unroll
                for (u32 j = 0; j < TN; j += 4) {
                    const f32 v[4] = {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]};
                    gemm_store4(staged + (mine * 2 + i % 2) * PITCH + col + j * LANES_ACROSS, v, 4, true);
                }
        __syncthreads();      // publishes the staged rows
        gemm_store_rows<STAGED, BN, PITCH, THREADS>(staged, to, tiles.place.col, [&](u32 s) {
            const u32 i = pass * 2 + s % 2, thread = s / 2;
            return tiles.place.row + thread / LANES_DOWN * WM + i / 4 * (LANES_DOWN * 4) + thread % LANES_DOWN * 4 + i % 4;
        });
    }
}

// C = f(A B + bias), 128 x 128 of C a block, 8 x 8 a thread.
KERNEL(simt_128x128, types(T: f32), in(T, a, any), in(T, b, any), opt_in(T, bias, n), opt_inout(T, c, batches * m * n),
       opt_out(T, pre, batches * m * n), opt_out(f32, part, batches * splits * m * n), val(Dims, batch),
       val(Strides, a_batch), val(Strides, b_batch), val(u64, batches), val(u64, a_row), val(u64, a_k), val(u64, b_k),
       val(u64, b_col), val(u32, m), val(u32, n), val(u32, k), val(u32, splits), val(u32, slice), val(u32, a_mode),
       val(u32, b_mode), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 256, shared = 0, blocks = 2)) {
    using Tiles = SimtTiles<128, 128, 8>;
    SHARED(Tiles, tiles);
    if (threadIdx.x == 0) tiles.place = gemm_place(m, n, 128, 128, splits, batches);
    __syncthreads();      // publishes the place
    const GemmPlace& at = tiles.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const SimtOperand<T> of_a = {a + offset_of(at.batch, batch, a_batch), a_row, a_k, at.row, m, a_mode};
    const SimtOperand<T> of_b = {b + offset_of(at.batch, batch, b_batch), b_col, b_k, at.col, n, b_mode};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    simt_tile<T, 128, 128, 8, 8, 8, 256>(tiles, of_a, of_b, range, all, splits);
}

// C = f(A B + bias), 64 x 64 of C a block, 8 x 4 a thread.
KERNEL(simt_64x64, types(T: f32, bf16, f16), in(T, a, any), in(T, b, any), opt_in(T, bias, n), opt_inout(T, c, batches * m * n),
       opt_out(T, pre, batches * m * n), opt_out(f32, part, batches * splits * m * n), val(Dims, batch),
       val(Strides, a_batch), val(Strides, b_batch), val(u64, batches), val(u64, a_row), val(u64, a_k), val(u64, b_k),
       val(u64, b_col), val(u32, m), val(u32, n), val(u32, k), val(u32, splits), val(u32, slice), val(u32, a_mode),
       val(u32, b_mode), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    using Tiles = SimtTiles<64, 64, 8>;
    SHARED(Tiles, tiles);
    if (threadIdx.x == 0) tiles.place = gemm_place(m, n, 64, 64, splits, batches);
    __syncthreads();      // publishes the place
    const GemmPlace& at = tiles.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const SimtOperand<T> of_a = {a + offset_of(at.batch, batch, a_batch), a_row, a_k, at.row, m, a_mode};
    const SimtOperand<T> of_b = {b + offset_of(at.batch, batch, b_batch), b_col, b_k, at.col, n, b_mode};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    simt_tile<T, 64, 64, 8, 8, 4, 128>(tiles, of_a, of_b, range, all, splits);
}

// C = f(A B + bias), 32 x 32 of C a block, 4 x 4 a thread.
KERNEL(simt_32x32, types(T: f32, bf16, f16), in(T, a, any), in(T, b, any), opt_in(T, bias, n), opt_inout(T, c, batches * m * n),
       opt_out(T, pre, batches * m * n), opt_out(f32, part, batches * splits * m * n), val(Dims, batch),
       val(Strides, a_batch), val(Strides, b_batch), val(u64, batches), val(u64, a_row), val(u64, a_k), val(u64, b_k),
       val(u64, b_col), val(u32, m), val(u32, n), val(u32, k), val(u32, splits), val(u32, slice), val(u32, a_mode),
       val(u32, b_mode), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 64, shared = 0, blocks = 5)) {
    using Tiles = SimtTiles<32, 32, 32>;
    SHARED(Tiles, tiles);
    if (threadIdx.x == 0) tiles.place = gemm_place(m, n, 32, 32, splits, batches);
    __syncthreads();      // publishes the place
    const GemmPlace& at = tiles.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const SimtOperand<T> of_a = {a + offset_of(at.batch, batch, a_batch), a_row, a_k, at.row, m, a_mode};
    const SimtOperand<T> of_b = {b + offset_of(at.batch, batch, b_batch), b_col, b_k, at.col, n, b_mode};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    simt_tile<T, 32, 32, 32, 4, 4, 64>(tiles, of_a, of_b, range, all, splits);
}

// C = f((C +) sums of the slices + bias): what the products leave in `part` where k is split, slices in ascending order.
KERNEL(split_sum, types(T: f32, bf16, f16), in(f32, part, batches * splits * m * n), opt_in(T, bias, n),
       inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n), val(u64, batches), val(u64, m), val(u64, n),
       val(u64, splits), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = ceil_div(batches * m * n, 1024), block = 256, shared = 0)) {
    const u64 size = m * n, at = (u64(blockIdx.x) * 256 + threadIdx.x) * 4;
    const GemmStore<T> to = {bias, c, pre, nullptr, u32(m), u32(n), activation, add, quads};
    // With `quads` four elements are neighbours in a row; without, each is finished by itself.
    const u32 width = quads ? 4 : 1;
#pragma unroll 1
    for (u64 i = at; i < at + 4 && i < batches * size; i += width) {
        const u64 matrix = i / size, inner = i - matrix * size;
        const f32* from = part + matrix * splits * size + inner;
        f32 v[4] = {}, bias_of[4];
        for (u64 s = 0; s < splits; ++s, from += size) {
            f32 x[4] = {};
            if (quads) gemm_load4(from, x);
            else x[0] = *from;
            for (u32 j = 0; j < 4; ++j) v[j] = s == 0 ? x[j] : v[j] + x[j];
        }
        gemm_load_bias(to, u32(inner % n), width, bias_of);
        gemm_finish(to, i, width, v, bias_of);
    }
}
