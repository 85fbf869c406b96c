/*
 * Of whose trace a request is part: the header `traceparent` of W3C Trace Context, in and out.
 * Plain data.
 */
#ifndef BATON_ROUTER_TRACE_CONTEXT_H
#define BATON_ROUTER_TRACE_CONTEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/types.pb-c.h"

#define RT_TRACE_ID_BYTES   16
#define RT_TRACE_ID_SIZE    (2 * RT_TRACE_ID_BYTES + 1) /* as text */
#define RT_TRACEPARENT_SIZE 56

struct rt_trace_context {
    uint8_t trace_id[RT_TRACE_ID_BYTES]; /* all 0: there is none */
    uint64_t parent;                     /* the client's span; 0: it named none */
    uint64_t span;                       /* this router's */
    bool sampled;                        /* times are wanted in detail */
};

/*
 * The context of a new request. `header` NULL, or not as the standard wants it: a trace of its own
 * begins, sampled with probability `ratio`. Else the trace goes on, sampled if the header says so.
 */
void rt_trace_context_begin(const char *header, double ratio, struct rt_trace_context *ret_context);

/* `00-<trace id>-<this router's span>-<flags>`. */
void rt_trace_context_write(const struct rt_trace_context *context,
                            char ret_text[RT_TRACEPARENT_SIZE]);
void rt_trace_id_write(const struct rt_trace_context *context, char ret_text[RT_TRACE_ID_SIZE]);

/* For a call to a worker; points into `context`. */
void rt_trace_context_fill(const struct rt_trace_context *context,
                           Baton__V1__TraceContext *message);

#endif
