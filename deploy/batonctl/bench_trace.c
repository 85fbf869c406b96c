#include "deploy/batonctl/bench_trace.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/base/clock.h"
#include "deploy/batonctl/bench_arrivals.h"
#include "deploy/batonctl/bench_jsonl.h"
#include "deploy/batonctl/bench_lengths.h"

#define FIELD_SIZE 64
#define FIELDS_MAX 64
#define TIME_MAX_S 1e11 /* of a timestamp, whatever it counts from */

void ctl_bench_trace_finish(struct ctl_bench_trace *trace)
{
    free(trace->entries);
    free(trace->hashes);
    memset(trace, 0, sizeof *trace);
}

static bool grow(void **array, size_t *capacity, size_t count, size_t element)
{
    if (count < *capacity)
        return true;
    size_t wanted = *capacity ? *capacity * 2 : 256;
    void *grown = realloc(*array, wanted * element);
    if (!grown)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

static enum bt_status set_length(double value, const char *name, struct bt_error *error,
                                 uint32_t *ret_length)
{
    if (!(value >= 0 && value <= CTL_BENCH_LENGTH_MAX) || value != floor(value))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is not a number of 0 to %u", name,
                            CTL_BENCH_LENGTH_MAX);
    *ret_length = value > 0 ? (uint32_t)value : 1;
    return BT_OK;
}

/* `at_s` counts from anywhere until all are there. */
static enum bt_status add(struct ctl_bench_trace *trace, double at_s, double input, double output,
                          struct bt_error *error)
{
    struct ctl_bench_trace_entry entry = {.hash_first = trace->hash_count, .line = trace->count};
    if (!(at_s >= -TIME_MAX_S && at_s <= TIME_MAX_S))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the timestamp is no time");
    if (trace->count >= CTL_BENCH_TRACE_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "there are more than %u requests",
                            CTL_BENCH_TRACE_MAX);
    enum bt_status status = set_length(input, "the input length", error, &entry.input_tokens);
    if (status == BT_OK)
        status = set_length(output, "the output length", error, &entry.output_tokens);
    if (status != BT_OK)
        return status;
    if (!grow((void **)&trace->entries, &trace->capacity, trace->count, sizeof entry))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a trace");
    int64_t whole = (int64_t)floor(at_s);
    entry.at_ns = (int64_t)llround((at_s - (double)whole) * 1e9);
    /* Nanoseconds since 1970 fit until 2262; what counts from elsewhere may not. */
    if (__builtin_mul_overflow(whole, BT_NS_PER_S, &whole) ||
        __builtin_add_overflow(whole, entry.at_ns, &entry.at_ns))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the timestamp is no time");
    trace->entries[trace->count++] = entry;
    return BT_OK;
}

/* ------------------------------------------------------------------ JSONL */

static enum bt_status add_hashes(struct ctl_bench_trace *trace, const json_t *hashes,
                                 struct bt_error *error)
{
    struct ctl_bench_trace_entry *entry = &trace->entries[trace->count - 1];
    for (size_t i = 0; i < json_array_size(hashes) && i < CTL_BENCH_LENGTH_MAX; i++) {
        const json_t *hash = json_array_get(hashes, i);
        if (!json_is_integer(hash))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "hash_ids has what is no integer");
        if (!grow((void **)&trace->hashes, &trace->hash_capacity, trace->hash_count,
                  sizeof *trace->hashes))
            return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a trace");
        trace->hashes[trace->hash_count++] = (uint64_t)json_integer_value(hash);
        entry->hash_count++;
    }
    return BT_OK;
}

static enum bt_status add_object(void *context, const json_t *object, struct bt_error *error)
{
    static const char *const names[] = {"timestamp", "input_length", "output_length"};
    double values[3];
    for (size_t i = 0; i < 3; i++) {
        const json_t *value = json_object_get(object, names[i]);
        if (!json_is_number(value))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is missing or no number",
                                names[i]);
        values[i] = json_number_value(value);
    }
    const json_t *hashes = json_object_get(object, "hash_ids");
    if (hashes && !json_is_array(hashes) && !json_is_null(hashes))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "hash_ids is no list");
    enum bt_status status = add(context, values[0] / 1e3, values[1], values[2], error);
    return status == BT_OK ? add_hashes(context, hashes, error) : status;
}

/* ------------------------------------------------------------------ CSV */

struct columns {
    size_t time, input, output; /* SIZE_MAX: not found */
};

/* The next field, cut at FIELD_SIZE, without quotes and blanks around it. False: the line's end. */
static bool next_field(const char **at, const char *end, char ret_field[FIELD_SIZE])
{
    if (*at > end)
        return false;
    size_t size = 0;
    bool quoted = false;
    const char *c = *at;
    for (; c < end && (quoted || *c != ','); c++) {
        if (*c == '"')
            quoted = !quoted;
        else if (size < FIELD_SIZE - 1 && (size > 0 || !isspace((unsigned char)*c)))
            ret_field[size++] = *c;
    }
    while (size > 0 && isspace((unsigned char)ret_field[size - 1]))
        size--;
    ret_field[size] = '\0';
    *at = c + 1;
    return true;
}

static bool is_one_of(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (strcasecmp(name, *names) == 0)
            return true;
    return false;
}

