/*
 * The measured half of tokenize.py: encodes files of texts, one command a line on standard input,
 * one answer a line on standard output.
 *
 *   tokenize MODEL_DIR [CACHE_BYTES]     CACHE_BYTES: with a cache of texts of that size
 *
 *   FILE    texts, each ended by a NUL; answer: "<ns> <ids> <hash>": the time to encode all of them
 *           one after the other in this thread, the ids they have, and the FNV-1a of these (32-bit
 *           little-endian, one text after the other)
 *
 * Reading the file, hashing and printing are not in the time; validation of UTF-8, the search for
 * added tokens, growing of the buffer of ids from nothing for each text, and freeing it are.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/file.h"
#include "common/text/tokenizer.h"

#define MAX_FILE_BYTES (256u << 20)

struct answer {
    uint64_t ns, ids, hash;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t hash_ids(uint64_t hash, const struct bt_token_buffer *ids)
{
    for (size_t i = 0; i < ids->count; i++)
        for (unsigned shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (ids->ids[i] >> shift & 0xFF)) * UINT64_C(0x100000001B3);
    return hash;
}

static enum bt_status encode_texts(const struct bt_tokenizer *tokenizer, const char *texts,
                                   size_t size, struct bt_error *error, struct answer *ret_answer)
{
    struct answer answer = {.hash = UINT64_C(0xCBF29CE484222325)};
    for (size_t at = 0; at < size;) {
        struct bt_token_buffer ids = {0};
        size_t length = strlen(texts + at);
        uint64_t begin = now_ns();
        enum bt_status status =
            bt_tokenizer_encode(tokenizer, texts + at, length, true, error, &ids);
        answer.ns += now_ns() - begin;
        answer.ids += ids.count;
        answer.hash = hash_ids(answer.hash, &ids);
        begin = now_ns();
        free(ids.ids);
        answer.ns += now_ns() - begin;
        if (status != BT_OK)
            return status;
        at += length + 1;
    }
    *ret_answer = answer;
    return BT_OK;
}

static enum bt_status serve(const struct bt_tokenizer *tokenizer, const char *path,
                            struct bt_error *error)
{
    char *texts;
    size_t size;
    struct answer answer;
    enum bt_status status = bt_file_read(path, MAX_FILE_BYTES, error, &texts, &size);
    if (status != BT_OK)
        return status;
    status = encode_texts(tokenizer, texts, size, error, &answer);
    if (status == BT_OK)
        printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", answer.ns, answer.ids, answer.hash);
    fflush(stdout);
    free(texts);
    return status;
}

int main(int argc, char **argv)
{
    struct bt_error error = {0};
    struct bt_tokenizer *tokenizer;
    char line[4096];
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: tokenize MODEL_DIR [CACHE_BYTES]\n");
        return 2;
    }
    enum bt_status status = bt_tokenizer_load(argv[1], &error, &tokenizer);
    if (status != BT_OK) {
        fprintf(stderr, "tokenize: %s\n", error.text);
        return 1;
    }
    if (argc == 3)
        status = bt_tokenizer_cache_enable(tokenizer, strtoull(argv[2], NULL, 10), &error);
    while (status == BT_OK && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = '\0';
        status = serve(tokenizer, line, &error);
    }
    if (status != BT_OK)
        fprintf(stderr, "tokenize: %s\n", error.text);
    bt_tokenizer_destroy(tokenizer);
    return status == BT_OK ? 0 : 1;
}
