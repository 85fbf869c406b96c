#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/rails/internal.h"

#define PIECES_OF_A_WRITE 64

static const struct kvt_transport_ops *line_ops(const struct kvt_rails_line *line)
{
    return line->owner->rails->rails[line->rail].rail.transport->ops;
}

static const char *line_device(const struct kvt_rails_line *line)
{
    return line->owner->rails->rails[line->rail].rail.device;
}

/* ---- pieces and writes ---- */

static void pieces_append(struct kvt_rails_pieces *pieces, struct kvt_rails_piece *piece)
{
    piece->next = NULL;
    piece->previous = pieces->last;
    *(pieces->last != NULL ? &pieces->last->next : &pieces->first) = piece;
    pieces->last = piece;
}

static void pieces_remove(struct kvt_rails_pieces *pieces, struct kvt_rails_piece *piece)
{
    *(piece->previous != NULL ? &piece->previous->next : &pieces->first) = piece->next;
    *(piece->next != NULL ? &piece->next->previous : &pieces->last) = piece->previous;
}

static struct kvt_rails_piece *piece_take(struct kvt_rails *rails)
{
    struct kvt_rails_piece *piece = rails->free_pieces;

    rails->free_pieces = piece->next;
    return piece;
}

static void piece_free(struct kvt_rails *rails, struct kvt_rails_piece *piece)
{
    piece->next = rails->free_pieces;
    rails->free_pieces = piece;
}

static bool has_free_pieces(const struct kvt_rails *rails, uint32_t count)
{
    const struct kvt_rails_piece *piece = rails->free_pieces;

    while (count > 0 && piece != NULL) {
        piece = piece->next;
        count--;
    }
    return count == 0;
}

static struct kvt_rails_op *op_open(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct kvt_rails_op *op = peer->rails->free_ops;

    peer->rails->free_ops = op->next;
    *op = (struct kvt_rails_op){.peer = peer, .done = done, .context = context, .next = peer->ops};
    if (peer->ops != NULL)
        peer->ops->previous = op;
    peer->ops = op;
    return op;
}

static void op_free(struct kvt_rails_op *op)
{
    struct kvt_peer *peer = op->peer;

    *(op->previous != NULL ? &op->previous->next : &peer->ops) = op->next;
    if (op->next != NULL)
        op->next->previous = op->previous;
    op->next = peer->rails->free_ops;
    peer->rails->free_ops = op;
}

static void op_end(struct kvt_rails_op *op, enum bt_status status)
{
    kvt_completion_fn *done = op->done;
    void *context = op->context;

    op_free(op);
    if (done != NULL)
        done(context, status);
}

/* The line's transport is through with it: the source memory is the caller's again, but for the
 * repeat that the failure of the line before its flush would need. */
static void piece_written(struct kvt_rails_piece *piece, bool tell)
{
    struct kvt_rails_op *op = piece->op;

    piece->op = NULL;
    if (op != NULL && --op->pieces_left == 0 && tell)
        op_end(op, BT_OK);
}

static void line_drop_piece(struct kvt_rails_line *line, struct kvt_rails_piece *piece)
{
    pieces_remove(&line->pieces, piece);
    line->unflushed--;
    piece_free(line->owner->rails, piece);
}

static void on_written(void *context, enum bt_status status)
{
    struct kvt_rails_piece *piece = context;
    struct kvt_rails_line *line = &piece->peer->lines[piece->line];

    piece->out = false;
    line->load.queued -= piece->bytes;
    if (status != BT_OK && piece->sequence > line->flushed) {
        line->lost = true; /* the piece is repeated when the line is taken out */
        return;
    }
    piece_written(piece, true);
    if (piece->sequence <= line->flushed)
        line_drop_piece(line, piece);
}

static void count_written(struct kvt_rails_line *line, const struct kvt_rails_piece *piece)
{
    struct kvt_rails_rail *rail = &line->owner->rails->rails[line->rail];

    atomic_fetch_add_explicit(&rail->bytes, piece->bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&rail->writes, 1, memory_order_relaxed);
}

static void line_take_piece(struct kvt_rails_line *line, struct kvt_rails_piece *piece,
                            enum bt_status status)
{
    piece->line = (uint32_t)(line - line->owner->lines);
    piece->sequence = ++line->posted;
    piece->out = status == BT_IN_PROGRESS;
    pieces_append(&line->pieces, piece);
    line->unflushed++;
    line->load.given += piece->bytes;
    *(piece->out ? &line->load.queued : &line->burst) += piece->bytes;
    line->flush_wanted = line->flush_wanted || line->unflushed >= KVT_RAILS_FLUSH_EVERY;
    count_written(line, piece);
}

