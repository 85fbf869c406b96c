/*
 * What one call of bt_tokenizer_encode() works with: scratch memory and the words seen lately. It
 * is expensive to make and warm, so a tokenizer keeps those that are idle; any thread may take and
 * give.
 */
#ifndef BATON_COMMON_TEXT_ENCODER_H
#define BATON_COMMON_TEXT_ENCODER_H

#include "common/text/bpe.h"
#include "common/text/split.h"
#include "common/text/word_cache.h"

#define BT_ENCODER_MAX_IDLE          16
#define BT_ENCODER_MAX_SCRATCH_BYTES (4u << 20) /* of an idle one */

struct bt_encoder {
    struct bt_split_scratch *split;
    struct bt_bpe_scratch bpe;
    struct bt_word_cache *words;
    struct bt_encoder *next; /* in the list of the idle */
};

struct bt_encoder_shelf;

struct bt_encoder_shelf *bt_encoder_shelf_create(void); /* NULL: no memory */
void bt_encoder_shelf_destroy(struct bt_encoder_shelf *shelf);

struct bt_encoder *bt_encoder_take(struct bt_encoder_shelf *shelf); /* NULL: no memory */
void bt_encoder_give(struct bt_encoder_shelf *shelf, struct bt_encoder *encoder);

#endif
