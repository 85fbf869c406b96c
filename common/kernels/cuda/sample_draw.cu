/*
 * Draws a token from each row of logits: the one that bt_sampler_draw draws
 * (common/model/sampler.c); penalties, bias and masks are in the logits already (sample_adjust.cu).
 *
 * logits [rows][vocab] f32, maxima (sample_maxima.cu), sums (sample_sums.cu) -> tokens [rows], and
 * into the row's logprobs the logit that its token had before any adjust. One block of 1024 threads
 * a row. A set of tokens is all whose key is above one key, and the first few (by id) whose key is
 * that. It is cut twice, by count and by weight, each time by looking for the key with 2048 bins:
 * first by distance from the best, 1/64 in the exponent each, then by key, until a bin is one key.
 * Then weights are added up in the order of tokens, by blocks of 128. Of these blocks only those
 * are read whose best logit says that something in them counts.
 *
 * Integers throughout (of 2^-35): no sum has an order, atomics in shared memory decide nothing.
 * Shared memory: 16 bytes for each 128 tokens, and 16 KiB for bins at least, 25 and 33 KB at the
 * vocabularies of V2-Lite and V3.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32; atom.shared.add.u32
 * Counted: sectors <= 1.01, conflicts <= 1.06
 * Bound: latency: greedy 2 barriers and one block of 128; of a distribution with a peak, which a
 * model's is, few of the blocks are read 5 times. Floor (H100 SXM, computed): the maxima, 4 KB a
 * row, 64 rows 0.1 us; of equal logits all are read and weighed 6 times by one multiprocessor, at
 * V3 some 20 us each.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/sample.cuh"

#define THREADS 1024
#define WARPS   (THREADS / 32)
#define BINS    2048
#define BLOCK   BT_CUDA_SAMPLE_BLOCK

/* Tokens of a weight above `key`, and the first `equals` whose key it is. */
struct token_set {
    uint32_t key;
    uint32_t equals;
};

/* What all threads of a row share. */
struct row_memory {
    uint64_t *scratch;      /* [32] */
    uint64_t *found_left;   /* [1] */
    uint32_t *found;        /* [4] */
    uint32_t *low, *high;   /* [BINS]: halves of a sum each */
    uint64_t *block_sums;   /* [blocks], in the memory of the bins */
    uint32_t *block_keys;   /* [blocks]; 0: nothing in it counts */
    uint32_t *block_equals; /* [blocks] */
};

struct row_state {
    row_memory memory;
    const float *logits;
    uint32_t vocab_size, blocks;
    bt_weigher weigher;
    token_set set;
};

static size_t shared_bytes(uint32_t blocks)
{
    size_t sums = (blocks > BINS ? blocks : BINS) * sizeof(uint64_t);
    return sums + 33 * sizeof(uint64_t) + 4 * sizeof(uint32_t) +
           (size_t)blocks * 2 * sizeof(uint32_t);
}

BT_DEVICE row_memory row_memory_of(uint32_t blocks)
{
    row_memory memory;
    memory.block_sums = (uint64_t *)bt_shared();
    memory.low = (uint32_t *)memory.block_sums;
    memory.high = memory.low + BINS;
    memory.scratch = memory.block_sums + (blocks > BINS ? blocks : BINS);
    memory.found_left = memory.scratch + 32;
    memory.found = (uint32_t *)(memory.found_left + 1);
    memory.block_keys = memory.found + 4;
    memory.block_equals = memory.block_keys + blocks;
    return memory;
}

/* ---- numbers ---- */

/* Philox 4x32-10, as bt_random_u64 with draw 0. */
BT_DEVICE uint64_t random_of(uint64_t seed, uint32_t position)
{
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = (uint32_t)seed,
             k1 = (uint32_t)(seed >> 32);
    for (uint32_t round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)c1 << 32 | c0;
}

/* The smallest sum that reaches this part of `total`. */
BT_DEVICE uint64_t mass_of(float part, uint64_t total)
{
    double mass = (double)part * (double)total;
    uint64_t whole = (uint64_t)mass;
    return whole + ((double)whole < mass);
}

