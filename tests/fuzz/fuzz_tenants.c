/*
 * The file of tenants and their keys. What is taken keeps its limits, and each key is found; what
 * is refused gives a reason in which no key stands.
 */
#include <stdlib.h>
#include <string.h>

#include "router/tenants.h"
#include "tests/fuzz/driver.h"

#define SECRET "sk-hush-hush-0123456789"

static bool printable(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    return true;
}

static void check_tenant(const struct rt_tenant_spec *tenant)
{
    BT_ASSERT(tenant->name[0] != '\0' && strlen(tenant->name) < RT_TENANT_NAME_SIZE);
    BT_ASSERT(printable(tenant->name));
    BT_ASSERT(tenant->limits.weight >= 1 && tenant->limits.weight <= RT_MAX_WEIGHT);
    BT_ASSERT(tenant->priority < RT_PRIORITIES);
    BT_ASSERT(tenant->requests_per_minute <= RT_TENANT_LIMIT_MAX);
    BT_ASSERT(tenant->tokens_per_minute <= RT_TENANT_LIMIT_MAX);
    BT_ASSERT(tenant->max_prompt_tokens <= RT_TENANT_LIMIT_MAX);
    BT_ASSERT(tenant->max_output_tokens <= RT_TENANT_LIMIT_MAX);
    for (int i = 0; i < RT_PRIORITIES; i++)
        BT_ASSERT(tenant->slo_ttft_ns[i] >= -1 &&
                  tenant->slo_ttft_ns[i] <= RT_TENANT_SLO_MAX_MS * INT64_C(1000000));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rt_tenants tenants;
    struct bt_error error = {0};
    enum bt_status status = rt_tenants_parse((const char *)data, size, &error, &tenants);
    if (status != BT_OK) {
        BT_ASSERT(status == BT_ERR_INVALID_ARGUMENT && error.text[0] != '\0');
        BT_ASSERT(!strstr(error.text, "hush"));
        return 0;
    }
    BT_ASSERT(tenants.count >= 1 && tenants.count <= RT_TENANTS_MAX);
    BT_ASSERT(tenants.key_count >= 1 && tenants.key_count <= RT_TENANT_KEYS_MAX);
    for (size_t i = 0; i < tenants.count; i++) {
        check_tenant(&tenants.tenants[i]);
        for (size_t j = 0; j < i; j++)
            BT_ASSERT(strcmp(tenants.tenants[i].name, tenants.tenants[j].name) != 0);
    }
    for (size_t i = 0; i < tenants.key_count; i++) {
        BT_ASSERT(tenants.keys[i].tenant < tenants.count);
        for (size_t j = 0; j < i; j++)
            BT_ASSERT(memcmp(&tenants.keys[i].digest, &tenants.keys[j].digest,
                             sizeof tenants.keys[i].digest) != 0);
    }
    uint32_t tenant = UINT32_MAX;
    if (rt_tenants_find(&tenants, SECRET, strlen(SECRET), &tenant))
        BT_ASSERT(tenant < tenants.count);
    BT_ASSERT(!rt_tenants_find(&tenants, "", 0, &tenant));
    rt_tenants_finish(&tenants);
    return 0;
}

static const char *const seeds[] = {
    "{\"tenants\": [{\"name\": \"search\", \"keys\": [\"" SECRET "\"]}]}",
    "{\"tenants\": [{\"name\": \"a\", \"keys\": [\"" SECRET "\", \"sha256:"
    "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\"], \"weight\": 4,"
    " \"priority\": 1, \"max_running\": 64, \"max_waiting\": 256, \"requests_per_minute\": 600,"
    " \"tokens_per_minute\": 200000, \"max_prompt_tokens\": 8192, \"max_output_tokens\": 1024,"
    " \"slo_ttft_ms\": [2000, 3000, 0, 5]}, {\"name\": \"b\", \"keys\": [\"hush-hush-2\"],"
    " \"slo_ttft_ms\": 1500}]}",
};

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    return fuzz_seed_text(seeds, sizeof seeds / sizeof *seeds, index, ret_data, capacity);
}
