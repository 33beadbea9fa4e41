// rows.cuh: rows of a contiguous matrix in pieces of 16 bytes, for kernels that give a warp or a block to each row.
//
// A piece starts at a multiple of its width; its elements belong to one thread whether they are moved at once or one by one, so
// the bits of a result do not depend on how the memory is aligned.
#pragma once
#include "vec.cuh"

// Elements `first` to `first + V` of a row of `n`, widened; `fill` beyond its end. `vector`: rows start on 16 bytes and `n` is a
// multiple of V.
template <class T, u32 V> WS_FN void load_piece(f32 (&v)[V], const T* row, u32 first, u32 n, bool vector, f32 fill) {
    if (vector && first < n) {
        const Vec<T, V> piece = load_vec<V>(row + first);
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[j] = to_f32(piece[j]);
    } else {
#pragma unroll
        for (u32 j = 0; j < V; ++j) v[j] = first + j < n ? to_f32(row[first + j]) : fill;
    }
}

// Writes a piece, or adds it in f32, and rounds once.
template <class T, u32 V> WS_FN void store_piece(T* row, const f32 (&v)[V], u32 first, u32 n, bool vector, bool add) {
    if (vector) {
        if (first >= n) return;
        Vec<T, V> piece;
        if (add) piece = load_vec<V>(row + first);
#pragma unroll
        for (u32 j = 0; j < V; ++j) piece[j] = from_f32<T>(add ? to_f32(piece[j]) + v[j] : v[j]);
        store_vec(row + first, piece);
    } else {
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if (first + j < n) row[first + j] = from_f32<T>(add ? to_f32(row[first + j]) + v[j] : v[j]);
    }
}
