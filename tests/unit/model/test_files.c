/* Spoiled checkpoints: each fault must be an error that names the file and what is wrong in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/model/model.h"
#include "tests/unit/model/scratch.h"

#define SINGLE        "model.safetensors"
#define INDEX         "model.safetensors.index.json"
#define SHARD         "model-00002-of-00003.safetensors"
#define SEED          4711
#define RANDOM_ROUNDS 500

static enum bt_status load(const struct scratch *scratch, struct bt_error *error)
{
    struct bt_model *model = NULL;
    const struct bt_model_options options = {.dir = scratch->dir, .kernels = "ref"};
    enum bt_status status = bt_model_load(&options, error, &model);
    bt_model_destroy(model);
    return status;
}

/* The words must all be in the message; words after the first may be NULL. */
static void expect_error(const struct scratch *scratch, const char *a, const char *b)
{
    struct bt_error error = {0};
    enum bt_status status = load(scratch, &error);
    if (status == BT_OK)
        fail_msg("loaded, expected an error with \"%s\" and \"%s\"", a, b ? b : "");
    assert_int_equal(status, error.status);
    if (!strstr(error.text, a) || (b && !strstr(error.text, b)))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error.text, a, b ? b : "");
    if (strpbrk(error.text, "\n\r"))
        fail_msg("more than one line");
}

static void test_sound_checkpoints_load(void **state)
{
    (void)state;
    static const char *const variants[] = {"tiny",    "v2-lite", "v2-groups", "v3-f32",
                                           "v3-tied", "dense",   "v3-hf"};
    uint64_t hashes[7];
    for (int i = 0; i < 7; i++) {
        char dir[512];
        struct bt_error error = {0};
        struct bt_model *model;
        snprintf(dir, sizeof(dir), "%s/%s", TESTS_MODELS, variants[i]);
        const struct bt_model_options options = {.dir = dir, .kernels = "ref"};
        if (bt_model_load(&options, &error, &model) != BT_OK)
            fail_msg("%s", error.text);
        assert_int_equal(model->mtp.present, i == 0);
        assert_int_equal(model->kernels == NULL, 0);
        hashes[i] = model->hash;
        for (int j = 0; j < i; j++)
            assert_true(hashes[i] != hashes[j]);
        bt_model_destroy(model);
    }
}

static uint64_t hash_of(const struct scratch *scratch)
{
    struct bt_model *model;
    const struct bt_model_options options = {.dir = scratch->dir, .kernels = "ref"};
    assert_int_equal(bt_model_load(&options, NULL, &model), BT_OK);
    uint64_t hash = model->hash;
    bt_model_destroy(model);
    return hash;
}

/* Two workers may share KV only with the same weights and the same values that shape it. */
static void test_hash_tells_models_apart(void **state)
{
    (void)state;
    struct scratch scratch;
    scratch_open("v2-lite", &scratch);
    uint64_t first = hash_of(&scratch);
    assert_true(hash_of(&scratch) == first);

    json_t *config = scratch_read_json(&scratch, "config.json");
    json_object_set_new(config, "eos_token_id", json_integer(7));
    scratch_write_json(&scratch, "config.json", config);
    assert_true(hash_of(&scratch) == first);
    json_object_set_new(config, "rope_theta", json_real(10001));
    scratch_write_json(&scratch, "config.json", config);
    assert_true(hash_of(&scratch) != first);
    json_object_set_new(config, "rope_theta", json_integer(10000));
    scratch_write_json(&scratch, "config.json", config);
    assert_true(hash_of(&scratch) == first);
    json_decref(config);

    size_t bytes;
    uint8_t *file = scratch_read(&scratch, SINGLE, &bytes);
    file[bytes - 1] ^= 1;
    scratch_write(&scratch, SINGLE, file, bytes);
    assert_true(hash_of(&scratch) != first);
    free(file);
    scratch_close(&scratch);
}

