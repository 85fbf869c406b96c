#include "common/kernels/cuda/host.h"

#include <stdarg.h>
#include <stdio.h>

static const struct bt_cuda_host *host;

void bt_cuda_host_set(const struct bt_cuda_host *given)
{
    host = given;
}

/* These stand for those of the program, whose state they need. */

void bt_log(enum bt_log_level level, uint64_t request, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    host->log(level, request, line);
}

void bt_team_run(struct bt_team *team, bt_team_fn *fn, void *context, uint32_t parts)
{
    host->team_run(team, fn, context, parts);
}

uint32_t bt_team_threads(const struct bt_team *team)
{
    return host->team_threads(team);
}
