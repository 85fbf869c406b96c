#include "deploy/batonctl/kube_yaml.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"

#define MAX_DEPTH   64
#define MAX_ANCHORS 1000

static bool begin(yaml_parser_t *parser, const char *text, size_t size)
{
    if (!yaml_parser_initialize(parser))
        return false;
    yaml_parser_set_input_string(parser, (const unsigned char *)text, size);
    return true;
}

static enum bt_status no_yaml(const yaml_parser_t *parser, const char *path, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s:%zu: %s", path,
                        parser->problem_mark.line + 1,
                        parser->problem ? parser->problem : "this is not YAML");
}

/* How much deeper what follows is. */
static int depth_of(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SEQUENCE_START_EVENT:
    case YAML_MAPPING_START_EVENT:
        return 1;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        return -1;
    default:
        return 0;
    }
}

static bool has_anchor(const yaml_event_t *event)
{
    return (event->type == YAML_SCALAR_EVENT && event->data.scalar.anchor) ||
           (event->type == YAML_SEQUENCE_START_EVENT && event->data.sequence_start.anchor) ||
           (event->type == YAML_MAPPING_START_EVENT && event->data.mapping_start.anchor);
}

/* Without limits to depth and anchors, a file takes the library a time of the square of its size.
 */
static enum bt_status check_limits(const char *path, const char *text, size_t size,
                                   struct bt_error *error)
{
    yaml_parser_t parser;
    enum bt_status status = BT_OK;
    bool over = false;
    int depth = 0, anchors = 0;
    if (!begin(&parser, text, size))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    while (status == BT_OK && !over) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            status = no_yaml(&parser, path, error);
            break;
        }
        over = event.type == YAML_DOCUMENT_END_EVENT || event.type == YAML_STREAM_END_EVENT;
        depth += depth_of(&event);
        anchors += has_anchor(&event);
        if (depth > MAX_DEPTH || anchors > MAX_ANCHORS)
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                  "%s:%zu: nested too deeply, or too many anchors", path,
                                  event.start_mark.line + 1);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return status;
}

static enum bt_status parse(struct ctl_kube_yaml *file, const char *path, const char *text,
                            size_t size, struct bt_error *error)
{
    yaml_parser_t parser;
    enum bt_status status = check_limits(path, text, size, error);
    if (status != BT_OK)
        return status;
    if (!begin(&parser, text, size))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    if (!yaml_parser_load(&parser, &file->document))
        status = no_yaml(&parser, path, error);
    yaml_parser_delete(&parser);
    if (status != BT_OK)
        return status;
    yaml_node_t *root = yaml_document_get_root_node(&file->document);
    if (!root || root->type != YAML_MAPPING_NODE) {
        yaml_document_delete(&file->document);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: this is no kubeconfig", path);
    }
    file->path = path;
    return BT_OK;
}

enum bt_status ctl_kube_yaml_load(struct ctl_kube_yaml *file, const char *path,
                                  struct bt_error *error)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, CTL_KUBE_MAX_YAML_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    status = parse(file, path, text, size, error);
    explicit_bzero(text, size);
    free(text);
    return status;
}

void ctl_kube_yaml_finish(struct ctl_kube_yaml *file)
{
    yaml_document_delete(&file->document);
}

static yaml_document_t *document_of(const struct ctl_kube_yaml *file)
{
    return (yaml_document_t *)&file->document; /* the library reads it only */
}

static bool is_text(const yaml_node_t *node, const char *text)
{
    size_t length = strlen(text);
    return node && node->type == YAML_SCALAR_NODE && node->data.scalar.length == length &&
           memcmp(node->data.scalar.value, text, length) == 0;
}

yaml_node_t *ctl_kube_yaml_find(const struct ctl_kube_yaml *file, yaml_node_t *node,
                                const char *key)
{
    yaml_document_t *document = document_of(file);
    if (!node)
        node = yaml_document_get_root_node(document);
    if (node->type != YAML_MAPPING_NODE)
        return NULL;
    for (yaml_node_pair_t *pair = node->data.mapping.pairs.start;
         pair < node->data.mapping.pairs.top; pair++)
        if (is_text(yaml_document_get_node(document, pair->key), key))
            return yaml_document_get_node(document, pair->value);
    return NULL;
}

/* A plain scalar that stands for nothing. */
static bool is_null(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (is_text(node, "") || is_text(node, "~") || is_text(node, "null"));
}

enum bt_status ctl_kube_yaml_text(const struct ctl_kube_yaml *file, yaml_node_t *node,
                                  const char *key, struct bt_error *error, const char **ret_text)
{
    yaml_node_t *found = ctl_kube_yaml_find(file, node, key);
    if (!found || is_null(found)) {
        *ret_text = NULL;
        return BT_OK;
    }
    if (found->type != YAML_SCALAR_NODE ||
        strlen((const char *)found->data.scalar.value) != found->data.scalar.length)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s:%zu: '%s' has to be a text",
                            file->path, found->start_mark.line + 1, key);
    *ret_text = (const char *)found->data.scalar.value;
    return BT_OK;
}

yaml_node_t *ctl_kube_yaml_named(const struct ctl_kube_yaml *file, const char *outer,
                                 const char *name, const char *inner)
{
    yaml_document_t *document = document_of(file);
    yaml_node_t *list = ctl_kube_yaml_find(file, NULL, outer);
    if (!list || list->type != YAML_SEQUENCE_NODE)
        return NULL;
    for (yaml_node_item_t *item = list->data.sequence.items.start;
         item < list->data.sequence.items.top; item++) {
        yaml_node_t *node = yaml_document_get_node(document, *item);
        if (!node || !is_text(ctl_kube_yaml_find(file, node, "name"), name))
            continue;
        yaml_node_t *found = ctl_kube_yaml_find(file, node, inner);
        return found && found->type == YAML_MAPPING_NODE ? found : NULL;
    }
    return NULL;
}
