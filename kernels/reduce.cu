// archs: 80 90 100 120 ptx80
// reduce.cu: reductions over any set of dimensions of a strided view, and the elementwise passes of their backwards.
//
// Limited by memory: one read of the input. Elements become a functor's State in groups of four loads, joined as a tree, so
// that loads overlap and chains of roundings stay short; sums of floats are f32. Three forms, chosen by `plan` in
// src/ops/reduce/gpu.rs from shape and strides alone:
//   rows     a group of 1 to 256 threads for each output, along the reduced dimensions
//   columns  neighbouring threads for neighbouring outputs, several rows of threads for each, joined in shared memory
//   pieces   either form over parts of long reductions (blockIdx.y), whose States `finish` joins in their order
// The order is a function of the plan, so the bits repeat. `gone` are the reduced dimensions, `kept` the others; x_kept and
// x_gone the strides of x along them, w_kept and w_gone those of the second operand of functors that read two.
#include "core/group.cuh"
#include "core/layout.cuh"
#include "core/math.cuh"
#include "core/vec.cuh"

constexpr u32 THREADS = 256;
constexpr u32 UNROLL = 4;      // loads of a thread under way together

template <class T> WS_MAP u32 reduce_vector(u32 wide) { return wide ? 16 / sizeof(T) : 1; }

// ---- functors: State, none, join; chunk = the State of N elements of x (and w); result = the output, given the scale

// Functors that map each element to a number and join those in a tree.
template <class F, u32 N> WS_FN f32 chunk_of(const f32 (&x)[N], const f32 (&w)[N]) {
    f32 s[N];
#pragma unroll
    for (u32 i = 0; i < N; ++i) s[i] = F::of(x[i], w[i]);
    return join_tree<F>(s);
}

// Σ x / scale; a sum is a mean with scale 1.
struct Total : GroupSum {
    static constexpr bool TWO = false;
    WS_FN f32 of(f32 x, f32) { return x; }
    template <u32 N> WS_FN f32 chunk(const f32 (&x)[N], const f32 (&w)[N]) { return chunk_of<Total>(x, w); }
    WS_FN f32 result(f32 s, f32 scale, u32) { return s / scale; }
};
// How many x equal w, NaN equalling NaN.
WS_FN bool same(f32 x, f32 y) { return x == y || (x != x && y != y); }
struct Hits : GroupSum {
    static constexpr bool TWO = true;
    WS_FN f32 of(f32 x, f32 w) { return same(x, w) ? 1.0f : 0.0f; }
    template <u32 N> WS_FN f32 chunk(const f32 (&x)[N], const f32 (&w)[N]) { return chunk_of<Hits>(x, w); }
    WS_FN f32 result(f32 s, f32, u32) { return s; }
};
struct Largest : GroupMax {
    static constexpr bool TWO = false;
    WS_FN f32 of(f32 x, f32) { return x; }
    template <u32 N> WS_FN f32 chunk(const f32 (&x)[N], const f32 (&w)[N]) { return chunk_of<Largest>(x, w); }
    WS_FN f32 result(f32 s, f32, u32) { return s; }
};
struct Smallest {
    using State = f32;
    static constexpr bool TWO = false;
    WS_FN f32 none() { return ws_infinity(); }
    WS_FN f32 join(f32 a, f32 b) { return smaller(a, b); }
    WS_FN f32 of(f32 x, f32) { return x; }
    template <u32 N> WS_FN f32 chunk(const f32 (&x)[N], const f32 (&w)[N]) { return chunk_of<Smallest>(x, w); }
    WS_FN f32 result(f32 s, f32, u32) { return s; }
};
// Σ (x - mean)² / scale, or its root: number, mean and squares of parts, joined about their common mean (Chan et al.).
struct Moment { f32 n, mean, squares; };
struct Moments {
    using State = Moment;
    static constexpr bool TWO = false;
    WS_FN Moment none() { return {0.0f, 0.0f, 0.0f}; }
    WS_FN Moment join(const Moment& a, const Moment& b) {
        if (a.n == 0.0f) return b;
        if (b.n == 0.0f) return a;
        const f32 n = a.n + b.n, d = b.mean - a.mean, share = b.n / n;
        return {n, fmaf(d, share, a.mean), a.squares + b.squares + d * d * (a.n * share)};
    }
    template <u32 N> WS_FN Moment chunk(const f32 (&x)[N], const f32 (&)[N]) {
        f32 s[N];
#pragma unroll
        for (u32 i = 0; i < N; ++i) s[i] = x[i];
        const f32 mean = join_tree<GroupSum>(s) / f32(N);
#pragma unroll
        for (u32 i = 0; i < N; ++i) s[i] = (x[i] - mean) * (x[i] - mean);
        return {f32(N), mean, join_tree<GroupSum>(s)};
    }
    WS_FN f32 result(const Moment& s, f32 scale, u32 root) {
        const f32 v = s.squares / scale;
        return root ? sqrtf(v) : v;
    }
};
// ln Σ e^x, found together with the largest x in one pass, without overflow: Σ e^x = sum · e^shift(max).
struct Scaled { f32 max, sum; };

