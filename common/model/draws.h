/*
 * The draws of a batch for a device (kernels.h): which tokens it draws, and how. All that
 * bt_sampler_draw knows goes there, but for lists that have no room: penalties of a history with
 * more tokens than are left of the batch's adjusts. Those tokens the host has to draw.
 */
#ifndef BATON_COMMON_MODEL_DRAWS_H
#define BATON_COMMON_MODEL_DRAWS_H

#include "common/kernels/kernels.h"
#include "common/model/sampler.h"

/* Room for each draw of a batch; one that needs less leaves it to the others. */
#define BT_DRAWS_ADJUSTS 2048

/* Of one batch at a time; the owner's. */
struct bt_draws {
    struct bt_draw *draws; /* [count] */
    struct bt_adjust *adjusts;
    uint32_t count, capacity;
    uint32_t adjust_count, adjust_capacity;
    bool all_here; /* the host draws none of them */
};

bool bt_draws_init(struct bt_draws *draws, uint32_t capacity); /* false: no memory */
void bt_draws_finish(struct bt_draws *draws);
void bt_draws_clear(struct bt_draws *draws);

/* As the arguments of bt_sampler_draw. */
struct bt_draw_ask {
    const struct bt_sampling *sampling;
    const struct bt_sampler_history *history; /* may be NULL */
    uint32_t position;
    /* An output that the history does not have yet. */
    enum bt_newest newest;
    uint32_t newest_token;
};

/* Adds the draw of the next row. `sampler`: of the model. False: the host has to draw this one; the
 * device draws some token. */
bool bt_draws_add(struct bt_draws *draws, const struct bt_sampler *sampler,
                  const struct bt_draw_ask *ask);

/* What the device made of one. `logprobs`: NULL, or of that row, read where they are wanted. */
void bt_draw_sample(const struct bt_sampling *sampling, uint32_t token,
                    const struct bt_logprobs *logprobs, struct bt_sample *ret_sample);

#endif
