#include "tests/sim/engines.h"

#include <stdlib.h>
#include <string.h>

#include "decode-node/ranks.h"
#include "decode-node/stepper.h"
#include "kvtransfer/push.h"
#include "prefill-node/compute.h"
#include "tests/sim/fabric.h"
#include "tests/sim/seams.h"

static struct bt_device sim_device = {.memory = BT_MEMORY_HOST, .name = "cpu"};

struct bt_model sim_model = {
    .device = &sim_device,
    .config = {.vocab_size = SIM_VOCABULARY, .max_position_embeddings = SIM_MAX_LENGTH}};

uint32_t token_of(uint64_t request, uint32_t index)
{
    return kv_tag(request, 0, 0, index) % SIM_VOCABULARY;
}

struct bt_kv_layout bt_model_kv_layout(const struct bt_model *model, enum bt_dtype dtype)
{
    (void)model;
    return (struct bt_kv_layout){
        .layer_count = SIM_LAYERS, .kv_lora_rank = 1, .qk_rope_head_dim = 1, .dtype = dtype};
}

void bt_model_fingerprint(const struct bt_model *model, const char *name, enum bt_dtype dtype,
                          struct bt_fingerprint *ret_fingerprint)
{
    (void)name;
    *ret_fingerprint = (struct bt_fingerprint){.layout_version = BT_KV_LAYOUT_VERSION,
                                               .model_hash = 1,
                                               .model_name = "sim",
                                               .arithmetic = "float32",
                                               .layout = bt_model_kv_layout(model, dtype)};
}

/* ---- prefill: a layer of a job at a time */

struct pf_engine {
    struct pf_engine_options options;
};

enum bt_status pf_engine_create(const struct pf_engine_options *options, struct bt_error *error,
                                struct pf_engine **ret_engine)
{
    (void)error;
    *ret_engine = calloc(1, sizeof(**ret_engine));
    (*ret_engine)->options = *options;
    return BT_OK;
}

void pf_engine_destroy(struct pf_engine *engine)
{
    free(engine);
}

struct compute_job {
    struct pf_job *job;
    uint64_t serial;
    bool cancelled;
    uint32_t layer, tokens; /* that the next chunk is of; done of this layer */
    struct compute_job *next;
};

struct pf_compute {
    struct pf_engine *engine;
    struct node *node;
    struct bt_queue *events;
    struct compute_job *jobs;
};

enum bt_status pf_compute_create(struct pf_engine *engine, uint32_t max_jobs,
                                 struct bt_error *error, struct pf_compute **ret_compute)
{
    (void)error;
    struct pf_compute *compute = calloc(1, sizeof(*compute));
    compute->engine = engine;
    compute->node = world.current;
    compute->events = bt_queue_create(2 * (size_t)max_jobs, sizeof(struct pf_compute_event));
    *ret_compute = compute;
    return BT_OK;
}

void pf_compute_destroy(struct pf_compute *compute)
{
    free(compute);
}

struct bt_queue *pf_compute_events(const struct pf_compute *compute)
{
    return compute->events;
}

static void compute_event(struct pf_compute *compute, enum pf_compute_event_kind kind,
                          struct pf_job *job)
{
    const struct pf_compute_event event = {kind, job};
    BT_ASSERT(bt_queue_try_push(compute->events, &event));
}

static void job_leave(struct pf_compute *compute, struct compute_job *job,
                      enum pf_compute_event_kind kind)
{
    struct compute_job **at = &compute->jobs;
    while (*at != job) {
        at = &(*at)->next;
    }
    *at = job->next;
    compute_event(compute, kind, job->job);
    free(job);
}

static void compute_layer(const struct pf_compute *compute, const struct compute_job *job,
                          uint32_t end)
{
    const struct pf_engine_options *options = &compute->engine->options;
    const struct kvt_push *push = job->job->push;
    for (uint32_t i = job->tokens; i < end; i++) {
        *kv_slot(options->kv_pool, options->pool_pages, job->layer,
                 job->job->pages[i / BT_PAGE_TOKENS], i % BT_PAGE_TOKENS) =
            kv_tag(job->job->request, push->event.epoch, job->layer, i);
    }
}

