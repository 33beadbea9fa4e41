// archs: 80 86 89 90 100 120 ptx80
// index.cu: lookup by index (embedding, gather, index_select) and the sums that are its gradients.
//
// Forward copies, so the types are size classes as in join.cu. A bad index is reported and nothing is read for it.
// Gradients add without atomics: (destination, position) pairs are sorted (all different, so any sort gives one order), and
// each destination adds what belongs to it in the order of positions, at most 64 at a time: a destination with more of them
// (padding, a frequent word) is summed in pieces, whose borders depend on nothing but the indices. Sorting n pairs costs
// one launch up to 2048 of them, and then one more for each doubling, of n binary searches each.
#include "core/layout.cuh"
#include "core/vec.cuh"

// Negative indices become huge, so one comparison refuses both kinds of bad index.
template <class I> WS_FN bool in_range(I index, u64 size) { return u64(i64(index)) < size; }

// y[e] = x[base(e) + index(e) * step]: `xs` and `ix` are the strides of x (0 along the looked-up dimension) and of the
// index under the result's shape `dims`. A bad index of element e has position e / inner % count in the index.
KERNEL(take, types(T: u8, f16, i32, i64), types(I: i32, i64), in(T, x, any), in(I, index, any), out(T, y, n),
       inout(u32, fault, any), val(Dims, dims), val(Strides, xs), val(Strides, ix), val(u64, n), val(i64, step),
       val(u64, size), val(u64, inner), val(u64, count), launch(grid = ceil_div(n, 1024), block = 256, shared = 0)) {
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
    I found[4];
    T part[4];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 e = first + k * 256;
        if (e < n) found[k] = index[offset_of(e, dims, ix)];
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 e = first + k * 256;
        if (e < n && in_range(found[k], size)) part[k] = x[offset_of(e, dims, xs) + i64(found[k]) * step];
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 e = first + k * 256;
        if (e >= n) continue;
        if (in_range(found[k], size))
            y[e] = part[k];
        else
            report(fault, i64(found[k]), e / inner % count);
    }
}

// The same where one index covers `run` neighbours: y[r][j] = x[base(r) + index(r) * step + j], with `lanes` threads (a
// power of two) a row. In vectors of 16 bytes if WIDE: `run`, and all steps of x, are then multiples of one, in elements.
KERNEL(take_rows, types(T: u8, f16, i32, i64), types(I: i32, i64), ints(WIDE: 0, 1), in(T, x, any), in(I, index, any),
       out(T, y, rows * run), inout(u32, fault, any), val(Dims, dims), val(Strides, xs), val(Strides, ix),
       val(u64, rows), val(u64, run), val(u64, lanes), val(i64, step), val(u64, size), val(u64, inner), val(u64, count),
       launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    using Unit = typename CopyUnit<T, WIDE>::Is;
    constexpr u32 N = sizeof(Unit) / sizeof(T);
    const u64 thread = u64(blockIdx.x) * 256 + threadIdx.x;
    const u64 row = thread >> (__ffs(i32(lanes)) - 1);
    if (row >= rows) return;
    const I found = index[offset_of(row, dims, ix)];
    const u32 lane = u32(thread & (lanes - 1));
    if (!in_range(found, size)) {
        if (lane == 0) report(fault, i64(found), row * run / inner % count);
        return;
    }
    const Unit* const from = reinterpret_cast<const Unit*>(x + offset_of(row, dims, xs) + i64(found) * step);
    Unit* const to = reinterpret_cast<Unit*>(y + row * run);
    const u64 units = run / N;
    // Four loads under way before the first store.
    for (u64 j = lane; j < units; j += 4 * lanes) {
        Unit part[4];
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (j + k * lanes < units) part[k] = from[j + k * lanes];
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (j + k * lanes < units) to[j + k * lanes] = part[k];
    }
}

// Pairs sorted at once by one block.
constexpr u32 TILE = 2048;
struct SortTile { u64 pairs[TILE]; };

