#include "common/model/rebalance.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/base/log.h"
#include "common/model/experts.h"

#define NICENESS 10 /* of the thread: steps come first */

enum phase {
    IDLE,
    PLANNING, /* the thread: what follows from the loads */
    SETTLED,  /* nothing */
    LOADING,  /* the thread: a layer of the plan */
    LOADED,   /* it */
    FAILED,   /* to plan or load */
    ENDING,   /* the thread: lets go of a plan that is given up */
};

/* What a rank's words say. */
struct say {
    enum phase phase;
    bool asks;      /* rank 0: for an exchange of loads */
    uint32_t round; /* exchanges so far */
    uint32_t done;  /* layers of the plan that were switched */
    uint64_t plan;  /* what is planned, as a hash */
};

/* A placement and the layers that go from what they have to it. */
struct plan {
    struct bt_placement *to;
    uint32_t *layers; /* [layers] */
    uint32_t count, done;
    uint64_t hash;
    double imbalance, imbalance_after;
};

struct bt_rebalance {
    struct bt_rebalance_options options;
    struct bt_model *model;
    struct bt_forward *forward;

    /* The thread that steps alone. */
    bool moving;              /* on all ranks alike: since an exchange, until all have settled */
    uint32_t round, switched; /* exchanges; layers since the last one */
    int64_t next_ns, now_ns;  /* 0: no step yet */

    /* The thread's in PLANNING and LOADING, else that of the steps. */
    uint64_t *sum, *rows;             /* [layers][experts], [layers] of all ranks */
    uint64_t *others, *others_rows;   /* the same without this rank */
    uint64_t *mail;                   /* [layers][experts + 1] of one rank: rows, then loads */
    uint64_t *planned;                /* [layers][experts] loads of the layers that may move */
    uint32_t *changes;                /* [2][experts] */
    struct bt_placement now;          /* .layer[]: those in use */
    struct bt_placement **owners;     /* [layers] whose the layer is; NULL: the caller's */
    struct bt_placement **placements; /* [layers + 1] that live; NULL: a free place */
    struct plan plan;
    struct bt_expert_change *change; /* LOADED */

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* held for moments */
    pthread_cond_t wake;
    bool stopping;
    _Atomic int phase; /* changes under the lock */
    atomic_bool cancel;

    pthread_mutex_t report_lock; /* the thread, who looks; not the steps */
    uint64_t *reported;          /* [layers][experts] */
    _Atomic double imbalance;
    _Atomic uint64_t moves, rebalances, ended;
};

/* ---- creation ---- */

static size_t cells(const struct bt_rebalance *r)
{
    return (size_t)r->options.layers * r->options.experts;
}

static bool allocate(struct bt_rebalance *r)
{
    size_t layers = r->options.layers, count = cells(r);
    r->sum = calloc(count, sizeof(*r->sum));
    r->rows = calloc(layers, sizeof(*r->rows));
    r->others = calloc(count, sizeof(*r->others));
    r->others_rows = calloc(layers, sizeof(*r->others_rows));
    r->mail = calloc(count + layers, sizeof(*r->mail));
    r->planned = calloc(count, sizeof(*r->planned));
    r->changes = calloc(2 * (size_t)r->options.experts, sizeof(*r->changes));
    r->now.layer = calloc(layers, sizeof(*r->now.layer));
    r->owners = calloc(layers, sizeof(struct bt_placement *));
    r->placements = calloc(layers + 1, sizeof(struct bt_placement *));
    r->plan.layers = calloc(layers, sizeof(*r->plan.layers));
    r->reported = calloc(count, sizeof(*r->reported));
    return r->sum && r->rows && r->others && r->others_rows && r->mail && r->planned &&
           r->changes && r->now.layer && r->owners && r->placements && r->plan.layers &&
           r->reported;
}

enum bt_status bt_rebalance_create(const struct bt_rebalance_options *options,
                                   struct bt_error *error, struct bt_rebalance **ret_rebalance)
{
    const struct bt_placement *placement = options->placement;
    struct bt_rebalance *r = calloc(1, sizeof(*r));
    if (!r)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "expert loads: no memory");
    r->options = *options;
    r->imbalance = 1;
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->report_lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    if (!allocate(r)) {
        bt_rebalance_destroy(r);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "expert loads: no memory");
    }
    if (placement) {
        struct bt_placement_layer *layers = r->now.layer;
        memcpy(layers, placement->layer, options->layers * sizeof(*layers));
        r->now = *placement;
        r->now.layer = layers;
        r->now.memory = NULL;
    }
    *ret_rebalance = r;
    return BT_OK;
}

