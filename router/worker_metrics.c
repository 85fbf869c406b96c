#include "router/worker_metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/exposition.h"
#include "router/service_state.h"

/* What one worker answered. */
struct answer {
    struct rt_scrape *scrape;
    char worker[RT_WORKER_ID_SIZE];
    enum rt_role role;
    char *text; /* NULL: nothing */
    size_t size;
};

struct rt_scrape {
    struct rt_service *service;
    struct answer *answers; /* [count], while it runs */
    size_t count, unanswered, bytes;
    size_t untold; /* workers that were not asked */
    bool starting;
    struct rt_scrape_waiter *waiters;
    char *page;
    size_t page_size;
    int64_t page_ns;
};

struct rt_scrape *rt_scrape_create(struct rt_service *service)
{
    struct rt_scrape *scrape = calloc(1, sizeof *scrape);
    if (scrape) {
        scrape->service = service;
    }
    return scrape;
}

static void free_answers(struct rt_scrape *scrape)
{
    for (size_t i = 0; i < scrape->count; i++) {
        free(scrape->answers[i].text);
    }
    free(scrape->answers);
    scrape->answers = NULL;
    scrape->count = 0;
}

void rt_scrape_destroy(struct rt_scrape *scrape)
{
    if (!scrape) {
        return;
    }
    BT_ASSERT(scrape->unanswered == 0);
    free_answers(scrape);
    free(scrape->page);
    free(scrape);
}

/* ---- the page */

static void print_family(const struct rt_scrape *scrape, const struct rt_exposition_page *pages,
                         bool up, FILE *out)
{
    const char *name = up ? RT_EXPOSITION_RESERVED "up" : RT_EXPOSITION_RESERVED "rejected_lines";
    fprintf(out, "# HELP %s %s\n# TYPE %s gauge\n", name,
            up ? "1: the worker's metrics are on this page."
               : "Lines of the worker's metrics that were not right, or too many.",
            name);
    for (size_t i = 0; i < scrape->count; i++) {
        const struct answer *answer = &scrape->answers[i];
        fprintf(out, "%s{worker=\"%s\",role=\"%s\"} %u\n", name, answer->worker,
                rt_role_names[answer->role], up ? answer->text != NULL : pages[i].rejected);
    }
}

static void print_page(const struct rt_scrape *scrape, struct rt_exposition_page *pages, FILE *out)
{
    static const char untold[] = RT_EXPOSITION_RESERVED "untold";
    for (size_t i = 0; i < scrape->count; i++) {
        const struct answer *answer = &scrape->answers[i];
        pages[i] = (struct rt_exposition_page){
            .worker = answer->worker, .text = answer->text, .size = answer->size};
    }
    if (!rt_exposition_merge(pages, scrape->count, out)) {
        fprintf(out, "# no memory for the workers' lines\n");
    }
    print_family(scrape, pages, true, out);
    print_family(scrape, pages, false, out);
    fprintf(out, "# HELP %s Workers that are too many to be asked.\n# TYPE %s gauge\n%s %zu\n",
            untold, untold, untold, scrape->untold);
}

static void make_page(struct rt_scrape *scrape)
{
    struct rt_exposition_page *pages = calloc(scrape->count + 1, sizeof *pages);
    char *text = NULL;
    size_t size = 0;
    FILE *out = pages ? open_memstream(&text, &size) : NULL;
    if (out) {
        print_page(scrape, pages, out);
        if (fclose(out) != 0) {
            free(text);
            text = NULL;
        }
    }
    free(pages);
    free(scrape->page);
    scrape->page = text;
    scrape->page_size = text ? size : 0;
    scrape->page_ns = bt_clock_now_ns();
}

/* All have answered, or will not. */
static void finish(struct rt_scrape *scrape)
{
    struct rt_scrape_waiter *waiters = scrape->waiters;
    scrape->waiters = NULL;
    make_page(scrape);
    free_answers(scrape);
    scrape->bytes = 0;
    while (waiters) {
        struct rt_scrape_waiter *next = waiters->next;
        waiters->next = NULL;
        waiters->fn(waiters->context);
        waiters = next;
    }
}

