// convert.cuh: element types among each other, with the rounding of `Element::from_f64` in src/dtype.rs.
//
// Floats round to nearest even, once; float to integer truncates and saturates, NaN to 0; 64-bit integers go through f64
// (exact up to 2^53). Where f32 holds the operand exactly nothing is computed in f64, which many GPUs do slowly.
#pragma once
#include "math.cuh"

template <class A, class B> struct WsSame { static constexpr bool yes = false; };
template <class A> struct WsSame<A, A> { static constexpr bool yes = true; };
template <class A, class B> constexpr bool ws_same = WsSame<A, B>::yes;

template <class T> constexpr bool ws_is_16_bit_float = ws_same<T, bf16> || ws_same<T, f16>;
template <class T> constexpr bool ws_is_float = ws_same<T, f32> || ws_same<T, f64> || ws_is_16_bit_float<T>;

// What elements of a type are computed in: f32 for 16-bit floats, every other type for itself.
template <class T> struct WsWork { using type = T; };
template <> struct WsWork<bf16> { using type = f32; };
template <> struct WsWork<f16> { using type = f32; };
template <class T> using Work = typename WsWork<T>::type;

template <class T> WS_FN Work<T> widen(T x) {
    if constexpr (ws_is_16_bit_float<T>) return to_f32(x);
    else return x;
}
template <class T> WS_FN T narrow(Work<T> x) {
    if constexpr (ws_is_16_bit_float<T>) return from_f32<T>(x);
    else return x;
}

// The sum; integers wrap.
WS_FN f32 plus(f32 a, f32 b) { return a + b; }
WS_FN f64 plus(f64 a, f64 b) { return a + b; }
WS_FN u8 plus(u8 a, u8 b) { return u8(a + b); }
WS_FN i32 plus(i32 a, i32 b) { return i32(u32(a) + u32(b)); }
WS_FN i64 plus(i64 a, i64 b) { return i64(u64(a) + u64(b)); }

// x as f32 with its last bit set if that is not exact ("round to odd"): rounding this to 16 bits is rounding x once.
WS_FN f32 f32_to_odd(f64 x) {
    const f32 nearest = f32(x);
    if (f64(nearest) == x || x != x) return nearest;
    const f64 size = x < 0.0 ? -x : x;
    const u32 beyond = f64(ws_abs(nearest)) > size ? 1 : 0;
    return f32_of((bits_of(nearest) - beyond) | 1u);
}

// x, truncated and kept within the range of T, whose least and (exclusive) greatest values are given in x's type.
template <class T, class F> WS_FN T ws_saturate(F x, F least, F beyond, T low, T high) {
    if (x != x) return T(0);
    if (x <= least) return low;
    if (x >= beyond) return high;
    return T(x);
}
template <class T, class F> WS_FN T ws_to_integer(F x) {
    if constexpr (ws_same<T, u8>) return ws_saturate<u8, F>(x, F(0), F(256), 0, 255);
    else if constexpr (ws_same<T, i32>) return ws_saturate<i32, F>(x, F(-2147483648.0), F(2147483648.0), INT32_MIN, INT32_MAX);
    else return ws_saturate<i64, F>(x, F(-9223372036854775808.0), F(9223372036854775808.0), INT64_MIN, INT64_MAX);
}

// The f64 of any element: exact but for i64 beyond 2^53.
template <class S> WS_FN f64 to_f64(S x) {
    if constexpr (ws_is_16_bit_float<S>) return f64(to_f32(x));
    else return f64(x);
}
template <class T> WS_FN T from_f64(f64 x) {
    if constexpr (ws_is_16_bit_float<T>) return from_f32<T>(f32_to_odd(x));
    else if constexpr (ws_is_float<T>) return T(x);
    else return ws_to_integer<T, f64>(x);
}

// x as a T.
template <class T, class S> WS_FN T convert(S x) {
    if constexpr (ws_same<S, T>) return x;
    else if constexpr (ws_same<S, f32> || ws_is_16_bit_float<S> || ws_same<S, u8>) {
        const f32 exact = f32(widen(x));
        if constexpr (ws_is_16_bit_float<T>) return from_f32<T>(exact);
        else if constexpr (ws_is_float<T>) return T(exact);
        else return ws_to_integer<T, f32>(exact);
    } else if constexpr (ws_same<S, i32> && ws_same<T, i64>) return i64(x);
    else if constexpr (ws_same<S, i32> && ws_same<T, f32>) return f32(x);
    else return from_f64<T>(to_f64(x));
}

// a + b, rounded once; integers go through f64 and saturate, as a move of elements on the CPU does.
template <class T> WS_FN T moved_sum(T a, T b) {
    if constexpr (ws_is_float<T>) return narrow<T>(widen(a) + widen(b));
    else return from_f64<T>(to_f64(a) + to_f64(b));
}
