// hopper.cpp: mbarriers, copies by tensor map, the register pool.
//
// A phase of an mbarrier orders those who arrived in it, and the copies that completed in it, before those who waited for it; no
// other phase does. Each box completes alone, in any order. House rules: a waiter may not sleep through two phases; at the end of
// a block no bytes are outstanding and no copy is unobserved.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace sim {

constexpr u32 COUNT_MOST = (1u << 20) - 1;
constexpr u64 TOKEN = 0x7265697272616200;            // what an mbarrier's eight bytes hold here, with its number

void reset_hopper() {
    Context& c = ctx();
    if (!c.mbarriers.empty()) c.mbarriers.clear();
    if (!c.boxes.empty()) c.boxes.clear();
    reset_warpgroups();
}

// ---- mbarriers ----

static u32 find(const u64* bar, const char* what, SimSite at) {
    Context& c = ctx();
    const u32 offset = shared_offset(bar, 8, what, at);
    for (u32 i = 0; i < c.mbarriers.size(); ++i) {
        Mbarrier& m = c.mbarriers[i];
        if (!m.live || m.offset != offset) continue;
        if (*bar != TOKEN + i) fault(std::string(what) + ": the mbarrier was overwritten", at);
        if (!m.fenced && m.owner != me().linear)
            fault(std::string(what) + ": the mbarrier was initialised by " + thread_name(m.owner) + " without mbarrier_fence_init", at);
        if (Detector* d = detector()) d->access(bar, 8, Access::Atomic, d->actor(me().linear), at);
        return i;
    }
    fault(std::string(what) + ": no mbarrier was initialised here", at);
}

static void complete_if_due(Mbarrier& m) {
    if (m.pending || m.bytes) return;
    if (Detector* d = detector()) {
        d->drop(m.completed);
        m.completed = m.arrivals.take(*d);
        for (auto [thread, phase] : m.waiters) d->acquire(thread, m.completed, false);
    }
    m.waiters.clear();
    m.pending = m.count;
    ++m.phase;
}

void mbarrier_init(u64* bar, u32 count, SimSite at) {
    Context& c = ctx();
    const u32 offset = shared_offset(bar, 8, "mbarrier_init", at);
    if (offset % 8) fault("mbarrier_init: address is no multiple of 8", at);
    if (count < 1 || count > COUNT_MOST) fault("mbarrier_init: count " + std::to_string(count), at);
    for (const Mbarrier& m : c.mbarriers)
        if (m.live && m.offset == offset) fault("mbarrier_init: already initialised", at);
    if (Detector* d = detector()) {
        d->access(bar, 8, Access::Write, d->actor(me().linear), at);
        d->set_mbarrier(offset, true);
    }
    Mbarrier m;
    m.offset = offset;
    m.count = m.pending = count;
    m.owner = me().linear;
    m.live = true;
    *bar = TOKEN + c.mbarriers.size();
    c.mbarriers.push_back(m);
    progress(at);
}

void mbarrier_inval(u64* bar, SimSite at) {
    const u32 i = find(bar, "mbarrier_inval", at);
    ctx().mbarriers[i].live = false;
    if (Detector* d = detector()) d->set_mbarrier(ctx().mbarriers[i].offset, false);
}

void mbarrier_fence_init() {
    for (Mbarrier& m : ctx().mbarriers)
        if (m.owner == me().linear) m.fenced = true;
}

static void arrive(Mbarrier& m, const char* what, SimSite at) {
    if (m.pending == 0) fault(std::string(what) + ": more arrivals than the mbarrier expects (" + std::to_string(m.count) + ")", at);
    if (Detector* d = detector()) d->release(me().linear, m.arrivals);
    --m.pending;
    complete_if_due(m);
}

void mbarrier_arrive(u64* bar, SimSite at) {
    arrive(ctx().mbarriers[find(bar, "mbarrier_arrive", at)], "mbarrier_arrive", at);
    progress(at);
}

void mbarrier_expect(u64* bar, u32 bytes, bool arrives, SimSite at) {
    Mbarrier& m = ctx().mbarriers[find(bar, "mbarrier_expect", at)];
    m.bytes += bytes;
    if (m.bytes > COUNT_MOST) fault("mbarrier_expect: more than 2^20 - 1 bytes outstanding", at);
    if (arrives) arrive(m, "mbarrier_arrive_expect", at);
    progress(at);
}