// An infinite shift would make NaN of infinity less infinity.
WS_FN f32 shift_of(f32 max) { return ws_abs(max) == ws_infinity() ? 0.0f : max; }

// The sum of `s` below another shift. Where all x are -inf the sum is 0, whatever the shift.
WS_FN f32 rescaled(const Scaled& s, f32 shift) {
    return s.max == -ws_infinity() ? 0.0f : s.sum * ws_exp(shift_of(s.max) - shift);
}

struct LogSum {
    using State = Scaled;
    static constexpr bool TWO = false;
    WS_FN Scaled none() { return {-ws_infinity(), 0.0f}; }
    WS_FN Scaled join(const Scaled& a, const Scaled& b) {
        const f32 max = larger(a.max, b.max), shift = shift_of(max);
        return {max, rescaled(a, shift) + rescaled(b, shift)};
    }
    // Of N elements: one exponential each.
    template <u32 N> WS_FN Scaled chunk(const f32 (&x)[N], const f32 (&)[N]) {
        f32 m[N], e[N];
#pragma unroll
        for (u32 i = 0; i < N; ++i) m[i] = x[i];
        const f32 max = join_tree<GroupMax>(m), shift = shift_of(max);
#pragma unroll
        for (u32 i = 0; i < N; ++i) e[i] = ws_exp(x[i] - shift);
        return {max, join_tree<GroupSum>(e)};
    }
    WS_FN f32 result(const Scaled& s, f32, u32) { return ws_log(s.sum) + shift_of(s.max); }
};

// ---- the forms

// The offset of element `i` of the reduced dimensions.
WS_FN i64 gone_at(u64 i, const Dims& gone, const Strides& by) {
    return gone.rank <= 1 ? i64(i) * by.by[0] : offset_of(i, gone, by);
}

// V neighbours as f32 into `to`, from element `first` on.
template <u32 V, class T, u32 N> WS_FN void read(const T* from, f32 (&to)[N], u32 first) {
    const Vec<T, V> v = load_vec<V>(from);
#pragma unroll
    for (u32 e = 0; e < V; ++e) to[first + e] = to_f32(v[e]);
}

// The State of elements i, i + step, ... below end of one output, V neighbours at each.
template <class F, u32 V, class T>
WS_FN typename F::State along(const T* x, const T* w, u64 i, u64 end, u64 step, const Dims& gone, const Strides& x_gone,
                              const Strides& w_gone) {
    typename F::State s = F::none();
    for (; i + (UNROLL - 1) * step < end; i += UNROLL * step) {
        f32 a[UNROLL * V], b[UNROLL * V] = {};
#pragma unroll
        for (u32 k = 0; k < UNROLL; ++k) {
            read<V>(x + gone_at(i + k * step, gone, x_gone), a, k * V);
            if constexpr (F::TWO) read<V>(w + gone_at(i + k * step, gone, w_gone), b, k * V);
        }
        s = F::join(s, F::chunk(a, b));
    }
    for (; i < end; i += step) {
        f32 a[V], b[V] = {};
        read<V>(x + gone_at(i, gone, x_gone), a, 0);
        if constexpr (F::TWO) read<V>(w + gone_at(i, gone, w_gone), b, 0);
        s = F::join(s, F::chunk(a, b));
    }
    return s;
}

