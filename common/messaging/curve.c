#include "common/messaging/curve.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/messaging/refusal.h"
#include "common/messaging/wire.h"

/* Known to the library from 4.3 on and not in its stable header: without a handler for our domain
 * it refuses instead of admitting everybody. */
#define ZAP_ENFORCE_DOMAIN 93
#define USER_FORMAT        "%016" PRIx64 ".%zu"
#define USER_WORD_DIGITS   16

/* ------------------------------------------------------------------ addresses */

static bool is_inproc(const char *address)
{
    return strncmp(address, "inproc://", 9) == 0;
}

static enum bt_status address_check(const struct bt_security *security, const char *address,
                                    bool has_key, struct bt_error *error)
{
    if (!security && has_key) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s: the endpoint names a key, and this process has none of its own "
                            "(--curve-secret-file)",
                            address);
    }
    if (security && is_inproc(address)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: CURVE does not cover inproc",
                            address);
    }
    return BT_OK;
}

enum bt_status bt_curve_server_address(const struct bt_security *security, const char *endpoint,
                                       struct bt_error *error, char ret_address[BT_ENDPOINT_SIZE])
{
    struct bt_key key;
    bool has_key;
    enum bt_status status = bt_endpoint_split(endpoint, error, ret_address, &has_key, &key);
    if (status == BT_OK) {
        status = address_check(security, ret_address, has_key, error);
    }
    if (status == BT_OK && has_key) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "%s: a server is told no key, it has the one of its secret file",
                              ret_address);
    }
    return status;
}

enum bt_status bt_curve_client_address(const struct bt_security *security, const char *endpoint,
                                       struct bt_error *error, char ret_address[BT_ENDPOINT_SIZE],
                                       struct bt_key *ret_key)
{
    bool has_key;
    enum bt_status status = bt_endpoint_split(endpoint, error, ret_address, &has_key, ret_key);
    if (status == BT_OK) {
        status = address_check(security, ret_address, has_key, error);
    }
    if (status == BT_OK && security && !has_key) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "%s: the endpoint names no key of the server (%s#KEY), and this "
                              "process speaks to none without",
                              ret_address, ret_address);
    }
    return status;
}

/* ------------------------------------------------------------------ sockets */

static enum bt_status option_failed(struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_INTERNAL, "CURVE: zmq_setsockopt: %s", zmq_strerror(errno));
}

enum bt_status bt_curve_server_setup(const struct bt_security *security, void *socket,
                                     struct bt_error *error)
{
    if (!security) {
        return BT_OK;
    }
    int on = 1;
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &on, sizeof on) < 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, security->secret_key.bytes, BT_KEY_BYTES) < 0 ||
        zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, BT_CURVE_DOMAIN, strlen(BT_CURVE_DOMAIN)) < 0) {
        return option_failed(error);
    }
    /* A library that does not know it admits without asking where nobody answers: then messages
     * carry no user of ours, and are refused one by one. */
    (void)zmq_setsockopt(socket, ZAP_ENFORCE_DOMAIN, &on, sizeof on);
    return BT_OK;
}

enum bt_status bt_curve_client_setup(const struct bt_security *security, void *socket,
                                     const struct bt_key *server, struct bt_error *error)
{
    if (!security) {
        return BT_OK;
    }
    const struct bt_known_key *known = bt_curve_find(security, server);
    if (!known || !known->allowed) {
        char hex[BT_KEY_HEX_SIZE];
        bt_key_to_hex(server, hex);
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the server's key %s is not in %s", hex,
                            security->allow_path);
    }
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server->bytes, BT_KEY_BYTES) < 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, security->public_key.bytes, BT_KEY_BYTES) < 0 ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, security->secret_key.bytes, BT_KEY_BYTES) < 0) {
        return option_failed(error);
    }
    return BT_OK;
}

/* ------------------------------------------------------------------ whose message it is */

struct bt_known_key *bt_curve_user(const struct bt_security *security, zmq_msg_t *part)
{
    const char *user = zmq_msg_gets(part, "User-Id");
    if (!user || strlen(user) <= USER_WORD_DIGITS || user[USER_WORD_DIGITS] != '.') {
        return NULL;
    }
    char expected[BT_CURVE_USER_SIZE];
    char *end;
    size_t number = strtoul(user + USER_WORD_DIGITS + 1, &end, 10);
    snprintf(expected, sizeof expected, USER_FORMAT, security->word, number);
    unsigned differs = *end != '\0';
    for (size_t i = 0; i < USER_WORD_DIGITS; i++) { /* in constant time: the word is a secret */
        differs |= (unsigned char)(user[i] ^ expected[i]);
    }
    return differs || number >= security->known_count ? NULL : security->known[number];
}

/* ------------------------------------------------------------------ the handler */

/* The parts of a question, behind which the credentials come: one part, the key. */
enum zap_part {
    ZAP_VERSION,
    ZAP_REQUEST,
    ZAP_DOMAIN,
    ZAP_ADDRESS,
    ZAP_ROUTING_ID,
    ZAP_MECHANISM,
    ZAP_KEY,
    ZAP_PARTS
};
#define ZAP_PART_SIZE       256
#define QUESTIONS_PER_ROUND 64

struct question {
    char parts[ZAP_PARTS][ZAP_PART_SIZE]; /* NUL-terminated */
    size_t sizes[ZAP_PARTS];
    bool good;
};

