/* Where the Kubernetes API is, from files that may say anything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "deploy/batonctl/kube_config.h"

#define PEM      "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
#define PEM_DATA "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBQUEKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="

static char dir[] = "/tmp/kube-config-XXXXXX";
static struct ctl_kube_config config;
static struct bt_error error;

/* Of parts of batonctl that are not under test. */
const char *ctl_role_name(enum ctl_role role)
{
    return role == CTL_PREFILL ? "prefill" : "decode";
}

void ctl_text_flatten(char *text)
{
    (void)text;
}

static const char *path_of(const char *name)
{
    static char paths[4][300];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
    return path;
}

static const char *write_bytes(const char *name, const void *bytes, size_t size)
{
    const char *path = path_of(name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
    return path;
}

static const char *write_text(const char *name, const char *text)
{
    return write_bytes(name, text, strlen(text));
}

static enum bt_status load(struct ctl_engine_values values, struct ctl_kube_surroundings around)
{
    ctl_kube_config_finish(&config);
    memset(&error, 0, sizeof(error));
    if (!around.account_dir)
        around.account_dir = path_of("no-account");
    return ctl_kube_config_load(&values, &around, &error, &config);
}

static enum bt_status load_text(const char *text)
{
    return load((struct ctl_engine_values){.kubeconfig = write_text("config", text)},
                (struct ctl_kube_surroundings){0});
}

#define CLUSTER "clusters:\n- name: c\n  cluster: {server: 'https://api:6443/'%s}\n"
#define CONTEXT "contexts:\n- {name: x, context: {cluster: c, user: u%s}}\ncurrent-context: x\n"

static enum bt_status load_parts(const char *cluster, const char *user, const char *context)
{
    char text[4096];
    snprintf(text, sizeof(text), CLUSTER CONTEXT "users:\n- name: u\n  user: {%s}\n", cluster,
             context, user);
    return load_text(text);
}

static void test_all_of_a_file(void **state)
{
    (void)state;
    write_text("ca.pem", PEM);
    write_text("token", "file.token\n");
    assert_int_equal(load_parts(", certificate-authority: ca.pem, proxy-url: 'http://p:1'",
                                "tokenFile: token, client-certificate-data: " PEM_DATA
                                ", client-key-data: " PEM_DATA,
                                ", namespace: here"),
                     BT_OK);
    assert_string_equal(config.server, "https://api:6443");
    assert_string_equal(config.ca, PEM);
    assert_string_equal(config.certificate, PEM);
    assert_string_equal(config.key, PEM);
    assert_string_equal(config.token, "file.token");
    assert_string_equal(config.namespace_, "here");
    assert_string_equal(config.proxy, "http://p:1");
    assert_false(config.insecure);
    write_text("token", "another");
    assert_int_equal(ctl_kube_config_read_token(&config, &error), BT_OK);
    assert_string_equal(config.token, "another");
    assert_int_equal(load_parts(", insecure-skip-tls-verify: true", "token: abc", ""), BT_OK);
    assert_true(config.insecure);
    assert_string_equal(config.token, "abc");
    assert_string_equal(config.namespace_, "default");
}

static void test_what_is_not_done_here(void **state)
{
    (void)state;
    static const char *const users[] = {"exec: {command: aws}", "auth-provider: {name: gcp}",
                                        "username: me, password: it", "token: a, as: root"};
    for (size_t i = 0; i < sizeof(users) / sizeof(users[0]); i++) {
        assert_int_equal(load_parts("", users[i], ""), BT_ERR_UNSUPPORTED);
        assert_non_null(strstr(error.text, "kubectl proxy"));
    }
    assert_int_equal(load_parts(", tls-server-name: other", "", ""), BT_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "kubectl proxy"));
}

