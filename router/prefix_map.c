#include "router/prefix_map.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/kvcache/age_list.h"
#include "router/prefix_holders.h"

#define NONE        UINT32_MAX
#define MIN_PAGES   64
#define MAX_TWICE   64
#define WORDS_MAX   (RT_PREFIX_MAX_WORKERS / 64)
#define SHARE_PAGES 4 /* pages of all workers that can be told apart, for each of max_blocks */

/* A block of a worker. One whose page holds something else by now stays for its children's sake,
 * until these have gone, too. */
struct record {
    uint32_t block;  /* of holders; NONE: stays for its children only */
    uint32_t parent; /* record; NONE: the first of prompts, or none is known. Free: the next one */
    uint32_t children;
    uint32_t page;
};

struct worker {
    rt_worker_ref ref;
    uint32_t number; /* in holders */
    uint64_t version;
    uint32_t *pages; /* [page_count] record; NONE */
    uint32_t page_count;
    uint32_t record_count;
    struct bt_age_list leaves; /* records without children, by when they came */
    /* Records of blocks that another record of the worker holds already: a page's old block, until
     * the news comes that it went. */
    uint32_t twice[MAX_TWICE];
    uint32_t twice_count;
};

struct rt_prefix_map {
    struct rt_prefix_map_options options;
    struct rt_prefix_holders *holders;
    struct record *records;    /* [max_blocks] */
    struct bt_age_link *links; /* likewise */
    uint32_t touched;          /* records that were ever in use: the first ones */
    uint32_t free;             /* of these */
    uint32_t record_count;
    uint64_t page_count; /* of all workers */

    struct bt_map by_ref;
    struct worker **workers; /* [max_workers] by number; NULL: free */
    uint32_t worker_count;
    uint64_t forgotten, ignored;

    uint32_t *depths; /* [max_workers] blocks, of the last lookup */
};

struct rt_prefix_map *rt_prefix_map_create(const struct rt_prefix_map_options *options)
{
    BT_ASSERT(options->max_workers > 0 && options->max_workers <= RT_PREFIX_MAX_WORKERS);
    BT_ASSERT(options->max_blocks > 0 && options->max_worker_blocks > 0);
    struct rt_prefix_map *map = calloc(1, sizeof(*map));
    if (!map) {
        return NULL;
    }
    map->options = *options;
    map->free = NONE;
    bt_map_init(&map->by_ref);
    map->holders =
        rt_prefix_holders_create(options->max_blocks, options->max_workers, options->salt);
    map->records = calloc(options->max_blocks, sizeof(*map->records));
    map->links = calloc(options->max_blocks, sizeof(*map->links));
    map->workers = calloc(options->max_workers, sizeof(*map->workers));
    map->depths = calloc(options->max_workers, sizeof(*map->depths));
    if (!map->holders || !map->records || !map->links || !map->workers || !map->depths) {
        rt_prefix_map_destroy(map);
        return NULL;
    }
    return map;
}

static void worker_free(struct worker *worker)
{
    if (worker) {
        free(worker->pages);
        free(worker);
    }
}

void rt_prefix_map_destroy(struct rt_prefix_map *map)
{
    if (!map) {
        return;
    }
    for (uint32_t i = 0; map->workers && i < map->options.max_workers; i++) {
        worker_free(map->workers[i]);
    }
    rt_prefix_holders_destroy(map->holders);
    bt_map_finish(&map->by_ref);
    free(map->records);
    free(map->links);
    free(map->workers);
    free(map->depths);
    free(map);
}

/* ------------------------------------------------------------------ records */

static uint32_t record_new(struct rt_prefix_map *map, struct worker *worker)
{
    uint32_t record = map->free;
    if (record == NONE) {
        record = map->touched++;
    } else {
        map->free = map->records[record].parent;
    }
    map->record_count++;
    worker->record_count++;
    return record;
}

/* It gets a child. */
static void record_adopt(struct rt_prefix_map *map, struct worker *worker, uint32_t record)
{
    if (record != NONE && map->records[record].children++ == 0) {
        bt_age_list_remove(&worker->leaves, map->links, record);
    }
}

/* A child of it went: it may be the next to be forgotten, or nobody needs it any more. */
static void record_orphan(struct rt_prefix_map *map, struct worker *worker, uint32_t record)
{
    while (record != NONE && --map->records[record].children == 0) {
        struct record *it = &map->records[record];
        if (it->block != NONE) {
            bt_age_list_prepend(&worker->leaves, map->links, record);
            return;
        }
        uint32_t parent = it->parent;
        it->parent = map->free;
        map->free = record;
        map->record_count--;
        worker->record_count--;
        record = parent;
    }
}

