/*
 * usage: fuzz-X [SEED [COUNT [SECONDS]]]    random changes; without SEED that of tests/seed.h
 *        fuzz-X FILE                        one input from a file
 *
 * With BATON_FUZZ_KEEP=PATH each input is written there before it runs, to have the last one after
 * a fault.
 */
#include "tests/fuzz/driver.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/random.h"
#include "tests/seed.h"

#define MAX_INPUT     16384
#define DEFAULT_COUNT 3000
#define TIME_LIMIT_S  10

static uint64_t seed;
static uint64_t draws;

static size_t dice(size_t sides)
{
    return sides ? (size_t)(bt_random_u64(seed, draws++, 0) % sides) : 0;
}

static size_t insert(uint8_t *data, size_t size, size_t at, const uint8_t *from, size_t count)
{
    if (size + count > MAX_INPUT) {
        return size;
    }
    memmove(data + at + count, data + at, size - at);
    memcpy(data + at, from, count);
    return size + count;
}

static size_t change(uint8_t *data, size_t size)
{
    static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff};
    uint8_t copy[64];
    size_t at = dice(size);
    size_t span = 1 + dice(size - at < sizeof copy ? size - at : sizeof copy);
    switch (dice(5)) {
    case 0:
        data[at] ^= (uint8_t)(1u << dice(8));
        return size;
    case 1:
        data[at] = edges[dice(sizeof edges)];
        return size;
    case 2:
        data[at] = (uint8_t)dice(256);
        return size;
    case 3:
        if (span >= size) {
            return size;
        }
        memmove(data + at, data + at + span, size - at - span);
        return size - span;
    default:
        memcpy(copy, data + at, span);
        return insert(data, size, dice(size), copy, span);
    }
}

static size_t input_make(uint8_t *ret_data)
{
    size_t seeds = 0;
    while (fuzz_seed(seeds, ret_data, MAX_INPUT) > 0) {
        seeds++;
    }
    size_t size = fuzz_seed(dice(seeds), ret_data, MAX_INPUT);
    for (size_t changes = dice(8); changes > 0 && size > 0; changes--) {
        size = change(ret_data, size);
    }
    return size;
}

static void input_keep(const uint8_t *data, size_t size)
{
    const char *path = getenv("BATON_FUZZ_KEEP");
    FILE *file = path ? fopen(path, "wb") : NULL;
    if (file) {
        fwrite(data, 1, size, file);
        fclose(file);
    }
}

static int file_run(const char *path)
{
    static uint8_t data[MAX_INPUT];
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    return 0;
}

/* Not bt_clock: some targets bring their own. */
static time_t now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

int main(int argc, char **argv)
{
    char *end = NULL;
    seed = argc > 1 ? strtoull(argv[1], &end, 0) : test_seed();
    if (end && *end) {
        return file_run(argv[1]);
    }
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : DEFAULT_COUNT;
    time_t seconds = argc > 3 ? (time_t)strtoull(argv[3], NULL, 0) : TIME_LIMIT_S;
    time_t give_up_s = now_s() + seconds;
    uint64_t done = 0;
    while (done < count && now_s() < give_up_s) {
        uint8_t data[MAX_INPUT];
        size_t size = input_make(data);
        input_keep(data, size);
        LLVMFuzzerTestOneInput(data, size);
        done++;
    }
    printf("%" PRIu64 " inputs\n", done);
    return 0;
}
