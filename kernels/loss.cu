// archs: 80 86 89 90 100 120 ptx80
// loss.cu: losses of single elements and over rows of classes, forward and backward.
//
// A loss reads its operands once. A row of classes is read by `lanes` threads (a power of two up to 32) or, if WIDE, by a
// block of 256; maximum, sum of exponentials and weighted distances are kept together and scaled when the maximum rises, so
// that one pass suffices whatever the width. Sums over elements and rows are f32 within a thread and f64 from there on: each
// block leaves one, and one block adds those up, all in an order that only shapes decide. Where one block is all, it
// finishes by itself. A loss that must read statistics in backward gets them in f64 as the CPU stores them.
#include "core/columns.cuh"
#include "core/layout.cuh"
#include "core/math.cuh"

WS_FN f32 minus_infinity() { return -ws_infinity(); }

// ---- sums ----

struct BlockSums { f64 of[2][256]; };

// The sums of a and of b over the block's 256 threads; only thread 0 gets them.
WS_FN void sum_block(BlockSums& sums, f64& a, f64& b) {
    sums.of[0][threadIdx.x] = a;
    sums.of[1][threadIdx.x] = b;
    for (u32 half = 128; half > 0; half /= 2) {
        // Publishes the round before.
        __syncthreads();
        if (threadIdx.x < half) {
            sums.of[0][threadIdx.x] += sums.of[0][threadIdx.x + half];
            sums.of[1][threadIdx.x] += sums.of[1][threadIdx.x + half];
        }
    }
    // Thread 0 wrote the last round itself; the others may not look without another barrier.
    if (threadIdx.x == 0) {
        a = sums.of[0][0];
        b = sums.of[1][0];
    }
}

// What a block leaves: `total` and `count` (weights) as the loss itself, if there is one block, else as its part.
template <class T>
WS_FN void leave_sums(f64 total, f64 count, f64* parts, T* loss, f64* divisor, f64 by, u32 weighted) {
    if (parts) {
        parts[2 * u64(blockIdx.x)] = total;
        parts[2 * u64(blockIdx.x) + 1] = count;
        return;
    }
    if (weighted) by = count;
    *loss = from_f32<T>(f32(total / by));
    if (divisor) *divisor = by;
}

// loss = (sum of the totals) / by, or by the sum of the counts if `weighted`; `divisor` gets what was divided by.
KERNEL(finish_loss, types(T: f32, bf16, f16), in(f64, parts, any), out(T, loss, 1), opt_out(f64, divisor, 1),
       val(u64, blocks), val(f64, by), val(u32, weighted), launch(grid = 1, block = 256, shared = 0)) {
    SHARED(BlockSums, sums);
    f64 total = 0.0, count = 0.0;
    for (u64 i = threadIdx.x; i < blocks; i += 256) {
        total += parts[2 * i];
        count += parts[2 * i + 1];
    }
    sum_block(sums, total, count);
    if (threadIdx.x == 0) leave_sums<T>(total, count, nullptr, loss, divisor, by, weighted);
}

// y = value.
KERNEL(set_divisor, out(f64, y, 1), val(f64, value), launch(grid = 1, block = 32, shared = 0)) {
    if (threadIdx.x == 0) *y = value;
}

// ---- single elements ----

// The losses of single elements: input x, target t, weight w, weight of the positive class p, parameter a. As in
// src/ops/loss/kinds.rs.
struct Mse {
    WS_FN f32 value(f32 x, f32 t, f32, f32, f32) { return (x - t) * (x - t); }
    WS_FN f32 dx(f32 x, f32 t, f32, f32, f32) { return 2.0f * (x - t); }
    WS_FN f32 dt(f32 x, f32 t, f32, f32, f32) { return -(2.0f * (x - t)); }
};

// The sign of d; 0 and NaN stay.
WS_FN f32 sign_of(f32 d) { return d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d; }

struct L1 {
    WS_FN f32 value(f32 x, f32 t, f32, f32, f32) { return ws_abs(x - t); }
    WS_FN f32 dx(f32 x, f32 t, f32, f32, f32) { return sign_of(x - t); }
    WS_FN f32 dt(f32 x, f32 t, f32, f32, f32) { return -sign_of(x - t); }
};

