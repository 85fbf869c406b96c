/* Tokenizer files that are wrong in every way: an error that names file and field, never a crash.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define MUTATIONS 120

/* The value at a path such as "model.vocab" or "added_tokens.0.id". */
static json_t *walk(json_t *value, const char *path, char ret_last[static 64])
{
    char copy[256], *rest, *key;
    snprintf(copy, sizeof copy, "%s", path);
    for (key = strtok_r(copy, ".", &rest); *rest; key = strtok_r(NULL, ".", &rest)) {
        value = json_is_array(value) ? json_array_get(value, (size_t)atoi(key))
                                     : json_object_get(value, key);
        assert_non_null(value);
    }
    snprintf(ret_last, 64, "%s", key);
    return value;
}

/* Sets the value at `path` to the JSON text `value`; "" removes it. */
static void change(json_t *root, const char *path, const char *value)
{
    char last[64];
    json_t *parent = walk(root, path, last);
    json_t *parsed = *value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    assert_true(!*value || parsed);
    if (json_is_array(parent))
        json_array_set_new(parent, (size_t)atoi(last), parsed);
    else if (parsed)
        json_object_set_new(parent, last, parsed);
    else
        json_object_del(parent, last);
}

static enum bt_status load(const struct fixture_dir *dir, struct bt_error *error)
{
    struct bt_tokenizer *tokenizer = NULL;
    *error = (struct bt_error){0};
    enum bt_status status = bt_tokenizer_load(dir->path, error, &tokenizer);
    assert_int_equal(status != BT_OK, tokenizer == NULL);
    bt_tokenizer_destroy(tokenizer);
    return status;
}

static void write_tiny(const struct fixture_dir *dir, const char *file)
{
    json_t *value = fixture_model_json(file);
    fixture_dir_write_json(dir, file, value);
    json_decref(value);
}

#define P "pre_tokenizer.pretokenizers"
#define SPLIT(regex)                                                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex                                          \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}"

