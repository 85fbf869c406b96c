#include "common/parallel/expert_loads.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"

/* A number with its comma, space and line end, however it is indented; and the rest of the file. */
#define FILE_BYTES_PER_LOAD 48
#define FILE_BYTES_MORE     65536

struct layer_window {
    uint32_t current; /* the span that is being filled */
    uint64_t rows;    /* in it */
    uint64_t rows_before;
};

struct bt_expert_loads {
    uint32_t layers, experts, windows;
    uint64_t span;
    struct layer_window *window; /* [layers] */
    uint64_t *span_rows;         /* [layer][window] of full spans */
    uint64_t *counts;            /* [layer][window][expert] */
};

enum bt_status bt_expert_loads_create(uint32_t layers, uint32_t experts, uint32_t windows,
                                      uint64_t span, struct bt_error *error,
                                      struct bt_expert_loads **ret_loads)
{
    if (layers < 1 || layers > BT_PLACEMENT_LAYERS_MAX || experts < 1 ||
        experts > BT_PLACEMENT_EXPERTS_MAX || windows < 1 ||
        windows > BT_EXPERT_LOADS_WINDOWS_MAX || span < 1 || span > BT_EXPERT_LOADS_SPAN_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "expert loads: %" PRIu32 " layers, %" PRIu32 " experts, %" PRIu32
                            " windows of %" PRIu64 " rows: none may be 0, limits %d, %d, %d, "
                            "%" PRIu64,
                            layers, experts, windows, span, BT_PLACEMENT_LAYERS_MAX,
                            BT_PLACEMENT_EXPERTS_MAX, BT_EXPERT_LOADS_WINDOWS_MAX,
                            BT_EXPERT_LOADS_SPAN_MAX);
    struct bt_expert_loads *loads = calloc(1, sizeof(*loads));
    if (!loads)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "expert loads: no memory");
    loads->layers = layers;
    loads->experts = experts;
    loads->windows = windows;
    loads->span = span;
    loads->window = calloc(layers, sizeof(*loads->window));
    loads->span_rows = calloc((size_t)layers * windows, sizeof(uint64_t));
    loads->counts = calloc((size_t)layers * windows * experts, sizeof(uint64_t));
    if (!loads->window || !loads->span_rows || !loads->counts) {
        bt_expert_loads_destroy(loads);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "expert loads: no memory");
    }
    *ret_loads = loads;
    return BT_OK;
}

void bt_expert_loads_destroy(struct bt_expert_loads *loads)
{
    if (!loads)
        return;
    free(loads->window);
    free(loads->span_rows);
    free(loads->counts);
    free(loads);
}

static uint64_t *counts_of(const struct bt_expert_loads *loads, uint32_t layer, uint32_t window)
{
    return loads->counts + ((size_t)layer * loads->windows + window) * loads->experts;
}

/* The oldest span makes room for the next. */
static void next_span(struct bt_expert_loads *loads, uint32_t layer)
{
    struct layer_window *w = &loads->window[layer];
    uint64_t *span_rows = loads->span_rows + (size_t)layer * loads->windows;
    span_rows[w->current] = w->rows;
    w->rows_before += w->rows;
    w->current = w->current + 1 < loads->windows ? w->current + 1 : 0;
    w->rows_before -= span_rows[w->current];
    span_rows[w->current] = 0;
    w->rows = 0;
    memset(counts_of(loads, layer, w->current), 0, loads->experts * sizeof(uint64_t));
}

void bt_expert_loads_add(struct bt_expert_loads *loads, uint32_t layer, const uint32_t *begin,
                         uint32_t rows)
{
    BT_ASSERT(layer < loads->layers);
    struct layer_window *w = &loads->window[layer];
    if (w->rows >= loads->span)
        next_span(loads, layer);
    uint64_t *restrict counts = counts_of(loads, layer, w->current);
    for (uint32_t expert = 0; expert < loads->experts; expert++)
        counts[expert] += begin[expert + 1] - begin[expert];
    w->rows += rows;
}

