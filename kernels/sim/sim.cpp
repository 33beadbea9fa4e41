// sim.cpp: minimal stand-in until the simulator lands: one thread after another, no barriers, no checks.
#include "sim/sim.h"
#include <cstdio>
#include <cstring>
namespace { thread_local uint32_t thread[3], block[3], threads[3], blocks[3]; }
namespace sim {
uint32_t thread_x() { return thread[0]; }
uint32_t thread_y() { return thread[1]; }
uint32_t thread_z() { return thread[2]; }
uint32_t block_x() { return block[0]; }
uint32_t block_y() { return block[1]; }
uint32_t block_z() { return block[2]; }
uint32_t block_dim(uint32_t axis) { return threads[axis]; }
uint32_t grid_dim(uint32_t axis) { return blocks[axis]; }
}
static const sim::Entry* find(const char* symbol, bool checked) {
    for (auto* t = checked ? sim_checked_tables : sim_tables; *t; ++t)
        for (auto* e = *t; e->name; ++e)
            if (!std::strcmp(e->name, symbol)) return e;
    return nullptr;
}
extern "C" size_t sim_args_size(const char* symbol) { auto* e = find(symbol, false); return e ? e->args : 0; }
extern "C" int sim_launch(const char* symbol, const void* args, size_t size, const SimLaunch* l, char* what, size_t room) {
    auto* e = find(symbol, l->checked);
    if (!e || e->args != size) { std::snprintf(what, room, "%s: no such kernel with %zu bytes of arguments", symbol, size); return SIM_CALLER_AT_FAULT; }
    std::memcpy(threads, l->block, sizeof threads);
    std::memcpy(blocks, l->grid, sizeof blocks);
    uint32_t *b = block, *t = thread;
    for (b[2] = 0; b[2] < l->grid[2]; ++b[2]) for (b[1] = 0; b[1] < l->grid[1]; ++b[1]) for (b[0] = 0; b[0] < l->grid[0]; ++b[0])
        for (t[2] = 0; t[2] < l->block[2]; ++t[2]) for (t[1] = 0; t[1] < l->block[1]; ++t[1]) for (t[0] = 0; t[0] < l->block[0]; ++t[0])
            e->run(args);
    return SIM_OK;
}
#define HOOK(n) extern "C" void __tsan_read##n(void*) {} extern "C" void __tsan_write##n(void*) {} \
    extern "C" void __tsan_unaligned_read##n(void*) {} extern "C" void __tsan_unaligned_write##n(void*) {}
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
