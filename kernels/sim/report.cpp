// report.cpp: what is said when a kernel is at fault: which kernel, block, thread and line, and what waiting threads wait for.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <unordered_map>
#include <unistd.h>

#include "state.h"

namespace sim {

// From `kernels/` or `tests/` on where the path has it: the rest is a matter of the machine.
static std::string short_path(const char* path) {
    const char* last = nullptr;
    for (const char* folder : {"kernels/", "tests/"})
        for (const char* p = path; (p = std::strstr(p, folder)); ++p) last = std::max(last, p);
    if (last) return last;
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

std::string text(SimSite at) { return at.file ? short_path(at.file) + ":" + std::to_string(at.line) : "an unknown line"; }

// The line of an instruction, by addr2line; without it the function's name and offset. Kept: a process is started for each.
static std::string find_line(const void* pc);
std::string line_of(const void* pc) {
    thread_local std::unordered_map<const void*, std::string> known;
    std::string& line = known[pc];
    if (line.empty()) line = find_line(pc);
    return line;
}
static std::string find_line(const void* pc) {
    Dl_info info{};
    const char* address = static_cast<const char*>(pc) - 1;         // inside the call, not behind it
    if (!dladdr(address, &info) || !info.dli_fname) return "an unknown line";
    const char* file = info.dli_fname;
#if defined(__linux__)
    if (!std::strchr(file, '/') || access(file, R_OK) != 0) file = "/proc/self/exe";
#endif
    char command[4096];
    const auto base = static_cast<const char*>(info.dli_fbase);
    // A fixed executable has absolute addresses in its line table, any other image offsets.
    for (const bool absolute : {false, true}) {
        // The innermost line first, then those it was inlined into.
        std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", file,
                      absolute ? reinterpret_cast<size_t>(address) : size_t(address - base));
        std::string said;
        if (FILE* pipe = popen(command, "r")) {
            char line[2048];
            while (std::fgets(line, sizeof line, pipe)) {
                line[std::strcspn(line, "\n (")] = 0;
                if (!line[0] || line[0] == '?' || std::strstr(line, ":?")) break;
                const std::string at = short_path(line);
                said += said.empty() ? at : " in " + at;
                if (!std::strstr(line, "/core/")) break;   // a helper's line says less than its caller's
            }
            pclose(pipe);
        }
        if (!said.empty()) return said;
    }
    std::snprintf(command, sizeof command, "%s+0x%zx", info.dli_sname ? info.dli_sname : "image",
                  size_t(address - (info.dli_sname ? static_cast<const char*>(info.dli_saddr) : base)));
    return command;
}

static std::string triple(Three t) {
    return "(" + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")";
}

std::string thread_name(u32 linear) {
    const Context& c = ctx();
    if (c.launch.block[1] == 1 && c.launch.block[2] == 1) return "thread " + std::to_string(linear);
    return "thread " + triple(c.threads[linear].index);
}

void fault(const std::string& what) {
    Context& c = ctx();
    if (c.fault.empty())
        c.fault = std::string(c.kernel->name) + ": block " + triple(c.block) + ", " + thread_name(c.current->linear) + ": " + what;
    // Nothing is unwound: the launch ends here, and all stacks are used anew.
    void* dead;
    sim_switch(&dead, c.main_sp);
    __builtin_unreachable();
}

void fault(const std::string& what, SimSite at) { fault(text(at) + ": " + what); }

void trap(SimSite at) { fault("trap", at); }

// Such as "lanes 3, 5-9".
static std::string list(const char* one, const char* many, const std::vector<u32>& numbers) {
    std::string s;
    size_t runs = 0;
    for (size_t i = 0; i < numbers.size(); ++runs) {
        size_t j = i;
        while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
        if (runs == 8) { s += ", ..."; break; }
        s += (runs ? ", " : "") + std::to_string(numbers[i]) + (j > i ? "-" + std::to_string(numbers[j]) : "");
        i = j + 1;
    }
    return (numbers.size() == 1 ? one : many) + (" " + s);
}

static std::string waits_for(const Thread& t) {
    const Context& c = ctx();
    switch (t.wait) {
        case Wait::Barrier: {
            const Barrier& b = *static_cast<const Barrier*>(t.object);
            std::vector<u32> missing;
            if (b.id == 0)
                for (u32 i = 0; i < c.n; ++i)
                    if (std::find(b.participants.begin(), b.participants.end(), i) == b.participants.end()) missing.push_back(i);
            return (b.id == 0 ? std::string("__syncthreads") : "named barrier " + std::to_string(b.id)) + ", where " +
                   std::to_string(b.arrived) + " of " + std::to_string(b.count) + " have arrived" +
                   (missing.empty() ? "" : " and " + list("thread", "threads", missing) + " not");
        }
        case Wait::Lanes: {
            const Meeting& m = *static_cast<const Meeting*>(t.object);
            std::vector<u32> missing;
            for (u32 i = 0; i < LANES; ++i)
                if (m.mask & ~m.arrived & 1u << i) missing.push_back(i);
            return std::string(m.what) + " with " + list("lane", "lanes", missing) + " of its warp";
        }
        case Wait::Mbarrier:
            return describe_mbarrier(c.mbarriers[size_t(reinterpret_cast<uintptr_t>(t.object))], t.detail);
        case Wait::Registers:
            return "setmaxnreg: " + std::to_string(t.detail) + " registers a thread are not free";
        case Wait::Turn: break;
    }
    return "its turn";
}

std::string deadlock() {
    const Context& c = ctx();
    std::string s = std::string(c.kernel->name) + ": block " + triple(c.block) + ": deadlock, " + std::to_string(c.live) + " of " +
                    std::to_string(c.n) + " threads wait";
    // Threads that wait at one line for one thing are named together.
    std::vector<std::pair<std::string, std::vector<u32>>> groups;
    for (const Thread& t : c.threads) {
        if (t.state != State::Suspended) continue;
        const std::string why = "at " + text(t.site) + " for " + waits_for(t);
        size_t g = 0;
        while (g < groups.size() && groups[g].first != why) ++g;
        if (g == groups.size()) groups.push_back({why, {}});
        groups[g].second.push_back(t.linear);
    }
    for (size_t g = 0; g < groups.size() && g < 6; ++g) s += "; " + list("thread", "threads", groups[g].second) + " " + groups[g].first;
    if (groups.size() > 6) s += "; and " + std::to_string(groups.size() - 6) + " more";
    return s;
}

}  // namespace sim
