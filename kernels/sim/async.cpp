// async.cpp: cp.async. A copy may happen at any moment from its issue to the wait for its group; until then the target holds
// nothing (poison, unless copies are to happen at once). It is an access of its own, ordered only by that wait.
#include <cstring>

#include "state.h"

namespace sim {

void Async::clear() {
    copies.clear();
    copy_groups.clear();
    accumulators.clear();
    products.clear();
    product_groups.clear();
    fenced = false;
    collective = register_requests = 0;
    copies_issued = products_issued = 0;
}

Async& async_state() {
    Thread& t = me();
    if (!t.async) t.async = std::make_unique<Async>();
    t.async_used = true;
    return *t.async;
}

static void perform(Copy& c) {
    if (c.done) return;
    if (Detector* d = detector()) {
        if (c.valid) d->access(c.from, c.valid, Access::Read, c.actor, c.site);
        d->access(c.to, c.bytes, Access::Write, c.actor, c.site);
        d->retire(c.actor);
    }
    std::memcpy(c.to, c.from, c.valid);
    std::memset(c.to + c.valid, 0, c.bytes - c.valid);
    c.done = true;
}

void cp_async(void* to, const void* from, u32 bytes, u32 valid, SimSite at) {
    shared_offset(to, bytes, "cp.async target", at);
    if (reinterpret_cast<uintptr_t>(to) % bytes) fault("cp.async: target is no multiple of " + std::to_string(bytes), at);
    if (reinterpret_cast<uintptr_t>(from) % bytes) fault("cp.async: source is no multiple of " + std::to_string(bytes), at);
    if (valid > bytes) fault("cp.async: " + std::to_string(valid) + " valid bytes of " + std::to_string(bytes), at);
    Async& a = async_state();
    Copy c{static_cast<u8*>(to), static_cast<const u8*>(from), bytes, valid, at, false, {}};
    ++a.copies_issued;
    if (Detector* d = detector()) c.actor = d->start_copy(me().linear, a.copies_issued);
    if (ctx().launch.async == SIM_EARLIEST) perform(c);
    else std::memset(to, POISON, bytes);
    a.copies.push_back(c);
}

void cp_async_commit(SimSite at) {
    Async& a = async_state();
    a.copy_groups.push_back(a.copies.size());
    progress(at);
}

void cp_async_wait(u32 pending, SimSite at) {
    Async& a = async_state();
    if (a.copy_groups.size() > pending) {
        const size_t groups = a.copy_groups.size() - pending, end = a.copy_groups[groups - 1];
        for (size_t i = 0; i < end; ++i) perform(a.copies[i]);
        if (Detector* d = detector()) d->copies_done(me().linear, a.copies_issued - a.copies.size() + end);
        a.copies.erase(a.copies.begin(), a.copies.begin() + std::ptrdiff_t(end));
        a.copy_groups.erase(a.copy_groups.begin(), a.copy_groups.begin() + std::ptrdiff_t(groups));
        for (size_t& g : a.copy_groups) g -= end;
    }
    progress(at);
}

void async_exit(Thread& t) {
    for (Copy& c : t.async->copies) perform(c);
}

void async_random() {
    Context& c = ctx();
    if (!c.current->async_used || (c.random.next() & 3)) return;
    Async& a = *c.current->async;
    if (!a.copies.empty()) perform(a.copies[c.random.below(u32(a.copies.size()))]);
    random_product(a);
}

}  // namespace sim
