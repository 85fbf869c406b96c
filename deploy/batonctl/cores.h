/* Which cpus each worker of a local cluster gets. */
#ifndef BATON_DEPLOY_BATONCTL_CORES_H
#define BATON_DEPLOY_BATONCTL_CORES_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define CTL_CORES_SIZE 4096

/*
 * Worker `index`'s part of `list` ("0-3,8"), as a list: neighbours in it, the first workers have
 * one more where it does not divide. INVALID_ARGUMENT: a list that bt_cpus_create refuses, or fewer
 * cpus than workers.
 */
enum bt_status ctl_cores_share(const char *list, uint32_t workers, uint32_t index,
                               struct bt_error *error, char ret_list[CTL_CORES_SIZE]);

/*
 * Cores of their own for all workers: where this process may use at least twice as many cpus as
 * there are workers, each gets as many as the others, and what is left, one at least, is for the
 * router and for clients. False: too few, nobody is bound to any.
 */
bool ctl_cores_divide(uint32_t prefill, uint32_t decode, char ret_prefill[CTL_CORES_SIZE],
                      char ret_decode[CTL_CORES_SIZE]);

#endif
