#include "prefill-node/cuts.h"

#include "kvtransfer/cut.h"

void pf_cuts_add(struct pf_cuts *cuts, struct pf_cut cut)
{
    if (cut.lines == 0) {
        return;
    }
    BT_ASSERT(cuts->count < KVT_WRITERS_MAX);
    cuts->list[cuts->count++] = cut;
}

struct pf_cut pf_cut_of(const struct kvt_push_event *pushed)
{
    bool broken = pushed->push && !pushed->quiesced;
    return (struct pf_cut){pushed->link, broken ? KVT_ALL_LINES : pushed->cut_lines};
}

void pf_cuts_message_fill(struct pf_cuts_message *message, const struct pf_cuts *cuts)
{
    for (uint32_t i = 0; i < cuts->count; i++) {
        baton__v1__link_cut__init(&message->cuts[i]);
        message->cuts[i].link = cuts->list[i].link;
        message->cuts[i].lines = cuts->list[i].lines;
        message->list[i] = &message->cuts[i];
    }
}
