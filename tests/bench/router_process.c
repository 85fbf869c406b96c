/* The processes of the benchmark, and what they cost. */
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/process.h"
#include "tests/bench/router_bench.h"

#define MAX_ARGUMENTS 40
#define START_S       30

double bench_now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void bench_die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "router: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    exit(1);
}

static void pause_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* ---- life */

/* The router has a core of its own where there are several. */
static void settle_on(bool router)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < 2) {
        return;
    }
    if (router) {
        CPU_ZERO(&set);
        CPU_SET(BENCH_CPU_ROUTER, &set);
    } else {
        CPU_CLR(BENCH_CPU_ROUTER, &set);
    }
    sched_setaffinity(0, sizeof set, &set);
}

static pid_t fork_on(bool router)
{
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) {
        bench_die("fork: %m");
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
        settle_on(router);
    }
    return pid;
}

pid_t bench_fork(void)
{
    return fork_on(false);
}

pid_t bench_fork_router(void)
{
    return fork_on(true);
}

void bench_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

void bench_raise_descriptors(uint64_t count)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max >= count) {
        return;
    }
    limit.rlim_cur = limit.rlim_max = count;
    setrlimit(RLIMIT_NOFILE, &limit); /* only root may: where not, fewer streams are measured */
}

/* ---- the model: a tokenizer of the tests, and a context that takes long prompts */

static void link_file(const char *from, const char *directory, const char *name)
{
    char source[512], target[512];
    snprintf(source, sizeof source, "%s/%s", from, name);
    snprintf(target, sizeof target, "%s/%s", directory, name);
    char *real = realpath(source, NULL);
    if (real && symlink(real, target) != 0) {
        bench_die("%s: %m", target);
    }
    free(real);
}

static void find_tokens(const char *model_dir)
{
    static const char *const texts[BENCH_TOKEN_KINDS] = {"\u0120with", "\u0120said", "\u0120code",
                                                         "~"};
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizer.json", model_dir);
    json_t *root = json_load_file(path, 0, NULL);
    json_t *vocabulary = json_object_get(json_object_get(root, "model"), "vocab");
    for (int i = 0; i < BENCH_TOKEN_KINDS; i++) {
        json_t *id = json_object_get(vocabulary, texts[i]);
        if (!json_is_integer(id)) {
            bench_die("%s has no token \"%s\"", path, texts[i]);
        }
        bench_tokens[i] = (uint32_t)json_integer_value(id);
    }
    json_decref(root);
}

static void make_model(const char *from, const char *directory)
{
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", from);
    json_t *root = json_load_file(path, 0, NULL);
    json_object_set_new(root, "max_position_embeddings", json_integer(1 << 20));
    snprintf(path, sizeof path, "%s/config.json", directory);
    if (!root || json_dump_file(root, path, 0) != 0) {
        bench_die("%s can't be written", path);
    }
    json_decref(root);
    link_file(from, directory, "tokenizer.json");
    link_file(from, directory, "tokenizer_config.json");
    link_file(from, directory, "generation_config.json");
    find_tokens(from);
}

static void remove_directory(const char *directory)
{
    DIR *all = opendir(directory);
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        if (entry->d_name[0] != '.') {
            unlinkat(dirfd(all), entry->d_name, 0);
        }
    }
    closedir(all);
    rmdir(directory);
}

/* ---- the router */

static bool read_ready(const char *path, struct bench_router *ret_router)
{
    json_t *root = json_load_file(path, 0, NULL);
    const char *http = json_string_value(json_object_get(root, "http"));
    const char *rpc = json_string_value(json_object_get(root, "rpc"));
    if (http && rpc) {
        ret_router->port = (uint16_t)strtoul(strrchr(http, ':') + 1, NULL, 10);
        snprintf(ret_router->rpc, sizeof ret_router->rpc, "%s", rpc);
    }
    json_decref(root);
    return http && rpc;
}

void bench_router_start(const struct bench_options *options, const char *const *arguments,
                        struct bench_router *ret_router)
{
    char directory[] = "/tmp/bench-router-XXXXXX", ready[64];
    if (!mkdtemp(directory)) {
        bench_die("a directory in /tmp: %m");
    }
    make_model(options->model_dir, directory);
    snprintf(ready, sizeof ready, "%s/ready", directory);
    const char *workers_at = options->workers_at ? options->workers_at : "tcp://127.0.0.1:*";
    const char *fixed[] = {options->router, "--model",          directory, "--served-model-name",
                           "sim",           "--port",           "0",       "--worker-endpoint",
                           workers_at,      "--ready-file",     ready,     "--log-level",
                           "error",         "--queue-capacity", "1000000", "--request-timeout",
                           "3600s",         "--prefill-depth",  "3600s"};
    const char *all[MAX_ARGUMENTS] = {0};
    size_t count = sizeof fixed / sizeof *fixed;
    memcpy(all, fixed, sizeof fixed);
    for (size_t i = 0; arguments && arguments[i] && count + 1 < MAX_ARGUMENTS; i++) {
        all[count++] = arguments[i];
    }
    ret_router->pid = fork_on(true);
    if (ret_router->pid == 0) {
        execv(options->router, (char *const *)all);
        bench_die("%s: %m", options->router);
    }
    double until = bench_now_s() + START_S;
    while (!read_ready(ready, ret_router)) {
        if (bench_now_s() > until || waitpid(ret_router->pid, NULL, WNOHANG) != 0) {
            bench_die("the router does not start");
        }
        pause_ms(10);
    }
    remove_directory(directory); /* the router has read it */
}