static void compute_step(void *object, uint64_t serial);

static void compute_later(struct pf_compute *compute, uint64_t serial)
{
    bool slow = world.faults.on && chance(10);
    event_at(world.now_ns + (slow ? draw_ns(0, 2 * SIM_S) : draw_ns(10 * SIM_US, 5 * SIM_MS)),
             compute->node, compute_step, compute, serial);
}

static void job_finish(struct pf_compute *compute, struct compute_job *job)
{
    struct pf_job *done = job->job;
    done->computed_ns = world.now_ns;
    done->first = (struct bt_sample){.token = token_of(done->request, 0)};
    atomic_store(&done->computed, done->token_count);
    kvt_push_finish(done->push);
    job_leave(compute, job, PF_COMPUTE_COMPUTED);
}

static void compute_step(void *object, uint64_t serial)
{
    struct pf_compute *compute = object;
    struct compute_job *job = compute->jobs;
    while (job && job->serial != serial) {
        job = job->next;
    }
    if (!job) {
        return;
    }
    if (job->cancelled) {
        job_leave(compute, job, PF_COMPUTE_CANCELLED);
        return;
    }
    if (job->layer == 0 && job->tokens == 0) {
        job->job->started_ns = world.now_ns;
        compute_event(compute, PF_COMPUTE_STARTED, job->job);
    }
    uint32_t total = job->job->token_count;
    uint32_t end = job->tokens == 0 && draw(2) ? 1 + draw(total) : total;
    compute_layer(compute, job, end);
    kvt_push_ready(job->job->push, job->layer, end);
    job->tokens = end;
    if (end == total) {
        job->tokens = 0;
        job->layer++;
    }
    if (job->layer == SIM_LAYERS) {
        job_finish(compute, job);
    } else {
        compute_later(compute, serial);
    }
}

void pf_compute_add(struct pf_compute *compute, struct pf_job *added)
{
    struct compute_job *job = calloc(1, sizeof(*job));
    *job = (struct compute_job){.job = added, .serial = added->serial, .next = compute->jobs};
    compute->jobs = job;
    compute_later(compute, added->serial);
}

void pf_compute_cancel(struct pf_compute *compute, uint64_t serial)
{
    for (struct compute_job *job = compute->jobs; job; job = job->next) {
        if (job->serial == serial) {
            job->cancelled = true;
        }
    }
}

/* ---- decode: steps of all sequences */

#define MAX_SEQUENCES 16

struct dc_engine {
    struct dc_engine_options options;
};

struct dc_stepper {
    struct dc_engine *engine;
    struct node *node;
    struct bt_queue *steps, *notices; /* of the latter there are none: the rank is alone */
    struct dc_sequence *sequences[MAX_SEQUENCES];
    enum dc_finish stops[MAX_SEQUENCES];
    uint32_t count;
    bool due;
};

enum bt_status dc_engine_create(const struct dc_engine_options *options, struct bt_error *error,
                                struct dc_engine **ret_engine)
{
    (void)error;
    *ret_engine = calloc(1, sizeof(**ret_engine));
    (*ret_engine)->options = *options;
    return BT_OK;
}

struct bt_forward *dc_engine_forward(const struct dc_engine *engine)
{
    (void)engine;
    return NULL;
}

void dc_engine_destroy(struct dc_engine *engine)
{
    free(engine);
}

enum bt_status dc_stepper_create(const struct dc_stepper_options *options, struct bt_error *error,
                                 struct dc_stepper **ret_stepper)
{
    (void)error;
    BT_ASSERT(options->max_sequences <= MAX_SEQUENCES && !options->rank);
    struct dc_stepper *stepper = calloc(1, sizeof(*stepper));
    stepper->engine = options->engine;
    stepper->node = world.current;
    stepper->notices = bt_queue_create(1, sizeof(unsigned));
    stepper->steps = bt_queue_create(8, sizeof(struct dc_step *));
    *ret_stepper = stepper;
    return BT_OK;
}