/* ---- the thread: the file ---- */

/* What a window lacks of being full is taken from the loads of an earlier life. */
static void blend(const struct bt_rebalance *r, const uint64_t *loads, const uint64_t *rows,
                  uint64_t *out)
{
    uint32_t experts = r->options.experts;
    for (uint32_t layer = 0; layer < r->options.layers; layer++) {
        double share = (double)rows[layer] / (double)r->options.full_rows;
        double lacking = share < 1 ? 1 - share : 0;
        for (size_t i = (size_t)layer * experts; i < (size_t)(layer + 1) * experts; i++) {
            double earlier = r->options.earlier ? (double)r->options.earlier[i] : 0;
            out[i] = loads[i] + (uint64_t)(earlier * lacking);
        }
    }
}

static bool any(const uint64_t *loads, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (loads[i] > 0)
            return true;
    return false;
}

static void save(struct bt_rebalance *r)
{
    struct bt_error error = {0};
    if (r->options.rank != 0 || !r->options.file)
        return;
    blend(r, r->sum, r->rows, r->planned);
    if (!any(r->planned, cells(r)))
        return;
    if (bt_expert_loads_write(r->options.file, r->options.layers, r->options.experts, r->planned,
                              &error) != BT_OK)
        bt_log_warn(0, "expert loads: %s", error.text);
}

/* Who sees the loads sees the imbalance that belongs to them. */
static void report(struct bt_rebalance *r)
{
    if (r->options.placement)
        r->imbalance = bt_placement_imbalance(&r->now, r->sum);
    pthread_mutex_lock(&r->report_lock);
    memcpy(r->reported, r->sum, cells(r) * sizeof(*r->reported));
    pthread_mutex_unlock(&r->report_lock);
}

/* ---- the thread: plans ---- */

static bool may_move(const struct bt_rebalance *r, uint32_t layer)
{
    return r->rows[layer] >= r->options.full_rows;
}

/* Placements that no layer has any more. */
static void free_unused(struct bt_rebalance *r)
{
    for (uint32_t i = 0; i <= r->options.layers; i++) {
        bool used = false;
        for (uint32_t layer = 0; layer < r->options.layers && !used; layer++)
            used = r->owners[layer] == r->placements[i];
        if (used || !r->placements[i])
            continue;
        bt_placement_destroy(r->placements[i]);
        r->placements[i] = NULL;
    }
    r->plan.to = NULL;
    r->plan.count = r->plan.done = 0;
    r->plan.hash = 0;
}

/* There is one: a placement that lives has a layer. */
static void keep(struct bt_rebalance *r, struct bt_placement *placement)
{
    uint32_t i = 0;
    while (r->placements[i])
        i++;
    r->placements[i] = placement;
    r->plan.to = placement;
}

static bool same_layer(const struct bt_placement *a, const struct bt_placement *b, uint32_t layer)
{
    const struct bt_placement_layer *x = &a->layer[layer], *y = &b->layer[layer];
    return memcmp(x->begin, y->begin, (a->experts + 1) * sizeof(*x->begin)) == 0 &&
           memcmp(x->ranks, y->ranks, x->begin[a->experts] * sizeof(*x->ranks)) == 0;
}

/* The layers that change, and a hash of what becomes of them: other ranks have the same. */
static void list_layers(struct bt_rebalance *r, struct plan *plan)
{
    const struct bt_placement *to = plan->to;
    for (uint32_t layer = 0; layer < r->options.layers; layer++) {
        const struct bt_placement_layer *l = &to->layer[layer];
        if (!may_move(r, layer) || same_layer(&r->now, to, layer))
            continue;
        plan->layers[plan->count++] = layer;
        plan->hash = XXH3_64bits_withSeed(l->begin, (to->experts + 1) * sizeof(*l->begin),
                                          plan->hash + layer);
        plan->hash =
            XXH3_64bits_withSeed(l->ranks, l->begin[to->experts] * sizeof(*l->ranks), plan->hash);
    }
}

/* Loads of the layers whose window tells something; of the others none. Whether there are any. */
static bool choose_layers(struct bt_rebalance *r)
{
    uint32_t experts = r->options.experts;
    bool some = false;
    for (uint32_t layer = 0; layer < r->options.layers; layer++) {
        uint64_t *to = r->planned + (size_t)layer * experts;
        if (may_move(r, layer))
            memcpy(to, r->sum + (size_t)layer * experts, experts * sizeof(*to));
        else
            memset(to, 0, experts * sizeof(*to));
        some = some || may_move(r, layer);
    }
    return some;
}

