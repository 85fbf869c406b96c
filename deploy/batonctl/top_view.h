/* What `batonctl top` shows of a moment. */
#ifndef BATON_DEPLOY_BATONCTL_TOP_VIEW_H
#define BATON_DEPLOY_BATONCTL_TOP_VIEW_H

#include <jansson.h>
#include <stdio.h>

#include "proto/router.pb-c.h"

struct ctl_top_view {
    const Baton__V1__StatusResponse *status; /* NULL: the router did not answer yet */
    const Baton__V1__StatsResponse *stats;   /* NULL: it has none */
    const char *trouble;                     /* "": the router answers */
};

/* As text, all of it. */
void ctl_top_print(const struct ctl_top_view *view, FILE *out);
/* Over a screen of that size, from its upper left corner; what has no room is counted. */
void ctl_top_draw(const struct ctl_top_view *view, int rows, int columns, FILE *out);
/* NULL: no memory, or no status. */
json_t *ctl_top_json(const struct ctl_top_view *view);

#endif
