/* Faults, and how things are called in them. */
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda-emulation/run.h"

namespace emulation {

std::string thread_name(const Run *run, unsigned thread)
{
    char text[96];
    unsigned first = thread >= kThreads ? (thread - kThreads) * kGroupThreads : thread;
    if (thread >= kThreads + kGroups)
        return "a bulk copy";
    unsigned rank = first / run->block_threads, in = first % run->block_threads;
    if (thread >= kThreads)
        snprintf(text, sizeof text, "wgmma of warpgroup %u", in / kGroupThreads);
    else
        snprintf(text, sizeof text, "thread %u (warp %u, lane %u)", in, in / kLanes, in % kLanes);
    return text + (run->cluster > 1 ? " of block " + std::to_string(rank) + " of the cluster" : "");
}

std::string place_name(Place place)
{
    if (place.file == nullptr)
        return "?";
    const char *slash = strrchr(place.file, '/');
    return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

std::string address_name(const Run *run, const void *address)
{
    const unsigned char *at = static_cast<const unsigned char *>(address);
    char text[256];
    if (in_shared_area(run, at))
        snprintf(text, sizeof text, "shared memory + %td (of %zu bytes)",
                 at - run->shared - (run->now ? run->now->shared_at : 0), run->grid->shared_bytes);
    else if (at >= run->stacks && at < run->stacks + kThreads * kStackBytes)
        snprintf(text, sizeof text, "local memory of thread %zu",
                 static_cast<size_t>(at - run->stacks) / kStackBytes);
    else
        return nearest_allocation(address);
    return text;
}

/* The kernel's name out of the text of its launch's arguments: up to the first comma that is not
 * in brackets. */
static std::string kernel_name(const char *text)
{
    int depth = 0;
    size_t length = 0;
    for (; text[length] != '\0'; length++) {
        char c = text[length];
        depth += (c == '<' || c == '(') - (c == '>' || c == ')');
        if (c == ',' && depth == 0)
            break;
    }
    return std::string(text, length);
}

void fault(Run *run, const char *format, ...)
{
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char head[256];
    uint3 block = run->block[run->now ? run->now->rank : 0].index;
    snprintf(head, sizeof head, "kernel %s, block (%u, %u, %u)",
             kernel_name(run->grid->name).c_str(), block.x, block.y, block.z);
    run->fault_text = std::string(head) + ": " + text;
    if (run->handler)
        abandon(run);
    fprintf(stderr, "\n==== emulated grid: fault ====\n%s\n    by thread %u; seed %llu\n====\n",
            run->fault_text.c_str(), run->now ? run->now->number : 0,
            static_cast<unsigned long long>(run->seed));
    fflush(stderr);
    abort();
}

} // namespace emulation
