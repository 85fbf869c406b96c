#include "common/model/loading.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/clock.h"

#define PERIOD_NS (50 * BT_NS_PER_MS) /* between agreements, of a rank that loads */

struct bt_loading {
    struct bt_group *group;
    pthread_t thread;
    bool joined;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool loaded, stop; /* of this rank */
    bool over;         /* the thread has ended, or is about to */
    enum bt_status status;
    uint64_t all[BT_GROUP_RANKS_MAX]; /* whether each has loaded, as last agreed */
};

/* CLOCK_MONOTONIC, as the condition was told. */
static bool wait_until(struct bt_loading *loading, int64_t deadline_ns)
{
    const struct timespec at = {.tv_sec = deadline_ns / BT_NS_PER_S,
                                .tv_nsec = deadline_ns % BT_NS_PER_S};
    return pthread_cond_timedwait(&loading->changed, &loading->mutex, &at) == 0;
}

/* ---- the thread ---- */

/* Those that load set the pace; the others wait for them in the agreement. */
static bool pause_a_little(struct bt_loading *loading, bool *ret_loaded)
{
    int64_t until_ns = bt_clock_now_ns() + PERIOD_NS;
    pthread_mutex_lock(&loading->mutex);
    while (!loading->loaded && !loading->stop && wait_until(loading, until_ns)) {
    }
    *ret_loaded = loading->loaded;
    bool stop = loading->stop;
    pthread_mutex_unlock(&loading->mutex);
    return !stop;
}

static enum bt_status agree(struct bt_loading *loading, bool loaded, bool *ret_all)
{
    uint64_t word = loaded, all[BT_GROUP_RANKS_MAX];
    enum bt_status status = bt_group_agree_begin(loading->group, &word, 1);
    if (status == BT_OK)
        status = bt_group_agree_finish(loading->group, all);
    if (status != BT_OK)
        return status;
    *ret_all = true;
    pthread_mutex_lock(&loading->mutex);
    for (uint32_t r = 0; r < bt_group_size(loading->group); r++) {
        loading->all[r] = all[r];
        *ret_all = *ret_all && all[r] != 0;
    }
    pthread_mutex_unlock(&loading->mutex);
    return BT_OK;
}

static void *loading_main(void *argument)
{
    struct bt_loading *loading = argument;
    enum bt_status status = BT_OK;
    bool loaded, all = false;
    while (status == BT_OK && !all && pause_a_little(loading, &loaded))
        status = agree(loading, loaded, &all);
    pthread_mutex_lock(&loading->mutex);
    loading->status = status;
    loading->over = true;
    pthread_cond_broadcast(&loading->changed);
    pthread_mutex_unlock(&loading->mutex);
    return NULL;
}

/* ---- life ---- */

static bool init_locks(struct bt_loading *loading)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return false;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    bool fine = pthread_mutex_init(&loading->mutex, NULL) == 0;
    if (fine && pthread_cond_init(&loading->changed, &attributes) != 0) {
        pthread_mutex_destroy(&loading->mutex);
        fine = false;
    }
    pthread_condattr_destroy(&attributes);
    return fine;
}

enum bt_status bt_loading_begin(struct bt_group *group, struct bt_error *error,
                                struct bt_loading **ret_loading)
{
    struct bt_loading *loading = calloc(1, sizeof(*loading));
    if (!loading || !init_locks(loading))
        goto err_memory;
    loading->group = group;
    if (pthread_create(&loading->thread, NULL, loading_main, loading) == 0) {
        *ret_loading = loading;
        return BT_OK;
    }
    pthread_cond_destroy(&loading->changed);
    pthread_mutex_destroy(&loading->mutex);
err_memory:
    free(loading);
    return bt_error_set(error, BT_ERR_NO_MEMORY, "rank: no memory for a thread");
}

/* After an agreement that may be under way, whose other ranks' threads come within a period. */
static void end_thread(struct bt_loading *loading)
{
    if (loading->joined)
        return;
    pthread_mutex_lock(&loading->mutex);
    loading->stop = true;
    pthread_cond_broadcast(&loading->changed);
    pthread_mutex_unlock(&loading->mutex);
    pthread_join(loading->thread, NULL);
    loading->joined = true;
}

static enum bt_status some_missing(const struct bt_loading *loading, int64_t timeout_ns,
                                   struct bt_error *error)
{
    char names[128] = "";
    size_t used = 0;
    for (uint32_t r = 0; r < bt_group_size(loading->group) && used < sizeof(names); r++)
        if (!loading->all[r])
            used +=
                (size_t)snprintf(names + used, sizeof(names) - used, "%s%u", used ? ", " : "", r);
    return bt_error_set(error, BT_ERR_UNAVAILABLE,
                        "group: the model is not loaded yet on rank %s, %.1f s after this one",
                        names, (double)timeout_ns / BT_NS_PER_S);
}

enum bt_status bt_loading_end(struct bt_loading *loading, int64_t timeout_ns,
                              struct bt_error *error)
{
    int64_t deadline_ns = bt_clock_now_ns() + timeout_ns;
    pthread_mutex_lock(&loading->mutex);
    loading->loaded = true;
    pthread_cond_broadcast(&loading->changed);
    while (!loading->over &&
           (wait_until(loading, deadline_ns) || bt_clock_now_ns() < deadline_ns)) {
    }
    bool over = loading->over;
    pthread_mutex_unlock(&loading->mutex);
    end_thread(loading);
    if (!over)
        return some_missing(loading, timeout_ns, error);
    return loading->status == BT_OK
               ? BT_OK
               : bt_error_set(error, loading->status, "group: %s", bt_group_error(loading->group));
}

void bt_loading_destroy(struct bt_loading *loading)
{
    if (!loading)
        return;
    end_thread(loading);
    pthread_cond_destroy(&loading->changed);
    pthread_mutex_destroy(&loading->mutex);
    free(loading);
}