struct Huber {
    WS_FN f32 value(f32 x, f32 t, f32, f32, f32 delta) {
        const f32 z = ws_abs(x - t);
        return z < delta ? 0.5f * z * z : delta * (z - 0.5f * delta);
    }
    WS_FN f32 dx(f32 x, f32 t, f32, f32, f32 delta) {
        const f32 d = x - t;
        return d > delta ? delta : d < -delta ? -delta : d;
    }
    WS_FN f32 dt(f32 x, f32 t, f32 w, f32 p, f32 delta) { return -dx(x, t, w, p, delta); }
};

struct SmoothL1 {
    WS_FN f32 value(f32 x, f32 t, f32, f32, f32 beta) {
        const f32 z = ws_abs(x - t);
        return z < beta ? 0.5f * z * z / beta : z - 0.5f * beta;
    }
    WS_FN f32 dx(f32 x, f32 t, f32, f32, f32 beta) {
        const f32 d = x - t;
        return ws_abs(d) < beta ? d / beta : sign_of(d);
    }
    WS_FN f32 dt(f32 x, f32 t, f32 w, f32 p, f32 beta) { return -dx(x, t, w, p, beta); }
};

// a: whether the target holds log-probabilities.
struct Kl {
    WS_FN f32 value(f32 x, f32 t, f32, f32, f32 a) {
        if (a != 0.0f) return ws_exp(t) * (t - x);
        return (t == 0.0f ? 0.0f : t * ws_log(t)) - t * x;
    }
    WS_FN f32 dx(f32, f32 t, f32, f32, f32 a) { return a != 0.0f ? -ws_exp(t) : -t; }
    WS_FN f32 dt(f32 x, f32 t, f32, f32, f32 a) {
        return a != 0.0f ? ws_exp(t) * (t - x + 1.0f) : ws_log(t) + 1.0f - x;
    }
};

struct Bce {
    WS_FN f32 value(f32 x, f32 t, f32 w, f32 p, f32) {
        return w * ((1.0f - t) * x + ((p - 1.0f) * t + 1.0f) * ws_softplus(-x));
    }
    WS_FN f32 dx(f32 x, f32 t, f32 w, f32 p, f32) {
        const f32 e = ws_exp(-ws_abs(x));
        const f32 sigmoid = (x < 0.0f ? e : 1.0f) / (1.0f + e);
        return w * ((p * t + 1.0f - t) * sigmoid - p * t);
    }
    WS_FN f32 dt(f32 x, f32, f32 w, f32 p, f32) { return w * ((p - 1.0f) * ws_softplus(-x) - x); }
};

// Elements of a thread in forward; GROUP of them are under way together.
constexpr u32 POINTS = 16;

// GROUP elements of an operand, 1 for an absent one: neighbours in vectors if `flat` (from `i` on, or one value for all where
// the stride is 0), else every 256th, wherever the strides lead.
template <class T>
WS_FN void load_points(f32 (&v)[GROUP], const T* from, const Strides& by, const Dims& dims, u64 i, u64 n, u32 flat) {
#pragma unroll
    for (u32 k = 0; k < GROUP; ++k) v[k] = 1.0f;
    if (!from) return;
    if (!flat) {
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k)
            if (i + k * 256 < n) v[k] = to_f32(from[offset_of(i + k * 256, dims, by)]);
    } else if (i < n) {
        if (dims.rank == 0 || by.by[0] == 0) {
            const f32 one = to_f32(*from);
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) v[k] = one;
        } else {
load_columns(v, from + i, 1, GROUP, 1);
        }
    }
}

// Element number k of a group that starts at i.
WS_FN u64 point_of(u64 i, u32 k, u32 flat) { return flat ? i + k : i + u64(k) * 256; }

// The first element of group g of this thread.
WS_FN u64 group_of(u32 g, u32 groups, u32 flat) {
    const u64 base = u64(blockIdx.x) * (256 * GROUP) * groups + u64(g) * (256 * GROUP);
    return base + (flat ? threadIdx.x * GROUP : threadIdx.x);
}

