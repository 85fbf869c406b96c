#include "deploy/batonctl/chart.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/text/utf8.h"

/* Pixels. */
#define WIDTH     820
#define HEIGHT    460
#define LEFT      84
#define RIGHT     220 /* the legend's */
#define TOP       60
#define BOTTOM    62
#define TICKS_MAX CTL_CHART_CATEGORIES_MAX

/* About as far from white as from black. */
#define INK  "#7a7f87"
#define GRID "#8a8f97"
static const char *const colours[] = {"#3f83d6", "#d9632b", "#2f9e5b", "#a065c8",
                                      "#c79a1e", "#d3497f", "#1fa3a8", "#8c7a5b"};
#define COLOURS (sizeof(colours) / sizeof(colours[0]))

/* From values to pixels: in logarithms where the axis is. */
struct range {
    enum ctl_chart_scale scale;
    double low, high;        /* on the scale */
    double from, to;         /* pixels */
    double ticks[TICKS_MAX]; /* values */
    size_t tick_count;
};

struct plane {
    const struct ctl_chart *chart;
    struct range x, y;
    size_t bars, bars_drawn; /* series of this kind */
};

static void print_text(FILE *out, const char *text)
{
    size_t bytes = text ? strlen(text) : 0;
    for (size_t at = 0, size; at < bytes; at += size) {
        bool whole = bt_utf8_next(text + at, bytes - at, &size) == BT_UTF8_CHARACTER;
        uint32_t code = whole ? bt_utf8_code_point(text + at, size) : 0;
        if (code < 0x20 || code == 0x7f || code == 0xfffe || code == 0xffff)
            fputs(BT_UTF8_REPLACEMENT, out);
        else if (code < 0x80 && strchr("<>&'\"", (int)code))
            fprintf(out, "&#%u;", (unsigned)code);
        else
            fwrite(text + at, 1, size, out);
    }
}

/* ---- ranges */

/* Beyond this nothing is drawn: differences have to stay finite. */
#define VALUE_MAX 1e150

static double scaled(enum ctl_chart_scale scale, double value)
{
    if (!(fabs(value) <= VALUE_MAX))
        return NAN;
    switch (scale) {
    case CTL_CHART_LOG10:
        return value > 0 ? log10(value) : NAN;
    case CTL_CHART_LOG2:
        return value > 0 ? log2(value) : NAN;
    case CTL_CHART_LINEAR:
        break;
    }
    return value;
}

static double place(const struct range *range, double value)
{
    double part = (scaled(range->scale, value) - range->low) / (range->high - range->low);
    return range->from + fmin(fmax(part, -10), 10) * (range->to - range->from);
}

static bool shown(const struct range *range, double value)
{
    double at = scaled(range->scale, value), slack = 1e-9 * (range->high - range->low);
    return at >= range->low - slack && at <= range->high + slack;
}

static void add_tick(struct range *range, double value)
{
    if (range->tick_count < TICKS_MAX && shown(range, value))
        range->ticks[range->tick_count++] = value;
}

/* The step of 1, 2, 5, 10, … that gives at most `most` of them. */
static double nice_step(double span, double most)
{
    double power = pow(10, floor(log10(span / most)));
    for (int i = 0; i < 3; i++)
        if (span / (power * (double[]){1, 2, 5}[i]) <= most)
            return power * (double[]){1, 2, 5}[i];
    return power * 10;
}

static void add_linear_ticks(struct range *range, double low, double high)
{
    double step = nice_step(high - low, 8), first = ceil(low / step - 1e-9);
    for (int i = 0; i < TICKS_MAX && (first + i) * step <= high + 1e-9 * (high - low); i++)
        add_tick(range, first + i == 0 ? 0 : (first + i) * step);
}

