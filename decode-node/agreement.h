/*
 * What the ranks of a group agree on before each pass: which of them have rows, who drains, who
 * leaves, whether steps are begun behind each other, and whatever common/model/rank.h has to say.
 * It goes from host to host, and may come while a step is under way. Of one rank it is no exchange.
 * Step thread, between create and destroy of the stepper.
 */
#ifndef BATON_DECODE_NODE_AGREEMENT_H
#define BATON_DECODE_NODE_AGREEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/rank.h"

/* What a rank says of itself. */
enum dc_rank_flag {
    DC_RANK_LEAVES = 1,  /* all ranks stop in order, together */
    DC_RANK_BUSY = 2,    /* has requests, or pages that are still written; said by who drains */
    DC_RANK_GOES_ON = 4, /* see `goes_on` of struct dc_consent */
};

/*
 * Whether the group drains: odd, it takes nothing new; even, it serves. A rank that is told to
 * drain or to resume goes to the next number, and all follow the greatest that any of them says.
 * So the last word counts, and of words that cross each other the drain.
 */
static inline bool dc_will_drains(uint64_t will)
{
    return will & 1;
}

struct dc_agreement {
    struct bt_rank *rank; /* NULL: alone, and nothing is counted */
    struct bt_group *group;
    uint32_t size;
    uint64_t *all; /* [size][words] */
};

/* What all said, the same on all ranks. */
struct dc_consent {
    uint32_t largest; /* rows of the batch of the rank that has the most; 0: there is no step */
    bool steady;      /* every row of every rank draws */
    uint32_t prompts; /* the same of rows of prompts; 0: there is no pass of these */
    uint32_t drawing; /* sequences that draw, of the rank that has the most of them */
    bool leaves;
    uint64_t will;
    bool drained; /* all follow that will, to drain, and none is busy */
    /* There is a step, of the batch alone, and all ranks can have it under way while they agree on
     * the one behind it; where one is under way already: all can begin this behind it, and nothing
     * has to be done between the two. */
    bool goes_on;
};

bool dc_agreement_init(struct dc_agreement *agreement, struct bt_rank *rank); /* false: no memory */
void dc_agreement_finish(struct dc_agreement *agreement);

/* What this rank has for the next pass; as in struct dc_step. */
struct dc_intent {
    uint32_t rows, prompt_rows, drawing;
    unsigned flags; /* enum dc_rank_flag */
    uint64_t will;  /* dc_will_drains */
};

/* Both fail as the group does; `begin` returns at once, `end` waits for the others. */
enum bt_status dc_agreement_begin(struct dc_agreement *agreement, const struct dc_intent *intent,
                                  struct bt_error *error);
enum bt_status dc_agreement_end(struct dc_agreement *agreement, struct bt_error *error,
                                struct dc_consent *ret_consent);

/* After an `end` that a step or a rest follows: experts may move here, but where goes_on. */
enum bt_status dc_agreement_keep(struct dc_agreement *agreement, struct bt_error *error);

/* Fills *error with why the group is over, or else with the status alone. */
enum bt_status dc_agreement_broken(const struct dc_agreement *agreement, enum bt_status status,
                                   struct bt_error *error);

#endif
