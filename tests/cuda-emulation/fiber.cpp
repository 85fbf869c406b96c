#include "tests/cuda-emulation/fiber.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)

extern "C" void emulation_fiber_switch(void **kept, void *to) __attribute__((visibility("hidden")));

/* Callee-saved registers are on the stack of who is not running. */
asm(R"(
    .text
    .globl emulation_fiber_switch
    .hidden emulation_fiber_switch
    .type emulation_fiber_switch, @function
    .p2align 4
emulation_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulation_fiber_switch, . - emulation_fiber_switch
)");

namespace emulation {

void fiber_switch(void **kept, void *to)
{
    emulation_fiber_switch(kept, to);
}

void *fiber_make(unsigned char *end, size_t, void (*entry)(), void **)
{
    uintptr_t top = reinterpret_cast<uintptr_t>(end) / 16 * 16;
    void **stack = reinterpret_cast<void **>(top) - 8;
    memset(stack, 0, 8 * sizeof(void *));
    stack[6] = reinterpret_cast<void *>(entry); /* where `ret` goes; above it no return address */
    return stack;
}

} // namespace emulation

#else

#include <ucontext.h>

namespace emulation {

/* The kept pointer is that of a context, which `slot` owns for good. */
void fiber_switch(void **kept, void *to)
{
    if (*kept == nullptr)
        *kept = new ucontext_t();
    swapcontext(static_cast<ucontext_t *>(*kept), static_cast<const ucontext_t *>(to));
}

void *fiber_make(unsigned char *end, size_t bytes, void (*entry)(), void **slot)
{
    if (*slot == nullptr)
        *slot = new ucontext_t();
    ucontext_t *context = static_cast<ucontext_t *>(*slot);
    getcontext(context);
    context->uc_stack.ss_sp = end - bytes;
    context->uc_stack.ss_size = bytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

} // namespace emulation

#endif