static enum phase make_plan(struct bt_rebalance *r)
{
    struct plan *plan = &r->plan;
    struct bt_placement_options options = r->options.to;
    struct bt_placement *to;
    struct bt_error error = {0};
    free_unused(r);
    if (!r->options.placement || options.kind != BT_PLACEMENT_BALANCED || !choose_layers(r))
        return SETTLED;
    options.loads = r->planned;
    options.previous = &r->now;
    if (bt_placement_create(&options, &error, &to) != BT_OK) {
        bt_log_warn(0, "rank %u: no placement for the experts' loads: %s", r->options.rank,
                    error.text);
        return FAILED;
    }
    keep(r, to);
    if (!bt_placement_pays(&r->now, to, r->planned, BT_REBALANCE_HYSTERESIS))
        return SETTLED;
    plan->imbalance = bt_placement_imbalance(&r->now, r->planned);
    plan->imbalance_after = bt_placement_imbalance(to, r->planned);
    list_layers(r, plan);
    return plan->count > 0 ? LOADING : SETTLED;
}

static enum phase load(struct bt_rebalance *r)
{
    struct bt_error error = {0};
    uint32_t layer = r->plan.layers[r->plan.done];
    if (bt_model_load_experts(r->model, layer, r->plan.to, &r->cancel, &error, &r->change) == BT_OK)
        return LOADED;
    if (error.status != BT_ERR_CANCELLED)
        bt_log_warn(0, "rank %u can't load experts of MoE layer %u: %s", r->options.rank, layer,
                    error.text);
    return FAILED;
}

/* ---- the thread ---- */

static enum phase work(struct bt_rebalance *r, enum phase phase)
{
    if (phase == LOADING)
        return load(r);
    if (phase == PLANNING) {
        report(r);
        save(r);
        return make_plan(r);
    }
    bt_expert_change_destroy(r->change);
    r->change = NULL;
    return IDLE;
}

static bool is_work(enum phase phase)
{
    return phase == PLANNING || phase == LOADING || phase == ENDING;
}

/* The lock is held. */
static void set_phase(struct bt_rebalance *r, enum phase phase)
{
    atomic_store(&r->phase, phase);
    if (is_work(phase))
        pthread_cond_signal(&r->wake);
}

/* Of all ranks as far as it is known, at the end of this one. */
static void save_last(struct bt_rebalance *r)
{
    uint32_t layers = r->options.layers;
    bt_expert_loads_sum(r->options.loads, r->sum);
    for (size_t i = 0; i < cells(r); i++)
        r->sum[i] += r->others[i];
    for (uint32_t layer = 0; layer < layers; layer++)
        r->rows[layer] =
            r->others_rows[layer] + bt_expert_loads_layer_rows(r->options.loads, layer);
    save(r);
}

static void *thread_main(void *context)
{
    struct bt_rebalance *r = context;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICENESS);
    pthread_mutex_lock(&r->lock);
    while (!r->stopping) {
        enum phase phase = (enum phase)r->phase;
        if (!is_work(phase)) {
            pthread_cond_wait(&r->wake, &r->lock);
            continue;
        }
        pthread_mutex_unlock(&r->lock);
        enum phase next = work(r, phase);
        pthread_mutex_lock(&r->lock);
        /* a plan that was given up meanwhile is let go of first */
        set_phase(r, phase != ENDING && (enum phase)r->phase == ENDING ? ENDING : next);
    }
    pthread_mutex_unlock(&r->lock);
    save_last(r);
    return NULL;
}

enum bt_status bt_rebalance_start(struct bt_rebalance *r, struct bt_model *model,
                                  struct bt_forward *forward, struct bt_error *error)
{
    sigset_t all, before;
    r->model = model;
    r->forward = forward;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    r->has_thread = pthread_create(&r->thread, NULL, thread_main, r) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r->has_thread ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "expert loads: no thread");
}

static void stop(struct bt_rebalance *r)
{
    if (!r->has_thread)
        return;
    atomic_store(&r->cancel, true);
    pthread_mutex_lock(&r->lock);
    r->stopping = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
}

