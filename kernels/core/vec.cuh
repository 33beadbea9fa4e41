// vec.cuh: N neighbours moved at once. Addresses are multiples of the vector's size: the caller sees to that.
#pragma once
#include "platform.cuh"

// N elements aligned as a whole, so that one instruction moves them (16 bytes at most).
template <class T, u32 N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Vec {
    T v[N];
    WS_METHOD T& operator[](u32 i) { return v[i]; }
    WS_METHOD const T& operator[](u32 i) const { return v[i]; }
};

template <u32 N, class T> WS_FN Vec<T, N> load_vec(const T* from) { return *reinterpret_cast<const Vec<T, N>*>(from); }
template <class T, u32 N> WS_FN void store_vec(T* to, const Vec<T, N>& x) { *reinterpret_cast<Vec<T, N>*>(to) = x; }

// What a kernel that only copies moves at once: an element, or 16 bytes whatever the elements are.
template <class T, int WIDE> struct CopyUnit { using Is = T; };
template <class T> struct CopyUnit<T, 1> { using Is = Vec<u32, 4>; };

// How many elements of T a 16-byte access moves.
template <class T> WS_MAP u32 vec_width() { return 16 / sizeof(T); }

WS_MAP u64 ceil_div(u64 a, u64 b) { return (a + b - 1) / b; }
