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
#include "deploy/batonctl/cores.h"

#define CTL_NAME_SIZE     64
#define CTL_ENDPOINT_SIZE 640 /* BT_ENDPOINT_SIZE, and a key */
#define CTL_MAX_WORKERS   16  /* of a role */
#define CTL_MAX_RANKS     16  /* of a worker */
#define CTL_MAX_ROUTERS   8
#define CTL_MAX_PROCESSES (CTL_MAX_ROUTERS + 2 * CTL_MAX_WORKERS * CTL_MAX_RANKS)
#define CTL_ARGS_SIZE     4096

enum ctl_role { CTL_PREFILL, CTL_DECODE, CTL_ROLES };
const char *ctl_role_name(enum ctl_role role); /* "prefill", "decode" */

struct ctl_process {
    char id[CTL_NAME_SIZE]; /* "router", "router-1", "prefill-0", of more ranks "prefill-0.1" … */
    char role[16];
    struct bt_process_id process;
    int32_t part; /* of its role's cpus, that its worker has; -1: not bound */
    bool ending;  /* it was told to, or is about to be */
};

/* How the workers of a role are started, as `up` was told. */
struct ctl_workers {
    char args[CTL_ARGS_SIZE];
    char cpus[CTL_CORES_SIZE]; /* "": not bound */
    uint32_t parts;            /* that the cpus are divided into: workers that `up` started */
    uint32_t ranks;            /* of each */
    uint32_t wanted;           /* workers that there shall be */
};

/* Where a router is. */
struct ctl_router {
    char id[CTL_NAME_SIZE];       /* of its process */
    char http[CTL_ENDPOINT_SIZE]; /* "http://127.0.0.1:8000" */
    char rpc[CTL_ENDPOINT_SIZE];  /* "tcp://127.0.0.1:5557", secured "tcp://127.0.0.1:5557#KEY" */
};

struct ctl_cluster {
    char name[CTL_NAME_SIZE];
    char dir[PATH_MAX - 256]; /* STATE/NAME; leaves room for a file name */
    char model[PATH_MAX];
    struct ctl_router routers[CTL_MAX_ROUTERS]; /* all have the same workers */
    uint32_t router_count;
    bool curve;                                       /* RPC is secured; see ctl_keys_init */
    char served_model_name[CTL_ENDPOINT_SIZE];        /* "": from the directory */
    char dtype[CTL_NAME_SIZE], device[CTL_NAME_SIZE]; /* "": each worker's default */
    char host[CTL_NAME_SIZE];    /* of HTTP, as `up` was told; so the next three */
    char local_prefill_mode[16]; /* "": the router's default */
    char router_args[CTL_ARGS_SIZE];
    bool local_prefill; /* routers may have prompts computed by decode workers */
    struct ctl_workers workers[CTL_ROLES];
    int lock; /* -1: see ctl_cluster_lock */
    /* While it is being made another: what it is until then, and after a batonctl that was killed
     * on the way. Processes behind this one's are remembered as those that have to end. */
    const struct ctl_cluster *settled; /* NULL: it is not */
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
    const char *dtype, *device;    /* NULL: each worker's default */
    const char *prefill_cpus, *decode_cpus; /* NULL: see ctl_cores_divide */
    const char *local_prefill; /* NULL: the router's default, or always without prefill workers */
    const char *router_args, *prefill_args, *decode_args; /* split at spaces; NULL: none */
    bool curve;                                           /* keys for all, and RPC with them */
    int64_t wait_ns;
};

/* Of one batonctl that changes a cluster, against all others; until ctl_cluster_unlock or the end
 * of the process. `verb` is who others are told. ALREADY_EXISTS, at once: another holds it, and
 * which. */
enum bt_status ctl_cluster_lock(struct ctl_cluster *cluster, const char *verb,
                                struct bt_error *error);
/* The same, and whoever holds it is told to end; DEADLINE: it does not. */
enum bt_status ctl_cluster_take(struct ctl_cluster *cluster, const char *verb, int64_t until_ns,
                                struct bt_error *error);
void ctl_cluster_unlock(struct ctl_cluster *cluster); /* harmless without */

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

/* For ctl_cluster_add: who its signals are held by, and how long it may take. */
struct ctl_patience {
    int interrupt; /* of ctl_interrupt_hold */
    int64_t until_ns;
};
/*
 * `count` workers more of a role, as `up` would start them, and waits until they are ready to
 * serve; none has the name of one that is there, dead or alive. Each shares the cpus of the part of
 * its role's that the fewest have. On any error stops what it started. Locked.
 */
enum bt_status ctl_cluster_add(struct ctl_cluster *cluster, enum ctl_role role, uint32_t count,
                               const struct ctl_patience *patience, struct bt_error *error);

/*
 * `count` routers in place of those that there are, which they take the HTTP ports over from as
 * soon as workers of both roles are ready for them; the others end by themselves then. Locked. On
 * any error stops what it started, and the cluster's routers are the ones before.
 */
enum bt_status ctl_cluster_succeed_routers(struct ctl_cluster *cluster,
                                           const struct ctl_patience *patience,
                                           struct bt_error *error);
/*
 * Another in place of each router that is dead, at the same endpoints, where its workers wait for
 * it. Locked. On any error the rest of the dead stay dead.
 */
enum bt_status ctl_cluster_revive_routers(struct ctl_cluster *cluster,
                                          const struct ctl_patience *patience,
                                          struct bt_error *error);
/* Its process is not there any more. */
bool ctl_cluster_router_dead(const struct ctl_cluster *cluster, const struct ctl_router *router);
/* Where router `index` hands its port over; PATH_MAX bytes. */
void ctl_cluster_handover_path(const struct ctl_cluster *cluster, uint32_t index, char *ret_path);

/* The worker that a process is of: "decode-0" of "decode-0.3"; CTL_NAME_SIZE bytes. */
void ctl_worker_of(const char *process, char ret_worker[CTL_NAME_SIZE]);

/* SIGTERM to all ranks of these workers (routers, too), and SIGKILL after `grace_ns`; returns when
 * they are gone, and forgets them. Locked. */
enum bt_status ctl_cluster_end(struct ctl_cluster *cluster, const char (*workers)[CTL_NAME_SIZE],
                               uint32_t count, int64_t grace_ns, struct bt_error *error);

/* The file of it, whole at any moment. */
enum bt_status ctl_cluster_save(const struct ctl_cluster *cluster, struct bt_error *error);

/* STATE/NAME/FILE; PATH_MAX bytes. */
void ctl_cluster_path(const struct ctl_cluster *cluster, const char *file, const char *suffix,
                      char *ret_path);
enum bt_status ctl_cluster_make_dir(const char *path, struct bt_error *error);
/* Its files. */
void ctl_cluster_remove_dir(const struct ctl_cluster *cluster);

/* SIGTERM to the routers, which end what they have begun in up to half of `grace_ns`, then to the
 * workers; SIGKILL after `grace_ns`. Returns when all are gone, and removes the directory. Locked.
 */
enum bt_status ctl_cluster_down(struct ctl_cluster *cluster, int64_t grace_ns,
                                struct bt_error *error);

#endif
