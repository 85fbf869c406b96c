/* Keys, tenants, and limits of so many a minute. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/access.h"
#include "router/token_bucket.h"

#define S BT_NS_PER_S

/* ---- buckets */

static void test_bucket_fills_evenly(void **state)
{
    (void)state;
    struct rt_token_bucket bucket;
    rt_token_bucket_init(&bucket, 6, 100 * S); /* one in 10 s */
    for (int i = 0; i < 6; i++) {
        assert_int_equal(rt_token_bucket_wait_ns(&bucket, 1, 100 * S), 0);
        rt_token_bucket_take(&bucket, 1, 100 * S);
    }
    assert_true(llabs(rt_token_bucket_wait_ns(&bucket, 1, 100 * S) - 10 * S) < S / 1000);
    assert_true(llabs(rt_token_bucket_wait_ns(&bucket, 2, 104 * S) - 16 * S) < S / 1000);
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 1, 110 * S), 0);
    rt_token_bucket_take(&bucket, 1, 110 * S);
    assert_true(rt_token_bucket_wait_ns(&bucket, 1, 110 * S) > 9 * S);
    /* It never holds more than a minute's. */
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 6, 10000 * S), 0);
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 7, 10000 * S), BT_NEVER_NS);
    rt_token_bucket_take(&bucket, 6, 10000 * S);
    assert_true(rt_token_bucket_wait_ns(&bucket, 1, 10000 * S) > 9 * S);
}

static void test_bucket_debt_refund_and_change(void **state)
{
    (void)state;
    struct rt_token_bucket bucket;
    rt_token_bucket_init(&bucket, 60, 0);
    rt_token_bucket_take(&bucket, 90, 0); /* 30 too many */
    assert_true(llabs(rt_token_bucket_wait_ns(&bucket, 1, 0) - 31 * S) < S / 1000);
    rt_token_bucket_take(&bucket, -90, 0);
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 60, 0), 0);
    rt_token_bucket_take(&bucket, -90, 0); /* no more than it holds */
    rt_token_bucket_take(&bucket, 50, 0);
    assert_true(rt_token_bucket_wait_ns(&bucket, 11, 0) > 0);
    rt_token_bucket_set(&bucket, 120, 0); /* 50 are taken of them */
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 70, 0), 0);
    assert_true(llabs(rt_token_bucket_wait_ns(&bucket, 71, 0) - S / 2) < S / 1000);
    rt_token_bucket_set(&bucket, 0, 0); /* no limit */
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 1e18, 0), 0);
    rt_token_bucket_take(&bucket, 1e18, 0);
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 1, 0), 0);
    assert_int_equal(rt_token_bucket_wait_ns(&bucket, 1, -S), 0); /* a clock that goes back */
}

/* ---- the file */

static void wrong(const char *text, const char *message)
{
    struct bt_error error = {0};
    struct rt_tenants tenants;
    assert_int_equal(rt_tenants_parse(text, strlen(text), &error, &tenants),
                     BT_ERR_INVALID_ARGUMENT);
    if (!strstr(error.text, message)) {
        fail_msg("%s\n gave: %s\n not: %s", text, error.text, message);
    }
    assert_null(strstr(error.text, "secret"));
}

#define ONE(fields)  "{\"tenants\":[{\"name\":\"a\",\"keys\":[\"secret-one\"]" fields "}]}"
#define KEYS(keys)   "{\"tenants\":[{\"name\":\"a\",\"keys\":" keys "}]}"
#define NAMED(name)  "{\"tenants\":[{\"name\":" name ",\"keys\":[\"secret-one\"]}]}"
#define SECOND(rest) "{\"tenants\":[{\"name\":\"a\",\"keys\":[\"secret-one\"]},{" rest "}]}"

