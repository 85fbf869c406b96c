/*
 * A model under measurement: loaded, with a pool of random KV, and the arithmetic of what a step
 * needs at least, from the shapes and from the weights as they are stored. On the CPU, or on a
 * device, where prompts and steps are queued as the engines queue them. What goes wrong in a run
 * ends the program with what it said.
 */
#ifndef BATON_TESTS_BENCH_ENGINE_MODEL_H
#define BATON_TESTS_BENCH_ENGINE_MODEL_H

#include "common/model/forward.h"
#include "common/model/model.h"
#include "tests/bench/limits.h"

#define BENCH_MAX_BATCH 64 /* sequences of a decode step */

struct bench_model {
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_team *team;
    struct bt_device *device; /* NULL: the CPU */
    bool quick;               /* of the device's rates */
    struct bt_profile
        profile; /* of all runs since it was cleared; on a device of bench_profile's */
    struct bt_kv_layout layout;
    void *pool;
    uint32_t pool_pages;
    uint32_t *pages; /* [pool_pages] in order */
    uint32_t *tokens;
    uint32_t max_rows;
    uint64_t random;
    /* of the step last run: distinct experts of each layer and rows of each */
    struct bench_experts {
        uint32_t distinct; /* over all layers */
        double bytes;      /* their weights */
    } experts;
};

struct bench_limits {
    double bf16_flops, int8_flops, read_bytes; /* a second, all threads */
};

/* What a run must do. */
struct bench_needs {
    double bf16_flops, int8_flops, bytes;
    double kv_flops, kv_bytes; /* of a decode step: those of attention over KV */
};

struct bench_model_options {
    const char *dir, *kernels;
    struct bt_team *team;
    uint32_t max_rows, max_logits, pool_tokens;
    struct bt_device *device; /* of memory of its own; NULL: the CPU, with `kernels` and `team` */
    bool quick;               /* its rates need say nothing */
};

enum bt_status bench_model_open(const struct bench_model_options *options, struct bt_error *error,
                                struct bench_model **ret_model);
void bench_model_close(struct bench_model *bench);

/* Probes the limits of the model's table of kernels on its team, or of its device. */
struct bench_limits bench_limits_probe(const struct bench_model *bench);
/* The larger of each. */
struct bench_limits bench_limits_best(struct bench_limits a, struct bench_limits b);

/* Seconds that the needs take at the limits: computing, or reading if that takes longer. */
double bench_seconds(const struct bench_needs *needs, const struct bench_limits *limits);
/* The same where attention over KV and the rest of a step come one after the other: neither
 * computes while the other reads. */
double bench_serial_seconds(const struct bench_needs *needs, const struct bench_limits *limits);

/* A prompt of `length` tokens in chunks; seconds. All layers are computed for all rows, as the
 * inner layers of a whole model are; logits for the last row alone. */
double bench_prefill(struct bench_model *bench, uint32_t length, uint32_t chunk);
struct bench_needs bench_prefill_needs(const struct bench_model *bench, uint32_t length);

/* One step of `batch` sequences that have `kv` tokens each; seconds. On a device the median of some
 * that are queued as below. */
double bench_decode(struct bench_model *bench, uint32_t kv, uint32_t batch);
/* Of the step just run on a CPU: the experts it chose count, each once. */
struct bench_needs bench_decode_needs(const struct bench_model *bench, uint32_t kv, uint32_t batch);

/*
 * Such steps one after the other, the first not counted, and what each needs: `steps` of both, at
 * most BENCH_MAX_STEPS; kv + steps tokens of each sequence have to fit into the pool. On a CPU each
 * of new tokens at the same context. On a device as the decode engine runs them: graphs, tokens
 * drawn there, the next step begun before the one under way is waited for, the context growing; the
 * time of a step is that from the end of the one before to its own. Then each is run again by
 * itself with logits, has to draw the same tokens, and is looked at for its experts.
 */
#define BENCH_MAX_STEPS 32
void bench_decode_steps(struct bench_model *bench, uint32_t kv, uint32_t batch, uint32_t steps,
                        double *seconds, struct bench_needs *needs);

/* From now on runs are profiled, or not; at first they are on a CPU, and not on a device, where
 * that takes the queueing away. */
void bench_profile(struct bench_model *bench, bool on);

#endif
