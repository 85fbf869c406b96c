/*
 * A kvt_target behind a socket, so that the suite drives one in another process (UCX) and one in a
 * thread of its own process (sim) alike. The pool starts filled with HOST_FILL.
 */
#ifndef BATON_TESTS_CONFORMANCE_TARGET_HOST_H
#define BATON_TESTS_CONFORMANCE_TARGET_HOST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvtransfer/source.h"
#include "kvtransfer/target.h"

#define HOST_FILL 0xa5

/* Ends the process with a message that names the place. */
#define CHECK(expression) ((expression) ? (void)0 : check_failed(#expression, __FILE__, __LINE__))
_Noreturn void check_failed(const char *expression, const char *file, int line);

struct target_host; /* the suite's end */

/* Serves `options` on a socket until the other end closes. */
void target_host_serve(int fd, const struct kvt_target_options *options, uint64_t incarnation);

/* In a process (before this one touches UCX), or with `in_thread` in a thread. */
struct target_host *target_host_start(const struct kvt_target_options *options, bool in_thread,
                                      uint64_t incarnation);
void target_host_kill(struct target_host *host); /* SIGKILL */
void target_host_stop(struct target_host *host); /* NULL is fine */

/* Blobs point into `host`. */
void target_host_remote(struct target_host *host, struct kvt_remote *ret_remote);
uint64_t target_host_checksum(struct target_host *host, const uint32_t *pages, uint32_t tokens);
/* kvt_target_expect, and the checksum of that epoch. */
void target_host_expect(struct target_host *host, uint64_t epoch, const uint32_t *pages,
                        uint32_t tokens);
uint64_t target_host_verify(struct target_host *host, uint64_t epoch, const uint32_t *pages,
                            uint32_t tokens);
bool target_host_was_early(struct target_host *host);       /* the last checksum */
uint64_t target_host_early_bytes(struct target_host *host); /* of it */
uint64_t target_host_cpu_ns(struct target_host *host);      /* of its process */
pid_t target_host_pid(const struct target_host *host);      /* 0: a thread */
/* Bytes that are not HOST_FILL outside of the first `tokens` tokens of `pages`, and inside. */
uint64_t target_host_touched_outside(struct target_host *host, const uint32_t *pages,
                                     uint32_t tokens);
uint64_t target_host_touched_inside(struct target_host *host, const uint32_t *pages,
                                    uint32_t tokens);
void target_host_fill(struct target_host *host);
void target_host_disconnect(struct target_host *host, uint64_t incarnation);
void target_host_cut(struct target_host *host, const struct kvt_cut *cut);

#endif
