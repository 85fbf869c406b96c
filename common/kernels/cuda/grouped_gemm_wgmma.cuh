/*
 * The body of the grouped products on Hopper's tensor cores (grouped_gemm.h), of which each
 * grouped_gemm_*_wgmma.cu is one kind. sm_90a alone; elsewhere the kernels are empty.
 *
 * Operands are swapped: the weights are the left one, 64 outputs a panel, the rows the right one,
 * 16, 64, 128 or 256 of them, as many as the tile's rows need. So one kernel serves few rows and
 * many, and an output has the same bits in each: its sum is one accumulator (of F8: one for each
 * step, then a fused multiply-add), to which the same k come in the same order.
 *
 * A block takes tiles of the list of grouped_plan.cuh: up to 256 rows by one or two panels. A tile
 * walks k in steps of 128 bytes of x through a ring of STAGES, which goes on from tile to tile:
 *
 *     fetcher    a warpgroup: rows are gathered by cp.async, 16 bytes a thread; weights likewise,
 *                those of I4 (which lie as they are read) by bulk copies. Each thread waits for its
 *                own copies LAG stages later, passes them on to the async proxy, and its warp
 *                arrives at `full`.
 *     consumers  a warpgroup a panel. One whose panel is not there only takes part in the barriers.
 *                A stage is released at `empty` by warps, when no wgmma reads it any more.
 *
 * Where groups have many rows, two blocks are a cluster and share them: they walk the same rows by
 * neighbouring outputs, in step. Each gathers half of the rows of a stage, and when they have come
 * its fetcher's warps copy them to the other block's stage, whose `full` gets the bytes. `empty` is
 * for both blocks' consumers: it says that the stage is free here and there, and that what was
 * copied out of it has come. Which tiles there are both find alike, and a block without outputs of
 * its own does its part. Rows, not weights: they are most of a step's bytes, and no block is left
 * without work where a group has few. No multicast: what is gathered, no bulk copy brings.
 *
 * LAG is at most STAGES - 2: the last stage of a tile is passed on after LAG further ones were
 * begun, for which all but the last two must not be needed any more, and consumers release a stage
 * when the next one's products are queued.
 *
 * Weights of I4 become int8 fragments in registers: what a lane multiplies of outputs o and o + 8,
 * o = 16 warp + lane / 4, are two times 16 bytes of the packed order.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_WGMMA_CUH
#define BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_WGMMA_CUH

#include "common/kernels/cuda/grouped_gemm_wgmma.h"
#include "common/kernels/cuda/grouped_plan.cuh"

/* d [64][N] (+)= a b of 32 bytes of k. */
template <int N>
BT_DEVICE void bt_grouped_multiply_bf16(float *d, uint64_t a, uint64_t b, bool more)
{
    if constexpr (N == 16)
        bt_wgmma_n16_bf16<0, 0>(d, a, b, more);
    else if constexpr (N == 64)
        bt_wgmma_n64_bf16<0, 0>(d, a, b, more);
    else if constexpr (N == 128)
        bt_wgmma_n128_bf16<0, 0>(d, a, b, more);
    else
        bt_wgmma_n256_bf16<0, 0>(d, a, b, more);
}
template <int N>
BT_DEVICE void bt_grouped_multiply_e4m3(float *d, uint64_t a, uint64_t b, bool more)
{
    if constexpr (N == 16)
        bt_wgmma_n16_e4m3(d, a, b, more);
    else if constexpr (N == 64)
        bt_wgmma_n64_e4m3(d, a, b, more);
    else
        bt_wgmma_n128_e4m3(d, a, b, more);
}
template <int N>
BT_DEVICE void bt_grouped_multiply_s8(int32_t *d, uint64_t a, uint64_t b, bool more)
{
    if constexpr (N == 16)
        bt_wgmma_n16_s8(d, a, b, more);
    else if constexpr (N == 64)
        bt_wgmma_n64_s8(d, a, b, more);
    else if constexpr (N == 128)
        bt_wgmma_n128_s8(d, a, b, more);
    else
        bt_wgmma_n256_s8(d, a, b, more);
}
template <int N>
BT_DEVICE void bt_grouped_multiply_s8_registers(int32_t *d, const uint32_t a[4], uint64_t b,
                                                bool more)
{
    if constexpr (N == 16)
        bt_wgmma_n16_s8_registers(d, a, b, more);
    else if constexpr (N == 64)
        bt_wgmma_n64_s8_registers(d, a, b, more);
    else if constexpr (N == 128)
        bt_wgmma_n128_s8_registers(d, a, b, more);
    else
        bt_wgmma_n256_s8_registers(d, a, b, more);
}

