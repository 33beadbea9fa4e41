// archs: 80 86 89 90 100 120 ptx80
// attention.cu: attention in f32 arithmetic, forward and backward, for any type, stride and width up to 256.
//
// A block owns a tile of rows of one head and walks the tiles of the other side through shared memory: queries past keys in the
// forward and for dq, keys past the queries of all heads of the group for dk and dv, which so need no atomics. Eight neighbours
// of a warp share a row: they hold its scores and, in vectors of four columns, what is summed. Scores never leave the block.
// PAD is the width rounded up to 64, 128 or 256; what is beyond the width is zero.
#include "core/attention.cuh"
#include "core/reduce.cuh"

constexpr u32 ATTN_THREADS = 128;

// Rows of a tile; they are PITCH numbers apart, so that eight rows read four columns from different banks.
template <int PAD> struct AttnTile {
    static constexpr u32 ROWS = PAD == 256 ? 16 : 32, PITCH = PAD + 4, R = ROWS / 16, C = ROWS / 8, GROUPS = PAD / 32;
    using Rows = f32[ROWS * PITCH];
    using Weights = f32[ROWS * (ROWS + 1)];
};

// Fetches rows `from` .. of `end`; beyond them, and beyond the width, zeros.
template <int PAD, class T> WS_FN void attn_load(f32* to, const AttnRows<T>& rows, u32 from, u32 end, u32 width) {
    using Tile = AttnTile<PAD>;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < Tile::ROWS * PAD; i += ATTN_THREADS) {
        const u32 row = i / PAD, d = i % PAD;
        to[row * Tile::PITCH + d] =
            from + row < end && d < width ? to_f32(rows.p[u64(from + row) * rows.row + d]) : 0.0f;
    }
}

// s[r][c] = own row (thread / 8 + 16 r) · other row (thread % 8 + 8 c).
template <int PAD>
WS_FN void attn_dots(f32 (&s)[AttnTile<PAD>::R][AttnTile<PAD>::C], const f32* own, const f32* other, u32 width) {
    using Tile = AttnTile<PAD>;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
        for (u32 c = 0; c < Tile::C; ++c) s[r][c] = 0.0f;
#pragma unroll 2
    for (u32 d = 0; d < width; d += 4) {
        Vec<f32, 4> a[Tile::R], b[Tile::C];
#pragma unroll
        for (u32 r = 0; r < Tile::R; ++r) a[r] = load_vec<4>(own + (ty + 16 * r) * Tile::PITCH + d);
#pragma unroll
        for (u32 c = 0; c < Tile::C; ++c) b[c] = load_vec<4>(other + (tx + 8 * c) * Tile::PITCH + d);
#pragma unroll
        for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
            for (u32 c = 0; c < Tile::C; ++c)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) s[r][c] = fmaf(a[r][j], b[c][j], s[r][c]);
    }
}

// Brings weights to the eight threads that share their rows.
template <int PAD>
WS_FN void attn_share(f32* shared, const f32 (&w)[AttnTile<PAD>::R][AttnTile<PAD>::C]) {
    using Tile = AttnTile<PAD>;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
    __syncwarp();      // the rows' threads have read what was there
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
        for (u32 c = 0; c < Tile::C; ++c) shared[(ty + 16 * r) * (Tile::ROWS + 1) + tx + 8 * c] = w[r][c];
    __syncwarp();      // publishes the weights
}

// sum[r] += weights of the row · rows of `other`; the thread has columns (thread % 8) * 4 + 32 g + 0..3.
template <int PAD>
WS_FN void attn_add(f32 (&sum)[AttnTile<PAD>::R][AttnTile<PAD>::GROUPS][4], const f32* weights, const f32* other) {
    using Tile = AttnTile<PAD>;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
#pragma unroll 2
    for (u32 j = 0; j < Tile::ROWS; ++j) {
        f32 w[Tile::R];
#pragma unroll
        for (u32 r = 0; r < Tile::R; ++r) w[r] = weights[(ty + 16 * r) * (Tile::ROWS + 1) + j];
#pragma unroll
        for (u32 g = 0; g < Tile::GROUPS; ++g) {
            const Vec<f32, 4> v = load_vec<4>(other + j * Tile::PITCH + g * 32 + tx * 4);
#pragma unroll
            for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
                for (u32 i = 0; i < 4; ++i) sum[r][g][i] = fmaf(w[r], v[i], sum[r][g][i]);
        }
    }
}

