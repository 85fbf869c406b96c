#include "common/parallel/balance.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"
#include "common/parallel/packing.h"

struct bt_balance {
    struct bt_balance_shape shape;
    struct bt_packing packing;
    uint32_t *machine;      /* [groups] */
    uint32_t *member;       /* [experts] of the machine in hand, ascending */
    uint32_t *overlap;      /* [ranks][ranks] work space of naming */
    uint32_t *name;         /* [ranks] */
    uint32_t *machine_name; /* [machines] */
    uint8_t *drawn;         /* [experts][ranks] before the ranks have their names */
    void *memory;
};

/* The next `bytes` of `*at`, aligned; counts only while there is no memory yet. */
static void *carve(char *base, size_t *at, size_t bytes)
{
    void *part = base ? base + *at : NULL;
    *at += (bytes + 15) / 16 * 16;
    return part;
}

static size_t lay_out(struct bt_balance *b, char *base)
{
    const struct bt_balance_shape *s = &b->shape;
    size_t at = 0, square = (size_t)s->ranks * s->ranks, cells = (size_t)s->experts * s->ranks;
    b->packing.whole = carve(base, &at, s->experts * sizeof(double));
    b->packing.weight = carve(base, &at, s->experts * sizeof(double));
    b->packing.copies = carve(base, &at, s->experts * sizeof(uint32_t));
    b->packing.order = carve(base, &at, s->experts * sizeof(uint32_t));
    b->packing.load = carve(base, &at, s->ranks * sizeof(double));
    b->packing.filled = carve(base, &at, s->ranks * sizeof(uint32_t));
    size_t slots = (size_t)s->ranks * s->room;
    b->packing.slot = carve(base, &at, (slots > s->groups ? slots : s->groups) * sizeof(uint32_t));
    b->packing.holds = carve(base, &at, cells);
    b->machine = carve(base, &at, s->groups * sizeof(uint32_t));
    b->member = carve(base, &at, s->experts * sizeof(uint32_t));
    b->overlap = carve(base, &at, square * sizeof(uint32_t));
    b->name = carve(base, &at, s->ranks * sizeof(uint32_t));
    b->machine_name = carve(base, &at, s->machines * sizeof(uint32_t));
    b->drawn = carve(base, &at, cells);
    return at;
}

struct bt_balance *bt_balance_create(const struct bt_balance_shape *shape)
{
    struct bt_balance *balance = calloc(1, sizeof(*balance));
    if (!balance)
        return NULL;
    balance->shape = *shape;
    balance->memory = calloc(1, lay_out(balance, NULL));
    if (!balance->memory) {
        free(balance);
        return NULL;
    }
    lay_out(balance, balance->memory);
    return balance;
}

void bt_balance_destroy(struct bt_balance *balance)
{
    if (!balance)
        return;
    free(balance->memory);
    free(balance);
}

/* Which machine each group goes to. */
static void assign_groups(struct bt_balance *b, const uint64_t *loads)
{
    const struct bt_balance_shape *s = &b->shape;
    struct bt_packing *p = &b->packing;
    uint32_t size = s->experts / s->groups;
    p->items = s->groups;
    p->bins = s->machines;
    p->room = s->groups / s->machines;
    for (uint32_t group = 0; group < s->groups; group++) {
        p->whole[group] = 0;
        for (uint32_t i = 0; i < size; i++)
            p->whole[group] += (double)loads[group * size + i];
    }
    bt_packing_replicate(p);
    bt_packing_solve(p);
    for (uint32_t machine = 0; machine < s->machines; machine++) {
        for (uint32_t i = 0; i < p->room; i++)
            b->machine[p->slot[machine * p->room + i]] = machine;
    }
}