// A State as words, at number `index`.
template <class S> WS_FN void put_state(u32* states, u64 index, const S& s) {
    u32 words[sizeof(S) / 4];
    __builtin_memcpy(words, &s, sizeof(S));
#pragma unroll
    for (u32 k = 0; k < sizeof(S) / 4; ++k) states[index * (sizeof(S) / 4) + k] = words[k];
}
template <class S> WS_FN S get_state(const u32* states, u64 index) {
    u32 words[sizeof(S) / 4];
#pragma unroll
    for (u32 k = 0; k < sizeof(S) / 4; ++k) words[k] = states[index * (sizeof(S) / 4) + k];
    S s;
    __builtin_memcpy(&s, words, sizeof(S));
    return s;
}

template <class F, class T>
WS_FN void put(T* y, u32* states, u64 piece, u64 n, u64 o, const typename F::State& s, f32 scale, u32 root, u32 add) {
    if (states) return put_state(states, piece * n + o, s);
    const f32 v = F::result(s, scale, root);
    y[o] = from_f32<T>(add ? to_f32(y[o]) + v : v);
}

// The reduction of x to y, or, if there are `states`, of each piece to a State there. One group of `lanes` threads an output.
KERNEL(reduce_rows, types(T: f32, bf16, f16), functors(F: Total, Hits, Largest, Smallest, Moments, LogSum),
       ints(WIDE: 0, 1), in(T, x, any), opt_in(T, w, any), opt_out(T, y, n), opt_out(u32, states, any), val(Dims, kept),
       val(Strides, x_kept), val(Strides, w_kept), val(Dims, gone), val(Strides, x_gone), val(Strides, w_gone),
       val(u64, n), val(u64, length), val(u64, piece), val(u32, lanes), val(f32, scale), val(u32, root), val(u32, add),
       launch(grid = plan, block = 256, shared = 0)) {
    constexpr u32 V = reduce_vector<T>(WIDE);
    using Parts = typename F::State[THREADS / 32];
    SHARED(Parts, parts);
    const u64 o = u64(blockIdx.x) * (THREADS / lanes) + threadIdx.x / lanes;
    const u64 from = blockIdx.y * piece, end = from + piece < length ? from + piece : length;
    typename F::State s = F::none();
    if (o < n) {
        const T* xs = x + offset_of(o, kept, x_kept);
        const T* ws = F::TWO ? w + offset_of(o, kept, w_kept) : w;
        s = along<F, V>(xs, ws, from + threadIdx.x % lanes * V, end, u64(lanes) * V, gone, x_gone, w_gone);
    }
    s = join_group<F>(s, lanes, parts);
    if (o < n && threadIdx.x % lanes == 0) put<F>(y, states, blockIdx.y, n, o, s, scale, root, add);
}

// Joins the States of the threads of a block that stand in one of `columns` columns; the first row gets the result.
template <class F, u32 V> WS_FN void join_rows(typename F::State (&s)[V], u32 columns) {
    using Tile = typename F::State[THREADS * V];
    SHARED(Tile, tile);
    for (u32 half = THREADS / 2; half >= columns; half /= 2) {
        if (threadIdx.x >= half && threadIdx.x < 2 * half) {
#pragma unroll
            for (u32 v = 0; v < V; ++v) tile[v * THREADS + threadIdx.x] = s[v];
        }
        __syncthreads();   // publishes the upper half; each round writes threads of its own
        if (threadIdx.x < half) {
#pragma unroll
            for (u32 v = 0; v < V; ++v) s[v] = F::join(s[v], tile[v * THREADS + threadIdx.x + half]);
        }
    }
}

