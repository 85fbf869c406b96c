#include "decode-node/agreement.h"

#include <stdlib.h>

#include "common/base/clock.h"

enum { WORD_ROWS, WORD_PROMPT_ROWS, WORD_DRAWING, WORD_FLAGS, WORD_WILL, OWN_WORDS };
#define WORDS (OWN_WORDS + BT_RANK_WORDS)

bool dc_agreement_init(struct dc_agreement *agreement, struct bt_rank *rank)
{
    uint32_t size = rank ? bt_rank_size(rank) : 1;
    *agreement = (struct dc_agreement){
        .rank = rank,
        .group = rank ? bt_rank_group(rank) : NULL,
        .size = size,
        .all = calloc(size, WORDS * sizeof(uint64_t)),
    };
    return agreement->all != NULL;
}

void dc_agreement_finish(struct dc_agreement *agreement)
{
    free(agreement->all);
    agreement->all = NULL;
}

enum bt_status dc_agreement_broken(const struct dc_agreement *agreement, enum bt_status status,
                                   struct bt_error *error)
{
    const char *why = agreement->group ? bt_group_error(agreement->group) : "";
    return bt_error_set(error, status, "group: %s", *why ? why : bt_status_name(status));
}

enum bt_status dc_agreement_begin(struct dc_agreement *agreement, const struct dc_intent *intent,
                                  struct bt_error *error)
{
    uint64_t words[WORDS] = {[WORD_ROWS] = intent->rows,
                             [WORD_PROMPT_ROWS] = intent->prompt_rows,
                             [WORD_DRAWING] = intent->drawing,
                             [WORD_FLAGS] = intent->flags,
                             [WORD_WILL] = intent->will};
    if (agreement->rank) {
        bt_rank_words(agreement->rank, bt_clock_now_ns(), &words[OWN_WORDS]);
    }
    if (!agreement->group) {
        for (uint32_t i = 0; i < WORDS; i++) {
            agreement->all[i] = words[i];
        }
        return BT_OK;
    }
    enum bt_status status = bt_group_agree_begin(agreement->group, words, WORDS);
    return status == BT_OK ? BT_OK : dc_agreement_broken(agreement, status, error);
}

static struct dc_consent consent_of(const struct dc_agreement *agreement)
{
    struct dc_consent consent = {.steady = true, .goes_on = true};
    for (uint32_t r = 0; r < agreement->size; r++) {
        const uint64_t *words = &agreement->all[(size_t)r * WORDS];
        uint64_t flags = words[WORD_FLAGS];
        if (words[WORD_ROWS] > consent.largest) {
            consent.largest = (uint32_t)words[WORD_ROWS];
        }
        if (words[WORD_PROMPT_ROWS] > consent.prompts) {
            consent.prompts = (uint32_t)words[WORD_PROMPT_ROWS];
        }
        if (words[WORD_DRAWING] > consent.drawing) {
            consent.drawing = (uint32_t)words[WORD_DRAWING];
        }
        consent.steady &= words[WORD_ROWS] == words[WORD_DRAWING];
        consent.leaves |= (flags & DC_RANK_LEAVES) != 0;
        consent.goes_on &= (flags & DC_RANK_GOES_ON) != 0;
        consent.will = words[WORD_WILL] > consent.will ? words[WORD_WILL] : consent.will;
    }
    consent.drained = dc_will_drains(consent.will);
    for (uint32_t r = 0; r < agreement->size; r++) {
        const uint64_t *words = &agreement->all[(size_t)r * WORDS];
        consent.drained &=
            words[WORD_WILL] == consent.will && (words[WORD_FLAGS] & DC_RANK_BUSY) == 0;
    }
    consent.goes_on &=
        consent.largest > 0 && consent.prompts == 0 && consent.steady && !consent.leaves &&
        !(agreement->rank && bt_rank_acts(agreement->rank, &agreement->all[OWN_WORDS], WORDS));
    return consent;
}

enum bt_status dc_agreement_end(struct dc_agreement *agreement, struct bt_error *error,
                                struct dc_consent *ret_consent)
{
    enum bt_status status =
        agreement->group ? bt_group_agree_finish(agreement->group, agreement->all) : BT_OK;
    if (status != BT_OK) {
        return dc_agreement_broken(agreement, status, error);
    }
    *ret_consent = consent_of(agreement);
    return BT_OK;
}

enum bt_status dc_agreement_keep(struct dc_agreement *agreement, struct bt_error *error)
{
    return agreement->rank
               ? bt_rank_agreed(agreement->rank, &agreement->all[OWN_WORDS], WORDS, error)
               : BT_OK;
}
