#include "router/exposition.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/text/utf8.h"

enum type { UNTYPED, COUNTER, GAUGE, HISTOGRAM, SUMMARY, TYPES };

static const char *const type_names[TYPES] = {"untyped", "counter", "gauge", "histogram",
                                              "summary"};

/* A piece of a page. */
struct piece {
    const char *at;
    size_t size;
};

struct family {
    struct piece name, help; /* help.at NULL: none yet */
    struct family *same_hash;
    uint32_t votes[TYPES]; /* pages */
    const struct rt_exposition_page *voter;
    char *lines;
    size_t size, capacity;
};

struct merge {
    struct bt_map by_name; /* hash -> the first that has it */
    struct family **families;
    size_t count, capacity;
    struct bt_map series; /* of the page at hand: what it said already */
    const struct rt_exposition_page *page;
    uint32_t page_families;
    bool failed; /* no memory */
};

struct label {
    struct piece name, value; /* the value as it stands there, with its escapes */
};

struct sample {
    struct piece name, value;
    struct label labels[RT_EXPOSITION_LABELS];
    uint32_t label_count;
};

/* ---- pieces */

static bool same(struct piece piece, const char *text)
{
    return piece.size == strlen(text) && memcmp(piece.at, text, piece.size) == 0;
}

static bool equal(struct piece a, struct piece b)
{
    return a.size == b.size && memcmp(a.at, b.at, a.size) == 0;
}

/* Never 0. */
static uint64_t hash_add(uint64_t hash, struct piece piece)
{
    for (size_t i = 0; i < piece.size; i++) {
        hash = (hash ^ (unsigned char)piece.at[i]) * UINT64_C(0x100000001b3);
    }
    hash = (hash ^ 0xff) * UINT64_C(0x100000001b3); /* its end: no byte of UTF-8 */
    return hash != 0 ? hash : 1;
}

#define HASH_BEGIN UINT64_C(0xcbf29ce484222325)

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* What begins here; of size 0: no name does. */
static struct piece take_name(struct piece *rest, bool colons)
{
    struct piece name = {rest->at, 0};
    while (name.size < rest->size) {
        char c = rest->at[name.size];
        if (!is_letter(c) && !(colons && c == ':') && !(name.size > 0 && is_digit(c))) {
            break;
        }
        name.size++;
    }
    if (name.size > RT_EXPOSITION_NAME) {
        name.size = 0;
    }
    rest->at += name.size;
    rest->size -= name.size;
    return name;
}

static bool take(struct piece *rest, char c)
{
    bool there = rest->size > 0 && rest->at[0] == c;
    rest->at += there;
    rest->size -= there;
    return there;
}

static void skip_blanks(struct piece *rest)
{
    while (take(rest, ' ') || take(rest, '\t')) {
    }
}

static struct piece take_word(struct piece *rest)
{
    struct piece word = {rest->at, 0};
    skip_blanks(rest);
    word.at = rest->at;
    while (rest->size > 0 && rest->at[0] != ' ' && rest->at[0] != '\t') {
        rest->at++;
        rest->size--;
        word.size++;
    }
    return word;
}

/* No control characters, and UTF-8. */
static bool is_text(struct piece piece)
{
    for (size_t i = 0; i < piece.size; i++) {
        if ((unsigned char)piece.at[i] < ' ' || piece.at[i] == 0x7f) {
            return false;
        }
    }
    return bt_utf8_valid_size(piece.at, piece.size) == piece.size;
}

/* As both strtod and other readers of the format have it. */
static bool is_number(struct piece word)
{
    char text[48], *end;
    if (same(word, "NaN") || same(word, "+Inf") || same(word, "-Inf")) {
        return true;
    }
    if (word.size == 0 || word.size >= sizeof text) {
        return false;
    }
    memcpy(text, word.at, word.size);
    text[word.size] = '\0';
    if (strspn(text, "0123456789+-.eE") != word.size) {
        return false;
    }
    (void)strtod(text, &end);
    return *end == '\0';
}

/* ---- samples */