// Stores a row of sums, times `factor`.
template <int PAD, class T>
WS_FN void attn_store(T* to, const f32 (&sum)[AttnTile<PAD>::GROUPS][4], f32 factor, u32 width) {
    const u32 tx = threadIdx.x % 8;
#pragma unroll
    for (u32 g = 0; g < AttnTile<PAD>::GROUPS; ++g)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 d = g * 32 + tx * 4 + i;
            if (d < width) to[d] = from_f32<T>(sum[g][i] * factor);
        }
}

// The largest (the sum) of a row, over the eight threads that share it.
template <class Op> WS_FN f32 attn_row(f32 x) {
#pragma unroll
    for (u32 step = 4; step > 0; step /= 2) x = Op::apply(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}

// o = softmax(scale · q kᵀ) v and lse = ln Σ e^score. qs, ks, vs: steps from one batch row, head and position to the next.
KERNEL(attention_forward, types(T: f32, bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), out(T, o, batch * queries * heads * width),
       out(f32, lse, batch * heads * queries), inout(u32, fault, any), val(Strides, qs), val(Strides, ks), val(Strides, vs),
       val(u64, batch), val(u32, heads), val(u32, group), val(u32, queries), val(u32, keys), val(u32, width), val(u32, causal),
       val(u32, segments), val(u32, tiles), val(f32, scale), launch(grid = plan, block = 128, shared = plan)) {
    using Tile = AttnTile<PAD>;
    struct Shared { typename Tile::Rows q, k, v; typename Tile::Weights weights; };
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<Tile::ROWS, false>(sizes, fault);
    if (!at.inside) return;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
    const AttnRows<T> from_k = attn_rows(k, ks, at, at.head / group), from_v = attn_rows(v, vs, at, at.head / group);
    attn_load<PAD>(shared->q, attn_rows(q, qs, at, at.head), at.start, at.queries, width);

    f32 sum[Tile::R][Tile::GROUPS][4] = {}, max[Tile::R], total[Tile::R];
    u32 seen[Tile::R];
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r) {
        const u32 row = at.start + ty + 16 * r;
        seen[r] = row < at.queries ? at.visible(row) : 0;
        max[r] = -ws_infinity();
        total[r] = 0.0f;
    }
    const u32 last = at.start + Tile::ROWS < at.queries ? at.start + Tile::ROWS : at.queries;
    const u32 end = at.visible(last - 1);
#pragma unroll 1
    for (u32 first = 0; first < end; first += Tile::ROWS) {
        __syncthreads();      // the tiles before these have been read
        attn_load<PAD>(shared->k, from_k, first, end, width);
        attn_load<PAD>(shared->v, from_v, first, end, width);
        __syncthreads();      // publishes the tiles
        f32 s[Tile::R][Tile::C];
        attn_dots<PAD>(s, shared->q, shared->k, width);
#pragma unroll
        for (u32 r = 0; r < Tile::R; ++r) {
            f32 most = max[r];
#pragma unroll
            for (u32 c = 0; c < Tile::C; ++c) {
                s[r][c] *= scale;
                if (first + tx + 8 * c < seen[r]) most = Max::apply(most, s[r][c]);
            }
            most = attn_row<Max>(most);
            f32 here = 0.0f;
#pragma unroll
            for (u32 c = 0; c < Tile::C; ++c) {
                s[r][c] = first + tx + 8 * c < seen[r] ? ws_exp(s[r][c] - most) : 0.0f;
                here += s[r][c];
            }
            const f32 factor = max[r] == most ? 1.0f : ws_exp(max[r] - most);
            total[r] = total[r] * factor + attn_row<Sum>(here);
            max[r] = most;
#pragma unroll
            for (u32 g = 0; g < Tile::GROUPS; ++g)
#pragma unroll
                for (u32 i = 0; i < 4; ++i) sum[r][g][i] *= factor;
        }
        attn_share<PAD>(shared->weights, s);
        attn_add<PAD>(sum, shared->weights, shared->v);
    }
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r) {
        const u32 row = at.start + ty + 16 * r;
        if (row >= at.queries) continue;
        attn_store<PAD>(o + attn_result(sizes, at, row, width), sum[r], seen[r] ? 1.0f / total[r] : 0.0f, width);
        if (tx == 0)
            lse[attn_statistics(sizes, at, at.head) + row] = seen[r] ? max[r] + ws_log(total[r]) : -ws_infinity();
    }
}

