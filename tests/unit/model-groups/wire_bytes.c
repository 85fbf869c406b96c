#include "tests/unit/model-groups/wire_bytes.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/model/forward.h"
#include "common/model/safetensors.h"

#define MAX_RANKS  4
#define MAX_TOKENS 160
#define PAGES      (MAX_TOKENS / BT_PAGE_TOKENS + 1)
#define MAX_K      8
#define LIMIT_S    300
#define TIMEOUT_NS (200 * BT_NS_PER_S)

static const char *const prompts[MAX_RANKS] = {"recall-150", "story", "unicode", "chat-addition"};

static const struct layout {
    const char *name;
    uint32_t tp, ep; /* 0: none */
} layouts[] = {{"tp2", 2, 0}, {"tp2_ep2", 2, 2}, {"tp4_ep4", 4, 4}, {"ep2", 0, 2}, {"ep4", 0, 4}};

struct prompt {
    uint32_t tokens[MAX_TOKENS], count;
    /* By MoE layer; run alone. */
    uint32_t experts[WIRE_LAYERS_MAX][MAX_TOKENS * MAX_K];
};

/* Shared with the ranks. */
struct setting {
    char model[512], endpoint[64];
    struct bt_model_config config;
    struct prompt prompts[MAX_RANKS];
    struct bt_group_traffic traffic[MAX_RANKS];
};

/* In a process of its own. */
static void die(const char *what)
{
    fprintf(stderr, "wire bytes: %s\n", what);
    _exit(1);
}

/* ---- runs ---- */

struct runner {
    struct setting *setting;
    const struct layout *layout; /* NULL: alone */
    uint32_t rank;
    struct prompt *prompt;
    struct bt_group *group;
    struct bt_placement *placement;
    uint32_t moe_layer; /* that the probe sees next */
};

static void see_routing(void *context, int32_t layer, const float *x, const uint32_t *experts,
                        const float *weights)
{
    struct runner *r = context;
    (void)layer, (void)x, (void)weights;
    if (!experts)
        return;
    size_t picks = (size_t)r->prompt->count * r->setting->config.route.experts_per_token;
    memcpy(r->prompt->experts[r->moe_layer++], experts, picks * sizeof(*experts));
}

static void join(struct runner *r)
{
    const struct layout *layout = r->layout;
    const struct bt_model_config *c = &r->setting->config;
    struct bt_error error = {0};
    struct bt_group_options options = {
        .transport = "auto",
        .rank = r->rank,
        .size = layout->tp > layout->ep ? layout->tp : layout->ep,
        .endpoint = r->setting->endpoint,
        .secret = "a secret of the tests",
        .connect_timeout_ns = TIMEOUT_NS,
        .wait_timeout_ns = TIMEOUT_NS,
        .limits = bt_forward_group_limits(c, MAX_TOKENS, layout->tp ? layout->tp : 1)};
    const struct bt_placement_options placement = {.kind = BT_PLACEMENT_ROUND_ROBIN,
                                                   .layers = bt_model_moe_layers(c),
                                                   .experts = c->n_routed_experts,
                                                   .ranks = layout->ep,
                                                   .machines = 1,
                                                   .groups = 1};
    options.limits.broadcast_bytes = 64;
    if (bt_group_create(&options, &error, &r->group) != BT_OK ||
        (layout->ep && bt_placement_create(&placement, &error, &r->placement) != BT_OK))
        die(error.text);
}

/* The whole prompt in one run, with logits for its last row. */
static void run(struct runner *r)
{
    static const struct layout none = {"alone", 0, 0};
    const struct layout *layout = r->layout ? r->layout : &none;
    struct bt_error error = {0};
    struct bt_model *model;
    struct bt_forward *forward;
    const struct bt_model_options options = {.dir = r->setting->model,
                                             .dtype = BT_MODEL_BFLOAT16,
                                             .tp_size = layout->tp,
                                             .tp_rank = layout->tp ? r->rank : 0,
                                             .placement = r->placement,
                                             .ep_rank = layout->ep ? r->rank : 0};
    const struct bt_forward_options how = {.max_rows = MAX_TOKENS,
                                           .max_logits = 1,
                                           .tp = layout->tp ? r->group : NULL,
                                           .ep = layout->ep ? r->group : NULL,
                                           .placement = r->placement};
    if (bt_model_load(&options, &error, &model) != BT_OK ||
        bt_forward_create(model, &how, &error, &forward) != BT_OK)
        die(error.text);
    struct bt_kv_layout kv = bt_model_kv_layout(model, BT_BF16);
    uint32_t pages[PAGES], last = r->prompt->count - 1;
    for (uint32_t i = 0; i < PAGES; i++)
        pages[i] = i;
    const struct bt_sequence_rows sequence = {pages, 0, 0, r->prompt->count};
    const struct bt_forward_batch batch = {.form = BT_FORWARD_MULTI_HEAD,
                                           .tokens = r->prompt->tokens,
                                           .rows = r->prompt->count,
                                           .sequences = &sequence,
                                           .sequence_count = 1,
                                           .kv_pool = calloc(1, bt_kv_pool_bytes(&kv, PAGES)),
                                           .layout = kv,
                                           .pool_pages = PAGES,
                                           .logit_rows = &last,
                                           .logit_count = 1,
                                           .probe = r->layout ? NULL : see_routing,
                                           .context = r};
    const float *logits;
    if (!batch.kv_pool || bt_forward_run(forward, &batch, &logits) != BT_OK)
        die("a run failed");
    free(batch.kv_pool);
    bt_forward_destroy(forward);
    bt_model_destroy(model);
}

