/* Kernels with one fault each, which the grid finds and names, and their correct twins. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

extern "C" {
#include <cmocka.h>
}

#include <string>
#include <thread>
#include <vector>

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static thread_local std::string told;

static void keep_text(const char *text)
{
    told = text;
}

struct Memory { /* of the device: 64 KiB, zeroed */
    static constexpr size_t bytes = 65536;
    uint32_t *words;
    Memory()
    {
        words = static_cast<uint32_t *>(aligned_alloc(1024, bytes));
        memset(words, 0, bytes);
        emulation::device_memory_add(words, bytes);
    }
    ~Memory()
    {
        emulation::device_memory_remove(words);
        free(words);
    }
};

typedef void (*kernel)(uint32_t *memory, uint32_t bad);

struct Case {
    const char *name;
    kernel run;
    unsigned threads, shared_bytes, blocks;
    const char *expected; /* of the fault, where `bad` is true */
    unsigned cluster = 1;
};

/* ---- shared memory ---- */

BT_KERNEL(64, 1) shared_bounds(uint32_t *, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x + bad] = 1;
}
/* Begins inside. */
BT_KERNEL(1, 1) shared_bounds_part(uint32_t *out, uint32_t bad)
{
    __builtin_memcpy(bt_shared() + 252 + 2 * bad, out, sizeof(*out));
}
BT_KERNEL(1, 1) shared_misaligned(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[0] = words[1] = 1;
    out[0] = *reinterpret_cast<uint32_t *>(bt_shared() + 2 * bad);
}
BT_KERNEL(64, 1) shared_poison(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    if (threadIdx.x < 64 - bad)
        words[threadIdx.x] = 1;
    bt_sync_block();
    out[threadIdx.x] = words[threadIdx.x];
}
/* Threads come one after the other: no order of theirs hides it. */
BT_KERNEL(64, 1) shared_race_read(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = threadIdx.x;
    words[64 + threadIdx.x] = 0;
    if (!bad)
        bt_sync_block();
    if (threadIdx.x > 0)
        out[threadIdx.x] = words[threadIdx.x - 1];
}
BT_KERNEL(64, 1) shared_race_write(uint32_t *, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[bad ? 0 : threadIdx.x] = 7;
}
/* The value that is read in one round is written in the next. */
BT_KERNEL(64, 1) shared_race_again(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    for (uint32_t i = 0; i < 3; i++) {
        if (threadIdx.x == 0)
            words[0] = i;
        bt_sync_block();
        out[threadIdx.x] = words[0];
        if (!bad)
            bt_sync_block();
    }
}
BT_KERNEL(64, 1) shared_race_bytes(uint32_t *, uint32_t bad)
{
    unsigned char *bytes = bt_shared();
    bytes[threadIdx.x / (bad ? 2 : 1)] = 1;
}
/* A shuffle orders no memory, a warp's barrier does; but not between warps. */
BT_KERNEL(64, 1) warp_order(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = threadIdx.x;
    if (bad)
        out[64 + threadIdx.x] = bt_shuffle_xor(threadIdx.x, 1);
    else
        bt_sync_warp();
    out[threadIdx.x] = words[threadIdx.x ^ 1];
}
BT_KERNEL(64, 1) warp_order_other(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = threadIdx.x;
    bt_sync_warp();
    out[threadIdx.x] = words[threadIdx.x ^ (bad ? 32 : 16)];
}
/* Many readers, of whom one is not in order before the writer. */
BT_KERNEL(96, 1) readers_order(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    if (threadIdx.x == 0)
        words[0] = 1;
    bt_sync_block();
    if (threadIdx.x < 64 || bad)
        out[threadIdx.x] = words[0];
    if (threadIdx.x < 64)
        bt_sync_named(1, 64);
    if (threadIdx.x == 32)
        words[0] = 2;
    bt_sync_block();
}
BT_KERNEL(64, 1) atomic_order(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    if (threadIdx.x == 0)
        words[0] = 0;
    bt_sync_block();
    bt_atomic_add(words, 1);
    if (!bad)
        bt_sync_block();
    if (threadIdx.x == 5)
        out[0] = words[0];
}

/* ---- global memory ---- */

