#include "prefill-node/agreement.h"

#include "common/base/clock.h"

#define LEAVE UINT64_C(1)
#define STOP  UINT64_C(2)

enum { FLAGS, PLAN_WORDS, RANK_WORDS, WORDS = RANK_WORDS + BT_RANK_WORDS };

static enum bt_status exchange(struct bt_group *group, const uint64_t mine[WORDS],
                               struct bt_error *error, uint64_t *ret_words)
{
    enum bt_status status = bt_group_agree_begin(group, mine, WORDS);
    if (status == BT_OK) {
        status = bt_group_agree_finish(group, ret_words);
    }
    return status == BT_OK ? BT_OK : bt_error_set(error, status, "%s", bt_group_error(group));
}

static enum bt_status read_words(const uint64_t *words, uint32_t size, struct bt_error *error,
                                 struct pf_intent *ret_all)
{
    struct pf_intent all = {.leave = (words[FLAGS] & LEAVE) != 0,
                            .plan_words = (uint32_t)words[PLAN_WORDS]};
    bool makes_sense = words[PLAN_WORDS] <= UINT32_MAX && !(all.leave && all.plan_words > 0);
    for (uint32_t r = 0; r < size; r++) {
        uint64_t flags = words[r * WORDS + FLAGS];
        all.stop = all.stop || (flags & STOP) != 0;
        makes_sense = makes_sense && (flags & ~(LEAVE | STOP)) == 0;
        makes_sense =
            makes_sense && (r == 0 || ((flags & LEAVE) == 0 && words[r * WORDS + PLAN_WORDS] == 0));
    }
    if (!makes_sense) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "the ranks' agreement makes no sense");
    }
    *ret_all = all;
    return BT_OK;
}

enum bt_status pf_agree(struct bt_rank *rank, const struct pf_intent *mine, struct bt_error *error,
                        struct pf_intent *ret_all)
{
    uint64_t own[WORDS] = {(mine->leave ? LEAVE : 0) | (mine->stop ? STOP : 0), mine->plan_words};
    uint64_t all[BT_GROUP_RANKS_MAX * WORDS];
    const uint64_t *words = own;
    struct bt_group *group = bt_rank_group(rank);
    bt_rank_words(rank, bt_clock_now_ns(), &own[RANK_WORDS]);
    if (group) {
        enum bt_status status = exchange(group, own, error, all);
        if (status != BT_OK) {
            return status;
        }
        words = all;
    }
    enum bt_status status = read_words(words, bt_rank_size(rank), error, ret_all);
    return status == BT_OK ? bt_rank_agreed(rank, &words[RANK_WORDS], WORDS, error) : status;
}
