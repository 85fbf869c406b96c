#include "common/base/memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The number after `key` at a line's start, or with key NULL the file's first. */
static bool read_number(const char *root, const char *path, const char *key, uint64_t *ret_number)
{
    char full[PATH_MAX], line[256];
    size_t length = key ? strlen(key) : 0;
    bool found = false;
    snprintf(full, sizeof(full), "%s%s", root, path);
    FILE *file = fopen(full, "re");
    if (!file)
        return false;
    while (!found && fgets(line, sizeof(line), file))
        found = !strncmp(line, key ? key : "", length) &&
                sscanf(line + length, "%" SCNu64, ret_number) == 1;
    fclose(file);
    return found;
}

/* A limit, less what is used and is not pages of files. "max" is no number: no limit. */
static uint64_t below_limit(const char *root, const char *limit, const char *usage,
                            const char *stat, const char *file_key)
{
    uint64_t most, used, file_bytes = 0;
    if (!read_number(root, limit, NULL, &most) || !read_number(root, usage, NULL, &used))
        return UINT64_MAX;
    read_number(root, stat, file_key, &file_bytes);
    used -= file_bytes < used ? file_bytes : used;
    return used < most ? most - used : 0;
}

uint64_t bt_memory_available_below(const char *root)
{
    uint64_t least = UINT64_MAX, kib;
    if (read_number(root, "/proc/meminfo", "MemAvailable:", &kib))
        least = kib * 1024;
    uint64_t limits[] = {
        below_limit(root, "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                    "/sys/fs/cgroup/memory.stat", "file "),
        below_limit(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                    "/sys/fs/cgroup/memory/memory.stat", "total_cache "),
    };
    for (int i = 0; i < 2; i++)
        least = limits[i] < least ? limits[i] : least;
    return least;
}

uint64_t bt_memory_available_bytes(void)
{
    return bt_memory_available_below("");
}