/* The members are one kernel's constants; the functions are its parts. */
template <int KIND> struct bt_grouped_wgmma {
    static constexpr bool INTEGER = KIND == BT_GROUPED_I8 || KIND == BT_GROUPED_I4;
    static constexpr bool STORED = KIND == BT_GROUPED_I4; /* weights in the order of fragments */
    static constexpr bool F8 = KIND == BT_GROUPED_F8;
    static constexpr int GROUP = 128, THREADS = 3 * GROUP;
    static constexpr int ROWS = 256, PANELS = 2;
    static constexpr int F8_ROWS = 128; /* whose sums of a step are there at the same time */
    static constexpr int PANEL_BYTES = BT_CUDA_PANEL * BT_GROUPED_STEP / (STORED ? 2 : 1);
    static constexpr int WEIGHT_AT = ROWS * BT_GROUPED_STEP;
    static constexpr int SCALES_AT = WEIGHT_AT + PANELS * PANEL_BYTES; /* of the stage */
    static constexpr int STAGE_BYTES = (SCALES_AT +
                                        (F8       ? ROWS * (int)sizeof(float)
                                         : STORED ? PANELS * BT_CUDA_PANEL
                                                  : 0) +
                                        1023) /
                                       1024 * 1024;
    static constexpr int STAGES = 4, LAG = STAGES - 2;
    static constexpr int PLAN_AT = STAGES * STAGE_BYTES;
    static constexpr int SOURCES_AT = PLAN_AT + (int)sizeof(bt_grouped_plan);
    static constexpr int ROW_SCALES_AT = SOURCES_AT + ROWS * (int)sizeof(uint32_t);
    static constexpr int BARRIERS_AT =
        ROW_SCALES_AT + (INTEGER ? PANELS * ROWS * (int)sizeof(float) : 0);
    static constexpr int SHARED_BYTES = BARRIERS_AT + 2 * STAGES * 8;
    static constexpr int WARPS = GROUP / 32;
    static_assert(BARRIERS_AT % 8 == 0 && SHARED_BYTES <= 227 * 1024, "shared memory");
    enum barrier { FETCHER = 1, CONSUMER = 2 }; /* CONSUMER + panel() */

    typedef typename std::conditional<INTEGER, int32_t, float>::type sum_t;

    const bt_cuda_grouped_call &call;
    uint32_t steps, panels; /* panels: of a tile, at most */
    bt_grouped_tile tile;
    uint32_t place;  /* in the ring, counted on */
    uint32_t pieces; /* rows that a warp fetched of each of the last stages, a byte each */

    BT_MEMBER bt_grouped_wgmma(const bt_cuda_grouped_call &c, uint32_t most_panels)
        : call(c), panels(most_panels), tile(), place(), pieces()
    {
        steps = call.x_pitch * (KIND == BT_GROUPED_BF16 ? 2 : 1) / BT_GROUPED_STEP;
    }

    /* ---- places ---- */

    static BT_MEMBER unsigned char *stage_at(uint32_t at)
    {
        return bt_shared() + at % STAGES * STAGE_BYTES;
    }
    static BT_MEMBER uint64_t *full(uint32_t at)
    {
        return (uint64_t *)(bt_shared() + BARRIERS_AT) + at % STAGES;
    }
    static BT_MEMBER uint64_t *empty(uint32_t at)
    {
        return (uint64_t *)(bt_shared() + BARRIERS_AT) + STAGES + at % STAGES;
    }
    /* Of the phase in which it is filled. */
    static BT_MEMBER uint32_t parity(uint32_t at)
    {
        return at / STAGES % 2;
    }

    /* ---- tiles ---- */

    /* Of the cluster, 1 or 2. Asked for again and again: consumers have no register for it. */
    static BT_MEMBER uint32_t blocks()
    {
        return bt_cluster_size();
    }

    /* The index-th of this block's list. */
    BT_MEMBER void find_tile(const struct bt_grouped_plan *plan, uint32_t index,
                             uint32_t out_strips)
    {
        tile = bt_grouped_tile_at(plan, call, index, out_strips, ROWS, panels * BT_CUDA_PANEL,
                                  blocks(), bt_cluster_rank());
    }
    /* NULL: there are no weights for this block. */
    BT_MEMBER const unsigned char *data() const
    {
        if (tile.weight >= call.weights)
            return nullptr;
        return (const unsigned char *)call.data[tile.weight][tile.group];
    }
    /* Of the tile, padding included: panels that there are. */
    BT_MEMBER uint32_t panels_there() const
    {
        uint32_t left = data() ? bt_grouped_ceil(call.outs - tile.out, BT_CUDA_PANEL) : 0;
        return left < panels ? left : panels;
    }
    BT_MEMBER uint32_t rows_there() const
    {
        return tile.end - tile.row < ROWS ? tile.end - tile.row : ROWS;
    }
    /* N of its products. */
    BT_MEMBER uint32_t rows_multiplied() const
    {
        uint32_t rows = rows_there();
        return rows <= 16 ? 16 : rows <= 64 ? 64 : rows <= 128 ? 128 : 256;
    }

    /* ---- fetcher ---- */

    static constexpr uint32_t NOT_THERE = 0xffffffffu;

    static BT_MEMBER uint32_t *sources()
    {
        return (uint32_t *)(bt_shared() + SOURCES_AT);
    }
    /* Whose rows of x the tile's are. */
    BT_MEMBER void find_sources(uint32_t rows) const
    {
        bt_sync_named(FETCHER, GROUP); /* those of the tile before have been read */
        for (uint32_t i = threadIdx.x; i < rows; i += GROUP)
            sources()[i] =
                tile.row + i < tile.end ? bt_grouped_source(call, tile.row + i) : NOT_THERE;
        bt_sync_named(FETCHER, GROUP);
    }

    /* Of `piece` rows of a warp the first. */
    BT_MEMBER uint32_t first_row(uint32_t piece) const
    {
        return (bt_cluster_rank() * WARPS + warp()) * piece;
    }
    BT_MEMBER void fetch_x(unsigned char *to, uint32_t piece, uint32_t step) const
    {
        const uint32_t pitch = steps * BT_GROUPED_STEP, chunk = bt_lane() % 8;
        const uint32_t first = first_row(piece);
        const unsigned char *from =
            (const unsigned char *)call.x + (size_t)step * BT_GROUPED_STEP + chunk * 16;
#pragma unroll 4
        for (uint32_t row = first + bt_lane() / 8; row < first + piece; row += 4) {
            uint32_t source = sources()[row];
            bool is_there = source != NOT_THERE;
            bt_copy_async_16(to + bt_grouped_at(row, chunk),
                             from + (is_there ? (size_t)source * pitch : 0), is_there);
        }
    }

    /* Rows of weights. */
    BT_MEMBER void fetch_weight(unsigned char *to, uint32_t step) const
    {
        const uint32_t pitch = steps * BT_GROUPED_STEP, chunk = threadIdx.x % 8;
        const unsigned char *from =
            data() + (size_t)tile.out * pitch + (size_t)step * BT_GROUPED_STEP + chunk * 16;
        const uint32_t outs = panels_there() * BT_CUDA_PANEL;
#pragma unroll 4
        for (uint32_t row = threadIdx.x / 8; row < outs; row += GROUP / 8)
            bt_copy_async_16(to + bt_grouped_at(row, chunk), from + (size_t)row * pitch, true);
    }

    /* Panels that are stored as they are read, with their group scales. By one thread. */
    BT_MEMBER void fetch_stored(unsigned char *stage, uint32_t step, uint64_t *mbarrier) const
    {
        uint32_t count = panels_there(), first = tile.out / BT_CUDA_PANEL;
        const unsigned char *scales = data() + call.group_scales_offset;
        bt_mbarrier_arrive_expect(mbarrier, count * (PANEL_BYTES + BT_CUDA_PANEL));
        for (uint32_t i = 0; i < count; i++) {
            size_t at = (size_t)(first + i) * steps + step;
            bt_bulk_copy(stage + WEIGHT_AT + i * PANEL_BYTES, data() + at * PANEL_BYTES,
                         PANEL_BYTES, mbarrier);
            bt_bulk_copy(stage + SCALES_AT + i * BT_CUDA_PANEL, scales + at * BT_CUDA_PANEL,
                         BT_CUDA_PANEL, mbarrier);
        }
    }

    /* F8: of each row the scale of this step. */
    BT_MEMBER void fetch_scales(float *to, uint32_t rows, uint32_t step) const
    {
        for (uint32_t i = threadIdx.x; i < rows; i += GROUP) {
            uint32_t source = sources()[i];
            bool is_there = source != NOT_THERE;
            size_t at = is_there ? bt_cuda_scale_at(call.head, steps, source, step) : 0;
            bt_copy_async_4(to + i, call.x_scales + at, is_there);
        }
    }

    /* This thread's copies to the stage have come; of rows `piece` of its warp. */
    BT_MEMBER void pass_on(uint32_t at, uint32_t piece) const
    {
        const uint32_t bytes = piece * BT_GROUPED_STEP;
        bt_fence_async();
        bt_sync_warp();
        if (bt_lane() != 0)
            return;
        if (blocks() == 1) {
            bt_mbarrier_arrive(full(at));
            return;
        }
        bt_mbarrier_arrive_expect(full(at), bytes); /* from the same warp there */
        bt_bulk_copy_cluster(stage_at(at) + first_row(piece) * BT_GROUPED_STEP, bytes, full(at),
                             bt_cluster_rank() ^ 1);
    }

    BT_MEMBER void fetch_tile()
    {
        const uint32_t rows = rows_multiplied(), piece = rows / blocks() / WARPS;
        find_sources(rows);
        for (uint32_t step = 0; step < steps; step++, place++) {
            unsigned char *stage = stage_at(place);
            if (place >= STAGES)
                bt_mbarrier_wait(empty(place), parity(place) ^ 1);
            if (!STORED)
                fetch_weight(stage + WEIGHT_AT, step);
            else if (threadIdx.x == 0)
                fetch_stored(stage, step, full(place));
            fetch_x(stage, piece, step);
            if (F8)
                fetch_scales((float *)(stage + SCALES_AT), rows, step);
            bt_copy_async_commit();
            pieces = pieces << 8 | piece;
            if (place >= LAG) {
                bt_copy_async_wait<LAG>();
                pass_on(place - LAG, pieces >> 8 * LAG & 0xff);
            }
        }
    }

    BT_MEMBER void fetch_all(const struct bt_grouped_plan *plan, uint32_t tiles,
                             uint32_t out_strips)
    {
        for (uint32_t index = blockIdx.x / blocks(); index < tiles; index += gridDim.x / blocks()) {
            find_tile(plan, index, out_strips);
            fetch_tile();
        }
        bt_copy_async_wait<0>();
        for (uint32_t at = place < LAG ? 0 : place - LAG; at < place; at++)
            pass_on(at, pieces >> 8 * (place - 1 - at) & 0xff);
    }

    /* ---- consumers ---- */

    static BT_MEMBER uint32_t panel() /* this warpgroup's of the tile */
    {
        return threadIdx.x / GROUP - 1;
    }
    static BT_MEMBER uint32_t warp()
    {
        return threadIdx.x % GROUP / 32;
    }
    static BT_MEMBER uint64_t operand(const unsigned char *at)
    {
        return bt_matrix_descriptor(at, 16, 1024, BT_SWIZZLE_128);
    }
    static BT_MEMBER uint64_t x_operand(const unsigned char *stage)
    {
        return operand(stage);
    }
    static BT_MEMBER uint64_t weight_operand(const unsigned char *stage)
    {
        return operand(stage + WEIGHT_AT + panel() * PANEL_BYTES);
    }

    BT_MEMBER const unsigned char *wait_stage() const
    {
        bt_mbarrier_wait(full(place), parity(place));
        return stage_at(place);
    }
    /* This warp needs the stage no more, nor the rows in it that the other block has fetched. */
    BT_MEMBER void release(uint32_t at) const
    {
        bt_sync_warp();
        if (bt_lane() != 0)
            return;
        bt_mbarrier_arrive(empty(at));
        if (blocks() > 1)
            bt_mbarrier_arrive_cluster(empty(at), bt_cluster_rank() ^ 1);
    }

    template <int N> static BT_MEMBER void clear(sum_t (&sums)[N / 2])
    {
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            sums[i] = 0;
        bt_wgmma_hold(sums);
    }

    /* BF16 and I8: the products of a step are queued behind those of the one before. */
    template <int N> BT_MEMBER void add_up(sum_t (&sums)[N / 2])
    {
        clear<N>(sums);
        for (uint32_t step = 0; step < steps; step++, place++) {
            const unsigned char *stage = wait_stage();
            const uint64_t a = weight_operand(stage), b = x_operand(stage);
            bt_wgmma_fence();
#pragma unroll
            for (uint32_t part = 0; part < 4; part++) {
                if constexpr (INTEGER)
                    bt_grouped_multiply_s8<N>(sums, a + 2 * part, b + 2 * part, true);
                else
                    bt_grouped_multiply_bf16<N>(sums, a + 2 * part, b + 2 * part, true);
            }
            bt_wgmma_commit();
            bt_wgmma_wait<1>();
            if (step > 0)
                release(place - 1);
        }
        bt_wgmma_wait<0>();
        bt_wgmma_hold(sums);
        release(place - 1);
    }

    /* F8: sums of 128 inputs times both scales. */
    template <int N> BT_MEMBER void add_up_f8(float (&sums)[N / 2])
    {
        constexpr int PART = N < F8_ROWS ? N : F8_ROWS; /* rows */
        const float *weight_scales =
            (const float *)(data() + call.scales_offset) +
            (size_t)((tile.out + panel() * BT_CUDA_PANEL) / BT_CUDA_SCALE_BLOCK) *
                (bt_grouped_ceil(steps, 4) * 4);
        float weight_scale = *weight_scales++;
        clear<N>(sums);
        for (uint32_t left = steps; left > 0; left--, place++) {
            float next = left > 1 ? *weight_scales++ : 0;
            const unsigned char *stage = wait_stage();
            const float *x_scales = (const float *)(stage + SCALES_AT) + bt_lane() % 4 * 2;
#pragma unroll
            for (int first = 0; first < N; first += PART) {
                const uint64_t a = weight_operand(stage);
                const uint64_t b = x_operand(stage + first * BT_GROUPED_STEP);
                float of_step[PART / 2];
                bt_wgmma_fence();
#pragma unroll
                for (uint32_t part = 0; part < 4; part++)
                    bt_grouped_multiply_e4m3<PART>(of_step, a + 2 * part, b + 2 * part, part > 0);
                bt_wgmma_commit();
                bt_wgmma_wait<0>();
                bt_wgmma_hold(of_step);
#pragma unroll
                for (int i = 0; i < PART / 2; i++) {
                    float scale = bt_mul(x_scales[first + i / 4 * 8 + i % 2], weight_scale);
                    sums[first / 2 + i] = bt_fma(of_step[i], scale, sums[first / 2 + i]);
                }
            }
            release(place);
            weight_scale = next;
        }
    }

    /*
     * I4: a word has eight values u = v + 8. Four bytes of u times the group scale s, plus 128 - 8
     * s in each, are four bytes of v s + 128, 1 … 255, whatever is carried on the way; with the top
     * bits flipped they are v s.
     */
    BT_MEMBER void load_fragments(const unsigned char *stage, uint32_t a[4][4]) const
    {
        const unsigned char *w = stage + WEIGHT_AT + panel() * PANEL_BYTES + warp() * 1024;
        const unsigned char *s = stage + SCALES_AT + panel() * BT_CUDA_PANEL + warp() * 16;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint4 all = bt_load_shared_16(w + half * 512 + bt_lane() * 16);
            uint32_t words[4] = {all.x, all.y, all.z, all.w};
            uint32_t scale = s[half * 8 + bt_lane() / 4];
            uint32_t bias = (128 - 8 * scale) * 0x01010101u;
#pragma unroll
            for (uint32_t part = 0; part < 4; part++) {
                uint32_t low = words[part] & 0x0f0f0f0fu, high = words[part] >> 4 & 0x0f0f0f0fu;
                a[part][half] = (low * scale + bias) ^ 0x80808080u;
                a[part][half + 2] = (high * scale + bias) ^ 0x80808080u;
            }
        }
    }

    template <int N> BT_MEMBER void add_up_i4(int32_t (&sums)[N / 2])
    {
        clear<N>(sums);
        for (uint32_t step = 0; step < steps; step++, place++) {
            uint32_t a[4][4];
            const unsigned char *stage = wait_stage();
            const uint64_t b = x_operand(stage);
            load_fragments(stage, a);
#pragma unroll
            for (uint32_t part = 0; part < 4; part++)
                bt_wgmma_hold(a[part]);
            bt_wgmma_fence();
#pragma unroll
            for (uint32_t part = 0; part < 4; part++)
                bt_grouped_multiply_s8_registers<N>(sums, a[part], b + 2 * part, true);
            bt_wgmma_commit();
            bt_wgmma_wait<0>();
            bt_wgmma_hold(sums);
            release(place);
        }
    }

    /* ---- results ---- */

    static BT_MEMBER float *row_scales()
    {
        return (float *)(bt_shared() + ROW_SCALES_AT) + panel() * ROWS;
    }
    /* INTEGER: of rows threadIdx.x % GROUP and + GROUP, asked for before they are needed. */
    BT_MEMBER float row_scale_of(uint32_t row) const
    {
        return row < rows_there() ? call.x_scales[bt_grouped_source(call, tile.row + row)] : 0;
    }
    static BT_MEMBER void share_row_scales(const float scales[2])
    {
        bt_sync_named(CONSUMER + panel(), GROUP); /* those of the tile before have been read */
        row_scales()[threadIdx.x % GROUP] = scales[0];
        row_scales()[threadIdx.x % GROUP + GROUP] = scales[1];
        bt_sync_named(CONSUMER + panel(), GROUP);
    }

    BT_MEMBER void put(size_t at, float value) const
    {
        if (call.rounds)
            ((uint16_t *)call.out[tile.weight])[at] = bt_bf16_from(value);
        else
            ((float *)call.out[tile.weight])[at] = value;
    }

    /* Eight lanes have neighbouring outputs of a row. */
    template <int N> BT_MEMBER void put_tile(const sum_t (&sums)[N / 2]) const
    {
        const float *out_scales = (const float *)(data() + call.scales_offset);
        const uint32_t rows = rows_there();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t out =
                tile.out + panel() * BT_CUDA_PANEL + warp() * 16 + half * 8 + bt_lane() / 4;
            if (out >= call.outs)
                continue;
            float out_scale = INTEGER ? out_scales[out] : 1;
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                uint32_t row = i / 2 * 8 + bt_lane() % 4 * 2 + i % 2;
                float value = (float)sums[i / 2 * 4 + half * 2 + i % 2];
                if (INTEGER)
                    value = bt_mul(bt_mul(value, row_scales()[row]), out_scale);
                if (row < rows)
                    put((size_t)(tile.row + row) * call.outs + out, value);
            }
        }
    }

    template <int N> BT_MEMBER void run_tile()
    {
        sum_t sums[N / 2];
        float scales[2] = {0, 0};
        if (INTEGER)
            for (int i = 0; i < 2; i++)
                scales[i] = row_scale_of(threadIdx.x % GROUP + i * GROUP);
        if constexpr (STORED)
            add_up_i4<N>(sums);
        else if constexpr (F8)
            add_up_f8<N>(sums);
        else
            add_up<N>(sums);
        if (INTEGER)
            share_row_scales(scales);
        put_tile<N>(sums);
    }

    /* This warpgroup's panel is not there. */
    BT_MEMBER void skip_tile()
    {
        for (uint32_t step = 0; step < steps; step++, place++) {
            (void)wait_stage();
            release(place);
        }
    }

    BT_MEMBER void consume_all(const struct bt_grouped_plan *plan, uint32_t tiles,
                               uint32_t out_strips)
    {
        for (uint32_t index = blockIdx.x / blocks(); index < tiles; index += gridDim.x / blocks()) {
            find_tile(plan, index, out_strips);
            uint32_t rows = rows_multiplied();
            if (panel() >= panels_there())
                skip_tile();
            else if (rows == 16)
                run_tile<16>();
            else if (rows == 64)
                run_tile<64>();
            else if (rows == 128)
                run_tile<128>();
            else
                run_tile<256>();
        }
    }

    /* ---- the kernel ---- */

    static BT_MEMBER void begin_barriers()
    {
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < STAGES; i++) {
                bt_mbarrier_init(full(i), WARPS + (STORED ? 1 : 0));
                bt_mbarrier_init(empty(i), 2 * WARPS * blocks());
            }
            bt_fence_async();
        }
        if (blocks() > 1)
            bt_sync_cluster();
        else
            bt_sync_block();
    }

    static BT_MEMBER void run(const bt_cuda_grouped_call &call, uint32_t panels)
    {
        bt_grouped_plan *plan = (bt_grouped_plan *)(bt_shared() + PLAN_AT);
        begin_barriers();
        uint32_t out_strips = bt_grouped_ceil(call.outs, panels * BT_CUDA_PANEL);
        bt_grouped_wgmma self(call, panels);
        uint32_t tiles = bt_grouped_fill_plan(plan, call, ROWS) *
                         bt_grouped_ceil(out_strips * call.weights, blocks());
        if (threadIdx.x < GROUP) {
            bt_registers_lower<72>();
            self.fetch_all(plan, tiles, out_strips);
        } else {
            bt_registers_raise<216>();
            self.consume_all(plan, tiles, out_strips);
        }
        if (blocks() > 1) /* until then the other block arrives here, and gets copies from here */
            bt_sync_cluster();
    }
};

