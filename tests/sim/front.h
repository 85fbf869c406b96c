/* The clients of the simulated router, and what the router has of text: nothing. */
#ifndef BATON_TESTS_SIM_FRONT_H
#define BATON_TESTS_SIM_FRONT_H

#include "tests/sim/world.h"

#define MAX_CLIENT 16

struct client {
    uint64_t request;
    uint64_t router; /* instance */
    uint32_t prompt_tokens, max_tokens;
    uint32_t tokens; /* that came */
    uint32_t ends;
    bool abandoned, hurried; /* it was given up; it has a deadline */
    bool finished;           /* with all of its tokens */
};
extern struct client clients_of_router[MAX_CLIENT];
extern uint32_t client_count;

/* As code of the router. */
void client_submit(struct node *router);
/* One that nothing stands in the way of; NULL: it was refused. */
const struct client *client_submit_fresh(struct node *router);
void client_abandon(struct node *router, uint32_t index);

/* At the end of a schedule. */
void clients_check(const struct node *router);
bool clients_all_ended(const struct node *router);

#endif