void dc_stepper_destroy(struct dc_stepper *stepper)
{
    free(stepper);
}

struct bt_queue *dc_stepper_steps(const struct dc_stepper *stepper)
{
    return stepper->steps;
}

void dc_stepper_return(struct dc_stepper *stepper, struct dc_step *step)
{
    (void)stepper;
    free(step->entries);
    free(step->wishes);
    free(step);
}

static struct dc_entry *entry_add(struct dc_step *step, const struct dc_sequence *sequence)
{
    struct dc_entry *entry = &step->entries[step->entry_count++];
    *entry = (struct dc_entry){
        .request = sequence->request, .epoch = sequence->epoch, .user = sequence->user};
    return entry;
}

static void entry_token(struct dc_entry *entry, uint32_t index, uint32_t token)
{
    entry->has_token = true;
    entry->index = index;
    entry->sample.token = token;
}

static void append_kv(struct dc_stepper *stepper, const struct dc_sequence *sequence)
{
    uint32_t position = sequence->prompt_tokens + sequence->generated - 1;
    const struct dc_engine_options *options = &stepper->engine->options;
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        *kv_slot(options->kv_pool, options->pool_pages, layer,
                 sequence->pages[position / BT_PAGE_TOKENS], position % BT_PAGE_TOKENS) =
            kv_tag(sequence->request, sequence->epoch, layer, position);
    }
}

static enum dc_finish sequence_generate(struct dc_stepper *stepper, struct dc_sequence *sequence,
                                        struct dc_step *step)
{
    uint32_t kv_tokens = sequence->prompt_tokens + sequence->generated;
    if (sequence->generated >= sequence->sampling->max_tokens) {
        entry_add(step, sequence)->finish = DC_FINISH_LENGTH;
        return DC_FINISH_LENGTH;
    }
    if (kv_tokens > sequence->page_count * BT_PAGE_TOKENS) {
        if (!sequence->asked) {
            sequence->asked = true;
            step->wishes[step->wish_count++] = (struct dc_page_wish){
                .request = sequence->request, .epoch = sequence->epoch, .stalled = true};
        }
        return DC_RUNNING;
    }
    append_kv(stepper, sequence);
    struct dc_entry *entry = entry_add(step, sequence);
    entry_token(entry, sequence->generated, token_of(sequence->request, sequence->generated));
    sequence->generated++;
    if (sequence->generated == sequence->sampling->max_tokens) {
        entry->finish = DC_FINISH_LENGTH;
    }
    return entry->finish;
}

static enum dc_finish sequence_step(struct dc_stepper *stepper, uint32_t index,
                                    struct dc_step *step)
{
    struct dc_sequence *sequence = stepper->sequences[index];
    uint32_t output = sequence->generated > 0 ? sequence->generated - 1 : 0;
    shadow_check_sequence(stepper->node, sequence, output);
    if (!sequence->joined) {
        sequence->joined = true;
        sequence->generated = 1;
        if (sequence->last.token != token_of(sequence->request, 0)) {
            fail("request %016llx joined with another first token",
                 (unsigned long long)sequence->request);
        }
        entry_token(entry_add(step, sequence), 0, sequence->last.token);
    }
    if (stepper->stops[index] != DC_RUNNING) {
        entry_add(step, sequence)->finish = stepper->stops[index];
        return stepper->stops[index];
    }
    return sequence_generate(stepper, sequence, step);
}

static void step_event(void *object, uint64_t unused);

static void step_later(struct dc_stepper *stepper)
{
    if (!stepper->due && stepper->count > 0) {
        stepper->due = true;
        event_at(world.now_ns + draw_ns(SIM_MS, 40 * SIM_MS), stepper->node, step_event, stepper,
                 0);
    }
}

