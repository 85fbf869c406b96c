#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/memory.h"

static char root[64];
static const char *const folders[] = {"/proc", "/sys", "/sys/fs", "/sys/fs/cgroup",
                                      "/sys/fs/cgroup/memory"};
static const char *const files[] = {"/proc/meminfo",
                                    "/sys/fs/cgroup/memory.max",
                                    "/sys/fs/cgroup/memory.current",
                                    "/sys/fs/cgroup/memory.stat",
                                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                    "/sys/fs/cgroup/memory/memory.stat"};

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/baton-memory-XXXXXX");
    assert_non_null(mkdtemp(root));
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    return 0;
}

static int remove_root(void **state)
{
    char path[256];
    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        snprintf(path, sizeof(path), "%s%s", root, files[i]);
        unlink(path);
    }
    for (size_t i = sizeof(folders) / sizeof(folders[0]); i-- > 0;) {
        snprintf(path, sizeof(path), "%s%s", root, folders[i]);
        rmdir(path);
    }
    return rmdir(root);
}

static void put(const char *file, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s%s", root, file);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static void test_what_binds(void **state)
{
    (void)state;
    assert_true(bt_memory_available_below(root) == UINT64_MAX);
    put(files[0], "MemTotal:       24000000 kB\nMemAvailable:    9000000 kB\nCached: 1 kB\n");
    assert_true(bt_memory_available_below(root) == UINT64_C(9000000) * 1024);
    put(files[1], "max\n");
    put(files[2], "5000000\n");
    assert_true(bt_memory_available_below(root) == UINT64_C(9000000) * 1024);
    put(files[1], "8000000\n");
    assert_true(bt_memory_available_below(root) == 3000000);
    put(files[3], "anon 1\nfile_mapped 7\nfile 2000000\n"); /* these can be dropped */
    assert_true(bt_memory_available_below(root) == 5000000);
    put(files[2], "9000000000\n");
    assert_true(bt_memory_available_below(root) == 0);
    put(files[2], "garbage\n");
    put(files[4], "7000000\n");
    put(files[5], "1000000\n");
    assert_true(bt_memory_available_below(root) == 6000000);
}

static void test_here(void **state)
{
    (void)state;
    uint64_t bytes = bt_memory_available_bytes();
    assert_true(bytes > 0 && bytes < UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_binds, make_root, remove_root),
        cmocka_unit_test(test_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