// As reduce_rows; V neighbouring outputs for each of `columns` threads, whose elements lie side by side.
KERNEL(reduce_columns, types(T: f32, bf16, f16), functors(F: Total, Hits, Largest, Smallest, Moments, LogSum),
       ints(WIDE: 0, 1), in(T, x, any), opt_in(T, w, any), opt_out(T, y, n), opt_out(u32, states, any), val(Dims, kept),
       val(Strides, x_kept), val(Strides, w_kept), val(Dims, gone), val(Strides, x_gone), val(Strides, w_gone),
       val(u64, n), val(u64, length), val(u64, piece), val(u32, columns), val(f32, scale), val(u32, root), val(u32, add),
       launch(grid = plan, block = 256, shared = 0)) {
    constexpr u32 V = reduce_vector<T>(WIDE);
    using State = typename F::State;
    const u64 o = (u64(blockIdx.x) * columns + threadIdx.x % columns) * V;
    const u64 from = blockIdx.y * piece, end = from + piece < length ? from + piece : length;
    const u32 rows = THREADS / columns;
    State s[V];
#pragma unroll
    for (u32 v = 0; v < V; ++v) s[v] = F::none();
    if (o < n) {
        const T* xs = x + offset_of(o, kept, x_kept);
        const T* ws = F::TWO ? w + offset_of(o, kept, w_kept) : w;
        u64 i = from + threadIdx.x / columns;
        for (; i + (UNROLL - 1) * rows < end; i += UNROLL * rows) {
            // Kept as they came: fewer registers.
            Vec<T, V> a[UNROLL], b[UNROLL] = {};
#pragma unroll
            for (u32 k = 0; k < UNROLL; ++k) {
                a[k] = load_vec<V>(xs + gone_at(i + k * rows, gone, x_gone));
                if constexpr (F::TWO) b[k] = load_vec<V>(ws + gone_at(i + k * rows, gone, w_gone));
            }
#pragma unroll
            for (u32 v = 0; v < V; ++v) {
                f32 p[UNROLL], q[UNROLL];
#pragma unroll
                for (u32 k = 0; k < UNROLL; ++k) { p[k] = to_f32(a[k][v]); q[k] = F::TWO ? to_f32(b[k][v]) : 0.0f; }
                s[v] = F::join(s[v], F::chunk(p, q));
            }
        }
        for (; i < end; i += rows) {
            f32 a[V], b[V] = {};
            read<V>(xs + gone_at(i, gone, x_gone), a, 0);
            if constexpr (F::TWO) read<V>(ws + gone_at(i, gone, w_gone), b, 0);
#pragma unroll
            for (u32 v = 0; v < V; ++v) {
                const f32 p[1] = {a[v]}, q[1] = {b[v]};
                s[v] = F::join(s[v], F::chunk(p, q));
            }
        }
    }
    join_rows<F, V>(s, columns);
    if (o < n && threadIdx.x < columns) {
#pragma unroll
        for (u32 v = 0; v < V; ++v) put<F>(y, states, blockIdx.y, n, o + v, s[v], scale, root, add);
    }
}

// The State of all pieces of output `o`, in the first row of the block: each thread joins every so many pieces in their order.
template <class F> WS_FN typename F::State joined(const u32* states, u64 o, u64 n, u32 pieces, u32 columns) {
    typename F::State s[1] = {F::none()};
    if (o < n) {
        for (u32 p = threadIdx.x / columns; p < pieces; p += THREADS / columns)
            s[0] = F::join(s[0], get_state<typename F::State>(states, p * n + o));
    }
    join_rows<F, 1>(s, columns);
    return s[0];
}

// y from the States of all pieces.
KERNEL(reduce_finish, types(T: f32, bf16, f16), functors(F: Total, Hits, Largest, Smallest, Moments, LogSum),
       in(u32, states, any), out(T, y, n), val(u64, n), val(u32, pieces), val(u32, columns), val(f32, scale),
       val(u32, root), val(u32, add), launch(grid = ceil_div(n, columns), block = 256, shared = 0)) {
    const u64 o = u64(blockIdx.x) * columns + threadIdx.x % columns;
    const typename F::State s = joined<F>(states, o, n, pieces, columns);
    if (o < n && threadIdx.x < columns) put<F>(y, nullptr, 0, n, o, s, scale, root, add);
}