static bool take_value(struct piece *rest, struct piece *ret_value)
{
    if (!take(rest, '"')) {
        return false;
    }
    struct piece value = {rest->at, 0};
    while (rest->size > 0 && rest->at[0] != '"') {
        size_t step = 1;
        if (rest->at[0] == '\\') {
            if (rest->size < 2 || !strchr("\\\"n", rest->at[1]) || rest->at[1] == '\0') {
                return false;
            }
            step = 2;
        }
        rest->at += step;
        rest->size -= step;
        value.size += step;
    }
    *ret_value = value;
    return take(rest, '"') && is_text(value);
}

static bool take_label(struct piece *rest, struct sample *sample)
{
    if (sample->label_count == RT_EXPOSITION_LABELS) {
        return false;
    }
    struct label *label = &sample->labels[sample->label_count];
    skip_blanks(rest);
    label->name = take_name(rest, false);
    skip_blanks(rest);
    if (label->name.size == 0 || !take(rest, '=')) {
        return false;
    }
    skip_blanks(rest);
    if (!take_value(rest, &label->value)) {
        return false;
    }
    if (same(label->name, "worker")) {
        label->name = (struct piece){"exported_worker", strlen("exported_worker")};
    }
    for (uint32_t i = 0; i < sample->label_count; i++) {
        if (equal(sample->labels[i].name, label->name)) {
            return false;
        }
    }
    sample->label_count++;
    skip_blanks(rest);
    return label->name.size < 2 || memcmp(label->name.at, "__", 2) != 0;
}

static bool take_labels(struct piece *rest, struct sample *sample)
{
    if (!take(rest, '{')) {
        return true;
    }
    skip_blanks(rest);
    while (!take(rest, '}')) {
        if (!take_label(rest, sample)) {
            return false;
        }
        if (!take(rest, ',') && (rest->size == 0 || rest->at[0] != '}')) {
            return false;
        }
        skip_blanks(rest);
    }
    return true;
}

/* A time stamp is read over: the samples are of now. */
static bool read_sample(struct piece line, struct sample *sample)
{
    sample->label_count = 0;
    sample->name = take_name(&line, true);
    skip_blanks(&line);
    if (sample->name.size == 0 || !take_labels(&line, sample)) {
        return false;
    }
    sample->value = take_word(&line);
    struct piece stamp = take_word(&line);
    skip_blanks(&line);
    return is_number(sample->value) && (stamp.size == 0 || is_number(stamp)) && line.size == 0;
}

static const struct label *find_label(const struct sample *sample, const char *name)
{
    for (uint32_t i = 0; i < sample->label_count; i++) {
        if (same(sample->labels[i].name, name)) {
            return &sample->labels[i];
        }
    }
    return NULL;
}

static int by_name(const void *left, const void *right)
{
    const struct label *a = left, *b = right;
    size_t size = a->name.size < b->name.size ? a->name.size : b->name.size;
    int order = memcmp(a->name.at, b->name.at, size);
    return order != 0 ? order : (a->name.size > b->name.size) - (a->name.size < b->name.size);
}

/* Whether the page has not said this before. Puts the labels in order. */
static bool is_new(struct merge *merge, struct sample *sample)
{
    uint64_t hash = hash_add(HASH_BEGIN, sample->name);
    qsort(sample->labels, sample->label_count, sizeof sample->labels[0], by_name);
    for (uint32_t i = 0; i < sample->label_count; i++) {
        hash = hash_add(hash_add(hash, sample->labels[i].name), sample->labels[i].value);
    }
    if (bt_map_get(&merge->series, hash)) {
        return false;
    }
    merge->failed |= !bt_map_put(&merge->series, hash, merge);
    return true;
}

/* ---- families */

static struct family *find_family(const struct merge *merge, struct piece name)
{
    struct family *family = bt_map_get(&merge->by_name, hash_add(HASH_BEGIN, name));
    while (family && !equal(family->name, name)) {
        family = family->same_hash;
    }
    return family;
}

static bool keep_family(struct merge *merge, struct family *family)
{
    uint64_t hash = hash_add(HASH_BEGIN, family->name);
    if (merge->count == merge->capacity) {
        size_t capacity = merge->capacity * 2 + 64;
        struct family **grown = realloc(merge->families, capacity * sizeof *grown);
        if (!grown) {
            return false;
        }
        merge->families = grown;
        merge->capacity = capacity;
    }
    family->same_hash = bt_map_get(&merge->by_name, hash);
    if (!bt_map_put(&merge->by_name, hash, family)) {
        return false;
    }
    merge->families[merge->count++] = family;
    return true;
}

