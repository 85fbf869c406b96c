/*
 * The dashboard as it goes over the wire: page.html with page.css and page.js in it. Made at build
 * time by embed.py.
 */
#ifndef BATON_ROUTER_DASHBOARD_PAGE_H
#define BATON_ROUTER_DASHBOARD_PAGE_H

#include <stddef.h>

extern const unsigned char rt_dashboard_page[];
extern const size_t rt_dashboard_page_size;
/* Content-Security-Policy: this page's own style and script, and nobody else's anything. */
extern const char rt_dashboard_policy[];
extern const char rt_dashboard_etag[];

#endif
