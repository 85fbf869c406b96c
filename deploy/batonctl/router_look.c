#include "deploy/batonctl/router_look.h"

#include "common/base/clock.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/interrupt.h"

#define PAUSE_NS (100 * BT_NS_PER_MS)

static void on_interrupt(void *context)
{
    bt_loop_stop(context); /* ends a call that waits; who waits looks which signal it was */
}

static enum bt_status sleep_until(struct bt_loop *loop, int64_t until_ns, int interrupt_fd,
                                  struct bt_error *error)
{
    while (bt_clock_now_ns() < until_ns) {
        enum bt_status status = bt_loop_run_once(loop, until_ns, error);
        if (status == BT_OK && interrupt_fd >= 0)
            status = ctl_interrupt_check(interrupt_fd, error);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static enum bt_status look_once(struct ctl_connection *connection, int interrupt_fd,
                                ctl_status_look_fn *look, void *context, struct bt_error *error)
{
    Baton__V1__StatusResponse *response;
    enum bt_status status = ctl_connection_status(connection, error, &response);
    if (status == BT_ERR_CANCELLED && interrupt_fd >= 0) {
        enum bt_status told = ctl_interrupt_check(interrupt_fd, error);
        return told == BT_OK ? status : told;
    }
    if (status == BT_ERR_DEADLINE)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the router does not answer");
    if (status != BT_OK)
        return status;
    status = look(context, response, error);
    baton__v1__status_response__free_unpacked(response, NULL);
    return status;
}

enum bt_status ctl_router_look(const struct ctl_target *target, int64_t until_ns, int interrupt_fd,
                               ctl_status_look_fn *look, void *context, struct bt_error *error)
{
    struct ctl_connection connection;
    enum bt_status status = ctl_connection_init(&connection, target, error);
    if (status != BT_OK)
        return status;
    if (interrupt_fd >= 0 &&
        !bt_loop_add_fd(connection.loop, interrupt_fd, on_interrupt, connection.loop))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    while (status == BT_OK) {
        status = look_once(&connection, interrupt_fd, look, context, error);
        int64_t now_ns = bt_clock_now_ns();
        if (status != BT_IN_PROGRESS)
            break;
        if (now_ns >= until_ns) {
            status = BT_ERR_DEADLINE;
            break;
        }
        int64_t next_ns = now_ns + PAUSE_NS;
        status = sleep_until(connection.loop, next_ns < until_ns ? next_ns : until_ns, interrupt_fd,
                             error);
    }
    ctl_connection_finish(&connection);
    return status;
}