// y = f(x, t, w, p) if `each`, else the sum of them divided by `by`: into y if there is one block, else into parts. `flat`:
// n is a multiple of 8, x and t are contiguous and on 16 bytes, w and p are so too or one value.
KERNEL(point_loss, types(T: f32, bf16, f16), functors(F: Mse, L1, Huber, SmoothL1, Kl, Bce), in(T, x, any),
       in(T, target, any), opt_in(T, w, any), opt_in(T, p, any), opt_out(T, y, any), opt_out(f64, parts, any),
       val(Dims, dims), val(Strides, xs), val(Strides, ts), val(Strides, ws), val(Strides, ps), val(u64, n),
       val(f32, a), val(f64, by), val(u32, each), val(u32, flat),
       launch(grid = ceil_div(n, 4096), block = 256, shared = 0)) {
    SHARED(BlockSums, sums);
    f32 sum = 0.0f;
    for (u32 g = 0; g < POINTS / GROUP; ++g) {
        const u64 i = group_of(g, POINTS / GROUP, flat);
        f32 xv[GROUP], tv[GROUP], wv[GROUP], pv[GROUP];
        load_points(xv, x, xs, dims, i, n, flat);
        load_points(tv, target, ts, dims, i, n, flat);
        load_points(wv, w, ws, dims, i, n, flat);
        load_points(pv, p, ps, dims, i, n, flat);
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            const u64 at = point_of(i, k, flat);
            if (at >= n) continue;
            const f32 value = F::value(xv[k], tv[k], wv[k], pv[k], a);
            sum += value;
            if (each) y[at] = from_f32<T>(value);
        }
    }
    if (each) return;
    f64 total = f64(sum), count = 0.0;
    sum_block(sums, total, count);
    if (threadIdx.x == 0) leave_sums<T>(total, count, parts, y, nullptr, by, 0);
}

// dx (+)= df/dx * (dy * scale), dt (+)= df/dt * (dy * scale); either may be absent.
KERNEL(point_loss_backward, types(T: f32, bf16, f16), functors(F: Mse, L1, Huber, SmoothL1, Kl, Bce), in(T, dy, any),
       in(T, x, any), in(T, target, any), opt_in(T, w, any), opt_in(T, p, any), opt_out(T, dx, n), opt_out(T, dt, n),
       val(Dims, dims), val(Strides, ys), val(Strides, xs), val(Strides, ts), val(Strides, ws), val(Strides, ps),
       val(u64, n), val(f32, a), val(f32, scale), val(u32, add_x), val(u32, add_t), val(u32, flat),
       launch(grid = ceil_div(n, 2048), block = 256, shared = 0)) {
    const u64 i = group_of(0, 1, flat);
    f32 gv[GROUP], xv[GROUP], tv[GROUP], wv[GROUP], pv[GROUP];
    load_points(gv, dy, ys, dims, i, n, flat);
    load_points(xv, x, xs, dims, i, n, flat);
    load_points(tv, target, ts, dims, i, n, flat);
    load_points(wv, w, ws, dims, i, n, flat);
    load_points(pv, p, ps, dims, i, n, flat);
    if (i >= n) return;
    const u64 step = flat ? 1 : 256, left = (n - i + step - 1) / step;
    const u32 here = left < GROUP ? u32(left) : GROUP;
    f32 d[GROUP];
    if (dx) {
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) d[k] = F::dx(xv[k], tv[k], wv[k], pv[k], a) * (gv[k] * scale);
        put_columns(dx + i, step, here, flat, d, add_x);
    }
    if (dt) {
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) d[k] = F::dt(xv[k], tv[k], wv[k], pv[k], a) * (gv[k] * scale);
        put_columns(dt + i, step, here, flat, d, add_t);
    }
}

// ---- rows of classes ----

