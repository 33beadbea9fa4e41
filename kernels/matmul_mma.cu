// archs: 80 86 89 90 100 120 ptx80
// matmul_mma.cu: the matrix product on tensor cores by mma.sync: bf16 and f16 with f32 sums, and f32 rounded to tf32 for who
// asks for that.
//
// The loop over k and the swizzled tiles are those of core/mma.cuh.
// Ragged edges are filled with zeros on the way in and cut off on the way out. Pitches or addresses that are no multiple of
// 16 bytes, and strides without a unit, take `mma_any`, which fetches element by element and is otherwise the same.
// Tensor cores truncate where they sum: an error of up to 2 units of the last f32 place for every 16 of k.
#include "core/mma.cuh"

// Fetches tiles of a 16-bit operand with any strides.
template <class T, u32 LEN, u32 THREADS> struct MmaAny {
    static constexpr bool K_MAJOR = true;
    static constexpr u32 CHUNK = MmaType<T>::CHUNK, ROUNDS = LEN * LINE_CHUNKS / THREADS;
    const T* p;
    u64 stride, k_stride;      // from one row of A (column of B) to the next; from one k to the next
    u32 first, size, k_end;
    u32 along_k;               // whether neighbouring threads should take neighbours along k rather than rows

    WS_METHOD void load(Chunk* tile, u32 k) const {
#pragma unroll 1
        for (u32 i = 0; i < ROUNDS; ++i) {
            const u32 id = threadIdx.x + i * THREADS;
            const u32 line = along_k ? id / LINE_CHUNKS : id % LEN, chunk = along_k ? id % LINE_CHUNKS : id / LEN;
            const u32 row = first + line, col = k + chunk * CHUNK;
            const T* from = p + row * stride + col * k_stride;
            u32 bits[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) bits[j] = row < size && col + j < k_end ? from[j * k_stride].bits : 0;
            Chunk to;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) to.words[j] = bits[2 * j] | bits[2 * j + 1] << 16;
            tile[chunk_at<T, true, LEN>(line, chunk)] = to;
        }
    }
};

// The small tiles keep their place in shared memory: it costs registers that decide how many blocks run.
struct MmaSmall {
    MmaRing<64, 64> ring;
    GemmPlace place;
};

// One BM x BN tile of C by warps of WM x WN each.
template <class T, u32 BM, u32 BN, u32 WM, u32 WN, class A, class B>
WS_FN void mma_tile(MmaRing<BM, BN>& ring, const A& a, const B& b, GemmSlice k, const GemmStore<T>& results,
                   const GemmPlace& at, u32 splits) {
    constexpr u32 WARPS_DOWN = BM / WM, THREADS = 32 * WARPS_DOWN * (BN / WN);
    f32 sum[WM / 16][WN / 8][4] = {};
    mma_products<T, BM, BN, WM, WN>(sum, ring, a, b, k);

    const GemmStore<T> to = gemm_store_of(results, at, splits);
    constexpr u32 STAGED = WARPS_DOWN * 16, PITCH = BN + 4;
    static_assert(sizeof(f32) * STAGED * PITCH <= sizeof(ring), "staged rows fit where the ring was");
    f32* staged = reinterpret_cast<f32*>(&ring);
#pragma unroll 1
    for (u32 pass = 0; pass < WM / 16; ++pass) {
        __syncthreads();      // the last stage, or the rows of the last pass, have been read
        mma_stage<BM, BN, WM, WN, PITCH>(sum, staged, pass);
        __syncthreads();      // publishes the staged rows
        gemm_store_rows<STAGED, BN, PITCH, THREADS>(
            staged, to, at.col, [&](u32 s) { return at.row + s / 16 * WM + pass * 16 + s % 16; });
    }
}

// C = f(A B + bias), 256 x 128 of C a block, 64 x 64 a warp, one block a multiprocessor.
// KA, KB: whether A and B lie k-major; a_pitch and b_pitch are elements from one line (of k, or along k) to the next.
KERNEL(mma_256x128, types(T: bf16, f16), ints(KA: 0, 1), ints(KB: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, n),
       opt_inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n),
       opt_out(f32, part, batches * splits * m * n), val(Dims, batch), val(Strides, a_batch), val(Strides, b_batch),
       val(u64, batches), val(u64, a_pitch), val(u64, b_pitch), val(u32, m), val(u32, n), val(u32, k), val(u32, splits),
       val(u32, slice), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 256, shared = 73728, blocks = 1)) {
    using Ring = MmaRing<256, 128>;
    DYN_SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 256, 128, splits, batches);
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAligned<T, KA == 1, 256, 256> from_a = {a + offset_of(at.batch, batch, a_batch), a_pitch, at.row, m, range.to};
    const MmaAligned<T, KB == 1, 128, 256> from_b = {b + offset_of(at.batch, batch, b_batch), b_pitch, at.col, n, range.to};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    mma_tile<T, 256, 128, 64, 64>(*ring, from_a, from_b, range, all, at, splits);
}

