#include "tests/checkkern/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kernels/stream.h"
#include "common/kernels/weight.h"

#define CANARY_BYTES 256
#define CANARY       0xa5
#define MAX_BUFFERS  256
#define MAX_STREAMS  8
#define MAX_PACKED   256
#define MAX_SLABS    32
#define SLAB_BYTES   ((size_t)16 << 20)

/* What one call uses, on both sides. */
struct buffer {
    char *host;
    size_t bytes;
    char *block; /* of the device, with both canaries */
    char *shown; /* the same in pinned memory */
    char *data;  /* in the block */
    bool is_output;
};

static struct {
    struct check *check;
    struct bt_device *device;
    const struct bt_kernels *oracle;
    struct bt_kernels oracle_table;
    /* Memory of both sides, which each call divides anew. */
    struct {
        char *device, *host;
        size_t bytes, used;
    } slabs[MAX_SLABS];
    unsigned slab_count;
    struct buffer buffers[MAX_BUFFERS];
    unsigned buffer_count;
    struct {
        struct bt_stream_limits limits;
        struct bt_stream *stream;
    } streams[MAX_STREAMS];
    unsigned next_stream;
    struct {
        const void *host; /* what the case takes for the packed data */
        void *device, *oracle;
        struct bt_matrix on_device, of_oracle;
    } packed[MAX_PACKED];
    unsigned packed_count;
    struct bt_stream *stream; /* of the call */
    /* Of this stream of the CPU, whose operations find their rows padded. */
    const struct bt_stream *staged_by;
    struct bt_stream *staged_stream;
    struct bt_stage stage;
} d;

static void must(enum bt_status status, const struct bt_error *error)
{
    if (status == BT_OK)
        return;
    printf("FAIL device: %s\n", error->text);
    exit(1);
}

/* ---- streams ---- */

static struct bt_stream *new_stream(const struct bt_stream_limits *limits)
{
    struct bt_error error;
    struct bt_stream *stream = NULL;
    must(bt_device_stream_create(d.device, limits, NULL, &error, &stream), &error);
    return stream;
}

/* One with the limits of the CPU's stream (NULL: none), and room for the rows of the call. */
static struct bt_stream *stream_for(const struct bt_stream *cpu, size_t rows, uint32_t dim)
{
    struct bt_stream_limits limits = {0};
    if (cpu && cpu == d.staged_by)
        return d.stream = d.staged_stream;
    if (cpu)
        limits = cpu->limits;
    if (limits.max_rows < rows + 1)
        limits.max_rows = (uint32_t)rows + 1;
    if (limits.max_cols < dim)
        limits.max_cols = dim;
    for (unsigned i = 0; i < MAX_STREAMS; i++)
        if (d.streams[i].stream && memcmp(&d.streams[i].limits, &limits, sizeof(limits)) == 0)
            return d.stream = d.streams[i].stream;
    unsigned at = d.next_stream++ % MAX_STREAMS;
    bt_device_stream_destroy(d.device, d.streams[at].stream);
    d.streams[at].limits = limits;
    d.streams[at].stream = new_stream(&limits);
    return d.stream = d.streams[at].stream;
}

static void synchronize(void)
{
    struct bt_error error;
    must(bt_device_synchronize(d.device, d.stream, &error), &error);
}

/* ---- buffers ---- */

static size_t block_bytes(size_t bytes)
{
    return (bytes + 3 * CANARY_BYTES + 255) / 256 * 256;
}

static void new_slab(size_t bytes)
{
    struct bt_error error;
    void *device = NULL, *host = NULL;
    BT_ASSERT(d.slab_count < MAX_SLABS);
    bytes = bytes > SLAB_BYTES ? bytes : SLAB_BYTES;
    must(bt_device_alloc(d.device, bytes, &error, &device), &error);
    must(bt_device_alloc_host(d.device, bytes, &error, &host), &error);
    d.slabs[d.slab_count].device = device;
    d.slabs[d.slab_count].host = host;
    d.slabs[d.slab_count].used = 0;
    d.slabs[d.slab_count++].bytes = bytes;
}