/* The token is the first with which the sum is more than this. */
BT_DEVICE uint64_t target_of(const bt_cuda_draw *draw, uint64_t total)
{
    double unit = (double)(random_of(draw->seed, draw->position) >> 11);
    uint64_t target = (uint64_t)(unit * (double)total * 0x1p-53);
    return target < total ? target : total - 1;
}

/* Tokens that weigh less than this can be left out where top_p leaves some out. */
BT_DEVICE float share_of(float top_p, uint64_t total, uint32_t vocab_size)
{
    return (float)((1 - (double)top_p) * ((double)total * 0x1p-35) / vocab_size * 0.999);
}

BT_DEVICE uint32_t distance_bin(const bt_weigher &weigher, float logit)
{
    uint32_t bin = (uint32_t)bt_mul(-bt_exponent_of(weigher, logit), 64.0f);
    return bin < BINS ? bin : BINS - 1;
}

/* ---- bins ---- */

BT_DEVICE void clear_bins(const row_memory &memory)
{
    for (uint32_t i = threadIdx.x; i < 2 * BINS; i += THREADS)
        memory.low[i] = 0;
    bt_sync_block();
}

BT_DEVICE void add_to_bin(const row_memory &memory, uint32_t bin, uint64_t value)
{
    uint32_t low = (uint32_t)value, high = (uint32_t)(value >> 32);
    uint32_t before = bt_atomic_add(&memory.low[bin], low);
    high += before + low < before;
    if (high > 0)
        bt_atomic_add(&memory.high[bin], high);
}

BT_DEVICE uint64_t bin_at(const row_memory &memory, uint32_t bin)
{
    return (uint64_t)memory.high[bin] << 32 | memory.low[bin];
}

/* The bin with which the sum from the first one on reaches *left, which becomes what is to be
 * reached in it; BINS where all are less. *ret_total of all bins. */
BT_DEVICE uint32_t find_bin(const row_memory &memory, uint64_t *left, uint64_t *ret_total)
{
    uint32_t bin = threadIdx.x * (BINS / THREADS);
    bt_sync_block();
    uint64_t first = bin_at(memory, bin), second = bin_at(memory, bin + 1), want = *left;
    if (threadIdx.x == 0)
        memory.found[0] = BINS;
    uint64_t before = bt_block_prefix(first + second, memory.scratch, ret_total);
    if (before < want && want <= before + first + second) {
        bool is_first = want <= before + first;
        memory.found[0] = is_first ? bin : bin + 1;
        *memory.found_left = want - before - (is_first ? 0 : first);
    }
    bt_sync_block();
    bin = memory.found[0];
    *left = bin < BINS ? *memory.found_left : want;
    bt_sync_block();
    return bin;
}

/* ---- cuts ---- */

/* Calls visit(logit, key) for what is in the set and has a key in low … high, but for those whose
 * key is the set's own. A warp goes through a block. */
template <typename Visit>
BT_DEVICE void visit_above(const row_state &row, uint32_t low, uint32_t high, const Visit &visit)
{
    for (uint32_t block = threadIdx.x / 32; block < row.blocks; block += WARPS) {
        if (row.memory.block_keys[block] == 0 || row.memory.block_keys[block] < low)
            continue;
        bt_four_logits four =
            bt_four_logits_at(row.logits, block * BLOCK + bt_lane() * 4, row.vocab_size);
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t key = bt_key_of(four.logit[j]);
            if (key > row.set.key && key >= low && key <= high)
                visit(four.logit[j], key);
        }
    }
}

/* What the equals of the set add up to: none where the set has no end. */
template <bool ByWeight> BT_DEVICE uint64_t equals_value(const row_state &row)
{
    uint64_t each = ByWeight ? bt_weight_of(row.weigher, bt_number_of(row.set.key)) : 1;
    return row.set.key > 0 ? each * row.set.equals : 0;
}

