#include "deploy/batonctl/top_view.h"

#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/status_view.h"

#define BAR_SIZE   20
#define HEAD_LINES 6 /* with the table's head */

static void print_quantiles(const char *name, const Baton__V1__Quantiles *quantiles, FILE *out)
{
    if (quantiles && quantiles->count > 0)
        fprintf(out, "%s p50 %.1f p90 %.1f p99 %.1f ms", name, 1e3 * quantiles->p50_s,
                1e3 * quantiles->p90_s, 1e3 * quantiles->p99_s);
    else
        fprintf(out, "%s -", name);
}

static void print_stats(const struct ctl_top_view *view, FILE *out)
{
    const Baton__V1__StatsResponse *stats = view->stats;
    if (!stats) {
        fprintf(out, "the router has no figures of the last minute\n\n");
        return;
    }
    print_quantiles("TTFT", stats->ttft, out);
    fprintf(out, "   ");
    print_quantiles("TPOT", stats->tpot, out);
    fprintf(out,
            "\nrequests/s %.2f  failed/s %.2f  shed/s %.2f  tokens/s %.1f in %.1f out  "
            "transfer %.3f GB/s\n",
            stats->requests_s, stats->failed_s, stats->shed_s, stats->prompt_tokens_s,
            stats->generated_tokens_s, stats->kv_bytes_s / 1e9);
}

static void print_head(const struct ctl_top_view *view, FILE *out)
{
    const Baton__V1__StatusResponse *status = view->status;
    fprintf(out, "baton  %s  %s  up %.0f s%s%s\n", status->model, status->http_endpoint,
            ctl_view_number(status->uptime_s), view->trouble[0] ? "  " : "", view->trouble);
    fprintf(out, "workers %zu  requests %zu  queue %u/%u\n", status->n_workers, status->n_requests,
            status->queued, status->queue_capacity);
    print_stats(view, out);
    fprintf(out, "\n%-16s %-8s %-11s %-*s %5s %6s %6s %10s  %s\n", "WORKER", "ROLE", "STATE",
            BAR_SIZE + 2, "KV", "", "RUN", "WAIT", "KV TOKENS", "TRANSPORT");
}

static void print_worker(const Baton__V1__WorkerStatus *worker, FILE *out)
{
    Baton__V1__RankLoad load = ctl_view_load(worker);
    uint32_t free = load.pages_free < load.pages_total ? load.pages_free : load.pages_total;
    double used = load.pages_total > 0 ? 1 - (double)free / load.pages_total : 0;
    int full = (int)(used * BAR_SIZE + 0.5);
    char bar[BAR_SIZE + 1];
    memset(bar, ' ', BAR_SIZE);
    memset(bar, '|', (size_t)full);
    bar[BAR_SIZE] = '\0';
    fprintf(out, "%-16.64s %-8s %-11.32s [%s] %4.0f%% %6u %6u %10llu  %.64s\n", worker->worker_id,
            ctl_view_role(worker), worker->state, bar, 100 * used, load.running, load.waiting,
            (unsigned long long)load.kv_tokens, worker->transport);
}

void ctl_top_print(const struct ctl_top_view *view, FILE *out)
{
    if (!view->status) {
        fprintf(out, "%s\n", view->trouble);
        return;
    }
    print_head(view, out);
    for (size_t i = 0; i < view->status->n_workers; i++)
        print_worker(view->status->workers[i], out);
}

/* Its first `columns` characters, and nothing behind them. */
static void draw_line(const char *line, size_t size, int columns, FILE *out)
{
    size_t end = 0;
    for (int left = columns; end < size; end++) {
        bool begins = ((unsigned char)line[end] & 0xc0) != 0x80;
        if (begins && left-- == 0)
            break;
    }
    fwrite(line, 1, end, out);
    fputs("\x1b[K", out);
}

void ctl_top_draw(const struct ctl_top_view *view, int rows, int columns, FILE *out)
{
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    if (!stream)
        return;
    ctl_top_print(view, stream);
    fclose(stream);
    int lines = 0, row = 0;
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    fputs("\x1b[H", out);
    for (const char *at = text; *at && row < rows; row++) {
        size_t length = strcspn(at, "\n");
        bool head = view->status && row == HEAD_LINES - 1;
        if (row > 0)
            fputs("\n", out);
        if (row == rows - 1 && lines > rows) {
            char more[48];
            int more_size = snprintf(more, sizeof(more), "... and %d lines more", lines - row);
            draw_line(more, (size_t)more_size, columns, out);
            break;
        }
        fputs(head ? "\x1b[7m" : "", out);
        draw_line(at, length, columns, out);
        fputs(head ? "\x1b[0m" : "", out);
        at += length + (at[length] == '\n');
    }
    if (row < rows)
        fputs("\n\x1b[J", out);
    free(text);
}

static json_t *quantiles_json(const Baton__V1__Quantiles *quantiles)
{
    if (!quantiles || quantiles->count == 0)
        return json_null();
    return json_pack("{s:I,s:f,s:f,s:f}", "count", (json_int_t)quantiles->count, "p50_s",
                     quantiles->p50_s, "p90_s", quantiles->p90_s, "p99_s", quantiles->p99_s);
}

json_t *ctl_top_json(const struct ctl_top_view *view)
{
    const Baton__V1__StatusResponse *status = view->status;
    const Baton__V1__StatsResponse *stats = view->stats;
    if (!status)
        return NULL;
    json_t *json = json_pack(
        "{s:s,s:s,s:f,s:I,s:I,s:o,s:o}", "model", status->model, "http", status->http_endpoint,
        "uptime_s", ctl_view_number(status->uptime_s), "queued", (json_int_t)status->queued,
        "queue_capacity", (json_int_t)status->queue_capacity, "workers",
        ctl_view_workers_json(status), "requests", ctl_view_requests_json(status));
    if (stats)
        json_object_set_new(
            json, "stats",
            json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:o,s:o}", "requests_per_s", stats->requests_s,
                      "failed_per_s", stats->failed_s, "shed_per_s", stats->shed_s,
                      "prompt_tokens_per_s", stats->prompt_tokens_s, "generated_tokens_per_s",
                      stats->generated_tokens_s, "transfer_bytes_per_s", stats->kv_bytes_s, "ttft",
                      quantiles_json(stats->ttft), "tpot", quantiles_json(stats->tpot)));
    return json;
}
