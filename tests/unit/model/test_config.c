/* config.json as published, its variants, and every key spoiled in turn. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model/model.h"
#include "tests/unit/model/scratch.h"

/* The values of the published config.json files that the forward pass depends on. */
static const char v2_lite[] =
    "{'model_type':'deepseek_v2','vocab_size':102400,'hidden_size':2048,'intermediate_size':10944,"
    "'moe_intermediate_size':1408,'num_hidden_layers':27,'num_attention_heads':16,"
    "'num_key_value_heads':16,'n_shared_experts':2,'n_routed_experts':64,'ep_size':1,"
    "'routed_scaling_factor':1.0,'kv_lora_rank':512,'q_lora_rank':null,'qk_rope_head_dim':64,"
    "'v_head_dim':128,'qk_nope_head_dim':128,'topk_method':'greedy','n_group':1,'topk_group':1,"
    "'num_experts_per_tok':6,'moe_layer_freq':1,'first_k_dense_replace':1,'norm_topk_prob':false,"
    "'scoring_func':'softmax','aux_loss_alpha':0.001,'seq_aux':true,'hidden_act':'silu',"
    "'max_position_embeddings':163840,'rms_norm_eps':1e-06,'rope_theta':10000,"
    "'rope_scaling':{'beta_fast':32,'beta_slow':1,'factor':40,'mscale':0.707,"
    "'mscale_all_dim':0.707,'original_max_position_embeddings':4096,'type':'yarn'},"
    "'attention_bias':false,'attention_dropout':0.0,'tie_word_embeddings':false,"
    "'bos_token_id':100000,'eos_token_id':100001,'torch_dtype':'bfloat16','use_cache':true}";

static const char v3[] =
    "{'model_type':'deepseek_v3','vocab_size':129280,'hidden_size':7168,'intermediate_size':18432,"
    "'moe_intermediate_size':2048,'num_hidden_layers':61,'num_nextn_predict_layers':1,"
    "'num_attention_heads':128,'num_key_value_heads':128,'n_shared_experts':1,"
    "'n_routed_experts':256,'ep_size':1,'routed_scaling_factor':2.5,'kv_lora_rank':512,"
    "'q_lora_rank':1536,'qk_rope_head_dim':64,'v_head_dim':128,'qk_nope_head_dim':128,"
    "'topk_method':'noaux_tc','n_group':8,'topk_group':4,'num_experts_per_tok':8,"
    "'moe_layer_freq':1,'first_k_dense_replace':3,'norm_topk_prob':true,'scoring_func':'sigmoid',"
    "'hidden_act':'silu','max_position_embeddings':163840,'rms_norm_eps':1e-06,'rope_theta':10000,"
    "'rope_scaling':{'beta_fast':32,'beta_slow':1,'factor':40,'mscale':1.0,'mscale_all_dim':1.0,"
    "'original_max_position_embeddings':4096,'type':'yarn'},'attention_bias':false,"
    "'tie_word_embeddings':false,'bos_token_id':0,'eos_token_id':1}";

/* Only what has no default. */
static const char least[] =
    "{'model_type':'deepseek_v2','vocab_size':100,'hidden_size':32,'intermediate_size':64,"
    "'num_hidden_layers':2,'num_attention_heads':2,'kv_lora_rank':16,'qk_nope_head_dim':8,"
    "'qk_rope_head_dim':4,'v_head_dim':8,'max_position_embeddings':128}";

static json_t *parse(const char *text)
{
    char *copy = strdup(text);
    for (char *at = copy; *at; at++)
        if (*at == '\'')
            *at = '"';
    json_t *root = json_loads(copy, JSON_DECODE_ANY, NULL);
    if (!root)
        fail_msg("no JSON: %s", text);
    free(copy);
    return root;
}