BT_KERNEL(64, 1) global_bounds(uint32_t *out, uint32_t bad)
{
    out[Memory::bytes / 4 - 64 + threadIdx.x + bad] = 1;
}
BT_KERNEL(64, 1) global_before(uint32_t *out, uint32_t bad)
{
    out[static_cast<int>(threadIdx.x) - static_cast<int>(bad)] = 1;
}
static uint32_t of_host = 5;
BT_KERNEL(64, 1) global_host(uint32_t *out, uint32_t bad)
{
    if (bad)
        out = &of_host;
    out[0] += threadIdx.x;
}
static const uint32_t of_constants[4] = {1, 2, 3, 4};
BT_KERNEL(64, 1) global_constant(uint32_t *out, uint32_t bad)
{
    const uint32_t *volatile from = of_constants;
    out[threadIdx.x] = from[threadIdx.x % 4];
    if (bad)
        const_cast<uint32_t *>(from)[threadIdx.x % 4] = 1;
}
BT_KERNEL(32, 1) blocks_write(uint32_t *out, uint32_t bad)
{
    out[(bad ? 0 : blockIdx.x * 32) + threadIdx.x] = blockIdx.x;
}
BT_KERNEL(32, 1) blocks_read(uint32_t *out, uint32_t bad)
{
    out[blockIdx.x * 32 + threadIdx.x] = 1;
    out[1024 + blockIdx.x * 32 + threadIdx.x] = out[(blockIdx.x * 32 + threadIdx.x + bad) % 128];
}
BT_KERNEL(32, 1) blocks_read_first(uint32_t *out, uint32_t bad)
{
    uint32_t next = bad ? (blockIdx.x + 1) % gridDim.x : blockIdx.x;
    uint32_t value = out[next * 32 + threadIdx.x];
    out[blockIdx.x * 32 + threadIdx.x] = value + 1;
}
BT_KERNEL(32, 1) blocks_count(uint32_t *out, uint32_t bad)
{
    if (bad && threadIdx.x == 0)
        out[0]++;
    else if (!bad)
        bt_atomic_add(out, 1);
}
/* The last block sums what all have written. */
enum last_fault { no_release = 1, release_of_all, no_acquire, acquire_apart };
template <int Fault> BT_KERNEL(32, 1) blocks_last(uint32_t *out, uint32_t bad)
{
    const int fault = bad ? Fault : 0;
    out[1 + blockIdx.x * 32 + threadIdx.x] = 1;
    if (fault == release_of_all)
        bt_fence_device();
    bt_sync_block();
    uint32_t *last = reinterpret_cast<uint32_t *>(bt_shared());
    if (threadIdx.x == 0) {
        if (fault != no_release && fault != release_of_all)
            bt_fence_device();
        *last = bt_atomic_add(out, 1) == gridDim.x - 1;
        if (fault != no_acquire && fault != acquire_apart)
            bt_fence_device();
    }
    bt_sync_block();
    if (!*last)
        return;
    if (fault == acquire_apart && threadIdx.x != 0)
        bt_fence_device();
    uint32_t sum = 0;
    for (uint32_t i = threadIdx.x; i < gridDim.x * 32; i += 32)
        sum += out[1 + i];
    out[4096 + threadIdx.x] = sum;
}
BT_KERNEL(32, 1) load_of_written(uint32_t *out, uint32_t bad)
{
    if (bad)
        out[4 * threadIdx.x] = 1;
    uint4 value = bt_load_16(out + 4 * threadIdx.x);
    bt_store_16(out + 1024 + 4 * threadIdx.x, value);
}
BT_KERNEL(32, 1) misaligned(uint32_t *out, uint32_t bad)
{
    uint4 value = bt_load_16(out + 4 * threadIdx.x + bad);
    bt_store_16(out + 1024 + 4 * threadIdx.x, value);
}
BT_KERNEL(32, 1) misaligned_word(uint32_t *out, uint32_t bad)
{
    unsigned char *bytes = reinterpret_cast<unsigned char *>(out) + 2 * bad;
    reinterpret_cast<uint32_t *>(bytes)[threadIdx.x] = 1;
}
/* Four floats are one load there. */
BT_KERNEL(32, 1) misaligned_four(uint32_t *out, uint32_t bad)
{
    float4 four = *reinterpret_cast<const float4 *>(out + 4 * threadIdx.x + bad);
    out[1024 + threadIdx.x] = four.x + four.w == 0;
}
BT_KERNEL(32, 1) shift_far(uint32_t *out, uint32_t bad)
{
    out[threadIdx.x] = 1u << (threadIdx.x + bad);
}
BT_KERNEL(32, 1) convert_large(uint32_t *out, uint32_t bad)
{
    out[threadIdx.x] = static_cast<uint32_t>((1.0f + static_cast<float>(bad)) * 2147483648.0f);
}
BT_KERNEL(32, 1) local_of_other(uint32_t *out, uint32_t bad)
{
    uint64_t *shared = reinterpret_cast<uint64_t *>(bt_shared());
    volatile uint32_t mine[2] = {threadIdx.x, 1};
    shared[threadIdx.x] = reinterpret_cast<uint64_t>(mine);
    bt_sync_block();
    out[threadIdx.x] = *reinterpret_cast<volatile uint32_t *>(shared[threadIdx.x ^ bad]);
    bt_sync_block();
}

/* ---- barriers ---- */

