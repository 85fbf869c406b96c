#include "router/survey.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"

#define FIRST_TILES 16

/* One pass. */
struct pass {
    struct rt_survey_result result;
    uint32_t capacities[2];
    struct bt_map groups; /* incarnation -> its tile's number, from 1 */
    size_t worker_cursor, request_cursor;
    bool workers_done;
};

struct rt_survey {
    struct pass passes[2];
    int now; /* the pass under way; the other is the last */
};

static void sum_init(struct rt_survey_sum *sum, const char *name)
{
    *sum = (struct rt_survey_sum){.heartbeat_ns = BT_NEVER_NS};
    snprintf(sum->name, sizeof sum->name, "%s", name);
}

/* Keeps the memory of tiles for the next pass. */
static void pass_begin(struct pass *pass)
{
    struct rt_survey_result *result = &pass->result;
    bt_map_finish(&pass->groups);
    bt_map_init(&pass->groups);
    for (int role = 0; role < 2; role++) {
        sum_init(&result->roles[role], "");
        result->tile_counts[role] = 0;
    }
    memset(result->requests, 0, sizeof result->requests);
    pass->worker_cursor = pass->request_cursor = 0;
    pass->workers_done = false;
}

struct rt_survey *rt_survey_create(void)
{
    struct rt_survey *survey = calloc(1, sizeof *survey);
    if (survey) {
        for (int i = 0; i < 2; i++) {
            bt_map_init(&survey->passes[i].groups);
            pass_begin(&survey->passes[i]);
        }
    }
    return survey;
}

void rt_survey_destroy(struct rt_survey *survey)
{
    if (!survey) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        bt_map_finish(&survey->passes[i].groups);
        free(survey->passes[i].result.tiles[RT_ROLE_PREFILL]);
        free(survey->passes[i].result.tiles[RT_ROLE_DECODE]);
    }
    free(survey);
}

/* ---- tiles */

/* NULL: no memory. */
static struct rt_survey_sum *add_tile(struct pass *pass, enum rt_role role, const char *name)
{
    struct rt_survey_result *result = &pass->result;
    if (result->tile_counts[role] == pass->capacities[role]) {
        uint32_t capacity = pass->capacities[role] ? pass->capacities[role] * 2 : FIRST_TILES;
        struct rt_survey_sum *grown = realloc(result->tiles[role], capacity * sizeof *grown);
        if (!grown) {
            return NULL;
        }
        result->tiles[role] = grown;
        pass->capacities[role] = capacity;
    }
    struct rt_survey_sum *tile = &result->tiles[role][result->tile_counts[role]++];
    sum_init(tile, name);
    return tile;
}

/* The number of a tile travels through the map as a pointer that nobody follows. */
static struct rt_survey_sum *group_tile(struct pass *pass, const struct rt_worker_info *info)
{
    uintptr_t number = (uintptr_t)bt_map_get(&pass->groups, info->group.incarnation);
    return number > 0 && number <= pass->result.tile_counts[info->role]
               ? &pass->result.tiles[info->role][number - 1]
               : NULL;
}

static struct rt_survey_sum *tile_of(struct pass *pass, const struct rt_worker_info *info)
{
    struct rt_survey_result *result = &pass->result;
    bool grouped = info->group.incarnation != 0;
    struct rt_survey_sum *tile = grouped ? group_tile(pass, info) : NULL;
    if (tile) {
        return tile;
    }
    uint32_t count = result->tile_counts[info->role];
    if (count > RT_SURVEY_TILES) {
        return &result->tiles[info->role][RT_SURVEY_TILES];
    }
    if (count == RT_SURVEY_TILES) {
        return add_tile(pass, info->role, "");
    }
    tile = add_tile(pass, info->role, grouped ? info->group.name : info->id);
    if (tile && grouped) {
        bt_map_put(&pass->groups, info->group.incarnation, (void *)(uintptr_t)(count + 1));
    }
    return tile;
}

/* ---- counting */

static void add_pages(struct rt_survey_sum *sum, const struct rt_worker_view *view)
{
    const struct rt_load *load = &view->info->load;
    sum->pages_total += load->pages_total;
    sum->pages_free += load->pages_free;
    sum->pages_reserved += load->pages_reserved;
    sum->pages_ready += load->pages_ready;
    sum->pages_quarantined += load->pages_quarantined;
    sum->pages_projected += view->projected_pages;
    if (load->pages_total > 0) {
        double used = 1 - (double)load->pages_free / load->pages_total;
        sum->kv_ranks++;
        sum->kv_sum += used;
        sum->kv_max = used > sum->kv_max ? used : sum->kv_max;
    }
}

void rt_survey_add(struct rt_survey_sum *sum, const struct rt_worker_view *view)
{
    const struct rt_load *load = &view->info->load;
    sum->ranks++;
    sum->states[view->state]++;
    sum->requests += view->requests;
    if (view->state == RT_WORKER_LOST) {
        return; /* what it reported last is no more */
    }
    add_pages(sum, view);
    sum->breakers_open += view->breaker == RT_BREAKER_OPEN;
    sum->running += load->running;
    sum->waiting += load->waiting;
    sum->waiting_tokens += load->waiting_tokens;
    sum->ahead_ns = view->ahead_ns > sum->ahead_ns ? view->ahead_ns : sum->ahead_ns;
    if (view->last_heartbeat_ns < sum->heartbeat_ns) {
        sum->heartbeat_ns = view->last_heartbeat_ns;
    }
}

static bool next_worker(struct pass *pass, const struct rt_core *core)
{
    rt_worker_ref ref;
    struct rt_worker_view view;
    if (!rt_core_next_worker(core, &pass->worker_cursor, &ref)) {
        return false;
    }
    if (rt_core_worker(core, ref, &view)) {
        struct rt_survey_sum *tile = tile_of(pass, view.info);
        rt_survey_add(&pass->result.roles[view.info->role], &view);
        if (tile) {
            rt_survey_add(tile, &view);
        }
    }
    return true;
}

static bool next_request(struct pass *pass, const struct rt_core *core)
{
    struct rt_request_view view;
    bool any = rt_core_next_request(core, &pass->request_cursor, &view);
    if (any) {
        pass->result.requests[view.state]++;
    }
    return any;
}

bool rt_survey_go_on(struct rt_survey *survey, const struct rt_core *core, uint32_t most)
{
    struct pass *pass = &survey->passes[survey->now];
    for (uint32_t i = 0; i < most && !pass->workers_done; i++) {
        pass->workers_done = !next_worker(pass, core);
    }
    bool requests_done = false;
    for (uint32_t i = 0; i < most && pass->workers_done && !requests_done; i++) {
        requests_done = !next_request(pass, core);
    }
    if (requests_done) {
        survey->now = 1 - survey->now;
        pass_begin(&survey->passes[survey->now]);
    }
    return requests_done;
}

const struct rt_survey_result *rt_survey_last(const struct rt_survey *survey)
{
    return &survey->passes[1 - survey->now].result;
}
