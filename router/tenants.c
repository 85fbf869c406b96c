#include "router/tenants.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/file.h"

#define DIGEST_PREFIX "sha256:"
#define FIELD_SIZE    128

/* ---- single values */

static enum bt_status wrong(struct bt_error *error, size_t tenant, const char *field,
                            const char *what)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "tenants[%zu].%s %s", tenant, field, what);
}

static enum bt_status parse_integer(const json_t *value, size_t tenant, const char *field,
                                    int64_t min, int64_t max, struct bt_error *error,
                                    uint32_t *ret_value)
{
    if (!json_is_integer(value) || json_integer_value(value) < min ||
        json_integer_value(value) > max) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "tenants[%zu].%s must be an integer from %lld to %lld", tenant, field,
                            (long long)min, (long long)max);
    }
    *ret_value = (uint32_t)json_integer_value(value);
    return BT_OK;
}

static enum bt_status parse_name(const json_t *value, size_t tenant, struct bt_error *error,
                                 char ret_name[RT_TENANT_NAME_SIZE])
{
    const char *name = json_string_value(value);
    size_t size = name ? strlen(name) : 0;
    bool good = size > 0 && size < RT_TENANT_NAME_SIZE;
    for (size_t i = 0; good && i < size; i++) {
        unsigned char c = (unsigned char)name[i];
        good = c < 0x80 && (isalnum(c) || c == '.' || c == '_' || c == '-');
    }
    if (!good) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "tenants[%zu].name must be a string of 1 to %d characters of "
                            "A-Z a-z 0-9 . _ -",
                            tenant, RT_TENANT_NAME_SIZE - 1);
    }
    memcpy(ret_name, name, size + 1);
    return BT_OK;
}

static bool parse_slo_ms(const json_t *value, int64_t *ret_ns)
{
    if (!json_is_number(value)) {
        return false;
    }
    double ms = json_number_value(value);
    *ret_ns = (int64_t)(ms * BT_NS_PER_MS);
    return ms >= 0 && ms <= RT_TENANT_SLO_MAX_MS;
}

/* A number is of all classes; what an array leaves out is that of its last one. */
static enum bt_status parse_slo(const json_t *value, size_t tenant, struct bt_error *error,
                                int64_t ret_ns[RT_PRIORITIES])
{
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    bool good = count > 0 && count <= RT_PRIORITIES;
    for (size_t i = 0; good && i < RT_PRIORITIES; i++) {
        size_t at = i < count ? i : count - 1;
        good = parse_slo_ms(json_is_array(value) ? json_array_get(value, at) : value, &ret_ns[i]);
    }
    return good ? BT_OK
                : bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                               "tenants[%zu].slo_ttft_ms must be a number from 0 to %d, or an "
                               "array of 1 to %d of them",
                               tenant, RT_TENANT_SLO_MAX_MS, RT_PRIORITIES);
}

/* ---- keys */

static const char *check_key(const char *key, size_t size)
{
    if (size < RT_API_KEY_MIN || size > RT_API_KEY_MAX) {
        return "must have 8 to 512 characters";
    }
    for (size_t i = 0; i < size; i++) {
        if (key[i] <= ' ' || key[i] > '~') {
            return "must be of ASCII characters without blanks";
        }
    }
    return NULL;
}

/* Why not, or NULL. */
static const char *digest_key(const char *text, size_t size, struct rt_digest *ret_digest)
{
    size_t prefix = sizeof DIGEST_PREFIX - 1;
    if (size >= prefix && memcmp(text, DIGEST_PREFIX, prefix) == 0) {
        return rt_digest_from_hex(text + prefix, size - prefix, ret_digest)
                   ? NULL
                   : "must have 64 hex digits behind sha256:";
    }
    const char *why = check_key(text, size);
    if (!why && !rt_digest_of(text, size, ret_digest)) {
        why = "can't be digested";
    }
    return why;
}