BT_KERNEL(64, 1) sync_ended(uint32_t *, uint32_t bad)
{
    if (bad && threadIdx.x == 40)
        return;
    bt_sync_block();
}
BT_KERNEL(64, 1) sync_apart(uint32_t *, uint32_t bad)
{
    if (bad && threadIdx.x >= 32)
        bt_sync_block();
    else
        bt_sync_block();
}
BT_KERNEL(64, 1) sync_missing(uint32_t *, uint32_t bad)
{
    if (bad && threadIdx.x < 32)
        bt_sync_named(1, 64);
    else if (bad)
        bt_sync_block();
}
BT_KERNEL(64, 1) named_count(uint32_t *, uint32_t bad)
{
    bt_sync_named(1, threadIdx.x < 32 ? 64 : 64 - 32 * bad);
}
BT_KERNEL(64, 1) named_odd(uint32_t *, uint32_t bad)
{
    bt_sync_named(1, 64 - 16 * bad);
}
BT_KERNEL(64, 1) named_left(uint32_t *, uint32_t bad)
{
    if (threadIdx.x < 32)
        bt_arrive_named(2, 64);
    else if (!bad)
        bt_sync_named(2, 64);
}
BT_KERNEL(64, 1) named_lanes(uint32_t *, uint32_t bad)
{
    if (!bad || threadIdx.x % 2 == 0)
        bt_sync_named(3, bad ? 32 : 64);
}
/* One who only arrives knows nothing of the others. */
BT_KERNEL(64, 1) named_arrive(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = 1;
    if (threadIdx.x < 32) {
        bt_arrive_named(1, 64);
        if (bad)
            out[0] = words[threadIdx.x + 32];
    } else {
        bt_sync_named(1, 64);
        out[1 + threadIdx.x] = words[threadIdx.x - 32];
    }
}
/* What is written behind the arrival is of the next round. */
BT_KERNEL(64, 1) named_late(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = 1;
    bt_sync_block();
    if (threadIdx.x < 32) {
        if (!bad)
            words[threadIdx.x] = 2;
        bt_arrive_named(1, 64);
        if (bad)
            words[threadIdx.x] = 2;
    } else {
        bt_sync_named(1, 64);
        out[threadIdx.x] = words[threadIdx.x - 32];
    }
}
BT_KERNEL(32, 1) shuffle_ended(uint32_t *out, uint32_t bad)
{
    if (bad && threadIdx.x == 3)
        return;
    out[threadIdx.x] = bt_shuffle_xor(threadIdx.x, 1);
}
BT_KERNEL(32, 1) shuffle_apart(uint32_t *out, uint32_t bad)
{
    if (bad && threadIdx.x == 3)
        out[threadIdx.x] = bt_ballot(true);
    else
        out[threadIdx.x] = bt_shuffle_xor(threadIdx.x, 1);
}
BT_KERNEL(48, 1) shuffle_part(uint32_t *out, uint32_t bad)
{
    if (threadIdx.x < 32 || bad)
        out[threadIdx.x] = bt_shuffle_xor(threadIdx.x, 1);
}
BT_KERNEL(64, 1) mma_apart(uint32_t *out, uint32_t bad)
{
    float d[4] = {0, 0, 0, 0};
    uint32_t a[4] = {1, 2, 3, 4}, b[2] = {1, 2};
    if (!(bad && threadIdx.x == 7))
        bt_mma_bf16(d, a, b);
    bt_sync_block();
    out[threadIdx.x] = bt_bits(d[0]);
}

/* ---- copies ---- */

BT_KERNEL(32, 1) copy_no_wait(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    bt_copy_async_16(words + 4 * threadIdx.x, out + 4 * threadIdx.x, true);
    bt_copy_async_commit();
    if (!bad)
        bt_copy_async_wait<0>();
    out[1024 + threadIdx.x] = words[4 * threadIdx.x];
}
BT_KERNEL(32, 1) copy_stored_over(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[4 * threadIdx.x] = 1;
    bt_copy_async_16(words + 4 * threadIdx.x, out + 4 * threadIdx.x, true);
    bt_copy_async_commit();
    if (!bad)
        bt_copy_async_wait<0>();
    words[4 * threadIdx.x] = 2;
    bt_copy_async_wait<0>();
}
BT_KERNEL(32, 1) copy_no_commit(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    bt_copy_async_16(words + 4 * threadIdx.x, out + 4 * threadIdx.x, threadIdx.x % 2);
    if (!bad)
        bt_copy_async_commit();
    bt_copy_async_wait<0>();
    out[1024 + threadIdx.x] = words[4 * threadIdx.x];
}
/* A pipeline of two: the newest group may be under way. */
BT_KERNEL(32, 1) copy_left(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    for (uint32_t i = 0; i < 2; i++) {
        bt_copy_async_16(words + 4 * (threadIdx.x + 32 * i), out + 4 * threadIdx.x, true);
        bt_copy_async_commit();
    }
    bt_copy_async_wait<1>();
    bt_sync_block();
    out[1024 + threadIdx.x] = words[4 * ((threadIdx.x + 1) % 32 + 32 * bad)];
    bt_copy_async_wait<0>();
}
BT_KERNEL(32, 1) copy_other(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    bt_copy_async_16(words + 4 * threadIdx.x, out + 4 * threadIdx.x, true);
    bt_copy_async_commit();
    bt_copy_async_wait<0>();
    if (!bad)
        bt_sync_block();
    out[1024 + threadIdx.x] = words[4 * (threadIdx.x ^ 1)];
}
BT_KERNEL(32, 1) copy_misaligned(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    bt_copy_async_16(words + 4 * threadIdx.x + 2 * bad, out + 4 * threadIdx.x, true);
    bt_copy_async_commit();
    bt_copy_async_wait<0>();
}
BT_KERNEL(32, 1) ldmatrix_misaligned(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared()), got[4];
    for (uint32_t i = threadIdx.x; i < 160; i += 32)
        words[i] = i;
    bt_sync_block();
    bt_ldmatrix_x4(got, words + 4 * threadIdx.x + bad);
    out[threadIdx.x] = got[0];
}
BT_KERNEL(32, 1) ldmatrix_race(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared()), got[4];
    for (uint32_t i = threadIdx.x; i < 128; i += 32)
        words[i] = i;
    if (!bad)
        bt_sync_warp();
    bt_ldmatrix_x4(got, words + 4 * threadIdx.x);
    out[threadIdx.x] = got[0];
}

