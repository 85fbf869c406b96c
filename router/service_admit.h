/* The service's side of tenants: what they may ask for, and what they are charged. Internal to the
 * service. */
#ifndef BATON_ROUTER_SERVICE_ADMIT_H
#define BATON_ROUTER_SERVICE_ADMIT_H

#include "router/service.h"

struct rt_stream;

#define RT_CODE_RATE_LIMIT "rate_limit_exceeded"

/* After the core is there. */
enum bt_status rt_service_admit_start(struct rt_service *service, struct bt_error *error);

/* Remembers it for rt_service_refusal. Returns `status`. */
enum bt_status rt_service_refused(struct rt_service *service, enum bt_status status,
                                  const char *code, int64_t retry_after_ns);

/* INVALID_ARGUMENT: beyond its tenant's lengths. Cuts *max_tokens, where the client named none. */
enum bt_status rt_service_check_tenant(const struct rt_service *service,
                                       const struct rt_generation *generation,
                                       struct bt_error *error, uint32_t *max_tokens);
/* Of prompt and output, before it is known how long that is. */
uint64_t rt_service_expected_tokens(const struct rt_service *service,
                                    const struct rt_generation *generation, uint32_t max_tokens);
/* Takes them out of the tenant's tokens a minute, or refuses. */
enum bt_status rt_service_charge(struct rt_service *service, struct rt_stream *stream,
                                 struct bt_error *error);
/* Gives back what it did not use. */
void rt_service_settle(struct rt_service *service, struct rt_stream *stream);

#endif
