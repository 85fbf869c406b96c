#include "common/parallel/ranks.h"

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