static void add_log_ticks(struct range *range)
{
    double base = range->scale == CTL_CHART_LOG2 ? 2 : 10;
    double first = ceil(range->low - 1e-9), count = floor(range->high + 1e-9) - first + 1;
    double every = fmax(1, ceil(count / 12));
    bool between = base == 10 && range->high - range->low < 3;
    for (double power = first - 1; power < first + count; power += every) {
        add_tick(range, pow(base, power));
        if (between) {
            add_tick(range, 2 * pow(base, power));
            add_tick(range, 5 * pow(base, power));
        }
    }
    if (range->tick_count < (between ? 4 : 2)) {
        range->tick_count = 0;
        add_linear_ticks(range, pow(base, range->low), pow(base, range->high));
    }
}

/* Linear data end at a tick, and start at 0 where that is near. */
static void widen(struct range *range, bool from_zero)
{
    double span = range->high - range->low;
    if (span <= 1e-12 * fmax(fabs(range->low), fabs(range->high))) {
        double pad = range->scale != CTL_CHART_LINEAR ? 0.5 : fmax(0.5 * fabs(range->low), 1e-12);
        range->low -= pad;
        range->high += pad;
    } else if (range->scale != CTL_CHART_LINEAR) {
        range->low -= 0.04 * span;
        range->high += 0.04 * span;
    }
    if (range->scale != CTL_CHART_LINEAR)
        return;
    if (range->high > 0 && range->low > 0 && (from_zero || range->low < 0.4 * range->high))
        range->low = 0;
    if (range->high < 0 && from_zero)
        range->high = 0;
    double step = nice_step(range->high - range->low, 8);
    range->low = floor(range->low / step + 1e-9) * step;
    range->high = ceil(range->high / step - 1e-9) * step;
}

static double value_of(const struct ctl_chart_series *series, bool is_x, size_t i)
{
    return !is_x ? series->y[i] : series->x ? series->x[i] : (double)i;
}

static void find_data(const struct ctl_chart *chart, bool is_x, struct range *range)
{
    range->low = INFINITY;
    range->high = -INFINITY;
    for (size_t s = 0; s < chart->series_count; s++)
        for (size_t i = 0; i < chart->series[s].count; i++) {
            double at = scaled(range->scale, value_of(&chart->series[s], is_x, i));
            if (isfinite(at)) {
                range->low = fmin(range->low, at);
                range->high = fmax(range->high, at);
            }
        }
    if (range->low > range->high) {
        range->low = 0;
        range->high = 1;
    }
}

static struct range find_range(const struct ctl_chart *chart, bool is_x, bool bars)
{
    const struct ctl_chart_axis *axis = is_x ? &chart->x : &chart->y;
    struct range range = {.scale = axis->scale};
    double low = scaled(axis->scale, axis->low), high = scaled(axis->scale, axis->high);
    if (is_x && axis->category_count) {
        range.low = -0.5;
        range.high = (double)axis->category_count - 0.5;
    } else if (isfinite(low) && isfinite(high) && low < high) {
        range.low = low;
        range.high = high;
    } else {
        find_data(chart, is_x, &range);
        widen(&range, bars && !is_x);
    }
    if (is_x && axis->category_count)
        for (size_t i = 0; i < axis->category_count; i++)
            add_tick(&range, (double)i);
    else if (range.scale == CTL_CHART_LINEAR)
        add_linear_ticks(&range, range.low, range.high);
    else
        add_log_ticks(&range);
    return range;
}

/* ---- drawing */

static void print_line(FILE *out, double x1, double y1, double x2, double y2, const char *rest)
{
    fprintf(out, "<line x1='%.2f' y1='%.2f' x2='%.2f' y2='%.2f' %s/>\n", x1, y1, x2, y2, rest);
}

static void print_label(FILE *out, double x, double y, const char *rest, const char *text)
{
    fprintf(out, "<text x='%.2f' y='%.2f' %s>", x, y, rest);
    print_text(out, text);
    fputs("</text>\n", out);
}

