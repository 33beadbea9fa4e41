// wgmma.cpp: products of a warpgroup, and its registers.
//
// From issue until a wait retires the group, the accumulator belongs to the tensor core: it is poisoned at issue, and must still
// be at retirement. Operands are read at any moment in between, by each thread for its own rows and columns. A warpgroup
// instruction joins no warps and orders no memory; that all threads execute the same ones is seen from a log.
#include <cstring>

#include "state.h"

namespace sim {

constexpr u32 IN_FLIGHT = 0x7FC0DEAD;                // a NaN that no kernel writes

void reset_warpgroups() {
    Context& c = ctx();
    if (!c.warpgroups_used) return;
    c.warpgroups_used = false;
    for (Warpgroup& w : c.warpgroups) {
        w.log.clear();
        w.requested.clear();
        w.registers = 0;
    }
}

static Warpgroup& warpgroup(SimSite at) {
    Context& c = ctx();
    const u32 i = me().linear / WARPGROUP;
    if ((i + 1) * WARPGROUP > c.n) fault("a warpgroup instruction needs 128 threads", at);
    if (c.warpgroups.size() <= i) c.warpgroups.resize(c.n / WARPGROUP);
    c.warpgroups_used = true;
    return c.warpgroups[i];
}

void collective(const char* what, u64 a, u64 b, SimSite at) {
    Warpgroup& w = warpgroup(at);
    const u32 i = async_state().collective++;
    if (i == w.log.size()) {
        w.log.push_back({at, what, a, b});
        return;
    }
    const Collective& o = w.log[i];
    if (std::strcmp(o.what, what) || o.site.line != at.line)
        fault(std::string("diverged warpgroup: ") + what + " here, but another thread of it executed " + o.what + " at " + text(o.site), at);
    if (o.a != a || o.b != b) fault(std::string(what) + ": descriptors differ within the warpgroup", at);
}

// ---- operands ----

// A K-major operand of 16-bit elements, read as the 64 bits of its descriptor say.
struct Operand { u32 start, leading, stride, span; };

static Operand decode(u64 descriptor, SimSite at) {
    constexpr u64 UNUSED = ~(0x3FFFull | 0x3FFFull << 16 | 0x3FFFull << 32 | 3ull << 62);
    if (descriptor & UNUSED) fault("wgmma descriptor: bits that are not used or the base offset are set", at);
    constexpr u32 SPAN[4] = {0, 128, 64, 32};
    Operand o{u32(descriptor & 0x3FFF) << 4, u32(descriptor >> 16 & 0x3FFF) << 4, u32(descriptor >> 32 & 0x3FFF) << 4, SPAN[descriptor >> 62]};
    if (o.span && o.start % (8 * o.span) >= o.span)
        fault("wgmma descriptor: the tile does not start on a multiple of " + std::to_string(8 * o.span) + " bytes", at);
    return o;
}

// Eight elements of row `row` from element 8 * `chunk` on.
static const u8* chunk_of(const Operand& o, u32 row, u32 chunk, SimSite at) {
    const u32 address = o.span ? ptx::swizzled(o.start + row / 8 * o.stride + row % 8 * o.span + chunk * 16, o.span)
                               : o.start + row / 8 * o.stride + row % 8 * 16 + chunk * o.leading;
    const u32 offset = address - SHARED_BASE;
    if (address < SHARED_BASE || !is_allocated(offset, 16))
        fault("wgmma: its descriptor reaches shared memory at +" + std::to_string(i64(address) - SHARED_BASE) + ", outside what the block asked for", at);
    return ctx().shared + offset;
}

static void read_row(f32* to, const Operand& o, u32 row, const Product& p) {
    for (u32 chunk = 0; chunk < 2; ++chunk) {
        const u8* from = chunk_of(o, row, chunk, p.site);
        if (Detector* d = detector()) d->access(from, 16, Access::AsyncRead, p.actor, p.site);
        for (u32 k = 0; k < 8; ++k) {
            u16 bits;
            std::memcpy(&bits, from + 2 * k, 2);
            to[chunk * 8 + k] = f32_of(u32(bits) << 16);
        }
    }
}

static void perform(Async& async, Product& p) {
    if (p.done) return;
    p.done = true;
    f32 a[2 * 16], b[16 * 16], d[2 * 16];
    const Operand left = decode(p.a, p.site), right = decode(p.b, p.site);
    const u32 t = me().linear % WARPGROUP;
    // Accumulators come as pairs of columns: registers 4 j + {0, 1} in the first row, 4 j + {2, 3} in the second.
    for (u32 h = 0; h < 2; ++h) read_row(a + h * 16, left, ptx::wgmma_d(t, 2 * h).row, p);
    for (u32 j = 0; j < 16; ++j) read_row(b + j * 16, right, ptx::wgmma_d(t, j / 2 * 4 + j % 2).col, p);
    f32* value = async.accumulators[p.accumulator].value;
    for (u32 h = 0; h < 2; ++h)
        for (u32 j = 0; j < 16; ++j) d[h * 16 + j] = value[j / 2 * 4 + h * 2 + j % 2];
    tensor_product(d, a, b, 2, 16, 16);
    for (u32 h = 0; h < 2; ++h)
        for (u32 j = 0; j < 16; ++j) value[j / 2 * 4 + h * 2 + j % 2] = d[h * 16 + j];
    if (Detector* det = detector()) det->retire(p.actor);
}

// Products on one accumulator follow each other; those before are done first.
static void perform_up_to(Async& a, size_t i) {
    for (size_t j = 0; j <= i; ++j) perform(a, a.products[j]);
}

void random_product(Async& a) {
    if (!a.products.empty()) perform_up_to(a, ctx().random.below(u32(a.products.size())));
}

// ---- instructions ----

void wgmma_fence(SimSite at) {
    collective("wgmma_fence", 0, 0, at);
    async_state().fenced = true;
}

void wgmma_m64n64k16(f32* d, u64 a, u64 b, SimSite at) {
    collective("wgmma", a, b, at);
    Async& s = async_state();
    decode(a, at);
    decode(b, at);
    size_t i = 0;
    while (i < s.accumulators.size() && !(s.accumulators[i].registers == d && s.accumulators[i].open)) ++i;
    if (i == s.accumulators.size()) {
        if (!s.fenced) fault("wgmma: no wgmma_fence since its accumulator could be touched", at);
        for (i = 0; i < s.accumulators.size() && s.accumulators[i].open; ++i) {}
        if (i == s.accumulators.size()) s.accumulators.emplace_back();
        Accumulator& acc = s.accumulators[i];
        acc.registers = d;
        acc.open = 0;
        std::memcpy(acc.value, d, sizeof acc.value);
        for (u32 r = 0; r < 32; ++r) d[r] = f32_of(IN_FLIGHT);
    }
    ++s.accumulators[i].open;
    Product p{u32(i), a, b, at, false, {}};
    ++s.products_issued;
    if (Detector* det = detector()) p.actor = det->start_product(me().linear, s.products_issued);
    s.products.push_back(p);
    if (ctx().launch.async == SIM_EARLIEST) perform_up_to(s, s.products.size() - 1);
    progress(at);
}

void wgmma_commit(SimSite at) {
    collective("wgmma_commit", 0, 0, at);
    Async& s = async_state();
    s.product_groups.push_back(s.products.size());
    progress(at);
}

void wgmma_wait(u32 pending, SimSite at) {
    collective("wgmma_wait", pending, 0, at);
    Async& s = async_state();
    if (s.product_groups.size() > pending) {
        const size_t groups = s.product_groups.size() - pending, end = s.product_groups[groups - 1];
        if (end) perform_up_to(s, end - 1);
        for (size_t i = 0; i < end; ++i) {
            Accumulator& acc = s.accumulators[s.products[i].accumulator];
            if (--acc.open) continue;
            for (u32 r = 0; r < 32; ++r)
                if (bits_of(acc.registers[r]) != IN_FLIGHT)
                    fault("wgmma: accumulator register " + std::to_string(r) + " was written between issue and wait", s.products[i].site);
            std::memcpy(acc.registers, acc.value, sizeof acc.value);
        }
        if (Detector* d = detector()) d->products_done(me().linear, s.products_issued - s.products.size() + end);
        s.products.erase(s.products.begin(), s.products.begin() + std::ptrdiff_t(end));
        s.product_groups.erase(s.product_groups.begin(), s.product_groups.begin() + std::ptrdiff_t(groups));
        for (size_t& g : s.product_groups) g -= end;
        s.fenced = false;
    }
    progress(at);
}

bool in_flight(const Thread& t, uintptr_t address, u32 bytes) {
    for (const Accumulator& a : t.async->accumulators) {
        const auto low = reinterpret_cast<uintptr_t>(a.registers);
        if (a.open && address < low + sizeof a.value && address + bytes > low) return true;
    }
    return false;
}

void products_exit(const Thread& t) {
    if (!t.async->products.empty()) fault("exits without having waited for a wgmma", t.async->products.front().site);
}

// ---- registers ----

void setmaxnreg(u32 registers, bool more, SimSite at) {
    Context& c = ctx();
    Warpgroup& w = warpgroup(at);
    Async& s = async_state();
    const char* what = more ? "setmaxnreg_inc" : "setmaxnreg_dec";
    if (registers % 8 || registers < 24 || registers > 256) fault(std::string(what) + ": no multiple of 8 from 24 to 256", at);
    // What the launch gave each thread, as ptxas does: the whole file shared out, in steps of 8.
    const u32 launched = 65536 / c.n & ~7u;
    const u32 i = s.register_requests++;
    for (;;) {
        if (i < w.requested.size()) {
            if (w.requested[i] != registers) fault(std::string(what) + ": another warp of the warpgroup asked for " + std::to_string(w.requested[i]), at);
            return;
        }
        const u32 now = w.registers ? w.registers : launched;
        if (more ? registers < now : registers > now)
            fault(std::string(what) + ": " + std::to_string(registers) + " where the warpgroup has " + std::to_string(now), at);
        u32 used = 0;
        for (const Warpgroup& o : c.warpgroups) used += (o.registers ? o.registers : launched) * WARPGROUP;
        if (used - now * WARPGROUP + registers * WARPGROUP <= launched * c.n) {
            w.registers = registers;
            w.requested.push_back(registers);
            ++c.registers_freed;
            return;
        }
        wait_until(&c.registers_freed, c.registers_freed, Wait::Registers, nullptr, registers, at);
    }
}

std::string warpgroups_end_of_block() {
    const Context& c = ctx();
    if (!c.warpgroups_used) return "";
    for (const Thread& t : c.threads) {
        const u32 i = t.linear / WARPGROUP;
        if (i >= c.warpgroups.size()) continue;
        const Warpgroup& w = c.warpgroups[i];
        const u32 executed = t.async_used ? t.async->collective : 0, requests = t.async_used ? t.async->register_requests : 0;
        if (requests != w.requested.size()) return thread_name(t.linear) + " left out a setmaxnreg that others of its warpgroup executed";
        if (executed != w.log.size())
            return thread_name(t.linear) + " left out " + w.log[executed].what + " at " + text(w.log[executed].site) + ", which others of its warpgroup executed";
    }
    return "";
}

}  // namespace sim
