/*
 * Which memory nodes are asked for, on a machine that hwloc is told to see: every cpu is a node.
 * What the kernel would do with it is not tried.
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <hwloc.h>

#include "common/kernels/cpus.h"

#define MAX_CPUS 256

static struct {
    uint32_t calls;
    const void *start;
    size_t bytes;
    hwloc_bitmap_t nodes;
    hwloc_membind_policy_t policy;
    int flags;
} asked;

int __wrap_hwloc_set_area_membind(hwloc_topology_t topology, const void *start, size_t bytes,
                                  hwloc_const_bitmap_t nodes, hwloc_membind_policy_t policy,
                                  int flags);

int __wrap_hwloc_set_area_membind(hwloc_topology_t topology, const void *start, size_t bytes,
                                  hwloc_const_bitmap_t nodes, hwloc_membind_policy_t policy,
                                  int flags)
{
    (void)topology;
    asked.calls++;
    asked.start = start;
    asked.bytes = bytes;
    hwloc_bitmap_copy(asked.nodes, nodes);
    asked.policy = policy;
    asked.flags = flags;
    return 0;
}

/* Cpus of this process, below MAX_CPUS. */
static uint32_t usable_cpus(const cpu_set_t *set, uint32_t *ret_cpus, uint32_t most)
{
    uint32_t count = 0;
    for (uint32_t cpu = 0; cpu < MAX_CPUS && count < most; cpu++)
        if (CPU_ISSET(cpu, set))
            ret_cpus[count++] = cpu;
    return count;
}

static void assert_asked(const uint32_t *cpus, uint32_t count, const void *start, size_t bytes)
{
    assert_int_equal(asked.calls, 1);
    assert_ptr_equal(asked.start, start);
    assert_int_equal(asked.bytes, bytes);
    assert_int_equal(hwloc_bitmap_weight(asked.nodes), (int)count);
    for (uint32_t i = 0; i < count; i++)
        assert_true(hwloc_bitmap_isset(asked.nodes, cpus[i]));
    assert_int_equal(asked.policy, count > 1 ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_BIND);
    assert_true(asked.flags & HWLOC_MEMBIND_BYNODESET);
    asked.calls = 0;
}

static void test_nodes_of_cpus(void **state)
{
    (void)state;
    static char memory[1 << 16];
    cpu_set_t all, some;
    uint32_t cpus[2];
    char list[32];
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    uint32_t found = usable_cpus(&all, cpus, 2);
    if (found == 0)
        skip();
    for (uint32_t count = 1; count <= found; count++) {
        struct bt_cpus *team;
        struct bt_error error;
        CPU_ZERO(&some);
        for (uint32_t i = 0; i < count; i++)
            CPU_SET(cpus[i], &some);
        if (count == 1)
            snprintf(list, sizeof(list), "%u", cpus[0]);
        else
            snprintf(list, sizeof(list), "%u,%u", cpus[0], cpus[1]);
        assert_int_equal(bt_cpus_create(list, &error, &team), BT_OK);
        assert_int_equal(bt_cpus_place_memory(team, memory, 4096 * count), count);
        assert_asked(cpus, count, memory, 4096 * count);
        bt_cpus_destroy(team);

        assert_int_equal(sched_setaffinity(0, sizeof(some), &some), 0);
        assert_int_equal(bt_cpus_place_memory_near_thread(memory, 8192), count);
        assert_true(asked.flags & HWLOC_MEMBIND_MIGRATE);
        assert_asked(cpus, count, memory, 8192);
        assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
    }
}

/* As on most machines: nothing to choose. */
static void test_one_node(void **state)
{
    (void)state;
    static char memory[4096];
    assert_int_equal(setenv("HWLOC_SYNTHETIC", "numa:1 pu:256", 1), 0);
    assert_int_equal(bt_cpus_place_memory_near_thread(memory, sizeof(memory)), 1);
    assert_int_equal(asked.calls, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nodes_of_cpus),
        cmocka_unit_test(test_one_node),
    };
    setenv("HWLOC_SYNTHETIC", "numa:256 pu:1", 1);
    setenv("HWLOC_THISSYSTEM", "1", 1);
    asked.nodes = hwloc_bitmap_alloc();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    hwloc_bitmap_free(asked.nodes);
    return failed;
}
