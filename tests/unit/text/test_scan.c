/* Rules found by table against the same rules on PCRE2, and cuts against what they promise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/split.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define ROUNDS     3000
#define MAX_TEXT   4096
#define CHUNK      2000 /* code points of one text */
#define MAX_PIECES (8 * CHUNK)

struct pieces {
    uint32_t ends[MAX_PIECES];
    size_t count;
    const char *text;
};

static struct pieces slow, fast, joined;

/* The same rules twice: on PCRE2, and specialised. */
struct pair {
    struct bt_splitter slow, fast;
    struct bt_split_scratch *scratch;
};

static void pair_init(struct pair *pair, const char *const *rules, size_t count)
{
    *pair = (struct pair){.scratch = bt_split_scratch_create()};
    assert_non_null(pair->scratch);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(bt_splitter_add(&pair->slow, rules[i], NULL), BT_OK);
        assert_int_equal(bt_splitter_add(&pair->fast, rules[i], NULL), BT_OK);
    }
    assert_int_equal(bt_splitter_specialise(&pair->fast, NULL), BT_OK);
}

static void pair_finish(struct pair *pair)
{
    bt_splitter_finish(&pair->slow);
    bt_splitter_finish(&pair->fast);
    bt_split_scratch_destroy(pair->scratch);
}

static enum bt_status take(void *context, const char *piece, size_t size, struct bt_error *error)
{
    struct pieces *pieces = context;
    assert_true(pieces->count < MAX_PIECES);
    pieces->ends[pieces->count++] = (uint32_t)(piece + size - pieces->text);
    (void)error;
    return BT_OK;
}

/* Appends; ends count from `origin`. */
static void split(const struct pair *pair, const struct bt_splitter *splitter, const char *origin,
                  const char *text, size_t size, struct pieces *ret_pieces)
{
    ret_pieces->text = origin;
    assert_int_equal(bt_splitter_run(splitter, pair->scratch, text, size, take, ret_pieces, NULL),
                     BT_OK);
}

static void fail_text(const char *what, const char *text, size_t size)
{
    char hex[512] = "";
    for (size_t i = 0; i < size && i < 200; i++)
        snprintf(hex + 2 * i, 3, "%02x", (unsigned char)text[i]);
    fail_msg("%s differ for %zu bytes: %s", what, size, hex);
}

static bool same_pieces(const struct pieces *a, const struct pieces *b)
{
    return a->count == b->count && memcmp(a->ends, b->ends, a->count * sizeof *a->ends) == 0;
}

static void check_text(const struct pair *pair, const char *text, size_t size)
{
    slow.count = fast.count = 0;
    split(pair, &pair->slow, text, text, size, &slow);
    split(pair, &pair->fast, text, text, size, &fast);
    if (!same_pieces(&slow, &fast))
        fail_text("pieces", text, size);
}

/* On PCRE2, both parts give the pieces of the whole. Returns the cuts. */
static size_t check_cuts(const struct pair *pair, const char *text, size_t size)
{
    size_t cuts = 0;
    slow.count = 0;
    split(pair, &pair->slow, text, text, size, &slow);
    for (size_t cut = 0; (cut = bt_splitter_cut(&pair->fast, text, size, cut)) < size; cuts++) {
        joined.count = 0;
        split(pair, &pair->slow, text, text, cut, &joined);
        split(pair, &pair->slow, text, text + cut, size - cut, &joined);
        if (!same_pieces(&slow, &joined))
            fail_text("cut texts", text, size);
    }
    return cuts;
}

static size_t put_code(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = size; i-- > 1; code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((size == 2 ? 0xC0 : size == 3 ? 0xE0 : 0xF0) | code);
    return size;
}

/* Of every kind that the rules tell apart, those at the borders of the ranges among them. */
static const uint32_t kinds[] = {
    'a',     'Z',    'x',     0xE9,    0x3B1,  0x4E00, 0x9FA5,  0x9FA6, 0x3040, 0x3041,
    0x309B,  0x30A0, 0x30FB,  0x30FF,  0x3100, 0xAC00, 0xD7FF,  0x301,  0x93F,  '1',
    '9',     0x663,  0x216B,  0xBD,    '!',    '.',    '~',     '_',    '$',    0x20AC,
    0xFF0C,  0x3002, 0x2019,  ' ',     ' ',    ' ',    '\t',    '\n',   '\n',   '\r',
    0x0B,    0x85,   0xA0,    0x3000,  0x2028, 0x180E, 0x200B,  0x200D, 0,      0x7F,
    0x1F600, 0xFE0F, 0x1D7D8, 0x20000, 0x378,  0xE000, 0x10FFFF};

static uint32_t random_code(uint64_t *state)
{
    if (fixture_random(state, 12) > 0)
        return kinds[fixture_random(state, sizeof kinds / sizeof *kinds)];
    uint32_t code = fixture_random(state, 0x110000);
    return code >= 0xD800 && code <= 0xDFFF ? '?' : code;
}

static size_t random_text(uint64_t *state, char *text, size_t most)
{
    size_t size = 0, wanted = 1 + fixture_random(state, (uint32_t)most);
    while (size < wanted) {
        uint32_t code = random_code(state);
        for (uint32_t times = fixture_random(state, 4) ? 1 : 1 + fixture_random(state, 6);
             times > 0 && size < wanted; times--)
            size += put_code(code, text + size);
    }
    return size;
}