static void test_every_wrong_field_is_named(void **state)
{
    (void)state;
    static const char root[] = "must be an object with one field, \"tenants\"";
    wrong("", "line 1 column 0: not valid JSON");
    wrong("{\"tenants\":[\n {\"name\": secret-one}]}", "line 2 column 16: not valid JSON");
    wrong("{\"tenants\":[{\"name\":\"a\",\"keys\":[\"secret-one]}]}", "not valid JSON");
    wrong("{\"tenants\":[],\"tenants\":[]}", "a field stands there twice");
    wrong("[]", root);
    wrong("{}", root);
    wrong("{\"tenants\":[]}", root);
    wrong("{\"tenants\":{}}", root);
    wrong("{\"tenants\":[{\"name\":\"a\",\"keys\":[\"secret-one\"]}],\"more\":1}", root);
    wrong("{\"tenants\":[1]}", "tenants[0] must be an object");
    wrong("{\"tenants\":[{\"keys\":[\"secret-one\"]}]}", "tenants[0].name must be a string");
    wrong(NAMED("\"\""), "tenants[0].name must be a string of 1 to 63");
    wrong(NAMED("7"), "tenants[0].name");
    wrong(NAMED("\"a b\""), "tenants[0].name");
    wrong(NAMED("\"\xC3\xA4\""), "tenants[0].name");
    wrong(NAMED("\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\""),
          "tenants[0].name");
    wrong("{\"tenants\":[{\"name\":\"a\"}]}", "tenants[0].keys must be an array of at least one");
    wrong(KEYS("[]"), "tenants[0].keys must be an array");
    wrong(KEYS("\"secret-one\""), "tenants[0].keys must be an array");
    wrong(KEYS("[7]"), "tenants[0].keys[0] must be a string");
    wrong(KEYS("[\"secret\"]"), "tenants[0].keys[0] must have 8 to 512 characters");
    wrong(KEYS("[\"secret-one\",\"secret one\"]"),
          "tenants[0].keys[1] must be of ASCII characters without blanks");
    wrong(KEYS("[\"secret-\xC3\xA4\xC3\xA4\"]"), "tenants[0].keys[0] must be of ASCII");
    wrong(KEYS("[\"sha256:abcd\"]"), "tenants[0].keys[0] must have 64 hex digits");
    wrong(KEYS("[\"secret-one\",\"secret-one\"]"),
          "tenants[0].keys[1] is a key of tenants[0] already");
    wrong(KEYS("[\"secret-one\",\"sha256:"
               "4A0C0ED62C4B8C8D8E0A0C2B0E6EC30E56A62BCA3A4CC3E1B7F6E8E3A5F6F1ZZ\"]"),
          "tenants[0].keys[1] must have 64 hex digits");
    wrong(SECOND("\"name\":\"a\",\"keys\":[\"secret-two\"]"),
          "tenants[1].name is that of tenants[0] already: a");
    wrong(SECOND("\"name\":\"b\",\"keys\":[\"secret-one\"]"),
          "tenants[1].keys[0] is a key of tenants[0] already");
    wrong(ONE(",\"weigth\":2"), "tenants[0] has an unknown field: weigth");
    wrong(ONE(",\"sk-secret\":2"), "tenants[0] has an unknown field");
    wrong(ONE(",\"weight\":0"), "tenants[0].weight must be an integer from 1 to 10000");
    wrong(ONE(",\"weight\":10001"), "tenants[0].weight must be");
    wrong(ONE(",\"weight\":1.5"), "tenants[0].weight must be");
    wrong(ONE(",\"weight\":\"1\""), "tenants[0].weight must be");
    wrong(ONE(",\"priority\":4"), "tenants[0].priority must be an integer from 0 to 3");
    wrong(ONE(",\"priority\":-1"), "tenants[0].priority must be");
    static const char *const counts[] = {"max_running",         "max_waiting",
                                         "requests_per_minute", "tokens_per_minute",
                                         "max_prompt_tokens",   "max_output_tokens"};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        static const char *const values[] = {"-1", "1000000001", "\"7\"", "null", "true", "1e3"};
        for (size_t j = 0; j < sizeof values / sizeof *values; j++) {
            char text[200], message[100];
            snprintf(text, sizeof text, ONE(",\"%s\":%s"), counts[i], values[j]);
            snprintf(message, sizeof message, "tenants[0].%s must be an integer from 0 to",
                     counts[i]);
            wrong(text, message);
        }
    }
    static const char *const slos[] = {"-1", "3600001", "\"1\"", "[]", "[1,2,3,4,5]", "[1,null]"};
    for (size_t i = 0; i < sizeof slos / sizeof *slos; i++) {
        char text[200];
        snprintf(text, sizeof text, ONE(",\"slo_ttft_ms\":%s"), slos[i]);
        wrong(text, "tenants[0].slo_ttft_ms must be a number from 0 to 3600000");
    }
}

