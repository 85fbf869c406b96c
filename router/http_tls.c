#include "router/http_tls.h"

#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"

#define FILE_INTERVAL_NS BT_NS_PER_S
#define MAX_FILE_BYTES   (1u << 20)
#define MAX_CHAIN        16
#define KEY_ID_BYTES     64
/* Handshakes that began with a pair are over by then. */
#define RETIRED_NS (600 * BT_NS_PER_S)

static const char priorities[] = "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1";

struct pair {
    gnutls_pcert_st chain[MAX_CHAIN];
    unsigned chain_length;
    gnutls_privkey_t key;
    int64_t retired_ns;
    struct pair *next; /* older */
};

struct rt_http_tls {
    char *cert_file, *key_file;
    struct bt_file_watch cert_watch, key_watch;
    struct bt_loop_source *timer;
    struct pair *pairs; /* the first is in force */
};

static struct rt_http_tls *the_one;

static void pair_destroy(struct pair *pair)
{
    for (unsigned i = 0; i < pair->chain_length; i++)
        gnutls_pcert_deinit(&pair->chain[i]);
    gnutls_privkey_deinit(pair->key);
    free(pair);
}

/* ------------------------------------------------------------------ files */

static enum bt_status wrong(const char *path, int code, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %s", path, gnutls_strerror(code));
}

static enum bt_status read_chain(const char *path, struct pair *pair, struct bt_error *error)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, MAX_FILE_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    gnutls_datum_t datum = {(unsigned char *)text, (unsigned)size};
    unsigned length = MAX_CHAIN;
    int code =
        gnutls_pcert_list_import_x509_raw(pair->chain, &length, &datum, GNUTLS_X509_FMT_PEM, 0);
    free(text);
    if (code < 0)
        return wrong(path, code, error);
    pair->chain_length = length;
    return BT_OK;
}

static enum bt_status check_mode(const char *path, struct bt_error *error)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return bt_error_set(error, errno == ENOENT ? BT_ERR_NOT_FOUND : BT_ERR_IO, "%s: %s", path,
                            strerror(errno));
    if (info.st_mode & (S_IRWXO | S_IWGRP))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: mode %04o lets others at the key; it must be 0600, or 0640 for a "
                            "group",
                            path, (unsigned)info.st_mode & 07777u);
    return BT_OK;
}

static enum bt_status read_key(const char *path, struct pair *pair, struct bt_error *error)
{
    char *text;
    size_t size;
    enum bt_status status = check_mode(path, error);
    if (status == BT_OK)
        status = bt_file_read(path, MAX_FILE_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    gnutls_datum_t datum = {(unsigned char *)text, (unsigned)size};
    int code = gnutls_privkey_import_x509_raw(pair->key, &datum, GNUTLS_X509_FMT_PEM, NULL, 0);
    explicit_bzero(text, size);
    free(text);
    return code < 0 ? wrong(path, code, error) : BT_OK;
}

static bool belong_together(const struct pair *pair)
{
    gnutls_pubkey_t public;
    unsigned char of_key[KEY_ID_BYTES], of_cert[KEY_ID_BYTES];
    size_t key_size = sizeof of_key, cert_size = sizeof of_cert;
    if (gnutls_pubkey_init(&public) != 0)
        return false;
    bool same = gnutls_pubkey_import_privkey(public, pair->key, 0, 0) == 0 &&
                gnutls_pubkey_get_key_id(public, GNUTLS_KEYID_USE_SHA256, of_key, &key_size) == 0 &&
                gnutls_pubkey_get_key_id(pair->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, of_cert,
                                         &cert_size) == 0 &&
                key_size == cert_size && memcmp(of_key, of_cert, key_size) == 0;
    gnutls_pubkey_deinit(public);
    return same;
}

static enum bt_status load(struct rt_http_tls *tls, struct bt_error *error)
{
    struct pair *pair = calloc(1, sizeof *pair);
    if (pair == NULL || gnutls_privkey_init(&pair->key) != 0) {
        free(pair);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a certificate");
    }
    bt_file_watch_mark(&tls->cert_watch, tls->cert_file);
    bt_file_watch_mark(&tls->key_watch, tls->key_file);
    enum bt_status status = read_chain(tls->cert_file, pair, error);
    if (status == BT_OK)
        status = read_key(tls->key_file, pair, error);
    if (status == BT_OK && !belong_together(pair))
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is not the key of %s",
                              tls->key_file, tls->cert_file);
    if (status != BT_OK) {
        pair_destroy(pair);
        return status;
    }
    if (tls->pairs != NULL)
        tls->pairs->retired_ns = bt_clock_now_ns();
    pair->next = tls->pairs;
    tls->pairs = pair;
    return BT_OK;
}

