// driver.cpp: runs the kernels of this folder on the simulator, for tests/simulator.rs.
//
//   driver run CASE SEEDS CHECKED   every order and async mode (seeds 1 to SEEDS where chance has a part): one line each,
//                                   `order async seed: ok`, `: fault WHAT` or `: wrong WHERE`
//   driver time                     figures
//   driver threads                  launches from eight OS threads at once
//   driver numbers                  conversions, and the model of tensor cores' sums
#include "sim/sim.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern const sim::Entry sim_table_small[], sim_table_gemm_mma[], sim_table_gemm_tma_wgmma[];
extern const sim::Entry sim_checked_table_small[], sim_checked_table_gemm_mma[], sim_checked_table_gemm_tma_wgmma[];
extern const sim::Entry* const sim_tables[] = {sim_table_small, sim_table_gemm_mma, sim_table_gemm_tma_wgmma, nullptr};
extern const sim::Entry* const sim_checked_tables[] = {sim_checked_table_small, sim_checked_table_gemm_mma,
                                                       sim_checked_table_gemm_tma_wgmma, nullptr};

// numbers.cpp
int numbers();

struct How { uint32_t order, async, checked; uint64_t seed; };
struct Grid { uint32_t grid[3], block, shared; };

static SimRange range(const void* p, size_t bytes, bool writable) {
    return {reinterpret_cast<uint64_t>(p), bytes, uint32_t(writable), 0};
}
template <class Args>
static std::string launch(const std::string& symbol, const Args& args, Grid g, const std::vector<SimRange>& ranges, How how) {
    char what[2048];
    SimLaunch l{{g.grid[0], g.grid[1], g.grid[2]}, {g.block, 1, 1}, g.shared, how.order, how.async, how.checked, how.seed, ranges.data(), ranges.size()};
    switch (sim_launch(symbol.c_str(), &args, sizeof args, &l, what, sizeof what)) {
        case SIM_OK: return "ok";
        case SIM_KERNEL_AT_FAULT: return std::string("fault ") + what;
        default: return std::string("refused ") + what;
    }
}