static void run_rank(struct runner *r)
{
    if (r->layout)
        join(r);
    run(r);
    if (r->layout)
        bt_group_traffic(r->group, &r->setting->traffic[r->rank]);
    bt_group_destroy(r->group);
    bt_placement_destroy(r->placement);
}

/* Each tp group has a prompt; without a layout each process runs one alone. */
static bool run_all(struct setting *setting, const struct layout *layout, uint32_t count)
{
    pid_t pids[MAX_RANKS], parent = getpid();
    bool well = true;
    fflush(NULL);
    for (uint32_t i = 0; i < count; i++) {
        pids[i] = fork();
        if (pids[i] != 0)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        alarm(LIMIT_S);
        struct runner runner = {
            .setting = setting,
            .layout = layout,
            .rank = i,
            .prompt = &setting->prompts[layout && layout->tp ? 0 : i],
        };
        run_rank(&runner);
        _exit(0);
    }
    for (uint32_t i = 0; i < count; i++) {
        int state = 1;
        well = pids[i] > 0 && waitpid(pids[i], &state, 0) == pids[i] && state == 0 && well;
    }
    return well;
}

/* ---- predictions ---- */

struct bytes {
    double dispatch, combine, reduce;
};

/* Of one row of a layer whose home is `rank`. */
static void predict_row(const struct layout *layout, const struct bt_model_config *c, uint32_t rank,
                        const uint32_t *experts, struct bytes *bytes)
{
    double row = (double)c->hidden_size * 2; /* bf16, both ways */
    uint32_t seen = 0;
    for (uint32_t i = 0; i < c->route.experts_per_token; i++) {
        uint32_t holder = experts[i] % layout->ep; /* round-robin */
        if (holder == rank)
            continue;
        bytes->combine += row;
        bytes->dispatch += seen >> holder & 1 ? 0 : row;
        seen |= 1u << holder;
    }
}

/* The first rows % size ranks have one more. */
static uint32_t home_of(uint32_t row, uint32_t rows, uint32_t size)
{
    uint32_t each = rows / size, more = rows % size, first = more * (each + 1);
    return row < first ? row / (each + 1) : more + (row - first) / each;
}

/* All layers but the last of all rows, that of the last row alone: which is the share of rank 0. */
static struct bytes predict_prompt(const struct layout *layout, const struct bt_model_config *c,
                                   const struct prompt *prompt, uint32_t rank)
{
    struct bytes bytes = {0};
    uint32_t layers = bt_model_moe_layers(c), k = c->route.experts_per_token, rows = prompt->count;
    for (uint32_t layer = 0; layout->ep && layer < layers; layer++) {
        for (uint32_t row = layer + 1 == layers ? rows - 1 : 0; row < rows; row++) {
            uint32_t home =
                layer + 1 == layers ? 0 : home_of(row, rows, layout->tp ? layout->tp : 1);
            predict_row(layout, c, layout->tp ? home : rank,
                        prompt->experts[layer] + (size_t)row * k, &bytes);
        }
    }
    if (layout->tp) {
        double passes = 2.0 * (c->num_hidden_layers - 1) * rows + 3; /* of a row; 1 with logits */
        bytes.reduce = passes * (layout->tp - 1) * c->hidden_size * sizeof(float);
    }
    return bytes;
}

/* ---- all ---- */

