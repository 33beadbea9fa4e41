// fiber.h: stacks for CUDA threads, and the switch between them.
//
// Stacks are kept by the OS thread that made them and used again by its later launches: no system call a launch. A page
// that may not be touched lies below each, so that an overflow faults instead of writing into a neighbour.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

namespace sim {

constexpr size_t STACK_BYTES = 128 << 10;

struct Stack {
    char* low = nullptr;      // first byte that may be used
    char* top = nullptr;      // where the first frame starts; staggered, so that stacks do not share cache sets
    void* sp = nullptr;       // where to go on
};

class Stacks {
public:
    Stacks() = default;
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    // A stack that goes on in `body`, or where its last user gave it back.
    Stack* take(void (*body)());
    void give_back(Stack* stack) { free_.push_back(stack); }
    // Forgets what suspended threads were doing: all stacks are free and start anew.
    void reset();

private:
    void grow();
    std::vector<std::unique_ptr<Stack>> all_;
    std::vector<Stack*> free_;
    std::vector<std::pair<void*, size_t>> mapped_;
};

// Saves the callee's registers on this stack and its pointer in *save, then goes on at `load`.
extern "C" void sim_switch(void** save, void* load);

}  // namespace sim
