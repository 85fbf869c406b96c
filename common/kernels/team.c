#include "common/kernels/team.h"

#include <stdlib.h>

struct bt_team {
    uint32_t threads;
};

enum bt_status bt_team_create(const struct bt_team_options *options, struct bt_error *error,
                              struct bt_team **ret_team)
{
    struct bt_team *team = calloc(1, sizeof(*team));
    if (!team)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "team: out of memory");
    (void)options;
    team->threads = 1;
    *ret_team = team;
    return BT_OK;
}

void bt_team_destroy(struct bt_team *team)
{
    free(team);
}

uint32_t bt_team_threads(const struct bt_team *team)
{
    return team ? team->threads : 1;
}

void bt_team_run(struct bt_team *team, bt_team_fn *fn, void *context, uint32_t parts)
{
    (void)team;
    for (uint32_t part = 0; part < parts; part++)
        fn(context, part, 0);
}
