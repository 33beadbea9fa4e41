// archs: 80 86 89 90 100 120 ptx80
// conv_mma.cu: convolution and its gradients on tensor cores by mma.sync: bf16 and f16 with f32 sums (core/conv.cuh, core/mma.cuh).
//
// Images lie [image, row, column, channel] here: the caller turns them, two passes over memory for a product of many. So 16 bytes
// are eight channels of one pixel at one element of the kernel, and cp.async fetches a chunk, or zeros beside the image. k of y
// and dx is (row, column of the kernel, channel); k of dw is (image, row, column of y), lines of both factors.
// Tensor cores truncate where they sum: an error of up to 2 units of the last f32 place for every 16 of k.
#include "core/conv.cuh"
#include "core/mma.cuh"

// A place that no step of k brings back to an image.
constexpr i32 NOWHERE = -(1 << 30);

// Columns are pixels, lines of k: of each pixel that the kernel meets the channels of the group.
template <class T, int DIV, u32 LEN, u32 THREADS> struct ConvPixels {
    static constexpr bool K_MAJOR = true;
    static constexpr u32 CHUNK = MmaType<T>::CHUNK, LINES = THREADS / LINE_CHUNKS, ROUNDS = LEN * LINE_CHUNKS / THREADS;
    static_assert(ROUNDS * THREADS == LEN * LINE_CHUNKS, "whole chunks for every thread");
    const T* p;                // the first pixel's channels of the group
    ConvImage image;           // distances in elements
    u32 channels, k_low;
    i32 k_h, k_w;
    u32 k_end;
    u64 first[ROUNDS];         // of the thread's columns: where their image starts
    i32 h[ROUNDS], w[ROUNDS];  // and where the kernel starts on it

    WS_METHOD void start(u32 col0, u32 n, u32 c_mid, u32 c_low, u64 apart, i32 c_h, i32 c_w, i32 h0, i32 w0) {
#pragma unroll
        for (u32 i = 0; i < ROUNDS; ++i) {
            const u32 col = col0 + threadIdx.x / LINE_CHUNKS + i * LINES;
            const ConvDigits d = conv_digits(col, c_mid, c_low);
            first[i] = d.hi * apart;
            h[i] = col < n ? i32(d.mid) * c_h + h0 : NOWHERE;
            w[i] = i32(d.low) * c_w + w0;
        }
    }

    WS_METHOD void load(Chunk* tile, u32 k) const {
        const u32 chunk = threadIdx.x % LINE_CHUNKS, at = k + chunk * CHUNK;
        const u32 element = at / channels, channel = at - element * channels;
        const u32 row = element / k_low;
        const i32 down = i32(row) * k_h, across = i32(element - row * k_low) * k_w;
#pragma unroll
        for (u32 i = 0; i < ROUNDS; ++i) {
            const u32 line = threadIdx.x / LINE_CHUNKS + i * LINES;
            i32 y = h[i] + down, x = w[i] + across;
            const bool valid = at < k_end && conv_inside<DIV>(image, y, x);
            const T* from = valid ? p + first[i] + u64(y) * image.by_h + u64(x) * image.by_w + channel : p;
            ptx::cp_async16(&tile[chunk_at<T, true, LEN>(line, chunk)], from, valid ? 16 : 0);
        }
    }
};

