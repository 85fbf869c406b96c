#include "router/http_framing.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

struct headers {
    const char *length, *coding; /* the first of each; NULL: none */
    bool other_length;           /* one that differs from the first */
    bool codings;                /* several */
    const char *spaced;          /* a name with a space or a control character */
};

/* Names end at the colon: a space before it belongs to none, and some readers take it off. */
static bool is_name(const char *name)
{
    for (const unsigned char *at = (const unsigned char *)name; *at != '\0'; at++)
        if (*at <= ' ' || *at == 0x7f)
            return false;
    return true;
}

static enum MHD_Result look(void *context, enum MHD_ValueKind kind, const char *name,
                            const char *value)
{
    struct headers *headers = context;
    (void)kind;
    value = value != NULL ? value : "";
    if (!is_name(name)) {
        headers->spaced = name;
    } else if (strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0) {
        headers->other_length |= headers->length != NULL && strcmp(headers->length, value) != 0;
        headers->length = headers->length != NULL ? headers->length : value;
    } else if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0) {
        headers->codings |= headers->coding != NULL;
        headers->coding = headers->coding != NULL ? headers->coding : value;
    }
    return MHD_YES;
}

static enum bt_status refuse(struct rt_openai_error *error, int http_status, const char *text,
                             const char *value)
{
    rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "bad_request", text, value);
    error->http_status = http_status;
    return BT_ERR_INVALID_ARGUMENT;
}

enum bt_status rt_http_framing_check(struct MHD_Connection *connection, const char *version,
                                     struct rt_openai_error *error)
{
    struct headers headers = {0};
    MHD_get_connection_values(connection, MHD_HEADER_KIND, look, &headers);
    if (headers.spaced != NULL)
        return refuse(error, MHD_HTTP_BAD_REQUEST, "the header name \"%.40s\" has a space in it",
                      headers.spaced);
    if (headers.other_length)
        return refuse(error, MHD_HTTP_BAD_REQUEST,
                      "Content-Length is there twice, first as %.20s, then as another",
                      headers.length);
    if (headers.coding == NULL)
        return BT_OK;
    if (headers.codings || strcasecmp(headers.coding, "chunked") != 0)
        return refuse(error, MHD_HTTP_NOT_IMPLEMENTED,
                      "Transfer-Encoding must be chunked and nothing else, not %.40s",
                      headers.coding);
    if (headers.length != NULL)
        return refuse(error, MHD_HTTP_BAD_REQUEST,
                      "Content-Length %.20s and Transfer-Encoding exclude each other",
                      headers.length);
    if (strcmp(version, MHD_HTTP_VERSION_1_1) != 0)
        return refuse(error, MHD_HTTP_BAD_REQUEST, "Transfer-Encoding is not in %.10s", version);
    return BT_OK;
}

enum bt_status rt_http_framing_check_coding(struct MHD_Connection *connection,
                                            struct rt_openai_error *error)
{
    const char *coding =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_ENCODING);
    if (coding == NULL || coding[0] == '\0' || strcasecmp(coding, "identity") == 0)
        return BT_OK;
    rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, NULL, "unsupported_content_encoding",
                        "the body must not be compressed: Content-Encoding is %.40s", coding);
    error->http_status = MHD_HTTP_UNSUPPORTED_MEDIA_TYPE;
    return BT_ERR_INVALID_ARGUMENT;
}
