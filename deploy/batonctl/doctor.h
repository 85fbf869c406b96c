/*
 * batonctl doctor: what stands between two workers, looked at and measured. Each finding has a
 * level and a sentence; the worst level is the verdict and the exit code.
 */
#ifndef BATON_DEPLOY_BATONCTL_DOCTOR_H
#define BATON_DEPLOY_BATONCTL_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/messaging/rpc.h"
#include "deploy/batonctl/verbs.h"
#include "proto/router.pb-c.h"
#include "proto/worker.pb-c.h"

#define CTL_FINDINGS_MAX 128

enum ctl_level { CTL_FINE = 0, CTL_DEGRADED = 1, CTL_BROKEN = 2 };
#define CTL_DOCTOR_NOT_ASKED 3 /* exit code: wrong usage, unknown worker, no cluster */

struct ctl_finding {
    enum ctl_level level;
    char what[96]; /* "memlock", "transfer over tcp" */
    char text[512];
};

/* A measured way from one side to the other. */
struct ctl_transfer {
    char from[64], to[64];
    char transport[16], device[64]; /* "": no device of its own */
    double latency_us;              /* of one token */
    double gbps;                    /* gigabytes a second */
    double limit_gbps;              /* of the link, or of memcpy; 0: not known */
    uint64_t bytes;
};

/* Of a control message from here to a worker and back. */
struct ctl_round_trip {
    char worker[64];
    double us;
};

struct ctl_report {
    struct ctl_finding findings[CTL_FINDINGS_MAX];
    uint32_t finding_count;
    struct ctl_transfer transfers[CTL_FINDINGS_MAX];
    uint32_t transfer_count;
    struct ctl_round_trip round_trips[2];
    uint32_t round_trip_count;
};

/* Those past CTL_FINDINGS_MAX are dropped, but for their level. */
void ctl_report_add(struct ctl_report *report, enum ctl_level level, const char *what,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Adds the transfer and the finding that says what it means. */
void ctl_report_transfer(struct ctl_report *report, const struct ctl_transfer *transfer);
enum ctl_level ctl_report_level(const struct ctl_report *report);

/* doctor_machine.c: devices, ports, GIDs, memlock, shared memory, huge pages, GPU memory; GPUs as
 * doctor_gpu.h has them. Must run before this process uses CUDA or UCX. */
void ctl_doctor_machine(struct ctl_report *report, int64_t timeout_ns);
/* The same of a worker that told; `who` is its name. */
void ctl_doctor_judge(struct ctl_report *report, const char *who,
                      const Baton__V1__PreflightResponse *preflight);

/* doctor_compare.c: one of two workers. */
struct ctl_end {
    const Baton__V1__WorkerStatus *status;   /* as the router sees it */
    struct bt_rpc_client *client;            /* NULL: could not be made */
    Baton__V1__PreflightResponse *preflight; /* NULL: it does not answer */
};

/* Asks, judges, measures the round trip; what fails is in the report. Finish it in any case. */
void ctl_end_init(struct ctl_end *end, struct bt_loop *loop, const Baton__V1__WorkerStatus *status,
                  int64_t timeout_ns, struct ctl_report *report);
void ctl_end_finish(struct ctl_end *end);
/* What the two offer each other. `expected`: the transport that both have to offer, or NULL. False:
 * they can't be connected. Both have answered. */
bool ctl_doctor_compare(struct ctl_report *report, const struct ctl_end *a, const struct ctl_end *b,
                        const char *expected);
/* The slower end's rate for this transport, gigabytes a second; 0: not known. */
double ctl_doctor_limit_gbps(const struct ctl_end *a, const struct ctl_end *b,
                             const char *transport);
bool ctl_doctor_same_host(const struct ctl_end *a, const struct ctl_end *b);

/* doctor_loop.c: pushes between two processes over each transport of this machine, or over `only`.
 * Must run before this process uses UCX. */
void ctl_doctor_loops(struct ctl_report *report, const char *only, int64_t timeout_ns);
double ctl_doctor_memcpy_gbps(void);

/* doctor_pair.c: two running workers: what each has, what they offer each other, and, from a
 * prefill to a decode worker, pushes by the ordinary protocol. The status is that of asking the
 * router: NOT_FOUND names the workers there are. */
enum bt_status ctl_doctor_pair(struct ctl_report *report, const struct ctl_target *target,
                               const char *worker_a, const char *worker_b, const char *expected,
                               uint32_t tokens, struct bt_error *error);

#endif
