#include "router/http_access.h"

#include <string.h>
#include <strings.h>

#include "router/http_route.h"

static const char scheme[] = "Bearer";

/* NULL: none, or of another scheme. */
static const char *find_key(struct MHD_Connection *mhd, size_t *ret_size)
{
    const char *value =
        MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    size_t scheme_size = sizeof scheme - 1;
    if (value == NULL || strncasecmp(value, scheme, scheme_size) != 0 || value[scheme_size] != ' ')
        return NULL;
    value += scheme_size;
    value += strspn(value, " ");
    size_t size = strlen(value);
    while (size > 0 && value[size - 1] == ' ')
        size--;
    *ret_size = size;
    return value;
}

void rt_http_access_check(struct rt_http_exchange *exchange)
{
    struct rt_access *access = rt_service_access(exchange->all->service);
    if (!rt_access_asks(access) ||
        !rt_http_route_asks_key(exchange->route, rt_access_scope(access)))
        return;
    size_t size = 0;
    const char *key = find_key(exchange->mhd, &size);
    if (rt_access_identify(access, key, size, &exchange->tenant))
        return;
    rt_openai_error_set(&exchange->refusal, BT_ERR_UNAUTHORISED, NULL, "invalid_api_key",
                        key == NULL ? "no API key was given: send Authorization: Bearer KEY"
                                    : "the API key is not valid");
    exchange->route = NULL;
}