/* Experts of the machine into b->member and, as the items to pack, their loads. */
static void gather_members(struct bt_balance *b, const uint64_t *loads, uint32_t machine)
{
    const struct bt_balance_shape *s = &b->shape;
    struct bt_packing *p = &b->packing;
    uint32_t size = s->experts / s->groups;
    p->items = 0;
    p->bins = s->ranks / s->machines;
    p->room = s->room;
    for (uint32_t expert = 0; expert < s->experts; expert++) {
        if (s->machines > 1 && b->machine[expert / size] != machine)
            continue;
        b->member[p->items] = expert;
        p->whole[p->items++] = (double)loads[expert];
    }
}

/* Marks what the packing gave to the ranks of a machine. */
static void draw(const struct bt_balance *b, uint32_t machine, uint8_t *held)
{
    const struct bt_packing *p = &b->packing;
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        for (uint32_t i = 0; i < p->room; i++) {
            uint32_t expert = b->member[p->slot[(size_t)bin * p->room + i]];
            held[(size_t)expert * b->shape.ranks + machine * p->bins + bin] = 1;
        }
    }
}

/* ---- naming: which rank is which, so that few weights move ---- */

/* name[new] = old: pairs with the largest overlap [count][count] first, ties by index. Overlaps are
 * 1 at least, and become 0 when taken. */
static void match(uint32_t *overlap, uint32_t count, uint32_t *name)
{
    uint32_t value = 0;
    for (uint32_t cell = 0; cell < count * count; cell++)
        value = overlap[cell] > value ? overlap[cell] : value;
    for (; value > 0; value--) {
        for (uint32_t cell = 0; cell < count * count; cell++) {
            if (overlap[cell] != value)
                continue;
            uint32_t row = cell / count, column = cell % count;
            name[row] = column;
            for (uint32_t i = 0; i < count; i++)
                overlap[row * count + i] = overlap[i * count + column] = 0;
        }
    }
}

/* overlap[new][old] + 1 of `count` ranks of both. */
static void count_overlap(const struct bt_balance *b, const uint8_t *previous, uint32_t new_first,
                          uint32_t old_first, uint32_t count)
{
    for (uint32_t cell = 0; cell < count * count; cell++)
        b->overlap[cell] = 1;
    for (uint32_t expert = 0; expert < b->shape.experts; expert++) {
        const uint8_t *now = b->drawn + (size_t)expert * b->shape.ranks + new_first;
        const uint8_t *before = previous + (size_t)expert * b->shape.ranks + old_first;
        for (uint32_t i = 0; i < count; i++) {
            for (uint32_t j = 0; now[i] && j < count; j++)
                b->overlap[i * count + j] += before[j];
        }
    }
}

static void name_machines(struct bt_balance *b, const uint8_t *previous)
{
    uint32_t machines = b->shape.machines, count = b->shape.ranks / machines;
    uint32_t *total = b->overlap; /* [machines][machines] */
    for (uint32_t cell = 0; cell < machines * machines; cell++)
        total[cell] = 1;
    for (uint32_t expert = 0; expert < b->shape.experts; expert++) {
        const uint8_t *now = b->drawn + (size_t)expert * b->shape.ranks;
        const uint8_t *before = previous + (size_t)expert * b->shape.ranks;
        for (uint32_t i = 0; i < machines; i++) {
            for (uint32_t j = 0; j < machines; j++) {
                total[i * machines + j] +=
                    memchr(now + i * count, 1, count) && memchr(before + j * count, 1, count);
            }
        }
    }
    match(total, machines, b->machine_name);
}

/* From b->drawn into `held`, each rank under its name. */
static void rename_ranks(struct bt_balance *b, const uint8_t *previous, uint8_t *held)
{
    uint32_t ranks = b->shape.ranks, count = ranks / b->shape.machines;
    name_machines(b, previous);
    for (uint32_t machine = 0; machine < b->shape.machines; machine++) {
        uint32_t new_first = machine * count, old_first = b->machine_name[machine] * count;
        count_overlap(b, previous, new_first, old_first, count);
        match(b->overlap, count, b->name + new_first);
        for (uint32_t i = 0; i < count; i++)
            b->name[new_first + i] += old_first;
    }
    for (uint32_t expert = 0; expert < b->shape.experts; expert++) {
        for (uint32_t rank = 0; rank < ranks; rank++)
            held[(size_t)expert * ranks + b->name[rank]] = b->drawn[(size_t)expert * ranks + rank];
    }
}