// One State an output from those of all pieces.
KERNEL(join_states, functors(F: Total, Hits), in(u32, states, any), out(u32, joins, any),
       val(u64, n), val(u32, pieces), val(u32, columns), launch(grid = ceil_div(n, columns), block = 256, shared = 0)) {
    const u64 o = u64(blockIdx.x) * columns + threadIdx.x % columns;
    const typename F::State s = joined<F>(states, o, n, pieces, columns);
    if (o < n && threadIdx.x < columns) put_state(joins, o, s);
}

// ---- where the largest stands, and integers

// The largest number with the first place where it stands. Keys are ordered as the elements are, ascending or descending, NaN
// last, whatever their type.
struct Place { i64 key, at; };
struct First {
    using State = Place;
    WS_FN Place none() { return {i64(0x8000000000000000ull), i64(0x7FFFFFFFFFFFFFFFull)}; }
    WS_FN Place join(const Place& a, const Place& b) {
        return b.key > a.key || (b.key == a.key && b.at < a.at) ? b : a;
    }
};
WS_FN i64 ordered(i64 x) { return x; }
WS_FN i64 ordered(i32 x) { return x; }
WS_FN i64 ordered(u8 x) { return x; }
// The bits of a float grow with its magnitude; both zeros are 0.
WS_FN i64 ordered(f32 x) {
    const i32 bits = i32(bits_of(x));
    return x == 0.0f ? 0 : bits < 0 ? i64(bits ^ 0x7FFFFFFF) : i64(bits);
}
WS_FN i64 ordered(bf16 x) { return ordered(to_f32(x)); }
WS_FN i64 ordered(f16 x) { return ordered(to_f32(x)); }
template <class T> WS_FN bool is_nan(T) { return false; }
WS_FN bool is_nan(f32 x) { return x != x; }
WS_FN bool is_nan(bf16 x) { return is_nan(to_f32(x)); }
WS_FN bool is_nan(f16 x) { return is_nan(to_f32(x)); }

constexpr i64 NAN_KEY = 0x7FFFFFFFFFFFFFFF;
struct ArgMax { template <class T> WS_FN i64 key(T x) { return is_nan(x) ? NAN_KEY : ordered(x); } };
// The complement turns the order round, and overflows nowhere.
struct ArgMin { template <class T> WS_FN i64 key(T x) { return is_nan(x) ? NAN_KEY : ~ordered(x); } };

// The place of the first largest (smallest) element, counted row-major over `gone`; as reduce_rows.
KERNEL(choose_rows, types(T: f32, bf16, f16, u8, i32, i64), functors(F: ArgMax, ArgMin), in(T, x, any), opt_out(i64, y, n),
       opt_out(i64, states, any), val(Dims, kept), val(Strides, x_kept), val(Dims, gone), val(Strides, x_gone), val(u64, n),
       val(u64, length), val(u64, piece), val(u32, lanes), launch(grid = plan, block = 256, shared = 0)) {
    using Parts = Place[THREADS / 32];
    SHARED(Parts, parts);
    const u64 o = u64(blockIdx.x) * (THREADS / lanes) + threadIdx.x / lanes;
    const u64 from = blockIdx.y * piece, end = from + piece < length ? from + piece : length;
    Place s = First::none();
    if (o < n) {
        const T* xs = x + offset_of(o, kept, x_kept);
        u64 i = from + threadIdx.x % lanes;
        for (; i + (UNROLL - 1) * lanes < end; i += UNROLL * lanes) {
            T a[UNROLL];
#pragma unroll
            for (u32 k = 0; k < UNROLL; ++k) a[k] = xs[gone_at(i + k * lanes, gone, x_gone)];
#pragma unroll
            for (u32 k = 0; k < UNROLL; ++k) s = First::join(s, {F::key(a[k]), i64(i + k * lanes)});
        }
        for (; i < end; i += lanes) s = First::join(s, {F::key(xs[gone_at(i, gone, x_gone)]), i64(i)});
    }
    s = join_group<First>(s, lanes, parts);
    if (o < n && threadIdx.x % lanes == 0) {
        if (states) {
            states[2 * (blockIdx.y * n + o)] = s.key;
            states[2 * (blockIdx.y * n + o) + 1] = s.at;
        } else {
            y[o] = s.at;
        }
    }
}

