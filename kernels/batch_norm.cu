// archs: 80 86 89 90 100 120 ptx80
// batch_norm.cu: batch norm and group norm, their backwards, and the running statistics.
//
// An input [N, C, length] is N · C segments of contiguous elements. A warp takes a segment (a thread, where segments are short):
// its total, and its squares about its own mean, read once from memory and once from L1. A block then joins the segments of a set:
// those of a channel over the batch (`pooled`: batch norm) or of `per` neighbouring channels of a sample (group norm), again about
// the mean found first. So sets of any size are exact, and every sum has one order. Where length is 1 the input itself is the
// totals. The elementwise passes read the numbers of their set from L1.
#include "core/reduce.cuh"
#include "core/rows.cuh"

// Number `m` of the segments of set `s`.
WS_FN u64 segment_of(u64 s, u64 m, u32 groups, u32 per, u32 pooled) {
    return pooled ? m * groups + s : s * per + m;
}
// The set of segment `q`.
WS_FN u64 set_of(u64 q, u32 groups, u32 per, u32 pooled) { return pooled ? q % groups : q / per; }

// The lane's part of the sum of `f(j)` over a segment's elements j, `LANES` threads a segment, then of all lanes.
template <u32 LANES, class Term> WS_FN f32 segment_sum(u32 length, u32 lane, const Term& term) {
    LongSum sum;
    for (u32 j = lane; j < length; j += LANES) sum.add(term(j));
    return LANES == 32 ? warp_sum(sum.sum) : sum.sum;
}

// The total of each segment, and the squares about its mean.
KERNEL(segment_moments, types(T: f32, bf16, f16), ints(LANES: 1, 32), in(T, x, segments * length), out(f32, totals, segments),
       out(f32, squares, segments), val(u64, segments), val(u32, length),
       launch(grid = ceil_div(segments * LANES, 256), block = 256, shared = 0)) {
    const u64 q = (u64(blockIdx.x) * 256 + threadIdx.x) / LANES;
    if (q >= segments) return;   // whole warps where LANES is 32; no barrier of the block follows
    const u32 lane = threadIdx.x % LANES;
    const T* from = x + q * length;
    const f32 total = segment_sum<LANES>(length, lane, [&](u32 j) { return to_f32(from[j]); });
    const f32 mean = total / f32(length);
    const f32 square = segment_sum<LANES>(length, lane, [&](u32 j) {
        const f32 apart = to_f32(from[j]) - mean;
        return apart * apart;
    });
    if (lane != 0) return;
    totals[q] = total;
    squares[q] = square;
}

// Mean and variance of each set, one block a set. `squares` are absent where a segment is one element.
KERNEL(set_moments, types(T: f32, bf16, f16), in(T, totals, any), opt_in(f32, squares, any), out(f32, mean, sets),
       out(f32, variance, sets), val(u64, sets), val(u64, members), val(u32, groups), val(u32, per), val(u32, pooled),
       val(f32, length), val(f32, size), launch(grid = sets, block = 128, shared = 0)) {
    const u64 s = blockIdx.x;
    LongSum sum, square;
    for (u64 m = threadIdx.x; m < members; m += 128) sum.add(to_f32(totals[segment_of(s, m, groups, per, pooled)]));
    const f32 centre = block_sum<128>(sum.sum) / size;
    for (u64 m = threadIdx.x; m < members; m += 128) {
        const u64 q = segment_of(s, m, groups, per, pooled);
        const f32 apart = to_f32(totals[q]) / length - centre;
        square.add(apart * apart * length + (squares ? squares[q] : 0.0f));
    }
    const f32 spread = block_sum<128>(square.sum) / size;
    if (threadIdx.x != 0) return;
    mean[s] = centre;
    variance[s] = spread;
}

WS_FN f32 reciprocal(f32 variance, f32 eps) { return 1.0f / sqrtf(variance + eps); }

// Segment, channel and set of element `i`.
struct Owner { u64 q, set; u32 channel; };
WS_FN Owner owner_of(u64 i, u32 length, u32 groups, u32 per, u32 pooled) {
    const u32 channels = groups * per;
    if (i <= 0xFFFFFFFFu) {
        const u32 q = u32(i) / length, sample = q / channels, channel = q - sample * channels;
        return {q, pooled ? channel : q / per, channel};
    }
    const u64 q = i / length;
    return {q, set_of(q, groups, per, pooled), u32(q % channels)};
}

// y = (x - mean) · rstd · weight + bias. A thread has one piece of 16 bytes: of one segment, where length is a multiple of it
// (`WIDE`), else its elements one by one.
KERNEL(normalise, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, n), in(f32, mean, any), in(f32, variance, any),
       opt_in(T, weight, any), opt_in(T, bias, any), out(T, y, n), val(u64, n), val(u32, length), val(u32, groups),
       val(u32, per), val(u32, pooled), val(f32, eps), launch(grid = plan, block = 256, shared = 0)) {
    constexpr u32 V = WIDE ? vec_width<T>() : 1;
    const u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * V;
    if (i >= n) return;
    const Owner at = owner_of(i, length, groups, per, pooled);
    f32 scale = reciprocal(variance[at.set], eps);
    if (weight) scale = scale * to_f32(weight[at.channel]);
    const f32 shift = bias ? to_f32(bias[at.channel]) : 0.0f, centre = mean[at.set];
    const Vec<T, V> from = load_vec<V>(x + i);
    Vec<T, V> to;
#pragma unroll
    for (u32 j = 0; j < V; ++j) to[j] = from_f32<T>((to_f32(from[j]) - centre) * scale + shift);
    store_vec(y + i, to);
}

