// gemm_tma_wgmma.cu: C[m, n] = A[m, k] B[n, k]', bf16 in, f32 out: tensor-map copies into a ring of stages, one producer and two
// consumer warpgroups, wgmma. The proof that the simulator carries Hopper's machinery; BUG plants one fault (0: none).
#include "core/vec.cuh"

constexpr u32 BM = 128, BN = 64, BK = 64, STAGES = 3, THREADS = 384, CONSUMER_WARPS = 8;
constexpr u32 A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;

struct GemmShared {
    u8 a[STAGES][A_BYTES];
    u8 b[STAGES][B_BYTES];
    u64 full[STAGES], empty[STAGES];
};
struct GemmArgs { TensorMap a, b; f32* c; u32 m, n, k; };

enum GemmBug : u32 {
    NO_EMPTY_WAIT = 1, WRONG_PARITY, FEW_BYTES, NO_SWIZZLE, EARLY_RELEASE, NO_WGMMA_WAIT, NO_INIT_BARRIER, NO_FULL_WAIT, WRONG_SBO,
    NO_K_ADVANCE, MANY_ARRIVALS, PAST_THE_END, ONE_ARRIVAL_PER_GROUP, NO_INIT_FENCE, OVERLAPPING_BOXES,
};

template <u32 BUG> WS_FN void gemm(const GemmArgs& g) {
    DYN_SHARED(GemmShared, shared);
    const u32 arrivals = BUG == ONE_ARRIVAL_PER_GROUP ? 2 : CONSUMER_WARPS;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            ptx::mbarrier_init(&shared->full[s], 1);
            ptx::mbarrier_init(&shared->empty[s], arrivals);
        }
        if (BUG != NO_INIT_FENCE) ptx::mbarrier_fence_init();
    }
    if (BUG != NO_INIT_BARRIER) __syncthreads();
    const u32 m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, steps = (g.k + BK - 1) / BK, group = threadIdx.x / 128;
    if (group == 0) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x != 0) return;
        for (u32 i = 0; i < steps; ++i) {
            const u32 s = i % STAGES, phase = i / STAGES & 1;
            if (BUG != NO_EMPTY_WAIT) ptx::mbarrier_wait(&shared->empty[s], BUG == WRONG_PARITY ? phase : phase ^ 1);
            ptx::mbarrier_arrive_expect(&shared->full[s], BUG == FEW_BYTES ? A_BYTES : A_BYTES + B_BYTES);
            ptx::tma_load_2d(shared->a[s], &g.a, &shared->full[s], i32(i * BK), i32(m0));
            ptx::tma_load_2d(BUG == OVERLAPPING_BOXES ? shared->a[s] : shared->b[s], &g.b, &shared->full[s], i32(i * BK), i32(n0));
        }
        return;
    }
    ptx::setmaxnreg_inc<232>();
    f32 acc[32];
    for (u32 i = 0; i < 32; ++i) acc[i] = 0;
    for (u32 i = 0; i < steps; ++i) {
        const u32 s = i % STAGES, phase = i / STAGES & 1;
        if (BUG != NO_FULL_WAIT) ptx::mbarrier_wait(&shared->full[s], phase);
        ptx::wgmma_fence();
        for (u32 k = 0; k < BK / 16; ++k) {
            const u32 step = BUG == NO_K_ADVANCE ? 0 : k * 32;
            u64 a = ptx::wgmma_descriptor_128(ptx::shared_address(shared->a[s]) + (group - 1) * 64 * 128 + step);
            u64 b = ptx::wgmma_descriptor_128(ptx::shared_address(shared->b[s]) + k * 32);
            if (BUG == NO_SWIZZLE) { a &= ~(3ull << 62); b &= ~(3ull << 62); }
            if (BUG == WRONG_SBO) a = (a & ~(0x3FFFull << 32)) | (32ull << 32);
            ptx::wgmma_m64n64k16(acc, a, b);
        }
        ptx::wgmma_commit();
        if (BUG == EARLY_RELEASE && threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&shared->empty[s]);
        if (BUG != NO_WGMMA_WAIT) ptx::wgmma_wait<0>();
        // All lanes of the warp have waited: one releases the stage for the warp.
        __syncwarp();
        const u32 one_of = BUG == ONE_ARRIVAL_PER_GROUP ? 128 : 32;
        if (BUG != EARLY_RELEASE && threadIdx.x % one_of == 0) ptx::mbarrier_arrive(&shared->empty[s]);
        if (BUG == MANY_ARRIVALS) ptx::mbarrier_arrive(&shared->empty[s]);
    }
    for (u32 i = 0; i < 32; ++i) {
        const ptx::Place p = ptx::wgmma_d(threadIdx.x % 128, i);
        const u32 row = m0 + (group - 1) * 64 + p.row, col = n0 + p.col;
        if (BUG == PAST_THE_END || (row < g.m && col < g.n)) g.c[u64(row) * g.n + col] = acc[i];
    }
}

#if !WS_GPU || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
WS_INSTANCE(gemm_tma, GemmArgs, 384, 1) { gemm<0>(a); }
#endif
#if !WS_GPU
template <u32 BUG> static void planted(const void* a) { gemm<BUG>(*static_cast<const GemmArgs*>(a)); }
#define PLANTED(bug) {"gemm_tma_" #bug, sizeof(GemmArgs), planted<bug>}
extern const sim::Entry WS_TABLE(gemm_tma_wgmma)[] = {
    {"gemm_tma", sizeof(GemmArgs), [](const void* a) { gemm_tma(*static_cast<const GemmArgs*>(a)); }},
    PLANTED(NO_EMPTY_WAIT), PLANTED(WRONG_PARITY), PLANTED(FEW_BYTES), PLANTED(NO_SWIZZLE), PLANTED(EARLY_RELEASE),
    PLANTED(NO_WGMMA_WAIT), PLANTED(NO_INIT_BARRIER), PLANTED(NO_FULL_WAIT), PLANTED(WRONG_SBO), PLANTED(NO_K_ADVANCE),
    PLANTED(MANY_ARRIVALS), PLANTED(PAST_THE_END), PLANTED(ONE_ARRIVAL_PER_GROUP), PLANTED(NO_INIT_FENCE), PLANTED(OVERLAPPING_BOXES),
    {nullptr, 0, nullptr},
};
#endif
