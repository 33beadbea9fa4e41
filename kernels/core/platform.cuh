// platform.cuh: the names that every kernel may use, under nvcc and under the host compiler.
//
// The only file that asks which compiler it is (ptx.cuh, which it includes at its end, is the only one with `asm`). A kernel
// includes no header of CUDA or of the standard library: what it needs of them stands here.
//
// WS_FN     a function of ours that runs on the device. Inlined always, and on the host `static` too, so that the plain and
//           the checked build of a kernel, and two files with a struct of one name, never share a copy. A member of a
//           functor is declared with it as well (and so is a static member): `struct Relu { WS_FN f32 apply(f32 x) ... };`
// WS_METHOD the same for a member function that needs `this`.
// WS_MAP    a constexpr function over numbers, for both sides: fragment maps, sizes.
#pragma once

#ifdef __CUDACC__
  #include <cstddef>
  #include <cstdint>
#else
  #include <cmath>
  #include <cstddef>
  #include <cstdint>
#endif

using u8 = uint8_t; using u16 = uint16_t; using u32 = uint32_t; using u64 = uint64_t;
using i32 = int32_t; using i64 = int64_t; using f32 = float; using f64 = double;

#ifdef __CUDACC__
  #define WS_GPU 1
  #define WS_FN static __device__ __forceinline__
  #define WS_METHOD __device__ __forceinline__
  #define WS_MAP static __host__ __device__ __forceinline__ constexpr
#else
  #define WS_GPU 0
  #define WS_FN [[maybe_unused]] static inline __attribute__((always_inline))
  #define WS_METHOD inline __attribute__((always_inline))
  #define WS_MAP [[maybe_unused]] static inline __attribute__((always_inline)) constexpr
  #define __restrict__ __restrict
#endif

// build.rs reads the declaration; for the compilers it is the head of the kernel's definition, so that no one writes it twice.
#define KERNEL(name, ...) WS_HEAD_##name

// The head of one instance: a kernel whose only parameter is its argument struct `a`. On the host a function that runs one
// thread; WS_TABLE names the list of them that the generated file ends with.
// `...` are the threads of a block and, if the declaration says it, the blocks that a multiprocessor should hold.
#if WS_GPU
  #define WS_INSTANCE(symbol, Args, ...) \
      extern "C" __global__ void __launch_bounds__(__VA_ARGS__) symbol(const __grid_constant__ Args a)
#else
  #define WS_INSTANCE(symbol, Args, ...) static void symbol([[maybe_unused]] const Args& a)
  #ifdef WS_SIM_CHECKED
    #define WS_TABLE(unit) sim_checked_table_##unit
  #else
    #define WS_TABLE(unit) sim_table_##unit
  #endif
#endif

// Shared memory: `SHARED(Type, name);` is a `Type& name` of the block (a struct or an array type, uninitialised);
// `DYN_SHARED(Type, name);` a `Type* name` to the bytes that the launch asked for, aligned to 1024.
template <class T> struct WsType { using Is = T; };
#if WS_GPU
  #define SHARED(Type, name)                                         \
      __shared__ __align__(16) typename WsType<Type>::Is name##_;    \
      auto& name = name##_
  extern __shared__ __align__(1024) unsigned char ws_dynamic[];
  #define DYN_SHARED(Type, name) Type* name = reinterpret_cast<Type*>(ws_dynamic)
#else
  #define SHARED(Type, name)                                                                                  \
      static const char name##_key = 0;                                                                       \
      auto& name = *static_cast<typename WsType<Type>::Is*>(                                                  \
          ::sim::shared_static(&name##_key, sizeof(Type), alignof(Type) > 16 ? alignof(Type) : 16))
  #define DYN_SHARED(Type, name) Type* name = static_cast<Type*>(::sim::shared_dynamic())
#endif

// Arguments by value, laid out as in src/device/launch.rs: sizes and strides of up to eight dimensions, outermost first.
struct Dims { u32 rank, pad; u64 size[8]; };
struct Strides { i64 by[8]; };
static_assert(sizeof(Dims) == 72 && sizeof(Strides) == 64, "as in src/device/launch.rs");

// A tensor map as the driver encodes it. On the host the simulator's own fields stand in the same bytes.
struct alignas(64) TensorMap { u8 opaque[128]; };

// 16-bit floats as plain bits: no CUDA header, and the host's arithmetic cannot creep in.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
static_assert(sizeof(bf16) == 2 && alignof(bf16) == 2 && sizeof(f16) == 2 && alignof(f16) == 2, "two bytes each");

WS_FN u32 bits_of(f32 x) { u32 u; __builtin_memcpy(&u, &x, 4); return u; }
WS_FN f32 f32_of(u32 u) { f32 x; __builtin_memcpy(&x, &u, 4); return x; }

#if !WS_GPU
  #include "../sim/sim.h"
#endif
#include "ptx.cuh"

// Conversions are exact towards f32; from it they round to nearest even, and NaN stays NaN (0x7FFF, as the hardware has it).
WS_FN f32 to_f32(f32 x) { return x; }
WS_FN f32 to_f32(bf16 x) { return f32_of(u32(x.bits) << 16); }
WS_FN f32 to_f32(f16 x) { return ptx::f32_of_f16(x.bits); }
template <class T> struct WsRound;
template <> struct WsRound<f32> { WS_FN f32 apply(f32 x) { return x; } };
template <> struct WsRound<bf16> { WS_FN bf16 apply(f32 x) { return bf16{ptx::bf16_of_f32(x)}; } };
template <> struct WsRound<f16> { WS_FN f16 apply(f32 x) { return f16{ptx::f16_of_f32(x)}; } };
template <class T> WS_FN T from_f32(f32 x) { return WsRound<T>::apply(x); }

// What sums of T are kept in.
template <class T> struct WsAcc { using Is = T; };
template <> struct WsAcc<bf16> { using Is = f32; };
template <> struct WsAcc<f16> { using Is = f32; };
template <class T> using Acc = typename WsAcc<T>::Is;

// An error found on the device, raised at the next synchronisation. `fault` is the stream's slot: four words, zero while all
// is well: the code, unused, and the value's 64 bits. The first report stays. Codes: 1 an index out of range, 2 a target
// class out of range.
WS_FN void report(u32* fault, u32 code, i64 value) {
    if (ptx::atomic_cas(fault, 0u, code) == 0u) {
        fault[2] = u32(u64(value));
        fault[3] = u32(u64(value) >> 32);
    }
}
