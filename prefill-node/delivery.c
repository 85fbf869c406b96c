#include "prefill-node/delivery.h"

#include <stdio.h>

static void on_lease(void *context, enum bt_status status, int64_t until_ns)
{
    struct pf_delivery *delivery = context;
    if (status != BT_OK) {
        delivery->lost(delivery->context, status,
                       status == BT_ERR_STALE      ? "the decode rank holds no such landing"
                       : status == BT_ERR_DEADLINE ? "the lease ran out"
                                                   : "the decode rank did not answer for a lease");
    } else if (delivery->push) {
        kvt_push_lease(delivery->push, until_ns);
    }
}

enum bt_status pf_delivery_begin(struct pf_delivery *delivery, struct pf_peers *peers,
                                 const struct pf_delivery_spec *spec, struct bt_error *error)
{
    struct pf_peer *peer;
    enum bt_status status = pf_peers_get(peers, spec->endpoint, error, &peer);
    if (status != BT_OK) {
        return status;
    }
    if (pf_peer_is_quiescing(peer, spec->request, spec->epoch)) {
        return bt_error_set(error, BT_ERR_STALE, "landing.epoch is over");
    }
    status = pf_peer_acquire(peer, error);
    if (status != BT_OK) {
        return status;
    }
    *delivery = (struct pf_delivery){
        .peer = peer,
        .lease = {.request = spec->request,
                  .epoch = spec->epoch,
                  .lease_ms = spec->lease_ms,
                  .news = on_lease,
                  .context = delivery},
        .lost = spec->lost,
        .context = spec->context,
    };
    if (pf_peer_lease_hold(peer, &delivery->lease) != BT_OK) {
        pf_peer_release(peer);
        delivery->peer = NULL;
        return bt_error_set(error, BT_ERR_NO_MEMORY, "lease: no memory");
    }
    return BT_OK;
}

enum bt_status pf_delivery_open(struct pf_delivery *delivery, struct kvt_source *source,
                                const struct pf_delivery_pages *pages, struct bt_error *error)
{
    struct kvt_push_spec spec = {
        .request = delivery->lease.request,
        .epoch = delivery->lease.epoch,
        .source_pages = pages->source,
        .target_pages = pages->target,
        .prompt_tokens = pages->prompt_tokens,
        .layerwise = pages->layerwise,
        .share = pages->share,
        .watch = pages->watch,
        .user = delivery,
    };
    enum bt_status status = pf_peer_link(delivery->peer, error, &spec.link);
    if (status == BT_OK) {
        status = kvt_push_open(source, &spec, error, &delivery->push);
    }
    if (status != BT_OK) {
        return status;
    }
    delivery->link = spec.link;
    delivery->push_open = true;
    if (delivery->lease.until_ns != 0) {
        kvt_push_lease(delivery->push, delivery->lease.until_ns);
    }
    return BT_OK;
}

void pf_delivery_cancel(struct pf_delivery *delivery)
{
    if (delivery->push_open) {
        kvt_push_cancel(delivery->push);
    }
}

void pf_delivery_ended(struct pf_delivery *delivery, const struct kvt_push_event *event)
{
    delivery->push_open = false;
    delivery->pushed = *event;
}

void pf_delivery_explain(const struct pf_delivery *delivery, char *ret_text, size_t size)
{
    if (delivery->pushed.status == BT_ERR_DEADLINE) {
        snprintf(ret_text, size, "push: the lease ran out");
        return;
    }
    const char *link_error = kvt_link_error(delivery->link);
    snprintf(ret_text, size, "push: the link to the decode rank broke%s%.400s",
             link_error[0] ? ": " : "", link_error);
}

bool pf_delivery_leased(const struct pf_delivery *delivery)
{
    return delivery->lease.asked_ns != 0;
}

void pf_delivery_drop_lease(struct pf_delivery *delivery)
{
    pf_peer_lease_drop(delivery->peer, &delivery->lease);
}

void pf_delivery_finish(struct pf_delivery *delivery)
{
    if (!delivery->peer) {
        return;
    }
    pf_delivery_drop_lease(delivery);
    if (delivery->push) {
        kvt_push_close(delivery->push);
        delivery->push = NULL;
    }
    pf_peer_release(delivery->peer);
    delivery->peer = NULL;
}
