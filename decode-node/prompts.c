#include "decode-node/prompts.h"

#include <stdlib.h>

#include "decode-node/engine.h"

bool dc_prompts_init(struct dc_prompts *prompts, uint32_t max_sequences, uint32_t max_rows)
{
    *prompts = (struct dc_prompts){
        .jobs = calloc(max_sequences, sizeof(*prompts->jobs)),
        .sequences = calloc(max_sequences, sizeof(struct dc_sequence *)),
        .chunks = calloc(DC_PROMPTS_SHARE, sizeof(*prompts->chunks)),
    };
    return prompts->jobs && prompts->sequences && prompts->chunks &&
           bt_prompt_batch_init(&prompts->batch, DC_PROMPTS_SHARE, max_rows);
}

void dc_prompts_finish(struct dc_prompts *prompts)
{
    bt_prompt_batch_finish(&prompts->batch);
    free(prompts->jobs);
    free(prompts->sequences);
    free(prompts->chunks);
    *prompts = (struct dc_prompts){0};
}

bool dc_prompts_waiting(const struct dc_sequence *sequence)
{
    return sequence->prompt && sequence->computed < sequence->prompt_tokens;
}

static uint32_t list(struct dc_prompts *prompts, struct dc_sequence *const *sequences,
                     uint32_t count)
{
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct dc_sequence *sequence = sequences[i];
        if (dc_prompts_waiting(sequence)) {
            prompts->sequences[waiting] = sequence;
            prompts->jobs[waiting++] = (struct bt_prompt_job){
                sequence->prompt_tokens, sequence->computed, sequence->arrival_ns};
        }
    }
    return waiting;
}

uint32_t dc_prompts_gather(struct dc_prompts *prompts, struct dc_sequence *const *sequences,
                           uint32_t count, uint32_t budget)
{
    const struct bt_prompt_limits limits = {budget, DC_PROMPTS_SHARE,
                                            BT_PROMPT_AGEING_TOKENS_PER_S};
    uint32_t waiting = list(prompts, sequences, count);
    bt_prompt_batch_clear(&prompts->batch);
    prompts->chunk_count =
        waiting > 0 ? bt_prompt_schedule(prompts->jobs, waiting, &limits, prompts->chunks) : 0;
    for (uint32_t i = 0; i < prompts->chunk_count; i++) {
        const struct bt_prompt_chunk *chunk = &prompts->chunks[i];
        const struct dc_sequence *sequence = prompts->sequences[chunk->job];
        bt_prompt_batch_add(&prompts->batch, sequence->pages, chunk->begin,
                            sequence->prompt + chunk->begin, chunk->end - chunk->begin,
                            chunk->end == sequence->prompt_tokens);
    }
    return prompts->batch.rows;
}

void dc_prompts_computed(struct dc_prompts *prompts, int64_t begin_ns, int64_t end_ns)
{
    for (uint32_t i = 0; i < prompts->chunk_count; i++) {
        struct dc_sequence *sequence = prompts->sequences[prompts->chunks[i].job];
        if (sequence->computed == 0) {
            sequence->prompt_begin_ns = begin_ns;
        }
        sequence->computed = prompts->chunks[i].end;
        sequence->prompt_compute_ns += end_ns - begin_ns;
    }
}

struct dc_sequence *dc_prompts_ended(const struct dc_prompts *prompts, uint32_t chunk)
{
    struct dc_sequence *sequence = prompts->sequences[prompts->chunks[chunk].job];
    return prompts->chunks[chunk].end == sequence->prompt_tokens ? sequence : NULL;
}
