/*
 * Who may ask, and how much: keys to tenants, and what a tenant may use. The table comes from a
 * file that is read again when it changes (tenants.h); one that is wrong leaves the one before in
 * force. Loop thread only.
 *
 * A tenant has a number as long as the process lives: 0 is that of requests without a key, where
 * keys are not asked for; the others follow names, over all changes of the file. A tenant that is
 * no longer in the file is let in no more; what it runs goes on.
 */
#ifndef BATON_ROUTER_ACCESS_H
#define BATON_ROUTER_ACCESS_H

#include "common/base/metrics.h"
#include "common/messaging/loop.h"
#include "router/tenants.h"

struct rt_access;

enum rt_access_scope {
    RT_ACCESS_API, /* what serves clients asks for keys; metrics and pages for operators do not */
    RT_ACCESS_ALL, /* all but /health and /ready does */
};
extern const char *const rt_access_scope_names[]; /* by scope, as in a flag; ends with NULL */

struct rt_access_options {
    const char *keys_file; /* NULL: none */
    const char *key;       /* one for all; NULL: none */
    enum rt_access_scope scope;
    int64_t slo_ttft_ns; /* of tenants that say none; 0: none */
};

/* A new table is in force: told for each tenant in it. */
typedef void rt_access_changed_fn(void *context, uint32_t tenant,
                                  const struct rt_tenant_limits *limits);

/* Errors: those of the file, and INVALID_ARGUMENT: both a file and a key. */
enum bt_status rt_access_create(struct bt_loop *loop, const struct rt_access_options *options,
                                struct bt_metrics *metrics, struct bt_error *error,
                                struct rt_access **ret_access);
void rt_access_destroy(struct rt_access *access); /* NULL is fine */
/* Tells at once of what is in force. */
void rt_access_on_change(struct rt_access *access, rt_access_changed_fn *fn, void *context);
/* The file changed and was read, or why it could not be. */
typedef void rt_access_reloaded_fn(void *context, enum bt_status status, const char *text);
void rt_access_on_reload(struct rt_access *access, rt_access_reloaded_fn *fn, void *context);
/* Reads the file now. On errors the table before stays. */
enum bt_status rt_access_reload(struct rt_access *access, struct bt_error *error);

/* Whether keys are asked for. NULL: no. */
bool rt_access_asks(const struct rt_access *access);
enum rt_access_scope rt_access_scope(const struct rt_access *access);
/* False, and counted: the key (NULL: none was given) is nobody's. Where keys are not asked for, any
 * will do. */
bool rt_access_identify(struct rt_access *access, const char *key, size_t size,
                        uint32_t *ret_tenant);

/* Of a number that rt_access_identify gave. */
const struct rt_tenant_spec *rt_access_tenant(const struct rt_access *access, uint32_t tenant);
int64_t rt_access_slo_ttft_ns(const struct rt_access *access, uint32_t tenant, uint32_t priority);

/* EXHAUSTED: by its limit of requests or tokens a minute it has to wait so long. Takes nothing. */
enum bt_status rt_access_check_rate(struct rt_access *access, uint32_t tenant, int64_t now_ns,
                                    struct bt_error *error, int64_t *ret_retry_after_ns);
void rt_access_take_request(struct rt_access *access, uint32_t tenant, int64_t now_ns);
/* EXHAUSTED: they are there only after so long. INVALID_ARGUMENT: they are more than a minute's.
 * Takes nothing. */
enum bt_status rt_access_check_tokens(struct rt_access *access, uint32_t tenant, uint64_t tokens,
                                      int64_t now_ns, struct bt_error *error,
                                      int64_t *ret_retry_after_ns);
/* Takes them, where that check is passed. */
enum bt_status rt_access_take_tokens(struct rt_access *access, uint32_t tenant, uint64_t tokens,
                                     int64_t now_ns, struct bt_error *error,
                                     int64_t *ret_retry_after_ns);
/* What was not used comes back; negative: more was used than was taken. */
void rt_access_settle_tokens(struct rt_access *access, uint32_t tenant, int64_t unused,
                             int64_t now_ns);

#endif
