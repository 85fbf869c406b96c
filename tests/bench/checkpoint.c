#include "tests/bench/checkpoint.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/safetensors_writer.h"

static const struct checkpoint_shape shapes[] = {
    {"lite-slice", "deepseek_v2", 6,    1,  2048, 16, 0, 512, 128,    64,
     128,          10944,         1408, 64, 2,    6,  1, 1,   102400, 163840},
    {"lite", "deepseek_v2", 27,   1,  2048, 16, 0, 512, 128,    64,
     128,    10944,         1408, 64, 2,    6,  1, 1,   102400, 163840},
    {"v3-slice", "deepseek_v3", 2,    1,  7168, 128, 1536, 512, 128,   64,
     128,        18432,         2048, 32, 1,    8,   8,    4,   16384, 163840},
};

const struct checkpoint_shape *checkpoint_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (!strcmp(shapes[i].name, name))
            return &shapes[i];
    return NULL;
}

bool checkpoint_dtype_find(const char *name, enum checkpoint_dtype *ret_dtype)
{
    static const char *const names[] = {"bf16", "fp8", "int8", "w4"};
    for (int i = 0; i < 4; i++) {
        if (!strcmp(names[i], name)) {
            *ret_dtype = (enum checkpoint_dtype)i;
            return true;
        }
    }
    return false;
}

/* ---- random bytes ---- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Every 8 bytes: random where `mask` is 1, `set` elsewhere. */
static void fill_masked(void *out, size_t bytes, uint64_t mask, uint64_t set, uint64_t *state)
{
    uint64_t lanes[8];
    for (int i = 0; i < 8; i++)
        lanes[i] = next_random(state) | 1;
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        uint64_t block[8];
        for (int j = 0; j < 8; j++) {
            lanes[j] ^= lanes[j] << 13;
            lanes[j] ^= lanes[j] >> 7;
            lanes[j] ^= lanes[j] << 17;
            block[j] = (lanes[j] & mask) | set;
        }
        memcpy((char *)out + i, block, sizeof(block));
    }
    uint64_t last = (next_random(state) & mask) | set;
    for (; i < bytes; i++)
        ((unsigned char *)out)[i] = (unsigned char)(last >> (i % 8 * 8));
}

/* ±[2^e, 2^(e+1)) with e so that a product over `inputs` of them keeps the size of its input. */
static void fill_bf16(void *out, size_t count, uint32_t inputs, uint64_t *state)
{
    uint64_t exponent = (uint64_t)(127 + (int)floor(log2(0.66 / sqrt(inputs)))) << 7;
    exponent |= exponent << 16;
    exponent |= exponent << 32;
    fill_masked(out, count * 2, UINT64_C(0x807f807f807f807f), exponent, state);
}

/* -64 … 63 */
static void fill_int8(void *out, size_t count, uint64_t *state)
{
    signed char *bytes = out;
    fill_masked(out, count, UINT64_C(0x7f7f7f7f7f7f7f7f), 0, state);
    for (size_t i = 0; i < count; i++)
        bytes[i] = (signed char)(bytes[i] - 64);
}

/* Two of -4 … 3 a byte. */
static void fill_int4(void *out, size_t bytes, uint64_t *state)
{
    unsigned char *pairs = out;
    fill_masked(out, bytes, UINT64_C(0x7777777777777777), 0, state);
    for (size_t i = 0; i < bytes; i++)
        pairs[i] = (unsigned char)(pairs[i] | (pairs[i] & 0x44) << 1);
}

static void fill_floats(float *out, size_t count, float value)
{
    for (size_t i = 0; i < count; i++)
        out[i] = value;
}

/* ---- tensors ---- */

enum fill { FILL_BF16, FILL_ONES, FILL_FP8, FILL_INT8, FILL_INT4, FILL_F32, FILL_GROUPS };

struct tensor {
    char name[96];
    enum fill fill;
    uint64_t dims[2];
    uint32_t dim_count;
    uint32_t inputs;
    float value; /* of FILL_F32 */
    size_t bytes;
    uint32_t number; /* of the file's writer */
};

struct plan {
    const struct checkpoint_shape *shape;
    enum checkpoint_dtype dtype;
    struct tensor *tensors;
    size_t count, capacity;
    bool failed;
};

static const char *const dtype_names[] = {"BF16", "BF16", "F8_E4M3", "I8", "U8", "F32", "U8"};

static size_t element_bytes(enum fill fill)
{
    return fill == FILL_BF16 || fill == FILL_ONES ? 2 : fill == FILL_F32 ? 4 : 1;
}

