// attention.cuh: which queries meet which keys, for all families of attention.
//
// A batch row has a sequence of its own, of which the first `length` keys are valid; or there is one batch row of documents one
// behind the other, and `extent` has their bounds. Blocks are numbered with the tile innermost, then the head, then the batch
// row; documents have ragged last tiles, so some numbers have no tile and their blocks leave at once.
#pragma once
#include "math.cuh"
#include "vec.cuh"

// What a block works on. Positions count from the start of the sequence, which is position `first` of the batch row.
struct AttnPlace {
    u32 batch, head;
    u32 first, queries, keys, span;    // `span`: keys, valid or not
    i64 shift;                         // causal: query i sees keys up to i + shift
    u32 start;                         // the tile's first query (first key, in a kernel of keys)
    bool causal, inside;

    // How many keys query i sees.
    WS_METHOD u32 visible(u32 i) const {
        if (!causal) return keys;
        const i64 end = i64(i) + shift + 1;
        return end < 0 ? 0 : end > i64(keys) ? keys : u32(end);
    }
    // The first query that sees key j; `queries` if none does.
    WS_METHOD u32 first_to_see(u32 j) const {
        if (!causal) return 0;
        const i64 at = i64(j) - shift;
        return at < 0 ? 0 : at > i64(queries) ? queries : u32(at);
    }
};

// Sizes, and where lengths or bounds stand (one of the pointers, or none).
struct AttnSizes {
    u32 heads, queries, keys, causal;
    u32 segments;                      // 0: `extent` has lengths
    u32 tiles;                         // of a head of a batch row
    const i32* extent32;
    const i64* extent64;

    WS_METHOD bool has_extent() const { return extent32 || extent64; }
    WS_METHOD i64 extent(u64 i) const { return extent32 ? i64(extent32[i]) : extent64[i]; }
};

// The place of block `blockIdx.x`: a tile of `TILE` queries (keys, if BY_KEYS). What is out of range is cut off, and reported by
// the first block that sees it if `fault` is given.
template <u32 TILE, bool BY_KEYS> WS_FN AttnPlace attn_place(const AttnSizes& s, u32* fault) {
    const u32 id = blockIdx.x, rest = id / s.tiles;
    // Causal: tiles of many keys first, so that none of them is left for last.
    const u32 number = id - rest * s.tiles, tile = BY_KEYS ? number : s.tiles - 1 - number;
    AttnPlace at;
    at.batch = rest / s.heads;
    at.head = rest - at.batch * s.heads;
    at.causal = s.causal != 0;
    at.first = 0;
    at.queries = s.queries;
    at.keys = at.span = s.keys;
    at.shift = i64(s.keys) - i64(s.queries);
    at.start = tile * TILE;
    at.inside = true;
    if (s.segments == 0) {
        if (s.has_extent()) {
            const i64 length = s.extent(at.batch);
            if (length < 0 || length > i64(s.keys)) {
                if (fault && threadIdx.x == 0) report(fault, length, at.batch);
                at.keys = 0;
            } else {
                at.keys = u32(length);
            }
        }
        return at;
    }
    at.inside = false;
    at.shift = 0;
    i64 last = 0;
    u32 left = tile;
    for (u32 i = 0; i <= s.segments; ++i) {
        const i64 bound = s.extent(i);
        const bool right = i == 0 ? bound == 0 : bound >= last && bound <= i64(s.queries);
        if (!right || (i == s.segments && bound != i64(s.queries))) {
            if (fault && threadIdx.x == 0) report(fault, bound, i);
            return at;
        }
        const u32 rows = u32(bound - last), count = (rows + TILE - 1) / TILE;
        if (!at.inside && i > 0) {
            if (left < count) {
                at.inside = true;
                at.first = u32(last);
                at.queries = at.keys = at.span = rows;
                at.start = left * TILE;
                // The first block looks at all bounds, for the fault's sake.
                if (id != 0) return at;
            } else {
                left -= count;
            }
        }
        last = bound;
    }
    return at;
}

// The vectors of one head: position t (in the sequence) starts at p + t * row.
template <class T> struct AttnRows {
    const T* p;
    u64 row;
};
// by: steps from one batch row, head and position to the next.
template <class T> WS_FN AttnRows<T> attn_rows(const T* p, const Strides& by, const AttnPlace& at, u32 head) {
    return {p + i64(at.batch) * by.by[0] + i64(head) * by.by[1] + i64(at.first) * by.by[2], u64(by.by[2])};
}
// The vectors of a result [batch, rows, heads, width].
WS_FN u64 attn_result(const AttnSizes& s, const AttnPlace& at, u32 row, u32 width) {
    return ((u64(at.batch) * s.queries + at.first + row) * s.heads + at.head) * width;
}
// The statistics [batch, heads, rows] of the sequence's first query.
WS_FN u64 attn_statistics(const AttnSizes& s, const AttnPlace& at, u32 head) {
    return (u64(at.batch) * s.heads + head) * s.queries + at.first;
}
