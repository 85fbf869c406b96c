#include "deploy/batonctl/scaling.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void on_step(void *context, const char *text)
{
    char line[512];
    (void)context;
    snprintf(line, sizeof(line), "%s", text);
    ctl_text_flatten(line);
    fprintf(stderr, "%s\n", line);
}

int ctl_scaling_open(const struct ctl_scaling *scaling, struct ctl_engine **ret_engine)
{
    const struct ctl_progress progress = {on_step, NULL};
    struct bt_error error;
    enum bt_status status =
        ctl_engine_open(&scaling->target, &scaling->values, &progress, &error, ret_engine);
    return status == BT_OK ? CTL_EXIT_OK : ctl_fail(scaling->verb, &error);
}

int ctl_scaling_look(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                     struct ctl_fleet *ret_fleet)
{
    struct bt_error error;
    enum bt_status status = engine->ops->observe(engine, &error, ret_fleet);
    return status == BT_OK ? CTL_EXIT_OK : ctl_fail(scaling->verb, &error);
}

bool ctl_role_parse(const char *text, size_t size, enum ctl_role *ret_role)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        const char *name = ctl_role_name((enum ctl_role)role);
        if (strlen(name) == size && memcmp(name, text, size) == 0) {
            *ret_role = (enum ctl_role)role;
            return true;
        }
    }
    return false;
}

/* Workers that serve or will. */
static uint32_t living(const struct ctl_fleet *fleet, enum ctl_role role)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < fleet->count; i++)
        count +=
            fleet->members[i].role == role && !fleet->members[i].ending && !fleet->members[i].gone;
    return count;
}

static json_t *counts_json(const int64_t counts[CTL_ROLES])
{
    return json_pack("{s:I, s:I}", "prefill", (json_int_t)counts[CTL_PREFILL], "decode",
                     (json_int_t)counts[CTL_DECODE]);
}

static json_t *members_json(const struct ctl_fleet *fleet)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < fleet->count; i++) {
        const struct ctl_member *member = &fleet->members[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:I, s:b, s:b, s:b}", "worker", member->name,
                                        "role", ctl_role_name(member->role), "ranks",
                                        (json_int_t)member->ranks, "ready", member->ready, "ending",
                                        member->ending, "gone", member->gone));
    }
    return list;
}

static int print(const struct ctl_scaling *scaling, const struct ctl_engine *engine,
                 const int64_t before[CTL_ROLES], const int64_t after[CTL_ROLES],
                 const struct ctl_fleet *fleet)
{
    if (scaling->output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:s, s:b, s:o, s:o, s:o}", "engine", engine->ops->name,
                                        "dry_run", scaling->dry_run, "before", counts_json(before),
                                        "after", counts_json(after), "workers",
                                        members_json(fleet)));
    printf("%-8s %6s %6s\n", "ROLE", "BEFORE", scaling->dry_run ? "WOULD" : "NOW");
    for (int role = 0; role < CTL_ROLES; role++)
        printf("%-8s %6" PRId64 " %6" PRId64 "\n", ctl_role_name((enum ctl_role)role), before[role],
               after[role]);
    return CTL_EXIT_OK;
}

int ctl_scaling_print(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                      const struct ctl_fleet *before)
{
    struct ctl_fleet now;
    int64_t then[CTL_ROLES], after[CTL_ROLES];
    int code = ctl_scaling_look(scaling, engine, &now);
    if (code != CTL_EXIT_OK)
        return code;
    for (int role = 0; role < CTL_ROLES; role++) {
        then[role] = living(before, (enum ctl_role)role);
        after[role] = living(&now, (enum ctl_role)role);
    }
    code = print(scaling, engine, then, after, &now);
    ctl_fleet_finish(&now);
    return code;
}

static int tell(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                const struct ctl_fleet *fleet, const struct ctl_scale *scale)
{
    int64_t before[CTL_ROLES], after[CTL_ROLES];
    struct bt_error error;
    if (engine->ops->check && engine->ops->check(engine, scale, &error) != BT_OK)
        return ctl_fail(scaling->verb, &error);
    for (int role = 0; role < CTL_ROLES; role++) {
        const char *name = ctl_role_name((enum ctl_role)role);
        before[role] = living(fleet, (enum ctl_role)role);
        after[role] = scale->wanted[role] >= 0 ? scale->wanted[role] : fleet->wanted[role];
        int64_t more = after[role] - before[role];
        if (more > 0)
            fprintf(stderr, "would start %" PRId64 " %s worker%s\n", more, name,
                    more > 1 ? "s" : "");
        if (more < 0)
            fprintf(stderr,
                    "would drain the least loaded %s worker%s, %" PRId64 " in all, then end %s\n",
                    name, more < -1 ? "s" : "", -more, more < -1 ? "them" : "it");
    }
    return print(scaling, engine, before, after, fleet);
}

int ctl_scaling_run(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                    const int64_t wanted[CTL_ROLES])
{
    const struct ctl_scale scale = {
        {wanted[CTL_PREFILL], wanted[CTL_DECODE]}, scaling->drain_ns, scaling->wait_ns};
    struct ctl_fleet fleet;
    struct bt_error error;
    int code = ctl_scaling_look(scaling, engine, &fleet);
    if (code != CTL_EXIT_OK)
        return code;
    if (scaling->dry_run)
        code = tell(scaling, engine, &fleet, &scale);
    else if (engine->ops->scale(engine, &scale, &error) != BT_OK)
        code = ctl_fail(scaling->verb, &error);
    else
        code = ctl_scaling_print(scaling, engine, &fleet);
    ctl_fleet_finish(&fleet);
    return code;
}
