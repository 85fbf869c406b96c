#include "router/request_id.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"

bool rt_request_id_valid(const char *name)
{
    size_t size = 0;
    while (size <= RT_REQUEST_ID_MAX && name[size] > ' ' && name[size] <= '~') {
        size++;
    }
    return size > 0 && size <= RT_REQUEST_ID_MAX && name[size] == '\0';
}

void rt_request_id_make(char ret_name[RT_REQUEST_ID_MAX + 1])
{
    snprintf(ret_name, RT_REQUEST_ID_MAX + 1, "%016" PRIx64 "%016" PRIx64, bt_random_entropy(),
             bt_random_entropy());
}

/* ---- digests: each part with its size, so that no two lists of parts look alike */

static void add_number(struct rt_digest_work *work, uint64_t number)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(number >> 8 * i);
    }
    rt_digest_add(work, bytes, sizeof bytes);
}

static void add_part(struct rt_digest_work *work, const void *data, size_t size)
{
    add_number(work, size);
    if (size > 0) {
        rt_digest_add(work, data, size);
    }
}

/* NULL: no memory. */
static struct rt_digest_work *begin(const char *use, const char *tenant, const char *name,
                                    uint32_t index)
{
    struct rt_digest_work *work = rt_digest_begin();
    if (work) {
        add_part(work, use, strlen(use));
        add_part(work, tenant, strlen(tenant));
        add_part(work, name, strlen(name));
        add_number(work, index);
    }
    return work;
}

static uint64_t number_at(const struct rt_digest *digest, size_t offset)
{
    uint64_t number = 0;
    for (size_t i = 8; i-- > 0;) {
        number = number << 8 | digest->bytes[offset + i];
    }
    return number;
}

bool rt_request_seed(const char *tenant, const char *name, uint32_t index, uint64_t *ret_seed)
{
    struct rt_digest_work *work = begin("baton seed", tenant, name, index);
    if (!work) {
        return false;
    }
    struct rt_digest digest;
    rt_digest_end(work, &digest);
    *ret_seed = number_at(&digest, 0);
    return true;
}

uint64_t rt_request_number(const struct rt_digest *key)
{
    uint64_t number = number_at(key, 0);
    return number ? number : 1;
}

bool rt_request_key(const char *tenant, const struct rt_generation *generation,
                    const Baton__V1__SamplingParams *sampling, struct rt_digest *ret_key)
{
    size_t packed_size = baton__v1__sampling_params__get_packed_size(sampling);
    uint8_t *packed = malloc(packed_size + 1);
    struct rt_digest_work *work =
        packed ? begin("baton resume", tenant, generation->request_id, generation->index) : NULL;
    if (!work) {
        free(packed);
        return false;
    }
    baton__v1__sampling_params__pack(sampling, packed);
    add_part(work, packed, packed_size);
    free(packed);
    /* Of one cluster: all its machines have the same order of bytes. */
    add_part(work, generation->prompt, generation->prompt_tokens * sizeof *generation->prompt);
    add_number(work, generation->keep_special);
    add_number(work, generation->stop_count);
    for (size_t i = 0; i < generation->stop_count; i++) {
        add_part(work, generation->stop[i], strlen(generation->stop[i]));
    }
    rt_digest_end(work, ret_key);
    return true;
}

/* ---- what a client has */

/* NULL: no number up to 2^32 - 2 is there. */
static const char *parse_count(const char *at, uint32_t *ret_count)
{
    uint64_t value = 0;
    const char *end = at;
    for (; *end >= '0' && *end <= '9'; end++) {
        value = value * 10 + (uint64_t)(*end - '0');
        if (value >= UINT32_MAX) {
            return NULL;
        }
    }
    *ret_count = (uint32_t)value;
    return end > at ? end : NULL;
}

enum bt_status rt_resume_parse(const char *text, uint32_t *ret_counts, size_t capacity,
                               struct bt_error *error, size_t *ret_count)
{
    size_t count = 0;
    memset(ret_counts, 0, capacity * sizeof *ret_counts);
    for (const char *at = text;; at++) {
        if (count == capacity) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "must have %zu numbers of tokens at most", capacity);
        }
        at = parse_count(at, &ret_counts[count++]);
        if (!at || (*at != ',' && *at != '\0')) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "must be a number of tokens, or one for each choice: \"7,0,12\"");
        }
        if (*at == '\0') {
            *ret_count = count;
            return BT_OK;
        }
    }
}