/* False: nothing there. */
static bool question_receive(void *zap, struct question *ret_question)
{
    *ret_question = (struct question){.good = true};
    size_t count = 0;
    int more = 1;
    size_t more_size = sizeof more;
    while (more) {
        char spare[ZAP_PART_SIZE];
        char *part = count < ZAP_PARTS ? ret_question->parts[count] : spare;
        int size = zmq_recv(zap, part, ZAP_PART_SIZE - 1, ZMQ_DONTWAIT);
        if (size < 0) {
            return false;
        }
        if (count >= ZAP_PARTS || size >= ZAP_PART_SIZE) {
            ret_question->good = false;
        } else {
            ret_question->sizes[count] = (size_t)size;
        }
        count++;
        if (zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &more_size) < 0) {
            return false;
        }
    }
    ret_question->good = ret_question->good && count == ZAP_PARTS &&
                         strcmp(ret_question->parts[ZAP_VERSION], "1.0") == 0 &&
                         strcmp(ret_question->parts[ZAP_DOMAIN], BT_CURVE_DOMAIN) == 0 &&
                         strcmp(ret_question->parts[ZAP_MECHANISM], "CURVE") == 0 &&
                         ret_question->sizes[ZAP_KEY] == BT_KEY_BYTES;
    return true;
}

static void answer_send(void *zap, const struct question *question, const char *code,
                        const char *text, const char *user)
{
    const int more = ZMQ_DONTWAIT | ZMQ_SNDMORE;
    zmq_send(zap, "1.0", 3, more);
    zmq_send(zap, question->parts[ZAP_REQUEST], question->sizes[ZAP_REQUEST], more);
    zmq_send(zap, code, strlen(code), more);
    zmq_send(zap, text, strlen(text), more);
    zmq_send(zap, user, strlen(user), more);
    zmq_send(zap, "", 0, ZMQ_DONTWAIT);
}

static void key_refuse(struct bt_security *security, const struct question *question,
                       const struct bt_key *key, const struct bt_known_key *known)
{
    char hex[BT_KEY_HEX_SIZE];
    bt_key_to_hex(key, hex);
    bt_refusal_add(bt_loop_refusals(security->loop), BT_REFUSED_KEY,
                   "from %s: its key %s%s%s%s is not in %s", question->parts[ZAP_ADDRESS], hex,
                   known ? " (was '" : "", known ? known->name : "", known ? "')" : "",
                   security->allow_path);
}

static void question_answer(struct bt_security *security, const struct question *question)
{
    if (!question->good) {
        answer_send(security->zap, question, "500", "malformed request", "");
        return;
    }
    struct bt_key key;
    memcpy(key.bytes, question->parts[ZAP_KEY], BT_KEY_BYTES);
    const struct bt_known_key *known = bt_curve_find(security, &key);
    if (!known || !known->allowed) {
        key_refuse(security, question, &key, known);
        answer_send(security->zap, question, "400", "not admitted", "");
        return;
    }
    char user[BT_CURVE_USER_SIZE];
    snprintf(user, sizeof user, USER_FORMAT, security->word, known->number);
    answer_send(security->zap, question, "200", "OK", user);
}

static void on_question(void *context)
{
    struct bt_security *security = context;
    struct question question;
    for (int i = 0; i < QUESTIONS_PER_ROUND && question_receive(security->zap, &question); i++) {
        question_answer(security, &question);
    }
}

enum bt_status bt_curve_zap_start(struct bt_security *security, struct bt_error *error)
{
    int linger_ms = 0;
    security->zap = zmq_socket(bt_loop_zmq(security->loop), ZMQ_REP);
    if (!security->zap ||
        zmq_setsockopt(security->zap, ZMQ_LINGER, &linger_ms, sizeof linger_ms) < 0 ||
        zmq_bind(security->zap, "inproc://zeromq.zap.01") < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "CURVE: handler of admissions: %s",
                            zmq_strerror(errno));
    }
    security->zap_source = bt_loop_add_socket(security->loop, security->zap, on_question, security);
    return security->zap_source ? BT_OK
                                : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for CURVE");
}

void bt_curve_zap_stop(struct bt_security *security)
{
    bt_loop_remove(security->zap_source);
    security->zap_source = NULL;
    if (security->zap) {
        zmq_close(security->zap);
        security->zap = NULL;
    }
}

/* ------------------------------------------------------------------ failures */

static void explain_protocol(const struct bt_security *security, int32_t value, char *ret_text,
                             size_t size)
{
    if (value != (int32_t)ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH) {
        snprintf(ret_text, size, "the server broke the handshake's protocol (0x%x)",
                 (unsigned)value);
    } else if (security) {
        snprintf(ret_text, size,
                 "the server runs without CURVE, and this process speaks to none without");
    } else {
        snprintf(ret_text, size,
                 "the server wants CURVE, and this process has no key (--curve-secret-file)");
    }
}

void bt_curve_explain_server(const struct bt_security *security,
                             const struct bt_monitor_event *event, int64_t waited_ms,
                             char *ret_text, size_t size)
{
    if (event->event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) {
        explain_protocol(security, event->value, ret_text, size);
    } else if (event->event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        snprintf(ret_text, size, "the server does not admit our key %s (%d)",
                 security ? security->public_hex : "", (int)event->value);
    } else if (waited_ms >= BT_WIRE_HANDSHAKE_MS / 2) {
        snprintf(ret_text, size, "the server did not finish the handshake in %d ms",
                 BT_WIRE_HANDSHAKE_MS);
    } else {
        snprintf(ret_text, size, "the server closed the connection in the handshake: %s",
                 security ? "its key is not the one in the endpoint, or it runs without CURVE"
                          : "it may want CURVE, or be no server of this kind");
    }
}

const char *bt_curve_explain_client(const struct bt_security *security, int32_t value)
{
    if (value == (int32_t)ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH) {
        return security ? "it runs without CURVE" : "it wants CURVE, and this process has no key";
    }
    return value == (int32_t)ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
               ? "it takes this server for one with another key"
               : "it broke the handshake's protocol";
}
