/* What a decode rank has to cut off before a landing's pages are somebody else's: at most one entry
 * for each process that wrote to it. */
#ifndef BATON_PREFILL_NODE_CUTS_H
#define BATON_PREFILL_NODE_CUTS_H

#include "kvtransfer/landing.h"
#include "kvtransfer/source.h"
#include "proto/worker.pb-c.h"

struct pf_cut {
    uint64_t link;  /* see struct kvt_push_event */
    uint64_t lines; /* KVT_ALL_LINES: it broke, and could not be flushed */
};

struct pf_cuts {
    struct pf_cut list[KVT_WRITERS_MAX];
    uint32_t count;
};

/* Nothing where no line is to be cut. */
void pf_cuts_add(struct pf_cuts *cuts, struct pf_cut cut);
/* What a push leaves behind. Zeroed: there was none. */
struct pf_cut pf_cut_of(const struct kvt_push_event *pushed);

/* As a message has them; points into itself. */
struct pf_cuts_message {
    Baton__V1__LinkCut cuts[KVT_WRITERS_MAX];
    Baton__V1__LinkCut *list[KVT_WRITERS_MAX];
};
void pf_cuts_message_fill(struct pf_cuts_message *message, const struct pf_cuts *cuts);

#endif
