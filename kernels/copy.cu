// archs: 80 90 100 120 ptx80
// copy.cu: elements moved between layouts and types, overwriting or adding, and memory filled with one value.
//
// Limited by memory: one read, one write. Where the sides disagree on which dimension is contiguous, tiles go through
// shared memory, so that both are read and written by rows; else see core/each.cuh.
#include "core/each.cuh"

// A sum of moved elements: rounded once; integers saturate, as they do on the CPU.
struct MovedSum { template <class T> WS_FN T apply(T old, Work<T> value) { return moved_sum<T>(narrow<T>(value), old); } };

// Wide vectors hold 16 bytes of the larger type.
template <class S, class T> WS_MAP u32 copy_vector(u32 wide) { return wide ? 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T)) : 1; }

// y = x, cast, or y += x if `add`: each side of any layout; y_by names no element twice.
KERNEL(copy_elements, types(S: f32, f64, bf16, f16, u8, i32, i64), types(T: f32, f64, bf16, f16, u8, i32, i64),
       ints(WIDE: 0, 1), in(S, x, any), inout(T, y, any), val(Dims, dims), val(Strides, x_by), val(Strides, y_by),
       val(u64, n), val(u32, add), launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<copy_vector<S, T>(WIDE), true, MovedSum>(
        dims, n, Operand<S>{x, x_by}, Operand<S>{nullptr, x_by}, Operand<S>{nullptr, y_by}, y, add,
        [&](Work<S> v, Work<S>, Work<S>) { return widen(convert<T>(narrow<S>(v))); });
}

constexpr u32 TILE = 64;

// y[.., r, c] = x[.., r, c], or += that if `add`, where x is contiguous along r and y along c; `batch` are the other
// dimensions. A block moves a tile of 64 by 64 through shared memory, whose rows are padded by one 4-byte bank, so that
// both its rows and its columns are free of conflicts.
KERNEL(transpose, types(T: f32, f64, bf16, f16, u8, i32, i64), in(T, x, any), inout(T, y, any), val(u32, rows),
       val(u32, cols), val(i64, x_col), val(i64, y_row), val(Dims, batch), val(Strides, x_by), val(Strides, y_by),
       val(u64, count), val(u32, add),
       launch(grid = ceil_div(rows, 64) * ceil_div(cols, 64) * count, block = 256, shared = 0)) {
    struct Tile { T at[TILE][TILE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)]; };
    SHARED(Tile, tile);
    const u32 tiles = (cols + TILE - 1) / TILE, down = (rows + TILE - 1) / TILE;
    const u32 matrix = blockIdx.x / (tiles * down), place = blockIdx.x % (tiles * down);
    const u32 r0 = place / tiles * TILE, c0 = place % tiles * TILE;
    const Places p = places(matrix, batch, x_by, y_by, y_by);
    const u32 fast = threadIdx.x % TILE, slow = threadIdx.x / TILE;
#pragma unroll
    for (u32 k = 0; k < TILE; k += 256 / TILE) {
        const u32 r = r0 + fast, c = c0 + k + slow;
        if (r < rows && c < cols) tile.at[fast][k + slow] = x[p.a + r + i64(c) * x_col];
    }
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < TILE; k += 256 / TILE) {
        const u32 r = r0 + k + slow, c = c0 + fast;
        if (r < rows && c < cols) {
            T& to = y[p.b + i64(r) * y_row + c];
            const T value = tile.at[k + slow][fast];
            to = add ? moved_sum<T>(value, to) : value;
        }
    }
}

// y = the value whose bits stand in the low bytes of `bits`.
KERNEL(fill, types(T: f32, f64, bf16, f16, u8, i32, i64), ints(WIDE: 0, 1), out(T, y, n), val(u64, n), val(u64, bits),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    constexpr u32 V = each_vector<T>(WIDE);
    Vec<T, V> value;
    for (u32 j = 0; j < V; ++j) __builtin_memcpy(&value[j], &bits, sizeof(T));
    u64 at = u64(blockIdx.x) * EACH_SPAN + threadIdx.x * V;
    for (u32 k = 0; k < EACH_SPAN / EACH_THREADS / V; ++k, at += EACH_THREADS * V) {
        if (at + V <= n) store_vec(y + at, value);
        else
            for (u64 i = at; i < n; ++i) y[i] = value[0];
    }
}
