/* Sizes from config.json: parameters against what the checkpoints' makers publish. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/planner/plan_model.h"
#include "tests/unit/planner/published.h"
#include "tests/unit/planner/scratch_file.h"

#define V3_SIZES                                                                                   \
    "\"vocab_size\":129280,\"hidden_size\":7168,\"intermediate_size\":18432,"                      \
    "\"num_hidden_layers\":61,\"num_attention_heads\":128,\"q_lora_rank\":1536,"                   \
    "\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,"    \
    "\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":8,"                   \
    "\"moe_intermediate_size\":2048,\"first_k_dense_replace\":3,\"num_nextn_predict_layers\":1,"   \
    "\"max_position_embeddings\":163840"
#define V3 "{\"model_type\":\"deepseek_v3\"," V3_SIZES "}"
#define V32                                                                                        \
    "{\"model_type\":\"deepseek_v32\",\"index_topk\":2048,\"index_n_heads\":64,"                   \
    "\"index_head_dim\":128,\"quantization_config\":{\"quant_method\":\"fp8\","                    \
    "\"scale_fmt\":\"ue8m0\"}," V3_SIZES "}"

static enum bt_status load(const char *text, struct bt_error *error,
                           struct bt_plan_model_file *ret_file)
{
    struct scratch_file file;
    scratch_file_open("config.json", text, &file);
    enum bt_status status = bt_plan_model_load(file.dir, error, ret_file);
    scratch_file_close(&file);
    return status;
}

/* Published: 671 B in all, 36.6 B active with 0.9 B of the head, 11.5 B in the MTP module. */
static void v3_has_the_published_parameters(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_plan_model_file file;
    assert_int_equal(load(V3, &error, &file), BT_OK);
    const struct bt_plan_model *model = &file.model;
    assert_true(file.runs);
    assert_int_equal(file.weights, BT_PLAN_WEIGHTS_BF16);
    assert_near("all", (model->dense_parameters + model->moe_parameters) / 1e9, 671, 0.5);
    assert_near("active", (model->active_parameters + model->attention_parameters) / 1e9, 36.6,
                0.05);
    assert_near("head", model->head_parameters / 1e9, 0.9, 0.05);
    assert_near("MTP", model->mtp_parameters / 1e9, 11.5, 0.2);
    /* By hand: 3 * 7168 * 2048 * 257 * 58; 14 and 657 are the tables' figures. */
    assert_near("experts", model->moe_parameters, 3.0 * 7168 * 2048 * 257 * 58, 1);
    assert_near("experts of the tables", model->moe_parameters / 1e9, 657, 1);
    assert_near("the rest of the tables", model->dense_parameters / 1e9, 14, 0.6);
    assert_int_equal(model->moe_layers, 58);
    assert_int_equal(model->sparse_tokens, 0);
}

/* 129280 rows of 7168, in the dense parameters beside the head; one matrix for both where tied, and
 * that is read as the head. */
static void the_embedding_is_counted_once_where_it_is_the_head(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_plan_model_file apart, tied;
    assert_int_equal(load(V3, &error, &apart), BT_OK);
    assert_int_equal(load("{\"model_type\":\"deepseek_v3\",\"tie_word_embeddings\":true," V3_SIZES
                          "}",
                          &error, &tied),
                     BT_OK);
    double matrix = 129280.0 * 7168;
    assert_near("apart", apart.model.embedding_parameters, matrix, 0);
    assert_near("tied", tied.model.embedding_parameters, 0, 0);
    assert_near("dense", apart.model.dense_parameters - tied.model.dense_parameters, matrix, 1);
    assert_near("head", tied.model.head_parameters, matrix, 0);
}

/* fp8 is widened, int8 and int4 are not; attention is bf16 in all of them. */
static void cpus_compute_attention_in_bf16(void **state)
{
    (void)state;
    static const enum bt_plan_number numbers[] = {
        [BT_PLAN_WEIGHTS_BF16] = BT_PLAN_BF16,
        [BT_PLAN_WEIGHTS_FP8] = BT_PLAN_BF16,
        [BT_PLAN_WEIGHTS_INT8] = BT_PLAN_INT8,
        [BT_PLAN_WEIGHTS_W4A8] = BT_PLAN_FP8, /* a CPU's int8 stands in for it */
    };
    for (int i = 0; i < BT_PLAN_WEIGHTS_KINDS; i++) {
        struct bt_plan_dtypes dtypes =
            bt_plan_dtypes_of(&published_model, (enum bt_plan_weights)i, false);
        assert_false(dtypes.bf16_attention);
        bt_plan_dtypes_on_cpu((enum bt_plan_weights)i, &dtypes);
        assert_true(dtypes.bf16_attention);
        assert_int_equal(dtypes.compute, numbers[i]);
    }
}

