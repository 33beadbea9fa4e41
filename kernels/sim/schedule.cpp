// schedule.cpp: whose turn it is. A thread that has not waited yet needs no stack of its own: threads run one after the other
// on one stack, and only a thread that is suspended keeps the stack it is on. So a kernel that never waits costs a call a thread.
#include <algorithm>

#include "state.h"

namespace sim {

thread_local Context* context = nullptr;

Context::Context() = default;
Context::~Context() = default;

static bool can_run(const Thread& t) {
    return t.state == State::Unstarted || (t.state == State::Suspended && (!t.gate || *t.gate != t.seen));
}

// Forward, reverse, random: everyone in turn, from where the last one stopped.
static Thread* pick_in_turn(Context& c) {
    // Twice the number, because a new round of the random order may bring the one sought further back.
    for (size_t looked = 0; looked < 2 * c.order.size() + 1; ++looked) {
        if (c.cursor >= c.order.size()) {
            c.cursor = 0;
            c.order.erase(std::remove_if(c.order.begin(), c.order.end(),
                [&](u32 i) { return c.threads[i].state == State::Done; }), c.order.end());
            if (c.launch.order == SIM_RANDOM)
                for (size_t i = c.order.size(); i > 1; --i) std::swap(c.order[i - 1], c.order[c.random.below(u32(i))]);
            if (c.order.empty()) return nullptr;
        }
        Thread& t = c.threads[c.order[c.cursor++]];
        if (can_run(t)) return &t;
    }
    return nullptr;
}

// PCT: `order` holds falling priorities. Now and then a whole warp comes to the front.
static Thread* pick_by_priority(Context& c) {
    while (c.cursor < c.order.size() && c.threads[c.order[c.cursor]].state == State::Done) ++c.cursor;
    const auto first = c.order.begin() + std::ptrdiff_t(c.cursor);
    if (c.random.below(64) == 0) {
        const u32 warp = c.random.below(u32(c.warps.size()));
        std::stable_partition(first, c.order.end(), [&](u32 i) { return i / LANES == warp; });
    }
    for (auto i = first; i != c.order.end(); ++i)
        if (can_run(c.threads[*i])) return &c.threads[*i];
    return nullptr;
}

static Thread* pick(Context& c) {
    for (;;) {
        if (c.launch.async == SIM_RANDOM_MOMENT && c.random.below(8) == 0) complete_a_box();
        Thread* t = c.launch.order == SIM_PCT ? pick_by_priority(c) : pick_in_turn(c);
        if (t) return t;
        // Nobody can go on: the latest moment for a copy in flight.
        if (!complete_a_box()) return nullptr;
    }
}

static void worker();

// Goes on as `next`, or to whoever called run_block, and comes back here when it is this one's turn.
static void hand_over(Context& c, void** save, Thread* next) {
    if (!next) {
        sim_switch(save, c.main_sp);
        return;
    }
    c.current = next;
    ++c.switches;
    if (next->state == State::Unstarted) {
        next->stack = c.stacks.take(worker);
        sim_switch(save, next->stack->sp);
    } else {
        sim_switch(save, next->sp);
    }
}

static void worker() {
    for (;;) {
        Context& c = ctx();
        Thread* t = c.current;
        t->state = State::Running;
        c.kernel->run(c.args);
        thread_exits(*t);
        t->state = State::Done;
        --c.live;
        Stack* stack = t->stack;
        t->stack = nullptr;
        Thread* next = pick(c);
        if (next && next->state == State::Unstarted) {
            next->stack = stack;
            c.current = next;
        } else {
            c.stacks.give_back(stack);
            hand_over(c, &stack->sp, next);
        }
    }
}

static void suspend() {
    Context& c = ctx();
    Thread* t = c.current;
    t->state = State::Suspended;
    Thread* next = pick(c);
    if (next != t) hand_over(c, &t->sp, next);
    t->state = State::Running;
    t->gate = nullptr;
}

void wait_until(const u64* gate, u64 seen, Wait wait, const void* object, u64 detail, SimSite at) {
    if (*gate != seen) return;
    Thread& t = me();
    t.gate = gate; t.seen = seen; t.wait = wait; t.object = object; t.detail = detail; t.site = at;
    suspend();
}

void progress(SimSite at) {
    Context& c = ctx();
    if (c.launch.async == SIM_RANDOM_MOMENT) async_random();
    if (c.launch.order < SIM_RANDOM || (c.random.next() & 1)) return;
    Thread& t = *c.current;
    if (c.launch.order == SIM_PCT) {
        const auto first = c.order.begin() + std::ptrdiff_t(c.cursor);
        const auto mine = std::find(first, c.order.end(), t.linear);
        const auto to = first + c.random.below(u32(c.order.end() - first));
        if (mine < to) std::rotate(mine, mine + 1, to + 1);
        else std::rotate(to, mine, mine + 1);
    }
    t.wait = Wait::Turn;
    t.site = at;
    suspend();
}

std::string run_block() {
    Context& c = ctx();
    c.live = c.n;
    c.exited_any = 0;
    for (Thread& t : c.threads) {
        t.state = State::Unstarted;
        t.gate = nullptr;
        if (t.async_used) { t.async->clear(); t.async_used = false; }
    }
    reset_sync();
    reset_hopper();
    reset_shared(false);
    if (c.detector) c.detector->begin_block();
    c.order.resize(c.n);
    for (u32 i = 0; i < c.n; ++i) c.order[i] = c.launch.order == SIM_REVERSE ? c.n - 1 - i : i;
    if (c.launch.order >= SIM_RANDOM)
        for (u32 i = c.n; i > 1; --i) std::swap(c.order[i - 1], c.order[c.random.below(i)]);
    c.cursor = 0;

    hand_over(c, &c.main_sp, pick(c));
    if (c.fault.empty() && c.live) c.fault = deadlock();
    if (c.fault.empty()) c.fault = hopper_end_of_block();
    if (!c.fault.empty()) c.stacks.reset();
    return c.fault;
}

}  // namespace sim
