/*
 * accuracy TEXTS DIR [DIR …]: how well checkpoints of one model do on texts that none was made
 * from.
 *
 * TEXTS holds evaluation.json (documents: perplexity) and recall.json (prompts that ask for a code
 * of four digits given before: exact answers, greedy). Prints for each directory in bfloat16
 * arithmetic, measured against the first one in float32:
 *
 *     figure NAME_perplexity VALUE - LIMIT RATIO     LIMIT: of the first directory
 *     figure NAME_recall VALUE share LIMIT RATIO
 *     figure NAME_digits VALUE share LIMIT RATIO
 *     figure NAME_divergence VALUE nats 0 -          mean KL(first || NAME) of the next token, over
 *                                                    all places of the documents
 *     figure NAME_same_token VALUE share 1 RATIO     how often the best token is the same there
 *
 * Perplexity and recall hardly move while a model still does what it should; the divergence tells
 * formats apart that both pass.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/model/divergence.h"
#include "common/model/forward.h"
#include "common/model/model.h"
#include "common/text/tokenizer.h"

#define MAX_ROWS 4096

struct evaluation {
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_tokenizer *tokenizer;
    struct bt_kv_layout layout;
    void *pool;
    uint32_t pages[MAX_ROWS / BT_PAGE_TOKENS], rows[MAX_ROWS];
    struct bt_token_buffer tokens;
};

struct scores {
    double perplexity, recall, digits;
    struct bt_divergence divergence;
};

static bool open_evaluation(struct evaluation *e, const char *dir, enum bt_model_dtype dtype,
                            struct bt_team *team)
{
    struct bt_error error;
    const struct bt_model_options load = {
        .dir = dir, .kernels = "auto", .dtype = dtype, .team = team};
    const struct bt_forward_options forward = {.max_rows = MAX_ROWS, .max_logits = MAX_ROWS};
    if (bt_model_load(&load, &error, &e->model) != BT_OK ||
        bt_forward_create(e->model, &forward, &error, &e->forward) != BT_OK ||
        bt_tokenizer_load(dir, &error, &e->tokenizer) != BT_OK) {
        fprintf(stderr, "accuracy: %s\n", error.text);
        return false;
    }
    e->layout = bt_model_kv_layout(e->model, bt_model_kv_dtype(e->model, "auto"));
    e->pool = calloc(1, bt_kv_pool_bytes(&e->layout, MAX_ROWS / BT_PAGE_TOKENS));
    for (uint32_t i = 0; i < MAX_ROWS / BT_PAGE_TOKENS; i++)
        e->pages[i] = i;
    for (uint32_t i = 0; i < MAX_ROWS; i++)
        e->rows[i] = i;
    return e->pool != NULL;
}

static void close_evaluation(struct evaluation *e)
{
    bt_forward_destroy(e->forward);
    bt_tokenizer_destroy(e->tokenizer);
    bt_model_destroy(e->model);
    free(e->tokens.ids);
    free(e->pool);
}

static bool encode(struct evaluation *e, const char *text)
{
    struct bt_error error;
    e->tokens.count = 0;
    if (bt_tokenizer_encode(e->tokenizer, text, strlen(text), true, &error, &e->tokens) != BT_OK ||
        e->tokens.count < 2 || e->tokens.count > MAX_ROWS - 8) {
        fprintf(stderr, "accuracy: a text can't be used (%zu tokens)\n", e->tokens.count);
        return false;
    }
    return true;
}

/* Logits of rows [wanted, count) of tokens that follow `start` others. */
static const float *run(struct evaluation *e, enum bt_forward_form form, const uint32_t *tokens,
                        uint32_t start, uint32_t count, uint32_t wanted)
{
    struct bt_sequence_rows sequence = {e->pages, start, 0, count};
    struct bt_forward_batch batch = {
        .form = form,
        .tokens = tokens,
        .rows = count,
        .sequences = &sequence,
        .sequence_count = 1,
        .kv_pool = e->pool,
        .layout = e->layout,
        .pool_pages = MAX_ROWS / BT_PAGE_TOKENS,
        .logit_rows = e->rows + wanted,
        .logit_count = count - wanted,
    };
    const float *logits;
    enum bt_status status = bt_forward_run(e->forward, &batch, &logits);
    BT_ASSERT(status == BT_OK); /* alone it does not fail */
    return logits;
}

static double surprise(const float *logits, uint32_t vocab, uint32_t token)
{
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        most = fmax(most, (double)logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - most);
    return log(sum) + most - (double)logits[token];
}

static uint32_t best(const float *logits, uint32_t vocab)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[at])
            at = i;
    return at;
}

/* The documents, also through `exact`, which may be `e`. */
static bool read_documents(struct evaluation *e, struct evaluation *exact, const json_t *documents,
                           struct scores *scores)
{
    uint32_t vocab = e->model->config.vocab_size;
    double sum = 0, count = 0;
    size_t i;
    const json_t *document;
    if (exact->model->config.vocab_size != vocab) {
        fprintf(stderr, "accuracy: %s: another vocabulary than the first\n", e->model->dir);
        return false;
    }
    json_array_foreach(documents, i, document)
    {
        if (!encode(e, json_string_value(document)))
            return false;
        uint32_t tokens = (uint32_t)e->tokens.count;
        const float *logits = run(e, BT_FORWARD_MULTI_HEAD, e->tokens.ids, 0, tokens, 0);
        const float *expected =
            exact == e ? logits : run(exact, BT_FORWARD_MULTI_HEAD, e->tokens.ids, 0, tokens, 0);
        for (size_t t = 0; t + 1 < tokens; t++) {
            sum += surprise(logits + t * vocab, vocab, e->tokens.ids[t + 1]);
            bt_divergence_add(&scores->divergence, expected + t * vocab, logits + t * vocab, vocab);
        }
        count += tokens - 1;
    }
    scores->perplexity = exp(sum / count);
    return true;
}

