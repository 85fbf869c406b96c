/*
 * A worker's ranks, processes each, that step a model together through rank.h, on tokens that come
 * again every PATTERNS steps: so each step's logits are known from any other run.
 */
#ifndef BATON_TESTS_UNIT_MODEL_GROUPS_RANKS_H
#define BATON_TESTS_UNIT_MODEL_GROUPS_RANKS_H

#include "common/model/rank.h"

#define MAX_RANKS   8
#define MAX_LAYERS  8
#define MAX_EXPERTS 32
#define PATTERNS    4
#define ROWS        16 /* of a step on each rank */
#define NOBODY      MAX_RANKS

/* When the ranks stop. */
enum until {
    UNTIL_STEPS,    /* a number of them */
    UNTIL_MOVED,    /* a rebalance came to its end */
    UNTIL_GIVEN_UP, /* two were given up */
    UNTIL_SHOWN,    /* loads were exchanged and shown */
    UNTIL_KILLED,   /* a group's error */
};

struct rank_case {
    const char *dir, *scratch;      /* the model; for files */
    struct bt_rank_options options; /* but for rank, endpoint, secret and timeouts */
    enum bt_model_dtype dtype;
    enum until until;
    uint32_t steps;  /* UNTIL_STEPS */
    uint32_t victim; /* ends itself when its first experts have moved; NOBODY */
    uint32_t poor;   /* has no memory for more than one change's experts; NOBODY */
    uint32_t other;  /* is told of another number of redundant experts; NOBODY */
};

struct rank_outcome {
    enum bt_status status; /* of joining, or the one that ended the steps */
    char text[BT_ERROR_TEXT_SIZE];
    uint64_t logits[PATTERNS]; /* hashes */
    bool unsteady;             /* a pattern's logits were others than before */
    uint32_t steps;
    uint64_t moves, rebalances, ended, dispatched;
    double imbalance;
    double loads[MAX_LAYERS][MAX_EXPERTS]; /* rank 0: by layer of the model */
    int64_t lost_ns;                       /* when a step failed */
};

struct rank_outcomes {
    struct rank_outcome rank[MAX_RANKS];
    int64_t killed_ns;
};

/* Fails the test where a rank ends otherwise than it should. The caller frees it by munmap. */
struct rank_outcomes *ranks_run(const struct rank_case *c);
void ranks_free(struct rank_outcomes *outcomes);

#endif
