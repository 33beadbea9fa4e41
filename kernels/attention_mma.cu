// archs: 80 86 89 90 100 120 ptx80
// attention_mma.cu: attention on tensor cores by mma.sync, bf16 and f16 with f32 sums, forward and backward.
//
// A block of four warps owns 64 rows of one head, 16 a warp, and walks the tiles of the other side through two stages of
// cp.async, one barrier a tile: queries past keys in the forward and for dq, keys past the queries of all heads of the group for
// dk and dv, without atomics. What an mma gives is what the next one takes: scores become weights in registers, rounded to the
// type, and never leave the warp. Rows of 16-byte chunks are swizzled by the row, so that no ldmatrix has bank conflicts.
// PAD is the width rounded up to 64, 128 or 256. Vectors start on 16 bytes and the width is a multiple of 8; what cannot have
// that takes attention.cu.
#include "core/attention.cuh"
#include "core/reduce.cuh"

constexpr u32 FLASH_THREADS = 128, FLASH_ROWS = 64;

struct alignas(16) FlashChunk { u32 words[4]; };

// Where a chunk of a row lies. OTHER, below, is the rows of a tile of the other side.
template <int PAD> WS_MAP u32 flash_place(u32 row, u32 chunk) { return row * (PAD / 8) + (chunk ^ (row % 8)); }

// Starts to fetch `ROWS` rows from `from` on; beyond `end` and the width zeros.
template <int PAD, u32 ROWS, class T>
WS_FN void flash_load(FlashChunk* to, const AttnRows<T>& rows, u32 from, u32 end, u32 width) {
    constexpr u32 CHUNKS = PAD / 8;
#pragma unroll
    for (u32 i = 0; i < ROWS * CHUNKS / FLASH_THREADS; ++i) {
        const u32 id = threadIdx.x + i * FLASH_THREADS, row = id / CHUNKS, chunk = id % CHUNKS;
        const bool there = from + row < end && chunk * 8 < width;
        const T* p = there ? rows.p + (u64(from + row) * rows.row + chunk * 8) : rows.p;
        ptx::cp_async16(&to[flash_place<PAD>(row, chunk)], p, there ? 16 : 0);
    }
}

// A of an mma: 16 rows from `row`, 16 columns from chunk `chunk`.
template <int PAD> WS_FN void flash_a(u32 (&to)[4], const FlashChunk* tile, u32 row, u32 chunk) {
    const u32 lane = threadIdx.x % 32;
    ptx::ldmatrix_x4(to, &tile[flash_place<PAD>(row + lane % 16, chunk + lane / 16)]);
}
// B twice, [k 16, n 8] each, where the tile's rows are n: registers 0, 2 for the first eight rows, 1, 3 for the next.
template <int PAD> WS_FN void flash_b_rows(u32 (&to)[4], const FlashChunk* tile, u32 row, u32 chunk) {
    flash_a<PAD>(to, tile, row, chunk);
}
// B twice, where the tile's rows are k, 16 of them: registers 0, 2 for the columns of `chunk`, 1, 3 for those of the next.
template <int PAD> WS_FN void flash_b_columns(u32 (&to)[4], const FlashChunk* tile, u32 row, u32 chunk) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    ptx::ldmatrix_x4_trans(to, &tile[flash_place<PAD>(row + matrix / 2 * 8 + lane % 8, chunk + matrix % 2)]);
}

// s = 16 rows of `own` from `row` · the OTHER rows of `other`.
template <class T, int PAD, u32 OTHER>
WS_FN void flash_dots(f32 (&s)[OTHER / 8][4], const FlashChunk* own, u32 row, const FlashChunk* other) {
#pragma unroll
    for (u32 j = 0; j < OTHER / 8; ++j)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) s[j][i] = 0.0f;
#pragma unroll
    for (u32 chunk = 0; chunk < PAD / 8; chunk += 2) {
        u32 a[4];
        flash_a<PAD>(a, own, row, chunk);
#pragma unroll
        for (u32 j = 0; j < OTHER / 16; ++j) {
            u32 b[4];
            flash_b_rows<PAD>(b, other, j * 16, chunk);
            const u32 low[2] = {b[0], b[2]}, high[2] = {b[1], b[3]};
            ptx::mma_m16n8k16<T>(s[2 * j], a, low);
            ptx::mma_m16n8k16<T>(s[2 * j + 1], a, high);
        }
    }
}

template <class T> WS_FN u32 flash_pair(f32 low, f32 high) {
    return u32(from_f32<T>(low).bits) | u32(from_f32<T>(high).bits) << 16;
}

