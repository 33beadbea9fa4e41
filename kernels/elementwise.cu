// archs: 80 90 100 120 ptx80
// elementwise.cu: functions of one and two operands and their gradients, comparisons and selection, of any layout.
//
// One kernel an arity, one line a function. `WIDE` chooses vectors of 16 bytes (see core/each.cuh), which the caller may
// only do where each operand allows it. Values, and what is exactly rounded, are the CPU's bit for bit.
#include "core/each.cuh"

// The bounds of clamp; NaN in x stays, NaN in a bound wins.
template <class T> WS_FN T clamped(T x, T low, T high) {
    x = x < low || low != low ? low : x;
    return x > high || high != high ? high : x;
}
WS_FN f32 abs_grad(f32 dy, f32 x) { return x > 0.0f ? dy : x < 0.0f ? -dy : x * 0.0f * dy; }
WS_FN f32 squared(f32 x) { return x * x; }
WS_FN f32 powf_grad(f32 dy, f32 x, f64 p) { return p == 0.0 ? 0.0f * dy : dy * (f32(p) * ws_pow(x, f32(p - 1.0))); }
WS_FN f32 pow_grad_a(f32 dy, f32 a, f32 b) { return b == 0.0f ? 0.0f * dy : dy * (b * ws_pow(a, b - 1.0f)); }
WS_FN f32 pow_grad_b(f32 dy, f32 a, f32 b) {
    return a == 0.0f && b >= 0.0f ? 0.0f * dy : dy * (ws_pow(a, b) * ws_log(a));
}
template <class T> WS_FN T negated(T x) { return T(0 - u64(x)); }
template <class T> WS_FN T product(T a, T b) { return T(u64(a) * u64(b)); }

// UNARY(Name, value, gradient): in terms of x, of dy and s (the x or y that the gradient reads), and of arguments p, q.
#define UNARY(Name, VALUE, GRADIENT)                                                                    \
    struct Name {                                                                                       \
        WS_FN f32 value(f32 x, f64 p, f64 q) { (void)p, (void)q; return VALUE; }                 \
        WS_FN f32 gradient(f32 dy, f32 s, f64 p, f64 q) { (void)s, (void)p, (void)q; return GRADIENT; } \
    };
UNARY(Relu, ws_relu(x), ws_relu_grad(dy, s))
UNARY(LeakyRelu, x > 0.0f ? x : x * f32(p), s > 0.0f ? dy : dy * f32(p))
UNARY(Gelu, ws_gelu(x), ws_gelu_grad(dy, s))
UNARY(GeluTanh, ws_gelu_tanh(x), ws_gelu_tanh_grad(dy, s))
UNARY(Silu, ws_silu(x), ws_silu_grad(dy, s))
UNARY(Sigmoid, ws_sigmoid(x), ws_sigmoid_grad(dy, s))
UNARY(Tanh, ws_tanh(x), ws_tanh_grad(dy, s))
UNARY(Softsign, x / (1.0f + ws_abs(x)), dy * squared(1.0f / (1.0f + ws_abs(s))))
UNARY(Exp, ws_exp(x), dy * s)
UNARY(Log, ws_log(x), dy / s)
UNARY(Sqrt, sqrtf(x), dy / (s + s))
UNARY(Rsqrt, 1.0f / sqrtf(x), -0.5f * dy * (s * s * s))
UNARY(Abs, ws_abs(x), abs_grad(dy, s))
UNARY(Neg, -x, -dy)
UNARY(Square, x * x, dy * (s + s))
UNARY(Reciprocal, 1.0f / x, -dy * (s * s))
UNARY(Clamp, clamped(x, f32(p), f32(q)), s >= f32(p) && s <= f32(q) ? dy : 0.0f)
UNARY(AddScalar, x + f32(p), dy)
UNARY(MulScalar, x * f32(p), dy * f32(p))
UNARY(DivScalar, x / f32(p), dy / f32(p))
UNARY(Powf, ws_pow(x, f32(p)), powf_grad(dy, s, p))

