/*
 * Pages of metrics of several workers made into one: each family once, its samples with a label
 * `worker`. The pages come from peers: what is not right is left out and counted, and whatever a
 * page says, the result is valid exposition text (Prometheus 0.0.4), and the lines of other workers
 * are in it. Pure.
 */
#ifndef BATON_ROUTER_EXPOSITION_H
#define BATON_ROUTER_EXPOSITION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define RT_EXPOSITION_LINES    16384 /* of a page; more are left out */
#define RT_EXPOSITION_FAMILIES 512   /* that a page may begin */
#define RT_EXPOSITION_LABELS   32    /* of a sample */
#define RT_EXPOSITION_NAME     200   /* longest name */
#define RT_EXPOSITION_LINE     4096  /* longest line */
/* Families of this name are the caller's. */
#define RT_EXPOSITION_RESERVED "baton_worker_scrape_"

struct rt_exposition_page {
    const char *worker; /* its id: needs no escapes; each once */
    const char *text;   /* [size] */
    size_t size;
    uint32_t rejected; /* out: lines that were left out */
};

/* A family has the type that most pages give it. False: no memory, nothing was written. */
bool rt_exposition_merge(struct rt_exposition_page *pages, size_t count, FILE *out);

#endif
