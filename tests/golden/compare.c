#include "tests/golden/compare.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE_SEED        7
#define STATE_TOLERANCE  1e-5 /* of the largest value; measured: 2.3e-6 */
#define WEIGHT_TOLERANCE 1e-5 /* of routed_scaling_factor; measured: 4e-6 */

const void *golden_data(const struct golden *golden, const char *tensor)
{
    const struct bt_tensor *found = bt_safetensors_find(golden->file, tensor);
    return found ? found->data : NULL;
}

static uint32_t length_of(const struct golden *golden, const char *tensor)
{
    const struct bt_tensor *found = bt_safetensors_find(golden->file, tensor);
    assert_non_null(found);
    return (uint32_t)found->dims[0];
}

void golden_open(const char *path, const char *name, struct golden *ret_golden)
{
    struct bt_error error = {0};
    *ret_golden = (struct golden){.name = name};
    if (bt_safetensors_open_file(path, &error, &ret_golden->file) != BT_OK)
        fail_msg("%s", error.text);
    ret_golden->token_count = length_of(ret_golden, "ids");
    ret_golden->position_count = length_of(ret_golden, "positions");
    ret_golden->greedy_count = length_of(ret_golden, "greedy");
    ret_golden->ids = golden_data(ret_golden, "ids");
    ret_golden->positions = golden_data(ret_golden, "positions");
    ret_golden->logits = golden_data(ret_golden, "logits");
    ret_golden->greedy = golden_data(ret_golden, "greedy");
    ret_golden->greedy_gap = golden_data(ret_golden, "greedy_gap");
}

void golden_close(struct golden *golden)
{
    bt_safetensors_close(golden->file);
}

double largest_difference(const float *a, const float *b, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= largest))
            largest = isnan(difference) ? INFINITY : difference;
    }
    return largest;
}

void assert_same_bits(const char *what, const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof(float)))
            fail_msg("%s: value %zu of %zu: %a and %a", what, i, count, (double)a[i], (double)b[i]);
}

static void assert_close(const struct golden *golden, const char *what, const float *ours,
                         const float *theirs, size_t count, double tolerance)
{
    double difference = largest_difference(ours, theirs, count);
    if (!(difference <= tolerance))
        fail_msg("%s: %s differs by %g, tolerance %g", golden->name, what, difference, tolerance);
}

double compare_logits(struct engine *engine, const struct golden *golden, uint32_t chunk,
                      double tolerance)
{
    size_t count = (size_t)golden->position_count * engine->vocab;
    float *logits = calloc(count, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, golden->token_count, PAGE_SEED);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, chunk,
                golden->positions, golden->position_count, NULL, logits);
    double difference = largest_difference(logits, golden->logits, count);
    assert_close(golden, "logits", logits, golden->logits, count, tolerance);
    const float *last = golden_data(golden, "logits_last");
    if (last)
        assert_close(golden, "logits_last", logits + count - engine->vocab, last, engine->vocab,
                     tolerance);
    engine_texts_free(text, 1);
    free(logits);
    return difference;
}

/* Within STATE_TOLERANCE of the largest value: single values of the residual stream are hundreds
 * of times the typical one, and carry their rounding into all sums they are part of. */
static void assert_state(const struct golden *golden, const char *what, const float *ours,
                         const float *theirs, size_t count)
{
    double largest = 1;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)theirs[i]));
    assert_close(golden, what, ours, theirs, count, STATE_TOLERANCE * largest);
}

struct state_check {
    const struct engine *engine;
    const struct golden *golden;
    uint32_t moe_layers, states;
};

