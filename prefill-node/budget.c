#include "prefill-node/budget.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/model/forward.h"

#define PROMPT_TOKENS  2048
#define SMALLEST_CHUNK 64
#define LIMIT_NS       (2 * BT_NS_PER_S)
#define NEAR_BEST      0.95
#define REPEATS        3
#define REPEAT_BELOW   32 /* runs that take less than this part of the time are repeated */
#define FILE_BYTES     4096
#define CPU_BYTES      128
#define MAX_CHUNK      65536

/* ---- the choice */

static double best_of(const struct pf_budget_curve *curve)
{
    double best = 0;
    for (uint32_t i = 0; i < curve->count; i++) {
        best = fmax(best, curve->points[i].tokens_per_s);
    }
    return best;
}

uint32_t pf_budget_choose(const struct pf_budget_curve *curve)
{
    double enough = NEAR_BEST * best_of(curve);
    uint32_t chosen = 0;
    while (chosen < curve->count && curve->points[chosen].tokens_per_s < enough) {
        chosen++;
    }
    if (chosen == curve->count) {
        return PF_BUDGET_FALLBACK;
    }
    uint32_t tokens = curve->points[chosen].tokens;
    bool still_rises = curve->is_cut && chosen + 1 == curve->count;
    return still_rises && tokens < PF_BUDGET_FALLBACK ? PF_BUDGET_FALLBACK : tokens;
}

/* ---- measuring */

/* A model of one layer, which is one of the real one's. */
struct probe {
    struct bt_model view;
    const struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout layout; /* of one layer */
    void *pool;
    uint32_t *tokens, *pages;
    uint32_t prompt_tokens;
};

static void probe_finish(struct probe *probe)
{
    bt_forward_destroy(probe->forward);
    bt_device_free(probe->model->device, probe->pool);
    free(probe->tokens);
    free(probe->pages);
}

static enum bt_status probe_init(struct probe *probe, const struct bt_model *model,
                                 const struct bt_kv_layout *layout, struct bt_error *error)
{
    uint32_t length = model->max_tokens < PROMPT_TOKENS ? model->max_tokens : PROMPT_TOKENS;
    uint32_t page_count = bt_kv_pages_for(length);
    *probe =
        (struct probe){.view = *model, .model = model, .layout = *layout, .prompt_tokens = length};
    probe->view.config.num_hidden_layers = 1;
    probe->layout.layer_count = 1;
    probe->tokens = calloc(length, sizeof(uint32_t));
    probe->pages = calloc(page_count, sizeof(uint32_t));
    if (!probe->tokens || !probe->pages) {
        probe_finish(probe);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "chunk size: no memory to measure it");
    }
    for (uint32_t i = 0; i < length; i++) {
        probe->tokens[i] = (uint32_t)(bt_random_u64(1, i, 0) % model->config.vocab_size);
    }
    for (uint32_t i = 0; i < page_count; i++) {
        probe->pages[i] = i;
    }
    const struct bt_forward_options options = {
        .max_rows = length, .max_logits = 1, .max_sequences = 1};
    enum bt_status status = bt_device_alloc(
        model->device, bt_kv_pool_bytes(&probe->layout, page_count), error, &probe->pool);
    if (status == BT_OK) {
        status = bt_forward_create(&probe->view, &options, error, &probe->forward);
    }
    if (status != BT_OK) {
        probe_finish(probe);
    }
    return status;
}

/* Fails as a device does. */
static enum bt_status run_chunk(struct probe *probe, uint32_t layer, uint32_t tokens,
                                int64_t *ret_ns)
{
    const struct bt_sequence_rows sequence = {probe->pages, probe->prompt_tokens - tokens, 0,
                                              tokens};
    const struct bt_forward_batch batch = {
        .form = BT_FORWARD_MULTI_HEAD,
        .tokens = probe->tokens,
        .rows = tokens,
        .sequences = &sequence,
        .sequence_count = 1,
        .kv_pool = probe->pool,
        .layout = probe->layout,
        .pool_pages = bt_kv_pages_for(probe->prompt_tokens),
        .every_row = true, /* or the last layer would do only the rows with logits */
    };
    const float *logits;
    int64_t start_ns = bt_clock_now_ns();
    probe->view.layers = &probe->model->layers[layer];
    enum bt_status status = bt_forward_run(probe->forward, &batch, &logits);
    *ret_ns = bt_clock_now_ns() - start_ns;
    return status;
}

static bool is_moe(const struct bt_model *model, uint32_t layer)
{
    return model->layers[layer].experts.experts > 0;
}

