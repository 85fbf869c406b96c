#include "prefill-node/prefix_summary.h"

bool pf_prefix_summary_fill(struct pf_prefix_summary *summary, const struct bt_prefix_index *index,
                            uint64_t since, Baton__V1__PrefixSummary *ret_message, bool *ret_more)
{
    uint64_t from, version;
    uint32_t count = bt_prefix_index_changes(index, since, BT_REGISTRATION_MAX_PREFIXES,
                                             summary->changes, &from, &version);
    for (uint32_t i = 0; i < count; i++) {
        summary->pages[i] = summary->changes[i].page;
        summary->parents[i] = summary->changes[i].parent;
        summary->blocks[i] = summary->changes[i].block;
    }
    ret_message->since = from;
    ret_message->version = version;
    ret_message->page = summary->pages;
    ret_message->parent = summary->parents;
    ret_message->block = summary->blocks;
    ret_message->n_page = ret_message->n_parent = ret_message->n_block = count;
    *ret_more = count == BT_REGISTRATION_MAX_PREFIXES;
    return version != since || from != since;
}
