/* Peers that lie, end, or come back. */
#include "tests/conformance/cases.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/process.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/choice/blob.h"
#include "kvtransfer/progress.h"
#include "kvtransfer/tcp/internal.h"
#include "tests/conformance/rig.h"

static void expect_failed_link(struct rig *rig, const struct kvt_remote *remote)
{
    struct kvt_link *link;

    CHECK(kvt_source_connect(rig->source, remote, NULL, &link) == BT_OK);
    wait_link(link, KVT_LINK_FAILED);
    CHECK(kvt_link_error(link)[0] != '\0');
    kvt_link_release(link);
}

void case_garbage_remote(void)
{
    struct rig rig = {0};
    unsigned char address[4096], key[4096];
    struct kvt_remote good, bad;
    struct bt_error error;
    struct kvt_link *link;

    rig_init(&rig);
    target_host_remote(rig.host, &good);
    memcpy(address, good.address, good.address_size);
    memcpy(key, good.key, good.key_size);
    bad = good;
    bad.incarnation = 1; /* no link has it: a new connection */
    bad.address = address;
    bad.key = key;
    for (size_t i = 0; i < good.address_size; i += 1 + good.address_size / 16) {
        address[i] ^= 0x41;
        expect_failed_link(&rig, &bad);
        address[i] ^= 0x41;
    }
    for (size_t i = 0; i < good.key_size; i += 1 + good.key_size / 16) {
        key[i] ^= 0x10;
        expect_failed_link(&rig, &bad);
        key[i] ^= 0x10;
    }
    bad.address_size = good.address_size - 1;
    expect_failed_link(&rig, &bad);
    bad.address_size = 0;
    expect_failed_link(&rig, &bad);
    bad.address_size = good.address_size;
    bad.key_size = 3;
    expect_failed_link(&rig, &bad);
    bad.key_size = good.key_size;
    bad.pool_pages = 0;
    CHECK(kvt_source_connect(rig.source, &bad, &error, &link) == BT_ERR_INVALID_ARGUMENT);
    bad.pool_pages = good.pool_pages;
    bad.pool_base = UINT64_MAX - 5;
    CHECK(kvt_source_connect(rig.source, &bad, &error, &link) == BT_ERR_INVALID_ARGUMENT);
    draw_transfer(&rig, 100, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

/* A base that is not the key's: no write leaves, the push fails, the source lives. */
void case_wrong_base(void)
{
    struct rig rig = {0};
    struct kvt_link *good_link;
    struct kvt_push_event event;
    struct kvt_remote remote;

    rig_init(&rig);
    good_link = rig.link;
    target_host_remote(rig.host, &remote);
    remote.incarnation = 2;
    remote.pool_base += UINT64_C(1) << 30;
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    draw_transfer(&rig, 100, &transfers[0]);
    open_push(&rig, &transfers[0], true);
    lease_long(&transfers[0]);
    compute_chunks(&rig, &transfers[0], 100);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_PEER_LOST);
    kvt_push_close(transfers[0].push);
    kvt_link_release(rig.link);
    rig.link = good_link;
    CHECK(target_host_touched_outside(rig.host, NULL, 0) == 0);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

/* The key of one transport, as long as it was, but for a range four times as large. */
static void stretch_key(const void *key, size_t size, void **ret_key, size_t *ret_size)
{
    enum kvt_blob_kind kind =
        strcmp(transport, "shm") == 0 ? KVT_BLOB_SHM_KEY : KVT_BLOB_CUDA_IPC_KEY;
    struct kvt_choice_part part;
    struct kvt_key_range range;
    const void *rest;
    size_t rest_size;
    uint32_t count;
    void *inner;

    CHECK(kvt_choice_unpack(KVT_BLOB_CHOICE_KEY, key, size, NULL, &part, &count) == BT_OK);
    CHECK(count == 1 && strcmp(part.name, transport) == 0);
    CHECK(kvt_key_unpack(kind, part.bytes, part.size, NULL, &range, &rest, &rest_size) == BT_OK);
    range.bytes *= 4;
    CHECK(kvt_key_pack(kind, &range, rest, rest_size, NULL, &inner, &part.size) == BT_OK);
    part.bytes = inner;
    CHECK(kvt_choice_pack(KVT_BLOB_CHOICE_KEY, &part, 1, NULL, ret_key, ret_size) == BT_OK);
    free(inner);
}

/* Who maps memory finds out that there is less of it than the key says, before anything is written
 * past its end. */
void case_a_key_that_says_too_much(void)
{
    struct rig rig = {0};
    struct kvt_link *link;
    struct kvt_remote remote;
    void *key;

    rig_init(&rig);
    target_host_remote(rig.host, &remote);
    remote.incarnation = 2;
    stretch_key(remote.key, remote.key_size, &key, &remote.key_size);
    remote.key = key;
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &link) == BT_OK);
    wait_link(link, KVT_LINK_FAILED);
    CHECK(strstr(kvt_link_error(link), "smaller than its key says") != NULL);
    kvt_link_release(link);
    free(key);
    draw_transfer(&rig, 100, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

void case_bad_pushes_are_refused(void)
{
    struct rig rig = {0};
    uint32_t source_page = 5, target_page = 6;
    struct kvt_push_spec spec = {.source_pages = &source_page, .target_pages = &target_page};
    struct bt_error error;
    struct kvt_push *push;

    rig_init(&rig);
    spec.link = rig.link;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    spec.prompt_tokens = 3;
    target_page = rig.target_pages;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    CHECK(strstr(error.text, "target page 0 is 130") != NULL);
    target_page = 6;
    source_page = rig.source_pages;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    for (uint32_t i = 0; i < MAX_PUSHES; i++) {
        draw_transfer(&rig, 1, &transfers[i]);
        open_push(&rig, &transfers[i], true);
    }
    source_page = 0;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_EXHAUSTED);
    for (uint32_t i = 0; i < MAX_PUSHES; i++)
        kvt_push_cancel(transfers[i].push);
    for (uint32_t i = 0; i < MAX_PUSHES; i++) {
        struct kvt_push_event event = take_event(&rig);
        CHECK(event.status == BT_ERR_CANCELLED && event.quiesced && event.writes == 0);
        kvt_push_close(event.push);
    }
    rig_finish(&rig);
}

void case_links_are_shared(void)
{
    struct rig rig = {0};
    struct kvt_remote remote;
    struct kvt_link *again;

    rig_init(&rig);
    target_host_remote(rig.host, &remote);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &again) == BT_OK);
    CHECK(again == rig.link);
    kvt_link_release(again);
    draw_transfer(&rig, 77, &transfers[0]);
    open_push(&rig, &transfers[0], true);
    kvt_link_release(rig.link); /* the push holds it */
    lease_long(&transfers[0]);
    kvt_push_finish(transfers[0].push);
    CHECK(take_event(&rig).status == BT_OK);
    kvt_push_close(transfers[0].push);
    connect_target(&rig); /* a new one */
    rig_finish(&rig);
}