// Σ dy and Σ dy · x̂ of each segment.
KERNEL(segment_products, types(T: f32, bf16, f16), ints(LANES: 1, 32), in(T, x, segments * length), in(T, dy, segments * length),
       in(f32, mean, any), in(f32, variance, any), out(f32, dys, segments), out(f32, products, segments), val(u64, segments),
       val(u32, length), val(u32, groups), val(u32, per), val(u32, pooled), val(f32, eps),
       launch(grid = ceil_div(segments * LANES, 256), block = 256, shared = 0)) {
    const u64 q = (u64(blockIdx.x) * 256 + threadIdx.x) / LANES;
    if (q >= segments) return;   // whole warps where LANES is 32; no barrier of the block follows
    const u32 lane = threadIdx.x % LANES;
    const u64 set = set_of(q, groups, per, pooled);
    const T *from = x + q * length, *given = dy + q * length;
    const f32 centre = mean[set];
    const f32 total = segment_sum<LANES>(length, lane, [&](u32 j) { return to_f32(given[j]); });
    const f32 product = segment_sum<LANES>(length, lane, [&](u32 j) { return to_f32(given[j]) * (to_f32(from[j]) - centre); });
    if (lane != 0) return;
    dys[q] = total;
    // Statistics over nothing are NaN; a sum over nothing is 0.
    products[q] = length ? product * reciprocal(variance[set], eps) : 0.0f;
}

// The averages of dy · weight and dy · weight · x̂ over each set, one block a set.
KERNEL(set_products, in(f32, dys, any), in(f32, products, any), opt_in(f32, weight, any), out(f32, first, sets),
       out(f32, second, sets), val(u64, sets), val(u64, members), val(u32, groups), val(u32, per), val(u32, pooled), val(f32, size),
       launch(grid = sets, block = 128, shared = 0)) {
    const u64 s = blockIdx.x;
    const u32 channels = groups * per;
    LongSum one, two;
    for (u64 m = threadIdx.x; m < members; m += 128) {
        const u64 q = segment_of(s, m, groups, per, pooled);
        const f32 w = weight ? weight[q % channels] : 1.0f;
        one.add(dys[q] * w);
        two.add(products[q] * w);
    }
    const f32 a = block_sum<128>(one.sum), b = block_sum<128>(two.sum);
    if (threadIdx.x != 0) return;
    first[s] = a / size;
    second[s] = b / size;
}

// The sum of the segments of each channel over the batch, one block a channel: of dy · x̂ for dweight, of dy for dbias.
KERNEL(channel_sum, types(T: f32, bf16, f16), in(f32, parts, batch * channels), out(T, total, channels), val(u64, batch),
       val(u32, channels), val(u32, add), launch(grid = channels, block = 128, shared = 0)) {
    const u32 c = blockIdx.x;
    LongSum sum;
    for (u64 m = threadIdx.x; m < batch; m += 128) sum.add(parts[m * channels + c]);
    const f32 all = block_sum<128>(sum.sum);
    if (threadIdx.x == 0) total[c] = from_f32<T>(add ? to_f32(total[c]) + all : all);
}

// dx = rstd · (dy · weight - first - x̂ · second), without the last two where the statistics were given. Pieces as in `normalise`.
KERNEL(channel_dx, types(T: f32, bf16, f16), ints(WIDE: 0, 1), in(T, x, n), in(T, dy, n), in(f32, mean, any),
       in(f32, variance, any), opt_in(T, weight, any), opt_in(f32, first, any), opt_in(f32, second, any), out(T, dx, n),
       val(u64, n), val(u32, length), val(u32, groups), val(u32, per), val(u32, pooled), val(f32, eps), val(u32, add),
       launch(grid = plan, block = 256, shared = 0)) {
    constexpr u32 V = WIDE ? vec_width<T>() : 1;
    const u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * V;
    if (i >= n) return;
    const Owner at = owner_of(i, length, groups, per, pooled);
    const f32 rstd = reciprocal(variance[at.set], eps), centre = mean[at.set];
    const f32 scale = weight ? rstd * to_f32(weight[at.channel]) : rstd;
    const f32 shift = first ? rstd * first[at.set] : 0.0f, slope = second ? rstd * rstd * second[at.set] : 0.0f;
    const Vec<T, V> given = load_vec<V>(dy + i);
    Vec<T, V> from{}, to;
    if (second) from = load_vec<V>(x + i);
    if (add) to = load_vec<V>(dx + i);
#pragma unroll
    for (u32 j = 0; j < V; ++j) {
        f32 v = to_f32(given[j]) * scale;
        if (second) v = v - shift - (to_f32(from[j]) - centre) * slope;
        to[j] = from_f32<T>(add ? to_f32(to[j]) + v : v);
    }
    store_vec(dx + i, to);
}

// The running statistics after one more batch, in place, by one block: running = (1 - momentum) · running + momentum · batch, the
// variance times `unbiased`; with `average` the momentum is 1 / the number of batches.
KERNEL(running_statistics, in(f32, mean, channels), in(f32, variance, channels), inout(f32, running_mean, channels),
       inout(f32, running_variance, channels), inout(i64, batches, 1), val(u32, channels), val(f32, momentum), val(f32, unbiased),
       val(u32, average), launch(grid = 1, block = 256, shared = 0)) {
    const i64 count = batches[0] + 1;
    __syncthreads();   // all have read the old number
    if (threadIdx.x == 0) batches[0] = count;
    const f32 part = average ? f32(1.0 / f64(count)) : momentum;
    for (u32 c = threadIdx.x; c < channels; c += 256) {
        running_mean[c] = (1.0f - part) * running_mean[c] + part * mean[c];
        running_variance[c] = (1.0f - part) * running_variance[c] + part * (variance[c] * unbiased);
    }
}
