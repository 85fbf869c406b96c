/*
 * The CURVE keys of a local cluster, as files in its directory: ID.key, the secret of each process
 * and of the operator (of this batonctl), and one list of the public keys of all.
 */
#ifndef BATON_DEPLOY_BATONCTL_KEYS_H
#define BATON_DEPLOY_BATONCTL_KEYS_H

#include <limits.h>

#include "common/base/status.h"
#include "common/messaging/security.h"

#define CTL_KEYS_OPERATOR "operator"

/* Where they lie; `values` points into it. */
struct ctl_keys {
    char secret_file[PATH_MAX], allow_file[PATH_MAX];
    struct bt_security_values values;
};

/* Of `id`, in the cluster's directory `dir`. Not copied: it points into itself. */
void ctl_keys_init(struct ctl_keys *keys, const char *dir, const char *id);

/* A list without keys, to which ctl_keys_add adds. Errors: IO, with the path. */
enum bt_status ctl_keys_begin(const char *dir, struct bt_error *error);
/* A new key for `id`: its secret, and its line in the list. ALREADY_EXISTS, IO. */
enum bt_status ctl_keys_add(const char *dir, const char *id, struct bt_error *error);

#endif
