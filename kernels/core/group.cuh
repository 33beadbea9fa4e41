// group.cuh: one value over a group of neighbouring threads, whose size is known at run time: a power of two, up to the block.
//
// What is joined may be any plain struct, such as a maximum with a sum of exponentials. A functor has the type `State`, its
// neutral element `none()` and `join(a, b)`, where `a` comes first; the order depends on the size of the group alone, and all
// threads of a group get the same bits. (Fixed sizes and plain numbers: reduce.cuh.)
#pragma once
#include "platform.cuh"

constexpr u32 ALL_LANES = 0xFFFFFFFFu;

// The value of the lane whose number differs in `bit`.
template <class S> WS_FN S exchange(const S& s, u32 bit) {
    static_assert(sizeof(S) % 4 == 0, "whole words");
    u32 words[sizeof(S) / 4];
    __builtin_memcpy(words, &s, sizeof(S));
#pragma unroll
    for (u32 k = 0; k < sizeof(S) / 4; ++k) words[k] = __shfl_xor_sync(ALL_LANES, words[k], bit);
    S other;
    __builtin_memcpy(&other, words, sizeof(S));
    return other;
}

// Joins over `lanes` threads. All threads of the block take part, with one `lanes`; `parts` holds one value a warp, in shared
// memory, and is free again at the next call.
template <class F> WS_FN typename F::State join_group(typename F::State s, u32 lanes, typename F::State* parts) {
    const u32 within = lanes < 32 ? lanes : 32;
    for (u32 bit = 1; bit < within; bit *= 2) {
        const typename F::State other = exchange(s, bit);
        s = threadIdx.x & bit ? F::join(other, s) : F::join(s, other);
    }
    if (lanes > 32) {
        __syncthreads();   // all have read what the call before left in `parts`
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
        __syncthreads();   // publishes `parts`
        const u32 warps = lanes / 32, first = threadIdx.x / lanes * warps;
        s = parts[first];
        for (u32 w = 1; w < warps; ++w) s = F::join(s, parts[first + w]);
    }
    return s;
}

// Joins the values of neighbours in pairs, then of pairs, and so on: a short chain for each of many elements.
template <class F, u32 N> WS_FN typename F::State join_tree(typename F::State (&s)[N]) {
#pragma unroll
    for (u32 step = 1; step < N; step *= 2) {
#pragma unroll
        for (u32 i = 0; i + step < N; i += 2 * step) s[i] = F::join(s[i], s[i + step]);
    }
    return s[0];
}

// The larger, the first of two equal ones; NaN is larger than all.
WS_FN f32 larger(f32 a, f32 b) { return b > a || b != b ? b : a; }
WS_FN f32 smaller(f32 a, f32 b) { return b < a || b != b ? b : a; }

// Σ x of f32.
struct GroupSum {
    using State = f32;
    WS_FN f32 none() { return 0.0f; }
    WS_FN f32 join(f32 a, f32 b) { return a + b; }
};
// The largest f32; NaN if there is one.
struct GroupMax {
    using State = f32;
    WS_FN f32 none() { return f32_of(0xFF800000u); }
    WS_FN f32 join(f32 a, f32 b) { return larger(a, b); }
};
