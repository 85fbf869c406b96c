/*
 * Fields of the OpenAI and vLLM APIs that would change the result and are not offered: refused by
 * name rather than ignored. Pure.
 */
#ifndef BATON_ROUTER_OPENAI_REFUSED_H
#define BATON_ROUTER_OPENAI_REFUSED_H

#include <jansson.h>

#include "router/openai_error.h"

/* BT_OK when `root` asks for none of them. */
enum bt_status rt_openai_refused_check(const json_t *root, struct rt_openai_error *error);

#endif