/* Only lines that were up when the write was first posted will do: a target that has closed those
 * since must not be written to over a new one. BT_OK, IN_PROGRESS: a line has it. EXHAUSTED: later.
 * PEER_LOST: no line is left. Others: refused by the line's transport. */
static enum bt_status post(struct kvt_peer *peer, struct kvt_rails_piece *piece)
{
    struct kvt_rails_load loads[KVT_RAILS_MAX];
    enum bt_status result = BT_ERR_PEER_LOST;

    for (uint32_t i = 0; i < peer->line_count; i++) {
        loads[i] = peer->lines[i].load;
        loads[i].queued += peer->lines[i].burst;
        loads[i].usable = peer->lines[i].ready && !peer->lines[i].lost &&
                          peer->lines[i].up_serial < piece->serial;
    }
    for (;;) {
        uint32_t chosen = kvt_rails_choose(loads, peer->line_count, piece->bytes);
        struct kvt_rails_line *line = &peer->lines[chosen];
        enum bt_status status;
        if (chosen == peer->line_count)
            return result;
        status = line_ops(line)->write(line->peer, piece->source, piece->bytes,
                                       piece->remote_address, on_written, piece);
        if (status >= 0) {
            line_take_piece(line, piece, status);
            return status;
        }
        loads[chosen].usable = false;
        if (status == BT_ERR_EXHAUSTED)
            result = status;
        else if (status == BT_ERR_PEER_LOST)
            line->lost = true;
        else
            return status;
    }
}

static void peer_fail(struct kvt_peer *peer, enum bt_status status, const char *why)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    if (peer->error.status == BT_OK)
        bt_error_set(&peer->error, status, "%s", why);
    peer->state = KVT_PEER_FAILED;
}

static uint32_t lines_up(const struct kvt_peer *peer)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < peer->line_count; i++)
        count += peer->lines[i].ready && !peer->lines[i].lost;
    return count;
}

static uint64_t piece_bytes(const struct kvt_peer *peer, uint64_t bytes)
{
    uint64_t size = (bytes + PIECES_OF_A_WRITE - 1) / PIECES_OF_A_WRITE;

    if (lines_up(peer) < 2 || bytes < 2 * KVT_RAILS_PIECE_BYTES)
        return bytes;
    return size < KVT_RAILS_PIECE_BYTES ? KVT_RAILS_PIECE_BYTES : size;
}

enum bt_status kvt_rails_write(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    uint64_t step = piece_bytes(peer, bytes);
    uint32_t count = (uint32_t)((bytes + step - 1) / step);
    struct kvt_rails_op *op;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (peer->waiting.first != NULL)
        return BT_ERR_EXHAUSTED;
    if (!has_free_pieces(peer->rails, count)) {
        for (uint32_t i = 0; i < peer->line_count; i++)
            peer->lines[i].flush_wanted = true; /* that gives pieces back */
        return BT_ERR_EXHAUSTED;
    }
    op = op_open(peer, done, context);
    op->pieces_left = count;
    peer->serial++;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = i * step;
        struct kvt_rails_piece *piece = piece_take(peer->rails);
        enum bt_status status;
        *piece = (struct kvt_rails_piece){.peer = peer,
                                          .op = op,
                                          .serial = peer->serial,
                                          .source = (const char *)source + at,
                                          .bytes = bytes - at < step ? bytes - at : step,
                                          .remote_address = remote_address + at};
        status = peer->waiting.first == NULL ? post(peer, piece) : BT_ERR_EXHAUSTED;
        if (status == BT_OK) {
            piece_written(piece, false);
        } else if (status < 0 && i == 0) {
            piece_free(peer->rails, piece);
            op_free(op);
            return status;
        } else if (status < 0) { /* part of it is under way: it goes on, or ends with the peer */
            pieces_append(&peer->waiting, piece);
            if (status != BT_ERR_EXHAUSTED)
                peer_fail(peer, status, "a part of a write could not be posted");
        }
    }
    if (op->pieces_left > 0)
        return BT_IN_PROGRESS;
    op_free(op);
    return BT_OK;
}

/* ---- flushing ---- */

