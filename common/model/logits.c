#include "common/model/logits.h"

#include <stddef.h>

#include "common/model/logits_lanes.h"

const struct bt_logits_passes *const *bt_logits_passes_available(void)
{
    static const struct bt_logits_passes *const plain[] = {&bt_logits_plain, NULL};
#ifdef BT_HAVE_X86_KERNELS
    static const struct bt_logits_passes *const avx2[] = {&bt_logits_avx2, &bt_logits_plain, NULL};
    static const struct bt_logits_passes *const avx512[] = {&bt_logits_avx512, &bt_logits_avx2,
                                                            &bt_logits_plain, NULL};
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return avx512;
    if (__builtin_cpu_supports("avx2"))
        return avx2;
#endif
    return plain;
}

const struct bt_logits_passes *bt_logits_passes(void)
{
    return bt_logits_passes_available()[0];
}