static float widen(uint16_t b) {
    const uint32_t u = uint32_t(b) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

// ---- products ----

struct Product {
    uint32_t m, n, k;
    std::vector<uint16_t> a, b;
    std::vector<float> c;
    Product(uint32_t m, uint32_t n, uint32_t k) : m(m), n(n), k(k), a(size_t(m) * k), b(size_t(n) * k), c(size_t(m) * n, NAN) {
        std::mt19937 random(7);
        std::uniform_real_distribution<float> uniform(-1, 1);
        for (auto* v : {&a, &b})
            for (auto& e : *v) {
                const float f = uniform(random);
                uint32_t u;
                std::memcpy(&u, &f, 4);
                e = uint16_t(u >> 16);
            }
    }
    // Against float64; tensor cores cut off: see `tensor_product`.
    std::string judge() const {
        for (uint32_t i = 0; i < m; ++i)
            for (uint32_t j = 0; j < n; ++j) {
                double s = 0, magnitude = 0;
                for (uint32_t l = 0; l < k; ++l) {
                    const double p = double(widen(a[size_t(i) * k + l])) * widen(b[size_t(j) * k + l]);
                    s += p;
                    magnitude += std::fabs(p);
                }
                const double tolerance = 2 * ((k + 15) / 16) * std::ldexp(magnitude, -24);
                if (!(std::fabs(c[size_t(i) * n + j] - s) <= tolerance))
                    return "wrong at (" + std::to_string(i) + "," + std::to_string(j) + "): " + std::to_string(c[size_t(i) * n + j]) + ", not " + std::to_string(s);
            }
        return "ok";
    }
    std::vector<SimRange> ranges() {
        return {range(a.data(), 2 * a.size(), false), range(b.data(), 2 * b.size(), false), range(c.data(), 4 * c.size(), true)};
    }
};

struct MmaArgs { const uint16_t *a, *b; float* c; uint32_t m, n, k; };
static std::string gemm_mma(const std::string& symbol, uint32_t m, uint32_t n, uint32_t k, How how) {
    Product p(m, n, k);
    const MmaArgs args{p.a.data(), p.b.data(), p.c.data(), m, n, k};
    const std::string s = launch(symbol, args, {{(n + 31) / 32, (m + 31) / 32, 1}, 128, 0}, p.ranges(), how);
    return s == "ok" ? p.judge() : s;
}

struct alignas(64) Map { uint8_t bytes[128]; };
struct TmaArgs { Map a, b; float* c; uint32_t m, n, k; };
static Map map(const void* p, uint32_t rows, uint32_t cols, uint32_t tile_rows) {
    Map m;
    char what[256];
    const SimTensorMap desc{reinterpret_cast<uint64_t>(p), {cols, rows}, uint64_t(cols) * 2, 2, {64, tile_rows}, 128};
    if (sim_tensor_map(&desc, &m, what, sizeof what)) { std::puts(what); std::exit(2); }
    return m;
}
static std::string gemm_tma(const std::string& symbol, uint32_t m, uint32_t n, uint32_t k, How how) {
    Product p(m, n, k);
    const TmaArgs args{map(p.a.data(), m, k, 128), map(p.b.data(), n, k, 64), p.c.data(), m, n, k};
    const uint32_t shared = 3 * (128 * 64 + 64 * 64) * 2 + 6 * 8;
    const std::string s = launch(symbol, args, {{(n + 63) / 64, (m + 127) / 128, 1}, 384, shared}, p.ranges(), how);
    return s == "ok" ? p.judge() : s;
}

// ---- small ones ----

struct SmallArgs { const float* x; float* y; uint32_t n, p; };
struct Small { uint32_t grid, block, shared, x, y, n; std::function<bool(const std::vector<float>& x, const std::vector<float>& y)> right; };

static bool normalised(const std::vector<float>& x, const std::vector<float>& y) {
    const size_t n = 300, rows = x.size() / n;
    for (size_t r = 0; r < rows; ++r) {
        double mean = 0, square = 0;
        for (size_t c = 0; c < n; ++c) mean += x[r * n + c] / double(n);
        for (size_t c = 0; c < n; ++c) square += (x[r * n + c] - mean) * (x[r * n + c] - mean) / double(n);
        for (size_t c = 0; c < n; ++c)
            if (!(std::fabs(y[r * n + c] - (x[r * n + c] - mean) / std::sqrt(square + 1e-5)) < 1e-4)) return false;
    }
    return true;
}
static std::function<bool(const std::vector<float>&, const std::vector<float>&)> each(float (*f)(size_t i, const std::vector<float>& x)) {
    return [f](const std::vector<float>& x, const std::vector<float>& y) {
        for (size_t i = 0; i < y.size(); ++i)
            if (y[i] != f(i, x)) return false;
        return true;
    };
}
static Small shape_of(const std::string& name) {
    const auto one = each([](size_t, const std::vector<float>&) { return 1.0f; });
    if (name == "ok_rownorm" || name == "bad_first_barrier" || name == "bad_second_barrier" || name == "bad_divergent_barrier")
        return {5, 256, 0, 1500, 1500, 300, normalised};
    if (name == "bad_block_overlap") return {3, 64, 0, 64, 64, 64, nullptr};
    if (name == "ok_warp_exchange") return {1, 64, 0, 64, 64, 64, each([](size_t i, const std::vector<float>&) { return float((i ^ 31) + 2); })};
    if (name == "bad_register_pool" || name == "bad_registers_one_warp") return {1, 384, 0, 384, 384, 384, nullptr};
    if (name.find("wgmma") != name.npos || name.find("proxy") != name.npos || name.find("accumulator") != name.npos || name == "bad_tile_at_512")
        return {1, 128, 20480, 128, 128, 128, name[0] == 'o' ? each([](size_t, const std::vector<float>&) { return 16.0f; }) : nullptr};
    if (name == "ok_named_barriers" || name == "bad_named_barrier")
        return {1, 128, 0, 128, 128, 128, each([](size_t i, const std::vector<float>&) { return i < 64 ? float(66 + i) : float(i - 64 + 3); })};
    if (name == "ok_votes") return {1, 64, 0, 64, 64, 64, one};
    if (name == "ok_inout") return {3, 64, 0, 192, 192, 170, nullptr};
    if (name == "bad_named_parts") return {1, 96, 0, 96, 96, 96, nullptr};
    if (name == "ok_narrow") return {1, 128, 0, 128, 128, 128, nullptr};
    if (name == "ok_strides") return {6, 64, 0, 128, 384, 64, each([](size_t i, const std::vector<float>& x) { return x[i / 192 * 64 + i % 64]; })};
    if (name == "ok_table") return {1, 64, 0, 64, 64, 64, each([](size_t i, const std::vector<float>& x) { return float(1 << i % 8) * x[i]; })};
    if (name == "ok_atomics") return {2, 64, 0, 64, 64, 64, [](const std::vector<float>&, const std::vector<float>& y) {
        const auto* c = reinterpret_cast<const uint32_t*>(y.data());
        return c[0] == 32 && c[3] == 32 && c[4] == 63 && c[8] == 5 && c[9] == 0xFFFFFFFFu && c[10] == 0;
    }};
    if (name == "ok_mma_shapes") return {1, 32, 0, 384, 384, 0, [](const std::vector<float>& x, const std::vector<float>& y) {
        for (size_t i = 0; i < 384; ++i) {
            float s = 0;                             // x holds small whole numbers: exact
            for (size_t k = 0; k < 16; ++k) s += x[i % 128 / 8 * 16 + k] * x[256 + k * 8 + i % 8];
            if (y[i] != s) return false;
        }
        return true;
    }};
    if (name == "ok_idle") return {4, 256, 0, 1000, 1000, 1000, each([](size_t i, const std::vector<float>& x) { return x[i] * 2; })};
    if (name == "ok_switches") return {1, 64, 0, 64, 64, 20, one};
    return {1, 64, 1024, 64, 64, 64, nullptr};
}
static std::string small(const std::string& name, How how) {
    const Small s = shape_of(name);
    std::vector<float> x(s.x), y(s.y, name == "ok_atomics" ? 0.0f : NAN);
    std::mt19937 random(3);
    for (auto& e : x) e = std::normal_distribution<float>()(random);
    if (name == "ok_mma_shapes")
        for (auto& e : x) e = std::nearbyint(8 * e);
    const SmallArgs args{x.data(), y.data(), s.n, 0};
    const std::string what = launch(name, args, {{s.grid, 1, 1}, s.block, s.shared}, {range(x.data(), 4 * s.x, false), range(y.data(), 4 * s.y, true)}, how);
    return what != "ok" ? what : s.right && !s.right(x, y) ? "wrong result" : "ok";
}

static std::string run(const std::string& name, How how) {
    if (name.rfind("gemm_mma", 0) == 0) {
        // Odd sizes show what zero fill and bounds are for.
        const std::string s = gemm_mma(name, 70, 45, 104, how);
        return s == "ok" ? gemm_mma(name, 32, 64, 32, how) : s;
    }
    if (name.rfind("gemm_tma", 0) == 0) {
        const std::string s = gemm_tma(name, 130, 70, 328, how);
        return s == "ok" ? gemm_tma(name, 128, 64, 64, how) : s;
    }
    return small(name, how);
}

// ---- figures ----

// Of this thread: other work on the machine does not count.
static double cpu_time() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}
static double seconds(const std::function<std::string()>& f) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
        const double start = cpu_time();
        const std::string s = f();
        best = std::min(best, cpu_time() - start);
        if (s != "ok") std::printf("%s\n", s.c_str());
    }
    return best;
}
static void time_all() {
    static const char* const ORDERS[] = {"forward", "reverse", "random", "pct"};
    for (uint32_t checked : {0u, 1u})
        for (uint32_t order : {0u, 2u, 3u}) {
            const How how{order, order ? SIM_RANDOM_MOMENT : SIM_EARLIEST, checked, 1};
            const uint32_t n = 1 << 18;
            std::vector<float> x(n), y(n);
            const std::vector<SimRange> ranges = {range(x.data(), 4 * n, false), range(y.data(), 4 * n, true)};
            std::printf("%s, %s:\n", checked ? "checked" : "plain", ORDERS[order]);
            const double idle = seconds([&] { return launch("ok_idle", SmallArgs{x.data(), y.data(), n, 0}, {{n / 256, 1, 1}, 256, 0}, ranges, how); });
            std::printf("  a thread that does not wait, one read, one write: %.1f ns\n", idle / n * 1e9);
            const double turns = seconds([&] { return launch("ok_switches", SmallArgs{x.data(), y.data(), 2000, 0}, {{1, 1, 1}, 256, 0}, ranges, how); });
            std::printf("  a shuffle of one lane, a switch included: %.1f ns\n", turns / (256 * 2000) * 1e9);
            const double rows = seconds([&] { return launch("ok_rownorm", SmallArgs{x.data(), y.data(), 1024, 0}, {{256, 1, 1}, 256, 0}, ranges, how); });
            std::printf("  256 rows of 1024, normalised: %.1f ms\n", rows * 1e3);
            const uint32_t s = 256;
            Product p(s, s, s);
            const TmaArgs args{map(p.a.data(), s, s, 128), map(p.b.data(), s, s, 64), p.c.data(), s, s, s};
            const double tma = seconds([&] { return launch("gemm_tma", args, {{s / 64, s / 128, 1}, 384, 73776}, p.ranges(), how); });
            const MmaArgs plain{p.a.data(), p.b.data(), p.c.data(), s, s, s};
            const double mma = seconds([&] { return launch("gemm_mma", plain, {{s / 32, s / 32, 1}, 128, 0}, p.ranges(), how); });
            std::printf("  256^3 by wgmma %.1f ms, by mma.sync %.1f ms\n", tma * 1e3, mma * 1e3);
        }
}

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "time") {
        time_all();
    } else if (what == "threads") {
        std::vector<std::thread> all;
        int bad = 0;
        std::vector<std::string> said(8);
        for (uint32_t t = 0; t < 8; ++t)
            all.emplace_back([t, &said] {
                for (uint64_t seed = 1; seed <= 5; ++seed) {
                    const How how{t % 4, uint32_t(seed % 3), t / 4, seed};
                    for (const char* name : {"ok_rownorm", "gemm_tma", "gemm_mma", "bad_divergent_barrier"}) {
                        const std::string s = run(name, how);
                        if ((s == "ok") != (name[0] != 'b')) said[t] = std::string(name) + ": " + s;
                    }
                }
            });
        for (auto& t : all) t.join();
        for (const auto& s : said)
            if (!s.empty()) { std::puts(s.c_str()); bad = 1; }
        return bad;
    } else if (what == "numbers") {
        return numbers();
    } else if (what == "run" && argc == 5) {
        static const char* const ORDERS[] = {"forward", "reverse", "random", "pct"};
        static const char* const ASYNC[] = {"earliest", "latest", "chance"};
        const auto seeds = std::strtoull(argv[3], nullptr, 10);
        for (uint32_t order = 0; order < 4; ++order)
            for (uint32_t async = 0; async < 3; ++async)
                for (uint64_t seed = 1; seed <= (order < 2 && async < 2 ? 1 : seeds); ++seed)
                    std::printf("%s %s %llu: %s\n", ORDERS[order], ASYNC[async], static_cast<unsigned long long>(seed),
                                run(argv[2], {order, async, uint32_t(std::strtoul(argv[4], nullptr, 10)), seed}).c_str());
    } else {
        std::fprintf(stderr, "see the head of driver.cpp\n");
        return 2;
    }
}