static void drop_retired(struct rt_http_tls *tls, int64_t before_ns)
{
    struct pair **at = &tls->pairs->next;
    while (*at != NULL) {
        struct pair *pair = *at;
        if (pair->retired_ns < before_ns) {
            *at = pair->next;
            pair_destroy(pair);
        } else {
            at = &pair->next;
        }
    }
}

/* Of two files that change one after the other the first look may see a pair that does not match;
 * the other's change brings the next. */
static void on_timer(void *context)
{
    struct rt_http_tls *tls = context;
    struct bt_error error;
    bool cert = bt_file_watch_look(&tls->cert_watch, tls->cert_file);
    bool key = bt_file_watch_look(&tls->key_watch, tls->key_file);
    if (cert || key) {
        if (load(tls, &error) == BT_OK)
            bt_log_info(0, "%s: a new certificate is in force", tls->cert_file);
        else
            bt_log_warn(0, "%s; the certificate before stays in force", error.text);
    }
    drop_retired(tls, bt_clock_now_ns() - RETIRED_NS);
    bt_loop_timer_set(tls->timer, bt_clock_now_ns() + FILE_INTERVAL_NS);
}

/* ------------------------------------------------------------------ the library */

/* A gnutls_certificate_retrieve_function2; what it gives stays ours. */
static int retrieve(gnutls_session_t session, const gnutls_datum_t *authorities, int count,
                    const gnutls_pk_algorithm_t *algorithms, int algorithm_count,
                    gnutls_pcert_st **ret_chain, unsigned *ret_length, gnutls_privkey_t *ret_key)
{
    (void)session;
    (void)authorities;
    (void)count;
    (void)algorithms;
    (void)algorithm_count;
    *ret_chain = the_one->pairs->chain;
    *ret_length = the_one->pairs->chain_length;
    *ret_key = the_one->pairs->key;
    return 0;
}

void rt_http_tls_options(const struct rt_http_tls *tls,
                         struct MHD_OptionItem ret_items[RT_HTTP_TLS_OPTIONS])
{
    (void)tls;
    /* The library takes functions from the same member as pointers. */
    ret_items[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_CERT_CALLBACK, 0,
                                           (void *)(uintptr_t)retrieve};
    ret_items[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)priorities};
    ret_items[2] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
}

enum bt_status rt_http_tls_create(struct bt_loop *loop, const char *cert_file, const char *key_file,
                                  struct bt_error *error, struct rt_http_tls **ret_tls)
{
    BT_ASSERT(the_one == NULL);
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES ||
        MHD_is_feature_supported(MHD_FEATURE_HTTPS_CERT_CALLBACK) != MHD_YES)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "libmicrohttpd was built without TLS");
    struct rt_http_tls *tls = calloc(1, sizeof *tls);
    if (tls == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for TLS");
    enum bt_status status = BT_OK;
    tls->cert_file = strdup(cert_file);
    tls->key_file = strdup(key_file);
    tls->timer = bt_loop_add_timer(loop, bt_clock_now_ns() + FILE_INTERVAL_NS, on_timer, tls);
    if (tls->cert_file == NULL || tls->key_file == NULL || tls->timer == NULL)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for TLS");
    if (status == BT_OK)
        status = load(tls, error);
    if (status != BT_OK) {
        rt_http_tls_destroy(tls);
        return status;
    }
    *ret_tls = the_one = tls;
    return BT_OK;
}

void rt_http_tls_destroy(struct rt_http_tls *tls)
{
    if (tls == NULL)
        return;
    if (the_one == tls)
        the_one = NULL;
    while (tls->pairs != NULL) {
        struct pair *pair = tls->pairs;
        tls->pairs = pair->next;
        pair_destroy(pair);
    }
    bt_loop_remove(tls->timer);
    free(tls->cert_file);
    free(tls->key_file);
    free(tls);
}
