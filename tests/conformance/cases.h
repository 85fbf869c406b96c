/* The cases of the suite; test_transfer.c says which rule each one holds. */
#ifndef BATON_TESTS_CONFORMANCE_CASES_H
#define BATON_TESTS_CONFORMANCE_CASES_H

void case_layerwise_and_whole(void);
void case_neighbours_are_one_write(void);
void case_many_at_once(void);
void case_layers_go_before_finish(void);
void case_cancel(void);
void case_lease(void);
void case_huge(void);
void case_garbage_remote(void);
void case_wrong_base(void);
void case_a_key_that_says_too_much(void);
void case_bad_pushes_are_refused(void);
void case_links_are_shared(void);
void case_target_dies_and_comes_back(void);
void case_source_dies(void);
void case_pool_beyond_memory(void);
void case_target_jobs_are_bounded(void);
void case_target_checks_ranges(void);
void case_strays_arrive_until_disconnect(void);
void case_no_write_after_the_lease(void);
void case_cancel_waits_for_flush(void);
void case_ports_that_listen(void);
void case_garbage_on_the_port(void);
void case_early_sums(void);
void case_shares(void);
void case_cancel_at_each_state(void);
void case_source_dies_at_each_state(void);
void case_target_dies_at_each_state(void);
void case_fallback(void);
void case_nothing_in_common(void);
void case_flushed_and_gone(void);
void case_a_false_record(void);
void case_a_cut_is_of_one_link(void);
void case_flushed_and_gone_with_cuts(void);

#endif