static void line_flushed(struct kvt_rails_line *line, uint64_t sequence)
{
    struct kvt_rails_piece *piece = line->pieces.first, *next;

    line->flushed = sequence;
    for (; piece != NULL && piece->sequence <= sequence; piece = next) {
        next = piece->next;
        if (!piece->out) /* else its call back is due */
            line_drop_piece(line, piece);
    }
}

static void on_flushed(void *context, enum bt_status status)
{
    struct kvt_rails_line *line = context;

    line->flush_out = false;
    if (status == BT_OK)
        line_flushed(line, line->flush_sequence);
    else
        line->lost = true;
}

static bool line_must_flush(const struct kvt_rails_line *line, uint32_t index)
{
    const struct kvt_peer *peer = line->owner;

    if (!line->ready || line->lost || line->flush_out || line->posted == line->flushed)
        return false;
    if (line->flush_wanted)
        return true;
    for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++) {
        const struct kvt_rails_flush *flush = &peer->flushes[i];
        if (flush->done != NULL && flush->armed && flush->wanted[index] > line->flushed)
            return true;
    }
    return false;
}

static bool lines_flush(struct kvt_peer *peer)
{
    bool any = false;

    for (uint32_t i = 0; i < peer->line_count; i++) {
        struct kvt_rails_line *line = &peer->lines[i];
        enum bt_status status;
        if (!line_must_flush(line, i))
            continue;
        line->flush_sequence = line->posted;
        line->flush_out = true;
        status = line_ops(line)->flush(line->peer, on_flushed, line);
        if (status == BT_ERR_EXHAUSTED) {
            line->flush_out = false;
            continue;
        }
        line->flush_wanted = false;
        if (status != BT_IN_PROGRESS)
            on_flushed(line, status);
        any = true;
    }
    return any;
}

static void arm(struct kvt_peer *peer, struct kvt_rails_flush *flush)
{
    for (const struct kvt_rails_piece *p = peer->waiting.first; p != NULL; p = p->next)
        if (p->serial <= flush->serial)
            return;
    for (uint32_t i = 0; i < peer->line_count; i++)
        flush->wanted[i] = peer->lines[i].posted;
    flush->armed = true;
}

static bool flush_is_over(const struct kvt_peer *peer, const struct kvt_rails_flush *flush)
{
    if (!flush->armed)
        return false;
    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].ready && peer->lines[i].flushed < flush->wanted[i])
            return false;
    return true;
}

static void flush_end(struct kvt_peer *peer, struct kvt_rails_flush *flush, enum bt_status status)
{
    kvt_completion_fn *done = flush->done;

    flush->done = NULL;
    peer->flush_count--;
    done(flush->context, status);
}

static bool flushes_step(struct kvt_peer *peer)
{
    bool any = false;

    if (peer->flush_count > 0)
        for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++)
            if (peer->flushes[i].done != NULL && !peer->flushes[i].armed)
                arm(peer, &peer->flushes[i]);
    any = lines_flush(peer);
    if (peer->flush_count == 0)
        return any;
    for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++) {
        struct kvt_rails_flush *flush = &peer->flushes[i];
        if (flush->done == NULL || !flush_is_over(peer, flush))
            continue;
        flush_end(peer, flush, BT_OK);
        any = true;
    }
    return any;
}

enum bt_status kvt_rails_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct kvt_rails_flush *flush = peer->flushes;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (peer->flush_count == KVT_RAILS_FLUSHES)
        return BT_ERR_EXHAUSTED;
    while (flush->done != NULL)
        flush++;
    *flush = (struct kvt_rails_flush){.done = done, .context = context, .serial = peer->serial};
    peer->flush_count++;
    arm(peer, flush);
    lines_flush(peer);
    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].lost)
            return BT_IN_PROGRESS; /* taken out by the next step, which repeats what it had */
    if (!flush_is_over(peer, flush))
        return BT_IN_PROGRESS;
    flush->done = NULL;
    peer->flush_count--;
    return BT_OK;
}

/* ---- lines ---- */

static void repeat_pieces(struct kvt_rails_line *line)
{
    struct kvt_peer *peer = line->owner;
    struct kvt_rails_rail *rail = &peer->rails->rails[line->rail];

    while (line->pieces.first != NULL) {
        struct kvt_rails_piece *piece = line->pieces.first;
        pieces_remove(&line->pieces, piece);
        pieces_append(&peer->waiting, piece);
        atomic_fetch_add_explicit(&rail->repeats, 1, memory_order_relaxed);
    }
    line->unflushed = 0;
    line->load.queued = line->burst = 0;
    for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++)
        peer->flushes[i].armed = false;
}

