/* Draws the cases that check_chart.py looks at: `chart_cases NAME` to stdout. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/chart.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int draw(const struct ctl_chart *charts, size_t count)
{
    struct bt_error error;
    if (ctl_charts_print(charts, count, stdout, &error) == BT_OK)
        return 0;
    fprintf(stderr, "%s\n", error.text);
    return error.status == BT_ERR_INVALID_ARGUMENT ? 2 : 1;
}

static struct ctl_chart lines_of(enum ctl_chart_scale x, enum ctl_chart_scale y)
{
    static const double xs[] = {1, 10, 64, 300, 1000}, ys[] = {0.02, 0.5, 3, 40, 700};
    static const double other[] = {700, 700, 7, 7, 0.7};
    static const struct ctl_chart_series series[] = {
        {"rising", CTL_CHART_LINE_POINTS, false, xs, ys, COUNT(xs)},
        {"falling", CTL_CHART_LINE_POINTS, true, xs, other, COUNT(xs)},
    };
    static const struct ctl_chart_note notes[] = {{64, 3, "here"}, {1e9, 1, "outside"}};
    return (struct ctl_chart){
        .title = "lines",
        .x = {.name = "x", .scale = x},
        .y = {.name = "y", .scale = y},
        .series = series,
        .series_count = COUNT(series),
        .notes = notes,
        .note_count = COUNT(notes),
    };
}

static int draw_lines(void)
{
    const struct ctl_chart charts[] = {
        lines_of(CTL_CHART_LINEAR, CTL_CHART_LINEAR), lines_of(CTL_CHART_LOG10, CTL_CHART_LINEAR),
        lines_of(CTL_CHART_LOG2, CTL_CHART_LOG10), lines_of(CTL_CHART_LINEAR, CTL_CHART_LOG2)};
    return draw(charts, COUNT(charts));
}

static int draw_bars(void)
{
    static const char *const names[] = {"a & b", "<c>", "d"};
    static const double first[] = {1, 2, 4}, second[] = {3, -1, 0};
    static const struct ctl_chart_series series[] = {
        {"first", CTL_CHART_BARS, false, NULL, first, 3},
        {"second", CTL_CHART_BARS, false, NULL, second, 3},
    };
    const struct ctl_chart chart = {
        .title = "bars",
        .x = {.name = "kind", .categories = names, .category_count = 3},
        .y = {.name = "count"},
        .series = series,
        .series_count = 2,
    };
    return draw(&chart, 1);
}

/* Texts and numbers that come from files and clocks. */
static int draw_hostile(void)
{
    static const double xs[] = {1, 2, 3, 4, 5, 6, 7}, ys[] = {1, NAN, 2, INFINITY, -3, 1e308, 4};
    static const struct ctl_chart_series series[] = {
        {"</text><script>alert(1)</script>", CTL_CHART_LINE_POINTS, false, xs, ys, COUNT(xs)},
        {"a\x01\x1b[31m\xff\xed\xa0\x80z'\"&\xef\xbf\xbf", CTL_CHART_POINTS, false, xs, ys, 1},
        {NULL, CTL_CHART_LINE, false, NULL, NULL, 0},
    };
    const struct ctl_chart chart = {
        .title = "]]><!-- \xc3\xa4",
        .subtitle = "&amp;",
        .x = {.name = "<x>", .low = 0, .high = 8},
        .y = {.name = NULL, .scale = CTL_CHART_LOG10},
        .series = series,
        .series_count = COUNT(series),
    };
    return draw(&chart, 1);
}

/* Nothing to see, one value, values that are all the same. */
static int draw_degenerate(void)
{
    static const double none[] = {NAN}, zero[] = {0}, same[] = {5, 5, 5};
    static const struct ctl_chart_series series[] = {
        {"none", CTL_CHART_LINE_POINTS, false, none, none, 1},
        {"zero", CTL_CHART_LINE_POINTS, false, NULL, zero, 1},
        {"same", CTL_CHART_LINE_POINTS, false, same, same, 3},
    };
    struct ctl_chart charts[9];
    for (size_t i = 0; i < 9; i++)
        charts[i] = (struct ctl_chart){
            .title = "degenerate",
            .x = {.name = "x", .scale = (enum ctl_chart_scale)(i / 3)},
            .y = {.name = "y", .scale = (enum ctl_chart_scale)(i / 3)},
            .series = &series[i % 3],
            .series_count = 1,
        };
    return draw(charts, 9);
}

static int draw_too_many(void)
{
    static struct ctl_chart_series series[CTL_CHART_SERIES_MAX + 1];
    const struct ctl_chart chart = {.title = "", .series = series, .series_count = COUNT(series)};
    return draw(&chart, 1);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*draw)(void);
    } cases[] = {{"lines", draw_lines},
                 {"bars", draw_bars},
                 {"hostile", draw_hostile},
                 {"degenerate", draw_degenerate},
                 {"too-many", draw_too_many}};
    for (size_t i = 0; argc == 2 && i < COUNT(cases); i++)
        if (strcmp(argv[1], cases[i].name) == 0)
            return cases[i].draw();
    return 3;
}