/* Pushes until the link is seen to be broken; nothing hangs, nothing is promised falsely. */
static void push_into_the_void(struct rig *rig)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;

    while (kvt_link_state(rig->link) != KVT_LINK_FAILED) {
        struct kvt_push_event event;
        CHECK(bt_clock_now_ns() < deadline_ns);
        draw_transfer(rig, 640, &transfers[0]);
        open_push(rig, &transfers[0], true);
        lease_long(&transfers[0]);
        kvt_push_finish(transfers[0].push);
        event = take_event(rig);
        CHECK(event.status == BT_OK || event.status == BT_ERR_PEER_LOST);
        CHECK(event.status == BT_ERR_PEER_LOST || event.quiesced);
        kvt_push_close(transfers[0].push);
    }
}

void case_target_dies_and_comes_back(void)
{
    struct rig rig = {0};
    struct target_host *old;
    struct kvt_push_event event;

    rig.layout = (struct bt_kv_layout){
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    rig.source_pages = rig.target_pages = 100;
    start_target(&rig, TARGET_INCARNATION); /* both before this process touches UCX */
    old = rig.host;
    start_target(&rig, TARGET_INCARNATION + 1);
    struct target_host *replacement = rig.host;
    rig.host = old;
    start_source(&rig, SOURCE_INCARNATION);
    connect_target(&rig);
    draw_transfer(&rig, 6000, &transfers[1]);
    open_push(&rig, &transfers[1], true);
    lease_long(&transfers[1]);
    for (uint32_t layer = 0; layer < 3; layer++)
        kvt_push_ready(transfers[1].push, layer, 6000);
    target_host_kill(old);
    kvt_push_finish(transfers[1].push);
    event = take_event(&rig);
    CHECK(event.status == BT_OK || event.status == BT_ERR_PEER_LOST);
    kvt_push_close(transfers[1].push);
    push_into_the_void(&rig);
    kvt_link_release(rig.link);
    rig.host = replacement;
    connect_target(&rig);
    push_once(&rig, &transfers[1], true);
    rig_finish(&rig);
}

/* Never returns: pushes until it is killed. */
static void push_for_ever(int fd)
{
    struct rig rig = {0};
    struct kvt_remote remote;
    size_t sizes[2];
    char address[4096], key[4096];

    CHECK(bt_process_die_with_parent() == BT_OK);
    rig.layout = (struct bt_kv_layout){
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    rig.source_pages = rig.target_pages = 100;
    CHECK(read(fd, &remote, sizeof(remote)) == sizeof(remote));
    CHECK(read(fd, sizes, sizeof(sizes)) == sizeof(sizes));
    CHECK(read(fd, address, sizes[0]) == (ssize_t)sizes[0]);
    CHECK(read(fd, key, sizes[1]) == (ssize_t)sizes[1]);
    remote.address = address;
    remote.key = key;
    start_source(&rig, SOURCE_INCARNATION);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    for (;;) {
        draw_transfer(&rig, 5000, &transfers[0]);
        open_push(&rig, &transfers[0], true);
        lease_long(&transfers[0]);
        kvt_push_finish(transfers[0].push);
        CHECK(take_event(&rig).status == BT_OK);
        kvt_push_close(transfers[0].push);
    }
}

static struct kvt_target_event target_event(struct kvt_target *target)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_target_events(target)), .events = POLLIN};
    struct kvt_target_event event;

    CHECK(poll(&fd, 1, 30000) == 1);
    CHECK(bt_queue_try_pop(kvt_target_events(target), &event));
    return event;
}