static void draw_ticks(FILE *out, const struct plane *plane, bool is_x)
{
    const struct range *range = is_x ? &plane->x : &plane->y;
    const struct ctl_chart_axis *axis = is_x ? &plane->chart->x : &plane->chart->y;
    for (size_t i = 0; i < range->tick_count; i++) {
        char text[48];
        double at = place(range, range->ticks[i]);
        snprintf(text, sizeof(text), fabs(range->ticks[i]) < 1e7 ? "%.7g" : "%.3g",
                 range->ticks[i]);
        const char *label = is_x && axis->category_count ? axis->categories[i] : text;
        if (is_x)
            print_label(out, at, plane->y.from + 18, "class='tick-x' text-anchor='middle'", label);
        else
            print_label(out, plane->x.from - 8, at + 4, "class='tick-y' text-anchor='end'", label);
        if (is_x)
            print_line(out, at, plane->y.from, at, plane->y.to,
                       "stroke='" GRID "' stroke-opacity='0.2'");
        else
            print_line(out, plane->x.from, at, plane->x.to, at,
                       "stroke='" GRID "' stroke-opacity='0.3'");
    }
}

static void draw_frame(FILE *out, const struct plane *plane)
{
    const struct ctl_chart *chart = plane->chart;
    double middle = (plane->y.from + plane->y.to) / 2;
    char turned[96];
    draw_ticks(out, plane, true);
    draw_ticks(out, plane, false);
    print_line(out, plane->x.from, plane->y.from, plane->x.to, plane->y.from, "stroke='" INK "'");
    print_line(out, plane->x.from, plane->y.from, plane->x.from, plane->y.to, "stroke='" INK "'");
    snprintf(turned, sizeof(turned), "text-anchor='middle' transform='rotate(-90 18 %.2f)'",
             middle);
    print_label(out, (plane->x.from + plane->x.to) / 2, plane->y.from + 42, "text-anchor='middle'",
                chart->x.name);
    print_label(out, 18, middle, turned, chart->y.name);
    print_label(out, plane->x.from, plane->y.to - 32, "font-size='15' font-weight='bold'",
                chart->title);
    if (chart->subtitle)
        print_label(out, plane->x.from, plane->y.to - 14, "", chart->subtitle);
}

/* What is seen when the mark is pointed at; closes the element. */
static void print_values(FILE *out, const struct plane *plane,
                         const struct ctl_chart_series *series, size_t i, const char *element)
{
    const struct ctl_chart_axis *x = &plane->chart->x;
    double at = value_of(series, true, i);
    fputs("><title>", out);
    if (series->name) {
        print_text(out, series->name);
        fputs(": ", out);
    }
    if (x->category_count && at >= 0 && at < (double)x->category_count)
        print_text(out, x->categories[(size_t)at]);
    else
        fprintf(out, "%.6g", at);
    fprintf(out, ", %.6g</title></%s>\n", series->y[i], element);
}

static bool is_there(const struct plane *plane, const struct ctl_chart_series *series, size_t i)
{
    return isfinite(scaled(plane->x.scale, value_of(series, true, i))) &&
           isfinite(scaled(plane->y.scale, series->y[i]));
}

static const char *dashes(const struct ctl_chart_series *series)
{
    return series->dashed ? " stroke-dasharray='6 4'" : "";
}

static void draw_path(FILE *out, const struct plane *plane, const struct ctl_chart_series *series,
                      const char *colour)
{
    bool open = false, any = false;
    for (size_t i = 0; i < series->count; i++) {
        bool there = is_there(plane, series, i);
        if (there && !any)
            fprintf(out, "<path class='line' fill='none' stroke='%s' stroke-width='2'%s d='",
                    colour, dashes(series));
        if (there)
            fprintf(out, "%c%.2f %.2f ", open ? 'L' : 'M',
                    place(&plane->x, value_of(series, true, i)), place(&plane->y, series->y[i]));
        any = any || there;
        open = there;
    }
    if (any)
        fputs("'/>\n", out);
}

