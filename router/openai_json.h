/*
 * JSON as text: a growing buffer with a writer on it. Caller-owned, zero-initialised, one thread.
 *
 * Appending never fails visibly: without memory, or beyond `limit`, the buffer turns `failed` and
 * takes nothing more, and the owner asks once at the end.
 */
#ifndef BATON_ROUTER_OPENAI_JSON_H
#define BATON_ROUTER_OPENAI_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct rt_openai_json {
    char *data; /* not NUL-terminated */
    size_t start, end;
    size_t capacity;
    size_t limit; /* of unread bytes; 0: none */
    bool failed;
    /* What was written last may be taken back to here, until something is taken or sealed; 0: no
     * more. */
    size_t open;
    uint32_t open_owner;
};

void rt_openai_json_finish(struct rt_openai_json *json);

/* What was not taken yet. */
const char *rt_openai_json_unread(const struct rt_openai_json *json, size_t *ret_size);
void rt_openai_json_take(struct rt_openai_json *json, size_t size);

/* What follows now may be taken back by `owner`, as long as all of it is unread. */
void rt_openai_json_open(struct rt_openai_json *json, uint32_t owner);
/* Takes it back. False: there is nothing of `owner` at the end. */
bool rt_openai_json_reopen(struct rt_openai_json *json, uint32_t owner);
void rt_openai_json_seal(struct rt_openai_json *json);

/* The whole content, malloc'd, out of the buffer, which is empty afterwards. */
char *rt_openai_json_detach(struct rt_openai_json *json, size_t *ret_size);

void rt_openai_json_raw(struct rt_openai_json *json, const char *text, size_t size);
static inline void rt_openai_json_literal(struct rt_openai_json *json, const char *text)
{
    rt_openai_json_raw(json, text, strlen(text)); /* known to the compiler where it is a literal */
}
/* Quoted and escaped. Bytes that are not UTF-8 become U+FFFD. NULL text: null. */
void rt_openai_json_string(struct rt_openai_json *json, const char *text, size_t size);
/* The same without the quotes. */
void rt_openai_json_text(struct rt_openai_json *json, const char *text, size_t size);
void rt_openai_json_cstring(struct rt_openai_json *json, const char *text);
void rt_openai_json_int(struct rt_openai_json *json, int64_t value);
/* Nine significant digits: reads back as the same float32. -inf and NaN, which JSON lacks, are
 * written as -9999. */
void rt_openai_json_float(struct rt_openai_json *json, float value);
void rt_openai_json_double(struct rt_openai_json *json, double value);

#endif
