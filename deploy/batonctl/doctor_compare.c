/* Two workers as they tell of themselves: whether, and by what, one can reach the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/kvcache/layout.h"
#include "deploy/batonctl/doctor.h"
#include "kvtransfer/preflight.h"

#define ROUND_TRIPS 9

/* ---- one end ---- */

static enum bt_status ask(const struct ctl_end *end, bool brief, int64_t timeout_ns,
                          struct bt_error *error, Baton__V1__PreflightResponse **ret_preflight)
{
    Baton__V1__PreflightRequest request = BATON__V1__PREFLIGHT_REQUEST__INIT;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Worker/Preflight",
                                          .request = &request.base,
                                          .response = &baton__v1__preflight_response__descriptor,
                                          .deadline_ns = bt_clock_now_ns() + timeout_ns};
    ProtobufCMessage *response = NULL;
    enum bt_status status;

    request.brief = brief;
    status = bt_rpc_client_call_wait(end->client, &spec, error, &response);
    if (status == BT_OK)
        *ret_preflight = (Baton__V1__PreflightResponse *)response;
    return status;
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static bool measure_round_trip(const struct ctl_end *end, int64_t timeout_ns,
                               struct bt_error *error, double *ret_us)
{
    int64_t times[ROUND_TRIPS];

    for (int i = 0; i < ROUND_TRIPS; i++) {
        Baton__V1__PreflightResponse *answer = NULL;
        int64_t begin_ns = bt_clock_now_ns();
        if (ask(end, true, timeout_ns, error, &answer) != BT_OK)
            return false;
        times[i] = bt_clock_now_ns() - begin_ns;
        baton__v1__preflight_response__free_unpacked(answer, NULL);
    }
    qsort(times, ROUND_TRIPS, sizeof(times[0]), compare_times);
    *ret_us = (double)times[ROUND_TRIPS / 2] / 1000;
    return true;
}

static void say_silent(struct ctl_report *report, const char *who, const struct bt_error *error)
{
    ctl_report_add(report, CTL_BROKEN, who, "%s%.400s",
                   error->status == BT_ERR_DEADLINE ? "does not answer in time: " : "",
                   error->text);
}

void ctl_end_init(struct ctl_end *end, struct bt_loop *loop, const Baton__V1__WorkerStatus *status,
                  int64_t timeout_ns, struct ctl_report *report)
{
    struct ctl_round_trip *trip = &report->round_trips[report->round_trip_count];
    const char *who = status->worker_id;
    bool serves = strcmp(status->state, "ready") == 0;
    Baton__V1__PreflightResponse *preflight = NULL;
    struct bt_error error = {0};

    *end = (struct ctl_end){.status = status};
    ctl_report_add(report, serves ? CTL_FINE : CTL_BROKEN, who,
                   "%s; last heartbeat %.1f s ago, pid %lld, %.200s", status->state,
                   status->last_heartbeat_s, (long long)status->pid, status->control_endpoint);
    if (bt_rpc_client_create(loop, status->control_endpoint, &error, &end->client) != BT_OK ||
        ask(end, false, timeout_ns, &error, &preflight) != BT_OK) {
        say_silent(report, who, &error);
        return;
    }
    if (!measure_round_trip(end, timeout_ns, &error, &trip->us)) {
        baton__v1__preflight_response__free_unpacked(preflight, NULL);
        say_silent(report, who, &error);
        return;
    }
    end->preflight = preflight;
    snprintf(trip->worker, sizeof(trip->worker), "%.63s", who);
    report->round_trip_count++;
    ctl_report_add(report, CTL_FINE, who,
                   "a control message from here and back: %.0f us; offers %s", trip->us,
                   preflight->transport);
    ctl_doctor_judge(report, who, preflight);
}

void ctl_end_finish(struct ctl_end *end)
{
    bt_rpc_client_destroy(end->client);
    if (end->preflight != NULL)
        baton__v1__preflight_response__free_unpacked(end->preflight, NULL);
}

/* ---- both ---- */

static void between(const struct ctl_end *a, const struct ctl_end *b, char *text, size_t size)
{
    snprintf(text, size, "%.40s, %.40s", a->status->worker_id, b->status->worker_id);
}

bool ctl_doctor_same_host(const struct ctl_end *a, const struct ctl_end *b)
{
    const Baton__V1__ProcessId *x = a->preflight->process, *y = b->preflight->process;

    return x != NULL && y != NULL && x->host[0] != '\0' && strcmp(x->host, y->host) == 0;
}

static bool is_here(const struct ctl_end *end)
{
    struct bt_process_id self;

    return end->preflight->process != NULL && bt_process_self(NULL, &self) == BT_OK &&
           strcmp(end->preflight->process->host, self.host) == 0;
}

/* Whether "shm,tcp" has the name. */
static bool offers(const char *list, const char *name, size_t length)
{
    for (const char *at = list; *at != '\0'; at += at[strcspn(at, ",")] == ',') {
        size_t size = strcspn(at, ",");
        if (size == length && memcmp(at, name, length) == 0)
            return true;
        at += size;
    }
    return false;
}

static void in_common(const char *a, const char *b, char *text, size_t size)
{
    for (const char *at = a; *at != '\0'; at += *at == ',') {
        size_t length = strcspn(at, ",");
        if (offers(b, at, length))
            snprintf(text + strlen(text), size - strlen(text), "%s%.*s", text[0] != '\0' ? "," : "",
                     (int)length, at);
        at += length;
    }
}

