/*
 * What C++ leaves undefined and the two machines do differently: misaligned accesses of whole
 * vectors, shifts by 32 and more, conversions of numbers that do not fit. Kernels are compiled with
 * these parts of -fsanitize=undefined; here are the functions that the compiler then calls. Code
 * outside of kernels, linked with this, is handed on to the sanitizer's library.
 */
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "tests/cuda-emulation/run.h"

namespace emulation {

struct Location {
    const char *file;
    uint32_t line, column;
};

/* Of the library, the function of this name. */
template <typename Function> static Function *library_function(const char *name)
{
    Function *function = reinterpret_cast<Function *>(dlsym(RTLD_DEFAULT, name));
    if (function == nullptr) {
        fprintf(stderr, "undefined behaviour outside of kernels, and there is no %s\n", name);
        abort();
    }
    return function;
}

template <typename... Arguments>
static void undefined(const char *name, const char *text, const void *data, Arguments... arguments)
{
    Run *run = current;
    const Location *at = static_cast<const Location *>(data);
    if (run == nullptr)
        return library_function<void(const void *, Arguments...)>(name)(data, arguments...);
    fault(run, "%s by %s (%s)", text, thread_name(run, run->now->number).c_str(),
          place_name({at->file, static_cast<int>(at->line)}).c_str());
}

} // namespace emulation

#pragma GCC visibility push(hidden)
extern "C" {
void __ubsan_handle_type_mismatch_v1(const void *data, void *at)
{
    emulation::undefined(__func__, "misaligned: an access", data, at);
}
void __ubsan_handle_shift_out_of_bounds(const void *data, void *left, void *right)
{
    emulation::undefined(__func__, "a shift by more bits than there are", data, left, right);
}
void __ubsan_handle_float_cast_overflow(const void *data, void *value)
{
    emulation::undefined(__func__, "a conversion of a number that does not fit", data, value);
}
}
#pragma GCC visibility pop