BT_DEVICE uint64_t *mbarrier_at(uint32_t offset)
{
    return reinterpret_cast<uint64_t *>(bt_shared() + offset);
}
enum bulk_fault {
    no_wait = 1,
    no_init,
    no_sync,
    bad_bytes,
    wrong_parity,
    misaligned_bytes,
    reused
};
/* Bytes 0 … 1023 are copied, the mbarrier lies behind them. */
template <int Fault> BT_KERNEL(64, 1) bulk(uint32_t *out, uint32_t bad)
{
    uint64_t *full = mbarrier_at(1024), *empty = mbarrier_at(1032);
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    const int fault = bad ? Fault : 0;
    if (threadIdx.x == 0 && fault != no_init) {
        bt_mbarrier_init(full, 1);
        bt_mbarrier_init(empty, 32);
    }
    if (fault != no_sync)
        bt_sync_block();
    if (threadIdx.x >= 32) { /* the producer */
        for (uint32_t round = 0; round < 3 && threadIdx.x == 32; round++) {
            if (fault != reused)
                bt_mbarrier_wait(empty, (round & 1) ^ 1);
            bt_mbarrier_arrive_expect(full, fault == bad_bytes ? 1040 : 1024);
            bt_bulk_copy(bt_shared(), out + 256 * round, fault == misaligned_bytes ? 1000 : 1024,
                         full);
        }
        return;
    }
    for (uint32_t round = 0; round < 3; round++) {
        if (fault != no_wait)
            bt_mbarrier_wait(full, fault == wrong_parity ? (round & 1) ^ 1 : round & 1);
        out[1024 + 32 * round + threadIdx.x] = words[threadIdx.x * 8];
        bt_mbarrier_arrive(empty);
    }
}

/* What was stored before the copy may come after it. */
BT_KERNEL(32, 1) bulk_over(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    uint64_t *full = reinterpret_cast<uint64_t *>(bt_shared() + 128);
    words[threadIdx.x] = threadIdx.x;
    if (!bad)
        bt_fence_async();
    if (threadIdx.x == 0)
        bt_mbarrier_init(full, 1);
    bt_sync_block();
    if (threadIdx.x == 0) {
        bt_mbarrier_arrive_expect(full, 128);
        bt_bulk_copy(words, out, 128, full);
    }
    bt_mbarrier_wait(full, 0);
    out[1024 + threadIdx.x] = words[threadIdx.x];
}

/* Nobody looks whether it has come. */
BT_KERNEL(32, 1) bulk_left(uint32_t *out, uint32_t bad)
{
    uint64_t *full = mbarrier_at(128);
    if (threadIdx.x == 0)
        bt_mbarrier_init(full, 1);
    bt_sync_block();
    if (threadIdx.x == 0) {
        bt_mbarrier_arrive_expect(full, 128);
        bt_bulk_copy(bt_shared(), out, 128, full);
    }
    if (!bad)
        bt_mbarrier_wait(full, 0);
}

/* ---- clusters ---- */

enum cluster_fault {
    no_first_sync = 1,
    no_last_sync,
    bad_rank,
    no_empty,
    no_fence,
    no_meeting,
    read_early,
    source_changed,
    source_rewritten,
    sent_less,
    sent_odd,
    sent_outside,
    expected_less,
    sent_home,
    one_block_syncs,
    one_thread_ends,
    too_many_arrive
};
/* Each block sends 512 bytes to the other one's, three times. Bytes 0 … 511 are its own, copied to
 * the same place there; 512 … 1023 what it gets, so blocks use opposite halves. */
template <int Fault> BT_KERNEL(128, 1) exchange(uint32_t *out, uint32_t bad)
{
    const int fault = bad ? Fault : 0;
    const uint32_t rank = bt_cluster_rank(), other = rank ^ 1;
    uint64_t *full = mbarrier_at(1024), *empty = mbarrier_at(1032);
    uint32_t *mine = reinterpret_cast<uint32_t *>(bt_shared() + 512 * rank);
    uint32_t *got = reinterpret_cast<uint32_t *>(bt_shared() + 512 * other);
    if (threadIdx.x == 0) {
        bt_mbarrier_init(full, 1);
        bt_mbarrier_init(empty, 64);
    }
    if (fault == no_first_sync)
        bt_sync_block();
    else
        bt_sync_cluster();
    if (fault == one_block_syncs && rank == 0)
        bt_sync_cluster();
    for (uint32_t round = 0; round < 3 && threadIdx.x < 32; round++) {
        if (round > 0 && fault != no_empty)
            bt_mbarrier_wait(empty, (round - 1) & 1);
        for (uint32_t i = threadIdx.x; i < 128; i += 32)
            mine[i] = 1000 * round + 128 * rank + i;
        if (fault != no_fence)
            bt_fence_async();
        if (fault != no_meeting)
            bt_sync_warp();
        if (threadIdx.x == 0) {
            bt_mbarrier_arrive_expect(full, fault == expected_less ? 496 : 512);
            bt_bulk_copy_cluster(fault == sent_outside ? bt_shared() + 1040 - 256
                                                       : reinterpret_cast<unsigned char *>(mine),
                                 fault == sent_less  ? 256
                                 : fault == sent_odd ? 500
                                                     : 512,
                                 full,
                                 fault == bad_rank    ? 2
                                 : fault == sent_home ? rank
                                                      : other);
        }
        if (fault == source_changed && threadIdx.x == 0)
            mine[threadIdx.x] = 0;
        if (fault != read_early)
            bt_mbarrier_wait(full, round & 1);
        if (fault == source_rewritten && threadIdx.x == 0 && round == 2) /* is it there yet? */
            mine[0] = 0;
        for (uint32_t i = threadIdx.x; i < 128; i += 32)
            out[(blockIdx.x * 3 + round) * 128 + i] = got[i];
        bt_mbarrier_arrive(empty);
        bt_mbarrier_arrive_cluster(empty, other);
        if (fault == too_many_arrive)
            bt_mbarrier_arrive_cluster(empty, other);
    }
    if (fault == one_thread_ends && threadIdx.x == 100)
        return;
    if (fault != no_last_sync)
        bt_sync_cluster();
}

