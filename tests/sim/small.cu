// small.cu: one rule a kernel. Names say whether it is right (`ok_`) or what is wrong with it (`bad_`); tests/simulator.rs says how
// each wrong one is found.
#include "core/layout.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"

struct SmallArgs { const f32* x; f32* y; u32 n, p; };

#define SMALL(X) \
    X(ok_rownorm) X(bad_first_barrier) X(bad_second_barrier) X(bad_divergent_barrier) X(bad_exit_before_barrier)             \
    X(bad_between_barriers) X(bad_slow_mbarrier) X(bad_block_overlap) X(ok_warp_exchange) X(bad_warp_exchange)               \
    X(bad_exchange_over_wgmma) X(bad_no_proxy_fence) X(bad_late_proxy_fence) X(ok_proxy_fence) X(bad_accumulator_written)    \
    X(bad_accumulator_read) X(bad_no_wgmma_fence) X(bad_no_wgmma_wait) X(bad_tile_at_512) X(bad_registers_one_warp)          \
    X(bad_register_pool) X(bad_deadlock) X(bad_read_past_end) X(bad_write_past_end) X(bad_write_to_input) X(bad_shared_end)  \
    X(bad_uninitialised) X(bad_shuffle_inactive) X(bad_shuffle_exited) X(bad_shuffle_lines) X(bad_cp_async_barrier)          \
    X(bad_cp_async_aligned) X(ok_narrow) X(ok_atomics) X(bad_atomic_and_plain) X(ok_named_barriers) X(bad_named_barrier)     \
    X(ok_votes) X(ok_inout) X(bad_mbarrier_write) X(bad_trap) X(ok_strides) X(ok_idle) X(ok_switches) X(ok_table) \
    X(ok_mma_shapes) X(bad_vector_address) X(bad_named_parts) X(bad_named_lines)

template <u32 BUG> WS_FN f32 two_barriers(f32 x) {
    using Parts = f32[8];
    SHARED(Parts, parts);
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    if (BUG != 1) __syncthreads();
    x = 0;
    for (u32 i = 0; i < 8; ++i) x += parts[i];
    if (BUG != 2) __syncthreads();
    return x;
}
// y = (x - mean) / deviation of rows of length n; 256 threads a row.
template <u32 BUG> WS_FN void rownorm(const SmallArgs& a) {
    const f32* x = a.x + u64(blockIdx.x) * a.n;
    f32 s = 0, q = 0;
    if (BUG == 3 && threadIdx.x < 32) __syncthreads();
    for (u32 c = threadIdx.x; c < a.n; c += 256) s += x[c];
    const f32 mean = two_barriers<BUG>(s) / f32(a.n);
    for (u32 c = threadIdx.x; c < a.n; c += 256) q += (x[c] - mean) * (x[c] - mean);
    const f32 deviation = sqrtf(two_barriers<BUG>(q) / f32(a.n) + 1e-5f);
    for (u32 c = threadIdx.x; c < a.n; c += 256) a.y[u64(blockIdx.x) * a.n + c] = (x[c] - mean) / deviation;
}
WS_FN void ok_rownorm(const SmallArgs& a) { rownorm<0>(a); }
WS_FN void bad_first_barrier(const SmallArgs& a) { rownorm<1>(a); }
WS_FN void bad_second_barrier(const SmallArgs& a) { rownorm<2>(a); }
WS_FN void bad_divergent_barrier(const SmallArgs& a) { rownorm<3>(a); }

using Floats = f32[2048];

