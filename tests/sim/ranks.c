/* Every worker of the simulated world is one rank: nothing asks for another. */
#include "common/model/rank.h"

static _Noreturn void no_rank(void)
{
    bt_assert_failed("a rank alone", __FILE__, __LINE__);
}

uint32_t bt_rank_index(const struct bt_rank *rank)
{
    (void)rank;
    no_rank();
}

uint32_t bt_rank_size(const struct bt_rank *rank)
{
    (void)rank;
    no_rank();
}

struct bt_group *bt_rank_group(const struct bt_rank *rank)
{
    (void)rank;
    no_rank();
}

uint64_t bt_rank_incarnation(const struct bt_rank *rank)
{
    (void)rank;
    no_rank();
}

enum bt_status bt_rank_exchange(struct bt_rank *rank, const void *mine, size_t bytes, void *ret_all)
{
    (void)rank;
    (void)mine;
    (void)bytes;
    (void)ret_all;
    no_rank();
}

void bt_rank_metrics(struct bt_rank *rank, struct bt_metrics *metrics, const char *labels)
{
    (void)rank;
    (void)metrics;
    (void)labels;
    no_rank();
}

void bt_rank_metrics_update(struct bt_rank *rank)
{
    (void)rank;
    no_rank();
}