/* Looks at memory while it is being written. */
__attribute__((no_sanitize("thread"))) static void wait_for_bytes(const unsigned char *pool,
                                                                  size_t size)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    size_t touched = 0;

    while (touched == 0) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        for (size_t i = 0; i < size; i += 512)
            touched += ((const volatile unsigned char *)pool)[i] != 0;
    }
}

/* Rule 2: after its process is dead and the disconnect is over, nothing of it arrives any more. */
void case_source_dies(void)
{
    const struct bt_kv_layout layout = {
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    struct kvt_target_options options = {.transport = transport,
                                         .pool_device = target_device(),
                                         .layout = layout,
                                         .pool_pages = 100,
                                         .max_jobs = 4};
    size_t pool_bytes = bt_kv_pool_bytes(&layout, 100), sizes[2];
    struct kvt_remote remote = {.incarnation = TARGET_INCARNATION, .pool_pages = 100};
    unsigned char *before = malloc(pool_bytes);
    struct kvt_target *target;
    struct kvt_target_event event;
    int fds[2], status;
    pid_t child;

    CHECK(before != NULL && pipe(fds) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0)
        push_for_ever(fds[0]);
    CHECK(kvt_target_create(&options, NULL, &target) == BT_OK);
    remote.pool_base = (uintptr_t)kvt_target_pool(target);
    kvt_target_address(target, &remote.address, &sizes[0]);
    kvt_target_key(target, &remote.key, &sizes[1]);
    remote.address_size = sizes[0];
    remote.key_size = sizes[1];
    CHECK(write(fds[1], &remote, sizeof(remote)) == sizeof(remote));
    CHECK(write(fds[1], sizes, sizeof(sizes)) == sizeof(sizes));
    CHECK(write(fds[1], remote.address, sizes[0]) == (ssize_t)sizes[0]);
    CHECK(write(fds[1], remote.key, sizes[1]) == (ssize_t)sizes[1]);
    wait_for_bytes(kvt_target_pool(target), pool_bytes);

    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    CHECK(kvt_target_disconnect(target, 99) == BT_OK); /* never seen: fine */
    CHECK(kvt_target_disconnect(target, SOURCE_INCARNATION) == BT_OK);
    for (int i = 0; i < 2; i++) {
        event = target_event(target);
        CHECK(event.kind == KVT_TARGET_DISCONNECTED);
    }
    memcpy(before, kvt_target_pool(target), pool_bytes);
    for (int i = 0; i < 4; i++) { /* what could still arrive would need the target's progress */
        uint32_t page = 0;
        CHECK(kvt_target_checksum(target, 1, 1, &page, 64) == BT_OK);
        CHECK(target_event(target).kind == KVT_TARGET_CHECKSUM);
    }
    CHECK(memcmp(before, kvt_target_pool(target), pool_bytes) == 0);
    kvt_target_destroy(target);
    free(before);
    close(fds[0]);
    close(fds[1]);
}

/* Refused before a page of it is touched: petabytes. */
void case_pool_beyond_memory(void)
{
    struct kvt_target_options options = {
        .transport = transport,
        .pool_device = target_device(),
        .layout = {.layer_count = 61, .kv_lora_rank = 512, .qk_rope_head_dim = 64, .dtype = BT_F32},
        .pool_pages = UINT32_MAX,
        .max_jobs = 1};
    struct kvt_target *target = NULL;
    struct bt_error error = {0};

    CHECK(kvt_target_create(&options, &error, &target) == BT_ERR_NO_MEMORY);
    CHECK(target == NULL && strstr(error.text, "available") != NULL);
}

/* Its count of what is over follows the event by an instruction or two. */
static void until_accepted(enum bt_status (*submit)(struct kvt_target *target),
                           struct kvt_target *target)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    enum bt_status status;

    while ((status = submit(target)) == BT_ERR_EXHAUSTED) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        sched_yield();
    }
    CHECK(status == BT_OK);
}

