// archs: 80 86 89 90 100 120 ptx80
// recurrent.cu: what a step of an LSTM, a GRU or a plain recurrent network does beside its product, and the steps' backwards.
//
// A thread works on one unit of one row, so neighbours read neighbours in each gate. What comes from the state arrives as the f32
// sums of the product; the cell state of an LSTM and the gradients of states are carried in f32 from step to step. The order of
// operations is the CPU's (src/ops/recurrent).
#include "core/math.cuh"
#include "core/vec.cuh"

// Where unit j of row b stands in rows of `gates` · n numbers.
WS_FN u64 gate_of(u64 unit, u32 n, u32 gates, u32 gate) { return unit / n * (u64(gates) * n) + u64(gate) * n + unit % n; }

WS_FN f32 slope(f32 sigmoid) { return sigmoid * (1.0f - sigmoid); }

// i, f, g, o from their sums; c is replaced. `cells`: the new c once more, to be kept.
KERNEL(lstm_step, types(T: f32, bf16, f16), in(T, xw, 4 * rows * n), in(f32, sums, 4 * rows * n), inout(f32, c, rows * n),
       out(T, y, rows * n), out(T, gates, 4 * rows * n), out(T, cells, rows * n), val(u64, rows), val(u32, n),
       launch(grid = ceil_div(rows * n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit >= rows * n) return;
    f32 gate[4];
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
        const u64 at = gate_of(unit, n, 4, q);
        const f32 sum = to_f32(xw[at]) + sums[at];
        gate[q] = q == 2 ? ws_tanh(sum) : ws_sigmoid(sum);
        gates[at] = from_f32<T>(gate[q]);
    }
    const f32 next = gate[1] * c[unit] + gate[0] * gate[2];
    c[unit] = next;
    cells[unit] = from_f32<T>(next);
    y[unit] = from_f32<T>(gate[3] * ws_tanh(next));
}

