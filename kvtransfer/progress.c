#include "kvtransfer/progress.h"

#include <string.h>

_Static_assert(sizeof(struct kvt_progress) <= KVT_PROGRESS_SLOT_BYTES, "a slot holds it");
_Static_assert(sizeof(struct kvt_progress) % sizeof(uint64_t) == 0, "it is read by words");

uint64_t kvt_progress_offset(const struct bt_kv_layout *layout, uint32_t pool_pages, uint32_t page)
{
    return bt_kv_pool_bytes(layout, pool_pages) + (uint64_t)page * KVT_PROGRESS_SLOT_BYTES;
}

uint64_t kvt_progress_memory_bytes(const struct bt_kv_layout *layout, uint32_t pool_pages)
{
    return kvt_progress_offset(layout, pool_pages, pool_pages);
}

static uint64_t seal_of(const struct kvt_progress *progress)
{
    uint64_t seal = progress->epoch ^ UINT64_C(0x70726f6772657373);

    seal = (seal ^ progress->layers) * UINT64_C(0x9e3779b97f4a7c15);
    seal = (seal ^ seal >> 29 ^ progress->tokens_ahead) * UINT64_C(0x9e3779b97f4a7c15);
    seal = (seal ^ seal >> 29 ^ progress->tokens_behind) * UINT64_C(0x9e3779b97f4a7c15);
    seal = (seal ^ seal >> 29 ^ progress->shares) * UINT64_C(0x9e3779b97f4a7c15);
    return seal ^ seal >> 32;
}

void kvt_progress_seal(struct kvt_progress *progress)
{
    progress->seal = seal_of(progress);
}

/* Somebody may be writing: word by word, the seal tells whether they belong together. */
__attribute__((no_sanitize("thread"))) static void load(const void *slot,
                                                        struct kvt_progress *ret_progress)
{
    const uint64_t *words = slot;
    uint64_t copy[sizeof(*ret_progress) / sizeof(uint64_t)];

    for (size_t i = 0; i < sizeof(copy) / sizeof(copy[0]); i++)
        copy[i] = __atomic_load_n(&words[i], __ATOMIC_ACQUIRE);
    memcpy(ret_progress, copy, sizeof(copy));
}

bool kvt_progress_read(const void *slot, uint64_t epoch, uint32_t layers, uint32_t tokens,
                       struct kvt_progress *ret_progress)
{
    struct kvt_progress progress;

    load(slot, &progress);
    if (progress.epoch != epoch || progress.seal != seal_of(&progress) ||
        progress.layers > layers || progress.tokens_ahead > tokens ||
        progress.tokens_behind > progress.tokens_ahead || progress.shares == 0 ||
        progress.shares > KVT_SHARES_MAX)
        return false;
    *ret_progress = progress;
    return true;
}
