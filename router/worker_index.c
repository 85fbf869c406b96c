#include "router/worker_index.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

#define FIRST_CAPACITY 16

static const struct rt_index_key nobody = {{INFINITY, INFINITY, INFINITY, INFINITY, INFINITY}};

void rt_worker_index_finish(struct rt_worker_index *index)
{
    free(index->nodes);
    free(index->workers);
    free(index->free_slots);
    *index = (struct rt_worker_index){0};
}

static struct rt_index_key least(const struct rt_index_key *a, const struct rt_index_key *b)
{
    struct rt_index_key key;
    for (int i = 0; i < RT_INDEX_FIELDS; i++) {
        key.field[i] = a->field[i] < b->field[i] ? a->field[i] : b->field[i];
    }
    return key;
}

static bool grow(struct rt_worker_index *index)
{
    uint32_t capacity = index->capacity ? index->capacity * 2 : FIRST_CAPACITY;
    struct rt_index_key *nodes = malloc(2 * (size_t)capacity * sizeof *nodes);
    void **workers = calloc(capacity, sizeof *workers);
    uint32_t *free_slots = calloc(capacity, sizeof *free_slots);
    if (!nodes || !workers || !free_slots) {
        free(nodes);
        free(workers);
        free(free_slots);
        return false;
    }
    for (uint32_t i = 0; i < 2 * capacity; i++) {
        nodes[i] = nobody;
    }
    if (index->capacity > 0) {
        memcpy(nodes + capacity, index->nodes + index->capacity, index->capacity * sizeof *nodes);
        memcpy(workers, index->workers, index->capacity * sizeof *workers);
        memcpy(free_slots, index->free_slots, index->free_count * sizeof *free_slots);
    }
    for (uint32_t i = capacity; i-- > 1;) {
        nodes[i] = least(&nodes[2 * i], &nodes[2 * i + 1]);
    }
    free(index->nodes);
    free(index->workers);
    free(index->free_slots);
    index->nodes = nodes;
    index->workers = workers;
    index->free_slots = free_slots;
    index->capacity = capacity;
    return true;
}

bool rt_worker_index_add(struct rt_worker_index *index, void *worker, uint32_t *ret_slot)
{
    if (index->free_count == 0 && index->used == index->capacity && !grow(index)) {
        return false;
    }
    uint32_t slot = index->free_count > 0 ? index->free_slots[--index->free_count] : index->used++;
    index->workers[slot] = worker;
    *ret_slot = slot;
    return true;
}

void rt_worker_index_drop(struct rt_worker_index *index, uint32_t slot)
{
    rt_worker_index_clear(index, slot);
    index->workers[slot] = NULL;
    index->free_slots[index->free_count++] = slot;
}

void rt_worker_index_set(struct rt_worker_index *index, uint32_t slot,
                         const struct rt_index_key *key)
{
    BT_ASSERT(slot < index->used);
    uint32_t node = index->capacity + slot;
    struct rt_index_key value = *key;
    while (memcmp(&index->nodes[node], &value, sizeof value) != 0) {
        index->nodes[node] = value;
        if (node == 1) {
            break;
        }
        node /= 2;
        value = least(&index->nodes[2 * node], &index->nodes[2 * node + 1]);
    }
}

void rt_worker_index_clear(struct rt_worker_index *index, uint32_t slot)
{
    rt_worker_index_set(index, slot, &nobody);
}

/* ---- searches */

static double score_of(const struct rt_worker_index *index, const struct rt_index_query *query,
                       uint32_t node)
{
    return query->score(&index->nodes[node], query->request);
}

static bool accepted(const struct rt_worker_index *index, const struct rt_index_query *query,
                     uint32_t node)
{
    return !query->accept || query->accept(index->workers[node - index->capacity], query->request);
}

struct search {
    const struct rt_worker_index *index;
    const struct rt_index_query *query;
    double best;
    uint32_t node; /* the best leaf, or 0 */
    uint32_t visits;
};

/* `score`: of this node, below what the search has. */
static void descend(struct search *search, uint32_t node, double score)
{
    const struct rt_worker_index *index = search->index;
    if (node >= index->capacity) {
        if (accepted(index, search->query, node)) {
            search->best = score;
            search->node = node;
        }
        return;
    }
    if (search->node != 0 && search->visits >= RT_INDEX_VISITS) {
        return;
    }
    search->visits++;
    double left = score_of(index, search->query, 2 * node);
    double right = score_of(index, search->query, 2 * node + 1);
    uint32_t first = right < left ? 2 * node + 1 : 2 * node;
    double near = right < left ? right : left;
    double far = right < left ? left : right;
    if (near < search->best) {
        descend(search, first, near);
    }
    if (far < search->best) {
        descend(search, first ^ 1, far);
    }
}

double rt_worker_index_bound(const struct rt_worker_index *index,
                             const struct rt_index_query *query)
{
    return index->capacity > 0 ? score_of(index, query, 1) : INFINITY;
}

void *rt_worker_index_best(const struct rt_worker_index *index, const struct rt_index_query *query,
                           double *ret_score)
{
    struct search search = {.index = index, .query = query, .best = INFINITY};
    double bound = rt_worker_index_bound(index, query);
    if (bound < INFINITY) {
        descend(&search, 1, bound);
    }
    if (search.node == 0) {
        return NULL;
    }
    *ret_score = search.best;
    return index->workers[search.node - index->capacity];
}

/* The first possible leaf at or after leaf `from` below `node`, whose leaves begin at `begin` and
 * are `width`; 0: none. */
static uint32_t seek(const struct rt_worker_index *index, const struct rt_index_query *query,
                     uint32_t node, uint32_t begin, uint32_t width, uint32_t from)
{
    if (begin + width <= from || !(score_of(index, query, node) < INFINITY)) {
        return 0;
    }
    if (width == 1) {
        return accepted(index, query, node) ? node : 0;
    }
    uint32_t found = seek(index, query, 2 * node, begin, width / 2, from);
    return found ? found : seek(index, query, 2 * node + 1, begin + width / 2, width / 2, from);
}

void *rt_worker_index_next(const struct rt_worker_index *index, const struct rt_index_query *query,
                           uint32_t from)
{
    if (index->capacity == 0) {
        return NULL;
    }
    uint32_t node = seek(index, query, 1, 0, index->capacity, from);
    if (node == 0 && from > 0) {
        node = seek(index, query, 1, 0, index->capacity, 0);
    }
    return node ? index->workers[node - index->capacity] : NULL;
}