/* `base` with `key` set to `value` ("-": taken away); "a.b" goes into the object a. */
static json_t *changed(const char *base, const char *key, const char *value)
{
    json_t *root = parse(base), *object = root;
    const char *dot = key ? strchr(key, '.') : NULL;
    char parent[64];
    if (dot) {
        snprintf(parent, sizeof(parent), "%.*s", (int)(dot - key), key);
        object = json_object_get(root, parent);
        assert_non_null(object);
        key = dot + 1;
    }
    if (key && !strcmp(value, "-"))
        json_object_del(object, key);
    else if (key)
        json_object_set_new(object, key, parse(value));
    return root;
}

static struct scratch scratch;

static enum bt_status load(const char *base, const char *key, const char *value,
                           struct bt_error *error, struct bt_model_config *ret_config)
{
    json_t *root = changed(base, key, value);
    scratch_write_json(&scratch, "config.json", root);
    json_decref(root);
    return bt_model_config_load(scratch.dir, error, ret_config);
}

static struct bt_model_config sound(const char *base, const char *key, const char *value)
{
    struct bt_error error = {0};
    struct bt_model_config config;
    if (load(base, key, value, &error, &config) != BT_OK)
        fail_msg("%s", error.text);
    return config;
}

static void test_v2_lite(void **state)
{
    (void)state;
    struct bt_model_config c = sound(v2_lite, NULL, NULL);
    assert_int_equal(c.q_lora_rank, 0);
    assert_int_equal(c.kv_lora_rank, 512);
    assert_int_equal(c.n_shared_experts, 2);
    assert_int_equal(c.route.experts, 64);
    assert_int_equal(c.route.experts_per_token, 6);
    assert_int_equal(c.route.scoring, BT_SCORING_SOFTMAX);
    assert_int_equal(c.route.method, BT_TOPK_GREEDY);
    assert_false(c.route.normalize);
    assert_true(c.route.scale == 1.0f);
    assert_true(c.yarn.enabled && c.yarn.factor == 40 && c.yarn.mscale == 0.707);
    assert_int_equal(c.bos_token_id, 100000);
    assert_int_equal(c.eos_token_count, 1);
    assert_int_equal(c.eos_token_ids[0], 100001);
    assert_false(bt_model_layer_is_moe(&c, 0));
    assert_true(bt_model_layer_is_moe(&c, 1) && bt_model_layer_is_moe(&c, 26));
    /* 192^-1/2 (0.1 * 0.707 ln 40 + 1)^2 */
    assert_true(fabs(bt_model_mla_shape(&c).softmax_scale - 0.1147213867929261) < 1e-8);
}

static void test_v3(void **state)
{
    (void)state;
    struct bt_model_config c = sound(v3, NULL, NULL);
    assert_int_equal(c.q_lora_rank, 1536);
    assert_int_equal(c.route.groups, 8);
    assert_int_equal(c.route.groups_per_token, 4);
    assert_int_equal(c.route.scoring, BT_SCORING_SIGMOID);
    assert_int_equal(c.route.method, BT_TOPK_NOAUX_TC);
    assert_true(c.route.normalize && c.route.scale == 2.5f);
    assert_int_equal(c.num_nextn_predict_layers, 1);
    assert_false(bt_model_layer_is_moe(&c, 2));
    assert_true(bt_model_layer_is_moe(&c, 3));
    /* 192^-1/2 (0.1 ln 40 + 1)^2 */
    assert_true(fabs(bt_model_mla_shape(&c).softmax_scale - 0.1352337788608801) < 1e-8);
}

static void test_defaults(void **state)
{
    (void)state;
    struct bt_model_config c = sound(least, NULL, NULL);
    assert_int_equal(c.n_routed_experts, 0);
    assert_false(bt_model_layer_is_moe(&c, 1));
    assert_false(c.yarn.enabled);
    assert_true(c.rope_theta == 10000 && c.rms_norm_eps == 1e-6f);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.eos_token_count, 0);
    /* What a file leaves out is as the model's own class has it. */
    c = sound(v3, "scoring_func", "-");
    assert_int_equal(c.route.scoring, BT_SCORING_SIGMOID);
    c = sound(v3, "topk_method", "null");
    assert_int_equal(c.route.method, BT_TOPK_NOAUX_TC);
    c = sound(v2_lite, "scoring_func", "null");
    assert_int_equal(c.route.scoring, BT_SCORING_SOFTMAX);
    c = sound(v2_lite, "topk_method", "-");
    assert_int_equal(c.route.method, BT_TOPK_GREEDY);
    c = sound(v2_lite, "n_group", "null");
    assert_int_equal(c.route.groups, 1);
    c = sound(v2_lite, "n_shared_experts", "null");
    assert_int_equal(c.n_shared_experts, 0);
}

