// archs: 80 86 89 90 100 120 ptx80
// probe.cu: the kernel that `warpsmith doctor` runs. It uses every kind of argument that a launch can get wrong and nothing
// else, so that its failure means the build, the driver or the card, and not a kernel.
#include "core/platform.cuh"

// y = a * x, through the strides of x. One thread an element.
KERNEL(probe, types(T: f32, bf16), in(T, x, any), out(T, y, n), val(Dims, dims), val(Strides, xs), val(u64, n), val(f32, a),
       launch(grid = ceil_div(n, 256), block = 256, shared = 0)) {
    const u64 i = u64(blockIdx.x) * probe_block + threadIdx.x;
    if (i >= n) return;
    u64 rest = i;
    i64 from = 0;
    for (u32 d = dims.rank; d-- > 0;) {
        from += i64(rest % dims.size[d]) * xs.by[d];
        rest /= dims.size[d];
    }
    y[i] = from_f32<T>(a * to_f32(x[from]));
}
