/*
 * Ranks of a group, processes each, that step sequences of their own: an engine on a device, its
 * step thread, and a control thread without any RPC. What the step threads do is seen, and
 * disturbed, where a step ends (the linker wraps dc_engine_end).
 */
#ifndef BATON_TESTS_UNIT_DECODE_GROUP_STEPS_H
#define BATON_TESTS_UNIT_DECODE_GROUP_STEPS_H

#include "decode-node/stepper.h"

#define MAX_RANKS    4
#define MAX_SUBJECTS 8  /* of a rank */
#define EACH         3  /* pages of one at most */
#define MAX_OUTPUT   90 /* tokens */
#define NOBODY       MAX_RANKS

/* The CPU takes one step after the other. */
enum where { ON_CPU, ON_LATE_DEVICE, ON_GPU };

enum fault {
    NO_FAULT,
    KILLED,    /* the victim, with two steps under way */
    HANGS,     /* likewise */
    BREAKS,    /* its device */
    CANCELLED, /* its first sequence, of which two steps are under way */
};

struct steps_scene {
    uint32_t size; /* 1: no group */
    uint32_t of;   /* size 1: as which rank */
    enum where where;
    uint64_t seed;
    uint32_t subjects, max_output;
    bool mixed;   /* prompts, replays, penalties, cancellations at random */
    bool starves; /* a page comes when its sequence has stalled */
    bool moves;   /* experts */
    uint32_t eos[2], eos_count;
    enum fault fault;
    uint32_t victim;
    int64_t timeout_ns; /* of the group; 0: none that is reached */
};

struct steps_subject {
    uint32_t tokens[MAX_OUTPUT], token_count;
    enum dc_finish finish;
    bool stalled;
};

struct steps_report {
    bool left, failed; /* notices */
    char error[BT_ERROR_TEXT_SIZE];
    struct steps_subject subjects[MAX_SUBJECTS];
    uint32_t steps, behind; /* that were begun otherwise, and behind another */
    uint64_t most_waits;    /* for the device, of a step that was begun behind another */
    uint32_t empty;         /* steps behind another in which this rank had no row */
    uint32_t cancelled_at;  /* tokens that it had */
    uint64_t moves;         /* experts that came */
    bool spoilt;            /* the pages of one that had come back */
};

/* [MAX_RANKS] of processes that have all ended, as they should; to be freed by steps_free. */
struct steps_report *steps_run(const struct steps_scene *scene);
void steps_free(struct steps_report *reports);

#endif
