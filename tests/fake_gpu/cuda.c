// A driver without a GPU, for tests of what calls the driver: device memory is host memory, and all queued work runs as late
// as the calls allow (at a wait), so that whoever reuses a buffer too early is found. The environment says what goes wrong:
//
//   FAKE_DEVICES     number of devices (1)               FAKE_INIT      result of cuInit (0)
//   FAKE_VERSION     CUDA version (13000)                FAKE_JIT       result of loading a module (0), with a log
//   FAKE_CAPABILITY  90                                  FAKE_MEMORY    bytes of device memory (64 MiB)
//   FAKE_POOLS       0: no memory pools                  FAKE_RETAIN    result of retaining the primary context (0)
//   FAKE_WRONG       1: the probe kernel gives a wrong value
//   FAKE_MODE        compute mode (0)
//
// Kernels are known by name: `probe_f32` and `probe_bf16` (kernels/probe.cu), `add_one` (u64 address, u64 n: adds 1 to n bytes), `trap`
// (illegal address). All others exist and do nothing, except names that begin with `absent`.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };
typedef int R;
typedef uint64_t Ptr;

static long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}

// What lives, for the tests to ask: contexts, streams, events, pools, pinned buffers, modules, allocations, graphs (both forms);
// and counters.
static struct { long contexts, streams, events, pools, pinned, modules, allocations, graphs, trims, launches, copies, attributes; } live;
long fake_live(const char* what) {
#define ASK(field) if (!strcmp(what, #field)) return live.field;
    ASK(contexts) ASK(streams) ASK(events) ASK(pools) ASK(pinned) ASK(modules) ASK(allocations) ASK(graphs)
    ASK(trims) ASK(launches) ASK(copies) ASK(attributes)
    return -1;
}

static int initialised;
static R sticky;                 // set by a kernel that fails; every later call reports it
static __thread void* stack[8];  // the thread's contexts
static __thread int depth;
static char primary[16];

#define NEEDS_CONTEXT if (!depth || !stack[depth - 1]) return INVALID_CONTEXT; if (sticky) return sticky;

// --- memory ----------------------------------------------------------------------------------------------------------
#define PIECES 4096
static struct { char* at; size_t bytes; int state; } piece[PIECES]; // state 0: no piece, 1: used, 2: kept by the pool
static size_t reserved;

static int inside(Ptr at, size_t bytes) {
    for (int i = 0; i < PIECES; i++)
        if (piece[i].state == 1 && at >= (Ptr)piece[i].at && at + bytes <= (Ptr)piece[i].at + piece[i].bytes) return 1;
    return 0;
}
static R take(Ptr* out, size_t bytes) {
    int free_slot = -1;
    for (int i = 0; i < PIECES; i++) {
        if (piece[i].state == 2 && piece[i].bytes == bytes) {
            piece[i].state = 1, *out = (Ptr)piece[i].at, live.allocations++;
            return OK;
        }
        if (!piece[i].state && free_slot < 0) free_slot = i;
    }
    if (free_slot < 0 || reserved + bytes > (size_t)setting("FAKE_MEMORY", 64 << 20)) return OUT_OF_MEMORY;
    piece[free_slot].at = aligned_alloc(512, (bytes + 511) / 512 * 512);
    memset(piece[free_slot].at, 0xa5, bytes);
    piece[free_slot].bytes = bytes, piece[free_slot].state = 1, reserved += bytes, live.allocations++;
    *out = (Ptr)piece[free_slot].at;
    return OK;
}
static R give(Ptr at, int keep) {
    for (int i = 0; i < PIECES; i++)
        if (piece[i].state == 1 && (Ptr)piece[i].at == at) {
            live.allocations--;
            memset(piece[i].at, 0x5a, piece[i].bytes);
            if (keep) piece[i].state = 2;
            else free(piece[i].at), reserved -= piece[i].bytes, piece[i].state = 0;
            return OK;
        }
    return INVALID_VALUE;
}

