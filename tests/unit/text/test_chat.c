/* Chat forms against texts written out by hand from the published templates, and their refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/chat.h"
#include "tests/unit/text/fixture.h"

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define U   "<｜User｜>"
#define A   "<｜Assistant｜>"

#define MESSAGE(role, content)                                                                     \
    {                                                                                              \
        role, content, sizeof(content) - 1                                                         \
    }

/* A conversation with everything in it, and what each form makes of it. */
static const struct bt_chat_message conversation[] = {
    MESSAGE("system", "S1"), MESSAGE("user", "u1"),   MESSAGE("assistant", "x</think>y</think>z"),
    MESSAGE("system", "S2"), MESSAGE("user", "u2\n"),
};
#define CONVERSATION_COUNT (sizeof conversation / sizeof *conversation)

static const struct {
    const char *template_name, *text;
} forms[] = {
    {"v2", BOS "S1\n\nUser: u1\n\nAssistant: x</think>y</think>z" EOS "S2\n\nUser: u2\n\n\n"
               "Assistant:"},
    {"v2.5", BOS "S2" U "u1" A "x</think>y</think>z" EOS U "u2\n" A},
    {"v3", BOS "S1\n\nS2" U "u1" A "x</think>y</think>z" EOS U "u2\n" A},
    {"r1", BOS "S1\n\nS2" U "u1" A "z" EOS U "u2\n" A "<think>\n"},
    {"r1-no-think", BOS "S1\n\nS2" U "u1" A "z" EOS U "u2\n" A},
    {"r1-distill", BOS "S2" U "u1" A "z" EOS U "u2\n" A "<think>\n"},
    {"r1-distill-no-think", BOS "S2" U "u1" A "z" EOS U "u2\n" A},
    {"v3-0324", BOS "S1\n\nS2" U "u1" A "x</think>y</think>z" EOS U "u2\n" A},
    {"r1-0528", BOS "S1\n\nS2" U "u1" A "z" EOS U "u2\n" A},
    {"v3.1", BOS "S1\n\nS2" U "u1" A "</think>y</think>z" EOS U "u2\n" A "</think>"},
    {"v3.1-terminus", BOS "S1\n\nS2" U "u1" A "</think>y</think>z" EOS U "u2\n" A "</think>"},
};

static char *read_template(const char *name)
{
    char relative[128];
    snprintf(relative, sizeof relative, "chat_templates/%s.jinja", name);
    FILE *file = fopen(fixture_path(relative), "r");
    assert_non_null(file);
    char *text = calloc(1, 1 << 16);
    assert_true(fread(text, 1, (1 << 16) - 1, file) > 0);
    fclose(file);
    return text;
}

static void assert_render(const struct bt_chat_form *form, const struct bt_chat_message *messages,
                          size_t count, const char *expected)
{
    struct bt_error error = {0};
    char *text;
    size_t size;
    if (bt_chat_form_render(form, messages, count, &error, &text, &size) != BT_OK)
        fail_msg("%s", error.text);
    assert_int_equal(size, strlen(expected));
    assert_string_equal(text, expected);
    free(text);
}

/* A directory with the tiny model's tokenizer_config.json, `key` set to `value` (or removed). */
static void write_config(const struct fixture_dir *dir, const char *key, json_t *value)
{
    json_t *config = fixture_model_json("tokenizer_config.json");
    if (value)
        json_object_set_new(config, key, value);
    else
        json_object_del(config, key);
    fixture_dir_write_json(dir, "tokenizer_config.json", config);
    json_decref(config);
}

static enum bt_status load_with(const struct bt_tokenizer *tokenizer, const char *key,
                                json_t *value, struct bt_error *error,
                                struct bt_chat_form **ret_form)
{
    struct fixture_dir dir;
    fixture_dir_make(&dir);
    write_config(&dir, key, value);
    *ret_form = NULL;
    enum bt_status status = bt_chat_form_load(dir.path, tokenizer, error, ret_form);
    fixture_dir_remove(&dir);
    return status;
}

