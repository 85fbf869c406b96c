/*
 * The key that a router with tenants wants: from a file, or the environment, or a flag, which shows
 * in the list of processes. It is never printed.
 */
#ifndef BATON_DEPLOY_BATONCTL_API_KEY_H
#define BATON_DEPLOY_BATONCTL_API_KEY_H

#include "common/base/option.h"
#include "common/base/status.h"

#define CTL_API_KEY_SIZE 512

/* Of the options; the file goes before the key. */
struct ctl_api_key {
    const char *file, *key;
};

#define CTL_API_KEY_OPTIONS(api_key)                                                               \
    {"api-key-file",                                                                               \
     BT_OPTION_STRING,                                                                             \
     &(api_key).file,                                                                              \
     NULL,                                                                                         \
     0,                                                                                            \
     0,                                                                                            \
     NULL,                                                                                         \
     "FILE",                                                                                       \
     "its first line is the key that the router knows us by",                                      \
     false},                                                                                       \
    {                                                                                              \
        "api-key", BT_OPTION_STRING, &(api_key).key, NULL, 0, 0, NULL, "KEY",                      \
            "the key itself; a flag shows in the list of processes: better the file or the "       \
            "environment",                                                                         \
            false                                                                                  \
    }

/* "": none was given. INVALID_ARGUMENT: the file has none, or it is too long or has spaces or
 * control characters. */
enum bt_status ctl_api_key_read(const struct ctl_api_key *api_key, struct bt_error *error,
                                char ret_key[CTL_API_KEY_SIZE]);

#endif