/* What does not fit is refused before it is begun, with both sizes. */
static void test_memory_is_too_small(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    struct bt_model_options options = {.dir = TESTS_MODELS "/v3-f32",
                                       .kernels = "ref",
                                       .dtype = BT_MODEL_BFLOAT16,
                                       .memory_bytes = 100000};
    assert_int_equal(bt_model_load(&options, &error, &model), BT_ERR_NO_MEMORY);
    assert_non_null(strstr(error.text, "v3-f32: its weights need 0.3 MiB in bfloat16, 0.1 MiB"));
    options.dtype = BT_MODEL_AUTO; /* rows in the file need nothing */
    assert_int_equal(bt_model_load(&options, &error, &model), BT_OK);
    assert_int_equal(model->dtype, BT_MODEL_FLOAT32);
    bt_model_destroy(model);
}

static void test_sequences_may_be_shorter(void **state)
{
    (void)state;
    struct bt_model *model;
    struct bt_model_options options = {.dir = TESTS_MODELS "/tiny", .max_tokens = 1000};
    assert_int_equal(bt_model_load(&options, NULL, &model), BT_OK);
    assert_int_equal(model->max_tokens, 1000);
    assert_int_equal(model->rope.max_position, 1000);
    bt_model_destroy(model);
    options.max_tokens = 1 << 20;
    assert_int_equal(bt_model_load(&options, NULL, &model), BT_OK);
    assert_int_equal(model->max_tokens, 16384);
    bt_model_destroy(model);
}

static void test_truncated(void **state)
{
    (void)state;
    struct scratch scratch;
    size_t bytes;
    uint64_t header;
    scratch_open("v2-lite", &scratch);
    uint8_t *file = scratch_read(&scratch, SINGLE, &bytes);
    memcpy(&header, file, sizeof(header));
    size_t data = 8 + (size_t)header;
    const size_t ends[] = {0,         1,
                           7,         8,
                           9,         data / 2,
                           data - 1,  data,
                           data + 1,  data + (bytes - data) / 3,
                           bytes / 2, bytes - 4096,
                           bytes - 2, bytes - 1};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        scratch_write(&scratch, SINGLE, file, ends[i]);
        expect_error(&scratch, SINGLE, NULL);
    }
    uint8_t *longer = calloc(bytes + 1, 1);
    memcpy(longer, file, bytes);
    scratch_write(&scratch, SINGLE, longer, bytes + 1);
    expect_error(&scratch, SINGLE, "1 bytes after the last tensor");
    free(longer);
    free(file);
    scratch_close(&scratch);
}

static void test_header_length_lies(void **state)
{
    (void)state;
    struct scratch scratch;
    size_t bytes;
    uint64_t header;
    scratch_open("v2-lite", &scratch);
    uint8_t *file = scratch_read(&scratch, SINGLE, &bytes);
    memcpy(&header, file, sizeof(header));
    const uint64_t lengths[] = {0,          1,
                                2,          header - 8,
                                header + 1, header + 8,
                                bytes - 9,  bytes - 8,
                                bytes - 7,  bytes,
                                UINT32_MAX, ((uint64_t)100 << 20) + 1,
                                INT64_MAX,  UINT64_MAX - 7,
                                UINT64_MAX};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        memcpy(file, &lengths[i], sizeof(uint64_t));
        scratch_write(&scratch, SINGLE, file, bytes);
        expect_error(&scratch, SINGLE, NULL);
    }
    free(file);
    scratch_close(&scratch);
}

static void test_header_is_no_table(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "7",
        "null",
        "\"x\"",
        "{}",
        "{\"__metadata__\":{}}",
        "{\"a\":1}",
        "{\"a\":null}",
        "{\"a\":[]}",
        "{\"a\":{}}",
        "{\"\":{}}",
        "{} {}",
        "\xff\xfe{}",
        "{\"a\\u0000b\":{}}",
        "{\"a\\nb\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":\"04\"}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0.0,4.0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}",
    };
    struct scratch scratch;
    scratch_open("v2-lite", &scratch);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        scratch_write_header_text(&scratch, SINGLE, texts[i]);
        expect_error(&scratch, SINGLE, NULL);
    }
    size_t depth = 1 << 20;
    char *deep = malloc(depth + 1);
    memset(deep, '[', depth);
    deep[depth] = '\0';
    scratch_write_header_text(&scratch, SINGLE, deep);
    expect_error(&scratch, SINGLE, "depth");
    free(deep);
    scratch_close(&scratch);
}