WS_FN void bad_exit_before_barrier(const SmallArgs& a) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    a.y[threadIdx.x] = 1;
}
// Written by one thread and read by another between two barriers, with none in the middle.
WS_FN void bad_between_barriers(const SmallArgs& a) {
    SHARED(Floats, s);
    s[threadIdx.x] = 0;
    __syncthreads();
    f32 v = 0;
    if (threadIdx.x == 1) s[0] = 1;
    if (threadIdx.x == 0) v = s[0];
    __syncthreads();
    if (threadIdx.x == 0) a.y[0] = v;
}
// Thread 0 may be so slow that thread 1 writes for the next phase before it has read.
WS_FN void bad_slow_mbarrier(const SmallArgs& a) {
    DYN_SHARED(u64, bar);
    SHARED(Floats, s);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(bar, 2);
        ptx::mbarrier_fence_init();
        s[0] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 1) {
        ptx::mbarrier_arrive(bar);
        ptx::mbarrier_wait(bar, 0);
        s[0] = 3;
        ptx::mbarrier_arrive(bar);
    }
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive(bar);
        ptx::mbarrier_wait(bar, 0);
        a.y[0] = s[0];
        ptx::mbarrier_arrive(bar);
    }
}
WS_FN void bad_block_overlap(const SmallArgs& a) { a.y[threadIdx.x] = f32(blockIdx.x); }
WS_FN void ok_warp_exchange(const SmallArgs& a) {
    SHARED(Floats, s);
    for (u32 i = 0; i < 3; ++i) {
        s[threadIdx.x] = f32(threadIdx.x + i);
        __syncwarp();
        a.y[threadIdx.x] = s[threadIdx.x ^ 31];
        __syncwarp();
    }
}
// A shuffle is no barrier.
WS_FN void bad_warp_exchange(const SmallArgs& a) {
    SHARED(Floats, s);
    s[threadIdx.x] = 1;
    const f32 v = __shfl_xor_sync(0xFFFFFFFFu, f32(threadIdx.x), 1);
    a.y[threadIdx.x] = s[threadIdx.x ^ 31] + v;
}

// ---- wgmma; 128 threads, tiles of ones ----
template <u32 BUG> WS_FN void one_product(const SmallArgs& a) {
    DYN_SHARED(bf16, tile);
    SHARED(Floats, s);
    f32 acc[32];
    for (u32 i = 0; i < 32; ++i) acc[i] = 0;
    for (u32 i = threadIdx.x; i < 8192; i += 128) tile[i] = from_f32<bf16>(1.0f);
    if (BUG != 1 && BUG != 2) ptx::fence_proxy_async();
    s[threadIdx.x] = f32(threadIdx.x);
    __syncthreads();
    if (BUG == 2) ptx::fence_proxy_async();
    if (BUG == 8) s[threadIdx.x] = 1;
    const u64 d = ptx::wgmma_descriptor_128(ptx::shared_address(tile) + (BUG == 3 ? 512 : 0));
    if (BUG != 4) ptx::wgmma_fence();
    ptx::wgmma_m64n64k16(acc, d, d);
    if (BUG == 5) acc[3] = 7;
    if (BUG == 6) a.y[threadIdx.x] = acc[3];
    ptx::wgmma_commit();
    if (BUG != 7) ptx::wgmma_wait<0>();
    a.y[threadIdx.x] = BUG == 7 ? 1.0f : acc[3];
    if (BUG == 8) a.y[threadIdx.x] = s[threadIdx.x ^ 64];
}
WS_FN void ok_proxy_fence(const SmallArgs& a) { one_product<0>(a); }
WS_FN void bad_no_proxy_fence(const SmallArgs& a) { one_product<1>(a); }
WS_FN void bad_late_proxy_fence(const SmallArgs& a) { one_product<2>(a); }
WS_FN void bad_tile_at_512(const SmallArgs& a) { one_product<3>(a); }
WS_FN void bad_no_wgmma_fence(const SmallArgs& a) { one_product<4>(a); }
WS_FN void bad_accumulator_written(const SmallArgs& a) { one_product<5>(a); }
WS_FN void bad_accumulator_read(const SmallArgs& a) { one_product<6>(a); }
WS_FN void bad_no_wgmma_wait(const SmallArgs& a) { one_product<7>(a); }
WS_FN void bad_exchange_over_wgmma(const SmallArgs& a) { one_product<8>(a); }
WS_FN void bad_registers_one_warp(const SmallArgs& a) {
    if (threadIdx.x < 32) ptx::setmaxnreg_dec<32>();
    a.y[threadIdx.x] = 1;
}
WS_FN void bad_register_pool(const SmallArgs& a) {      // 384 threads have 168 each: 32 + 2 * 240 is more
    if (threadIdx.x < 128) ptx::setmaxnreg_dec<32>();
    else ptx::setmaxnreg_inc<240>();
    a.y[threadIdx.x] = 1;
}

