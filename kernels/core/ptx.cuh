// ptx.cuh: every instruction that CUDA C++ has no name for, and the only file with `asm`.
//
// A primitive has one name and two bodies: PTX for the GPU, a call into the simulator on the host. Hazards stand with the
// declaration here; what the simulator checks of them stands in kernels/sim. On the host the last parameter, never written by a
// kernel, is the caller's line. Fragment maps come first: they are plain functions, used by kernels, epilogues and simulator.
#pragma once
#include "platform.cuh"

namespace ptx {

struct Place { u32 row, col; };

// mma.m16n8k16, 16-bit operands. Element i of a lane's registers, low half first: eight of A [16, 16], four of B [k 16, n 8],
// four of C and D [16, 8].
WS_MAP Place mma_k16_a(u32 lane, u32 i) { return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8}; }
WS_MAP Place mma_k16_b(u32 lane, u32 i) { return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4}; }
WS_MAP Place mma_c(u32 lane, u32 i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }
// mma.m16n8k8, tf32 operands: four registers of A [16, 8], two of B [k 8, n 8]; C and D as above.
WS_MAP Place mma_tf32_a(u32 lane, u32 i) { return {lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4}; }
WS_MAP Place mma_tf32_b(u32 lane, u32 i) { return {lane % 4 + i * 4, lane / 4}; }
// ldmatrix: half i (of two) of the register that a lane gets of an 8 x 8 matrix of 16-bit elements.
WS_MAP Place ldmatrix_element(u32 lane, u32 i) { return {lane / 4, lane % 4 * 2 + i}; }
// wgmma: accumulator i of a thread of the warpgroup (0..127).
WS_MAP Place wgmma_d(u32 thread, u32 i) {
    return {thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// The byte that holds byte `address` of a tile under a swizzle of `span` bytes (32, 64, 128; 0 for none): 16-byte chunks are
// exchanged by the number of their 128-byte line. The pattern repeats every 8 * span bytes, and tiles start on that.
WS_MAP u32 swizzled(u32 address, u32 span) { return span ? address ^ (address >> 3 & (span - 16)) : address; }

// One finite f16 exactly; and f32 rounded to nearest even.
WS_MAP u32 f16_widen(u32 h) {
    const u32 sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3FFu;
    if (exponent == 31) return sign | 0x7F800000u | fraction << 13;
    if (exponent != 0) return sign | (exponent + 112) << 23 | fraction << 13;
    if (fraction == 0) return sign;
    u32 f = fraction, e = 113;                       // subnormal: shift the leading one into place
    while (!(f & 0x400u)) { f <<= 1; --e; }
    return sign | e << 23 | (f & 0x3FFu) << 13;
}
WS_MAP u16 f16_round(u32 u) {
    const u32 sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return 0x7FFFu;                                            // NaN, as the hardware has it
    if (a >= 0x477FF000u) return u16(sign | 0x7C00u);                               // 65520 and above, infinity
    if (a >= 0x38800000u) return u16(sign | (a - 0x38000000u + 0xFFFu + (a >> 13 & 1u)) >> 13);
    if (a < 0x33000000u) return u16(sign);                                          // below half of the least subnormal
    const u32 shift = 126 - (a >> 23), m = (a & 0x7FFFFFu) | 0x800000u;             // 14 to 24: m * 2^-shift, rounded
    const u32 half = 1u << (shift - 1);
    return u16(sign | (m + half - 1 + (m >> shift & 1u)) >> shift);
}
WS_MAP u16 bf16_round(u32 u) {
    return (u & 0x7FFFFFFFu) > 0x7F800000u ? u16(0x7FFFu) : u16((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

#if WS_GPU

WS_FN f32 f32_of_f16(u16 h) { f32 x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h)); return x; }
WS_FN u16 f16_of_f32(f32 x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
WS_FN u16 bf16_of_f32(f32 x) {
#if __CUDA_ARCH__ >= 900
    u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h;
#else
    return bf16_round(bits_of(x));
#endif
}

// A shared pointer as the 32-bit address that instructions take.
WS_FN u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// Atomics, relaxed: they order no other memory. Return the old value.
#define WS_ATOMIC(name, op, type, reg)                                                                               \
    WS_FN type name(type* p, type x) {                                                                               \
        type old; asm volatile("atom." op " %0, [%1], %2;" : "=" reg(old) : "l"(p), reg(x) : "memory"); return old; \
    }
WS_ATOMIC(atomic_add, "add.u32", u32, "r")
WS_ATOMIC(atomic_add, "add.s32", i32, "r")
WS_ATOMIC(atomic_add, "add.u64", u64, "l")
WS_ATOMIC(atomic_max, "max.u32", u32, "r")
WS_ATOMIC(atomic_max, "max.s32", i32, "r")
WS_ATOMIC(atomic_max, "max.u64", u64, "l")
WS_ATOMIC(atomic_min, "min.u32", u32, "r")
WS_ATOMIC(atomic_min, "min.s32", i32, "r")
WS_ATOMIC(atomic_min, "min.u64", u64, "l")
WS_ATOMIC(atomic_exchange, "exch.b32", u32, "r")
WS_ATOMIC(atomic_exchange, "exch.b64", u64, "l")
#undef WS_ATOMIC
WS_FN u32 atomic_cas(u32* p, u32 expected, u32 x) {
    u32 old; asm volatile("atom.cas.b32 %0, [%1], %2, %3;" : "=r"(old) : "l"(p), "r"(expected), "r"(x) : "memory"); return old;
}
WS_FN u64 atomic_cas(u64* p, u64 expected, u64 x) {
    u64 old; asm volatile("atom.cas.b64 %0, [%1], %2, %3;" : "=l"(old) : "l"(p), "l"(expected), "l"(x) : "memory"); return old;
}

// Sixteen bytes at once; both addresses multiples of 16.
struct alignas(16) Quad { u32 w[4]; };
WS_FN Quad load16(const void* p) { return *static_cast<const Quad*>(p); }
WS_FN void store16(void* p, Quad x) { *static_cast<Quad*>(p) = x; }

// Asynchronous copy from global to shared memory: the first `valid` bytes, the rest of the 4, 8 or 16 is zero. Both addresses
// are multiples of the size. Visible to the thread that has waited for its group; to others after a barrier behind that.
WS_FN void cp_async4(void* to, const void* from, u32 valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(shared_address(to)), "l"(from), "r"(valid) : "memory");
}
WS_FN void cp_async8(void* to, const void* from, u32 valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" :: "r"(shared_address(to)), "l"(from), "r"(valid) : "memory");
}
WS_FN void cp_async16(void* to, const void* from, u32 valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(to)), "l"(from), "r"(valid) : "memory");
}
WS_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the newest N groups of this thread are unfinished.
template <u32 N> WS_FN void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// 8 x 8 matrices of 16-bit elements from shared memory; lanes 8 j to 8 j + 7 give the row addresses of matrix j, multiples of
// 16. All lanes of the warp take part. `_trans` hands out the transposes.
WS_FN void ldmatrix_x1(u32 (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}
WS_FN void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
        : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
WS_FN void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
WS_FN void ldmatrix_x1_trans(u32 (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
        : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}
WS_FN void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
        : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
WS_FN void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// D += A B on the tensor cores of one warp, all lanes of it, fragments as in the maps above. T is bf16 or f16.
template <class T> struct MmaOf;
#define WS_MMA(T, name)                                                                                    \
    template <> struct MmaOf<T> {                                                                          \
        WS_FN void apply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {                              \
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                            \
                ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                       \
        }                                                                                                  \
    };
WS_MMA(bf16, "bf16")
WS_MMA(f16, "f16")
#undef WS_MMA
template <class T> WS_FN void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { MmaOf<T>::apply(d, a, b); }
// The same for tf32: registers hold f32 bits rounded by tf32_of_f32.
WS_FN void mma_m16n8k8_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// To the nearest of 10 fraction bits, ties away from zero.
WS_FN u32 tf32_of_f32(f32 x) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x)); return r; }