void mbarrier_wait(u64* bar, u32 parity, SimSite at) {
    const u32 i = find(bar, "mbarrier_wait", at);
    Mbarrier& m = ctx().mbarriers[i];
    if (parity > 1) fault("mbarrier_wait: parity " + std::to_string(parity), at);
    if ((m.phase & 1) != parity) {
        // The phase before the current one: complete.
        if (Detector* d = detector()) d->acquire(me().linear, m.completed, false);
        m.observed = std::max(m.observed, m.phase);
    } else {
        const u64 phase = m.phase;
        m.waiters.push_back({me().linear, phase});
        wait_until(&m.phase, phase, Wait::Mbarrier, reinterpret_cast<const void*>(uintptr_t(i)), phase, at);
        if (m.phase > phase + 1)
            fault("mbarrier_wait: slept through a whole phase; on the GPU this thread would wait for ever", at);
        m.observed = std::max(m.observed, phase + 1);
    }
    progress(at);
}

std::string describe_mbarrier(const Mbarrier& m, u64 phase) {
    std::string s = "the mbarrier at +" + std::to_string(m.offset) + ", phase " + std::to_string(phase) + ": " +
                    std::to_string(m.count - m.pending) + " of " + std::to_string(m.count) + " arrivals";
    if (m.bytes) s += ", " + std::to_string(m.bytes) + " bytes outstanding";
    return s;
}

// ---- tensor maps ----

static u32 box_bytes(const TensorFields& t) { return t.tile[0] * t.tile[1] * t.element; }

static void perform(Box& b) {
    Context& c = ctx();
    const TensorFields& t = b.map;
    const u32 base = SHARED_BASE + u32(b.to - c.shared), row_bytes = t.tile[0] * t.element;
    Detector* d = c.detector;
    for (u32 r = 0; r < t.tile[1]; ++r) {
        const i64 y = i64(b.y) + r;
        const bool row_inside = y >= 0 && u64(y) < t.size[1];
        // The part of this row of the box that the matrix has.
        const i64 low = std::clamp<i64>(-i64(b.x), 0, t.tile[0]), high = std::clamp<i64>(i64(t.size[0]) - b.x, low, t.tile[0]);
        const u8* row = reinterpret_cast<const u8*>(t.address) + y * i64(t.pitch);
        if (d && row_inside && high > low)
            d->access(row + (b.x + low) * t.element, size_t(high - low) * t.element, Access::AsyncRead, b.actor, b.site);
        for (u32 at = 0; at < row_bytes; at += 16) {
            u8* to = c.shared + ptx::swizzled(base + r * row_bytes + at, t.swizzle) - SHARED_BASE;
            const u32 bytes = std::min(16u, row_bytes - at);
            if (d) d->access(to, bytes, Access::AsyncWrite, b.actor, b.site);
            for (u32 e = 0; e < bytes; e += t.element) {
                const i64 x = (at + e) / t.element;
                if (row_inside && x >= low && x < high) std::memcpy(to + e, row + (b.x + x) * t.element, t.element);
                else std::memset(to + e, 0, t.element);
            }
        }
    }
    Mbarrier& m = c.mbarriers[b.mbarrier];
    if (!m.live) fault("tensor-map copy completes on an mbarrier that is invalid by now", b.site);
    if (d) {
        d->access(c.shared + m.offset, 8, Access::Atomic, b.actor, b.site);
        d->release(b.actor, m.arrivals);
        d->retire(b.actor);
    }
    m.bytes -= box_bytes(t);
    if (m.pending == 0 && m.bytes < 0) fault("tensor-map copy: more bytes than the mbarrier expects in this phase", b.site);
    m.copied = m.phase + 1;
    complete_if_due(m);
}

bool complete_a_box() {
    Context& c = ctx();
    if (c.boxes.empty()) return false;
    const u32 i = c.random.below(u32(c.boxes.size()));
    Box b = c.boxes[i];
    c.boxes.erase(c.boxes.begin() + i);
    perform(b);
    return true;
}

