/*
 * A worker's place in its group: meeting the other ranks, which part of the model this one has, and
 * experts that move between ranks while they serve. A worker of one rank has this too: it shares
 * nothing out, and still counts how often each expert is chosen.
 *
 *     join -> bt_rank_part -> bt_model_load -> bt_rank_forward -> bt_forward_create -> start
 *     then, before every step, the ranks agree: bt_rank_words of each, bt_rank_agreed on all
 *
 * The thread that runs the model, where nothing else is said.
 */
#ifndef BATON_COMMON_MODEL_RANK_H
#define BATON_COMMON_MODEL_RANK_H

#include "common/base/metrics.h"
#include "common/model/forward.h"

#define BT_RANK_WORDS        2   /* of each agreement */
#define BT_RANK_LOAD_WINDOWS 16  /* spans that the window of loads slides over, where not said */
#define BT_RANK_CARD_BYTES   512 /* at most, of one bt_rank_exchange */

struct bt_rank_options {
    uint32_t rank, size;     /* 0, 1: alone; of what follows only placement and loads count */
    bool tensor_parallel;    /* heads are shared out; every rank gets every batch */
    bool expert_parallel;    /* experts are shared out; else each rank holds all */
    const char *endpoint;    /* see struct bt_group_options, as are host and the timeouts */
    const char *host;        /* NULL: loopback */
    const char *secret_file; /* what it holds, but for white space at the end */
    int64_t connect_timeout_ns, wait_timeout_ns;
    uint32_t max_rows; /* of a run, on all ranks the same */
    struct bt_device
        *device; /* of this rank, borrowed; GPUs of a group meet by NCCL. NULL: a CPU */
    enum bt_dispatch_mode dispatch;
    enum bt_forward_payload payload;
    /* Where experts are at the start. balanced: by the loads in the file, if it is there. */
    enum bt_placement_kind placement;
    uint32_t redundant_experts; /* balanced: slots of a layer beyond one for each expert */
    /* Rank 0 keeps the loads of all ranks there, every rebalance interval and at the end. NULL: no
     * file. */
    const char *expert_loads_file;
    /* How often ranks exchange their loads, and balanced asks whether moving experts pays; 0:
     * never, and the file is written at the end alone. */
    int64_t rebalance_interval_ns;
    /* Over which loads are counted, see expert_loads.h; a layer's experts move when all ranks
     * together have (load_windows - 1) * load_span rows of it. 0: 16, 4096. */
    uint32_t load_windows;
    uint64_t load_span;
};

struct bt_rank;

/*
 * Meets the others. The errors of bt_group_create, bt_model_config_load, bt_placement_create and,
 * for the secret and the loads file, IO and INVALID_ARGUMENT with its name; INVALID_ARGUMENT on all
 * ranks where one was told something else than rank 0. Blocks up to connect_timeout_ns. A secret
 * that other users may read is warned of.
 */
enum bt_status bt_rank_join(const struct bt_rank_options *options, const char *model_dir,
                            struct bt_error *error, struct bt_rank **ret_rank);
/* After the forward pass is gone, before the model goes. The others see this rank leave. Waits for
 * one tensor at most that is being loaded, and rank 0 for its file. NULL is fine. */
void bt_rank_leave(struct bt_rank *rank);

uint32_t bt_rank_index(const struct bt_rank *rank);
uint32_t bt_rank_size(const struct bt_rank *rank);
struct bt_group *bt_rank_group(const struct bt_rank *rank); /* NULL: alone */
/* Random, of this life of the group: the same on all ranks. */
uint64_t bt_rank_incarnation(const struct bt_rank *rank);

/* Fill in what the rank decides; the rest is the caller's. Borrowed as long as the rank lives. */
void bt_rank_part(const struct bt_rank *rank, struct bt_model_options *options);
void bt_rank_forward(const struct bt_rank *rank, struct bt_forward_options *options);

/*
 * The model and pass that this rank runs; borrowed until bt_rank_leave. The group belongs to the
 * rank from join until this returns on all ranks: it waits for those that still load as long as
 * they live, at most connect_timeout_ns, and fails as the group does, or with UNAVAILABLE that
 * names who has not loaded. NO_MEMORY: no thread.
 */
enum bt_status bt_rank_start(struct bt_rank *rank, struct bt_model *model,
                             struct bt_forward *forward, struct bt_error *error);

/* Every rank's `bytes` <= BT_RANK_CARD_BYTES to all: ret_all [size][bytes]. Fails as the group. */
enum bt_status bt_rank_exchange(struct bt_rank *rank, const void *mine, size_t bytes,
                                void *ret_all);

/*
 * What this rank has to say about its experts: part of the words that the caller's next agreement
 * is made of. Then, between that agreement and the step, all ranks call bt_rank_agreed with it:
 * words + r * stride are those of rank r. Loads are exchanged and experts switched in there, when
 * it is time; anything slow goes on in a thread of its own. Alone: words are one's own. Fails as
 * the group does. Where a rank can't load an expert, all keep what they have, say so in the log,
 * and try again after the interval.
 */
void bt_rank_words(struct bt_rank *rank, int64_t now_ns, uint64_t ret_words[BT_RANK_WORDS]);
enum bt_status bt_rank_agreed(struct bt_rank *rank, const uint64_t *words, uint32_t stride,
                              struct bt_error *error);
/* Whether bt_rank_agreed would do something with these words; all ranks know it alike. In a group
 * that belongs between two steps, with nothing under way. */
bool bt_rank_acts(const struct bt_rank *rank, const uint64_t *words, uint32_t stride);

/*
 * baton_group_bytes_total{kind} and baton_group_crossing_bytes_total (in a group);
 * baton_expert_load{layer,expert} (rank 0: of all ranks, at the last exchange; layers of the
 * model), baton_expert_load_imbalance, baton_expert_moves_total (experts that this rank loaded),
 * baton_expert_rebalances_total, baton_expert_rebalances_ended_total (by a rank's fault); `labels`
 * as in metrics.h, may be NULL. Before start. Update: any one thread, before rendering.
 */
void bt_rank_metrics(struct bt_rank *rank, struct bt_metrics *metrics, const char *labels);
void bt_rank_metrics_update(struct bt_rank *rank);

#endif
