// archs: 80 86 89 90 100 120 ptx80
// primitives.cu: each primitive of the vocabulary by itself, on inputs that reach its corners. The simulator's results are
// recorded (src/device/primitives.rs), and a GPU must give the same bits: this is what ties the simulator to the hardware.
// Sums on tensor cores are exact here (small whole numbers); inexact ones are run too, and only recorded.
#include "core/math.cuh"
#include "core/random.cuh"
#include "core/reduce.cuh"

// Bits without a pattern, the same everywhere.
WS_FN u32 mixed(u32 i) {
    i = (i ^ 61u) ^ (i >> 16);
    i *= 9u;
    i ^= i >> 4;
    i *= 0x27d4eb2du;
    return i ^ (i >> 15);
}

// One NaN for all: which one comes out of arithmetic differs between machines, and nothing may depend on it.
WS_FN u32 one_nan(f32 x) { return ws_is_nan(x) ? 0x7fc00000u : bits_of(x); }

// Shuffles, votes and sums of a warp.
KERNEL(prim_warp, out(u32, y, 384), launch(grid = 1, block = 32, shared = 0)) {
    const u32 lane = threadIdx.x, x = mixed(lane), all = 0xffffffffu;
    const f32 f = f32(i32(x)) * 1e-5f;
    y[lane] = __shfl_xor_sync(all, x, 5);
    y[32 + lane] = __shfl_sync(all, x, 7);
    y[64 + lane] = __shfl_down_sync(all, x, 3);
    y[96 + lane] = __shfl_up_sync(all, x, 3);
    y[128 + lane] = __shfl_xor_sync(all, x, 1, 8);
    y[160 + lane] = __shfl_down_sync(all, x, 2, 8);
    y[192 + lane] = __ballot_sync(all, x & 1u);
    y[224 + lane] = u32(__any_sync(all, lane == 31u));
    y[256 + lane] = u32(__all_sync(all, lane != 31u)) + 2u * u32(__all_sync(all, lane < 32u));
    y[288 + lane] = bits_of(warp_sum(f));
    y[320 + lane] = bits_of(warp_max(f));
    y[352 + lane] = bits_of(warp_min(f));
}

// A sum over a block: its order is part of the contract.
KERNEL(prim_block, out(u32, y, 3), launch(grid = 1, block = 256, shared = 0)) {
    const f32 f = f32(i32(mixed(threadIdx.x))) * 1e-5f;
    const f32 sum = block_sum<256>(f), most = block_max<256>(f), least = block_min<256>(f);
    if (threadIdx.x == 0) {
        y[0] = bits_of(sum);
        y[1] = bits_of(most);
        y[2] = bits_of(least);
    }
}

// Conversions of x, given as bits: corners come from the caller.
KERNEL(prim_convert, in(u32, x, n), out(u32, y, 5 * n), val(u64, n), launch(grid = ceil_div(n, 64), block = 64, shared = 0)) {
    const u64 i = u64(blockIdx.x) * prim_convert_block + threadIdx.x;
    if (i >= n) return;
    const f32 f = f32_of(x[i]);
    y[i] = ptx::f16_of_f32(f);
    y[n + i] = ptx::bf16_of_f32(f);
    y[2 * n + i] = ws_is_nan(f) ? 0x7fc00000u : ptx::tf32_of_f32(f);
    y[3 * n + i] = one_nan(ptx::f32_of_f16(u16(x[i] >> 16)));
    y[4 * n + i] = one_nan(to_f32(bf16{u16(x[i])}));
}

// Arithmetic that must be IEEE's, and the elementary functions.
KERNEL(prim_math, in(f32, x, n), out(u32, y, 12 * n), val(u64, n), launch(grid = ceil_div(n, 64), block = 64, shared = 0)) {
    const u64 i = u64(blockIdx.x) * prim_math_block + threadIdx.x;
    if (i >= n) return;
    const f32 f = x[i], g = x[(i + 1) % n];
    y[i] = one_nan(f / g);
    y[n + i] = one_nan(sqrtf(ws_abs(f)));
    y[2 * n + i] = one_nan(fmaf(f, g, -f));
    y[3 * n + i] = one_nan(f * g + f);
    y[4 * n + i] = one_nan(ws_exp(f));
    y[5 * n + i] = one_nan(ws_log(f));
    y[6 * n + i] = one_nan(ws_tanh(f));
    y[7 * n + i] = one_nan(ws_erf(f));
    y[8 * n + i] = one_nan(ws_sigmoid(f));
    y[9 * n + i] = one_nan(ws_expm1(f));
    y[10 * n + i] = one_nan(ws_log1p(f));
    y[11 * n + i] = one_nan(ws_pow(f, g));
}

// Atomic operations of many threads on few words. Only what no order can change is written.
KERNEL(prim_atomic, inout(u32, y, 4), launch(grid = 4, block = 64, shared = 0)) {
    const u32 i = blockIdx.x * 64u + threadIdx.x;
    ptx::atomic_add(y, ptx::atomic_add(y + 1, 1u));
    ptx::atomic_max(y + 2, mixed(i));
    // Each thread once, in whatever order.
    u32 seen = ptx::atomic_add(y + 3, 0u), next;
    do {
        next = seen;
        seen = ptx::atomic_cas(y + 3, next, next + i);
    } while (seen != next);
}