static int64_t again_after_ns(uint32_t tries)
{
    int64_t after_ns = KVT_RAILS_AGAIN_MIN_NS;

    while (tries-- > 0 && after_ns < KVT_RAILS_AGAIN_MAX_NS)
        after_ns *= 2;
    return after_ns;
}

/* What it had under way may still arrive after this: it becomes a cut. */
static void line_take_out(struct kvt_rails_line *line, const char *why)
{
    struct kvt_peer *peer = line->owner, *inner = line->peer;
    struct kvt_rails_rail *rail = &peer->rails->rails[line->rail];
    int64_t now_ns = bt_clock_now_ns();

    line->peer = NULL;
    if (line->ready)
        atomic_fetch_sub_explicit(&rail->lines, 1, memory_order_relaxed);
    if (line->posted > line->flushed)
        peer->cuts |= UINT64_C(1) << line->number;
    if (!peer->closing) {
        atomic_fetch_add_explicit(&rail->failures, 1, memory_order_relaxed);
        bt_log_warn(
            0, "rail %s to rail %" PRIu32 " of its peer is out: %s; %" PRIu32 " writes to repeat",
            line_device(line), line->target_rail, why, line->unflushed);
    }
    line_ops(line)->peer_close(inner);
    if (line->ready && now_ns - line->up_since_ns > KVT_RAILS_AGAIN_MAX_NS)
        line->tries = 0;
    line->again_ns = now_ns + again_after_ns(line->tries++);
    line->ready = line->lost = line->flush_out = line->flush_wanted = false;
    line->up_by_ns = 0;
    repeat_pieces(line);
    line->flushed = line->posted; /* the next connection owes nothing, should it never come up */
}

/* A connection that was up keeps its number for ever: it may be a cut, and be told again. */
static void peer_use_number(const struct kvt_rails_line *line)
{
    struct kvt_peer *peer = line->owner;

    if (line->number >= peer->next_number)
        peer->next_number = line->number + 1;
}

static void line_came_up(struct kvt_rails_line *line)
{
    struct kvt_rails_rail *rail = &line->owner->rails->rails[line->rail];

    line->ready = true;
    line->up_by_ns = 0;
    line->up_since_ns = bt_clock_now_ns();
    line->up_serial = line->owner->serial;
    peer_use_number(line);
    line->transport = line_ops(line)->peer_transport(line->peer);
    atomic_store(&rail->transport, line->transport);
    atomic_fetch_add_explicit(&rail->lines, 1, memory_order_relaxed);
    bt_log_info(0, "rail %s to rail %" PRIu32 " of its peer is up: %s, %" PRIu64 " Mb/s",
                line_device(line), line->target_rail, line->transport, line->load.rate);
}

static enum bt_status line_connect(struct kvt_rails_line *line, uint32_t number,
                                   struct bt_error *error)
{
    const struct kvt_peer *peer = line->owner;
    const struct kvt_rails_part *address = &peer->addresses[line->target_rail];
    const struct kvt_rails_part *key = &peer->keys[line->target_rail];
    struct kvt_origin origin = peer->origin;
    enum bt_status status;

    line->number = origin.line = number;
    status =
        line_ops(line)->connect(peer->rails->rails[line->rail].rail.transport, address->bytes,
                                address->size, key->bytes, key->size, &origin, error, &line->peer);
    if (status != BT_OK)
        line->peer = NULL;
    return status;
}

/* The lowest that no connection had that was up, and that no other one is trying. */
static uint32_t free_number(const struct kvt_peer *peer)
{
    uint32_t number = peer->next_number;

    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].peer != NULL && peer->lines[i].number >= number)
            number = peer->lines[i].number + 1;
    return number;
}

static bool line_try_again(struct kvt_rails_line *line, int64_t now_ns)
{
    uint32_t number = free_number(line->owner);
    struct bt_error why = {0};

    if (line->owner->state != KVT_PEER_READY || now_ns < line->again_ns)
        return false;
    if (number >= KVT_LINES_MAX) {
        line->again_ns = BT_NEVER_NS; /* until the link is made anew */
        return false;
    }
    line->up_by_ns = now_ns + KVT_RAILS_UP_NS;
    if (line_connect(line, number, &why) == BT_OK)
        return true;
    line->again_ns = now_ns + again_after_ns(line->tries++);
    line->up_by_ns = 0;
    return false;
}