/* From FIPS 180-2: the digest of "abc". */
#define ABC_HEX "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static void test_a_good_file(void **state)
{
    (void)state;
    struct rt_digest abc, hex;
    assert_true(rt_digest_of("abc", 3, &abc));
    assert_true(rt_digest_from_hex(ABC_HEX, strlen(ABC_HEX), &hex));
    assert_true(rt_digest_equal(&abc, &hex));
    hex.bytes[31] ^= 1;
    assert_false(rt_digest_equal(&abc, &hex));
    static const char text[] =
        "{\"tenants\":[{\"name\":\"a.B_9-\",\"keys\":[\"secret-one\"]},"
        "{\"name\":\"b\",\"keys\":[\"secret-three\",\"sha256:" ABC_HEX "\"],\"weight\":10000,"
        "\"priority\":3,\"max_running\":2,\"max_waiting\":3,\"requests_per_minute\":4,"
        "\"tokens_per_minute\":5,\"max_prompt_tokens\":6,\"max_output_tokens\":7,"
        "\"slo_ttft_ms\":[100.5,0]}]}";
    struct bt_error error = {0};
    struct rt_tenants tenants;
    assert_int_equal(rt_tenants_parse(text, strlen(text), &error, &tenants), BT_OK);
    assert_int_equal(tenants.count, 2);
    assert_int_equal(tenants.key_count, 3);
    const struct rt_tenant_spec *a = &tenants.tenants[0], *b = &tenants.tenants[1];
    assert_string_equal(a->name, "a.B_9-");
    assert_int_equal(a->limits.weight, 1);
    assert_int_equal(a->limits.max_running + a->limits.max_waiting + a->requests_per_minute, 0);
    assert_int_equal(a->slo_ttft_ns[0], -1);
    assert_int_equal(b->limits.weight, 10000);
    assert_int_equal(b->priority, 3);
    assert_int_equal(b->limits.max_running, 2);
    assert_int_equal(b->limits.max_waiting, 3);
    assert_int_equal(b->requests_per_minute, 4);
    assert_int_equal(b->tokens_per_minute, 5);
    assert_int_equal(b->max_prompt_tokens, 6);
    assert_int_equal(b->max_output_tokens, 7);
    assert_int_equal(b->slo_ttft_ns[0], 100500000);
    assert_int_equal(b->slo_ttft_ns[1], 0);
    assert_int_equal(b->slo_ttft_ns[3], 0);
    uint32_t tenant;
    assert_true(rt_tenants_find(&tenants, "secret-one", 10, &tenant) && tenant == 0);
    assert_true(rt_tenants_find(&tenants, "secret-three", 12, &tenant) && tenant == 1);
    assert_true(rt_tenants_find(&tenants, "abc", 3, &tenant) && tenant == 1);
    assert_false(rt_tenants_find(&tenants, "secret-one", 9, &tenant));
    assert_false(rt_tenants_find(&tenants, "secret-one ", 11, &tenant));
    assert_false(rt_tenants_find(&tenants, "", 0, &tenant));
    assert_false(rt_tenants_find(&tenants, "secret-one\0", 11, &tenant));
    assert_false(rt_tenants_find(&tenants, ABC_HEX, strlen(ABC_HEX), &tenant));
    char *large = calloc(1, 1 << 20);
    assert_false(rt_tenants_find(&tenants, large, 1 << 20, &tenant));
    free(large);
    rt_tenants_finish(&tenants);
}

/* ---- access */

static struct bt_loop *loop;
static char path[64];

static int setup(void **state)
{
    (void)state;
    struct bt_error error = {0};
    loop = bt_loop_create(&error);
    snprintf(path, sizeof path, "/tmp/test-access-XXXXXX");
    int fd = mkstemp(path);
    if (!loop || fd < 0) {
        return -1;
    }
    close(fd);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    bt_loop_destroy(loop);
    unlink(path);
    return 0;
}

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static uint32_t weights[RT_MAX_TENANTS];

static void changed(void *context, uint32_t tenant, const struct rt_tenant_limits *limits)
{
    assert_ptr_equal(context, weights);
    assert_in_range(tenant, 1, RT_MAX_TENANTS - 1);
    weights[tenant] = limits->weight;
}