/* The digits of the answer, decoded one by one: right ones, of all. */
static bool ask(struct evaluation *e, const char *prompt, const char *answer, uint32_t *ret_right)
{
    uint32_t vocab = e->model->config.vocab_size, right = 0, start;
    struct bt_token_buffer wanted = {0};
    struct bt_error error;
    if (!encode(e, prompt) ||
        bt_tokenizer_encode(e->tokenizer, answer, strlen(answer), false, &error, &wanted) != BT_OK)
        return false;
    start = (uint32_t)e->tokens.count;
    const float *logits = run(e, BT_FORWARD_MULTI_HEAD, e->tokens.ids, 0, start, start - 1);
    for (size_t i = 0; i < wanted.count; i++) {
        uint32_t token = best(logits, vocab);
        right += token == wanted.ids[i];
        logits = run(e, BT_FORWARD_ABSORBED, &token, start++, 1, 0);
    }
    free(wanted.ids);
    *ret_right = right;
    return true;
}

static bool recall(struct evaluation *e, const json_t *questions, struct scores *scores)
{
    double exact = 0, digits = 0, count = 0;
    size_t i;
    const json_t *question;
    json_array_foreach(questions, i, question)
    {
        uint32_t right = 0;
        const char *prompt = json_string_value(json_object_get(question, "prompt"));
        const char *answer = json_string_value(json_object_get(question, "answer"));
        if (!prompt || !answer || !ask(e, prompt, answer, &right))
            return false;
        exact += right == strlen(answer);
        digits += right;
        count++;
    }
    scores->recall = exact / count;
    scores->digits = digits / count / 4;
    return true;
}

static json_t *load(const char *dir, const char *name)
{
    char path[4096];
    json_error_t fault;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    json_t *json = json_load_file(path, 0, &fault);
    if (!json_is_array(json)) {
        fprintf(stderr, "accuracy: %s: %s\n", path, json ? "not an array" : fault.text);
        json_decref(json);
        return NULL;
    }
    return json;
}

static bool evaluate(struct evaluation *e, struct evaluation *exact, const json_t *documents,
                     const json_t *questions, struct scores *scores)
{
    *scores = (struct scores){0};
    return read_documents(e, exact, documents, scores) && recall(e, questions, scores);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static void print_scores(const char *name, const struct scores *s, const struct scores *first)
{
    printf("figure %s_perplexity %.4f - %.4f %.4f\n", name, s->perplexity, first->perplexity,
           s->perplexity / first->perplexity);
    printf("figure %s_recall %.3f share %.3f %.3f\n", name, s->recall, first->recall,
           s->recall / first->recall);
    printf("figure %s_digits %.3f share %.3f %.3f\n", name, s->digits, first->digits,
           s->digits / first->digits);
    printf("figure %s_divergence %.3e nats 0 -\n", name, bt_divergence_mean(&s->divergence));
    printf("figure %s_same_token %.4f share 1 %.4f\n", name,
           bt_divergence_agreement(&s->divergence), bt_divergence_agreement(&s->divergence));
    fflush(stdout);
}

/* All directories; the first also in float32, which stays open for the others. */
static bool evaluate_all(char *const *dirs, int count, struct bt_team *team,
                         const json_t *documents, const json_t *questions)
{
    struct evaluation exact = {0};
    struct scores first, scores;
    bool ok = open_evaluation(&exact, dirs[0], BT_MODEL_FLOAT32, team) &&
              evaluate(&exact, &exact, documents, questions, &first);
    if (ok)
        print_scores("float32", &first, &first);
    for (int i = 0; ok && i < count; i++) {
        struct evaluation e = {0};
        ok = open_evaluation(&e, dirs[i], BT_MODEL_BFLOAT16, team) &&
             evaluate(&e, &exact, documents, questions, &scores);
        if (ok)
            print_scores(base_name(dirs[i]), &scores, &first);
        close_evaluation(&e);
    }
    close_evaluation(&exact);
    return ok;
}

int main(int argc, char **argv)
{
    struct bt_team *team = NULL;
    struct bt_error error;
    bt_log_init("accuracy", BT_LOG_WARN);
    if (argc < 3) {
        fprintf(stderr, "usage: accuracy TEXTS DIR [DIR ...]\n");
        return 2;
    }
    json_t *documents = load(argv[1], "evaluation.json"), *questions = load(argv[1], "recall.json");
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct bt_team_options team_options = {.threads = cpus > 0 ? (uint32_t)cpus : 1};
    bool ok = documents && questions && bt_team_create(&team_options, &error, &team) == BT_OK &&
              evaluate_all(argv + 2, argc - 2, team, documents, questions);
    bt_team_destroy(team);
    json_decref(documents);
    json_decref(questions);
    return ok ? 0 : 1;
}
