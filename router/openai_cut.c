#include "router/openai_cut.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/utf8.h"

#define MARK      "\x01" /* begins a cut string */
#define MARK_JSON "\\u0001"

/* ------------------------------------------------------------------ pieces */

static bool pieces_reserve(struct rt_openai_pieces *pieces, size_t element, size_t needed)
{
    if (needed <= pieces->capacity)
        return true;
    size_t capacity = pieces->capacity > 0 ? pieces->capacity : 1024;
    while (capacity < needed)
        capacity *= 2;
    void *data = realloc(pieces->data, capacity * element);
    if (data == NULL)
        return false;
    pieces->data = data;
    pieces->capacity = capacity;
    return true;
}

static size_t pieces_used(const struct rt_openai_pieces *pieces)
{
    return pieces->count > 0 ? pieces->ends[pieces->count - 1] : 0;
}

static bool pieces_add(struct rt_openai_pieces *pieces, size_t end)
{
    if (pieces->count == pieces->ends_capacity) {
        size_t capacity = pieces->ends_capacity > 0 ? 2 * pieces->ends_capacity : 8;
        size_t *ends = realloc(pieces->ends, capacity * sizeof *ends);
        if (ends == NULL)
            return false;
        pieces->ends = ends;
        pieces->ends_capacity = capacity;
    }
    pieces->ends[pieces->count++] = end;
    return true;
}

static void pieces_finish(struct rt_openai_pieces *pieces)
{
    free(pieces->data);
    free(pieces->ends);
}

/* ------------------------------------------------------------------ scanning */