void tma_load_2d(void* to, const void* map, u64* bar, i32 x, i32 y, SimSite at) {
    Context& c = ctx();
    Box b{static_cast<u8*>(to), {}, 0, x, y, at, {}};
    std::memcpy(&b.map, map, sizeof b.map);
    if (reinterpret_cast<uintptr_t>(map) % 64 || b.map.magic != TENSOR_MAGIC) fault("tma_load_2d: no tensor map", at);
    const u32 offset = shared_offset(to, box_bytes(b.map), "tma_load_2d target", at);
    const u32 align = b.map.swizzle ? 8 * b.map.swizzle : 128;
    if (offset % align) fault("tma_load_2d: target is no multiple of " + std::to_string(align), at);
    b.mbarrier = find(bar, "tma_load_2d", at);
    if (!c.mbarriers[b.mbarrier].fenced) fault("tma_load_2d: no mbarrier_fence_init since the mbarrier was initialised", at);
    if (c.detector) b.actor = c.detector->start_box(me().linear);
    if (c.launch.async == SIM_EARLIEST) {
        perform(b);
    } else {
        std::memset(to, POISON, box_bytes(b.map));
        c.boxes.push_back(b);
    }
    progress(at);
}

void fence_proxy_async() {
    if (Detector* d = detector()) d->fence_proxy(me().linear);
}

std::string hopper_end_of_block() {
    const Context& c = ctx();
    const auto at_end = [&](const std::string& what) { return std::string(c.kernel->name) + ": at the end of block (" +
        std::to_string(c.block.x) + "," + std::to_string(c.block.y) + "," + std::to_string(c.block.z) + "): " + what; };
    if (!c.boxes.empty()) return at_end("a tensor-map copy is in flight, issued at " + text(c.boxes.front().site));
    for (const Mbarrier& m : c.mbarriers) {
        if (!m.live) continue;
        if (m.bytes) return at_end(describe_mbarrier(m, m.phase));
        if (m.copied > m.observed) return at_end("nobody has waited for the copy in phase " + std::to_string(m.copied - 1) + " of the mbarrier at +" + std::to_string(m.offset));
    }
    const std::string s = warpgroups_end_of_block();
    return s.empty() ? s : at_end(s);
}

}  // namespace sim

int sim_tensor_map(const SimTensorMap* m, void* map, char* what, size_t room) {
    const auto refuse = [&](const char* why) { std::snprintf(what, room, "tensor map: %s", why); return int(SIM_CALLER_AT_FAULT); };
    const u64 inner = u64(m->tile[0]) * m->element;
    if (reinterpret_cast<uintptr_t>(map) % 64) return refuse("its own address is no multiple of 64");
    if (m->address % 16) return refuse("the matrix's address is no multiple of 16");
    if (m->element != 1 && m->element != 2 && m->element != 4 && m->element != 8) return refuse("elements have 1, 2, 4 or 8 bytes");
    for (int i : {0, 1}) {
        if (m->size[i] < 1 || m->size[i] > u64(1) << 32) return refuse("sizes go from 1 to 2^32");
        if (m->tile[i] < 1 || m->tile[i] > 256) return refuse("the box goes from 1 to 256");
    }
    if (m->pitch % 16 || m->pitch >= u64(1) << 40) return refuse("the pitch is a multiple of 16 below 2^40");
    if (m->pitch < m->size[0] * m->element) return refuse("the pitch is shorter than a row");
    if (m->swizzle != 0 && m->swizzle != 32 && m->swizzle != 64 && m->swizzle != 128) return refuse("the swizzle is 0, 32, 64 or 128");
    if (inner % 16) return refuse("a row of the box is no multiple of 16 bytes");
    if (m->swizzle && inner > m->swizzle) return refuse("a row of the box is longer than the swizzle");
    sim::TensorFields t{};
    t.magic = sim::TENSOR_MAGIC;
    t.address = m->address;
    t.pitch = m->pitch;
    t.element = m->element;
    t.swizzle = m->swizzle;
    for (int i : {0, 1}) { t.size[i] = m->size[i]; t.tile[i] = m->tile[i]; }
    std::memcpy(map, &t, sizeof t);
    return SIM_OK;
}