/* The keys in a bin of distances: *ret_low … *ret_high. */
BT_DEVICE void key_range(const row_state &row, uint32_t bin, uint32_t *ret_low, uint32_t *ret_high)
{
    uint32_t least = 0, most = 0; /* least: of its complement */
    visit_above(row, 1, 0xffffffffu, [&](float logit, uint32_t key) {
        if (distance_bin(row.weigher, logit) != bin)
            return;
        least = ~key > least ? ~key : least;
        most = key > most ? key : most;
    });
    if (row.set.key > 0 && distance_bin(row.weigher, bt_number_of(row.set.key)) == bin) {
        least = ~row.set.key > least ? ~row.set.key : least;
        most = row.set.key > most ? row.set.key : most;
    }
    uint32_t *scratch = (uint32_t *)row.memory.scratch;
    *ret_low = ~bt_block_max(least, scratch);
    *ret_high = bt_block_max(most, scratch);
}

/* Narrows the keys to the bin with which `left` is reached. */
template <bool ByWeight>
BT_DEVICE void narrow(const row_state &row, uint32_t *low, uint32_t *high, uint64_t *left)
{
    uint32_t shift = 0, from = *low, to = *high;
    while ((to - from) >> shift >= BINS)
        shift++;
    clear_bins(row.memory);
    visit_above(row, from, to, [&](float logit, uint32_t key) {
        uint64_t weight = bt_weight_of(row.weigher, logit);
        if (weight > 0)
            add_to_bin(row.memory, (to - key) >> shift, ByWeight ? weight : 1);
    });
    if (threadIdx.x == 0 && row.set.key >= from && row.set.key <= to)
        add_to_bin(row.memory, (to - row.set.key) >> shift, equals_value<ByWeight>(row));
    uint64_t total;
    uint32_t bin = find_bin(row.memory, left, &total);
    if (bin == BINS) /* the smallest, of which there are not enough */
        bin = (to - from) >> shift;
    *high = to - (bin << shift);
    uint32_t end = *high - ((1u << shift) - 1);
    *low = end > from && end <= *high ? end : from;
}

/* The best of the set that together reach `left`, by weight or by their number. */
template <bool ByWeight> BT_DEVICE void cut(row_state *row, uint64_t left)
{
    uint64_t total;
    uint32_t low, high;
    clear_bins(row->memory);
    visit_above(*row, 1, 0xffffffffu, [&](float logit, uint32_t) {
        uint64_t weight = bt_weight_of(row->weigher, logit);
        if (weight > 0)
            add_to_bin(row->memory, distance_bin(row->weigher, logit), ByWeight ? weight : 1);
    });
    if (threadIdx.x == 0 && row->set.key > 0)
        add_to_bin(row->memory, distance_bin(row->weigher, bt_number_of(row->set.key)),
                   equals_value<ByWeight>(*row));
    uint32_t bin = find_bin(row->memory, &left, &total);
    if (bin == BINS || left == 0)
        return; /* all */
    key_range(*row, bin, &low, &high);
    while (low < high)
        narrow<ByWeight>(*row, &low, &high, &left);
    uint64_t each = ByWeight ? bt_weight_of(row->weigher, bt_number_of(low)) : 1;
    uint64_t equals = each > 1 ? (left + each - 1) / each : left;
    uint32_t most = row->set.key == low ? row->set.equals : 0xffffffffu;
    row->set.key = low;
    row->set.equals = equals < most ? (uint32_t)equals : most;
}

/* ---- which blocks count ---- */

/* At least `wanted` tokens, if there are so many, are in the bins of distances up to the one where
 * so many blocks have their best: other blocks have nothing of the best `wanted`. */
BT_DEVICE void keep_blocks_of_best(const row_state &row, uint32_t wanted)
{
    const row_memory &memory = row.memory;
    uint64_t left = wanted, total;
    clear_bins(memory);
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS) {
        float logit = bt_number_of(memory.block_keys[i]);
        if (bt_weight_of(row.weigher, logit) > 0)
            add_to_bin(memory, distance_bin(row.weigher, logit), 1);
    }
    uint32_t limit = find_bin(memory, &left, &total);
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS)
        if (distance_bin(row.weigher, bt_number_of(memory.block_keys[i])) > limit)
            memory.block_keys[i] = 0;
    bt_sync_block();
}

