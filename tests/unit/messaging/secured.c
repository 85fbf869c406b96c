#include "tests/unit/messaging/secured.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE_NS (60 * BT_NS_PER_S)
#define LOG_SIZE    65536

void file_write(const char *path, const char *text, unsigned mode)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void file_read(const char *path, char *ret_text, size_t size)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    ret_text[fread(ret_text, 1, size - 1, file)] = '\0';
    fclose(file);
}

int world_setup(void **state)
{
    struct world *world = calloc(1, sizeof *world);
    const char *base = getenv("TMPDIR");
    snprintf(world->directory, sizeof world->directory, "%.100s/baton-curve-XXXXXX",
             base ? base : "/tmp");
    if (!mkdtemp(world->directory)) {
        perror(world->directory);
        free(world);
        return -1;
    }
    snprintf(world->log_path, sizeof world->log_path, "%.200s/log", world->directory);
    for (size_t i = 0; i < MAX_PARTIES; i++) {
        struct party *party = &world->parties[i];
        snprintf(party->secret_path, PATH_SIZE, "%.200s/secret-%zu", world->directory, i);
        snprintf(party->allow_path, PATH_SIZE, "%.200s/allow-%zu", world->directory, i);
        if (bt_security_generate(party->secret_path, NULL, party->public_hex) != BT_OK) {
            return -1;
        }
    }
    getrlimit(RLIMIT_NOFILE, &world->file_limit);
    int log = open(world->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    world->old_stderr = dup(STDERR_FILENO);
    dup2(log, STDERR_FILENO);
    close(log);
    *state = world;
    return 0;
}

void party_end(struct world *world, size_t number)
{
    struct harness *harness = &world->parties[number].harness;
    bt_rpc_client_destroy(world->parties[number].other_client);
    world->parties[number].other_client = NULL;
    harness_finish(harness);
    *harness = (struct harness){.end_on_cancel = true};
}

/* The 64 digits of the secret file. */
static void secret_hex_read(const struct party *party, char ret_hex[BT_KEY_HEX_SIZE])
{
    char text[512];
    file_read(party->secret_path, text, sizeof text);
    const char *word = strstr(text, "\nsecret-key ");
    assert_non_null(word);
    snprintf(ret_hex, BT_KEY_HEX_SIZE, "%s", word + strlen("\nsecret-key "));
}

void world_log_read(struct world *world, char *ret_text, size_t size)
{
    file_read(world->log_path, ret_text, size);
}

static void directory_remove(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        unlinkat(dirfd(directory), entry->d_name, 0);
    }
    if (directory) {
        closedir(directory);
    }
    rmdir(path);
}

int world_teardown(void **state)
{
    struct world *world = *state;
    static char log[LOG_SIZE];
    int leaked = 0;
    for (size_t i = 0; i < MAX_PARTIES; i++) {
        party_end(world, i);
    }
    setrlimit(RLIMIT_NOFILE, &world->file_limit);
    dup2(world->old_stderr, STDERR_FILENO);
    close(world->old_stderr);
    world_log_read(world, log, sizeof log);
    fputs(log, stderr);
    for (size_t i = 0; i < MAX_PARTIES; i++) {
        char hex[BT_KEY_HEX_SIZE];
        secret_hex_read(&world->parties[i], hex);
        leaked |= strstr(log, hex) != NULL;
    }
    directory_remove(world->directory);
    free(world);
    if (leaked) {
        print_error("a secret key stands in the log\n");
    }
    return leaked ? -1 : 0;
}

void party_allow(struct world *world, size_t number, unsigned set)
{
    char text[MAX_PARTIES * (BT_KEY_HEX_SIZE + BT_KEY_NAME_SIZE) + 64] = "# who may\n\n";
    for (size_t i = 0; i < MAX_PARTIES; i++) {
        size_t size = strlen(text);
        if (set & 1u << i) {
            snprintf(text + size, sizeof text - size, "%s\tparty-%zu # him\r\n",
                     world->parties[i].public_hex, i);
        }
    }
    char temporary[PATH_SIZE];
    snprintf(temporary, sizeof temporary, "%.200s/new", world->directory);
    file_write(temporary, text, 0644);
    assert_int_equal(rename(temporary, world->parties[number].allow_path), 0);
}

void party_plain(struct world *world, size_t number)
{
    struct harness *harness = &world->parties[number].harness;
    *harness = (struct harness){.end_on_cancel = true, .loop = bt_loop_create(NULL)};
    assert_non_null(harness->loop);
}

void party_secure(struct world *world, size_t number)
{
    struct party *party = &world->parties[number];
    struct bt_error error = {0};
    party_plain(world, number);
    const struct bt_security_values values = {party->secret_path, party->allow_path};
    if (bt_loop_secure(party->harness.loop, &values, &error) != BT_OK) {
        fail_msg("%s", error.text);
    }
    assert_string_equal(bt_loop_public_key(party->harness.loop), party->public_hex);
}

