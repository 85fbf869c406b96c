/*
 * What a loaded tokenizer holds: for tokenizer.c, which uses it, and tokenizer_file.c, which fills
 * it. Nobody else includes this.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_DATA_H
#define BATON_COMMON_TEXT_TOKENIZER_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "common/text/added_token.h"
#include "common/text/bpe.h"
#include "common/text/encoder.h"
#include "common/text/split.h"
#include "common/text/text_cache.h"
#include "common/text/vocabulary.h"

struct bt_tokenizer {
    struct bt_vocabulary vocabulary;
    struct bt_bpe bpe;
    struct bt_splitter splitter;
    struct bt_encoder_shelf *encoders;
    struct bt_text_cache *cache; /* NULL: none */
    /* Found in the text first, and found in what is left ("normalized": true in the file). */
    struct bt_added_tokens added, added_normalized;
    int64_t bos, eos; /* -1: none */
    bool add_bos;
};

/* Fills a zeroed tokenizer from tokenizer.json; what was filled in on failure is left to finish. */
enum bt_status bt_tokenizer_file_load(const char *model_dir, struct bt_error *error,
                                      struct bt_tokenizer *tokenizer);

/* bos, eos and add_bos from tokenizer_config.json. */
enum bt_status bt_tokenizer_config_load(const char *model_dir, struct bt_error *error,
                                        struct bt_tokenizer *tokenizer);

#endif