static const struct {
    const char *path, *value;
    const char *says; /* NULL: it loads */
} changes[] = {
    {"version", "7", NULL},
    {"normalizer", "null", NULL},
    {"normalizer", "", NULL},
    {"model.ignore_merges", "true", NULL},
    {"model.merges", "[]", NULL},
    {"model.merges.0", "[\"h\",\"e\"]", NULL},
    {P, "[{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]", NULL},
    {"pre_tokenizer", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
     NULL},

    {"normalizer", "{\"type\":\"NFC\"}", "normalizer: type \"NFC\""},
    {"normalizer", "[]", "normalizer must be an object"},
    {"normalizer", "{}", "normalizer.type is missing"},
    {"normalizer.normalizers", "[{\"type\":\"Lowercase\"}]", "\"Lowercase\""},
    {"normalizer.normalizers", "3", "normalizer.normalizers must be an array"},
    {"normalizer.normalizers", "[3]", "normalizer.normalizers[0]"},
    {"decoder", "", "decoder is missing"},
    {"decoder.type", "\"Metaspace\"", "decoder: type \"Metaspace\""},
    {"pre_tokenizer", "", "pre_tokenizer is missing"},
    {"pre_tokenizer.type", "\"White\\nspace\"", "\"White?space\""},
    {P, "[]", "pretokenizers must have"},
    {P, "{}", "pretokenizers must be an array"},
    {P ".0", "\"x\"", "pretokenizers[0] must be an object"},
    {P ".0.type", "\"Metaspace\"", "pretokenizers[0]: type \"Metaspace\""},
    {P ".0.behavior", "\"Removed\"", "pretokenizers[0]: behavior \"Removed\""},
    {P ".0.behavior", "1", "pretokenizers[0].behavior must be a string"},
    {P ".0.invert", "true", "pretokenizers[0].invert"},
    {P ".0.pattern", "{\"String\":\" \"}", "pretokenizers[0].pattern: only Regex"},
    {P ".0.pattern", "\" \"", "pretokenizers[0].pattern must be an object"},
    {P ".0.pattern", "", "only Regex"},
    {P ".0", "{\"type\":\"Digits\",\"individual_digits\":1}", "pretokenizers[0].individual_digits"},
    {P ".3.add_prefix_space", "true", "pretokenizers[3]: add_prefix_space must be false"},
    {P ".3.use_regex", "true", "use_regex must be false"},
    {P ".3", SPLIT("x"), "pretokenizers[3]: ByteLevel must be the last"},
    {P ".0", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
     "pretokenizers[0]: ByteLevel must be the last"},

    {P ".0", SPLIT("("), "pretokenizers[0]: does not compile"},
    {P ".0", SPLIT("[a"), "pretokenizers[0]: a class is not closed"},
    {P ".0", SPLIT("[b-a]"), "does not compile"},
    {P ".0", SPLIT("a*"), "empty"},
    {P ".0", SPLIT(""), "empty"},
    {P ".0", SPLIT("\\\\w+"), "\\w is not supported"},
    {P ".0", SPLIT("a\\\\"), "\\ is not supported"},
    {P ".0", SPLIT("(a)\\\\1"), "\\1 is not supported"},
    {P ".0", SPLIT("\\\\p{Lu}"), "\\p{L}"},
    {P ".0", SPLIT("\\\\p"), "\\p{L}"},
    {P ".0", SPLIT("\\\\p{L"), "\\p{L}"},
    {P ".0", SPLIT("[^\\\\S]"), "\\S inside []"},
    {P ".0", SPLIT("[a&&b]"), "classes inside a class"},
    {P ".0", SPLIT("[a[b]]"), "classes inside a class"},
    {P ".0", SPLIT("[a-\\\\s]"), "a range that ends"},
    {P ".0", SPLIT("[\\\\s-a]"), "a range that starts"},
    {P ".0", SPLIT("(*UTF)a"), "group"},
    {P ".0", SPLIT("(?R)"), "group"},
    {P ".0", SPLIT("a{,3}"), "use of {"},
    {P ".0", SPLIT("a{2}+"), "use of {"},
    {P ".0", SPLIT("^a"), "^ is not supported"},
    {P ".0", SPLIT("a{99999999}"), "does not compile"},
    {P ".0", SPLIT("(?<=a+)b"), "does not compile"},

    {"model", "", "model is missing"},
    {"model", "[]", "model must be an object"},
    {"model.type", "\"Unigram\"", "model: type \"Unigram\""},
    {"model.vocab", "", "model.vocab is missing"},
    {"model.vocab", "[]", "model.vocab must be an object"},
    {"model.vocab", "{}", "no token for the byte 0x00"},
    {"model.vocab.A", "", "no token for the byte 0x41"},
    {"model.vocab.he", "\"x\"", "model.vocab[\"he\"]: the id must be an integer"},
    {"model.vocab.he", "-1", "the id must be an integer from 0"},
    {"model.vocab.he", "1.0", "the id must be an integer"},
    {"model.vocab.he", "1048576", "the id must be an integer from 0 to 1048575"},
    {"model.vocab.he", "9223372036854775807", "the id must be an integer"},
    {"model.vocab.he", "4", "id 4 is given twice"},
    {"model.merges", "", "model.merges is missing"},
    {"model.merges", "{}", "model.merges must be an array"},
    {"model.merges.3", "\"ab\"", "model.merges[3] must be two tokens"},
    {"model.merges.3", "\"a b c\"", "model.merges[3] must be two tokens"},
    {"model.merges.3", "[\"a\"]", "model.merges[3] must be two tokens"},
    {"model.merges.3", "[\"a\",1]", "model.merges[3] must be two tokens"},
    {"model.merges.3", "null", "model.merges[3] must be two tokens"},
    {"model.merges.3", "\" \"", "model.merges[3]: the left token"},
    {"model.merges.3", "\"zzz e\"", "model.merges[3]: the left token"},
    {"model.merges.3", "\"e zzz\"", "model.merges[3]: the right token"},
    {"model.merges.3", "\"z q\"", "model.merges[3]: the merged token"},
    {"model.ignore_merges", "\"yes\"", "model.ignore_merges must be true or false"},
    {"model.byte_fallback", "true", "model.byte_fallback"},
    {"model.dropout", "0.1", "model.dropout"},
    {"model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
    {"model.continuing_subword_prefix", "1", "continuing_subword_prefix must be a string"},

    {"added_tokens", "{}", "added_tokens must be an array"},
    {"added_tokens.1", "1", "added_tokens[1] must be an object"},
    {"added_tokens.3.id", "-1", "added_tokens[3]: the id"},
    {"added_tokens.3.id", "5", "added_tokens[3]: id 5 and content"},
    {"added_tokens.3.id", "2047", "added_tokens[3]: the id must be 2046"},
    {"added_tokens.4.id", "2046", "added_tokens[4]: id 2046 and content"},
    {"added_tokens.0.id", "2046", "added_tokens[0]: id 2046 and content"},
    {"added_tokens.3.content", "", "added_tokens[3]: the token must have 1"},
    {"added_tokens.3.content", "\"\"", "added_tokens[3]: the token must have 1"},
    {"added_tokens.3.content", "7", "added_tokens[3].content must be a string"},
    {"added_tokens.3.lstrip", "true", "added_tokens[3].lstrip"},
    {"added_tokens.3.rstrip", "true", "added_tokens[3].rstrip"},
    {"added_tokens.3.single_word", "true", "added_tokens[3].single_word"},
    {"added_tokens.3.normalized", "0", "added_tokens[3].normalized must be true or false"},
    {"added_tokens.3.special", "{}", "added_tokens[3].special must be true or false"},
};

static void test_changes(void **state)
{
    struct fixture_dir dir;
    struct bt_error error;
    fixture_dir_make(&dir);
    write_tiny(&dir, "tokenizer_config.json");
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        json_t *root = fixture_model_json("tokenizer.json");
        change(root, changes[i].path, changes[i].value);
        fixture_dir_write_json(&dir, "tokenizer.json", root);
        json_decref(root);
        enum bt_status status = load(&dir, &error);
        if (!changes[i].says) {
            if (status != BT_OK)
                fail_msg("%s: %s", changes[i].path, error.text);
            continue;
        }
        assert_int_equal(status, BT_ERR_INVALID_ARGUMENT);
        if (!strstr(error.text, "/tokenizer.json: ") || !strstr(error.text, changes[i].says))
            fail_msg("%s = %s: \"%s\" does not say \"%s\"", changes[i].path, changes[i].value,
                     error.text, changes[i].says);
        assert_null(strchr(error.text, '\n'));
    }
    fixture_dir_remove(&dir);
    (void)state;
}