static bool line_step(struct kvt_rails_line *line)
{
    enum kvt_peer_state state;

    if (line->peer == NULL)
        return line_try_again(line, bt_clock_now_ns());
    line->burst = 0;
    state = line_ops(line)->peer_state(line->peer);
    if (state == KVT_PEER_FAILED || line->lost) {
        char why[128];
        snprintf(why, sizeof(why), "%s", line_ops(line)->peer_error(line->peer));
        line_take_out(line, why[0] != '\0' ? why : "a write or flush failed");
        return true;
    }
    if (state == KVT_PEER_READY && !line->ready) {
        line_came_up(line);
        return true;
    }
    if (line->up_by_ns != 0 && bt_clock_now_ns() >= line->up_by_ns) {
        line_take_out(line, "not up in time");
        return true;
    }
    return false;
}

/* READY once every line is up or out, or stragglers have had their time. */
static bool settle_state(struct kvt_peer *peer)
{
    uint32_t up = 0, undecided = 0;

    for (uint32_t i = 0; i < peer->line_count; i++) {
        up += peer->lines[i].ready;
        undecided += peer->lines[i].peer != NULL && !peer->lines[i].ready;
    }
    if (up == 0 && (undecided == 0 || peer->state == KVT_PEER_READY)) {
        peer_fail(peer, BT_ERR_PEER_LOST, "no rail is left");
        return true;
    }
    if (peer->state == KVT_PEER_READY || up == 0)
        return false;
    if (undecided > 0 && peer->give_up_ns == 0)
        peer->give_up_ns = bt_clock_now_ns() + KVT_RAILS_STRAGGLE_NS;
    if (undecided > 0 && bt_clock_now_ns() < peer->give_up_ns)
        return false;
    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].peer != NULL && !peer->lines[i].ready)
            line_take_out(&peer->lines[i], "not up in time");
    peer->give_up_ns = 0;
    peer->state = KVT_PEER_READY;
    return true;
}

static bool post_waiting(struct kvt_peer *peer)
{
    bool any = false;

    while (peer->waiting.first != NULL) {
        struct kvt_rails_piece *piece = peer->waiting.first;
        struct kvt_rails_piece before = *piece;
        enum bt_status status;
        pieces_remove(&peer->waiting, piece);
        status = post(peer, piece);
        if (status < 0) { /* back to the front */
            *piece = before;
            piece->next = peer->waiting.first;
            *(piece->next != NULL ? &piece->next->previous : &peer->waiting.last) = piece;
            peer->waiting.first = piece;
            if (status == BT_ERR_PEER_LOST && lines_up(peer) > 0)
                peer_fail(peer, status, "no rail is left that was up when a write was posted");
            else if (status != BT_ERR_EXHAUSTED && status != BT_ERR_PEER_LOST)
                peer_fail(peer, status, "a write could not be repeated");
            return any;
        }
        if (status == BT_OK)
            piece_written(piece, true);
        any = true;
    }
    return any;
}

bool kvt_rails_peer_step(struct kvt_peer *peer)
{
    bool any = false;

    if (peer->state == KVT_PEER_FAILED)
        return false;
    for (uint32_t i = 0; i < peer->line_count; i++)
        any = line_step(&peer->lines[i]) || any;
    any = settle_state(peer) || any;
    if (peer->state != KVT_PEER_READY)
        return any;
    any = post_waiting(peer) || any;
    return flushes_step(peer) || any;
}

/* ---- the peer ---- */

static void set_rates(struct kvt_peer *peer)
{
    uint32_t here[KVT_RAILS_MAX] = {0}, there[KVT_RAILS_MAX] = {0};

    for (uint32_t i = 0; i < peer->line_count; i++) {
        here[peer->lines[i].rail]++;
        there[peer->lines[i].target_rail]++;
    }
    for (uint32_t i = 0; i < peer->line_count; i++) {
        struct kvt_rails_line *line = &peer->lines[i];
        uint64_t mine = peer->rails->rails[line->rail].rail.rate_mbps / here[line->rail];
        uint64_t theirs = peer->addresses[line->target_rail].rate_mbps / there[line->target_rail];
        line->load.rate = mine < theirs ? mine : theirs;
        if (line->load.rate == 0)
            line->load.rate = 1;
    }
}

static enum bt_status lines_connect(struct kvt_peer *peer, uint32_t count, struct bt_error *error)
{
    struct kvt_rails *rails = peer->rails;
    enum bt_status status, result = BT_ERR_UNAVAILABLE;