/* ---- the calls */

/* The last line is whole. */
static size_t cut(const char *text, size_t size, size_t limit)
{
    if (size <= limit) {
        return size;
    }
    while (limit > 0 && text[limit - 1] != '\n') {
        limit--;
    }
    return limit;
}

static void keep_text(struct answer *answer, const char *text)
{
    struct rt_scrape *scrape = answer->scrape;
    size_t left = RT_SCRAPE_BYTES - scrape->bytes;
    size_t limit = left < RT_SCRAPE_WORKER_BYTES ? left : RT_SCRAPE_WORKER_BYTES;
    answer->size = cut(text, strlen(text), limit);
    answer->text = malloc(answer->size + 1);
    if (answer->text) {
        memcpy(answer->text, text, answer->size);
        scrape->bytes += answer->size;
    }
}

static void on_answer(void *context, enum bt_status status, const char *text,
                      const ProtobufCMessage *response)
{
    (void)text;
    struct answer *answer = context;
    struct rt_scrape *scrape = answer->scrape;
    if (status == BT_OK && response) {
        keep_text(answer, ((const Baton__V1__MetricsResponse *)response)->text);
    }
    if (--scrape->unanswered == 0 && !scrape->starting) {
        finish(scrape);
    }
}

static void ask(struct rt_scrape *scrape, const struct rt_worker_link *link)
{
    struct answer *answer = &scrape->answers[scrape->count++];
    Baton__V1__MetricsRequest request = BATON__V1__METRICS_REQUEST__INIT;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Worker/Metrics",
        .request = &request.base,
        .response = &baton__v1__metrics_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + RT_SCRAPE_NS,
        .on_end = on_answer,
        .context = answer,
    };
    *answer = (struct answer){.scrape = scrape, .role = link->role};
    memcpy(answer->worker, link->id, sizeof answer->worker);
    if (link->client && bt_rpc_client_call(link->client, &spec, NULL, NULL) == BT_OK) {
        scrape->unanswered++;
    }
}

static void start(struct rt_scrape *scrape)
{
    const struct rt_service *service = scrape->service;
    scrape->untold = 0;
    scrape->answers = calloc(RT_SCRAPE_WORKERS, sizeof *scrape->answers);
    scrape->starting = true;
    for (const struct rt_worker_link *link = service->links.first; link; link = link->next) {
        struct rt_worker_view view;
        bool lost =
            !rt_core_worker(service->core, link->ref, &view) || view.state == RT_WORKER_LOST;
        if (!lost && scrape->answers && scrape->count < RT_SCRAPE_WORKERS) {
            ask(scrape, link);
        } else {
            scrape->untold += !lost;
        }
    }
    scrape->starting = false;
}

/* ---- who asks */

bool rt_service_scrape(struct rt_service *service, struct rt_scrape_waiter *waiter)
{
    struct rt_scrape *scrape = service->scrape;
    int64_t now_ns = bt_clock_now_ns();
    if (scrape->unanswered == 0) {
        if (scrape->page && now_ns - scrape->page_ns < RT_SCRAPE_KEPT_NS) {
            return true;
        }
        start(scrape);
        if (scrape->unanswered == 0) {
            finish(scrape);
            return true;
        }
    }
    waiter->next = scrape->waiters;
    scrape->waiters = waiter;
    return false;
}

void rt_service_scrape_cancel(struct rt_service *service, struct rt_scrape_waiter *waiter)
{
    struct rt_scrape_waiter **at = &service->scrape->waiters;
    while (*at && *at != waiter) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = waiter->next;
    }
}

char *rt_service_scraped(const struct rt_service *service, size_t *ret_size)
{
    const struct rt_scrape *scrape = service->scrape;
    char *copy = scrape->page ? malloc(scrape->page_size + 1) : NULL;
    if (copy) {
        memcpy(copy, scrape->page, scrape->page_size);
        copy[scrape->page_size] = '\0';
        *ret_size = scrape->page_size;
    }
    return copy;
}
