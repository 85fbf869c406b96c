#include "deploy/batonctl/kube_config.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/base/file.h"
#include "deploy/batonctl/kube_yaml.h"

#define MAX_PEM_BYTES   (1u << 20)
#define MAX_TOKEN_BYTES (64u << 10)
#define ACCOUNT_DIR     "/var/run/secrets/kubernetes.io/serviceaccount"

void ctl_kube_surroundings(struct ctl_kube_surroundings *ret_surroundings)
{
    *ret_surroundings = (struct ctl_kube_surroundings){
        .kubeconfig = getenv("KUBECONFIG"),
        .home = getenv("HOME"),
        .service_host = getenv("KUBERNETES_SERVICE_HOST"),
        .service_port = getenv("KUBERNETES_SERVICE_PORT"),
        .account_dir = ACCOUNT_DIR,
    };
}

void ctl_kube_config_finish(struct ctl_kube_config *config)
{
    if (config->key)
        explicit_bzero(config->key, strlen(config->key));
    if (config->token)
        explicit_bzero(config->token, strlen(config->token));
    free(config->server);
    free(config->namespace_);
    free(config->ca);
    free(config->certificate);
    free(config->key);
    free(config->token);
    free(config->token_file);
    free(config->proxy);
    memset(config, 0, sizeof(*config));
}

bool ctl_kube_is_name(const char *text)
{
    size_t length = strlen(text);
    if (length == 0 || length > 253 || !isalnum((unsigned char)text[0]))
        return false;
    for (size_t i = 0; i < length; i++)
        if (!islower((unsigned char)text[i]) && !isdigit((unsigned char)text[i]) &&
            text[i] != '-' && text[i] != '.')
            return false;
    return !strstr(text, "..");
}

static enum bt_status no_memory(struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
}

static enum bt_status keep(const char *text, struct bt_error *error, char **ret_text)
{
    *ret_text = strdup(text);
    return *ret_text ? BT_OK : no_memory(error);
}

/* ------------------------------------------------------------------ values */

static enum bt_status set_server(struct ctl_kube_config *config, const char *url,
                                 struct bt_error *error)
{
    size_t length = strlen(url);
    bool secure = strncmp(url, "https://", 8) == 0;
    const char *host = url + (secure ? 8 : 7);
    if ((!secure && strncmp(url, "http://", 7) != 0) || !*host || *host == '/' || length > 2048)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "the kubernetes server is an http:// or https:// url, not '%.200s'",
                            url);
    for (const char *c = url; *c; c++)
        if (*c <= ' ' || *c == 0x7f || strchr("?#@\\\"<>^`{|}", *c))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "the kubernetes server's url has a character that does not belong "
                                "there, at its byte %zu",
                                (size_t)(c - url));
    while (length > 0 && url[length - 1] == '/')
        length--;
    config->server = strndup(url, length);
    return config->server ? BT_OK : no_memory(error);
}

static enum bt_status set_namespace(struct ctl_kube_config *config, const char *name,
                                    struct bt_error *error)
{
    if (!ctl_kube_is_name(name) || strchr(name, '.') || strlen(name) > 63)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "'%.100s' is no kubernetes namespace",
                            name);
    free(config->namespace_);
    return keep(name, error, &config->namespace_);
}