// sum += weights [16, OTHER] · columns from chunk `column` on of the rows of `other`. The weights are what an mma gave, rounded.
template <class T, int PAD, u32 OTHER, u32 WIDE>
WS_FN void flash_add(f32 (&sum)[WIDE / 8][4], const f32 (&w)[OTHER / 8][4], const FlashChunk* other, u32 column) {
#pragma unroll
    for (u32 j = 0; j < OTHER / 16; ++j) {
        const u32 a[4] = {flash_pair<T>(w[2 * j][0], w[2 * j][1]), flash_pair<T>(w[2 * j][2], w[2 * j][3]),
                          flash_pair<T>(w[2 * j + 1][0], w[2 * j + 1][1]), flash_pair<T>(w[2 * j + 1][2], w[2 * j + 1][3])};
#pragma unroll
        for (u32 chunk = 0; chunk < WIDE / 8; chunk += 2) {
            u32 b[4];
            flash_b_columns<PAD>(b, other, j * 16, column + chunk);
            const u32 low[2] = {b[0], b[2]}, high[2] = {b[1], b[3]};
            ptx::mma_m16n8k16<T>(sum[chunk], a, low);
            ptx::mma_m16n8k16<T>(sum[chunk + 1], a, high);
        }
    }
}

// The largest (the sum) of a row, over the four lanes that share it.
template <class Op> WS_FN f32 flash_row(f32 x) {
#pragma unroll
    for (u32 step = 2; step > 0; step /= 2) x = Op::apply(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}

// Stores half h (rows lane / 4 + 8 h) of sums, times `factor`: columns from `column` on of a row of `width` elements.
template <class T, u32 WIDE>
WS_FN void flash_store(T* to, const f32 (&sum)[WIDE / 8][4], u32 h, f32 factor, u32 column, u32 width) {
    const u32 lane = threadIdx.x % 32;
    // Results may start anywhere; which kernel makes them must not depend on that.
    const bool whole = reinterpret_cast<size_t>(to) % 4 == 0;
#pragma unroll
    for (u32 j = 0; j < WIDE / 8; ++j) {
        const u32 d = column + j * 8 + lane % 4 * 2;
        Vec<T, 2> pair;
        pair.v[0] = from_f32<T>(sum[j][2 * h] * factor);
        pair.v[1] = from_f32<T>(sum[j][2 * h + 1] * factor);
        if (d >= width) continue;
        if (whole) {
            store_vec(to + d, pair);
        } else {
            to[d] = pair.v[0];
            to[d + 1] = pair.v[1];
        }
    }
}

template <int PAD, u32 OTHER> struct FlashForward {
    FlashChunk q[FLASH_ROWS * PAD / 8];
    struct { FlashChunk k[OTHER * PAD / 8], v[OTHER * PAD / 8]; } stages[2];
};

// o = softmax(scale · q kᵀ) v and lse = ln Σ e^score. qs, ks, vs: steps from one batch row, head and position to the next.
KERNEL(flash_forward, types(T: bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), out(T, o, batch * queries * heads * width),
       out(f32, lse, batch * heads * queries), inout(u32, fault, any), val(Strides, qs), val(Strides, ks), val(Strides, vs),
       val(u64, batch), val(u32, heads), val(u32, group), val(u32, queries), val(u32, keys), val(u32, width), val(u32, causal),
       val(u32, segments), val(u32, tiles), val(f32, scale), launch(grid = plan, block = 128, shared = plan)) {
    constexpr u32 OTHER = PAD == 256 ? 32 : 64;
    using Shared = FlashForward<PAD, OTHER>;
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<FLASH_ROWS, false>(sizes, fault);
    if (!at.inside) return;
    const u32 lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16;
    const AttnRows<T> from_k = attn_rows(k, ks, at, at.head / group), from_v = attn_rows(v, vs, at, at.head / group);
    const u32 last = at.start + FLASH_ROWS < at.queries ? at.start + FLASH_ROWS : at.queries;
    const u32 end = at.visible(last - 1);
    flash_load<PAD, FLASH_ROWS>(shared->q, attn_rows(q, qs, at, at.head), at.start, at.queries, width);
    flash_load<PAD, OTHER>(shared->stages[0].k, from_k, 0, end, width);
    flash_load<PAD, OTHER>(shared->stages[0].v, from_v, 0, end, width);
    ptx::cp_async_commit();

    f32 sum[PAD / 8][4] = {}, max[2], total[2];
    u32 seen[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = at.start + mine + lane / 4 + 8 * h;
        seen[h] = row < at.queries ? at.visible(row) : 0;
        max[h] = -ws_infinity();
        total[h] = 0.0f;
    }
    u32 now = 0;
#pragma unroll 1
    for (u32 first = 0; first < end; first += OTHER) {
        ptx::cp_async_wait<0>();
        __syncthreads();      // publishes stage `now`; the other one has been read
        if (first + OTHER < end) {
            flash_load<PAD, OTHER>(shared->stages[now ^ 1].k, from_k, first + OTHER, end, width);
            flash_load<PAD, OTHER>(shared->stages[now ^ 1].v, from_v, first + OTHER, end, width);
        }
        ptx::cp_async_commit();
        f32 s[OTHER / 8][4];
        flash_dots<T, PAD, OTHER>(s, shared->q, mine, shared->stages[now].k);
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            f32 most = max[h];
#pragma unroll
            for (u32 j = 0; j < OTHER / 8; ++j)
#pragma unroll
                for (u32 i = 2 * h; i < 2 * h + 2; ++i) {
                    s[j][i] *= scale;
                    if (first + j * 8 + lane % 4 * 2 + i % 2 < seen[h]) most = Max::apply(most, s[j][i]);
                }
            most = flash_row<Max>(most);
            f32 here = 0.0f;
#pragma unroll
            for (u32 j = 0; j < OTHER / 8; ++j)
#pragma unroll
                for (u32 i = 2 * h; i < 2 * h + 2; ++i) {
                    const bool sees = first + j * 8 + lane % 4 * 2 + i % 2 < seen[h];
                    s[j][i] = sees ? ws_exp(s[j][i] - most) : 0.0f;
                    here += s[j][i];
                }
            const f32 factor = max[h] == most ? 1.0f : ws_exp(max[h] - most);
            total[h] = total[h] * factor + flash_row<Sum>(here);
            max[h] = most;
#pragma unroll
            for (u32 j = 0; j < PAD / 8; ++j)
#pragma unroll
                for (u32 i = 2 * h; i < 2 * h + 2; ++i) sum[j][i] *= factor;
        }
        flash_add<T, PAD, OTHER, PAD>(sum, s, shared->stages[now].v, 0);
        now ^= 1;
    }
    ptx::cp_async_wait<0>();
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = at.start + mine + lane / 4 + 8 * h;
        if (row >= at.queries) continue;
        flash_store<T, PAD>(o + attn_result(sizes, at, row, width), sum, h, seen[h] ? 1.0f / total[h] : 0.0f, 0, width);
        if (lane % 4 == 0)
            lse[attn_statistics(sizes, at, at.head) + row] = seen[h] ? max[h] + ws_log(total[h]) : -ws_infinity();
    }
}

