/* A file of YAML, as a kubeconfig is, and looking things up in it. */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_YAML_H
#define BATON_DEPLOY_BATONCTL_KUBE_YAML_H

#include <yaml.h>

#include "common/base/status.h"

#define CTL_KUBE_MAX_FILES      8
#define CTL_KUBE_MAX_YAML_BYTES (1u << 20)

struct ctl_kube_yaml {
    yaml_document_t document;
    const char *path; /* the caller's */
};

/* Errors name the file and the line: NOT_FOUND, IO, INVALID_ARGUMENT. */
enum bt_status ctl_kube_yaml_load(struct ctl_kube_yaml *file, const char *path,
                                  struct bt_error *error);
void ctl_kube_yaml_finish(struct ctl_kube_yaml *file);

/* The value of a key of a mapping; NULL: there is none, or it is no mapping. NULL for `node`: of
 * the whole. */
yaml_node_t *ctl_kube_yaml_find(const struct ctl_kube_yaml *file, yaml_node_t *node,
                                const char *key);

/* The same as text, valid as long as the file; NULL: there is none, or it is null.
 * INVALID_ARGUMENT: it is something else than one text. */
enum bt_status ctl_kube_yaml_text(const struct ctl_kube_yaml *file, yaml_node_t *node,
                                  const char *key, struct bt_error *error, const char **ret_text);

/* In the list `outer`: of the first item whose `name` is `name`, the mapping `inner`. NULL: none.
 */
yaml_node_t *ctl_kube_yaml_named(const struct ctl_kube_yaml *file, const char *outer,
                                 const char *name, const char *inner);

#endif
