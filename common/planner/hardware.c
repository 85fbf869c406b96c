#include "common/planner/hardware.h"

#include <stdio.h>
#include <string.h>

#include "common/planner/accelerators.h"
#include "common/planner/json_reader.h"

/* In the file each figure is {"value": number, "source": text}, in `unit`. */
static const struct figure {
    const char *key;
    double unit, min, max, otherwise; /* otherwise below 0: required */
} figures[BT_PLAN_FIGURES] = {
    [BT_PLAN_PEAK + BT_PLAN_BF16] = {"bf16_tflops", 1e12, 1e-6, 1e6, -1},
    [BT_PLAN_PEAK + BT_PLAN_FP8] = {"fp8_tflops", 1e12, 1e-6, 1e6, 0},
    [BT_PLAN_PEAK + BT_PLAN_INT8] = {"int8_tops", 1e12, 1e-6, 1e6, 0},
    [BT_PLAN_PEAK + BT_PLAN_FP4] = {"fp4_tflops", 1e12, 1e-6, 1e6, 0},
    [BT_PLAN_MEMORY] = {"memory_gb", 1e9, 1e-3, 1e6, -1},
    [BT_PLAN_MEMORY_BANDWIDTH] = {"memory_gb_s", 1e9, 1e-3, 1e6, -1},
    [BT_PLAN_RESERVE] = {"reserve_gb", 1e9, 0, 1e5, 10},
    [BT_PLAN_NODE_CARDS] = {"node_cards", 1, 1, 4096, -1},
    [BT_PLAN_INSIDE] = {"inside_gb_s", 1e9, 1e-6, 1e6, -1},
    [BT_PLAN_BETWEEN] = {"between_gb_s", 1e9, 1e-6, 1e6, -1},
    [BT_PLAN_PRICE] = {"price_per_hour", 1, 1e-6, 1e6, -1},
    [BT_PLAN_CORES] = {"cores", 1, 1, 65536, 1},
};

static const char *const number_names[BT_PLAN_NUMBERS] = {"bf16", "fp8", "int8", "fp4"};

const char *bt_plan_number_name(enum bt_plan_number number)
{
    return number_names[number];
}

const char *bt_plan_figure_key(enum bt_plan_figure figure)
{
    return figures[figure].key;
}

double bt_plan_figure_unit(enum bt_plan_figure figure)
{
    return figures[figure].unit;
}

static void read_figure(struct bt_plan_reader *entry, int index, struct bt_plan_hardware *hardware)
{
    static const char *const keys[] = {"value", "source", NULL};
    const struct figure *figure = &figures[index];
    if (!bt_plan_reader_has(entry, figure->key)) {
        if (figure->otherwise < 0)
            bt_plan_reader_refuse(entry, figure->key, "required");
        hardware->figure[index] = figure->otherwise * figure->unit;
        return;
    }
    struct bt_plan_reader reader = *entry;
    reader.object = json_object_get(entry->object, figure->key);
    if (!json_is_object(reader.object)) {
        bt_plan_reader_refuse(entry, figure->key, "not {\"value\": …, \"source\": …}");
        return;
    }
    snprintf(reader.prefix, sizeof(reader.prefix), "%.60s%s.", entry->prefix, figure->key);
    bt_plan_reader_expect(&reader, keys);
    hardware->figure[index] =
        bt_plan_reader_number(&reader, "value", figure->min, figure->max, NULL) * figure->unit;
    const char *source = bt_plan_reader_string(&reader, "source");
    snprintf(hardware->source[index], sizeof(hardware->source[index]), "%s", source ? source : "");
    entry->status = reader.status;
}

static void check_keys(struct bt_plan_reader *entry)
{
    const char *keys[BT_PLAN_FIGURES + 3] = {"name", "title"};
    for (int i = 0; i < BT_PLAN_FIGURES; i++)
        keys[i + 2] = figures[i].key;
    bt_plan_reader_expect(entry, keys);
}

static void read_entry(struct bt_plan_reader *entry, size_t index, struct bt_plan_hardware *ret)
{
    struct bt_plan_hardware hardware = {0};
    snprintf(entry->prefix, sizeof(entry->prefix), "accelerators[%zu].", index);
    const char *name = bt_plan_reader_string(entry, "name");
    const char *title = bt_plan_reader_string(entry, "title");
    if (entry->status != BT_OK)
        return;
    if (strlen(name) >= sizeof(hardware.name))
        bt_plan_reader_refuse(entry, "name", "longer than 31 characters");
    snprintf(hardware.name, sizeof(hardware.name), "%s", name);
    snprintf(hardware.title, sizeof(hardware.title), "%s", title);
    snprintf(entry->prefix, sizeof(entry->prefix), "%s.", hardware.name);
    check_keys(entry);
    for (int i = 0; i < BT_PLAN_FIGURES; i++)
        read_figure(entry, i, &hardware);
    for (int i = 0; i < BT_PLAN_NUMBERS; i++)
        hardware.figure[BT_PLAN_PEAK + i] *= hardware.figure[BT_PLAN_CORES];
    double cards = hardware.figure[BT_PLAN_NODE_CARDS];
    if (cards != (uint32_t)cards)
        bt_plan_reader_refuse(entry, "node_cards", "not a whole number");
    *ret = hardware;
}

