// archs: 80 86 89 90 100 120 ptx80
// join.cu: putting tensors into a larger one: cat (a launch for each input) and pad. Only copies: any element type.
#include "core/layout.cuh"
#include "core/vec.cuh"

// x, of any layout, to its place in the contiguous y. `dims` and strides are those of x and of its place; they count
// vectors of 16 bytes if WIDE: both sides then have neighbours in the innermost dimension.
KERNEL(place, types(T: f32, f64, bf16, f16, u8, i32, i64), ints(WIDE: 0, 1), in(T, x, any), out(T, y, any),
       val(Dims, dims), val(Strides, xs), val(Strides, ys), val(u64, n), val(u64, start),
       launch(grid = ceil_div(n, 1024), block = 256, shared = 0)) {
    constexpr u32 N = WIDE ? 16 / sizeof(T) : 1;
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
    Vec<T, N> part[4];
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i < n) part[k] = load_vec<T, N>(x + offset_of(i, dims, xs) * N);
    }
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i < n) store_vec<T, N>(y + start + offset_of(i, dims, ys) * N, part[k]);
    }
}

// y: x where `before <= index < before + inner` in all dimensions, else the value whose bytes `bits` begins with.
KERNEL(pad, types(T: f32, f64, bf16, f16, u8, i32, i64), in(T, x, any), out(T, y, n), val(Dims, dims),
       val(Dims, before), val(Dims, inner), val(Strides, xs), val(u64, n), val(u64, bits),
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
            u64 here;
            // 32-bit division is several times faster.
            if (rest >> 32 | size >> 32) {
                here = rest % size;
                rest /= size;
            } else {
                here = u32(rest) % u32(size);
                rest = u32(rest) / u32(size);
            }
            // Before the inner part wraps to something huge.
            const u64 in = here - before.size[d];
            inside = inside && in < inner.size[d];
            at += i64(in) * xs.by[d];
        }
        y[i] = inside ? x[at] : value;
    }
}
