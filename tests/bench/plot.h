/* A line plot as SVG: x by factors of two, y by factors of ten. */
#ifndef BATON_TESTS_BENCH_PLOT_H
#define BATON_TESTS_BENCH_PLOT_H

#include <stdbool.h>
#include <stddef.h>

struct bench_line {
    const char *name;
    const double *values; /* [count]; > 0 */
};

struct bench_plot {
    const char *title, *x_name, *y_name;
    const double *x; /* [count], ascending, > 0 */
    size_t count;
    const struct bench_line *lines;
    size_t line_count;
};

/* False: the file could not be written. */
bool bench_plot_write(const struct bench_plot *plot, const char *path);

#endif