#define NORM   "model.norm.weight"
#define O_PROJ "model.layers.1.self_attn.o_proj.weight"

/* One entry of the header is replaced; `said` must be in the message beside file and tensor. */
static const struct {
    const char *tensor, *entry, *said;
} entry_faults[] = {
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[0,128]}", "overlap"},
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[99999000,99999128]}", "outside"},
    {NORM,
     "{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[9223372036854775807,"
     "9223372036854775807]}",
     "outside"},
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}",
     "overflow"},
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,128]}",
     "overflow"},
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[65],\"data_offsets\":[0,128]}", "bits"},
    {NORM, "{\"dtype\":\"F4\",\"shape\":[257],\"data_offsets\":[0,128]}", "bits"},
    {NORM, "{\"dtype\":\"F32\",\"shape\":[64],\"data_offsets\":[0,128]}", "bits"},
    {NORM, "{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[1,129]}", "aligned"},
    {NORM, "{\"dtype\":\"\",\"shape\":[64],\"data_offsets\":[0,128]}", "dtype"},
};

static void test_entries(void **state)
{
    (void)state;
    struct scratch scratch;
    scratch_open("v2-lite", &scratch);
    json_t *header = scratch_read_header(&scratch, SINGLE);
    for (size_t i = 0; i < sizeof(entry_faults) / sizeof(entry_faults[0]); i++) {
        json_t *spoiled = json_copy(header), *entry = json_loads(entry_faults[i].entry, 0, NULL);
        assert_non_null(entry);
        json_object_set_new(spoiled, entry_faults[i].tensor, entry);
        scratch_write_header(&scratch, SINGLE, spoiled);
        expect_error(&scratch, SINGLE, entry_faults[i].said);
        json_decref(spoiled);
    }
    json_decref(header);
    scratch_close(&scratch);
}

/* Same bytes under another name, dtype or shape. */
static void test_tensors_that_do_not_fit(void **state)
{
    (void)state;
    struct scratch scratch;
    scratch_open("v2-lite", &scratch);
    json_t *header = scratch_read_header(&scratch, SINGLE);

    json_t *spoiled = json_deep_copy(header);
    json_object_set_new(json_object_get(spoiled, O_PROJ), "dtype", json_string("F16"));
    scratch_write_header(&scratch, SINGLE, spoiled);
    assert_int_equal(load(&scratch, NULL), BT_OK); /* any float type will do */
    json_object_set_new(json_object_get(spoiled, O_PROJ), "dtype", json_string("I16"));
    scratch_write_header(&scratch, SINGLE, spoiled);
    expect_error(&scratch, SINGLE ": tensor " O_PROJ, "I16");
    json_object_set_new(json_object_get(spoiled, O_PROJ), "dtype", json_string("F9_NEW"));
    scratch_write_header(&scratch, SINGLE, spoiled);
    expect_error(&scratch, SINGLE ": tensor " O_PROJ, "F9_NEW");
    json_decref(spoiled);

    static const char *const shapes[] = {"[32,128]", "[4096]", "[64,64,1]", "[1,64,64]"};
    for (int i = 0; i < 4; i++) {
        spoiled = json_deep_copy(header);
        json_object_set_new(json_object_get(spoiled, O_PROJ), "shape",
                            json_loads(shapes[i], 0, NULL));
        scratch_write_header(&scratch, SINGLE, spoiled);
        expect_error(&scratch, SINGLE ": tensor " O_PROJ, "[64, 64]");
        json_decref(spoiled);
    }

    spoiled = json_deep_copy(header);
    json_t *entry = json_incref(json_object_get(spoiled, O_PROJ));
    json_object_del(spoiled, O_PROJ);
    scratch_write_header(&scratch, SINGLE, spoiled);
    expect_error(&scratch, SINGLE, "unused bytes");
    json_object_set_new(spoiled, "model.layers.1.self_attn.o_proj.bias", entry);
    scratch_write_header(&scratch, SINGLE, spoiled);
    expect_error(&scratch, "tensor " O_PROJ, "missing");
    json_decref(spoiled);
    json_decref(header);
    scratch_close(&scratch);
}