// The pairs `destination << 32 | position` of the indices, sorted within tiles of 2048. The destination of index number p
// is base(p) + index * step; that of a bad index is beyond all.
KERNEL(sort_tiles, types(I: i32, i64), in(I, index, any), out(u64, pairs, n), inout(u32, fault, any), val(Dims, dims),
       val(Strides, ix), val(Strides, by), val(u64, n), val(u64, step), val(u64, size),
       launch(grid = ceil_div(n, 2048), block = 512, shared = 0)) {
    SHARED(SortTile, tile);
    const u64 base = u64(blockIdx.x) * TILE;
    const u32 here = u32(n - base < TILE ? n - base : TILE);
    u32 width = 2;
    while (width < here) width *= 2;
    for (u32 k = threadIdx.x; k < width; k += 512) {
        u64 pair = ~u64(0);
        if (k < here) {
            const u64 p = base + k;
            const I found = index[offset_of(p, dims, ix)];
            u64 destination = 0xFFFFFFFF;
            if (in_range(found, size))
                destination = u64(offset_of(p, dims, by)) + u64(i64(found)) * step;
            else
                report(fault, i64(found), p);
            pair = destination << 32 | p;
        }
        tile.pairs[k] = pair;
    }
    // Bitonic: runs of `length` in alternating order are merged by exchanges over shrinking distances.
    for (u32 length = 2; length <= width; length *= 2)
        for (u32 gap = length / 2; gap > 0; gap /= 2) {
            // Publishes the last exchange.
            __syncthreads();
            for (u32 k = threadIdx.x; k < width / 2; k += 512) {
                const u32 low = 2 * k - (k & (gap - 1)), high = low + gap;
                const u64 a = tile.pairs[low], b = tile.pairs[high];
                if ((a > b) == ((low & length) == 0)) {
                    tile.pairs[low] = b;
                    tile.pairs[high] = a;
                }
            }
        }
    // Publishes the last exchange.
    __syncthreads();
    for (u32 k = threadIdx.x; k < here; k += 512) pairs[base + k] = tile.pairs[k];
}

