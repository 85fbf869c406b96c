/* On whose behalf a generation runs, and how urgent it is. */
#ifndef BATON_ROUTER_CALLER_H
#define BATON_ROUTER_CALLER_H

#include <stdint.h>

struct rt_caller {
    uint32_t tenant;         /* of rt_access_identify */
    const char *tenant_name; /* lives as long as the service; NULL: "" */
    uint32_t priority;       /* < RT_PRIORITIES; 0 goes first */
    uint32_t prompt_class;   /* requests of a tenant that generate alike share a number */
};

#endif