/* A block ends that the other one still arrives at, sends to, or is sent something from; or it
 * changes what it has sent, when that has come for sure, which it does not know. */
enum leaving_use { arrives = 1, sends, is_read, is_changed };
template <int Use> BT_KERNEL(128, 1) leaving(uint32_t *, uint32_t bad)
{
    const bool is_sent = Use == is_read || Use == is_changed;
    uint64_t *go = mbarrier_at(512), *full = mbarrier_at(520);
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    const uint32_t rank = bt_cluster_rank();
    words[threadIdx.x] = 0;
    bt_fence_async();
    if (threadIdx.x == 0) {
        bt_mbarrier_init(go, 1);
        bt_mbarrier_init(full, 1);
    }
    bt_sync_cluster();
    if (threadIdx.x == 0 && rank == 1 && !is_sent)
        bt_mbarrier_arrive_cluster(go, 0);
    if (threadIdx.x == 0 && rank == 0) {
        if (!is_sent)
            bt_mbarrier_wait(go, 0);
        if (Use == arrives)
            bt_mbarrier_arrive_cluster(full, 1);
        else
            bt_bulk_copy_cluster(words, 512, full, 1);
        if (is_sent)
            bt_mbarrier_wait(go, 0);
        if (Use == is_changed && bad)
            words[0] = 1;
    }
    /* Of what thread 0 sees it knows nothing. */
    if (threadIdx.x == 32 && rank == 1 && is_sent)
        bt_mbarrier_arrive_cluster(go, 0);
    if (threadIdx.x == 0 && rank == 1 && (is_sent || (Use == sends && !bad))) {
        bt_mbarrier_arrive_expect(full, 512);
        bt_mbarrier_wait(full, 0);
    }
    if (!bad || Use == is_changed)
        bt_sync_cluster();
}

/* Named barriers and the block's are of each block; so are its words, races, and what it waits for.
 */
BT_KERNEL(128, 1) apart(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
    if (!bad || bt_cluster_rank() == 0)
        bt_sync_block();
    out[blockIdx.x * 128 + threadIdx.x] = words[threadIdx.x ^ 64];
    bt_sync_block();
    bt_sync_named(2, 128);
    if (bt_cluster_rank() == 1)
        bt_sync_block();
}
/* Nor does the block's barrier order what the other block does. */
BT_KERNEL(128, 1) apart_order(uint32_t *out, uint32_t bad)
{
    uint64_t *full = mbarrier_at(512);
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    words[threadIdx.x] = 1;
    bt_fence_async();
    if (threadIdx.x == 0)
        bt_mbarrier_init(full, 1);
    bt_sync_cluster();
    if (bt_cluster_rank() == 1) {
        out[blockIdx.x * 128 + threadIdx.x] = words[threadIdx.x];
        bt_sync_block();
    }
    if (!bad)
        bt_sync_cluster();
    if (bt_cluster_rank() == 0 && threadIdx.x == 0)
        bt_bulk_copy_cluster(words, 512, full, 1);
    if (bt_cluster_rank() == 1) {
        if (threadIdx.x == 0)
            bt_mbarrier_arrive_expect(full, 512);
        bt_mbarrier_wait(full, 0);
    }
    bt_sync_cluster();
}

/* ---- wgmma ---- */

enum wgmma_fault {
    no_group_wait = 1,
    no_proxy_fence,
    no_wgmma_fence,
    no_barrier,
    write_early,
    out_of_shared,
    inside_pattern,
    one_warp
};
/* a and b: 64 rows of 128 bytes with a swizzle each. */
template <int Fault> BT_KERNEL(128, 1) multiply(uint32_t *out, uint32_t bad)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared());
    float d[32];
    const int fault = bad ? Fault : 0;
    for (uint32_t i = threadIdx.x; i < 4096; i += 128)
        words[i] = 0x3f803f80;
    if (fault != no_proxy_fence)
        bt_fence_async();
    if (fault != no_barrier)
        bt_sync_block();
    uint32_t b_at = fault == out_of_shared ? 12288 : fault == inside_pattern ? 8192 + 128 : 8192;
    uint64_t a = bt_matrix_descriptor(bt_shared(), 16, 1024, BT_SWIZZLE_128);
    uint64_t b = bt_matrix_descriptor(bt_shared() + b_at, 16, 1024, BT_SWIZZLE_128);
    if (fault == one_warp && threadIdx.x >= 96)
        return;
    if (fault != no_wgmma_fence)
        bt_wgmma_fence();
    bt_wgmma_n64_bf16<0, 0>(d, a, b, false);
    bt_wgmma_commit();
    if (fault == write_early)
        words[threadIdx.x] = 0;
    if (fault != no_group_wait)
        bt_wgmma_wait<0>();
    bt_wgmma_hold(d);
    bt_store_16(out + threadIdx.x * 4, make_uint4(bt_bits(d[0]), bt_bits(d[1]), 0, 0));
    bt_wgmma_wait<0>();
}