    peer->line_count = rails->count > count ? rails->count : count;
    for (uint32_t i = 0; i < peer->line_count; i++) {
        struct kvt_rails_line *line = &peer->lines[i];
        struct bt_error why = {0};
        line->owner = peer;
        line->transport = "";
        line->rail = i % rails->count;
        line->target_rail = i % count;
        status = line_connect(line, i, &why);
        if (status == BT_OK) {
            result = BT_OK;
            continue;
        }
        bt_log_warn(0, "rail %s to rail %" PRIu32 " of its peer: %s", line_device(line),
                    line->target_rail, why.text);
        if (result != BT_OK) {
            result = status;
            if (error != NULL)
                *error = why;
        }
    }
    set_rates(peer);
    return result;
}

static void *copy(const void *bytes, size_t size)
{
    void *result = malloc(size + 1);

    if (result != NULL && size > 0)
        memcpy(result, bytes, size);
    return result;
}

static void peer_free(struct kvt_peer *peer)
{
    free(peer->address);
    free(peer->key);
    free(peer);
}

/* The blobs are kept: a line that is out is connected again. */
static enum bt_status unpack_remote(struct kvt_peer *peer, const void *address, size_t address_size,
                                    const void *key, size_t key_size, struct bt_error *error,
                                    uint32_t *ret_count)
{
    uint32_t key_count = 0;
    enum bt_status status;

    peer->address = copy(address, address_size);
    peer->key = copy(key, key_size);
    if (peer->address == NULL || peer->key == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the rails of a peer");
    status = kvt_rails_unpack(KVT_BLOB_RAILS_ADDRESS, peer->address, address_size, error,
                              peer->addresses, ret_count);
    if (status == BT_OK)
        status = kvt_rails_unpack(KVT_BLOB_RAILS_KEY, peer->key, key_size, error, peer->keys,
                                  &key_count);
    if (status == BT_OK && *ret_count != key_count)
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "rails: addresses of %" PRIu32 ", keys of %" PRIu32, *ret_count,
                            key_count);
    return status;
}

enum bt_status kvt_rails_connect(struct kvt_transport *base, const void *address,
                                 size_t address_size, const void *key, size_t key_size,
                                 const struct kvt_origin *origin, struct bt_error *error,
                                 struct kvt_peer **ret_peer)
{
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    uint32_t count = 0;
    enum bt_status status;

    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the rails of a peer");
    peer->rails = (struct kvt_rails *)base;
    peer->origin = *origin;
    peer->state = KVT_PEER_CONNECTING;
    status = unpack_remote(peer, address, address_size, key, key_size, error, &count);
    if (status == BT_OK)
        status = lines_connect(peer, count, error);
    if (status != BT_OK) {
        peer_free(peer);
        return status;
    }
    peer->next = peer->rails->peers;
    peer->rails->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

static int64_t earlier(int64_t a_ns, int64_t b_ns)
{
    return b_ns != 0 && b_ns < a_ns ? b_ns : a_ns;
}

int64_t kvt_rails_peer_deadline_ns(const struct kvt_peer *peer)
{
    int64_t deadline_ns = BT_NEVER_NS;

    if (peer->state == KVT_PEER_CONNECTING)
        return earlier(deadline_ns, peer->give_up_ns);
    for (uint32_t i = 0; i < peer->line_count && peer->state == KVT_PEER_READY; i++) {
        const struct kvt_rails_line *line = &peer->lines[i];
        deadline_ns = earlier(deadline_ns, line->peer == NULL ? line->again_ns : line->up_by_ns);
    }
    return deadline_ns;
}

void kvt_rails_peer_close(struct kvt_peer *peer)
{
    struct kvt_rails *rails = peer->rails;
    struct kvt_peer **at = &rails->peers;

    peer->closing = true;
    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].peer != NULL)
            line_take_out(&peer->lines[i], "closing");
    while (peer->waiting.first != NULL) {
        struct kvt_rails_piece *piece = peer->waiting.first;
        pieces_remove(&peer->waiting, piece);
        piece_free(rails, piece);
    }
    while (peer->ops != NULL)
        op_end(peer->ops, BT_ERR_PEER_LOST);
    for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++)
        if (peer->flushes[i].done != NULL)
            flush_end(peer, &peer->flushes[i], BT_ERR_PEER_LOST);
    while (*at != peer)
        at = &(*at)->next;
    *at = peer->next;
    peer_free(peer);
}
