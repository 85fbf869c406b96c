#include <string.h>

#include "common/kernels/kernels.h"
#include "common/kernels/ref/ref.h"
#ifdef BT_HAVE_X86_KERNELS
#include "common/kernels/x86/x86.h"
#endif

struct candidate {
    const char *name;
    const struct bt_kernels *kernels; /* NULL: this build has it not */
    const char *(*missing)(void);     /* NULL, or the feature this CPU lacks */
};

static const char *nothing_missing(void)
{
    return NULL;
}

#ifdef BT_HAVE_X86_KERNELS
#define X86(variant) &bt_kernels_##variant, bt_x86_missing_##variant
#else
#define X86(variant) NULL, nothing_missing
#endif

/* Best first. */
static const struct candidate candidates[] = {
    {"amx", X86(amx)},   {"avx512_bf16", X86(avx512_bf16)},         {"avx512", X86(avx512)},
    {"avx2", X86(avx2)}, {"ref", &bt_kernels_ref, nothing_missing},
};
#define CANDIDATE_COUNT (sizeof(candidates) / sizeof(candidates[0]))

static bool is_available(const struct candidate *candidate)
{
    return candidate->kernels && !candidate->missing();
}

static enum bt_status refuse(const struct candidate *candidate, struct bt_error *error)
{
    if (!candidate->kernels)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "kernels %s: not in this build",
                            candidate->name);
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "kernels %s: this cpu lacks %s", candidate->name,
                        candidate->missing());
}

enum bt_status bt_kernels_select(const char *name, struct bt_error *error,
                                 const struct bt_kernels **ret_kernels)
{
    bool any = strcmp(name, "auto") == 0;
    for (size_t i = 0; i < CANDIDATE_COUNT; i++) {
        const struct candidate *candidate = &candidates[i];
        if (!any && strcmp(name, candidate->name) != 0)
            continue;
        if (is_available(candidate)) {
            *ret_kernels = candidate->kernels;
            return BT_OK;
        }
        if (!any)
            return refuse(candidate, error);
    }
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "kernels %s: unknown name (auto, amx, avx512_bf16, avx512, avx2, ref)",
                        name);
}

const char *const *bt_kernels_available(void)
{
    static _Thread_local const char *names[CANDIDATE_COUNT + 1];
    size_t count = 0;
    for (size_t i = 0; i < CANDIDATE_COUNT; i++) {
        if (is_available(&candidates[i]))
            names[count++] = candidates[i].name;
    }
    names[count] = NULL;
    return names;
}
