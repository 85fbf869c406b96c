/* Starting one of Baton's programs in the background. */
#ifndef BATON_DEPLOY_BATONCTL_LAUNCH_H
#define BATON_DEPLOY_BATONCTL_LAUNCH_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"

#define CTL_COMMAND_MAX_ARGS  128
#define CTL_COMMAND_MAX_BYTES 8192

/* An argument vector under construction; text is copied. Overflow is remembered and reported by
 * ctl_command_start. */
struct ctl_command {
    char text[CTL_COMMAND_MAX_BYTES];
    uint32_t text_size;
    char *args[CTL_COMMAND_MAX_ARGS + 1];
    uint32_t arg_count;
    bool overflow;
};

/* `program`: as in the build tree, "router/baton-router". It is looked for there, seen from this
 * batonctl, then beside this batonctl, then in PATH. */
void ctl_command_init(struct ctl_command *command, const char *program);
void ctl_command_add(struct ctl_command *command, const char *arg);
void ctl_command_add_all(struct ctl_command *command, const char *const *args);
void ctl_command_add_words(struct ctl_command *command, const char *words); /* NULL is fine */

/*
 * In a session of its own, stdin /dev/null, stdout and stderr to the file `log`. The program begins
 * when `remember` has returned BT_OK: one that nobody knows, as we died or failed before, never
 * runs.
 */
enum bt_status ctl_command_start(struct ctl_command *command, const char *log,
                                 enum bt_status (*remember)(void *context,
                                                            const struct bt_process_id *process,
                                                            struct bt_error *error),
                                 void *context, struct bt_error *error);

#endif
