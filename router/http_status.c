#include "router/http_status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "router/dashboard/page.h"
#include "router/http_response.h"

static const char *argument(const struct rt_http_exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->mhd, MHD_GET_ARGUMENT_KIND, name);
}

/* Missing: 0. */
static enum bt_status read_number(const struct rt_http_exchange *exchange, const char *name,
                                  struct rt_openai_error *error, uint64_t *ret_number)
{
    const char *text = argument(exchange, name);
    *ret_number = 0;
    if (text == NULL)
        return BT_OK;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return rt_openai_error_field(error, name, "must be a number, not \"%.40s\"", text);
    *ret_number = number;
    return BT_OK;
}

enum MHD_Result rt_http_status(struct rt_http_exchange *exchange)
{
    struct rt_openai_error error = {0};
    struct rt_status_query query = {.ranks = argument(exchange, "offset") != NULL};
    if (read_number(exchange, "after", &error, &query.after) != BT_OK ||
        read_number(exchange, "offset", &error, &query.offset) != BT_OK)
        return rt_http_respond_error(exchange, &error);
    struct rt_openai_json json = {0};
    rt_service_write_status(exchange->all->service, &query, &json);
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

enum MHD_Result rt_http_dashboard(struct rt_http_exchange *exchange)
{
    const char *known =
        MHD_lookup_connection_value(exchange->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_IF_NONE_MATCH);
    bool fresh = known != NULL && strcmp(known, rt_dashboard_etag) == 0;
    struct MHD_Response *response = MHD_create_response_from_buffer(
        fresh ? 0 : rt_dashboard_page_size, (void *)(uintptr_t)rt_dashboard_page,
        MHD_RESPMEM_PERSISTENT);
    if (response == NULL)
        return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/html; charset=utf-8");
    MHD_add_response_header(response, "Content-Security-Policy", rt_dashboard_policy);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(response, MHD_HTTP_HEADER_ETAG, rt_dashboard_etag);
    return rt_http_respond(exchange, fresh ? MHD_HTTP_NOT_MODIFIED : MHD_HTTP_OK, response);
}
