/* Paths of calls, and what a watch says, cut anywhere and with anything in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "deploy/batonctl/kube_objects.h"
#include "deploy/batonctl/kube_watch.h"

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

static void test_paths(void **state)
{
    (void)state;
    static const struct {
        enum ctl_kube_call call;
        const char *name, *path;
    } cases[] = {
        {CTL_KUBE_LIST_PODS, NULL, "/api/v1/namespaces/n/pods"},
        {CTL_KUBE_GET_POD_LOG, "a-1", "/api/v1/namespaces/n/pods/a-1/log"},
        {CTL_KUBE_SCALE_DEPLOYMENT, "d", "/apis/apps/v1/namespaces/n/deployments/d/scale"},
        {CTL_KUBE_GET_GROUPS, "g",
         "/apis/leaderworkerset.x-k8s.io/v1/namespaces/n/leaderworkersets/g/scale"},
        {CTL_KUBE_LIST_AUTOSCALERS, NULL,
         "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers"},
    };
    static const char *const bad[] = {"",     "..", "a/b", "a%2fb", "A",
                                      "a..b", "-a", "a b", "a?x",   "a\n"};
    char path[200];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(ctl_kube_path(cases[i].call, "n", cases[i].name, &error, path, 200),
                         BT_OK);
        assert_string_equal(path, cases[i].path);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(ctl_kube_path(CTL_KUBE_PATCH_POD, "n", bad[i], &error, path, 200),
                         BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(ctl_kube_path(CTL_KUBE_LIST_PODS, "n", NULL, &error, path, 25),
                     BT_ERR_EXHAUSTED);
    assert_int_equal(ctl_kube_escape("a=b,c/d é", &error, path, 200), BT_OK);
    assert_string_equal(path, "a%3Db%2Cc%2Fd%20%C3%A9");
    assert_int_equal(ctl_kube_escape("abc", &error, path, 5), BT_ERR_INVALID_ARGUMENT);
}

struct seen {
    char text[256];
    unsigned count, stop_at;
};

static enum bt_status on_line(void *context, char *line, size_t size, struct bt_error *line_error)
{
    struct seen *seen = context;
    (void)line_error;
    assert_int_equal(line[size], '\0');
    for (size_t i = 0; i < size; i++)
        line[i] = line[i] ? line[i] : '0';
    strcat(seen->text, line);
    strcat(seen->text, "|");
    return ++seen->count == seen->stop_at ? BT_ERR_CANCELLED : BT_OK;
}

static void test_lines_cut_anywhere(void **state)
{
    (void)state;
    static const char bytes[] = "one\n\ntwo\0x\nthree\nrest";
    for (size_t step = 1; step <= sizeof(bytes); step++) {
        struct ctl_kube_lines lines = {0};
        struct seen seen = {{0}, 0, 0};
        for (size_t at = 0; at < sizeof(bytes) - 1; at += step) {
            size_t left = sizeof(bytes) - 1 - at;
            assert_int_equal(ctl_kube_lines_feed(&lines, bytes + at, left < step ? left : step,
                                                 on_line, &seen, &error),
                             BT_OK);
        }
        assert_string_equal(seen.text, "one||two0x|three|");
        assert_int_equal(lines.used, 4);
        ctl_kube_lines_finish(&lines);
    }
}

static void test_lines_have_a_limit(void **state)
{
    (void)state;
    struct ctl_kube_lines lines = {0};
    struct seen seen = {{0}, 0, 2};
    char *many = malloc(1 << 20);
    memset(many, 'a', 1 << 20);
    for (int i = 0; i < 4; i++)
        assert_int_equal(ctl_kube_lines_feed(&lines, many, 1 << 20, on_line, &seen, &error), BT_OK);
    assert_int_equal(ctl_kube_lines_feed(&lines, "b", 1, on_line, &seen, &error), BT_ERR_EXHAUSTED);
    free(many);
    ctl_kube_lines_finish(&lines);
    assert_int_equal(ctl_kube_lines_feed(&lines, "a\nb\nc\n", 6, on_line, &seen, &error),
                     BT_ERR_CANCELLED);
    assert_string_equal(seen.text, "a|b|");
    ctl_kube_lines_finish(&lines);
}

static enum bt_status apply(const char *line, json_t *objects, bool *changed)
{
    return ctl_kube_event_apply(line, strlen(line), objects, &error, changed);
}

#define EVENT(type, name, more)                                                                    \
    "{\"type\":\"" type "\",\"object\":{\"metadata\":{\"name\":\"" name "\"}" more "}}"

static void test_events(void **state)
{
    (void)state;
    json_t *objects = json_object();
    bool changed;
    assert_int_equal(apply(EVENT("ADDED", "a", ""), objects, &changed), BT_OK);
    assert_true(changed);
    assert_int_equal(apply(EVENT("MODIFIED", "a", ",\"x\":1"), objects, &changed), BT_OK);
    assert_int_equal(ctl_kube_number(json_object_get(objects, "a"), "x", 0), 1);
    assert_int_equal(apply(EVENT("BOOKMARK", "b", ""), objects, &changed), BT_OK);
    assert_false(changed);
    assert_int_equal(json_object_size(objects), 1);
    assert_int_equal(apply(EVENT("ERROR", "a", ""), objects, &changed), BT_ERR_STALE);
    assert_int_equal(apply(EVENT("DELETED", "a", ""), objects, &changed), BT_OK);
    assert_int_equal(json_object_size(objects), 0);
    assert_int_equal(apply(EVENT("DELETED", "a", ""), objects, &changed), BT_OK);
    json_decref(objects);
}

static void test_no_events(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "",
        "{",
        "[]",
        "null",
        "1",
        "\"ADDED\"",
        "{}",
        "{\"type\":1,\"object\":{}}",
        "{\"type\":\"ADDED\"}",
        "{\"type\":\"ADDED\",\"object\":[]}",
        "{\"type\":\"ADDED\",\"object\":{}}",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":7}}}",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"../x\"}}}",
        EVENT("added", "a", ""),
        EVENT("PATCHED", "a", ""),
        EVENT("ADDED", "a", "") "x",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"\xff\"}}}",
    };
    json_t *objects = json_object();
    bool changed;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (apply(lines[i], objects, &changed) != BT_ERR_PROTOCOL || changed)
            fail_msg("'%s' is an event", lines[i]);
        assert_int_equal(json_object_size(objects), 0);
    }
    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    assert_int_equal(apply(deep, objects, &changed), BT_ERR_PROTOCOL);
    free(deep);
    json_decref(objects);
}

#define POD(name, labels, status)                                                                  \
    "{\"metadata\":{\"name\":\"" name "\",\"uid\":\"u\",\"labels\":{" labels                       \
    "},\"annotations\":{\"leaderworkerset.sigs.k8s.io/size\":\"2\"}},\"status\":{" status "}}"
#define DECODE "\"app.kubernetes.io/component\":\"decode\""
#define RANK(g, r)                                                                                 \
    ",\"leaderworkerset.sigs.k8s.io/group-index\":\"" g                                            \
    "\",\"leaderworkerset.sigs.k8s.io/worker-index\":\"" r "\""
#define READY "\"phase\":\"Running\",\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]"

static json_t *objects_of(const char *text)
{
    json_t *items = json_loads(text, 0, NULL);
    assert_non_null(items);
    json_t *objects = ctl_kube_by_name(items);
    json_decref(items);
    return objects;
}

static void test_groups_are_one_worker(void **state)
{
    (void)state;
    json_t *objects = objects_of(
        "[" POD("d-0", DECODE RANK("0", "0"), READY) "," POD("d-0-1", DECODE RANK("0", "1"), READY) "," POD(
            "d-1", DECODE RANK("1", "0"),
            READY) "," POD("d-1-1", DECODE RANK("1", "1"),
                           "\"phase\":\"Pending\"") "," POD("alone", DECODE,
                                                            READY) "," POD("over", DECODE,
                                                                           "\"phase"
                                                                           "\":"
                                                                           "\"Failed"
                                                                           "\"") "," POD("other",
                                                                                         "",
                                                                                         READY) "]");
    uint32_t count;
    struct ctl_kube_worker *workers = ctl_kube_workers(objects, CTL_DECODE, &count);
    assert_non_null(workers);
    assert_int_equal(count, 3);
    assert_string_equal(workers[0].pod.name, "alone");
    assert_true(workers[0].ready);
    assert_string_equal(workers[1].pod.name, "d-0");
    assert_int_equal(workers[1].pods, 2);
    assert_true(workers[1].ready);
    assert_false(workers[2].ready);
    free(workers);
    json_decref(objects);
}

static void test_hostile_objects(void **state)
{
    (void)state;
    static const char *const pods[] = {
        "7",
        "[]",
        "{}",
        "{\"metadata\":[]}",
        "{\"metadata\":{\"name\":[]}}",
        "{\"metadata\":{\"name\":\"a\",\"labels\":7,\"annotations\":[1]},\"status\":[],\"spec\":"
        "\"x\"}",
        "{\"metadata\":{\"name\":\"a\"},\"status\":{\"conditions\":{\"a\":1},\"phase\":1,"
        "\"containerStatuses\":[1,null,{\"state\":[]},{\"state\":{\"waiting\":{\"reason\":7}}}]}}",
        "{\"metadata\":{\"name\":\"a\",\"labels\":{" DECODE RANK("-1",
                                                                 "99999999999999999999") "}}}",
    };
    for (size_t i = 0; i < sizeof(pods) / sizeof(pods[0]); i++) {
        struct ctl_kube_pod pod;
        struct ctl_kube_workload workload;
        char text[100];
        json_t *object = json_loads(pods[i], JSON_DECODE_ANY, NULL);
        assert_non_null(object);
        if (ctl_kube_pod_read(object, &pod)) {
            assert_false(pod.ready);
            assert_int_equal(pod.group, -1);
        }
        ctl_kube_workload_read(object, i % 2, &workload);
        ctl_kube_pod_trouble(object, text, sizeof(text));
        assert_null(ctl_kube_pod_container(object));
        json_decref(object);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_lines_cut_anywhere),
        cmocka_unit_test(test_lines_have_a_limit),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_no_events),
        cmocka_unit_test(test_groups_are_one_worker),
        cmocka_unit_test(test_hostile_objects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