static struct tensor *add(struct plan *plan, enum fill fill, uint64_t rows, uint64_t cols,
                          uint32_t inputs, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* rows 0: a vector. Never NULL; what can't be stored is remembered. */
static struct tensor *add(struct plan *plan, enum fill fill, uint64_t rows, uint64_t cols,
                          uint32_t inputs, const char *format, ...)
{
    static struct tensor lost;
    if (plan->count == plan->capacity) {
        size_t capacity = plan->capacity ? 2 * plan->capacity : 256;
        struct tensor *tensors = realloc(plan->tensors, capacity * sizeof(*tensors));
        if (!tensors) {
            plan->failed = true;
            return &lost;
        }
        plan->tensors = tensors;
        plan->capacity = capacity;
    }
    struct tensor *t = &plan->tensors[plan->count++];
    *t = (struct tensor){.fill = fill, .inputs = inputs, .value = 1};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->name, sizeof(t->name), format, arguments);
    va_end(arguments);
    t->dims[0] = rows ? rows : cols;
    t->dims[1] = cols;
    t->dim_count = rows ? 2 : 1;
    t->bytes = (rows ? rows : 1) * cols * element_bytes(fill);
    return t;
}

enum kind { KIND_PLAIN, KIND_LINEAR, KIND_EXPERT };

/* One weight matrix with what its dtype needs beside it. */
static void add_matrix(struct plan *plan, enum kind kind, uint64_t outs, uint32_t inputs,
                       const char *name)
{
    float size = 1.15f / sqrtf((float)inputs); /* of an element */
    bool plain = kind == KIND_PLAIN || plan->dtype == CHECKPOINT_BF16;
    if (plain) {
        add(plan, FILL_BF16, outs, inputs, inputs, "%s.weight", name);
    } else if (plan->dtype == CHECKPOINT_FP8) {
        add(plan, FILL_FP8, outs, inputs, inputs, "%s.weight", name);
        add(plan, FILL_F32, (outs + 127) / 128, (inputs + 127) / 128, 0, "%s.weight_scale_inv",
            name)
            ->value = size / 1.5f;
    } else if (plan->dtype == CHECKPOINT_INT8 || kind == KIND_LINEAR) {
        add(plan, FILL_INT8, outs, inputs, inputs, "%s.weight", name);
        add(plan, FILL_F32, 0, outs, 0, "%s.weight_scale", name)->value = size / 37;
    } else {
        add(plan, FILL_INT4, outs, inputs / 2, inputs, "%s.weight", name);
        add(plan, FILL_F32, 0, outs, 0, "%s.weight_scale", name)->value = size / 27;
        add(plan, FILL_GROUPS, outs, inputs / 128, 0, "%s.weight_group_scale", name);
    }
}

static void add_named(struct plan *plan, enum kind kind, uint64_t outs, uint32_t inputs,
                      const char *format, uint32_t layer, const char *part)
{
    char name[80];
    snprintf(name, sizeof(name), format, layer, part);
    add_matrix(plan, kind, outs, inputs, name);
}

static void add_mlp(struct plan *plan, enum kind kind, uint32_t width, uint32_t layer,
                    const char *where)
{
    uint32_t hidden = plan->shape->hidden;
    char part[48];
    snprintf(part, sizeof(part), "%s.gate_proj", where);
    add_named(plan, kind, width, hidden, "model.layers.%u.%s", layer, part);
    snprintf(part, sizeof(part), "%s.up_proj", where);
    add_named(plan, kind, width, hidden, "model.layers.%u.%s", layer, part);
    snprintf(part, sizeof(part), "%s.down_proj", where);
    add_named(plan, kind, hidden, width, "model.layers.%u.%s", layer, part);
}

static void add_attention(struct plan *plan, uint32_t layer)
{
    const struct checkpoint_shape *s = plan->shape;
    uint32_t q_dim = s->heads * (s->nope + s->rope), kv_dim = s->heads * (s->nope + s->v);
    static const char at[] = "model.layers.%u.self_attn.%s";
    if (s->q_lora_rank) {
        add_named(plan, KIND_LINEAR, s->q_lora_rank, s->hidden, at, layer, "q_a_proj");
        add(plan, FILL_ONES, 0, s->q_lora_rank, 0, "model.layers.%u.self_attn.q_a_layernorm.weight",
            layer);
        add_named(plan, KIND_LINEAR, q_dim, s->q_lora_rank, at, layer, "q_b_proj");
    } else {
        add_named(plan, KIND_LINEAR, q_dim, s->hidden, at, layer, "q_proj");
    }
    add_named(plan, KIND_LINEAR, s->kv_lora_rank + s->rope, s->hidden, at, layer,
              "kv_a_proj_with_mqa");
    add(plan, FILL_ONES, 0, s->kv_lora_rank, 0, "model.layers.%u.self_attn.kv_a_layernorm.weight",
        layer);
    add_named(plan, KIND_PLAIN, kv_dim, s->kv_lora_rank, at, layer, "kv_b_proj");
    add_named(plan, KIND_LINEAR, s->hidden, s->heads * s->v, at, layer, "o_proj");
}