void bt_expert_loads_sum(const struct bt_expert_loads *loads, uint64_t *ret_loads)
{
    memset(ret_loads, 0, (size_t)loads->layers * loads->experts * sizeof(*ret_loads));
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        uint64_t *sum = ret_loads + (size_t)layer * loads->experts;
        for (uint32_t window = 0; window < loads->windows; window++) {
            const uint64_t *counts = counts_of(loads, layer, window);
            for (uint32_t expert = 0; expert < loads->experts; expert++)
                sum[expert] += counts[expert];
        }
    }
}

uint64_t bt_expert_loads_layer_rows(const struct bt_expert_loads *loads, uint32_t layer)
{
    BT_ASSERT(layer < loads->layers);
    return loads->window[layer].rows_before + loads->window[layer].rows;
}

uint64_t bt_expert_loads_rows(const struct bt_expert_loads *loads)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        uint64_t rows = bt_expert_loads_layer_rows(loads, layer);
        least = rows < least ? rows : least;
    }
    return least;
}

/* ---- the file ---- */

enum bt_status bt_expert_loads_save(const struct bt_expert_loads *loads, const char *path,
                                    struct bt_error *error)
{
    uint64_t *sum = malloc((size_t)loads->layers * loads->experts * sizeof(*sum));
    if (!sum)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    bt_expert_loads_sum(loads, sum);
    enum bt_status status = bt_expert_loads_write(path, loads->layers, loads->experts, sum, error);
    free(sum);
    return status;
}

static bool print_loads(FILE *file, uint32_t layers, uint32_t experts, const uint64_t *loads)
{
    fprintf(file, "{\"version\":1,\"layers\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"loads\":[\n",
            layers, experts);
    for (uint32_t layer = 0; layer < layers; layer++) {
        for (uint32_t expert = 0; expert < experts; expert++)
            fprintf(file, "%c%" PRIu64, expert ? ',' : '[',
                    loads[(size_t)layer * experts + expert]);
        fputs(layer + 1 < layers ? "],\n" : "]\n", file);
    }
    fputs("]}\n", file);
    return fflush(file) == 0 && !ferror(file) && fchmod(fileno(file), 0644) == 0 &&
           fsync(fileno(file)) == 0;
}

/* Writes and closes `fd`. */
static enum bt_status fill_file(int fd, const char *path, uint32_t layers, uint32_t experts,
                                const uint64_t *loads, struct bt_error *error)
{
    FILE *file = fdopen(fd, "w");
    if (!file) {
        close(fd);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    }
    bool written = print_loads(file, layers, experts, loads);
    int fault = errno;
    if (fclose(file) != 0 && written) {
        written = false;
        fault = errno;
    }
    return written ? BT_OK : bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(fault));
}

