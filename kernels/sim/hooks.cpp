// hooks.cpp: what the compiler calls at each memory access of a checked kernel (-fsanitize=thread), in place of the sanitizer's
// own runtime. The stack of a thread is its own: accesses there are not looked at, except for wgmma accumulators in flight.
#include "state.h"

using sim::Access;

static inline void access(const void* p, size_t bytes, bool write, const void* pc) {
    sim::Context* c = sim::context;
    if (!c || !c->detector || !c->current) return;
    const sim::Thread& t = *c->current;
    const auto a = reinterpret_cast<uintptr_t>(p);
    if (t.stack && a - reinterpret_cast<uintptr_t>(t.stack->low) < sim::STACK_BYTES) {
        if (t.async_used && sim::in_flight(t, a, u32(bytes)))
            sim::fault(sim::line_of(pc) + ": touches an accumulator of a wgmma that has not been waited for");
        return;
    }
    c->detector->access(p, bytes, write ? Access::Write : Access::Read, c->detector->actor(t.linear), pc);
}

// An access by a type that is aligned to its size. x86 takes it anywhere; a GPU does not.
static inline void aligned(const void* p, size_t bytes, bool write, const void* pc) {
    sim::Context* c = sim::context;
    if (reinterpret_cast<uintptr_t>(p) % bytes && c && c->detector && c->current)
        sim::fault(sim::line_of(pc) + ": address is no multiple of " + std::to_string(bytes) + ", the size of the access");
    access(p, bytes, write, pc);
}

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                  \
    void __tsan_read##n(void* p) { aligned(p, n, false, PC); }                    \
    void __tsan_write##n(void* p) { aligned(p, n, true, PC); }                    \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false, PC); }           \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true, PC); }           \
    void __tsan_volatile_read##n(void* p) { access(p, n, false, PC); }            \
    void __tsan_volatile_write##n(void* p) { access(p, n, true, PC); }            \
    void __tsan_unaligned_volatile_read##n(void* p) { access(p, n, false, PC); }  \
    void __tsan_unaligned_volatile_write##n(void* p) { access(p, n, true, PC); }  \
    void __tsan_read##n##_pc(void* p, void* pc) { access(p, n, false, pc); }      \
    void __tsan_write##n##_pc(void* p, void* pc) { access(p, n, true, pc); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true, PC); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    access(from, n, false, PC);
    access(to, n, true, PC);
    return __builtin_memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
    access(from, n, false, PC);
    access(to, n, true, PC);
    return __builtin_memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
    access(to, n, true, PC);
    return __builtin_memset(to, value, n);
}
}
