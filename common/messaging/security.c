#include "common/messaging/security.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/curve.h"

#define FILE_INTERVAL_NS BT_NS_PER_S
#define MAX_KNOWN_KEYS   (4 * BT_ALLOW_MAX_KEYS)
#define Z85_SIZE         41 /* of a key, with the NUL */

/* ------------------------------------------------------------------ known keys */

static uint64_t key_hash(const struct bt_key *key)
{
    uint64_t hash;
    memcpy(&hash, key->bytes, sizeof hash); /* keys are as good as random */
    return hash;
}

struct bt_known_key *bt_curve_find(const struct bt_security *security, const struct bt_key *key)
{
    struct bt_known_key *known = bt_map_get(&security->known_by_hash, key_hash(key));
    while (known && !bt_key_equal(&known->key, key)) {
        known = known->next_same_hash;
    }
    return known;
}

/* Room for `more` keys in the list by number. */
static bool known_reserve(struct bt_security *security, size_t more)
{
    size_t capacity = security->known_count + more;
    void *grown = realloc(security->known, capacity * sizeof(struct bt_known_key *));
    if (!grown) {
        return false;
    }
    security->known = grown;
    return true;
}

static struct bt_known_key *known_add(struct bt_security *security, const struct bt_key *key)
{
    struct bt_known_key *known = calloc(1, sizeof *known);
    if (!known) {
        return NULL;
    }
    known->key = *key;
    known->number = security->known_count;
    known->next_same_hash = bt_map_get(&security->known_by_hash, key_hash(key));
    if (!bt_map_put(&security->known_by_hash, key_hash(key), known)) {
        free(known);
        return NULL;
    }
    security->known[security->known_count++] = known;
    return known;
}

/* Makes all keys of the list known. Keys that were added before an error change nothing: they are
 * not allowed. */
static enum bt_status list_learn(struct bt_security *security, const struct bt_allow_list *list,
                                 struct bt_error *error)
{
    size_t new_count = 0;
    for (size_t i = 0; i < list->count; i++) {
        new_count += !bt_curve_find(security, &list->lines[i].key);
    }
    if (security->known_count + new_count > MAX_KNOWN_KEYS) {
        return bt_error_set(error, BT_ERR_EXHAUSTED,
                            "%s: more than %d keys since the process started", security->allow_path,
                            MAX_KNOWN_KEYS);
    }
    if (new_count > 0 && !known_reserve(security, new_count)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for %zu keys", new_count);
    }
    for (size_t i = 0; i < list->count; i++) {
        if (!bt_curve_find(security, &list->lines[i].key) &&
            !known_add(security, &list->lines[i].key)) {
            return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a key");
        }
    }
    return BT_OK;
}

static void watches_tell(const struct bt_security *security)
{
    for (struct bt_curve_watch *watch = security->watches.next; watch != &security->watches;
         watch = watch->next) {
        watch->changed(watch->context);
    }
}

/* All keys of the list are known. */
static void list_enforce(struct bt_security *security, const struct bt_allow_list *list)
{
    size_t added = 0, removed = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct bt_known_key *known = bt_curve_find(security, &list->lines[i].key);
        known->listed = true;
        memcpy(known->name, list->lines[i].name, sizeof known->name);
    }
    for (size_t i = 0; i < security->known_count; i++) {
        struct bt_known_key *known = security->known[i];
        added += known->listed && !known->allowed;
        removed += !known->listed && known->allowed;
        known->allowed = known->listed;
        known->listed = false;
    }
    security->allowed_count = list->count;
    bt_log_info(0, "%s: %zu keys are admitted, %zu of them new, %zu no more", security->allow_path,
                list->count, added, removed);
    if (added + removed > 0) {
        watches_tell(security);
    }
}

/* ------------------------------------------------------------------ the file of the list */

static enum bt_status list_load(struct bt_security *security, struct bt_error *error)
{
    struct bt_allow_list list;
    bt_file_watch_mark(&security->file, security->allow_path);
    enum bt_status status = bt_allow_list_read(security->allow_path, error, &list);
    if (status != BT_OK) {
        return status;
    }
    status = list_learn(security, &list, error);
    if (status == BT_OK) {
        list_enforce(security, &list);
    }
    bt_allow_list_finish(&list);
    return status;
}

static void on_file_timer(void *context)
{
    struct bt_security *security = context;
    struct bt_error error;
    if (bt_file_watch_look(&security->file, security->allow_path) &&
        list_load(security, &error) != BT_OK) {
        bt_log_warn(0, "%s; the %zu keys read before stay admitted", error.text,
                    security->allowed_count);
    }
    bt_loop_timer_set(security->file_timer, bt_clock_now_ns() + FILE_INTERVAL_NS);
}

enum bt_status bt_security_reload(struct bt_loop *loop, struct bt_error *error)
{
    struct bt_security *security = bt_loop_security(loop);
    return security ? list_load(security, error) : BT_OK;
}

/* ------------------------------------------------------------------ watches */

void bt_curve_watch_add(struct bt_security *security, struct bt_curve_watch *watch)
{
    watch->next = &security->watches;
    watch->previous = security->watches.previous;
    watch->previous->next = watch;
    watch->next->previous = watch;
}

void bt_curve_watch_remove(struct bt_curve_watch *watch)
{
    if (watch->next) {
        watch->next->previous = watch->previous;
        watch->previous->next = watch->next;
        watch->next = watch->previous = NULL;
    }
}

/* ------------------------------------------------------------------ keys of the library */

static enum bt_status curve_available(struct bt_error *error)
{
    return zmq_has("curve") ? BT_OK
                            : bt_error_set(error, BT_ERR_UNSUPPORTED,
                                           "CURVE: the ZeroMQ library was built without it");
}

