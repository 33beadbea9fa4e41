// sim.h: the simulator's face. First what Rust calls, then what a kernel sees in place of the GPU.
//
// A kernel's unit is compiled twice: plain, and CHECKED (-fsanitize=thread -DWS_SIM_CHECKED), where the compiler calls our own
// `__tsan_*` functions (hooks.cpp) at each memory access. The simulator itself is compiled once, without instrumentation, so
// nothing of it is ever mistaken for an access of a kernel. Everything that a kernel's unit takes from here is either a call
// into that one copy or always inlined; no container of the standard library may be named here, since its functions would
// be instantiated instrumented and then shared.
#pragma once
#include <cstddef>
#include <cstdint>

// ---- C ABI ----
extern "C" {
// Memory that a launch may touch. As `Range` in src/device/driver.rs.
struct SimRange { uint64_t address, bytes; uint32_t writable, reserved; };

// How threads take turns. Blocks come one after another in the same spirit.
enum SimOrder : uint32_t {
    SIM_FORWARD,   // ascending, each as far as it gets
    SIM_REVERSE,   // descending
    SIM_RANDOM,    // a new permutation each round, and half of all primitives yield
    SIM_PCT,       // random priorities, changed at random primitives; the highest that can run, runs
};
// When asynchronous operations (cp.async, TMA, wgmma) take effect.
enum SimAsync : uint32_t { SIM_EARLIEST, SIM_LATEST, SIM_RANDOM_MOMENT };

struct SimLaunch {
    uint32_t grid[3], block[3];
    uint32_t shared;              // bytes of dynamic shared memory
    uint32_t order, async;        // SimOrder, SimAsync
    uint32_t checked;             // whether to run the checked build: races, addresses, uninitialised shared memory
    uint64_t seed;
    const SimRange* ranges;       // looked at by the checked build alone
    uint64_t n_ranges;
};
enum SimResult : int { SIM_OK, SIM_KERNEL_AT_FAULT, SIM_CALLER_AT_FAULT };

// The size of the argument struct of a kernel instance; 0 if there is no such instance.
size_t sim_args_size(const char* symbol);

// Runs a kernel to its end on the calling OS thread. Unless the result is SIM_OK, `what` (of `room` bytes) says why not: the
// kernel, block, thread, source line and, for a deadlock, what each thread waits for. May be called from several OS threads
// at once, which share nothing.
int sim_launch(const char* symbol, const void* args, size_t size, const struct SimLaunch* launch, char* what, size_t room);

// Takes the kernels that a shared library of the same make has in place of ours, in the whole process, from here on. For
// tests of the tests: a library with one fault planted in a kernel must make them fail. SIM_OK, or why not in `what`.
int sim_load(const char* library, char* what, size_t room);

// Encodes a tensor map of a matrix: 128 bytes, 64-aligned, as `TensorMap` of a kernel's arguments. Sizes innermost first.
// Checks what the driver checks.
struct SimTensorMap {
    uint64_t address;             // of the first element: a multiple of 16
    uint64_t size[2];             // elements of a row, rows
    uint64_t pitch;               // bytes from row to row: a multiple of 16
    uint32_t element;             // bytes of an element: 1, 2, 4 or 8
    uint32_t tile[2];             // the box: elements of a row, rows; at most 256 each
    uint32_t swizzle;             // span in bytes: 0, 32, 64 or 128
};
int sim_tensor_map(const struct SimTensorMap* desc, void* map, char* what, size_t room);
}

// ---- what generated units hand over ----
namespace sim {
struct Entry { const char* name; size_t args; void (*run)(const void* args); };
}
// The generated table.cpp defines both: for each unit its WS_TABLE, then null. A table ends with an entry without a name.
extern const sim::Entry* const sim_tables[];
extern const sim::Entry* const sim_checked_tables[];

// ---- what a kernel sees ----
// A place in the source. As a default argument it is the caller's.
struct SimSite {
    const char* file;
    uint32_t line;
    static constexpr SimSite here(const char* file = __builtin_FILE(), uint32_t line = __builtin_LINE()) { return {file, line}; }
};
#define SIM_HERE SimSite::here()
#define SIM_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace sim {
// Constant for a thread, so calls may be merged.
__attribute__((const)) uint32_t thread_x();
__attribute__((const)) uint32_t thread_y();
__attribute__((const)) uint32_t thread_z();
__attribute__((const)) uint32_t block_x();
__attribute__((const)) uint32_t block_y();
__attribute__((const)) uint32_t block_z();
__attribute__((const)) uint32_t block_dim(uint32_t axis);
__attribute__((const)) uint32_t grid_dim(uint32_t axis);

struct Three { uint32_t x, y, z; };
SIM_INLINE Three thread_index() { return {thread_x(), thread_y(), thread_z()}; }
SIM_INLINE Three block_index() { return {block_x(), block_y(), block_z()}; }
SIM_INLINE Three block_size() { return {block_dim(0), block_dim(1), block_dim(2)}; }
SIM_INLINE Three grid_size() { return {grid_dim(0), grid_dim(1), grid_dim(2)}; }

// Shared memory. `key` tells apart what has been asked for; the same key gives the same address within a block.
void* shared_static(const void* key, size_t bytes, size_t align);
void* shared_dynamic();
uint32_t shared_address(const void* p, SimSite at);

