#include "deploy/batonctl/kube_yaml.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"

static enum bt_status parse(struct ctl_kube_yaml *file, const char *path, const char *text,
                            size_t size, struct bt_error *error)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    enum bt_status status = BT_OK;
    if (!yaml_parser_load(&parser, &file->document))
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s:%zu: %s", path,
                              parser.problem_mark.line + 1,
                              parser.problem ? parser.problem : "this is not YAML");
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