/* Nanoseconds of a chunk through all layers: one of each kind, times their number. */
static enum bt_status chunk_ns(struct probe *probe, uint32_t tokens, double *ret_ns)
{
    double sum = 0;
    enum bt_status status = BT_OK;
    for (int kind = 0; kind < 2; kind++) {
        uint32_t layers = probe->model->config.num_hidden_layers, count = 0, last = 0;
        for (uint32_t i = 0; i < layers; i++) {
            if (is_moe(probe->model, i) == (kind == 1)) {
                count++;
                last = i;
            }
        }
        int64_t once_ns = 0;
        if (count && status == BT_OK) {
            status = run_chunk(probe, last, tokens, &once_ns);
        }
        sum += (double)count * (double)once_ns;
    }
    *ret_ns = sum;
    return status;
}

static bool is_flat(const struct pf_budget_curve *curve)
{
    uint32_t n = curve->count;
    return n >= 3 && curve->points[n - 1].tokens_per_s < 1.02 * curve->points[n - 2].tokens_per_s &&
           curve->points[n - 2].tokens_per_s < 1.02 * curve->points[n - 3].tokens_per_s;
}

static enum bt_status measure(struct probe *probe, int64_t limit_ns, struct pf_budget_curve *curve)
{
    int64_t until_ns = bt_clock_now_ns() + limit_ns, once_ns = 0;
    uint32_t tokens = SMALLEST_CHUNK < probe->prompt_tokens ? SMALLEST_CHUNK : probe->prompt_tokens;
    double least_ns, ns;
    enum bt_status status = chunk_ns(probe, tokens, &ns); /* touches weights and scratch */
    for (; status == BT_OK && tokens <= probe->prompt_tokens && !is_flat(curve); tokens *= 2) {
        int64_t begin_ns = bt_clock_now_ns();
        curve->is_cut = curve->count > 0 && begin_ns + 2 * once_ns > until_ns;
        if (curve->is_cut) {
            break;
        }
        status = chunk_ns(probe, tokens, &least_ns);
        once_ns = bt_clock_now_ns() - begin_ns;
        for (int i = 1; i < REPEATS && status == BT_OK && once_ns < limit_ns / REPEAT_BELOW; i++) {
            status = chunk_ns(probe, tokens, &ns);
            least_ns = fmin(least_ns, ns);
        }
        curve->points[curve->count++] =
            (struct pf_budget_point){tokens, (double)tokens * 1e9 / fmax(least_ns, 1)};
    }
    return status;
}

enum bt_status pf_budget_measure(const struct bt_model *model, const struct bt_kv_layout *layout,
                                 int64_t limit_ns, struct bt_error *error,
                                 struct pf_budget_curve *ret_curve)
{
    struct probe probe;
    struct pf_budget_curve curve = {0};
    enum bt_status status = probe_init(&probe, model, layout, error);
    if (status != BT_OK) {
        return status;
    }
    status = measure(&probe, limit_ns, &curve);
    if (status != BT_OK) {
        bt_error_set(error, status, "chunk size: a chunk to measure it failed: %s",
                     bt_forward_error(probe.forward));
    } else {
        *ret_curve = curve;
    }
    probe_finish(&probe);
    return status;
}

/* ---- the file */

static int format_head(const struct bt_model *model, const char *cpu, char *text, size_t size)
{
    return snprintf(text, size,
                    "baton prefill budget 1\nmodel %016" PRIx64 "\narithmetic %s\nkernels %s\n"
                    "threads %" PRIu32 "\nmax_tokens %" PRIu32 "\ncpu %s\n",
                    model->hash, bt_model_dtype_name(model->dtype), model->kernels->name,
                    bt_team_threads(model->team), model->max_tokens, cpu);
}

bool pf_budget_format(const struct pf_budget_curve *curve, const struct bt_model *model,
                      const char *cpu, char *text, size_t size)
{
    size_t at = (size_t)format_head(model, cpu, text, size);
    for (uint32_t i = 0; i < curve->count && at < size; i++) {
        at += (size_t)snprintf(text + at, size - at, "point %" PRIu32 " %.1f\n",
                               curve->points[i].tokens, curve->points[i].tokens_per_s);
    }
    if (at < size) {
        at += (size_t)snprintf(text + at, size - at, "end\n");
    }
    return at < size;
}

static bool parse_point(const char *line, uint32_t above, struct pf_budget_point *ret_point)
{
    int used = 0;
    struct pf_budget_point point;
    if (sscanf(line, "point %" SCNu32 " %lf%n", &point.tokens, &point.tokens_per_s, &used) != 2 ||
        line[used] != '\n' || point.tokens <= above || point.tokens > MAX_CHUNK ||
        !isfinite(point.tokens_per_s) || point.tokens_per_s <= 0) {
        return false;
    }
    *ret_point = point;
    return true;
}

