// archs: 80 86 89 90 100 120 ptx80
// step.cu: what a training step leaves for the host to read later, when it likes.
#include "core/vec.cuh"

// Notes a loss down in a ring of `count` numbers: at the cursor, which `advance` moves on. What is there already counts too
// where `add` is set: a step may see its batch in parts.
KERNEL(push_loss, types(T: f32, bf16, f16), in(T, loss, 1), inout(f64, ring, count), inout(i64, cursor, 1), val(u64, count),
       val(f64, factor), val(u32, add), val(u32, advance), launch(grid = 1, block = 32, shared = 0)) {
    if (threadIdx.x != 0) {
        return;
    }
    const u64 at = u64(cursor[0]) % count;
    const f64 part = f64(to_f32(loss[0])) * factor;
    ring[at] = add ? ring[at] + part : part;
    cursor[0] += i64(advance);
}
