/* Messages in an arena: the same as on the heap, bounded alike, and gone at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/messaging/rpc.h"
#include "common/messaging/wire.h"
#include "proto/worker.pb-c.h"

#define SEQUENCES 500

static void test_marks_nest(void **state)
{
    (void)state;
    struct bt_arena arena = {0};
    struct bt_arena_mark outer = bt_arena_mark(&arena);
    char *kept = bt_arena_alloc(&arena, 100);
    memset(kept, 'k', 100);
    struct bt_arena_mark inner = bt_arena_mark(&arena);
    for (size_t size = 1; size < 4 * BT_ARENA_KEPT_BYTES; size *= 3) {
        void *memory = bt_arena_alloc(&arena, size);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % _Alignof(max_align_t), 0);
        memset(memory, 'x', size);
    }
    bt_arena_release(&arena, inner);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(kept[i], 'k');
    }
    void *again = bt_arena_alloc(&arena, 10);
    assert_true((char *)again >= kept + 100); /* behind what was there, in the same block */
    assert_true((char *)again < kept + BT_ARENA_KEPT_BYTES);
    bt_arena_release(&arena, outer);
    assert_ptr_equal(bt_arena_alloc(&arena, 100), kept);
    bt_arena_finish(&arena);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct bt_arena arena = {0};
    assert_null(bt_arena_alloc(&arena, SIZE_MAX));
    assert_non_null(bt_arena_alloc(&arena, 1));
    bt_arena_finish(&arena);
}

static size_t pack_step(uint8_t **ret_bytes)
{
    static Baton__V1__Token tokens[SEQUENCES], *token_at[SEQUENCES];
    static Baton__V1__SequenceStep steps[SEQUENCES], *step_at[SEQUENCES];
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        baton__v1__token__init(&tokens[i]);
        baton__v1__sequence_step__init(&steps[i]);
        tokens[i].index = tokens[i].token = i;
        token_at[i] = &tokens[i];
        step_at[i] = &steps[i];
        steps[i].request_id = i + 1;
        steps[i].error = (char *)(i % 7 ? "" : "why");
        steps[i].n_tokens = 1;
        steps[i].tokens = &token_at[i];
    }
    event.n_sequences = SEQUENCES;
    event.sequences = step_at;
    *ret_bytes = malloc(baton__v1__step_event__get_packed_size(&event));
    assert_non_null(*ret_bytes);
    return baton__v1__step_event__pack(&event, *ret_bytes);
}

static void test_reads_what_was_sent(void **state)
{
    (void)state;
    struct bt_arena arena = {0};
    uint8_t *bytes, *again;
    size_t size = pack_step(&bytes);
    again = malloc(size);
    assert_non_null(again);
    for (int round = 0; round < 3; round++) {
        struct bt_arena_mark mark = bt_arena_mark(&arena);
        ProtobufCMessage *message =
            bt_wire_unpack_in(&arena, &baton__v1__step_event__descriptor, bytes, size);
        assert_non_null(message);
        assert_int_equal(protobuf_c_message_pack(message, again), size);
        assert_memory_equal(again, bytes, size);
        bt_arena_release(&arena, mark);
    }
    free(again);
    free(bytes);
    bt_arena_finish(&arena);
}

/* Cut anywhere, it does not parse or is another message; nothing of it stays. */
static void test_broken(void **state)
{
    (void)state;
    struct bt_arena arena = {0};
    uint8_t *bytes;
    size_t size = pack_step(&bytes), refused = 0;
    for (size_t cut = 0; cut < size; cut += 1 + cut / 50) {
        struct bt_arena_mark mark = bt_arena_mark(&arena);
        refused += !bt_wire_unpack_in(&arena, &baton__v1__step_event__descriptor, bytes, cut);
        bt_arena_release(&arena, mark);
    }
    assert_true(refused > 100);
    free(bytes);
    bt_arena_finish(&arena);
}

/* Two bytes on the wire can be an object of a hundred: as many as may come are too much. */
static void test_huge_count(void **state)
{
    (void)state;
    struct bt_arena arena = {0};
    size_t size = BT_RPC_MAX_MESSAGE_BYTES / 8;
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    for (size_t i = 0; i < size; i += 2) {
        bytes[i] = 2 << 3 | 2; /* field 2, sequences: of no bytes */
        bytes[i + 1] = 0;
    }
    struct bt_arena_mark mark = bt_arena_mark(&arena);
    assert_null(bt_wire_unpack_in(&arena, &baton__v1__step_event__descriptor, bytes, size));
    bt_arena_release(&arena, mark);
    free(bytes);
    bt_arena_finish(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks_nest),          cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_reads_what_was_sent), cmocka_unit_test(test_broken),
        cmocka_unit_test(test_huge_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
