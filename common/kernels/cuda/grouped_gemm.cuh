/*
 * The body of the grouped products on tensor cores (grouped_gemm.h), of which each
 * grouped_gemm_*.cu is one kind.
 *
 * A block takes tiles of the list of grouped_plan.cuh. A tile walks k in steps of 128 bytes of x; a
 * step's x and weights come by cp.async into a ring of STAGES, with a barrier a step.
 *
 * Every tile shape gives an output the same bits: its sum is one accumulator (of F8: one for each
 * step, then a fused multiply-add), to which the same instructions add the same inputs in the same
 * order, and what other rows are in the tile does not touch it. Rows and outputs that are not there
 * are zeros.
 *
 * Weights of I4 stay in shared memory as they are packed (weights.h): a lane's 16 bytes are its
 * fragments of eight outputs by 128 inputs.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_CUH
#define BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_CUH

#include "common/kernels/cuda/grouped_plan.cuh"

/* Four e4m3 as four bf16: exact. */
BT_DEVICE void bt_grouped_widen(uint32_t four, uint32_t out[2])
{
    out[0] = bt_bf16x2_from(bt_from_e4m3((uint8_t)four), bt_from_e4m3((uint8_t)(four >> 8)));
    out[1] =
        bt_bf16x2_from(bt_from_e4m3((uint8_t)(four >> 16)), bt_from_e4m3((uint8_t)(four >> 24)));
}

/* d += 32 bytes of k without e4m3 units: inputs 4 i, 4 i + 1 of each half go first, then the
 * others, the same for a and b. */
BT_DEVICE void bt_grouped_mma_widened(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t wide_a[4], wide_b[2], upper[2], lower[2];
        bt_grouped_widen(a[2 * half], upper);
        bt_grouped_widen(a[2 * half + 1], lower);
        bt_grouped_widen(b[half], wide_b);
        wide_a[0] = upper[0];
        wide_a[1] = lower[0];
        wide_a[2] = upper[1];
        wide_a[3] = lower[1];
        bt_mma_bf16(d, wide_a, wide_b);
    }
}

BT_DEVICE void bt_grouped_mma_f8(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    if (BT_HAVE_E4M3)
        bt_mma_e4m3(d, a, b);
    else
        bt_grouped_mma_widened(d, a, b);
}

/*
 * ROWS x OUTS outputs by WARPS_M x WARPS_N warps. The members are one kernel's constants; the
 * functions are its parts, all of them called by all threads of the block.
 */