/* True: the record, or another in its place, was one too many: the worker holds the block on. */
static bool take_twice(struct rt_prefix_map *map, struct worker *worker, uint32_t record)
{
    uint32_t block = map->records[record].block, place = NONE;
    for (uint32_t i = 0; i < worker->twice_count; i++) {
        if (worker->twice[i] == record) {
            place = i;
            break;
        }
        if (map->records[worker->twice[i]].block == block) {
            place = i;
        }
    }
    if (place != NONE) {
        worker->twice[place] = worker->twice[--worker->twice_count];
    }
    return place != NONE;
}

/* The page holds the block no more. */
static void record_drop(struct rt_prefix_map *map, struct worker *worker, uint32_t record)
{
    struct record *it = &map->records[record];
    worker->pages[it->page] = NONE;
    if (!take_twice(map, worker, record)) {
        rt_prefix_holders_remove(map->holders, it->block, worker->number);
    }
    rt_prefix_holders_release(map->holders, it->block);
    it->block = NONE;
    if (it->children == 0) {
        bt_age_list_remove(&worker->leaves, map->links, record);
        it->children = 1; /* undone at once, which frees it */
        record_orphan(map, worker, record);
    }
}

static bool forget_oldest(struct rt_prefix_map *map, struct worker *worker)
{
    if (worker->leaves.oldest == NONE) {
        return false;
    }
    record_drop(map, worker, worker->leaves.oldest);
    map->forgotten++;
    return true;
}

static struct worker *largest_worker(const struct rt_prefix_map *map)
{
    struct worker *largest = NULL;
    for (uint32_t i = 0; i < map->options.max_workers; i++) {
        struct worker *worker = map->workers[i];
        if (worker && (!largest || worker->record_count > largest->record_count)) {
            largest = worker;
        }
    }
    return largest;
}

/* Some at once, since it takes a look at all workers. */
static bool forget_some(struct rt_prefix_map *map)
{
    struct worker *worker = largest_worker(map);
    bool any = forget_oldest(map, worker);
    for (uint32_t i = 0; any && i < worker->record_count / 64; i++) {
        if (!forget_oldest(map, worker)) {
            break;
        }
    }
    return any;
}

static bool make_room(struct rt_prefix_map *map, struct worker *worker)
{
    bool any = true;
    while (any && worker->record_count >= map->options.max_worker_blocks) {
        any = forget_oldest(map, worker);
    }
    while (any && map->record_count >= map->options.max_blocks) {
        any = forget_some(map);
    }
    return any;
}

/* ------------------------------------------------------------------ summaries */

static uint32_t record_of(const struct worker *worker, uint32_t page)
{
    return page < worker->page_count ? worker->pages[page] : NONE;
}

static bool reach_page(struct rt_prefix_map *map, struct worker *worker, uint32_t page)
{
    uint32_t count = worker->page_count ? worker->page_count : MIN_PAGES;
    if (page < worker->page_count) {
        return true;
    }
    while (count <= page) {
        count *= 2;
    }
    uint64_t total = map->page_count - worker->page_count + count;
    if (total > (uint64_t)map->options.max_blocks * SHARE_PAGES +
                    (uint64_t)map->options.max_workers * MIN_PAGES) {
        return false;
    }
    uint32_t *pages = realloc(worker->pages, count * sizeof(*pages));
    if (!pages) {
        return false;
    }
    memset(&pages[worker->page_count], 0xff, (count - worker->page_count) * sizeof(*pages));
    worker->pages = pages;
    worker->page_count = count;
    map->page_count = total;
    return true;
}

/* The record's block becomes the worker's. */
static bool hold(struct rt_prefix_map *map, struct worker *worker, uint32_t record)
{
    uint32_t block = map->records[record].block;
    if (!rt_prefix_holders_has(map->holders, block, worker->number)) {
        return rt_prefix_holders_add(map->holders, block, worker->number);
    }
    if (worker->twice_count == MAX_TWICE) {
        return false;
    }
    worker->twice[worker->twice_count++] = record;
    return true;
}

