#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/kernels/stream.h"
#include "common/kernels/x86/ffn_memory.h"
#include "common/kernels/x86/linear_memory.h"
#include "common/kernels/x86/mla_memory.h"
#include "common/kernels/x86/x86.h"

/* The compiler's check includes that the operating system saves the registers (XGETBV). */
const char *bt_x86_missing_avx2(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2"))
        return "avx2";
    if (!__builtin_cpu_supports("fma"))
        return "fma";
    /* not a name that every compiler's check knows; its registers are those of AVX */
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) ? NULL : "f16c";
}

const char *bt_x86_missing_avx512(void)
{
    if (bt_x86_missing_avx2())
        return bt_x86_missing_avx2();
    if (!__builtin_cpu_supports("avx512f"))
        return "avx512f";
    if (!__builtin_cpu_supports("avx512bw"))
        return "avx512bw";
    if (!__builtin_cpu_supports("avx512vl"))
        return "avx512vl";
    return __builtin_cpu_supports("avx512dq") ? NULL : "avx512dq";
}

static bool leaf7(unsigned subleaf, unsigned *eax, unsigned *edx, unsigned *ecx)
{
    unsigned ebx;
    return __get_cpuid_count(7, subleaf, eax, &ebx, ecx, edx) != 0;
}

const char *bt_x86_missing_avx512_bf16(void)
{
    unsigned eax, ecx, edx;
    if (bt_x86_missing_avx512())
        return bt_x86_missing_avx512();
    if (!leaf7(0, &eax, &edx, &ecx) || !(ecx & 1u << 11))
        return "avx512_vnni";
    return leaf7(1, &eax, &edx, &ecx) && (eax & 1u << 5) ? NULL : "avx512_bf16";
}

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA          18     /* XFEATURE_XTILE_DATA */

const char *bt_x86_missing_amx(void)
{
    unsigned eax, ecx, edx;
    if (bt_x86_missing_avx512_bf16())
        return bt_x86_missing_avx512_bf16();
    if (!leaf7(0, &eax, &edx, &ecx) || !(edx & 1u << 24))
        return "amx-tile";
    if (!(edx & 1u << 22))
        return "amx-bf16";
    if (!(edx & 1u << 25))
        return "amx-int8";
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0
               ? NULL
               : "the permission of the operating system to use amx";
}

static size_t floats(size_t count)
{
    return bt_scratch_bytes(count, sizeof(float));
}

static size_t route_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t experts = (size_t)threads * limits->experts;
    return floats(BT_X86_ROUTE_ROWS * experts) + 2 * floats(2 * experts);
}

static size_t experts_bytes(const struct bt_stream_limits *limits)
{
    size_t picks = (size_t)limits->max_rows * limits->experts_per_token;
    return floats(picks) + floats((size_t)limits->experts + 1) +
           2 * floats((size_t)BT_X86_EXPERT_ROWS * limits->max_cols) +
           2 * floats((size_t)BT_X86_EXPERT_ROWS * limits->hidden) +
           2 * floats((size_t)BT_X86_EXPERT_ROWS * limits->moe_intermediate);
}

/* Tile arithmetic of experts, and of a dense MLP whose widths are both max_cols at most. */
static size_t ffn_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t rows = limits->max_rows, routed = rows;
    if (limits->max_expert_rows > routed)
        routed = limits->max_expert_rows;
    size_t moe = bt_ffn_bytes(routed, routed * limits->experts_per_token, limits->hidden,
                              limits->moe_intermediate, threads);
    size_t block = rows < BT_FFN_BLOCK_ROWS ? rows : BT_FFN_BLOCK_ROWS;
    size_t mlp = bt_ffn_bytes(block, block, limits->max_cols, limits->max_cols, threads);
    return moe > mlp ? moe : mlp;
}

static size_t linear_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t tiles = bt_linear_bytes(limits->max_rows, limits->max_cols, threads);
    size_t rows = floats((size_t)threads * BT_X86_PRODUCT_FLOATS);
    return tiles > rows ? tiles : rows;
}

size_t bt_x86_scratch_bytes(const struct bt_stream_limits *limits, uint32_t threads)
{
    size_t most = 0, needs[] = {bt_mla_bytes(&limits->mla, limits->max_rows, threads),
                                route_bytes(limits, threads), experts_bytes(limits),
                                ffn_bytes(limits, threads), linear_bytes(limits, threads)};
    for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
        most = needs[i] > most ? needs[i] : most;
    return most + floats((size_t)threads * BT_X86_PRODUCT_FLOATS);
}