// Lines are places of the kernel (k of dw), columns (element of the kernel, channel): the pixel that the element meets there.
template <class T, u32 LEN, u32 THREADS> struct ConvPlaces {
    static constexpr bool K_MAJOR = false;
    static constexpr u32 CHUNK = MmaType<T>::CHUNK, PER_LINE = LEN / CHUNK;
    static constexpr u32 LINES = THREADS / PER_LINE, ROUNDS = LEN * LINE_CHUNKS / THREADS;
    static_assert(THREADS % PER_LINE == 0 && ROUNDS * THREADS == LEN * LINE_CHUNKS, "whole chunks for every thread");
    const T* p;                // the thread's channel of the first pixel
    ConvImage image;
    u64 apart;                 // from one image to the next
    u32 k_mid, k_low;
    i32 k_h, k_w, h, w;        // h, w: where the thread's element of the kernel is at the first place
    u32 k_end;

    WS_METHOD void load(Chunk* tile, u32 k) const {
        const u32 chunk = threadIdx.x % PER_LINE;
#pragma unroll
        for (u32 i = 0; i < ROUNDS; ++i) {
            const u32 line = threadIdx.x / PER_LINE + i * LINES, at = k + line;
            const ConvDigits d = conv_digits(at, k_mid, k_low);
            i32 y = h + i32(d.mid) * k_h, x = w + i32(d.low) * k_w;
            const bool valid = at < k_end && conv_inside<0>(image, y, x);
            const T* from = valid ? p + d.hi * apart + u64(y) * image.by_h + u64(x) * image.by_w : p;
            ptx::cp_async16(&tile[chunk_at<T, false, LEN>(line, chunk)], from, valid ? 16 : 0);
        }
    }
};

// One BM x BN tile of C by warps of WM x WN each.
template <class T, u32 BM, u32 BN, u32 WM, u32 WN, class A, class B>
WS_FN void conv_mma_tile(MmaRing<BM, BN>& ring, const A& a, const B& b, GemmSlice k, const ConvStore<T>& all,
                         const GemmPlace& at, u32 splits) {
    constexpr u32 WARPS_DOWN = BM / WM, THREADS = 32 * WARPS_DOWN * (BN / WN);
    f32 sum[WM / 16][WN / 8][4] = {};
    mma_products<T, BM, BN, WM, WN>(sum, ring, a, b, k);
    const ConvStore<T> to = conv_store_of(all, u32(at.batch), at.split, splits);
    constexpr u32 STAGED = WARPS_DOWN * 16, PITCH = BN + 4;
    static_assert(sizeof(f32) * STAGED * PITCH <= sizeof(ring), "staged rows fit where the ring was");
    f32* staged = reinterpret_cast<f32*>(&ring);
#pragma unroll 1
    for (u32 pass = 0; pass < WM / 16; ++pass) {
        __syncthreads();      // the last stage, or the rows of the last pass, have been read
        mma_stage<BM, BN, WM, WN, PITCH>(sum, staged, pass);
        __syncthreads();      // publishes the staged rows
        conv_store_rows<STAGED, BN, PITCH, THREADS>(
            staged, to, at.col, [&](u32 s) { return at.row + s / 16 * WM + pass * 16 + s % 16; });
    }
}

// y or dx, 128 x 128 of C a block, 64 x 32 a warp. A [group, row, k] is contiguous, its k as that of the image.
KERNEL(conv_mma_128, types(T: bf16, f16), ints(DIV: 0, 1), in(T, a, groups * m * k), in(T, b, any), opt_in(T, bias, groups * m),
       inout(T, c, groups * m * n), opt_out(T, pre, groups * m * n), val(u64, groups), val(u64, by_h), val(u64, by_w),
       val(u64, b_apart), val(u64, apart), val(u32, m), val(u32, n), val(u32, k), val(u32, channels), val(u32, k_low),
       val(u32, c_mid), val(u32, c_low), val(i32, k_h), val(i32, k_w), val(i32, c_h), val(i32, c_w), val(i32, h0),
       val(i32, w0), val(u32, height), val(u32, width), val(u32, div_h), val(u32, div_w), val(u32, plane),
       val(u32, activation), val(u32, add), launch(grid = plan, block = 256, shared = 0, blocks = 2)) {
    using Ring = MmaRing<128, 128>;
    SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 128, 128, 1, groups);
    if (!at.inside) return;
    const MmaAligned<T, true, 128, 256> from_a = {a + at.batch * m * k, k, at.row, m, k};
    ConvPixels<T, DIV, 128, 256> from_b = {b + at.batch * channels, {height, width, div_h, div_w, by_h, by_w},
                                           channels, k_low, k_h, k_w, k, {}, {}, {}};
    from_b.start(at.col, n, c_mid, c_low, b_apart, c_h, c_w, h0, w0);
    const ConvStore<T> all = {bias, c, pre, nullptr, m, n, plane, apart, activation, add};
    conv_mma_tile<T, 128, 128, 64, 32>(ring, from_a, from_b, GemmSlice{0, k}, all, at, 1);
}

