// gemm_mma.cu: C[m, n] = A[m, k] B[n, k]', bf16 in, f32 out: cp.async into two buffers, ldmatrix, mma.sync. BUG plants one fault.
#include "core/vec.cuh"

constexpr u32 TILE = 32, BK = 32, PITCH = BK + 8;     // rows of 80 bytes: aligned to 16, and no bank conflict

struct MmaArgs { const bf16* a; const bf16* b; f32* c; u32 m, n, k; };
struct MmaStage { bf16 a[TILE * PITCH], b[TILE * PITCH]; };
using MmaStages = MmaStage[2];

enum MmaBug : u32 { NO_WAIT = 1, WAITS_TOO_LITTLE, NO_BARRIER_BEFORE_READ, NO_BARRIER_BEFORE_REUSE, MISALIGNED, NO_ZERO_FILL, NO_COMMIT };

// 128 threads: each copies one 16-byte piece of each matrix's 32 x 32 tile.
template <u32 BUG> WS_FN void load(MmaStage& to, const MmaArgs& g, u32 m0, u32 n0, u32 k0) {
    const u32 row = threadIdx.x / 4, col = threadIdx.x % 4 * 8;
    const bool in_k = BUG == NO_ZERO_FILL || k0 + col < g.k;
    const bool in_a = in_k && m0 + row < g.m, in_b = in_k && n0 + row < g.n;
    ptx::cp_async16(to.a + row * PITCH + col, in_a ? g.a + u64(m0 + row) * g.k + k0 + col : g.a, in_a ? 16 : 0);
    ptx::cp_async16(to.b + row * PITCH + col, in_b ? g.b + u64(n0 + row) * g.k + k0 + col : g.b, in_b ? 16 : 0);
    if (BUG != NO_COMMIT) ptx::cp_async_commit();
}

// k is a multiple of 8. Each of four warps makes 16 x 16 of the 32 x 32 tile.
template <u32 BUG> WS_FN void gemm(const MmaArgs& g) {
    SHARED(MmaStages, stages);
    const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 rows = warp / 2 * 16, cols = warp % 2 * 16, steps = (g.k + BK - 1) / BK;
    f32 acc[2][4] = {};
    load<BUG>(stages[0], g, m0, n0, 0);
    for (u32 i = 0; i < steps; ++i) {
        if (i + 1 < steps) {
            load<BUG>(stages[(i + 1) % 2], g, m0, n0, (i + 1) * BK);
            if (BUG == WAITS_TOO_LITTLE) ptx::cp_async_wait<2>();
            else if (BUG != NO_WAIT) ptx::cp_async_wait<1>();
        } else if (BUG != NO_WAIT) {
            ptx::cp_async_wait<0>();
        }
        if (BUG != NO_BARRIER_BEFORE_READ) __syncthreads();
        const MmaStage& s = stages[i % 2];
        for (u32 k = 0; k < BK; k += 16) {
            u32 a[4], b[4];
            ptx::ldmatrix_x4(a, s.a + (rows + lane % 16) * PITCH + k + lane / 16 * 8 + (BUG == MISALIGNED ? 4 : 0));
            ptx::ldmatrix_x4(b, s.b + (cols + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
            for (u32 j = 0; j < 2; ++j) {
                const u32 half[2] = {b[2 * j], b[2 * j + 1]};
                ptx::mma_m16n8k16<bf16>(acc[j], a, half);
            }
        }
        if (BUG != NO_BARRIER_BEFORE_REUSE) __syncthreads();
    }
    for (u32 j = 0; j < 2; ++j)
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place p = ptx::mma_c(lane, i);
            const u32 row = m0 + rows + p.row, col = n0 + cols + 8 * j + p.col;
            if (row < g.m && col < g.n) g.c[u64(row) * g.n + col] = acc[j][i];
        }
}

WS_INSTANCE(gemm_mma, MmaArgs, 128) { gemm<0>(a); }
#if !WS_GPU
template <u32 BUG> static void planted(const void* a) { gemm<BUG>(*static_cast<const MmaArgs*>(a)); }
#define PLANTED(bug) {"gemm_mma_" #bug, sizeof(MmaArgs), planted<bug>}
extern const sim::Entry WS_TABLE(gemm_mma)[] = {
    {"gemm_mma", sizeof(MmaArgs), [](const void* a) { gemm_mma(*static_cast<const MmaArgs*>(a)); }},
    PLANTED(NO_WAIT), PLANTED(WAITS_TOO_LITTLE), PLANTED(NO_BARRIER_BEFORE_READ), PLANTED(NO_BARRIER_BEFORE_REUSE),
    PLANTED(MISALIGNED), PLANTED(NO_ZERO_FILL), PLANTED(NO_COMMIT),
    {nullptr, 0, nullptr},
};
#endif
