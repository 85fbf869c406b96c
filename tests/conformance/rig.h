/* What every case of the suite starts from: a source, a target, a link, and pushes to check. */
#ifndef BATON_TESTS_CONFORMANCE_RIG_H
#define BATON_TESTS_CONFORMANCE_RIG_H

#include "common/base/clock.h"
#include "kvtransfer/sim/sim.h"
#include "kvtransfer/transport.h"
#include "tests/conformance/target_host.h"

#define SOURCE_INCARNATION 0x5050
#define TARGET_INCARNATION 0x7070
#define MAX_PUSHES         24

extern const char *transport;                   /* under test */
extern bool source_on_device, target_on_device; /* whose pool is a GPU's, as it is told */
extern uint64_t seed;

struct rig {
    struct bt_kv_layout layout;
    uint32_t source_pages, target_pages;
    struct kvt_sim *sim;
    struct target_host *host;
    struct kvt_source *source;
    struct kvt_link *link;
    uint64_t draws;
};

struct transfer {
    uint32_t tokens;
    uint32_t source_pages[8192], target_pages[8192];
    struct kvt_push *push;
    struct kvt_share share; /* of which, count 0: all */
};

extern struct transfer transfers[MAX_PUSHES]; /* too large for a stack */

bool is_sim(void);
struct bt_device *target_device(void); /* NULL: the host */
uint32_t draw(struct rig *rig, uint32_t bound);
struct kvt_transport *sim_transport(struct rig *rig);
void start_target(struct rig *rig, uint64_t incarnation);
void wait_link(struct kvt_link *link, enum kvt_link_state wanted);
void connect_target(struct rig *rig);
void start_source(struct rig *rig, uint64_t incarnation);
void rig_init(struct rig *rig);
void rig_finish(struct rig *rig);
void draw_pages(struct rig *rig, uint32_t pool, uint32_t count, bool *used, uint32_t *pages);
void open_push(struct rig *rig, struct transfer *transfer, bool layerwise);
void lease_long(const struct transfer *transfer);
struct kvt_push_event take_event(struct rig *rig);
uint64_t transfer_bytes(const struct rig *rig, const struct transfer *transfer);
void check_arrived(struct rig *rig, const struct transfer *transfer,
                   const struct kvt_push_event *event);
void no_guard_touched(struct rig *rig, const struct transfer *transfer);
void compute_chunks(struct rig *rig, const struct transfer *transfer, uint32_t max_chunk);
void draw_transfer(struct rig *rig, uint32_t tokens, struct transfer *ret_transfer);
void push_once(struct rig *rig, struct transfer *transfer, bool layerwise);

#endif
