// archs: 80 86 89 90 100 120 ptx80
// join.cu: putting tensors into a larger one: cat (a launch for each input) and pad. Copies only, so the types are size
// classes: the caller passes elements of 1, 2, 4 or 8 bytes as u8, f16, i32 or i64.
#include "core/layout.cuh"
#include "core/vec.cuh"

// x, of any layout, to its place in y. `dims`, the strides and `n` count vectors of 16 bytes if WIDE: both sides then have
// neighbours in the innermost dimension.
KERNEL(place, types(T: u8, f16, i32, i64), ints(WIDE: 0, 1), in(T, x, any), out(T, y, any), val(Dims, dims),
       val(Strides, xs), val(Strides, ys), val(u64, n), launch(grid = ceil_div(n, 1024), block = 256, shared = 0)) {
    using Unit = typename CopyUnit<T, WIDE>::Is;
    const Unit* const from = reinterpret_cast<const Unit*>(x);
    Unit* const to = reinterpret_cast<Unit*>(y);
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
    Unit part[4];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i < n) part[k] = from[offset_of(i, dims, xs)];
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i < n) to[offset_of(i, dims, ys)] = part[k];
    }
}

// y, of sizes `dims`: x where `before <= index < before + inner` in all dimensions, else the value whose bytes `bits`
// begins with.
KERNEL(pad, types(T: u8, f16, i32, i64), in(T, x, any), out(T, y, n), val(Dims, dims), val(Dims, before),
       val(Dims, inner), val(Strides, xs), val(u64, n), val(u64, bits),
       launch(grid = ceil_div(n, 1024), block = 256, shared = 0)) {
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = u64(blockIdx.x) * 1024 + k * 256 + threadIdx.x;
        if (i >= n) return;
        u64 rest = i;
        i64 at = 0;
        bool inside = true;
        for (u32 d = dims.rank; d-- > 0;) {
            const u64 size = dims.size[d];
            u64 next;
            // Division in 32 bits is several times faster.
            if (rest >> 32 | size >> 32)
                next = rest / size;
            else
                next = u32(rest) / u32(size);
            // In front of x this wraps to something huge.
            const u64 index = rest - next * size - before.size[d];
            inside = inside && index < inner.size[d];
            at += i64(index) * xs.by[d];
            rest = next;
        }
        y[i] = inside ? x[at] : value;
    }
}