static enum bt_status public_derive(const struct bt_key *secret, struct bt_error *error,
                                    struct bt_key *ret_public)
{
    char secret_text[Z85_SIZE], public_text[Z85_SIZE];
    bool good = zmq_z85_encode(secret_text, secret->bytes, BT_KEY_BYTES) &&
                zmq_curve_public(public_text, secret_text) == 0 &&
                zmq_z85_decode(ret_public->bytes, public_text);
    explicit_bzero(secret_text, sizeof secret_text);
    return good ? BT_OK
                : bt_error_set(error, BT_ERR_INTERNAL, "CURVE: zmq_curve_public: %s",
                               zmq_strerror(errno));
}

/* ------------------------------------------------------------------ life */

void bt_security_destroy(struct bt_security *security)
{
    if (!security) {
        return;
    }
    bt_loop_remove(security->file_timer);
    bt_curve_zap_stop(security);
    for (size_t i = 0; i < security->known_count; i++) {
        free(security->known[i]);
    }
    free(security->known);
    bt_map_finish(&security->known_by_hash);
    free(security->allow_path);
    explicit_bzero(security, sizeof *security);
    free(security);
}

static enum bt_status security_fill(struct bt_security *security,
                                    const struct bt_security_values *values, struct bt_error *error)
{
    enum bt_status status = bt_secret_read(values->secret_file, error, &security->secret_key);
    if (status != BT_OK) {
        return status;
    }
    status = public_derive(&security->secret_key, error, &security->public_key);
    if (status != BT_OK) {
        return status;
    }
    bt_key_to_hex(&security->public_key, security->public_hex);
    security->allow_path = strdup(values->allow_file);
    security->file_timer = bt_loop_add_timer(security->loop, bt_clock_now_ns() + FILE_INTERVAL_NS,
                                             on_file_timer, security);
    if (!security->allow_path || !security->file_timer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for CURVE");
    }
    status = list_load(security, error);
    return status == BT_OK ? bt_curve_zap_start(security, error) : status;
}

enum bt_status bt_security_values_check(const struct bt_security_values *values,
                                        struct bt_error *error)
{
    if (!values->secret_file != !values->allow_file) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--curve-secret-file and --curve-allow-file go together");
    }
    return BT_OK;
}

enum bt_status bt_loop_secure(struct bt_loop *loop, const struct bt_security_values *values,
                              struct bt_error *error)
{
    BT_ASSERT(!bt_loop_security(loop) && bt_loop_has_no_sockets(loop));
    enum bt_status status = bt_security_values_check(values, error);
    if (status != BT_OK || !values->secret_file) {
        return status;
    }
    status = curve_available(error);
    if (status != BT_OK) {
        return status;
    }
    struct bt_security *security = calloc(1, sizeof *security);
    if (!security) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for CURVE");
    }
    security->loop = loop;
    security->word = bt_random_entropy();
    bt_map_init(&security->known_by_hash);
    security->watches.next = security->watches.previous = &security->watches;
    status = security_fill(security, values, error);
    if (status != BT_OK) {
        bt_security_destroy(security);
        return status;
    }
    bt_loop_set_security(loop, security);
    bt_log_info(0, "rpc is secured by CURVE; our public key is %s", security->public_hex);
    return BT_OK;
}

const char *bt_loop_public_key(const struct bt_loop *loop)
{
    const struct bt_security *security = bt_loop_security(loop);
    return security ? security->public_hex : NULL;
}

/* ------------------------------------------------------------------ a new key */

static enum bt_status secret_write(const char *path, const struct bt_key *secret,
                                   const char *public_hex, struct bt_error *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return bt_error_set(error, errno == EEXIST ? BT_ERR_ALREADY_EXISTS : BT_ERR_IO, "%s: %s",
                            path, strerror(errno));
    }
    char hex[BT_KEY_HEX_SIZE], text[256];
    bt_key_to_hex(secret, hex);
    int length = snprintf(text, sizeof text, "# public key %s\nsecret-key %s\n", public_hex, hex);
    bool good =
        fchmod(fd, 0600) == 0 && write(fd, text, (size_t)length) == length && fsync(fd) == 0;
    int failed = errno;
    explicit_bzero(hex, sizeof hex);
    explicit_bzero(text, sizeof text);
    if (close(fd) != 0 || !good) {
        unlink(path);
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(good ? errno : failed));
    }
    return BT_OK;
}

enum bt_status bt_security_generate(const char *secret_path, struct bt_error *error,
                                    char ret_public_hex[BT_KEY_HEX_SIZE])
{
    enum bt_status status = curve_available(error);
    if (status != BT_OK) {
        return status;
    }
    char public_text[Z85_SIZE], secret_text[Z85_SIZE], public_hex[BT_KEY_HEX_SIZE];
    struct bt_key public, secret;
    if (zmq_curve_keypair(public_text, secret_text) != 0 ||
        !zmq_z85_decode(public.bytes, public_text) || !zmq_z85_decode(secret.bytes, secret_text)) {
        status = bt_error_set(error, BT_ERR_INTERNAL, "CURVE: zmq_curve_keypair: %s",
                              zmq_strerror(errno));
    } else {
        bt_key_to_hex(&public, public_hex);
        status = secret_write(secret_path, &secret, public_hex, error);
    }
    explicit_bzero(secret_text, sizeof secret_text);
    explicit_bzero(&secret, sizeof secret);
    if (status == BT_OK) {
        memcpy(ret_public_hex, public_hex, sizeof public_hex);
    }
    return status;
}
