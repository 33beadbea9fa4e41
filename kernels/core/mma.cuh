// mma.cuh: a tile of a product on tensor cores: how its factors lie in shared memory, and the loop over k.
//
// A ring of three stages of 64 bytes of k each is filled by cp.async while an older stage is multiplied; one barrier a stage.
// Rows of 16-byte chunks are swizzled so that eight lanes of a copy or of an ldmatrix always hit eight different chunks
// modulo 128 bytes: no bank conflicts, no padding. An operand may lie k-major (k contiguous) or row-major along the other
// dimension: the second is turned by ldmatrix.trans, so no transpose is ever copied.
#pragma once
#include "gemm.cuh"

constexpr u32 MMA_STAGES = 3;        // three 128 x 128 stages are 48 KiB: two blocks a multiprocessor from sm_86 on
constexpr u32 LINE_CHUNKS = 4;       // a stage is 64 bytes of k deep

struct alignas(16) Chunk { u32 words[4]; };

// What differs between 16-bit factors and tf32: sizes in elements, and the product of a 16 x 8 tile of C.
template <class T> struct MmaType {
    static constexpr u32 CHUNK = 8, DEPTH = LINE_CHUNKS * CHUNK;
    WS_FN u32 swizzle(u32 line) { return line % 8; }
    WS_FN void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ptx::mma_m16n8k16<T>(d, a, b); }
};
template <> struct MmaType<f32> {
    static constexpr u32 CHUNK = 4, DEPTH = LINE_CHUNKS * CHUNK;
    // Fragments of transposed factors are read word by word: four lines of 8 words at a time.
    WS_FN u32 swizzle(u32 line) { return line % 4 * 2; }
    WS_FN void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ptx::mma_m16n8k8_tf32(d, a, b); }
};

// Where a chunk of a tile of `LEN` rows of A (columns of B) lies. Lines are rows of A if it is k-major, else k.
template <class T, bool K_MAJOR, u32 LEN> WS_FN u32 chunk_at(u32 line, u32 chunk) {
    static_assert(LEN % 64 == 0, "the swizzle spans eight chunks");
    return K_MAJOR ? line * LINE_CHUNKS + (chunk ^ (line / 2 % 4))
                   : line * (LEN / MmaType<T>::CHUNK) + (chunk ^ MmaType<T>::swizzle(line));
}

// Fetches tiles of an operand whose lines are contiguous and aligned to 16 bytes.
template <class T, bool K_MAJOR_, u32 LEN, u32 THREADS> struct MmaAligned {
    static constexpr bool K_MAJOR = K_MAJOR_;
    static constexpr u32 CHUNK = MmaType<T>::CHUNK, PER_LINE = K_MAJOR ? LINE_CHUNKS : LEN / CHUNK;
    static constexpr u32 LINES = THREADS / PER_LINE, ROUNDS = LEN * LINE_CHUNKS / THREADS;
    static_assert(THREADS % PER_LINE == 0 && ROUNDS * THREADS == LEN * LINE_CHUNKS, "whole chunks for every thread");
    const T* p;
    u64 pitch;                 // elements from one line to the next
    u32 first, size, k_end;    // the tile's first row of A (column of B), rows in all, end of the slice of k

    WS_METHOD void load(Chunk* tile, u32 k) const {
        const u32 chunk = threadIdx.x % PER_LINE;
#pragma unroll
        for (u32 i = 0; i < ROUNDS; ++i) {
            const u32 line = threadIdx.x / PER_LINE + i * LINES;
            const u32 row = K_MAJOR ? first + line : k + line, col = (K_MAJOR ? k : first) + chunk * CHUNK;
            const u32 rows = K_MAJOR ? size : k_end, cols = K_MAJOR ? k_end : size;
            const u32 valid = row < rows && col < cols ? (cols - col < CHUNK ? cols - col : CHUNK) : 0;
            const T* from = valid ? p + row * pitch + col : p;
            ptx::cp_async16(&tile[chunk_at<T, K_MAJOR, LEN>(line, chunk)], from, valid * u32(sizeof(T)));
        }
    }
};

// The fragment of 16 rows from `row` of A (columns of B) and two chunks of k from `chunk`. Registers are the quarters (upper
// rows, first chunk), (lower, first), (upper, second), (lower, second), as mma takes A; B's two fragments of 8 columns are
// registers 0, 2 and 1, 3.
template <class T, bool K_MAJOR, u32 LEN> WS_FN void load_fragment(u32 (&to)[4], const Chunk* tile, u32 row, u32 chunk) {
    constexpr u32 CHUNK = MmaType<T>::CHUNK;
    const u32 lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
    if constexpr (K_MAJOR) {
        ptx::ldmatrix_x4(to, &tile[chunk_at<T, true, LEN>(row + matrix % 2 * 8 + line, chunk + matrix / 2)]);
    } else if constexpr (sizeof(T) == 2) {
        const u32 k = chunk * CHUNK + matrix / 2 * 8 + line;
        ptx::ldmatrix_x4_trans(to, &tile[chunk_at<T, false, LEN>(k, row / CHUNK + matrix % 2)]);
    } else {
        // ldmatrix turns 16-bit elements only.
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place at = ptx::mma_tf32_a(lane, i);
            const u32 col = row + at.row;
            to[i] = tile[chunk_at<T, false, LEN>(chunk * CHUNK + at.col, col / CHUNK)].words[col % CHUNK];
        }
    }
    if constexpr (sizeof(T) == 4)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = ptx::tf32_of_f32(f32_of(to[i]));
}

