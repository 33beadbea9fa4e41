// archs: 80 86 89 90 100 120 ptx80
// conv.cu: convolution and its gradients on the plain arithmetic units, as products without a matrix of pixels (core/conv.cuh).
//
// Sums are chains of fused multiply-adds, k ascending, from 0: for y and dx of up to 256 steps the CPU's bits. Inputs have any
// strides. The places that the steps of k add are worked out once a block and step, two steps ahead, by the first threads.
#include "core/conv.cuh"
#include "core/reduce.cuh"

constexpr u32 CONV_TILE = 64, CONV_DEPTH = 16, CONV_THREADS = 128;
constexpr u32 CONV_PITCH = CONV_TILE + 4;

// What one step of k adds in both factors.
struct ConvStep {
    u64 a, b;
    i32 h, w;
};

// Two tiles of each factor [k][row or column], afterwards the sums on their way out; the steps of k of two tiles.
struct ConvTiles {
    alignas(16) f32 a[2][CONV_DEPTH][CONV_PITCH];
    alignas(16) f32 b[2][CONV_DEPTH][CONV_PITCH];
    ConvStep steps[2][CONV_DEPTH];
    GemmPlace place;
};

// The block's tile of C, 64 x 64, 8 x 4 a thread.
// A[row, k] at a + row * a_row + digits of k * (a_hi, a_mid, a_low); B[k, col] at the place that the digits of both name.
KERNEL(conv_tile, types(T: f32, bf16, f16), ints(DIV: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, groups * m),
       opt_inout(T, c, groups * m * n), opt_out(T, pre, groups * m * n), opt_out(f32, part, groups * splits * m * n),
       val(u64, groups), val(u64, a_group), val(u64, b_group), val(u64, a_row), val(u64, a_hi), val(u64, a_mid), val(u64, a_low),
       val(u64, k_offset), val(u64, c_offset), val(u64, by_h), val(u64, by_w), val(u64, apart), val(u32, m), val(u32, n),
       val(u32, k), val(u32, k_mid), val(u32, k_low), val(u32, c_mid), val(u32, c_low), val(i32, k_h), val(i32, k_w),
       val(i32, c_h), val(i32, c_w), val(i32, h0), val(i32, w0), val(u32, height), val(u32, width), val(u32, div_h),
       val(u32, div_w), val(u32, plane), val(u32, splits), val(u32, slice), val(u32, activation), val(u32, add),
       launch(grid = plan, block = 128, shared = 0, blocks = 4)) {
    SHARED(ConvTiles, tiles);
    if (threadIdx.x == 0) tiles.place = gemm_place(m, n, CONV_TILE, CONV_TILE, splits, groups);
    __syncthreads();      // publishes the place
    const GemmPlace& at = tiles.place;
    if (!at.inside) return;
    const GemmSlice range = gemm_slice(at.split, slice, k);
    const ConvImage image = {height, width, div_h, div_w, by_h, by_w};

    // Of A a thread takes one k of a tile and eight rows, of B one column and eight k.
    const u32 a_depth = threadIdx.x % CONV_DEPTH, a_line = threadIdx.x / CONV_DEPTH;
    const u32 b_line = threadIdx.x % CONV_TILE, b_depth = threadIdx.x / CONV_TILE;
    const u32 col = at.col + b_line;
    const T* from_a = a + at.batch * a_group + u64(at.row + a_line) * a_row;
    const ConvDigits digits = conv_digits(col, c_mid, c_low);
    const T* from_b = b + at.batch * b_group + digits.hi * c_offset;
    const i32 row_h = i32(digits.mid) * c_h + h0, row_w = i32(digits.low) * c_w + w0;

    auto plan = [&](u32 buffer, u32 first) {
        if (threadIdx.x >= CONV_DEPTH) return;
        const ConvDigits d = conv_digits(first + threadIdx.x, k_mid, k_low);
        tiles.steps[buffer][threadIdx.x] = {d.hi * a_hi + d.mid * a_mid + d.low * a_low, d.hi * k_offset, i32(d.mid) * k_h,
                                            i32(d.low) * k_w};
    };
    f32 held_a[8], held_b[8];
    auto fetch = [&](u32 buffer, u32 first) {
        const bool whole = first + a_depth < range.to;
        const u64 step = tiles.steps[buffer][a_depth].a;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const bool valid = whole && at.row + a_line + 8 * i < m;
            held_a[i] = valid ? to_f32(from_a[step + u64(8 * i) * a_row]) : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 depth = b_depth + 2 * i;
            const ConvStep& s = tiles.steps[buffer][depth];
            i32 h = row_h + s.h, w = row_w + s.w;
            const bool valid = col < n && first + depth < range.to && conv_inside<DIV>(image, h, w);
            held_b[i] = valid ? to_f32(from_b[s.b + u64(h) * by_h + u64(w) * by_w]) : 0.0f;
        }
    };
    auto put = [&](u32 buffer) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            tiles.a[buffer][a_depth][a_line + 8 * i] = held_a[i];
            tiles.b[buffer][b_depth + 2 * i][b_line] = held_b[i];
        }
    };

    const u32 down = threadIdx.x / 16 * 8, across = threadIdx.x % 16 * 4;
    f32 sum[8][4] = {};
    if (range.from < range.to) {
        plan(0, range.from);
        plan(1, range.from + CONV_DEPTH);
        __syncthreads();      // publishes the first steps
        fetch(0, range.from);
        put(0);
    }
    u32 now = 0;