/* Others have nothing that weighs `least`, the last bits of weights set aside. */
BT_DEVICE void keep_blocks_of_weight(const row_state &row, float least)
{
    bt_weigher weigher = row.weigher;
    weigher.least = 0;
    uint64_t bound = (uint64_t)bt_mul(least, 0x1p35f * (1 - 1e-5f));
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS)
        if (bt_weight_of(weigher, bt_number_of(row.memory.block_keys[i])) + 2 < bound)
            row.memory.block_keys[i] = 0;
    bt_sync_block();
}

/* Those of one slice alone. */
BT_DEVICE void keep_slice(const row_state &row, uint32_t slice)
{
    const uint32_t each = BT_CUDA_SAMPLE_SLICE / BLOCK;
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS)
        if (i / each != slice)
            row.memory.block_keys[i] = 0;
    bt_sync_block();
}

/* ---- sums in the order of tokens ---- */

/* The weights of each block above the set's key, and how many have that key. */
BT_DEVICE void sum_blocks(const row_state &row)
{
    const row_memory &memory = row.memory;
    for (uint32_t block = threadIdx.x / 32; block < row.blocks; block += WARPS) {
        uint64_t sum = 0, equals = 0;
        if (memory.block_keys[block] > 0 && memory.block_keys[block] >= row.set.key) {
            bt_four_logits four =
                bt_four_logits_at(row.logits, block * BLOCK + bt_lane() * 4, row.vocab_size);
            for (uint32_t j = 0; j < 4; j++) {
                uint32_t key = bt_key_of(four.logit[j]);
                if (key > row.set.key)
                    sum += bt_weight_of(row.weigher, four.logit[j]);
                equals += key > 0 && key == row.set.key;
            }
            sum = bt_warp_sum(sum);
            equals = bt_warp_sum(equals);
        }
        if (bt_lane() == 0) {
            memory.block_sums[block] = sum;
            memory.block_equals[block] = (uint32_t)equals;
        }
    }
    bt_sync_block();
}

/* A thread's part of the blocks. */
struct part {
    uint32_t first, end;
};
BT_DEVICE part part_of(const row_state &row)
{
    uint32_t each = (row.blocks + THREADS - 1) / THREADS, first = threadIdx.x * each;
    uint32_t end = first + each < row.blocks ? first + each : row.blocks;
    return {first, end};
}

/* Adds to the sums of blocks the equals that are in the set, and makes of their numbers how many
 * are before each block. The sum of all blocks; *ret_before of those before this thread's part. */
BT_DEVICE uint64_t finish_sums(const row_state &row, uint64_t *ret_before)
{
    part mine = part_of(row);
    const row_memory &memory = row.memory;
    uint64_t sum = 0, equals = 0, total;
    for (uint32_t i = mine.first; i < mine.end; i++)
        equals += memory.block_equals[i];
    uint64_t before = bt_block_prefix(equals, memory.scratch, &total);
    uint64_t each = row.set.key > 0 ? bt_weight_of(row.weigher, bt_number_of(row.set.key)) : 0;
    for (uint32_t i = mine.first; i < mine.end; i++) {
        uint64_t count = memory.block_equals[i];
        uint64_t left = before < row.set.equals ? row.set.equals - before : 0;
        memory.block_equals[i] = (uint32_t)before;
        before += count;
        memory.block_sums[i] += (count < left ? count : left) * each;
        sum += memory.block_sums[i];
    }
    *ret_before = bt_block_prefix(sum, memory.scratch, &total);
    return total;
}

/* The block in which the sums pass `target`, to found[0], and how much of it is in the block. */
BT_DEVICE void find_block(const row_state &row, uint64_t before, uint64_t target)
{
    part mine = part_of(row);
    const row_memory &memory = row.memory;
    for (uint32_t i = mine.first; i < mine.end; i++) {
        uint64_t sum = memory.block_sums[i];
        if (before <= target && target < before + sum) {
            memory.found[0] = i;
            *memory.found_left = target - before;
        }
        before += sum;
    }
    bt_sync_block();
}

BT_DEVICE void put_token(const bt_cuda_sample &sample, uint32_t row, uint32_t token)
{
    sample.tokens[row] = token;
    if (sample.kept)
        sample.kept[row] = token;
}

