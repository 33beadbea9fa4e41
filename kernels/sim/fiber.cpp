// fiber.cpp: see fiber.h. Registers that a call preserves are saved, nothing else: no signal mask, no floating-point mode.
#include "fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__APPLE__)
  #define SYMBOL "_sim_switch"
#else
  #define SYMBOL "sim_switch"
#endif

namespace sim {

#if defined(__x86_64__)
asm(".text\n.globl " SYMBOL "\n" SYMBOL ":\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void* first_frame(char* top, void (*body)()) {
    void** s = reinterpret_cast<void**>(top);
    *--s = nullptr;                                   // a return address for `body`, which never returns
    *--s = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--s = nullptr;
    return s;
}
#elif defined(__aarch64__)
asm(".text\n.globl " SYMBOL "\n" SYMBOL ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp, #0]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\n"
    "stp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp, #0]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\n"
    "ldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
static void* first_frame(char* top, void (*body)()) {
    void** s = reinterpret_cast<void**>(top) - 20;
    for (int i = 0; i < 20; ++i) s[i] = nullptr;
    s[11] = reinterpret_cast<void*>(body);            // x30, where `ret` goes
    return s;
}
#else
  #error "the kernel simulator has a stack switch for x86_64 and aarch64 only"
#endif

void Stacks::grow() {
    constexpr size_t COUNT = 64;
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), each = page + STACK_BYTES, bytes = COUNT * each;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        std::fprintf(stderr, "kernel simulator: no memory for stacks\n");
        std::abort();
    }
    mapped_.push_back({memory, bytes});
    for (size_t i = 0; i < COUNT; ++i) {
        char* guard = static_cast<char*>(memory) + i * each;
        mprotect(guard, page, PROT_NONE);
        auto stack = std::make_unique<Stack>();
        stack->low = guard + page;
        stack->top = stack->low + STACK_BYTES - (all_.size() % 61) * 64;
        all_.push_back(std::move(stack));
    }
    // The first ones are taken first.
    for (size_t i = all_.size(); i > all_.size() - COUNT; --i) free_.push_back(all_[i - 1].get());
}

Stack* Stacks::take(void (*body)()) {
    if (free_.empty()) grow();
    Stack* stack = free_.back();
    free_.pop_back();
    if (!stack->sp) stack->sp = first_frame(stack->top, body);
    return stack;
}

void Stacks::reset() {
    free_.clear();
    for (size_t i = all_.size(); i > 0; --i) {
        all_[i - 1]->sp = nullptr;
        free_.push_back(all_[i - 1].get());
    }
}

Stacks::~Stacks() {
    for (auto [memory, bytes] : mapped_) munmap(memory, bytes);
}

}  // namespace sim