/* What ends up in a header; white space at its end goes. */
static enum bt_status set_token(struct ctl_kube_config *config, const char *token,
                                const char *where, struct bt_error *error)
{
    size_t length = strlen(token);
    while (length > 0 && isspace((unsigned char)token[length - 1]))
        length--;
    if (length == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: the token is empty", where);
    for (size_t i = 0; i < length; i++)
        if (token[i] <= ' ' || token[i] >= 0x7f)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: the token has a character that does not belong there", where);
    if (config->token) {
        explicit_bzero(config->token, strlen(config->token));
        free(config->token);
    }
    config->token = strndup(token, length);
    return config->token ? BT_OK : no_memory(error);
}

enum bt_status ctl_kube_config_read_token(struct ctl_kube_config *config, struct bt_error *error)
{
    char *text;
    size_t size;
    if (!config->token_file)
        return BT_OK;
    enum bt_status status = bt_file_read(config->token_file, MAX_TOKEN_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    status = set_token(config, text, config->token_file, error);
    explicit_bzero(text, size);
    free(text);
    return status;
}

static enum bt_status read_pem(const char *path, struct bt_error *error, char **ret_pem)
{
    size_t size;
    enum bt_status status = bt_file_read(path, MAX_PEM_BYTES, error, ret_pem, &size);
    if (status == BT_OK && (strlen(*ret_pem) != size || !strstr(*ret_pem, "-----BEGIN "))) {
        free(*ret_pem);
        *ret_pem = NULL;
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: this is not PEM", path);
    }
    return status;
}

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* NULL: it is not base64, or there is a NUL in it. */
static char *decode_base64(const char *text)
{
    size_t length = strlen(text), used = 0;
    char *out = malloc(length + 1);
    uint32_t bits = 0;
    unsigned count = 0, padding = 0;
    for (size_t i = 0; out && i < length; i++) {
        if (isspace((unsigned char)text[i]))
            continue;
        int digit = base64_digit(text[i]);
        padding += text[i] == '=';
        if (text[i] != '=' && (digit < 0 || padding)) {
            free(out);
            return NULL;
        }
        bits = bits << 6 | (uint32_t)(digit < 0 ? 0 : digit);
        if (++count % 4 == 0)
            for (int shift = 16; shift >= 0; shift -= 8)
                out[used++] = (char)(bits >> shift);
    }
    if (!out)
        return NULL;
    out[used - (padding <= 2 && used >= padding ? padding : 0)] = '\0';
    if (count % 4 || padding > 2 || strlen(out) + padding != used) {
        free(out);
        return NULL;
    }
    return out;
}

/* ------------------------------------------------------------------ kubeconfig */

struct entry { /* of a cluster, user or context */
    const struct ctl_kube_yaml *file;
    yaml_node_t *node;
};

/* Files named in it are below its own folder. */
static enum bt_status path_of(const struct entry *entry, const char *value, struct bt_error *error,
                              char **ret_path)
{
    const char *slash = strrchr(entry->file->path, '/');
    int folder = value[0] == '/' || !slash ? 0 : (int)(slash - entry->file->path) + 1;
    if (asprintf(ret_path, "%.*s%s", folder, entry->file->path, value) < 0)
        return no_memory(error);
    return BT_OK;
}

/* NAME-data, or the file that NAME names. Nothing of both: `*ret_pem` stays. */
static enum bt_status take_pem(const struct entry *entry, const char *name, struct bt_error *error,
                               char **ret_pem)
{
    char data_name[64];
    const char *data, *file;
    snprintf(data_name, sizeof(data_name), "%s-data", name);
    enum bt_status status = ctl_kube_yaml_text(entry->file, entry->node, data_name, error, &data);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(entry->file, entry->node, name, error, &file);
    if (status != BT_OK || (!data && !file))
        return status;
    if (data) {
        *ret_pem = decode_base64(data);
        if (!*ret_pem || !strstr(*ret_pem, "-----BEGIN "))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %s is not PEM in base64",
                                entry->file->path, data_name);
        return BT_OK;
    }
    char *path;
    status = path_of(entry, file, error, &path);
    if (status == BT_OK) {
        status = read_pem(path, error, ret_pem);
        free(path);
    }
    return status;
}

static enum bt_status take_cluster(const struct entry *cluster, struct bt_error *error,
                                   struct ctl_kube_config *config)
{
    const char *server, *proxy, *name, *insecure;
    enum bt_status status =
        ctl_kube_yaml_text(cluster->file, cluster->node, "server", error, &server);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(cluster->file, cluster->node, "proxy-url", error, &proxy);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(cluster->file, cluster->node, "tls-server-name", error, &name);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(cluster->file, cluster->node, "insecure-skip-tls-verify", error,
                                    &insecure);
    if (status == BT_OK && !server)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: the cluster has no server",
                              cluster->file->path);
    if (status == BT_OK && name)
        status = bt_error_set(error, BT_ERR_UNSUPPORTED,
                              "%s: tls-server-name is not known here; run `kubectl proxy` and give "
                              "--kube-server http://127.0.0.1:8001",
                              cluster->file->path);
    if (status != BT_OK)
        return status;
    config->insecure = insecure && strcasecmp(insecure, "true") == 0;
    if (proxy && (status = keep(proxy, error, &config->proxy)) != BT_OK)
        return status;
    status = set_server(config, server, error);
    return status == BT_OK ? take_pem(cluster, "certificate-authority", error, &config->ca)
                           : status;
}

/* Ways to log in that this program has not. */
static enum bt_status check_user(const struct entry *user, struct bt_error *error)
{
    static const char *const others[] = {"exec", "auth-provider", "username", "as", "as-uid"};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (ctl_kube_yaml_find(user->file, user->node, others[i]))
            return bt_error_set(error, BT_ERR_UNSUPPORTED,
                                "%s: the user logs in by '%s', which is not done here; run "
                                "`kubectl proxy` and give --kube-server http://127.0.0.1:8001",
                                user->file->path, others[i]);
    return BT_OK;
}