static enum bt_status put(struct bt_plan_catalogue *catalogue, const char *path,
                          const struct bt_plan_hardware *hardware, struct bt_error *error)
{
    size_t i = 0;
    while (i < catalogue->count && strcmp(catalogue->entries[i].name, hardware->name))
        i++;
    if (i == BT_PLAN_HARDWARE_MAX)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%s: more than %d accelerators", path,
                            BT_PLAN_HARDWARE_MAX);
    catalogue->entries[i] = *hardware;
    catalogue->count += i == catalogue->count;
    return BT_OK;
}

static enum bt_status add_all(struct bt_plan_catalogue *catalogue, const char *path, json_t *root,
                              struct bt_error *error)
{
    static const char *const keys[] = {"accelerators", NULL};
    struct bt_plan_reader reader = {.object = root, .path = path, .error = error};
    const json_t *list = json_object_get(root, "accelerators");
    bt_plan_reader_expect(&reader, keys);
    if (!json_is_array(list))
        bt_plan_reader_refuse(&reader, "accelerators", "not a list");
    for (size_t i = 0; reader.status == BT_OK && i < json_array_size(list); i++) {
        struct bt_plan_hardware hardware = {0};
        struct bt_plan_reader entry = reader;
        entry.object = json_array_get(list, i);
        if (!json_is_object(entry.object))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: accelerators[%zu]: not an object", path, i);
        read_entry(&entry, i, &hardware);
        reader.status = entry.status;
        if (reader.status == BT_OK)
            reader.status = put(catalogue, path, &hardware, error);
    }
    return reader.status;
}

enum bt_status bt_plan_catalogue_load(const char *path, struct bt_error *error,
                                      struct bt_plan_catalogue *ret_catalogue)
{
    json_t *root;
    memset(ret_catalogue, 0, sizeof(*ret_catalogue));
    enum bt_status status = bt_plan_json_parse("built-in accelerators", bt_plan_accelerators,
                                               strlen(bt_plan_accelerators), error, &root);
    if (status != BT_OK)
        return status;
    status = add_all(ret_catalogue, "built-in accelerators", root, error);
    json_decref(root);
    if (status != BT_OK || !path)
        return status;
    status = bt_plan_json_load(path, error, &root);
    if (status != BT_OK)
        return status;
    status = add_all(ret_catalogue, path, root, error);
    json_decref(root);
    return status;
}

enum bt_status bt_plan_catalogue_find(const struct bt_plan_catalogue *catalogue, const char *name,
                                      struct bt_error *error,
                                      const struct bt_plan_hardware **ret_hardware)
{
    char names[320] = "";
    for (size_t i = 0; i < catalogue->count; i++) {
        if (!strcmp(catalogue->entries[i].name, name)) {
            *ret_hardware = &catalogue->entries[i];
            return BT_OK;
        }
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "",
                 catalogue->entries[i].name);
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "no accelerator %.31s; there are %s", name, names);
}

void bt_plan_hardware_set_cores(struct bt_plan_hardware *hardware, uint32_t cores)
{
    for (int i = 0; i < BT_PLAN_NUMBERS; i++)
        hardware->figure[BT_PLAN_PEAK + i] *= cores / hardware->figure[BT_PLAN_CORES];
    hardware->figure[BT_PLAN_CORES] = cores;
}

double bt_plan_hardware_peak(const struct bt_plan_hardware *hardware, enum bt_plan_number number,
                             enum bt_plan_number *ret_used)
{
    static const enum bt_plan_number order[BT_PLAN_NUMBERS][4] = {
        [BT_PLAN_BF16] = {BT_PLAN_BF16, BT_PLAN_BF16, BT_PLAN_BF16, BT_PLAN_BF16},
        [BT_PLAN_FP8] = {BT_PLAN_FP8, BT_PLAN_INT8, BT_PLAN_BF16, BT_PLAN_BF16},
        [BT_PLAN_INT8] = {BT_PLAN_INT8, BT_PLAN_FP8, BT_PLAN_BF16, BT_PLAN_BF16},
        [BT_PLAN_FP4] = {BT_PLAN_FP4, BT_PLAN_FP8, BT_PLAN_INT8, BT_PLAN_BF16},
    };
    int i = 0;
    while (i < 3 && hardware->figure[BT_PLAN_PEAK + order[number][i]] <= 0)
        i++;
    *ret_used = order[number][i];
    return hardware->figure[BT_PLAN_PEAK + *ret_used];
}