static enum bt_status read_header(const char *line, size_t size, struct bt_error *error,
                                  struct columns *ret_columns)
{
    static const char *const times[] = {"timestamp", "arrival_time", NULL};
    static const char *const inputs[] = {"request tokens", "contexttokens", "input_length",
                                         "input_tokens",   "prompt_tokens", NULL};
    static const char *const outputs[] = {"response tokens", "generatedtokens",   "output_length",
                                          "output_tokens",   "completion_tokens", NULL};
    struct columns columns = {SIZE_MAX, SIZE_MAX, SIZE_MAX};
    const char *at = line;
    char name[FIELD_SIZE];
    for (size_t i = 0; i < FIELDS_MAX && next_field(&at, line + size, name); i++) {
        if (is_one_of(name, times))
            columns.time = i;
        else if (is_one_of(name, inputs))
            columns.input = i;
        else if (is_one_of(name, outputs))
            columns.output = i;
    }
    if (columns.time == SIZE_MAX || columns.input == SIZE_MAX || columns.output == SIZE_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "line 1: a CSV trace has a header with Timestamp, and Request tokens "
                            "and Response tokens, or ContextTokens and GeneratedTokens");
    *ret_columns = columns;
    return BT_OK;
}

static bool read_number(const char *text, double *ret_value)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    *ret_value = strtod(text, &end);
    return !*end && isfinite(*ret_value);
}

/* "2023-11-16 18:17:03.9799600", "2024-05-10T00:00:00Z", "… 00:00:00.009930+00:00". */
static bool read_date(const char *text, double *ret_time_s)
{
    struct tm tm = {0};
    int used = 0, hours = 0, minutes = 0;
    if (sscanf(text, "%4d-%2d-%2d%*1[ T]%2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
               &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &used) != 6 ||
        used == 0)
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    double fraction = 0;
    char *rest = (char *)text + used;
    if (*rest == '.')
        fraction = strtod(rest, &rest);
    if (*rest == '+' || *rest == '-') {
        char sign = *rest;
        used = 0;
        if (sscanf(rest + 1, "%2d:%2d%n", &hours, &minutes, &used) != 2 || used == 0)
            return false;
        rest += 1 + used;
        minutes += hours * 60;
        minutes = sign == '-' ? -minutes : minutes;
    } else if (*rest == 'Z') {
        rest++;
    }
    *ret_time_s = (double)timegm(&tm) - minutes * 60. + fraction;
    return !*rest;
}

static enum bt_status add_row(struct ctl_bench_trace *trace, const struct columns *columns,
                              const char *line, size_t size, struct bt_error *error)
{
    const char *at = line;
    char field[FIELD_SIZE];
    double time = NAN, input = NAN, output = NAN;
    for (size_t i = 0; i < FIELDS_MAX && next_field(&at, line + size, field); i++) {
        bool good = true;
        if (i == columns->time)
            good = read_number(field, &time) || read_date(field, &time);
        else if (i == columns->input)
            good = read_number(field, &input);
        else if (i == columns->output)
            good = read_number(field, &output);
        if (!good)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "field %zu is neither a number "
                                "nor, as a timestamp, a date",
                                i + 1);
    }
    return add(trace, time, input, output, error);
}

static enum bt_status parse_csv(const char *text, size_t size, struct ctl_bench_trace *trace,
                                struct bt_error *error)
{
    const char *at = text, *line;
    size_t line_size, number = 1;
    struct columns columns = {0};
    if (!ctl_bench_line(&at, text + size, &line, &line_size))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "it is empty");
    enum bt_status status = read_header(line, line_size, error, &columns);
    while (status == BT_OK && ctl_bench_line(&at, text + size, &line, &line_size)) {
        number++;
        if (line_size == 0)
            continue;
        status = add_row(trace, &columns, line, line_size, error);
        if (status != BT_OK)
            bt_error_prefix(error, "line %zu", number);
    }
    return status;
}

/* ------------------------------------------------------------------ both */

static int by_time(const void *a, const void *b)
{
    const struct ctl_bench_trace_entry *x = a, *y = b;
    if (x->at_ns != y->at_ns)
        return x->at_ns < y->at_ns ? -1 : 1;
    return (x->line > y->line) - (x->line < y->line);
}

static enum bt_status order(struct ctl_bench_trace *trace, struct bt_error *error)
{
    if (trace->count == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "there is no request in it");
    qsort(trace->entries, trace->count, sizeof *trace->entries, by_time);
    int64_t first = trace->entries[0].at_ns, span;
    if (__builtin_sub_overflow(trace->entries[trace->count - 1].at_ns, first, &span) ||
        span > (int64_t)(CTL_BENCH_LONGEST_S * 1e9))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "it takes more than a year");
    for (size_t i = 0; i < trace->count; i++)
        trace->entries[i].at_ns -= first;
    return BT_OK;
}

enum bt_status ctl_bench_trace_parse(const char *text, size_t size, struct bt_error *error,
                                     struct ctl_bench_trace *ret_trace)
{
    struct ctl_bench_trace trace = {0};
    size_t first = 0;
    while (first < size && isspace((unsigned char)text[first]))
        first++;
    enum bt_status status = first < size && text[first] == '{'
                                ? ctl_bench_jsonl(text, size, add_object, &trace, error)
                                : parse_csv(text, size, &trace, error);
    if (status == BT_OK)
        status = order(&trace, error);
    if (status == BT_OK)
        *ret_trace = trace;
    else
        ctl_bench_trace_finish(&trace);
    return status;
}
