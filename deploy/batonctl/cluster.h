/*
 * A local cluster: the processes that `batonctl up` started, remembered in a directory
 * STATE/NAME/ (cluster.json, one log and one ready file a process, a socket and a secret for each
 * group of ranks, and keys where RPC is secured) so that any later batonctl finds them by name. A
 * process is known by pid and start time, so a reused pid is never signalled.
 */
#ifndef BATON_DEPLOY_BATONCTL_CLUSTER_H
#define BATON_DEPLOY_BATONCTL_CLUSTER_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"

#define CTL_NAME_SIZE     64
#define CTL_ENDPOINT_SIZE 640 /* BT_ENDPOINT_SIZE, and a key */
#define CTL_MAX_WORKERS   16  /* of a role */
#define CTL_MAX_RANKS     16  /* of a worker */
#define CTL_MAX_ROUTERS   8
#define CTL_MAX_PROCESSES (CTL_MAX_ROUTERS + 2 * CTL_MAX_WORKERS * CTL_MAX_RANKS)

struct ctl_process {
    char id[CTL_NAME_SIZE]; /* "router", "router-1", "prefill-0", of more ranks "prefill-0.1" … */
    char role[16];
    struct bt_process_id process;
};

/* Where a router is. */
struct ctl_router {
    char http[CTL_ENDPOINT_SIZE]; /* "http://127.0.0.1:8000" */
    char rpc[CTL_ENDPOINT_SIZE];  /* "tcp://127.0.0.1:5557", secured "tcp://127.0.0.1:5557#KEY" */
};

struct ctl_cluster {
    char name[CTL_NAME_SIZE];
    char dir[PATH_MAX - 256]; /* STATE/NAME; leaves room for a file name */
    char model[PATH_MAX];
    struct ctl_router routers[CTL_MAX_ROUTERS]; /* all have the same workers */
    uint32_t router_count;
    bool curve; /* RPC is secured; see ctl_keys_init */
    struct ctl_process processes[CTL_MAX_PROCESSES];
    uint32_t process_count;
};

struct ctl_up_options {
    const char *model;
    const char *served_model_name; /* NULL: from the directory */
    const char *host;
    int64_t port;                  /* of the first router; the others have those after it. 0: any */
    int64_t routers;               /* up to CTL_MAX_ROUTERS */
    int64_t prefill, decode;       /* workers */
    int64_t prefill_tp, decode_dp; /* ranks of each, a process each */
    const char *dtype;             /* NULL: each worker's default */
    const char *prefill_cpus, *decode_cpus; /* NULL: see ctl_cores_divide */
    const char *local_prefill; /* NULL: the router's default, or always without prefill workers */
    const char *router_args, *prefill_args, *decode_args; /* split at spaces; NULL: none */
    bool curve;                                           /* keys for all, and RPC with them */
    int64_t wait_ns;
};

/* Letters, digits, '-', '_' and '.', not first, up to CTL_NAME_SIZE - 1. */
bool ctl_name_ok(const char *name);

/* Where clusters live: `state_dir`, or $XDG_RUNTIME_DIR/baton, or /tmp/baton-UID. `name` holds only
 * letters, digits, '-', '_' and '.'. */
enum bt_status ctl_cluster_init(struct ctl_cluster *cluster, const char *state_dir,
                                const char *name, struct bt_error *error);

/* NOT_FOUND: no cluster of that name. */
enum bt_status ctl_cluster_load(struct ctl_cluster *cluster, struct bt_error *error);

/* True while at least one of its processes lives. */
bool ctl_cluster_alive(const struct ctl_cluster *cluster);

/* One that lives, or the first. */
const struct ctl_router *ctl_cluster_router(const struct ctl_cluster *cluster);

/* Starts and waits until every worker is ready to serve; on any error stops what it started.
 * SIGINT and SIGTERM are such an error (CANCELLED), and held from then on. */
enum bt_status ctl_cluster_up(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error);

/* SIGTERM to the routers, which end what they have begun in up to half of `grace_ns`, then to the
 * workers; SIGKILL after `grace_ns`. Returns when all are gone, and removes the directory. */
enum bt_status ctl_cluster_down(struct ctl_cluster *cluster, int64_t grace_ns,
                                struct bt_error *error);

#endif
