#include "tests/conformance/parallel/cases.h"

void check_barrier(struct bt_group *group)
{
    for (int i = 0; i < 20; i++)
        CHECK(bt_group_barrier(group) == BT_OK);
}

static void fill(unsigned char *data, size_t bytes, uint64_t stream)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)(i * 131 + (i >> 8) * 17 + stream * 29);
}

static void broadcast_once(struct bt_group *group, uint32_t root, size_t bytes, size_t room)
{
    unsigned char *data = malloc(room + 1), *wanted = malloc(bytes + 1);
    size_t came = SIZE_MAX;
    bool is_root = bt_group_rank(group) == root;

    CHECK(data && wanted && bytes <= room);
    memset(data, 0xee, room + 1);
    fill(wanted, bytes, root + bytes);
    if (is_root)
        memcpy(data, wanted, bytes);
    CHECK(bt_group_broadcast(group, root, data, is_root ? bytes : room, &came) == BT_OK);
    CHECK(came == bytes && memcmp(data, wanted, bytes) == 0);
    CHECK(is_root || bytes == room || data[bytes] == 0xee);
    free(data);
    free(wanted);
}

/* Who has too little room keeps what fits, and the group goes on. */
static void broadcast_too_long(struct bt_group *group)
{
    unsigned char data[300], wanted[300];
    size_t came = 0;
    bool is_root = bt_group_rank(group) == 0;

    fill(wanted, sizeof(wanted), 3);
    memset(data, 0xee, sizeof(data));
    if (is_root)
        memcpy(data, wanted, sizeof(data));
    enum bt_status status = bt_group_broadcast(group, 0, data, is_root ? sizeof(data) : 100, &came);
    CHECK(status == (is_root ? BT_OK : BT_ERR_EXHAUSTED) && came == sizeof(data));
    CHECK(memcmp(data, wanted, 100) == 0 && (is_root || data[100] == 0xee));
}

void check_broadcast(struct bt_group *group, const struct bt_group_limits *limits)
{
    size_t most = limits->broadcast_bytes;
    const size_t lengths[] = {0, 1, 63, most - 1, most, most + 1, 3 * most + 5, 1500000};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        broadcast_once(group, (uint32_t)i % bt_group_size(group), lengths[i], lengths[i] + i % 3);
    broadcast_once(group, bt_group_size(group) - 1, 10, 10);
    broadcast_too_long(group);
    CHECK(bt_group_broadcast(group, 0, NULL, 0, NULL) == BT_OK);
}

void check_agreement(struct bt_group *group)
{
    uint32_t size = bt_group_size(group), rank = bt_group_rank(group);
    const uint32_t counts[] = {1, BT_GROUP_WORDS_MAX, 3, 1, 7, 2};
    for (uint32_t round = 0; round < sizeof(counts) / sizeof(counts[0]); round++) {
        uint64_t mine[BT_GROUP_WORDS_MAX], all[BT_GROUP_WORDS_MAX * 64];
        uint32_t count = counts[round];
        for (uint32_t i = 0; i < count; i++)
            mine[i] = (uint64_t)rank << 40 | round << 8 | i;
        CHECK(bt_group_agree_begin(group, mine, count) == BT_OK);
        memset(mine, 0, sizeof(mine)); /* it was copied */
        CHECK(bt_group_agree_finish(group, all) == BT_OK);
        for (uint32_t r = 0; r < size; r++)
            for (uint32_t i = 0; i < count; i++)
                CHECK(all[r * count + i] == ((uint64_t)r << 40 | round << 8 | i));
    }
}
