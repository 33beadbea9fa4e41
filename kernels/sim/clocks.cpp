// clocks.cpp: the order of things. See detector.h.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace sim {

// Tensor-map copies in flight at once that the detector tells apart.
static constexpr u32 BOXES = 64;

void Detector::begin_launch(u32 threads, const SimLaunch& launch, const void* args, size_t args_bytes) {
    const u32 warps = (threads + LANES - 1) / LANES;
    if (threads != threads_) {
        threads_ = threads;
        first_copy_ = threads;
        first_product_ = 2 * threads;                // from here on: the asynchronous proxy
        first_box_ = first_product_ + warps;
        numbers_ = first_box_ + BOXES;
        clock_memory_.clear();
        free_clocks_.clear();
        known_.assign(threads, Known{});
        fences_.assign(threads, {});
        box_time_.assign(BOXES, 0);
        zero_ = nullptr;
    }
    if (block_ > 0xF0000000u) { block_ = 0; global_.clear(); shared_.cells.clear(); }
    launch_first_ = block_ + 1;
    args_ = reinterpret_cast<uintptr_t>(args);
    args_bytes_ = args_bytes;
    sites_.clear();
    pools_[0].clear();
    global_used_ = size_t(launch.n_ranges);
    while (global_.size() < global_used_) global_.push_back(std::make_unique<Shadow>());
    for (size_t i = 0; i < global_used_; ++i) {
        Shadow& s = *global_[i];
        s.address = launch.ranges[i].address;
        s.bytes = launch.ranges[i].bytes;
        s.writable = launch.ranges[i].writable != 0;
        // Old cells stay: their epoch tells that they count no more.
        const size_t cells = s.writable ? (s.address % 4 + s.bytes + 3) / 4 : 0;
        if (s.cells.size() < cells) s.cells.resize(cells);
    }
    last_ = nullptr;
}

void Detector::begin_block() {
    ++block_;
    // All clocks of the last block are free again, whoever held them.
    free_clocks_.clear();
    for (auto& m : clock_memory_) free_clocks_.push_back(reinterpret_cast<Clock*>(m.get()));
    zero_ = fresh();
    std::memset(zero_->time, 0, numbers_ * sizeof(u32));
    zero_->references = 1 + threads_;
    for (Known& k : known_) k = {zero_, 1, 0, 0};
    for (auto& f : fences_) f.clear();
    std::fill(box_time_.begin(), box_time_.end(), 0);
    next_box_ = 0;
    last_a_ = last_b_ = last_joined_ = nullptr;
    pools_[1].clear();
    shared_appeared();
}

void Detector::shared_appeared() {
    shared_.shared = true;
    shared_.address = reinterpret_cast<uintptr_t>(ctx().shared);
    shared_.bytes = ctx().shared ? SHARED_MOST : 0;
    if (shared_.cells.size() < shared_.bytes / 4) shared_.cells.resize(shared_.bytes / 4);
}

Clock* Detector::fresh() {
    if (free_clocks_.empty()) {
        clock_memory_.push_back(std::make_unique<u32[]>(1 + numbers_));
        free_clocks_.push_back(reinterpret_cast<Clock*>(clock_memory_.back().get()));
    }
    Clock* c = free_clocks_.back();
    free_clocks_.pop_back();
    c->references = 1;
    return c;
}
Clock* Detector::copy(const Clock* from) {
    Clock* c = fresh();
    std::memcpy(c->time, from->time, numbers_ * sizeof(u32));
    return c;
}
void Detector::join(Clock* into, const Clock* from) const {
    for (u32 i = 0; i < numbers_; ++i) into->time[i] = std::max(into->time[i], from->time[i]);
}
void Detector::drop(Clock* clock) {
    if (clock && --clock->references == 0) free_clocks_.push_back(clock);
}

Actor Detector::actor(u32 thread) const {
    const Known& k = known_[thread];
    return {thread, k.own, thread, k.base, k.own, k.copies, k.products};
}

