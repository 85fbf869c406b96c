#include "router/access.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "router/token_bucket.h"

#define FILE_INTERVAL_NS BT_NS_PER_S

const char *const rt_access_scope_names[] = {"api", "all", NULL};

/* By number. */
struct tenant {
    struct rt_tenant_spec spec;
    struct rt_token_bucket requests, tokens;
};

struct rt_access {
    struct bt_loop *loop;
    struct rt_access_options options;
    char *keys_file;
    struct bt_file_watch watch;
    struct bt_loop_source *timer;
    struct rt_tenants table;
    uint32_t *numbers;      /* [table.count] */
    struct tenant *tenants; /* [RT_MAX_TENANTS] */
    uint32_t tenant_count;  /* that had a number at some time, with 0 */
    rt_access_changed_fn *changed;
    void *context;
    rt_access_reloaded_fn *reloaded;
    void *reloaded_context;
    struct bt_counter *unauthorised, *shed_requests, *shed_tokens, *reloads, *reload_errors;
};

/* ---- a new table */

static uint32_t find_number(const struct rt_access *access, const char *name)
{
    uint32_t number = 1;
    while (number < access->tenant_count && strcmp(access->tenants[number].spec.name, name) != 0) {
        number++;
    }
    return number;
}

static bool number_all(const struct rt_access *access, const struct rt_tenants *table,
                       uint32_t *ret_numbers)
{
    uint32_t next = access->tenant_count;
    for (size_t i = 0; i < table->count; i++) {
        uint32_t number = find_number(access, table->tenants[i].name);
        ret_numbers[i] = number < access->tenant_count ? number : next++;
    }
    return next <= RT_MAX_TENANTS;
}

static void take_over(struct rt_access *access, uint32_t number, const struct rt_tenant_spec *spec)
{
    struct tenant *tenant = &access->tenants[number];
    int64_t now_ns = bt_clock_now_ns();
    if (number >= access->tenant_count) {
        access->tenant_count = number + 1;
        rt_token_bucket_init(&tenant->requests, spec->requests_per_minute, now_ns);
        rt_token_bucket_init(&tenant->tokens, spec->tokens_per_minute, now_ns);
    } else {
        rt_token_bucket_set(&tenant->requests, spec->requests_per_minute, now_ns);
        rt_token_bucket_set(&tenant->tokens, spec->tokens_per_minute, now_ns);
    }
    tenant->spec = *spec;
}

static void tell(const struct rt_access *access)
{
    for (size_t i = 0; access->changed && i < access->table.count; i++) {
        access->changed(access->context, access->numbers[i], &access->table.tenants[i].limits);
    }
}

/* `table` is taken, on success. */
static enum bt_status enforce(struct rt_access *access, struct rt_tenants *table,
                              struct bt_error *error)
{
    uint32_t *numbers = calloc(table->count, sizeof *numbers);
    if (!numbers) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tenants");
    }
    if (!number_all(access, table, numbers)) {
        free(numbers);
        return bt_error_set(error, BT_ERR_EXHAUSTED,
                            "more than %d names of tenants since the process started",
                            RT_MAX_TENANTS - 1);
    }
    for (size_t i = 0; i < table->count; i++) {
        take_over(access, numbers[i], &table->tenants[i]);
    }
    rt_tenants_finish(&access->table);
    free(access->numbers);
    access->table = *table;
    access->numbers = numbers;
    tell(access);
    return BT_OK;
}

enum bt_status rt_access_reload(struct rt_access *access, struct bt_error *error)
{
    struct rt_tenants table;
    if (!access->keys_file) {
        return BT_OK;
    }
    bt_file_watch_mark(&access->watch, access->keys_file);
    enum bt_status status = rt_tenants_read(access->keys_file, error, &table);
    if (status != BT_OK) {
        return status;
    }
    status = enforce(access, &table, error);
    if (status != BT_OK) {
        rt_tenants_finish(&table);
        return status;
    }
    bt_log_info(0, "%s: %zu tenants with %zu keys", access->keys_file, access->table.count,
                access->table.key_count);
    return BT_OK;
}