template <int PAD, u32 OTHER> struct FlashQueries {
    FlashChunk q[FLASH_ROWS * PAD / 8], dy[FLASH_ROWS * PAD / 8];
    struct { FlashChunk k[OTHER * PAD / 8], v[OTHER * PAD / 8]; } stages[PAD == 256 ? 1 : 2];
};

// dq = scale · (p ∘ (dy vᵀ − delta)) k, p found again from lse. dqs: steps of the gradient.
KERNEL(flash_queries, types(T: bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), in(T, dy, batch * queries * heads * width),
       in(f32, lse, batch * heads * queries), in(f32, delta, batch * heads * queries), out(T, dq, any),
       val(Strides, qs), val(Strides, ks), val(Strides, vs), val(Strides, dqs), val(u64, batch), val(u32, heads),
       val(u32, group), val(u32, queries), val(u32, keys), val(u32, width), val(u32, causal), val(u32, segments),
       val(u32, tiles), val(f32, scale), launch(grid = plan, block = 128, shared = plan)) {
    constexpr u32 OTHER = PAD == 64 ? 64 : PAD == 128 ? 32 : 16;
    using Shared = FlashQueries<PAD, OTHER>;
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<FLASH_ROWS, false>(sizes, nullptr);
    if (!at.inside) return;
    const u32 lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16;
    const AttnRows<T> from_k = attn_rows(k, ks, at, at.head / group), from_v = attn_rows(v, vs, at, at.head / group);
    const AttnRows<T> from_dy = {dy + attn_result(sizes, at, 0, width), u64(heads) * width};
    const u32 last = at.start + FLASH_ROWS < at.queries ? at.start + FLASH_ROWS : at.queries;
    const u32 end = at.visible(last - 1);
    flash_load<PAD, FLASH_ROWS>(shared->q, attn_rows(q, qs, at, at.head), at.start, at.queries, width);
    flash_load<PAD, FLASH_ROWS>(shared->dy, from_dy, at.start, at.queries, width);
    flash_load<PAD, OTHER>(shared->stages[0].k, from_k, 0, end, width);
    flash_load<PAD, OTHER>(shared->stages[0].v, from_v, 0, end, width);
    ptx::cp_async_commit();

    f32 sum[PAD / 8][4] = {}, log[2], less[2];
    u32 seen[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = at.start + mine + lane / 4 + 8 * h;
        const bool there = row < at.queries;
        seen[h] = there ? at.visible(row) : 0;
        log[h] = there ? lse[attn_statistics(sizes, at, at.head) + row] : 0.0f;
        less[h] = there ? delta[attn_statistics(sizes, at, at.head) + row] : 0.0f;
    }
    constexpr u32 STAGES = PAD == 256 ? 1 : 2;
    u32 now = 0;
#pragma unroll 1
    for (u32 first = 0; first < end; first += OTHER) {
        if (STAGES == 1 && first > 0) {
            __syncthreads();      // the tiles before these have been read
            flash_load<PAD, OTHER>(shared->stages[0].k, from_k, first, end, width);
            flash_load<PAD, OTHER>(shared->stages[0].v, from_v, first, end, width);
            ptx::cp_async_commit();
        }
        ptx::cp_async_wait<0>();
        __syncthreads();      // publishes stage `now`; the other one has been read
        if (STAGES == 2 && first + OTHER < end) {
            flash_load<PAD, OTHER>(shared->stages[now ^ 1].k, from_k, first + OTHER, end, width);
            flash_load<PAD, OTHER>(shared->stages[now ^ 1].v, from_v, first + OTHER, end, width);
        }
        if (STAGES == 2) ptx::cp_async_commit();
        f32 s[OTHER / 8][4], dp[OTHER / 8][4];
        flash_dots<T, PAD, OTHER>(s, shared->q, mine, shared->stages[now].k);
        flash_dots<T, PAD, OTHER>(dp, shared->dy, mine, shared->stages[now].v);
#pragma unroll
        for (u32 j = 0; j < OTHER / 8; ++j)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const bool sees = first + j * 8 + lane % 4 * 2 + i % 2 < seen[i / 2];
                s[j][i] = sees ? ws_exp(s[j][i] * scale - log[i / 2]) * (dp[j][i] - less[i / 2]) : 0.0f;
            }
        flash_add<T, PAD, OTHER, PAD>(sum, s, shared->stages[now].k, 0);
        if (STAGES == 2) now ^= 1;
    }
    ptx::cp_async_wait<0>();
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = at.start + mine + lane / 4 + 8 * h;
        if (row >= at.queries) continue;
        T* to = dq + (i64(at.batch) * dqs.by[0] + i64(at.head) * dqs.by[1] + i64(at.first + row) * dqs.by[2]);
        flash_store<T, PAD>(to, sum, h, scale, 0, width);
    }
}