/* V3's class has other values for a key that is not there than for one that is null. */
static void test_absent_is_not_null(void **state)
{
    (void)state;
    struct bt_model_config c = sound(v3, "n_group", "-");
    assert_int_equal(c.route.groups, 8);
    c = sound(v3, "n_group", "null");
    assert_int_equal(c.route.groups, 1);
    c = sound(v3, "topk_group", "-");
    assert_int_equal(c.route.groups_per_token, 4);
    c = sound(v3, "n_shared_experts", "-");
    assert_int_equal(c.n_shared_experts, 1);
    c = sound(v3, "n_shared_experts", "null");
    assert_int_equal(c.n_shared_experts, 0);
    c = sound(v3, "first_k_dense_replace", "-");
    assert_true(!bt_model_layer_is_moe(&c, 2) && bt_model_layer_is_moe(&c, 3));
    c = sound(v2_lite, "first_k_dense_replace", "-");
    assert_true(bt_model_layer_is_moe(&c, 0));
    c = sound(v2_lite, "n_group", "-");
    assert_int_equal(c.route.groups, 1);
}

static struct bt_route_shape weighting(const char *base, int experts_per_token, bool normalize)
{
    char text[3000];
    json_t *root = parse(base);
    json_object_set_new(root, "num_experts_per_tok", json_integer(experts_per_token));
    json_object_set_new(root, "norm_topk_prob", json_boolean(normalize));
    json_object_set_new(root, "routed_scaling_factor", json_real(16));
    char *dump = json_dumps(root, JSON_COMPACT);
    snprintf(text, sizeof(text), "%s", dump);
    free(dump);
    json_decref(root);
    return sound(text, NULL, NULL).route;
}

/* As the code published with each: V2 scales the weights that it does not normalise. */
static void test_weighting(void **state)
{
    (void)state;
    struct bt_route_shape route = weighting(v2_lite, 6, false);
    assert_true(!route.normalize && route.scale == 16);
    route = weighting(v2_lite, 6, true);
    assert_true(route.normalize && route.scale == 1);
    route = weighting(v2_lite, 1, true);
    assert_true(!route.normalize && route.scale == 16);
    route = weighting(v3, 8, false);
    assert_true(!route.normalize && route.scale == 16);
    route = weighting(v3, 8, true);
    assert_true(route.normalize && route.scale == 16);
}

static void test_variants(void **state)
{
    (void)state;
    struct bt_model_config c = sound(v3, "eos_token_id", "[1, 5, 1]");
    assert_int_equal(c.eos_token_count, 2);
    assert_int_equal(c.eos_token_ids[1], 5);
    c = sound(v3, "rope_scaling", "null");
    assert_false(c.yarn.enabled);
    assert_true(fabs(bt_model_mla_shape(&c).softmax_scale - 1 / sqrt(192)) < 1e-8);
    c = sound(
        v3, "rope_scaling",
        "{'rope_type':'yarn','type':'yarn','factor':4,'original_max_position_embeddings':64}");
    assert_true(c.yarn.enabled && c.yarn.mscale == 1 && c.yarn.mscale_all_dim == 0);
    assert_true(c.yarn.beta_fast == 32 && c.yarn.beta_slow == 1);
    c = sound(least, "rope_parameters", "{'rope_type':'default','rope_theta':50000}");
    assert_true(!c.yarn.enabled && c.rope_theta == 50000);
    c = sound(least, "rope_interleave", "true");
    c = sound(v2_lite, "moe_layer_freq", "2");
    assert_true(!bt_model_layer_is_moe(&c, 1) && bt_model_layer_is_moe(&c, 2));
    c = sound(v2_lite, "topk_method", "'gready'");
    assert_int_equal(c.route.method, BT_TOPK_GREEDY);
    c = sound(v3, "topk_method", "'group_limited_greedy'");
    assert_int_equal(c.route.method, BT_TOPK_GROUP_LIMITED);
    scratch_write(&scratch, "generation_config.json", "{\"eos_token_id\":[1,9]}", 22);
    c = sound(v3, NULL, NULL);
    assert_int_equal(c.eos_token_count, 2);
    assert_int_equal(c.eos_token_ids[1], 9);
    scratch_remove(&scratch, "generation_config.json");
}

