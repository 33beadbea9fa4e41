// archs: 80 86 89 90 100 120 ptx80
// scan.cu: running sums along the middle dimension of a contiguous [outer, n, inner].
//
// Along the last dimension (inner = 1) a warp takes a row of up to 256 elements; longer rows are cut into pieces of 1,024, a
// block each. Along others a thread walks down a column, or a piece of one where there are few. Of several pieces the totals
// come first, their running sums by the same kernels, and then each piece starts from what is before it. Sums are f32 (integers:
// 64 bits, wrapping) in an order fixed by the shape. `reverse` counts elements and pieces from the end.
#include "core/reduce.cuh"
#include "core/vec.cuh"

// What elements of T are added up in: f32, or unsigned for integers, whose sums wrap.
template <class T> struct SumOf { using Is = f32; };
template <> struct SumOf<u8> { using Is = u64; };
template <> struct SumOf<i32> { using Is = u64; };
template <> struct SumOf<i64> { using Is = u64; };
template <class T> using Total = typename SumOf<T>::Is;

WS_FN f32 widen(f32 x) { return x; }
WS_FN f32 widen(bf16 x) { return to_f32(x); }
WS_FN f32 widen(f16 x) { return to_f32(x); }
WS_FN u64 widen(u8 x) { return x; }
WS_FN u64 widen(i32 x) { return u64(i64(x)); }
WS_FN u64 widen(i64 x) { return u64(x); }

template <class O> struct Put { WS_FN O apply(f32 v) { return from_f32<O>(v); } };
template <> struct Put<i64> { WS_FN i64 apply(u64 v) { return i64(v); } };
template <class O, class A> WS_FN void put(O* y, A v, bool add) { *y = Put<O>::apply(add ? widen(*y) + v : v); }

// The sum of the lanes up to this one.
template <class A> WS_FN A warp_prefix(A v) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const A other = __shfl_up_sync(0xFFFFFFFFu, v, step);
        if (lane >= step) v = other + v;
    }
    return v;
}

template <class T, class O> WS_FN void short_row(const T* x, O* y, u64 rows, u32 n, bool reverse, bool add) {
    using A = Total<T>;
    const u64 row = u64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;   // a whole warp; no barrier of the block follows
    const u32 lane = threadIdx.x % 32;
    A carry = 0;
    for (u32 first = 0; first < n; first += 32) {
        const u32 i = first + lane;
        const u64 at = row * n + (reverse ? n - 1 - i : i);
        A v = 0;
        if (i < n) v = widen(x[at]);
        v = warp_prefix(v);
        if (i < n) put(y + at, A(carry + v), add);
        carry += __shfl_sync(0xFFFFFFFFu, v, 31);
    }
}

// Elements of a row that one block adds up: four a thread.
constexpr u32 PIECE = 1024;

// The running sums of a thread's four elements within the block's piece. Beyond the row's end there are zeros.
template <class T> WS_FN void piece_sums(Total<T> (&v)[4], const T* row, u64 first, u64 n, bool reverse, bool vector) {
    using A = Total<T>;
    using Parts = A[8];
    SHARED(Parts, parts);
    const u64 i = first + threadIdx.x * 4;
    if (vector && i < n) {
        // Four neighbours, turned round where the order is.
        const Vec<T, 4> piece = load_vec<4>(row + (reverse ? n - 4 - i : i));
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            // Chosen, not indexed: an index that depends on `reverse` would put the piece into local memory.
            const Total<T> forward = widen(piece[j]), backward = widen(piece[3 - j]);
            v[j] = reverse ? backward : forward;
        }
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            v[j] = 0;
            if (i + j < n) v[j] = widen(row[reverse ? n - 1 - (i + j) : i + j]);
        }
    }
#pragma unroll
    for (u32 j = 1; j < 4; ++j) v[j] += v[j - 1];
    const A upto = warp_prefix(v[3]);
    if (threadIdx.x % 32 == 31) parts[threadIdx.x / 32] = upto;
    A before = __shfl_up_sync(0xFFFFFFFFu, upto, 1);
    if (threadIdx.x % 32 == 0) before = 0;
    __syncthreads();   // publishes `parts`
    A warps = 0;
    for (u32 w = 0; w < threadIdx.x / 32; ++w) warps += parts[w];
    before = warps + before;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) v[j] = before + v[j];
}

template <class T, class O>
WS_FN void row_total(const T* x, O* totals, u64 n, u64 pieces, bool reverse, bool vector) {
    const u64 row = blockIdx.x / pieces, piece = blockIdx.x - row * pieces;
    Total<T> v[4];
    piece_sums<T>(v, x + row * n, piece * PIECE, n, reverse, vector);
    if (threadIdx.x == 255) totals[blockIdx.x] = Put<O>::apply(v[3]);
}

template <class T, class O, class S>
WS_FN void row_piece(const T* x, const S* ends, O* y, u64 n, u64 pieces, bool reverse, bool vector, bool add) {
    const u64 row = blockIdx.x / pieces, piece = blockIdx.x - row * pieces;
    Total<T> v[4], carry = 0;
    piece_sums<T>(v, x + row * n, piece * PIECE, n, reverse, vector);
    if (piece > 0) carry = widen(ends[blockIdx.x - 1]);
    const u64 i = piece * PIECE + threadIdx.x * 4;
#pragma unroll
    for (u32 j = 0; j < 4; ++j)
        if (i + j < n) put(y + row * n + (reverse ? n - 1 - (i + j) : i + j), Total<T>(carry + v[j]), add);
}