static enum bt_status add_key(struct rt_tenants *tenants, size_t tenant, const char *field,
                              const json_t *value, struct bt_error *error)
{
    struct rt_tenant_key *key = &tenants->keys[tenants->key_count];
    key->tenant = (uint32_t)tenant;
    const char *why = json_is_string(value) ? digest_key(json_string_value(value),
                                                         json_string_length(value), &key->digest)
                                            : "must be a string";
    if (why) {
        return wrong(error, tenant, field, why);
    }
    for (size_t i = 0; i < tenants->key_count; i++) {
        if (rt_digest_equal(&tenants->keys[i].digest, &key->digest)) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "tenants[%zu].%s is a key of tenants[%u] already", tenant, field,
                                tenants->keys[i].tenant);
        }
    }
    tenants->key_count++;
    return BT_OK;
}

static enum bt_status parse_keys(struct rt_tenants *tenants, size_t tenant, const json_t *value,
                                 struct bt_error *error)
{
    size_t count = json_array_size(value); /* 0 where it is none */
    if (count == 0) {
        return wrong(error, tenant, "keys", "must be an array of at least one key");
    }
    if (tenants->key_count + count > RT_TENANT_KEYS_MAX) {
        return wrong(error, tenant, "keys", "are more than 1024 with those before");
    }
    void *grown =
        realloc(tenants->keys, (tenants->key_count + count) * sizeof(struct rt_tenant_key));
    if (!grown) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for keys");
    }
    tenants->keys = grown;
    enum bt_status status = BT_OK;
    for (size_t i = 0; status == BT_OK && i < count; i++) {
        char field[FIELD_SIZE];
        snprintf(field, sizeof field, "keys[%zu]", i);
        status = add_key(tenants, tenant, field, json_array_get(value, i), error);
    }
    return status;
}

/* ---- tenants */

static enum bt_status parse_field(struct rt_tenants *tenants, size_t index, const char *field,
                                  const json_t *value, struct bt_error *error)
{
    struct rt_tenant_spec *spec = &tenants->tenants[index];
    const struct {
        const char *name;
        uint32_t *value;
        int64_t min, max;
    } numbers[] = {
        {"weight", &spec->limits.weight, 1, RT_MAX_WEIGHT},
        {"priority", &spec->priority, 0, RT_PRIORITIES - 1},
        {"max_running", &spec->limits.max_running, 0, RT_TENANT_LIMIT_MAX},
        {"max_waiting", &spec->limits.max_waiting, 0, RT_TENANT_LIMIT_MAX},
        {"requests_per_minute", &spec->requests_per_minute, 0, RT_TENANT_LIMIT_MAX},
        {"tokens_per_minute", &spec->tokens_per_minute, 0, RT_TENANT_LIMIT_MAX},
        {"max_prompt_tokens", &spec->max_prompt_tokens, 0, RT_TENANT_LIMIT_MAX},
        {"max_output_tokens", &spec->max_output_tokens, 0, RT_TENANT_LIMIT_MAX},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(field, numbers[i].name) == 0) {
            return parse_integer(value, index, field, numbers[i].min, numbers[i].max, error,
                                 numbers[i].value);
        }
    }
    if (strcmp(field, "slo_ttft_ms") == 0) {
        return parse_slo(value, index, error, spec->slo_ttft_ns);
    }
    if (strcmp(field, "name") == 0 || strcmp(field, "keys") == 0) {
        return BT_OK; /* parsed already */
    }
    /* What does not look like a field may be a key in the wrong place, and is not told. */
    bool name = field[strspn(field, "abcdefghijklmnopqrstuvwxyz_")] == '\0';
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "tenants[%zu] has an unknown field%s%.32s",
                        index, name ? ": " : "", name ? field : "");
}

static enum bt_status parse_tenant(struct rt_tenants *tenants, size_t index, json_t *value,
                                   struct bt_error *error)
{
    struct rt_tenant_spec *spec = &tenants->tenants[index];
    spec->limits.weight = 1;
    for (int priority = 0; priority < RT_PRIORITIES; priority++) {
        spec->slo_ttft_ns[priority] = -1;
    }
    if (!json_is_object(value)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "tenants[%zu] must be an object",
                            index);
    }
    enum bt_status status = parse_name(json_object_get(value, "name"), index, error, spec->name);
    for (size_t i = 0; status == BT_OK && i < index; i++) {
        if (strcmp(tenants->tenants[i].name, spec->name) == 0) {
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                  "tenants[%zu].name is that of tenants[%zu] already: %s", index, i,
                                  spec->name);
        }
    }
    if (status == BT_OK) {
        status = parse_keys(tenants, index, json_object_get(value, "keys"), error);
    }
    const char *field;
    json_t *member;
    json_object_foreach(value, field, member)
    {
        if (status == BT_OK) {
            status = parse_field(tenants, index, field, member, error);
        }
    }
    return status;
}

