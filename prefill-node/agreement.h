/* What the ranks of a prefill worker tell each other before each iteration. The thread that
 * computes; a wait of all ranks for all, which ends as group.h says. */
#ifndef BATON_PREFILL_NODE_AGREEMENT_H
#define BATON_PREFILL_NODE_AGREEMENT_H

#include "common/model/rank.h"

struct pf_intent {
    bool leave;          /* rank 0: there is no next iteration, all end in order */
    bool stop;           /* a rank was told to end: rank 0 ends the worker */
    uint32_t plan_words; /* rank 0: of the plan that follows; 0: nothing is computed */
};

/* *ret_all: what rank 0 says, and whether anybody wants to stop. Alone (a rank of one) it costs no
 * more than counting. */
enum bt_status pf_agree(struct bt_rank *rank, const struct pf_intent *mine, struct bt_error *error,
                        struct pf_intent *ret_all);

#endif
