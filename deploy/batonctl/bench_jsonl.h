/* Files with one JSON object a line. Nothing in them is trusted. */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_JSONL_H
#define BATON_DEPLOY_BATONCTL_BENCH_JSONL_H

#include <jansson.h>
#include <stddef.h>

#include "common/base/status.h"

/* Of any file of a load: what is longer is refused. */
#define CTL_BENCH_FILE_BYTES (512u << 20)

/* The next line, from *at on, which moves behind it; without its end. False: there is none. */
bool ctl_bench_line(const char **at, const char *end, const char **ret_line, size_t *ret_size);

typedef enum bt_status ctl_bench_object_fn(void *context, const json_t *object,
                                           struct bt_error *error);
/* `fn` for each line that is not blank, until it gives an error, which then names the line. */
enum bt_status ctl_bench_jsonl(const char *text, size_t size, ctl_bench_object_fn *fn,
                               void *context, struct bt_error *error);

#endif