static void add_layer(struct plan *plan, uint32_t layer)
{
    const struct checkpoint_shape *s = plan->shape;
    add(plan, FILL_ONES, 0, s->hidden, 0, "model.layers.%u.input_layernorm.weight", layer);
    add(plan, FILL_ONES, 0, s->hidden, 0, "model.layers.%u.post_attention_layernorm.weight", layer);
    add_attention(plan, layer);
    if (layer < s->dense_layers) {
        add_mlp(plan, KIND_LINEAR, s->intermediate, layer, "mlp");
        return;
    }
    add(plan, FILL_BF16, s->experts, s->hidden, s->hidden, "model.layers.%u.mlp.gate.weight",
        layer);
    if (!strcmp(s->model_type, "deepseek_v3"))
        add(plan, FILL_F32, 0, s->experts, 0, "model.layers.%u.mlp.gate.e_score_correction_bias",
            layer)
            ->value = 0;
    add_mlp(plan, KIND_EXPERT, s->shared_experts * s->moe_intermediate, layer,
            "mlp.shared_experts");
    for (uint32_t e = 0; e < s->experts; e++) {
        char where[32];
        snprintf(where, sizeof(where), "mlp.experts.%u", e);
        add_mlp(plan, KIND_EXPERT, s->moe_intermediate, layer, where);
    }
}

static void add_all(struct plan *plan)
{
    const struct checkpoint_shape *s = plan->shape;
    add(plan, FILL_BF16, s->vocab, s->hidden, 1, "model.embed_tokens.weight");
    add(plan, FILL_ONES, 0, s->hidden, 0, "model.norm.weight");
    add_matrix(plan, plan->dtype == CHECKPOINT_FP8 ? KIND_PLAIN : KIND_LINEAR, s->vocab, s->hidden,
               "lm_head");
    for (uint32_t layer = 0; layer < s->layers; layer++)
        add_layer(plan, layer);
}

static void fill(const struct tensor *t, char *out, uint64_t *state)
{
    size_t count = t->bytes / element_bytes(t->fill);
    switch (t->fill) {
    case FILL_BF16:
        fill_bf16(out, count, t->inputs, state);
        break;
    case FILL_ONES:
        fill_masked(out, t->bytes, 0, UINT64_C(0x3f803f803f803f80), state);
        break;
    case FILL_FP8:
        fill_masked(out, t->bytes, UINT64_C(0x8787878787878787), UINT64_C(0x3838383838383838),
                    state);
        break;
    case FILL_INT8:
        fill_int8(out, count, state);
        break;
    case FILL_INT4:
        fill_int4(out, t->bytes, state);
        break;
    case FILL_F32:
        fill_floats((float *)out, count, t->value);
        break;
    case FILL_GROUPS:
        memset(out, 12, t->bytes);
        break;
    }
}

/* ---- files ---- */

static enum bt_status plan_file(struct bt_safetensors_writer *file, struct plan *plan,
                                struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (size_t i = 0; status == BT_OK && i < plan->count; i++) {
        struct tensor *t = &plan->tensors[i];
        status = bt_safetensors_writer_add(file, t->name, dtype_names[t->fill], t->dims,
                                           t->dim_count, error, &t->number);
    }
    return status == BT_OK ? bt_safetensors_writer_begin(file, error) : status;
}

static enum bt_status put_all(struct bt_safetensors_writer *file, const struct plan *plan,
                              uint64_t seed, struct bt_error *error)
{
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    enum bt_status status = BT_OK;
    for (size_t i = 0; status == BT_OK && i < plan->count; i++) {
        const struct tensor *t = &plan->tensors[i];
        char *data = malloc(t->bytes + 1);
        if (!data)
            return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", t->name);
        fill(t, data, &state);
        status = bt_safetensors_writer_put(file, t->number, 0, data, t->bytes, error);
        free(data);
    }
    return status == BT_OK ? bt_safetensors_writer_finish(file, error) : status;
}

