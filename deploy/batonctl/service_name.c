#include "deploy/batonctl/service_name.h"

#include <netdb.h>
#include <stdio.h>
#include <string.h>

#define MAX_HOST 256

bool ctl_service_is(const char *endpoint)
{
    return strncmp(endpoint, CTL_SERVICE_SCHEME, strlen(CTL_SERVICE_SCHEME)) == 0;
}

static bool is_there(char (*endpoints)[CTL_ENDPOINT_SIZE], uint32_t count, const char *endpoint)
{
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(endpoints[i], endpoint) == 0)
            return true;
    return false;
}

/* `tail`: ":5557#KEY" */
static uint32_t take(const struct addrinfo *found, int family, const char *tail, uint32_t max,
                     char (*ret_endpoints)[CTL_ENDPOINT_SIZE])
{
    uint32_t count = 0;
    for (; found && count < max; found = found->ai_next) {
        char address[MAX_HOST];
        bool six = family == AF_INET6;
        if (found->ai_family != family ||
            getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof(address), NULL, 0,
                        NI_NUMERICHOST) != 0)
            continue;
        int length = snprintf(ret_endpoints[count], CTL_ENDPOINT_SIZE, "tcp://%s%s%s%s",
                              six ? "[" : "", address, six ? "]" : "", tail);
        if (length < CTL_ENDPOINT_SIZE && !is_there(ret_endpoints, count, ret_endpoints[count]))
            count++;
    }
    return count;
}

enum bt_status ctl_service_resolve(const char *endpoint, uint32_t max, struct bt_error *error,
                                   char (*ret_endpoints)[CTL_ENDPOINT_SIZE], uint32_t *ret_count)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    const char *host = endpoint + strlen(CTL_SERVICE_SCHEME), *tail = strchr(host, ':');
    char name[MAX_HOST];
    struct addrinfo *found = NULL;
    if (!tail || tail == host || tail - host >= MAX_HOST)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%.200s: not dns+tcp://HOST:PORT",
                            endpoint);
    snprintf(name, sizeof(name), "%.*s", (int)(tail - host), host);
    int code = getaddrinfo(name, NULL, &hints, &found);
    if (code != 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%.200s: %s", name, gai_strerror(code));
    *ret_count = take(found, AF_INET, tail, max, ret_endpoints);
    if (*ret_count == 0)
        *ret_count = take(found, AF_INET6, tail, max, ret_endpoints);
    freeaddrinfo(found);
    return *ret_count > 0 ? BT_OK
                          : bt_error_set(error, BT_ERR_UNAVAILABLE, "%.200s: has no address", name);
}