/* ---- setmaxnreg: 384 threads begin with 168 registers each ---- */

enum register_fault {
    too_many = 1,
    never_lowered,
    odd_count,
    too_few,
    raised_lower,
    lowered_higher,
    again_unordered,
    three_warps
};
template <int Fault> BT_KERNEL(384, 1) registers(uint32_t *out, uint32_t bad)
{
    const int fault = bad ? Fault : 0;
    if (fault == three_warps && threadIdx.x < 32)
        return;
    if (threadIdx.x < 128) {
        if (fault == odd_count)
            bt_registers_lower<36>();
        else if (fault == too_few)
            bt_registers_lower<16>();
        else if (fault == lowered_higher)
            bt_registers_lower<176>();
        else if (fault != never_lowered)
            bt_registers_lower<40>();
        return;
    }
    if (fault == too_many) {
        bt_registers_raise<240>(); /* 40 + 2 * 240 are more than 3 * 168 */
        return;
    }
    if (fault == raised_lower)
        bt_registers_raise<160>();
    else
        bt_registers_raise<200>();
    if (fault != again_unordered)
        bt_sync_named(threadIdx.x / 128, 128);
    bt_registers_raise<232>();
    out[threadIdx.x] = 1;
}

/* A race, or what was never written: that is for the order of the threads to say. */
static const char unordered[] = "at shared memory + ";

