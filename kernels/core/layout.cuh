// layout.cuh: from an element's number to its place in a strided view.
#pragma once
#include "platform.cuh"

// The offset, in elements, of element `linear` (row-major over `dims`) of a view with these strides. Divides in 32 bits while
// the number fits: a 64-bit division is some 70 instructions on a GPU.
WS_FN i64 offset_of(u64 linear, const Dims& dims, const Strides& strides) {
    i64 at = 0;
    i32 d = i32(dims.rank) - 1;
    for (; d > 0 && linear > 0xFFFFFFFFu; --d) {
        const u64 size = dims.size[d], rest = linear / size;
        at += i64(linear - rest * size) * strides.by[d];
        linear = rest;
    }
    if (d <= 0) return d < 0 ? at : at + i64(linear) * strides.by[0];
    u32 left = u32(linear);
    for (; d > 0; --d) {
        // A size above 2^32 leaves nothing to divide: all of `left` lies in this dimension.
        if (dims.size[d] > 0xFFFFFFFFu) return at + i64(left) * strides.by[d];
        const u32 size = u32(dims.size[d]), rest = left / size;
        at += i64(left - rest * size) * strides.by[d];
        left = rest;
    }
    return at + i64(left) * strides.by[0];
}
