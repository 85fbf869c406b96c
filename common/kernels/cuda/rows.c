/*
 * Lists and sequences of the host in device memory. What one `stage` needs is written to a pinned
 * buffer and copied in four pieces, in the stream's order, so that the pass before it still reads
 * its own. The pinned buffers are a ring, each with an event behind its copies.
 *
 * The addresses of a block are a function of the padded counts alone: a graph that was captured
 * with them finds the next batch of the same counts in the same places.
 */
#include "common/kernels/cuda/rows.h"

#include <stdlib.h>
#include <string.h>

#include "common/kernels/cuda/resolve_tokens.h"
#include "common/kernels/cuda/table.h"

#define RING 4

struct area {
    unsigned char *memory; /* of the device */
    size_t bytes;
};

/* Where the sequences of `rows` rows are: first the counts, then an array after the other. */
struct set {
    uint32_t *live; /* rows, sequences, pieces, and one unused */
    uint32_t *position, *sequence, *page_begin, *start, *first_row, *row_count, *piece_begin;
};

/* The head of a block, in the device's memory or in a pinned buffer. */
struct head {
    uint32_t *tokens, *token_from; /* [padded_rows] */
    uint32_t *wanted;              /* [padded_wanted] */
    struct bt_draw *draws;         /* [padded_wanted] */
    struct set batch, wanted_rows;
    size_t bytes;
};

/* Sequences, and what else is staged of them. */
struct block {
    struct area head, pages, pieces, adjusts;
    bool is_fixed; /* never grows: graphs know its addresses */
};

struct pinned {
    unsigned char *memory;
    size_t bytes;
    cudaEvent_t copied;
    bool is_copying;
};

struct bt_cuda_rows_memory {
    struct block staged, other;
    struct area resolved, other_list, drawn;
    struct pinned ring[RING];
    uint32_t next; /* of the ring */
    /* What is staged: the host's lists, for their addresses, and where they are now. */
    struct bt_stage stage;
    struct head head;
    struct bt_cuda_rows batch, wanted;
};

/* Where pages and pieces of the sequences of a block are written to. */
struct writer {
    uint32_t *pages, *pieces;
    uint32_t page_count, piece_count, group_pieces;
};

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- where things are ---- */

static size_t set_words(uint32_t rows)
{
    return round_up(4 + 7 * (size_t)rows + 1, 4);
}

static struct set set_at(uint32_t *at, uint32_t rows)
{
    return (struct set){
        .live = at,
        .position = at + 4,
        .sequence = at + 4 + rows,
        .page_begin = at + 4 + 2 * (size_t)rows,
        .start = at + 4 + 3 * (size_t)rows,
        .first_row = at + 4 + 4 * (size_t)rows,
        .row_count = at + 4 + 5 * (size_t)rows,
        .piece_begin = at + 4 + 6 * (size_t)rows,
    };
}

static struct head head_at(void *memory, uint32_t rows, uint32_t wanted)
{
    struct head head;
    head.draws = memory;
    uint32_t *at = (uint32_t *)(void *)(head.draws + wanted);
    head.tokens = at;
    head.token_from = at + rows;
    head.wanted = at + 2 * (size_t)rows;
    at += round_up(2 * (size_t)rows + wanted, 4);
    head.batch = set_at(at, rows);
    at += set_words(rows);
    head.wanted_rows = set_at(at, wanted);
    at += set_words(wanted);
    head.bytes = (size_t)((unsigned char *)at - (unsigned char *)memory);
    return head;
}

static size_t head_bytes(uint32_t rows, uint32_t wanted)
{
    return wanted * sizeof(struct bt_draw) +
           (round_up(2 * (size_t)rows + wanted, 4) + set_words(rows) + set_words(wanted)) *
               sizeof(uint32_t);
}

/* Of batches of `rows` rows, which are more than the limit only where no pieces are asked for. */
static uint32_t group_pieces(const struct bt_cuda_stream *stream, uint32_t rows)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    return bt_cuda_group_pieces(rows > limits->max_rows ? rows : limits->max_rows,
                                limits->max_page_numbers);
}

/* Most pieces of so many rows. */
static size_t piece_room(const struct bt_cuda_stream *stream, uint32_t rows)
{
    size_t groups = (rows + (size_t)BT_CUDA_PIECE_ROWS - 1) / BT_CUDA_PIECE_ROWS;
    return groups * group_pieces(stream, rows);
}

/* ---- memory ---- */