static const Case cases[] = {
    {"shared_bounds", shared_bounds, 64, 256, 1, "out of the block's shared memory"},
    {"shared_bounds_part", shared_bounds_part, 1, 256, 1, "out of the block's shared memory"},
    {"shared_misaligned", shared_misaligned, 1, 256, 1, "misaligned"},
    {"shared_poison", shared_poison, 64, 256, 1, "never written in this block"},
    {"shared_race_read", shared_race_read, 64, 512, 1, unordered},
    {"shared_race_write", shared_race_write, 64, 256, 1, "race: "},
    {"shared_race_again", shared_race_again, 64, 256, 1, "race: "},
    {"shared_race_bytes", shared_race_bytes, 64, 256, 1, "race: "},
    {"warp_order", warp_order, 64, 256, 1, "race: "},
    {"warp_order_other", warp_order_other, 64, 256, 1, unordered},
    {"readers_order", readers_order, 96, 256, 1, "race: "},
    {"atomic_order", atomic_order, 64, 256, 1, "race: "},
    {"global_bounds", global_bounds, 64, 0, 1, "0 bytes behind the end of device memory"},
    {"global_before", global_before, 64, 0, 1, "4 bytes before device memory"},
    {"global_host", global_host, 1, 0, 1, "not in device memory"},
    {"global_constant", global_constant, 64, 0, 1, "not in device memory"},
    {"blocks_write", blocks_write, 32, 0, 4, "race: "},
    {"blocks_read", blocks_read, 32, 0, 4, "race: "},
    {"blocks_read_first", blocks_read_first, 32, 0, 4, "race: "},
    {"blocks_count", blocks_count, 32, 0, 4, "race: "},
    {"blocks_last no_release", blocks_last<no_release>, 32, 16, 4, "race: "},
    {"blocks_last release_of_all", blocks_last<release_of_all>, 32, 16, 4, "race: "},
    {"blocks_last no_acquire", blocks_last<no_acquire>, 32, 16, 4, "race: "},
    {"blocks_last acquire_apart", blocks_last<acquire_apart>, 32, 16, 4, "race: "},
    {"load_of_written", load_of_written, 32, 0, 1, "constant memory"},
    {"misaligned", misaligned, 32, 0, 1, "misaligned"},
    {"misaligned_word", misaligned_word, 32, 0, 1, "misaligned"},
    {"misaligned_four", misaligned_four, 32, 0, 1, "misaligned"},
    {"shift_far", shift_far, 32, 0, 1, "a shift by more bits"},
    {"convert_large", convert_large, 32, 0, 1, "that does not fit"},
    {"local_of_other", local_of_other, 32, 256, 1, "local memory of thread"},
    {"sync_ended", sync_ended, 64, 0, 1, "divergence"},
    {"sync_apart", sync_apart, 64, 0, 1, "divergence"},
    {"sync_missing", sync_missing, 64, 0, 1, "no thread can go on"},
    {"named_count", named_count, 64, 0, 1, "to barrier 1 for"},
    {"named_odd", named_odd, 64, 0, 1, "a multiple of 32"},
    {"named_left", named_left, 64, 0, 1, "32 of 64 threads arrived at barrier 2"},
    {"named_lanes", named_lanes, 64, 0, 1, "only lanes 55555555"},
    {"named_arrive", named_arrive, 64, 256, 1, unordered},
    {"named_late", named_late, 64, 256, 1, "race: "},
    {"shuffle_ended", shuffle_ended, 32, 0, 1, "has ended"},
    {"shuffle_apart", shuffle_apart, 32, 0, 1, "divergence"},
    {"shuffle_part", shuffle_part, 48, 0, 1, "needs 32 threads"},
    {"mma_apart", mma_apart, 64, 0, 1, "no thread can go on"},
    {"copy_no_wait", copy_no_wait, 32, 512, 1, "has yet to write"},
    {"copy_stored_over", copy_stored_over, 32, 512, 1, "has yet to write"},
    {"copy_no_commit", copy_no_commit, 32, 512, 1, "has yet to write"},
    {"copy_left", copy_left, 32, 1024, 1, "has yet to write"},
    {"copy_other", copy_other, 32, 512, 1, unordered},
    {"copy_misaligned", copy_misaligned, 32, 1024, 1, "misaligned"},
    {"ldmatrix_misaligned", ldmatrix_misaligned, 32, 1024, 1, "misaligned"},
    {"ldmatrix_race", ldmatrix_race, 32, 512, 1, unordered},
    {"bulk no_wait", bulk<no_wait>, 64, 1040, 1, unordered},
    {"bulk no_init", bulk<no_init>, 64, 1040, 1, "there is no mbarrier"},
    {"bulk no_sync", bulk<no_sync>, 64, 1040, 1, "mbarrier"},
    {"bulk bad_bytes", bulk<bad_bytes>, 64, 1040, 1, "no thread can go on"},
    {"bulk wrong_parity", bulk<wrong_parity>, 64, 1040, 1, unordered},
    {"bulk misaligned_bytes", bulk<misaligned_bytes>, 64, 1040, 1, "misaligned"},
    {"bulk reused", bulk<reused>, 64, 1040, 1, ""},
    {"bulk_over", bulk_over, 32, 144, 1, "without a bt_fence_async"},
    {"bulk_left", bulk_left, 32, 144, 1, "ended before a bulk copy"},
    {"exchange no_first_sync", exchange<no_first_sync>, 128, 1040, 4, "mbarrier", 2},
    {"exchange no_last_sync", exchange<no_last_sync>, 128, 1040, 4, "block", 2},
    {"exchange bad_rank", exchange<bad_rank>, 128, 1040, 4, "block 2 of a cluster of 2", 2},
    {"exchange no_empty", exchange<no_empty>, 128, 1040, 4, "shared memory + ", 2},
    {"exchange no_fence", exchange<no_fence>, 128, 1040, 4, "without a bt_fence_async", 2},
    {"exchange no_meeting", exchange<no_meeting>, 128, 1040, 4, unordered, 2},
    {"exchange read_early", exchange<read_early>, 128, 1040, 4, unordered, 2},
    {"exchange source_changed", exchange<source_changed>, 128, 1040, 4, "bulk copy that has not",
     2},
    {"exchange source_rewritten", exchange<source_rewritten>, 128, 1040, 4, "shared memory + ", 2},
    {"exchange sent_less", exchange<sent_less>, 128, 1040, 4, "no thread can go on", 2},
    {"exchange sent_odd", exchange<sent_odd>, 128, 1040, 4, "misaligned", 2},
    {"exchange sent_outside", exchange<sent_outside>, 128, 1040, 4, "out of the block's shared", 2},
    {"exchange expected_less", exchange<expected_less>, 128, 1040, 4, "no thread can go on", 2},
    {"exchange sent_home", exchange<sent_home>, 128, 1040, 4, "over its own source", 2},
    {"exchange one_block_syncs", exchange<one_block_syncs>, 128, 1040, 4, "cluster's barrier", 2},
    {"exchange one_thread_ends", exchange<one_thread_ends>, 128, 1040, 4, "divergence", 2},
    {"exchange too_many_arrive", exchange<too_many_arrive>, 128, 1040, 4, "", 2},
    {"leaving arrives", leaving<arrives>, 128, 528, 4, "ended", 2},
    {"leaving sends", leaving<sends>, 128, 528, 4, "ended", 2},
    {"leaving is_read", leaving<is_read>, 128, 528, 4, "the block ended, while", 2},
    {"leaving is_changed", leaving<is_changed>, 128, 528, 4, "shared memory + 0", 2},
    {"apart", apart, 128, 512, 4, unordered, 2},
    {"apart_order", apart_order, 128, 520, 4, "race: ", 2},
    {"wgmma no_group_wait", multiply<no_group_wait>, 128, 16384, 1, "register that a wgmma"},
    {"wgmma no_proxy_fence", multiply<no_proxy_fence>, 128, 16384, 1, "without a bt_fence_async"},
    {"wgmma no_wgmma_fence", multiply<no_wgmma_fence>, 128, 16384, 1, "without a bt_wgmma_fence"},
    {"wgmma no_barrier", multiply<no_barrier>, 128, 16384, 1, unordered},
    {"wgmma write_early", multiply<write_early>, 128, 16384, 1, "not been waited for reads"},
    {"wgmma out_of_shared", multiply<out_of_shared>, 128, 16384, 1, "out of the block's shared"},
    {"wgmma inside_pattern", multiply<inside_pattern>, 128, 16384, 1, "inside of a pattern"},
    {"wgmma one_warp", multiply<one_warp>, 128, 16384, 1, "ended"},
    {"registers too_many", registers<too_many>, 384, 0, 1, "no thread can go on"},
    {"registers never_lowered", registers<never_lowered>, 384, 0, 1, "no thread can go on"},
    {"registers odd_count", registers<odd_count>, 384, 0, 1, "a multiple of 8, from 24 to 256"},
    {"registers too_few", registers<too_few>, 384, 0, 1, "a multiple of 8, from 24 to 256"},
    {"registers raised_lower", registers<raised_lower>, 384, 0, 1, "to 160 registers, of 168"},
    {"registers lowered_higher", registers<lowered_higher>, 384, 0, 1, "to 176 registers, of 168"},
    {"registers again_unordered", registers<again_unordered>, 384, 0, 1, "setmaxnreg"},
    {"registers three_warps", registers<three_warps>, 384, 0, 1, "ended"},
};