void bt_rebalance_destroy(struct bt_rebalance *r)
{
    if (!r)
        return;
    stop(r);
    bt_expert_change_destroy(r->change);
    for (uint32_t i = 0; r->placements && i <= r->options.layers; i++)
        bt_placement_destroy(r->placements[i]);
    pthread_mutex_destroy(&r->lock);
    pthread_mutex_destroy(&r->report_lock);
    pthread_cond_destroy(&r->wake);
    void *memories[] = {r->sum,    r->rows,       r->others,      r->others_rows,
                        r->mail,   r->planned,    r->changes,     r->now.layer,
                        r->owners, r->placements, r->plan.layers, r->reported};
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++)
        free(memories[i]);
    free(r);
}

/* ---- words ---- */

static struct say read_words(const uint64_t *words)
{
    return (struct say){.phase = (enum phase)(words[0] & 0xff),
                        .asks = words[0] >> 8 & 1,
                        .done = (uint32_t)(words[0] >> 16 & 0xffff),
                        .round = (uint32_t)(words[0] >> 32),
                        .plan = words[1]};
}

static bool asks(struct bt_rebalance *r, int64_t now_ns)
{
    if (r->options.rank != 0 || r->options.interval_ns <= 0)
        return false;
    if (r->next_ns == 0)
        r->next_ns = now_ns + r->options.interval_ns;
    return !r->moving && now_ns >= r->next_ns;
}

void bt_rebalance_words(struct bt_rebalance *r, int64_t now_ns,
                        uint64_t ret_words[BT_REBALANCE_WORDS])
{
    int phase = atomic_load(&r->phase);
    bool planned = phase == LOADED;
    r->now_ns = now_ns;
    ret_words[0] = (uint64_t)phase | (uint64_t)asks(r, now_ns) << 8 |
                   (uint64_t)(planned ? r->plan.done : 0) << 16 | (uint64_t)r->round << 32;
    ret_words[1] = planned ? r->plan.hash : 0;
}

/* ---- between an agreement and its step ---- */

static void begin(struct bt_rebalance *r, enum phase phase)
{
    pthread_mutex_lock(&r->lock);
    set_phase(r, phase);
    pthread_mutex_unlock(&r->lock);
}

static void add_mail(struct bt_rebalance *r, uint64_t *loads, uint64_t *rows)
{
    uint32_t layers = r->options.layers;
    for (uint32_t layer = 0; layer < layers; layer++)
        rows[layer] += r->mail[layer];
    for (size_t i = 0; i < cells(r); i++)
        loads[i] += r->mail[layers + i];
}

/* The loads of all ranks go round, and to the thread. */
static enum bt_status exchange_loads(struct bt_rebalance *r)
{
    size_t count = cells(r), layers = r->options.layers;
    memset(r->others, 0, count * sizeof(*r->others));
    memset(r->others_rows, 0, layers * sizeof(*r->others_rows));
    for (uint32_t from = 0; from < r->options.size; from++) {
        if (from == r->options.rank)
            for (uint32_t layer = 0; layer < layers; layer++)
                r->mail[layer] = bt_expert_loads_layer_rows(r->options.loads, layer);
        if (from == r->options.rank)
            bt_expert_loads_sum(r->options.loads, r->mail + layers);
        enum bt_status status = BT_OK;
        if (r->options.group)
            status = bt_group_broadcast(r->options.group, from, r->mail,
                                        (count + layers) * sizeof(*r->mail), NULL);
        if (status != BT_OK)
            return status;
        if (from == r->options.rank) {
            memcpy(r->rows, r->mail, layers * sizeof(*r->rows));
            memcpy(r->sum, r->mail + layers, count * sizeof(*r->sum));
        } else {
            add_mail(r, r->others, r->others_rows);
        }
    }
    for (size_t i = 0; i < count; i++)
        r->sum[i] += r->others[i];
    for (uint32_t layer = 0; layer < layers; layer++)
        r->rows[layer] += r->others_rows[layer];
    r->round++;
    r->switched = 0;
    r->next_ns = r->now_ns + r->options.interval_ns;
    r->moving = true;
    atomic_store(&r->cancel, false);
    begin(r, PLANNING);
    return BT_OK;
}