static enum bt_status submit_checksum(struct kvt_target *target)
{
    uint32_t page = 1;

    return kvt_target_checksum(target, 1, 1, &page, 9);
}

static enum bt_status submit_disconnect(struct kvt_target *target)
{
    return kvt_target_disconnect(target, 7);
}

void case_target_jobs_are_bounded(void)
{
    struct kvt_target_options options = {
        .transport = transport,
        .pool_device = target_device(),
        .layout = {.layer_count = 1, .kv_lora_rank = 4, .qk_rope_head_dim = 4, .dtype = BT_F32},
        .pool_pages = 2,
        .max_jobs = 3};
    struct rig rig = {.sim = is_sim() ? kvt_sim_create(seed) : NULL};
    struct kvt_target *target;

    options.given = sim_transport(&rig);
    CHECK(kvt_target_create(&options, NULL, &target) == BT_OK);
    for (int round = 0; round < 3; round++) {
        until_accepted(submit_checksum, target);
        until_accepted(submit_checksum, target);
        until_accepted(submit_disconnect, target);
        /* whether they are over or not: nobody took their events */
        CHECK(submit_checksum(target) == BT_ERR_EXHAUSTED);
        CHECK(submit_disconnect(target) == BT_ERR_EXHAUSTED);
        for (int i = 0; i < 3; i++)
            target_event(target);
    }
    kvt_target_destroy(target);
    kvt_sim_destroy(rig.sim);
}

/* The part of TCP in what the target tells; points into it. */
static struct kvt_choice_part tcp_part(enum kvt_blob_kind kind, const void *blob, size_t size)
{
    struct kvt_choice_part parts[KVT_CHOICES_MAX];
    const struct kvt_choice_part *part;
    uint32_t count;

    CHECK(kvt_choice_unpack(kind, blob, size, NULL, parts, &count) == BT_OK);
    part = kvt_choice_find(parts, count, "tcp");
    CHECK(part != NULL);
    return *part;
}

/* TCP only: a source that was told a wrong range writes past the pool. The target drops that,
 * closes the connection, and serves others. */