/* One warp: the token in the block that was found. */
BT_DEVICE void find_token(const row_state &row, const bt_cuda_sample &sample, uint32_t out_row)
{
    uint32_t block = row.memory.found[0], first = block * BLOCK + bt_lane() * 4;
    uint64_t target = *row.memory.found_left, weights[4], sum = 0, equals = 0;
    bt_four_logits four = bt_four_logits_at(row.logits, first, row.vocab_size);
    for (uint32_t j = 0; j < 4; j++)
        equals += bt_key_of(four.logit[j]) == row.set.key;
    uint64_t rank = row.memory.block_equals[block] + bt_warp_prefix(equals) - equals;
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t key = bt_key_of(four.logit[j]);
        bool counts = key > row.set.key || (key == row.set.key && rank < row.set.equals);
        rank += key == row.set.key;
        weights[j] = counts ? bt_weight_of(row.weigher, four.logit[j]) : 0;
        sum += weights[j];
    }
    uint64_t before = bt_warp_prefix(sum) - sum;
    for (uint32_t j = 0; j < 4; j++) {
        if (before <= target && target < before + weights[j])
            put_token(sample, out_row, first + j);
        before += weights[j];
    }
}

/* ---- a row ---- */

/* Where no logit can win: the lowest token that is not masked. One thread. */
BT_DEVICE uint32_t first_allowed(const bt_cuda_sample &sample, const bt_cuda_draw *draw)
{
    const bt_cuda_adjust *masked = sample.adjusts + draw->adjust_begin + draw->bias_count;
    uint32_t token = 0;
    for (uint32_t i = 0; i < draw->masked_count; i++)
        if (masked[i].token == token) {
            token++;
            i = 0xffffffffu; /* from the first one on */
        }
    return token < sample.vocab_size ? token : 0;
}

/* The logit of the token that was drawn as it was given: the first adjust of the token knows it. */
BT_DEVICE void put_logit(const row_state &row, const bt_cuda_sample &sample, uint32_t out_row)
{
    const bt_cuda_draw *draw = sample.draws + out_row;
    uint32_t begin = draw->adjust_begin, last = 0; /* the complement of the first one */
    uint32_t count = draw->bias_count + draw->masked_count + draw->seen_count;
    bt_sync_block();
    uint32_t token = sample.tokens[out_row];
    for (uint32_t i = threadIdx.x; i < count; i += THREADS)
        if (sample.adjusts[begin + i].token == token)
            last = ~i > last ? ~i : last;
    uint32_t first = ~bt_block_max(last, (uint32_t *)row.memory.scratch);
    if (threadIdx.x > 0)
        return;
    float logit = row.logits[token];
    if (first < count)
        logit = sample.before[begin + first];
    else if (draw->newest != 0 && sample.newest[out_row].token == token)
        logit = sample.newest[out_row].logit;
    sample.logprobs[out_row].logit = logit;
}

/* The first token of this key, which is the best one. */
BT_DEVICE void put_best(const row_state &row, uint32_t key, const bt_cuda_sample &sample)
{
    uint32_t last = 0; /* the complement of the first block that has it */
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS)
        if (row.memory.block_keys[i] == key)
            last = ~i > last ? ~i : last;
    uint32_t block = ~bt_block_max(last, (uint32_t *)row.memory.scratch);
    if (threadIdx.x >= 32)
        return;
    bt_four_logits four =
        bt_four_logits_at(row.logits, block * BLOCK + bt_lane() * 4, row.vocab_size);
    uint32_t place = 4;
    for (uint32_t j = 4; j-- > 0;)
        place = bt_key_of(four.logit[j]) == key ? j : place;
    uint32_t lanes = bt_ballot(place < 4);
    if (place < 4 && (lanes & ((1u << bt_lane()) - 1)) == 0)
        put_token(sample, blockIdx.x, block * BLOCK + bt_lane() * 4 + place);
}

/* The sum of all weights, from those of the slices. */
BT_DEVICE uint64_t sum_of_slices(const row_state &row, const uint64_t *sums, uint32_t slices)
{
    uint64_t sum = 0, total;
    for (uint32_t i = threadIdx.x; i < slices; i += THREADS)
        sum += sums[i];
    bt_block_prefix(sum, row.memory.scratch, &total);
    return total;
}