static void step_event(void *object, uint64_t unused)
{
    struct dc_stepper *stepper = object;
    (void)unused;
    stepper->due = false;
    struct dc_step *step = calloc(1, sizeof(*step));
    step->entries = calloc(3 * stepper->count + 1, sizeof(*step->entries));
    step->wishes = calloc(stepper->count + 1, sizeof(*step->wishes));
    step->begin_ns = step->end_ns = world.now_ns;
    step->rows = stepper->count;
    for (uint32_t i = 0; i < stepper->count;) {
        if (sequence_step(stepper, i, step) == DC_RUNNING) {
            i++;
            continue;
        }
        stepper->count--;
        stepper->sequences[i] = stepper->sequences[stepper->count];
        stepper->stops[i] = stepper->stops[stepper->count];
    }
    if (!bt_queue_try_push(stepper->steps, &step)) {
        fail("%s does not take its steps", stepper->node->id);
    }
    step_later(stepper);
}

void dc_stepper_add(struct dc_stepper *stepper, struct dc_sequence *sequence)
{
    BT_ASSERT(stepper->count < MAX_SEQUENCES);
    note("sequence joins", sequence->request, sequence->epoch, sequence->prompt_tokens);
    shadow_check_sequence(stepper->node, sequence, 0);
    stepper->stops[stepper->count] = DC_RUNNING;
    stepper->sequences[stepper->count++] = sequence;
    step_later(stepper);
}

static uint32_t sequence_find(const struct dc_stepper *stepper, uint64_t request, uint64_t epoch)
{
    uint32_t i = 0;
    while (i < stepper->count &&
           (stepper->sequences[i]->request != request || stepper->sequences[i]->epoch != epoch)) {
        i++;
    }
    return i;
}

void dc_stepper_stop(struct dc_stepper *stepper, uint64_t request, uint64_t epoch,
                     enum dc_finish finish)
{
    uint32_t i = sequence_find(stepper, request, epoch);
    if (i < stepper->count) {
        stepper->stops[i] = finish;
    }
}

void dc_stepper_grow(struct dc_stepper *stepper, uint64_t request, uint64_t epoch, uint32_t page)
{
    uint32_t i = sequence_find(stepper, request, epoch);
    if (i < stepper->count) {
        struct dc_sequence *sequence = stepper->sequences[i];
        BT_ASSERT(sequence->page_count < sequence->page_capacity);
        sequence->pages[sequence->page_count++] = page;
        sequence->asked = false;
    }
}

int dc_stepper_notice_fd(const struct dc_stepper *stepper)
{
    return bt_queue_fd(stepper->notices);
}

unsigned dc_stepper_take_notices(struct dc_stepper *stepper)
{
    (void)stepper;
    return 0;
}

bool dc_stepper_has_notices(const struct dc_stepper *stepper)
{
    (void)stepper;
    return false;
}

const char *dc_stepper_error(const struct dc_stepper *stepper)
{
    (void)stepper;
    return "";
}

void dc_stepper_tell(struct dc_stepper *stepper, unsigned flags, uint64_t will)
{
    (void)stepper;
    (void)flags;
    (void)will;
}

void dc_stepper_wake(struct dc_stepper *stepper)
{
    (void)stepper;
}

void dc_stepper_look(const struct dc_stepper *stepper, struct dc_stepper_view *ret_view)
{
    (void)stepper;
    *ret_view = (struct dc_stepper_view){0};
}

/* ---- decode: the other ranks, of which there are none */

enum bt_status dc_ranks_create(const struct dc_ranks_options *options, struct bt_error *error,
                               struct dc_ranks **ret_ranks)
{
    (void)options;
    (void)error;
    *ret_ranks = NULL;
    return BT_OK;
}

void dc_ranks_destroy(struct dc_ranks *ranks)
{
    (void)ranks;
}

Baton__V1__GroupMember *dc_ranks_member(struct dc_ranks *ranks)
{
    (void)ranks;
    return NULL;
}

void dc_ranks_wake(struct dc_ranks *ranks)
{
    (void)ranks;
}

uint64_t dc_ranks_woken(const struct dc_ranks *ranks)
{
    (void)ranks;
    return 0;
}

void dc_ranks_update_metrics(struct dc_ranks *ranks)
{
    (void)ranks;
}
