// conv.cuh: what the kernels of convolution share: where the factors of a product lie, and where its sums go.
//
// y, dx and dw are products C[row, col] = sum over k of A[row, k] B[k, col], one for each group. B is an image met by a kernel,
// never stored as a matrix: col and k are numbers of three digits, each digit moves the place in the image, and what lies beside
// the image is zero. For y: col = (image, row, column of y), k = (channel, row, column of the kernel). For dx the image is dy
// and B is there only where the stride divides the place. For dw: col = (channel, row, column of the kernel), k = (image, row,
// column of y).
#pragma once
#include "gemm.cuh"

// The digits of a number whose last two run below `mid` and `low`.
struct ConvDigits { u32 hi, mid, low; };
WS_FN ConvDigits conv_digits(u32 n, u32 mid, u32 low) {
    const u32 rest = n / low, hi = rest / mid;
    return {hi, rest - hi * mid, n - rest * low};
}

// The image: its size, what divides places (DIV), distances of rows and columns.
struct ConvImage {
    u32 height, width, div_h, div_w;
    u64 by_h, by_w;
};

// Whether a place lies on the image; with DIV where the stride divides it, and h, w become the quotients.
template <int DIV> WS_FN bool conv_inside(const ConvImage& image, i32& h, i32& w) {
    if constexpr (DIV == 1) {
        if (h < 0 || w < 0) return false;
        const u32 row = u32(h) / image.div_h, col = u32(w) / image.div_w;
        if (row * image.div_h != u32(h) || col * image.div_w != u32(w)) return false;
        h = i32(row);
        w = i32(col);
    }
    return u32(h) < image.height && u32(w) < image.width;
}

// Where the sums of one group go. With `part` they are stored as they are, [row, col]; else C = f((C +) sums + bias), rounded
// once: column (image, pixel) of a row is element `image * apart + row * plane + pixel` of C.
template <class T> struct ConvStore {
    const T* bias;       // [m], or null
    T* c;
    T* pre;              // as C, or null
    f32* part;           // [m, n], or null
    u32 m, n;
    u32 plane;           // pixels of an image: n where there are none
    u64 apart;           // elements from one image to the next
    u32 activation, add;
};

// The results of a group, of all.
template <class T> WS_FN ConvStore<T> conv_store_of(ConvStore<T> all, u32 group, u32 split, u32 splits) {
    const u64 rows = u64(group) * all.m;
    if (all.bias) all.bias += rows;
    if (all.c) all.c += rows * all.plane;
    if (all.pre) all.pre += rows * all.plane;
    if (all.part) all.part += (u64(group) * splits + split) * all.m * all.n;
    return all;
}

// Where row 0 of a column lies in C.
template <class T> WS_FN u64 conv_column(const ConvStore<T>& to, u32 col) {
    const u32 image = col / to.plane;
    return image * to.apart + (col - image * to.plane);
}

// Completes one sum and stores it; `at` is its column's place.
template <class T> WS_FN void conv_finish(const ConvStore<T>& to, u32 row, u32 col, u64 at, f32 v) {
    if (to.part) {
        to.part[u64(row) * to.n + col] = v;
        return;
    }
    at += u64(row) * to.plane;
    if (to.add) v = to_f32(to.c[at]) + v;
    if (to.bias) v += to_f32(to.bias[row]);
    if (to.pre) to.pre[at] = from_f32<T>(v);
    to.c[at] = from_f32<T>(to.activation == WS_IDENTITY ? v : ws_activate(to.activation, v));
}

// Completes and stores `ROWS` staged rows of `COLS` sums each, `PITCH` apart; staged row s is row `row_of(s)` of the group. For a
// block of `THREADS`, neighbours on neighbouring pixels; the caller puts barriers around it.
template <u32 ROWS, u32 COLS, u32 PITCH, u32 THREADS, class T, class RowOf>
WS_FN void conv_store_rows(const f32* staged, const ConvStore<T>& to, u32 col0, RowOf row_of) {
    static_assert(THREADS % COLS == 0 || COLS % THREADS == 0, "a thread keeps its columns");
    constexpr u32 WIDE = COLS < THREADS ? COLS : THREADS;
#pragma unroll 1
    for (u32 j = threadIdx.x % WIDE; j < COLS; j += WIDE) {
        const u32 col = col0 + j;
        if (col >= to.n) return;
        const u64 at = conv_column(to, col);
#pragma unroll 1
        for (u32 s = threadIdx.x / WIDE; s < ROWS; s += THREADS / WIDE) {
            const u32 row = row_of(s);
            if (row < to.m) conv_finish(to, row, col, at, staged[s * PITCH + j]);
        }
    }
}
