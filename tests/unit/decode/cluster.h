/*
 * A prefill worker and a decode rank in this process, on one loop, and what a router would be to
 * them: RPC clients of both and a Steps stream. Everything goes over real sockets and UCX.
 */
#ifndef BATON_TESTS_UNIT_DECODE_CLUSTER_H
#define BATON_TESTS_UNIT_DECODE_CLUSTER_H

#include "common/base/process.h"
#include "common/messaging/rpc.h"
#include "decode-node/worker.h"
#include "prefill-node/worker.h"
#include "proto/worker.pb-c.h"

#define MAX_TOKENS 512
#define ROUTER     UINT64_C(77) /* incarnation of the router that the tests are */

/* PrefillDone, as it was heard; compared byte by byte. */
struct prefill_figures {
    uint64_t kv_bytes, writes, compute_ns, visible_transfer_ns, hidden_bytes, queue_ns;
    int64_t begin_unix_ns;
    uint32_t cached_tokens;
    bool layerwise;
    char transport[16];
};
struct prefill_figures prefill_figures_of(const Baton__V1__PrefillDone *done);

struct attempt {
    uint64_t request;
    const uint32_t *prompt;
    uint32_t prompt_tokens;
    Baton__V1__SamplingParams sampling;
    bool full;
    bool local;          /* the decode rank computes the prompt: no cluster_run */
    bool sampled;        /* its run tells times of each layer */
    int64_t deadline_ns; /* of the Run call */
    const uint32_t *replay;
    uint32_t replay_count;
    const uint8_t *resume_key; /* of 32 bytes; NULL: none */
    uint64_t router;           /* incarnation; 0: ROUTER */
    uint32_t expected_pages;

    Baton__V1__ReserveResponse *reserved; /* after cluster_reserve */
    uint64_t epoch;
    struct bt_rpc_pending *run;
    bool started, handed_off, run_ended;
    enum bt_status run_status;
    char run_text[256];
    struct prefill_figures by_prefill, by_rank; /* after handed_off; with the first token */
    uint32_t rank_told;                         /* entries of Steps with a PrefillDone */
    uint32_t layers_told;                       /* by prefill */
    size_t unknown_told, transport_size;        /* by the rank: fields, bytes */
    int first_token;                            /* -1: not yet */

    uint32_t tokens[MAX_TOKENS]; /* from Steps, and before them from attempt_replay */
    float logprobs[MAX_TOKENS];
    uint32_t token_count; /* those after MAX_TOKENS are counted alone */
    Baton__V1__FinishReason finish;
    char error[256];
};

struct cluster {
    struct bt_loop *loop;
    struct bt_model *model;
    struct pf_worker *prefill;
    struct dc_worker *decode;
    struct bt_rpc_client *to_prefill, *to_decode;
    struct bt_rpc_pending *steps;
    bool hello, steps_ended;
    struct attempt *attempts[64];
    uint32_t attempt_count;
    uint32_t prefill_pages, decode_pages;
};

struct pf_worker_options cluster_prefill_options(void);
struct dc_worker_options cluster_decode_options(void);

/* Fails the test when something does not work. */
void cluster_open(struct cluster *cluster, const struct pf_worker_options *prefill,
                  const struct dc_worker_options *decode);
/* Stops both in order and asserts that every page is free and no request is left. */
void cluster_close(struct cluster *cluster);

void cluster_subscribe(struct cluster *cluster);

/* Runs the loop until `done` or 60 s, which fail the test. */
#define cluster_until(cluster, done)                                                               \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + 60 * BT_NS_PER_S;                                  \
        while (!(done)) {                                                                          \
            assert_true(bt_clock_now_ns() < until_ns_);                                            \
            cluster_turn(cluster);                                                                 \
        }                                                                                          \
    } while (0)
void cluster_turn(struct cluster *cluster);

/* One unary call to its end. `response` may be NULL; *ret_response is freed by the caller. */
enum bt_status cluster_call(struct cluster *cluster, struct bt_rpc_client *client,
                            const char *method, const ProtobufCMessage *request,
                            const ProtobufCMessageDescriptor *response,
                            ProtobufCMessage **ret_response);

void attempt_init(struct attempt *attempt, uint64_t request, const uint32_t *prompt,
                  uint32_t prompt_tokens, uint32_t max_tokens);
/* It goes on where `before`, which lives as long, had `count` tokens. */
void attempt_replay(struct attempt *attempt, const struct attempt *before, uint32_t count);
void attempt_finish(struct attempt *attempt);
enum bt_status cluster_reserve(struct cluster *cluster, struct attempt *attempt);
/* Starts Prefill/Run with the landing of the attempt. */
void cluster_run(struct cluster *cluster, struct attempt *attempt);
enum bt_status cluster_cancel(struct cluster *cluster, uint64_t request, uint64_t epoch);

/* The prefill side of the protocol as plain calls, for tests that play it themselves. */
struct fake_prefill {
    uint64_t incarnation;
    struct bt_process_id process;
};
bool cluster_lease(struct cluster *cluster, const struct fake_prefill *fake, uint64_t request,
                   uint64_t epoch);
/* `broken`: its link 7 is to be cut off. */
enum bt_status cluster_quiesced(struct cluster *cluster, const struct fake_prefill *fake,
                                uint64_t request, uint64_t epoch, bool broken);

#endif
