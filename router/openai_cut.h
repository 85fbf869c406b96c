/*
 * What is long in a JSON body, cut out before the JSON is parsed: arrays of token ids, of which a
 * tree would hold a node each, and strings, which a parser takes byte by byte. Pure.
 *
 * A cut array leaves an array with one negative number, its place in `lists`; a cut string leaves
 * a short one. Only what is valid as it stands is cut, so the short text is valid JSON where the
 * whole one is, with the same tree but for these places. A body that holds by itself what could be
 * taken for such a place is not cut at all.
 */
#ifndef BATON_ROUTER_OPENAI_CUT_H
#define BATON_ROUTER_OPENAI_CUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RT_OPENAI_CUT_IDS   64   /* shorter arrays stay */
#define RT_OPENAI_CUT_BYTES 4096 /* of strings, with their quotes: as well */

struct rt_openai_pieces {
    void *data;   /* of all pieces, one after the other */
    size_t *ends; /* of each, in elements */
    size_t count, capacity, ends_capacity;
};

/* Zero-initialised. */
struct rt_openai_cut {
    char *text; /* what is left; NULL: nothing was cut */
    size_t size;
    struct rt_openai_pieces lists;   /* uint32_t */
    struct rt_openai_pieces strings; /* bytes, UTF-8 without NUL */
};

/* False: there was nothing to cut, or no memory to do it. */
bool rt_openai_cut(const char *text, size_t size, struct rt_openai_cut *cut);
void rt_openai_cut_finish(struct rt_openai_cut *cut);

/* Puts the strings back into the tree of the short text. False: no memory. */
bool rt_openai_cut_restore(const struct rt_openai_cut *cut, json_t *root);
/* The ids that `array` stands for, until rt_openai_cut_finish; NULL: it stands for itself. */
const uint32_t *rt_openai_cut_ids(const struct rt_openai_cut *cut, const json_t *array,
                                  size_t *ret_count);

/* Past the string that begins (after its quote) at `at`: after the end quote, or `size`. */
size_t rt_openai_cut_skip_string(const char *text, size_t at, size_t size);

#endif
