/* Groups that must not come about, and calls that do not belong together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "tests/conformance/parallel/cases.h"

static const struct bt_group_limits small = {.floats = 1000, .broadcast_bytes = 100};

static void run(uint32_t size, rank_fn *fn)
{
    run_ranks(&(struct rig_case){.size = size, .limits = small, .fn = fn, .victim = size});
}

static void refuse(const struct bt_group_options *options, enum bt_status wanted,
                   const char *const *words)
{
    struct bt_error error = {0};
    struct bt_group *group = NULL;
    enum bt_status status = bt_group_create(options, &error, &group);
    if (status != wanted)
        fprintf(stderr, "rank %u: %s: %s\n", options->rank, bt_status_name(status), error.text);
    CHECK(status == wanted && error.status == wanted && !group);
    for (; *words; words++) {
        if (!strstr(error.text, *words))
            fprintf(stderr, "rank %u: no '%s' in '%s'\n", options->rank, *words, error.text);
        CHECK(strstr(error.text, *words));
    }
}

/* ---- limits and sizes ---- */

static void other_limits(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options mine = *options;
    (void)context;
    if (mine.rank == 2)
        mine.limits.floats++;
    refuse(&mine, BT_ERR_INVALID_ARGUMENT,
           (const char *const[]){"rank 2", "limits.floats 1001", "1000", NULL});
}

void test_limits_differ(void **state)
{
    (void)state;
    run(4, other_limits);
}

static void other_size(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options mine = *options;
    (void)context;
    mine.size = mine.rank == 1 ? 3 : 2;
    refuse(&mine, BT_ERR_INVALID_ARGUMENT,
           (const char *const[]){"rank 1", "size 3", "size 2", NULL});
}

void test_size_differs(void **state)
{
    (void)state;
    run(2, other_size);
}

/* ---- secrets ---- */

/* Rank 1 tries with the wrong one first; nobody else notices. */
static void other_secret(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options wrong = *options;
    (void)context;
    wrong.secret = "a secret of tesTs";
    if (options->rank == 1)
        refuse(&wrong, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"secret", "rank 1", NULL});
    struct bt_group *group = join(options);
    CHECK(bt_group_barrier(group) == BT_OK);
    bt_group_destroy(group);
}

void test_secret_differs(void **state)
{
    (void)state;
    run(2, other_secret);
}

/* ---- who does not come ---- */

/* The others may come when rank 0 has given up. */
static void some_missing(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options mine = *options;
    struct bt_error error = {0};
    struct bt_group *group;
    (void)context;
    mine.size = 5; /* ranks 3 and 4 are not there */
    mine.connect_timeout_ns = 2 * BT_NS_PER_S;
    CHECK(bt_group_create(&mine, &error, &group) == BT_ERR_UNAVAILABLE);
    bool told = strstr(error.text, "3, 4") != NULL;
    CHECK(told || (mine.rank != 0 && strstr(error.text, "no rank 0")));
}

static void no_host(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options mine = *options;
    (void)context;
    mine.rank = 1;
    mine.size = 2;
    mine.connect_timeout_ns = BT_NS_PER_S / 2;
    refuse(&mine, BT_ERR_UNAVAILABLE, (const char *const[]){"no rank 0", NULL});
}

void test_missing_ranks(void **state)
{
    (void)state;
    run(3, some_missing);
    run(1, no_host);
}

/* ---- strangers ---- */

static int call_endpoint(const char *endpoint)
{
    const char *port = strrchr(endpoint, ':') + 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)atoi(port))};
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(fd >= 0 && bt_clock_now_ns() < deadline_ns);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        close(fd);
        usleep(1000); /* rank 0 does not listen yet */
    }
}

/* Rank 2 is preceded by more connections than rank 0 has room for: silent ones, ones that say
 * rubbish, ones that hang up in the middle, and one that repeats a greeting. */