static void wait_for_all(struct bt_cuda_stream *stream)
{
    __atomic_fetch_add(&stream->device->waits, 1, __ATOMIC_RELAXED);
    bt_cuda_ok(stream, cudaStreamSynchronize(stream->stream));
}

static bool area_create(struct bt_cuda_stream *stream, struct area *area, size_t bytes)
{
    void *memory = NULL;
    if (bytes == 0)
        return true;
    if (cudaMalloc(&memory, bytes) != cudaSuccess)
        return false;
    *area = (struct area){memory, bytes};
    return cudaMemsetAsync(memory, 0, bytes, stream->stream) == cudaSuccess;
}

/* False: no memory, which the stream keeps as its fault. */
static bool area_reserve(struct bt_cuda_stream *stream, struct area *area, size_t bytes)
{
    void *memory = NULL;
    if (bytes <= area->bytes)
        return true;
    BT_ASSERT(!stream->capturing);
    bytes = round_up(bytes + bytes / 2, 256);
    wait_for_all(stream); /* what still reads the old one */
    bt_cuda_let_go(cudaFree(area->memory));
    *area = (struct area){NULL, 0};
    if (stream->fault != cudaSuccess || !bt_cuda_ok(stream, cudaMalloc(&memory, bytes)))
        return false;
    *area = (struct area){memory, bytes};
    return bt_cuda_ok(stream, cudaMemsetAsync(memory, 0, bytes, stream->stream));
}

static bool block_reserve(struct bt_cuda_stream *stream, struct block *block, size_t head,
                          size_t pages, size_t pieces, size_t adjusts)
{
    BT_ASSERT(!block->is_fixed || (head <= block->head.bytes && pages <= block->pages.bytes &&
                                   pieces <= block->pieces.bytes));
    BT_ASSERT(!block->is_fixed || adjusts <= block->adjusts.bytes);
    return area_reserve(stream, &block->head, head) && area_reserve(stream, &block->pages, pages) &&
           area_reserve(stream, &block->pieces, pieces) &&
           area_reserve(stream, &block->adjusts, adjusts);
}

static void block_destroy(struct block *block)
{
    bt_cuda_let_go(cudaFree(block->head.memory));
    bt_cuda_let_go(cudaFree(block->pages.memory));
    bt_cuda_let_go(cudaFree(block->pieces.memory));
    bt_cuda_let_go(cudaFree(block->adjusts.memory));
}

/* The next buffer of the ring, when the copies that read it are done; NULL: no memory. */
static struct pinned *take_pinned(struct bt_cuda_stream *stream, size_t bytes)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    struct pinned *pinned = &memory->ring[memory->next++ % RING];
    bt_cuda_ok(stream, cudaGetLastError()); /* that of a launch is not to be lost below */
    if (pinned->is_copying && cudaEventQuery(pinned->copied) != cudaSuccess) {
        (void)cudaGetLastError(); /* not ready */
        __atomic_fetch_add(&stream->device->waits, 1, __ATOMIC_RELAXED);
        bt_cuda_ok(stream, cudaEventSynchronize(pinned->copied));
    }
    pinned->is_copying = false;
    if (bytes > pinned->bytes) {
        void *block = NULL;
        BT_ASSERT(!stream->capturing);
        bt_cuda_let_go(cudaFreeHost(pinned->memory));
        *pinned = (struct pinned){.copied = pinned->copied};
        bytes = round_up(bytes + bytes / 2, 4096);
        if (stream->fault != cudaSuccess || !bt_cuda_ok(stream, cudaMallocHost(&block, bytes)))
            return NULL;
        pinned->memory = block;
        pinned->bytes = bytes;
    }
    return pinned;
}

static void give_pinned(struct bt_cuda_stream *stream, struct pinned *pinned)
{
    bt_cuda_ok(stream, cudaEventRecord(pinned->copied, stream->stream));
    pinned->is_copying = true;
}

static void copy_up(struct bt_cuda_stream *stream, void *to, const void *from, size_t bytes)
{
    if (bytes > 0)
        bt_cuda_ok(stream,
                   cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream->stream));
}

/* ---- writing ---- */

