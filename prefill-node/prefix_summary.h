/* What a heartbeat tells a router of the prefixes that are kept here. Control thread only. */
#ifndef BATON_PREFILL_NODE_PREFIX_SUMMARY_H
#define BATON_PREFILL_NODE_PREFIX_SUMMARY_H

#include "common/kvcache/prefix_index.h"
#include "common/messaging/registration.h"

struct pf_prefix_summary {
    struct bt_prefix_change changes[BT_REGISTRATION_MAX_PREFIXES];
    uint32_t pages[BT_REGISTRATION_MAX_PREFIXES], parents[BT_REGISTRATION_MAX_PREFIXES];
    uint64_t blocks[BT_REGISTRATION_MAX_PREFIXES];
};

/* As struct bt_registration_events wants it; the message's lists are the summary's. */
bool pf_prefix_summary_fill(struct pf_prefix_summary *summary, const struct bt_prefix_index *index,
                            uint64_t since, Baton__V1__PrefixSummary *ret_message, bool *ret_more);

#endif
