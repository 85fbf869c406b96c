/*
 * Workers in the test's own loop: RPC servers that speak proto/worker.proto and do what the test
 * says, when it says so. Token i of every request is fake_script[i].
 */
#ifndef BATON_TESTS_UNIT_ROUTER_FAKE_WORKER_H
#define BATON_TESTS_UNIT_ROUTER_FAKE_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/messaging/rpc.h"
#include "proto/registry.pb-c.h"
#include "proto/worker.pb-c.h"

#define FAKE_MAX 32

extern const uint32_t *fake_script;

struct fake_held {
    uint64_t request, epoch;
    bool cancelled, full;
    uint32_t prompt_tokens, penalty_prompt_tokens;
};

struct fake_worker {
    char id[32];
    uint64_t incarnation;
    bool decode;
    struct bt_rpc_server *server;
    char endpoint[128];
    uint32_t pages_total, pages_used;

    /* decode */
    struct bt_rpc_call *steps;
    uint32_t steps_opened;
    struct fake_held held[FAKE_MAX];
    uint32_t held_count;
    uint32_t cancel_count;
    Baton__V1__CancelRequest cancels[FAKE_MAX];
    enum bt_status refuse;        /* Reserve answers this, unless BT_OK */
    enum bt_status refuse_cancel; /* the next Cancel answers this, unless BT_OK */
    bool impostor;                /* landings name another incarnation */
    uint32_t adopt_count;
    enum bt_status refuse_adopt; /* Adopt answers this, unless BT_OK */
    uint8_t adopt_key[32], reserve_key[32];
    size_t reserve_key_size;

    uint32_t passes_on; /* cached_tokens + 1 of the PrefillDone in the next step; 0: none in it */

    /* prefill */
    uint32_t cached_tokens;  /* that its runs tell */
    struct bt_rpc_call *run; /* the open one */
    uint32_t run_count, run_cancels;
    uint64_t run_request, run_epoch;
    uint32_t run_prompt_tokens;
    uint64_t run_seed;
    char run_rank[32]; /* who holds the landing */
};

void fake_worker_open(struct fake_worker *worker, struct bt_loop *loop, const char *id,
                      bool decode);
void fake_worker_close(struct fake_worker *worker); /* dies: every connection breaks */

/* A registration that is good; the pointers are valid until the next call. */
const Baton__V1__RegisterRequest *fake_worker_registration(const struct fake_worker *worker);

/* The hello of a Steps stream: the load alone. */
void fake_decode_hello(struct fake_worker *worker);
/* Tokens [first, first + count) of the rank's newest request that is not cancelled. */
void fake_decode_step(struct fake_worker *worker, uint32_t first, uint32_t count,
                      Baton__V1__FinishReason finish);

void fake_prefill_first_token(struct fake_worker *worker);
/* PrefillDone, then the end. */
void fake_prefill_done(struct fake_worker *worker);
void fake_prefill_fail(struct fake_worker *worker, enum bt_status status);

#endif
