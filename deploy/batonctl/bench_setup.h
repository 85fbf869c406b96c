/* What a load needs before it begins: its files, and what the router says. */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_SETUP_H
#define BATON_DEPLOY_BATONCTL_BENCH_SETUP_H

#include "deploy/batonctl/bench_run.h"
#include "deploy/batonctl/connection.h"

#define CTL_BENCH_MODEL_SIZE 128

/* Errors name the path. */
enum bt_status ctl_bench_read_trace(const char *path, struct bt_error *error,
                                    struct ctl_bench_trace *ret_trace);
enum bt_status ctl_bench_read_dataset(const char *path, struct bt_error *error,
                                      struct ctl_bench_dataset *ret_dataset);

/* Connected, and answered: so that no request pays for it. The first is that of the connection,
 * which has none any more. */
enum bt_status ctl_bench_clients_open(struct ctl_connection *connection,
                                      const struct ctl_target *target, uint32_t count,
                                      struct bt_error *error,
                                      struct ctl_bench_clients *ret_clients);
void ctl_bench_clients_close(struct ctl_bench_clients *clients);

struct ctl_bench_served {
    char model[CTL_BENCH_MODEL_SIZE]; /* flat */
    uint32_t context;                 /* 0: not said */
    uint32_t *pool;                   /* [pool_count] ids of ordinary tokens; the caller frees */
    uint32_t pool_count;
    double tokens_per_word;
};
/* `model`, `api_key` may be NULL. NOT_FOUND: there is no such model. */
enum bt_status ctl_bench_ask(const struct ctl_bench_clients *clients, int64_t timeout_ns,
                             const char *model, const char *api_key, struct bt_error *error,
                             struct ctl_bench_served *ret_served);

#endif