// Which row and which of its threads this is.
struct RowOf { u64 row; u32 lane, lanes; };
WS_FN RowOf row_of(u64 lanes) {
    const u64 thread = u64(blockIdx.x) * 256 + threadIdx.x;
    return RowOf{thread >> (__ffs(i32(lanes)) - 1), threadIdx.x & (u32(lanes) - 1), u32(lanes)};
}

// A row so far: its maximum m, sum of exp(x - m), and for targets u: sum of u and of u * (x - m). NaN is not a maximum: it
// comes back from the sums.
struct Online { f32 max, sum, mass, dot; };

// Scales to a larger maximum. Where the old one was -inf the sums have not been moved yet.
WS_FN void raise_to(Online& o, f32 max) {
    if (!(max > o.max)) return;
    if (o.max > minus_infinity()) {
        const f32 by = o.max - max;
        o.sum *= ws_exp(by);
        o.dot += by * o.mass;
    }
    o.max = max;
}

// Takes in an element not above the maximum. With a maximum of -inf it is -inf (or NaN), as far from any maximum to come.
WS_FN void take_in(Online& o, f32 x, f32 u) {
    const f32 d = o.max > minus_infinity() ? x - o.max : x;
    o.sum += ws_exp(d);
    o.mass += u;
    o.dot += u * d;
}

WS_FN Online join(Online a, Online b) {
    const f32 max = b.max > a.max ? b.max : a.max;
    raise_to(a, max);
    raise_to(b, max);
    return Online{max, a.sum + b.sum, a.mass + b.mass, a.dot + b.dot};
}

WS_FN Online other_lane(const Online& o, u32 lanes) {
    return Online{__shfl_xor_sync(0xFFFFFFFFu, o.max, lanes), __shfl_xor_sync(0xFFFFFFFFu, o.sum, lanes),
                  __shfl_xor_sync(0xFFFFFFFFu, o.mass, lanes), __shfl_xor_sync(0xFFFFFFFFu, o.dot, lanes)};
}

struct Adding {
    WS_FN f32 apply(f32 a, f32 b) { return a + b; }
};
struct Larger {
    // As the CPU's: NaN is passed over.
    WS_FN f32 apply(f32 a, f32 b) { return b > a ? b : a; }
};

// Over the threads of a row: `lanes` of a warp, or all 256 of the block if WIDE. All of them get the result.
struct WarpRows { Online of[8]; };
template <int WIDE> WS_FN Online join_row(WarpRows& shared, Online o, u32 lanes) {
    for (u32 step = (WIDE ? 32 : lanes) / 2; step > 0; step /= 2) o = join(o, other_lane(o, step));
    if (WIDE) {
        if (threadIdx.x % 32 == 0) shared.of[threadIdx.x / 32] = o;
        // Publishes the warps' rows; nothing is written there again.
        __syncthreads();
        o = shared.of[0];
        for (u32 w = 1; w < 8; ++w) o = join(o, shared.of[w]);
    }
    return o;
}

struct WarpNumbers { f32 of[8]; };
template <int WIDE, class F> WS_FN f32 fold_row(WarpNumbers& shared, f32 v, u32 lanes) {
    for (u32 step = (WIDE ? 32 : lanes) / 2; step > 0; step /= 2)
        v = F::apply(v, __shfl_xor_sync(0xFFFFFFFFu, v, step));
    if (WIDE) {
        if (threadIdx.x % 32 == 0) shared.of[threadIdx.x / 32] = v;
        // Publishes the warps' numbers.
        __syncthreads();
        v = shared.of[0];
        for (u32 w = 1; w < 8; ++w) v = F::apply(v, shared.of[w]);
        // All have read them: the next fold may write.
        __syncthreads();
    }
    return v;
}

// Calls f(first column, step, elements, those of `other`, how many) for the columns of a row that belong to thread `lane` of
// `lanes`, GROUP at most at a time: neighbours if `flat` (the number of classes and the addresses allow it), else every
// `lanes`-th. Number k of a call is column `first + k * step`.
template <class T, class F>
WS_FN void each_column(const T* row, const T* other, u64 classes, const RowOf& at, u32 flat, F f) {
    const u64 first = flat ? u64(at.lane) * GROUP : at.lane, step = flat ? 1 : at.lanes;
    for (u64 c = first; c < classes; c += u64(at.lanes) * GROUP) {
        const u64 left = flat ? classes - c : (classes - c + step - 1) / step;
        const u32 here = left < GROUP ? u32(left) : GROUP;
        f32 v[GROUP], z[GROUP];
        load_columns(v, row + c, step, here, flat);
        if (other) load_columns(z, other + c, step, here, flat);
        f(c, step, v, z, here);
    }
}

