/* The verb that has a worker serve in the other role: a new one takes its place. */
#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/scaling.h"

/* As far as it can be seen from here. */
static int tell(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                const struct ctl_fleet *fleet, const char *worker, enum ctl_role role)
{
    struct bt_error error;
    for (uint32_t i = 0; i < fleet->count; i++) {
        const struct ctl_member *member = &fleet->members[i];
        if (strcmp(member->name, worker) != 0 || member->gone || member->ending)
            continue;
        if (member->role == role) {
            fprintf(stderr, "batonctl switch-role: %s is a %s worker already\n", worker,
                    ctl_role_name(role));
            return CTL_EXIT_USAGE;
        }
        int64_t wanted[CTL_ROLES] = {fleet->wanted[CTL_PREFILL], fleet->wanted[CTL_DECODE]};
        wanted[role]++;
        wanted[member->role]--;
        fprintf(stderr, "would drain %s of them\n", worker);
        return ctl_scaling_run(scaling, engine, wanted);
    }
    bt_error_set(&error, BT_ERR_NOT_FOUND, "no worker '%.64s'", worker);
    return ctl_fail(scaling->verb, &error);
}

static int run(const struct ctl_scaling *scaling, struct ctl_engine *engine, const char *worker,
               enum ctl_role role)
{
    const struct ctl_scale scale = {{-1, -1}, scaling->drain_ns, scaling->wait_ns};
    struct ctl_fleet fleet;
    struct bt_error error;
    int code = ctl_scaling_look(scaling, engine, &fleet);
    if (code != CTL_EXIT_OK)
        return code;
    if (scaling->dry_run)
        code = tell(scaling, engine, &fleet, worker, role);
    else if (engine->ops->switch_role(engine, worker, role, &scale, &error) != BT_OK)
        code = ctl_fail(scaling->verb, &error);
    else
        code = ctl_scaling_print(scaling, engine, &fleet);
    ctl_fleet_finish(&fleet);
    return code;
}

int ctl_verb_switch_role(int argc, char **argv)
{
    struct ctl_scaling scaling = {.verb = "switch-role"};
    struct ctl_engine *engine;
    enum ctl_role role;
    int used;
    const struct bt_option options[] = {CTL_SCALING_OPTIONS(scaling), {0}};
    int code = ctl_parse(options,
                         "batonctl switch-role WORKER prefill|decode [OPTIONS]\n\n"
                         "A new worker of that role starts; when it is ready WORKER is drained "
                         "and ends.\n\n"
                         "  batonctl switch-role decode-2 prefill",
                         argc, argv, &used);
    if (code >= 0)
        return code;
    if (used + 2 != argc || !ctl_role_parse(argv[used + 1], strlen(argv[used + 1]), &role)) {
        fprintf(stderr, "batonctl switch-role: expected a worker and its role to be, as in: "
                        "batonctl switch-role decode-2 prefill\n");
        return CTL_EXIT_USAGE;
    }
    code = ctl_scaling_open(&scaling, &engine);
    if (code != CTL_EXIT_OK)
        return code;
    code = run(&scaling, engine, argv[used], role);
    ctl_engine_close(engine);
    return code;
}
