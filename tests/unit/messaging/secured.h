/*
 * Servers and clients with keys of their own: each party has a loop, a secret key and a list, in
 * files of a temporary directory, and all of them run on one thread.
 */
#ifndef BATON_TESTS_MESSAGING_SECURED_H
#define BATON_TESTS_MESSAGING_SECURED_H

#include <sys/resource.h>

#include "common/messaging/security.h"
#include "tests/unit/messaging/harness.h"

#define MAX_PARTIES 4
#define PATH_SIZE   256
#define ALL         0xfu /* the set of all parties */

struct party {
    char secret_path[PATH_SIZE];
    char allow_path[PATH_SIZE];
    char public_hex[BT_KEY_HEX_SIZE];
    struct harness harness; /* loop, server, client: as far as they were made */
    struct bt_rpc_client *other_client;
};

struct world {
    char directory[PATH_SIZE];
    char log_path[PATH_SIZE];
    int old_stderr;
    struct rlimit file_limit; /* restored at the end */
    struct party parties[MAX_PARTIES];
};

/* For cmocka: every party has a key, nobody a loop. What is logged goes to a file until the end,
 * when no secret key may stand in it. */
int world_setup(void **state);
int world_teardown(void **state);

/* Writes "KEY party-N" for each party of the set (bit N). */
void party_allow(struct world *world, size_t party, unsigned set);

/* A loop with the party's key and list, or a plain one. */
void party_secure(struct world *world, size_t party);
void party_plain(struct world *world, size_t party);
void party_serve(struct world *world, size_t party, const char *endpoint); /* NULL: any port */
/* Keeps the client that was there as the other one. */
void party_connect(struct world *world, size_t party, const char *endpoint);
void party_end(struct world *world, size_t party);

/* Runs all loops once. */
void world_round(struct world *world);
/* Runs until the value is there; fails after some seconds. */
void world_run_int(struct world *world, const int *value, int wanted);
void world_run_size(struct world *world, const size_t *value, size_t wanted);
void world_run_refused(struct world *world, size_t party, enum bt_refusal reason, uint64_t wanted);

/* One call of the party's client, from its start to its end. Calls that are not even started have
 * ended too, with that error. */
void world_call(struct world *world, size_t party, const char *method, const char *text,
                struct outcome *outcome);
/* Starts one, which must be accepted. */
void world_start(struct world *world, size_t party, const char *method, struct outcome *outcome);
/* Calls until it works. */
void world_call_until_ok(struct world *world, size_t party);

/* Of the party's server. */
const char *endpoint_of(struct world *world, size_t party);
/* The address of party 0's server, with another key or none. */
const char *endpoint_with(struct world *world, const char *key, char *ret_text, size_t size);
/* 0 serves all; 1 and 2 are connected. */
void serve_two(struct world *world);
void expect_call(struct world *world, size_t party, enum bt_status status, const char *text);

void world_log_read(struct world *world, char *ret_text, size_t size);
void expect_text(const char *text, const char *part);
void file_write(const char *path, const char *text, unsigned mode);

#endif
