/*
 * How the ranks of a group meet: rank 0 listens at the endpoint, the others connect to it, and what
 * each has to say goes round. Blocking, with a deadline; one thread.
 *
 * Both sides prove that they know the secret, by a keyed hash (SipHash-2-4) over random bytes of
 * the other; the secret itself is never sent. Who can't is sent away, and does not disturb.
 */
#ifndef BATON_COMMON_PARALLEL_MEETING_H
#define BATON_COMMON_PARALLEL_MEETING_H

#include "common/parallel/group.h"

#define BT_MEETING_STRANGERS_MAX 64 /* connections that have not proved anything yet */
#define BT_MEETING_STRANGER_MS   5000
#define BT_MEETING_CARD_MAX      8192 /* bytes */

struct bt_meeting;

/* Returns when all ranks are there. Errors: see bt_group_create. */
enum bt_status bt_meeting_open(const struct bt_group_options *options, struct bt_error *error,
                               struct bt_meeting **ret_meeting);
void bt_meeting_close(struct bt_meeting *meeting);

/* Every rank gives a card of `bytes`, the same number on all, and gets those of all ranks,
 * [size][bytes]. An error is that of the first rank that had one, on all ranks. */
enum bt_status bt_meeting_exchange(struct bt_meeting *meeting, const void *card, size_t bytes,
                                   struct bt_error *error, void *ret_cards);

/* Ends well only if `mine` is OK on all ranks: else the error of the first that failed, on all.
 * Overwrites *error with it. */
enum bt_status bt_meeting_agree(struct bt_meeting *meeting, enum bt_status mine,
                                struct bt_error *error);

#endif