static uint32_t page_count_of(const struct bt_sequence_rows *sequence)
{
    return (sequence->start + sequence->row_count + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
}

static void add_piece(struct writer *to, uint32_t row, uint32_t begin, uint32_t end,
                      uint32_t number)
{
    uint32_t *piece = to->pieces + 4 * (size_t)to->piece_count++;
    piece[0] = row;
    piece[1] = begin;
    piece[2] = end;
    piece[3] = number;
}

/* Entries of a row, which has one at least; `room` is what its group has left for it. */
static void write_pieces(struct writer *to, uint32_t row, uint32_t seen, uint32_t room, bool split)
{
    uint32_t count = (seen + BT_CUDA_PIECE_TOKENS - 1) / BT_CUDA_PIECE_TOKENS;
    if (!split || count > room) {
        add_piece(to, row, 0, seen, 0);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        add_piece(to, row, i * BT_CUDA_PIECE_TOKENS, least(seen, (i + 1) * BT_CUDA_PIECE_TOKENS),
                  i);
}

/* Pieces of all rows; the rows' positions are there. */
static void write_all_pieces(struct writer *to, const struct set *set, uint32_t rows)
{
    uint32_t group_begin = to->piece_count;
    for (uint32_t row = 0; row < rows; row++) {
        if (row % BT_CUDA_PIECE_ROWS == 0)
            group_begin = to->piece_count;
        set->piece_begin[row] = to->piece_count;
        if (set->position[row] == BT_CUDA_NO_POSITION)
            continue;
        uint32_t behind = least(rows - row, BT_CUDA_PIECE_ROWS - row % BT_CUDA_PIECE_ROWS) - 1;
        uint32_t room = to->group_pieces - (to->piece_count - group_begin);
        write_pieces(to, row, set->position[row] + 1, room > behind ? room - behind : 0,
                     set->row_count[set->sequence[row]] <= BT_CUDA_PIECE_SPLIT_ROWS);
    }
    set->piece_begin[rows] = to->piece_count;
}

/* The page numbers of a sequence: where those of `known` are, if it is the same list, or new. */
static uint32_t write_pages(struct writer *to, const struct bt_sequence_rows *sequence,
                            const struct bt_sequence_rows *known, uint32_t known_begin)
{
    uint32_t count = page_count_of(sequence), begin = to->page_count;
    if (known && known->pages == sequence->pages && page_count_of(known) >= count)
        return known_begin;
    if (sequence->pages) /* NULL: of operations that read positions alone */
        memcpy(to->pages + begin, sequence->pages, count * sizeof(*to->pages));
    else
        memset(to->pages + begin, 0xff, count * sizeof(*to->pages));
    to->page_count += count;
    return begin;
}

static void write_rows(const struct set *set, uint32_t index,
                       const struct bt_sequence_rows *sequence, uint32_t rows)
{
    BT_ASSERT(sequence->first_row + sequence->row_count <= rows);
    set->start[index] = sequence->start;
    set->first_row[index] = sequence->first_row;
    set->row_count[index] = sequence->row_count;
    for (uint32_t i = 0; i < sequence->row_count; i++) {
        set->position[sequence->first_row + i] = sequence->start + i;
        set->sequence[sequence->first_row + i] = index;
    }
}

/* Sequences without rows are left out. `known`: sequences that were written before, in the order
 * of these, with page numbers at known_set->page_begin; NULL: none. */
static void write_set(struct writer *to, const struct set *set,
                      const struct bt_sequence_rows *sequences, uint32_t count, uint32_t live,
                      uint32_t rows, const struct bt_stage *known, const struct set *known_set)
{
    uint32_t index = 0, next = 0, next_index = 0, pieces = to->piece_count;
    memset(set->position, 0xff, rows * sizeof(*set->position));
    for (uint32_t s = 0; s < count; s++) {
        const struct bt_sequence_rows *other = NULL;
        uint32_t other_begin = 0;
        if (sequences[s].row_count == 0)
            continue;
        while (known && !other && next < known->sequence_count) {
            const struct bt_sequence_rows *at = &known->sequences[next++];
            other = at->row_count > 0 && at->pages == sequences[s].pages ? at : NULL;
            other_begin = at->row_count > 0 ? known_set->page_begin[next_index++] : 0;
        }
        set->page_begin[index] = write_pages(to, &sequences[s], other, other_begin);
        write_rows(set, index++, &sequences[s], rows);
    }
    write_all_pieces(to, set, rows);
    set->live[0] = live;
    set->live[1] = index;
    set->live[2] = to->piece_count - pieces;
    set->live[3] = 0;
}

static void write_lists(const struct head *to, const struct bt_stage *stage)
{
    size_t rows = stage->rows, wanted = stage->wanted_count;
    memset(to->tokens, 0, stage->padded_rows * sizeof(*to->tokens));
    memset(to->token_from, 0xff, stage->padded_rows * sizeof(*to->token_from));
    memset(to->draws, 0, stage->padded_wanted * sizeof(*to->draws));
    if (stage->tokens)
        memcpy(to->tokens, stage->tokens, rows * sizeof(*to->tokens));
    if (stage->token_from)
        memcpy(to->token_from, stage->token_from, rows * sizeof(*to->token_from));
    if (stage->draws)
        memcpy(to->draws, stage->draws, wanted * sizeof(*to->draws));
    if (stage->wanted)
        memcpy(to->wanted, stage->wanted, wanted * sizeof(*to->wanted));
    for (uint32_t i = stage->wanted ? stage->wanted_count : 0; i < stage->padded_wanted; i++)
        to->wanted[i] = i;
}

/* As kernels see the set that is at `set` of the device. */
static struct bt_cuda_rows view_of(const struct bt_cuda_stream *stream, const struct block *block,
                                   const struct set *set, uint32_t rows)
{
    return (struct bt_cuda_rows){
        .position = set->position,
        .sequence = set->sequence,
        .pages = (const uint32_t *)(const void *)block->pages.memory,
        .page_begin = set->page_begin,
        .start = set->start,
        .first_row = set->first_row,
        .row_count = set->row_count,
        .live = set->live,
        .rows = rows,
        .sequences = rows,
        .pieces = (const uint32_t *)(const void *)block->pieces.memory,
        .piece_count = set->live + 2,
        .piece_begin = set->piece_begin,
        .group_pieces = group_pieces(stream, rows),
    };
}

static size_t page_numbers(const struct bt_sequence_rows *sequences, uint32_t count)
{
    size_t sum = 0;
    for (uint32_t s = 0; s < count; s++)
        sum += sequences[s].row_count ? page_count_of(&sequences[s]) : 0;
    return sum;
}

/* Page numbers of the stage at most: those of wanted sequences are mostly the others' own. */
static size_t stage_pages(const struct bt_stage *stage)
{
    size_t pages = page_numbers(stage->sequences, stage->sequence_count);
    return pages + page_numbers(stage->wanted_sequences, stage->wanted_sequence_count);
}

/* Copies what is staged to the block. False: no memory, or a fault before. */
static bool upload(struct bt_cuda_stream *stream, struct block *block, const struct bt_stage *stage,
                   struct head *ret_head)
{
    uint32_t rows = stage->padded_rows, wanted = stage->padded_wanted;
    size_t head = round_up(head_bytes(rows, wanted), 256);
    size_t pages = round_up(stage_pages(stage) * sizeof(uint32_t), 256);
    size_t pieces = (piece_room(stream, rows) + piece_room(stream, wanted)) * 4 * sizeof(uint32_t);
    size_t adjusts = stage->adjust_count * sizeof(struct bt_adjust);
    struct pinned *pinned =
        bt_cuda_is_fine(stream) ? take_pinned(stream, head + pages + pieces + adjusts) : NULL;
    if (!pinned)
        return false;

    struct head host = head_at(pinned->memory, rows, wanted);
    struct writer to = {.pages = (uint32_t *)(void *)(pinned->memory + head),
                        .pieces = (uint32_t *)(void *)(pinned->memory + head + pages),
                        .group_pieces = group_pieces(stream, rows)};
    write_lists(&host, stage);
    write_set(&to, &host.batch, stage->sequences, stage->sequence_count, stage->rows, rows, NULL,
              NULL);
    write_set(&to, &host.wanted_rows, stage->wanted_sequences, stage->wanted_sequence_count,
              stage->wanted_count, wanted, stage, &host.batch);

    void *host_adjusts = pinned->memory + head + pages + pieces;
    if (adjusts > 0)
        memcpy(host_adjusts, stage->adjusts, adjusts);

    if (!block_reserve(stream, block, host.bytes, to.page_count * sizeof(uint32_t), pieces,
                       adjusts))
        return false;
    copy_up(stream, block->head.memory, host.draws, host.bytes);
    copy_up(stream, block->pages.memory, to.pages, to.page_count * sizeof(uint32_t));
    copy_up(stream, block->pieces.memory, to.pieces, to.piece_count * 4 * sizeof(uint32_t));
    copy_up(stream, block->adjusts.memory, host_adjusts, adjusts);
    give_pinned(stream, pinned);
    *ret_head = head_at(block->head.memory, rows, wanted);
    return true;
}

/* ---- rows.h ---- */

/* All that a stage within the limits may need, so that addresses stay. */
static bool create_fixed(struct bt_cuda_stream *stream, struct block *block)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    uint32_t rows = limits->max_rows;
    /* a wanted sequence whose list is another one than that of its batch has its numbers again */
    size_t pages = 2 * (size_t)limits->max_page_numbers * sizeof(uint32_t);
    size_t pieces = 2 * piece_room(stream, rows) * 4 * sizeof(uint32_t);
    block->is_fixed = true;
    return area_create(stream, &block->head, head_bytes(rows, rows)) &&
           area_create(stream, &block->pages, pages) &&
           area_create(stream, &block->pieces, pieces) &&
           area_create(stream, &block->adjusts, limits->max_adjusts * sizeof(struct bt_adjust));
}

static bool create_ring(struct bt_cuda_stream *stream, size_t bytes)
{
    for (unsigned i = 0; i < RING; i++) {
        struct pinned *pinned = &stream->rows->ring[i];
        void *memory = NULL;
        if (cudaEventCreateWithFlags(&pinned->copied, cudaEventDisableTiming) != cudaSuccess ||
            cudaMallocHost(&memory, bytes) != cudaSuccess)
            return false;
        pinned->memory = memory;
        pinned->bytes = bytes;
    }
    return true;
}

bool bt_cuda_rows_create(struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    size_t list = round_up(((size_t)limits->max_rows + 1) * sizeof(uint32_t), 256), pinned = 4096;
    struct bt_cuda_rows_memory *memory = stream->rows = calloc(1, sizeof(*memory));
    if (!memory || !area_create(stream, &memory->resolved, list) ||
        !area_create(stream, &memory->drawn, list) ||
        !area_create(stream, &memory->other_list, list))
        return false;
    if (limits->max_page_numbers > 0) {
        if (!create_fixed(stream, &memory->staged))
            return false;
        pinned = memory->staged.head.bytes + memory->staged.pages.bytes +
                 memory->staged.pieces.bytes + memory->staged.adjusts.bytes + 1024;
    }
    return create_ring(stream, pinned);
}

void bt_cuda_rows_destroy(struct bt_cuda_stream *stream)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    if (!memory)
        return;
    for (unsigned i = 0; i < RING; i++) {
        bt_cuda_let_go(cudaFreeHost(memory->ring[i].memory));
        if (memory->ring[i].copied)
            bt_cuda_let_go(cudaEventDestroy(memory->ring[i].copied));
    }
    block_destroy(&memory->staged);
    block_destroy(&memory->other);
    bt_cuda_let_go(cudaFree(memory->resolved.memory));
    bt_cuda_let_go(cudaFree(memory->other_list.memory));
    bt_cuda_let_go(cudaFree(memory->drawn.memory));
    free(memory);
    stream->rows = NULL;
}