// Barrier 1..15 among `threads` threads of the block (a multiple of 32), whole warps. `arrive` does not wait.
WS_FN void named_barrier_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
WS_FN void named_barrier_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

[[noreturn]] WS_FN void trap() { asm volatile("trap;"); __builtin_unreachable(); }

// Hopper. mbarriers and tensor-map copies work on sm_90 and later, wgmma and setmaxnreg on sm_90a only: a kernel that uses the
// latter is declared with arch(sm_90a), so that on other architectures it is absent, not empty.

// An mbarrier is eight bytes of shared memory, 8-aligned. One thread initialises it, then `mbarrier_fence_init`, then a barrier
// of the block before others use it.
WS_FN void mbarrier_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(bar)), "r"(count) : "memory");
}
WS_FN void mbarrier_inval(u64* bar) { asm volatile("mbarrier.inval.shared::cta.b64 [%0];" :: "r"(shared_address(bar)) : "memory"); }
WS_FN void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
WS_FN void mbarrier_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(bar)) : "memory");
}
// Adds to the bytes that the current phase waits for, then arrives; the second form does not arrive.
WS_FN void mbarrier_arrive_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(bar)), "r"(bytes) : "memory");
}
WS_FN void mbarrier_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" :: "r"(shared_address(bar)), "r"(bytes) : "memory");
}
// Waits until the phase of this parity is complete: the current one or the one before it.
WS_FN void mbarrier_wait(u64* bar, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done) : "r"(shared_address(bar)), "r"(parity) : "memory");
    } while (!done);
}

