/*
 * Few rows between ranks, without the host: who gets each pick, the order of those that arrive, and
 * the way back.
 *
 * choose: one block of 128 threads; picks of experts with one copy by all of them, the others by
 * its first warp, one after the other, as each depends on those before. Shared memory: 256 bytes.
 * count, sort: a block of 256 threads an expert, which reads the words of all ranks, in order; 32
 * and 64 bytes of shared memory.
 * give_back: a block of 128 threads a pick. sum: a block of 128 threads a row, 8 bytes of shared
 * memory a pick.
 *
 * Registers: choose: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: count: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: sort: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: give_back: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: sum: <= 56 (sm_80), <= 56 (sm_90a), <= 48 (sm_100)
 * Instructions: st.global.u32
 * Bound: the launches; count and sort read 4 bytes a pick for each expert, from L2: 8 ranks of 32
 * rows of V3 (8 picks, 256 experts) 4 MB in all. Floor (H100 SXM, computed) of sum at these shapes,
 * rows in bf16: 256 picks of 14 KB, 1.1 us.
 */
#include "common/parallel/arrivals_cuda.h"

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

#define THREADS      128
#define SORT_THREADS 256
#define SORT_WARPS   (SORT_THREADS / 32)
#define RANKS_MAX    64
#define UNDECIDED    0xfffeu /* in place of the rank */

/* ---- own picks ---- */

/* Fewest picks so far; of equals this rank, else the next from a place that turns. */
BT_DEVICE uint32_t least_loaded(const bt_cuda_choice &c, uint32_t expert, uint32_t row,
                                const uint32_t *load)
{
    const uint32_t *ranks = c.copies.ranks + c.copies.first[expert];
    uint32_t count = c.copies.first[expert + 1] - c.copies.first[expert];
    uint32_t start = (row + c.rank) % count, best = ranks[start];
    for (uint32_t i = 1; i < count; i++) {
        uint32_t rank = ranks[(start + i) % count];
        if (load[rank] < load[best] || (rank == c.rank && load[rank] == load[best]))
            best = rank;
    }
    return best;
}

/* The first warp: one pick after the other. */
BT_DEVICE void decide(const bt_cuda_choice &c, uint32_t live, uint32_t *load)
{
    for (uint32_t base = 0; base < live; base += 32) {
        uint32_t i = base + bt_lane(), word = i < live ? c.words[i] : BT_NO_PICK;
        uint32_t open = bt_ballot(word >> 16 == UNDECIDED);
        for (; open != 0; open &= open - 1) {
            if (bt_lane() == bt_bits_set((open & (0u - open)) - 1)) {
                uint32_t expert = word & 0xffffu;
                uint32_t rank = least_loaded(c, expert, i / c.per_row, load);
                load[rank]++;
                c.words[i] = expert | rank << 16;
            }
            bt_sync_warp();
        }
    }
}

static BT_KERNEL(THREADS, 1) choose(bt_cuda_choice c)
{
    uint32_t *load = (uint32_t *)bt_shared();
    uint32_t live = c.rows * c.per_row;
    if (c.live && *c.live < live)
        live = *c.live;
    if (threadIdx.x < RANKS_MAX)
        load[threadIdx.x] = 0;
    bt_sync_block();
    for (uint32_t i = threadIdx.x; i < c.slots * c.per_row; i += THREADS) {
        uint32_t word = BT_NO_PICK;
        if (i < live) {
            uint32_t expert = c.experts[i], rank = UNDECIDED;
            if (c.copies.flags[expert] & BT_COPIES_ONE) {
                rank = c.copies.ranks[c.copies.first[expert]];
                bt_atomic_add(&load[rank], 1);
            }
            word = expert | rank << 16;
        }
        c.words[i] = word;
    }
    bt_sync_block();
    if (c.copies.choices && threadIdx.x < 32)
        decide(c, live, load);
}

/* ---- arrivals ---- */

static BT_KERNEL(SORT_THREADS, 1) count(bt_cuda_arrivals a)
{
    uint32_t *of_warps = (uint32_t *)bt_shared();
    uint32_t expert = blockIdx.x, wanted = expert | a.rank << 16, found = 0;
    for (uint32_t base = 0; base < a.picks; base += SORT_THREADS) {
        uint32_t i = base + threadIdx.x;
        found += bt_bits_set(bt_ballot(i < a.picks && a.words[i] == wanted));
    }
    if (bt_lane() == 0)
        of_warps[threadIdx.x / 32] = found;
    bt_sync_block();
    if (threadIdx.x > 0)
        return;
    for (uint32_t warp = 1; warp < SORT_WARPS; warp++)
        found += of_warps[warp];
    bool here = (a.flags[expert] & BT_COPIES_HERE) != 0;
    a.counts[expert] = here ? found : 0;
    if (!here && found > 0)
        a.faults[expert] = 1;
}