// How many of `n` ascending pairs are below `pair`.
WS_FN u64 rank_of(u64 pair, const u64* pairs, u64 n) {
    u64 low = 0;
    while (n > 0) {
        const u64 half = n / 2;
        if (pairs[low + half] < pair) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

// Ascending runs of `run` pairs merged two by two: each pair goes to its place in its own run plus its rank in the other.
KERNEL(merge_runs, in(u64, from, n), out(u64, to, n), val(u64, n), val(u64, run),
       launch(grid = ceil_div(n, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= n) return;
    const u64 own = i / run, other = (own ^ 1) * run;
    const u64 first = other < n ? other : n, length = n - first < run ? n - first : run;
    const u64 pair = from[i];
    to[(own & ~u64(1)) * run + i % run + rank_of(pair, from + first, length)] = pair;
}

// Sorted pairs that one thread adds up at most.
constexpr u64 PIECE = 64;

// Where columns c.. of contribution p and of destination v are: dy is [outer, n, inner] and dx [outer, rows, inner], a
// column being a pair of outer and inner index.
WS_FN u64 place_of(u64 c, u64 middle, u64 size, u64 inner) {
    const u64 outer = c < inner ? 0 : c / inner;
    return (outer * size + middle) * inner + (c - outer * inner);
}

// sum[j] += dy[p][c + j] over the pairs `first..last`, in their order; four loads under way.
template <u32 VEC, class T>
WS_FN void add_pairs(f32 (&sum)[VEC], const u64* pairs, u64 first, u64 last, const T* dy, u64 c, u64 n, u64 inner) {
    for (; first < last; first += 4) {
        Vec<T, VEC> part[4];
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (first + k < last) part[k] = load_vec<VEC>(dy + place_of(c, u32(pairs[first + k]), n, inner));
#pragma unroll
        for (u32 k = 0; k < 4; ++k)
            if (first + k < last)
#pragma unroll
                for (u32 j = 0; j < VEC; ++j) sum[j] += to_f32(part[k][j]);
    }
}

// For each piece of 64 sorted pairs: the sum of those at its start whose destination began in an earlier piece
// (parts[piece][0]), and of those at its end whose destination goes on in the next and began here (parts[piece][1]).
// `width` columns, VEC a thread.
KERNEL(sum_pieces, types(T: f32, bf16, f16), ints(VEC: 1, 4), in(u64, pairs, n), in(T, dy, n * width),
       out(f32, parts, any), val(u64, n), val(u64, width), val(u64, inner), val(u64, threads),
       launch(grid = ceil_div(threads, 256), block = 256, shared = 0)) {
    const u64 thread = u64(blockIdx.x) * 256 + threadIdx.x;
    if (thread >= threads) return;
    const u64 columns = width / VEC, piece = thread / columns, c = thread % columns * VEC;
    const u64 first = piece * PIECE, last = n - first < PIECE ? n : first + PIECE;
    const u64 head = pairs[first] >> 32, tail = pairs[last - 1] >> 32;
    const bool begun = first > 0 && pairs[first - 1] >> 32 == head;
    if (begun) {
        f32 sum[VEC] = {};
        add_pairs<VEC>(sum, pairs, first, first + rank_of((head + 1) << 32, pairs + first, last - first), dy, c, n, inner);
#pragma unroll
        for (u32 j = 0; j < VEC; ++j) parts[2 * piece * width + c + j] = sum[j];
    }
    if (last < n && pairs[last] >> 32 == tail && !(begun && head == tail)) {
        f32 sum[VEC] = {};
        add_pairs<VEC>(sum, pairs, first + rank_of(tail << 32, pairs + first, last - first), last, dy, c, n, inner);
#pragma unroll
        for (u32 j = 0; j < VEC; ++j) parts[(2 * piece + 1) * width + c + j] = sum[j];
    }
}

// dx[v] = the sum of what goes to v (0 for nothing), or dx[v] += that if `add`; `lanes` threads (a power of two) a row.
KERNEL(sum_rows, types(T: f32, bf16, f16), ints(VEC: 1, 4), in(u64, pairs, n), in(T, dy, n * width), in(f32, parts, any),
       out(T, dx, rows * width), val(u64, n), val(u64, rows), val(u64, width), val(u64, inner), val(u64, lanes),
       val(u32, add), launch(grid = ceil_div(rows * lanes, 256), block = 256, shared = 0)) {
    const u64 thread = u64(blockIdx.x) * 256 + threadIdx.x;
    const u64 v = thread >> (__ffs(i32(lanes)) - 1);
    if (v >= rows) return;
    const u64 first = rank_of(v << 32, pairs, n);
    const u64 last = first + rank_of((v + 1) << 32, pairs + first, n - first);
    if (add && first == last) return;
    for (u64 c = (thread & (lanes - 1)) * VEC; c < width; c += lanes * VEC) {
        T* const to = dx + place_of(c, v, rows, inner);
        f32 sum[VEC] = {};
        Vec<T, VEC> out;
        if (add) {
            out = load_vec<VEC>(to);
#pragma unroll
            for (u32 j = 0; j < VEC; ++j) sum[j] = to_f32(out[j]);
        }
        if (first / PIECE == (last - 1) / PIECE || first == last) {
            add_pairs<VEC>(sum, pairs, first, last, dy, c, n, inner);
        } else {
            for (u64 piece = first / PIECE; piece <= (last - 1) / PIECE; ++piece) {
                const u64 half = piece == first / PIECE ? 1 : 0;
#pragma unroll
                for (u32 j = 0; j < VEC; ++j) sum[j] += parts[(2 * piece + half) * width + c + j];
            }
        }
#pragma unroll
        for (u32 j = 0; j < VEC; ++j) out[j] = from_f32<T>(sum[j]);
        store_vec(to, out);
    }
}

// Rows of `classes` numbers with a one where the index says, else zeros.
KERNEL(one_hot, types(I: i32, i64), in(I, index, n), out(i64, y, n * classes), inout(u32, fault, any), val(u64, n),
       val(u64, classes), launch(grid = ceil_div(n * classes, 1024), block = 256, shared = 0)) {
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 e = first + k * 256;
        if (e >= n * classes) return;
        const u64 row = (e | classes) >> 32 ? e / classes : u32(e) / u32(classes), column = e - row * classes;
        const I found = index[row];
        if (column == 0 && !in_range(found, classes)) report(fault, i64(found), row);
        y[e] = u64(i64(found)) == column;
    }
}
