// shadow.cpp: what is remembered of each byte, and the faults found by it. See detector.h.
#include <algorithm>
#if defined(__linux__)
  #include <link.h>
#endif

#include "state.h"

namespace sim {

// Instructions are remembered by their distance from here.
static const char anchor = 0;
static uintptr_t origin() { return reinterpret_cast<uintptr_t>(&anchor) - (uintptr_t(1) << 30); }
constexpr u32 IS_SITE = 0x80000000u;

u32 Detector::place_of(SimSite at) {
    for (size_t i = sites_.size(); i > 0; --i)
        if (sites_[i - 1].line == at.line && sites_[i - 1].file == at.file) return IS_SITE | u32(i - 1);
    sites_.push_back(at);
    return IS_SITE | u32(sites_.size() - 1);
}
std::string Detector::text_of(u32 place) const {
    return place & IS_SITE ? text(sites_[place & ~IS_SITE]) : line_of(reinterpret_cast<const void*>(origin() + place));
}
std::string Detector::name_of(const Mark& m) const {
    std::string s;
    if (m.id < first_copy_) s = thread_name(m.id);
    else if (m.id < first_product_) s = "cp.async of " + thread_name(m.id - first_copy_);
    else if (m.id < first_box_) s = "wgmma of warp " + std::to_string(m.id - first_product_);
    else s = "a tensor-map copy";
    return m.block == block_ ? s : s + " of another block";
}
std::string Detector::where(const Shadow& s, uintptr_t a) const {
    const std::string offset = "+" + std::to_string(a - s.address);
    if (s.shared) return "shared memory " + offset;
    for (size_t i = 0; i < global_used_; ++i)
        if (global_[i].get() == &s) return "buffer " + std::to_string(i) + " " + offset;
    return "global memory";
}
void Detector::report(const std::string& what, u32 place) { fault(text_of(place) + ": " + what); }

static const char* verb(Access kind) {
    switch (kind) {
        case Access::Read: return "reads";
        case Access::Write: return "writes";
        case Access::Atomic: return "updates";
        case Access::AsyncRead: return "asynchronously reads";
        case Access::AsyncWrite: return "asynchronously writes";
    }
    return "";
}
static bool writes(Access kind) { return kind == Access::Write || kind == Access::AsyncWrite || kind == Access::Atomic; }

#if defined(__linux__)
// Tables that the compiler put into the program itself may be read.
static bool is_constant(uintptr_t a) {
    return dl_iterate_phdr([](dl_phdr_info* image, size_t, void* data) {
        const uintptr_t at = *static_cast<const uintptr_t*>(data);
        for (int i = 0; i < image->dlpi_phnum; ++i) {
            const auto& segment = image->dlpi_phdr[i];
            const uintptr_t low = image->dlpi_addr + segment.p_vaddr;
            if (segment.p_type == PT_LOAD && !(segment.p_flags & PF_W) && at >= low && at < low + segment.p_memsz) return 1;
        }
        return 0;
    }, &a) != 0;
}
#else
static bool is_constant(uintptr_t) { return false; }
#endif

void Detector::outside(uintptr_t a, size_t bytes, Access kind, u32 place) {
    std::string s = std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes outside all buffers of the launch";
    // Most often just behind or before one.
    size_t nearest = global_used_, least = ~size_t(0);
    for (size_t i = 0; i < global_used_; ++i) {
        const Shadow& g = *global_[i];
        const size_t distance = a >= g.address + g.bytes ? a - (g.address + g.bytes) : a < g.address ? g.address - a : 0;
        if (distance < least) { least = distance; nearest = i; }
    }
    if (nearest < global_used_ && least < (1u << 20)) {
        const Shadow& g = *global_[nearest];
        s += ": " + std::to_string(least) + (a >= g.address ? " past the end of" : " before") + " buffer " + std::to_string(nearest) +
             " (" + std::to_string(g.bytes) + " bytes)";
        if (a >= g.address && a < g.address + g.bytes) s += ", over its end";
    }
    report(s, place);
}

Shadow& Detector::locate(uintptr_t a, size_t bytes, Access kind, u32 place, bool& skip) {
    if (a - args_ < args_bytes_ && bytes <= args_bytes_ - (a - args_) && !writes(kind)) {
        skip = true;
        return shared_;
    }
    if (a - shared_.address < shared_.bytes) {
        if (!is_allocated(u32(a - shared_.address), bytes))
            report(std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes of shared memory at +" +
                   std::to_string(a - shared_.address) + ", outside what the block asked for", place);
        return shared_;
    }
    const auto holds = [&](const Shadow& s) { return a >= s.address && a - s.address < s.bytes && bytes <= s.bytes - (a - s.address); };
    Shadow* found = last_ && holds(*last_) && (last_->writable || !writes(kind)) ? last_ : nullptr;
    for (size_t i = 0; i < global_used_ && !found; ++i)
        if (global_[i]->writable && holds(*global_[i])) found = global_[i].get();
    for (size_t i = 0; i < global_used_ && !found; ++i)
        if (holds(*global_[i])) found = global_[i].get();
    if (!found) {
        if (writes(kind) || !is_constant(a)) outside(a, bytes, kind, place);
        skip = true;
        return shared_;
    }
    if (!found->writable && writes(kind)) report(std::string(verb(kind)) + " " + where(*found, a) + ", which the launch only reads", place);
    // What nobody may write cannot race.
    skip = !found->writable;
    last_ = found;
    return *found;
}

void Detector::access(uintptr_t a, size_t bytes, Access kind, const Actor& actor, u32 place) {
    bool skip = false;
    Shadow& s = locate(a, bytes, kind, place, skip);
    if (skip || bytes == 0) return;
    const uintptr_t first = s.address & ~uintptr_t(3), end = a + bytes;
    for (uintptr_t at = a & ~uintptr_t(3); at < end; at += 4)
        touch(s, s.cells[(at - first) / 4], at, 4, std::max(at, a), std::min(at + 4, end), kind, actor, place);
}
void Detector::access(const void* p, size_t bytes, Access kind, const Actor& actor, SimSite at) {
    access(reinterpret_cast<uintptr_t>(p), bytes, kind, actor, place_of(at));
}
void Detector::access(const void* p, size_t bytes, Access kind, const Actor& actor, const void* pc) {
    access(reinterpret_cast<uintptr_t>(p), bytes, kind, actor, u32(reinterpret_cast<uintptr_t>(pc) - origin()) & ~IS_SITE);
}

void Detector::touch(Shadow& s, Cell& c, uintptr_t at, u32 size, uintptr_t from, uintptr_t to, Access kind, const Actor& actor, u32 place) {
    const u32 epoch = s.shared ? block_ : launch_first_;
    if (c.epoch != epoch) {
        c = Cell{};
        c.epoch = epoch;
    }
    const bool whole = from == at && to == at + size;
    if (whole && !c.halves) {
        check(s, c, at, kind, actor, place);
        remember(s, c, kind, actor, place);
        return;
    }
    Pool& pool = pool_of(s);
    if (!c.halves) split(pool, c);
    const u32 half = c.halves - 1;
    const uintptr_t middle = at + size / 2;
    if (from < middle) touch(s, pool.halves[half], at, size / 2, from, std::min(to, middle), kind, actor, place);
    if (to > middle) touch(s, pool.halves[half + 1], middle, size / 2, std::max(from, middle), to, kind, actor, place);
    if (whole && writes(kind)) {
        // One write for both halves: one cell again.
        for (u32 h : {half, half + 1})
            if (pool.halves[h].halves) return;
        for (u32 h : {half, half + 1}) forget_reads(pool, pool.halves[h]);
        pool.free_halves.push_back(half);
        c.halves = 0;
        remember(s, c, kind, actor, place);
    }
}

bool Detector::unordered(const Shadow& s, const Mark& m, const Actor& actor) const {
    if (m.block != block_) return !s.shared;
    if (m.id == actor.id && m.time == actor.time) return false;
    return !covers(actor, m.id, m.time);
}

void Detector::check(const Shadow& s, const Cell& c, uintptr_t at, Access kind, const Actor& actor, u32 place) {
    if (c.mbarrier && kind != Access::Atomic) report(std::string(verb(kind)) + " " + where(s, at) + ", where an mbarrier lives", place);
    const auto race = [&](const char* other, const Mark& m) {
        const Mark mine{block_, actor.time, actor.id, place};
        report("race: " + name_of(mine) + " " + verb(kind) + " " + where(s, at) + ", not ordered after the " + other + " by " + name_of(m) +
               " at " + text_of(m.place), place);
    };
    if (s.shared && !c.write.block && !c.update.block && kind != Access::Write && kind != Access::AsyncWrite)
        report(std::string(verb(kind)) + " " + where(s, at) + ", which nothing in this block has written", place);
    if (c.write.block && unordered(s, c.write, actor)) race("write", c.write);
    if (c.update.block && kind != Access::Atomic && unordered(s, c.update, actor)) race("update", c.update);
    if (kind == Access::AsyncRead || kind == Access::AsyncWrite)
        for (const Mark* w : {&c.write, &c.update})
            if (w->block && !published(*w, actor))
                report(std::string(verb(kind)) + " " + where(s, at) + ", written by " + name_of(*w) + " at " + text_of(w->place) +
                       " without fence_proxy_async behind it", place);
    if (!writes(kind)) return;
    if (c.more) {
        for (const Mark& m : pools_[s.shared].more[c.more - 1])
            if (unordered(s, m, actor)) race("read", m);
    } else if (c.read.block && unordered(s, c.read, actor)) {
        race("read", c.read);
    }
}

void Detector::remember(Shadow& s, Cell& c, Access kind, const Actor& actor, u32 place) {
    const Mark mark{block_, actor.time, actor.id, place};
    if (!writes(kind)) {
        remember_read(pool_of(s), c, mark, actor);
        return;
    }
    // An update leaves the write before it in place: who updates next must be ordered after that write too.
    if (kind == Access::Atomic) {
        c.update = mark;
    } else {
        c.write = mark;
        c.update = Mark{};
    }
    forget_reads(pool_of(s), c);
}

void Detector::remember_read(Pool& pool, Cell& c, const Mark& mark, const Actor& actor) {
    // A read that this one is ordered after need not be kept: what is ordered after this one is ordered after that one too.
    const auto replaces = [&](const Mark& m) {
        return m.block == mark.block && (m.id == mark.id ? m.time <= mark.time : covers(actor, m.id, m.time));
    };
    if (!c.more) {
        if (!c.read.block || replaces(c.read)) {
            c.read = mark;
            return;
        }
        if (pool.free_more.empty()) {
            if (pool.more_used == pool.more.size()) pool.more.emplace_back();
            c.more = ++pool.more_used;
        } else {
            c.more = pool.free_more.back() + 1;
            pool.free_more.pop_back();
        }
        pool.more[c.more - 1] = {c.read, mark};
        return;
    }
    auto& list = pool.more[c.more - 1];
    if (list.back().id == mark.id && list.back().block == mark.block) {
        list.back() = mark;
        return;
    }
    if (replaces(list.front())) {
        // The oldest is settled: a barrier was passed, and most are.
        list.erase(std::remove_if(list.begin(), list.end(), replaces), list.end());
    } else if (list.size() >= threads_) {
        // So long only if some have read more than once.
        for (Mark& m : list)
            if (m.id == mark.id && m.block == mark.block) {
                m = mark;
                return;
            }
    }
    list.push_back(mark);
}

void Detector::forget_reads(Pool& pool, Cell& c) {
    c.read = Mark{};
    if (c.more) pool.free_more.push_back(c.more - 1);
    c.more = 0;
}

void Detector::split(Pool& pool, Cell& c) {
    u32 first;
    if (pool.free_halves.empty()) {
        while (pool.halves.size() < pool.halves_used + 2) pool.halves.emplace_back();
        first = pool.halves_used;
        pool.halves_used += 2;
    } else {
        first = pool.free_halves.back();
        pool.free_halves.pop_back();
    }
    for (u32 h : {first, first + 1}) {
        Cell& half = pool.halves[h];
        half = c;
        half.halves = 0;
        half.more = 0;
        if (!c.more) continue;
        if (pool.more_used == pool.more.size()) pool.more.emplace_back();
        half.more = ++pool.more_used;
        pool.more[half.more - 1] = pool.more[c.more - 1];
    }
    forget_reads(pool, c);
    c.halves = first + 1;
}

void Detector::Pool::clear() {
    free_halves.clear();
    free_more.clear();
    halves_used = more_used = 0;
}

void Detector::set_mbarrier(u32 offset, bool is) {
    for (u32 i : {offset / 4, offset / 4 + 1}) {
        shared_.cells[i].mbarrier = is;
    }
}

}  // namespace sim