// ---- waiting ----
WS_FN void bad_deadlock(const SmallArgs& a) {
    DYN_SHARED(u64, bar);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(bar, 3);
        ptx::mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < 2) ptx::mbarrier_arrive(bar);
    if (threadIdx.x < 32) ptx::mbarrier_wait(bar, 0);
    else ptx::named_barrier_sync(5, 64);
    a.y[threadIdx.x] = 1;
}
WS_FN void bad_shuffle_inactive(const SmallArgs& a) {
    f32 v = 0;
    if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(0xFFFFFFFFu, f32(threadIdx.x), 1);
    else __syncwarp(0xFFFF0000u);
    __syncthreads();
    a.y[threadIdx.x] = v;
}
WS_FN void bad_shuffle_exited(const SmallArgs& a) {
    if (threadIdx.x >= 50) return;
    a.y[threadIdx.x] = __shfl_down_sync(0xFFFFFFFFu, f32(threadIdx.x), 1);
}
WS_FN void bad_shuffle_lines(const SmallArgs& a) {
    f32 v;
    if (threadIdx.x % 2) v = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
    else v = __shfl_xor_sync(0xFFFFFFFFu, 2.0f, 1);
    a.y[threadIdx.x] = v;
}
WS_FN void ok_votes(const SmallArgs& a) {
    const u32 lane = threadIdx.x % 32, even = __ballot_sync(0xFFFFFFFFu, lane % 2 == 0);
    bool good = even == 0x55555555u && __any_sync(0xFFFFFFFFu, lane == 7) && !__all_sync(0xFFFFFFFFu, lane == 7);
    // Two halves of a warp in exchanges of their own.
    if (lane < 16) good = good && __shfl_sync(0x0000FFFFu, lane, 3) == 3;
    else good = good && __shfl_sync(0xFFFF0000u, lane, 20) == 20;
    good = good && __shfl_up_sync(0xFFFFFFFFu, lane, 4) == (lane < 4 ? lane : lane - 4);
    good = good && __shfl_down_sync(0xFFFFFFFFu, lane, 2, 8) == (lane % 8 < 6 ? lane + 2 : lane);
    good = good && __shfl_sync(0xFFFFFFFFu, u64(lane) << 40, 5, 16) == u64(lane / 16 * 16 + 5) << 40;
    a.y[threadIdx.x] = good;
}
// Two warps hand over to two others, in turns.
template <u32 BUG> WS_FN void named(const SmallArgs& a) {
    SHARED(Floats, s);
    const u32 t = threadIdx.x;
    for (u32 i = 0; i < 4; ++i) {
        if (t < 64) {
            if (i > 0 && BUG == 0) ptx::named_barrier_sync(2, 128);
            s[t] = f32(t + i);
            ptx::named_barrier_arrive(1, 128);
        } else {
            ptx::named_barrier_sync(1, 128);
            a.y[t] = s[t - 64];
            if (i < 3 && BUG == 0) ptx::named_barrier_arrive(2, 128);
        }
    }
    if (t < 64) a.y[t] = 66 + f32(t);
}
WS_FN void ok_named_barriers(const SmallArgs& a) { named<0>(a); }
WS_FN void bad_named_barrier(const SmallArgs& a) { named<1>(a); }
// 64 arrivals, but of two halves and a whole.
WS_FN void bad_named_parts(const SmallArgs& a) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0 || lane < 16) ptx::named_barrier_sync(3, 64);
    a.y[threadIdx.x] = 1;
}
WS_FN void bad_named_lines(const SmallArgs& a) {
    if (threadIdx.x % 32 < 16) ptx::named_barrier_sync(3, 64);
    else ptx::named_barrier_sync(3, 64);
    a.y[threadIdx.x] = 1;
}
WS_FN void bad_trap(const SmallArgs& a) {
    if (threadIdx.x == 9) ptx::trap();
    a.y[threadIdx.x] = 1;
}

