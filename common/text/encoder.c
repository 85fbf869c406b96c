#include "common/text/encoder.h"

#include <pthread.h>
#include <stdlib.h>

struct bt_encoder_shelf {
    pthread_mutex_t mutex;
    struct bt_encoder *idle; /* used last first: its words are still in the processor's caches */
    size_t idle_count;
};

struct bt_encoder_shelf *bt_encoder_shelf_create(void)
{
    struct bt_encoder_shelf *shelf = calloc(1, sizeof *shelf);
    if (shelf)
        pthread_mutex_init(&shelf->mutex, NULL);
    return shelf;
}

static void encoder_destroy(struct bt_encoder *encoder)
{
    bt_split_scratch_destroy(encoder->split);
    bt_bpe_scratch_finish(&encoder->bpe);
    free(encoder->words);
    free(encoder);
}

void bt_encoder_shelf_destroy(struct bt_encoder_shelf *shelf)
{
    if (!shelf)
        return;
    while (shelf->idle) {
        struct bt_encoder *encoder = shelf->idle;
        shelf->idle = encoder->next;
        encoder_destroy(encoder);
    }
    pthread_mutex_destroy(&shelf->mutex);
    free(shelf);
}

static struct bt_encoder *encoder_create(void)
{
    struct bt_encoder *encoder = calloc(1, sizeof *encoder);
    if (!encoder)
        return NULL;
    encoder->split = bt_split_scratch_create();
    encoder->words = bt_word_cache_create();
    if (encoder->split && encoder->words)
        return encoder;
    encoder_destroy(encoder);
    return NULL;
}

struct bt_encoder *bt_encoder_take(struct bt_encoder_shelf *shelf)
{
    pthread_mutex_lock(&shelf->mutex);
    struct bt_encoder *encoder = shelf->idle;
    if (encoder) {
        shelf->idle = encoder->next;
        shelf->idle_count--;
    }
    pthread_mutex_unlock(&shelf->mutex);
    return encoder ? encoder : encoder_create();
}

void bt_encoder_give(struct bt_encoder_shelf *shelf, struct bt_encoder *encoder)
{
    if (bt_bpe_scratch_bytes(&encoder->bpe) > BT_ENCODER_MAX_SCRATCH_BYTES)
        bt_bpe_scratch_finish(&encoder->bpe);
    pthread_mutex_lock(&shelf->mutex);
    bool kept = shelf->idle_count < BT_ENCODER_MAX_IDLE;
    if (kept) {
        encoder->next = shelf->idle;
        shelf->idle = encoder;
        shelf->idle_count++;
    }
    pthread_mutex_unlock(&shelf->mutex);
    if (!kept)
        encoder_destroy(encoder);
}