static void besieged(const struct bt_group_options *options, const void *context)
{
    char noise[4096];
    int silent[80];
    (void)context;
    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (char)random_below(9, i, 256);
    for (size_t i = 0; i < 80 && options->rank == 2; i++) {
        silent[i] = call_endpoint(options->endpoint);
        if (i % 4 == 1)
            CHECK(send(silent[i], noise, sizeof(noise), MSG_NOSIGNAL) != 0);
        if (i % 4 == 2)
            CHECK(send(silent[i], noise, 20, MSG_NOSIGNAL) != 0);
        if (i % 4 == 3) {
            ssize_t got = recv(silent[i], noise, sizeof(noise), 0);
            if (got > 0)
                CHECK(send(silent[i], noise, (size_t)got, MSG_NOSIGNAL) != 0);
            shutdown(silent[i], SHUT_RDWR);
        }
    }
    struct bt_group *group = join(options);
    CHECK(bt_group_barrier(group) == BT_OK);
    bt_group_destroy(group);
    for (size_t i = 0; i < 80 && options->rank == 2; i++)
        close(silent[i]);
}

void test_strangers(void **state)
{
    (void)state;
    run(3, besieged);
}

/* ---- options ---- */

static void bad_options(const struct bt_group_options *options, const void *context)
{
    struct bt_group_options bad = *options;
    (void)context;
    bad.size = 2;
    bad.rank = 2;
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"rank 2 of 2", NULL});
    bad.rank = 0;
    bad.size = BT_GROUP_RANKS_MAX + 1;
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"65", NULL});
    bad.size = 2;
    bad.secret = "short";
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"secret", NULL});
    bad.secret = options->secret;
    bad.transport = "carrier pigeon";
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"carrier pigeon", NULL});
    bad.transport = "self";
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"self", NULL});
    bad.transport = options->transport;
    bad.endpoint = "udp://127.0.0.1:1";
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"udp://127.0.0.1:1", NULL});
    bad.endpoint = "ipc://";
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"ipc://PATH", NULL});
    bad.endpoint = options->endpoint;
    bad.limits.rows = 4;
    refuse(&bad, BT_ERR_INVALID_ARGUMENT, (const char *const[]){"limits", NULL});
}

void test_bad_options(void **state)
{
    (void)state;
    run(1, bad_options);
}

/* ---- socket files ---- */

#define SOCKET_PATH_MAX 107

struct socket_case {
    char directory[64], endpoint[200];
    const char *path; /* in endpoint */
};

static void open_socket_case(struct socket_case *c, size_t path_bytes)
{
    const char *root = getenv("TMPDIR");
    int length =
        snprintf(c->directory, sizeof(c->directory), "%s/baton-group-XXXXXX", root ? root : "/tmp");
    assert_true(length > 0 && (size_t)length < sizeof(c->directory));
    assert_non_null(mkdtemp(c->directory));
    assert_true(path_bytes > (size_t)length + 1 && path_bytes < sizeof(c->endpoint) - 7);
    snprintf(c->endpoint, sizeof(c->endpoint), "ipc://%s/", c->directory);
    size_t used = strlen(c->endpoint);
    memset(c->endpoint + used, 's', 6 + path_bytes - used);
    c->endpoint[6 + path_bytes] = '\0';
    c->path = c->endpoint + 6;
}

/* Nothing is left in the directory. */
static void close_socket_case(const struct socket_case *c)
{
    assert_int_equal(rmdir(c->directory), 0);
}

/* A socket of this process at the path. */
static int bind_socket(const struct socket_case *c, bool listens)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    memcpy(at.sun_path, c->path, strlen(c->path));
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    if (listens)
        assert_int_equal(listen(fd, 4), 0);
    return fd;
}

/* Rank 1 comes when it has seen that the file is nobody else's. */
static void meet_at_socket(const struct bt_group_options *options, const void *context)
{
    const struct socket_case *c = context;
    struct bt_group_options mine = *options;
    struct stat made;
    mine.endpoint = c->endpoint;
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    while (mine.rank == 1 && (stat(c->path, &made) != 0 || (made.st_mode & 07777) != 0600)) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        usleep(1000); /* rank 0 does not listen yet, or an old file is still there */
    }
    CHECK(mine.rank != 1 || S_ISSOCK(made.st_mode));
    struct bt_group *group = join(&mine);
    CHECK(bt_group_barrier(group) == BT_OK);
    CHECK(access(c->path, F_OK) != 0);
    bt_group_destroy(group);
}