/* NULL: it may not be. */
static struct family *get_family(struct merge *merge, struct piece name)
{
    struct family *family = find_family(merge, name);
    size_t reserved = strlen(RT_EXPOSITION_RESERVED);
    if (family || merge->page_families == RT_EXPOSITION_FAMILIES ||
        (name.size >= reserved && memcmp(name.at, RT_EXPOSITION_RESERVED, reserved) == 0)) {
        return family;
    }
    family = calloc(1, sizeof *family);
    if (family) {
        family->name = name;
    }
    if (!family || !keep_family(merge, family)) {
        free(family);
        merge->failed = true;
        return NULL;
    }
    merge->page_families++;
    return family;
}

/* What most say; of equals the first here. */
static enum type type_of(const struct family *family)
{
    enum type best = UNTYPED;
    for (enum type type = UNTYPED; type < TYPES; type++) {
        if (family->votes[type] > family->votes[best]) {
            best = type;
        }
    }
    return best;
}

static bool ends_with(struct piece name, const char *suffix, struct piece *ret_base)
{
    size_t size = strlen(suffix);
    if (name.size <= size || memcmp(name.at + name.size - size, suffix, size) != 0) {
        return false;
    }
    *ret_base = (struct piece){name.at, name.size - size};
    return true;
}

/* The histogram or summary that has a sample of this name. */
static struct family *compound_of(const struct merge *merge, const struct sample *sample)
{
    struct piece base;
    bool bucket = ends_with(sample->name, "_bucket", &base);
    if (!bucket && !ends_with(sample->name, "_sum", &base) &&
        !ends_with(sample->name, "_count", &base)) {
        return NULL;
    }
    struct family *family = find_family(merge, base);
    enum type type = family ? type_of(family) : UNTYPED;
    return type == HISTOGRAM || (type == SUMMARY && !bucket) ? family : NULL;
}

/* Whether a family of this type has such a sample. */
static bool fits(const struct sample *sample, const struct family *family)
{
    struct piece base;
    enum type type = type_of(family);
    const struct label *bound = NULL;
    if (type == HISTOGRAM) {
        if (equal(sample->name, family->name)) {
            return false;
        }
        bound = find_label(sample, "le");
        return ends_with(sample->name, "_bucket", &base) ? bound && is_number(bound->value)
                                                         : bound == NULL;
    }
    if (type == SUMMARY && equal(sample->name, family->name)) {
        bound = find_label(sample, "quantile");
        return bound && is_number(bound->value);
    }
    return true;
}

/* ---- output */

static void append(struct merge *merge, struct family *family, const char *text, size_t size)
{
    if (family->size + size > family->capacity) {
        size_t capacity = (family->size + size) * 2;
        char *grown = realloc(family->lines, capacity);
        if (!grown) {
            merge->failed = true;
            return;
        }
        family->lines = grown;
        family->capacity = capacity;
    }
    memcpy(family->lines + family->size, text, size);
    family->size += size;
}

static void append_text(struct merge *merge, struct family *family, const char *text)
{
    append(merge, family, text, strlen(text));
}

static void append_sample(struct merge *merge, struct family *family, const struct sample *sample)
{
    append(merge, family, sample->name.at, sample->name.size);
    append_text(merge, family, "{worker=\"");
    append_text(merge, family, merge->page->worker);
    append_text(merge, family, "\"");
    for (uint32_t i = 0; i < sample->label_count; i++) {
        const struct label *label = &sample->labels[i];
        append_text(merge, family, ",");
        append(merge, family, label->name.at, label->name.size);
        append_text(merge, family, "=\"");
        append(merge, family, label->value.at, label->value.size);
        append_text(merge, family, "\"");
    }
    append_text(merge, family, "} ");
    append(merge, family, sample->value.at, sample->value.size);
    append_text(merge, family, "\n");
}

