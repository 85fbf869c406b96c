/* What tenants may do, for the fronts: refusals in the words of the API. */
#ifndef BATON_ROUTER_OPENAI_ADMIT_H
#define BATON_ROUTER_OPENAI_ADMIT_H

#include "router/openai_error.h"
#include "router/service.h"

/* rt_service_admit. */
enum bt_status rt_openai_admit(struct rt_service *service, uint32_t tenant,
                               struct rt_openai_error *error);
/* Of `status` and `text`, which rt_service_admit or rt_service_submit gave. Returns `status`. */
enum bt_status rt_openai_refused(const struct rt_service *service, enum bt_status status,
                                 const char *text, struct rt_openai_error *error);
/* `priority`: as asked for. */
struct rt_caller rt_openai_caller(struct rt_service *service, uint32_t tenant, int64_t priority,
                                  bool chat);

#endif
