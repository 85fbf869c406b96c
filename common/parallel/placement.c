#include "common/parallel/placement.h"

#include <string.h>

static const char *const kinds[] = {
    [BT_PLACEMENT_CONTIGUOUS] = "contiguous",
    [BT_PLACEMENT_ROUND_ROBIN] = "round-robin",
    [BT_PLACEMENT_BALANCED] = "balanced",
};

enum bt_status bt_placement_kind_parse(const char *text, struct bt_error *error,
                                       enum bt_placement_kind *ret_kind)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(text, kinds[i]) == 0) {
            *ret_kind = (enum bt_placement_kind)i;
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "'%s' is no placement: contiguous, round-robin or balanced", text);
}
