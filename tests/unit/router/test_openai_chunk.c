/* Chunks of streams: whether they take in what comes next or not, the client reads the same. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "router/openai_response.h"
#include "tests/seed.h"

#define CHOICES 3
#define PIECES  200

static const char *const pieces[] = {"a",    " \"quoted\" ",     "\\",      "\n\t\r",  "\x01",
                                     "日本", "\xF0\x9F\xA6\x8A", "data: x", "{\"a\"}", "\xC3\xA9",
                                     "id: 7"};

static void form_init(struct rt_openai_form *form, bool chat, const uint32_t *delivered)
{
    *form = (struct rt_openai_form){.model = "a \"model\"",
                                    .id = "cmpl-1",
                                    .fingerprint = "fp_1",
                                    .created = 1234567890123,
                                    .chat = chat,
                                    .stream = true,
                                    .progress = delivered,
                                    .progress_count = delivered ? CHOICES : 0};
}

/* What a client puts together of a stream. */
struct reader {
    char text[CHOICES][8192];
    char id[64]; /* of the last event */
    size_t events;
};

static void read_event(struct reader *reader, char *event, bool chat)
{
    char *id = strstr(event, "\nid: ");
    if (id) {
        snprintf(reader->id, sizeof reader->id, "%s", id + 5);
        *id = '\0';
    }
    assert_memory_equal(event, "data: ", 6);
    assert_null(strchr(event, '\n'));
    json_error_t error;
    json_t *root = json_loads(event + 6, 0, &error);
    if (root == NULL)
        fail_msg("%s: %s", error.text, event);
    json_t *choices = json_object_get(root, "choices");
    assert_int_equal(json_array_size(choices), 1);
    json_t *choice = json_array_get(choices, 0);
    json_t *delta = chat ? json_object_get(choice, "delta") : choice;
    const char *text = json_string_value(json_object_get(delta, chat ? "content" : "text"));
    json_int_t index = json_integer_value(json_object_get(choice, "index"));
    strcat(reader->text[index], text);
    assert_true(json_is_null(json_object_get(choice, "logprobs")));
    assert_true(json_is_null(json_object_get(choice, "finish_reason")));
    assert_string_equal(json_string_value(json_object_get(root, "model")), "a \"model\"");
    assert_string_equal(json_string_value(json_object_get(root, "system_fingerprint")), "fp_1");
    assert_true(json_integer_value(json_object_get(root, "created")) == 1234567890123);
    assert_string_equal(json_string_value(json_object_get(root, "object")),
                        chat ? "chat.completion.chunk" : "text_completion");
    json_decref(root);
    reader->events++;
}

static void read_all(struct reader *reader, struct rt_openai_json *out, bool chat)
{
    size_t size;
    const char *data = rt_openai_json_unread(out, &size);
    char *copy = calloc(1, size + 1);
    assert_non_null(copy);
    memcpy(copy, data ? data : "", size);
    rt_openai_json_take(out, size);
    for (char *event = copy, *end; *event; event = end + 2) {
        end = strstr(event, "\n\n");
        assert_non_null(end);
        *end = '\0';
        read_event(reader, event, chat);
    }
    free(copy);
}

/* Pieces of several choices in any order, read whenever; against what was written. */
static void check_stream(bool chat, bool ids, uint64_t seed)
{
    uint32_t delivered[CHOICES] = {0};
    char expected[CHOICES][8192] = {{0}};
    static struct reader reader;
    memset(&reader, 0, sizeof reader);
    struct rt_openai_form form;
    form_init(&form, chat, ids ? delivered : NULL);
    struct rt_openai_choice choices[CHOICES] = {{.index = 0}, {.index = 1}, {.index = 2}};
    struct rt_openai_json out = {0};
    for (uint32_t i = 0; i < PIECES; i++) {
        uint64_t number = bt_random_u64(seed, i, 0);
        uint32_t index = (uint32_t)(number % 5 % CHOICES);
        const char *piece = pieces[number / 8 % (sizeof pieces / sizeof *pieces)];
        strcat(expected[index], piece);
        delivered[index]++;
        rt_openai_write_output(&form, &choices[index], piece, strlen(piece), NULL, 0, &out);
        if (number / 256 % 4 == 0)
            read_all(&reader, &out, chat);
    }
    read_all(&reader, &out, chat);
    char id[64];
    snprintf(id, sizeof id, "%u,%u,%u", delivered[0], delivered[1], delivered[2]);
    assert_string_equal(reader.id, ids ? id : "");
    for (int i = 0; i < CHOICES; i++)
        assert_string_equal(reader.text[i], expected[i]);
    assert_true(reader.events < PIECES);
    rt_openai_json_finish(&out);
    rt_openai_form_finish(&form);
}

static void test_streams(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 40; i++)
        check_stream(i % 2, i / 2 % 2, seed + i);
}

/* One chunk for all that nobody has taken anything of; then another one. */
static void test_takes_in(void **state)
{
    (void)state;
    struct rt_openai_form form;
    form_init(&form, false, NULL);
    struct rt_openai_choice choice = {0};
    struct rt_openai_json out = {0};
    static struct reader reader;
    memset(&reader, 0, sizeof reader);
    for (int i = 0; i < 10; i++)
        rt_openai_write_output(&form, &choice, "ab", 2, NULL, 0, &out);
    rt_openai_json_seal(&out); /* a writer has told its size */
    rt_openai_write_output(&form, &choice, "cd", 2, NULL, 0, &out);
    read_all(&reader, &out, false);
    assert_int_equal(reader.events, 2);
    assert_string_equal(reader.text[0], "ababababababababababcd");
    rt_openai_write_output(&form, &choice, "ef", 2, NULL, 0, &out);
    rt_openai_json_take(&out, 1);
    size_t before, after;
    rt_openai_json_unread(&out, &before);
    rt_openai_write_output(&form, &choice, "gh", 2, NULL, 0, &out);
    rt_openai_json_unread(&out, &after);
    assert_int_equal(after, 2 * before + 1);
    rt_openai_json_finish(&out);
    rt_openai_form_finish(&form);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streams),
                                       cmocka_unit_test(test_takes_in)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