void bench_wait_registered(uint64_t count)
{
    double until = bench_now_s() + START_S;
    while (atomic_load(&bench_shared->registered) < count) {
        if (bench_now_s() > until) {
            bench_die("the simulated workers do not register");
        }
        pause_ms(10);
    }
    pause_ms(200); /* the router's connections to them */
}

/* ---- what it costs */

static void add_thread(pid_t pid, const char *thread, struct bench_cpu *cpu)
{
    char path[320], name[32] = "";
    unsigned long long ran_ns = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)pid, thread);
    FILE *file = fopen(path, "re");
    if (!file) {
        return;
    }
    if (fscanf(file, "%llu", &ran_ns) != 1) {
        ran_ns = 0;
    }
    fclose(file);
    snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)pid, thread);
    file = fopen(path, "re");
    if (file && !fgets(name, sizeof name, file)) {
        name[0] = '\0';
    }
    if (file) {
        fclose(file);
    }
    double seconds = (double)ran_ns / 1e9;
    cpu->all += seconds;
    if (strncmp(name, "ZMQ", 3) == 0) {
        cpu->io += seconds;
    } else if (strtol(thread, NULL, 10) == pid) {
        cpu->loop += seconds;
    } else {
        cpu->tokenizer += seconds;
    }
}

void bench_cpu_read(pid_t pid, struct bench_cpu *ret_cpu)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    *ret_cpu = (struct bench_cpu){0};
    DIR *all = opendir(path);
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        if (entry->d_name[0] != '.') {
            add_thread(pid, entry->d_name, ret_cpu);
        }
    }
    if (all) {
        closedir(all);
    }
}

struct bench_cpu bench_cpu_since(pid_t pid, const struct bench_cpu *before)
{
    struct bench_cpu now;
    bench_cpu_read(pid, &now);
    return (struct bench_cpu){now.loop - before->loop, now.io - before->io,
                              now.tokenizer - before->tokenizer, now.all - before->all};
}

double bench_rss_bytes(pid_t pid)
{
    char path[64];
    unsigned long long total = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file || fscanf(file, "%llu %llu", &total, &resident) != 2) {
        bench_die("%s can't be read", path);
    }
    fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

double bench_metric(uint16_t port, const char *name)
{
    static char text[1 << 20];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    static const char get[] = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        write(fd, get, sizeof get - 1) < 0) {
        bench_die("/metrics: %m");
    }
    size_t size = 0;
    ssize_t more;
    while (size < sizeof text - 1 && (more = read(fd, text + size, sizeof text - 1 - size)) > 0) {
        size += (size_t)more;
    }
    close(fd);
    text[size] = '\0';
    char line[128];
    snprintf(line, sizeof line, "\n%s", name);
    const char *found = strstr(text, line);
    return found ? strtod(strchr(found + 1, ' '), NULL) : -1;
}

void bench_fill_common(Baton__V1__ProcessId *ret_process,
                       Baton__V1__LayoutFingerprint *ret_fingerprint)
{
    static struct bt_process_id self;
    struct bt_error error;
    if (bt_process_self(&error, &self) != BT_OK) {
        bench_die("%s", error.text);
    }
    baton__v1__process_id__init(ret_process);
    ret_process->host = self.host;
    ret_process->pid = self.pid;
    ret_process->start_ticks = self.start_ticks;
    baton__v1__layout_fingerprint__init(ret_fingerprint);
    ret_fingerprint->layout_version = 1;
    ret_fingerprint->model_hash = 77;
    ret_fingerprint->model_name = (char *)"simulated";
    ret_fingerprint->kv_dtype = (char *)"bf16";
    ret_fingerprint->arithmetic = (char *)"float32";
    ret_fingerprint->page_tokens = 64;
    ret_fingerprint->layer_count = 6;
    ret_fingerprint->kv_lora_rank = 64;
    ret_fingerprint->qk_rope_head_dim = 16;
}
