#include "deploy/batonctl/engine.h"

#include <stdlib.h>
#include <string.h>

enum { KIND_AUTO, KIND_LOCAL, KIND_KUBERNETES };
const char *const ctl_engine_kinds[] = {"auto", "local", "kubernetes", NULL};

void ctl_fleet_finish(struct ctl_fleet *fleet)
{
    free(fleet->members);
    *fleet = (struct ctl_fleet){0};
}

static bool is_kubernetes(const struct ctl_engine_values *values)
{
    if (values->kind != KIND_AUTO)
        return values->kind == KIND_KUBERNETES;
    return values->kube_server || values->kubeconfig || values->kube_context ||
           values->namespace_ || values->kube_token_file || values->kube_ca_file ||
           getenv("KUBERNETES_SERVICE_HOST");
}

enum bt_status ctl_engine_open(const struct ctl_target *target,
                               const struct ctl_engine_values *values,
                               const struct ctl_progress *progress, struct bt_error *error,
                               struct ctl_engine **ret_engine)
{
    struct ctl_engine *engine;
    enum bt_status status = is_kubernetes(values)
                                ? ctl_engine_kubernetes(target, values, error, &engine)
                                : ctl_engine_local(target, error, &engine);
    if (status != BT_OK)
        return status;
    if (progress)
        engine->progress = *progress;
    *ret_engine = engine;
    return BT_OK;
}

void ctl_engine_close(struct ctl_engine *engine)
{
    if (engine)
        engine->ops->destroy(engine);
}
