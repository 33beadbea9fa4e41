// archs: 80 90 100 120 ptx80
// pool.cu: the largest element and the average of windows of images, and their backwards.
//
// A thread an output, neighbours along a row: windows overlap in L1. The backwards gather: an element asks the windows that it
// belongs to, in ascending order, so there are no atomics and one order of additions; where windows do not overlap that is one
// window. Images are contiguous; padding is never read.
#include "core/math.cuh"
#include "core/plane.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"

// The windows along one dimension of `size` elements.
struct Windows { u32 size, count, kernel, stride, padding, dilation; };

// The elements of window `o` that lie within: the first, and how many.
struct Taps { u32 first, count; };
WS_FN Taps taps_of(const Windows& w, u32 o) {
    const u32 start = o * w.stride;
    const u32 skipped = start < w.padding ? (w.padding - start + w.dilation - 1) / w.dilation : 0;
    const u32 first = start + skipped * w.dilation - w.padding;
    const u32 left = first < w.size ? (w.size - first + w.dilation - 1) / w.dilation : 0;
    const u32 rest = skipped < w.kernel ? w.kernel - skipped : 0;
    return {first, left < rest ? left : rest};
}

// The windows that could have an element: from the first to before the last.
struct Range { u32 first, end; };
WS_FN Range windows_of(const Windows& w, u32 at) {
    const u32 place = at + w.padding, span = (w.kernel - 1) * w.dilation + 1;
    const u32 first = place >= span ? (place - span) / w.stride + 1 : 0, end = place / w.stride + 1;
    return {first, end < w.count ? end : w.count};
}
// Whether window `o`, one of those, has it: with dilation there are gaps.
WS_FN bool has(const Windows& w, u32 o, u32 at) { return (at + w.padding - o * w.stride) % w.dilation == 0; }

