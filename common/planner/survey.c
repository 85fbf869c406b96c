#include "common/planner/search.h"
#include "common/planner/sides.h"

static struct bt_plan_choice choice_of_prefill(const struct bt_plan_question *question,
                                               const struct bt_plan_pool *pool)
{
    struct bt_plan_prefiller side =
        bt_plan_prefiller_of(question, &question->prefill_hardware, pool);
    return (struct bt_plan_choice){
        .memory = side.memory,
        .cost = side.cost,
        .requests_per_s = side.memory.fits ? question->policy.max_utilisation * pool->layout.dp /
                                                 side.cost.seconds
                                           : 0,
    };
}

static struct bt_plan_choice choice_of_decode(const struct bt_plan_question *question,
                                              const struct bt_plan_pool *pool)
{
    struct bt_plan_decoder side = bt_plan_decoder_of(question, &question->decode_hardware, pool, 0);
    struct bt_plan_decoding one = bt_plan_decoding_of(question, 1);
    struct bt_plan_decoding most = bt_plan_decoding_of(question, side.max_batch);
    return (struct bt_plan_choice){
        .memory = bt_plan_decode_memory(&side.instance, &one),
        .cost = bt_plan_decode_cost(&side.instance, &most),
        .max_batch = side.max_batch,
        .tpot_s = bt_plan_decoder_tpot(question, &side, side.max_batch),
        .requests_per_s = bt_plan_decoder_rate(question, &side),
    };
}

enum bt_status bt_plan_survey(const struct bt_plan_question *question, enum bt_plan_phase phase,
                              struct bt_error *error, struct bt_plan_survey *survey)
{
    bool prefill = phase == BT_PLAN_PREFILL;
    struct bt_plan_layouts layouts;
    enum bt_status status = bt_plan_question_check(question, error);
    if (status != BT_OK)
        return status;
    bt_plan_layouts_list(question,
                         prefill ? &question->prefill_hardware : &question->decode_hardware, phase,
                         &layouts);
    survey->count = 0;
    for (size_t i = 0; i < layouts.count && survey->count < survey->capacity; i++) {
        struct bt_plan_pool pool = layouts.pools[i];
        pool.instances = 1;
        struct bt_plan_choice choice =
            prefill ? choice_of_prefill(question, &pool) : choice_of_decode(question, &pool);
        choice.pool = pool;
        choice.cards = bt_plan_layout_cards(&pool.layout);
        choice.bound = bt_plan_bound_of(&choice.cost);
        survey->choices[survey->count++] = choice;
    }
    return BT_OK;
}
