// each.cuh: the loop of all elementwise kernels, up to three operands of any layout and one contiguous result.
//
// Limited by memory: one read of each operand, one write. So threads load 16 bytes at a time, eight elements before they
// compute: that keeps 32 KB an operand of each multiprocessor under way. With V > 1 an operand's innermost dimension is
// contiguous or repeated and all rows start on a vector; with V = 1 any strides will do. Positions are 32-bit divisions by
// the sizes of merged dimensions.
#pragma once
#include "convert.cuh"
#include "layout.cuh"
#include "vec.cuh"

constexpr u32 EACH_THREADS = 128;    // the `block` of each kernel that calls `for_each`
constexpr u32 EACH_SPAN = 2048;      // elements of a block: the divisor in the kernel's `grid`

// Elements of a vector of 16 bytes, or 1.
template <class T> WS_MAP u32 each_vector(u32 wide) { return wide ? 16 / sizeof(T) : 1; }

// An operand to read; null if there is none.
template <class T> struct Operand {
    const T* __restrict__ p;
    const Strides& by;
};

struct Places { i64 a, b, c; };

// The positions of element number `index` under three layouts of one shape. Only a shape of one dimension may have more
// than 2^32 elements: the caller cuts others into several launches.
WS_FN Places places(u64 index, const Dims& dims, const Strides& a, const Strides& b, const Strides& c) {
    if (dims.rank <= 1) return {i64(index) * a.by[0], i64(index) * b.by[0], i64(index) * c.by[0]};
    Places at{0, 0, 0};
    u32 rest = u32(index);
#pragma unroll 1
    for (u32 k = dims.rank - 1; k > 0; --k) {
        const u32 size = u32(dims.size[k]), next = rest / size;
        const i64 here = rest - next * size;
        at.a += here * a.by[k];
        at.b += here * b.by[k];
        at.c += here * c.by[k];
        rest = next;
    }
    return {at.a + i64(rest) * a.by[0], at.b + i64(rest) * b.by[0], at.c + i64(rest) * c.by[0]};
}

// `count` of V elements from `at` on: neighbours, or the same one again.
template <u32 V, class T> WS_FN Vec<T, V> fetch(const Operand<T>& operand, i64 at, bool repeated, u32 count) {
    Vec<T, V> v{};
    if (!operand.p || !count) return v;
    if (V > 1 && !repeated && count == V) return load_vec<V>(operand.p + at);
    const T one = operand.p[at];
#pragma unroll
    for (u32 j = 0; j < V; ++j) v[j] = V == 1 || repeated ? one : j < count ? operand.p[at + j] : T{};
    return v;
}

// What `for_each` adds with.
struct Plus { template <class T> WS_FN T apply(T old, Work<T> value) { return narrow<T>(plus(widen(old), value)); } };

// y[i] = f(a[i], b[i], c[i]) for the elements of this block, or y[i] = Sum::apply(y[i], that) if `add`. f takes and gives
// `Work` types. y is contiguous, or lies as `c.by` says if SCATTER (there is no operand c then).
template <u32 V, bool SCATTER = false, class Sum = Plus, class A, class B, class C, class Y, class F>
WS_FN void for_each(const Dims& dims, u64 n, Operand<A> a, Operand<B> b, Operand<C> c, Y* y, bool add, F f) {
    constexpr u32 VECTORS = EACH_SPAN / EACH_THREADS / V;       // of a thread
    constexpr u32 GROUP = V == 1 ? 4 : V < 8 ? 8 / V : 1;       // of them under way together
    const u32 inner = dims.rank ? dims.rank - 1 : 0;
    const bool same_a = a.by.by[inner] == 0, same_b = b.by.by[inner] == 0, same_c = c.by.by[inner] == 0;
    u64 first = u64(blockIdx.x) * EACH_SPAN + threadIdx.x * V;
#pragma unroll 1
    for (u32 group = 0; group < VECTORS && first < n; group += GROUP, first += GROUP * EACH_THREADS * V) {
        Vec<A, V> as[GROUP];
        Vec<B, V> bs[GROUP];
        Vec<C, V> cs[GROUP];
        i64 to[GROUP];
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            const u64 at = first + k * EACH_THREADS * V;
            // Less than V only at the ragged end.
            const u32 count = at + V <= n ? V : at < n ? u32(n - at) : 0;
            const Places p = places(at, dims, a.by, b.by, c.by);
            as[k] = fetch<V>(a, p.a, same_a, count);
            bs[k] = fetch<V>(b, p.b, same_b, count);
            if (!SCATTER) cs[k] = fetch<V>(c, p.c, same_c, count);
            to[k] = SCATTER ? p.c : i64(at);
        }
#pragma unroll
        for (u32 k = 0; k < GROUP; ++k) {
            const u64 at = first + k * EACH_THREADS * V;
            if (at >= n) break;
            const u32 count = at + V <= n ? V : u32(n - at);
            Vec<Y, V> out{};
            if (add) out = fetch<V>(Operand<Y>{y, a.by}, to[k], false, count);
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                const Work<Y> value = f(widen(as[k][j]), widen(bs[k][j]), widen(cs[k][j]));
                out[j] = add ? Sum::apply(out[j], value) : narrow<Y>(value);
            }
            if (count == V) store_vec(y + to[k], out);
            else {
#pragma unroll
                for (u32 j = 0; j < V; ++j)
                    if (j < count) y[to[k] + j] = out[j];
            }
        }
    }
}