#pragma unroll 1
    for (u32 first = range.from; first < range.to;) {
        // Publishes tile `now` and the steps of the next one; what the last round read may be overwritten after it.
        __syncthreads();
        first += CONV_DEPTH;
        if (first < range.to) {
            fetch(now ^ 1, first);
            plan(now, first + CONV_DEPTH);
        }
#pragma unroll
        for (u32 d = 0; d < CONV_DEPTH; ++d) {
            f32 x[8], y[4], v[4];
            gemm_load4(&tiles.a[now][d][down], v);
            for (u32 j = 0; j < 4; ++j) x[j] = v[j];
            gemm_load4(&tiles.a[now][d][down + 4], v);
            for (u32 j = 0; j < 4; ++j) x[4 + j] = v[j];
            gemm_load4(&tiles.b[now][d][across], y);
#pragma unroll
            for (u32 i = 0; i < 8; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        if (first < range.to) put(now ^ 1);
        now ^= 1;
    }
    static_assert(CONV_TILE * CONV_PITCH * sizeof(f32) == sizeof(tiles.a) + sizeof(tiles.b), "sums fit where the tiles were");
    f32* staged = &tiles.a[0][0][0];
    __syncthreads();      // the tiles have been read
#pragma unroll
    for (u32 i = 0; i < 8; ++i) gemm_store4(staged + (down + i) * CONV_PITCH + across, sum[i], 4, true);
    __syncthreads();      // publishes the sums
    const ConvStore<T> all = {bias, c, pre, part, m, n, plane, apart, activation, add};
    const ConvStore<T> to = conv_store_of(all, u32(at.batch), at.split, splits);
    conv_store_rows<CONV_TILE, CONV_TILE, CONV_PITCH, CONV_THREADS>(staged, to, at.col,
                                                                    [&](u32 s) { return at.row + s; });
}

// As conv_tile for a few rows a group (one filter a channel is the common case), which would leave tiles empty: a thread an
// element of C, neighbours on neighbouring pixels.
KERNEL(conv_thin, types(T: f32, bf16, f16), ints(DIV: 0, 1), in(T, a, any), in(T, b, any), opt_in(T, bias, groups * m),
       inout(T, c, groups * m * n), opt_out(T, pre, groups * m * n), val(u64, groups), val(u64, a_group), val(u64, b_group),
       val(u64, a_row), val(u64, a_hi), val(u64, a_mid), val(u64, a_low), val(u64, k_offset), val(u64, c_offset),
       val(u64, by_h), val(u64, by_w), val(u64, apart), val(u32, m), val(u32, n), val(u32, k_hi), val(u32, k_mid),
       val(u32, k_low), val(u32, c_mid), val(u32, c_low), val(i32, k_h), val(i32, k_w), val(i32, c_h), val(i32, c_w),
       val(i32, h0), val(i32, w0), val(u32, height), val(u32, width), val(u32, div_h), val(u32, div_w), val(u32, plane),
       val(u32, activation), val(u32, add), launch(grid = ceil_div(groups * m * n, 256), block = 256, shared = 0)) {
    const u64 id = u64(blockIdx.x) * 256 + threadIdx.x;
    if (id >= groups * m * n) return;
    const u64 line = id / n, group = line / m;
    const u32 col = u32(id - line * n), row = u32(line - group * m);
    const ConvImage image = {height, width, div_h, div_w, by_h, by_w};
    const ConvDigits digits = conv_digits(col, c_mid, c_low);
    const T* from_a = a + group * a_group + row * a_row;
    const T* from_b = b + group * b_group + digits.hi * c_offset;
    const i32 row_h = i32(digits.mid) * c_h + h0, row_w = i32(digits.low) * c_w + w0;
    f32 sum = 0.0f;
#pragma unroll 1
    for (u32 hi = 0; hi < k_hi; ++hi, from_a += a_hi, from_b += k_offset)
#pragma unroll 1
        for (u32 mid = 0; mid < k_mid; ++mid)
#pragma unroll 4
            for (u32 low = 0; low < k_low; ++low) {
                i32 h = row_h + i32(mid) * k_h, w = row_w + i32(low) * k_w;
                if (conv_inside<DIV>(image, h, w))
                    sum = fmaf(to_f32(from_a[mid * a_mid + low * a_low]), to_f32(from_b[u64(h) * by_h + u64(w) * by_w]), sum);
            }
    const ConvStore<T> all = {bias, c, pre, nullptr, m, n, plane, apart, activation, add};
    const ConvStore<T> to = conv_store_of(all, u32(group), 0, 1);
    conv_finish(to, row, col, conv_column(to, col), sum);
}

// dw of a few rows a group: a block an element, whose threads add up every 256th step of k.
KERNEL(conv_dot, types(T: f32, bf16, f16), in(T, a, any), in(T, b, any), inout(T, c, groups * m * n), val(u64, groups),
       val(u64, a_group), val(u64, b_group), val(u64, a_row), val(u64, a_hi), val(u64, a_mid), val(u64, a_low),
       val(u64, k_offset), val(u64, c_offset), val(u64, by_h), val(u64, by_w), val(u32, m), val(u32, n), val(u32, k),
       val(u32, k_mid), val(u32, k_low), val(u32, c_mid), val(u32, c_low), val(i32, k_h), val(i32, k_w), val(i32, c_h),
       val(i32, c_w), val(i32, h0), val(i32, w0), val(u32, height), val(u32, width), val(u32, add),
       launch(grid = groups * m * n, block = 256, shared = 0)) {
    const u64 id = blockIdx.x;
    const u64 line = id / n, group = line / m;
    const ConvImage image = {height, width, 1, 1, by_h, by_w};
    const ConvDigits digits = conv_digits(u32(id - line * n), c_mid, c_low);
    const T* from_a = a + group * a_group + (line - group * m) * a_row;
    const T* from_b = b + group * b_group + digits.hi * c_offset;
    const i32 row_h = i32(digits.mid) * c_h + h0, row_w = i32(digits.low) * c_w + w0;
    LongSum sum;
#pragma unroll 1
    for (u32 step = threadIdx.x; step < k; step += 256) {
        const ConvDigits d = conv_digits(step, k_mid, k_low);
        i32 h = row_h + i32(d.mid) * k_h, w = row_w + i32(d.low) * k_w;
        if (conv_inside<0>(image, h, w)) {
            const f32 x = to_f32(from_a[d.hi * a_hi + d.mid * a_mid + d.low * a_low]);
            sum.add(x * to_f32(from_b[d.hi * k_offset + u64(h) * by_h + u64(w) * by_w]));
        }
    }
    const f32 total = block_sum<256>(sum.sum);
    if (threadIdx.x == 0) c[id] = from_f32<T>(add ? to_f32(c[id]) + total : total);
}
