// state.h: what the simulator knows of a launch in progress. One `Context` for each OS thread; nothing is shared between them.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "../core/platform.cuh"
#include "detector.h"
#include "fiber.h"

namespace sim {

constexpr u32 LANES = 32, WARPGROUP = 128, SHARED_BASE = 0x400, SHARED_MOST = 227 << 10;
constexpr u8 POISON = 0xCB;                          // as f32 and as bf16 a number near -2.7e7, as an index far outside

// Small and fast, and the same on every machine.
struct Random {
    u64 state = 1;
    void seed(u64 s) { state = (s + 1) * 0x9E3779B97F4A7C15u | 1; for (int i = 0; i < 4; ++i) next(); }
    u32 next() {
        state ^= state << 13; state ^= state >> 7; state ^= state << 17;
        return u32(state * 0x2545F4914F6CDD1Du >> 32);
    }
    u32 below(u32 n) { return u32(u64(next()) * n >> 32); }
};

struct Thread;

// A barrier of the block: number 0 is __syncthreads, whose count is the number of threads.
struct Barrier {
    u64 generation = 0;
    u32 id = 0, count = 0, arrived = 0;
    SimSite site{};
    std::vector<u32> participants, waiters;          // of this generation
    std::vector<SimSite> sites;                      // of the participants
    Sync sync;
};

// A meeting of the lanes `mask` of a warp: nobody leaves before all have come. Two sides, because a lane may still read what
// was handed in for one generation while others already hand in for the next.
struct Meeting {
    u32 mask = 0, arrived = 0;
    u64 generation = 0;
    SimSite site{};
    const char* what = "";
    Sync sync;
    struct Slot { alignas(8) u8 bytes[48]; } slot[2][LANES];
};
struct Warp {
    u32 lanes = 0, exited = 0;                       // masks
    std::vector<std::unique_ptr<Meeting>> meetings;
    size_t used = 0;                                 // of `meetings`, in this block
};

struct Mbarrier {
    u32 offset = 0;                                  // in the block's shared memory
    u32 count = 0, pending = 0, owner = 0;
    i64 bytes = 0;                                   // still expected in this phase; negative: arrived before being expected
    u64 phase = 0;                                   // completed phases
    bool live = false, fenced = false;
    u64 copied = 0, observed = 0;                    // last phase + 1 that a copy fell into, that someone waited for
    Sync arrivals;                                   // into the current phase
    Clock* completed = nullptr;                      // of the phase before it
    std::vector<std::pair<u32, u64>> waiters;        // thread, phase it waits for
};

// What instructions of a warpgroup have in common, to see that all its threads execute the same ones.
struct Collective { SimSite site; const char* what; u64 a, b; };
struct Warpgroup {
    std::vector<Collective> log;
    u32 registers = 0;
    std::vector<u32> requested;                      // the warpgroup's value after its n-th setmaxnreg
};

// Asynchronous work of single threads; only those that use it have one.
struct Copy { u8* to; const u8* from; u32 bytes, valid; SimSite site; bool done; Actor actor; };
struct Accumulator { f32* registers; f32 value[32]; u32 open; };          // `open`: products not yet retired
struct Product { u32 accumulator; u64 a, b; SimSite site; bool done; Actor actor; };
struct Async {
    std::vector<Copy> copies;                        // oldest first
    std::vector<size_t> copy_groups;                 // for each committed group the number of copies up to its end
    std::vector<Accumulator> accumulators;           // those in flight
    std::vector<Product> products;
    std::vector<size_t> product_groups;
    bool fenced = false;                             // a wgmma fence since registers could be touched
    u32 collective = 0, register_requests = 0;
    u64 copies_issued = 0, products_issued = 0;
    void clear();
};

enum class State : u8 { Unstarted, Suspended, Running, Done };
enum class Wait : u8 { Turn, Barrier, Lanes, Mbarrier, Registers };

struct Thread {
    // Changed at every switch.
    void* sp = nullptr;
    const u64* gate = nullptr;                       // suspended until *gate != seen; null: only waits for its turn
    u64 seen = 0;
    State state = State::Unstarted;
    Wait wait = Wait::Turn;
    Stack* stack = nullptr;
    // What it waits for, for messages.
    const void* object = nullptr;
    u64 detail = 0;
    SimSite site{};
    // Constant through a launch.
    u32 linear = 0;
    Three index{};
    std::unique_ptr<Async> async;
    bool async_used = false;
};

// A tensor map: the simulator's own fields in the 128 bytes.
struct TensorFields { u64 magic, address, size[2], pitch; u32 element, tile[2], swizzle; u8 rest[72]; };
static_assert(sizeof(TensorFields) == sizeof(TensorMap), "128 bytes");
constexpr u64 TENSOR_MAGIC = 0x70616D726F736E74;

// A tensor-map copy in flight.
struct Box { u8* to; TensorFields map; u32 mbarrier; i32 x, y; SimSite site; Actor actor; };

struct StaticShared { const void* key; u32 offset, bytes; };

struct Context {
    // The launch.
    const Entry* kernel = nullptr;
    const void* args = nullptr;
    SimLaunch launch{};
    u32 n = 0;                                       // threads of a block
    Random random;
    Detector* detector = nullptr;                    // null: not checked
    std::unique_ptr<Detector> detector_memory;