/* config.json of transformers 5: one rope_parameters, and keys of its own beside the published. */
static void test_as_transformers_writes(void **state)
{
    (void)state;
    json_t *root = parse(v3);
    json_t *yarn = json_deep_copy(json_object_get(root, "rope_scaling"));
    json_object_del(root, "rope_scaling");
    json_object_del(root, "rope_theta");
    json_object_del(root, "scoring_func");
    json_object_del(root, "topk_method");
    json_object_set_new(yarn, "rope_theta", json_real(20000));
    json_object_set_new(yarn, "rope_type", json_string("yarn"));
    json_object_set_new(root, "rope_parameters", yarn);
    json_t *more = parse("{'dtype':'bfloat16','head_dim':64,'qk_head_dim':192,'pad_token_id':null,"
                         "'rope_interleave':true,'output_router_logits':false,'pretraining_tp':1}");
    json_object_update(root, more);
    json_decref(more);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    struct bt_model_config c = sound(text, NULL, NULL), published = sound(v3, NULL, NULL);
    assert_true(c.rope_theta == 20000);
    assert_memory_equal(&c.route, &published.route, sizeof(c.route));
    assert_true(c.yarn.enabled && c.yarn.factor == 40 && c.yarn.mscale_all_dim == 1);
    assert_true(bt_model_mla_shape(&c).softmax_scale ==
                bt_model_mla_shape(&published).softmax_scale);
    free(text);
}