static void on_timer(void *context)
{
    struct rt_access *access = context;
    struct bt_error error;
    if (bt_file_watch_look(&access->watch, access->keys_file)) {
        error.text[0] = '\0';
        enum bt_status status = rt_access_reload(access, &error);
        bool good = status == BT_OK;
        if (access->reloaded) {
            access->reloaded(access->reloaded_context, status, error.text);
        }
        bt_counter_add(good ? access->reloads : access->reload_errors, 1);
        if (!good) {
            bt_log_warn(0, "%s; the %zu tenants read before stay in force", error.text,
                        access->table.count);
        }
    }
    bt_loop_timer_set(access->timer, bt_clock_now_ns() + FILE_INTERVAL_NS);
}

/* ---- life */

static void register_metrics(struct rt_access *access, struct bt_metrics *metrics)
{
    static const char sheds[] = "baton_router_sheds_total";
    static const char sheds_help[] = "Requests refused, by what they ran into.";
    static const char reloads[] = "baton_router_keys_reloads_total";
    static const char reloads_help[] = "Changes of the file of keys, and whether it was good.";
    if (!metrics) {
        return;
    }
    access->unauthorised =
        bt_metrics_counter(metrics, sheds, "reason=\"unauthorised\"", sheds_help);
    access->shed_requests =
        bt_metrics_counter(metrics, sheds, "reason=\"request_rate\"", sheds_help);
    access->shed_tokens = bt_metrics_counter(metrics, sheds, "reason=\"token_rate\"", sheds_help);
    access->reloads = bt_metrics_counter(metrics, reloads, "result=\"good\"", reloads_help);
    access->reload_errors = bt_metrics_counter(metrics, reloads, "result=\"bad\"", reloads_help);
}

static enum bt_status read_keys(struct rt_access *access, const struct rt_access_options *options,
                                struct bt_error *error)
{
    struct rt_tenants table;
    if (options->keys_file && options->key) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--api-keys and --api-key exclude each other");
    }
    if (options->key) {
        enum bt_status status = rt_tenants_single(options->key, error, &table);
        return status == BT_OK ? enforce(access, &table, error) : status;
    }
    if (!options->keys_file) {
        return BT_OK;
    }
    access->keys_file = strdup(options->keys_file);
    access->timer =
        bt_loop_add_timer(access->loop, bt_clock_now_ns() + FILE_INTERVAL_NS, on_timer, access);
    if (!access->keys_file || !access->timer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for keys");
    }
    return rt_access_reload(access, error);
}

enum bt_status rt_access_create(struct bt_loop *loop, const struct rt_access_options *options,
                                struct bt_metrics *metrics, struct bt_error *error,
                                struct rt_access **ret_access)
{
    struct rt_access *access = calloc(1, sizeof *access);
    struct tenant *tenants = calloc(RT_MAX_TENANTS, sizeof *tenants);
    if (!access || !tenants) {
        free(access);
        free(tenants);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tenants");
    }
    access->loop = loop;
    access->options = *options;
    access->tenants = tenants;
    access->tenant_count = 1;
    struct rt_tenant_spec *nobody = &access->tenants[0].spec;
    nobody->limits.weight = 1;
    for (int priority = 0; priority < RT_PRIORITIES; priority++) {
        nobody->slo_ttft_ns[priority] = -1;
    }
    register_metrics(access, metrics);
    enum bt_status status = read_keys(access, options, error);
    access->options.keys_file = access->options.key = NULL;
    if (status != BT_OK) {
        rt_access_destroy(access);
        return status;
    }
    *ret_access = access;
    return BT_OK;
}

void rt_access_destroy(struct rt_access *access)
{
    if (!access) {
        return;
    }
    bt_loop_remove(access->timer);
    rt_tenants_finish(&access->table);
    free(access->numbers);
    free(access->tenants);
    free(access->keys_file);
    free(access);
}

void rt_access_on_reload(struct rt_access *access, rt_access_reloaded_fn *fn, void *context)
{
    access->reloaded = fn;
    access->reloaded_context = context;
}

void rt_access_on_change(struct rt_access *access, rt_access_changed_fn *fn, void *context)
{
    access->changed = fn;
    access->context = context;
    tell(access);
}

/* ---- who */