static void expect_extra(struct scratch *scratch, const json_t *header, const char *name,
                         bool allowed)
{
    json_t *more = json_deep_copy(header);
    json_object_set_new(
        more, name,
        json_pack("{s:s,s:[i],s:[i,i]}", "dtype", "F32", "shape", 0, "data_offsets", 0, 0));
    scratch_write_header(scratch, SINGLE, more);
    if (allowed)
        assert_int_equal(load(scratch, NULL), BT_OK);
    else
        expect_error(scratch, SINGLE, name);
    json_decref(more);
}

static void test_left_over(void **state)
{
    (void)state;
    struct scratch scratch;
    scratch_open("v2-lite", &scratch);
    json_t *header = scratch_read_header(&scratch, SINGLE);
    expect_extra(&scratch, header, "model.layers.1.self_attn.rotary_emb.inv_freq", true);
    expect_extra(&scratch, header, "model.layers.3.eh_proj.weight", true); /* an MTP layer */
    expect_extra(&scratch, header, "model.layers.0.mlp.shared_experts.up_proj.weight", true);
    expect_extra(&scratch, header, "model.layers.1.self_attn.q_b_proj.weight", false);
    expect_extra(&scratch, header, "model.layers.3.self_attn.o_proj.weight", false);
    expect_extra(&scratch, header, "model.layers.1.mlp.experts.8.up_proj.weight", false);
    expect_extra(&scratch, header, "model.layers.x.eh_proj.weight", false);
    expect_extra(&scratch, header, "surprise", false);
    json_decref(header);
    scratch_close(&scratch);
}

static void test_mtp_is_whole_or_absent(void **state)
{
    (void)state;
    struct scratch scratch;
    scratch_open("tiny", &scratch);
    json_t *header = scratch_read_header(&scratch, SINGLE);
    json_t *entry = json_object_get(header, "model.layers.6.enorm.weight");
    json_object_set(header, "model.layers.6.other.weight", entry);
    json_object_del(header, "model.layers.6.enorm.weight");
    scratch_write_header(&scratch, SINGLE, header);
    expect_error(&scratch, "model.layers.6.enorm.weight", "missing");
    json_decref(header);
    scratch_close(&scratch);
}

static void test_random_bytes_in_the_header(void **state)
{
    (void)state;
    struct scratch scratch;
    size_t bytes;
    uint64_t header, n = 0;
    scratch_open("v2-lite", &scratch);
    uint8_t *file = scratch_read(&scratch, SINGLE, &bytes);
    uint8_t *sound = malloc(bytes);
    memcpy(sound, file, bytes);
    memcpy(&header, file, sizeof(header));
    uint32_t loaded = 0;
    print_message("seed %d\n", SEED);
    for (int round = 0; round < RANDOM_ROUNDS; round++) {
        memcpy(file, sound, 8 + (size_t)header);
        for (uint64_t i = 0, count = 1 + bt_random_u64(SEED, n++, 0) % 3; i < count; i++) {
            /* Digits become other digits half of the time: still JSON, other numbers. */
            uint8_t *at = file + 8 + bt_random_u64(SEED, n++, 0) % header;
            uint64_t value = bt_random_u64(SEED, n++, 0);
            *at = *at >= '0' && *at <= '9' && round % 2 ? (uint8_t)('0' + value % 10)
                                                        : (uint8_t)value;
        }
        scratch_write(&scratch, SINGLE, file, bytes);
        struct bt_error error = {0};
        if (load(&scratch, &error) == BT_OK)
            loaded++;
        else if (!strstr(error.text, scratch.dir) || strpbrk(error.text, "\n\r"))
            fail_msg("round %d: \"%s\"", round, error.text);
    }
    assert_true(loaded < RANDOM_ROUNDS / 4);
    free(sound);
    free(file);
    scratch_close(&scratch);
}

/* `tensor` of the index names `file`. */
static void expect_index_error(const struct scratch *scratch, const json_t *index,
                               const char *tensor, json_t *file, const char *said)
{
    json_t *spoiled = json_deep_copy(index);
    json_object_set_new(json_object_get(spoiled, "weight_map"), tensor, file);
    scratch_write_json(scratch, INDEX, spoiled);
    expect_error(scratch, INDEX, said);
    json_decref(spoiled);
}