static void refused_at_socket(const struct bt_group_options *options, const void *context)
{
    const struct socket_case *c = context;
    struct bt_group_options mine = *options;
    const char *words[] = {c->path, NULL, NULL};
    struct stat there;
    mine.endpoint = c->endpoint;
    mine.size = 2;
    mine.connect_timeout_ns = 2 * BT_NS_PER_S;
    words[1] = stat(c->path, &there) != 0     ? "No such file or directory"
               : S_ISSOCK(there.st_mode) != 0 ? "somebody listens there"
                                              : "no socket";
    refuse(&mine, BT_ERR_UNAVAILABLE, words);
}

static void run_at_socket(const struct socket_case *c, uint32_t size, rank_fn *fn)
{
    run_ranks(
        &(struct rig_case){.size = size, .limits = small, .fn = fn, .context = c, .victim = size});
}

/* Fresh, and where a dead one left its file; with the longest path there is. */
void test_socket_file(void **state)
{
    struct socket_case c;
    (void)state;
    open_socket_case(&c, SOCKET_PATH_MAX);
    run_at_socket(&c, 3, meet_at_socket);
    close(bind_socket(&c, false));
    run_at_socket(&c, 2, meet_at_socket);
    close(bind_socket(&c, true));
    run_at_socket(&c, 2, meet_at_socket);
    close_socket_case(&c);
}

/* What is somebody else's stays. */
void test_socket_file_in_use(void **state)
{
    struct socket_case c;
    char byte = 'x';
    (void)state;
    open_socket_case(&c, SOCKET_PATH_MAX);
    int fd = bind_socket(&c, true);
    run_at_socket(&c, 1, refused_at_socket);
    assert_int_equal(access(c.path, F_OK), 0);
    close(fd);
    assert_int_equal(unlink(c.path), 0);
    FILE *file = fopen(c.path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(&byte, 1, 1, file), 1);
    assert_int_equal(fclose(file), 0);
    run_at_socket(&c, 1, refused_at_socket);
    assert_int_equal(unlink(c.path), 0);
    close_socket_case(&c);
    run_at_socket(&c, 1, refused_at_socket); /* no directory */
}

static void too_long(const struct bt_group_options *options, const void *context)
{
    const struct socket_case *c = context;
    struct bt_group_options mine = *options;
    mine.endpoint = c->endpoint;
    mine.size = 2;
    for (mine.rank = 0; mine.rank < 2; mine.rank++)
        refuse(&mine, BT_ERR_INVALID_ARGUMENT,
               (const char *const[]){"endpoint", "108 bytes", "107", c->path, NULL});
}

void test_socket_path_too_long(void **state)
{
    struct socket_case c;
    (void)state;
    open_socket_case(&c, SOCKET_PATH_MAX + 1);
    run_at_socket(&c, 1, too_long);
    close_socket_case(&c);
}

/* ---- calls that differ ---- */

static void another_call(const struct bt_group_options *options, const void *context)
{
    struct bt_group *group = join(options);
    float x[200] = {0};
    (void)context;
    CHECK(bt_group_barrier(group) == BT_OK);
    enum bt_status status =
        options->rank == 1 ? bt_group_barrier(group) : bt_group_all_reduce(group, x, 200);
    CHECK(status == BT_ERR_PROTOCOL && strstr(bt_group_error(group), "another call"));
    CHECK(bt_group_barrier(group) == BT_ERR_PROTOCOL);
    bt_group_destroy(group);
}

static void another_count(const struct bt_group_options *options, const void *context)
{
    struct bt_group *group = join(options);
    float x[200] = {0};
    (void)context;
    CHECK(bt_group_all_reduce(group, x, options->rank == 2 ? 100 : 200) == BT_ERR_PROTOCOL);
    bt_group_destroy(group);
}

void test_other_call(void **state)
{
    (void)state;
    run(2, another_call);
    run(3, another_count);
}