// The largest element of each window, the first of equal ones (a NaN replaces everything), and its place in the image.
KERNEL(max_pool, types(T: f32, bf16, f16), in(T, x, planes * height * width), out(T, y, planes * rows * columns),
       out(i32, index, planes * rows * columns), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(u32, kernel_y), val(u32, kernel_x), val(u32, stride_y), val(u32, stride_x), val(u32, padding_y),
       val(u32, padding_x), val(u32, dilation_y), val(u32, dilation_x),
       launch(grid = ceil_div(planes * rows * columns, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * rows * columns) return;
    const Place at = place_of(i, rows, columns);
    const Taps down = taps_of(Windows{height, rows, kernel_y, stride_y, padding_y, dilation_y}, at.y);
    const Taps along = taps_of(Windows{width, columns, kernel_x, stride_x, padding_x, dilation_x}, at.x);
    const T* image = x + at.plane * height * width;
    u32 chosen = down.first * width + along.first;
    f32 best = -ws_infinity();
    for (u32 k = 0; k < down.count; ++k) {
        const u32 line = (down.first + k * dilation_y) * width + along.first;
        for (u32 j = 0; j < along.count; ++j) {
            const u32 place = line + j * dilation_x;
            const f32 v = to_f32(image[place]);
            if (v > best || ws_is_nan(v)) {
                best = v;
                chosen = place;
            }
        }
    }
    y[i] = from_f32<T>(best);
    index[i] = i32(chosen);
}

// dx: what the windows that have an element and chose it were given.
KERNEL(max_pool_backward, types(T: f32, bf16, f16), in(T, dy, planes * rows * columns), in(i32, index, planes * rows * columns),
       out(T, dx, planes * height * width), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(u32, kernel_y), val(u32, kernel_x), val(u32, stride_y), val(u32, stride_x), val(u32, padding_y),
       val(u32, padding_x), val(u32, dilation_y), val(u32, dilation_x), val(u32, add),
       launch(grid = ceil_div(planes * height * width, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * height * width) return;
    const Place at = place_of(i, height, width);
    const Windows down{height, rows, kernel_y, stride_y, padding_y, dilation_y};
    const Windows along{width, columns, kernel_x, stride_x, padding_x, dilation_x};
    const Range ys = windows_of(down, at.y), xs = windows_of(along, at.x);
    const u64 start = at.plane * rows * columns;
    const i32 place = i32(at.y * width + at.x);
    f32 sum = 0.0f;
    for (u32 oy = ys.first; oy < ys.end; ++oy) {
        if (!has(down, oy, at.y)) continue;
        for (u32 ox = xs.first; ox < xs.end; ++ox) {
            const u64 o = start + u64(oy) * columns + ox;
            if (has(along, ox, at.x) && index[o] == place) sum += to_f32(dy[o]);
        }
    }
    dx[i] = from_f32<T>(add ? to_f32(dx[i]) + sum : sum);
}

// What an average is over along one dimension.
struct Part { u32 first, end, divisor; };

// Windows of `kernel` elements; `counted`: padding counts in the divisor.
struct Sliding {
    WS_FN Part part(u32 o, u32 size, u32, u32 kernel, u32 stride, u32 padding, u32 counted) {
        const u32 start = o * stride, last = start + kernel < size + padding ? start + kernel : size + padding;
        const u32 first = start > padding ? start - padding : 0, end = last - padding;
        const u32 whole = start + kernel < size + 2 * padding ? kernel : size + 2 * padding - start;
        return {first, end, counted ? whole : end - first};
    }
    WS_FN Range outputs(u32 at, u32, u32 count, u32 kernel, u32 stride, u32 padding) {
        const u32 place = at + padding, first = place >= kernel ? (place - kernel) / stride + 1 : 0;
        const u32 end = place / stride + 1;
        return {first, end < count ? end : count};
    }
};

// Parts of nearly equal size: from floor(o · size / count) to ceil((o + 1) · size / count).
struct Even {
    WS_FN Part part(u32 o, u32 size, u32 count, u32, u32, u32, u32) {
        const u32 first = u32(u64(o) * size / count), end = u32((u64(o + 1) * size + count - 1) / count);
        return {first, end, end - first};
    }
    WS_FN Range outputs(u32 at, u32 size, u32 count, u32, u32, u32) {
        return {u32(u64(at) * count / size), u32((u64(at + 1) * count + size - 1) / size)};
    }
};

// The average of each window or part.
KERNEL(avg_pool, types(T: f32, bf16, f16), functors(F: Sliding, Even), in(T, x, planes * height * width),
       out(T, y, planes * rows * columns), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(u32, kernel_y), val(u32, kernel_x), val(u32, stride_y), val(u32, stride_x), val(u32, padding_y),
       val(u32, padding_x), val(u32, counted),
       launch(grid = ceil_div(planes * rows * columns, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * rows * columns) return;
    const Place at = place_of(i, rows, columns);
    const Part down = F::part(at.y, height, rows, kernel_y, stride_y, padding_y, counted);
    const Part along = F::part(at.x, width, columns, kernel_x, stride_x, padding_x, counted);
    const T* image = x + at.plane * height * width;
    LongSum sum;
    for (u32 line = down.first; line < down.end; ++line)
        for (u32 column = along.first; column < along.end; ++column)
            sum.add(to_f32(image[u64(line) * width + column]));
    y[i] = from_f32<T>(sum.sum / f32(u64(down.divisor) * along.divisor));
}

// dx: the shares of the averages that an element is part of.
KERNEL(avg_pool_backward, types(T: f32, bf16, f16), functors(F: Sliding, Even), in(T, dy, planes * rows * columns),
       out(T, dx, planes * height * width), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(u32, kernel_y), val(u32, kernel_x), val(u32, stride_y), val(u32, stride_x), val(u32, padding_y),
       val(u32, padding_x), val(u32, counted), val(u32, add),
       launch(grid = ceil_div(planes * height * width, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * height * width) return;
    const Place at = place_of(i, height, width);
    const Range ys = F::outputs(at.y, height, rows, kernel_y, stride_y, padding_y);
    const Range xs = F::outputs(at.x, width, columns, kernel_x, stride_x, padding_x);
    const T* given = dy + at.plane * rows * columns;
    LongSum sum;
    for (u32 oy = ys.first; oy < ys.end; ++oy) {
        const u32 down = F::part(oy, height, rows, kernel_y, stride_y, padding_y, counted).divisor;
        for (u32 ox = xs.first; ox < xs.end; ++ox) {
            const u32 along = F::part(ox, width, columns, kernel_x, stride_x, padding_x, counted).divisor;
            sum.add(to_f32(given[u64(oy) * columns + ox]) / f32(u64(down) * along));
        }
    }
    dx[i] = from_f32<T>(add ? to_f32(dx[i]) + sum.sum : sum.sum);
}