static bool read_prompt(const char *models, const char *name, struct prompt *prompt)
{
    char path[600];
    struct bt_error error = {0};
    struct bt_safetensors *file;
    snprintf(path, sizeof(path), "%s/tiny/golden/%s.safetensors", models, name);
    if (bt_safetensors_open_file(path, &error, &file) != BT_OK) {
        fprintf(stderr, "wire bytes: %s\n", error.text);
        return false;
    }
    const struct bt_tensor *ids = bt_safetensors_find(file, "ids");
    bool fits = ids && ids->dims[0] > 0 && ids->dims[0] <= MAX_TOKENS;
    if (fits) {
        prompt->count = (uint32_t)ids->dims[0];
        memcpy(prompt->tokens, ids->data, prompt->count * sizeof(*prompt->tokens));
    }
    bt_safetensors_close(file);
    return fits;
}

static bool open_setting(struct setting *setting, const char *models, const char *dir)
{
    struct bt_error error = {0};
    snprintf(setting->model, sizeof(setting->model), "%s/tiny", models);
    snprintf(setting->endpoint, sizeof(setting->endpoint), "ipc://%s/socket", dir);
    if (bt_model_config_load(setting->model, &error, &setting->config) != BT_OK) {
        fprintf(stderr, "wire bytes: %s\n", error.text);
        return false;
    }
    if (setting->config.route.experts_per_token > MAX_K ||
        bt_model_moe_layers(&setting->config) > WIRE_LAYERS_MAX ||
        setting->config.n_routed_experts > WIRE_EXPERTS_MAX)
        return false;
    for (uint32_t i = 0; i < MAX_RANKS; i++)
        if (!read_prompt(models, prompts[i], &setting->prompts[i]))
            return false;
    return run_all(setting, NULL, MAX_RANKS);
}

static size_t add_figure(struct wire_figure *figures, size_t count, const struct layout *layout,
                         const char *kind, double sent, double predicted)
{
    struct wire_figure *figure = &figures[count];
    if (predicted <= 0 && sent <= 0)
        return count;
    snprintf(figure->name, sizeof(figure->name), "%s_%s", layout->name, kind);
    figure->sent = sent;
    figure->predicted = predicted;
    return count + 1;
}

/* How many figures there are then; 0: it failed. */
static size_t measure(struct setting *setting, const struct layout *layout,
                      struct wire_figure *figures, size_t count)
{
    uint32_t ranks = layout->tp > layout->ep ? layout->tp : layout->ep, tokens = 0;
    struct bytes sent = {0}, predicted = {0};
    if (!run_all(setting, layout, ranks))
        return 0;
    for (uint32_t i = 0; i < ranks; i++) {
        sent.dispatch += (double)setting->traffic[i].dispatch;
        sent.combine += (double)setting->traffic[i].combine;
        sent.reduce += (double)setting->traffic[i].reduce;
    }
    for (uint32_t i = 0; i < (layout->tp ? 1 : ranks); i++) {
        struct bytes more = predict_prompt(layout, &setting->config, &setting->prompts[i], i);
        predicted.dispatch += more.dispatch;
        predicted.combine += more.combine;
        predicted.reduce += more.reduce;
        tokens += setting->prompts[i].count;
    }
    count = add_figure(figures, count, layout, "dispatch", sent.dispatch / tokens,
                       predicted.dispatch / tokens);
    count = add_figure(figures, count, layout, "combine", sent.combine / tokens,
                       predicted.combine / tokens);
    return add_figure(figures, count, layout, "reduce", sent.reduce / tokens,
                      predicted.reduce / tokens);
}

static void count_loads(const struct setting *setting, struct wire_report *report)
{
    const struct bt_model_config *c = &setting->config;
    report->layers = bt_model_moe_layers(c);
    report->experts = c->n_routed_experts;
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        const struct prompt *prompt = &setting->prompts[i];
        for (uint32_t layer = 0; layer < report->layers; layer++)
            for (uint32_t pick = 0; pick < prompt->count * c->route.experts_per_token; pick++)
                report->loads[layer * report->experts + prompt->experts[layer][pick]]++;
    }
}

bool wire_bytes_measure(const char *models, struct wire_report *ret_report)
{
    char dir[] = "/tmp/baton-wire-XXXXXX";
    struct setting *setting =
        mmap(NULL, sizeof(*setting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (setting == MAP_FAILED || !mkdtemp(dir)) {
        perror("wire bytes");
        return false;
    }
    bool well = open_setting(setting, models, dir);
    *ret_report = (struct wire_report){0};
    for (size_t i = 0; well && i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        size_t more = measure(setting, &layouts[i], ret_report->figures, ret_report->count);
        well = more > ret_report->count;
        ret_report->count = more;
    }
    if (well)
        count_loads(setting, ret_report);
    rmdir(dir);
    munmap(setting, sizeof(*setting));
    return well;
}