static bool is(struct rt_access *access, const char *key, uint32_t *ret_tenant)
{
    return rt_access_identify(access, key, key ? strlen(key) : 0, ret_tenant);
}

#define TENANT(name, key, more) "{\"name\":\"" name "\",\"keys\":[\"" key "\"]" more "}"

static void test_numbers_follow_names(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct rt_access *access;
    struct rt_access_options options = {.keys_file = path, .slo_ttft_ns = 5 * S};
    struct bt_metrics *metrics = bt_metrics_create();
    write_file("{\"tenants\":[" TENANT("a", "secret-a", ",\"weight\":3") "," TENANT(
        "b", "secret-b", ",\"slo_ttft_ms\":[100,0]") "]}");
    assert_int_equal(rt_access_create(loop, &options, metrics, &error, &access), BT_OK);
    rt_access_on_change(access, changed, weights);
    uint32_t a, b, c;
    assert_true(rt_access_asks(access));
    assert_true(is(access, "secret-a", &a) && is(access, "secret-b", &b));
    assert_int_equal(weights[a], 3);
    assert_int_equal(weights[b], 1);
    assert_false(is(access, "secret-c", &c));
    assert_false(is(access, NULL, &c));
    assert_int_equal(rt_access_slo_ttft_ns(access, a, 0), 5 * S);
    assert_int_equal(rt_access_slo_ttft_ns(access, b, 0), S / 10);
    assert_int_equal(rt_access_slo_ttft_ns(access, b, 3), 0);
    /* Another key and place for a, none for b, a new one. */
    write_file("{\"tenants\":[" TENANT("c", "secret-c", "") "," TENANT("a", "secret-2",
                                                                       ",\"weight\":7") "]}");
    assert_int_equal(rt_access_reload(access, &error), BT_OK);
    uint32_t again;
    assert_true(is(access, "secret-2", &again) && again == a && weights[a] == 7);
    assert_true(is(access, "secret-c", &c) && c != a && c != b);
    assert_false(is(access, "secret-a", &again));
    assert_false(is(access, "secret-b", &again));
    assert_string_equal(rt_access_tenant(access, b)->name, "b"); /* what it runs goes on */
    /* What is wrong changes nothing. */
    write_file("{\"tenants\":[" TENANT("a", "secret-2", ",\"weight\":0") "]}");
    assert_int_equal(rt_access_reload(access, &error), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, "tenants[0].weight"));
    unlink(path);
    assert_int_equal(rt_access_reload(access, &error), BT_ERR_NOT_FOUND);
    assert_true(is(access, "secret-2", &again) && is(access, "secret-c", &again));
    size_t size;
    char *text = bt_metrics_render(metrics, &size);
    assert_non_null(strstr(text, "baton_router_sheds_total{reason=\"unauthorised\"} 4"));
    assert_null(strstr(text, "secret"));
    free(text);
    rt_access_destroy(access);
    bt_metrics_destroy(metrics);
}

/* The loop's own looks find it, also behind a link that leads elsewhere. */
static void test_a_changed_file_is_read_again(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct rt_access *access;
    char link_path[80], other_path[80];
    snprintf(link_path, sizeof link_path, "%s.link", path);
    snprintf(other_path, sizeof other_path, "%s.other", path);
    struct rt_access_options options = {.keys_file = link_path};
    write_file("{\"tenants\":[" TENANT("a", "secret-a", "") "]}");
    assert_int_equal(rename(path, other_path), 0);
    write_file("{\"tenants\":[" TENANT("b", "secret-b", "") "]}");
    assert_int_equal(symlink(other_path, link_path), 0);
    enum bt_status status = rt_access_create(loop, &options, NULL, &error, &access);
    unlink(link_path);
    assert_int_equal(symlink(path, link_path), 0);
    assert_int_equal(status, BT_OK);
    uint32_t tenant;
    assert_true(is(access, "secret-a", &tenant));
    int64_t until_ns = bt_clock_now_ns() + 60 * S;
    while (!is(access, "secret-b", &tenant) && bt_clock_now_ns() < until_ns) {
        assert_int_equal(bt_loop_run_once(loop, until_ns, &error), BT_OK);
    }
    assert_true(is(access, "secret-b", &tenant));
    assert_false(is(access, "secret-a", &tenant));
    rt_access_destroy(access);
    unlink(link_path);
    unlink(other_path);
}