void bt_cuda_stage(struct bt_stream *base, const struct bt_stage *stage)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    struct bt_cuda_rows_memory *memory = stream->rows;
    size_t list = stage->padded_rows * sizeof(uint32_t);
    BT_ASSERT(!stream->capturing);
    BT_ASSERT(stage->rows <= stage->padded_rows && stage->wanted_count <= stage->padded_wanted);
    BT_ASSERT(stage->adjust_count <= stream->base.limits.max_adjusts);
    for (uint32_t i = 0; stage->token_from && i < stage->rows; i++)
        BT_ASSERT(stage->token_from[i] == BT_TOKEN_GIVEN ||
                  stage->token_from[i] < stream->base.limits.max_rows);
    memory->stage = (struct bt_stage){0};
    BT_ASSERT(!memory->staged.is_fixed || list <= memory->resolved.bytes);
    if (!upload(stream, &memory->staged, stage, &memory->head) ||
        !area_reserve(stream, &memory->resolved, list) || !bt_cuda_is_fine(stream))
        return;
    memory->stage = *stage;
    memory->batch = view_of(stream, &memory->staged, &memory->head.batch, stage->padded_rows);
    memory->wanted =
        view_of(stream, &memory->staged, &memory->head.wanted_rows, stage->padded_wanted);
    bt_cuda_launch_resolve_tokens(memory->head.tokens, memory->head.token_from,
                                  bt_cuda_drawn(stream), stage->padded_rows,
                                  (uint32_t *)(void *)memory->resolved.memory, stream->stream);
}

