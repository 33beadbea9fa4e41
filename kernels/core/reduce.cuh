// reduce.cuh: one value over a warp and over a block, in an order fixed by the number of threads alone.
//
// Every thread of the warp (block) takes part and every one gets the result: the butterfly adds the same pairs in each lane, and
// each thread of a block adds the warps' parts in ascending order. So the bits do not depend on which thread uses them.
#pragma once
#include "platform.cuh"

struct Sum { template <class T> WS_FN T apply(T a, T b) { return a + b; } };
// NaN wins over any number, and the first NaN over a second.
struct Max { template <class T> WS_FN T apply(T a, T b) { return a > b || a != a ? a : b; } };
struct Min { template <class T> WS_FN T apply(T a, T b) { return a < b || a != a ? a : b; } };

// A long sum by one thread (Kahan): its error does not grow with the number of terms. Free where memory is what is waited for.
struct LongSum {
    f32 sum = 0.0f, rest = 0.0f;
    WS_METHOD void add(f32 x) {
        const f32 with_rest = x - rest, next = sum + with_rest;
        // An infinite sum has no rest: it would be NaN, and the sum too from the next term on.
        rest = next - next == 0.0f ? (next - sum) - with_rest : 0.0f;
        sum = next;
    }
};

template <class Op, class T> WS_FN T warp_reduce(T x) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) x = Op::apply(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}
template <class T> WS_FN T warp_sum(T x) { return warp_reduce<Sum>(x); }
template <class T> WS_FN T warp_max(T x) { return warp_reduce<Max>(x); }
template <class T> WS_FN T warp_min(T x) { return warp_reduce<Min>(x); }

// Over a block of `THREADS`, a multiple of 32. Ends with a barrier, so that it may be called again at once.
template <class Op, u32 THREADS, class T> WS_FN T block_reduce(T x) {
    static_assert(THREADS % 32 == 0 && THREADS >= 32 && THREADS <= 1024, "whole warps");
    constexpr u32 WARPS = THREADS / 32;
    x = warp_reduce<Op>(x);
    if constexpr (WARPS > 1) {
        using Parts = T[WARPS];
        SHARED(Parts, parts);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
        __syncthreads();   // publishes `parts`
        x = parts[0];
#pragma unroll
        for (u32 w = 1; w < WARPS; ++w) x = Op::apply(x, parts[w]);
        __syncthreads();   // all have read `parts`: it may be written again
    }
    return x;
}
template <u32 THREADS, class T> WS_FN T block_sum(T x) { return block_reduce<Sum, THREADS>(x); }
template <u32 THREADS, class T> WS_FN T block_max(T x) { return block_reduce<Max, THREADS>(x); }
template <u32 THREADS, class T> WS_FN T block_min(T x) { return block_reduce<Min, THREADS>(x); }
