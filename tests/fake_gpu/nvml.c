// NVML without a GPU, for tests. The environment says what it tells:
//
//   FAKE_THROTTLE     bit mask of reasons (1: idle)      FAKE_PROCESSES  how many other processes compute (0)
//   FAKE_TEMPERATURE  °C (41)                            FAKE_ERRORS     uncorrected memory errors (0)
//   FAKE_LIMIT        watts in force, of 700 (700)       FAKE_FREE       free bytes of 80 GB (79e9)
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}
typedef int R;
static char gpu[1];

R nvmlInit_v2(void) { return 0; }
R nvmlSystemGetDriverVersion(char* text, unsigned n) { strncpy(text, "580.82.07", n); return 0; }
R nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) { *device = gpu; return strncmp(bus, "0000:", 5) ? 6 : 0; }
R nvmlDeviceGetClockInfo(void* d, unsigned kind, unsigned* v) { (void)d; *v = kind == 1 ? 345 : 2619; return 0; }
R nvmlDeviceGetMaxClockInfo(void* d, unsigned kind, unsigned* v) { (void)d; *v = kind == 1 ? 1980 : 2619; return 0; }
R nvmlDeviceGetCurrentClocksThrottleReasons(void* d, uint64_t* v) { (void)d; *v = setting("FAKE_THROTTLE", 1); return 0; }
R nvmlDeviceGetTemperature(void* d, unsigned kind, unsigned* v) { (void)d; *v = setting("FAKE_TEMPERATURE", 41); return kind ? 2 : 0; }
R nvmlDeviceGetPowerUsage(void* d, unsigned* v) { (void)d; *v = 71500; return 0; }
R nvmlDeviceGetEnforcedPowerLimit(void* d, unsigned* v) { (void)d; *v = 1000 * setting("FAKE_LIMIT", 700); return 0; }
R nvmlDeviceGetPowerManagementDefaultLimit(void* d, unsigned* v) { (void)d; *v = 700000; return 0; }
R nvmlDeviceGetMemoryInfo(void* d, uint64_t* m) {
    (void)d;
    m[0] = 80000000000, m[1] = setting("FAKE_FREE", 79000000000), m[2] = m[0] - m[1];
    return 0;
}
R nvmlDeviceGetComputeRunningProcesses_v3(void* d, unsigned* n, uint64_t* p) { // 24 bytes each: pid, bytes, instances
    (void)d;
    unsigned count = setting("FAKE_PROCESSES", 0);
    if (*n < count) return 7;
    *n = count;
    for (unsigned i = 0; i < count; i++) p[3 * i] = 4000 + i, p[3 * i + 1] = i ? UINT64_MAX : 2500000000, p[3 * i + 2] = 0;
    return 0;
}
R nvmlDeviceGetTotalEccErrors(void* d, unsigned kind, unsigned since, uint64_t* v) {
    (void)d;
    *v = setting("FAKE_ERRORS", 0);
    return kind == 1 && since == 0 ? 0 : 2;
}
R nvmlDeviceGetPersistenceMode(void* d, unsigned* v) { (void)d; *v = 1; return 0; }