// --- the queue -------------------------------------------------------------------------------------------------------
typedef struct { int kind; Ptr a, b; size_t n; char name[64]; unsigned char args[256]; } Work;
enum { COPY, FILL, FREE, KERNEL };
static Work* queue;
static size_t queued, done, room;
// What a stream that captures got instead of the queue.
typedef struct { Work* work; size_t count; } Graph;
static void* capturing;
static Graph* captured;
static void push(void* stream, Work w) {
    if (capturing && stream == capturing) {
        captured->work = realloc(captured->work, (captured->count + 1) * sizeof w);
        captured->work[captured->count++] = w;
        return;
    }
    if (queued == room) queue = realloc(queue, (room = room ? 2 * room : 64) * sizeof *queue);
    queue[queued++] = w;
}
static float number(const void* at, int bf16) {
    uint32_t bits;
    float value;
    if (bf16) bits = (uint32_t)*(const uint16_t*)at << 16;
    else memcpy(&bits, at, 4);
    memcpy(&value, &bits, 4);
    return value;
}
static void probe(Work* w, int bf16) {
    struct { Ptr x, y; struct { uint32_t rank, pad; uint64_t size[8]; } dims; int64_t by[8]; uint64_t n; float a; } p;
    memcpy(&p, w->args, sizeof p);
    size_t bytes = bf16 ? 2 : 4;
    for (uint64_t i = 0; i < p.n && !sticky; i++) {
        uint64_t rest = i, from = 0;
        for (uint32_t d = p.dims.rank; d-- > 0; rest /= p.dims.size[d]) from += (rest % p.dims.size[d]) * p.by[d];
        if (!inside(p.x + from * bytes, bytes) || !inside(p.y + i * bytes, bytes)) { sticky = ILLEGAL_ADDRESS; return; }
        float y = p.a * number((void*)(p.x + from * bytes), bf16);
        uint32_t bits;
        if (i == 500 && setting("FAKE_WRONG", 0)) y++;
        memcpy(&bits, &y, 4);
        if (bf16) *(uint16_t*)(p.y + i * bytes) = bits >> 16;
        else *(uint32_t*)(p.y + i * bytes) = bits;
    }
}
static void kernel(Work* w) {
    Ptr at, bytes;
    if (!strncmp(w->name, "trap", 4)) sticky = ILLEGAL_ADDRESS;
    if (!strcmp(w->name, "add_one")) {
        memcpy(&at, w->args, 8), memcpy(&bytes, w->args + 8, 8);
        if (!inside(at, bytes)) sticky = ILLEGAL_ADDRESS;
        else for (Ptr i = 0; i < bytes; i++) ((unsigned char*)at)[i]++;
    }
    if (!strncmp(w->name, "probe_", 6)) probe(w, !strcmp(w->name, "probe_bf16"));
}
static void run(size_t until) {
    while (done < until && !sticky) {
        Work* w = &queue[done++];
        int device_a = w->kind == FILL || inside(w->a, w->n), device_b = w->kind == FILL || inside(w->b, w->n);
        switch (w->kind) {
        case COPY:
            if (!device_a && !device_b) sticky = ILLEGAL_ADDRESS;
            else memcpy((void*)w->a, (void*)w->b, w->n);
            break;
        case FILL:
            if (!inside(w->a, w->n)) sticky = ILLEGAL_ADDRESS;
            else memset((void*)w->a, (int)w->b, w->n);
            break;
        case FREE: give(w->a, 1); break;
        case KERNEL: kernel(w); break;
        }
    }
}