// UNARY_INT(Name, value): the same functions of integers, which wrap; p and q have the type of x.
template <class F> struct IntegerOf;
#define UNARY_INT(Name, VALUE)                                                                          \
    template <> struct IntegerOf<Name> {                                                                \
        template <class T> WS_FN T value(T x, T p, T q) { (void)p, (void)q; return VALUE; }      \
    };
UNARY_INT(Relu, x > T(0) ? x : T(0))
UNARY_INT(Abs, x < T(0) ? negated(x) : x)
UNARY_INT(Neg, negated(x))
UNARY_INT(Square, product(x, x))
UNARY_INT(Clamp, clamped(x, p, q))
UNARY_INT(AddScalar, plus(x, p))
UNARY_INT(MulScalar, product(x, p))

// BINARY(Name, value, gradient of a, gradient of b): in terms of a, b and dy.
#define BINARY(Name, VALUE, GRAD_A, GRAD_B)                                                             \
    struct Name {                                                                                       \
        WS_FN f32 value(f32 a, f32 b) { return VALUE; }                                          \
        WS_FN f32 grad_a(f32 dy, f32 a, f32 b) { (void)a, (void)b; return GRAD_A; }              \
        WS_FN f32 grad_b(f32 dy, f32 a, f32 b) { (void)a, (void)b; return GRAD_B; }              \
    };
BINARY(Add, a + b, dy, dy)
BINARY(Sub, a - b, dy, -dy)
BINARY(Mul, a * b, dy * b, dy * a)
BINARY(Div, a / b, dy / b, -dy * (a / b / b))
BINARY(Pow, ws_pow(a, b), pow_grad_a(dy, a, b), pow_grad_b(dy, a, b))
BINARY(Maximum, a != a || a > b ? a : b, a == b ? 0.5f * dy : a < b ? 0.0f : dy, a == b ? 0.5f * dy : b < a ? 0.0f : dy)
BINARY(Minimum, a != a || a < b ? a : b, a == b ? 0.5f * dy : a > b ? 0.0f : dy, a == b ? 0.5f * dy : b > a ? 0.0f : dy)

// BINARY_INT(Name, value): the same functions of integers, which wrap.
#define BINARY_INT(Name, VALUE)                                                                         \
    template <> struct IntegerOf<Name> {                                                                \
        template <class T> WS_FN T value(T a, T b) { return VALUE; }                             \
    };
BINARY_INT(Add, plus(a, b))
BINARY_INT(Sub, plus(a, negated(b)))
BINARY_INT(Mul, product(a, b))
BINARY_INT(Maximum, a > b ? a : b)
BINARY_INT(Minimum, a < b ? a : b)

// y = f(x), or y += f(x) if `add`. p and q are the function's arguments.
KERNEL(unary, types(T: f32, bf16, f16), functors(F: UNARY), ints(WIDE: 0, 1), in(T, x, any), out(T, y, n),
       val(Dims, dims), val(Strides, x_by), val(u64, n), val(u32, add), val(f64, p), val(f64, q),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{x, x_by}, Operand<T>{nullptr, x_by}, Operand<T>{nullptr, x_by}, y, add,
                                   [&](f32 v, f32, f32) { return F::value(v, p, q); });
}

// dx = f'(...) dy, or dx += that if `add`. s is the x or y of `unary` that the gradient reads, absent if it reads neither.
KERNEL(unary_backward, types(T: f32, bf16, f16), functors(F: UNARY), ints(WIDE: 0, 1), in(T, dy, any),
       opt_in(T, s, any), out(T, dx, n), val(Dims, dims), val(Strides, dy_by), val(Strides, s_by), val(u64, n), val(u32, add),
       val(f64, p), val(f64, q), launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{dy, dy_by}, Operand<T>{s, s_by}, Operand<T>{nullptr, s_by}, dx, add,
                                   [&](f32 d, f32 saved, f32) { return F::gradient(d, saved, p, q); });
}