static void draw_points(FILE *out, const struct plane *plane, const struct ctl_chart_series *series,
                        const char *colour)
{
    for (size_t i = 0; i < series->count; i++) {
        double x = value_of(series, true, i);
        if (!is_there(plane, series, i) || !shown(&plane->x, x) || !shown(&plane->y, series->y[i]))
            continue;
        fprintf(out, "<circle class='point' cx='%.2f' cy='%.2f' r='3.5' fill='%s'",
                place(&plane->x, x), place(&plane->y, series->y[i]), colour);
        print_values(out, plane, series, i, "circle");
    }
}

static void draw_bars(FILE *out, const struct plane *plane, const struct ctl_chart_series *series,
                      size_t nth, const char *colour)
{
    double unit = fabs(place(&plane->x, 1) - place(&plane->x, 0));
    double width = 0.8 * unit / (double)plane->bars;
    double base = place(&plane->y, fmin(fmax(0, plane->y.low), plane->y.high));
    for (size_t i = 0; i < series->count; i++) {
        double left, top;
        if (!is_there(plane, series, i))
            continue;
        left = place(&plane->x, value_of(series, true, i)) - 0.4 * unit + width * (double)nth;
        top = place(&plane->y, series->y[i]);
        fprintf(out, "<rect class='bar' x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill='%s'",
                left, fmin(top, base), width, fabs(base - top), colour);
        print_values(out, plane, series, i, "rect");
    }
}

static void draw_series(FILE *out, struct plane *plane, size_t s)
{
    const struct ctl_chart_series *series = &plane->chart->series[s];
    const char *colour = colours[s % COLOURS];
    if (series->mark == CTL_CHART_BARS)
        draw_bars(out, plane, series, plane->bars_drawn++, colour);
    if (series->mark == CTL_CHART_LINE || series->mark == CTL_CHART_LINE_POINTS)
        draw_path(out, plane, series, colour);
    if (series->mark == CTL_CHART_POINTS || series->mark == CTL_CHART_LINE_POINTS)
        draw_points(out, plane, series, colour);
}

/* The series' own mark, 16 pixels wide. */
static void draw_sample(FILE *out, const struct ctl_chart_series *series, double x, double y,
                        const char *colour)
{
    if (series->mark == CTL_CHART_BARS)
        fprintf(out, "<rect x='%.2f' y='%.2f' width='16' height='8' fill='%s'/>\n", x, y - 4,
                colour);
    if (series->mark == CTL_CHART_LINE || series->mark == CTL_CHART_LINE_POINTS)
        fprintf(out,
                "<path class='sample' d='M%.2f %.2fh16' stroke='%s' stroke-width='2' "
                "fill='none'%s/>\n",
                x, y, colour, dashes(series));
    if (series->mark == CTL_CHART_POINTS || series->mark == CTL_CHART_LINE_POINTS)
        fprintf(out, "<circle class='sample' cx='%.2f' cy='%.2f' r='3.5' fill='%s'/>\n", x + 8, y,
                colour);
}

static void draw_legend(FILE *out, const struct plane *plane)
{
    double x = plane->x.to + 16, y = plane->y.to + 6;
    for (size_t s = 0; s < plane->chart->series_count; s++) {
        const struct ctl_chart_series *series = &plane->chart->series[s];
        if (!series->name)
            continue;
        draw_sample(out, series, x, y, colours[s % COLOURS]);
        print_label(out, x + 22, y + 4, "class='legend'", series->name);
        y += 20;
    }
}

/* Below the point, where a line that peaks there leaves room; not over the frame. */
static void draw_note_text(FILE *out, const struct plane *plane, double x, double y,
                           const char *text)
{
    bool low = y + 30 > plane->y.from, left = x<plane->x.from + 60, right = x> plane->x.to - 60;
    print_label(out,
                left    ? x + 9
                : right ? x - 9
                        : x,
                low ? y - 12 : y + 26,
                left    ? "class='note-text'"
                : right ? "class='note-text' text-anchor='end'"
                        : "class='note-text' text-anchor='middle'",
                text);
}

