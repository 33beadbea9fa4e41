// random.cuh: random numbers by counter, Philox 4x32 with 10 rounds (Salmon et al., SC 2011): the bits of src/random.rs.
//
// A number is a pure function of (seed, stream, index): any thread may ask for any of them, and backward asks again
// instead of reading a mask.
#pragma once
#include "platform.cuh"

struct PhiloxBlock { u32 word[4]; };

// Ten rounds of Philox 4x32 on the counter c under the key (k0, k1).
WS_FN PhiloxBlock philox4x32(u32 k0, u32 k1, u32 c0, u32 c1, u32 c2, u32 c3) {
    for (u32 round = 0; round < 10; ++round) {
        const u64 a = u64(0xD2511F53u) * c0;
        const u64 b = u64(0xCD9E8D57u) * c2;
        const u32 next0 = u32(b >> 32) ^ c1 ^ k0, next2 = u32(a >> 32) ^ c3 ^ k1;
        c1 = u32(b);
        c3 = u32(a);
        c0 = next0;
        c2 = next2;
        // Fractions of the golden ratio and of the square root of 3.
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Block number `block` (four words) of a stream of a seed.
WS_FN PhiloxBlock philox_at(u64 seed, u64 stream, u64 block) {
    return philox4x32(u32(seed), u32(seed >> 32), u32(block), u32(block >> 32), u32(stream), u32(stream >> 32));
}

// The stream of one call site at one step.
WS_FN u64 philox_stream(u32 site, u32 step) { return u64(site) << 32 | step; }

// A uniform number in [0, 1): a multiple of 2^-24.
WS_FN f32 unit_f32(u32 word) { return f32(word >> 8) * (1.0f / 16777216.0f); }
