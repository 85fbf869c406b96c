#include "router/openai_admit.h"

enum bt_status rt_openai_refused(const struct rt_service *service, enum bt_status status,
                                 const char *text, struct rt_openai_error *error)
{
    rt_openai_error_from(error, status, NULL, text);
    if (status == BT_ERR_EXHAUSTED || status == BT_ERR_UNAVAILABLE) {
        const struct rt_refusal *refusal = rt_service_refusal(service);
        error->retry_after_ns = refusal->retry_after_ns;
        if (refusal->code != NULL)
            error->code = refusal->code;
    }
    return status;
}

enum bt_status rt_openai_admit(struct rt_service *service, uint32_t tenant,
                               struct rt_openai_error *error)
{
    struct bt_error reason = {0};
    enum bt_status status = rt_service_admit(service, tenant, &reason);
    return status == BT_OK ? BT_OK : rt_openai_refused(service, status, reason.text, error);
}

struct rt_caller rt_openai_caller(struct rt_service *service, uint32_t tenant, int64_t priority,
                                  bool chat)
{
    struct rt_access *access = rt_service_access(service);
    return (struct rt_caller){.tenant = tenant,
                              .tenant_name =
                                  access != NULL ? rt_access_tenant(access, tenant)->name : NULL,
                              .priority = rt_service_priority(service, tenant, priority),
                              .prompt_class = chat};
}