// A row's statistics by all its threads, with u(column, element of `other`) as targets (asked for only if `targets`).
template <int WIDE, class T, class U>
WS_FN Online read_row(WarpRows& shared, const T* row, const T* other, u64 classes, const RowOf& at, u32 flat, bool targets,
                      U u) {
    Online o{minus_infinity(), 0.0f, 0.0f, 0.0f};
    if (row)
        each_column(row, other, classes, at, flat,
                    [&](u64 c, u64 step, const f32(&v)[GROUP], const f32(&z)[GROUP], u32 here) {
            f32 max = minus_infinity();
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k)
                if (k < here) max = v[k] > max ? v[k] : max;
            raise_to(o, max);
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k)
                if (k < here) take_in(o, v[k], targets ? u(c + k * step, z[k]) : 0.0f);
        });
    o = join_row<WIDE>(shared, o, at.lanes);
    // Nothing but -inf: there is no distance to it.
    if (row && classes > 0 && !(o.max > minus_infinity())) o.sum = o.dot = ws_nan();
    return o;
}

// Cross entropy of rows of logits (`pitch` apart, of which the first `classes` count) and class indices: statistics [rows, 2] (maximum, sum of exponentials), each row's loss
// into `each`, if there is one, and the sums of losses and of target weights as in `leave_sums`.
KERNEL(cross_entropy, types(T: f32, bf16, f16), types(I: i32, i64), ints(WIDE: 0, 1), in(T, x, rows * pitch),
       in(I, target, rows), opt_in(T, weight, classes), opt_out(T, each, rows), opt_out(T, loss, 1),
       opt_out(f64, divisor, 1), opt_out(f64, parts, any), out(f64, stats, rows * 2), inout(u32, fault, any),
       val(u64, rows), val(u64, classes), val(u64, pitch), val(u64, lanes), val(i64, ignored), val(f32, rest),
       val(f32, smooth), val(f64, by), val(u32, weighted), val(u32, flat),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpRows, shared);
    SHARED(BlockSums, sums);
    const RowOf at = row_of(lanes);
    const bool live = at.row < rows;
    const T* const row = live ? x + at.row * pitch : nullptr;
    const Online o = read_row<WIDE>(shared, row, static_cast<const T*>(nullptr), classes, at, flat, smooth > 0.0f,
                                    [&](u64 c, f32) { return weight ? to_f32(weight[c]) : 1.0f; });
    f64 total = 0.0, count = 0.0;
    if (live && at.lane == 0) {
        const i64 y = i64(target[at.row]);
        f32 value = 0.0f;
        if (y != ignored) {
            if (u64(y) < classes) {
                const f32 w = weight ? to_f32(weight[y]) : 1.0f;
                const f32 log = ws_log(o.sum);
                value = rest * w * (log - (to_f32(row[y]) - o.max));
                if (smooth > 0.0f) value += smooth * (log * o.mass - o.dot);
                count = f64(w);
            } else {
                report(fault, y, at.row);
            }
        }
        stats[2 * at.row] = f64(o.max);
        stats[2 * at.row + 1] = f64(o.sum);
        if (each) each[at.row] = from_f32<T>(value);
        total = f64(value);
    }
    if (each) return;
    sum_block(sums, total, count);
    if (threadIdx.x == 0) leave_sums<T>(total, count, parts, loss, divisor, by, weighted);
}