// A chain of additions by one thread: floats lose nothing by its length.
template <class A> struct Chain {
    A sum = 0;
    WS_METHOD void add(A x) { sum += x; }
};
template <> struct Chain<f32> : LongSum {};

// A column's piece of up to `length` elements, of [outer, pieces, inner]: its total, or if `y` is given its running sums.
template <class T, class O, class S>
WS_FN void column_piece(const T* x, const S* ends, S* totals, O* y, u64 outer, u64 n, u64 inner, u64 pieces, u64 length,
                        bool reverse, bool add) {
    using A = Total<T>;
    const u64 thread = u64(blockIdx.x) * 256 + threadIdx.x;
    if (thread >= outer * pieces * inner) return;
    const u64 line = thread / inner, column = thread - line * inner, block = line / pieces, piece = line - block * pieces;
    const u64 first = piece * length, last = n - first < length ? n : first + length;
    const u64 start = block * n * inner + column;
    A carry = 0;
    Chain<A> chain;
    if (y != nullptr && piece > 0) carry = widen(ends[thread - inner]);
#pragma unroll 4
    for (u64 i = first; i < last; ++i) {
        const u64 at = start + (reverse ? n - 1 - i : i) * inner;
        chain.add(widen(x[at]));
        if (y != nullptr) put(y + at, A(carry + chain.sum), add);
    }
    if (totals != nullptr) totals[thread] = Put<S>::apply(chain.sum);
}

// Rows of up to 256 elements, a warp each.
KERNEL(short_rows, types(T: f32, bf16, f16), in(T, x, rows * n), out(T, y, rows * n), val(u64, rows), val(u32, n),
       val(u32, reverse), val(u32, add), launch(grid = ceil_div(rows, 8), block = 256, shared = 0)) {
    short_row(x, y, rows, n, reverse, add);
}
KERNEL(short_rows_int, types(T: u8, i32, i64), in(T, x, rows * n), out(i64, y, rows * n), val(u64, rows), val(u32, n),
       val(u32, reverse), val(u32, add), launch(grid = ceil_div(rows, 8), block = 256, shared = 0)) {
    short_row(x, y, rows, n, reverse, add);
}

// The totals of the pieces of long rows.
KERNEL(row_totals, types(T: f32, bf16, f16), in(T, x, rows * n), out(f32, totals, rows * pieces), val(u64, rows), val(u64, n),
       val(u64, pieces), val(u32, reverse), val(u32, vector), launch(grid = rows * pieces, block = 256, shared = 0)) {
    row_total(x, totals, n, pieces, reverse, vector);
}
KERNEL(row_totals_int, types(T: u8, i32, i64), in(T, x, rows * n), out(i64, totals, rows * pieces), val(u64, rows), val(u64, n),
       val(u64, pieces), val(u32, reverse), val(u32, vector), launch(grid = rows * pieces, block = 256, shared = 0)) {
    row_total(x, totals, n, pieces, reverse, vector);
}

// Long rows from the running sums of their pieces' totals.
KERNEL(long_rows, types(T: f32, bf16, f16), in(T, x, rows * n), opt_in(f32, ends, rows * pieces), out(T, y, rows * n),
       val(u64, rows), val(u64, n), val(u64, pieces), val(u32, reverse), val(u32, vector), val(u32, add),
       launch(grid = rows * pieces, block = 256, shared = 0)) {
    row_piece(x, ends, y, n, pieces, reverse, vector, add);
}
KERNEL(long_rows_int, types(T: u8, i32, i64), in(T, x, rows * n), opt_in(i64, ends, rows * pieces), out(i64, y, rows * n),
       val(u64, rows), val(u64, n), val(u64, pieces), val(u32, reverse), val(u32, vector), val(u32, add),
       launch(grid = rows * pieces, block = 256, shared = 0)) {
    row_piece(x, ends, y, n, pieces, reverse, vector, add);
}

// Columns: the totals of pieces, or the running sums from those of the totals.
KERNEL(columns, types(T: f32, bf16, f16), in(T, x, outer * n * inner), opt_in(f32, ends, outer * pieces * inner),
       opt_out(f32, totals, outer * pieces * inner), opt_out(T, y, outer * n * inner), val(u64, outer), val(u64, n),
       val(u64, inner), val(u64, pieces), val(u64, length), val(u32, reverse), val(u32, add),
       launch(grid = ceil_div(outer * pieces * inner, 256), block = 256, shared = 0)) {
    column_piece(x, ends, totals, y, outer, n, inner, pieces, length, reverse, add);
}
KERNEL(columns_int, types(T: u8, i32, i64), in(T, x, outer * n * inner), opt_in(i64, ends, outer * pieces * inner),
       opt_out(i64, totals, outer * pieces * inner), opt_out(i64, y, outer * n * inner), val(u64, outer), val(u64, n),
       val(u64, inner), val(u64, pieces), val(u64, length), val(u32, reverse), val(u32, add),
       launch(grid = ceil_div(outer * pieces * inner, 256), block = 256, shared = 0)) {
    column_piece(x, ends, totals, y, outer, n, inner, pieces, length, reverse, add);
}