static bool run(const Case &test, uint32_t bad)
{
    Memory memory;
    told.clear();
    bt_cuda_launch_clusters(test.run, test.cluster, dim3(test.blocks), test.threads,
                            test.shared_bytes, 0, memory.words, bad);
    return told.empty();
}

static void test_faults(void **)
{
    emulation::set_fault_handler(keep_text);
    for (uint64_t seed : {0, 1, 2, 77}) {
        emulation::set_seed(seed);
        for (const Case &test : cases) {
            if (!run(test, 0))
                fail_msg("%s, seed %d: not a fault: %s", test.name, (int)seed, told.c_str());
            if (run(test, 1))
                fail_msg("%s, seed %d: no fault", test.name, (int)seed);
            if (told.find(test.expected) == std::string::npos)
                fail_msg("%s, seed %d: expected '%s', got: %s", test.name, (int)seed, test.expected,
                         told.c_str());
            assert_non_null(strstr(told.c_str(), "kernel test.run, block ("));
        }
    }
    emulation::set_seed(0);
}

BT_KERNEL(32, 1) write_words(uint32_t *out)
{
    out[threadIdx.x] = threadIdx.x;
}

static void test_freed_memory(void **)
{
    emulation::set_fault_handler(keep_text);
    told.clear();
    uint32_t *words = static_cast<uint32_t *>(aligned_alloc(1024, 1024));
    emulation::device_memory_add(words, 1024);
    assert_true(emulation::device_memory_holds(words + 255, 4));
    assert_false(emulation::device_memory_holds(words + 255, 5));
    bt_cuda_launch(write_words, dim3(1), 32, 0, 0, words);
    assert_string_equal(told.c_str(), "");
    emulation::device_memory_remove(words);
    bt_cuda_launch(write_words, dim3(1), 32, 0, 0, words);
    assert_non_null(strstr(told.c_str(), "freed"));
    free(words);
}

/* More launches than the shadow has numbers: nothing of old ones is taken for new. */
static void test_many_launches(void **)
{
    emulation::set_fault_handler(keep_text);
    Memory memory;
    told.clear();
    for (int i = 0; i < 9000; i++)
        bt_cuda_launch(blocks_write, dim3(1 + i % 2), 32, 0, 0, memory.words, 0u);
    assert_string_equal(told.c_str(), "");
}

/* One warp ends two phases. The other has seen the first end by luck, if nothing ties it to the
 * second. */
BT_KERNEL(64, 1) two_phases(uint32_t *out, uint32_t bad)
{
    uint64_t *full = reinterpret_cast<uint64_t *>(bt_shared()), *empty = full + 1;
    if (threadIdx.x == 0) {
        bt_mbarrier_init(full, 32);
        bt_mbarrier_init(empty, 32);
    }
    bt_sync_block();
    for (uint32_t round = 0; round < 4; round++) {
        if (threadIdx.x < 32) {
            bt_mbarrier_wait(full, round & 1);
            bt_mbarrier_arrive(empty);
            continue;
        }
        bt_mbarrier_arrive(full);
        if (!bad || round != 1)
            bt_mbarrier_wait(empty, round & 1);
    }
    out[threadIdx.x] = 1;
}

static void test_missed_phase(void **)
{
    emulation::set_fault_handler(keep_text);
    emulation::set_seed(0); /* who waits is there first */
    Memory memory;
    told.clear();
    bt_cuda_launch(two_phases, dim3(1), 64, 16, 0, memory.words, 0u);
    assert_string_equal(told.c_str(), "");
    bt_cuda_launch(two_phases, dim3(1), 64, 16, 0, memory.words, 1u);
    assert_non_null(strstr(told.c_str(), "has seen the end of the phase before"));
}

BT_KERNEL(128, 1) sum_up(uint32_t *out, uint32_t rounds)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(bt_shared()), sum = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        words[threadIdx.x] = i;
        bt_sync_block();
        sum += words[(threadIdx.x + 1) % 128];
        bt_sync_block();
    }
    out[blockIdx.x * 128 + threadIdx.x] = bt_shuffle_xor(sum, 1);
}

/* Grids of several threads of the system, and faults in one of them. */
static void test_threads(void **)
{
    std::vector<std::thread> threads;
    unsigned wrong[4] = {};
    for (unsigned t = 0; t < 4; t++)
        threads.emplace_back([t, &wrong] {
            emulation::set_fault_handler(keep_text);
            Memory memory;
            for (unsigned i = 0; i < 20; i++) {
                told.clear();
                bt_cuda_launch(sum_up, dim3(4), 128, 512, 0, memory.words, 50u);
                for (unsigned j = 0; j < 512; j++)
                    wrong[t] += memory.words[j] != 50 * 49 / 2;
                wrong[t] += !told.empty();
                if (t == 0)
                    bt_cuda_launch(shared_race_write, dim3(1), 64, 256, 0, memory.words, 1u);
                wrong[t] += t == 0 && told.empty();
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    for (unsigned t = 0; t < 4; t++)
        assert_int_equal(wrong[t], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults),        cmocka_unit_test(test_freed_memory),
        cmocka_unit_test(test_many_launches), cmocka_unit_test(test_missed_phase),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
