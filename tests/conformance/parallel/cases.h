/* The cases of test_group.c. Each runs in all ranks of a group, and leaves it ready for the next.
 */
#ifndef BATON_TESTS_CONFORMANCE_PARALLEL_CASES_H
#define BATON_TESTS_CONFORMANCE_PARALLEL_CASES_H

#include "tests/conformance/parallel/rig.h"

/* word_cases.c */
void check_barrier(struct bt_group *group);
void check_broadcast(struct bt_group *group, const struct bt_group_limits *limits);
void check_agreement(struct bt_group *group);

/* reduce_cases.c */
void check_all_reduce(struct bt_group *group, const struct bt_group_limits *limits);
void check_scatter_and_gather(struct bt_group *group, const struct bt_group_limits *limits);

/* expert_cases.c */
void check_experts(struct bt_group *group, const struct bt_group_limits *limits,
                   uint32_t ranks_per_machine);

/* misuse_cases.c, fault_cases.c: cmocka tests */
void test_limits_differ(void **state);
void test_size_differs(void **state);
void test_secret_differs(void **state);
void test_missing_ranks(void **state);
void test_strangers(void **state);
void test_bad_options(void **state);
void test_socket_file(void **state);
void test_socket_file_in_use(void **state);
void test_socket_path_too_long(void **state);
void test_other_call(void **state);
void test_killed(void **state);
void test_left(void **state);
void test_stopped(void **state);
void test_late(void **state);
void test_nothing_left_behind(void **state);

/* queued_cases.c: cmocka tests */
void test_killed_while_queued(void **state);
void test_silent_while_queued(void **state);
void test_killed_with_a_graph(void **state);
void test_what_was_sent_arrives(void **state);
void test_other_placement_while_queued(void **state);

#endif
