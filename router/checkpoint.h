/*
 * What the router needs of a checkpoint's config.json: it loads no weights and links no engine.
 */
#ifndef BATON_ROUTER_CHECKPOINT_H
#define BATON_ROUTER_CHECKPOINT_H

#include <stdint.h>

#include "common/base/status.h"

struct rt_checkpoint {
    uint32_t max_position_embeddings;
    uint32_t vocab_size;
};

/* Errors: IO, INVALID_ARGUMENT (file and field named). */
enum bt_status rt_checkpoint_read(const char *model_dir, struct bt_error *error,
                                  struct rt_checkpoint *ret_checkpoint);

#endif