enum bt_status bt_expert_loads_write(const char *path, uint32_t layers, uint32_t experts,
                                     const uint64_t *loads, struct bt_error *error)
{
    char *aside;
    if (asprintf(&aside, "%s.XXXXXX", path) < 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    enum bt_status status;
    int fd = mkostemp(aside, O_CLOEXEC);
    if (fd < 0) {
        status = bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
        goto err_name;
    }
    status = fill_file(fd, path, layers, experts, loads, error);
    if (status == BT_OK && rename(aside, path) != 0)
        status = bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    if (status != BT_OK)
        unlink(aside);
err_name:
    free(aside);
    return status;
}

__attribute__((format(printf, 3, 4))) static enum bt_status
refuse(const char *path, struct bt_error *error, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %s", path, text);
}

static enum bt_status check_field(const char *path, const json_t *root, const char *name,
                                  uint32_t expected, struct bt_error *error)
{
    const json_t *value = json_object_get(root, name);
    if (!value)
        return refuse(path, error, "%s is missing", name);
    if (!json_is_real(value))
        return refuse(path, error, "%s is not a number", name);
    if (json_real_value(value) != expected)
        return refuse(path, error, "%s is %.15g, not %" PRIu32, name, json_real_value(value),
                      expected);
    return BT_OK;
}

static enum bt_status check_list(const char *path, const char *name, const json_t *list,
                                 uint32_t expected, struct bt_error *error)
{
    if (!list)
        return refuse(path, error, "%s is missing", name);
    if (!json_is_array(list))
        return refuse(path, error, "%s is not a list", name);
    if (json_array_size(list) != expected)
        return refuse(path, error, "%s has %zu elements, not %" PRIu32, name, json_array_size(list),
                      expected);
    return BT_OK;
}

static enum bt_status read_row(const char *path, const json_t *row, uint32_t layer,
                               uint32_t experts, struct bt_error *error, uint64_t *out)
{
    char name[32];
    snprintf(name, sizeof(name), "loads[%" PRIu32 "]", layer);
    enum bt_status status = check_list(path, name, row, experts, error);
    for (uint32_t expert = 0; status == BT_OK && expert < experts; expert++) {
        const json_t *item = json_array_get(row, expert);
        double value = json_real_value(item);
        if (!json_is_real(item))
            status = refuse(path, error, "%s[%" PRIu32 "] is not a number", name, expert);
        else if (!(value >= 0))
            status = refuse(path, error, "%s[%" PRIu32 "] is negative", name, expert);
        else if (value > (double)BT_EXPERT_LOAD_MAX)
            status = refuse(path, error, "%s[%" PRIu32 "] is %.15g, limit %" PRIu64, name, expert,
                            value, BT_EXPERT_LOAD_MAX);
        else if (value != (double)(uint64_t)value)
            status = refuse(path, error, "%s[%" PRIu32 "] is %.15g, not a whole number", name,
                            expert, value);
        else
            out[expert] = (uint64_t)value;
    }
    return status;
}

static enum bt_status read_fields(const char *path, const json_t *root, uint32_t layers,
                                  uint32_t experts, struct bt_error *error, uint64_t *out)
{
    if (!json_is_object(root))
        return refuse(path, error, "not a JSON object");
    const json_t *rows = json_object_get(root, "loads");
    enum bt_status status = check_field(path, root, "version", 1, error);
    if (status == BT_OK)
        status = check_field(path, root, "layers", layers, error);
    if (status == BT_OK)
        status = check_field(path, root, "experts", experts, error);
    if (status == BT_OK)
        status = check_list(path, "loads", rows, layers, error);
    for (uint32_t layer = 0; status == BT_OK && layer < layers; layer++)
        status = read_row(path, json_array_get(rows, layer), layer, experts, error,
                          out + (size_t)layer * experts);
    return status;
}

/* All numbers as doubles: whole up to 2^53, and one that no integer holds is told by its place. */
static enum bt_status parse(const char *path, const char *text, size_t bytes,
                            struct bt_error *error, json_t **ret_root)
{
    json_error_t fault;
    json_t *root =
        json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &fault);
    if (!root)
        return refuse(path, error, "line %d, column %d: %.120s", fault.line, fault.column,
                      fault.text);
    *ret_root = root;
    return BT_OK;
}

enum bt_status bt_expert_loads_read(const char *path, uint32_t layers, uint32_t experts,
                                    struct bt_error *error, uint64_t *ret_loads)
{
    size_t count = (size_t)layers * experts, bytes;
    BT_ASSERT(layers <= BT_PLACEMENT_LAYERS_MAX && experts <= BT_PLACEMENT_EXPERTS_MAX);
    char *text;
    json_t *root = NULL;
    enum bt_status status =
        bt_file_read(path, FILE_BYTES_MORE + count * FILE_BYTES_PER_LOAD, error, &text, &bytes);
    if (status != BT_OK)
        return status;
    uint64_t *loads = malloc(count * sizeof(*loads) + 1);
    if (!loads)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    else
        status = parse(path, text, bytes, error, &root);
    if (status == BT_OK)
        status = read_fields(path, root, layers, experts, error, loads);
    if (status == BT_OK)
        memcpy(ret_loads, loads, count * sizeof(*loads));
    json_decref(root);
    free(loads);
    free(text);
    return status;
}