/* Its parent has adopted it. False: there is no room. */
static bool record_add(struct rt_prefix_map *map, struct worker *worker,
                       const struct bt_prefix_change *change, uint32_t parent)
{
    if (!make_room(map, worker)) {
        return false;
    }
    uint32_t record = record_new(map, worker);
    struct record *it = &map->records[record];
    *it = (struct record){.block = rt_prefix_holders_use(map->holders, change->block),
                          .parent = parent,
                          .page = change->page};
    if (!hold(map, worker, record)) {
        rt_prefix_holders_release(map->holders, it->block);
        it->parent = map->free;
        map->free = record;
        map->record_count--;
        worker->record_count--;
        return false;
    }
    bt_age_list_append(&worker->leaves, map->links, record);
    worker->pages[change->page] = record;
    return true;
}

static void page_set(struct rt_prefix_map *map, struct worker *worker,
                     const struct bt_prefix_change *change)
{
    uint32_t parent = NONE;
    if (change->parent != BT_NO_PAGE) {
        parent = record_of(worker, change->parent);
        if (parent == NONE) {
            map->ignored++;
            return;
        }
    }
    if (!reach_page(map, worker, change->page)) {
        map->ignored++;
        return;
    }
    if (worker->pages[change->page] != NONE) {
        record_drop(map, worker, worker->pages[change->page]);
    }
    record_adopt(map, worker, parent);
    if (!record_add(map, worker, change, parent)) {
        record_orphan(map, worker, parent);
        map->ignored++;
    }
}

static void worker_clear(struct rt_prefix_map *map, struct worker *worker)
{
    for (uint32_t page = 0; page < worker->page_count; page++) {
        if (worker->pages[page] != NONE) {
            record_drop(map, worker, worker->pages[page]);
        }
    }
    BT_ASSERT(worker->record_count == 0 && worker->twice_count == 0);
}

static enum bt_status summary_check(const struct rt_prefix_summary *summary, struct bt_error *error)
{
    if (summary->version < summary->since ||
        (summary->count > 0 && summary->version == summary->since)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prefix.version is not after since");
    }
    for (uint32_t i = 0; i < summary->count; i++) {
        const struct bt_prefix_change *change = &summary->changes[i];
        if (change->page >= RT_PREFIX_MAX_PAGES) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prefix.page[%u] is not below %u",
                                i, RT_PREFIX_MAX_PAGES);
        }
        if (change->parent != BT_NO_PAGE &&
            (change->parent >= RT_PREFIX_MAX_PAGES || change->parent == change->page)) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prefix.parent[%u] can't be", i);
        }
    }
    return BT_OK;
}

static enum bt_status worker_add(struct rt_prefix_map *map, rt_worker_ref ref,
                                 struct bt_error *error, struct worker **ret_worker)
{
    uint32_t number = 0;
    while (number < map->options.max_workers && map->workers[number]) {
        number++;
    }
    if (number == map->options.max_workers) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "prefixes of %u workers are known already",
                            number);
    }
    struct worker *worker = calloc(1, sizeof(*worker));
    if (!worker || !bt_map_put(&map->by_ref, ref, worker)) {
        free(worker);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prefix map: no memory");
    }
    worker->ref = ref;
    worker->number = number;
    worker->leaves = BT_AGE_LIST_EMPTY;
    map->workers[number] = worker;
    map->depths[number] = 0;
    map->worker_count++;
    *ret_worker = worker;
    return BT_OK;
}

/* What goes, first: a block that moved to another page is not here twice then. */
static void changes_apply(struct rt_prefix_map *map, struct worker *worker,
                          const struct rt_prefix_summary *summary)
{
    for (uint32_t i = 0; i < summary->count; i++) {
        uint32_t record = record_of(worker, summary->changes[i].page);
        if (record != NONE) {
            record_drop(map, worker, record);
        }
    }
    for (uint32_t i = 0; i < summary->count; i++) {
        if (summary->changes[i].block != 0) {
            page_set(map, worker, &summary->changes[i]);
        }
    }
}

enum bt_status rt_prefix_map_apply(struct rt_prefix_map *map, rt_worker_ref ref,
                                   const struct rt_prefix_summary *summary, struct bt_error *error)
{
    enum bt_status status = summary_check(summary, error);
    if (status != BT_OK) {
        return status;
    }
    struct worker *worker = bt_map_get(&map->by_ref, ref);
    uint64_t version = worker ? worker->version : 0;
    if (summary->since != 0 && summary->since != version) {
        return bt_error_set(error, BT_ERR_STALE, "prefix.since is not what is known");
    }
    if (!worker) {
        status = worker_add(map, ref, error, &worker);
        if (status != BT_OK) {
            return status;
        }
    }
    if (summary->since == 0) {
        worker_clear(map, worker);
    }
    changes_apply(map, worker, summary);
    worker->version = summary->version;
    return BT_OK;
}