// Joins the pieces of choose_rows.
KERNEL(choose_finish, in(i64, states, any), out(i64, y, n), val(u64, n), val(u32, pieces), val(u32, columns),
       launch(grid = ceil_div(n, columns), block = 256, shared = 0)) {
    const u64 o = u64(blockIdx.x) * columns + threadIdx.x % columns;
    Place s[1] = {First::none()};
    if (o < n) {
        for (u32 p = threadIdx.x / columns; p < pieces; p += THREADS / columns)
            s[0] = First::join(s[0], {states[2 * (p * n + o)], states[2 * (p * n + o) + 1]});
    }
    join_rows<First, 1>(s, columns);
    if (o < n && threadIdx.x < columns) y[o] = s[0].at;
}

struct IntTotal {
    using State = i64;
    WS_FN i64 none() { return 0; }
    WS_FN i64 join(i64 a, i64 b) { return i64(u64(a) + u64(b)); }
};
struct IntLargest {
    using State = i64;
    WS_FN i64 none() { return i64(0x8000000000000000ull); }
    WS_FN i64 join(i64 a, i64 b) { return b > a ? b : a; }
};
struct IntSmallest {
    using State = i64;
    WS_FN i64 none() { return 0x7FFFFFFFFFFFFFFF; }
    WS_FN i64 join(i64 a, i64 b) { return b < a ? b : a; }
};

// The i64 that `lanes` threads find over all elements of an output; 0 elements give `none`.
template <class F, class T>
WS_FN i64 integers(const T* x, u64 o, u64 n, u64 length, u32 lanes, const Dims& kept, const Strides& x_kept,
                   const Dims& gone, const Strides& x_gone) {
    using Parts = i64[THREADS / 32];
    SHARED(Parts, parts);
    i64 s = F::none();
    if (o < n) {
        const T* xs = x + offset_of(o, kept, x_kept);
        for (u64 i = threadIdx.x % lanes; i < length; i += lanes) s = F::join(s, i64(xs[gone_at(i, gone, x_gone)]));
    }
    return join_group<F>(s, lanes, parts);
}

// Integers, for counting and masks: one form, no pieces.
KERNEL(integer_sum, types(T: u8, i32, i64), in(T, x, any), out(i64, y, n), val(Dims, kept), val(Strides, x_kept),
       val(Dims, gone), val(Strides, x_gone), val(u64, n), val(u64, length), val(u32, lanes), val(u32, add),
       launch(grid = plan, block = 256, shared = 0)) {
    const u64 o = u64(blockIdx.x) * (THREADS / lanes) + threadIdx.x / lanes;
    const i64 s = integers<IntTotal>(x, o, n, length, lanes, kept, x_kept, gone, x_gone);
    if (o < n && threadIdx.x % lanes == 0) y[o] = add ? IntTotal::join(y[o], s) : s;
}
KERNEL(integer_extremum, types(T: u8, i32, i64), functors(F: IntLargest, IntSmallest), in(T, x, any), out(T, y, n),
       val(Dims, kept), val(Strides, x_kept), val(Dims, gone), val(Strides, x_gone), val(u64, n), val(u64, length),
       val(u32, lanes), val(u32, add), launch(grid = plan, block = 256, shared = 0)) {
    const u64 o = u64(blockIdx.x) * (THREADS / lanes) + threadIdx.x / lanes;
    const i64 s = integers<F>(x, o, n, length, lanes, kept, x_kept, gone, x_gone);
    // Added as machine integers do: what does not fit wraps.
    if (o < n && threadIdx.x % lanes == 0) y[o] = T(add ? IntTotal::join(i64(y[o]), s) : s);
}

