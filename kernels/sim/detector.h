// detector.h: which accesses are ordered before which, and whether an address may be touched at all. Checked launches only.
//
// Vector clocks. Who accesses memory has a number: the threads of the block; for each thread its copies by cp.async; for each
// warp its wgmma; and a ring of numbers for tensor-map copies. What is known of others is an immutable, shared `Clock`; what
// changes often (a thread's own time, how many of its copies it has waited for) stands beside it. Threads that meet in a
// barrier share one clock afterwards, so a barrier costs one copy, not one for each thread.
//
// A cell of four bytes remembers its last write and the reads since; bytes get cells of their own where they are touched apart.
// Blocks of a launch are unordered: on global memory, an access of another block is a race unless both are atomic.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "sim.h"

namespace sim {

class Detector;

// Times of all numbers, at most which have been seen. Immutable once shared.
struct Clock {
    uint32_t references;
    uint32_t time[1];                                // as many as there are numbers
};

// Who accesses, and what it knows.
struct Actor {
    uint32_t id = 0, time = 0;                       // marks its accesses
    uint32_t thread = 0;                             // on whose behalf
    Clock* base = nullptr;
    uint32_t own = 0, copies = 0, products = 0;      // of the thread: its time, its copies and its warp's products it waited for
};

// What those who released into it knew.
class Sync {
public:
    void clear() { base_ = nullptr; joined_ = nullptr; entries_.clear(); }
    // The joint knowledge, as a clock with one reference for the caller. Empties the Sync.
    Clock* take(Detector& d);

private:
    friend class Detector;
    struct Entry { uint32_t id, time; };
    Clock* base_ = nullptr;                          // while all had the same
    Clock* joined_ = nullptr;                        // once they had not
    std::vector<Entry> entries_;
};

enum class Access : uint8_t { Read, Write, Atomic, AsyncRead, AsyncWrite };

// One remembered access. `block` 0: none.
struct Mark { uint32_t block = 0, time = 0, id = 0, place = 0; };
struct Cell {
    Mark write, update, read;                        // the last of each; `update`: an atomic one
    uint32_t more = 0;                               // further reads: list number + 1
    uint32_t halves = 0;                             // cells of its halves: number of the first + 1
    uint32_t epoch = 0;                              // what it says counts in this epoch alone
    bool mbarrier = false;
};

// The cells of one piece of memory.
struct Shadow {
    uintptr_t address = 0;
    size_t bytes = 0;
    bool writable = true, shared = false;
    std::vector<Cell> cells;                         // one for four bytes, from the address rounded down to four
};

class Detector {
public:
    void begin_launch(uint32_t threads, const SimLaunch& launch, const void* args, size_t args_bytes);
    void begin_block();
    void shared_appeared();                          // the block's shared memory has an address only now

    // Order. `release` ends the thread's current time, so that what it does next is not covered.
    void release(uint32_t thread, Sync& into);
    // With `included` the thread has released into `clock` and done nothing since.
    void acquire(uint32_t thread, Clock* clock, bool included);
    void drop(Clock* clock);
    Clock* share(Clock* clock) { if (clock) ++clock->references; return clock; }
    // Of something asynchronous that is complete.
    void release(const Actor& actor, Sync& into);

    Actor actor(uint32_t thread) const;
    // Starts something asynchronous on behalf of a thread; it knows what the thread knows now. Give it back with `retire`.
    Actor start_copy(uint32_t thread, uint64_t number);
    Actor start_product(uint32_t thread, uint64_t number);
    Actor start_box(uint32_t thread);
    void retire(Actor& actor) { drop(actor.base); actor.base = nullptr; }
    void copies_done(uint32_t thread, uint64_t number);
    void products_done(uint32_t thread, uint64_t number);
    void fence_proxy(uint32_t thread);

    // Checks and remembers an access; does not return if it is at fault.
    void access(const void* p, size_t bytes, Access kind, const Actor& actor, SimSite at);
    void access(const void* p, size_t bytes, Access kind, const Actor& actor, const void* pc);
    // Marks eight bytes of shared memory as an mbarrier, or no longer.
    void set_mbarrier(uint32_t offset, bool is);
    // Whether what the actor knows covers time `time` of number `id`.
    bool covers(const Actor& actor, uint32_t id, uint32_t time) const;

private:
    friend class Sync;
    struct Known { Clock* base; uint32_t own, copies, products; };
    struct Fence { uint32_t own, copies; };
    // What cells refer to by number: one pool for global memory, emptied by launches, one for shared, emptied by blocks.
    struct Pool {
        std::deque<Cell> halves;                     // in pairs
        std::deque<std::vector<Mark>> more;
        std::vector<uint32_t> free_halves, free_more;
        uint32_t halves_used = 0, more_used = 0;
        void clear();
    };

    uint32_t copy_id(uint32_t thread) const { return first_copy_ + thread; }
    uint32_t product_id(uint32_t thread) const { return first_product_ + thread / 32; }
    bool is_async_proxy(uint32_t id) const { return id >= first_product_; }
    Clock* fresh();
    Clock* copy(const Clock* from);
    void join(Clock* into, const Clock* from) const;
    void release_known(Clock* base, uint32_t thread, const Known& k, Sync& into);

    void access(uintptr_t a, size_t bytes, Access kind, const Actor& actor, uint32_t place);
    Shadow& locate(uintptr_t a, size_t bytes, Access kind, uint32_t place, bool& skip);
    // The part [from, to) of the access on the cell of `size` bytes at `at`.
    void touch(Shadow& s, Cell& c, uintptr_t at, uint32_t size, uintptr_t from, uintptr_t to, Access kind, const Actor& actor, uint32_t place);
    void check(const Shadow& s, const Cell& c, uintptr_t at, Access kind, const Actor& actor, uint32_t place);
    void remember(Shadow& s, Cell& c, Access kind, const Actor& actor, uint32_t place);
    void remember_read(Pool& pool, Cell& c, const Mark& mark, const Actor& actor);
    void split(Pool& pool, Cell& c);
    void forget_reads(Pool& pool, Cell& c);
    Pool& pool_of(const Shadow& s) { return pools_[s.shared]; }
    bool unordered(const Shadow& s, const Mark& m, const Actor& actor) const;
    bool published(const Mark& write, const Actor& actor) const;
    uint32_t place_of(SimSite at);
    std::string text_of(uint32_t place) const;
    std::string name_of(const Mark& m) const;
    std::string where(const Shadow& s, uintptr_t a) const;
    [[noreturn]] void report(const std::string& what, uint32_t place);
    [[noreturn]] void outside(uintptr_t a, size_t bytes, Access kind, uint32_t place);

    uint32_t threads_ = 0, block_ = 0, launch_first_ = 0, numbers_ = 0;
    uint32_t first_box_ = 0, first_copy_ = 0, first_product_ = 0, next_box_ = 0;
    std::vector<Known> known_;
    std::vector<std::vector<Fence>> fences_;
    std::vector<uint32_t> box_time_;
    Clock* zero_ = nullptr;
    std::vector<std::unique_ptr<uint32_t[]>> clock_memory_;
    std::vector<Clock*> free_clocks_;
    Clock *last_a_ = nullptr, *last_b_ = nullptr, *last_joined_ = nullptr;    // the last join of two clocks

    Shadow shared_;
    std::vector<std::unique_ptr<Shadow>> global_;
    size_t global_used_ = 0;
    Shadow* last_ = nullptr;
    uintptr_t args_ = 0;
    size_t args_bytes_ = 0;
    Pool pools_[2];                                  // of global, of shared memory
    std::vector<SimSite> sites_;
};

}  // namespace sim
