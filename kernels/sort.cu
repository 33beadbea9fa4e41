// archs: 80 86 89 90 100 120 ptx80
// sort.cu: sorting rows, the first few of a sorted row, and the gradient of both.
//
// An element becomes an entry: a key that orders as an unsigned integer (NaN above all, both zeros alike; all bits turned for a
// descending order) with its index below it, so that all entries of a row differ and any sort of them is stable. An entry is one
// word of 64 bits, or two for elements of 64 bits. Rows of up to 2,048 are sorted in shared memory, several to a block where
// they are short. Of longer rows, the first few come out of tiles: each gives its first, and these are sorted again. All of a
// long row is sorted by radix, eight bits a pass, the lowest first: the digits of each tile are counted, the counts added up
// (scan.cu), and each entry goes to its digit's place, counted in order within the tile. No result depends on a schedule.
#include "core/vec.cuh"

// Keys of as many bytes as the element has.
WS_FN u32 float_key(u32 bits, u32 sign, u32 infinity) {
    const u32 size = bits & (sign - 1);
    if (size > infinity) return sign | (sign - 1);
    // Numbers below zero count down, zero itself has no sign.
    return bits != size && size != 0 ? ~bits & (sign | (sign - 1)) : size | sign;
}
WS_FN u32 key_of(f32 x) { return float_key(bits_of(x), 0x80000000u, 0x7F800000u); }
WS_FN u32 key_of(bf16 x) { return float_key(x.bits, 0x8000u, 0x7F80u); }
WS_FN u32 key_of(f16 x) { return float_key(x.bits, 0x8000u, 0x7C00u); }
WS_FN u32 key_of(i32 x) { return u32(x) ^ 0x80000000u; }
WS_FN u32 key_of(u8 x) { return x; }
WS_FN u64 key_of(i64 x) { return u64(x) ^ (u64(1) << 63); }

template <u32 WORDS> struct Entry;
template <> struct Entry<1> {
    u64 pair;
    WS_FN Entry of(u64 key, u64 at) { return Entry{key << 32 | at}; }
    WS_FN Entry last() { return Entry{~u64(0)}; }
    WS_METHOD bool after(const Entry& other) const { return pair > other.pair; }
    WS_METHOD u64 at() const { return u32(pair); }
    WS_METHOD u32 digit(u32 shift) const { return u32(pair >> (32 + shift)) & 255; }
};
template <> struct Entry<2> {
    u64 key, place;
    WS_FN Entry of(u64 key, u64 at) { return Entry{key, at}; }
    WS_FN Entry last() { return Entry{~u64(0), ~u64(0)}; }
    WS_METHOD bool after(const Entry& other) const { return key > other.key || (key == other.key && place > other.place); }
    WS_METHOD u64 at() const { return place; }
    WS_METHOD u32 digit(u32 shift) const { return u32(key >> shift) & 255; }
};
template <class T> using EntryOf = Entry<sizeof(T) == 8 ? 2 : 1>;

template <class T> WS_FN EntryOf<T> entry_of(T x, u64 flip, u64 at) { return EntryOf<T>::of(u64(key_of(x)) ^ flip, at); }

// Divides in 32 bits where that is enough.
WS_FN u64 quotient(u64 a, u64 b) { return (a | b) >> 32 ? a / b : u32(a) / u32(b); }

// Entries sorted at once by one block.
constexpr u32 TILE = 2048;
template <class E> struct SortTile { E entries[TILE]; };

// Sorts each run of `width` (a power of two) of the first `used` entries. Bitonic: runs of `length` in alternating order are
// merged by exchanges over shrinking distances.
template <class E> WS_FN void sort_runs(SortTile<E>& tile, u32 width, u32 used) {
    for (u32 length = 2; length <= width; length *= 2)
        for (u32 gap = length / 2; gap > 0; gap /= 2) {
            // Publishes the entries, or the last exchange.
            __syncthreads();
            for (u32 k = threadIdx.x; k < used / 2; k += 256) {
                const u32 low = 2 * k - (k & (gap - 1)), high = low + gap;
                const E a = tile.entries[low], b = tile.entries[high];
                if (a.after(b) == (length == width || (low & length) == 0)) {
                    tile.entries[low] = b;
                    tile.entries[high] = a;
                }
            }
        }
    // Publishes the last exchange.
    __syncthreads();
}

// The first `keep` elements of each row, sorted, and their indices; rows of at most `width` elements, `width` a power of two
// and TILE at most, `per` of them a block.
KERNEL(sort_rows, types(T: f32, bf16, f16, i32, i64, u8), in(T, x, rows * n), out(T, y, rows * keep),
       out(i64, places, rows * keep), val(u64, rows), val(u64, n), val(u64, keep), val(u64, flip), val(u32, width),
       val(u32, per), launch(grid = ceil_div(rows, per), block = 256, shared = 0)) {
    using E = EntryOf<T>;
    SHARED(SortTile<E>, tile);
    const u64 first = u64(blockIdx.x) * per;
    const u32 here = u32(rows - first < per ? rows - first : per);
    const u32 log = u32(__ffs(i32(width)) - 1);
    for (u32 s = threadIdx.x; s < here * width; s += 256) {
        const u32 j = s & (width - 1);
        tile.entries[s] = j < n ? entry_of(x[(first + (s >> log)) * n + j], flip, j) : E::last();
    }
    sort_runs(tile, width, here * width);
    for (u32 s = threadIdx.x; s < here * u32(keep); s += 256) {
        const u32 row = s / u32(keep);
        const u64 at = tile.entries[(row << log) + (s - row * u32(keep))].at();
        y[first * keep + s] = x[(first + row) * n + at];
        places[first * keep + s] = i64(at);
    }
}

