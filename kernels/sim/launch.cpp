// launch.cpp: the C side of sim.h: finds a kernel, checks the launch, runs its blocks.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <numeric>
#include <string_view>
#include <unordered_map>

#include "state.h"

namespace sim {

struct Found { const Entry *plain = nullptr, *checked = nullptr; };

static const std::unordered_map<std::string_view, Found>& kernels() {
    static const auto map = [] {
        std::unordered_map<std::string_view, Found> m;
        for (auto table = sim_tables; *table; ++table)
            for (auto e = *table; e->name; ++e) m[e->name].plain = e;
        for (auto table = sim_checked_tables; *table; ++table)
            for (auto e = *table; e->name; ++e) m[e->name].checked = e;
        return m;
    }();
    return map;
}

static Context& own_context() {
    thread_local Context c;
    return c;
}

// Why the caller is at fault; empty if it is not.
static std::string refusal(const SimLaunch& l) {
    const u64 threads = u64(l.block[0]) * l.block[1] * l.block[2];
    if (threads == 0 || threads > 1024 || l.block[2] > 64) return "a block has 1 to 1024 threads, at most 64 in z";
    if (l.grid[0] == 0 || l.grid[1] == 0 || l.grid[2] == 0) return "the grid is empty";
    if (l.grid[0] > 0x7FFFFFFFu || l.grid[1] > 65535 || l.grid[2] > 65535) return "the grid is at most 2^31 - 1 by 65535 by 65535";
    if (l.shared > SHARED_MOST) return "more than " + std::to_string(SHARED_MOST) + " bytes of shared memory";
    if (l.order > SIM_PCT || l.async > SIM_RANDOM_MOMENT) return "no such order of threads or of asynchronous operations";
    return "";
}

static std::string run(const Entry* kernel, const void* args, const SimLaunch& l) {
    Context& c = own_context();
    if (context) return "a launch within a launch";
    context = &c;
    c.kernel = kernel;
    c.args = args;
    c.launch = l;
    c.fault.clear();
    c.random.seed(l.seed);
    const u32 n = l.block[0] * l.block[1] * l.block[2];
    if (c.n != n) {
        c.n = n;
        c.threads.clear();
        c.threads.resize(n);
        c.warps.clear();
        c.warps.resize((n + LANES - 1) / LANES);
        c.warpgroups.clear();
    }
    for (u32 i = 0; i < n; ++i) {
        c.threads[i].linear = i;
        c.threads[i].index = {i % l.block[0], i / l.block[0] % l.block[1], i / (l.block[0] * l.block[1])};
        c.threads[i].stack = nullptr;
    }
    for (u32 w = 0; w < c.warps.size(); ++w) c.warps[w].lanes = n - w * LANES >= LANES ? 0xFFFFFFFFu : (1u << (n - w * LANES)) - 1;
    reset_shared(true);
    c.detector = nullptr;
    if (l.checked) {
        if (!c.detector_memory) c.detector_memory = std::make_unique<Detector>();
        c.detector = c.detector_memory.get();
        c.detector->begin_launch(n, l, args, kernel->args);
    }
    const u64 blocks = u64(l.grid[0]) * l.grid[1] * l.grid[2];
    // Any order is as good as another, but not for a kernel that leans on one.
    const bool mix = l.order >= SIM_RANDOM && blocks <= 1u << 20;
    std::vector<u32> order(mix ? size_t(blocks) : 0);
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[c.random.below(u32(i))]);
    std::string what;
    for (u64 i = 0; i < blocks && what.empty(); ++i) {
        const u64 b = mix ? order[i] : l.order == SIM_REVERSE ? blocks - 1 - i : i;
        c.block = {u32(b % l.grid[0]), u32(b / l.grid[0] % l.grid[1]), u32(b / (u64(l.grid[0]) * l.grid[1]))};
        what = run_block();
    }
    c.current = nullptr;
    context = nullptr;
    return what;
}

// What a kernel asks for about itself.
u32 thread_x() { return me().index.x; }
u32 thread_y() { return me().index.y; }
u32 thread_z() { return me().index.z; }
u32 block_x() { return ctx().block.x; }
u32 block_y() { return ctx().block.y; }
u32 block_z() { return ctx().block.z; }
u32 block_dim(u32 axis) { return ctx().launch.block[axis]; }
u32 grid_dim(u32 axis) { return ctx().launch.grid[axis]; }

}  // namespace sim

// Another library's kernels, if one was loaded.
struct Library {
    decltype(&sim_args_size) args_size;
    decltype(&sim_launch) launch;
};
static std::atomic<const Library*> library{nullptr};

int sim_load(const char* path, char* what, size_t room) {
    void* image = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void* args_size = image ? dlsym(image, "sim_args_size") : nullptr;
    void* launch = image ? dlsym(image, "sim_launch") : nullptr;
    if (!args_size || !launch) {
        std::snprintf(what, room, "%s", dlerror());
        return SIM_CALLER_AT_FAULT;
    }
    // Lives as long as the process: launches may be under way.
    library = new Library{reinterpret_cast<decltype(&sim_args_size)>(args_size), reinterpret_cast<decltype(&sim_launch)>(launch)};
    return SIM_OK;
}

size_t sim_args_size(const char* symbol) {
    if (const Library* other = library)
        if (const size_t bytes = other->args_size(symbol)) return bytes;
    const auto found = sim::kernels().find(symbol);
    return found == sim::kernels().end() || !found->second.plain ? 0 : found->second.plain->args;
}

int sim_launch(const char* symbol, const void* args, size_t size, const SimLaunch* launch, char* what, size_t room) {
    if (const Library* other = library)
        if (other->args_size(symbol)) return other->launch(symbol, args, size, launch, what, room);
    const auto refuse = [&](const std::string& why) {
        std::snprintf(what, room, "%s: %s", symbol, why.c_str());
        return int(SIM_CALLER_AT_FAULT);
    };
    const auto found = sim::kernels().find(symbol);
    if (found == sim::kernels().end()) return refuse("no such kernel");
    const sim::Entry* kernel = launch->checked ? found->second.checked : found->second.plain;
    if (!kernel) return refuse(launch->checked ? "not built for checking" : "built for checking only");
    if (kernel->args != size) return refuse("takes " + std::to_string(kernel->args) + " bytes of arguments, not " + std::to_string(size));
    const std::string why = sim::refusal(*launch);
    if (!why.empty()) return refuse(why);
    const std::string s = sim::run(kernel, args, *launch);
    if (room) std::snprintf(what, room, "%s", s.c_str());
    return s.empty() ? SIM_OK : SIM_KERNEL_AT_FAULT;
}
