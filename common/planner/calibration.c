#include "common/planner/calibration.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/planner/json_reader.h"

#define FIELD(name, low, high)                                                                     \
    {                                                                                              \
#name, offsetof(struct bt_plan_calibration, name), low, high                               \
    }

static const struct field {
    const char *key;
    size_t offset;
    double min, max;
} fields[] = {
    FIELD(prefill_mfu, 1e-6, 1),       FIELD(decode_mfu, 1e-6, 1),
    FIELD(prefill_bandwidth, 1e-6, 1), FIELD(decode_bandwidth, 1e-6, 1),
    FIELD(inside_link, 1e-6, 1),       FIELD(between_link, 1e-6, 1),
    FIELD(step_overhead_s, 0, 60),     FIELD(sequence_overhead_s, 0, 60),
    FIELD(request_overhead_s, 0, 600), FIELD(score_share, 0, 1),
    FIELD(expert_skew, 1, 4096),       FIELD(memory_limit, 0.01, 1),
};
#define FIELDS (sizeof(fields) / sizeof(fields[0]))

static const char *const routing_names[] = {"expected", "average", "uneven", NULL};
static const char *const overlap_names[] = {"none", "card", "all", NULL};

const char *bt_plan_routing_name(enum bt_plan_routing routing)
{
    return routing_names[routing];
}

const char *bt_plan_overlap_name(enum bt_plan_overlap overlap)
{
    return overlap_names[overlap];
}

struct bt_plan_calibration bt_plan_calibration_published(void)
{
    return (struct bt_plan_calibration){
        .prefill_mfu = 1,
        .decode_mfu = 1,
        .prefill_bandwidth = 1,
        .decode_bandwidth = 1,
        .inside_link = 1,
        .between_link = 1,
        .score_share = 1,
        .expert_skew = 1,
        .memory_limit = 0.85,
        .routing = BT_PLAN_ROUTING_AVERAGE,
        .overlap = BT_PLAN_OVERLAP_NONE,
        .source = "peaks, as the published tables",
    };
}

struct bt_plan_calibration bt_plan_calibration_default(void)
{
    struct bt_plan_calibration calibration = bt_plan_calibration_published();
    calibration.prefill_mfu = calibration.decode_mfu = 0.6;
    calibration.inside_link = 0.5;
    calibration.score_share = 0;
    calibration.routing = BT_PLAN_ROUTING_EXPECTED;
    snprintf(calibration.source, sizeof(calibration.source), "not measured: rules of thumb");
    return calibration;
}

static int read_choice(struct bt_plan_reader *reader, const char *key, const char *const *names,
                       int otherwise)
{
    if (!bt_plan_reader_has(reader, key))
        return otherwise;
    const char *text = bt_plan_reader_string(reader, key);
    for (int i = 0; text && names[i]; i++)
        if (!strcmp(text, names[i]))
            return i;
    bt_plan_reader_refuse(reader, key, "not a name of these");
    return otherwise;
}

static void read_all(struct bt_plan_reader *reader, struct bt_plan_calibration *calibration)
{
    const char *keys[FIELDS + 4] = {"routing", "overlap", "source"};
    for (size_t i = 0; i < FIELDS; i++)
        keys[i + 3] = fields[i].key;
    bt_plan_reader_expect(reader, keys);
    for (size_t i = 0; i < FIELDS; i++) {
        double *value = (double *)(void *)((char *)calibration + fields[i].offset);
        *value = bt_plan_reader_number(reader, fields[i].key, fields[i].min, fields[i].max, value);
    }
    calibration->routing = (enum bt_plan_routing)read_choice(reader, "routing", routing_names,
                                                             (int)calibration->routing);
    calibration->overlap = (enum bt_plan_overlap)read_choice(reader, "overlap", overlap_names,
                                                             (int)calibration->overlap);
    const char *source =
        bt_plan_reader_has(reader, "source") ? bt_plan_reader_string(reader, "source") : NULL;
    snprintf(calibration->source, sizeof(calibration->source), "%s",
             source ? source : reader->path);
    calibration->measured = true;
}

enum bt_status bt_plan_calibration_load(const char *path, struct bt_error *error,
                                        struct bt_plan_calibration *ret_calibration)
{
    json_t *root;
    enum bt_status status = bt_plan_json_load(path, error, &root);
    if (status != BT_OK)
        return status;
    struct bt_plan_reader reader = {.object = root, .path = path, .error = error};
    struct bt_plan_calibration calibration = bt_plan_calibration_default();
    read_all(&reader, &calibration);
    json_decref(root);
    if (reader.status == BT_OK)
        *ret_calibration = calibration;
    return reader.status;
}
