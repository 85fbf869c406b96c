/*
 * Where the Kubernetes API is and who we are to it: from flags, a kubeconfig, or what a pod is
 * given. Files are bounded and hostile until parsed; what goes into a header or a path is checked.
 */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_CONFIG_H
#define BATON_DEPLOY_BATONCTL_KUBE_CONFIG_H

#include <stdbool.h>

#include "common/base/status.h"
#include "deploy/batonctl/engine.h"

/* Everything is malloc'd; NULL where there is none. */
struct ctl_kube_config {
    char *server;            /* http:// or https://, maybe with a path; no '/' at its end */
    char *namespace_;        /* a DNS label */
    char *ca;                /* PEM; NULL: the system's */
    char *certificate, *key; /* PEM; both or none */
    char *token;             /* printable */
    char *token_file;        /* read again when the token is refused */
    char *proxy;
    bool insecure;
};

/* What a process has around it; of itself by ctl_kube_surroundings. */
struct ctl_kube_surroundings {
    const char *kubeconfig;   /* $KUBECONFIG: files, with ':' between them; NULL or "": none */
    const char *home;         /* its .kube/config */
    const char *service_host; /* $KUBERNETES_SERVICE_HOST, in a pod */
    const char *service_port;
    const char *account_dir; /* token, ca.crt and namespace of the pod's service account */
};
void ctl_kube_surroundings(struct ctl_kube_surroundings *ret_surroundings);

/*
 * The first of: --kube-server, --kubeconfig or --kube-context, $KUBECONFIG, ~/.kube/config if it
 * is there, the pod's service account. Errors name the file and the place: INVALID_ARGUMENT,
 * UNSUPPORTED (a way to log in that needs another program: `kubectl proxy` does it), NOT_FOUND (no
 * file, context, …), IO.
 */
enum bt_status ctl_kube_config_load(const struct ctl_engine_values *values,
                                    const struct ctl_kube_surroundings *surroundings,
                                    struct bt_error *error, struct ctl_kube_config *ret_config);
void ctl_kube_config_finish(struct ctl_kube_config *config);

/* Reads token_file, if there is one. */
enum bt_status ctl_kube_config_read_token(struct ctl_kube_config *config, struct bt_error *error);

/* Of an object, as it may stand in a path: lower case, digits, '-' and '.'. */
bool ctl_kube_is_name(const char *text);

#endif