static void place(struct buffer *buffer)
{
    size_t bytes = block_bytes(buffer->bytes);
    unsigned i = 0;
    while (i < d.slab_count && d.slabs[i].bytes - d.slabs[i].used < bytes)
        i++;
    if (i == d.slab_count)
        new_slab(bytes);
    buffer->block = d.slabs[i].device + d.slabs[i].used;
    buffer->shown = d.slabs[i].host + d.slabs[i].used;
    buffer->data = buffer->block + CANARY_BYTES + (uintptr_t)buffer->host % 256;
    d.slabs[i].used += bytes;
}

static void upload(struct buffer *buffer)
{
    size_t all = block_bytes(buffer->bytes);
    memset(buffer->shown, CANARY, all);
    if (buffer->bytes > 0)
        memcpy(buffer->shown + (buffer->data - buffer->block), buffer->host, buffer->bytes);
    bt_device_copy(d.device, d.stream, buffer->block, buffer->shown, all);
}

/* The device's copy of these bytes. Parts of what the call has already are parts of its copy. */
static void *take(const void *host, size_t bytes, bool is_output)
{
    if (!host)
        return NULL;
    char *at = (char *)(uintptr_t)host;
    for (unsigned i = 0; i < d.buffer_count; i++) {
        struct buffer *buffer = &d.buffers[i];
        if (at < buffer->host || at + bytes > buffer->host + buffer->bytes)
            continue;
        buffer->is_output |= is_output;
        return buffer->data + (at - buffer->host);
    }
    BT_ASSERT(d.buffer_count < MAX_BUFFERS);
    struct buffer *buffer = &d.buffers[d.buffer_count++];
    *buffer = (struct buffer){.host = at, .bytes = bytes, .is_output = is_output};
    place(buffer);
    upload(buffer);
    return buffer->data;
}

static const void *in(const void *host, size_t bytes)
{
    return take(host, bytes, false);
}

static void *out(void *host, size_t bytes)
{
    return take(host, bytes, true);
}

static bool is_canary(const char *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)memory[i] != CANARY)
            return false;
    return true;
}

static void look_at(const struct buffer *buffer)
{
    size_t offset = (size_t)(buffer->data - buffer->block), end = offset + buffer->bytes;
    const char *memory = buffer->shown;
    if (!is_canary(memory, offset) || !is_canary(memory + end, block_bytes(buffer->bytes) - end))
        check_fail(d.check, "device: written outside of %zu bytes", buffer->bytes);
    if (!buffer->is_output && buffer->bytes > 0 &&
        memcmp(memory + offset, buffer->host, buffer->bytes) != 0)
        check_fail(d.check, "device: %zu bytes of input were written to", buffer->bytes);
    if (buffer->is_output && buffer->bytes > 0)
        memcpy(buffer->host, memory + offset, buffer->bytes);
}

/* The call is over: what it wrote comes back. */
static void finish(void)
{
    for (unsigned i = 0; i < d.buffer_count; i++)
        bt_device_copy(d.device, d.stream, d.buffers[i].shown, d.buffers[i].block,
                       block_bytes(d.buffers[i].bytes));
    synchronize();
    for (unsigned i = 0; i < d.buffer_count; i++)
        look_at(&d.buffers[i]);
    for (unsigned i = 0; i < d.slab_count; i++)
        d.slabs[i].used = 0;
    d.buffer_count = 0;
}

/* ---- what is staged ---- */

/* A stream of its own, as what it takes for staged are addresses, which others may have later. */
static void unstage(void)
{
    bt_device_stream_destroy(d.device, d.staged_stream);
    d.staged_stream = NULL;
    d.staged_by = NULL;
}

/* Again and again, as passes come. */
static void stage(struct bt_stream *stream, const struct bt_stage *pass)
{
    if (d.staged_by != stream) {
        unstage();
        d.staged_stream = new_stream(&stream->limits);
        d.staged_by = stream;
    }
    d.stage = *pass;
    stream_for(stream, 0, 0);
    d.device->kernels->stage(d.stream, pass);
    synchronize();
}

/* ---- weights ---- */

static size_t groups_of(size_t count)
{
    return (count + 127) / 128;
}

static int find_packed(const void *host)
{
    for (unsigned i = d.packed_count; host && i-- > 0;)
        if (d.packed[i].host == host)
            return (int)i;
    return -1;
}

