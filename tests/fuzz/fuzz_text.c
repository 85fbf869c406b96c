/*
 * Split rules of known form, found by table and by PCRE2: the same pieces; cut where the splitter
 * says, the same pieces. And what sets words and texts apart in the caches: the word's key is the
 * word, padded. The first byte of the input picks the rules; the rest is text up to where it is no
 * UTF-8 any more.
 */
#include <string.h>

#include "common/base/status.h"
#include "common/text/split.h"
#include "common/text/utf8.h"
#include "common/text/word_cache.h"
#include "tests/fuzz/driver.h"

#define MAX_PIECES 4096

static const char *const v3_rules[] = {
    "\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL};
static const char *const words_rule[] = {
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL};
static const char *const v2_rules[] = {
    "[\r\n]", "\\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",  "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "\\s+$",  "[一-龥ࠀ-一가-퟿]+", "\\p{N}",
    NULL};
static const char *const tail_rule[] = {"\\s+$", NULL};

static const char *const *const rule_sets[] = {v3_rules, words_rule, v2_rules, tail_rule};
#define SETS (sizeof rule_sets / sizeof *rule_sets)

static struct bt_splitter slow[SETS], fast[SETS];
static struct bt_split_scratch *scratch;

struct pieces {
    size_t ends[MAX_PIECES];
    size_t count;
    const char *text;
};

static void load(void)
{
    if (scratch)
        return;
    scratch = bt_split_scratch_create();
    BT_ASSERT(scratch);
    for (size_t set = 0; set < SETS; set++) {
        for (size_t i = 0; rule_sets[set][i]; i++) {
            BT_ASSERT(bt_splitter_add(&slow[set], rule_sets[set][i], NULL) == BT_OK);
            BT_ASSERT(bt_splitter_add(&fast[set], rule_sets[set][i], NULL) == BT_OK);
        }
        BT_ASSERT(bt_splitter_specialise(&fast[set], NULL) == BT_OK);
    }
}

static void check_key(const char *piece, size_t size, size_t readable)
{
    struct bt_word_key padded = {{0}}, key;
    if (size > BT_WORD_CACHE_MAX_BYTES)
        return;
    memcpy(&padded, piece, size);
    key = bt_word_key_of(piece, size, readable);
    BT_ASSERT(memcmp(&key, &padded, sizeof key) == 0);
}

static enum bt_status take(void *context, const char *piece, size_t size, struct bt_error *error)
{
    struct pieces *pieces = context;
    BT_ASSERT(pieces->count < MAX_PIECES && size > 0);
    pieces->ends[pieces->count++] = (size_t)(piece + size - pieces->text);
    (void)error;
    return BT_OK;
}

static void split(const struct bt_splitter *splitter, const char *text, size_t from, size_t to,
                  struct pieces *pieces)
{
    BT_ASSERT(bt_splitter_run(splitter, scratch, text + from, to - from, take, pieces, NULL) ==
              BT_OK);
}

static void check_same(const struct pieces *a, const struct pieces *b)
{
    BT_ASSERT(a->count == b->count);
    BT_ASSERT(memcmp(a->ends, b->ends, a->count * sizeof *a->ends) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    load();
    if (size == 0 || size > MAX_PIECES)
        return 0;
    size_t set = data[0] % SETS;
    const char *text = (const char *)data + 1;
    size_t length = bt_utf8_valid_size(text, size - 1), begin = 0;
    struct pieces expected = {.text = text}, pieces = {.text = text};
    split(&slow[set], text, 0, length, &expected);
    split(&fast[set], text, 0, length, &pieces);
    check_same(&expected, &pieces);
    for (size_t i = 0; i < pieces.count; begin = pieces.ends[i++])
        check_key(text + begin, pieces.ends[i] - begin, length - begin);
    size_t cut = length ? bt_splitter_cut(&fast[set], text, length, data[0] % length) : 0;
    pieces.count = 0;
    split(&slow[set], text, 0, cut, &pieces);
    split(&slow[set], text, cut, length, &pieces);
    check_same(&expected, &pieces);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    static const char *const texts[] = {
        "Hello, world! It's 12345 o'clock.\n\n  Indented\tline \r\n x_1=[2]; //end  ",
        "今天天气很好，我们去3个公园。「カナ・かな」 한국어 漢字\n　全角",
        "e\u0301\u0301 नमस्ते ไทย \u200d👩\u200d👧 🇩🇪 x² ½ ٣٤٥ \u2028\u00a0 \u3000\u180e.",
        "   \n \n\n  ...!!!\r\r\n   a  b",
    };
    size_t count = sizeof texts / sizeof *texts;
    if (index >= count * SETS)
        return 0;
    size_t size = strlen(texts[index % count]);
    BT_ASSERT(size + 1 <= capacity);
    ret_data[0] = (uint8_t)(index / count);
    memcpy(ret_data + 1, texts[index % count], size);
    return size + 1;
}