void case_target_checks_ranges(void)
{
    struct rig rig = {0};
    struct kvt_link *good;
    struct kvt_push_event event;
    struct kvt_remote remote;
    struct kvt_choice_part part;
    struct kvt_key_range range;
    const void *rkey;
    void *forged_part, *forged;
    size_t rkey_size;

    rig_init(&rig);
    good = rig.link;
    target_host_remote(rig.host, &remote);
    part = tcp_part(KVT_BLOB_CHOICE_KEY, remote.key, remote.key_size);
    CHECK(kvt_key_unpack(KVT_BLOB_TCP_KEY, part.bytes, part.size, NULL, &range, &rkey,
                         &rkey_size) == BT_OK);
    range.base -= 64;
    range.bytes += 64;
    CHECK(kvt_key_pack(KVT_BLOB_TCP_KEY, &range, rkey, rkey_size, NULL, &forged_part, &part.size) ==
          BT_OK);
    part.bytes = forged_part;
    CHECK(kvt_choice_pack(KVT_BLOB_CHOICE_KEY, &part, 1, NULL, &forged, &remote.key_size) == BT_OK);
    remote.key = forged;
    remote.incarnation = 3;
    remote.pool_base -= 64;
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    transfers[0].tokens = 5;
    transfers[0].source_pages[0] = transfers[0].target_pages[0] = 0;
    open_push(&rig, &transfers[0], true);
    lease_long(&transfers[0]);
    kvt_push_finish(transfers[0].push);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_PEER_LOST && !event.quiesced);
    kvt_push_close(transfers[0].push);
    kvt_link_release(rig.link);
    free(forged);
    free(forged_part);
    connect_target(&rig); /* the same incarnation of the source comes back */
    CHECK(rig.link == good);
    kvt_link_release(good);
    draw_transfer(&rig, 100, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

static bool owns_socket(pid_t pid, unsigned long inode)
{
    char path[64], wanted[64], target[64];
    struct dirent *entry;
    bool found = false;
    DIR *fds;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
    fds = opendir(path);
    CHECK(fds != NULL);
    while (!found && (entry = readdir(fds)) != NULL) {
        ssize_t size = readlinkat(dirfd(fds), entry->d_name, target, sizeof(target) - 1);
        target[size < 0 ? 0 : size] = '\0';
        found = strcmp(target, wanted) == 0;
    }
    closedir(fds);
    return found;
}

/* Sockets of this process that listen, by /proc; the last one's local address in hex. */
static unsigned listening_sockets(pid_t pid, char *ret_local, size_t size)
{
    static const char *const tables[] = {"/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp"};
    unsigned count = 0;

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        FILE *table = fopen(tables[i], "re");
        char line[512], local[128], state[8];
        unsigned long inode;
        while (table != NULL && fgets(line, sizeof(line), table) != NULL)
            if (sscanf(line, "%*s %127s %*s %7s %*s %*s %*s %*s %*s %lu", local, state, &inode) ==
                    3 &&
                (strcmp(state, "0A") == 0 || i == 2) && owns_socket(pid, inode)) {
                snprintf(ret_local, size, "%s", local);
                count++;
            }
        if (table != NULL)
            fclose(table);
    }
    return count;
}

/* Rule 9: nothing listens but TCP's one port, on the address it was told. */
void case_ports_that_listen(void)
{
    struct rig rig = {0};
    bool tcp = strcmp(transport, "tcp") == 0 || strcmp(transport, "auto") == 0;
    char local[128] = "";

    rig_init(&rig);
    CHECK(listening_sockets(target_host_pid(rig.host), local, sizeof(local)) == (tcp ? 1 : 0));
    CHECK(!tcp || strncmp(local, "0100007F:", 9) == 0);
    CHECK(listening_sockets(getpid(), local, sizeof(local)) == 0);
    rig_finish(&rig);
}

static int dial(const struct kvt_tcp_address *address)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(address->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memcpy(&to.sin_addr, address->ip, sizeof(to.sin_addr));
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
    return fd;
}

/* The ways to be no peer: `kind` 0 to GARBAGE_KINDS - 1. */
#define GARBAGE_KINDS 8
static size_t make_garbage(struct rig *rig, unsigned kind, const struct kvt_tcp_address *address,
                           unsigned char *bytes, size_t size)
{
    struct kvt_tcp_hello hello = {
        .magic = KVT_TCP_MAGIC, .version = KVT_TCP_VERSION, .incarnation = 5};
    struct kvt_tcp_frame frame = {.magic = KVT_TCP_MAGIC, .kind = KVT_TCP_WRITE};
    const uint64_t ucx_magic = UINT64_C(0xcafebabe12345678);

    memset(bytes, 0, size);
    if (kind == 0)
        return 0; /* says nothing */
    if (kind == 1)
        return size; /* zeros */
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)draw(rig, 256);
    if (kind == 2)
        return size;
    memcpy(bytes, &ucx_magic, sizeof(ucx_magic));
    if (kind == 3)
        return size;
    if (kind == 4) { /* a good hello, but for the token */
        memcpy(bytes, &hello, sizeof(hello));
        return size;
    }
    memcpy(hello.token, address->token, sizeof(hello.token));
    memcpy(bytes, &hello, sizeof(hello));
    frame.address = draw(rig, 2) == 0 ? 0 : UINT64_MAX - 3;
    frame.value = kind == 5 ? UINT64_MAX : 8;
    frame.kind = kind == 7 ? 77 : KVT_TCP_WRITE;
    memcpy(bytes + sizeof(hello), &frame, sizeof(frame));
    return kind == 6 ? sizeof(hello) + 5 : size; /* half a frame */
}

