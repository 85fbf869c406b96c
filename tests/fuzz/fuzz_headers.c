/*
 * What clients say of a request in headers: the first byte says of which, the rest is its text.
 * traceparent is checked against the words of the standard, the others against what is promised.
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/status.h"
#include "router/request_id.h"
#include "router/trace_context.h"
#include "tests/fuzz/driver.h"

#define MAX_TEXT    4096
#define GENERATIONS 4

static bool all_of(const char *text, size_t count, const char *set, bool *ret_zero)
{
    *ret_zero = true;
    for (size_t i = 0; i < count; i++) {
        if (text[i] == '\0' || !strchr(set, text[i]))
            return false;
        *ret_zero = *ret_zero && text[i] == '0';
    }
    return true;
}

/* W3C Trace Context, 3.2: version "-" trace-id "-" parent-id "-" flags, and behind these, of later
 * versions alone, more after a dash. */
static bool is_traceparent(const char *text)
{
    static const char hex[] = "0123456789abcdef";
    size_t size = strlen(text);
    bool zero_version, zero_trace, zero_parent, zero;
    if (size < 55 || text[2] != '-' || text[35] != '-' || text[52] != '-')
        return false;
    if (!all_of(text, 2, hex, &zero_version) || !all_of(text + 3, 32, hex, &zero_trace) ||
        !all_of(text + 36, 16, hex, &zero_parent) || !all_of(text + 53, 2, hex, &zero))
        return false;
    if (strncmp(text, "ff", 2) == 0 || zero_trace || zero_parent)
        return false;
    return size == 55 || (!zero_version && text[55] == '-');
}

static void trace_try(const char *text)
{
    struct rt_trace_context context, again;
    char id[RT_TRACE_ID_SIZE], header[RT_TRACEPARENT_SIZE];
    rt_trace_context_begin(text, 0, &context);
    rt_trace_id_write(&context, id);
    BT_ASSERT(context.span != 0 && strspn(id, "0") < 32);
    if (is_traceparent(text)) {
        char parent[17];
        snprintf(parent, sizeof parent, "%016" PRIx64, context.parent);
        BT_ASSERT(memcmp(id, text + 3, 32) == 0 && memcmp(parent, text + 36, 16) == 0);
        BT_ASSERT(context.sampled == (strchr("13579bdf", text[54]) != NULL));
    } else {
        BT_ASSERT(context.parent == 0 && !context.sampled);
    }
    rt_trace_context_write(&context, header);
    BT_ASSERT(is_traceparent(header));
    rt_trace_context_begin(header, 0, &again);
    BT_ASSERT(memcmp(again.trace_id, context.trace_id, RT_TRACE_ID_BYTES) == 0);
    BT_ASSERT(again.parent == context.span && again.sampled == context.sampled);
}

static void resume_try(const char *text)
{
    uint32_t counts[GENERATIONS + 1] = {0}, again[GENERATIONS];
    size_t count = 0, count_again = 0, size = 0;
    struct bt_error error = {0};
    counts[GENERATIONS] = 77;
    enum bt_status status = rt_resume_parse(text, counts, GENERATIONS, &error, &count);
    BT_ASSERT(counts[GENERATIONS] == 77);
    if (status != BT_OK) {
        BT_ASSERT(status == BT_ERR_INVALID_ARGUMENT && error.text[0] != '\0');
        return;
    }
    char written[GENERATIONS * 12 + 1] = "";
    BT_ASSERT(count >= 1 && count <= GENERATIONS);
    for (size_t i = 0; i < count; i++)
        size += (size_t)snprintf(written + size, sizeof written - size, "%s%" PRIu32,
                                 i > 0 ? "," : "", counts[i]);
    BT_ASSERT(rt_resume_parse(written, again, GENERATIONS, &error, &count_again) == BT_OK);
    BT_ASSERT(count_again == count && memcmp(again, counts, count * sizeof *again) == 0);
}

static void id_try(const char *text)
{
    size_t size = strlen(text);
    bool visible = size > 0 && size <= RT_REQUEST_ID_MAX;
    for (size_t i = 0; i < size; i++)
        visible = visible && text[i] > 0x20 && text[i] < 0x7f;
    BT_ASSERT(rt_request_id_valid(text) == visible);
    uint64_t seed, same;
    BT_ASSERT(rt_request_seed("tenant", text, 0, &seed) && rt_request_seed("tenant", text, 0, &same));
    BT_ASSERT(seed == same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[MAX_TEXT + 1];
    if (size == 0 || size > MAX_TEXT)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    switch (data[0] % 3) {
    case 0:
        trace_try(text);
        break;
    case 1:
        resume_try(text);
        break;
    default:
        id_try(text);
    }
    return 0;
}

/* The kind as a digit, which has the same remainder by 3. */
static const char *const seeds[] = {
    "000-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "0cc-0af7651916cd43dd8448eb211c80319c-00ad6b7169203331-02-what.the-future",
    "000-00000000000000000000000000000001-0000000000000001-00",
    "17",
    "10,1,22,4294967295",
    "14294967296,5",
    "2chatcmpl-7d3f.a_b:c/d",
    "2~!@#$%^&*()_+{}|:\"<>?`-=[];',./ \x7f",
};

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    return fuzz_seed_text(seeds, sizeof seeds / sizeof *seeds, index, ret_data, capacity);
}