// The box of `map` at (x, y), innermost coordinate first, into shared memory (128-aligned; 1024 under a swizzle of 128). What
// lies outside the matrix is zero. Its bytes are counted on `bar`, all of them, also where the box is clipped.
WS_FN void tma_load_2d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        :: "r"(shared_address(to)), "l"(u64(map)), "r"(shared_address(bar)), "r"(x), "r"(y) : "memory");
}

// After ordinary writes to shared memory that TMA or wgmma will read: by each writer, before the barrier.
WS_FN void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// D += A B of a warpgroup, operands in shared memory by descriptor. `wgmma_fence` before the first one and whenever the
// accumulator was touched; accumulators are untouchable from issue until a wait has retired their group.
WS_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
WS_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <u32 N> WS_FN void wgmma_wait() {
    static_assert(N <= 7, "ptxas clamps a larger count");
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}
WS_FN void wgmma_m64n64k16(f32 (&d)[32], u64 a, u64 b) {
#define WS_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
        : WS_R4(0), WS_R4(4), WS_R4(8), WS_R4(12), WS_R4(16), WS_R4(20), WS_R4(24), WS_R4(28) : "l"(a), "l"(b));
#undef WS_R4
}

// Registers of each thread of the warpgroup from here on: a multiple of 8 from 24 to 256, by all its four warps.
template <u32 N> WS_FN void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <u32 N> WS_FN void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }

// Waits for the launches before this one, where it was started early; and lets the next one start.
WS_FN void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
WS_FN void griddepcontrol_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

#else  // the host

WS_FN f32 f32_of_f16(u16 h) { return f32_of(f16_widen(h)); }
WS_FN u16 f16_of_f32(f32 x) { return f16_round(bits_of(x)); }
WS_FN u16 bf16_of_f32(f32 x) { return bf16_round(bits_of(x)); }

WS_FN u32 shared_address(const void* p, SimSite at = SIM_HERE) { return ::sim::shared_address(p, at); }

#define WS_ATOMIC(name, op, type)                                                                              \
    WS_FN type name(type* p, type x, SimSite at = SIM_HERE) {                                                  \
        return type(::sim::atomic(::sim::Atomic::op, p, sizeof(type), u64(x), 0, at));                         \
    }
WS_ATOMIC(atomic_add, Add, u32)
WS_ATOMIC(atomic_add, Add, i32)
WS_ATOMIC(atomic_add, Add, u64)
WS_ATOMIC(atomic_max, Max, u32)
WS_ATOMIC(atomic_max, MaxSigned, i32)
WS_ATOMIC(atomic_max, Max, u64)
WS_ATOMIC(atomic_min, Min, u32)
WS_ATOMIC(atomic_min, MinSigned, i32)
WS_ATOMIC(atomic_min, Min, u64)
WS_ATOMIC(atomic_exchange, Exchange, u32)
WS_ATOMIC(atomic_exchange, Exchange, u64)
#undef WS_ATOMIC
WS_FN u32 atomic_cas(u32* p, u32 expected, u32 x, SimSite at = SIM_HERE) {
    return u32(::sim::atomic(::sim::Atomic::CompareSwap, p, 4, x, expected, at));
}
WS_FN u64 atomic_cas(u64* p, u64 expected, u64 x, SimSite at = SIM_HERE) {
    return ::sim::atomic(::sim::Atomic::CompareSwap, p, 8, x, expected, at);
}

struct alignas(16) Quad { u32 w[4]; };
WS_FN Quad load16(const void* p) { return *static_cast<const Quad*>(p); }
WS_FN void store16(void* p, Quad x) { *static_cast<Quad*>(p) = x; }

WS_FN void cp_async4(void* to, const void* from, u32 valid, SimSite at = SIM_HERE) { ::sim::cp_async(to, from, 4, valid, at); }
WS_FN void cp_async8(void* to, const void* from, u32 valid, SimSite at = SIM_HERE) { ::sim::cp_async(to, from, 8, valid, at); }
WS_FN void cp_async16(void* to, const void* from, u32 valid, SimSite at = SIM_HERE) { ::sim::cp_async(to, from, 16, valid, at); }
WS_FN void cp_async_commit(SimSite at = SIM_HERE) { ::sim::cp_async_commit(at); }
template <u32 N> WS_FN void cp_async_wait(SimSite at = SIM_HERE) { ::sim::cp_async_wait(N, at); }