// dx (+)= dy / divisor * (softmax * (sum of the smoothed, weighted target) - that target), 0 for ignored rows and behind the
// classes. dy: one for all rows (dy_step 0) or one each (1). x may be dx: a thread reads its columns before it writes them.
template <int WIDE, class T, class I>
WS_FN void cross_entropy_gradient(WarpNumbers& shared, const T* dy, const T* x, const f64* stats, const f64* divisor, const I* target,
                                  const T* weight, T* dx, u32* fault, u64 rows, u64 classes, u64 pitch, u64 lanes, u64 dy_step,
                                  i64 ignored, f32 rest, f32 smooth, u32 divide, u32 flat, u32 add) {
    const RowOf at = row_of(lanes);
    const bool live = at.row < rows;
    const auto weight_of = [&](u64 c) { return weight ? to_f32(weight[c]) : 1.0f; };
    f32 mass = smooth > 0.0f ? f32(classes) : 0.0f;
    if (weight && smooth > 0.0f) {
        mass = 0.0f;
        for (u64 c = at.lane; c < classes; c += at.lanes) mass += to_f32(weight[c]);
        mass = fold_row<WIDE, Adding>(shared, mass, at.lanes);
    }
    if (!live) return;
    const i64 y = i64(target[at.row]);
    const bool counts = y != ignored && u64(y) < classes;
    if (y != ignored && !counts && at.lane == 0) report(fault, y, at.row);
    if (!counts && add) return;
    f32 max = 0.0f, factor = 0.0f, spread = 0.0f, hit = 0.0f;
    if (counts) {
        max = f32(stats[2 * at.row]);
        const f32 g = to_f32(dy[at.row * dy_step]) / (divide ? f32(*divisor) : 1.0f);
        hit = g * rest * weight_of(u64(y));
        spread = g * smooth;
        factor = (hit + spread * mass) / f32(stats[2 * at.row + 1]);
    }
    const u64 base = at.row * pitch;
    each_column(x + base, static_cast<const T*>(nullptr), pitch, at, flat,
                [&](u64 c, u64 step, const f32(&v)[GROUP], const f32(&)[GROUP], u32 here) {
        f32 d[GROUP];
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            if (k >= here) continue;
            const u64 j = c + k * step;
            d[k] = 0.0f;
            if (counts && j < classes) {
                d[k] = ws_exp(v[k] - max) * factor;
                if (smooth > 0.0f) d[k] -= spread * weight_of(j);
                if (j == u64(y)) d[k] -= hit;
            }
        }
        put_columns(dx + base + c, step, here, flat, d, add);
    });
}

KERNEL(cross_entropy_backward, types(T: f32, bf16, f16), types(I: i32, i64), ints(WIDE: 0, 1), in(T, dy, any),
       in(T, x, rows * pitch), in(f64, stats, rows * 2), in(f64, divisor, 1), in(I, target, rows),
       opt_in(T, weight, classes), out(T, dx, rows * pitch), inout(u32, fault, any), val(u64, rows), val(u64, classes),
       val(u64, pitch), val(u64, lanes), val(u64, dy_step), val(i64, ignored), val(f32, rest), val(f32, smooth),
       val(u32, divide), val(u32, flat), val(u32, add),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpNumbers, shared);
    cross_entropy_gradient<WIDE>(shared, dy, x, stats, divisor, target, weight, dx, fault, rows, classes, pitch, lanes, dy_step,
                                 ignored, rest, smooth, divide, flat, add);
}

// The same over the logits x.
KERNEL(cross_entropy_overwrite, types(T: f32, bf16, f16), types(I: i32, i64), ints(WIDE: 0, 1), in(T, dy, any),
       inout(T, x, rows * pitch), in(f64, stats, rows * 2), in(f64, divisor, 1), in(I, target, rows),
       opt_in(T, weight, classes), inout(u32, fault, any), val(u64, rows), val(u64, classes), val(u64, pitch),
       val(u64, lanes), val(u64, dy_step), val(i64, ignored), val(f32, rest), val(f32, smooth), val(u32, divide),
       val(u32, flat), launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpNumbers, shared);
    cross_entropy_gradient<WIDE>(shared, dy, x, stats, divisor, target, weight, x, fault, rows, classes, pitch, lanes, dy_step,
                                 ignored, rest, smooth, divide, flat, 0);
}