static enum bt_status take_user(const struct entry *user, struct bt_error *error,
                                struct ctl_kube_config *config)
{
    const char *token, *token_file;
    enum bt_status status = check_user(user, error);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(user->file, user->node, "token", error, &token);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(user->file, user->node, "tokenFile", error, &token_file);
    if (status == BT_OK)
        status = take_pem(user, "client-certificate", error, &config->certificate);
    if (status == BT_OK)
        status = take_pem(user, "client-key", error, &config->key);
    if (status != BT_OK)
        return status;
    if (!config->certificate != !config->key)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: a client certificate and its key come together", user->file->path);
    if (token_file) {
        status = path_of(user, token_file, error, &config->token_file);
        return status == BT_OK ? ctl_kube_config_read_token(config, error) : status;
    }
    return token ? set_token(config, token, user->file->path, error) : BT_OK;
}

/* The mapping `inner` of the first item called `name` in the lists `outer` of all files. */
static enum bt_status find_entry(const struct ctl_kube_yaml *files, size_t count, const char *outer,
                                 const char *inner, const char *name, struct bt_error *error,
                                 struct entry *ret_entry)
{
    for (size_t i = 0; i < count; i++) {
        yaml_node_t *found = ctl_kube_yaml_named(&files[i], outer, name, inner);
        if (found) {
            *ret_entry = (struct entry){&files[i], found};
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "%s: there is no '%.100s' in its %s",
                        files[0].path, name, outer);
}

static enum bt_status take_context(const struct ctl_kube_yaml *files, size_t count,
                                   const char *name, struct bt_error *error,
                                   struct ctl_kube_config *config)
{
    struct entry context = {0}, cluster = {0}, user = {0};
    const char *cluster_name = NULL, *user_name = NULL, *space = NULL;
    enum bt_status status = find_entry(files, count, "contexts", "context", name, error, &context);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(context.file, context.node, "cluster", error, &cluster_name);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(context.file, context.node, "user", error, &user_name);
    if (status == BT_OK)
        status = ctl_kube_yaml_text(context.file, context.node, "namespace", error, &space);
    if (status != BT_OK)
        return status;
    if (!cluster_name)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: context '%.100s' has no cluster",
                            context.file->path, name);
    status = find_entry(files, count, "clusters", "cluster", cluster_name, error, &cluster);
    if (status == BT_OK)
        status = take_cluster(&cluster, error, config);
    if (status == BT_OK && user_name) {
        status = find_entry(files, count, "users", "user", user_name, error, &user);
        if (status == BT_OK)
            status = take_user(&user, error, config);
    }
    if (status == BT_OK && space && *space)
        status = set_namespace(config, space, error);
    return status;
}