static void draw_notes(FILE *out, const struct plane *plane)
{
    for (size_t i = 0; i < plane->chart->note_count; i++) {
        const struct ctl_chart_note *note = &plane->chart->notes[i];
        double x, y;
        if (!shown(&plane->x, note->x) || !shown(&plane->y, note->y))
            continue;
        x = place(&plane->x, note->x);
        y = place(&plane->y, note->y);
        fprintf(out,
                "<circle class='note' cx='%.2f' cy='%.2f' r='5' fill='none' stroke='" INK
                "' stroke-width='2'/>\n",
                x, y);
        draw_note_text(out, plane, x, y, note->text);
    }
}

static void draw_chart(FILE *out, const struct ctl_chart *chart, size_t nth)
{
    struct plane plane = {.chart = chart};
    double top = HEIGHT * (double)nth;
    for (size_t s = 0; s < chart->series_count; s++)
        plane.bars += chart->series[s].mark == CTL_CHART_BARS;
    plane.x = find_range(chart, true, plane.bars > 0);
    plane.y = find_range(chart, false, plane.bars > 0);
    plane.x.from = LEFT;
    plane.x.to = WIDTH - RIGHT;
    plane.y.from = top + HEIGHT - BOTTOM;
    plane.y.to = top + TOP;
    fprintf(out,
            "<g class='chart'>\n<clipPath id='plot%zu'><rect x='%.2f' y='%.2f' width='%.2f' "
            "height='%.2f'/></clipPath>\n",
            nth, plane.x.from - 5, plane.y.to - 5, plane.x.to - plane.x.from + 10,
            plane.y.from - plane.y.to + 10);
    draw_frame(out, &plane);
    for (size_t s = 0; s < chart->series_count; s++) {
        fprintf(out, "<g class='series' clip-path='url(#plot%zu)'>\n", nth);
        draw_series(out, &plane, s);
        fputs("</g>\n", out);
    }
    draw_notes(out, &plane);
    draw_legend(out, &plane);
    fputs("</g>\n", out);
}

static enum bt_status check(const struct ctl_chart *chart, struct bt_error *error)
{
    if (chart->series_count > CTL_CHART_SERIES_MAX || chart->x.category_count > TICKS_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "a chart with %zu series and %zu categories; there may be %d and %d",
                            chart->series_count, chart->x.category_count, CTL_CHART_SERIES_MAX,
                            TICKS_MAX);
    for (size_t s = 0; s < chart->series_count; s++)
        if (chart->series[s].count > CTL_CHART_POINTS_MAX)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "a series of %zu points; there may be %d", chart->series[s].count,
                                CTL_CHART_POINTS_MAX);
    return BT_OK;
}

enum bt_status ctl_charts_print(const struct ctl_chart *charts, size_t count, FILE *out,
                                struct bt_error *error)
{
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = check(&charts[i], error);
        if (status != BT_OK)
            return status;
    }
    fprintf(out,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%zu' "
            "viewBox='0 0 %d %zu' font-family='sans-serif' font-size='12' fill='" INK "'>\n",
            WIDTH, HEIGHT * count, WIDTH, HEIGHT * count);
    for (size_t i = 0; i < count; i++)
        draw_chart(out, &charts[i], i);
    fputs("</svg>\n", out);
    return ferror(out) ? bt_error_set(error, BT_ERR_IO, "the chart can't be written") : BT_OK;
}

enum bt_status ctl_charts_write(const struct ctl_chart *charts, size_t count, const char *path,
                                struct bt_error *error)
{
    FILE *out = fopen(path, "we");
    enum bt_status status;
    if (!out)
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    status = ctl_charts_print(charts, count, out, error);
    if (fclose(out) != 0 && status == BT_OK)
        status = bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    return status;
}