static struct bt_matrix matrix(const struct bt_matrix *host)
{
    struct bt_matrix m = *host;
    size_t count = (size_t)m.rows * m.cols, groups = groups_of(m.cols);
    int found = m.layout == BT_LAYOUT_TILES ? find_packed(m.data) : -1;
    if (!m.data)
        return m;
    if (found >= 0)
        return d.packed[found].on_device;
    BT_ASSERT(m.layout == BT_LAYOUT_ROWS);
    m.data = in(m.data, count * bt_dtype_bits(m.dtype) / 8);
    m.scales =
        in(m.scales, (m.dtype == BT_F8_E4M3 ? groups_of(m.rows) * groups : m.rows) * sizeof(float));
    m.group_scales = in(m.group_scales, m.rows * groups);
    return m;
}

static size_t packed_bytes(const struct bt_matrix *m, enum bt_use use,
                           const struct bt_mla_shape *shape)
{
    return d.device->kernels->packed_bytes(m, use, shape);
}

/* `host` stands for what is packed: on the device, and for the oracle. */
static void pack(struct bt_stream *stream, const struct bt_matrix *m, enum bt_use use,
                 const struct bt_mla_shape *shape, void *host, struct bt_matrix *ret_packed)
{
    struct bt_error error;
    int found = find_packed(host);
    unsigned at = found >= 0 ? (unsigned)found : d.packed_count++;
    BT_ASSERT(at < MAX_PACKED);
    if (found >= 0) {
        bt_device_free(d.device, d.packed[at].device);
        free(d.packed[at].oracle);
    }
    stream_for(stream, 0, 0);
    d.packed[at].host = host;
    must(bt_device_alloc(d.device, packed_bytes(m, use, shape), &error, &d.packed[at].device),
         &error);
    d.device->kernels->pack(d.stream, m, use, shape, d.packed[at].device, &d.packed[at].on_device);
    synchronize();
    size_t bytes = (d.oracle->packed_bytes(m, use, shape) + 63) / 64 * 64;
    d.packed[at].oracle = aligned_alloc(64, bytes);
    BT_ASSERT(d.packed[at].oracle);
    d.oracle->pack(NULL, m, use, shape, d.packed[at].oracle, &d.packed[at].of_oracle);
    *ret_packed = d.packed[at].on_device;
    ret_packed->data = host;
    ret_packed->scales = NULL;
    ret_packed->group_scales = NULL;
}

void check_device_end(void)
{
    for (unsigned i = 0; i < d.packed_count; i++) {
        bt_device_free(d.device, d.packed[i].device);
        free(d.packed[i].oracle);
    }
    d.packed_count = 0;
    unstage();
}

/* ---- sequences ---- */

/* With those of padding. */
static size_t rows_of(const struct bt_sequence_rows *sequences, uint32_t count)
{
    size_t rows = 0;
    if (d.staged_by && sequences == d.stage.sequences)
        return d.stage.padded_rows;
    if (d.staged_by && sequences == d.stage.wanted_sequences)
        return d.stage.padded_wanted;
    for (uint32_t i = 0; i < count; i++) {
        size_t end = (size_t)sequences[i].first_row + sequences[i].row_count;
        rows = end > rows ? end : rows;
    }
    return rows;
}

/* One layer of pages that holds all that the sequences name. */
static struct bt_kv_layer pool(const struct bt_kv_layer *host,
                               const struct bt_sequence_rows *sequences, uint32_t count,
                               bool is_output)
{
    struct bt_kv_layer kv = *host;
    size_t pages = 0;
    for (uint32_t s = 0; s < count; s++) {
        size_t tokens = (size_t)sequences[s].start + sequences[s].row_count;
        for (size_t i = 0; sequences[s].row_count && i * BT_PAGE_TOKENS < tokens; i++)
            pages = sequences[s].pages[i] >= pages ? sequences[s].pages[i] + 1 : pages;
    }
    kv.data = take(host->data, pages * BT_PAGE_TOKENS * bt_kv_token_size(host), is_output);
    return kv;
}

static struct bt_rope_table rope_of(const struct bt_rope_table *host)
{
    struct bt_rope_table rope = *host;
    size_t bytes = (size_t)rope.max_position * rope.half_dim * sizeof(float);
    rope.cos = in(rope.cos, bytes);
    rope.sin = in(rope.sin, bytes);
    return rope;
}

/* ---- operations ---- */