static void check_experts(struct state_check *check, uint32_t layer, const uint32_t *experts,
                          const float *weights)
{
    const struct golden *golden = check->golden;
    uint32_t per_token = check->engine->model->config.route.experts_per_token;
    size_t count = (size_t)golden->token_count * per_token, skip = check->moe_layers++ * count;
    double tolerance = WEIGHT_TOLERANCE * (double)check->engine->model->config.route.scale;
    const uint32_t *their_experts = golden_data(golden, "experts");
    const float *their_weights = golden_data(golden, "expert_weights");
    if (!their_experts)
        return;
    for (size_t i = 0; i < count; i++) {
        size_t row = i / per_token * per_token, at = row;
        while (at < row + per_token && their_experts[skip + at] != experts[i])
            at++;
        if (at == row + per_token)
            fail_msg("%s: layer %u row %zu: expert %u is not among the reference's", golden->name,
                     layer, i / per_token, experts[i]);
        if (!(fabs((double)weights[i] - their_weights[skip + at]) <= tolerance))
            fail_msg("%s: layer %u row %zu: weight of expert %u is %g, not %g", golden->name, layer,
                     i / per_token, experts[i], (double)weights[i],
                     (double)their_weights[skip + at]);
    }
}

static void check_state(void *context, int32_t layer, const float *x, const uint32_t *experts,
                        const float *weights)
{
    struct state_check *check = context;
    size_t count = (size_t)check->golden->token_count * check->engine->model->config.hidden_size;
    const float *hidden = golden_data(check->golden, "hidden");
    char what[32];
    snprintf(what, sizeof(what), "hidden %d", layer);
    if (hidden)
        assert_state(check->golden, what, x, hidden + (size_t)(layer + 1) * count, count);
    check->states++;
    if (experts)
        check_experts(check, (uint32_t)layer, experts, weights);
}

/* c_kv and k_pe of each layer and token, out of the pages. */
static void check_pages(const struct engine *engine, const struct text *text,
                        const struct golden *golden)
{
    const struct bt_kv_layout *layout = &engine->layout;
    const float *c_kv = golden_data(golden, "c_kv"), *k_pe = golden_data(golden, "k_pe");
    if (!c_kv)
        return;
    uint32_t latent = layout->kv_lora_rank, rope = layout->qk_rope_head_dim;
    float *entry = calloc(latent + rope, sizeof(*entry));
    for (uint32_t i = 0; i < layout->layer_count * golden->token_count; i++) {
        uint32_t layer = i / golden->token_count, token = i % golden->token_count;
        size_t offset = bt_kv_offset(layout, engine->pool_pages, layer,
                                     text->pages[token / BT_PAGE_TOKENS], token % BT_PAGE_TOKENS);
        engine_read_pool(engine, offset, (latent + rope) * sizeof(*entry), entry);
        assert_state(golden, "c_kv", entry, c_kv + (size_t)i * latent, latent);
        assert_state(golden, "k_pe", entry + latent, k_pe + (size_t)i * rope, rope);
    }
    free(entry);
}

void compare_states(struct engine *engine, const struct golden *golden)
{
    struct state_check check = {engine, golden, 0, 0};
    struct probe probe = {check_state, &check};
    struct text *text = engine_texts(engine, 1, golden->token_count, PAGE_SEED);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, 0, NULL, 0,
                &probe, NULL);
    assert_int_equal(check.states, engine->model->config.num_hidden_layers + 1);
    check_pages(engine, text, golden);
    engine_texts_free(text, 1);
}

void compare_greedy(struct engine *engine, const struct golden *golden)
{
    float *logits = calloc(engine->vocab, sizeof(*logits));
    uint32_t last = golden->token_count - 1;
    struct text *text =
        engine_texts(engine, 1, golden->token_count + golden->greedy_count, PAGE_SEED);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, 0, &last, 1,
                NULL, logits);
    for (uint32_t i = 0; i < golden->greedy_count; i++) {
        uint32_t token = argmax(logits, engine->vocab), zero = 0;
        if (token != golden->greedy[i])
            fail_msg("%s: greedy token %u is %u, not %u (gap %g)", golden->name, i, token,
                     golden->greedy[i], (double)golden->greedy_gap[i]);
        engine_feed(engine, text, BT_FORWARD_ABSORBED, &token, 1, 0, &zero, 1, NULL, logits);
    }
    engine_texts_free(text, 1);
    free(logits);
}