static void test_index(void **state)
{
    (void)state;
    static const char *const names[] = {"../../etc/passwd",
                                        "/etc/passwd",
                                        "..",
                                        ".",
                                        "",
                                        "../x.safetensors",
                                        "a/b.safetensors",
                                        ".safetensors",
                                        "config.json",
                                        "/dev/zero.safetensors",
                                        ".hidden.safetensors",
                                        "a\nb.safetensors"};
    struct scratch scratch;
    scratch_open("v2-groups", &scratch);
    json_t *index = scratch_read_json(&scratch, INDEX);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        expect_index_error(&scratch, index, NORM, json_string(names[i]), NORM);
    expect_index_error(&scratch, index, NORM, json_integer(1), NORM);
    expect_index_error(&scratch, index, NORM, json_null(), NORM);
    expect_index_error(&scratch, index, NORM, json_string("gone.safetensors"), "gone.safetensors");
    expect_index_error(&scratch, index, "extra", json_string(SHARD), "extra");

    /* A tensor in another shard than the index says, or not in the index. */
    json_t *map = json_object_get(index, "weight_map");
    bool is_second = !strcmp(json_string_value(json_object_get(map, NORM)), SHARD);
    expect_index_error(&scratch, index, NORM,
                       json_string(is_second ? "model-00001-of-00003.safetensors" : SHARD), NORM);
    json_object_del(map, NORM);
    scratch_write_json(&scratch, INDEX, index);
    expect_error(&scratch, INDEX, NORM);
    json_decref(index);

    scratch_write(&scratch, INDEX, "{\"weight_map\":[]}", 17);
    expect_error(&scratch, INDEX, "weight_map");
    scratch_write(&scratch, INDEX, "{\"weight_map\":{}}", 17);
    expect_error(&scratch, INDEX, "no tensors");
    scratch_write(&scratch, INDEX, "{\"weight_map\":", 14);
    expect_error(&scratch, INDEX, "JSON");
    scratch_write(&scratch, INDEX, "{\"weight_map\":{},\"weight_map\":{}}", 33);
    expect_error(&scratch, INDEX, "duplicate");
    scratch_close(&scratch);
}

static void test_shards(void **state)
{
    (void)state;
    struct scratch scratch;
    size_t bytes, other_bytes;
    scratch_open("v2-groups", &scratch);
    uint8_t *shard = scratch_read(&scratch, SHARD, &bytes);
    scratch_write(&scratch, SHARD, shard, bytes - 10);
    expect_error(&scratch, SHARD, NULL);
    /* Two shards with the same tensors. */
    uint8_t *other = scratch_read(&scratch, "model-00001-of-00003.safetensors", &other_bytes);
    scratch_write(&scratch, SHARD, other, other_bytes);
    expect_error(&scratch, INDEX, " is in model-0000");
    scratch_remove(&scratch, SHARD);
    expect_error(&scratch, INDEX, SHARD);
    free(other);
    free(shard);
    scratch_close(&scratch);
}

/* What is not a regular file must neither block nor be mapped. */
static void test_other_kinds_of_files(void **state)
{
    (void)state;
    struct scratch scratch;
    char path[512];
    scratch_open("v2-lite", &scratch);
    scratch_remove(&scratch, SINGLE);
    expect_error(&scratch, SINGLE, "No such file");
    snprintf(path, sizeof(path), "%s/%s", scratch.dir, SINGLE);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_error(&scratch, SINGLE, "not a regular file");
    scratch_remove(&scratch, "config.json");
    expect_error(&scratch, "config.json", "No such file");
    snprintf(path, sizeof(path), "%s/config.json", scratch.dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_error(&scratch, "config.json", "not a regular file");
    scratch_close(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_checkpoints_load),
        cmocka_unit_test(test_hash_tells_models_apart),
        cmocka_unit_test(test_memory_is_too_small),
        cmocka_unit_test(test_sequences_may_be_shorter),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_header_length_lies),
        cmocka_unit_test(test_header_is_no_table),
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_tensors_that_do_not_fit),
        cmocka_unit_test(test_left_over),
        cmocka_unit_test(test_mtp_is_whole_or_absent),
        cmocka_unit_test(test_random_bytes_in_the_header),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_other_kinds_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
