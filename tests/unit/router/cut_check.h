/* A cut body against the JSON parser on the whole of it. */
#ifndef BATON_TESTS_CUT_CHECK_H
#define BATON_TESTS_CUT_CHECK_H

#include <stdlib.h>
#include <string.h>

#include "router/openai_cut.h"

#define CUT_CHECK_FLAGS (JSON_REJECT_DUPLICATES | JSON_DECODE_ANY)

/* The tree of the short text with the lists in it: a new one. */
static inline json_t *cut_check_whole(const struct rt_openai_cut *cut, json_t *value)
{
    const char *key;
    json_t *child;
    size_t index, count;
    const uint32_t *ids = rt_openai_cut_ids(cut, value, &count);
    json_t *whole = ids != NULL || json_is_array(value) ? json_array() : NULL;
    for (size_t i = 0; ids != NULL && i < count; i++) {
        json_array_append_new(whole, json_integer(ids[i]));
    }
    if (ids != NULL) {
        return whole;
    }
    if (json_is_array(value)) {
        json_array_foreach(value, index, child)
        {
            json_array_append_new(whole, cut_check_whole(cut, child));
        }
        return whole;
    }
    if (!json_is_object(value)) {
        return json_incref(value);
    }
    whole = json_object();
    json_object_foreach(value, key, child)
    {
        json_object_set_new(whole, key, cut_check_whole(cut, child));
    }
    return whole;
}

/* NULL: they agree; otherwise what is wrong. `ret_pieces`: how many were cut out. */
static inline const char *cut_check(const char *text, size_t size, size_t *ret_pieces)
{
    struct rt_openai_cut cut = {0};
    const char *wrong = NULL;
    *ret_pieces = 0;
    if (!rt_openai_cut(text, size, &cut)) {
        return cut.text != NULL ? "nothing is cut and there is a text" : NULL;
    }
    *ret_pieces = cut.lists.count + cut.strings.count;
    json_t *expected = json_loadb(text, size, CUT_CHECK_FLAGS, NULL);
    json_t *root = json_loadb(cut.text, cut.size, CUT_CHECK_FLAGS, NULL);
    if ((expected == NULL) != (root == NULL)) {
        wrong = expected == NULL ? "invalid JSON becomes valid" : "valid JSON becomes invalid";
    } else if (root != NULL && !rt_openai_cut_restore(&cut, root)) {
        wrong = "no memory";
    } else if (root != NULL) {
        json_t *whole = cut_check_whole(&cut, root);
        if (!json_equal(whole, expected)) {
            wrong = "another tree";
        }
        json_decref(whole);
    }
    json_decref(root);
    json_decref(expected);
    rt_openai_cut_finish(&cut);
    return wrong;
}

#endif