static void test_config(void **state)
{
    static const struct {
        const char *path, *value, *says;
    } cases[] = {
        {"bos_token", "\"<｜begin▁of▁sentence｜>\"", NULL},
        {"bos_token", "null", NULL},
        {"eos_token", "", NULL},
        {"tokenizer_class", "", NULL},
        {"bos_token", "5", "bos_token must be a string"},
        {"bos_token", "\"nobody\"", "bos_token is not a token"},
        {"eos_token.content", "5", "eos_token.content must be a string"},
        {"add_bos_token", "1", "add_bos_token must be true or false"},
        {"tokenizer_class", "[]", "tokenizer_class must be a string"},
    };
    struct fixture_dir dir;
    struct bt_error error;
    fixture_dir_make(&dir);
    write_tiny(&dir, "tokenizer.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *root = fixture_model_json("tokenizer_config.json");
        change(root, cases[i].path, cases[i].value);
        fixture_dir_write_json(&dir, "tokenizer_config.json", root);
        json_decref(root);
        enum bt_status status = load(&dir, &error);
        assert_int_equal(status, cases[i].says ? BT_ERR_INVALID_ARGUMENT : BT_OK);
        if (cases[i].says) {
            assert_non_null(strstr(error.text, "tokenizer_config.json: "));
            assert_non_null(strstr(error.text, cases[i].says));
        }
    }
    fixture_dir_remove(&dir);
    (void)state;
}