struct scanner {
    const char *text;
    size_t size;
    struct rt_openai_cut *cut;
    size_t copied; /* up to here the text is in cut->text, or cut */
    bool failed;   /* no memory, or ambiguous: nothing is cut */
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static size_t skip_space(const struct scanner *scanner, size_t at)
{
    while (at < scanner->size && is_space(scanner->text[at]))
        at++;
    return at;
}

/* Bytes of `word` that are `byte` have their top bit set in the result; others may, above one. */
static uint64_t bytes_equal(uint64_t word, uint8_t byte)
{
    uint64_t x = word ^ (0x0101010101010101u * byte);
    return (x - 0x0101010101010101u) & ~x & 0x8080808080808080u;
}

/* Eight bytes without a quote, a backslash, a control character or anything beyond ASCII. */
static bool eight_plain(const char *text)
{
    uint64_t word;
    memcpy(&word, text, sizeof word);
    uint64_t control = (word - 0x2020202020202020u) | word;
    return (bytes_equal(word, '"') | bytes_equal(word, '\\') | (control & 0x8080808080808080u)) ==
           0;
}

static bool eight_inside(const char *text)
{
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return (bytes_equal(word, '"') | bytes_equal(word, '\\')) == 0;
}

size_t rt_openai_cut_skip_string(const char *text, size_t at, size_t size)
{
    while (at < size) {
        if (at + 8 <= size && eight_inside(text + at))
            at += 8;
        else if (text[at] == '\\')
            at += 2;
        else if (text[at++] == '"')
            return at;
    }
    return size;
}

/* A number of JSON that is a uint32. False: another one, or none. */
static bool read_id(const struct scanner *scanner, size_t *at, uint32_t *ret_id)
{
    const char *text = scanner->text;
    size_t from = *at, end = from;
    uint64_t value = 0;
    while (end < scanner->size && text[end] >= '0' && text[end] <= '9' && end - from < 11)
        value = 10 * value + (uint64_t)(text[end++] - '0');
    if (end == from || value > UINT32_MAX || (text[from] == '0' && end - from > 1))
        return false;
    *at = end;
    *ret_id = (uint32_t)value;
    return true;
}

/* The array of ids that begins at `at`, after its bracket, behind the other lists. Returns after
 * its end; 0: it is something else, or short. */
static size_t read_list(struct scanner *scanner, size_t at)
{
    struct rt_openai_pieces *lists = &scanner->cut->lists;
    size_t used = pieces_used(lists), end = used;
    for (;;) {
        at = skip_space(scanner, at);
        if (end == lists->capacity && !pieces_reserve(lists, sizeof(uint32_t), end + 1)) {
            scanner->failed = true;
            return 0;
        }
        if (!read_id(scanner, &at, (uint32_t *)lists->data + end))
            return 0;
        end++;
        at = skip_space(scanner, at);
        if (at == scanner->size || (scanner->text[at] != ',' && scanner->text[at] != ']'))
            return 0;
        if (scanner->text[at++] == ']')
            break;
    }
    if (end - used < RT_OPENAI_CUT_IDS)
        return 0;
    scanner->failed = !pieces_add(lists, end);
    return at;
}

/* ------------------------------------------------------------------ strings */

static int32_t read_hex4(const char *text, size_t left)
{
    int32_t value = 0;
    if (left < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = text[i], lower = (char)(c | 0x20);
        if (c >= '0' && c <= '9')
            value = 16 * value + c - '0';
        else if (lower >= 'a' && lower <= 'f')
            value = 16 * value + lower - 'a' + 10;
        else
            return -1;
    }
    return value;
}

static size_t write_utf8(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

/* \uXXXX or a pair of them, at the `u`. Returns its length; 0: not of a character, or of NUL. */
static size_t read_unicode(const char *text, size_t left, char *out, size_t *ret_written)
{
    int32_t code = read_hex4(text + 1, left - 1);
    size_t length = 5;
    if (code <= 0 || (code >= 0xDC00 && code <= 0xDFFF))
        return 0;
    if (code >= 0xD800 && code <= 0xDBFF) {
        int32_t low =
            left >= 11 && text[5] == '\\' && text[6] == 'u' ? read_hex4(text + 7, left - 7) : -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return 0;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        length = 11;
    }
    *ret_written = write_utf8((uint32_t)code, out);
    return length;
}

/* After the backslash. Returns its length; 0: no escape. */
static size_t read_escape(const char *text, size_t left, char *out, size_t *ret_written)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (left == 0)
        return 0;
    if (text[0] == 'u')
        return read_unicode(text, left, out, ret_written);
    const char *name = memchr(names, text[0], sizeof names - 1);
    if (name == NULL)
        return 0;
    *out = values[name - names];
    *ret_written = 1;
    return 1;
}

/* One character or escape. Returns its length; 0: not of a string of JSON. */
static size_t read_character(const char *text, size_t left, char *out, size_t *ret_written)
{
    size_t length = 1;
    if (*text == '\\') {
        length = read_escape(text + 1, left - 1, out, ret_written);
        return length > 0 ? length + 1 : 0;
    }
    if ((unsigned char)*text < 0x20 || bt_utf8_next(text, left, &length) != BT_UTF8_CHARACTER)
        return 0;
    memcpy(out, text, length);
    *ret_written = length;
    return length;
}

/* The string's content, between its quotes, behind the other strings. False: it is not valid. */
static bool read_string(struct scanner *scanner, size_t at, size_t end)
{
    struct rt_openai_pieces *strings = &scanner->cut->strings;
    size_t used = pieces_used(strings);
    if (!pieces_reserve(strings, 1, used + (end - at))) {
        scanner->failed = true;
        return false;
    }
    char *out = (char *)strings->data + used;
    while (at < end) {
        size_t written = 8, length = 8;
        if (at + 8 <= end && eight_plain(scanner->text + at))
            memcpy(out, scanner->text + at, 8);
        else
            length = read_character(scanner->text + at, end - at, out, &written);
        if (length == 0)
            return false;
        at += length;
        out += written;
    }
    scanner->failed = !pieces_add(strings, (size_t)(out - (char *)strings->data));
    return true;
}

/* ------------------------------------------------------------------ the cut */

/* From `from` to `to` there is `stand_in` instead. */
static void replace(struct scanner *scanner, size_t from, size_t to, const char *stand_in)
{
    struct rt_openai_cut *cut = scanner->cut;
    size_t length = strlen(stand_in);
    if (cut->text == NULL && (cut->text = malloc(scanner->size)) == NULL) {
        scanner->failed = true;
        return;
    }
    memcpy(cut->text + cut->size, scanner->text + scanner->copied, from - scanner->copied);
    cut->size += from - scanner->copied;
    memcpy(cut->text + cut->size, stand_in, length);
    cut->size += length;
    scanner->copied = to;
}

/* At a bracket; returns where to go on. */
static size_t scan_array(struct scanner *scanner, size_t at)
{
    char stand_in[32];
    size_t first = skip_space(scanner, at + 1);
    if (first < scanner->size && scanner->text[first] == '-')
        scanner->failed = true; /* looks like a stand-in */
    size_t end = scanner->failed ? 0 : read_list(scanner, first);
    if (end == 0)
        return at + 1;
    snprintf(stand_in, sizeof stand_in, "[-%zu]", scanner->cut->lists.count);
    replace(scanner, at, end, stand_in);
    return end;
}

/* At a quote. Keys stay: they are compared with each other. */
static size_t scan_string(struct scanner *scanner, size_t at)
{
    char stand_in[32];
    const char *text = scanner->text;
    size_t end = rt_openai_cut_skip_string(text, at + 1, scanner->size);
    if (end - at > sizeof MARK_JSON && memcmp(text + at + 1, MARK_JSON, sizeof MARK_JSON - 1) == 0)
        scanner->failed = true;
    if (scanner->failed || end - at < RT_OPENAI_CUT_BYTES || text[end - 1] != '"')
        return end;
    size_t next = skip_space(scanner, end);
    if ((next < scanner->size && text[next] == ':') || !read_string(scanner, at + 1, end - 1))
        return end;
    snprintf(stand_in, sizeof stand_in, "\"" MARK_JSON "%zu\"", scanner->cut->strings.count);
    replace(scanner, at, end, stand_in);
    return end;
}

bool rt_openai_cut(const char *text, size_t size, struct rt_openai_cut *cut)
{
    struct scanner scanner = {.text = text, .size = size, .cut = cut};
    if (size < 2 * RT_OPENAI_CUT_IDS)
        return false;
    for (size_t at = 0; at < size && !scanner.failed;) {
        if (text[at] == '"')
            at = scan_string(&scanner, at);
        else if (text[at] == '[')
            at = scan_array(&scanner, at);
        else
            at++;
    }
    if (scanner.failed || cut->text == NULL) {
        rt_openai_cut_finish(cut);
        return false;
    }
    replace(&scanner, size, size, "");
    return true;
}

void rt_openai_cut_finish(struct rt_openai_cut *cut)
{
    free(cut->text);
    pieces_finish(&cut->lists);
    pieces_finish(&cut->strings);
    *cut = (struct rt_openai_cut){0};
}

/* ------------------------------------------------------------------ back in the tree */

static bool restore_string(const struct rt_openai_cut *cut, json_t *string)
{
    const char *value = json_string_value(string);
    if (value[0] != MARK[0])
        return true;
    size_t index = strtoul(value + 1, NULL, 10) - 1;
    const struct rt_openai_pieces *strings = &cut->strings;
    if (index >= strings->count)
        return true;
    size_t from = index > 0 ? strings->ends[index - 1] : 0;
    return json_string_setn_nocheck(string, (const char *)strings->data + from,
                                    strings->ends[index] - from) == 0;
}

bool rt_openai_cut_restore(const struct rt_openai_cut *cut, json_t *root)
{
    const char *key;
    json_t *value;
    size_t index;
    bool done = true;
    if (cut->strings.count == 0)
        return true;
    if (json_is_string(root))
        return restore_string(cut, root);
    if (json_is_object(root))
        json_object_foreach(root, key, value) done = rt_openai_cut_restore(cut, value) && done;
    if (json_is_array(root))
        json_array_foreach(root, index, value) done = rt_openai_cut_restore(cut, value) && done;
    return done;
}

const uint32_t *rt_openai_cut_ids(const struct rt_openai_cut *cut, const json_t *array,
                                  size_t *ret_count)
{
    const json_t *place = json_array_size(array) == 1 ? json_array_get(array, 0) : NULL;
    json_int_t number = json_is_integer(place) ? json_integer_value(place) : 0;
    if (number >= 0 || (uint64_t) - (number + 1) >= cut->lists.count)
        return NULL;
    size_t index = (size_t)(-(number + 1));
    size_t from = index > 0 ? cut->lists.ends[index - 1] : 0;
    *ret_count = cut->lists.ends[index] - from;
    return (const uint32_t *)cut->lists.data + from;
}