static enum bt_status write_tensors(const char *path, struct plan *plan, uint64_t seed,
                                    struct bt_error *error)
{
    struct bt_safetensors_writer *file;
    if (unlink(path) && errno != ENOENT)
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    enum bt_status status = bt_safetensors_writer_create(path, error, &file);
    if (status != BT_OK)
        return status;
    status = plan_file(file, plan, error);
    if (status == BT_OK)
        status = put_all(file, plan, seed, error);
    bt_safetensors_writer_destroy(file);
    return status;
}

static void print_quantization(FILE *out, enum checkpoint_dtype dtype)
{
    if (dtype == CHECKPOINT_FP8)
        fprintf(out, "  \"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\","
                     " \"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]},\n");
    else if (dtype != CHECKPOINT_BF16)
        fprintf(out, "  \"quantization_config\": {\"quant_method\": \"baton\"},\n");
}

static enum bt_status write_config(const char *path, const struct checkpoint_shape *s,
                                   enum checkpoint_dtype dtype, struct bt_error *error)
{
    bool v3 = !strcmp(s->model_type, "deepseek_v3");
    FILE *out = fopen(path, "w");
    if (!out)
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    fprintf(out, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM", s->model_type);
    fprintf(out,
            "  \"torch_dtype\": \"bfloat16\",\n  \"hidden_act\": \"silu\",\n"
            "  \"vocab_size\": %u,\n  \"hidden_size\": %u,\n  \"intermediate_size\": %u,\n"
            "  \"moe_intermediate_size\": %u,\n  \"num_hidden_layers\": %u,\n"
            "  \"num_attention_heads\": %u,\n  \"num_key_value_heads\": %u,\n",
            s->vocab, s->hidden, s->intermediate, s->moe_intermediate, s->layers, s->heads,
            s->heads);
    if (s->q_lora_rank)
        fprintf(out, "  \"q_lora_rank\": %u,\n", s->q_lora_rank);
    else
        fprintf(out, "  \"q_lora_rank\": null,\n");
    fprintf(out,
            "  \"kv_lora_rank\": %u,\n  \"qk_nope_head_dim\": %u,\n  \"qk_rope_head_dim\": %u,\n"
            "  \"v_head_dim\": %u,\n  \"n_routed_experts\": %u,\n  \"n_shared_experts\": %u,\n"
            "  \"num_experts_per_tok\": %u,\n  \"first_k_dense_replace\": %u,\n"
            "  \"moe_layer_freq\": 1,\n  \"n_group\": %u,\n  \"topk_group\": %u,\n",
            s->kv_lora_rank, s->nope, s->rope, s->v, s->experts, s->shared_experts,
            s->experts_per_token, s->dense_layers, s->groups, s->groups_per_token);
    fprintf(out,
            "  \"scoring_func\": \"%s\",\n  \"topk_method\": \"%s\",\n  \"norm_topk_prob\": %s,\n"
            "  \"routed_scaling_factor\": %s,\n",
            v3 ? "sigmoid" : "softmax", v3 ? "noaux_tc" : "greedy", v3 ? "true" : "false",
            v3 ? "2.5" : "1.0");
    print_quantization(out, dtype);
    fprintf(out,
            "  \"max_position_embeddings\": %u,\n  \"rope_theta\": 10000,\n"
            "  \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"beta_fast\": 32,"
            " \"beta_slow\": 1,\n    \"mscale\": %s, \"mscale_all_dim\": %s,"
            " \"original_max_position_embeddings\": 4096},\n"
            "  \"rms_norm_eps\": 1e-06,\n  \"tie_word_embeddings\": false,\n"
            "  \"bos_token_id\": 0,\n  \"eos_token_id\": 1\n}\n",
            s->max_position_embeddings, v3 ? "1.0" : "0.707", v3 ? "1.0" : "0.707");
    if (fclose(out))
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    return BT_OK;
}

enum bt_status checkpoint_write(const char *dir, const struct checkpoint_shape *shape,
                                enum checkpoint_dtype dtype, uint64_t seed, struct bt_error *error)
{
    char path[4096];
    struct plan plan = {.shape = shape, .dtype = dtype};
    add_all(&plan);
    enum bt_status status =
        plan.failed ? bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", dir) : BT_OK;
    snprintf(path, sizeof(path), "%s/config.json", dir);
    if (status == BT_OK)
        status = write_config(path, shape, dtype, error);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (status == BT_OK)
        status = write_tensors(path, &plan, seed, error);
    free(plan.tensors);
    return status;
}