/* TCP only. Rule 9: hundreds of connections that are no peers harm nobody. */
void case_garbage_on_the_port(void)
{
    struct rig rig = {0};
    unsigned char bytes[2000];
    struct kvt_tcp_address address;
    struct kvt_choice_part part;
    struct kvt_remote remote;
    const void *payload;
    int fds[300];
    size_t size;

    rig_init(&rig);
    target_host_remote(rig.host, &remote);
    part = tcp_part(KVT_BLOB_CHOICE_ADDRESS, remote.address, remote.address_size);
    CHECK(kvt_blob_unwrap(KVT_BLOB_TCP_ADDRESS, part.bytes, part.size, NULL, &payload, &size) ==
          BT_OK);
    CHECK(size == sizeof(address));
    memcpy(&address, payload, sizeof(address));
    for (unsigned i = 0; i < 300; i++) {
        size_t count = make_garbage(&rig, i % GARBAGE_KINDS, &address, bytes, sizeof(bytes));
        fds[i] = dial(&address);
        if (count > 0)
            CHECK(send(fds[i], bytes, count, MSG_NOSIGNAL) != 0); /* it may be closed already */
        if (i % 100 == 50) {                                      /* in the middle of it */
            draw_transfer(&rig, 100, &transfers[0]);
            push_once(&rig, &transfers[0], true);
        }
    }
    kvt_link_release(rig.link);
    connect_target(&rig); /* a new source gets in between the strangers */
    draw_transfer(&rig, 1000, &transfers[0]);
    push_once(&rig, &transfers[0], false);
    for (unsigned i = 0; i < 300; i++)
        close(fds[i]);
    CHECK(target_host_touched_outside(rig.host, NULL, 0) == 0);
    rig_finish(&rig);
}

/* The name of the rig's link, as a push tells it. */
static uint64_t link_of_push(struct rig *rig)
{
    struct kvt_push_event event;

    draw_transfer(rig, 100, &transfers[0]);
    open_push(rig, &transfers[0], true);
    kvt_push_cancel(transfers[0].push);
    event = take_event(rig);
    CHECK(event.quiesced && event.link != KVT_ANY_LINK);
    kvt_push_close(transfers[0].push);
    return event.link;
}

/* Rules 2 and 12: what says that a link broke comes late and twice, when the source has connected
 * again: the new link is as it was. So is it when another line of it is cut off. */
void case_a_cut_is_of_one_link(void)
{
    struct rig rig = {0};
    struct kvt_cut cut = {.incarnation = SOURCE_INCARNATION, .lines = KVT_ALL_LINES};
    struct kvt_cut other_line = {.incarnation = SOURCE_INCARNATION, .lines = UINT64_C(1) << 5};
    struct kvt_link *old;

    rig_init(&rig);
    cut.link = link_of_push(&rig);
    old = rig.link;
    kvt_link_release(old);
    connect_target(&rig);
    other_line.link = link_of_push(&rig);
    CHECK(other_line.link != cut.link);
    for (int i = 0; i < 2; i++) {
        target_host_cut(rig.host, &cut);
        draw_transfer(&rig, 700, &transfers[0]);
        push_once(&rig, &transfers[0], true);
        target_host_cut(rig.host, &other_line);
    }
    draw_transfer(&rig, 700, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    CHECK(kvt_link_state(rig.link) == KVT_LINK_READY);
    if (strcmp(kvt_link_transport(rig.link), "shm") != 0 &&
        strcmp(kvt_link_transport(rig.link), "cuda_ipc") != 0) { /* whose writes are over at once */
        target_host_cut(rig.host, &(struct kvt_cut){.incarnation = SOURCE_INCARNATION,
                                                    .link = other_line.link,
                                                    .lines = 1});
        wait_link(rig.link, KVT_LINK_FAILED);
    }
    rig_finish(&rig);
}

static void receive_exactly(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = recv(fd, (char *)bytes + at, size - at, 0);
        CHECK(got > 0);
        at += (size_t)got;
    }
}

