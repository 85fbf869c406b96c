#include "prefill-node/plan.h"

#include <inttypes.h>
#include <string.h>

#include "common/kvcache/layout.h"

#define HEAD_WORDS  1
#define CHUNK_WORDS 5

static uint32_t page_count(const struct pf_plan_chunk *chunk)
{
    return bt_kv_pages_for((uint64_t)chunk->start + chunk->rows);
}

/* No page comes twice in one prompt. */
static uint32_t max_chunk_pages(const struct pf_plan_limits *limits)
{
    uint32_t pages = bt_kv_pages_for(limits->max_tokens);
    return pages < limits->pool_pages ? pages : limits->pool_pages;
}

uint32_t pf_plan_max_words(const struct pf_plan_limits *limits)
{
    uint64_t words = HEAD_WORDS + limits->max_rows +
                     (uint64_t)limits->max_chunks * (CHUNK_WORDS + max_chunk_pages(limits));
    return words < UINT32_MAX ? (uint32_t)words : UINT32_MAX;
}

uint32_t pf_plan_encode(const struct pf_plan_chunk *chunks, uint32_t count,
                        const struct pf_plan_limits *limits, uint32_t *ret_words)
{
    BT_ASSERT(count > 0 && count <= limits->max_chunks);
    uint32_t *word = ret_words, pages = 0, rows = 0;
    *word++ = count;
    for (uint32_t i = 0; i < count; i++) {
        const struct pf_plan_chunk *chunk = &chunks[i];
        *word++ = (uint32_t)chunk->serial;
        *word++ = (uint32_t)(chunk->serial >> 32);
        *word++ = chunk->start;
        *word++ = chunk->rows;
        *word++ = chunk->is_last;
        pages += page_count(chunk);
        rows += chunk->rows;
    }
    BT_ASSERT(HEAD_WORDS + count * CHUNK_WORDS + pages + rows <= pf_plan_max_words(limits));
    for (uint32_t i = 0; i < count; i++) {
        memcpy(word, chunks[i].pages, page_count(&chunks[i]) * sizeof(*word));
        word += page_count(&chunks[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        memcpy(word, chunks[i].tokens, chunks[i].rows * sizeof(*word));
        word += chunks[i].rows;
    }
    return (uint32_t)(word - ret_words);
}

static enum bt_status read_chunk(const uint32_t *words, const struct pf_plan_limits *limits,
                                 struct bt_error *error, struct pf_plan_chunk *ret_chunk)
{
    *ret_chunk = (struct pf_plan_chunk){
        .serial = (uint64_t)words[1] << 32 | words[0],
        .start = words[2],
        .rows = words[3],
        .is_last = words[4] == 1,
    };
    uint64_t end = (uint64_t)ret_chunk->start + ret_chunk->rows;
    if (ret_chunk->serial == 0 || words[4] > 1) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "plan: a chunk of no job");
    }
    if (ret_chunk->rows == 0 || end > limits->max_tokens) {
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "plan: %" PRIu32 " rows from %" PRIu32 " on, prompts have %" PRIu32,
                            ret_chunk->rows, ret_chunk->start, limits->max_tokens);
    }
    return BT_OK;
}

/* The chunks without their pages and tokens; how many there are of these. */
static enum bt_status read_chunks(const uint32_t *words, uint32_t count,
                                  const struct pf_plan_limits *limits, struct bt_error *error,
                                  struct pf_plan_chunk *ret_chunks, uint64_t *ret_pages,
                                  uint64_t *ret_rows)
{
    uint64_t pages = 0, rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum bt_status status =
            read_chunk(&words[HEAD_WORDS + i * CHUNK_WORDS], limits, error, &ret_chunks[i]);
        if (status != BT_OK) {
            return status;
        }
        for (uint32_t k = 0; k < i; k++) {
            if (ret_chunks[k].serial == ret_chunks[i].serial) {
                return bt_error_set(error, BT_ERR_PROTOCOL, "plan: a job comes twice");
            }
        }
        pages += page_count(&ret_chunks[i]);
        rows += ret_chunks[i].rows;
    }
    if (rows > limits->max_rows) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "plan: %" PRIu64 " rows, at most %" PRIu32,
                            rows, limits->max_rows);
    }
    *ret_pages = pages;
    *ret_rows = rows;
    return BT_OK;
}

static enum bt_status check_below(const char *what, const uint32_t *words, uint64_t count,
                                  uint32_t limit, struct bt_error *error)
{
    for (uint64_t i = 0; i < count; i++) {
        if (words[i] >= limit) {
            return bt_error_set(error, BT_ERR_PROTOCOL, "plan: %s %" PRIu32 " of %" PRIu32, what,
                                words[i], limit);
        }
    }
    return BT_OK;
}

enum bt_status pf_plan_decode(const uint32_t *words, uint32_t word_count,
                              const struct pf_plan_limits *limits, struct bt_error *error,
                              struct pf_plan_chunk *ret_chunks, uint32_t *ret_count)
{
    uint32_t count = word_count > 0 ? words[0] : 0;
    if (count == 0 || count > limits->max_chunks ||
        word_count < HEAD_WORDS + (uint64_t)count * CHUNK_WORDS) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "plan: %" PRIu32 " chunks in %" PRIu32 " words",
                            count, word_count);
    }
    uint64_t pages = 0, rows = 0;
    enum bt_status status = read_chunks(words, count, limits, error, ret_chunks, &pages, &rows);
    if (status != BT_OK) {
        return status;
    }
    const uint32_t *page = words + HEAD_WORDS + count * CHUNK_WORDS, *token = page + pages;
    if (word_count != HEAD_WORDS + (uint64_t)count * CHUNK_WORDS + pages + rows) {
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "plan: %" PRIu64 " pages and %" PRIu64 " rows in %" PRIu32 " words",
                            pages, rows, word_count);
    }
    status = check_below("page", page, pages, limits->pool_pages, error);
    if (status == BT_OK) {
        status = check_below("token", token, rows, limits->vocab_size, error);
    }
    if (status != BT_OK) {
        return status;
    }
    for (uint32_t i = 0; i < count; i++) {
        ret_chunks[i].pages = page;
        ret_chunks[i].tokens = token;
        page += page_count(&ret_chunks[i]);
        token += ret_chunks[i].rows;
    }
    *ret_count = count;
    return BT_OK;
}