#define FLOATS(count) ((size_t)(count) * sizeof(float))

static void embed(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *to)
{
    stream_for(stream, rows, 0);
    struct bt_matrix m = matrix(table);
    d.device->kernels->embed(d.stream, &m, tokens, rows, out(to, FLOATS((size_t)rows * m.cols)));
    finish();
}

static void rms_norm(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *to)
{
    stream_for(stream, rows, 0);
    float *result = out(to, FLOATS((size_t)rows * dim));
    const float *from = in(x, rows ? FLOATS((size_t)(rows - 1) * stride + dim) : 0);
    struct bt_matrix m = matrix(weight);
    d.device->kernels->rms_norm(d.stream, from, rows, dim, stride, &m, eps, result);
    finish();
}

static void add_rms_norm(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                         uint32_t dim, const struct bt_matrix *weight, float eps, float *to)
{
    size_t bytes = FLOATS((size_t)rows * dim);
    stream_for(stream, rows, 0);
    struct bt_matrix m = matrix(weight);
    d.device->kernels->add_rms_norm(d.stream, out(x, bytes), in(y, bytes), rows, dim, &m, eps,
                                    out(to, bytes));
    finish();
}

static void linear(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t count)
{
    struct bt_linear on_device[16];
    struct bt_matrix weights[16];
    BT_ASSERT(count <= 16);
    stream_for(stream, rows, count ? linears[0].weight->cols : 0);
    for (uint32_t i = 0; i < count; i++) {
        weights[i] = matrix(linears[i].weight);
        on_device[i] = (struct bt_linear){
            &weights[i], out(linears[i].out, FLOATS((size_t)rows * weights[i].rows))};
    }
    const float *from = in(x, count ? FLOATS((size_t)rows * weights[0].cols) : 0);
    d.device->kernels->linear(d.stream, from, rows, on_device, count);
    finish();
}

static void mlp(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *host,
                float *to)
{
    uint32_t widest = host->gate.cols > host->down.cols ? host->gate.cols : host->down.cols;
    stream_for(stream, rows, widest);
    struct bt_mlp m = {matrix(&host->gate), matrix(&host->up), matrix(&host->down)};
    float *result = out(to, FLOATS((size_t)rows * m.down.rows));
    const float *from = in(x, FLOATS((size_t)rows * m.gate.cols));
    d.device->kernels->mlp(d.stream, from, rows, &m, result);
    finish();
}

static void add(struct bt_stream *stream, float *x, const float *y, size_t count)
{
    stream_for(stream, 0, 0);
    d.device->kernels->add(d.stream, out(x, FLOATS(count)), in(y, FLOATS(count)), count);
    finish();
}

static void zero(struct bt_stream *stream, float *x, size_t count)
{
    stream_for(stream, 0, 0);
    d.device->kernels->zero(d.stream, out(x, FLOATS(count)), count);
    finish();
}

static void gather_rows(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                        uint32_t count)
{
    bool is_staged = stream == d.staged_by && wanted == d.stage.wanted;
    size_t rows = is_staged ? d.stage.padded_rows : count ? (size_t)wanted[count - 1] + 1 : 0;
    stream_for(stream, rows, dim);
    d.device->kernels->gather_rows(d.stream, out(x, FLOATS(rows * dim)), dim, wanted, count);
    finish();
}

static void rope_q(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                   const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                   uint32_t count)
{
    size_t rows = rows_of(sequences, count);
    size_t width = (size_t)shape->heads * (shape->qk_nope_head_dim + shape->qk_rope_head_dim);
    stream_for(stream, rows, 0);
    struct bt_rope_table table = rope_of(rope);
    d.device->kernels->rope_q(d.stream, out(q, FLOATS(rows * width)), shape, &table, sequences,
                              count);
    finish();
}

static void kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t count,
                     const struct bt_kv_layer *kv)
{
    size_t rows = rows_of(sequences, count), width = bt_kv_width(kv);
    stream_for(stream, rows, 0);
    struct bt_kv_layer layer = pool(kv, sequences, count, true);
    struct bt_rope_table table = rope_of(rope);
    struct bt_matrix m = matrix(norm);
    d.device->kernels->kv_write(d.stream, in(kv_a, FLOATS(rows * width)), &m, eps, &table,
                                sequences, count, &layer);
    finish();
}