uint64_t rt_prefix_map_version(const struct rt_prefix_map *map, rt_worker_ref ref)
{
    const struct worker *worker = bt_map_get(&map->by_ref, ref);
    return worker ? worker->version : 0;
}

void rt_prefix_map_forget(struct rt_prefix_map *map, rt_worker_ref ref)
{
    struct worker *worker = bt_map_remove(&map->by_ref, ref);
    if (!worker) {
        return;
    }
    worker_clear(map, worker);
    map->workers[worker->number] = NULL;
    map->page_count -= worker->page_count;
    map->worker_count--;
    worker_free(worker);
}

/* ------------------------------------------------------------------ lookup */

struct lookup {
    struct rt_prefix_map *map;
    uint32_t word_count;
    uint64_t left[WORDS_MAX]; /* workers that hold all blocks so far */
    uint64_t words[WORDS_MAX];
    struct rt_cached *hits; /* [max], the best first */
    uint32_t spread, max, count;
};

/* Different for all workers, in another order for each spread. */
static uint32_t turn(const struct lookup *lookup, rt_worker_ref worker)
{
    uint32_t value = (worker ^ lookup->spread) * UINT32_C(0x9e3779b1);
    return (value ^ value >> 15) * UINT32_C(0x85ebca6b);
}

static bool better(const struct lookup *lookup, const struct rt_cached *a,
                   const struct rt_cached *b)
{
    return a->tokens != b->tokens ? a->tokens > b->tokens
                                  : turn(lookup, a->worker) < turn(lookup, b->worker);
}

static void offer(struct lookup *lookup, uint32_t number, uint32_t depth)
{
    const struct rt_cached hit = {lookup->map->workers[number]->ref, depth * BT_PAGE_TOKENS};
    lookup->map->depths[number] = depth;
    if (lookup->count == lookup->max) {
        if (lookup->max == 0 || !better(lookup, &hit, &lookup->hits[lookup->count - 1])) {
            return;
        }
        lookup->count--;
    }
    uint32_t place = lookup->count++;
    for (; place > 0 && better(lookup, &hit, &lookup->hits[place - 1]); place--) {
        lookup->hits[place] = lookup->hits[place - 1];
    }
    lookup->hits[place] = hit;
}

static void read_holders(struct lookup *lookup, uint64_t id, uint64_t *ret_words)
{
    uint32_t block = rt_prefix_holders_find(lookup->map->holders, id);
    if (block == RT_NO_BLOCK) {
        memset(ret_words, 0, lookup->word_count * sizeof(*ret_words));
    } else {
        rt_prefix_holders_read(lookup->map->holders, block, ret_words);
    }
}

static bool all_hold(struct lookup *lookup, uint64_t id)
{
    uint64_t missing = 0;
    read_holders(lookup, id, lookup->words);
    for (uint32_t i = 0; i < lookup->word_count; i++) {
        missing |= lookup->left[i] & ~lookup->words[i];
    }
    return missing == 0;
}

/* Those that do not hold the block `id` hold `depth` blocks before it. False: none is left. */
static bool keep_holders(struct lookup *lookup, uint64_t id, uint32_t depth)
{
    uint64_t any = 0;
    read_holders(lookup, id, lookup->words);
    for (uint32_t i = 0; i < lookup->word_count; i++) {
        uint64_t gone = lookup->left[i] & ~lookup->words[i];
        for (; gone != 0; gone &= gone - 1) {
            offer(lookup, i * 64 + (uint32_t)__builtin_ctzll(gone), depth);
        }
        lookup->left[i] &= lookup->words[i];
        any |= lookup->left[i];
    }
    return any != 0;
}