static void test_one_key_or_none(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct rt_access *access;
    struct rt_access_options options = {.key = "secret-only"};
    uint32_t tenant = 9;
    assert_int_equal(rt_access_create(loop, &options, NULL, &error, &access), BT_OK);
    assert_true(rt_access_asks(access) && is(access, "secret-only", &tenant) && tenant == 1);
    assert_false(is(access, "secret-onlx", &tenant));
    rt_access_destroy(access);
    options.keys_file = path;
    assert_int_equal(rt_access_create(loop, &options, NULL, &error, &access),
                     BT_ERR_INVALID_ARGUMENT);
    options = (struct rt_access_options){.key = "short"};
    assert_int_equal(rt_access_create(loop, &options, NULL, &error, &access),
                     BT_ERR_INVALID_ARGUMENT);
    assert_null(strstr(error.text, "short"));
    options = (struct rt_access_options){0};
    assert_int_equal(rt_access_create(loop, &options, NULL, &error, &access), BT_OK);
    assert_false(rt_access_asks(access));
    assert_true(is(access, NULL, &tenant) && tenant == 0);
    rt_access_destroy(access);
}

static void test_rates(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct rt_access *access;
    struct rt_access_options options = {.keys_file = path};
    write_file("{\"tenants\":[" TENANT("a", "secret-a",
                                       ",\"requests_per_minute\":2,"
                                       "\"tokens_per_minute\":600") "]}");
    assert_int_equal(rt_access_create(loop, &options, NULL, &error, &access), BT_OK);
    uint32_t a;
    int64_t now_ns = bt_clock_now_ns() + S, wait_ns = 0;
    assert_true(is(access, "secret-a", &a));
    assert_int_equal(rt_access_take_tokens(access, a, 601, now_ns, &error, &wait_ns),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(rt_access_check_tokens(access, a, 601, now_ns, &error, &wait_ns),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(rt_access_check_tokens(access, a, 600, now_ns, &error, &wait_ns), BT_OK);
    assert_int_equal(rt_access_take_tokens(access, a, 590, now_ns, &error, &wait_ns), BT_OK);
    assert_int_equal(rt_access_check_tokens(access, a, 30, now_ns, &error, &wait_ns),
                     BT_ERR_EXHAUSTED);
    assert_true(llabs(wait_ns - 2 * S) < S / 1000);
    assert_int_equal(rt_access_take_tokens(access, a, 30, now_ns, &error, &wait_ns),
                     BT_ERR_EXHAUSTED);
    assert_true(llabs(wait_ns - 2 * S) < S / 1000);
    rt_access_settle_tokens(access, a, 20, now_ns);
    assert_int_equal(rt_access_take_tokens(access, a, 30, now_ns, &error, &wait_ns), BT_OK);
    for (int i = 0; i < 2; i++) {
        rt_access_settle_tokens(access, a, 10, now_ns);
        assert_int_equal(rt_access_check_rate(access, a, now_ns, &error, &wait_ns), BT_OK);
        rt_access_take_request(access, a, now_ns);
    }
    assert_int_equal(rt_access_check_rate(access, a, now_ns, &error, &wait_ns), BT_ERR_EXHAUSTED);
    assert_true(llabs(wait_ns - 30 * S) < S / 1000);
    assert_string_equal(error.text, "the limit of 2 requests a minute is reached");
    now_ns += 30 * S + S / 1000;
    rt_access_settle_tokens(access, a, -900, now_ns);
    assert_int_equal(rt_access_check_rate(access, a, now_ns, &error, &wait_ns), BT_ERR_EXHAUSTED);
    assert_string_equal(error.text, "the limit of 600 tokens a minute is reached");
    rt_access_destroy(access);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bucket_fills_evenly),
        cmocka_unit_test(test_bucket_debt_refund_and_change),
        cmocka_unit_test(test_every_wrong_field_is_named),
        cmocka_unit_test(test_a_good_file),
        cmocka_unit_test_setup_teardown(test_numbers_follow_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_changed_file_is_read_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_key_or_none, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rates, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