typedef void mla_fn(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                    const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                    uint32_t count, const struct bt_kv_layer *kv, float *to);

static void mla(mla_fn *run, struct bt_stream *stream, const float *q,
                const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                const struct bt_sequence_rows *sequences, uint32_t count,
                const struct bt_kv_layer *kv, float *to)
{
    size_t rows = rows_of(sequences, count);
    size_t width = shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    stream_for(stream, rows, 0);
    struct bt_kv_layer layer = pool(kv, sequences, count, false);
    struct bt_matrix m = matrix(kv_b);
    float *result = out(to, FLOATS(rows * shape->heads * shape->v_head_dim));
    run(d.stream, in(q, FLOATS(rows * shape->heads * width)), shape, &m, sequences, count, &layer,
        result);
    finish();
}

static void mla_prefill(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t count, const struct bt_kv_layer *kv, float *to)
{
    mla(d.device->kernels->mla_prefill, stream, q, shape, kv_b, sequences, count, kv, to);
}

static void mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t count, const struct bt_kv_layer *kv, float *to)
{
    mla(d.device->kernels->mla_decode, stream, q, shape, kv_b, sequences, count, kv, to);
}

static void moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    size_t picks = (size_t)rows * shape->experts_per_token;
    stream_for(stream, rows, 0);
    struct bt_matrix g = matrix(gate), b = matrix(bias);
    struct bt_routing r = {out(routing->experts, picks * sizeof(uint32_t)),
                           out(routing->weights, FLOATS(picks)),
                           out(routing->order, picks * sizeof(uint32_t)),
                           out(routing->begin, (shape->experts + 1) * sizeof(uint32_t))};
    d.device->kernels->moe_route(d.stream, in(x, FLOATS((size_t)rows * g.cols)), rows, &g, &b,
                                 shape, &r);
    finish();
}

/* Arrays of matrices are the host's, what they name is the device's. */
static struct bt_expert_weights experts_of(const struct bt_expert_weights *host,
                                           struct bt_matrix *room, uint32_t *ret_hidden)
{
    for (uint32_t i = 0; i < host->experts; i++) {
        room[i] = matrix(&host->gate[i]);
        room[host->experts + i] = matrix(&host->up[i]);
        room[2 * host->experts + i] = matrix(&host->down[i]);
        if (host->gate[i].data)
            *ret_hidden = host->gate[i].cols;
    }
    return (struct bt_expert_weights){room, room + host->experts, room + 2 * host->experts,
                                      host->experts};
}

static struct bt_routing routing_of(const struct bt_routing *host, size_t picks, uint32_t experts)
{
    return (struct bt_routing){
        (uint32_t *)(uintptr_t)in(host->experts, picks * sizeof(uint32_t)),
        (float *)(uintptr_t)in(host->weights, FLOATS(picks)),
        (uint32_t *)(uintptr_t)in(host->order, picks * sizeof(uint32_t)),
        (uint32_t *)(uintptr_t)in(host->begin, (experts + 1) * sizeof(uint32_t))};
}

static void moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const struct bt_routing *routing,
                        const struct bt_expert_weights *weights, float *to)
{
    uint32_t hidden = stream->limits.hidden;
    struct bt_matrix *room = calloc(3 * (size_t)weights->experts + 1, sizeof(*room));
    stream_for(stream, rows, 0);
    struct bt_expert_weights w = experts_of(weights, room, &hidden);
    struct bt_routing r =
        routing_of(routing, (size_t)rows * shape->experts_per_token, shape->experts);
    size_t bytes = FLOATS((size_t)rows * hidden);
    float *result = out(to, bytes);
    d.device->kernels->moe_experts(d.stream, in(x, bytes), rows, shape, &r, &w, result);
    finish();
    free(room);
}

static void moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_route_shape *shape, const struct bt_routing *routing,
                            const struct bt_expert_weights *weights, void *y)
{
    uint32_t hidden = stream->limits.hidden;
    size_t picks = routing->begin[shape->experts];
    struct bt_matrix *room = calloc(3 * (size_t)weights->experts + 1, sizeof(*room));
    stream_for(stream, rows, 0);
    struct bt_expert_weights w = experts_of(weights, room, &hidden);
    struct bt_routing r = routing_of(routing, picks, shape->experts);
    bool tiles = false;
    for (uint32_t i = 0; i < weights->experts; i++)
        tiles |= weights->gate[i].data && weights->gate[i].layout == BT_LAYOUT_TILES;
    void *result = out(y, picks * hidden * (tiles ? 2u : 4u));
    d.device->kernels->moe_expert_rows(d.stream, in(x, FLOATS((size_t)rows * hidden)), rows, shape,
                                       &r, &w, result);
    finish();
    free(room);
}

