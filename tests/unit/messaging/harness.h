/* A loop, a server with a few methods and a client on one thread, for the tests of this folder. */
#ifndef BATON_TESTS_MESSAGING_HARNESS_H
#define BATON_TESTS_MESSAGING_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/messaging/rpc.h"
#include "proto/router.pb-c.h"

#define HELD_CALLS 8192

struct harness {
    struct bt_loop *loop;
    struct bt_rpc_server *server;
    struct bt_rpc_client *client;
    struct bt_rpc_call *held[HELD_CALLS]; /* calls of "hold", until a test ends them */
    size_t held_count;
    size_t handled; /* calls of any method */
    size_t cancels; /* on_cancel of "hold" */
    bool end_on_cancel;
    int64_t last_deadline_ns;
    int peer_ups;
    int peer_downs;
};

/* What one call came to; `harness_spec` points a call at it. */
struct outcome {
    struct harness *harness;
    size_t data_count;
    char last_data[64];
    int ends;
    enum bt_status status;
    char text[256];
    size_t id_count; /* of the TokenizeResponse */
};

/* `endpoint` NULL: tcp on an ephemeral port of 127.0.0.1. */
void harness_init(struct harness *harness, const char *endpoint);
void harness_finish(struct harness *harness);

/* Methods: "test/echo" (unary: one id for each byte of text), "test/fail" (not_found, "no such
 * thing"), "test/count" (stream: text is the number of messages), "test/hold" (kept in `held`). */
extern const struct bt_rpc_method harness_methods[];

struct bt_rpc_call_spec harness_spec(const char *method, Baton__V1__TokenizeRequest *request,
                                     struct outcome *outcome);

/* Runs the loop until `*value` is at least `wanted`; fails the test after some seconds. */
void harness_run_int(struct harness *harness, const int *value, int wanted);
void harness_run_size(struct harness *harness, const size_t *value, size_t wanted);

/* Starts the call, which must be accepted, and runs the loop until its end. */
void harness_call(struct harness *harness, const char *method, const char *text,
                  struct outcome *outcome);

#endif
