#include "router/order_tree.h"

#include "common/base/status.h"

static bool before(const struct rt_order_node *a, const struct rt_order_node *b)
{
    return a->key < b->key || (a->key == b->key && a->tie < b->tie);
}

static uint32_t priority_of(int64_t key, uint64_t tie)
{
    uint64_t hash = (uint64_t)key * UINT64_C(0x9e3779b97f4a7c15) + tie;
    hash = (hash ^ hash >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    hash = (hash ^ hash >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(hash >> 32);
}

/* The place that points to `node`. */
static struct rt_order_node **holder(struct rt_order_tree *tree, struct rt_order_node *node)
{
    if (!node->parent) {
        return &tree->root;
    }
    return node->parent->left == node ? &node->parent->left : &node->parent->right;
}

/* `node` changes places with its parent. */
static void rotate_up(struct rt_order_tree *tree, struct rt_order_node *node)
{
    struct rt_order_node *parent = node->parent;
    struct rt_order_node *inner;
    *holder(tree, parent) = node;
    node->parent = parent->parent;
    parent->parent = node;
    if (parent->left == node) {
        inner = node->right;
        node->right = parent;
        parent->left = inner;
    } else {
        inner = node->left;
        node->left = parent;
        parent->right = inner;
    }
    if (inner) {
        inner->parent = parent;
    }
}

static struct rt_order_node *leftmost(struct rt_order_node *node)
{
    while (node && node->left) {
        node = node->left;
    }
    return node;
}

void rt_order_insert(struct rt_order_tree *tree, struct rt_order_node *node, int64_t key,
                     uint64_t tie)
{
    BT_ASSERT(!node->linked);
    *node = (struct rt_order_node){
        .key = key, .tie = tie, .priority = priority_of(key, tie), .linked = true};
    struct rt_order_node **at = &tree->root;
    while (*at) {
        node->parent = *at;
        at = before(node, *at) ? &(*at)->left : &(*at)->right;
    }
    *at = node;
    while (node->parent && node->parent->priority < node->priority) {
        rotate_up(tree, node);
    }
    if (!tree->first || before(node, tree->first)) {
        tree->first = node;
    }
    tree->count++;
}

void rt_order_remove(struct rt_order_tree *tree, struct rt_order_node *node)
{
    if (!node->linked) {
        return;
    }
    if (tree->first == node) { /* it has nothing to the left */
        tree->first = node->right ? leftmost(node->right) : node->parent;
    }
    while (node->left && node->right) {
        rotate_up(tree, node->left->priority > node->right->priority ? node->left : node->right);
    }
    struct rt_order_node *child = node->left ? node->left : node->right;
    *holder(tree, node) = child;
    if (child) {
        child->parent = node->parent;
    }
    node->parent = node->left = node->right = NULL;
    node->linked = false;
    tree->count--;
}

void rt_order_move(struct rt_order_tree *tree, struct rt_order_node *node, int64_t key,
                   uint64_t tie)
{
    rt_order_remove(tree, node);
    rt_order_insert(tree, node, key, tie);
}