// delta = Σ o ∘ dy of each query; o and dy are [batch, queries, heads, width], delta is [batch, heads, queries]. One warp a row.
KERNEL(attention_delta, types(T: f32, bf16, f16), in(T, o, rows * heads * width), in(T, dy, rows * heads * width),
       out(f32, delta, rows * heads), val(u64, rows), val(u64, queries), val(u64, heads), val(u64, width),
       launch(grid = ceil_div(rows * heads, 4), block = 128, shared = 0)) {
    const u64 number = u64(blockIdx.x) * 4 + threadIdx.x / 32;
    if (number >= rows * heads) return;   // a whole warp; no barrier follows
    f32 sum = 0.0f;
    for (u64 d = threadIdx.x % 32; d < width; d += 32)
        sum = fmaf(to_f32(o[number * width + d]), to_f32(dy[number * width + d]), sum);
    sum = warp_sum(sum);
    const u64 row = number / heads, batch = row / queries;
    if (threadIdx.x % 32 == 0) delta[(batch * heads + number % heads) * queries + row % queries] = sum;
}

// dq = scale · (p ∘ (dy vᵀ − delta)) k, p found again from lse. dqs: steps of the gradient.
KERNEL(attention_queries, types(T: f32, bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), in(T, dy, batch * queries * heads * width),
       in(f32, lse, batch * heads * queries), in(f32, delta, batch * heads * queries), out(T, dq, any),
       val(Strides, qs), val(Strides, ks), val(Strides, vs), val(Strides, dqs), val(u64, batch), val(u32, heads),
       val(u32, group), val(u32, queries), val(u32, keys), val(u32, width), val(u32, causal), val(u32, segments),
       val(u32, tiles), val(f32, scale), launch(grid = plan, block = 128, shared = plan)) {
    using Tile = AttnTile<PAD>;
    struct Shared { typename Tile::Rows q, dy, k, v; typename Tile::Weights weights; };
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<Tile::ROWS, false>(sizes, nullptr);
    if (!at.inside) return;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
    const AttnRows<T> from_k = attn_rows(k, ks, at, at.head / group), from_v = attn_rows(v, vs, at, at.head / group);
    const AttnRows<T> from_dy = {dy + attn_result(sizes, at, 0, width), u64(heads) * width};
    attn_load<PAD>(shared->q, attn_rows(q, qs, at, at.head), at.start, at.queries, width);
    attn_load<PAD>(shared->dy, from_dy, at.start, at.queries, width);

    f32 sum[Tile::R][Tile::GROUPS][4] = {}, log[Tile::R], less[Tile::R];
    u32 seen[Tile::R];
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r) {
        const u32 row = at.start + ty + 16 * r;
        const bool there = row < at.queries;
        seen[r] = there ? at.visible(row) : 0;
        log[r] = there ? lse[attn_statistics(sizes, at, at.head) + row] : 0.0f;
        less[r] = there ? delta[attn_statistics(sizes, at, at.head) + row] : 0.0f;
    }
    const u32 last = at.start + Tile::ROWS < at.queries ? at.start + Tile::ROWS : at.queries;
    const u32 end = at.visible(last - 1);
#pragma unroll 1
    for (u32 first = 0; first < end; first += Tile::ROWS) {
        __syncthreads();      // the tiles before these have been read
        attn_load<PAD>(shared->k, from_k, first, end, width);
        attn_load<PAD>(shared->v, from_v, first, end, width);
        __syncthreads();      // publishes the tiles
        f32 s[Tile::R][Tile::C], dp[Tile::R][Tile::C];
        attn_dots<PAD>(s, shared->q, shared->k, width);
        attn_dots<PAD>(dp, shared->dy, shared->v, width);
#pragma unroll
        for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
            for (u32 c = 0; c < Tile::C; ++c) {
                const f32 p = ws_exp(s[r][c] * scale - log[r]);
                s[r][c] = first + tx + 8 * c < seen[r] ? p * (dp[r][c] - less[r]) : 0.0f;
            }
        attn_share<PAD>(shared->weights, s);
        attn_add<PAD>(sum, shared->weights, shared->k);
    }
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r) {
        const u32 row = at.start + ty + 16 * r;
        if (row >= at.queries) continue;
        T* to = dq + (i64(at.batch) * dqs.by[0] + i64(at.head) * dqs.by[1] + i64(at.first + row) * dqs.by[2]);
        attn_store<PAD>(to, sum[r], scale, width);
    }
}