/* ---- few changes to what was there ---- */

/* The machine that all of the group was on; machines: it was not on one alone. */
static uint32_t machine_before(const struct bt_balance *b, const uint8_t *previous, uint32_t group)
{
    const struct bt_balance_shape *s = &b->shape;
    uint32_t size = s->experts / s->groups, per = s->ranks / s->machines, machine = s->machines;
    for (uint32_t expert = group * size; expert < (group + 1) * size; expert++) {
        for (uint32_t rank = 0; rank < s->ranks; rank++) {
            if (!previous[(size_t)expert * s->ranks + rank] || rank / per == machine)
                continue;
            if (machine < s->machines)
                return s->machines;
            machine = rank / per;
        }
    }
    return machine;
}

/* Groups as they were; whether they were whole, and equally many on each machine. */
static bool keep_groups(struct bt_balance *b, const uint8_t *previous)
{
    const struct bt_balance_shape *s = &b->shape;
    memset(b->machine_name, 0, s->machines * sizeof(*b->machine_name)); /* counts, here */
    for (uint32_t group = 0; group < s->groups; group++) {
        b->machine[group] = machine_before(b, previous, group);
        if (b->machine[group] == s->machines ||
            ++b->machine_name[b->machine[group]] > s->groups / s->machines)
            return false;
    }
    return true;
}

/* Slots of the machine in hand as they were; whether each rank had as many as it has to. */
static bool keep_slots(struct bt_balance *b, const uint8_t *previous, uint32_t machine)
{
    struct bt_packing *p = &b->packing;
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        uint32_t rank = machine * p->bins + bin, filled = 0;
        for (uint32_t item = 0; item < p->items; item++) {
            if (!previous[(size_t)b->member[item] * b->shape.ranks + rank])
                continue;
            if (filled == p->room)
                return false;
            p->slot[(size_t)bin * p->room + filled++] = item;
        }
        if (filled < p->room)
            return false;
    }
    return true;
}

/* Whether few changes to `previous` reach `enough`; then it is in `held`. */
static bool keep(struct bt_balance *b, const uint64_t *loads, const uint8_t *previous,
                 double enough, uint8_t *held)
{
    memset(held, 0, (size_t)b->shape.experts * b->shape.ranks);
    if (b->shape.machines > 1 && !keep_groups(b, previous))
        return false;
    for (uint32_t machine = 0; machine < b->shape.machines; machine++) {
        gather_members(b, loads, machine);
        if (!keep_slots(b, previous, machine))
            return false;
        bt_packing_improve(&b->packing, enough);
        if (bt_packing_largest(&b->packing) > enough)
            return false;
        draw(b, machine, held);
    }
    return true;
}

/* The largest load of a rank. */
static double make_anew(struct bt_balance *b, const uint64_t *loads, uint8_t *held)
{
    double largest = 0;
    memset(held, 0, (size_t)b->shape.experts * b->shape.ranks);
    if (b->shape.machines > 1)
        assign_groups(b, loads);
    for (uint32_t machine = 0; machine < b->shape.machines; machine++) {
        gather_members(b, loads, machine);
        bt_packing_replicate(&b->packing);
        bt_packing_solve(&b->packing);
        double load = bt_packing_largest(&b->packing);
        largest = load > largest ? load : largest;
        draw(b, machine, held);
    }
    return largest;
}

void bt_balance_layer(struct bt_balance *b, const uint64_t *loads, const uint8_t *previous,
                      uint8_t *held)
{
    if (!previous) {
        make_anew(b, loads, held);
        return;
    }
    double largest = make_anew(b, loads, b->drawn);
    if (!keep(b, loads, previous, largest * (1 + BT_BALANCE_SLACK), held))
        rename_ranks(b, previous, held);
}