void party_serve(struct world *world, size_t number, const char *endpoint)
{
    struct harness *harness = &world->parties[number].harness;
    struct bt_error error = {0};
    if (bt_rpc_server_create(harness->loop, endpoint ? endpoint : "tcp://127.0.0.1:*",
                             harness_methods, harness, &error, &harness->server) != BT_OK) {
        fail_msg("%s", error.text);
    }
}

void party_connect(struct world *world, size_t number, const char *endpoint)
{
    struct harness *harness = &world->parties[number].harness;
    struct bt_error error = {0};
    assert_null(world->parties[number].other_client);
    world->parties[number].other_client = harness->client;
    harness->client = NULL;
    if (bt_rpc_client_create(harness->loop, endpoint, &error, &harness->client) != BT_OK) {
        fail_msg("%s", error.text);
    }
}

void world_round(struct world *world)
{
    for (size_t i = 0; i < MAX_PARTIES; i++) {
        struct bt_loop *loop = world->parties[i].harness.loop;
        struct bt_error error = {0};
        if (loop && bt_loop_run_once(loop, bt_clock_now_ns() + BT_NS_PER_MS, &error) != BT_OK) {
            fail_msg("%s", error.text);
        }
    }
}

static void world_run(struct world *world, int64_t give_up_ns)
{
    if (bt_clock_now_ns() >= give_up_ns) {
        fail_msg("nothing came in time");
    }
    world_round(world);
}

void world_run_int(struct world *world, const int *value, int wanted)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (*value < wanted) {
        world_run(world, give_up_ns);
    }
}

void world_run_size(struct world *world, const size_t *value, size_t wanted)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (*value < wanted) {
        world_run(world, give_up_ns);
    }
}

void world_run_refused(struct world *world, size_t party, enum bt_refusal reason, uint64_t wanted)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (bt_loop_refused(world->parties[party].harness.loop, reason) < wanted) {
        world_run(world, give_up_ns);
    }
}

static enum bt_status call_start(struct world *world, size_t number, const char *method,
                                 const char *text, struct bt_error *error, struct outcome *outcome)
{
    struct harness *harness = &world->parties[number].harness;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)text;
    *outcome = (struct outcome){.harness = harness};
    struct bt_rpc_call_spec spec = harness_spec(method, &request, outcome);
    return bt_rpc_client_call(harness->client, &spec, error, NULL);
}

void world_start(struct world *world, size_t number, const char *method, struct outcome *outcome)
{
    struct bt_error error = {0};
    if (call_start(world, number, method, "", &error, outcome) != BT_OK) {
        fail_msg("%s", error.text);
    }
}

void world_call(struct world *world, size_t number, const char *method, const char *text,
                struct outcome *outcome)
{
    struct bt_error error = {0};
    enum bt_status status = call_start(world, number, method, text, &error, outcome);
    if (status != BT_OK) {
        outcome->status = status;
        outcome->ends = 1;
        snprintf(outcome->text, sizeof outcome->text, "%.255s", error.text);
        return;
    }
    world_run_int(world, &outcome->ends, 1);
}

void world_call_until_ok(struct world *world, size_t number)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    struct outcome outcome = {.status = BT_ERR_UNAVAILABLE};
    while (outcome.status != BT_OK) {
        if (outcome.status != BT_ERR_UNAVAILABLE && outcome.status != BT_ERR_PEER_LOST) {
            fail_msg("%s", outcome.text);
        }
        world_run(world, give_up_ns);
        world_call(world, number, "test/echo", "hello", &outcome);
    }
    assert_int_equal(outcome.id_count, 5);
}

void expect_text(const char *text, const char *part)
{
    if (!strstr(text, part)) {
        fail_msg("'%s' does not hold '%s'", text, part);
    }
}

const char *endpoint_of(struct world *world, size_t party)
{
    return bt_rpc_server_endpoint(world->parties[party].harness.server);
}

/* The address of a server, with another key or none. */
const char *endpoint_with(struct world *world, const char *key, char *ret_text, size_t size)
{
    const char *endpoint = endpoint_of(world, 0);
    snprintf(ret_text, size, "%.*s%s%s", (int)strcspn(endpoint, "#"), endpoint, key ? "#" : "",
             key ? key : "");
    return ret_text;
}

/* 0 serves all; 1 and 2 are connected. */
void serve_two(struct world *world)
{
    for (size_t i = 0; i < 3; i++) {
        party_allow(world, i, ALL);
        party_secure(world, i);
    }
    party_serve(world, 0, NULL);
    party_connect(world, 1, endpoint_of(world, 0));
    party_connect(world, 2, endpoint_of(world, 0));
}

void expect_call(struct world *world, size_t party, enum bt_status status, const char *text)
{
    struct outcome outcome;
    world_call(world, party, "test/echo", "hello", &outcome);
    assert_string_equal(bt_status_name(outcome.status), bt_status_name(status));
    expect_text(outcome.text, text);
    assert_int_equal(outcome.id_count, status == BT_OK ? 5 : 0);
}