// Cross entropy of rows of logits and distributions t, smoothed to u = w * (rest * t + even). Outputs as of `cross_entropy`.
KERNEL(soft_cross_entropy, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, rows * classes), in(T, target, rows * classes),
       opt_in(T, weight, classes), opt_out(T, each, rows), opt_out(T, loss, 1), opt_out(f64, parts, any),
       out(f64, stats, rows * 2), val(u64, rows), val(u64, classes), val(u64, lanes), val(f32, rest), val(f32, even),
       val(f64, by), val(u32, flat), launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpRows, shared);
    SHARED(BlockSums, sums);
    const RowOf at = row_of(lanes);
    const bool live = at.row < rows;
    const T* const row = live ? x + at.row * classes : nullptr;
    const Online o = read_row<WIDE>(shared, row, target + at.row * classes, classes, at, flat, true, [&](u64 c, f32 z) {
        const f32 u = rest * z + even;
        return weight ? to_f32(weight[c]) * u : u;
    });
    f64 total = 0.0, count = 0.0;
    if (live && at.lane == 0) {
        const f32 value = ws_log(o.sum) * o.mass - o.dot;
        stats[2 * at.row] = f64(o.max);
        stats[2 * at.row + 1] = f64(o.sum);
        if (each) each[at.row] = from_f32<T>(value);
        total = f64(value);
    }
    if (each) return;
    sum_block(sums, total, count);
    if (threadIdx.x == 0) leave_sums<T>(total, count, parts, loss, nullptr, by, 0);
}

// dx (+)= g * (softmax * mass - u), dt (+)= g * rest * w * (ln sum - (x - max)), g = dy / by; either may be absent.
KERNEL(soft_cross_entropy_backward, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, dy, any), in(T, x, rows * classes),
       in(f64, stats, rows * 2), in(T, target, rows * classes), opt_in(T, weight, classes), opt_out(T, dx, rows * classes),
       opt_out(T, dt, rows * classes), val(u64, rows), val(u64, classes), val(u64, lanes), val(u64, dy_step),
       val(f32, rest), val(f32, even), val(f32, by), val(u32, flat), val(u32, add_x), val(u32, add_t),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpNumbers, shared);
    const RowOf at = row_of(lanes);
    const bool live = at.row < rows;
    const auto weight_of = [&](u64 c) { return weight ? to_f32(weight[c]) : 1.0f; };
    f32 mass = 0.0f;
    if (dx) {
        if (live)
            each_column(target + at.row * classes, static_cast<const T*>(nullptr), classes, at, flat,
                        [&](u64 c, u64 step, const f32(&v)[GROUP], const f32(&)[GROUP], u32 here) {
#pragma unroll
                for (u32 k = 0; k < GROUP; ++k)
                    if (k < here) mass += weight_of(c + k * step) * (rest * v[k] + even);
            });
        mass = fold_row<WIDE, Adding>(shared, mass, at.lanes);
    }
    if (!live) return;
    const f32 max = f32(stats[2 * at.row]), sum = f32(stats[2 * at.row + 1]);
    const f32 g = to_f32(dy[at.row * dy_step]) / by, factor = g * mass / sum, log = ws_log(sum);
    const u64 base = at.row * classes;
    each_column(x + base, target + base, classes, at, flat,
                [&](u64 c, u64 step, const f32(&v)[GROUP], const f32(&z)[GROUP], u32 here) {
        f32 of_x[GROUP], of_t[GROUP];
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            if (k >= here) continue;
            const f32 w = weight_of(c + k * step), off = v[k] - max;
            of_x[k] = ws_exp(off) * factor - g * w * (rest * z[k] + even);
            of_t[k] = g * rest * w * (log - off);
        }
        if (dx) put_columns(dx + base + c, step, here, flat, of_x, add_x);
        if (dt) put_columns(dt + base + c, step, here, flat, of_t, add_t);
    });
}