/* key = value in the file `base` is refused, and the message has file and key. */
static const struct {
    const char *base, *key, *value;
} faults[] = {
    {v3, "model_type", "-"},
    {v3, "model_type", "'llama'"},
    {v3, "model_type", "3"},
    {v3, "vocab_size", "1000001"},
    {v3, "num_hidden_layers", "257"},
    {v3, "hidden_size", "65537"},
    {v3, "num_attention_heads", "513"},
    {v3, "num_key_value_heads", "8"},
    {v3, "n_routed_experts", "4097"},
    {v3, "n_routed_experts", "-8"},
    {v3, "num_experts_per_tok", "0"},
    {v3, "num_experts_per_tok", "-"},
    {v3, "num_experts_per_tok", "257"},
    {v2_lite, "num_experts_per_tok", "65"},
    {v3, "moe_intermediate_size", "-"},
    {v3, "n_group", "7"},
    {v3, "n_group", "0"},
    {v3, "n_group", "256"},
    {v3, "topk_group", "null"},
    {v3, "topk_group", "9"},
    {v3, "topk_group", "0"},
    {v3, "moe_layer_freq", "0"},
    {v3, "first_k_dense_replace", "-1"},
    {v3, "n_shared_experts", "65"},
    {v3, "scoring_func", "'tanh'"},
    {v3, "topk_method", "'best'"},
    {v3, "topk_method", "7"},
    {v3, "norm_topk_prob", "1"},
    {v3, "routed_scaling_factor", "0"},
    {v3, "routed_scaling_factor", "'2.5'"},
    {v3, "q_lora_rank", "1536.0"},
    {v3, "q_lora_rank", "-1"},
    {v3, "kv_lora_rank", "0"},
    {v3, "qk_nope_head_dim", "0"},
    {v3, "qk_rope_head_dim", "63"},
    {v3, "qk_rope_head_dim", "0"},
    {v3, "qk_head_dim", "128"},
    {v3, "v_head_dim", "9000"},
    {v3, "rms_norm_eps", "0"},
    {v3, "rms_norm_eps", "-1e-6"},
    {v3, "rms_norm_eps", "true"},
    {v3, "rope_theta", "1"},
    {v3, "rope_theta", "'10000'"},
    {v3, "max_position_embeddings", "4194305"},
    {v3, "max_position_embeddings", "4194304"}, /* with this rope dim: too large a table */
    {v3, "num_nextn_predict_layers", "17"},
    {v3, "tie_word_embeddings", "'no'"},
    {v3, "attention_bias", "true"},
    {v2_lite, "mlp_bias", "true"},
    {v3, "hidden_act", "'gelu'"},
    {v3, "rope_interleave", "false"},
    {v3, "bos_token_id", "129280"},
    {v3, "bos_token_id", "-1"},
    {v3, "eos_token_id", "129280"},
    {v3, "eos_token_id", "-1"},
    {v3, "eos_token_id", "[1,null]"},
    {v3, "eos_token_id", "[1,[2]]"},
    {v3, "eos_token_id", "[1,2,3,4,5,6,7,8,9]"},
    {v3, "eos_token_id", "'<eos>'"},
    {v3, "rope_scaling", "[]"},
    {v3, "rope_scaling", "'yarn'"},
    {v3, "rope_scaling.type", "-"},
    {v3, "rope_scaling.type", "'linear'"},
    {v3, "rope_scaling.rope_type", "'default'"},
    {v3, "rope_scaling.factor", "-"},
    {v3, "rope_scaling.factor", "0.5"},
    {v3, "rope_scaling.factor", "-40"},
    {v3, "rope_scaling.beta_fast", "0"},
    {v3, "rope_scaling.beta_slow", "33"},
    {v3, "rope_scaling.mscale", "-1"},
    {v3, "rope_scaling.mscale_all_dim", "'1'"},
    {v3, "rope_scaling.original_max_position_embeddings", "-"},
    {v3, "rope_scaling.original_max_position_embeddings", "4096.5"},
    {v3, "rope_scaling.original_max_position_embeddings", "0"},
    {v3, "rope_scaling.attention_factor", "1.0"},
    {v3, "rope_scaling.truncate", "false"},
};

static void expect_refused(const char *base, const char *key, const char *value)
{
    struct bt_error error = {0};
    struct bt_model_config config;
    const char *leaf = strchr(key, '.') ? strchr(key, '.') + 1 : key;
    if (load(base, key, value, &error, &config) == BT_OK)
        fail_msg("%s = %s is accepted", key, value);
    if (!strstr(error.text, "config.json") ||
        (!strstr(error.text, leaf) && strcmp(leaf, "rope_type")))
        fail_msg("%s = %s: \"%s\" does not name it", key, value, error.text);
}

static void test_faults(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        expect_refused(faults[i].base, faults[i].key, faults[i].value);
}

static void test_required_keys(void **state)
{
    (void)state;
    static const char *const bad[] = {"-",           "null", "-1", "0",  "1.5", "1e300",
                                      "99999999999", "'8'",  "[]", "{}", "true"};
    json_t *root = parse(least);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        expect_refused(least, key, bad[i]);
    json_decref(root);
}