static void test_broken_files(void **state)
{
    (void)state;
    static const struct {
        const char *cluster, *user, *context;
        enum bt_status status;
    } cases[] = {
        {"", "token: 'a b'", "", BT_ERR_INVALID_ARGUMENT},
        {"", "token: \"a\\r\\nX-Evil: 1\"", "", BT_ERR_INVALID_ARGUMENT},
        {"", "token: \"a\\0b\"", "", BT_ERR_INVALID_ARGUMENT},
        {"", "token: [a]", "", BT_ERR_INVALID_ARGUMENT},
        {"", "token: '  '", "", BT_ERR_INVALID_ARGUMENT},
        {"", "tokenFile: none", "", BT_ERR_NOT_FOUND},
        {"", "client-certificate-data: " PEM_DATA, "", BT_ERR_INVALID_ARGUMENT},
        {"", "client-key: missing.pem", "", BT_ERR_NOT_FOUND},
        {", certificate-authority-data: '!!!!'", "", "", BT_ERR_INVALID_ARGUMENT},
        {", certificate-authority-data: QUJD", "", "", BT_ERR_INVALID_ARGUMENT},
        {", certificate-authority-data: 'LS0tL'", "", "", BT_ERR_INVALID_ARGUMENT},
        {", certificate-authority-data: '===='", "", "", BT_ERR_INVALID_ARGUMENT},
        {"", "", ", namespace: ../../x", BT_ERR_INVALID_ARGUMENT},
        {"", "", ", namespace: a.b", BT_ERR_INVALID_ARGUMENT},
        {"", "", ", namespace: {a: b}", BT_ERR_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        enum bt_status status = load_parts(cases[i].cluster, cases[i].user, cases[i].context);
        if (status != cases[i].status)
            fail_msg("case %zu gave %s: %s", i, bt_status_name(status), error.text);
        assert_true(error.text[0] != '\0');
    }
}

static void test_hostile_yaml(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "[]",
        "just text",
        "{",
        "a: b: c",
        "\t",
        "- &a [*a, *a]",
        "%YAML 9.9\n---\na: b",
        "clusters: &x [*x]\ncontexts: *x\ncurrent-context: y",
        "&a {contexts: [*a], clusters: *a, current-context: *a}",
        "contexts: 5\ncurrent-context: x",
        "contexts: [{name: x}]\ncurrent-context: x",
        "contexts: [{name: x, context: 1}]\ncurrent-context: x",
        "contexts: [{name: x, context: {cluster: [1]}}]\ncurrent-context: x",
        "contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x",
        "contexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {}}]\n"
        "current-context: x",
        "current-context: none",
        "clusters: []",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (load_text(texts[i]) == BT_OK || !*error.text)
            fail_msg("'%s' is taken, or without a word", texts[i]);
    static const char bytes[] = "a: \xff\xfe\0b\n\x1b";
    assert_int_not_equal(
        load((struct ctl_engine_values){.kubeconfig = write_bytes("raw", bytes, sizeof(bytes))},
             (struct ctl_kube_surroundings){0}),
        BT_OK);
    size_t deep = 1000000;
    char *nested = malloc(deep + 1);
    memset(nested, '[', deep);
    nested[deep] = '\0';
    assert_int_not_equal(load_text(nested), BT_OK);
    memset(nested, '-', deep);
    for (size_t i = 1; i < deep; i += 2)
        nested[i] = ' ';
    assert_int_not_equal(load_text(nested), BT_OK);
    size_t used = 0; /* good but for its many anchors */
    used +=
        (size_t)sprintf(nested, CLUSTER CONTEXT "users: [{name: u, user: {}}]\nmore: [", "", "");
    while (used < 900000)
        used += (size_t)sprintf(nested + used, "&a%zu x,", used);
    strcpy(nested + used, "]\n");
    assert_int_equal(load_text(nested), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "anchors"));
    free(nested);
}