// The ring; afterwards 16 rows of C for each warp row of the block, on their way out.
template <u32 BM, u32 BN> struct MmaRing {
    struct Stage {
        Chunk a[BM * LINE_CHUNKS];
        Chunk b[BN * LINE_CHUNKS];
    };
    Stage stages[MMA_STAGES];
};

// Adds the products of the slice to the sums of a BM x BN tile of C, by warps of WM x WN each.
template <class T, u32 BM, u32 BN, u32 WM, u32 WN, class A, class B>
WS_FN void mma_products(f32 (&sum)[WM / 16][WN / 8][4], MmaRing<BM, BN>& ring, const A& a, const B& b, GemmSlice k) {
    constexpr u32 WARPS_DOWN = BM / WM, DEPTH = MmaType<T>::DEPTH;
    const u32 warp = threadIdx.x / 32;
    const u32 row = warp % WARPS_DOWN * WM, col = warp / WARPS_DOWN * WN;

    const u32 steps = (k.to - k.from + DEPTH - 1) / DEPTH;
#pragma unroll
    for (u32 s = 0; s < MMA_STAGES - 1; ++s) {
        if (s < steps) {
            a.load(ring.stages[s].a, k.from + s * DEPTH);
            b.load(ring.stages[s].b, k.from + s * DEPTH);
        }
        ptx::cp_async_commit();
    }
    u32 now = 0, next = MMA_STAGES - 1;
#pragma unroll 1
    for (u32 step = 0; step < steps; ++step) {
        ptx::cp_async_wait<MMA_STAGES - 2>();
        // Publishes stage `now`; stage `next`, which the last round multiplied, may be overwritten after it.
        __syncthreads();
        if (step + MMA_STAGES - 1 < steps) {
            a.load(ring.stages[next].a, k.from + (step + MMA_STAGES - 1) * DEPTH);
            b.load(ring.stages[next].b, k.from + (step + MMA_STAGES - 1) * DEPTH);
        }
        ptx::cp_async_commit();
#pragma unroll
        for (u32 chunk = 0; chunk < LINE_CHUNKS; chunk += 2) {
            u32 x[WM / 16][4], y[WN / 16][4];
#pragma unroll
            for (u32 i = 0; i < WM / 16; ++i)
                load_fragment<T, A::K_MAJOR, BM>(x[i], ring.stages[now].a, row + i * 16, chunk);
#pragma unroll
            for (u32 j = 0; j < WN / 16; ++j)
                load_fragment<T, B::K_MAJOR, BN>(y[j], ring.stages[now].b, col + j * 16, chunk);
#pragma unroll
            for (u32 i = 0; i < WM / 16; ++i)
#pragma unroll
                for (u32 j = 0; j < WN / 8; ++j) {
                    const u32 z[2] = {y[j / 2][j % 2], y[j / 2][j % 2 + 2]};
                    MmaType<T>::multiply(sum[i][j], x[i], z);
                }
        }
        now = now + 1 == MMA_STAGES ? 0 : now + 1;
        next = next + 1 == MMA_STAGES ? 0 : next + 1;
    }
    ptx::cp_async_wait<0>();
}

// Puts 16 rows of every warp's sums where the ring was, PITCH apart. Lane l has rows l / 4 and l / 4 + 8, columns l % 4 * 2 and
// the next one.
template <u32 BM, u32 BN, u32 WM, u32 WN, u32 PITCH>
WS_FN void mma_stage(const f32 (&sum)[WM / 16][WN / 8][4], f32* staged, u32 pass) {
    constexpr u32 WARPS_DOWN = BM / WM;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 col = warp / WARPS_DOWN * WN, mine = warp % WARPS_DOWN * 16 + lane / 4;
#pragma unroll
    for (u32 i = 0; i < WM / 16; ++i)
        if (i == pass)    // not an index that varies: the sums are registers
#pragma unroll
            for (u32 j = 0; j < WN / 8; ++j)
#pragma unroll
                for (u32 h = 0; h < 2; ++h) {
                    Vec<f32, 2> pair;
                    pair.v[0] = sum[i][j][2 * h];
                    pair.v[1] = sum[i][j][2 * h + 1];
                    store_vec(staged + (mine + 8 * h) * PITCH + col + j * 8 + lane % 4 * 2, pair);
                }
}