/* The indexer: 1536 * 64 * 128 + 7168 * (128 + 64) in each of 61 layers. */
static void v32_is_read_though_the_forward_pass_refuses_it(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_plan_model_file v3, v32;
    assert_int_equal(load(V3, &error, &v3), BT_OK);
    assert_int_equal(load(V32, &error, &v32), BT_OK);
    assert_false(v32.runs);
    assert_non_null(strstr(v32.refusal, "model_type"));
    assert_int_equal(v32.weights, BT_PLAN_WEIGHTS_FP8);
    assert_int_equal(v32.model.sparse_tokens, 2048);
    assert_int_equal(v32.model.indexer_heads, 64);
    assert_int_equal(v32.model.indexer_dim, 128);
    assert_near("indexer", v32.model.attention_parameters - v3.model.attention_parameters,
                61.0 * (1536 * 64 * 128 + 7168 * (128 + 64)), 1);
    assert_near("experts", v32.model.moe_parameters, v3.model.moe_parameters, 0);
}

static void sparse_keys_are_not_overlooked_where_the_loader_ignores_them(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_plan_model_file file;
    assert_int_equal(
        load("{\"model_type\":\"deepseek_v3\",\"index_topk\":2048,\"index_n_heads\":64,"
             "\"index_head_dim\":128," V3_SIZES "}",
             &error, &file),
        BT_OK);
    assert_false(file.runs);
    assert_non_null(strstr(file.refusal, "index_topk"));
    assert_int_equal(file.model.sparse_tokens, 2048);
}

/* Both readers have to agree on checkpoints that both can read: under another name the file goes
 * past the loader of the engine. */
static void both_readers_agree(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny", "v3-hf", "v3-tied", "dense", "v2-lite"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char dir[512], path[600], text[65536];
        struct bt_error error = {0};
        struct bt_plan_model_file strict, lenient;
        struct scratch_file copy;
        snprintf(dir, sizeof(dir), "%s/%s", TESTS_MODELS, names[i]);
        snprintf(path, sizeof(path), "%s/config.json", dir);
        FILE *file = fopen(path, "r");
        assert_non_null(file);
        text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
        fclose(file);
        scratch_file_open("sizes.json", text, &copy);
        enum bt_status by_name = bt_plan_model_load(copy.path, &error, &lenient);
        scratch_file_close(&copy);
        assert_int_equal(bt_plan_model_load(dir, &error, &strict), BT_OK);
        assert_int_equal(by_name, BT_OK);
        assert_true(strict.runs);
        assert_false(lenient.runs);
        assert_memory_equal(&strict.model, &lenient.model, sizeof(strict.model));
    }
}

static void faults_name_file_and_key(void **state)
{
    (void)state;
    static const struct {
        const char *text, *key;
    } cases[] = {
        {"{\"model_type\":\"x\"}", "vocab_size"},
        {"{\"model_type\":\"deepseek_v32\",\"index_topk\":2048," V3_SIZES "}", "index_n_heads"},
        {"{\"model_type\":\"x\",\"quantization_config\":{}," V3_SIZES "}", "quantization_config"},
        {"{\"model_type\":\"x\",\"quantization_config\":{\"quant_method\":\"odd\"}," V3_SIZES "}",
         "quantization_config"},
        {"[1]", "config.json"},
        {"{", "bad JSON"},
        {"{\"model_type\":\"x\",\"hidden_size\":-1,\"vocab_size\":7}", "hidden_size"},
        {"{\"model_type\":\"x\",\"hidden_size\":\"a\",\"vocab_size\":7}", "hidden_size"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bt_error error = {0};
        struct bt_plan_model_file file;
        assert_int_equal(load(cases[i].text, &error, &file), BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, cases[i].key));
        assert_non_null(strstr(error.text, "config.json"));
    }
    struct bt_error error = {0};
    struct bt_plan_model_file file;
    assert_int_equal(bt_plan_model_load("/nonexistent", &error, &file), BT_ERR_NOT_FOUND);
}

/* 512 + 4 * 4 + 64 * 2 of fp8, 576 * 2 of bf16. */
static void kv_bytes_are_those_of_the_pages(void **state)
{
    (void)state;
    struct bt_plan_dtypes fp8 = bt_plan_dtypes_of(&published_model, BT_PLAN_WEIGHTS_W4A8, true);
    struct bt_plan_dtypes bf16 = bt_plan_dtypes_of(&published_model, BT_PLAN_WEIGHTS_W4A8, false);
    assert_near("fp8", bt_plan_kv_token_bytes(&published_model, &fp8), 656, 0);
    assert_near("bf16", bt_plan_kv_token_bytes(&published_model, &bf16), 1152, 0);
    for (int i = 0; i < BT_PLAN_WEIGHTS_KINDS; i++) {
        enum bt_plan_weights weights;
        assert_int_equal(
            bt_plan_weights_parse(bt_plan_weights_name((enum bt_plan_weights)i), NULL, &weights),
            BT_OK);
        assert_int_equal(weights, i);
    }
    struct bt_error error = {0};
    enum bt_plan_weights weights;
    assert_int_equal(bt_plan_weights_parse("int3", &error, &weights), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "int3"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v3_has_the_published_parameters),
        cmocka_unit_test(the_embedding_is_counted_once_where_it_is_the_head),
        cmocka_unit_test(cpus_compute_attention_in_bf16),
        cmocka_unit_test(v32_is_read_though_the_forward_pass_refuses_it),
        cmocka_unit_test(sparse_keys_are_not_overlooked_where_the_loader_ignores_them),
        cmocka_unit_test(both_readers_agree),
        cmocka_unit_test(faults_name_file_and_key),
        cmocka_unit_test(kv_bytes_are_those_of_the_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