// dv = pᵀ dy and dk = scale · (p ∘ (dy vᵀ − delta))ᵀ q, summed over the heads of a group. dks: steps of both; without `dv` the
// gradient of the values lies `dv_at` behind that of the keys. `heads` and `tiles` are those of the keys.
KERNEL(attention_keys, types(T: f32, bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), in(T, dy, batch * queries * heads * group * width),
       in(f32, lse, batch * heads * group * queries), in(f32, delta, batch * heads * group * queries), out(T, dk, any),
       opt_out(T, dv, any), val(Strides, qs), val(Strides, ks), val(Strides, vs), val(Strides, dks), val(u64, dv_at),
       val(u64, batch), val(u32, heads), val(u32, group), val(u32, queries), val(u32, keys), val(u32, width),
       val(u32, causal), val(u32, segments), val(u32, tiles), val(f32, scale),
       launch(grid = plan, block = 128, shared = plan)) {
    using Tile = AttnTile<PAD>;
    struct Shared { typename Tile::Rows k, v, q, dy; typename Tile::Weights weights; f32 log[Tile::ROWS], less[Tile::ROWS]; };
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<Tile::ROWS, true>(sizes, nullptr);
    if (!at.inside) return;
    const u32 ty = threadIdx.x / 8, tx = threadIdx.x % 8;
    attn_load<PAD>(shared->k, attn_rows(k, ks, at, at.head), at.start, at.keys, width);
    attn_load<PAD>(shared->v, attn_rows(v, vs, at, at.head), at.start, at.keys, width);

    f32 to_k[Tile::R][Tile::GROUPS][4] = {}, to_v[Tile::R][Tile::GROUPS][4] = {};
    const AttnSizes all = {heads * group, queries, keys, causal, segments, tiles, extent32, extent64};
    const u32 from = at.start < at.keys ? at.first_to_see(at.start) / Tile::ROWS * Tile::ROWS : at.queries;
#pragma unroll 1
    for (u32 g = 0; g < group; ++g) {
        AttnPlace mine = at;
        mine.head = at.head * group + g;
        const AttnRows<T> from_q = attn_rows(q, qs, at, mine.head);
        const AttnRows<T> from_dy = {dy + attn_result(all, mine, 0, width), u64(all.heads) * width};
        const u64 statistics = attn_statistics(all, at, mine.head);
#pragma unroll 1
        for (u32 first = from; first < at.queries; first += Tile::ROWS) {
            __syncthreads();      // the tiles before these have been read
            attn_load<PAD>(shared->q, from_q, first, at.queries, width);
            attn_load<PAD>(shared->dy, from_dy, first, at.queries, width);
            if (threadIdx.x < Tile::ROWS) {
                const bool there = first + threadIdx.x < at.queries;
                shared->log[threadIdx.x] = there ? lse[statistics + first + threadIdx.x] : 0.0f;
                shared->less[threadIdx.x] = there ? delta[statistics + first + threadIdx.x] : 0.0f;
            }
            __syncthreads();      // publishes the tiles
            f32 s[Tile::R][Tile::C], dp[Tile::R][Tile::C];
            attn_dots<PAD>(s, shared->k, shared->q, width);
            attn_dots<PAD>(dp, shared->v, shared->dy, width);
#pragma unroll
            for (u32 r = 0; r < Tile::R; ++r)
#pragma unroll
                for (u32 c = 0; c < Tile::C; ++c) {
                    const u32 row = first + tx + 8 * c, key = at.start + ty + 16 * r;
                    const bool sees = row < at.queries && key < at.visible(row);
                    s[r][c] = sees ? ws_exp(s[r][c] * scale - shared->log[tx + 8 * c]) : 0.0f;
                    dp[r][c] = sees ? s[r][c] * (dp[r][c] - shared->less[tx + 8 * c]) : 0.0f;
                }
            attn_share<PAD>(shared->weights, s);
            attn_add<PAD>(to_v, shared->weights, shared->dy);
            attn_share<PAD>(shared->weights, dp);
            attn_add<PAD>(to_k, shared->weights, shared->q);
        }
    }
    T* const values = dv ? dv : dk + dv_at;
#pragma unroll
    for (u32 r = 0; r < Tile::R; ++r) {
        const u32 row = at.start + ty + 16 * r;
        if (row >= at.span) continue;
        const i64 to = i64(at.batch) * dks.by[0] + i64(at.head) * dks.by[1] + i64(at.first + row) * dks.by[2];
        attn_store<PAD>(dk + to, to_k[r], scale, width);
        attn_store<PAD>(values + to, to_v[r], 1.0f, width);
    }
}