static bool compare_transports(struct ctl_report *report, const struct ctl_end *a,
                               const struct ctl_end *b, const char *expected, const char *what)
{
    char common[64] = "";

    in_common(a->preflight->transport, b->preflight->transport, common, sizeof(common));
    if (common[0] == '\0')
        ctl_report_add(report, CTL_BROKEN, what, "no transport in common: %.60s and %.60s",
                       a->preflight->transport, b->preflight->transport);
    else if (expected != NULL && !offers(common, expected, strlen(expected)))
        ctl_report_add(report, CTL_BROKEN, what, "%s is not offered by both: %.60s and %.60s",
                       expected, a->preflight->transport, b->preflight->transport);
    else
        ctl_report_add(report, CTL_FINE, what, "transports in common: %s; %s", common,
                       ctl_doctor_same_host(a, b) ? "on one host" : "on two hosts");
    return common[0] != '\0';
}

static bool compare_fingerprints(struct ctl_report *report, const struct ctl_end *a,
                                 const struct ctl_end *b, const char *what)
{
    struct bt_fingerprint x, y;
    struct bt_error error = {0};

    if (bt_fingerprint_from_message(a->preflight->fingerprint, &error, &x) == BT_OK &&
        bt_fingerprint_from_message(b->preflight->fingerprint, &error, &y) == BT_OK &&
        bt_fingerprint_compare(&x, &y, &error) == BT_OK)
        return true;
    ctl_report_add(report, CTL_BROKEN, what, "pages of one are not those of the other: %.400s",
                   error.text);
    return false;
}

/* The rails of one end: how they speak. */
struct fabric {
    uint32_t infiniband, ethernet, ipv4, ipv6, mtu; /* the smallest MTU */
};

static struct fabric fabric_of(const Baton__V1__PreflightResponse *preflight)
{
    struct fabric fabric = {0};

    for (size_t i = 0; i < preflight->n_port; i++) {
        const Baton__V1__PreflightPort *port = preflight->port[i];
        bool ipv4 = strncmp(port->gid, "::ffff:", 7) == 0;
        if (!port->rail)
            continue;
        fabric.infiniband += port->infiniband;
        fabric.ethernet += !port->infiniband;
        fabric.ipv4 += !port->infiniband && ipv4;
        fabric.ipv6 += !port->infiniband && !ipv4;
        fabric.mtu = fabric.mtu == 0 || port->mtu < fabric.mtu ? port->mtu : fabric.mtu;
    }
    return fabric;
}

static void compare_fabrics(struct ctl_report *report, const struct ctl_end *a,
                            const struct ctl_end *b, const char *what)
{
    struct fabric x = fabric_of(a->preflight), y = fabric_of(b->preflight);
    uint64_t rates[] = {kvt_preflight_rails_mbps(a->preflight),
                        kvt_preflight_rails_mbps(b->preflight)};

    if (rates[0] == 0 && rates[1] == 0)
        return;
    if (rates[0] == 0 || rates[1] == 0)
        ctl_report_add(report, CTL_DEGRADED, what, "only %s has RDMA",
                       rates[0] != 0 ? a->status->worker_id : b->status->worker_id);
    else if ((x.infiniband == 0) != (y.infiniband == 0) && (x.ethernet == 0) != (y.ethernet == 0))
        ctl_report_add(report, CTL_DEGRADED, what,
                       "RDMA over InfiniBand at one end and over Ethernet at the other");
    else if ((x.ipv4 > 0 && y.ipv4 == 0 && y.ipv6 > 0) || (y.ipv4 > 0 && x.ipv4 == 0 && x.ipv6 > 0))
        ctl_report_add(report, CTL_DEGRADED, what,
                       "RoCE by IPv4 at one end and by IPv6 at the other");
    else if (x.mtu != y.mtu)
        ctl_report_add(report, CTL_DEGRADED, what, "RDMA MTU %u at one end and %u at the other",
                       x.mtu, y.mtu);
    else
        ctl_report_add(report, CTL_FINE, what, "RDMA of one kind, %.1f and %.1f Gb/s",
                       (double)rates[0] / 1000, (double)rates[1] / 1000);
}

bool ctl_doctor_compare(struct ctl_report *report, const struct ctl_end *a, const struct ctl_end *b,
                        const char *expected)
{
    char what[96];
    bool fits;

    between(a, b, what, sizeof(what));
    fits = compare_fingerprints(report, a, b, what);
    fits = compare_transports(report, a, b, expected, what) && fits;
    compare_fabrics(report, a, b, what);
    return fits;
}

static double lower(uint64_t a_mbps, uint64_t b_mbps)
{
    return (double)(a_mbps < b_mbps ? a_mbps : b_mbps) / 8000;
}

double ctl_doctor_limit_gbps(const struct ctl_end *a, const struct ctl_end *b,
                             const char *transport)
{
    if (strcmp(transport, "shm") == 0 && is_here(a) && is_here(b))
        return ctl_doctor_memcpy_gbps();
    if (strcmp(transport, "rdma") == 0)
        return lower(kvt_preflight_rails_mbps(a->preflight),
                     kvt_preflight_rails_mbps(b->preflight));
    if (strcmp(transport, "tcp") == 0 && !ctl_doctor_same_host(a, b))
        return lower(a->preflight->net_mbps, b->preflight->net_mbps);
    return 0;
}
