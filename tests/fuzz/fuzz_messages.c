/*
 * What workers tell the router beside tokens: the first byte says which message the rest is.
 * Summaries of prefixes and lists of orphans are taken or not, what was known before can be
 * forgotten, and what is found afterwards is what somebody said.
 */
#include <stdlib.h>

#include "common/base/status.h"
#include "router/orphans.h"
#include "router/worker_prefixes.h"
#include "tests/fuzz/driver.h"

static struct rt_worker_prefixes *prefixes;
static struct rt_orphans *orphans;

static void load(void)
{
    if (prefixes)
        return;
    prefixes = rt_worker_prefixes_create(1000);
    orphans = rt_orphans_create();
    BT_ASSERT(prefixes && orphans);
}

static void prefixes_try(const uint8_t *data, size_t size)
{
    static rt_worker_ref turn;
    static uint32_t words[640];
    struct rt_cached cached[RT_CACHED_MAX];
    struct bt_fingerprint fingerprint = {.layout_version = 1};
    Baton__V1__PrefixSummary *summary = baton__v1__prefix_summary__unpack(NULL, size, data);
    rt_worker_ref ref = turn++ % 3;
    if (!summary)
        return;
    uint64_t before = rt_worker_prefixes_hear(prefixes, ref, NULL);
    uint64_t after = rt_worker_prefixes_hear(prefixes, ref, summary);
    BT_ASSERT(after == before || after == 0 || after == summary->version);
    BT_ASSERT(rt_worker_prefixes_find(prefixes, &fingerprint, words, 640, turn, cached) <=
              RT_CACHED_MAX);
    if (turn % 7 == 0)
        rt_worker_prefixes_forget(prefixes, ref);
    baton__v1__prefix_summary__free_unpacked(summary, NULL);
}

static void orphans_try(const uint8_t *data, size_t size)
{
    static rt_worker_ref turn;
    Baton__V1__HeartbeatRequest *beat = baton__v1__heartbeat_request__unpack(NULL, size, data);
    rt_worker_ref ref = turn++ % 3;
    if (!beat)
        return;
    rt_orphans_forget(orphans, ref);
    size_t others = rt_orphans_count(orphans), found = 0;
    rt_orphans_hear(orphans, ref, beat->orphans, beat->n_orphans);
    BT_ASSERT(rt_orphans_count(orphans) <= others + beat->n_orphans);
    for (size_t i = 0; i < beat->n_orphans; i++) {
        const struct rt_orphan *orphan = rt_orphans_find(orphans, beat->orphans[i]->request_id);
        for (; orphan; orphan = orphan->same_next, found++)
            BT_ASSERT(orphan->request == beat->orphans[i]->request_id && orphan->epoch != 0);
    }
    if (found == 0)
        BT_ASSERT(rt_orphans_count(orphans) == others);
    baton__v1__heartbeat_request__free_unpacked(beat, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    load();
    if (size == 0)
        return 0;
    if (data[0] % 2 == 0)
        prefixes_try(data + 1, size - 1);
    else
        orphans_try(data + 1, size - 1);
    return 0;
}

static size_t seed_prefixes(uint8_t *ret_data)
{
    uint32_t page[] = {0, 1, 2}, parent[] = {UINT32_MAX, 0, 1};
    uint64_t block[] = {11, 12, 0};
    Baton__V1__PrefixSummary summary = BATON__V1__PREFIX_SUMMARY__INIT;
    summary.version = 3;
    summary.n_page = summary.n_parent = summary.n_block = 3;
    summary.page = page;
    summary.parent = parent;
    summary.block = block;
    return baton__v1__prefix_summary__pack(&summary, ret_data);
}

static size_t seed_orphans(uint8_t *ret_data)
{
    uint8_t key[RT_DIGEST_BYTES] = {1, 2, 3};
    Baton__V1__Orphan list[3], *pointers[3];
    for (uint32_t i = 0; i < 3; i++) {
        baton__v1__orphan__init(&list[i]);
        list[i].request_id = list[i].epoch = 1 + i / 2;
        list[i].resume_key = (ProtobufCBinaryData){sizeof key, key};
        pointers[i] = &list[i];
    }
    Baton__V1__HeartbeatRequest beat = BATON__V1__HEARTBEAT_REQUEST__INIT;
    beat.n_orphans = 3;
    beat.orphans = pointers;
    return baton__v1__heartbeat_request__pack(&beat, ret_data);
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    static size_t (*const makers[])(uint8_t *) = {seed_prefixes, seed_orphans};
    BT_ASSERT(capacity >= 1024);
    if (index >= 2)
        return 0;
    ret_data[0] = (uint8_t)('0' + index); /* has the same remainder by 2 */
    return 1 + makers[index](ret_data + 1);
}