static void draw(struct bt_stream *stream, float *logits, uint32_t rows, uint32_t vocab_size,
                 const struct bt_draw *draws, const struct bt_adjust *adjusts, uint32_t *tokens,
                 struct bt_logprobs *logprobs)
{
    stream_for(stream, rows, 0);
    float *from = out(logits, FLOATS((size_t)rows * vocab_size));
    d.device->kernels->draw(d.stream, from, rows, vocab_size, draws, adjusts,
                            out(tokens, rows * sizeof(*tokens)),
                            out(logprobs, rows * sizeof(*logprobs)));
    finish();
}

static const struct bt_kernels device_table = {
    .name = "cuda",
    .f8_inputs = true,
    .stage = stage,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .embed = embed,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .linear = linear,
    .mlp = mlp,
    .add = add,
    .zero = zero,
    .gather_rows = gather_rows,
    .rope_q = rope_q,
    .kv_write = kv_write,
    .mla_prefill = mla_prefill,
    .mla_decode = mla_decode,
    .moe_route = moe_route,
    .moe_experts = moe_experts,
    .moe_expert_rows = moe_expert_rows,
    .draw = draw,
};

/* ---- the oracle: those that are given packed weights ---- */

static struct bt_matrix of_oracle(const struct bt_matrix *m)
{
    int found = m->layout == BT_LAYOUT_TILES ? find_packed(m->data) : -1;
    return found >= 0 ? d.packed[found].of_oracle : *m;
}

static void oracle_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                          const struct bt_linear *linears, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct bt_matrix m = of_oracle(linears[i].weight);
        d.oracle->linear(stream, x, rows, &(struct bt_linear){&m, linears[i].out}, 1);
    }
}

static void oracle_prefill(struct bt_stream *stream, const float *q,
                           const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                           const struct bt_sequence_rows *sequences, uint32_t count,
                           const struct bt_kv_layer *kv, float *to)
{
    struct bt_matrix m = of_oracle(kv_b);
    d.oracle->mla_prefill(stream, q, shape, &m, sequences, count, kv, to);
}

static void oracle_decode(struct bt_stream *stream, const float *q,
                          const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                          const struct bt_sequence_rows *sequences, uint32_t count,
                          const struct bt_kv_layer *kv, float *to)
{
    struct bt_matrix m = of_oracle(kv_b);
    d.oracle->mla_decode(stream, q, shape, &m, sequences, count, kv, to);
}

/* ---- the device ---- */

bool check_device_open(const char *name)
{
    struct bt_error error;
    if (bt_device_open(name, NULL, &error, &d.device) != BT_OK) {
        printf("skipped: %s\n", error.text);
        return false;
    }
    struct bt_device_info info;
    bt_device_info(d.device, &info);
    printf("%s: %s\n", d.device->name, info.description);
    return true;
}

void check_device_close(void)
{
    for (unsigned i = 0; i < MAX_STREAMS; i++)
        bt_device_stream_destroy(d.device, d.streams[i].stream);
    for (unsigned i = 0; i < d.slab_count; i++) {
        bt_device_free(d.device, d.slabs[i].device);
        bt_device_free_host(d.device, d.slabs[i].host);
    }
    bt_device_close(d.device);
    memset(&d, 0, sizeof(d));
}

struct bt_device *check_device(void)
{
    return d.device;
}

const struct bt_kernels *check_device_kernels(void)
{
    return &device_table;
}

const struct bt_kernels *check_device_oracle(const struct bt_kernels *oracle)
{
    d.oracle = oracle;
    d.oracle_table = *oracle;
    d.oracle_table.linear = oracle_linear;
    d.oracle_table.mla_prefill = oracle_prefill;
    d.oracle_table.mla_decode = oracle_decode;
    return &d.oracle_table;
}

void check_device_begin(struct check *check)
{
    d.check = check;
}
