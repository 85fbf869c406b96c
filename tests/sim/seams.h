/* What world.c asks of the parts that stand in for libraries. */
#ifndef BATON_TESTS_SIM_SEAMS_H
#define BATON_TESTS_SIM_SEAMS_H

#include <protobuf-c/protobuf-c.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>

#include "common/messaging/loop.h"
#include "common/messaging/rpc.h"
#include "tests/sim/world.h"

/* loop.c */
struct bt_loop *loop_create(struct node *node);
void loop_round_end(struct node *node);
void loop_forget(struct node *node);

/* rpc.c */
void rpc_forget(struct node *node); /* the process died: its connections break */
void rpc_end(void);
/* Breaks every connection between the two, as a cable would. */
void rpc_cut(struct node *a, struct node *b);
/* A call and its message out of nowhere; false: it does not parse. As code of the node. */
bool rpc_inject_request(struct node *node, const char *method, const uint8_t *bytes, size_t size);
/* Data of a call that is open somewhere, or its end. `which` chooses the call; false: none is open,
 * or it does not parse. */
bool rpc_inject_answer(uint32_t which, bool data, enum bt_status status, const uint8_t *bytes,
                       size_t size);
/* Peers of a node that has been stopped for long give it up. */
void rpc_silent(struct node *node);

/* both */
void seams_forget(struct node *node);
void seams_end(void);

/* the linker's doubles */
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void __wrap_free(void *memory);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t length);
int __wrap_pthread_create(pthread_t *ret_thread, const pthread_attr_t *attributes,
                          void *(*thread_main)(void *), void *argument);
int __wrap_pthread_join(pthread_t thread, void **ret_value);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
int __wrap_sem_wait(sem_t *semaphore);
int __wrap_epoll_create1(int flags);
int __wrap_eventfd(unsigned int value, int flags);
int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
uint64_t __wrap_bt_random_entropy(void);
enum bt_status __wrap_bt_process_self(struct bt_error *error, struct bt_process_id *ret_id);
enum bt_process_state __wrap_bt_process_probe(const struct bt_process_id *id);
bool __wrap_bt_process_same_host(const struct bt_process_id *a, const struct bt_process_id *b);
ProtobufCMessage *__wrap_protobuf_c_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                                   ProtobufCAllocator *allocator, size_t size,
                                                   const uint8_t *data);
void __wrap_protobuf_c_message_free_unpacked(ProtobufCMessage *message,
                                             ProtobufCAllocator *allocator);

#endif