static void test_quantization(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        enum bt_status status;
        enum bt_quantization quantization;
        const char *said;
    } cases[] = {
        {"{'quant_method':'fp8','weight_block_size':[128,128]}", BT_OK, BT_QUANTIZATION_FP8, NULL},
        {"{'quant_method':'fp8','fmt':'e4m3','activation_scheme':'dynamic',"
         "'weight_block_size':[128,128]}",
         BT_OK, BT_QUANTIZATION_FP8, NULL},
        {"{'quant_method':'baton','group_size':128}", BT_OK, BT_QUANTIZATION_BATON, NULL},
        {"{'quant_method':'baton'}", BT_OK, BT_QUANTIZATION_BATON, NULL},
        {"null", BT_OK, BT_QUANTIZATION_NONE, NULL},
        {"7", BT_ERR_INVALID_ARGUMENT, 0, "quantization_config = 7: not an object"},
        {"{}", BT_ERR_INVALID_ARGUMENT, 0, "quantization_config.quant_method"},
        {"{'quant_method':'awq'}", BT_ERR_UNSUPPORTED, 0, "quant_method = \"awq\""},
        {"{'quant_method':3}", BT_ERR_INVALID_ARGUMENT, 0, "quant_method = 3"},
        {"{'quant_method':'fp8'}", BT_ERR_INVALID_ARGUMENT, 0, "weight_block_size"},
        {"{'quant_method':'fp8','weight_block_size':[64,128]}", BT_ERR_UNSUPPORTED, 0, "[64,128]"},
        {"{'quant_method':'fp8','weight_block_size':[128]}", BT_ERR_UNSUPPORTED, 0, "[128]"},
        {"{'quant_method':'fp8','weight_block_size':128}", BT_ERR_UNSUPPORTED, 0, "= 128"},
        {"{'quant_method':'fp8','fmt':'e5m2','weight_block_size':[128,128]}", BT_ERR_UNSUPPORTED, 0,
         "e5m2"},
        {"{'quant_method':'fp8','activation_scheme':'static','weight_block_size':[128,128]}",
         BT_ERR_UNSUPPORTED, 0, "static"},
        {"{'quant_method':'baton','group_size':64}", BT_ERR_UNSUPPORTED, 0, "group_size = 64"},
        {"{'quant_method':'baton','group_size':'x'}", BT_ERR_INVALID_ARGUMENT, 0, "group_size"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bt_error error = {0};
        struct bt_model_config config;
        assert_int_equal(load(v3, "quantization_config", cases[i].value, &error, &config),
                         cases[i].status);
        if (cases[i].status == BT_OK)
            assert_int_equal(config.quantization, cases[i].quantization);
        else if (!strstr(error.text, cases[i].said))
            fail_msg("\"%s\" does not say \"%s\"", error.text, cases[i].said);
    }
}

static void test_torch_dtype(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_model_config config;
    assert_int_equal(load(v3, "torch_dtype", "'bfloat16'", &error, &config), BT_OK);
    assert_true(config.is_bfloat16);
    assert_int_equal(load(v3, "torch_dtype", "'float32'", &error, &config), BT_OK);
    assert_false(config.is_bfloat16);
    assert_int_equal(load(v3, "dtype", "'bfloat16'", &error, &config), BT_OK);
    assert_true(config.is_bfloat16);
    assert_int_equal(load(v3, "torch_dtype", "5", &error, &config), BT_ERR_INVALID_ARGUMENT);
}

static void test_bad_json(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{\"vocab_size\":NaN}",
                                        "{\"rms_norm_eps\":1e999}",
                                        "{\"a\":1,\"a\":2}",
                                        "{\"hidden_size\":99999999999999999999}",
                                        "\x80"};
    struct bt_model_config config;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct bt_error error = {0};
        scratch_write(&scratch, "config.json", texts[i], strlen(texts[i]));
        assert_int_equal(bt_model_config_load(scratch.dir, &error, &config),
                         BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "config.json"));
    }
    struct bt_error error = {0};
    sound(v3, NULL, NULL);
    scratch_write(&scratch, "generation_config.json", "{\"eos_token_id\":-5}", 19);
    assert_int_equal(bt_model_config_load(scratch.dir, &error, &config), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "generation_config.json"));
    scratch_remove(&scratch, "generation_config.json");
}