// `unary` of integers.
KERNEL(unary_int, types(T: i32, i64), functors(F: UNARY_INT), ints(WIDE: 0, 1), in(T, x, any), out(T, y, n),
       val(Dims, dims), val(Strides, x_by), val(u64, n), val(u32, add), val(i64, p), val(i64, q),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{x, x_by}, Operand<T>{nullptr, x_by}, Operand<T>{nullptr, x_by}, y, add,
                                   [&](T v, T, T) { return IntegerOf<F>::value(v, T(p), T(q)); });
}

// y = f(a, b), or y += f(a, b) if `add`; repeated dimensions have stride 0.
KERNEL(binary, types(T: f32, bf16, f16), functors(F: BINARY), ints(WIDE: 0, 1), in(T, a, any), in(T, b, any),
       out(T, y, n), val(Dims, dims), val(Strides, a_by), val(Strides, b_by), val(u64, n), val(u32, add),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{a, a_by}, Operand<T>{b, b_by}, Operand<T>{nullptr, b_by}, y, add,
                                   [&](f32 u, f32 v, f32) { return F::value(u, v); });
}

// The gradient of operand SECOND of `binary`, in the shape of dy. Operands that it does not read are absent.
KERNEL(binary_backward, types(T: f32, bf16, f16), functors(F: BINARY), ints(SECOND: 0, 1), ints(WIDE: 0, 1),
       in(T, dy, any), opt_in(T, a, any), opt_in(T, b, any), out(T, dx, n), val(Dims, dims), val(Strides, dy_by),
       val(Strides, a_by), val(Strides, b_by), val(u64, n), val(u32, add),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{dy, dy_by}, Operand<T>{a, a_by}, Operand<T>{b, b_by}, dx, add,
                                   [&](f32 d, f32 u, f32 v) { return SECOND ? F::grad_b(d, u, v) : F::grad_a(d, u, v); });
}

// `binary` of integers.
KERNEL(binary_int, types(T: i32, i64), functors(F: BINARY_INT), ints(WIDE: 0, 1), in(T, a, any), in(T, b, any),
       out(T, y, n), val(Dims, dims), val(Strides, a_by), val(Strides, b_by), val(u64, n), val(u32, add),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{a, a_by}, Operand<T>{b, b_by}, Operand<T>{nullptr, b_by}, y, add,
                                   [&](T u, T v, T) { return IntegerOf<F>::value(u, v); });
}

// How a and b compare: 1 if a < b, 2 if they are equal, 4 if a > b, 8 if one of them is NaN.
template <class W> WS_FN u32 relation(W a, W b) { return a < b ? 1 : a == b ? 2 : a > b ? 4 : 8; }

// y = 1 where the relation between a and b (see `relation`) is among `holds`, else 0.
KERNEL(compare, types(T: f32, f64, bf16, f16, u8, i32, i64), ints(WIDE: 0, 1), in(T, a, any), in(T, b, any),
       out(u8, y, n), val(Dims, dims), val(Strides, a_by), val(Strides, b_by), val(u64, n), val(u32, holds),
       launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<T>{a, a_by}, Operand<T>{b, b_by}, Operand<T>{nullptr, b_by}, y, false,
                                   [&](Work<T> u, Work<T> v, Work<T>) { return u8((holds & relation(u, v)) != 0); });
}

// y = a where the mask is not 0, else b; or y += that if `add`.
KERNEL(where_select, types(T: f32, f64, bf16, f16, u8, i32, i64), ints(WIDE: 0, 1), in(u8, mask, any), in(T, a, any),
       in(T, b, any), out(T, y, n), val(Dims, dims), val(Strides, mask_by), val(Strides, a_by), val(Strides, b_by), val(u64, n),
       val(u32, add), launch(grid = ceil_div(n, 2048), block = 128, shared = 0)) {
    for_each<each_vector<T>(WIDE)>(dims, n, Operand<u8>{mask, mask_by}, Operand<T>{a, a_by}, Operand<T>{b, b_by}, y, add,
                                   [&](u8 m, Work<T> u, Work<T> v) { return m ? u : v; });
}