// The first `keep` entries of each tile of each row, sorted; beyond the row's end entries that come last.
KERNEL(row_tiles, types(T: f32, bf16, f16, i32, i64, u8), in(T, x, rows * n), out(u64, entries, any), val(u64, rows),
       val(u64, n), val(u64, tiles), val(u64, keep), val(u64, flip), launch(grid = rows * tiles, block = 256, shared = 0)) {
    using E = EntryOf<T>;
    SHARED(SortTile<E>, tile);
    const u64 row = blockIdx.x / tiles, first = (blockIdx.x - row * tiles) * TILE;
    for (u32 s = threadIdx.x; s < TILE; s += 256)
        tile.entries[s] = first + s < n ? entry_of(x[row * n + first + s], flip, first + s) : E::last();
    sort_runs(tile, TILE, TILE);
    for (u32 s = threadIdx.x; s < keep; s += 256)
        reinterpret_cast<E*>(entries)[u64(blockIdx.x) * keep + s] = tile.entries[s];
}

// The same of entries, `n` a row.
KERNEL(entry_tiles, ints(WORDS: 1, 2), in(u64, from, any), out(u64, to, any), val(u64, rows), val(u64, n), val(u64, tiles),
       val(u64, keep), launch(grid = rows * tiles, block = 256, shared = 0)) {
    using E = Entry<WORDS>;
    SHARED(SortTile<E>, tile);
    const u64 row = blockIdx.x / tiles, first = (blockIdx.x - row * tiles) * TILE;
    for (u32 s = threadIdx.x; s < TILE; s += 256)
        tile.entries[s] = first + s < n ? reinterpret_cast<const E*>(from)[row * n + first + s] : E::last();
    sort_runs(tile, TILE, TILE);
    for (u32 s = threadIdx.x; s < keep; s += 256)
        reinterpret_cast<E*>(to)[u64(blockIdx.x) * keep + s] = tile.entries[s];
}

// The elements and indices of the first `keep` of each row's `pitch` entries.
KERNEL(take_sorted, types(T: f32, bf16, f16, i32, i64, u8), in(T, x, rows * n), in(u64, entries, any), out(T, y, rows * keep),
       out(i64, places, rows * keep), val(u64, rows), val(u64, n), val(u64, pitch), val(u64, keep),
       launch(grid = ceil_div(rows * keep, 256), block = 256, shared = 0)) {
    const u64 e = u64(blockIdx.x) * 256 + threadIdx.x;
    if (e >= rows * keep) return;
    const u64 row = quotient(e, keep);
    const u64 at = reinterpret_cast<const EntryOf<T>*>(entries)[row * pitch + (e - row * keep)].at();
    y[e] = x[row * n + at];
    places[e] = i64(at);
}

// Entries of all elements.
KERNEL(make_entries, types(T: f32, bf16, f16, i32, i64, u8), in(T, x, rows * n), out(u64, entries, any), val(u64, rows),
       val(u64, n), val(u64, flip), launch(grid = ceil_div(rows * n, 256), block = 256, shared = 0)) {
    const u64 e = u64(blockIdx.x) * 256 + threadIdx.x;
    if (e >= rows * n) return;
    reinterpret_cast<EntryOf<T>*>(entries)[e] = entry_of(x[e], flip, e - quotient(e, n) * n);
}

// Entries that one block counts and sends to their places.
constexpr u32 RADIX = 4096;
struct Digits { u32 count[256]; };

// How often each digit occurs in each tile of each row: counts[row][digit][tile].
KERNEL(radix_count, ints(WORDS: 1, 2), in(u64, entries, any), out(u32, counts, rows * tiles * 256), val(u64, rows), val(u64, n),
       val(u64, tiles), val(u32, shift), launch(grid = rows * tiles, block = 256, shared = 0)) {
    SHARED(Digits, digits);
    const u64 row = blockIdx.x / tiles, tile = blockIdx.x - row * tiles, first = tile * RADIX;
    const u32 here = u32(n - first < RADIX ? n - first : RADIX);
    const auto* const from = reinterpret_cast<const Entry<WORDS>*>(entries) + row * n + first;
    digits.count[threadIdx.x] = 0;
    __syncthreads();   // publishes the zeros
    for (u32 s = threadIdx.x; s < here; s += 256) ptx::atomic_add(&digits.count[from[s].digit(shift)], 1u);
    __syncthreads();   // publishes the counts
    counts[(row * 256 + threadIdx.x) * tiles + tile] = digits.count[threadIdx.x];
}

