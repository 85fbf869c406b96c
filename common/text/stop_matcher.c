#include "common/text/stop_matcher.h"

#include <stdlib.h>
#include <string.h>

/* The state after `byte`: how much of the string the bytes so far end with. */
static uint16_t step(const struct bt_stop_string *string, uint16_t matched, char byte)
{
    while (matched > 0 && (matched == string->size || string->text[matched] != byte))
        matched = string->fallback[matched - 1];
    return string->text[matched] == byte ? matched + 1 : 0;
}

int bt_stop_matcher_add(struct bt_stop_matcher *matcher, const char *text, size_t size)
{
    struct bt_stop_string *strings =
        realloc(matcher->strings, (matcher->count + 1) * sizeof *strings);
    if (!strings)
        return -1;
    matcher->strings = strings;
    struct bt_stop_string *string = &strings[matcher->count];
    *string = (struct bt_stop_string){.text = malloc(size),
                                      .fallback = malloc(size * sizeof *string->fallback),
                                      .size = (uint16_t)size};
    if (!string->text || !string->fallback) {
        free(string->text);
        free(string->fallback);
        return -1;
    }
    memcpy(string->text, text, size);
    string->fallback[0] = 0;
    for (size_t i = 1; i < size; i++)
        string->fallback[i] = step(string, string->fallback[i - 1], text[i]);
    matcher->count++;
    return 0;
}

void bt_stop_matcher_finish(struct bt_stop_matcher *matcher)
{
    for (size_t i = 0; i < matcher->count; i++) {
        free(matcher->strings[i].text);
        free(matcher->strings[i].fallback);
    }
    free(matcher->strings);
    *matcher = (struct bt_stop_matcher){0};
}

size_t bt_stop_matcher_push(struct bt_stop_matcher *matcher, char byte)
{
    size_t longest = 0;
    for (size_t i = 0; i < matcher->count; i++) {
        struct bt_stop_string *string = &matcher->strings[i];
        string->matched = step(string, string->matched, byte);
        if (string->matched == string->size && string->size > longest)
            longest = string->size;
    }
    return longest;
}

size_t bt_stop_matcher_held(const struct bt_stop_matcher *matcher)
{
    size_t held = 0;
    for (size_t i = 0; i < matcher->count; i++) {
        if (matcher->strings[i].matched > held)
            held = matcher->strings[i].matched;
    }
    return held;
}