/* Every key of sound checkpoints with every kind of value: an error or a model, nothing else. */
static void test_every_key_with_every_kind(void **state)
{
    (void)state;
    static const char *const values[] = {"null", "-1",   "0",  "1",  "2",   "3",     "7",
                                         "1.5",  "true", "[]", "{}", "'x'", "65536", "1e300"};
    static const char *const variants[] = {"v2-lite", "v2-groups", "v3-f32",
                                           "v3-tied", "dense",     "v3-hf"};
    uint32_t loaded = 0, refused = 0;
    for (size_t v = 0; v < sizeof(variants) / sizeof(variants[0]); v++) {
        struct scratch model_dir;
        scratch_open(variants[v], &model_dir);
        json_t *config = scratch_read_json(&model_dir, "config.json"), *value;
        const char *key;
        json_object_foreach(config, key, value)
        {
            for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
                json_t *spoiled = json_copy(config);
                struct bt_error error = {0};
                struct bt_model *model = NULL;
                json_object_set_new(spoiled, key, parse(values[i]));
                scratch_write_json(&model_dir, "config.json", spoiled);
                json_decref(spoiled);
                const struct bt_model_options options = {.dir = model_dir.dir, .kernels = "ref"};
                if (bt_model_load(&options, &error, &model) == BT_OK)
                    loaded++;
                else if (!strstr(error.text, model_dir.dir))
                    fail_msg("%s = %s: \"%s\" names no file", key, values[i], error.text);
                else
                    refused++;
                bt_model_destroy(model);
            }
        }
        json_decref(config);
        scratch_close(&model_dir);
    }
    print_message("%u loaded, %u refused\n", loaded, refused);
    assert_true(refused > loaded);
}

/* Without YaRN the tables are cos and sin of position / theta^(2i/d); fp32 angles lose what their
 * size loses. */
static void test_rope_tables(void **state)
{
    (void)state;
    struct bt_model_config c = sound(v3, "rope_scaling", "null");
    enum { POSITIONS = 3000, HALF = 32 };
    float *cosines = calloc((size_t)POSITIONS * HALF, sizeof(float));
    float *sines = calloc((size_t)POSITIONS * HALF, sizeof(float));
    bt_model_rope_fill(&c, POSITIONS, cosines, sines);
    for (uint32_t position = 0; position < POSITIONS; position++) {
        for (uint32_t i = 0; i < HALF; i++) {
            double angle = position * pow(10000, -2.0 * i / (2 * HALF));
            double allowed = 1e-7 + angle * 2.5e-7;
            assert_true(fabs(cosines[position * HALF + i] - cos(angle)) < allowed);
            assert_true(fabs(sines[position * HALF + i] - sin(angle)) < allowed);
        }
    }
    free(cosines);
    free(sines);
}

/* YaRN: the fastest waves are as without it, the slowest are stretched by the factor; the ratio of
 * the two mscales scales both tables. */
static void test_yarn_tables(void **state)
{
    (void)state;
    struct bt_model_config plain = sound(v3, "rope_scaling", "null");
    struct bt_model_config yarn = sound(v3, "rope_scaling.mscale_all_dim", "0");
    double scale = 0.1 * log(40) + 1;
    float cosines[2][4 * 32], sines[2][4 * 32];
    bt_model_rope_fill(&plain, 4, cosines[0], sines[0]);
    bt_model_rope_fill(&yarn, 4, cosines[1], sines[1]);
    for (uint32_t position = 1; position < 4; position++) {
        const float *a = sines[0] + position * 32, *b = sines[1] + position * 32;
        assert_true(fabs(b[0] / scale - a[0]) < 1e-6);
        assert_true(fabs(b[31] / scale * 40 / a[31] - 1) < 1e-5);
        assert_true(fabs(b[16] / scale) < a[16] && fabs(b[16] / scale) > a[16] / 40);
    }
    for (uint32_t i = 0; i < 32; i++)
        assert_true(fabs(cosines[1][i] - scale) < 1e-6);
}

static int open_scratch(void **state)
{
    (void)state;
    scratch_open("dense", &scratch);
    return 0;
}

static int close_scratch(void **state)
{
    (void)state;
    scratch_close(&scratch);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v2_lite),
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_absent_is_not_null),
        cmocka_unit_test(test_weighting),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_as_transformers_writes),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_required_keys),
        cmocka_unit_test(test_quantization),
        cmocka_unit_test(test_torch_dtype),
        cmocka_unit_test(test_bad_json),
        cmocka_unit_test(test_every_key_with_every_kind),
        cmocka_unit_test(test_rope_tables),
        cmocka_unit_test(test_yarn_tables),
    };
    return cmocka_run_group_tests(tests, open_scratch, close_scratch);
}