// Which valid lanes of the warp have this digit.
WS_FN u32 lanes_with(u32 digit, bool valid) {
    u32 lanes = __ballot_sync(0xFFFFFFFFu, valid);
#pragma unroll
    for (u32 bit = 0; bit < 8; ++bit) {
        const bool one = digit >> bit & 1;
        const u32 ones = __ballot_sync(0xFFFFFFFFu, one);
        lanes &= one ? ones : ~ones;
    }
    return lanes;
}

// How many entries with each digit each warp has, then where its next one goes, counted from the digit's first in the tile.
struct Places {
    u32 next[8][256];
    u64 first[256];
};

// Each entry to its digit's place; entries with one digit stay in order. `ends` are the running sums of the counts.
KERNEL(radix_scatter, ints(WORDS: 1, 2), in(u64, from, any), in(i64, ends, rows * tiles * 256), out(u64, to, any),
       val(u64, rows), val(u64, n), val(u64, tiles), val(u32, shift), launch(grid = rows * tiles, block = 256, shared = 0)) {
    SHARED(Places, places);
    const u64 row = blockIdx.x / tiles, tile = blockIdx.x - row * tiles, first = tile * RADIX;
    const u32 here = u32(n - first < RADIX ? n - first : RADIX);
    const auto* const in = reinterpret_cast<const Entry<WORDS>*>(from) + row * n + first;
    auto* const out = reinterpret_cast<Entry<WORDS>*>(to) + row * n;
    // A warp has a stretch of the tile, 32 neighbours a round.
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, begin = warp * (RADIX / 8);
    u32* const next = places.next[warp];
    for (u32 d = lane; d < 256; d += 32) next[d] = 0;
    __syncwarp();
    for (u32 s = begin; s < begin + RADIX / 8 && s < here; s += 32) {
        const bool valid = s + lane < here;
        const u32 digit = valid ? in[s + lane].digit(shift) : 0, lanes = lanes_with(digit, valid);
        if (valid && lane == u32(__ffs(i32(lanes)) - 1)) next[digit] += u32(__popc(lanes));
        __syncwarp();
    }
    __syncthreads();   // publishes the warps' counts
    u32 sum = 0;
#pragma unroll
    for (u32 w = 0; w < 8; ++w) {
        const u32 count = places.next[w][threadIdx.x];
        places.next[w][threadIdx.x] = sum;
        sum += count;
    }
    const u64 before = threadIdx.x * tiles + tile;
    places.first[threadIdx.x] = before == 0 ? 0 : u64(ends[row * 256 * tiles + before - 1]);
    __syncthreads();   // publishes the places
    for (u32 s = begin; s < begin + RADIX / 8 && s < here; s += 32) {
        const bool valid = s + lane < here;
        Entry<WORDS> entry = Entry<WORDS>::last();
        if (valid) entry = in[s + lane];
        const u32 digit = entry.digit(shift), lanes = lanes_with(digit, valid);
        if (valid) out[places.first[digit] + next[digit] + u32(__popc(lanes & ((1u << lane) - 1)))] = entry;
        __syncwarp();   // all have read `next`
        if (valid && lane == u32(__ffs(i32(lanes)) - 1)) next[digit] += u32(__popc(lanes));
        __syncwarp();
    }
}

// owner[place] = 1 + the last position of the index, of [outer, k, inner], that names the place; of [outer, size, inner], and
// zero before.
KERNEL(mark_places, types(I: i32, i64), in(I, index, count), inout(u32, owner, any), inout(u32, fault, any), val(u64, count),
       val(u64, k), val(u64, size), val(u64, inner), launch(grid = ceil_div(count, 256), block = 256, shared = 0)) {
    const u64 e = u64(blockIdx.x) * 256 + threadIdx.x;
    if (e >= count) return;
    const i64 place = i64(index[e]);
    if (u64(place) >= size) {
        report(fault, place, e);
        return;
    }
    const u64 line = quotient(e, inner), outer = quotient(line, k);
    ptx::atomic_max(&owner[(outer * size + u64(place)) * inner + (e - line * inner)], u32(line - outer * k) + 1);
}

// dx[place] = the element of dy that owns the place, or 0; added if `add`.
KERNEL(put_back, types(T: f32, bf16, f16), in(T, dy, any), in(u32, owner, count), out(T, dx, count), val(u64, count), val(u64, k),
       val(u64, size), val(u64, inner), val(u32, add), launch(grid = ceil_div(count, 256), block = 256, shared = 0)) {
    const u64 e = u64(blockIdx.x) * 256 + threadIdx.x;
    if (e >= count) return;
    const u64 line = quotient(e, inner), outer = quotient(line, size);
    const u32 from = owner[e];
    const f32 v = from ? to_f32(dy[(outer * k + (from - 1)) * inner + (e - line * inner)]) : 0.0f;
    dx[e] = from_f32<T>(add ? to_f32(dx[e]) + v : v);
}
