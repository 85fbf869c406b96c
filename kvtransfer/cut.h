/*
 * Connections by name. Each one's hello tells the target whose it is, so that the target can cut
 * off the one that failed and no other.
 */
#ifndef BATON_KVTRANSFER_CUT_H
#define BATON_KVTRANSFER_CUT_H

#include <stdbool.h>
#include <stdint.h>

#define KVT_ANY_LINK  0
#define KVT_ALL_LINES UINT64_MAX
#define KVT_LINES_MAX 64 /* numbers of one link's lines are below */

/* A connection, as its source names it. */
struct kvt_origin {
    uint64_t incarnation; /* of the source */
    uint64_t link;        /* of its links, never used twice; not KVT_ANY_LINK */
    uint32_t line;        /* of the link's rails; 0 where there are none */
};

/* What is cut off of a source. */
struct kvt_cut {
    uint64_t incarnation;
    uint64_t link;  /* or KVT_ANY_LINK: the whole source */
    uint64_t lines; /* bit i: line i */
};

static inline bool kvt_cut_covers(const struct kvt_cut *cut, const struct kvt_origin *origin)
{
    return cut->incarnation == origin->incarnation &&
           (cut->link == KVT_ANY_LINK || cut->link == origin->link) &&
           origin->line < KVT_LINES_MAX && (cut->lines >> origin->line & 1) != 0;
}

#endif
