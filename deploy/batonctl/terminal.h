/*
 * A terminal that a view has to itself: another screen, no cursor, keys as they are pressed. It is
 * given back by ctl_terminal_leave, at the end of the process, and when a fatal signal ends it. One
 * a process.
 */
#ifndef BATON_DEPLOY_BATONCTL_TERMINAL_H
#define BATON_DEPLOY_BATONCTL_TERMINAL_H

#include "common/base/status.h"

/* Standard input and output are terminals. */
bool ctl_terminal_is_there(void);
enum bt_status ctl_terminal_enter(struct bt_error *error);
void ctl_terminal_leave(void); /* harmless without */
/* 24 x 80 where it is not known. */
void ctl_terminal_size(int *ret_rows, int *ret_columns);

#endif
