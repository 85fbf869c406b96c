#include "common/base/nearest.h"

#include <string.h>

#define WORD_MAX 64

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Of Damerau and Levenshtein, each letter in one swap at most. */
static size_t edits(const char *a, size_t a_size, const char *b, size_t b_size)
{
    size_t rows[3][WORD_MAX + 1];
    size_t *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t k = 0; k <= b_size; k++)
        last[k] = k;
    for (size_t i = 1; i <= a_size; i++) {
        now[0] = i;
        for (size_t k = 1; k <= b_size; k++) {
            size_t cost = a[i - 1] != b[k - 1];
            now[k] = least(least(last[k], now[k - 1]) + 1, last[k - 1] + cost);
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1])
                now[k] = least(now[k], before[k - 2] + 1);
        }
        size_t *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[b_size];
}

void bt_nearest_offer(struct bt_nearest *nearest, const char *offered)
{
    size_t size = strlen(nearest->word), offered_size = strlen(offered);
    if (size == 0 || size >= WORD_MAX || offered_size >= WORD_MAX)
        return;
    size_t most = (size + 2) / 3, distance = edits(nearest->word, size, offered, offered_size);
    if (size >= 3 && strncmp(nearest->word, offered, size) == 0)
        distance = least(distance, most);
    if (distance <= most && distance < size && (!nearest->best || distance < nearest->edits)) {
        nearest->best = offered;
        nearest->edits = distance;
    }
}
