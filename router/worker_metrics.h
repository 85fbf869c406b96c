/*
 * The workers' own metrics on one page: asks them (Worker/Metrics) all at once, waits for the
 * answers for RT_SCRAPE_NS at most, and keeps the page for RT_SCRAPE_KEPT_NS. Loop thread only.
 *
 * Of a group of prefill ranks rank 0 answers alone.
 */
#ifndef BATON_ROUTER_WORKER_METRICS_H
#define BATON_ROUTER_WORKER_METRICS_H

#include <stddef.h>

#include "common/base/clock.h"

#define RT_SCRAPE_NS      (2 * BT_NS_PER_S)
#define RT_SCRAPE_KEPT_NS BT_NS_PER_S
#define RT_SCRAPE_WORKERS 512 /* more are not asked, and told as such */
#define RT_SCRAPE_WORKER_BYTES                                                                     \
    ((size_t)256 << 10)                    /* of an answer; the lines behind are left out          \
                                            */
#define RT_SCRAPE_BYTES ((size_t)16 << 20) /* of all answers */

struct rt_service;
struct rt_scrape;

/* One that waits for the page; zeroed, its owner's. */
struct rt_scrape_waiter {
    void (*fn)(void *context); /* the page is there, or will not be; not inside of the request */
    void *context;
    struct rt_scrape_waiter *next;
};

struct rt_scrape *rt_scrape_create(struct rt_service *service); /* NULL: no memory */
/* The links are gone. NULL is fine. */
void rt_scrape_destroy(struct rt_scrape *scrape);

#endif