static void check_random(const struct pair *pair, uint64_t *state, bool cuts_expected)
{
    static char text[MAX_TEXT + 4];
    size_t cuts = 0;
    for (int round = 0; round < ROUNDS; round++) {
        size_t size = random_text(state, text, round % 10 ? 40 : 400);
        check_text(pair, text, size);
        cuts += check_cuts(pair, text, size);
    }
    assert_true(cuts_expected == (cuts > ROUNDS));
}

/* Each code point between two characters, in texts of many. */
static void check_all_codes(const struct pair *pair, const char *before, const char *after)
{
    static char text[CHUNK * 16];
    for (uint32_t code = 0; code < 0x110000;) {
        size_t size = 0;
        for (int i = 0; i < CHUNK && code < 0x110000; i++, code++) {
            if (code >= 0xD800 && code <= 0xDFFF)
                continue;
            size += (size_t)sprintf(text + size, "%s", before);
            size += put_code(code, text + size);
            size += (size_t)sprintf(text + size, "%s", after);
        }
        check_text(pair, text, size);
    }
}

static void load_rules(struct pair *pair, const char *name)
{
    json_t *golden = fixture_json(fixture_path("hf_golden.json"));
    const json_t *rules =
        json_object_get(json_array_get(json_object_get(golden, name), 0), "rules");
    const char *list[BT_SPLIT_MAX_RULES];
    size_t count = json_array_size(rules);
    assert_true(count > 0 && count <= BT_SPLIT_MAX_RULES);
    for (size_t i = 0; i < count; i++)
        list[i] = json_string_value(json_array_get(rules, i));
    pair_init(pair, list, count);
    json_decref(golden);
}

static size_t count_scans(const struct pair *pair)
{
    size_t count = 0;
    for (size_t i = 0; i < pair->fast.step_count; i++)
        count += pair->fast.steps[i].scan.kind != BT_SPLIT_SCAN_NONE;
    return count;
}

static void test_v3(void **state)
{
    uint64_t seed = test_seed();
    struct pair pair;
    load_rules(&pair, "split-v3");
    assert_int_equal(count_scans(&pair), 3);
    check_random(&pair, &seed, true);
    check_all_codes(&pair, "a", " b");
    check_all_codes(&pair, " ", "b\n");
    check_all_codes(&pair, "", "");
    pair_finish(&pair);
    (void)state;
}

static void test_v2(void **state)
{
    static const char *const rules[] = {
        "[\r\n]", "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿΑ-Ω]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
        "\\s+$",  "[一-龥ࠀ-一가-퟿]+",      "\\p{N}"};
    uint64_t seed = test_seed();
    struct pair pair;
    pair_init(&pair, rules, sizeof rules / sizeof *rules);
    assert_int_equal(count_scans(&pair), 6);
    check_random(&pair, &seed, true);
    check_all_codes(&pair, "a", " b");
    check_all_codes(&pair, " ", "!");
    pair_finish(&pair);
    (void)state;
}

/* Without the rules that usually stand before them. */
static void test_single_rules(void **state)
{
    static const char *const rules[] = {"\\s+$",       "\\p{N}{1,3}", "[^a-z]+",
                                        "\\s?[\\s!]+", "[\\]x\\\\]+", "\\p{P}"};
    uint64_t seed = test_seed();
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        struct pair pair;
        pair_init(&pair, &rules[i], 1);
        assert_int_equal(count_scans(&pair), 1);
        static char text[MAX_TEXT + 4];
        for (int round = 0; round < ROUNDS; round++) {
            size_t size = random_text(&seed, text, 40);
            check_text(&pair, text, size);
            check_cuts(&pair, text, size);
        }
        pair_finish(&pair);
    }
    (void)state;
}

/* What is not known stays with PCRE2, and then nothing is cut. */
static void test_other_rules(void **state)
{
    uint64_t seed = test_seed();
    struct pair pair;
    static const char *const rules[] = {"\\p{N}{2,3}", "\\s?\\p{L}", "x+y", "\\p{L}*b", "\\P{L}+"};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        pair_init(&pair, &rules[i], 1);
        assert_int_equal(count_scans(&pair), 0);
        check_random(&pair, &seed, false);
        pair_finish(&pair);
    }
    load_rules(&pair, "split-odd");
    assert_true(count_scans(&pair) < pair.fast.step_count);
    for (int round = 0; round < ROUNDS; round++) {
        static char text[MAX_TEXT + 4];
        size_t size = random_text(&seed, text, 40);
        check_text(&pair, text, size);
        check_cuts(&pair, text, size);
    }
    pair_finish(&pair);
    (void)state;
}

static void test_cut_places(void **state)
{
    static const struct {
        const char *text;
        size_t from, cut;
    } cases[] = {
        {"ab cd", 0, 2},      /* after letters */
        {"ab cd", 2, 5},      /* not between a space and its word */
        {"a.\nb", 1, 3},      /* after a line that ended */
        {"..\n\n  b", 0, 7},  /* not in a run of spaces */
        {"12中文", 0, 2},     /* where digits end */
        {"。中文，也", 0, 3}, /* into and out of Han characters */
        {"。中文，也", 4, 9}, {"", 0, 0}, {"abcdef", 0, 6},
    };
    struct pair pair;
    load_rules(&pair, "split-v3");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(
            bt_splitter_cut(&pair.fast, cases[i].text, strlen(cases[i].text), cases[i].from),
            cases[i].cut);
    pair_finish(&pair);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v3),           cmocka_unit_test(test_v2),
        cmocka_unit_test(test_single_rules), cmocka_unit_test(test_other_rules),
        cmocka_unit_test(test_cut_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
