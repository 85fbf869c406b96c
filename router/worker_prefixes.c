#include "router/worker_prefixes.h"

#include <inttypes.h>
#include <stdlib.h>

#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/registration.h"

#define MAX_BLOCKS        (UINT32_C(1) << 22)
#define MAX_WORKER_BLOCKS (UINT32_C(1) << 18)

struct rt_worker_prefixes {
    struct rt_prefix_map *map;
    struct bt_prefix_change changes[BT_REGISTRATION_MAX_PREFIXES];
    /* Of one prompt. */
    struct bt_prefix_hash *hashes; /* [capacity] */
    uint64_t *blocks;              /* likewise */
    uint32_t capacity;

    uint64_t refused, queried_tokens, found_tokens;
};

struct rt_worker_prefixes *rt_worker_prefixes_create(uint32_t max_blocks)
{
    struct rt_worker_prefixes *prefixes = calloc(1, sizeof(*prefixes));
    if (!prefixes) {
        return NULL;
    }
    uint32_t blocks = max_blocks > 0 ? max_blocks : MAX_BLOCKS;
    const struct rt_prefix_map_options options = {
        .max_workers = RT_PREFIX_MAX_WORKERS,
        .max_blocks = blocks,
        .max_worker_blocks = blocks < MAX_WORKER_BLOCKS ? blocks : MAX_WORKER_BLOCKS,
        .salt = bt_random_entropy(),
    };
    prefixes->map = rt_prefix_map_create(&options);
    if (!prefixes->map) {
        rt_worker_prefixes_destroy(prefixes);
        return NULL;
    }
    return prefixes;
}

void rt_worker_prefixes_destroy(struct rt_worker_prefixes *prefixes)
{
    if (!prefixes) {
        return;
    }
    rt_prefix_map_destroy(prefixes->map);
    free(prefixes->hashes);
    free(prefixes->blocks);
    free(prefixes);
}

/* ---- from workers */

static enum bt_status apply(struct rt_worker_prefixes *prefixes, rt_worker_ref worker,
                            const Baton__V1__PrefixSummary *summary, struct bt_error *error)
{
    size_t count = summary->n_page;
    if (summary->n_parent != count || summary->n_block != count ||
        count > BT_REGISTRATION_MAX_PREFIXES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prefix: %zu pages, %zu parents, %zu blocks, at most %d", count,
                            summary->n_parent, summary->n_block, BT_REGISTRATION_MAX_PREFIXES);
    }
    for (size_t i = 0; i < count; i++) {
        prefixes->changes[i] = (struct bt_prefix_change){
            .page = summary->page[i], .parent = summary->parent[i], .block = summary->block[i]};
    }
    const struct rt_prefix_summary checked = {
        .since = summary->since,
        .version = summary->version,
        .changes = prefixes->changes,
        .count = (uint32_t)count,
    };
    return rt_prefix_map_apply(prefixes->map, worker, &checked, error);
}

uint64_t rt_worker_prefixes_hear(struct rt_worker_prefixes *prefixes, rt_worker_ref worker,
                                 const Baton__V1__PrefixSummary *summary)
{
    struct bt_error error;
    if (summary && apply(prefixes, worker, summary, &error) == BT_ERR_INVALID_ARGUMENT) {
        bt_log_debug(0, "a worker's summary is refused: %s", error.text);
        prefixes->refused++;
        rt_prefix_map_forget(prefixes->map, worker);
    }
    return rt_prefix_map_version(prefixes->map, worker);
}

void rt_worker_prefixes_forget(struct rt_worker_prefixes *prefixes, rt_worker_ref worker)
{
    rt_prefix_map_forget(prefixes->map, worker);
}

/* ---- for prompts */

static bool has_room(struct rt_worker_prefixes *prefixes, uint32_t count)
{
    if (count <= prefixes->capacity) {
        return true;
    }
    struct bt_prefix_hash *hashes = realloc(prefixes->hashes, count * sizeof(*hashes));
    prefixes->hashes = hashes ? hashes : prefixes->hashes;
    uint64_t *blocks = realloc(prefixes->blocks, count * sizeof(*blocks));
    prefixes->blocks = blocks ? blocks : prefixes->blocks;
    if (!hashes || !blocks) {
        return false;
    }
    prefixes->capacity = count;
    return true;
}

/* Not of the last token, which is always computed. */
static uint32_t hash_blocks(struct rt_worker_prefixes *prefixes,
                            const struct bt_fingerprint *fingerprint, const uint32_t *prompt,
                            uint32_t prompt_tokens)
{
    struct rt_prefix_map_view view;
    rt_prefix_map_look(prefixes->map, &view);
    if (view.blocks == 0 || !has_room(prefixes, prompt_tokens / BT_PAGE_TOKENS)) {
        return 0;
    }
    uint32_t count = bt_prefix_hash_prompt(bt_prefix_hash_start(fingerprint), prompt,
                                           prompt_tokens - 1, prefixes->hashes);
    for (uint32_t i = 0; i < count; i++) {
        prefixes->blocks[i] = bt_prefix_block_id(prefixes->hashes[i]);
    }
    return count;
}

uint32_t rt_worker_prefixes_find(struct rt_worker_prefixes *prefixes,
                                 const struct bt_fingerprint *fingerprint, const uint32_t *prompt,
                                 uint32_t prompt_tokens, uint32_t spread,
                                 struct rt_cached *ret_cached)
{
    uint32_t count = 0, blocks = hash_blocks(prefixes, fingerprint, prompt, prompt_tokens);
    if (blocks > 0) {
        count = rt_prefix_map_lookup(prefixes->map, prefixes->blocks, blocks, spread, RT_CACHED_MAX,
                                     ret_cached);
    }
    prefixes->queried_tokens += prompt_tokens;
    prefixes->found_tokens += count > 0 ? ret_cached[0].tokens : 0;
    return count;
}

static void render(FILE *out, const char *name, const char *type, const char *help, uint64_t value)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n%s %" PRIu64 "\n", name, help, name, type, name,
            value);
}

void rt_worker_prefixes_render(const struct rt_worker_prefixes *prefixes, FILE *out)
{
    struct rt_prefix_map_view map;
    rt_prefix_map_look(prefixes->map, &map);
    render(out, "baton_router_prefix_blocks", "gauge",
           "Blocks of 64 tokens that prefill workers are known to keep.", map.blocks);
    render(out, "baton_router_prefix_bytes", "gauge", "Memory for that.", map.bytes);
    render(out, "baton_router_prefix_forgotten_total", "counter",
           "Blocks that were forgotten for want of room.", map.forgotten);
    render(out, "baton_router_prefix_summaries_refused_total", "counter",
           "Summaries of workers that could not be.", prefixes->refused);
    render(out, "baton_router_prefix_queries_total", "counter",
           "Prompt tokens for which a worker was looked for.", prefixes->queried_tokens);
    render(out, "baton_router_prefix_hits_total", "counter",
           "Of them, those that the best worker has.", prefixes->found_tokens);
}