// C = f(A B + bias), 128 x 128 of C a block, 64 x 64 a warp, two blocks a multiprocessor.
// KA, KB: whether A and B lie k-major; a_pitch and b_pitch are elements from one line (of k, or along k) to the next.
KERNEL(mma_128x128, types(T: bf16, f16), ints(KA: 0, 1), ints(KB: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, n),
       opt_inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n),
       opt_out(f32, part, batches * splits * m * n), val(Dims, batch), val(Strides, a_batch), val(Strides, b_batch),
       val(u64, batches), val(u64, a_pitch), val(u64, b_pitch), val(u32, m), val(u32, n), val(u32, k), val(u32, splits),
       val(u32, slice), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 128, shared = 0, blocks = 2)) {
    using Ring = MmaRing<128, 128>;
    SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 128, 128, splits, batches);
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAligned<T, KA == 1, 128, 128> from_a = {a + offset_of(at.batch, batch, a_batch), a_pitch, at.row, m, range.to};
    const MmaAligned<T, KB == 1, 128, 128> from_b = {b + offset_of(at.batch, batch, b_batch), b_pitch, at.col, n, range.to};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    mma_tile<T, 128, 128, 64, 64>(ring, from_a, from_b, range, all, at, splits);
}

// C = f(A B + bias), 64 x 64 of C a block, 32 x 32 a warp.
// KA, KB: whether A and B lie k-major; a_pitch and b_pitch are elements from one line (of k, or along k) to the next.
KERNEL(mma_64x64, types(T: bf16, f16), ints(KA: 0, 1), ints(KB: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, n),
       opt_inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n),
       opt_out(f32, part, batches * splits * m * n), val(Dims, batch), val(Strides, a_batch), val(Strides, b_batch),
       val(u64, batches), val(u64, a_pitch), val(u64, b_pitch), val(u32, m), val(u32, n), val(u32, k), val(u32, splits),
       val(u32, slice), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    SHARED(MmaSmall, small);
    if (threadIdx.x == 0) small.place = gemm_place(m, n, 64, 64, splits, batches);
    __syncthreads();      // publishes the place
    const GemmPlace& at = small.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAligned<T, KA == 1, 64, 128> from_a = {a + offset_of(at.batch, batch, a_batch), a_pitch, at.row, m, range.to};
    const MmaAligned<T, KB == 1, 64, 128> from_b = {b + offset_of(at.batch, batch, b_batch), b_pitch, at.col, n, range.to};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    mma_tile<T, 64, 64, 32, 32>(small.ring, from_a, from_b, range, all, at, splits);
}

// C = f(A B + bias) with factors rounded to tf32 (10 fraction bits), 128 x 128 of C a block, 64 x 64 a warp.
// KA, KB: whether A and B lie k-major; a_pitch and b_pitch are elements from one line (of k, or along k) to the next.
KERNEL(mma_tf32, types(T: f32), ints(KA: 0, 1), ints(KB: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, n),
       opt_inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n),
       opt_out(f32, part, batches * splits * m * n), val(Dims, batch), val(Strides, a_batch), val(Strides, b_batch),
       val(u64, batches), val(u64, a_pitch), val(u64, b_pitch), val(u32, m), val(u32, n), val(u32, k), val(u32, splits),
       val(u32, slice), val(u32, activation), val(u32, add), val(u32, quads),
       launch(grid = plan, block = 128, shared = 0, blocks = 2)) {
    using Ring = MmaRing<128, 128>;
    SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 128, 128, splits, batches);
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAligned<T, KA == 1, 128, 128> from_a = {a + offset_of(at.batch, batch, a_batch), a_pitch, at.row, m, range.to};
    const MmaAligned<T, KB == 1, 128, 128> from_b = {b + offset_of(at.batch, batch, b_batch), b_pitch, at.col, n, range.to};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    mma_tile<T, 128, 128, 64, 64>(ring, from_a, from_b, range, all, at, splits);
}

// C = f(A B + bias) for any strides and addresses, 64 x 64 of C a block. Modes: 1 where a thread's neighbours lie along k.
KERNEL(mma_any, types(T: bf16, f16), in(T, a, any), in(T, b, any), opt_in(T, bias, n),
       opt_inout(T, c, batches * m * n), opt_out(T, pre, batches * m * n),
       opt_out(f32, part, batches * splits * m * n), val(Dims, batch), val(Strides, a_batch), val(Strides, b_batch),
       val(u64, batches), val(u64, a_row), val(u64, a_k), val(u64, b_k), val(u64, b_col), val(u32, m), val(u32, n),
       val(u32, k), val(u32, splits), val(u32, slice), val(u32, a_mode), val(u32, b_mode), val(u32, activation),
       val(u32, add), val(u32, quads), launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    SHARED(MmaSmall, small);
    if (threadIdx.x == 0) small.place = gemm_place(m, n, 64, 64, splits, batches);
    __syncthreads();      // publishes the place
    const GemmPlace& at = small.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAny<T, 64, 128> from_a = {a + offset_of(at.batch, batch, a_batch), a_row, a_k, at.row, m, range.to, a_mode & 1};
    const MmaAny<T, 64, 128> from_b = {b + offset_of(at.batch, batch, b_batch), b_col, b_k, at.col, n, range.to, b_mode & 1};
    const GemmStore<T> all = {bias, c, pre, part, m, n, activation, add, quads};
    mma_tile<T, 64, 64, 32, 32>(small.ring, from_a, from_b, range, all, at, splits);
}