WS_FN void ldmatrix_x1(u32 (&r)[1], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 1, false, at); }
WS_FN void ldmatrix_x2(u32 (&r)[2], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 2, false, at); }
WS_FN void ldmatrix_x4(u32 (&r)[4], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 4, false, at); }
WS_FN void ldmatrix_x1_trans(u32 (&r)[1], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 1, true, at); }
WS_FN void ldmatrix_x2_trans(u32 (&r)[2], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 2, true, at); }
WS_FN void ldmatrix_x4_trans(u32 (&r)[4], const void* row, SimSite at = SIM_HERE) { ::sim::ldmatrix(r, row, 4, true, at); }

template <class T> struct MmaOf;
template <> struct MmaOf<bf16> { static constexpr ::sim::Mma SHAPE = ::sim::Mma::M16N8K16_BF16; };
template <> struct MmaOf<f16> { static constexpr ::sim::Mma SHAPE = ::sim::Mma::M16N8K16_F16; };
template <class T> WS_FN void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SimSite at = SIM_HERE) {
    ::sim::mma(MmaOf<T>::SHAPE, d, a, b, at);
}
WS_FN void mma_m16n8k8_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SimSite at = SIM_HERE) {
    ::sim::mma(::sim::Mma::M16N8K8_TF32, d, a, b, at);
}
WS_FN u32 tf32_of_f32(f32 x) {
    const u32 u = bits_of(x);
    return (u & 0x7F800000u) == 0x7F800000u ? ((u & 0x7FFFFFu) ? 0x7FFFFFFFu : u) : (u + 0x1000u) & 0xFFFFE000u;
}

WS_FN void named_barrier_sync(u32 id, u32 threads, SimSite at = SIM_HERE) { ::sim::barrier_named(id, threads, true, at); }
WS_FN void named_barrier_arrive(u32 id, u32 threads, SimSite at = SIM_HERE) { ::sim::barrier_named(id, threads, false, at); }

[[noreturn]] WS_FN void trap(SimSite at = SIM_HERE) { ::sim::trap(at); }

WS_FN void mbarrier_init(u64* bar, u32 count, SimSite at = SIM_HERE) { ::sim::mbarrier_init(bar, count, at); }
WS_FN void mbarrier_inval(u64* bar, SimSite at = SIM_HERE) { ::sim::mbarrier_inval(bar, at); }
WS_FN void mbarrier_fence_init() { ::sim::mbarrier_fence_init(); }
WS_FN void mbarrier_arrive(u64* bar, SimSite at = SIM_HERE) { ::sim::mbarrier_arrive(bar, at); }
WS_FN void mbarrier_arrive_expect(u64* bar, u32 bytes, SimSite at = SIM_HERE) { ::sim::mbarrier_expect(bar, bytes, true, at); }
WS_FN void mbarrier_expect(u64* bar, u32 bytes, SimSite at = SIM_HERE) { ::sim::mbarrier_expect(bar, bytes, false, at); }
WS_FN void mbarrier_wait(u64* bar, u32 parity, SimSite at = SIM_HERE) { ::sim::mbarrier_wait(bar, parity, at); }
WS_FN void tma_load_2d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y, SimSite at = SIM_HERE) {
    ::sim::tma_load_2d(to, map, bar, x, y, at);
}
WS_FN void fence_proxy_async() { ::sim::fence_proxy_async(); }
WS_FN void wgmma_fence(SimSite at = SIM_HERE) { ::sim::wgmma_fence(at); }
WS_FN void wgmma_commit(SimSite at = SIM_HERE) { ::sim::wgmma_commit(at); }
template <u32 N> WS_FN void wgmma_wait(SimSite at = SIM_HERE) {
    static_assert(N <= 7, "ptxas clamps a larger count");
    ::sim::wgmma_wait(N, at);
}
WS_FN void wgmma_m64n64k16(f32 (&d)[32], u64 a, u64 b, SimSite at = SIM_HERE) { ::sim::wgmma_m64n64k16(d, a, b, at); }
template <u32 N> WS_FN void setmaxnreg_inc(SimSite at = SIM_HERE) { ::sim::setmaxnreg(N, true, at); }
template <u32 N> WS_FN void setmaxnreg_dec(SimSite at = SIM_HERE) { ::sim::setmaxnreg(N, false, at); }
// Launches of the simulator never overlap.
WS_FN void griddepcontrol_wait() {}
WS_FN void griddepcontrol_launch() {}

#endif

// The descriptor of a K-major operand tile of 16-bit elements under a swizzle of 128 bytes: rows of 128 bytes, groups of eight
// rows 1024 apart. `tile` plus 32 bytes a step of k 16 stays inside the pattern; the pattern itself starts on 1024.
WS_MAP u64 wgmma_descriptor_128(u32 address) {
    return u64(address >> 4 & 0x3FFFu) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}
}  // namespace ptx