static void print(const struct family *family, FILE *out)
{
    if (family->size == 0) {
        return;
    }
    if (family->help.at) {
        fprintf(out, "# HELP %.*s %.*s\n", (int)family->name.size, family->name.at,
                (int)family->help.size, family->help.at);
    }
    fprintf(out, "# TYPE %.*s %s\n", (int)family->name.size, family->name.at,
            type_names[type_of(family)]);
    fwrite(family->lines, 1, family->size, out);
}

/* ---- lines */

/* In a HELP a backslash begins "\\" or "\n". */
static bool is_help(struct piece text)
{
    for (size_t i = 0; i < text.size; i++) {
        if (text.at[i] == '\\' && (++i == text.size || (text.at[i] != '\\' && text.at[i] != 'n'))) {
            return false;
        }
    }
    return is_text(text);
}

/* After "# ". False: what it says is left out. Comments that say nothing are fine. */
static bool read_comment(struct merge *merge, struct piece line)
{
    struct piece word = take_word(&line);
    bool help = same(word, "HELP");
    if (!help && !same(word, "TYPE")) {
        return true;
    }
    struct piece said = take_word(&line), name = take_name(&said, true);
    if (name.size == 0 || said.size > 0) {
        return false;
    }
    take(&line, ' ');
    struct family *family = is_help(line) ? get_family(merge, name) : NULL;
    if (!family) {
        return false;
    }
    if (help) {
        if (!family->help.at) {
            family->help = line;
        }
        return true;
    }
    enum type type = UNTYPED;
    while (type < TYPES && !same(line, type_names[type])) {
        type++;
    }
    if (type == TYPES || family->voter == merge->page) {
        return false;
    }
    family->voter = merge->page;
    family->votes[type]++;
    return true;
}

static bool add_sample(struct merge *merge, struct piece line)
{
    struct sample sample;
    if (!read_sample(line, &sample)) {
        return false;
    }
    struct family *family = compound_of(merge, &sample);
    if (!family) {
        family = get_family(merge, sample.name);
    }
    if (!family || !fits(&sample, family) || !is_new(merge, &sample)) {
        return false;
    }
    append_sample(merge, family, &sample);
    return true;
}

/* All comments of all pages come first, as they say what the samples are. */
static bool read_line(struct merge *merge, struct piece line, bool comments)
{
    if (line.size == 0) {
        return true;
    }
    if (line.size > RT_EXPOSITION_LINE) {
        return comments; /* told once */
    }
    if (take(&line, '#')) {
        return !comments || read_comment(merge, line);
    }
    return comments || add_sample(merge, line);
}

static void read_page(struct merge *merge, struct rt_exposition_page *page, bool comments)
{
    struct piece rest = {page->text, page->size};
    uint32_t lines = 0;
    merge->page = page;
    merge->page_families = comments ? 0 : merge->page_families;
    while (rest.size > 0 && !merge->failed) {
        const char *newline = memchr(rest.at, '\n', rest.size);
        struct piece line = {rest.at, newline ? (size_t)(newline - rest.at) : rest.size};
        size_t taken = line.size + (newline != NULL);
        rest.at += taken;
        rest.size -= taken;
        if (lines++ >= RT_EXPOSITION_LINES) {
            page->rejected += !comments;
        } else if (!read_line(merge, line, comments)) {
            page->rejected++;
        }
    }
}

static void merge_finish(struct merge *merge)
{
    for (size_t i = 0; i < merge->count; i++) {
        free(merge->families[i]->lines);
        free(merge->families[i]);
    }
    free(merge->families);
    bt_map_finish(&merge->by_name);
    bt_map_finish(&merge->series);
}

bool rt_exposition_merge(struct rt_exposition_page *pages, size_t count, FILE *out)
{
    struct merge merge = {0};
    bt_map_init(&merge.by_name);
    bt_map_init(&merge.series);
    for (size_t i = 0; i < count; i++) {
        pages[i].rejected = 0;
        read_page(&merge, &pages[i], true);
    }
    for (size_t i = 0; i < count; i++) {
        merge.page_families = 0;
        bt_map_finish(&merge.series);
        bt_map_init(&merge.series);
        read_page(&merge, &pages[i], false);
    }
    for (size_t i = 0; i < merge.count && !merge.failed; i++) {
        print(merge.families[i], out);
    }
    bool done = !merge.failed;
    merge_finish(&merge);
    return done;
}