static void test_golden(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_chat_form *form;
    struct bt_error error = {0};
    struct bt_token_buffer ids = {0};
    json_t *golden = fixture_model_json("golden/tokenizer.json");
    const json_t *chat = json_object_get(golden, "chat"), *entry;
    struct bt_chat_message messages[8];
    size_t count;
    json_array_foreach(json_object_get(chat, "messages"), count, entry)
    {
        const json_t *content = json_object_get(entry, "content");
        messages[count] =
            (struct bt_chat_message){json_string_value(json_object_get(entry, "role")),
                                     json_string_value(content), json_string_length(content)};
    }
    assert_int_equal(bt_chat_form_load(fixture_tiny_dir(), tokenizer, &error, &form), BT_OK);
    assert_render(form, messages, count, json_string_value(json_object_get(chat, "text")));
    assert_int_equal(bt_chat_form_encode(form, messages, count, &error, &ids), BT_OK);
    fixture_assert_ids(&ids, json_object_get(chat, "ids"));
    free(ids.ids);
    json_decref(golden);
    bt_chat_form_destroy(form);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_forms(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct bt_chat_form *form;
        struct bt_error error = {0};
        char *text = read_template(forms[i].template_name);
        if (load_with(tokenizer, "chat_template", json_string(text), &error, &form) != BT_OK)
            fail_msg("%s: %s", forms[i].template_name, error.text);
        assert_render(form, conversation, CONVERSATION_COUNT, forms[i].text);
        bt_chat_form_destroy(form);
        free(text);
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* The marks of an assistant's turn where the last message is a reply, or there is only a system's.
 */
static void test_turn_ends(void **state)
{
    static const struct bt_chat_message ends_with_reply[] = {MESSAGE("user", "u"),
                                                             MESSAGE("assistant", "r")};
    static const struct bt_chat_message only_system[] = {MESSAGE("system", "S")};
    static const struct {
        const char *template_name, *after_reply, *after_system;
    } cases[] = {
        {"v3", BOS U "u" A "r" EOS A, BOS "S" A},
        {"v3-0324", BOS U "u" A "r" EOS A, BOS "S" A},
        {"v3.1", BOS U "u" A "</think>r" EOS, BOS "S"},
        {"v3.1-terminus", BOS U "u" A "</think>r" EOS A "</think>", BOS "S" A "</think>"},
    };
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_chat_form *form;
        char *text = read_template(cases[i].template_name);
        assert_int_equal(load_with(tokenizer, "chat_template", json_string(text), NULL, &form),
                         BT_OK);
        assert_render(form, ends_with_reply, 2, cases[i].after_reply);
        assert_render(form, only_system, 1, cases[i].after_system);
        bt_chat_form_destroy(form);
        free(text);
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_named_templates(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    char *v3 = read_template("v3"), *r1 = read_template("r1");
    struct bt_chat_form *form;
    json_t *list = json_pack("[{s:s,s:s},{s:s,s:s}]", "name", "tool_use", "template", r1, "name",
                             "default", "template", v3);
    assert_int_equal(load_with(tokenizer, "chat_template", list, NULL, &form), BT_OK);
    assert_render(form, conversation, CONVERSATION_COUNT, forms[2].text);
    bt_chat_form_destroy(form);
    free(v3);
    free(r1);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* chat_template.jinja is the newer place, and comes first. */
static void test_template_file(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_chat_form *form;
    struct fixture_dir dir;
    char *r1 = read_template("r1");
    fixture_dir_make(&dir);
    write_config(&dir, "chat_template", json_string("unknown"));
    fixture_dir_write(&dir, "chat_template.jinja", r1, strlen(r1));
    assert_int_equal(bt_chat_form_load(dir.path, tokenizer, NULL, &form), BT_OK);
    assert_render(form, conversation, CONVERSATION_COUNT, forms[3].text);
    bt_chat_form_destroy(form);
    fixture_dir_remove(&dir);
    free(r1);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_no_template(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_chat_form *form;
    struct bt_error error = {0};
    struct bt_token_buffer ids = {0};
    assert_int_equal(load_with(tokenizer, "chat_template", NULL, &error, &form), BT_OK);
    assert_int_equal(bt_chat_form_encode(form, conversation, 1, &error, &ids), BT_ERR_UNSUPPORTED);
    assert_null(ids.ids);
    bt_chat_form_destroy(form);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_refused_templates(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_chat_form *form;
    const struct {
        const char *key;
        json_t *value;
        enum bt_status status;
        const char *says;
    } cases[] = {
        {"chat_template", json_string("{{ '<|im_start|>' }}"), BT_ERR_UNSUPPORTED, "chat template"},
        {"chat_template", json_string(""), BT_ERR_UNSUPPORTED, "chat template"},
        {"chat_template", json_integer(3), BT_ERR_INVALID_ARGUMENT, "chat_template"},
        {"chat_template", json_pack("[i]", 1), BT_ERR_INVALID_ARGUMENT, "chat_template[0]"},
        {"chat_template", json_pack("[{s:i}]", "name", 1), BT_ERR_INVALID_ARGUMENT, "name"},
        {"bos_token", json_true(), BT_ERR_INVALID_ARGUMENT, "bos_token"},
        {"eos_token", json_pack("{s:i}", "content", 1), BT_ERR_INVALID_ARGUMENT, "eos_token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_error error = {0};
        assert_int_equal(load_with(tokenizer, cases[i].key, cases[i].value, &error, &form),
                         cases[i].status);
        assert_int_equal(error.status, cases[i].status);
        assert_non_null(strstr(error.text, "tokenizer_config.json"));
        assert_non_null(strstr(error.text, cases[i].says));
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* Marks that the tokenizer lacks would reach the model as plain text. */
static void test_marks_must_be_tokens(void **state)
{
    char v2_dir[PATH_MAX];
    snprintf(v2_dir, sizeof v2_dir, "%s", fixture_path("v2-style"));
    struct bt_tokenizer *tokenizer = fixture_load(v2_dir);
    struct bt_error error = {0};
    struct bt_chat_form *form;
    char *v3 = read_template("v3");
    assert_int_equal(load_with(tokenizer, "chat_template", json_string(v3), &error, &form),
                     BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "<｜User｜>"));
    assert_int_equal(bt_chat_form_load(v2_dir, tokenizer, &error, &form), BT_OK);
    assert_render(form, conversation, CONVERSATION_COUNT, forms[0].text);
    bt_chat_form_destroy(form);
    free(v3);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_bad_messages(void **state)
{
    static const struct {
        struct bt_chat_message messages[2];
        size_t count;
        const char *says;
    } cases[] = {
        {{MESSAGE("user", "a")}, 0, "messages"},
        {{MESSAGE("user", "a"), MESSAGE("tool", "b")}, 2, "messages[1].role: \"tool\""},
        {{MESSAGE("user", "a"), {NULL, "b", 1}}, 2, "messages[1].role"},
        {{MESSAGE("us\ner", "a")}, 1, "messages[0].role: \"us?er\""},
        {{MESSAGE("user", "a"), MESSAGE("user", "ab\xff")},
         2,
         "messages[1].content: not UTF-8 at byte 2"},
        {{MESSAGE("user", "a"), {"user", "b", SIZE_MAX}}, 2, "messages[1].content"},
    };
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_chat_form *form;
    assert_int_equal(bt_chat_form_load(fixture_tiny_dir(), tokenizer, NULL, &form), BT_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_error error = {0};
        struct bt_token_buffer ids = {0};
        assert_int_equal(bt_chat_form_encode(form, cases[i].messages, cases[i].count, &error, &ids),
                         BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, cases[i].says));
        assert_null(strchr(error.text, '\n'));
        free(ids.ids);
    }
    bt_chat_form_destroy(form);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_turn_ends),
        cmocka_unit_test(test_named_templates),
        cmocka_unit_test(test_template_file),
        cmocka_unit_test(test_no_template),
        cmocka_unit_test(test_refused_templates),
        cmocka_unit_test(test_marks_must_be_tokens),
        cmocka_unit_test(test_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