static void test_raw_files(void **state)
{
    static const struct {
        const char *text;
        size_t size;
    } texts[] = {
        {"", 0},
        {"{", 1},
        {"[]", 2},
        {"null", 4},
        {"{\"a\":1,\"a\":2}", 13},
        {"{\"model\":\"\\u0000\"}", 17},
        {"{\"\xff\":1}", 7},
        {"{}x", 3},
        {"\0\0\0", 3},
    };
    struct fixture_dir dir;
    struct bt_error error;
    fixture_dir_make(&dir);
    assert_int_equal(load(&dir, &error), BT_ERR_IO);
    assert_int_equal(error.status, BT_ERR_IO);
    assert_non_null(strstr(error.text, "/tokenizer.json: "));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        fixture_dir_write(&dir, "tokenizer.json", texts[i].text, texts[i].size);
        assert_int_equal(load(&dir, &error), BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "/tokenizer.json: "));
    }
    char *deep = malloc(1000000);
    memset(deep, '[', 1000000);
    memcpy(deep, "{\"model\":", 9);
    fixture_dir_write(&dir, "tokenizer.json", deep, 1000000);
    free(deep);
    assert_int_equal(load(&dir, &error), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "depth"));

    write_tiny(&dir, "tokenizer.json");
    assert_int_equal(load(&dir, &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, "tokenizer_config.json"));
    fixture_dir_remove(&dir);
    (void)state;
}

static void test_no_plain_file(void **state)
{
    struct fixture_dir dir;
    struct bt_error error;
    char path[PATH_MAX + 64];
    fixture_dir_make(&dir);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir.path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(load(&dir, &error), BT_ERR_IO);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(load(&dir, &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, "not a regular file"));
    fixture_dir_remove(&dir);

    struct fixture_dir long_dir;
    memset(long_dir.path, 'a', sizeof long_dir.path - 1);
    long_dir.path[sizeof long_dir.path - 1] = '\0';
    assert_int_equal(load(&long_dir, &error), BT_ERR_IO);
    (void)state;
}

/* A rule that backtracks exponentially ends in an error of the request, soon. */
static void test_endless_rule(void **state)
{
    static const char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac";
    struct fixture_dir dir;
    struct bt_error error = {0};
    struct bt_token_buffer ids = {0};
    json_t *root = fixture_model_json("tokenizer.json");
    change(root, P ".1", SPLIT("(?:a+)+[bd]"));
    fixture_dir_make(&dir);
    fixture_dir_write_json(&dir, "tokenizer.json", root);
    json_decref(root);
    write_tiny(&dir, "tokenizer_config.json");
    struct bt_tokenizer *tokenizer = fixture_load(dir.path);
    assert_int_equal(bt_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &error, &ids),
                     BT_ERR_EXHAUSTED);
    assert_non_null(strstr(error.text, "split rule 1"));
    assert_int_equal(ids.count, 0);
    assert_int_equal(bt_tokenizer_encode(tokenizer, "aab", 3, true, &error, &ids), BT_OK);
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    fixture_dir_remove(&dir);
    (void)state;
}

/* Bytes flipped, cut out, doubled, numbers blown up: it loads, or says why not. */
static size_t mutate(char *text, size_t size, uint64_t *state)
{
    for (uint32_t rounds = 1 + fixture_random(state, 4); rounds > 0; rounds--) {
        uint32_t at = fixture_random(state, (uint32_t)size);
        uint32_t length = 1 + fixture_random(state, 200);
        if (at + length > size)
            length = (uint32_t)size - at;
        switch (fixture_random(state, 5)) {
        case 0:
            text[at] = (char)fixture_random(state, 256);
            break;
        case 1:
            text[at] = "{}[],:\"\\09-ea "[fixture_random(state, 14)];
            break;
        case 2:
            memmove(text + at, text + at + length, size - at - length);
            size -= length;
            break;
        case 3:
            memmove(text + fixture_random(state, (uint32_t)(size - length + 1)), text + at, length);
            break;
        default:
            memset(text + at, '9', length % 12);
            break;
        }
        if (size == 0)
            break;
    }
    return size;
}

