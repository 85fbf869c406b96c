#include "common/parallel/packing.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

/* Improvements per bin, at most: a bound on the time, far above what is used. */
#define STEPS_PER_BIN 16
/* An improvement must gain this share of the heaviest bin, or rounding would make it go on. */
#define LEAST_GAIN 1e-9

static bool holds(const struct bt_packing *p, uint32_t item, uint32_t bin)
{
    return p->holds[(size_t)item * p->bins + bin];
}

static void put(struct bt_packing *p, uint32_t item, uint32_t bin)
{
    p->slot[(size_t)bin * p->room + p->filled[bin]++] = item;
    p->load[bin] += p->weight[item];
    p->holds[(size_t)item * p->bins + bin] = 1;
}

/* Takes the item at `place` away; the last one of the bin moves there. */
static void take(struct bt_packing *p, uint32_t bin, uint32_t place)
{
    uint32_t *slot = p->slot + (size_t)bin * p->room, item = slot[place];
    slot[place] = slot[--p->filled[bin]];
    p->load[bin] -= p->weight[item];
    p->holds[(size_t)item * p->bins + bin] = 0;
}

static int heavier_first(const void *left, const void *right, void *context)
{
    const double *weight = context;
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    if (weight[a] != weight[b])
        return weight[a] > weight[b] ? -1 : 1;
    return a < b ? -1 : a > b;
}

/* The lightest bin with room, without `item` where that counts; bins: there is none. */
static uint32_t lightest(const struct bt_packing *p, uint32_t item, bool without)
{
    uint32_t best = p->bins;
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        if (p->filled[bin] == p->room || (without && holds(p, item, bin)))
            continue;
        if (best == p->bins || p->load[bin] < p->load[best] ||
            (p->load[bin] == p->load[best] && p->filled[bin] < p->filled[best]))
            best = bin;
    }
    return best;
}

/*
 * Every bin with room has `item` already. Some full bin has not, as copies are not more than bins,
 * and it has something that the one with room has not, as that one has fewer: move that over.
 */
static uint32_t make_room(struct bt_packing *p, uint32_t item)
{
    uint32_t open = lightest(p, item, false), best_bin = p->bins, best_place = 0;
    double best = 0;
    BT_ASSERT(open < p->bins);
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        for (uint32_t i = 0; i < p->filled[bin] && !holds(p, item, bin); i++) {
            uint32_t other = p->slot[(size_t)bin * p->room + i];
            double here = p->load[bin] - p->weight[other] + p->weight[item];
            double there = p->load[open] + p->weight[other];
            double worse = here > there ? here : there;
            if (holds(p, other, open) || (best_bin < p->bins && worse >= best))
                continue;
            best = worse;
            best_bin = bin;
            best_place = i;
        }
    }
    BT_ASSERT(best_bin < p->bins);
    uint32_t moved = p->slot[(size_t)best_bin * p->room + best_place];
    take(p, best_bin, best_place);
    put(p, moved, open);
    return best_bin;
}

static uint32_t heaviest(const struct bt_packing *p)
{
    uint32_t best = 0;
    for (uint32_t bin = 1; bin < p->bins; bin++) {
        if (p->load[bin] > p->load[best])
            best = bin;
    }
    return best;
}

struct exchange {
    uint32_t bin, place, other_place;
    double load; /* of the heavier of the two, afterwards */
};

/* The best exchange of `item` at `place` of the heaviest bin with one of `bin`, if it beats *best.
 */
static void try_exchanges(const struct bt_packing *p, uint32_t heavy, uint32_t place, uint32_t bin,
                          struct exchange *best)
{
    uint32_t item = p->slot[(size_t)heavy * p->room + place];
    for (uint32_t i = 0; i < p->room; i++) {
        uint32_t other = p->slot[(size_t)bin * p->room + i];
        double moved = p->weight[item] - p->weight[other];
        double here = p->load[heavy] - moved, there = p->load[bin] + moved;
        double worse = here > there ? here : there;
        if (worse < best->load && !holds(p, other, heavy))
            *best = (struct exchange){bin, place, i, worse};
    }
}

/* Whether the heaviest bin became lighter. */
static bool exchange(struct bt_packing *p)
{
    uint32_t heavy = heaviest(p);
    const uint32_t *slot = p->slot + (size_t)heavy * p->room;
    struct exchange best = {.bin = p->bins, .load = p->load[heavy] * (1 - LEAST_GAIN)};
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        /* not even half the difference would help, or it is the bin itself */
        if ((p->load[heavy] + p->load[bin]) / 2 >= best.load)
            continue;
        for (uint32_t place = 0; place < p->room; place++) {
            if (!holds(p, slot[place], bin))
                try_exchanges(p, heavy, place, bin, &best);
        }
    }
    if (best.bin == p->bins)
        return false;
    uint32_t item = slot[best.place];
    uint32_t other = p->slot[(size_t)best.bin * p->room + best.other_place];
    take(p, heavy, best.place);
    take(p, best.bin, best.other_place);
    put(p, item, best.bin);
    put(p, other, heavy);
    return true;
}

/* ---- copies ---- */