struct bt_cuda_rows bt_cuda_rows_of(struct bt_cuda_stream *stream,
                                    const struct bt_sequence_rows *sequences,
                                    uint32_t sequence_count)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    const struct bt_stage *staged = &memory->stage;
    struct bt_stage stage = {.sequences = sequences, .sequence_count = sequence_count};
    struct head head;
    if (sequences && sequences == staged->sequences && sequence_count == staged->sequence_count)
        return memory->batch;
    if (sequences && sequences == staged->wanted_sequences &&
        sequence_count == staged->wanted_sequence_count)
        return memory->wanted;

    BT_ASSERT(!stream->capturing);
    for (uint32_t s = 0; s < sequence_count; s++) {
        uint32_t end = sequences[s].first_row + sequences[s].row_count;
        stage.rows = end > stage.rows && sequences[s].row_count > 0 ? end : stage.rows;
    }
    stage.padded_rows = stage.rows;
    if (!upload(stream, &memory->other, &stage, &head))
        return (struct bt_cuda_rows){0};
    return view_of(stream, &memory->other, &head.batch, stage.rows);
}

/* Copies a list, and one that is behind it, in place of those before. NULL: no memory, or an empty
 * list. */
static void *upload_lists(struct bt_cuda_stream *stream, const void *list, size_t bytes,
                          const void *behind, size_t behind_bytes)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    BT_ASSERT(!stream->capturing);
    if (bytes == 0 || !bt_cuda_is_fine(stream) ||
        !area_reserve(stream, &memory->other_list, bytes + behind_bytes))
        return NULL;
    struct pinned *pinned = take_pinned(stream, bytes + behind_bytes);
    if (!pinned)
        return NULL;
    memcpy(pinned->memory, list, bytes);
    if (behind_bytes > 0)
        memcpy(pinned->memory + bytes, behind, behind_bytes);
    copy_up(stream, memory->other_list.memory, pinned->memory, bytes + behind_bytes);
    give_pinned(stream, pinned);
    return memory->other_list.memory;
}

