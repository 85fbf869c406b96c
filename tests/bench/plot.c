#include "tests/bench/plot.h"

#include <math.h>
#include <stdio.h>

#define WIDTH  720
#define HEIGHT 440
#define LEFT   80
#define RIGHT  150
#define TOP    40
#define BOTTOM 60

struct scale {
    double x_low, x_high, y_low, y_high; /* logarithms */
};

static double x_at(const struct scale *scale, double x)
{
    double range = scale->x_high > scale->x_low ? scale->x_high - scale->x_low : 1;

    return LEFT + (log2(x) - scale->x_low) / range * (WIDTH - LEFT - RIGHT);
}

static double y_at(const struct scale *scale, double y)
{
    double part = (log10(y) - scale->y_low) / (scale->y_high - scale->y_low);

    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
}

static struct scale find_scale(const struct bench_plot *plot)
{
    struct scale scale = {.x_low = log2(plot->x[0]),
                          .x_high = log2(plot->x[plot->count - 1]),
                          .y_low = INFINITY,
                          .y_high = -INFINITY};

    for (size_t l = 0; l < plot->line_count; l++) {
        for (size_t i = 0; i < plot->count; i++) {
            scale.y_low = fmin(scale.y_low, floor(log10(plot->lines[l].values[i])));
            scale.y_high = fmax(scale.y_high, ceil(log10(plot->lines[l].values[i])));
        }
    }
    if (scale.y_high <= scale.y_low)
        scale.y_high = scale.y_low + 1;
    return scale;
}

static void draw_axes(FILE *out, const struct bench_plot *plot, const struct scale *scale)
{
    for (size_t i = 0; i < plot->count; i++)
        fprintf(out, "<text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n",
                x_at(scale, plot->x[i]), HEIGHT - BOTTOM + 18, plot->x[i]);
    for (double y = scale->y_low; y <= scale->y_high; y++) {
        double at = y_at(scale, pow(10, y));
        fprintf(out, "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#ddd'/>\n", LEFT,
                WIDTH - RIGHT, at, at);
        fprintf(out, "<text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", LEFT - 8, at + 4,
                pow(10, y));
    }
    fprintf(out, "<text x='%d' y='%d' text-anchor='middle'>%s</text>\n", (LEFT + WIDTH - RIGHT) / 2,
            HEIGHT - 15, plot->x_name);
    fprintf(out, "<text x='%d' y='%d'>%s</text>\n", LEFT - 70, TOP - 12, plot->y_name);
    fprintf(out, "<text x='%d' y='%d' text-anchor='middle' font-weight='bold'>%s</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, TOP - 12, plot->title);
}

static void draw_line(FILE *out, const struct bench_plot *plot, const struct scale *scale, size_t l)
{
    static const char *const colors[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd"};
    const struct bench_line *line = &plot->lines[l];
    const char *color = colors[l % (sizeof(colors) / sizeof(colors[0]))];

    fprintf(out, "<polyline fill='none' stroke='%s' stroke-width='2' points='", color);
    for (size_t i = 0; i < plot->count; i++)
        fprintf(out, "%.1f,%.1f ", x_at(scale, plot->x[i]), y_at(scale, line->values[i]));
    fprintf(out, "'/>\n");
    fprintf(out, "<text x='%d' y='%.1f' fill='%s'>%s</text>\n", WIDTH - RIGHT + 8,
            y_at(scale, line->values[plot->count - 1]) + 4, color, line->name);
}

bool bench_plot_write(const struct bench_plot *plot, const char *path)
{
    struct scale scale = find_scale(plot);
    FILE *out = fopen(path, "we");
    bool good;

    if (out == NULL)
        return false;
    fprintf(out,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
            "font-family='sans-serif' font-size='12'>\n<rect width='100%%' height='100%%' "
            "fill='white'/>\n",
            WIDTH, HEIGHT);
    draw_axes(out, plot, &scale);
    for (size_t l = 0; l < plot->line_count; l++)
        draw_line(out, plot, &scale, l);
    fprintf(out, "</svg>\n");
    good = ferror(out) == 0;
    return fclose(out) == 0 && good;
}