// y or dx, 64 x 64 of C a block, 32 x 32 a warp. A [group, row, k] is contiguous, its k as that of the image.
KERNEL(conv_mma_64, types(T: bf16, f16), ints(DIV: 0, 1), in(T, a, groups * m * k), in(T, b, any), opt_in(T, bias, groups * m),
       inout(T, c, groups * m * n), opt_out(T, pre, groups * m * n), val(u64, groups), val(u64, by_h), val(u64, by_w),
       val(u64, b_apart), val(u64, apart), val(u32, m), val(u32, n), val(u32, k), val(u32, channels), val(u32, k_low),
       val(u32, c_mid), val(u32, c_low), val(i32, k_h), val(i32, k_w), val(i32, c_h), val(i32, c_w), val(i32, h0),
       val(i32, w0), val(u32, height), val(u32, width), val(u32, div_h), val(u32, div_w), val(u32, plane),
       val(u32, activation), val(u32, add), launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    using Ring = MmaRing<64, 64>;
    SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 64, 64, 1, groups);
    if (!at.inside) return;
    const MmaAligned<T, true, 64, 128> from_a = {a + at.batch * m * k, k, at.row, m, k};
    ConvPixels<T, DIV, 64, 128> from_b = {b + at.batch * channels, {height, width, div_h, div_w, by_h, by_w},
                                          channels, k_low, k_h, k_w, k, {}, {}, {}};
    from_b.start(at.col, n, c_mid, c_low, b_apart, c_h, c_w, h0, w0);
    const ConvStore<T> all = {bias, c, pre, nullptr, m, n, plane, apart, activation, add};
    conv_mma_tile<T, 64, 64, 32, 32>(ring, from_a, from_b, GemmSlice{0, k}, all, at, 1);
}

// Sums of dw over slices of k, [group, split, filter, (element of the kernel, channel)], 64 x 64 a block. a is dy, b is x.
KERNEL(conv_mma_weight, types(T: bf16, f16), in(T, a, any), in(T, b, any), out(f32, part, groups * splits * m * n),
       val(u64, groups), val(u64, a_pitch), val(u64, by_h), val(u64, by_w), val(u64, b_apart), val(u32, m), val(u32, n),
       val(u32, k), val(u32, channels), val(u32, c_low), val(u32, k_mid), val(u32, k_low), val(i32, k_h), val(i32, k_w),
       val(i32, c_h), val(i32, c_w), val(i32, h0), val(i32, w0), val(u32, height), val(u32, width), val(u32, splits),
       val(u32, slice), launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    using Ring = MmaRing<64, 64>;
    SHARED(Ring, ring);
    const GemmPlace at = gemm_place(m, n, 64, 64, splits, groups);
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const MmaAligned<T, false, 64, 128> from_a = {a + at.batch * m, a_pitch, at.row, m, range.to};
    const u32 col = at.col + threadIdx.x % 8 * 8, element = col / channels, row = element / c_low;
    const T* channel = b + at.batch * channels + (col - element * channels);
    const i32 h = col < n ? i32(row) * c_h + h0 : NOWHERE, w = i32(element - row * c_low) * c_w + w0;
    const ConvPlaces<T, 64, 128> from_b = {channel, {height, width, 1, 1, by_h, by_w}, b_apart, k_mid, k_low,
                                           k_h, k_w, h, w, range.to};
    const ConvStore<T> all = {nullptr, nullptr, nullptr, part, m, n, n, 0, WS_IDENTITY, 0};
    conv_mma_tile<T, 64, 64, 32, 32>(ring, from_a, from_b, range, all, at, splits);
}