// ---- addresses ----
WS_FN void bad_read_past_end(const SmallArgs& a) { a.y[threadIdx.x] = a.x[threadIdx.x + 1]; }
WS_FN void bad_write_past_end(const SmallArgs& a) { a.y[threadIdx.x + 3] = 1; }
WS_FN void bad_write_to_input(const SmallArgs& a) { const_cast<f32*>(a.x)[threadIdx.x] = 1; }
WS_FN void bad_shared_end(const SmallArgs& a) {
    using Row = f32[64];
    SHARED(Row, s);
    s[threadIdx.x + 1] = 1;
    __syncthreads();
    a.y[threadIdx.x] = s[0];
}
WS_FN void bad_vector_address(const SmallArgs& a) {
    const Vec<f32, 4> v = load_vec<4>(a.x + 4 * (threadIdx.x / 8) + 1);
    a.y[threadIdx.x] = v[0];
}
WS_FN void bad_uninitialised(const SmallArgs& a) {
    SHARED(Floats, s);
    if (threadIdx.x != 5) s[threadIdx.x] = 1;
    a.y[threadIdx.x] = s[threadIdx.x] * 0;
}
WS_FN void bad_mbarrier_write(const SmallArgs& a) {
    DYN_SHARED(u64, bar);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(bar, 1);
        *bar = 0;
    }
    a.y[threadIdx.x] = 1;
}
// cp.async makes its data visible to the thread that waited, to no other.
WS_FN void bad_cp_async_barrier(const SmallArgs& a) {
    SHARED(Floats, s);
    ptx::cp_async4(&s[threadIdx.x], a.x + threadIdx.x, 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    a.y[threadIdx.x] = s[threadIdx.x ^ 1];
}
WS_FN void bad_cp_async_aligned(const SmallArgs& a) {
    SHARED(Floats, s);
    ptx::cp_async16(&s[threadIdx.x * 4], a.x + threadIdx.x, 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    a.y[threadIdx.x] = s[threadIdx.x * 4];
}
// Neighbouring bytes and halves of one word belong to different threads.
WS_FN void ok_narrow(const SmallArgs& a) {
    u8* bytes = reinterpret_cast<u8*>(a.y);
    if (threadIdx.x < 64) bytes[threadIdx.x] = u8(threadIdx.x);
    else reinterpret_cast<u16*>(a.y)[threadIdx.x] = u16(threadIdx.x);
    __syncthreads();
    if (threadIdx.x < 16) a.y[threadIdx.x] = 1;
}
WS_FN void ok_atomics(const SmallArgs& a) {
    u32* count = reinterpret_cast<u32*>(a.y);
    ptx::atomic_add(&count[threadIdx.x % 4], 1u);
    ptx::atomic_max(&count[4], threadIdx.x);
    report(count + 8, 5 + threadIdx.x, threadIdx.x);
}
WS_FN void bad_atomic_and_plain(const SmallArgs& a) {
    u32* count = reinterpret_cast<u32*>(a.y);
    ptx::atomic_add(count, 1u);
    if (threadIdx.x == 3) *count = 0;
}
WS_FN void ok_inout(const SmallArgs& a) {
    const u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i < a.n) a.y[i] = a.y[i] + a.x[i % a.n];
}
WS_FN void ok_strides(const SmallArgs& a) {
    const Dims dims = {3, 0, {2, 3, 64, 1, 1, 1, 1, 1}};
    const Strides strides = {{64, 0, 1, 0, 0, 0, 0, 0}};
    const u32 i = blockIdx.x * 64 + threadIdx.x;
    a.y[i] = a.x[offset_of(i, dims, strides)];
}
WS_FN void ok_table(const SmallArgs& a) {
    static constexpr f32 POWERS[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    a.y[threadIdx.x] = POWERS[threadIdx.x % 8] * a.x[threadIdx.x];
}

// One product of x = A [16, 16] and B [k 16, n 8], in three ways: f16 with B turned round by ldmatrix, bf16 with B stored
// [n, k], tf32 straight from the fragment maps. 32 threads, y = three times [16, 8].
template <class T> struct MmaTiles { T a[16 * 16], b[16 * 8], turned[8 * 16]; };
template <class T> WS_FN void fill(MmaTiles<T>& s, const f32* x) {
    for (u32 i = threadIdx.x; i < 256; i += 32) s.a[i] = from_f32<T>(x[i]);
    for (u32 i = threadIdx.x; i < 128; i += 32) {
        s.b[i] = from_f32<T>(x[256 + i]);
        s.turned[i % 8 * 16 + i / 8] = from_f32<T>(x[256 + i]);
    }
    __syncwarp();
}
WS_FN void ok_mma_shapes(const SmallArgs& g) {
    SHARED(MmaTiles<f16>, halves);
    SHARED(MmaTiles<bf16>, brains);
    const u32 lane = threadIdx.x;
    f32 d[3][4] = {};
    u32 a[4], b[2];
    fill(halves, g.x);
    ptx::ldmatrix_x4(a, halves.a + lane % 16 * 16 + lane / 16 * 8);
    ptx::ldmatrix_x2_trans(b, halves.b + lane % 16 * 8);
    ptx::mma_m16n8k16<f16>(d[0], a, b);
    fill(brains, g.x);
    ptx::ldmatrix_x4(a, brains.a + lane % 16 * 16 + lane / 16 * 8);
    ptx::ldmatrix_x2(b, brains.turned + lane % 8 * 16 + lane / 8 % 2 * 8);
    ptx::mma_m16n8k16<bf16>(d[1], a, b);
    for (u32 k = 0; k < 16; k += 8) {
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place p = ptx::mma_tf32_a(lane, i);
            a[i] = ptx::tf32_of_f32(g.x[p.row * 16 + k + p.col]);
        }
        for (u32 i = 0; i < 2; ++i) {
            const ptx::Place p = ptx::mma_tf32_b(lane, i);
            b[i] = ptx::tf32_of_f32(g.x[256 + (k + p.row) * 8 + p.col]);
        }
        ptx::mma_m16n8k8_tf32(d[2], a, b);
    }
    for (u32 w = 0; w < 3; ++w)
        for (u32 i = 0; i < 4; ++i) {
            const ptx::Place p = ptx::mma_c(lane, i);
            g.y[w * 128 + p.row * 8 + p.col] = d[w][i];
        }
}

// ---- for timing ----
WS_FN void ok_idle(const SmallArgs& a) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < a.n) a.y[i] = a.x[i] * 2;
}
WS_FN void ok_switches(const SmallArgs& a) {
    f32 x = 1;
    for (u32 i = 0; i < a.n; ++i) x = __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    a.y[threadIdx.x] = x;
}

#if !WS_GPU
extern const sim::Entry WS_TABLE(small)[] = {
#define ENTRY(name) {#name, sizeof(SmallArgs), [](const void* a) { name(*static_cast<const SmallArgs*>(a)); }},
    SMALL(ENTRY)
    {nullptr, 0, nullptr},
};
#endif