static json_t *random_value(uint64_t *state)
{
    switch (fixture_random(state, 8)) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(fixture_random(state, 2));
    case 2:
        return json_integer((json_int_t)fixture_random(state, 3000) - 5);
    case 3:
        return json_integer(INT64_MAX - fixture_random(state, 3));
    case 4:
        return json_string(fixture_random(state, 2) ? "ByteLevel" : "a b");
    case 5:
        return json_pack("[s,s]", "h", "e");
    case 6:
        return json_pack("{s:s}", "type", "Split");
    default:
        return json_real(0.5);
    }
}

/* Replaces or removes a value somewhere in the tree: the file stays JSON. */
static void mutate_tree(json_t *root, uint64_t *state)
{
    for (;;) {
        size_t count = json_is_array(root) ? json_array_size(root) : json_object_size(root);
        if (count == 0)
            return;
        size_t pick = fixture_random(state, (uint32_t)count);
        void *member = json_object_iter(root);
        for (size_t i = 0; member && i < pick; i++)
            member = json_object_iter_next(root, member);
        json_t *child = member ? json_object_iter_value(member) : json_array_get(root, pick);
        if ((json_is_object(child) || json_is_array(child)) && fixture_random(state, 10)) {
            root = child;
        } else if (!member) {
            json_array_set_new(root, pick, random_value(state));
            return;
        } else if (fixture_random(state, 4)) {
            json_object_iter_set_new(root, member, random_value(state));
            return;
        } else {
            json_object_del(root, json_object_iter_key(member));
            return;
        }
    }
}

static void test_mutations(void **state)
{
    struct fixture_dir dir;
    json_t *root = fixture_model_json("tokenizer.json");
    char *original = json_dumps(root, JSON_COMPACT);
    size_t original_size = strlen(original), loaded = 0;
    char *text = malloc(original_size + 16);
    uint64_t seed = test_seed();
    fixture_dir_make(&dir);
    write_tiny(&dir, "tokenizer_config.json");
    for (int i = 0; i < MUTATIONS; i++) {
        struct bt_tokenizer *tokenizer = NULL;
        struct bt_error error = {0};
        if (i % 2) {
            memcpy(text, original, original_size + 1);
            size_t size = mutate(text, original_size, &seed);
            fixture_dir_write(&dir, "tokenizer.json", text, size);
        } else {
            json_t *tree = json_deep_copy(root);
            mutate_tree(tree, &seed);
            fixture_dir_write_json(&dir, "tokenizer.json", tree);
            json_decref(tree);
        }
        enum bt_status status = bt_tokenizer_load(dir.path, &error, &tokenizer);
        if (status == BT_OK) {
            struct bt_token_buffer ids = {0};
            static const char sample[] = "the fox said: 12345  \n 中文 <｜User｜>!";
            bt_tokenizer_encode(tokenizer, sample, sizeof sample - 1, true, &error, &ids);
            free(ids.ids);
            loaded++;
        } else {
            assert_non_null(strstr(error.text, "tokenizer"));
            assert_int_equal(error.status, status);
        }
        bt_tokenizer_destroy(tokenizer);
    }
    printf("%zu of %d mutations loaded\n", loaded, MUTATIONS);
    fixture_dir_remove(&dir);
    json_decref(root);
    free(original);
    free(text);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes),      cmocka_unit_test(test_config),
        cmocka_unit_test(test_raw_files),    cmocka_unit_test(test_no_plain_file),
        cmocka_unit_test(test_endless_rule), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
