/* The ids of a sequence's output from its first token on: 4 bytes a token, in memory that grows by
 * doubling. Plain data, one thread. */
#ifndef BATON_DECODE_NODE_TOKEN_LOG_H
#define BATON_DECODE_NODE_TOKEN_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct dc_token_log {
    uint32_t *ids; /* [count] */
    uint32_t count, capacity;
};

/* False: no memory, and the log is as it was. */
bool dc_token_log_add(struct dc_token_log *log, const uint32_t *ids, uint32_t count);
/* Empty again. A zeroed one is fine. */
void dc_token_log_finish(struct dc_token_log *log);

#endif