/* All ranks have loaded the next layer. */
static void switch_layer(struct bt_rebalance *r)
{
    struct plan *plan = &r->plan;
    uint32_t layer = plan->layers[plan->done], loads, drops, experts = r->options.experts;
    bt_placement_changes(&r->now, plan->to, layer, r->options.rank, r->changes, &loads,
                         r->changes + experts, &drops);
    bt_model_switch_experts(r->model, r->change);
    bt_forward_set_placement(r->forward, layer, plan->to);
    r->change = NULL;
    r->now.layer[layer] = plan->to->layer[layer];
    r->owners[layer] = plan->to;
    r->moves += loads;
    r->switched = ++plan->done;
    if (plan->done < plan->count) {
        begin(r, LOADING);
        return;
    }
    r->moving = false;
    r->imbalance = plan->imbalance_after;
    r->rebalances++;
    if (r->options.rank == 0)
        bt_log_info(0, "experts of %u layers moved: the largest load is %.3f of the mean, was %.3f",
                    plan->count, plan->imbalance_after, plan->imbalance);
    begin(r, IDLE);
}

/* Layers that were switched stay so, on all ranks. */
static void give_up(struct bt_rebalance *r, uint32_t culprit, const char *why)
{
    bt_log_warn(0, "rank %u: experts stay where they are, those of %u layers had moved: rank %u %s",
                r->options.rank, r->switched, culprit, why);
    r->moving = false;
    r->ended++;
    atomic_store(&r->cancel, true);
    begin(r, ENDING);
}

/* What an agreement leads to, on all ranks. */
enum turn { NOTHING, EXCHANGE, GIVE_UP_FAILED, GIVE_UP_UNLIKE, SWITCH, SETTLE };

/* Of the plan that all ranks follow; what was said of another one, or of a layer that was switched
 * since, counts for nothing. */
static enum turn turn_of_plan(const struct bt_rebalance *r, const uint64_t *words, uint32_t stride,
                              uint32_t *ret_culprit)
{
    const struct say first = read_words(words);
    uint32_t settled = 0, loaded = 0, alike = 0;
    *ret_culprit = 0;
    for (uint32_t i = 0; i < r->options.size; i++) {
        const struct say say = read_words(words + (size_t)i * stride);
        bool counts = say.round == r->round;
        if (counts && say.phase == FAILED) {
            *ret_culprit = i;
            return GIVE_UP_FAILED;
        }
        settled += counts && say.phase == SETTLED;
        loaded += counts && say.phase == LOADED && say.done == r->switched;
        alike += say.phase == first.phase && say.plan == first.plan;
    }
    if (settled + loaded < r->options.size)
        return NOTHING;
    return alike < r->options.size ? GIVE_UP_UNLIKE : loaded > 0 ? SWITCH : SETTLE;
}

static enum turn turn_of(const struct bt_rebalance *r, const uint64_t *words, uint32_t stride,
                         uint32_t *ret_culprit)
{
    *ret_culprit = 0;
    if (r->moving)
        return turn_of_plan(r, words, stride, ret_culprit);
    bool wanted = read_words(words).asks;
    for (uint32_t i = 0; i < r->options.size; i++) {
        const struct say say = read_words(words + (size_t)i * stride);
        wanted = wanted && say.phase == IDLE && say.round == r->round;
    }
    return wanted ? EXCHANGE : NOTHING;
}

bool bt_rebalance_acts(const struct bt_rebalance *r, const uint64_t *words, uint32_t stride)
{
    uint32_t culprit;
    return turn_of(r, words, stride, &culprit) != NOTHING;
}

enum bt_status bt_rebalance_agreed(struct bt_rebalance *r, const uint64_t *words, uint32_t stride,
                                   struct bt_error *error)
{
    enum bt_status status = BT_OK;
    uint32_t culprit;
    switch (turn_of(r, words, stride, &culprit)) {
    case NOTHING:
        break;
    case EXCHANGE:
        status = exchange_loads(r);
        break;
    case GIVE_UP_FAILED:
        give_up(r, culprit, "could not go on");
        break;
    case GIVE_UP_UNLIKE:
        give_up(r, 0, "planned something else than others");
        break;
    case SWITCH:
        switch_layer(r);
        break;
    case SETTLE:
        r->moving = false;
        begin(r, IDLE);
        break;
    }
    if (status != BT_OK)
        bt_error_set(error, status, "%s", bt_group_error(r->options.group));
    return status;
}

/* ---- looking ---- */

void bt_rebalance_look(struct bt_rebalance *r, struct bt_rebalance_report *ret_report,
                       uint64_t *ret_loads)
{
    if (ret_loads) {
        pthread_mutex_lock(&r->report_lock);
        memcpy(ret_loads, r->reported, cells(r) * sizeof(*ret_loads));
        pthread_mutex_unlock(&r->report_lock);
    }
    *ret_report = (struct bt_rebalance_report){r->imbalance, r->moves, r->rebalances, r->ended};
}