static enum bt_status parse_root(const json_t *root, struct bt_error *error,
                                 struct rt_tenants *tenants)
{
    json_t *list = json_object_get(root, "tenants");
    size_t count = json_array_size(list);
    if (count == 0 || count > RT_TENANTS_MAX || json_object_size(root) != 1) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "must be an object with one field, \"tenants\", an array of 1 to %d",
                            RT_TENANTS_MAX);
    }
    tenants->tenants = calloc(count, sizeof *tenants->tenants);
    if (!tenants->tenants) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tenants");
    }
    enum bt_status status = BT_OK;
    for (; status == BT_OK && tenants->count < count; tenants->count++) {
        status = parse_tenant(tenants, tenants->count, json_array_get(list, tenants->count), error);
    }
    return status;
}

/* The library's own message may quote the text, and with it a key. */
static enum bt_status syntax_error(const json_error_t *json_error, struct bt_error *error)
{
    bool duplicate = json_error_code(json_error) == json_error_duplicate_key;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "line %d column %d: %s", json_error->line,
                        json_error->column,
                        duplicate ? "a field stands there twice" : "not valid JSON");
}

enum bt_status rt_tenants_parse(const char *text, size_t size, struct bt_error *error,
                                struct rt_tenants *ret_tenants)
{
    json_error_t json_error;
    struct rt_tenants tenants = {0};
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &json_error);
    if (!root) {
        return syntax_error(&json_error, error);
    }
    enum bt_status status = parse_root(root, error, &tenants);
    json_decref(root);
    if (status != BT_OK) {
        rt_tenants_finish(&tenants);
        return status;
    }
    *ret_tenants = tenants;
    return BT_OK;
}

enum bt_status rt_tenants_read(const char *path, struct bt_error *error,
                               struct rt_tenants *ret_tenants)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, RT_TENANTS_FILE_BYTES, error, &text, &size);
    if (status != BT_OK) {
        return status;
    }
    status = rt_tenants_parse(text, size, error, ret_tenants);
    if (status != BT_OK) {
        bt_error_prefix(error, "%s", path);
    }
    explicit_bzero(text, size);
    free(text);
    return status;
}

enum bt_status rt_tenants_single(const char *key, struct bt_error *error,
                                 struct rt_tenants *ret_tenants)
{
    struct rt_tenants tenants = {.count = 1, .key_count = 1};
    tenants.tenants = calloc(1, sizeof *tenants.tenants);
    tenants.keys = calloc(1, sizeof *tenants.keys);
    if (!tenants.tenants || !tenants.keys) {
        rt_tenants_finish(&tenants);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a key");
    }
    const char *why = digest_key(key, strlen(key), &tenants.keys->digest);
    if (why) {
        rt_tenants_finish(&tenants);
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--api-key %s", why);
    }
    *tenants.tenants = (struct rt_tenant_spec){.name = "default", .limits = {.weight = 1}};
    for (int priority = 0; priority < RT_PRIORITIES; priority++) {
        tenants.tenants->slo_ttft_ns[priority] = -1;
    }
    *ret_tenants = tenants;
    return BT_OK;
}

void rt_tenants_finish(struct rt_tenants *tenants)
{
    free(tenants->tenants);
    free(tenants->keys);
    *tenants = (struct rt_tenants){0};
}

bool rt_tenants_find(const struct rt_tenants *tenants, const char *key, size_t size,
                     uint32_t *ret_tenant)
{
    struct rt_digest digest;
    if (size > RT_API_KEY_MAX || !rt_digest_of(key, size, &digest)) {
        return false;
    }
    uint32_t found = 0; /* its place, from 1 */
    for (size_t i = 0; i < tenants->key_count; i++) {
        uint32_t mask = 0u - (uint32_t)rt_digest_equal(&tenants->keys[i].digest, &digest);
        found |= mask & (tenants->keys[i].tenant + 1);
    }
    if (found > 0) {
        *ret_tenant = found - 1;
    }
    return found > 0;
}
