/*
 * Charts as SVG: lines, points and bars over linear or logarithmic axes, several below each other
 * in one file. Self-contained (no style sheet, script or font from elsewhere), without a
 * background, in colours that are seen on light and on dark. Whoever points at a mark sees its
 * series and its values. Pure but for the file; any thread.
 */
#ifndef BATON_DEPLOY_BATONCTL_CHART_H
#define BATON_DEPLOY_BATONCTL_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "common/base/status.h"

#define CTL_CHART_SERIES_MAX     32
#define CTL_CHART_POINTS_MAX     100000 /* of one series */
#define CTL_CHART_CATEGORIES_MAX 24

enum ctl_chart_scale { CTL_CHART_LINEAR, CTL_CHART_LOG10, CTL_CHART_LOG2 };

struct ctl_chart_axis {
    const char *name; /* with its unit: "TTFT (ms)" */
    enum ctl_chart_scale scale;
    double low, high; /* of what is shown; both 0: as the data are, bars from 0 */
    /* x only: names of the categories 0, 1, 2, … in place of numbers; for bars. */
    const char *const *categories;
    size_t category_count; /* at most CTL_CHART_CATEGORIES_MAX */
};

enum ctl_chart_mark {
    CTL_CHART_LINE,
    CTL_CHART_POINTS,
    CTL_CHART_LINE_POINTS,
    CTL_CHART_BARS, /* over x = 0, 1, 2, …; of several series beside each other; linear y */
};

/* A point that is not finite, or not above 0 on a logarithmic axis, is left out and breaks the
 * line. Borrowed. */
struct ctl_chart_series {
    const char *name; /* in the legend; NULL: not there */
    enum ctl_chart_mark mark;
    bool dashed;
    const double *x, *y; /* [count]; x NULL: 0, 1, 2, … */
    size_t count;
};

/* A text beside a place of the plot, which gets a point. */
struct ctl_chart_note {
    double x, y;
    const char *text;
};

struct ctl_chart {
    const char *title, *subtitle; /* subtitle may be NULL */
    struct ctl_chart_axis x, y;
    const struct ctl_chart_series *series;
    size_t series_count; /* at most CTL_CHART_SERIES_MAX */
    const struct ctl_chart_note *notes;
    size_t note_count;
};

/* One document with `count` charts, from the top. All texts may be anything: what XML has no place
 * for becomes U+FFFD. INVALID_ARGUMENT beyond the limits, IO. */
enum bt_status ctl_charts_print(const struct ctl_chart *charts, size_t count, FILE *out,
                                struct bt_error *error);
/* Into `path`, which is written anew. */
enum bt_status ctl_charts_write(const struct ctl_chart *charts, size_t count, const char *path,
                                struct bt_error *error);

#endif