bool rt_access_asks(const struct rt_access *access)
{
    return access && access->table.count > 0;
}

enum rt_access_scope rt_access_scope(const struct rt_access *access)
{
    return access->options.scope;
}

bool rt_access_identify(struct rt_access *access, const char *key, size_t size,
                        uint32_t *ret_tenant)
{
    uint32_t place;
    if (!rt_access_asks(access)) {
        *ret_tenant = 0;
        return true;
    }
    if (!key || !rt_tenants_find(&access->table, key, size, &place)) {
        bt_counter_add(access->unauthorised, 1);
        return false;
    }
    *ret_tenant = access->numbers[place];
    return true;
}

const struct rt_tenant_spec *rt_access_tenant(const struct rt_access *access, uint32_t tenant)
{
    BT_ASSERT(tenant < access->tenant_count);
    return &access->tenants[tenant].spec;
}

int64_t rt_access_slo_ttft_ns(const struct rt_access *access, uint32_t tenant, uint32_t priority)
{
    int64_t slo_ns = rt_access_tenant(access, tenant)->slo_ttft_ns[priority];
    return slo_ns >= 0 ? slo_ns : access->options.slo_ttft_ns;
}

/* ---- how much */

static enum bt_status refuse(struct bt_counter *counter, struct bt_error *error, int64_t wait_ns,
                             uint32_t limit, const char *what, int64_t *ret_retry_after_ns)
{
    bt_counter_add(counter, 1);
    *ret_retry_after_ns = wait_ns;
    return bt_error_set(error, BT_ERR_EXHAUSTED, "the limit of %" PRIu32 " %s a minute is reached",
                        limit, what);
}

enum bt_status rt_access_check_rate(struct rt_access *access, uint32_t number, int64_t now_ns,
                                    struct bt_error *error, int64_t *ret_retry_after_ns)
{
    struct tenant *tenant = &access->tenants[number];
    int64_t wait_ns = rt_token_bucket_wait_ns(&tenant->requests, 1, now_ns);
    if (wait_ns > 0) {
        return refuse(access->shed_requests, error, wait_ns, tenant->requests.per_minute,
                      "requests", ret_retry_after_ns);
    }
    wait_ns = rt_token_bucket_wait_ns(&tenant->tokens, 1, now_ns);
    if (wait_ns > 0) {
        return refuse(access->shed_tokens, error, wait_ns, tenant->tokens.per_minute, "tokens",
                      ret_retry_after_ns);
    }
    return BT_OK;
}

void rt_access_take_request(struct rt_access *access, uint32_t number, int64_t now_ns)
{
    rt_token_bucket_take(&access->tenants[number].requests, 1, now_ns);
}

enum bt_status rt_access_check_tokens(struct rt_access *access, uint32_t number, uint64_t tokens,
                                      int64_t now_ns, struct bt_error *error,
                                      int64_t *ret_retry_after_ns)
{
    struct tenant *tenant = &access->tenants[number];
    int64_t wait_ns = rt_token_bucket_wait_ns(&tenant->tokens, (double)tokens, now_ns);
    if (wait_ns == BT_NEVER_NS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "the prompt and max_tokens are %" PRIu64
                            " tokens, the limit is %" PRIu32 " a minute",
                            tokens, tenant->tokens.per_minute);
    }
    if (wait_ns > 0) {
        return refuse(access->shed_tokens, error, wait_ns, tenant->tokens.per_minute, "tokens",
                      ret_retry_after_ns);
    }
    return BT_OK;
}

enum bt_status rt_access_take_tokens(struct rt_access *access, uint32_t number, uint64_t tokens,
                                     int64_t now_ns, struct bt_error *error,
                                     int64_t *ret_retry_after_ns)
{
    enum bt_status status =
        rt_access_check_tokens(access, number, tokens, now_ns, error, ret_retry_after_ns);
    if (status == BT_OK) {
        rt_token_bucket_take(&access->tenants[number].tokens, (double)tokens, now_ns);
    }
    return status;
}

void rt_access_settle_tokens(struct rt_access *access, uint32_t number, int64_t unused,
                             int64_t now_ns)
{
    rt_token_bucket_take(&access->tenants[number].tokens, -(double)unused, now_ns);
}