/* A target in one process: takes what comes, and answers the flush with its last segment. */
static void *answer_and_go(void *arg)
{
    static char payload[1 << 20];
    struct kvt_tcp_frame frame = {.magic = KVT_TCP_MAGIC, .kind = KVT_TCP_READY};
    struct kvt_tcp_hello hello;
    int fd = accept(*(int *)arg, NULL, NULL);

    CHECK(fd >= 0);
    receive_exactly(fd, &hello, sizeof(hello));
    CHECK(send(fd, &frame, sizeof(frame), 0) == sizeof(frame));
    for (;;) {
        receive_exactly(fd, &frame, sizeof(frame));
        if (frame.kind != KVT_TCP_WRITE)
            break;
        CHECK(frame.value <= sizeof(payload));
        receive_exactly(fd, payload, frame.value);
    }
    frame.kind = KVT_TCP_FLUSHED;
    CHECK(send(fd, &frame, sizeof(frame), MSG_MORE) == sizeof(frame)); /* with the FIN */
    close(fd);
    return NULL;
}

static void listen_anywhere(int *ret_fd, struct kvt_tcp_address *ret_address)
{
    struct sockaddr_in bound = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(bound);

    *ret_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(*ret_fd >= 0 && bind(*ret_fd, (struct sockaddr *)&bound, size) == 0 &&
          listen(*ret_fd, 1) == 0 && getsockname(*ret_fd, (struct sockaddr *)&bound, &size) == 0);
    *ret_address = (struct kvt_tcp_address){.family = AF_INET, .port = ntohs(bound.sin_port)};
    memcpy(ret_address->ip, &bound.sin_addr, sizeof(bound.sin_addr));
}

/* One part of TCP, as `auto` packs it. */
static void wrap_choice(enum kvt_blob_kind kind, void *blob, size_t size, const void **ret_blob,
                        size_t *ret_size)
{
    struct kvt_choice_part part = {.name = "tcp", .bytes = blob, .size = size};
    void *wrapped;

    CHECK(kvt_choice_pack(kind, &part, 1, NULL, &wrapped, ret_size) == BT_OK);
    *ret_blob = wrapped;
    free(blob);
}

/* TCP only: the answer to the flush and the end of the connection come in one segment, so that the
 * link has failed when the push looks at its flush. */
void case_flushed_and_gone(void)
{
    struct rig rig = {
        .layout = {.layer_count = 3, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16},
        .source_pages = 8,
        .target_pages = 8};
    struct kvt_key_range range = {
        .base = 1 << 20, .bytes = kvt_progress_memory_bytes(&rig.layout, rig.target_pages)};
    struct kvt_remote remote = {.incarnation = 9, .pool_base = range.base, .pool_pages = 8};
    struct kvt_tcp_address address;
    struct transfer *t = &transfers[0];
    struct kvt_push_event event;
    pthread_t thread;
    void *blob;
    size_t size;
    int fd;

    listen_anywhere(&fd, &address);
    CHECK(pthread_create(&thread, NULL, answer_and_go, &fd) == 0);
    start_source(&rig, SOURCE_INCARNATION);
    CHECK(kvt_blob_wrap(KVT_BLOB_TCP_ADDRESS, &address, sizeof(address), NULL, &blob, &size) ==
          BT_OK);
    wrap_choice(KVT_BLOB_CHOICE_ADDRESS, blob, size, &remote.address, &remote.address_size);
    CHECK(kvt_key_pack(KVT_BLOB_TCP_KEY, &range, NULL, 0, NULL, &blob, &size) == BT_OK);
    wrap_choice(KVT_BLOB_CHOICE_KEY, blob, size, &remote.key, &remote.key_size);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    draw_transfer(&rig, 200, t);
    open_push(&rig, t, false);
    lease_long(t);
    kvt_push_finish(t->push);
    event = take_event(&rig);
    CHECK(event.status == BT_OK && event.quiesced && event.cut_lines == 0);
    kvt_push_close(t->push);
    CHECK(pthread_join(thread, NULL) == 0);
    close(fd);
    free((void *)remote.address);
    free((void *)remote.key);
    rig_finish(&rig);
}