bool pf_budget_parse(const char *text, const struct bt_model *model, const char *cpu,
                     struct pf_budget_curve *ret_curve)
{
    char head[512];
    struct pf_budget_curve curve = {0};
    size_t length = (size_t)format_head(model, cpu, head, sizeof(head));
    if (length >= sizeof(head) || strncmp(text, head, length) != 0) {
        return false;
    }
    uint32_t last = 0;
    const char *line = text + length;
    for (; !strncmp(line, "point ", 6); line = strchr(line, '\n') + 1) {
        if (curve.count == PF_BUDGET_MAX_POINTS ||
            !parse_point(line, last, &curve.points[curve.count])) {
            return false;
        }
        last = curve.points[curve.count++].tokens;
    }
    if (curve.count == 0 || strcmp(line, "end\n") != 0) {
        return false;
    }
    *ret_curve = curve;
    return true;
}

/* "model name" of /proc/cpuinfo; "unknown" where it has none. */
static void read_cpu(char ret_name[CPU_BYTES])
{
    char line[256];
    snprintf(ret_name, CPU_BYTES, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file && fgets(line, sizeof(line), file)) {
        const char *colon = strchr(line, ':');
        if (!strncmp(line, "model name", 10) && colon) {
            snprintf(ret_name, CPU_BYTES, "%.*s", (int)strcspn(colon + 1, "\n"), colon + 1);
            break;
        }
    }
    if (file) {
        fclose(file);
    }
}

/* False: there is no place for it. */
static bool cache_path(const struct bt_model *model, const char *cache_dir, char *path, size_t size)
{
    char dir[PATH_MAX / 2];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache_dir) {
        snprintf(dir, sizeof(dir), "%s", cache_dir);
    } else if (cache && cache[0] == '/') {
        snprintf(dir, sizeof(dir), "%s/baton", cache);
    } else if (home && home[0] == '/') {
        snprintf(dir, sizeof(dir), "%s/.cache", home);
        (void)mkdir(dir, 0700);
        snprintf(dir, sizeof(dir), "%s/.cache/baton", home);
    } else {
        return false;
    }
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return false;
    }
    return (size_t)snprintf(path, size, "%s/prefill-budget-%016" PRIx64 "-%s-%s-%" PRIu32, dir,
                            model->hash, bt_model_dtype_name(model->dtype), model->kernels->name,
                            bt_team_threads(model->team)) < size;
}

/* A reader sees the old file or the whole new one. */
static bool write_file(const char *path, const char *text)
{
    char next[PATH_MAX];
    if (snprintf(next, sizeof(next), "%s.%jd", path, (intmax_t)getpid()) >= (int)sizeof(next)) {
        return false;
    }
    FILE *file = fopen(next, "we");
    if (!file) {
        return false;
    }
    bool written = fputs(text, file) >= 0;
    written = fclose(file) == 0 && written;
    if (!written || rename(next, path) != 0) {
        unlink(next);
        return false;
    }
    return true;
}

static void log_curve(const struct pf_budget_curve *curve, const char *from)
{
    char text[512] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < curve->count && at < sizeof(text); i++) {
        at += (size_t)snprintf(text + at, sizeof(text) - at, " %" PRIu32 ": %.0f",
                               curve->points[i].tokens, curve->points[i].tokens_per_s);
    }
    bt_log_info(0, "chunks of %" PRIu32 " tokens; tokens/s by chunk size, %s:%s%s",
                pf_budget_choose(curve), from, text, curve->is_cut ? ", then time was up" : "");
}

/* The GPU's name where there is one: it decides then. */
static void read_hardware(struct bt_device *device, char ret_name[CPU_BYTES])
{
    struct bt_device_info info;
    if (device->memory == BT_MEMORY_HOST) {
        read_cpu(ret_name);
        return;
    }
    bt_device_info(device, &info);
    snprintf(ret_name, CPU_BYTES, "%.*s", CPU_BYTES - 1, info.description);
}

enum bt_status pf_budget_find(const struct bt_model *model, const struct bt_kv_layout *layout,
                              const char *cache_dir, struct bt_error *error, uint32_t *ret_tokens)
{
    char path[PATH_MAX], cpu[CPU_BYTES], *text = NULL;
    struct pf_budget_curve curve;
    size_t bytes;
    bool has_path = cache_path(model, cache_dir, path, sizeof(path));
    read_hardware(model->device, cpu);
    if (has_path && bt_file_read(path, FILE_BYTES, NULL, &text, &bytes) == BT_OK &&
        strlen(text) == bytes && pf_budget_parse(text, model, cpu, &curve)) {
        log_curve(&curve, path);
    } else {
        enum bt_status status = pf_budget_measure(model, layout, LIMIT_NS, error, &curve);
        if (status != BT_OK) {
            free(text);
            return status;
        }
        log_curve(&curve, "measured");
        char made[FILE_BYTES];
        if (has_path && !curve.is_cut &&
            (!pf_budget_format(&curve, model, cpu, made, sizeof(made)) ||
             !write_file(path, made))) {
            bt_log_info(0, "%s can't be written: chunk sizes are measured at each start", path);
        }
    }
    free(text);
    *ret_tokens = pf_budget_choose(&curve);
    return BT_OK;
}