// The divergence of softmax(a / T) from softmax(b / T) times T squared, rows summed and divided by `by`; cool = 1 / T. Two
// passes over each pair of rows, the second from the cache. Statistics [rows, 4]: maximum and sum of a, of b.
KERNEL(distillation_loss, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, a, rows * classes), in(T, b, rows * classes),
       opt_out(T, loss, 1), opt_out(f64, parts, any), out(f64, stats, rows * 4), val(u64, rows), val(u64, classes),
       val(u64, lanes), val(f32, cool), val(f32, square), val(f64, by), val(u32, flat),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    SHARED(WarpNumbers, shared);
    SHARED(BlockSums, sums);
    const RowOf at = row_of(lanes);
    const bool live = at.row < rows;
    const T *const as = a + at.row * classes, *const bs = b + at.row * classes;
    f32 a_max = minus_infinity(), b_max = minus_infinity(), a_sum = 0.0f, b_sum = 0.0f, dot = 0.0f;
    const auto larger = [](f32& max) {
        return [&max](u64, u64, const f32(&v)[GROUP], const f32(&)[GROUP], u32 here) {
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k)
                if (k < here) max = Larger::apply(max, v[k]);
        };
    };
    if (live) {
        each_column(as, static_cast<const T*>(nullptr), classes, at, flat, larger(a_max));
        each_column(bs, static_cast<const T*>(nullptr), classes, at, flat, larger(b_max));
    }
    a_max = fold_row<WIDE, Larger>(shared, a_max, at.lanes) * cool;
    b_max = fold_row<WIDE, Larger>(shared, b_max, at.lanes) * cool;
    if (live)
        each_column(as, bs, classes, at, flat,
                    [&](u64, u64, const f32(&v)[GROUP], const f32(&z)[GROUP], u32 here) {
#pragma unroll
            for (u32 k = 0; k < GROUP; ++k) {
                if (k >= here) continue;
                const f32 off_a = v[k] * cool - a_max, off_b = z[k] * cool - b_max, e = ws_exp(off_b);
                a_sum += ws_exp(off_a);
                b_sum += e;
                dot += e * (off_b - off_a);
            }
        });
    a_sum = fold_row<WIDE, Adding>(shared, a_sum, at.lanes);
    b_sum = fold_row<WIDE, Adding>(shared, b_sum, at.lanes);
    dot = fold_row<WIDE, Adding>(shared, dot, at.lanes);
    f64 total = 0.0, count = 0.0;
    if (live && at.lane == 0) {
        total = f64(square * (dot / b_sum - (ws_log(b_sum) - ws_log(a_sum))));
        stats[4 * at.row] = f64(a_max);
        stats[4 * at.row + 1] = f64(a_sum);
        stats[4 * at.row + 2] = f64(b_max);
        stats[4 * at.row + 3] = f64(b_sum);
    }
    sum_block(sums, total, count);
    if (threadIdx.x == 0) leave_sums<T>(total, count, parts, loss, nullptr, by, 0);
}

// da (+)= dy * scale * (softmax(a / T) - softmax(b / T)).
KERNEL(distillation_loss_backward, types(T: f32, bf16, f16), in(T, dy, any), in(T, a, rows * classes),
       in(T, b, rows * classes), in(f64, stats, rows * 4), out(T, da, rows * classes), val(u64, rows),
       val(u64, classes), val(u64, lanes), val(f32, cool), val(f32, scale), val(u32, flat), val(u32, add),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    const RowOf at = row_of(lanes);
    if (at.row >= rows) return;
    const f64* const row = stats + 4 * at.row;
    const f32 a_max = f32(row[0]), b_max = f32(row[2]);
    const f32 g = to_f32(*dy) * scale, of_a = g / f32(row[1]), of_b = g / f32(row[3]);
    const u64 base = at.row * classes;
    each_column(a + base, b + base, classes, at, flat,
                [&](u64 c, u64 step, const f32(&v)[GROUP], const f32(&z)[GROUP], u32 here) {
        f32 d[GROUP];
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k)
            if (k < here) d[k] = ws_exp(v[k] * cool - a_max) * of_a - ws_exp(z[k] * cool - b_max) * of_b;
        put_columns(da + base + c, step, here, flat, d, add);
    });
}
