/*
 * Who may use the API, by a file of tenants and their keys. Pure: text to a checked table. Keys are
 * kept as SHA-256 alone, and no message shows one.
 *
 *   {"tenants": [{"name": "search", "keys": ["sk-…", "sha256:<64 hex digits>"],
 *                 "weight": 4, "priority": 1, "max_running": 64, "max_waiting": 256,
 *                 "requests_per_minute": 600, "tokens_per_minute": 200000,
 *                 "max_prompt_tokens": 8192, "max_output_tokens": 1024,
 *                 "slo_ttft_ms": 2000}, …]}
 *
 * name and keys are required; slo_ttft_ms may be an array of up to RT_PRIORITIES numbers, by class.
 */
#ifndef BATON_ROUTER_TENANTS_H
#define BATON_ROUTER_TENANTS_H

#include "common/base/status.h"
#include "router/core.h"
#include "router/digest.h"

#define RT_TENANT_NAME_SIZE   64
#define RT_TENANTS_MAX        1024
#define RT_TENANT_KEYS_MAX    1024 /* of all tenants */
#define RT_API_KEY_MIN        8
#define RT_API_KEY_MAX        512
#define RT_TENANTS_FILE_BYTES (4u << 20)
#define RT_TENANT_SLO_MAX_MS  3600000
#define RT_TENANT_LIMIT_MAX   1000000000

struct rt_tenant_spec {
    char name[RT_TENANT_NAME_SIZE];
    struct rt_tenant_limits limits;
    uint32_t priority;                               /* class; its requests are of this or lower */
    uint32_t requests_per_minute, tokens_per_minute; /* 0: no limit */
    uint32_t max_prompt_tokens, max_output_tokens;   /* 0: no limit */
    int64_t slo_ttft_ns[RT_PRIORITIES];              /* by class; 0: none, -1: the default */
};

struct rt_tenant_key {
    struct rt_digest digest;
    uint32_t tenant; /* place in the table */
};

struct rt_tenants {
    struct rt_tenant_spec *tenants;
    size_t count;
    struct rt_tenant_key *keys;
    size_t key_count;
};

/* INVALID_ARGUMENT: what is wrong where, as "tenants[2].weight …" or with line and column;
 * NO_MEMORY. `ret_tenants` on success only. */
enum bt_status rt_tenants_parse(const char *text, size_t size, struct bt_error *error,
                                struct rt_tenants *ret_tenants);
/* Of a file; messages begin with its path. */
enum bt_status rt_tenants_read(const char *path, struct bt_error *error,
                               struct rt_tenants *ret_tenants);
/* One tenant "default" without limits, with this key. */
enum bt_status rt_tenants_single(const char *key, struct bt_error *error,
                                 struct rt_tenants *ret_tenants);
void rt_tenants_finish(struct rt_tenants *tenants);

/* Looks at all keys, whichever it is. False: of nobody. */
bool rt_tenants_find(const struct rt_tenants *tenants, const char *key, size_t size,
                     uint32_t *ret_tenant);

#endif