bool Detector::covers(const Actor& a, u32 id, u32 time) const {
    if (id == a.thread) return time <= a.own;
    u32 seen = a.base->time[id];
    if (id == copy_id(a.thread)) seen = std::max(seen, a.copies);
    if (id == product_id(a.thread)) seen = std::max(seen, a.products);
    return time <= seen;
}

void Detector::release_known(Clock* base, u32 thread, const Known& k, Sync& into) {
    const Sync::Entry entries[3] = {{thread, k.own}, {copy_id(thread), k.copies}, {product_id(thread), k.products}};
    if (!into.joined_ && (!into.base_ || into.base_ == base)) {
        if (!into.base_) into.base_ = share(base);
        for (const auto& e : entries)
            if (e.time) into.entries_.push_back(e);
        return;
    }
    if (!into.joined_) {
        into.joined_ = copy(into.base_);
        for (const auto& e : into.entries_) into.joined_->time[e.id] = std::max(into.joined_->time[e.id], e.time);
        into.entries_.clear();
    }
    // Those who come in a row often know the same.
    if (into.base_ != base) {
        join(into.joined_, base);
        drop(into.base_);
        into.base_ = share(base);
    }
    for (const auto& e : entries) into.joined_->time[e.id] = std::max(into.joined_->time[e.id], e.time);
}

void Detector::release(u32 thread, Sync& into) {
    Known& k = known_[thread];
    release_known(k.base, thread, k, into);
    ++k.own;
}

void Detector::release(const Actor& a, Sync& into) {
    release_known(a.base, a.thread, {a.base, a.own, a.copies, a.products}, into);
    if (into.joined_) into.joined_->time[a.id] = std::max(into.joined_->time[a.id], a.time);
    else into.entries_.push_back({a.id, a.time});
}

Clock* Sync::take(Detector& d) {
    Clock* c = joined_;
    if (!c) {
        c = base_ ? d.copy(base_) : d.copy(d.zero_);
        for (const Entry& e : entries_) c->time[e.id] = std::max(c->time[e.id], e.time);
    }
    d.drop(base_);
    clear();
    return c;
}

void Detector::acquire(u32 thread, Clock* clock, bool included) {
    Known& k = known_[thread];
    if (!clock || k.base == clock) return;
    Clock* next;
    if (included) {
        next = share(clock);
    } else if (last_a_ == k.base && last_b_ == clock) {
        next = share(last_joined_);
    } else {
        next = copy(k.base);
        join(next, clock);
        drop(last_a_); drop(last_b_); drop(last_joined_);
        last_a_ = share(k.base); last_b_ = share(clock); last_joined_ = share(next);
    }
    drop(k.base);
    k.base = next;
}

Actor Detector::start_copy(u32 thread, u64 number) {
    Actor a = actor(thread);
    share(a.base);
    a.id = copy_id(thread);
    a.time = u32(number);
    ++known_[thread].own;
    return a;
}
Actor Detector::start_product(u32 thread, u64 number) {
    Actor a = start_copy(thread, number);
    a.id = product_id(thread);
    return a;
}
Actor Detector::start_box(u32 thread) {
    const u32 slot = next_box_++ % BOXES;
    Actor a = start_copy(thread, ++box_time_[slot]);
    a.id = first_box_ + slot;
    return a;
}
void Detector::copies_done(u32 thread, u64 number) { known_[thread].copies = std::max(known_[thread].copies, u32(number)); }
void Detector::products_done(u32 thread, u64 number) { known_[thread].products = std::max(known_[thread].products, u32(number)); }

void Detector::fence_proxy(u32 thread) {
    Known& k = known_[thread];
    fences_[thread].push_back({k.own, k.copies});
    ++k.own;
}

// Whether an ordinary write was made known to the asynchronous proxy: its writer (for cp.async: who waited for it) ran
// fence.proxy.async after it, and the actor knows of that fence.
bool Detector::published(const Mark& w, const Actor& a) const {
    if (is_async_proxy(w.id)) return true;
    const bool copied = w.id >= first_copy_;
    const u32 writer = copied ? w.id - first_copy_ : w.id;
    for (const Fence& f : fences_[writer])
        if ((copied ? f.copies : f.own) >= w.time) return covers(a, writer, f.own + 1);
    return false;
}

}  // namespace sim