// --- the driver ------------------------------------------------------------------------------------------------------
R cuDriverGetVersion(int* v) { *v = (int)setting("FAKE_VERSION", 13000); return OK; }
R cuInit(unsigned flags) { (void)flags; initialised = 1; return (R)setting("FAKE_INIT", 0); }
R cuGetErrorString(R code, const char** text) {
    *text = code == NO_DEVICE ? "no CUDA-capable device is detected" :
            code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" :
            code == 222 ? "the provided PTX was compiled with an unsupported toolchain." : "some error";
    return OK;
}
R cuDeviceGetCount(int* n) { if (!initialised) return 3; *n = (int)setting("FAKE_DEVICES", 1); return OK; }
R cuDeviceGet(int* d, int i) { *d = i; return i < setting("FAKE_DEVICES", 1) ? OK : INVALID_DEVICE; }
R cuDeviceGetName(char* name, int n, int d) { snprintf(name, n, "Fake GPU %d", d); return OK; }
R cuDeviceGetPCIBusId(char* id, int n, int d) { snprintf(id, n, "0000:%02x:00.0", d + 1); return OK; }
R cuDeviceTotalMem_v2(size_t* n, int d) { (void)d; *n = setting("FAKE_MEMORY", 64 << 20); return OK; }
R cuDeviceGetAttribute(int* v, int what, int d) {
    (void)d;
    long capability = setting("FAKE_CAPABILITY", 90);
    *v = what == 75 ? (int)capability / 10 : what == 76 ? (int)capability % 10 : what == 16 ? 132 : what == 97 ? 232448 : what == 20 ? (int)setting("FAKE_MODE", 0) :
         what == 115 ? (int)setting("FAKE_POOLS", 1) : 0;
    return OK;
}
R cuDevicePrimaryCtxRetain(void** c, int d) {
    (void)d;
    R code = (R)setting("FAKE_RETAIN", 0);
    if (!code) *c = primary, live.contexts++;
    return code;
}
R cuDevicePrimaryCtxRelease_v2(int d) { (void)d; live.contexts--; return OK; }
R cuCtxGetCurrent(void** c) { *c = depth ? stack[depth - 1] : NULL; return OK; }
R cuCtxSetCurrent(void* c) { if (!depth) depth = 1; stack[depth - 1] = c; return OK; }
R cuCtxPushCurrent_v2(void* c) { stack[depth++] = c; return OK; }
R cuCtxPopCurrent_v2(void** c) { *c = stack[--depth]; return OK; }
R cuMemGetInfo_v2(size_t* f, size_t* t) {
    NEEDS_CONTEXT
    *t = setting("FAKE_MEMORY", 64 << 20), *f = *t - reserved;
    return OK;
}
R cuStreamCreate(void** s, unsigned flags) { NEEDS_CONTEXT *s = malloc(1); live.streams++; return flags == 1 ? OK : INVALID_VALUE; }
R cuStreamDestroy_v2(void* s) { if (s == capturing) return 901; free(s); live.streams--; return OK; }
R cuStreamSynchronize(void* s) { (void)s; NEEDS_CONTEXT run(queued); return sticky; }
R cuEventCreate(void** e, unsigned flags) { NEEDS_CONTEXT (void)flags; *e = calloc(1, 8); live.events++; return OK; }
R cuEventRecord(size_t* e, void* s) { (void)s; NEEDS_CONTEXT *e = queued; return OK; }
R cuEventSynchronize(size_t* e) { NEEDS_CONTEXT run(*e); return sticky; }
R cuEventElapsedTime(float* ms, size_t* a, size_t* b) { NEEDS_CONTEXT *ms = (float)(*b - *a); return OK; }
R cuEventDestroy_v2(void* e) { free(e); live.events--; return OK; }
R cuMemPoolCreate(void** p, const int* props) { NEEDS_CONTEXT *p = &live.pools; live.pools++; return props[0] == 1 && props[2] == 1 ? OK : INVALID_VALUE; }
R cuMemPoolSetAttribute(void* p, int what, uint64_t* v) { (void)p; return what == 4 && *v == UINT64_MAX ? OK : INVALID_VALUE; }
R cuMemPoolTrimTo(void* p, size_t keep) {
    (void)p, (void)keep;
    NEEDS_CONTEXT
    live.trims++;
    for (int i = 0; i < PIECES; i++)
        if (piece[i].state == 2) free(piece[i].at), reserved -= piece[i].bytes, piece[i].state = 0;
    return OK;
}
R cuMemPoolDestroy(void* p) { (void)p; live.pools--; return OK; }
R cuMemAllocFromPoolAsync(Ptr* at, size_t n, void* p, void* s) { (void)p, (void)s; NEEDS_CONTEXT return take(at, n); }
R cuMemAlloc_v2(Ptr* at, size_t n) { NEEDS_CONTEXT return take(at, n); }
R cuMemFree_v2(Ptr at) { NEEDS_CONTEXT return done == queued ? give(at, 0) : INVALID_VALUE; }
R cuMemFreeAsync(Ptr at, void* s) { NEEDS_CONTEXT push(s, (Work){FREE, at, 0, 0, "", {0}}); return OK; }
R cuMemHostAlloc(void** p, size_t n, unsigned flags) { NEEDS_CONTEXT (void)flags; *p = malloc(n); live.pinned++; return OK; }
R cuMemFreeHost(void* p) { free(p); live.pinned--; return OK; }
R cuMemcpyHtoDAsync_v2(Ptr to, const void* from, size_t n, void* s) { NEEDS_CONTEXT live.copies++; push(s, (Work){COPY, to, (Ptr)from, n, "", {0}}); return OK; }
R cuMemcpyDtoHAsync_v2(void* to, Ptr from, size_t n, void* s) { NEEDS_CONTEXT live.copies++; push(s, (Work){COPY, (Ptr)to, from, n, "", {0}}); return OK; }
R cuMemcpyDtoDAsync_v2(Ptr to, Ptr from, size_t n, void* s) { NEEDS_CONTEXT push(s, (Work){COPY, to, from, n, "", {0}}); return OK; }
R cuMemsetD8Async(Ptr to, unsigned char v, size_t n, void* s) { NEEDS_CONTEXT push(s, (Work){FILL, to, v, n, "", {0}}); return OK; }
R cuModuleLoadDataEx(void** m, const void* image, unsigned n, int* options, void** values) {
    NEEDS_CONTEXT
    if (*(const uint32_t*)image != 0xba55ed50) return 200;
    R code = (R)setting("FAKE_JIT", 0);
    for (unsigned i = 0; code && i < n; i++)
        if (options[i] == 5) snprintf(values[i], (size_t)values[i + 1], "ptxas fatal: the fake driver wants no kernels");
    if (!code) *m = &live.modules, live.modules++;
    return code;
}
R cuModuleUnload(void* m) { (void)m; live.modules--; return OK; }
R cuModuleGetFunction(char** f, void* m, const char* name) {
    (void)m;
    NEEDS_CONTEXT
    if (!strncmp(name, "absent", 6)) return NOT_FOUND;
    *f = strdup(name);
    return OK;
}
R cuFuncGetAttribute(int* v, int what, const char* f) { *v = what == 0 ? (strncmp(f, "small", 5) ? 1024 : 64) : what == 1 ? 1024 : 0; return OK; }
R cuFuncSetAttribute(const char* f, int what, int v) { (void)f, (void)v; live.attributes++; return what == 8 ? OK : INVALID_VALUE; }
static size_t arguments(const char* f) { return strncmp(f, "probe_", 6) ? 16 : 168; }
#ifndef OLD_DRIVER
R cuFuncGetParamInfo(const char* f, size_t i, size_t* offset, size_t* size) {
    *offset = 0, *size = arguments(f);
    return i ? INVALID_VALUE : OK;
}
R cuTensorMapEncodeTiled(uint64_t* map, int type, unsigned rank, void* at, const uint64_t* dim, const uint64_t* stride,
                         const unsigned* box, const unsigned* step, int interleave, int swizzle, int l2, int fill) {
    if (rank != 2 || (Ptr)at % 16 || *stride % 16 || step[0] != 1 || step[1] != 1 || interleave || fill || l2 != 3) return INVALID_VALUE;
    uint64_t words[16] = {(Ptr)at, dim[0], dim[1], *stride, box[0], box[1], (uint64_t)type, (uint64_t)swizzle};
    memcpy(map, words, sizeof words);
    return OK;
}
#endif
R cuLaunchKernel(const char* f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                 void* s, void** params, void** extra) {
    (void)extra, (void)shared;
    NEEDS_CONTEXT
    if (!x || !y || !z || y > 65535 || z > 65535 || bx * by * bz > 1024) return INVALID_VALUE;
    Work w = {KERNEL, 0, 0, 0, "", {0}};
    snprintf(w.name, sizeof w.name, "%s", f);
    if (params) memcpy(w.args, params[0], arguments(f));
    live.launches++;
    push(s, w);
    return OK;
}