template <int KIND, int ROWS, int OUTS, int WARPS_M, int WARPS_N, int STAGES> struct bt_grouped {
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WARP_ROWS = ROWS / WARPS_M, WARP_OUTS = OUTS / WARPS_N;
    static constexpr int BLOCKS_M = WARP_ROWS / 16, BLOCKS_N = WARP_OUTS / 8;
    static constexpr bool INTEGER = KIND == BT_GROUPED_I8 || KIND == BT_GROUPED_I4;
    static constexpr bool STORED = KIND == BT_GROUPED_I4; /* weights in the order of fragments */
    static constexpr int X_BYTES = ROWS * BT_GROUPED_STEP;
    static constexpr int WEIGHT_BYTES = OUTS * BT_GROUPED_STEP / (STORED ? 2 : 1);
    static constexpr int STAGE_BYTES = X_BYTES + WEIGHT_BYTES + (STORED ? 128 : 0);
    static constexpr int PLAN_AT = STAGES * STAGE_BYTES;
    static constexpr int SCALES_AT = PLAN_AT + (int)sizeof(bt_grouped_plan);
    static constexpr int SHARED_BYTES =
        SCALES_AT + (KIND == BT_GROUPED_F8 ? 2 * ROWS * (int)sizeof(float) : 0);
    static constexpr int X_COPIES = X_BYTES / 16 / THREADS;
    static constexpr int WEIGHT_COPIES = WEIGHT_BYTES / 16 / THREADS;
    static_assert(X_COPIES * THREADS * 16 == X_BYTES && STAGE_BYTES % 128 == 0, "whole copies");

    typedef typename std::conditional<INTEGER, int32_t, float>::type sum_t;

    const bt_cuda_grouped_call &call;
    bt_grouped_tile tile;
    uint32_t steps;
    const unsigned char *weight; /* of the tile's first output */
    const unsigned char *groups; /* group scales of the tile's first output */
    const float *weight_scales;  /* F8: of the tile's outputs, by step */
    uint32_t x_at[X_COPIES];     /* this thread's chunks of x, in 16 bytes; none: NOT_THERE */
    uint32_t scale_row;          /* F8: whose scales this thread fetches */
    sum_t sums[BLOCKS_M][BLOCKS_N][4];
    static constexpr uint32_t NOT_THERE = 0xffffffffu;

    BT_MEMBER explicit bt_grouped(const bt_cuda_grouped_call &c) : call(c)
    {
        uint32_t bytes = call.x_pitch * (KIND == BT_GROUPED_BF16 ? 2 : 1);
        steps = bytes / BT_GROUPED_STEP;
    }

    BT_MEMBER uint32_t outs_there() const
    {
        return bt_grouped_ceil(call.outs, BT_CUDA_PANEL) * BT_CUDA_PANEL;
    }

    BT_MEMBER void begin_tile()
    {
        const unsigned char *data = (const unsigned char *)call.data[tile.weight][tile.group];
        size_t row_bytes = (size_t)steps * BT_GROUPED_STEP / (STORED ? 2 : 1);
        weight = data + tile.out * row_bytes;
        if (STORED)
            groups = data + call.group_scales_offset + (size_t)tile.out * steps;
        if (KIND == BT_GROUPED_F8)
            weight_scales =
                (const float *)(data + call.scales_offset) +
                (size_t)(tile.out / BT_CUDA_SCALE_BLOCK) * (bt_grouped_ceil(steps, 4) * 4);
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            uint32_t row = tile.row + threadIdx.x / 8 + i * (THREADS / 8);
            x_at[i] = row < tile.end ? bt_grouped_source(call, row) * (steps * 8) + threadIdx.x % 8
                                     : NOT_THERE;
        }
        scale_row = NOT_THERE;
        if (KIND == BT_GROUPED_F8 && threadIdx.x < ROWS && tile.row + threadIdx.x < tile.end)
            scale_row = bt_grouped_source(call, tile.row + threadIdx.x);
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
            for (int n = 0; n < BLOCKS_N; n++)
                for (int i = 0; i < 4; i++)
                    sums[m][n][i] = 0;
    }

    /* Asks for a step's x and weights; nothing past the last. */
    BT_MEMBER void fetch(unsigned char *stages, uint32_t step) const
    {
        if (step < steps) {
            unsigned char *to = stages + step % STAGES * STAGE_BYTES;
            fetch_x(to, step);
            if (STORED)
                fetch_stored(to + X_BYTES, step);
            else
                fetch_weight(to + X_BYTES, step);
        }
        bt_copy_async_commit();
    }

    BT_MEMBER void fetch_x(unsigned char *to, uint32_t step) const
    {
        const unsigned char *x = (const unsigned char *)call.x;
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            uint32_t row = threadIdx.x / 8 + i * (THREADS / 8);
            bool is_there = x_at[i] != NOT_THERE;
            size_t at = is_there ? (size_t)(x_at[i] + step * 8) * 16 : 0;
            bt_copy_async_16(to + bt_grouped_at(row, threadIdx.x % 8), x + at, is_there);
        }
    }

    BT_MEMBER void fetch_weight(unsigned char *to, uint32_t step) const
    {
        uint32_t pitch = steps * BT_GROUPED_STEP, chunk = threadIdx.x % 8;
        uint32_t there = outs_there() - tile.out;
#pragma unroll
        for (int i = 0; i < WEIGHT_COPIES; i++) {
            uint32_t n = threadIdx.x / 8 + i * (THREADS / 8);
            bool is_there = n < there;
            size_t at = is_there ? (size_t)n * pitch + step * BT_GROUPED_STEP + chunk * 16 : 0;
            bt_copy_async_16(to + bt_grouped_at(n, chunk), weight + at, is_there);
        }
    }

    /* 4096 bytes and 64 group scales a panel. */
    BT_MEMBER void fetch_stored(unsigned char *to, uint32_t step) const
    {
        uint32_t panels = (outs_there() - tile.out) / BT_CUDA_PANEL;
#pragma unroll
        for (int i = 0; i < WEIGHT_COPIES; i++) {
            uint32_t chunk = threadIdx.x + i * THREADS, panel = chunk / 256;
            bool is_there = panel < panels;
            size_t at = is_there ? ((size_t)panel * steps + step) * 4096 + chunk % 256 * 16 : 0;
            bt_copy_async_16(to + chunk * 16, weight + at, is_there);
        }
        if (threadIdx.x < OUTS / 16) {
            uint32_t panel = threadIdx.x / 4;
            bool is_there = panel < panels;
            size_t at = is_there ? ((size_t)panel * steps + step) * 64 + threadIdx.x % 4 * 16 : 0;
            bt_copy_async_16(to + WEIGHT_BYTES + threadIdx.x * 16, groups + at, is_there);
        }
    }

    /* F8: the scale of this thread's row. */
    BT_MEMBER float fetch_scale(uint32_t step) const
    {
        if (scale_row == NOT_THERE || step >= steps)
            return 0;
        return call.x_scales[bt_cuda_scale_at(call.head, steps, scale_row, step)];
    }

    BT_MEMBER uint32_t warp_row() const
    {
        return threadIdx.x / 32 % WARPS_M * WARP_ROWS;
    }
    BT_MEMBER uint32_t warp_out() const
    {
        return threadIdx.x / 32 / WARPS_M * WARP_OUTS;
    }

    /* Fragments of x: rows of the warp, 32 bytes of k. */
    BT_MEMBER void load_x(const unsigned char *x, int part, uint32_t a[BLOCKS_M][4]) const
    {
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
            bt_ldmatrix_x4(a[m], x + bt_grouped_at(warp_row() + m * 16 + bt_lane() % 16,
                                                   part * 2 + bt_lane() / 16));
    }

    BT_MEMBER void load_weight(const unsigned char *w, int part, uint32_t b[BLOCKS_N][2]) const
    {
#pragma unroll
        for (int n = 0; n < BLOCKS_N; n += 2) {
            uint32_t both[4];
            bt_ldmatrix_x4(
                both, w + bt_grouped_at(warp_out() + n * 8 + bt_lane() % 8 + bt_lane() / 16 * 8,
                                        part * 2 + bt_lane() / 8 % 2));
            b[n][0] = both[0];
            b[n][1] = both[1];
            b[n + 1][0] = both[2];
            b[n + 1][1] = both[3];
        }
    }

    static BT_MEMBER void mma(sum_t d[4], const uint32_t a[4], const uint32_t b[2])
    {
        if constexpr (INTEGER)
            bt_mma_s8(d, a, b);
        else if constexpr (KIND == BT_GROUPED_F8)
            bt_grouped_mma_f8(d, a, b);
        else
            bt_mma_bf16(d, a, b);
    }

    static BT_MEMBER void multiply(sum_t d[BLOCKS_M][BLOCKS_N][4], uint32_t a[BLOCKS_M][4],
                                   uint32_t b[BLOCKS_N][2])
    {
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
            for (int n = 0; n < BLOCKS_N; n++)
                mma(d[m][n], a[m], b[n]);
    }

    /* One step of BF16 and I8. */
    BT_MEMBER void add_step(const unsigned char *stage)
    {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t a[BLOCKS_M][4], b[BLOCKS_N][2];
            load_x(stage, part, a);
            load_weight(stage + X_BYTES, part, b);
            multiply(sums, a, b);
        }
    }

    /* F8: the f32 sum of 128 inputs, then its scales. */
    BT_MEMBER void add_step_f8(const unsigned char *stage, const float *x_scales,
                               float weight_scale)
    {
        float of_step[BLOCKS_M][BLOCKS_N][4] = {};
#pragma unroll 1 /* what is widened needs registers */
        for (int part = 0; part < 4; part++) {
            uint32_t a[BLOCKS_M][4], b[BLOCKS_N][2];
            load_x(stage, part, a);
            load_weight(stage + X_BYTES, part, b);
            multiply(of_step, a, b);
        }
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++) {
            uint32_t row = warp_row() + m * 16 + bt_lane() / 4;
            float upper = bt_mul(x_scales[row], weight_scale);
            float lower = bt_mul(x_scales[row + 8], weight_scale);
#pragma unroll
            for (int n = 0; n < BLOCKS_N; n++)
                for (int i = 0; i < 4; i++)
                    sums[m][n][i] = bt_fma(of_step[m][n][i], i < 2 ? upper : lower, sums[m][n][i]);
        }
    }

    /*
     * I4: a word has eight values u = v + 8. Four bytes of u times the group scale s, plus 128 - 8
     * s in each, are four bytes of v s + 128, 1 … 255, whatever is carried on the way; with the top
     * bits flipped they are v s.
     */
    BT_MEMBER void add_step_i4(const unsigned char *stage)
    {
        const unsigned char *w = stage + X_BYTES, *s = w + WEIGHT_BYTES;
        uint32_t words[BLOCKS_N][4], scale[BLOCKS_N], bias[BLOCKS_N];
#pragma unroll
        for (int n = 0; n < BLOCKS_N; n++) {
            uint4 all = bt_load_shared_16(w + (warp_out() / 8 + n) * 512 + bt_lane() * 16);
            words[n][0] = all.x;
            words[n][1] = all.y;
            words[n][2] = all.z;
            words[n][3] = all.w;
            scale[n] = s[warp_out() + n * 8 + bt_lane() / 4];
            bias[n] = (128 - 8 * scale[n]) * 0x01010101u;
        }
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t a[BLOCKS_M][4], b[BLOCKS_N][2];
            load_x(stage, part, a);
#pragma unroll
            for (int n = 0; n < BLOCKS_N; n++) {
                uint32_t word = words[n][part];
                b[n][0] = ((word & 0x0f0f0f0fu) * scale[n] + bias[n]) ^ 0x80808080u;
                b[n][1] = ((word >> 4 & 0x0f0f0f0fu) * scale[n] + bias[n]) ^ 0x80808080u;
            }
            multiply(sums, a, b);
        }
    }

    BT_MEMBER void put(uint32_t row, uint32_t out, float value) const
    {
        size_t at = (size_t)row * call.outs + out;
        if (call.rounds)
            ((uint16_t *)call.out[tile.weight])[at] = bt_bf16_from(value);
        else
            ((float *)call.out[tile.weight])[at] = value;
    }

    /* Two neighbours of a row. */
    BT_MEMBER void put_pair(uint32_t row, uint32_t out, float first, float second) const
    {
        size_t at = (size_t)row * call.outs + out;
        if (row >= tile.end || out >= call.outs)
            return;
        if (call.rounds && call.outs % 2 == 0) {
            ((uint32_t *)call.out[tile.weight])[at / 2] = bt_bf16x2_from(first, second);
            return;
        }
        put(row, out, first);
        if (out + 1 < call.outs)
            put(row, out + 1, second);
    }

    BT_MEMBER float scaled(sum_t sum, float row_scale, float out_scale) const
    {
        return INTEGER ? bt_mul(bt_mul((float)sum, row_scale), out_scale) : (float)sum;
    }

    BT_MEMBER void put_tile() const
    {
        const float *out_scales =
            (const float *)((const unsigned char *)call.data[tile.weight][tile.group] +
                            call.scales_offset);
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t row = tile.row + warp_row() + m * 16 + bt_lane() / 4 + 8 * half;
                float row_scale = 1;
                if (INTEGER && row < tile.end)
                    row_scale = call.x_scales[bt_grouped_source(call, row)];
#pragma unroll
                for (int n = 0; n < BLOCKS_N; n++) {
                    uint32_t out = tile.out + warp_out() + n * 8 + bt_lane() % 4 * 2;
                    float scales[2] = {1, 1};
                    if (INTEGER && out < call.outs) { /* there are as many as in whole panels */
                        scales[0] = out_scales[out];
                        scales[1] = out_scales[out + 1];
                    }
                    put_pair(row, out, scaled(sums[m][n][2 * half], row_scale, scales[0]),
                             scaled(sums[m][n][2 * half + 1], row_scale, scales[1]));
                }
            }
        }
    }

    BT_MEMBER void run_tile(unsigned char *stages, float *scales)
    {
        float held = 0, weight_scale = 0;
        begin_tile();
        for (int step = 0; step < STAGES - 1; step++)
            fetch(stages, step);
        if (KIND == BT_GROUPED_F8) {
            if (threadIdx.x < ROWS)
                scales[threadIdx.x] = fetch_scale(0);
            held = fetch_scale(1);
            weight_scale = weight_scales[0];
        }
        for (uint32_t step = 0; step < steps; step++) {
            const unsigned char *stage = stages + step % STAGES * STAGE_BYTES;
            bt_copy_async_wait<STAGES - 2>();
            bt_sync_block();
            fetch(stages, step + STAGES - 1);
            if constexpr (KIND == BT_GROUPED_F8) {
                if (threadIdx.x < ROWS)
                    scales[(step + 1) % 2 * ROWS + threadIdx.x] = held;
                held = fetch_scale(step + 2);
                float next = step + 1 < steps ? weight_scales[step + 1] : 0;
                add_step_f8(stage, scales + step % 2 * ROWS, weight_scale);
                weight_scale = next;
            } else if constexpr (STORED) {
                add_step_i4(stage);
            } else {
                add_step(stage);
            }
        }
        put_tile();
        bt_sync_block(); /* before the next tile's first copies */
    }

    /* The kernel. */
    static BT_MEMBER void run(const bt_cuda_grouped_call &call)
    {
        unsigned char *shared = bt_shared();
        bt_grouped_plan *plan = (bt_grouped_plan *)(shared + PLAN_AT);
        uint32_t out_strips = bt_grouped_ceil(call.outs, OUTS);
        uint32_t tiles = bt_grouped_fill_plan(plan, call, ROWS) * out_strips * call.weights;
        bt_grouped self(call);
        for (uint32_t index = blockIdx.x; index < tiles; index += gridDim.x) {
            self.tile = bt_grouped_tile_at(plan, call, index, out_strips, ROWS, OUTS);
            if (call.data[self.tile.weight][self.tile.group])
                self.run_tile(shared, (float *)(shared + SCALES_AT));
        }
    }
};

/* Groups that have few rows on average: bound by weights. */
static inline bool bt_grouped_is_small(const bt_cuda_grouped_call *call)
{
    return call->rows <= 48 * call->groups;
}

#endif