// ---- elementwise passes: r = f(x, y, dy, stat); stat is a State of STAT words of the output that the element belongs to

WS_FN f32 word(const u32* stat, u32 k) { return f32_of(stat[k]); }

// dy / n.
struct SpreadMean {
    static constexpr u32 STAT = 0;
    WS_FN f32 apply(f32, f32, f32 dy, const u32*, f32 n, f32) { return dy / n; }
};
// dy · 2 (x - mean) / (n - correction); stat: Σ x.
struct SpreadVar {
    static constexpr u32 STAT = 1;
    WS_FN f32 apply(f32 x, f32, f32 dy, const u32* stat, f32 n, f32 scale) { return dy * scale * (x - word(stat, 0) / n); }
};
// dy (x - mean) / ((n - correction) y), 0 where y is 0; stat: Σ x.
struct SpreadStd {
    static constexpr u32 STAT = 1;
    WS_FN f32 apply(f32 x, f32 y, f32 dy, const u32* stat, f32 n, f32 scale) {
        return y == 0.0f ? 0.0f : dy / y * scale * (x - word(stat, 0) / n);
    }
};
// dy e^(x - y); 0 where y is -inf, and so every x.
struct SpreadLogSum {
    static constexpr u32 STAT = 0;
    WS_FN f32 apply(f32 x, f32 y, f32 dy, const u32*, f32, f32) { return dy * ws_exp(x - (y == -ws_infinity() ? 0.0f : y)); }
};
// dy / (how many equal y) where x equals y, else 0; stat: that number.
struct SpreadExtremum {
    static constexpr u32 STAT = 1;
    WS_FN f32 apply(f32 x, f32 y, f32 dy, const u32* stat, f32, f32) { return same(x, y) ? dy / word(stat, 0) : 0.0f; }
};
// The positions of one element under four layouts of one shape.
struct Four { i64 x, y, dy, stat; };
WS_FN Four four(u64 index, const Dims& dims, const Strides& x, const Strides& y, const Strides& dy, const Strides& stat) {
    Four at{0, 0, 0, 0};
    for (u32 d = dims.rank; d-- > 0;) {
        u64 here = index;
        if (d > 0) {
            const bool narrow = index <= 0xFFFFFFFFu && dims.size[d] <= 0xFFFFFFFFu;
            const u64 next = narrow ? u32(index) / u32(dims.size[d]) : index / dims.size[d];
            here = index - next * dims.size[d];
            index = next;
        }
        at.x += i64(here) * x.by[d];
        at.y += i64(here) * y.by[d];
        at.dy += i64(here) * dy.by[d];
        at.stat += i64(here) * stat.by[d];
    }
    return at;
}

// r[i] = f(x, y, dy, stat), each operand of any layout, absent where the functor does not read it. Four elements a thread.
KERNEL(spread, types(T: f32, bf16, f16),
       functors(F: SpreadMean, SpreadVar, SpreadStd, SpreadLogSum, SpreadExtremum),
       opt_in(T, x, any), opt_in(T, y, any), opt_in(T, dy, any), opt_in(u32, stat, any), out(T, r, n), val(Dims, dims),
       val(Strides, x_by), val(Strides, y_by), val(Strides, dy_by), val(Strides, stat_by), val(u64, n), val(f32, count),
       val(f32, scale), val(u32, add), launch(grid = ceil_div(n, 1024), block = 256, shared = 0)) {
    const u64 first = u64(blockIdx.x) * (UNROLL * THREADS) + threadIdx.x;
    f32 v[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 i = first + k * THREADS;
        if (i >= n) break;
        const Four at = four(i, dims, x_by, y_by, dy_by, stat_by);
        v[k] = F::apply(x ? to_f32(x[at.x]) : 0.0f, y ? to_f32(y[at.y]) : 0.0f, dy ? to_f32(dy[at.dy]) : 0.0f,
                        stat + at.stat * F::STAT, count, scale);
    }
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 i = first + k * THREADS;
        if (i < n) r[i] = from_f32<T>(add ? to_f32(r[i]) + v[k] : v[k]);
    }
}
