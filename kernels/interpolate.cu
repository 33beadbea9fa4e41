// archs: 80 90 100 120 ptx80
// interpolate.cu: images in another size, by the nearest element or by the four about a place, and the backward.
//
// A thread an output; the inputs of neighbours are neighbours. The backward gathers: the outputs that read an element are a range
// along each dimension, whose ends a search finds, because places rise with the outputs. So there are no atomics and one order of
// additions. Coordinates are computed as on the CPU, rounding by rounding.
#include "core/plane.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"

// What output `o` along a dimension of `size` elements reads: `first` with 1 - weight, `second` with weight.
struct Tap { u32 first, second; f32 weight; };
WS_FN Tap tap_at(f32 at, u32 size) {
    const u32 whole = u32(at), first = whole < size - 1 ? whole : size - 1;
    const f32 rest = at - f32(first);
    return {first, first + 1 < size ? first + 1 : first, rest > 1.0f ? 1.0f : rest};
}

// The element at floor(o · step).
struct Nearest {
    static constexpr bool MIXED = false;
    WS_FN Tap tap(u32 o, u32 size, f32 step) {
        const u32 at = u32(f32(o) * step), first = at < size - 1 ? at : size - 1;
        return {first, first, 0.0f};
    }
};
// The two about (o + 1/2) · step - 1/2: the edges of the images lie upon each other.
struct Edges {
    static constexpr bool MIXED = true;
    WS_FN Tap tap(u32 o, u32 size, f32 step) {
        const f32 at = (f32(o) + 0.5f) * step - 0.5f;
        return tap_at(at > 0.0f ? at : 0.0f, size);
    }
};
// The two about o · step: the outermost elements lie upon each other.
struct Corners {
    static constexpr bool MIXED = true;
    WS_FN Tap tap(u32 o, u32 size, f32 step) { return tap_at(f32(o) * step, size); }
};

// y of planes of height · width in rows · columns.
KERNEL(resize, types(T: f32, bf16, f16), functors(F: Nearest, Edges, Corners), in(T, x, planes * height * width),
       out(T, y, planes * rows * columns), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(f32, step_y), val(f32, step_x),
       launch(grid = ceil_div(planes * rows * columns, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * rows * columns) return;
    const Place at = place_of(i, rows, columns);
    const Tap down = F::tap(at.y, height, step_y), along = F::tap(at.x, width, step_x);
    const T* image = x + at.plane * height * width;
    const T* upper = image + u64(down.first) * width;
    if (!F::MIXED) {
        y[i] = upper[along.first];
        return;
    }
    const T* lower = image + u64(down.second) * width;
    const f32 above = 1.0f - down.weight, before = 1.0f - along.weight;
    const f32 left = above * to_f32(upper[along.first]) + down.weight * to_f32(lower[along.first]);
    const f32 right = above * to_f32(upper[along.second]) + down.weight * to_f32(lower[along.second]);
    y[i] = from_f32<T>(before * left + along.weight * right);
}

// The first of `count` outputs whose first element is at least `least`.
template <class F> WS_FN u32 first_from(u32 least, u32 count, u32 size, f32 step) {
    u32 low = 0, high = count;
    while (low < high) {
        const u32 middle = low + (high - low) / 2;
        if (F::tap(middle, size, step).first >= least) high = middle;
        else low = middle + 1;
    }
    return low;
}

// What element `at` gets of an output that was given `v`. At the end both taps are one element, and both products are taken: 0
// times an infinity is NaN there as elsewhere.
WS_FN f32 share_of(const Tap& tap, u32 at, f32 v) {
    return (tap.first == at ? (1.0f - tap.weight) * v : 0.0f) + (tap.second == at ? tap.weight * v : 0.0f);
}

// dx: the shares of the outputs that read an element.
KERNEL(resize_backward, types(T: f32, bf16, f16), functors(F: Nearest, Edges, Corners), in(T, dy, planes * rows * columns),
       out(T, dx, planes * height * width), val(u64, planes), val(u32, height), val(u32, width), val(u32, rows),
       val(u32, columns), val(f32, step_y), val(f32, step_x), val(u32, add),
       launch(grid = ceil_div(planes * height * width, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= planes * height * width) return;
    const Place at = place_of(i, height, width);
    // An output that reads this element second reads the one before it first.
    const u32 y = F::MIXED && at.y > 0 ? at.y - 1 : at.y, x = F::MIXED && at.x > 0 ? at.x - 1 : at.x;
    const u32 top = first_from<F>(y, rows, height, step_y), bottom = first_from<F>(at.y + 1, rows, height, step_y);
    const u32 left = first_from<F>(x, columns, width, step_x), right = first_from<F>(at.x + 1, columns, width, step_x);
    const T* given = dy + at.plane * rows * columns;
    LongSum sum;
    for (u32 oy = top; oy < bottom; ++oy) {
        const Tap down = F::tap(oy, height, step_y);
        for (u32 ox = left; ox < right; ++ox) {
            const f32 v = to_f32(given[u64(oy) * columns + ox]);
            sum.add(F::MIXED ? share_of(down, at.y, share_of(F::tap(ox, width, step_x), at.x, v)) : v);
        }
    }
    dx[i] = from_f32<T>(add ? to_f32(dx[i]) + sum.sum : sum.sum);
}
