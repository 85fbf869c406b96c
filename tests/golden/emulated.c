/*
 * Where the CPU lacks nothing but the tile instructions, the amx table is chosen all the same, its
 * instructions emulated: this stands before bt_kernels_select by the linker's --wrap.
 */
#include "tests/golden/emulated.h"

#include <string.h>

#include "common/kernels/kernels.h"
#include "common/kernels/x86/x86.h"
#include "tests/checkkern/amx_emulator.h"

enum bt_status __real_bt_kernels_select(const char *name, struct bt_error *error,
                                        const struct bt_kernels **ret_kernels);
enum bt_status __wrap_bt_kernels_select(const char *name, struct bt_error *error,
                                        const struct bt_kernels **ret_kernels);

static bool is_installed;

bool golden_amx_emulate(void)
{
    is_installed = bt_x86_missing_amx() && !bt_x86_missing_avx512_bf16() && amx_emulator_install();
    return is_installed;
}

uint64_t golden_amx_emulated(void)
{
    return amx_emulator_count();
}

enum bt_status __wrap_bt_kernels_select(const char *name, struct bt_error *error,
                                        const struct bt_kernels **ret_kernels)
{
    if (!is_installed || strcmp(name, "amx") != 0)
        return __real_bt_kernels_select(name, error, ret_kernels);
    *ret_kernels = &bt_kernels_amx;
    return BT_OK;
}
