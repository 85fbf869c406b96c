/*
 * An ordered set of nodes that their owners embed: insert, remove and the smallest in O(log n)
 * steps, without memory of its own. What waits for a turn or a time stands in one: requests,
 * tenants, deadlines, the workers' timers. Internal to the core.
 *
 * A treap whose priorities are a hash of the keys: its shape depends on what is in it, not on how
 * it came there.
 */
#ifndef BATON_ROUTER_ORDER_TREE_H
#define BATON_ROUTER_ORDER_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rt_order_node {
    int64_t key;
    uint64_t tie; /* among equal keys the smaller goes first; no two nodes have both equal */
    struct rt_order_node *parent, *left, *right;
    uint32_t priority;
    bool linked; /* in a tree */
};

/* A zeroed one is ready for use. */
struct rt_order_tree {
    struct rt_order_node *root, *first; /* NULL: empty */
    uint32_t count;
};

/* The node is in no tree. */
void rt_order_insert(struct rt_order_tree *tree, struct rt_order_node *node, int64_t key,
                     uint64_t tie);
/* One that is in no tree is left alone. */
void rt_order_remove(struct rt_order_tree *tree, struct rt_order_node *node);
/* To another place, or in. */
void rt_order_move(struct rt_order_tree *tree, struct rt_order_node *node, int64_t key,
                   uint64_t tie);

/* The object that holds the tree's first node, or NULL. */
#define RT_ORDER_FIRST(tree, type, member)                                                         \
    ((tree)->first ? (type *)((char *)(tree)->first - offsetof(type, member)) : NULL)

#endif