static enum bt_status current_context(const struct ctl_kube_yaml *files, size_t count,
                                      struct bt_error *error, const char **ret_name)
{
    for (size_t i = 0; i < count; i++) {
        const char *name;
        enum bt_status status =
            ctl_kube_yaml_text(&files[i], NULL, "current-context", error, &name);
        if (status != BT_OK)
            return status;
        if (name && *name) {
            *ret_name = name;
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND,
                        "%s has no current context; name one with --kube-context", files[0].path);
}

/* `paths`: names of files with ':' between them. Of several those that are not there do not count.
 */
static enum bt_status load_files(const char *paths, const char *context, struct bt_error *error,
                                 struct ctl_kube_config *config)
{
    struct ctl_kube_yaml files[CTL_KUBE_MAX_FILES];
    size_t count = 0;
    char *list = strdup(paths), *rest = list;
    enum bt_status status = list ? BT_OK : no_memory(error);
    for (char *path; status == BT_OK && (path = strsep(&rest, ":"));) {
        if (!*path)
            continue;
        if (count == CTL_KUBE_MAX_FILES) {
            status = bt_error_set(error, BT_ERR_EXHAUSTED, "more than %d files of kubeconfig",
                                  CTL_KUBE_MAX_FILES);
            break;
        }
        status = ctl_kube_yaml_load(&files[count], path, error);
        if (status == BT_OK)
            count++;
        else if (status == BT_ERR_NOT_FOUND && (count > 0 || rest))
            status = BT_OK;
    }
    if (status == BT_OK && count == 0)
        status = bt_error_set(error, BT_ERR_NOT_FOUND, "%.200s: no such kubeconfig", paths);
    if (status == BT_OK && !context)
        status = current_context(files, count, error, &context);
    if (status == BT_OK)
        status = take_context(files, count, context, error, config);
    while (count > 0)
        ctl_kube_yaml_finish(&files[--count]);
    free(list);
    return status;
}

/* ------------------------------------------------------------------ the other two */

static enum bt_status load_flags(const struct ctl_engine_values *values, struct bt_error *error,
                                 struct ctl_kube_config *config)
{
    enum bt_status status = set_server(config, values->kube_server, error);
    if (status == BT_OK && values->kube_ca_file)
        status = read_pem(values->kube_ca_file, error, &config->ca);
    if (status == BT_OK && values->kube_token_file) {
        status = keep(values->kube_token_file, error, &config->token_file);
        if (status == BT_OK)
            status = ctl_kube_config_read_token(config, error);
    }
    return status;
}

static enum bt_status load_account(const struct ctl_kube_surroundings *around,
                                   struct bt_error *error, struct ctl_kube_config *config)
{
    char url[600], path[PATH_MAX];
    bool v6 = strchr(around->service_host, ':');
    snprintf(url, sizeof(url), "https://%s%.255s%s:%.5s", v6 ? "[" : "", around->service_host,
             v6 ? "]" : "", around->service_port ? around->service_port : "443");
    enum bt_status status = set_server(config, url, error);
    snprintf(path, sizeof(path), "%s/ca.crt", around->account_dir);
    if (status == BT_OK)
        status = read_pem(path, error, &config->ca);
    snprintf(path, sizeof(path), "%s/token", around->account_dir);
    if (status == BT_OK)
        status = keep(path, error, &config->token_file);
    return status == BT_OK ? ctl_kube_config_read_token(config, error) : status;
}

/* In a pod, where nothing else says it. */
static enum bt_status own_namespace(const struct ctl_kube_surroundings *around,
                                    struct bt_error *error, struct ctl_kube_config *config)
{
    char path[PATH_MAX], *text;
    size_t size;
    snprintf(path, sizeof(path), "%s/namespace", around->account_dir);
    if (!around->service_host || bt_file_read(path, 256, NULL, &text, &size) != BT_OK)
        return set_namespace(config, "default", error);
    text[strcspn(text, " \r\n")] = '\0';
    enum bt_status status = set_namespace(config, text, error);
    free(text);
    return status;
}

/* A token over plain HTTP is for the machine itself alone. */
static enum bt_status check_clear(const struct ctl_kube_config *config, struct bt_error *error)
{
    static const char *const own[] = {"http://127.0.0.1", "http://[::1]", "http://localhost"};
    if (!config->token || strncmp(config->server, "http://", 7) != 0)
        return BT_OK;
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        size_t length = strlen(own[i]);
        char next = strncmp(config->server, own[i], length) == 0 ? config->server[length] : 'x';
        if (next == '\0' || next == ':' || next == '/')
            return BT_OK;
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "a token is not sent to %.200s, where others can read it: use https",
                        config->server);
}

static enum bt_status load(const struct ctl_engine_values *values,
                           const struct ctl_kube_surroundings *around, struct bt_error *error,
                           struct ctl_kube_config *config)
{
    char home[PATH_MAX] = "";
    if (values->kube_server)
        return load_flags(values, error, config);
    if (around->home && *around->home)
        snprintf(home, sizeof(home), "%s/.kube/config", around->home);
    bool given = around->kubeconfig && *around->kubeconfig;
    if (values->kubeconfig)
        return load_files(values->kubeconfig, values->kube_context, error, config);
    if (given)
        return load_files(around->kubeconfig, values->kube_context, error, config);
    if (*home && (values->kube_context || access(home, R_OK) == 0))
        return load_files(home, values->kube_context, error, config);
    if (around->service_host && *around->service_host)
        return load_account(around, error, config);
    return bt_error_set(error, BT_ERR_NOT_FOUND,
                        "no kubernetes here: neither --kube-server nor --kubeconfig, $KUBECONFIG, "
                        "~/.kube/config or a pod's service account");
}

enum bt_status ctl_kube_config_load(const struct ctl_engine_values *values,
                                    const struct ctl_kube_surroundings *surroundings,
                                    struct bt_error *error, struct ctl_kube_config *ret_config)
{
    struct ctl_kube_config config = {0};
    enum bt_status status = load(values, surroundings, error, &config);
    if (status == BT_OK && values->namespace_)
        status = set_namespace(&config, values->namespace_, error);
    else if (status == BT_OK && !config.namespace_)
        status = own_namespace(surroundings, error, &config);
    if (status == BT_OK)
        status = check_clear(&config, error);
    if (status == BT_OK)
        *ret_config = config;
    else
        ctl_kube_config_finish(&config);
    return status;
}