/* More rows of a group on average: then L2 binds, not the bytes of weights. */
#define BT_GROUPED_FEW_ROWS 64

static inline bool bt_grouped_has_many_rows(const bt_cuda_grouped_call *call)
{
    uint64_t here = 0;
    for (uint32_t e = 0; e < call->groups; e++)
        here += call->data[0][e] != nullptr;
    return call->rows > BT_GROUPED_FEW_ROWS * here;
}

/* How a launch is divided. */
struct bt_grouped_division {
    uint32_t panels; /* of a tile: two, or one, where that leaves multiprocessors without work */
    unsigned cluster, blocks;
};

/* Clusters of two blocks where they have rows to share, and where nobody has more tiles for it: of
 * an odd number of columns one block in two has no outputs. */
static inline bt_grouped_division bt_grouped_divide(const bt_cuda_grouped_call *call,
                                                    int multiprocessors, uint32_t rows,
                                                    uint32_t panels)
{
    const uint64_t singles = (uint64_t)multiprocessors, pairs = singles / 2;
    uint64_t tiles = bt_grouped_tiles(call, rows, panels * BT_CUDA_PANEL, 1);
    if (tiles < singles) {
        panels = 1;
        tiles = bt_grouped_tiles(call, rows, BT_CUDA_PANEL, 1);
    }
    uint64_t shared = bt_grouped_tiles(call, rows, panels * BT_CUDA_PANEL, 2);
    bool shares = bt_grouped_has_many_rows(call) && pairs > 0 && shared < tiles &&
                  (shared + pairs - 1) / pairs <= (tiles + singles - 1) / singles;
    if (shares)
        return {panels, 2, 2 * (unsigned)(shared < pairs ? shared : pairs)};
    return {panels, 1, (unsigned)(tiles < singles ? tiles : singles)};
}

template <int KIND, typename Kernel>
static inline void bt_grouped_launch_wgmma(Kernel kernel, const bt_cuda_grouped_call *call,
                                           int multiprocessors, cudaStream_t stream)
{
    typedef bt_grouped_wgmma<KIND> body;
    bt_grouped_division division =
        bt_grouped_divide(call, multiprocessors, body::ROWS, body::PANELS);
    bt_cuda_launch_clusters(kernel, division.cluster, division.blocks, body::THREADS,
                            body::SHARED_BYTES, stream, *call, division.panels);
}

#endif
