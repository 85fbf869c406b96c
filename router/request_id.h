/*
 * Who a request is, over all routers and restarts. Its client, or the router where the client does
 * not, names it with a text; from that, the tenant's name and the number of the generation in the
 * request follows, at every router alike, its seed if the client gave none; and with all that
 * decides its answer the key that lets a router take over what another left running, and the number
 * by which routers and workers know it. So two requests are the same only if they must have the
 * same answer: a name that stands for several different ones, as of all calls that a program makes
 * for one of its own users, keeps them apart. Pure.
 */
#ifndef BATON_ROUTER_REQUEST_ID_H
#define BATON_ROUTER_REQUEST_ID_H

#include "common/base/status.h"
#include "router/digest.h"
#include "router/service.h"

#define RT_REQUEST_ID_MAX 128 /* characters */

/* Visible ASCII, 1 to RT_REQUEST_ID_MAX of it. */
bool rt_request_id_valid(const char *name);
/* 32 hex digits. */
void rt_request_id_make(char ret_name[RT_REQUEST_ID_MAX + 1]);

static inline const char *rt_generation_tenant(const struct rt_generation *generation)
{
    return generation->tenant_name ? generation->tenant_name : "";
}

/* Of sampling, where the client gave none. False: no memory. */
bool rt_request_seed(const char *tenant, const char *name, uint32_t index, uint64_t *ret_seed);
/* `sampling` as it goes to the workers, with seed and max_tokens. False: no memory. */
bool rt_request_key(const char *tenant, const struct rt_generation *generation,
                    const Baton__V1__SamplingParams *sampling, struct rt_digest *ret_key);
/* Not 0. */
uint64_t rt_request_number(const struct rt_digest *key);

/*
 * What `Last-Event-ID` says: how many tokens a client has of each generation, "7" or "7,0,12".
 * INVALID_ARGUMENT: it is something else, or of more than `capacity`. Writes 0 to
 * ret_counts[*ret_count..].
 */
enum bt_status rt_resume_parse(const char *text, uint32_t *ret_counts, size_t capacity,
                               struct bt_error *error, size_t *ret_count);

#endif
