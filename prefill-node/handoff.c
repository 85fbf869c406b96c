#include "prefill-node/handoff.h"

#include <stdio.h>

#include "common/base/clock.h"
#include "common/model/token_message.h"
#include "prefill-node/rank_endpoint.h"

#define CALL_NS      (500 * BT_NS_PER_MS) /* of the first attempt; of each next one twice that */
#define MAX_CALL_NS  (8 * BT_NS_PER_S)
#define GIVE_UP_NS   (30 * BT_NS_PER_S) /* all attempts, where there is no deadline */
#define MIN_RETRY_NS (20 * BT_NS_PER_MS)
#define MAX_RETRY_NS BT_NS_PER_S

static void report(struct pf_handoff *handoff, enum bt_status status, const char *text)
{
    handoff->spec.done(handoff->spec.context, status, text);
}

static void try_later(struct pf_handoff *handoff, enum bt_status status, const char *text)
{
    int64_t now_ns = bt_clock_now_ns();
    if (now_ns + handoff->retry_ns >= handoff->give_up_ns) {
        char why[BT_ERROR_TEXT_SIZE];
        snprintf(why, sizeof(why), "handoff: %.400s (%s)", text, bt_status_name(status));
        report(handoff, BT_ERR_UNAVAILABLE, why);
        return;
    }
    snprintf(handoff->text, sizeof(handoff->text), "%s%s%.150s", bt_status_name(status),
             text[0] ? ": " : "", text);
    bt_loop_timer_set(handoff->timer, now_ns + handoff->retry_ns);
    handoff->retry_ns = handoff->retry_ns * 2 < MAX_RETRY_NS ? handoff->retry_ns * 2 : MAX_RETRY_NS;
}

/* A rank that could not take it may have let the landing go: then the first refusal says why. */
static void refused(struct pf_handoff *handoff, enum bt_status status, const char *text)
{
    char why[BT_ERROR_TEXT_SIZE];
    snprintf(why, sizeof(why), "%.250s%s%s%s",
             text[0] ? text : "the decode rank refused the handoff",
             handoff->text[0] ? " (the attempt before: " : "", handoff->text,
             handoff->text[0] ? ")" : "");
    report(handoff, status, why);
}

static void on_answer(void *context, enum bt_status status, const char *text,
                      const ProtobufCMessage *response)
{
    struct pf_handoff *handoff = context;
    (void)response;
    handoff->pending = NULL;
    if (handoff->cancelled) {
        report(handoff, BT_ERR_CANCELLED, text);
    } else if (status == BT_OK) {
        report(handoff, BT_OK, text);
    } else if (pf_rank_worth_retrying(status)) {
        try_later(handoff, status, text);
    } else {
        refused(handoff, status, text);
    }
}

static void attempt(struct pf_handoff *handoff)
{
    const struct pf_handoff_spec *spec = &handoff->spec;
    int64_t until_ns = bt_clock_now_ns() + handoff->call_ns;
    handoff->call_ns = handoff->call_ns * 2 < MAX_CALL_NS ? handoff->call_ns * 2 : MAX_CALL_NS;
    struct bt_token_message token;
    struct pf_cuts_message cuts;
    bt_token_message_fill(&token, 0, spec->first, spec->logprobs);
    pf_cuts_message_fill(&cuts, spec->cuts);
    Baton__V1__HandoffDoneRequest request = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
    request.request_id = spec->request;
    request.epoch = spec->epoch;
    request.prompt_tokens = spec->prompt_tokens;
    request.page_count = spec->page_count;
    request.has_checksum = spec->has_checksum;
    request.checksum = spec->has_checksum ? spec->checksum : 0;
    request.first_token = &token.token;
    request.cuts = cuts.list;
    request.n_cuts = spec->cuts->count;
    request.done = &handoff->figures;
    const struct bt_rpc_call_spec call = {
        .method = "baton.v1.Decode/HandoffDone",
        .request = &request.base,
        .response = &baton__v1__handoff_done_response__descriptor,
        .deadline_ns = until_ns < handoff->give_up_ns ? until_ns : handoff->give_up_ns,
        .on_end = on_answer,
        .context = handoff,
    };
    struct bt_error error;
    enum bt_status status = bt_rpc_client_call(spec->client, &call, &error, &handoff->pending);
    if (status != BT_OK) {
        handoff->pending = NULL;
        try_later(handoff, status, error.text);
    }
}

static void fire(void *context)
{
    struct pf_handoff *handoff = context;
    if (!handoff->cancelled && !handoff->pending) {
        attempt(handoff);
    }
}

bool pf_handoff_init(struct pf_handoff *handoff, struct bt_loop *loop)
{
    *handoff = (struct pf_handoff){0};
    handoff->timer = bt_loop_add_timer(loop, BT_NEVER_NS, fire, handoff);
    return handoff->timer != NULL;
}

void pf_handoff_finish(struct pf_handoff *handoff)
{
    BT_ASSERT(!handoff->pending);
    bt_loop_remove(handoff->timer);
    handoff->timer = NULL;
}

static void keep_figures(struct pf_handoff *handoff, const Baton__V1__PrefillDone *figures)
{
    snprintf(handoff->transport, sizeof(handoff->transport), "%s", figures->transport);
    handoff->figures = *figures;
    handoff->figures.transport = handoff->transport;
    handoff->figures.layers = NULL;
    handoff->figures.n_layers = 0;
}

void pf_handoff_start(struct pf_handoff *handoff, const struct pf_handoff_spec *spec)
{
    handoff->spec = *spec;
    handoff->spec.figures = NULL;
    keep_figures(handoff, spec->figures);
    handoff->call_ns = CALL_NS;
    handoff->retry_ns = MIN_RETRY_NS;
    handoff->give_up_ns =
        spec->deadline_ns == BT_NEVER_NS ? bt_clock_now_ns() + GIVE_UP_NS : spec->deadline_ns;
    attempt(handoff);
}

bool pf_handoff_cancel(struct pf_handoff *handoff)
{
    handoff->cancelled = true;
    if (handoff->pending) {
        bt_rpc_pending_cancel(handoff->pending);
    }
    return handoff->pending != NULL;
}
