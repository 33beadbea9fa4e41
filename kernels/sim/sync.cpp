// sync.cpp: barriers of the block, and exchanges between the lanes of a warp.
//
// House rules, stricter than the hardware: all threads of a block reach a __syncthreads at one line and none has exited; all
// lanes that a mask names meet at one line. A barrier orders memory among those that took part in that very generation; a
// shuffle or a vote orders nothing.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace sim {

static bool same(SimSite a, SimSite b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

void reset_sync() {
    Context& c = ctx();
    for (u32 used = c.barriers_used; used; used &= used - 1) {
        Barrier& b = c.barriers[__builtin_ctz(used)];
        b.arrived = 0;
        b.participants.clear();
        b.sites.clear();
        b.waiters.clear();
        b.sync.clear();
    }
    c.barriers_used = 0;
    for (Warp& w : c.warps) {
        w.exited = 0;
        w.used = 0;
    }
}

// ---- barriers ----

static void arrive(Barrier& b, bool waits, SimSite at) {
    Context& c = ctx();
    Thread& t = me();
    c.barriers_used |= 1u << b.id;
    b.site = at;
    b.participants.push_back(t.linear);
    b.sites.push_back(at);
    if (waits) b.waiters.push_back(t.linear);
    if (Detector* d = detector()) d->release(t.linear, b.sync);
    if (++b.arrived == b.count) {
        if (Detector* d = detector()) {
            Clock* joined = b.sync.take(*d);
            for (u32 w : b.waiters) d->acquire(w, joined, true);
            d->drop(joined);
        }
        b.arrived = 0;
        b.participants.clear();
        b.sites.clear();
        b.waiters.clear();
        ++b.generation;
    } else if (waits) {
        wait_until(&b.generation, b.generation, Wait::Barrier, &b, 0, at);
    }
    progress(at);
}

void barrier_all(SimSite at) {
    Context& c = ctx();
    Barrier& b = c.barriers[0];
    if (c.exited_any)
        for (const Thread& t : c.threads)
            if (t.state == State::Done) fault("divergent __syncthreads: " + thread_name(t.linear) + " has exited and will never arrive", at);
    if (b.arrived && !same(b.site, at))
        fault("divergent __syncthreads: " + thread_name(b.participants.front()) + " waits at " + text(b.site), at);
    b.count = c.n;
    arrive(b, true, at);
}

// Whether of each warp but `except` all lanes have arrived.
static bool whole_warps(const Barrier& b, u32 except) {
    const Context& c = ctx();
    std::vector<u32> arrived(c.warps.size());
    for (u32 p : b.participants) ++arrived[p / LANES];
    for (u32 w = 0; w < arrived.size(); ++w)
        if (w != except && arrived[w] && arrived[w] != u32(__builtin_popcount(c.warps[w].lanes))) return false;
    return true;
}

void barrier_named(u32 id, u32 threads, bool wait, SimSite at) {
    Context& c = ctx();
    Thread& t = me();
    if (id < 1 || id > 15) fault("named barrier " + std::to_string(id) + ": numbers go from 1 to 15", at);
    if (threads == 0 || threads % LANES) fault("named barrier: " + std::to_string(threads) + " threads are no multiple of 32", at);
    Barrier& b = c.barriers[id];
    b.id = id;
    if (b.arrived && b.count != threads)
        fault("named barrier " + std::to_string(id) + " for " + std::to_string(threads) + " threads, but " + text(b.site) + " said " +
              std::to_string(b.count), at);
    const u32 warp = t.linear / LANES;
    u32 of_warp = 1;
    for (size_t i = 0; i < b.participants.size(); ++i) {
        if (b.participants[i] == t.linear) fault("named barrier " + std::to_string(id) + ": arrives twice in one generation", at);
        if (b.participants[i] / LANES != warp) continue;
        ++of_warp;
        if (!same(b.sites[i], at))
            fault("diverged warp: named barrier " + std::to_string(id) + " here, but " + thread_name(b.participants[i]) + " arrived at " + text(b.sites[i]), at);
    }
    // The hardware counts warps: as many threads of different warps would pass here and hang there.
    if (b.arrived + 1 == threads && (of_warp < u32(__builtin_popcount(c.warps[warp].lanes)) || !whole_warps(b, warp)))
        fault("named barrier " + std::to_string(id) + ": filled by parts of warps", at);
    b.count = threads;
    arrive(b, wait, at);
}

void thread_exits(Thread& t) {
    Context& c = ctx();
    Warp& w = c.warps[t.linear / LANES];
    const u32 bit = 1u << t.linear % LANES;
    w.exited |= bit;
    c.exited_any = 1;
    for (size_t i = 0; i < w.used; ++i) {
        const Meeting& m = *w.meetings[i];
        if (m.arrived && (m.mask & bit))
            fault(std::string("exits while other lanes of its warp wait for it: ") + m.what + " at " + text(m.site));
    }
    const Barrier& b = c.barriers[0];
    if (b.arrived)
        fault("divergent __syncthreads: exits while " + thread_name(b.participants.front()) + " waits at " + text(b.site));
    if (t.async_used) {
        async_exit(t);
        products_exit(t);
    }
}

// ---- meetings of lanes ----

Meeting& meet(u32 mask, const char* what, SimSite at, u32& side) {
    Warp& w = warp();
    const u32 bit = 1u << lane();
    mask &= w.lanes;
    if (!(mask & bit)) fault(std::string(what) + ": the calling lane is not named in its own mask", at);
    if (mask & w.exited) {
        const u32 gone = u32(__builtin_ctz(mask & w.exited));
        fault(std::string(what) + ": lane " + std::to_string(gone) + " is named in the mask but has exited", at);
    }
    Meeting* m = nullptr;
    for (size_t i = 0; i < w.used && !m; ++i)
        if (w.meetings[i]->mask == mask) m = w.meetings[i].get();
    if (!m) {
        if (w.used == w.meetings.size()) w.meetings.push_back(std::make_unique<Meeting>());
        m = w.meetings[w.used++].get();
        m->mask = mask;
        m->arrived = 0;
        m->sync.clear();
    }
    if (m->arrived && (!same(m->site, at) || std::strcmp(m->what, what)))
        fault(std::string("diverged warp: ") + what + " here, but other lanes of the mask wait at " + text(m->site) + " (" + m->what + ")", at);
    m->site = at;
    m->what = what;
    m->arrived |= bit;
    side = m->generation & 1;
    return *m;
}

bool last_to_come(Meeting& m) { return m.arrived == m.mask; }

void disperse(Meeting& m) {
    m.arrived = 0;
    ++m.generation;
}

void await(Meeting& m, u32, SimSite at) { wait_until(&m.generation, m.generation, Wait::Lanes, &m, 0, at); }

void warp_sync(u32 mask, SimSite at) {
    u32 side;
    Meeting& m = meet(mask, "__syncwarp", at, side);
    Detector* d = detector();
    if (d) d->release(me().linear, m.sync);
    if (last_to_come(m)) {
        if (d) {
            Clock* joined = m.sync.take(*d);
            const u32 first = me().linear / LANES * LANES;
            for (u32 rest = m.mask; rest; rest &= rest - 1) d->acquire(first + u32(__builtin_ctz(rest)), joined, true);
            d->drop(joined);
        }
        disperse(m);
    } else {
        await(m, side, at);
    }
    progress(at);
}

// Hands in a value; the slots of all lanes when everyone has.
static const Meeting::Slot* exchange(u32 mask, u64 value, const char* what, SimSite at, u32& named) {
    u32 side;
    Meeting& m = meet(mask, what, at, side);
    std::memcpy(m.slot[side][lane()].bytes, &value, 8);
    named = m.mask;
    if (last_to_come(m)) disperse(m);
    else await(m, side, at);
    return m.slot[side];
}
static u64 value_of(const Meeting::Slot& slot) {
    u64 v;
    std::memcpy(&v, slot.bytes, 8);
    return v;
}

u64 shuffle(Shuffle how, u32 mask, u64 value, u32 operand, u32 width, SimSite at) {
    if (width == 0 || width > LANES || (width & (width - 1))) fault("shuffle: width " + std::to_string(width) + " is no power of two up to 32", at);
    u32 named;
    const Meeting::Slot* slots = exchange(mask, value, "shuffle", at, named);
    const u32 mine = lane(), first = mine & ~(width - 1), last = first + width - 1;
    u32 from = mine;
    switch (how) {
        case Shuffle::Index: from = first + (operand & (width - 1)); break;
        case Shuffle::Up: from = mine >= first + operand ? mine - operand : mine; break;
        case Shuffle::Down: from = operand <= last - mine ? mine + operand : mine; break;
        case Shuffle::Xor: from = (mine ^ operand) <= last ? mine ^ operand : mine; break;
    }
    // The register of a lane that does not take part: anything.
    const u64 got = named >> from & 1 ? value_of(slots[from]) : 0x0101010101010101u * POISON;
    progress(at);
    return got;
}

u32 ballot(u32 mask, bool vote, SimSite at) {
    u32 named, result = 0;
    const Meeting::Slot* slots = exchange(mask, vote, "vote", at, named);
    for (u32 i = 0; i < LANES; ++i)
        if (named >> i & 1) result |= u32(value_of(slots[i]) & 1) << i;
    progress(at);
    return result;
}

// ---- atomics ----

u64 atomic(Atomic op, void* p, u32 bytes, u64 value, u64 expected, SimSite at) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fault("atomic: address is no multiple of " + std::to_string(bytes), at);
    if (Detector* d = detector()) d->access(p, bytes, Access::Atomic, d->actor(me().linear), at);
    u64 old = 0;
    std::memcpy(&old, p, bytes);
    u64 to = value;
    const auto sign = [&](u64 v) { return bytes == 4 ? i64(i32(u32(v))) : i64(v); };
    switch (op) {
        case Atomic::Add: to = old + value; break;
        case Atomic::Max: to = std::max(old, bytes == 4 ? u64(u32(value)) : value); break;
        case Atomic::Min: to = std::min(old, bytes == 4 ? u64(u32(value)) : value); break;
        case Atomic::MaxSigned: to = u64(std::max(sign(old), sign(value))); break;
        case Atomic::MinSigned: to = u64(std::min(sign(old), sign(value))); break;
        case Atomic::Exchange: break;
        case Atomic::CompareSwap: to = old == expected ? value : old; break;
    }
    std::memcpy(p, &to, bytes);
    progress(at);
    return old;
}

}  // namespace sim
