/* Which of the words that there are somebody may have meant by one that is not there. */
#ifndef BATON_COMMON_BASE_NEAREST_H
#define BATON_COMMON_BASE_NEAREST_H

#include <stddef.h>

struct bt_nearest {
    const char *word; /* that was given; all else 0 at first */
    const char *best; /* the nearest offered so far; NULL: none is near */
    size_t edits;
};

/* Near is what inserting, deleting, replacing or swapping one letter in three, at least one, makes
 * of it; or a word that it begins. The first of several that are as near. Words from 64 bytes on
 * are near to nothing. */
void bt_nearest_offer(struct bt_nearest *nearest, const char *offered);

#endif
