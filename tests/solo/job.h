/* A line of input of the single-process program, and the line of output it becomes. */
#ifndef BATON_TESTS_SOLO_JOB_H
#define BATON_TESTS_SOLO_JOB_H

#include <jansson.h>

#include "decode-node/engine.h"
#include "prefill-node/engine.h"

struct solo_job {
    json_t *id;
    uint32_t *prompt;
    uint32_t prompt_tokens;
    struct bt_sampling sampling;
    struct bt_sampler_history *history; /* NULL: no penalty needs it */
    uint32_t *source_pages;             /* in the prefill pool */
    uint32_t *pages;                    /* in the decode pool */
    uint32_t page_count, source_page_count;
    struct pf_job prefill;
    struct dc_sequence decode;
    struct bt_sample *samples; /* [sampling.max_tokens] */
    uint32_t sample_count;
    const char *finish;
};

/*
 * {"id": any, "prompt": [token ids], "sampling": {names of SamplingParams}}. What is not given has
 * the default of the HTTP API; max_tokens 16. INVALID_ARGUMENT names the field.
 */
enum bt_status solo_job_parse(const char *line, const struct bt_model_config *config,
                              struct bt_error *error, struct solo_job **ret_job);
void solo_job_destroy(struct solo_job *job); /* NULL is fine */

/*
 * {"id", "tokens": [...], "logprobs": [...], "top": [[[token, logprob], ...], ...], "finish"};
 * logprobs with 9 significant digits, which give the float back; only where they were asked for.
 */
void solo_job_print(const struct solo_job *job, FILE *out);

#endif