/* The first of blocks [from, to] that some do not hold; `to` is one. */
static uint32_t first_missing(struct lookup *lookup, const uint64_t *blocks, uint32_t from,
                              uint32_t to)
{
    while (from < to) {
        uint32_t middle = from + (to - from) / 2;
        if (all_hold(lookup, blocks[middle])) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return to;
}

/* Who holds a block holds those before it, so looking at every block is not needed: steps double
 * while nobody drops out, and halve when somebody does. */
uint32_t rt_prefix_map_lookup(struct rt_prefix_map *map, const uint64_t *blocks, uint32_t count,
                              uint32_t spread, uint32_t max, struct rt_cached *ret_cached)
{
    struct lookup lookup = {.map = map,
                            .word_count = rt_prefix_holders_words(map->holders),
                            .hits = ret_cached,
                            .spread = spread,
                            .max = max};
    memset(map->depths, 0, map->options.max_workers * sizeof(*map->depths));
    if (count == 0) {
        return 0;
    }
    read_holders(&lookup, blocks[0], lookup.left);
    bool any = keep_holders(&lookup, blocks[0], 0);
    uint32_t done = 1, step = 1;
    while (any && done < count) {
        uint32_t last = step < count - done ? done + step - 1 : count - 1;
        if (all_hold(&lookup, blocks[last])) {
            done = last + 1;
            step *= 2;
            continue;
        }
        uint32_t missing = first_missing(&lookup, blocks, done, last);
        any = keep_holders(&lookup, blocks[missing], missing);
        done = missing + 1;
        step = step > 1 ? step / 2 : 1;
    }
    for (uint32_t i = 0; any && i < lookup.word_count; i++) {
        for (uint64_t left = lookup.left[i]; left != 0; left &= left - 1) {
            offer(&lookup, i * 64 + (uint32_t)__builtin_ctzll(left), count);
        }
    }
    return lookup.count;
}

uint32_t rt_prefix_map_tokens(const struct rt_prefix_map *map, rt_worker_ref ref)
{
    const struct worker *worker = bt_map_get(&map->by_ref, ref);
    return worker ? map->depths[worker->number] * BT_PAGE_TOKENS : 0;
}

/* ------------------------------------------------------------------ looking in */

void rt_prefix_map_look(const struct rt_prefix_map *map, struct rt_prefix_map_view *ret_view)
{
    *ret_view = (struct rt_prefix_map_view){
        .workers = map->worker_count,
        .blocks = map->record_count,
        .distinct = rt_prefix_holders_count(map->holders),
        .forgotten = map->forgotten,
        .ignored = map->ignored,
        .bytes = rt_prefix_holders_bytes(map->holders) +
                 map->touched * (uint64_t)(sizeof(*map->records) + sizeof(*map->links)) +
                 map->page_count * sizeof(uint32_t) + map->worker_count * sizeof(struct worker),
    };
}

/* children: [max_blocks], zeroed */
static const char *check_worker(const struct rt_prefix_map *map, const struct worker *worker,
                                uint32_t *children)
{
    uint32_t leaves = 0, listed = 0;
    for (uint32_t page = 0; page < worker->page_count; page++) {
        uint32_t record = worker->pages[page];
        if (record == NONE) {
            continue;
        }
        const struct record *it = &map->records[record];
        if (it->page != page || it->block == NONE ||
            !rt_prefix_holders_has(map->holders, it->block, worker->number)) {
            return "a worker holds the blocks of its pages";
        }
        leaves += it->children == 0;
        for (uint32_t parent = it->parent; parent != NONE; parent = map->records[parent].parent) {
            if (children[parent]++ > 0 || map->records[parent].block != NONE) {
                break;
            }
        }
    }
    for (uint32_t record = worker->leaves.oldest; record != NONE;
         record = map->links[record].newer) {
        listed++;
        if (map->records[record].children != 0 || map->records[record].block == NONE) {
            return "leaves have no children";
        }
    }
    return listed == leaves ? NULL : "all leaves are listed";
}

const char *rt_prefix_map_check(const struct rt_prefix_map *map)
{
    uint32_t *children = calloc(map->options.max_blocks, sizeof(*children));
    uint32_t count = 0, spare = 0;
    const char *wrong = children ? NULL : "there is memory for the check";
    for (uint32_t i = 0; !wrong && i < map->options.max_workers; i++) {
        const struct worker *worker = map->workers[i];
        if (worker) {
            wrong = check_worker(map, worker, children);
            count += worker->record_count;
        }
    }
    for (uint32_t record = map->free; record != NONE; record = map->records[record].parent) {
        spare++;
    }
    for (uint32_t record = 0; !wrong && record < map->touched; record++) {
        if (children[record] != map->records[record].children) {
            wrong = "children are counted";
        }
    }
    if (!wrong && (count != map->record_count || count + spare != map->touched)) {
        wrong = "records are counted";
    }
    if (!wrong && !rt_prefix_holders_check(map->holders)) {
        wrong = "blocks are found";
    }
    free(children);
    return wrong;
}
