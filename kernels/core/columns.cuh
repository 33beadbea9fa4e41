// columns.cuh: groups of elements that a thread reads and writes together, next to each other or a step apart.
#pragma once
#include "vec.cuh"

// Elements that a thread loads together: number k of them is `step` elements behind the one before, or if `flat` next to it
// (all addresses on 16 bytes, `here` a multiple of a vector).
constexpr u32 GROUP = 8;

template <class T> WS_FN void load_columns(f32 (&v)[GROUP], const T* from, u64 step, u32 here, u32 flat) {
    constexpr u32 N = 16 / sizeof(T);
    if (flat) {
#pragma unroll
        for (u32 k = 0; k < GROUP; k += N)
            if (k < here) {
                const Vec<T, N> part = load_vec<N>(from + k);
#pragma unroll
                for (u32 j = 0; j < N; ++j) v[k + j] = to_f32(part[j]);
            }
    } else {
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k)
            if (k < here) v[k] = to_f32(from[k * step]);
    }
}

// Stores d there, or adds it to what is there.
template <class T>
WS_FN void put_columns(T* to, u64 step, u32 here, u32 flat, const f32 (&d)[GROUP], u32 add) {
    constexpr u32 N = 16 / sizeof(T);
    if (flat) {
#pragma unroll
        for (u32 k = 0; k < GROUP; k += N)
            if (k < here) {
                Vec<T, N> part;
                if (add) part = load_vec<N>(to + k);
#pragma unroll
                for (u32 j = 0; j < N; ++j) part[j] = from_f32<T>(add ? to_f32(part[j]) + d[k + j] : d[k + j]);
                store_vec(to + k, part);
            }
    } else {
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k)
            if (k < here) to[k * step] = from_f32<T>(add ? to_f32(to[k * step]) + d[k] : d[k]);
    }
}
