#include "common/parallel/ranks.h"

#include "common/parallel/group_ops.h"

void bt_ranks_init(struct bt_ranks *ranks, uint32_t rank, uint32_t size, const bool *together)
{
    *ranks = (struct bt_ranks){.rank = rank, .size = size};
    for (uint32_t r = 0; r < size; r++) {
        if (r == 0 || !together[r])
            ranks->first[ranks->machines++] = r;
        ranks->machine_of[r] = ranks->machines - 1;
        ranks->count[ranks->machines - 1]++;
    }
}

struct bt_share bt_group_share(const struct bt_group *group, uint32_t rank, uint32_t rows)
{
    uint32_t each = rows / group->size, more = rows % group->size;
    return (struct bt_share){.first = each * rank + (rank < more ? rank : more),
                             .count = each + (rank < more)};
}
