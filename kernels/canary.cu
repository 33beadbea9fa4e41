// archs: 80 86 89 90 100 120 ptx80
// canary.cu: kernels with planted faults. A tool that is to find faults (compute-sanitizer, the simulator's checks) must report
// them, or its silence about the other kernels is worth nothing. `warpsmith selftest --canary` alone launches them.
#include "core/platform.cuh"

// y[i] = i; and the thread past the last writes too, `past` elements behind the end. For 0 that is the next element: memory
// of the pool's but of no allocation, so that nothing but a checking tool notices. For a large number nothing is there.
KERNEL(canary_bounds, types(T: f32), out(T, y, n), val(u64, n), val(u64, past),
       launch(grid = ceil_div(n + 1, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * canary_bounds_block + threadIdx.x;
    if (i < n) y[i] = from_f32<T>(f32(i));
    if (i == n) y[n + past] = from_f32<T>(-1.0f);
}

// y = a block's threads mirrored, through shared memory, without the barrier that this needs.
KERNEL(canary_race, types(T: f32), out(T, y, 256), launch(grid = 1, block = 256, shared = 0)) {
    SHARED(T[256], mirror);
    mirror[threadIdx.x] = from_f32<T>(f32(threadIdx.x));
    y[threadIdx.x] = mirror[255 - threadIdx.x];
}