// Barriers, exchanges within a warp.
void barrier_all(SimSite at);
void barrier_named(uint32_t id, uint32_t threads, bool wait, SimSite at);
void warp_sync(uint32_t mask, SimSite at);
enum class Shuffle : uint32_t { Index, Up, Down, Xor };
uint64_t shuffle(Shuffle how, uint32_t mask, uint64_t value, uint32_t operand, uint32_t width, SimSite at);
uint32_t ballot(uint32_t mask, bool vote, SimSite at);

// Atomics on 4 or 8 bytes; they return the old value.
enum class Atomic : uint32_t { Add, Max, MaxSigned, Min, MinSigned, Exchange, CompareSwap };
uint64_t atomic(Atomic op, void* p, uint32_t bytes, uint64_t value, uint64_t expected, SimSite at);

// Asynchronous copies of single threads.
void cp_async(void* to, const void* from, uint32_t bytes, uint32_t valid, SimSite at);
void cp_async_commit(SimSite at);
void cp_async_wait(uint32_t pending, SimSite at);

// Tensor cores fed from registers.
void ldmatrix(uint32_t* to, const void* row, uint32_t count, bool transposed, SimSite at);
enum class Mma : uint32_t { M16N8K16_BF16, M16N8K16_F16, M16N8K8_TF32 };
void mma(Mma shape, float* d, const uint32_t* a, const uint32_t* b, SimSite at);

// Hopper: mbarriers, tensor-map copies, warpgroup products.
void mbarrier_init(uint64_t* bar, uint32_t count, SimSite at);
void mbarrier_inval(uint64_t* bar, SimSite at);
void mbarrier_fence_init();
void mbarrier_arrive(uint64_t* bar, SimSite at);
void mbarrier_expect(uint64_t* bar, uint32_t bytes, bool arrive, SimSite at);
void mbarrier_wait(uint64_t* bar, uint32_t parity, SimSite at);
void tma_load_2d(void* to, const void* map, uint64_t* bar, int32_t x, int32_t y, SimSite at);
void wgmma_fence(SimSite at);
void wgmma_commit(SimSite at);
void wgmma_wait(uint32_t pending, SimSite at);
void wgmma_m64n64k16(float* d, uint64_t a, uint64_t b, SimSite at);
void setmaxnreg(uint32_t registers, bool more, SimSite at);
void fence_proxy_async();

[[noreturn]] void trap(SimSite at);

// Values of up to eight bytes as bits, for exchanges.
template <class T> SIM_INLINE uint64_t to_bits(T x) {
    static_assert(sizeof(T) <= 8, "at most eight bytes");
    uint64_t u = 0;
    __builtin_memcpy(&u, &x, sizeof x);
    return u;
}
template <class T> SIM_INLINE T of_bits(uint64_t u) {
    T x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}
}  // namespace sim

#define threadIdx (::sim::thread_index())
#define blockIdx (::sim::block_index())
#define blockDim (::sim::block_size())
#define gridDim (::sim::grid_size())

SIM_INLINE void __syncthreads(SimSite at = SIM_HERE) { sim::barrier_all(at); }
SIM_INLINE void __syncwarp(uint32_t mask = 0xFFFFFFFFu, SimSite at = SIM_HERE) { sim::warp_sync(mask, at); }
template <class T> SIM_INLINE T __shfl_sync(uint32_t mask, T x, int lane, int width = 32, SimSite at = SIM_HERE) {
    return sim::of_bits<T>(sim::shuffle(sim::Shuffle::Index, mask, sim::to_bits(x), uint32_t(lane), uint32_t(width), at));
}
template <class T> SIM_INLINE T __shfl_up_sync(uint32_t mask, T x, uint32_t by, int width = 32, SimSite at = SIM_HERE) {
    return sim::of_bits<T>(sim::shuffle(sim::Shuffle::Up, mask, sim::to_bits(x), by, uint32_t(width), at));
}
template <class T> SIM_INLINE T __shfl_down_sync(uint32_t mask, T x, uint32_t by, int width = 32, SimSite at = SIM_HERE) {
    return sim::of_bits<T>(sim::shuffle(sim::Shuffle::Down, mask, sim::to_bits(x), by, uint32_t(width), at));
}
template <class T> SIM_INLINE T __shfl_xor_sync(uint32_t mask, T x, int lanes, int width = 32, SimSite at = SIM_HERE) {
    return sim::of_bits<T>(sim::shuffle(sim::Shuffle::Xor, mask, sim::to_bits(x), uint32_t(lanes), uint32_t(width), at));
}
SIM_INLINE uint32_t __ballot_sync(uint32_t mask, int vote, SimSite at = SIM_HERE) { return sim::ballot(mask, vote != 0, at); }
SIM_INLINE int __any_sync(uint32_t mask, int vote, SimSite at = SIM_HERE) { return sim::ballot(mask, vote != 0, at) != 0; }
SIM_INLINE int __all_sync(uint32_t mask, int vote, SimSite at = SIM_HERE) { return sim::ballot(mask, vote == 0, at) == 0; }

SIM_INLINE int __popc(uint32_t x) { return __builtin_popcount(x); }
SIM_INLINE int __clz(int x) { return x ? __builtin_clz(uint32_t(x)) : 32; }
SIM_INLINE int __ffs(int x) { return __builtin_ffs(x); }
SIM_INLINE uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
SIM_INLINE uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t(static_cast<unsigned __int128>(a) * b >> 64); }