/* The counts of all experts before this one, to all threads. */
BT_DEVICE uint32_t picks_before(const bt_cuda_arrivals &a, uint32_t *of_warps)
{
    uint32_t sum = 0, all = 0;
    for (uint32_t e = threadIdx.x; e < blockIdx.x; e += SORT_THREADS)
        sum += a.counts[e];
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        sum += bt_shuffle_xor(sum, mask);
    if (bt_lane() == 0)
        of_warps[threadIdx.x / 32] = sum;
    bt_sync_block();
    for (uint32_t warp = 0; warp < SORT_WARPS; warp++)
        all += of_warps[warp];
    return all;
}

static BT_KERNEL(SORT_THREADS, 1) sort(bt_cuda_arrivals a)
{
    uint32_t *of_warps = (uint32_t *)bt_shared(), *in_run = of_warps + SORT_WARPS;
    uint32_t expert = blockIdx.x, wanted = expert | a.rank << 16, warp = threadIdx.x / 32;
    uint32_t at = picks_before(a, of_warps), mine = a.counts[expert];
    if (threadIdx.x == 0) {
        a.begin[expert] = at;
        if (expert + 1 == a.experts)
            a.begin[a.experts] = at + mine;
    }
    for (uint32_t base = 0; base < a.picks && mine > 0; base += SORT_THREADS) {
        uint32_t i = base + threadIdx.x, place = at;
        uint32_t found = bt_ballot(i < a.picks && a.words[i] == wanted);
        if (bt_lane() == 0)
            in_run[warp] = bt_bits_set(found);
        bt_sync_block();
        for (uint32_t w = 0; w < SORT_WARPS; w++) {
            place += w < warp ? in_run[w] : 0;
            at += in_run[w];
        }
        if (found >> bt_lane() & 1)
            a.order[place + bt_bits_set(found & ((1u << bt_lane()) - 1))] = i;
        bt_sync_block();
    }
}

/* ---- the way back ---- */

static BT_KERNEL(THREADS, 1) give_back(const uint16_t *y, const uint32_t *order,
                                       const uint32_t *count, uint32_t halves, uint16_t *out)
{
    if (blockIdx.x >= *count)
        return;
    const uint16_t *from = y + (size_t)blockIdx.x * halves;
    uint16_t *to = out + (size_t)order[blockIdx.x] * halves;
    if (halves % 2 == 0) {
        for (uint32_t i = threadIdx.x; i < halves / 2; i += THREADS)
            ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
        return;
    }
    for (uint32_t i = threadIdx.x; i < halves; i += THREADS)
        to[i] = from[i];
}

BT_DEVICE float value_of(const bt_cuda_sum &s, size_t at)
{
    return s.payload == 0 ? ((const float *)s.y)[at] : bt_from_bf16(((const uint16_t *)s.y)[at]);
}

static BT_KERNEL(THREADS, 1) sum(bt_cuda_sum s)
{
    uint32_t *rows = (uint32_t *)bt_shared(); /* of y, by ascending expert */
    float *weights = (float *)(rows + s.per_row);
    const uint32_t *words = s.words + (size_t)blockIdx.x * s.per_row;
    float *out = s.out + (size_t)blockIdx.x * s.hidden;
    if (words[0] == BT_NO_PICK)
        return;
    for (uint32_t j = threadIdx.x; j < s.per_row; j += THREADS) {
        uint32_t expert = words[j] & 0xffffu, place = 0;
        for (uint32_t i = 0; i < s.per_row; i++) {
            uint32_t other = words[i] & 0xffffu;
            place += other < expert || (other == expert && i < j);
        }
        rows[place] = ((words[j] >> 16) * s.slots + blockIdx.x) * s.per_row + j;
        weights[place] = s.weights[(size_t)blockIdx.x * s.per_row + j];
    }
    bt_sync_block();
    for (uint32_t i = threadIdx.x; i < s.hidden; i += THREADS) {
        float total = out[i];
        for (uint32_t j = 0; j < s.per_row; j++)
            total = bt_fma(weights[j], value_of(s, (size_t)rows[j] * s.hidden + i), total);
        out[i] = total;
    }
}

/* ---- launches ---- */

void bt_arrivals_cuda_choose(void *stream, const struct bt_cuda_choice *choice)
{
    bt_cuda_launch(choose, dim3(1), THREADS, RANKS_MAX * 4, (cudaStream_t)stream, *choice);
}

void bt_arrivals_cuda_sort(void *stream, const struct bt_cuda_arrivals *arrivals)
{
    cudaStream_t on = (cudaStream_t)stream;
    dim3 grid(arrivals->experts);
    bt_cuda_launch(count, grid, SORT_THREADS, SORT_WARPS * 4, on, *arrivals);
    bt_cuda_launch(sort, grid, SORT_THREADS, 2 * SORT_WARPS * 4, on, *arrivals);
}

void bt_arrivals_cuda_return(void *stream, const uint16_t *y, const uint32_t *order,
                             const uint32_t *count, uint32_t picks, uint32_t halves, uint16_t *out)
{
    bt_cuda_launch(give_back, dim3(picks), THREADS, 0, (cudaStream_t)stream, y, order, count,
                   halves, out);
}

void bt_arrivals_cuda_sum(void *stream, const struct bt_cuda_sum *s)
{
    bt_cuda_launch(sum, dim3(s->rows), THREADS, (size_t)s->per_row * 8, (cudaStream_t)stream, *s);
}