template <int PAD, u32 OTHER> struct FlashKeys {
    static constexpr u32 STAGES = PAD == 256 ? 1 : 2;
    FlashChunk k[FLASH_ROWS * PAD / 8], v[FLASH_ROWS * PAD / 8];
    struct { FlashChunk q[OTHER * PAD / 8], dy[OTHER * PAD / 8]; } stages[STAGES];
    f32 log[STAGES][OTHER], less[STAGES][OTHER];
};

// dv = pᵀ dy and dk = scale · (p ∘ (dy vᵀ − delta))ᵀ q, summed over the heads of a group. dks: steps of both; without `dv` the
// gradient of the values lies `dv_at` behind that of the keys. `heads` and `tiles` are those of the keys. A block makes 128 columns;
// gridDim.y is 2 for PAD 256.
KERNEL(flash_keys, types(T: bf16, f16), ints(PAD: 64, 128, 256), in(T, q, any), in(T, k, any), in(T, v, any),
       opt_in(i32, extent32, any), opt_in(i64, extent64, any), in(T, dy, batch * queries * heads * group * width),
       in(f32, lse, batch * heads * group * queries), in(f32, delta, batch * heads * group * queries), out(T, dk, any),
       opt_out(T, dv, any), val(Strides, qs), val(Strides, ks), val(Strides, vs), val(Strides, dks), val(u64, dv_at),
       val(u64, batch), val(u32, heads), val(u32, group), val(u32, queries), val(u32, keys), val(u32, width),
       val(u32, causal), val(u32, segments), val(u32, tiles), val(f32, scale),
       launch(grid = plan, block = 128, shared = plan)) {
    constexpr u32 OTHER = PAD == 64 ? 64 : PAD == 128 ? 32 : 16, WIDE = PAD == 256 ? 128 : PAD;
    using Shared = FlashKeys<PAD, OTHER>;
    constexpr u32 STAGES = Shared::STAGES;
    DYN_SHARED(Shared, shared);
    const AttnSizes sizes = {heads, queries, keys, causal, segments, tiles, extent32, extent64};
    const AttnPlace at = attn_place<FLASH_ROWS, true>(sizes, nullptr);
    if (!at.inside) return;
    const u32 lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16, column = blockIdx.y * (WIDE / 8);
    flash_load<PAD, FLASH_ROWS>(shared->k, attn_rows(k, ks, at, at.head), at.start, at.keys, width);
    flash_load<PAD, FLASH_ROWS>(shared->v, attn_rows(v, vs, at, at.head), at.start, at.keys, width);
    ptx::cp_async_commit();

    f32 to_k[WIDE / 8][4] = {}, to_v[WIDE / 8][4] = {};
    const AttnSizes all = {heads * group, queries, keys, causal, segments, tiles, extent32, extent64};
    // Tiles of queries of all heads of the group, one after the other.
    const u32 from = at.start < at.keys ? at.first_to_see(at.start) / OTHER * OTHER : at.queries;
    const u32 each = (at.queries - (from < at.queries ? from : at.queries) + OTHER - 1) / OTHER, steps = each * group;
    const auto fetch = [&](u32 step, u32 stage) {
        AttnPlace here = at;
        here.head = at.head * group + step / each;
        const u32 first = from + step % each * OTHER;
        const AttnRows<T> from_dy = {dy + attn_result(all, here, 0, width), u64(all.heads) * width};
        flash_load<PAD, OTHER>(shared->stages[stage].q, attn_rows(q, qs, at, here.head), first, at.queries, width);
        flash_load<PAD, OTHER>(shared->stages[stage].dy, from_dy, first, at.queries, width);
        if (threadIdx.x < OTHER) {
            const u64 row = attn_statistics(all, at, here.head) + first + threadIdx.x;
            const bool there = first + threadIdx.x < at.queries;
            shared->log[stage][threadIdx.x] = there ? lse[row] : 0.0f;
            shared->less[stage][threadIdx.x] = there ? delta[row] : 0.0f;
        }
        ptx::cp_async_commit();
    };
    if (steps > 0) fetch(0, 0);
    u32 now = 0;
#pragma unroll 1
    for (u32 step = 0; step < steps; ++step) {
        if (STAGES == 1 && step > 0) {
            __syncthreads();      // the tiles before these have been read
            fetch(step, 0);
        }
        ptx::cp_async_wait<0>();
        __syncthreads();      // publishes stage `now`; the other one has been read
        if (STAGES == 2 && step + 1 < steps) fetch(step + 1, now ^ 1);
        f32 s[OTHER / 8][4], dp[OTHER / 8][4];
        flash_dots<T, PAD, OTHER>(s, shared->k, mine, shared->stages[now].q);
        flash_dots<T, PAD, OTHER>(dp, shared->v, mine, shared->stages[now].dy);
        const u32 first = from + step % each * OTHER;
#pragma unroll
        for (u32 j = 0; j < OTHER / 8; ++j)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 other = j * 8 + lane % 4 * 2 + i % 2, row = first + other;
                const u32 key = at.start + mine + lane / 4 + i / 2 * 8;
                const bool sees = row < at.queries && key < at.visible(row);
                s[j][i] = sees ? ws_exp(s[j][i] * scale - shared->log[now][other]) : 0.0f;
                dp[j][i] = sees ? s[j][i] * (dp[j][i] - shared->less[now][other]) : 0.0f;
            }
        flash_add<T, PAD, OTHER, WIDE>(to_v, s, shared->stages[now].dy, column);
        flash_add<T, PAD, OTHER, WIDE>(to_k, dp, shared->stages[now].q, column);
        if (STAGES == 2) now ^= 1;
    }
    ptx::cp_async_wait<0>();
    T* const values = dv ? dv : dk + dv_at;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = at.start + mine + lane / 4 + 8 * h;
        if (row >= at.span) continue;
        const i64 to = i64(at.batch) * dks.by[0] + i64(at.head) * dks.by[1] + i64(at.first + row) * dks.by[2];
        flash_store<T, WIDE>(dk + to, to_k, h, scale, column * 8, width);
        flash_store<T, WIDE>(values + to, to_v, h, 1.0f, column * 8, width);
    }
}