// --- graphs ----------------------------------------------------------------------------------------------------------
R cuStreamBeginCapture_v2(void* s, int mode) {
    NEEDS_CONTEXT
    if (capturing || mode != 1) return INVALID_VALUE;
    capturing = s, captured = calloc(1, sizeof *captured), live.graphs++;
    return OK;
}
R cuStreamEndCapture(void* s, Graph** g) {
    NEEDS_CONTEXT
    if (s != capturing) return INVALID_VALUE;
    *g = captured, capturing = NULL;
    return OK;
}
R cuGraphInstantiateWithFlags(Graph** e, const Graph* g, unsigned long long flags) {
    NEEDS_CONTEXT
    *e = malloc(sizeof **e), **e = *g, live.graphs++;
    (*e)->work = malloc(g->count * sizeof *g->work);
    memcpy((*e)->work, g->work, g->count * sizeof *g->work);
    return flags ? INVALID_VALUE : OK;
}
R cuGraphLaunch(Graph* e, void* s) {
    NEEDS_CONTEXT
    for (size_t i = 0; i < e->count; i++) push(s, e->work[i]);
    return OK;
}
R cuGraphDestroy(Graph* g) { free(g->work), free(g), live.graphs--; return OK; }
R cuGraphExecDestroy(Graph* e) { if (done != queued) return INVALID_VALUE; return cuGraphDestroy(e); }
