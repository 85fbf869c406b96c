/* The passes of logits.h, by instruction set. */
#ifndef BATON_COMMON_MODEL_LOGITS_LANES_H
#define BATON_COMMON_MODEL_LOGITS_LANES_H

#include "common/model/logits.h"

extern const struct bt_logits_passes bt_logits_plain;
extern const struct bt_logits_passes bt_logits_avx2;
extern const struct bt_logits_passes bt_logits_avx512;

#endif
