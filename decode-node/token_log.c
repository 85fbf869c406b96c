#include "decode-node/token_log.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 64

static bool reserve(struct dc_token_log *log, uint32_t more)
{
    uint64_t needed = (uint64_t)log->count + more;
    uint64_t capacity = log->capacity ? log->capacity : FIRST_CAPACITY;
    while (capacity < needed) {
        capacity *= 2;
    }
    if (capacity == log->capacity) {
        return true;
    }
    uint32_t *ids = capacity <= UINT32_MAX ? realloc(log->ids, capacity * sizeof(*ids)) : NULL;
    if (!ids) {
        return false;
    }
    log->ids = ids;
    log->capacity = (uint32_t)capacity;
    return true;
}

bool dc_token_log_add(struct dc_token_log *log, const uint32_t *ids, uint32_t count)
{
    if (!reserve(log, count)) {
        return false;
    }
    if (count > 0) {
        memcpy(log->ids + log->count, ids, count * sizeof(*ids));
    }
    log->count += count;
    return true;
}

void dc_token_log_finish(struct dc_token_log *log)
{
    free(log->ids);
    *log = (struct dc_token_log){0};
}