const uint32_t *bt_cuda_list_of(struct bt_cuda_stream *stream, const uint32_t *list, uint32_t count)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    if (list && list == memory->stage.tokens && count <= memory->stage.padded_rows)
        return (const uint32_t *)(const void *)memory->resolved.memory;
    if (list && list == memory->stage.wanted && count <= memory->stage.padded_wanted)
        return memory->head.wanted;
    return upload_lists(stream, list, count * sizeof(*list), NULL, 0);
}

/* Adjusts that the draws know of. */
static uint32_t adjust_end(const struct bt_draw *draws, uint32_t count)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t of_row = draws[i].bias_count + draws[i].masked_count + draws[i].seen_count;
        uint32_t end = of_row > 0 ? draws[i].adjust_begin + of_row : 0;
        most = end > most ? end : most;
    }
    return most;
}

struct bt_cuda_draws bt_cuda_draws_of(struct bt_cuda_stream *stream, const struct bt_draw *draws,
                                      const struct bt_adjust *adjusts, uint32_t count)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    size_t bytes = count * sizeof(*draws);
    if (draws && draws == memory->stage.draws && count <= memory->stage.padded_wanted)
        return (struct bt_cuda_draws){
            memory->head.draws,
            (const struct bt_adjust *)(const void *)memory->staged.adjusts.memory};
    uint32_t end = adjust_end(draws, count);
    BT_ASSERT(end <= stream->base.limits.max_adjusts);
    unsigned char *there = upload_lists(stream, draws, bytes, adjusts, end * sizeof(*adjusts));
    return (struct bt_cuda_draws){(const struct bt_draw *)(const void *)there,
                                  there ? (const struct bt_adjust *)(const void *)(there + bytes)
                                        : NULL};
}

uint32_t *bt_cuda_drawn(struct bt_cuda_stream *stream)
{
    return (uint32_t *)(void *)stream->rows->drawn.memory;
}

const uint32_t *bt_cuda_live_rows(struct bt_cuda_stream *stream, uint32_t rows)
{
    struct bt_cuda_rows_memory *memory = stream->rows;
    if (memory->stage.padded_rows == 0)
        return NULL;
    if (rows == memory->stage.padded_rows)
        return memory->batch.live;
    return rows == memory->stage.padded_wanted ? memory->wanted.live : NULL;
}