void bt_packing_replicate(struct bt_packing *p)
{
    BT_ASSERT(p->room <= p->items && p->items <= p->bins * p->room);
    for (uint32_t item = 0; item < p->items; item++) {
        p->copies[item] = 1;
        p->weight[item] = p->whole[item];
    }
    for (uint32_t left = p->bins * p->room - p->items; left > 0; left--) {
        uint32_t best = p->items;
        for (uint32_t item = 0; item < p->items; item++) {
            if (p->copies[item] == p->bins)
                continue;
            if (best == p->items || p->weight[item] > p->weight[best] ||
                (p->weight[item] == p->weight[best] && p->copies[item] < p->copies[best]))
                best = item;
        }
        p->weight[best] = p->whole[best] / ++p->copies[best];
    }
}

/* A copy of `other` at `place` of `bin` gives way to one more of `item`. */
struct replacement {
    uint32_t item, bin, place;
    double load; /* of the heaviest bin afterwards */
};

/* The heaviest bin after the replacement, or anything from `limit` on where it is not less. */
static double load_after(const struct bt_packing *p, const struct replacement *r, uint32_t other,
                         double limit)
{
    double added = p->whole[r->item] / (p->copies[r->item] + 1);
    double relief = p->weight[r->item] - added, most = 0;
    double burden = p->whole[other] / (p->copies[other] - 1) - p->weight[other];
    for (uint32_t bin = 0; bin < p->bins && most < limit; bin++) {
        double load = p->load[bin];
        if (bin == r->bin)
            load += added - p->weight[other];
        else
            load += (holds(p, other, bin) ? burden : 0) - (holds(p, r->item, bin) ? relief : 0);
        most = load > most ? load : most;
    }
    return most;
}

static void weigh_bins(struct bt_packing *p)
{
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        p->load[bin] = 0;
        for (uint32_t i = 0; i < p->filled[bin]; i++)
            p->load[bin] += p->weight[p->slot[(size_t)bin * p->room + i]];
    }
}

/* The best place for one more copy of an item, if it beats *best. */
static void try_replacements(const struct bt_packing *p, uint32_t item, struct replacement *best)
{
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        for (uint32_t place = 0; place < p->room && !holds(p, item, bin); place++) {
            struct replacement tried = {item, bin, place, 0};
            uint32_t other = p->slot[(size_t)bin * p->room + place];
            if (p->copies[other] == 1)
                continue;
            tried.load = load_after(p, &tried, other, best->load);
            if (tried.load < best->load)
                *best = tried;
        }
    }
}

/* Whether the heaviest bin became lighter. */
static bool replace(struct bt_packing *p)
{
    uint32_t heavy = heaviest(p);
    struct replacement best = {.bin = p->bins, .load = p->load[heavy] * (1 - LEAST_GAIN)};
    for (uint32_t place = 0; place < p->room; place++)
        try_replacements(p, p->slot[(size_t)heavy * p->room + place], &best);
    if (best.bin == p->bins)
        return false;
    uint32_t other = p->slot[(size_t)best.bin * p->room + best.place];
    take(p, best.bin, best.place);
    put(p, best.item, best.bin);
    p->weight[other] = p->whole[other] / --p->copies[other];
    p->weight[best.item] = p->whole[best.item] / ++p->copies[best.item];
    weigh_bins(p);
    return true;
}

static void fill(struct bt_packing *p)
{
    memset(p->load, 0, p->bins * sizeof(*p->load));
    memset(p->filled, 0, p->bins * sizeof(*p->filled));
    memset(p->holds, 0, (size_t)p->items * p->bins);
    for (uint32_t item = 0; item < p->items; item++) {
        p->order[item] = item;
        p->weight[item] = p->whole[item] / p->copies[item];
    }
    qsort_r(p->order, p->items, sizeof(*p->order), heavier_first, p->weight);
    for (uint32_t i = 0; i < p->items; i++) {
        for (uint32_t copy = 0; copy < p->copies[p->order[i]]; copy++) {
            uint32_t bin = lightest(p, p->order[i], true);
            put(p, p->order[i], bin < p->bins ? bin : make_room(p, p->order[i]));
        }
    }
}

double bt_packing_largest(const struct bt_packing *p)
{
    return p->load[heaviest(p)];
}

static void improve(struct bt_packing *p, double enough)
{
    for (uint32_t i = 0; i < STEPS_PER_BIN * p->bins && bt_packing_largest(p) > enough; i++) {
        if (!exchange(p) && !replace(p))
            break;
    }
}

void bt_packing_solve(struct bt_packing *p)
{
    fill(p);
    improve(p, 0);
}

void bt_packing_improve(struct bt_packing *p, double enough)
{
    memset(p->copies, 0, p->items * sizeof(*p->copies));
    memset(p->holds, 0, (size_t)p->items * p->bins);
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        p->filled[bin] = p->room;
        for (uint32_t i = 0; i < p->room; i++) {
            uint32_t item = p->slot[(size_t)bin * p->room + i];
            p->holds[(size_t)item * p->bins + bin] = 1;
            p->copies[item]++;
        }
    }
    for (uint32_t item = 0; item < p->items; item++)
        p->weight[item] = p->whole[item] / p->copies[item];
    weigh_bins(p);
    improve(p, enough);
}