static void test_urls(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",           "ftp://a",           "https://",           "https:///path",
        "http://a b", "https://user@host", "https://a?x=1",      "https://a#b",
        "api:6443",   "https://a\n",       "file:///etc/passwd", "https://a\\b"};
    static const char *const good[] = {"http://127.0.0.1:8001",
                                       "https://[::1]:6443/k8s/clusters/c-1/"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (load((struct ctl_engine_values){.kube_server = bad[i]},
                 (struct ctl_kube_surroundings){0}) != BT_ERR_INVALID_ARGUMENT)
            fail_msg("'%s' is taken", bad[i]);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(load((struct ctl_engine_values){.kube_server = good[i], .namespace_ = "n"},
                              (struct ctl_kube_surroundings){0}),
                         BT_OK);
    assert_string_equal(config.server, "https://[::1]:6443/k8s/clusters/c-1");
}

static void test_no_token_in_the_clear(void **state)
{
    (void)state;
    static const struct {
        const char *server;
        bool ok;
    } cases[] = {{"http://127.0.0.1:8001", true},
                 {"http://localhost", true},
                 {"https://api", true},
                 {"http://api", false},
                 {"http://127.0.0.1.evil:80", false},
                 {"http://localhost.evil", false}};
    char token[300];
    snprintf(token, sizeof(token), "%s", write_text("token", "t"));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(load((struct ctl_engine_values){.kube_server = cases[i].server,
                                                         .kube_token_file = token},
                              (struct ctl_kube_surroundings){0}),
                         cases[i].ok ? BT_OK : BT_ERR_INVALID_ARGUMENT);
}

static void test_service_account(void **state)
{
    (void)state;
    struct ctl_kube_surroundings around = {
        .service_host = "fd00::1", .service_port = "443", .account_dir = path_of("account")};
    mkdir(path_of("account"), 0700);
    assert_int_equal(load((struct ctl_engine_values){0}, around), BT_ERR_NOT_FOUND);
    write_text("account/ca.crt", PEM);
    write_text("account/token", "pod-token");
    write_text("account/namespace", "team\n");
    around.account_dir = path_of("account");
    assert_int_equal(load((struct ctl_engine_values){0}, around), BT_OK);
    assert_string_equal(config.server, "https://[fd00::1]:443");
    assert_string_equal(config.namespace_, "team");
    assert_string_equal(config.token, "pod-token");
    assert_string_equal(config.ca, PEM);
    assert_int_equal(load((struct ctl_engine_values){0}, (struct ctl_kube_surroundings){0}),
                     BT_ERR_NOT_FOUND);
}

static void test_several_files(void **state)
{
    (void)state;
    char paths[1200];
    write_text("one", "current-context: b\ncontexts: [{name: a, context: {cluster: c}}]\n");
    write_text("two", "current-context: a\ncontexts: [{name: b, context: {cluster: c}}]\n"
                      "clusters: [{name: c, cluster: {server: 'https://two'}}]\n");
    snprintf(paths, sizeof(paths), "%s::%s:%s", path_of("none"), path_of("one"), path_of("two"));
    struct ctl_kube_surroundings around = {.kubeconfig = paths};
    assert_int_equal(load((struct ctl_engine_values){0}, around), BT_OK);
    assert_string_equal(config.server, "https://two");
    assert_int_equal(load((struct ctl_engine_values){.kube_context = "a"}, around), BT_OK);
    assert_int_equal(load((struct ctl_engine_values){.kube_context = "z"}, around),
                     BT_ERR_NOT_FOUND);
    memset(paths, 0, sizeof(paths));
    for (int i = 0; i < 9; i++)
        snprintf(paths + strlen(paths), sizeof(paths) - strlen(paths), "%s:", path_of("one"));
    assert_int_equal(load((struct ctl_engine_values){0}, around), BT_ERR_EXHAUSTED);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[64];
    (void)state;
    ctl_kube_config_finish(&config);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_of_a_file),
        cmocka_unit_test(test_what_is_not_done_here),
        cmocka_unit_test(test_broken_files),
        cmocka_unit_test(test_hostile_yaml),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_no_token_in_the_clear),
        cmocka_unit_test(test_service_account),
        cmocka_unit_test(test_several_files),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