    // The block that runs.
    Three block{};
    u32 live = 0, exited_any = 0;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    Barrier barriers[16];
    u32 barriers_used = 0;                           // mask
    std::deque<Mbarrier> mbarriers;                  // stays where it is: phases are gates
    std::vector<Box> boxes;
    u32 register_pool = 0;
    u64 registers_freed = 0;                         // gate of those that wait for registers
    bool warpgroups_used = false;

    // Shared memory.
    std::vector<u8> shared_memory;
    u8* shared = nullptr;                            // aligned to 1024; address SHARED_BASE
    u32 shared_used = 0;
    std::vector<StaticShared> statics;

    // Turns.
    Thread* current = nullptr;
    std::vector<u32> order;
    size_t cursor = 0;
    void* main_sp = nullptr;
    Stacks stacks;
    std::string fault;
    u64 switches = 0;

    Context();
    ~Context();
};

extern thread_local Context* context;                // null outside a launch
inline Context& ctx() { return *context; }
inline Thread& me() { return *context->current; }
inline u32 lane() { return context->current->linear % LANES; }
inline Warp& warp() { return context->warps[context->current->linear / LANES]; }
inline Detector* detector() { return context->detector; }

// schedule.cpp
std::string run_block();
// Suspends the thread until *gate is no longer `seen`; the rest says what for.
void wait_until(const u64* gate, u64 seen, Wait wait, const void* object, u64 detail, SimSite at);
// A point where the order may take the turn away: after each primitive that others can see.
void progress(SimSite at);

// sync.cpp
void reset_sync();
void thread_exits(Thread& t);
Meeting& meet(u32 mask, const char* what, SimSite at, u32& side);
// True for the last lane, which has to call `disperse` after doing what concerns all.
bool last_to_come(Meeting& m);
void disperse(Meeting& m);
void await(Meeting& m, u32 side, SimSite at);

// async.cpp
Async& async_state();
void async_exit(Thread& t);
void async_random();                                 // lets something asynchronous of this thread happen, by chance

// hopper.cpp
void reset_hopper();
bool complete_a_box();                               // false: none in flight
std::string hopper_end_of_block();
std::string describe_mbarrier(const Mbarrier& bar, u64 phase);

// wgmma.cpp
void reset_warpgroups();
void collective(const char* what, u64 a, u64 b, SimSite at);
void products_exit(const Thread& t);
void random_product(Async& a);
bool in_flight(const Thread& t, uintptr_t address, u32 bytes);
std::string warpgroups_end_of_block();

// report.cpp
[[noreturn]] void fault(const std::string& what);
[[noreturn]] void fault(const std::string& what, SimSite at);
std::string text(SimSite at);
std::string line_of(const void* pc);
std::string deadlock();
std::string thread_name(u32 linear);

// memory.cpp
// Offset of a shared pointer; a fault unless [p, p + bytes) lies in what the block has asked for.
u32 shared_offset(const void* p, size_t bytes, const char* what, SimSite at);
bool is_allocated(u32 offset, size_t bytes);
void reset_shared(bool new_launch);

// tensor.cpp: D += A B as tensor cores do it; A is [rows][k], B [columns][k], D [rows][columns]; k at most 16.
void tensor_product(f32* d, const f32* a, const f32* b, u32 rows, u32 columns, u32 k);

}  // namespace sim