// The gradients of the sums; dc is that of the cell state after the step and becomes that of the one before. `dh`: what later steps
// bring beside dy. `dc0`: dc once more, in the op's type.
KERNEL(lstm_step_backward, types(T: f32, bf16, f16), in(T, dy, rows * n), opt_in(f32, dh, rows * n), inout(f32, dc, rows * n),
       in(T, gates, 4 * rows * n), in(T, cells, rows * n), in(T, before, rows * n), out(T, dsums, 4 * rows * n),
       opt_out(T, dc0, rows * n), val(u64, rows), val(u32, n),
       launch(grid = ceil_div(rows * n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit >= rows * n) return;
    f32 gate[4];
#pragma unroll
    for (u32 q = 0; q < 4; ++q) gate[q] = to_f32(gates[gate_of(unit, n, 4, q)]);
    const f32 tanh = ws_tanh(to_f32(cells[unit]));
    const f32 d = (dh ? dh[unit] : 0.0f) + to_f32(dy[unit]);
    const f32 cell = dc[unit] + d * gate[3] * (1.0f - tanh * tanh);
    dsums[gate_of(unit, n, 4, 0)] = from_f32<T>(cell * gate[2] * slope(gate[0]));
    dsums[gate_of(unit, n, 4, 1)] = from_f32<T>(cell * to_f32(before[unit]) * slope(gate[1]));
    dsums[gate_of(unit, n, 4, 2)] = from_f32<T>(cell * gate[0] * (1.0f - gate[2] * gate[2]));
    dsums[gate_of(unit, n, 4, 3)] = from_f32<T>(d * tanh * slope(gate[3]));
    const f32 earlier = cell * gate[1];
    dc[unit] = earlier;
    if (dc0) dc0[unit] = from_f32<T>(earlier);
}

// r, z, n from their sums; `kept`: them and what n's sum has from the state.
KERNEL(gru_step, types(T: f32, bf16, f16), in(T, xw, 3 * rows * n), in(f32, sums, 3 * rows * n), opt_in(T, bias, 3 * n),
       in(T, before, rows * n), out(T, y, rows * n), out(T, kept, 4 * rows * n), val(u64, rows), val(u32, n),
       launch(grid = ceil_div(rows * n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit >= rows * n) return;
    f32 x[3], s[3];
#pragma unroll
    for (u32 q = 0; q < 3; ++q) {
        const u64 at = gate_of(unit, n, 3, q);
        x[q] = to_f32(xw[at]);
        s[q] = bias ? to_f32(bias[q * n + u32(unit % n)]) + sums[at] : sums[at];
    }
    const f32 r = ws_sigmoid(x[0] + s[0]), z = ws_sigmoid(x[1] + s[1]), fresh = ws_tanh(x[2] + r * s[2]);
    y[unit] = from_f32<T>(fresh + z * (to_f32(before[unit]) - fresh));
    kept[gate_of(unit, n, 4, 0)] = from_f32<T>(r);
    kept[gate_of(unit, n, 4, 1)] = from_f32<T>(z);
    kept[gate_of(unit, n, 4, 2)] = from_f32<T>(fresh);
    kept[gate_of(unit, n, 4, 3)] = from_f32<T>(s[2]);
}

// The gradients of the sums from the input and from the state; dh is what later steps bring beside dy and becomes what goes to the
// state before without the product.
KERNEL(gru_step_backward, types(T: f32, bf16, f16), in(T, dy, rows * n), inout(f32, dh, rows * n), in(T, kept, 4 * rows * n),
       in(T, before, rows * n), out(T, dxw, 3 * rows * n), out(T, dsums, 3 * rows * n), val(u64, rows), val(u32, n),
       launch(grid = ceil_div(rows * n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit >= rows * n) return;
    f32 gate[4];
#pragma unroll
    for (u32 q = 0; q < 4; ++q) gate[q] = to_f32(kept[gate_of(unit, n, 4, q)]);
    const f32 r = gate[0], z = gate[1], fresh = gate[2];
    const f32 d = dh[unit] + to_f32(dy[unit]);
    const f32 dn = d * (1.0f - z) * (1.0f - fresh * fresh);
    const f32 both[2] = {dn * gate[3] * slope(r), d * (to_f32(before[unit]) - fresh) * slope(z)};
    dh[unit] = d * z;
#pragma unroll
    for (u32 q = 0; q < 2; ++q) {
        const u64 at = gate_of(unit, n, 3, q);
        const T stored = from_f32<T>(both[q]);
        dxw[at] = stored;
        dsums[at] = stored;
    }
    dxw[gate_of(unit, n, 3, 2)] = from_f32<T>(dn);
    dsums[gate_of(unit, n, 3, 2)] = from_f32<T>(dn * r);
}

struct Tanh {
    WS_FN f32 value(f32 x) { return ws_tanh(x); }
    WS_FN f32 gradient(f32 dy, f32 y) { return ws_tanh_grad(dy, y); }
};
struct Relu {
    WS_FN f32 value(f32 x) { return ws_relu(x); }
    WS_FN f32 gradient(f32 dy, f32 y) { return ws_relu_grad(dy, y); }
};

// f of the sums.
KERNEL(rnn_step, types(T: f32, bf16, f16), functors(F: Tanh, Relu), in(T, xw, n), in(f32, sums, n), out(T, y, n), val(u64, n),
       launch(grid = ceil_div(n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit < n) y[unit] = from_f32<T>(F::value(to_f32(xw[unit]) + sums[unit]));
}

// The gradient of the sums. `dh`: what later steps bring beside dy.
KERNEL(rnn_step_backward, types(T: f32, bf16, f16), functors(F: Tanh, Relu), in(T, dy, n), opt_in(f32, dh, n), in(T, y, n),
       out(T, dsums, n), val(u64, n), launch(grid = ceil_div(n, 128), block = 128, shared = 0)) {
    const u64 unit = u64(blockIdx.x) * 128 + threadIdx.x;
    if (unit >= n) return;
    const f32 d = (dh ? dh[unit] : 0.0f) + to_f32(dy[unit]);
    dsums[unit] = from_f32<T>(F::gradient(d, to_f32(y[unit])));
}
