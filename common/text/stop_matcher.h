/*
 * Stop strings in a stream of bytes: one Knuth-Morris-Pratt automaton a string, so that the cost of
 * a byte does not depend on the strings' lengths, and the automata's states say exactly how many of
 * the last bytes could still become part of a stop string. Caller-owned, one per stream.
 */
#ifndef BATON_COMMON_TEXT_STOP_MATCHER_H
#define BATON_COMMON_TEXT_STOP_MATCHER_H

#include <stddef.h>
#include <stdint.h>

struct bt_stop_string {
    char *text;
    uint16_t *fallback; /* [i]: longest proper border of text[0..i] */
    uint16_t size, matched;
};

struct bt_stop_matcher { /* zero-initialised */
    struct bt_stop_string *strings;
    size_t count;
};

/* `text` has 1 to 65535 bytes. Returns 0, or -1 without memory. */
int bt_stop_matcher_add(struct bt_stop_matcher *matcher, const char *text, size_t size);
void bt_stop_matcher_finish(struct bt_stop_matcher *matcher);

/* Takes one byte. Returns the size of the longest stop string that ends with it, or 0. */
size_t bt_stop_matcher_push(struct bt_stop_matcher *matcher, char byte);

/* How many of the last bytes are the start of some stop string. */
size_t bt_stop_matcher_held(const struct bt_stop_matcher *matcher);

#endif
