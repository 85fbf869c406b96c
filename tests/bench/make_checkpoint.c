/*
 * make_checkpoint SHAPE DTYPE DIR [SEED]
 *
 * Writes a checkpoint of real shapes with random weights: SHAPE is lite-slice, lite or v3-slice,
 * DTYPE bf16, fp8, int8 or w4.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/checkpoint.h"

int main(int argc, char **argv)
{
    const struct checkpoint_shape *shape = argc > 1 ? checkpoint_shape_find(argv[1]) : NULL;
    enum checkpoint_dtype dtype;
    struct bt_error error;
    if (argc < 4 || argc > 5 || !shape || !checkpoint_dtype_find(argv[2], &dtype)) {
        fprintf(stderr,
                "usage: make_checkpoint lite-slice|lite|v3-slice bf16|fp8|int8|w4 DIR [SEED]\n");
        return 2;
    }
    uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    if (checkpoint_write(argv[3], shape, dtype, seed, &error) != BT_OK) {
        fprintf(stderr, "make_checkpoint: %s\n", error.text);
        return 1;
    }
    return 0;
}