/* The slice in which the sum of all weights passes *target, which becomes what is in it. */
BT_DEVICE uint32_t find_slice(const row_state &row, const uint64_t *sums, uint32_t slices,
                              uint64_t *target)
{
    uint64_t before = 0;
    if (threadIdx.x == 0) {
        uint32_t slice = 0;
        for (; slice + 1 < slices && before + sums[slice] <= *target; slice++)
            before += sums[slice];
        row.memory.found[0] = slice;
        *row.memory.found_left = *target - before;
    }
    bt_sync_block();
    uint32_t slice = row.memory.found[0];
    *target = *row.memory.found_left;
    bt_sync_block();
    return slice;
}

/* What top-k and top-p leave. True: all of a weight, of which *target is chosen in the blocks that
 * are kept. */
BT_DEVICE bool select(row_state *row, const bt_cuda_draw *draw, const uint64_t *sums,
                      uint32_t slices, uint64_t *target)
{
    if (bt_takes_top_k(draw, row->vocab_size)) {
        keep_blocks_of_best(*row, (uint32_t)draw->top_k);
        cut<false>(row, (uint64_t)draw->top_k);
        if (!(draw->top_p < 1))
            return false;
        uint64_t before;
        sum_blocks(*row);
        uint64_t total = finish_sums(*row, &before);
        cut<true>(row, mass_of(draw->top_p, total));
        return false;
    }
    uint64_t total = sum_of_slices(*row, sums, slices);
    if (draw->top_p < 1) {
        float share = share_of(draw->top_p, total, row->vocab_size);
        row->weigher.least = share > row->weigher.least ? share : row->weigher.least;
        keep_blocks_of_weight(*row, row->weigher.least);
        cut<true>(row, mass_of(draw->top_p, total));
        return false;
    }
    *target = target_of(draw, total);
    keep_slice(*row, find_slice(*row, sums, slices, target));
    return true;
}

BT_DEVICE void draw_token(row_state row, const bt_cuda_sample &sample, uint32_t number)
{
    const bt_cuda_draw *draw = sample.draws + number;
    uint32_t best = 0;
    for (uint32_t i = threadIdx.x; i < row.blocks; i += THREADS) {
        uint32_t key = sample.maxima[(size_t)number * row.blocks + i];
        row.memory.block_keys[i] = key;
        best = key > best ? key : best;
    }
    best = bt_block_max(best, (uint32_t *)row.memory.scratch);
    if (best <= BT_KEY_LEAST) {
        if (threadIdx.x == 0)
            put_token(sample, number, first_allowed(sample, draw));
        return;
    }
    if (draw->temperature == 0) {
        put_best(row, best, sample);
        return;
    }
    row.weigher = bt_weigher_of(best, draw);
    uint64_t target = 0, before;
    bool of_all =
        select(&row, draw, sample.sums + (size_t)number * sample.slices, sample.slices, &target);
    sum_blocks(row);
    uint64_t total = finish_sums(row, &before);
    if (total == 0) { /* no draw that was checked: a row of padding */
        if (threadIdx.x == 0)
            put_token(sample, number, 0);
        return;
    }
    find_block(row, before, of_all ? target : target_of(draw, total));
    if (threadIdx.x < 32)
        find_token(row, sample, number);
}

BT_KERNEL(THREADS, 1) sample_draw(const __grid_constant__ bt_cuda_sample sample)
{
    uint32_t number = blockIdx.x;
    row_state row;
    row.memory = row_memory_of(sample.blocks);
    row.logits = sample.logits + (size_t)number * sample.vocab_size;
    row.vocab_size = sample.vocab_size;
    row.blocks = sample.blocks;
    row.set = {0, 0xffffffffu};
    draw_token(row, sample, number);
    if (sample.logprobs && sample.draws[number].logprobs > 0)
        put_logit(row, sample, number);
}

void bt_cuda_launch_sample_draw(const struct bt_cuda_sample *sample, cudaStream_t stream)
{
    bt_cuda_launch(sample_draw, dim3(sample->rows, 1, 1), THREADS, shared_bytes(sample->blocks),
                   stream, *sample);
}