// Asynchronous copies of 16, 8 and 4 bytes, of which only the first `valid` are read and the rest is zero.
KERNEL(prim_async, in(u32, x, 128), out(u32, y, 224), launch(grid = 1, block = 32, shared = 0)) {
    SHARED(u32[224], to);
    const u32 lane = threadIdx.x;
    ptx::cp_async16(to + 4 * lane, x + 4 * lane, lane % 17u);
    ptx::cp_async_commit();
    ptx::cp_async8(to + 128 + 2 * lane, x + 2 * lane, lane % 9u);
    ptx::cp_async4(to + 192 + lane, x + lane, lane % 5u);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (u32 i = lane; i < 224; i += 32) y[i] = to[i];
}

// Matrices of 8 x 8 out of shared memory, one, two and four, straight and transposed.
KERNEL(prim_ldmatrix, out(u32, y, 448), launch(grid = 1, block = 32, shared = 0)) {
    SHARED(u16[512], tile);                               // 32 rows of 16 elements, 32 bytes apart
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 512; i += 32) tile[i] = u16(mixed(i));
    __syncthreads();
    u32 a[1], b[2], c[4], at = 0;
    const u16* row = tile + 16 * lane + 8 * (lane / 8 % 2);
    ptx::ldmatrix_x1(a, row);
    y[32 * at++ + lane] = a[0];
    ptx::ldmatrix_x2(b, row);
    for (u32 i = 0; i < 2; ++i) y[32 * at++ + lane] = b[i];
    ptx::ldmatrix_x4(c, row);
    for (u32 i = 0; i < 4; ++i) y[32 * at++ + lane] = c[i];
    ptx::ldmatrix_x1_trans(a, row);
    y[32 * at++ + lane] = a[0];
    ptx::ldmatrix_x2_trans(b, row);
    for (u32 i = 0; i < 2; ++i) y[32 * at++ + lane] = b[i];
    ptx::ldmatrix_x4_trans(c, row);
    for (u32 i = 0; i < 4; ++i) y[32 * at++ + lane] = c[i];
}

// D = A B + C of one warp, fragments by the maps. [16, 16] [16, 8]
KERNEL(prim_mma, types(T: bf16, f16), in(T, a, 256), in(T, b, 128), in(f32, c, 128), out(f32, d, 128),
       launch(grid = 1, block = 32, shared = 0)) {
    const u32 lane = threadIdx.x;
    u32 ra[4], rb[2];
    f32 rd[4];
    for (u32 i = 0; i < 4; ++i) {
        const ptx::Place low = ptx::mma_k16_a(lane, 2 * i), high = ptx::mma_k16_a(lane, 2 * i + 1);
        ra[i] = a[low.row * 16 + low.col].bits | u32(a[high.row * 16 + high.col].bits) << 16;
    }
    for (u32 i = 0; i < 2; ++i) {
        const ptx::Place low = ptx::mma_k16_b(lane, 2 * i), high = ptx::mma_k16_b(lane, 2 * i + 1);
        rb[i] = b[low.row * 8 + low.col].bits | u32(b[high.row * 8 + high.col].bits) << 16;
    }
    for (u32 i = 0; i < 4; ++i) rd[i] = c[ptx::mma_c(lane, i).row * 8 + ptx::mma_c(lane, i).col];
    ptx::mma_m16n8k16<T>(rd, ra, rb);
    for (u32 i = 0; i < 4; ++i) d[ptx::mma_c(lane, i).row * 8 + ptx::mma_c(lane, i).col] = rd[i];
}

// The same for tf32: [16, 8] [8, 8].
KERNEL(prim_mma_tf32, in(f32, a, 128), in(f32, b, 64), in(f32, c, 128), out(f32, d, 128),
       launch(grid = 1, block = 32, shared = 0)) {
    const u32 lane = threadIdx.x;
    u32 ra[4], rb[2];
    f32 rd[4];
    for (u32 i = 0; i < 4; ++i) {
        const ptx::Place p = ptx::mma_tf32_a(lane, i), q = ptx::mma_c(lane, i);
        ra[i] = ptx::tf32_of_f32(a[p.row * 8 + p.col]);
        rd[i] = c[q.row * 8 + q.col];
    }
    for (u32 i = 0; i < 2; ++i) rb[i] = ptx::tf32_of_f32(b[ptx::mma_tf32_b(lane, i).row * 8 + ptx::mma_tf32_b(lane, i).col]);
    ptx::mma_m16n8k8_tf32(rd, ra, rb);
    for (u32 i = 0; i < 4; ++i) d[ptx::mma_c(lane, i).row * 8 + ptx::mma_c(lane, i).col] = rd[i];
}

// Named barriers: two warps hand numbers to two others and take what those made of them, each waiting for one side only.
KERNEL(prim_barrier, out(u32, y, 64), launch(grid = 1, block = 128, shared = 0)) {
    SHARED(u32[64], there);
    SHARED(u32[64], back);
    const u32 i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        there[i] = mixed(i);
        ptx::named_barrier_arrive(1, 128);
        ptx::named_barrier_sync(2, 128);
        y[i] = back[63 - i];
    } else {
        ptx::named_barrier_sync(1, 128);
        back[i] = there[63 - i] * 3u;
        ptx::named_barrier_arrive(2, 128);
    }
}

// Random numbers, by counter.
KERNEL(prim_random, out(u32, y, 256), val(u64, seed), launch(grid = 1, block = 64, shared = 0)) {
    const PhiloxBlock block = philox_at(seed, philox_stream(3, 70000), u64(threadIdx.x) << 28);
    for (u32 i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = block.word[i];
}
