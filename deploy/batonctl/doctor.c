#include "deploy/batonctl/doctor.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const level_names[] = {"fine", "degraded", "broken"};

#define FRACTION_OF_LIMIT 4 /* slower than a quarter of what the link or memcpy gives: degraded */

void ctl_report_add(struct ctl_report *report, enum ctl_level level, const char *what,
                    const char *format, ...)
{
    struct ctl_finding *finding = &report->findings[report->finding_count];
    va_list arguments;

    if (report->finding_count == CTL_FINDINGS_MAX) {
        finding = &report->findings[CTL_FINDINGS_MAX - 1];
        finding->level = level > finding->level ? level : finding->level;
        return;
    }
    report->finding_count++;
    finding->level = level;
    snprintf(finding->what, sizeof(finding->what), "%s", what);
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof(finding->text), format, arguments);
    va_end(arguments);
}

void ctl_report_transfer(struct ctl_report *report, const struct ctl_transfer *transfer)
{
    bool slow =
        transfer->limit_gbps > 0 && transfer->gbps * FRACTION_OF_LIMIT < transfer->limit_gbps;
    char what[96], limit[96] = "";

    if (report->transfer_count < CTL_FINDINGS_MAX)
        report->transfers[report->transfer_count++] = *transfer;
    if (transfer->limit_gbps > 0)
        snprintf(limit, sizeof(limit), ", %.0f %% of the %.2f GB/s that %s",
                 100 * transfer->gbps / transfer->limit_gbps, transfer->limit_gbps,
                 strcmp(transfer->transport, "shm") != 0 ? "the slower end's link has"
                                                         : "memcpy does here");
    snprintf(what, sizeof(what), "%.40s to %.40s", transfer->from, transfer->to);
    ctl_report_add(report, slow ? CTL_DEGRADED : CTL_FINE, what,
                   "%s%s%s: one token in %.0f us, %.2f GB/s%s", transfer->transport,
                   transfer->device[0] != '\0' ? " over " : "", transfer->device,
                   transfer->latency_us, transfer->gbps, limit);
}

enum ctl_level ctl_report_level(const struct ctl_report *report)
{
    enum ctl_level level = CTL_FINE;

    for (uint32_t i = 0; i < report->finding_count; i++)
        level = report->findings[i].level > level ? report->findings[i].level : level;
    return level;
}

static void print_text(const struct ctl_report *report)
{
    for (uint32_t i = 0; i < report->finding_count; i++) {
        const struct ctl_finding *finding = &report->findings[i];
        printf("%-9s %-22s %s\n", level_names[finding->level], finding->what, finding->text);
    }
    printf("\nverdict: %s\n", level_names[ctl_report_level(report)]);
}

static int print_json(const struct ctl_report *report)
{
    json_t *findings = json_array(), *transfers = json_array(), *trips = json_array(), *all;
    int failed;

    for (uint32_t i = 0; i < report->finding_count; i++) {
        const struct ctl_finding *finding = &report->findings[i];
        json_array_append_new(findings,
                              json_pack("{s:s,s:s,s:s}", "level", level_names[finding->level],
                                        "what", finding->what, "text", finding->text));
    }
    for (uint32_t i = 0; i < report->transfer_count; i++) {
        const struct ctl_transfer *transfer = &report->transfers[i];
        json_array_append_new(
            transfers,
            json_pack("{s:s,s:s,s:s,s:s,s:f,s:f,s:f,s:I}", "from", transfer->from, "to",
                      transfer->to, "transport", transfer->transport, "device", transfer->device,
                      "latency_us", transfer->latency_us, "gbps", transfer->gbps, "limit_gbps",
                      transfer->limit_gbps, "bytes", (json_int_t)transfer->bytes));
    }
    for (uint32_t i = 0; i < report->round_trip_count; i++)
        json_array_append_new(trips, json_pack("{s:s,s:f}", "worker", report->round_trips[i].worker,
                                               "us", report->round_trips[i].us));
    all = json_pack("{s:s,s:o,s:o,s:o}", "verdict", level_names[ctl_report_level(report)],
                    "findings", findings, "transfers", transfers, "round_trips", trips);
    failed = all == NULL || json_dumpf(all, stdout, JSON_INDENT(2)) != 0;
    json_decref(all);
    printf("\n");
    return failed;
}

static const char usage[] =
    "batonctl doctor [OPTIONS] [WORKER_A WORKER_B]\n\n"
    "  batonctl doctor                     this machine: devices, limits, GPUs and what they take "
    "(module,\n"
    "                                      driver, NCCL, UCX, GPUDirect), a push over each "
    "transport\n"
    "  batonctl doctor prefill-0 decode-0  any two running workers: what each has, and real pushes "
    "from\n"
    "                                      a prefill to a decode worker\n\n"
    "KV goes from a prefill worker to a decode worker and no other way, so the order of the two "
    "names\n"
    "is all one, and of two workers of one role it is compared what they offer. Each worker tells\n"
    "itself what it has; the round trip of control messages is that from here.\n"
    "exit codes: 0 fine, 1 degraded (it works, slower than it could), 2 broken,\n"
    "            3 the question could not be asked (usage, unknown worker, no cluster)";

int ctl_verb_doctor(int argc, char **argv)
{
    static const char *const outputs[] = {"table", "json", NULL};
    static const char *const transports[] = {"any", "shm", "tcp", "rdma", NULL};
    static struct ctl_report report;
    struct ctl_target target;
    struct bt_error error;
    int output, transport, used;
    int64_t tokens;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        {"expect", BT_OPTION_CHOICE, &transport, "any", 0, 0, transports, NULL,
         "the transport that has to be in use; of two workers of one role, to be offered by both; "
         "without workers, the only one that is tried",
         false},
        {"tokens", BT_OPTION_INT, &tokens, "1024", 1, 1 << 20, NULL, NULL,
         "length of the pushes between two workers", false},
        {"output", BT_OPTION_CHOICE, &output, "table", 0, 0, outputs, NULL, "how to print", false,
         .letter = 'o'},
        {0},
    };
    int code = ctl_parse(options, usage, argc, argv, &used);

    if (code >= 0)
        return code == CTL_EXIT_USAGE ? CTL_DOCTOR_NOT_ASKED : code;
    if (argc - used != 0 && argc - used != 2) {
        fprintf(stderr, "batonctl doctor: name two workers, or none; see --help\n");
        return CTL_DOCTOR_NOT_ASKED;
    }
    if (argc == used) {
        ctl_doctor_machine(&report, target.timeout_ns);
        ctl_doctor_loops(&report, transport > 0 ? transports[transport] : NULL, target.timeout_ns);
    } else if (ctl_doctor_pair(&report, &target, argv[used], argv[used + 1],
                               transport > 0 ? transports[transport] : NULL, (uint32_t)tokens,
                               &error) != BT_OK) {
        fprintf(stderr, "batonctl doctor: %s\n", error.text);
        return CTL_DOCTOR_NOT_ASKED;
    }
    if (output == 0)
        print_text(&report);
    else if (print_json(&report) != 0)
        return CTL_DOCTOR_NOT_ASKED;
    return (int)ctl_report_level(&report);
}
