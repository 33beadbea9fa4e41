// memory.cpp: the shared memory of a block. Dynamic memory lies at the start, then what SHARED asked for, with gaps between, so
// that a step over an end is seen. Poisoned for each block.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace sim {

void reset_shared(bool new_launch) {
    Context& c = ctx();
    if (new_launch) {
        c.statics.clear();
        c.shared_used = c.launch.shared;
        if (c.shared_used && c.shared_memory.empty()) {
            c.shared_memory.resize(SHARED_MOST + 1024);
            c.shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(c.shared_memory.data()) + 1023) & ~uintptr_t(1023));
        }
        return;
    }
    if (c.shared_used) std::memset(c.shared, POISON, c.shared_used);
}

void* shared_static(const void* key, size_t bytes, size_t align) {
    Context& c = ctx();
    for (const StaticShared& s : c.statics)
        if (s.key == key) return c.shared + s.offset;
    if (c.shared_memory.empty()) {
        c.shared_memory.resize(SHARED_MOST + 1024);
        c.shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(c.shared_memory.data()) + 1023) & ~uintptr_t(1023));
        if (c.detector) c.detector->shared_appeared();
    }
    const size_t offset = ((c.shared_used ? c.shared_used + 16 : 0) + align - 1) / align * align;
    // Gaps are the simulator's: the limit counts what the kernel asked for.
    if (offset + bytes > SHARED_MOST) fault("asks for more than " + std::to_string(SHARED_MOST) + " bytes of shared memory");
    std::memset(c.shared + offset, POISON, bytes);
    c.statics.push_back({key, u32(offset), u32(bytes)});
    c.shared_used = u32(offset + bytes);
    return c.shared + offset;
}

void* shared_dynamic() { return ctx().shared; }

bool is_allocated(u32 offset, size_t bytes) {
    const Context& c = ctx();
    if (offset + bytes <= c.launch.shared) return true;
    for (const StaticShared& s : c.statics)
        if (offset >= s.offset && offset + bytes <= s.offset + s.bytes) return true;
    return false;
}

u32 shared_offset(const void* p, size_t bytes, const char* what, SimSite at) {
    const Context& c = ctx();
    const auto a = reinterpret_cast<uintptr_t>(p), base = reinterpret_cast<uintptr_t>(c.shared);
    if (c.shared_memory.empty() || a < base || a - base >= SHARED_MOST || !is_allocated(u32(a - base), bytes))
        fault(std::string(what) + ": not in the shared memory that the block asked for", at);
    return u32(a - base);
}

u32 shared_address(const void* p, SimSite at) { return SHARED_BASE + shared_offset(p, 0, "shared_address", at); }

}  // namespace sim
